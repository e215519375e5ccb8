"""Log-probs of sampled tokens, without the work that nobody looks at.

TRL pads every row to the longest of the batch, on both sides, and turns every position into logits. In rows of several
turns most of that is padding and the environment's text. Here rows of like length go through together, each moved to
the left, so that causal attention needs no mask; without gradient, a prompt that several rows share is read once; and
only the hidden states from which a sampled token is predicted reach the output layer.

Shapes: B rows, T completion tokens; R rows of a part, W tokens of the longest; N sampled tokens, H hidden size.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutput

from .loops import LoopsGRPOTrainer
from .models import base_model, cache_obstacle, is_sharded, learns_prompt


PART_ROWS = 8  # that go through at once: enough to keep a machine busy, few enough to be of like length
SHARED_COST = 0.95  # prompts are shared if that costs at most this part: two forwards are a little dearer than one


@dataclass
class Scored:
    """
    What a forward found.

    Attributes:
        logps (`torch.Tensor`):
            Log-probs of the sampled tokens, nats, shape (B, T).
        entropies (`torch.Tensor`, *optional*):
            Entropies there, nats, shape (B, T).
        aux_loss (`torch.Tensor`, *optional*):
            A mixture of experts' own loss.
        hidden_states (`torch.Tensor`, *optional*):
            The last hidden states from which the sampled tokens are predicted, row after row, shape (N, H); where a
            divergence over the vocabulary needs them.
    """

    logps: torch.Tensor
    entropies: torch.Tensor | None = None
    aux_loss: torch.Tensor | None = None
    hidden_states: torch.Tensor | None = None


@dataclass(frozen=True)
class Part:
    """
    Some rows of a batch, moved to the left and as wide as the longest of them.

    Attributes:
        rows (`torch.Tensor`):
            Which they are, shape (R,).
        input_ids (`torch.Tensor`):
            Their tokens, padded on the right, shape (R, W).
        attention_mask (`torch.Tensor`):
            1 for tokens, shape (R, W).
        sampled (`torch.Tensor`):
            True where a token was sampled, shape (R, W).
        shared (`int`):
            First tokens that are the same in all of them and are read once.
    """

    rows: torch.Tensor
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    sampled: torch.Tensor
    shared: int = 0

    def cost(self, hidden_size: int) -> float:
        """
        What a forward costs, in tokens that attend to nothing: those take 24 H^2 operations a layer, and a pair of
        tokens in attention 4 H. Causal attention skips half of the pairs, but not where it reads a cache.
        """
        rows, width = self.input_ids.shape
        own = width - self.shared
        pairs = self.shared**2 / 2 + rows * own * width if self.shared else rows * width**2 / 2
        return self.shared + rows * own + pairs / (6 * hidden_size)

    def hidden_states(self, forward: Callable, **kwargs: Any) -> torch.Tensor:
        """Hidden states from which the sampled tokens are predicted, shape (N, H)."""
        if self.shared:
            cache = DynamicCache()
            forward(
                input_ids=self.input_ids[:1, : self.shared], past_key_values=cache, **{**kwargs, "use_cache": True}
            )
            cache.batch_repeat_interleave(len(self.rows))
            kwargs["past_key_values"] = cache
        states = forward(input_ids=self.input_ids[:, self.shared :], **kwargs).last_hidden_state
        return states[:, :-1][self.sampled[:, self.shared + 1 :]]


def split_rows(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    sampled: torch.Tensor,
    size: int,
    hidden_size: int | None = None,
) -> list[Part]:
    """
    A batch in parts.

    Args:
        input_ids (`torch.Tensor`):
            Tokens, padded on both sides, shape (B, P + T).
        attention_mask (`torch.Tensor`):
            1 for tokens, shape (B, P + T).
        sampled (`torch.Tensor`):
            True where a token was sampled, shape (B, T).
        size (`int`):
            Most rows of a part.
        hidden_size (`int`, *optional*):
            The model's, if prompts may be shared: they are, where that is cheaper. If `None`, the number of parts
            depends on the number of rows alone.

    Returns:
        `list[Part]`: the parts, which have each row once.
    """
    present = attention_mask.bool()
    of_row = torch.zeros_like(present)
    of_row[:, -sampled.size(1) :] = sampled
    to_left = present.logical_not().long().argsort(dim=1, stable=True)
    lengths = present.sum(1)
    by_length = lengths.argsort(stable=True)

    def part(rows: torch.Tensor, shared: int = 0) -> Part:
        columns = to_left[rows, : int(lengths[rows].max())]
        ids, mask, chosen = (tensor[rows].gather(1, columns) for tensor in (input_ids, present, of_row))
        return Part(rows, ids, mask.to(attention_mask), chosen & mask, shared)

    parts = [part(rows) for rows in by_length.split(size)]
    if hidden_size is None:
        return parts
    prompts: dict[bytes, list[int]] = {}
    prompt_ids = input_ids.masked_fill(~present, -1)[:, : -sampled.size(1)].cpu().numpy()
    for row in by_length.tolist():
        prompts.setdefault(prompt_ids[row].tobytes(), []).append(row)
    prompt_lengths = present[:, : -sampled.size(1)].sum(1).tolist()
    sharing = [
        # the last token of the prompt is the first that something is predicted from
        part(rows, prompt_lengths[int(rows[0])] - 1 if len(rows) > 1 else 0)
        for group in prompts.values()
        for rows in torch.tensor(group, device=input_ids.device).split(size)
    ]
    shared, whole = (sum(part.cost(hidden_size) for part in some) for some in (sharing, parts))
    return sharing if shared < SHARED_COST * whole else parts


@contextmanager
def backbone_in_parts(backbone: Any, parts: list[Part]) -> Iterator[list[torch.Tensor]]:
    """
    Inside, a model's forward reads parts, one after the other, instead of its batch. There is still one call of the
    model, as wrappers for several processes count them, and one of its output layer.

    Args:
        backbone (`torch.nn.Module`):
            What computes hidden states: a causal language model's `base_model`.
        parts (`list[Part]`):
            The parts.

    Yields:
        `list[torch.Tensor]`: the hidden states of each call, shape (N, H).
    """
    forward, own = backbone.forward, "forward" in vars(backbone)
    found: list[torch.Tensor] = []

    def in_parts(input_ids: Any, attention_mask: Any = None, output_router_logits: bool = False, **kwargs: Any) -> Any:
        if output_router_logits:  # a mixture of experts' own loss is one of the whole batch
            [part] = parts
            output = forward(part.input_ids, attention_mask, output_router_logits=True, **kwargs)
            found.append(output.last_hidden_state[:, :-1][part.sampled[:, 1:]])
            return type(output)(last_hidden_state=found[-1].unsqueeze(0), router_logits=output.router_logits)
        found.append(torch.cat([part.hidden_states(forward, **kwargs) for part in parts]))
        return BaseModelOutput(last_hidden_state=found[-1].unsqueeze(0))

    backbone.forward = in_parts
    try:
        yield found
    finally:
        backbone.forward = forward
        if not own:
            del backbone.forward


class ScoringGRPOTrainer(LoopsGRPOTrainer):
    """[`~trl.GRPOTrainer`] whose forwards, all of them, leave out what nobody looks at (`lean_forward`)."""

    # 1 for the tokens that are scored, shape (B, T); all of a completion if `None`
    _sampled: torch.Tensor | None = None
    _scored: list[Scored] | None = None

    needs_hidden_states = False
    """Whether hidden states are among what is found."""

    @contextmanager
    def _scoring(self, sampled: torch.Tensor | None) -> Iterator[list[Scored]]:
        """Inside, forwards score the tokens where `sampled`, shape (B, T), is 1. Yields what they find."""
        outside = self._sampled, self._scored
        self._sampled, self._scored = sampled, []
        try:
            yield self._scored
        finally:
            self._sampled, self._scored = outside

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **images: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        sampled = attention_mask[:, -logits_to_keep:].bool()
        if self._sampled is not None:
            sampled &= self._sampled.bool()
        unwrapped = self.accelerator.unwrap_model(model)
        # compiled code looks for no hooks, and one model's is used for another
        eager = self.args.torch_compile and self.needs_hidden_states
        lean = self.args.lean_forward and not learns_prompt(unwrapped) and (eager or not self.args.torch_compile)
        score = self._score_in_parts if lean else self._score_as_trl
        with torch.compiler.set_stance("force_eager") if eager else nullcontext():
            scored = score(
                *(model, base_model(unwrapped), input_ids, attention_mask, sampled),
                *(batch_size, compute_entropy, compute_aux_loss),
            )
        if self._scored is not None:
            self._scored.append(scored)
        return scored.logps, scored.entropies, scored.aux_loss

    def _score_as_trl(
        self,
        model: Any,
        base: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        sampled: torch.Tensor,
        *options: Any,
    ) -> Scored:
        length = sampled.size(1)
        score = functools.partial(
            super()._get_per_token_logps_and_entropies, model, input_ids, attention_mask, length, *options
        )
        if not self.needs_hidden_states:
            return Scored(*score())
        states: list[torch.Tensor] = []
        handle = base.base_model.register_forward_hook(
            lambda module, args, output: states.append(output.last_hidden_state)
        )
        try:
            logps, entropies, aux_loss = score()
        finally:
            handle.remove()
        return Scored(logps, entropies, aux_loss, torch.cat(states)[:, -length - 1 : -1][sampled])

    def _score_in_parts(
        self,
        model: Any,
        base: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        sampled: torch.Tensor,
        batch_size: int | None,
        compute_entropy: bool,
        compute_aux_loss: bool,
    ) -> Scored:
        size = len(input_ids) if compute_aux_loss else min(batch_size or PART_ROWS, PART_ROWS)
        share = not (torch.is_grad_enabled() or is_sharded(self) or compute_aux_loss or cache_obstacle(base))
        hidden_size = base.config.get_text_config().hidden_size if share else None
        parts = split_rows(input_ids, attention_mask, sampled, size, hidden_size)
        labels = torch.cat([part.input_ids[part.sampled] for part in parts])
        with self.accelerator.autocast(), backbone_in_parts(base.base_model, parts) as states:
            output = model(
                input_ids=input_ids,
                shift_labels=labels.unsqueeze(0),
                fused_lm_head=True,
                output_router_logits=compute_aux_loss,
                attention_mask=parts[0].attention_mask if compute_aux_loss else None,
            )
        order = torch.cat([part.rows for part in parts])
        in_order, back = sampled[order], order.argsort()

        def placed(values: torch.Tensor) -> torch.Tensor:
            """Values of the parts' tokens, shape (N,), where they belong, shape (B, T)."""
            return values.new_zeros(in_order.shape).masked_scatter(in_order, values)[back]

        hidden = None
        if self.needs_hidden_states:
            hidden = states[0][placed(torch.arange(len(labels), device=labels.device))[sampled]]
        return Scored(
            placed(output.log_probs[0]),
            placed(output.entropy[0]) if compute_entropy else None,
            output.aux_loss if compute_aux_loss else None,
            hidden,
        )
