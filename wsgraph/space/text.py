"""Structures as JSON text."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from functools import cached_property
from typing import Any, Self

from wsgraph.space.parts import Axis, Connection, Layer, NeuronGroup, Parameter, Signal, Tie
from wsgraph.space.program import Program
from wsgraph.space.summary import SummarizedStructure

__all__ = ["DescribedStructure"]

_FORMAT = "wsgraph.WeightSpace"
_VERSION = 1


class DescribedStructure(SummarizedStructure):
    """A structure that is written as JSON text, and read back from it."""

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


def _axis(fields: dict[str, Any]) -> Axis:
    return Axis(fields["size"], tuple(Tie(**tie) for tie in fields["ties"]), fields.get("order", ()), fields.get("blocks", 1))
