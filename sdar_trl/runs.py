"""What a run was (configuration, versions, commit, seeds, machine, time), so that a table can name its runs."""

import json
import os
import platform
import subprocess
import time
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .envs.border import plain


RUN_FILE = "run.json"
PACKAGES = ("sdar_trl", "torch", "transformers", "trl", "accelerate", "peft", "numpy", "scipy")


def provenance() -> dict[str, Any]:
    """
    Where a result comes from.

    Returns:
        `dict`: machine, date, commit of this package's code (with `+` where files differ from it; `None` where it is
        installed without its repository) and versions.
    """
    return {
        "machine": machine(),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "commit": commit(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def machine() -> str:
    """The processor or the GPUs, and how many."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores, no GPU"


def commit() -> str | None:
    """Of the repository that this package's code is part of."""

    def git(*command: str) -> str:
        done = subprocess.run(
            ["git", *command], cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=60
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # a virtual environment inside another repository
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def read_run(folder: str | Path) -> dict[str, Any]:
    """What `run.json` in a folder says, nothing if there is none."""
    path = Path(folder) / RUN_FILE
    return json.loads(path.read_text()) if path.exists() else {}


def note_run(folder: str | Path, **values: Any) -> None:
    """
    Write values into a run's `run.json`, beside what it says already. For one process alone.

    Args:
        folder (`str` or `Path`):
            The run's `output_dir`.
        **values:
            What to write; a dictionary is joined with the one that is there.
    """
    found = read_run(folder)
    for name, value in plain(values).items():
        old = found.get(name)
        found[name] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
    path = Path(folder) / RUN_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_suffix(".part")  # never half a file
    whole.write_text(json.dumps(found, indent=2) + "\n")
    whole.replace(path)


class RunRecord(TrainerCallback):
    """Writes `run.json` as a training begins, and how long it took with each checkpoint and at the end. The time of a
    run that was stopped and resumed is that of its parts."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.began, self.before = time.perf_counter(), 0.0
        if not state.is_world_process_zero:
            return
        folder, model = str(args.output_dir), kwargs.get("model")
        if state.global_step > 0:
            self.before = read_run(folder).get("seconds", 0.0)
        else:
            (Path(folder) / RUN_FILE).unlink(missing_ok=True)
        note_run(
            folder,
            method=getattr(args, "method", None),
            model=getattr(getattr(model, "config", None), "_name_or_path", None),
            seeds={"seed": args.seed, "data_seed": args.data_seed},
            processes=args.world_size,
            started=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            config=args.to_dict(),
            **provenance(),
        )
        self._note(args, state, finished=False)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._note(args, state, finished=False)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._note(args, state, finished=state.global_step >= state.max_steps)

    def _note(self, args: TrainingArguments, state: TrainerState, finished: bool) -> None:
        if state.is_world_process_zero:
            seconds = round(self.before + time.perf_counter() - self.began, 1)
            note_run(str(args.output_dir), steps=state.global_step, seconds=seconds, finished=finished)
