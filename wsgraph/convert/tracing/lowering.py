"""From what tracing found out about neurons to the groups and parameters of a weight space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from wsgraph.convert.tracing.neurons import Key, occurrence, solve
from wsgraph.convert.tracing.values import Label, Scope, Value
from wsgraph.space import Axis, NeuronGroup, Parameter, Symmetry, Tie
from wsgraph.space.weight_space import stored_dtype

__all__ = ["lower"]

_ROLES = {"running_mean": "mean", "running_var": "variance", "bias": "bias"}


@dataclass(frozen=True)
class _Place:
    """Where a neuron stands: in a class of neurons that move alike, and in which copy of that class."""

    kind: tuple[str, int, int]  # what moves: a family, a product of two families, or nothing
    copy: int  # row or column that cannot move, in products of which the other half can


class Lowering:
    """Groups and parameters, found parameter by parameter."""

    def __init__(self, scope: Scope) -> None:
        self.neurons, self.factors = scope.neurons, scope.factors
        self.bound, self.limits = solve(scope.neurons, scope.factors)
        self.groups: dict[str, NeuronGroup] = {}
        self.names: dict[tuple[Key, _Place], str] = {}
        self.taken: dict[str, int] = {}
        self.sizes: dict[tuple[str, int, int], int] = {}
        self.anchors: dict[_Place, str] = {}
        self.labels: dict[tuple[str, int, int], str] = {}

    # == Neurons ==

    def places(self, ids: Tensor) -> list[tuple[_Place, Tensor, Tensor]]:
        """Neurons by place: positions of its neurons among ``ids``, and their numbers within it."""
        ids = self.neurons.resolve(ids)
        family = self.neurons.family(ids)
        rows, columns = self.neurons.pair(ids)
        product = self.neurons.is_product(ids)
        fixed_rows, fixed_columns = self.neurons.is_fixed(rows), self.neurons.is_fixed(columns)
        fixed = self.neurons.is_fixed(ids)
        row_family, column_family = self.neurons.family(rows), self.neurons.family(columns)
        zeros = torch.zeros_like(ids)
        kind = torch.where(fixed, 0, torch.where(~product, 1, torch.where(fixed_rows, 2, torch.where(fixed_columns, 3, 4))))
        first = torch.where(kind == 1, family, torch.where(kind == 2, column_family, torch.where(kind >= 3, row_family, zeros)))
        second = torch.where(kind == 4, column_family, zeros)
        copy = torch.where(kind == 2, rows, torch.where(kind == 3, columns, zeros))
        keys, inverse = torch.stack([kind, first, second, copy]).unique(dim=1, return_inverse=True)
        found = []
        for i, (k, one, other, which) in enumerate(keys.T.tolist()):
            positions = (inverse == i).nonzero()[:, 0]
            name = ("fixed", "family", "family", "family", "product")[k]
            place = _Place((name, one, other), which)
            if k == 0:
                numbers = torch.arange(len(positions))
            elif k == 4:
                members = self.neurons.members(other)
                numbers = self._number(rows[positions], one) * len(members) + self._number(columns[positions], other)
                self.sizes[place.kind] = len(self.neurons.members(one)) * len(members)
            else:
                moving = (None, ids, columns, rows)[k]
                assert moving is not None
                numbers = self._number(moving[positions], one)
                self.sizes[place.kind] = len(self.neurons.members(one))
            found.append((place, positions, numbers))
        return sorted(found, key=lambda entry: int(entry[1].min()))

    def _number(self, ids: Tensor, family: int) -> Tensor:
        return torch.searchsorted(self.neurons.members(family), ids)

    # == Groups ==

    def solved(self, expression: int, part: int) -> dict[Key, int]:
        """An expression in terms of free unknowns."""
        unknown, power = self.factors.expressions[expression]
        terms = self.bound.get((unknown, part), {(unknown, part): 1}) if power else {}
        return {key: power * inner for key, inner in terms.items()}

    def class_label(self, kind: tuple[str, int, int]) -> tuple[str, tuple[str, ...]]:
        """Label of the class of a kind, and the names of its factors."""
        if kind not in self.labels:
            self.labels[kind] = f"neurons.{len(self.labels)}"
        if kind[0] != "product":
            return self.labels[kind], ()
        return self.labels[kind], tuple(self.factor_group(family) for family in kind[1:])

    def factor_group(self, family: int) -> str:
        """The group that stands for rows or columns of products."""
        place = _Place(("family", family, 0), 0)
        if place not in self.anchors:
            label, _ = self.class_label(place.kind)
            name = self.free_name("factor")
            self.anchors[place] = self.add(NeuronGroup(name, len(self.neurons.members(family)), "factor", permutation=label))
        return self.anchors[place]

    def add(self, group: NeuronGroup) -> str:
        """Add a group under a name of its own."""
        self.groups[group.name] = group
        return group.name

    def group(self, key: Key, place: _Place) -> str:
        """The group of the neurons at a place that an unknown multiplies."""
        if (key, place) not in self.names:
            label, factors = self.class_label(place.kind)
            free, limits = key, self.limits.get(key, (False, False))
            if key in self.bound:
                solution = list(self.bound[key].items())
                if len(solution) == 1 and solution[0][1] == 1:
                    free = solution[0][0]
                    limits = self.limits.get(free, (False, False))
                else:  # its factors follow those of others, and the axes that it belongs to name those
                    limits = (True, True)
            self.names[key, place] = self.add(
                NeuronGroup(
                    self.free_name(self.factors.names[key[0]]),
                    self.sizes[place.kind],
                    permutation=label,
                    scale=f"{free[0]}/{free[1]}/{place.copy}/{label}",
                    limits=Symmetry(not limits[0], not limits[1]),
                    factors=factors,
                )
            )
            self.anchors.setdefault(place, self.names[key, place])
        return self.names[key, place]

    def free_name(self, base: str) -> str:
        """A name that no group has yet."""
        name = base
        while name in self.groups:
            self.taken[base] = self.taken.get(base, 0) + 1
            name = f"{base}[{self.taken[base]}]"
        return name

    def fixed_group(self, unknown: int, ids: Tensor, whole: bool) -> str:
        """The group of neurons that cannot move."""
        families = self.neurons.family(ids).unique().tolist()
        reasons = list(dict.fromkeys(reason for family in families if (reason := self.neurons.reason(family))))
        if self.neurons.is_product(ids).any():
            reasons = reasons or ["the order of these neurons"]
        name = self.free_name(self.factors.names[unknown])
        role = reasons[0] if whole and reasons in (["output"], ["input"]) else "fixed"
        return self.add(NeuronGroup(name, len(ids), role, reason="" if role != "fixed" else "; ".join(reasons)))  # type: ignore[arg-type]

    def made_values(self, label: Label) -> list[tuple[int, int, Tensor]]:
        """Unknowns of values that a parameter makes: their numbers in the network's order, and whose factors they are."""
        found = []
        for expression in label.expressions.unique().tolist():
            unknown, power = self.factors.expressions[expression]
            if power and self.factors.values[unknown]:
                found.append((self.factors.values[unknown], unknown, label.ids[label.expressions == expression]))
        return found

    def add_values(self, unknown: int, ids: Tensor) -> None:
        """The groups of values."""
        for place, positions, _ in self.places(ids):
            if place.kind[0] == "fixed":
                self.fixed_group(unknown, ids[positions], len(positions) == len(ids))
            else:
                for part in self.neurons.part(ids[positions]).unique().tolist():
                    self.group((unknown, part), place)

    # == Parameters ==

    def axes(self, label: Label | None, size: int) -> list[Axis]:
        """Logical axes of one dimension of a parameter."""
        if label is None:
            return [Axis(size)]
        before, middle, after = _runs(self.neurons.resolve(label.ids), self.neurons.part(label.ids), label.expressions)
        inner = torch.arange(middle) * after
        axis = self.axis(label.ids[inner], label.expressions[inner])
        return [*([Axis(before)] if before > 1 else []), axis, *([Axis(after)] if after > 1 else [])]

    def axis(self, ids: Tensor, expressions: Tensor) -> Axis:
        """An axis along which every neuron of a class comes once, or several times."""
        size = len(ids)
        if bool(self.neurons.is_fixed(ids).all()):
            return Axis(size)
        segments: list[tuple[str, tuple[tuple[str, int], ...]]] = []
        order = torch.zeros(size, dtype=torch.long)
        offset = 0
        parts = self.neurons.part(ids)
        for place, positions, numbers in self.places(ids):
            if place.kind[0] == "fixed":
                unknown = self.factors.expressions[int(expressions[positions[0]])][0]
                segments.append((self.fixed_group(unknown, ids[positions], False), ()))
                order[positions] = offset + numbers
                offset += len(positions)
                continue
            for part in parts[positions].unique().tolist():
                mine = parts[positions] == part
                # The k-th occurrence of every neuron makes the k-th copy.
                rank = occurrence(numbers[mine])
                for copy in range(int(rank.max()) + 1):
                    used, which = positions[mine][rank == copy], numbers[mine][rank == copy]
                    if len(used) != self.sizes[place.kind]:
                        raise AssertionError(f"an axis holds {len(used)} of {self.sizes[place.kind]} neurons of a class")
                    expression = int(expressions[used[0]])
                    terms = self.solved(expression, part)
                    powers = tuple((self.group(key, place), power) for key, power in sorted(terms.items()))
                    segments.append((powers[0][0] if powers else self.anchor(place, expression, part), powers))
                    order[used] = offset + which
                    offset += len(used)
        return Axis(size, _ties(segments), tuple(order.tolist()))

    def anchor(self, place: _Place, expression: int, part: int) -> str:
        """Any group at a place, for entries that move but have no factor."""
        if place not in self.anchors:
            unknown, power = self.factors.expressions[expression]
            self.anchors[place] = self.group((unknown, part), place) if power else self.factor_group(place.kind[1])
        return self.anchors[place]


