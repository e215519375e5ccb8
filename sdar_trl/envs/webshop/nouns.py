"""Nouns in titles: by spaCy's small English model, as the original finds them, or by a light stand-in."""

import logging
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NounTagger:
    """
    What finds the nouns in a title.

    Args:
        name (`str`): Its name, to be told wherever a score is published.
        nouns (`Callable[[str], tuple[str, ...]]`): From a title to its nouns, in lower case, with repetitions.
    """

    name: str
    nouns: Callable[[str], tuple[str, ...]]


NO_NOUNS = frozenset(
    "a an and at by for from in is it its of on or oz s that the this to up with x you your our".split()
)
WORD = re.compile(r"[^\W_]*[^\W\d_][^\W_]*")  # at least one letter: names of models are proper nouns


@lru_cache(maxsize=100_000)
def light_nouns(title: str) -> tuple[str, ...]:
    """Every word of a title but function words, units and numbers: of titles' words, most are tagged as names."""
    return tuple(word for word in WORD.findall(title.lower()) if word not in NO_NOUNS)


LIGHT = NounTagger("light", light_nouns)


MODEL = "en_core_web_sm"


def installed_models() -> list[str]:
    """spaCy's small English model: its own package, and those of others, whose names begin with its own."""
    others = (module.name for module in pkgutil.iter_modules() if module.name.startswith(f"{MODEL}_"))
    return [*([MODEL] if find_spec(MODEL) else []), *others]


@lru_cache(maxsize=1)
def title_nouns() -> NounTagger:
    """The tagger with spaCy's model where it is installed, else the light stand-in, with a warning."""
    problem = f"spaCy's {MODEL} is not installed"
    for model in installed_models() if find_spec("spacy") else ():
        try:
            return spacy_tagger(model)
        except (ImportError, OSError, ValueError) as error:
            problem = f"{model} cannot be loaded ({error})"
    logger.warning(
        "Nouns of titles, for the score, are found by a light stand-in, since %s: some scores will differ from the "
        'original\'s. pip install "sdar-trl[spacy]"',
        problem,
    )
    return LIGHT


@lru_cache(maxsize=1)
def spacy_tagger(model: str) -> NounTagger:
    """
    The original's tagger.

    Args:
        model (`str`, *optional*, defaults to `"en_core_web_sm"`):
            Package of the model.

    Returns:
        [`NounTagger`]: its name has the model's version.

    Raises:
        `ImportError`: if spaCy is not installed.
    """
    try:
        import spacy
    except ImportError:
        raise ImportError('spaCy is not installed: pip install "sdar-trl[spacy]"') from None
    tag = spacy.load(model, exclude=["parser", "ner", "lemmatizer"])

    @lru_cache(maxsize=100_000)
    def nouns(title: str) -> tuple[str, ...]:
        return tuple(token.text.lower() for token in tag(title) if token.pos_ in ("NOUN", "PROPN"))

    return NounTagger(f"{model} {tag.meta['version']}", nouns)
