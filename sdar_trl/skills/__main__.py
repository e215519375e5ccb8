"""
Check a folder of skills: is it well-formed, which tasks get which skills, how long are they, and which tasks get none.

    python -m sdar_trl.skills check my_skills --tasks webshop
    python -m sdar_trl.skills check my_skills --tasks tasks.jsonl --tokenizer Qwen/Qwen2.5-3B-Instruct --show
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from ..envs.worlds import WORLDS, load_world
from .files import read_text
from .library import SkillLibrary, format_skills
from .retrieval import KeywordRetriever


def load_tasks(name: str, count: int) -> list[dict[str, Any]]:
    """
    Tasks to check with.

    Args:
        name (`str`):
            A world's name, e.g. `"webshop"`, or a JSON-lines file of rows with `task_id`, `task_type` and `prompt`.
        count (`int`):
            How many at most.

    Returns:
        `list[dict]`: the tasks; their prompts hold the first observation.

    Raises:
        `ValueError`: if `name` is neither, a line is not a JSON object, or there is none.
    """
    if count < 1:
        raise ValueError(f"`--count` must be at least 1, got {count}.")
    if name in WORLDS:
        world = load_world(name)
        env, rows = world.environment_factory(), world.dataset("train")
        tasks = [{**row, "prompt": env.reset(**row)} for row in rows.select(range(min(count, len(rows))))]
        env.close()
        return tasks
    if not Path(name).is_file():
        raise ValueError(f"`--tasks` must be a world ({', '.join(WORLDS)}) or a JSON-lines file, got {name!r}.")
    tasks = []
    # a JSON text may hold characters that `splitlines` takes for the end of a line
    for number, line in enumerate(read_text(Path(name)).split("\n"), 1):
        if not line.strip() or len(tasks) == count:
            continue
        try:
            task = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{name}:{number}: not JSON: {error.msg}.") from error
        if not isinstance(task, dict):
            raise ValueError(f"{name}:{number}: expected an object, got {task!r}.")
        tasks.append(task)
    if not tasks:
        raise ValueError(f"{name}: no tasks; expected a JSON object in each line.")
    return tasks


def check(folder: str, tasks: list[dict[str, Any]], tokenizer: str | None, show: bool) -> int:
    """
    Print the report.

    Args:
        folder (`str`):
            The folder.
        tasks (`list[dict]`):
            The tasks.
        tokenizer (`str`, *optional*):
            Counts tokens; without one, words are counted.
        show (`bool`):
            Whether to list every task.

    Returns:
        `int`: number of tasks without a skill of their own.
    """
    unit, count = "words", lambda text: len(text.split())
    if tokenizer is not None:
        from transformers import AutoTokenizer

        encode = AutoTokenizer.from_pretrained(tokenizer)
        unit, count = "tokens", lambda text: len(encode(text, add_special_tokens=False)["input_ids"])
    library = SkillLibrary.from_folder(folder)
    selected = KeywordRetriever(library).select(tasks)
    used = Counter(skill.name for skills in selected for skill in skills)
    width = max(len(skill.name) for skill in library)
    print(f"{'skill':{width}}  {unit:>6}  tasks  selected by")
    for skill in library:
        by = (
            "always"
            if skill.always
            else "; ".join(
                f"{kind}: {', '.join(values)}"
                for kind, values in (("type", skill.task_types), ("keyword", skill.keywords))
                if values
            )
        )
        print(f"{skill.name:{width}}  {count(skill.body):6}  {used[skill.name]:5}  {by or 'nothing'}")

    types: dict[str, list[list[str]]] = {}
    for task, skills in zip(tasks, selected, strict=True):
        names = [skill.name for skill in skills]
        types.setdefault(str(task.get("task_type")), []).append(names)
        if show:
            print(f"{task.get('task_id')}: {', '.join(names) or 'no skill'}")
    print("\ntask type  tasks  skills")
    for task_type, lists in sorted(types.items()):
        kinds = Counter(", ".join(names) or "no skill" for names in lists)
        print(f"{task_type}  {len(lists)}  " + " | ".join(f"{names} ({n})" for names, n in kinds.most_common()))

    longest = max(count(format_skills(skills)) for skills in selected)
    missing = [t for t, skills in zip(tasks, selected, strict=True) if all(skill.always for skill in skills)]
    print(f"\nLongest context: {longest} {unit}.")
    print(f"{len(missing)} of {len(tasks)} tasks get no skill of their own.")
    for task in missing[:10]:
        print(f"  {task.get('task_id')} ({task.get('task_type')})")
    return len(missing)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("check", help="Check a folder of skills.")
    command.add_argument("folder", help="The folder.")
    command.add_argument(
        "--tasks", required=True, help=f"A world ({', '.join(WORLDS)}) or a JSON-lines file of tasks."
    )
    command.add_argument("--count", type=int, default=500, help="Tasks to look at.")
    command.add_argument("--tokenizer", help="Hub id or folder; words are counted without one.")
    command.add_argument("--show", action="store_true", help="List every task.")
    args = parser.parse_args()
    try:
        missing = check(args.folder, load_tasks(args.tasks, args.count), args.tokenizer, args.show)
    except (ImportError, ValueError) as error:
        sys.exit(f"error: {error}")
    sys.exit(1 if missing else 0)


if __name__ == "__main__":
    main()
