"""The registry of models: what the command line, benchmarks and tests can name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from wsgraph.space import WeightSpace

__all__ = ["ModelEntry", "Spaces", "as_spaces", "build_model", "check_task", "list_models", "model_entry", "register_model"]


@dataclass(frozen=True)
class ModelEntry:
    """What the registry knows of a model.

    Attributes:
        name: Name in :func:`build_model`.
        build: ``build(space, out_channels, **options)``.
        tasks: ``"invariant"`` (one output row per network) and/or ``"equivariant"`` (weights out).
        symmetries: Symmetries that its output respects.
        family: ``"parameter sharing"``, ``"message passing"``, ``"statistics"`` or ``"no sharing"``.
        mixed: Whether one batch may mix architectures.
        description: One line.
    """

    name: str
    build: Callable[..., nn.Module]
    tasks: tuple[str, ...]
    symmetries: tuple[str, ...]
    family: str
    mixed: bool
    description: str


Spaces = WeightSpace | Sequence[WeightSpace]

_TASKS = ("invariant", "equivariant")
_MODELS: dict[str, ModelEntry] = {}

ModelClass = TypeVar("ModelClass", bound=type[nn.Module])


def register_model(
    name: str, *, family: str, tasks: Sequence[str] = ("invariant",), mixed: bool = False
) -> Callable[[ModelClass], ModelClass]:
    """Class decorator that enters a model in the registry.

    The class takes ``(space, out_channels, **options)``, has a class attribute ``symmetries``, and its docstring's first line describes it.

    Args:
        name: Name in :func:`build_model`.
        family: ``"parameter sharing"``, ``"message passing"``, ``"statistics"`` or ``"no sharing"``.
        tasks: Tasks that it solves; a class that solves several takes the one to build for as ``task``.
        mixed: Whether one batch may mix architectures.

    Raises:
        ValueError: If the name is taken.
    """

    def register(cls: ModelClass) -> ModelClass:
        if name in _MODELS:
            raise ValueError(f"A model named {name!r} is registered already ({_MODELS[name].build!r}).")
        symmetries: tuple[str, ...] = tuple(cls.symmetries)  # type: ignore[attr-defined]
        description = (cls.__doc__ or "").strip().split("\n")[0]
        _MODELS[name] = ModelEntry(name, cls, tuple(tasks), symmetries, family, mixed, description)
        return cls

    return register


def as_spaces(space: Spaces, *, layered: bool = True) -> list[WeightSpace]:
    """The weight spaces that a model is built for, given as one or as a sequence.

    Args:
        space: One or several spaces.
        layered: Whether they must be networks of layers; otherwise any that have a parameter graph will do.

    Raises:
        ValueError: If it is neither, or the sequence is empty.
        SpaceMismatchError: If a space has parameters outside its layers.
    """
    spaces = [space] if isinstance(space, WeightSpace) else list(space)
    if not spaces or not all(isinstance(entry, WeightSpace) for entry in spaces):
        raise ValueError(f"Expected 'space' to be a weight space or a sequence of them (got {space!r}).")
    for entry in spaces:
        if layered or not entry.connections:
            entry.check_layers("A model")
    return spaces


def check_task(task: str) -> str:
    """The task, if it is ``"invariant"`` (one output row per network) or ``"equivariant"`` (weights out).

    Raises:
        ValueError: If it is neither.
    """
    if task not in _TASKS:
        raise ValueError(f"Expected 'task' to be one of {', '.join(_TASKS)} (got {task!r}).")
    return task


def model_entry(name: str) -> ModelEntry:
    """The registry entry of a model.

    Raises:
        ValueError: If there is no model of that name.
    """
    if name not in _MODELS:
        raise ValueError(f"Unknown model {name!r}. Available models: {', '.join(sorted(_MODELS))}.")
    return _MODELS[name]


def build_model(name: str, space: Spaces, out_channels: int, task: str = "invariant", **options: Any) -> nn.Module:
    """Build a registered model for networks of a weight space.

    Args:
        name: One of :func:`list_models`.
        space: Weight space of the networks that it reads; for models that read mixed batches also a sequence of spaces.
        out_channels: Outputs per network (invariant) or per weight (equivariant).
        task: ``"invariant"`` or ``"equivariant"``.
        **options: The model's own options, such as ``channels``.

    Returns:
        A module called with a batch from :meth:`WeightSpace.batch`, returning ``[B, out_channels]`` (invariant) or
        ``[B, P, out_channels]`` (equivariant).

    Raises:
        ValueError: If the model or the task is unknown, or the model does not solve the task.
        TypeError: If the model does not have an option.

    Example:
        >>> space = WeightSpace.mlp([2, 8, 8, 1])
        >>> build_model("statnn", space, out_channels=1)(space.batch(space.sample(4))).shape
        torch.Size([4, 1])
    """
    entry = model_entry(name)
    check_task(task)
    if task not in entry.tasks:
        raise ValueError(f"The model {name!r} does not solve {task} tasks; these do: {', '.join(list_models(task)) or 'none yet'}.")
    if len(entry.tasks) > 1:
        options["task"] = task
    return entry.build(space, out_channels, **options)


def list_models(task: str | None = None) -> list[str]:
    """Names of the registered models, all or those that solve a task.

    Example:
        >>> list_models()
        ['hnp', 'magep', 'mlp', 'monomial', 'monomial_gnn', 'neural_graph', 'neural_graph_transformer', 'np', 'scalegmn', 'statnn']
    """
    return sorted(name for name, entry in _MODELS.items() if task is None or task in entry.tasks)
