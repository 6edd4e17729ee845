"""Figures of what lies between two networks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from wsgraph.plot.styles import STYLES, finished

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from wsgraph.provenance import Barrier

__all__ = ["barrier_curves"]


def barrier_curves(barriers: Mapping[str, Barrier], path: str | os.PathLike[str] | None = None, *, title: str | None = None) -> Figure:
    """Loss and accuracy from one network to another, as they are, aligned and recalibrated: a row of panels for every pair.

    Args:
        barriers: By name of the pair, what :func:`wsgraph.provenance.barrier` found.
        path: File to write; its suffix chooses the format (``.png``, ``.pdf``, ``.svg``).
        title: Title above all.

    Returns:
        The matplotlib figure.

    Raises:
        ValueError: If there is nothing to draw.

    Example:
        >>> from wsgraph.provenance import Barrier, Curve
        >>> found = Barrier((0.0, 0.5, 1.0), {"as they are": Curve((0.1, 2.0, 0.1), (0.97, 0.3, 0.98))})
        >>> [axes.get_ylabel() for axes in barrier_curves({"a to b": found}).axes]
        ['loss', 'accuracy']
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    if not barriers:
        raise ValueError("Expected what lies between at least two networks (got nothing).")
    measures = {"loss": "losses", "accuracy": "accuracies"}
    if not any(curve.accuracies for each in barriers.values() for curve in each.curves.values()):
        del measures["accuracy"]
    figure = Figure(figsize=(4.2 * len(measures), 2.7 * len(barriers) + 0.5), dpi=200, layout="constrained")
    grid = figure.subplots(len(barriers), len(measures), squeeze=False)
    for row, (name, found) in zip(grid, barriers.items(), strict=True):
        for axes, (measure, attribute) in zip(row, measures.items(), strict=True):
            for (curve, values), (color, marker, dashes) in zip(found.curves.items(), STYLES, strict=False):
                style = {"color": color, "marker": marker, "linestyle": dashes, "linewidth": 1.6, "markersize": 4}
                axes.plot(found.shares, getattr(values, attribute), label=curve, markeredgecolor="white", markeredgewidth=0.5, **style)
            axes.set_xlabel("share of the second network", fontsize=9)
            axes.set_ylabel(measure, fontsize=9)
            axes.xaxis.set_major_formatter(PercentFormatter(1))
            axes.tick_params(labelsize=9)
            axes.grid(axis="y", color="0.9", linewidth=0.8)
            axes.spines[["top", "right"]].set_visible(False)
        row[0].set_title(name, fontsize=9.5, loc="left")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), frameon=False, fontsize=8.5, ncols=len(measures), loc="outside lower center")
    return finished(figure, path, title)
