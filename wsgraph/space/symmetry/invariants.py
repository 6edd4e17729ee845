"""Numbers of a network that no permutation and no sign of its neurons changes, and that differ no more than aligned networks do."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from wsgraph.space.flat import FlatSpace
from wsgraph.space.symmetry.group import logical_tensors
from wsgraph.space.symmetry.occurrences import Occurrence, occurrences
from wsgraph.space.symmetry.places import Places

__all__ = ["Invariants"]

_PROJECTIONS = 8, 32  # fewest and most per class of neurons
_QUANTILES = 64  # values that are kept of a sorted projection


class Invariants:
    r"""Numbers :math:`\phi(\theta)` that no permutation or sign of neurons changes, bounding the distance of aligned networks from below.

    .. math:: \| \phi(\theta) - \phi(\theta') \| \le \min_g \| g \theta - \theta' \|, \qquad g \text{ permutations and signs}

    Every neuron of a class that moves together is described by its entries :math:`x_j`: those whose other axes cannot move as they are,
    all others by their norms over the axes that can. Entries that follow the neuron's sign become :math:`|Q x_j|`. Then
    :math:`\phi` holds, sorted over the neurons of a class, the projections :math:`R x_j`, and all entries along whose axes nothing moves.

    Why the bound holds: a norm differs by no more than its vectors do (:math:`|\|a\| - \|b\|| \le \|a - b\|`), for every order of their
    entries; so does :math:`|Qx|`, for either sign, if :math:`Q^T Q \le I`; sorting brings two lists of numbers as close as any order does,
    and a sum over the rows of :math:`R` with :math:`R^T R \le I` adds no more than :math:`\|x_j - x'_j\|^2`; the mean of a run of sorted
    numbers, times the root of their count, is a projection as well. An entry that is described along :math:`k` axes is divided by
    :math:`\sqrt{k}`, so that its squared difference counts once.

    Args:
        space: The weight space.
        seed: Seed of the projections :math:`Q` and :math:`R`: equal seeds give equal numbers.

    References:
        Sorted random projections that tell apart sets of points: Dym and Gortler, `Low-dimensional invariant embeddings for universal
        geometric learning <https://arxiv.org/abs/2205.02956>`_.

    Example:
        >>> import torch
        >>> from wsgraph import WeightSpace
        >>> space = WeightSpace.mlp([2, 8, 1])
        >>> thetas, invariants = space.sample(4, dtype=torch.float64), Invariants(space)
        >>> moved = space.act(space.sample_symmetry(4, symmetries=["permutation"]), thetas)
        >>> torch.allclose(invariants(moved), invariants(thetas))
        True
    """

    def __init__(self, space: FlatSpace, *, seed: int = 0) -> None:
        self.space, self.places = space, Places(space)
        self._along: dict[tuple[str, int], list[Occurrence]] = {}
        for occurrence in occurrences(space):
            self._along.setdefault((occurrence.param.name, occurrence.axis), []).append(occurrence)
        self._signed = {label for label in self.places.scales if space.class_symmetry(label).sign}
        self._generator = torch.Generator().manual_seed(seed)
        self._frames: dict[tuple[str, ...], Tensor] = {}
        self.length = self(torch.zeros(1, space.num_params, dtype=torch.float64)).shape[1]

    def __call__(self, thetas: Tensor) -> Tensor:
        """The numbers of networks.

        Args:
            thetas: Checkpoints ``[B, P]``, balanced where positive factors are to change nothing either.

        Returns:
            Invariants ``[B, length]``.

        Raises:
            SpaceMismatchError: If the shape is wrong.
        """
        self.space.check_thetas(thetas)
        tensors = {}
        for name, tensor in logical_tensors(self.space, thetas).items():
            param = self.space.param(name)
            if param.role != "buffer":
                uses = sum(bool(self._movable(name, axis)) for axis in range(len(param.axes)))
                tensors[name] = tensor / math.sqrt(max(1, uses))
        numbers = [self._fixed(name, tensor) for name, tensor in tensors.items()]
        labels = [label for label in self.places.by_permutation if self.space.is_permutable(label)]
        return torch.cat([*numbers, *(self._of_class(label, tensors) for label in labels)], dim=1)

    def _movable(self, name: str, axis: int) -> list[Occurrence]:
        return [o for o in self._along.get((name, axis), ()) if self.space.is_permutable(o.group.permutation)]

    def _rest(self, name: str, axis: int) -> list[int]:
        """Positions along an axis that hold no neuron that can move."""
        param = self.space.param(name).axes[axis]
        movable = self._movable(name, axis)
        if movable and param.blocks > 1:
            return []
        taken = {position for occurrence in movable for position in occurrence.positions}
        return [position for position in range(param.num_neurons) if position not in taken]

    def _fixed(self, name: str, tensor: Tensor) -> Tensor:
        """Entries of a parameter along whose axes nothing moves, ``[B, m]``."""
        for axis in range(tensor.ndim - 1):
            tensor = self._taken(tensor, axis, self._rest(name, axis))
        return tensor.flatten(1)

    @staticmethod
    def _taken(tensor: Tensor, axis: int, positions: list[int]) -> Tensor:
        if len(positions) == tensor.shape[1 + axis]:
            return tensor
        return tensor.index_select(1 + axis, torch.tensor(positions, dtype=torch.long, device=tensor.device))

    def _entries(self, occurrence: Occurrence, tensor: Tensor) -> Iterator[tuple[Tensor, bool]]:
        """What describes every neuron of an occurrence, ``[B, n, D]`` each, and whether it is made of norms."""
        name, pieces = occurrence.param.name, [(tensor, False)]
        for axis in range(tensor.ndim - 1):
            if axis == occurrence.axis:
                continue
            movable = self._movable(name, axis)
            if not movable:
                continue
            in_blocks = occurrence.param.axes[axis].blocks > 1
            runs = [list(range(tensor.shape[1 + axis]))] if in_blocks else [list(o.positions) for o in movable]
            rest, after = self._rest(name, axis), []
            for piece, squared in pieces:
                for run in runs:
                    chosen = self._taken(piece, axis, run)
                    after.append(((chosen if squared else chosen.square()).sum(1 + axis, keepdim=True), True))
                if rest:
                    after.append((self._taken(piece, axis, rest), squared))
            pieces = after
        for piece, squared in pieces:
            entries = occurrence.entries({name: piece})
            yield (entries.sqrt() if squared else entries), squared

    def _of_class(self, label: str, tensors: Mapping[str, Tensor]) -> Tensor:
        """Sorted projections ``[B, m]`` of the neurons of a class."""
        described: dict[tuple[str, ...], list[Tensor]] = {}
        for occurrence in self.places.by_permutation[label]:
            signs = tuple(sorted(scale for scale, power in occurrence.powers if power % 2 and scale in self._signed))
            for entries, squared in self._entries(occurrence, tensors[occurrence.param.name]):
                described.setdefault(() if squared else signs, []).append(entries)
        joined = {signs: torch.cat(entries, dim=2) for signs, entries in described.items()}
        parts = [
            (values @ self._frame(("signs", label, *signs), values.shape[2], values).T).abs() if signs else values
            for signs, values in joined.items()
        ]
        values = torch.cat(parts, dim=2)
        rows = min(max(values.shape[2], _PROJECTIONS[0]), _PROJECTIONS[1])
        ordered = (values @ self._frame(("sorted", label), values.shape[2], values, rows).T).sort(1).values
        if (count := ordered.shape[1]) > _QUANTILES:
            edges = torch.linspace(0, count, _QUANTILES + 1, device=values.device).round().long()
            sums = torch.nn.functional.pad(ordered.cumsum(1), (0, 0, 1, 0))[:, edges]
            ordered = (sums[:, 1:] - sums[:, :-1]) / edges.diff().to(ordered).sqrt()[:, None]
        return ordered.flatten(1)

    def _frame(self, key: tuple[str, ...], width: int, like: Tensor, rows: int | None = None) -> Tensor:
        """A matrix ``[rows, width]`` with orthonormal rows, or columns where these are fewer."""
        if key not in self._frames:
            rows = rows or width
            drawn = torch.randn(max(rows, width), min(rows, width), generator=self._generator, dtype=torch.float64)
            basis = torch.linalg.qr(drawn).Q
            self._frames[key] = basis if rows >= width else basis.T
        return self._frames[key].to(like)
