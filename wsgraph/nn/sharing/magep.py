"""Polynomial equivariant layers: products of weights along the network, evaluated with prefix and suffix products only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from wsgraph.nn.sharing.layout import SharingModule, autocast_together
from wsgraph.space import Blocks, ParameterGraph, WeightSpace

__all__ = ["MAGEPInvariant", "MAGEPLinear"]


class _Chain(NamedTuple):
    """Sizes of a chain of dense layers, 1-based as in the formulas: layer ``i`` maps ``n[i - 1]`` to ``n[i]`` neurons."""

    n: tuple[int, ...]
    has_bias: tuple[bool, ...]  # has_bias[0] is unused

    @property
    def depth(self) -> int:
        return len(self.n) - 1


def check_chain(space: WeightSpace, user: str) -> None:
    """Raise unless a network is a chain of at least two layers.

    Raises:
        ValueError: Saying what is in the way.
    """
    if space.layers and space.is_chain and len(space.layers) > 1:
        return
    why = f" It is not written as layers, because {space.unlayered}." if space.unlayered else ""
    why += "" if space.layers else " The model monomial reads it with the same symmetries."
    raise ValueError(f"{user} needs a chain of at least two layers, whose weights it multiplies along the network (got {space!r}).{why}")


def _chain(space: WeightSpace, user: str, reference: bool) -> _Chain:
    check_chain(space, user)
    if any(edges.num_positions != 1 for edges in space.topology.edges):
        raise ValueError(
            f"{user} needs one kernel position per weight (got {space!r}). Fold the kernels first with "
            f"MonomialLinear(space, channels, channels, out_space=space.without_kernels()) and build {user} for space.without_kernels()."
        )
    if reference and any(layer.bias is None for layer in space.layers):
        raise ValueError(f"The published {user} needs a bias in every layer (got {space!r}).")
    return _Chain(tuple(group.size for group in space.groups), (False, *(layer.bias is not None for layer in space.layers)))


class _Matrices(NamedTuple):
    """Weights ``[B, d, n_i, n_{i-1}]`` and biases ``[B, d, n_i]`` (None where absent) of every layer, 1-based."""

    weights: tuple[Tensor | None, ...]
    biases: tuple[Tensor | None, ...]

    def weight(self, i: int) -> Tensor:
        return cast(Tensor, self.weights[i])


def _matrices(blocks: Blocks, user: str) -> _Matrices:
    first = next(weight for weight in blocks.weights if weight is not None)
    cast_to = torch.get_autocast_dtype(first.device.type) if torch.is_autocast_enabled(first.device.type) else first.dtype
    if torch.float16 in (first.dtype, cast_to) and first.dtype != torch.float64:
        raise ValueError(f"{user} multiplies the weights of all layers, which overflows float16 beyond 65,504; use bfloat16 or float32.")
    weights = [None if weight is None else weight.squeeze(3).permute(0, 3, 1, 2) for weight in blocks.weights]
    biases = [None if bias is None else bias.transpose(1, 2) for bias in blocks.biases]
    return _Matrices((None, *weights), (None, *biases))


def _columns(values: Tensor) -> Tensor:
    """``[B, d, n, c]`` to one vector of features per neuron, ``[B, n, d * c]``."""
    return values.transpose(1, 2).flatten(2)


def _extended(reached: Tensor, bias: Tensor | None, inputs: int, separate: bool) -> Tensor:
    r"""What the next weight is applied to: :math:`[P_s \mid V_s + b^{(s)}]`, or the bias as a column of its own."""
    if bias is None:
        return reached
    if separate or reached.shape[-1] == inputs:
        return torch.cat([reached, bias.unsqueeze(-1)], dim=-1)
    return torch.cat([reached[..., :-1], reached[..., -1:] + bias.unsqueeze(-1)], dim=-1)


def _prefixes(chain: _Chain, matrices: _Matrices, separate: bool) -> list[Tensor]:
    r"""Products :math:`T_s = [P_s \mid V_s]` for s = 1, ..., L: :math:`P_s = [W]^{(s, 0)}` and the bias terms :math:`[Wb]^{(s, t)}`, t < s.

    ``V_s`` holds the sum of the bias terms, or one column for each if they are kept separate; none where no earlier layer has a bias.
    """
    reached = [matrices.weight(1)]
    for s in range(2, chain.depth + 1):
        reached.append(matrices.weight(s) @ _extended(reached[-1], matrices.biases[s - 1], chain.n[0], separate))
    return reached


def _neuron_features(products: Tensor, columns: Tensor, bias: Tensor | None, form: Tensor) -> Tensor:
    """P_i, [WW]^(i,0)(L,0), [bW]^(i)(L,0), b^(i) and the [Wb]^(i,t), per neuron of layer i.

    Args:
        products: P_i, ``[B, d, n_i, n_0]``.
        columns: The [Wb]^(i,t), ``[B, d, n_i, c]``.
        bias: b^(i), ``[B, d, n_i]``, if the layer has one.
        form: Psi G and, with a bias, psi G below it, ``[B, d, n_0 + 1, n_0]``.
    """
    inputs = products.shape[-1]
    parts = [products, products @ form[:, :, :inputs]]
    if bias is not None:
        parts += [bias.unsqueeze(-1) * form[:, :, inputs:], bias.unsqueeze(-1)]
    return _columns(torch.cat([*parts, columns], dim=-1))


def _suffixes(chain: _Chain, matrices: _Matrices) -> list[Tensor | None]:
    r"""Products :math:`S_t = [W]^{(L, t)}` for t = L - 1 down to 1, at position t of the list."""
    result: list[Tensor | None] = [None] * chain.depth
    product = result[chain.depth - 1] = matrices.weight(chain.depth)
    for t in range(chain.depth - 2, 0, -1):
        product = result[t] = product @ matrices.weight(t + 1)
    return result


def _bias_products(matrices: _Matrices, suffixes: Sequence[Tensor | None]) -> dict[int, Tensor]:
    """[Wb]^(L,s) = S_s b^(s), ``[B, d, n_L]``, for every hidden layer with a bias."""
    pairs = ((s, suffixes[s], matrices.biases[s]) for s in range(1, len(suffixes)))
    return {s: (suffix @ bias.unsqueeze(-1)).squeeze(-1) for s, suffix, bias in pairs if suffix is not None and bias is not None}


class _Sweep(torch.autograd.Function):
    r"""All prefix products :math:`T_2, \ldots, T_L`, all suffix products :math:`S_{L-2}, \ldots, S_1`, and the middle weights once more.

    The gradient of a middle weight is that of its other uses plus outer products of thin factors from both sweeps. Passing the weights
    through lets the latter be added in place to the former: one matrix per layer is filled in place of three.
    """

    @staticmethod
    def forward(ctx: Any, chain: _Chain, separate: bool, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        matrices = _Matrices((None, *tensors[: chain.depth]), (None, *tensors[chain.depth :]))
        reached = _prefixes(chain, matrices, separate)[1:]
        suffixes = cast(list[Tensor], _suffixes(chain, matrices)[1 : chain.depth - 1])
        ctx.chain, ctx.separate = chain, separate
        ctx.save_for_backward(*tensors, *reached, *suffixes)
        ctx.set_materialize_grads(False)
        middle = [matrices.weight(s).view_as(matrices.weight(s)) for s in range(2, chain.depth)]
        return (*reached, *suffixes, *middle)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        chain, depth = ctx.chain, ctx.chain.depth
        saved = ctx.saved_tensors
        weights, biases = (None, *saved[:depth]), (None, *saved[depth : 2 * depth - 1])
        reached = (None, weights[1], *saved[2 * depth - 1 : 3 * depth - 2])
        suffixes = (None, *saved[3 * depth - 2 :], weights[depth])
        grad_reached = [None, None, *gradients[: depth - 1]]
        grad_suffixes = [None, *gradients[depth - 1 : 2 * depth - 3], None]
        grad_weights = [None, None, *gradients[2 * depth - 3 :], None]
        grad_biases: list[Tensor | None] = [None] * depth
        left: list[list[Tensor]] = [[] for _ in range(depth + 1)]
        right: list[list[Tensor]] = [[] for _ in range(depth + 1)]
        for s in range(depth, 1, -1):
            gradient = grad_reached[s]
            if gradient is None:
                continue
            extended = _extended(reached[s - 1], biases[s - 1], chain.n[0], ctx.separate)
            left[s].append(gradient)
            right[s].append(extended.mT)
            passed = weights[s].mT @ gradient
            if biases[s - 1] is not None:
                grad_biases[s - 1] = passed[..., -1]
            passed = passed[..., : reached[s - 1].shape[-1]]
            grad_reached[s - 1] = passed if grad_reached[s - 1] is None else grad_reached[s - 1] + passed
        for t in range(1, depth - 1):
            gradient = grad_suffixes[t]
            if gradient is None:
                continue
            left[t + 1].append(suffixes[t + 1].mT)
            right[t + 1].append(gradient)
            passed = gradient @ weights[t + 1].mT
            grad_suffixes[t + 1] = passed if grad_suffixes[t + 1] is None else grad_suffixes[t + 1] + passed
        grad_weights[1], grad_weights[depth] = grad_reached[1], grad_suffixes[depth - 1]
        for s in range(2, depth + 1):
            if left[s]:
                grad_weights[s] = _add_product(grad_weights[s], torch.cat(left[s], dim=-1), torch.cat(right[s], dim=-2))
        return (None, None, *grad_weights[1:], *grad_biases[1:])


def _add_product(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    """``total + left @ right``, in place unless gradients are taken of it: nothing else holds the gradient of a weight passed through."""
    if total is None:
        return left @ right
    if torch.is_grad_enabled():
        return total + left @ right
    total = total.contiguous()
    total.view(-1, *total.shape[2:]).baddbmm_(left.flatten(0, 1), right.flatten(0, 1))
    return total


class _Forms(nn.Module):
    r"""The matrices :math:`\Psi^{(s, t)}` and, as one more row, the vectors :math:`\psi^{(s, t)}` between the two ends of the network."""

    def __init__(
        self, chain: _Chain, channels: int, pairs: Sequence[tuple[int, int]], *, traces: bool, redundant: bool, trainable: bool = True
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
        self.chain = chain = _chain(space, "MAGEPLinear", reference)
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
        matrices = _matrices(self.as_blocks(features), "MAGEPLinear")
        swept = _Sweep.apply(chain, self.separate, *autocast_together(*matrices.weights[1:], *matrices.biases[1:-1]))
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

        def neuron_features(i: int) -> Tensor:
            return _neuron_features(reached[i][..., :inputs], reached[i][..., inputs:], matrices.biases[i], form(i, 0))

        weights: list[Tensor | None] = []
        biases: list[Tensor | None] = []
        first = self.first(neuron_features(1)).split([self.out_channels * inputs, self.out_channels * chain.has_bias[1]], dim=-1)
        weights.append(first[0].unflatten(-1, (self.out_channels, inputs)).permute(0, 1, 3, 2).unsqueeze(3))
        biases.append(first[1] if chain.has_bias[1] else None)
        for i, pair, linear in zip(range(2, depth), self.pairs, self.middle_biases, strict=True):
            values = cast(_PairTerm, pair).mix(middle[i], *pair_factors(i))
            weights.append(values.permute(0, 2, 3, 1).unsqueeze(3))
            # The features are several times what they are made of, so they are made again in the backward pass.
            bias = (
                checkpoint(lambda i=i, linear=linear: linear(neuron_features(i)), use_reentrant=False, preserve_rng_state=False)
                if chain.has_bias[i]
                else None
            )
            biases.append(bias)
        # The same products, seen from the neurons before the last weight.
        right, bias = form(depth, depth - 1), matrices.biases[depth]
        parts = [matrices.weight(depth), whole @ right[:, :, :inputs]]
        if bias is not None:
            parts.append(bias.unsqueeze(-1) * right[:, :, inputs:])
        last = self.last(_columns(torch.cat([part.mT for part in parts], dim=-1)))
        weights.append(last.unflatten(-1, (self.out_channels, outputs)).permute(0, 3, 1, 2).unsqueeze(3))
        biases.append(None)
        if chain.has_bias[depth]:
            traces = self.forms.traces(_bias_products(matrices, suffixes), whole)
            last_bias = self.last_bias(torch.cat([neuron_features(depth).flatten(1), *traces], dim=-1))
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
        self.chain = chain = _chain(space, "MAGEPInvariant", reference)
        depth, inputs, outputs = chain.depth, chain.n[0], chain.n[-1]
        hidden = sum(chain.has_bias[1:depth])
        self.forms = _Forms(chain, in_channels, [(depth, 0)], traces=True, redundant=reference)
        self.from_outputs = outputs <= inputs + hidden / 2
        features = outputs * (inputs * (2 + chain.has_bias[-1]) + chain.has_bias[-1] + min(hidden, 1)) + self.forms.num_traces
        self.linear = nn.Linear(in_channels * features, out_channels)

    def forward(self, features: Blocks | ParameterGraph | Tensor) -> Tensor:
        chain = self.chain
        depth, inputs = chain.depth, chain.n[0]
        matrices = _matrices(self.as_blocks(features), "MAGEPInvariant")
        if self.from_outputs:
            suffixes = _suffixes(chain, matrices)
            whole = cast(Tensor, suffixes[1]) @ matrices.weight(1)
            reached = _bias_products(matrices, suffixes)
        else:
            whole, *separate = _prefixes(chain, matrices, separate=True)[-1].split([inputs, *[1] * len(self.forms.diagonal)], dim=-1)
            hidden = [s for s in range(1, depth) if chain.has_bias[s]]
            reached = {s: column.squeeze(-1) for s, column in zip(hidden, separate, strict=True)}
        sums = [torch.stack(list(reached.values()), dim=-1).sum(-1, keepdim=True)] if reached else []
        columns = torch.cat([whole[..., :0], *sums], dim=-1)
        products = _neuron_features(whole, columns, matrices.biases[depth], self.forms(depth, 0) @ whole)
        result: Tensor = self.linear(torch.cat([products.flatten(1), *self.forms.traces(reached, whole)], dim=-1))
        return result
