"""The benchmark: tables from cells that are trained once, also when a run is killed."""

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from wsgraph.bench import Cell, Size, list_suites, register_suite, run_cells, run_suite
from wsgraph.bench import cells as cells_module
from wsgraph.cli import app
from wsgraph.data import HyperparameterRanges, SmallCNNZoo, ZhouSIRENs, ZooStore, digits, make_cnn_zoo
from wsgraph.measure import step_costs

TINY = Size(
    networks=40,
    pictures=120,
    epochs=2,
    seeds=(0, 1),
    learning_rates=(1e-3, 1e-2),
    search_epochs=1,
    search_networks=20,
    scales=(1, 100),
    train_sizes=(8, 1000),
    batches=(2, 4),
    widths=(4, 8),
)
SMALL = replace(TINY, seeds=(0,), learning_rates=(1e-2,))
ROOT = Path(__file__).parents[2]


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells in threads of this process, which need not import everything again."""
    monkeypatch.setattr(cells_module, "ProcessPoolExecutor", lambda workers, mp_context: ThreadPoolExecutor(1))


def _trained(folder: Path) -> dict[str, int]:
    return {file.parent.name: file.stat().st_mtime_ns for file in (folder / "cells").glob("*/cell.json")}


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zoos of networks that are trained for a few steps."""
    monkeypatch.setattr("wsgraph.data.make_cnn_zoo", partial(make_cnn_zoo, ranges=HyperparameterRanges(steps=(2, 60))))


def _document(folder: Path, name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "results" / f"{name}.json").read_text())
    return document


def test_tables_and_figures(tmp_path: Path, threads: None, short: None, capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, Any] = {"size": TINY, "folder": tmp_path, "output": tmp_path / "results", "models": ["statnn", "neural_graph"]}
    run_suite("generalization", **options)
    trained = _trained(tmp_path)
    # Two models on two zoos: two learning rates, then two seeds of two variants. On the mixed zoo one variant, and one model fails.
    assert len(trained) == 2 * 2 * (2 + 2 * 2) + (2 + 2) + 2
    rows = _document(tmp_path, "generalization")["results"]
    assert [(row["zoo"], row["variant"]) for row in rows if row["model"] == "statnn"] == [
        *itertools.product(("relu", "tanh"), ("original", "augmented")),
        ("mixed", "original"),
    ]
    failed = [row for row in rows if "error" in row]
    assert [(row["model"], row["zoo"]) for row in failed] == [("statnn", "mixed")]
    assert "statnn on mixed, original: The model 'statnn' reads networks of one architecture" in capsys.readouterr().err
    for row in rows:
        assert len(row["metrics"]) == (0 if row in failed else 2)
        assert row["learning_rate"] in (None, *TINY.learning_rates)
        assert all(("augment_scale" in cell) == (row["variant"] == "augmented") for cell in row["cells"])
    cells = [json.loads((tmp_path / "cells" / name / "cell.json").read_text()) for name in trained]
    searched = [cell for cell in cells if not cell["options"].get("test", True)]
    assert {cell["options"]["epochs"] for cell in searched} == {1}
    assert {cell["options"]["train_size"] for cell in searched} == {20}
    assert not any("tau" in cell["metrics"] for cell in searched)  # the test split was left alone
    # The rate is the one with the lowest validation loss of the search.
    losses = {
        cell["options"]["learning_rate"]: cell["metrics"]["validation_loss"]
        for cell in searched
        if (cell["options"]["model"], cell["zoo"]) == ("neural_graph", "cnn-tanh-40")
    }
    (row, _) = [row for row in rows if (row["model"], row["zoo"]) == ("neural_graph", "tanh")]
    assert row["learning_rate"] == min(losses, key=losses.__getitem__)
    table = (tmp_path / "results" / "generalization.md").read_text()
    first = rows[0]["metrics"]
    assert f"{(first[0]['tau'] + first[1]['tau']) / 2:.3f} ± " in table
    second = next(row["metrics"] for row in rows if row["variant"] == "augmented")
    assert f"{(second[0]['tau_scale_100'] + second[1]['tau_scale_100']) / 2:.3f} ± " in table
    assert "gap to the second" in table

    run_suite("robustness", **options)
    assert _trained(tmp_path) == trained  # the same cells
    assert (tmp_path / "results" / "robustness.png").read_bytes().startswith(b"\x89PNG")
    assert "s=100" in (tmp_path / "results" / "robustness.md").read_text()


