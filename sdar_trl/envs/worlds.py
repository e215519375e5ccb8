"""Worlds: an environment with its tasks, its skills and its limits, by one name."""

import functools
from dataclasses import dataclass, fields
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

from .border import not_one_of


if TYPE_CHECKING:
    from datasets import Dataset

    from ..skills import SkillLibrary

# Where each world's class is. Imported when asked for: one whose packages are missing is in nobody's way.
WORLDS = {
    "webshop": "sdar_trl.envs.webshop.world:WebShop",
    "alfworld": "sdar_trl.envs.alfworld.world:AlfWorld",
    "search_qa": "sdar_trl.envs.search_qa.world:SearchQA",
}


@dataclass
class World:
    """
    What belongs together: a dataset, the environment that plays its tasks, the skills for them and limits that fit.

    A subclass is a dataclass. Its fields are what dataset and environment must agree on, with defaults and
    `metadata={"help": ...}`, since they are also the command line's arguments.

    Attributes:
        name (`str`):
            Its name, in [`load_world`] and of its bundled skills. If it needs packages of its own, also of the extra
            that brings them.
        limits (`dict[str, int]`):
            Values of [`SDARConfig`]'s `max_turns`, `max_response_length` and `max_completion_length` that fit it with
            a real model.

    Example:

    ```python
    >>> from sdar_trl.envs import load_world

    >>> world = load_world("webshop", reward="success")
    >>> tasks, env = world.dataset("train"), world.environment_factory()
    >>> print(env.reset(**tasks[0]))
    ```
    """

    name: ClassVar[str]
    limits: ClassVar[dict[str, int]]

    def dataset(self, split: str) -> "Dataset":
        """The tasks of a split."""
        raise NotImplementedError

    @property
    def environment_factory(self) -> functools.partial:
        """Makes an environment: a partial of its class, which can be pickled and shows where instances run."""
        raise NotImplementedError

    def skills(self) -> "SkillLibrary":
        """The skills for its tasks that come with the package."""
        from ..skills import SkillLibrary

        return SkillLibrary.bundled(self.name)

    def notes(self) -> list[str]:
        """What to tell beside every published result."""
        return []


def world_class(name: str) -> type[World]:
    """
    The class of a world.

    Args:
        name (`str`):
            Its name.

    Returns:
        `type[World]`: the class.

    Raises:
        `ValueError`: if there is no such world.
        `ImportError`: if a package that it needs is not installed; the message says how to install it.
    """
    if name not in WORLDS:
        raise ValueError(not_one_of("A world", WORLDS, name))
    module, _, attribute = WORLDS[name].partition(":")
    return getattr(import_for(name, module), attribute)


def import_for(name: str, module: str) -> ModuleType:
    """A module of a world; if a package is missing, the error says which extra brings it."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("sdar_trl"):
            raise
        raise ImportError(f'{name} needs the package {error.name!r}: pip install "sdar-trl[{name}]"') from error


def load_world(name: str, **arguments: Any) -> World:
    """
    A world by its name.

    Args:
        name (`str`):
            Its name, e.g. `"webshop"`.
        **arguments:
            Fields of its class, such as `data_dir`.

    Returns:
        [`World`]: the world.

    Raises:
        `ValueError`: if there is no such world, or it has no such argument.
        `ImportError`: if a package that it needs is not installed.
    """
    kind = world_class(name)
    names = [argument.name for argument in fields(kind)]
    for argument in arguments:
        if argument not in names:
            raise ValueError(not_one_of(f"An argument of {name}", names, argument))
    return kind(**arguments)
