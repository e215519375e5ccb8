"""Which skills go with which task.

Skills for every task (`always`) come first, whatever the retriever; it ranks the others. `RETRIEVERS` has them by
name.
"""

import math
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .library import Skill, SkillLibrary


def task_text(task: Mapping[str, Any]) -> str:
    """The text a task is matched by: its last user message, which holds the first observation once an episode ran."""
    prompt = task.get("prompt", "")
    if isinstance(prompt, str):
        return prompt
    return next((str(message["content"]) for message in reversed(prompt) if message["role"] == "user"), "")


class Retriever:
    """
    Ranks skills for a task, and keeps account of what came of them.

    Subclasses define `rank`.

    Args:
        library ([`SkillLibrary`]):
            The skills to choose from.

    Attributes:
        statistics (`dict[str, dict[str, list[float]]]`):
            By task type and skill: how many episodes it was selected for, and the sum of their returns.
        ranks_all (`bool`):
            Whether `rank` orders the whole library, so that a number of skills has to be set; 1 unless it is.
        options (`dict[str, str]`):
            Further parameters of the constructor, and the names of the `SDARConfig` values they take.
    """

    ranks_all = False
    options: Mapping[str, str] = {}

    def __init__(self, library: SkillLibrary):
        self.library = library
        self.general = [skill for skill in library if skill.always]
        self.special = [skill for skill in library if not skill.always]
        self.statistics: dict[str, dict[str, list[float]]] = {}

    def rank(self, task: Mapping[str, Any]) -> list[Skill]:
        """
        The skills for a task, besides those for every task.

        Args:
            task (`dict`):
                Dataset row; `task_type`, `task_id` and `prompt` may be read.

        Returns:
            `list[Skill]`: best first.
        """
        raise NotImplementedError

    def select(self, tasks: Sequence[Mapping[str, Any]]) -> list[list[Skill]]:
        """
        Choose skills.

        Args:
            tasks (`list[dict]`):
                Dataset rows.

        Returns:
            `list[list[Skill]]`: the skills of each task, those that go with every task first.
        """
        return [[*self.general, *self.rank(task)] for task in tasks]

    def update(self, records: Iterable[tuple[str, Sequence[str], float]]) -> None:
        """
        Take account of finished episodes. Given the same records in the same order, every process has the same state.

        Args:
            records (`list[tuple[str, list[str], float]]`):
                Task type, names of the selected skills and return of each episode.
        """
        for task_type, names, episode_return in records:
            by_skill = self.statistics.setdefault(task_type, {})
            for name in names:
                entry = by_skill.setdefault(name, [0, 0.0])
                entry[0] += 1
                entry[1] += episode_return

    def log_values(self) -> dict[str, float]:
        """What is logged of the retriever's own state, by name."""
        return {}

    def totals(self) -> dict[str, tuple[int, float]]:
        """Of each skill of the library: how many episodes it was selected for, and their mean return."""
        result = {}
        for skill in self.library:
            entries = [by_skill[skill.name] for by_skill in self.statistics.values() if skill.name in by_skill]
            count = sum(int(entry[0]) for entry in entries)
            result[skill.name] = (count, sum(entry[1] for entry in entries) / count if count else 0.0)
        return result

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps; JSON can hold it."""
        return {"statistics": self.statistics}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.statistics = state["statistics"]


class KeywordRetriever(Retriever):
    """
    Keyword matching (KM).

    A skill is for a task if it names the task's `task_type`. Where no skill names that type, or the task has none, a
    skill is for a task if any of its keywords occurs in the task's text, in any case.
    """

    def __init__(self, library: SkillLibrary):
        super().__init__(library)
        edge = "" if library.substrings else r"\b"
        self._patterns = {
            skill.name: re.compile("|".join(rf"{edge}{re.escape(word)}{edge}" for word in skill.keywords), re.I)
            for skill in self.special
            if skill.keywords
        }

    def rank(self, task: Mapping[str, Any]) -> list[Skill]:
        task_type = str(task.get("task_type", ""))
        if self.library.substrings:
            own = [skill for skill in self.special if any(name in task_type for name in skill.task_types)]
        else:
            own = [skill for skill in self.special if task_type in skill.task_types]
        if own:
            return own
        text = task_text(task)
        return [s for s in self.special if s.name in self._patterns and self._patterns[s.name].search(text)]


class UCBRetriever(Retriever):
    """
    Upper confidence bounds: skills by `mean return + c * sqrt(ln N / n)`, of the n episodes a skill was selected for
    among the N of all skills. Skills not tried yet come first.

    Args:
        library ([`SkillLibrary`]):
            The skills to choose from.
        c (`float`, *optional*, defaults to `1.0`):
            Weight of the bonus for what was seldom tried.
        per_task_type (`bool`, *optional*, defaults to `True`):
            Learn for each task type by itself, or for all at once.
    """

    ranks_all = True
    options = {"c": "ucb_c", "per_task_type": "ucb_per_task_type"}

    def __init__(self, library: SkillLibrary, c: float = 1.0, per_task_type: bool = True):
        super().__init__(library)
        self.c = c
        self.per_task_type = per_task_type

    def bounds(self, task_type: str) -> dict[str, float]:
        """The upper bound of each skill for a task type; infinity for those not tried."""
        types = [task_type] if self.per_task_type else list(self.statistics)
        counts = {skill.name: 0.0 for skill in self.special}
        totals = dict(counts)
        for each in types:
            for name, (count, total) in self.statistics.get(each, {}).items():
                if name in counts:
                    counts[name] += count
                    totals[name] += total
        tried = sum(counts.values())
        return {
            name: totals[name] / count + self.c * math.sqrt(math.log(tried) / count) if count else math.inf
            for name, count in counts.items()
        }

    def log_values(self) -> dict[str, float]:
        """What was learned: of each skill, how often it was selected and what the mean return was."""
        values = {}
        for name, (count, mean) in self.totals().items():
            values[f"ucb/{name}/count"] = float(count)
            values[f"ucb/{name}/mean_return"] = mean
        return values

    def rank(self, task: Mapping[str, Any]) -> list[Skill]:
        bounds = self.bounds(str(task.get("task_type", "all")))
        return sorted(self.special, key=lambda skill: -bounds[skill.name])  # ties in the library's order


class RandomRetriever(Retriever):
    """
    Skills in a random order that depends on the task alone: the same in every process and run.

    Args:
        library ([`SkillLibrary`]):
            The skills to choose from.
        seed (`int`, *optional*, defaults to `0`):
            Another seed, another order.
    """

    ranks_all = True
    options = {"seed": "seed"}

    def __init__(self, library: SkillLibrary, seed: int = 0):
        super().__init__(library)
        self.seed = seed

    def rank(self, task: Mapping[str, Any]) -> list[Skill]:
        rng = random.Random(f"{self.seed} {task.get('task_id', task_text(task))}")
        return rng.sample(self.special, len(self.special))


class FullRetriever(Retriever):
    """All skills, in the library's order."""

    def rank(self, task: Mapping[str, Any]) -> list[Skill]:
        return self.special


