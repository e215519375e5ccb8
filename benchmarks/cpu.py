"""
What the waiting of threads and the allocator cost on a CPU, alone and beside one busy process.

    python benchmarks/cpu.py --json benchmarks/results/cpu.json

Each measurement is a process of its own with other environment variables, which must be there before torch is loaded:
the embedded policy's forward and backward on 8 rows of 700 tokens, with as many threads as cores. Settings take turns.
Seconds are those of the clock, for a forward and a backward; a ratio is the median over the rounds of (setting /
default) within a round. System time is the share of the processor's time that the kernel took, mostly for pages that
the allocator gave back and asked for again.
"""

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import time
from typing import Any


PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE"}
KEEP = {"MALLOC_MMAP_THRESHOLD_": "33554432", "MALLOC_TRIM_THRESHOLD_": "1073741824"}  # the first is glibc's highest
SETTINGS: dict[str, dict[str, str]] = {
    "default": {},
    "threads wait passively": PASSIVE,
    "memory is kept": KEEP,
    "both": {**PASSIVE, **KEEP},
    "one thread": {"OMP_NUM_THREADS": "1"},
}


def worker(steps: int) -> dict[str, float]:
    import torch
    from transformers import AutoModelForCausalLM

    from sdar_trl.policies import TINY_POLICY

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(os.cpu_count() or 1)
    model = AutoModelForCausalLM.from_pretrained(TINY_POLICY, dtype=torch.float32)
    input_ids = torch.randint(3, 1_500, (8, 700))

    def step() -> None:
        hidden = model.model(input_ids=input_ids).last_hidden_state[:, ::20]
        model.lm_head(hidden).log_softmax(-1)[..., 0].mean().backward()

    step()
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    for _ in range(steps):
        step()
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    return {"seconds": seconds / steps, "system": system / (user + system)}


def busy() -> None:
    while True:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8, help="Forwards and backwards of a measurement.")
    parser.add_argument("--rounds", type=int, default=3, help="Rounds.")
    parser.add_argument("--quick", action="store_true", help="One round: shows that it runs.")
    parser.add_argument("--json", help="File to write the results to.")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(worker(args.steps)))
        return
    from common import table, write_json

    if args.quick:
        args.steps, args.rounds = 1, 1
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "MALLOC_"))}

    def measured(setting: dict[str, str]) -> dict[str, float]:
        command = [sys.executable, __file__, "--worker", "--steps", str(args.steps)]
        done = subprocess.run(command, env={**plain, **setting}, capture_output=True, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])

    rows: list[dict[str, Any]] = []
    for beside in ("nothing", "one busy process"):
        other = multiprocessing.Process(target=busy, daemon=True)
        if beside != "nothing":
            other.start()
        rounds = [{name: measured(setting) for name, setting in SETTINGS.items()} for _ in range(args.rounds)]
        if beside != "nothing":
            other.terminate()
        for name in SETTINGS:
            found = [one[name]["seconds"] for one in rounds]
            ratios = [one[name]["seconds"] / one["default"]["seconds"] for one in rounds]
            rows.append(
                {
                    "beside": beside,
                    "setting": name,
                    "seconds": statistics.median(found),
                    "time / default": statistics.median(ratios),
                    "system time": statistics.median(one[name]["system"] for one in rounds),
                }
            )
    summary = {f"{row['setting']}, beside {row['beside']}": row["time / default"] for row in rows}
    print(table(rows))
    write_json(args.json, {"options": vars(args), "settings": rows, "summary": summary})


if __name__ == "__main__":
    main()
