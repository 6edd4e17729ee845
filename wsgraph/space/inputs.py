"""What networks are called with: inputs of the structure, shapes and kinds of numbers with which they were traced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from wsgraph.space.program import Program
from wsgraph.space.program_operators import Reference

if TYPE_CHECKING:
    from wsgraph.space.structure import Structure

__all__ = ["batch_size", "check_layer_inputs", "described", "matched", "shown"]


def matched(program: Program, inputs: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[list[Tensor], int | None]:
    """The tensors among the inputs, in order, and their number where it is not that of the traced ones."""
    given: dict[int, Any] = {}
    if len(inputs) == 1 and isinstance(inputs[0], tuple) and len(program.call) != 2:
        inputs = inputs[0]  # what example_inputs returns
    inputs = (*inputs, *_named(program, len(inputs), kwargs))
    if not _collect(program.call, inputs, given):
        raise ValueError(f"The network was traced with {described(program)}; give it inputs of the same structure (got {shown(inputs)}).")
    leaves = [given[i] for i in range(len(program.inputs))]
    for leaf, traced in zip(leaves, program.inputs, strict=True):
        _check_numbers(leaf, getattr(torch, traced.dtype), f"input {traced.name!r}, as when the network was traced")
    shapes = [tuple(leaf.shape) for leaf in leaves]
    wanted = [traced.shape for traced in program.inputs]
    if shapes == wanted:
        return leaves, None
    size, counts = batch_size(program), {shape[0] for shape in shapes if shape}
    if size is None or len(counts) != 1 or [shape[1:] for shape in shapes] != [shape[1:] for shape in wanted] or 0 in counts:
        alike = "" if size is None else f", or another number of rows than {size} in all of them"
        raise ValueError(
            f"The network was traced with {described(program)}: give it inputs of these shapes{alike} (got {shown(leaves)}). For other "
            "shapes, trace it on inputs of those."
        )
    return leaves, counts.pop()


def _kind(dtype: torch.dtype) -> str:
    if dtype.is_complex:
        return "complex numbers"
    return "floating point numbers" if dtype.is_floating_point else "booleans" if dtype is torch.bool else "integers"


def _check_numbers(values: Tensor, dtype: torch.dtype, what: str) -> None:
    """Raise where values of a kind are no values of a dtype: floating point numbers of another precision are."""
    kind, is_whole = _kind(dtype), not dtype.is_floating_point and not dtype.is_complex and dtype is not torch.bool
    if kind != _kind(values.dtype):
        raise ValueError(
            f"Expected {kind} as {what} (got {_kind(values.dtype)}, {values.dtype}): convert it with .to({dtype}), or trace "
            "the network on inputs of that dtype."
        )
    if is_whole and torch.iinfo(values.dtype).max > torch.iinfo(dtype).max and not torch.equal(values.to(dtype), values):
        raise ValueError(f"Expected integers that {dtype} can hold as {what} (got larger ones, of {values.dtype}).")


def check_layer_inputs(space: Structure, values: Tensor, dtype: torch.dtype) -> None:
    """Raise where a tensor cannot be the input ``[M, n_0, *positions]`` of a network of layers.

    Raises:
        ValueError: If it holds no floating point numbers, or not those of as many neurons.
    """
    _check_numbers(values, dtype, "inputs of the network")
    size = next(group.size for group in space.groups if group.role == "input")
    if values.ndim < 2 or (values.shape[1] != size and values[0].numel() != size):
        raise ValueError(f"Expected inputs of shape [M, {size}, *positions] for {space!r} (got {list(values.shape)}).")


def _named(program: Program, count: int, kwargs: Mapping[str, Any]) -> list[Any]:
    """Inputs that are given by name, in the order of tracing, behind ``count`` others."""
    by_position = len(program.call) - 1 - len(program.keywords)
    missing = program.keywords[max(0, count - by_position) :]
    if not kwargs or (kwargs.keys() == set(missing) and count >= by_position):
        return [kwargs[name] for name in missing if name in kwargs]
    named = f"{', '.join(program.keywords)} by name" if program.keywords else "none by name"
    raise ValueError(
        f"The network was traced with {described(program)}: {by_position} by position and {named}. Give it the same "
        f"(got {count} by position and {', '.join(kwargs)} by name)."
    )


def batch_size(program: Program) -> int | None:
    """The first dimension of the traced inputs, where all of them have one and it is the same."""
    sizes = {given.shape[0] for given in program.inputs if given.shape}
    return sizes.pop() if len(sizes) == 1 and 0 not in sizes else None


def _collect(template: Any, value: Any, given: dict[int, Any]) -> bool:
    """Whether a value has the structure of a template; its tensors by the position of the input."""
    if isinstance(template, Reference):
        given[int(template.key)] = value
        return isinstance(value, Tensor)
    if not isinstance(template, tuple):
        return type(value) is type(template) and bool(value == template)
    kind, *items = template
    if kind == "dict":
        same = isinstance(value, Mapping) and value.keys() == {key for key, _ in items}
        return same and all(_collect(item, value[key], given) for key, item in items)
    same = isinstance(value, (list, tuple)) and len(value) == len(items)
    return same and all(_collect(item, entry, given) for item, entry in zip(items, value, strict=True))


def described(program: Program) -> str:
    """The inputs with which a program was traced, as people read them."""
    return "inputs " + ", ".join(f"{given.name} {list(given.shape)}" for given in program.inputs)


def shown(inputs: Sequence[Any], *, dtypes: bool = False) -> str:
    """Inputs as people read them: tensors by their shapes, and dtypes where asked for."""

    def text(value: Any) -> str:
        if isinstance(value, Tensor):
            return str(list(value.shape)) + (f" {value.dtype}".replace("torch.", "") if dtypes else "")
        if isinstance(value, Mapping):
            return "{" + ", ".join(f"{key!r}: {text(item)}" for key, item in value.items()) + "}"
        if isinstance(value, (list, tuple)):
            return f"{type(value).__name__}({', '.join(map(text, value))})"
        return f"{value!r:.40}" if value is None or isinstance(value, (bool, int, float, str)) else type(value).__name__

    return ", ".join(map(text, inputs))
