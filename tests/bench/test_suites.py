"""The benchmark: tables from cells that are trained once, also when a run is killed."""

import itertools
import json
import math
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from wsgraph import WeightSpace
from wsgraph.bench import Cell, Size, list_suites, read_model, register_suite, run_cells, run_suite
from wsgraph.bench import bench as bench_module
from wsgraph.bench import cells as cells_module
from wsgraph.bench import provenance as provenance_module
from wsgraph.bench.accuracy import reads_functions
from wsgraph.cli import app
from wsgraph.data import HyperparameterRanges, SmallCNNZoo, ZhouSIRENs, ZooStore, digits, make_cnn_zoo
from wsgraph.data.generators.lineages import make_lineage_zoo
from wsgraph.measure import step_costs
from wsgraph.scores import register_score
from wsgraph.tasks.training import DivergedError

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
    monkeypatch.setattr(cells_module, "ProcessPoolExecutor", lambda workers, **_: ThreadPoolExecutor(1))


def _trained(folder: Path) -> dict[str, int]:
    return {file.parent.name: file.stat().st_mtime_ns for file in (folder / "cells").glob("*/cell.json")}


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zoos of networks that are trained for a few steps."""
    monkeypatch.setattr("wsgraph.data.make_cnn_zoo", partial(make_cnn_zoo, ranges=HyperparameterRanges(steps=(2, 60))))


def _cells(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [run["cell"] for run in row["runs"]]


def _document(folder: Path, name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "results" / f"{name}.json").read_text())
    return document


@pytest.mark.slow
def test_tables_and_figures(tmp_path: Path, threads: None, short: None, capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, Any] = {"size": TINY, "folder": tmp_path, "output": tmp_path / "results", "models": ["statnn", "neural_graph"]}
    run_suite("generalization", **options)
    trained = _trained(tmp_path)
    # Two models on two zoos: two learning rates, then two seeds of two variants. On the mixed zoo one variant, and one model fails.
    assert len(trained) == 2 * 2 * (2 + 2 * 2) + (2 + 2)
    rows = _document(tmp_path, "generalization")["results"]
    assert [(row["zoo"], row["variant"]) for row in rows if row["model"] == "statnn"] == [
        *itertools.product(("relu", "tanh"), ("original", "augmented")),
        ("mixed", "original"),
    ]
    failed = [row for row in rows if "error" in row]
    assert [(row["model"], row["zoo"]) for row in failed] == [("statnn", "mixed")]
    assert "statnn on mixed: The model 'statnn' reads networks of one architecture" in capsys.readouterr().err
    for row in rows:
        assert len(row["runs"]) == (0 if row in failed else 2)
        assert row["learning_rate"] in (None, *TINY.learning_rates)
        for run in row["runs"]:
            assert ("augment_scale" in run["cell"]) == (row["variant"] == "augmented")
            assert run["machine"]["torch"] == torch.__version__
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
    for row, score in ((rows[0], "tau"), (next(row for row in rows if row["variant"] == "augmented"), "tau_scale_100")):
        assert f"{sum(run['metrics'][score] for run in row['runs']) / 2:.3f} ± " in table
    assert "gap to the second" in table

    run_suite("robustness", **options)
    assert _trained(tmp_path) == trained  # the same cells
    assert (tmp_path / "results" / "robustness.png").read_bytes().startswith(b"\x89PNG")
    assert "s=100" in (tmp_path / "results" / "robustness.md").read_text()


@pytest.mark.slow
def test_architectures(tmp_path: Path, threads: None, short: None) -> None:
    options: dict[str, Any] = {"size": SMALL, "folder": tmp_path, "output": tmp_path / "results", "models": ["statnn", "scalegmn"]}
    run_suite("architectures", **options)
    zoos = ["resnet", "vit", "mixer"]
    mixed = ZooStore(tmp_path / "resnet-vit-mixer-20")
    assert {name: len(ZooStore(tmp_path / f"{name}-20")) for name in zoos} == dict.fromkeys(zoos, 20)
    assert (len(mixed), len(mixed.dataset().spaces)) == (60, 3)
    rows = _document(tmp_path, "architectures")["results"]
    assert [(row["model"], row["zoo"], row["variant"]) for row in rows] == list(
        itertools.product(("statnn", "scalegmn"), (*zoos, "mixed"), ("original", "s=100"))
    )
    assert {(row["model"], row["zoo"]) for row in rows if "error" in row} == {("statnn", "mixed")}
    # One training is scored on test networks as they are and on moved ones.
    assert all(one["runs"] == other["runs"] for one, other in zip(rows[::2], rows[1::2], strict=True))
    (first, *_), lines = rows[0]["runs"], (tmp_path / "results" / "architectures.md").read_text().splitlines()
    statnn = next(line for line in lines if line.startswith("| statnn")).split(" | ")
    assert statnn[1:3] == [f"{first['metrics'][score]:.3f}" for score in ("tau", "tau_scale_100")]

    trained = _trained(tmp_path)
    run_suite("architectures", **options)  # zoos and cells are there already
    assert _trained(tmp_path) == trained


@pytest.mark.slow
def test_train_size_and_transfer(tmp_path: Path, threads: None, short: None) -> None:
    options: dict[str, Any] = {"size": SMALL, "folder": tmp_path, "output": tmp_path / "results", "models": ["statnn", "neural_graph"]}
    run_suite("train-size", **options)
    document = _document(tmp_path, "train-size")
    networks = len(ZooStore(tmp_path / "cnn-relu-40").dataset("train"))
    cells = [_cells(row)[0] for row in document["results"] if row["model"] == "statnn" and row["zoo"] == "relu"]
    assert [(cell.get("train_size"), cell["epochs"]) for cell in cells] == [(8, math.ceil(2 * networks / 8)), (None, 2)]
    assert (tmp_path / "results" / "train-size.png").exists()

    run_suite("transfer", **options)
    rows = {row["model"]: row for row in _document(tmp_path, "transfer")["results"]}
    others = {"width 8", "width 24", "2 convolutions", "tanh"}
    graph, statistics = (rows[name]["runs"][0]["metrics"] for name in ("neural_graph", "statnn"))
    assert {name.removeprefix("tau_on_") for name in graph if name.startswith("tau_on_")} == others
    assert not any(name.startswith("tau_on_") for name in statistics)
    table = (tmp_path / "results" / "transfer.md").read_text()
    assert "| model | itself | width 8 | width 24 | 2 convolutions | tanh |" in table
    assert table.splitlines()[-2].endswith("| - | - | - | - |")


def test_zoos_and_widths_of_your_own(tmp_path: Path, threads: None) -> None:
    """Also where their folders have the same name."""
    few = HyperparameterRanges(steps=(2, 60))
    zoos = {
        name: make_cnn_zoo(tmp_path / name / "zoo", 40, data=digits(), seed=seed, channels=(4, 4), ranges=few, progress=False).path
        for seed, name in enumerate(("mine", "yours"))
    }
    options: dict[str, Any] = {"size": SMALL, "folder": tmp_path, "output": tmp_path / "results", "models": ["statnn"], "zoos": zoos}
    run_suite("generalization", **options, parameters=5000)
    rows = _document(tmp_path, "generalization")["results"]
    assert [(row["zoo"], row["variant"]) for row in rows] == list(itertools.product(zoos, ("original", "augmented")))
    assert all(abs(row["runs"][0]["metrics"]["parameters"] - 5000) < 250 for row in rows)
    assert rows[0]["runs"][0]["metrics"]["tau"] != rows[2]["runs"][0]["metrics"]["tau"]
    # Networks of the same space can be read by every model.
    run_suite("transfer", **options)
    (row,) = _document(tmp_path, "transfer")["results"]
    metrics = row["runs"][0]["metrics"]
    line = (tmp_path / "results" / "transfer.md").read_text().splitlines()[-1]
    assert line == f"| statnn | {metrics['tau']:.3f} | {metrics['tau_on_yours']:.3f} |"
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


def test_models_with_options(tmp_path: Path, threads: None, short: None, capsys: pytest.CaptureFixture[str]) -> None:
    models = ["statnn", "statnn:dropout=0.5", "statnn"]
    options: dict[str, Any] = {"size": SMALL, "folder": tmp_path, "output": tmp_path / "results"}
    run_suite("robustness", **options, models=models, parameters=20_000)
    rows = _document(tmp_path, "robustness")["results"]
    assert [row["model"] for row in rows] == ["statnn"] * 4 + ["statnn:dropout=0.5"] * 4
    assert all(abs(run["metrics"]["parameters"] - 20_000) < 1000 for row in rows for run in row["runs"])
    # What cannot be brought there is told, and the rest goes on.
    run_suite("robustness", **options, models=["statnn", "scalegmn"], parameters=300)
    rows = _document(tmp_path, "robustness")["results"]
    assert {row["model"]: "error" in row for row in rows} == {"statnn": False, "scalegmn": True}
    assert "scalegmn on relu: The model 'scalegmn' has" in capsys.readouterr().err
    run_suite("invariance", folder=tmp_path, output=tmp_path / "results", models=["neural_graph:channels=4"])
    assert "| neural_graph:channels=4 | permutation |" in (tmp_path / "results" / "invariance.md").read_text()
    assert read_model("scalegmn:bidirectional=True,channels=8") == ("scalegmn", {"bidirectional": True, "channels": 8})
    assert read_model("np:channels=[16,16],hidden=20") == ("np", {"channels": [16, 16], "hidden": 20})
    for label, message in (
        ("np:hidden", r"Expected a model as NAME:OPTION=VALUE,\.\.\. \(got 'np:hidden'\)"),
        ("np:hiden=3", "The model 'np' has no option 'hiden'; it has: channels, hidden, dropout, io_embed"),
        ("np:hidden=many", "Expected the option 'hidden' of 'np' to be like 1000 \\(got 'many'\\)"),
        ("nothing:a=1", "Unknown model 'nothing'"),
    ):
        with pytest.raises(ValueError, match=message):
            run_suite("inr", folder=tmp_path, output=tmp_path, models=[label])


def test_inr_classification(tmp_path: Path, threads: None) -> None:
    run_suite("inr", size=SMALL, folder=tmp_path, output=tmp_path / "results", models=["statnn"])
    rows = _document(tmp_path, "inr")["results"]
    assert [row["variant"] for row in rows] == ["raw", "sign", "phase"]
    assert [_cells(row)[0].get("canonicalize") for row in rows] == [None, ["sign"], ["phase", "sign"]]
    # What is probed stays as it is.
    assert all(_cells(row)[0]["standardize"] for row in rows)
    labels = ["np", "monomial_gnn", "monomial_gnn:probes=0", "scalegmn:probes=8"]
    assert [reads_functions(label) for label in labels] == [False, True, False, True]
    assert all(0 <= row["runs"][0]["metrics"]["accuracy"] <= 1 for row in rows)
    assert (tmp_path / "results" / "inr.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_editing(tmp_path: Path, threads: None) -> None:
    options: dict[str, Any] = {"size": SMALL, "folder": tmp_path, "output": tmp_path / "results"}
    small = "monomial_gnn:channels=4,rounds=1"  # which reads no probes here
    run_suite("editing", models=["statnn", "np", small], **options)
    document = _document(tmp_path, "editing")
    assert [(row["model"], row["variant"]) for row in document["results"]] == list(itertools.product(("np", small), ("dilate", "contrast")))
    assert all(_cells(row)[0]["standardize"] for row in document["results"])
    unedited = [f"{row['runs'][0]['metrics']['mse_unedited']:.5f}" for row in document["results"][:2]]
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


def test_cells_that_fail(tmp_path: Path, threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo = make_cnn_zoo(tmp_path / "zoo", 20, ranges=HyperparameterRanges(steps=(2, 3)), progress=False).path
    diverges = Cell("generalization", zoo, {"model": "statnn", "epochs": 1, "learning_rate": 1e30, "seed": 0})
    fails = Cell("generalization", zoo, {"model": "statnn", "epochs": 1, "target": "loss"})
    works = Cell("generalization", zoo, {"model": "statnn", "epochs": 1})
    for _ in range(2):
        found = run_cells([diverges, fails, works], tmp_path)
        assert [bool(each["metrics"]) for each in found] == [False, False, True]
        assert "Training diverged" in found[0]["error"]
        assert "loss" in found[1]["error"]
    # A model that diverges is a finding. What may be mended is tried again.
    assert [(tmp_path / cell.name / "cell.json").exists() for cell in (diverges, fails, works)] == [True, False, True]
    store = ZooStore(zoo)
    store.set_column("loss", torch.rand(len(store)).tolist())
    mended = Cell("generalization", zoo, fails.options)
    assert mended.name != fails.name
    assert run_cells([mended], tmp_path)[0]["metrics"]


def test_cells_begun_by_another_version_start_over(tmp_path: Path, threads: None) -> None:
    zoo = make_cnn_zoo(tmp_path / "zoo", 20, ranges=HyperparameterRanges(steps=(2, 3)), progress=False).path
    cell = Cell("generalization", zoo, {"model": "statnn", "epochs": 1})
    (tmp_path / cell.name / "run").mkdir(parents=True)
    (tmp_path / cell.name / "run" / "config.json").write_text('{"model": "statnn"}')
    assert run_cells([cell], tmp_path)[0]["metrics"]


def test_a_process_that_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: None) -> None:
    def dies(*arguments: Any, **options: Any) -> Any:
        raise BrokenProcessPool("died")

    zoo = make_cnn_zoo(tmp_path / "zoo", 20, ranges=HyperparameterRanges(steps=(2, 3)), progress=False).path
    monkeypatch.setattr(cells_module, "_train", dies)
    with pytest.raises(RuntimeError, match=r"died, most likely for want of memory\. What is finished is kept"):
        run_cells([Cell("generalization", zoo, {"model": "statnn"})], tmp_path)


def test_nothing_succeeds(tmp_path: Path, threads: None) -> None:
    zoo = make_cnn_zoo(tmp_path / "zoo", 20, ["relu", "tanh"], ranges=HyperparameterRanges(steps=(2, 3)), progress=False).path
    options: dict[str, Any] = {"size": SMALL, "folder": tmp_path, "output": tmp_path / "results", "zoos": {"both": zoo}}
    with pytest.raises(ValueError, match=r"No training succeeded\. statnn on both: The model 'statnn' reads networks of one architecture"):
        run_suite("robustness", **options, models=["statnn"])
    with pytest.raises(ValueError, match="Expected zoos of one architecture each \\(got 2 in 'both'\\)"):
        run_suite("memory", **options)
    with pytest.raises(ValueError, match="'seeds' with at least one entry"):
        replace(SMALL, seeds=())
    with pytest.raises(ValueError, match="names of zoos without '/'"):
        run_suite("inr", folder=tmp_path, output=tmp_path, zoos={"a/b": zoo})


def test_an_edit_is_drawn_by_a_seed_that_succeeded(tmp_path: Path, threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Cell.train

    def train(self: Cell, folder: Path) -> Any:
        if self.options["seed"] == 0 and self.options.get("test", True):
            raise DivergedError("Training diverged")
        return real(self, folder)

    monkeypatch.setattr(Cell, "train", train)
    size = replace(SMALL, seeds=(0, 1))
    run_suite("editing", size=size, folder=tmp_path, output=tmp_path / "results", models=["np:channels=[4]"])
    assert "(1 of 2 seeds)" in (tmp_path / "results" / "editing.md").read_text()
    assert (tmp_path / "results" / "editing-dilate.png").exists()


_SCRIPT = """
import sys
from pathlib import Path
from wsgraph.bench import Cell, run_cells
if __name__ == "__main__":
    zoo, folder = map(Path, sys.argv[1:])
    options = {"model": "statnn", "epochs": 3, "scales": [1]}
    print(len(run_cells([Cell("generalization", zoo, {**options, "seed": seed}) for seed in range(12)], folder, workers=2)))
