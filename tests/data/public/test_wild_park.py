"""The reader of the CNN Wild Park: architectures, functions and symmetries, the published format, and what is wrong with files."""

import itertools
import json
import random
import shutil
import sys
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wsgraph.convert import CheckpointError, trace
from wsgraph.data.public import CNNWildPark, WildParkCNN, base
from wsgraph.data.public import wild_park as wild_park_module
from wsgraph.data.transforms import RandomSymmetry
from wsgraph.nn import build_model
from wsgraph.space import WeightSpace
from wsgraph.testing import assert_function_preserved

_ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu, "tanh": torch.tanh, "sigmoid": torch.sigmoid, "leaky_relu": F.leaky_relu, "none": None}


@pytest.fixture
def park(tmp_path: Path) -> Path:
    CNNWildPark.write_fake(tmp_path)
    return tmp_path


def _files(root: Path) -> list[Path]:
    return sorted((root / "cifar10" / "raw").rglob("checkpoint.pt"))


def _changed(path: Path, **changes: Any) -> None:
    """Write a file with a plain configuration again with other entries, without those that are None."""
    content = {**torch.load(path, weights_only=True), **changes}
    torch.save({key: value for key, value in content.items() if value is not None}, path)


# == The networks ==


def _config(channels: list[int], kernels: list[int], residual: list[int], activation: list[str]) -> dict[str, Any]:
    padding = [side // 2 for side in kernels]
    count = len(kernels)
    sizes = {"n_layers": count, "n_classes": 10, "channels": [3, *channels], "kernel_size": kernels, "stride": [1] * count}
    return {**sizes, "padding": padding, "residual": residual, "activation": activation}


def _drawn(seed: int) -> dict[str, Any]:
    """A configuration drawn from what is in the published zoo."""
    draw = random.Random(seed)
    count = draw.choice([2, 3, 4, 5])
    residual = [-1, *(draw.choice([-1, *range(i)]) for i in range(count - 1))]
    channels, kernels = draw.choices([4, 8, 16, 32], k=count), draw.choices([3, 5, 7], k=count)
    return _config(channels, kernels, residual, draw.choices(list(_ACTIVATIONS), k=count))


def _published_logits(config: dict[str, Any], state: dict[str, Tensor], x: Tensor) -> Tensor:
    """The network as it was trained, which adds in place."""
    outputs: list[Tensor] = []
    for i, source in enumerate(config["residual"]):
        x = F.conv2d(x, state[f"layers.{i}.weight"], state[f"layers.{i}.bias"], config["stride"][i], config["padding"][i])
        if source >= 0:
            channels = min(config["channels"][source + 1], config["channels"][i + 1])
            x = x.clone()
            x[:, :channels] += outputs[source][:, :channels]
        function = _ACTIVATIONS[config["activation"][i]]
        x = x if function is None else function(x)
        outputs.append(x)
    return F.linear(F.adaptive_avg_pool2d(x, 1).flatten(1), state["fc.weight"], state["fc.bias"])


_CONFIGS = [
    _config([4, 8], [3, 5], [-1, -1], ["relu", "none"]),
    _config([4, 8, 4], [3, 5, 3], [-1, -1, 0], ["relu", "gelu", "tanh"]),  # the same width
    _config([4, 8, 16], [3, 5, 3], [-1, -1, 0], ["relu", "relu", "leaky_relu"]),  # from a narrower layer
    _config([16, 8, 4], [3, 5, 3], [-1, -1, 0], ["relu", "none", "none"]),  # from a wider layer
    _config([8, 4, 8, 4, 16], [3, 3, 3, 3, 3], [-1, -1, 0, 0, 2], ["tanh", "none", "sigmoid", "none", "leaky_relu"]),
    *map(_drawn, range(4)),
]


@pytest.mark.parametrize("config", _CONFIGS)
def test_networks_compute_what_they_computed(config: dict[str, Any]) -> None:
    torch.manual_seed(0)
    network = WildParkCNN(config).eval().double()
    x = torch.rand(3, 3, 12, 12, dtype=torch.float64)
    state = network.state_dict()
    with torch.no_grad():
        logits = network(x)
    assert torch.allclose(logits, _published_logits(config, state, x), atol=1e-12)
    space = trace(network, x, strict=True)
    assert_function_preserved(network, space, x)
    if space.layers:
        assert torch.allclose(space.evaluate(space.flatten(state)[None], x)[0], logits, atol=1e-12)


def _kinds(config: dict[str, Any]) -> list[str]:
    space = trace(WildParkCNN(config).eval(), torch.zeros(1, 3, 32, 32))
    return [space.describe_symmetry(group) for group in space.groups if group.role == "hidden"]


def test_symmetries_are_those_of_the_activations() -> None:
    plain = _config([4, 8, 4, 4], [3] * 4, [-1] * 4, ["relu", "gelu", "tanh", "none"])
    assert _kinds(plain) == ["permutation x scale", "permutation", "permutation x sign", "permutation x scale x sign"]
    # What a residual connection adds up must be scaled alike.
    plain["residual"] = [-1, -1, 0, -1]
    plain["channels"] = [3, 4, 8, 4, 4]
    assert set(_kinds(plain)) == {"permutation", "permutation x scale x sign"}


@pytest.mark.parametrize("channels", [(4, 8), (8, 4), (4, 4)])
def test_residual_connections_bind_the_channels_that_both_layers_have(channels: tuple[int, int]) -> None:
    first, last = channels
    config = _config([first, 4, last], [3] * 3, [-1, -1, 0], ["relu"] * 3)
    space = trace(WildParkCNN(config).eval(), torch.zeros(1, 3, 32, 32))
    theta = torch.arange(space.num_params, dtype=torch.float64)
    orders = []
    for seed in range(20):
        g = space.sample_symmetry(1, (1.0, 1.0), symmetries=["permutation"], generator=torch.Generator().manual_seed(seed))
        moved, before = space.unflatten(space.act(g, theta[None])[0]), space.unflatten(theta)
        # Where each neuron of both layers went, by its bias, which is a number of its own.
        orders.append([(moved[key] - before[key][0]).long().tolist() for key in ("layers.0.bias", "layers.2.bias")])
    assert all(one[:4] == two[:4] for one, two in orders)
    assert all(sorted(one[:4]) == [0, 1, 2, 3] for one, two in orders)
    assert len({tuple(one[:4]) for one, _ in orders}) > 5
    for rest in ([one[4:] for one, _ in orders], [two[4:] for _, two in orders]):
        assert all(sorted(each) == list(range(4, 4 + len(each))) for each in rest)
        assert len({tuple(each) for each in rest}) > 5 or not rest[0]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"channels": [3, 4]}, r"one entry for each of 2 layers, and one more in 'channels' \(got .*'channels': 2, 'kernel_size': 2"),
        ({"activation": "rs"}, "activations among none, relu, gelu, tanh, sigmoid, leaky_relu .got 'r'"),
        ({"activation": ["relu", "sine"]}, "activations among .* .got 'sine'"),
        ({"kernel_size": 3}, "'kernel_size': 0"),
        ({"n_layers": 2.0}, "each of 2.0 layers"),
        ({"n_layers": 0, "channels": [3]}, "each of 0 layers"),
        ({"residual": [-1, 0]}, "residual of layer 1 to be -1 or a layer before the one before it .got 0"),
        ({"residual": [0, -1]}, "residual of layer 0"),
        ({"residual": [-1, None]}, "residual of layer 1"),
        ({"channels": [3, 4, -8]}, "positive integers .got -8"),
        ({"channels": [3, 4, "8"]}, "positive integers .got '8'"),
        ({"padding": [1, -1]}, "positive integers .got -1"),
        ({"n_classes": 0}, "positive integers .got 0"),
    ],
)
def test_configurations_that_make_no_network(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WildParkCNN({**_CONFIGS[0], **change})


def test_configurations_that_lack_a_field() -> None:
    for field in _CONFIGS[0]:
        with pytest.raises(ValueError, match=f"lacks '{field}' .it has: "):
            WildParkCNN({key: value for key, value in _CONFIGS[0].items() if key != field})
    with pytest.raises(ValueError, match="a configuration by fields"):
        WildParkCNN(3)  # type: ignore[arg-type]


# == Reading ==


def test_everything_comes_back(park: Path) -> None:
    zoo = CNNWildPark(park)
    runs = [f"NN_tune_trainable_{run:05d}" for run in range(3)]
    assert list(zoo.store.table) == ["run", "step", "test_accuracy", "test_loss", "n_layers", "config", "split"]
    assert zoo.column("run").tolist() == [run for run in runs for _ in range(2)]
    assert zoo.column("step").tolist() == [10, 20] * 3
    assert zoo.column("n_layers").tolist() == [2, 2, 3, 3, 4, 4]
    assert zoo.column("split").tolist() == ["train"] * 2 + ["val"] * 2 + ["test"] * 2
    assert [shard.count for shard in zoo.store.shards] == [2, 2, 2]
    assert len(zoo.spaces) == 3
    assert zoo.store.verify() == []
    x = torch.rand(2, 3, 32, 32)
    for i, path in enumerate(_files(park)[:4]):
        content = torch.load(path, weights_only=True)
        assert zoo.column("test_accuracy")[i] == content["last_result"]["test/acc"]
        assert zoo.column("test_loss")[i] == content["last_result"]["test/loss"]
        config = json.loads(zoo.column("config")[i])
        assert config == content["config"]
        network = WildParkCNN(config)
        network.load_state_dict(zoo.spaces[i // 2].unflatten(zoo.store.read(torch.tensor([i]))[0]))
        assert all(torch.equal(network.state_dict()[key], tensor) for key, tensor in content["model"].items())
        assert torch.allclose(network(x), _published_logits(config, content["model"], x), atol=1e-6)
    assert zoo.y.tolist() == pytest.approx(zoo.column("test_accuracy").tolist())


def test_configurations_of_omegaconf_are_read_without_it(park: Path) -> None:
    path = _files(park)[4]
    with pytest.raises(ModuleNotFoundError, match="omegaconf"):
        torch.load(path, weights_only=False)
    zoo = CNNWildPark(park, split="test")
    assert json.loads(zoo.column("config")[0])["activation"] == ["tanh", "none", "none", "sigmoid"]
    assert not [name for name in sys.modules if name.startswith(("omegaconf", "cnn_sampler"))]


def test_modules_that_the_twin_stands_in_for_are_put_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "omegaconf", pytest)
    CNNWildPark.write_fake(tmp_path)
    assert sys.modules["omegaconf"] is pytest
    assert "omegaconf.base" not in sys.modules


def test_archives_are_read_in_place(park: Path, tmp_path: Path) -> None:
    CNNWildPark.write_fake(tmp_path / "zip", zipped=True)
    folder, archive = CNNWildPark(park), CNNWildPark(tmp_path / "zip")
    raw = tmp_path / "zip" / "cifar10" / "raw"
    assert sorted(path.name for path in raw.iterdir()) == ["cnn_park_splits.json", "cnn_wild_park.zip"]
    assert archive.spaces == folder.spaces
    for name in folder.store.table:
        assert archive.column(name).tolist() == folder.column(name).tolist()
    for space in folder.spaces:
        assert torch.equal(archive.of_space(space).thetas, folder.of_space(space).thetas)


def test_other_files_of_the_training_are_passed_over(park: Path) -> None:
    run = _files(park)[0].parents[1]
    (run / "params.json").write_text("{}")
    (run / "checkpoint_000010" / ".tune_metadata").write_bytes(b"")
    shutil.copytree(run / "checkpoint_000010", run / "checkpoint_tmp123")
    assert len(CNNWildPark(park)) == 6


def test_last_checkpoints(tmp_path: Path) -> None:
    CNNWildPark.write_fake(tmp_path, runs=4, checkpoints=12)
    assert len(CNNWildPark(tmp_path)) == 48
    zoo = CNNWildPark(tmp_path, steps="last")
    assert zoo.column("step").tolist() == [120] * 4
    assert len(set(zoo.column("run"))) == 4
    assert len(zoo.spaces) == 3  # the first and the fourth run have one architecture
    with pytest.raises(ValueError, match="'steps' to be 'all' or 'last'"):
        CNNWildPark(tmp_path, steps="first")  # type: ignore[arg-type]


def test_steps_are_those_in_the_files(park: Path) -> None:
    _changed(_files(park)[0], iteration=9)
    assert CNNWildPark(park).column("step").tolist() == [9, 20, 10, 20, 10, 20]


def test_mixed_batches_feed_a_model(park: Path) -> None:
    zoo = CNNWildPark(park, transform=RandomSymmetry())
    batch = zoo.batch([5, 0, 2])
    assert batch.num_networks == 3
    assert len(batch.spaces) == 3
    assert build_model("neural_graph", zoo.spaces, out_channels=1)(batch).shape == (3, 1)


def test_pre_transform(park: Path) -> None:
    plain = CNNWildPark(park)
    moved = CNNWildPark(park, pre_transform=RandomSymmetry(seed=1))
    x = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    for space in plain.spaces:
        one, other = plain.of_space(space), moved.of_space(space)
        assert not torch.equal(one.thetas, other.thetas)
        network = WildParkCNN(json.loads(one.column("config")[0])).double()
        before, after = (torch.func.functional_call(network, space.unflatten(zoo.thetas[0].double()), (x,)) for zoo in (one, other))
        assert torch.allclose(before, after, rtol=1e-3, atol=1e-4)


def test_runs_that_diverged(park: Path) -> None:
    for path in _files(park)[:2]:
        model = torch.load(path, weights_only=True)["model"]
        model["fc.bias"][3] = torch.nan
        _changed(path, model=model)
    zoo = CNNWildPark(park)
    assert zoo.column("n_layers").tolist() == [3, 3, 4, 4]
    assert zoo.store.info["dropped_non_finite"] == 2


# == Splits ==


def test_runs_are_split_by_the_seed(tmp_path: Path) -> None:
    CNNWildPark.write_fake(tmp_path, runs=20, split_json=False)
    # Runs are of different lengths.
    for path in _files(tmp_path)[:20:2]:
        path.unlink()
    first, again, other = (CNNWildPark(tmp_path, seed=seed) for seed in (0, 0, 1))
    pairs = set(zip(first.column("run").tolist(), first.column("split").tolist(), strict=True))
    assert Counter(split for _, split in pairs) == {"train": 14, "val": 3, "test": 3}
    assert first.column("split").tolist() == again.column("split").tolist()
    assert first.column("split").tolist() != other.column("split").tolist()
    assert set(CNNWildPark(tmp_path, split="val").column("split")) == {"val"}


def test_published_splits(park: Path, tmp_path: Path) -> None:
    beside = park / "cifar10" / "raw" / "cnn_park_splits.json"
    document = json.loads(beside.read_text())
    assert sorted(document["train"]) == ["path", "score", "step"]
    assert document["test"]["path"][0] == "cifar10_zooV2/NN_tune_trainable_00002/checkpoint_000010/checkpoint.pt"
    # Networks that are not listed are left out, and folders before the zoo do not matter.
    document["test"] = document.pop("val")
    document["train"] = [f"/data/{document['train']['path'][1]}"]
    chosen = tmp_path / "other.json"
    chosen.write_text(json.dumps(document))
    zoo = CNNWildPark(park, splits=chosen)
    assert zoo.column("split").tolist() == ["train", "test", "test"]
    assert zoo.column("step").tolist() == [20, 10, 20]
    # A file that comes later makes another zoo.
    beside.unlink()
    assert set(CNNWildPark(park).store.splits) != {"train", "val", "test"}
    shutil.copy(chosen, beside)
    assert len(CNNWildPark(park)) == 3


def test_splits_that_do_not_fit(park: Path, tmp_path: Path) -> None:
    file = tmp_path / "splits.json"
    file.write_text(json.dumps({"train": {"path": ["cifar10_zooV2/x/checkpoint_000010/checkpoint.pt"]}}))
    with pytest.raises(ValueError, match=r"lists 1 checkpoints that are not in .*, such as 'x/checkpoint_000010/checkpoint.pt'"):
        CNNWildPark(park, splits=file)
    with pytest.raises(FileNotFoundError, match=r"no split file 'missing.json'"):
        CNNWildPark(park, splits="missing.json")


# == Damaged files ==


def _edit(path: Path, entry: str, **changes: Any) -> None:
    content = torch.load(path, weights_only=True)
    _changed(path, **{entry: {key: value for key, value in {**content[entry], **changes}.items() if value is not None}})


_BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:1000]), "is damaged or was not written by torch.save"),
    "no dict": (lambda path: torch.save([1], path), "no checkpoint of the CNN Wild Park"),
    "no weights": (lambda path: _changed(path, model=None), "it lacks 'model'"),
    "no iteration": (lambda path: _changed(path, iteration=None), "it lacks 'iteration'"),
    "no accuracy": (lambda path: _edit(path, "last_result", **{"test/acc": None}), "it lacks 'test/acc'"),
    "accuracy": (lambda path: _edit(path, "last_result", **{"test/acc": "high"}), "could not convert string to float: 'high'"),
    "no configuration": (lambda path: _changed(path, config=3), r"a configuration by fields \(got 3\)"),
    "configuration": (lambda path: _edit(path, "config", stride=None), "The configuration lacks 'stride'"),
    "activation": (lambda path: _edit(path, "config", activation=["relu", "sine"]), "activations among .*got 'sine'"),
    "shape": (
        lambda path: _edit(path, "model", **{"layers.1.weight": torch.zeros(8, 4, 3, 3)}),
        r"Expected 'layers.1.weight' in .* shape \(8, 4, 5, 5\), by the configuration \(got \(8, 4, 3, 3\)\)",
    ),
    "missing": (lambda path: _edit(path, "model", **{"fc.bias": None}), r"Expected 'fc.bias' .* shape \(10,\), .*\(got None\)"),
    "extra": (lambda path: _edit(path, "model", bn=torch.ones(3)), r"Expected 'bn' .* shape None, .*\(got \(3,\)\)"),
    "no tensor": (lambda path: _edit(path, "model", **{"fc.bias": [0.0] * 10}), r"Expected 'fc.bias' .*\(got None\)"),
    "integers": (lambda path: _edit(path, "model", **{"fc.bias": torch.arange(10)}), r"Expected 'fc.bias' .*\(got None\)"),
    "too small": (lambda path: _edit(path, "config", stride=[8, 8], padding=[0, 0]), "does not read pictures of CIFAR-10"),
}


