"""Which options of [`SDARConfig`] go together."""

from collections.abc import Mapping
from typing import Any

from .vocabulary import FULL_DIVERGENCES


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
