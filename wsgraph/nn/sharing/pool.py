"""Pooling and normalisation of dense blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wsgraph.nn.normalize import unit_vectors
from wsgraph.nn.sharing.layout import Layout, SharingModule, mean_over, parameter_key
from wsgraph.space import Blocks, ParameterGraph, WeightSpace

__all__ = ["HNPPool", "MonomialNormalize", "MonomialPool", "NPPool"]

MODES = ("param_mul_L2", "L2", "L2_square", "L1")


class _MeanPool(SharingModule):
    """Mean of every parameter over its movable axes; what does not move is kept."""

    def __init__(self, space: WeightSpace, channels: int, *, boundary: bool) -> None:
        super().__init__(space, channels)
        self.layout = Layout(space, boundary=boundary, user=type(self).__name__)
        self.out_features = sum(entries.features for entries in self.layout.entries.values())

    def normalize(self, name: str, values: Tensor) -> Tensor:
        """What is averaged: the entries themselves, unless a pool changes them first."""
        return values

    def forward(self, features: Blocks | ParameterGraph | Tensor) -> Tensor:
        pooled = []
        for name, values in self.layout.read(self.as_blocks(features)).items():
            entries = self.layout.entries[name]
            count = len(entries.movable)
            axes = tuple(range(2, 2 + count)) if entries.rows_last else (1,) * count
            values = self.normalize(name, values)
            means = mean_over(values, axes) if axes else values
            pooled.append(means.unflatten(1, (self.in_channels, -1)))
        return torch.cat(pooled, dim=2)


class NPPool(_MeanPool):
    r"""Pooling invariant under permutations of all neurons (`Zhou et al. 2023 <https://arxiv.org/abs/2302.14040>`_).

    .. math:: W^{(i)} \mapsto \tfrac{1}{n_i n_{i-1}} \sum_{jk} W^{(i)}_{jk}, \qquad b^{(i)} \mapsto \tfrac{1}{n_i} \sum_j b^{(i)}_j

    at every kernel position, parameters in the order of ``space.params``.

    Args:
        space: Weight space of the networks.
        channels: Channels per weight.

    Shapes:
        input: :class:`~wsgraph.space.Blocks` of ``channels``. output: ``[B, channels, out_features]``.

    Raises:
        SpaceMismatchError: If the input belongs to another weight space.
        ValueError: If the number of channels of the input differs.

    Example:
        >>> from wsgraph import WeightSpace
        >>> space = WeightSpace.cnn([1, 16, 16, 16], [10])
        >>> NPPool(space, 1)(space.batch(space.sample(3))).shape
        torch.Size([3, 1, 32])
    """

    symmetries = ("permutation",)
    ignores_uncoupled_permutations = True  # means of whole tensors

    def __init__(self, space: WeightSpace, channels: int) -> None:
        super().__init__(space, channels, boundary=True)


class HNPPool(_MeanPool):
    r"""Pooling invariant under permutations of hidden neurons (`Zhou et al. 2023 <https://arxiv.org/abs/2302.14040>`_).

    As :class:`NPPool`, but input and output neurons keep their places:

    .. math::
        W^{(1)} \mapsto \tfrac{1}{n_1} \sum_j W^{(1)}_{jk}, \qquad W^{(L)} \mapsto \tfrac{1}{n_{L-1}} \sum_k W^{(L)}_{jk}, \qquad
        b^{(L)} \mapsto b^{(L)}

    Args:
        space: Weight space of the networks.
        channels: Channels per weight.

    Shapes:
        input: :class:`~wsgraph.space.Blocks` of ``channels``. output: ``[B, channels, out_features]``.

    Raises:
        SpaceMismatchError: If the input belongs to another weight space.
        ValueError: If the number of channels of the input differs.

    Example:
        >>> from wsgraph import WeightSpace
        >>> space = WeightSpace.cnn([1, 16, 16, 16], [10])
        >>> HNPPool(space, 1)(space.batch(space.sample(3))).shape
        torch.Size([3, 1, 50])
    """

    symmetries = ("permutation",)
    ignores_uncoupled_permutations = True

    def __init__(self, space: WeightSpace, channels: int) -> None:
        super().__init__(space, channels, boundary=False)


class _Normalizer(nn.Module):
    """Normalisation of the entries of every parameter, with its parameters."""

    def __init__(self, layout: Layout, channels: int, mode: str, reference: bool) -> None:
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"Expected 'mode' to be one of {', '.join(MODES)} (got {mode!r}).")
        self.layout, self.channels, self.mode, self.reference = layout, channels, mode, reference
        self.weights, self.biases = nn.ParameterDict(), nn.ParameterDict()
        for name, entries in layout.entries.items():
            if mode == "param_mul_L2" and (reference or entries.movable):
                size = channels * entries.positions
                self.weights[parameter_key(name)], self.biases[parameter_key(name)] = (
                    nn.Parameter(torch.ones(size)),
                    nn.Parameter(torch.zeros(size)),
                )

    def forward(self, name: str, values: Tensor) -> Tensor:
        entries = self.layout.entries[name]
        if not (entries.movable or self.reference):
            return values
        axis = 1 if entries.rows_last else values.ndim - 1
        vectors = values.unflatten(axis, (self.channels, entries.fixed_neurons, entries.positions))
        along = (axis, axis + 2)
        if self.reference:
            order = 1 if self.mode == "L1" and entries.positions > 1 else 2
            vectors = vectors / torch.linalg.vector_norm(vectors, order, along, keepdim=True).clamp(min=1e-12)
        else:
            if entries.symmetry.sign:
                vectors = vectors.abs()
            if any(entries.symmetry):
                vectors = unit_vectors(vectors, along, order=1 if self.mode == "L1" else 2)
        if self.mode == "L2_square":
            vectors = vectors.square()
        elif self.mode == "param_mul_L2":
            shape = [1] * vectors.ndim
            shape[axis], shape[axis + 2] = self.channels, entries.positions
            weight, bias = self.weights[parameter_key(name)], self.biases[parameter_key(name)]
            vectors = vectors * weight.view(shape) + bias.view(shape)
        return vectors.flatten(axis, axis + 2)


class MonomialNormalize(SharingModule):
    r"""Entries freed of their scale and sign: equivariant under permutations, unchanged by the rest (`Monomial-NFN <https://arxiv.org/abs/2409.11697>`_).

    With :math:`x` the vector of one entry over channels and kernel positions,

    .. math:: N(x) = w \odot \frac{\bar{x}}{\lVert \bar{x} \rVert_2} + \beta, \qquad \bar{x} = |x| \text{ where signs act, else } x

    Entries that nothing moves (the last bias) pass as they are, and what no factor acts on keeps its magnitude. The published
    normalisation lacks :math:`|x|`, so that signs change it in all modes but ``"L2_square"``.

    Args:
        space: Weight space of the networks.
        channels: Channels per weight.
        mode: ``"param_mul_L2"`` as above; ``"L2"`` without :math:`w, \beta`; ``"L2_square"`` the squares of that; ``"L1"`` divides by the
            sum of magnitudes.
        reference: Use the published form: no :math:`|x|`, every entry normalised with its norm bounded by 1e-12 from below, and ``"L1"``
            being ``"L2"`` for parameters without kernel positions.

    Shapes:
        input and output: :class:`~wsgraph.space.Blocks` of ``channels``.

    Raises:
        SpaceMismatchError: If the input belongs to another weight space.
        ValueError: If the mode is unknown or the number of channels of the input differs.

    Example:
        >>> from wsgraph import WeightSpace
        >>> space = WeightSpace.mlp([2, 8, 1], "tanh")
        >>> blocks = MonomialNormalize(space, 1)(space.batch(space.sample(3)))
        >>> bool((blocks.weights[1] == 1).all())
        True
    """

    def __init__(self, space: WeightSpace, channels: int, *, mode: str = "param_mul_L2", reference: bool = False) -> None:
        super().__init__(space, channels)
        self.layout = Layout(space, user="MonomialNormalize")
        self.normalizer = _Normalizer(self.layout, channels, mode, reference)
        if reference and mode != "L2_square":
            self.symmetries = ("permutation", "scale")

    def forward(self, features: Blocks | ParameterGraph | Tensor) -> Blocks:
        entries = self.layout.read(self.as_blocks(features))
        return self.layout.write({name: self.normalizer(name, values) for name, values in entries.items()}, self.in_channels)


class MonomialPool(_MeanPool):
    r"""Pooling invariant under permutations, scales and signs, after `Monomial-NFN <https://arxiv.org/abs/2409.11697>`_.

    .. math:: x^{(p)} \mapsto \text{mean}_u \, N(x^{(p)}_u)

    :class:`HNPPool` of the entries that :class:`MonomialNormalize` :math:`N` has freed of their scale and sign. Input and output neurons
    keep their places; parameters that nothing moves (the last bias) enter as they are.

    Args:
        space: Weight space of the networks.
        channels: Channels per weight.
        mode: ``"param_mul_L2"``, ``"L2"``, ``"L2_square"`` or ``"L1"``, see :class:`MonomialNormalize`.
        reference: Use the published form, which signs change, with its unused normalisation of the last bias.

    Shapes:
        input: :class:`~wsgraph.space.Blocks` of ``channels``. output: ``[B, channels, out_features]``.

    Raises:
        SpaceMismatchError: If the input belongs to another weight space.
        ValueError: If the mode is unknown or the number of channels of the input differs.

    Example:
        >>> from wsgraph import WeightSpace
        >>> space = WeightSpace.cnn([1, 16, 16, 16], [10])
        >>> MonomialPool(space, 1)(space.batch(space.sample(3))).shape
        torch.Size([3, 1, 50])
    """

    def __init__(self, space: WeightSpace, channels: int, *, mode: str = "param_mul_L2", reference: bool = False) -> None:
        super().__init__(space, channels, boundary=False)
        self.normalizer = _Normalizer(self.layout, channels, mode, reference)
        for name, entries in self.layout.entries.items():
            for values in (self.normalizer.weights, self.normalizer.biases):
                if not entries.movable and parameter_key(name) in values:
                    values[parameter_key(name)].requires_grad_(False)  # published, and never read
        if reference and mode != "L2_square":
            self.symmetries = ("permutation", "scale")

    def normalize(self, name: str, values: Tensor) -> Tensor:
        if not self.layout.entries[name].movable:
            return values
        normalized: Tensor = self.normalizer(name, values)
        return normalized
