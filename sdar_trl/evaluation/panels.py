"""Panels: lists of tasks that are the same everywhere."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..envs.border import plain


if TYPE_CHECKING:
    from ..envs import World


@dataclass(frozen=True)
class Panel:
    """
    A named, ordered list of tasks.

    Args:
        name (`str`):
            Its name.
        task_ids (`tuple[str, ...]`):
            The tasks, by their ids, in order.

    Raises:
        `ValueError`: if there are none, or an id is there twice.
    """

    name: str
    task_ids: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.task_ids:
            raise ValueError(f"The panel {self.name!r} was empty.")
        if len(set(self.task_ids)) < len(self.task_ids):
            twice = next(name for name in self.task_ids if self.task_ids.count(name) > 1)
            raise ValueError(f"Tasks of a panel need ids of their own; {self.name!r} has {twice!r} twice.")

    @classmethod
    def draw(cls, name: str, tasks: Any, size: int | None = None) -> "Panel":
        """
        A panel drawn from tasks by their ids alone, whatever order they come in: a task's place follows from the hash
        of its id. A smaller panel is the beginning of a larger one.

        Args:
            name (`str`):
                Its name.
            tasks (`Dataset` or `list[dict]`):
                The tasks, with a column `task_id`.
            size (`int`, *optional*):
                How many. If `None`, all.

        Returns:
            [`Panel`]: the panel.

        Raises:
            `ValueError`: if there are fewer.
        """
        ids = sorted(task_ids(tasks), key=lambda one: (sha256(one.encode()).hexdigest(), one))
        if size is not None and size > len(ids):
            raise ValueError(f"The panel {name!r} wants {size} tasks, and there are {len(ids)}.")
        return cls(name, tuple(ids[:size]))

    @property
    def sha256(self) -> str:
        """Hash of its name and its tasks, in order."""
        return sha256(json.dumps([self.name, *self.task_ids]).encode()).hexdigest()

    def tasks(self, tasks: Any) -> Any:
        """
        Its tasks, in its order.

        Args:
            tasks (`Dataset` or `list[dict]`):
                The dataset that has them.

        Returns:
            `Dataset` or `list[dict]`: those of the panel.

        Raises:
            `ValueError`: if one is missing.
        """
        places = {name: place for place, name in enumerate(task_ids(tasks))}
        missing = [name for name in self.task_ids if name not in places]
        if missing:
            raise ValueError(f"The dataset lacks {len(missing)} tasks of the panel {self.name!r}, as {missing[0]!r}.")
        wanted = [places[name] for name in self.task_ids]
        return tasks.select(wanted) if hasattr(tasks, "select") else [tasks[place] for place in wanted]

    def about(self) -> dict[str, Any]:
        """Name, hash and number of tasks, to write beside results."""
        return {"name": self.name, "sha256": self.sha256, "tasks": len(self.task_ids)}

    def save(self, path: str | Path) -> None:
        """Write it as JSON."""
        data = {"name": self.name, "sha256": self.sha256, "task_ids": self.task_ids}
        Path(path).write_text(json.dumps(data, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "Panel":
        """
        Read what `save` wrote.

        Args:
            path (`str` or `Path`):
                The file.

        Returns:
            [`Panel`]: the panel.

        Raises:
            `ValueError`: if its tasks are not those that were hashed.
        """
        data = json.loads(Path(path).read_text())
        panel = cls(data["name"], tuple(data["task_ids"]))
        if panel.sha256 != data["sha256"]:
            raise ValueError(f"{path} was changed: its tasks have the hash {panel.sha256}, not {data['sha256']}.")
        return panel


def task_ids(tasks: Any) -> list[str]:
    """Ids of tasks, `""` where they have none."""
    if hasattr(tasks, "column_names"):
        found: Sequence = tasks["task_id"] if "task_id" in tasks.column_names else [None] * len(tasks)
    else:
        found = [row.get("task_id") for row in tasks]
    return ["" if one is None else str(one) for one in map(plain, found)]


def world_panel(world: "World", split: str, size: int | None = None) -> Panel:
    """
    A panel of a world's split.

    Args:
        world ([`~sdar_trl.envs.World`]):
            The world.
        split (`str`):
            The split.
        size (`int`, *optional*):
            How many tasks. If `None`, all.

    Returns:
        [`Panel`]: the panel. Its name tells official files, and numbers and switches that are not the world's default,
        since tasks of one id may differ by them.
    """
    settings: Mapping[str, Any] = {one.name: getattr(world, one.name) for one in fields(world) if one.init}
    defaults = {one.name: one.default for one in fields(world)}
    own = [f"{name}={value}" for name, value in settings.items() if isinstance(value, int) and value != defaults[name]]
    files = ["files"] if settings.get("data_dir") is not None else []
    return Panel.draw("/".join([world.name, *files, *own, split]), world.dataset(split), size)
