"""Runs against each other: paired by task and by the seed of their training."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import permutation_test, trim_mean

from ..envs.border import plain
from ..runs import RUN_FILE, read_run
from .curves import read_curve
from .files import read_records
from .intervals import Estimate, over_runs_and_tasks
from .records import MEASURES, Record


FINAL = ("panel_after.jsonl", "panel_before.jsonl")
"""Where a run's folder has its last panel; a run that trained nothing has the second alone."""

PERMUTATIONS = 9999


@dataclass(frozen=True)
class Run:
    """
    A run that was evaluated.

    Args:
        path (`Path`):
            Its folder, or a file of records.
        seed (`int`):
            Seed of its training.
        about (`dict[str, Any]`):
            What its records are of.
        records (`list[Record]`):
            Those of its last panel.
        run (`dict[str, Any]`, *optional*):
            What its `run.json` says.
        curve (`dict[int, tuple]`, *optional*):
            By step, as [`read_curve`] has it.
    """

    path: Path
    seed: int
    about: dict[str, Any]
    records: list[Record]
    run: dict[str, Any] = field(default_factory=dict)
    curve: dict[int, tuple[dict[str, Any], list[Record]]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | Path) -> "Run":
        """
        Read a run.

        Args:
            path (`str` or `Path`):
                A run's folder, or a file of records.

        Returns:
            [`Run`]: the run.

        Raises:
            `ValueError`: if there are no records.
        """
        path = Path(path)
        if path.is_file():
            return cls(path, 0, *read_records(path))
        found = next((path / name for name in FINAL if (path / name).exists()), None)
        if found is None:
            raise ValueError(f"There is no {' or '.join(FINAL)} in {path}: was its panel played?")
        run = read_run(path)
        seed = run.get("seeds", {}).get("seed", 0)
        return cls(path, seed, *read_records(found), run, read_curve(path))


@dataclass(frozen=True)
class Arm:
    """
    What is compared: the runs of one method, which differ in their seed alone.

    Args:
        name (`str`):
            Its name.
        runs (`list[Run]`):
            The runs, by their seeds.

    Raises:
        `ValueError`: if two runs have the same seed.
    """

    name: str
    runs: list[Run]

    def __post_init__(self) -> None:
        seeds = [run.seed for run in self.runs]
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"Runs of {self.name!r} need seeds of their own, got {seeds}.")

    @classmethod
    def read(cls, argument: str) -> "Arm":
        """
        Read an arm.

        Args:
            argument (`str`):
                A run's folder, a folder of such folders, or a file of records; perhaps `name=` before it. By itself it
                is called as its method where `run.json` says one, else as its folder.

        Returns:
            [`Arm`]: the arm.

        Raises:
            `ValueError`: if there are no runs.
        """
        name, _, given = argument.rpartition("=")
        path = Path(given)
        if not path.exists():
            raise ValueError(f"{path} does not exist.")
        if path.is_file() or any((path / file).exists() for file in (RUN_FILE, *FINAL)):
            paths = [path]
        else:
            paths = sorted({found.parent for file in FINAL for found in path.glob(f"*/{file}")})
        if not paths:
            raise ValueError(f"{path} is neither a run nor a folder of runs.")
        runs = sorted((Run.read(one) for one in paths), key=lambda run: run.seed)
        methods = {run.run.get("method") for run in runs}
        method = methods.pop() if len(methods) == 1 else None
        return cls(name or method or path.stem, runs)


@dataclass(frozen=True)
class Difference:
    """
    One arm less another, at the same tasks and seeds.

    Args:
        difference (`float`):
            Mean over tasks and runs.
        ci_low (`float`), ci_high (`float`):
            Its 95% interval: [`over_runs_and_tasks`].
        seeds (`int`):
            Runs of each. With one, interval and test say nothing of other seeds.
        p_tasks (`float`):
            Of the permutation test in which each task's two results may be swapped: these runs, other tasks.
        p_runs (`float`, *optional*):
            Of the one in which runs may change sides: other seeds, this panel. Five runs on each side can give no less
            than 0.008, three no less than 0.1; a single one gives none.
    """

    difference: float
    ci_low: float
    ci_high: float
    seeds: int
    p_tasks: float
    p_runs: float | None

    def to_dict(self) -> dict[str, Any]:
        """As a dictionary, for JSON."""
        return plain(asdict(self))


def values(runs: Sequence[Sequence[Record]], measure: str) -> np.ndarray:
    """A measure of runs by tasks, the tasks in the order of their ids, of each the mean over its tries."""
    table = []
    for records in runs:
        tasks: dict[str, list[float]] = {}
        for record in records:
            tasks.setdefault(record.task_id, []).append(MEASURES[measure](record))
        table.append([np.mean(tasks[name]) for name in sorted(tasks)])
    return np.array(table)


