"""The embedded catalogue: records in the official file formats, generated from a seed."""

import itertools
import random
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kind:
    """One kind of product; each of its products has another pair of the attributes."""

    noun: str
    attributes: tuple[str, ...]
    options: dict[str, tuple[str, ...]]
    price: tuple[int, int]
    path: str


COLORS = ("red", "blue", "black", "white", "green", "pink", "grey", "brown")

KINDS: dict[str, tuple[Kind, ...]] = {
    "beauty": (
        Kind(
            "hair conditioner",
            ("sulfate free", "argan oil", "color safe", "travel size", "paraben free", "anti frizz"),
            {"scent": ("rose", "mint", "coconut", "lemon", "vanilla"), "size": ("4 ounce", "8 ounce", "16 ounce")},
            (8, 30),
            "Beauty & Personal Care › Hair Care › Conditioners",
        ),
        Kind(
            "face mask",
            ("oil free", "tea tree", "fine lines", "dead skin", "cruelty free", "clay based"),
            {"scent": ("rose", "mint", "cucumber", "honey"), "pack": ("single", "5 count", "10 count", "20 count")},
            (6, 35),
            "Beauty & Personal Care › Skin Care › Face Masks",
        ),
        Kind(
            "makeup brush",
            ("soft bristle", "eco friendly", "wooden handle", "travel size", "easy clean", "cruelty free"),
            {"color": COLORS, "style": ("powder", "blush", "eyeliner")},
            (5, 28),
            "Beauty & Personal Care › Tools & Accessories › Makeup Brushes",
        ),
        Kind(
            "body lotion",
            ("fragrance free", "long lasting", "dry skin", "plant based", "paraben free", "fast absorbing"),
            {"scent": ("unscented", "lavender", "coconut", "vanilla"), "size": ("4 ounce", "8 ounce", "16 ounce")},
            (7, 32),
            "Beauty & Personal Care › Skin Care › Body Lotions",
        ),
    ),
    "electronics": (
        Kind(
            "phone case",
            ("shock proof", "wireless charging", "screen protector", "slim fit", "water proof", "easy install"),
            {"color": COLORS, "model": ("iphone 12", "iphone 13", "galaxy s21", "pixel 6")},
            (8, 40),
            "Cell Phones & Accessories › Cases › Basic Cases",
        ),
        Kind(
            "bluetooth speaker",
            ("high power", "water proof", "stereo sound", "long battery", "hands free", "light weight"),
            {"color": COLORS},
            (20, 120),
            "Electronics › Portable Audio › Bluetooth Speakers",
        ),
        Kind(
            "usb cable",
            ("fast charging", "gold plated", "heavy duty", "high speed", "nylon braided", "tangle free"),
            {"color": COLORS, "length": ("3 feet", "6 feet", "10 feet")},
            (5, 25),
            "Electronics › Accessories › USB Cables",
        ),
        Kind(
            "tablet stand",
            ("easy carry", "aluminum alloy", "heavy duty", "non slip", "height adjustable", "light weight"),
            {"color": COLORS, "size": ("small", "medium", "large")},
            (12, 55),
            "Electronics › Tablet Accessories › Stands",
        ),
    ),
    "fashion": (
        Kind(
            "canvas sneaker",
            ("non slip", "memory foam", "arch support", "rubber sole", "light weight", "lace up"),
            {"color": COLORS, "size": ("6", "7", "8", "9", "10", "11")},
            (25, 90),
            "Clothing, Shoes & Jewelry › Shoes › Fashion Sneakers",
        ),
        Kind(
            "cotton shirt",
            ("machine wash", "long sleeve", "slim fit", "button down", "quick dry", "classic fit"),
            {"color": COLORS, "size": ("small", "medium", "large", "x-large")},
            (12, 60),
            "Clothing, Shoes & Jewelry › Clothing › Shirts",
        ),
        Kind(
            "winter jacket",
            ("water proof", "faux fur", "hand wash", "light weight", "fleece lined", "wind proof"),
            {"color": COLORS, "size": ("small", "medium", "large", "x-large")},
            (40, 160),
            "Clothing, Shoes & Jewelry › Clothing › Jackets",
        ),
        Kind(
            "yoga pants",
            ("high waist", "tummy control", "quick dry", "machine wash", "wide leg", "nylon spandex"),
            {"color": COLORS, "size": ("small", "medium", "large", "x-large")},
            (15, 55),
            "Clothing, Shoes & Jewelry › Clothing › Active Pants",
        ),
    ),
    "garden": (
        Kind(
            "table lamp",
            ("living room", "energy efficient", "glass shade", "easy assemble", "brushed nickel", "mid century"),
            {"color": COLORS, "size": ("small", "large")},
            (25, 140),
            "Home & Kitchen › Lighting › Table Lamps",
        ),
        Kind(
            "storage basket",
            ("space saving", "hand woven", "easy clean", "heavy duty", "eco friendly", "living room"),
            {
                "color": COLORS,
                "size": ("small", "medium", "large"),
            },
            (10, 50),
            "Home & Kitchen › Storage › Baskets",
        ),
        Kind(
            "throw blanket",
            ("machine wash", "super soft", "queen size", "double sided", "fade resistant", "fleece lined"),
            {"color": COLORS, "size": ("50 x 60", "60 x 80", "80 x 90")},
            (18, 80),
            "Home & Kitchen › Bedding › Throws",
        ),
        Kind(
            "garden chair",
            ("steel frame", "easy assemble", "weather resistant", "high density", "solid wood", "space saving"),
            {"color": COLORS, "pack": ("single", "set of 2", "set of 4")},
            (40, 200),
            "Patio, Lawn & Garden › Furniture › Chairs",
        ),
    ),
    "grocery": (
        Kind(
            "green tea",
            ("caffeine free", "non gmo", "certified organic", "loose leaf", "sugar free", "gift box"),
            {"flavor": ("mint", "lemon", "ginger", "jasmine", "peach"), "pack": ("20 count", "40 count", "100 count")},
            (5, 30),
            "Grocery & Gourmet Food › Beverages › Tea",
        ),
        Kind(
            "protein bar",
            ("gluten free", "low carb", "plant based", "high fiber", "keto friendly", "soy free"),
            {
                "flavor": ("peanut", "caramel", "coconut", "banana", "lemon"),
                "pack": ("6 count", "12 count", "24 count"),
            },
            (10, 45),
            "Grocery & Gourmet Food › Snacks › Bars",
        ),
        Kind(
            "potato chips",
            ("kettle cooked", "low sodium", "non gmo", "gluten free", "fat free", "hand made"),
            {"flavor": ("salt", "barbecue", "vinegar", "cheddar"), "size": ("2 ounce", "8 ounce", "12 ounce")},
            (4, 22),
            "Grocery & Gourmet Food › Snacks › Chips",
        ),
        Kind(
            "ground coffee",
            ("dark roast", "fair trade", "certified organic", "single origin", "low acid", "fat free"),
            {"flavor": ("hazelnut", "vanilla", "mocha", "caramel", "original"), "size": ("12 ounce", "32 ounce")},
            (8, 40),
            "Grocery & Gourmet Food › Beverages › Coffee",
        ),
    ),
}

