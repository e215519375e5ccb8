"""
Generated data in the formats of the official files, of any size, for tests and benchmarks.

    python -m sdar_trl.envs.webshop.samples my_data --products 1000

Of 1,000 products, the small files (`_1000`) are written, else the full ones. Titles, prices and options read like a
shop's; descriptions are filled up with made-up words, about as many as in the official data. Odd records are among
them: ids that are no products, prices that are ranges or missing, options that are null, HTML, all kinds of letters.
"""

import argparse
import itertools
import json
import random
from pathlib import Path
from typing import Any

from .generate import KINDS, LETTERS, PHRASINGS, Kind


BRANDS = ("Arlo", "Benka & Co", "CORVA", "Delmo", "Élan", "Fenwo", "Gravo", "Halden's", "Ixora", "JolviTech", "Lumo")
FOR_WHOM = (
    "Women's",
    "Men's",
    "Kids",
    "Unisex Adult",
    "Womens",
    "Girls",
    "Professional",
    "Vintage",
    "Premium",
    "Mini",
)
USES = (
    "for Home",
    "for Women and Men",
    "for Travel",
    "for Everyday Use",
    "for Sensitive Skin",
    "for Indoor & Outdoor",
)
EXTRAS = (
    "Gift for Mom",
    "Pack of 2",
    "BPA Free",
    "2-Pack",
    "New 2021",
    "Multi-Purpose",
    "Breathable",
    "Washable and Reusable",
    "12 oz (Pack of 6)",
    "with Storage Bag",
    "Made in USA",
    '6.5" x 4"',
)
SIGNS = ("™", "®", " – ", " | ", " ★ ", " 🎁", " (édition)", " “New”")
COMMON = (
    "the of and to a in for is on that by this with you it not or be are from at as your all have new more an was we "
    "will can us about if has but our one other do no they he up may what which their out use any there see only so "
    "his when here who also now help get view am been would how were me some these its like than find price date back "
    "top people had list name just over year day into two size color easy soft quality design made material perfect"
).split()
SYLLABLES = (
    "ba be bi bo da de di do ga ge ka ke ki ko la le li lo ma me mi mo na ne ni no ra re ri ro sa se si ta te".split()
)


