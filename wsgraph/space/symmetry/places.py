"""The classes of neurons that alignment moves, and where their entries lie."""

from __future__ import annotations

from wsgraph.space.flat import FlatSpace
from wsgraph.space.parts import NeuronGroup
from wsgraph.space.symmetry.occurrences import Occurrence, occurrences

__all__ = ["Places"]


class Places:
    """The classes of neurons that can move, and where their entries lie."""

    def __init__(self, space: FlatSpace) -> None:
        self.space = space
        self.by_permutation: dict[str, list[Occurrence]] = {}
        self.by_scale: dict[str, list[Occurrence]] = {}
        self.users: dict[str, set[str]] = {}
        for occurrence in occurrences(space):
            if occurrence.param.role == "buffer":
                continue
            permutation = occurrence.group.permutation
            self.by_permutation.setdefault(permutation, []).append(occurrence)
            for label in (permutation, *(label for label, _ in occurrence.powers)):
                self.users.setdefault(label, set()).add(occurrence.param.name)
            for label, _ in occurrence.powers:
                self.by_scale.setdefault(label, []).append(occurrence)
        # Products move with their rows and columns.
        self.products: dict[str, list[str]] = {}
        self.classes: list[str] = []
        for label, members in space.permutation_classes.items():
            if not space.is_permutable(label):
                continue
            for factor in self.factors(label):
                if space.is_permutable(factor.permutation):
                    self.products.setdefault(factor.permutation, []).append(label)
                    self.users.setdefault(factor.permutation, set()).update(self.users.get(label, ()))
            if len(members[0].factors) < 2:
                self.classes.append(label)
        self.classes = [label for label in self.classes if self.users.get(label)]
        self.scales = [
            label
            for label, members in space.scale_classes.items()
            if any(space.class_symmetry(label)) and space.is_permutable(members[0].permutation) and label in self.by_scale
        ]
        self.scaled = list(dict.fromkeys(space.scale_classes[label][0].permutation for label in self.scales))
        # Parameters and axes along which factors act.
        self.scaled_axes = {(o.param.name, o.axis) for label in self.scales for o in self.by_scale[label]}
        self.scaled_axes |= {(name, 0) for name, axis in self.scaled_axes if space.param(name).axes[axis].blocks > 1}

    def factors(self, label: str) -> list[NeuronGroup]:
        """The blocks that the neurons of a class lie in, or the rows and columns that they are made of, if any."""
        return [self.space.group(name) for name in self.space.permutation_classes[label][0].factors]

    def matched(self, label: str) -> list[str]:
        """The classes whose neurons say how a class is permuted: itself and the products that it is a factor of."""
        return [name for name in (label, *self.products.get(label, ())) if name in self.by_permutation]

    def scales_of(self, label: str) -> list[str]:
        """The scale classes of a class."""
        return [scale for scale in self.scales if self.space.scale_classes[scale][0].permutation == label]

    def columns(self, label: str) -> list[str]:
        """The classes that can move within blocks that a class orders, or as columns of the products of which it is the rows."""
        pairs = [(*(factor.permutation for factor in self.factors(name)), name)[:2] for name in self.products.get(label, ())]
        return list(dict.fromkeys(column for row, column in pairs if row == label != column and self.space.is_permutable(column)))

    def neighbours(self, occurrence: Occurrence) -> set[str]:
        """The classes that move along the other axes of an occurrence."""
        labels = (
            factor.permutation
            for group in occurrence.beside
            for factor in (*self.factors(group.permutation), group)
            if len(factor.factors) < 2 and self.space.is_permutable(factor.permutation)
        )
        return set(labels)
