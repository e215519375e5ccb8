"""
Sampled tokens per second, time per turn and peak memory of a multi-turn rollout with Transformers' `generate`.

    python benchmarks/rollout.py --json benchmarks/results/rollout.json

Three sides play the same episodes with the same model: TRL's `GRPOTrainer` with its tool loop (`environment_factory`),
`SDARTrainer` without reuse of the cache, and `SDARTrainer`. The environment hands out pages of text; TRL's side has a
version of it whose method is a tool, which the other side's prompt describes in the same words. All play a fixed
number of turns, with responses of a fixed length: the model computes and samples as ever, but a logits processor
leaves one token at each position, the end-of-turn token at the last, and TRL's parser is told that each response is a
call of the tool. (For SmolLM2, an action in WebShop is about 14 tokens, and a page of the embedded shop about 300.)
Only the rollout is timed: from the reset of the environments to the rows of ids, without rewards and loss.

Each measurement is a process of its own; the side without reuse, as slow as TRL's, can be spared the longest episodes.
Memory is what the rollout adds, at its peak, to the process that has loaded the model: on a GPU by the allocator, on a
CPU by the resident set. A short rollout that is not counted comes first.

`0.5b` and `3b` are randomly initialised models of those sizes in bfloat16, meant for a GPU.
"""

import argparse
import copy
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import table, write_json


# hidden size, layers, heads, key-value heads
RANDOM = {"0.5b": (896, 24, 14, 2), "3b": (2048, 36, 16, 2)}
TRL, NO_REUSE, REUSE = "TRL's tool loop", "ours, no reuse", "ours"
SIDES = (TRL, NO_REUSE, REUSE)
FUNCTION = {"name": "read", "arguments": {}}
TOOL_CALL = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": FUNCTION}]}
TOOLS = '\n\nTools, called as <tool_call>{"name": ..., "arguments": ...}</tool_call>:\n'


class Book:
    """Pages of text, whatever is asked for."""

    def reset(self, *, words: int, turns: int, **_: Any) -> str:
        self.words, self.turns, self.turn = words, turns, 0
        return "read every page."

    def _next_page(self) -> str:
        self.turn += 1
        return " ".join(f"{'the price of the blue soap'.split()[i % 6]}" for i in range(self.words))


class TextBook(Book):
    """For `SDARTrainer`."""

    def step(self, response: str) -> Any:
        from sdar_trl.envs import Step

        page = self._next_page()
        return Step(page, 0.0, self.turn == self.turns, False, True, {"success": True})

    def close(self) -> None:
        pass


class ToolBook(Book):
    """For `GRPOTrainer`."""

    def read(self) -> str:
        """Read the next page."""
        return self._next_page()

    def get_reward(self) -> float:
        return 0.0


class RolloutDone(Exception):
    """Ends a training step where the rollout ends."""


def group_options(rows: int, device: str) -> dict[str, Any]:
    """Options of a trainer whose rollouts alone are looked at: one group of `rows` episodes."""
    return {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": rows,
        "num_generations": rows,
        "bf16": False,
        "use_cpu": device == "cpu",
        "report_to": "none",
        "temperature": 1.0,
    }


def rollouts_alone(trainer: Any) -> Callable[[list[dict[str, Any]]], tuple[float, Any]]:
    """From rows of a dataset to the seconds of their rollout by a trainer, and what it gave: rows of ids."""
    generate_rows = trainer._generate
    done: dict[str, Any] = {}

    def generate_and_stop(prompts: list) -> None:
        done["output"] = generate_rows(prompts)
        done["end"] = time.perf_counter()
        raise RolloutDone

    def play(rows: list[dict[str, Any]]) -> tuple[float, Any]:
        start = time.perf_counter()
        try:
            trainer._generate_and_score_completions(rows)
        except RolloutDone:
            return done["end"] - start, done["output"]
        raise RuntimeError("the rollout was not reached")

    trainer._generate = generate_and_stop
    trainer.model.train()
    return play


