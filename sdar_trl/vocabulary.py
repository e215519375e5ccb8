"""Divergences over the whole vocabulary, from hidden states: the logits of a batch never exist at once.

Shapes: B rows, T completion tokens, S most sampled tokens of a row, N those of all rows, H hidden size, V vocabulary,
K likeliest tokens. Log-probabilities and divergences are in nats.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction


FULL_DIVERGENCES = {"reverse_kl": 1.0, "forward_kl": 0.0, "jsd": 0.5}
"""KL(student || teacher), KL(teacher || student) and the Jensen-Shannon divergence, with the mixture weight by which
TRL's kernel tells them apart."""

TOKEN_CHUNK = 1024  # tokens that go through the kernel at once
TOP_K_CHUNK = 512  # tokens whose logits, or whose rows of the head, exist at once


@dataclass(frozen=True)
class Head:
    """
    How a model turns hidden states into logits.

    Args:
        weight (`torch.Tensor`):
            Weight of the output layer, shape (V, H).
        bias (`torch.Tensor`, *optional*):
            Its bias, shape (V,).
        temperature (`float`):
            What the logits are divided by, as in the policy's own log-probabilities.
        scale (`float`):
            Factor of the logits (Cohere, Granite).
        softcap (`float`, *optional*):
            Logits are bent to stay within plus and minus this (Gemma).
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    temperature: float
    scale: float
    softcap: float | None

    @classmethod
    def of(cls, model: Any, temperature: float) -> "Head":
        """The head of a causal language model."""
        layer, config = model.get_output_embeddings(), model.config.get_text_config()
        scale = getattr(config, "logit_scale", None)
        if scale is None and getattr(config, "logits_scaling", None) is not None:
            scale = 1 / config.logits_scaling
        softcap = getattr(config, "final_logit_softcapping", None)
        return cls(layer.weight, layer.bias, temperature, 1.0 if scale is None else scale, softcap)

    def finish(self, logits: torch.Tensor) -> torch.Tensor:
        """Scale, cap and temperature, in float32."""
        logits = logits.float() * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits / self.temperature


def full_divergence(
    name: str, student_hidden: torch.Tensor, teacher_hidden: torch.Tensor, head: Head, teacher_weight: torch.Tensor
) -> torch.Tensor:
    """
    Divergence of the two next-token distributions, by TRL's kernel, in tiles of 1,024 tokens by 32,768 entries of the
    vocabulary. Two of them (float32, 256 MiB) exist at once, whatever the length of the episodes; without Triton,
    about eleven.

    Args:
        name (`str`):
            One of `FULL_DIVERGENCES`.
        student_hidden (`torch.Tensor`):
            Student's hidden states from which the sampled tokens are predicted, with gradient, shape (N, H).
        teacher_hidden (`torch.Tensor`):
            Teacher's, shape (N, H).
        head ([`Head`]):
            The student's head.
        teacher_weight (`torch.Tensor`):
            Weight of the head when the teacher's hidden states were computed, shape (V, H).

    Returns:
        `torch.Tensor`: divergence per token, shape (N,).
    """
    bias = None if head.bias is None else head.bias.detach()
    chunks = zip(student_hidden.split(TOKEN_CHUNK), teacher_hidden.split(TOKEN_CHUNK), strict=True)
    values = [
        ChunkedDivergenceFunction.apply(
            student,
            head.weight,
            head.bias,
            teacher,
            teacher_weight.detach(),
            bias,
            FULL_DIVERGENCES[name],
            head.temperature,
            head.scale,
            head.softcap,
            head.scale,
            head.softcap,
        )[0]
        for student, teacher in chunks
    ]
    return torch.cat(values)


@torch.no_grad()
def top_k_log_probs(hidden: torch.Tensor, head: Head, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The likeliest tokens at each position.

    Args:
        hidden (`torch.Tensor`):
            Hidden states, shape (N, H).
        head ([`Head`]):
            The model's head.
        k (`int`):
            How many.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: their log-probabilities and ids, both of shape (N, K).
    """
    log_probs, ids = [], []
    for chunk in hidden.split(TOP_K_CHUNK):
        logits = torch.nn.functional.linear(chunk, head.weight.to(chunk.dtype), _like(head.bias, chunk))
        top = head.finish(logits).log_softmax(-1).topk(k)
        log_probs.append(top.values)
        ids.append(top.indices)
    return torch.cat(log_probs), torch.cat(ids)


