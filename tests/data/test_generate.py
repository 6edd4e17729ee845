"""Zoos made here: what is recorded, resuming, several architectures, many workers."""

import itertools
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.data.blobs import BLOBS
from wsgraph import WeightSpace
from wsgraph.data import (
    ClassificationData,
    Classifiers,
    CounterRandom,
    HyperparameterRanges,
    ZooStore,
    ZooWarning,
    digits,
    generate_zoo,
    make_cnn_zoo,
    make_inr_zoo,
    make_mlp_zoo,
    make_zoo,
    shards,
)
from wsgraph.data.generators import classifiers
from wsgraph.data.generators.classifiers import training_examples
from wsgraph.data.generators.configuration import read_zoo_configuration
from wsgraph.data.generators.problem import splits_of
from wsgraph.space import Signal

FAST = HyperparameterRanges(steps=(4, 9))
SMALL: dict[str, Any] = {"channels": (3, 4), "stride": (2, 1), "ranges": FAST, "progress": False}


def _double(data: ClassificationData) -> ClassificationData:
    return data._replace(images=data.images.double(), test_images=data.test_images.double())


# == Zoos ==


def _contents(store: ZooStore) -> dict[str, bytes]:
    files = [store.path / "zoo.json", *(shard.file for shard in store.shards), *(store.path / "spaces").iterdir()]
    return {file.name: file.read_bytes() for file in files}


def _in_order(store: ZooStore) -> tuple[Tensor, dict[str, np.ndarray]]:
    """Weights and table by the numbers of the networks."""
    order = np.argsort(store.column("network"), kind="stable")
    return store.thetas[torch.from_numpy(order)], {name: column[order] for name, column in store.table.items()}


def test_what_is_recorded_is_true(tmp_path: Path) -> None:
    store = make_cnn_zoo(tmp_path / "zoo", 30, "tanh", seed=3, data=BLOBS, population=8, **SMALL)
    space = store.space
    assert space == WeightSpace.cnn([1, 3, 4], [3], "tanh", stride=(2, 1), padding=1)
    assert len(store) == 30
    thetas, table = _in_order(store)
    assert table["network"].tolist() == list(range(30))
    assert set(table["seed"]) == {3}
    hyper = FAST.sample(CounterRandom(3), torch.arange(30))
    assert all(table[name].tolist() == values.tolist() for name, values in hyper.items())
    logits = space.evaluate(thetas, BLOBS.test_images)
    assert table["test_accuracy"].tolist() == (logits.argmax(2) == BLOBS.test_labels).double().mean(1).tolist()
    losses = torch.stack([F.cross_entropy(row, BLOBS.test_labels) for row in logits])
    torch.testing.assert_close(torch.from_numpy(table["test_loss"]).float(), losses, rtol=1e-5, atol=1e-6)
    order, count = training_examples(CounterRandom(3), torch.arange(30), hyper["training_fraction"], 40)
    assert len(count.unique()) > 2
    for i in range(30):
        seen = order[i, : count[i]]
        logits = space.evaluate(thetas[i : i + 1], BLOBS.images[seen])[0]
        assert table["train_accuracy"][i] == pytest.approx(float((logits.argmax(1) == BLOBS.labels[seen]).double().mean()))
        assert table["train_loss"][i] == pytest.approx(float(F.cross_entropy(logits, BLOBS.labels[seen])), rel=1e-5)
    assert store.info["made_by"] == "wsgraph.data.generate_zoo"
    assert store.info["configuration"]["steps"] == [4, 9]
    assert [file.name for file in tmp_path.iterdir()] == ["zoo"]


def test_splits_have_fixed_shares_and_do_not_depend_on_the_size() -> None:
    random = CounterRandom(0)
    splits = splits_of(random, torch.arange(1000))
    for block in range(100):
        part = splits[10 * block : 10 * block + 10]
        assert [part.count(name) for name in ("train", "val", "test")] == [6, 1, 3]
    assert splits_of(random, torch.tensor([537, 12])) == [splits[537], splits[12]]
    first = [splits[i] for i in range(0, 1000, 10)]
    assert 45 <= first.count("train") <= 75


