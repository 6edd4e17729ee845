r"""Factors at which the entries of one neuron come nearest to those of another.

Entries that a factor :math:`d` multiplies to the power :math:`e` contribute

.. math:: \| d^e v - w \|^2 = d^{2e} a_e - 2 d^e b_e + c, \quad a_e = \| v \|^2, \; b_e = \langle v, w \rangle

to the squared distance of neurons, so that only these few sums are needed, for all pairs of neurons at once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Match", "Nearest", "nearest_factors"]

Powers = tuple[tuple[str, int], ...]

_HUBS = 3  # classes of which it is tried whether a change of sign helps once others answer to it
_LEAST = 1e-3  # what is left of entries that only get nearer as they shrink to nothing, relative to those of the reference


@dataclass(frozen=True)
class Match:
    """What the distance between neurons is made of; all tensors have shapes that broadcast with each other.

    Args:
        norms: Squared norms of the network's entries, by the powers of the factors (of scale classes) that multiply them.
        dots: Their inner products with the reference's entries.
        wanted: Squared norms of the reference's entries.
        allowed: By scale class, whether it may take positive factors, and signs.
    """

    norms: Mapping[Powers, Tensor]
    dots: Mapping[Powers, Tensor]
    wanted: Tensor
    allowed: Mapping[str, tuple[bool, bool]]


@dataclass(frozen=True)
class Nearest:
    """The factors of least distance by scale class, and the squared distance there."""

    factors: Mapping[str, Tensor]
    cost: Tensor


def nearest_factors(match: Match, *, near: bool = False) -> Nearest:
    """Minimise the distance over the factors of all classes: exactly for one class, in turn for several.

    Args:
        match: What the distance is made of.
        near: Positive factors are known to be close to 1, where one step towards the minimum does.

    Returns:
        Factors, and the distance.
    """
    labels = list(match.allowed)
    factors: dict[str, Tensor] = {}
    for label in labels:  # first by the entries that no other factor multiplies
        alone = [powers for powers in match.norms if [name for name, _ in powers] == [label]]
        factors[label] = _factor(match, label, alone, factors, near) if alone else torch.ones_like(match.wanted)
    together = {label for powers in match.norms if len(powers) > 1 for label, _ in powers}
    if together:
        factors = _in_turn(match, [label for label in labels if label in together] * 2, factors, near)
        # Two signs that multiply one entry may both have to change for it to come nearer: the others answer to each change of one.
        signed = [label for label in labels if label in together and match.allowed[label][1] and not near]
        for hub in sorted(signed, key=lambda label: sum(label in dict(powers) for powers in match.norms))[-_HUBS:]:
            others = [label for label in signed if label != hub]
            flipped = _in_turn(match, others, {**factors, hub: -factors[hub]}, near)
            better = _cost(match, flipped) < _cost(match, factors)
            factors = {label: torch.where(better, flipped[label], factor) for label, factor in factors.items()}
    return Nearest(factors, _cost(match, factors))


def _in_turn(match: Match, labels: Sequence[str], factors: Mapping[str, Tensor], near: bool) -> dict[str, Tensor]:
    """Factors after those of some classes took their least distance one after the other."""
    result = dict(factors)
    for label in labels:
        result[label] = _factor(match, label, [powers for powers in match.norms if label in dict(powers)], result, near)
    return result


def _cost(match: Match, factors: Mapping[str, Tensor]) -> Tensor:
    cost = match.wanted
    for powers, norm in match.norms.items():
        scale = _product(powers, factors)
        cost = cost + (norm * scale - 2 * match.dots[powers]) * scale
    return cost


def _product(powers: Powers, factors: Mapping[str, Tensor], without: str = "") -> Tensor | float:
    return math.prod(factors[label] ** power for label, power in powers if label != without)


def _factor(match: Match, label: str, chosen: list[Powers], factors: Mapping[str, Tensor], near: bool) -> Tensor:
    """The factor of least distance of one class, with the others as they are."""
    positive, sign = match.allowed[label]
    norms: dict[int, Tensor] = {}
    dots: dict[int, Tensor] = {}
    for powers in chosen:
        scale, power = _product(powers, factors, without=label), dict(powers)[label]
        norms[power] = norms.get(power, 0) + match.norms[powers] * scale * scale
        dots[power] = dots.get(power, 0) + match.dots[powers] * scale
    if not positive:
        odd = sum((dot for power, dot in dots.items() if power % 2), start=torch.zeros_like(match.wanted))
        return torch.where(odd < 0, -1.0, 1.0).to(odd) if sign else torch.ones_like(odd)
    if near and len(norms) > 1:
        return _step(norms, dots).exp()
    factor = _positive_factor(norms, dots, match.wanted)
    if sign:
        flipped = {power: -dot if power % 2 else dot for power, dot in dots.items()}
        other = _positive_factor(norms, flipped, match.wanted)
        factor = torch.where(_distance(other.log(), norms, flipped) < _distance(factor.log(), norms, dots), -other, factor)
    return factor


def _distance(x: Tensor, norms: Mapping[int, Tensor], dots: Mapping[int, Tensor]) -> Tensor:
    """The distance at the factor exp(x), up to what does not depend on it."""
    total = torch.zeros(())
    for power, norm in norms.items():
        scale = (power * x).exp()
        total = total + (norm * scale - 2 * dots[power]) * scale
    return total


def _positive_factor(norms: Mapping[int, Tensor], dots: Mapping[int, Tensor], wanted: Tensor) -> Tensor:
    if len(norms) == 1:
        ((power, norm),) = norms.items()
        present, dot = norm > 0, dots[power]
        safe = torch.where(present, norm, 1)
        least = (_LEAST * (wanted / safe).sqrt()).clamp(max=1)
        scale = torch.where(dot > 0, dot / safe, torch.where(least > 0, least, 1))
        return torch.where(present & (scale > 0), scale, 1) ** (1 / power)
    return _minimum(norms, dots).exp()


def _step(norms: Mapping[int, Tensor], dots: Mapping[int, Tensor]) -> Tensor:
    """Newton's step of the logarithm of a factor of 1, or none where it leads up."""
    slope = sum((2 * power * (norm - dots[power]) for power, norm in norms.items()), start=torch.zeros(()))
    curvature = sum((2 * power**2 * (2 * norm - dots[power]) for power, norm in norms.items()), start=torch.zeros(()))
    step = (-slope / torch.where(curvature > 0, curvature, torch.inf)).clamp(-0.5, 0.5)
    here = sum((norm - 2 * dots[power] for power, norm in norms.items()), start=torch.zeros(()))
    # Near the minimum, distances differ by less than their rounding, and Newton's step is right.
    return torch.where((_distance(step, norms, dots) < here) | (step.abs() < 1e-5), step, 0)


