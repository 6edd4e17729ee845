"""Zoos made here: the vectorised trainer against a plain torch loop, resuming, and what is recorded."""

import itertools
import json
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.spaces import residual_space
from wsgraph import WeightSpace
from wsgraph.data import (
    ClassificationData,
    CounterRandom,
    HyperparameterRanges,
    ZooStore,
    digits,
    make_cnn_zoo,
    make_mlp_zoo,
    make_zoo,
    populations,
)
from wsgraph.data.populations import evaluate_population, initial_thetas, train_population, training_examples

FAST = HyperparameterRanges(steps=(4, 9))
SMALL: dict[str, Any] = {"channels": (3, 4), "stride": (2, 1), "ranges": FAST, "progress": False}


def _blobs(count: int = 60, side: int = 5) -> ClassificationData:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (count,), generator=generator)
    images = torch.randn(count, 1, side, side, generator=generator) + labels[:, None, None, None]
    return ClassificationData(images[:40], labels[:40], images[40:], labels[40:])


BLOBS = _blobs()


def _double(data: ClassificationData, flat: bool = False) -> ClassificationData:
    images, test_images = (part.double().flatten(1) if flat else part.double() for part in (data.images, data.test_images))
    return data._replace(images=images, test_images=test_images)


# == Digits ==


def test_digits() -> None:
    data = digits()
    assert [len(part) for part in data] == [1297, 1297, 500, 500]
    assert (data.images.min(), data.images.max()) == (-1, 1)
    assert data.labels.unique().tolist() == list(range(10))
    every = torch.cat([data.images, data.test_images]).flatten(1)
    assert torch.equal(every.sum(1).sort().values, torch.cat([digits(1).images, digits(1).test_images]).flatten(1).sum(1).sort().values)
    assert torch.equal(digits().test_images, data.test_images)
    assert not torch.equal(digits(1).test_labels, data.test_labels)


# == Hyperparameters ==


def test_hyperparameters_fill_their_ranges() -> None:
    ranges = HyperparameterRanges(steps=(1, 3), training_fraction=(0.5, 1.0))
    drawn = ranges.sample(CounterRandom(0), torch.arange(4000))
    for name in ("learning_rate", "initial_scale", "weight_decay"):
        low, high = getattr(ranges, name)
        position = (drawn[name] / low).log() / np.log(high / low)
        assert position.min() >= 0
        assert position.max() <= 1
        assert float(position.mean()) == pytest.approx(0.5, abs=0.02), name
    assert float(drawn["dropout"].mean()) == pytest.approx(sum(ranges.dropout) / 2, abs=0.01)
    # Log-uniform on [1, 4), rounded down: 1, 2 and 3 with probabilities log 2, log 3/2 and log 4/3 over log 4.
    shares = torch.bincount(drawn["steps"], minlength=4)[1:] / 4000
    assert shares.tolist() == pytest.approx([0.5, 0.2925, 0.2075], abs=0.03)
    assert float((drawn["training_fraction"] == 1).double().mean()) == pytest.approx(0.5, abs=0.03)


