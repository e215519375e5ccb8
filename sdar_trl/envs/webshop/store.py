"""
Shops of official files: read once into a cache beside them, then mapped into memory.

What all processes share stays on disk until it is looked at: the products, the inverted index, the order of the goals.
"""

import json
import math
import mmap
import random
import shutil
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any, TextIO, overload

import numpy as np

from .catalogue import Product, build_product, charged_price, distinct, listed_prices
from .files import existing, official_files, read_human_instructions, read_instructions, read_items
from .goals import Goal, attribute_counts, goal_count, price_limit, shuffled, synthetic_goal
from .goals import human_goals as make_human_goals
from .nouns import title_nouns
from .search import Index, SearchEngine, build_index
from .shop import Shop


VERSION = 1  # of the cache; counts up when what is in it changes
STORED_FIELDS = [field.name for field in fields(Product) if field.name != "price"]


@lru_cache(maxsize=4)
def load_shop(data_dir: str | Path, human_goals: bool = False, seed: int = 0) -> Shop:
    """
    The shop of a folder of official files. The first time, its cache is built, in `.webshop_cache` in that folder.

    Args:
        data_dir (`str` or `Path`):
            Folder with `items_shuffle.json` and `items_ins_v2.json`, or else both with `_1000`; with `human_goals`,
            `items_human_ins.json` too.
        human_goals (`bool`, *optional*, defaults to `False`):
            Whether goals are those that people wrote, or made of the products' options.
        seed (`int`, *optional*, defaults to `0`):
            Seed of prices charged where a range is shown, and of the price limits of goals.

    Returns:
        [`Shop`]: the shop, one for all that ask.

    Raises:
        `FileNotFoundError`: if a file is missing.
        `ValueError`: if a file is malformed; the message names the file and the field.
    """
    from filelock import FileLock

    items, instructions = official_files(Path(data_dir))
    folder = Path(data_dir) / ".webshop_cache" / items.stem
    folder.parent.mkdir(exist_ok=True)
    rng = random.Random(seed)
    with FileLock(f"{folder}.lock"):  # of several processes one builds
        if not _is_fresh(folder, items, instructions):
            _build(folder, items, instructions)
        products = Catalogue(folder, rng)
        goals: Sequence[Goal]
        if human_goals:
            records = read_human_instructions(existing(Path(data_dir) / "items_human_ins.json"))
            positions = np.flatnonzero(np.isin(products.ids, list(records))).tolist()
            theirs = [products[position] for position in positions]
            goals = shuffled(make_human_goals(theirs, records, rng))
        else:
            goals = SyntheticGoals(folder, products, seed, rng)
        index = Index.load(folder)
    kind = "human" if human_goals else "synthetic"
    name = f"{len(products)} products, {len(goals)} {kind} goals, seed {seed}"
    return Shop(products, SearchEngine(products, index), goals, name, title_nouns())


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
            The cache; price limits and order are added to it the first time.
        products ([`Catalogue`]):
            The catalogue.
        seed (`int`):
            Seed of the price limits.
        rng (`random.Random`):
            Draws them, in the state that drawing the prices left it in.
    """

    def __init__(self, folder: Path, products: Catalogue, seed: int, rng: random.Random):
        self._products = products
        self._starts = np.load(folder / "goal_starts.npy")
        self._counts = json.loads((folder / "attribute_counts.json").read_text())
        self._categories = json.loads((folder / "categories.json").read_text())
        self._category = np.load(folder / "category.npy", mmap_mode="r")
        limits, order = folder / f"limits-{seed}.npy", folder / "goal_order.npy"
        if not order.exists():
            _save(order, shuffled(range(self._starts[-1])), np.uint32)
        if not limits.exists():
            asked = zip(products.prices.tolist(), np.load(folder / "has_goals.npy").tolist(), strict=True)
            _save(limits, [price_limit(price, rng) if has_goals else 0 for price, has_goals in asked], np.float32)
        self._limits, self._order = np.load(limits, mmap_mode="r"), np.load(order, mmap_mode="r")

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


def _sources(*paths: Path) -> dict[str, Any]:
    """What a cache was built from."""
    return {"version": VERSION, **{path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in paths}}


def _is_fresh(folder: Path, *paths: Path) -> bool:
    made_of = folder / "sources.json"
    return made_of.exists() and json.loads(made_of.read_text()) == _sources(*paths)


def _build(folder: Path, items: Path, instructions: Path) -> None:
    """Read the official files into a cache, in one pass."""
    by_id = read_instructions(instructions)
    ids: list[str] = []
    prices, has_goals, category = array("d"), array("B"), array("H")
    product_starts, goal_starts = array("q", [0]), array("q", [0])
    categories: dict[str, int] = {}
    counts: Counter[str] = Counter()

    def written(lines: TextIO) -> Iterator[Product]:
        for item in distinct(read_items(items)):
            product = build_product(item, by_id.get(item["asin"], {}), price=0.0)
            line = json.dumps([getattr(product, name) for name in STORED_FIELDS], separators=(",", ":"))
            lines.write(line + "\n")
            product_starts.append(product_starts[-1] + len(line) + 1)
            goal_starts.append(goal_starts[-1] + goal_count(product))
            has_goals.append(product.instruction is not None)
            ids.append(product.asin)
            prices.extend((*listed_prices(item.get("pricing")), math.nan)[:2])
            category.append(categories.setdefault(product.category, len(categories)))
            counts.update(attribute_counts([product]))
            yield product

    building = folder.with_suffix(".unfinished")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    try:
        with (building / "products.jsonl").open("w", encoding="ascii") as lines:
            build_index(written(lines)).save(building)
        for name, values in {
            "ids": ids,
            "prices": np.reshape(prices, (-1, 2)),
            "has_goals": has_goals,
            "category": category,
            "product_starts": product_starts,
            "goal_starts": goal_starts,
        }.items():
            np.save(building / f"{name}.npy", np.asarray(values))
        (building / "categories.json").write_text(json.dumps(list(categories)))
        (building / "attribute_counts.json").write_text(json.dumps(counts))
        (building / "sources.json").write_text(json.dumps(_sources(items, instructions)))
        shutil.rmtree(folder, ignore_errors=True)
        building.rename(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _save(path: Path, values: Sequence[float], dtype: type) -> None:
    unfinished = path.with_suffix(".unfinished.npy")
    np.save(unfinished, np.array(values, dtype=dtype))
    unfinished.replace(path)
