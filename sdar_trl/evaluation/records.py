"""What came of a panel, episode by episode, and the tables made of it."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from hashlib import sha256
from typing import Any

from ..envs.base import parse_tag
from ..envs.border import plain
from ..episodes import Episode
from .intervals import Estimate, over_tasks, pass_at


MEASURES: dict[str, Callable[["Record"], float]] = {
    "success": lambda record: float(record.success),
    "score": lambda record: record.score,
    "return": lambda record: record.episode_return,
    "turns": lambda record: float(record.turns),
    "valid_actions": lambda record: record.valid_actions,
}
"""What is told of every panel."""

SHARES = ("success",)
"""Measures that are 0 or 1 in an episode; their means lie in [0, 1]."""


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
        attempt (`int`, *optional*, defaults to `0`):
            Which of the tries of its task, from 0.
        actions (`str`, *optional*, defaults to `""`):
            Hash of the sequence of actions: episodes that acted alike have the same.
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
    attempt: int = 0
    actions: str = ""

    @classmethod
    def of(cls, episode: Episode, seed: int, attempt: int = 0) -> "Record":
        """The record of a finished episode."""
        turns = len(episode.turns)
        task_id, task_type = (plain(episode.task.get(name)) for name in ("task_id", "task_type"))
        return cls(
            task_id="" if task_id is None else str(task_id),
            task_type=str(task_type or "all"),
            seed=seed,
            success=episode.success,
            score=float(episode.info.get("score", episode.episode_return)),
            episode_return=float(episode.episode_return),
            turns=turns,
            valid_actions=1 - episode.invalid_actions / max(turns, 1),
            stop_reason=episode.stop_reason.value if episode.stop_reason else "",
            metrics=episode.metrics,
            attempt=attempt,
            actions=sha256("\n".join(_action(turn.response) for turn in episode.turns).encode()).hexdigest()[:16],
        )

    def to_dict(self) -> dict[str, Any]:
        """As a dictionary, for JSON; `episode_return` is called `return`."""
        data = asdict(self)
        data["return"] = data.pop("episode_return")
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Record":
        """The record that `to_dict` made; names that this version does not know are passed over."""
        known = {name.name for name in fields(cls)}
        try:
            return cls(**{name: data[name] for name in data if name in known}, episode_return=data["return"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"This is no record: {error}.") from None


def _action(response: str) -> str:
    """What of a response the environments of this package act on, else all of it, without regard to white space."""
    found = {tag: parse_tag(response, tag) for tag in ("action", "search", "answer")}
    return " ".join((repr(found) if any(found.values()) else response).split())


@dataclass(frozen=True)
class PanelResult:
    """
    Result on a panel of tasks. Every task weighs as every other, whatever the number of its tries.

    Args:
        n (`int`):
            Number of tasks.
        tries (`int`):
            Most tries of a task.
        estimates (`dict[str, Estimate]`):
            Means with their 95% intervals (see [`over_tasks`]), by name: `success`, `score`, `return`, `turns`,
            `valid_actions`, then what the environment reported, each over the episodes that have it.
        task_types (`dict[str, PanelResult]`, *optional*):
            The same within each task type.
        pass_at (`dict[int, Estimate]`, *optional*):
            By k: the share of tasks of which at least one of k tries succeeds, estimated without bias from all tries
            (Chen et al., 2021).
        distinct_actions (`float`, *optional*, defaults to `1.0`):
            Mean over tasks of how many different sequences of actions their tries are.
    """

    n: int
    tries: int
    estimates: dict[str, Estimate]
    task_types: dict[str, "PanelResult"] = field(default_factory=dict)
    pass_at: dict[int, Estimate] = field(default_factory=dict)
    distinct_actions: float = 1.0

    @property
    def success(self) -> float:
        """Share of episodes that succeeded."""
        return self.estimates["success"].mean

    @property
    def score(self) -> float:
        """Mean of the records' scores."""
        return self.estimates["score"].mean

    @property
    def ci_low(self) -> float:
        """Lower end of the interval of `success`."""
        return self.estimates["success"].ci_low

    @property
    def ci_high(self) -> float:
        """Upper end."""
        return self.estimates["success"].ci_high

    @property
    def by_task_type(self) -> dict[str, float]:
        """Success within each task type."""
        return {name: result.success for name, result in self.task_types.items()}

    @property
    def metrics(self) -> dict[str, float]:
        """Means of what the environment reported."""
        return {name: estimate.mean for name, estimate in self.estimates.items() if name not in MEASURES}

    def to_dict(self) -> dict[str, Any]:
        """As a dictionary, for JSON."""
        return {
            **{name: getattr(self, name) for name in ("success", "score", "ci_low", "ci_high", "n", "tries")},
            **{name: getattr(self, name) for name in ("by_task_type", "metrics", "distinct_actions")},
            "pass_at": {str(k): estimate.to_dict() for k, estimate in self.pass_at.items()},
            "estimates": {name: estimate.to_dict() for name, estimate in self.estimates.items()},
            "task_types": {
                name: {key: estimate.to_dict() for key, estimate in result.estimates.items()}
                for name, result in self.task_types.items()
            },
        }


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
    types: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        types[record.task_type].append(record)
    return _result(records, {name: _result(types[name], {}) for name in sorted(types)})


