"""
Compare runs on the panel that they all played.

Two runs, or a method's several seeds against another's (a folder of run folders is one method):

    python -m sdar_trl.compare outputs/sdar outputs/grpo
    python -m sdar_trl.compare sdar=runs/sdar grpo=runs/grpo opsd=runs/opsd --plot curves.png --json comparison.json

Files of records that examples/evaluate.py wrote:

    python -m sdar_trl.compare with=records/with_skills.jsonl without=records/without_skills.jsonl --measure score

The first is compared with each of the others. What the columns mean: docs/evaluation.md.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .evaluation.comparison import Arm, check_panels, curve_of, over_runs, subtract
from .evaluation.curves import marked_steps
from .evaluation.records import MEASURES, aligned


def compare(arms: Sequence[Arm], measure: str = "success") -> dict[str, Any]:
    """
    Compare the first of several arms with each of the others.

    Args:
        arms (`list[Arm]`):
            Two or more, of different names.
        measure (`str`, *optional*, defaults to `"success"`):
            One of `MEASURES`.

    Returns:
        `dict`: `panel`, `measure`, `differs` (in what else the evaluations differ), `arms` by name, and `comparisons`,
        by `<first>_minus_<other>`, each a [`Difference`]; for JSON.

    Raises:
        `ValueError`: if they cannot be compared.
    """
    names = [arm.name for arm in arms]
    if len(set(names)) < len(names):
        raise ValueError(f"What is compared needs names of its own, got {names}. Write NAME=PATH.")
    differs = check_panels(arms)
    told: dict[str, Any] = {}
    for arm in arms:
        estimate, middle = over_runs(arm, measure)
        curve = curve_of(arm, measure)
        # of means over runs; the best step is chosen by the panel that it is told of
        steps = marked_steps({step: one.mean for step, one in curve.items()}) if curve else {}
        told[arm.name] = {
            **estimate.to_dict(),
            "interquartile_mean": middle,
            "seeds": [run.seed for run in arm.runs],
            "runs": [str(run.path) for run in arm.runs],
            "commits": sorted({str(run.run["commit"]) for run in arm.runs if run.run.get("commit")}),
            **{name: {"step": step, **curve[step].to_dict()} for name, step in steps.items()},
        }
    first, *others = arms
    return {
        "panel": first.runs[0].about.get("panel"),
        "measure": measure,
        "differs": differs,
        "arms": told,
        "comparisons": {
            f"{first.name}_minus_{other.name}": subtract(first, other, measure).to_dict() for other in others
        },
    }


def comparison_table(result: dict[str, Any]) -> str:
    """
    A comparison as tables to print.

    Args:
        result (`dict`):
            What [`compare`] returned.

    Returns:
        `str`: one table of the arms, one of the differences.
    """
    panel = result["panel"] or {}
    head = f"{result['measure']} on {panel.get('name') or 'a panel'}, {panel.get('tasks', '?')} tasks"
    lines = [f"{head}, hash {str(panel.get('sha256', '?'))[:12]}"]
    if result["differs"]:
        lines.append(f"The evaluations also differ in: {', '.join(result['differs'])}.")
    arms = [["", "mean", "95% interval", "interquartile mean", "runs", "last step", "best step"]]
    for name, arm in result["arms"].items():
        steps = [arm.get(step) for step in ("last_step", "best_step")]
        curve = ["" if one is None else f"{one['mean']:.3f} (step {one['step']})" for one in steps]
        interval, middle = _interval(arm), f"{arm['interquartile_mean']:.3f}"
        arms.append([name, f"{arm['mean']:.3f}", interval, middle, str(len(arm["runs"])), *curve])
    differences = [["", "difference", "95% interval", "p over tasks", "p over runs", "seeds"]]
    for name, found in result["comparisons"].items():
        tests = ["" if found[p] is None else f"{found[p]:.4f}" for p in ("p_tasks", "p_runs")]
        name = name.replace("_minus_", " - ")
        differences.append([name, f"{found['difference']:+.3f}", _interval(found), *tests, str(found["seeds"])])
    return "\n".join([*lines, "", *aligned(arms), "", *aligned(differences)])


def _interval(found: dict[str, Any]) -> str:
    return "" if found["ci_low"] is None else f"{found['ci_low']:.3f} to {found['ci_high']:.3f}"


def plot_curves(arms: Sequence[Arm], path: str | Path, measure: str = "success") -> None:
    """
    Plot the arms' curves with their 95% bands.

    Args:
        arms (`list[Arm]`):
            The arms.
        path (`str` or `Path`):
            The picture to write.
        measure (`str`, *optional*, defaults to `"success"`):
            One of `MEASURES`.

    Raises:
        `ImportError`: if matplotlib is not installed.
        `ValueError`: if no arm has a curve, or the curves are of different panels.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise ImportError('Plots need matplotlib: `pip install "sdar-trl[plot]"`.') from error

    curves = {arm.name: curve for arm in arms if (curve := curve_of(arm, measure))}
    if not curves:
        raise ValueError("None of the runs has a curve. Train with `--curve_every`.")
    panels = [about.get("panel") for arm in arms for run in arm.runs for about, _ in run.curve.values()]
    if any(panel != panels[0] for panel in panels):
        raise ValueError("The curves are of different panels, so they cannot be in one picture.")
    runs = {arm.name: len(arm.runs) for arm in arms}
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, curve in curves.items():
        count = f"{runs[name]} run{'s' if runs[name] > 1 else ''}"
        [line] = axes.plot(list(curve), [one.mean for one in curve.values()], marker=".", label=f"{name}, {count}")
        low, high = ([getattr(one, end) for one in curve.values()] for end in ("ci_low", "ci_high"))
        axes.fill_between(list(curve), low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("step")
    axes.set_ylabel(f"{measure.replace('_', ' ')}, mean and 95% interval")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m sdar_trl.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="[NAME=]RUN", help="A run, a folder of runs, or a file of records.")
    parser.add_argument("--measure", default="success", choices=list(MEASURES), help="What is compared.")
    parser.add_argument("--plot", help="Picture of the curves to write.")
    parser.add_argument("--json", help="File to write the comparison to.")
    args = parser.parse_args(arguments)
    if len(args.runs) < 2:
        parser.error("give two or more runs")
    try:
        arms = [Arm.read(argument) for argument in args.runs]
        result = compare(arms, args.measure)
        print(comparison_table(result))
        if args.plot:
            plot_curves(arms, args.plot, args.measure)
    except (ImportError, ValueError) as error:
        sys.exit(f"error: {error}")
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
