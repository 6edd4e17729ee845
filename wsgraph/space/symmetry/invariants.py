"""Numbers of a network that no permutation and no sign of its neurons changes, and that change little when its weights do."""

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
_CARRIED = 4  # numbers of a neuron that reach those it is connected with

Signs = tuple[str, ...]  # scale classes whose signs entries follow


class Invariants:
    r"""Numbers :math:`\phi(\theta)` that no permutation or sign of neurons changes.

    .. math:: \phi_c = \operatorname{sort}_j (R_c x_j), \qquad x_j = \Bigl( u_j, \; \frac{1}{\sqrt{n}} \sum_i W_{ji} Q u_i \Bigr)

    Every neuron :math:`j` of a class :math:`c` that moves together is described by its own entries :math:`u_j`: those whose other axes
    cannot move as they are, all others by their norms over the axes that can; and by what its weights make of the descriptions of the
    neurons :math:`i` at their other ends. What follows the neuron's sign becomes :math:`|Q x_j|`. Then :math:`\phi` holds, sorted over
    the neurons of every class, random projections of the descriptions, of large classes means of runs of sorted numbers, and all
    entries along whose axes nothing moves.

    Norms, sorting and absolute values change by no more than what they are taken of, so that a small change of weights is a small change
    of :math:`\phi`. Nearness of :math:`\phi` does not prove nearness of networks: alignment does.

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
        logical = logical_tensors(self.space, thetas)
        tensors = {name: tensor for name, tensor in logical.items() if self.space.param(name).role != "buffer"}
        labels = [label for label in self.places.by_permutation if self.space.is_permutable(label)]
        own = {label: self._own(label, tensors) for label in labels}
        carried = {label: self._carried(label, described) for label, described in own.items()}
        found = [self._fixed(name, tensor) for name, tensor in tensors.items()]
        for label in labels:
            described = {signs: list(values) for signs, values in own[label].items()}
            for signs, values in self._reached(label, tensors, carried):
                described.setdefault(signs, []).append(values)
            # Beside each other, not in one: what reaches a neuron is less certain than what it has.
            found += [self._sorted(("own", label), own[label]), self._sorted(("reached", label), described)]
        return torch.cat(found, dim=1)

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
        if occurrence.param.axes[occurrence.axis].blocks > 1:  # whose neurons lie along the first axis as well
            yield occurrence.entries({name: tensor}).norm(dim=2, keepdim=True), True
            return
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

    def _signs(self, occurrence: Occurrence) -> Signs:
        """The classes whose signs the entries of an occurrence follow along its axis."""
        return tuple(sorted(scale for scale, power in occurrence.powers if power % 2 and scale in self._signed))

    def _own(self, label: str, tensors: Mapping[str, Tensor]) -> dict[Signs, list[Tensor]]:
        """The entries ``[B, n, D]`` of the neurons of a class, by the signs that they follow."""
        described: dict[Signs, list[Tensor]] = {}
        for occurrence in self.places.by_permutation[label]:
            for entries, squared in self._entries(occurrence, tensors[occurrence.param.name]):
                described.setdefault(() if squared else self._signs(occurrence), []).append(entries)
        return described

    def _carried(self, label: str, described: Mapping[Signs, list[Tensor]]) -> dict[Signs, Tensor]:
        """A few numbers ``[B, n, k]`` of every neuron of a class, by the signs that they follow, of the size of its entries."""
        found = {}
        for signs, parts in described.items():
            values = torch.cat(parts, dim=2)
            rows = min(_CARRIED, values.shape[2])
            found[signs] = values @ self._frame(("carried", label, *signs), values.shape[2], values, rows).T
        return found

    def _reached(
        self, label: str, tensors: Mapping[str, Tensor], carried: Mapping[str, Mapping[Signs, Tensor]]
    ) -> Iterator[tuple[Signs, Tensor]]:
        """What reaches the neurons of a class ``[B, n, D]`` along their weights, with the signs that it follows."""
        for occurrence in self.places.by_permutation[label]:
            param, axes = occurrence.param, range(len(occurrence.param.axes))
            movable = {axis for axis in axes if self._movable(param.name, axis)}
            if len(movable) != 2 or any(param.axes[axis].blocks > 1 for axis in axes):
                continue
            (other,) = movable - {occurrence.axis}
            tensor = tensors[param.name].movedim((1 + occurrence.axis, 1 + other), (1, 2))
            tensor = tensor.flatten(3) if tensor.ndim > 3 else tensor[..., None]
            rows = tensor if occurrence.whole else tensor.index_select(1, torch.tensor(occurrence.positions, device=tensor.device))
            for end in self._movable(param.name, other):
                values = carried[end.group.permutation].get(self._signs(end))
                if values is None or values.shape[1] != len(end.positions):
                    continue
                weights = rows if end.whole else rows.index_select(2, torch.tensor(end.positions, device=tensor.device))
                reached = torch.einsum("bjik,bid->bjkd", weights, values)
                yield self._signs(occurrence), reached.flatten(2) / math.sqrt(len(end.positions))

    def _sorted(self, key: Signs, described: Mapping[Signs, list[Tensor]]) -> Tensor:
        """Sorted projections ``[B, m]`` of the neurons of a class."""
        parts = []
        for signs, entries in sorted(described.items()):
            values = torch.cat(entries, dim=2)
            parts.append((values @ self._frame((*key, *signs), values.shape[2], values).T).abs() if signs else values)
        values = torch.cat(parts, dim=2)
        rows = min(max(values.shape[2], _PROJECTIONS[0]), _PROJECTIONS[1])
        ordered = (values @ self._frame(("sorted", *key), values.shape[2], values, rows).T).sort(1).values
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
