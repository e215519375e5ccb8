"""Reading the official files, with errors that name what is wrong in them."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from .catalogue import distinct, listed_prices


SOURCE = "The official files are downloaded by setup.sh of the WebShop repository (princeton-nlp/WebShop)."
CHUNK = 2**22  # characters
LONGEST_RECORD = 2**26
SPACE = re.compile(r"[ \t\n\r]*")


def official_files(data_dir: Path) -> tuple[Path, ...]:
    """
    The files of products and of their instructions in a folder: the full ones if they are there, else the small ones.

    Args:
        data_dir (`Path`):
            The folder.

    Returns:
        `tuple[Path, ...]`: `items_shuffle.json` and `items_ins_v2.json`, or both with `_1000`.

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


def read_items(path: Path) -> Iterator[Mapping[str, Any]]:
    """
    The records of an `items_shuffle` file that become products, one at a time: the full file is 5 GB.

    Args:
        path (`Path`):
            The file.

    Yields:
        `dict`: a record. Of those whose id is "nan", too long or repeated, only the id is read.

    Raises:
        `ValueError`: if a record is malformed; the message names the file, the record and the field.
    """
    for item in distinct(_identified(path)):
        _check_item(path, item)
        yield item


def read_records(path: Path) -> dict[str, Any]:
    """The records of an `items_ins_v2` or `items_human_ins` file, by id of the product. None is looked at yet."""
    with _naming(path), existing(path).open(encoding="utf-8") as file:
        records = json.load(file)
    if not isinstance(records, dict):
        raise ValueError(f"{path}: expected a JSON object by product id, got {repr(records)[:40]}. {SOURCE}")
    return records


def instruction_of(path: Path, records: Mapping[str, Any], asin: str) -> dict[str, Any]:
    """
    The record of a product in an `items_ins_v2` file.

    Args:
        path (`Path`):
            The file, for the error.
        records (`dict[str, Any]`):
            Its records.
        asin (`str`):
            The product's id.

    Returns:
        `dict[str, Any]`: the record; empty if there is none.

    Raises:
        `ValueError`: if it is malformed.
    """
    record = records.get(asin, {})
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
    return record


def human_instructions_of(path: Path, records: Mapping[str, Any], asin: str) -> list[dict[str, Any]]:
    """
    The instructions of a product in an `items_human_ins` file, but for those without attributes: they make no goals.

    Args:
        path (`Path`):
            The file, for the error.
        records (`dict[str, Any]`):
            Its records.
        asin (`str`):
            The product's id.

    Returns:
        `list[dict[str, Any]]`: the instructions.

    Raises:
        `ValueError`: if one is malformed.
    """
    goals = records.get(asin, [])
    if not isinstance(goals, list):
        _fail(path, asin, "", "a list of objects", goals)
    found = []
    for goal in goals:
        if not isinstance(goal, dict):
            _fail(path, asin, "", "a list of objects", goal)
        attributes = goal.get("instruction_attributes")
        if attributes in ([], "", {}):
            continue
        if not _strings(attributes):
            _fail(path, asin, "instruction_attributes", "a list of strings", attributes)
        if not isinstance(goal.get("instruction"), str):
            _fail(path, asin, "instruction", "a string", goal.get("instruction"))
        options = goal.get("instruction_options")
        if not isinstance(options, dict) and not _strings(options):
            _fail(path, asin, "instruction_options", "a list of strings, or an object", options)
        found.append(goal)
    return found


def _identified(path: Path) -> Iterator[Mapping[str, Any]]:
    for number, item in enumerate(_read_list(path)):
        if not isinstance(item, dict) or not isinstance(item.get("asin"), str):
            _fail(path, f"record {number}", "asin", "a string", item.get("asin") if isinstance(item, dict) else item)
        yield item


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


def _fail(path: Path, record: str, field: str, expected: str, got: Any) -> NoReturn:
    where = f"{record}, field `{field}`" if field else record
    raise ValueError(f"{path}: {where}: expected {expected}, got {repr(got)[:80]}. {SOURCE}")


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors of reading name the file."""
    try:
        yield
    except UnicodeDecodeError as error:
        before = error.object[: error.start][-40:].decode(errors="replace")
        problem = f"byte {error.object[error.start]:#04x} after {before!r} is not UTF-8"
        raise ValueError(f"{path}: {problem}. {SOURCE}") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}). {SOURCE}") from None


def _read_list(path: Path) -> Iterator[Any]:
    """The elements of a JSON list, without reading all of it at once."""
    decode = json.JSONDecoder().raw_decode
    with _naming(path), existing(path).open(encoding="utf-8") as file:
        buffer, position = "", 0

        def more() -> bool:
            nonlocal buffer, position
            chunk = file.read(CHUNK)
            buffer, position = buffer[position:] + chunk, 0
            return bool(chunk)

        def next_character() -> str:
            nonlocal position
            while True:
                position = SPACE.match(buffer, position).end()  # type: ignore[union-attr]  # always matches
                if position < len(buffer) or not more():
                    return buffer[position : position + 1]

        def fail(problem: str) -> NoReturn:
            rest = repr(buffer[position : position + 60]) if position < len(buffer) else "the end of the file"
            raise ValueError(f"{path}: {problem} {rest}. {SOURCE}")

        if next_character() != "[":
            fail("expected a JSON list of products, got")
        position += 1
        separator = next_character()
        if separator == "]":
            position += 1
        while separator != "]":
            next_character()
            try:
                record, position = decode(buffer, position)
            except json.JSONDecodeError as error:
                if len(buffer) - position > LONGEST_RECORD or not more():
                    fail(f"not valid JSON ({error.msg}) at")
                continue  # the record went on in the next chunk
            yield record
            separator = next_character()
            if separator not in (",", "]"):
                fail("expected a comma or the end of the list, got")
            position += 1
        if next_character():
            fail("expected nothing after the list (are these several files in one?), got")
