"""Figures of the networks of zoos."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from torch import Tensor

    from wsgraph.data import ZooDataset
from wsgraph.plot.styles import STYLES, finished

__all__ = ["picture_grid", "prediction_scatter", "zoo_map"]


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
    return finished(figure, path, title)


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
    axes.scatter(x, y, s=size, color=STYLES[0][0], alpha=0.5, linewidth=0, zorder=2, rasterized=len(x) > 5000)
    text = f"Kendall's $\\tau$ = {kendalltau(x, y).statistic:.3f}\n$R^2$ = {r2_score(x, y):.3f}\n{len(x):,} networks"
    axes.text(0.04, 0.96, text, transform=axes.transAxes, va="top", fontsize=8.5)
    axes.set_xlabel(f"true {label}", fontsize=9)
    axes.set_ylabel(f"predicted {label}", fontsize=9)
    axes.set_aspect("equal")
    axes.tick_params(labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    return finished(figure, path, title)


def zoo_map(
    zoo: ZooDataset,
    path: str | os.PathLike[str] | None = None,
    *,
    color: str = "test_accuracy",
    method: str = "pca",
    canonicalize: bool = True,
    vectors: np.ndarray | None = None,
    networks: int = 2000,
    seed: int = 0,
    title: str | None = None,
) -> Figure:
    """A map of the weights of a zoo: every network a point, near where weights are alike, coloured by a column of the table.

    Args:
        zoo: Networks, of one architecture unless vectors are given, such as ``store.dataset("test")``.
        path: File to write; its suffix chooses the format (``.png``, ``.pdf``, ``.svg``).
        color: Column with numbers.
        method: ``"pca"`` (principal components) or ``"tsne"`` (neighbourhoods, of the first 50 principal components).
        canonicalize: Whether networks are brought into canonical form first; else equal networks with neurons in another order lie apart.
        vectors: Features of the networks ``[N, D]`` to map instead of weights, such as :meth:`wsgraph.search.Index.vectors`; networks may
            then have several architectures.
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
    part = zoo[chosen]
    values = part.column(color)
    if values.dtype.kind not in "fiub":
        raise ValueError(f"Expected 'color' to name a column of numbers (got {color!r} of {values.dtype}).")
    known = np.isfinite(values.astype(float))
    if not known.any():
        raise ValueError(f"Expected the column {color!r} to hold numbers (got none that is finite).")
    if vectors is not None:
        points = vectors[chosen.numpy()]
    else:
        thetas = part.thetas.double()
        points = (zoo.space.canonicalize(thetas) if canonicalize else thetas).float().numpy()
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
    return finished(figure, path, title or textwrap.fill("; ".join(map(repr, zoo.spaces[:2])), 60))
