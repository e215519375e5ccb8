"""The rooms of the original scenes: their furniture, what lies in them, and which tasks they allow.

Both come from the package `alfworld`, which lists the receptacles and the classes of objects of all 120 scenes.
"""

import json
from collections.abc import Set
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .guard import imported


with imported():
    import alfworld.gen.constants as constants

TASK_TYPES = (
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
)
LAYOUTS = Path(str(constants.__file__)).parent / "layouts"
LAMP = "DeskLamp"
LAMP_STANDS = ("Desk", "SideTable", "Dresser", "Shelf", "DiningTable", "CoffeeTable")
# where an object is treated, and which objects can be
TREATMENTS = {
    "pick_clean_then_place_in_recep": ("SinkBasin", "Cleanable"),
    "pick_heat_then_place_in_recep": ("Microwave", "Heatable"),
    "pick_cool_then_place_in_recep": ("Fridge", "Coolable"),
}
HOLDS: dict[str, Set[str]] = {
    receptacle: {name for name in objects if not name.endswith("Sliced")}
    for receptacle, objects in constants.VAL_RECEPTACLE_OBJECTS.items()
    if receptacle not in constants.MOVABLE_RECEPTACLES_SET
}
PICKUPABLE = set().union(*HOLDS.values())


@dataclass(frozen=True)
class Receptacle:
    """
    A piece of furniture that holds objects.

    Args:
        kind (`str`): Its class, e.g. "Cabinet".
        id (`str`): The scene's name of it: class and position.
    """

    kind: str
    id: str

    @property
    def openable(self) -> bool:
        """Whether it has to be opened."""
        return self.kind in constants.OPENABLE_CLASS_SET


@dataclass(frozen=True)
class Room:
    """
    A scene.

    Args:
        scene (`int`): The original's number.
        kind (`str`): "Kitchen", "LivingRoom", "Bedroom" or "Bathroom".
        receptacles (`tuple[Receptacle, ...]`): The furniture.
        objects (`tuple[str, ...]`): Classes of what lies in it and can be picked up.
        has_lamp (`bool`): Whether there is a desk lamp, and where to put it.
    """

    scene: int
    kind: str
    receptacles: tuple[Receptacle, ...]
    objects: tuple[str, ...]
    has_lamp: bool

    @property
    def kinds(self) -> list[str]:
        """Classes of its receptacles, sorted."""
        return sorted({receptacle.kind for receptacle in self.receptacles})

    def homes(self, thing: str) -> list[str]:
        """Classes of its receptacles that can hold an object of a class, sorted."""
        return [kind for kind in self.kinds if thing in HOLDS[kind]]

    def tasks(self, task_type: str) -> list[tuple[str, str]]:
        """What can be asked for: pairs of an object and of the receptacle that it goes to (or the lamp)."""
        if self.kind not in constants.GOALS_VALID[task_type]:
            return []
        if task_type == "look_at_obj_in_light":
            return [(thing, LAMP) for thing in self.objects if self.has_lamp and self.homes(thing)]
        found = []
        for thing in self.objects:
            homes = self.homes(thing)
            if task_type in TREATMENTS:
                place, property_ = TREATMENTS[task_type]
                if place not in self.kinds or thing not in constants.VAL_ACTION_OBJECTS[property_]:
                    continue
                targets = [kind for kind in homes if kind != place]
            else:  # it must lie somewhere else
                targets = homes if len(homes) > 1 else []
            found += [(thing, target) for target in targets]
        return found


def scenes(unseen: bool) -> list[int]:
    """Numbers of the scenes of the official splits: those of training, or those that are held out."""
    return list(constants.TEST_SCENE_NUMBERS if unseen else constants.TRAIN_SCENE_NUMBERS)


@cache
def room(scene: int) -> Room:
    """The room with a number."""
    [kind] = [name for name, numbers in constants.SCENE_TYPE.items() if scene in numbers]
    classes = set(json.loads((LAYOUTS / f"FloorPlan{scene}-objects.json").read_text()))
    listed = sorted(json.loads((LAYOUTS / f"FloorPlan{scene}-openable.json").read_text()))
    found = [Receptacle(_kind(name), name) for name in listed if _kind(name) in HOLDS]
    # the list leaves out what is always within reach, such as stove burners
    for missing in sorted((classes & set(HOLDS)) - {receptacle.kind for receptacle in found}):
        count = 4 if missing == "StoveBurner" else 1
        basin = missing.removesuffix("Basin")
        tail = f"|{missing}" if basin != missing else ""
        found += [Receptacle(missing, f"{basin}|+09.{number:02}|+00.90|+09.00{tail}") for number in range(count)]
    has_lamp = LAMP in classes and any(receptacle.kind in LAMP_STANDS for receptacle in found)
    kinds = {receptacle.kind for receptacle in found}
    objects = sorted(name for name in classes & PICKUPABLE if any(name in HOLDS[kind] for kind in kinds))
    return Room(scene, kind, tuple(found), tuple(objects), has_lamp)


def _kind(name: str) -> str:
    """The class of a receptacle: a basin is named after what it is part of."""
    return name.split("|", 1)[0] + ("Basin" if name.endswith("Basin") else "")
