"""Models of the parameter-sharing family: layers with activations between them, then a pool and a head, or weights out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from wsgraph.nn.heads import mlp_head
from wsgraph.nn.registry import check_task, register_model
from wsgraph.nn.sharing.activation import Activation
from wsgraph.nn.sharing.layout import check_map_size, weights_of
from wsgraph.nn.sharing.linear import HNPLinear, MonomialLinear, NPLinear
from wsgraph.nn.sharing.magep import MAGEPInvariant, MAGEPLinear
from wsgraph.nn.sharing.pool import HNPPool, MonomialPool, NPPool
from wsgraph.nn.sharing.products import check_chain
from wsgraph.nn.sharing.statistics import StatFeaturizer
from wsgraph.space import Blocks, ParameterGraph, WeightSpace
from wsgraph.space.graph import check_graph
from wsgraph.symmetry import SYMMETRIES

__all__ = ["MAGEPNFN", "MLP", "STATNN", "HNPNet", "MonomialNFN", "NPNet"]

_TASKS = ("invariant", "equivariant")
# The published widths: predicting accuracy reads few channels with a wide head, editing weights has wide layers and no head.
_CHANNELS = {"invariant": (16, 16, 5), "equivariant": (128, 128, 128)}


class _SharingNet(nn.Module):
    """Equivariant layers, an activation between any two of them, then a pool and a head (invariant) or the weights (equivariant)."""

    symmetries: tuple[str, ...] = SYMMETRIES

    def __init__(
        self, space: WeightSpace, layers: Sequence[nn.Module], pool: nn.Module | None = None, head: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.space = space
        between = [Activation(cast(WeightSpace, getattr(layer, "out_space", layer.space)), None, self.symmetries) for layer in layers[:-1]]
        self.layers = nn.Sequential(layers[0], *(part for pair in zip(between, layers[1:], strict=True) for part in pair))
        self.pool, self.head = pool, head

    def forward(self, batch: ParameterGraph) -> Tensor:
        check_graph(batch).common_space(self.space, type(self).__name__)
        features = self.layers(batch)
        if self.head is None:
            return cast(Blocks, features).flatten()
        pooled = cast(Tensor, features if self.pool is None else self.pool(features))
        return cast(Tensor, self.head(pooled.flatten(1)))


class _LinearNet(_SharingNet):
    """Linear layers of given widths; the last one writes the weights, or a pool and a head read it."""

    default_channels = _CHANNELS

    def __init__(
        self,
        space: WeightSpace,
        out_channels: int,
        task: str,
        channels: Sequence[int] | None,
        hidden: int,
        dropout: float,
        *,
        layer: Callable[[int, int], nn.Module],
        pool: Callable[[int], Any],
    ) -> None:
        channels = _check(task, _CHANNELS.get(task, ()) if channels is None else channels)
        widths = [1, *channels, *([out_channels] if task == "equivariant" else [])]
        layers = [layer(*pair) for pair in itertools.pairwise(widths)]
        if task == "equivariant":
            super().__init__(space, layers)
            return
        pooling = pool(widths[-1])
        super().__init__(space, layers, pooling, mlp_head([widths[-1] * pooling.out_features, hidden, hidden, out_channels], dropout))


def _check(task: str, channels: Sequence[int]) -> Sequence[int]:
    check_task(task)
    if not channels or min(channels) < 1:
        raise ValueError(f"Expected 'channels' to be at least one positive width (got {list(channels)}).")
    return channels


@register_model("np", family="parameter sharing", tasks=_TASKS)
class NPNet(_LinearNet):
    """NP: linear layers equivariant under permutations of all neurons, mean pooling, MLP head (Zhou et al. 2023).

    Args:
        space: Weight space of the networks, a chain or any other.
        out_channels: Outputs per network (invariant) or per weight (equivariant).
        task: ``"invariant"`` or ``"equivariant"``.
        channels: Channels of the equivariant layers (default: 16, 16, 5 or, for weights out, 128, 128, 128 before the last layer).
        hidden: Width of the two hidden layers of the head.
        dropout: Dropout rate in the head.
        io_embed: Whether learned codes distinguish input and output neurons.

    Shapes:
        input: batch of ``B`` networks. output: ``[B, out_channels]`` or ``[B, P, out_channels]``.

    Example:
        >>> space = WeightSpace.cnn([1, 16, 16, 16], [10])
        >>> sum(parameter.numel() for parameter in NPNet(space, 1).parameters())
        1940433
    """

    symmetries = ("permutation",)

    def __init__(
        self,
        space: WeightSpace,
        out_channels: int,
        *,
        task: str = "invariant",
        channels: Sequence[int] | None = None,
        hidden: int = 1000,
        dropout: float = 0.0,
        io_embed: bool = False,
    ) -> None:
        def layer(inputs: int, outputs: int) -> NPLinear:
            return NPLinear(space, inputs, outputs, io_embed=io_embed)

        super().__init__(space, out_channels, task, channels, hidden, dropout, layer=layer, pool=lambda width: NPPool(space, width))


@register_model("hnp", family="parameter sharing", tasks=_TASKS)
class HNPNet(_LinearNet):
    """HNP: linear layers equivariant under permutations of hidden neurons, mean pooling, MLP head (Zhou et al. 2023).

    Args:
        space: Weight space of the networks, a chain or any other.
        out_channels: Outputs per network (invariant) or per weight (equivariant).
        task: ``"invariant"`` or ``"equivariant"``.
        channels: Channels of the equivariant layers (default: 16, 16, 5 or, for weights out, 128, 128, 128 before the last layer).
        hidden: Width of the two hidden layers of the head.
        dropout: Dropout rate in the head.
        reference: Use the published parameterisation of the layers, see :class:`HNPLinear`.

    Shapes:
        input: batch of ``B`` networks. output: ``[B, out_channels]`` or ``[B, P, out_channels]``.

    Example:
        >>> space = WeightSpace.cnn([1, 16, 16, 16], [10])
        >>> sum(parameter.numel() for parameter in HNPNet(space, 1, reference=True).parameters())
        2811743
    """

    symmetries = ("permutation",)

    def __init__(
        self,
        space: WeightSpace,
        out_channels: int,
        *,
        task: str = "invariant",
        channels: Sequence[int] | None = None,
        hidden: int = 1000,
        dropout: float = 0.0,
        reference: bool = False,
    ) -> None:
        def layer(inputs: int, outputs: int) -> HNPLinear:
            return HNPLinear(space, inputs, outputs, reference=reference)

        super().__init__(space, out_channels, task, channels, hidden, dropout, layer=layer, pool=lambda width: HNPPool(space, width))


@register_model("monomial", family="parameter sharing", tasks=_TASKS)
class MonomialNFN(_LinearNet):
    """Monomial-NFN: linear layers equivariant under permutations, scales and signs, invariant pooling, MLP head (Tran et al. 2024).

    Args:
        space: Weight space of the networks, a chain or any other.
        out_channels: Outputs per network (invariant) or per weight (equivariant).
        task: ``"invariant"`` or ``"equivariant"``.
        channels: Channels of the equivariant layers (default: 16, 16, 5 or, for weights out, 128, 128, 128 before the last layer).
        hidden: Width of the two hidden layers of the head.
        dropout: Dropout rate in the head.
        reference: Use the published pool, which signs change, and which has parameters that nothing reads.

    Shapes:
        input: batch of ``B`` networks. output: ``[B, out_channels]`` or ``[B, P, out_channels]``.

    Example:
        >>> space = WeightSpace.cnn([1, 16, 16, 16], [10])
        >>> [sum(p.numel() for p in MonomialNFN(space, 1, reference=reference).parameters()) for reference in (True, False)]
        [254619, 254609]
    """

    def __init__(
        self,
        space: WeightSpace,
        out_channels: int,
        *,
        task: str = "invariant",
        channels: Sequence[int] | None = None,
        hidden: int = 200,
        dropout: float = 0.0,
        reference: bool = False,
    ) -> None:
        def layer(inputs: int, outputs: int) -> MonomialLinear:
            return MonomialLinear(space, inputs, outputs)

        def pool(width: int) -> MonomialPool:
            return MonomialPool(space, width, reference=reference)

        super().__init__(space, out_channels, task, channels, hidden, dropout, layer=layer, pool=pool)
        if reference and task == "invariant":
            self.symmetries = ("permutation", "scale")


@register_model("magep", family="parameter sharing", tasks=_TASKS)
class MAGEPNFN(_SharingNet):
    """MAGEP-NFN: polynomial layers equivariant under permutations, scales and signs, an invariant polynomial, MLP head (Vo et al. 2025).

    A monomial layer folds the kernel positions of every weight into channels first, and a second one unfolds them where weights come out.
    Nothing is normalised, as published: features are products of weights, of degree up to twice the depth in every layer, so that weights
    of unusual magnitude leave the range of float32.

    Args:
        space: Weight space of the networks, a chain.
        out_channels: Outputs per network (invariant) or per weight (equivariant).
        task: ``"invariant"`` or ``"equivariant"``.
        channels: Channels of the polynomial layers.
        hidden: Width of the two hidden layers of the head.
        dropout: Dropout rate in the head.
        reference: Use the published parameterisation of the layers, see :class:`MAGEPLinear`.

    Shapes:
        input: batch of ``B`` networks. output: ``[B, out_channels]`` or ``[B, P, out_channels]``.

    Example:
        >>> space = WeightSpace.cnn([1, 16, 16, 16], [10])
        >>> sum(parameter.numel() for parameter in MAGEPNFN(space, 1, reference=True).parameters())
        1008521
    """

    def __init__(
        self,
        space: WeightSpace,
        out_channels: int,
        *,
        task: str = "invariant",
        channels: Sequence[int] = (20, 20),
        hidden: int = 500,
        dropout: float = 0.0,
        reference: bool = False,
    ) -> None:
        channels = _check(task, channels)
        check_chain(space, type(self).__name__)
        inner = space.without_kernels()
        layers: list[nn.Module] = [MonomialLinear(space, 1, channels[0], out_space=inner)]
        layers += [MAGEPLinear(inner, *pair, reference=reference) for pair in itertools.pairwise([channels[0], *channels])]
        width = channels[-1]
        if task == "equivariant":
            super().__init__(space, [*layers, MonomialLinear(inner, width, out_channels, out_space=space)])
        else:
            layers.append(MAGEPInvariant(inner, width, width, reference=reference))
            super().__init__(space, layers, head=mlp_head([width, hidden, hidden, out_channels], dropout))


@register_model("statnn", family="statistics")
class STATNN(nn.Module):
    """Statistics of every tensor, then an MLP (Unterthiner et al. 2020); sees permutations as no change, scales as any change.

    Args:
        space: Weight space of the networks.
        out_channels: Outputs per network.
        hidden: Width of the two hidden layers of the head.
        dropout: Dropout rate in the head.

    Shapes:
        input: batch of ``B`` networks. output: ``[B, out_channels]``.

    Example:
        >>> space = WeightSpace.cnn([1, 16, 16, 16], [10])
        >>> sum(parameter.numel() for parameter in STATNN(space, 1).parameters())
        80641
    """

    symmetries = ("permutation",)
    ignores_uncoupled_permutations = True

    def __init__(self, space: WeightSpace, out_channels: int, *, hidden: int = 256, dropout: float = 0.0) -> None:
        super().__init__()
        self.features = StatFeaturizer(space)
        self.head = mlp_head([self.features.out_features, hidden, hidden, out_channels], dropout)

    def forward(self, batch: ParameterGraph) -> Tensor:
        features: Tensor = self.head(self.features(batch).flatten(1))
        return features


@register_model("mlp", family="no sharing")
class MLP(nn.Module):
    """All weights as one vector, then an MLP: the baseline that knows no symmetry.

    Args:
        space: Weight space of the networks.
        out_channels: Outputs per network.
        hidden: Width of the two hidden layers.
        dropout: Dropout rate.

    Shapes:
        input: batch of ``B`` networks. output: ``[B, out_channels]``.

    Example:
        >>> space = WeightSpace.cnn([1, 16, 16, 16], [10])
        >>> sum(parameter.numel() for parameter in MLP(space, 1).parameters())
        1338625
    """

    symmetries = ()

    def __init__(self, space: WeightSpace, out_channels: int, *, hidden: int = 256, dropout: float = 0.0) -> None:
        super().__init__()
        self.space = space
        self.read = weights_of(space)
        count, largest = sum(param.size for param in self.read.values()), max(self.read.values(), key=lambda param: param.size)
        check_map_size("MLP", hidden, count, largest.name, largest.size)
        self.head = mlp_head([count, hidden, hidden, out_channels], dropout)

    def forward(self, batch: ParameterGraph) -> Tensor:
        check_graph(batch).common_space(self.space, type(self).__name__)
        thetas, params = batch.thetas(), self.space.params
        if len(self.read) < len(params):
            parts = zip(params, thetas.split([param.size for param in params], dim=1), strict=True)
            thetas = torch.cat([part for param, part in parts if param.name in self.read], dim=1)
        output: Tensor = self.head(thetas)
        return output
