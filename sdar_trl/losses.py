"""The mathematics of SDAR: pure functions of tensors.

Shapes: B rows (episodes), T completion tokens. Log-probabilities, gaps and entropies are in nats.

Source of the formulas: "Self-Distilled Agentic Reinforcement Learning" (arXiv 2605.15155).
"""

from collections.abc import Callable

import torch


Gate = Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]
"""A gate maps (gap, entropy, beta) to one weight per token; gap, entropy and weights have shape (B, T)."""


def teacher_student_gap(teacher_logps: torch.Tensor, student_logps: torch.Tensor) -> torch.Tensor:
    """
    How much more likely the teacher finds each sampled token than the student does.

    `Delta_t = log pi_T(y_t | s_t+) - log pi_theta(y_t | s_t)`: positive where the privileged context endorses the
    token.

    Args:
        teacher_logps (`torch.Tensor`):
            Teacher log-probabilities of the sampled tokens, shape (B, T).
        student_logps (`torch.Tensor`):
            Current student log-probabilities of the same tokens, shape (B, T).

    Returns:
        `torch.Tensor`: the gap in nats, shape (B, T), without gradient.
    """
    return (teacher_logps - student_logps).detach()


def gap_gate(gap: torch.Tensor, entropy: torch.Tensor, beta: float) -> torch.Tensor:
    """`g_t = sigmoid(beta * Delta_t)`: near 1 for tokens the teacher endorses, fading softly for those it rejects."""
    return torch.sigmoid(beta * gap)


GATES: dict[str, Gate] = {"gap": gap_gate}


def distillation_loss(
    student_logps: torch.Tensor, teacher_logps: torch.Tensor, gate_weights: torch.Tensor
) -> torch.Tensor:
    """
    Token-gated self-distillation loss of each token: `l_t = g_t * (log pi_T - log pi_theta)`.

    Gate and teacher are constants, so the gradient is `-g_t * grad log pi_theta(y_t)`.

    Args:
        student_logps (`torch.Tensor`):
            Student log-probabilities of the sampled tokens, with gradient, shape (B, T).
        teacher_logps (`torch.Tensor`):
            Teacher log-probabilities of the same tokens, shape (B, T).
        gate_weights (`torch.Tensor`):
            The gate's weights, shape (B, T).

    Returns:
        `torch.Tensor`: loss per token in nats, shape (B, T).
    """
    return gate_weights.detach() * (teacher_logps.detach() - student_logps)


def aggregate_loss(
    per_token_loss: torch.Tensor,
    mask: torch.Tensor,
    loss_type: str,
    *,
    accumulation_steps: float,
    max_completion_length: int,
    window_tokens: torch.Tensor,
) -> torch.Tensor:
    """
    Reduce a per-token loss to a scalar exactly as TRL's `loss_type` reduces the policy loss it is added to.

    Args:
        per_token_loss (`torch.Tensor`):
            Loss per token, shape (B, T).
        mask (`torch.Tensor`):
            1 for the tokens that count (sampled by the policy), shape (B, T).
        loss_type (`str`):
            One of TRL's loss types.
        accumulation_steps (`float`):
            Micro-batches in the current accumulation window; 1 in evaluation.
        max_completion_length (`int`):
            Tokens; the constant length by which `"dr_grpo"` divides.
        window_tokens (`torch.Tensor`):
            Scalar: tokens that count in one accumulation window, divided by the number of processes, which is what
            `"dapo"`, `"cispo"` and `"vespo"` divide by.

    Returns:
        `torch.Tensor`: the scalar loss of this micro-batch, scaled for gradient accumulation.

    Raises:
        `ValueError`: if `loss_type` is not known.
    """
    masked = per_token_loss * mask
    if loss_type in ("grpo", "sapo"):
        return (masked.sum(-1) / mask.sum(-1).clamp(min=1.0)).mean() / accumulation_steps
    if loss_type == "bnpo":
        return masked.sum() / mask.sum().clamp(min=1.0) / accumulation_steps
    if loss_type == "dr_grpo":
        return masked.sum() / (per_token_loss.size(0) * max_completion_length) / accumulation_steps
    if loss_type in ("dapo", "cispo", "vespo"):
        return masked.sum() / window_tokens
    if loss_type == "luspo":
        return masked.sum(-1).mean() / accumulation_steps
    raise ValueError(
        f"Unknown loss type: got {loss_type!r}, expected one of grpo, sapo, bnpo, dr_grpo, dapo, cispo, vespo, luspo."
    )
