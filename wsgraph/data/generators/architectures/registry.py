"""Architectures of the networks of a zoo, by name: those here, and those that others register."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from wsgraph.data.generators.hyperparameters import HyperparameterRanges
from wsgraph.plugins import Registry
from wsgraph.space import WeightSpace

__all__ = ["Architecture", "architecture_of", "list_architectures", "register_architecture"]

Build = Callable[..., "nn.Module | WeightSpace"]
AnyBuild = TypeVar("AnyBuild", bound=Build)

_ARCHITECTURES: Registry[Architecture] = Registry("architecture")
_ABOUT_PICTURES = 3  # channels, classes, size come first


@dataclass(frozen=True)
class Architecture:
    """Networks for pictures that differ in a few options.

    Attributes:
        name: What it is called.
        build: Function of the channels and size ``(H, W)`` of pictures, the number of classes, and
            the options by name, which returns a module or a weight space.
        ranges: Where hyperparameters are drawn from if nothing else is said.
        options: Default values of its options by name.
    """

    name: str
    build: Build
    ranges: HyperparameterRanges
    options: Mapping[str, Any]

    def variants(self, given: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Options of all architectures that are asked for.

        Args:
            given: Values by name, each one or several; what is not given has its default value.

        Returns:
            Every combination of the values.

        Raises:
            ValueError: If there is no option of such a name, or a value is not of the kind of its default.

        Example:
            >>> architecture_of("cnn").variants({"activation": ["relu", "tanh"], "channels": [8, 8]})[1]
            {'channels': (8, 8), 'stride': (2, 1, 1), 'activation': 'tanh'}
        """
        if unknown := [name for name in given if name not in self.options]:
            known = ", ".join(f"{name} ({value!r})" for name, value in self.options.items())
            raise ValueError(f"The architecture {self.name!r} has no option {unknown[0]!r}; it has, with these defaults: {known}.")
        choices = [_choices(given[name], default) if name in given else [default] for name, default in self.options.items()]
        for (name, default), values in zip(self.options.items(), choices, strict=True):
            if bad := [value for value in values if not _is_like(value, default)]:
                raise ValueError(
                    f"Expected the option {name!r} of the architecture {self.name!r} to be such as {default!r} (got {bad[0]!r})."
                )
        return [dict(zip(self.options, values, strict=True)) for values in itertools.product(*choices)]


def _choices(value: Any, default: Any) -> list[Any]:
    """One value or several of them; where the default is a tuple, one value may be a list of numbers."""
    several = isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0
    if isinstance(default, tuple):
        several = several and not isinstance(value[0], int)
        return [tuple(each) if isinstance(each, Sequence) else each for each in (value if several else [value])]
    return list(value) if several else [value]


def _is_like(value: Any, default: Any) -> bool:
    """Whether a value is of the kind of a default; one number may stand for a tuple of numbers."""
    if isinstance(default, tuple):
        return all(type(each) in {type(number) for number in default} for each in (value if isinstance(value, tuple) else [value]))
    return not isinstance(default, (int, float, str)) or type(value) is type(default) or (type(default) is float and type(value) is int)


def register_architecture(name: str, *, ranges: HyperparameterRanges | None = None) -> Callable[[AnyBuild], AnyBuild]:
    """Enter an architecture under a name, by which :func:`make_cnn_zoo` and the command line know it.

    What is decorated is called with the channels of the pictures, the number of classes and the size
    ``(H, W)`` of the pictures, in this order, and with its options by name. Their default values say what
    they are: a number, a text, or a tuple of numbers.

    Args:
        name: The name.
        ranges: Where hyperparameters are drawn from (default: :class:`HyperparameterRanges`).

    Returns:
        A decorator of a function, or of a class of modules.

    Raises:
        ValueError: If the name is taken, or an option has no default value.

    Example:
        >>> import torch
        >>> @register_architecture("perceptron")
        ... def perceptron(picture_channels, classes, size, *, hidden=8):
        ...     inputs = picture_channels * size[0] * size[1]
        ...     layers = torch.nn.Linear(inputs, hidden), torch.nn.Tanh(), torch.nn.Linear(hidden, classes)
        ...     return torch.nn.Sequential(torch.nn.Flatten(), *layers)
        >>> architecture_of("perceptron").options
        {'hidden': 8}
    """

    def enter(build: AnyBuild) -> AnyBuild:
        parameters = list(inspect.signature(build).parameters.values())[_ABOUT_PICTURES:]
        if bad := [each.name for each in parameters if each.default is inspect.Parameter.empty]:
            raise ValueError(f"Expected a default value for the option {bad[0]!r} of the architecture {name!r}.")
        options = {each.name: each.default for each in parameters}
        _ARCHITECTURES.add(name, Architecture(name, build, ranges or HyperparameterRanges(), options))
        return build

    return enter


def architecture_of(name: str) -> Architecture:
    """The architecture of a name.

    Args:
        name: One of :func:`list_architectures`.

    Returns:
        The entry.

    Raises:
        ValueError: If there is none of that name.

    Example:
        >>> architecture_of("mixer").build(1, 10, (8, 8), depth=1).head
        Linear(in_features=16, out_features=10, bias=True)
    """
    return _ARCHITECTURES.find(name)


def list_architectures() -> list[str]:
    """Names of all architectures that networks of a zoo may have.

    Example:
        >>> {"cnn", "mixer", "resnet", "vit"} <= set(list_architectures())
        True
    """
    return _ARCHITECTURES.names()
