"""Search-QA by its name."""

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from ..worlds import World
from .env import SearchEnv


if TYPE_CHECKING:
    from datasets import Dataset


@dataclass
class SearchQA(World):
    """
    Questions and a search engine: the embedded ones, or those of files and servers.

    Args:
        data_dir (`str`, *optional*):
            Folder of question files. If `None`, the embedded questions.
        corpus (`str`, *optional*):
            File of documents. If `None`, the embedded corpus.
        engine (`str`, *optional*, defaults to `"bm25"`):
            `"bm25"`, or `"dense"` with an `encoder`.
        encoder (`str`, *optional*):
            With `"dense"`: a model of sentence-transformers.
        search_url (`str`, *optional*):
            A search server instead of `corpus` and `engine`, e.g. `"http://127.0.0.1:8000"`.
        topk (`int`, *optional*, defaults to `3`):
            Documents that a search shows.
    """

    name: ClassVar[str] = "search_qa"
    limits: ClassVar[dict[str, int]] = {
        "max_turns": 4,
        "max_response_length": 512,
        "max_completion_length": 8192,
    }

    data_dir: str | None = field(
        default=None, metadata={"help": "Folder of Search-R1's or FlashRAG's question files; else the embedded ones."}
    )
    corpus: str | None = field(
        default=None, metadata={"help": "JSON lines of documents, as wiki-18.jsonl; else the embedded corpus."}
    )
    engine: Literal["bm25", "dense"] = field(
        default="bm25", metadata={"help": "How the corpus is searched: 'bm25', or 'dense' with an encoder."}
    )
    encoder: str | None = field(
        default=None, metadata={"help": "With engine 'dense': a model of sentence-transformers."}
    )
    search_url: str | None = field(default=None, metadata={"help": "A search server, in place of corpus and engine."})
    topk: int = field(default=3, metadata={"help": "Documents that a search shows."})

    def dataset(self, split: str) -> "Dataset":
        return SearchEnv.dataset(split, self.data_dir)

    @property
    def environment_factory(self) -> functools.partial[SearchEnv]:
        return functools.partial(
            SearchEnv,
            topk=self.topk,
            corpus=self.corpus,
            engine=self.engine,
            encoder=self.encoder,
            search_url=self.search_url,
        )
