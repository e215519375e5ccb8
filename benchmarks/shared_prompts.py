"""
When it pays to read a prompt once for all the rows that share it, without gradient.

    python benchmarks/shared_prompts.py --json benchmarks/results/shared_prompts.json

A group's rows, ragged completions behind one prompt, go through a model's layers in both ways in turn: each row as a
whole, and the prompt once with its cache repeated. `sdar_trl.scoring` chooses by an estimate of what they cost
(`Part.cost`). The table has that beside the time, both as ratios, shared over not; time is the median over rounds, on
a CPU the processor's, of one thread.
"""

import argparse
import random
import statistics
import time
from typing import Any

import torch
from common import random_qwen2, table, write_json
from step_cost import SIZES

from sdar_trl import scoring
from sdar_trl.policies import TINY_POLICY


# tokens of the prompt, and of completions in the mean
CASES = [(60, 300), (200, 300), (300, 1500), (500, 500), (900, 300), (900, 1500), (2000, 500)]
GROUP = 8


def rows_of(prompt: int, completion: int, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, mask and sampled tokens of a group."""
    draw = random.Random(0)
    lengths = [draw.randint(completion // 2, completion * 3 // 2) for _ in range(GROUP)]
    ids = torch.randint(10, 1_000, (GROUP, prompt + max(lengths)))
    ids[:, :prompt] = ids[0, :prompt]
    mask = torch.ones_like(ids)
    for row, length in enumerate(lengths):
        mask[row, prompt + length :] = 0
    sampled = (torch.rand(GROUP, max(lengths)) < 0.1) & mask[:, prompt:].bool()
    return ids.to(device), mask.to(device), sampled.to(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["tiny", "32k", "152k"], help="Models.")
    parser.add_argument("--rounds", type=int, default=3, help="Rounds.")
    parser.add_argument("--quick", action="store_true", help="A tiny model, one round: shows that it runs.")
    parser.add_argument("--json", help="File to write the results to.")
    args = parser.parse_args()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if args.quick:
        args.sizes, args.rounds = ["quick"], 1
    device = "cuda" if torch.cuda.is_available() else "cpu"
    clock = time.perf_counter if device == "cuda" else time.process_time
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(TINY_POLICY)
    results: list[dict[str, Any]] = []
    rule = scoring.SHARED_COST
    for size in args.sizes:
        if size == "tiny":
            model = AutoModelForCausalLM.from_pretrained(TINY_POLICY, dtype=torch.float32).to(device)
        else:
            model = random_qwen2(tokenizer, *SIZES[size], device)

        def seconds(parts: list[scoring.Part], model: Any = model) -> float:
            start = clock()
            with torch.no_grad():
                for part in parts:
                    part.hidden_states(model.model)
            torch.cuda.synchronize() if device == "cuda" else None
            return clock() - start

        hidden_size = model.config.hidden_size

        def cost(parts: list[scoring.Part], hidden_size: int = hidden_size) -> float:
            return sum(part.cost(hidden_size) for part in parts)

        for prompt, completion in CASES[:2] if args.quick else CASES:
            batch = rows_of(prompt, completion, device)
            scoring.SHARED_COST = 0.0
            whole = scoring.split_rows(*batch, GROUP, hidden_size)
            scoring.SHARED_COST = float("inf")
            shared = scoring.split_rows(*batch, GROUP, hidden_size)
            seconds(shared)
            results.append(
                {
                    "model": size,
                    "prompt": prompt,
                    "completion": completion,
                    "cost": cost(shared) / cost(whole),
                    "time": statistics.median(seconds(shared) / seconds(whole) for _ in range(args.rounds)),
                }
            )
            print(table(results[-1:]).splitlines()[-1], flush=True)
    summary = {
        "time_where_the_rule_shares": max((row["time"] for row in results if row["cost"] < rule), default=None),
        "time_where_it_does_not": min((row["time"] for row in results if row["cost"] >= rule), default=None),
    }
    print(table(results), *(f"{name}: {value:.3g}" for name, value in summary.items() if value), sep="\n")
    write_json(args.json, {"options": vars(args), "cases": results, "summary": summary})


if __name__ == "__main__":
    main()
