"""Reading the official files, with errors that name what is wrong in them."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .catalogue import listed_prices


SOURCE = "The official files are downloaded by setup.sh of the WebShop repository (princeton-nlp/WebShop)."
CHUNK = 2**22  # characters
LONGEST_RECORD = 2**26
BETWEEN_RECORDS = re.compile(r"[\s,]*")


def official_files(data_dir: Path) -> tuple[Path, Path]:
    """
    The files of products and of their instructions in a folder: the full ones if they are there, else the small ones.

    Args:
        data_dir (`Path`):
            The folder.

    Returns:
        `tuple[Path, Path]`: `items_shuffle.json` and `items_ins_v2.json`, or both with `_1000`.

    Raises:
        `FileNotFoundError`: if one of a pair is missing.
    """
    pairs = [(data_dir / f"items_shuffle{size}.json", data_dir / f"items_ins_v2{size}.json") for size in ("", "_1000")]
    for items, instructions in pairs:
        if items.exists():
            return items, existing(instructions)
    raise FileNotFoundError(f"{data_dir} has neither {pairs[0][0].name} nor {pairs[1][0].name}. {SOURCE}")


def existing(path: Path) -> Path:
    """The path, if there is a file; else an error that says where it comes from."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing. {SOURCE}")
    return path


def read_items(path: Path) -> Iterator[dict[str, Any]]:
    """
    The records of an `items_shuffle` file, one at a time: the full file is 5 GB.

    Args:
        path (`Path`):
            The file.

    Yields:
        `dict`: a record; of those whose id is "nan" or too long, which become no products, only the id is checked.

    Raises:
        `ValueError`: if a record is malformed; the message names the file, the record and the field.
    """
    for number, item in enumerate(_read_list(path)):
        if not isinstance(item, dict) or not isinstance(item.get("asin"), str):
            _fail(path, f"record {number}", "asin", "a string", item.get("asin") if isinstance(item, dict) else item)
        if item["asin"] != "nan" and len(item["asin"]) <= 10:
            _check_item(path, item)
        yield item


def read_instructions(path: Path) -> dict[str, dict[str, Any]]:
    """The records of an `items_ins_v2` file, by id of the product. Raises `ValueError` if one is malformed."""
    records = _read_mapping(path)
    for asin, record in records.items():
        if not isinstance(record, dict):
            _fail(path, asin, "", "an object", record)
        if not _strings(record.get("attributes", [])):
            _fail(path, asin, "attributes", "a list of strings", record["attributes"])
        if record.get("instruction") is not None:
            if not isinstance(record["instruction"], str):
                _fail(path, asin, "instruction", "a string or null", record["instruction"])
            wanted = record.get("instruction_attributes")
            if not wanted or not _strings(wanted):
                _fail(path, asin, "instruction_attributes", "a list of strings, not empty", wanted)
    return records


def read_human_instructions(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The records of an `items_human_ins` file, by id of the product. Raises `ValueError` if one is malformed."""
    records = _read_mapping(path)
    for asin, goals in records.items():
        if not isinstance(goals, list):
            _fail(path, asin, "", "a list of objects", goals)
        for goal in goals:
            if not isinstance(goal, dict) or not isinstance(goal.get("instruction"), str):
                _fail(path, asin, "instruction", "a string", goal)
            for field in ("instruction_attributes", "instruction_options"):
                if not _strings(goal.get(field)):
                    _fail(path, asin, field, "a list of strings", goal.get(field))
    return records


def _check_item(path: Path, item: Mapping[str, Any]) -> None:
    record = f"record {item['asin']}"
    for field in ("name", "category", "query", "product_category"):
        if not isinstance(item.get(field), str):
            _fail(path, record, field, "a string", item.get(field))
    if not isinstance(item.get("full_description", 0), str | None):
        _fail(path, record, "full_description", "a string or null", item.get("full_description"))
    bullets = item.get("small_description")
    if not isinstance(bullets, str) and not _strings(bullets):
        _fail(path, record, "small_description", "a list of strings, or a string", bullets)
    pricing = item.get("pricing")
    if pricing and not _is_price(pricing):
        _fail(path, record, "pricing", 'a price such as "$5.00", a range such as "$5.00 - $9.00", or null', pricing)
    options = item.get("customization_options") or {}
    if not isinstance(options, dict):
        _fail(path, record, "customization_options", "an object or null", options)
    for name, values in options.items():
        entries = values if isinstance(values, list) else [] if values is None else [None]
        if not all(isinstance(entry, dict) and isinstance(entry.get("value"), str) for entry in entries):
            _fail(path, record, f"customization_options[{name!r}]", 'null or a list of {"value": string}', values)


def _is_price(pricing: Any) -> bool:
    """Whether the shop can read it: after each "$", what digits and points there are make a number."""
    try:
        return isinstance(pricing, str) and bool(listed_prices(pricing))
    except ValueError:
        return False


def _strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)


def _fail(path: Path, record: str, field: str, expected: str, got: Any) -> None:
    where = f"{record}, field `{field}`" if field else record
    raise ValueError(f"{path}: {where}: expected {expected}, got {repr(got)[:80]}. {SOURCE}")


def _read_list(path: Path) -> Iterator[Any]:
    """The elements of a JSON list, without reading all of it at once."""
    decode = json.JSONDecoder().raw_decode
    with existing(path).open(encoding="utf-8") as file:
        buffer = file.read(CHUNK).lstrip()
        if not buffer.startswith("["):
            raise ValueError(f"{path}: expected a JSON list of products, got {buffer[:40]!r}. {SOURCE}")
        position = 1
        while True:
            position = BETWEEN_RECORDS.match(buffer, position).end()  # type: ignore[union-attr]  # always matches
            if buffer.startswith("]", position):
                return
            try:
                record, position = decode(buffer, position)
            except json.JSONDecodeError as error:  # the record may go on in the next chunk
                more = file.read(CHUNK)
                buffer, position = buffer[position:] + more, 0
                if not more or len(buffer) > LONGEST_RECORD:
                    raise ValueError(f"{path}: not valid JSON ({error.msg}) at {buffer[:60]!r}. {SOURCE}") from None
                continue
            yield record


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        with existing(path).open(encoding="utf-8") as file:
            records = json.load(file)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON ({error}). {SOURCE}") from None
    if not isinstance(records, dict):
        raise ValueError(f"{path}: expected a JSON object by product id, got {repr(records)[:40]}. {SOURCE}")
    return records
