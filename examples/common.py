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
from sdar_trl.evaluation import Record, evaluate_trainer, results_table, summarize, task_type_table
from sdar_trl.plot import plot_training
from sdar_trl.policies import policy_limits, policy_path


@dataclass
class ScriptArguments:
    """
    Arguments of the training scripts alone.

    Args:
        panel_size (`int`, *optional*, defaults to `128`):
            Held-out tasks on which the policy is evaluated before and after training; 0 for none.
        panel_temperature (`float`, *optional*, defaults to `0.4`):
            Sampling temperature of the evaluation.
        skills (`str`, *optional*):
            Folder of skills the teacher reads. If `None`, the world's own.
    """

    panel_size: int = field(default=128, metadata={"help": "Held-out tasks of the evaluations; 0 for none."})
    panel_temperature: float = field(default=0.4, metadata={"help": "Sampling temperature of the evaluations."})
    skills: str | None = field(default=None, metadata={"help": "Folder of skills; the bundled ones if not given."})


def parse(
    world_class: type[World], demo: dict[str, Any], args: list[str] | None = None
) -> tuple[ScriptArguments, World, SDARConfig, ModelConfig]:
    """
    The arguments of a training script.

    Args:
        world_class (`type[World]`):
            The world; its fields are arguments too.
        demo (`dict[str, Any]`):
            Defaults where nothing else is given. In `output_dir`, `{variant}` becomes nothing for the usual run, and
            e.g. `_grpo` or `_window` for another method or history, so that one run leaves the other's results alone.
        args (`list[str]`, *optional*):
            The command line. If `None`, this process's.

    Returns:
        `tuple`: the arguments of the script, the world, the trainer's and the model's.
    """
    # which model it is decides the limits that it has by default, and is known to the command line or the YAML file
    models = TrlParser(ModelConfig, add_help=False)  # type: ignore[arg-type]
    models.set_defaults_with_config(model_name_or_path=demo["model_name_or_path"])
    [model, *_] = models.parse_args_and_config(args, return_remaining_strings=True)
    limits = {**world_class.limits, **policy_limits(model.model_name_or_path)}

    parser = TrlParser((ScriptArguments, world_class, SDARConfig, ModelConfig))  # type: ignore[arg-type]
    parser.set_defaults_with_config(**{**limits, **demo})
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


def train(world_class: type[World], demo: dict[str, Any]) -> None:
    """
    Train on a world, and evaluate before and after.

    Writes the model, `training.png`, `metrics.json` (the results) and `panel.json` (their episodes, one record each)
    into `output_dir`.

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
    trainer = SDARTrainer(
        model=policy_path(str(model_args.model_name_or_path)),
        args=training_args,
        train_dataset=world.dataset("train"),
        environment_factory=world.environment_factory,
        skills=SkillLibrary.from_folder(script_args.skills) if script_args.skills else world.skills(),
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    is_main, output_dir = trainer.accelerator.is_main_process, Path(str(training_args.output_dir))
    tasks = world.dataset("test").select(range(script_args.panel_size))
    panels: dict[str, list[Record]] = {}

    def play_panel(name: str) -> None:
        if not script_args.panel_size:
            return
        panels[name] = evaluate_trainer(trainer, tasks, temperature=script_args.panel_temperature)
        if is_main:
            results = {name: summarize(panel) for name, panel in panels.items()}
            print(results_table(results), task_type_table(results), sep="\n\n", flush=True)

    play_panel("before")
    if training_args.method != "skill_prompt":  # which trains nothing
        trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
        play_panel("after")
        trainer.save_model()
        if training_args.push_to_hub:
            trainer.push_to_hub(dataset_name=world.name)
    if is_main:
        if panels:
            print(task_type_table({name: summarize(panel) for name, panel in panels.items()}))
        seconds = time.perf_counter() - start
        write_results(output_dir, panels, processes=trainer.accelerator.num_processes, seconds=seconds)
        if any(count for count, _ in trainer.teacher_context.retriever.totals().values()):
            print(trainer.teacher_context.table())
        if trainer.state.log_history:
            plot_training(output_dir, output_dir / "training.png")
        print("\n".join([*world.notes(), f"{seconds:.0f} seconds. Written to {output_dir}."]))
        if (output_dir / "episodes").exists():
            print(f"Its episodes, to look at: python -m sdar_trl.view {output_dir}")


def write_results(output_dir: Path, panels: dict[str, list[Record]], **run: Any) -> None:
    """
    Write `metrics.json` and `panel.json`.

    Args:
        output_dir (`Path`):
            The folder; made if it is not there.
        panels (`dict[str, list[Record]]`):
            The records of each panel that was played, by its name.
        **run:
            What else `metrics.json` holds.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    results = {name: summarize(records).to_dict() for name, records in panels.items()}
    episodes = {name: [record.to_dict() for record in records] for name, records in panels.items()}
    (output_dir / "metrics.json").write_text(json.dumps({**results, **run}, indent=2) + "\n")
    (output_dir / "panel.json").write_text(json.dumps(episodes, indent=2) + "\n")
