"""Tasks: what is trained, on which networks, and how it is scored."""

from wsgraph.options import FolderOptions, ReadingOptions, ScoringOptions, TrainingOptions, option
from wsgraph.tasks.folds import CrossValidation, cross_validate
from wsgraph.tasks.generalization import Generalization
from wsgraph.tasks.inr_classification import INRClassification
from wsgraph.tasks.inr_editing import INREditing
from wsgraph.tasks.predicting import Predictions
from wsgraph.tasks.prediction import ColumnTask, Prediction
from wsgraph.tasks.registry import list_tasks, register_task, task_class, task_of
from wsgraph.tasks.result import Result, Summary, read_results
from wsgraph.tasks.running import run, run_seeds
from wsgraph.tasks.scored import Scores
from wsgraph.tasks.searching import SearchResult, search
from wsgraph.tasks.task import Task, learned
from wsgraph.tasks.trained import TrainedModel

__all__ = [
    "ColumnTask",
    "CrossValidation",
    "FolderOptions",
    "Generalization",
    "INRClassification",
    "INREditing",
    "Prediction",
    "Predictions",
    "ReadingOptions",
    "Result",
    "Scores",
    "ScoringOptions",
    "SearchResult",
    "Summary",
    "Task",
    "TrainedModel",
    "TrainingOptions",
    "cross_validate",
    "learned",
    "list_tasks",
    "option",
    "read_results",
    "register_task",
    "run",
    "run_seeds",
    "search",
    "task_class",
    "task_of",
]
