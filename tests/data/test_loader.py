"""The loader against PyG's own, batch by batch."""

from pathlib import Path

import pytest
import torch
from torch_geometric.loader import DataLoader as PyGDataLoader

from wsgraph import ParameterGraph, WeightSpace
from wsgraph.data import DataLoader, ZooDataset, ZooStore

SPACE = WeightSpace.cnn([1, 4, 3], [2], "relu", padding=1)


@pytest.fixture
def dataset(tmp_path: Path) -> ZooDataset:
    thetas = SPACE.sample(20, generator=torch.Generator().manual_seed(0))
    table = {"test_accuracy": torch.arange(20) / 20, "split": ["test", *["train"] * 17, "test", "test"]}
    return ZooStore.create(tmp_path / "zoo", SPACE, thetas, table).dataset("train")


def _assert_equal(batch: ParameterGraph, expected: ParameterGraph) -> None:
    keys = set(expected.keys())
    assert set(batch.keys()) == keys
    for key in sorted(keys - {"space"}):
        assert torch.equal(batch[key], expected[key]), key
    assert batch.num_networks == expected.num_networks
    assert batch["space"] == expected["space"]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("drop_last", [False, True])
def test_batches_equal_those_of_pyg(dataset: ZooDataset, shuffle: bool, drop_last: bool) -> None:
    loaders = [
        kind(dataset, batch_size=4, shuffle=shuffle, drop_last=drop_last, generator=torch.Generator().manual_seed(5))
        for kind in (DataLoader, PyGDataLoader)
    ]
    assert len(loaders[0]) == len(loaders[1]) == (4 if drop_last else 5)
    epochs = []
    for _ in range(2):
        batches = [list(loader) for loader in loaders]
        for batch, expected in zip(*batches, strict=True):
            _assert_equal(batch, expected)
        epochs.append(torch.cat([batch.y for batch in batches[0]]))
    assert torch.equal(epochs[0], epochs[1]) != shuffle


def test_transform_acts_on_the_flat_weights(dataset: ZooDataset) -> None:
    g = SPACE.sample_symmetry(17, generator=torch.Generator().manual_seed(1))
    (batch,) = DataLoader(dataset, transform=lambda thetas: SPACE.act(g, thetas))
    assert torch.equal(batch.thetas(), SPACE.act(g, dataset.thetas))
    assert torch.equal(batch.y, dataset.y)


def test_workers(dataset: ZooDataset) -> None:
    batches = list(DataLoader(dataset, 10, num_workers=1))
    assert torch.equal(torch.cat([batch.thetas() for batch in batches]), dataset.thetas)


def test_bad_batch_size(dataset: ZooDataset) -> None:
    with pytest.raises(ValueError, match="batch_size should be a positive integer"):
        DataLoader(dataset, 0)
