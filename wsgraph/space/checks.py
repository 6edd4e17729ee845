"""Structures whose fields agree with each other."""

from __future__ import annotations

import math
from collections import Counter

from wsgraph.space.parts import Axis, Parameter, Tie
from wsgraph.space.structure import Structure

__all__ = ["CheckedStructure"]


class CheckedStructure(Structure):
    """A structure that is refused where its fields contradict each other."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("groups", "layers", "params", "connections"):
            names = Counter(part.name for part in getattr(self, field))
            if field == "params":
                names.update(alias for param in self.params for alias in param.aliases)
            if repeated := sorted(name for name, count in names.items() if count > 1):
                raise ValueError(f"Names in '{field}' must be unique (repeated: {', '.join(repeated)}).")
        self._check_classes()
        self._check_layers()
        self._check_connections()
        if self.program is not None and (unknown := [name for name in self.program.parameters if name not in self._params_by_name]):
            raise ValueError(f"The program of the network reads an unknown parameter {unknown[0]!r}.")
        self.topological_groups  # noqa: B018  (raises on a cycle)

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
            count = math.prod(factor.size for factor in factors)
            fitting = members[0].size % count == 0 if len(factors) == 1 else count == members[0].size
            if factors and (not fitting or any(factor.factors for factor in factors)):
                needed = "whose size divides" if len(factors) == 1 else "whose sizes multiply to"
                raise ValueError(
                    f"The factors of group {members[0].name!r} must be groups without factors {needed} {members[0].size} "
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
                    if tied != axis.num_neurons:
                        blocks = f" in each of {axis.blocks} blocks" if axis.blocks > 1 else ""
                        raise ValueError(
                            f"An axis of parameter {param.name!r} has {axis.size} entries{blocks} but its groups {tie.groups} have {tied} "
                            "neurons."
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
                self.find_axes(layer)
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
            ends = (
                (connection.end_axes("source"), connection.source_index),
                (connection.end_axes("target"), connection.target_index),
            )
            given = [len(index) or math.prod(connection.shape[axis] for axis in axes) if axes else None for axes, index in ends]
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
