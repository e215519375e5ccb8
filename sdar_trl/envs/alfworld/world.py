"""ALFWorld by its name."""

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from ..worlds import World
from .env import AlfWorldEnv


if TYPE_CHECKING:
    from datasets import Dataset


@dataclass
class AlfWorld(World):
    """
    Household tasks: the embedded games, or the official ones.

    Args:
        data_dir (`str`, *optional*):
            Folder of the official games. If `None`, the embedded ones.
        admissible_actions (`bool`, *optional*, defaults to `True`):
            Whether observations end in a list of the actions that are possible.
    """

    name: ClassVar[str] = "alfworld"
    limits: ClassVar[dict[str, int]] = {
        "max_turns": 50,
        "max_response_length": 512,
        "max_completion_length": 32768,
    }

    data_dir: str | None = field(
        default=None, metadata={"help": "Folder of the official games; the embedded ones if not given."}
    )
    admissible_actions: bool = field(
        default=True, metadata={"help": "Whether each observation lists the admissible actions."}
    )

    def dataset(self, split: str) -> "Dataset":
        return AlfWorldEnv.dataset(split, self.data_dir)

    @property
    def environment_factory(self) -> functools.partial[AlfWorldEnv]:
        return functools.partial(AlfWorldEnv, admissible_actions=self.admissible_actions)

    def notes(self) -> list[str]:
        return [f"Games: {'embedded' if self.data_dir is None else 'official'}."]
