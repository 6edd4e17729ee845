"""Figures for papers: readable in greyscale, safe for colour-blind readers, vector output by file name."""

from __future__ import annotations

import itertools
import math
import os
import statistics
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from wsgraph._labels import labelled
from wsgraph.scores import mean_and_error

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

    from wsgraph.data import ZooDataset
    from wsgraph.space import Connection, NeuronGroup, WeightSpace
    from wsgraph.tasks import Result

__all__ = [
    "bar_panel",
    "cost_chart",
    "curve_panels",
    "draw_graph",
    "in_order_of_styles",
    "picture_grid",
    "prediction_scatter",
    "robustness_curve",
    "robustness_data",
    "zoo_map",
]

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


_HATCHES = ("", "///", "...", "xxx")

Point = float | tuple[float, float]


def in_order_of_styles(names: Iterable[str]) -> list[str]:
    """Names of series in the order in which they get their colours, markers and dashes: the same in all figures of the same series.

    Args:
        names: The names, perhaps some of them repeated.

    Returns:
        Every name once.

    Example:
        >>> in_order_of_styles(["statnn", "np", "statnn"])
        ['np', 'statnn']
    """
    return sorted(set(names))


SCALES_LABEL = r"upper bound $s$ of the neuron scales $U[1, s]$ applied to test networks"
TAU_LABEL = r"Kendall's $\tau$ (predicted vs. true accuracy)"


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
            color, marker, dashes = _STYLES[styled.index(model) % len(_STYLES)]
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
    return _finished(figure, path, title)


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
    return curve_panels({"": curves}, path, x_label=SCALES_LABEL, y_label=TAU_LABEL, title=title, labels=labels)


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
        color, _, _ = _STYLES[i % len(_STYLES)]
        hatch = _HATCHES[i % len(_HATCHES)]
        axes.bar(places, [mean for mean, _ in pairs], 0.92 * width, color=color, label=variant, hatch=hatch, edgecolor="white")
        axes.errorbar(places, [mean for mean, _ in pairs], [error for _, error in pairs], fmt="none", ecolor="black", elinewidth=1)
    axes.set_xticks(range(len(bars)), list(bars), rotation=30, ha="right", rotation_mode="anchor")
    axes.tick_params(labelsize=8)
    axes.set_ylabel(y_label, fontsize=9)
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, fontsize=8.5, ncols=len(variants), loc="outside lower center")
    return _finished(figure, path, title)


