r"""What becomes of factors of neurons along the edges of a network.

Features of a neuron :math:`j` carry its factor :math:`q_j`, an entry :math:`W_{jk}` of a parameter a product of
powers of factors, given by the ties of its axes. A message :math:`\sum_k W_{jk} h_k` carries :math:`q_j` again if
every :math:`W_{jk}` carries :math:`q_j / q_k`, as the weights of layers do. Other parameters do not: those of a
weight norm, statistics of a batch norm, what is read by a square. Their messages are taken with another power of
the source's features, and where the result carries something else than :math:`q_j`, that is taken out of it, so
that it may enter what is computed of invariants.

Which case a wire is, is found by multiplying every factor out for a few of its entries, with random numbers in
place of factors: a product of powers that is equal for random numbers is equal.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wsgraph.space import Symmetry
from wsgraph.space.base import BaseSpace
from wsgraph.space.symmetry.occurrences import segments

if TYPE_CHECKING:
    from wsgraph.space import Connection, NeuronGroup

__all__ = ["EXACT", "NONE", "Carried", "Transport", "features_carry", "group_symmetry", "joint_products", "transport_of"]

NONE = Symmetry(False, False)
_ALL = Symmetry(True, True)
_DEGREES = (1, 0, 2, 3)
# Independent draws of every sign: those of two neurons agree in one draw out of two.
_SIGNS = 40


@dataclass(frozen=True, order=True)
class Carried:
    """How messages reach the neurons at one end.

    Args:
        degree: Power of the other end's features that is read; 0 for their invariants.
        own: Whether the sum carries the factor of the neurons that it reaches.
        left: Factors to be taken out of the sum where it does not.
        weighted: Whether the entries of the parameter are used: not where they carry factors that nothing cancels.
        share: What single messages are multiplied with where edges have no weights: one over their number.
    """

    degree: int = 1
    own: bool = True
    left: Symmetry = NONE
    weighted: bool = True
    share: float = 1.0


@dataclass(frozen=True, order=True)
class Transport:
    """How messages travel along edges and against them, and which factors single entries may carry.

    Args:
        forward: To the targets.
        backward: To the sources, of features with inverse factors.
        fits: Whether every entry carries the factor of its target and the inverse one of its source.
        entries: Factors that entries may carry.
    """

    forward: Carried = Carried()
    backward: Carried = Carried()
    fits: bool = True
    entries: Symmetry = _ALL


EXACT = Transport()


class _Draws:
    """Random logarithms and signs in place of the factors of every scale class."""

    def __init__(self, space: BaseSpace) -> None:
        generator = torch.Generator().manual_seed(0)
        self.space = space
        self.logs: dict[str, Tensor] = {}
        self.signs: dict[str, Tensor] = {}
        for label, members in space.scale_classes.items():
            symmetry = space.class_symmetry(label) if space.is_permutable(members[0].permutation) else NONE
            size = members[0].size
            if symmetry.positive:
                self.logs[label] = torch.randn(size, generator=generator, dtype=torch.float64)
            if symmetry.sign:
                self.signs[label] = torch.randint(0, 2, (_SIGNS, size), generator=generator)

    def of_powers(self, powers: tuple[tuple[str, int], ...], size: int) -> Tensor:
        """Logarithm and signs (0 or 1) of a product of powers, ``[1 + signs, n]``."""
        log, sign = torch.zeros(size, dtype=torch.float64), torch.zeros(_SIGNS, size, dtype=torch.float64)
        for label, power in powers:
            if label in self.logs:
                log = log + power * self.logs[label]
            if label in self.signs:
                sign = (sign + power * self.signs[label]) % 2
        return torch.cat([log[None], sign])

    def of_group(self, group: NeuronGroup) -> Tensor:
        """Those of the values of a group's neurons."""
        return self.of_powers(group.powers, group.size)

    @functools.cache  # noqa: B019  (lives as long as the space's own cache)
    def of_parameter(self, name: str) -> list[Tensor]:
        """Those of a parameter's entries, ``[1 + signs, n]`` per axis: an entry's are the sums of those of its places."""
        result = []
        for axis in self.space.param(name).axes:
            laid = [self.of_powers(powers, group.size) for group, powers in segments(self.space, axis)]
            along = torch.cat(laid, dim=1) if laid else torch.zeros(1 + _SIGNS, axis.num_neurons, dtype=torch.float64)
            result.append(along[:, torch.tensor(axis.order)] if axis.order else along)
        return result

    def of_entries(self, name: str, index: Tensor) -> Tensor:
        """Those of some entries, given by their places in the parameter: ``[1 + signs, *index]``."""
        total = torch.zeros(1 + _SIGNS, *index.shape, dtype=torch.float64)
        axes = self.space.param(name).axes
        places = torch.unravel_index(index, [axis.size for axis in axes])
        for along, axis, place in zip(self.of_parameter(name), axes, places, strict=True):
            if axis.blocks > 1:  # of which every one has neurons of its own
                place = places[0] // (axes[0].size // axis.blocks) * axis.size + place
            total = total + along[:, place]
        return total


@functools.lru_cache(maxsize=4096)
def _draws(space: BaseSpace) -> _Draws:
    return _Draws(space)


