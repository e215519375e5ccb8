"""Means over all processes, added to a trainer's metrics."""

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from .episodes import Episode, StopReason
from .rows import Row


Metrics = defaultdict[str, list[float]]
"""Values by name, as TRL keeps them: it logs each name's plain average since the last log."""


PARTS = {
    "sdar/gate_large_gap": "sdar/large_gap",
    "sdar/gap_won": "sdar/tokens_won",
    "sdar/gap_lost": "sdar/tokens_lost",
}
"""Means over a part of the tokens, and the part's share of all. They are kept as sums over the part by the number of
all tokens, of which means may be taken, and divided by the share when they are logged."""


def divide_by_shares(metrics: Metrics) -> None:
    """Let the means over a part of the tokens be that; one over no token is left out."""
    for name, share in PARTS.items():
        total = sum(metrics.get(share, ()))
        if name in metrics:
            sums = metrics.pop(name)
            if total:
                metrics[name] = [sum(sums) / total]


@contextmanager
def timed(metrics: Metrics, name: str) -> Iterator[None]:
    """Add the seconds that are spent inside on this process, an accelerator's work included."""
    start = time.perf_counter()
    yield
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    metrics[name].append(time.perf_counter() - start)


def add_values(metrics: Metrics, values: Mapping[str, list[float]]) -> None:
    """Add the values of every process, a process may have any number, so that TRL's plain average weighs all alike."""
    for of_process in gather_object([dict(values)]):
        for name, numbers in of_process.items():
            metrics[name].extend(numbers)


def add_episodes(metrics: Metrics, episodes: list[Episode], seconds: Mapping[str, float]) -> None:
    """Add what is known of each episode of every process, and what this one has waited for while they were played."""
    for name, spent in seconds.items():
        metrics[f"time/{name}"].append(spent)
    records = [
        {
            "task_type": episode.task.get("task_type"),
            "success": float(episode.success),
            "return": episode.episode_return,
            "turns": float(len(episode.turns)),
            "valid_actions": 1 - episode.invalid_actions / max(len(episode.turns), 1),
            "stop_reason": episode.stop_reason,
            "metrics": episode.metrics,
        }
        for episode in episodes
    ]
    for record in gather_object(records):
        for name in ("success", "return", "turns", "valid_actions"):
            metrics[f"env/{name}"].append(record[name])
        if record["task_type"] is not None:
            metrics[f"env/success/{record['task_type']}"].append(record["success"])
        for reason in StopReason:
            metrics[f"env/stop/{reason.value}"].append(float(record["stop_reason"] is reason))
        for name, value in record["metrics"].items():
            own = name.split("/")[0] in ("success", "return", "turns", "valid_actions", "stop")
            metrics[f"env/{'metrics/' if own else ''}{name}"].append(value)


def count_rows(metrics: Metrics, rows: Sequence[Row], cut: Sequence[bool]) -> int:
    """
    Let TRL's figures about completions be those of all rows; it has seen the last of each episode alone, and takes one
    without an end-of-turn token for cut.

    Args:
        metrics (`Metrics`):
            The metrics, with TRL's figures as their last values.
        rows (`list[Row]`):
            The rows of this process.
        cut (`list[bool]`):
            Whether the episode of each was cut, see [`~sdar_trl.rows.was_cut`].

    Returns:
        `int`: tokens of all processes that TRL has not counted.
    """
    last = {id(row.episode): row for row in rows}
    uncounted = sum(len(row.prompt_ids) + sum(row.mask) for row in rows if row is not last[id(row.episode)])
    found = gather_object([(sum(row.mask), of_cut) for row, of_cut in zip(rows, cut, strict=True)])
    lengths = [length for length, _ in found]
    ended = [length for length, of_cut in found if not of_cut] or [0]
    for name, values in (("length", lengths), ("terminated_length", ended)):
        metrics[f"completions/mean_{name}"][-1] = sum(values) / len(values)
        metrics[f"completions/min_{name}"][-1] = float(min(values))
        metrics[f"completions/max_{name}"][-1] = float(max(values))
    metrics["completions/clipped_ratio"][-1] = sum(of_cut for _, of_cut in found) / len(found)
    return sum(gather_object([uncounted]))


def add_token_means(
    metrics: Metrics, accelerator: Accelerator, values: Mapping[str, torch.Tensor], mask: torch.Tensor
) -> None:
    """Add means over the tokens of all processes, and of a gap its standard deviation. Values have shape (B, T)."""
    values = dict(values)
    if "sdar/gap_mean" in values:
        values["sdar/gap_std"] = values["sdar/gap_mean"] ** 2
    sums = torch.stack([*((value * mask).sum() for value in values.values()), mask.sum()])
    *sums, count = accelerator.reduce(sums, reduction="sum").tolist()
    means = {name: value / max(count, 1.0) for name, value in zip(values, sums, strict=True)}
    if "sdar/gap_std" in means:
        means["sdar/gap_std"] = max(means["sdar/gap_std"] - means["sdar/gap_mean"] ** 2, 0.0) ** 0.5
    for name, mean in means.items():
        metrics[name].append(mean)


@contextmanager
def merged_micro_batches(metrics: Metrics, weights: Sequence[float]) -> Iterator[None]:
    """
    What is added inside, once by each micro-batch, becomes one value: the mean by weight; the least, the largest or
    the standard deviation where the name says so.

    Args:
        metrics (`Metrics`):
            The metrics.
        weights (`list[float]`):
            Of each micro-batch: how many tokens of all processes count.
    """
    before = {name: len(values) for name, values in metrics.items()}
    yield
    total = sum(weights)
    added = {name: values[before.get(name, 0) :] for name, values in metrics.items()}

    def mean(values: Sequence[float]) -> float:
        return sum(w * value for w, value in zip(weights, values, strict=True) if w) / total

    for name, values in added.items():
        if len(values) != len(weights):
            continue
        known = [value for value in values if not math.isnan(value)]
        merged = []
        if name.endswith(("_min", "_max")):
            merged = [(min if name.endswith("_min") else max)(known)] if known else []
        elif name.endswith("_std") and total:  # about the mean of all
            means = added[f"{name[:-4]}_mean"]
            squares = [std**2 + part**2 for std, part in zip(values, means, strict=True)]
            merged = [max(mean(squares) - mean(means) ** 2, 0.0) ** 0.5]
        elif total:
            merged = [mean(values)]
        metrics[name][before.get(name, 0) :] = merged
