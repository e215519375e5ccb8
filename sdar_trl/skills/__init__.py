"""Skills: short texts of advice that the teacher reads, and how the ones for a task are found."""

from .library import Skill, SkillLibrary, format_skills
from .retrieval import (
    RETRIEVERS,
    BM25Retriever,
    EmbeddingRetriever,
    FullRetriever,
    KeywordRetriever,
    NoRetriever,
    RandomRetriever,
    Retriever,
    UCBRetriever,
)


__all__ = [
    "RETRIEVERS",
    "BM25Retriever",
    "EmbeddingRetriever",
    "FullRetriever",
    "KeywordRetriever",
    "NoRetriever",
    "RandomRetriever",
    "Retriever",
    "Skill",
    "SkillLibrary",
    "UCBRetriever",
    "format_skills",
]