def log_probs_of(
    ids: torch.Tensor, hidden: torch.Tensor, head: Head, sampled_ids: torch.Tensor, sampled_logps: torch.Tensor
) -> torch.Tensor:
    """
    Log-probabilities of a few tokens at each position, without another pass over the vocabulary: the normaliser is
    known from the sampled token, `log pi(v) = z_v - z_y + log pi(y)`.

    Args:
        ids (`torch.Tensor`):
            The tokens, shape (N, K).
        hidden (`torch.Tensor`):
            Hidden states, shape (N, H).
        head ([`Head`]):
            The model's head.
        sampled_ids (`torch.Tensor`):
            The sampled tokens, shape (N,).
        sampled_logps (`torch.Tensor`):
            Their log-probabilities, shape (N,).

    Returns:
        `torch.Tensor`: log-probabilities, with gradient, shape (N, K).
    """
    wanted = torch.cat([ids, sampled_ids.unsqueeze(-1)], dim=-1)

    def logits(hidden: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        values = torch.einsum("nh,nkh->nk", hidden, head.weight[wanted].to(hidden.dtype))
        return head.finish(values if head.bias is None else values + head.bias[wanted].to(hidden.dtype))

    # checkpointed: the gathered rows of the head, (chunk, K + 1, H), are not kept for the backward pass
    chunks = zip(hidden.split(TOP_K_CHUNK), wanted.split(TOP_K_CHUNK), strict=True)
    z = torch.cat([checkpoint(logits, *chunk, use_reentrant=False) for chunk in chunks])
    return z[..., :-1] - z[..., -1:] + sampled_logps.unsqueeze(-1)


def top_k_divergence(name: str, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """
    Divergence over a few tokens, and one more bucket that holds the rest of the vocabulary.

    Args:
        name (`str`):
            One of `FULL_DIVERGENCES`.
        student (`torch.Tensor`):
            Student's log-probabilities of the tokens, shape (N, K).
        teacher (`torch.Tensor`):
            Teacher's, shape (N, K).

    Returns:
        `torch.Tensor`: divergence per token, shape (N,). Never more than that over the whole vocabulary.
    """
    log_p, log_q = _with_tail(student), _with_tail(teacher.detach())
    if name == "reverse_kl":
        return _kl(log_p, log_q)
    if name == "forward_kl":
        return _kl(log_q, log_p)
    middle = torch.logaddexp(log_p, log_q) - math.log(2)
    return (_kl(log_p, middle) + _kl(log_q, middle)) / 2


def _kl(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _with_tail(log_probs: torch.Tensor) -> torch.Tensor:
    """Appends the log-probability of all other tokens, at least 1e-7 lest rounding makes it negative."""
    mass = log_probs.exp().sum(-1, keepdim=True).clamp(max=1 - 1e-7)
    return torch.cat([log_probs, torch.log1p(-mass)], dim=-1)


def _like(bias: torch.Tensor | None, other: torch.Tensor) -> torch.Tensor | None:
    return None if bias is None else bias.to(other.dtype)


class VocabularyDivergence:
    """
    A divergence over the vocabulary between a model reading context and the same model without, one per token.

    The teacher's side is kept as hidden states, or as its K likeliest tokens, from the teacher pass to the loss.

    Args:
        name (`str`):
            One of `FULL_DIVERGENCES`.
        top_k (`int`, *optional*):
            K, or `None` for the whole vocabulary.
        model ([`~transformers.PreTrainedModel`]):
            The causal language model, without wrappers.
        temperature (`float`):
            Temperature of the policy.
        keep_head (`bool`):
            Whether the output layer may be trained between the teacher pass and the loss, so that the teacher's must
            be copied.
    """

    needs_hidden_states = True

    def __init__(self, name: str, top_k: int | None, model: Any, temperature: float, keep_head: bool):
        self.name = name
        self.top_k = top_k
        self.model = model
        self.temperature = temperature
        self.keep_head = keep_head
        self.teacher_weight: torch.Tensor | None = None

    def teacher_tensors(self, hidden: torch.Tensor | None, sampled: torch.Tensor) -> dict[str, torch.Tensor]:
        """
        What the loss needs of the teacher.

        Args:
            hidden (`torch.Tensor`):
                Hidden states from which the teacher predicts the sampled tokens, row after row, shape (N, H).
            sampled (`torch.Tensor`):
                1 for the tokens that were sampled, shape (B, T).

        Returns:
            `dict[str, torch.Tensor]`: `teacher_hidden`, shape (B, S, H), or `teacher_top_logps` and
            `teacher_top_ids`, shape (B, S, K).
        """
        assert hidden is not None
        head = Head.of(self.model, self.temperature)
        counts = sampled.sum(1).tolist()

        def by_row(values: torch.Tensor) -> torch.Tensor:
            return torch.nn.utils.rnn.pad_sequence(values.split(counts), batch_first=True)

        if self.top_k is not None:
            log_probs, ids = top_k_log_probs(hidden, head, self.top_k)
            return {"teacher_top_logps": by_row(log_probs), "teacher_top_ids": by_row(ids)}
        if self.keep_head and self.model.training and head.weight.requires_grad:
            self.teacher_weight = head.weight.detach().clone()
        return {"teacher_hidden": by_row(hidden)}

    def per_token(
        self,
        inputs: dict[str, torch.Tensor],
        student_logps: torch.Tensor,
        hidden: torch.Tensor | None,
        sampled: torch.Tensor,
    ) -> torch.Tensor:
        """
        The divergence at each token.

        Args:
            inputs (`dict[str, torch.Tensor]`):
                The batch, with what `teacher_tensors` gave.
            student_logps (`torch.Tensor`):
                Student's log-probabilities of the sampled tokens, with gradient, shape (B, T).
            hidden (`torch.Tensor`):
                Student's hidden states, as in `teacher_tensors`, shape (N, H).
            sampled (`torch.Tensor`):
                1 for the tokens that were sampled, shape (B, T).

        Returns:
            `torch.Tensor`: divergence in nats, shape (B, T); 0 where nothing was sampled.
        """
        assert hidden is not None
        sampled = sampled.bool()
        head = Head.of(self.model, self.temperature)

        def of_tokens(name: str) -> torch.Tensor:
            """What `teacher_tensors` put in rows, token after token."""
            values = inputs[name]
            return values[torch.arange(values.size(1), device=values.device) < sampled.sum(1, keepdim=True)]

        if self.top_k is None:
            weight = head.weight if self.teacher_weight is None else self.teacher_weight
            divergence = full_divergence(self.name, hidden, of_tokens("teacher_hidden"), head, weight)
        else:
            sampled_ids, logps = inputs["completion_ids"][sampled], student_logps[sampled]
            student = log_probs_of(of_tokens("teacher_top_ids"), hidden, head, sampled_ids, logps)
            divergence = top_k_divergence(self.name, student, of_tokens("teacher_top_logps"))
        return torch.zeros_like(student_logps).masked_scatter(sampled, divergence.to(student_logps.dtype))

    def state_dict(self) -> dict[str, torch.Tensor | None]:
        """What a checkpoint in the middle of a generation batch keeps."""
        return {"teacher_weight": self.teacher_weight}

    def load_state_dict(self, state: dict[str, torch.Tensor | None]) -> None:
        """Go on from a checkpoint."""
        self.teacher_weight = state.get("teacher_weight")  # none where the divergence was another