def test_hyperparameters_belong_to_the_network() -> None:
    every = HyperparameterRanges().sample(CounterRandom(2), torch.arange(50))
    some = HyperparameterRanges().sample(CounterRandom(2), torch.tensor([40, 7]))
    assert all(torch.equal(some[name], every[name][[40, 7]]) for name in every)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"learning_rate": (0, 1)}, "'learning_rate' to be a lowest and a highest value, positive and finite"),
        ({"initial_scale": (2, 1)}, "'initial_scale' to be a lowest and a highest value"),
        ({"weight_decay": (1, float("inf"))}, "'weight_decay'"),
        ({"dropout": (0.5, 1.0)}, "'dropout' to be a lowest and a highest value, at least 0 and below 1"),
        ({"steps": (0, 5)}, "'steps'"),
        ({"steps": (5,)}, "'steps'"),
        ({"training_fraction": ()}, "'training_fraction' to hold values above 0 and at most 1"),
        ({"training_fraction": (0.5, 1.5)}, "'training_fraction'"),
    ],
)
def test_bad_ranges(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HyperparameterRanges(**options)


# == Training ==


def test_initialisation() -> None:
    space = WeightSpace.cnn([1, 16, 16], [10])
    thetas = initial_thetas(space, CounterRandom(0), torch.arange(200), torch.full((200,), 0.5))
    tensors = space.unflatten(thetas)
    for name, fan_in in (("layers.0.weight", 9), ("layers.1.weight", 144), ("layers.2.weight", 16)):
        assert float(tensors[name].std()) == pytest.approx(0.5 * (2 / fan_in) ** 0.5, rel=0.02)
    assert not tensors["layers.1.bias"].any()


def _plain_loop(space: WeightSpace, data: ClassificationData, network: int, hyper: Mapping[str, Tensor], seed: int, batch: int) -> Tensor:
    """One network, torch modules and torch.optim.AdamW, with the same random numbers."""
    random, number = CounterRandom(seed), torch.tensor([network])
    h = {name: values[network : network + 1] for name, values in hyper.items()}
    model = nn.ModuleList([nn.Conv2d(1, 3, 3, 2, 1), nn.Conv2d(3, 4, 3, 1, 1), nn.Linear(4, 3)]).double()
    tensors = space.unflatten(initial_thetas(space, random, number, h["initial_scale"])[0])
    model.load_state_dict({name.removeprefix("layers."): tensor for name, tensor in tensors.items()})
    optimizer = torch.optim.AdamW(model.parameters(), lr=float(h["learning_rate"]), weight_decay=float(h["weight_decay"]))
    order, count = training_examples(random, number, h["training_fraction"], len(data.images))
    rate = float(h["dropout"])
    for step in range(int(h["steps"])):
        chosen = order[0, (random.uniform(number, "minibatch", (batch,), step=step)[0] * count).long()]
        kept = (random.uniform(number, "dropout", (batch, 7), step=step)[0] >= rate) / (1 - rate)
        values = F.relu(model[0](data.images[chosen])) * kept[:, :3, None, None]
        values = F.relu(model[1](values)).mean((2, 3)) * kept[:, 3:]
        optimizer.zero_grad()
        F.cross_entropy(model[2](values), data.labels[chosen]).backward()
        optimizer.step()
    return space.flatten({f"layers.{name}": tensor for name, tensor in model.state_dict().items()})


def test_population_equals_networks_trained_one_by_one() -> None:
    space = WeightSpace.cnn([1, 3, 4], [3], "relu", stride=(2, 1), padding=1)
    data, networks = _double(BLOBS), torch.arange(8)
    ranges = HyperparameterRanges(steps=(5, 30), learning_rate=(1e-3, 5e-2))
    hyper = ranges.sample(CounterRandom(4), networks)
    assert len(hyper["steps"].unique()) > 3
    thetas = train_population(space, data, networks, hyper, seed=4, batch_size=6)
    for i in range(8):
        alone = train_population(space, data, networks[i : i + 1], {k: v[i : i + 1] for k, v in hyper.items()}, seed=4, batch_size=6)
        torch.testing.assert_close(thetas[i], alone[0], rtol=0, atol=1e-8)
        torch.testing.assert_close(thetas[i], _plain_loop(space, data, i, hyper, 4, 6), rtol=0, atol=1e-8)
    start = initial_thetas(space, CounterRandom(4), networks, hyper["initial_scale"])
    assert (thetas - start).abs().amax(1).min() > 1e-3


@pytest.mark.parametrize(
    "space",
    [
        WeightSpace.cnn([1, 3, 4], [6, 3], "tanh", stride=2, padding=1, readout="flatten", positions=4),
        WeightSpace.mlp([25, 6, 3], "gelu", bias=False),
        WeightSpace.mlp([25, 3]),
    ],
    ids=["cnn_flatten", "mlp_no_bias", "linear"],
)
def test_any_classifier_trains(space: WeightSpace) -> None:
    data = _double(BLOBS, flat=len(space.params[0].shape) == 2)
    hyper = HyperparameterRanges(steps=(150, 150), learning_rate=(2e-2, 2e-2), dropout=(0.1, 0.1), training_fraction=(1.0,)).sample(
        CounterRandom(0), torch.arange(4)
    )
    thetas = train_population(space, data, torch.arange(4), hyper)
    metrics = evaluate_population(space, data, thetas, torch.arange(4), hyper["training_fraction"])
    assert metrics["train_accuracy"].min() > 0.75
    assert metrics["train_loss"].max() < 0.6


def test_general_networks_train() -> None:
    space, generator = residual_space("relu"), torch.Generator().manual_seed(0)
    images = torch.randn(40, 3, generator=generator)
    labels = (images.sum(1) > 0).long()
    hyper = HyperparameterRanges(steps=(100, 100), learning_rate=(2e-2, 2e-2), training_fraction=(1.0,)).sample(
        CounterRandom(0), torch.arange(3)
    )
    data = ClassificationData(images, labels, images, labels)
    thetas = train_population(space, data, torch.arange(3), hyper)
    assert evaluate_population(space, data, thetas, torch.arange(3), hyper["training_fraction"])["test_accuracy"].min() > 0.9


def test_networks_see_only_their_fraction_of_the_training_set() -> None:
    space, networks = WeightSpace.mlp([25, 6, 3]), torch.arange(2)
    data = _double(BLOBS, flat=True)
    hyper = HyperparameterRanges(steps=(20, 20), training_fraction=(0.25,)).sample(CounterRandom(0), networks)
    order, count = training_examples(CounterRandom(0), networks, hyper["training_fraction"], 40)
    assert count.tolist() == [10, 10]
    assert order.sort(1).values.tolist() == [list(range(40))] * 2
    assert not torch.equal(order[0], order[1])
    thetas = train_population(space, data, networks, hyper)
    for network, (seen, unseen) in enumerate(zip(order[:, :10], order[:, 10:], strict=True)):
        results = []
        for spoiled in (seen, unseen):
            images = data.images.clone()
            images[spoiled] += 1
            results.append(train_population(space, data._replace(images=images), networks, hyper)[network])
        assert not torch.allclose(results[0], thetas[network])
        assert torch.equal(results[1], thetas[network])
    assert training_examples(CounterRandom(0), networks, torch.tensor([1e-9, 1.0]), 40)[1].tolist() == [1, 40]


def test_dropout_matters_and_rates_differ_by_network() -> None:
    space, data, networks = WeightSpace.mlp([25, 6, 3]), _double(BLOBS, flat=True), torch.arange(3)
    hyper = HyperparameterRanges(steps=(10, 10), dropout=(0, 0)).sample(CounterRandom(0), networks)
    plain = train_population(space, data, networks, hyper)
    mixed = train_population(space, data, networks, {**hyper, "dropout": torch.tensor([0.0, 0.5, 0.0], dtype=torch.float64)})
    same = [bool(torch.allclose(a, b, rtol=0, atol=1e-10)) for a, b in zip(plain, mixed, strict=True)]
    assert same == [True, False, True]


def test_progress_is_reported_per_network_step() -> None:
    space, data, networks = WeightSpace.mlp([25, 6, 3]), _double(BLOBS, flat=True), torch.arange(5)
    hyper = FAST.sample(CounterRandom(0), networks)
    done: list[int] = []
    train_population(space, data, networks, hyper, advance=done.append)
    assert sum(done) == int(hyper["steps"].sum())
    assert len(done) == int(hyper["steps"].max())


# == Zoos ==


def _contents(store: ZooStore) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in store.path.iterdir() if file.name != "table.npz"} | {
        name: column.tobytes() for name, column in store.table.items()
    }


