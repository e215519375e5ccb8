"""The mathematics of SDAR: pure functions of tensors.

Shapes: B rows, T completion tokens. Log-probabilities, gaps and entropies are in nats.

Source of the formulas: "Self-Distilled Agentic Reinforcement Learning" (arXiv 2605.15155) and its official code, which
also give those of the baselines. What the gradients are in expectation is derived in docs/objective.md.
"""

import math
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


def turn_numbers(sampled: torch.Tensor) -> torch.Tensor:
    """The turn of each token, from 0 in each row: one begins where sampled tokens (1) follow others (0). Shape (B, T),
    of tokens between two turns the one before."""
    before = torch.nn.functional.pad(sampled, (1, 0))[:, :-1]
    return ((sampled > before).cumsum(1) - 1).clamp(min=0)


def turn_means(values: torch.Tensor, sampled: torch.Tensor) -> torch.Tensor:
    """
    The mean over each turn's sampled tokens, at each of them.

    `Delta_k = 1/|k| * sum_{t in k} Delta_t` for the tokens of turn k: credit by action step, as in StepOPSD
    (arXiv 2605.27140); AgentOPSD (arXiv 2608.05987) takes the sum.

    Args:
        values (`torch.Tensor`):
            Of each token, e.g. its gap, shape (B, T).
        sampled (`torch.Tensor`):
            1 for the tokens that the policy sampled; those of a turn follow each other, and what was read lies between
            two turns. Shape (B, T).

    Returns:
        `torch.Tensor`: the means, 0 at other tokens, shape (B, T).
    """
    turn, sampled = turn_numbers(sampled), sampled.to(values.dtype)
    empty = torch.zeros_like(values)
    sums = empty.scatter_add(1, turn, values * sampled)
    counts = empty.scatter_add(1, turn, sampled)
    return (sums / counts.clamp(min=1)).gather(1, turn) * sampled


# Gates


def gap_gate(gap: torch.Tensor, entropy: torch.Tensor, beta: float) -> torch.Tensor:
    """`g_t = sigmoid(beta * Delta_t)`: near 1 for tokens the teacher endorses, fading softly for those it rejects."""
    return torch.sigmoid(beta * gap)


def entropy_gate(gap: torch.Tensor, entropy: torch.Tensor, beta: float) -> torch.Tensor:
    """`g_t = sigmoid(beta * h_t)`: never below one half, near 1 where the student is undecided."""
    return torch.sigmoid(beta * entropy)


def soft_or_gate(gap: torch.Tensor, entropy: torch.Tensor, beta: float) -> torch.Tensor:
    """
    `g_t = sigmoid(beta * (1 - (1 - h_t) * (1 - Delta_t)))`: near 1 where either is large.

    It reads as an "or" while both are at most 1; above, the product changes its sign. With `normalize_entropy` the
    entropy is.
    """
    return torch.sigmoid(beta * (1 - (1 - entropy) * (1 - gap)))


def uniform_gate(gap: torch.Tensor, entropy: torch.Tensor, beta: float) -> torch.Tensor:
    """One half everywhere: what any sigmoid gate is at `beta = 0`, and what the official code runs as "GRPO+OPSD"."""
    return torch.full_like(gap, 0.5)


def no_gate(gap: torch.Tensor, entropy: torch.Tensor, beta: float) -> torch.Tensor:
    """Weight 1 everywhere."""
    return torch.ones_like(gap)


GATES: dict[str, Gate] = {
    "gap": gap_gate,
    "entropy": entropy_gate,
    "soft_or": soft_or_gate,
    "uniform": uniform_gate,
    "none": no_gate,
}


# Divergences estimated from the sampled token

