"""
Do skills help a player that reads them, and how much does the retriever matter?

    python benchmarks/retrieval.py --json benchmarks/results/retrieval.json

The policy plays the same held-out tasks of the embedded shop without skills, and with those that each retriever
selects, in its own prompt. UCB first plays training tasks, in batches, and learns from their returns; on the panel it
no longer learns.
"""

import argparse
from typing import Any

import torch
from common import table, write_json
from transformers import AutoModelForCausalLM, AutoTokenizer

from sdar_trl import Episode, SkillContext
from sdar_trl.contexts import skill_records
from sdar_trl.envs import load_world
from sdar_trl.evaluation import evaluate, policy_rollout, summarize
from sdar_trl.policies import policy_limits, policy_path
from sdar_trl.skills import RETRIEVERS, EmbeddingRetriever, UCBRetriever


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="'tiny', 'smollm2', a hub id or a folder.")
    parser.add_argument("--panel_size", type=int, default=256, help="Tasks.")
    parser.add_argument("--ucb_tasks", type=int, default=768, help="Training tasks that UCB learns from.")
    parser.add_argument("--embedding_model", help="Sentence-transformers model; without one, embeddings are left out.")
    parser.add_argument("--retrievers", nargs="+", default=list(RETRIEVERS), help="Which to compare.")
    parser.add_argument("--max_turns", type=int, help="Most turns of an episode; else the policy's or the shop's.")
    parser.add_argument("--max_response_length", type=int, help="Most tokens of a response; likewise.")
    parser.add_argument("--max_completion_length", type=int, help="Most tokens of an episode; likewise.")
    parser.add_argument("--quick", action="store_true", help="Few tasks: shows that it runs.")
    parser.add_argument("--json", help="File to write the results to.")
    args = parser.parse_args()
    if args.quick:
        args.panel_size, args.ucb_tasks = 16, 32

    path = policy_path(args.model)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    world = load_world("webshop")
    limits: dict[str, Any] = {**world.limits, **policy_limits(args.model)}
    limits |= {name: getattr(args, name) for name in limits if getattr(args, name) is not None}
    rollout = policy_rollout(model, AutoTokenizer.from_pretrained(path), world.environment_factory, **limits)
    library = world.skills()
    panel = world.dataset("test").select(range(args.panel_size))

    rows: list[dict[str, Any]] = []
    for name in ("without", *args.retrievers):
        context = None
        if name != "without":
            kind = RETRIEVERS[name]
            if kind is EmbeddingRetriever and args.embedding_model is None:
                continue
            context = SkillContext(kind(library, **({"model": args.embedding_model} if name == "embedding" else {})))
        if context is not None and isinstance(context.retriever, UCBRetriever):
            tasks = world.dataset("train").select(range(args.ucb_tasks))
            for start in range(0, len(tasks), 32):
                played: list[Episode] = []
                batch = tasks.select(range(start, min(start + 32, len(tasks))))
                evaluate(rollout, batch, skills=context, on_episode=played.append)
                context.update(skill_records(played))
        episodes: list[Episode] = []
        result = summarize(evaluate(rollout, panel, skills=context, on_episode=episodes.append))
        own = [float(e.task["task_type"] in e.skills) for e in episodes]
        rows.append(
            {
                "retriever": name,
                "success": result.success,
                "95% low": result.ci_low,
                "95% high": result.ci_high,
                "mean score": result.score,
                "tasks with the skill of their family": sum(own) / len(own),
                "skills per task": sum(len(e.skills) for e in episodes) / len(episodes),
            }
        )
        print(rows[-1], flush=True)
    print(table(rows))
    summary = {f"success_{row['retriever']}": row["success"] for row in rows}
    write_json(args.json, {"options": {**vars(args), **limits}, "rows": rows, "summary": summary})


if __name__ == "__main__":
    main()
