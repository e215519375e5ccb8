"""
Shops of official files: read once into a cache on disk, then mapped into memory.

What all processes share stays on disk until it is looked at: the products, the inverted index, the order of the goals.
"""

import functools
import hashlib
import json
import math
import mmap
import random
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any, TextIO, overload

import numpy as np

from .cache import open_cache, record, stamp
from .catalogue import Product, build_product, charged_price, listed_prices
from .files import existing, human_instructions_of, instruction_of, official_files, read_items, read_records
from .goals import Goal, attribute_counts, goal_count, price_limit, shuffled, synthetic_goal
from .goals import human_goals as make_human_goals
from .nouns import title_nouns
from .search import Index, SearchEngine, build_index
from .shop import Shop, shared


STORED_FIELDS = [field.name for field in fields(Product) if field.name != "price"]


def load_shop(
    data_dir: str | Path, human_goals: bool = False, seed: int = 0, cache_dir: str | Path | None = None
) -> Shop:
    """
    The shop of a folder of official files. The first time, a cache is built of them.

    Args:
        data_dir (`str` or `Path`):
            Folder with `items_shuffle.json` and `items_ins_v2.json`, or else both with `_1000`; with `human_goals`,
            `items_human_ins.json` too.
        human_goals (`bool`, *optional*, defaults to `False`):
            Whether goals are those that people wrote, or made of the products' options.
        seed (`int`, *optional*, defaults to `0`):
            Seed of prices charged where a range is shown, and of the price limits of goals.
        cache_dir (`str` or `Path`, *optional*):
            Folder for the cache, e.g. where `data_dir` cannot be written; `.webshop_cache` in `data_dir` if not given.

    Returns:
        [`Shop`]: the shop, one for all that ask while the files are the same.

    Raises:
        `FileNotFoundError`: if a file is missing.
        `ValueError`: if a file is malformed, or the cache damaged; the message names the file.
        `OSError`: if there is no cache and none can be written.
    """
    folder = Path(data_dir).resolve()
    sources = official_files(folder)
    if human_goals:
        sources = (*sources, existing(folder / "items_human_ins.json"))
    place = folder / ".webshop_cache" if cache_dir is None else Path(cache_dir).resolve()
    return _load(sources, tuple(map(stamp, sources)), seed, place)


@shared
def _load(sources: tuple[Path, ...], stamps: tuple[str, ...], seed: int, place: Path) -> Shop:
    """The shop of files that have these stamps now: of changed files, it is another."""
    items, instructions, *human = sources
    cache = open_cache(place, (items, instructions), functools.partial(_build, items, instructions))
    rng = random.Random(seed)
    products = Catalogue(cache.folder, rng)
    goals: Sequence[Goal]
    read = list(cache.sources.values())
    if human:
        [path] = human
        read.append(record(path))
        records = read_records(path)
        positions = np.flatnonzero(np.isin(products.ids, list(records))).tolist()
        theirs = [products[position] for position in positions]
        asked = {product.asin: human_instructions_of(path, records, product.asin) for product in theirs}
        goals = shuffled(make_human_goals(theirs, asked, rng))
    else:
        limits = cache.array(f"limits-{seed}", lambda: _limits(cache.folder, products, rng))
        goals = SyntheticGoals(cache.folder, products, limits)
    kind = "human" if human else "synthetic"
    files = hashlib.blake2b("".join(file["digest"] for file in read).encode(), digest_size=4).hexdigest()
    name = f"{len(products)} products, {len(goals)} {kind} goals, seed {seed}, files {files}"
    return Shop(products, SearchEngine(products, Index.load(cache.folder)), goals, name, title_nouns())


class Catalogue(Sequence[Product]):
    """
    The products of a cache, read when they are looked at.

    Args:
        folder (`Path`):
            The cache.
        rng (`random.Random`):
            Draws the prices charged where a range is shown, in the catalogue's order.
    """

    def __init__(self, folder: Path, rng: random.Random):
        with (folder / "products.jsonl").open("rb") as file:
            self._lines = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._starts = np.load(folder / "product_starts.npy", mmap_mode="r")
        self.ids = np.load(folder / "ids.npy", mmap_mode="r")
        self.prices, highest = np.load(folder / "prices.npy").T.copy()
        for position in np.flatnonzero(~np.isnan(highest)):
            self.prices[position] = charged_price((self.prices[position], highest[position]), rng)
        self._product = lru_cache(maxsize=10_000)(self._read)

    def __len__(self) -> int:
        return len(self.prices)

    @overload
    def __getitem__(self, index: int) -> Product: ...
    @overload
    def __getitem__(self, index: slice) -> list[Product]: ...
    def __getitem__(self, index: int | slice) -> Product | list[Product]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        return self._product(range(len(self))[index])

    def _read(self, position: int) -> Product:
        line = json.loads(self._lines[self._starts[position] : self._starts[position + 1]])
        values: dict[str, Any] = dict(zip(STORED_FIELDS, line, strict=True))
        for name in ("bullet_points", "attributes", "instruction_attributes"):
            values[name] = tuple(values[name])
        values["options"] = {name: tuple(options) for name, options in values["options"].items()}
        return Product(**values, price=float(self.prices[position]))


