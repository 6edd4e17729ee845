"""Tasks: what is trained, on which networks, and how it is scored."""

from wsgraph.tasks.generalization import run_generalization
from wsgraph.tasks.inr_classification import run_inr_classification
from wsgraph.tasks.inr_editing import run_inr_editing
from wsgraph.tasks.prediction import Prediction
from wsgraph.tasks.registry import list_tasks, register_task, run, run_seeds, task_prediction
from wsgraph.tasks.result import Result, Summary, read_results
from wsgraph.tasks.supervised import run_prediction
from wsgraph.tasks.trained import TrainedModel

__all__ = [
    "Prediction",
    "Result",
    "Summary",
    "TrainedModel",
    "list_tasks",
    "read_results",
    "register_task",
    "run",
    "run_generalization",
    "run_inr_classification",
    "run_inr_editing",
    "run_prediction",
    "run_seeds",
    "task_prediction",
]
