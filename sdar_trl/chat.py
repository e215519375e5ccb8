"""Rendering the parts of a conversation: what was sampled stays as it is, only what is new is rendered."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase


Message = dict[str, Any]


def render_chat(tokenizer: PreTrainedTokenizerBase, messages: list[Message], **kwargs: Any) -> str:
    """The messages as text, by the tokenizer's chat template."""
    return str(tokenizer.apply_chat_template(messages, tokenize=False, **kwargs))


class Chat:
    """
    Renders the parts of a conversation with the tokenizer's chat template.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer with a chat template.
        template_kwargs (`dict[str, Any]`, *optional*):
            Passed on to `apply_chat_template`, e.g. `{"enable_thinking": False}`.

    Raises:
        `ValueError`: if the template does not end an assistant turn with a special token.
    """

    _ASSISTANT = "ASSISTANTSAID"  # stands for a past response; templates render it verbatim

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template_kwargs: dict[str, Any] | None = None):
        self.tokenizer = tokenizer
        self.template_kwargs = template_kwargs or {}
        self.end_of_turn_id = self._tail_ids("observation")[0]
        if self.end_of_turn_id not in tokenizer.all_special_ids:
            raise ValueError(
                "The chat template must end an assistant turn with a special token, so that a conversation can grow "
                f"by appending ids; got {tokenizer.decode([self.end_of_turn_id])!r} after the assistant's text."
            )

    def _render(self, messages: list[Message]) -> str:
        return render_chat(self.tokenizer, messages, add_generation_prompt=True, **self.template_kwargs)

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _tail_ids(self, observation: str) -> list[int]:
        """Ids that follow an assistant's text when a user message follows: its end-of-turn token comes first."""
        conversation = [
            {"role": "user", "content": "dummy"},
            {"role": "assistant", "content": self._ASSISTANT},
            {"role": "user", "content": observation},
        ]
        return self._encode(self._render(conversation).split(self._ASSISTANT, 1)[1])

    def prompt_ids(self, messages: list[Message]) -> list[int]:
        """Ids of the messages, up to where the assistant's first response begins."""
        return self._encode(self._render(messages))

    def observation_ids(self, observation: str, previous_response: Sequence[int]) -> list[int]:
        """
        Ids to append after a response so that the assistant can respond to `observation`.

        A response that was cut before its end-of-turn token gets that token here, as part of the environment's text.
        """
        tail = self._tail_ids(observation)
        return tail[1:] if previous_response[-1] == self.end_of_turn_id else tail

    def decode(self, ids: list[int]) -> str:
        """Text of a response, without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))