def _ties(segments: Sequence[tuple[str, tuple[tuple[str, int], ...]]]) -> tuple[Tie, ...]:
    """One tie per factor of the entries; where a segment has fewer, its power is 0."""
    count = max(1, *(len(powers) for _, powers in segments))
    ties = []
    for i in range(count):
        chosen = [powers[i] if i < len(powers) else (anchor, 0) for anchor, powers in segments]
        ties.append(Tie(tuple(name for name, _ in chosen), tuple(power for _, power in chosen)))
    return tuple(ties)


def _runs(ids: Tensor, *others: Tensor) -> tuple[int, int, int]:
    """Sizes ``(a, n, b)`` such that ids are those of ``n`` distinct neurons, each repeated ``b`` times in a row, the whole ``a`` times.

    What else is known of the entries must repeat likewise: two halves of a layer may be tied neuron by neuron and still scale differently.
    """
    size, distinct = len(ids), len(ids.unique())
    if size > distinct and size % distinct == 0:
        changes = (ids[1:] != ids[:-1]).nonzero()
        after = int(changes[0]) + 1 if len(changes) else size
        if size % (distinct * after) == 0:
            repeats = [entries.view(-1, distinct, after) for entries in (ids, *others)]
            if all(bool((shaped == shaped[:1, :, :1]).all()) for shaped in repeats):
                return size // (distinct * after), distinct, after
    return 1, size, 1


