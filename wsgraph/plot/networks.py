"""Figures of single networks."""

from __future__ import annotations

import itertools
import os
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

    from wsgraph.space import NeuronGroup, WeightSpace
from wsgraph.plot.drawn import check_drawable, colours, describe_wire, drawn_groups, is_small, kind_of

__all__ = ["draw_graph"]


def draw_graph(
    space: WeightSpace,
    theta: Tensor | None = None,
    path: str | os.PathLike[str] | None = None,
    *,
    title: str | None = None,
    neurons: int = 40,
) -> Figure:
    """Draw the parameter graph of a network: every neuron of small ones, every group and layer of large ones.

    Of small networks, neurons are dots and weights are lines: with ``theta``, blue where positive, orange and dashed where negative,
    thicker where larger. Of large ones, neuron groups are boxes from the input at the top to the output at the bottom, layers are arrows,
    and skip connections, products and whatever else has no weights dashed arrows; groups that must be permuted alike have one colour.

    Args:
        space: A weight space, by hand, read from a checkpoint or traced.
        theta: Weights ``[P]`` of one network.
        path: File to write; its suffix chooses the format (``.png``, ``.pdf``, ``.svg``).
        title: Title above the drawing (default: the space).
        neurons: Largest group of which every neuron is drawn.

    Returns:
        The matplotlib figure.

    Raises:
        SpaceMismatchError: If nothing is known of what reads what, or ``theta`` another shape.

    Example:
        >>> from wsgraph import WeightSpace
        >>> space = WeightSpace.mlp([2, 8, 8, 1])
        >>> figure = draw_graph(space, space.sample(1)[0], title="A small network")
        >>> figure.axes[0].get_title()
        'A small network'
    """
    check_drawable(space, theta, "draw_graph()")
    figure = (_draw_neurons if is_small(space, neurons) else _draw_groups)(space, theta)
    figure.axes[0].set_title(title or textwrap.fill(repr(space), int(figure.get_figwidth() * 13)), fontsize=8)
    if path is not None:
        figure.savefig(path)
    return figure


def _lanes(space: WeightSpace) -> dict[str, tuple[int, float]]:
    """Level and horizontal place of every group: groups of one level lie side by side."""
    levels = space.levels
    at_level: dict[int, list[str]] = {}
    for group in drawn_groups(space):
        at_level.setdefault(levels[group.name], []).append(group.name)
    return {name: (level, i - (len(names) - 1) / 2) for level, names in at_level.items() for i, name in enumerate(names)}


def _count(group: NeuronGroup) -> str:
    return f"{group.size:,} neuron{'s' if group.size > 1 else ''}"


def _draw_neurons(space: WeightSpace, theta: Tensor | None) -> Figure:
    import torch
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure

    lanes, colour_of, topology = _lanes(space), colours(space), space.topology
    columns = {name: i for i, name in enumerate(sorted(lanes, key=lambda name: lanes[name]))}
    tallest = max(group.size for group in drawn_groups(space))
    figure = Figure(figsize=(1.2 + 1.7 * len(columns), 1.2 + 0.16 * max(tallest, 8)), dpi=200, layout="constrained")
    axes = figure.add_subplot()
    places = torch.zeros(topology.num_nodes, 2)
    for group in drawn_groups(space):
        nodes = topology.nodes[group.name]
        places[nodes, 0] = columns[group.name]
        places[nodes, 1] = torch.arange(group.size).sub((group.size - 1) / 2).neg()
    strength = torch.ones(topology.num_edges)
    if theta is not None:
        weights = space.graph(theta.detach().cpu()).edge_attr
        assert weights is not None
        largest = weights.abs().argmax(1, keepdim=True)
        strength = weights.gather(1, largest)[:, 0].float()
        for edges in topology.edges:  # layers differ in scale, neurons of a layer are compared
            part = slice(edges.start, edges.stop)
            strength[part] /= strength[part].abs().max().clamp(min=1e-12)
    segments = places[topology.edge_index.T].numpy()
    for positive, colour, dashes in ((True, "#0072B2", "-"), (False, "#D55E00", "--")):
        chosen = (strength >= 0) == positive
        widths = (0.1 + 1.1 * strength[chosen].abs() ** 1.5) if theta is not None else [0.4] * int(chosen.sum())
        if chosen.any():
            axes.add_collection(
                LineCollection(list(segments[chosen.numpy()]), linewidths=list(widths), colors=colour, linestyles=dashes, alpha=0.55)
            )
    for group in drawn_groups(space):
        nodes = topology.nodes[group.name]
        x, y = places[nodes].T.numpy()
        axes.scatter(x, y, s=22, color=colour_of[group.name], edgecolors="white", linewidths=0.6, zorder=3)
        lines = [group.name, _count(group), " ".join(group.operators) or " ", kind_of(space, group)]
        label = "\n".join(lines)
        axes.annotate(label, (columns[group.name], -tallest / 2 - 0.5), ha="center", va="top", fontsize=6.5)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(-tallest / 2 - 0.5 - 0.13 * max(tallest, 8) - 1.5, tallest / 2 + 0.5)
    axes.axis("off")
    return figure