def write_files(folder: str | Path, num_products: int = 1000, seed: int = 0) -> None:
    """
    Write `items_shuffle`, `items_ins_v2` (both with `_1000` for 1,000 products) and `items_human_ins`.

    Args:
        folder (`str` or `Path`):
            Where to; made if it is not there.
        num_products (`int`, *optional*, defaults to `1000`):
            Number of products.
        seed (`int`, *optional*, defaults to `0`):
            Seed of everything drawn.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    size = "_1000" if num_products == 1000 else ""
    rng = random.Random(seed)
    sentences = _sentences(rng, min(20_000, 20 * num_products))
    kinds = [(category, kind) for category, kinds in KINDS.items() for kind in kinds]
    with (
        (folder / f"items_shuffle{size}.json").open("w") as items,
        (folder / f"items_ins_v2{size}.json").open("w") as instructions,
        (folder / "items_human_ins.json").open("w") as human,
    ):
        items.write("[" + json.dumps({"asin": "nan", "name": None}))
        instructions.write("{")
        human.write("{")
        comma = no_comma = ""
        for number in range(num_products):
            category, kind = rng.choice(kinds)
            item = _item(rng, category, kind, sentences)
            wanted = rng.sample(kind.attributes, rng.choice((1, 2, 2, 3)))
            items.write(", " + json.dumps(item))
            if rng.random() < 0.005:
                items.write(", " + json.dumps(item))  # the same id again
            text = rng.choice(PHRASINGS).format(noun=kind.noun, first=wanted[0], second=wanted[-1])
            record: dict[str, Any] = {"attributes": wanted}
            if rng.random() < 0.95:
                record.update(instruction=text, instruction_attributes=wanted[:2])
            if rng.random() < 0.98:
                instructions.write(comma + json.dumps(item["asin"]) + ": " + json.dumps(record))
                comma = ", "
            if number % 50 == 0:
                human.write(no_comma + json.dumps(item["asin"]) + ": " + json.dumps(_human(rng, kind, item, wanted)))
                no_comma = ", "
        items.write("]")
        instructions.write("}")
        human.write("}")


def _item(rng: random.Random, category: str, kind: Kind, sentences: list[str]) -> dict[str, Any]:
    low, high = kind.price
    price = rng.randrange(low, high) + rng.choice((0.0, 0.5, 0.99))
    pricing = rng.choices(
        (f"${price:,.2f}", f"${price:,.2f} - ${price + rng.randrange(2, 60):,.2f}", "", None), (80, 15, 3, 2)
    )
    bullets: Any = rng.choices(sentences, k=rng.randint(1, 5))
    description = " ".join(rng.choices(sentences, k=rng.randint(2, 26)))
    if rng.random() < 0.05:
        description = f"<p><b>{kind.noun.title()}</b></p>\n{description}<br>&nbsp;&amp; more{rng.choice(SIGNS)}"
    if rng.random() < 0.03:
        bullets = bullets[0]
    return {
        "asin": "B0" + "".join(rng.choices(LETTERS, k=8)),
        "name": _title(rng, kind),
        "category": category,
        "query": f"{kind.noun} {rng.choice(kind.attributes)} " if rng.random() < 0.5 else kind.noun.title(),
        "product_category": kind.path if rng.random() < 0.9 else "",
        "full_description": description,
        "small_description": bullets,
        "pricing": pricing[0],
        "customization_options": _options(rng, kind),
        "images": ["https://images.example.com/" + "".join(rng.choices(LETTERS, k=11)) + ".jpg"],
    }


def _title(rng: random.Random, kind: Kind) -> str:
    parts = [rng.choice(BRANDS), kind.noun.title()]
    if rng.random() < 0.5:
        parts.insert(1, rng.choice(FOR_WHOM))
    attributes = [attribute.title() for attribute in rng.sample(kind.attributes, rng.randint(0, 3))]
    if attributes and rng.random() < 0.5:
        parts.insert(-1, attributes.pop())
    if rng.random() < 0.6:
        parts.append(rng.choice(USES))
    title = ", ".join([" ".join(parts), *attributes, *rng.sample(EXTRAS, rng.randint(0, 2))])
    if rng.random() < 0.3:
        title += f", {''.join(rng.choices(LETTERS, k=6))}"  # a model's number
    return title + rng.choice(SIGNS) if rng.random() < 0.1 else title


def _options(rng: random.Random, kind: Kind) -> dict[str, Any] | None:
    if rng.random() < 0.1:
        return rng.choice((None, {}))
    options: dict[str, Any] = {}
    for name, values in kind.options.items():
        chosen = rng.sample(values, min(len(values), rng.randint(1, 5)))
        if rng.random() < 0.05:
            chosen.append(f" {chosen[0].title()}/{rng.choice(values)} ")
        options[name.title()] = [{"value": value, "image": None} for value in chosen]
    if rng.random() < 0.03:
        options["Style"] = None
    return options


def _human(rng: random.Random, kind: Kind, item: dict[str, Any], wanted: list[str]) -> list[dict[str, Any]]:
    values = [rng.choice(values)["value"] for values in (item["customization_options"] or {}).values() if values]
    text = f"I'd like a {' '.join(values)} {kind.noun} that's {wanted[0]}."
    good = {"instruction": text, "instruction_attributes": wanted, "instruction_options": values}
    poor = {"instruction": "something nice", "instruction_attributes": [], "instruction_options": []}
    return [good, poor][: rng.randint(1, 2)]


def _sentences(rng: random.Random, count: int) -> list[str]:
    """Sentences of common words, and of made-up ones that are the rarer the later they come (Zipf's law)."""
    made_up = ["".join(parts) for size in (2, 3, 4) for parts in itertools.islice(_words(size), 70_000)]
    weights = list(itertools.accumulate(1 / rank for rank in range(1, len(made_up) + 1)))
    lines = []
    for _ in range(count):
        drawn = rng.choices(made_up, cum_weights=weights, k=7) + rng.choices(COMMON, k=8)
        rng.shuffle(drawn)
        lines.append(" ".join(drawn).capitalize() + rng.choice((".", ".", "!", "; 100% cotton.", " (1,000 ml).")))
    return lines


def _words(size: int) -> Any:
    return itertools.product(SYLLABLES, repeat=size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="Where to write the files.")
    parser.add_argument("--products", type=int, default=1000, help="Number of products.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of everything drawn.")
    args = parser.parse_args()
    write_files(args.folder, args.products, args.seed)


if __name__ == "__main__":
    main()
