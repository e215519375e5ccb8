"""
Rollouts by vLLM in the trainer's process: episodes that wait for each other after every turn, and that do not.

    make test-vllm                      # the environment with vLLM, for a CPU
    .venv-vllm/bin/python benchmarks/engine.py --json benchmarks/results/engine.json

Four sides play the same pages of text with the same model: `SDARTrainer` with `generate` and its kept cache; TRL's
`GRPOTrainer` with its tool loop on vLLM; `SDARTrainer` on vLLM by TRL's calls, turn by turn; and `SDARTrainer` on
vLLM, request by request. In the case "even" each response has the same length and environments answer at once. In
"skewed", lengths and the environments' seconds are log-normal (a few are many times the median, as those of reasoning
models and of web environments), clipped at ten times the mean; environments wait in threads, TRL's tools are
coroutines, which it awaits together. All sides draw the same lengths and waits, in the order in which they ask.

The model computes and samples as ever, but a response ends where its length was drawn, and TRL's parser is told that
each is a call of the tool. Timed is the rollout alone, after a short one. In a round each trainer has a process of its
own; a ratio is the median over the rounds of those within a round.
"""

import argparse
import asyncio
import copy
import functools
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import in_process, table, write_json
from rollout import TOOL_CALL, TextBook, ToolBook, group_options, load, rollouts_alone


GENERATE, TRL, TURNS, FREE = "generate, cached", "TRL's tool loop, vLLM", "vLLM, turn by turn", "vLLM"
PROCESSES = {"generate": [GENERATE], "trl": [TRL], "engine": [TURNS, FREE]}
SIDES = [side for sides in PROCESSES.values() for side in sides]
CASES = ("even", "skewed")


class Draws:
    """Numbers of a mean, log-normal, in an order that a seed decides."""

    def __init__(self, mean: float, seed: int):
        self.mean, self.seed = mean, seed

    def restart(self, sigma: float | None) -> None:
        """Draw from the beginning; with a sigma of 0 all numbers are the mean, without one they are 0."""
        self.random, self.sigma = random.Random(self.seed), sigma

    def __call__(self) -> float:
        if self.sigma is None:
            return 0.0
        return min(self.random.lognormvariate(-(self.sigma**2) / 2, self.sigma), 10.0) * self.mean


