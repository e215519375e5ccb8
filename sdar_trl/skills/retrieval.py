"""Which skills go with which task."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .library import Skill, SkillLibrary


def task_text(task: Mapping[str, Any]) -> str:
    """The text a task is matched by: its last user message, which holds the first observation once an episode ran."""
    prompt = task.get("prompt", "")
    if isinstance(prompt, str):
        return prompt
    return next((str(message["content"]) for message in reversed(prompt) if message["role"] == "user"), "")


class KeywordRetriever:
    """
    Keyword matching (KM): the skills for every task first, then those for this one.

    A skill is for a task if it names the task's `task_type`. Where no skill names that type, or the task has none, a
    skill is for a task if one of its keywords occurs in the task's text as a whole word, in any case.

    Args:
        library ([`SkillLibrary`]):
            The skills to choose from.
    """

    def __init__(self, library: SkillLibrary):
        self.library = library
        self._patterns = {
            skill.name: re.compile("|".join(rf"\b{re.escape(word)}\b" for word in skill.keywords), re.IGNORECASE)
            for skill in library
            if skill.keywords
        }

    def select(self, tasks: Sequence[Mapping[str, Any]]) -> list[list[Skill]]:
        """
        Choose skills.

        Args:
            tasks (`list[dict]`):
                Dataset rows; `task_type` and `prompt` are read.

        Returns:
            `list[list[Skill]]`: the skills of each task, those that go with every task first.
        """
        return [self._select(task) for task in tasks]

    def _select(self, task: Mapping[str, Any]) -> list[Skill]:
        general = [skill for skill in self.library if skill.always]
        special = [skill for skill in self.library if not skill.always]
        own = [skill for skill in special if task.get("task_type") in skill.task_types]
        if not own:
            text = task_text(task)
            own = [
                skill for skill in special if skill.name in self._patterns and self._patterns[skill.name].search(text)
            ]
        return general + own