def test_train_size_and_transfer(tmp_path: Path, threads: None, short: None) -> None:
    options: dict[str, Any] = {"size": SMALL, "folder": tmp_path, "output": tmp_path / "results", "models": ["statnn", "neural_graph"]}
    run_suite("train-size", **options)
    document = _document(tmp_path, "train-size")
    networks = len(ZooStore(tmp_path / "cnn-relu-40").dataset("train"))
    cells = [row["cells"][0] for row in document["results"] if row["model"] == "statnn" and row["zoo"] == "relu"]
    assert [(cell["train_size"], cell["epochs"]) for cell in cells] == [(8, math.ceil(2 * networks / 8)), (networks, 2)]
    assert (tmp_path / "results" / "train-size.png").exists()

    run_suite("transfer", **options)
    rows = {row["model"]: row for row in _document(tmp_path, "transfer")["results"]}
    others = {"width 8", "width 24", "2 convolutions", "tanh"}
    assert {name.removeprefix("tau_on_") for name in rows["neural_graph"]["metrics"][0] if name.startswith("tau_on_")} == others
    assert not any(name.startswith("tau_on_") for name in rows["statnn"]["metrics"][0])
    table = (tmp_path / "results" / "transfer.md").read_text()
    assert "| model | itself | width 8 | width 24 | 2 convolutions | tanh |" in table
    assert table.splitlines()[-2].endswith("| - | - | - | - |")


def test_zoos_and_widths_of_your_own(tmp_path: Path, threads: None) -> None:
    few = HyperparameterRanges(steps=(2, 60))
    zoos = {
        name: make_cnn_zoo(tmp_path / name, 40, data=digits(), seed=seed, channels=(4, 4), ranges=few, progress=False).path
        for seed, name in enumerate(("mine", "yours"))
    }
    options: dict[str, Any] = {"size": SMALL, "folder": tmp_path, "output": tmp_path / "results", "models": ["statnn"], "zoos": zoos}
    run_suite("generalization", **options, parameters=5000)
    rows = _document(tmp_path, "generalization")["results"]
    assert [(row["zoo"], row["variant"]) for row in rows] == list(itertools.product(zoos, ("original", "augmented")))
    assert all(abs(row["metrics"][0]["parameters"] - 5000) < 250 for row in rows)
    # Networks of the same space can be read by every model.
    run_suite("transfer", **options)
    (row,) = _document(tmp_path, "transfer")["results"]
    assert "tau_on_yours" in row["metrics"][0]
    assert "| model | mine | yours |" in (tmp_path / "results" / "transfer.md").read_text()


def test_published_zoos(tmp_path: Path, threads: None) -> None:
    """As benchmarks/README.md says."""
    SmallCNNZoo.write_fake(tmp_path / "data", "cifar10", runs=60)
    ZhouSIRENs.write_fake(tmp_path / "data", "mnist")
    zoos = {
        activation: SmallCNNZoo(tmp_path / "data", "cifar10", activation=activation, split_before_filter=False).store.path
        for activation in ("relu", "tanh")
    }
    options: dict[str, Any] = {"size": SMALL, "folder": tmp_path, "output": tmp_path / "results", "models": ["statnn"]}
    run_suite("generalization", zoos=zoos, **options)
    assert [row["zoo"] for row in _document(tmp_path, "generalization")["results"]] == ["relu", "relu", "tanh", "tanh"]
    run_suite("inr", zoos={"mnist": ZhouSIRENs(tmp_path / "data", "mnist").store.path}, **options)
    assert len(_document(tmp_path, "inr")["results"]) == 3


def test_models_with_options(tmp_path: Path, threads: None, short: None) -> None:
    models = ["statnn", "statnn:hidden=8", "statnn:hiden=8"]
    run_suite("robustness", size=SMALL, folder=tmp_path, output=tmp_path / "results", models=models, parameters=20_000)
    rows = _document(tmp_path, "robustness")["results"]
    counts = {row["model"]: {metrics["parameters"] for metrics in row["metrics"]} for row in rows}
    assert len(counts["statnn"]) == len(counts["statnn:hidden=8"]) == 1
    assert min(counts["statnn"]) > 19_000 > 4_000 > max(counts["statnn:hidden=8"])
    assert all("hiden" in row["error"] for row in rows if row["model"] == "statnn:hiden=8")
    run_suite("invariance", folder=tmp_path, output=tmp_path / "results", models=["neural_graph:channels=4"])
    assert "| neural_graph:channels=4 | permutation |" in (tmp_path / "results" / "invariance.md").read_text()
    with pytest.raises(ValueError, match=r"Expected a model as NAME:OPTION=VALUE,\.\.\. \(got 'np:hidden'\)"):
        run_suite("inr", folder=tmp_path, output=tmp_path, models=["np:hidden"])


