"""What a model is beneath its wrappers, and what may be done with it."""

from typing import Any

from accelerate.utils import is_peft_model
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled


def base_model(model: Any) -> Any:
    """A model without its adapter's wrapper."""
    return model.get_base_model() if is_peft_model(model) else model


def learns_prompt(model: Any) -> bool:
    """Whether an adapter puts a learned prompt in front of what is read."""
    return is_peft_model(model) and model.active_peft_config.is_prompt_learning


def is_sharded(trainer: Any) -> bool:
    """Whether weights are gathered in each forward, so that all processes must do as many."""
    return is_deepspeed_zero3_enabled() or trainer.is_fsdp_enabled


def cache_obstacle(model: Any) -> str | None:
    """
    Why a model's cache cannot be shared by rows, or moved.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The policy.

    Returns:
        `str` or `None`: the reason, `None` if nothing is in the way.
    """
    base = base_model(model)
    if learns_prompt(model):
        return "the adapter puts a learned prompt into the cache"
    if not base._supports_default_dynamic_cache() or base.config.is_encoder_decoder:
        return "the model has a cache of its own kind"
    # Sliding windows forget columns that a move would need; the state of a linear attention has none.
    if any(type(layer) is not DynamicLayer for layer in DynamicCache(config=base.config).layers):
        return "the model has layers that do not attend to the whole history (sliding window, linear attention)"
    rope = getattr(base.config.get_text_config(), "rope_parameters", None) or {}
    kinds = {part.get("rope_type") for part in (rope, *rope.values()) if isinstance(part, dict)}
    if kinds & {"dynamic", "longrope"}:
        return "the rotation of keys changes with the length of the history"
    return None
