"""The Small CNN Zoo: the published layout, its function, the published splits, and every way in which files can be wrong."""

import csv
import gzip
import io
import random
import shutil
import tarfile
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wsgraph.data.public import SmallCNNZoo, base
from wsgraph.data.transforms import Canonicalize, WeightTransform
from wsgraph.space import WeightSpace

NAME = "cifar10"
STEPS = (0, 1, 2, 3, 20, 40, 60, 80, 86)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A twin of an odd number of runs that no test changes."""
    root = tmp_path_factory.mktemp("published")
    SmallCNNZoo.write_fake(root, NAME, runs=41)
    return root


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A twin of 6 runs and 2 steps, to be damaged."""
    SmallCNNZoo.write_fake(tmp_path, NAME, runs=6, steps=(0, 86))
    return tmp_path


def _folder(root: Path) -> Path:
    return root / NAME / "raw" / NAME


def _metrics(root: Path) -> list[dict[str, str]]:
    with gzip.open(_folder(root) / "metrics.csv.gz", "rt") as file:
        return list(csv.DictReader(file))


def _write_metrics(root: Path, rows: list[dict[str, str]]) -> None:
    with gzip.open(_folder(root) / "metrics.csv.gz", "wt") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def _split_file(root: Path) -> Path:
    return root / NAME / "raw" / "cifar10_split.csv"


# == What is read ==


def test_the_table_is_the_published_one(published: Path) -> None:
    zoo = SmallCNNZoo(published, NAME)
    metrics = _metrics(published)
    rows = zoo.column("row")
    assert sorted(rows) == [i for i, row in enumerate(metrics) if row["step"] == "86"]
    for name in ("config.activation", "config.dataset", "modeldir"):
        assert zoo.column(name).tolist() == [metrics[i][name] for i in rows]
    assert zoo.column("activation").tolist() == zoo.column("config.activation").tolist()
    assert zoo.column("run").tolist() == zoo.column("modeldir").tolist()
    assert zoo.y.tolist() == pytest.approx([float(metrics[i]["test_accuracy"]) for i in rows])
    assert [zoo.column(name).dtype.kind for name in ("step", "config.learning_rate", "config.random_seed", "split")] == ["i", "f", "i", "U"]
    assert "" not in zoo.store.table
    assert {name for name in metrics[0] if name} | {"activation", "run", "row", "split"} == set(zoo.store.table)
    assert {str(space.groups[1].activation) for space in zoo.spaces} == {"relu", "tanh"}


def test_weights_are_transposed_from_the_layout_of_tensorflow(published: Path) -> None:
    zoo = SmallCNNZoo(published, NAME, activation="tanh")
    assert zoo.space == WeightSpace.cnn([1, 16, 16, 16], [10], "tanh", stride=2)
    raw = torch.from_numpy(np.load(_folder(published) / "weights.npy")[zoo.column("row")])
    tensors = zoo.space.unflatten(zoo.thetas)
    assert torch.equal(tensors["layers.0.bias"], raw[:, :16])
    assert torch.equal(tensors["layers.0.weight"], raw[:, 16:160].view(-1, 3, 3, 1, 16).permute(0, 4, 3, 1, 2))
    assert torch.equal(tensors["layers.1.weight"], raw[:, 176:2480].view(-1, 3, 3, 16, 16).permute(0, 4, 3, 1, 2))
    assert torch.equal(tensors["layers.2.bias"], raw[:, 2480:2496])
    assert torch.equal(tensors["layers.3.weight"], raw[:, 4810:].view(-1, 16, 10).transpose(1, 2))
    assert torch.equal(tensors["layers.3.bias"], raw[:, 4800:4810])