def load(name: str, device: str) -> tuple[Any, Any]:
    """A model, and its tokenizer with the embedded policy's chat template, which TRL's tool loop can render."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    from sdar_trl.policies import policy_path

    tiny = AutoTokenizer.from_pretrained(policy_path("tiny"))
    if name not in RANDOM:
        path = policy_path(name)
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).to(device)
    else:
        hidden, layers, heads, kv_heads = RANDOM[name]
        tokenizer = tiny
        config = Qwen2Config(
            vocab_size=151_936,
            hidden_size=hidden,
            intermediate_size=4 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            max_position_embeddings=32_768,
        )
        with torch.device(device):
            model = Qwen2ForCausalLM(config).to(torch.bfloat16)
    tokenizer.chat_template = tiny.chat_template
    tokenizer.response_template = tiny.response_template
    tokenizer.eos_token = "<|im_end|>"
    model.generation_config.eos_token_id = model.config.eos_token_id = tokenizer.eos_token_id
    model.config.max_position_embeddings = 32_768  # nobody reads what it says
    return model, tokenizer


def follow_script(model: Any, script: list[int], ends: list[float]) -> None:
    """Have every response of the model be `script`, and note when each call of `generate` ended."""
    from transformers import LogitsProcessorList

    generate = model.generate

    def scripted(input_ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        start = input_ids.size(1)

        def force(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            token = script[ids.size(1) - start]
            forced = torch.full_like(scores, -torch.inf)
            forced[:, token] = scores[:, token]
            return forced

        kwargs["logits_processor"] = LogitsProcessorList([force])
        output = generate(input_ids=input_ids, **kwargs)
        torch.cuda.synchronize() if torch.cuda.is_available() else None
        ends.append(time.perf_counter())
        return output

    model.generate = scripted


def reset_peak() -> int:
    """Begin to watch memory; bytes in use now."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return status_bytes("VmRSS")


