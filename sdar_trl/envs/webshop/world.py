"""WebShop by its name."""

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ..worlds import World
from .env import WebShopEnv, find_shop
from .nouns import LIGHT, MODEL


if TYPE_CHECKING:
    from datasets import Dataset


@dataclass
class WebShop(World):
    """
    The shop: the embedded one, or that of the official files.

    Args:
        reward (`str`, *optional*, defaults to `"score"`):
            What buying pays: `"score"` the original's score, `"success"` 1 for a perfect purchase and else 0.
        data_dir (`str`, *optional*):
            Folder of WebShop's official files. If `None`, the embedded shop.
        human_goals (`bool`, *optional*, defaults to `False`):
            With `data_dir`: goals that people wrote, instead of those made of the products' options.
        price_seed (`int`, *optional*, defaults to `0`):
            With `data_dir`: seed of charged prices and of price limits, [`WebShopEnv`]'s `seed`.
        cache_dir (`str`, *optional*):
            With `data_dir`: folder of the cache; `.webshop_cache` in `data_dir` if not given.
    """

    name: ClassVar[str] = "webshop"
    limits: ClassVar[dict[str, int]] = {
        "max_turns": 15,
        "max_response_length": 512,
        "max_completion_length": 16384,
    }

    reward: Literal["score", "success"] = field(
        default="score",
        metadata={"help": "What an episode pays: 'score', or 'success' (1 for a perfect purchase, else 0)."},
    )
    data_dir: str | None = field(
        default=None, metadata={"help": "Folder of WebShop's official files; the embedded shop if not given."}
    )
    human_goals: bool = field(default=False, metadata={"help": "With data_dir: goals that people wrote."})
    price_seed: int = field(
        default=0, metadata={"help": "With data_dir: seed of charged prices and of the goals' price limits."}
    )
    cache_dir: str | None = field(
        default=None,
        metadata={"help": "With data_dir: folder of the cache, e.g. where data_dir itself cannot be written."},
    )

    def __post_init__(self) -> None:
        # another folder would be meant after a change of directory
        if self.data_dir is not None:
            self.data_dir = str(Path(self.data_dir).resolve())
        if self.cache_dir is not None:
            self.cache_dir = str(Path(self.cache_dir).resolve())

    def dataset(self, split: str) -> "Dataset":
        return WebShopEnv.dataset(split, **self._shop)

    @property
    def environment_factory(self) -> functools.partial[WebShopEnv]:
        return functools.partial(WebShopEnv, reward=self.reward, **self._shop)

    def notes(self) -> list[str]:
        if self.data_dir is None:
            return []
        tagger = find_shop(**self._shop).tagger
        differs = f" Some scores differ from the original's, which finds them by {MODEL}." if tagger is LIGHT else ""
        return [f"Nouns of titles, for the score, by: {tagger.name}.{differs}"]

    @property
    def _shop(self) -> dict[str, Any]:
        """What dataset and environment must agree on."""
        return {
            "data_dir": self.data_dir,
            "human_goals": self.human_goals,
            "seed": self.price_seed,
            "cache_dir": self.cache_dir,
        }
