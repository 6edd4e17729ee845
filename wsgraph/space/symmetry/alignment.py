"""Alignment: the group elements that bring networks closest to others, by their weights or by what their neurons answer."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from wsgraph.space.flat import FlatSpace
from wsgraph.space.symmetry.balance import balance
from wsgraph.space.symmetry.group import GroupElement, act, flatten_logical, logical_tensors
from wsgraph.space.symmetry.matching import Matching, selected
from wsgraph.space.symmetry.places import Places

__all__ = ["Answers", "Similarity", "align_answers", "align_weights", "similarity_of"]

# By permutation class and scale class (empty where the answers follow no single one): standardized answers [B, n, samples].
Answers = dict[tuple[str, str], list[Tensor]]
# The same for sums of correlations [B, n, n] between neurons of the references and of the networks.
Similarity = dict[tuple[str, str], Tensor]

_TIE = 1e-6  # correlations that differ by less are equal


def align_weights(space: FlatSpace, thetas: Tensor, targets: Tensor, sweeps: int, generator: torch.Generator | None) -> GroupElement:
    """The elements that bring networks ``[B, P]`` nearest to their targets, from the better of two starts."""
    places = Places(space)
    as_it_is = Matching(places, thetas, targets)
    as_it_is.descend(sweeps, generator)
    balanced = _from_balanced(places, thetas, targets, sweeps, generator)
    balanced.descend(sweeps, generator)
    return selected(balanced.distance() < as_it_is.distance(), balanced.element, as_it_is.element)


def similarity_of(answers: Answers, wanted: Answers) -> Similarity:
    """How alike neurons of the references ``wanted`` and of networks answer."""
    return {
        key: sum((one @ own.transpose(1, 2) for one, own in zip(several, answers[key], strict=True)), start=torch.zeros(()))
        for key, several in wanted.items()
    }


def align_answers(space: FlatSpace, thetas: Tensor, targets: Tensor, similarity: Similarity, *, positive: bool = True) -> GroupElement:
    """The elements that match the neurons of networks ``[B, P]`` with those of their targets by what they answer.

    Positive factors are those of least distance of the weights; without them, both should be balanced.
    """
    by_answers = _AnswerMatching(Places(space), thetas, targets, similarity, positive=positive)
    by_answers.run()
    if positive:
        by_answers.settle_positive_factors()
    return by_answers.element


# == Balanced networks ==


def _from_balanced(places: Places, thetas: Tensor, targets: Tensor, sweeps: int, generator: torch.Generator | None) -> Matching:
    """The alignment that starts from permutations and signs found after balancing both networks."""
    space = places.space
    balanced, own_balanced = (balance(space, tensor, places=places) for tensor in (targets, thetas))
    start = Matching(places, act(space, own_balanced, thetas), act(space, balanced, targets), positive=False)
    start.start_from_inputs()
    start.descend(sweeps, generator)
    result = Matching(places, thetas, targets)
    element = balanced.inverse() @ start.element @ own_balanced
    result.tensors = logical_tensors(space, act(space, element, thetas))
    result.errors = {name: result._error(name, result.tensors[name]) for name in result.errors}
    result.element = element
    return result


# == Activations ==


class _AnswerMatching(Matching):
    """Networks whose neurons are matched by what they answer.

    Args:
        places: Where neurons lie.
        thetas: The networks ``[B, P]``.
        targets: Their references.
        similarity: How alike their neurons answer.
        positive: Whether positive factors may change.
    """

    def __init__(self, places: Places, thetas: Tensor, targets: Tensor, similarity: Similarity, *, positive: bool) -> None:
        super().__init__(places, thetas, targets, positive=positive)
        self.similarity = dict(similarity)

    def run(self) -> None:
        """Permutations and signs by similarity."""
        for _ in range(2):  # the second time, weights that decide between equals have their other ends in order
            for label in self.places.classes:
                for free in (True, False):
                    self.rearrange(label, None, free=free)
            self.settle_signs()

    def settle_positive_factors(self) -> None:
        """Positive factors by weights."""
        self.sign = False
        # Factors of least distance, from what they are and from those that give the weights the reference's balance.
        balanced = self.copy()
        current, targets = (flatten_logical(self.space, tensors) for tensors in (self.tensors, self.targets))
        wanted, own = (balance(self.space, tensor, places=self.places) for tensor in (targets, current))
        scales = (wanted.inverse() @ own).scales
        balanced.scale({label: factors for label, factors in scales.items() if label in self.places.by_scale})
        for start in (self, balanced):
            start.settle_factors(tolerance=1e-9)
        self.take(balanced, balanced.distance() < self.distance())

    def settle_signs(self) -> None:
        """Signs of positive correlation, and by weights those of neurons of which the answers say nothing."""
        before, positive = self.element.scales, self.positive
        self.positive = False
        self.settle_factors()
        self.positive = positive
        for scale in self.places.scales:
            found = [key for key in self.similarity if key[1] == scale]
            if not self.symmetry(scale)[1] or not found:
                continue
            agreement = torch.stack([self.similarity[key].diagonal(dim1=1, dim2=2) for key in found]).sum(0)
            own = (self.element.scales[scale] * before[scale]).sign()
            sign = torch.where(agreement.abs() > _TIE, agreement.sign(), own)
            self.scale({scale: sign * own})
            for key in found:
                self.similarity[key] = self.similarity[key] * sign[:, None]

    def pair_costs(self, label: str, known: Collection[str] | None) -> Tensor:
        size = self.space.permutation_classes[label][0].size
        first = next(iter(self.tensors.values()))
        total = first.new_zeros(len(first), size, size)
        signed = {
            scale for scale in self.places.scales if self.symmetry(scale)[1] and self.space.scale_classes[scale][0].permutation == label
        }
        for (permutation, scale), similarity in self.similarity.items():
            if permutation == label:
                # Answers that follow no single class may change their sign where any of these does.
                total = total - (similarity.abs() if (scale in signed if scale else signed) else similarity)
        # Weights decide between neurons that answer alike, or of which the inputs say nothing (dead ones).
        by_weights = super().pair_costs(label, known)
        return total + _TIE * by_weights / by_weights.abs().amax(dim=(1, 2), keepdim=True).clamp(min=1e-300)

    def apply(self, label: str, costs: Tensor) -> dict[str, Tensor]:
        moved = super().apply(label, costs)
        for (permutation, scale), similarity in self.similarity.items():
            if permutation in moved:
                order = moved[permutation][:, None].expand(-1, similarity.shape[1], -1)
                self.similarity[permutation, scale] = similarity.gather(2, order)
        return moved
