"""What figures and pages of single networks show: groups, their colours and symmetries, wires in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from wsgraph.plot.styles import STYLES

if TYPE_CHECKING:
    from torch import Tensor

    from wsgraph.space import Connection, NeuronGroup, WeightSpace

__all__ = ["check_drawable", "colours", "describe_wire", "drawn_groups", "is_small", "kind_of"]


def check_drawable(space: WeightSpace, theta: Tensor | None, what: str) -> None:
    """Refuse a space of which nothing is known of what reads what, and weights of another shape."""
    if not space.wires:
        space.check_layers(what)
    if theta is not None:
        space.check_thetas(theta, "theta", batched=False)


def drawn_groups(space: WeightSpace) -> list[NeuronGroup]:
    """The groups that have nodes, in topological order."""
    nodes = space.topology.nodes
    return [group for group in space.topological_groups if nodes[group.name].start < nodes[group.name].stop]


def is_small(space: WeightSpace, neurons: int) -> bool:
    """Whether every neuron and edge can be drawn and told from the others, with at most so many neurons in a group."""
    groups = drawn_groups(space)
    return max(group.size for group in groups) <= neurons and len(groups) <= 8 and space.topology.num_edges <= 4000


def colours(space: WeightSpace) -> dict[str, str]:
    """One colour per class of hidden groups that are permuted alike, grey where nothing is permuted."""
    hidden = [label for label in space.permutation_classes if space.is_permutable(label)]
    return {
        group.name: STYLES[hidden.index(group.permutation) % 7][0] if group.permutation in hidden else "#7F7F7F" for group in space.groups
    }


def kind_of(space: WeightSpace, group: NeuronGroup) -> str:
    """The symmetry of a group as figures say it."""
    return "in fixed order" if group.role != "hidden" else space.describe_symmetry(group)


def describe_wire(space: WeightSpace, wire: Connection, weights: Mapping[str, Tensor]) -> str:
    """What is written beside an arrow; nothing where neurons are added up."""
    if wire.parameter is None:
        return "" if wire.kind in ("sum", "operator") else wire.kind
    layer = next((layer for layer in space.layers if layer.name == wire.name), None)
    kind = [space.describe_layer(layer)] if layer else [wire.kind] if wire.kind == "scale" else []
    norm = [f"norm {float(weights[wire.parameter].double().norm()):.3g}"] if weights else []
    return f"{wire.name}: {', '.join([*kind, 'x'.join(map(str, space.param(wire.parameter).shape)), *norm])}"
