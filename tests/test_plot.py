from pathlib import Path

import numpy as np
import pytest
from torch import nn

from wsgraph.plot import robustness_curve, robustness_data
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