def test_what_is_recorded_is_true(tmp_path: Path) -> None:
    store = make_cnn_zoo(tmp_path / "zoo", 30, "tanh", seed=3, data=BLOBS, population=8, **SMALL)
    space = store.space
    assert space == WeightSpace.cnn([1, 3, 4], [3], "tanh", stride=(2, 1), padding=1)
    assert len(store) == 30
    assert store.table["network"].tolist() == list(range(30))
    assert set(store.table["seed"]) == {3}
    hyper = FAST.sample(CounterRandom(3), torch.arange(30))
    assert all(store.table[name].tolist() == values.tolist() for name, values in hyper.items())
    logits = space.evaluate(store.thetas, BLOBS.test_images)
    assert store.table["test_accuracy"].tolist() == (logits.argmax(2) == BLOBS.test_labels).double().mean(1).tolist()
    losses = torch.stack([F.cross_entropy(row, BLOBS.test_labels) for row in logits])
    torch.testing.assert_close(torch.from_numpy(store.table["test_loss"]).float(), losses, rtol=1e-5, atol=1e-6)
    order, count = training_examples(CounterRandom(3), torch.arange(30), hyper["training_fraction"], 40)
    assert len(count.unique()) > 2
    for i in range(30):
        seen = order[i, : count[i]]
        logits = space.evaluate(store.thetas[i : i + 1], BLOBS.images[seen])[0]
        assert store.table["train_accuracy"][i] == pytest.approx(float((logits.argmax(1) == BLOBS.labels[seen]).double().mean()))
        assert store.table["train_loss"][i] == pytest.approx(float(F.cross_entropy(logits, BLOBS.labels[seen])), rel=1e-5)
    assert store.info["made_by"] == "wsgraph.data.make_zoo"
    assert store.info["configuration"]["steps"] == [4, 9]
    assert [file.name for file in tmp_path.iterdir()] == ["zoo"]


