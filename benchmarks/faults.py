"""
Whether environments that fail leave anything behind: memory, threads, open files, processes.

    python benchmarks/faults.py --json benchmarks/results/faults.json

Each round plays one episode of each fault of `tests/toys.py` in each place where environments run (in this process, in
threads, in processes of their own), beside one that has none, and closes all of them. Then what this process holds is
counted. A thread whose call never returns is left out: no thread can be ended from outside.
"""

import argparse
import gc
import logging
import sys
from pathlib import Path
from typing import Any


def held() -> dict[str, Any]:
    import psutil

    gc.collect()
    process = psutil.Process()
    children = process.children(recursive=True)
    return {
        "memory, MB": round(process.memory_info().rss / 1e6, 1),
        "threads": process.num_threads(),
        "open files": process.num_fds(),
        "processes": len(children),
        "memory of processes, MB": round(sum(child.memory_info().rss for child in children) / 1e6, 1),
    }


def study(faults: int) -> list[dict[str, Any]]:
    """What is held after each round, until there were as many faults."""
    # imported here, since the processes of environments import what is above
    from toys import FAULTS, PROCESS_FAULTS, FaultyEnv, FaultyProcessEnv, FaultyThreadEnv, Scripted
    from transformers import AutoTokenizer

    from sdar_trl.chat import Chat
    from sdar_trl.policies import TINY_POLICY
    from sdar_trl.rollout import Rollout

    tokenizer = AutoTokenizer.from_pretrained(TINY_POLICY)
    response = tokenizer("e<|im_end|>", add_special_tokens=False)["input_ids"]
    backend = Scripted(lambda ids: ([response] * len(ids), None))
    limits = {"max_turns": 4, "max_response_length": 8, "max_completion_length": 500}
    places = {FaultyEnv: FAULTS, FaultyThreadEnv: FAULTS, FaultyProcessEnv: {**FAULTS, **PROCESS_FAULTS}}
    rollouts = {kind: Rollout(kind, Chat(tokenizer), backend, **limits) for kind in places}
    task = {"prompt": [{"role": "user", "content": "task: "}], "length": 3}
    count, rounds = 0, []
    while count < faults:
        for kind, rollout in rollouts.items():
            method = ("step", "reset", "close")[len(rounds) % 3]
            episodes = rollout.play([task, *({**task, "fault": fault, "method": method} for fault in places[kind])])
            assert episodes[0].success, episodes[0].error
            count += len(places[kind])
            rollout.close()
        rounds.append({"faults": count, **held()})
    return rounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=200, help="how many, at least")
    parser.add_argument("--quick", action="store_true", help="60 faults")
    parser.add_argument("--json", help="file to write the figures to")
    args = parser.parse_args()

    from common import table, write_json

    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    logging.disable()
    rounds = study(60 if args.quick else args.faults)
    print(table(rounds))
    write_json(args.json, {"options": vars(args), "rounds": rounds})


if __name__ == "__main__":
    main()
