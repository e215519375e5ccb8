"""Means over all processes, added to a trainer's metrics."""

from collections import defaultdict
from collections.abc import Mapping

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from .rollout import Episode, StopReason


Metrics = defaultdict[str, list[float]]
"""Values by name, as TRL keeps them: it logs each name's plain average since the last log."""


def add_rows(metrics: Metrics, accelerator: Accelerator, values: Mapping[str, list[float]]) -> None:
    """Add one value per row of every process, so that TRL's plain average weighs all rows alike."""
    for name in sorted(values):
        gathered = accelerator.gather(torch.tensor(values[name], device=accelerator.device))
        metrics[name].extend(gathered.tolist())


def add_episodes(metrics: Metrics, episodes: list[Episode]) -> None:
    """Add what is known of each episode of every process."""
    records = [
        {
            "task_type": episode.task.get("task_type"),
            "success": float(episode.success),
            "return": episode.episode_return,
            "turns": float(len(episode.turns)),
            "valid_actions": 1 - episode.invalid_actions / max(len(episode.turns), 1),
            "stop_reason": episode.stop_reason,
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
