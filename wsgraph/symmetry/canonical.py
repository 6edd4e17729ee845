"""Canonical forms: one representative for every orbit of the monomial group."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor

from wsgraph.space import NeuronGroup, WeightSpace
from wsgraph.space.operators import OPERATORS, parse_operator
from wsgraph.symmetry.group import flatten_logical, logical_tensors, move_parameter, with_products
from wsgraph.symmetry.occurrences import Occurrence, occurrences, segments

__all__ = ["canonicalize"]


FORMS = ("scale", "phase", "sign", "order")

_NOTHING = -1e6  # in place of the logarithm of 0
_CENTRINGS = 200
_EXPONENT, _BALANCINGS = 16, 200
_LARGEST_STEP = 100.0  # of a logarithm


def canonicalize(space: WeightSpace, thetas: Tensor, fix: Collection[str] = FORMS) -> Tensor:
    r"""Replace each checkpoint by a fixed representative of its orbit; the network's function is kept.

    1. Phase, for :math:`\sin(\omega (w x + b))` in networks of layers: half turns :math:`b \to b - k \pi / \omega`, outgoing
       :math:`\to (-1)^k` outgoing bring :math:`\omega b` into :math:`(-\pi/2, \pi/2]`; where the sign cannot change, full turns bring it
       into :math:`(-\pi, \pi]`. The phase is not part of the monomial group, so this reduces more than its orbits. A bias that reaches
       the sine through an average over padding has none.
    2. Scale: the incoming vector (weights of all kernel positions, biases, norm parameters) of every neuron that allows positive factors
       gets norm 1, class by class from the input.
    3. Sign: the incoming entry of largest magnitude is made positive; of entries equally large to about :math:`10^3` roundings (8 in
       half precision), the first in the order of the neurons that they come from.
    4. Permutation: neurons are sorted lexicographically by those of their weights whose other ends are sorted already, then by the others,
       sorted (their magnitudes, where symmetries change signs); of neurons that move as rows and columns (heads of
       attention), first the rows are sorted, then the columns.

    A neuron whose incoming weights are all zero, or come from such neurons alone, always answers 0, and its
    incoming vector says nothing: its outgoing vector settles scale (norm 1), sign and order in the same way.
    One without either can have any weights: they become 0.

    Groups that move alike (residual sums) are compared by what is settled of all of them. The result is idempotent and, up to rounding, the
    same for every point of an orbit. Neurons that agree in all of this to about ten digits (four in float32) are told apart by
    weights further away, by colour refinement; those that agree in these too stay in the order in which they are.
    Where two classes of factors multiply the same entries and nothing else (experts and
    their hidden neurons in one tensor), the entries' logarithms are centred along both, and the first neuron keeps its sign.

    Where norms of 1 would leave the range of the dtype (all weights of a deep network tiny or huge), every class of neurons gets one norm
    other than 1: those that bring the largest entries of all parameters nearest to 1, in the sum of their squared logarithms.

    Args:
        space: The weight space.
        thetas: Checkpoints ``[B, P]``.
        fix: Which of ``"scale"``, ``"phase"``, ``"sign"`` and ``"order"`` to settle; what is left out stays as it is. Models that do not
            see the order of neurons need no order, for instance.

    Returns:
        Tensor ``[B, P]``, differentiable in ``thetas`` (the order of the neurons is piecewise constant).

    Raises:
        SpaceMismatchError: If the shape is wrong.
        ValueError: If a weight is NaN or infinite, no norms bring a network into the range of its dtype, or ``fix`` names something else.

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
    if not space.params or not len(thetas):
        return thetas
    return _Canonicalization(space, thetas, fix).result()