def test_the_same_seed_gives_the_same_zoo_whatever_the_population(tmp_path: Path) -> None:
    options = {"data": _double(BLOBS), "dtype": torch.float64, **SMALL}
    eights = make_cnn_zoo(tmp_path / "eights", 20, population=8, **options)
    ones = make_cnn_zoo(tmp_path / "ones", 20, population=1, **options)
    longer = make_cnn_zoo(tmp_path / "longer", 23, population=8, **options)
    other = make_cnn_zoo(tmp_path / "other", 20, population=8, seed=1, **options)
    assert eights.thetas.dtype == torch.float64
    (first, table), (second, same), (third, more) = map(_in_order, (eights, ones, longer))
    torch.testing.assert_close(first, second, rtol=0, atol=1e-8)
    torch.testing.assert_close(first, third[:20], rtol=0, atol=1e-8)
    assert table["split"].tolist() == same["split"].tolist() == more["split"].tolist()[:20]
    assert not torch.allclose(first, _in_order(other)[0])


def test_an_interrupted_run_resumes_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"data": BLOBS, "population": 4, "workers": 1, **SMALL}
    whole = make_cnn_zoo(tmp_path / "whole" / "zoo", 18, **options)
    original = classifiers.train_population
    calls: list[Tensor] = []

    def stop_after_three(*arguments: Any, **keywords: Any) -> Tensor:
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(arguments[2])
        return original(*arguments, **keywords)

    path = tmp_path / "stopped" / "zoo"
    monkeypatch.setattr(classifiers, "train_population", stop_after_three)
    with pytest.raises(KeyboardInterrupt):
        make_cnn_zoo(path, 18, **options)
    begun = ZooStore(path)
    assert not begun.finished
    assert [shard.name for shard in begun.shards] == [f"000-00000{i}" for i in range(3)]
    assert len(begun) == 12

    calls.clear()

    def count(*arguments: Any, **keywords: Any) -> Tensor:
        calls.append(arguments[2])
        return original(*arguments, **keywords)

    monkeypatch.setattr(classifiers, "train_population", count)
    resumed = make_cnn_zoo(path, 18, **options)
    assert [len(members) for members in calls] == [4, 2]
    assert _contents(resumed) == _contents(whole)


def test_workers_do_not_change_the_zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = make_cnn_zoo(tmp_path / "one", 20, data=BLOBS, population=3, workers=1, **SMALL)
    original = classifiers.train_population
    meeting = threading.Barrier(3, timeout=30)
    threads: list[int] = []

    def meet(*arguments: Any, **keywords: Any) -> Tensor:
        if len(threads) < 3:
            threads.append(torch.get_num_threads())
            meeting.wait()  # passes only if three populations are trained at a time
        return original(*arguments, **keywords)

    monkeypatch.setattr(classifiers, "train_population", meet)
    before = torch.get_num_threads()
    three = make_cnn_zoo(tmp_path / "three", 20, data=BLOBS, population=3, workers=3, **SMALL)
    assert _contents(one) == _contents(three)
    assert threads == [1, 1, 1]
    assert torch.get_num_threads() == before


def test_an_error_stops_all_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = classifiers.train_population
    calls, started, steps = itertools.count(), threading.Event(), []

    def fail_second(space: WeightSpace, data: Any, networks: Tensor, *arguments: Any, advance: Any, **keywords: Any) -> Tensor:
        if next(calls):
            started.wait(30)
            raise RuntimeError("the second population fails")

        def wait(done: int) -> None:
            started.set()
            steps.append(done)
            time.sleep(0.01)
            advance(done)

        return original(space, data, networks, *arguments, advance=wait, **keywords)

    monkeypatch.setattr(classifiers, "train_population", fail_second)
    ranges = HyperparameterRanges(steps=(2000, 2000))
    with pytest.raises(RuntimeError, match="the second population fails"):
        make_cnn_zoo(tmp_path / "zoo", 9, data=BLOBS, population=3, workers=2, **{**SMALL, "ranges": ranges})
    assert 0 < len(steps) < 1000
    assert len(ZooStore(tmp_path / "zoo")) == 0