Divergence = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Maps log-probabilities of the sampled tokens (student's, with gradient; teacher's; student's when it sampled) to a
loss per token; all have shape (B, T), nats."""


def sampled_reverse_kl(student: torch.Tensor, teacher: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """
    SDAR's own: `l_t = log pi_T - log pi_theta`, with gradient `-grad log pi_theta(y_t)`.

    The value is an estimate of the reverse KL, with its sign turned; the gradient is not the reverse KL's: with a
    constant gate it is zero in expectation. See docs/objective.md.
    """
    return teacher - student


def sampled_k3(student: torch.Tensor, teacher: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """
    `k3 = exp(-l) - 1 + l` with `l = log pi_theta - log pi_T`, `-l` capped at 20: an estimate of the reverse KL that is
    never negative. Its gradient, on policy, is the *forward* KL's in expectation.
    """
    log_ratio = student - teacher
    return torch.exp((-log_ratio).clamp(max=20)) - 1 + log_ratio


def sampled_k3_weighted(student: torch.Tensor, teacher: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """
    Skill-SD's: `rho_t * k3` with the importance ratio `rho_t = exp(log pi_theta - log pi_old)`, its exponent capped at
    10. The gradient goes through the ratio, which makes it the reverse KL's in expectation.
    """
    return torch.exp((student - old).clamp(max=10)) * sampled_k3(student, teacher, old)


def sampled_score(student: torch.Tensor, teacher: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """
    Score-function form: `(log pi_theta - log pi_T) * log pi_theta`, the first factor a constant. On policy its
    gradient is the reverse KL's in expectation. Its value means nothing.
    """
    return (student - teacher).detach() * student


SAMPLED_DIVERGENCES: dict[str, Divergence] = {
    "sampled_reverse_kl": sampled_reverse_kl,
    "sampled_k3": sampled_k3,
    "sampled_k3_weighted": sampled_k3_weighted,
    "sampled_score": sampled_score,
}


class SampledDivergence:
    """
    A divergence estimated from the sampled token. Nothing but its log-probabilities is needed, so that of the
    interface that [`~sdar_trl.vocabulary.VocabularyDivergence`] shares only `per_token` does anything.

    Args:
        name (`str`):
            One of `SAMPLED_DIVERGENCES`.
    """

    needs_hidden_states = False

    def __init__(self, name: str):
        self.name = name

    def teacher_tensors(self, hidden: torch.Tensor | None, sampled: torch.Tensor) -> dict[str, torch.Tensor]:
        """Nothing more of the teacher than its log-probs."""
        return {}

    def per_token(
        self,
        inputs: dict[str, torch.Tensor],
        student_logps: torch.Tensor,
        hidden: torch.Tensor | None,
        sampled: torch.Tensor,
    ) -> torch.Tensor:
        """The divergence at each token in nats, shape (B, T), from `teacher_per_token_logps` and, off policy,
        `old_per_token_logps` of the batch; the rest is not looked at."""
        old_logps = inputs.get("old_per_token_logps")
        old_logps = student_logps.detach() if old_logps is None else old_logps
        return SAMPLED_DIVERGENCES[self.name](student_logps, inputs["teacher_per_token_logps"], old_logps)

    def state_dict(self) -> dict[str, torch.Tensor | None]:
        """Nothing to keep in the middle of a generation batch."""
        return {}

    def load_state_dict(self, state: dict[str, torch.Tensor | None]) -> None:
        """Nothing to go on from."""


# The signal in the advantage


Credit = Callable[[torch.Tensor, float], torch.Tensor]
"""Maps `sign(A) * Delta_t`, shape (B, T), and `clip` to the factor of an advantage, within `clip` of 1."""


def exp_credit(signed_gap: torch.Tensor, clip: float) -> torch.Tensor:
    """RLSD's `clip(exp(sign(A) * Delta_t), 1 - clip, 1 + clip)`: each token by itself."""
    return torch.exp(signed_gap.clamp(-20, 20)).clamp(1 - clip, 1 + clip)


def normalized_credit(
    signed_gap: torch.Tensor, clip: float, tokens: torch.Tensor, episodes: torch.Tensor
) -> torch.Tensor:
    """
    AgentOPSD's (arXiv 2608.05987) `clip(1 + clip * z_t, 1 - clip, 1 + clip)`, where z is `q_t = sign(A) * Delta_t`
    normalised within the episode: `z_t = (q_t - mean(q)) / (std(q) + 1e-4)`.

    What counts is how the teacher sees a token next to the episode's others: a shift of all of them, as of a context
    that makes everything less likely, does nothing, and the credit of an episode is dealt out anew rather than raised.

    Args:
        signed_gap (`torch.Tensor`):
            `q`, shape (B, T).
        clip (`float`):
            Half-width of the factor's range around 1.
        tokens (`torch.Tensor`):
            1 for those whose mean and standard deviation are taken, shape (B, T).
        episodes (`torch.Tensor`):
            The episode of each row, -1 for none, shape (B,).

    Returns:
        `torch.Tensor`: the factor, shape (B, T).
    """
    tokens, places = tokens.to(signed_gap.dtype), episodes + 1
    empty = signed_gap.new_zeros(len(episodes) + 2)

    def mean(values: torch.Tensor) -> torch.Tensor:
        sums = empty.scatter_add(0, places, (values * tokens).sum(1))
        return (sums / empty.scatter_add(0, places, tokens.sum(1)).clamp(min=1))[places].unsqueeze(1)

    centered = signed_gap - mean(signed_gap)
    return (1 + clip * centered / (mean(centered**2).sqrt() + 1e-4)).clamp(1 - clip, 1 + clip)


def rlsd_advantages(
    advantages: torch.Tensor,
    gap: torch.Tensor,
    weight: float,
    clip: float,
    mask: torch.Tensor,
    credit: Credit = exp_credit,
) -> torch.Tensor:
    """
    RLSD's token advantages, `A_t = A * ((1 - w) + w * credit(sign(A) * Delta_t))`.

    A token that the teacher endorses gets more of the credit, and less of the blame; the sign stays the reward's.

    Args:
        advantages (`torch.Tensor`):
            Advantage of each episode, shape (B,), or of each token, shape (B, T).
        gap (`torch.Tensor`):
            Teacher-student gap in nats, at the weights that sampled the tokens, shape (B, T).
        weight (`float`):
            `w`; 0 leaves every token the advantage of its episode.
        clip (`float`):
            Half-width of the factor's range around 1.
        mask (`torch.Tensor`):
            1 for the tokens that have a teacher; the others keep their episode's advantage. Shape (B, T) or (B, 1).
        credit (`Credit`, *optional*, defaults to [`exp_credit`]):
            Makes the factor.

    Returns:
        `torch.Tensor`: advantages, shape (B, T).
    """
    advantages = advantages.unsqueeze(1) if advantages.dim() == 1 else advantages
    factor = credit(torch.sign(advantages) * gap, clip)
    return advantages * (1 + weight * mask * (factor - 1))


# Schedules

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1 - progress,
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "warmup": lambda progress: progress,
}
"""Factor of a coefficient by the share of the schedule that is done, in [0, 1]: `"linear"` and `"cosine"` end at 0."""


