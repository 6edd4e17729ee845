"""The monomial group of a weight space: group elements, their action, canonical forms, and alignment."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from wsgraph.space.errors import SpaceMismatchError
from wsgraph.space.evaluate import run_network
from wsgraph.space.inputs import check_layer_inputs
from wsgraph.space.symmetry.alignment import Answers, align_answers, align_weights, similarity_of
from wsgraph.space.symmetry.balance import balance
from wsgraph.space.symmetry.canonical import FORMS, canonicalize
from wsgraph.space.symmetry.group import SYMMETRIES, GroupElement, act, sample_symmetry
from wsgraph.space.weight_space import WeightSpace

__all__ = ["FORMS", "SYMMETRIES", "GroupElement", "act", "align", "balance", "canonicalize", "sample_symmetry"]

_SAMPLES = 20_000  # answers per neuron that are compared, evenly spaced over inputs and positions


def align(
    space: WeightSpace,
    thetas: Tensor,
    reference: Tensor,
    *,
    inputs: Any = None,
    module: nn.Module | None = None,
    sweeps: int = 50,
    generator: torch.Generator | None = None,
) -> GroupElement:
    r"""Group elements that bring networks close to a reference: permutations, signs and positive factors.

    .. math:: \min_g \sum_W \| g W - W^{\text{reference}} \|^2

    by exact steps in turn, from two starts, of which the better end counts:

    - The permutation of a class of neurons is the linear assignment of least cost, where the cost of a pair is its distance at the best
      factor and sign of that pair. Of neurons that are pairs themselves (heads of attention and their inner dimensions), the rows are
      assigned by the best assignment of their columns.
    - Factors and signs of a class are those of least distance for fixed permutations.

    One start is the network as it is, so that the result is never farther from the reference than it; the other aligns both
    networks first after balancing them (every neuron's incoming and outgoing weights get equal norms), so that factors hide no
    permutation. Integer buffers, such as counters, are no part of the distance.

    With ``inputs``, neurons are matched by what they answer instead: permutations and signs are those of largest correlation over all
    inputs and positions, positive factors those of least distance of the weights, given these. Weights decide about neurons of which
    the inputs say nothing, such as dead ones. That is what networks are merged with; the weights may then lie farther apart than
    before.

    Args:
        space: The weight space of both.
        thetas: Networks to move, ``[B, P]``.
        reference: One network ``[P]``, or one per network ``[B, P]``.
        inputs: A batch of inputs for the networks, or a tuple of what the module is called with: match by activations.
        module: The network as a module, which runs it on ``inputs`` (default: the network runs by the space, as
            :meth:`~wsgraph.WeightSpace.evaluate` does).
        sweeps: Largest number of passes over the classes.
        generator: Source of the order in which the classes are visited.

    Returns:
        A :class:`GroupElement` ``g`` of ``B`` elements: ``space.act(g, thetas)`` are the aligned networks, of unchanged function.

    Raises:
        SpaceMismatchError: If shapes do not fit the space or each other, the space does not say what its networks compute, or the module
            is that of another space.
        ValueError: If a weight is NaN or infinite.

    References:
        Ainsworth, Hayase and Srinivasa, `Git Re-Basin <https://arxiv.org/abs/2209.04836>`_ (permutations); Li et al., `Convergent
        Learning <https://arxiv.org/abs/1511.07543>`_ (activations).

    Example:
        >>> import torch
        >>> from wsgraph import WeightSpace
        >>> from wsgraph.symmetry import align
        >>> space = WeightSpace.mlp([4, 16, 16, 2], "tanh")
        >>> thetas = space.sample(3, dtype=torch.float64)
        >>> moved = space.act(space.sample_symmetry(3), thetas)
        >>> torch.allclose(space.act(align(space, moved, thetas), moved), thetas)
        True
        >>> by_activations = align(space, moved, thetas, inputs=torch.randn(100, 4, dtype=torch.float64))
        >>> torch.allclose(space.act(by_activations, moved), thetas)
        True
    """
    space.check_thetas(thetas, finite=True)
    targets = reference.expand(thetas.shape[0], -1) if reference.ndim == 1 else reference
    space.check_thetas(targets, finite=True, name="reference")
    if targets.shape != thetas.shape:
        raise SpaceMismatchError(f"Expected one reference or one per network, {thetas.shape[0]} (got {targets.shape[0]}).")
    if not len(thetas):
        raise SpaceMismatchError(f"Expected at least one network to align (got 'thetas' of shape {list(thetas.shape)}).")
    if module is not None and inputs is None:
        raise ValueError("A 'module' is run on 'inputs': give both, or neither to align by weights.")
    thetas, targets = (tensor.detach().double() for tensor in (thetas, targets))
    answers = None
    if inputs is not None:
        answers = [neuron_answers(space, tensor, inputs, module) for tensor in (targets, thetas)]
    # A power of two changes no digit, and keeps squares of very small and very large weights inside the range of the dtype.
    largest = targets.abs().amax(dim=1, keepdim=True)
    unit = torch.exp2(-torch.where(largest > 0, largest, 1).log2().floor())
    thetas, targets = thetas * unit, targets * unit
    if answers is None:
        return align_weights(space, thetas, targets, sweeps, generator)
    return align_answers(space, thetas, targets, similarity_of(answers[1], answers[0]))


def neuron_answers(space: WeightSpace, thetas: Tensor, inputs: Any, module: nn.Module | None) -> Answers:
    """Answers of all movable neurons.

    Args:
        space: The weight space.
        thetas: Networks ``[B, P]``.
        inputs: A batch of inputs, or a tuple of what the module is called with.
        module: The network as a module, where one was given.

    Returns:
        Answers by permutation and scale class, in an order that is the same for all networks of the space.

    Raises:
        SpaceMismatchError: If the space does not say what its networks compute, or the module is of another space.
    """
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    found: Answers = {}
    if space.layers:
        for name, values in _of_layers(space, thetas, given).items():
            group = space.group(name)
            if space.is_permutable(group.permutation):
                found.setdefault((group.permutation, group.scale), []).append(_standardized(values.transpose(1, 2).flatten(2)))
        return found
    from wsgraph.convert.tracing.activations import TracedAnswers  # which needs all of tracing

    if module is not None:
        answers = TracedAnswers(module, given, space, _SAMPLES)
    else:
        space.check_runs("Alignment by activations, without the 'module' that was traced,")
        answers = TracedAnswers.of_program(space, thetas[0], given, _SAMPLES)
    networks = [answers(theta) for theta in thetas]
    for key in networks[0]:
        found[key] = [_standardized(torch.stack(values)) for values in zip(*(network[key] for network in networks), strict=True)]
    return found


def _of_layers(space: WeightSpace, thetas: Tensor, inputs: tuple[Any, ...]) -> dict[str, Tensor]:
    """Values ``[B, M, n, *positions]`` of all hidden groups after their operators."""
    if len(inputs) != 1:
        raise SpaceMismatchError(f"Expected one tensor of 'inputs' for {space!r} (got {len(inputs)}).")
    check_layer_inputs(space, inputs[0], thetas.dtype)

    def run(theta: Tensor) -> dict[str, Tensor]:
        values: dict[str, Tensor] = {}

        def keep(group: Any, result: Tensor) -> Tensor:
            values[group.name] = result
            return result

        run_network(space, {key: tensor.to(theta) for key, tensor in space.unflatten(theta).items()}, inputs[0].to(theta), keep)
        return values

    return torch.func.vmap(run)(thetas)


def _standardized(values: Tensor) -> Tensor:
    """Values ``[B, n, samples]``, evenly thinned out, with mean 0 and norm 1 per neuron; 0 where a neuron always answers the same."""
    values = values.double()[..., :: max(1, values.shape[2] // _SAMPLES)]
    size = values.norm(dim=2, keepdim=True)
    values = values - values.mean(dim=2, keepdim=True)
    norm = values.norm(dim=2, keepdim=True)
    least = torch.maximum(1e-12 * norm.amax(dim=1, keepdim=True), 1e-10 * size)  # below, it is rounding
    return values / torch.where(norm > least, norm, torch.inf)