def _published_network(row: np.ndarray, images: np.ndarray, activation: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The network as TensorFlow computes it, on images ``[n, height, width, channels]``, position by position."""
    values = images
    for start, inputs in ((0, 1), (160, 16), (2480, 16)):
        bias, kernel = row[start : start + 16], row[start + 16 : start + 16 + 9 * inputs * 16].reshape(3, 3, inputs, 16)
        side = (values.shape[1] - 3) // 2 + 1
        result = np.empty((len(values), side, side, 16))
        for y in range(side):
            for x in range(side):
                patch = values[:, 2 * y : 2 * y + 3, 2 * x : 2 * x + 3]
                result[:, y, x] = np.einsum("nijc,ijco->no", patch, kernel) + bias
        values = activation(result)
    return values.mean((1, 2)) @ row[4810:].reshape(16, 10) + row[4800:4810]


@pytest.mark.parametrize("activation, function", [("relu", lambda v: np.maximum(v, 0)), ("tanh", np.tanh)])
def test_networks_compute_what_tensorflow_computes(published: Path, activation: str, function: Callable[[np.ndarray], np.ndarray]) -> None:
    zoo = SmallCNNZoo(published, NAME, activation=activation)
    images = np.random.default_rng(0).uniform(-1, 1, (3, 28, 28, 1))
    rows = np.load(_folder(published) / "weights.npy")[zoo.column("row")[:2]].astype(float)
    expected = np.stack([_published_network(row, images, function) for row in rows])
    found = zoo.space.evaluate(zoo.thetas[:2].double(), torch.from_numpy(images).permute(0, 3, 1, 2))
    torch.testing.assert_close(found, torch.from_numpy(expected))
    assert found.std() > 0.1


def test_the_matrix_is_not_copied(published: Path, tmp_path: Path) -> None:
    zoo = SmallCNNZoo(published, NAME)
    assert all(shard.is_linked for shard in zoo.store.shards)
    assert sum(file.stat().st_size for file in zoo.store.path.rglob("*")) < 0.1 * (_folder(published) / "weights.npy").stat().st_size
    assert zoo.store.verify() == []
    shutil.copytree(published, tmp_path / "moved")
    moved = SmallCNNZoo(tmp_path / "moved", NAME)
    assert torch.equal(moved.store.read(torch.tensor([7])), zoo.store.read(torch.tensor([7])))


def test_files_may_lie_without_their_folder(small: Path) -> None:
    expected = SmallCNNZoo(small, NAME).column("row").tolist()
    for file in _folder(small).iterdir():
        file.rename(file.parent.parent / file.name)
    _folder(small).rmdir()
    assert SmallCNNZoo(small, NAME, force_reload=True).column("row").tolist() == expected


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_any_precision_is_read(small: Path, dtype: Any) -> None:
    weights = np.load(_folder(small) / "weights.npy").astype(dtype)
    np.save(_folder(small) / "weights.npy", weights)
    zoo = SmallCNNZoo(small, NAME, activation="relu")
    assert np.array_equal(zoo.thetas[:, -10:].numpy(), weights[zoo.column("row"), 4800:4810])


def test_the_architecture_is_that_of_the_layout(small: Path) -> None:
    np.save(_folder(small) / "weights.npy", np.arange(12 * 65, dtype=np.float32).reshape(12, 65))
    lines = [
        'b/bias:0,"(3,)",45,48',
        'a/kernel:0,"(5, 1, 2, 4)",4,44',
        'a/bias:0,"(4,)",0,4',
        'b/kernel:0,"(4, 3)",48,60',
    ]
    (_folder(small) / "layout.csv").write_text("varname,shape,start_idx,end_idx\n" + "\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=r"'b/bias:0' begins at column 45, not 44"):
        SmallCNNZoo(small, NAME)
    lines[0] = 'b/bias:0,"(3,)",44,47'
    lines[3] = 'b/kernel:0,"(4, 3)",47,59'
    (_folder(small) / "layout.csv").write_text("varname,shape,start_idx,end_idx\n" + "\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=r"says what lies in 59 columns, but the matrix beside it has 65"):
        SmallCNNZoo(small, NAME)
    np.save(_folder(small) / "weights.npy", np.arange(12 * 59, dtype=np.float32).reshape(12, 59))
    zoo = SmallCNNZoo(small, NAME, activation="relu")
    assert zoo.space == WeightSpace.cnn([2, 4], [3], kernel_size=(5, 1), stride=2)
    weight = zoo.space.unflatten(zoo.thetas[0])["layers.0.weight"]
    assert weight[3, 1].flatten().tolist() == [59 * zoo.column("row")[0] + 4 + 8 * i + 4 + 3 for i in range(5)]


def test_networks_that_are_not_finite_are_dropped_and_counted(published: Path) -> None:
    zoo = SmallCNNZoo(published, NAME, steps=None)
    assert len(zoo) == 9 * 41 - 3
    assert zoo.store.info["dropped_non_finite"] == 2
    assert zoo.store.info["dropped_without_accuracy"] == 1
    assert all(zoo.of_space(space).thetas.isfinite().all() for space in zoo.spaces)
    assert np.isfinite(zoo.column("test_accuracy")).all()


@pytest.mark.parametrize("steps", [0, [60, 86], range(4)])
def test_steps_are_chosen(published: Path, steps: Any) -> None:
    zoo = SmallCNNZoo(published, NAME, steps=steps)
    assert set(zoo.column("step")) == ({steps} if isinstance(steps, int) else set(steps))


def test_graphs_of_both_activations_make_a_batch(published: Path) -> None:
    zoo = SmallCNNZoo(published, NAME, "test")
    batch = zoo.batch(range(len(zoo)))
    assert len(batch.spaces) == 2
    assert torch.equal(torch.as_tensor(batch.y), zoo.y)


# == Splits ==


def _expected_split(root: Path, activation: str | None, *, filter_first: bool) -> dict[str, set[int]]:
    """Rows by split, along the published procedure."""
    metrics = _metrics(root)
    order = [int(line) for line in _split_file(root).read_text().split()]
    assert order[0] == 0
    finals = [row for row in order[1:] if metrics[row]["step"] == "86"]

    def keeps(row: int) -> bool:
        return activation in (None, metrics[row]["config.activation"])

    if filter_first:
        finals = [row for row in finals if keeps(row)]
    point = int(0.5 * len(finals))
    learning = list(range(point))
    random.Random(0).shuffle(learning)
    positions = {"train": learning[: int(0.8 * point)], "val": learning[int(0.8 * point) :], "test": list(range(point, len(finals)))}
    return {split: {finals[i] for i in chosen if keeps(finals[i])} for split, chosen in positions.items()}


@pytest.mark.parametrize("activation", [None, "relu", "tanh"])
@pytest.mark.parametrize("before", [True, False])
def test_published_splits(published: Path, activation: str | None, before: bool) -> None:
    options: dict[str, Any] = {"activation": activation, "splits": _split_file(published), "split_before_filter": before}
    expected = _expected_split(published, activation, filter_first=not before)
    zoo = SmallCNNZoo(published, NAME, **options)
    assert {split: set(zoo.column("row")[zoo.column("split") == split]) for split in expected} == expected
    if activation is None:
        assert set(SmallCNNZoo(published, NAME, "val", **options).column("row")) == expected["val"]
        assert {split: len(rows) for split, rows in expected.items()} == {"train": 16, "val": 4, "test": 21}


def test_the_two_conventions_differ(published: Path) -> None:
    options: dict[str, Any] = {"activation": "relu", "splits": _split_file(published)}
    first, second = (SmallCNNZoo(published, NAME, "test", split_before_filter=before, **options) for before in (True, False))
    assert set(first.column("row")) != set(second.column("row"))


def test_the_header_in_a_split_file_is_no_row(published: Path, tmp_path: Path) -> None:
    header, *lines = _split_file(published).read_text().splitlines()
    assert header == "0"
    (tmp_path / "clean.csv").write_text("\n".join(lines))
    clean, dirty = (SmallCNNZoo(published, NAME, splits=file) for file in (tmp_path / "clean.csv", _split_file(published)))
    assert clean.column("split").tolist() == dirty.column("split").tolist()


def test_a_split_file_that_begins_with_row_0_keeps_it(small: Path) -> None:
    metrics = _metrics(small)
    metrics[0]["step"], metrics[1]["step"] = "86", "0"
    _write_metrics(small, metrics)
    _split_file(small).write_text("\n".join(map(str, range(12))))
    zoo = SmallCNNZoo(small, NAME, splits=_split_file(small))
    assert 0 in zoo.column("row")[zoo.column("split") != "test"]


@pytest.mark.parametrize("file", [True, False])
def test_no_run_is_in_two_splits(published: Path, file: bool) -> None:
    splits = _split_file(published) if file else None
    zoo = SmallCNNZoo(published, NAME, steps=None, splits=splits)
    of_run: dict[str, set[str]] = {}
    for run, split in zip(zoo.column("run"), zoo.column("split"), strict=True):
        of_run.setdefault(run, set()).add(split)
    assert len(of_run) == 41
    assert all(len(found) == 1 for found in of_run.values())
    finals = SmallCNNZoo(published, NAME, splits=splits)
    assert dict(zip(finals.column("run"), finals.column("split"), strict=True)) == {run: found.pop() for run, found in of_run.items()}


def test_a_run_without_a_final_checkpoint_is_for_training(small: Path) -> None:
    metrics = _metrics(small)
    metrics[3]["step"] = "80"
    _write_metrics(small, metrics)
    zoo = SmallCNNZoo(small, NAME, steps=None, splits=_split_file(small))
    assert set(zoo.column("split")[zoo.column("run") == metrics[3]["modeldir"]]) == {"train"}


def test_random_splits(published: Path) -> None:
    first, again, other = (SmallCNNZoo(published, NAME, seed=seed, activation=None) for seed in (0, 0, 1))
    assert first.store.splits == {"train": 16, "val": 4, "test": 21}
    assert first.column("split").tolist() == again.column("split").tolist()
    assert first.column("split").tolist() != other.column("split").tolist()
    # Split before the filter, a network is in the same split whatever the filter; the other way round every filter has its own sizes.
    relu = SmallCNNZoo(published, NAME, activation="relu")
    both = dict(zip(first.column("run"), first.column("split"), strict=True))
    assert [both[run] for run in relu.column("run")] == relu.column("split").tolist()
    assert SmallCNNZoo(published, NAME, activation="relu", split_before_filter=False).store.splits == {"train": 8, "val": 2, "test": 11}


# == Options ==


def test_every_choice_of_options_is_read_once(small: Path, tmp_path: Path) -> None:
    paths = {SmallCNNZoo(small, NAME, **options).store.path for options in ({}, {"steps": 0}, {"seed": 1}, {"activation": "relu"})}
    with_file = SmallCNNZoo(small, NAME, splits=_split_file(small))
    assert len({*paths, with_file.store.path}) == 5
    moved = _split_file(small).rename(tmp_path / "elsewhere.csv")
    (_folder(small) / "metrics.csv.gz").write_bytes(b"")
    assert SmallCNNZoo(small, NAME, splits=moved).store.path == with_file.store.path
    assert SmallCNNZoo(small, NAME, steps=[86]).store.path == SmallCNNZoo(small, NAME).store.path
    with pytest.raises(ValueError, match="lacks the column 'step'"):
        SmallCNNZoo(small, NAME, force_reload=True)


def test_a_transform_is_applied_once(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_BLOCK", 7)
    plain = SmallCNNZoo(published, NAME, activation="tanh", steps=None)
    zoo = SmallCNNZoo(published, NAME, activation="tanh", steps=None, pre_transform=Canonicalize())
    assert not any(shard.is_linked for shard in zoo.store.shards)
    assert zoo.column("row").tolist() == plain.column("row").tolist()
    assert zoo.store.info["dropped_non_finite"] == plain.store.info["dropped_non_finite"]
    assert torch.equal(zoo.thetas, plain.space.canonicalize(plain.thetas))
    assert not torch.equal(zoo.thetas, plain.thetas)


def test_a_transform_never_sees_networks_that_are_dropped(published: Path) -> None:
    class Strict(WeightTransform):
        def weights(self, space: WeightSpace, thetas: torch.Tensor) -> torch.Tensor:
            assert thetas.isfinite().all()
            return thetas.double()

    zoo = SmallCNNZoo(published, NAME, steps=None, pre_transform=Strict())
    assert zoo.store.dtype == torch.float64
    assert zoo.store.info["dropped_non_finite"] == 2


@pytest.mark.parametrize(
    "options, message",
    [
        ({"activation": "gelu"}, "'activation' to be None or one of relu, tanh, sigmoid, selu .*'gelu'"),
        ({"activation": "selu"}, "no networks with activation 'selu' at that step; its activations: relu, tanh"),
        ({"steps": 85}, "no networks of step 85; its steps: 0, 86"),
        ({"steps": []}, "'steps' to be an integer, several, or None"),
        ({"steps": "86"}, "'steps' to be an integer, several, or None"),
        ({"split": "training"}, "no split 'training'. Its splits: "),
        ({"target": "accuracy"}, "no column 'accuracy'"),
        ({"pre_transform": torch.relu}, "'pre_transform' to be one of wsgraph.data.transforms"),
    ],
)
def test_options_that_cannot_be(small: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        SmallCNNZoo(small, NAME, **options)


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'name' to be one of cifar10, svhn_cropped, mnist, fashion_mnist"):
        SmallCNNZoo(tmp_path, "svhn")
    with pytest.raises(ValueError, match="'name' to be one of cifar10"):
        SmallCNNZoo.write_fake(tmp_path, "svhn")
    with pytest.raises(FileNotFoundError, match=r"no split file 'nowhere.csv'.*predict_gen_data_splits"):
        SmallCNNZoo(tmp_path, NAME, splits="nowhere.csv")


def test_a_twin_never_replaces_files(small: Path) -> None:
    with pytest.raises(FileExistsError, match="may hold published files"):
        SmallCNNZoo.write_fake(small, NAME)


def test_a_twin_follows_its_seed(tmp_path: Path) -> None:
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        SmallCNNZoo.write_fake(tmp_path / folder, "svhn_cropped", runs=2, seed=seed, split_csv=folder != "c")
    files = [{f.name: f.read_bytes() for f in (tmp_path / folder).rglob("*") if f.is_file()} for folder in "abc"]
    assert files[0] == files[1]
    assert files[0]["weights.npy"] != files[2]["weights.npy"]
    assert sorted(files[0]) == ["layout.csv", "metrics.csv.gz", "svhn_split.csv", "weights.npy"]
    assert sorted(files[2]) == ["layout.csv", "metrics.csv.gz", "weights.npy"]


# == Damaged files ==


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-20])


def _replace(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def _edit(root: Path, edit: Callable[[list[dict[str, str]]], Any]) -> None:
    rows = _metrics(root)
    edit(rows)
    _write_metrics(root, rows)


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda root: _cut(_folder(root) / "weights.npy"), r"weights.npy' is truncated: .* Fetch it again"),
        (lambda root: (_folder(root) / "weights.npy").write_bytes(b"none"), r"weights.npy' is not a .npy file"),
        (lambda root: _cut(_folder(root) / "metrics.csv.gz"), r"metrics.csv.gz' is damaged .* Fetch it again"),
        (lambda root: (_folder(root) / "metrics.csv.gz").write_bytes(b"step,86\n"), r"metrics.csv.gz' is damaged .*[Nn]ot a gzipped file"),
        (lambda root: _edit(root, lambda rows: rows.pop()), r"metrics.csv.gz' has 11 rows, but '.*weights.npy' has 12: two zoos are mixed"),
        (lambda root: _edit(root, lambda rows: [row.pop("modeldir") for row in rows]), r"metrics.csv.gz' lacks the column 'modeldir'; its"),
        (lambda root: _edit(root, lambda rows: [row.pop("step") for row in rows]), r"metrics.csv.gz' lacks the column 'step'"),
        (
            lambda root: _edit(root, lambda rows: rows[2].update(step="last")),
            r"numbers in the column 'step' of '.*metrics.csv.gz' .*'last'",
        ),
        (
            lambda root: _edit(root, lambda rows: rows[3].update({"config.activation": "swish"})),
            r"metrics.csv.gz' names an unknown activation 'swish'; known ones: relu, tanh, sigmoid, selu",
        ),
        (
            lambda root: (_folder(root) / "metrics.csv.gz").write_bytes(gzip.compress(b"step,modeldir\n86\n")),
            r"metrics.csv.gz' lacks the column 'config.activation'",
        ),
        (
            lambda root: (_folder(root) / "metrics.csv.gz").write_bytes(
                gzip.compress(b"step,modeldir,config.activation,test_accuracy\n86,a,relu\n")
            ),
            r"metrics.csv.gz' is damaged \(line 2 does not have 4 entries\)",
        ),
        (
            lambda root: _replace(_folder(root) / "layout.csv", "end_idx", "end"),
            r"layout.csv' lacks the column 'end_idx'; its columns: varn",
        ),
        (lambda root: _replace(_folder(root) / "layout.csv", "dense/bias:0", "dense/gamma:0"), r"variable 'sequential/dense/gamma:0'"),
        (
            lambda root: _replace(_folder(root) / "layout.csv", "(16, 10)", "(16, 11)"),
            r"'sequential/dense/kernel:0' in columns 4810 to 4970",
        ),
        (lambda root: _replace(_folder(root) / "layout.csv", "(16, 10)", "__import__('os')"), r"has shape \"__import__\('os'\)\""),
        (lambda root: _replace(_folder(root) / "layout.csv", "(16, 10)", "(10, 16)"), r"kernel of 'sequential/dense' of shape \[10, 16\]"),
        (
            lambda root: _replace(_folder(root) / "layout.csv", "conv2d_1/bias", "conv2d_7/bias"),
            r"kernel of 'sequential/conv2d_7' of shape",
        ),
        (lambda root: (_folder(root) / "layout.csv").write_text(""), r"layout.csv' lacks the column 'varname'; its columns: none"),
    ],
)
def test_damaged_files(small: Path, damage: Callable[[Path], Any], message: str) -> None:
    damage(small)
    with pytest.raises(ValueError, match=message):
        SmallCNNZoo(small, NAME)
    assert [path for path in (small / NAME / "processed").iterdir() if not path.name.endswith(".lock")] == []


@pytest.mark.parametrize(
    "lines, message",
    [
        ([*range(11)], r"cifar10_split.csv' lacks 1 of the 12 rows of the zoo, such as 11; it is of another"),
        ([*range(1, 12), 12], r"names row 12, but the zoo has rows 0 to 11; it is of another zoo"),
        ([-1, *range(1, 12)], r"names row -1"),
        ([*range(12), 5], r"names rows twice; it is of another zoo"),
        (["first", *range(12)], r"one row number per line in the split file .*'first'"),
        ([], r"lacks 12 of the 12 rows of the zoo, such as 0"),
    ],
)
def test_split_files_of_another_zoo(small: Path, lines: list[Any], message: str) -> None:
    _split_file(small).write_text("\n".join(map(str, lines)))
    with pytest.raises(ValueError, match=message):
        SmallCNNZoo(small, NAME, splits=_split_file(small))


def test_runs_must_be_told_apart(small: Path) -> None:
    _edit(small, lambda rows: [row.update(modeldir="same") for row in rows])
    with pytest.raises(ValueError, match=r"'modeldir' of 'cifar10' does not tell runs apart"):
        SmallCNNZoo(small, NAME, splits=_split_file(small))
    _edit(small, lambda rows: [row.update(modeldir=str(i)) for i, row in enumerate(rows)])
    assert len(SmallCNNZoo(small, NAME, splits=_split_file(small))) == 6
    with pytest.raises(ValueError, match=r"does not say which checkpoints are of one run: all entries differ"):
        SmallCNNZoo(small, NAME, steps=None)


def test_no_network_has_an_accuracy(small: Path) -> None:
    _edit(small, lambda rows: [row.update(test_accuracy="nan") for row in rows])
    with pytest.raises(ValueError, match="at least one network"):
        SmallCNNZoo(small, NAME)


# == Fetching ==


def _archive(root: Path, file: Path) -> Path:
    with tarfile.open(file, "w:xz") as archive:
        archive.add(_folder(root), NAME)
    return file


def _fetching(monkeypatch: pytest.MonkeyPatch, file: Path, checksum: str | None) -> list[str]:
    """Let the reader fetch a local file in place of the published one."""
    asked: list[str] = []

    def download_url(url: str, folder: str) -> str:
        asked.append(url)
        Path(folder).mkdir(parents=True, exist_ok=True)
        return str(shutil.copy(file, Path(folder) / url.rpartition("/")[2]))

    monkeypatch.setattr(base, "download_url", download_url)
    monkeypatch.setattr(SmallCNNZoo, "archives", {NAME: SmallCNNZoo.archives[NAME]._replace(checksum=checksum)})
    return asked


def test_the_archive_is_fetched(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = _archive(small, tmp_path / "published.tar.xz")
    asked = _fetching(monkeypatch, file, base.sha256(file))
    fetched = SmallCNNZoo(tmp_path / "new", NAME)
    assert asked == ["https://storage.googleapis.com/gresearch/smallcnnzoo-dataset/cifar10.tar.xz"]
    assert fetched.column("row").tolist() == SmallCNNZoo(small, NAME).column("row").tolist()
    assert [path.name for path in fetched.raw_dir.iterdir()] == [NAME]
    SmallCNNZoo(tmp_path / "new", NAME, steps=0)
    assert len(asked) == 1


def test_another_archive_than_the_published_one(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fetching(monkeypatch, _archive(small, tmp_path / "published.tar.xz"), "0" * 64)
    with pytest.raises(ValueError, match="did not give the published file: its SHA-256 is"):
        SmallCNNZoo(tmp_path / "new", NAME)
    assert list((tmp_path / "new" / NAME / "raw").iterdir()) == []


@pytest.mark.parametrize("damage", ["cut", "flipped", "none"])
def test_a_damaged_archive(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    file = _archive(small, tmp_path / "published.tar.xz")
    content = bytearray(file.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 255
    damaged = {"cut": content[: len(content) // 2], "flipped": content, "none": bytearray(b"<html>404</html>")}
    file.write_bytes(damaged[damage])
    _fetching(monkeypatch, file, None)
    with pytest.raises(ValueError, match=r"Cannot unpack '.*cifar10.tar.xz' .* it is damaged: delete it and try again"):
        SmallCNNZoo(tmp_path / "new", NAME)


def test_an_archive_writes_nothing_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tarfile.open(tmp_path / "published.tar.xz", "w:xz") as archive:
        member = tarfile.TarInfo("../../../../evil")
        member.size = 4
        archive.addfile(member, io.BytesIO(b"evil"))
    _fetching(monkeypatch, tmp_path / "published.tar.xz", None)
    with pytest.raises(ValueError, match="Cannot unpack"):
        SmallCNNZoo(tmp_path / "a" / "b", NAME)
    assert not list(tmp_path.rglob("evil"))


def test_no_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download_url(url: str, folder: str) -> str:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "cifar10.tar.xz").write_bytes(b"half of it")
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(base, "download_url", download_url)
    with pytest.raises(FileNotFoundError, match=r"could not be fetched to '.*raw' .*service not known.*dnn_predict_accuracy and unpack it"):
        SmallCNNZoo(tmp_path, NAME)
    assert not list(tmp_path.rglob("*.xz"))


def test_a_reader_that_cannot_fetch_says_where_to_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SmallCNNZoo, "archives", {})
    with pytest.raises(FileNotFoundError, match=r"weights.npy, layout.csv, metrics.csv.gz in '.*raw'. Fetch the archive .*github.com"):
        SmallCNNZoo(tmp_path, NAME)
