"""
Speed and memory of the search engines, and of a search server, on generated documents at three sizes.

    python benchmarks/search.py --json benchmarks/results/search.json

Documents are 30 to 90 words of a vocabulary of 200,000, as often as words of a language are (Zipf); a query is three
words of a document. Building an index, and searching with it, are processes of their own, on one core; memory is the
peak of a process, pages of mapped files that were looked at included. The server is one more process, asked by one
client for 64 queries at a time. Beside it, on the same words: `retrieve` of bm25s, and rank_bm25. At 1 million
documents this needs 2 GB of disk and some ten minutes.
"""

import argparse
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


TOPK = 3
AT_ONCE = 64  # queries that the client asks for


def write_corpus(path: Path, size: int) -> None:
    """Write generated documents, in the format of wiki-18."""
    import numpy as np

    rng = np.random.default_rng(0)
    vocabulary = np.array([f"{'bcdfghklmnprstvz'[i % 16]}{'aeiou'[i % 5]}{i:x}" for i in range(200_000)])
    weights = 1 / np.arange(10, 200_010)
    weights /= weights.sum()
    with path.open("w") as file:
        for start in range(0, size, 10_000):
            lengths = rng.integers(30, 90, min(10_000, size - start))
            words = vocabulary[rng.choice(len(vocabulary), lengths.sum(), p=weights)].tolist()
            position = 0
            for number, length in enumerate(lengths.tolist(), start):
                text = " ".join(words[position : position + length])
                file.write(json.dumps({"id": str(number), "contents": f"Title {number}\n{text}"}) + "\n")
                position += length


def draw_queries(documents: Any, count: int) -> list[str]:
    """Three words of a document each."""
    rng = random.Random(0)
    return [" ".join(rng.sample(documents[rng.randrange(len(documents))].text.split(), 3)) for _ in range(count)]


def peak_gb() -> float:
    """Peak of the resident memory so far; `getrusage` would count that of the process which started this one."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1e6


def build(path: str) -> dict[str, float]:
    """Seconds and memory of building the index."""
    from sdar_trl.envs.search_qa.bm25 import bm25_engine

    start = time.perf_counter()
    bm25_engine(path)
    seconds = time.perf_counter() - start
    folder = Path(path).parent / ".search_index"
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return {"index_seconds": seconds, "index_peak_gb": peak_gb(), "index_gb": size / 1e9}


def use(path: str, count: int) -> dict[str, float]:
    """Queries a second, one at a time, and memory."""
    from sdar_trl.envs.search_qa.bm25 import bm25_engine

    start = time.perf_counter()
    engine = bm25_engine(path)
    opened = time.perf_counter() - start
    queries = draw_queries(engine.documents, count)
    engine.search(queries[:20], TOPK)
    start = time.perf_counter()
    for query in queries:
        engine.search([query], TOPK)
    return {
        "open_seconds": opened,
        "bm25_queries_per_second": count / (time.perf_counter() - start),
        "rss_gb": peak_gb(),
    }


def use_bm25s(path: str, count: int) -> dict[str, float]:
    """The same index, by `retrieve` of bm25s."""
    from sdar_trl.envs.search_qa.bm25 import bm25_engine, words

    engine = bm25_engine(path)
    queries = [words(query) for query in draw_queries(engine.documents, count)]
    start = time.perf_counter()
    for query in queries:
        engine.index.retrieve([query], k=TOPK, show_progress=False)
    return {"bm25s_queries_per_second": count / (time.perf_counter() - start), "bm25s_rss_gb": peak_gb()}


def use_rank_bm25(path: str, count: int) -> dict[str, float]:
    """The same words, by rank_bm25."""
    from rank_bm25 import BM25Okapi

    from sdar_trl.envs.search_qa.bm25 import bm25_engine, words

    documents = bm25_engine(path).documents
    ranker = BM25Okapi([words(document.contents) for document in documents])
    queries = [words(query) for query in draw_queries(documents, count)]
    start = time.perf_counter()
    for query in queries:
        ranker.get_top_n(query, range(len(documents)), TOPK)
    return {"rank_bm25_queries_per_second": count / (time.perf_counter() - start), "rank_bm25_rss_gb": peak_gb()}


def ask_server(path: str, count: int) -> dict[str, float]:
    """Queries a second of a server and a client, and the server's memory."""
    import psutil

    from sdar_trl.envs.search_qa.bm25 import bm25_engine
    from sdar_trl.envs.search_qa.client import SearchClient

    queries = draw_queries(bm25_engine(path).documents, count)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "sdar_trl.envs.search_qa.serve", "--corpus", path, "--port", str(port)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        try:
            SearchClient(f"http://127.0.0.1:{port}", attempts=12, backoff=0.2).search(queries[:20], TOPK)
            client = SearchClient(f"http://127.0.0.1:{port}", wait=0.0)
            start = time.perf_counter()
            for first in range(0, count, AT_ONCE):
                client.search(queries[first : first + AT_ONCE], TOPK)
            seconds = time.perf_counter() - start
            rss = psutil.Process(server.pid).memory_info().rss / 1e9
        finally:
            server.terminate()
    return {"server_queries_per_second": count / seconds, "server_rss_gb": rss}


PARTS = {"bm25": use, "bm25s": use_bm25s, "rank_bm25": use_rank_bm25, "server": ask_server}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="Numbers of documents."
    )
    parser.add_argument("--queries", type=int, default=2000, help="Queries to time; slow engines get fewer.")
    parser.add_argument("--quick", action="store_true", help="Small sizes, few queries: shows that it runs.")
    parser.add_argument("--json", help="File to write the results to.")
    parser.add_argument("--part", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        name, path, count = args.part
        print(json.dumps(build(path) if name == "build" else PARTS[name](path, int(count))))
        return
    # not before: it imports torch, which is no part of what is measured
    from common import in_process, table, write_json

    os.environ["OMP_NUM_THREADS"] = "1"
    if args.quick:
        args.sizes, args.queries = [500, 1_000], 200
    rows: list[dict[str, Any]] = []
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "corpus.jsonl"
            write_corpus(path, size)
            row: dict[str, Any] = {"documents": size, "corpus_gb": path.stat().st_size / 1e9}
            row |= in_process(__file__, "--part", "build", path, 0)
            for name in PARTS:
                if name == "rank_bm25" and size > 100_000:  # tens of gigabytes
                    row |= {"rank_bm25_queries_per_second": None, "rank_bm25_rss_gb": None}
                    continue
                slow = name == "rank_bm25" or (name == "bm25s" and size > 100_000)
                row |= in_process(__file__, "--part", name, path, min(args.queries, 100) if slow else args.queries)
            rows.append(row)
            print(row, flush=True)
    by_size = {row["documents"]: row for row in rows}
    smallest, largest = by_size.get(10_000, rows[0]), by_size.get(1_000_000, rows[-1])
    summary = {
        "bm25_queries_per_second_10k": smallest["bm25_queries_per_second"],
        "bm25_queries_per_second_1m": largest["bm25_queries_per_second"],
        "rss_gb_1m": largest["rss_gb"],
        "index_seconds_1m": largest["index_seconds"],
        "server_queries_per_second_10k": smallest["server_queries_per_second"],
        "speedup_vs_rank_bm25_10k": smallest["bm25_queries_per_second"] / smallest["rank_bm25_queries_per_second"],
    }
    print(table(rows), *(f"{name}: {value:.3g}" for name, value in summary.items()), sep="\n\n")
    write_json(args.json, {"options": vars(args), "sizes": rows, "summary": summary})


if __name__ == "__main__":
    main()
