"""What the teacher reads beyond the student's row: skills, a sibling's success, hindsight, or anything of your own.

A teacher context is a function from finished episodes to texts, one each, called once their returns are known, as
often on every process. An empty text leaves its episode out of the distillation.
"""

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from accelerate.utils import gather_object

from .envs.border import Border, plain
from .episodes import Episode, StopReason
from .skills import (
    RETRIEVERS,
    KeywordRetriever,
    Retriever,
    Skill,
    SkillLibrary,
    format_skills,
)


logger = logging.getLogger(__name__)

TeacherContext = Callable[[list[Episode]], list[str]]
"""The privileged text of each finished episode."""


def context_texts(context: TeacherContext, episodes: list[Episode], border: Border) -> list[str]:
    """
    What a context gives, checked.

    Args:
        context (`TeacherContext`):
            The context.
        episodes (`list[Episode]`):
            The episodes.
        border ([`~sdar_trl.envs.border.Border`]):
            Says once if there is no text at all.

    Returns:
        `list[str]`: one text an episode; `""` where there is none (`None`).

    Raises:
        `ValueError`: if it gives anything but a list of as many texts.
    """
    texts = context(episodes)
    name = getattr(context, "__qualname__", type(context).__qualname__)
    expected = f"The context `{name}` must return a list of one text for each of the {len(episodes)} episodes"
    if not isinstance(texts, list | tuple):
        raise ValueError(f"{expected}; got {type(texts).__name__}: {texts!r:.200}.")
    if len(texts) != len(episodes):
        raise ValueError(f"{expected}; got {len(texts)}.")
    for text in texts:
        if not isinstance(text, str | None):
            raise ValueError(f'{expected}, a str each ("" where there is none); got {text!r:.200}.')
    if not any(texts) and episodes and not isinstance(context, SkillContext):
        border.tell(
            ("context", name),
            "The context `%s` gave no text for any of %d episodes: nothing is distilled from such a batch.%s",
            name,
            len(episodes),
            " TRL's own loops do not say how an episode ended, so there is no hindsight of it."
            if context is hindsight_context and episodes[0].stop_reason is None
            else "",
        )
    return [border.text(text, f"The context `{name}`") if text else "" for text in texts]


class SkillContext:
    """
    Teacher context made of the skills that are retrieved for each task.

    Args:
        skills ([`SkillLibrary`] or [`~sdar_trl.skills.Retriever`]):
            The skills to choose from, by keyword matching, or a retriever over them.
        top_k (`int`, *optional*):
            Most skills of a task besides those for every task. If `None`, 1 for retrievers that rank the whole library
            (UCB, random, BM25, embeddings), and else no limit.
        max_tokens (`int`, *optional*):
            Most tokens of a context. What does not fit is dropped whole, lowest rank first, and counted.
        count_tokens (`Callable[[str], int]`, *optional*):
            Number of tokens of a text; needed with `max_tokens`.

    Attributes:
        metrics (`dict[str, list[float]]`):
            Of the last call, one value per episode: `skills` selected, `dropped_skills` that did not fit, and
            `no_own_skill`, 1.0 where nothing but skills for every task was found.

    Raises:
        `ValueError`: if `max_tokens` is given without `count_tokens`.
    """

    def __init__(
        self,
        skills: SkillLibrary | Retriever,
        *,
        top_k: int | None = None,
        max_tokens: int | None = None,
        count_tokens: Callable[[str], int] | None = None,
    ):
        if max_tokens is not None and count_tokens is None:
            raise ValueError("`max_tokens` needs `count_tokens`, the tokenizer's count of a text's tokens.")
        self.retriever = KeywordRetriever(skills) if isinstance(skills, SkillLibrary) else skills
        self.top_k = 1 if top_k is None and self.retriever.ranks_all else top_k
        self.max_tokens = max_tokens
        self.count_tokens = count_tokens
        self.metrics: dict[str, list[float]] = {}
        self._warned: set[str] = set()

    def __call__(self, episodes: list[Episode]) -> list[str]:
        texts = []
        self.metrics = {"skills": [], "dropped_skills": [], "no_own_skill": []}
        # by the prompt that was read: a task may be stated by the environment's first observation alone
        tasks = [{**_known(episode.task), "prompt": episode.prompt} for episode in episodes]
        for episode, ranked in zip(episodes, self.retriever.select(tasks), strict=True):
            general = [skill for skill in ranked if skill.always]
            selected = [*general, *[skill for skill in ranked if not skill.always][: self.top_k]]
            fitting = self._fit(selected)
            episode.skills = tuple(skill.name for skill in fitting)
            texts.append(format_skills(fitting))
            misses = all(skill.always for skill in fitting)
            if misses:
                self._warn(str(_known(episode.task).get("task_type", "unknown")))
            self.metrics["skills"].append(float(len(fitting)))
            self.metrics["dropped_skills"].append(float(len(selected) - len(fitting)))
            self.metrics["no_own_skill"].append(float(misses))
        return texts

    def _fit(self, skills: list[Skill]) -> list[Skill]:
        if self.max_tokens is not None and self.count_tokens is not None:
            while skills and self.count_tokens(format_skills(skills)) > self.max_tokens:
                skills = skills[:-1]
        return skills

    def _warn(self, task_type: str) -> None:
        if task_type not in self._warned:
            self._warned.add(task_type)
            logger.warning(
                "No skill of its own for task type %r: only general skills are read. Add a skill with this task "
                "type, or with a keyword that occurs in such tasks.",
                task_type,
            )

    def update(self, records: Iterable[tuple[str, Sequence[str], float]]) -> None:
        """Let the retriever learn from finished episodes, see [`~sdar_trl.skills.Retriever.update`]."""
        self.retriever.update(records)

    def table(self) -> str:
        """How many episodes each skill was read in (in training) and their mean return, as a table to print."""
        rows = self.retriever.totals()
        width = max(len(name) for name in rows)
        lines = [f"{'skill':{width}}  episodes  mean return"]
        return "\n".join([*lines, *(f"{n:{width}}  {count:8}  {mean:11.3f}" for n, (count, mean) in rows.items())])


