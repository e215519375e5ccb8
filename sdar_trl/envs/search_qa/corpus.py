"""A corpus of documents in a file, and what is built from it, once, beside it."""

import json
import mmap
import shutil
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from .questions import Document


VERSION = 1  # of what is built; counts up when that changes
FORMAT = '{"id": "0", "contents": "Title\\nText"}, one JSON object a line, as in wiki-18.jsonl of Search-R1'


class Corpus(Sequence[Document]):
    """
    The documents of a corpus file, each read when it is looked at.

    Args:
        path (`Path`):
            The file.
        starts (`np.ndarray`):
            Where each document's line begins, and where the last one ends.
    """

    def __init__(self, path: Path, starts: np.ndarray):
        self._starts = starts
        with path.open("rb") as file:
            self._lines = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, index: int) -> Document: ...
    @overload
    def __getitem__(self, index: slice) -> list[Document]: ...
    def __getitem__(self, index: int | slice) -> Document | list[Document]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        position = range(len(self))[index]
        line = self._lines[int(self._starts[position]) : int(self._starts[position + 1])]
        return Document.of(json.loads(line)["contents"])


def read_contents(path: Path, starts: array) -> Iterator[str]:
    """
    The documents of a corpus file, one at a time, with a progress bar.

    Args:
        path (`Path`):
            The file.
        starts (`array`):
            Gets the position of each line, and of the end.

    Yields:
        `str`: `contents`.

    Raises:
        `ValueError`: if a line is malformed; the message names the file and the line.
    """
    from tqdm.auto import tqdm

    position = 0
    with path.open("rb") as file, tqdm(total=path.stat().st_size, unit="B", unit_scale=True, desc=path.name) as bar:
        for number, line in enumerate(file, 1):
            try:
                contents = json.loads(line)["contents"]
            except (ValueError, TypeError, KeyError):
                contents = None
            if not isinstance(contents, str):
                raise ValueError(f"{path}:{number}: expected {FORMAT}; got {line[:80]!r}.")
            starts.append(position)
            position += len(line)
            bar.update(len(line))
            yield contents
    if not starts:
        raise ValueError(f"{path}: expected at least one document; the file is empty.")
    starts.append(position)


def built(path: Path, name: str, build: Callable[[Path], None], **made_with: Any) -> Path:
    """
    What is built from a corpus file: built now, unless it is there and the file has not changed. Of several processes
    one builds, the others wait.

    Args:
        path (`Path`):
            The corpus.
        name (`str`):
            What is built.
        build (`Callable[[Path], None]`):
            Builds it into a folder, and may go on with what it finds there from an earlier, unfinished time.
        **made_with:
            What else it depends on.

    Returns:
        `Path`: its folder, `.search_index/<corpus>.<name>` beside the corpus.

    Raises:
        `FileNotFoundError`: if there is no such corpus.
    """
    from filelock import FileLock

    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such corpus. Expected a file of {FORMAT}.")
    stat = path.stat()
    source = {"version": VERSION, "size": stat.st_size, "modified": stat.st_mtime_ns, **made_with}
    folder = path.parent / ".search_index" / f"{path.name}.{name}"
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    folder.parent.mkdir(exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if _made_from(folder) != source:
            if _made_from(unfinished) != source:
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir()
                (unfinished / "source.json").write_text(json.dumps(source))
            build(unfinished)
            shutil.rmtree(folder, ignore_errors=True)
            unfinished.rename(folder)
    return folder


def _made_from(folder: Path) -> Any:
    file = folder / "source.json"
    return json.loads(file.read_text()) if file.exists() else None
