"""What all environments share."""

import functools
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from .catalogue import Product
from .goals import Goal
from .nouns import LIGHT, NounTagger
from .search import SearchEngine


T = TypeVar("T")


@dataclass(frozen=True)
class Shop:
    """
    A catalogue with its search engine and its goals, shared by all environments.

    Args:
        products (`Sequence[Product]`): The catalogue.
        engine ([`SearchEngine`]): Its search.
        goals (`Sequence[Goal]`): Its goals, in the order that splits are cut from.
        name (`str`, *optional*): Tells it, and its goals, from others.
        tagger ([`NounTagger`], *optional*): What finds the nouns in titles, for the reward.
    """

    products: Sequence[Product]
    engine: SearchEngine
    goals: Sequence[Goal]
    name: str = ""
    tagger: NounTagger = LIGHT


def shared(make: Callable[..., T]) -> Callable[..., T]:
    """Keep what a function made last, by its arguments. Of several threads that ask, one makes it, and all get it."""
    remembered, making = functools.lru_cache(maxsize=4)(make), threading.Lock()

    @functools.wraps(make)
    def asked(*args: Hashable) -> T:
        with making:
            return remembered(*args)

    return asked
