"""Curves and bars of scores and costs."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from wsgraph._labels import labelled
from wsgraph.scores import mean_and_error, on_axis

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from wsgraph.tasks import Result
from wsgraph.plot.styles import HATCHES, SCALES_LABEL, STYLES, Point, finished, in_order_of_styles

__all__ = ["bar_panel", "cost_chart", "curve_panels", "robustness_curve", "robustness_data"]

_LEGEND_COLUMNS = 4  # beside each other, so that names of some length fit


def robustness_data(results: Sequence[Result | Mapping[str, Any]]) -> dict[str, dict[float, Point]]:
    """Kendall's tau by model and by upper bound of the scales, from results of the generalization task.

    Args:
        results: Results of one zoo, or documents that :func:`wsgraph.tasks.read_results` returned. Several that differ in nothing but
            the seed are one curve; where options of one model differ, they are part of its name.

    Returns:
        By model and scale the score, or its mean and standard error where there are several seeds.

    Raises:
        ValueError: If results are of several zoos.

    Example:
        >>> runs = [{"config": {"model": "statnn"}, "metrics": {"tau": 0.8, "tau_scale_10": tau}} for tau in (0.5, 1.0)]
        >>> robustness_data(runs[:1]), robustness_data(runs)
        ({'statnn': {10.0: 0.5}}, {'statnn': {10.0: (0.75, 0.25)}})
    """
    prefix = "tau_scale_"
    found: dict[str, dict[float, list[float]]] = {}
    for label, runs in _by_label(results).items():
        own = found.setdefault(label, {})
        for name, value in ((name, value) for metrics in runs for name, value in metrics.items()):
            if name.startswith(prefix) and value is not None:
                own.setdefault(float(name.removeprefix(prefix)), []).append(value)
    return {model: {scale: _point(values) for scale, values in curve.items()} for model, curve in found.items()}


def _point(values: Sequence[float]) -> Point:
    return values[0] if len(values) == 1 else mean_and_error(values)


def _by_label(results: Sequence[Result | Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Scores of runs that differ in nothing but the seed, by the model and what tells them from others of the same model.

    Raises:
        ValueError: If they are of several zoos or tasks, which no figure compares.
    """
    read = [
        (result["config"], result["metrics"], result.get("task"))
        if isinstance(result, Mapping)
        else (result.config, result.metrics, result.task)
        for result in results
    ]
    scored_on = {f"{task or 'runs'} on {config.get('zoo')} {config.get('zoo_digest', '')}".strip() for config, _, task in read}
    if len(scored_on) > 1:
        raise ValueError(f"Expected runs of one task on one zoo, which can be compared (got {', '.join(sorted(scored_on))}).")
    return labelled([(config, metrics) for config, metrics, _ in read])


def _power(value: float) -> str:
    exponent = round(math.log10(value))
    exact = math.isclose(value, 10.0**exponent)
    return f"$10^{{{exponent}}}$" if exact and abs(exponent) > 2 else f"{value:g}"


