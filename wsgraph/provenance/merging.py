"""Several networks made one: brought neuron beside neuron, and averaged."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wsgraph.provenance.aligning import alignment_of, elements_beside
from wsgraph.provenance.comparing import NEAR, difference_of
from wsgraph.provenance.statistics import Averages, has_running_statistics
from wsgraph.provenance.yardstick import Yardstick
from wsgraph.space import SpaceMismatchError, WeightSpace
from wsgraph.space.distinct import differ_in_names_alone
from wsgraph.symmetry import GroupElement

__all__ = ["MergeWarning", "Merged", "check_mergeable", "doubts", "merge", "with_counters_of_first"]

_TOLD = 3  # of the parameters that differ
_SAME = 0.01  # distance up to which networks are next to equal
_PRECISION = 1e-6  # of logarithms of factors, where distances are told


class MergeWarning(UserWarning):
    """An average is likely to be worse than the networks."""


@dataclass(frozen=True)
class Merged:
    """Several networks and their average.

    Attributes:
        theta: The average ``[P]``, in the dtype of the networks.
        aligned: The networks beside the first one ``[K, P]``: the same functions.
        element: The elements that bring them there.
        alignment: By what they were aligned: ``"weights"``, ``"activations"`` or ``"none"``.
        weights: The weights of the average.
        recalibrated: The running variances of norms, or the weights of layers where there are no norms by running statistics, that were
            changed so that neurons vary as those of the networks do.
        before: Mean distance of every network ``[K]`` from the others as they were given: 0 for equal networks, 1 for networks whose
            entries were shuffled (:class:`~wsgraph.provenance.Yardstick`).
        after: The same after alignment.
    """

    theta: Tensor
    aligned: Tensor
    element: GroupElement
    alignment: str
    weights: tuple[float, ...]
    recalibrated: tuple[str, ...]
    before: Tensor
    after: Tensor


def merge(
    space: WeightSpace,
    thetas: Tensor,
    *,
    weights: Sequence[float] | None = None,
    align: str | None = None,
    inputs: Any = None,
    reference: int | None = None,
    recalibrate: Any = None,
    seed: int = 0,
) -> Merged:
    r"""The average of several networks, after their neurons are brought beside each other.

    .. math:: \theta = \sum_k \lambda_k \, g_k \theta_k, \qquad g_1 = 1

    All networks are balanced first (:func:`wsgraph.symmetry.balance`), because averages of weights of different scales mean nothing.
    Then permutations and signs are searched for that bring every network nearest to the mean of all others, one network after the
    other, until none comes nearer (MergeMany); for two networks, that brings the second to the first. Last, the factors of the first
    network are given to all.

    Args:
        space: The weight space of all.
        thetas: Networks ``[K, P]``, two or more. Integer buffers are those of the first.
        weights: The weights :math:`\lambda_k`, which are not negative and sum to 1 (default: equal ones).
        align: ``"weights"``, ``"activations"`` (what neurons answer to ``inputs``) or ``"none"`` (default: activations where there are
            inputs, else weights).
        inputs: Inputs for alignment by activations: a tensor, or a tuple of what the networks are called with.
        reference: The position of a network to which the others are brought instead of to means.
        recalibrate: Inputs on which the neurons of the average shall vary as those of the networks do, often the same as ``inputs``:
            running statistics of norms are taken anew, or layers changed where there are no such norms
            (:class:`~wsgraph.provenance.statistics.Averages`); ``None`` to leave the average as it is.
        seed: Seed of the order in which networks and classes of neurons are visited.

    Returns:
        The average, and how the networks were aligned.

    Raises:
        SpaceMismatchError: If the shape is wrong, or the space does not say what its networks compute where they have to be run.
        ValueError: If there are fewer than two networks, a weight is NaN or infinite or stored as an integer, or weights of the average
            or options do not fit.

    Warns:
        MergeWarning: If networks are as far from the others after alignment as networks that were trained apart are, or they have norms
            by running statistics and the average is not recalibrated.

    References:
        Ainsworth, Hayase and Srinivasa, `Git Re-Basin <https://arxiv.org/abs/2209.04836>`_; Jordan et al., `REPAIR
        <https://arxiv.org/abs/2211.08403>`_.

    Example:
        >>> import torch, wsgraph
        >>> space = wsgraph.WeightSpace.mlp([4, 16, 16, 2])
        >>> theta, inputs = space.sample(1, dtype=torch.float64), torch.randn(9, 4)
        >>> copies = space.act(space.sample_symmetry(3), theta.expand(3, -1))
        >>> outputs = [space.evaluate(each[None], inputs) for each in (theta[0], wsgraph.provenance.merge(space, copies).theta)]
        >>> torch.allclose(*outputs)
        True
    """
    space.check_thetas(thetas, finite=True)
    shares = _checked_weights(weights, len(thetas))
    _check_numbers(space, thetas)
    alignment = alignment_of(align, inputs)
    if reference is not None and not 0 <= reference < len(thetas):
        raise ValueError(f"Expected 'reference' to be the position of a network, 0 to {len(thetas) - 1} (got {reference}).")
    given = with_counters_of_first(space, thetas.detach().double())
    element = elements_beside(space, given, alignment, inputs=inputs, reference=reference, seed=seed)
    aligned = space.act(element, given)
    before, after = _distances(space, given, aligned, seed)
    working = torch.promote_types(thetas.dtype, torch.float32)
    averages = Averages(space, aligned.to(working), recalibrate)
    average = with_counters_of_first(space, torch.stack([given[0], averages(shares).double()]))[1]
    merged, moved = average.to(thetas.dtype), aligned.to(thetas.dtype)
    result = Merged(merged, moved, element, alignment, shares, averages.corrected, before, after)
    for text in doubts(space, result, [f"network {i}" for i in range(len(thetas))]):
        warnings.warn(text[0].upper() + text[1:], MergeWarning, stacklevel=2)
    return result


def check_mergeable(space: WeightSpace, other: WeightSpace, name: str = "the first", other_name: str = "the other") -> None:
    """Raise unless two weight spaces, perhaps of files of different formats, differ in the names of their parts alone.

    Args:
        space: The weight space of a network.
        other: That of another one.
        name: What the first is called.
        other_name: What the other is called.

    Raises:
        SpaceMismatchError: With the parameters that differ.
    """
    if differ_in_names_alone(space, other):
        return
    shapes, others = ({param.name: list(param.shape) for param in each.params} for each in (space, other))
    different = [
        f"{key} has shape {shapes[key]} there and {others[key]} here" for key in shapes if shapes[key] != others.get(key, shapes[key])
    ]
    lacking = [f"{key} is missing" for key in shapes if key not in others] + [f"{key} is new" for key in others if key not in shapes]
    told = different + (lacking if shapes.keys() & others.keys() else [])
    more = f"; and {len(told) - _TOLD} more" if len(told) > _TOLD else ""
    why = f"{'; '.join(told[:_TOLD])}{more}." if told else difference_of(space, other)
    raise SpaceMismatchError(f"Networks of different architectures cannot be averaged. Of {other_name}, compared with {name}: {why}")


def with_counters_of_first(space: WeightSpace, thetas: Tensor) -> Tensor:
    """Networks ``[K, P]`` with the integer buffers of the first of them, of which averages mean nothing."""
    thetas = thetas.clone()
    for param in space.params:
        if param.role == "buffer":
            thetas[:, space.slices[param.name]] = thetas[:1, space.slices[param.name]]
    return thetas


def _checked_weights(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    if count < 2:
        raise ValueError(f"Expected two networks or more to merge (got {count}).")
    shares = tuple(map(float, weights)) if weights is not None else (1 / count,) * count
    if len(shares) != count or not all(share >= 0 for share in shares) or not math.isclose(sum(shares), 1, abs_tol=1e-6):
        shown = ", ".join(f"{share:g}" for share in shares)
        raise ValueError(f"Expected {count} 'weights', one per network, none negative, that sum to 1 (got {shown}: sum {sum(shares):g}).")
    return shares


def _check_numbers(space: WeightSpace, thetas: Tensor) -> None:
    """Raise where integers differ that are no counters: those of quantised networks."""
    for param in space.params:
        values = thetas[:, space.slices[param.name]]
        if param.dtype in ("int8", "uint8") and len(param.shape) > 1 and not torch.equal(values, values[:1].expand_as(values)):
            raise ValueError(
                f"{param.name!r} is stored as {param.dtype}: averages of the integers of quantised networks mean nothing. Dequantise the "
                "networks first, with the library that quantised them."
            )


def doubts(space: WeightSpace, merged: Merged, names: Sequence[str]) -> list[str]:
    """What to say of averages that are likely to be worse than the networks; nothing of those that were averaged as they are.

    Args:
        space: Their weight space.
        merged: The average.
        names: What the networks are called.
    """
    found: list[str] = []
    if merged.alignment == "none":
        return found
    if far := [name for name, distance in zip(names, merged.after.tolist(), strict=True) if distance > NEAR]:
        found.append(
            f"{', '.join(far)} {'is' if len(far) == 1 else 'are'} at {float(merged.after.max()):.2f} of the way to shuffled networks after "
            "alignment, as far as networks that were trained apart: their average is likely to lose accuracy. Measure it on data."
        )
    if not merged.recalibrated and has_running_statistics(space) and float(merged.after.max()) > _SAME:
        found.append("Averages of running statistics of norms do not fit averaged weights. Recalibrate the average on data.")
    return found


def _distances(space: WeightSpace, given: Tensor, aligned: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Mean distances of networks from the others, as they are given and aligned."""
    yardstick = Yardstick.of(space, given, seed=seed)

    def distances(thetas: Tensor) -> Tensor:
        points = yardstick.prepare(thetas, tolerance=_PRECISION)
        values, norms = points.values, points.norms
        pairs = [yardstick.relative((values - values[i]).norm(dim=1), norms, norms[i]) for i in range(len(thetas))]
        return torch.stack(pairs).sum(1) / (len(thetas) - 1)

    return distances(given), distances(aligned)