def lower(
    scope: Scope, values: Mapping[str, Value], state: Mapping[str, Tensor], theta_dtype: torch.dtype
) -> tuple[tuple[NeuronGroup, ...], tuple[Parameter, ...]]:
    """Groups and parameters of the state dict; tensors that the program does not use have no symmetry."""
    lowering = Lowering(scope)
    # Groups in the order in which the network computes them.
    made = [entry for value in values.values() for label in value.labels for entry in lowering.made_values(label)]
    for expression, ids in scope.factors.products:
        unknown, _ = scope.factors.expressions[expression]
        made.append((scope.factors.values[unknown], unknown, ids))
    for _, unknown, ids in sorted(made, key=lambda entry: entry[0]):
        lowering.add_values(unknown, ids)
    params = []
    for name, tensor in state.items():
        value = values.get(name, Value(tuple(tensor.shape)))
        along = {label.dims[0]: label for label in value.labels}
        axes = [axis for dim, size in enumerate(value.shape) for axis in lowering.axes(along.get(dim), size)]
        role = _ROLES.get(name.rsplit(".", 1)[-1], "weight" if tensor.ndim > 1 else "scale") if tensor.is_floating_point() else "buffer"
        params.append(Parameter(name, tuple(tensor.shape), role, tuple(axes) or (Axis(1),), stored_dtype(tensor, theta_dtype)))
    return tuple(_renamed(lowering.groups)), tuple(params)


def _renamed(groups: Mapping[str, NeuronGroup]) -> list[NeuronGroup]:
    """Groups whose class labels are the name of the first group of each class."""
    permutations: dict[str, str] = {}
    scales: dict[str, str] = {}
    for group in groups.values():
        permutations.setdefault(group.permutation, group.name)
        scales.setdefault(group.scale, group.name)
    return [replace(group, permutation=permutations[group.permutation], scale=scales[group.scale]) for group in groups.values()]
