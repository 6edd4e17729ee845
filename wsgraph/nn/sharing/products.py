"""Products of weights along a network, from its inputs and from its outputs, with a gradient of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from wsgraph.space import Blocks, WeightSpace

__all__ = [
    "Chain",
    "Sweep",
    "bias_products",
    "chain_of",
    "columns_of",
    "matrices_of",
    "neuron_features",
    "prefix_products",
    "suffix_products",
]


class Chain(NamedTuple):
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


def chain_of(space: WeightSpace, user: str, reference: bool) -> Chain:
    """The chain of dense layers of a weight space, and which of its ends stay."""
    check_chain(space, user)
    if any(edges.num_positions != 1 for edges in space.topology.edges):
        raise ValueError(
            f"{user} needs one kernel position per weight (got {space!r}). Fold the kernels first with "
            f"MonomialLinear(space, channels, channels, out_space=space.without_kernels()) and build {user} for space.without_kernels()."
        )
    if reference and any(layer.bias is None for layer in space.layers):
        raise ValueError(f"The published {user} needs a bias in every layer (got {space!r}).")
    return Chain(tuple(group.size for group in space.groups), (False, *(layer.bias is not None for layer in space.layers)))


class _Matrices(NamedTuple):
    """Weights ``[B, d, n_i, n_{i-1}]`` and biases ``[B, d, n_i]`` (None where absent) of every layer, 1-based."""

    weights: tuple[Tensor | None, ...]
    biases: tuple[Tensor | None, ...]

    def weight(self, i: int) -> Tensor:
        return cast(Tensor, self.weights[i])


def matrices_of(blocks: Blocks, user: str) -> _Matrices:
    """Weights and biases of a chain of dense layers as matrices, in one precision."""
    first = next(weight for weight in blocks.weights if weight is not None)
    cast_to = torch.get_autocast_dtype(first.device.type) if torch.is_autocast_enabled(first.device.type) else first.dtype
    if torch.float16 in (first.dtype, cast_to) and first.dtype != torch.float64:
        raise ValueError(f"{user} multiplies the weights of all layers, which overflows float16 beyond 65,504; use bfloat16 or float32.")
    weights = [None if weight is None else weight.squeeze(3).permute(0, 3, 1, 2) for weight in blocks.weights]
    biases = [None if bias is None else bias.transpose(1, 2) for bias in blocks.biases]
    return _Matrices((None, *weights), (None, *biases))


def columns_of(values: Tensor) -> Tensor:
    """``[B, d, n, c]`` to one vector of features per neuron, ``[B, n, d * c]``."""
    return values.transpose(1, 2).flatten(2)


def _extended(reached: Tensor, bias: Tensor | None, inputs: int, separate: bool) -> Tensor:
    r"""What the next weight is applied to: :math:`[P_s \mid V_s + b^{(s)}]`, or the bias as a column of its own."""
    if bias is None:
        return reached
    if separate or reached.shape[-1] == inputs:
        return torch.cat([reached, bias.unsqueeze(-1)], dim=-1)
    return torch.cat([reached[..., :-1], reached[..., -1:] + bias.unsqueeze(-1)], dim=-1)


def prefix_products(chain: Chain, matrices: _Matrices, separate: bool) -> list[Tensor]:
    r"""Products :math:`T_s = [P_s \mid V_s]` for s = 1, ..., L: :math:`P_s = [W]^{(s, 0)}` and the bias terms :math:`[Wb]^{(s, t)}`, t < s.

    ``V_s`` holds the sum of the bias terms, or one column for each if they are kept separate; none where no earlier layer has a bias.
    """
    reached = [matrices.weight(1)]
    for s in range(2, chain.depth + 1):
        reached.append(matrices.weight(s) @ _extended(reached[-1], matrices.biases[s - 1], chain.n[0], separate))
    return reached


def neuron_features(products: Tensor, columns: Tensor, bias: Tensor | None, form: Tensor) -> Tensor:
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
    return columns_of(torch.cat([*parts, columns], dim=-1))


def suffix_products(chain: Chain, matrices: _Matrices) -> list[Tensor | None]:
    r"""Products :math:`S_t = [W]^{(L, t)}` for t = L - 1 down to 1, at position t of the list."""
    result: list[Tensor | None] = [None] * chain.depth
    product = result[chain.depth - 1] = matrices.weight(chain.depth)
    for t in range(chain.depth - 2, 0, -1):
        product = result[t] = product @ matrices.weight(t + 1)
    return result


def bias_products(matrices: _Matrices, suffixes: Sequence[Tensor | None]) -> dict[int, Tensor]:
    """[Wb]^(L,s) = S_s b^(s), ``[B, d, n_L]``, for every hidden layer with a bias."""
    pairs = ((s, suffixes[s], matrices.biases[s]) for s in range(1, len(suffixes)))
    return {s: (suffix @ bias.unsqueeze(-1)).squeeze(-1) for s, suffix, bias in pairs if suffix is not None and bias is not None}


class Sweep(torch.autograd.Function):
    r"""All prefix products :math:`T_2, \ldots, T_L`, all suffix products :math:`S_{L-2}, \ldots, S_1`, and the middle weights once more.

    The gradient of a middle weight is that of its other uses plus outer products of thin factors from both sweeps. Passing the weights
    through lets the latter be added in place to the former: one matrix per layer is filled in place of three.
    """

    @staticmethod
    def forward(ctx: Any, chain: Chain, separate: bool, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        matrices = _Matrices((None, *tensors[: chain.depth]), (None, *tensors[chain.depth :]))
        reached = prefix_products(chain, matrices, separate)[1:]
        suffixes = cast(list[Tensor], suffix_products(chain, matrices)[1 : chain.depth - 1])
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
