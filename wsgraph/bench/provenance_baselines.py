"""Distances between networks that know little or nothing of symmetry, to compare others with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wsgraph.plugins import Registry
from wsgraph.space import WeightSpace
from wsgraph.symmetry import neuron_answers
from wsgraph.tasks.distance import weight_statistics

__all__ = ["BaselineContext", "list_provenance_baselines", "provenance_baseline", "register_provenance_baseline"]

_BLOCK = 64  # networks that answer side by side
_SAMPLES = 128  # answers of every neuron that are compared


@dataclass(frozen=True)
class BaselineContext:
    """What distances may be made from beside the weights.

    Attributes:
        inputs: A batch of inputs for the networks.
        module: The module that has the weight space; ``None`` where its layers describe the networks.
    """

    inputs: Tensor
    module: nn.Module | None = None


Distances = Callable[[WeightSpace, Tensor, BaselineContext], Tensor]
_BASELINES: Registry[Distances] = Registry("baseline")


def register_provenance_baseline(name: str) -> Callable[[Distances], Distances]:
    """Enter a baseline under a name.

    Args:
        name: The name.

    Returns:
        A decorator of a function of the weight space, networks ``[N, P]`` and the context that returns their distances ``[N, N]``.

    Raises:
        ValueError: If the name is taken.

    Example:
        >>> @register_provenance_baseline("largest_weight")
        ... def largest_weight(space, thetas, context):
        ...     return torch.cdist(thetas.abs().amax(1, keepdim=True), thetas.abs().amax(1, keepdim=True))
        >>> "largest_weight" in list_provenance_baselines()
        True
    """

    def enter(distances: Distances) -> Distances:
        _BASELINES.add(name, distances)
        return distances

    return enter


def provenance_baseline(name: str) -> Distances:
    """The baseline of a name.

    Args:
        name: One of :func:`list_provenance_baselines`.

    Returns:
        A function of the weight space, networks ``[N, P]`` and the context that returns their distances ``[N, N]`` in float64.

    Raises:
        ValueError: If there is none of that name.

    Example:
        >>> space = WeightSpace.mlp([2, 8, 1])
        >>> thetas = space.sample(3)
        >>> moved = space.act(space.sample_symmetry(3, symmetries=["permutation"]), thetas)
        >>> distances = provenance_baseline("sorted_weights")(space, torch.cat([thetas, moved]), BaselineContext(torch.randn(10, 2)))
        >>> bool(distances[0, 3] < 1e-6), bool(distances[0, 1] < 1e-6)
        (True, False)
    """
    return _BASELINES.find(name)


def list_provenance_baselines() -> list[str]:
    """Names of all baselines.

    Example:
        >>> {"activations", "raw_cosine", "raw_l2", "sorted_weights", "statistics"} <= set(list_provenance_baselines())
        True
    """
    return _BASELINES.names()


def _euclidean(values: Tensor) -> Tensor:
    # Not by inner products, whose rounding would hide small distances between large vectors.
    return torch.cdist(values, values, compute_mode="donot_use_mm_for_euclid_dist")


def _divided(space: WeightSpace, thetas: Tensor) -> list[Tensor]:
    return [thetas[:, space.slices[param.name]].double() for param in space.params]


@register_provenance_baseline("raw_l2")
def _raw_l2(space: WeightSpace, thetas: Tensor, context: BaselineContext) -> Tensor:
    """Euclidean distance of the flat checkpoints as they are."""
    return _euclidean(thetas.double())


@register_provenance_baseline("raw_cosine")
def _raw_cosine(space: WeightSpace, thetas: Tensor, context: BaselineContext) -> Tensor:
    """One minus the cosine of the angle between the flat checkpoints as they are."""
    unit = nn.functional.normalize(thetas.double(), dim=1)
    return (1 - unit @ unit.T).clamp(min=0)


@register_provenance_baseline("sorted_weights")
def _sorted_weights(space: WeightSpace, thetas: Tensor, context: BaselineContext) -> Tensor:
    """Euclidean distance of the entries of every parameter in ascending order, which no permutation changes."""
    return _euclidean(torch.cat([part.sort(1).values for part in _divided(space, thetas)], 1))


@register_provenance_baseline("statistics")
def _statistics(space: WeightSpace, thetas: Tensor, context: BaselineContext) -> Tensor:
    """Euclidean distance of mean, standard deviation and quartiles of every parameter, standardised over the networks."""
    values = torch.cat([weight_statistics(part) for part in _divided(space, thetas)], 1)
    spread = values.std(0, correction=0)
    return _euclidean((values - values.mean(0)) / torch.where(spread > 0, spread, 1))


@register_provenance_baseline("activations")
def _activations(space: WeightSpace, thetas: Tensor, context: BaselineContext) -> Tensor:
    r"""One minus the linear CKA of standardised activations on the inputs, averaged over classes of neurons; no symmetry changes it.

    .. math:: \mathrm{CKA}(A, A') = \frac{\| A A'^\top \|_F^2}{\| A A^\top \|_F \| A' A'^\top \|_F}

    (`Kornblith et al., 2019 <https://arxiv.org/abs/1905.00414>`_), where every row of :math:`A`, the activations of one neuron at
    128 inputs and positions, has mean 0 and norm 1, so that neither factors nor signs count.
    """
    found: dict[tuple[str, str], list[Tensor]] = {}
    for block in thetas.split(_BLOCK):
        for key, answers in neuron_answers(space, block, context.inputs, context.module).items():
            joined = torch.cat(answers, 2)
            places = torch.linspace(0, joined.shape[2] - 1, min(_SAMPLES, joined.shape[2])).round().long()
            chosen = joined[:, :, places]
            found.setdefault(key, []).append(nn.functional.normalize(chosen - chosen.mean(2, keepdim=True), dim=2))
    likeness = thetas.new_zeros(len(thetas), len(thetas), dtype=torch.float64)
    for parts in found.values():
        likeness += _cka(torch.cat(parts))
    return (1 - likeness / max(1, len(found))).clamp(min=0)


def _cka(answers: Tensor) -> Tensor:
    """Linear CKA ``[N, N]`` of centred answers ``[N, n, samples]``."""
    # As the cosine of the Gram matrices of samples: a neuron's sign and place vanish in them.
    grams = (answers.transpose(1, 2) @ answers).flatten(1)
    unit = nn.functional.normalize(grams, dim=1)
    return unit @ unit.T
