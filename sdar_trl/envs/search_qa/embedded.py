"""The corpus and the questions that come with the package."""

import gzip
import json
import random
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import product
from typing import Any

from .generate import FACTS
from .questions import Document, Question


SHARES = {"train": 0.6, "validation": 0.15, "test": 0.25}  # of the entities of each source
SIZES = {"train": 1600, "validation": 120, "test": 240}  # most questions of each kind


@lru_cache(maxsize=1)
def facts() -> dict[str, list[dict[str, Any]]]:
    """The entities of each source, each with its `split`; a city is in its country's."""
    found = json.loads(gzip.decompress(FACTS.read_bytes()))
    for source in ("countries", "elements"):
        entities = random.Random(source).sample(found[source], len(found[source]))
        for number, entity in enumerate(entities):
            place = (number + 0.5) / len(entities)
            entity["split"] = (
                "train" if place < SHARES["train"] else "test" if place >= 1 - SHARES["test"] else "validation"
            )
    countries = {country["code"]: country for country in found["countries"]}
    for city in found["cities"]:
        city["country"] = countries[city["country"]]
        city["split"] = city["country"]["split"]
    return found


@lru_cache(maxsize=1)
def documents() -> tuple[Document, ...]:
    """The corpus: three documents of each country, and one of each city, currency and element."""
    found = []
    for country in facts()["countries"]:
        name = country["name"]
        currency = f" Its currency is the {country['currency']}." if "currency" in country else ""
        code = f" Its calling code is {country['calling_code']}." if "calling_code" in country else ""
        found += [
            Document(f"Government of {name}", f"The capital of {name} is {country['capital']}."),
            Document(
                f"Geography of {name}",
                f"{name} has an area of {country['area']} square kilometres, {country['population']} inhabitants and "
                f"{country['neighbours']} neighbours.",
            ),
        ]
        if currency or code:
            found.append(Document(f"Economy of {name}", f"The economy of {name}.{currency}{code}"))
        if currency:
            text = f"The {country['currency_name'].lower()}, code {country['currency_code']}, is the money of {name}."
            found.append(Document(f"{country['currency'].capitalize()} (currency)", text))
    for city in facts()["cities"]:
        side = "north" if city["latitude"] >= 0 else "south"
        text = (
            f"{city['name']} is a city in {city['country']['name']} at {abs(city['latitude'])} degrees {side}, with "
            f"{city['population']} inhabitants."
        )
        found.append(Document(city["name"], text))
    for element in facts()["elements"]:
        text = (
            f"{element['name'].capitalize()} is a chemical element with the symbol {element['symbol']}, the atomic "
            f"number {element['number']} and the atomic mass {element['mass']}."
        )
        found.append(Document(element["name"].capitalize(), text))
    return tuple(found)


@lru_cache(maxsize=3)
def questions(split: str) -> tuple[Question, ...]:
    """
    The questions of a split, in an order of their own. No entity of one split's questions, named or in between, is in
    another's.

    Args:
        split (`str`):
            `"train"`, `"validation"` or `"test"`.

    Returns:
        `tuple[Question, ...]`: the questions.
    """
    rng = random.Random(split)
    found: list[Question] = []
    for kind in (_direct, _attribute, _multi_hop, _comparison):
        several = list({question.text: question for question in kind(split, rng)}.values())
        found += rng.sample(several, min(len(several), SIZES[split]))
    rng.shuffle(found)
    return tuple(found)


def _of(source: str, split: str) -> list[dict[str, Any]]:
    return [entity for entity in facts()[source] if entity["split"] == split]


def _direct(split: str, rng: random.Random) -> Iterator[Question]:
    """One fact, found by what it is about."""
    for city in _of("cities", split):
        yield from _asked("direct", "cities", f"Which country is {city['name']} in?", _country(city), [city["name"]])
    for country in _of("countries", split):
        for name, words in (("calling_code", "has the calling code"), ("currency", "has as its currency the")):
            if name in country:
                text, proof = f"Which country {words} {country[name]}?", [f"Economy of {country['name']}"]
                yield from _asked("direct", "countries", text, [country["name"], *country["aliases"]], proof)
    for element in _of("elements", split):
        text = f"Which chemical element has the atomic number {element['number']}?"
        yield from _asked("direct", "elements", text, [element["name"]], [element["name"].capitalize()])


