"""Rendering the parts of a conversation: what was sampled stays as it is, only what is new is rendered.

The template's control tokens are the template's alone: messages that spell them hold them as text.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from .control import ControlTokens
from .episodes import Message


class Chat:
    """
    Renders conversations with the tokenizer's chat template, and puts context into them.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer with a chat template.
        template_kwargs (`dict[str, Any]`, *optional*):
            Passed on to `apply_chat_template`, e.g. `{"enable_thinking": False}`.
        context_role (`str`, *optional*, defaults to `"system"`):
            Message that gets a context: `"system"` appends it to the system message, `"user"` puts it in front of the
            first user message.

    Attributes:
        control ([`~sdar_trl.control.ControlTokens`]):
            Keeps what messages spell from becoming control tokens.
    """

    _ASSISTANT = "ASSISTANTSAID"  # stands for a past response; templates render it verbatim

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template_kwargs: dict[str, Any] | None = None,
        context_role: str = "system",
    ):
        self.tokenizer = tokenizer
        self.template_kwargs = template_kwargs or {}
        self.context_role = context_role
        self.control = ControlTokens(tokenizer, self._render)

    # Context

    @cached_property
    def default_system(self) -> str:
        """
        The system text that the template adds by itself to a conversation without a system message, `""` if it adds
        none.

        Raises:
            `ValueError`: if the template refuses system messages.
        """
        marker = "SYSTEMTEXT"
        user = {"role": "user", "content": "USERTEXT"}
        cause: Exception | None = None
        try:
            explicit = self._render([{"role": "system", "content": marker}, user])
        except Exception as error:
            explicit, cause = "", error
        if marker not in explicit:
            raise ValueError(
                "The chat template takes no system message, so a context has no place there. "
                'Set `context_role="user"`.'
            ) from cause
        before, after = explicit.split(marker, 1)
        implicit = self._render([user])
        if implicit.startswith(before) and implicit.endswith(after) and len(implicit) > len(before) + len(after):
            return implicit[len(before) : len(implicit) - len(after)]
        return ""

    def with_context(self, messages: list[Message], context: str) -> list[Message]:
        """
        The messages with a context inside. The one place where a context meets a prompt.

        Args:
            messages (`list[dict]`):
                A prompt.
            context (`str`):
                The text. Empty leaves the messages as they are.

        Returns:
            `list[dict]`: new messages; `messages` is left as it is. A system text that the template adds by itself is
            kept.

        Raises:
            `ValueError`: if the messages, or the template, have no place for it.
        """
        if not context:
            return messages
        if self.context_role == "user":
            first = next((index for index, message in enumerate(messages) if message["role"] == "user"), None)
            if first is None:
                raise ValueError('`context_role="user"` needs a user message in the prompt; there is none.')
            content = f"{context}\n\n{messages[first]['content']}"
            return [*messages[:first], {**messages[first], "content": content}, *messages[first + 1 :]]
        system, rest = self.default_system, messages
        if messages[0]["role"] == "system":
            system, rest = messages[0]["content"], messages[1:]
        return [{"role": "system", "content": f"{system}\n\n{context}" if system else context}, *rest]

    # Ids

    @cached_property
    def end_of_turn_id(self) -> int:
        """
        The token that ends an assistant turn.

        Raises:
            `ValueError`: if it is no special token: a conversation could not grow by appending ids. Also if the
                template does not render a user's and an assistant's texts.
        """
        try:
            token = self._tail_ids("observation")[0]
        except Exception as error:
            if self.tokenizer.chat_template is None:
                raise ValueError(
                    "The tokenizer has no chat template, as those of base models have none: take an instruct model, "
                    "or set `tokenizer.chat_template` to that of one and pass it as `processing_class`."
                ) from None
            raise ValueError(
                "The chat template must render a user's and an assistant's messages whose contents are texts; it "
                f"fails on them, or leaves them out ({type(error).__name__}: {error}). Use another `chat_template`."
            ) from error
        if token not in self.control.special.values():
            raise ValueError(
                "The chat template must end an assistant turn with a special token, so that a conversation can grow "
                f"by appending ids; got {self.tokenizer.decode([token])!r} after the assistant's text."
            )
        return token

    def prompt_text(self, messages: list[Message]) -> str:
        """The messages rendered, up to where the assistant's next response begins."""
        return self._render(self.control.as_text(messages), add_generation_prompt=True)

    def text_ids(self, text: str) -> list[int]:
        """Ids of a rendered text."""
        return self.control.encode(text)

    def prompt_ids(self, messages: list[Message]) -> list[int]:
        """Ids of the messages, up to where the assistant's next response begins."""
        return self.text_ids(self.prompt_text(messages))

    def observation_ids(self, observation: str, previous_response: Sequence[int]) -> list[int]:
        """
        Ids to append after a response so that the assistant can respond to `observation`.

        A response that was cut before its end-of-turn token gets that token here, as part of the environment's text.
        """
        tail = self._tail_ids(observation)
        return tail[1:] if previous_response[-1] == self.end_of_turn_id else tail

    def continuation_ids(self, read: list[int], text: str) -> list[int] | None:
        """
        Ids to append to what was read and said so that it becomes the next prompt; `None` if that does not begin so.

        Args:
            read (`list[int]`):
                Ids of a prompt and the response to it.
            text (`str`):
                The next prompt, rendered.

        Returns:
            `list[int]` or `None`: the ids, begun by the end-of-turn token where the response was cut before it.
        """
        before = self.control.what_was_read(read)
        return self.text_ids(text[len(before) :]) if text.startswith(before) else None

    def decode(self, ids: list[int]) -> str:
        """Text of a response, without the tokens that end it. Other special tokens, as of an action, are kept."""
        ends = {self.end_of_turn_id, *self.control.sequence}
        return str(self.tokenizer.decode([token for token in ids if token not in ends]))

    def _render(self, messages: list[Message], add_generation_prompt: bool = False) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt, **self.template_kwargs
            )
        )

    def _tail_ids(self, observation: str) -> list[int]:
        """Ids that follow an assistant's text when a user message follows: its end-of-turn token comes first."""
        conversation = [
            {"role": "user", "content": "dummy"},
            {"role": "assistant", "content": self._ASSISTANT},
            *self.control.as_text([{"role": "user", "content": observation}]),
        ]
        tail = self._render(conversation, add_generation_prompt=True).split(self._ASSISTANT, 1)[1]
        return self.control.encode(tail)
