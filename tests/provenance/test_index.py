"""Networks of a zoo that are like a given one."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.tasks.test_generalization import make_store
from wsgraph import SpaceMismatchError, WeightSpace
from wsgraph.data import ZooStore
from wsgraph.provenance import duplicates
from wsgraph.search import Index, WeightFeatures
from wsgraph.tasks import TrainedModel, run

SPACE = WeightSpace.cnn([1, 8, 8], [4])


def _zoo(path: Path, count: int = 60, space: WeightSpace = SPACE, seed: int = 0) -> ZooStore:
    thetas = space.sample(count, generator=torch.Generator().manual_seed(seed))
    return ZooStore.create(path, space, thetas, {"test_accuracy": torch.rand(count)})


def _moved(thetas: Tensor, noise: float = 0.0, seed: int = 1, space: WeightSpace = SPACE) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    changed = thetas * (1 + noise * torch.randn(thetas.shape, generator=generator))
    return space.act(space.sample_symmetry(len(thetas), (1e-3, 1e3), generator=generator), changed)


@pytest.mark.parametrize("space", [SPACE, WeightSpace.mlp([4, 12, 12, 2], "tanh"), WeightSpace.siren((2, 16, 16, 1))], ids=str)
def test_moved_and_noisy_copies_are_found(tmp_path: Path, space: WeightSpace) -> None:
    zoo = _zoo(tmp_path / "zoo", space=space)
    index = Index(zoo)
    for noise, largest in ((0.0, 1e-4), (0.1, 0.3)):
        found = index.search(space, _moved(zoo.read(torch.arange(8)), noise, space=space), top=2)
        assert [matches[0].position for matches in found] == list(range(8))
        assert all(matches[0].distance < largest for matches in found)
        assert all(each.aligned for matches in found for each in matches)
    other = space.sample(2, generator=torch.Generator().manual_seed(9))
    for matches in index.search(space, other, top=3):
        assert [each.distance for each in matches] == sorted(each.distance for each in matches)
        assert 0.7 < matches[0].distance < 1.2
    by_features = index.search(space, _moved(zoo.read(torch.arange(8)), space=space), top=1, align=False)
    assert [matches[0].position for matches in by_features] == list(range(8))
    assert not by_features[0][0].aligned


def test_an_index_is_kept_and_grows_with_its_zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    original = WeightFeatures.__call__

    def counted(self: WeightFeatures, space: WeightSpace, thetas: Tensor) -> Tensor:
        calls.append(len(thetas))
        return original(self, space, thetas)

    monkeypatch.setattr(WeightFeatures, "__call__", counted)
    zoo = _zoo(tmp_path / "zoo")
    first = Index(zoo)
    assert first.path == tmp_path / "zoo.index"
    assert sum(calls) == 60
    again = Index(ZooStore(tmp_path / "zoo"))
    assert sum(calls) == 60
    assert torch.equal(torch.from_numpy(again.vectors()), torch.from_numpy(first.vectors()))
    more = SPACE.sample(5, generator=torch.Generator().manual_seed(5))
    zoo.append(SPACE, more, {"test_accuracy": [0.0] * 5})
    grown = Index(zoo)
    assert sum(calls) == 65
    assert len(grown) == 65
    assert len(first) == 60
    positions = {matches[0].position for matches in grown.search(SPACE, _moved(more), top=1)}
    added = {i for i in range(65) if any(torch.equal(zoo.read(torch.tensor([i]))[0], theta) for theta in more)}
    assert positions == added


def test_an_interrupted_index_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo = _zoo(tmp_path / "zoo")
    zoo.append(SPACE, SPACE.sample(5), {"test_accuracy": [0.0] * 5})
    original, calls = WeightFeatures.__call__, list[int]()

    def fails(self: WeightFeatures, space: WeightSpace, thetas: Tensor) -> Tensor:
        calls.append(len(thetas))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, space, thetas)

    with monkeypatch.context() as patch:
        patch.setattr(WeightFeatures, "__call__", fails)
        with pytest.raises(KeyboardInterrupt):
            Index(zoo)
        assert len(calls) == 2
        Index(zoo)
        assert len(calls) == 3  # the first shard was kept
    files = sorted(path.suffix for path in (tmp_path / "zoo.index").rglob("*") if path.is_file())
    assert files == [".json", ".json", ".safetensors", ".safetensors", ".safetensors"]


def test_several_architectures(tmp_path: Path) -> None:
    wide, deep = WeightSpace.mlp([4, 12, 2]), WeightSpace.mlp([4, 12, 12, 2])
    with ZooStore.writing(tmp_path / "zoo") as zoo:
        for number, space in enumerate((wide, deep, wide)):
            zoo.append(space, space.sample(20, generator=torch.Generator().manual_seed(number)), {"test_accuracy": [0.0] * 20})
    index = Index(zoo)
    rows = zoo.of_space(deep).positions
    found = index.search(deep, _moved(zoo.read(rows), space=deep), top=1)
    assert [matches[0].position for matches in found] == rows.tolist()
    with pytest.raises(SpaceMismatchError, match=r"2 architectures, which features 'weights' do not compare. Features 'statistics' do"):
        index.vectors()
    with pytest.raises(SpaceMismatchError, match=r"holds no network of .*Features 'statistics' compare"):
        index.search(SPACE, SPACE.sample(1))
    across = Index(zoo, features="statistics")
    assert across.path.name == "zoo.statistics.index"
    found = across.search(deep, _moved(zoo.read(rows), space=deep), top=2)
    assert [matches[0].position for matches in found] == rows.tolist()
    assert across.search(SPACE, SPACE.sample(1), top=2)[0][0].position in range(60)
    assert len(across.vectors()) == 60


def test_embeddings_of_a_trained_model(tmp_path: Path) -> None:
    zoo = make_store(tmp_path / "zoo")
    run("generalization", zoo=zoo.path, model="statnn", epochs=1, progress=False, intervals=0, output=tmp_path / "run", scales=[10])
    model = TrainedModel.load(tmp_path / "run")
    embedded = model.embed(zoo.space, zoo.read(torch.arange(4)))
    assert embedded.shape[0] == 4
    moved = zoo.space.act(zoo.space.sample_symmetry(4, symmetries=["permutation"]), zoo.read(torch.arange(4)))
    torch.testing.assert_close(model.embed(zoo.space, moved), embedded, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="need a trained model"):
        Index(zoo, tmp_path / "none", features="model")
    Index(zoo, features="model", model=model)
    shutil.rmtree(tmp_path / "run")
    index = Index(zoo, features="model")  # which has a copy of its own
    found = index.search(zoo.space, moved, top=1)
    assert [matches[0].position for matches in found] == [0, 1, 2, 3]


def test_duplicates(tmp_path: Path) -> None:
    thetas = SPACE.sample(30, generator=torch.Generator().manual_seed(0))
    thetas[10], thetas[20] = _moved(thetas[3:4])[0], _moved(thetas[3:4], seed=5)[0]
    thetas[29] = _moved(thetas[7:8], noise=0.05)[0]
    index = Index(ZooStore.create(tmp_path / "zoo", SPACE, thetas, {}))
    assert duplicates(index) == [[3, 10, 20]]
    assert duplicates(index, within=0.3) == [[3, 10, 20], [7, 29]]
    with pytest.raises(ValueError, match="'within' to be 0 or more"):
        duplicates(index, within=-1)
    across = Index(index.zoo, features="statistics")
    with pytest.raises(ValueError, match="index of features 'weights'"):
        duplicates(across)


def test_small_zoos(tmp_path: Path) -> None:
    index = Index(_zoo(tmp_path / "one", 1))
    theta = index.zoo.read(torch.tensor([0]))
    assert index.search(SPACE, _moved(theta))[0][0].distance < 1e-4
    assert duplicates(index) == []
    same_twice = Index(ZooStore.create(tmp_path / "two", SPACE, theta.expand(2, -1).contiguous(), {}))
    assert duplicates(same_twice) == [[0, 1]]


def test_errors(tmp_path: Path) -> None:
    zoo = _zoo(tmp_path / "zoo", 5)
    index = Index(zoo)
    with pytest.raises(ValueError, match="'top' to be at least 1"):
        index.search(SPACE, zoo.read(torch.tensor([0])), top=0)
    with pytest.raises(ValueError, match="NaN"):
        index.search(SPACE, zoo.read(torch.tensor([0])) * torch.nan)
    with pytest.raises(ValueError, match=r"was made with dimensions 128, not 7\. Open it so"):
        Index(zoo, dimensions=7)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    with pytest.raises(ValueError, match="something else is there"):
        Index(zoo, tmp_path / "full")
    with pytest.raises(ValueError, match=r"Unknown kind of features 'weight'.*Did you mean 'weights'"):
        Index(zoo, tmp_path / "new", features="weight")
    document = json.loads((tmp_path / "zoo.index" / "index.json").read_text())
    assert document["features"] == "weights"
    assert repr(index) == "Index(5 networks, weights)"
