"""The readers of published implicit neural representations: formats, splits, pictures, and every way in which files can be wrong."""

import io
import json
import os
import pickle
import shutil
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wsgraph.convert import CheckpointError
from wsgraph.data import ZooStore, ZooWarning
from wsgraph.data.public import NavonINRs, ZhouSIRENs, base, inrs
from wsgraph.data.transforms import Canonicalize
from wsgraph.space import Signal


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    NavonINRs.write_fake(tmp_path, "mnist")
    return tmp_path


@pytest.fixture
def fashion(tmp_path: Path) -> Path:
    NavonINRs.write_fake(tmp_path, "fashion_mnist")
    return tmp_path


def _load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


# == The published networks ==


class _NavonNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seq = nn.ModuleList([nn.Linear(2, 32), nn.Linear(32, 32), nn.Linear(32, 1)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.seq[:-1]:
            x = torch.sin(30.0 * layer(x))
        return self.seq[-1](x) + 0.5

    def picture(self) -> Tensor:
        x, y = np.meshgrid(np.linspace(-1, 1, 28), np.linspace(-1, 1, 28))
        points = torch.from_numpy(np.stack([x.flatten(), y.flatten()], axis=1)).float()
        return self(points).view(28, 28)[None]


class _Sine(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, 32)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(30.0 * self.linear(x))


class _ZhouNetwork(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(_Sine(2), _Sine(32), nn.Linear(32, channels))

    def picture(self, side: int) -> Tensor:
        lines = torch.linspace(-1, 1, side)
        points = torch.stack(torch.meshgrid(lines, lines, indexing="ij"), dim=-1)
        return self.net(points).movedim(-1, 0)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_pictures_of_navon(tmp_path: Path, name: str) -> None:
    NavonINRs.write_fake(tmp_path, name, training=3, testing=1)
    zoo = NavonINRs(tmp_path, name)
    assert zoo.space.signal == Signal((28, 28), "column", 0.5, (0.0, 1.0))
    pattern = "mnist-inrs/*training*/checkpoints/model_final.pth" if name == "mnist" else "fmnist_inrs/train/*.pth"
    pictures = zoo.space.render(zoo.thetas)
    for path in (tmp_path / name / "raw").glob(pattern):
        state = _load(path)
        state.pop("label", None)
        network = _NavonNetwork()
        network.load_state_dict(state)
        index = int((path.parts[-3] if name == "mnist" else path.stem).split("_")[-1])
        assert torch.allclose(pictures[index], network.picture(), atol=1e-5)
    assert (pictures[0] - pictures[0].mT).abs().max() > 1e-3  # rows and columns can be told apart


@pytest.mark.parametrize("name, channels, side", [("mnist", 1, 28), ("fashion_mnist", 1, 28), ("cifar10", 3, 32)])
def test_pictures_of_zhou(tmp_path: Path, name: str, channels: int, side: int) -> None:
    ZhouSIRENs.write_fake(tmp_path, name, training=2, validation=1, testing=1, augmentations=0)
    zoo = ZhouSIRENs(tmp_path, name)
    assert zoo.space.signal == Signal((side, side), "row", 0.0, (-1.0, 1.0))
    pictures = zoo.space.render(zoo.thetas)
    assert pictures.shape == (4, channels, side, side)
    indices = zoo.column("index").tolist()
    for path in (tmp_path / name / "raw").rglob("net*.pth"):
        network = _ZhouNetwork(channels)
        network.load_state_dict(_load(path))
        assert torch.allclose(pictures[indices.index(int(path.stem[3:]))], network.picture(side), atol=1e-5)
    assert (pictures[0] - pictures[0].mT).abs().max() > 1e-3


# == Navon et al. ==


def test_digits(mnist: Path) -> None:
    zoo = NavonINRs(mnist, "mnist")
    assert list(zoo.store.table) == ["label", "index", "image_set", "split"]
    assert zoo.column("image_set").tolist() == ["training"] * 24 + ["testing"] * 6
    assert zoo.column("index").tolist() == [*range(24), *range(6)]
    assert zoo.y.tolist() == [i % 10 for i in range(24)] + list(range(6))
    assert zoo.y.dtype == torch.int64
    assert zoo.store.splits == {"train": 22, "val": 2, "test": 6}
    for position, folder in ((3, "mnist_png_training_3_3"), (23, "mnist_png_training_3_23"), (28, "mnist_png_testing_4_4")):
        state = _load(mnist / "mnist" / "raw" / "mnist-inrs" / folder / "checkpoints" / "model_final.pth")
        assert list(state) == ["seq.0.weight", "seq.0.bias", "seq.1.weight", "seq.1.bias", "seq.2.weight", "seq.2.bias"]
        assert torch.equal(zoo.thetas[position], torch.cat([tensor.flatten() for tensor in state.values()]))
    train, test = (NavonINRs(mnist, "mnist", split) for split in ("train", "test"))
    assert len(train) == 22
    assert test.column("image_set").tolist() == ["testing"] * 6
    assert test[4].y.tolist() == [4]
    assert NavonINRs(mnist, "mnist", target="index").y.tolist() == [*range(24), *range(6)]


def test_the_size_of_the_published_sets(mnist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo = NavonINRs(mnist, "mnist")
    fits = [
        inrs.Fit(Path(f"{part}_{i}"), {"label": 0, "index": i, "image_set": part})
        for part, count in (("training", 60_000), ("testing", 10_000))
        for i in range(count)
    ]
    monkeypatch.setattr(zoo, "_found", lambda: fits)
    assert Counter((fit.row["image_set"], fit.row["split"]) for fit in zoo._fits()) == {
        ("training", "train"): 55_000,
        ("training", "val"): 5_000,
        ("testing", "test"): 10_000,
    }


def test_the_validation_split_is_drawn_by_the_seed(mnist: Path) -> None:
    splits = [NavonINRs(mnist, "mnist", seed=seed).column("split").tolist() for seed in (0, 0, 1, 2, 3)]
    assert splits[0] == splits[1]
    # Of 24 pictures two are drawn, sometimes the same ones.
    assert len({tuple(split) for split in splits}) > 2
    assert all(split[24:] == ["test"] * 6 for split in splits)


def test_other_pictures_in_the_archive_are_not_read(mnist: Path) -> None:
    folder = mnist / "mnist" / "raw" / "mnist-inrs"
    shutil.copytree(folder / "mnist_png_training_3_3", folder / "cifar10_png_train_airplane_0001")
    shutil.copytree(folder / "mnist_png_training_3_3", folder / "._mnist_png_training_3_4")
    (folder / "statistics.pth").write_bytes(b"")
    assert len(NavonINRs(mnist, "mnist")) == 30


def test_clothes(fashion: Path) -> None:
    zoo = NavonINRs(fashion, "fashion_mnist")
    assert zoo.store.splits == {"val": 2, "train": 22, "test": 6}
    assert zoo.y.tolist() == [i % 10 for i in range(24)] + list(range(6))
    folder = fashion / "fashion_mnist" / "raw" / "fmnist_inrs"
    state = _load(folder / "test" / "model_5.pth")
    assert state.pop("label") == 5
    assert torch.equal(zoo.thetas[29], torch.cat([tensor.flatten() for tensor in state.values()]))
    assert NavonINRs(fashion, "fashion_mnist", "val").column("index").tolist() == [0, 1]


@pytest.mark.parametrize("label", [torch.tensor(7), np.int64(7), torch.tensor([7])])
def test_labels_of_clothes_come_in_many_forms(fashion: Path, label: Any) -> None:
    path = fashion / "fashion_mnist" / "raw" / "fmnist_inrs" / "train" / "model_3.pth"
    torch.save({**_load(path), "label": label}, path)
    assert NavonINRs(fashion, "fashion_mnist").y[:5].tolist() == [0, 1, 2, 7, 4]


def test_clothes_without_their_splits(fashion: Path) -> None:
    (fashion / "fashion_mnist" / "raw" / "fmnist_inrs" / "splits.json").unlink()
    assert NavonINRs(fashion, "fashion_mnist").store.splits == {"train": 22, "val": 2, "test": 6}


# == Files of splits ==


def _digit(i: int, part: str = "training") -> str:
    return f"/scratch/of/someone/mnist-inrs/mnist_png_{part}_{i % 10}_{i}/checkpoints/model_final.pth"


def _write(path: Path, document: Any) -> Path:
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def test_published_splits_of_digits(mnist: Path, tmp_path: Path) -> None:
    parts = {"train": [_digit(13), _digit(5)], "val": [_digit(2)], "test": [_digit(1, "testing")]}
    document = {split: {"path": paths, "label": [path.split("_")[-3] for path in paths]} for split, paths in parts.items()}
    assert document["train"]["label"] == ["3", "5"]
    zoo = NavonINRs(mnist, "mnist", splits=_write(tmp_path / "splits.json", document))
    assert zoo.column("index").tolist() == [2, 5, 13, 1]
    assert zoo.column("split").tolist() == ["val", "train", "train", "test"]
    # Another file of that name makes another zoo.
    document["train"]["label"].append("7")
    document["train"]["path"].append(_digit(7))
    assert len(NavonINRs(mnist, "mnist", splits=_write(tmp_path / "splits.json", document))) == 5


def test_published_splits_of_clothes(fashion: Path, tmp_path: Path) -> None:
    document = {"train": {"path": ["fmnist_inrs/train/model_4.pth"], "label": [4]}, "test": {"path": ["x/test/model_0.pth"], "label": [0]}}
    zoo = NavonINRs(fashion, "fashion_mnist", splits=_write(tmp_path / "splits.json", document))
    assert zoo.y.tolist() == [4, 0]
    document["train"]["label"] = [5]
    with pytest.raises(ValueError, match=r"The splits say that .*train/model_4.pth' is of class 5, its own label is 4\."):
        NavonINRs(fashion, "fashion_mnist", splits=_write(tmp_path / "splits.json", document))


@pytest.mark.parametrize(
    "document, message",
    [
        ({"train": [_digit(1), _digit(2)], "val": [_digit(1)]}, r"lists 'mnist_png_training_1_1/.*' twice, for 'train' and for 'val'"),
        ({"train": [_digit(1), _digit(99), _digit(98)]}, r"lists 2 networks that are not in .*, such as 'mnist_png_training_9_99/"),
        ({"train": {"path": [_digit(1)], "label": ["2"]}}, "is of class 2, its own label is 1"),
        ({"train": {"path": [_digit(1)], "label": []}}, "no file of splits: expected lists of paths by split"),
        ({"train": {"label": ["1"]}}, "no file of splits"),
        ({"train": [3]}, "no file of splits"),
        ([_digit(1)], "no file of splits"),
        ("{", "no file of splits"),
        ({}, "Found no networks"),
    ],
)
def test_splits_that_do_not_fit(mnist: Path, tmp_path: Path, document: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NavonINRs(mnist, "mnist", splits=_write(tmp_path / "splits.json", document))
    assert not [path for path in (mnist / "mnist" / "processed").iterdir() if not path.name.endswith(".lock")]


def test_splits_that_are_not_there(mnist: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no split file 'splits.json'"):
        NavonINRs(mnist, "mnist", splits="splits.json")


# == Zhou et al. ==


def test_sirens(tmp_path: Path) -> None:
    ZhouSIRENs.write_fake(tmp_path, "mnist", augmentations=2)
    zoo = ZhouSIRENs(tmp_path, "mnist")
    assert list(zoo.store.table) == ["label", "index", "augmentation", "split"]
    assert zoo.column("index").tolist() == [*range(12), *range(45_000, 45_004), *range(50_000, 50_004)]
    assert zoo.y.tolist() == [index % 10 for index in zoo.column("index").tolist()]
    assert zoo.column("augmentation").tolist() == [-1] * 20
    assert zoo.store.splits == {"train": 12, "val": 4, "test": 4}
    state = _load(tmp_path / "mnist" / "raw" / "siren_mnist_wts" / "randinit_smaller_1s" / "net45001.pth")
    assert list(state) == [f"net.{layer}.{kind}" for layer in ("0.linear", "1.linear", "2") for kind in ("weight", "bias")]
    assert torch.equal(zoo.thetas[13], torch.cat([tensor.flatten() for tensor in state.values()]))


def test_refits_join_the_training_split_alone(tmp_path: Path) -> None:
    ZhouSIRENs.write_fake(tmp_path, "cifar10", augmentations=3)
    plain, more = ZhouSIRENs(tmp_path, "cifar10"), ZhouSIRENs(tmp_path, "cifar10", augmentations=2)
    assert more.store.splits == {"train": 36, "val": 4, "test": 4}
    assert Counter(more.column("augmentation").tolist()) == {-1: 20, 0: 12, 1: 12}
    assert torch.equal(more.thetas[:20], plain.thetas)
    refit = more.select({"augmentation": 1})
    assert refit.column("index").tolist() == list(range(12))
    assert refit.column("split").tolist() == ["train"] * 12
    state = _load(tmp_path / "cifar10" / "raw" / "siren_cifar_wts" / "randinit_smaller_aug1_3s" / "net3.pth")
    assert torch.equal(refit.thetas[3], torch.cat([tensor.flatten() for tensor in state.values()]))
    with pytest.raises(ValueError, match="The sets of refits 3, 4 are not in"):
        ZhouSIRENs(tmp_path, "cifar10", augmentations=5)
    for wrong in (-1, 21, 1.5):
        with pytest.raises(ValueError, match=r"'augmentations' to be an integer from 0 to 20"):
            ZhouSIRENs(tmp_path, "cifar10", augmentations=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("bounds, split", [((44_999, 45_000), ["train", "val"]), ((49_999, 50_000), ["val", "test"])])
def test_where_the_splits_are_cut(tmp_path: Path, bounds: tuple[int, int], split: list[str]) -> None:
    ZhouSIRENs.write_fake(tmp_path, "mnist", training=1, validation=0, testing=0, augmentations=0)
    folder = tmp_path / "mnist" / "raw" / "siren_mnist_wts" / "randinit_smaller_0s"
    for index in bounds:
        shutil.copy(folder / "net0.pth", folder / f"net{index}.pth")
    (folder / "net0.pth").unlink()
    with pytest.warns(ZooWarning, match="1 network that is added to a zoo has the weights of one in another split"):
        zoo = ZhouSIRENs(tmp_path, "mnist")
    assert zoo.column("split").tolist() == split


# == Both ==


def test_networks_are_written_block_by_block(mnist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inrs, "_BLOCK", 7)
    zoo = NavonINRs(mnist, "mnist")
    assert [shard.count for shard in zoo.store.shards] == [7, 7, 7, 7, 2]
    assert zoo.column("index").tolist() == [*range(24), *range(6)]
    blocks = zoo.thetas
    monkeypatch.undo()
    assert torch.equal(NavonINRs(mnist, "mnist", force_reload=True).thetas, blocks)


def test_files_are_read_once(mnist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NavonINRs, "archives", {})
    first = NavonINRs(mnist, "mnist")
    assert first.store.finished
    assert first.store.verify() == []
    shutil.rmtree(mnist / "mnist" / "raw")
    assert torch.equal(NavonINRs(mnist, "mnist").thetas, first.thetas)
    with pytest.raises(FileNotFoundError, match=r"mnist-inrs in .*neural-graphs"):
        NavonINRs(mnist, "mnist", seed=1)


def test_pre_transform(mnist: Path) -> None:
    zoo, canonical = NavonINRs(mnist, "mnist"), NavonINRs(mnist, "mnist", pre_transform=Canonicalize())
    assert not torch.equal(canonical.thetas, zoo.thetas)
    assert torch.equal(canonical.thetas, zoo.space.canonicalize(zoo.thetas))


def test_networks_that_are_not_finite_are_left_out(mnist: Path) -> None:
    path = mnist / "mnist" / "raw" / "mnist-inrs" / "mnist_png_training_3_3" / "checkpoints" / "model_final.pth"
    torch.save({**_load(path), "seq.2.bias": torch.tensor([torch.nan])}, path)
    zoo = NavonINRs(mnist, "mnist")
    assert zoo.store.info["dropped_non_finite"] == 1
    assert zoo.column("index").tolist() == [*range(3), *range(4, 24), *range(6)]


def test_twins_are_alike_by_seed_and_never_overwrite(tmp_path: Path) -> None:
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        ZhouSIRENs.write_fake(tmp_path / folder, "mnist", seed=seed)
    first, second, third = (ZhouSIRENs(tmp_path / folder, "mnist").thetas for folder in "abc")
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    with pytest.raises(FileExistsError, match="may hold published files"):
        ZhouSIRENs.write_fake(tmp_path / "a", "mnist")
    with pytest.raises(ValueError, match="'name' to be one of mnist, fashion_mnist, cifar10"):
        ZhouSIRENs.write_fake(tmp_path, "svhn")
    with pytest.raises(ValueError, match="'name' to be one of mnist, fashion_mnist "):
        NavonINRs(tmp_path, "cifar10")


class _Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.path}'",)


def _changed(path: Path, **changes: Any) -> None:
    torch.save({key: value for key, value in {**_load(path), **changes}.items() if value is not None}, path)


_BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (lambda path: os.truncate(path, path.stat().st_size // 2), "is damaged or was not written by torch.save"),
    "empty": (lambda path: os.truncate(path, 0), "is damaged"),
    "no dict": (lambda path: torch.save(torch.ones(1185), path), "Expected .* to hold a state dict"),
    "shape": (
        lambda path: _changed(path, **{"seq.1.weight": torch.zeros(32, 31)}),
        r"Expected 'seq.1.weight' in .* to be the weight of shape \[32, 32\] of .* \(got shape \[32, 31\], torch.float32\)",
    ),
    "order": (
        lambda path: torch.save(dict(sorted(_load(path).items())), path),
        r"Expected 'seq.0.bias' in .* weight of shape \[32, 2\]",
    ),
    "integers": (
        lambda path: _changed(path, **{"seq.2.bias": torch.tensor([3])}),
        r"Expected 'seq.2.bias' .* \(got shape \[1\], torch.int64\)",
    ),
    "no tensor": (lambda path: _changed(path, **{"seq.2.bias": 0.5}), r"Expected 'seq.2.bias' .* \(got 0.5\)"),
    "missing": (lambda path: _changed(path, **{"seq.2.bias": None}), r"Expected .* to hold 6 tensors \(got 5: 'seq.0.weight', "),
    "extra": (lambda path: _changed(path, label=3), r"Expected .* to hold 6 tensors \(got 7: .*, 'label'\)"),
    "malicious": (lambda path: torch.save(_Malicious(path.with_name("canary")), path), r"state dict.* \(got Stub\(posix.system\)\)"),
    "malicious entry": (
        lambda path: torch.save(OrderedDict(a=_Malicious(path.with_name("canary"))), path),
        r"to hold 6 tensors \(got 1: 'a'\)",
    ),
}


@pytest.mark.parametrize("name", list(_BAD))
def test_bad_files(mnist: Path, name: str) -> None:
    path = mnist / "mnist" / "raw" / "mnist-inrs" / "mnist_png_testing_2_2" / "checkpoints" / "model_final.pth"
    damage, message = _BAD[name]
    damage(path)
    with pytest.raises(CheckpointError, match=message) as caught:
        NavonINRs(mnist, "mnist")
    assert repr(str(path)) in str(caught.value)
    assert not path.with_name("canary").exists()
    assert not [path for path in (mnist / "mnist" / "processed").iterdir() if not path.name.endswith(".lock")]


def test_the_malicious_file_is_one(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(_Malicious(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize("label", [None, "seven", torch.ones(2)])
def test_clothes_without_a_label(fashion: Path, label: Any) -> None:
    path = fashion / "fashion_mnist" / "raw" / "fmnist_inrs" / "train" / "model_3.pth"
    _changed(path, label=label)
    with pytest.raises(CheckpointError, match=r"Expected an integer 'label' in .*train/model_3.pth'"):
        NavonINRs(fashion, "fashion_mnist")


@pytest.mark.parametrize("name", ["mnist_png_validation_2_3", "mnist_png_training_23", "mnist_png_training_12_3"])
def test_unknown_folders_of_navon(mnist: Path, name: str) -> None:
    (mnist / "mnist" / "raw" / "mnist-inrs" / name).mkdir()
    with pytest.raises(ValueError, match=rf"Expected names such as mnist_png_training_2_23089 \(got .*{name}'\)"):
        NavonINRs(mnist, "mnist")


@pytest.mark.parametrize("name", ["randinit_smaller_10s", "randinit_smaller_augs_1s", "randinit_larger_1s"])
def test_unknown_folders_of_zhou(tmp_path: Path, name: str) -> None:
    ZhouSIRENs.write_fake(tmp_path, "mnist")
    (tmp_path / "mnist" / "raw" / "siren_mnist_wts" / name).mkdir()
    with pytest.raises(ValueError, match=rf"Expected names such as randinit_smaller_2s .* \(got .*{name}'\)"):
        ZhouSIRENs(tmp_path, "mnist")


def test_unknown_files(tmp_path: Path) -> None:
    ZhouSIRENs.write_fake(tmp_path, "mnist")
    folder = tmp_path / "mnist" / "raw" / "siren_mnist_wts" / "randinit_smaller_3s"
    for harmless in ("psnr.txt", "._net3.pth", ".DS_Store"):
        (folder / harmless).write_bytes(b"")
    (folder.parent / "readme.txt").write_bytes(b"")
    assert len(ZhouSIRENs(tmp_path, "mnist")) == 20
    (folder / "net3_copy.pth").write_bytes(b"")
    with pytest.raises(ValueError, match=r"such as net23089.pth \(got .*net3_copy.pth'\)"):
        ZhouSIRENs(tmp_path, "mnist", force_reload=True)
    NavonINRs.write_fake(tmp_path, "fashion_mnist")
    (tmp_path / "fashion_mnist" / "raw" / "fmnist_inrs" / "test" / "best.pth").write_bytes(b"")
    with pytest.raises(ValueError, match=r"such as model_23089.pth \(got .*best.pth'\)"):
        NavonINRs(tmp_path, "fashion_mnist")


def test_parts_that_are_missing(mnist: Path) -> None:
    (mnist / "mnist" / "raw" / "mnist-inrs" / "mnist_png_testing_2_2" / "checkpoints" / "model_final.pth").unlink()
    with pytest.raises(FileNotFoundError, match=r"no file .*mnist_png_testing_2_2.*Unpack the archive again"):
        NavonINRs(mnist, "mnist")
    NavonINRs.write_fake(mnist, "fashion_mnist")
    shutil.rmtree(mnist / "fashion_mnist" / "raw" / "fmnist_inrs" / "test")
    with pytest.raises(FileNotFoundError, match=r"no folder .*fmnist_inrs/test'"):
        NavonINRs(mnist, "fashion_mnist")
    shutil.rmtree(mnist / "mnist" / "raw" / "mnist-inrs")
    (mnist / "mnist" / "raw" / "mnist-inrs").mkdir()
    with pytest.raises(ValueError, match="Found no networks in"):
        NavonINRs(mnist, "mnist")


def test_files_that_cannot_be_fetched(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"'cifar10' are not there: siren_cifar_wts in .* Fetch .*siren_cifar_wts.tar .*nfn"):
        ZhouSIRENs(tmp_path, "cifar10")


@pytest.mark.parametrize("name, archive", [("mnist", "mnist-inrs.zip"), ("fashion_mnist", "fmnist_inrs.zip")])
def test_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, archive: str) -> None:
    NavonINRs.write_fake(tmp_path / "source", name)
    expected = NavonINRs(tmp_path / "source", name)
    raw = tmp_path / "source" / name / "raw"
    asked = []

    def fetch(url: str, folder: str) -> str:
        asked.append(url)
        Path(folder).mkdir(parents=True)
        file = Path(folder) / archive
        with zipfile.ZipFile(file, "w") as packed:
            for path in raw.rglob("*"):
                packed.write(path, path.relative_to(raw))
        return str(file)

    monkeypatch.setattr(base, "download_url", fetch)
    zoo = NavonINRs(tmp_path / "target", name)
    assert torch.equal(zoo.thetas, expected.thetas)
    assert [url.rpartition("/")[2] for url in asked] == [f"{archive}?dl=1"]
    assert not (tmp_path / "target" / name / "raw" / archive).exists()
    NavonINRs(tmp_path / "target", name, force_reload=True)
    assert len(asked) == 1


def test_a_download_that_breaks_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(url: str, folder: str) -> str:
        Path(folder).mkdir(parents=True)
        (Path(folder) / "mnist-inrs.zip").write_bytes(b"PK")
        raise OSError("the connection broke")

    monkeypatch.setattr(base, "download_url", fetch)
    with pytest.raises(FileNotFoundError, match=r"could not be fetched .*\(the connection broke\)\. Fetch mnist-inrs.zip"):
        NavonINRs(tmp_path, "mnist")
    assert list((tmp_path / "mnist" / "raw").iterdir()) == []


def test_the_zoo_says_how_it_was_made(mnist: Path) -> None:
    store = ZooStore(NavonINRs(mnist, "mnist", seed=3).store.path)
    assert store.info["read_by"] == "wsgraph.data.NavonINRs"
    assert store.info["options"] == {"splits": None, "seed": 3}


def test_files_of_the_format_before_the_present_one(mnist: Path) -> None:
    expected = NavonINRs(mnist, "mnist").thetas
    for path in (mnist / "mnist" / "raw").rglob("*.pth"):
        file = io.BytesIO()
        torch.save(_load(path), file, _use_new_zipfile_serialization=False)
        path.write_bytes(file.getvalue())
    assert torch.equal(NavonINRs(mnist, "mnist", force_reload=True).thetas, expected)
