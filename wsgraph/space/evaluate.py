"""Run a network straight from its weight space: the function that every symmetry must leave unchanged."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from wsgraph.operators import apply_operator

if TYPE_CHECKING:
    from wsgraph.space.parts import Layer, NeuronGroup
    from wsgraph.space.structure import Structure

__all__ = ["accepts", "run_network", "smallest_input_shape"]

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def _apply_layer(layer: Layer, tensors: Mapping[str, Tensor], values: Tensor) -> Tensor:
    if layer.weight is None:
        return values
    weight, bias = tensors[layer.weight], tensors[layer.bias] if layer.bias else None
    if layer.operator == "linear":
        return F.linear(values, weight, bias)
    return _CONVOLUTIONS[weight.ndim - 2](values, weight, bias, stride=layer.stride, padding=layer.padding)


def run_network(
    space: Structure,
    tensors: Mapping[str, Tensor],
    inputs: Tensor,
    transform: Callable[[NeuronGroup, Tensor], Tensor] | None = None,
) -> Tensor:
    """Evaluate one network, layer sums and operators group by group.

    Args:
        space: Its weight space, with one input and one output group.
        tensors: Its parameters by name, as from :meth:`WeightSpace.unflatten`.
        inputs: Tensor of shape ``[M, n_0, *positions]``.
        transform: Called with every hidden group and its values after the operators, for instance to apply dropout.

    Returns:
        Tensor of shape ``[M, n_L]``.
    """
    values: dict[str, Tensor] = {}
    result = inputs
    for group in space.topological_groups:
        layers = space.layers_into(group.name)
        if layers:
            sources = (torch.cat([values[name] for name in layer.sources], dim=1) for layer in layers)
            result = functools.reduce(torch.add, map(_apply_layer, layers, itertools.repeat(tensors), sources))
        else:
            result = inputs
        for operator in group.operators:
            result = apply_operator(operator, result)
        if transform is not None and group.role == "hidden":
            result = transform(group, result)
        values[group.name] = result
    return values[next(group.name for group in space.groups if group.role == "output")]


def accepts(space: Structure, shape: tuple[int, ...]) -> bool:
    """Whether an input of shape ``(n_0, *positions)`` runs through the network."""
    tensors = {param.name: torch.empty(param.shape, device="meta") for param in space.params}
    try:
        run_network(space, tensors, torch.empty(1, *shape, device="meta"))
    except RuntimeError:  # too few positions for the kernels, or not as many as a linear layer expects
        return False
    return True


def smallest_input_shape(space: Structure) -> tuple[int, ...]:
    """Shape ``(n_0, *positions)`` of the smallest square input that runs through the network."""
    group = next(group for group in space.groups if group.role == "input")
    dimensions = max((len(space.param(layer.weight).shape) - 2 for layer in space.layers if layer.weight is not None), default=0)
    for side in range(1, 257 if dimensions else 2):
        shape = (group.size, *[side] * dimensions)
        if accepts(space, shape):
            return shape
    raise ValueError(f"Found no square input that {space!r} accepts; pass inputs of the right shape yourself.")