# What TRL computes in the middle of its batch, for a batch built anew


def importance_sampling_ratio(
    old_logps: torch.Tensor,
    sampling_logps: torch.Tensor,
    mask: torch.Tensor,
    mode: str,
    clip_min: float | None,
    clip_max: float | None,
) -> torch.Tensor:
    """
    TRL's correction for an engine that samples from slightly other probabilities than the trainer computes.

    Args:
        old_logps (`torch.Tensor`):
            The trainer's log-probabilities of the sampled tokens, shape (B, T).
        sampling_logps (`torch.Tensor`):
            The engine's, NaN where it has none, shape (B, T).
        mask (`torch.Tensor`):
            1 for the tokens that count, shape (B, T).
        mode (`str`):
            `"token_truncate"`, `"token_mask"`, `"sequence_truncate"` or `"sequence_mask"`.
        clip_min (`float`, *optional*), clip_max (`float`, *optional*):
            The range; outside, a ratio is set to its end (truncate) or to 0 (mask).

    Returns:
        `torch.Tensor`: the ratios, shape (B, T), or (B, 1) for a whole sequence.
    """
    difference = torch.nan_to_num((old_logps - sampling_logps) * mask, nan=0.0)
    ratio = torch.exp(difference.sum(-1, keepdim=True) if mode.startswith("sequence") else difference)
    if mode.endswith("truncate"):
        return ratio.clamp(min=clip_min, max=clip_max)
    low = -math.inf if clip_min is None else clip_min
    high = math.inf if clip_max is None else clip_max
    return ratio.masked_fill((ratio < low) | (ratio > high), 0.0)


# Reduction


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