def test_a_write_that_fails_leaves_no_half_population(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shards, "save_file", fail)
        with pytest.raises(OSError, match=r"No space left on device.*on a disk with space"):
            make_cnn_zoo(tmp_path / "zoo", 4, data=BLOBS, **SMALL)
    assert list((tmp_path / "zoo" / "shards").iterdir()) == []
    for name in (".000-000000.safetensors.killed.tmp", ".tmpAbCdEf"):  # ours, and that of the library that writes
        (tmp_path / "zoo" / "shards" / name).write_bytes(b"half")
    assert len(make_cnn_zoo(tmp_path / "zoo", 4, data=BLOBS, **SMALL)) == 4
    assert [file.name for file in (tmp_path / "zoo" / "shards").iterdir()] == ["000-000000.safetensors"]


def test_a_finished_zoo_that_lost_a_shard_is_completed(tmp_path: Path) -> None:
    whole = make_cnn_zoo(tmp_path / "whole", 12, data=BLOBS, population=4, **SMALL)
    store = make_cnn_zoo(tmp_path / "zoo", 12, data=BLOBS, population=4, **SMALL)
    store.shards[1].file.unlink()
    with pytest.warns(ZooWarning, match="the shard '000-000001' of 4 networks is gone"):
        again = make_cnn_zoo(tmp_path / "zoo", 12, data=BLOBS, population=4, **SMALL)
    assert again.verify() == []
    assert _contents(again) == _contents(whole)


def test_two_makers_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = classifiers.train_population

    def make_too(*arguments: Any, **keywords: Any) -> Tensor:
        with pytest.raises(BlockingIOError, match="Another process is writing to the zoo"):
            make_cnn_zoo(tmp_path / "zoo", 4, data=BLOBS, **SMALL)
        return original(*arguments, **keywords)

    monkeypatch.setattr(classifiers, "train_population", make_too)
    assert len(make_cnn_zoo(tmp_path / "zoo", 4, data=BLOBS, **SMALL)) == 4


def test_another_configuration_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> Tensor:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(classifiers, "train_population", interrupt)
        with pytest.raises(KeyboardInterrupt):
            make_cnn_zoo(tmp_path / "zoo", 4, data=BLOBS, **SMALL)
    message = r"The zoo .*zoo' was begun with another configuration \(seed: 0 there, 1 now\)"
    with pytest.raises(ValueError, match=message):
        make_cnn_zoo(tmp_path / "zoo", 4, data=BLOBS, seed=1, **SMALL)
    with pytest.raises(
        ValueError, match=r"networks: 4 there, 5 now; steps: \[4, 9\] there, \[4, 8\] now.*delete that folder to make it anew"
    ):
        make_cnn_zoo(tmp_path / "zoo", 5, data=BLOBS, **{**SMALL, "ranges": HyperparameterRanges(steps=(4, 8))})
    make_cnn_zoo(tmp_path / "zoo", 4, data=BLOBS, **SMALL)
    with pytest.raises(ValueError, match=r"was made with another configuration \(space: .*relu.* there, .*tanh.* now\)"):
        make_cnn_zoo(tmp_path / "zoo", 4, "tanh", data=BLOBS, **SMALL)
    with pytest.raises(ValueError, match=r"another configuration \(data: 40 \+ 20 examples \w+ there, 40 \+ 20 examples \w+ now\)"):
        make_cnn_zoo(tmp_path / "zoo", 4, data=BLOBS._replace(images=BLOBS.images + 1), **SMALL)


def test_a_finished_zoo_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make_cnn_zoo(tmp_path / "zoo", 4, data=BLOBS, **SMALL)
    monkeypatch.setattr(classifiers, "train_population", lambda *_, **__: pytest.fail("trained again"))
    assert _contents(make_cnn_zoo(tmp_path / "zoo", 4, data=BLOBS, **SMALL)) == _contents(first)


def test_other_things_at_the_path(tmp_path: Path) -> None:
    space = WeightSpace.mlp([25, 6, 3])
    ZooStore.create(tmp_path / "foreign", space, space.sample(2), {})
    with pytest.raises(ValueError, match="was not made by a generator"):
        make_cnn_zoo(tmp_path / "foreign", 4, data=BLOBS, **SMALL)
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        make_cnn_zoo(tmp_path / "file", 4, data=BLOBS, **SMALL)
    with pytest.raises(OSError, match=r"Cannot write to .*Choose a path"):
        make_cnn_zoo(tmp_path / "file" / "zoo", 4, data=BLOBS, **SMALL)


