"""How well a policy plays a panel of tasks."""

from .play import evaluate, evaluate_trainer, policy_rollout
from .records import PanelResult, Record, results_table, summarize, task_types_table


__all__ = [
    "PanelResult",
    "Record",
    "evaluate",
    "evaluate_trainer",
    "policy_rollout",
    "results_table",
    "summarize",
    "task_types_table",
]
