"""
Train an agent to shop with SDAR.

With its defaults, the embedded policy on the embedded shop, on two CPU cores:

    accelerate launch examples/train_webshop.py

Any model, one GPU, LoRA, on the official files (the folder of `items_shuffle_1000.json` or `items_shuffle.json`):

    accelerate launch examples/train_webshop.py --config examples/configs/webshop_qwen2.5_3b.yaml \
        --webshop_data WebShop/data --use_peft --lora_target_modules all-linear --learning_rate 1e-5 \
        --gradient_accumulation_steps 32

Eight GPUs, full weights, with the published values:

    accelerate launch --config_file examples/accelerate_configs/zero3.yaml examples/train_webshop.py \
        --config examples/configs/webshop_qwen2.5_3b.yaml --webshop_data WebShop/data

Another method (see sdar_trl/methods.py), such as GRPO alone:

    accelerate launch examples/train_webshop.py --method grpo
"""

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config

from sdar_trl import SDARConfig, SDARTrainer, SkillLibrary
from sdar_trl.envs import WebShopEnv
from sdar_trl.evaluation import evaluate_trainer, results_table
from sdar_trl.plot import plot_training
from sdar_trl.policies import policy_path


# Defaults where nothing else is given: sizes and rates for the embedded policy on two CPU cores.
DEMO: dict[str, Any] = {
    "model_name_or_path": "tiny",
    "output_dir": "outputs/demo",
    "max_steps": 28,
    "per_device_train_batch_size": 48,
    "num_generations": 8,
    "learning_rate": 3e-4,
    "lr_scheduler_type": "constant",
    "beta": 0.01,
    "max_response_length": 20,
    "max_completion_length": 800,
    "max_turns": 7,
    "gradient_checkpointing": False,
    "bf16": False,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
}


@dataclass
class ScriptArguments:
    """
    Arguments of this script alone.

    Args:
        panel_size (`int`, *optional*, defaults to `128`):
            Held-out tasks on which the policy is evaluated before and after training; 0 for none.
        panel_temperature (`float`, *optional*, defaults to `0.4`):
            Sampling temperature of the evaluation.
        reward (`str`, *optional*, defaults to `"score"`):
            What an episode pays: `"score"` the original's score, `"success"` 1 for a perfect purchase and else 0.
        skills (`str`, *optional*):
            Folder of skills the teacher reads. If `None`, the bundled ones.
        webshop_data (`str`, *optional*):
            Folder of WebShop's official files. If `None`, the embedded shop.
        human_goals (`bool`, *optional*, defaults to `False`):
            With `webshop_data`: goals that people wrote, instead of those made of the products' options.
    """

    panel_size: int = field(default=128, metadata={"help": "Held-out tasks of the evaluations; 0 for none."})
    panel_temperature: float = field(default=0.4, metadata={"help": "Sampling temperature of the evaluations."})
    reward: str = field(
        default="score",
        metadata={
            "help": "What an episode pays: 'score', or 'success' (1 for a perfect purchase, else 0).",
            "choices": ["score", "success"],
        },
    )
    skills: str | None = field(default=None, metadata={"help": "Folder of skills; the bundled ones if not given."})
    webshop_data: str | None = field(
        default=None, metadata={"help": "Folder of WebShop's official files; the embedded shop if not given."}
    )
    human_goals: bool = field(default=False, metadata={"help": "With webshop_data: goals that people wrote."})


def main() -> None:
    start = time.perf_counter()
    parser = TrlParser((ScriptArguments, SDARConfig, ModelConfig))  # type: ignore[arg-type]
    parser.set_defaults_with_config(**DEMO)
    script_args, training_args, model_args = parser.parse_args_and_config()

    if not torch.cuda.is_available():  # `accelerate launch` leaves each process one CPU thread
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // training_args.world_size))

    model_path = policy_path(model_args.model_name_or_path)
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
    }
    skills = SkillLibrary.from_folder(script_args.skills) if script_args.skills else SkillLibrary.bundled("webshop")
    shop: dict[str, Any] = {"data_dir": script_args.webshop_data, "human_goals": script_args.human_goals}
    trainer = SDARTrainer(
        model=model_path,
        args=training_args,
        train_dataset=WebShopEnv.dataset("train", **shop),
        environment_factory=lambda: WebShopEnv(reward=script_args.reward, **shop),
        skills=skills,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    panel = WebShopEnv.dataset("test", **shop).select(range(script_args.panel_size))

    results = {}
    if script_args.panel_size:
        results["before"] = evaluate_trainer(trainer, panel, temperature=script_args.panel_temperature)
    if training_args.method == "skill_prompt":  # nothing to train
        if trainer.accelerator.is_main_process:
            print(results_table({"skills in the prompt": results["before"]}))
        return
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    if script_args.panel_size:
        results["after"] = evaluate_trainer(trainer, panel, temperature=script_args.panel_temperature)

    trainer.save_model()
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name="webshop")
    if trainer.accelerator.is_main_process:
        output_dir = Path(training_args.output_dir)
        metrics: dict[str, Any] = {name: result.to_dict() for name, result in results.items()}
        metrics["processes"] = trainer.accelerator.num_processes
        metrics["seconds"] = time.perf_counter() - start
        (output_dir / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
        if any(count for count, _ in trainer.teacher_context.statistics().values()):
            print(trainer.teacher_context.table(), end="\n\n")
        if results:
            print(results_table(results))
        plot_training(trainer.state.log_history, output_dir / "training.png")
        print(f"{metrics['seconds']:.0f} seconds. Written to {output_dir}: metrics.json, training.png, the model.")


if __name__ == "__main__":
    main()
