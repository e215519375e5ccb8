"""What the training scripts share: arguments, the trainer, the panel before and after, and what is written."""

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: threads that wait leave their core to others

import torch
from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config

from sdar_trl import SDARConfig, SDARTrainer, SkillLibrary
from sdar_trl.envs import World
from sdar_trl.evaluation import (
    PanelCallback,
    PanelResult,
    curve_results,
    curve_table,
    evaluate_trainer,
    last_and_best,
    results_table,
    summarize,
    task_type_table,
    world_panel,
)
from sdar_trl.methods import METHODS
from sdar_trl.plot import plot_training
from sdar_trl.policies import policy_limits, policy_path
from sdar_trl.runs import note_run, provenance


# Defaults where nothing else is given, of all scripts: for the embedded policies on two CPU cores.
EMBEDDED: dict[str, Any] = {
    "num_generations": 8,
    "learning_rate": 3e-4,
    "lr_scheduler_type": "constant",
    "gradient_checkpointing": False,
    "bf16": False,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
}


@dataclass
class ScriptArguments:
    """
    Arguments of the training scripts alone.

    Args:
        panel_size (`int`, *optional*, defaults to `128`):
            Held-out tasks on which the policy is evaluated before and after training; 0 for none.
        panel_temperature (`float`, *optional*, defaults to `0.4`):
            Sampling temperature of the evaluations.
        panel_tries (`int`, *optional*, defaults to `1`):
            Episodes of each task before and after training.
        curve_every (`int`, *optional*, defaults to `0`):
            Steps between evaluations while training; 0 for none.
        curve_size (`int`, *optional*, defaults to `32`):
            Validation tasks of these.
        skills (`str`, *optional*):
            Folder of skills the teacher reads. If `None`, the world's own.
    """

    panel_size: int = field(default=128, metadata={"help": "Held-out tasks of the evaluations; 0 for none."})
    panel_temperature: float = field(default=0.4, metadata={"help": "Sampling temperature of the evaluations."})
    panel_tries: int = field(default=1, metadata={"help": "Episodes of each task before and after training."})
    curve_every: int = field(default=0, metadata={"help": "Steps between evaluations while training; 0 for none."})
    curve_size: int = field(default=32, metadata={"help": "Validation tasks of the evaluations while training."})
    skills: str | None = field(default=None, metadata={"help": "Folder of skills; the bundled ones if not given."})


@dataclass
class MethodArgument:
    """The method alone, which is read before all else."""

    method: str = "sdar"


def parse(
    world_class: type[World], demo: dict[str, Any], args: list[str] | None = None
) -> tuple[ScriptArguments, World, SDARConfig, ModelConfig]:
    """
    The arguments of a training script.

    Args:
        world_class (`type[World]`):
            The world; its fields are arguments too.
        demo (`dict[str, Any]`):
            Defaults where nothing else is given, beside `EMBEDDED`. In `output_dir`, `{variant}` becomes nothing for
            the usual run, and e.g. `_grpo` or `_window` for another method or history, so that one run leaves the
            other's results alone.
        args (`list[str]`, *optional*):
            The command line. If `None`, this process's.

    Returns:
        `tuple`: the arguments of the script, the world, the trainer's and the model's.
    """
    # model and method decide what else is a default, and are known to the command line or the YAML file
    first = TrlParser((ModelConfig, MethodArgument), add_help=False)  # type: ignore[arg-type]
    first.set_defaults_with_config(model_name_or_path=demo["model_name_or_path"])
    [model, method, *_] = first.parse_args_and_config(args, return_remaining_strings=True)
    limits = {**world_class.limits, **policy_limits(model.model_name_or_path)}
    if method.method != "sdar":  # the demo's values of what a method decides are SDAR's
        demo = {name: value for name, value in demo.items() if name not in METHODS["sdar"]}

    parser = TrlParser((ScriptArguments, world_class, SDARConfig, ModelConfig))  # type: ignore[arg-type]
    parser.set_defaults_with_config(**{**limits, **EMBEDDED, **demo})
    script_args, world, training_args, model_args = parser.parse_args_and_config(args)
    usual = {"sdar", "growing"}
    variant = "".join(f"_{name}" for name in (training_args.method, training_args.history) if name not in usual)
    training_args.output_dir = str(training_args.output_dir).replace("{variant}", variant)
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
    }
    return script_args, world, training_args, model_args


