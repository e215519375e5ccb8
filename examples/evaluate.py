"""
Evaluate a checkpoint on a fixed panel of tasks, without skills in its prompt, and with them.

The embedded policy, both ways:

    python examples/evaluate.py --model_name_or_path tiny --skills both

What training left, on other tasks, greedily:

    python examples/evaluate.py --model_name_or_path outputs/demo --split validation --temperature 0 --max_turns 7 \
        --max_response_length 20 --max_completion_length 800

On the official WebShop files (the folder that holds `items_shuffle_1000.json` or `items_shuffle.json`):

    python examples/evaluate.py --env webshop --model_name_or_path outputs/webshop_qwen2.5_3b --data_dir WebShop/data \
        --history window

Four tries of each task of a run's own panel, for pass@k; when it was stopped, the same command goes on:

    python examples/evaluate.py --model_name_or_path outputs/demo --panel outputs/demo/panel.json --tries 4 \
        --records outputs/demo/evaluation

Each world has arguments of its own: `--env NAME --help` shows them.
"""

import argparse
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser

from sdar_trl import SkillLibrary
from sdar_trl.envs import World, world_class
from sdar_trl.envs.worlds import WORLDS
from sdar_trl.evaluation import (
    Panel,
    evaluate,
    measures_table,
    policy_rollout,
    results_table,
    summarize,
    weights_hash,
    world_panel,
)
from sdar_trl.policies import policy_limits, policy_path
from sdar_trl.runs import provenance


@dataclass
class ScriptArguments:
    """Arguments of this script, beside those of the world."""

    env: str = field(default="webshop", metadata={"help": f"The world: {', '.join(WORLDS)}."})
    model_name_or_path: str = field(default="tiny", metadata={"help": "'tiny', 'smollm2', a hub id or a folder."})
    skills: str = field(
        default="without",
        metadata={
            "help": "Whether the policy reads skills: 'without', 'with' the bundled ones, or 'both' in turn.",
            "choices": ["without", "with", "both"],
        },
    )
    split: str = field(default="test", metadata={"help": "Split the panel is drawn from."})
    panel_size: int = field(default=128, metadata={"help": "Number of tasks."})
    panel: str | None = field(
        default=None, metadata={"help": "File of a panel, such as a run's panel.json, in place of one that is drawn."}
    )
    tries: int = field(default=1, metadata={"help": "Episodes of each task."})
    temperature: float = field(default=0.4, metadata={"help": "Sampling temperature; 0 is greedy."})
    max_turns: int | None = field(
        default=None, metadata={"help": "Most turns of an episode; the policy's or the world's own if not given."}
    )
    max_response_length: int | None = field(
        default=None, metadata={"help": "Most tokens of one response; the policy's or the world's if not given."}
    )
    max_completion_length: int | None = field(
        default=None,
        metadata={"help": "Most tokens of a row after its prompt; the policy's or the world's if not given."},
    )
    history: str = field(
        default="growing",
        metadata={
            "help": "What the policy reads in a turn: the 'growing' conversation, or a 'window' on it.",
            "choices": ["growing", "window"],
        },
    )
    history_window: int = field(default=2, metadata={"help": "With history='window': number of past turns in it."})
    batch_size: int = field(default=64, metadata={"help": "Episodes played at once."})
    seed: int = field(default=0, metadata={"help": "Seed of the sampling."})
    json: str | None = field(default=None, metadata={"help": "File to write results and records to."})
    records: str | None = field(
        default=None,
        metadata={
            "help": "Folder for the records, written as they come: an evaluation that was stopped goes on from it."
        },
    )


def parse() -> tuple[ScriptArguments, World]:
    """The script's arguments and the world: its name comes first, since the world has arguments of its own."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--env", default="webshop")
    try:
        kind = world_class(first.parse_known_args()[0].env)
    except (ImportError, ValueError) as error:
        sys.exit(f"error: {error}")
    parser = HfArgumentParser((ScriptArguments, kind), allow_abbrev=False)  # type: ignore[arg-type]
    [args, world] = parser.parse_args_into_dataclasses()
    return args, world


def main() -> None:
    args, world = parse()
    limits: dict[str, Any] = {**world.limits, **policy_limits(args.model_name_or_path)}
    limits |= {name: getattr(args, name) for name in limits if getattr(args, name) is not None}
    path = policy_path(args.model_name_or_path)
    # `device_map="auto"` puts the model on the GPU, or spreads it over several
    model = AutoModelForCausalLM.from_pretrained(path, device_map="auto", dtype="auto").eval()
    rollout = policy_rollout(
        model,
        AutoTokenizer.from_pretrained(path),
        world.environment_factory,
        temperature=args.temperature,
        history=args.history,
        history_window=args.history_window,
        **limits,
    )
    panel = Panel.load(args.panel) if args.panel else world_panel(world, args.split, args.panel_size)
    tasks = panel.tasks(world.dataset(args.split))
    about: dict[str, Any] = {"policy": args.model_name_or_path, "weights": weights_hash(model)}
    about |= {"panel": panel.about(), "temperature": args.temperature, **limits}
    results, records = {}, {}
    for name in ("without", "with") if args.skills == "both" else (args.skills,):
        skills: SkillLibrary | None = world.skills() if name == "with" else None
        played = evaluate(
            rollout,
            tasks,
            tries=args.tries,
            skills=skills,
            batch_size=args.batch_size,
            seed=args.seed,
            path=Path(args.records) / f"{name}_skills.jsonl" if args.records else None,
            about={**about, "skills": name, "history": args.history, "history_window": args.history_window},
        )
        results[f"{name} skills"] = summarize(played)
        records[f"{name} skills"] = [record.to_dict() for record in played]
    print(results_table(results))
    for name, result in results.items():
        print(f"\n{name}\n{measures_table(result)}")
    print("\n".join(world.notes()))
    if args.json:
        written: dict[str, Any] = {name: result.to_dict() for name, result in results.items()}
        run = {**provenance(), **about, "seed": args.seed}
        Path(args.json).write_text(json.dumps({**written, "run": run, "records": records}, indent=2) + "\n")


if __name__ == "__main__":
    main()