def group_symmetry(space: BaseSpace, group: NeuronGroup) -> Symmetry:
    """Factors that the values of a group's neurons may carry."""
    found = NONE
    for label, power in group.powers:
        members = space.scale_classes[label]
        symmetry = space.class_symmetry(label) if space.is_permutable(members[0].permutation) else NONE
        found = Symmetry(found.positive or (symmetry.positive and power != 0), found.sign or (symmetry.sign and power % 2 == 1))
    return found


def _is(value: Tensor, other: Tensor | float) -> bool:
    """Whether logarithms and signs ``[1 + signs, ...]`` agree; signs are known up to 2."""
    difference = value - other
    return bool((difference[0].abs() < 1e-9).all() and (difference[1:] % 2 == 0).all())


def _left(value: Tensor) -> Symmetry:
    return Symmetry(bool((value[0].abs() > 1e-9).any()), bool((value[1:] % 2 != 0).any()))


def _carried(entries: Tensor, read: Tensor, wanted: Tensor, receivers: Tensor) -> Carried:
    """How messages reach the neurons of rows from those of columns.

    Args:
        entries: Factors of the entries, ``[1 + signs, rows, columns]``.
        read: Factors of the features that are read, ``[1 + signs, 1 or rows, columns]``.
        wanted: Factors of the neurons that are reached, ``[1 + signs, rows]``.
        receivers: Which neuron each row is, ``[rows]``: several rows may be one, which sums what they get.
    """
    first = _first_of_each(receivers)
    for degree in (1,) if _is(read, 0.0) else _DEGREES:
        total = entries + degree * read
        if _is(total, total[:, first, :1]):
            result = total[:, :, 0]
            own = _is(result, wanted)
            return Carried(degree, own, NONE if own else _left(result))
    # Nothing cancels: who is joined with whom is all that is left.
    return Carried(0, _is(wanted, 0.0), NONE, weighted=False)


def _first_of_each(numbers: Tensor) -> Tensor:
    """For every place, the first place that holds the same number."""
    _, owner = numbers.unique(return_inverse=True)
    first = torch.empty(int(owner.max()) + 1, dtype=torch.long)
    first[owner.flip(0)] = torch.arange(len(owner)).flip(0)
    return first[owner]


def transport_of(space: BaseSpace, wire: Connection, source: tuple[str, Tensor], target: tuple[str, Tensor], entries: Tensor) -> Transport:
    """What becomes of factors along some edges of a wire, from one group to another.

    Args:
        space: The weight space.
        wire: The wire.
        source: The group read, and which of its neurons stands at each column.
        target: The group written, and which of its neurons stands at each row.
        entries: Places in the parameter ``[rows, columns, positions]`` (anything where there is none); of
            single edges, ``[edges, 1, positions]``, both ends of which ``source`` and ``target`` then give.
    """
    draws = _draws(space)
    rows, columns = (draws.of_group(space.group(name))[:, index] for name, index in (target, source))
    shape = entries.shape[:2]
    if wire.parameter is None:
        values = torch.zeros(1 + _SIGNS, *shape, dtype=torch.float64)
    else:
        positions = draws.of_entries(wire.parameter, entries)
        values = positions[..., 0]
        if not _is(positions, values[..., None]):  # positions that carry different factors are never summed
            return Transport(Carried(0, _is(rows, 0.0), NONE, False), Carried(0, _is(columns, 0.0), NONE, False), False)
    paired = shape[1] == 1 and len(source[1]) == shape[0]
    if paired:  # each row has a column of its own
        edges = values[:, :, :1]
        forward = _carried(edges, columns[:, :, None], rows, target[1])
        backward = _carried(edges, -rows[:, :, None], -columns, source[1])
        fits = _is(values[:, :, 0] + columns, rows)
    else:
        forward = _carried(values, columns[:, None], rows, target[1])
        backward = _carried(values.transpose(1, 2), -rows[:, None], -columns, source[1])
        fits = _is(values + columns[:, None], rows[:, :, None])
    return Transport(forward, backward, fits, _left(values))


def features_carry(space: BaseSpace, wire: Connection, group: str, rows: Tensor, entries: Tensor) -> Carried:
    """Whether a parameter that belongs to neurons carries their factor, and what is to be taken out of it where not."""
    assert wire.parameter is not None
    draws = _draws(space)
    values = draws.of_entries(wire.parameter, entries)
    own = _is(values, draws.of_group(space.group(group))[:, rows])
    return Carried(1, own, NONE if own else _left(values))


@functools.lru_cache(maxsize=4096)
def joint_products(space: BaseSpace) -> frozenset[str]:
    """Groups whose factor is the product of those of the groups that are multiplied, none of which has it alone."""
    draws = _draws(space)
    found = set()
    for group in space.groups:
        sources = [wire for wire in space.wires if wire.kind == "product" and wire.targets == (group.name,)]
        if len(sources) < 2 or any(len(wire.sources) > 1 or wire.source_order or wire.target_order for wire in sources):
            continue
        if any(space.group(wire.sources[0]).size != group.size for wire in sources):
            continue
        factors = [draws.of_group(space.group(wire.sources[0])) for wire in sources]
        own = draws.of_group(group)
        if not any(_is(factor, own) for factor in factors) and _is(sum(factors[1:], start=factors[0]), own):
            found.add(group.name)
    return frozenset(found)
