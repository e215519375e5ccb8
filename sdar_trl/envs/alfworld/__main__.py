"""
Play ALFWorld by hand, and see what an agent sees.

    python -m sdar_trl.envs.alfworld --game valid_unseen/12 --save episode.json

Type actions, such as go to fridge 1; q leaves. `--game` also takes the path of a `game.tw-pddl`. Look at a saved
episode again, step by step:

    python -m sdar_trl.envs.alfworld --replay episode.json
"""

import argparse
import json
from pathlib import Path

from ..terminal import play, typed
from .env import AlfWorldEnv


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m sdar_trl.envs.alfworld",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--game", default="valid_unseen/0", help="An embedded game, or a game's file.")
    parser.add_argument("--save", metavar="FILE", help="Where to save the episode.")
    parser.add_argument("--replay", metavar="FILE", help="A saved episode to show.")
    args = parser.parse_args()
    saved = json.loads(Path(args.replay).read_text()) if args.replay else {"game": args.game}
    responses = saved["responses"] if args.replay else typed()
    try:
        played, last = play(AlfWorldEnv(), {"game": saved["game"]}, responses, echo=bool(args.replay))
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    if last:
        print(f"\nWon, with reward {last.reward}.")
    if args.save:
        Path(args.save).write_text(json.dumps({"game": saved["game"], "responses": played}, indent=2) + "\n")


if __name__ == "__main__":
    main()
