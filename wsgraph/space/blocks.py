"""Dense layer blocks: the view of a batch that parameter-sharing layers read and write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from wsgraph.space.base import BaseSpace as WeightSpace
    from wsgraph.space.parts import Layer

__all__ = ["Blocks", "make_blocks"]


@dataclass(frozen=True)
class Blocks:
    """The weights and biases of a batch of networks of one space, layer by layer.

    Args:
        space: The weight space.
        weights: Per layer a tensor ``[B, n_out, n_in, K]`` or, with channels, ``[B, n_out, n_in, K, C]``; ``None`` for an identity layer.
        biases: Per layer a tensor ``[B, n_out]`` or ``[B, n_out, C]``; ``None`` where the layer has no bias.
    """

    space: WeightSpace
    weights: tuple[Tensor | None, ...]
    biases: tuple[Tensor | None, ...]

    def map(self, function: Callable[[Tensor], Tensor]) -> Blocks:
        """Apply a function to every tensor."""
        weights = tuple(None if w is None else function(w) for w in self.weights)
        return Blocks(self.space, weights, tuple(None if b is None else function(b) for b in self.biases))

    def with_channels(self) -> Blocks:
        """The same blocks with a last channel axis, added as a view where there is none."""
        first = next(w for w in self.weights if w is not None)
        return self if first.ndim == 5 else self.map(lambda tensor: tensor.unsqueeze(-1))

    def flatten(self) -> Tensor:
        """Flat form ``[B, P]``, or ``[B, P, C]`` with channels: the inverse of :meth:`WeightSpace.blocks`."""
        parts: dict[str, Tensor] = {}
        for layer, weight, bias in zip(self.space.layers, self.weights, self.biases, strict=True):
            if weight is not None and layer.weight is not None:
                order = _order(self.space, layer)
                sizes = [self.space.param(layer.weight).logical_shape[i] for i in order]
                logical = weight.reshape(weight.shape[0], *sizes, *weight.shape[4:])
                inverse = [1 + order.index(i) for i in range(len(order))]
                channel = [logical.ndim - 1] if weight.ndim == 5 else []
                parts[layer.weight] = logical.permute(0, *inverse, *channel).flatten(1, len(order))
            if bias is not None and layer.bias is not None:
                parts[layer.bias] = bias
        return torch.cat([parts[param.name] for param in self.space.params], dim=1)


def _order(space: WeightSpace, layer: Layer) -> list[int]:
    target, source, kernel = space.weight_axes(layer)
    return [target, source, *kernel]


def make_blocks(space: WeightSpace, thetas: Tensor) -> Blocks:
    """Split ``thetas`` ``[B, P]`` or ``[B, P, C]`` into views per layer."""
    space.check_thetas(thetas[..., 0] if isinstance(thetas, Tensor) and thetas.ndim > 2 else thetas)
    batch, channels = thetas.shape[0], thetas.shape[2:]
    # One split rather than a slice each: its gradient is one concatenation, not a tensor of all weights per slice.
    parts = dict(zip(space.slices, thetas.split([param.size for param in space.params], dim=1), strict=True))
    weights: list[Tensor | None] = []
    biases: list[Tensor | None] = []
    for layer, edges in zip(space.layers, space.topology.edges, strict=True):
        weight = None
        if layer.weight is not None:
            order = _order(space, layer)
            logical = parts[layer.weight].unflatten(1, space.param(layer.weight).logical_shape)
            logical = logical.permute(0, *(1 + i for i in order), *range(1 + len(order), logical.ndim))
            weight = logical.reshape(batch, edges.num_targets, edges.num_sources, edges.num_positions, *channels)
        weights.append(weight)
        biases.append(None if layer.bias is None else parts[layer.bias])
    return Blocks(space, tuple(weights), tuple(biases))
