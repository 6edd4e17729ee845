"""The registry of tasks."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from wsgraph.plugins import Registry
from wsgraph.tasks.prediction import Prediction
from wsgraph.tasks.result import Result, Summary

__all__ = ["CALL", "list_tasks", "register_task", "run", "run_seeds", "task_function", "task_prediction"]

_TASKS: Registry[Callable[..., Result]] = Registry("task")
CALL: ContextVar[tuple[str, dict[str, Any]] | None] = ContextVar("call", default=None)
"""Task and options of the :func:`run` that is under way."""
_PREDICTIONS: dict[str, Callable[[Mapping[str, Any]], Prediction]] = {}


def register_task(
    name: str, prediction: Callable[[Mapping[str, Any]], Prediction] | None = None
) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Decorator that enters a task function in the registry of :func:`run`.

    Args:
        name: Name of the task.
        prediction: What the task is, from the options of a run, so that trained models can be saved and loaded.

    Returns:
        The decorator, which returns the function as it is.

    Raises:
        ValueError: If the name is taken.
    """

    def register(function: Callable[..., Result]) -> Callable[..., Result]:
        _TASKS.add(name, function)
        if prediction is not None:
            _PREDICTIONS[name] = prediction
        return function

    return register


def list_tasks() -> list[str]:
    """Names of the registered tasks.

    Example:
        >>> list_tasks()
        ['generalization', 'inr_classification', 'inr_editing']
    """
    return _TASKS.names()


def task_prediction(name: str, config: Mapping[str, Any]) -> Prediction:
    """What a task is, for a run with some options.

    Args:
        name: One of :func:`list_tasks`.
        config: Options of the run, its ``config``.

    Returns:
        The :class:`~wsgraph.tasks.Prediction` of that run.

    Raises:
        ValueError: If the task is unknown or was registered without saying what it is.
    """
    _TASKS.find(name)
    if name not in _PREDICTIONS:
        raise ValueError(f"Models of the task {name!r} cannot be saved or loaded. Those of these can: {', '.join(sorted(_PREDICTIONS))}.")
    return _PREDICTIONS[name](config)


def task_function(name: str) -> Callable[..., Result]:
    """The function that runs a task.

    Args:
        name: One of :func:`list_tasks`.

    Returns:
        What :func:`register_task` entered.

    Raises:
        ValueError: If the task is unknown.
    """
    return _TASKS.find(name)


def run(task: str, **options: Any) -> Result:
    """Train a model on a task and score it.

    Args:
        task: One of :func:`list_tasks`.
        **options: The task's own, such as ``zoo``, ``model``, ``epochs`` and ``seed``; see :func:`run_prediction`.

    Returns:
        A :class:`Result` with ``.metrics`` (a flat dict of floats) and ``.model``.

    Raises:
        ValueError: If the task is unknown, or as the task says.
    """
    function = task_function(task)
    token = CALL.set((task, options))
    try:
        return function(**options)
    finally:
        CALL.reset(token)


def run_seeds(task: str, *, seeds: Sequence[int], output: str | os.PathLike[str] | None = None, **options: Any) -> Summary:
    """Train a model on a task with several seeds, and summarise the scores.

    Args:
        task: One of :func:`list_tasks`.
        seeds: The seeds, one run for each.
        output: Folder of the runs, ``OUTPUT/seedSEED`` for each (default: the task's own).
        **options: The task's own, without ``seed``; finished runs are read, not repeated.

    Returns:
        A :class:`Summary` with mean and standard error of every score.

    Raises:
        ValueError: If there is no seed, one is repeated, or as the task says.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"Expected 'seeds' to be different seeds, at least one (got {list(seeds)}).")
    return Summary([run(task, seed=seed, output=None if output is None else Path(output) / f"seed{seed}", **options) for seed in seeds])
