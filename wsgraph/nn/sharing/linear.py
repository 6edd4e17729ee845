"""Linear parameter-sharing layers: each is a list of terms, read off which axes of the weight space carry symmetry."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from wsgraph.nn.sharing.layout import Layout, parameter_key
from wsgraph.nn.sharing.sharing_linear import SharingLinear, Source, Target, Term
from wsgraph.nn.sharing.terms import monomial_terms, permutation_terms, published_hnp_terms, published_sine_terms
from wsgraph.space import Blocks, WeightSpace
from wsgraph.symmetry import SYMMETRIES

__all__ = ["HNPLinear", "MonomialLinear", "MonomialSineLinear", "NPLinear", "Pointwise", "SharingLinear", "Source", "Target", "Term"]


class NPLinear(SharingLinear):
    r"""Linear layer equivariant under permutations of all neurons, inputs and outputs included (`Zhou et al. 2023 <https://arxiv.org/abs/2302.14040>`_).

    With :math:`W_{\bullet k}`, :math:`W_{j \bullet}` the means over rows and columns, every neuron :math:`k` collects
    :math:`u_k = [W^{(i)}_{k \bullet}, b^{(i)}_k, W^{(i+1)}_{\bullet k}]`, the network collects :math:`g`, the means of all tensors, and

    .. math::
        Y^{(i)}_{jk} = A^{(i)} W^{(i)}_{jk} + P^{(i)} u_k + Q^{(i)} u_j + G^{(i)} g, \qquad z^{(i)}_j = Q_b^{(i)} u_j + G_b^{(i)} g

    every map affine. This is the published parameterisation and every equivariant map of a chain. Kernel positions are features.

    Args:
        space: Weight space of the networks, a chain or any other.
        in_channels: Channels per weight on the way in.
        out_channels: Channels per weight on the way out.
        io_embed: Whether learned codes of the input and output neurons are added first, which leaves hidden neurons alone permutable.
        out_space: Weight space of the output (default: ``space``); it may differ in kernel sizes.

    Shapes:
        input: :class:`~wsgraph.space.Blocks` of ``in_channels``, a batch of networks (for one channel) or ``[B, P, in_channels]``.
        output: :class:`~wsgraph.space.Blocks` of ``out_channels``; ``.flatten()`` gives ``[B, P, out_channels]``.

    Raises:
        SpaceMismatchError: If the input belongs to another weight space.
        ValueError: If the number of channels of the input differs, or ``out_space`` differs in more than kernel sizes.

    Example:
        >>> from wsgraph import WeightSpace
        >>> space = WeightSpace.mlp([2, 8, 8, 1])
        >>> layer = NPLinear(space, 1, 4)
        >>> layer(space.batch(space.sample(3))).flatten().shape
        torch.Size([3, 105, 4])
    """

    symmetries: tuple[str, ...] = ("permutation",)

    def __init__(
        self, space: WeightSpace, in_channels: int, out_channels: int, *, io_embed: bool = False, out_space: WeightSpace | None = None
    ) -> None:
        super().__init__(space, in_channels, out_channels, permutation_terms, boundary=True, out_space=out_space)
        self.embeddings = nn.ParameterDict()
        if io_embed:
            for layer in space.layers:
                outward = space.group(layer.target).role == "output"
                inward = all(space.group(name).role == "input" for name in layer.sources)
                for name, sides in ((layer.weight, ("target", "source")), (layer.bias, ("target",))):
                    for axis, side in enumerate(sides):
                        if name is not None and (inward if side == "source" else outward):
                            entries = self.layout.entries[name]
                            shape = [entries.neurons[axis], in_channels * entries.features]
                            self.embeddings[_embedding(name, side)] = nn.Parameter(0.1 * torch.randn(shape))

    def read(self, features: Blocks) -> dict[str, Tensor]:
        entries = super().read(features)
        for name, values in entries.items():
            if (code := self._code(name, "target")) is not None:
                values = values + (code if values.ndim == 3 else code.T[:, :, None])
            if (code := self._code(name, "source")) is not None:
                values = values + code.T[:, None, :]
            entries[name] = values
        return entries

    def _code(self, name: str, side: str) -> Tensor | None:
        key = _embedding(name, side)
        return self.embeddings[key] if key in self.embeddings else None  # noqa: SIM401  (ParameterDict.get cannot say "none")


def _embedding(name: str, side: str) -> str:
    return parameter_key(f"{name}:{side}")


class HNPLinear(SharingLinear):
    r"""Linear layer equivariant under permutations of hidden neurons (`Zhou et al. 2023 <https://arxiv.org/abs/2302.14040>`_).

    As :class:`NPLinear`, but input and output neurons are distinguished: along their axes entries are features and are mapped by dense
    matrices, so that :math:`W^{(1)}`'s rows and :math:`W^{(L)}`'s columns are features of hidden neurons.

    .. math:: Y^{(1)}_j = P^{(1)} u_j + G^{(1)} g \qquad u_j = [W^{(1)}_j, b^{(1)}_j, W^{(2)}_{\bullet j}]

    The published layer lacks the term from :math:`b^{(L-1)}` to :math:`W^{(L)}` and carries means of :math:`W^{(1)}, W^{(L)}, b^{(L)}`
    beside the entries that they are means of; this one is complete and without redundant inputs.

    Args:
        space: Weight space of the networks, a chain or any other.
        in_channels: Channels per weight on the way in.
        out_channels: Channels per weight on the way out.
        reference: Use the published parameterisation (chains of at least two layers with biases).
        out_space: Weight space of the output (default: ``space``); it may differ in kernel sizes.

    Shapes:
        input: :class:`~wsgraph.space.Blocks` of ``in_channels``, a batch of networks (for one channel) or ``[B, P, in_channels]``.
        output: :class:`~wsgraph.space.Blocks` of ``out_channels``; ``.flatten()`` gives ``[B, P, out_channels]``.

    Raises:
        SpaceMismatchError: If the input belongs to another weight space.
        ValueError: If the number of channels of the input differs, or the published parameterisation does not exist for the space.

    Example:
        >>> from wsgraph import WeightSpace
        >>> space = WeightSpace.cnn([1, 4, 4], [10])
        >>> HNPLinear(space, 1, 4)(space.batch(space.sample(3))).weights[1].shape
        torch.Size([3, 4, 4, 9, 4])
    """

    symmetries: tuple[str, ...] = ("permutation",)

    def __init__(
        self, space: WeightSpace, in_channels: int, out_channels: int, *, reference: bool = False, out_space: WeightSpace | None = None
    ) -> None:
        terms = published_hnp_terms if reference else permutation_terms
        super().__init__(space, in_channels, out_channels, terms, out_space=out_space)


class MonomialLinear(SharingLinear):
    r"""Linear layer equivariant under permutations, scales and signs, from `Monomial-NFN <https://arxiv.org/abs/2409.11697>`_.

    Entries of parameters that transform alike are mixed by one matrix; nothing else may be mixed, and means or biases would break the
    symmetry. With :math:`T(p)` the parameters that transform as :math:`p`,

    .. math:: y^{(p)}_{u} = \sum_{q \in T(p)} A_{p q} \, x^{(q)}_{u} \quad (+ \tau_p \text{ where nothing transforms})

    For a chain this is: :math:`W^{(1)}` with :math:`b^{(1)}` per neuron, every middle weight and bias alone, :math:`W^{(L)}` over outputs,
    and :math:`b^{(L)}` as a plain affine map, which is the published layer. The same rule serves residual networks.

    Args:
        space: Weight space of the networks, a chain or any other.
        in_channels: Channels per weight on the way in.
        out_channels: Channels per weight on the way out.
        out_space: Weight space of the output (default: ``space``); it may differ in kernel sizes.

    Shapes:
        input: :class:`~wsgraph.space.Blocks` of ``in_channels``, a batch of networks (for one channel) or ``[B, P, in_channels]``.
        output: :class:`~wsgraph.space.Blocks` of ``out_channels``; ``.flatten()`` gives ``[B, P, out_channels]``.

    Raises:
        SpaceMismatchError: If the input belongs to another weight space.
        ValueError: If the number of channels of the input differs, or ``out_space`` differs in more than kernel sizes.

    Example:
        >>> from wsgraph import WeightSpace
        >>> space = WeightSpace.mlp([2, 8, 8, 1])
        >>> layer = MonomialLinear(space, 1, 4)
        >>> layer(space.batch(space.sample(3))).flatten().shape
        torch.Size([3, 105, 4])
    """

    symmetries = SYMMETRIES

    def __init__(self, space: WeightSpace, in_channels: int, out_channels: int, *, out_space: WeightSpace | None = None) -> None:
        super().__init__(space, in_channels, out_channels, monomial_terms, out_space=out_space)


class MonomialSineLinear(SharingLinear):
    r"""Linear layer equivariant under permutations and signs, but not scales, from `Monomial-NFN <https://arxiv.org/abs/2409.11697>`_.

    A sign is its own inverse, so that parameters whose factors are :math:`\varepsilon` and :math:`\varepsilon^{-1}` transform alike:
    :class:`MonomialLinear` with powers counted modulo two. For a chain this adds the maps between :math:`W^{(L)}` and :math:`b^{(L-1)}` per
    neuron, and for two layers those between :math:`W^{(1)}, b^{(1)}` and :math:`W^{(2)}`, which the published layer lacks.

    Args:
        space: Weight space of the networks, a chain or any other.
        in_channels: Channels per weight on the way in.
        out_channels: Channels per weight on the way out.
        reference: Use the published terms.
        out_space: Weight space of the output (default: ``space``); it may differ in kernel sizes.

    Shapes:
        input: :class:`~wsgraph.space.Blocks` of ``in_channels``, a batch of networks (for one channel) or ``[B, P, in_channels]``.
        output: :class:`~wsgraph.space.Blocks` of ``out_channels``; ``.flatten()`` gives ``[B, P, out_channels]``.

    Raises:
        SpaceMismatchError: If the input belongs to another weight space.
        ValueError: If the number of channels of the input differs, or ``out_space`` differs in more than kernel sizes.

    Example:
        >>> from wsgraph import WeightSpace
        >>> space = WeightSpace.mlp([2, 8, 8, 1], "sin(30)")
        >>> layer = MonomialSineLinear(space, 1, 4)
        >>> layer(space.batch(space.sample(3))).flatten().shape
        torch.Size([3, 105, 4])
    """

    symmetries: tuple[str, ...] = ("permutation", "sign")

    def __init__(
        self, space: WeightSpace, in_channels: int, out_channels: int, *, reference: bool = False, out_space: WeightSpace | None = None
    ) -> None:
        terms = published_sine_terms if reference else functools.partial(monomial_terms, signs_only=True)
        super().__init__(space, in_channels, out_channels, terms, out_space=out_space)


class Pointwise(SharingLinear):
    r"""Every weight and bias mapped alone, the ablation of `Zhou et al. 2023 <https://arxiv.org/abs/2302.14040>`_: no entry sees another.

    .. math:: Y^{(i)}_{jk} = A^{(i)} W^{(i)}_{jk} + \alpha^{(i)}, \qquad z^{(i)}_j = A_b^{(i)} b^{(i)}_j + \alpha_b^{(i)}

    Args:
        space: Weight space of the networks, a chain or any other.
        in_channels: Channels per weight on the way in.
        out_channels: Channels per weight on the way out.
        bias: Whether the maps are affine; without, the layer is equivariant under scales and signs too.
        out_space: Weight space of the output (default: ``space``); it may differ in kernel sizes.

    Shapes:
        input: :class:`~wsgraph.space.Blocks` of ``in_channels``, a batch of networks (for one channel) or ``[B, P, in_channels]``.
        output: :class:`~wsgraph.space.Blocks` of ``out_channels``; ``.flatten()`` gives ``[B, P, out_channels]``.

    Raises:
        SpaceMismatchError: If the input belongs to another weight space.
        ValueError: If the number of channels of the input differs, or ``out_space`` differs in more than kernel sizes.

    Example:
        >>> from wsgraph import WeightSpace
        >>> space = WeightSpace.mlp([2, 8, 1])
        >>> Pointwise(space, 1, 4)(space.batch(space.sample(3))).biases[0].shape
        torch.Size([3, 8, 4])
    """

    symmetries: tuple[str, ...] = ("permutation",)

    def __init__(
        self, space: WeightSpace, in_channels: int, out_channels: int, *, bias: bool = True, out_space: WeightSpace | None = None
    ) -> None:
        def terms(layout: Layout) -> list[Term]:
            whole = [(name, tuple(range(len(entries.movable)))) for name, entries in layout.entries.items()]
            return [Term((Source(*part),), (Target(*part),), bias) for part in whole]

        super().__init__(space, in_channels, out_channels, terms, boundary=True, out_space=out_space)
        if not bias:
            self.symmetries = SYMMETRIES
