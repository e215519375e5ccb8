"""Dense search: sentence-transformers' vectors, compared by FAISS, which reads them from a mapped file."""

from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .corpus import Corpus, built, read_contents
from .engines import Hit
from .questions import Document


BATCH = 512  # documents
Encode = Callable[[list[str]], np.ndarray]
"""From texts to their vectors, of length 1."""


class DenseEngine:
    """
    Searches a corpus by the inner product of vectors, all of which are compared.

    Args:
        documents (`Sequence[Document]`):
            The corpus.
        vectors (`np.ndarray` of shape `(documents, size)`):
            Of each document, in single precision.
        encode (`Callable[[list[str]], np.ndarray]`):
            Makes the vectors of queries.
    """

    def __init__(self, documents: Sequence[Document], vectors: np.ndarray, encode: Encode):
        self.documents, self.vectors, self._encode = documents, vectors, encode

    def search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        import faiss

        wanted = min(topk, len(self.documents))
        scores, positions = faiss.knn(self._encode(list(queries)), self.vectors, wanted, faiss.METRIC_INNER_PRODUCT)
        return [
            [Hit(self.documents[position], score) for position, score in zip(*row, strict=True)]
            for row in zip(positions.tolist(), scores.tolist(), strict=True)
        ]


def dense_engine(corpus: str | None, encoder: str) -> DenseEngine:
    """
    The engine of a corpus file, or of the embedded corpus.

    Args:
        corpus (`str`, *optional*):
            The file. Its vectors are made in batches; if that is cut short, the next time goes on where it was.
        encoder (`str`):
            A model of sentence-transformers. Texts get the prompts that it has for queries and documents; those of E5,
            which names none, get the ones that it was trained with.

    Returns:
        [`DenseEngine`]: the engine.

    Raises:
        `ImportError`: if the packages of the extra `search_qa` are not installed.
    """
    try:
        import faiss  # noqa: F401  before hours of encoding
        from sentence_transformers import SentenceTransformer
    except ModuleNotFoundError as error:
        raise ImportError(f'Dense search needs {error.name!r}: pip install "sdar-trl[search_qa]"') from error
    model: Any = SentenceTransformer(encoder)
    options: dict[str, Any] = {"normalize_embeddings": True, "show_progress_bar": False}
    query, passage = ({"prompt": f"{kind}: "} if "e5" in encoder.lower() else {} for kind in ("query", "passage"))

    def encode_queries(texts: list[str]) -> np.ndarray:
        return np.asarray(model.encode_query(texts, **options, **query), np.float32)

    def encode_documents(texts: list[str]) -> np.ndarray:
        return np.asarray(model.encode_document(texts, **options, **passage), np.float32)

    if corpus is None:
        from .embedded import documents

        contents = [document.contents for document in documents()]
        return DenseEngine(documents(), encode_documents(contents), encode_queries)
    path = Path(corpus)
    name = "".join(c if c.isalnum() or c in "-." else "_" for c in encoder.rstrip("/").rpartition("/")[2])
    folder = built(path, f"dense.{name}", lambda to: write_vectors(path, to, encode_documents), encoder=encoder)
    found = Corpus(path, np.load(folder / "starts.npy", mmap_mode="r"))
    vectors = np.memmap(folder / "vectors.f32", np.float32, "r").reshape(len(found), -1)
    return DenseEngine(found, vectors, encode_queries)


def write_vectors(path: Path, folder: Path, encode: Encode) -> None:
    """
    Make the vectors of a corpus, in batches. What an earlier, unfinished time has written is kept.

    Args:
        path (`Path`):
            The corpus.
        folder (`Path`):
            Gets `vectors.f32` and `starts.npy`.
        encode (`Callable[[list[str]], np.ndarray]`):
            Makes the vectors.
    """
    from tqdm.auto import tqdm

    starts = array("q")
    for _ in read_contents(path, starts):
        pass
    documents = Corpus(path, np.frombuffer(starts, np.int64))
    with (folder / "vectors.f32").open("ab") as file:
        size = encode([documents[0].contents]).nbytes
        done = file.tell() // size
        file.truncate(done * size)
        with tqdm(total=len(documents), initial=done, desc="vectors") as bar:
            for start in range(done, len(documents), BATCH):
                batch = [document.contents for document in documents[start : start + BATCH]]
                file.write(encode(batch).tobytes())
                file.flush()
                bar.update(len(batch))
    np.save(folder / "starts.npy", np.frombuffer(starts, np.int64))
