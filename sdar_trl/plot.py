"""
Training dynamics as a picture, and as a table.

    python -m sdar_trl.plot outputs/demo
    python -m sdar_trl.plot sdar=runs/sdar grpo=runs/grpo --output dynamics.png

A run is its output folder; a folder of such folders is one method's several seeds.
"""

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .dynamics import Dynamics, Evaluation, is_run, write_csv


if TYPE_CHECKING:
    from matplotlib.axes import Axes


LINES = {
    "Reward": "reward",
    "Success": "env/success",
    "Turns of an episode": "env/turns",
    "Valid actions, share": "env/valid_actions",
    "Gate, mean": "sdar/gate_mean",
    "Share of tokens with gate above 1/2": "sdar/gate_above_half",
    "KL to the reference model (nats)": "kl",
    "Entropy (nats)": "entropy",
    "Gradient norm": "grad_norm",
}
GAPS = "Teacher-student gap (nats)"
WON = "Gap in won (solid) and other (dotted) episodes"
TIMES = "Seconds of a step"
PANELS = [*list(LINES)[:6], GAPS, WON, *list(LINES)[6:], TIMES]
PHASES = {"time/rollout": "rollout", "time/teacher": "teacher", "time/update": "update"}

LEAST_RANGE = {"Success": (0, 1), "Valid actions, share": (0, 1), "Gate, mean": (0.4, 0.6)}
LEAST_RANGE["Share of tokens with gate above 1/2"] = (0.25, 0.75)
"""What an axis shows at least, so that noise does not look like a change."""


def moving_average(values: Sequence[float], window: int) -> list[float]:
    """
    The mean of each value and its neighbours.

    Args:
        values (`list[float]`):
            The values.
        window (`int`):
            How many values, an odd number; at the ends there are fewer.

    Returns:
        `list[float]`: as many as there are values.
    """
    half = window // 2
    return [float(np.mean(values[max(index - half, 0) : index + half + 1])) for index in range(len(values))]


def window_of(points: int) -> int:
    """How many points a moving average of so many is over: a tenth, an odd number."""
    return points // 20 * 2 + 1


def smoothed(runs: Sequence[Dynamics], metric: str) -> tuple[list[int], np.ndarray]:
    """A metric at the steps that all runs have, and its moving averages, shape (runs, steps)."""
    found = [values for run in runs if (values := run.series.get(metric))]
    steps = sorted(set.intersection(*map(set, found))) if found else []
    lines = [moving_average([values[step] for step in steps], window_of(len(steps))) for values in found]
    return steps, np.array(lines)


def plot_training(run: Sequence[Mapping[str, Any]] | str | Path, path: str | Path) -> None:
    """
    Plot a run: reward, success, turns, gate, gap, KL, entropy, times. A metric that was not logged says so.

    Args:
        run (`list[dict]`, `str` or `Path`):
            `trainer.state.log_history`; or the run's folder, which also knows of evaluations and saved episodes.
        path (`str` or `Path`):
            The picture to write, e.g. `"training.png"`.

    Raises:
        `ImportError`: if matplotlib is not installed.
    """
    dynamics = Dynamics.of_run(run) if isinstance(run, str | Path) else Dynamics.of_history(run)
    plot_runs({"": [dynamics]}, path)


