"""Polynomial equivariant layers: products of weights along the network, evaluated with prefix and suffix products only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from wsgraph.nn.sharing.layout import SharingModule, autocast_together
from wsgraph.nn.sharing.products import (
    Chain,
    Sweep,
    bias_products,
    chain_of,
    columns_of,
    matrices_of,
    neuron_features,
    prefix_products,
    suffix_products,
)
from wsgraph.space import Blocks, ParameterGraph, WeightSpace

__all__ = ["MAGEPInvariant", "MAGEPLinear"]


class _Forms(nn.Module):
    r"""The matrices :math:`\Psi^{(s, t)}` and, as one more row, the vectors :math:`\psi^{(s, t)}` between the two ends of the network."""

    def __init__(
        self, chain: Chain, channels: int, pairs: Sequence[tuple[int, int]], *, traces: bool, redundant: bool, trainable: bool = True
    ) -> None:
        super().__init__()
        inputs, outputs = chain.n[0], chain.n[-1]
        self.redundant = redundant

        def draw(rows: int, vector: bool = True) -> nn.Parameter:
            std = torch.tensor([1 / (inputs * outputs)] * rows + [1 / outputs] * vector) / channels
            return nn.Parameter(torch.randn(channels, len(std), outputs) * std[:, None], requires_grad=trainable)

        self.forms = nn.ParameterDict({f"{s}_{t}": draw(inputs, chain.has_bias[s]) for s, t in pairs})
        # On the diagonal only the vectors act: traces of [WW]^(s,0)(L,s) are linear in [W]^(L,0), which has coefficients of its own.
        read = [s for s in range(1, chain.depth) if traces and chain.has_bias[s]]
        self.diagonal = nn.ParameterDict({str(s): draw(inputs * redundant) for s in read})

    def forward(self, s: int, t: int) -> Tensor:
        return cast(Tensor, self.forms[f"{s}_{t}"])

    @property
    def num_traces(self) -> int:
        return len(self.diagonal) * (1 + self.redundant)

    def traces(self, reached: dict[int, Tensor], whole: Tensor) -> list[Tensor]:
        r"""Tr [bW]^(s)(L,s) = psi^(s,s) [Wb]^(L,s) for every s with a bias, then the redundant tr [WW]^(s,0)(L,s) if they are kept.

        Args:
            reached: [Wb]^(L,s), ``[B, d, n_L]``, for every s with a bias.
            whole: [W]^(L,0), ``[B, d, n_L, n_0]``.
        """
        vectors = [(cast(Tensor, self.diagonal[str(s)])[:, -1] * column).sum(-1) for s, column in reached.items()]
        matrices = [(cast(Tensor, form)[:, :-1].mT * whole).sum((-2, -1)) for form in self.diagonal.values()] if self.redundant else []
        return vectors + matrices


class _PolynomialPairs(torch.autograd.Function):
    r"""The middle weights: :math:`A W` and, for every product of thin factors, :math:`C (L R)`, with :math:`A, C` mixing channels.

    Left factors mixed for all output channels, ``e n`` rows, times all right factors give the sum without ever forming a product. For many
    output channels or high ranks it is cheaper to form every product per channel. Either is formed again in the backward pass, so that only
    the thin factors are kept.
    """

    @staticmethod
    def forward(ctx: Any, forms_products: bool, weight: Tensor, mix: Tensor, *factors: Tensor) -> Tensor:
        ctx.forms_products = forms_products
        ctx.save_for_backward(weight, mix, *factors)
        batch, _, rows, columns = weight.shape
        result = torch.bmm(mix.expand(batch, -1, -1), weight.flatten(2))
        if forms_products:
            for left, right, coefficients in _triples(factors):
                result.baddbmm_(coefficients.expand(batch, -1, -1), (left @ right).flatten(2))
        else:
            lefts, rights, coefficients = _stacked(factors)
            mixed = lefts[:, None] * coefficients[:, None]
            result.view(batch, -1, columns).baddbmm_(mixed.flatten(3).flatten(1, 2), rights.flatten(1, 2))
        return result.view(batch, len(mix), rows, columns)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        (gradient,) = gradients
        weight, mix, *factors = ctx.saved_tensors
        batch = len(weight)
        flat, tall = gradient.flatten(2), gradient.flatten(1, 2)
        grad_mix = torch.bmm(flat, weight.flatten(2).mT).sum(0)
        grad_weight = torch.bmm(mix.mT.expand(batch, -1, -1), flat).view(weight.shape) if ctx.needs_input_grad[1] else None
        grad_factors: list[Tensor] = []
        if ctx.forms_products:
            for left, right, coefficients in _triples(factors):
                grad_product = torch.bmm(coefficients.mT.expand(batch, -1, -1), flat).view(weight.shape)
                grad_coefficients = torch.bmm(flat, (left @ right).flatten(2).mT).sum(0)
                grad_factors += [grad_product @ right.mT, left.mT @ grad_product, grad_coefficients]
            return (None, grad_weight, grad_mix, *grad_factors)
        lefts, rights, coefficients = _stacked(factors)
        mixed = lefts[:, None] * coefficients[:, None]
        grad_rights = torch.bmm(mixed.flatten(3).flatten(1, 2).mT, tall).view(rights.shape)
        grad_mixed = torch.bmm(tall, rights.flatten(1, 2).mT).view(mixed.shape)
        del mixed
        grad_lefts = (grad_mixed * coefficients[:, None]).sum(1).transpose(1, 2)
        grad_coefficients = (grad_mixed * lefts[:, None]).sum((0, 2))
        ranks = [left.shape[-1] for left, _, _ in _triples(factors)]
        parts = grad_lefts.split(ranks, dim=-1), grad_rights.split(ranks, dim=2), grad_coefficients.split(ranks, dim=-1)
        for grad_left, grad_right, grad_coefficient in zip(*parts, strict=True):
            grad_factors += [grad_left, grad_right, grad_coefficient.sum(-1)]
        return (None, grad_weight, grad_mix, *grad_factors)


def _triples(factors: Sequence[Tensor]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Left factors ``[B, d, n_out, r]``, right factors ``[B, d, r, n_in]`` and coefficients ``[e, d]``."""
    return list(zip(factors[::3], factors[1::3], factors[2::3], strict=True))


