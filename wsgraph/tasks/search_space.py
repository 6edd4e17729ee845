"""What a search varies: options of runs with their ranges or choices, given as plain data."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wsgraph._suggestions import did_you_mean
from wsgraph.nn import model_options, scaled_widths
from wsgraph.options import Option, TrainingOptions, known_options
from wsgraph.tasks.task import Task

__all__ = ["Dimension", "default_space", "default_values", "read_space", "with_values"]

_WAYS = ("log", "uniform")
_FACTORS = (0.5, 1, 2)  # of widths


@dataclass(frozen=True)
class Dimension:
    """An option that a search varies.

    Attributes:
        name: Name of the option, or ``OPTION.NAME`` for an entry of one that holds several.
        given: ``(low, high, "log" or "uniform")``, or the choices.
        is_range: Whether it is the former.
        is_integer: Whether numbers of a range are integers.
    """

    name: str
    given: tuple[Any, ...]
    is_range: bool = False
    is_integer: bool = False

    @property
    def distribution(self) -> Any:
        """The distribution of Optuna that values are drawn from."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if not self.is_range:
            return CategoricalDistribution(list(dict.fromkeys(map(_choice, self.given))))
        low, high, way = self.given
        return (IntDistribution if self.is_integer else FloatDistribution)(low, high, log=way == "log")

    def value(self, parameter: Any) -> Any:
        """A value, from what Optuna holds."""
        return parameter if self.is_range else json.loads(parameter)

    def parameter(self, value: Any) -> Any:
        """A value as Optuna holds it."""
        return value if self.is_range else _choice(value)

    def holds(self, value: Any) -> bool:
        """Whether a value lies in the range, or is one of the choices."""
        if not self.is_range:
            return _choice(value) in map(_choice, self.given)
        return isinstance(value, (int, float)) and not isinstance(value, bool) and self.given[0] <= value <= self.given[1]


def _choice(value: Any) -> str:
    """A choice as text: Optuna holds no lists, and takes 1 and true for one."""
    return json.dumps(value)


def default_space(task: type[Task], options: Mapping[str, Any]) -> dict[str, list[Any]]:
    """What a search varies where nothing is said: of learning rate, weight decay and widths, those that no option gives.

    Args:
        task: Class of the task.
        options: Options of :func:`run` that are given.

    Returns:
        Ranges and choices by name.
    """
    space: dict[str, list[Any]] = {"learning_rate": [3e-4, 3e-2, "log"], "weight_decay": [1e-4, 1e-1, "log"]}
    space = {name: entry for name, entry in space.items() if name not in options}
    model, own = options.get("model", TrainingOptions.model), options.get("model_options") or {}
    for factor in _FACTORS:
        for name, width in scaled_widths(model, factor, _kind(task), **own).items():
            choices = space.setdefault(f"model_options.{name}", [])
            if (plain := list(width) if isinstance(width, tuple) else width) not in choices:
                choices.append(plain)
    return space


def _kind(task: type[Task]) -> str:
    return "equivariant" if task.edits else "invariant"


def read_space(task: type[Task], space: Mapping[str, Sequence[Any]], options: Mapping[str, Any]) -> list[Dimension]:
    """What a search varies, from plain data.

    Args:
        task: Class of the task.
        space: By name ``[low, high, "log"]``, ``[low, high, "uniform"]`` or else a list of choices.
        options: Options of :func:`run` that are given.

    Returns:
        One dimension for every name.

    Raises:
        TypeError: If an option is unknown, or runs that differ in it cannot be compared by their validation loss.
        ValueError: If a range or the choices make no sense, or there is nothing to vary.
    """
    if not space:
        raise ValueError("The search has nothing to vary: leave an option out that is given, or say what to vary with 'search_space'.")
    known = {name: about for name, about in known_options(task).items() if about.searched}
    models = space.get("model", [options.get("model", TrainingOptions.model)])
    return [_dimension(name, entry, known, models) for name, entry in space.items()]


