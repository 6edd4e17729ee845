"""The model zoos of Schürholt et al.: trial folders, functions and symmetries of their networks, splits, and damaged or hostile files."""

import json
import math
import os
import pickle
import random
import shutil
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import wsgraph
from wsgraph.convert import CheckpointError
from wsgraph.data.public import ModelZoo, base, model_zoos
from wsgraph.data.transforms import Canonicalize
from wsgraph.space import WeightSpace

NAME = "mnist"
ACTIVATIONS = {
    "leakyrelu": nn.LeakyReLU,
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}


class Published(nn.Module):
    """The published architectures: pooling before the activation, dropout only where its rate is not zero (CNN-s) or always (CNN-l)."""

    def __init__(self, architecture: str, channels: int, activation: str, dropout: float) -> None:
        super().__init__()
        large = architecture == "cnn-l"
        sizes = ((16, 3), (32, 3), (15, 3)) if large else ((8, 5), (6, 5), (4, 2))
        modules: list[nn.Module] = []
        for i, (size, kernel) in enumerate(sizes):
            modules.append(nn.Conv2d(channels, size, kernel))
            modules += [nn.MaxPool2d(2, 2)] if large or i < 2 else []
            modules.append(ACTIVATIONS[activation]())
            modules += [nn.Dropout(dropout)] if large or (dropout and i < 2) else []
            channels = size
        modules += [nn.Flatten(), nn.Linear(60 if large else 36, 20), ACTIVATIONS[activation]()]
        modules += [nn.Dropout(dropout)] if large or dropout else []
        self.module_list = nn.ModuleList([*modules, nn.Linear(20, 10)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for module in self.module_list:
            x = module(x)
        return x


@pytest.fixture
def root(tmp_path: Path) -> Path:
    ModelZoo.write_fake(tmp_path, NAME)
    return tmp_path


def _trials(root: Path, name: str = NAME) -> list[Path]:
    return sorted(file.parent for file in (root / name / "raw").rglob("result.json"))


def _results(trial: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (trial / "result.json").read_text().splitlines()]


def _write_results(trial: Path, lines: Sequence[dict[str, Any]]) -> None:
    (trial / "result.json").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _checkpoint(trial: Path, epoch: int) -> Path:
    folders = [folder for folder in trial.glob("checkpoint_*") if int(folder.name.partition("_")[2]) == epoch]
    return folders[0] / "checkpoints"


def _state(trial: Path, epoch: int) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(_checkpoint(trial, epoch), weights_only=True)
    return state


# == What is read ==


def test_every_checkpoint_of_every_trial(root: Path) -> None:
    zoo = ModelZoo(root, NAME)
    trials = _trials(root)
    rows = [(trial, epoch) for trial in trials for epoch in range(4) if (trial, epoch) != (trials[1], 3)]
    assert zoo.column("run").tolist() == [trial.relative_to(root / NAME / "raw").as_posix() for trial, _ in rows]
    assert zoo.column("epoch").tolist() == [epoch for _, epoch in rows]
    assert zoo.store.info["dropped_non_finite"] == 1
    assert {(trials[-1] / f"checkpoint_{epoch}").is_dir() for epoch in range(4)} == {True}
    expected = torch.stack([torch.cat([tensor.flatten() for tensor in _state(*row).values()]) for row in rows])
    assert torch.equal(zoo.thetas, expected)
    assert zoo.space.num_params == 2464
    results = [_results(trial)[epoch] for trial, epoch in rows]
    assert zoo.y.tolist() == pytest.approx([result["test_acc"] for result in results])
    assert zoo.column("test_loss").tolist() == [result["test_loss"] for result in results]
    before = zoo.column("epoch") == 0
    for name in ("train_accuracy", "train_loss", "ggap"):
        assert (np.isnan(zoo.column(name)) == before).all()
    gap = [result["train_acc"] - result["test_acc"] for result in results if result["training_iteration"]]
    assert zoo.column("ggap")[~before].tolist() == gap
    assert set(zoo.column("model::dropout")) == {0.0, 0.5}
    assert zoo.column("optim::optimizer").tolist() == ["adam"] * len(rows)
    assert "training::checkpoint_dir" not in zoo.store.table
    assert "val_accuracy" not in zoo.store.table


@pytest.mark.parametrize("dropout", [0, 0.5])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    "architecture, name, parameters", [("cnn-s", "mnist", 2464), ("cnn-s", "stl10", 2864), ("cnn-l", "cifar10", 10853)]
)
def test_networks_compute_what_the_published_module_computes(
    tmp_path: Path, architecture: str, name: str, parameters: int, activation: str, dropout: float
) -> None:
    ModelZoo.write_fake(tmp_path, name, trials=2, epochs=2, architecture=architecture, activations=[activation])
    trial = _trials(tmp_path, name)[1 if dropout else 0]
    state = _state(trial, 0)
    channels = state["module_list.0.weight"].shape[1]
    module = Published(architecture, channels, activation, dropout).double().eval()
    module.load_state_dict(state)
    zoo = ModelZoo(tmp_path, name, epochs=0)
    space, theta = zoo.space, zoo.thetas[1 if dropout else 0].double()
    assert space.num_params == parameters
    side = 32 if architecture == "cnn-l" else 28
    images = torch.randn(3, channels, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits = module(images)
    assert logits.std() > 1e-3
    torch.testing.assert_close(space.evaluate(theta[None], images)[0], logits, rtol=1e-5, atol=1e-5)
    g = space.sample_symmetry(4, generator=torch.Generator().manual_seed(1))
    moved = space.act(g, theta.expand(4, -1))
    assert (moved - theta).abs().max() > 0.1
    torch.testing.assert_close(space.evaluate(moved, images), logits.expand(4, -1, -1), rtol=1e-5, atol=1e-5)


def test_pooling_comes_before_the_activation(tmp_path: Path) -> None:
    ModelZoo.write_fake(tmp_path, NAME, trials=3, activations=["tanh", "relu", "gelu"])
    spaces = {space.groups[1].activation: space for space in ModelZoo(tmp_path, NAME).spaces}
    symmetries = {name: [space.describe_symmetry(group) for group in space.groups[1:-1]] for name, space in spaces.items()}
    assert symmetries == {
        "tanh": ["permutation", "permutation", "permutation x sign", "permutation x sign"],
        "relu": ["permutation x scale"] * 4,
        "gelu": ["permutation"] * 4,
    }
    assert [group.operators for group in spaces["gelu"].groups] == [
        (),
        ("max_pool(2)", "gelu"),
        ("max_pool(2)", "gelu"),
        ("gelu", "flatten"),
        ("gelu",),
        (),
    ]


def test_large_networks_pool_three_times(tmp_path: Path) -> None:
    ModelZoo.write_fake(tmp_path, "cifar10", architecture="cnn-l", trials=1)
    assert [group.operators for group in ModelZoo(tmp_path, "cifar10").space.groups[1:4]] == [
        ("max_pool(2)", "tanh"),
        ("max_pool(2)", "tanh"),
        ("max_pool(2)", "tanh", "flatten"),
    ]


def test_several_zoos_in_one_folder(root: Path) -> None:
    other = root / "other"
    ModelZoo.write_fake(other, "cifar10", architecture="cnn-l", trials=2)
    shutil.copytree(other / "cifar10" / "raw", root / NAME / "raw" / "deeper" / "still")
    zoo = ModelZoo(root, NAME, target=None)
    assert [space.num_params for space in zoo.spaces] == [10853, 2464]
    assert len(zoo) == 19 + 7
    assert zoo.column("run")[0].startswith("deeper/still/tune_zoo_cifar10_cnn-l/NN_tune_trainable_")


def test_blocks_are_written_as_they_fill(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ModelZoo(root, NAME)
    thetas, epochs = whole.thetas.clone(), whole.column("epoch").tolist()
    monkeypatch.setattr(model_zoos, "_BLOCK_BYTES", 5 * 4 * 2464)
    blocks = ModelZoo(root, NAME, force_reload=True)
    assert [shard.count for shard in blocks.store.shards] == [5, 4, 5, 5]
    assert torch.equal(blocks.thetas, thetas)
    assert blocks.column("epoch").tolist() == epochs


def test_lines_are_matched_by_their_iteration(root: Path) -> None:
    trials = _trials(root)
    first, _, third = (_results(trial) for trial in trials[:3])
    _write_results(trials[0], [*first[1:], {**first[2], "test_acc": 0.125}])  # no line of epoch 0, and one again after a restart
    _write_results(trials[2], third[::-1])
    zoo = ModelZoo(root, NAME)
    assert zoo.store.info["dropped_without_result"] == 1
    of_first = zoo.column("test_accuracy")[zoo.column("run") == zoo.column("run")[0]]
    assert of_first.tolist() == [first[1]["test_acc"], 0.125, first[3]["test_acc"]]
    of_third = zoo.select({"run": trials[2].relative_to(root / NAME / "raw").as_posix()})
    assert of_third.column("test_accuracy").tolist() == [line["test_acc"] for line in third]


def test_validation_results_and_entries_that_some_lack(root: Path) -> None:
    trials = _trials(root)
    _write_results(trials[0], [{**line, "val_acc": 0.5, "val_loss": math.nan} for line in _results(trials[0])])
    config = json.loads((trials[0] / "params.json").read_text())
    extra = {"optim::momentum": 0.9, "optim::scheduler": "cosine", "seed": "one", "nested": {"a": 1}, "epoch": 99}
    (trials[0] / "params.json").write_text(json.dumps({**config, **extra}))
    (trials[1] / "params.json").unlink()  # the lines of the results hold the configuration too
    zoo = ModelZoo(root, NAME)
    first = zoo.column("run") == zoo.column("run")[0]
    assert zoo.column("val_accuracy")[first].tolist() == [0.5] * 4
    assert np.isnan(zoo.column("val_accuracy")[~first]).all()
    assert np.isnan(zoo.column("val_loss")).all()
    assert zoo.column("optim::momentum")[3:5].tolist() == pytest.approx([0.9, math.nan], nan_ok=True)
    assert zoo.column("optim::scheduler")[3:5].tolist() == ["cosine", ""]
    assert zoo.column("seed")[3:5].tolist() == ["one", "2"]
    assert zoo.column("model::dropout")[4] == 0.5
    assert "nested" not in zoo.store.table
    assert zoo.column("epoch").max() == 3


def test_other_folders_are_no_checkpoints(root: Path) -> None:
    expected = ModelZoo(root, NAME).column("epoch").tolist()
    trial = _trials(root)[0]
    for name in ("checkpoint_-00001", "checkpoint_tmp3f2a", "checkpoint_000002_old", "analysis"):
        (trial / name).mkdir()
        (trial / name / "result.json").write_text("{}")
    (trial / "params.pkl").write_bytes(b"never read")
    again = ModelZoo(root, NAME, force_reload=True)
    assert again.column("epoch").tolist() == expected
    assert again.store.info["trials_without_checkpoints"] == 0


# == Options ==


def test_splits_are_by_trial_in_a_fixed_order(tmp_path: Path) -> None:
    ModelZoo.write_fake(tmp_path, NAME, trials=20, epochs=2)
    zoo = ModelZoo(tmp_path, NAME)
    runs = [trial.relative_to(tmp_path / NAME / "raw").as_posix() for trial in _trials(tmp_path)]
    random.Random(42).shuffle(runs)
    expected = {run: split for split, chosen in (("train", runs[:14]), ("val", runs[14:17]), ("test", runs[17:])) for run in chosen}
    assert [expected[run] for run in zoo.column("run")] == zoo.column("split").tolist()
    assert zoo.store.splits == {"train": 2 * 14 - int(expected[sorted(runs)[1]] == "train"), "val": 6, "test": 6}
    assert len(ModelZoo(tmp_path, NAME, "val")) == 6
    assert ModelZoo(tmp_path, NAME, seed=1).column("split").tolist() != zoo.column("split").tolist()


@pytest.mark.parametrize("epochs, expected", [(2, {2}), ([0, 3], {0, 3}), (range(1, 9), {1, 2, 3})])
def test_epochs_are_chosen(root: Path, epochs: Any, expected: set[int]) -> None:
    assert set(ModelZoo(root, NAME, epochs=epochs).column("epoch")) == expected


def test_large_weights_are_left_out(root: Path) -> None:
    whole = ModelZoo(root, NAME)
    largest = whole.thetas.abs().amax(1)
    limit = float(largest.median())
    zoo = ModelZoo(root, NAME, max_weight=limit)
    assert torch.equal(zoo.thetas, whole.thetas[largest <= limit])
    assert zoo.store.info["dropped_above_max_weight"] == int((largest > limit).sum()) > 0
    assert zoo.store.info["dropped_non_finite"] == 1


def test_networks_that_are_not_finite_are_dropped_and_counted(root: Path) -> None:
    trial = _trials(root)[0]
    for epoch, value in ((0, torch.nan), (2, torch.inf)):  # the first one too, of which the architecture is read
        state = _state(trial, epoch)
        state["module_list.0.bias"][1] = value
        torch.save(state, _checkpoint(trial, epoch))
    zoo = ModelZoo(root, NAME, max_weight=100)
    assert zoo.column("epoch")[:2].tolist() == [1, 3]
    assert zoo.store.info["dropped_non_finite"] == 3
    assert zoo.store.info["dropped_above_max_weight"] == 0


def test_keys_in_the_order_of_the_alphabet(root: Path) -> None:
    expected = ModelZoo(root, NAME).thetas.clone()
    for trial in _trials(root):
        for epoch in range(4):
            state = _state(trial, epoch)
            torch.save(dict(sorted(state.items())), _checkpoint(trial, epoch))
    assert torch.equal(ModelZoo(root, NAME, force_reload=True).thetas, expected)


def test_a_transform_is_applied_once(root: Path) -> None:
    plain = ModelZoo(root, NAME)
    assert torch.equal(ModelZoo(root, NAME, pre_transform=Canonicalize()).thetas, plain.space.canonicalize(plain.thetas))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        x = (x + self.bn(self.conv(x))).relu()
        return self.fc(x.mean((2, 3)))


def test_other_architectures_need_their_space(root: Path) -> None:
    states = []
    for trial in _trials(root):
        config = json.loads((trial / "params.json").read_text())
        (trial / "params.json").write_text(json.dumps({**config, "model::type": "Resnet18"}))
        for epoch in range(4):
            module = Residual().eval()
            states.append(module.state_dict())
            torch.save(states[-1], _checkpoint(trial, epoch))
    with pytest.raises(ValueError, match=r"'model::type' is 'Resnet18', but only CNN, CNN2, CNN3 .*'space', such as wsgraph.trace"):
        ModelZoo(root, NAME)
    space = wsgraph.trace(module, torch.randn(1, 3, 32, 32))
    zoo = ModelZoo(root, NAME, space=space)
    assert zoo.space == space
    assert torch.equal(zoo.thetas, torch.stack([space.flatten(state) for state in states]))
    assert zoo[3].space == space
    with pytest.raises(
        ValueError, match=r"000000/checkpoints' does not fit its architecture. The state dict lacks the key 'layers.0.weight'"
    ):
        ModelZoo(root, NAME, space=WeightSpace.mlp([2, 3, 1]))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"epochs": 7}, r"No checkpoint of epoch 7 with a result lies in '.*raw'; it has 5 trials, with checkpoints of epochs: 0, 1, 2, 3"),
        ({"epochs": []}, "'epochs' to be an integer, several, or None"),
        ({"epochs": 0.5}, "'epochs' to be an integer, several, or None"),
        ({"max_weight": 0}, "'max_weight' to be positive"),
        ({"max_weight": math.nan}, "'max_weight' to be positive"),
        ({"max_weight": 1e-3, "epochs": 1}, "All 5 networks have weights above 'max_weight' of 0.001"),
        ({"space": nn.Linear(1, 1)}, "'space' to be a WeightSpace, such as wsgraph.trace returns .got Linear"),
        ({"split": "training"}, "no split 'training'. Its splits: test, train"),
        ({"target": "optim::optimizer"}, "'optim::optimizer' holds strings"),
    ],
)
def test_options_that_cannot_be(root: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        ModelZoo(root, NAME, **options)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"folders of trials, each with a result.json, in '.*raw'. Fetch a raw zoo .*Zenodo"):
        ModelZoo(tmp_path, NAME)
    with pytest.raises(ValueError, match="'name' to be one of mnist, fashion_mnist, svhn, usps, cifar10, stl10"):
        ModelZoo(tmp_path, "imagenet")
    with pytest.raises(ValueError, match="'architecture' to be one of cnn-s, cnn-l"):
        ModelZoo.write_fake(tmp_path, NAME, architecture="cnn")
    ModelZoo.write_fake(tmp_path, NAME, trials=1)
    with pytest.raises(FileExistsError, match="may hold published files"):
        ModelZoo.write_fake(tmp_path, NAME)


