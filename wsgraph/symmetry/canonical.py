"""Canonical forms: one representative for every orbit of the monomial group."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from wsgraph.space import Axis, NeuronGroup, Parameter, WeightSpace
from wsgraph.space.operators import parse_operator
from wsgraph.symmetry.group import flatten_logical, logical_tensors, move_parameter, with_products

__all__ = ["canonicalize"]


FORMS = ("scale", "phase", "sign", "order")


def canonicalize(space: WeightSpace, thetas: Tensor, fix: Collection[str] = FORMS) -> Tensor:
    r"""Replace each checkpoint by a fixed representative of its orbit; the network's function is kept.

    1. Scale: the incoming vector (weights of all kernel positions, biases, norm parameters) of every neuron that allows positive factors
       gets norm 1, class by class from the input; a neuron without incoming weights keeps its scale.
    2. Phase, for :math:`\sin(\omega (w x + b))` in networks of layers: half turns :math:`b \to b - k \pi / \omega`, outgoing
       :math:`\to (-1)^k` outgoing bring :math:`\omega b` into :math:`(-\pi/2, \pi/2]`. The phase is not part of the monomial group, so this
       reduces more than its orbits.
    3. Sign: the incoming entry of largest magnitude is made positive.
    4. Permutation: neurons are sorted lexicographically by those of their weights whose other ends are sorted already, then by the sorted
       magnitudes of the others; of neurons that move as rows and columns (heads of attention), first the rows are sorted, then the columns.

    Groups that move alike (residual sums) are compared by what is settled of all of them. The result is idempotent and, up to rounding, the
    same for every point of an orbit; networks with two neurons that agree in all of the above to about ten digits
    (four in float32) may differ by a swap of them. Where two classes of factors multiply the same entries and nothing else (experts and
    their hidden neurons in one tensor), neither can be settled before the other, and both keep their scale.

    Args:
        space: The weight space.
        thetas: Checkpoints ``[B, P]``.
        fix: Which of ``"scale"``, ``"phase"``, ``"sign"`` and ``"order"`` to settle; what is left out stays as it is. Models that do not
            see the order of neurons need no order, for instance.

    Returns:
        Tensor ``[B, P]``, differentiable in ``thetas`` (the order of the neurons is piecewise constant).

    Raises:
        SpaceMismatchError: If the shape is wrong.
        ValueError: If a weight is NaN or infinite, or ``fix`` names something else.

    Example:
        >>> import torch
        >>> from wsgraph import WeightSpace
        >>> space = WeightSpace.mlp([2, 8, 1])
        >>> thetas = space.sample(4, dtype=torch.float64)
        >>> moved = space.act(space.sample_symmetry(4), thetas)
        >>> torch.allclose(space.canonicalize(moved), space.canonicalize(thetas))
        True
    """
    space.check_thetas(thetas, finite=True)
    if unknown := sorted(set(fix) - set(FORMS)):
        raise ValueError(f"Expected 'fix' to name some of {', '.join(FORMS)} (got {', '.join(map(repr, unknown))}).")
    if not space.params:
        return thetas
    form = _Canonicalization(space, thetas, fix)
    # Norms do not depend on signs or on the order of neurons, so all scales can be settled before any neuron is compared with another.
    form.settle(form.fix_scale)
    form.settle(form.fix_sign_and_order)
    form.settle(form.fix_sign)  # those that waited for an order
    return flatten_logical(space, form.tensors)


@dataclass(frozen=True)
class _Part:
    """Entries of a parameter that follow the neurons of one group, which lie at some places of one of its axes."""

    param: Parameter
    axis: int
    group: NeuronGroup
    exponent: int
    places: tuple[int, ...]
    others: tuple[tuple[str, int], ...]  # scale classes of all other neurons that the entries follow, and their powers
    beside: tuple[NeuronGroup, ...]  # groups along the other axes


def _parts(space: WeightSpace) -> Iterator[_Part]:
    for param in space.params:
        for i, axis in enumerate(param.axes):
            beside = [(group, e) for j, other in enumerate(param.axes) if j != i for group, e in _followed(space, other)]
            elsewhere = tuple((group.scale, e) for group, e in beside)
            at = torch.tensor(axis.order or range(axis.size)).argsort()
            for tie in axis.ties:
                start = 0
                for k, (name, exponent) in enumerate(zip(tie.groups, tie.exponents, strict=True)):
                    group = space.group(name)
                    places = tuple(at[start : start + group.size].tolist())
                    start += group.size
                    along = [(space.group(other.groups[k]).scale, other.exponents[k]) for other in axis.ties if other is not tie]
                    own = tuple(term for term in along if term != (group.scale, exponent))
                    yield _Part(param, i, group, exponent, places, (*own, *elsewhere), tuple(group for group, _ in beside))


def _followed(space: WeightSpace, axis: Axis) -> Iterator[tuple[NeuronGroup, int]]:
    for tie in axis.ties:
        yield from ((space.group(name), exponent) for name, exponent in zip(tie.groups, tie.exponents, strict=True))


class _Canonicalization:
    """The parameters on their way to the canonical form, and the classes already settled."""

    def __init__(self, space: WeightSpace, thetas: Tensor, fix: Collection[str]) -> None:
        self.space = space
        self.tensors = logical_tensors(space, thetas)
        symmetries = {label: space.class_symmetry(label) for label in space.scale_classes}
        self.scaled = {label for label, symmetry in symmetries.items() if not symmetry.positive}
        self.signed = {label for label, symmetry in symmetries.items() if not symmetry.sign}
        self.sorted = {label for label in space.permutation_classes if not space.is_permutable(label)}
        self.phased: set[str] = set()
        # What is not to be settled counts as settled.
        self.scaled |= set() if "scale" in fix else symmetries.keys()
        self.signed |= set() if "sign" in fix else symmetries.keys()
        self.sorted |= set() if "order" in fix else space.permutation_classes.keys()
        self.phased |= set() if "phase" in fix else {group.name for group in space.groups}
        self.phases = "phase" in fix
        self.by_scale: dict[str, list[_Part]] = {}
        self.by_order: dict[str, list[_Part]] = {}
        self.users: dict[str, set[str]] = {}
        for part in _parts(space):
            self.by_scale.setdefault(part.group.scale, []).append(part)
            for label in self.orders(part.group):
                self.by_order.setdefault(label, []).append(part)
            for label in (part.group.scale, part.group.permutation, *self.orders(part.group)):
                self.users.setdefault(label, set()).add(part.param.name)

    def settle(self, fix: Callable[[NeuronGroup, bool], bool]) -> None:
        """Settle all groups that can be, in the order in which the network computes them, again while that helps; then what is left."""
        pending = [group for group in self.space.topological_groups if group.role in ("hidden", "factor")]
        while pending:
            left = [group for group in pending if not fix(group, False)]
            if len(left) == len(pending):
                fix(left.pop(0), True)
            pending = left

    def move(self, permutations: Mapping[str, Tensor], scales: Mapping[str, Tensor]) -> None:
        for name in {name for label in (*permutations, *scales) for name in self.users.get(label, ())}:
            self.tensors[name] = move_parameter(self.space, self.space.param(name), self.tensors[name], permutations, scales)

    # == Entries of neurons ==

    def orders(self, group: NeuronGroup) -> list[str]:
        """The permutation classes that say how a group is ordered: its own, or those of its rows and columns."""
        return [self.space.group(name).permutation for name in group.factors] or [group.permutation]

    def entries(self, part: _Part) -> Tensor:
        """What follows each neuron, ``[B, n, D]``."""
        tensor = self.tensors[part.param.name].movedim(1 + part.axis, 1)
        tensor = tensor.flatten(2) if tensor.ndim > 2 else tensor[..., None]
        whole = part.places == tuple(range(tensor.shape[1]))
        return tensor if whole else tensor.index_select(1, torch.tensor(part.places, device=tensor.device))

    def in_order(self, part: _Part) -> bool:
        """Whether the entries of a neuron lie in a settled order, and have settled signs."""
        return self.beside_sorted(part) and all(
            label in self.signed for label, e in (*part.others, (part.group.scale, part.exponent)) if e % 2
        )

    def comparable(self, label: str, settled: set[str], *, odd: bool = False) -> list[_Part]:
        """Parts of a scale class whose other factors are settled: those with its first power, or else with some other."""
        parts = [part for part in self.by_scale.get(label, []) if part.exponent and (part.exponent % 2 or not odd)]
        parts = [part for part in parts if all(other in settled for other, e in part.others if e and (e % 2 or not odd))]
        powers = {part.exponent for part in parts}
        power = next((power for power in (1, -1) if power in powers), min(powers, default=0))
        return [part for part in parts if part.exponent == power]

    # == Settling ==

    def fix_scale(self, group: NeuronGroup, forced: bool) -> bool:
        label = group.scale
        if group.role == "factor" or label in self.scaled:
            return True
        parts = self.comparable(label, self.scaled)
        if not parts:
            return forced
        self.scaled.add(label)
        incoming = torch.cat([self.entries(part) for part in parts], dim=2)
        # Dividing by the largest entry first keeps the squares of very large and very small weights inside the dtype's range.
        largest = incoming.detach().abs().amax(dim=2)
        present = largest > 0
        largest = torch.where(present, largest, 1)
        squares = (incoming / largest[..., None]).square().sum(dim=2)
        norm = torch.where(present, squares, 1).sqrt() * largest
        self.move({}, {label: torch.where(present, norm, 1) ** (-1 / parts[0].exponent)})
        return True

    def fix_sign_and_order(self, group: NeuronGroup, forced: bool) -> bool:
        return (group.role == "factor" or self.fix_sign(group, forced)) and self.fix_order(group, forced)

    def fix_sign(self, group: NeuronGroup, forced: bool) -> bool:
        label = group.scale
        allowed = self.space.class_symmetry(label).sign
        parts = [] if label in self.signed else [part for part in self.comparable(label, self.signed, odd=True) if self.beside_sorted(part)]
        if label not in self.signed and not parts and not forced:
            return False
        if group.name not in self.phased:
            self.reduce_phase(group, half_turns=allowed)
            self.phased.add(group.name)
        if not parts:
            return True
        self.signed.add(label)
        values = torch.cat([self.entries(part).detach() for part in parts], dim=2)
        magnitude = values.abs()
        # Entries that tie up to rounding must not compete, or the sign would depend on the last bit.
        tolerance = 1 - 1e3 * torch.finfo(values.dtype).eps
        first = (magnitude >= tolerance * magnitude.amax(dim=2, keepdim=True)).to(torch.uint8).argmax(dim=2, keepdim=True)
        sign = torch.where(values.gather(2, first)[..., 0] < 0, -1.0, 1.0).to(values.dtype)
        self.move({}, {label: sign})
        if self.phases:  # a flip takes a phase of exactly -pi/2 out of the half-open interval
            self.reduce_phase(group, half_turns=allowed)
        return True

    def beside_sorted(self, part: _Part) -> bool:
        """Whether the neurons along the other axes are in order."""
        return all(label in self.sorted for group in part.beside for label in self.orders(group))

    def reduce_phase(self, group: NeuronGroup, *, half_turns: bool) -> None:
        name, arguments = parse_operator(group.activation)
        biases = [layer.bias for layer in self.space.layers_into(group.name) if layer.bias is not None]
        if name != "sin" or not biases or group.role != "hidden":
            return
        consumers = [layer for layer in self.space.layers if group.name in layer.sources]
        # A skip connection has no weight that could take up the minus sign of a half turn, and tied groups would have to turn together.
        free = all(layer.weight is not None for layer in consumers) and len(self.space.scale_classes[group.scale]) == 1
        period = (math.pi if half_turns and free else 2 * math.pi) / (arguments[0] if arguments else 1.0)
        phase = torch.stack([self.tensors[bias] for bias in biases]).detach().sum(0)
        turns = torch.ceil(phase / period - 0.5)
        self.tensors[biases[0]] = self.tensors[biases[0]] - turns * period
        if half_turns and free:
            odd = torch.where(turns.remainder(2) == 1, -1.0, 1.0).to(phase.dtype)
            for weight in dict.fromkeys(layer.weight for layer in consumers if layer.weight is not None):
                param = self.space.param(weight)
                self.tensors[weight] = move_parameter(self.space, param, self.tensors[weight], {}, {group.scale: odd})

    def fix_order(self, group: NeuronGroup, forced: bool) -> bool:
        label = group.permutation
        if group.factors or label in self.sorted:
            return True
        parts: dict[tuple[str, int, tuple[int, ...]], _Part] = {}  # ties of one axis are in one order
        for part in self.by_order.get(label, []):
            parts.setdefault((part.param.name, part.axis, part.places), part)
        ordered = [part for part in parts.values() if self.in_order(part)]
        others = [part for part in parts.values() if not self.in_order(part)]
        if not ordered and not forced:
            return False
        if parts:
            # What neurons are written by comes before what reads them.
            ordered.sort(key=lambda part: part.exponent <= 0)
            keys = [self.key(part, label, ordered=True) for part in ordered] + [self.key(part, label, ordered=False) for part in others]
            order = _lexicographic_ranks(keys).argsort(dim=1, stable=True)
            self.move(with_products(self.space, {label: order}, len(order), order.device), {})
        self.sorted.add(label)
        return True

    def key(self, part: _Part, label: str, *, ordered: bool) -> Tensor:
        """What the neurons of a class, or rows or columns of neurons, are compared by, ``[B, n, D]``."""
        entries = self.entries(part).detach()
        if part.group.factors:
            rows, columns = (self.space.group(name) for name in part.group.factors)
            entries = entries.unflatten(1, (rows.size, columns.size))
            crossed = columns
            if label != rows.permutation:
                entries, crossed = entries.transpose(1, 2), rows
            if ordered and crossed.permutation not in self.sorted:
                entries = entries.sort(dim=2).values
            entries = entries.flatten(2)
        return entries if ordered else entries.abs().sort(dim=2).values


def _lexicographic_ranks(keys: list[Tensor]) -> Tensor:
    """Rank ``[B, n]`` of every neuron among those of its network, comparing the rows of ``keys`` (each ``[B, n, D]``) in order."""
    batch, size = keys[0].shape[:2]
    columns = [torch.arange(batch, device=keys[0].device)[:, None, None].expand(batch, size, 1)]
    for key in keys:
        # Rounding keeps entries that agree in exact arithmetic equal, whichever point of the orbit they were computed from.
        digits = 1e10 if key.dtype == torch.float64 else 1e4
        largest = key.abs().amax(dim=(1, 2), keepdim=True)
        columns.append((key.double() / torch.where(largest > 0, largest, 1) * digits).round().long())
    rows = torch.cat(columns, dim=2).flatten(0, 1)
    return torch.unique(rows, dim=0, return_inverse=True)[1].view(batch, size)