def picture_grid(
    rows: Mapping[str, Tensor], path: str | os.PathLike[str] | None = None, *, titles: Sequence[str] = (), title: str | None = None
) -> Figure:
    """Pictures in rows that belong together column by column, such as before and after editing.

    Args:
        rows: By label, pictures ``[n, channels, H, W]`` with values from 0 to 1, as many in every row.
        path: File to write; its suffix chooses the format (``.png``, ``.pdf``, ``.svg``).
        titles: Text above every column.
        title: Title above all.

    Returns:
        The matplotlib figure.

    Raises:
        ValueError: If there is nothing to draw, or rows differ in length.

    Example:
        >>> import torch
        >>> figure = picture_grid({"before": torch.rand(4, 1, 8, 8), "after": torch.rand(4, 1, 8, 8)})
        >>> len(figure.axes)
        8
    """
    from matplotlib.figure import Figure

    lengths = {len(pictures) for pictures in rows.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"Expected rows of as many pictures each, at least one (got {[len(pictures) for pictures in rows.values()]}).")
    columns = lengths.pop()
    figure = Figure(figsize=(0.8 * columns + 0.4, 0.85 * len(rows) + 0.3), dpi=200, layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes, (label, pictures) in zip(grid, rows.items(), strict=True):
        for axis, picture in zip(axes, pictures, strict=True):
            axis.imshow(picture.movedim(0, 2).squeeze(2).numpy(), cmap="gray", vmin=0, vmax=1)
            axis.set_xticks([])
            axis.set_yticks([])
        axes[0].set_ylabel(label, fontsize=8)
    for axis, text in zip(grid[0], titles, strict=False):
        axis.set_title(text, fontsize=8)
    return _finished(figure, path, title)


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
            color, marker, _ = _STYLES[in_order_of_styles(means).index(model) % len(_STYLES)]
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
    panels[0].set_ylabel(TAU_LABEL if score == "tau" else score, fontsize=9)
    figure.legend(*panels[0].get_legend_handles_labels(), frameon=False, fontsize=8.5, ncols=4, loc="outside lower center")
    return _finished(figure, path, title)


def prediction_scatter(
    predicted: Tensor,
    true: Tensor,
    path: str | os.PathLike[str] | None = None,
    *,
    label: str = "accuracy",
    title: str | None = None,
) -> Figure:
    """Predicted against true values of networks, with the line where they agree, Kendall's tau and R².

    Args:
        predicted: Predicted values ``[N]``, such as accuracies.
        true: True values ``[N]``.
        path: File to write; its suffix chooses the format (``.png``, ``.pdf``, ``.svg``).
        label: What the values are.
        title: Title above the axes.

    Returns:
        The matplotlib figure.

    Raises:
        ValueError: If the tensors differ in shape or hold less than two values.

    Example:
        >>> import torch
        >>> true = torch.rand(50)
        >>> prediction_scatter(true + 0.1 * torch.randn(50), true).axes[0].get_xlabel()
        'true accuracy'
    """
    from matplotlib.figure import Figure
    from scipy.stats import kendalltau
    from sklearn.metrics import r2_score

    if predicted.shape != true.shape or predicted.ndim != 1 or len(true) < 2:
        raise ValueError(
            f"Expected 'predicted' and 'true' of one shape [N] with at least 2 values (got {list(predicted.shape)} and {list(true.shape)})."
        )
    x, y = true.double().cpu().numpy(), predicted.double().cpu().numpy()
    figure = Figure(figsize=(3.8, 3.8), dpi=200, layout="constrained")
    axes = figure.add_subplot()
    low, high = min(x.min(), y.min()), max(x.max(), y.max())
    axes.plot([low, high], [low, high], color="0.6", linewidth=0.9, zorder=1)
    # Points of large zoos become a haze rather than a blot.
    size = min(18.0, max(2.0, 4000 / len(x)))
    axes.scatter(x, y, s=size, color=_STYLES[0][0], alpha=0.5, linewidth=0, zorder=2, rasterized=len(x) > 5000)
    text = f"Kendall's $\\tau$ = {kendalltau(x, y).statistic:.3f}\n$R^2$ = {r2_score(x, y):.3f}\n{len(x):,} networks"
    axes.text(0.04, 0.96, text, transform=axes.transAxes, va="top", fontsize=8.5)
    axes.set_xlabel(f"true {label}", fontsize=9)
    axes.set_ylabel(f"predicted {label}", fontsize=9)
    axes.set_aspect("equal")
    axes.tick_params(labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    return _finished(figure, path, title)


def zoo_map(
    zoo: ZooDataset,
    path: str | os.PathLike[str] | None = None,
    *,
    color: str = "test_accuracy",
    method: str = "pca",
    canonicalize: bool = True,
    networks: int = 2000,
    seed: int = 0,
    title: str | None = None,
) -> Figure:
    """A map of the weights of a zoo: every network a point, near where weights are alike, coloured by a column of the table.

    Args:
        zoo: Networks of one architecture, such as ``store.dataset("test")``.
        path: File to write; its suffix chooses the format (``.png``, ``.pdf``, ``.svg``).
        color: Column with numbers.
        method: ``"pca"`` (principal components) or ``"tsne"`` (neighbourhoods, of the first 50 principal components).
        canonicalize: Whether networks are brought into canonical form first; else equal networks with neurons in another order lie apart.
        networks: At most so many are drawn, chosen by the seed.
        seed: Seed of the choice and of the method.
        title: Title above the axes (default: the weight space).

    Returns:
        The matplotlib figure.

    Raises:
        ValueError: If the method is unknown, the column is missing or holds no numbers, there are less than three networks, or they are of
            several architectures.

    Example:
        >>> import tempfile
        >>> from wsgraph import WeightSpace
        >>> from wsgraph.data import ZooStore
        >>> space = WeightSpace.mlp([2, 8, 1])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = ZooStore.create(f"{folder}/zoo", space, space.sample(9), {"test_accuracy": [0.1 * i for i in range(9)]})
        ...     figure = zoo_map(store.dataset(target=None))
        >>> figure.axes[0].get_xlabel()
        'first principal component'
    """
    import numpy as np
    import torch
    from matplotlib.figure import Figure
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    if method not in ("pca", "tsne"):
        raise ValueError(f"Expected 'method' to be pca or tsne (got {method!r}).")
    if len(zoo) < 3:
        raise ValueError(f"Expected at least 3 networks to map (got {len(zoo)}).")
    chosen = torch.randperm(len(zoo), generator=torch.Generator().manual_seed(seed))[:networks].sort().values
    part, space = zoo[chosen], zoo.space
    values = part.column(color)
    if values.dtype.kind not in "fiub":
        raise ValueError(f"Expected 'color' to name a column of numbers (got {color!r} of {values.dtype}).")
    known = np.isfinite(values.astype(float))
    if not known.any():
        raise ValueError(f"Expected the column {color!r} to hold numbers (got none that is finite).")
    thetas = part.thetas.double()
    points = (space.canonicalize(thetas) if canonicalize else thetas).float().numpy()
    wanted = 2 if method == "pca" else min(50, *points.shape)
    found = PCA(wanted, random_state=seed).fit(points)
    places, shares = found.transform(points), found.explained_variance_ratio_
    if method == "tsne":
        places = TSNE(2, perplexity=min(30.0, (len(points) - 1) / 3), init="pca", random_state=seed).fit_transform(places)
    figure = Figure(figsize=(4.6, 3.8), dpi=200, layout="constrained")
    axes = figure.add_subplot()
    size, many = min(18.0, max(3.0, 8000 / len(points))), len(points) > 5000
    # A map of colours whose lightness grows with the value: it reads the same in greyscale and without red or green.
    axes.scatter(places[~known, 0], places[~known, 1], c="0.8", s=size, linewidth=0, rasterized=many)
    colors = values[known].astype(float)
    drawn = axes.scatter(places[known, 0], places[known, 1], c=colors, cmap="cividis", s=size, linewidth=0, rasterized=many)
    bar = figure.colorbar(drawn, ax=axes, shrink=0.9)
    bar.set_label(color.replace("_", " "), fontsize=9)
    bar.ax.tick_params(labelsize=8)
    if method == "pca":
        axes.set_xlabel("first principal component", fontsize=9)
        axes.set_ylabel("second principal component", fontsize=9)
        # A few far networks would press all others into one spot.
        low, high = np.quantile(places[:, :2], [0.01, 0.99], axis=0)
        low, high = low - 0.2 * (high - low), high + 0.2 * (high - low)
        axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
        beyond = int(((places[:, :2] < low) | (places[:, :2] > high)).any(1).sum())
        text = f"{100 * sum(shares[:2]):.0f} % of the variance" + (f"\n{beyond} networks beyond the frame" if beyond else "")
        axes.text(0.02, 0.98, text, transform=axes.transAxes, va="top", fontsize=8)
    axes.set_xticks([])
    axes.set_yticks([])
    return _finished(figure, path, title or textwrap.fill(repr(space), 60))


def _finished(figure: Figure, path: str | os.PathLike[str] | None, title: str | None) -> Figure:
    if title:
        figure.suptitle(title, fontsize=10)
    if path is not None:
        figure.savefig(path)
    return figure


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
    if not space.wires:
        space.check_layers("draw_graph()")
    if theta is not None:
        space.check_thetas(theta, "theta", batched=False)
    groups = _drawn(space)
    small = max(group.size for group in groups) <= neurons and len(groups) <= 8 and space.topology.num_edges <= 4000
    figure = (_draw_neurons if small else _draw_groups)(space, theta)
    figure.axes[0].set_title(title or textwrap.fill(repr(space), int(figure.get_figwidth() * 13)), fontsize=8)
    if path is not None:
        figure.savefig(path)
    return figure


def _drawn(space: WeightSpace) -> list[NeuronGroup]:
    """The groups that have nodes, in topological order."""
    nodes = space.topology.nodes
    return [group for group in space.topological_groups if nodes[group.name].start < nodes[group.name].stop]


def _lanes(space: WeightSpace) -> dict[str, tuple[int, float]]:
    """Level and horizontal place of every group: groups of one level lie side by side."""
    levels = space.levels
    at_level: dict[int, list[str]] = {}
    for group in _drawn(space):
        at_level.setdefault(levels[group.name], []).append(group.name)
    return {name: (level, i - (len(names) - 1) / 2) for level, names in at_level.items() for i, name in enumerate(names)}


def _colours(space: WeightSpace) -> dict[str, str]:
    """One colour per class of hidden groups that are permuted alike, grey where nothing is permuted."""
    hidden = [label for label in space.permutation_classes if space.is_permutable(label)]
    return {
        group.name: _STYLES[hidden.index(group.permutation) % 7][0] if group.permutation in hidden else "#7F7F7F" for group in space.groups
    }


def _kind(space: WeightSpace, group: NeuronGroup) -> str:
    return "in fixed order" if group.role != "hidden" else space.describe_symmetry(group)


def _count(group: NeuronGroup) -> str:
    return f"{group.size:,} neuron{'s' if group.size > 1 else ''}"


def _draw_neurons(space: WeightSpace, theta: Tensor | None) -> Figure:
    import torch
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure

    lanes, colours, topology = _lanes(space), _colours(space), space.topology
    columns = {name: i for i, name in enumerate(sorted(lanes, key=lambda name: lanes[name]))}
    tallest = max(group.size for group in _drawn(space))
    figure = Figure(figsize=(1.2 + 1.7 * len(columns), 1.2 + 0.16 * max(tallest, 8)), dpi=200, layout="constrained")
    axes = figure.add_subplot()
    places = torch.zeros(topology.num_nodes, 2)
    for group in _drawn(space):
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
    for group in _drawn(space):
        nodes = topology.nodes[group.name]
        x, y = places[nodes].T.numpy()
        axes.scatter(x, y, s=22, color=colours[group.name], edgecolors="white", linewidths=0.6, zorder=3)
        lines = [group.name, _count(group), " ".join(group.operators) or " ", _kind(space, group)]
        label = "\n".join(lines)
        axes.annotate(label, (columns[group.name], -tallest / 2 - 0.5), ha="center", va="top", fontsize=6.5)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(-tallest / 2 - 0.5 - 0.13 * max(tallest, 8) - 1.5, tallest / 2 + 0.5)
    axes.axis("off")
    return figure


def _draw_groups(space: WeightSpace, theta: Tensor | None) -> Figure:
    from matplotlib.figure import Figure

    lanes, colours = _lanes(space), _colours(space)
    depth, breadth = max(level for level, _ in lanes.values()), max(abs(lane) for _, lane in lanes.values())
    shown = {
        group.name: "  |  ".join(filter(None, [f"{group.name}: {_count(group)}", " ".join(group.operators), _kind(space, group)]))
        for group in _drawn(space)
    }
    # A lane is as wide as the widest box that has another one beside it.
    beside = [len(text) for name, text in shown.items() if sum(level == lanes[name][0] for level, _ in lanes.values()) > 1]
    width = max((6.0 + 6.4 * breadth) / (2 * breadth + 1.5), 0.047 * max(beside, default=0) + 0.2)
    figure = Figure(figsize=(width * (2 * breadth + 1.5), 0.9 + 0.62 * (depth + 1)), dpi=160, layout="constrained")
    axes = figure.add_subplot()
    halves = {}
    for group in _drawn(space):
        level, lane = lanes[group.name]
        halves[group.name] = 0.0255 * len(shown[group.name]) / width + 0.02
        style = {"boxstyle": "round,pad=0.35", "facecolor": "white", "edgecolor": colours[group.name], "linewidth": 1.4}
        axes.text(lane, -level, shown[group.name], ha="center", va="center", fontsize=6.5, bbox=style, zorder=3)
    weights = {} if theta is None else space.unflatten(theta)
    for wire in space.wires:
        text = _describe(space, wire, weights) if wire.sources else ""
        for source, target in itertools.product(wire.sources, wire.targets):
            start, stop = ((lanes[name], halves[name]) for name in (source, target))
            _draw_arrow(start, stop, text, axes, dashed=wire.parameter is None)
            text = ""  # one label for all arrows of a layer
    axes.set_xlim(-breadth - 0.75, breadth + 0.75)
    axes.set_ylim(-depth - 0.5, 0.5)
    axes.axis("off")
    return figure


def _describe(space: WeightSpace, wire: Connection, weights: Mapping[str, Tensor]) -> str:
    """What is written beside an arrow; nothing where neurons are added up."""
    if wire.parameter is None:
        return "" if wire.kind in ("sum", "operator") else wire.kind
    layer = next((layer for layer in space.layers if layer.name == wire.name), None)
    kind = [space.describe_layer(layer)] if layer else [wire.kind] if wire.kind == "scale" else []
    norm = [f"norm {float(weights[wire.parameter].double().norm()):.3g}"] if weights else []
    return f"{wire.name}: {', '.join([*kind, 'x'.join(map(str, space.param(wire.parameter).shape)), *norm])}"


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
