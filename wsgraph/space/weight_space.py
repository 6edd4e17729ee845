"""The weight space: an architecture as data, and every cheap view of its checkpoints."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import math
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from wsgraph.space.operators import OPERATORS, parse_operator
from wsgraph.space.parts import Axis, Connection, Layer, NeuronGroup, Parameter, Signal, Symmetry, Tie

if TYPE_CHECKING:
    import networkx as nx

    from wsgraph.space.blocks import Blocks
    from wsgraph.space.graph import ParameterGraph
    from wsgraph.space.topology import Topology
    from wsgraph.symmetry import GroupElement

__all__ = ["AssumedGeometryWarning", "SpaceMismatchError", "WeightSpace"]

_FORMAT = "wsgraph.WeightSpace"
_VERSION = 1


class SpaceMismatchError(ValueError):
    """Weights, a state dict or a batch do not belong to the weight space they were used with.

    Example:
        >>> import torch
        >>> WeightSpace.mlp([2, 8, 1]).batch(torch.zeros(4, 12))
        Traceback (most recent call last):
        ...
        SpaceMismatchError: Expected 'thetas' of shape [B, 33] for WeightSpace(2-8-1, ...) (got [4, 12]). ...
    """


class AssumedGeometryWarning(UserWarning):
    """Strides, paddings or pooling of networks were assumed, because weights do not show them and nobody gave them.

    Their symmetries are right all the same; their outputs are, if the assumption is.

    Example:
        >>> import warnings
        >>> from wsgraph import from_state_dict
        >>> weights = {"0.weight": torch.ones(4, 1, 3, 3), "1.weight": torch.ones(2, 4)}
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore", AssumedGeometryWarning)
        ...     from_state_dict(weights, stride=2)[0].assumed
        ('padding 0', 'no pooling', 'global_avg_pool before the linear layers')
    """


@dataclass(frozen=True)
class WeightSpace:
    r"""A network architecture as data: neuron groups, the parameters that connect them, and the symmetry each group has.

    A checkpoint is a point :math:`\theta \in \mathbb{R}^P` of its weight space. The space holds no tensors, is hashable and comparable,
    and turns :math:`\theta` into every other view: state dict, parameter graph, dense layer blocks, a moved or canonical copy.

    Build one with :meth:`mlp` or :meth:`cnn`, read it off a checkpoint with :func:`wsgraph.from_state_dict`, or describe any feed-forward
    network (residual sums, several consumers, tied groups) by its parts.

    Args:
        groups: Neuron groups.
        layers: Layers between them, in any order without cycles.
        params: Parameters, in the order in which they lie in :math:`\theta`.
        connections: Of a network that layers cannot express, which neurons read which: its parameter graph.
        signal: Of an implicit neural representation, what it represents; it says nothing about symmetry.
        assumed: What of the networks' function nobody gave and weights do not show, such as ``"padding 0"``. Spaces that differ in this
            alone are equal; ``dataclasses.replace(space, assumed=())`` says that it is right.

    Raises:
        ValueError: If names repeat, a layer names an unknown part, sizes disagree, or the layers form a cycle.

    Example:
        >>> from wsgraph import WeightSpace
        >>> space = WeightSpace.mlp([2, 32, 32, 1], activation="sin(30)")
        >>> space
        WeightSpace(2-32-32-1, linear | linear | linear, sin(30), 1,185 parameters)
        >>> space.groups[1].symmetry
        Symmetry(positive=False, sign=True)
        >>> WeightSpace.from_json(space.to_json()) == space
        True
    """

    groups: tuple[NeuronGroup, ...]
    layers: tuple[Layer, ...]
    params: tuple[Parameter, ...]
    connections: tuple[Connection, ...] = ()
    signal: Signal | None = None
    assumed: tuple[str, ...] = dataclasses.field(default=(), compare=False)

    def __post_init__(self) -> None:
        for field in ("groups", "layers", "params", "connections"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
            names = Counter(part.name for part in getattr(self, field))
            if field == "params":
                names.update(alias for param in self.params for alias in param.aliases)
            if repeated := sorted(name for name, count in names.items() if count > 1):
                raise ValueError(f"Names in '{field}' must be unique (repeated: {', '.join(repeated)}).")
        self._check_classes()
        self._check_layers()
        self._check_connections()
        self.topological_groups  # noqa: B018  (raises on a cycle)

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.groups, self.layers, self.params, self.connections, self.signal))

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    # == Consistency ==

    def _check_classes(self) -> None:
        for label, members in self.permutation_classes.items():
            if len({group.size for group in members}) > 1:
                sizes = ", ".join(f"{group.name!r}: {group.size}" for group in members)
                raise ValueError(f"Groups of permutation class {label!r} must have one size (got {sizes}).")
            if len({group.factors for group in members}) > 1:
                raise ValueError(f"Groups of permutation class {label!r} must have the same factors (got {members}).")
            for name in members[0].factors:
                if name not in self._groups_by_name:
                    raise ValueError(f"Group {members[0].name!r} names an unknown factor {name!r}.")
            factors = [self.group(name) for name in members[0].factors]
            if factors and (math.prod(factor.size for factor in factors) != members[0].size or any(f.factors for f in factors)):
                raise ValueError(
                    f"The factors of group {members[0].name!r} must be groups without factors whose sizes multiply to {members[0].size} "
                    f"(got {', '.join(f'{factor.name!r}: {factor.size}' for factor in factors)})."
                )
        for label, members in self.scale_classes.items():
            if len({group.permutation for group in members}) > 1:
                raise ValueError(f"Groups of scale class {label!r} must share one permutation class; scale classes are the finer ones.")
        for group in self.groups:
            for label, _ in group.follows:
                if label not in self.scale_classes or self.scale_classes[label][0].permutation != group.permutation:
                    raise ValueError(f"Group {group.name!r} follows {label!r}, which is no scale class of its own permutation class.")

    def _check_layers(self) -> None:
        groups, params = self._groups_by_name, self._params_by_name
        for param in self.params:
            for axis in param.axes:
                for tie in axis.ties:
                    if unknown := [name for name in tie.groups if name not in groups]:
                        raise ValueError(f"Parameter {param.name!r} names unknown neuron groups {unknown}.")
                    tied = sum(groups[name].size for name in tie.groups)
                    if tied != axis.size:
                        raise ValueError(
                            f"An axis of parameter {param.name!r} has {axis.size} entries but its groups {tie.groups} have {tied} neurons."
                        )
                self._check_ties(param, axis)
        for layer in self.layers:
            if unknown := [name for name in (*layer.sources, layer.target) if name not in groups]:
                raise ValueError(f"Layer {layer.name!r} names unknown neuron groups {unknown}.")
            for name in (layer.weight, layer.bias):
                if name is not None and name not in params:
                    raise ValueError(f"Layer {layer.name!r} names an unknown parameter {name!r}.")
            if layer.bias is not None and self.param(layer.bias).axes != (Axis(groups[layer.target].size, (Tie((layer.target,), 1),)),):
                raise ValueError(
                    f"Bias {layer.bias!r} of layer {layer.name!r} needs a single axis tied to {layer.target!r} with exponent 1 "
                    f"(got {self.param(layer.bias).axes})."
                )
            if layer.weight is not None:
                self._find_axes(layer)
                continue
            target, sources = groups[layer.target], [groups[name] for name in layer.sources]
            if len(sources) != 1 or (sources[0].permutation, sources[0].scale) != (target.permutation, target.scale):
                raise ValueError(
                    f"Identity layer {layer.name!r} passes neurons on as they are, so its one source and its target must have the same "
                    f"'permutation' and 'scale' labels (got source {layer.sources}, target {layer.target!r})."
                )

        if self.layers and self._outside_layers:
            raise ValueError(f"No layer uses the parameter {self._outside_layers[0]!r}.")

    def _check_connections(self) -> None:
        if self.layers and self.connections:
            raise ValueError("Expected either 'layers' or 'connections': the layers of a network say already which neurons read which.")
        for connection in self.connections:
            if unknown := [name for name in (*connection.sources, *connection.targets) if name not in self._groups_by_name]:
                raise ValueError(f"Connection {connection.name!r} names unknown neuron groups {unknown}.")
            sizes = []
            for end in ("source", "target"):
                total = sum(self.group(name).size for name in getattr(connection, f"{end}s"))
                order = getattr(connection, f"{end}_order")
                if order and not 0 <= min(order) <= max(order) < total:
                    raise ValueError(f"The '{end}_order' of connection {connection.name!r} names neurons beyond its {total}.")
                sizes.append(len(order) or total)
            if any(size % connection.blocks for size in sizes):
                raise ValueError(f"The ends of connection {connection.name!r}, {sizes}, are not made of {connection.blocks} blocks.")
            if connection.parameter is None:
                if not connection.sources:
                    raise ValueError(f"Connection {connection.name!r} needs sources or a parameter.")
                continue
            if connection.parameter not in self._params_by_name:
                raise ValueError(f"Connection {connection.name!r} names an unknown parameter {connection.parameter!r}.")
            param = self.param(connection.parameter)
            sizes[0] //= connection.blocks
            ends = ((connection.source_axis, connection.source_index), (connection.target_axis, connection.target_index))
            given = [None if axis is None else len(index) or connection.shape[axis] for axis, index in ends]
            if math.prod(connection.shape) != param.size or any(g not in (None, size) for g, size in zip(given, sizes, strict=True)):
                raise ValueError(
                    f"Connection {connection.name!r} reads parameter {param.name!r} of shape {param.shape} as {connection.shape} with "
                    f"{given[0]} entries for {sizes[0]} sources and {given[1]} for {sizes[1]} targets."
                )

    def _check_ties(self, param: Parameter, axis: Axis) -> None:
        def labels(tie: Tie, kind: str) -> tuple[str, ...]:
            return tuple(getattr(self._groups_by_name[name], kind) for name in tie.groups)

        if len({labels(tie, "permutation") for tie in axis.ties}) > 1:
            raise ValueError(f"The ties of an axis of parameter {param.name!r} must share their permutation (got {axis.ties}).")
        if len({(labels(tie, "scale"), tie.exponents) for tie in axis.ties}) > len({tie.exponents for tie in axis.ties}):
            raise ValueError(f"Ties of equal exponent on an axis of parameter {param.name!r} must share their scale (got {axis.ties}).")

    def weight_axes(self, layer: Layer) -> tuple[int, int, tuple[int, ...]]:
        """Positions of the target axis, the source axis and the kernel axes among a layer's weight axes."""
        return self._weight_axes[layer.name]

    @cached_property
    def _weight_axes(self) -> dict[str, tuple[int, int, tuple[int, ...]]]:
        return {layer.name: self._find_axes(layer) for layer in self.layers if layer.weight is not None}

    def _find_axes(self, layer: Layer) -> tuple[int, int, tuple[int, ...]]:
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
        if not all(group.role in ("hidden", "factor") for group in members):
            return False
        factors = [self.group(name) for name in members[0].factors]
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

    @cached_property
    def topological_groups(self) -> tuple[NeuronGroup, ...]:
        """Groups ordered so that every layer leads forward."""
        remaining = {name: set(sources) for name, sources in self._read_by.items()}
        ordered: list[NeuronGroup] = []
        while remaining:
            ready = [name for name, sources in remaining.items() if not sources & remaining.keys()]
            if not ready:
                raise ValueError(f"The layers form a cycle through the groups {sorted(remaining)}.")
            for name in ready:
                del remaining[name]
                ordered.append(self._groups_by_name[name])
        return tuple(ordered)

    @cached_property
    def levels(self) -> dict[str, int]:
        """Length of the longest path from an input to every group, by its name.

        Example:
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
            raise SpaceMismatchError(
                f"{what} needs a network of dense and convolutional layers, residual sums and known operators, but no layer of {self!r} "
                f"uses the parameter {outside[0]!r}{f' and {len(outside) - 1} more' if len(outside) > 1 else ''}. Its symmetries are "
                f"known: flatten, act, canonicalize and report work{', and so do graph and batch' if self.connections else ''}."
            )

    def is_moved(self, param: Parameter) -> bool:
        """Whether any symmetry moves entries of a parameter."""
        return any(self.is_permutable(self.group(name).permutation) for axis in param.axes for tie in axis.ties for name in tie.groups)

    @cached_property
    def coverage(self) -> float:
        """Share of the parameters that touch a group with a symmetry.

        Example:
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
    def architecture(self) -> WeightSpace:
        """The space with the names of its parts replaced by their positions: equal for networks whose flat vectors mean the same."""
        groups = {group.name: str(i) for i, group in enumerate(self.groups)}
        params = {param.name: str(i) for i, param in enumerate(self.params)}
        permutations = {label: str(i) for i, label in enumerate(self.permutation_classes)}
        scales = {label: str(i) for i, label in enumerate(self.scale_classes)}

        def tie(old: Tie) -> Tie:
            return Tie(tuple(groups[name] for name in old.groups), old.exponent)

        return WeightSpace(
            groups=tuple(
                dataclasses.replace(
                    g,
                    name=groups[g.name],
                    permutation=permutations[g.permutation],
                    scale=scales[g.scale],
                    factors=tuple(groups[name] for name in g.factors),
                    reason="",
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
                Parameter(params[p.name], p.shape, p.role, tuple(Axis(a.size, tuple(map(tie, a.ties)), a.order) for a in p.axes))
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
        )

    def matches(self, other: WeightSpace) -> bool:
        """Whether another space has the same architecture, whatever its parts are called."""
        return other is self or other.architecture == self.architecture

    def without_kernels(self) -> WeightSpace:
        """The space of the same layers with one kernel position each: what is left when kernels are folded into features.

        Example:
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
        return WeightSpace(self.groups, layers, tuple(weights.get(param.name, param) for param in self.params))

    # == Spaces by hand ==

    @classmethod
    def mlp(cls, sizes: Sequence[int], activation: str | Sequence[str] = "relu", *, bias: bool = True) -> WeightSpace:
        """The weight space of a multilayer perceptron.

        Args:
            sizes: Widths :math:`n_0, \\ldots, n_L` from the input to the output.
            activation: One activation for all hidden groups or one per hidden group, such as ``"relu"`` or ``"sin(30)"``.
            bias: Whether every layer has a bias.

        Returns:
            A chain of linear layers named ``layers.0``, ``layers.1``, ..., with the activation between any two.

        Raises:
            ValueError: If there are fewer than two sizes, a size is not positive, or an activation is unknown.

        Example:
            >>> WeightSpace.mlp([784, 128, 10], activation="gelu")
            WeightSpace(784-128-10, linear | linear, gelu, 101,770 parameters)
        """
        return chain_space([_Link((), size) for size in sizes[1:]], sizes[0] if len(sizes) else 0, activation, bias=bias)

    @classmethod
    def siren(cls, sizes: Sequence[int] = (2, 32, 32, 1), omega: float = 30.0, *, signal: Signal | None = None) -> WeightSpace:
        r"""The weight space of sinusoidal implicit neural representations (`Sitzmann et al., 2020 <https://arxiv.org/abs/2006.09661>`_).

        .. math:: h_l = \sin(\omega (W_l h_{l-1} + b_l)), \quad f = W_L h_{L-1} + b_L

        Args:
            sizes: Widths from the two coordinates to the channels of the picture.
            omega: Frequency factor of every hidden layer.
            signal: What the networks represent (default: pictures of 28x28 pixels in the convention of `Navon et al.
                <https://arxiv.org/abs/2301.12780>`_: first coordinate along columns, 0.5 added, values from 0 to 1).

        Returns:
            A chain of linear layers with ``sin(omega)`` between any two, and the signal that :meth:`render` draws.

        Raises:
            ValueError: As for :meth:`mlp`.

        Example:
            >>> WeightSpace.siren().signal
            Signal(shape=(28, 28), first_axis='column', offset=0.5, value_range=(0.0, 1.0))
        """
        space = cls.mlp(sizes, f"sin({omega:g})")
        return dataclasses.replace(space, signal=signal or Signal((28, 28), offset=0.5))

    @classmethod
    def cnn(
        cls,
        channels: Sequence[int],
        linear: Sequence[int],
        activation: str | Sequence[str] = "relu",
        *,
        kernel_size: int | tuple[int, ...] | Sequence[int | tuple[int, ...]] = 3,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        pooling: str | None = None,
        readout: str = "global_avg_pool",
        positions: int | None = None,
        bias: bool = True,
    ) -> WeightSpace:
        """The weight space of a plain CNN: convolutions, then global pooling or flattening, then linear layers.

        Args:
            channels: Input channels, then the output channels of every convolution.
            linear: Output sizes of the linear layers; the last one is the network's output.
            activation: One activation for all hidden groups or one per hidden group.
            kernel_size: One kernel size or one per convolution; an integer means a square 2-dimensional kernel, a tuple gives each side.
            stride: One stride or one per convolution.
            padding: One zero padding or one per convolution.
            pooling: Operator applied after the activation of every convolution but the last, such as ``"max_pool(2)"``.
            readout: ``"global_avg_pool"``, ``"global_max_pool"`` or ``"flatten"`` between the convolutions and the linear layers.
            positions: Spatial positions per channel that ``readout="flatten"`` turns into inputs of the first linear layer.
            bias: Whether every layer has a bias.

        Returns:
            A chain of layers named ``layers.0``, ``layers.1``, ..., with the activation between any two.

        Raises:
            ValueError: If sizes, options per convolution or the readout do not fit together, or an activation is unknown.

        Example:
            >>> WeightSpace.cnn([1, 16, 16, 16], [10], stride=2)
            WeightSpace(1-16-16-16-10, conv 3x3 | conv 3x3 | conv 3x3 | linear, relu, 4,970 parameters)
        """
        count = len(channels) - 1
        if count < 1 or not linear:
            raise ValueError(f"Expected at least two 'channels' and one 'linear' size (got {list(channels)} and {list(linear)}).")
        if readout not in ("global_avg_pool", "global_max_pool", "flatten"):
            raise ValueError(f"Expected 'readout' to be global_avg_pool, global_max_pool or flatten (got {readout!r}).")
        if (readout == "flatten") != (positions is not None):
            raise ValueError("Give 'positions', the number of spatial positions per channel, with readout='flatten' and only then.")
        kernels = _per_layer("kernel_size", [kernel_size] if isinstance(kernel_size, tuple) else kernel_size, count)
        strides, paddings = _per_layer("stride", stride, count), _per_layer("padding", padding, count)
        for name, values in (
            ("kernel_size", [side for k in kernels for side in (k if isinstance(k, tuple) else (k,))]),
            ("stride", strides),
        ):
            if any(value < 1 for value in values):
                raise ValueError(f"Expected '{name}' to be positive (got {values}).")
        if positions is not None and positions < 1:
            raise ValueError(f"Expected 'positions' to be positive (got {positions}).")
        if len({len(k) if isinstance(k, tuple) else 2 for k in kernels}) > 1:
            raise ValueError(f"Expected kernels of one number of dimensions in 'kernel_size' (got {kernels}).")
        links = [
            _Link(
                kernel if isinstance(kernel, tuple) else (kernel, kernel),
                size,
                stride=strides[i],
                padding=paddings[i],
                operators=(readout,) if i == count - 1 else (pooling,) if pooling else (),
            )
            for i, (kernel, size) in enumerate(zip(kernels, channels[1:], strict=True))
        ]
        links += [_Link((), size, positions=positions if i == 0 else None) for i, size in enumerate(linear)]
        return chain_space(links, channels[0], activation, bias=bias)

    # == Flat vectors ==

    def check_thetas(self, thetas: Tensor, name: str = "thetas", *, batched: bool = True, finite: bool = False) -> None:
        """Raise a clear error unless a tensor holds flat checkpoints of this space.

        Args:
            thetas: What should be a floating point tensor ``[B, P]``, or ``[P]`` when not batched.
            name: What the error calls it.
            batched: Whether the first axis runs over networks.
            finite: Whether NaN and infinite weights are refused too.

        Raises:
            TypeError: If it is no floating point tensor.
            SpaceMismatchError: If the shape is wrong.
            ValueError: If a weight is NaN or infinite, naming the parameter.
        """
        if not isinstance(thetas, Tensor) or not thetas.is_floating_point():
            received = f"dtype {thetas.dtype}" if isinstance(thetas, Tensor) else type(thetas).__name__
            raise TypeError(
                f"Expected '{name}' to be a floating point tensor (got {received}). "
                "Stack state dicts with torch.stack([space.flatten(state_dict) for state_dict in ...])."
            )
        if thetas.ndim != 1 + batched or thetas.shape[-1] != self.num_params:
            expected = f"[B, {self.num_params}]" if batched else f"[{self.num_params}]"
            hint = "Flatten state dicts with space.flatten, or read the space off them with wsgraph.from_state_dict."
            if thetas.shape[-1:] == (self.num_params,) and thetas.ndim < 3:
                hint = "Of a single network pass theta[None]." if batched else "Of several networks make a batch with space.batch."
            raise SpaceMismatchError(f"Expected '{name}' of shape {expected} for {self!r} (got {list(thetas.shape)}). {hint}")
        # A sum is finite only if all its terms are, and takes one pass where comparing them takes several; large ones may overflow it.
        if finite and not torch.isfinite(thetas.sum()) and not torch.isfinite(thetas).all():
            where = torch.nonzero(~torch.isfinite(thetas))[0].tolist()
            param = next(key for key, part in self.slices.items() if part.start <= where[-1] < part.stop)
            network = f"network {where[0]}, " if batched else ""
            raise ValueError(
                f"'{name}' holds NaN or infinite weights (first at {network}parameter {param!r}). "
                "Drop such networks first, for instance with thetas[thetas.isfinite().all(1)]."
            )

    def flatten(self, state_dict: Mapping[str, Tensor]) -> Tensor:
        """Lay the tensors of a state dict end to end, the exact inverse of :meth:`unflatten`.

        A tensor that has several keys lies there once. The state dict may have it under all of them or, as safetensors files do, under one.

        Args:
            state_dict: Tensors by key, each of shape ``[*batch, *shape]`` with the same leading batch shape for all (none for one network).

        Returns:
            Tensor of shape ``[*batch, P]``, on the tensors' device and in their (promoted) dtype.

        Raises:
            SpaceMismatchError: If a key is missing or unexpected, a shape differs, or two keys of one tensor hold different values.

        Example:
            >>> import torch
            >>> space = WeightSpace.mlp([2, 3, 1])
            >>> space.flatten(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1)).state_dict())
            Traceback (most recent call last):
            ...
            wsgraph.space.weight_space.SpaceMismatchError: The state dict lacks the key 'layers.0.weight' ...
        """
        given = {param.name: [key for key in param.keys if key in state_dict] for param in self.params}
        if missing := [param for param in self.params if not given[param.name]]:
            raise SpaceMismatchError(
                f"The state dict lacks the key {' or '.join(map(repr, missing[0].keys))} and {len(missing) - 1} more (it has: "
                f"{', '.join(map(repr, state_dict))}). A space read from one of the checkpoints, wsgraph.from_state_dict, carries their "
                "own keys."
            )
        if unexpected := [key for key in state_dict if key not in self._params_by_key]:
            raise SpaceMismatchError(f"The state dict has a key {unexpected[0]!r} that {self!r} does not have; flattening would lose it.")
        if not self.params:
            return torch.zeros(0)
        first = state_dict[given[self.params[0].name][0]]
        batch = first.shape[: max(first.ndim - len(self.params[0].shape), 0)]
        parts = []
        dtype = flat_dtype(state_dict.values())
        for param in self.params:
            converted = [self._converted(param, key, state_dict[key], batch, dtype) for key in given[param.name]]
            for key, other in zip(given[param.name][1:], converted[1:], strict=True):
                if not holds_same(converted[0], other):
                    raise SpaceMismatchError(
                        f"{given[param.name][0]!r} and {key!r} are one tensor in {self!r}, but differ in the state dict: flattening would "
                        "lose one of them. These weights are of a network that does not tie them: trace that one."
                    )
            parts.append(converted[0].reshape(*batch, param.size))
        return torch.cat(parts, dim=-1)

    def _converted(self, param: Parameter, key: str, tensor: Tensor, batch: torch.Size, dtype: torch.dtype) -> Tensor:
        """One tensor of a state dict, checked, in the dtype of the flat vector."""
        if tuple(tensor.shape) != (*batch, *param.shape):
            raise SpaceMismatchError(f"Expected {key!r} of shape {[*batch, *param.shape]} in the state dict (got {list(tensor.shape)}).")
        converted = tensor.to(dtype)
        if not tensor.is_floating_point() and not torch.equal(converted.to(tensor.dtype), tensor):
            raise SpaceMismatchError(
                f"The integers of {key!r} are too large for {dtype}, in which the other tensors are: flattening would change them. Convert "
                "the floating point tensors to float64 first."
            )
        return converted

    def unflatten(self, theta: Tensor) -> dict[str, Tensor]:
        """Views of a flat checkpoint by key, the exact inverse of :meth:`flatten`.

        Args:
            theta: Tensor of shape ``[*batch, P]``.

        Returns:
            Tensors of shape ``[*batch, *shape]`` by key; views of ``theta``, except where a parameter is stored in another dtype. All keys
            of one tensor have the same object, which :func:`torch.func.functional_call` takes for one tensor too.

        Raises:
            SpaceMismatchError: If the last dimension is not ``P``.
        """
        if theta.shape[-1:] != (self.num_params,):
            raise SpaceMismatchError(f"Expected 'theta' with last dimension {self.num_params} for {self!r} (got {list(theta.shape)}).")
        tensors = self._views(theta)
        for param in self.params:
            if param.dtype:
                tensors.update(dict.fromkeys(param.keys, tensors[param.name].to(getattr(torch, param.dtype))))
        return tensors

    def _views(self, theta: Tensor) -> dict[str, Tensor]:
        """Views of a flat checkpoint by key, all in its own dtype, so that layers of several stored dtypes compute together."""
        batch, tensors = theta.shape[:-1], {}
        for param in self.params:
            view = theta[..., self.slices[param.name]].unflatten(-1, param.shape or (1,)).reshape((*batch, *param.shape))
            tensors.update(dict.fromkeys(param.keys, view))
        return tensors

    def sample(self, batch: int, *, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """Random networks: weights normal with variance 2 / fan-in, biases normal with standard deviation 0.3.

        Scales and variances of normalisation layers are log-normal, integer buffers 0.

        Args:
            batch: Number of networks.
            generator: Source of randomness.
            dtype: Floating dtype of the result.

        Returns:
            Tensor of shape ``[batch, P]``.
        """
        thetas = torch.randn(batch, self.num_params, generator=generator, dtype=torch.float64)
        for param in self.params:
            part = thetas[:, self.slices[param.name]]
            if param.role in ("scale", "variance"):
                part.mul_(0.3).exp_()
            elif param.role == "buffer":
                part.zero_()
            else:
                part.mul_(math.sqrt(2 / param.fan_in) if param.role == "weight" else 0.3)
        return thetas.to(dtype)

    # == Views ==

    @cached_property
    def topology(self) -> Topology:
        """Nodes and edges shared by all parameter graphs of this space, built once."""
        from wsgraph.space.topology import build_topology

        if not self.connections:
            self.check_layers("A parameter graph")
        return build_topology(self)

    def blocks(self, thetas: Tensor) -> Blocks:
        """Dense layer blocks ``[B, n_out, n_in, K]`` and biases ``[B, n_out]``, as views of ``thetas``.

        Args:
            thetas: Tensor of shape ``[B, P]``, or ``[B, P, C]`` with channels, which then come last in every block.

        Returns:
            :class:`~wsgraph.space.Blocks` with one weight and one bias (or ``None``) per layer.
        """
        from wsgraph.space.blocks import make_blocks

        self.check_layers("blocks()")
        return make_blocks(self, thetas)

    def graph(self, theta: Tensor, y: Any = None) -> ParameterGraph:
        """The parameter graph of one checkpoint.

        Args:
            theta: Flat checkpoint of shape ``[P]``.
            y: Target of the network, stored with a leading dimension of one.

        Returns:
            The graph, in the dtype and on the device of ``theta``.

        Raises:
            SpaceMismatchError: If the shape is wrong.
            ValueError: If a weight is NaN or infinite.

        Example:
            >>> import torch
            >>> space = WeightSpace.mlp([2, 3, 1])
            >>> space.graph(space.sample(1, generator=torch.manual_seed(0))[0], y=0.5)
            ParameterGraph(2-3-1, nodes=6, edges=9, y=[1])
        """
        from wsgraph.space.graph import make_graph

        return make_graph(self, theta, y)

    def batch(self, thetas: Tensor, y: Any = None) -> ParameterGraph:
        """A PyG batch of parameter graphs, built without a loop over networks.

        Args:
            thetas: Flat checkpoints of shape ``[B, P]``.
            y: Targets of shape ``[B, ...]``.

        Returns:
            A :class:`~wsgraph.space.ParameterGraph` batch; edges lie layer by layer, then target neuron, then source neuron.

        Raises:
            SpaceMismatchError: If the shape is wrong.
            ValueError: If a weight is NaN or infinite, or the targets do not match.
        """
        from wsgraph.space.graph import make_batch

        return make_batch(self, thetas, y)

    def to_networkx(self, theta: Tensor | None = None) -> nx.DiGraph:
        """The parameter graph as a networkx graph, with the weights of ``theta`` (zeros without one)."""
        return self.graph(torch.zeros(self.num_params) if theta is None else theta).to_networkx()

    def evaluate(self, thetas: Tensor, inputs: Tensor) -> Tensor:
        """Run the networks.

        Args:
            thetas: Flat checkpoints of shape ``[B, P]``.
            inputs: Inputs shared by all networks, of shape ``[M, n_0, *positions]``.

        Returns:
            Outputs of shape ``[B, M, n_L]``.

        Example:
            >>> import torch
            >>> space = WeightSpace.mlp([2, 3, 1])
            >>> space.evaluate(space.sample(4), torch.randn(5, 2)).shape
            torch.Size([4, 5, 1])
        """
        from wsgraph.space.evaluate import run_network

        tell_assumed([self])
        self.check_layers("evaluate()")
        self.check_thetas(thetas)
        first = next(group for group in self.groups if group.role == "input")
        if inputs.ndim > 2 and inputs.shape[1] != first.size == inputs[0].numel():  # images read by a linear layer
            inputs = inputs.flatten(1)
        return torch.func.vmap(lambda theta: run_network(self, self._views(theta), inputs), randomness="error")(thetas)

    def render(self, thetas: Tensor, shape: tuple[int, int] | None = None) -> Tensor:
        """The pictures that implicit neural representations stand for.

        Args:
            thetas: Flat checkpoints of shape ``[B, P]``.
            shape: Height and width in pixels (default: those of :attr:`signal`).

        Returns:
            Pictures of shape ``[B, channels, H, W]``, in the value range of :attr:`signal`, not clipped to it.

        Raises:
            SpaceMismatchError: If the space does not say what its networks represent.

        Example:
            >>> space = WeightSpace.siren()
            >>> space.render(space.sample(4)).shape
            torch.Size([4, 1, 28, 28])
        """
        if self.signal is None:
            raise SpaceMismatchError(
                f"{self!r} does not say what picture its networks represent. "
                "Build it with WeightSpace.siren, or give it a signal: dataclasses.replace(space, signal=Signal((28, 28)))."
            )
        height, width = shape or self.signal.shape
        inputs = self.signal.coordinates((height, width)).to(thetas)
        outputs = self.evaluate(thetas, inputs) + self.signal.offset
        return outputs.movedim(2, 1).unflatten(2, (height, width))

    def example_inputs(self, count: int, *, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """Random normal inputs of the smallest (square) size that the networks accept.

        Args:
            count: Number of inputs.
            generator: Source of randomness.
            dtype: Dtype of the inputs.

        Returns:
            Tensor ``[count, n_0, *positions]``.

        Raises:
            ValueError: If no square input of up to 256 positions a side fits, for instance because flattening expects a rectangle.
        """
        from wsgraph.space.evaluate import smallest_input_shape

        return torch.randn(count, *smallest_input_shape(self), generator=generator, dtype=dtype)

    # == Symmetry ==

    def sample_symmetry(self, batch: int = 1, scale: tuple[float, float] = (0.1, 10.0), **options: Any) -> GroupElement:
        """Random elements of the monomial group; see :func:`wsgraph.symmetry.sample_symmetry`.

        Args:
            batch: Number of elements.
            scale: Range of the positive factors.
            **options: Options of that function: ``distribution``, ``symmetries``, ``classes``, ``generator``, ``dtype``, ``device``.

        Returns:
            A batch of elements, as :meth:`act` takes it.

        Raises:
            ValueError: If the range, a symmetry or another option is not valid.
        """
        from wsgraph.symmetry import sample_symmetry

        return sample_symmetry(self, batch, scale, **options)

    def act(self, g: GroupElement, thetas: Tensor) -> Tensor:
        """Move checkpoints by group elements, keeping their functions; see :func:`wsgraph.symmetry.act`.

        Args:
            g: Group elements, one per network or one for all.
            thetas: Flat checkpoints ``[B, P]`` or features ``[B, P, C]``.

        Returns:
            Tensor of the shape and dtype of ``thetas``, differentiable in them.

        Raises:
            SpaceMismatchError: If the shape is wrong, the elements belong to another space, or there are too many or too few of them.
            ValueError: If a weight is NaN or infinite.
        """
        from wsgraph.symmetry import act

        return act(self, g, thetas)

    def canonicalize(self, thetas: Tensor, **options: Any) -> Tensor:
        """A fixed representative of each checkpoint's orbit; see :func:`wsgraph.symmetry.canonicalize`.

        Args:
            thetas: Flat checkpoints ``[B, P]``.
            **options: The option of that function: ``fix``, which of ``"scale"``, ``"phase"``, ``"sign"`` and ``"order"`` to settle.

        Returns:
            Tensor ``[B, P]``, differentiable in ``thetas``.

        Raises:
            SpaceMismatchError: If the shape is wrong.
            ValueError: If a weight is NaN or infinite, a network has no canonical form within the range of the dtype, or
                ``fix`` names something else.
        """
        from wsgraph.symmetry import canonicalize

        return canonicalize(self, thetas, **options)

    # == Text ==

    def to_json(self) -> str:
        """The space as JSON text, read back by :meth:`from_json`."""
        parts = {name: [dataclasses.asdict(part) for part in getattr(self, name)] for name in ("groups", "layers", "params", "connections")}
        # What spaces lack is left out, so that they keep the text and digest that they have in saved zoos.
        for kind, keys in (("params", ("aliases", "transformed")), ("groups", ("follows",))):
            for part in parts[kind]:
                for key in keys:
                    if not part[key]:
                        del part[key]
        signal = {} if self.signal is None else {"signal": dataclasses.asdict(self.signal)}
        assumed = {"assumed": self.assumed} if self.assumed else {}
        return json.dumps({"format": _FORMAT, "version": _VERSION, **parts, **signal, **assumed})

    @cached_property
    def digest(self) -> str:
        """Sixteen hexadecimal digits of the SHA-256 of :meth:`to_json`: a name for the space in files.

        Example:
            >>> WeightSpace.mlp([2, 3]).digest == WeightSpace.mlp([2, 3]).digest != WeightSpace.mlp([2, 4]).digest
            True
        """
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    @classmethod
    def from_json(cls, text: str) -> WeightSpace:
        """Read a space written by :meth:`to_json`.

        Raises:
            ValueError: If the text is not JSON, not a weight space, or of a newer version.
        """
        try:
            document = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"Expected the JSON text of a weight space ({error}).") from None
        if not isinstance(document, dict) or document.get("format") != _FORMAT:
            raise ValueError(f'Expected the JSON text of a weight space, with "format": "{_FORMAT}".')
        if document.get("version") != _VERSION:
            raise ValueError(f"Expected a weight space of version {_VERSION} (got {document.get('version')!r}); update wsgraph to read it.")
        try:
            return cls(
                groups=tuple(NeuronGroup(**group) for group in document["groups"]),
                layers=tuple(Layer(**layer) for layer in document["layers"]),
                params=tuple(Parameter(**{**param, "axes": tuple(map(_axis, param["axes"]))}) for param in document["params"]),
                connections=tuple(Connection(**connection) for connection in document.get("connections", ())),
                signal=Signal(**document["signal"]) if "signal" in document else None,
                assumed=tuple(document.get("assumed", ())),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"The JSON text of the weight space is incomplete or has unknown fields ({error}).") from None

    def __repr__(self) -> str:
        if not self.is_chain:
            groups = sum(group.role != "factor" for group in self.groups)
            layers = f"{len(self.layers)} layers, " if self.layers else ""
            return f"WeightSpace({groups} groups, {layers}{self.num_params:,} parameters)"
        sizes = "-".join(str(group.size) for group in self.groups)
        hidden = list(dict.fromkeys(group.activation for group in self.groups[1:-1])) or ["identity"]
        layers = " | ".join(self.describe_layer(layer) for layer in self.layers)
        return f"WeightSpace({sizes}, {layers}, {'/'.join(hidden)}, {self.num_params:,} parameters)"

    def describe_layer(self, layer: Layer) -> str:
        """A layer's operator with its kernel, such as ``conv 3x3``."""
        if layer.weight is None:
            return layer.operator
        shape = self.param(layer.weight).shape
        return f"conv {'x'.join(map(str, shape[2:]))}" if layer.operator == "conv" else layer.operator

    def summary(self) -> str:
        """A table of the layers and neuron groups that a person can read.

        Example:
            >>> print(WeightSpace.mlp([2, 3, 1]).summary())
            WeightSpace(2-3-1, linear | linear, relu, 13 parameters)
            group     neurons  operators  symmetry
            input           2  -          none
            hidden.1        3  relu       permutation x scale
            output          1  -          none
            layer     operator  from      to        weight  bias  parameters
            layers.0  linear    input     hidden.1  3x2     3              9
            layers.1  linear    hidden.1  output    1x3     1              4
        """
        groups = [["group", "neurons", "operators", "symmetry"]]
        for group in self.groups:
            if group.role != "factor":
                groups.append([group.name, f"{group.size:,}", " ".join(group.operators) or "-", self.describe_symmetry(group)])
        if not self.layers:
            params = [["parameter", "shape", "follows"]]
            for param in self.params:
                ties = [" x ".join("+".join(dict.fromkeys(tie.groups)) for tie in axis.ties) for axis in param.axes if axis.ties]
                params.append([" = ".join(param.keys), "x".join(map(str, param.shape)) or "-", ", ".join(ties) or "-"])
            return "\n".join([repr(self), *_table(groups), *_table(params)])
        layers = [["layer", "operator", "from", "to", "weight", "bias", "parameters"]]
        for layer in self.layers:
            used = [self.param(name) if name else None for name in (layer.weight, layer.bias)]
            shapes = ["x".join(map(str, param.shape)) if param else "-" for param in used]
            count = sum(param.size for param in used if param)
            layers.append([layer.name, self.describe_layer(layer), "+".join(layer.sources), layer.target, *shapes, f"{count:,}"])
        return "\n".join([repr(self), *_table(groups), *_table(layers), *self._said_assumed])

    def describe_symmetry(self, group: NeuronGroup) -> str:
        """What may be done to the neurons of a group, in words.

        Example:
            >>> space = WeightSpace.mlp([2, 8, 1], "tanh")
            >>> [space.describe_symmetry(group) for group in space.groups]
            ['none', 'permutation x sign', 'none']
        """
        if not self.is_permutable(group.permutation):
            return "none"
        kind = str(self.class_symmetry(group.scale))
        factors = [self.group(name) for name in group.factors]
        movable = [f.size if self.is_permutable(f.permutation) else 1 for f in factors]
        return kind.replace("permutation", f"permutation of {movable[0]} blocks, and of {movable[1]} in each") if factors else kind

    def report(self) -> str:
        """What is movable and what is fixed, and why, in words.

        Example:
            >>> print(WeightSpace.mlp([2, 8, 1]).report())
            WeightSpace(2-8-1, linear | linear, relu, 33 parameters)
            97.0 % of the parameters touch a neuron group with a symmetry: permutation x scale (1 group).
            Parameters that nothing moves: layers.1.bias.
        """
        kinds = Counter(
            self.describe_symmetry(group) for group in self.groups if group.role == "hidden" and self.is_permutable(group.permutation)
        )
        listed = "; ".join(f"{kind} ({count} group{'s' if count > 1 else ''})" for kind, count in kinds.most_common())
        lines = [
            repr(self),
            f"{100 * self.coverage:.1f} % of the parameters touch a neuron group with a symmetry{': ' if kinds else ''}{listed}.",
        ]
        reasons: dict[str, list[str]] = {}
        for group in self.groups:
            if group.role == "fixed":
                reasons.setdefault(group.reason, []).append(group.name)
        lines += [f"Fixed, because of {reason or 'their place'}: {', '.join(names)}." for reason, names in reasons.items()]
        tied = [" = ".join(param.keys) for param in self.params if param.aliases]
        lines += [f"Tied, each one tensor that is counted once: {', '.join(tied)}."] if tied else []
        still = [param.name for param in self.params if not self.is_moved(param)]
        lines += [f"Parameters that nothing moves: {', '.join(still)}."] if still else []
        lines += [f"Not on the parameter graph: {', '.join(self.absent_from_graph)}."] if self.absent_from_graph else []
        return "\n".join([*lines, *self._said_assumed])

    @property
    def _said_assumed(self) -> list[str]:
        return [f"Assumed, since weights do not show it: {', '.join(self.assumed)}."] if self.assumed else []