class SyntheticGoals(Sequence[Goal]):
    """
    The synthetic goals of a cache, shuffled, each made when it is looked at: of a million products there are millions.

    Args:
        folder (`Path`):
            The cache.
        products ([`Catalogue`]):
            The catalogue.
        limits (`np.ndarray`):
            Shape (products,): the price limit of each product's goals.
    """

    def __init__(self, folder: Path, products: Catalogue, limits: np.ndarray):
        self._products, self._limits = products, limits
        self._starts = np.load(folder / "goal_starts.npy")
        self._order = np.load(folder / "goal_order.npy", mmap_mode="r")
        self._counts = json.loads((folder / "attribute_counts.json").read_text())
        self._categories = json.loads((folder / "categories.json").read_text())
        self._category = np.load(folder / "category.npy", mmap_mode="r")

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, index: int) -> Goal: ...
    @overload
    def __getitem__(self, index: slice) -> list[Goal]: ...
    def __getitem__(self, index: int | slice) -> Goal | list[Goal]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        goal = int(self._order[index])
        product = int(np.searchsorted(self._starts, goal, side="right")) - 1
        number = goal - int(self._starts[product])
        return synthetic_goal(self._products[product], number, float(self._limits[product]), self._counts)

    def categories(self) -> np.ndarray:
        """The category of each goal's product, shape (goals,)."""
        category = np.repeat(self._category, np.diff(self._starts))[self._order]
        return np.array(self._categories, dtype=object)[category]


def _limits(folder: Path, products: Catalogue, rng: random.Random) -> np.ndarray:
    """The price limit of each product's goals, 0 if it has none; drawn after all prices, as in the original."""
    asked = zip(products.prices.tolist(), np.load(folder / "has_goals.npy").tolist(), strict=True)
    limits = [price_limit(price, rng) if has_goals else 0 for price, has_goals in asked]
    return np.array(limits, dtype=np.float32)


def _build(items: Path, instructions: Path, folder: Path) -> None:
    """Read the official files into a folder, in one pass."""
    records = read_records(instructions)
    ids: list[str] = []
    prices, has_goals, category = array("d"), array("B"), array("I")
    product_starts, goal_starts = array("q", [0]), array("q", [0])
    categories: dict[str, int] = {}
    counts: Counter[str] = Counter()

    def written(lines: TextIO) -> Iterator[Product]:
        for item in read_items(items):
            product = build_product(item, instruction_of(instructions, records, item["asin"]), price=0.0)
            line = json.dumps([getattr(product, name) for name in STORED_FIELDS], separators=(",", ":"))
            lines.write(line + "\n")
            product_starts.append(product_starts[-1] + len(line) + 1)
            goals = goal_count(product)
            if goal_starts[-1] + goals >= 2**32:
                raise ValueError(f"{items}: record {product.asin}: its options make {goals} goals: too many.")
            goal_starts.append(goal_starts[-1] + goals)
            has_goals.append(product.instruction is not None)
            ids.append(product.asin)
            prices.extend((*listed_prices(item.get("pricing")), math.nan)[:2])
            category.append(categories.setdefault(product.category, len(categories)))
            counts.update(attribute_counts([product]))
            yield product
        if not ids:
            raise ValueError(
                f'{items}: no products: an id is "nan" or has more than 10 characters, or the list is empty.'
            )

    with (folder / "products.jsonl").open("w", encoding="ascii") as lines:
        build_index(written(lines)).save(folder)
    for name, values in {
        "ids": ids,
        "prices": np.reshape(prices, (-1, 2)),
        "has_goals": has_goals,
        "category": category,
        "product_starts": product_starts,
        "goal_starts": goal_starts,
        "goal_order": np.array(shuffled(range(goal_starts[-1])), dtype=np.uint32),
    }.items():
        np.save(folder / f"{name}.npy", np.asarray(values))
    (folder / "categories.json").write_text(json.dumps(list(categories)))
    (folder / "attribute_counts.json").write_text(json.dumps(counts))
