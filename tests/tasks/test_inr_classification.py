"""Classifying networks by what they represent."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from wsgraph import WeightSpace
from wsgraph.data import ZooStore
from wsgraph.data.transforms import RandomINRTransform
from wsgraph.space import Signal
from wsgraph.tasks import Result, TrainedModel, run

SPACE = WeightSpace.siren([2, 6, 5, 1], signal=Signal((8, 8), offset=0.5))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ZooStore:
    """Networks whose class is the brightness of what they draw, in thirds."""
    thetas = SPACE.sample(240, generator=torch.Generator().manual_seed(0))
    last = SPACE.slices["layers.2.bias"]
    thetas[:, last] *= 10
    label = thetas[:, last].flatten().argsort().argsort() // 80
    split = ["train" if i % 4 < 2 else "val" if i % 4 < 3 else "test" for i in range(240)]
    return ZooStore.create(tmp_path_factory.mktemp("zoos") / "inrs", SPACE, thetas, {"label": label, "split": split, "half": label / 2})


def train(store: ZooStore, output: Path, model: str = "statnn", **options: Any) -> Result:
    options = {"epochs": 3, "batch_size": 32, "progress": False, "intervals": 0} | options
    return run("inr_classification", zoo=store, model=model, output=output, **options)


def test_it_learns_and_is_scored(store: ZooStore, tmp_path: Path) -> None:
    result = train(store, tmp_path / "run", "monomial_gnn", epochs=15, model_options={"channels": 8, "rounds": 1}, learning_rate=1e-2)
    assert result.metrics["accuracy"] > 0.6
    assert result.metrics["accuracy_scale_1"] == pytest.approx(result.metrics["accuracy"], abs=0.02)
    assert result.metrics["cross_entropy"] < math.log(3)
    assert "val_accuracy" in (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0]
    assert result.config["target"] == "label"


@pytest.mark.parametrize("canonicalize", [["phase"], ["phase", "sign"], ["phase", "sign", "order"]])
def test_canonical_weights(store: ZooStore, tmp_path: Path, canonicalize: list[str]) -> None:
    plain, settled = train(store, tmp_path / "a"), train(store, tmp_path / "b", canonicalize=canonicalize)
    assert plain.metrics["cross_entropy"] != settled.metrics["cross_entropy"]
    if "sign" in canonicalize:  # statistics do not see the order of neurons, and signs are settled
        assert settled.metrics["cross_entropy_scale_1"] == pytest.approx(settled.metrics["cross_entropy"], abs=1e-3)


def test_pictures_moved_in_training(store: ZooStore, tmp_path: Path) -> None:
    result = train(store, tmp_path / "run", augment=RandomINRTransform(angle=10, translation=0.1), canonicalize=["phase"])
    assert math.isfinite(result.metrics["accuracy"])
    assert "RandomINRTransform(angle=10" in result.config["augment"]


def test_targets_must_be_classes(store: ZooStore, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"The column 'half' cannot be predicted: Expected classes to be strings, booleans or integers"):
        train(store, tmp_path / "run", target="half")


@pytest.mark.parametrize("canonicalize", [(), ("phase", "sign")])
def test_standardized_networks_keep_their_symmetries(store: ZooStore, tmp_path: Path, canonicalize: tuple[str, ...]) -> None:
    options: dict[str, Any] = {
        "model": "scalegmn",
        "epochs": 1,
        "progress": False,
        "intervals": 0,
        "model_options": {"channels": 4, "layers": 1},
    }
    result = run("inr_classification", zoo=store, standardize=True, canonicalize=canonicalize, output=tmp_path / "run", **options)
    trained = TrainedModel.load(tmp_path / "run")
    prepared = trained.fixed.weights(store.space, store.thetas[store.split("train")].double())  # type: ignore[union-attr]
    for param in store.space.params:
        assert float(prepared[:, store.space.slices[param.name]].std(unbiased=False)) == pytest.approx(1, rel=1e-5)
    assert trained.evaluate(store)["accuracy"] == result.metrics["accuracy"]
    thetas = store.thetas[:4].double()
    g = store.space.sample_symmetry(4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(trained.predict(store.space, store.space.act(g, thetas)), trained.predict(store.space, thetas))


def test_standardizing_is_refused_where_it_makes_no_sense(tmp_path: Path) -> None:
    table = {"label": [0, 1] * 3, "split": ["train", "train", "val", "val", "test", "test"]}
    spaces = [WeightSpace.mlp([2, width, 1]) for width in (3, 4)]
    parts = [ZooStore.create(tmp_path / f"{i}", space, space.sample(6), table) for i, space in enumerate(spaces)]
    mixed = ZooStore.merge(tmp_path / "mixed", parts)
    with pytest.raises(ValueError, match=r"'standardize' is for networks of one architecture \(got ZooDataset"):
        train(mixed, tmp_path / "run", "neural_graph", standardize=True)