def tell_assumed(spaces: Iterable[WeightSpace]) -> None:
    """Warn, once for each space, that networks are about to be run in a geometry that was assumed."""
    untold = [space for space in spaces if space.assumed and not space.__dict__.get("_told")]
    if not untold:
        return
    more = f" and {len(untold) - 1} more spaces" if len(untold) > 1 else ""
    warnings.warn(
        f"Weights do not show {', '.join(untold[0].assumed)}; this was assumed of {untold[0]!r}{more}. Symmetries do not depend on it, but "
        "outputs do, and all that is made of them. Say how the networks are with stride=, padding=, pooling= ('none' for no pooling) and "
        "readout= where they are read; if the assumption is right, dataclasses.replace(space, assumed=()) says so.",
        AssumedGeometryWarning,
        stacklevel=3,
    )
    for space in untold:
        object.__setattr__(space, "_told", True)


def flat_dtype(tensors: Iterable[Tensor]) -> torch.dtype:
    """The dtype in which tensors lie end to end: that to which they are promoted."""
    dtype = functools.reduce(torch.promote_types, (computable(tensor.dtype) for tensor in tensors))
    return dtype if dtype.is_floating_point else torch.float32


def stored_dtype(tensor: Tensor, flat: torch.dtype) -> str | None:
    """What a parameter notes of its tensor's dtype: its name, or nothing where it is that of the flat vector."""
    return None if tensor.dtype == flat else str(tensor.dtype).removeprefix("torch.")


