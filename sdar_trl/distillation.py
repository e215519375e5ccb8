"""The distillation: what the teacher's log-probs do to a batch's loss, or to its advantages."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator

from .config import SDARConfig
from .episodes import Episode
from .losses import (
    GATES,
    SAMPLED_DIVERGENCES,
    SCHEDULES,
    Credit,
    Gate,
    SampledDivergence,
    exp_credit,
    normalized_credit,
    rlsd_advantages,
    teacher_student_gap,
    turn_means,
)
from .rows import sampled_tokens
from .vocabulary import VocabularyDivergence


class Distillation:
    """
    SDAR's part of the objective, as configured.

    Args:
        args ([`SDARConfig`]):
            The configuration.
        gate (`Gate`, *optional*):
            Used instead of `args.gate`.
        model ([`~transformers.PreTrainedModel`]):
            The causal language model, without wrappers.
        sharded (`bool`):
            Whether its weights are sharded over the processes.

    Raises:
        `ValueError`: if they are while a divergence needs the whole output layer.
    """

    def __init__(self, args: SDARConfig, gate: Gate | None, model: Any, sharded: bool):
        self.args = args
        self.gate = gate or GATES[args.gate]
        self.vocabulary_size = model.config.get_text_config().vocab_size
        self.divergence: SampledDivergence | VocabularyDivergence
        if args.divergence in SAMPLED_DIVERGENCES or args.sdar_coef == 0:
            self.divergence = SampledDivergence(args.divergence)
            return
        if sharded:
            raise ValueError(
                f"`divergence={args.divergence!r}` needs the whole output layer on every process, which ZeRO-3 and "
                f"FSDP shard. Use one of {', '.join(SAMPLED_DIVERGENCES)}, or DDP or ZeRO-2."
            )
        steps: Any = args.steps_per_generation
        self.divergence = VocabularyDivergence(
            args.divergence,
            args.divergence_top_k,
            model,
            args.temperature,
            # weights may change between the teacher pass and the loss
            keep_head=steps * args.num_iterations > args.gradient_accumulation_steps,
        )

    def scheduled(self, name: str, step: int, max_steps: int) -> float:
        """`sdar_coef` or `gate_beta` at a step."""
        progress = min(1.0, step / max(self.args.schedule_steps or max_steps, 1))
        return getattr(self.args, name) * SCHEDULES[getattr(self.args, f"{name}_schedule")](progress)

    def loss(
        self,
        inputs: dict[str, torch.Tensor],
        student_logps: torch.Tensor,
        entropies: torch.Tensor,
        hidden_states: torch.Tensor | None,
        gate_beta: float,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        The loss of each token, `gate * divergence`.

        Args:
            inputs (`dict[str, torch.Tensor]`):
                The batch, with what the teacher pass gave.
            student_logps (`torch.Tensor`):
                Student's log-probabilities of the sampled tokens, with gradient, shape (B, T).
            entropies (`torch.Tensor`):
                Student's entropies, nats, without gradient, shape (B, T).
            hidden_states (`torch.Tensor`, *optional*):
                Student's hidden states from which the sampled tokens are predicted, shape (N, H), if the divergence
                needs them.
            gate_beta (`float`):
                Sharpness of the gate.

        Returns:
            `tuple`: the loss, the gap (nats) and the gate, these two without gradient; all of shape (B, T).
        """
        gap = self.gap(inputs, student_logps)
        if self.args.normalize_entropy:
            entropies = entropies / math.log(self.vocabulary_size)
        gate = self.gate(gap, entropies, gate_beta).detach()
        per_token = self.divergence.per_token(inputs, student_logps, hidden_states, sampled_tokens(inputs))
        return gate * per_token, gap, gate

    def advantages(self, inputs: dict[str, torch.Tensor], old_logps: torch.Tensor, coef: float) -> torch.Tensor:
        """RLSD's advantages, shape (B, T), from those of the episodes and the gap at the weights that sampled."""
        credit: Credit = exp_credit
        if self.args.credit == "normalized":
            credit = partial(normalized_credit, tokens=taught_tokens(inputs), episodes=inputs["row_turns"][:, 0])
        gap, clip = self.gap(inputs, old_logps), self.args.advantage_clip
        return rlsd_advantages(inputs["advantages"], gap, coef, clip, inputs["teacher_mask"], credit)

    def gap(self, inputs: dict[str, torch.Tensor], student_logps: torch.Tensor) -> torch.Tensor:
        """The gap that weighs each token, nats, shape (B, T)."""
        gap = teacher_student_gap(inputs["teacher_per_token_logps"], student_logps)
        if "contrast_per_token_logps" in inputs:
            wrong = teacher_student_gap(inputs["contrast_per_token_logps"], student_logps)
            gap = gap - self.args.contrast_coef * inputs["contrast_mask"] * wrong
        return turn_means(gap, sampled_tokens(inputs)) if self.args.granularity == "turn" else gap


