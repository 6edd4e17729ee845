"""Outputs of networks as functions of their weights, and how far apart they are."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wsgraph.convert.tracing.recording import ModuleInputs, TraceError, copied, first_line
from wsgraph.space import WeightSpace
from wsgraph.space.evaluate import tensors_of

__all__ = ["FUNCTION_TOLERANCE", "largest_difference", "module_outputs", "relative_error", "said_of_repeats", "space_outputs"]

FUNCTION_TOLERANCE = 1e-9  # of what is the same function in float64


def relative_error(value: Tensor, expected: Tensor) -> float:
    """Largest difference per network, relative to the network's largest expected entry; infinite where the outputs are not finite."""
    if value.shape != expected.shape:
        raise AssertionError(f"The output changed its shape from {list(expected.shape)} to {list(value.shape)}.")
    value, expected = (torch.view_as_real(tensor) if tensor.is_complex() else tensor for tensor in (value, expected))
    value, expected = (tensor.double().reshape(len(tensor), -1) for tensor in (value, expected))
    error = (value - expected).abs().amax(1) / expected.abs().amax(1).clamp(min=torch.finfo(torch.float64).tiny)
    error = torch.where((value == expected).all(1), 0, error)
    return float(torch.nan_to_num(error, nan=math.inf).max())


def module_outputs(
    module: nn.Module, space: WeightSpace, inputs: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None
) -> tuple[Tensor, Callable[[Tensor], list[Tensor]]]:
    """The weights ``[1, P]`` of a module in float64, and its outputs as a function of such weights.

    Inputs that the module takes by name are given so, or lie behind the others.
    """
    keywords = space.program.keywords if space.program is not None and kwargs is None else ()
    called = ModuleInputs.of(inputs, kwargs) if kwargs is not None else ModuleInputs.carried(inputs, keywords)
    args, named = _double(called.args), _double(called.kwargs)
    moving = copied(module).double().eval()
    state = {name: tensor.detach() for name, tensor in moving.state_dict().items()}

    def outputs(thetas: Tensor) -> list[Tensor]:
        # Integers are no weights, and stay what they are.
        moved = {name: tensor.to(state[name].dtype) for name, tensor in space._views(thetas[0]).items()}
        with torch.no_grad():
            try:
                return tensors_of(torch.func.functional_call(moving, moved, args, named, tie_weights=False))
            except (TypeError, RuntimeError) as error:
                raise TraceError(
                    f"The module does not run in float64 on the inputs ({called}): {type(error).__name__}: {first_line(error)} Pass "
                    "inputs as you would call the module, those by name as kwargs={...}."
                ) from error

    return space.flatten(state)[None], outputs


def space_outputs(space: WeightSpace, inputs: Any, kwargs: Mapping[str, Any] | None = None) -> Callable[[Tensor], list[Tensor]]:
    """The outputs of networks, run by their space on what its module is called with, as a function of weights ``[B, P]`` in float64."""
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    space = dataclasses.replace(space, assumed=())  # what was assumed is said elsewhere

    def outputs(thetas: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return tensors_of(space.evaluate(thetas, *map(_double, given), **_double(dict(kwargs or {}))))

    return outputs


def _double(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: _double(item) for key, item in value.items()}
    return type(value)(map(_double, value)) if type(value) in (list, tuple) else value


def largest_difference(outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference of an output, relative to its largest expected entry."""
    pairs = zip(outputs, expected, strict=True)
    return max((relative_error(output[None], wanted[None]) for output, wanted in pairs), default=0.0)


def said_of_repeats(outputs: Callable[[Tensor], list[Tensor]], thetas: Tensor, expected: Sequence[Tensor]) -> str:
    """What to say of a network that answers otherwise when it is run again, of which no symmetry can be checked; empty of others."""
    again = largest_difference(outputs(thetas), expected)
    if again <= FUNCTION_TOLERANCE:
        return ""
    return (
        "The network draws random numbers: with the same weights and inputs its outputs differ from call to call (relative "
        f"difference {again:.1e}), so that no symmetry can be checked. Switch off what is random in evaluation mode, such as "
        "torch.nn.functional.dropout without training=self.training."
    )
