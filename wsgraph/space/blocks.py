"""Dense blocks: the view of a batch that parameter-sharing layers read and write."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from wsgraph.space.base import BaseSpace
    from wsgraph.space.parts import Layer

__all__ = ["Blocks", "make_blocks"]


@dataclass(frozen=True, eq=False)
class Blocks:
    """The parameters of a batch of networks of one space, each with its logical axes.

    Of a network of layers, :attr:`weights` and :attr:`biases` are the same tensors layer by layer.

    Args:
        space: The weight space.
        tensors: By name of the parameter a tensor ``[B, *logical_shape]`` or, with channels,
            ``[B, *logical_shape, C]``, in the order of ``space.params``.

    Raises:
        ValueError: If a parameter has no tensor.
    """

    space: BaseSpace
    tensors: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        for param in self.space.params:
            if param.name not in self.tensors:
                raise ValueError(f"The blocks hold no tensor for the parameter {param.name!r}.")

    @classmethod
    def from_layers(cls, space: BaseSpace, weights: Sequence[Tensor | None], biases: Sequence[Tensor | None]) -> Blocks:
        """Blocks from what they hold layer by layer, as views.

        Args:
            space: The weight space, of a network of layers.
            weights: One per layer, as :attr:`weights`.
            biases: One per layer, as :attr:`biases`.

        Returns:
            The blocks; of a parameter that several layers share, those of the first.

        Raises:
            ValueError: If there are more or fewer than layers, a shape is another one, or a
                parameter is missing.
        """
        if len(weights) != len(space.layers) or len(biases) != len(space.layers):
            raise ValueError(f"Expected blocks of {len(space.layers)} layers (got {len(weights)} weights, {len(biases)} biases).")
        tensors: dict[str, Tensor] = {}
        for layer, weight, bias in zip(space.layers, weights, biases, strict=True):
            if layer.weight is not None and weight is not None:
                tensors.setdefault(layer.weight, _logical(space, layer, weight))
            if layer.bias is not None and bias is not None:
                if bias.shape[1] != space.param(layer.bias).size:
                    expected = f"[B, {space.param(layer.bias).size}, C]"
                    raise ValueError(f"Expected the blocks of layer {layer.name!r} to have a bias {expected} (got {list(bias.shape)}).")
                tensors.setdefault(layer.bias, bias)
        return cls(space, {param.name: tensors[param.name] for param in space.params if param.name in tensors})

    @cached_property
    def weights(self) -> tuple[Tensor | None, ...]:
        """Per layer a tensor ``[B, n_out, n_in, K]`` or ``[B, n_out, n_in, K, C]``, or ``None`` for an identity.

        Raises:
            SpaceMismatchError: If the network has parameters outside layers.
        """
        self.space.check_layers("Blocks.weights")
        return tuple(None if layer.weight is None else self._weight(layer) for layer in self.space.layers)

    @cached_property
    def biases(self) -> tuple[Tensor | None, ...]:
        """Per layer a tensor ``[B, n_out]`` or ``[B, n_out, C]``, or ``None`` where the layer has no bias.

        Raises:
            SpaceMismatchError: If the network has parameters outside layers.
        """
        self.space.check_layers("Blocks.biases")
        return tuple(None if layer.bias is None else self.tensors[layer.bias] for layer in self.space.layers)

    def _weight(self, layer: Layer) -> Tensor:
        assert layer.weight is not None
        tensor, order = self.tensors[layer.weight], _order(self.space, layer)
        ordered = tensor.permute(0, *(1 + axis for axis in order), *range(1 + len(order), tensor.ndim))
        return ordered.flatten(3, len(order)) if len(order) > 2 else ordered.unsqueeze(3)

    def map(self, function: Callable[[Tensor], Tensor]) -> Blocks:
        """Apply a function to every tensor."""
        return Blocks(self.space, {name: function(tensor) for name, tensor in self.tensors.items()})

    def with_channels(self) -> Blocks:
        """The same blocks with a last channel axis, added as a view where there is none."""
        plain = any(self.tensors[param.name].ndim == 1 + len(param.axes) for param in self.space.params[:1])
        return self.map(lambda tensor: tensor.unsqueeze(-1)) if plain else self

    def flatten(self) -> Tensor:
        """Flat form ``[B, P]``, or ``[B, P, C]`` with channels: the inverse of :meth:`WeightSpace.blocks`."""
        tensors = [(param, self.tensors[param.name]) for param in self.space.params]
        return torch.cat([t.reshape(len(t), param.size, *t.shape[1 + len(param.axes) :]) for param, t in tensors], dim=1)


def _order(space: BaseSpace, layer: Layer) -> list[int]:
    target, source, kernel = space.weight_axes(layer)
    return [target, source, *kernel]


def _logical(space: BaseSpace, layer: Layer, weight: Tensor) -> Tensor:
    """A weight ``[B, n_out, n_in, K, *channels]`` with the logical axes of its parameter."""
    assert layer.weight is not None
    order, shape = _order(space, layer), space.param(layer.weight).logical_shape
    sizes = [shape[axis] for axis in order]
    expected = [*sizes[:2], space.param(layer.weight).size // (sizes[0] * sizes[1])]
    if list(weight.shape[1:4]) != expected:
        raise ValueError(
            f"Expected the blocks of layer {layer.name!r} to have a weight [B, {', '.join(map(str, expected))}, C] "
            f"(got {list(weight.shape)})."
        )
    split = weight.reshape(len(weight), *sizes, *weight.shape[4:])
    inverse = [1 + order.index(axis) for axis in range(len(order))]
    return split.permute(0, *inverse, *range(1 + len(order), split.ndim))


def make_blocks(space: BaseSpace, thetas: Tensor) -> Blocks:
    """Split ``thetas`` ``[B, P]`` or ``[B, P, C]`` into views per parameter."""
    space.check_thetas(thetas[..., 0] if isinstance(thetas, Tensor) and thetas.ndim > 2 else thetas)
    # One split rather than a slice each: its gradient is one concatenation, not a tensor of all weights per slice.
    parts = thetas.split([param.size for param in space.params], dim=1)
    views = (part.unflatten(1, param.logical_shape) for param, part in zip(space.params, parts, strict=True))
    return Blocks(space, dict(zip(space.slices, views, strict=True)))
