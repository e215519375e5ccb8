"""
Ask and answer by hand, and see what an agent sees.

    python -m sdar_trl.envs.search_qa --task 12

Type queries; a line that begins with = is the answer, q leaves.
"""

import argparse

from ..terminal import play, typed
from .world import SearchQA


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m sdar_trl.envs.search_qa",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--split", default="test", help="Split of the question.")
    parser.add_argument("--task", type=int, default=0, help="Its number.")
    parser.add_argument("--data_dir", metavar="DIR", help="Folder of question files; else the embedded ones.")
    parser.add_argument("--corpus", metavar="FILE", help="Corpus; else the embedded one.")
    parser.add_argument("--search_url", metavar="URL", help="A search server instead.")
    parser.add_argument("--topk", type=int, default=3, help="Documents that a search shows.")
    args = parser.parse_args()
    world = SearchQA(args.data_dir, args.corpus, search_url=args.search_url, topk=args.topk)
    tasks = world.dataset(args.split)
    if not 0 <= args.task < len(tasks):
        parser.error(f"--task must be between 0 and {len(tasks) - 1}, got {args.task}")
    env = world.environment_factory()
    responses = typed(
        lambda line: f"<answer>{line[1:].strip()}</answer>" if line.startswith("=") else f"<search>{line}</search>"
    )
    _, last = play(env, tasks[args.task], responses, echo=False)
    if last:
        print(f"\nReward {last.reward}, F1 {last.info['score']:.2f}. Right: {' | '.join(env.answers)}")


if __name__ == "__main__":
    main()
