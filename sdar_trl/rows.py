"""Training rows: what a forward pass reads at once. They follow from an episode's data.

Consecutive turns of which each reads all that came before, the response included, are one row; where the history was
rendered anew, a new row begins. A growing conversation is one row, a window on it one row a turn.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from trl.trainer.utils import pad

from .episodes import Episode, Message, StopReason


@dataclass(frozen=True)
class Row:
    """
    One or more turns of an episode that were read as one sequence.

    Args:
        episode ([`Episode`]):
            The episode.
        turns (`range`):
            Which of its turns are in this row.
        messages (`list[dict]` or `str`):
            The prompt, without context: messages, or a text where TRL's own loop was given one.
        prompt_ids (`list[int]`):
            Ids before the first response.
        completion_ids (`list[int]`):
            Responses, and the observations between them.
        mask (`list[int]`):
            1 for the completion ids that the policy sampled; all 0 where the environment raised.
        logprobs (`list[float]`):
            The backend's log-probs (nats) of the completion ids, 0.0 where there is none.
    """

    episode: Episode
    turns: range
    messages: list[Message] | str
    prompt_ids: list[int]
    completion_ids: list[int]
    mask: list[int]
    logprobs: list[float]


def episode_rows(episode: Episode, pad_token_id: int) -> list[Row]:
    """
    The rows of an episode.

    Args:
        episode ([`Episode`]):
            The episode.
        pad_token_id (`int`):
            Stands in for the ids of an episode that failed before its first response.

    Returns:
        `list[Row]`: at least one. An episode whose environment raised trains nothing: it has one row, masked.
    """
    starts = [i for i, turn in enumerate(episode.turns) if i == 0 or turn.messages is not None]
    spans = [range(start, end) for start, end in pairwise([*starts, len(episode.turns)])]
    if not spans:
        return [Row(episode, range(0), episode.prompt, [pad_token_id], [pad_token_id], [0], [0.0])]
    if episode.stop_reason is StopReason.ENV_ERROR:
        spans = spans[-1:]
    return [_row(episode, span) for span in spans]


def _row(episode: Episode, span: range) -> Row:
    first = episode.turns[span.start]
    sampled = int(episode.stop_reason is not StopReason.ENV_ERROR)
    completion_ids: list[int] = []
    mask: list[int] = []
    logprobs: list[float] = []
    for turn in episode.turns[span.start : span.stop]:
        observed = [] if turn is first else turn.new_ids
        completion_ids += observed + turn.response_ids
        mask += [0] * len(observed) + [sampled] * len(turn.response_ids)
        logprobs += [0.0] * len(observed) + (turn.logprobs or [0.0] * len(turn.response_ids))
    messages = episode.prompt if first.messages is None else first.messages
    return Row(episode, span, messages, first.new_ids, completion_ids, mask, logprobs)


def was_cut(episode: Episode, end_ids: Sequence[int]) -> bool:
    """
    Whether an episode did not come to its own end: the token budget was used up, the environment cut it short, or its
    last turn's response was cut before its end.

    An episode that the environment ended in its last turn is whole, however the response looks that ended it; so is
    one that used all its turns, and one that failed is no matter of length.

    Args:
        episode ([`Episode`]):
            A finished episode.
        end_ids (`list[int]`):
            Tokens that end a response.

    Returns:
        `bool`: whether it was cut.
    """
    if episode.stop_reason is StopReason.MAX_TURNS:
        return episode.turns[-1].response_ids[-1] not in end_ids
    return episode.stop_reason in (StopReason.LENGTH, StopReason.TRUNCATED)


def row_turns(rows: Sequence[Row], episodes: Sequence[Episode]) -> torch.Tensor:
    """Which turns each row holds: the episode's index, the first turn's and how many there are, shape (rows, 3)."""
    index = {id(episode): i for i, episode in enumerate(episodes)}
    return torch.tensor([[index[id(row.episode)], row.turns.start, len(row.turns)] for row in rows])


def padded_count(most: int, steps: int, batch_size: int) -> int:
    """
    How many rows each process has, so that all do as many forwards: the rows of the process with the most, filled up
    to equal micro-batches.

    Args:
        most (`int`):
            Rows of that process.
        steps (`int`):
            Parts that a generation batch is split into.
        batch_size (`int`):
            Most rows of a micro-batch.

    Returns:
        `int`: a multiple of `steps`, and within each step of the number of its micro-batches.
    """
    micro_batches = -(-most // (steps * batch_size)) * steps
    return -(-most // micro_batches) * micro_batches


def rows_batch(
    rows: Sequence[Row],
    turns: torch.Tensor,
    advantages: torch.Tensor,
    count: int,
    pad_token_id: int,
    pad_to_multiple_of: int | None = None,
) -> dict[str, torch.Tensor]:
    """
    Rows as tensors of a batch, with masked ones behind them.

    Args:
        rows (`list[Row]`):
            The rows of this process.
        turns (`torch.Tensor`):
            What [`row_turns`] says of them, shape (rows, 3).
        advantages (`torch.Tensor`):
            Of each episode, shape (episodes,).
        count (`int`):
            B, rows of the batch.
        pad_token_id (`int`):
            Padding, and all there is in masked rows.
        pad_to_multiple_of (`int`, *optional*):
            As in [`~trl.GRPOConfig`].

    Returns:
        `dict[str, torch.Tensor]`: `prompt_ids` and `prompt_mask`, shape (B, P); `completion_ids`, `completion_mask`,
        `tool_mask` (1 = sampled by the policy) and `sampling_per_token_logps`, shape (B, T); `advantages`, shape
        (B,); and `row_turns` (-1 in masked rows), shape (B, 3).
    """
    missing = count - len(rows)
    device = advantages.device

    def padded(lists: list[list], fill: Any, value: Any, side: str) -> torch.Tensor:
        tensors = [torch.tensor(part) for part in [*lists, *[fill] * missing]]
        return pad(tensors, padding_value=value, padding_side=side, pad_to_multiple_of=pad_to_multiple_of).to(device)

    # masked rows have two columns: TRL takes a width of one for a value of the whole sequence, and counts rows
    return {
        "prompt_ids": padded([row.prompt_ids for row in rows], [pad_token_id], pad_token_id, "left"),
        "prompt_mask": padded([[1] * len(row.prompt_ids) for row in rows], [1], 0, "left"),
        "completion_ids": padded([row.completion_ids for row in rows], [pad_token_id] * 2, pad_token_id, "right"),
        "completion_mask": padded([[1] * len(row.completion_ids) for row in rows], [0, 0], 0, "right"),
        "tool_mask": padded([row.mask for row in rows], [0, 0], 1, "right"),
        # an engine gives `None` where it could not tell; TRL expects NaN there
        "sampling_per_token_logps": padded(
            [[math.nan if value is None else value for value in row.logprobs] for row in rows], [0.0] * 2, 0.0, "right"
        ),
        "advantages": torch.cat([advantages[turns[:, 0].to(device)], advantages.new_zeros(missing)]),
        "row_turns": torch.cat([turns, turns.new_full((missing, 3), -1)]).to(device),
    }


def sampled_tokens(inputs: Mapping[str, Any]) -> torch.Tensor:
    """1 for the tokens that the policy sampled, shape (B, T)."""
    mask = inputs["completion_mask"]
    return mask * inputs["tool_mask"] if "tool_mask" in inputs else mask


def split_by_length(batch: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """
    A batch in equal parts, of rows of like length: the short ones first.

    Args:
        batch (`dict[str, Any]`):
            Some of its values are tensors that begin with the B rows; each part has all of the others.
        count (`int`):
            How many parts; it divides B.

    Returns:
        `list[dict[str, Any]]`: the parts.
    """
    order = (batch["prompt_mask"].sum(1) + batch["completion_mask"].sum(1)).argsort(stable=True)

    def of_rows(value: Any, rows: torch.Tensor) -> Any:
        return value[rows] if isinstance(value, torch.Tensor) and value.ndim > 0 else value

    return [{name: of_rows(value, rows) for name, value in batch.items()} for rows in order.chunk(count)]


def joined(batches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Batches of like widths as one; values that are not of rows are the first one's."""
    return {
        name: torch.cat([batch[name] for batch in batches])
        if isinstance(value, torch.Tensor) and value.ndim > 0
        else value
        for name, value in batches[0].items()
    }


