"""
What the two shapes of a history cost: tokens of the training rows, seconds of a step, peak memory.

    python benchmarks/rows.py --json benchmarks/results/rows.json

The same episodes, of a fixed number of turns with pages and responses of a fixed length, are
played and trained on with `history="growing"` and with `history="window"`, two turns in the window. The model computes
and samples as ever, but a logits processor leaves one token at each position. A step is the rollout, the teacher pass,
forward and backward; the rollout is also timed by itself, and for the window once more without reuse of the cache for
the part of a prompt that it shares with the turn before.

Each measurement is a process of its own, and a first step is not counted. Sides take turns; a ratio is the median of
the ratios within a round. Memory is what the steps add, at their peak, to the process that has built the model: by
the allocator on a GPU, else by the resident set.
"""

import argparse
import json
import statistics
import tempfile
import time
from typing import Any

import torch
from common import in_process, peak_memory, random_qwen2, table, time_steps, write_json


# hidden size, layers, heads, vocabulary
SIZES = {
    "quick": (32, 1, 2, 2_000),
    "small": (128, 2, 4, 4_000),
    "medium": (256, 4, 4, 8_000),
    "0.5b": (896, 24, 14, 151_936),
}
SIDES: dict[str, dict[str, Any]] = {
    "growing": {"history": "growing"},
    "window": {"history": "window", "history_window": 2},
    "window, no reuse": {"history": "window", "history_window": 2, "reuse_cache": False},
}
PAGE, RESPONSE, PROMPT = 120, 14, 60  # tokens


class Book:
    """Pages of words, one token each."""

    def reset(self, *, turns: int, page: int, **_: Any) -> str:
        self.turns, self.page, self.turn = turns, page, 0
        return self._words()

    def _words(self) -> str:
        self.turn += 1
        return " ".join(f"{'the price of the blue soap'.split()[(self.turn + i) % 6]}" for i in range(self.page))

    def step(self, response: str) -> Any:
        from sdar_trl.envs import Step

        last = self.turn == self.turns
        return Step(self._words(), reward=float(last), terminated=last, info={"success": True} if last else {})

    def close(self) -> None:
        pass