def check_panels(arms: Sequence[Arm]) -> list[str]:
    """
    Refuse what cannot be compared.

    Args:
        arms (`list[Arm]`):
            What is to be compared.

    Returns:
        `list[str]`: in what else the evaluations differ, to be told.

    Raises:
        `ValueError`: if panels, tries or seeds of the sampling differ, or a panel was not played to its end.
    """
    runs = [run for arm in arms for run in arm.runs]
    first = runs[0]
    for run in runs:
        for name in ("panel", "tries", "seed"):
            if run.about.get(name) != first.about.get(name):
                raise ValueError(
                    f"{run.path} and {first.path} were evaluated otherwise, so they cannot be paired: {name} is "
                    f"{run.about.get(name)} and {first.about.get(name)}."
                )
        _check_whole(run.path, run.about, run.records)
        for step, (about, records) in run.curve.items():
            _check_whole(f"step {step} of {run.path}", about, records)
        if {(r.task_id, r.attempt) for r in run.records} != {(r.task_id, r.attempt) for r in first.records}:
            raise ValueError(f"{run.path} and {first.path} hold other tasks.")
    of_policy = {"policy", "weights", "method", "step"}
    names = sorted({name for run in runs for name in run.about} - of_policy)
    return [name for name in names if any(run.about.get(name) != first.about.get(name) for run in runs)]


def _check_whole(where: Any, about: dict[str, Any], records: Sequence[Record]) -> None:
    tasks = (about.get("panel") or {}).get("tasks")
    wanted = None if tasks is None else tasks * about.get("tries", 1)
    if wanted is not None and len(records) < wanted:
        raise ValueError(f"{where} has {len(records)} of {wanted} episodes: its panel was not played to its end.")


def subtract(left: Arm, right: Arm, measure: str = "success") -> Difference:
    """
    One arm less another.

    Args:
        left ([`Arm`]), right ([`Arm`]):
            The arms. Runs of the same seed are paired, those without a partner left out; single ones are paired
            whatever their seeds.
        measure (`str`, *optional*, defaults to `"success"`):
            One of `MEASURES`.

    Returns:
        [`Difference`]: the difference.

    Raises:
        `ValueError`: if they have no seed in common.
    """
    ours, theirs = ({run.seed: run.records for run in arm.runs} for arm in (left, right))
    seeds = sorted(set(ours) & set(theirs))
    if len(ours) == len(theirs) == 1:
        pairs = (list(ours.values()), list(theirs.values()))
    elif seeds:
        pairs = ([ours[seed] for seed in seeds], [theirs[seed] for seed in seeds])
    else:
        raise ValueError(f"{left.name!r} and {right.name!r} have no seed in common: {sorted(ours)}, {sorted(theirs)}.")
    a, b = (values(runs, measure) for runs in pairs)
    found = over_runs_and_tasks(a - b)
    return Difference(
        *(found.mean, found.ci_low, found.ci_high, len(a)),
        p_tasks=permutation_p(a.mean(0), b.mean(0), "samples"),
        p_runs=permutation_p(a.mean(1), b.mean(1), "independent") if len(a) > 1 else None,
    )


def permutation_p(a: np.ndarray, b: np.ndarray, kind: str) -> float:
    """Two-sided p of SciPy's permutation test of a difference in means: all permutations where they are few."""
    found = permutation_test(
        (a, b),
        lambda x, y, axis: np.mean(x, axis=axis) - np.mean(y, axis=axis),
        permutation_type=kind,
        vectorized=True,
        n_resamples=PERMUTATIONS,
        rng=np.random.default_rng(0),
    )
    return float(found.pvalue)


def over_runs(arm: Arm, measure: str = "success") -> tuple[Estimate, float]:
    """
    An arm by itself.

    Args:
        arm ([`Arm`]):
            The arm.
        measure (`str`, *optional*, defaults to `"success"`):
            One of `MEASURES`.

    Returns:
        `tuple`: the mean over runs and tasks with its interval, and the interquartile mean over the runs (SciPy's
        `trim_mean`, a quarter cut at each end), which one odd run does not move; of fewer than four runs it is the
        mean.
    """
    table = values([run.records for run in arm.runs], measure)
    return over_runs_and_tasks(table), float(trim_mean(table.mean(1), 0.25))


def curve_of(arm: Arm, measure: str = "success") -> dict[int, Estimate]:
    """
    An arm's curve.

    Args:
        arm ([`Arm`]):
            The arm.
        measure (`str`, *optional*, defaults to `"success"`):
            One of `MEASURES`.

    Returns:
        `dict[int, Estimate]`: by step, at the steps that all its runs have.

    Raises:
        `ValueError`: if its runs' curves are of different panels.
    """
    panels = [about.get("panel") for run in arm.runs for about, _ in run.curve.values()]
    if any(panel != panels[0] for panel in panels):
        raise ValueError(f"The curves of {arm.name!r} are of different panels.")
    steps = set.intersection(*(set(run.curve) for run in arm.runs))
    return {
        step: over_runs_and_tasks(values([run.curve[step][1] for run in arm.runs], measure)) for step in sorted(steps)
    }