def curve_panels(
    panels: Mapping[str, Mapping[str, Mapping[float, Point]]],
    path: str | os.PathLike[str] | None = None,
    *,
    x_label: str = "",
    y_label: str = "",
    title: str | None = None,
    labels: Mapping[str, str] | None = None,
    log_y: bool = False,
) -> Figure:
    """Curves of models side by side: one panel for every zoo or measure, one style for every model, a logarithmic axis below.

    Args:
        panels: By title of the panel and by model, values at points of the axis: numbers, or pairs of a mean and its standard error, which
            is drawn as a band.
        path: File to write; its suffix chooses the format (``.png``, ``.pdf``, ``.svg``).
        x_label: Text below every panel.
        y_label: Text left of every row of panels.
        title: Title above all.
        labels: Names to show instead of the models' keys.
        log_y: Whether the vertical axis is logarithmic too.

    Returns:
        The matplotlib figure.

    Raises:
        ValueError: If there is nothing to draw.

    Example:
        >>> figure = curve_panels({"relu": {"np": {1: 0.7, 10: (0.4, 0.1)}}, "tanh": {"np": {1: 0.7, 10: 0.7}}}, y_label="tau")
        >>> len(figure.axes)
        2
    """
    # The object interface leaves pyplot's global state, and whatever backend the caller chose, alone.
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    if not any(points for curves in panels.values() for points in curves.values()):
        raise ValueError("Expected curves of at least one model with at least one point (got none).")
    models = list(dict.fromkeys(model for curves in panels.values() for model in curves))
    styled = in_order_of_styles(models)
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(
        figsize=(5.2 * columns, 2.7 * rows + 0.22 * math.ceil(len(models) / (2 * columns)) + 0.4), dpi=200, layout="constrained"
    )
    grid = figure.subplots(rows, columns, squeeze=False, sharey="row" if not log_y else False)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, (name, curves) in zip(grid.flat, panels.items(), strict=False):
        for model, points in curves.items():
            color, marker, dashes = STYLES[styled.index(model) % len(STYLES)]
            ordered = sorted((x, y if isinstance(y, tuple) else (y, math.nan)) for x, y in points.items())
            x, means, errors = [x for x, _ in ordered], [mean for _, (mean, _) in ordered], [error for _, (_, error) in ordered]
            axes.plot(
                x,
                means,
                color=color,
                marker=marker,
                linestyle=dashes,
                linewidth=1.6,
                markersize=5,
                markeredgecolor="white",
                markeredgewidth=0.6,
                label=(labels or {}).get(model, model),
            )
            if not all(map(math.isnan, errors)):
                low, high = ([mean + sign * error for mean, error in zip(means, errors, strict=True)] for sign in (-1, 1))
                axes.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(sorted({x for points in curves.values() for x in points})))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _power(value)))
        axes.set_xlabel(x_label, fontsize=9)
        if log_y:
            axes.set_yscale("log")
        elif axes.get_ylim()[0] < 0:
            axes.axhline(0, color="0.6", linewidth=0.8, zorder=0)
        axes.tick_params(labelsize=9)
        axes.grid(axis="y", color="0.9", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        if len(panels) > 1:
            axes.set_title(name, fontsize=9.5)
    for axes in grid[:, 0]:
        axes.set_ylabel(y_label, fontsize=9)
    handles = {
        str(line.get_label()): line for axes in figure.axes for line in axes.get_lines() if not str(line.get_label()).startswith("_")
    }
    figure.legend(handles.values(), handles.keys(), frameon=False, fontsize=8.5, ncols=2 * columns, loc="outside lower center")
    return finished(figure, path, title)


def robustness_curve(
    curves: Mapping[str, Mapping[float, Point]],
    path: str | os.PathLike[str] | None = None,
    *,
    title: str | None = None,
    labels: Mapping[str, str] | None = None,
) -> Figure:
    """Kendall's tau of predicted accuracies against the upper bound of the scales by which test networks were moved.

    Args:
        curves: By model, Kendall's tau at every upper bound of the scales, see :func:`robustness_data`, or pairs of its mean and standard
            error.
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
    if not curves or not any(curves.values()):
        raise ValueError("Expected 'curves' with at least one model and one scale; run the generalization task with 'scales'.")
    return curve_panels({"": curves}, path, x_label=SCALES_LABEL, y_label=on_axis("tau"), title=title, labels=labels)


def bar_panel(
    bars: Mapping[str, Mapping[str, Point]],
    path: str | os.PathLike[str] | None = None,
    *,
    y_label: str = "",
    title: str | None = None,
) -> Figure:
    """Scores of models as groups of bars: one group for every model, one colour for every variant.

    Args:
        bars: By model and by variant, values, or pairs of a mean and its standard error, which is drawn as a line.
        path: File to write; its suffix chooses the format (``.png``, ``.pdf``, ``.svg``).
        y_label: Text left of the axis.
        title: Title above the axes.

    Returns:
        The matplotlib figure.

    Raises:
        ValueError: If there is nothing to draw.

    Example:
        >>> figure = bar_panel({"np": {"raw": 0.3, "phase": (0.5, 0.01)}, "monomial_gnn": {"raw": 0.3, "phase": 0.9}}, y_label="accuracy")
        >>> len(figure.axes[0].patches)
        4
    """
    from matplotlib.figure import Figure

    variants = list(dict.fromkeys(variant for values in bars.values() for variant in values))
    if not variants:
        raise ValueError("Expected bars of at least one model with at least one variant (got none).")
    figure = Figure(figsize=(max(5.2, 0.62 * len(bars) + 1.2), 3.2), dpi=200, layout="constrained")
    axes = figure.add_subplot()
    width = 0.8 / len(variants)
    for i, variant in enumerate(variants):
        points = {k: values[variant] for k, values in enumerate(bars.values()) if variant in values}
        pairs = [y if isinstance(y, tuple) else (y, math.nan) for y in points.values()]
        places = [k + (i - (len(variants) - 1) / 2) * width for k in points]
        color, _, _ = STYLES[i % len(STYLES)]
        hatch = HATCHES[i % len(HATCHES)]
        axes.bar(places, [mean for mean, _ in pairs], 0.92 * width, color=color, label=variant, hatch=hatch, edgecolor="white")
        axes.errorbar(places, [mean for mean, _ in pairs], [error for _, error in pairs], fmt="none", ecolor="black", elinewidth=1)
    axes.set_xticks(range(len(bars)), list(bars), rotation=30, ha="right", rotation_mode="anchor")
    axes.tick_params(labelsize=8)
    axes.set_ylabel(y_label, fontsize=9)
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, fontsize=8.5, ncols=min(len(variants), _LEGEND_COLUMNS), loc="outside lower center")
    return finished(figure, path, title)


def cost_chart(
    results: Sequence[Result | Mapping[str, Any]],
    path: str | os.PathLike[str] | None = None,
    *,
    score: str = "tau",
    title: str | None = None,
) -> Figure:
    """What models achieve over what they cost: a score against the time of an epoch and against the memory of a training step.

    Args:
        results: Results of one task on one zoo, or documents that :func:`wsgraph.tasks.read_results` returned. Of several that differ in
            nothing but the seed, the mean is drawn.
        path: File to write; its suffix chooses the format (``.png``, ``.pdf``, ``.svg``).
        score: Name of the score.
        title: Title above the panels.

    Returns:
        The matplotlib figure.

    Raises:
        ValueError: If no result has the score, or they are of several tasks or zoos.

    Example:
        >>> runs = [{"config": {"model": "np"}, "metrics": {"tau": 0.7, "seconds_per_epoch": 2.0, "peak_memory_mb": 83.0}}]
        >>> len(cost_chart(runs).axes)
        2
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    costs = {"seconds_per_epoch": "time of an epoch, s", "peak_memory_mb": "peak memory of a training step, MB"}
    values: dict[str, list[list[float]]] = {}
    for label, runs in _by_label(results).items():
        for metrics in runs:
            if metrics.get(score) is not None and all(metrics.get(cost) is not None for cost in costs):
                values.setdefault(label, []).append([metrics[score], *(metrics[cost] for cost in costs)])
    if not values:
        raise ValueError(f"Expected results with the score {score!r} and their costs (got none among {len(results)} results).")
    means = {model: [statistics.fmean(column) for column in zip(*rows, strict=True)] for model, rows in values.items()}
    figure = Figure(figsize=(7.2, 3.1 + 0.2 * math.ceil(len(means) / 4)), dpi=200, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for k, (axes, label) in enumerate(zip(panels, costs.values(), strict=True), 1):
        for model, point in means.items():
            color, marker, _ = STYLES[in_order_of_styles(means).index(model) % len(STYLES)]
            axes.scatter(point[k], point[0], color=color, marker=marker, s=45, edgecolor="white", linewidth=0.6, label=model, zorder=2)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(label, fontsize=9)
        axes.tick_params(labelsize=9)
        axes.grid(color="0.9", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(on_axis(score), fontsize=9)
    figure.legend(*panels[0].get_legend_handles_labels(), frameon=False, fontsize=8.5, ncols=4, loc="outside lower center")
    return finished(figure, path, title)
