"""Questions that are answered with a search engine, as a text environment."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base import Step, parse_tag
from .engines import Hit, open_engine
from .metric import exact_match, f1


if TYPE_CHECKING:
    from datasets import Dataset

SYSTEM = (
    "You answer a question with the help of a search engine. Reason inside <think></think>, then do one of two "
    "things: search, with <search>query</search>, and the results come back inside <information></information>; or "
    "answer, with <answer>text</answer>, which is final and holds the bare answer alone. You have at most 4 turns."
)
LONGEST_QUERY = 500  # characters
LONGEST_TEXT = 4000  # of a document, as it is shown
_THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)
_MARKUP = re.compile(r"<(\s*/?\s*(?:information|search|answer|think)\s*)>", re.IGNORECASE)


class SearchEnv:
    """
    Search-QA: search for what a question needs, then answer it.

    A response holds either `<search>query</search>` or `<answer>text</answer>`; what stands inside `<think></think>`
    is not looked at. Anything else is answered with what was expected. An answer is right if it equals one of the
    question's after the usual normalisation.

    Args:
        topk (`int`, *optional*, defaults to `3`):
            Documents that a search shows.
        corpus (`str` or `Path`, *optional*), engine (`str`, *optional*, defaults to `"bm25"`),
            encoder (`str`, *optional*), search_url (`str`, *optional*):
            The search engine, see [`~envs.search_qa.engines.open_engine`]; by default BM25 over the embedded corpus.

    Raises:
        `ValueError`: if an argument is none of those there are, or the corpus is malformed.

    Example:

    ```python
    >>> from sdar_trl.envs import SearchEnv

    >>> env = SearchEnv()
    >>> print(env.reset(question="What is the capital of Portugal?", answers=["Lisbon"]))
    Question: What is the capital of Portugal?
    >>> print(env.step("<search>capital portugal</search>").observation)
    >>> env.step("<answer>Lisbon</answer>").reward
    1.0
    ```
    """

    parallel = "thread"  # a server is waited for, and asked once for all episodes of a turn

    def __init__(
        self,
        topk: int = 3,
        corpus: str | Path | None = None,
        engine: str = "bm25",
        encoder: str | None = None,
        search_url: str | None = None,
    ):
        if topk < 1:
            raise ValueError(f"`topk` must be 1 or more, got {topk}.")
        self.topk = topk
        self.engine = open_engine(corpus, engine, encoder, search_url)
        self.hits: list[Hit] = []
        self._playing = False

    @staticmethod
    def dataset(split: str, data_dir: str | Path | None = None) -> "Dataset":
        """
        The questions of a split.

        Args:
            split (`str`):
                `"train"`, `"validation"` or `"test"`.
            data_dir (`str` or `Path`, *optional*):
                Folder of question files, see [`~envs.search_qa.files.read_questions`]; the embedded questions if not
                given.

        Returns:
            [`~datasets.Dataset`]: columns `prompt`, `task_id`, `task_type` (the kind of an embedded question; of
            others the source, or `"comparison"`), `question`, `answers` and `data_source`.

        Raises:
            `ValueError`: if there is no such split, or a file is malformed.
            `FileNotFoundError`: if there is no file for it.
        """
        from datasets import Dataset

        from .embedded import SHARES, questions
        from .files import read_questions

        if split not in SHARES:
            raise ValueError(f"`split` must be one of {', '.join(sorted(SHARES))}, got {split!r}.")
        found = questions(split) if data_dir is None else read_questions(Path(data_dir), split)
        prompt = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": ""}]
        return Dataset.from_dict(
            {
                "prompt": [prompt] * len(found),
                "task_id": [f"search_qa/{split}/{number}" for number in range(len(found))],
                "task_type": [question.kind for question in found],
                "question": [question.text for question in found],
                "answers": [list(question.answers) for question in found],
                "data_source": [question.source for question in found],
            }
        )

    def reset(self, *, question: str, answers: Sequence[str], data_source: str | None = None, **_: Any) -> str:
        """
        Begin with a question.

        Args:
            question (`str`):
                The question.
            answers (`list[str]`):
                The right answers.
            data_source (`str`, *optional*):
                Where it is from.

        Returns:
            `str`: the question.
        """
        self.question, self.answers = question, list(answers)
        self.hits, self.searches, self._source, self._playing = [], 0, data_source, True
        return f"Question: {question}"

    def step(self, response: str) -> Step:
        """
        Search or answer, as the response says.

        Args:
            response (`str`):
                The policy's response.

        Returns:
            [`Step`]: the results of a search. At the end `info` has `success`, `score` (F1) and `answer`. Metrics:
            `f1`, `searches`, and `exact_match/<data_source>` where the task names its source.

        Raises:
            `RuntimeError`: if the episode is over, or the search engine gives no answer.
        """
        if not self._playing:
            raise RuntimeError("The episode is over; call `reset` first.")
        said = _THOUGHT.sub("", response)
        query, answer = parse_tag(said, "search"), parse_tag(said, "answer")
        if answer and query is None:
            return self._answered(answer)
        if query is not None and answer is None and (query := _clean(query)):
            [self.hits] = self.engine.search([query], self.topk)
            self.searches += 1
            return self._step(shown(self.hits))
        # what was said is not repeated: it is the policy's text, and may hold special tokens
        return self._step(
            "That was neither a search nor an answer. Give one of the two: <search>query</search> to search, or "
            "<answer>text</answer> to answer.",
            valid=False,
        )

    def close(self) -> None:
        """There is nothing to let go of: the engine is all instances'."""

    @staticmethod
    def history(first: str, past: Sequence[tuple[str, str]], observation: str, step: int) -> str:
        """
        How an episode reads as a window on it: the question, then searches and what they found.

        Args:
            first (`str`):
                The question.
            past (`Sequence[tuple[str, str]]`):
                The last observations and the responses to them, oldest first.
            observation (`str`):
                The present observation.
            step (`int`):
                Number of the turn, from 1.

        Returns:
            `str`: the text; in turn 1, the question as it is.
        """
        if step == 1:
            return first
        lines = [first, f"Steps taken: {step - 1}. The last {len(past)}:"] if past else [first]
        for number, (page, response) in enumerate(past, step - len(past)):
            if page != first:
                lines.append(page)
            query = parse_tag(_THOUGHT.sub("", response), "search")
            lines.append(f"[{number}] {response.strip() if query is None else f'<search>{query}</search>'}")
        return "\n".join([*lines, observation, f"Step {step}:"])

    def _answered(self, answer: str) -> Step:
        self._playing = False
        success, score = exact_match(answer, self.answers), f1(answer, self.answers)
        step = self._step("The answer is right." if success else "The answer is wrong.", score, success)
        info = {"success": success, "score": score, "answer": answer}
        return Step(step.observation, float(success), terminated=True, info=info, metrics=step.metrics)

    def _step(self, observation: str, score: float = 0.0, success: bool = False, valid: bool = True) -> Step:
        metrics = {"f1": score, "searches": float(self.searches)}
        if self._source is not None:
            metrics[f"exact_match/{self._source}"] = float(success)
        return Step(observation, valid=valid, metrics=metrics)


def shown(hits: Sequence[Hit]) -> str:
    """Search results as the policy reads them. Tags of the environment that a document spells lose their brackets."""
    texts = (f'Doc {number} (Title: "{hit.document.title}") {hit.document.text}' for number, hit in enumerate(hits, 1))
    lines = [_MARKUP.sub(r"(\1)", text[:LONGEST_TEXT]) for text in texts]
    return "\n".join(["<information>", *(lines or ["Nothing was found."]), "</information>"])


def _clean(query: str) -> str:
    """A query on one line, without control characters, not longer than a search engine takes."""
    return " ".join("".join(c if c.isprintable() else " " for c in query).split())[:LONGEST_QUERY]
