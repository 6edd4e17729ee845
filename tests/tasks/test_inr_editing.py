"""Editing pictures by editing the networks that draw them."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wsgraph import WeightSpace
from wsgraph.data import ZooStore
from wsgraph.nn import build_model
from wsgraph.space import Signal
from wsgraph.tasks import Result, TrainedModel, run
from wsgraph.tasks.inr_editing import OPERATIONS, Editor, edit_pictures

SPACE = WeightSpace.siren([2, 8, 8, 1], 5.0, signal=Signal((7, 6), "row", 0.0, (-1, 1)))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ZooStore:
    thetas = SPACE.sample(160, generator=torch.Generator().manual_seed(0))
    split = ["train" if i % 4 < 2 else "val" if i % 4 < 3 else "test" for i in range(160)]
    return ZooStore.create(tmp_path_factory.mktemp("zoos") / "inrs", SPACE, thetas, {"split": split})


def train(store: ZooStore, output: Path, **options: Any) -> Result:
    options = {
        "model": "monomial_gnn",
        "model_options": {"channels": 8, "rounds": 1},
        "epochs": 2,
        "batch_size": 16,
        "progress": False,
        "intervals": 0,
    } | options
    return run("inr_editing", zoo=store, output=output, **options)


# == Operations ==


def _loop(picture: np.ndarray, operation: str) -> np.ndarray:
    """Pixel by pixel; edges repeat as scipy reflects them."""
    height, width = picture.shape
    result = np.empty_like(picture)
    around = np.pad(picture, 1, mode="symmetric")
    for i, j in itertools.product(range(height), range(width)):
        nine, four = around[i : i + 3, j : j + 3], around[i : i + 2, j : j + 2]
        result[i, j] = {
            "dilate": nine.max(),
            "erode": four.min(),
            "sharpen": 3 * picture[i, j] - 0.25 * (nine.sum() - picture[i, j]),
            "contrast": picture.mean() + 1.5 * (picture[i, j] - picture.mean()),
        }[operation]
    return np.clip(result, 0, 1)


@pytest.mark.parametrize("operation", ["dilate", "erode", "sharpen", "contrast"])
def test_operations(operation: str) -> None:
    pictures = torch.rand(3, 1, 7, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = np.stack([_loop(picture[0].numpy(), operation) for picture in pictures])
    np.testing.assert_allclose(edit_pictures(pictures, operation)[:, 0].numpy(), expected, atol=1e-12)


def test_gradient_is_what_dilating_adds_to_eroding() -> None:
    step = torch.zeros(1, 1, 6, 6)
    step[..., 3:] = 1
    edited = edit_pictures(step, "gradient")
    assert edited[0, 0, 2].count_nonzero() in (1, 2)
    assert edited.sum() == edited[0, 0, 0].sum() * 6
    assert not edit_pictures(torch.full((1, 1, 6, 6), 0.3), "gradient").any()


@pytest.mark.parametrize("operation", OPERATIONS)
def test_channels_are_edited_apart_and_values_stay_in_range(operation: str) -> None:
    pictures = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)) * 3 - 1
    edited = edit_pictures(pictures, operation)
    assert 0 <= float(edited.min()) <= float(edited.max()) <= 1
    if operation != "contrast":
        assert torch.equal(edited[:, 1:2], edit_pictures(pictures[:, 1:2], operation))


# == The task ==


def test_it_learns_and_is_scored(store: ZooStore, tmp_path: Path) -> None:
    result = train(store, tmp_path / "run", epochs=20, learning_rate=1e-2)
    assert result.metrics["mse"] < 0.9 * result.metrics["mse_unedited"]
    assert result.metrics["mse_scale_1"] == pytest.approx(result.metrics["mse"], rel=1e-3)
    assert result.config["operation"] == "dilate"
    batch = store.dataset("test", target=None).batch([0, 1])
    with torch.no_grad():
        edited = result.model.edit(batch)  # type: ignore[operator]
        pictures = result.model(batch)
    torch.testing.assert_close(pictures[:, 0], (SPACE.render(edited) + 1) / 2)
    torch.testing.assert_close(pictures[:, 2], (SPACE.render(batch.thetas()) + 1) / 2)
    torch.testing.assert_close(pictures[:, 1], edit_pictures(pictures[:, 2], "dilate"))


def test_a_model_that_says_nothing_leaves_the_networks_as_they_are() -> None:
    editor = Editor(build_model("np", SPACE, 1, task="equivariant", channels=(4,)), SPACE, "erode")
    with torch.no_grad():
        editor.scales.zero_()
        batch = SPACE.batch(SPACE.sample(3))
        assert torch.equal(editor.edit(batch), batch.thetas())


def test_standardized_models_read_and_say_multiples_of_the_spread(store: ZooStore, tmp_path: Path) -> None:
    result = train(store, tmp_path / "run", model="magep", model_options={"channels": (4,)}, standardize=True)
    trained = TrainedModel.load(tmp_path / "run")
    assert trained.evaluate(store)["mse"] == pytest.approx(result.metrics["mse"])
    editor = trained.module.double()
    assert isinstance(editor, Editor)
    thetas = SPACE.sample(3).double()
    spread = torch.cat([torch.full((param.size,), result.config["standardize"][param.name]) for param in SPACE.params])
    drawn = store.thetas[store.split("train")][:, SPACE.slices["layers.0.weight"]].std(unbiased=False)
    assert float(spread[0]) == pytest.approx(float(drawn), rel=1e-5)
    with torch.no_grad():
        change = editor.model(SPACE.batch(thetas / spread))[:, :, 0]
        factors = editor.scales.repeat_interleave(editor.sizes)
        torch.testing.assert_close(editor.edit(SPACE.batch(thetas)), thetas + factors * spread * change)
        g = SPACE.sample_symmetry(3, generator=torch.Generator().manual_seed(0))
        moved = editor.edit(SPACE.batch(SPACE.act(g, thetas)))
        torch.testing.assert_close(moved, SPACE.act(g, editor.edit(SPACE.batch(thetas))))
        torch.testing.assert_close(SPACE.render(SPACE.act(g, thetas)), SPACE.render(thetas))
    plain = train(store, tmp_path / "plain", model="magep", model_options={"channels": (4,)})
    assert plain.metrics["mse"] != result.metrics["mse"]


def test_errors(store: ZooStore, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'operation' to be one of dilate, erode, .* \(got 'blur'\)"):
        train(store, tmp_path / "run", operation="blur")
    space = WeightSpace.mlp([2, 3, 1], "sin(30)")
    other = ZooStore.create(tmp_path / "zoo", space, space.sample(6), {"split": ["train", "val", "test"] * 2})
    with pytest.raises(ValueError, match="Expected networks that represent pictures"):
        train(other, tmp_path / "run")
    with pytest.raises(ValueError, match="statnn"):
        train(store, tmp_path / "run", model="statnn", model_options={})


def test_further_zoos(store: ZooStore, tmp_path: Path) -> None:
    result = train(store, tmp_path / "run", test_zoos={"same": store})
    assert result.metrics["mse_on_same"] == result.metrics["mse"]
    other = WeightSpace.siren([2, 6, 6, 1], 5.0, signal=SPACE.signal)
    wrong = ZooStore.create(tmp_path / "other", other, other.sample(4), {"split": ["test"] * 4})
    with pytest.raises(ValueError, match="'test_zoos' 'other' cannot be scored on: Expected networks of WeightSpace"):
        train(store, tmp_path / "run", test_zoos={"other": wrong})
