"""How well a policy plays a panel of tasks."""

from .curves import PanelCallback, curve_results, curve_table, last_and_best, read_curve
from .files import read_records
from .intervals import Estimate
from .panels import Panel, world_panel
from .play import evaluate, evaluate_trainer, policy_rollout, weights_hash
from .records import PanelResult, Record, measures_table, results_table, summarize, task_type_table


__all__ = [
    "Estimate",
    "Panel",
    "PanelCallback",
    "PanelResult",
    "Record",
    "curve_results",
    "curve_table",
    "evaluate",
    "evaluate_trainer",
    "last_and_best",
    "measures_table",
    "policy_rollout",
    "read_curve",
    "read_records",
    "results_table",
    "summarize",
    "task_type_table",
    "weights_hash",
    "world_panel",
]