def _dimension(name: str, entry: Any, known: Mapping[str, Option], models: Sequence[str]) -> Dimension:
    option, _, key = name.partition(".")
    if option not in known or bool(key) != (known[option].form == "pairs"):
        names = [f"{each}.NAME" if about.form == "pairs" else each for each, about in known.items()]
        meant = did_you_mean(name, names) or f" It varies {', '.join(names)}."
        raise TypeError(f"A search cannot vary {name!r}: its runs are compared by their validation loss.{meant}")
    if option == "model_options":
        for model in models:
            if key not in model_options(model):
                has = f"It has {', '.join(model_options(model))}."
                raise TypeError(f"The model {model!r} has no option {key!r}. {did_you_mean(key, model_options(model)).strip() or has}")
    if isinstance(entry, str) or not isinstance(entry, Sequence) or not entry:
        raise ValueError(f"Expected what a search varies as [low, high, 'log'], [low, high, 'uniform'] or choices (got {name}: {entry!r}).")
    if entry[-1] not in _WAYS or len(entry) != 3:
        try:
            json.dumps(list(entry), allow_nan=False)
        except (TypeError, ValueError):
            raise ValueError(f"Expected the choices of {name!r} to be plain values (got {entry!r}).") from None
        if len({isinstance(each, str) for each in entry if isinstance(each, (str, int, float))}) > 1:
            raise ValueError(f"Expected {name!r} as [low, high, 'log'], [low, high, 'uniform'] or choices of one kind (got {list(entry)}).")
        return Dimension(name, tuple(entry))
    low, high, way = entry
    if not all(isinstance(end, (int, float)) and not isinstance(end, bool) and math.isfinite(end) for end in (low, high)) or not low < high:
        raise ValueError(f"Expected two numbers of which the first is smaller as range of {name!r} (got {low!r} and {high!r}).")
    if way == "log" and low <= 0:
        raise ValueError(f"Expected a logarithmic range of {name!r} to be above 0 (got {low!r}).")
    is_integer = known[option].kind is not float and isinstance(low, int) and isinstance(high, int)
    if is_integer and key:  # whether the model counts or measures with it
        is_integer = not any(isinstance(model_options(model).get(key), float) for model in models)
    return Dimension(name, (low, high, way), True, is_integer)


def with_values(options: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a run, of which a trial changes some.

    Args:
        options: Options by name.
        values: Values by the names of dimensions.

    Returns:
        All options by name.

    Example:
        >>> with_values({"epochs": 3, "model_options": {"dropout": 0.1}}, {"learning_rate": 0.01, "model_options.hidden": 8})
        {'epochs': 3, 'model_options': {'dropout': 0.1, 'hidden': 8}, 'learning_rate': 0.01}
    """
    changed = dict(options)
    for name, value in values.items():
        option, _, key = name.partition(".")
        changed[option] = {**(changed.get(option) or {}), key: value} if key else value
    return changed


def default_values(task: type[Task], options: Mapping[str, Any], dimensions: Sequence[Dimension]) -> dict[str, Any]:
    """What the options would be without a search, as far as the search varies them and its ranges hold them.

    Args:
        task: Class of the task.
        options: Options of :func:`run` that are given.
        dimensions: What the search varies.

    Returns:
        Values by the names of dimensions.
    """
    values = {}
    model = options.get("model", TrainingOptions.model)
    widths = {name: list(width) if isinstance(width, tuple) else width for name, width in scaled_widths(model, 1, _kind(task)).items()}
    for each in dimensions:
        option, _, key = each.name.partition(".")
        defaults = {**model_options(model), **widths} if option == "model_options" else {}
        value = {**defaults, **(options.get(option) or {})}.get(key) if key else options.get(option, getattr(TrainingOptions, option, None))
        if each.holds(value):
            values[each.name] = value
    return values
