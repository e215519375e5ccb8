"""Divergences over the whole vocabulary, from hidden states: the logits of a batch never exist at once.

Shapes: B rows, T completion tokens, H hidden size, V vocabulary, K likeliest tokens. Log-probabilities and
divergences are in nats.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
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
            Student's hidden states from which the completion tokens are predicted, with gradient, shape (B, T, H).
        teacher_hidden (`torch.Tensor`):
            Teacher's, shape (B, T, H).
        head ([`Head`]):
            The student's head.
        teacher_weight (`torch.Tensor`):
            Weight of the head when the teacher's hidden states were computed, shape (V, H).

    Returns:
        `torch.Tensor`: divergence per token, shape (B, T).
    """
    bias = None if head.bias is None else head.bias.detach()
    chunks = zip(
        student_hidden.flatten(0, 1).split(TOKEN_CHUNK), teacher_hidden.flatten(0, 1).split(TOKEN_CHUNK), strict=True
    )
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
    return torch.cat(values).view(student_hidden.shape[:2])


@torch.no_grad()
def top_k_log_probs(hidden: torch.Tensor, head: Head, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The likeliest tokens at each position.

    Args:
        hidden (`torch.Tensor`):
            Hidden states, shape (B, T, H).
        head ([`Head`]):
            The model's head.
        k (`int`):
            How many.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: their log-probabilities and ids, both of shape (B, T, K).
    """
    log_probs, ids = [], []
    for chunk in hidden.flatten(0, 1).split(TOP_K_CHUNK):
        logits = torch.nn.functional.linear(chunk, head.weight.to(chunk.dtype), _like(head.bias, chunk))
        top = head.finish(logits).log_softmax(-1).topk(k)
        log_probs.append(top.values)
        ids.append(top.indices)
    shape = (*hidden.shape[:2], k)
    return torch.cat(log_probs).view(shape), torch.cat(ids).view(shape)


def log_probs_of(
    ids: torch.Tensor, hidden: torch.Tensor, head: Head, sampled_ids: torch.Tensor, sampled_logps: torch.Tensor
) -> torch.Tensor:
    """
    Log-probabilities of a few tokens at each position, without another pass over the vocabulary: the normaliser is
    known from the sampled token, `log pi(v) = z_v - z_y + log pi(y)`.

    Args:
        ids (`torch.Tensor`):
            The tokens, shape (B, T, K).
        hidden (`torch.Tensor`):
            Hidden states, shape (B, T, H).
        head ([`Head`]):
            The model's head.
        sampled_ids (`torch.Tensor`):
            The sampled tokens, shape (B, T).
        sampled_logps (`torch.Tensor`):
            Their log-probabilities, shape (B, T).

    Returns:
        `torch.Tensor`: log-probabilities, with gradient, shape (B, T, K).
    """
    wanted = torch.cat([ids, sampled_ids.unsqueeze(-1)], dim=-1).flatten(0, 1)

    def logits(hidden: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        values = torch.einsum("nh,nkh->nk", hidden, head.weight[wanted].to(hidden.dtype))
        return head.finish(values if head.bias is None else values + head.bias[wanted].to(hidden.dtype))

    # checkpointed: the gathered rows of the head, (chunk, K + 1, H), are not kept for the backward pass
    chunks = zip(hidden.flatten(0, 1).split(TOP_K_CHUNK), wanted.split(TOP_K_CHUNK), strict=True)
    z = torch.cat([checkpoint(logits, *chunk, use_reentrant=False) for chunk in chunks]).view(*ids.shape[:2], -1)
    return z[..., :-1] - z[..., -1:] + sampled_logps.unsqueeze(-1)


def top_k_divergence(name: str, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """
    Divergence over a few tokens, and one more bucket that holds the rest of the vocabulary.

    Args:
        name (`str`):
            One of `FULL_DIVERGENCES`.
        student (`torch.Tensor`):
            Student's log-probabilities of the tokens, shape (B, T, K).
        teacher (`torch.Tensor`):
            Teacher's, shape (B, T, K).

    Returns:
        `torch.Tensor`: divergence per token, shape (B, T). Never more than that over the whole vocabulary.
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
        compiled (`bool`, *optional*, defaults to `False`):
            Whether the model is compiled. Compiled code does not look for hooks, and one model's is used for another,
            so the forwards whose hidden states are needed run without it.
    """

    def __init__(
        self, name: str, top_k: int | None, model: Any, temperature: float, keep_head: bool, compiled: bool = False
    ):
        self.name = name
        self.top_k = top_k
        self.model = model
        self.temperature = temperature
        self.keep_head = keep_head
        self.compiled = compiled
        self.teacher_weight: torch.Tensor | None = None

    @contextmanager
    def hidden_states(self) -> Iterator[list[torch.Tensor]]:
        """Collects the last hidden states, shape (rows, tokens, H), of every forward inside."""
        states: list[torch.Tensor] = []
        handle = self.model.base_model.register_forward_hook(
            lambda module, args, output: states.append(output.last_hidden_state)
        )
        try:
            with torch.compiler.set_stance("force_eager") if self.compiled else nullcontext():
                yield states
        finally:
            handle.remove()

    def teacher_tensors(self, hidden_states: list[torch.Tensor], length: int) -> dict[str, torch.Tensor]:
        """
        What the loss needs of the teacher.

        Args:
            hidden_states (`list[torch.Tensor]`):
                Of the teacher pass.
            length (`int`):
                T.

        Returns:
            `dict[str, torch.Tensor]`: `teacher_hidden`, shape (B, T, H), or `teacher_top_logps` and
            `teacher_top_ids`, shape (B, T, K).
        """
        hidden = torch.cat([states[:, -length - 1 : -1] for states in hidden_states])
        head = Head.of(self.model, self.temperature)
        if self.top_k is not None:
            log_probs, ids = top_k_log_probs(hidden, head, self.top_k)
            return {"teacher_top_logps": log_probs, "teacher_top_ids": ids}
        if self.keep_head and self.model.training and head.weight.requires_grad:
            self.teacher_weight = head.weight.detach().clone()
        return {"teacher_hidden": hidden}

    def per_token(
        self,
        inputs: dict[str, torch.Tensor],
        student_logps: torch.Tensor,
        hidden_states: list[torch.Tensor],
        mask: torch.Tensor,
    ) -> torch.Tensor:
        """
        The divergence at each token.

        Args:
            inputs (`dict[str, torch.Tensor]`):
                The batch, with what `teacher_tensors` gave.
            student_logps (`torch.Tensor`):
                Student's log-probabilities of the sampled tokens, with gradient, shape (B, T).
            hidden_states (`list[torch.Tensor]`):
                Of the student's forward.
            mask (`torch.Tensor`):
                1 for the tokens that count, shape (B, T).

        Returns:
            `torch.Tensor`: divergence in nats, shape (B, T).
        """
        [states] = hidden_states
        hidden = states[:, -student_logps.size(1) - 1 : -1]
        head = Head.of(self.model, self.temperature)
        if self.top_k is None:
            weight = head.weight if self.teacher_weight is None else self.teacher_weight
            return full_divergence(self.name, hidden, inputs["teacher_hidden"], head, weight)
        teacher = inputs["teacher_top_logps"]
        student = log_probs_of(inputs["teacher_top_ids"], hidden, head, inputs["completion_ids"], student_logps)
        # where nothing was sampled there is no log-prob to start from
        student = torch.where(mask.bool().unsqueeze(-1), student, teacher)
        return top_k_divergence(self.name, student, teacher)

    def state_dict(self) -> dict[str, torch.Tensor | None]:
        """What a checkpoint in the middle of a generation batch keeps."""
        return {"teacher_weight": self.teacher_weight}

    def load_state_dict(self, state: dict[str, torch.Tensor | None]) -> None:
        """Go on from a checkpoint."""
        self.teacher_weight = state.get("teacher_weight")  # none where the divergence was another
