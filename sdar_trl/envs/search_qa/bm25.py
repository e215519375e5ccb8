"""BM25: bm25s' index and scores, built in one pass over the corpus and mapped into memory."""

import re
import threading
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .corpus import Corpus, built, read_contents
from .engines import Hit
from .questions import Document


K1, B = 1.5, 0.75
_WORD = re.compile(r"\w+")
_thread = threading.local()  # a stemmer is no thread's but its own


def words(text: str) -> list[str]:
    """What is indexed of a text: its words, stemmed, without stop words."""
    from bm25s.stopwords import STOPWORDS_EN

    if not hasattr(_thread, "stemmer"):
        import Stemmer

        _thread.stemmer, _thread.stop_words = Stemmer.Stemmer("english"), frozenset(STOPWORDS_EN)
    found = [word for word in _WORD.findall(text.lower()) if word not in _thread.stop_words]
    return _thread.stemmer.stemWords(found)


def build_index(texts: Iterable[str]) -> Any:
    """
    Index texts, with Lucene's formula.

    bm25s' own builder keeps every text's words as Python lists; this one keeps numbers, some 12 bytes for each
    different word of a text.

    Args:
        texts (`Iterable[str]`):
            The texts; gone through once.

    Returns:
        `bm25s.BM25`: the index.
    """
    import bm25s
    from scipy.sparse import csr_array

    vocabulary: dict[str, int] = {}
    terms, counts, lengths, starts = array("i"), array("i"), array("i"), array("q", [0])
    for text in texts:
        found = Counter(words(text))
        lengths.append(found.total())
        terms.extend([vocabulary.setdefault(word, len(vocabulary)) for word in found])
        counts.extend(found.values())
        starts.append(len(terms))
    count = len(lengths)
    by_text = csr_array(
        (np.frombuffer(counts, np.int32), _indices(terms), _indices(starts, len(terms))), (count, len(vocabulary))
    )
    by_term = by_text.tocsc()
    del by_text, terms, counts
    containing = np.diff(by_term.indptr)
    idf = np.log1p((count - containing + 0.5) / (containing + 0.5)).astype(np.float32)
    relative = np.frombuffer(lengths, np.int32) / max(sum(lengths) / count, 1)
    norms = (K1 * (1 - B + B * relative)).astype(np.float32)
    scores = by_term.data.astype(np.float32)
    scores /= scores + norms[by_term.indices]
    scores *= np.repeat(idf, containing)

    index = bm25s.BM25(k1=K1, b=B, method="lucene")
    index.nonoccurrence_array = None
    index.vocab_dict = vocabulary
    index.unique_token_ids_set = set(vocabulary.values())
    index.scores = {"data": scores, "indices": by_term.indices, "indptr": by_term.indptr, "num_docs": count}
    return index


def _indices(values: array, largest: int = 0) -> np.ndarray:
    return np.frombuffer(values, np.int32 if values.typecode == "i" else np.int64).astype(
        np.int64 if largest > np.iinfo(np.int32).max else np.int32, copy=False
    )


class BM25Engine:
    """
    Searches a corpus by BM25.

    Args:
        documents (`Sequence[Document]`):
            The corpus.
        index (`bm25s.BM25`):
            Its index, from [`build_index`].
    """

    def __init__(self, documents: Sequence[Document], index: Any):
        self.documents, self.index = documents, index

    def search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        return [self._search(query, topk) for query in queries]

    def _search(self, query: str, topk: int) -> list[Hit]:
        vocabulary = self.index.vocab_dict
        terms = [vocabulary[word] for word in words(query) if word in vocabulary]
        if not terms:
            return []
        scores = self.index.get_scores_from_ids(terms)
        return [Hit(self.documents[position], float(scores[position])) for position in best(scores, topk).tolist()]


def best(scores: np.ndarray, count: int) -> np.ndarray:
    """
    Positions of the highest scores above 0, best first, of equal ones the first.

    Nearly all scores of a query are 0, where a partial sort is slow: the blocks' highest scores tell a bound first.
    """
    size = 1 + int(len(scores) ** 0.5)
    whole = len(scores) // size * size
    highest = np.append(scores[:whole].reshape(-1, size).max(1), scores[whole:].max(initial=0.0))
    bound = np.sort(highest)[-count] if count <= len(highest) else 0.0
    found = np.flatnonzero(scores >= bound) if bound > 0 else np.flatnonzero(scores)
    return found[np.argsort(-scores[found], kind="stable")[:count]]


def bm25_engine(corpus: str | None) -> BM25Engine:
    """The engine of a corpus file, or of the embedded corpus."""
    import bm25s

    if corpus is None:
        from .embedded import documents

        return BM25Engine(documents(), build_index(document.contents for document in documents()))

    path = Path(corpus)

    def build(folder: Path) -> None:
        starts = array("q")
        build_index(read_contents(path, starts)).save(folder, show_progress=False)
        np.save(folder / "starts.npy", np.frombuffer(starts, np.int64))

    folder = built(path, "bm25", build, k1=K1, b=B)
    index = bm25s.BM25.load(folder, mmap=True, show_progress=False)
    return BM25Engine(Corpus(path, np.load(folder / "starts.npy", mmap_mode="r")), index)
