"""The embedded games: the original rooms with objects put into them by seed, in the format of the official games."""

import random
import zlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from .guard import imported
from .rooms import HOLDS, LAMP, LAMP_STANDS, TASK_TYPES, TREATMENTS, Room, constants, room, scenes


with imported():
    from alfworld.gen.goal_library import gdict as goal_library
    from alfworld.info import ALFRED_PDDL_PATH, ALFRED_TWL2_PATH

SIZES = {"train": 600, "valid_seen": 140, "valid_unseen": 134}  # the held-out splits are as long as the official ones
SMALL = {"CoffeeMachine", "StoveBurner", "ToiletPaperHanger", "TowelHolder", "HandTowelHolder"}  # at first, one object
AFFORDANCES = {"cleanable": "Cleanable", "heatable": "Heatable", "coolable": "Coolable", "sliceable": "Sliceable"}
MANGLED = {"|": "_bar_", "+": "_plus_", "-": "_minus_", ".": "_dot_"}


@dataclass(frozen=True)
class Task:
    """
    What a game asks for.

    Args:
        task_type (`str`): One of `TASK_TYPES`.
        scene (`int`): Number of the room.
        object (`str`): Class of the object.
        target (`str`): Class of the receptacle that it goes to, or of the lamp.
    """

    task_type: str
    scene: int
    object: str
    target: str


@cache
def possible_tasks(split: str, task_type: str) -> tuple[tuple[Task, ...], ...]:
    """All tasks of a type in a split's rooms, room by room. A tenth of those in the rooms of training is held out for
    `"valid_seen"`."""
    found = []
    for scene in scenes(unseen=split == "valid_unseen"):
        tasks = [Task(task_type, scene, *pair) for pair in room(scene).tasks(task_type)]
        if split != "valid_unseen":
            tasks = [task for task in tasks if _held_out(task) == (split == "valid_seen")]
        if tasks:
            found.append(tuple(tasks))
    return tuple(found)


def _held_out(task: Task) -> bool:
    return zlib.crc32(repr(task).encode()) % 10 == 0


def task_of(split: str, number: int) -> Task:
    """What a split's game with a number asks for; the types take turns."""
    rng = random.Random(f"task {split} {number}")
    return rng.choice(rng.choice(possible_tasks(split, TASK_TYPES[number % len(TASK_TYPES)])))


def generate_game(split: str, number: int) -> dict[str, Any]:
    """
    An embedded game.

    Args:
        split (`str`):
            `"train"`, `"valid_seen"` or `"valid_unseen"`.
        number (`int`):
            Its number in the split.

    Returns:
        `dict[str, Any]`: what the official `game.tw-pddl` holds, with a solution as `walkthrough`; and under
        `traj_data`, what the file beside it holds.
    """
    return build_game(task_of(split, number), random.Random(f"game {split} {number}"))


def build_game(task: Task, rng: random.Random) -> dict[str, Any]:
    """A game of a task, with the objects put where `rng` says."""
    where = room(task.scene)
    placed = place_objects(where, task, rng)
    goal = goal_library[task.task_type]
    names = {"obj": task.object, "recep": task.target, "toggle": LAMP, "mrecep": ""}
    sentence = rng.choice(goal["templates"]).format(**{key: name.lower() for key, name in names.items()})
    domain, grammar = _texts()
    is_look = task.task_type == "look_at_obj_in_light"
    return {
        "pddl_domain": domain,
        "grammar": grammar.replace("UNKNOWN GOAL", sentence),
        "pddl_problem": problem_text(where, placed, goal["pddl"].format(**names).replace("#", "-")),
        "solvable": True,
        "walkthrough": solution(where, placed, task),
        "traj_data": {
            "task_type": task.task_type,
            "pddl_params": {
                "object_target": task.object,
                "parent_target": "" if is_look else task.target,
                "mrecep_target": "",
                "toggle_target": LAMP if is_look else "",
                "object_sliced": False,
            },
            "scene": {"scene_num": task.scene, "floor_plan": f"FloorPlan{task.scene}"},
        },
    }


@lru_cache(maxsize=1)
def _texts() -> tuple[str, str]:
    """The engine's own domain and grammar."""
    with open(ALFRED_PDDL_PATH) as domain, open(ALFRED_TWL2_PATH) as grammar:
        return domain.read(), grammar.read()


def place_objects(where: Room, task: Task, rng: random.Random) -> dict[str, str]:
    """
    Put one to three objects of each class somewhere: into a class of receptacles, then into one of the class.

    Args:
        where ([`Room`]):
            The room.
        task ([`Task`]):
            The task; its object lies elsewhere at first where putting it down is all that is asked.
        rng (`random.Random`):
            Draws them.

    Returns:
        `dict[str, str]`: of each object's id, the id of its receptacle.
    """
    by_kind = defaultdict(list)
    for receptacle in where.receptacles:
        by_kind[receptacle.kind].append(receptacle.id)
    placed: dict[str, str] = {}
    taken: set[str] = set()
    # the task's object first, since small receptacles fill up
    for name in [task.object, *(name for name in where.objects if name != task.object)]:
        count = rng.choice((1, 1, 1, 2, 2, 3))
        if name == task.object and task.task_type == "pick_two_obj_and_place":
            count = rng.choice((2, 2, 3))
        for number in range(count):
            homes = where.homes(name)
            if name == task.object and task.task_type in ("pick_and_place_simple", "pick_two_obj_and_place"):
                homes = [kind for kind in homes if kind != task.target]
            free = {kind: [id_ for id_ in by_kind[kind] if id_ not in taken] for kind in homes}
            kinds = [kind for kind in homes if free[kind]]
            if not kinds:
                break
            kind = rng.choice(kinds)
            chosen = rng.choice(free[kind])
            if kind in SMALL:
                taken.add(chosen)
            placed[f"{name}|{_at(chosen)}|{number:02}"] = chosen
    if where.has_lamp:
        stands = [id_ for kind in LAMP_STANDS for id_ in by_kind[kind]]
        chosen = rng.choice(stands)
        placed[f"{LAMP}|{_at(chosen)}|00"] = chosen
    return placed


