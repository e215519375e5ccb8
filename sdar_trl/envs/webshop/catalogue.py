"""Products, built from records in the official file formats."""

import random
import re
from collections.abc import Mapping, Sequence
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
    items: Sequence[Mapping[str, Any]], instructions: Mapping[str, Mapping[str, Any]], rng: random.Random
) -> list[Product]:
    """
    Build products by the original's rules: ids that are "nan", too long or repeated are passed over.

    Args:
        items (`list[dict]`):
            Records of an `items_shuffle` file.
        instructions (`dict[str, dict]`):
            Records of an `items_ins_v2` file, by id.
        rng (`random.Random`):
            Draws the price charged where a range is shown.

    Returns:
        `list[Product]`: the products, in order.
    """
    products, seen = [], set()
    for item in items:
        asin = item["asin"]
        if asin == "nan" or len(asin) > 10 or asin in seen:
            continue
        seen.add(asin)
        ins = instructions.get(asin, {})
        price_text, price = parse_price(item.get("pricing"), rng)
        bullets = item["small_description"]
        products.append(
            Product(
                asin=asin,
                title=item["name"],
                description=item["full_description"] or "",
                bullet_points=tuple(bullets) if isinstance(bullets, list) else (bullets,),
                category=item["category"],
                query=item["query"].lower().strip(),
                product_category=item["product_category"],
                attributes=tuple(ins.get("attributes", ["DUMMY_ATTR"])),
                options=parse_options(item.get("customization_options")),
                price_text=price_text,
                price=price,
                instruction=ins.get("instruction"),
                instruction_attributes=tuple(ins.get("instruction_attributes") or ()),
            )
        )
    return products


def parse_price(pricing: str | None, rng: random.Random) -> tuple[str, float]:
    """The price as shown and as charged. No price is 100; of a range, any price in it."""
    if not pricing:
        return "$100.0", 100.0
    prices = [float(re.sub(r"[^\d.]", "", part)) for part in pricing.split("$")[1:]]
    if len(prices) == 1:
        return f"${prices[0]}", prices[0]
    return f"${prices[0]} to ${prices[1]}", rng.uniform(*prices[:2])


def parse_options(customization: Mapping[str, Any] | None) -> dict[str, tuple[str, ...]]:
    """Option names and values, lower-cased; "/" is spaced out as " | "."""
    return {
        name.lower(): tuple(entry["value"].strip().replace("/", " | ").lower() for entry in values)
        for name, values in (customization or {}).items()
        if values is not None
    }
