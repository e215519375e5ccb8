"""The shop that comes with the package."""

import random
import re
from collections.abc import Sequence

import numpy as np

from .analysis import STEMMER, STOP_WORDS
from .catalogue import Product, build_products
from .generate import generate_records
from .goals import shuffled, synthetic_goals
from .search import HITS, SearchEngine, build_index, indexed_text
from .shop import Shop, shared


class EmbeddedSearch(SearchEngine):
    """
    The ranking that the embedded policy was trained on: bm25s over plain words, with ties in the catalogue's order.

    Args:
        products (`Sequence[Product]`):
            The catalogue.
    """

    def __init__(self, products: Sequence[Product]):
        import bm25s

        super().__init__(products, build_index(products))
        self._bm25 = bm25s.BM25(method="lucene", k1=0.9, b=0.4)
        self._bm25.index([plain_words(indexed_text(product)) for product in products], show_progress=False)

    def _ranked(self, query: str) -> np.ndarray:
        known = [word for word in plain_words(query) if word in self._bm25.vocab_dict]
        scores = self._bm25.get_scores(known) if known else np.zeros(0)
        best = np.argsort(-scores, kind="stable")
        return best[scores[best] > 0][:HITS]


def plain_words(text: str) -> list[str]:
    """Words of letters and digits, stemmed, without possessives and stop words."""
    found = (word.removesuffix("'s") for word in re.findall(r"\w+(?:'\w+)*", text.lower()))
    return [STEMMER.stemWord(word) if len(word) > 2 else word for word in found if word not in STOP_WORDS]


@shared
def embedded_shop() -> Shop:
    """The one instance of it."""
    items, instructions = generate_records()
    products = build_products(items, instructions, random.Random(0))
    goals = shuffled(synthetic_goals(products, random.Random(0)))
    return Shop(products, EmbeddedSearch(products), goals, "embedded")
