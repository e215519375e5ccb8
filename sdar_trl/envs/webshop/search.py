"""The shop's search: Lucene's BM25 over title, description, first bullet point and options."""

import json
import random
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import overload

import numpy as np

from .analysis import words
from .catalogue import Product


HITS = 50
K1, B = np.float32(0.9), np.float32(0.4)


@dataclass(frozen=True)
class Index:
    """
    An inverted index: for each term the products that have it. Terms are words, and labels such as "<c> beauty".

    Args:
        vocabulary (`dict[str, int]`): Number of each term.
        starts (`np.ndarray`): Shape (terms + 1,): where the products of a term begin.
        documents (`np.ndarray`): Positions of products, ascending for each term.
        counts (`np.ndarray`): How often each of them has the term.
        lengths (`np.ndarray`): Shape (products,): number of words of each product.
        ranks (`np.ndarray`): Shape (products,): the order of products of equal score, which is that of their ids.
    """

    vocabulary: dict[str, int]
    starts: np.ndarray
    documents: np.ndarray
    counts: np.ndarray
    lengths: np.ndarray
    ranks: np.ndarray

    def save(self, folder: Path) -> None:
        """Write the index into a folder."""
        (folder / "vocabulary.json").write_text(json.dumps(list(self.vocabulary)))
        for field in fields(self)[1:]:
            np.save(folder / f"{field.name}.npy", getattr(self, field.name))

    @classmethod
    def load(cls, folder: Path) -> "Index":
        """The index of a folder. What is large stays on disk, mapped into memory."""
        terms = json.loads((folder / "vocabulary.json").read_text())
        vocabulary = {term: number for number, term in enumerate(terms)}
        arrays = (np.asarray(np.load(folder / f"{field.name}.npy", mmap_mode="r")) for field in fields(cls)[1:])
        return cls(vocabulary, *arrays)


def build_index(products: Iterable[Product]) -> Index:
    """
    Index products.

    Args:
        products (`Iterable[Product]`):
            The catalogue; gone through once.

    Returns:
        [`Index`]: the index.
    """
    from scipy.sparse import csr_array

    vocabulary: dict[str, int] = {}
    terms, counts, starts, lengths = array("i"), array("H"), array("q", [0]), array("i")
    ids = []
    for product in products:
        found = Counter(words(indexed_text(product)))
        lengths.append(found.total())
        found.update(dict.fromkeys(labels(product), 1))
        terms.extend([vocabulary.setdefault(term, len(vocabulary)) for term in found])
        try:
            counts.extend(array(counts.typecode, found.values()))
        except OverflowError:  # a product has a word more than 65,535 times
            counts = array("I", counts)
            counts.extend(found.values())
        starts.append(len(terms))
        ids.append(product.asin)
    # 32 bits number the postings: 1.2 million products have 0.2 billion of them
    by_product = csr_array((counts, terms, np.asarray(starts, dtype=np.int32)), shape=(len(ids), len(vocabulary)))
    by_term = by_product.tocsc()
    ranks = np.empty(len(ids), dtype=np.int32)
    ranks[np.argsort(np.array(ids))] = np.arange(len(ids))
    return Index(vocabulary, by_term.indptr, by_term.indices, by_term.data, np.asarray(lengths), ranks)


class Hits(Sequence[Product]):
    """
    Products of a catalogue that a search found; read when they are looked at.

    Args:
        products (`Sequence[Product]`):
            The catalogue.
        positions (`Sequence[int]`, *optional*):
            Where in it the hits are, best first.
    """

    def __init__(self, products: Sequence[Product], positions: Sequence[int] | np.ndarray = ()):
        self._products, self._positions = products, positions

    def __len__(self) -> int:
        return len(self._positions)

    @overload
    def __getitem__(self, index: int) -> Product: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Product, ...]: ...
    def __getitem__(self, index: int | slice) -> Product | tuple[Product, ...]:
        if isinstance(index, slice):
            return tuple(self._products[position] for position in self._positions[index])
        return self._products[self._positions[index]]


class SearchEngine:
    """
    Ranks products for a query, with the original's ranking: Lucene 8's BM25, k1 0.9, b 0.4, in its arithmetic.

    Args:
        products (`Sequence[Product]`):
            The catalogue.
        index ([`Index`]):
            Its index.
    """

    def __init__(self, products: Sequence[Product], index: Index):
        self.products, self.index = products, index
        average = np.float32(index.lengths.sum() / max(1, np.count_nonzero(index.lengths)))
        lengths = quantized(index.lengths).astype(np.float32)
        self._inverse_norms = 1 / (K1 * ((1 - B) + B * lengths / average))
        self._cached = lru_cache(maxsize=10_000)(self._search)

    def search(self, query: str) -> Hits:
        """
        The best 50 products.

        Args:
            query (`str`):
                Words, or one of the original's special searches: `<r>` for 50 random products, `<a>`, `<c>` or `<q>`
                followed by an attribute, a category or a query for all the products that have it.

        Returns:
            [`Hits`]: best first; nothing for a query without a word of the catalogue.
        """
        return self._cached(query.lower())

    def _search(self, query: str) -> Hits:
        first, _, rest = query.partition(" ")
        rest = rest.strip()
        if first == "<r>":
            count = len(self.products)
            return Hits(self.products, random.Random(query).sample(range(count), min(HITS, count)))
        if first in ("<a>", "<c>", "<q>"):
            term = self.index.vocabulary.get(f"{first} {rest.split(' ')[0] if first == '<c>' else rest}")
            return Hits(self.products, () if term is None else self.index.documents[self._span(term)])
        return Hits(self.products, self._ranked(query))

    def _span(self, term: int) -> slice:
        return slice(self.index.starts[term], self.index.starts[term + 1])

    def _ranked(self, query: str) -> np.ndarray:
        total = np.zeros(len(self.index.lengths))  # sums of single-precision scores are taken in double precision
        count = np.count_nonzero(self.index.lengths)
        for word, times in Counter(words(query)).items():
            term = self.index.vocabulary.get(word)
            if term is None:
                continue
            span = self._span(term)
            documents = self.index.documents[span]
            idf = np.float32(np.log(1 + (count - len(documents) + 0.5) / (len(documents) + 0.5)))
            weight = np.float32(times) * idf
            frequencies = self.index.counts[span].astype(np.float32)
            total[documents] += weight - weight / (1 + frequencies * self._inverse_norms[documents])
        scores = total.astype(np.float32)
        hits = np.flatnonzero(scores)
        if len(hits) > HITS:
            found = scores[hits]
            hits = hits[found >= np.partition(found, -HITS)[-HITS]]
        return hits[np.lexsort((self.index.ranks[hits], -scores[hits]))[:HITS]]


def indexed_text(product: Product) -> str:
    """What of a product is searched."""
    options = ", and ".join(f"{name}: {', '.join(values)}" for name, values in product.options.items())
    bullet = product.bullet_points[0] if product.bullet_points else ""
    return f"{product.title} {product.description} {bullet} {options}".lower()


def labels(product: Product) -> list[str]:
    """What special searches find a product by."""
    found = [f"<a> {attribute}" for attribute in product.attributes]
    return [*found, f"<c> {product.category}", *([f"<q> {product.query}"] if product.query else [])]


def quantized(lengths: np.ndarray) -> np.ndarray:
    """Lengths as Lucene keeps them in a byte: exact below 40, then with the four highest bits of what exceeds 24."""
    beyond = np.maximum(lengths - 24, 0)
    shift = np.maximum(np.frexp(beyond.astype(float))[1] - 4, 0)
    return np.where(lengths < 24, lengths, 24 + (beyond >> shift << shift))
