"""Training dynamics as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


PANELS = {
    "Reward": "reward",
    "Success": "env/success",
    "Gate, mean": "sdar/gate_mean",
    "Teacher-student gap, mean (nats)": "sdar/gap_mean",
    "Share of tokens with gate above 1/2": "sdar/gate_above_half",
    "KL to the reference model (nats)": "kl",
}


def plot_training(log_history: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """
    Plot reward, success, gate, gap and KL over steps. A metric that was not logged says so.

    Args:
        log_history (`list[dict]`):
            `trainer.state.log_history`.
        path (`str` or `Path`):
            The picture to write, e.g. `"training.png"`.

    Raises:
        `ImportError`: if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Plots need matplotlib: `pip install sdar-trl[plot]`.") from error

    figure = Figure(figsize=(12, 6), layout="constrained")
    for axes, (title, key) in zip(figure.subplots(2, 3).flat, PANELS.items(), strict=True):
        points = [(entry["step"], entry[key]) for entry in log_history if entry.get(key) is not None]
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step")
        if points:
            axes.plot(*zip(*points, strict=True), color="tab:blue")
            axes.grid(alpha=0.3)
        else:
            axes.text(0.5, 0.5, "not logged", ha="center", va="center", transform=axes.transAxes)
    figure.savefig(path, dpi=120)
