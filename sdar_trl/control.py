"""The tokenizer's control tokens belong to the chat template alone.

One that is spelled inside a message, as by a page that wants to speak as the assistant, is encoded as text: a break
is put behind its first character, and taken out again once there are ids. All other text is encoded as the tokenizer
does, token for token.
"""

import copy
import re
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

from transformers import AddedToken, PreTrainedTokenizerBase

from .episodes import Message


class ControlTokens:
    """
    Encodes what a chat template renders, with the control tokens that messages spell as text.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer.
        render (`Callable[[list[dict]], str]`):
            The chat template.

    Attributes:
        special (`dict[str, int]`):
            The special tokens: by their own flag, since not all of them are in the tokenizer's `all_special_ids`.
        sequence (`set[int]`):
            Ids of the tokens that begin, end and pad a sequence.
    """

    _BREAK = "BEHINDITISNOCONTROLTOKEN"  # no beginning of it is its end, so it can be broken itself

    def __init__(self, tokenizer: PreTrainedTokenizerBase, render: Callable[[list[Message]], str]):
        self.tokenizer = tokenizer
        self.render = render
        self._added = {token.content: i for i, token in tokenizer.added_tokens_decoder.items()}
        flagged = {token.content: i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.special = {**flagged, **dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))}
        named = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        self.sequence = {token for token in named if token is not None}

    @cached_property
    def structure(self) -> dict[str, int]:
        """The tokens between messages, whether they are special or not, and those of a sequence. Marks in pairs, as of
        a thought, are part of what the assistant says."""
        user, assistant = ({"role": role, "content": "dummy"} for role in ("user", "assistant"))
        between = set(self.encode(self.render([user, assistant, user, assistant, user])))
        alone = (text for text in self._added if not text.startswith("</") and f"</{text[1:]}" not in self._added)
        marks = {text: self._added[text] for text in alone if re.fullmatch(r"<\S+>|\[\S+\]", text)}
        return {
            **{text: token for text, token in marks.items() if token in between},
            **{text: token for text, token in self.special.items() if token in self.sequence},
        }

    @cached_property
    def all(self) -> dict[str, int]:
        """The tokens that no text from outside may become."""
        return {**self.special, **self.structure}

    def encode(self, text: str) -> list[int]:
        """Ids of a text that was rendered."""
        if self._BREAK not in text:
            return self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return self.without_breaks(self.breaking_tokenizer(text, add_special_tokens=False)["input_ids"])

    def without_breaks(self, ids: list[int]) -> list[int]:
        """Ids as `breaking_tokenizer` encodes them, without the breaks."""
        mark = self.breaking_tokenizer.added_tokens_encoder[self._BREAK]
        return [token for token in ids if token != mark]

    def as_text(self, messages: Iterable[Message]) -> list[Message]:
        """
        The messages, to be rendered so that the control tokens they spell are encoded as text.

        Args:
            messages (`list[dict]`):
                The messages. What the assistant said may hold special tokens of its own, as of an action; those that
                stand between messages are text there too.

        Returns:
            `list[dict]`: new messages, in all that they hold.
        """

        def broken(value: Any, said: bool) -> Any:
            if isinstance(value, str):
                return self._broken(value, said)
            if isinstance(value, list):
                return [broken(item, said) for item in value]
            if isinstance(value, dict):
                return {name: broken(item, said) for name, item in value.items()}
            return value

        return [broken(message, message["role"] == "assistant") for message in messages]

    def what_was_read(self, ids: list[int]) -> str:
        """The text of ids, as it is rendered of `as_text`: real control tokens and spelled ones are told apart."""
        text = str(self.tokenizer.decode(ids))
        real = {token: text for text, token in self.all.items()}
        if len(self._first_characters.findall(text)) == sum(token in real for token in ids):
            return text
        parts: list[str] = []
        run: list[int] = []
        for token in ids:
            if token in real:
                parts += [self._decode_spelled(run), real[token]]
                run = []
            else:
                run.append(token)
        return "".join([*parts, self._decode_spelled(run)])

    def _decode_spelled(self, ids: list[int]) -> str:
        return self._first_characters.sub(rf"\g<0>{self._BREAK}", str(self.tokenizer.decode(ids))) if ids else ""

    def _broken(self, text: str, said: bool) -> str:
        """The text with a break inside each control token that it spells."""
        control, pattern = (self.structure, self._first_of_structure) if said else (self.all, self._first_characters)
        text = pattern.sub(rf"\g<0>{self._BREAK}", text)
        if self._has_variants and not set(control.values()).isdisjoint(self.encode(text)):
            return self._BREAK.join(text.replace(self._BREAK, ""))
        return text

    @cached_property
    def _has_variants(self) -> bool:
        """Whether a control token may be spelled in several ways, e.g. in capitals."""
        added = self.tokenizer.added_tokens_decoder
        return any(added[token].normalized for token in self.all.values() if token in added)

    @cached_property
    def _first_characters(self) -> re.Pattern[str]:
        return self._first_of(self.all)

    @cached_property
    def _first_of_structure(self) -> re.Pattern[str]:
        return self._first_of(self.structure)

    def _first_of(self, tokens: Iterable[str]) -> re.Pattern[str]:
        """Finds the first character of each of these tokens, also where they overlap."""
        spelled = [re.escape(text) for text in [*tokens, self._BREAK]]
        first = "".join(sorted({re.escape(text[0]) for text in [*tokens, self._BREAK]}))
        return re.compile(rf"(?=[{first}])(?=(?:{'|'.join(spelled)})).", re.DOTALL)

    @cached_property
    def breaking_tokenizer(self) -> PreTrainedTokenizerBase:
        """A tokenizer that knows the break. It is made where it is needed: large ones take a second to copy."""
        tokenizer = copy.deepcopy(self.tokenizer)
        tokenizer.add_tokens([AddedToken(self._BREAK, normalized=False, special=False)])
        return tokenizer
