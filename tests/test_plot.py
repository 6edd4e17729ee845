from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from matplotlib.text import Annotation
from torch import nn

from wsgraph import SpaceMismatchError, WeightSpace
from wsgraph.data import ZooStore
from wsgraph.plot import bar_panel, cost_chart, curve_panels, draw_graph, prediction_scatter, robustness_curve, robustness_data, zoo_map
from wsgraph.space import Axis, Layer, NeuronGroup, Parameter, Tie
from wsgraph.tasks import Result, read_results

CURVES = {"statnn": {1.0: 0.7, 10.0: 0.4, 1e4: -0.2}, "monomial_gnn": {1.0: 0.8, 10.0: 0.8, 1e4: 0.8}}


def test_curves_show_every_model_and_scale() -> None:
    axes = robustness_curve(CURVES, title="Digits").axes[0]
    lines = {str(line.get_label()): line for line in axes.get_lines()}
    assert np.array_equal(lines["statnn"].get_xdata(), [1, 10, 10000])
    assert np.array_equal(lines["monomial_gnn"].get_ydata(), [0.8, 0.8, 0.8])
    assert axes.get_xscale() == "log"
    assert [str(tick.get_text()) for tick in axes.get_xticklabels()] == ["1", "10", "$10^{4}$"]


def test_lines_differ_without_colour() -> None:
    many = {str(i): {1.0: 0.1 * i, 10.0: 0.1 * i} for i in range(9)}
    lines = robustness_curve(many).axes[0].get_lines()[:9]
    assert len({line.get_marker() for line in lines}) == 9


def test_errors_are_bands() -> None:
    (axes,) = robustness_curve({"np": {1.0: (0.5, 0.1), 10.0: (0.3, 0.2)}, "statnn": {1.0: 0.7, 10.0: 0.6}}).axes
    (band,) = axes.collections
    low, high = np.ptp(np.asarray(band.get_paths()[0].vertices), axis=0)
    assert low == 9
    assert high == pytest.approx(0.6 - 0.1)


def test_panels_share_styles() -> None:
    panels = {"relu": {"np": {1.0: 1.0, 2.0: 2.0}, "mlp": {1.0: 3.0}}, "tanh": {"mlp": {1.0: 1.0}}, "both": {"np": {1.0: 2.0}}}
    figure = curve_panels(panels, x_label="size", y_label="cost", title="All", log_y=True)
    first, second, third, empty = figure.axes
    assert second.get_lines()[0].get_color() == first.get_lines()[1].get_color() != first.get_lines()[0].get_color()
    assert [axes.get_title() for axes in (first, second, third)] == list(panels)
    assert first.get_yscale() == "log"
    assert not empty.axison
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["np", "mlp"]
    with pytest.raises(ValueError, match="Expected curves of at least one model"):
        curve_panels({"relu": {"np": {}}})


def test_bars(tmp_path: Path) -> None:
    bars: dict[str, dict[str, float | tuple[float, float]]] = {"np": {"raw": 0.2, "phase": (0.5, 0.1)}, "mlp": {"phase": 0.4}}
    (axes,) = bar_panel(bars, tmp_path / "bars.pdf", y_label="accuracy").axes
    heights = sorted(patch.get_height() for patch in axes.patches if isinstance(patch, Rectangle))
    assert heights == [0.2, 0.4, 0.5]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["np", "mlp"]
    assert (tmp_path / "bars.pdf").stat().st_size > 3000
    with pytest.raises(ValueError, match="Expected bars of at least one model"):
        bar_panel({"np": {}})


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"curve.{suffix}"
    robustness_curve(CURVES, path)
    assert path.stat().st_size > 3000


def test_data_comes_from_results() -> None:
    metrics = {"tau": 0.7, "tau_scale_1": 0.7, "tau_scale_10000": 0.1, "r2_scale_10": 0.5}
    result = Result("generalization", metrics, nn.Identity(), {"model": "statnn"}, Path())
    assert robustness_data([result]) == {"statnn": {1.0: 0.7, 10000.0: 0.1}}


def test_nothing_to_draw() -> None:
    with pytest.raises(ValueError, match="Expected 'curves' with at least one model"):
        robustness_curve({"statnn": {}})


