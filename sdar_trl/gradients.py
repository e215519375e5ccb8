"""How much of a step's gradient is the distillation's, and whether it points where the policy's does."""

from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import GRPOTrainer

from .models import is_sharded


class GradientShare(TrainerCallback):
    """
    Logs, of each optimizer's step, before clipping and with both coefficients:

    - `sdar/grad_share`: `|g_d| / (|g_p| + |g_d|)`, the norm of the distillation's gradient against the policy loss's;
    - `sdar/grad_cosine`: the cosine of the angle between them.

    The gradients of all micro-batches and processes are summed first, so that noise does not pass for size. It costs
    two more backward passes, and memory for two gradients in float32. The training is not touched.

    Args:
        trainer ([`~trl.GRPOTrainer`]):
            The trainer.

    Raises:
        `ValueError`: if its weights are sharded.
    """

    def __init__(self, trainer: GRPOTrainer):
        if is_sharded(trainer):
            raise ValueError("`log_grad_share` needs whole weights on every process, which ZeRO-3 and FSDP shard.")
        self.trainer: Any = trainer
        self._sums: torch.Tensor | None = None

    def add(self, policy: torch.Tensor, distillation: torch.Tensor, weight: Any = 1.0) -> None:
        """Take in the two losses of a micro-batch before its backward pass: scalars, and what weighs both."""
        parameters = [parameter for parameter in self.trainer.model.parameters() if parameter.requires_grad]
        found = []
        for loss in (policy, distillation):
            gradients = torch.autograd.grad(weight * loss, parameters, retain_graph=True, allow_unused=True)
            pairs = zip(gradients, parameters, strict=True)
            found.append(torch.cat([(torch.zeros_like(p) if g is None else g).flatten().float() for g, p in pairs]))
        both = torch.stack(found)
        self._sums = both if self._sums is None else self._sums.add_(both)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._sums is None:
            return
        policy, distillation = self.trainer.accelerator.reduce(self._sums, reduction="mean")
        self._sums = None
        norms = policy.norm(), distillation.norm()
        metrics = self.trainer._mode_metrics
        metrics["sdar/grad_share"].append((norms[1] / sum(norms).clamp(min=1e-30)).item())
        metrics["sdar/grad_cosine"].append(torch.cosine_similarity(policy, distillation, dim=0, eps=1e-30).item())


def watch_gradients(trainer: GRPOTrainer) -> GradientShare:
    """A trainer's [`GradientShare`], as one of its callbacks."""
    share = GradientShare(trainer)
    trainer.add_callback(share)
    return share
