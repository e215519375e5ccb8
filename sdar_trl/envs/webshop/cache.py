"""
The cache of official files on disk: what is in it, and whether it may be used.

Of the files it was built from and of its own, a cache keeps a digest and a stamp: size, times, inode. A file that has
its stamp is not read again; of another the digest decides. So a change is seen though size and time are the same, and
a cache that was copied is good where it is now.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np


VERSION = 2  # counts up when what is in a cache changes
MANIFEST = "manifest.json"
Record = dict[str, str]  # of a file: its "stamp" and its "digest"


@dataclass(frozen=True)
class Cache:
    """
    A cache.

    Args:
        folder (`Path`): Where it is.
        sources (`dict[str, Record]`): The files that it was built from.
        files (`dict[str, Record]`): The files in it.
    """

    folder: Path
    sources: dict[str, Record]
    files: dict[str, Record]

    def array(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """
        An array that is made when it is first asked for, and kept where the cache can be written.

        Args:
            name (`str`):
                Its name.
            make (`Callable`):
                Makes it.

        Returns:
            `np.ndarray`: the array.
        """
        path = self.folder / f"{name}.npy"
        if path.name in self.files:
            return np.load(path, mmap_mode="r")
        values = make()
        with suppress(OSError), _locked(self.folder):
            unfinished = path.with_suffix(".unfinished.npy")
            np.save(unfinished, values)
            unfinished.replace(path)
            _write(Cache(self.folder, self.sources, {**self.files, path.name: record(path)}))
        return values


def stamp(path: Path) -> str:
    """What cheaply tells that a file is the same: no program can set the time of the last change of any kind."""
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"


def record(path: Path, known: Record | None = None) -> Record:
    """
    What a file is now.

    Args:
        path (`Path`):
            The file.
        known (`Record`, *optional*):
            What it was: as long as the stamp is the same, it is.

    Returns:
        `Record`: stamp and digest.
    """
    now = stamp(path)
    if known is not None and known["stamp"] == now:
        return known
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return {"stamp": now, "digest": digest.hexdigest()}


def open_cache(place: Path, sources: tuple[Path, ...], build: Callable[[Path], None]) -> Cache:
    """
    The cache of some files; built if there is none, or one of other files.

    Args:
        place (`Path`):
            The folder it is in; caches of other files may be there too.
        sources (`tuple[Path, ...]`):
            The files.
        build (`Callable`):
            Writes into a folder what the cache holds.

    Returns:
        [`Cache`]: the cache, in which every file is what it was when it was written.

    Raises:
        `ValueError`: if a file of the cache is not; the message says what to do.
        `OSError`: if the cache can be neither read nor built there.
    """
    folder = place / "-".join([sources[0].stem, f"v{VERSION}", *(str(path.stat().st_size) for path in sources)])
    with _advice(folder):
        cache = _read(folder)
    known = cache.sources if cache else {}
    now = {path.name: record(path, known.get(path.name)) for path in sources}
    if cache is None or not _is_of(cache, now):
        with _advice(folder):
            place.mkdir(parents=True, exist_ok=True)
            with _locked(folder):
                cache = _read(folder)
                if cache is None or not _is_of(cache, now):  # no other process has built it meanwhile
                    cache = _build(folder, sources, now, build)
    with _advice(folder):
        checked = Cache(folder, now, {name: _checked(folder / name, old) for name, old in cache.files.items()})
    if checked != cache:
        with suppress(OSError), _locked(folder):
            _write(checked)  # the next time, the stamps will do
    return checked


def _is_of(cache: Cache, sources: dict[str, Record]) -> bool:
    return all(name in cache.sources and cache.sources[name]["digest"] == sources[name]["digest"] for name in sources)


def _build(folder: Path, sources: tuple[Path, ...], now: dict[str, Record], build: Callable[[Path], None]) -> Cache:
    building = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    try:
        build(building)
        for path in sources:
            if stamp(path) != now[path.name]["stamp"]:
                raise RuntimeError(f"{path} changed while it was being read. Load it again when it is complete.")
        cache = Cache(building, now, {path.name: record(path) for path in building.iterdir()})
        _write(cache)
        shutil.rmtree(folder, ignore_errors=True)
        building.rename(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return Cache(folder, cache.sources, cache.files)


def _checked(path: Path, old: Record) -> Record:
    try:
        now = record(path, old)
    except (FileNotFoundError, IsADirectoryError):
        raise _damaged(path) from None
    if now["digest"] != old["digest"]:
        raise _damaged(path)
    return now


def _damaged(path: Path) -> ValueError:
    return ValueError(f"{path} is not what it was when the cache was built. Delete {path.parent}; it is built anew.")


def _read(folder: Path) -> Cache | None:
    """The cache of a folder; `None` if none was built to the end."""
    path = folder / MANIFEST
    try:
        digest, _, text = path.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return None
    if digest != _digest(text):
        raise _damaged(path)
    return Cache(folder, **json.loads(text))


def _write(cache: Cache) -> None:
    text = json.dumps({"sources": cache.sources, "files": cache.files}).encode()
    unfinished = cache.folder / f"{MANIFEST}.unfinished"
    unfinished.write_bytes(_digest(text) + b"\n" + text)
    unfinished.replace(cache.folder / MANIFEST)


def _digest(text: bytes) -> bytes:
    return hashlib.blake2b(text, digest_size=16).hexdigest().encode()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Of several processes, one at a time."""
    from filelock import FileLock

    with FileLock(f"{folder}.lock"):
        yield


@contextmanager
def _advice(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(
            f"The cache {folder} can be neither read nor built: {error}. Name another place for it: `cache_dir`."
        ) from error
