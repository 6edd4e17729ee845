"""The registry of tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from wsgraph.tasks.result import Result

__all__ = ["list_tasks", "register_task", "run"]

_TASKS: dict[str, Callable[..., Result]] = {}


def register_task(name: str) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Decorator that enters a task function in the registry of :func:`run`.

    Raises:
        ValueError: If the name is taken.
    """

    def register(function: Callable[..., Result]) -> Callable[..., Result]:
        if name in _TASKS:
            raise ValueError(f"A task named {name!r} is registered already.")
        _TASKS[name] = function
        return function

    return register


def list_tasks() -> list[str]:
    """Names of the registered tasks.

    Example:
        >>> list_tasks()
        ['generalization', 'inr_classification']
    """
    return sorted(_TASKS)


def run(task: str, **options: Any) -> Result:
    """Train a model on a task and score it.

    Args:
        task: One of :func:`list_tasks`.
        **options: The task's own, such as ``zoo``, ``model``, ``epochs`` and ``seed``; see :func:`run_generalization`.

    Returns:
        A :class:`Result` with ``.metrics`` (a flat dict of floats) and ``.model``.

    Raises:
        ValueError: If the task is unknown, or as the task says.
    """
    if task not in _TASKS:
        raise ValueError(f"Unknown task {task!r}. Available tasks: {', '.join(list_tasks())}.")
    return _TASKS[task](**options)
