"""Modules that functions make, which are named on the command line, and their inputs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wsgraph.cli.common import working

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from wsgraph.space import WeightSpace

__all__ = ["inputs_of", "module_of", "modules_of", "shape_of", "spaces_in", "spaces_of_modules"]


def spaces_in(files: Iterable[Path]) -> list[WeightSpace]:
    """Weight spaces that files hold."""
    from wsgraph import WeightSpace

    return [WeightSpace.from_json(file.read_text(encoding="utf-8")) for file in files]


def spaces_of_modules(modules: Sequence[str], inputs: Sequence[str]) -> list[WeightSpace]:
    """Weight spaces of the modules that functions make, which are named on the command line.

    Args:
        modules: Functions, each of which returns a module or several.
        inputs: Shapes: of the inputs of a single module; of several, one shape for all or one for
            each.
    """
    import torch

    from wsgraph.convert import trace

    made = [module for text in modules for module in modules_of(text)]
    if (made and not inputs) or (inputs and not made):
        raise ValueError("--module and --input belong together, such as --module models.py:make --input 1x3x32x32.")
    if len(made) > 1 and len(inputs) not in (1, len(made)):
        raise ValueError(f"Expected one --input for all {len(made)} networks, or one for each (got {len(inputs)}).")
    generator = torch.Generator().manual_seed(0)
    given_to = [inputs] if len(made) == 1 else [[text] for text in inputs]
    spaces = []
    with working("Tracing networks"):
        for i, module in enumerate(made):
            arguments, named = inputs_of(given_to[i if len(given_to) > 1 else 0], generator)
            spaces.append(trace(module.eval(), *arguments, kwargs=named))
    return spaces


def inputs_of(texts: Sequence[str], generator: torch.Generator) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Inputs of a module by position and by name."""
    arguments = [_input(text, generator) for text in texts]
    named = {name: value for name, value in arguments if name}
    if len(named) < sum(bool(name) for name, _ in arguments):
        raise ValueError(f"Expected every --input by name once (got {', '.join(texts)}).")
    return tuple(value for name, value in arguments if not name), named


def _input(text: str, generator: torch.Generator) -> tuple[str, Tensor]:
    """An input of a module, and its name, which is empty for one by position."""
    import torch

    name, _, rest = text.rpartition("=")
    sizes, colon, written = rest.partition(":")
    dtype = getattr(torch, written or "float32", None)
    if not isinstance(dtype, torch.dtype) or dtype.is_complex or bool(colon) != bool(written):
        raise ValueError(f"Expected the dtype of --input as float32, int64, bool and the like (got {text!r}).")
    shape = shape_of(sizes)
    if dtype.is_floating_point:
        return name, torch.randn(shape, generator=generator).to(dtype)
    # The first one is false: what is masked everywhere has no answer.
    return name, (torch.ones(shape).cumsum(-1) % 2 == 0) if dtype is torch.bool else torch.zeros(shape, dtype=dtype)


def shape_of(text: str) -> list[int]:
    """Sizes joined by x."""
    try:
        return [int(size) for size in text.split("x")]
    except ValueError:
        raise ValueError(f"Expected --input as sizes joined by x, such as 1x3x224x224 (got {text!r}).") from None


def module_of(text: str) -> nn.Module:
    """The module that a function named on the command line returns."""
    made = modules_of(text)
    if len(made) != 1:
        raise ValueError(f"Expected {text!r} to return one torch.nn.Module (got {len(made)}).")
    return made[0]


def modules_of(text: str) -> list[nn.Module]:
    """What a function named on the command line returns: a module, or a list of them."""
    from torch import nn

    from wsgraph.plugins import import_place

    place, colon, name = text.rpartition(":")
    if not colon or not place or not name:
        raise ValueError(f"Expected --module as package:function or file.py:function (got {text!r}).")
    try:
        made = getattr(import_place(place), name)()
    except (ImportError, FileNotFoundError, AttributeError) as error:
        raise ValueError(f"--module {text!r} cannot be used: {error}") from None
    modules = [*made.values()] if isinstance(made, dict) else [*made] if isinstance(made, list | tuple) else [made]
    if not modules or (other := [module for module in modules if not isinstance(module, nn.Module)]):
        raise ValueError(f"Expected {text!r} to return a torch.nn.Module (got {type(other[0]).__name__ if modules else 'an empty list'}).")
    return modules