def peak() -> int:
    """Most bytes in use since then."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else status_bytes("VmHWM")


def status_bytes(key: str) -> int:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key)]
    return int(line.split()[1]) * 1024


def worker(args: argparse.Namespace) -> dict[str, Any]:
    """One side plays one batch of episodes."""
    import transformers.utils.logging
    import trl.trainer.grpo_trainer
    from datasets import Dataset
    from transformers.utils import get_json_schema
    from trl import GRPOConfig, GRPOTrainer

    from sdar_trl import SDARConfig, SDARTrainer

    transformers.utils.logging.set_verbosity_error()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, tokenizer = load(args.model, device)
    word = tokenizer(" read", add_special_tokens=False)["input_ids"][0]
    script = [word] * (args.response - 1) + [tokenizer.eos_token_id]
    trl.trainer.grpo_trainer.parse_response = lambda *_, **__: copy.deepcopy(TOOL_CALL)
    tools = "" if args.side == TRL else f"{TOOLS}{json.dumps(get_json_schema(ToolBook().read))}"
    prompt = [{"role": "user", "content": f"you are a reader. {tools}"}]
    task = {"prompt": prompt, "words": args.words, "turns": args.turns}
    options: dict[str, Any] = {**group_options(args.rows, device), "max_completion_length": 30_000}
    common: dict[str, Any] = {
        "model": model,
        "train_dataset": Dataset.from_list([task] * args.rows),
        "processing_class": tokenizer,
    }
    trainer: Any
    if args.side == TRL:
        options["max_tool_calling_iterations"] = args.turns - 1
        trainer = GRPOTrainer(
            args=GRPOConfig(**options), environment_factory=ToolBook, reward_funcs=lambda prompts, **_: [0.0], **common
        )
    else:
        config = SDARConfig(
            method="grpo",
            max_turns=args.turns,
            max_response_length=len(script),
            reuse_cache=args.side == REUSE,
            **options,
        )
        trainer = SDARTrainer(args=config, environment_factory=TextBook, **common)

    ends: list[float] = []
    follow_script(trainer.model, script, ends)
    play = rollouts_alone(trainer)
    if args.side == TRL:
        trainer.max_tool_calling_iterations = 1
    play([{**task, "turns": 2}] * args.rows)  # warm-up
    if args.side == TRL:
        trainer.max_tool_calling_iterations = args.turns - 1
    ends.clear()
    before = reset_peak()
    start = time.perf_counter()
    seconds, output = play([task] * args.rows)
    added = peak() - before
    sampled = sum(sum(mask) for mask in output[2])
    assert len(ends) == args.turns and sampled == args.rows * args.turns * len(script), (len(ends), sampled)
    return {
        "seconds": seconds,
        "sampled_tokens": sampled,
        "episode_tokens": len(output[0][0]) + len(output[1][0]),
        "bytes": added,
        "seconds_per_turn": [end - begin for begin, end in zip([start, *ends], ends, strict=False)],
    }


def in_process(args: argparse.Namespace, model: str, side: str, turns: int) -> dict[str, Any]:
    """The result of this script in a process of its own."""
    shared = {name: getattr(args, name) for name in ("rows", "words", "response")}
    options = {"model": model, "side": side, "turns": turns, **shared}
    flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    done = subprocess.run([sys.executable, __file__, "--worker", *flags], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    result = json.loads(done.stdout.splitlines()[-1])
    print(f"{model}, {turns} turns, {side}: {result['seconds']:.1f} s", file=sys.stderr, flush=True)
    return result


def plot(results: dict[str, dict[int, dict[str, list[dict[str, Any]]]]], path: Path) -> None:
    """Time per turn over turns, of the longest episodes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * len(results), 4), layout="constrained")
    all_axes = figure.subplots(1, len(results), squeeze=False).flat
    for axes, (model, by_turns) in zip(all_axes, results.items(), strict=True):
        turns = max(by_turns)
        for side, runs in by_turns[turns].items():
            axes.plot(range(1, turns + 1), runs[0]["seconds_per_turn"], label=side)
        axes.set(title=model, xlabel="turn", ylabel="seconds per turn", ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["tiny", "smollm2"], help="tiny, smollm2, 0.5b, 3b.")
    parser.add_argument("--all_turns", nargs="+", type=int, default=[5, 15, 50], help="Turns of an episode.")
    parser.add_argument("--no_reuse_up_to", type=int, default=15, help="Turns up to which this side is played.")
    parser.add_argument("--rows", type=int, default=8, help="Episodes played at once: a group of TRL's default size.")
    parser.add_argument("--words", type=int, default=100, help="Words of a page, about as many tokens.")
    parser.add_argument("--response", type=int, default=14, help="Tokens of a response.")
    parser.add_argument("--rounds", type=int, default=1, help="Rounds; the median of their ratios is reported.")
    parser.add_argument("--quick", action="store_true", help="The tiny policy, short episodes: shows that it runs.")
    parser.add_argument("--json", help="File to write the results to, the plot beside it.")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--turns", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(worker(args)))
        return
    if args.quick:
        args.models, args.all_turns = ["tiny"], [3, 6]

    results: dict[str, dict[int, dict[str, list[dict[str, Any]]]]] = {
        model: {
            turns: {
                side: [in_process(args, model, side, turns) for _ in range(args.rounds)]
                for side in SIDES
                if side != NO_REUSE or turns <= args.no_reuse_up_to
            }
            for turns in args.all_turns
        }
        for model in args.models
    }

    def ratio(model: str, turns: int, side: str, other: str, key: str) -> float:
        runs = results[model][turns]
        return statistics.median(a[key] / b[key] for a, b in zip(runs[side], runs[other], strict=True))

    rows = [
        {
            "model": model,
            "turns": turns,
            "side": side,
            "episode, tokens": runs[0]["episode_tokens"],
            "sampled tokens / s": statistics.median(run["sampled_tokens"] / run["seconds"] for run in runs),
            "speed / TRL": ratio(model, turns, TRL, side, "seconds"),
            "second turn, s": statistics.median(run["seconds_per_turn"][1] for run in runs),
            "last turn, s": statistics.median(run["seconds_per_turn"][-1] for run in runs),
            "peak memory, MB": statistics.median(run["bytes"] for run in runs) / 1e6,
        }
        for model, by_turns in results.items()
        for turns, by_side in by_turns.items()
        for side, runs in by_side.items()
    ]
    model = args.models[-1]  # the largest
    middle, longest = sorted(args.all_turns)[-2:]
    summary = {
        f"speedup_vs_trl_{middle}_turns": ratio(model, middle, TRL, REUSE, "seconds"),
        f"speedup_vs_trl_{longest}_turns": ratio(model, longest, TRL, REUSE, "seconds"),
        f"speedup_vs_no_reuse_{middle}_turns": ratio(model, middle, NO_REUSE, REUSE, "seconds"),
        "peak_memory_ratio": ratio(model, middle, REUSE, TRL, "bytes"),
    }
    print(table(rows), *(f"{name}: {value:.3g}" for name, value in summary.items()), sep="\n\n")
    write_json(args.json, {"options": vars(args), "rollouts": rows, "runs": results, "summary": summary})
    if args.json is not None:
        plot(results, Path(args.json).with_suffix(".png"))


if __name__ == "__main__":
    main()
