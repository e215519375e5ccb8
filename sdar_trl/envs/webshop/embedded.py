"""The shop that comes with the package."""

import random
from functools import lru_cache

from .catalogue import build_products
from .generate import generate_records
from .goals import shuffled, synthetic_goals
from .search import SearchEngine, build_index
from .shop import Shop


@lru_cache(maxsize=1)
def embedded_shop() -> Shop:
    """The one instance of it."""
    items, instructions = generate_records()
    products = build_products(items, instructions, random.Random(0))
    engine = SearchEngine(products, build_index(products))
    return Shop(products, engine, shuffled(synthetic_goals(products, random.Random(0))))
