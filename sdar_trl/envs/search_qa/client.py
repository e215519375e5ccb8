"""A search server as a search engine: the client of Search-R1's HTTP protocol."""

import http.client
import json
import logging
import random
import socket
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from .engines import Hit, SearchError
from .questions import Document


logger = logging.getLogger(__name__)

LARGEST_ANSWER = 8 * 2**20  # bytes
START = "Start one with `python -m sdar_trl.envs.search_qa.serve`, or give the address of one that runs."


class _Refused(SearchError):
    """The server does not take the request, and would not take it again."""


@dataclass
class _Call:
    queries: Sequence[str]
    topk: int
    future: "Future[list[list[Hit]]]" = field(default_factory=Future)


class SearchClient:
    """
    Asks a search server: `POST /retrieve` with `queries`, `topk` and `return_scores`, which answers a list of
    `{"document": {"contents": "Title\\nText"}, "score": 1.0}` for each query, bare or as `result`.

    Calls that come shortly one after another, as those of the episodes of a turn, go as one request.

    Args:
        url (`str`):
            Address of the server, with or without `/retrieve`.
        timeout (`float`, *optional*, defaults to `30.0`):
            Most seconds of a request, from connecting to the last byte.
        attempts (`int`, *optional*, defaults to `4`):
            Most requests for a call.
        backoff (`float`, *optional*, defaults to `0.5`):
            Seconds before the second request, doubled for each further one, with jitter.
        wait (`float`, *optional*, defaults to `0.005`):
            Calls are gathered until none has come for so many seconds.
        batch_size (`int`, *optional*, defaults to `128`):
            Most queries of a request.

    Raises:
        `ValueError`: if `url` is no HTTP address.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 30.0,
        attempts: int = 4,
        backoff: float = 0.5,
        wait: float = 0.005,
        batch_size: int = 128,
    ):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"`search_url` must be an address such as http://127.0.0.1:8000, got {url!r}.")
        self.url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/retrieve')}/retrieve"
        self.timeout, self.attempts, self.backoff = timeout, attempts, backoff
        self.wait, self.batch_size = wait, batch_size
        self._lock = threading.Lock()
        self._waiting: list[_Call] = []

    def search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        call = _Call(queries, topk)
        with self._lock:
            self._waiting.append(call)
            first = len(self._waiting) == 1
        if first:  # it sends what has come until then; later calls make up the next request
            self._answer(self._gathered())
        return call.future.result()

    def _gathered(self) -> list[_Call]:
        """The calls that wait, once no more of them come."""
        count = 0
        while True:
            time.sleep(self.wait)
            with self._lock:
                if len(self._waiting) == count or len(self._waiting) >= self.batch_size:
                    calls, self._waiting = self._waiting, []
                    return calls
                count = len(self._waiting)

    def _answer(self, calls: list[_Call]) -> None:
        """Send calls in as few requests as possible, and give each its answer or its error."""
        while calls:
            count, size = 0, 0
            while count < len(calls) and calls[count].topk == calls[0].topk:
                size += len(calls[count].queries)
                if count and size > self.batch_size:
                    break
                count += 1
            batch, calls = calls[:count], calls[count:]
            try:
                hits = iter(self._retried([query for call in batch for query in call.queries], batch[0].topk))
                for call in batch:
                    call.future.set_result([next(hits) for _ in call.queries])
            except _Refused as error:
                if len(batch) == 1:
                    batch[0].future.set_exception(error)
                else:  # which of them it is that the server does not take
                    for call in batch:
                        self._answer([call])
            except BaseException as error:
                for call in batch:
                    call.future.set_exception(error)

    def _retried(self, queries: list[str], topk: int) -> list[list[Hit]]:
        for attempt in range(1, self.attempts + 1):
            try:
                return self._request(queries, topk)
            except _Refused:
                raise
            except (SearchError, OSError, http.client.HTTPException) as error:
                failed = error
            if attempt < self.attempts:
                pause = self.backoff * 2 ** (attempt - 1) * random.uniform(0.5, 1.0)
                logger.debug("%s: %r; again in %.1f s.", self.url, failed, pause)
                time.sleep(pause)
        said = str(failed) if isinstance(failed, SearchError) else f"{type(failed).__name__}: {failed}"
        raise SearchError(f"The search server {self.url} did not answer in {self.attempts} attempts ({said}). {START}")

    def _request(self, queries: list[str], topk: int) -> list[list[Hit]]:
        status, body = self._post({"queries": queries, "topk": topk, "return_scores": True})
        if status != 200:
            kind = _Refused if 400 <= status < 500 and status not in (408, 425, 429) else SearchError
            raise kind(f"The search server {self.url} answered with status {status}: {_start(body)}")
        try:
            return _hits(json.loads(body), len(queries), topk)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise SearchError(
                f"expected a list of {len(queries)} lists of {{document: {{contents}}, score}}, got {_start(body)} "
                f"({type(error).__name__}: {error})"
            ) from error

    def _post(self, content: Any) -> tuple[int, bytes]:
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=self.timeout)
        deadline = time.monotonic() + self.timeout
        connection.connect()
        # a socket's own timeout is for each byte; a server that sends one now and then would be waited for
        cut = threading.Timer(self.timeout, _shut, [connection.sock])
        cut.start()
        try:
            connection.request("POST", parts.path, json.dumps(content), {"Content-Type": "application/json"})
            response = connection.getresponse()
            body = response.read(LARGEST_ANSWER + 1)
            if len(body) > LARGEST_ANSWER:
                raise SearchError(f"an answer of more than {LARGEST_ANSWER} bytes")
            if response.length:
                raise http.client.IncompleteRead(body, response.length)
            return response.status, body
        except (OSError, http.client.HTTPException) as error:
            if time.monotonic() >= deadline:
                raise TimeoutError(f"no whole answer within {self.timeout} seconds") from error
            raise
        finally:
            cut.cancel()
            connection.close()


def _shut(connected: socket.socket) -> None:
    with suppress(OSError):
        connected.shutdown(socket.SHUT_RDWR)


def _hits(answer: Any, count: int, topk: int) -> list[list[Hit]]:
    results = answer["result"] if isinstance(answer, dict) else answer
    if not isinstance(results, list) or len(results) != count:
        raise ValueError(f"{count} queries")
    return [[_hit(found) for found in result[:topk]] for result in results]


def _hit(found: Any) -> Hit:
    contents = found["document"]["contents"]
    if not isinstance(contents, str):
        raise TypeError("`contents` is no text")
    return Hit(Document.of(contents), float(found["score"]))


def _start(body: bytes) -> str:
    return repr(body[:120].decode("utf-8", "replace"))
