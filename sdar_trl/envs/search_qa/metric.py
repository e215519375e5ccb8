"""Exact match and F1, as question answering has them since SQuAD."""

import re
import string
from collections import Counter
from collections.abc import Iterable


_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """Lower case, without punctuation, without articles, with single spaces."""
    text = text.lower().translate(_PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(answer: str, golds: Iterable[str]) -> bool:
    """
    Whether an answer is one of those that are right.

    Args:
        answer (`str`):
            The answer.
        golds (`Iterable[str]`):
            The right ones.

    Returns:
        `bool`: whether it equals any of them, both normalised.
    """
    return normalize(answer) in map(normalize, golds)


def f1(answer: str, golds: Iterable[str]) -> float:
    """
    How much of a right answer there is.

    Args:
        answer (`str`):
            The answer.
        golds (`Iterable[str]`):
            The right ones.

    Returns:
        `float`: harmonic mean of precision and recall of the normalised words, in [0, 1]; the best over `golds`.
        "yes", "no" and "noanswer" are right or wrong as a whole, as in HotpotQA's script.
    """
    return max((_f1(normalize(answer), normalize(gold)) for gold in golds), default=0.0)


def _f1(answer: str, gold: str) -> float:
    if answer == gold or {answer, gold} & {"yes", "no", "noanswer"}:
        return float(answer == gold)
    said, right = answer.split(), gold.split()
    common = sum((Counter(said) & Counter(right)).values())
    return 2 * common / (len(said) + len(right))
