"""Sampling in which each row draws from a stream of its own, whatever rows it is generated beside."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


class StreamSampling(LogitsProcessor):
    """
    Picks each row's next token by that row's own numbers: the token at which the cumulated probability passes the next
    of them (inverse transform). The distribution is that of plain sampling; here a row's tokens do not depend on which
    rows are beside it, nor on the machine's random numbers. What is left of the scores is the token that was picked.

    Args:
        seeds (`list[list[int]]`):
            The seed of each row, in as many numbers as it has parts.
        config ([`~transformers.GenerationConfig`]):
            Temperature, top-k, top-p and min-p; `max_new_tokens`.
        start (`int`):
            Number of columns before the first new one.
    """

    def __init__(self, seeds: Sequence[Sequence[int]], config: GenerationConfig, start: int):
        limit: Any = config.max_new_tokens
        self.numbers = torch.tensor(np.stack([np.random.default_rng(seed).random(limit) for seed in seeds]))
        self.start = start
        self.warpers = LogitsProcessorList(
            kind(value)
            for kind, value, neutral in (
                (TemperatureLogitsWarper, config.temperature, 1.0),
                (TopKLogitsWarper, config.top_k, 0),
                (TopPLogitsWarper, config.top_p, 1.0),
                (MinPLogitsWarper, config.min_p, 0.0),
            )
            if value is not None and value != neutral
        )

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Scores (B, V) that leave one token of each row."""
        cumulated = self.warpers(input_ids, scores).double().softmax(-1).cumsum(-1)
        number = self.numbers[:, input_ids.size(1) - self.start, None].to(scores.device)
        # the sum may end just below 1, and a number of 0 must not pick a token without probability
        picked = torch.searchsorted(cumulated, number * cumulated[:, -1:], right=True)
        return torch.full_like(scores, -torch.inf).scatter(1, picked.clamp(max=scores.size(1) - 1), 0.0)
