"""What samples the responses of a rollout: a trainer's model by `generate`, or an engine of TRL's."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from accelerate.utils import gather_object
from transformers import PreTrainedModel
from trl.models.utils import unwrap_model_for_generation

from .engine import EngineBackend
from .generation import CachedGenerator, can_reuse_cache
from .models import is_sharded


if TYPE_CHECKING:
    from trl import GRPOTrainer


class Backend(Protocol):
    """What samples the responses of a [`~sdar_trl.rollout.Rollout`], turn by turn."""

    def generate(
        self, ids: list[list[int]], seeds: list[list[int]] | None = None
    ) -> tuple[list[list[int]], list[list[float]] | None]:
        """
        One response to each row of ids, and their log-probs (nats) if the backend gives them. Also called with no
        rows, where another process is still playing. With seeds (numbers of which each is a part), a row's response
        follows from its ids and its seed alone, where the backend can do that; others may take the ids only.
        """
        ...

    def any_running(self, count: int) -> bool:
        """Given the number of episodes this process still plays, whether any process still plays one."""
        ...

    def end(self) -> None:
        """The rollout has ended, perhaps by an exception."""
        ...


@runtime_checkable
class StreamingBackend(Protocol):
    """What samples the responses of a [`~sdar_trl.rollout.Rollout`], each as soon as it is asked for."""

    def begin(self) -> None:
        """A rollout begins, on every process."""
        ...

    def submit(self, key: Any, ids: list[int], seed: Sequence[int]) -> None:
        """Ask for the response to a row of ids. It follows from these and the seed alone."""
        ...

    def collect(self) -> Sequence[tuple[Any, list[int], list[float] | None]]:
        """Go on a little with what was asked for; key, ids and log-probs (nats) of what is finished."""
        ...

    def end(self) -> None:
        """The rollout has ended, perhaps by an exception."""
        ...


@contextmanager
def unwrapped_policy(trainer: "GRPOTrainer") -> Iterator[PreTrainedModel]:
    """A trainer's model as TRL's own `generate` path has it: unwrapped, sharded weights gathered, gradient
    checkpointing off."""
    args: Any = trainer.args
    with (
        unwrap_model_for_generation(
            trainer.model_wrapped,
            trainer.accelerator,
            gather_deepspeed3_params=args.ds3_gather_for_generation,
            generation_kwargs=trainer.generation_kwargs,
            gradient_checkpointing_kwargs=args.gradient_checkpointing_kwargs,
        ) as model,
        torch.no_grad(),
        trainer._dist.summon_full_params(trainer.model_wrapped, recurse=False),
    ):
        yield model


class TrainerBackend:
    """
    Backend of a trainer's process: its model by `generate` with the cache kept, or whatever TRL is configured with.

    Args:
        trainer ([`~trl.GRPOTrainer`]):
            The trainer.
        cached ([`CachedGenerator`], *optional*):
            Generates, where it is used.
    """

    def __init__(self, trainer: "GRPOTrainer", cached: CachedGenerator | None):
        self.trainer: Any = trainer
        self.cached = cached

    def generate(
        self, ids: list[list[int]], seeds: list[list[int]] | None = None
    ) -> tuple[list[list[int]], list[list[float]] | None]:
        trainer = self.trainer
        if not ids and not is_sharded(trainer) and not trainer.use_vllm:
            return [], None
        # With sharded weights or an engine, a process whose episodes have ended keeps generating with the others.
        filler = [trainer._tokenizer.eos_token_id]
        seeds = [[0]] if not ids and seeds is not None else seeds
        ids = ids or [filler]
        if self.cached is not None:
            return self.cached.generate(ids, seeds)
        if seeds is not None and not trainer.use_vllm and not trainer.use_transformers_continuous_batching:
            config = trainer.generation_config
            return CachedGenerator(lambda: unwrapped_policy(trainer), config, reuse_cache=False).generate(ids, seeds)
        if trainer.use_vllm:  # TRL deals the responses out in equal shares
            ids = ids + [filler] * (max(gather_object([len(ids)])) - len(ids))
        training = trainer.model.training
        output = trainer._generate_single_turn(ids, None, {}, 1)
        trainer.model.train(training)  # after continuous batching, TRL leaves it in training
        return output

    def any_running(self, count: int) -> bool:
        accelerator = self.trainer.accelerator
        return bool(accelerator.reduce(torch.tensor(count, device=accelerator.device), reduction="sum") > 0)

    def end(self) -> None:
        if self.cached is not None:
            self.cached.end()


def trainer_backend(
    trainer: "GRPOTrainer", response_length: int, end_of_turn_id: int
) -> TrainerBackend | StreamingBackend:
    """
    Set up a trainer's generation for the turns of episodes.

    Args:
        trainer ([`~trl.GRPOTrainer`]):
            The trainer, with `reuse_cache` among its arguments.
        response_length (`int`):
            Most tokens of a response.
        end_of_turn_id (`int`):
            The template's; it stops a response, though the tokenizer's end may be another (a base model's, where a
            chat template was added).

    Returns:
        [`TrainerBackend`], or [`~sdar_trl.engine.EngineBackend`] where each process has an engine: the backend.
    """
    args: Any = trainer.args
    unknown_end = end_of_turn_id not in trainer.eos_token_ids
    if unknown_end:
        trainer.eos_token_ids = [*trainer.eos_token_ids, end_of_turn_id]
    if trainer.use_vllm:
        engine: Any = trainer.vllm_generation
        engine.max_completion_length = response_length
        if unknown_end:
            engine.generation_kwargs = {"stop_token_ids": trainer.eos_token_ids, **engine.generation_kwargs}
        alone = trainer.vllm_mode == "colocate" and args.vllm_tensor_parallel_size == 1
        if alone:
            return EngineBackend(trainer)
        return TrainerBackend(trainer, None)
    config: Any = trainer.generation_config
    config.max_new_tokens = response_length
    if unknown_end:
        config.eos_token_id = trainer.eos_token_ids
    cached = None
    if (
        args.reuse_cache
        and not trainer.use_transformers_continuous_batching
        and can_reuse_cache(trainer.model, config)
    ):
        cached = CachedGenerator(lambda: unwrapped_policy(trainer), config, share_prompts=not is_sharded(trainer))
    return TrainerBackend(trainer, cached)
