"""Zoos on disk: round trip, lazy reading, atomic writing, and every way in which a folder can be wrong."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch_geometric.loader import DataLoader as PyGDataLoader

from wsgraph import WeightSpace
from wsgraph.data import ZooStore
from wsgraph.data import store as store_module
from wsgraph.files import flush
from wsgraph.space import SpaceMismatchError

SPACE = WeightSpace.cnn([1, 4, 3], [2], "tanh", padding=1)
SPLITS = ["train", "val", "train", "test", "train", "test"]


def _thetas(count: int = 6) -> torch.Tensor:
    return SPACE.sample(count, generator=torch.Generator().manual_seed(0))


def _table(**columns: Any) -> dict[str, Any]:
    accuracy = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], dtype=torch.float64)
    return {"test_accuracy": accuracy, "epochs": [1, 2, 3, 4, 5, 6], "split": SPLITS, "good": np.arange(6) > 2, **columns}


@pytest.fixture
def store(tmp_path: Path) -> ZooStore:
    return ZooStore.create(tmp_path / "zoo", SPACE, _thetas(), _table(), info={"made_by": "a test"})


# == Round trip ==


def test_everything_comes_back(store: ZooStore) -> None:
    opened = ZooStore(store.path)
    assert opened.space == SPACE
    assert torch.equal(opened.thetas, _thetas())
    assert list(opened.table) == ["test_accuracy", "epochs", "split", "good"]
    for name, column in _table().items():
        assert opened.table[name].tolist() == np.asarray(column).tolist()
    assert [opened.table[name].dtype.kind for name in opened.table] == ["f", "i", "U", "b"]
    assert opened.info == {"made_by": "a test", "dropped_non_finite": 0}
    assert len(opened) == 6
    assert sorted(file.name for file in opened.path.iterdir()) == ["space.json", "table.npz", "thetas.safetensors", "zoo.json"]
    assert [file.name for file in opened.path.parent.iterdir()] == ["zoo"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtypes_are_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    store = ZooStore.create(tmp_path / "zoo", SPACE, _thetas().to(dtype), {"test_accuracy": torch.rand(6).to(dtype)})
    assert store.thetas.dtype == dtype
    assert torch.equal(store.thetas, _thetas().to(dtype))
    assert store.dataset().y.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("name", ["file", "allow_pickle", "config.learning rate"])
def test_columns_may_have_any_name(tmp_path: Path, name: str) -> None:
    store = ZooStore.create(tmp_path / "zoo", SPACE, _thetas(), {name: range(6)})
    assert store.table[name].tolist() == list(range(6))
    with np.load(store.path / "table.npz", allow_pickle=False) as archive:
        assert archive.files == [name]


def test_non_finite_networks_are_dropped_and_counted(tmp_path: Path) -> None:
    thetas = _thetas()
    thetas[1, 5], thetas[4, 0] = torch.nan, torch.inf
    store = ZooStore.create(tmp_path / "zoo", SPACE, thetas, _table(), info={"dropped_non_finite": 3})
    assert torch.equal(store.thetas, thetas[[0, 2, 3, 5]])
    assert store.table["epochs"].tolist() == [1, 3, 4, 6]
    assert store.table["split"].tolist() == ["train", "train", "test", "test"]
    assert store.info["dropped_non_finite"] == 5


def test_repr_says_what_the_zoo_holds(store: ZooStore, tmp_path: Path) -> None:
    assert repr(store) == f"ZooStore({str(store.path)!r}, 6 networks, {SPACE!r}, 4 columns, train 3, val 1, test 2)"
    bare = ZooStore.create(tmp_path / "bare", SPACE, _thetas(), {})
    assert repr(bare) == f"ZooStore({str(bare.path)!r}, 6 networks, {SPACE!r}, 0 columns)"


# == Lazy reading ==


def test_opening_a_large_store_reads_nothing(tmp_path: Path) -> None:
    space = WeightSpace.mlp([62, 62, 2])
    rows = 40_000_000 // space.num_params
    store = ZooStore.create(tmp_path / "zoo", space, torch.zeros(rows, space.num_params), {"test_accuracy": np.zeros(rows)})
    # In a process of its own: the allocator of this one may hold freed memory that a copy would reuse unseen.
    script = f"""
