"""Zoos on disk: round trip, lazy reading, atomic writing, and every way in which a folder can be wrong."""

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch_geometric.loader import DataLoader as PyGDataLoader

from wsgraph import WeightSpace, files
from wsgraph.data import ArrayRows, ZooDataset, ZooStore, ZooWarning, group_split, shards, verify_zoo
from wsgraph.data import dataset as dataset_module
from wsgraph.data import folder as folder_module
from wsgraph.data import writing as writing_module
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
    assert sorted(file.name for file in opened.path.iterdir()) == ["manifest.jsonl", "shards", "spaces", "zoo.json"]
    assert [file.name for file in (opened.path / "shards").iterdir()] == ["000000.safetensors"]
    assert [file.name for file in opened.path.parent.iterdir()] == ["zoo"]
    assert opened.finished
    assert opened.verify() == []


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
    root = Path(folder_module.__file__).parents[2]
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
    with pytest.raises(ValueError, match=r"no column 'split'. Its columns: 'epochs'"):
        store.split("train")
    with pytest.raises(ValueError, match=r"no column 'test_accuracy'. Its columns: 'epochs'"):
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
    with pytest.raises(ValueError, match=r"no column 'accuracy'. Its columns: 'test_accuracy', 'epochs', 'split', 'good'"):
        store.dataset(target="accuracy")
    with pytest.raises(ValueError, match="'split' holds strings"):
        store.dataset(target="split")


# == Errors of writing ==


