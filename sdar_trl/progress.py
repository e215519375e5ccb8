"""What a run prints: one line a step, in place of Transformers' dictionaries. All numbers go to the trackers, and into
`metrics.jsonl` (recording.py)."""

import sys
import time
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from tqdm import tqdm
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK


COLUMNS = {
    "reward": ("reward", "5.2f"),
    "env/success": ("success", "4.0%"),
    "env/turns": ("turns", "4.1f"),
    "sdar/gate_mean": ("gate", "5.3f"),
    "sdar/gap_mean": ("gap", "+6.3f"),
    "panel/success": ("panel", "4.0%"),
}
"""The metrics of a line: what each is called there, and how it is written."""


TABLE_EVERY = 10
"""After so many lines, a table of their means."""

SHARES = {"success": "env/success/", "ended by": "env/stop/"}
"""The rows of that table: what each is called, and how the names of its metrics begin."""


def shares_table(entries: Sequence[Mapping[str, Any]]) -> str:
    """
    Success by task type and how episodes ended, means over some steps.

    Args:
        entries (`list[dict]`):
            What was logged at these steps.

    Returns:
        `str`: the table, two lines a row; of a single task type there is none to tell. `""` if there is nothing.
    """
    lines = []
    for label, start in SHARES.items():
        known = [
            (n, value) for entry in entries for n, value in entry.items() if n.startswith(start) and value is not None
        ]
        names = sorted({name for name, _ in known})
        means = {name.removeprefix(start): mean(value for n, value in known if n == name) for name in names}
        cells = {name: f"{value:.0%}" for name, value in means.items() if value > 0 or label == "success"}
        if len(cells) > 1:
            widths = [max(len(name), 4) for name in cells]
            for head, row in ((label, cells.keys()), ("", cells.values())):
                text = "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
                lines.append(f"    {head:8}  {text}")
    return "\n".join(lines)


def columns_text(metrics: Mapping[str, Any]) -> str:
    """Those of [`COLUMNS`] that there are, as a text."""
    found = [(label, metrics.get(name), form) for name, (label, form) in COLUMNS.items()]
    return "  ".join(f"{label} {value:{form}}" for label, value, form in found if value is not None)


def duration(seconds: float) -> str:
    """Seconds as a text of two digits or so, in the unit that fits."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


class StepLines(ProgressCallback):
    """
    A [`~transformers.TrainerCallback`] that prints one line for each step that is logged: step, reward, success,
    turns, gate, gap, success on a panel where one was played, the mean seconds of a step since the line before, and
    the time left at the pace so far, with evaluations and checkpoints. After each ten, a small table: success by task
    type, and how episodes ended.

    In a terminal the bar of [`~transformers.ProgressCallback`] stays below the lines; without one, and with
    `disable_tqdm`, there are the lines alone. [`SDARTrainer`] uses it in place of Transformers' own; to have those
    back:

    ```python
    >>> trainer.remove_callback(StepLines)
    >>> trainer.add_callback(ProgressCallback)
    ```
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        has_bar = self._has_bars(args) and state.is_world_process_zero
        self.training_bar = tqdm(total=state.max_steps, dynamic_ncols=True, disable=not has_bar)
        self.start, self.first = time.perf_counter(), state.global_step
        self.current_step = self.logged_step = self.first
        self.step_start, self.step_seconds = self.start, 0.0
        self.entries: list[Mapping[str, Any]] = []  # since the last table

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.step_start = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.step_seconds += time.perf_counter() - self.step_start
        super().on_step_end(*args, **kwargs)

    def on_prediction_step(self, args: TrainingArguments, *others: Any, **kwargs: Any) -> None:
        if self._has_bars(args):
            super().on_prediction_step(args, *others, **kwargs)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or not logs:
            return
        if "loss" in logs:
            self._write(self._step_line(state, logs))
            self.entries.append(dict(logs))
            if len(self.entries) == TABLE_EVERY:
                if table := shares_table(self.entries):
                    self._write(table)
                self.entries = []
        elif "train_runtime" in logs:
            done = state.global_step - self.first
            self._write(f"{done} step{'s' if done != 1 else ''} in {duration(logs['train_runtime'])}")
        elif any(name.startswith("eval_") for name in logs):
            metrics = {name.removeprefix("eval_"): value for name, value in logs.items()}
            self._write(f"evaluation at step {state.global_step}  {columns_text(metrics)}".rstrip())
        else:  # a log of the user's own
            numbers = (f"{n} {v:.4g}" if isinstance(v, float) else f"{n} {v}" for n, v in logs.items() if n != "epoch")
            self._write("  ".join(numbers))

    def _step_line(self, state: TrainerState, logs: Mapping[str, Any]) -> str:
        seconds = self.step_seconds / max(state.global_step - self.logged_step, 1)
        self.logged_step, self.step_seconds = state.global_step, 0.0
        pace = (time.perf_counter() - self.start) / max(state.global_step - self.first, 1)
        steps_left = state.max_steps - state.global_step
        step = f"step {state.global_step:{len(str(state.max_steps))}}/{state.max_steps}"
        left = f"  {duration(pace * steps_left)} left" if steps_left > 0 else ""
        return f"{step}  {columns_text(logs)}  {duration(seconds):>6}{left}"

    def _has_bars(self, args: TrainingArguments) -> bool:
        return not args.disable_tqdm and sys.stderr.isatty()

    def _write(self, line: str) -> None:
        if self.training_bar is None or self.training_bar.disable:
            print(line, flush=True)
        else:
            self.training_bar.write(line)  # above the bar


class EpisodeBar(tqdm):
    """A bar over the episodes of a rollout, with turns a second; in a terminal alone."""

    def __init__(self, episodes: int, shown: bool):
        super().__init__(total=episodes, desc="rollout", unit="episode", leave=False, disable=None if shown else True)
        self.turns, self.began = 0, time.perf_counter()

    def add(self, turns: int, ended: int) -> None:
        """So many turns were played, with which so many episodes ended."""
        self.turns += turns
        self.set_postfix_str(f"{self.turns / (time.perf_counter() - self.began):.1f} turns/s", refresh=False)
        self.update(ended)


def use_step_lines(trainer: Trainer) -> None:
    """Let [`StepLines`] report in place of the callback that Transformers' trainer has chosen."""
    trainer.remove_callback(PrinterCallback if trainer.args.disable_tqdm else DEFAULT_PROGRESS_CALLBACK)
    trainer.add_callback(StepLines())
