"""Search-QA: an agent searches for what a question needs, and answers it."""

from .env import SearchEnv
from .world import SearchQA


__all__ = ["SearchEnv", "SearchQA"]
