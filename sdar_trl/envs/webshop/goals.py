"""Goals: what a task asks for, and the splits."""

import itertools
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from .catalogue import Product


SPLITS = {"test": (0, 500), "validation": (500, 1500), "train": (1500, None)}
PRICE_STEPS = [10.0 * step for step in range(1, 100)]


@dataclass(frozen=True, slots=True)
class Goal:
    """
    What a task asks for.

    Args:
        asin (`str`): Product it was made from.
        instruction (`str`): What the agent is told.
        attributes (`tuple[str, ...]`): Attributes asked for.
        options (`dict[str, str]`): Option values asked for.
        price_upper (`float`): Highest price allowed.
        name (`str`): Title of its product.
        category (`str`): Broad category of its product.
        query (`str`): Query of its product.
        product_category (`str`): Path of categories of its product.
        weight (`float`): The rarer its attributes, the heavier.
    """

    asin: str
    instruction: str
    attributes: tuple[str, ...]
    options: dict[str, str]
    price_upper: float
    name: str
    category: str
    query: str
    product_category: str
    weight: float


def synthetic_goals(products: Sequence[Product], rng: random.Random) -> list[Goal]:
    """
    One goal for every combination of options of each product that has an instruction, as the original makes them.

    Args:
        products (`list[Product]`):
            The catalogue.
        rng (`random.Random`):
            Draws the price limits.

    Returns:
        `list[Goal]`: the goals, in the order of the products.
    """
    drafts = []
    for product in products:
        if not product.instruction or not product.instruction_attributes:
            continue
        price_upper, price_text = price_limit(product.price, rng)
        names = sorted(product.options)
        for values in itertools.product(*(product.options[name] for name in names)):
            options = dict(zip(names, values, strict=True))
            drafts.append((product, options, price_upper, price_text))
    counts = Counter(attribute for product, *_ in drafts for attribute in product.instruction_attributes)
    goals = []
    for product, options, price_upper, price_text in drafts:
        option_text = ", and ".join(f"{name}: {value}" for name, value in options.items())
        attributes = product.instruction_attributes
        goals.append(
            Goal(
                asin=product.asin,
                instruction=(product.instruction or "").strip(".")
                + (f" with {option_text}" if option_text else "")
                + price_text,
                attributes=attributes,
                options=options,
                price_upper=price_upper,
                name=product.title,
                category=product.category,
                query=product.query,
                product_category=product.product_category,
                weight=sum(1 / counts[attribute] for attribute in attributes) / len(attributes),
            )
        )
    return goals


def price_limit(price: float, rng: random.Random) -> tuple[float, str]:
    """A limit above the price, and how the instruction says it; no limit for the dearest products."""
    above = [step for step in PRICE_STEPS if step > price][:4]
    if len(above) < 2:
        return 1_000_000.0, ""
    limit = max(rng.sample(above, 2))
    return limit, f", and price lower than {limit:.2f} dollars"


def shuffled(goals: Sequence[Goal]) -> list[Goal]:
    """The goals in the one order that all splits are cut from: the original's shuffle with seed 233."""
    goals = list(goals)
    random.Random(233).shuffle(goals)
    return goals