BRANDS = ("Arlo", "Benka", "Corva", "Delmo", "Elbrin", "Fenwo", "Gravo", "Halden", "Ixora", "Jolvi", "Kestra", "Lumo")
PHRASINGS = (
    "i am looking for a {first} {noun} that is {second}",
    "i want a {noun} with {first} and {second}",
    "find me a {first} and {second} {noun}",
    "i need a {second} {noun}, {first} please",
)
LETTERS = "0123456789ABCDEFGHJKLMNPQRSTUVWXYZ"


def generate_records(seed: int = 0) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """
    Make a catalogue of a few hundred products.

    Args:
        seed (`int`, *optional*, defaults to `0`):
            Seed of everything drawn.

    Returns:
        `tuple`: the item records and the instruction records, in the formats of the official `items_shuffle` and
        `items_ins_v2` files.
    """
    rng = random.Random(seed)
    items: list[dict[str, Any]] = []
    instructions: dict[str, dict[str, Any]] = {}
    for category, kinds in KINDS.items():
        for kind in kinds:
            for pair in itertools.combinations(kind.attributes, 2):
                first, second = rng.sample(pair, 2)
                asin = "B0" + "".join(rng.choices(LETTERS, k=8))
                items.append(_item(rng, category, kind, asin, first, second))
                phrasing = rng.choice(PHRASINGS)
                instructions[asin] = {
                    "attributes": [first, second, rng.choice(("durable", "giftable", "popular"))],
                    "instruction": phrasing.format(noun=kind.noun, first=first, second=second),
                    "instruction_attributes": [first, second],
                }
    rng.shuffle(items)
    return items, instructions


def _item(rng: random.Random, category: str, kind: Kind, asin: str, first: str, second: str) -> dict[str, Any]:
    low, high = kind.price
    price = rng.randrange(low, high) + rng.choice((0.0, 0.5, 0.99))
    pricing = f"${price:.2f}"
    if rng.random() < 0.2:
        pricing += f" - ${price + rng.randrange(2, 10):.2f}"
    options = {}
    for name, values in kind.options.items():
        chosen = rng.sample(values, min(len(values), rng.randint(3, 4)))
        options[name] = [{"value": value, "image": None} for value in values if value in chosen]
    brand = rng.choice(BRANDS)
    return {
        "asin": asin,
        "name": f"{brand} {first.title()} {second.title()} {kind.noun.title()}",
        "category": category,
        "query": kind.noun,
        "product_category": kind.path,
        "full_description": f"This {kind.noun} by {brand} is {first} and {second}.",
        "small_description": [f"{first.capitalize()}.", f"{second.capitalize()}.", f"A {kind.noun} for every day."],
        "pricing": pricing,
        "customization_options": options,
        "images": [],
    }