def skill_records(episodes: list[Episode]) -> list[tuple[str, list[str], float]]:
    """What a retriever learns from: task type, skills and return of the episodes that have a return, a finite one."""
    return [
        (str(_known(episode.task).get("task_type", "all")), list(episode.skills), episode.episode_return)
        for episode in episodes
        if episode.stop_reason is not StopReason.ENV_ERROR
        and not episode.error
        and math.isfinite(episode.episode_return)
    ]


def _known(task: Mapping[str, Any]) -> dict[str, Any]:
    """A task without what is `None`: datasets fill missing values so."""
    return {name: value for name, value in task.items() if value is not None}


def skill_context(library: SkillLibrary, args: Any, count_tokens: Callable[[str], int]) -> SkillContext:
    """
    The context that a configuration asks for.

    Args:
        library ([`SkillLibrary`]):
            The skills.
        args ([`SDARConfig`]):
            Names the retriever, and has its options by the names that the retriever gives them.
        count_tokens (`Callable[[str], int]`):
            Number of tokens of a text.

    Returns:
        [`SkillContext`]: the context.
    """
    kind = RETRIEVERS[args.retriever]
    return SkillContext(
        kind(library, **{parameter: getattr(args, name) for parameter, name in kind.options.items()}),
        top_k=args.skills_top_k,
        max_tokens=args.max_context_tokens,
        count_tokens=count_tokens,
    )


def sibling_context(episodes: list[Episode]) -> list[str]:
    """
    A successful attempt of the same task by another episode of its group, as in SDPO ("Reinforcement Learning via
    Self-Distillation").

    Episodes without a successful sibling, and those of tasks without a `task_id`, are left out of the distillation.

    Args:
        episodes (`list[Episode]`):
            Finished episodes of this process; those of all processes are looked at.

    Returns:
        `list[str]`: the texts.
    """
    siblings: dict[str, list[tuple[list[list[int]], str]]] = {}
    for task_id, ids, text in gather_object([_attempt(e) for e in episodes if e.success and _task_id(e)]):
        siblings.setdefault(task_id, []).append((ids, text))
    texts = []
    for episode in episodes:
        own = [turn.response_ids for turn in episode.turns]
        others = [text for ids, text in siblings.get(_task_id(episode), []) if ids != own]
        texts.append(f"# An attempt at this task that succeeded\n\n{others[0]}" if others else "")
    return texts


def _task_id(episode: Episode) -> str:
    """The id, whatever it is, as a key; `""` if there is none."""
    task_id = plain(episode.task.get("task_id"))
    return "" if task_id is None else repr(task_id)


def _attempt(episode: Episode) -> tuple[str, list[list[int]], str]:
    turns = [f"{turn.observation}\n> {turn.response}" for turn in episode.turns]
    return _task_id(episode), [turn.response_ids for turn in episode.turns], "\n".join(turns)


def hindsight_context(episodes: list[Episode]) -> list[str]:
    """
    How the episode itself will end: its outcome, its return and the environment's last words.

    Args:
        episodes (`list[Episode]`):
            Finished episodes.

    Returns:
        `list[str]`: the texts; empty where the environment raised.
    """
    return [
        ""
        if episode.stop_reason in (None, StopReason.ENV_ERROR)
        else f"# How this attempt ended\n\nIt {'succeeded' if episode.success else 'failed'} after "
        f"{len(episode.turns)} turns, with a return of {episode.episode_return:.2f}.\n{episode.feedback}".rstrip()
        for episode in episodes
    ]