def test_inr_classification(tmp_path: Path, threads: None) -> None:
    run_suite("inr", size=SMALL, folder=tmp_path, output=tmp_path / "results", models=["statnn"])
    rows = _document(tmp_path, "inr")["results"]
    assert [row["variant"] for row in rows] == ["raw", "sign", "phase"]
    assert [row["cells"][0].get("canonicalize") for row in rows] == [None, ["sign"], ["phase", "sign"]]
    assert all(0 <= row["metrics"][0]["accuracy"] <= 1 for row in rows)
    assert (tmp_path / "results" / "inr.png").read_bytes().startswith(b"\x89PNG")


def test_editing(tmp_path: Path, threads: None) -> None:
    options: dict[str, Any] = {"size": SMALL, "folder": tmp_path, "output": tmp_path / "results"}
    run_suite("editing", models=["statnn", "np"], **options)
    document = _document(tmp_path, "editing")
    assert [(row["model"], row["variant"]) for row in document["results"]] == [("np", "dilate"), ("np", "contrast")]
    unedited = [f"{row['metrics'][0]['mse_unedited']:.3f}" for row in document["results"]]
    assert f"| left as they are | {' | '.join(unedited)} |" in (tmp_path / "results" / "editing.md").read_text()
    assert all((tmp_path / "results" / f"editing-{name}.png").read_bytes().startswith(b"\x89PNG") for name in ("dilate", "contrast"))
    with pytest.raises(ValueError, match=r"Expected models that return weights \(got statnn\)"):
        run_suite("editing", models=["statnn"], **options)


def test_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsgraph.bench.cost.step_costs", partial(step_costs, seconds=0.0))
    options: dict[str, Any] = {"size": TINY, "folder": tmp_path, "output": tmp_path / "results"}
    run_suite("memory", **options, models=["statnn", "monomial_gnn", "neural_graph"])
    document = _document(tmp_path, "memory")
    assert list(document["costs"]) == ["relu CNN", "tanh CNN"]
    for costs in document["costs"].values():
        assert list(costs) == ["statnn", "monomial_gnn", "neural_graph"]
        for each in costs.values():
            assert 0 < each["kept_bytes"] < each["peak_bytes"]
            assert each["networks_per_second"] == pytest.approx(1000 * document["batch"] / each["milliseconds"])
    over = {name: _document(tmp_path, f"memory-{name}")["costs"] for name in ("batch", "width")}
    assert {name: list(costs) for name, costs in over.items()} == {"batch": ["2", "4"], "width": ["4", "8"]}
    assert over["batch"]["4"]["neural_graph"]["kept_bytes"] == pytest.approx(2 * over["batch"]["2"]["neural_graph"]["kept_bytes"], rel=0.1)
    assert (tmp_path / "results" / "memory.png").read_bytes().startswith(b"\x89PNG")
    # What was measured is kept; a model that was not is measured beside the others.
    kept = {file: file.stat().st_mtime_ns for file in tmp_path.glob("cells/memory-*/cell.json")}
    run_suite("memory", **options, models=["monomial_gnn"])
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    run_suite("memory", **options, models=["monomial_gnn", "mlp"])
    assert all(file.stat().st_mtime_ns > before for file, before in kept.items())


def test_parameters(tmp_path: Path) -> None:
    run_suite("parameters", folder=tmp_path, output=tmp_path / "results")
    sweeps = _document(tmp_path, "parameters")["sweeps"]
    # Two layers, 2-32-1: the first weight with its bias, the last weight alone, the last bias with a shift.
    assert sweeps["layers L"]["counts"]["MonomialLinear"][0] == (16 * 3) ** 2 + 16**2 + 16 * (16 + 1)
    assert all(len(set(counts)) == 1 for counts in sweeps["hidden width n"]["counts"].values())
    assert (
        "| MonomialLinear | permutation, scale, sign | 0.8 | 0.0 | 2.0 | 2.0 | 3,856 |"
        in (tmp_path / "results" / "parameters.md").read_text()
    )
    assert (tmp_path / "results" / "parameters.png").read_bytes().startswith(b"\x89PNG")


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
    assert {"generalization", "robustness", "memory", "transfer"} < set(list_suites())
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
    for zoo, message in (("relu", "Expected --zoo as NAME=FOLDER"), ("a=b --zoo a=c", "different names")):
        result = CliRunner().invoke(app, ["bench", "inr", "--folder", str(tmp_path), "--zoo", *zoo.split()])
        assert result.exit_code == 1
        assert message in " ".join(result.output.split())


def test_long_names_of_cells(tmp_path: Path) -> None:
    cells = [Cell("generalization", tmp_path, {"model": "np", "test_zoos": {"other": f"/{'a' * 300}/{i}"}}) for i in range(2)]
    assert len({cell.name for cell in cells}) == 2
    assert all(len(cell.name) < 250 and "/" not in cell.name for cell in cells)
