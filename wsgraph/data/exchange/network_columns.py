"""Columns of what files say of their networks."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from wsgraph.convert.formats import FORMATS
from wsgraph.data.exchange.noticed import Noticed
from wsgraph.data.exchange.tables import FILE, ROLE, SPACE, read_column

__all__ = ["FORMAT_COLUMN", "network_columns"]

FORMAT_COLUMN = "format"


def network_columns(read: Noticed, columns: Collection[str], table: Collection[str]) -> dict[str, np.ndarray]:
    """Columns of roles and of what files say, one entry for every network of the zoo.

    Args:
        read: What was read.
        columns: Columns that there are already, which stay as they are.
        table: Those that a table or configurations gave.

    Returns:
        Columns by name: the role where a network has one, the format where there are several, and
        single values.
    """
    kept = read.kept
    infos = [dict(_single_values(network.info)) for network in kept]
    formats = [info.pop(FORMAT_COLUMN, "") for info in infos]
    # Of weights alone nothing is known but what was given, which is no column of its own.
    says = [name in FORMATS and FORMATS[name].tensors is None for name in formats]
    names = dict.fromkeys(name for info, tells in zip(infos, says, strict=True) if tells for name in info)
    found: dict[str, list[Any]] = {}
    if any(network.role for network in kept):
        found[ROLE] = [network.role for network in kept]
    if len({*formats}) > 1:
        found[FORMAT_COLUMN] = formats
    found |= {name: _of_one_kind([info.get(name) for info in infos]) for name in names}
    reserved = {*columns, *table, FILE, SPACE}
    return {name: read_column(name, values) for name, values in found.items() if name not in reserved}


def _single_values(info: Mapping[str, Any], prefix: str = "", depth: int = 2) -> Iterator[tuple[str, Any]]:
    """Numbers, booleans and texts, and those within dicts with both names."""
    for name, value in info.items():
        if isinstance(value, bool | int | float | str):
            yield f"{prefix}{name}", value
        elif isinstance(value, Mapping) and depth > 1:
            yield from _single_values(value, f"{prefix}{name}.", depth - 1)


def _of_one_kind(values: Sequence[Any]) -> list[Any]:
    """Values that a column can hold: text where files say numbers and text."""
    kinds = {type(value) for value in values} - {type(None)}
    large = any(isinstance(value, int) and abs(value) > 2**53 for value in values)
    if not large and (kinds <= {int, float} or len(kinds) == 1):
        return list(values)
    return [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
