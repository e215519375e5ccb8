"""What a search engine is, and which one a set of arguments stands for."""

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Protocol

from .questions import Document


class Hit(NamedTuple):
    """A document that was found, and its score: the higher, the better."""

    document: Document
    score: float


class SearchError(RuntimeError):
    """A search engine that gave no answer. The message says which, what came instead and what to do."""


class SearchEngine(Protocol):
    """What searches. Any number of threads may ask at the same time."""

    def search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """
        The best documents.

        Args:
            queries (`list[str]`):
                The queries.
            topk (`int`):
                Most documents for each.

        Returns:
            `list[list[Hit]]`: for each query, best first; empty where no document fits.

        Raises:
            [`SearchError`]: if there is no answer.
        """
        ...


def open_engine(
    corpus: str | Path | None = None,
    engine: str = "bm25",
    encoder: str | None = None,
    search_url: str | None = None,
) -> SearchEngine:
    """
    A search engine, one in this process for all that ask with the same arguments.

    Args:
        corpus (`str` or `Path`, *optional*):
            JSON lines with `contents`: title, newline, text. If `None`, the corpus that comes with the package.
        engine (`str`, *optional*, defaults to `"bm25"`):
            `"bm25"` or `"dense"`. The index of a corpus file is built the first time, in `.search_index` beside it.
        encoder (`str`, *optional*):
            With `"dense"`: a model of sentence-transformers.
        search_url (`str`, *optional*):
            A search server, instead of all this.

    Returns:
        [`SearchEngine`]: the engine.

    Raises:
        `ValueError`: if there is no such engine, an argument is missing or of no use, or the corpus is malformed.
        `FileNotFoundError`: if there is no such file.
        `ImportError`: if `"dense"` is asked for and its packages are not installed.
    """
    if search_url is not None:
        if corpus is not None or engine != "bm25" or encoder is not None:
            raise ValueError(
                "`search_url` is a server with an engine of its own: give no `corpus`, `engine`, `encoder`."
            )
        return _server(search_url)
    if engine not in ("bm25", "dense"):
        raise ValueError(f"`engine` must be bm25 or dense, got {engine!r}.")
    if (engine == "dense") != (encoder is not None):
        needs = "needs an `encoder`, a model of sentence-transformers" if engine == "dense" else "takes no `encoder`"
        raise ValueError(f"`engine={engine!r}` {needs}; got {encoder!r}.")
    return _local(None if corpus is None else os.path.abspath(corpus), encoder)


@lru_cache(maxsize=4)
def _local(corpus: str | None, encoder: str | None) -> SearchEngine:
    from .bm25 import bm25_engine

    if encoder is None:
        return bm25_engine(corpus)
    from .dense import dense_engine

    return dense_engine(corpus, encoder)


@lru_cache(maxsize=4)
def _server(url: str) -> SearchEngine:
    from .client import SearchClient

    return SearchClient(url)
