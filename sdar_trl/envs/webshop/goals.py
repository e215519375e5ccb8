"""Goals: what a task asks for, and the splits."""

import itertools
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .catalogue import Product


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
        unnamed_options (`tuple[str, ...]`, *optional*): Values asked for whose options are not named: human goals.
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
    goals = []
    for product in products:
        if product.instruction is None:
            continue
        price_upper, price_text = price_limit(product.price, rng)
        names = sorted(product.options)
        for values in itertools.product(*(product.options[name] for name in names)):
            option_text = ", and ".join(f"{name}: {value}" for name, value in zip(names, values, strict=True))
            with_options = f" with {option_text}" if option_text else ""
            goal = _goal(product, product.instruction + with_options + price_text, product.instruction_attributes)
            options = dict(zip(names, values, strict=True))
            goals.append(replace(goal, options=options, price_upper=price_upper))
    counts = Counter(attribute for goal in goals for attribute in goal.attributes)
    return [
        replace(goal, weight=sum(1 / counts[attribute] for attribute in goal.attributes) / len(goal.attributes))
        for goal in goals
    ]


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
            price_upper, price_text = price_limit(product.price, rng)
            text = record["instruction"].strip(".") + price_text
            goal = _goal(product, text, tuple(record["instruction_attributes"]))
            goals.append(replace(goal, unnamed_options=tuple(record["instruction_options"]), price_upper=price_upper))
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


def price_limit(price: float, rng: random.Random) -> tuple[float, str]:
    """A limit above the price, and how the instruction says it; no limit for the dearest products."""
    above = [step for step in PRICE_STEPS if step > price][:4]
    if len(above) < 2:
        return NO_LIMIT, ""
    limit = max(rng.sample(above, 2))
    return limit, f", and price lower than {limit:.2f} dollars"


def shuffled(goals: Sequence[Goal]) -> list[Goal]:
    """The goals in the one order that all splits are cut from: the original's shuffle with seed 233."""
    goals = list(goals)
    random.Random(233).shuffle(goals)
    return goals
