"""Spaces that differ in the names of their parts alone, and the first of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

from wsgraph.space.structure import Structure

__all__ = ["DistinctSpaces", "differ_in_names_alone"]

SpaceT = TypeVar("SpaceT", bound=Structure)


class DistinctSpaces(Generic[SpaceT]):
    """Weight spaces without those that differ from an earlier one in the names of their parts alone.

    The same network has other names in every library, and a flat checkpoint of it is one of all
    these spaces.

    Args:
        spaces: The first spaces.

    Example:
        >>> from wsgraph import WeightSpace, trace
        >>> import torch
        >>> by_hand, wide = WeightSpace.mlp([2, 8, 1]), WeightSpace.mlp([2, 9, 1])
        >>> module = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1)).eval()
        >>> spaces = DistinctSpaces([by_hand, trace(module, torch.ones(1, 2)), wide])
        >>> len(spaces), spaces.first(trace(module, torch.ones(1, 2))) is by_hand
        (2, True)
    """

    def __init__(self, spaces: Iterable[SpaceT] = ()) -> None:
        self._known: dict[SpaceT, SpaceT] = {}
        self._first: dict[object, SpaceT] = {}
        for space in spaces:
            self.first(space)

    def first(self, space: SpaceT) -> SpaceT:
        """The first of the spaces that differ from one in names alone; itself where it is new, and is kept then.

        Args:
            space: The space.
        """
        if (first := self._known.get(space)) is None:
            first = self._known[space] = self._first.setdefault(space.unnamed, space)
        return first

    def __iter__(self) -> Iterator[SpaceT]:
        return iter(self._first.values())

    def __len__(self) -> int:
        return len(self._first)


def differ_in_names_alone(space: Structure, other: Structure) -> bool:
    """Whether flat checkpoints of two weight spaces are networks of one architecture, whatever its parts are called, programs aside."""
    return space.unnamed == other.unnamed or space.matches(other)
