"""
Evaluate a checkpoint on a fixed panel of tasks, without skills in its prompt, and with them.

The embedded policy, both ways:

    python examples/evaluate.py --model_name_or_path tiny --skills both --max_turns 7 \
        --max_response_length 20 --max_completion_length 800

What training left, on other tasks, greedily:

    python examples/evaluate.py --model_name_or_path outputs/demo --split validation --temperature 0

On the official WebShop files (the folder that holds `items_shuffle_1000.json` or `items_shuffle.json`):

    python examples/evaluate.py --model_name_or_path outputs/webshop_qwen2.5_3b \
        --max_completion_length 16384 --webshop_data WebShop/data
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser

from sdar_trl import SkillLibrary
from sdar_trl.envs import WebShopEnv
from sdar_trl.evaluation import episode_record, evaluate, policy_rollout, results_table, summarize
from sdar_trl.policies import policy_path


@dataclass
class ScriptArguments:
    """Arguments of this script."""

    model_name_or_path: str = field(default="tiny", metadata={"help": "'tiny', 'smollm2', a hub id or a folder."})
    skills: str = field(
        default="without",
        metadata={
            "help": "Whether the policy reads skills: 'without', 'with' the bundled ones, or 'both' in turn.",
            "choices": ["without", "with", "both"],
        },
    )
    webshop_data: str | None = field(
        default=None, metadata={"help": "Folder of WebShop's official files; the embedded shop if not given."}
    )
    human_goals: bool = field(default=False, metadata={"help": "With webshop_data: goals that people wrote."})
    split: str = field(default="test", metadata={"help": "Split the panel is the beginning of."})
    panel_size: int = field(default=128, metadata={"help": "Number of tasks."})
    temperature: float = field(default=0.4, metadata={"help": "Sampling temperature; 0 is greedy."})
    max_turns: int = field(default=15, metadata={"help": "Most turns of an episode."})
    max_response_length: int = field(default=512, metadata={"help": "Most tokens of one response."})
    max_completion_length: int = field(default=4096, metadata={"help": "Most tokens of an episode after its prompt."})
    batch_size: int = field(default=64, metadata={"help": "Episodes played at once."})
    seed: int = field(default=0, metadata={"help": "Seed of the sampling."})
    json: str | None = field(default=None, metadata={"help": "File to write the results to."})


def main() -> None:
    [args] = HfArgumentParser(ScriptArguments).parse_args_into_dataclasses()  # type: ignore[arg-type]
    shop: dict[str, Any] = {"data_dir": args.webshop_data, "human_goals": args.human_goals}
    path = policy_path(args.model_name_or_path)
    # `device_map="auto"` puts the model on the GPU, or spreads it over several
    model = AutoModelForCausalLM.from_pretrained(path, device_map="auto", dtype="auto").eval()
    rollout = policy_rollout(
        model,
        AutoTokenizer.from_pretrained(path),
        lambda: WebShopEnv(**shop),
        temperature=args.temperature,
        max_turns=args.max_turns,
        max_response_length=args.max_response_length,
        max_completion_length=args.max_completion_length,
    )
    panel = WebShopEnv.dataset(args.split, **shop).select(range(args.panel_size))
    results = {}
    for name in ("without", "with") if args.skills == "both" else (args.skills,):
        skills = SkillLibrary.bundled("webshop") if name == "with" else None
        episodes = evaluate(rollout, panel, skills=skills, batch_size=args.batch_size, seed=args.seed)
        results[f"{name} skills"] = summarize([episode_record(episode) for episode in episodes])
    print(results_table(results))
    if args.webshop_data:
        print(f"Nouns of titles, for the score, by: {WebShopEnv(**shop).shop.tagger.name}.")
    if args.json:
        Path(args.json).write_text(json.dumps({name: r.to_dict() for name, r in results.items()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
