"""Figures for papers: readable in greyscale, safe for colour-blind readers, vector output by file name."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from wsgraph.tasks import Result

__all__ = ["robustness_curve", "robustness_data"]

# Okabe and Ito's colours, ordered so that neighbours also differ in lightness; markers and dashes carry the difference without colour.
_STYLES = (
    ("#0072B2", "o", "-"),
    ("#D55E00", "s", "--"),
    ("#009E73", "^", "-."),
    ("#000000", "D", ":"),
    ("#CC79A7", "v", (0, (5, 1))),
    ("#56B4E9", "P", (0, (3, 1, 1, 1))),
    ("#E69F00", "X", (0, (1, 1))),
    ("#7F7F7F", "*", (0, (7, 2))),
    ("#8C564B", "<", (0, (4, 2, 1, 2))),
    ("#17BECF", ">", (0, (2, 2))),
    ("#BCBD22", "h", (0, (6, 1, 1, 1))),
)


def robustness_data(results: Sequence[Result]) -> dict[str, dict[float, float]]:
    """Kendall's tau by model and by upper bound of the scales, from results of the generalization task.

    Example:
        >>> from pathlib import Path
        >>> from torch import nn
        >>> from wsgraph.tasks import Result
        >>> result = Result("generalization", {"tau": 0.8, "tau_scale_10": 0.7}, nn.Identity(), {"model": "statnn"}, Path("."))
        >>> robustness_data([result])
        {'statnn': {10.0: 0.7}}
    """
    prefix = "tau_scale_"
    return {
        str(result.config["model"]): {
            float(name.removeprefix(prefix)): value for name, value in result.metrics.items() if name.startswith(prefix)
        }
        for result in results
    }


def _power(value: float) -> str:
    exponent = round(math.log10(value))
    exact = math.isclose(value, 10.0**exponent)
    return f"$10^{{{exponent}}}$" if exact and abs(exponent) > 2 else f"{value:g}"


def robustness_curve(
    curves: Mapping[str, Mapping[float, float]],
    path: str | os.PathLike[str] | None = None,
    *,
    title: str | None = None,
    labels: Mapping[str, str] | None = None,
) -> Figure:
    """Kendall's tau of predicted accuracies against the upper bound of the scales by which test networks were moved.

    Args:
        curves: By model, Kendall's tau at every upper bound of the scales; see :func:`robustness_data`.
        path: File to write; its suffix chooses the format (``.png``, ``.pdf``, ``.svg``).
        title: Title above the axes.
        labels: Names to show instead of the models' keys.

    Returns:
        The matplotlib figure.

    Raises:
        ValueError: If there is nothing to draw.

    Example:
        >>> figure = robustness_curve({"statnn": {1: 0.7, 10: 0.4, 100: -0.1}, "monomial_gnn": {1: 0.8, 10: 0.8, 100: 0.8}})
        >>> figure.axes[0].get_xscale()
        'log'
    """
    # The object interface leaves pyplot's global state, and whatever backend the caller chose, alone.
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    if not curves or not any(curves.values()):
        raise ValueError("Expected 'curves' with at least one model and one scale; run the generalization task with 'scales'.")
    scales = sorted({scale for points in curves.values() for scale in points})
    figure = Figure(figsize=(5.2, 3.4), dpi=200, layout="constrained")
    axes = figure.add_subplot()
    for i, (name, points) in enumerate(curves.items()):
        color, marker, dashes = _STYLES[i % len(_STYLES)]
        ordered = sorted(points.items())
        axes.plot(
            [scale for scale, _ in ordered],
            [tau for _, tau in ordered],
            color=color,
            marker=marker,
            linestyle=dashes,
            linewidth=1.6,
            markersize=5,
            markeredgecolor="white",
            markeredgewidth=0.6,
            label=(labels or {}).get(name, name),
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(scales))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _power(value)))
    axes.set_xlabel(r"upper bound $s$ of the neuron scales $U[1, s]$ applied to test networks", fontsize=9)
    axes.set_ylabel(r"Kendall's $\tau$ (predicted vs. true accuracy)", fontsize=9)
    axes.tick_params(labelsize=9)
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    axes.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, fontsize=8.5, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    if title:
        figure.suptitle(title, fontsize=10)
    if path is not None:
        figure.savefig(path)
    return figure