@pytest.mark.parametrize(
    "thetas, table, message",
    [
        (_thetas(0), {}, "at least one network"),
        (_thetas() * torch.nan, _table(), r"at least one network with finite weights \(dropped: 6\)"),
        (_thetas(), _table(short=[1, 2], long=range(7)), r"one entry per network, 6 \('short' has 2, 'long' has 7\)"),
        (_thetas(), _table(objects=[None] * 6), r"column 'objects' of 'table' to be a flat list of numbers, bools or strings"),
        (_thetas(), _table(mixed=[1, "a", 2, 3, 4, 5]), r"'mixed' of 'table' to hold numbers or strings, not both \(got 1 among strings\)"),
        (_thetas(), _table(ints=[2**63, -1, 0, 0, 0, 0]), r"integers that a float can hold, .* \(got 9223372036854775808\). Write such"),
        (_thetas(), _table(ints=[2**53 + 1, 0.5, 0, 0, 0, 0]), r"integers that a float can hold, .* \(got 9007199254740993\)"),
        (_thetas(), _table(text=["a\0"] * 6), "that do not end with a zero character"),
        (_thetas(), _table(text=["\ud800"] * 6), r"Expected text in column 'text' of 'table' \(.*surrogates not allowed\)"),
        (_thetas(), {"": range(6)}, r"the names of the columns of 'table' to be text \(got ''\)"),
        (_thetas(), {3: range(6)}, r"the names of the columns of 'table' to be text \(got 3\)"),
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


@pytest.mark.parametrize("module, failing", [(shards, "save_file"), (shards, "flush"), (shards, "publish"), (files, "flush")])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_nothing_is_left_behind_by_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, failing: str, error: BaseException
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(module, failing, fail)
    with pytest.raises(type(error), match="No space left on device.*disk with space" if isinstance(error, OSError) else None):
        ZooStore.create(tmp_path / "zoo", SPACE, _thetas(), _table())
    assert list(tmp_path.iterdir()) == []


def test_a_shard_is_on_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    def record(path: Path) -> None:
        events.append("flushed" if path.is_file() else "folder flushed")
        flush(path)

    def link(source: Path, target: Path) -> None:
        events.append(target.name)
        os_link(source, target)

    os_link = os.link
    store = ZooStore.begin(tmp_path / "zoo")
    monkeypatch.setattr(shards, "flush", record)
    monkeypatch.setattr(os, "link", link)
    store.append(SPACE, _thetas(), _table())
    assert events == ["flushed", "000000.safetensors", "folder flushed"]


def test_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(source: Path, target: Path) -> None:
        raise OSError(1, "Operation not permitted")

    store = ZooStore.begin(tmp_path / "zoo")
    monkeypatch.setattr(os, "link", fail)
    store.append(SPACE, _thetas(), _table(), name="a")
    with pytest.raises(FileExistsError, match="exists already"):
        store.append(SPACE, _thetas(), _table(), name="a")
    assert torch.equal(ZooStore(store.path).thetas, _thetas())


# == Errors of reading ==


def test_not_a_zoo(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        ZooStore(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"is not a zoo: it has no zoo\.json"):
        ZooStore(tmp_path)


def test_missing_space(store: ZooStore) -> None:
    (file,) = (store.path / "spaces").iterdir()
    file.unlink()
    with pytest.raises(FileNotFoundError, match=rf"lacks {file.name}\. Make the zoo again"):
        ZooStore(store.path).space  # noqa: B018


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "zoo.json' is damaged: it is not JSON"),
        ("[]", "does not describe a zoo"),
        ('{"format": "other"}', "does not describe a zoo"),
        ('{"format": "wsgraph.ZooStore", "version": 4}', r"format version 4, this wsgraph reads 3; update wsgraph"),
        ('{"format": "wsgraph.ZooStore", "version": 1}', r"format version 1, this wsgraph reads 3; make the zoo again"),
        ('{"format": "wsgraph.ZooStore", "version": 3}', "lacks 'finished' or 'info'"),
    ],
)
def test_bad_zoo_json(store: ZooStore, text: str, message: str) -> None:
    (store.path / "zoo.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        ZooStore(store.path)


def test_a_weight_space_that_was_changed_under_the_weights(store: ZooStore) -> None:
    (file,) = (store.path / "spaces").iterdir()
    text = file.read_text()
    for changed in ("{}", WeightSpace.mlp([2, 3]).to_json(), text.replace("tanh", "relu")):
        file.write_text(changed)
        with pytest.raises(ValueError, match=rf"{file.name}' was changed after it was written: it is not the weight space .* Restore the"):
            ZooStore(store.path)
        (problem,) = verify_zoo(store.path)
        assert "was changed after it was written" in problem


def _shard(store: ZooStore) -> Path:
    return store.shards[0].file


@pytest.mark.parametrize("kept", [0, 5, 60, -1])
def test_truncated_shard(store: ZooStore, kept: int) -> None:
    file = _shard(store)
    os.truncate(file, kept if kept >= 0 else file.stat().st_size + kept)
    with pytest.raises(ValueError, match=r"000000.safetensors' is damaged or truncated .* the rest of the zoo opens"):
        ZooStore(store.path)
    file.unlink()
    with pytest.warns(ZooWarning, match="the shard '000000' of 6 networks is gone"):
        assert len(ZooStore(store.path)) == 0


def test_foreign_and_newer_shards(store: ZooStore) -> None:
    tensors, metadata = load_file(_shard(store)), safe_open(_shard(store), "pt").metadata()
    save_file(tensors, _shard(store))
    with pytest.raises(ValueError, match="is not a shard of a zoo"):
        ZooStore(store.path)
    save_file(tensors, _shard(store), {"wsgraph.shard": metadata["wsgraph.shard"].replace('"version": 1', '"version": 7')})
    with pytest.raises(ValueError, match="format version 7, this wsgraph reads 1; update wsgraph"):
        ZooStore(store.path)
    save_file({**tensors, "table/epochs": torch.arange(5)}, _shard(store), metadata)
    with pytest.raises(ValueError, match="is damaged: 6 networks, but other numbers of rows in 'epochs'"):
        ZooStore(store.path)


# == Integrity ==


def test_verify_finds_what_changed(store: ZooStore) -> None:
    bytes_ = bytearray(_shard(store).read_bytes())
    bytes_[-3] ^= 1
    _shard(store).write_bytes(bytes_)
    (problem,) = ZooStore(store.path).verify()
    assert "000000.safetensors' is damaged: its contents do not have the checksum" in problem


def test_verify_finds_networks_that_are_not_finite(store: ZooStore, monkeypatch: pytest.MonkeyPatch) -> None:
    thetas = _thetas()
    thetas[2, 1] = torch.nan
    monkeypatch.setattr(writing_module, "_finite", lambda thetas: torch.ones(len(thetas), dtype=torch.bool))
    store.append(SPACE, thetas, store.table)
    (problem,) = ZooStore(store.path).verify()
    assert "000001.safetensors' holds 1 network with NaN or infinite weights. Make the zoo again" in problem


def test_verify_tells_of_an_unfinished_zoo(tmp_path: Path) -> None:
    store = ZooStore.begin(tmp_path / "zoo")
    store.append(SPACE, _thetas(), _table())
    assert "not finished" in store.verify()[0]
    assert "not finished" in repr(store)
    store.finish(note="done")
    assert store.verify() == []
    assert ZooStore(store.path).info["note"] == "done"


# == Shards ==


@pytest.fixture
def many(tmp_path: Path) -> ZooStore:
    """20 networks in 4 shards, appended out of order."""
    store = ZooStore.begin(tmp_path / "many")
    thetas = SPACE.sample(20, generator=torch.Generator().manual_seed(3))
    for i in (2, 0, 3, 1):
        rows = slice(5 * i, 5 * i + 5)
        table = {"number": np.arange(20)[rows], "run": [f"run {n // 4}" for n in range(20)][rows]}
        store.append(SPACE, thetas[rows], table, name=f"{i:03d}")
    return store


def test_networks_lie_in_the_order_of_the_names_of_shards(many: ZooStore) -> None:
    thetas = SPACE.sample(20, generator=torch.Generator().manual_seed(3))
    for store in (many, ZooStore(many.path)):
        assert store.column("number").tolist() == list(range(20))
        assert torch.equal(store.thetas, thetas)
        chosen = torch.tensor([19, 0, 7, 7, 4, 5])
        assert torch.equal(store.read(chosen), thetas[chosen])
        assert torch.equal(store.dataset(target="number").batch(chosen).thetas(), thetas[chosen])
        assert store.dataset(target="number").batch(chosen).y.tolist() == chosen.tolist()


def test_reading_shard_by_shard_gives_the_same(many: ZooStore, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = torch.tensor([19, 0, 7, 7, 4, 5])
    held = many.read(chosen)
    monkeypatch.setattr(folder_module, "_HELD_BYTES", 0)
    apart = ZooStore(many.path)
    assert torch.equal(apart.read(chosen), held)
    assert torch.equal(apart.dataset(target="number").batch(chosen).thetas(), held)
    assert torch.equal(apart.thetas, many.thetas)


def test_large_zoos_are_divided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing_module, "SHARD_BYTES", 4 * 2 * SPACE.num_params)
    store = ZooStore.create(tmp_path / "zoo", SPACE, _thetas(), _table())
    assert [shard.count for shard in store.shards] == [2, 2, 2]
    assert torch.equal(store.thetas, _thetas())
    assert store.column("epochs").tolist() == [1, 2, 3, 4, 5, 6]


def test_appended_tables_must_fit(many: ZooStore) -> None:
    for table, message in (
        ({"number": [1]}, r"Expected the columns of the zoo .*, number, run \(got number\)"),
        ({"number": [1], "run": ["a"], "more": [1]}, r"\(got number, run, more\)"),
        ({"number": [1], "run": [2]}, r"Expected strings where .* \(got 'run', <U5 there and int64 here\)"),
    ):
        with pytest.raises(ValueError, match=message):
            many.append(SPACE, _thetas(1), table)
    with pytest.raises(FileExistsError, match=r"002.safetensors' exists already"):
        many.append(SPACE, _thetas(1), {"number": [1], "run": ["a"]}, name="002")
    assert len(ZooStore(many.path)) == 20


def test_names_of_shards_are_chosen_free(many: ZooStore) -> None:
    other = ZooStore(many.path)
    for store in (many, other, many):
        store.append(SPACE, _thetas(1), {"number": [1], "run": ["a"]})
    assert [shard.name for shard in ZooStore(many.path).shards] == ["000", "000004", "000005", "000006", "001", "002", "003"]


def test_many_processes_may_append(tmp_path: Path) -> None:
    store = ZooStore.begin(tmp_path / "zoo")
    script = f"""
import torch
from wsgraph import WeightSpace
from wsgraph.data import ZooStore
space = WeightSpace.from_json({SPACE.to_json()!r})
store = ZooStore({str(store.path)!r})
for i in range(10):
    store.append(space, torch.full((1, space.num_params), float(i)), {{"i": [i]}})
"""
    root = Path(folder_module.__file__).parents[2]
    writers = [subprocess.Popen([sys.executable, "-c", script], cwd=root) for _ in range(2)]
    assert [writer.wait() for writer in writers] == [0, 0]
    store.reload()
    assert sorted(store.column("i").tolist()) == sorted([*range(10)] * 2)
    assert store.thetas[:, 0].tolist() == store.column("i").tolist()


def test_a_writer_that_is_killed_leaves_every_finished_shard(tmp_path: Path) -> None:
    store = ZooStore.begin(tmp_path / "zoo")
    script = f"""
import torch
from wsgraph import WeightSpace
from wsgraph.data import ZooStore
space = WeightSpace.from_json({SPACE.to_json()!r})
store = ZooStore({str(store.path)!r})
for i in range(100_000):
    store.append(space, torch.full((300, space.num_params), float(i)), {{"i": [i] * 300}})
    print(i, flush=True)
"""
    root = Path(folder_module.__file__).parents[2]
    writer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=root)
    assert writer.stdout is not None
    told = [int(writer.stdout.readline()) for _ in range(5)]
    writer.kill()
    told += [int(line) for line in writer.stdout]
    writer.wait()
    writer.stdout.close()
    store.reload()
    numbers = store.column("i")
    assert sorted(set(numbers)) == list(range(len(numbers) // 300))
    assert len(numbers) // 300 in (len(told), len(told) + 1)
    assert torch.equal(store.thetas[:, 0], torch.from_numpy(numbers).float())
    assert len(store.verify()) == 1


def test_an_append_that_fails_midway_leaves_nothing(many: ZooStore, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = save_file, iter(range(10))

    def fail_third(*arguments: Any) -> None:
        if next(calls) == 2:
            raise OSError(28, "No space left on device")
        original(*arguments)

    monkeypatch.setattr(writing_module, "SHARD_BYTES", 4 * SPACE.num_params)
    monkeypatch.setattr(shards, "save_file", fail_third)
    with pytest.raises(OSError, match="No space left on device"):
        many.append(SPACE, _thetas(5), {"number": range(5), "run": ["a"] * 5})
    assert len(many) == len(ZooStore(many.path)) == 20


def test_a_full_disk(tmp_path: Path) -> None:
    store = ZooStore.begin(tmp_path / "zoo")
    store.append(SPACE, _thetas(), {"i": range(6)})
    script = f"""
import resource, torch
from wsgraph import WeightSpace
from wsgraph.data import ZooStore
space = WeightSpace.from_json({SPACE.to_json()!r})
store = ZooStore({str(store.path)!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
store.append(space, torch.zeros(10_000, space.num_params), {{"i": range(10_000)}})
"""
    root = Path(folder_module.__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=root)
    assert "OSError: Cannot write to" in result.stderr
    assert "on a disk with space" in result.stderr
    assert [file.name for file in (store.path / "shards").iterdir()] == ["000000.safetensors"]
    assert torch.equal(ZooStore(store.path).thetas, _thetas())


def test_one_holds_the_lock(store: ZooStore) -> None:
    with store.lock(), pytest.raises(BlockingIOError, match=r"Another process is writing to the zoo .* Wait until it is done"):
        ZooStore(store.path).set_column("new", range(6))
    store.set_column("new", range(6))


# == Columns that come later ==


def test_columns_set_later(many: ZooStore) -> None:
    many.set_column("split", group_split(many.column("run"), {"train": 0.6, "test": 0.4}))
    many.set_column("number", np.arange(20.0) / 2)
    for store in (many, ZooStore(many.path)):
        assert store.splits == {name: int((many.column("split") == name).sum()) for name in store.splits}
        assert store.column("number").tolist() == [i / 2 for i in range(20)]
        assert len({(run, split) for run, split in zip(store.column("run"), store.column("split"), strict=True)}) == 5
    assert many.verify() == [many.verify()[0]]
    many.append(SPACE, _thetas(1), {"number": [7], "run": ["a"]})
    with pytest.raises(
        ValueError, match=r"no column 'split'\. Its columns: 'number', 'run'. It was set before some of the networks were added"
    ):
        many.split("train")
    assert many.column("number")[3:7].tolist() == [1.5, 2.0, 7.0, 2.5]
    with pytest.raises(ValueError, match=r"one entry per network, 21 \('split' has 20"):
        many.set_column("split", ["a"] * 20)


def test_a_damaged_file_of_columns(many: ZooStore) -> None:
    many.set_column("split", ["a"] * 20)
    os.truncate(many.path / "columns.safetensors", 100)
    with pytest.raises(ValueError, match=r"columns.safetensors' is damaged .* Or delete it and set its columns again"):
        ZooStore(many.path).table  # noqa: B018
    assert any("is damaged" in problem for problem in many.verify())


def test_group_split_keeps_groups_together_and_fills_shares() -> None:
    groups = np.arange(1000) // 7
    split = group_split(groups, {"train": 0.7, "val": 0.1, "test": 0.2}, seed=1)
    assert len(set(zip(groups, split, strict=True))) == len(set(groups))
    assert [round(float((split == name).mean()), 1) for name in ("train", "val", "test")] == [0.7, 0.1, 0.2]
    assert (group_split(groups, {"train": 0.7, "val": 0.1, "test": 0.2}, seed=2) != split).any()
    with pytest.raises(ValueError, match="add up to 1"):
        group_split(groups, {"train": 0.7})
    for bad, message in (
        (groups[None], r"'groups' to be a flat list of numbers, bools or strings, .* \(got shape \[1, 1000\]"),
        (["a", None], r"\(got shape \[2\], dtype object\)"),
        (["a", "", "b", ""], r"\(2 of 4 are missing, the first is number 1\). Give each of these a group of its own"),
        ([np.nan, 1.0], r"\(1 of 2 are missing, the first is number 0\)"),
    ):
        with pytest.raises(ValueError, match=message):
            group_split(bad, {"train": 0.5, "test": 0.5})


def test_equal_networks_in_several_splits_are_said(tmp_path: Path) -> None:
    thetas = _thetas()
    thetas[3] = thetas[1]  # val and test
    thetas[4] = thetas[2]  # train both
    with pytest.warns(ZooWarning, match=r"1 network that is added .* has the weights of one in another split \('test' and 'val'\)"):
        store = ZooStore.create(tmp_path / "zoo", SPACE, thetas, _table())
    same = ZooStore.create(tmp_path / "same", SPACE, thetas, _table(split=["train", "val", "train", "val", "train", "train"]))
    alike = thetas.clone()
    alike[5] = alike[0]
    alike[5, 1] += 1  # between the entries that are compared first
    ZooStore.create(tmp_path / "alike", SPACE, alike[[0, 5]], {"split": ["train", "test"]})
    with pytest.warns(ZooWarning, match=r"6 networks are in several .*both', 1 of them in another split there \('zoo and same'\)"):
        ZooStore.merge(tmp_path / "both", [store, same])


def test_merge(many: ZooStore, store: ZooStore, tmp_path: Path) -> None:
    many.set_column("test_accuracy", np.arange(20) / 20)
    with pytest.raises(ValueError, match="Expected zoos that are finished"):
        ZooStore.merge(tmp_path / "both", [store, many])
    many.finish()
    with pytest.warns(ZooWarning, match=r"are left out of .*both' \(zoo: 'epochs', 'split', 'good'; many: 'number', 'run'\)"):
        merged = ZooStore.merge(tmp_path / "both", [store, many])
    assert len(merged) == 26
    assert list(merged.table) == ["test_accuracy", "zoo"]
    assert merged.column("zoo").tolist() == ["zoo"] * 6 + ["many"] * 20
    assert torch.equal(merged.thetas, torch.cat([store.thetas, many.thetas]))
    assert [shard.count for shard in merged.shards] == [6, 20]
    assert merged.verify() == []
    empty = ZooStore.begin(tmp_path / "empty")
    empty.finish()
    assert len(ZooStore.merge(tmp_path / "one", [store, empty])) == 6
    with pytest.raises(ValueError, match="at least one zoo"):
        ZooStore.merge(tmp_path / "none", [])
    namesake = ZooStore.create(tmp_path / "other" / "zoo", SPACE, 2 * _thetas(), _table())
    merged = ZooStore.merge(tmp_path / "namesakes", [store, namesake])
    assert merged.column("zoo").tolist() == [f"{tmp_path.name}/zoo"] * 6 + ["other/zoo"] * 6
    with pytest.warns(ZooWarning, match="are left out of .*twice' .namesakes: 'zoo'"):
        ZooStore.merge(tmp_path / "twice", [merged])


def test_a_shard_that_is_gone_is_missed(many: ZooStore) -> None:
    many.finish()
    many.shards[1].file.unlink()
    with pytest.warns(ZooWarning, match=r"many' is not what was written: the shard '001' of 5 networks is gone"):
        store = ZooStore(many.path)
    assert store.missing == ["001"]
    assert "1 shard missing" in repr(store)
    assert "The shard '001' of 5 networks is gone" in store.verify()[0]
    with pytest.warns(ZooWarning):
        store.finish()  # which says that nothing is missing
    assert ZooStore(many.path).verify() == []
    assert len(ZooStore(many.path)) == 15


def test_datasets_are_of_the_zoo_as_it_was(many: ZooStore) -> None:
    dataset = many.dataset(target="number")[[7, 12]]
    thetas = dataset.thetas
    other = ZooStore(many.path)
    other.append(SPACE, _thetas(2), {"number": [100, 101], "run": ["a", "b"]}, name="000a")
    many.reload()
    assert len(many) == 22
    for same in (dataset, pickle.loads(pickle.dumps(dataset))):
        assert same.y.tolist() == [7, 12]
        assert torch.equal(same.thetas, thetas)
        assert torch.equal(same.batch([1]).thetas()[0], thetas[1])
        assert torch.equal(same[0].thetas()[0], thetas[0])
    assert many.dataset(target="number")[[7, 12]].y.tolist() == [5, 10]


@pytest.mark.parametrize("positions", [torch.tensor([-1]), np.array([19], np.uint64), [19], torch.arange(20) == 19, slice(None, -2, -1)])
def test_positions_may_be_written_in_any_way(many: ZooStore, positions: Any) -> None:
    assert ZooDataset(many, positions, "number").y.tolist() == [19]
    assert torch.equal(ZooDataset(many, positions, "number").thetas, many.thetas[-1:])
    if isinstance(positions, torch.Tensor) and positions.dtype != torch.bool:
        assert torch.equal(many.read(positions), many.thetas[-1:])
    with pytest.raises(IndexError, match="out of range"):
        many.read(torch.tensor([20]))


def test_appending_through_a_handle_that_is_behind(tmp_path: Path) -> None:
    first = ZooStore.begin(tmp_path / "zoo")
    second = ZooStore(first.path)
    first.append(SPACE, _thetas(2), {"u": [1, 2]})
    with pytest.raises(ValueError, match=r"Expected the columns of the zoo .*, u \(got w\)"):
        second.append(SPACE, _thetas(2), {"w": [1, 2]})
    second.append(SPACE, _thetas(2), {"u": [3, 4]})
    assert second.column("u").tolist() == [1, 2, 3, 4]
    second.set_column("v", range(4))
    ZooStore(first.path).column("v")
    first.reload()
    assert first.column("v").tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="'u', int64 there and uint64 here"):
        first.append(SPACE, _thetas(1), {"u": np.array([2**60 + 1], np.uint64)})
    with pytest.raises(ValueError, match="is empty: append networks before setting columns"):
        ZooStore.begin(tmp_path / "empty").set_column("a", [])


@pytest.mark.parametrize("name", ["../evil", ".hidden", "", "a/b"])
def test_names_of_shards_stay_in_the_zoo(many: ZooStore, name: str) -> None:
    with pytest.raises(ValueError, match="Expected 'name' to be letters"):
        many.append(SPACE, _thetas(1), {"number": [1], "run": ["a"]}, name=name)


# == Several architectures ==


def test_zoos_of_several_architectures(tmp_path: Path) -> None:
    other = WeightSpace.mlp([3, 4, 2])
    thetas = {space: space.sample(4, generator=torch.Generator().manual_seed(0)) for space in (SPACE, other)}
    with ZooStore.writing(tmp_path / "zoo") as store:
        for space in (SPACE, other, SPACE):
            store.append(space, thetas[space], {"y": torch.rand(4)})
    assert store.spaces == [SPACE, other]
    assert "12 networks, 2 weight spaces" in repr(store)
    with pytest.raises(SpaceMismatchError, match="holds 2 architectures"):
        store.space  # noqa: B018
    batch = store.dataset(target="y").batch([9, 4, 0, 5])
    assert batch.num_networks == 4
    assert batch.spaces == [SPACE, other]
    assert torch.equal(batch.y, torch.from_numpy(store.column("y"))[[9, 0, 4, 5]])
    dataset = store.dataset(target="y").of_space(other)
    assert dataset.space == other
    assert torch.equal(dataset.thetas, thetas[other])
    assert dataset[1].spaces == [other]
    with pytest.raises(SpaceMismatchError, match="of 2 architectures"):
        store.dataset(target="y").space  # noqa: B018
    with pytest.raises(SpaceMismatchError, match="one architecture"):
        store.read(torch.tensor([0, 4]))
    alike = ZooStore.begin(tmp_path / "alike")  # as many parameters, and yet other networks
    for activation in ("relu", "tanh"):
        alike.append(WeightSpace.mlp([2, 3, 1], activation), torch.zeros(1, 13), {})
    for read in (lambda: alike.thetas, lambda: alike.read(torch.tensor([0, 1]))):
        with pytest.raises(SpaceMismatchError, match="architecture"):
            read()


# == Networks that stay where they are ==


@pytest.fixture
def matrix(tmp_path: Path) -> Path:
    np.save(tmp_path / "weights.npy", np.random.default_rng(0).normal(size=(50, SPACE.num_params + 3)).astype(np.float32))
    return tmp_path / "weights.npy"


def test_rows_of_a_matrix_are_not_copied(matrix: Path, tmp_path: Path) -> None:
    order = torch.randperm(SPACE.num_params + 3, generator=torch.Generator().manual_seed(1))[: SPACE.num_params]
    rows = torch.arange(40, 0, -1)
    store = ZooStore.create(tmp_path / "zoo", SPACE, ArrayRows(matrix, rows, order), {"row": rows})
    assert store.shards[0].is_linked
    assert store.shards[0].file.stat().st_size < matrix.stat().st_size / 4
    expected = torch.from_numpy(np.load(matrix))[rows][:, order]
    assert torch.equal(store.thetas, expected)
    assert torch.equal(store.dataset(target="row").batch([3, 39]).thetas(), expected[[3, 39]])
    assert store.verify() == []
    with pytest.warns(ZooWarning, match="40 networks are in several of the zoos"):
        merged = ZooStore.merge(tmp_path / "merged", [store, store])
    assert torch.equal(merged.thetas, torch.cat([expected, expected]))
    os.truncate(matrix, matrix.stat().st_size - 10)
    assert "weights.npy' is truncated" in store.verify()[0]
    with pytest.raises(ValueError, match=r"weights.npy' is truncated: [\d,]+ bytes of [\d,]+\. Fetch it again"):
        ZooStore(store.path).read(torch.tensor([0]))


def test_rows_that_are_not_finite_are_left_out(matrix: Path, tmp_path: Path) -> None:
    values = np.load(matrix)
    values[7, 2] = np.nan
    np.save(matrix, values)
    store = ZooStore.create(tmp_path / "zoo", SPACE, ArrayRows(matrix, torch.arange(50), torch.arange(SPACE.num_params)), {"i": range(50)})
    assert store.info["dropped_non_finite"] == 1
    assert store.column("i").tolist() == [i for i in range(50) if i != 7]


@pytest.mark.parametrize(
    "array, message",
    [
        (np.zeros(5, np.float32), r"matrix of floats in C order \(got shape \[5\]"),
        (np.zeros((5, 80), np.int64), "matrix of floats in C order"),
        (np.asfortranarray(np.zeros((5, 80))), "Fortran order"),
        (np.zeros((3, 80)), "'rows' to hold positions below 3"),
        (np.zeros((5, 60)), "'columns' to hold positions below 60"),
    ],
)
def test_matrices_that_do_not_fit(tmp_path: Path, array: np.ndarray, message: str) -> None:
    np.save(tmp_path / "weights.npy", array)
    with pytest.raises(ValueError, match=message):
        ArrayRows(tmp_path / "weights.npy", torch.arange(5), torch.arange(80))


def test_a_file_that_is_no_matrix(tmp_path: Path) -> None:
    (tmp_path / "weights.npy").write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match=r"is not a \.npy file, or is damaged"):
        ArrayRows(tmp_path / "weights.npy", torch.arange(5), torch.arange(80))


# == Choosing ==


def test_select(many: ZooStore) -> None:
    dataset = many.dataset(target="number")
    assert dataset.select({"run": ["run 1", "run 3"]}).y.tolist() == [4, 5, 6, 7, 12, 13, 14, 15]
    chosen = dataset.select({"run": "run 1"}).select({"number": lambda number: number > 5})
    assert chosen.y.tolist() == [6, 7]
    assert torch.equal(chosen.thetas, many.thetas[6:8])
    assert dataset.select({"number": {3, 5}}).y.tolist() == [3, 5]
    many.set_column("single", np.array([0.1] * 3 + [0.5] * 17, np.float32))
    assert len(many.dataset(target=None).select({"single": 0.1})) == 3
    with pytest.raises(ValueError, match="no column 'epoch'"):
        dataset.select({"epoch": 3})
    with pytest.raises(ValueError, match=r"the condition on 'run', which holds strings, to be of that kind too \(got 1\)"):
        dataset.select({"run": 1})
    with pytest.raises(ValueError, match=r"on 'number', which holds numbers or bools, to be of that kind too \(got \['1', 2\]\)"):
        dataset.select({"number": ["1", 2]})
    assert len(dataset.select({"run": []})) == 0
    with pytest.raises(ValueError, match=r"return a mask with one entry per network, 20 \(got shape \[\], bool\)"):
        dataset.select({"number": lambda number: True})


def test_statistics_are_those_of_each_parameter(many: ZooStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_module, "_BLOCK_BYTES", 8 * SPACE.num_params * 3)
    many.dataset(target=None)
    dataset = many.dataset(target=None)[3:18]
    statistics = dataset.statistics()
    assert list(statistics) == [param.name for param in SPACE.params]
    for name, values in SPACE.unflatten(dataset.thetas.double()).items():
        expected = [values.mean(), values.std(correction=0), values.min(), values.max()]
        assert torch.allclose(torch.tensor(statistics[name], dtype=torch.float64), torch.stack(expected), rtol=1e-12)


@pytest.mark.slow
def test_memory_stays_bounded_while_all_is_read(tmp_path: Path) -> None:
    space = WeightSpace.mlp([62, 62, 2])
    rows = 100_000_000 // space.num_params
    store = ZooStore.create(tmp_path / "zoo", space, torch.zeros(rows, space.num_params), {"test_accuracy": np.zeros(rows)})
    script = f"""
import re, torch, wsgraph.data
from wsgraph.data import folder as folder_module
folder_module._RESIDENT = 60 * 2**20
def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read()).group(1)) / 1024
store = wsgraph.data.ZooStore({str(store.path)!r})
dataset = store.dataset()
dataset.batch([0])
before, most = resident(), 0
for positions in torch.randperm(len(store)).split(256):
    dataset.batch(positions)
    most = max(most, resident())
print(most - before)
"""
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc to measure resident memory")
    root = Path(folder_module.__file__).parents[2]
    output = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=root).stdout
    assert float(output) < 150  # of 400 MB