"""


def _alive(group: int) -> list[str]:
    """Processes of a group, but for those that have ended and wait to be asked how."""
    listed = subprocess.run(["ps", "-eo", "pgid=,stat=,pid="], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if int(line.split()[0]) == group and "Z" not in line.split()[1]]


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
    first.kill()
    first.wait()
    while (left := _alive(first.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left  # workers that went on would hold memory, and train cells beside the next run
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
    with pytest.raises(ValueError, match=r"Unknown suite 'speed'\. Available suites: architectures, editing, generalization, inr"):
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


def test_names_of_cells(tmp_path: Path) -> None:
    space = WeightSpace.mlp([2, 3, 1])
    zoos = [ZooStore.create(tmp_path / name / "zoo", space, space.sample(3), {}).path for name in "ab"]
    options = {"model": "np", "seed": 1}
    cell = Cell("generalization", zoos[0], options)
    assert cell.name.startswith("generalization-zoo-np-")
    assert cell.name == Cell("generalization", zoos[0], dict(reversed(options.items()))).name
    others = [
        Cell("generalization", zoos[1], options),
        Cell("inr_editing", zoos[0], options),
        Cell("generalization", zoos[0], options | {"seed": 2}),
        Cell("generalization", zoos[0], options, {"x": zoos[0]}),
        Cell("generalization", zoos[0], options, {"x": zoos[1]}),
    ]
    assert len({other.name for other in [cell, *others]}) == 6
    ZooStore(zoos[0]).set_column("split", ["train"] * 3)
    assert Cell("generalization", zoos[0], options).name != cell.name


def test_who_leads_is_decided_by_the_score(tmp_path: Path) -> None:
    values: dict[str, list[float | None]] = {"a": [0.2, 0.4], "b": [0.5], "c": [None]}
    assert bench_module._gap(values, "tau_scale_100", 3) == "b by 0.200"
    assert bench_module._gap(values, "tau", 5) == "b by 0.20000"
    assert bench_module._gap(values, "mse", 3) == "a by 0.200"
    assert bench_module._gap(values, "unknown", 3) == bench_module._gap({"a": [0.2], "b": [0.2]}, "tau", 3) == "-"
    assert bench_module._gap({"a": [0.2]}, "tau", 3) == "-"
    with pytest.raises(ValueError, match="The score 'tau' is known already"):
        register_score("tau", better=-1)
    with pytest.raises(ValueError, match="'better' to be 1, -1 or 0"):
        register_score("other", better=2)


def test_provenance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zoos with few families: the tables have every method, and ours finds what raw weights do not."""
    monkeypatch.setattr(provenance_module, "_MERGED", 1)
    zoos = {}
    for kind in ("cnn", "siren"):
        ranges = {"steps": (20, 30)}
        zoos[kind] = make_lineage_zoo(tmp_path / kind, kind, 6, strangers=14, ranges=ranges, progress=False).path
    run_suite("provenance", folder=tmp_path / "bench", output=tmp_path / "out", size=TINY, zoos=zoos)
    document = json.loads((tmp_path / "out" / "provenance.json").read_text())
    rows = {(each["zoo"], each["method"]): each for each in document["results"]}
    assert {method for _, method in rows} == {"lineage", "activations", "raw_cosine", "raw_l2", "sorted_weights", "statistics"}
    for kind in zoos:
        assert rows[kind, "lineage"]["parent_at_10"] > 0.9
        assert rows[kind, "lineage"]["parents_of_children"] > 0.5 > 0.2 > rows[kind, "raw_l2"]["parents_of_children"]
        assert rows[kind, "lineage"]["false_alarms"] < 0.2
        assert (tmp_path / "out" / f"provenance-{kind}.png").exists()
    merged = json.loads((tmp_path / "out" / "provenance-merging.json").read_text())["results"]
    for each in merged:
        assert math.isfinite(each["naive"])
        if each["derivation"] == "quantised":  # so near that the average of aligned networks is what they are, hardly trained or not
            assert each["merged"] == pytest.approx(each["ends"], rel=0.1)
    assert {each["zoo"] for each in merged} == set(zoos)
    assert "| cnn | lineage |" in (tmp_path / "out" / "provenance-derivations.md").read_text()
