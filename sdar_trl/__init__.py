"""SDAR for Hugging Face TRL: GRPO over episodes with token-gated self-distillation."""

from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .config import SDARConfig as SDARConfig
    from .contexts import SkillContext as SkillContext
    from .contexts import TeacherContext as TeacherContext
    from .contexts import hindsight_context as hindsight_context
    from .contexts import sibling_context as sibling_context
    from .envs import Step as Step
    from .envs import TextEnv as TextEnv
    from .envs import check_env as check_env
    from .envs import load_world as load_world
    from .episodes import Episode as Episode
    from .episodes import StopReason as StopReason
    from .episodes import Turn as Turn
    from .evaluation import PanelResult as PanelResult
    from .evaluation import Record as Record
    from .evaluation import evaluate as evaluate
    from .evaluation import evaluate_trainer as evaluate_trainer
    from .evaluation import policy_rollout as policy_rollout
    from .evaluation import results_table as results_table
    from .evaluation import summarize as summarize
    from .policies import policy_path as policy_path
    from .skills import KeywordRetriever as KeywordRetriever
    from .skills import Retriever as Retriever
    from .skills import Skill as Skill
    from .skills import SkillLibrary as SkillLibrary
    from .trainer import SDARTrainer as SDARTrainer


__version__ = "0.1.0"

_PUBLIC = {
    "config": ["SDARConfig"],
    "contexts": ["SkillContext", "TeacherContext", "hindsight_context", "sibling_context"],
    "envs": ["Step", "TextEnv", "check_env", "load_world"],
    "episodes": ["Episode", "StopReason", "Turn"],
    "evaluation": [
        *("PanelResult", "Record", "evaluate", "evaluate_trainer", "policy_rollout", "results_table", "summarize")
    ],
    "policies": ["policy_path"],
    "skills": ["KeywordRetriever", "Retriever", "Skill", "SkillLibrary"],
    "trainer": ["SDARTrainer"],
}
_MODULES = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = [*_MODULES]


# Loaded when asked for, so that an environment's process needs neither torch nor TRL.
def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