def test_draw_graph_of_a_small_network_shows_every_neuron(tmp_path: Path) -> None:
    space = WeightSpace.mlp([3, 5, 2])
    theta = space.sample(1, generator=torch.Generator().manual_seed(0))[0]
    axes = draw_graph(space, theta, tmp_path / "graph.png").axes[0]
    *weights, inputs, hidden, outputs = axes.collections
    assert [np.asarray(dots.get_offsets()).shape[0] for dots in (inputs, hidden, outputs)] == [3, 5, 2]
    lines = [collection for collection in weights if isinstance(collection, LineCollection)]
    positive = torch.cat([weight.flatten() for weight in space.blocks(theta[None]).weights if weight is not None]) > 0
    assert [len(collection.get_segments()) for collection in lines] == [int(positive.sum()), int((~positive).sum())]
    assert (tmp_path / "graph.png").read_bytes().startswith(b"\x89PNG")
    assert "permutation x scale" in axes.texts[1].get_text()


def test_draw_graph_of_a_large_network_shows_groups_and_layers() -> None:
    space = WeightSpace.cnn([1, 64, 64], [10], "tanh")
    theta = space.sample(1)[0]
    texts = [text.get_text() for text in draw_graph(space, theta, title="A CNN").axes[0].texts]
    assert "hidden.1: 64 neurons  |  tanh  |  permutation x sign" in texts
    norm = float(space.unflatten(theta)["layers.0.weight"].double().norm())
    assert f"layers.0: conv 3x3, 64x1x3x3, norm {norm:.3g}" in texts
    assert "layers.2: linear, 10x64" in [text.get_text() for text in draw_graph(space).axes[0].texts]


def test_draw_graph_draws_skip_connections_dashed() -> None:
    groups = [NeuronGroup("in", 3, "input"), NeuronGroup("a", 50, permutation="p"), NeuronGroup("b", 50, operators=("relu",))]
    groups += [NeuronGroup("c", 50, permutation="p"), NeuronGroup("out", 2, "output")]
    layers, params = [], []
    for name, source, target in (("1", "in", "a"), ("2", "a", "b"), ("3", "b", "c"), ("4", "c", "out")):
        sizes = {group.name: group.size for group in groups}
        axes = Axis(sizes[target], (Tie((target,), 1),)), Axis(sizes[source], (Tie((source,), -1),))
        params.append(Parameter(name, (sizes[target], sizes[source]), "weight", axes))
        layers.append(Layer(f"layer{name}", "linear", (source,), target, name))
    layers.append(Layer("skip", "identity", ("a",), "c"))
    drawn = draw_graph(WeightSpace(tuple(groups), tuple(layers), tuple(params))).axes[0]
    arrows = [text.arrow_patch for text in drawn.texts if isinstance(text, Annotation) and text.arrow_patch is not None]
    assert sorted(arrow.get_linestyle() for arrow in arrows) == ["-", "-", "-", "-", "--"]


def test_draw_graph_refuses_what_it_cannot_draw() -> None:
    space = WeightSpace.mlp([3, 5, 2])
    with pytest.raises(SpaceMismatchError, match="Expected 'theta' of shape"):
        draw_graph(space, torch.zeros(3))
    with pytest.raises(SpaceMismatchError, match="needs a network of dense"):
        draw_graph(WeightSpace(space.groups, (), space.params))


def test_costs_are_means_over_seeds() -> None:
    runs = [
        {"config": {"model": model}, "metrics": {"tau": tau, "seconds_per_epoch": 2.0, "peak_memory_mb": memory}}
        for model, tau, memory in (("np", 0.7, 10.0), ("np", 0.9, 30.0), ("statnn", 0.5, 1.0))
    ]
    _, memory = cost_chart(runs).axes
    places = {str(points.get_label()): np.asarray(points.get_offsets())[0] for points in memory.collections}
    assert places["np"] == pytest.approx([20.0, 0.8])
    assert places["statnn"] == pytest.approx([1.0, 0.5])
    with pytest.raises(ValueError, match="Expected results with the score 'accuracy'"):
        cost_chart(runs, score="accuracy")


