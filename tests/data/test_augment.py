"""Zoos with copies, as published."""

from pathlib import Path

import pytest
import torch

from wsgraph import WeightSpace
from wsgraph.data import ZooStore, augment_zoo
from wsgraph.data import dataset as dataset_module
from wsgraph.data.transforms import RandomSymmetry


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_every_network_is_followed_by_copies_of_its_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, activation: str) -> None:
    space = WeightSpace.cnn([1, 4, 3], [2], activation, padding=1)
    thetas = space.sample(7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    table = {"test_accuracy": torch.rand(7), "split": ["train"] * 4 + ["test"] * 3}
    store = ZooStore.create(tmp_path / "zoo", space, thetas, table)
    monkeypatch.setattr(dataset_module, "_BLOCK_BYTES", 8 * 3 * space.num_params * 2)
    made = augment_zoo(tmp_path / "triple", store, RandomSymmetry((1, 100), distribution="uniform"), factor=3)
    assert torch.equal(made.thetas[::3], thetas)
    assert made.column("original").tolist() == [i for i in range(7) for _ in range(3)]
    assert made.column("copy").tolist() == [0, 1, 2] * 7
    assert made.splits == {"train": 12, "test": 9}
    inputs = space.example_inputs(5, dtype=torch.float64)
    for copy in (1, 2):
        assert not torch.equal(made.thetas[copy::3], thetas)
        torch.testing.assert_close(space.evaluate(made.thetas[copy::3], inputs), space.evaluate(thetas, inputs), rtol=1e-9, atol=1e-9)
    assert not torch.equal(made.thetas[1::3], made.thetas[2::3])
    assert made.info["augmented"]["factor"] == 3
    part = augment_zoo(tmp_path / "part", store.dataset("test"), RandomSymmetry((1, 100)), factor=1)
    assert torch.equal(part.thetas, thetas[4:])
    with pytest.raises(ValueError, match="without a transform of its own"):
        augment_zoo(tmp_path / "none", store.dataset().with_transform(RandomSymmetry()), RandomSymmetry())
    with pytest.raises(ValueError, match="'factor' to be a positive integer"):
        augment_zoo(tmp_path / "none", store, RandomSymmetry(), factor=0)


def test_several_architectures(tmp_path: Path) -> None:
    spaces = [WeightSpace.mlp([2, 3, 1]), WeightSpace.mlp([2, 4, 1])]
    with ZooStore.writing(tmp_path / "zoo") as store:
        for space in (*spaces, spaces[0]):
            store.append(space, space.sample(2), {"test_accuracy": [0.1, 0.2]})
    made = augment_zoo(tmp_path / "double", store, RandomSymmetry())
    assert made.spaces == spaces
    assert made.column("original").tolist() == [0, 0, 1, 1, 4, 4, 5, 5, 2, 2, 3, 3]
