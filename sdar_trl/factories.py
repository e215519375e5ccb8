"""What environment factories make, and what its episodes pay."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from .environment_checks import check_factories
from .envs.workers import close_worker, shown_kind
from .episodes import Episode, StopReason


def _made_by(factory: Any) -> type:
    """The class of what a factory makes; one that does not show it is tried out."""
    kind = shown_kind(factory)
    if inspect.isclass(kind):
        return kind
    try:
        inspect.signature(factory).bind()
    except TypeError as error:
        raise ValueError(
            f"`environment_factory` is called without arguments, and {factory!r} takes some: {error}. What differs "
            "between tasks is given to `reset`; for what does not, pass a `functools.partial`."
        ) from None
    made = factory()
    if hasattr(made, "close"):
        close_worker(made)
    return type(made)


def environment_kinds(environment_factory: Any) -> dict[str | None, type]:
    """
    What environments a run has.

    Args:
        environment_factory (`Callable` or `dict[str, Callable]`, *optional*):
            Makes environments.

    Returns:
        `dict[str, type]`: their classes by name, a single one's under `None`. Those with a `step` method are played by
        the text-action loop; the others are TRL's own kind, whose methods are tools.

    Raises:
        `ValueError`: if there are both kinds, or what is given makes no environments.
    """
    if environment_factory is None:
        return {}
    check_factories(environment_factory)
    factories = environment_factory if isinstance(environment_factory, Mapping) else {None: environment_factory}
    kinds = {name: _made_by(factory) for name, factory in factories.items()}
    loops = {name: "text" if hasattr(kind, "step") else "tools" for name, kind in kinds.items()}
    if len(set(loops.values())) > 1:
        raise ValueError(
            f"Environments with a `step` method and tool environments cannot be mixed in one run; got {loops}."
        )
    return kinds


def return_reward(kinds: Mapping[str | None, type], penalty: float) -> Callable[..., list[float | None]]:
    """
    The episodes' returns as a reward function.

    Args:
        kinds (`dict[str, type]`):
            What [`environment_kinds`] found; a single class gives the function its name, as in TRL.
        penalty (`float`):
            Subtracted for every invalid action.

    Returns:
        `Callable`: the function. It gives `None` where the environment raised, which takes the episode out of its
        group's baseline.
    """

    def reward(episode: list[Episode], **_: Any) -> list[float | None]:
        return [
            None if one.stop_reason is StopReason.ENV_ERROR else one.episode_return - penalty * one.invalid_actions
            for one in episode
        ]

    reward.__name__ = kinds[None].__name__ if None in kinds else "environment_reward"
    return reward
