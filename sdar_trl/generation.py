"""`generate`, turn after turn: what the policy has read once is not read again.

Between two turns of an episode only an observation is added, but `model.generate` starts from nothing each time. Here
its cache of keys and values is kept for the rest of the rollout. Rows of a batch grow by different lengths, so before
each turn the kept columns are moved until every history ends at the right edge again (padding on the left alone, as if
the batch were new), and rows of finished episodes are dropped. A key's position is in its rotation, not in its column,
so moving it changes nothing. `generate` is then given the whole batch and the cache, and computes what is missing.
"""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from transformers import DynamicCache, GenerationConfig, LogitsProcessorList, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from trl.trainer.utils import pad

from .models import base_model, cache_obstacle
from .sampling import StreamSampling


logger = logging.getLogger(__name__)


ROOM = 128  # columns


class GrowingLayer(DynamicLayer):
    """Keys and values in buffers with room for tokens to come: one more token does not copy all before it."""

    _buffers: list[torch.Tensor]  # `keys` and `values` are the columns of these that are in use

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._buffers = [key_states[:, :, :0], value_states[:, :, :0]]
        old = self.get_seq_length()
        new = old + key_states.size(2)
        if self._buffers[0].size(2) < new:
            rows = key_states.size(0)
            self.move(list(range(rows)), [0] * rows, old, new + ROOM)
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, old:new] = states
        self.keys, self.values = (buffer[:, :, :new] for buffer in self._buffers)
        return self.keys, self.values

    def move(self, sources: list[int], shifts: list[int], width: int, capacity: int) -> None:
        """
        Row i becomes columns `shifts[i]` to `shifts[i] + width` of row `sources[i]`, in buffers of `capacity` columns.
        Columns that do not exist become zeros: they are padding, which the attention mask hides.
        """
        rows, _, columns, _ = self._buffers[0].shape
        if sources != list(range(rows)) or any(shifts) or capacity > columns:
            used = self.get_seq_length()
            self._buffers = [_moved(b[:, :, :used], sources, shifts, width, capacity) for b in self._buffers]
        self.keys, self.values = (buffer[:, :, :width] for buffer in self._buffers)


def _moved(states: torch.Tensor, sources: list[int], shifts: list[int], width: int, capacity: int) -> torch.Tensor:
    _, heads, columns, size = states.shape
    moved = states.new_zeros(len(sources), heads, capacity, size)
    for row, (source, shift) in enumerate(zip(sources, shifts, strict=True)):
        first = max(0, -shift)
        last = max(first, min(width, columns - shift))  # a short row may be padding alone
        moved[row, :, first:last] = states[source, :, first + shift : last + shift]
    return moved