def _draw_groups(space: WeightSpace, theta: Tensor | None) -> Figure:
    from matplotlib.figure import Figure

    lanes, colour_of = _lanes(space), colours(space)
    depth, breadth = max(level for level, _ in lanes.values()), max(abs(lane) for _, lane in lanes.values())
    shown = {
        group.name: "  |  ".join(filter(None, [f"{group.name}: {_count(group)}", " ".join(group.operators), kind_of(space, group)]))
        for group in drawn_groups(space)
    }
    # A lane is as wide as the widest box that has another one beside it.
    beside = [len(text) for name, text in shown.items() if sum(level == lanes[name][0] for level, _ in lanes.values()) > 1]
    width = max((6.0 + 6.4 * breadth) / (2 * breadth + 1.5), 0.047 * max(beside, default=0) + 0.2)
    figure = Figure(figsize=(width * (2 * breadth + 1.5), 0.9 + 0.62 * (depth + 1)), dpi=160, layout="constrained")
    axes = figure.add_subplot()
    halves = {}
    for group in drawn_groups(space):
        level, lane = lanes[group.name]
        halves[group.name] = 0.0255 * len(shown[group.name]) / width + 0.02
        style = {"boxstyle": "round,pad=0.35", "facecolor": "white", "edgecolor": colour_of[group.name], "linewidth": 1.4}
        axes.text(lane, -level, shown[group.name], ha="center", va="center", fontsize=6.5, bbox=style, zorder=3)
    weights = {} if theta is None else space.unflatten(theta)
    for wire in space.wires:
        text = describe_wire(space, wire, weights) if wire.sources else ""
        for source, target in itertools.product(wire.sources, wire.targets):
            start, stop = ((lanes[name], halves[name]) for name in (source, target))
            _draw_arrow(start, stop, text, axes, dashed=wire.parameter is None)
            text = ""  # one label for all arrows of a layer
    axes.set_xlim(-breadth - 0.75, breadth + 0.75)
    axes.set_ylim(-depth - 0.5, 0.5)
    axes.axis("off")
    return figure


def _draw_arrow(
    source: tuple[tuple[int, float], float], target: tuple[tuple[int, float], float], text: str, axes: Axes, *, dashed: bool
) -> None:
    """One arrow between groups, given by level, lane and half width; those over several levels go round the groups between."""
    (from_level, from_lane), from_half = source
    (to_level, to_lane), to_half = target
    skips = to_level - from_level > 1
    arrow = {
        "arrowstyle": "-|>",
        "color": "0.35",
        "linewidth": 0.9,
        "linestyle": "--" if dashed else "-",
        "connectionstyle": f"arc3,rad={-0.5 * skips}",
        "shrinkA": 2 if skips else 7,
        "shrinkB": 2 if skips else 7,
    }
    start, stop = (from_lane + from_half * skips, -from_level), (to_lane + to_half * skips, -to_level)
    axes.annotate("", stop, start, arrowprops=arrow, zorder=1)
    where = ((start[0] + stop[0]) / 2 + (0.17 if skips else -0.015), (start[1] + stop[1]) / 2)
    axes.annotate(text, where, fontsize=5.5, color="0.25", ha="left" if skips else "right", va="center", zorder=2)
