"""Trains in one of two processes, each with an engine, and writes down what became of it."""

import on_cpu  # noqa: F401, I001  before anything that loads vLLM
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from datasets import Dataset
from test_engine import largest_difference
from toys import CountingEnv

from sdar_trl import SDARConfig, SDARTrainer, Skill, SkillLibrary


def main() -> None:
    folder = Path(sys.argv[1])
    prompt = [{"role": "system", "content": "you count."}, {"role": "user", "content": "task: "}]
    # the tasks of one process take as many turns again
    tasks = [{"prompt": prompt, "task_id": str(i), "length": 1 + 3 * (i % 2)} for i in range(8)]
    config = SDARConfig(
        output_dir=str(folder / "out"),
        use_vllm=True,
        vllm_mode="colocate",
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=96,
        max_response_length=8,
        max_turns=4,
        max_steps=2,
        learning_rate=1e-2,
        shuffle_dataset=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = SDARTrainer(
        model=sys.argv[2],
        args=config,
        train_dataset=Dataset.from_list(tasks),
        environment_factory=CountingEnv,
        skills=SkillLibrary([Skill("general", "for all", "say every number.", always=True)]),
    )
    trainer.train()
    turns = [len(episode.turns) for episode in trainer.episodes]
    weights = {
        name: p.detach().clone() for name, p in trainer.accelerator.unwrap_model(trainer.model).named_parameters()
    }
    trainer.model = trainer.accelerator.unwrap_model(trainer.model)
    difference = largest_difference(trainer.model, trainer.rollout.play(tasks[:2]))
    torch.save(
        {"turns": turns, "weights": weights, "difference": difference},
        folder / f"{trainer.accelerator.process_index}.pt",
    )


if __name__ == "__main__":
    main()
