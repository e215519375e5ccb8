"""
Time and peak memory of one optimisation step of each method, relative to GRPO on the same episodes.

    python benchmarks/step_cost.py --json benchmarks/results/step_cost.json

Each measurement is a process of its own: it builds a randomly initialised model, replays fixed episodes instead of
generating (all methods pay the same for that), and trains; a warm-up step is not counted. The methods take turns, and
a ratio is the median over the rounds of (method / GRPO) within a round. The floor is what no implementation can go
below: 1 + (floating-point operations of the teacher's forward) / (those of a GRPO step), both counted.

Peak memory is what the step adds to the process that has imported everything: on a GPU the allocator's peak, on a CPU
the resident set's.

A second table has the memory of a whole-vocabulary divergence alone, forward and backward, over the number of tokens.
"""

import argparse
import json
import statistics
import tempfile
from typing import Any

import torch
from common import in_process, peak_memory, random_qwen2, table, time_steps, write_json


# hidden size, layers, heads, key-value heads, vocabulary
SIZES = {
    "quick": (64, 2, 2, 2, 2_000),
    "small": (512, 8, 8, 8, 32_000),
    "0.5b": (896, 24, 14, 2, 151_936),
    "3b": (2048, 36, 16, 2, 151_936),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "grpo": {"method": "grpo"},
    "sdar": {"method": "sdar"},
    "sdar, soft_or gate": {"method": "sdar", "gate": "soft_or"},
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


def build_trainer(variant: str, args: argparse.Namespace, device: str) -> Any:
    """A trainer that replays fixed episodes."""
    from peft import LoraConfig
    from transformers import AutoTokenizer, set_seed

    from sdar_trl import Episode, SDARConfig, SDARTrainer, Skill, SkillLibrary, StopReason, Turn
    from sdar_trl.envs import WebShopEnv
    from sdar_trl.policies import TINY_POLICY

    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(TINY_POLICY)
    model = random_qwen2(tokenizer, *SIZES[args.size], device)
    quick = args.size == "quick"
    rows, turns, observation, response = (2, 2, 8, 8) if quick else (args.rows, 8, 40, 24)
    # one token a word
    messages = [{"role": "system", "content": "buy."}, {"role": "user", "content": "search " * (20 if quick else 200)}]
    skill = Skill("general", "for all", "click " * (16 if quick else args.context), always=True)
    task = {"prompt": messages, "task_id": "0", "task_type": "beauty", "goal": 0}
    random_ids = torch.randint(10, 1_000, (rows, turns, observation + response)).tolist()

    def episode(index: int, context: str) -> Episode:
        chat = trainer.rollout.chat
        prompt_ids = chat.prompt_ids(chat.with_context(messages, context))
        one = Episode(task, messages, stop_reason=StopReason.LOST, student_context=context)
        for number, ids in enumerate(random_ids[index]):
            before = prompt_ids if number == 0 else ids[:observation]
            one.turns.append(Turn("", before, ids[observation:], "", reward=float(index % 2)))
        return one

    training_args = SDARConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=rows,
        num_generations=rows,
        max_steps=1 + args.steps,
        max_completion_length=2_000,
        max_response_length=64,
        learning_rate=1e-6,
        beta=0.0,
        bf16=device == "cuda",
        use_cpu=device == "cpu",
        gradient_checkpointing=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=100,
        **VARIANTS[variant],
    )
    trainer = SDARTrainer(
        model=model,
        args=training_args,
        train_dataset=WebShopEnv.dataset("train"),
        processing_class=tokenizer,
        environment_factory=WebShopEnv,
        skills=SkillLibrary([skill]),
        peft_config=LoraConfig(target_modules="all-linear") if args.lora else None,
    )

    def play(tasks: list, student_context: Any = None) -> list[Episode]:
        """The same episodes in every step; with skills in the prompt, where the student reads them."""
        texts = [""] * len(tasks)
        if student_context is not None:
            texts = student_context([Episode(task, messages) for _ in tasks])
        return [episode(index, text) for index, text in enumerate(texts)]

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
    score, teacher_flops = trainer._score, 0
    # not known to the counter, and used by TRL's fused head
    in_place = {torch.ops.aten.addmm_: lambda total, a, b, **_: 2 * a[0] * a[1] * b[1]}

    def counted_score(*score_args: Any) -> torch.Tensor:
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


