"""Which values of [`SDARConfig`] make sense, and which options go together."""

from collections.abc import Mapping
from typing import Any

from .vocabulary import FULL_DIVERGENCES


NOT_NEGATIVE = (
    *("sdar_coef", "policy_coef", "step_coef", "step_discount", "advantage_clip", "gate_beta"),
    *("contrast_coef", "ucb_c", "invalid_action_penalty"),
)
COUNTS = (
    *("max_turns", "max_response_length", "history_window", "schedule_steps", "divergence_top_k"),
    *("skills_top_k", "max_context_tokens", "max_cache_tokens", "save_episodes_every"),
)


def check_types(args: Any, types: Mapping[str, Any]) -> None:
    """
    Refuse values of another type than their option's: `"0.01"` for a number, or `None` where there must be one.

    Args:
        args ([`SDARConfig`]):
            The configuration.
        types (`dict[str, type]`):
            What each option is.

    Raises:
        `ValueError`: if one is not.
    """
    for name, kind in types.items():
        value = getattr(args, name)
        if not isinstance(value, int | float if kind is float else kind):
            expected = getattr(kind, "__name__", str(kind))
            raise ValueError(f"`{name}` must be of type {expected}, got {value!r} ({type(value).__name__}).")


def check_numbers(args: Any) -> None:
    """
    Refuse numbers that mean nothing by themselves.

    Args:
        args ([`SDARConfig`]):
            The configuration.

    Raises:
        `ValueError`: if one is too small; it says which.
    """
    for name in NOT_NEGATIVE:
        if getattr(args, name) < 0:
            raise ValueError(f"`{name}` must not be negative, got {getattr(args, name)}.")
    for name in COUNTS:
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f"`{name}` must be at least 1, got {getattr(args, name)}.")


def check_combinations(args: Any) -> None:
    """
    Refuse options that do not go together.

    Args:
        args ([`SDARConfig`]):
            The configuration, each of whose values is good by itself.

    Raises:
        `ValueError`: if some do not; it says which, and what to do.
    """
    if args.signal == "advantage":
        if args.gate != "none" or args.divergence in FULL_DIVERGENCES:
            raise ValueError(
                f"`signal='advantage'` moves advantages by the gap alone; got gate={args.gate!r} and "
                f"divergence={args.divergence!r}. Set `gate='none'` and a sampled divergence, or `signal='loss'`."
            )
        if args.policy_coef == 0 and args.sdar_coef > 0:
            raise ValueError("`signal='advantage'` works through the policy loss; set `policy_coef` above 0.")
        if args.sdar_coef > 1 or args.advantage_clip > 1:
            raise ValueError(
                "With `signal='advantage'`, `sdar_coef` and `advantage_clip` lie in [0, 1], lest advantages "
                f"change their sign; got {args.sdar_coef} and {args.advantage_clip}."
            )
    if args.teacher_weights != "live" and args.divergence in FULL_DIVERGENCES:
        raise ValueError(
            f"`teacher_weights={args.teacher_weights!r}` has an output layer of its own, and a divergence over the "
            f"vocabulary is computed with the policy's; got {args.divergence!r}. Use a sampled one."
        )
    if args.teacher_weights in ("base", "ema") and (args.teacher_weights == "ema") != args.sync_ref_model:
        raise ValueError(
            "`teacher_weights='ema'` is the reference model as TRL's `sync_ref_model` moves it, `'base'` as it was "
            f"loaded; got {args.teacher_weights!r} with sync_ref_model={args.sync_ref_model}. For an average, set "
            "`sync_ref_model=True`, `ref_model_sync_steps=1` and `ref_model_mixup_alpha`, one minus its decay."
        )
    if args.step_coef > 0 and (args.policy_coef == 0 or args.step_discount > 1):
        raise ValueError(
            "`step_coef` moves the advantages of the policy loss, by discounted returns: it needs `policy_coef` above "
            f"0 and a `step_discount` of at most 1, got {args.policy_coef} and {args.step_discount}."
        )
    if args.log_grad_share and args.signal == "advantage":
        raise ValueError("`log_grad_share` compares two losses; with `signal='advantage'` there is one.")
    if args.divergence_top_k is not None and args.divergence not in FULL_DIVERGENCES:
        raise ValueError(
            f"`divergence_top_k` reduces a divergence over the whole vocabulary; got {args.divergence!r}, "
            f"expected one of {', '.join(FULL_DIVERGENCES)}."
        )
    if args.student_skills in ("train", "always") and args.sdar_coef > 0:
        raise ValueError(
            "The teacher differs from the student by the skills it reads, so the student cannot read them in "
            f"training as well; got student_skills={args.student_skills!r} with sdar_coef={args.sdar_coef}. Set "
            "one of them to 'never' or 0."
        )
    if args.temperature <= 0:
        raise ValueError(
            f"`temperature` must be above 0, got {args.temperature}: the episodes of a group would all be the same. "
            "(`evaluate_trainer` takes 0.)"
        )
    if args.retriever == "embedding" and args.embedding_model is None:
        raise ValueError("`retriever='embedding'` needs `embedding_model`, a hub id or a folder.")
    if args.remove_unused_columns:
        raise ValueError(
            "`remove_unused_columns` must stay False: environments and skills need the dataset's other columns."
        )