# The attributes of a country: what they are called, the answers, and the document.
_ATTRIBUTES: dict[str, tuple[str, Callable[[dict[str, Any]], list[str]], str]] = {
    "capital": ("the capital", lambda country: [country["capital"], *country["capital_aliases"]], "Government"),
    "area": ("the area in square kilometres", lambda country: [str(country["area"])], "Geography"),
    "calling_code": ("the calling code", lambda country: [country["calling_code"]], "Economy"),
    "currency": (
        "the currency",
        lambda country: [country["currency"], country["currency_name"], country["currency_code"]],
        "Economy",
    ),
}


def _attribute(split: str, rng: random.Random) -> Iterator[Question]:
    """A property of a thing that is named."""
    for country, name in product(_of("countries", split), _ATTRIBUTES):
        if name in country:
            called, answers, part = _ATTRIBUTES[name]
            text, proof = f"What is {called} of {country['name']}?", [f"{part} of {country['name']}"]
            yield from _asked("attribute", "countries", text, answers(country), proof)
    for city in rng.sample(_of("cities", split), len(_of("cities", split)) // 3):
        text = f"What is the number of inhabitants of {city['name']}?"
        yield from _asked("attribute", "cities", text, [str(city["population"])], [city["name"]])
    for element, (called, field) in product(
        _of("elements", split), (("atomic number", "number"), ("atomic mass", "mass"))
    ):
        text, proof = f"What is the {called} of {element['name']}?", [element["name"].capitalize()]
        yield from _asked("attribute", "elements", text, [str(element[field])], proof)


def _multi_hop(split: str, rng: random.Random) -> Iterator[Question]:
    """A property of a thing that another tells."""
    for city in _of("cities", split):
        country = city["country"]
        for name in rng.sample([name for name in _ATTRIBUTES if name in country], 2):
            called, answers, part = _ATTRIBUTES[name]
            text = f"What is {called} of the country that {city['name']} is in?"
            proof = [city["name"], f"{part} of {country['name']}"]
            yield from _asked("multi_hop", "cities", text, answers(country), proof)
    for country in _of("countries", split):
        if "currency" in country:
            for name in ("capital", "area"):
                called, answers, part = _ATTRIBUTES[name]
                text = f"What is {called} of the country whose currency is the {country['currency']}?"
                proof = [f"Economy of {country['name']}", f"{part} of {country['name']}"]
                yield from _asked("multi_hop", "countries", text, answers(country), proof)


def _comparison(split: str, rng: random.Random) -> Iterator[Question]:
    """Two things, by the same property."""
    north = [city for city in _of("cities", split) if city["latitude"] > 0]
    for source, entities, field, gap, words, title in (
        ("cities", north, "latitude", 3, "city is further north", "{}"),
        ("countries", _of("countries", split), "neighbours", 2, "country has more neighbours", "Geography of {}"),
        ("elements", _of("elements", split), "number", 3, "element has the higher atomic number", "{}"),
    ):
        for _ in range(SIZES[split] // 3):
            pair = rng.sample(entities, 2)
            while abs(pair[0][field] - pair[1][field]) < gap:
                pair = rng.sample(entities, 2)
            a, b = (entity["name"] for entity in pair)
            more = max(pair, key=lambda entity: entity[field])["name"]
            proof = tuple(title.format(name[0].upper() + name[1:]) for name in (a, b))
            yield Question(f"Which {words}, {a} or {b}?", (more,), source, "comparison", proof)


def _country(city: dict[str, Any]) -> list[str]:
    return [city["country"]["name"], *city["country"]["aliases"]]


def _asked(kind: str, source: str, text: str, answers: list[str], proof: list[str]) -> Iterator[Question]:
    """The question, unless its own words give the answer away."""
    if not _stems(text) & {stem for answer in answers[:1] for stem in _stems(answer)}:
        yield Question(text, tuple(dict.fromkeys(answers)), source, kind, tuple(proof))


def _stems(text: str) -> set[str]:
    """Beginnings of words."""
    return {word[:4] for word in re.findall(r"\w+", text.lower()) if len(word) > 2}