def test_splits_have_fixed_shares_and_do_not_depend_on_the_size() -> None:
    random = CounterRandom(0)
    splits = populations._splits(random, torch.arange(1000))
    for block in range(100):
        part = splits[10 * block : 10 * block + 10]
        assert [part.count(name) for name in ("train", "val", "test")] == [6, 1, 3]
    assert populations._splits(random, torch.tensor([537, 12])) == [splits[537], splits[12]]
    first = [splits[i] for i in range(0, 1000, 10)]
    assert 45 <= first.count("train") <= 75


def test_the_same_seed_gives_the_same_zoo_whatever_the_population(tmp_path: Path) -> None:
    options = {"data": _double(BLOBS), "dtype": torch.float64, **SMALL}
    eights = make_cnn_zoo(tmp_path / "eights", 20, population=8, **options)
    ones = make_cnn_zoo(tmp_path / "ones", 20, population=1, **options)
    longer = make_cnn_zoo(tmp_path / "longer", 23, population=8, **options)
    other = make_cnn_zoo(tmp_path / "other", 20, population=8, seed=1, **options)
    assert eights.thetas.dtype == torch.float64
    torch.testing.assert_close(eights.thetas, ones.thetas, rtol=0, atol=1e-8)
    torch.testing.assert_close(eights.thetas, longer.thetas[:20], rtol=0, atol=1e-8)
    assert eights.table["split"].tolist() == ones.table["split"].tolist() == longer.table["split"].tolist()[:20]
    assert not torch.allclose(eights.thetas, other.thetas)


