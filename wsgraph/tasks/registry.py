"""The registry of tasks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from wsgraph.plugins import Registry

if TYPE_CHECKING:
    from wsgraph.tasks.task import Task

__all__ = ["list_tasks", "register_task", "task_class", "task_of"]

_TASKS: Registry[type[Task]] = Registry("task")

Kind = TypeVar("Kind", bound="type[Task]")


def register_task(task: Kind) -> Kind:
    """Decorator that enters a class of tasks in the registry of :func:`wsgraph.tasks.run`, by its ``name``.

    Args:
        task: A subclass of :class:`Task`, a frozen dataclass.

    Returns:
        The class as it is.

    Raises:
        TypeError: If it is no dataclass.
        ValueError: If the name is taken.
    """
    if not dataclasses.is_dataclass(task):
        raise TypeError(f"Expected a task to be a frozen dataclass (got {task!r}): write @dataclass(frozen=True) under @register_task.")
    _TASKS.add(task.name, task)
    return task


def list_tasks() -> list[str]:
    """Names of the registered tasks.

    Example:
        >>> list_tasks()
        ['generalization', 'inr_classification', 'inr_editing', 'prediction']
    """
    return _TASKS.names()


def task_class(name: str) -> type[Task]:
    """The class of a task.

    Args:
        name: One of :func:`list_tasks`.

    Returns:
        What :func:`register_task` entered.

    Raises:
        ValueError: If the task is unknown.

    Example:
        >>> task_class("inr_editing")(operation="erode")
        INREditing(operation='erode')
    """
    return _TASKS.find(name)


def task_of(name: str, config: Mapping[str, Any]) -> Task:
    """The task of a run, with what was learned of its networks.

    Args:
        name: One of :func:`list_tasks`.
        config: Options of the run, its ``config``.

    Returns:
        The task, fitted to those networks.

    Raises:
        ValueError: If the task is unknown.
    """
    return task_class(name).of_config(config)
