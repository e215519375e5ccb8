"""WebShop as a text environment."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..base import Step, parse_tag, steps_taken
from .embedded import embedded_shop
from .goals import SPLITS, Goal
from .pages import Page, join
from .reward import score_purchase
from .shop import Shop
from .store import SyntheticGoals, load_shop


if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

SYSTEM = (
    "You are shopping in a web store. Each turn shows a page and the actions it admits. Think briefly if that helps, "
    "then answer with one action inside <action></action> tags: search[query] or click[element]. The purchase is "
    "final: buy only what the instruction asks for."
)
ACTIONS = "\nAdmissible actions: "  # begins the last line of what the agent sees


def find_shop(data_dir: str | Path | None, human_goals: bool, seed: int, cache_dir: str | Path | None) -> Shop:
    """The shop of a folder of official files, or the embedded one."""
    return embedded_shop() if data_dir is None else load_shop(data_dir, human_goals, seed, cache_dir)


def _repeated(value: Any, length: int) -> "pa.ChunkedArray":
    """A column of one value. Of millions of tasks, all its chunks are one in memory."""
    import pyarrow as pa

    chunk = pa.array([value] * min(length, 10_000))
    return pa.chunked_array([chunk] * (length // len(chunk)) + [chunk[: length % len(chunk)]])


class WebShopEnv:
    """
    WebShop: find a product that fits the instruction, choose its options, buy it.

    An action is `search[words]`, from any page, or `click[element]`, for what the page shows, inside `<action>` tags.
    Anything else leaves the page as it is and is answered with the reason.

    Args:
        reward (`str`, *optional*, defaults to `"score"`):
            What buying pays: `"score"` the original's score in [0, 1], `"success"` 1 for a score of 1 and else 0.
        data_dir (`str` or `Path`, *optional*):
            Folder of the official files, see [`load_shop`]; the embedded shop if not given.
        human_goals (`bool`, *optional*, defaults to `False`):
            With `data_dir`: goals that people wrote, instead of those made of the products' options.
        seed (`int`, *optional*, defaults to `0`):
            With `data_dir`: seed of charged prices and of price limits.
        cache_dir (`str` or `Path`, *optional*):
            With `data_dir`: folder of the cache, see [`load_shop`].

    Raises:
        `ValueError`: if `reward` is neither, or a file is malformed.
        `FileNotFoundError`: if a file is missing.
        `OSError`: if there is no cache and none can be written.

    Example:

    ```python
    >>> from sdar_trl.envs import WebShopEnv

    >>> env = WebShopEnv()
    >>> print(env.reset(goal=0))
    >>> env.step("<action>search[red shoe]</action>")
    ```
    """

    def __init__(
        self,
        reward: Literal["score", "success"] = "score",
        data_dir: str | Path | None = None,
        human_goals: bool = False,
        seed: int = 0,
        cache_dir: str | Path | None = None,
    ):
        if reward not in ("score", "success"):
            raise ValueError(f"`reward` must be score or success, got {reward!r}.")
        self.reward = reward
        self.shop = find_shop(data_dir, human_goals, seed, cache_dir)
        self._page = Page("done")

    @staticmethod
    def dataset(
        split: str,
        data_dir: str | Path | None = None,
        human_goals: bool = False,
        seed: int = 0,
        cache_dir: str | Path | None = None,
    ) -> "Dataset":
        """
        The tasks of a split.

        Args:
            split (`str`):
                `"train"`, `"validation"` or `"test"`; they are disjoint and always the same.
            data_dir, human_goals, seed, cache_dir (*optional*):
                The shop, as for the environment.

        Returns:
            [`~datasets.Dataset`]: columns `prompt`, `task_id`, `task_type` (the product's category), `goal`, and
            `shop`, which says whose goals they are.

        Raises:
            `ValueError`: if there is no such split, or the shop has too few goals for it.
        """
        import pyarrow as pa
        from datasets import Dataset
        from datasets.fingerprint import Hasher

        if split not in SPLITS:
            raise ValueError(f"`split` must be one of {', '.join(sorted(SPLITS))}, got {split!r}.")
        shop = find_shop(data_dir, human_goals, seed, cache_dir)
        goals = shop.goals
        start, stop = SPLITS[split]
        indices = range(len(goals))[start:stop]
        if not indices:
            raise ValueError(f"The {split!r} split begins at goal {start}, and the shop has only {len(goals)} goals.")
        categories = goals.categories() if isinstance(goals, SyntheticGoals) else [goal.category for goal in goals]
        prompt = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": ""}]
        columns = {
            "prompt": _repeated(prompt, len(indices)),
            "task_id": [f"webshop/{split}/{number}" for number in range(len(indices))],
            "task_type": pa.array(categories[start:stop], pa.string()),
            "goal": pa.array(indices, pa.int64()),
            "shop": _repeated(shop.name, len(indices)),
        }
        # the default fingerprint would be taken of gigabytes of the same prompt
        fingerprint = Hasher.hash((split, shop.name))
        return Dataset(pa.table(columns), fingerprint=fingerprint)

    @property
    def goal(self) -> Goal:
        """What the current task asks for."""
        return self._goal

    @property
    def page(self) -> Page:
        """Where the agent is: `page.clickables`, `page.listed` (products of a results page), `page.options`."""
        return self._page

    def reset(self, *, goal: int, shop: str | None = None, **_: Any) -> str:
        """
        Enter the shop with a goal.

        Args:
            goal (`int`):
                Index in the shop's goals.
            shop (`str`, *optional*):
                Whose goals they are.

        Returns:
            `str`: the instruction and the search page.

        Raises:
            `ValueError`: if they are not this shop's, or there is no such goal.
        """
        if shop not in (None, self.shop.name):
            raise ValueError(
                f"The task is of the shop {shop!r}, and the environment's is {self.shop.name!r}. Give dataset and "
                "environment the same `data_dir`, `human_goals` and `seed`, and leave the files as they are."
            )
        if not 0 <= goal < len(self.shop.goals):
            raise ValueError(
                f"`goal` must be at least 0 and below {len(self.shop.goals)}, the number of goals; got {goal}."
            )
        self._goal = self.shop.goals[goal]
        self._page = Page()
        return f"Instruction: {self._goal.instruction}\n{self._view()}"

    def step(self, response: str) -> Step:
        """
        Do what the response's action says.

        Args:
            response (`str`):
                The policy's response.

        Returns:
            [`Step`]: the next page; at the end, `info` has `score`, `success` and the parts of the score.

        Raises:
            `RuntimeError`: if the episode is over.
        """
        if self._page.kind == "done":
            raise RuntimeError("The episode is over; call reset.")
        action = parse_tag(response, "action")
        if action is None:
            return self._invalid("answer with one action inside <action></action> tags")
        # what the original's `(.+)\[(.+)\]` finds, which takes minutes where there are thousands of brackets
        inside = action.partition("\n")[0].rpartition("]")[0]
        bracket = inside.rfind("[", 1, len(inside) - 1)
        if bracket < 0:
            return self._invalid("it is neither search[query] nor click[element]")
        verb, argument = inside[:bracket], inside[bracket + 1 :].lower()
        if verb == "search":
            self._page = self._page.search(self.shop.engine.search(argument))
            needs_more = argument.strip() in ("<a>", "<c>", "<q>")
            note = f"No hits: {argument.strip()} needs words after it.\n" if needs_more else ""
            return Step(note + self._view())
        if verb != "click" or argument not in self._page.clickables or argument == "search":
            return self._invalid("this page does not admit it")
        self._page = self._page.click(argument)
        return self._bought() if self._page.kind == "done" else Step(self._view())

    def close(self) -> None:
        """Nothing to let go of: the shop is shared."""

    @staticmethod
    def history(first: str, past: Sequence[tuple[str, str]], observation: str, step: int) -> str:
        """
        What the agent reads in place of the whole conversation, with what the published agents read, in their order:
        the instruction, how many steps were taken, the last pages and actions, the present page and its actions.

        Args:
            first (`str`):
                The first observation.
            past (`Sequence[tuple[str, str]]`):
                The last observations and responses, oldest first.
            observation (`str`):
                The present observation.
            step (`int`):
                Number of the turn, from 1.

        Returns:
            `str`: the text; in turn 1, the first observation as it is.
        """
        if step == 1:
            return first
        instruction = first.rsplit("\n", 2)[0]  # above the two lines of the search page
        shown = [page.removeprefix(instruction).lstrip().rsplit(ACTIONS, 1)[0] for page, _ in past]
        return "\n".join([instruction, *steps_taken(past, step, shown), f"Step {step}:", observation])

    def _bought(self) -> Step:
        assert self._page.product is not None
        score = score_purchase(self._page.product, self._goal, self._page.options, self.shop.tagger)
        self._page = replace(self._page, score=score.total)
        success = score.total == 1
        info = {
            "score": score.total,
            "success": success,
            "type": score.type,
            "attributes": score.attributes,
            "options": score.options,
            "price": score.price,
        }
        reward = score.total if self.reward == "score" else float(success)
        observation, metrics = join(self._page.pieces()), {"score": score.total}
        return Step(observation, reward, terminated=True, info=info, metrics=metrics)

    def _invalid(self, reason: str) -> Step:
        # the action is not repeated: it is the policy's text, and may hold special tokens
        return Step(f"Invalid action: {reason}.\n{self._view()}", valid=False)

    def _view(self) -> str:
        """What the agent sees: the page after the instruction, and the admissible actions."""
        clicks = [f"click[{name}]" for name in self._page.clickables if name != "search"]
        search = ["search[<your query>]"] if self._page.kind == "search" else []
        return f"{join(self._page.pieces())}{ACTIONS}{', '.join([*search, *clicks])}"
