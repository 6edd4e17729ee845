"""Structures as JSON text, and in words for people."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from functools import cached_property
from typing import Any, Self

from wsgraph.space.checks import CheckedStructure
from wsgraph.space.parts import Axis, Connection, Layer, NeuronGroup, Parameter, Signal, Tie
from wsgraph.space.program import Program

__all__ = ["DescribedStructure"]

_FORMAT = "wsgraph.WeightSpace"
_VERSION = 1


class DescribedStructure(CheckedStructure):
    """A structure that is written as text: JSON, which is read back, and tables and sentences for people."""

    def to_json(self) -> str:
        """The space as JSON text, read back by :meth:`from_json`."""
        parts = {name: [dataclasses.asdict(part) for part in getattr(self, name)] for name in ("groups", "layers", "params", "connections")}
        # What spaces lack is left out, so that they keep the text and digest that they have in saved zoos.
        for kind, keys in (("params", ("aliases", "transformed", "unused")), ("groups", ("follows",))):
            for part in parts[kind]:
                for key in keys:
                    if not part[key]:
                        del part[key]
        for axis in (axis for part in parts["params"] for axis in part["axes"] if axis["blocks"] == 1):
            del axis["blocks"]
        signal = {} if self.signal is None else {"signal": dataclasses.asdict(self.signal)}
        more: dict[str, Any] = {name: value for name in ("assumed", "unlayered", "unprogrammed") if (value := getattr(self, name))}
        if self.program is not None:
            more["program"] = self.program.to_data()
        return json.dumps({"format": _FORMAT, "version": _VERSION, **parts, **signal, **more})

    @cached_property
    def digest(self) -> str:
        """Sixteen hexadecimal digits of the SHA-256 of :meth:`to_json`: a name for the space in files.

        Example:
            >>> from wsgraph import WeightSpace
            >>> WeightSpace.mlp([2, 3]).digest == WeightSpace.mlp([2, 3]).digest != WeightSpace.mlp([2, 4]).digest
            True
        """
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a space written by :meth:`to_json`.

        Raises:
            ValueError: If the text is not JSON, not a weight space, or of a newer version; if its program is not one that may be run.
        """
        try:
            document = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
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
                program=Program.from_data(document["program"]) if "program" in document else None,
                unlayered=str(document.get("unlayered", "")),
                unprogrammed=str(document.get("unprogrammed", "")),
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
            >>> from wsgraph import WeightSpace
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
            >>> from wsgraph import WeightSpace
            >>> space = WeightSpace.mlp([2, 8, 1], "tanh")
            >>> [space.describe_symmetry(group) for group in space.groups]
            ['none', 'permutation x sign', 'none']
        """
        if not self.is_permutable(group.permutation):
            return "none"
        kind = str(self.class_symmetry(group.scale))
        if not group.factors:
            return kind
        outer, *rest = (self.group(name) for name in group.factors)
        inner = group.size // outer.size
        if not self.is_permutable(outer.permutation):
            told = f"of {inner} in each of {outer.size} blocks{', alike' if rest else ''}"
        elif inner == 1 or (rest and not self.is_permutable(rest[0].permutation)):
            told = f"of {outer.size} blocks"
        else:
            told = f"of {outer.size} blocks, and of {inner} in each{'' if rest else ' on its own'}"
        return kind.replace("permutation", f"permutation {told}")

    def report(self) -> str:
        """What is movable and what is fixed, and why, in words.

        Example:
            >>> from wsgraph import WeightSpace
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
        lines += [f"Not written as layers, because {self.unlayered}."] if self.unlayered else []
        lines += [f"Cannot be run from its weights alone, because {self.unprogrammed}."] if self.unprogrammed else []
        tied = [" = ".join(param.keys) for param in self.params if param.aliases]
        lines += [f"Tied, each one tensor that is counted once: {', '.join(tied)}."] if tied else []
        still = [param.name for param in self.params if not self.is_moved(param)]
        lines += [f"Parameters that nothing moves: {', '.join(still)}."] if still else []
        unused = [param.name for param in self.params if param.unused]
        absent = [name for name in self.absent_from_graph if name not in unused]
        lines += [f"Not on the parameter graph: {', '.join(absent)}."] if absent else []
        lines += [f"Used by nothing: {', '.join(unused)}."] if unused else []
        return "\n".join([*lines, *self._said_assumed])

    @property
    def _said_assumed(self) -> list[str]:
        return [f"Assumed, since weights do not show it: {', '.join(self.assumed)}."] if self.assumed else []


def _axis(fields: dict[str, Any]) -> Axis:
    return Axis(fields["size"], tuple(Tie(**tie) for tie in fields["ties"]), fields.get("order", ()), fields.get("blocks", 1))


def _table(rows: list[list[str]]) -> list[str]:
    numeric = {"neurons", "parameters"}
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    cells = (
        (cell.rjust(width) if head in numeric else cell.ljust(width) for cell, width, head in zip(row, widths, rows[0], strict=True))
        for row in rows
    )
    return ["  ".join(row).rstrip() for row in cells]