def _minimum(norms: Mapping[int, Tensor], dots: Mapping[int, Tensor]) -> Tensor:
    r"""Where a sum of terms :math:`e^{2px} a_p - 2 e^{px} b_p` is least.

    Every term alone is least at :math:`\log(b_p / a_p) / p`, or decreases for ever; where the sum is least, two of its terms are about
    equally large. The best of these points and of some between them is refined by Newton's steps, which are taken back where they lead up.
    """
    zero = sum((norm * 0 for norm in norms.values()), start=torch.zeros(())) + sum(
        (dot * 0 for dot in dots.values()), start=torch.zeros(())
    )
    points = [zero]
    for power, norm in norms.items():
        dot = dots[power]
        points.append(torch.where((dot > 0) & (norm > 0), dot / torch.where(norm > 0, norm, 1), 1).clamp(min=1e-300).log() / power + zero)
    for (one, first), (other, second) in itertools.combinations(norms.items(), 2):
        both = (first > 0) & (second > 0)
        ratio = torch.where(both, first, 1).log() - torch.where(both, second, 1).log()
        points.append(ratio / (2 * (other - one)) + zero)
    low, high = torch.stack(points).amin(0) - 2, torch.stack(points).amax(0) + 2
    points += [low + share * (high - low) for share in (0.2, 0.4, 0.6, 0.8)]
    x, value = points[0], _distance(points[0], norms, dots)
    for point in points[1:]:
        trial = _distance(point, norms, dots)
        x, value = torch.where(trial < value, point, x), torch.minimum(trial, value)
    reach = torch.ones_like(x)
    for _ in range(40 if x.ndim < 3 else 8):  # pairs of neurons are compared, their factors are not used
        slope, curvature = torch.zeros(()), torch.zeros(())
        for power, norm in norms.items():
            scale = (power * x).exp()
            slope = slope + 2 * power * (norm * scale - dots[power]) * scale
            curvature = curvature + 2 * power**2 * (2 * norm * scale - dots[power]) * scale
        step = -slope / torch.where(curvature.abs() > 0, curvature.abs(), 1)
        step = torch.minimum(torch.maximum(step, -reach), reach)
        trial = torch.minimum(torch.maximum(x + step, low), high)
        reached = _distance(trial, norms, dots)
        # Near the minimum, distances differ by less than their rounding, and Newton's step is right.
        take = (reached <= value) | ((step.abs() < 1e-5) & (curvature > 0))
        x, value = torch.where(take, trial, x), torch.where(take, reached, value)
        reach = torch.where(take, reach, step.abs() / 4)
        if float(step.abs().max()) < 1e-15:
            break
    return x
