"""The benchmark: tables from cells that are trained once, also when a run is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from wsgraph.bench import Cell, Size, list_suites, register_suite, run_cells, run_suite
from wsgraph.bench import cells as cells_module
from wsgraph.cli import app
from wsgraph.data import HyperparameterRanges, make_cnn_zoo

TINY = Size(networks=40, pictures=40, epochs=1, seeds=(0, 1), learning_rates=(1e-3, 1e-2), scales=(1, 100))
ROOT = Path(__file__).parents[2]


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells in threads of this process, which need not import everything again."""
    monkeypatch.setattr(cells_module, "ProcessPoolExecutor", lambda workers, mp_context: ThreadPoolExecutor(1))


def _trained(folder: Path) -> dict[str, int]:
    return {file.parent.name: file.stat().st_mtime_ns for file in (folder / "cells").glob("*/cell.json")}


def test_tables_and_figures(tmp_path: Path, threads: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    few = HyperparameterRanges(steps=(2, 60))
    monkeypatch.setattr("wsgraph.data.make_cnn_zoo", partial(make_cnn_zoo, ranges=few))
    options: dict[str, Any] = {"size": TINY, "folder": tmp_path, "output": tmp_path / "results", "models": ["statnn", "mlp"]}
    run_suite("generalization", **options)
    trained = _trained(tmp_path)
    # Two models on four zoos: two learning rates, then two seeds.
    assert len(trained) == 2 * 4 * (2 + 2)
    document = json.loads((tmp_path / "results" / "generalization.json").read_text())
    assert len(document["results"]) == 8
    for row in document["results"]:
        assert len(row["metrics"]) == 2
        assert row["learning_rate"] in TINY.learning_rates
    searched = [json.loads((tmp_path / "cells" / name / "cell.json").read_text()) for name in trained]
    assert {"tau" in cell["metrics"] for cell in searched if not cell["options"].get("test", True)} == {False}
    table = (tmp_path / "results" / "generalization.md").read_text()
    first = document["results"][0]["metrics"]
    assert f"{(first[0]['tau'] + first[1]['tau']) / 2:.3f} ± " in table
    assert "gap to the second" in table
    assert "statnn" in capsys.readouterr().out

    run_suite("robustness", **options)
    assert _trained(tmp_path) == trained  # the same cells
    assert {file.name for file in (tmp_path / "results").glob("*.png")} == {
        f"robustness-{name}.png" for name in ("relu", "relu-augmented", "tanh", "tanh-augmented")
    }
    assert "s=100" in (tmp_path / "results" / "robustness.md").read_text()


def test_inr_classification(tmp_path: Path, threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    size = Size(networks=1, pictures=120, epochs=1, seeds=(0,), learning_rates=(1e-2,), scales=(1,))
    run_suite("inr", size=size, folder=tmp_path, output=tmp_path / "results", models=["statnn"])
    document = json.loads((tmp_path / "results" / "inr.json").read_text())
    assert [row["variant"] for row in document["results"]] == ["raw", "sign", "phase"]
    assert all(0 <= row["metrics"][0]["accuracy"] <= 1 for row in document["results"])


def test_editing(tmp_path: Path, threads: None) -> None:
    size = Size(networks=1, pictures=120, epochs=1, seeds=(0,), learning_rates=(1e-2,), scales=(1,))
    options: dict[str, Any] = {"size": size, "folder": tmp_path, "output": tmp_path / "results"}
    run_suite("editing", models=["statnn", "np"], **options)
    document = json.loads((tmp_path / "results" / "editing.json").read_text())
    assert [(row["model"], row["variant"]) for row in document["results"]] == [("np", "dilate"), ("np", "contrast")]
    assert (tmp_path / "results" / "editing.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match=r"Expected models that return weights \(got statnn\)"):
        run_suite("editing", models=["statnn"], **options)


def test_invariance(tmp_path: Path) -> None:
    run_suite("invariance", folder=tmp_path, output=tmp_path / "results", models=["mlp", "np", "monomial", "monomial_gnn"])
    changes = {row["model"]: row["changes"] for row in json.loads((tmp_path / "results" / "invariance.json").read_text())["results"]}
    assert set(changes["np"]) == {
        *("relu CNN, permutation", "relu CNN, scale", "tanh CNN, permutation", "tanh CNN, sign", "SIREN, permutation", "SIREN, sign")
    }
    assert all(change < 1e-9 for model in ("monomial", "monomial_gnn") for change in changes[model].values())
    assert changes["np"]["relu CNN, permutation"] < 1e-9 < 1e-3 < changes["np"]["relu CNN, scale"]
    assert changes["mlp"]["SIREN, permutation"] > 1e-3


def test_a_cell_that_fails_is_a_finding(tmp_path: Path, threads: None) -> None:
    zoo = make_cnn_zoo(tmp_path / "zoo", 20, ranges=HyperparameterRanges(steps=(2, 3)), progress=False)
    cell = Cell("generalization", zoo.path, {"model": "statnn", "epochs": 1, "learning_rate": 1e30, "seed": 0})
    for _ in range(2):
        (found,) = run_cells([cell], tmp_path)
        assert found["metrics"] == {}
        assert "Training diverged" in found["error"]


_SCRIPT = """
import sys
from pathlib import Path
from wsgraph.bench import Cell, run_cells
if __name__ == "__main__":
    zoo, folder = map(Path, sys.argv[1:])
    options = {"model": "statnn", "epochs": 3, "scales": [1]}
    print(len(run_cells([Cell("generalization", zoo, {**options, "seed": seed}) for seed in range(12)], folder, workers=2)))
"""


@pytest.mark.slow
def test_a_run_that_is_killed_continues(tmp_path: Path) -> None:
    make_cnn_zoo(tmp_path / "zoo", 40, ranges=HyperparameterRanges(steps=(2, 60)), progress=False)
    (tmp_path / "script.py").write_text(_SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "zoo"), str(tmp_path / "cells")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while len(_trained(tmp_path)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    finished = _trained(tmp_path)
    assert 2 <= len(finished) < 12
    second = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert second.stdout.strip() == "12", second.stderr
    after = _trained(tmp_path)
    assert len(after) == 12
    assert {name: after[name] for name in finished} == finished


def test_errors(tmp_path: Path) -> None:
    assert list_suites() == ["editing", "generalization", "inr", "invariance", "robustness"]
    places: dict[str, Any] = {"folder": tmp_path, "output": tmp_path}
    with pytest.raises(ValueError, match=r"Unknown suite 'speed'\. Available suites: editing, generalization, inr"):
        run_suite("speed", **places)
    with pytest.raises(ValueError, match="'size' to be 'quick' or 'full'"):
        run_suite("inr", size="huge", **places)
    with pytest.raises(ValueError, match="Unknown model 'nothing'"):
        run_suite("inr", models=["nothing"], **places)
    with pytest.raises(ValueError, match="named 'inr' is registered already"):
        register_suite("inr")(lambda bench: None)
    result = CliRunner().invoke(app, ["bench", "speed", "--folder", str(tmp_path)])
    assert result.exit_code == 1
    assert "Unknown suite 'speed'" in result.output
