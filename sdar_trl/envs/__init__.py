"""Text environments, and the worlds that they belong to. They know neither torch nor TRL."""

from typing import TYPE_CHECKING, Any

from .base import Step, TextEnv, parse_tag
from .check import check_env
from .worlds import World, import_for, load_world, world_class


if TYPE_CHECKING:
    from .alfworld import AlfWorldEnv as AlfWorldEnv
    from .search_qa import SearchEnv
    from .webshop import WebShopEnv

__all__ = [
    "SearchEnv",
    "Step",
    "TextEnv",
    "WebShopEnv",
    "World",
    "check_env",
    "load_world",
    "parse_tag",
    "world_class",
]

# by name, the world of each; one that needs packages of its own is no part of `*`
_ENVIRONMENTS = {"AlfWorldEnv": "alfworld", "SearchEnv": "search_qa", "WebShopEnv": "webshop"}


# Loaded when asked for: no environment pays for another's packages.
def __getattr__(name: str) -> Any:
    if name not in _ENVIRONMENTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_for(_ENVIRONMENTS[name], f"{__name__}.{_ENVIRONMENTS[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "AlfWorldEnv"]