def test_scatter_shows_every_network_and_the_scores() -> None:
    true = torch.linspace(0, 1, 20)
    axes = prediction_scatter(1 - true, true, label="test accuracy").axes[0]
    assert len(np.asarray(axes.collections[0].get_offsets())) == 20
    assert "= -1.000" in axes.texts[0].get_text()
    assert axes.get_ylabel() == "predicted test accuracy"
    with pytest.raises(ValueError, match="Expected 'predicted' and 'true' of one shape"):
        prediction_scatter(true[:3], true)


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_map_does_not_depend_on_the_order_of_neurons(tmp_path: Path, method: str) -> None:
    space = WeightSpace.mlp([2, 6, 1], "tanh")
    generator = torch.Generator().manual_seed(0)
    thetas = space.sample(30, generator=generator, dtype=torch.float64)
    moved = space.act(space.sample_symmetry(30, generator=generator), thetas)
    table = {"test_accuracy": torch.linspace(0, 1, 30), "name": ["a"] * 30}
    stores = [ZooStore.create(tmp_path / name, space, weights, table) for name, weights in (("a", thetas), ("b", moved))]
    figures = [zoo_map(store.dataset(target=None), method=method) for store in stores]
    first, second = (np.asarray(figure.axes[0].collections[1].get_offsets()) for figure in figures)
    assert first == pytest.approx(second, abs=1e-2 * np.ptp(first))
    raw = np.asarray(zoo_map(stores[1].dataset(target=None), method=method, canonicalize=False).axes[0].collections[1].get_offsets())
    assert first != pytest.approx(raw, abs=0.01 * np.ptp(first))
    assert len(np.asarray(zoo_map(stores[0].dataset(target=None), networks=7).axes[0].collections[1].get_offsets())) == 7
    for options, message in (
        ({"method": "umap"}, "pca or tsne"),
        ({"color": "name"}, "a column of numbers"),
        ({"color": "missing"}, "missing"),
    ):
        with pytest.raises((ValueError, KeyError), match=message):
            zoo_map(stores[0].dataset(target=None), **options)  # type: ignore[arg-type]


def test_results_are_read_from_folders(tmp_path: Path) -> None:
    for seed in (0, 1):
        folder = tmp_path / f"seed{seed}"
        folder.mkdir()
        Result("generalization", {"tau": 0.5 + seed}, nn.Identity(), {"model": "np"}, folder).save(folder / "result.json")
    assert [result["metrics"]["tau"] for result in read_results(tmp_path)] == [0.5, 1.5]
    with pytest.raises(FileNotFoundError, match="There is no finished run in"):
        read_results(tmp_path / "other")
    (tmp_path / "seed0" / "result.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        read_results(tmp_path)


def test_a_model_has_one_style_in_all_figures() -> None:
    curves: dict[str, dict[float, Any]] = {name: {1: 0.5, 10: 0.4} for name in ("statnn", "np", "mlp")}
    runs: list[dict[str, Any]] = [
        {"config": {"model": name}, "metrics": {"tau": 0.5, "seconds_per_epoch": 1.0, "peak_memory_mb": 2.0}} for name in curves
    ]
    lines = {line.get_label(): line.get_color() for line in robustness_curve(curves).axes[0].get_lines()}
    again = {
        line.get_label(): line.get_color()
        for line in robustness_curve({name: curves[name] for name in reversed(curves)}).axes[0].get_lines()
    }
    points = {dots.get_label(): to_hex(np.asarray(dots.get_facecolor())[0]).upper() for dots in cost_chart(runs).axes[0].collections}
    assert lines == again == points
    assert len(set(lines.values())) == 3


def test_runs_of_other_options_are_no_seeds() -> None:
    runs: list[dict[str, Any]] = [
        {"config": {"model": "np", "zoo": "a", "seed": seed, "learning_rate": rate}, "metrics": {"tau_scale_1": rate + seed}}
        for rate in (0.1, 0.10000000001)
        for seed in (0, 1)
    ]
    assert robustness_data(runs) == {
        "np, learning_rate=0.1": {1.0: (pytest.approx(0.6), pytest.approx(0.5))},
        "np, learning_rate=0.10000000001": {1.0: (pytest.approx(0.6), pytest.approx(0.5))},
    }
    runs[0]["config"] = {**runs[0]["config"], "zoo": "b"}
    with pytest.raises(ValueError, match=r"Expected runs of one task on one zoo, which can be compared \(got runs on a, runs on b\)"):
        robustness_data(runs)
