"""The neurons of a network one by one, in the order in which they are computed: the nodes of its parameter graph, and what they read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wsgraph.convert.tracing.arrays import Array, Growing, distinct, numbered

__all__ = ["NodeSet", "Nodes", "Reading"]


@dataclass
class NodeSet:
    """Nodes made at one place of the network: their codes, numbered from ``start``, and the operators applied since."""

    name: str
    start: int
    codes: Array
    is_input: bool = False
    operators: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Reading:
    """Nodes that read others, through a parameter or as they are; without sources, nodes that a parameter belongs to.

    Sources come in ``groups`` of equal size, and so do targets; every target reads all sources of its group. Pins say which entry of its
    axis of the parameter belongs to a target, and to a source of each group.
    """

    kind: str
    sources: Array
    targets: Array
    target_pins: Array | None = None
    source_pins: Array | None = None
    groups: int = 1


def _flat(values: Any) -> Any:
    """Tensors as flat arrays, anything else as it is."""
    return values.numpy().ravel() if isinstance(values, Tensor) else values


class Nodes:
    """All nodes, what they read, and to which parameter axes the marks of labels point.

    A mark above 0 is a node. A mark below 0 is a pin, an entry of an axis of a parameter. A mark of 0 says nothing.
    """

    def __init__(self) -> None:
        self.sets: list[NodeSet] = []
        self.readings: list[Reading] = []
        self.name = ""
        self.shared = False
        self.joining = "sum"
        self._first = 1
        self._set_of = Growing([-1])  # by node
        self._axis_of = Growing([-1])  # by pin, as the next two
        self._gain_of = Growing([0])
        self._axes: list[tuple[str, int | tuple[int, ...] | None]] = []
        self._starts: list[int] = []
        self._ports: dict[tuple[int, int], Tensor] = {}
        self._twins: list[tuple[Array, Array]] = []

    def begin(self, name: str, *, shared: bool) -> None:
        """An operator starts; ``shared`` says whether others read its arguments too."""
        self.name, self.shared, self._first = name, shared, len(self._set_of)

    @contextmanager
    def joined_by(self, kind: str) -> Iterator[None]:
        """Nodes that are not multiplied are joined by something else than a sum within, such as a maximum."""
        self.joining = kind
        yield
        self.joining = "sum"

    def is_fresh(self, marks: Tensor) -> bool:
        """Whether all nodes were made by the operator at work."""
        return self._is_fresh(marks.numpy())

    def _is_fresh(self, marks: Array) -> bool:
        return not ((marks > 0) & (marks < self._first)).any()

    # == Making ==

    def make(self, codes: Tensor, *, name: str = "", is_input: bool = False) -> Tensor:
        """One node per code."""
        return torch.from_numpy(self._make(_flat(codes), name, is_input)).view(codes.shape)

    def _make(self, codes: Array, name: str = "", is_input: bool = False) -> Array:
        start = len(self._set_of)
        self._set_of.extend(len(self.sets), len(codes))
        self.sets.append(NodeSet(name or self.name, start, codes, is_input))
        return np.arange(start, start + len(codes))

    def pins(self, parameter: str, dim: int | tuple[int, ...] | None, size: int) -> Tensor:
        """Marks of the entries along a dimension of a parameter, along several that are laid into one, or of the whole of it."""
        start = len(self._axis_of)
        self._axis_of.extend(len(self._axes), size)
        self._gain_of.extend(0, size)
        self._axes.append((parameter, dim))
        self._starts.append(start)
        return -torch.arange(start, start + size)

    def axes(self, pins: Array) -> Array:
        """To which axis of a parameter each pin points, -1 where it is none."""
        return self._axis_of[np.maximum(-pins, 0)]

    def pinned(self, pins: Array) -> tuple[str, int | tuple[int, ...] | None, Array]:
        """Parameter and dimension of pins of one axis, and which of its entries they are."""
        axis = int(self.axes(pins[:1])[0])
        return *self._axes[axis], -pins - self._starts[axis]

    def of_one_parameter(self, reading: Reading) -> Iterator[Reading]:
        """A reading through tensors that were laid end to end, taken apart by parameter; entries that no parameter has are left out."""
        if reading.target_pins is None:
            yield from self._by_source(reading)
            return
        axes = self.axes(reading.target_pins)
        for axis in distinct(axes[axes >= 0]).tolist():
            chosen = axes == axis
            if chosen.all():
                part = reading
            elif reading.groups == 1:
                part = replace(reading, targets=reading.targets[chosen], target_pins=reading.target_pins[chosen])
            elif reading.groups == len(reading.targets) == len(reading.sources):
                pins = reading.target_pins[chosen]
                part = replace(
                    reading, sources=reading.sources[chosen], targets=reading.targets[chosen], target_pins=pins, groups=len(pins)
                )
            else:
                continue
            yield from self._by_source(part)

    def _by_source(self, reading: Reading) -> Iterator[Reading]:
        if reading.source_pins is None:
            yield reading
            return
        pins = reading.source_pins
        if reading.target_pins is not None:
            parameter = self.pinned(reading.target_pins)[0]
            axes = self.axes(pins)
            others = [axis for axis in distinct(axes).tolist() if axis >= 0 and self._axes[axis][0] != parameter]
            if others:
                foreign = np.isin(axes, others)
                pins = pins.copy()
                pins[foreign] = self._twins_of(pins[foreign], parameter)
        axes = self.axes(pins)
        for axis in distinct(axes[axes >= 0]).tolist():
            chosen = axes == axis
            if chosen.all():
                yield replace(reading, source_pins=pins)
            elif reading.groups == 1:
                yield replace(reading, sources=reading.sources[chosen], source_pins=pins[chosen])

    def _twins_of(self, pins: Array, parameter: str) -> Array:
        """The first pins of a parameter that met those of others, 0 where there are none."""
        pairs = np.concatenate([np.zeros((2, 0), np.int64), *map(np.stack, self._twins)], axis=1)
        own = [axis for axis, (name, _) in enumerate(self._axes) if name == parameter]
        met, twins = pairs[:, np.isin(self.axes(pairs[1]), own)]
        order = met.argsort(kind="stable")
        place = np.searchsorted(met[order], pins)
        met, twins = np.append(met[order], 0), np.append(twins[order], 0)
        return np.where(met[place] == pins, twins[place], 0)

    def read(self, kind: str, sources: Tensor, targets: Tensor, **options: object) -> None:
        """Let nodes read others."""
        self._read(kind, _flat(sources), _flat(targets), **{key: _flat(value) for key, value in options.items()})

    def _read(self, kind: str, sources: Array, targets: Array, **options: Any) -> None:
        self.readings.append(Reading(kind, sources, targets, **options))

    def ports(self, whole: int, codes: Tensor, *, alike: bool = False) -> Tensor:
        """Nodes for the entries of a tensor that is known as a whole only: the same ones whenever as many are asked for.

        Entries that are all ``alike`` get nodes of their own every time, which read the whole.
        """
        key = (whole, codes.numel())
        if alike or key not in self._ports:
            origin = self.set_of(whole)
            is_input = origin.is_input and not alike
            ports = self.make(codes, name=origin.name if is_input else "", is_input=is_input)
            if not is_input:
                self.read("operator", torch.tensor([whole]), ports)
            if alike:
                return ports
            self._ports[key] = ports
        return self._ports[key]

    def gather(self, marks: Tensor) -> int:
        """One node that reads all nodes among the marks: the node itself where there is but one, 0 where there is none."""
        given = _flat(marks)
        sources = distinct(given[given > 0])
        if len(sources) < 2:
            return int(sources[0]) if len(sources) else 0
        target = self._make(np.zeros(1, np.int64))
        self._read("operator", sources, target)
        return int(target[0])

    def rows(self, marks: Tensor, codes: Tensor) -> Tensor | None:
        """Nodes for the rows ``[a]`` of marks ``[a, b]``, which read all nodes of their row."""
        given = marks.numpy()
        if not (given > 0).any():
            return None
        targets = self.make(codes)
        made = _flat(targets)
        readers = np.broadcast_to(made[:, None], given.shape)[given > 0]
        sources, readers = self._pairs(given[given > 0], readers)[0]
        counts = numbered(readers)[2]
        if len(counts) == len(made) and counts.min() == counts.max():
            self._read("operator", sources[readers.argsort(kind="stable")], made, groups=len(made))
        else:
            self._read("operator", distinct(sources), made)
        return targets

    def copies(self, marks: Tensor, codes: Tensor) -> Tensor:
        """New nodes that read the given ones as they are."""
        return torch.from_numpy(self._copies(_flat(marks), _flat(codes))).view(marks.shape)

    def _copies(self, marks: Array, codes: Array) -> Array:
        return self._paired(marks, np.zeros_like(marks), codes, ["operator"])

    # == Joining ==

    def join(self, first: Tensor, second: Tensor, codes: Tensor, *, product: bool) -> Tensor:
        """Marks of the entries of a sum or product, given those of two tensors and the codes of the result, all flat."""
        return torch.from_numpy(self._join(_flat(first), _flat(second), _flat(codes), product=product))

    def _join(self, one: Array, other: Array, codes: Array, *, product: bool) -> Array:
        first, second = np.where(one == 0, other, one), np.where(one == 0, 0, other)
        if (flip := (first < 0) & (second > 0)).any():
            first, second = np.where(flip, second, first), np.where(flip, first, second)
        result = first.copy()
        both = (first > 0) & (second > 0) & (first != second)
        if both.any():
            kind = "product" if product else self.joining
            result[both] = self._paired(first[both], second[both], codes[both], [kind, kind])
        pins = (first < 0) & (second < 0)
        if pins.any():
            self._twins.append((first[pins], second[pins]))
        pinned = (first > 0) & (second < 0)
        if pinned.any():
            result[pinned] = self._apply(first[pinned], second[pinned], codes[pinned], product=product)
        return result

    def apply(self, marks: Tensor, pins: Tensor, codes: Tensor, *, product: bool) -> Tensor:
        """A parameter multiplied or added to nodes, entry by entry."""
        return torch.from_numpy(self._apply(_flat(marks), _flat(pins), _flat(codes), product=product))

    def _apply(self, marks: Array, pins: Array, codes: Array, *, product: bool) -> Array:
        if product:
            return self._gained(self._paired(marks, pins, codes, ["scale"]), pins, codes)
        several = self._pairs(marks, pins)[0].shape[1] > len(distinct(marks))
        if several or (self.shared and not self._is_fresh(marks)):
            marks = self._paired(marks, pins, codes, ["operator"])
        self._belong("bias", marks, pins)
        return marks

    def gain(self, pins: Tensor, gains: Tensor) -> None:
        """Whatever is read through these entries of a parameter is multiplied with those of another one."""
        self._gain_of[-_flat(pins)] = _flat(gains)

    def has_gain(self, pins: Tensor) -> bool:
        """Whether all entries have a gain."""
        return self._has_gain(_flat(pins))

    def _has_gain(self, pins: Array) -> bool:
        return bool(len(pins) and (pins < 0).all() and (self._gain_of[-pins] < 0).all())

    def gained(self, marks: Tensor, pins: Tensor, codes: Tensor) -> Tensor:
        """Nodes times the gains of the entries through which they are read, where those have gains."""
        return torch.from_numpy(self._gained(_flat(marks), _flat(pins), _flat(codes))).view(marks.shape)

    def _gained(self, marks: Array, pins: Array, codes: Array) -> Array:
        return self._paired(marks, self._gain_of[-pins], codes, ["scale"]) if self._has_gain(pins) else marks

    def belong(self, kind: str, marks: Tensor, pins: Tensor) -> None:
        """Entries of a parameter belong to nodes."""
        self._belong(kind, _flat(marks), _flat(pins))

    def _belong(self, kind: str, marks: Array, pins: Array) -> None:
        chosen = (marks > 0) & (pins < 0)
        if chosen.any():
            targets, target_pins = self._pairs(marks[chosen], pins[chosen])[0]
            self._read(kind, np.zeros(0, np.int64), targets, target_pins=target_pins)

    def _pairs(self, first: Array, second: Array) -> tuple[Array, Array]:
        """Pairs of marks in order, each once, and which of them each is."""
        # Numbers sort much faster than pairs.
        pins = len(self._axis_of)
        base = pins + len(self._set_of)
        keys, which, _ = numbered((first + pins) * base + (second + pins))
        return np.stack(np.divmod(keys, base)) - pins, which

    def _paired(self, first: Array, second: Array, codes: Array, kinds: list[str]) -> Array:
        """One new node per distinct pair of marks, which reads the first, and the second where it is a node too."""
        pairs, which = self._pairs(first, second)
        one_of = np.empty(pairs.shape[1], np.int64)
        one_of[which] = np.arange(len(first))
        targets = self._make(codes[one_of])
        pins = pairs[1] if kinds == ["scale"] else None
        for kind, sources in zip(kinds, pairs, strict=False):
            self._read(kind, sources, targets, target_pins=pins, groups=len(targets))
        return targets[which]

    # == Operators ==

    def operate(self, marks: Tensor, codes: Tensor, text: str) -> Tensor:
        """Record an operator on nodes: on new ones where others read them without it, or only some of a set are given."""
        given = _flat(marks)
        chosen = given > 0
        nodes = distinct(given[chosen])
        if not len(nodes):
            return marks
        sets = [self.sets[owner] for owner in distinct(self._set_of[nodes]).tolist()]
        if (
            (self.shared and not self._is_fresh(nodes))
            or sum(len(made.codes) for made in sets) > len(nodes)
            or any(made.is_input for made in sets)
        ):
            copied = given.copy()
            copied[chosen] = self._copies(given[chosen], _flat(codes)[chosen])
            marks = torch.from_numpy(copied).view(marks.shape)
            sets = [self.sets[-1]]
        for made in sets:
            made.operators.append(text)
        return marks

    def set_of(self, number: int) -> NodeSet:
        """The set that a node was made in."""
        return self.sets[self._set_of[number]]

    # == Reading the result ==

    def alive(self, outputs: Array) -> list[bool]:
        """Which sets the output nodes depend on."""
        found = np.zeros(len(self.sets), bool)
        found[self._set_of[outputs[outputs > 0]]] = True
        for reading in reversed(self.readings):  # sets are read only after all that they read is known
            if found[self._set_of[reading.targets]].any():
                found[self._set_of[np.maximum(reading.sources, 0)]] = True
        return found.tolist()