class NoRetriever(Retriever):
    """No skill at all, not even those for every task: a teacher that knows no more than the student."""

    def select(self, tasks: Sequence[Mapping[str, Any]]) -> list[list[Skill]]:
        return [[] for _ in tasks]


class BM25Retriever(Retriever):
    """Skills by BM25 of the task's text over their names, descriptions and bodies; those with no word in common are
    left out."""

    ranks_all = True

    def __init__(self, library: SkillLibrary):
        super().__init__(library)
        import bm25s

        self._bm25s = bm25s
        self._index = bm25s.BM25()
        self._index.index(self._tokens([_whole_text(skill) for skill in self.special]), show_progress=False)

    def _tokens(self, texts: list[str]) -> Any:
        return self._bm25s.tokenize(texts, stopwords="en", show_progress=False)

    def rank(self, task: Mapping[str, Any]) -> list[Skill]:
        # as text, so that words the index does not know are left out
        tokens = self._bm25s.tokenize([task_text(task)], stopwords="en", return_ids=False, show_progress=False)
        scores = self._index.get_scores(tokens[0])
        return [self.special[i] for i in np.argsort(-scores, kind="stable") if scores[i] > 0]


class EmbeddingRetriever(Retriever):
    """
    Skills by the cosine between embeddings of the task's text and of their names, descriptions and bodies.

    Args:
        library ([`SkillLibrary`]):
            The skills to choose from.
        model (`str`):
            A sentence-transformers model: a hub id or a folder.

    Raises:
        `ImportError`: if sentence-transformers is not installed.
    """

    ranks_all = True
    options = {"model": "embedding_model"}

    def __init__(self, library: SkillLibrary, model: str):
        super().__init__(library)
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise ImportError('Embeddings need sentence-transformers: `pip install "sdar-trl[embedding]"`.') from error
        self._model = SentenceTransformer(model)
        self._skills = self._embed([_whole_text(skill) for skill in self.special])

    def _embed(self, texts: list[str]) -> np.ndarray:
        return self._model.encode(texts, normalize_embeddings=True, show_progress_bar=False)

    def rank(self, task: Mapping[str, Any]) -> list[Skill]:
        similarity = self._skills @ self._embed([task_text(task)])[0]
        return [self.special[i] for i in np.argsort(-similarity, kind="stable")]


def _whole_text(skill: Skill) -> str:
    return f"{skill.name}\n{skill.description}\n{skill.body}"


RETRIEVERS: dict[str, type[Retriever]] = {
    "keyword": KeywordRetriever,
    "ucb": UCBRetriever,
    "random": RandomRetriever,
    "full": FullRetriever,
    "none": NoRetriever,
    "bm25": BM25Retriever,
    "embedding": EmbeddingRetriever,
}
