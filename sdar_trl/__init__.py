"""SDAR for Hugging Face TRL: GRPO over episodes with token-gated self-distillation."""

from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .config import SDARConfig
    from .contexts import SkillContext, TeacherContext, hindsight_context, sibling_context
    from .rollout import Episode, StopReason, Turn
    from .skills import KeywordRetriever, Skill, SkillLibrary
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
    "hindsight_context",
    "sibling_context",
]

_MODULES = {
    "SDARConfig": "config",
    "Episode": "rollout",
    "StopReason": "rollout",
    "Turn": "rollout",
    "KeywordRetriever": "skills",
    "Skill": "skills",
    "SkillLibrary": "skills",
    "SkillContext": "contexts",
    "TeacherContext": "contexts",
    "hindsight_context": "contexts",
    "sibling_context": "contexts",
    "SDARTrainer": "trainer",
}


# Loaded when asked for, so that an environment's process needs neither torch nor TRL.
def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
