"""TRL's own loops, with tools, its environments or neither: no text from outside becomes a control token there either.

TRL renders and encodes messages in one go. It is given them with breaks inside the control tokens that they spell, and
a tokenizer that knows the break (control.py).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property

from .chat import Chat
from .checkpointing import ResumableGRPOTrainer
from .episodes import Message


class LoopsGRPOTrainer(ResumableGRPOTrainer):
    """[`~trl.GRPOTrainer`] whose prompts and tools' answers hold as text the control tokens that they spell."""

    @cached_property
    def _chat(self) -> Chat:
        return Chat(self._tokenizer, self.chat_template_kwargs, self.args.context_role)  # type: ignore[arg-type]

    def _tokenize_prompts(self, prompts: list) -> tuple:
        if isinstance(prompts[0], str):  # no template is applied: it may have been, and its control tokens are meant
            return super()._tokenize_prompts(prompts)
        broken = list(map(self._chat.control.as_text, prompts))
        with self._breaks_known(broken != prompts) as cleared:
            prompt_ids, *others = super()._tokenize_prompts(broken)
            return list(map(cleared, prompt_ids)), *others

    def _get_tool_suffix_ids(self, tool_messages: list[Message]) -> list[int]:
        broken = self._chat.control.as_text(tool_messages)
        with self._breaks_known(broken != tool_messages) as cleared:
            return cleared(super()._get_tool_suffix_ids(broken))

    @contextmanager
    def _breaks_known(self, needed: bool) -> Iterator[Callable[[list[int]], list[int]]]:
        """Inside, TRL encodes breaks as such, if there are any; gives what takes them out of ids."""
        tokenizer = self.processing_class
        if needed:
            self.processing_class = self._chat.control.breaking_tokenizer
        try:
            yield self._chat.control.without_breaks if needed else list
        finally:
            self.processing_class = tokenizer
