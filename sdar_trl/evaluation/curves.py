"""A small panel played while a run trains, every so many steps."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..runs import note_run
from .files import read_records
from .panels import Panel
from .play import evaluate_trainer
from .records import PanelResult, Record, summarize


if TYPE_CHECKING:
    from ..trainer import SDARTrainer


FOLDER = "curve"


class PanelCallback(TrainerCallback):
    """
    Plays a panel before the first step, every so many steps, and after the last. The training is not touched: the
    same seed gives the same weights with and without it.

    The records are files of `curve/` in `output_dir`, one a step (see [`read_curve`]); success and score are logged as
    `panel/success` and `panel/score`. The panel is noted in the run's `run.json`.

    Args:
        trainer ([`SDARTrainer`]):
            The trainer; pass the callback to its `add_callback`.
        panel ([`Panel`]):
            The panel. Choose by it (a step, a coefficient) only where another one is played in the end.
        tasks (`Dataset` or `list[dict]`):
            The dataset that has its tasks.
        every (`int`):
            Steps.
        **options:
            Of [`evaluate_trainer`]: `tries`, `temperature`, `batch_size`, `seed`.

    Example:

    ```python
    >>> tasks = world.dataset("validation")
    >>> trainer.add_callback(PanelCallback(trainer, world_panel(world, "validation", 32), tasks, every=10))
    ```
    """

    def __init__(self, trainer: "SDARTrainer", panel: Panel, tasks: Any, *, every: int, **options: Any):
        if every < 1:
            raise ValueError(f"`every` must be at least 1, got {every}.")
        self.trainer, self.panel, self.every, self.options = trainer, panel, every, options
        self.tasks = panel.tasks(tasks)
        self.folder = Path(str(trainer.args.output_dir)) / FOLDER

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:  # of another run here, or of steps that are trained again
            for step, path in _files(self.folder).items():
                if step > state.global_step or state.global_step == 0:
                    path.unlink()
            note_run(self.folder.parent, panels={FOLDER: self.panel.about()})
        if state.global_step == 0:
            self._play(0)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            records = self._play(state.global_step)
            # before this step's log
            for name in ("success", "score"):
                mean = sum(getattr(record, name) for record in records) / len(records)
                self.trainer._mode_metrics[f"panel/{name}"].append(mean)

    def _play(self, step: int) -> list[Record]:
        about = {"panel": self.panel.about(), "step": step}
        path = self.folder / f"step_{step:06}.jsonl"
        return evaluate_trainer(self.trainer, self.tasks, path=path, about=about, **self.options)


def _files(folder: Path) -> dict[int, Path]:
    return {int(path.stem.removeprefix("step_")): path for path in sorted(folder.glob("step_*.jsonl"))}


def read_curve(run: str | Path) -> dict[int, tuple[dict[str, Any], list[Record]]]:
    """
    The curve of a run.

    Args:
        run (`str` or `Path`):
            Its `output_dir`.

    Returns:
        `dict[int, tuple]`: by step, what the records are of, and the records. Nothing if none were written.
    """
    return {step: read_records(path) for step, path in _files(Path(run) / FOLDER).items()}


def marked_steps(curve: Mapping[int, float]) -> dict[str, int]:
    """Which step of a curve is its `last_step`, and which the first of the highest value, its `best_step`."""
    return {"last_step": max(curve), "best_step": min(curve, key=lambda step: (-curve[step], step))}


def last_and_best(results: Mapping[int, PanelResult]) -> dict[str, dict[str, Any]]:
    """
    The two ways in which a curve is told in one number.

    Args:
        results (`dict[int, PanelResult]`):
            The result at each step.

    Returns:
        `dict`: `last_step` and `best_step`, each with the `step` and its result. The best step is the first with the
        highest success; since it was chosen by the same panel it looks better than it is, by more the more steps there
        are. What a panel says of a policy is its last step.
    """
    return {name: {"step": step, **results[step].to_dict()} for name, step in _marked(results).items()}


def _marked(results: Mapping[int, PanelResult]) -> dict[str, int]:
    return marked_steps({step: result.success for step, result in results.items()})


def curve_table(results: Mapping[int, PanelResult]) -> str:
    """
    A curve as a table to print, with its last and its best step named.

    Args:
        results (`dict[int, PanelResult]`):
            The result at each step.

    Returns:
        `str`: the table.
    """
    steps = _marked(results)
    lines = [f"{'step':>6}  success  95% interval   mean score"]
    for step, result in sorted(results.items()):
        marks = ", ".join(name.replace("_", " ") for name, at in steps.items() if at == step)
        interval = f"{result.ci_low:6.1%} to {result.ci_high:.1%}"
        lines.append(f"{step:6}  {result.success:7.1%}  {interval:15}  {result.score:9.3f}  {marks}".rstrip())
    return "\n".join(lines)


def curve_results(run: str | Path) -> dict[int, PanelResult]:
    """The result at each step of a run's curve."""
    return {step: summarize(records) for step, (_, records) in read_curve(run).items()}
