"""Which skills go with which task.

Skills for every task (`always`) come first, whatever the retriever; it ranks the others. `RETRIEVERS` has them by
name.
"""

import math
import random
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import regex

from .library import Skill, SkillLibrary


def task_text(task: Mapping[str, Any]) -> str:
    """The text a task is matched by: its last user message, which holds the first observation once an episode ran."""
    prompt = task.get("prompt")
    if prompt is None or isinstance(prompt, str):
        return prompt or ""
    content = next((message.get("content") for message in reversed(prompt) if message.get("role") == "user"), "")
    if isinstance(content, list):  # a text in parts
        content = "".join(part if isinstance(part, str) else part.get("text") or "" for part in content)
    return str(content or "")


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
    skill is for a task if any of its keywords occurs in the task's text, in any case, as whole words: "hat" is not in
    "that". Where a script puts no spaces between words, as Chinese, or adds particles to them, as Korean, a keyword is
    found inside a sentence; and where a keyword begins or ends with a sign, as "c++", anything may stand next to it.
    """

    # a letter, digit or _ of a script that puts spaces between words, and of those alone
    _letter = (
        r"(?V1:[\w--[\p{scx=Han}\p{scx=Bopomofo}\p{scx=Hiragana}\p{scx=Katakana}\p{scx=Hangul}"
        r"\p{Line_Break=Complex_Context}\p{Script=Inherited}]])"
    )

    def __init__(self, library: SkillLibrary):
        super().__init__(library)
        self._patterns = {
            skill.name: regex.compile("|".join(map(self._pattern, keywords)))
            for skill in self.special
            if (keywords := [keyword for keyword in skill.keywords if keyword.strip()])
        }

    def _pattern(self, keyword: str) -> str:
        if self.library.substrings:
            return regex.escape(_folded(keyword))
        words = _folded(keyword).split()
        before = rf"(?<!{self._letter})" if regex.match(self._letter, words[0][0]) else ""
        after = rf"(?!{self._letter})" if regex.match(self._letter, words[-1][-1]) else ""
        return before + r"[\s\x1c-\x1f]+".join(map(regex.escape, words)) + after

    def rank(self, task: Mapping[str, Any]) -> list[Skill]:
        task_type = str(_present(task, "task_type", ""))
        if self.library.substrings:
            own = [skill for skill in self.special if any(name in task_type for name in skill.task_types)]
        else:
            own = [skill for skill in self.special if task_type in skill.task_types]
        if own:
            return own
        text = _folded(task_text(task))
        return [s for s in self.special if s.name in self._patterns and self._patterns[s.name].search(text)]


def _present(task: Mapping[str, Any], name: str, default: str) -> Any:
    """A task's value; `None` stands for a missing one, as datasets fill them."""
    value = task.get(name)
    return default if value is None else value


def _folded(text: str) -> str:
    """Text without case: "Straße" and "STRASSE" are the same, and so are the four letters i of Turkish."""
    text = unicodedata.normalize("NFC", text).casefold()
    return unicodedata.normalize("NFC", text.replace("i\u0307", "i").replace("\u0131", "i"))


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
        bounds = self.bounds(str(_present(task, "task_type", "all")))
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
        rng = random.Random(f"{self.seed} {_present(task, 'task_id', task_text(task))}")
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
    left out, which is all of them where there are no words."""

    ranks_all = True

    def __init__(self, library: SkillLibrary):
        super().__init__(library)
        import bm25s

        self._bm25s = bm25s
        self._index = bm25s.BM25()
        tokens = self._tokens([_whole_text(skill) for skill in self.special]) if self.special else []
        self._indexed = any(tokens)
        if self._indexed:
            self._index.index(tokens, show_progress=False)

    def _tokens(self, texts: list[str]) -> list[list[str]]:
        # as text, so that words the index does not know are left out
        return self._bm25s.tokenize(texts, stopwords="en", return_ids=False, show_progress=False)

    def rank(self, task: Mapping[str, Any]) -> list[Skill]:
        [words] = self._tokens([task_text(task)])
        if not self._indexed or not words:
            return []
        scores = self._index.get_scores(words)
        return [self.special[i] for i in np.argsort(-scores, kind="stable") if scores[i] > 0]


class EmbeddingRetriever(Retriever):
    """
    Skills by the cosine between embeddings of the task's text and of their names, descriptions and bodies; none for a
    task without text.

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
        self._skills = self._embed([_whole_text(skill) for skill in self.special]) if self.special else None

    def _embed(self, texts: list[str]) -> np.ndarray:
        return self._model.encode(texts, normalize_embeddings=True, show_progress_bar=False)

    def rank(self, task: Mapping[str, Any]) -> list[Skill]:
        text = task_text(task)
        if self._skills is None or not text.strip():
            return []
        similarity = self._skills @ self._embed([text])[0]
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
