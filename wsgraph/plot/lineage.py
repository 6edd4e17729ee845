"""Figures of who was made from whom."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from wsgraph.plot.styles import STYLES, finished

if TYPE_CHECKING:
    import networkx as nx
    import numpy as np
    from matplotlib.figure import Figure

__all__ = ["lineage_tree"]

_ACROSS = 36  # networks beside each other
_CATEGORIES = 7  # that get a colour of their own


def lineage_tree(
    graph: nx.DiGraph,
    path: str | os.PathLike[str] | None = None,
    *,
    values: np.ndarray | None = None,
    label: str = "",
    names: bool = True,
    title: str | None = None,
) -> Figure:
    """Trees of networks: parents above their children, dashed where the direction is a guess, the longer the farther.

    Args:
        graph: The forest, of :meth:`wsgraph.provenance.Lineage.graph`.
        path: File to write; its suffix chooses the format (``.png``, ``.pdf``, ``.svg``).
        values: What colours the networks, one number or text for each.
        label: What the values are.
        names: Whether networks of families show their positions, where there is room.
        title: Title above.

    Returns:
        The matplotlib figure.

    Raises:
        ValueError: If there is no network.

    Example:
        >>> import networkx as nx
        >>> graph = nx.DiGraph()
        >>> graph.add_edge(0, 1, distance=0.1, is_directed=True)
        >>> len(lineage_tree(graph).axes)
        1
    """
    import networkx as nx
    from matplotlib.figure import Figure

    if not len(graph):
        raise ValueError("Expected at least one network to draw (got none).")
    families = sorted(
        (members for members in nx.weakly_connected_components(graph) if len(members) > 1), key=lambda each: (-len(each), min(each))
    )
    places: dict[int, tuple[float, float]] = {}
    left, top, lowest = 0.0, 0.0, 0.0
    for members in families:
        own, width, depth = _tidy(graph, members)
        if left and left + width > _ACROSS:
            left, top = 0.0, lowest - 1.6
        places |= {node: (left + x, top - y) for node, (x, y) in own.items()}
        left, lowest = left + width + 0.8, min(lowest, top - depth)
    alone = [node for node in graph if node not in places]
    start = lowest - 1.8 if families else 0.0
    for number, node in enumerate(alone):
        places[node] = (number % _ACROSS, start - 0.7 * (number // _ACROSS))
    height = max(y for _, y in places.values()) - min(y for _, y in places.values())
    figure = Figure(figsize=(9, min(60.0, max(1.8, 0.42 * height + 1.2))), dpi=160, layout="constrained")
    axes = figure.add_subplot()
    for parent, child, about in graph.edges(data=True):
        (x, y), (end_x, end_y) = places[parent], places[child]
        axes.plot([x, end_x], [y, end_y], color="0.55", linewidth=0.9, linestyle="-" if about.get("is_directed") else (0, (3, 2)), zorder=1)
    nodes = list(graph)
    points = [places[node] for node in nodes]
    _draw(figure, axes, points, None if values is None else [values[node] for node in nodes], label)
    if names and len(nodes) - len(alone) <= 150:
        for node in nodes:
            if node not in alone:
                axes.annotate(str(node), places[node], xytext=(4, 3), textcoords="offset points", fontsize=5.5, color="0.25")
    if alone and families:
        axes.text(-0.6, start + 0.7, f"no parent, no child: {len(alone):,}", fontsize=7, color="0.35")
    axes.set_axis_off()
    axes.margins(0.04)
    return finished(figure, path, title)


def _tidy(graph: nx.DiGraph, members: set[int]) -> tuple[dict[int, tuple[float, float]], float, float]:
    """Places of the networks of a tree, leaves side by side and parents above the middle of their children; its width and depth."""
    import networkx as nx

    root = next(node for node in sorted(members) if graph.in_degree(node) == 0)
    depth = nx.single_source_shortest_path_length(graph, root)
    across: dict[int, float] = {}
    leaves = 0
    for node in nx.dfs_postorder_nodes(graph, root):
        children = [across[child] for child in graph.successors(node)]
        across[node] = (min(children) + max(children)) / 2 if children else float(leaves)
        leaves += not children
    return {node: (across[node], 1.3 * depth[node]) for node in members}, float(leaves), 1.3 * max(depth.values())


def _draw(figure: Figure, axes: Any, points: list[tuple[float, float]], values: list[Any] | None, label: str) -> None:
    """Points, coloured by numbers with a bar, or by texts with a legend."""
    import numpy as np

    xs, ys = zip(*points, strict=True)
    size = min(28.0, max(6.0, 4000 / len(points)))
    if values is None:
        axes.scatter(xs, ys, s=size, color=STYLES[0][0], linewidth=0, zorder=2)
        return
    array = np.asarray(values)
    if array.dtype.kind in "fiub":
        drawn = axes.scatter(xs, ys, s=size, c=array.astype(float), cmap="cividis", linewidth=0, zorder=2, plotnonfinite=True)
        bar = figure.colorbar(drawn, ax=axes, shrink=0.6, aspect=30, location="right", pad=0.01)
        bar.set_label(label.replace("_", " "), fontsize=8)
        bar.ax.tick_params(labelsize=7)
        return
    texts = [str(value) for value in values]
    common = sorted(set(texts), key=lambda text: (-texts.count(text), text))
    for number, text in enumerate(common):
        color, marker, _ = STYLES[number] if number < _CATEGORIES else ("0.75", "o", None)
        chosen = [i for i, own in enumerate(texts) if own == text]
        shown = text if number < _CATEGORIES else "_"
        axes.scatter(
            [xs[i] for i in chosen], [ys[i] for i in chosen], s=size, color=color, marker=marker, linewidth=0, zorder=2, label=shown
        )
    axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), title=label.replace("_", " "), title_fontsize=7)
