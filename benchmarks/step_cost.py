"""
Time and peak memory of one optimisation step of each method, relative to TRL's own `GRPOTrainer` on the same episodes.

    python benchmarks/step_cost.py --json benchmarks/results/step_cost.json

Each measurement is a process of its own: it builds a randomly initialised model, replays fixed episodes instead of
generating (all pay the same for that), and trains; a step before, of episodes of one turn, is not counted. The
trainers take turns, and a ratio is the median over the rounds of (method / TRL's) within a round. On a CPU, seconds
are those of the processor, so that what else the machine does counts little; on a GPU, those of the clock.

A step has one group of 8 episodes, in two micro-batches. Episodes are as long as in the published runs, 9 of at most
15 turns in the mean (WebShop) or 31 of 50 (ALFWorld), uniform about it; one token in ten is the policy's. "equal" are
episodes of 9 turns each. In the models, the output layer is as large a part of a forward as in real ones of that
vocabulary: a quarter.

The floor is 1 + (floating-point operations of the teacher's forward, as TRL would do it) / (those of TRL's step), both
counted: no self-distillation that adds a forward to TRL's step can go below it.

Peak memory is what the step adds to the process that has imported everything: on a GPU the allocator's peak, on a CPU
the resident set's.

The JSON file is written case by case; the same command goes on with one that was stopped.

Last, the memory of a whole-vocabulary divergence alone, forward and backward, over the number of tokens.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import in_process, peak_memory, random_qwen2, table, time_steps, write_json


# hidden size, layers, heads, key-value heads, vocabulary
SIZES = {
    "quick": (64, 2, 2, 2, 2_000),
    "32k": (384, 16, 6, 6, 32_000),
    "152k": (512, 48, 8, 2, 151_936),
    "0.5b": (896, 24, 14, 2, 151_936),
    "3b": (2048, 36, 16, 2, 151_936),
}
# fewest and most turns
SHAPES = {"webshop": (3, 15), "alfworld": (12, 50), "equal": (9, 9)}
GROUP = 8
VARIANTS: dict[str, dict[str, Any]] = {
    "TRL's GRPO": {},
    "grpo": {"method": "grpo"},
    "sdar": {"method": "sdar"},
    "sdar, soft_or gate": {"method": "sdar", "gate": "soft_or"},
    "sdar, lean_forward=False": {"method": "sdar", "lean_forward": False},
    "opsd": {"method": "opsd"},
    "grpo_opsd": {"method": "grpo_opsd"},
    "grpo_opsd_uniform": {"method": "grpo_opsd_uniform"},
    "skill_grpo": {"method": "skill_grpo"},
    "skill_sd": {"method": "skill_sd"},
    "rlsd": {"method": "rlsd"},
    "sdar, reverse_kl": {"method": "sdar", "divergence": "reverse_kl"},
    "sdar, jsd": {"method": "sdar", "divergence": "jsd"},
    "sdar, reverse_kl, top 20": {"method": "sdar", "divergence": "reverse_kl", "divergence_top_k": 20},
}
BASELINE, *OURS = VARIANTS


def build_trainer(variant: str, args: argparse.Namespace, device: str) -> Any:
    """A trainer that replays fixed episodes."""
    from peft import LoraConfig
    from transformers import AutoTokenizer, set_seed
    from trl import GRPOConfig, GRPOTrainer

    from sdar_trl import Episode, SDARConfig, SDARTrainer, Skill, SkillLibrary, StopReason, Turn
    from sdar_trl.envs import WebShopEnv
    from sdar_trl.policies import TINY_POLICY
    from sdar_trl.rows import episode_rows

    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(TINY_POLICY)
    model = random_qwen2(tokenizer, *SIZES[args.size], device)
    observation, response, prompt = args.observation, args.response, args.prompt
    # one token a word
    messages = [{"role": "system", "content": "buy."}, {"role": "user", "content": "search " * prompt}]
    skill = Skill("general", "for all", "click " * args.context, always=True)
    task = {"prompt": messages, "task_id": "0", "task_type": "beauty", "goal": 0}
    draw = random.Random(0)
    turns = [draw.randint(*SHAPES[args.shape]) for _ in range(GROUP)]
    turns[0] = SHAPES[args.shape][1]  # in a large batch, one comes to the limit
    ids = [[[draw.randrange(10, 1_000) for _ in range(observation + response)] for _ in range(n)] for n in turns]

    def warming_up() -> bool:
        return trainer.args.max_steps > 1 and trainer.state.global_step == 0

    def episode(index: int, prompt_ids: list[int], context: str = "") -> Episode:
        one = Episode(task, messages, stop_reason=StopReason.LOST, student_context=context)
        for number, turn in enumerate(ids[index][: 1 if warming_up() else None]):
            before = prompt_ids if number == 0 else turn[:observation]
            one.turns.append(Turn("", before, turn[observation:], "", reward=float(index % 2)))
        return one

    options: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": GROUP // 2,
        "gradient_accumulation_steps": 2,
        "num_generations": GROUP,
        "max_steps": 1 + args.steps,
        "max_completion_length": 8_000,
        "learning_rate": 1e-6,
        "beta": 0.0,
        "bf16": device == "cuda",
        "use_cpu": device == "cpu",
        "gradient_checkpointing": not args.no_checkpointing,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 100,
    }
    shared = {
        "model": model,
        "train_dataset": WebShopEnv.dataset("train"),
        "processing_class": tokenizer,
        "peft_config": LoraConfig(target_modules="all-linear") if args.lora else None,
    }
    if variant == BASELINE:
        prompt_ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)

        def rows(prompts: list, trainer: Any) -> dict[str, list]:
            played = [episode_rows(episode(index, prompt_ids), 0)[0] for index in range(len(prompts))]
            return {
                "prompt_ids": [row.prompt_ids for row in played],
                "completion_ids": [row.completion_ids for row in played],
                "env_mask": [row.mask for row in played],
                "logprobs": None,  # type: ignore[dict-item]
                "gain": [row.episode.episode_return for row in played],
            }

        def reward(gain: list[float], **_: Any) -> list[float]:
            return gain

        trainer: Any = GRPOTrainer(reward_funcs=reward, args=GRPOConfig(**options), rollout_func=rows, **shared)
        return trainer

    config = SDARConfig(**options, max_response_length=64, **VARIANTS[variant])
    trainer = SDARTrainer(args=config, environment_factory=WebShopEnv, skills=SkillLibrary([skill]), **shared)

    def play(tasks: list, student_context: Any = None) -> list[Episode]:
        """The same episodes in every step; with skills in the prompt, where the student reads them."""
        texts = [""] * len(tasks)
        if student_context is not None:
            texts = student_context([Episode(task, messages) for _ in tasks])
        chat = trainer.rollout.chat
        return [
            episode(index, chat.prompt_ids(chat.with_context(messages, text)), text)
            for index, text in enumerate(texts)
        ]

    trainer.rollout.play = play
    return trainer


def worker(variant: str, args: argparse.Namespace) -> dict[str, float]:
    """Seconds and bytes of a step; on request, floating-point operations instead."""
    import transformers.utils.logging
    from torch.utils.flop_counter import FlopCounterMode

    import sdar_trl  # noqa: F401  imported before memory is looked at

    transformers.utils.logging.set_verbosity_error()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    base = peak_memory(device)
    trainer = build_trainer(variant, args, device)
    seconds = time_steps(trainer)
    if not args.count_flops:
        trainer.train()
        return {"seconds": statistics.median(seconds[1:]), "bytes": float(peak_memory(device) - base)}
    # not known to the counter, and used by TRL's fused head
    in_place = {torch.ops.aten.addmm_: lambda total, a, b, **_: 2 * a[0] * a[1] * b[1]}
    teacher_flops = 0
    if variant != BASELINE:
        score = trainer._score

        def counted_score(*score_args: Any) -> Any:
            nonlocal teacher_flops
            with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
                result = score(*score_args)
            teacher_flops = counter.get_total_flops()
            return result

        trainer._score = counted_score
    trainer.args.max_steps = 1
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        trainer.train()
    return {"flops": float(counter.get_total_flops()), "teacher_flops": float(teacher_flops)}


def profiled(args: argparse.Namespace) -> str:
    """The operations of a step of SDAR that take the most time."""
    import transformers.utils.logging

    transformers.utils.logging.set_verbosity_error()
    trainer = build_trainer("sdar", args, "cuda" if torch.cuda.is_available() else "cpu")
    trainer.args.max_steps = 1
    with torch.profiler.profile() as profile:
        trainer.train()
    return profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=20, max_name_column_width=60)


def teacher_pass(args: argparse.Namespace) -> dict[str, float]:
    """Seconds of the teacher pass, and of a reference forward over the same completions as TRL does it."""
    import transformers.utils.logging

    from sdar_trl.rows import episode_rows

    transformers.utils.logging.set_verbosity_error()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    clock = time.perf_counter if device == "cuda" else time.process_time
    trainer = build_trainer("sdar", args, device)
    trainer.args.max_steps = 1  # so that there is no warm-up
    trainer.model.train()
    output = trainer._generate_and_score_completions([dict(trainer.train_dataset[0]) for _ in range(GROUP)])
    rows = [row for episode in trainer.episodes for row in episode_rows(episode, 0)]
    found: dict[str, list[float]] = {"teacher": [], "reference": []}
    for _ in range(1 + args.steps):
        for name, seconds in found.items():
            trainer.args.lean_forward = name == "teacher"
            start = clock()
            if name == "teacher":
                trainer._teacher_pass(output, rows, output["advantages"].new_ones(len(trainer.episodes) + 1))
            else:
                trainer._student_logps(output)
            torch.cuda.synchronize() if device == "cuda" else None
            seconds.append(clock() - start)
    return {"ratio": statistics.median(t / r for t, r in list(zip(*found.values(), strict=True))[1:])}


def divergence_memory(tokens: int) -> dict[str, float]:
    """Bytes that the reverse KL over 32,768 entries adds, forward and backward, with its inputs there already."""
    from sdar_trl.vocabulary import Head, full_divergence

    device = "cuda" if torch.cuda.is_available() else "cpu"
    head = Head(torch.randn(32_768, 64, device=device), None, 1.0, 1.0, None)
    student = torch.randn(tokens, 64, device=device, requires_grad=True)
    teacher = torch.randn(tokens, 64, device=device)
    full_divergence("reverse_kl", student[:64], teacher[:64], head, head.weight)
    base = peak_memory(device)
    full_divergence("reverse_kl", student, teacher, head, head.weight).sum().backward()
    return {"bytes": float(peak_memory(device) - base)}


def measured(args: argparse.Namespace, case: dict[str, Any], *extra: str) -> dict[str, float]:
    """The result of this script in a process of its own."""
    values = {
        **{name: getattr(args, name) for name in ("steps", "observation", "response", "prompt", "context")},
        **case,
    }
    checkpointing = [] if values.pop("checkpointing", True) else ["--no_checkpointing"]
    options = [part for name, value in values.items() for part in (f"--{name}", value)]
    return in_process(__file__, *options, *checkpointing, *(["--lora"] if args.lora else []), *extra)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="32k", help="Model of the table of methods.")
    parser.add_argument("--large", choices=SIZES, default="152k", help="Model with the larger vocabulary.")
    parser.add_argument("--shape", choices=SHAPES, default="webshop", help="Episodes of the table of methods.")
    parser.add_argument("--lora", action="store_true", help="Train an adapter on all linear layers.")
    parser.add_argument("--no_checkpointing", action="store_true", help="Without gradient checkpointing.")
    parser.add_argument("--observation", type=int, default=27, help="Tokens of an observation.")
    parser.add_argument("--response", type=int, default=3, help="Tokens of a response.")
    parser.add_argument("--prompt", type=int, default=60, help="Tokens of the task.")
    parser.add_argument("--context", type=int, default=60, help="Tokens of privileged context.")
    parser.add_argument("--steps", type=int, default=2, help="Timed steps of a measurement.")
    parser.add_argument("--rounds", type=int, default=3, help="Rounds.")
    parser.add_argument("--quick", action="store_true", help="A tiny model, one round: shows that it runs.")
    parser.add_argument("--profile", action="store_true", help="Only print where a step of `sdar` spends its time.")
    parser.add_argument("--json", help="File to write the results to.")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--count_flops", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--teacher_pass", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--divergence_memory", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker or args.teacher_pass:
        print(json.dumps(teacher_pass(args) if args.teacher_pass else worker(args.worker, args)))
        return
    if args.divergence_memory:
        print(json.dumps(divergence_memory(args.divergence_memory)))
        return
    if args.profile:
        print(profiled(args))
        return
    if args.quick:
        args.size, args.large, args.rounds, args.steps = "quick", "quick", 1, 1

    def compared(case: dict[str, Any], variants: list[str]) -> list[dict[str, Any]]:
        names = [BASELINE, *variants]
        rounds = [{name: measured(args, case, "--worker", name) for name in names} for _ in range(args.rounds)]

        def median(name: str, key: str, over: str | None = None) -> float:
            return statistics.median(one[name][key] / (one[over][key] if over else 1) for one in rounds)

        return [
            {
                "method": name,
                "seconds": median(name, "seconds"),
                "time / TRL's GRPO": median(name, "seconds", BASELINE),
                "peak memory, MB": median(name, "bytes") / 1e6,
                "peak memory / TRL's": median(name, "bytes", BASELINE),
            }
            for name in names
        ]

    options = {name: value for name, value in vars(args).items() if name != "json"}
    done: dict[str, Any] = {}
    if args.json and Path(args.json).exists() and "summary" not in (found := json.loads(Path(args.json).read_text())):
        done = found if found["options"] == options else {}

    main_case = {"size": args.size, "shape": args.shape, "checkpointing": not args.no_checkpointing}
    methods = done["methods"] if done else compared(main_case, OURS)
    print(table(methods), flush=True)
    cases: list[dict[str, Any]] = [
        {"size": size, "shape": shape, "checkpointing": checkpointing}
        for size, shape, checkpointing in (
            (args.size, "webshop", False),
            (args.size, "alfworld", True),
            (args.size, "equal", True),
            (args.large, "webshop", True),
            (args.large, "webshop", False),
            (args.large, "equal", True),
        )
    ]
    shapes: list[dict[str, Any]] = done.get("cases", [])
    for case in [main_case, *cases][len(shapes) :]:
        write_json(args.json, {"options": options, "methods": methods, "cases": shapes})
        found = methods if case is main_case else compared(case, ["grpo", "sdar"])
        of = {row["method"]: row for row in found}
        flops = {
            name: measured(args, case, "--worker", name, "--count_flops")
            for name in (BASELINE, "sdar, lean_forward=False")
        }
        floor = 1 + flops["sdar, lean_forward=False"]["teacher_flops"] / flops[BASELINE]["flops"]
        shapes.append(
            {
                **case,
                "grpo / TRL's": of["grpo"]["time / TRL's GRPO"],
                "sdar / TRL's": of["sdar"]["time / TRL's GRPO"],
                "floor": floor,
                "sdar memory / TRL's": of["sdar"]["peak memory / TRL's"],
                "teacher pass / reference forward": measured(args, case, "--teacher_pass")["ratio"],
            }
        )
        print(table(shapes[-1:]), flush=True)
    memory = [
        {
            "tokens": tokens,
            "reverse_kl, MB": measured(args, {}, "--divergence_memory", str(tokens))["bytes"] / 1e6,
            "two times whole logits, MB (computed)": 2 * tokens * 32_768 * 4 / 1e6,
        }
        for tokens in ((256, 512) if args.quick else (2_048, 4_096, 8_192, 16_384))
    ]
    by_case = {(row["size"], row["shape"], row["checkpointing"]): row for row in shapes}
    ragged = by_case[args.size, "webshop", True]
    equal = by_case[args.size, "equal", True]
    summary = {
        "sdar_step_over_trl_grpo_ragged": ragged["sdar / TRL's"],
        "grpo_step_over_trl_grpo_ragged": ragged["grpo / TRL's"],
        "teacher_pass_over_reference_forward": ragged["teacher pass / reference forward"],
        "peak_memory_over_trl_grpo": by_case[args.large, "webshop", True]["sdar memory / TRL's"],
        "sdar_step_over_trl_grpo_equal": equal["sdar / TRL's"],
        "grpo_step_over_trl_grpo_equal": equal["grpo / TRL's"],
        "teacher_pass_over_reference_forward_equal": equal["teacher pass / reference forward"],
        "peak_memory_over_trl_grpo_equal": by_case[args.large, "equal", True]["sdar memory / TRL's"],
        "sdar_step_over_floor_equal": equal["sdar / TRL's"] / equal["floor"],
    }
    print(table(shapes), table(memory), *(f"{name}: {value:.3f}" for name, value in summary.items()), sep="\n\n")
    result = {"methods": methods, "cases": shapes, "divergence_memory": memory, "summary": summary}
    write_json(args.json, {"options": options, **result})


if __name__ == "__main__":
    main()