def divergence_memory(tokens: int) -> dict[str, float]:
    """Bytes that the reverse KL over 32,768 entries adds, forward and backward, with its inputs there already."""
    from sdar_trl.vocabulary import Head, full_divergence

    device = "cuda" if torch.cuda.is_available() else "cpu"
    weight = torch.randn(32_768, 64, device=device)
    student = torch.randn(1, tokens, 64, device=device, requires_grad=True)
    teacher = torch.randn(1, tokens, 64, device=device)
    full_divergence("reverse_kl", student[:, :64], teacher[:, :64], Head(weight, None, 1.0, 1.0, None), weight)
    base = peak_memory(device)
    head = Head(weight, None, 1.0, 1.0, None)
    full_divergence("reverse_kl", student, teacher, head, weight).sum().backward()
    return {"bytes": float(peak_memory(device) - base)}


def measured(args: argparse.Namespace, *extra: str) -> dict[str, float]:
    """The result of this script in a process of its own."""
    options = ["--size", args.size, "--rows", args.rows, "--context", args.context, "--steps", args.steps]
    return in_process(__file__, *options, *(["--lora"] if args.lora else []), *extra)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small", help="Model.")
    parser.add_argument("--lora", action="store_true", help="Train an adapter on all linear layers.")
    parser.add_argument("--rows", type=int, default=4, help="Episodes of a step, of 672 tokens each.")
    parser.add_argument("--context", type=int, default=200, help="Tokens of privileged context.")
    parser.add_argument("--steps", type=int, default=2, help="Timed steps of a measurement.")
    parser.add_argument("--rounds", type=int, default=3, help="Rounds.")
    parser.add_argument("--quick", action="store_true", help="A tiny model, one round: shows that it runs.")
    parser.add_argument("--json", help="File to write the results to.")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--count_flops", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--divergence_memory", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(worker(args.worker, args)))
        return
    if args.divergence_memory:
        print(json.dumps(divergence_memory(args.divergence_memory)))
        return
    if args.quick:
        args.size, args.rounds, args.steps = "quick", 1, 1

    flops = {name: measured(args, "--worker", name, "--count_flops") for name in ("grpo", "sdar")}
    floor = 1 + flops["sdar"]["teacher_flops"] / flops["grpo"]["flops"]
    rounds = [{name: measured(args, "--worker", name) for name in VARIANTS} for _ in range(args.rounds)]

    def ratio(name: str, key: str) -> float:
        return statistics.median(one[name][key] / one["grpo"][key] for one in rounds)

    rows = [
        {
            "method": name,
            "seconds": statistics.median(one[name]["seconds"] for one in rounds),
            "time / GRPO": ratio(name, "seconds"),
            "peak memory, MB": statistics.median(one[name]["bytes"] for one in rounds) / 1e6,
            "peak memory / GRPO": ratio(name, "bytes"),
        }
        for name in VARIANTS
    ]
    memory = [
        {
            "tokens": tokens,
            "reverse_kl, MB": measured(args, "--divergence_memory", str(tokens))["bytes"] / 1e6,
            "two times whole logits, MB (computed)": 2 * tokens * 32_768 * 4 / 1e6,
        }
        for tokens in ((256, 512) if args.quick else (2_048, 4_096, 8_192, 16_384))
    ]
    summary = {
        "sdar_time_over_grpo": ratio("sdar", "seconds"),
        "floor_over_grpo": floor,
        "sdar_time_over_floor": ratio("sdar", "seconds") / floor,
        "sdar_peak_memory_over_grpo": ratio("sdar", "bytes"),
    }
    print(table(rows), table(memory), *(f"{name}: {value:.3f}" for name, value in summary.items()), sep="\n\n")
    write_json(args.json, {"options": vars(args), "methods": rows, "divergence_memory": memory, "summary": summary})


if __name__ == "__main__":
    main()
