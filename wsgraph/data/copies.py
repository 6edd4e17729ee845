"""Networks with equal weights: what is learned of one must not be scored on the other."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Copies", "Copy", "equal_rows", "listed"]

_SAMPLED = 16
_SHOWN = 5


class Copy(NamedTuple):
    """A network with the weights of one before it.

    Args:
        number: The network.
        first: The first one with these weights.
    """

    number: int
    first: int


def listed(names: Iterable[str], shown: int = _SHOWN) -> str:
    """Names for a message: the first ones, and how many more there are.

    Args:
        names: The names.
        shown: How many to write out.

    Returns:
        A text such as ``"'a', 'b' and 3 more"``.

    Example:
        >>> listed("abcdefg")
        "'a', 'b', 'c', 'd', 'e' and 2 more"
    """
    names = list(names)
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(map(repr, names[:shown])) + rest


class Copies:
    """Tells of every network that is added whether its weights were added before, whatever their
    dtype.

    Example:
        >>> copies = Copies()
        >>> copies.add("mlp", torch.tensor([[1.0, 2.0], [3.0, 4.0]])), copies.add("mlp", torch.tensor([[3.0, 4.0]]).double())
        ([], [Copy(number=2, first=1)])
    """

    def __init__(self) -> None:
        self._first: dict[tuple[Hashable, bytes], int] = {}
        self._count = 0

    def add(self, space: Hashable, thetas: Tensor) -> list[Copy]:
        """Add networks, which are numbered as they come.

        Args:
            space: What else must be equal: their weight space.
            thetas: Flat checkpoints ``[n, P]``.

        Returns:
            Those whose weights were there before.
        """
        found = []
        for row in thetas.detach().cpu():
            digest = hashlib.blake2b(row.double().contiguous().view(torch.uint8).numpy().data, digest_size=16).digest()
            first = self._first.setdefault((space, digest), self._count)
            if first != self._count:
                found.append(Copy(self._count, first))
            self._count += 1
        return found


def equal_rows(thetas: Tensor) -> list[Copy]:
    """The rows that equal an earlier one.

    Args:
        thetas: Flat checkpoints ``[n, P]``.

    Returns:
        Them, in order; found by a few entries of each row, so that it costs next to nothing where
        there are none.

    Example:
        >>> equal_rows(torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]]))
        [Copy(number=2, first=0)]
    """
    count, width = thetas.shape
    if not count or not width:
        return []
    entries = torch.linspace(0, width - 1, min(width, _SAMPLED)).long()
    sample = thetas.detach()[:, entries.to(thetas.device)].double().cpu().numpy()
    groups: dict[bytes, list[int]] = {}
    for number, row in enumerate(sample):
        groups.setdefault(row.tobytes(), []).append(number)
    if len(groups) == count:
        return []
    alike = [numbers for numbers in groups.values() if len(numbers) > 1]
    found = []
    for numbers in alike:
        found += [Copy(numbers[copy.number], numbers[copy.first]) for copy in Copies().add(None, thetas[numbers])]
    return sorted(found)