def impose_lengths(trainer: Any, draw: Draws) -> None:
    """Have responses end where their lengths were drawn."""
    if trainer.use_vllm:
        engine = trainer.vllm_generation.llm.llm_engine
        add_request = engine.add_request

        def add(request_id: str, prompt: Any, params: Any, **kwargs: Any) -> Any:
            params.min_tokens = params.max_tokens = max(1, round(draw()))
            return add_request(request_id, prompt, params, **kwargs)

        engine.add_request = add
        return
    from transformers import LogitsProcessorList

    model = trainer.model
    generate = model.generate

    def shortened(input_ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        start, end = input_ids.size(1), kwargs["generation_config"].eos_token_id[0]
        lengths = torch.tensor([max(1, round(draw())) for _ in input_ids], device=input_ids.device)

        def force(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            over = lengths <= ids.size(1) - start + 1
            at_end = torch.arange(scores.size(1), device=scores.device) == end
            return scores.masked_fill(over[:, None] != at_end, -torch.inf)

        kwargs["logits_processor"] = LogitsProcessorList([force])
        return generate(input_ids=input_ids, **kwargs)

    model.generate = shortened


def worker(args: argparse.Namespace) -> dict[str, Any]:
    """What one trainer does, by case and side: seconds and sampled tokens of a batch of episodes."""
    if not torch.cuda.is_available():
        sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "with_vllm"))
        import on_cpu  # noqa: F401  before anything that loads vLLM
    import transformers.utils.logging
    import trl.generation.vllm_generation
    import trl.trainer.grpo_trainer
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from sdar_trl import SDARConfig, SDARTrainer
    from sdar_trl.backends import TrainerBackend

    transformers.utils.logging.set_verbosity_error()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, tokenizer = load(args.model, device)
    folder = tempfile.mkdtemp()
    model.save_pretrained(folder)  # the engine loads it from there
    tokenizer.save_pretrained(folder)
    model.name_or_path = folder
    lengths, waits = Draws(args.response, 0), Draws(args.seconds, 1)
    if args.eager:
        vllm_generation = trl.generation.vllm_generation
        vllm_generation.LLM = functools.partial(vllm_generation.LLM, enforce_eager=True)
    trl.trainer.grpo_trainer.parse_response = lambda *_, **__: copy.deepcopy(TOOL_CALL)
    task = {"prompt": [{"role": "user", "content": "you are a reader. "}], "words": args.words, "turns": args.turns}
    limit = 10 * args.response
    options: dict[str, Any] = {
        **group_options(args.rows, device),
        "max_completion_length": (args.words * 2 + limit + 20) * args.turns,
        "disable_tqdm": True,
        "use_vllm": args.worker != "generate",
        "vllm_mode": "colocate",
        "vllm_gpu_memory_utilization": 0.3,
        "vllm_max_model_length": 30_000,
    }
    common: dict[str, Any] = {
        "model": model,
        "train_dataset": Dataset.from_list([task] * args.rows),
        "processing_class": tokenizer,
    }
    trainer: Any
    if args.worker == "trl":

        class WaitingToolBook(ToolBook):
            async def read(self) -> str:
                """Read the next page."""
                await asyncio.sleep(waits())
                return self._next_page()

        trainer = GRPOTrainer(
            args=GRPOConfig(max_tool_calling_iterations=args.turns - 1, **options),
            environment_factory=WaitingToolBook,
            reward_funcs=lambda prompts, **_: [0.0],
            **common,
        )
    else:

        class WaitingTextBook(TextBook):
            parallel = "thread"

            def step(self, response: str) -> Any:
                time.sleep(waits())
                return super().step(response)

        config = SDARConfig(method="grpo", max_turns=args.turns, max_response_length=limit, **options)
        trainer = SDARTrainer(args=config, environment_factory=WaitingTextBook, **common)
        backends = {FREE: trainer.rollout.backend, TURNS: TrainerBackend(trainer, None)}
    impose_lengths(trainer, lengths)
    roll_out = rollouts_alone(trainer)

    def play(case: str, side: str, turns: int) -> dict[str, float]:
        lengths.restart(args.sigma if case == "skewed" else 0.0)
        waits.restart(args.sigma if case == "skewed" else None)
        if args.worker == "trl":
            trainer.max_tool_calling_iterations = turns - 1
        elif args.worker == "engine":
            trainer.rollout.backend = backends[side]
        if trainer.use_vllm:
            trainer.vllm_generation.llm.reset_prefix_cache()  # which the side before has filled
        seconds, output = roll_out([{**task, "turns": turns}] * args.rows)
        return {"seconds": seconds, "sampled_tokens": float(sum(sum(mask) for mask in output[2]))}

    sides = PROCESSES[args.worker]
    for side in sides:
        play("even", side, 2)  # warm-up
    return {case: {side: play(case, side, args.turns) for side in sides} for case in CASES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="tiny, smollm2, 0.5b, 3b: as in rollout.py.")
    parser.add_argument("--all_turns", nargs="+", type=int, default=[15, 50], help="Turns of an episode.")
    parser.add_argument("--rows", type=int, default=8, help="Episodes played at once.")
    parser.add_argument("--words", type=int, default=100, help="Words of a page, about as many tokens.")
    parser.add_argument("--response", type=int, default=14, help="Tokens of a response, in the mean.")
    parser.add_argument("--seconds", type=float, default=0.2, help="Seconds of an answer, in the mean, if skewed.")
    parser.add_argument("--sigma", type=float, default=1.0, help="Of the logarithm, if skewed.")
    parser.add_argument(
        "--eager", action="store_true", help="An engine without compilation and graphs: it starts sooner."
    )
    parser.add_argument("--rounds", type=int, default=3, help="Rounds.")
    parser.add_argument("--quick", action="store_true", help="Short episodes, one round: shows that it runs.")
    parser.add_argument("--json", help="File to write the results to.")
    parser.add_argument("--worker", choices=PROCESSES, help=argparse.SUPPRESS)
    parser.add_argument("--turns", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(worker(args)))
        return
    if args.quick:
        args.all_turns, args.rounds = [4], 1
    shared = [
        text
        for name in ("model", "rows", "words", "response", "seconds", "sigma")
        for text in (f"--{name}", str(getattr(args, name)))
    ] + ["--eager"] * args.eager
    found: dict[tuple[str, int], list[dict[str, dict[str, float]]]] = {}
    for turns in args.all_turns:
        for _ in range(args.rounds):
            played: list[Any] = [
                in_process(__file__, *shared, "--turns", str(turns), "--worker", name) for name in PROCESSES
            ]
            for case in CASES:
                sides = {side: result for one in played for side, result in one[case].items()}
                found.setdefault((case, turns), []).append(sides)
                seconds = {side: f"{result['seconds']:.1f} s" for side, result in sides.items()}
                print(f"{turns} turns, {case}: {seconds}", file=sys.stderr, flush=True)

    def ratio(case: str, turns: int, slow: str, fast: str) -> float:
        return statistics.median(
            (one[slow]["seconds"] / one[slow]["sampled_tokens"]) / (one[fast]["seconds"] / one[fast]["sampled_tokens"])
            for one in found[case, turns]
        )

    rows = [
        {
            "turns": turns,
            "case": case,
            "side": side,
            "seconds": statistics.median(one[side]["seconds"] for one in rounds),
            "sampled tokens": statistics.median(one[side]["sampled_tokens"] for one in rounds),
            "speed / turn by turn": ratio(case, turns, TURNS, side),
        }
        for (case, turns), rounds in found.items()
        for side in SIDES
    ]
    print(table(rows))
    summary = {}
    for turns in args.all_turns:
        summary[f"no_barrier_over_turn_by_turn_skewed_{turns}_turns"] = ratio("skewed", turns, TURNS, FREE)
        summary[f"ours_vllm_over_trl_vllm_{turns}_turns"] = ratio("even", turns, TRL, FREE)
        summary[f"ours_vllm_over_trl_vllm_skewed_{turns}_turns"] = ratio("skewed", turns, TRL, FREE)
        summary[f"ours_vllm_over_cached_generate_{turns}_turns"] = ratio("even", turns, GENERATE, FREE)
    summary["no_barrier_over_turn_by_turn_skewed"] = ratio("skewed", args.all_turns[0], TURNS, FREE)
    summary["ours_vllm_over_cached_generate"] = ratio("even", args.all_turns[0], GENERATE, FREE)
    print("", *(f"{name}: {value:.3g}" for name, value in summary.items()), sep="\n\n")
    write_json(args.json, {"options": vars(args), "rows": rows, "summary": summary})


if __name__ == "__main__":
    main()
