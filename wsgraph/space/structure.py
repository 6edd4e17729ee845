"""An architecture as data: the fields of a weight space, and what follows from them without a tensor."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

from wsgraph.space.errors import SpaceMismatchError
from wsgraph.space.parts import Axis, Connection, Layer, NeuronGroup, Parameter, Signal, Symmetry, Tie
from wsgraph.space.program import Program

__all__ = ["Structure"]


@dataclass(frozen=True, repr=False)
class Structure:
    """The fields of a weight space, as :class:`~wsgraph.WeightSpace` explains them, and what follows from them."""

    groups: tuple[NeuronGroup, ...]
    layers: tuple[Layer, ...]
    params: tuple[Parameter, ...]
    connections: tuple[Connection, ...] = ()
    signal: Signal | None = None
    assumed: tuple[str, ...] = dataclasses.field(default=(), compare=False)
    program: Program | None = None
    unlayered: str = dataclasses.field(default="", compare=False)
    unprogrammed: str = dataclasses.field(default="", compare=False)

    def __post_init__(self) -> None:
        for field in ("groups", "layers", "params", "connections"):
            object.__setattr__(self, field, tuple(getattr(self, field)))

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.groups, self.layers, self.params, self.connections, self.signal, self.program))

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    # == Parts ==

    @cached_property
    def _groups_by_name(self) -> dict[str, NeuronGroup]:
        return {group.name: group for group in self.groups}

    @cached_property
    def _params_by_name(self) -> dict[str, Parameter]:
        return {param.name: param for param in self.params}

    def group(self, name: str) -> NeuronGroup:
        """The neuron group of that name."""
        return self._groups_by_name[name]

    @cached_property
    def _params_by_key(self) -> dict[str, Parameter]:
        return {key: param for param in self.params for key in param.keys}

    def param(self, name: str) -> Parameter:
        """The parameter of that name, or with that alias."""
        return self._params_by_name[name] if name in self._params_by_name else self._params_by_key[name]

    @cached_property
    def num_params(self) -> int:
        """Number of entries :math:`P` of a flat checkpoint."""
        return sum(param.size for param in self.params)

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Where each parameter lies in the flat vector."""
        stops = list(itertools.accumulate(param.size for param in self.params))
        return {param.name: slice(stop - param.size, stop) for param, stop in zip(self.params, stops, strict=True)}

    @cached_property
    def permutation_classes(self) -> dict[str, tuple[NeuronGroup, ...]]:
        """Groups that must be permuted alike, by class label."""
        return self._classes("permutation")

    @cached_property
    def scale_classes(self) -> dict[str, tuple[NeuronGroup, ...]]:
        """Groups that must also be scaled alike, by class label."""
        return self._classes("scale")

    def _classes(self, label: str) -> dict[str, tuple[NeuronGroup, ...]]:
        classes: dict[str, list[NeuronGroup]] = {}
        for group in self.groups:
            classes.setdefault(getattr(group, label), []).append(group)
        return {name: tuple(members) for name, members in classes.items()}

    def is_permutable(self, permutation: str) -> bool:
        """Whether the neurons of a permutation class may be reordered: none of its groups is an input, an output or fixed."""
        members = self.permutation_classes[permutation]
        if not all(group.role == "hidden" or (group.role == "factor" and not group.reason) for group in members):
            return False
        factors = [self.group(name) for name in members[0].factors]
        if len(factors) == 1 and factors[0].size < members[0].size:  # within blocks at least
            return True
        return not factors or any(self.is_permutable(factor.permutation) for factor in factors)

    def class_symmetry(self, scale: str) -> Symmetry:
        """Factors allowed in a scale class: what every operator of every one of its groups lets through."""
        members = self.scale_classes[scale]
        if not all(group.role == "hidden" for group in members):
            return Symmetry(False, False)
        symmetry = Symmetry(True, True)
        for group in members:
            symmetry &= group.symmetry
        return symmetry

    # == Order ==

    @cached_property
    def topological_groups(self) -> tuple[NeuronGroup, ...]:
        """Groups ordered so that every layer leads forward."""
        waiting = {name: len(sources) for name, sources in self._read_by.items()}
        readers: dict[str, list[str]] = {name: [] for name in waiting}
        for name, sources in self._read_by.items():
            for source in sources:
                readers[source].append(name)
        position = {name: i for i, name in enumerate(waiting)}
        ready = [name for name, count in waiting.items() if not count]
        ordered: list[str] = []
        while ready:
            ordered += ready
            read = [reader for name in ready for reader in readers[name]]
            for name in read:
                waiting[name] -= 1
            ready = sorted({name for name in read if not waiting[name]}, key=position.__getitem__)
        if len(ordered) < len(waiting):
            raise ValueError(f"The layers form a cycle through the groups {sorted(waiting.keys() - set(ordered))}.")
        return tuple(self._groups_by_name[name] for name in ordered)

    @cached_property
    def levels(self) -> dict[str, int]:
        """Length of the longest path from an input to every group, by its name.

        Example:
            >>> from wsgraph import WeightSpace
            >>> WeightSpace.mlp([2, 8, 1]).levels
            {'input': 0, 'hidden.1': 1, 'output': 2}
        """
        levels: dict[str, int] = {}
        for group in self.topological_groups:
            levels[group.name] = max((levels[name] + 1 for name in self._read_by[group.name]), default=0)
        return levels

    @cached_property
    def _read_by(self) -> dict[str, set[str]]:
        """The groups that every group reads."""
        sources: dict[str, set[str]] = {group.name: set() for group in self.groups}
        for wire in self.wires:
            for target in wire.targets:
                sources[target].update(wire.sources)
        return sources

    @cached_property
    def wires(self) -> tuple[Connection, ...]:
        """Which neurons read which, and what belongs to them: the connections of a traced network, or those that layers stand for.

        Of a network of layers, the first of them are its layers in their order.

        Example:
            >>> from wsgraph import WeightSpace
            >>> [(wire.name, wire.kind, wire.targets) for wire in WeightSpace.mlp([2, 8]).wires]
            [('layers.0', 'weight', ('output',)), ('layers.0.bias', 'bias', ('output',))]
        """
        if not self.layers:
            return self.connections
        wires, features = [], []
        for layer in self.layers:
            if layer.weight is None:
                wires.append(Connection(layer.name, "sum", layer.sources, (layer.target,), blocks=self.group(layer.target).size))
            else:
                target, source, _ = self.weight_axes(layer)
                shape = self.param(layer.weight).logical_shape
                wire = Connection(layer.name, "weight", layer.sources, (layer.target,), parameter=layer.weight, shape=shape)
                wires.append(dataclasses.replace(wire, source_axis=source, target_axis=target))
            if layer.bias is not None:
                shape = self.param(layer.bias).shape
                name = f"{layer.name}.bias"
                features.append(Connection(name, "bias", (), (layer.target,), parameter=layer.bias, shape=shape, target_axis=0))
        return (*wires, *features)

    def wires_of(self, param: str) -> tuple[Connection, ...]:
        """The wires whose edges or neurons hold a parameter's entries."""
        return self._wires_by_param.get(param, ())

    @cached_property
    def _wires_by_param(self) -> dict[str, tuple[Connection, ...]]:
        wires: dict[str, list[Connection]] = {}
        for wire in self.wires:
            if wire.parameter is not None:
                wires.setdefault(wire.parameter, []).append(wire)
        return {name: tuple(each) for name, each in wires.items()}

    @cached_property
    def absent_from_graph(self) -> list[str]:
        """Names of the parameters that no wire has: those that the network does not use, or makes other parameters of."""
        drawn = {wire.parameter for wire in self.wires}
        return [param.name for param in self.params if param.role != "buffer" and param.name not in drawn]

    def layers_into(self, group: str) -> tuple[Layer, ...]:
        """The layers that are summed into a group."""
        return self._layers_into.get(group, ())

    @cached_property
    def _layers_into(self) -> dict[str, tuple[Layer, ...]]:
        return {group.name: tuple(layer for layer in self.layers if layer.target == group.name) for group in self.groups}

    @cached_property
    def _outside_layers(self) -> list[str]:
        used = {name for layer in self.layers for name in (layer.weight, layer.bias)}
        return [param.name for param in self.params if param.name not in used]

    def check_layers(self, what: str) -> None:
        """Raise where the space has parameters outside its layers: they have symmetries, but no function or graph that is known here.

        Raises:
            SpaceMismatchError: Naming what needs layers, and the first parameter outside them.
        """
        if outside := self._outside_layers:
            why = f" It is not written as layers, because {self.unlayered}." if self.unlayered else ""
            raise SpaceMismatchError(
                f"{what} needs a network of dense and convolutional layers, residual sums and known operators, but no layer of {self!r} "
                f"uses the parameter {outside[0]!r}{f' and {len(outside) - 1} more' if len(outside) > 1 else ''}.{why} Its symmetries are "
                f"known: flatten, act, canonicalize and report work{', and so do graph and batch' if self.connections else ''}."
            )

    @property
    def can_run(self) -> bool:
        """Whether the space says what its networks compute, by layers or a program.

        Example:
            >>> from wsgraph import WeightSpace
            >>> WeightSpace.mlp([2, 3, 1]).can_run
            True
        """
        return not self._outside_layers or self.program is not None

    def check_runs(self, what: str) -> None:
        """Raise where the space does not say what its networks compute.

        Args:
            what: What needs it.

        Raises:
            SpaceMismatchError: Saying why, and what to do.
        """
        if not self.can_run:
            reason = self.unprogrammed or "it was read from a file of an earlier version, or built by hand without a program"
            todo = "Give the module that runs it where that is possible." if self.unprogrammed else "Trace it again with wsgraph.trace."
            raise SpaceMismatchError(
                f"{what} has to run networks of {self!r}, but the space does not say what they compute, because {reason}. {todo}"
            )

    def weight_axes(self, layer: Layer) -> tuple[int, int, tuple[int, ...]]:
        """Positions of the target axis, the source axis and the kernel axes among a layer's weight axes."""
        return self._weight_axes[layer.name]

    @cached_property
    def _weight_axes(self) -> dict[str, tuple[int, int, tuple[int, ...]]]:
        return {layer.name: self.find_axes(layer) for layer in self.layers if layer.weight is not None}

    def find_axes(self, layer: Layer) -> tuple[int, int, tuple[int, ...]]:
        """The same, searched for.

        Raises:
            ValueError: If the weight has not one axis for the target, one for the sources, and fixed ones besides.
        """
        assert layer.weight is not None
        param = self._params_by_name[layer.weight]
        target = [i for i, axis in enumerate(param.axes) if Tie((layer.target,), 1) in axis.ties]
        source = [i for i, axis in enumerate(param.axes) if Tie(layer.sources, -1) in axis.ties]
        kernel = tuple(i for i, axis in enumerate(param.axes) if not axis.ties)
        if len(target) != 1 or len(source) != 1 or len(kernel) + 2 != len(param.axes):
            raise ValueError(
                f"Weight {param.name!r} of layer {layer.name!r} needs one axis tied to {layer.target!r} (exponent 1), one tied to "
                f"{layer.sources} (exponent -1), and only fixed axes besides (got {param.axes})."
            )
        return target[0], source[0], kernel

    # == Kinds of structures ==

    def is_moved(self, param: Parameter) -> bool:
        """Whether any symmetry moves entries of a parameter."""
        return any(self.is_permutable(self.group(name).permutation) for axis in param.axes for tie in axis.ties for name in tie.groups)

    @cached_property
    def coverage(self) -> float:
        """Share of the parameters that touch a group with a symmetry.

        Example:
            >>> from wsgraph import WeightSpace
            >>> round(WeightSpace.mlp([2, 8, 8, 1]).coverage, 2), WeightSpace.mlp([2, 1]).coverage
            (0.99, 0.0)
        """
        return sum(param.size for param in self.params if self.is_moved(param)) / max(self.num_params, 1)

    @cached_property
    def is_chain(self) -> bool:
        """Whether the layers form one path of dense layers without skips, shared parameters or tied groups."""
        path = all(
            layer.operator != "identity" and layer.sources == (self.groups[i].name,) and layer.target == self.groups[i + 1].name
            for i, layer in enumerate(self.layers)
            if i + 1 < len(self.groups)
        )
        used = [name for layer in self.layers for name in (layer.weight, layer.bias) if name is not None]
        return (
            path
            and len(self.groups) == len(self.layers) + 1
            and sorted(used) == sorted(self._params_by_name)
            and len(self.permutation_classes) == len(self.scale_classes) == len(self.groups)
            and all(group.role == "hidden" for group in self.groups[1:-1])
        )

    @cached_property
    def architecture(self) -> Self:
        """The space with the names of its parts replaced by their positions: equal for networks whose flat vectors mean the same."""
        groups = {group.name: str(i) for i, group in enumerate(self.groups)}
        params = {param.name: str(i) for i, param in enumerate(self.params)}
        permutations = {label: str(i) for i, label in enumerate(self.permutation_classes)}
        scales = {label: str(i) for i, label in enumerate(self.scale_classes)}

        def tie(old: Tie) -> Tie:
            return Tie(tuple(groups[name] for name in old.groups), old.exponent)

        return type(self)(
            groups=tuple(
                dataclasses.replace(
                    g,
                    name=groups[g.name],
                    permutation=permutations[g.permutation],
                    scale=scales[g.scale],
                    factors=tuple(groups[name] for name in g.factors),
                    reason="order" if g.role == "factor" and g.reason else "",
                    follows=tuple((scales[label], power) for label, power in g.follows),
                )
                for g in self.groups
            ),
            layers=tuple(
                dataclasses.replace(
                    layer,
                    name=str(i),
                    sources=tuple(groups[name] for name in layer.sources),
                    target=groups[layer.target],
                    weight=layer.weight and params[layer.weight],
                    bias=layer.bias and params[layer.bias],
                )
                for i, layer in enumerate(self.layers)
            ),
            params=tuple(
                Parameter(params[p.name], p.shape, p.role, tuple(dataclasses.replace(a, ties=tuple(map(tie, a.ties))) for a in p.axes))
                for p in self.params
            ),
            connections=tuple(
                dataclasses.replace(
                    c,
                    name=str(i),
                    sources=tuple(groups[name] for name in c.sources),
                    targets=tuple(groups[name] for name in c.targets),
                    parameter=c.parameter and params[c.parameter],
                )
                for i, c in enumerate(self.connections)
            ),
            program=self.program and self.program.renamed(params),
        )

    @cached_property
    def unnamed(self) -> tuple[Any, ...]:
        """All that distinguishes the space from others but for names, to compare and to hash.

        Beside :attr:`architecture`, how parameters are stored and what the networks stand for.
        """
        stored = tuple((param.dtype, len(param.aliases), param.transformed, param.unused) for param in self.params)
        return self.architecture, self.signal, stored

    def matches(self, other: Structure) -> bool:
        """Whether flat vectors of another space have the same structure, whatever its parts are called.

        Programs are not compared: a network that was traced on larger inputs, or with another version of torch, still matches.
        """
        return other is self or other._layout == self._layout

    @cached_property
    def _layout(self) -> Self:
        """The architecture without its program."""
        return self.architecture if self.program is None else dataclasses.replace(self.architecture, program=None)

    def without_kernels(self) -> Self:
        """The space of the same layers with one kernel position each: what is left when kernels are folded into features.

        Example:
            >>> from wsgraph import WeightSpace
            >>> WeightSpace.cnn([1, 16, 16], [10]).without_kernels()
            WeightSpace(1-16-16-10, conv 1x1 | conv 1x1 | linear, relu, 474 parameters)
        """
        weights = {}
        for layer in self.layers:
            if layer.weight is not None:
                target, source, kernel = self.weight_axes(layer)
                param = self.param(layer.weight)
                axes = tuple(Axis(1) if i in kernel else axis for i, axis in enumerate(param.axes))
                neurons = [axis.size for i, axis in enumerate(axes) if i in (target, source)]
                # A linear layer stores flattened positions in the dimension of their neurons; a convolution keeps its dimensions.
                shape = neurons if layer.operator == "linear" else [axis.size for axis in axes]
                weights[layer.weight] = dataclasses.replace(param, shape=tuple(shape), axes=axes)
        layers = tuple(dataclasses.replace(layer, stride=1, padding=0) for layer in self.layers)
        return type(self)(self.groups, layers, tuple(weights.get(param.name, param) for param in self.params))
