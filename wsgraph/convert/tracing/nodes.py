"""The neurons of a network one by one, in the order in which they are computed: the nodes of its parameter graph, and what they read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

__all__ = ["NodeSet", "Nodes", "Reading"]


@dataclass
class NodeSet:
    """Nodes made at one place of the network: their codes, numbered from ``start``, and the operators applied since."""

    name: str
    start: int
    codes: Tensor
    is_input: bool = False
    operators: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Reading:
    """Nodes that read others, through a parameter or as they are; without sources, nodes that a parameter belongs to.

    Sources come in ``groups`` of equal size, and so do targets; every target reads all sources of its group. Pins say which entry of its
    axis of the parameter belongs to a target, and to a source of each group.
    """

    kind: str
    sources: Tensor
    targets: Tensor
    target_pins: Tensor | None = None
    source_pins: Tensor | None = None
    groups: int = 1


class Nodes:
    """All nodes, what they read, and to which parameter axes the marks of labels point.

    A mark above 0 is a node. A mark below 0 is a pin, an entry of an axis of a parameter. A mark of 0 says nothing.
    """

    def __init__(self) -> None:
        self.sets: list[NodeSet] = []
        self.readings: list[Reading] = []
        self.name = ""
        self.shared = False
        self._count = self._first = 1
        self._axes: list[tuple[str, int | None]] = []
        self._starts: list[int] = [1]
        self._ports: dict[tuple[int, int], Tensor] = {}
        self._twins: dict[int, list[int]] = {}
        self._gains: dict[int, int] = {}

    def begin(self, name: str, *, shared: bool) -> None:
        """An operator starts; ``shared`` says whether others read its arguments too."""
        self.name, self.shared, self._first = name, shared, self._count

    def is_fresh(self, marks: Tensor) -> bool:
        """Whether all nodes were made by the operator at work."""
        return bool((marks[marks > 0] >= self._first).all())

    # == Making ==

    def make(self, codes: Tensor, *, name: str = "", is_input: bool = False) -> Tensor:
        """One node per code."""
        made = NodeSet(name or self.name, self._count, codes.flatten(), is_input)
        self.sets.append(made)
        self._count += codes.numel()
        return torch.arange(made.start, self._count).view(codes.shape)

    def pins(self, parameter: str, dim: int | None, size: int) -> Tensor:
        """Marks of the entries along a dimension of a parameter, or of the whole of it."""
        start = self._starts[-1]
        self._axes.append((parameter, dim))
        self._starts.append(start + size)
        return -torch.arange(start, start + size)

    def axes(self, pins: Tensor) -> Tensor:
        """To which axis of a parameter each pin points, -1 where it is none."""
        found = torch.searchsorted(torch.tensor(self._starts), -pins.contiguous(), right=True) - 1
        return torch.where(pins < 0, found, -1)

    def pinned(self, pins: Tensor) -> tuple[str, int | None, Tensor]:
        """Parameter and dimension of pins of one axis, and which of its entries they are."""
        axis = int(self.axes(pins[:1]))
        return *self._axes[axis], -pins - self._starts[axis]

    def of_one_parameter(self, reading: Reading) -> Iterator[Reading]:
        """A reading through tensors that were laid end to end, taken apart by parameter; entries that no parameter has are left out."""
        if reading.target_pins is None:
            yield from self._by_source(reading)
            return
        axes = self.axes(reading.target_pins)
        for axis in axes[axes >= 0].unique().tolist():
            chosen = axes == axis
            if bool(chosen.all()):
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
            others = [axis for axis in self.axes(pins).unique().tolist() if axis >= 0 and self._axes[axis][0] != parameter]
            foreign = torch.isin(self.axes(pins), torch.tensor(others, dtype=torch.long))
            pins = pins.clone()
            pins[foreign] = torch.tensor([self._twin(pin, parameter) for pin in pins[foreign].tolist()], dtype=torch.long)
        axes = self.axes(pins)
        for axis in axes[axes >= 0].unique().tolist():
            chosen = axes == axis
            if bool(chosen.all()):
                yield replace(reading, source_pins=pins)
            elif reading.groups == 1:
                yield replace(reading, sources=reading.sources[chosen], source_pins=pins[chosen])

    def _twin(self, pin: int, parameter: str) -> int:
        """The pin of a parameter at the place of another one's, 0 where there is none."""
        return next((twin for twin in self._twins.get(pin, ()) if self.pinned(torch.tensor([twin]))[0] == parameter), 0)

    def read(self, kind: str, sources: Tensor, targets: Tensor, **options: object) -> None:
        """Let nodes read others."""
        self.readings.append(Reading(kind, sources.flatten(), targets.flatten(), **options))  # type: ignore[arg-type]

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
        sources = marks[marks > 0].unique()
        if len(sources) < 2:
            return int(sources[0]) if len(sources) else 0
        target = self.make(torch.zeros(1, dtype=torch.long))
        self.read("operator", sources, target)
        return int(target)

    def rows(self, marks: Tensor, codes: Tensor) -> Tensor | None:
        """Nodes for the rows ``[a]`` of marks ``[a, b]``, which read all nodes of their row."""
        if not bool((marks > 0).any()):
            return None
        targets = self.make(codes)
        pairs = torch.stack([marks, targets[:, None].expand(marks.shape)]).flatten(1)
        sources, readers = pairs[:, pairs[0] > 0].unique(dim=1)
        counts = readers.unique(return_counts=True)[1]
        if len(counts) == len(targets) and int(counts.min()) == int(counts.max()):
            self.read("operator", sources[readers.argsort(stable=True)], targets, groups=len(targets))
        else:
            self.read("operator", sources.unique(), targets)
        return targets

    def copies(self, marks: Tensor, codes: Tensor) -> Tensor:
        """New nodes that read the given ones as they are."""
        return self._paired(marks.flatten(), torch.zeros_like(marks.flatten()), codes.flatten(), ["operator"]).view(marks.shape)

    # == Joining ==

    def join(self, first: Tensor, second: Tensor, codes: Tensor, *, product: bool) -> Tensor:
        """Marks of the entries of a sum or product, given those of two tensors and the codes of the result, all flat."""
        first, second = torch.where(first == 0, second, first), torch.where(first == 0, 0, second)
        flip = (first < 0) & (second > 0)
        first, second = torch.where(flip, second, first), torch.where(flip, first, second)
        result = first.clone()
        both = (first > 0) & (second > 0) & (first != second)
        if both.any():
            kind = "product" if product else "sum"
            result[both] = self._paired(first[both], second[both], codes[both], [kind, kind])
        for one, other in zip(*(marks[(first < 0) & (second < 0)].tolist() for marks in (first, second)), strict=True):
            self._twins.setdefault(one, []).append(other)
        pinned = (first > 0) & (second < 0)
        if pinned.any():
            result[pinned] = self.apply(first[pinned], second[pinned], codes[pinned], product=product)
        return result

    def apply(self, marks: Tensor, pins: Tensor, codes: Tensor, *, product: bool) -> Tensor:
        """A parameter multiplied or added to nodes, entry by entry."""
        if product:
            return self.gained(self._paired(marks, pins, codes, ["scale"]), pins, codes)
        several = torch.stack([marks, pins]).unique(dim=1).shape[1] > len(marks.unique())
        if several or (self.shared and not self.is_fresh(marks)):
            marks = self._paired(marks, pins, codes, ["operator"])
        self.belong("bias", marks, pins)
        return marks

    def gain(self, pins: Tensor, gains: Tensor) -> None:
        """Whatever is read through these entries of a parameter is multiplied with those of another one."""
        self._gains.update(zip(pins.flatten().tolist(), gains.flatten().tolist(), strict=True))

    def has_gain(self, pins: Tensor) -> bool:
        """Whether all entries have a gain."""
        return bool(self._gains) and all(pin in self._gains for pin in pins.flatten().tolist())

    def gained(self, marks: Tensor, pins: Tensor, codes: Tensor) -> Tensor:
        """Nodes times the gains of the entries through which they are read, where those have gains."""
        if not self.has_gain(pins):
            return marks
        gains = torch.tensor([self._gains[pin] for pin in pins.flatten().tolist()])
        return self._paired(marks.flatten(), gains, codes.flatten(), ["scale"]).view(marks.shape)

    def belong(self, kind: str, marks: Tensor, pins: Tensor) -> None:
        """Entries of a parameter belong to nodes."""
        pairs = torch.stack([marks.flatten(), pins.flatten()])
        pairs = pairs[:, (pairs[0] > 0) & (pairs[1] < 0)].unique(dim=1)
        if pairs.shape[1]:
            self.read(kind, torch.zeros(0, dtype=torch.long), pairs[0], target_pins=pairs[1])

    def _paired(self, first: Tensor, second: Tensor, codes: Tensor, kinds: list[str]) -> Tensor:
        """One new node per distinct pair of marks, which reads the first, and the second where it is a node too."""
        pairs, inverse = torch.stack([first, second]).unique(dim=1, return_inverse=True)
        one_of = torch.empty(pairs.shape[1], dtype=torch.long)
        one_of[inverse] = torch.arange(len(first))
        targets = self.make(codes[one_of])
        pins = pairs[1] if kinds == ["scale"] else None
        for kind, sources in zip(kinds, pairs, strict=False):
            self.read(kind, sources, targets, target_pins=pins, groups=len(targets))
        return targets[inverse]

    # == Operators ==

    def operate(self, marks: Tensor, codes: Tensor, text: str) -> Tensor:
        """Record an operator on nodes: on new ones where others read them without it, or only some of a set are given."""
        if not bool((marks > 0).any()):
            return marks
        given = marks[marks > 0].unique()
        sets = [self.sets[owner] for owner in self._owner(given).unique().tolist()]
        if (
            (self.shared and not self.is_fresh(given))
            or sum(len(made.codes) for made in sets) > len(given)
            or any(made.is_input for made in sets)
        ):
            chosen = marks > 0
            marks = marks.clone()
            marks[chosen] = self.copies(marks[chosen], codes[chosen])
            sets = [self.sets[-1]]
        for made in sets:
            made.operators.append(text)
        return marks

    def _owner(self, numbers: Tensor) -> Tensor:
        starts = torch.tensor([made.start for made in self.sets])
        return torch.searchsorted(starts, numbers.contiguous(), right=True) - 1

    def set_of(self, number: int) -> NodeSet:
        """The set that a node was made in."""
        return self.sets[int(self._owner(torch.tensor([number])))]

    # == Reading the result ==

    def alive(self, outputs: Tensor) -> list[bool]:
        """Which sets the output nodes depend on."""
        found = torch.zeros(len(self.sets), dtype=torch.bool)
        found[self._owner(outputs[outputs > 0])] = True
        for reading in reversed(self.readings):  # sets are read only after all that they read is known
            if bool(found[self._owner(reading.targets)].any()):
                found[self._owner(reading.sources)] = True
        return found.tolist()
