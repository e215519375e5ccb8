"""The shop's search: BM25 over title, description, first bullet point and options."""

import random
import re
from collections.abc import Sequence
from functools import lru_cache

import bm25s
import numpy as np
import Stemmer

from .catalogue import Product


HITS = 50
# Lucene's English stop words
STOP_WORDS = frozenset(
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they this "
    "to was will with".split()
)


class SearchEngine:
    """
    Ranks products for a query, with the parameters of the original's index (k1 0.9, b 0.4, English stemming).

    Args:
        products (`list[Product]`):
            The catalogue.
    """

    def __init__(self, products: Sequence[Product]):
        self.products = products
        self._stemmer = Stemmer.Stemmer("porter")
        self._index = bm25s.BM25(method="lucene", k1=0.9, b=0.4)
        self._index.index([self._tokens(indexed_text(product)) for product in products], show_progress=False)
        self._cached = lru_cache(maxsize=10_000)(self._search)

    def search(self, query: str) -> tuple[Product, ...]:
        """
        The best 50 products.

        Args:
            query (`str`):
                Words, or one of the original's special searches: `<r>` for 50 random products, `<a>`, `<c>` or `<q>`
                followed by an attribute, a category or a query for all the products that have it.

        Returns:
            `tuple[Product, ...]`: best first; nothing for a query without a word of the catalogue.
        """
        return self._cached(query.lower())

    def _search(self, query: str) -> tuple[Product, ...]:
        first, _, rest = query.partition(" ")
        rest = rest.strip()
        if first == "<r>":
            return tuple(random.Random(query).sample(list(self.products), min(HITS, len(self.products))))
        if first == "<a>":
            return tuple(product for product in self.products if rest in product.attributes)
        if first == "<c>":
            category = rest.split(" ")[0]
            return tuple(product for product in self.products if category and product.category == category)
        if first == "<q>":
            return tuple(product for product in self.products if rest and product.query == rest)
        tokens = [token for token in self._tokens(query) if token in self._index.vocab_dict]
        if not tokens:
            return ()
        scores = self._index.get_scores(tokens)
        best = np.argsort(-scores, kind="stable")[:HITS]  # ties in the catalogue's order
        return tuple(self.products[index] for index in best if scores[index] > 0)

    def _tokens(self, text: str) -> list[str]:
        words = (word.removesuffix("'s") for word in re.findall(r"\w+(?:'\w+)*", text.lower()))
        return [self._stemmer.stemWord(word) if len(word) > 2 else word for word in words if word not in STOP_WORDS]


def indexed_text(product: Product) -> str:
    """What of a product is searched."""
    options = ", and ".join(f"{name}: {', '.join(values)}" for name, values in product.options.items())
    bullet = product.bullet_points[0] if product.bullet_points else ""
    return f"{product.title} {product.description} {bullet} {options}".lower()
