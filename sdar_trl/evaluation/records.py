"""What came of a panel, episode by episode, and the tables made of it."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from scipy.stats import binomtest

from ..episodes import Episode


@dataclass(frozen=True)
class Record:
    """
    One episode of a panel.

    Args:
        task_id (`str`):
            The task's name in its dataset.
        task_type (`str`):
            Its kind, `"all"` where tasks have none.
        seed (`int`):
            Seed of the sampling.
        success (`bool`):
            Whether the environment reported success.
        score (`float`):
            The environment's own score at the end (`info["score"]`), else the return.
        episode_return (`float`):
            Sum of the rewards, without penalties.
        turns (`int`):
            Number of turns.
        valid_actions (`float`):
            Share of the turns with a legal action.
        stop_reason (`str`):
            Why it ended, a value of [`StopReason`].
        metrics (`dict[str, float]`, *optional*):
            Numbers that the environment reported, each as it was last reported.
    """

    task_id: str
    task_type: str
    seed: int
    success: bool
    score: float
    episode_return: float
    turns: int
    valid_actions: float
    stop_reason: str
    metrics: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, episode: Episode, seed: int) -> "Record":
        """The record of a finished episode."""
        turns = len(episode.turns)
        return cls(
            task_id="" if episode.task.get("task_id") is None else str(episode.task["task_id"]),
            task_type=str(episode.task.get("task_type") or "all"),
            seed=seed,
            success=episode.success,
            score=float(episode.info.get("score", episode.episode_return)),
            episode_return=float(episode.episode_return),
            turns=turns,
            valid_actions=1 - episode.invalid_actions / max(turns, 1),
            stop_reason=episode.stop_reason.value if episode.stop_reason else "",
            metrics=episode.metrics,
        )

    def to_dict(self) -> dict[str, Any]:
        """As a dictionary, for JSON; `episode_return` is called `return`."""
        data = asdict(self)
        data["return"] = data.pop("episode_return")
        return data


@dataclass(frozen=True)
class PanelResult:
    """
    Result on a panel of tasks, one episode a task.

    Args:
        success (`float`):
            Share of episodes that succeeded.
        score (`float`):
            Mean of the records' scores.
        ci_low (`float`):
            Lower end of the 95% interval of `success` (Wilson's, which treats tasks as independent draws).
        ci_high (`float`):
            Upper end.
        n (`int`):
            Number of tasks.
        by_task_type (`dict[str, float]`):
            Success within each task type.
        metrics (`dict[str, float]`, *optional*):
            Means of what the environment reported, each over the episodes that have it.
    """

    success: float
    score: float
    ci_low: float
    ci_high: float
    n: int
    by_task_type: dict[str, float]
    metrics: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As a dictionary, for JSON."""
        return asdict(self)


def summarize(records: Sequence[Record]) -> PanelResult:
    """
    Aggregate the episodes of a panel.

    Args:
        records (`list[Record]`):
            One per episode.

    Returns:
        [`PanelResult`]: the result.

    Raises:
        `ValueError`: if there are none.
    """
    if not records:
        raise ValueError("There are no records to summarize: the panel was empty.")
    successes = [record.success for record in records]
    interval = binomtest(sum(successes), len(successes)).proportion_ci(0.95, method="wilson")
    by_type: dict[str, list[bool]] = defaultdict(list)
    for record, success in zip(records, successes, strict=True):
        by_type[record.task_type].append(success)
    metrics: dict[str, list[float]] = defaultdict(list)
    for record in records:
        for name, value in record.metrics.items():
            metrics[name].append(value)
    return PanelResult(
        success=sum(successes) / len(successes),
        score=sum(record.score for record in records) / len(records),
        ci_low=float(interval.low),
        ci_high=float(interval.high),
        n=len(records),
        by_task_type={name: sum(values) / len(values) for name, values in sorted(by_type.items())},
        metrics={name: sum(values) / len(values) for name, values in sorted(metrics.items())},
    )


def results_table(results: Mapping[str, PanelResult]) -> str:
    """
    Results as a table to print.

    Args:
        results (`dict[str, PanelResult]`):
            A result for each row's name.

    Returns:
        `str`: the table.
    """
    width = max(len(name) for name in results)
    reported = sorted({name for result in results.values() for name in result.metrics} - {"score"})
    names = "".join(f"  {name:>10}" for name in reported)
    lines = [f"{'':{width}}  success  95% interval   mean score  tasks{names}"]
    for name, result in results.items():
        interval = f"{result.ci_low:6.1%} to {result.ci_high:.1%}"
        numbers = "".join(
            f"  {result.metrics[key]:>{max(len(key), 10)}.3f}"
            if key in result.metrics
            else " " * (max(len(key), 10) + 2)
            for key in reported
        )
        lines.append(
            f"{name:{width}}  {result.success:7.1%}  {interval:15}  {result.score:9.3f}  {result.n:5}{numbers}"
        )
    return "\n".join(lines)


def task_types_table(results: Mapping[str, PanelResult]) -> str:
    """
    Success within each task type as a table to print.

    Args:
        results (`dict[str, PanelResult]`):
            A result for each row's name.

    Returns:
        `str`: the table.
    """
    types = sorted({kind for result in results.values() for kind in result.by_task_type})
    width = max(len(name) for name in results)
    lines = ["".join([" " * width, *(f"  {kind:>8}" for kind in types)])]
    for name, result in results.items():
        cells = (f"{result.by_task_type[kind]:.1%}" if kind in result.by_task_type else "" for kind in types)
        lines.append(
            "".join([f"{name:{width}}", *(f"  {c:>{max(len(k), 8)}}" for k, c in zip(types, cells, strict=True))])
        )
    return "\n".join(lines)