def test_diverged_networks_are_kept_out_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = classifiers.train_population

    def diverge(space: WeightSpace, data: ClassificationData, networks: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
        thetas = original(space, data, networks, *arguments, **keywords)
        thetas[networks == 2, 7] = torch.nan
        thetas[networks == 5] = 1e38  # finite weights whose outputs overflow
        return thetas

    monkeypatch.setattr(classifiers, "train_population", diverge)
    store = make_cnn_zoo(tmp_path / "zoo", 8, data=BLOBS, population=3, **SMALL)
    assert sorted(store.table["network"].tolist()) == [0, 1, 3, 4, 6, 7]
    assert store.info["dropped_non_finite"] == 2
    assert all(np.isfinite(store.table[name]).all() for name in ("train_loss", "test_loss"))
    monkeypatch.setattr(classifiers, "train_population", lambda space, data, networks, *_, **__: space.sample(len(networks)) * torch.nan)
    with pytest.raises(ValueError, match=r"All 4 networks diverged. Lower the learning rate.*delete '.*none' to start over"):
        make_cnn_zoo(tmp_path / "none", 4, data=BLOBS, **SMALL)


def test_progress_bar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_cnn_zoo(tmp_path / "zoo", 6, data=BLOBS, **{**SMALL, "progress": True})
    printed = capsys.readouterr().out
    assert "6/6 networks" in printed
    assert "left" in printed


def test_mlp_zoo_on_digits_learns(tmp_path: Path) -> None:
    ranges = HyperparameterRanges(steps=(150, 150), learning_rate=(1e-2, 1e-2), training_fraction=(1.0,), dropout=(0, 0))
    store = make_mlp_zoo(tmp_path / "zoo", 10, ranges=ranges, progress=False)
    assert store.space == WeightSpace.mlp([64, 32, 32, 10])
    assert store.table["test_accuracy"].min() > 0.8
    data = digits()
    accuracy = (store.space.evaluate(store.thetas, data.images.flatten(1)).argmax(2) == data.labels).double().mean(1)
    assert store.table["train_accuracy"].tolist() == pytest.approx(accuracy.tolist())
    assert [len(store.split(name)) for name in ("train", "val", "test")] == [6, 1, 3]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"networks": 0}, r"'networks' to be a positive integer \(got 0\)"),
        ({"population": 2.5}, r"'population' to be a positive integer \(got 2.5\)"),
        ({"batch_size": -1}, "'batch_size' to be a positive integer"),
        ({"workers": 0}, "'workers' to be a positive integer"),
        ({"images": BLOBS.images.long()}, r"'images' to be a floating tensor \[n, 1, ...\]"),
        ({"test_images": BLOBS.test_images.repeat(1, 2, 1, 1)}, r"'test_images' .* \(got shape \[20, 2, 5, 5\]"),
        ({"labels": BLOBS.labels + 1}, "one integer label from 0 to 2 for each of the 40 'images'"),
        ({"test_labels": BLOBS.test_labels[:5]}, "each of the 20 'test_images'"),
    ],
)
def test_bad_arguments(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    space = WeightSpace.cnn([1, 3, 4], [3], padding=1)
    with pytest.raises(ValueError, match=message):
        make_zoo(tmp_path / "zoo", space, **{**BLOBS._asdict(), "networks": 4, "progress": False, **changes})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("device", ["gpu", "meta:x", "cuda:99"])
def test_devices_that_are_not_there(tmp_path: Path, device: str) -> None:
    with pytest.raises(ValueError, match="Cannot train on 'device'"):
        make_cnn_zoo(tmp_path / "zoo", 4, data=BLOBS, device=device, **SMALL)
    with pytest.raises(ValueError, match="'seed' to be an integer of 64 bits"):
        make_cnn_zoo(tmp_path / "zoo", 4, data=BLOBS, seed=10**30, **SMALL)
    assert not (tmp_path / "zoo").exists()


def test_configuration_is_plain_json(tmp_path: Path) -> None:
    store = make_cnn_zoo(tmp_path / "zoo", 4, data=BLOBS, **SMALL)
    configuration = json.loads((store.path / "zoo.json").read_text())["info"]["configuration"]
    assert configuration["networks"] == 4
    assert configuration["dtype"] == "float32"


def test_several_architectures_share_the_networks(tmp_path: Path) -> None:
    options = {**SMALL, "channels": [(3,), (4, 2)], "checkpoints": (0,)}
    store = make_cnn_zoo(tmp_path / "zoo", 10, ["relu", "tanh"], data=BLOBS, population=2, **options)
    assert [[group.size for group in space.groups] for space in store.spaces] == [[1, 3, 3], [1, 3, 3], [1, 4, 2, 3], [1, 4, 2, 3]]
    assert [space.groups[1].activation for space in store.spaces] == ["relu", "tanh"] * 2
    finals = store.dataset().select({"final": True})
    assert len(finals) == 10
    assert len(store) == 20
    for i, space in enumerate(store.spaces):
        assert sorted(finals.of_space(space).column("network").tolist()) == list(range(i, 10, 4))
    assert store.info["configuration"]["problems"]["0"]["problem"] == "classification"


def test_inr_zoo_on_digits(tmp_path: Path) -> None:
    store = make_inr_zoo(tmp_path / "zoo", 12, hidden=(12, 12), steps=300, convention="zhou", progress=False)
    assert store.space.signal == Signal((8, 8), "row", 0.0, (-1.0, 1.0))
    data = digits()
    pictures = torch.cat([data.images, data.test_images])[store.column("image")]
    error = (store.space.render(store.thetas) - pictures).square().mean((1, 2, 3))
    assert store.column("loss").tolist() == pytest.approx(error.tolist(), rel=1e-3)
    assert np.median(store.column("psnr")) > 20
    assert store.dataset(target="label").y.dtype == torch.int64
    with pytest.raises(ValueError, match="'convention' to be 'navon' or 'zhou'"):
        make_inr_zoo(tmp_path / "other", 12, convention="siren")


# == Configuration files ==


@pytest.mark.parametrize(
    "name, text", [("zoo.toml", "networks = 3\nranges.steps = [4, 5]"), ("zoo.json", '{"networks": 3, "ranges": {"steps": [4, 5]}}')]
)
def test_configuration_files(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert read_zoo_configuration(tmp_path / name, ["networks", "ranges"]) == {"networks": 3, "ranges": {"steps": [4, 5]}}


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("zoo.toml", "networks = ", "is not TOML"),
        ("zoo.json", "{", "is not JSON"),
        ("zoo.json", "[]", r"to hold options by name \(got list\)"),
        ("zoo.toml", "network = 3", r"\(got 'network'\)"),
        ("zoo.toml", "[ranges]\nstep = [1, 2]", "The table 'ranges' .* does not fit: .*'step'"),
        ("zoo.toml", "[ranges]\nsteps = [0, 2]", "Expected 'steps'"),
    ],
)
def test_configuration_files_that_do_not_fit(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_zoo_configuration(tmp_path / name, ["networks", "ranges"])


def test_missing_configuration_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="There is no configuration file"):
        read_zoo_configuration(tmp_path / "zoo.toml", [])