def make_trainer(
    script_args: ScriptArguments, world: World, training_args: SDARConfig, model_args: ModelConfig
) -> SDARTrainer:
    """The trainer that the arguments ask for."""
    return SDARTrainer(
        model=policy_path(str(model_args.model_name_or_path)),
        args=training_args,
        train_dataset=world.dataset("train"),
        environment_factory=world.environment_factory,
        skills=SkillLibrary.from_folder(script_args.skills) if script_args.skills else world.skills(),
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )


def train(world_class: type[World], demo: dict[str, Any]) -> None:
    """
    Train on a world, and evaluate before and after.

    Writes into `output_dir` the model and its card, `training.png`, `run.json`, `metrics.json` (the results),
    `panel.json` (the tasks), and records of their episodes: `panel_before.jsonl`, `panel_after.jsonl` and the files of
    `curve/`.

    Args:
        world_class (`type[World]`):
            The world.
        demo (`dict[str, Any]`):
            Defaults where nothing else is given, as in [`parse`].
    """
    start = time.perf_counter()
    script_args, world, training_args, model_args = parse(world_class, demo)
    if not torch.cuda.is_available():  # `accelerate launch` leaves each process one CPU thread
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // training_args.world_size))
    trainer = make_trainer(script_args, world, training_args, model_args)
    is_main, output_dir = trainer.accelerator.is_main_process, Path(str(training_args.output_dir))
    about: dict[str, Any] = {"policy": model_args.model_name_or_path, "method": training_args.method}
    results: dict[str, PanelResult] = {}
    panel = world_panel(world, "test", script_args.panel_size) if script_args.panel_size else None
    if is_main and not training_args.resume_from_checkpoint:  # those of another run
        for path in output_dir.glob("panel_*.jsonl"):
            path.unlink()

    def play_panel(name: str) -> None:
        if panel is None:
            return
        records = evaluate_trainer(
            trainer,
            panel.tasks(world.dataset("test")),
            tries=script_args.panel_tries,
            temperature=script_args.panel_temperature,
            path=output_dir / f"panel_{name}.jsonl",
            about={**about, "panel": panel.about(), "step": trainer.state.global_step},
        )
        if is_main:
            results[name] = summarize(records)
            print(results_table(results), task_type_table(results), sep="\n\n", flush=True)

    play_panel("before")
    if script_args.curve_every:
        validation = world_panel(world, "validation", script_args.curve_size)
        options: dict[str, Any] = {"every": script_args.curve_every, "temperature": script_args.panel_temperature}
        trainer.add_callback(PanelCallback(trainer, validation, world.dataset("validation"), **options))
    if training_args.method != "skill_prompt":  # which trains nothing
        trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
        play_panel("after")
        trainer.save_model()
    if is_main:
        written: dict[str, Any] = {name: result.to_dict() for name, result in results.items()}
        curve = curve_results(output_dir) if script_args.curve_every else {}
        if curve:
            print(curve_table(curve))
            written["curve"] = last_and_best(curve)
        if results:
            print(task_type_table(results))
        seconds = time.perf_counter() - start
        write_json(
            output_dir / "metrics.json",
            {**written, "processes": trainer.accelerator.num_processes, "seconds": seconds},
        )
        note_run(output_dir, world=world.name, method=training_args.method, **provenance())
        if panel is not None:
            panel.save(output_dir / "panel.json")
            note_run(output_dir, panels={"test": panel.about()})
        if any(count for count, _ in trainer.teacher_context.retriever.totals().values()):
            print(trainer.teacher_context.table())
        if trainer.state.log_history:
            plot_training(output_dir, output_dir / "training.png")
        print("\n".join([*world.notes(), f"{seconds:.0f} seconds. Written to {output_dir}."]))
        if (output_dir / "episodes").exists():
            print(f"Its episodes, to look at: python -m sdar_trl.view {output_dir}")
    if training_args.method != "skill_prompt":
        trainer.create_model_card()  # it tells of what was written just now
        if training_args.push_to_hub:
            trainer.push_to_hub()


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write data into a file, whose folder is made if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=2) + "\n")