class CachedGenerator:
    """
    Backend of one process: `model.generate`, keeping its cache from call to call.

    Rows find their history by their ids: a call whose rows begin as rows of the call before, in the same order, goes
    on from where they part. Any other call starts anew.

    Args:
        use_model (`Callable[[], AbstractContextManager[PreTrainedModel]]`):
            Entered for each call; gives the model, with all its weights.
        generation_config ([`~transformers.GenerationConfig`]):
            Sampling parameters, stop tokens, padding token.
        reuse_cache (`bool`, *optional*, defaults to `True`):
            If `False`, every call starts anew. Where [`reuse_obstacle`] finds one, it must be `False`.
        share_prompts (`bool`, *optional*, defaults to `True`):
            Read a prompt that several rows have once, before the first call. `False` where weights are gathered in
            each forward, since another process may have no such rows.
    """

    def __init__(
        self,
        use_model: Callable[[], AbstractContextManager[PreTrainedModel]],
        generation_config: GenerationConfig,
        reuse_cache: bool = True,
        share_prompts: bool = True,
    ):
        self.use_model = use_model
        self.generation_config = generation_config
        self.reuse_cache = reuse_cache
        self.share_prompts = share_prompts
        if reuse_cache:
            generation_config.use_cache = True  # else the model's own configuration decides
        self.end()

    def any_running(self, count: int) -> bool:
        return count > 0

    def end(self) -> None:
        """Forget everything: the weights are about to change, or memory is needed elsewhere."""
        self._cache: DynamicCache | None = None
        self._rows: list[list[int]] = []  # the ids of each row of the cache, its response included
        self._starts: list[int] = []  # column of each row's first token

    @torch.no_grad()
    def generate(self, ids: list[list[int]], seeds: list[list[int]] | None = None) -> tuple[list[list[int]], None]:
        """One response to each row of ids; no log-probs."""
        config: Any = self.generation_config
        with self.use_model() as model:
            input_ids, attention_mask = self._padded(ids, model.device)
            if self.reuse_cache and self.share_prompts and self._cache is None:
                self._read_prompts_once(model, ids)
            cache = self._continued_cache(model, ids) if self.reuse_cache else None
            self.end()  # should `generate` raise, half a cache must not stay
            width = input_ids.size(1)
            sampling = StreamSampling(seeds, config, width) if seeds is not None and config.do_sample else None
            output = model.generate(  # type: ignore[operator]
                input_ids=input_ids,
                attention_mask=attention_mask,
                past_key_values=cache,
                generation_config=config,
                logits_processor=None if sampling is None else LogitsProcessorList([sampling]),
            )
        responses = [_until_stop(row, config.eos_token_id) for row in output[:, width:].tolist()]
        if cache is not None:
            self._cache = cache
            self._rows = [row + response for row, response in zip(ids, responses, strict=True)]
            self._starts = [width - len(row) for row in ids]
        return responses, None

    def _read_prompts_once(self, model: PreTrainedModel, ids: list[list[int]]) -> None:
        """In the first turn, rows of a group have one prompt: its keys and values are computed once, then copied."""
        prompts = [list(prompt) for prompt in dict.fromkeys(map(tuple, ids))]
        if 2 * len(prompts) > len(ids):
            return
        cache = self._new_cache(model)
        input_ids, attention_mask = self._padded(prompts, model.device)
        position_ids = (attention_mask.cumsum(1) - 1).clamp(min=0)
        backbone: Any = base_model(model).base_model
        backbone(input_ids, attention_mask, position_ids=position_ids, past_key_values=cache, use_cache=True)
        self._cache, self._rows = cache, prompts
        self._starts = [input_ids.size(1) - len(prompt) for prompt in prompts]

    def _padded(self, ids: list[list[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids, padded on the left, and their attention mask."""
        return (
            pad([torch.tensor(row) for row in ids], self.generation_config.pad_token_id, "left").to(device),
            pad([torch.ones(len(row), dtype=torch.long) for row in ids], 0, "left").to(device),
        )

    @staticmethod
    def _new_cache(model: PreTrainedModel) -> DynamicCache:
        cache = DynamicCache(config=base_model(model).config)
        cache.layers = [GrowingLayer() for _ in cache.layers]
        return cache

    def _continued_cache(self, model: PreTrainedModel, ids: list[list[int]]) -> DynamicCache:
        """The cache for a batch of left-padded rows, filled up to where the first of them has something new."""
        cache = self._cache
        width = max(len(row) for row in ids)
        matches = [self._match(row) for row in ids] if cache is not None else []
        new = max((len(row) - known for row, (_, known) in zip(ids, matches, strict=False)), default=width)
        if cache is None or new >= width:
            return self._new_cache(model)
        # All rows compute their last `new` tokens. For the shorter observations that includes some known ones, in
        # place of padding.
        sources = [source for source, _ in matches]
        shifts = [self._starts[source] - (width - len(row)) for source, row in zip(sources, ids, strict=True)]
        layer: Any
        for layer in cache.layers:
            layer.move(sources, shifts, width - new, width + ROOM)
        return cache

    def _match(self, row: list[int]) -> tuple[int, int]:
        """The row of the cache that has most of this one's beginning, and how many tokens of it."""
        assert self._cache is not None
        columns = self._cache.get_seq_length()
        best, longest = 0, 0
        for index, cached in enumerate(self._rows):
            if longest > 0 and row[:longest] != cached[:longest]:
                continue
            common = _common_prefix(row, cached)
            # The last token sampled for a row has no column if the batch ended with it.
            common = min(common, columns - self._starts[index], len(row) - 1)
            if common > longest:
                best, longest = index, common
        return best, longest


def _common_prefix(left: list[int], right: list[int]) -> int:
    """How many ids two rows begin with alike."""
    limit = min(len(left), len(right))
    if left[:limit] == right[:limit]:
        return limit
    return next(index for index in range(limit) if left[index] != right[index])


def _until_stop(ids: list[int], stop_ids: list[int]) -> list[int]:
    """The sampled ids up to their first stop token; what follows is padding."""
    end = next((index for index, token in enumerate(ids) if token in stop_ids), len(ids) - 1)
    return ids[: end + 1]


def reuse_obstacle(model: Any, generation_config: GenerationConfig) -> str | None:
    """
    Why the cache cannot be kept between turns.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The policy.
        generation_config ([`~transformers.GenerationConfig`]):
            How it generates.

    Returns:
        `str` or `None`: the reason, `None` if nothing is in the way.
    """
    obstacle = cache_obstacle(model)
    if obstacle is not None:
        return obstacle
    base = base_model(model)
    # `generate` takes what is not given from the model's own configuration
    implementation = generation_config.cache_implementation or base.generation_config.cache_implementation
    if implementation is not None:
        return f"`cache_implementation` is {implementation!r}"
    if generation_config.use_cache is False or (generation_config.num_beams or 1) > 1:
        return "generation without cache or with beams is asked for"
    return None


def can_reuse_cache(model: Any, generation_config: GenerationConfig) -> bool:
    """Whether the cache can be kept between turns; if not, a warning says why."""
    obstacle = reuse_obstacle(model, generation_config)
    if obstacle is not None:
        logger.warning("The history is prefilled again in every turn: %s.", obstacle)
    return obstacle is None