def plot_runs(runs: Mapping[str, Sequence[Dynamics]], path: str | Path) -> None:
    """
    Plot runs over each other.

    Args:
        runs (`dict[str, list[Dynamics]]`):
            Under a name one run, or several that differ by their seed, drawn as their mean with a band.
        path (`str` or `Path`):
            The picture to write.

    Raises:
        `ImportError`: if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise ImportError('Plots need matplotlib: `pip install "sdar-trl[plot]"`.') from error

    figure = Figure(figsize=(16, 10), layout="constrained")
    for axes, title in zip(figure.subplots(3, 4).flat, PANELS, strict=True):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        for number, (name, alike) in enumerate(runs.items()):
            _draw(axes, title, alike, f"C{number}", name, only=len(runs) == 1)
        if not axes.has_data():
            missing = "no episodes were saved" if title == WON else "not logged"
            axes.text(0.5, 0.5, missing, ha="center", va="center", transform=axes.transAxes)
            continue
        if title in LEAST_RANGE:
            (low, high), (bottom, top) = LEAST_RANGE[title], axes.get_ylim()
            axes.set_ylim(min(low, bottom), max(high, top))
        if title.endswith("gate above 1/2") or title == "Gate, mean":
            axes.axhline(0.5, color="gray", linewidth=0.8, linestyle="--")
        if title in (GAPS, WON):
            axes.axhline(0, color="gray", linewidth=0.8, linestyle="--")
    if any(runs):
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    figure.supxlabel(_caption(runs), fontsize=9, color="dimgray")
    figure.savefig(path, dpi=100)


def _caption(runs: Mapping[str, Sequence[Dynamics]]) -> str:
    steps = max((len(run.series.get("reward", {})) for alike in runs.values() for run in alike), default=0)
    window, parts = window_of(steps), []
    if window > 1:
        parts.append(f"Thick: moving average over {window} logged steps; thin: each.")
    several = any(len(alike) > 1 for alike in runs.values())
    if several:
        parts.append("Bands: from the lowest to the highest seed.")
    if any(run.evaluations for alike in runs.values() for run in alike):
        bars = "range of the seeds" if several else "95% interval where known"
        parts.append(f"Points: evaluations while training; diamonds: before and after; bars: {bars}.")
    if [len(alike) for alike in runs.values()] == [1] and "gap/p50" in next(iter(runs.values()))[0].series:
        parts.append("Gap: mean; shaded, 50% and 90% of the tokens of saved episodes.")
    return " ".join(parts)


def _draw(axes: "Axes", title: str, runs: Sequence[Dynamics], colour: str, name: str, only: bool) -> None:
    """Draw runs that differ by their seed into one panel."""
    if title in LINES:
        _line(axes, runs, LINES[title], colour, label=name or None)
        if title == "Success":
            _evaluations(axes, runs, colour)
    elif title == GAPS:
        _line(axes, runs, "sdar/gap_mean", colour)
        if only and len(runs) == 1:
            _gap_spread(axes, runs[0], colour)
    elif title == WON:
        for metric, style in (("gap/won", "-"), ("gap/not_won", ":")):
            _line(axes, runs, metric, colour, style=style, marker=".")
    elif only and len(runs) == 1 and "time/update" in runs[0].series:
        series = [runs[0].series.get(metric, {}) for metric in PHASES]
        steps = sorted(series[-1])
        axes.stackplot(
            steps, [[values.get(step, 0.0) for step in steps] for values in series], labels=list(PHASES.values())
        )
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=8, loc="lower left")
    else:
        _line(axes, runs, "step_time", colour)


def _line(axes: "Axes", runs: Sequence[Dynamics], metric: str, colour: str, style: str = "-", **options: Any) -> None:
    steps, lines = smoothed(runs, metric)
    if not steps:
        return
    if len(lines) > 1:
        axes.fill_between(steps, lines.min(0), lines.max(0), color=colour, alpha=0.2, linewidth=0)
    elif window_of(len(steps)) > 1:
        [values] = [run.series[metric] for run in runs if run.series.get(metric)]
        axes.plot(steps, [values[step] for step in steps], color=colour, alpha=0.35, linewidth=0.8)
    axes.plot(steps, lines.mean(0), style, color=colour, linewidth=1.8, **options)


def _evaluations(axes: "Axes", runs: Sequence[Dynamics], colour: str) -> None:
    """One run's with their intervals; of several the mean, from the lowest to the highest."""
    alike: dict[tuple[int, bool], list[Evaluation]] = {}
    for found in (found for run in runs for found in run.evaluations):
        alike.setdefault((found.step, found.around), []).append(found)
    for (step, around), evaluations in alike.items():
        values = [found.success for found in evaluations]
        [low, high] = [min(values), max(values)] if len(runs) > 1 else [evaluations[0].low, evaluations[0].high]
        marker = "D" if around else "o"
        axes.plot(step, np.mean(values), marker, color=colour, markeredgecolor="black", zorder=3)
        if low is not None and high is not None:
            axes.vlines(step, low, high, color="black", linewidth=1.2)


def _gap_spread(axes: "Axes", run: Dynamics, colour: str) -> None:
    """How the gaps of a run's tokens are spread: quantiles where episodes were saved, else the standard deviation."""
    if "gap/p50" in run.series:
        for low, high in (("gap/p05", "gap/p95"), ("gap/p25", "gap/p75")):
            steps = sorted(run.series[low])
            bottom, top = ([run.series[end][step] for step in steps] for end in (low, high))
            axes.fill_between(steps, bottom, top, color=colour, alpha=0.2, linewidth=0)
    elif "sdar/gap_std" in run.series:
        means, stds = run.series["sdar/gap_mean"], run.series["sdar/gap_std"]
        steps = sorted(set(means) & set(stds))
        bottom, top = ([means[step] + sign * stds[step] for step in steps] for sign in (-1, 1))
        axes.fill_between(steps, bottom, top, color=colour, alpha=0.15, linewidth=0)


def read_runs(arguments: Iterable[str]) -> dict[str, list[Dynamics]]:
    """
    Runs by name, from a command line.

    Args:
        arguments (`list[str]`):
            Each `PATH` or `NAME=PATH`: a run's folder, or a folder of such folders.

    Returns:
        `dict[str, list[Dynamics]]`: the runs.

    Raises:
        `ValueError`: if there is no run, or two have one name.
    """
    runs: dict[str, list[Dynamics]] = {}
    for argument in arguments:
        name, sign, path = argument.partition("=")
        if not sign or Path(argument).exists():
            name, path = "", argument
        folder = Path(path)
        name = name or folder.resolve().name
        if name in runs:
            raise ValueError(f"Two runs have the name {name!r}. Write NAME=PATH.")
        inside = sorted(at for at in folder.glob("*") if at.is_dir() and not is_run(folder) and is_run(at))
        runs[name] = [Dynamics.of_run(at) for at in inside or [folder]]
    return runs


def main(arguments: list[str] | None = None) -> None:
    """
    The command.

    Args:
        arguments (`list[str]`, *optional*):
            The command line. If `None`, this process's.
    """
    parser = argparse.ArgumentParser(
        prog="python -m sdar_trl.plot", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="[NAME=]RUN", help="A run, or a folder of runs.")
    parser.add_argument(
        "--output",
        type=Path,
        help="The picture, with a CSV beside it (default: training.png, in the folder of the run if it is one).",
    )
    given = parser.parse_args(arguments)
    try:
        runs = read_runs(given.runs)
        place = Path(given.runs[0]) if len(given.runs) == 1 else Path()
        output = given.output or (place if place.is_dir() else Path()) / "training.png"
        plot_runs(runs, output)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    write_csv(runs, output.with_suffix(".csv"))
    print(f"{output} and {output.with_suffix('.csv')}")


if __name__ == "__main__":
    main()
