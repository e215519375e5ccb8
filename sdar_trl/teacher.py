"""The teacher: the same weights, reading each row again with context in its prompt.

The teacher's row is the student's with the context inside: the same completion ids, the same mask, aligned one to one.
It is never cut. Where a prompt is a text in place of messages, the context stands in front of it, with an empty line
between them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from trl.trainer.utils import pad

from .chat import Chat
from .contexts import TeacherContext, context_texts
from .envs.border import Border
from .episodes import Episode, Message
from .rows import Row


class Teacher:
    """
    Builds the teacher's rows.

    Args:
        context (`TeacherContext`):
            What the teacher reads of each episode.
        chat ([`Chat`]):
            Puts it into a prompt.
        render (`Callable[[list], list[list[int]]]`):
            Ids of prompts, each messages or a text; what rendered the student's.
        max_length (`int`, *optional*):
            Longest teacher row in tokens.
        overflow (`str`):
            What happens to a longer one: `"error"` or `"skip"`.
        pad_token_id (`int`):
            Padding.
        border ([`~sdar_trl.envs.border.Border`]):
            Says what there is to say about the context.
    """

    def __init__(
        self,
        context: TeacherContext,
        chat: Chat,
        render: Callable[[list[Any]], list[list[int]]],
        max_length: int | None,
        overflow: str,
        pad_token_id: int,
        border: Border,
    ):
        self.context = context
        self.chat = chat
        self.render = render
        self.max_length = max_length
        self.overflow = overflow
        self.pad_token_id = pad_token_id
        self.border = border

    def in_prompt(self, prompt: list[Message] | str, text: str) -> list[Message] | str:
        """A prompt with a context inside; in front of a prompt that is a text, not messages."""
        if isinstance(prompt, str):
            return f"{text}\n\n{prompt}" if text else prompt
        return self.chat.with_context(prompt, text)

    def inputs(
        self, episodes: list[Episode], rows: Sequence[Row], completion_ids: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, list[float]]]:
        """
        The teacher's batch.

        Args:
            episodes (`list[Episode]`):
                The episodes of this process.
            rows (`list[Row]`):
                Their rows, in the batch's order. The batch may have masked rows behind them.
            completion_ids (`torch.Tensor`):
                The student's completions, shape (B, T).
            mask (`torch.Tensor`):
                1 for completion tokens, 0 for padding, shape (B, T).

        Returns:
            `tuple`: input ids and attention mask, shape (B, P + T); 1 for rows that have a teacher, shape (B, 1); and
            metrics, one value a row or an episode.

        Raises:
            `ValueError`: if a row does not fit and `overflow` is `"error"`.
        """
        for episode, text in zip(episodes, context_texts(self.context, episodes, self.border), strict=True):
            # a student that read the skills itself has no teacher
            episode.teacher_context = "" if episode.student_context else text
        contexts = [row.episode.teacher_context for row in rows]
        ids, attention_mask, has_teacher, metrics = self.batch(rows, contexts, completion_ids, mask)
        own = {f"sdar/{name}": values for name, values in getattr(self.context, "metrics", {}).items()}
        return ids, attention_mask, has_teacher, {**own, **metrics}

    def contrast(
        self, episodes: list[Episode], rows: Sequence[Row], completion_ids: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, list[float]]]:
        """What [`inputs`] gives, of wrong contexts: each episode that has one gets the next of another text, over all
        processes. A row has none where there is no other."""
        texts = [episode.teacher_context for episode in episodes]
        every, place = gather_object(texts), PartialState().process_index * len(texts)
        wrong = {id(one): next_other(every, place + index) for index, one in enumerate(episodes)}
        return self.batch(rows, [wrong[id(row.episode)] for row in rows], completion_ids, mask)

    def batch(
        self, rows: Sequence[Row], contexts: Sequence[str], completion_ids: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, list[float]]]:
        """The rows with a context each in their prompts, as [`inputs`] gives them."""
        # all of them, also those that are not read: TRL's loop knows by its place which tools a prompt has
        with_context = [self.in_prompt(row.messages, text) for row, text in zip(rows, contexts, strict=True)]
        rendered = self.render(with_context) if any(contexts) else [[]] * len(rows)
        prompts, fits = fit_teacher_rows(
            [ids if text else row.prompt_ids for ids, row, text in zip(rendered, rows, contexts, strict=True)],
            [row.prompt_ids for row in rows],
            mask.sum(1).tolist()[: len(rows)],
            self.max_length,
            self.overflow,
        )
        metrics = {"sdar/teacher_overflow": [float(not fit) for fit in fits]}
        metrics["sdar/context_tokens"] = [
            float(len(prompt) - len(row.prompt_ids)) for prompt, row in zip(prompts, rows, strict=True)
        ]
        masked_rows = completion_ids.size(0) - len(rows)
        input_ids, attention_mask = build_teacher_batch(
            [*prompts, *[[self.pad_token_id]] * masked_rows], completion_ids, mask, self.pad_token_id
        )
        has_teacher = [fit and text != "" for fit, text in zip(fits, contexts, strict=True)] + [False] * masked_rows
        teacher_mask = torch.tensor(has_teacher, device=completion_ids.device, dtype=torch.float32)
        return input_ids, attention_mask, teacher_mask.unsqueeze(1), metrics


def next_other(texts: Sequence[str], place: int) -> str:
    """The first text after a place, round to it again, that is another and not empty; none for an empty one."""
    turned = [*texts[place + 1 :], *texts[:place]]
    return next((text for text in turned if text not in ("", texts[place])), "") if texts[place] else ""


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
