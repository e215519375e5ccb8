"""
Play WebShop by hand, and see what an agent sees.

    python -m sdar_trl.envs.webshop --goal 12 --save episode.json

Type actions, such as search[red shoe] or click[buy now]; q leaves. Look at a saved episode again, step by step:

    python -m sdar_trl.envs.webshop --replay episode.json
"""

import argparse
import json
from pathlib import Path

from ..terminal import play, typed
from .env import WebShopEnv


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m sdar_trl.envs.webshop",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--goal", type=int, default=0, help="Index of the goal.")
    parser.add_argument("--data_dir", metavar="DIR", help="Folder of the official files; else the embedded shop.")
    parser.add_argument("--human_goals", action="store_true", help="Goals that people wrote.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of charged prices and price limits.")
    parser.add_argument(
        "--cache_dir", metavar="DIR", help="Folder of the cache; .webshop_cache in data_dir if not given."
    )
    parser.add_argument("--save", metavar="FILE", help="Where to save the episode.")
    parser.add_argument(
        "--replay", metavar="FILE", help="A saved episode to show; all options but --save and --cache_dir are its own."
    )
    args = parser.parse_args()
    episode = {name: getattr(args, name) for name in ("data_dir", "human_goals", "seed", "goal")}
    if args.data_dir is not None:
        episode["data_dir"] = str(Path(args.data_dir).resolve())
    if args.replay:
        episode = json.loads(Path(args.replay).read_text())
    shop = {name: episode[name] for name in ("data_dir", "human_goals", "seed")}
    env = WebShopEnv(**shop, cache_dir=args.cache_dir)
    if not 0 <= episode["goal"] < len(env.shop.goals):
        parser.error(f"--goal must be between 0 and {len(env.shop.goals) - 1}, got {episode['goal']}")
    episode.setdefault("shop", env.shop.name)
    responses = episode["responses"] if args.replay else typed()
    task = {name: episode[name] for name in ("goal", "shop")}
    episode["responses"], last = play(env, task, responses, echo=bool(args.replay))
    if last:
        parts = ", ".join(f"{name} {value}" for name, value in last.info.items())
        print(f"\nReward {last.reward}: {parts}; nouns of titles by {env.shop.tagger.name}")
    if args.save:
        Path(args.save).write_text(json.dumps(episode, indent=2) + "\n")


if __name__ == "__main__":
    main()