import re, wsgraph.data
def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read()).group(1)) / 1024
wsgraph.data.ZooStore({str(store.path)!r}).table
before = resident()
opened = wsgraph.data.ZooStore({str(store.path)!r})
thetas = opened.thetas
opened[3], opened[:100].batch([5, 7])
print(resident() - before)
thetas.sum()
print(resident() - before)
"""
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc to measure resident memory")
    root = Path(store_module.__file__).parents[2]
    output = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=root).stdout
    opened, read = map(float, output.split())
    # The second number shows that the measure can tell: after reading, the 160 MB count.
    assert opened < 30
    assert read > 140


def test_thetas_are_shared_between_accesses_and_read_only_towards_the_file(store: ZooStore) -> None:
    assert store.thetas is store.thetas
    assert store.dataset().thetas.data_ptr() == store.thetas.data_ptr()
    store.thetas.zero_()
    assert torch.equal(ZooStore(store.path).thetas, _thetas())


def test_pickling_carries_the_path_only(store: ZooStore) -> None:
    assert store.thetas.sum() != 0
    text = pickle.dumps(store)
    assert len(text) < 1000
    copy = pickle.loads(text)
    assert torch.equal(copy.thetas, store.thetas)


# == Splits and datasets ==


def test_split(store: ZooStore) -> None:
    assert store.split("train").tolist() == [0, 2, 4]
    assert store.split("test").dtype == torch.int64
    with pytest.raises(ValueError, match=r"no split 'training'. Its splits: train, val, test"):
        store.split("training")


def test_split_needs_its_column(tmp_path: Path) -> None:
    store = ZooStore.create(tmp_path / "zoo", SPACE, _thetas(), {"epochs": range(6)})
    with pytest.raises(ValueError, match=r"no column 'split'. Its columns: epochs"):
        store.split("train")
    with pytest.raises(ValueError, match=r"no column 'test_accuracy'. Its columns: epochs"):
        store.dataset()


def test_dataset_gives_graphs_with_targets(store: ZooStore) -> None:
    dataset = store.dataset("train")
    assert len(dataset) == 3
    assert torch.equal(dataset.thetas, _thetas()[[0, 2, 4]])
    assert torch.equal(dataset.y, torch.tensor([0.1, 0.3, 0.5]))
    assert dataset.space == SPACE
    graph = dataset[1]
    assert torch.equal(graph.thetas()[0], _thetas()[2])
    assert torch.equal(graph.y, torch.tensor([0.3]))
    assert torch.equal(dataset[-1].y, dataset[2].y)
    assert store.dataset("val", target="epochs").y.tolist() == [2]
    assert repr(dataset) == f"ZooDataset(3 of 6 networks, {SPACE!r}, target='test_accuracy')"
    for position in (3, -4):
        with pytest.raises(IndexError, match=r"Network -?\d is out of range: the dataset has 3"):
            dataset[position]


def test_dataset_works_with_pyg(store: ZooStore) -> None:
    dataset = store.dataset()
    (batch,) = PyGDataLoader(dataset, batch_size=6)
    assert torch.equal(batch.thetas(), _thetas())
    assert torch.equal(batch.y, dataset.y)


def test_batch_equals_the_single_graphs(store: ZooStore) -> None:
    dataset = store.dataset("train")
    batch = dataset.batch([2, 0])
    for i, graph in enumerate((dataset[2], dataset[0])):
        assert torch.equal(batch[i].edge_attr, graph.edge_attr)
        assert torch.equal(batch[i].x, graph.x)
        assert torch.equal(batch[i].y, graph.y)
    moved = dataset.batch([2, 0], lambda thetas: thetas * 2)
    assert torch.equal(moved.thetas(), batch.thetas() * 2)


@pytest.mark.parametrize(
    "index, expected",
    [
        (slice(1, 5, 2), [1, 3]),
        ([5, -6, 2], [5, 0, 2]),
        (torch.tensor([3, 3]), [3, 3]),
        (np.array([4, 1]), [4, 1]),
        ([False, True, False, False, False, True], [1, 5]),
        (torch.tensor([1, 0, 0, 0, 0, 1], dtype=torch.bool), [0, 5]),
        ([], []),
    ],
)
def test_indexing_with_several_positions(store: ZooStore, index: Any, expected: list[int]) -> None:
    assert torch.equal(store[index].thetas, _thetas()[expected])
    chosen = store.dataset()[index]
    assert torch.equal(chosen.thetas, _thetas()[expected])
    assert torch.equal(chosen.y, store.dataset().y[expected])
    nested = store.dataset()[1:][:3]
    assert torch.equal(nested.thetas, _thetas()[1:4])


@pytest.mark.parametrize(
    "index, message",
    [
        ([True, False], r"mask with one entry per network, 6 \(got 2\)"),
        ([0, 6], r"out of range: the dataset has 6 networks \(got 0 to 6\)"),
        ([-7], r"out of range"),
        ([0.5], r"positions or a boolean mask"),
        ([[0, 1]], r"positions or a boolean mask, one-dimensional \(got shape \[1, 2\]"),
    ],
)
def test_bad_indices(store: ZooStore, index: Any, message: str) -> None:
    with pytest.raises(IndexError, match=message):
        store[index]


def test_one_network_by_any_integer(store: ZooStore) -> None:
    for index in (2, np.int64(2), torch.tensor(2), -4):
        assert torch.equal(store[index].thetas()[0], _thetas()[2])  # type: ignore[index]
    assert store[2].y is None


def test_dataset_without_target(store: ZooStore) -> None:
    dataset = store.dataset(target=None)
    assert dataset.batch([0, 1]).y is None
    with pytest.raises(ValueError, match=r"has no targets\. Name a column"):
        dataset.y  # noqa: B018


def test_bad_targets(store: ZooStore) -> None:
    with pytest.raises(ValueError, match=r"no column 'accuracy'. Its columns: test_accuracy, epochs, split, good"):
        store.dataset(target="accuracy")
    with pytest.raises(ValueError, match="'split' holds strings"):
        store.dataset(target="split")


# == Errors of writing ==


@pytest.mark.parametrize(
    "thetas, table, message",
    [
        (_thetas(0), {}, "at least one network"),
        (_thetas() * torch.nan, _table(), "all 6 in 'thetas' have NaN or infinite weights"),
        (_thetas(), _table(short=[1, 2], long=range(7)), r"one entry per network, 6 \('short' has 2, 'long' has 7\)"),
        (_thetas(), _table(objects=[None] * 6), r"column 'objects' of 'table' to be a flat list of numbers, bools or strings"),
        (_thetas(), _table(matrix=torch.zeros(6, 2)), r"column 'matrix' .* \(got shape \[6, 2\]"),
    ],
)
def test_bad_contents(tmp_path: Path, thetas: torch.Tensor, table: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ZooStore.create(tmp_path / "zoo", SPACE, thetas, table)
    assert list(tmp_path.iterdir()) == []


def test_thetas_of_wrong_width(tmp_path: Path) -> None:
    with pytest.raises(SpaceMismatchError, match=rf"Expected 'thetas' of shape \[B, {SPACE.num_params}\]"):
        ZooStore.create(tmp_path / "zoo", SPACE, torch.zeros(6, 5), _table())


def test_info_must_be_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'info' to hold what JSON can hold"):
        ZooStore.create(tmp_path / "zoo", SPACE, _thetas(), _table(), info={"tensor": torch.zeros(2)})


def test_existing_path_is_left_alone(store: ZooStore, tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match=r"exists already\. Open it with ZooStore"):
        ZooStore.create(store.path, SPACE, _thetas() * 0, _table())
    assert torch.equal(ZooStore(store.path).thetas, _thetas())
    (tmp_path / "empty").mkdir()
    for path in (_touch(tmp_path / "file"), tmp_path / "empty"):
        with pytest.raises(FileExistsError, match="exists already"):
            ZooStore.create(path, SPACE, _thetas(), _table())


def _touch(path: Path) -> Path:
    path.touch()
    return path


def test_unwritable_folder(tmp_path: Path) -> None:
    _touch(tmp_path / "file")
    with pytest.raises(OSError, match=r"Cannot write to .*file.zoo' \(.*\). Choose a path in a folder that you may write to"):
        ZooStore.create(tmp_path / "file" / "zoo", SPACE, _thetas(), _table())


@pytest.mark.parametrize("failing", ["save_file", "_write_table", "flush"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_nothing_is_left_behind_by_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, error: BaseException) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(store_module, failing, fail)
    with pytest.raises(type(error), match="No space left on device.*disk with space" if isinstance(error, OSError) else None):
        ZooStore.create(tmp_path / "zoo", SPACE, _thetas(), _table())
    assert list(tmp_path.iterdir()) == []


def test_files_are_flushed_before_the_folder_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []
    original = flush

    def record(path: Path) -> None:
        assert (tmp_path / "zoo").exists() == (path == tmp_path)
        flushed.append(path.name)
        original(path)

    monkeypatch.setattr(store_module, "flush", record)
    ZooStore.create(tmp_path / "zoo", SPACE, _thetas(), _table())
    assert sorted(flushed[:4]) == ["space.json", "table.npz", "thetas.safetensors", "zoo.json"]
    assert flushed[5:] == [tmp_path.name]


# == Errors of reading ==


def test_not_a_zoo(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        ZooStore(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"is not a zoo: it has no zoo\.json"):
        ZooStore(tmp_path)


@pytest.mark.parametrize("name", ["zoo.json", "space.json", "thetas.safetensors", "table.npz"])
def test_missing_file(store: ZooStore, name: str) -> None:
    (store.path / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks {name}"):
        ZooStore(store.path)


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "zoo.json' is damaged: it is not JSON"),
        ("[]", "does not describe a zoo"),
        ('{"format": "other"}', "does not describe a zoo"),
        ('{"format": "wsgraph.ZooStore", "version": 2}', r"format version 2, this wsgraph reads up to 1; update wsgraph"),
        ('{"format": "wsgraph.ZooStore", "version": 1}', "lacks 'count' or 'info'"),
    ],
)
def test_bad_zoo_json(store: ZooStore, text: str, message: str) -> None:
    (store.path / "zoo.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        ZooStore(store.path)


def test_bad_space_json(store: ZooStore) -> None:
    (store.path / "space.json").write_text("{}")
    with pytest.raises(ValueError, match=r"space\.json' is damaged\. Expected the JSON text of a weight space"):
        ZooStore(store.path)


@pytest.mark.parametrize("kept", [0, 5, 60, -1])
def test_truncated_thetas(store: ZooStore, kept: int) -> None:
    file = store.path / "thetas.safetensors"
    os.truncate(file, kept if kept >= 0 else file.stat().st_size + kept)
    with pytest.raises(ValueError, match=r"thetas.safetensors' is damaged or truncated"):
        ZooStore(store.path)


def test_truncated_table(store: ZooStore) -> None:
    file = store.path / "table.npz"
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(ValueError, match=r"table.npz' is damaged"):
        ZooStore(store.path).table  # noqa: B018


def test_files_of_two_zoos(store: ZooStore, tmp_path: Path) -> None:
    other = ZooStore.create(tmp_path / "other", SPACE, _thetas(5), {"test_accuracy": range(5)})
    shutil.copy(other.path / "thetas.safetensors", store.path)
    with pytest.raises(ValueError, match=r"to hold 6 networks .* the folder mixes two zoos"):
        ZooStore(store.path)
    document = json.loads((store.path / "zoo.json").read_text())
    (store.path / "zoo.json").write_text(json.dumps({**document, "count": 5}))
    with pytest.raises(ValueError, match=r"one entry per network, 5 \('test_accuracy' has 6"):
        ZooStore(store.path).table  # noqa: B018