def by_task(records: Sequence[Record]) -> list[list[Record]]:
    """The tries of each task; a record without an id is a task of its own."""
    tasks: dict[Any, list[Record]] = defaultdict(list)
    for place, record in enumerate(records):
        tasks[record.task_id or place].append(record)
    return list(tasks.values())


def _result(records: Sequence[Record], task_types: dict[str, PanelResult]) -> PanelResult:
    tasks = by_task(records)
    estimates = {
        name: over_tasks([[of(record) for record in tries] for tries in tasks], name in SHARES)
        for name, of in MEASURES.items()
    }
    for name in sorted({name for record in records for name in record.metrics} - {"score"}):
        reported = [[record.metrics[name] for record in tries if name in record.metrics] for tries in tasks]
        estimates[f"metrics/{name}" if name in MEASURES else name] = over_tasks([one for one in reported if one])
    fewest, most = min(map(len, tasks)), max(map(len, tasks))
    wins = [sum(record.success for record in tries) for tries in tasks]
    powers = [1 << power for power in range(1, fewest.bit_length())] if fewest > 1 else []
    return PanelResult(
        n=len(tasks),
        tries=most,
        estimates=estimates,
        task_types=task_types,
        pass_at={
            k: over_tasks([[pass_at(k, len(tries), won)] for tries, won in zip(tasks, wins, strict=True)])
            for k in sorted({*powers, fewest} - {1})
        },
        distinct_actions=sum(len({record.actions for record in tries}) for tries in tasks) / len(tasks),
    )


def results_table(results: Mapping[str, PanelResult]) -> str:
    """
    Results as a table to print.

    Args:
        results (`dict[str, PanelResult]`):
            A result for each row's name.

    Returns:
        `str`: the table. With several tries, also pass@k, and how many sequences of actions a task's tries are.
    """
    width = max(len(name) for name in results)
    columns: dict[str, dict[str, str]] = defaultdict(dict)  # by column and row
    for row, result in results.items():
        for k, estimate in result.pass_at.items():
            columns[f"pass@{k}"][row] = f"{estimate.mean:.1%}"
        if result.tries > 1:
            columns["distinct"][row] = f"{result.distinct_actions:.2f} of {result.tries}"
    for name in sorted({name for result in results.values() for name in result.metrics}):
        columns[name] = {
            row: f"{result.metrics[name]:.3f}" for row, result in results.items() if name in result.metrics
        }
    lines = [f"{'':{width}}  success  95% interval   mean score  tasks" + "".join(f"  {name:>10}" for name in columns)]
    for row, result in results.items():
        interval = f"{result.ci_low:6.1%} to {result.ci_high:.1%}"
        cells = "".join(f"  {column.get(row, ''):>{max(len(name), 10)}}" for name, column in columns.items())
        lines.append(
            f"{row:{width}}  {result.success:7.1%}  {interval:15}  {result.score:9.3f}  {result.n:5}{cells}".rstrip()
        )
    return "\n".join(lines)


def task_type_table(results: Mapping[str, PanelResult]) -> str:
    """
    Success within each task type as a table to print.

    Args:
        results (`dict[str, PanelResult]`):
            A result for each column's name.

    Returns:
        `str`: the table.
    """
    types = sorted({name for result in results.values() for name in result.by_task_type})
    width = max(len(name) for name in ("task type", *types))
    lines = [f"{'task type':{width}}" + "".join(f"  {name:>8}" for name in results)]
    for name in types:
        cells = [result.by_task_type.get(name) for result in results.values()]
        lines.append(f"{name:{width}}" + "".join(f"  {'' if cell is None else f'{cell:.1%}':>8}" for cell in cells))
    return "\n".join(lines)


def measures_table(result: PanelResult) -> str:
    """
    Every measure of a panel with its 95% interval, of all tasks and within each task type, as a table to print.

    Args:
        result ([`PanelResult`]):
            The result.

    Returns:
        `str`: the table.
    """
    rows = {"all": result, **{name: of_type for name, of_type in result.task_types.items() if name != "all"}}
    names = list(result.estimates)
    table = [["task type", "tasks", *names]]
    for row, of in rows.items():
        shown = [of.estimates.get(name) for name in names]
        table.append([row, str(of.n), *("" if one is None else _shown(one) for one in shown)])
    return "\n".join(aligned(table))


def aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table: its first column to the left, the others to the right."""
    first, *others = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        f"{line[0]:{first}}" + "".join(f"  {cell:>{width}}" for cell, width in zip(line[1:], others, strict=True))
        for line in table
    ]


def _shown(estimate: Estimate) -> str:
    return f"{estimate.mean:.3f} ({estimate.ci_low:.3f} to {estimate.ci_high:.3f})"
