"""How well a policy plays a panel of tasks."""

from .files import read_records
from .intervals import Estimate
from .panels import Panel, world_panel
from .play import evaluate, evaluate_trainer, policy_rollout
from .records import PanelResult, Record, measures_table, results_table, summarize, task_type_table


__all__ = [
    "Estimate",
    "Panel",
    "PanelResult",
    "Record",
    "evaluate",
    "evaluate_trainer",
    "measures_table",
    "policy_rollout",
    "read_records",
    "results_table",
    "summarize",
    "task_type_table",
    "world_panel",
]
