"""Trainings on a cluster: zoos go there, runs come back, and only this process writes."""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.tasks.test_generalization import make_store
from wsgraph import WeightSpace, _cluster
from wsgraph.bench import Cell, Size, cells, run_cells, run_suite
from wsgraph.data import ArrayRows, ZooStore
from wsgraph.tasks import TrainedModel, remote, search
from wsgraph.tasks import searching as searching_module
from wsgraph.tasks.remote import RemoteRuns, SentZoo, keep_run

FEW: dict[str, Any] = {"model": "statnn", "epochs": 1, "scales": [1]}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ZooStore:
    return make_store(tmp_path_factory.mktemp("zoos") / "my zoo", networks=24)


def contents(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("cell.json")}


# == What a call on another machine does ==


@pytest.fixture
def elsewhere(store: ZooStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SentZoo:
    """The zoo as a machine gets it that does not see its folder."""
    monkeypatch.setattr(remote, "fetched", lambda files: files)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    files = _cluster.files_of(Path(store.path))
    assert "zoo.json" in files
    return SentZoo(tmp_path / "not here" / "my zoo", store.digest, files)


def test_a_cell_needs_no_common_file_system(store: ZooStore, elsewhere: SentZoo, tmp_path: Path) -> None:
    name = Cell("generalization", Path(store.path), FEW).name
    cell = Cell("generalization", elsewhere.path, FEW, {"far": elsewhere.path})
    record, files = remote.train_there(cells._train_apart, {"": elsewhere, "far": elsewhere}, (cell, 1), [], 1)
    assert record["metrics"]["tau"] == record["metrics"]["tau_on_far"]
    assert (record["zoo"], record["options"]) == ("my zoo", FEW)
    assert not elsewhere.path.exists()
    found = cells._kept(tmp_path / name, record, files)
    assert found == json.loads((tmp_path / name / "cell.json").read_text())
    # The run names the zoo by where it came from, and its model is whole.
    for file in ("result.json", "options.json"):
        text = (tmp_path / name / "run" / file).read_text()
        assert str(elsewhere.path) in text
        assert "wsgraph-" not in text
    command = json.loads((tmp_path / name / "run" / "result.json").read_text())["call"]["command"]
    assert f"--zoo '{elsewhere.path}'" in command
    assert f"--test-zoo 'far={elsewhere.path}'" in command
    assert torch.isfinite(TrainedModel.load(tmp_path / name / "run").predict(store.space, store.thetas[:2])).all()
    # What another process has written in the meantime stays.
    assert cells._kept(tmp_path / name, {"metrics": {}}, files) == found


def test_what_fails_there_is_told_and_not_kept(elsewhere: SentZoo, tmp_path: Path) -> None:
    cell = Cell("generalization", elsewhere.path, {**FEW, "target": "loss"})
    record, files = remote.train_there(cells._train_apart, {"": elsewhere}, (cell, 1), [], 1)
    assert "has no column 'loss'" in record["error"]
    assert cells._kept(tmp_path / "cell", record, files) == record
    assert not (tmp_path / "cell").exists()


def test_trials_need_no_common_file_system(elsewhere: SentZoo) -> None:
    options = {**FEW, "test": False, "progress": False}
    found, files = remote.train_there(searching_module._made_apart, {"": elsewhere}, ("generalization", options), [], 1)
    assert isinstance(found, dict)
    assert files is not None
    assert found["validation_loss"] == json.loads(files["result.json"].tobytes())["metrics"]["validation_loss"]
    found, files = remote.train_there(
        searching_module._made_apart, {"": elsewhere}, ("generalization", {**options, "target": "loss"}), [], 1
    )
    assert "has no column 'loss'" in str(found)
    assert files is None


def test_a_run_that_comes_back_takes_the_place_of_an_interrupted_one(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.ckpt").touch()
    keep_run(tmp_path / "run", {"model/config.json": np.frombuffer(b"{}", np.uint8)})
    assert [path.name for path in sorted((tmp_path / "run").rglob("*"))] == ["model", "config.json"]
    assert (tmp_path / "run" / "model" / "config.json").read_text() == "{}"


def test_zoos_that_link_to_files_are_read_where_these_are_seen(tmp_path: Path) -> None:
    space = WeightSpace.mlp([2, 3, 1])
    np.save(tmp_path / "matrix.npy", space.sample(4).numpy())
    with ZooStore.writing(tmp_path / "zoo") as store:
        store.append(space, ArrayRows(tmp_path / "matrix.npy", torch.arange(4), torch.arange(space.num_params)), {})

    class Machines:
        local = False

        def share(self, value: Any) -> Any:
            raise AssertionError

    sent = RemoteRuns(Machines())._send(tmp_path / "zoo")  # type: ignore[arg-type]
    assert sent.received(tmp_path / "other") == tmp_path / "zoo"
    with pytest.raises(ValueError, match=r"links to files that a machine of the cluster does not see: .*wsgraph zoo merge"):
        SentZoo(tmp_path / "not here", sent.digest, None).received(tmp_path / "other")


def test_ray_that_is_not_there(store: ZooStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optuna")

    def searched(address: str) -> None:
        search("generalization", trials=1, zoo=store, output=tmp_path / "search", ray=address, **FEW)

    def trained(address: str) -> None:
        run_cells([Cell("generalization", Path(store.path), FEW)], tmp_path, ray=address)

    addresses: list[str] = []

    def refuse(*, address: str, **options: Any) -> None:
        addresses.append(address)
        raise ConnectionError("Could not find any running Ray instance.")

    for call in (searched, trained):
        with monkeypatch.context() as context:
            context.setitem(sys.modules, "ray", None)
            with pytest.raises(ImportError, match=r"cluster needs Ray.*pip install 'wsgraph\[zoo\]'"):
                call("local")
        monkeypatch.setattr(pytest.importorskip("ray"), "init", refuse)
        with pytest.raises(ConnectionError, match=r"no Ray cluster at 'auto' \(Could not .*Start one with `ray start --head`"):
            call("auto")
        with pytest.raises(ConnectionError):
            call("local")
    assert addresses == ["auto", "local"] * 2  # without an address, Ray may connect to what an environment variable names
    assert not (tmp_path / "search" / "search.json").exists()


# == A cluster ==


@pytest.fixture(scope="module")
def machines() -> Iterator[None]:
    ray = pytest.importorskip("ray")
    environment = {"env_vars": {"PYTHONPATH": str(Path(__file__).parents[1])}}
    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False, runtime_env=environment)
    yield
    ray.shutdown()


def _killed_once(flag: Path, number: int) -> int:
    if number == 1 and not flag.exists():
        flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 3:
        raise ValueError("three is too much")
    return number * number


@pytest.mark.slow
def test_calls_are_spread_and_made_again_where_a_worker_dies(machines: None, tmp_path: Path) -> None:
    with _cluster.cluster("auto") as connected:
        assert connected.gpus_for_each() == 0
        assert dict(connected.results(_killed_once, [(tmp_path / "flag", i) for i in range(3)], at_a_time=2)) == {0: 0, 1: 1, 2: 4}
        assert (tmp_path / "flag").exists()
        with pytest.raises(ValueError, match=r"^three is too much$"):
            list(connected.results(_killed_once, [(tmp_path / "flag", 3)]))


def _slept(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@pytest.mark.slow
def test_calls_end_with_those_who_wait_for_them(machines: None) -> None:
    with _cluster.cluster("auto") as connected:
        with contextlib.closing(connected.results(_slept, [(0,), (300,)])) as results:
            assert next(results) == (0, 0)
        begun = time.monotonic()
        assert list(connected.results(_slept, [(0,)], cpus=2)) == [(0, 0)]  # both processors are free again
        assert time.monotonic() - begun < 200


@pytest.mark.slow
def test_cells_come_back_from_a_cluster(machines: None, store: ZooStore, tmp_path: Path) -> None:
    trained = [Cell("generalization", Path(store.path), {**FEW, "seed": seed}) for seed in range(3)]
    diverges = Cell("generalization", Path(store.path), {**FEW, "learning_rate": 1e30})
    fails = Cell("generalization", Path(store.path), {**FEW, "target": "loss"})
    found = run_cells([*trained, diverges, fails], tmp_path / "there", ray="auto", workers=2)
    here = run_cells(trained[:1], tmp_path / "here")
    assert found[0]["metrics"]["tau"] == here[0]["metrics"]["tau"]
    assert found[0]["machine"]["torch"] == torch.__version__
    assert ["Training diverged" in found[3]["error"], "no column 'loss'" in found[4]["error"]] == [True, True]
    before = contents(tmp_path / "there")
    assert len(before) == 4  # what may be mended is tried again
    assert run_cells(trained, tmp_path / "there", ray="auto") == found[:3]
    assert contents(tmp_path / "there") == before
    assert trained[1].train(tmp_path / "there").metrics["tau"] == found[1]["metrics"]["tau"]  # read, not trained again


@pytest.mark.slow
def test_searches_on_a_cluster_come_to_the_same(machines: None, store: ZooStore, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    options: dict[str, Any] = {**FEW, "zoo": store, "progress": False, "search_space": {"learning_rate": [1e-4, 1e-2, "log"]}}
    there = search("generalization", trials=3, output=tmp_path / "there", ray="auto", workers=2, **options)
    here = search("generalization", trials=3, output=tmp_path / "here", **options)
    assert [row["learning_rate"] for row in there.trials] == [row["learning_rate"] for row in here.trials]
    assert [row["validation_loss"] for row in there.trials] == pytest.approx([row["validation_loss"] for row in here.trials])
    assert (tmp_path / "there" / "trial2" / "metrics.csv").exists()
    again = search("generalization", trials=3, output=tmp_path / "there", **options)
    assert again.document() == there.document()


@pytest.mark.slow
def test_a_suite_on_a_cluster(machines: None, store: ZooStore, tmp_path: Path) -> None:
    size = Size(networks=20, pictures=20, epochs=1, seeds=(0,), learning_rates=(1e-3, 1e-2), search_epochs=1, scales=(1,))
    zoos = {"mine": Path(store.path)}
    run_suite("robustness", size=size, folder=tmp_path, output=tmp_path / "results", models=["statnn"], zoos=zoos, workers=2, ray="auto")
    assert "| statnn |" in (tmp_path / "results" / "robustness.md").read_text()
    assert len(contents(tmp_path)) >= 3
