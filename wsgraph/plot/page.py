"""The page of a network: its graph to zoom, fold and look into."""

from __future__ import annotations

import base64
import json
import math
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsgraph._page import filled_page
from wsgraph.files import write_atomically
from wsgraph.plot.drawn import check_drawable, colours, describe_wire, drawn_groups, is_small

if TYPE_CHECKING:
    from torch import Tensor

    from wsgraph.space import Module, WeightSpace

__all__ = ["graph_page"]


def graph_page(
    space: WeightSpace,
    theta: Tensor | None = None,
    path: str | os.PathLike[str] | None = None,
    *,
    title: str | None = None,
    neurons: int = 40,
    weights: int = 300_000,
) -> str:
    """One self-contained HTML page with the parameter graph of a network: to zoom, pan, fold by module and point at.

    Modules unfold into the neuron groups within them, groups into neurons. Small networks start with every neuron, large ones folded.
    What is pointed at is explained: the symmetry of neurons and what they are permuted with, their biases and
    statistics, weights with the parameter they belong to. The page loads nothing, and nothing but its own script runs in it.

    Args:
        space: A weight space, by hand, read from a checkpoint or traced.
        theta: Weights ``[P]`` of one network.
        path: File to write, ``.html``.
        title: Title of the page (default: the space).
        neurons: Largest group of a network of which every neuron is drawn at first.
        weights: So many numbers at most are held by the page, 5 bytes each: biases and statistics first, then the smallest layers.
            Of layers that are left out, edges are drawn without their weights.

    Returns:
        The page as text.

    Raises:
        SpaceMismatchError: If nothing is known of what reads what, or ``theta`` has another shape.
        OSError: If the file cannot be written.

    Example:
        >>> from wsgraph import WeightSpace
        >>> space = WeightSpace.mlp([2, 8, 8, 1])
        >>> page = graph_page(space, space.sample(1)[0], title="A small network")
        >>> "<title>A small network</title>" in page
        True
    """
    check_drawable(space, theta, "graph_page()")
    heading = title or repr(space)
    data = {**_structure(space), **_wires(space, theta, weights), "small": is_small(space, neurons)}
    # Names come from files: within a script element, no text may end it or begin markup.
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    page = filled_page("wsgraph.plot", "graph", title=escape(heading), about=escape(repr(space)), data=text)
    if path is not None:
        write_atomically(Path(path), lambda temporary: temporary.write_bytes(page.encode("utf-8", "xmlcharrefreplace")))
    return page


def _structure(space: WeightSpace) -> dict[str, Any]:
    """Modules, and the groups within them."""
    levels, colour_of = space.levels, colours(space)
    drawn = {group.name: i for i, group in enumerate(drawn_groups(space))}
    modules: list[dict[str, Any]] = [{"name": "", "label": "the network", "parent": -1, "parameters": space.num_params}]
    home: dict[str, int] = {}

    def add(folded: Module, module: Module, at: int) -> None:
        """Enter the groups of a module and the modules within it, below the module entered at a position."""
        home.update((group.name, at) for group in module.groups)
        by_name = {child.name[len(module.name) :]: child for child in module.children}
        for alike in folded.children:
            above, label = at, alike.label[len(folded.name) + bool(folded.name) :]
            if alike.count > 1:
                size = alike.count * alike.num_params
                modules.append({"name": "", "label": label, "parent": at, "parameters": size, "alike": alike.count})
                above = len(modules) - 1
            for name in alike.names:
                child = by_name[name[len(folded.name) :]]
                shown = child.name[len(module.name) + bool(module.name) :]
                modules.append({"name": child.name, "label": shown, "parent": above, "parameters": child.num_params})
                add(alike, child, len(modules) - 1)

    add(space.modules, space.all_modules, 0)
    groups = [
        {
            "name": group.name,
            "size": group.size,
            "role": group.role,
            "operators": " ".join(group.operators),
            "symmetry": space.describe_symmetry(group),
            "why": space.why_fixed(group),
            "permuted": group.permutation if len(space.permutation_classes[group.permutation]) > 1 else "",
            "colour": colour_of[group.name],
            "module": home[group.name],
            "level": levels[group.name],
        }
        for group in map(space.group, drawn)
    ]
    return {"modules": modules, "groups": groups, "report": space.report().splitlines()[1:]}


def _wires(space: WeightSpace, theta: Tensor | None, weights: int) -> dict[str, Any]:
    """What reads what with which weights, and what belongs to neurons."""
    positions = {group.name: i for i, group in enumerate(drawn_groups(space))}
    tensors = {} if theta is None else space.unflatten(theta.detach().cpu().float())
    entries = []
    for wire in space.wires:
        ends = [_length(space, wire.targets, wire.target_order)]
        entry: dict[str, Any] = {
            "name": wire.name,
            "kind": wire.kind,
            "parameter": wire.parameter or "",
            "shape": "x".join(map(str, space.param(wire.parameter).shape)) if wire.parameter else "",
            "targets": [positions[name] for name in wire.targets],
            "target_order": _packed(wire.target_order),
        }
        if wire.sources:
            ends.append(_length(space, wire.sources, wire.source_order) // wire.blocks * wire.num_parallel)
            entry |= {
                "sources": [positions[name] for name in wire.sources],
                "source_order": _packed(wire.source_order),
                "blocks": wire.blocks,
                "parallel": wire.num_parallel,
                "positions": wire.num_positions,
                "text": describe_wire(space, wire, tensors),
            }
        entries.append((wire, entry | {"ends": ends}, math.prod(ends) * (wire.num_positions if wire.sources else 1)))
    # Biases and statistics first, then the smallest layers.
    for wire, entry, size in sorted(entries, key=lambda each: (bool(each[0].sources), each[2])):
        if wire.parameter is not None and tensors and size <= weights:
            weights -= size
            values = wire.weight(tensors[wire.parameter][None])[0]
            entry["values"] = _packed(values.expand(*entry["ends"], -1) if wire.sources else values[:, 0, 0].expand(entry["ends"]))
    return {
        "wires": [entry for wire, entry, _ in entries if wire.sources],
        "features": [entry for wire, entry, _ in entries if not wire.sources],
        "weighted": theta is not None,
    }


def _length(space: WeightSpace, names: Sequence[str], order: Sequence[int]) -> int:
    """Number of neurons of groups laid end to end, or of those in an order."""
    return len(order) or sum(space.group(name).size for name in names)


def _packed(numbers: Sequence[int] | Tensor) -> str:
    """Numbers as text: weights in 4 bytes each, positions too; nothing for no positions."""
    import torch

    tensor = numbers.contiguous() if isinstance(numbers, torch.Tensor) else torch.tensor(numbers, dtype=torch.int32)
    array = tensor.numpy()
    return base64.b64encode(array.astype(array.dtype.newbyteorder("<")).tobytes()).decode()