def _stacked(factors: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Left ``[B, n_out, d, ranks]``, right ``[B, d, ranks, n_in]`` and coefficients ``[e, d, ranks]`` of all products side by side."""
    triples = _triples(factors)
    lefts = torch.cat([left.transpose(1, 2) for left, _, _ in triples], dim=-1)
    rights = torch.cat([right for _, right, _ in triples], dim=2)
    return lefts, rights, torch.cat([mix.unsqueeze(-1).expand(-1, -1, left.shape[-1]) for left, _, mix in triples], dim=-1)


# Passing once over a tensor in memory, forward and backward, takes as long as about this many multiplications per entry.
_PASS = 40


class _PairTerm(nn.Module):
    """Coefficients of the middle weights of one layer, and the order in which their products are contracted.

    Args:
        in_channels: Channels on the way in.
        out_channels: Channels on the way out.
        rank: Rank of the product of weights, the number of neurons at the narrower end of the network.
        columns: Neurons that the weight reads.
        has_bias: Whether the layer has a bias.
    """

    def __init__(self, in_channels: int, out_channels: int, rank: int, columns: int, has_bias: bool) -> None:
        super().__init__()
        bound = (in_channels * (2 + has_bias)) ** -0.5
        shape = (out_channels, in_channels)
        self.weight = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
        self.weight_product = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
        self.bias_product = nn.Parameter(torch.empty(shape).uniform_(-bound, bound)) if has_bias else None
        ranks = rank + has_bias
        stacked = out_channels * ranks * (1 + _PASS / columns)
        formed = ranks + (1 + has_bias) * (out_channels + _PASS)
        self.forms_products = formed < stacked

    # Not forward(): a module's backward hooks would see the gradient of the weights, to which the sweep goes on to add in place.
    def mix(self, weight: Tensor, product: tuple[Tensor, Tensor], bias_product: tuple[Tensor, Tensor] | None) -> Tensor:
        """Mix the weight with products given by their left and right factors."""
        factors = [*product, self.weight_product]
        if bias_product is not None and self.bias_product is not None:
            factors += [*bias_product, self.bias_product]
        return cast(Tensor, _PolynomialPairs.apply(self.forms_products, *autocast_together(weight, self.weight, *factors)))


class MAGEPLinear(SharingModule):
    r"""Polynomial layer equivariant under permutations, scales and signs, from `MAGEP-NFN <https://arxiv.org/abs/2410.04213>`_.

    Linear in its coefficients, polynomial in the weights: with the products :math:`[W]^{(s, t)} = W^{(s)} \cdots W^{(t+1)}` and trainable
    :math:`\Psi, \psi` between the network's two ends, it mixes, per channel, all of

    .. math::
        [Wb]^{(s, t)} = [W]^{(s, t)} b^{(t)}, \qquad
        [bW]^{(s)(L, t)} = b^{(s)} \psi^{(s, t)} [W]^{(L, t)}, \qquad
        [WW]^{(s, 0)(L, t)} = [W]^{(s, 0)} \Psi^{(s, t)} [W]^{(L, t)}

    that transform as the weight or bias they are added to. No such product is ever formed in full: with prefixes :math:`P_s = [W]^{(s, 0)}`
    and suffixes :math:`S_t = [W]^{(L, t)}`, :math:`[WW]^{(s, 0)(L, t)} = P_s (\Psi S_t)` has rank :math:`n_0`. The cost grows linearly with
    depth, and what is kept for the backward pass, beside the input, with :math:`\sum_i n_i (n_0 + n_L)`.

    The published layer draws :math:`\Psi` at random and freezes it, stores matrices that nothing reads, and adds traces that are multiples
    of its other terms; here every parameter acts and is trained.

    Args:
        space: Weight space of the networks: a chain with one kernel position per weight, see :meth:`WeightSpace.without_kernels`.
        in_channels: Channels per weight on the way in.
        out_channels: Channels per weight on the way out.
        separate_bias_terms: Whether every :math:`[Wb]^{(s, t)}` has its own coefficient; the published layer sums them over t.
        reference: Use the published parameterisation, its frozen, unused and redundant parameters included.

    Shapes:
        input: :class:`~wsgraph.space.Blocks` of ``in_channels``, a batch of networks (for one channel) or ``[B, P, in_channels]``.
        output: :class:`~wsgraph.space.Blocks` of ``out_channels``; ``.flatten()`` gives ``[B, P, out_channels]``.

    Raises:
        SpaceMismatchError: If the input belongs to another weight space.
        ValueError: If the space is no chain or has kernels, the number of channels differs, or the input is in float16, whose range
            products of weights leave.

    Example:
        >>> from wsgraph import WeightSpace
        >>> space = WeightSpace.mlp([2, 8, 8, 1])
        >>> MAGEPLinear(space, 1, 4)(space.batch(space.sample(3))).flatten().shape
        torch.Size([3, 105, 4])
    """

    def __init__(
        self,
        space: WeightSpace,
        in_channels: int,
        out_channels: int,
        *,
        separate_bias_terms: bool = False,
        reference: bool = False,
    ) -> None:
        super().__init__(space, in_channels)
        if reference and separate_bias_terms:
            raise ValueError("The published layer sums the bias terms: use 'separate_bias_terms' or 'reference', not both.")
        self.out_channels, self.separate = out_channels, separate_bias_terms
        self.chain = chain = chain_of(space, "MAGEPLinear", reference)
        depth, n, has_bias = chain.depth, chain.n, chain.has_bias
        inputs, outputs = n[0], n[-1]
        used = [(i, i - 1) for i in range(1, depth + 1)] + [(i, 0) for i in range(2, depth + 1) if has_bias[i]]
        every = [(s, t) for s in range(1, depth + 1) for t in range(s)]
        self.forms = _Forms(
            chain, in_channels, every if reference else used, traces=has_bias[-1], redundant=reference, trainable=not reference
        )
        # Features of the dense maps: per neuron of the first group, per middle bias, per neuron of the last hidden group, of the last bias.
        products = [inputs * (2 + has_bias[i]) + has_bias[i] + self._bias_columns(i) for i in range(depth + 1)]
        self.first = nn.Linear(in_channels * products[1], out_channels * (inputs + has_bias[1]), bias=False)
        self.pairs = nn.ModuleList(
            _PairTerm(in_channels, out_channels, min(inputs, outputs), n[i - 1], has_bias[i]) for i in range(2, depth)
        )
        self.middle_biases = nn.ModuleList(
            nn.Linear(in_channels * products[i], out_channels, bias=False) if has_bias[i] else nn.Identity() for i in range(2, depth)
        )
        self.last = nn.Linear(in_channels * outputs * (2 + has_bias[-1]), out_channels * outputs, bias=False)
        ends = in_channels * (outputs * products[-1] + self.forms.num_traces)
        self.last_bias = nn.Linear(ends, out_channels * outputs) if has_bias[-1] else nn.Identity()

    def _bias_columns(self, i: int) -> int:
        earlier = sum(self.chain.has_bias[1:i])
        return earlier if self.separate else min(earlier, 1)

    def forward(self, features: Blocks | ParameterGraph | Tensor) -> Blocks:
        chain = self.chain
        depth, inputs, outputs = chain.depth, chain.n[0], chain.n[-1]
        matrices = matrices_of(self.as_blocks(features), "MAGEPLinear")
        swept = Sweep.apply(chain, self.separate, *autocast_together(*matrices.weights[1:], *matrices.biases[1:-1]))
        reached = (None, matrices.weight(1), *swept[: depth - 1])
        whole = reached[depth][..., :inputs]
        suffixes = (whole, *swept[depth - 1 : 2 * depth - 3], matrices.weight(depth))
        middle = dict(zip(range(2, depth), swept[2 * depth - 3 :], strict=True))

        def form(i: int, t: int) -> Tensor:
            return cast(Tensor, self.forms(i, t) @ suffixes[t])

        def pair_factors(i: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor] | None]:
            """Factors of [WW]^(i,0)(L,i-1), split where the network is narrower, and of [bW]^(i)(L,i-1)."""
            forms, suffix, products, bias = self.forms(i, i - 1), suffixes[i - 1], reached[i][..., :inputs], matrices.biases[i]
            through = forms[:, :inputs]
            product = (products, through @ suffix) if inputs <= outputs else (products @ through, suffix)
            return product, None if bias is None else (bias.unsqueeze(-1), forms[:, inputs:] @ suffix)

        def features_of(i: int) -> Tensor:
            return neuron_features(reached[i][..., :inputs], reached[i][..., inputs:], matrices.biases[i], form(i, 0))

        weights: list[Tensor | None] = []
        biases: list[Tensor | None] = []
        first = self.first(features_of(1)).split([self.out_channels * inputs, self.out_channels * chain.has_bias[1]], dim=-1)
        weights.append(first[0].unflatten(-1, (self.out_channels, inputs)).permute(0, 1, 3, 2).unsqueeze(3))
        biases.append(first[1] if chain.has_bias[1] else None)
        for i, pair, linear in zip(range(2, depth), self.pairs, self.middle_biases, strict=True):
            values = cast(_PairTerm, pair).mix(middle[i], *pair_factors(i))
            weights.append(values.permute(0, 2, 3, 1).unsqueeze(3))
            # The features are several times what they are made of, so they are made again in the backward pass.
            bias = (
                checkpoint(lambda i=i, linear=linear: linear(features_of(i)), use_reentrant=False, preserve_rng_state=False)
                if chain.has_bias[i]
                else None
            )
            biases.append(bias)
        # The same products, seen from the neurons before the last weight.
        right, bias = form(depth, depth - 1), matrices.biases[depth]
        parts = [matrices.weight(depth), whole @ right[:, :, :inputs]]
        if bias is not None:
            parts.append(bias.unsqueeze(-1) * right[:, :, inputs:])
        last = self.last(columns_of(torch.cat([part.mT for part in parts], dim=-1)))
        weights.append(last.unflatten(-1, (self.out_channels, outputs)).permute(0, 3, 1, 2).unsqueeze(3))
        biases.append(None)
        if chain.has_bias[depth]:
            traces = self.forms.traces(bias_products(matrices, suffixes), whole)
            last_bias = self.last_bias(torch.cat([features_of(depth).flatten(1), *traces], dim=-1))
            biases[-1] = last_bias.unflatten(-1, (self.out_channels, outputs)).transpose(1, 2)
        return Blocks.from_layers(self.space, weights, biases)


class MAGEPInvariant(SharingModule):
    r"""Polynomial layer invariant under permutations, scales and signs, from `MAGEP-NFN <https://arxiv.org/abs/2410.04213>`_.

    An affine map of the products of :class:`MAGEPLinear` that nothing moves: with :math:`G = [W]^{(L, 0)}` the product of all weights,

    .. math::
        G, \qquad G \Psi G, \qquad b^{(L)}, \qquad b^{(L)} \psi G, \qquad \sum_t [W]^{(L, t)} b^{(t)}, \qquad
        \psi^{(s)} [W]^{(L, s)} b^{(s)}

    The chain is multiplied from one end only, from the outputs where they are few, else from the inputs.

    Args:
        space: Weight space of the networks: a chain with one kernel position per weight, see :meth:`WeightSpace.without_kernels`.
        in_channels: Channels per weight.
        out_channels: Outputs per network.
        reference: Use the published parameterisation, with traces that are multiples of its other terms.

    Shapes:
        input: :class:`~wsgraph.space.Blocks` of ``in_channels``, a batch of networks (for one channel) or ``[B, P, in_channels]``.
        output: ``[B, out_channels]``.

    Raises:
        SpaceMismatchError: If the input belongs to another weight space.
        ValueError: If the space is no chain or has kernels, the number of channels differs, or the input is in float16, whose range
            products of weights leave.

    Example:
        >>> from wsgraph import WeightSpace
        >>> space = WeightSpace.mlp([2, 8, 8, 1])
        >>> MAGEPInvariant(space, 1, 4)(space.batch(space.sample(3))).shape
        torch.Size([3, 4])
    """

    def __init__(self, space: WeightSpace, in_channels: int, out_channels: int, *, reference: bool = False) -> None:
        super().__init__(space, in_channels)
        self.out_channels = out_channels
        self.chain = chain = chain_of(space, "MAGEPInvariant", reference)
        depth, inputs, outputs = chain.depth, chain.n[0], chain.n[-1]
        hidden = sum(chain.has_bias[1:depth])
        self.forms = _Forms(chain, in_channels, [(depth, 0)], traces=True, redundant=reference)
        self.from_outputs = outputs <= inputs + hidden / 2
        features = outputs * (inputs * (2 + chain.has_bias[-1]) + chain.has_bias[-1] + min(hidden, 1)) + self.forms.num_traces
        self.linear = nn.Linear(in_channels * features, out_channels)

    def forward(self, features: Blocks | ParameterGraph | Tensor) -> Tensor:
        chain = self.chain
        depth, inputs = chain.depth, chain.n[0]
        matrices = matrices_of(self.as_blocks(features), "MAGEPInvariant")
        if self.from_outputs:
            suffixes = suffix_products(chain, matrices)
            whole = cast(Tensor, suffixes[1]) @ matrices.weight(1)
            reached = bias_products(matrices, suffixes)
        else:
            whole, *separate = prefix_products(chain, matrices, separate=True)[-1].split([inputs, *[1] * len(self.forms.diagonal)], dim=-1)
            hidden = [s for s in range(1, depth) if chain.has_bias[s]]
            reached = {s: column.squeeze(-1) for s, column in zip(hidden, separate, strict=True)}
        sums = [torch.stack(list(reached.values()), dim=-1).sum(-1, keepdim=True)] if reached else []
        columns = torch.cat([whole[..., :0], *sums], dim=-1)
        products = neuron_features(whole, columns, matrices.biases[depth], self.forms(depth, 0) @ whole)
        result: Tensor = self.linear(torch.cat([products.flatten(1), *self.forms.traces(reached, whole)], dim=-1))
        return result