def computable(dtype: torch.dtype) -> torch.dtype:
    """The dtype, or float32 in place of 8-bit floats, which PyTorch neither promotes nor computes with."""
    return torch.float32 if dtype.itemsize == 1 else dtype


def holds_same(tensor: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same values, NaN in the same places; those on the meta device have none that differ."""
    if tensor is other or tensor.shape != other.shape or tensor.is_meta or other.is_meta:
        return tensor.shape == other.shape
    tensor, other = (t.to(computable(t.dtype)) if t.is_floating_point() else t for t in (tensor, other))
    return bool(((tensor == other) | (tensor.isnan() & other.isnan())).all())


def _axis(fields: dict[str, Any]) -> Axis:
    return Axis(fields["size"], tuple(Tie(**tie) for tie in fields["ties"]), fields.get("order", ()))


def _table(rows: list[list[str]]) -> list[str]:
    numeric = {"neurons", "parameters"}
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    cells = (
        (cell.rjust(width) if head in numeric else cell.ljust(width) for cell, width, head in zip(row, widths, rows[0], strict=True))
        for row in rows
    )
    return ["  ".join(row).rstrip() for row in cells]


def _per_layer(name: str, value: Any, count: int) -> list[Any]:
    values = list(value) if isinstance(value, Sequence) else [value]
    if len(values) == 1:
        values *= count
    if len(values) != count:
        raise ValueError(f"Expected '{name}' to be one value or one per convolution, {count} (got {len(values)}).")
    return values


@dataclass(frozen=True)
class _Link:
    """One layer of a chain: its kernel (empty for linear), output size, and what flattening put between it and its source."""

    kernel: tuple[int, ...]
    size: int
    positions: int | None = None
    stride: int = 1
    padding: int = 0
    operators: tuple[str, ...] = ()
    weight: str | None = None
    bias: str | None = None
    dtypes: tuple[str | None, str | None] = (None, None)


def chain_space(links: Sequence[_Link], inputs: int, activation: str | Sequence[str], *, bias: bool = True) -> WeightSpace:
    """The weight space of a chain of layers; every public constructor of chains ends here.

    Links that name their parameters keep those names (and lack a bias where they name none); otherwise names are ``layers.{i}``.
    """
    if not links:
        raise ValueError("Expected a network with at least one layer, that is at least two sizes.")
    hidden = len(links) - 1
    if not isinstance(activation, (str, Sequence)) or not all(isinstance(name, str) for name in activation):
        raise ValueError(f"Expected 'activation' to be the name of an activation, or one per hidden group (got {activation!r}).")
    activations = [activation] * hidden if isinstance(activation, str) else list(activation)
    for name in {activation} if isinstance(activation, str) else activations:
        if not OPERATORS[parse_operator(name)[0]].nonlinear:
            raise ValueError(f"Expected 'activation' to be an activation, not pooling or reshaping (got {name!r}).")
    if len(activations) != hidden:
        raise ValueError(f"Expected 'activation' to be one name or one per hidden group, {hidden} (got {len(activations)}).")
    names = ["input", *(f"hidden.{i}" for i in range(1, hidden + 1)), "output"]
    groups = [NeuronGroup(names[0], inputs, role="input")]
    layers, params = [], []
    labels = [link.weight.rsplit(".", 1)[0] if link.weight and "." in link.weight else f"layers.{i}" for i, link in enumerate(links)]
    if len(set(labels)) < len(labels):  # keys such as net.w1, net.w2
        labels = [f"layers.{i}" for i in range(len(links))]
    for i, link in enumerate(links):
        source, target, last = names[i], names[i + 1], i == hidden
        operators = (*link.operators,) if last else (activations[i], *link.operators)
        groups.append(NeuronGroup(target, link.size, role="output" if last else "hidden", operators=operators))
        inner = link.kernel or ((link.positions,) if link.positions else ())
        axes = (Axis(link.size, (Tie((target,), 1),)), Axis(groups[i].size, (Tie((source,), -1),)), *(Axis(size) for size in inner))
        shape = (link.size, groups[i].size, *link.kernel) if link.kernel else (link.size, groups[i].size * (link.positions or 1))
        named = link.weight is not None
        weight, offset = link.weight or f"layers.{i}.weight", link.bias if named else f"layers.{i}.bias" if bias else None
        params.append(Parameter(weight, shape, "weight", axes, link.dtypes[0]))
        if offset:
            params.append(Parameter(offset, (link.size,), "bias", axes[:1], link.dtypes[1]))
        layers.append(
            Layer(
                labels[i],
                "conv" if link.kernel else "linear",
                (source,),
                target,
                weight,
                offset,
                stride=link.stride,
                padding=link.padding,
            )
        )
    return WeightSpace(tuple(groups), tuple(layers), tuple(params))
