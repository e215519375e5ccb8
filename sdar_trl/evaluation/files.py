"""Records on disk, one JSON line an episode, written as they come, so that what was played is not played again."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..envs.border import plain
from .records import Record


class RecordFile:
    """
    A file of records, whose first line says what they are records of.

    Args:
        path (`str` or `Path`):
            The file; its folder is made if it is not there.
        about (`dict[str, Any]`):
            What is evaluated, and how: panel, seed, tries, and whatever else makes another evaluation.

    Raises:
        `ValueError`: if the file is of another evaluation.
    """

    def __init__(self, path: str | Path, about: dict[str, Any]):
        self.path = Path(path)
        about = plain(about)
        self.records: list[Record] = []
        if self.path.exists() and self.path.stat().st_size:
            found, self.records = read_records(self.path)
            names = sorted(name for name in {*about, *found} if about.get(name) != found.get(name))
            if names:
                told = "; ".join(f"{name}: {found.get(name)!r} there, {about.get(name)!r} now" for name in names)
                raise ValueError(f"{self.path} holds another evaluation ({told}). Give another file, or delete it.")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # whole lines alone: one that was cut short would spoil the next
        lines = [{"about": about}, *(record.to_dict() for record in self.records)]
        self.path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def add(self, records: Iterable[Record]) -> None:
        """Append records."""
        with self.path.open("a") as file:
            file.writelines(json.dumps(record.to_dict()) + "\n" for record in records)


def read_records(path: str | Path) -> tuple[dict[str, Any], list[Record]]:
    """
    What a file of records holds.

    Args:
        path (`str` or `Path`):
            The file. A last line that was cut short is passed over.

    Returns:
        `tuple`: what they are records of, and the records.

    Raises:
        `ValueError`: if it is no such file.
    """
    lines = Path(path).read_text().splitlines()
    try:
        about = json.loads(lines[0])["about"]
    except (IndexError, KeyError, TypeError, ValueError):
        raise ValueError(f"{path} is no file of records: its first line does not say what they are of.") from None
    records = []
    for number, line in enumerate(lines[1:], start=2):
        try:
            records.append(Record.from_dict(json.loads(line)))
        except ValueError:
            if number < len(lines):
                raise ValueError(f"Line {number} of {path} is no record.") from None
    return about, records