def chosen_episodes(
    distill_on: str,
    episodes: Sequence[Episode],
    advantages: torch.Tensor,
    group_size: int,
    accelerator: Accelerator,
) -> torch.Tensor:
    """
    Which episodes have a teacher.

    Args:
        distill_on (`str`):
            `"all"`; `"failed"`: those without success, all of them in TRL's own loops, which know none (as in SSPO and
            HinT-SD); `"no_signal"`: those of groups whose rewards are all the same, which have no advantages (as in
            I-SDPO).
        episodes (`list[Episode]`):
            The E episodes of this process.
        advantages (`torch.Tensor`):
            Of each, shape (E,).
        group_size (`int`):
            Episodes of a task, which follow each other over all processes.
        accelerator ([`~accelerate.Accelerator`]):
            Joins what all processes have.

    Returns:
        `torch.Tensor`: 1 for those that have one, and a 0 behind them, for rows of no episode; shape (E + 1,).
    """
    chosen = torch.ones_like(advantages)
    if distill_on == "failed":
        chosen = advantages.new_tensor([float(not episode.success) for episode in episodes])
    elif distill_on == "no_signal":
        scored = advantages.new_tensor([float(not episode.error) for episode in episodes]).bool()
        # equal rewards have equal advantages, though rounding may keep them from being 0
        most = accelerator.gather(advantages.masked_fill(~scored, -math.inf)).view(-1, group_size).amax(1)
        least = accelerator.gather(advantages.masked_fill(~scored, math.inf)).view(-1, group_size).amin(1)
        same = (most <= least).to(advantages.dtype).repeat_interleave(group_size)
        chosen = same[accelerator.process_index * len(episodes) :][: len(episodes)]
    return torch.cat([chosen, chosen.new_zeros(1)])


LARGE_GAP = 0.1
"""Nats. Most tokens are certain for both, so a mean over all of them says little of the others."""


def token_metrics(
    loss: torch.Tensor, gap: torch.Tensor, gate: torch.Tensor, won: torch.Tensor, lost: torch.Tensor
) -> dict[str, torch.Tensor]:
    """
    What is logged of tokens that have a teacher.

    Args:
        loss (`torch.Tensor`):
            The loss of each token, shape (B, T).
        gap (`torch.Tensor`):
            Teacher-student gap, nats, shape (B, T).
        gate (`torch.Tensor`):
            What weighs each token, shape (B, T).
        won (`torch.Tensor`), lost (`torch.Tensor`):
            1 for rows of episodes that were won, and of others, shape (B, 1).

    Returns:
        `dict[str, torch.Tensor]`: by metric, shape (B, T), to be averaged over tokens; those in
        [`~sdar_trl.metrics.PARTS`] are then divided by their part's share.
    """
    large = (gap.abs() > LARGE_GAP).to(gap.dtype)
    won, lost = won.to(gap.dtype).expand_as(gap), lost.to(gap.dtype).expand_as(gap)
    return {
        "sdar/loss": loss.detach(),
        "sdar/gate_mean": gate,
        "sdar/gate_above_half": (gate > 0.5).float(),
        "sdar/gap_mean": gap,
        "sdar/large_gap": large,
        "sdar/gate_large_gap": gate * large,
        "sdar/tokens_won": won,
        "sdar/gap_won": gap * won,
        "sdar/tokens_lost": lost,
        "sdar/gap_lost": gap * lost,
    }


def taught_tokens(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """1 for those in rows that have a teacher, shape (B, T)."""
    return sampled_tokens(inputs) * inputs["teacher_mask"]
