"""SDAR for Hugging Face TRL: GRPO over episodes with token-gated self-distillation."""

from .config import SDARConfig
from .rollout import Episode, StopReason, Turn
from .skills import KeywordRetriever, Skill, SkillLibrary
from .teacher import SkillContext, TeacherContext
from .trainer import SDARTrainer


__version__ = "0.1.0"

__all__ = [
    "Episode",
    "KeywordRetriever",
    "SDARConfig",
    "SDARTrainer",
    "Skill",
    "SkillContext",
    "SkillLibrary",
    "StopReason",
    "TeacherContext",
    "Turn",
]
