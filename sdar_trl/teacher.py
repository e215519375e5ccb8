"""What the teacher reads, and its log-probabilities of what the student said.

The teacher row is the student's row with privileged context inside its system message: the same completion ids, the
same mask, aligned one to one. It is never cut.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from trl.trainer.utils import pad

from .chat import Message, render_chat


def default_system_text(tokenizer: PreTrainedTokenizerBase, template_kwargs: dict[str, Any] | None = None) -> str:
    """
    The system text that a chat template adds by itself to a conversation without a system message.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer with a chat template.
        template_kwargs (`dict[str, Any]`, *optional*):
            Passed on to `apply_chat_template`.

    Returns:
        `str`: the text, `""` if the template adds none.

    Raises:
        `ValueError`: if the template refuses system messages.
    """
    marker = "SYSTEMTEXT"
    user = {"role": "user", "content": "USERTEXT"}

    kwargs = template_kwargs or {}
    try:
        explicit = render_chat(tokenizer, [{"role": "system", "content": marker}, user], **kwargs)
    except Exception as error:
        explicit = ""
        cause: Exception | None = error
    else:
        cause = None
    if marker not in explicit:
        raise ValueError(
            "The chat template takes no system message, so the teacher's context has no place there. "
            'Set `context_role="user"`.'
        ) from cause
    before, after = explicit.split(marker, 1)
    implicit = render_chat(tokenizer, [user], **kwargs)
    if implicit.startswith(before) and implicit.endswith(after) and len(implicit) > len(before) + len(after):
        return implicit[len(before) : len(implicit) - len(after)]
    return ""


def add_context(messages: list[Message], context: str, role: str, default_system: str = "") -> list[Message]:
    """
    The messages with the privileged context inside.

    Args:
        messages (`list[dict]`):
            The student's prompt.
        context (`str`):
            The privileged text. Empty leaves the messages as they are.
        role (`str`):
            `"system"` appends to the system message, `"user"` puts the context in front of the first user message.
        default_system (`str`, *optional*, defaults to `""`):
            The template's own system text, kept where the messages have no system message.

    Returns:
        `list[dict]`: new messages; `messages` is left as it is.
    """
    if not context:
        return messages
    if role == "user":
        first = next(index for index, message in enumerate(messages) if message["role"] == "user")
        content = f"{context}\n\n{messages[first]['content']}"
        return [*messages[:first], {**messages[first], "content": content}, *messages[first + 1 :]]
    if messages[0]["role"] == "system":
        system, rest = messages[0]["content"], messages[1:]
    else:
        system, rest = default_system, messages
    content = f"{system}\n\n{context}" if system else context
    return [{"role": "system", "content": content}, *rest]


def fit_teacher_rows(
    teacher_prompt_ids: Sequence[list[int]],
    student_prompt_ids: Sequence[list[int]],
    completion_lengths: Sequence[int],
    max_length: int | None,
    overflow: str,
) -> tuple[list[list[int]], list[bool]]:
    """
    Settle what happens to teacher rows that are too long. A row fits whole or not at all.

    Args:
        teacher_prompt_ids (`list[list[int]]`):
            Prompts with context.
        student_prompt_ids (`list[list[int]]`):
            Prompts without; they stand in for the rows left out, so that every process scores as many rows.
        completion_lengths (`list[int]`):
            Tokens of each completion.
        max_length (`int`, *optional*):
            Longest teacher row in tokens.
        overflow (`str`):
            `"error"` or `"skip"`.

    Returns:
        `tuple`: the prompts to score, and whether each row fits.

    Raises:
        `ValueError`: if a row does not fit and `overflow` is `"error"`.
    """
    if max_length is None:
        return list(teacher_prompt_ids), [True] * len(teacher_prompt_ids)
    prompts, fits = [], []
    for teacher_ids, student_ids, completion_length in zip(
        teacher_prompt_ids, student_prompt_ids, completion_lengths, strict=True
    ):
        length = len(teacher_ids) + completion_length
        if length > max_length and overflow == "error":
            raise ValueError(
                f"A teacher row has {length} tokens ({len(teacher_ids) - len(student_ids)} of context, "
                f"{len(student_ids)} of prompt, {completion_length} of completion), more than the {max_length} that "
                "fit. Use fewer or shorter skills, a smaller `max_completion_length`, a larger `max_teacher_length` "
                'if the model allows it, or `teacher_overflow="skip"` to leave such rows out of the distillation.'
            )
        fits.append(length <= max_length)
        prompts.append(teacher_ids if fits[-1] else student_ids)
    return prompts, fits


def build_teacher_batch(
    prompt_ids: Sequence[list[int]],
    completion_ids: torch.Tensor,
    completion_mask: torch.Tensor,
    pad_token_id: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Put the teacher's prompts, padded on the left, in front of the student's completions.

    Args:
        prompt_ids (`list[list[int]]`):
            The teacher's prompts.
        completion_ids (`torch.Tensor`):
            The student's completions, shape (B, T).
        completion_mask (`torch.Tensor`):
            1 for completion tokens, 0 for padding, shape (B, T).
        pad_token_id (`int`):
            Padding; known from the mask alone afterwards.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: input ids and attention mask, shape (B, P + T).
    """
    prompts = [torch.tensor(ids) for ids in prompt_ids]
    ids = pad(prompts, padding_value=pad_token_id, padding_side="left").to(completion_ids.device)
    mask = pad([torch.ones_like(ids) for ids in prompts], padding_value=0, padding_side="left")
    mask = mask.to(completion_mask)
    return torch.cat([ids, completion_ids], dim=1), torch.cat([mask, completion_mask], dim=1)
