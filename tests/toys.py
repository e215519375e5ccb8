"""Small environments for tests, and one step of a trainer, taken apart."""

import torch

from sdar_trl.envs import Step


class CountingEnv:
    """Ends after `length` turns; pays for how often the response holds an `e`, so that rewards differ."""

    def reset(self, *, length: int, fails_at: int | None = None, **_) -> str:
        self.length, self.fails_at, self.turn = length, fails_at, 0
        if fails_at == 0:
            raise RuntimeError("reset failed")
        return f"count to {length}"

    def step(self, response: str) -> Step:
        self.turn += 1
        if self.turn == self.fails_at:
            raise RuntimeError("step failed")
        done = self.turn == self.length
        reward = float(response.count("e"))
        info = {"success": reward > 0} if done else {}
        return Step(f"now at {self.turn}", reward, done, False, bool(response), info)

    def close(self) -> None:
        pass


class CalculatorEnv:
    """TRL's own kind of environment: its methods are tools."""

    def reset(self, **_) -> str:
        self.calls = 0
        return " use the tool."

    def add(self, a: int, b: int) -> int:
        """
        Adds two numbers.

        Args:
            a: First number.
            b: Second number.
        """
        self.calls += 1
        return a + b

    def get_reward(self) -> float:
        return float(self.calls)


def scored_batch(trainer, count=4):
    """One generation batch, as the trainer scores it in its first step."""
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    trainer.model.train()
    torch.manual_seed(0)
    rows = [dict(trainer.train_dataset[index // trainer.num_generations]) for index in range(count)]
    return trainer._generate_and_score_completions(rows)


def gradients(trainer, inputs):
    """Gradients of the loss on a batch, by parameter."""
    trainer.model.zero_grad()
    trainer.compute_loss(trainer.model, inputs).backward()
    return {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
