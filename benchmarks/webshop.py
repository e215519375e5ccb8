"""
Speed and memory of WebShop on generated data in the official formats, at three sizes.

    python benchmarks/webshop.py --json benchmarks/results/webshop.json

Building the cache, and loading and playing, are processes of their own, on one core. Steps are those of a player who
searches with five words of the instruction, nearly always other ones, and then clicks at random until the purchase or
the 15th step. Searches alone are timed on new queries: by turns whole instructions, the words of attributes and
options, and a few words. At 1 million products this needs 10 GB of disk and about ten minutes.

How often the light stand-in gives a purchase the same factor for its type as a model of spaCy's does:

    python benchmarks/webshop.py --sizes 1000 --spacy_model en_core_web_sm
"""

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Any


def build(folder: str) -> dict[str, float]:
    """Seconds and peak memory of building the cache."""
    from sdar_trl.envs.webshop.store import load_shop

    start = time.perf_counter()
    load_shop(folder)
    return {"build_seconds": time.perf_counter() - start, "build_peak_gb": peak_gb()}


def use(folder: str, episodes: int, searches: int) -> dict[str, float]:
    """Seconds of loading, steps a second, milliseconds of a search, memory."""
    from sdar_trl.envs import WebShopEnv
    from sdar_trl.envs.webshop.store import load_shop

    start = time.perf_counter()
    shop = load_shop(folder)
    load_seconds = time.perf_counter() - start
    env = WebShopEnv(data_dir=folder)
    rng = random.Random(0)

    start, steps, searched = time.perf_counter(), 0, 0
    for _ in range(episodes):
        env.reset(goal=rng.randrange(len(shop.goals)))
        for _ in range(15):
            if env.page.kind == "search":
                action = f"search[{' '.join(rng.sample(env.goal.instruction.split(), 5))}]"
                searched += 1
            else:
                action = f"click[{rng.choice(env.page.clickables)}]"
            steps += 1
            if env.step(f"<action>{action}</action>").terminated:
                break
    play_seconds = time.perf_counter() - start

    milliseconds = []
    for number in range(searches):
        goal = shop.goals[rng.randrange(len(shop.goals))]
        words = goal.instruction.split()
        query = (
            goal.instruction,
            " ".join([*goal.attributes, goal.query, *goal.options.values()]),
            " ".join(rng.sample(words, 4)),
        )[number % 3]
        start = time.perf_counter()
        shop.engine.search(query)
        milliseconds.append(1000 * (time.perf_counter() - start))

    tracemalloc.start()
    instances = [WebShopEnv(data_dir=folder) for _ in range(1000)]
    for number, instance in enumerate(instances):
        instance.reset(goal=number)
    instance_bytes = tracemalloc.get_traced_memory()[0] / 1000
    return {
        "goals": len(shop.goals),
        "load_seconds": load_seconds,
        "rss_gb": peak_gb(),
        "steps_per_second": steps / play_seconds,
        "search_share": searched / steps,
        "search_ms": statistics.mean(milliseconds),
        "search_ms_p95": statistics.quantiles(milliseconds, n=20)[-1],
        "instance_kb": instance_bytes / 1000,
    }


def peak_gb() -> float:
    """Peak of the resident memory so far; pages of mapped files that were looked at are in it."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def agreement(folder: str, model: str) -> dict[str, Any]:
    """Share of pairs of titles for which the light tagger and spaCy's give the same factor for the type."""
    from sdar_trl.envs.webshop.nouns import LIGHT, spacy_tagger
    from sdar_trl.envs.webshop.reward import type_factor
    from sdar_trl.envs.webshop.store import load_shop

    shop, tagger, rng = load_shop(folder), spacy_tagger(model), random.Random(0)
    same: dict[str, list[bool]] = {"found by the goal's query": [], "drawn at random": []}
    while min(map(len, same.values())) < 2000:
        goal = rng.choice(shop.goals)
        found = rng.choice(shop.engine.search(goal.query))
        for kind, product in zip(same, (found, rng.choice(shop.products)), strict=True):
            if product.title != goal.name:
                same[kind].append(type_factor(product, goal, LIGHT) == type_factor(product, goal, tagger))
    return {"model": tagger.name, **{kind: statistics.mean(equal) for kind, equal in same.items()}}


def in_process(*options: str) -> dict[str, Any]:
    """The result of this script in a process of its own."""
    done = subprocess.run([sys.executable, __file__, *options], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[1_000, 100_000, 1_000_000], help="Numbers of products."
    )
    parser.add_argument("--episodes", type=int, default=1000, help="Episodes to play.")
    parser.add_argument("--searches", type=int, default=300, help="Searches to time.")
    parser.add_argument("--spacy_model", help="Also compare the light tagger of nouns with this model.")
    parser.add_argument("--quick", action="store_true", help="Small sizes, few episodes: shows that it runs.")
    parser.add_argument("--json", help="File to write the results to.")
    parser.add_argument("--build", metavar="DIR", help=argparse.SUPPRESS)
    parser.add_argument("--use", metavar="DIR", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.build:
        print(json.dumps(build(args.build)))
        return
    if args.use:
        print(json.dumps(use(args.use, args.episodes, args.searches)))
        return
    # not before: it imports torch, which is no part of what is measured
    from common import table, write_json

    from sdar_trl.envs.webshop.samples import write_files

    if args.quick:
        args.sizes, args.episodes, args.searches = [200, 1_000], 50, 30
    rows, agreed = [], None
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            write_files(folder, size)
            items_gb = max(path.stat().st_size for path in Path(folder).iterdir()) / 1e9
            limits = ("--episodes", str(args.episodes), "--searches", str(args.searches))
            row = {"products": size, "items_gb": items_gb, **in_process("--build", folder)}
            rows.append({**row, **in_process("--use", folder, *limits)})
            if args.spacy_model and agreed is None:
                agreed = agreement(folder, args.spacy_model)
    by_size = {row["products"]: row for row in rows}
    summary = {
        f"{name}_{short}": by_size[size][name]
        for name, size, short in (
            ("steps_per_second", 1_000, "1k"),
            ("load_seconds", 1_000_000, "1m"),
            ("rss_gb", 1_000_000, "1m"),
            ("search_ms", 1_000_000, "1m"),
        )
        if size in by_size
    }
    print(table(rows), *(f"{name}: {value:.3g}" for name, value in summary.items()), sep="\n\n")
    if agreed:
        print(f"\nSame factor for the type: {agreed}")
    write_json(args.json, {"options": vars(args), "sizes": rows, "agreement": agreed, "summary": summary})


if __name__ == "__main__":
    main()
