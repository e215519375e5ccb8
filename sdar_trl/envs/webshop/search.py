"""The shop's search: BM25 over title, description, first bullet point and options."""

import random
from collections.abc import Sequence

import bm25s
import Stemmer

from .catalogue import Product


HITS = 50


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
        self._index.index(self._tokens([indexed_text(product) for product in products]), show_progress=False)
        self._cache: dict[str, list[Product]] = {}

    def _tokens(self, texts: list[str]) -> list[list[str]]:
        return bm25s.tokenize(
            texts, stopwords="en", stemmer=self._stemmer, token_pattern=r"\w+", show_progress=False, return_ids=False
        )

    def search(self, query: str) -> list[Product]:
        """
        The best 50 products.

        Args:
            query (`str`):
                Words, or one of the original's special searches: `<r>` for random products, `<a>`, `<c>` or `<q>`
                followed by an attribute, a category or a query for the products that have it.

        Returns:
            `list[Product]`: best first; nothing for a query without a word of the catalogue.
        """
        query = query.lower()
        if query not in self._cache:
            self._cache[query] = self._search(query)
        return self._cache[query]

    def _search(self, query: str) -> list[Product]:
        first, _, rest = query.partition(" ")
        if first == "<r>":
            return random.Random(query).sample(list(self.products), min(HITS, len(self.products)))
        if first == "<a>":
            return [product for product in self.products if rest in product.attributes][:HITS]
        if first == "<c>":
            return [product for product in self.products if product.category == rest][:HITS]
        if first == "<q>":
            return [product for product in self.products if product.query == rest][:HITS]
        tokens = [token for token in self._tokens([query])[0] if token in self._index.vocab_dict]
        if not tokens:
            return []
        hits, scores = self._index.retrieve([tokens], k=min(HITS, len(self.products)), show_progress=False)
        ranked = sorted(zip(-scores[0], hits[0], strict=True))  # ties by position
        return [self.products[index] for score, index in ranked if score < 0]


def indexed_text(product: Product) -> str:
    """What of a product is searched."""
    options = ", and ".join(f"{name}: {', '.join(values)}" for name, values in product.options.items())
    bullet = product.bullet_points[0] if product.bullet_points else ""
    return f"{product.title} {product.description} {bullet} {options}".lower()