def test_an_interrupted_run_resumes_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"data": BLOBS, "population": 4, "workers": 1, **SMALL}
    whole = make_cnn_zoo(tmp_path / "whole" / "zoo", 18, **options)
    original = populations.train_population
    calls: list[Tensor] = []

    def stop_after_three(*arguments: Any, **keywords: Any) -> Tensor:
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(arguments[2])
        return original(*arguments, **keywords)

    path = tmp_path / "stopped" / "zoo"
    monkeypatch.setattr(populations, "train_population", stop_after_three)
    with pytest.raises(KeyboardInterrupt):
        make_cnn_zoo(path, 18, **options)
    assert not path.exists()
    kept = sorted(file.name for file in (tmp_path / "stopped" / "zoo.partial").iterdir())
    assert kept == ["configuration.json", *(f"population-0000{i}.safetensors" for i in range(3))]

    calls.clear()

    def count(*arguments: Any, **keywords: Any) -> Tensor:
        calls.append(arguments[2])
        return original(*arguments, **keywords)

    monkeypatch.setattr(populations, "train_population", count)
    resumed = make_cnn_zoo(path, 18, **options)
    assert [len(members) for members in calls] == [4, 2]
    assert _contents(resumed) == _contents(whole)
    assert [file.name for file in path.parent.iterdir()] == ["zoo"]


def test_workers_do_not_change_the_zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = make_cnn_zoo(tmp_path / "one", 20, data=BLOBS, population=3, workers=1, **SMALL)
    original = populations.train_population
    meeting = threading.Barrier(3, timeout=30)
    threads: list[int] = []

    def meet(*arguments: Any, **keywords: Any) -> Tensor:
        if len(threads) < 3:
            threads.append(torch.get_num_threads())
            meeting.wait()  # passes only if three populations are trained at a time
        return original(*arguments, **keywords)

    monkeypatch.setattr(populations, "train_population", meet)
    before = torch.get_num_threads()
    three = make_cnn_zoo(tmp_path / "three", 20, data=BLOBS, population=3, workers=3, **SMALL)
    assert _contents(one) == _contents(three)
    assert threads == [1, 1, 1]
    assert torch.get_num_threads() == before


def test_an_error_stops_all_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = populations.train_population
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

    monkeypatch.setattr(populations, "train_population", fail_second)
    ranges = HyperparameterRanges(steps=(2000, 2000))
    with pytest.raises(RuntimeError, match="the second population fails"):
        make_cnn_zoo(tmp_path / "zoo", 9, data=BLOBS, population=3, workers=2, **{**SMALL, "ranges": ranges})
    assert 0 < len(steps) < 1000
    assert [file.name for file in (tmp_path / "zoo.partial").iterdir()] == ["configuration.json"]