def _at(receptacle: str) -> str:
    """The position in a receptacle's id."""
    return "|".join(receptacle.split("|")[1:4])


def mangled(name: str) -> str:
    """A name as PDDL takes it."""
    for mark, word in MANGLED.items():
        name = name.replace(mark, word)
    return name


def shown_names(ids: Iterable[str]) -> dict[str, str]:
    """How the engine calls things: by class and a number that counts down in the order of their ids."""
    by_class = defaultdict(list)
    for id_ in ids:
        name = id_.split("|", 1)[0].lower() + ("basin" if "basin" in id_.lower() else "")
        by_class[name].append(id_)
    names = {}
    for name, members in by_class.items():
        for number, id_ in enumerate(sorted(members, key=lambda id_: mangled(id_).lower())):
            names[id_] = f"{name} {len(members) - number}"
    return names


def problem_text(where: Room, placed: dict[str, str], goal: str) -> str:
    """The PDDL problem: things, facts, and the goal, which closes the definition."""
    kinds = where.kinds
    classes = sorted({id_.split("|", 1)[0] for id_ in placed})
    location = {receptacle.id: f"loc_{number}" for number, receptacle in enumerate(where.receptacles, 1)}
    objects = [f"{name}Type - otype" for name in classes] + [f"{kind}Type - rtype" for kind in kinds]
    # goals may name a class that is not here
    objects += [f"{kind}Type - rtype" for kind in ("SinkBasin", "Microwave", "Fridge") if kind not in kinds]
    objects += [f"{mangled(id_)} - object" for id_ in placed]
    objects += [f"{mangled(receptacle.id)} - receptacle" for receptacle in where.receptacles]
    objects += [f"loc_{number} - location" for number in range(len(location) + 1)]
    facts = ["atLocation agent1 loc_0"]
    for receptacle in where.receptacles:
        name = mangled(receptacle.id)
        facts += [
            f"receptacleType {name} {receptacle.kind}Type",
            f"receptacleAtLocation {name} {location[receptacle.id]}",
        ]
        facts += [f"openable {name}"] if receptacle.openable else []
    facts += [f"canContain {kind}Type {name}Type" for kind in kinds for name in classes if name in HOLDS[kind]]
    for id_, receptacle_id in placed.items():
        name, class_ = mangled(id_), id_.split("|", 1)[0]
        facts += [f"objectType {name} {class_}Type", f"inReceptacle {name} {mangled(receptacle_id)}"]
        facts += [f"objectAtLocation {name} {location[receptacle_id]}"]
        facts += [f"toggleable {name}"] if class_ == LAMP else [f"pickupable {name}"]
        facts += _affordances(class_, name)
    lines = "\n".join(f"  ({fact})" for fact in facts)
    things = "\n".join(f"  {thing}" for thing in objects)
    return (
        f"(define (problem plan_{where.scene})\n (:domain alfred)\n (:objects\n  agent1 - agent\n{things}\n )\n"
        f" (:init\n{lines}\n )\n{goal}"
    )


def _affordances(class_: str, name: str) -> list[str]:
    found = [fact for fact, key in AFFORDANCES.items() if class_ in constants.VAL_ACTION_OBJECTS[key]]
    found += ["isReceptacleObject"] if class_ in constants.MOVABLE_RECEPTACLES_SET else []
    return [f"{fact} {name}" for fact in found]


def solution(where: Room, placed: dict[str, str], task: Task) -> list[str]:
    """
    Commands that win, by one who knows where everything is.

    Args:
        where ([`Room`]):
            The room.
        placed (`dict[str, str]`):
            Where the objects are.
        task ([`Task`]):
            The task.

    Returns:
        `list[str]`: the commands.
    """
    names = shown_names([*placed, *(receptacle.id for receptacle in where.receptacles)])
    openable = {receptacle.id for receptacle in where.receptacles if receptacle.openable}
    commands: list[str] = []
    at = ""

    def go(receptacle: str, needs_opening: bool = True) -> None:
        nonlocal at
        if at != receptacle:
            commands.append(f"go to {names[receptacle]}")
        if needs_opening and receptacle in openable:
            openable.remove(receptacle)  # and stays open
            commands.append(f"open {names[receptacle]}")
        at = receptacle

    def one_of(kind: str) -> str:
        return next(receptacle.id for receptacle in where.receptacles if receptacle.kind == kind)

    count = 2 if task.task_type == "pick_two_obj_and_place" else 1
    for thing in [id_ for id_ in placed if id_.split("|", 1)[0] == task.object][:count]:
        go(placed[thing])
        commands.append(f"take {names[thing]} from {names[at]}")
        if task.task_type == "look_at_obj_in_light":
            [lamp] = [id_ for id_ in placed if id_.startswith(f"{LAMP}|")]
            go(placed[lamp])
            return [*commands, f"use {names[lamp]}"]
        if task.task_type in TREATMENTS:
            go(one_of(TREATMENTS[task.task_type][0]), needs_opening=False)
            commands.append(f"{task.task_type.split('_')[1]} {names[thing]} with {names[at]}")
        go(one_of(task.target))
        commands.append(f"move {names[thing]} to {names[at]}")
    return commands
