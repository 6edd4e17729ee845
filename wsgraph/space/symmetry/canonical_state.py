"""Parameters on their way to the canonical form, and which of their neurons are settled."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor

from wsgraph.space.flat import FlatSpace
from wsgraph.space.parts import NeuronGroup
from wsgraph.space.symmetry.group import logical_tensors, move_parameter
from wsgraph.space.symmetry.occurrences import Occurrence, laid_along, occurrences, segments

__all__ = ["CanonicalState"]


class CanonicalState:
    """The parameters on their way to the canonical form, and the neurons already settled.

    They are computed in float64. The factors of a class are split in two: one number per network, of which only the logarithm is kept until
    the end, and factors of about 1 per neuron.
    """

    def __init__(self, space: FlatSpace, thetas: Tensor, fix: Collection[str]) -> None:
        self.space, self.thetas = space, thetas
        self.tensors = logical_tensors(space, thetas.double())
        self.phases, self.flips = "phase" in fix, "flip" in fix
        self.by_scale: dict[str, list[Occurrence]] = {}
        self.by_order: dict[str, list[Occurrence]] = {}
        self.users: dict[str, set[str]] = {}
        for occurrence in occurrences(space):
            for label, _ in occurrence.powers:
                self.by_scale.setdefault(label, []).append(occurrence)
            for label in self.orders(occurrence.group):
                self.by_order.setdefault(label, []).append(occurrence)
            for label in {*(label for label, _ in occurrence.powers), occurrence.group.permutation, *self.orders(occurrence.group)}:
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
            for found in (self.colours, self.ranks):
                if label in found:
                    found[label] = found[label].gather(1, permutation)

    # == Entries of neurons ==

    def orders(self, group: NeuronGroup) -> list[str]:
        """The permutation classes that say how a group is ordered: its own, those of its blocks and its own, or of its rows and columns."""
        return [*(self.space.group(name).permutation for name in group.factors), *([group.permutation] if len(group.factors) < 2 else [])]

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
                total = total * laid_along(param, i, row)
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
            count = occurrence.param.axes[occurrence.axis].num_neurons
            kept = torch.ones(len(tensor), count, dtype=tensor.dtype, device=tensor.device)
            kept[:, list(occurrence.positions)] = (~neurons).to(tensor.dtype)
            self.tensors[occurrence.param.name] = tensor * laid_along(occurrence.param, occurrence.axis, kept)

    def all_settled(self, label: str, settled: Mapping[str, Tensor]) -> bool:
        """Whether all neurons of a class that answer anything but 0 are settled."""
        return label not in settled or bool((settled[label] | ~self.alive[label]).all())
