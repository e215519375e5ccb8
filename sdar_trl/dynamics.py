"""How a run went, step by step, from what it left in its folder: numbers by name, to plot or to write as a table."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


QUANTILES = {"gap/p05": 0.05, "gap/p25": 0.25, "gap/p50": 0.5, "gap/p75": 0.75, "gap/p95": 0.95}


@dataclass
class Evaluation:
    """
    What an evaluation found.

    Args:
        step (`int`):
            After which step.
        success (`float`):
            Share of episodes that succeeded.
        low (`float`, *optional*), high (`float`, *optional*):
            Its 95% interval, where there is one.
        around (`bool`, *optional*, defaults to `False`):
            Whether it was before or after training; those in between may be of other tasks.
    """

    step: int
    success: float
    low: float | None = None
    high: float | None = None
    around: bool = False


@dataclass
class Dynamics:
    """
    A run in numbers.

    Args:
        series (`dict[str, dict[int, float]]`):
            By metric, the value at each step that was logged. Besides what was logged: `time/update`, what rollout and
            teacher leave of `step_time`; and, at the steps whose episodes were saved, quantiles of the tokens' gaps
            (`gap/p05` to `gap/p95`) and their means in episodes that were won and not (`gap/won`, `gap/not_won`), the
            latter at every step where they were logged.
        evaluations (`list[Evaluation]`, *optional*):
            In the order of their steps.
    """

    series: dict[str, dict[int, float]]
    evaluations: list[Evaluation] = field(default_factory=list)

    @classmethod
    def of_history(cls, log_history: Iterable[Mapping[str, Any]]) -> "Dynamics":
        """
        From what was logged.

        Args:
            log_history (`list[dict]`):
                `trainer.state.log_history`.

        Returns:
            [`Dynamics`]: the run.
        """
        series: dict[str, dict[int, float]] = {}
        evaluations: dict[int, Evaluation] = {}
        for entry in log_history:
            step = int(entry.get("step", 0))
            if "loss" in entry:
                for name, value in entry.items():
                    if isinstance(value, int | float) and name not in ("step", "epoch"):
                        series.setdefault(name, {})[step] = value
            for name in ("eval_env/success", "panel/success"):
                if entry.get(name) is not None:
                    evaluations[step] = Evaluation(step, entry[name])
        for name, logged in (("gap/won", "sdar/gap_won"), ("gap/not_won", "sdar/gap_lost")):
            if logged in series:
                series[name] = dict(series[logged])
        known = [series.get(name, {}) for name in ("time/rollout", "time/teacher")]
        if known[0]:
            series["time/update"] = {
                step: max(seconds - sum(times.get(step, 0.0) for times in known), 0.0)
                for step, seconds in series.get("step_time", {}).items()
            }
        return cls(series, [evaluations[step] for step in sorted(evaluations)])

    @classmethod
    def of_run(cls, folder: str | Path) -> "Dynamics":
        """
        From a run's folder: `metrics.jsonl`, or the `trainer_state.json` of its last checkpoint; the evaluations
        before and after in `metrics.json`, as the examples write it; and the episodes that were saved.

        Args:
            folder (`str` or `Path`):
                Its `output_dir`.

        Returns:
            [`Dynamics`]: the run.

        Raises:
            `ValueError`: if nothing was logged there.
        """
        folder = Path(folder)
        run = cls.of_history(_history(folder))
        run.evaluations = _with_panels(run, folder / "metrics.json")
        for path in sorted(folder.glob("episodes/step_*.jsonl")):
            step, gaps = int(path.stem.removeprefix("step_")), _gaps(path)
            for name, part in (("gap/won", gaps[True]), ("gap/not_won", gaps[False])):
                if part and step not in run.series.get(name, {}):
                    run.series.setdefault(name, {})[step] = float(np.mean(part))
            if gaps[True] + gaps[False]:
                found = np.quantile(gaps[True] + gaps[False], list(QUANTILES.values()))
                for name, value in zip(QUANTILES, found, strict=True):
                    run.series.setdefault(name, {})[step] = float(value)
        return run


def is_run(folder: Path) -> bool:
    """Whether something was logged there."""
    return (folder / "metrics.jsonl").exists() or _states(folder) != []


def _states(folder: Path) -> list[Path]:
    """The states in a folder and its checkpoints, the last one last."""
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: (len(path.name), path.name))
    return [path for at in (*checkpoints, folder) if (path := at / "trainer_state.json").exists()]


def _history(folder: Path) -> list[dict[str, Any]]:
    if (path := folder / "metrics.jsonl").exists():
        *lines, last = path.read_text().split("\n")
        if last.endswith("}"):  # else empty, or cut short where a run was killed
            lines.append(last)
        return [json.loads(line) for line in lines if line]
    if states := _states(folder):
        return json.loads(states[-1].read_text())["log_history"]
    raise ValueError(f"Nothing was logged in {folder}: it has neither metrics.jsonl nor a checkpoint.")


def _with_panels(run: Dynamics, path: Path) -> list[Evaluation]:
    """The evaluations of a run, with those before and after it that a file of results names."""
    results = json.loads(path.read_text()) if path.exists() else {}
    around = []
    last = max((step for values in run.series.values() for step in values), default=0)
    for name, step in (("before", 0), ("after", last)):
        if isinstance(found := results.get(name), dict) and "success" in found:
            around.append(Evaluation(step, found["success"], found.get("ci_low"), found.get("ci_high"), around=True))
    return sorted([*around, *run.evaluations], key=lambda evaluation: evaluation.step)


def _gaps(path: Path) -> dict[bool, list[float]]:
    """The gaps of all tokens in a file of episodes, by whether the episode was won."""
    gaps: dict[bool, list[float]] = {True: [], False: []}
    with path.open() as file:
        for episode in map(json.loads, file):
            for turn in episode["turns"]:
                gaps[bool(episode.get("success"))] += [gap for gap in turn.get("gaps") or [] if gap is not None]
    return gaps


def write_csv(runs: Mapping[str, Sequence[Dynamics]], path: str | Path) -> None:
    """
    Write runs as a table: a row for each run and step, a column for each number.

    Args:
        runs (`dict[str, list[Dynamics]]`):
            Under a name one run, or several that differ by their seed.
        path (`str` or `Path`):
            The file.
    """
    rows: list[dict[str, Any]] = []
    for name, alike in runs.items():
        for number, run in enumerate(alike, start=1):
            steps: dict[int, dict[str, Any]] = {}
            for metric, values in run.series.items():
                for step, value in values.items():
                    steps.setdefault(step, {})[metric] = value
            for found in run.evaluations:
                kind = "before_after" if found.around else "evaluation"
                told = {"success": found.success, "ci_low": found.low, "ci_high": found.high}
                steps.setdefault(found.step, {}).update({f"{kind}/{name}": value for name, value in told.items()})
            rows += [{"run": name, "number": number, "step": step, **steps[step]} for step in sorted(steps)]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with Path(path).open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