# == Many machines ==


class _KilledOnce(Classifiers):
    """A worker that trains the second population for the first time is killed."""

    def train(self, networks: Tensor, *, device: torch.device | str, advance: Any) -> Any:
        flag = Path(os.environ["WSGRAPH_TEST_FLAG"])
        if 3 in networks.tolist() and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().train(networks, device=device, advance=advance)


@pytest.mark.slow
def test_ray_redoes_what_a_killed_worker_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    flag = tmp_path / "killed"
    monkeypatch.setenv("WSGRAPH_TEST_FLAG", str(flag))
    root = str(Path(__file__).parents[2])
    ray.init(
        num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": root}}
    )
    try:
        space = WeightSpace.cnn([1, 3, 4], [3], padding=1)
        problem = _KilledOnce(space, BLOBS, FAST, seed=5)
        there = generate_zoo(tmp_path / "there", [problem], 12, population=2, ray="auto", progress=False)
    finally:
        ray.shutdown()
    assert flag.exists()
    here = generate_zoo(tmp_path / "here", [problem], 12, population=2, progress=False)
    assert _contents(there) == _contents(here)
    assert sorted(there.column("network").tolist()) == list(range(12))


def test_ray_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'wsgraph\[zoo\]'"):
        make_cnn_zoo(tmp_path / "zoo", 4, data=BLOBS, ray="local", **SMALL)
