"""WebShop's search against Lucene: what Lucene answered is in lucene.json, and BM25 is computed here once more."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from sdar_trl.envs.webshop.analysis import words
from sdar_trl.envs.webshop.catalogue import Product
from sdar_trl.envs.webshop.embedded import embedded_shop
from sdar_trl.envs.webshop.search import Index, SearchEngine, build_index, quantized


LUCENE = json.loads((Path(__file__).parent / "lucene.json").read_text(encoding="utf-8"))


def product(asin, title, **fields):
    values = {
        "description": "",
        "bullet_points": (),
        "category": "",
        "query": "",
        "product_category": "",
        "attributes": (),
        "options": {},
        "price_text": "$1.0",
        "price": 1.0,
        "instruction": None,
        "instruction_attributes": (),
    }
    return Product(asin=asin, title=title, **{**values, **fields})


def engine(products):
    return SearchEngine(products, build_index(products))


def ids(hits):
    return [hit.asin for hit in hits]


@pytest.fixture(scope="module")
def as_in_lucene():
    return engine([product(asin, text) for asin, text in LUCENE["documents"].items()])


@pytest.mark.parametrize(("text", "expected"), LUCENE["words"])
def test_words_are_those_of_lucenes_analyser(text, expected):
    assert words(text) == expected


def test_lengths_are_as_coarse_as_lucene_keeps_them():
    lengths = np.array([int(length) for length in LUCENE["lengths"]])
    assert quantized(lengths).tolist() == list(LUCENE["lengths"].values())


@pytest.mark.parametrize("query", LUCENE["results"])
def test_results_are_lucenes_in_lucenes_order(as_in_lucene, query):
    assert ids(as_in_lucene.search(query)) == LUCENE["results"][query]


def test_products_rank_by_bm25_of_the_formula():
    texts = {"C": "red red shoe", "A": "red lamp", "B": "red lamp", "D": "blue lamp of steel"}
    found = engine([product(asin, text) for asin, text in texts.items()])
    documents = {asin: text.replace("of ", "").split() for asin, text in texts.items()}
    average = sum(map(len, documents.values())) / 4

    def bm25(asin):
        total = 0.0
        for word in ("red", "steel"):
            have = sum(word in document for document in documents.values())
            idf = math.log(1 + (4 - have + 0.5) / (have + 0.5))
            frequency, length = documents[asin].count(word), len(documents[asin])
            total += idf * frequency / (frequency + 0.9 * (1 - 0.4 + 0.4 * length / average))
        return total

    expected = sorted(texts, key=lambda asin: (-bm25(asin), asin))
    assert bm25("A") == bm25("B") and expected.index("A") < expected.index("B")
    assert ids(found.search("red steel")) == expected


def test_title_description_first_bullet_point_and_options_are_searched():
    found = engine(
        [
            product(
                "A", "lamp", description="of brass", bullet_points=("bright", "heavy"), options={"color": ("red",)}
            ),
            product("B", "chair"),
        ]
    )
    assert [ids(found.search(word)) for word in ("lamps", "brass", "bright", "color", "red", "heavy")] == [
        *[["A"]] * 5,
        [],
    ]


def test_an_index_that_was_saved_answers_the_same(as_in_lucene, tmp_path):
    as_in_lucene.index.save(tmp_path)
    again = SearchEngine(as_in_lucene.products, Index.load(tmp_path))
    for query in LUCENE["results"]:
        assert ids(again.search(query)) == ids(as_in_lucene.search(query))


def test_random_results_are_fifty_different_products_and_the_same_for_a_query():
    search = embedded_shop().engine.search
    assert len(set(ids(search("<r>")))) == 50
    assert ids(search("<r>")) == ids(search("<R>")) != ids(search("<r> again"))


def test_the_embedded_shop_breaks_ties_in_the_catalogues_order():
    shop = embedded_shop()
    assert ids(shop.engine.search("ounce")) != sorted(ids(shop.engine.search("ounce")))