def worker(side: str, turns: int, args: argparse.Namespace) -> dict[str, float]:
    """Seconds of a step and of its rollout, tokens of an episode's rows, bytes."""
    import transformers.utils.logging
    from datasets import Dataset
    from rollout import follow_script
    from transformers import AutoTokenizer, set_seed

    from sdar_trl import SDARConfig, SDARTrainer, Skill, SkillLibrary
    from sdar_trl.policies import TINY_POLICY
    from sdar_trl.rows import episode_rows

    transformers.utils.logging.set_verbosity_error()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    quick = args.size == "quick"
    page, prompt = (10, 10) if quick else (PAGE, PROMPT)
    hidden, layers, heads, vocabulary = SIZES[args.size]
    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(TINY_POLICY)
    model = random_qwen2(tokenizer, hidden, layers, heads, heads, vocabulary, device)
    messages = [{"role": "system", "content": "search " * prompt}, {"role": "user", "content": ""}]
    task = {"prompt": messages, "task_id": "0", "task_type": "book", "turns": turns, "page": page}
    script = tokenizer("<action>" + "click " * RESPONSE, add_special_tokens=False)["input_ids"][: RESPONSE - 1]
    follow_script(model, [*script, tokenizer.eos_token_id], [])
    base = peak_memory(device)
    trainer = SDARTrainer(
        model=model,
        args=SDARConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=2,
            gradient_accumulation_steps=args.episodes // 2,
            num_generations=args.episodes,
            max_steps=1 + args.steps,
            max_turns=turns,
            max_response_length=RESPONSE,
            max_completion_length=32_000,
            learning_rate=1e-6,
            bf16=device == "cuda",
            use_cpu=device == "cpu",
            gradient_checkpointing=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_steps=100,
            **SIDES[side],
        ),
        train_dataset=Dataset.from_list([task] * 64),
        processing_class=tokenizer,
        environment_factory=Book,
        skills=SkillLibrary([Skill("general", "for all", "buy " * (prompt // 2), always=True)]),
    )
    rollouts: list[float] = []
    play = trainer.rollout.play

    def timed_play(*play_args: Any) -> Any:
        began = time.perf_counter()
        episodes = play(*play_args)
        rollouts.append(time.perf_counter() - began)
        return episodes

    trainer.rollout.play = timed_play
    steps = time_steps(trainer)
    trainer.train()
    rows = episode_rows(trainer.episodes[0], tokenizer.pad_token_id)
    return {
        "rows": len(rows),
        "tokens": sum(len(row.prompt_ids) + len(row.completion_ids) for row in rows),
        "sampled": sum(sum(row.mask) for row in rows),
        "seconds": statistics.median(steps[1:]),
        "rollout": statistics.median(rollouts[1:]),
        "bytes": float(peak_memory(device) - base),
    }


def measured(side: str, turns: int, args: argparse.Namespace) -> dict[str, float]:
    """The result of this script in a process of its own."""
    options = ["--size", args.size, "--steps", args.steps, "--episodes", args.episodes]
    return in_process(__file__, *options, "--worker", side, turns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small", help="Model.")
    parser.add_argument("--episodes", type=int, default=2, help="Episodes of a step.")
    parser.add_argument("--steps", type=int, default=1, help="Timed steps of a measurement.")
    parser.add_argument("--rounds", type=int, default=3, help="Rounds.")
    parser.add_argument("--turns", type=int, nargs="+", default=[15, 50], help="Turns of an episode.")
    parser.add_argument("--quick", action="store_true", help="A tiny model, one round: shows that it runs.")
    parser.add_argument("--json", help="File to write the results to.")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(worker(args.worker[0], int(args.worker[1]), args)))
        return
    if args.quick:
        args.size, args.rounds, args.turns = "quick", 1, [3, 6]

    rounds = [
        {(side, turns): measured(side, turns, args) for turns in args.turns for side in SIDES}
        for _ in range(args.rounds)
    ]

    def ratio(side: str, turns: int, key: str, over: str = "growing") -> float:
        return statistics.median(one[side, turns][key] / one[over, turns][key] for one in rounds)

    def middle(side: str, turns: int, key: str) -> float:
        return statistics.median(one[side, turns][key] for one in rounds)

    rows = [
        {
            "turns": turns,
            "history": side,
            "rows / episode": middle(side, turns, "rows"),
            "tokens / episode": middle(side, turns, "tokens"),
            "of them sampled": middle(side, turns, "sampled"),
            "seconds / step": middle(side, turns, "seconds"),
            "rollout, s": middle(side, turns, "rollout"),
            "time / growing": ratio(side, turns, "seconds"),
            "peak memory, MB": middle(side, turns, "bytes") / 1e6,
        }
        for turns in args.turns
        for side in SIDES
    ]
    short, long = args.turns[0], args.turns[-1]
    summary = {
        "window_tokens_over_growing_15": ratio("window", short, "tokens"),
        "window_tokens_over_growing_50": ratio("window", long, "tokens"),
        "window_seconds_over_growing_15": ratio("window", short, "seconds"),
        "window_seconds_over_growing_50": ratio("window", long, "seconds"),
        "peak_memory_window_over_growing_50": ratio("window", long, "bytes"),
        "window_rollout_over_no_reuse_15": ratio("window", short, "rollout", "window, no reuse"),
        "window_rollout_over_no_reuse_50": ratio("window", long, "rollout", "window, no reuse"),
    }
    print(table(rows), *(f"{name}: {value:.3f}" for name, value in summary.items()), sep="\n\n")
    write_json(args.json, {"options": vars(args), "rows": rows, "summary": summary})


if __name__ == "__main__":
    main()
