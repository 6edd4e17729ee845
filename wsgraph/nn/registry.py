"""The registry of models: what the command line, benchmarks and tests can name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from wsgraph._suggestions import did_you_mean
from wsgraph.plugins import Registry
from wsgraph.space import WeightSpace

__all__ = [
    "ModelEntry",
    "Recipe",
    "Spaces",
    "as_spaces",
    "build_model",
    "check_task",
    "list_models",
    "model_entry",
    "model_options",
    "recipe_of",
    "register_model",
    "scaled_widths",
    "widths_for_parameters",
]


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


@dataclass(frozen=True)
class Recipe:
    """What a model was built from, so that it can be built again.

    Attributes:
        name: Name in the registry.
        spaces: Weight spaces of the networks that it reads.
        out_channels: Outputs per network or per weight.
        task: ``"invariant"`` or ``"equivariant"``.
        options: The model's own options.
    """

    name: str
    spaces: tuple[WeightSpace, ...]
    out_channels: int
    task: str
    options: dict[str, Any]

    def build(self) -> nn.Module:
        """A model of the same structure with new parameters."""
        space = self.spaces[0] if len(self.spaces) == 1 else self.spaces
        return build_model(self.name, space, self.out_channels, self.task, **self.options)


_TASKS = ("invariant", "equivariant")
_MODELS: Registry[ModelEntry] = Registry("model")

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

    Returns:
        The decorator, which returns the class unchanged.

    Raises:
        ValueError: If the name is taken.
    """

    def register(cls: ModelClass) -> ModelClass:
        symmetries: tuple[str, ...] = tuple(cls.symmetries)  # type: ignore[attr-defined]
        description = (cls.__doc__ or "").strip().split("\n")[0]
        _MODELS.add(name, ModelEntry(name, cls, tuple(tasks), symmetries, family, mixed, description))
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

    Args:
        name: One of :func:`list_models`.

    Raises:
        ValueError: If there is no model of that name.
    """
    return _MODELS.find(name)


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
    if not isinstance(space, WeightSpace) and not entry.mixed:
        able = ", ".join(other for other in list_models(task) if model_entry(other).mixed)
        raise ValueError(
            f"The model {name!r} reads networks of one architecture (got {len(space)} weight spaces); these read several: {able}."
        )
    try:
        model = entry.build(space, out_channels, **options, **({"task": task} if len(entry.tasks) > 1 else {}))
    except TypeError as error:
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if unknown is None or unknown[1] not in options:
            raise
        known = model_options(name)
        listed = f"Its options: {', '.join(known) or 'none'}.{did_you_mean(unknown[1], known)}"
        raise TypeError(f"The model {name!r} has no option {unknown[1]!r}. {listed}") from None
    spaces = (space,) if isinstance(space, WeightSpace) else tuple(space)
    model.recipe = Recipe(name, spaces, out_channels, task, dict(options))  # type: ignore[assignment]
    return model


def recipe_of(model: nn.Module) -> Recipe:
    """What a model was built from.

    Args:
        model: A model that :func:`build_model` returned.

    Returns:
        Its :class:`Recipe`.

    Raises:
        ValueError: If it was made in another way.

    Example:
        >>> recipe_of(build_model("statnn", WeightSpace.mlp([2, 8, 1]), 1, hidden=32)).options
        {'hidden': 32}
    """
    recipe = getattr(model, "recipe", None)
    if not isinstance(recipe, Recipe):
        raise ValueError(f"Expected a model made by build_model, which records what it is made of (got {type(model).__name__}).")
    return recipe


def list_models(task: str | None = None) -> list[str]:
    """Names of the registered models, all or those that solve a task.

    Args:
        task: ``"invariant"`` or ``"equivariant"`` (default: both).

    Example:
        >>> list_models()
        ['hnp', 'magep', 'mlp', 'monomial', 'monomial_gnn', 'neural_graph', 'neural_graph_transformer', 'np', 'scalegmn', 'statnn']
    """
    return [name for name in _MODELS.names() if task is None or task in _MODELS[name].tasks]


def model_options(name: str) -> dict[str, Any]:
    """Options of a model with their defaults.

    Args:
        name: One of :func:`list_models`.

    Raises:
        ValueError: If the model is unknown.

    Example:
        >>> model_options("statnn")
        {'hidden': 256, 'dropout': 0.0}
    """
    build = model_entry(name).build
    options: dict[str, Any] = {}
    for kind in build.__mro__ if isinstance(build, type) else (build,):
        parameters = inspect.signature(kind).parameters.values()
        options |= {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY and each.name not in options}
        if not any(each.kind is each.VAR_KEYWORD for each in parameters):  # what it does not name goes to the class that it extends
            break
    for settled in ("task", *getattr(build, "settled_options", ())):  # by the class itself
        options.pop(settled, None)
    return options


def scaled_widths(name: str, factor: float, task: str = "invariant", **options: Any) -> dict[str, int | tuple[int, ...]]:
    """The widths of a model, its options ``channels`` and ``hidden``, multiplied by a factor and rounded.

    Single widths of channels become multiples of 4, which attention heads divide.

    Args:
        name: One of :func:`list_models`.
        factor: What the default widths are multiplied by.
        task: ``"invariant"`` or ``"equivariant"``.
        **options: Options that are given, widths among them are left out.

    Returns:
        Options for :func:`build_model`; none of a model that has no widths.

    Raises:
        ValueError: If the model is unknown.

    Example:
        >>> scaled_widths("monomial_gnn", 0.5), scaled_widths("magep", 2, hidden=100)
        ({'channels': 32, 'hidden': 64}, {'channels': (40, 40)})
    """
    entry = model_entry(name)
    known = model_options(name)
    defaults = {option: known[option] for option in ("channels", "hidden") if option in known and option not in options}
    if defaults.get("channels", 0) is None:
        defaults["channels"] = entry.build.default_channels[task]  # type: ignore[attr-defined]
    if task == "equivariant" and isinstance(defaults.get("channels"), tuple):
        defaults.pop("hidden", None)  # these write weights without a head
    return {
        option: tuple(max(1, round(factor * width)) for width in default)
        if isinstance(default, tuple)
        else max(4, 4 * round(factor * default / 4))
        if option == "channels"
        else max(1, round(factor * default))
        for option, default in defaults.items()
    }


def widths_for_parameters(
    name: str, space: Spaces, out_channels: int, parameters: int, task: str = "invariant", **options: Any
) -> dict[str, int | tuple[int, ...]]:
    r"""Widths that bring a model as near to a number of parameters as it gets, for comparisons at equal size.

    .. math:: \arg\min_{f} | \log \text{count}(f w_1, f w_2, \dots) - \log n |

    All widths of the model, its options ``channels`` and ``hidden``, are multiplied by one factor :math:`f` and rounded; single widths of
    channels to multiples of 4, which attention heads divide.

    Args:
        name: One of :func:`list_models`.
        space: Weight space of the networks that it reads, or several.
        out_channels: Outputs per network or per weight.
        parameters: The number :math:`n` of trainable parameters.
        task: ``"invariant"`` or ``"equivariant"``.
        **options: Options that are given, widths among them stay as they are.

    Returns:
        Options for :func:`build_model`, without those given.

    Raises:
        ValueError: If the model is unknown, has no widths, cannot read the space, or stays above twice the number or below half of it.

    Example:
        >>> space = WeightSpace.mlp([2, 32, 32, 1])
        >>> widths = widths_for_parameters("np", space, 1, 20_000)
        >>> widths, sum(parameter.numel() for parameter in build_model("np", space, 1, **widths).parameters())
        ({'channels': (2, 2, 1), 'hidden': 135}, 20027)
    """
    if not scaled_widths(name, 1, task, **options):
        raise ValueError(f"The model {name!r} has no option 'channels' or 'hidden' to bring it to a number of parameters.")

    def count(factor: float) -> int:
        with torch.random.fork_rng():
            model = build_model(name, space, out_channels, task, **scaled_widths(name, factor, task, **options), **options)
        return sum(parameter.numel() for parameter in model.parameters())

    low, high = 2.0**-10, 1.0
    while count(high) < parameters and high < 2**10:
        low, high = high, 2 * high
    for _ in range(16):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if count(middle) < parameters else (low, middle)
    below, above = count(low), count(high)
    factor, found = (low, below) if below * above > parameters**2 else (high, above)
    if not parameters / 2 <= found <= 2 * parameters:
        raise ValueError(f"The model {name!r} has {found:,} parameters at the least or most, far from {parameters:,}.")
    return scaled_widths(name, factor, task, **options)