class _Canonicalization:
    """The parameters on their way to the canonical form, and the neurons already settled.

    They are computed in float64. The factors of a class are split in two: one number per network, of which only the logarithm is kept until
    the end, and factors of about 1 per neuron.
    """

    def __init__(self, space: WeightSpace, thetas: Tensor, fix: Collection[str]) -> None:
        self.space, self.thetas = space, thetas
        self.tensors = logical_tensors(space, thetas.double())
        self.phases = "phase" in fix
        self.by_scale: dict[str, list[Occurrence]] = {}
        self.by_order: dict[str, list[Occurrence]] = {}
        self.users: dict[str, set[str]] = {}
        for occurrence in occurrences(space):
            for label, _ in occurrence.powers:
                self.by_scale.setdefault(label, []).append(occurrence)
            for label in self.orders(occurrence.group):
                self.by_order.setdefault(label, []).append(occurrence)
            for label in (*(label for label, _ in occurrence.powers), occurrence.group.permutation, *self.orders(occurrence.group)):
                self.users.setdefault(label, set()).add(occurrence.param.name)
        symmetries = {label: space.class_symmetry(label) for label in space.scale_classes}
        # Which neurons [B, n] have their factor and sign; classes that have none, or whose are not to be settled, are left out.
        self.scaled: dict[str, Tensor] = {}
        self.signed: dict[str, Tensor] = {}
        for label, symmetry in symmetries.items():
            none = torch.zeros(len(thetas), space.scale_classes[label][0].size, dtype=torch.bool, device=thetas.device)
            if symmetry.positive and "scale" in fix:
                self.scaled[label] = none
            if symmetry.sign and "sign" in fix:
                self.signed[label] = none
        self.shift = {label: thetas.new_zeros(len(thetas), dtype=torch.float64) for label in self.scaled}
        self.sorted = {label for label in space.permutation_classes if not space.is_permutable(label)}
        self.sorted |= set() if "order" in fix else space.permutation_classes.keys()
        self.sign_done: set[str] = set()
        self.ranks: dict[str, Tensor] = {}  # of neurons among those that could be told apart when they were sorted
        self.alive: dict[str, Tensor] = {}
        self.colours: dict[str, Tensor] = {}
        self.digits = 1e10 if thetas.dtype == torch.float64 else 1e4
        eps = torch.finfo(thetas.dtype).eps
        self.rounding = min(1e3 * eps, max(8 * eps, 1e-3))  # half precision has no three digits to spare

    def result(self) -> Tensor:
        """The canonical forms ``[B, P]``."""
        forward = [group for group in self.space.topological_groups if group.role in ("hidden", "factor")]
        if self.phases:
            for group in forward:
                self.reduce_phase(group)
        self.alive = self.reached_from_inputs()
        self.erase_idle()
        # Norms do not depend on signs or on the order of neurons, so all scales can be settled before any neuron is compared with another.
        self.settle(forward, self.fix_scale)
        self.centre_rest()
        self.until_settled(self.scaled, forward[::-1], self.scale_dead)
        self.bring_into_range()
        self.settle(forward, self.fix_sign_and_order)
        self.settle(forward, self.fix_sign)  # those that waited for an order
        self.sign_rest(forward)
        self.until_settled(self.signed, forward[::-1], self.sign_dead)
        for group in reversed(forward):
            self.sort_dead(group)
        return flatten_logical(self.space, self.tensors).to(self.thetas.dtype)

    def settle(self, groups: Sequence[NeuronGroup], fix: Callable[[NeuronGroup, bool], bool]) -> None:
        """Settle all groups that can be, in the order in which the network computes them, again while that helps; then what is left."""
        pending = list(groups)
        while pending:
            left = [group for group in pending if not fix(group, False)]
            if len(left) == len(pending):
                fix(left.pop(0), True)
            pending = left

    def until_settled(self, settled: Mapping[str, Tensor], groups: Sequence[NeuronGroup], fix: Callable[[NeuronGroup], None]) -> None:
        """Settle groups again and again, until no more neurons are."""
        before = -1
        while not all(bool(flags.all()) for flags in settled.values()):
            count = sum(int(flags.sum()) for flags in settled.values())
            if count == before:
                return
            before = count
            for group in groups:
                fix(group)

    def move(self, permutations: Mapping[str, Tensor], scales: Mapping[str, Tensor]) -> None:
        for name in {name for label in (*permutations, *scales) for name in self.users.get(label, ())}:
            self.tensors[name] = move_parameter(self.space, self.space.param(name), self.tensors[name], permutations, scales)
        for label, permutation in permutations.items():
            for flags in (self.scaled, self.signed, self.alive):
                for scale in flags:
                    if self.space.scale_classes[scale][0].permutation == label:
                        flags[scale] = flags[scale].gather(1, permutation)
            if label in self.colours:
                self.colours[label] = self.colours[label].gather(1, permutation)

    # == Entries of neurons ==

    def orders(self, group: NeuronGroup) -> list[str]:
        """The permutation classes that say how a group is ordered: its own, or those of its rows and columns."""
        return [self.space.group(name).permutation for name in group.factors] or [group.permutation]

    def settled_entries(
        self, occurrence: Occurrence, label: str, settled: Mapping[str, Tensor], *, odd: bool = False, read: bool = False
    ) -> Tensor:
        """Entries ``[B, n, D]`` of every neuron, 0 where they follow another neuron that is not settled.

        Args:
            occurrence: Where they lie.
            label: The class of the neurons.
            settled: Which neurons of other classes are.
            odd: Classes that they follow by even powers do not count.
            read: Only those count whose power has the other sign: the neurons that these ones read, or that read them.
        """
        entries = occurrence.entries(self.tensors)
        unsettled = {name for name, flags in settled.items() if not bool(flags.all())}
        own = occurrence.power(label)

        def rest(powers: Sequence[tuple[str, int]]) -> list[Tensor]:
            used = [name for name, power in powers if (power % 2 or not odd) and (power * own < 0 or not read)]
            return [settled[name].to(entries) for name in used if name in unsettled]

        for flags in rest([term for term in occurrence.powers if term[0] != label]):
            entries = entries * flags[..., None]
        if rest(occurrence.others):
            entries = entries * self.laid_beside(occurrence, lambda _, powers: math.prod(rest(powers), start=entries.new_ones(1, 1)))
        return entries

    def laid_beside(self, occurrence: Occurrence, values: Callable[[int, Sequence[tuple[str, int]]], Tensor]) -> Tensor:
        """For the entries ``[B, n, D]`` of every neuron, the product of values of the neurons along the other axes.

        Args:
            occurrence: Where the entries lie.
            values: Of an axis and the powers of the scale classes of neurons along it, values that broadcast to ``[B, neurons]``.

        Returns:
            Tensor ``[B, n, D]``.
        """
        param = occurrence.param
        total = torch.ones(len(self.thetas), *param.logical_shape, dtype=torch.float64, device=self.thetas.device)
        for i, axis in enumerate(param.axes):
            if i != occurrence.axis and axis.ties:
                found = [(group, values(i, powers)) for group, powers in segments(self.space, axis)]
                row = torch.cat([value.expand(len(total), group.size) for group, value in found], dim=1)
                row = row[:, torch.tensor(axis.order, device=row.device)] if axis.order else row
                total = total * row.view(len(row), *(axis.size if j == i else 1 for j in range(len(param.axes))))
        return occurrence.entries({param.name: total})

    def incoming(self, label: str, *, odd: bool = False, outgoing: bool = False) -> list[Occurrence]:
        """Occurrences that settle a class: with the first power of its factor, or else some other; or those that read it."""
        found = [o for o in self.by_scale.get(label, []) if o.power(label) % 2 or not odd]
        powers = {o.power(label) for o in found}
        first = next((power for power in (1, -1) if power in powers), min(powers, default=0))
        if outgoing:
            powers.discard(first)
            first = next((power for power in (-1, 1) if power in powers), min(powers, default=0))
        return [o for o in found if o.power(label) == first]

    # == Neurons that answer 0 ==

    def reached_from_inputs(self) -> dict[str, Tensor]:
        """Which neurons ``[B, n]`` something nonzero reaches, by scale class.

        All others answer 0. An odd function of 0 is 0, and so is a homogeneous one. Their outgoing weights do not matter then: the
        function is the same whatever positive number divides them or, for odd functions, since they multiply 0. That holds for
        weights that do nothing but multiply: neurons that have entries in transformed parameters count as reached.
        """
        reached = {
            label: torch.zeros(len(self.thetas), members[0].size, dtype=torch.bool, device=self.thetas.device)
            for label, members in self.space.scale_classes.items()
            if any(self.space.class_symmetry(label)) and label in self.by_scale
        }
        for label, neurons in reached.items():
            neurons |= any(occurrence.param.transformed for occurrence in self.by_scale[label])
        return self.spread(reached, self.space.topological_groups, outgoing=False)

    def spread(self, reached: dict[str, Tensor], groups: Sequence[NeuronGroup], *, outgoing: bool) -> dict[str, Tensor]:
        """Neurons that nonzero weights lead to from reached ones, or from which they lead to such, until there are no more."""
        changed = True
        while changed:
            changed = False
            for label in dict.fromkeys(group.scale for group in groups if group.scale in reached):
                if bool(reached[label].all()):
                    continue
                for occurrence in self.incoming(label, outgoing=outgoing):
                    new = (self.settled_entries(occurrence, label, reached, read=not outgoing) != 0).any(dim=2) & ~reached[label]
                    if bool(new.any()):
                        reached[label] = reached[label] | new
                        changed = True
        return reached

    def erase_idle(self) -> None:
        """Make all weights of neurons 0 that answer 0 and are read by such neurons alone."""
        used = self.spread(dict(self.alive), self.space.topological_groups[::-1], outgoing=True)
        for label, neurons in used.items():
            if (label in self.scaled or label in self.signed) and not bool(neurons.all()):
                self.erase(label, ~neurons, odd=not self.space.class_symmetry(label).positive)

    def erase(self, label: str, neurons: Tensor, *, odd: bool) -> None:
        """Make all entries that follow some neurons ``[B, n]`` of a class 0, or those that follow their signs."""
        for occurrence in self.by_scale[label]:
            if odd and occurrence.power(label) % 2 == 0:
                continue
            tensor = self.tensors[occurrence.param.name]
            kept = torch.ones(len(tensor), tensor.shape[1 + occurrence.axis], dtype=tensor.dtype, device=tensor.device)
            kept[:, list(occurrence.positions)] = (~neurons).to(tensor.dtype)
            shape = [1] * tensor.ndim
            shape[0], shape[1 + occurrence.axis] = kept.shape
            self.tensors[occurrence.param.name] = tensor * kept.view(shape)

    # == Phase ==

    def reduce_phase(self, group: NeuronGroup) -> None:
        if group.activation not in group.operators or group.role != "hidden":
            return
        name, arguments = parse_operator(group.activation)
        biases = [layer.bias for layer in self.space.layers_into(group.name) if layer.bias is not None]
        used = [layer.bias for layer in self.space.layers]
        # A bias that another layer reads too cannot turn for this one alone.
        biases = [bias for bias in biases if used.count(bias) == 1]
        if name != "sin" or not biases or not all(map(_passes_shift, group.operators[: group.operators.index(group.activation)])):
            return
        consumers = [layer for layer in self.space.layers if group.name in layer.sources]
        # A skip connection has no weight that could take up the minus sign of a half turn, and tied groups would have to turn together.
        half = self.space.class_symmetry(group.scale).sign and all(layer.weight is not None for layer in consumers)
        half = half and len(self.space.scale_classes[group.scale]) == 1
        period = (math.pi if half else 2 * math.pi) / (arguments[0] if arguments else 1.0)
        total = [layer.bias for layer in self.space.layers_into(group.name) if layer.bias is not None]
        phase = torch.stack([self.tensors[bias] for bias in total]).detach().sum(0) / period
        # A phase at the open end of the interval, up to rounding, counts as one at the closed end.
        turns = torch.ceil(phase - 0.5 - self.rounding * (1 + phase.abs()))
        self.tensors[biases[0]] = self.tensors[biases[0]] - turns * period
        if half:
            odd = torch.where(turns.remainder(2) == 1, -1.0, 1.0).to(phase.dtype)
            for weight in dict.fromkeys(layer.weight for layer in consumers if layer.weight is not None):
                param = self.space.param(weight)
                self.tensors[weight] = move_parameter(self.space, param, self.tensors[weight], {}, {group.scale: odd})

    # == Scale ==

    def fix_scale(self, group: NeuronGroup, forced: bool) -> bool:
        label = group.scale
        if group.role == "factor" or label not in self.scaled or label not in self.by_scale:
            return True
        self.normalize(label, self.incoming(label), self.alive[label])
        if forced:
            self.normalize(label, self.incoming(label, outgoing=True), self.alive[label])
        return forced or self.all_settled(label, self.scaled)

    def all_settled(self, label: str, settled: Mapping[str, Tensor]) -> bool:
        """Whether all neurons of a class that answer anything but 0 are settled."""
        return label not in settled or bool((settled[label] | ~self.alive[label]).all())

    def normalize(self, label: str, chosen: Sequence[Occurrence], neurons: Tensor) -> None:
        """Give those of some neurons ``[B, n]`` that have no factor yet the one that makes the norm of their settled entries 1."""
        if not chosen or bool(self.scaled[label].all()):
            return
        shifted = [self.with_shifts(occurrence, label, self.scaled) for occurrence in chosen]
        logarithms = [self.log_norms(entries) + shift[:, None] for entries, shift in shifted]
        total = torch.logsumexp(2 * torch.stack(logarithms), dim=0) / 2
        self.take_factor(label, -total / chosen[0].power(label), (total > _NOTHING / 2) & ~self.scaled[label] & neurons)

    def take_factor(self, label: str, logarithm: Tensor, new: Tensor) -> None:
        """Multiply some neurons of a class, given the logarithms of their factors."""
        # What the first to be settled have in common is kept apart, so that no product of factors leaves the range of float64.
        fresh = ~self.scaled[label].any(dim=1)
        common = torch.where(new, logarithm.detach(), -torch.inf).amax(dim=1)
        self.shift[label] = torch.where(fresh & (common > -torch.inf), common, self.shift[label])
        self.move({}, {label: torch.where(new, logarithm - self.shift[label][:, None], 0).exp()})
        self.scaled[label] = self.scaled[label] | new

    def log_norms(self, entries: Tensor) -> Tensor:
        """Logarithms ``[B, n]`` of the norms of entries ``[B, n, D]``; a very small number where all are 0."""
        # Dividing by the largest entry first keeps the squares of very large and very small weights inside the range of float64.
        largest = entries.detach().abs().amax(dim=2)
        present = largest > 0
        largest = torch.where(present, largest, 1)
        squares = (entries / largest[..., None]).square().sum(dim=2)
        return torch.where(present, torch.where(present, squares, 1).log() / 2 + largest.log(), _NOTHING)

    def with_shifts(self, occurrence: Occurrence, label: str, settled: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Settled entries ``[B, n, D]``, and the logarithm ``[B]`` of what all are still to be multiplied with, beside the own class's."""
        entries = self.settled_entries(occurrence, label, settled)
        zero = self.thetas.new_zeros(len(self.thetas), dtype=torch.float64)

        def total(powers: Sequence[tuple[str, int]]) -> Tensor:
            return sum((power * self.shift[name] for name, power in powers if name in self.shift), start=zero)

        laid = {i: segments(self.space, axis) for i, axis in enumerate(occurrence.param.axes) if i != occurrence.axis and axis.ties}
        most = {i: torch.stack([total(powers) for _, powers in found]).amax(dim=0) for i, found in laid.items()}
        if any(len(found) > 1 for found in laid.values()):  # groups laid end to end, each with factors of its own
            entries = entries * self.laid_beside(occurrence, lambda i, powers: (total(powers) - most[i]).exp()[:, None])
        return entries, sum(most.values(), start=total([term for term in occurrence.powers if term[0] != label]))

    def centre_rest(self) -> None:
        """Settle neurons whose entries all follow others that are not settled: the logarithms of the entries get mean 0 along both."""
        rest = {label: self.alive[label] & ~flags for label, flags in self.scaled.items() if label in self.alive}
        rest = {label: mask for label, mask in rest.items() if bool(mask.any())}
        reachable = {label: flags | rest.get(label, False) for label, flags in self.scaled.items()}
        for _ in range(_CENTRINGS if rest else 0):
            largest = 0.0
            for label, mask in rest.items():
                chosen = self.incoming(label)
                logarithms = []
                for occurrence in chosen:
                    entries, shift = self.with_shifts(occurrence, label, reachable)
                    entries = entries.abs()
                    logarithm = torch.where(entries > 0, entries, 1).log() + shift[:, None, None]
                    logarithms.append(torch.where(entries > 0, logarithm, torch.nan))
                mean = torch.cat(logarithms, dim=2).nanmean(dim=2)
                step = torch.where(mask & ~mean.isnan(), -mean.nan_to_num() / chosen[0].power(label) - self.shift[label][:, None], 0)
                self.move({}, {label: step.exp()})
                largest = max(largest, float(step.detach().abs().max()))
            if largest < 1e-14:
                break
        for label, mask in rest.items():
            self.scaled[label] = self.scaled[label] | mask

    def scale_dead(self, group: NeuronGroup) -> None:
        """Settle the factors of neurons that answer 0 by what reads them."""
        label = group.scale
        if group.role == "factor" or label not in self.scaled or label not in self.by_scale or bool(self.scaled[label].all()):
            return
        self.normalize(label, self.incoming(label, outgoing=True), ~self.alive[label])

    def bring_into_range(self) -> None:
        """Multiply all entries with what their classes have in common, or with what keeps them in the range of the dtype."""
        if not self.shift:
            return
        result = self.shifted(self.shift)
        if bool((outside := self.outside(result)).any()):
            balanced = {label: torch.where(outside, shift, self.shift[label]) for label, shift in self.balanced_shifts().items()}
            result = self.shifted(balanced)
            if bool((outside := self.outside(result, small=False)).any()):
                raise ValueError(
                    f"Network {int(outside.nonzero()[0])} has no canonical form within the range of {self.thetas.dtype}: its "
                    "weights differ by too many orders of magnitude. Convert it with thetas.double() first, or settle no "
                    "scale: fix=['sign', 'order']."
                )
        self.tensors = result
        self.shift = {label: torch.zeros_like(shift) for label, shift in self.shift.items()}

    def shifted(self, shift: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All parameters after factors of whole classes, given by their logarithms ``[B]``."""
        largest = max(float(value.abs().max()) for value in shift.values())
        steps = max(1, math.ceil(largest / _LARGEST_STEP))  # in small steps, so that no factor leaves the range of float64
        factors = {
            label: (value / steps).exp()[:, None].expand(-1, self.space.scale_classes[label][0].size) for label, value in shift.items()
        }
        result = dict(self.tensors)
        for name, tensor in result.items():
            for _ in range(steps):
                tensor = move_parameter(self.space, self.space.param(name), tensor, {}, factors)
            result[name] = tensor
        return result

    def outside(self, tensors: Mapping[str, Tensor], *, small: bool = True) -> Tensor:
        """Which networks ``[B]`` have parameters that are too large for the dtype, or vanish in it."""
        limits = torch.finfo(self.thetas.dtype)
        result = torch.zeros(len(self.thetas), dtype=torch.bool, device=self.thetas.device)
        for name, tensor in tensors.items():
            largest = tensor.detach().abs().flatten(1).amax(dim=1)
            present = (self.tensors[name].detach() != 0).flatten(1).any(dim=1)
            result |= ~(largest <= limits.max) | (present & (largest < min(limits.tiny, 1e-30)) & small)
        return result

    def balanced_shifts(self) -> dict[str, Tensor]:
        r"""The factors of whole classes that bring the largest entries of all parameters nearest to 1, by their logarithms.

        They minimise :math:`\sum_p |\ell_p + \sum_c e_{pc} y_c|^{16}` over all parameters, which is close to the largest of the terms, but
        has one minimum that depends continuously on the weights. :math:`\ell_p` is the logarithm of a parameter's largest entry where
        norms are 1, and :math:`e_{pc}` the power of class :math:`c` in it. The steps are Newton's.
        """
        labels = list(self.shift)
        shifts = torch.stack([self.shift[label] for label in labels], dim=1)
        matrix = shifts.new_zeros(len(self.space.params), len(labels))
        values = []
        for row, param in zip(matrix, self.space.params, strict=True):
            for axis in param.axes:
                along = segments(self.space, axis)
                for name, power in (term for _, powers in along for term in powers if term[0] in self.shift):
                    row[labels.index(name)] += power / len(along)
            largest = self.tensors[param.name].detach().abs().flatten(1).amax(dim=1)
            values.append(torch.where(largest > 0, torch.where(largest > 0, largest, 1).log(), -torch.inf))
        result = []
        for own, shift in zip(torch.stack(values, dim=1), shifts, strict=True):
            present = own > -torch.inf
            used = matrix[present]
            rest = own[present] + used @ shift  # from norms of 1, which are the same for all of an orbit
            total = torch.zeros_like(shift)
            for i in range(_BALANCINGS):
                weights = (rest.abs() / rest.abs().max().clamp(min=1e-9)).clamp(min=1e-3) ** (_EXPONENT / 2 - 1)
                step = -torch.linalg.pinv(weights[:, None] * used) @ (weights * rest)
                step = step if i == 0 else step / (_EXPONENT - 1)
                total, rest = total + step, rest + used @ step
            result.append(shift + total)
        return dict(zip(labels, torch.stack(result).unbind(dim=1), strict=True))

    # == Sign ==

    def fix_sign_and_order(self, group: NeuronGroup, forced: bool) -> bool:
        return (group.role == "factor" or self.fix_sign(group, forced)) and self.fix_order(group, forced)

    def fix_sign(self, group: NeuronGroup, forced: bool) -> bool:
        label = group.scale
        if group.role == "factor" or label not in self.signed or label not in self.by_scale or self.all_settled(label, self.signed):
            return True
        # What neurons send that answer 0 says nothing.
        settled = {**self.alive, **self.signed}
        self.make_positive(group, self.incoming(label, odd=True), self.alive[label], settled)
        if forced:
            self.make_positive(group, self.incoming(label, odd=True, outgoing=True), self.alive[label], settled)
        if not forced and not self.all_settled(label, self.signed):
            return label in self.sign_done
        self.sign_done.add(label)
        return True

    def make_positive(self, group: NeuronGroup, chosen: Sequence[Occurrence], neurons: Tensor, settled: Mapping[str, Tensor]) -> None:
        """Make the largest settled entry positive of those of some neurons ``[B, n]`` that have no sign yet."""
        label = group.scale
        chosen = [occurrence for occurrence in chosen if self.beside_sorted(occurrence)]
        if not chosen or bool(self.signed[label].all()):
            return
        values = torch.cat([self.settled_entries(o, label, settled, odd=True).detach() for o in chosen], dim=2)
        magnitude = values.abs()
        largest = magnitude.amax(dim=2)
        new = (largest > 0) & ~self.signed[label] & neurons
        if not bool(new.any()):
            return
        # Entries that tie up to rounding must not compete, or the sign would depend on the last bit.
        first = (magnitude >= (1 - self.rounding) * largest[..., None]).to(torch.uint8).argmax(dim=2, keepdim=True)
        sign = torch.where(new & (values.gather(2, first)[..., 0] < 0), -1.0, 1.0).to(values.dtype)
        self.move({}, {label: sign})
        self.signed[label] = self.signed[label] | new
        if self.phases:  # a flip takes a phase of exactly -pi/2 out of the half-open interval
            for member in self.space.scale_classes[label]:
                self.reduce_phase(member)
        if group.permutation in self.ranks and not group.factors:  # those that were alike when they were sorted may not be any more
            self.sort_among_equals(group.permutation, [values * sign[..., None] * new[..., None]])

    def sign_rest(self, groups: Sequence[NeuronGroup]) -> None:
        """Settle neurons whose entries all follow other signs that are not settled: the first of them keeps its own."""
        for label in self.signed:
            if label in self.alive:  # signs of neurons without entries are settled
                idle = self.alive[label]
                for occurrence in self.by_scale[label]:
                    if occurrence.power(label) % 2:
                        idle = idle & (occurrence.entries(self.tensors) == 0).all(dim=2)
                self.signed[label] = self.signed[label] | idle
        self.until_settled(self.signed, groups, self.sign_either_way)
        while waiting := [group for group in groups if group.scale in self.alive and not self.all_settled(group.scale, self.signed)]:
            label = waiting[0].scale
            unsettled = self.alive[label] & ~self.signed[label]
            self.signed[label] = self.signed[label] | (unsettled & (unsettled.cumsum(dim=1) == 1))
            self.until_settled(self.signed, waiting, self.sign_either_way)

    def sign_either_way(self, group: NeuronGroup) -> None:
        if group.scale not in self.alive or self.all_settled(group.scale, self.signed):
            return
        for outgoing in (False, True):
            chosen = self.incoming(group.scale, odd=True, outgoing=outgoing)
            self.make_positive(group, chosen, self.alive[group.scale], self.signed)

    def beside_sorted(self, occurrence: Occurrence) -> bool:
        """Whether the neurons along the other axes are in order."""
        return all(label in self.sorted for group in occurrence.beside for label in self.orders(group))

    def sign_dead(self, group: NeuronGroup) -> None:
        """Settle the signs of neurons that answer 0 by what reads them."""
        label = group.scale
        if group.role == "factor" or label not in self.signed or label not in self.by_scale or bool(self.signed[label].all()):
            return
        self.make_positive(group, self.incoming(label, odd=True, outgoing=True), ~self.alive[label], self.signed)

    # == Order ==

    def fix_order(self, group: NeuronGroup, forced: bool) -> bool:
        label = group.permutation
        if group.factors or label in self.sorted:
            return True
        chosen: dict[tuple[str, int, tuple[int, ...]], Occurrence] = {}
        for occurrence in self.by_order.get(label, []):
            chosen.setdefault((occurrence.param.name, occurrence.axis, occurrence.positions), occurrence)
        ordered = [occurrence for occurrence in chosen.values() if self.in_order(occurrence)]
        others = [occurrence for occurrence in chosen.values() if not self.in_order(occurrence)]
        if not ordered and not forced:
            return False
        if chosen:
            # What neurons are written by comes before what reads them.
            ordered.sort(key=lambda occurrence: max((power for _, power in occurrence.powers), default=0) <= 0)
            keys = [self.key(occurrence, label, ordered=True) for occurrence in ordered]
            keys += [self.key(occurrence, label, ordered=False) for occurrence in others]
            ranks = _lexicographic_ranks(keys, self.digits)
            if not _all_differ(ranks):
                ranks = _lexicographic_ranks([ranks[..., None], self.all_colours()[label][..., None]], self.digits)
            self.sort(label, ranks, ranks)
        self.sorted.add(label)
        return True

    def sort(self, label: str, ranks: Tensor, found: Tensor) -> None:
        """Sort the neurons of a class by ranks ``[B, n]``, after which those alike in others were alike when first sorted."""
        order = found.argsort(dim=1, stable=True)
        self.move(with_products(self.space, {label: order}, len(order), order.device), {})
        self.ranks[label] = ranks.gather(1, order)

    def sort_among_equals(self, label: str, keys: Sequence[Tensor]) -> None:
        """Sort neurons that were alike when their class was sorted by keys ``[B, n, D]``."""
        ranks = self.ranks[label]
        self.sort(label, ranks, _lexicographic_ranks([ranks[..., None], *keys], self.digits))

    def unsigned(self, occurrence: Occurrence, entries: Tensor) -> Tensor:
        """Entries, or their magnitudes where symmetries change their signs."""
        free = any(power % 2 and label in self.signed for label, power in (*occurrence.powers, *occurrence.others))
        return entries.abs() if free else entries

    def all_colours(self) -> dict[str, Tensor]:
        """Numbers ``[B, n]`` that differ between neurons where weights tell them apart anyhow (magnitudes, where signs are free).

        Every neuron has the multiset of its weights, each with the colour of the neuron at its other end, in place of its colour until that
        tells no more neurons apart (colour refinement, as Weisfeiler and Leman do it for graphs).
        """
        if self.colours:
            return self.colours
        labels = [label for label in self.by_order if self.space.is_permutable(label)]
        size = {label: self.space.permutation_classes[label][0].size for label in labels}
        colours = {label: torch.zeros(len(self.thetas), n, dtype=torch.long, device=self.thetas.device) for label, n in size.items()}
        distinct = 0
        while True:
            refined = {}
            for label in labels:
                chosen = {(o.param.name, o.axis, o.positions): o for o in self.by_order[label]}.values()
                keys = [self.coloured(occurrence, label, colours) for occurrence in chosen]
                refined[label] = _lexicographic_ranks([colours[label][..., None], *keys], self.digits)
            count = sum(len(ranks.unique()) for ranks in refined.values())
            colours = refined
            if count == distinct:
                self.colours = colours
                return colours
            distinct = count

    def coloured(self, occurrence: Occurrence, label: str, colours: Mapping[str, Tensor]) -> Tensor:
        """The entries ``[B, n, D]`` of every neuron, sorted by the colours of their other ends, and then by size."""
        entries = self.unsigned(occurrence, occurrence.entries(self.tensors).detach())
        ends = self.end_colours(occurrence, colours)[:, None].expand_as(entries)
        if occurrence.group.factors:
            rows, columns = (self.space.group(name) for name in occurrence.group.factors)
            entries, ends = (tensor.unflatten(1, (rows.size, columns.size)) for tensor in (entries, ends))
            crossed = columns
            if label != rows.permutation:
                entries, ends, crossed = entries.transpose(1, 2), ends.transpose(1, 2), rows
            own = colours.get(crossed.permutation, torch.arange(crossed.size, device=ends.device).expand(len(ends), -1))
            ends = ends * (int(own.max()) + 1) + own[:, None, :, None]
            entries, ends = entries.flatten(2), ends.flatten(2)
        by_size = entries.argsort(dim=2)
        by_colour = ends.gather(2, by_size).argsort(dim=2, stable=True)
        return entries.gather(2, by_size).gather(2, by_colour)

    def end_colours(self, occurrence: Occurrence, colours: Mapping[str, Tensor]) -> Tensor:
        """A number ``[B, D]`` for every entry of a neuron: the colours of the neurons along the other axes, or positions."""
        param = occurrence.param
        total = torch.zeros(len(self.thetas), *param.logical_shape, dtype=torch.long, device=self.thetas.device)
        for i, axis in enumerate(param.axes):
            if i == occurrence.axis:
                continue
            along = torch.arange(axis.size, device=total.device).expand(len(total), -1)
            if axis.ties:
                rows, start = [], 0
                for name in axis.ties[0].groups:
                    group = self.space.group(name)
                    own = [colours.get(label) for label in self.orders(group)]
                    place = torch.arange(group.size, device=total.device).expand(len(total), -1)
                    if len(own) == 1:
                        rows.append((place if own[0] is None else own[0]) + start)
                    else:
                        sizes = [self.space.group(factor).size for factor in group.factors]
                        ends = [
                            torch.arange(n, device=total.device).expand(len(total), -1) if colour is None else colour
                            for colour, n in zip(own, sizes, strict=True)
                        ]
                        rows.append((ends[0][:, :, None] * (int(ends[1].max()) + 1) + ends[1][:, None]).flatten(1) + start)
                    start += int(rows[-1].max()) + 1
                along = torch.cat(rows, dim=1)
                along = along[:, torch.tensor(axis.order, device=along.device)] if axis.order else along
            shape = [1] * total.ndim
            shape[0], shape[1 + i] = along.shape
            total = total * (int(along.max()) + 1) + along.view(shape)
        return occurrence.entries({param.name: total})[:, 0]

    def sort_dead(self, group: NeuronGroup) -> None:
        """Sort neurons that answer 0 and were alike when they were sorted by what reads them, which is settled by now."""
        label, permutation = group.scale, group.permutation
        if label not in self.alive or permutation not in self.ranks or group.factors or bool(self.alive[label].all()):
            return
        dead = ~self.alive[label]
        keys = [occurrence.entries(self.tensors).detach() * dead[..., None] for occurrence in self.incoming(label, outgoing=True)]
        self.sort_among_equals(permutation, keys)

    def in_order(self, occurrence: Occurrence) -> bool:
        """Whether the entries of a neuron lie in a settled order, and have settled signs."""
        odd = {label for label, power in (*occurrence.powers, *occurrence.others) if power % 2}
        return self.beside_sorted(occurrence) and all(label not in self.signed or label in self.sign_done for label in odd)

    def key(self, occurrence: Occurrence, label: str, *, ordered: bool) -> Tensor:
        """What the neurons of a class, or rows or columns of neurons, are compared by, ``[B, n, D]``."""
        entries = (
            self.settled_entries(occurrence, "", {**self.alive, **self.signed}, odd=True) if ordered else occurrence.entries(self.tensors)
        )
        entries = entries.detach()
        if occurrence.group.factors:
            rows, columns = (self.space.group(name) for name in occurrence.group.factors)
            entries = entries.unflatten(1, (rows.size, columns.size))
            crossed = columns
            if label != rows.permutation:
                entries, crossed = entries.transpose(1, 2), rows
            if ordered and crossed.permutation not in self.sorted:
                entries = entries.sort(dim=2).values
            entries = entries.flatten(2)
        return entries if ordered else self.unsigned(occurrence, entries).sort(dim=2).values


def _passes_shift(text: str) -> bool:
    """Whether an operator adds to its results what is added to all of its arguments."""
    name, numbers = parse_operator(text)
    rule = OPERATORS[name].shift
    return rule(*numbers) if callable(rule) else rule


def _all_differ(ranks: Tensor) -> bool:
    ordered = ranks.sort(dim=1).values
    return not bool((ordered[:, 1:] == ordered[:, :-1]).any())


def _lexicographic_ranks(keys: Sequence[Tensor], digits: float) -> Tensor:
    """Rank ``[B, n]`` of every neuron among those of its network, comparing the rows of ``keys`` (each ``[B, n, D]``) in order."""
    batch, size = keys[0].shape[:2]
    columns = [torch.arange(batch, device=keys[0].device)[:, None, None].expand(batch, size, 1)]
    for key in keys:
        if not key.is_floating_point():
            columns.append(key)
            continue
        # Rounding keeps entries that agree in exact arithmetic equal, whichever point of the orbit they were computed from.
        largest = key.abs().amax(dim=(1, 2), keepdim=True)
        columns.append((key / torch.where(largest > 0, largest, 1) * digits).round().long())
    rows = torch.cat(columns, dim=2).flatten(0, 1)
    return torch.unique(rows, dim=0, return_inverse=True)[1].view(batch, size)