def micro_batches(batch: Mapping[str, Any], batch_size: int, loss_type: str) -> list[dict[str, Any]]:
    """
    A batch of rows in equal parts. TRL's loss of each, by its `loss_weight` and with as many times the accumulation
    steps, adds up to that of the batch without its masked rows.

    Args:
        batch (`dict[str, Any]`):
            From [`rows_batch`], with `num_items_in_batch` and `row_weight`: what a mean over its rows is multiplied by
            to be one over the rows that are not masked.
        batch_size (`int`):
            Most rows of a part.
        loss_type (`str`):
            TRL's. Those that take a mean over rows are told the weight of a row, `"bnpo"` the share of tokens; the
            others divide by tokens of the whole window.

    Returns:
        `list[dict[str, Any]]`: the parts.
    """
    count = -(-len(batch["completion_ids"]) // batch_size)
    tokens = sampled_tokens(batch).sum().clamp(min=1)
    parts = split_by_length(batch, count)
    for part in parts:
        part["num_items_in_batch"] = batch["num_items_in_batch"] / count
        weight = torch.ones_like(batch["row_weight"])
        if loss_type in ("grpo", "sapo", "dr_grpo", "luspo"):
            weight = batch["row_weight"]
        elif loss_type == "bnpo":
            weight = count * sampled_tokens(part).sum() / tokens
        part["loss_weight"] = weight
    return parts


def record_tokens(episodes: Sequence[Episode], batch: Mapping[str, Any], found: Mapping[str, torch.Tensor]) -> None:
    """
    Write what was found at each token into the turn that sampled it, unless the turn has it.

    Args:
        episodes (`list[Episode]`):
            The episodes of the generation batch; after a resume in its middle there are none.
        batch (`dict[str, Any]`):
            Some of their rows, by `row_turns`.
        found (`dict[str, torch.Tensor]`):
            By the names of fields of [`Turn`], shape (B, T). Gaps, gates and losses only count where there is a
            teacher.
    """
    if not episodes or "row_turns" not in batch:
        return
    columns = {name: values.detach().float().tolist() for name, values in found.items()}
    taught = batch["teacher_mask"][:, 0].tolist() if "gaps" in found else []
    for position, (episode, first, count) in enumerate(batch["row_turns"].tolist()):
        known = [name for name in columns if name not in ("gaps", "gates", "losses") or taught[position]]
        end = 0
        for number in range(first, first + count if episode >= 0 else first):
            turn = episodes[episode].turns[number]
            start = end + (len(turn.new_ids) if number > first else 0)
            end = start + len(turn.response_ids)
            for name in known:
                if getattr(turn, name) is None:
                    setattr(turn, name, columns[name][position][start:end])
