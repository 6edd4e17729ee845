"""Networks that are run while somebody looks at the values within, and changes them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from wsgraph.space.evaluate import calls_of, parameters_of, run_network
from wsgraph.space.flat import FlatSpace
from wsgraph.space.inputs import check_layer_inputs
from wsgraph.space.parts import Layer
from wsgraph.space.program import Program, references
from wsgraph.space.program_operators import Reference

__all__ = ["observe"]

_ENTRIES = 2**22  # of inputs that are run at once
_LEAST_ROWS = 32

Change = Callable[[Any, Mapping[str, Any], Any], Any]


def observe(space: FlatSpace, theta: Tensor, inputs: Any, change: Change) -> None:
    """Run a network on inputs, batch by batch, and let a function see and change what its layers or steps give.

    Args:
        space: The weight space, whose networks run by layers or a program.
        theta: The network ``[P]``.
        inputs: What it is called with: a tensor, or a tuple of several. Of a program, calls of the traced shape behind each other;
            rows that do not fill a call are left out, unless there is none that they fill.
        change: Called with the name of a layer, or the number of a step, with the arguments of that step by name, and with what it
            gives; it returns what is taken for that. Values of a program have a first dimension over calls where they depend on inputs.

    Raises:
        SpaceMismatchError: If the space does not say what its networks compute.
        ValueError: If the inputs are not those of the network.

    Example:
        >>> import torch
        >>> from wsgraph import WeightSpace
        >>> space, found = WeightSpace.mlp([2, 3, 1]), {}
        >>> observe(space, space.sample(1)[0], torch.ones(5, 2), lambda name, _, values: found.setdefault(name, values))
        >>> {name: list(values.shape) for name, values in found.items()}
        {'layers.0': [5, 3], 'layers.1': [5, 1]}
    """
    space.check_runs("Looking at the values within")
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    with torch.no_grad():
        if not space._outside_layers:
            _of_layers(space, theta, given, change)
        else:
            assert space.program is not None
            _of_program(space, space.program, theta, given, change)


def _of_layers(space: FlatSpace, theta: Tensor, inputs: tuple[Any, ...], change: Change) -> None:
    if len(inputs) != 1:
        raise ValueError(f"Expected one tensor of inputs for {space!r} (got {len(inputs)}).")
    check_layer_inputs(space, inputs[0], theta.dtype)

    def at(layer: Layer, values: Tensor) -> Tensor:
        result: Tensor = change(layer.name, {}, values)
        return result

    tensors = {key: tensor.to(theta) for key, tensor in space.unflatten(theta).items()}
    for rows in inputs[0].split(_rows(inputs[0][0].numel())):
        run_network(space, tensors, rows.to(theta), change=at)


def _of_program(space: FlatSpace, program: Program, theta: Tensor, inputs: tuple[Any, ...], change: Change) -> None:
    calls = calls_of(space, program, theta[None], inputs)
    dims = [0 if leaf.ndim else None for leaf in calls.leaves]
    leaves = calls.leaves if calls.rows is not None else [leaf[None] if leaf.ndim else leaf for leaf in calls.leaves]
    first = next((leaf for leaf, dim in zip(leaves, dims, strict=True) if dim == 0), torch.zeros(1, 1))
    whole = len(first) if calls.rows is None else max(1, calls.rows // first.shape[1])
    reading = _reading_inputs(program)

    def instead(step: int, function: Callable[..., Any], given: dict[str, Any]) -> Any:
        if step not in reading:
            return change(step, given, function(**given))
        dims = {name: _dims(argument, program, reading) for name, argument in program.steps[step].arguments}
        return change(step, given, torch.func.vmap(lambda own: function(**own), in_dims=(dims,))(given))

    parameters = parameters_of(space, program, theta)
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        for batch in _batches(leaves, dims, whole, max(1, _rows(first[0].numel() // first.shape[1]) // first.shape[1])):
            program.run(parameters, batch, theta.dtype, batched=True, instead=instead)


def _rows(entries: int) -> int:
    """How many inputs of a size are run at once."""
    return max(_LEAST_ROWS, _ENTRIES // max(1, entries))


def _batches(leaves: list[Tensor], dims: list[int | None], count: int, size: int) -> Iterator[list[Tensor]]:
    for start in range(0, count, size):
        part = slice(start, min(start + size, count))
        yield [leaf if dim is None else leaf[part] for leaf, dim in zip(leaves, dims, strict=True)]


def _reading_inputs(program: Program) -> set[int]:
    """The steps whose results depend on inputs that have a first dimension over calls."""
    found: set[int] = set()
    for i, step in enumerate(program.steps):
        if any(_is_in_calls(reference, program, found) for reference in references(step.arguments)):
            found.add(i)
    return found


def _is_in_calls(reference: Reference, program: Program, steps: set[int]) -> bool:
    if reference.kind == "input":
        return bool(program.inputs[int(reference.key)].shape)
    return reference.kind == "step" and int(reference.key) in steps


def _dims(argument: Any, program: Program, steps: set[int]) -> Any:
    """Along which dimension calls lie, in every tensor of an argument."""
    if isinstance(argument, Reference):
        return 0 if _is_in_calls(argument, program, steps) else None
    return [_dims(item, program, steps) for item in argument] if isinstance(argument, tuple) else None
