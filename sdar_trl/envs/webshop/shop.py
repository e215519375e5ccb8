"""What all environments share."""

from collections.abc import Sequence
from dataclasses import dataclass

from .catalogue import Product
from .goals import Goal
from .nouns import LIGHT, NounTagger
from .search import SearchEngine


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
