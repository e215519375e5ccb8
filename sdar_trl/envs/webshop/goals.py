"""Goals: what a task asks for, and the splits."""

import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from .catalogue import Product


T = TypeVar("T")
SPLITS = {"test": (0, 500), "validation": (500, 1500), "train": (1500, None)}
NO_LIMIT = 1_000_000.0
PRICE_STEPS = [10.0 * step for step in range(1, 100)]


@dataclass(frozen=True, slots=True)
class Goal:
    """
    What a task asks for.

    Args:
        asin (`str`): Product it was made from.
        instruction (`str`): What the agent is told.
        attributes (`tuple[str, ...]`): Attributes asked for.
        options (`dict[str, str]`): Value asked for of each option.
        price_upper (`float`): Highest price allowed.
        name (`str`): Title of its product.
        category (`str`): Broad category of its product.
        query (`str`): Query of its product.
        product_category (`str`): Path of categories of its product.
        weight (`float`): The rarer its attributes, the heavier.
        unnamed_options (`tuple[str, ...]`, *optional*): Values asked for whose options are not named, as in most goals
            that people wrote.
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
    unnamed_options: tuple[str, ...] = ()


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
    limits = [price_limit(product.price, rng) if product.instruction is not None else NO_LIMIT for product in products]
    counts = attribute_counts(products)
    return [
        synthetic_goal(product, number, limit, counts)
        for product, limit in zip(products, limits, strict=True)
        for number in range(goal_count(product))
    ]


def goal_count(product: Product) -> int:
    """Number of synthetic goals of a product: one for every combination of its options, if it has an instruction."""
    return 0 if product.instruction is None else math.prod(map(len, product.options.values()))


def attribute_counts(products: Iterable[Product]) -> Counter[str]:
    """How many synthetic goals ask for each attribute."""
    counts: Counter[str] = Counter()
    for product in products:
        for attribute in product.instruction_attributes:
            counts[attribute] += goal_count(product)
    return counts


def synthetic_goal(product: Product, number: int, price_upper: float, counts: Mapping[str, int]) -> Goal:
    """
    One synthetic goal of a product.

    Args:
        product ([`Product`]):
            The product.
        number (`int`):
            Which combination of its options: the last option, by name, changes fastest.
        price_upper (`float`):
            Highest price allowed.
        counts (`dict[str, int]`):
            How many goals ask for each attribute.

    Returns:
        [`Goal`]: the goal.
    """
    chosen = []
    for name in sorted(product.options, reverse=True):
        number, place = divmod(number, len(product.options[name]))
        chosen.append((name, product.options[name][place]))
    options = dict(reversed(chosen))
    option_text = ", and ".join(f"{name}: {value}" for name, value in options.items())
    text = f"{product.instruction}{' with ' if option_text else ''}{option_text}{limit_text(price_upper)}"
    attributes = product.instruction_attributes
    weight = sum(1 / counts[attribute] for attribute in attributes) / len(attributes)
    return replace(_goal(product, text, attributes), options=options, price_upper=price_upper, weight=weight)


def human_goals(
    products: Sequence[Product], instructions: Mapping[str, Sequence[Mapping[str, Any]]], rng: random.Random
) -> list[Goal]:
    """
    The goals people wrote down, as the original makes them.

    Args:
        products (`list[Product]`):
            The catalogue.
        instructions (`dict[str, list[dict]]`):
            Records of an `items_human_ins` file, by id of the product. Those without an attribute are passed over.
        rng (`random.Random`):
            Draws the price limits.

    Returns:
        `list[Goal]`: the goals, in the order of the products.
    """
    goals = []
    for product in products:
        for record in instructions.get(product.asin, ()):
            if not record["instruction_attributes"]:
                continue
            price_upper = price_limit(product.price, rng)
            text = record["instruction"].strip(".") + limit_text(price_upper)
            goal = _goal(product, text, tuple(record["instruction_attributes"]))
            options = record["instruction_options"]
            if isinstance(options, dict):
                goal = replace(goal, options={name: str(value) for name, value in options.items()})
            else:
                goal = replace(goal, unnamed_options=tuple(options))
            goals.append(replace(goal, price_upper=price_upper))
    return goals


def _goal(product: Product, instruction: str, attributes: tuple[str, ...]) -> Goal:
    return Goal(
        asin=product.asin,
        instruction=instruction,
        attributes=attributes,
        options={},
        price_upper=NO_LIMIT,
        name=product.title,
        category=product.category,
        query=product.query,
        product_category=product.product_category,
        weight=1.0,
    )


def price_limit(price: float, rng: random.Random) -> float:
    """A limit above the price; none for the dearest products."""
    above = [step for step in PRICE_STEPS if step > price][:4]
    return max(rng.sample(above, 2)) if len(above) >= 2 else NO_LIMIT


def limit_text(limit: float) -> str:
    """How the instruction says it."""
    return "" if limit == NO_LIMIT else f", and price lower than {limit:.2f} dollars"


def shuffled(goals: Sequence[T]) -> list[T]:
    """The goals in the one order that all splits are cut from: the original's shuffle with seed 233."""
    in_order = list(goals)
    random.Random(233).shuffle(in_order)
    return in_order
