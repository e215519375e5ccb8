"""What a model is beneath its wrappers, what may be done with it, and a second one beside it."""

from typing import Any

from accelerate.utils import is_peft_model
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.utils import find_adapter_config_file
from trl.models.utils import prepare_deepspeed, prepare_fsdp
from trl.trainer.utils import add_fused_lm_head, create_model_from_path

from .policies import policy_path


TEACHER_ADAPTER = "teacher"
"""Name of the adapter that [`load_teacher`] puts beside the policy's."""


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


def load_teacher(trainer: Any, name: str) -> Any:
    """
    Load a teacher with weights of its own, as TRL loads a reference model: it is not trained, nor in checkpoints.

    Args:
        trainer ([`SDARTrainer`]):
            The trainer, with what TRL has loaded.
        name (`str`):
            Name or path of a model, or of an adapter, which is loaded beside the policy's and shares its base.

    Returns:
        [`~transformers.PreTrainedModel`] or `None`: the model; `None` if it is an adapter, [`TEACHER_ADAPTER`].

    Raises:
        `ValueError`: if there is nothing of that name, if the model does not know all tokens of the policy, or if it
            is an adapter and the policy has none.
    """
    args, policy, name = trainer.args, trainer.model, policy_path(name)
    if find_adapter_config_file(name) is not None:
        if not is_peft_model(policy):
            raise ValueError(
                f"`teacher_weights` is {name!r}, an adapter, and the policy is trained without one, so they share no "
                "base. Merge it into a model, or train an adapter."
            )
        policy.load_adapter(name, adapter_name=TEACHER_ADAPTER, is_trainable=False)
        return None
    kwargs = {"dtype": policy.dtype, "trust_remote_code": args.trust_remote_code, **(args.model_init_kwargs or {})}
    if args.distributed_state.distributed_type in ("MULTI_GPU", "DEEPSPEED"):
        kwargs["device_map"] = None
    try:
        model = create_model_from_path(name, **kwargs)
    except OSError as error:
        raise ValueError(
            f"`teacher_weights` is 'live', 'base', 'ema', or a model's or adapter's name or path; got {name!r}."
        ) from error
    known, needed = model.config.get_text_config().vocab_size, len(trainer._tokenizer)
    if known < needed:
        raise ValueError(
            f"`teacher_weights` is {name!r}, a model of {known} tokens, and the policy's tokenizer has {needed}. The "
            "teacher reads the policy's tokens, so it must be of the same family."
        )
    add_fused_lm_head(model, temperature=trainer.temperature, cast_lm_head_to_fp32=args.cast_lm_head_to_fp32)
    if trainer.is_deepspeed_enabled:
        return prepare_deepspeed(model, trainer.accelerator)
    if trainer.is_fsdp_enabled:
        return prepare_fsdp(model, trainer.accelerator)
    return trainer.accelerator.prepare_model(model, evaluation_mode=True)
