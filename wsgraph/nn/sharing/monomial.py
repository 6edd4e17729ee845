"""Linear layers, pooling and the model that are equivariant under the monomial group, for any weight space."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wsgraph.nn.heads import mlp_head
from wsgraph.nn.normalize import unit_vectors
from wsgraph.nn.registry import register_model
from wsgraph.space import ParameterGraph, Symmetry, WeightSpace

__all__ = ["MonomialLinear", "MonomialNFN", "MonomialPointwise", "MonomialPool"]


@dataclass(frozen=True)
class _Layout:
    """Which axes of a parameter carry symmetry.

    Movable axes stay; all others (input and output neurons, kernel positions) are features of an entry, like channels.
    """

    name: str
    movable: tuple[int, ...]
    fixed: tuple[int, ...]
    shape: tuple[int, ...]
    kind: tuple[tuple[tuple[str, ...], int], ...]  # groups and power of the scale along every movable axis
    symmetry: Symmetry  # factors that an entry may be multiplied with

    @property
    def features(self) -> int:
        return math.prod(self.shape[axis] for axis in self.fixed)


def _layouts(space: WeightSpace) -> tuple[_Layout, ...]:
    layouts = []
    for param in space.params:
        movable = []
        positive = sign = False
        for i, axis in enumerate(param.axes):
            groups = [space.group(name) for tie in axis.ties for name in tie.groups]
            if groups and all(space.is_permutable(group.permutation) for group in groups):
                movable.append(i)
                allowed = [space.class_symmetry(group.scale) for group in groups]
                positive |= any(symmetry.positive for symmetry in allowed)
                sign |= any(symmetry.sign for symmetry in allowed)
            elif any(space.is_permutable(group.permutation) for group in groups):
                raise ValueError(
                    f"Parameter {param.name!r} reads movable and fixed neurons along one axis; sharing layers need one or the other."
                )
        fixed = tuple(i for i in range(len(param.axes)) if i not in movable)
        kind = tuple((tuple(space.group(name).scale for name in tie.groups), tie.exponent) for i in movable for tie in param.axes[i].ties)
        layouts.append(_Layout(param.name, tuple(movable), fixed, param.logical_shape, kind, Symmetry(positive, sign)))
    return tuple(layouts)


def _to_entries(layout: _Layout, values: Tensor) -> Tensor:
    """From flat ``[B, size, C]`` to ``[B, *movable, fixed * C]``."""
    logical = values.unflatten(1, layout.shape)
    order = [0, *(1 + i for i in (*layout.movable, *layout.fixed)), logical.ndim - 1]
    return logical.permute(order).flatten(1 + len(layout.movable))


def _from_entries(layout: _Layout, entries: Tensor, channels: int) -> Tensor:
    """The inverse of :func:`_to_entries`."""
    order = [*layout.movable, *layout.fixed]
    logical = entries.unflatten(-1, (*(layout.shape[i] for i in layout.fixed), channels))
    inverse = [0, *(1 + order.index(i) for i in range(len(order))), logical.ndim - 1]
    return logical.permute(inverse).flatten(1, len(order))


class MonomialLinear(nn.Module):
    r"""Linear layer equivariant under permutations, scales and signs, from `Monomial-NFN <https://arxiv.org/abs/2409.11697>`_.

    Entries of parameters that transform alike are mixed by one matrix; nothing else may be mixed. With :math:`x_u` the features of entry
    :math:`u` over input and output neurons, kernel positions and channels, and :math:`T(p)` the parameters that transform as :math:`p`,

    .. math:: y^{(p)}_{u} = \sum_{q \in T(p)} A_{p q} \, x^{(q)}_{u} \quad (+ \tau_p \text{ where nothing transforms})

    For a chain this is: :math:`W^{(1)}` with :math:`b^{(1)}` per neuron, every middle weight and bias alone, :math:`W^{(L)}` over outputs,
    and :math:`b^{(L)}` as a plain affine map. The same rule serves residual networks: the space says which axes carry symmetry.

    Args:
        space: Weight space of the networks.
        in_channels: Channels per weight on the way in.
        out_channels: Channels per weight on the way out.

    Shapes:
        input: ``[B, P, in_channels]``. output: ``[B, P, out_channels]``.

    Raises:
        ValueError: If the number of channels of the input differs.

    Example:
        >>> space = WeightSpace.mlp([2, 8, 8, 1])
        >>> layer = MonomialLinear(space, 1, 4)
        >>> layer(space.sample(3)[..., None]).shape
        torch.Size([3, 105, 4])
    """

    symmetries = ("permutation", "scale", "sign")

    def __init__(self, space: WeightSpace, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.space, self.in_channels, self.out_channels = space, in_channels, out_channels
        kinds: dict[object, list[_Layout]] = {}
        for layout in _layouts(space):
            kinds.setdefault(layout.kind, []).append(layout)
        self.terms = tuple(tuple(layouts) for layouts in kinds.values())
        self.maps = nn.ModuleList(
            nn.Linear(
                sum(layout.features for layout in layouts) * in_channels,
                sum(layout.features for layout in layouts) * out_channels,
                bias=not layouts[0].movable,
            )
            for layouts in self.terms
        )

    def forward(self, features: Tensor) -> Tensor:
        if features.ndim != 3 or features.shape[1:] != (self.space.num_params, self.in_channels):
            raise ValueError(
                f"Expected 'features' of shape [B, {self.space.num_params}, {self.in_channels}] for {self!r} (got {list(features.shape)})."
            )
        outputs: dict[str, Tensor] = {}
        for layouts, linear in zip(self.terms, self.maps, strict=True):
            entries = [_to_entries(layout, features[:, self.space.slices[layout.name]]) for layout in layouts]
            mixed = linear(torch.cat(entries, dim=-1) if len(entries) > 1 else entries[0])
            sizes = [layout.features * self.out_channels for layout in layouts]
            for layout, part in zip(layouts, mixed.split(sizes, dim=-1), strict=True):
                outputs[layout.name] = _from_entries(layout, part, self.out_channels)
        return torch.cat([outputs[param.name] for param in self.space.params], dim=1)

    def extra_repr(self) -> str:
        return f"in_channels={self.in_channels}, out_channels={self.out_channels}"


class MonomialPointwise(nn.Module):
    r"""The nonlinearity between equivariant layers: ReLU where entries carry positive scales, tanh where they carry signs.

    ReLU commutes with positive factors only, an odd function with signs only; entries that carry both (a ReLU group beside a tanh group,
    identity groups) are left as they are, and entries that carry neither get ReLU.

    Args:
        space: Weight space of the networks.

    Shapes:
        input and output: ``[B, P, C]``.
    """

    symmetries = ("permutation", "scale", "sign")

    def __init__(self, space: WeightSpace) -> None:
        super().__init__()
        self.space = space
        self.symmetry_of = {layout.name: layout.symmetry for layout in _layouts(space)}

    def forward(self, features: Tensor) -> Tensor:
        functions = {(False, False): torch.relu, (True, False): torch.relu, (False, True): torch.tanh, (True, True): torch.clone}
        kinds = {functions[symmetry] for symmetry in self.symmetry_of.values()}
        if len(kinds) == 1:
            return kinds.pop()(features)
        return torch.cat([functions[self.symmetry_of[name]](features[:, part]) for name, part in self.space.slices.items()], dim=1)


class MonomialPool(nn.Module):
    r"""Pooling invariant under permutations, scales and signs, after `Monomial-NFN <https://arxiv.org/abs/2409.11697>`_.

    Every entry's vector :math:`x` over channels and kernel positions is normalised, mapped affinely and averaged over the movable axes:

    .. math:: N(x) = w \odot \frac{\bar{x}}{\lVert \bar{x} \rVert_2} + \beta, \qquad \bar{x} = |x| \text{ where signs act, else } x

    Input and output neurons keep their places; parameters that nothing moves (the last bias) enter as they are. Taking :math:`|x|` is what
    the published pool lacks to be invariant under signs.

    Args:
        space: Weight space of the networks.
        channels: Channels per weight.

    Shapes:
        input: ``[B, P, channels]``. output: ``[B, out_channels]``.
    """

    symmetries = ("permutation", "scale", "sign")

    def __init__(self, space: WeightSpace, channels: int) -> None:
        super().__init__()
        self.space, self.channels = space, channels
        self.layouts = _layouts(space)
        # Kernel positions and channels are normalised together; input and output neurons are separate entries.
        self.kernels = tuple(
            math.prod(size for size, axis in zip(layout.shape, param.axes, strict=True) if not axis.ties)
            for layout, param in zip(self.layouts, space.params, strict=True)
        )
        sizes = [kernel * channels if layout.movable else 0 for layout, kernel in zip(self.layouts, self.kernels, strict=True)]
        self.weights = nn.ParameterList(nn.Parameter(torch.ones(size)) for size in sizes)
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(size)) for size in sizes)
        self.out_channels = sum(layout.features for layout in self.layouts) * channels

    def forward(self, features: Tensor) -> Tensor:
        pooled = []
        for layout, kernel, weight, bias in zip(self.layouts, self.kernels, self.weights, self.biases, strict=True):
            entries = _to_entries(layout, features[:, self.space.slices[layout.name]])
            if layout.movable:
                vectors = entries.unflatten(-1, (-1, kernel * self.channels))
                if layout.symmetry.sign:
                    vectors = vectors.abs()
                vectors = unit_vectors(vectors) if layout.symmetry != (False, False) else vectors
                entries = (vectors * weight + bias).flatten(-2).flatten(1, len(layout.movable)).mean(1)
            pooled.append(entries)
        return torch.cat(pooled, dim=1)


@register_model("monomial", family="parameter sharing")
class MonomialNFN(nn.Module):
    """Monomial-NFN: linear equivariant layers, invariant pooling, MLP head (Tran et al. 2024).

    Args:
        space: Weight space of the networks.
        out_channels: Outputs per network.
        channels: Channels of the equivariant layers.
        hidden: Width of the two hidden layers of the head.
        dropout: Dropout rate in the head.

    Shapes:
        input: batch of ``B`` networks. output: ``[B, out_channels]``.

    Example:
        >>> space = WeightSpace.cnn([1, 16, 16, 16], [10])
        >>> sum(parameter.numel() for parameter in MonomialNFN(space, 1).parameters())
        254609
    """

    symmetries = ("permutation", "scale", "sign")

    def __init__(
        self, space: WeightSpace, out_channels: int, *, channels: Sequence[int] = (16, 16, 5), hidden: int = 200, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.space = space
        self.layers = nn.ModuleList(MonomialLinear(space, *pair) for pair in zip([1, *channels[:-1]], channels, strict=True))
        self.activation = MonomialPointwise(space)
        self.pool = MonomialPool(space, channels[-1])
        self.head = mlp_head([self.pool.out_channels, hidden, hidden, out_channels], dropout)

    def forward(self, batch: ParameterGraph) -> Tensor:
        batch.common_space(self.space, type(self).__name__)
        features = batch.thetas()[..., None]
        for i, layer in enumerate(self.layers):
            features = layer(features if i == 0 else self.activation(features))
        output: Tensor = self.head(self.pool(features))
        return output
