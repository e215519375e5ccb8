"""The original's reward for a purchase."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from thefuzz.fuzz import token_set_ratio

from .catalogue import Product
from .goals import Goal
from .nouns import LIGHT, NounTagger


# The first of these that occurs in an option is what the option is compared by.
COLORS = (
    "alabaster apricot aqua ash asphalt azure banana beige black blue blush bordeaux bronze brown burgundy camel camo "
    "caramel champagne charcoal cheetah chestnut chocolate christmas coffee cognac copper coral cranberry cream "
    "crystal dark denim eggplant elephant espresso fuchsia gold granite grape graphite grass gray green grey heather "
    "indigo ivory ivy khaki lavender lemon leopard light lilac lime magenta maroon mauve merlot midnight mint mocha "
    "multicolor mushroom mustard natural navy nude olive orange peach pewter pink plum purple rainbow red rose royal "
    "rust sand sapphire seashell silver skull slate steel stone stonewash sunflower tan taupe teal tiger turquoise "
    "violet walnut wheat white wine yellow"
).split()


@dataclass(frozen=True)
class Score:
    """
    What a purchase is worth, and why.

    Args:
        total (`float`): The score, in [0, 1].
        type (`float`): Factor for the kind of product.
        attributes (`float`): Share of the goal's attributes that the product has.
        options (`float`, *optional*): Share of the goal's options that were chosen; `None` if it asks for none.
        price (`bool`): Whether the price charged is within the limit.
    """

    total: float
    type: float
    attributes: float
    options: float | None
    price: bool


def score_purchase(product: Product, goal: Goal, chosen: Mapping[str, str], tagger: NounTagger = LIGHT) -> Score:
    """
    Score buying a product with the chosen options for a goal.

    Args:
        product ([`Product`]):
            What is bought.
        goal ([`Goal`]):
            What was asked for.
        chosen (`dict[str, str]`):
            Chosen value of each option.
        tagger ([`NounTagger`], *optional*):
            What finds the nouns in titles; the light one if not given.

    Returns:
        [`Score`]: the score and its parts.
    """
    factor = type_factor(product, goal, tagger)
    attributes = sum(_has_attribute(product, attribute) for attribute in goal.attributes)
    options = _matched_options(goal, tuple(chosen.values()))
    price = product.price <= goal.price_upper
    wanted = len(goal.options) + len(goal.unnamed_options)
    count = len(goal.attributes) + wanted + 1
    return Score(
        total=(attributes + options + price) / count * factor,
        type=factor,
        attributes=attributes / len(goal.attributes),
        options=options / wanted if wanted else None,
        price=price,
    )


@lru_cache(maxsize=100_000)
def _similar(left: str, right: str) -> bool:
    return token_set_ratio(left, right) > 85


def _has_attribute(product: Product, attribute: str) -> bool:
    texts = (product.title, " ".join(product.bullet_points), product.description)
    return any(_similar(own, attribute) for own in product.attributes) or any(
        attribute in text.lower() for text in texts
    )


def _matched_options(goal: Goal, chosen: tuple[str, ...]) -> int:
    values = [_by_color(value) for value in chosen]
    # a named option counts as a color only if one of its two words is that color
    named = (next((color for color in COLORS if color in pair), str(pair)) for pair in goal.options.items())
    unnamed = (_by_color(value) for value in goal.unnamed_options)
    return sum(any(_similar(value, text) for value in values) for text in (*named, *unnamed))


@lru_cache(maxsize=10_000)
def _by_color(value: str) -> str:
    return next((color for color in COLORS if color in value), value)


@lru_cache(maxsize=10_000)
def _categories(path: str) -> frozenset[str]:
    return frozenset(category.strip() for category in path.split("›"))


def type_factor(product: Product, goal: Goal, tagger: NounTagger) -> float:
    """Factor for the kind of product: below 1 if neither query nor categories nor the nouns of the titles match."""
    goal_nouns = tagger.nouns(goal.name)
    title_score = len({*goal_nouns} & {*tagger.nouns(product.title)}) / len(goal_nouns) if goal_nouns else 0.2
    same_query = product.query == goal.query
    same_category = len(_categories(product.product_category) & _categories(goal.product_category)) >= 2
    factor = 1.0 if same_query or same_category or title_score > 0.2 else 0.5
    if title_score < 0.1:
        factor = 0.1
    if title_score == 0.0:
        factor = 0.0
    return factor
