"""Skills: short texts of advice that the teacher reads, and how the ones for a task are found."""

from .library import Skill, SkillLibrary, format_skills
from .retrieval import KeywordRetriever


__all__ = ["KeywordRetriever", "Skill", "SkillLibrary", "format_skills"]
