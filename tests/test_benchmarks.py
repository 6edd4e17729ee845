import itertools
import json
import math
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def import_and_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Scripts find their neighbours as when they are run, and leave the number of threads as it was."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def run(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--quick", "--output", str(folder)])
    runpy.run_path(str(BENCHMARKS / f"{name}.py"), run_name="__main__")
    (document,) = folder.glob("*.json")
    assert document.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert not list(folder.glob(".*"))
    result: dict[str, Any] = json.loads(document.read_text())
    assert result["machine"]["torch"] == torch.__version__
    return result


def test_sharing_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    document = run("sharing_speed", tmp_path, monkeypatch)
    assert (tmp_path / "sharing_speed_cpu.json").exists()
    rows = {row["layer"]: row for row in document["layers"]}
    assert list(rows) == ["np", "hnp", "monomial", "magep", "magep_invariant"]
    for row in rows.values():
        assert row["network"] == "2-32-32-1"
        for measure, ratio in row["ratios"].items():
            assert math.isfinite(ratio)
            assert ratio > 0
            assert ratio == pytest.approx(row["published"][measure] / row["ours"][measure])
            assert document["geometric_means"][row["layer"]][measure] == pytest.approx(ratio)
    # Mixed along the first weight with its bias, the middle weight and bias alone, the last weight alone, the last bias with a shift.
    by_hand = (16 * 3) ** 2 + 16**2 + 16**2 + 16**2 + 16 * (16 + 1)
    assert rows["monomial"]["ours"]["trainable_parameters"] == by_hand
    assert all(row["ours"]["trainable_parameters"] == row["published"]["trainable_parameters"] for row in rows.values())
    assert all(0 < row[who]["kept_bytes"] < row[who]["peak_bytes"] for row in rows.values() for who in ("ours", "published"))
    assert [set(row) >= {"ours", "other_order", "published"} for row in document["orders_of_contraction"]] == [True]
    assert "geometric mean" in capsys.readouterr().out


def test_parameter_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    sweeps = run("parameter_count", tmp_path, monkeypatch)["sweeps"]
    assert list(sweeps) == ["depth", "width", "channels", "ends"]
    # Two layers, 2-32-1: the first weight with its bias, the last weight alone, the last bias with a shift.
    assert sweeps["depth"]["counts"]["MonomialLinear"][0] == (16 * 3) ** 2 + 16**2 + 16 * (16 + 1)
    for name, counts in sweeps["width"]["counts"].items():
        assert len(set(counts)) == 1
        assert counts[0] == sweeps["depth"]["counts"][name][1]
        assert sweeps["width"]["slopes"][name] == pytest.approx(0)
        assert all(math.isfinite(sweep["slopes"][name]) for sweep in sweeps.values())
    assert "exponent" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["NPLinear", "HNPLinear", "MonomialLinear", "MAGEPLinear", "MAGEPInvariant"])
def test_published_layers_commute_with_their_group(name: str) -> None:
    import published

    torch.manual_seed(0)
    sizes = [2, 4, 5, 3]
    layer = getattr(published, name)(sizes, [None] * 3, 2, 3).double()
    weights = [torch.randn(2, 2, n_out, n_in, dtype=torch.float64) for n_in, n_out in itertools.pairwise(sizes)]
    biases = [torch.randn(2, 2, n_out, dtype=torch.float64) for n_out in sizes[1:]]
    elements = [torch.eye(size, dtype=torch.float64) for size in sizes]
    for i in (1, 2):
        elements[i] = elements[i][torch.randperm(sizes[i])]
        if name.startswith("M"):
            elements[i] = elements[i] * torch.tensor([-3.0, 0.5, 2.0, -1.0, 4.0], dtype=torch.float64)[: sizes[i]]

    def move(features: tuple[list[torch.Tensor], list[torch.Tensor]]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        moved = [
            g_out @ weight @ torch.linalg.inv(g_in) for weight, g_in, g_out in zip(features[0], elements[:-1], elements[1:], strict=True)
        ]
        return moved, [bias @ g.T for bias, g in zip(features[1], elements[1:], strict=True)]

    out, of_moved = layer(weights, biases), layer(*move((weights, biases)))
    torch.testing.assert_close(of_moved, out if isinstance(out, torch.Tensor) else move(out), rtol=1e-10, atol=1e-10)
