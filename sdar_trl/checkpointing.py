"""What plain TRL leaves out of a checkpoint, so that a stopped run goes on as if it had never stopped.

Three things: the order of tasks after the first epoch; in the middle of a generation batch (where one lasts for
several steps), that batch and the place in it; and a mark that the checkpoint is whole, written when every process has
written its part.

The number of processes must always be the same again. In the middle of a generation batch, so must the settings that
say how it is made and split ([`BATCH_SETTINGS`]); at its end they may change, and a new batch is begun with them.
"""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch.utils.data import Sampler
from transformers.trainer_jit_checkpoint import JITCheckpointCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput, rotate_checkpoints, sort_checkpoints
from trl import GRPOTrainer


logger = logging.getLogger(__name__)

COMPLETE = "complete.json"

BATCH_SETTINGS = (
    *("per_device_train_batch_size", "steps_per_generation", "num_iterations", "gradient_accumulation_steps"),
    *("num_generations", "history", "history_window", "divergence", "divergence_top_k", "signal"),
)
"""Arguments that a generation batch depends on while it is in use; and whether `beta` is 0."""


class ResumableSampler(Sampler):
    """
    TRL's sampler, whose order in each epoch can be had again. By itself it starts over with the first epoch's order
    when a run is resumed in a later one.

    Args:
        sampler ([`~trl.trainer.utils.RepeatSampler`]):
            TRL's.
        epoch (`Callable[[], int]`):
            Number of epochs that are over.
    """

    def __init__(self, sampler: Any, epoch: Callable[[], int]):
        self.sampler = sampler
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        if self.sampler.shuffle:
            self.sampler.generator.manual_seed(self.sampler.seed)
            for _ in range(self.epoch()):
                torch.randperm(self.sampler.num_samples, generator=self.sampler.generator)
        return iter(self.sampler)

    def __len__(self) -> int:
        return len(self.sampler)


def checkpoint_to_resume(resume_from_checkpoint: str | bool | None, output_dir: str) -> str | None:
    """
    The checkpoint to go on from.

    Args:
        resume_from_checkpoint (`str` or `bool`, *optional*):
            A folder, or `True` (from the command line, "true") for the last whole checkpoint in `output_dir`.
        output_dir (`str`):
            Where the checkpoints are.

    Returns:
        `str` or `None`: the folder.

    Raises:
        `ValueError`: if the folder was cut while it was being written, or there is no whole checkpoint.
    """
    if not resume_from_checkpoint:
        return None
    asked = None if str(resume_from_checkpoint).lower() == "true" else Path(str(resume_from_checkpoint))
    if asked is not None and _is_whole(asked):
        return str(asked)
    run_dir = Path(output_dir) if asked is None else asked.parent
    folders = sort_checkpoints(str(run_dir), PREFIX_CHECKPOINT_DIR) if run_dir.is_dir() else []
    whole = [folder for folder in folders if _is_whole(Path(folder))]
    if asked is not None and not asked.is_dir():
        raise ValueError(
            "`resume_from_checkpoint` is a checkpoint's folder, or `True` for the last one in `output_dir`; there is "
            f"none at {asked}. {f'Those of that run: {folders}.' if folders else ''}".rstrip()
        )
    if asked is not None:
        raise ValueError(
            f"{asked} is no whole checkpoint: it has no {COMPLETE}, which is written last. The run was probably "
            f"stopped while writing it. {f'Resume from {whole[-1]}.' if whole else 'No other one beside it is whole.'}"
        )
    if not whole:
        raise ValueError(
            f"No whole checkpoint in {run_dir}. Begin anew, without `resume_from_checkpoint`; `save_strategy` and "
            "`save_steps` say when checkpoints are written."
        )
    for folder in folders[folders.index(whole[-1]) + 1 :]:
        logger.warning("%s was cut while it was being written, and is passed over.", folder)
    return whole[-1]


def _is_whole(folder: Path) -> bool:
    return (folder / COMPLETE).exists()


class ResumableGRPOTrainer(GRPOTrainer):
    """[`~trl.GRPOTrainer`] whose runs can be stopped at any moment and resumed exactly, by as many processes."""

    args: Any
    model: Any

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        checkpoint = checkpoint_to_resume(resume_from_checkpoint, str(self.args.output_dir))
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, JITCheckpointCallback):  # on SIGTERM; in the middle of a step is no place to go on
                callback.on_pre_optimizer_step = lambda *args, **kwargs: None  # type: ignore[method-assign]
        return super().train(checkpoint, trial, ignore_keys_for_eval)

    def _get_train_sampler(self, dataset: Any = None) -> Sampler:
        return ResumableSampler(super()._get_train_sampler(dataset), lambda: int(self.state.epoch or 0))

    def _resume_state(self) -> dict[str, Any]:
        """What this process needs to go on: its place in the generation batch, and the batch while it is in use."""
        split: Any = self.args.steps_per_generation
        in_use = self._step % (split * self.num_iterations) > 0
        batch = self._buffered_inputs if in_use else None
        return {"step": self._step, "tokens": self._total_train_tokens, "batch": batch}

    def _batch_settings(self) -> dict[str, Any]:
        settings = {name: getattr(self.args, name) for name in BATCH_SETTINGS if hasattr(self.args, name)}
        if settings.get("history") == "growing":
            settings.pop("history_window")
        return {**settings, "beta": "above 0" if self.args.beta else "0"}  # the reference was asked, or not

    def _load_resume_state(self, state: dict[str, Any]) -> None:
        self._step, self._total_train_tokens = state["step"], state["tokens"]
        self._buffered_inputs = state["batch"]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        run_dir = self._get_output_dir(trial)
        folder = Path(run_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.args.should_save:
            (folder / COMPLETE).unlink(missing_ok=True)  # of a run before, whose files are about to be replaced
        self.accelerator.wait_for_everyone()
        limit, self.args.save_total_limit = self.args.save_total_limit, None  # older ones go once this one is whole
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        torch.save(self._resume_state(), folder / f"resume_{self.accelerator.process_index}.pt")
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            content = {
                "global_step": self.state.global_step,
                "num_processes": self.accelerator.num_processes,
                "settings": self._batch_settings(),
            }
            unfinished = folder / f"{COMPLETE}.tmp"
            unfinished.write_text(json.dumps(content))
            unfinished.replace(folder / COMPLETE)
            rotate_checkpoints(run_dir, limit, self.state.best_model_checkpoint, use_mtime=True)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        folder, processes = Path(checkpoint), self.accelerator.num_processes
        mark = json.loads((folder / COMPLETE).read_text())
        written_by = mark["num_processes"]
        if written_by != processes:
            raise ValueError(
                f"{folder} was written by {written_by} processes, and there are {processes}. Resume with as many as "
                "before, or start anew from its weights: `model=` that folder, without resuming."
            )
        file = folder / f"resume_{self.accelerator.process_index}.pt"
        state = torch.load(file, map_location="cpu", weights_only=True)
        now = self._batch_settings()
        then = {name: value for name, value in mark.get("settings", {}).items() if now.get(name) != value}
        if then and state["batch"] is not None:
            changed = ", ".join(f"`{name}` was {value} and is {now.get(name)}" for name, value in then.items())
            raise ValueError(
                f"{folder} was written in the middle of a generation batch, which other settings cannot go on with: "
                f"{changed}. Resume with those it was written with, or from a checkpoint at the end of a generation "
                "batch (every `steps_per_generation` x `num_iterations` / `gradient_accumulation_steps` steps)."
            )
        if then:
            state["step"] = 0  # of the next generation batch, the first with these settings
        self._load_resume_state(send_to_device(state, self.accelerator.device))
