"""
Speed and memory of ALFWorld's engine, on embedded games, beside the engine as it comes in its packages.

    python benchmarks/alfworld.py --json benchmarks/results/alfworld.json

Each figure is measured in one process of its own, on one core. The player does at random what is possible, and often
what the solution does next; text, commands and outcome of the two engines are compared at every step. Resets are of
games whose translation is in the cache folder, and of games that are seen for the first time. Memory of an environment
is that of a worker process, each page counted once for all that share it (`Pss`).
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


sys.path.append(sys.path.pop(0))  # `alfworld` is the package, not this file beside `common`


def names(count: int) -> list[str]:
    return [f"valid_unseen/{number}" for number in range(count)]


def compare(games: int, steps: int) -> dict[str, Any]:
    """Seconds of each step and reset, by both engines; they must agree."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from alfworld_stock import choose, stock_environment

    from sdar_trl.envs.alfworld.engine import Game
    from sdar_trl.envs.alfworld.env import load_game

    seconds: dict[str, list[float]] = {name: [] for name in ("step", "stock_step", "new", "reset", "stock_reset")}
    by_game = []
    for name in names(games):
        data = load_game(name)
        start = time.perf_counter()
        Game(data, name).close()
        seconds["new"].append(time.perf_counter() - start)
        start = time.perf_counter()
        game = Game(data, name)
        seconds["reset"].append(time.perf_counter() - start)
        start = time.perf_counter()
        stock = stock_environment(data)
        state = stock.reset()
        seconds["stock_reset"].append(time.perf_counter() - start)
        view, rng, solution, own, other = game.first, random.Random(0), list(data["walkthrough"]), [], []
        for _ in range(steps):
            assert (view.text, view.commands) == (state.feedback, state.admissible_commands), name
            command = choose(view.commands, solution, rng)
            start = time.perf_counter()
            view = game.step(command)
            own.append(time.perf_counter() - start)
            start = time.perf_counter()
            state, _, _ = stock.step(command)
            other.append(time.perf_counter() - start)
            assert view.won == state.won, name
        game.close()
        seconds["step"] += own
        seconds["stock_step"] += other
        by_game.append(sum(other) / sum(own))
    return {
        "compared_steps": len(seconds["step"]),
        "steps_per_second": 1 / statistics.median(seconds["step"]),
        "steps_per_second_mean": 1 / statistics.mean(seconds["step"]),
        "stock_steps_per_second": 1 / statistics.median(seconds["stock_step"]),
        "speedup_vs_stock": statistics.median(by_game),
        "reset_seconds": statistics.median(seconds["reset"]),
        "reset_seconds_p95": statistics.quantiles(seconds["reset"], n=20)[-1],
        "first_reset_seconds": statistics.median(seconds["new"]),
        "stock_reset_seconds": statistics.median(seconds["stock_reset"]),
    }


def resets(games: int, count: int) -> dict[str, float]:
    """What many resets leave: memory in MB, files in the temporary folder, copies of the library that are held."""
    from sdar_trl.envs import AlfWorldEnv

    env, rng = AlfWorldEnv(), random.Random(0)

    def play(number: int) -> None:
        env.reset(game=names(games)[number % games])
        for _ in range(3):
            env.step(f"<action>{rng.choice(env.commands)}</action>")

    for number in range(max(games, count // 5)):
        play(number)
    before = resident_mb()
    for number in range(count):
        play(number)
    after = resident_mb()
    env.close()
    held = {line.split()[-2] for line in Path("/proc/self/maps").read_text().splitlines() if "libdownward" in line}
    held = {path for path in held if path.startswith(tempfile.gettempdir())}
    left = sum(path.stat().st_size for path in Path(tempfile.gettempdir()).rglob("*") if path.is_file()) / 1e6
    return {"grown_mb": after - before, "tmp_mb_after_1000_resets": left, "held_copies": len(held)}


def workers(count: int, games: int) -> dict[str, float]:
    """Memory in MB and seconds until they answer, of environments in processes of their own."""
    from sdar_trl.envs import load_world
    from sdar_trl.envs.workers import start_worker

    start = time.perf_counter()
    started = [start_worker(load_world("alfworld").environment_factory) for _ in range(count)]
    for number, worker in enumerate(started):
        worker.start("reset", game=names(games)[number % games])
    for worker in started:
        worker.result()
    seconds = time.perf_counter() - start
    shares = [pss_mb(worker._process.pid) for worker in started]
    for worker in started:
        worker.close()
    return {"workers": count, "rss_mb_per_env": statistics.mean(shares), "seconds_to_start_all": seconds}


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def pss_mb(pid: int) -> float:
    """A process's own memory, and its share of what it has in common with others."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1e3
    raise RuntimeError(f"There is no Pss of {pid}.")


def in_process(temporary: str, *options: str) -> dict[str, Any]:
    """The result of a part of this script in a process of its own, with a temporary folder of its own."""
    environment = {**os.environ, "TMPDIR": temporary, "XDG_CACHE_HOME": f"{temporary}_cache"}
    done = subprocess.run([sys.executable, __file__, *options], capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--games", type=int, default=24, help="Games to play.")
    parser.add_argument("--steps", type=int, default=100, help="Steps in each of them, with both engines.")
    parser.add_argument("--resets", type=int, default=1000, help="Resets whose traces are looked for.")
    parser.add_argument("--workers", type=int, default=16, help="Environments in processes of their own.")
    parser.add_argument("--quick", action="store_true", help="Few of all: shows that it runs.")
    parser.add_argument("--json", help="File to write the results to.")
    parser.add_argument("--part", choices=["compare", "resets", "workers"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.games, args.steps, args.resets, args.workers = 3, 10, 20, 2
    parts = {
        "compare": lambda: compare(args.games, args.steps),
        "resets": lambda: resets(min(args.games, 12), args.resets),
        "workers": lambda: workers(args.workers, args.games),
    }
    if args.part:
        print(json.dumps(parts[args.part]()))
        return
    # not before: it imports torch, which is no part of what is measured
    from common import table, write_json

    options = [f"--{name}={getattr(args, name)}" for name in ("games", "steps", "resets", "workers")]
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "tmp").mkdir()
        for part in parts:
            results |= in_process(str(Path(folder, "tmp")), *options, "--part", part)
        shutil.rmtree(Path(folder, "tmp_cache"))
    wanted = ("steps_per_second", "reset_seconds", "speedup_vs_stock", "rss_mb_per_env", "tmp_mb_after_1000_resets")
    summary = {name: results[name] for name in wanted}
    print(table([{"": name, "value": value} for name, value in results.items()]))
    print(*(f"{name}: {value:.3g}" for name, value in summary.items()), sep="\n")
    write_json(args.json, {"options": vars(args), **results, "summary": summary})


if __name__ == "__main__":
    main()