def test_a_write_that_fails_leaves_no_half_population(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(tensors: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(populations, "save_file", fail)
    with pytest.raises(OSError, match=r"No space left on device.*on a disk with space"):
        make_cnn_zoo(tmp_path / "zoo", 4, data=BLOBS, **SMALL)
    assert [file.name for file in (tmp_path / "zoo.partial").iterdir()] == ["configuration.json"]


def test_another_configuration_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> Tensor:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(populations, "train_population", interrupt)
        with pytest.raises(KeyboardInterrupt):
            make_cnn_zoo(tmp_path / "zoo", 4, data=BLOBS, **SMALL)
    message = r"unfinished zoo in .*zoo\.partial' was begun with another configuration \(seed: 0 there, 1 now\)"
    with pytest.raises(ValueError, match=message):
        make_cnn_zoo(tmp_path / "zoo", 4, data=BLOBS, seed=1, **SMALL)
    with pytest.raises(
        ValueError, match=r"networks: 4 there, 5 now; steps: \[4, 9\] there, \[4, 8\] now.*delete that folder to start over"
    ):
        make_cnn_zoo(tmp_path / "zoo", 5, data=BLOBS, **{**SMALL, "ranges": HyperparameterRanges(steps=(4, 8))})
    make_cnn_zoo(tmp_path / "zoo", 4, data=BLOBS, **SMALL)
    with pytest.raises(ValueError, match=r"was made with another configuration \(space: .*relu.* there, .*tanh.* now\)"):
        make_cnn_zoo(tmp_path / "zoo", 4, "tanh", data=BLOBS, **SMALL)
    with pytest.raises(ValueError, match=r"another configuration \(data: 40 \+ 20 examples \w+ there, 40 \+ 20 examples \w+ now\)"):
        make_cnn_zoo(tmp_path / "zoo", 4, data=BLOBS._replace(images=BLOBS.images + 1), **SMALL)


def test_a_finished_zoo_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make_cnn_zoo(tmp_path / "zoo", 4, data=BLOBS, **SMALL)
    monkeypatch.setattr(populations, "train_population", lambda *_, **__: pytest.fail("trained again"))
    assert _contents(make_cnn_zoo(tmp_path / "zoo", 4, data=BLOBS, **SMALL)) == _contents(first)


def test_other_things_at_the_path(tmp_path: Path) -> None:
    space = WeightSpace.mlp([25, 6, 3])
    ZooStore.create(tmp_path / "foreign", space, space.sample(2), {})
    with pytest.raises(ValueError, match="was not made by make_zoo"):
        make_cnn_zoo(tmp_path / "foreign", 4, data=BLOBS, **SMALL)
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        make_cnn_zoo(tmp_path / "file", 4, data=BLOBS, **SMALL)
    with pytest.raises(OSError, match=r"Cannot write to .*Choose a path"):
        make_cnn_zoo(tmp_path / "file" / "zoo", 4, data=BLOBS, **SMALL)
    (tmp_path / "zoo.partial").mkdir()
    (tmp_path / "zoo.partial" / "configuration.json").write_text("{")
    with pytest.raises(ValueError, match=r"configuration\.json' is damaged .* Delete the folder"):
        make_cnn_zoo(tmp_path / "zoo", 4, data=BLOBS, **SMALL)


def test_diverged_networks_are_kept_out_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = populations.train_population

    def diverge(space: WeightSpace, data: ClassificationData, networks: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
        thetas = original(space, data, networks, *arguments, **keywords)
        thetas[networks == 2, 7] = torch.nan
        thetas[networks == 5] = 1e38  # finite weights whose outputs overflow
        return thetas

    monkeypatch.setattr(populations, "train_population", diverge)
    store = make_cnn_zoo(tmp_path / "zoo", 8, data=BLOBS, population=3, **SMALL)
    assert store.table["network"].tolist() == [0, 1, 3, 4, 6, 7]
    assert store.info["dropped_non_finite"] == 2
    assert all(np.isfinite(store.table[name]).all() for name in ("train_loss", "test_loss"))
    monkeypatch.setattr(populations, "train_population", lambda space, data, networks, *_, **__: space.sample(len(networks)) * torch.nan)
    with pytest.raises(ValueError, match=r"All 4 networks diverged. Lower 'learning_rate'.*delete the folder '.*none.partial'"):
        make_cnn_zoo(tmp_path / "none", 4, data=BLOBS, **SMALL)


def test_divergence_stays_with_its_network() -> None:
    space, data, networks = WeightSpace.mlp([25, 6, 3]), _double(BLOBS, flat=True), torch.arange(3)
    hyper = FAST.sample(CounterRandom(0), networks)
    calm = train_population(space, data, networks, hyper)
    wild = train_population(space, data, networks, {**hyper, "learning_rate": hyper["learning_rate"] * torch.tensor([1, torch.inf, 1])})
    assert not wild[1].isfinite().all()
    assert torch.equal(wild[[0, 2]], calm[[0, 2]])


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


def test_configuration_is_plain_json(tmp_path: Path) -> None:
    store = make_cnn_zoo(tmp_path / "zoo", 4, data=BLOBS, **SMALL)
    configuration = json.loads((store.path / "zoo.json").read_text())["info"]["configuration"]
    assert configuration["networks"] == 4
    assert configuration["dtype"] == "float32"