# == Damaged and hostile files ==


def test_trials_that_never_began(root: Path) -> None:
    trials = _trials(root)
    for folder in trials[0].glob("checkpoint_*"):
        shutil.rmtree(folder)
    (trials[0] / "result.json").write_text("")
    zoo = ModelZoo(root, NAME)
    assert zoo.store.info["trials_without_checkpoints"] == 1
    assert len(set(zoo.column("run"))) == 4
    for trial in trials[1:]:
        _write_results(trial, [])
    with pytest.raises(
        ValueError, match=r"No checkpoint with a result lies in '.*raw'; it has 5 trials, with checkpoints of epochs: 0, 1, 2, 3"
    ):
        ModelZoo(root, NAME, force_reload=True)


def _replace_lines(trial: Path, change: Callable[[list[str]], list[str]]) -> None:
    (trial / "result.json").write_text("\n".join(change((trial / "result.json").read_text().splitlines())))


def _resave(trial: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    state = _state(trial, 2)
    change(state)
    torch.save(state, _checkpoint(trial, 2))


def _configure(trial: Path, **entries: Any) -> None:
    config = json.loads((trial / "params.json").read_text())
    (trial / "params.json").write_text(json.dumps({**config, **{name.replace("__", "::"): value for name, value in entries.items()}}))


@pytest.mark.parametrize(
    "damage, error, message",
    [
        (lambda trial: _checkpoint(trial, 2).unlink(), FileNotFoundError, r"no checkpoint '.*000002/checkpoints'. Fetch .* or delete"),
        (
            lambda trial: os.truncate(_checkpoint(trial, 2), 3000),
            CheckpointError,
            r"000002/checkpoints' is damaged .* or delete the folder",
        ),
        (lambda trial: _checkpoint(trial, 2).write_bytes(b""), CheckpointError, r"000002/checkpoints' is damaged .*EOFError"),
        (
            lambda trial: torch.save([torch.ones(2)], _checkpoint(trial, 2)),
            CheckpointError,
            r"000002/checkpoints' holds a list; expected a",
        ),
        (
            lambda trial: _resave(trial, lambda state: state.pop("module_list.3.weight") is None),
            ValueError,
            r"000002/checkpoints' does not fit its architecture. 'layers.1.bias' .* does not fit into a chain",
        ),
        (
            lambda trial: _resave(trial, lambda state: state.update({"module_list.9.weight": torch.randn(20, 4 * 16)})),
            ValueError,
            r"000002/checkpoints' does not fit its architecture. WeightSpace.* does not read pictures of 28 x 28 pixels, as 'CNN' does",
        ),
        (
            lambda trial: _replace_lines(trial, lambda lines: [lines[0], lines[1][:40]]),
            ValueError,
            r"Line 2 of '.*result.json' is damaged: it",
        ),
        (lambda trial: _replace_lines(trial, lambda lines: ["3"]), ValueError, r"Line 1 of '.*result.json' is damaged: it holds no names"),
        (
            lambda trial: _replace_lines(trial, lambda lines: ['{"test_acc": 0.5}']),
            ValueError,
            r"Line 1 of '.*result.json' is damaged: it lacks 'training_iteration' or 'test_acc'",
        ),
        (
            lambda trial: _replace_lines(trial, lambda lines: ['{"test_acc": "high", "training_iteration": 0}']),
            ValueError,
            r"result.json' is damaged: an accuracy or loss is no number",
        ),
        (lambda trial: (trial / "params.json").write_text("{"), ValueError, r"params.json' is damaged: it is not JSON"),
        (lambda trial: _configure(trial, model__nlin="swish"), ValueError, r"'model::nlin' is 'swish'; known ones: relu, leakyrelu, tanh"),
        (lambda trial: _configure(trial, model__type="CNN3"), ValueError, r"does not read pictures of 32 x 32 pixels, as 'CNN3' does"),
        (lambda trial: (trial / "params.json").write_text("{}"), ValueError, r"'model::type' is None, but only CNN"),
    ],
)
def test_damaged_files(root: Path, damage: Callable[[Path], Any], error: type[Exception], message: str) -> None:
    damage(_trials(root)[0])
    with pytest.raises(error, match=message):
        ModelZoo(root, NAME)
    assert [path for path in (root / NAME / "processed").iterdir() if not path.name.endswith(".lock")] == []


class _Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_no_code_is_run(root: Path, tmp_path: Path, zipped: bool) -> None:
    trial, proof = _trials(root)[0], tmp_path / "proof"
    hostile = {"module_list.0.weight": _Hostile(proof)}
    (trial / "params.pkl").write_bytes(pickle.dumps(hostile))
    ModelZoo(root, NAME)
    if zipped:
        torch.save(hostile, _checkpoint(trial, 0))
    else:
        _checkpoint(trial, 0).write_bytes(pickle.dumps(hostile))
    with pytest.raises(CheckpointError, match=r"Refused to load '.*000000/checkpoints'"):
        ModelZoo(root, NAME, force_reload=True)
    assert not proof.exists()
    torch.load(_checkpoint(trial, 0), weights_only=False) if zipped else pickle.loads(_checkpoint(trial, 0).read_bytes())
    assert proof.exists()  # the file would have done it


# == Fetching ==


def test_the_sample_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ModelZoo.write_fake(tmp_path / "there", "cifar10", architecture="cnn-l", trials=2)
    raw = tmp_path / "there" / "cifar10" / "raw"
    with zipfile.ZipFile(tmp_path / "sample.zip", "w") as archive:
        for file in sorted(raw.rglob("*")):
            archive.write(file, file.relative_to(raw))
    asked = []

    def download_url(url: str, folder: str) -> str:
        asked.append(url)
        Path(folder).mkdir(parents=True)
        return str(shutil.copy(tmp_path / "sample.zip", Path(folder) / url.rpartition("/")[2]))

    monkeypatch.setattr(base, "download_url", download_url)
    zoo = ModelZoo(tmp_path, "cifar10_sample", target=None)
    assert asked == ["https://zenodo.org/records/13144018/files/cifar10_cnn_sample_ep21-25.zip"]
    assert len(zoo) == 7
    assert zoo.space.num_params == 10853
    content = bytearray((tmp_path / "sample.zip").read_bytes())
    content[len(content) // 2] ^= 255
    for folder, damaged in (("flipped", content), ("cut", content[:5000])):
        (tmp_path / "sample.zip").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"Cannot unpack '.*cifar_large_seed.zip' .* damaged"):
            ModelZoo(tmp_path / folder, "cifar10_large_seed")


# == Progress ==


def test_progress_is_shown_once_it_takes_long(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(base.tracked(range(5), "reading")) == [0, 1, 2, 3, 4]
    assert capsys.readouterr().err == ""
    times = iter([0.0, 0.5, 1.0, 3.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(times, 4.0))
    assert list(base.tracked(range(5), "reading")) == [0, 1, 2, 3, 4]
    output = capsys.readouterr()
    assert output.out == ""
    assert "reading" in output.err
    assert "5/5" in output.err
