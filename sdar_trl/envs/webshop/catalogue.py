"""Products, built from records in the official file formats."""

import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Product:
    """
    One product, as the shop shows and prices it.

    Args:
        asin (`str`): Its id, upper case as in the files.
        title (`str`): The record's name.
        description (`str`): The full description.
        bullet_points (`tuple[str, ...]`): The small description.
        category (`str`): One of the original's broad categories, e.g. "beauty".
        query (`str`): The search that found the product when the data was collected.
        product_category (`str`): Path of categories, joined by " › ".
        attributes (`tuple[str, ...]`): Attributes that goals may ask for.
        options (`dict[str, tuple[str, ...]]`): Values of each option.
        price_text (`str`): The price as shown, e.g. "$5.0 to $9.0".
        price (`float`): The price charged.
        instruction (`str`, *optional*): Text of its synthetic goals.
        instruction_attributes (`tuple[str, ...]`): Attributes its synthetic goals ask for.
    """

    asin: str
    title: str
    description: str
    bullet_points: tuple[str, ...]
    category: str
    query: str
    product_category: str
    attributes: tuple[str, ...]
    options: dict[str, tuple[str, ...]]
    price_text: str
    price: float
    instruction: str | None
    instruction_attributes: tuple[str, ...]


def build_products(
    items: Iterable[Mapping[str, Any]], instructions: Mapping[str, Mapping[str, Any]], rng: random.Random
) -> list[Product]:
    """
    Build products by the original's rules.

    Args:
        items (`Iterable[dict]`):
            Records of an `items_shuffle` file.
        instructions (`dict[str, dict]`):
            Records of an `items_ins_v2` file, by id.
        rng (`random.Random`):
            Draws the price charged where a range is shown.

    Returns:
        `list[Product]`: the products, in order.
    """
    return [
        build_product(item, instructions.get(item["asin"], {}), charged_price(listed_prices(item.get("pricing")), rng))
        for item in distinct(items)
    ]


def distinct(items: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The records that become products: ids that are "nan", too long or repeated are passed over."""
    seen = set()
    for item in items:
        asin = item["asin"]
        if asin != "nan" and len(asin) <= 10 and asin not in seen:
            seen.add(asin)
            yield item


def build_product(item: Mapping[str, Any], instruction: Mapping[str, Any], price: float) -> Product:
    """
    Build one product.

    Args:
        item (`dict`):
            Its record of an `items_shuffle` file.
        instruction (`dict`):
            Its record of an `items_ins_v2` file, empty if it has none.
        price (`float`):
            The price charged.

    Returns:
        [`Product`]: the product.
    """
    bullets = item["small_description"]
    return Product(
        asin=item["asin"],
        title=item["name"],
        description=item["full_description"] or "",
        bullet_points=tuple(bullets) if isinstance(bullets, list) else (bullets,),
        category=item["category"],
        query=item["query"].lower().strip(),
        product_category=item["product_category"],
        attributes=tuple(instruction.get("attributes", ["DUMMY_ATTR"])),
        options=parse_options(item.get("customization_options")),
        price_text=price_text(listed_prices(item.get("pricing"))),
        price=price,
        instruction=instruction.get("instruction"),
        instruction_attributes=tuple(instruction.get("instruction_attributes") or ()),
    )


def listed_prices(pricing: str | None) -> tuple[float, ...]:
    """The price, or the two ends of a range; a product without a price costs 100."""
    if not pricing:
        return (100.0,)
    return tuple(float(re.sub(r"[^\d.]", "", part)) for part in pricing.split("$")[1:])[:2]


def price_text(prices: Sequence[float]) -> str:
    """Prices as the shop shows them."""
    return " to ".join(f"${price}" for price in prices)


def charged_price(prices: Sequence[float], rng: random.Random) -> float:
    """The price charged: of a range, any price in it."""
    return prices[0] if len(prices) == 1 else rng.uniform(*prices)


def parse_options(customization: Mapping[str, Any] | None) -> dict[str, tuple[str, ...]]:
    """Option names and values, lower-cased; "/" is spaced out as " | "."""
    return {
        name.lower(): tuple(entry["value"].strip().replace("/", " | ").lower() for entry in values)
        for name, values in (customization or {}).items()
        if values is not None
    }
