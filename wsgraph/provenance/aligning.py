"""Several networks brought neuron beside neuron."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from wsgraph.space import WeightSpace
from wsgraph.space.symmetry.alignment import Answers, Similarity, align_answers, similarity_of
from wsgraph.space.symmetry.metric import OrbitMetric
from wsgraph.symmetry import GroupElement, balance, neuron_answers

__all__ = ["ALIGNMENTS", "alignment_of", "elements_beside"]

ALIGNMENTS = ("weights", "activations", "none")
_PASSES = 100
_BETTER = 1e-9  # share by which a step has to be better than none


def alignment_of(align: str | None, inputs: Any) -> str:
    """By what networks are aligned.

    Args:
        align: One of :data:`ALIGNMENTS`, or ``None``: activations where there are inputs, else weights.
        inputs: Inputs for the networks, or ``None``.

    Raises:
        ValueError: If it is none of these, or activations lack inputs.
    """
    if align is None:
        return "weights" if inputs is None else "activations"
    if align not in ALIGNMENTS:
        raise ValueError(f"Expected 'align' to be one of {', '.join(ALIGNMENTS)} (got {align!r}).")
    if align == "activations" and inputs is None:
        raise ValueError("Alignment by activations needs 'inputs' for the networks. Give some, or align by weights.")
    return align


def elements_beside(
    space: WeightSpace, thetas: Tensor, alignment: str, *, inputs: Any = None, reference: int | None = None, seed: int = 0
) -> GroupElement:
    """The elements that bring networks beside the first of them.

    Args:
        space: Their weight space.
        thetas: Networks ``[K, P]`` in float64.
        alignment: One of :data:`ALIGNMENTS`.
        inputs: Inputs for alignment by activations.
        reference: The position of the network to which others are brought; ``None`` for the mean of all others, in turn.
        seed: Seed of the order in which networks and classes of neurons are visited.

    Returns:
        As many elements, of which the first changes nothing.
    """
    if alignment == "none":
        return space.sample_symmetry(len(thetas), symmetries=[], device=thetas.device)
    factors = balance(space, thetas)
    balanced = space.act(factors, thetas)
    # So that no square of a very small or very large weight leaves the range of float64.
    balanced = balanced / balanced.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
    matching: _Matching
    if alignment == "weights":
        matching = _ByWeights(space, balanced, seed)
    else:
        matching = _ByAnswers(space, balanced, seed, neuron_answers(space, thetas, inputs, None))
    matching.bring_to(reference or 0)
    if reference is None and len(thetas) > 2:
        matching.bring_to_means()
    beside = _joined(matching.elements)
    return (matching.elements[0] @ _one(factors, 0)).inverse() @ beside @ factors


def _one(element: GroupElement, i: int) -> GroupElement:
    permutations = {label: tensor[i : i + 1] for label, tensor in element.permutations.items()}
    return replace(element, permutations=permutations, scales={label: tensor[i : i + 1] for label, tensor in element.scales.items()})


def _joined(elements: Sequence[GroupElement]) -> GroupElement:
    first = elements[0]
    permutations = {label: torch.cat([each.permutations[label] for each in elements]) for label in first.permutations}
    return replace(
        first, permutations=permutations, scales={label: torch.cat([each.scales[label] for each in elements]) for label in first.scales}
    )


class _Matching(ABC):
    """Balanced networks ``[K, P]``, moved by permutations and signs."""

    def __init__(self, space: WeightSpace, thetas: Tensor, seed: int) -> None:
        self.space, self.moved, self.seed = space, thetas, seed
        stay = space.sample_symmetry(len(thetas), symmetries=[], device=thetas.device)
        self.elements = [_one(stay, i) for i in range(len(thetas))]

    @abstractmethod
    def found(self, i: int, others: list[int]) -> GroupElement:
        """What brings a network nearest to the mean of others."""

    @abstractmethod
    def loss(self, i: int, others: list[int], element: GroupElement | None = None) -> float:
        """How far it is from that mean, once an element has moved it."""

    def move(self, i: int, element: GroupElement) -> None:
        """Move a network."""
        self.moved[i : i + 1] = self.space.act(element, self.moved[i : i + 1])
        self.elements[i] = element @ self.elements[i]

    def bring(self, i: int, others: list[int], *, least: float = _BETTER) -> bool:
        """Bring a network to the mean of others, if that makes its loss less by this share; whether it did."""
        element, before = self.found(i, others), self.loss(i, others)
        if self.loss(i, others, element) > before - least * abs(before):
            return False
        self.move(i, element)
        return True

    def bring_to(self, reference: int) -> None:
        """Bring all networks to one."""
        for i in range(len(self.moved)):
            if i != reference:
                self.bring(i, [reference], least=-_BETTER)  # weights may have decided between neurons that answer alike

    def bring_to_means(self) -> None:
        """Bring every network to the mean of all others, in random order, until none comes nearer."""
        generator, everyone = torch.Generator().manual_seed(self.seed), range(len(self.moved))
        for _ in range(_PASSES):
            order = torch.randperm(len(self.moved), generator=generator).tolist()
            came_nearer = [self.bring(i, [j for j in everyone if j != i]) for i in order]
            if not any(came_nearer):
                break


class _ByWeights(_Matching):
    """Networks are near whose weights are."""

    def __init__(self, space: WeightSpace, thetas: Tensor, seed: int) -> None:
        super().__init__(space, thetas, seed)
        self.metric = OrbitMetric(space)

    def found(self, i: int, others: list[int]) -> GroupElement:
        target = self.moved[others].mean(0, keepdim=True)
        return self.metric.match(self.moved[i : i + 1], target, sweeps=_PASSES, seed=self.seed).element

    def loss(self, i: int, others: list[int], element: GroupElement | None = None) -> float:
        own = self.moved[i : i + 1] if element is None else self.space.act(element, self.moved[i : i + 1])
        return float((own[0] - self.moved[others].mean(0)).square().sum())


class _ByAnswers(_Matching):
    """Networks are near whose neurons answer alike.

    Args:
        space: The weight space.
        thetas: Balanced networks ``[K, P]``.
        seed: Seed of everything random.
        answers: Their answers.
    """

    def __init__(self, space: WeightSpace, thetas: Tensor, seed: int, answers: Answers) -> None:
        super().__init__(space, thetas, seed)
        every = [{key: [values[i : i + 1] for values in several] for key, several in answers.items()} for i in range(len(thetas))]
        # How alike neurons of the first of a pair and of the second answer.
        self.pairs = {(i, j): similarity_of(own, wanted) for i, wanted in enumerate(every) for j, own in enumerate(every) if i != j}

    def found(self, i: int, others: list[int]) -> GroupElement:
        target = self.moved[others].mean(0, keepdim=True)
        return align_answers(self.space, self.moved[i : i + 1], target, self._similarity(i, others), positive=False)

    def loss(self, i: int, others: list[int], element: GroupElement | None = None) -> float:
        similarity = self._similarity(i, others)
        moved = similarity if element is None else {key: _moved(values, key, element) for key, values in similarity.items()}
        return -sum(float(values.diagonal(dim1=1, dim2=2).sum()) for values in moved.values())

    def move(self, i: int, element: GroupElement) -> None:
        super().move(i, element)
        for (first, second), similarity in self.pairs.items():
            if second == i:
                self.pairs[first, i] = {key: _moved(values, key, element) for key, values in similarity.items()}
                self.pairs[i, first] = {key: values.transpose(1, 2) for key, values in self.pairs[first, i].items()}

    def _similarity(self, i: int, others: list[int]) -> Similarity:
        """How alike neurons of the mean of others and of a network answer."""
        several = [self.pairs[j, i] for j in others]
        return {key: torch.stack([each[key] for each in several]).mean(0) for key in several[0]}


def _moved(similarity: Tensor, key: tuple[str, str], element: GroupElement) -> Tensor:
    """Similarities ``[1, n, n]`` once an element has moved the neurons of the second network."""
    permutation, scale = key
    moved = similarity[:, :, element.permutations[permutation][0]]
    return moved if scale not in element.scales else moved * element.scales[scale][:, None]
