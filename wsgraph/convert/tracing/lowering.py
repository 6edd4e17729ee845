"""From what tracing found out about neurons to the groups and parameters of a weight space."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wsgraph.convert.tracing.arrays import Array, distinct, is_increasing, occurrence
from wsgraph.convert.tracing.classes import Classes, Place, TornError
from wsgraph.convert.tracing.labels import Label, Value, expressions_of, neurons_of
from wsgraph.convert.tracing.neurons import Key, solve
from wsgraph.convert.tracing.nodes import NodeSet, Reading
from wsgraph.convert.tracing.rules.elementwise import rule_of
from wsgraph.convert.tracing.values import Scope
from wsgraph.space import Axis, Connection, NeuronGroup, Parameter, Symmetry, Tie
from wsgraph.space.dtypes import stored_dtype

__all__ = ["Lowering", "lower"]

_ROLES = {"running_mean": "mean", "running_var": "variance", "bias": "bias"}


class _Names:
    """Names that are given once: the first of a base is the base itself, others are numbered."""

    def __init__(self) -> None:
        self.given: set[str] = set()
        self.counts: dict[str, int] = {}

    def __call__(self, base: str) -> str:
        name = base
        while name in self.given:
            self.counts[base] = self.counts.get(base, 0) + 1
            name = f"{base}[{self.counts[base]}]"
        self.given.add(name)
        return name


class Lowering:
    """Groups and parameters, found parameter by parameter."""

    def __init__(self, scope: Scope) -> None:
        self.neurons, self.factors = scope.neurons.partition, scope.factors
        held = [label.ids.numpy().ravel() for value in scope.saved.values() for label in value.labels]
        held += [neurons_of(made.codes) for made in scope.nodes.sets]
        held += [neurons_of(codes.numpy().ravel()) for dims in scope.grouped.values() for codes in dims.values()]
        self.classes = Classes(self.neurons, held)
        self.bound, self.limits = solve(scope.neurons, scope.factors)
        self.groups: dict[str, NeuronGroup] = {}
        self.scaled: dict[tuple[str, Place], str] = {}
        self.free_name = _Names()
        self.anchors: dict[Place, str] = {}
        self.labels: dict[tuple[str, int, int], str] = {}
        self.followed: list[tuple[Key, Place]] = []
        self._groups: dict[tuple[Key, Place], str] = {}
        self._fixed_rows: dict[bytes, str] = {}

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
        if kind[0] == "product":
            return self.labels[kind], tuple(self.factor_group(family) for family in kind[1:])
        if kind[0] == "halves":
            _, still = self.classes.halves(*kind[1:])
            return self.labels[kind], (self.factor_group(kind[2]), self.fixed_factor(still))
        if kind[0] == "blocks":
            _, rows = self.classes.blocks(*kind[1:])
            if len(rows) > 1:
                return self.labels[kind], (self.factor_group(kind[2]) if kind[2] else self.fixed_factor(rows),)
        return self.labels[kind], ()

    def factor_group(self, family: int) -> str:
        """The group that stands for rows or columns of products."""
        place = Place(("family", family, 0), 0)
        if place not in self.anchors:
            label, _ = self.class_label(place.kind)
            name = self.free_name("factor")
            self.anchors[place] = self.add(NeuronGroup(name, len(self.neurons.members(family)), "factor", permutation=label))
        return self.anchors[place]

    def fixed_factor(self, rows: Array) -> str:
        """The group that stands for rows that stay."""
        key = rows.tobytes()
        if key not in self._fixed_rows:
            name = self.free_name("factor")
            self._fixed_rows[key] = self.add(NeuronGroup(name, len(rows), "factor", reason=self.classes.reason(rows)))
        return self._fixed_rows[key]

    def add(self, group: NeuronGroup) -> str:
        """Add a group under a name of its own."""
        self.groups[group.name] = group
        return group.name

    def scale(self, terms: Mapping[Key, int], place: Place) -> tuple[str, Symmetry]:
        """Label of the scale class of neurons at a place with this factor, and what factors may be; empty where it follows others."""
        label, _ = self.class_label(place.kind)
        if list(terms.values()) != [1]:
            return "", Symmetry(False, False)
        (free,) = terms
        limits = self.limits.get(free, (False, False))
        return f"{free[0]}/{free[1]}/{place.copy}/{label}", Symmetry(not limits[0], not limits[1])

    def group(self, key: Key, place: Place) -> str:
        """The group of the neurons at a place that a free unknown multiplies."""
        if (key, place) not in self._groups:
            scale, limits = self.scale({key: 1}, place)
            if (scale, place) not in self.scaled:
                self.scaled[scale, place] = self.place_group(self.factors.names[key[0]], place, scale, limits)
            self._groups[key, place] = self.scaled[scale, place]
        return self._groups[key, place]

    def followed_scale(self, key: Key, place: Place) -> str:
        """Label of the scale class of a free unknown, a group of which has to stand at a place in the end."""
        self.followed.append((key, place))
        return self.scale({key: 1}, place)[0]

    def place_group(
        self,
        name: str,
        place: Place,
        scale: str,
        limits: Symmetry,
        operators: Sequence[str] = (),
        follows: Sequence[tuple[str, int]] = (),
    ) -> str:
        """A new group of the neurons at a place."""
        label, factors = self.class_label(place.kind)
        name = self.free_name(name)
        group = NeuronGroup(
            name, self.classes.sizes[place.kind], "hidden", tuple(operators), label, scale or name, limits, factors, "", tuple(follows)
        )
        self.anchors.setdefault(place, name)
        if scale:
            self.scaled.setdefault((scale, place), name)
        return self.add(group)

    def fixed_group(self, name: str, ids: Array, operators: Sequence[str] = (), role: str = "fixed") -> str:
        """The group of neurons that cannot move."""
        reason = "" if role != "fixed" else self.classes.reason(ids)
        return self.add(NeuronGroup(self.free_name(name), len(ids), role, tuple(operators), reason=reason))  # type: ignore[arg-type]

    def segments(self, ids: Array, expressions: Array) -> Iterator[tuple[Place, Array, Array, dict[Key, int], tuple[int, int]]]:
        """Entries by the class and copy of their neurons: places, positions, numbers of the neurons, factors, and whose those are."""
        parts = self.neurons.part(ids)
        for place, positions, numbers, whole in self.classes.places(ids):
            if place.kind[0] == "fixed":
                yield place, positions, numbers, {}, (int(expressions[positions[0]]), 0)
                continue
            own = parts[positions]
            if whole and (own == own[0]).all():  # as nearly everywhere
                expression, part = int(expressions[positions[0]]), int(own[0])
                yield place, positions, numbers, self.solved(expression, part), (expression, part)
                continue
            for part in distinct(own).tolist():
                mine = own == part
                # The k-th occurrence of every neuron makes the k-th copy.
                rank = occurrence(numbers[mine])
                for copy in range(int(rank.max()) + 1):
                    used, which = positions[mine][rank == copy], numbers[mine][rank == copy]
                    if len(used) != self.classes.sizes[place.kind]:
                        raise TornError(ids[used])
                    expression = int(expressions[used[0]])
                    yield place, used, which, self.solved(expression, part), (expression, part)

    # == Parameters ==

    def axes(self, label: Label | None, size: int) -> list[Axis]:
        """Logical axes of one dimension of a parameter."""
        if label is None:
            return [Axis(size)]
        ids, expressions = label.ids.numpy(), label.expressions.numpy()
        before, middle, after = _runs(self.neurons.resolve(ids), self.neurons.part(ids), expressions)
        if middle < size:
            ids, expressions = ids[: middle * after : after], expressions[: middle * after : after]
        axis = self.axis(ids, expressions)
        return [*([Axis(before)] if before > 1 else []), axis, *([Axis(after)] if after > 1 else [])]

    def grouped(self, codes: Mapping[int, Tensor], value: Value) -> list[Axis]:
        """Logical axes of a parameter of which some dimensions follow neurons of each group of the first one, given their codes."""
        first = next(dim for dim, size in enumerate(value.shape) if size > 1)
        own = value.along(first)
        if own is not None:
            axes = [self.axis(own.ids.numpy(), own.expressions.numpy())]
        else:  # the neurons of the groups are all that the first dimension follows
            rows, _ = self.neurons.pair(neurons_of(next(iter(codes.values())).numpy()[:, 0]))
            axes = [self.axis(rows, np.zeros_like(rows))]
        for dim in range(first + 1, len(value.shape)):
            if dim in codes:
                flat = codes[dim].numpy().ravel()
                axes.append(self.axis(neurons_of(flat), expressions_of(flat), len(codes[dim])))
            else:
                axes += self.axes(value.along(dim), value.shape[dim])
        return axes

    def axis(self, ids: Array, expressions: Array, blocks: int = 1) -> Axis:
        """An axis along which every neuron of a class comes once, or several times; or, in every block, some of them."""
        size = len(ids)
        if all(place.kind[0] == "fixed" for place, *_ in self.classes.places(ids)):
            return Axis(size // blocks)
        segments: list[tuple[str, tuple[tuple[str, int], ...]]] = []
        order = np.zeros(size, np.int64)
        offset = 0
        for place, positions, numbers, terms, (expression, part) in self.segments(ids, expressions):
            if place.kind[0] == "fixed":
                unknown = self.factors.expressions[expression][0]
                segments.append((self.fixed_group(self.factors.names[unknown], ids[positions]), ()))
            else:
                powers = tuple((self.group(key, place), power) for key, power in sorted(terms.items()))
                segments.append((powers[0][0] if powers else self.anchor(place, expression, part), powers))
            order[positions] = offset + numbers
            offset += len(positions)
        return Axis(size // blocks, _ties(segments), () if is_increasing(order) else tuple(order.tolist()), blocks)

    def anchor(self, place: Place, expression: int, part: int) -> str:
        """Any group at a place, for entries that move but have no factor."""
        if place not in self.anchors:
            unknown, power = self.factors.expressions[expression]
            if power:
                self.anchors[place] = self.group((unknown, part), place)
            elif place.kind[0] == "family":
                self.anchors[place] = self.factor_group(place.kind[1])
            else:
                self.anchors[place] = self.place_group("neurons", place, "", Symmetry(False, False))
        return self.anchors[place]


def _ties(segments: Sequence[tuple[str, tuple[tuple[str, int], ...]]]) -> tuple[Tie, ...]:
    """One tie per factor of the entries; where a segment has fewer, its power is 0."""
    count = max(1, *(len(powers) for _, powers in segments))
    ties = []
    for i in range(count):
        chosen = [powers[i] if i < len(powers) else (anchor, 0) for anchor, powers in segments]
        ties.append(Tie(tuple(name for name, _ in chosen), tuple(power for _, power in chosen)))
    return tuple(ties)


def _runs(ids: Array, *others: Array) -> tuple[int, int, int]:
    """Sizes ``(a, n, b)`` such that ids are those of ``n`` distinct neurons, each repeated ``b`` times in a row, the whole ``a`` times.

    What else is known of the entries must repeat likewise: two halves of a layer may be tied neuron by neuron and still scale differently.
    """
    size, count = len(ids), len(distinct(ids))
    if size > count and size % count == 0:
        changes = np.flatnonzero(ids[1:] != ids[:-1])
        after = int(changes[0]) + 1 if len(changes) else size
        if size % (count * after) == 0:
            repeats = [entries.reshape(-1, count, after) for entries in (ids, *others)]
            if all((shaped == shaped[:1, :, :1]).all() for shaped in repeats):
                return size // (count * after), count, after
    return 1, size, 1


class Graph:
    """The nodes on which the outputs depend as neuron groups, and their readings as connections."""

    def __init__(self, scope: Scope, lowering: Lowering) -> None:
        self.nodes, self.lowering = scope.nodes, lowering
        self.movable = {
            name: {dim for label in value.labels for dim in label.dims if not lowering.neurons.is_fixed(label.ids.numpy()).all()}
            for name, value in scope.saved.items()
        }
        count = sum(len(made.codes) for made in self.nodes.sets) + 1
        self.group_of, self.number_of = np.full(count, -1), np.zeros(count, np.int64)
        outputs = scope.outputs.numpy()
        self.is_output = np.zeros(count, bool)
        self.is_output[np.maximum(outputs, 0)] = True
        self.groups: list[str] = []
        self.free_name = _Names()
        names: dict[int, str] = {}  # layers that are function calls are called like their weights
        for reading in self.nodes.readings:
            if reading.kind in ("weight", "scale") and (parameter := self.parameter(reading)) is not None and "." in parameter:
                made = self.nodes.set_of(int(reading.targets[0]))
                names.setdefault(made.start, parameter.rsplit(".", 1)[0] if rule_of(made.name) else made.name)
        # The outputs say which sets matter; groups follow in the order in which the network computes them.
        for made, alive in zip(self.nodes.sets, self.nodes.alive(outputs), strict=True):
            if alive:
                self.add(made, names.get(made.start, made.name))

    def parameter(self, reading: Reading) -> str | None:
        """The parameter that a reading goes through."""
        return next((self.nodes.pinned(pins)[0] for pins in (reading.target_pins, reading.source_pins) if pins is not None), None)

    def add(self, made: NodeSet, name_of_set: str) -> None:
        """Groups for the nodes of one set, called like the layer that makes them where there is one."""
        lowering, ids = self.lowering, neurons_of(made.codes)
        for place, positions, numbers, terms, _ in lowering.segments(ids, expressions_of(made.codes)):
            if place.kind[0] == "fixed":
                role = "input" if made.is_input else "output" if self.is_output[made.start + positions].any() else "fixed"
                name = lowering.fixed_group(name_of_set, ids[positions], made.operators, role)
            else:
                scale, limits = lowering.scale(terms, place)
                # Factors of a product: their values are multiplied with several unknowns, or with powers of one.
                follows = () if scale else [(lowering.followed_scale(key, place), power) for key, power in terms.items()]
                name = lowering.place_group(name_of_set, place, scale, limits, made.operators, follows)
            own = made.start + positions
            self.group_of[own], self.number_of[own] = len(self.groups), numbers
            self.groups.append(name)

    def end(self, numbers: Array) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """The groups that nodes lie in, and in which order."""
        owner = self.group_of[numbers]
        if (owner == owner[0]).all():
            name, order = self.groups[owner[0]], self.number_of[numbers]
            own = len(order) == self.lowering.groups[name].size and is_increasing(order)
            return (name,), () if own else tuple(order.tolist())
        starts = np.flatnonzero(np.concatenate([[True], owner[1:] != owner[:-1]]))
        present = list(dict.fromkeys(owner[starts].tolist()))
        sizes = [self.lowering.groups[self.groups[group]].size for group in present]
        stops = list(itertools.accumulate(sizes))
        offsets = {group: stop - size for group, size, stop in zip(present, sizes, stops, strict=True)}
        order = np.repeat([offsets[group] for group in owner[starts].tolist()], np.diff(np.append(starts, len(owner))))
        order += self.number_of[numbers]
        own = len(order) == stops[-1] and order[0] == 0 and order[-1] == stops[-1] - 1 and is_increasing(order)
        return tuple(self.groups[group] for group in present), () if own else tuple(order.tolist())

    def connections(self, state: Mapping[str, Tensor]) -> Iterator[Connection]:
        """Readings between nodes that matter."""
        for reading in self.nodes.readings:
            if (self.group_of[reading.sources] >= 0).all() and (self.group_of[reading.targets] >= 0).all():
                for part in self.nodes.of_one_parameter(reading):
                    yield self.connection(part, state)

    def connection(self, reading: Reading, state: Mapping[str, Tensor]) -> Connection:
        """One reading."""
        sources = reading.sources
        options: dict[str, Any] = {}
        parameter = self.parameter(reading)
        kind = reading.kind
        if parameter is not None:
            options, sources = self.view(reading, parameter, list(state[parameter].shape), sources)
            kind = _ROLES.get(parameter.rsplit(".", 1)[-1], kind) if kind == "bias" else kind
        targets, target_order = self.end(reading.targets)
        source_groups, source_order = self.end(sources) if len(sources) else ((), ())
        made = Connection(
            self.free_name(parameter or self.nodes.set_of(int(reading.targets[0])).name),
            kind,  # type: ignore[arg-type]
            source_groups,
            targets,
            source_order,
            target_order,
            reading.groups,
            parameter,
            **options,
        )
        sources_per_block = len(sources) // reading.groups
        if made.num_parallel > 1 and made.source_axis is None and sources_per_block > 1:  # the same edges from every source
            made = replace(made, source_index=(0,) * sources_per_block)
        # An edge from a neuron that is always one holds as many entries as there are.
        if not source_groups and made.num_positions * made.num_parallel > 1:
            made = replace(made, kind="weight", sources=(self.constant,))
        return made

    def view(self, reading: Reading, parameter: str, shape: list[int], sources: Array) -> tuple[dict[str, Any], Array]:
        """How a parameter is seen by a reading, and the sources without the positions that flattening repeats them over."""
        ends: dict[str, tuple[tuple[int, ...], Array]] = {}
        for end, pins in (("source", reading.source_pins), ("target", reading.target_pins)):
            if pins is not None:
                _, dim, entries = self.nodes.pinned(pins)
                ends |= {} if dim is None else {end: (dim if isinstance(dim, tuple) else (dim,), entries)}
        axis_of = list(range(len(shape)))
        if "source" in ends and reading.groups > 1 and len(ends["source"][0]) > 1:  # every weight of a stack reads neurons of its own
            ends["source"] = ends["source"][0][1:], np.arange(shape[ends["source"][0][1]])
        if "source" in ends and reading.groups == 1 and len(ends["source"][0]) == 1:
            (dim,), entries = ends["source"]
            before, middle, after = _runs(sources)
            if middle < len(sources) and np.array_equal(entries, np.arange(shape[dim])):
                sizes = [*([before] if before > 1 else []), middle, *([after] if after > 1 else [])]
                shape[dim : dim + 1] = sizes
                sources = sources.reshape(before, middle, after)[0, :, 0]
                axis_of[dim + 1 :] = [axis + len(sizes) - 1 for axis in axis_of[dim + 1 :]]
                axis_of[dim] += before > 1
                ends["source"] = (dim,), np.arange(middle)
        options: dict[str, Any] = {"shape": tuple(shape)}
        for end, (dims, entries) in ends.items():
            own = tuple(axis_of[dim] for dim in dims)
            options[f"{end}_axis"] = own if len(own) > 1 else own[0]
            if not np.array_equal(entries, np.arange(math.prod(shape[axis] for axis in own))):
                options[f"{end}_index"] = tuple(entries.tolist())
        # Positions that move are edges of their own.
        taken = {dim for dims, _ in ends.values() for dim in dims}
        options["parallel_axes"] = tuple(axis_of[dim] for dim in sorted(self.movable.get(parameter, set()) - taken))
        return options, sources

    @cached_property
    def constant(self) -> str:
        """The group of one neuron that is always one."""
        return self.lowering.add(NeuronGroup(self.lowering.free_name("constant"), 1, "fixed", reason="a constant"))


def lower(
    scope: Scope, state: Mapping[str, Tensor], theta_dtype: torch.dtype
) -> tuple[tuple[NeuronGroup, ...], tuple[Parameter, ...], tuple[Connection, ...], Lowering]:
    """Groups, parameters of the state dict and connections, and what they were made by.

    Tensors that the program does not use have no symmetry.
    """
    while True:
        lowering = Lowering(scope)
        try:
            return *_lowered(scope, state, theta_dtype, lowering), lowering
        except TornError as torn:  # who moves with neurons that are not there cannot move
            scope.neurons.partition.fix(torn.ids, "neurons that stand where not all of their kind do")


def _lowered(
    scope: Scope, state: Mapping[str, Tensor], theta_dtype: torch.dtype, lowering: Lowering
) -> tuple[tuple[NeuronGroup, ...], tuple[Parameter, ...], tuple[Connection, ...]]:
    graph = Graph(scope, lowering)
    params = []
    for name, tensor in state.items():
        value = scope.saved.get(name, Value(tuple(tensor.shape)))
        axes = lowering.grouped(scope.grouped[name], value) if name in scope.grouped else []
        if not axes:
            along = {label.dims[0]: label for label in value.labels}
            axes = [axis for dim, size in enumerate(value.shape) for axis in lowering.axes(along.get(dim), size)]
        role = _ROLES.get(name.rsplit(".", 1)[-1], "weight" if tensor.ndim > 1 else "scale") if tensor.is_floating_point() else "buffer"
        unused = tensor.is_floating_point() and name not in scope.saved
        dtype = stored_dtype(tensor, theta_dtype)
        params.append(Parameter(name, tuple(tensor.shape), role, tuple(axes) or (Axis(1),), dtype, unused=unused))
    connections = tuple(graph.connections(state))
    for key, place in lowering.followed:  # those of parameters and values stand there already
        lowering.group(key, place)
    return tuple(_renamed(lowering.groups)), tuple(params), connections


def _renamed(groups: Mapping[str, NeuronGroup]) -> list[NeuronGroup]:
    """Groups whose class labels are the name of the first group of each class."""
    permutations: dict[str, str] = {}
    scales: dict[str, str] = {}
    for group in groups.values():
        permutations.setdefault(group.permutation, group.name)
        scales.setdefault(group.scale, group.name)
    return [
        replace(
            group,
            permutation=permutations[group.permutation],
            scale=scales[group.scale],
            follows=tuple((scales[label], power) for label, power in group.follows),
        )
        for group in groups.values()
    ]