@pytest.mark.parametrize("name", list(_BAD))
def test_bad_files(park: Path, name: str) -> None:
    path = _files(park)[0]
    damage, message = _BAD[name]
    damage(path)
    with pytest.raises(CheckpointError, match=message) as caught:
        CNNWildPark(park)
    assert repr(str(path)) in str(caught.value)


def test_a_damaged_archive(tmp_path: Path) -> None:
    CNNWildPark.write_fake(tmp_path, zipped=True)
    file = tmp_path / "cifar10" / "raw" / "cnn_wild_park.zip"
    data = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as archive:
        start = archive.infolist()[0].header_offset + 300
    for position in (start, start + 1):
        data[position] ^= 255
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"NN_tune_trainable_00000/checkpoint_000010/checkpoint.pt' is damaged in its archive"):
        CNNWildPark(tmp_path)
    file.write_bytes(data[:-100])
    with pytest.raises(ValueError, match=r"cnn_wild_park.zip' is damaged .*delete it and try again"):
        CNNWildPark(tmp_path)


def test_nothing_to_read(park: Path) -> None:
    raw = park / "cifar10" / "raw"
    shutil.rmtree(raw / "cifar10_zooV2")
    with zipfile.ZipFile(raw / "cnn_wild_park.zip", "w") as archive:
        archive.writestr("elsewhere/checkpoint.pt", b"")
    (raw / "cnn_park_splits.json").unlink()
    with pytest.raises(ValueError, match="Found no checkpoints in"):
        CNNWildPark(park)


def test_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    CNNWildPark.write_fake(tmp_path / "source", zipped=True, split_json=False)

    def fetch(url: str, folder: str) -> str:
        assert url == "https://zenodo.org/records/12797219/files/cnn_wild_park.zip?download=1"
        Path(folder).mkdir(parents=True)
        return str(shutil.copy(tmp_path / "source" / "cifar10" / "raw" / "cnn_wild_park.zip", folder))

    monkeypatch.setattr(base, "download_url", fetch)
    assert len(CNNWildPark(tmp_path / "target")) == 6
    assert [path.name for path in (tmp_path / "target" / "cifar10" / "raw").iterdir()] == ["cnn_wild_park.zip"]


def test_spaces_are_traced_once_per_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    CNNWildPark.write_fake(tmp_path, runs=9)
    traced = []

    def counted(*args: Any, **options: Any) -> WeightSpace:
        traced.append(args)
        return trace(*args, **options)

    monkeypatch.setattr(wild_park_module, "trace", counted)
    zoo = CNNWildPark(tmp_path)
    assert len(traced) == len(zoo.spaces) == 3
    assert np.array_equal(zoo.column("step"), [10, 20] * 9)
    assert len(set(itertools.pairwise(zoo.column("run").tolist()))) == 17
