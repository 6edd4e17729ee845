from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection
from matplotlib.patches import Rectangle
from matplotlib.text import Annotation
from torch import nn

from wsgraph import SpaceMismatchError, WeightSpace
from wsgraph.plot import bar_panel, curve_panels, draw_graph, robustness_curve, robustness_data
from wsgraph.space import Axis, Layer, NeuronGroup, Parameter, Tie
from wsgraph.tasks import Result

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
