from __future__ import annotations

import argparse
import dataclasses
import datetime
import enum
import functools
import gzip
import importlib
import json
import pickle
import random
import sys
import uuid
import warnings
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from wsgraph.convert import CheckpointError, from_state_dict, load_checkpoint


def weights(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"0.weight": torch.randn(3, 2, generator=generator), "0.bias": torch.randn(3, generator=generator)}


def save_npz(content: dict[str, Tensor], path: Path) -> None:
    np.savez(path, **{key: tensor.numpy() for key, tensor in content.items()})  # type: ignore[arg-type]


def save_npz_compressed(content: dict[str, Tensor], path: Path) -> None:
    np.savez_compressed(path, **{key: tensor.numpy() for key, tensor in content.items()})  # type: ignore[arg-type]


def save_legacy(content: dict[str, Tensor], path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


WRITERS: dict[str, tuple[str, Callable[[dict[str, Tensor], Path], Any]]] = {
    "safetensors": (".safetensors", safetensors.torch.save_file),
    "pt": (".pt", torch.save),
    "pth": (".pth", torch.save),
    "ckpt": (".ckpt", torch.save),
    "legacy pt": (".pt", save_legacy),
    "npz": (".npz", save_npz),
    "compressed npz": (".npz", save_npz_compressed),
    "upper case": (".PT", torch.save),
    "bin": (".bin", torch.save),
    "pkl": (".pkl", torch.save),
    "pth.tar": (".pth.tar", torch.save),
    "pt.tar": (".PT.tar", torch.save),
}


@pytest.mark.parametrize("suffix, save", WRITERS.values(), ids=WRITERS.keys())
@pytest.mark.parametrize("as_text", [False, True])
def test_loads_every_format(tmp_path: Path, suffix: str, save: Callable[[dict[str, Tensor], Path], Any], as_text: bool) -> None:
    path = tmp_path / f"model{suffix}"
    save(weights(), path)
    loaded = load_checkpoint(str(path) if as_text else path)
    assert loaded.keys() == weights().keys()
    for key, tensor in weights().items():
        assert torch.equal(loaded[key], tensor)
        assert loaded[key].dtype == tensor.dtype


@pytest.mark.parametrize("suffix, save", [WRITERS["safetensors"], WRITERS["pt"]])
def test_keeps_dtypes(tmp_path: Path, suffix: str, save: Callable[[dict[str, Tensor], Path], Any]) -> None:
    path = tmp_path / f"model{suffix}"
    content = {"a": torch.ones(2, dtype=torch.bfloat16), "b": torch.ones(2, dtype=torch.float64), "c": torch.ones(2, dtype=torch.int8)}
    save(content, path)
    assert {key: tensor.dtype for key, tensor in load_checkpoint(path).items()} == {key: tensor.dtype for key, tensor in content.items()}


def test_network_read_from_a_sorted_file(tmp_path: Path) -> None:
    module = nn.Sequential(OrderedDict([(f"layer{i}", nn.Linear(4, 4)) for i in range(12)]))
    safetensors.torch.save_file(module.state_dict(), tmp_path / "model.safetensors")
    loaded = load_checkpoint(tmp_path / "model.safetensors")
    assert list(loaded) != list(module.state_dict())
    space, theta = from_state_dict(loaded)
    assert [layer.name for layer in space.layers] == [f"layer{i}" for i in range(12)]
    assert torch.equal(theta, torch.cat([tensor.flatten() for tensor in module.state_dict().values()]))


# == Wrapped checkpoints ==

OPTIMIZER = {"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}


@pytest.mark.parametrize(
    "wrapped",
    [
        {"state_dict": weights(), "epoch": 3},
        {"state_dict": weights(), "epoch": 3, "optimizer_states": [OPTIMIZER], "lr_schedulers": [], "callbacks": {}, "loops": None},
        {"model": weights(), "optimizer": OPTIMIZER},
        {"model_state_dict": weights(), "loss": torch.tensor(0.5), "rng_state": torch.get_rng_state()},
        {"net": OrderedDict(weights()), "rng": {"cpu": torch.get_rng_state()}},
        {"epoch": 1, "anything": weights()},
        {"model": {"state_dict": weights(), "optimizer": OPTIMIZER}, "epoch": 3},
        {"run": {"best": {"weights": weights()}}},
        {"state_dict": weights(), "criterion": {"weight": torch.ones(3)}},
        {"state_dict": weights(), "optimizer_states": {"state": {"0.weight": {"exp_avg": torch.ones(3, 2)}}}},
        {"model": weights(), "sgd": {"state": {}, "param_groups": []}, "moments": {"exp_avg": torch.ones(3, 2)}},
        {"model": {**weights(), "layer._extra_state": None}},
        {**weights(), "layer._extra_state": {"scale": 1.0}},
        (lambda state: {"model": state, "state_dict": state})(weights()),
    ],
    ids=[
        "short",
        "lightning",
        "optimizer",
        "loss",
        "rng",
        "any name",
        "two levels",
        "three levels",
        "criterion",
        "sharded optimizer",
        "optimizers of other names",
        "extra state",
        "extra state without a wrapper",
        "twice the same",
    ],
)
def test_returns_the_wrapped_state_dict(tmp_path: Path, wrapped: dict[str, Any]) -> None:
    torch.save(wrapped, tmp_path / "model.pt")
    loaded = load_checkpoint(tmp_path / "model.pt")
    assert loaded.keys() == weights().keys()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in weights().items())


@pytest.mark.parametrize("wrap", [False, True])
def test_parameters_come_back_as_tensors(tmp_path: Path, wrap: bool) -> None:
    content = OrderedDict((key, nn.Parameter(tensor)) for key, tensor in weights().items())
    torch.save({"model": content} if wrap else content, tmp_path / "model.pt")
    loaded = load_checkpoint(tmp_path / "model.pt")
    assert type(loaded) is dict
    for key, tensor in weights().items():
        assert type(loaded[key]) is Tensor
        assert not loaded[key].requires_grad
        assert torch.equal(loaded[key], tensor)


def test_several_state_dicts_are_ambiguous(tmp_path: Path) -> None:
    torch.save({"model": weights(), "ema": weights(1), "epoch": 3}, tmp_path / "model.pt")
    with pytest.raises(
        CheckpointError, match=r"holds several state dicts, 'model', 'ema'; choose one with .*entry='model'\), or --entry model"
    ):
        load_checkpoint(tmp_path / "model.pt")
    assert torch.equal(load_checkpoint(tmp_path / "model.pt", entry="ema")["0.weight"], weights(1)["0.weight"])
    with pytest.raises(CheckpointError, match=r"has no state dict 'swa' \(it has: 'model', 'ema'\)"):
        load_checkpoint(tmp_path / "model.pt", entry="swa")


@pytest.mark.parametrize(
    "content, message",
    [
        ({}, r"holds no tensors and no state dict \(it holds: nothing\)"),
        ({"epoch": 3, "name": "x"}, r"holds no tensors and no state dict \(it holds: 'epoch', 'name'\)"),
        ({"optimizer": OPTIMIZER}, r"holds no tensors and no state dict \(it holds: 'optimizer'; what belongs to training alone"),
        (OPTIMIZER, "holds the state of an optimizer, not a network"),
        ({"weight": torch.ones(1), "epoch": 3}, r"mixes tensors with other values \('epoch' is of type int\)"),
        ({0: torch.ones(1), "b": torch.ones(1)}, r"Expected the keys of the tensors in .* to be strings \(got 0\)"),
        (torch.ones(2), "holds a Tensor; expected a state dict"),
        ([torch.ones(2)], "holds a list; expected a state dict"),
    ],
)
def test_file_without_state_dict(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "model.pt")


def test_hyperparameters_in_names_are_no_other_files(tmp_path: Path) -> None:
    for name in ("optimal.pt", "cnn_optimizer=adam_lr=0.1.pt", "adam_scheduler_cosine.pt", "randomized.pt"):
        torch.save(weights(), tmp_path / name)
    others = ("optimizer.pt", "optimizer_0.bin", "scheduler.pt", "lr_scheduler.pt", "scaler.pt", "rng_state_1.pth", "random_states_0.pkl")
    for name in (*others, "training_args.bin", "trainer_state.pt", "optimizer_state_dict.pt"):
        (tmp_path / name).touch()
    with pytest.raises(IsADirectoryError, match=r"a folder with 4 networks, 'adam_scheduler_cosine.pt', 'cnn_opt"):
        load_checkpoint(tmp_path)
    torch.save({"optimal_model": weights(), "last": weights(1)}, tmp_path / "both.pt")
    with pytest.raises(CheckpointError, match="holds several state dicts, 'optimal_model', 'last'"):
        load_checkpoint(tmp_path / "both.pt")


def test_averages_of_callbacks_are_for_who_names_them(tmp_path: Path) -> None:
    torch.save({"state_dict": weights(), "callbacks": {"EMA": {"weights": weights(1)}}}, tmp_path / "model.ckpt")
    assert torch.equal(load_checkpoint(tmp_path / "model.ckpt")["0.weight"], weights()["0.weight"])
    averaged = load_checkpoint(tmp_path / "model.ckpt", entry="callbacks.EMA.weights")
    assert torch.equal(averaged["0.weight"], weights(1)["0.weight"])


@pytest.mark.parametrize("suffix, save", [WRITERS["safetensors"], WRITERS["npz"]])
def test_archive_without_tensors(tmp_path: Path, suffix: str, save: Callable[[dict[str, Tensor], Path], Any]) -> None:
    save({}, tmp_path / f"model{suffix}")
    with pytest.raises(CheckpointError, match="holds no tensors and no state dict"):
        load_checkpoint(tmp_path / f"model{suffix}")


# == Code in files ==


class Payload:
    """A pickle of this writes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, (f"open({str(self.path)!r}, 'w').close()",))


@pytest.mark.parametrize("writer", ["torch", "legacy", "pickle 2", "pickle 4"])
@pytest.mark.parametrize("wrap", [False, True])
def test_pickle_that_runs_code_is_refused(tmp_path: Path, writer: str, wrap: bool) -> None:
    proof, path = tmp_path / "proof", tmp_path / "model.pt"
    content = {"state_dict": weights(), "extra": Payload(proof)} if wrap else Payload(proof)
    if writer == "torch":
        torch.save(content, path)
    elif writer == "legacy":
        torch.save(content, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps(content, protocol=int(writer[-1])))
    with pytest.raises(CheckpointError, match=r"Refused to load .* would run code from the file.*torch.save\(model.state_dict\(\), path\)"):
        load_checkpoint(path)
    assert not proof.exists()


def test_payload_does_run_without_the_refusal(tmp_path: Path) -> None:
    # Control: otherwise the test above would pass with a payload that does nothing.
    pickle.loads(pickle.dumps(Payload(tmp_path / "proof")))
    assert (tmp_path / "proof").exists()


class Settings(dict[str, int]):
    """A dict of a class of the training program."""


class Mode(enum.Enum):
    FAST = 1


@dataclasses.dataclass
class Options:
    rate: float
    path: Path


BESIDE = {
    "numpy scalar": np.float64(0.5),
    "array": np.ones(3),
    "array of objects": np.array([None], dtype=object),
    "path": Path("runs") / "a",
    "dataclass": Options(0.1, Path("x")),
    "namespace": argparse.Namespace(x=1),
    "defaultdict": defaultdict(list, loss=[1.0]),
    "counter": Counter("aab"),
    "deque": deque([1], maxlen=3),
    "enum": Mode.FAST,
    "dict class": Settings(a=1),
    "date": datetime.date(2024, 1, 1),
    "loss": nn.CrossEntropyLoss(weight=torch.ones(3)),
    "activation": nn.ReLU(),
    "function": torch.nn.functional.relu,
    "partial": functools.partial(torch.clamp, min=0),
    "class": nn.Linear,
    "dtype": torch.float16,
    "slice": slice(1, 2),
    "complex": 1j,
    "exception": ValueError("diverged"),
    "uuid": uuid.UUID(int=1),
    "fraction": Fraction(1, 3),
    "random state": random.Random(0).getstate(),
}


@pytest.mark.parametrize("legacy", [False, True])
def test_what_lies_beside_the_weights_is_skipped(tmp_path: Path, legacy: bool) -> None:
    for name, extra in BESIDE.items():
        torch.save({"state_dict": weights(), name: extra}, tmp_path / "model.pt", _use_new_zipfile_serialization=not legacy)
        loaded = load_checkpoint(tmp_path / "model.pt")
        assert torch.equal(loaded["0.weight"], weights()["0.weight"]), name
        assert loaded.keys() == weights().keys()
    torch.save({"state_dict": weights(), "hyper_parameters": BESIDE}, tmp_path / "model.pt")
    assert load_checkpoint(tmp_path / "model.pt").keys() == weights().keys()


def test_nothing_beside_the_weights_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "training_program.py").write_text("class Config:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    torch.save({"state_dict": weights(), "config": importlib.import_module("training_program").Config()}, tmp_path / "model.pt")
    del sys.modules["training_program"]
    assert load_checkpoint(tmp_path / "model.pt").keys() == weights().keys()
    assert "training_program" not in sys.modules


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(2, 3, bias=False), nn.BatchNorm1d(3))
        self.register_buffer("kept", torch.ones(2))
        self.register_buffer("dropped", torch.ones(2), persistent=False)


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("legacy", [False, True])
def test_modules_pickled_whole(tmp_path: Path, wrap: bool, legacy: bool) -> None:
    tower = Tower()
    content = {"model": tower, "ema": None} if wrap else tower
    torch.save(content, tmp_path / "model.pt", _use_new_zipfile_serialization=not legacy)
    loaded, expected = load_checkpoint(tmp_path / "model.pt"), tower.state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[key], expected[key]) for key in expected)


def test_dicts_that_hold_each_other(tmp_path: Path) -> None:
    first: dict[str, Any] = {"epoch": 1}
    second: dict[str, Any] = {"first": first, "again": first}
    first |= {"second": second, "again": second}
    torch.save(first, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="holds no tensors and no state dict"):
        load_checkpoint(tmp_path / "model.pt")
    second["weights"] = weights()
    torch.save(first, tmp_path / "model.pt")
    assert load_checkpoint(tmp_path / "model.pt").keys() == weights().keys()


def test_objects_are_called_by_their_class(tmp_path: Path) -> None:
    torch.save(argparse.Namespace(x=1), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"holds an object of the class argparse.Namespace, which is not looked up; expected a state"):
        load_checkpoint(tmp_path / "model.pt")
    torch.save({**weights(), "args": argparse.Namespace(x=1)}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"mixes tensors with other values \('args' is of type argparse.Namespace\)"):
        load_checkpoint(tmp_path / "model.pt")


def test_torchscript_is_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(nn.Linear(2, 1), torch.ones(1, 2)).save(tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"Refused to load .* a TorchScript program, .*torch.jit.load\(path\).state_dict"):
        load_checkpoint(tmp_path / "model.pt")


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_pickles_of_other_writers(tmp_path: Path, protocol: int) -> None:
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"model": weights(), "epoch": 3}, protocol))
    loaded = load_checkpoint(tmp_path / "model.pkl")
    assert all(torch.equal(loaded[key], tensor) for key, tensor in weights().items())
    (tmp_path / "arrays.pkl").write_bytes(pickle.dumps({key: tensor.numpy() for key, tensor in weights().items()}, protocol))
    loaded = load_checkpoint(tmp_path / "arrays.pkl")
    assert all(torch.equal(loaded[key], tensor) for key, tensor in weights().items())


def test_object_arrays_are_refused(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    np.savez(tmp_path / "model.npz", weight=np.array([Payload(proof)], dtype=object))
    with pytest.raises(CheckpointError, match=r"Refused to load .* object arrays, which would run code"):
        load_checkpoint(tmp_path / "model.npz")
    assert not proof.exists()


# == Damaged files ==


@pytest.mark.parametrize("suffix, save", WRITERS.values(), ids=WRITERS.keys())
@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.95])
def test_truncated_file(tmp_path: Path, suffix: str, save: Callable[[dict[str, Tensor], Path], Any], fraction: float) -> None:
    path = tmp_path / f"model{suffix}"
    save({"weight": torch.arange(1000.0)}, path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * fraction)])
    with pytest.raises(CheckpointError, match=f"is damaged or not a {suffix} file"):
        load_checkpoint(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".npz"])
@pytest.mark.parametrize("content", [b"", b"hello world, hello world", b"\x00" * 300], ids=["empty", "text", "zeros"])
def test_file_of_another_kind(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"is damaged or not a \."):
        load_checkpoint(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth.tar", ".npz"])
@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "a pointer of Git LFS"),
        (b"\n<!DOCTYPE html><html></html>", "a web page"),
        (gzip.compress(b"weights", mtime=0), "compressed with gzip"),
        (b"model".ljust(257, b"\0") + b"ustar" + b"\0" * 762, "a tar archive, which has to be unpacked"),
    ],
)
def test_file_that_is_something_else(tmp_path: Path, suffix: str, content: bytes, reason: str) -> None:
    (tmp_path / f"model{suffix}").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"is damaged or not a \{suffix} file \(.*{reason}"):
        load_checkpoint(tmp_path / f"model{suffix}")


def test_tensors_that_are_not_read(tmp_path: Path) -> None:
    sparse = torch.eye(2).to_sparse()
    torch.save({"state_dict": {"w": sparse, "b": torch.ones(2)}, "best": np.float64(1)}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"under 'state_dict' \('w' is of type torch._utils._rebuild_sparse_tensor\)"):
        load_checkpoint(tmp_path / "model.pt")


def test_module_and_its_state_dict_are_one_network(tmp_path: Path) -> None:
    module = nn.Linear(2, 3)
    torch.save({"model": module, "state_dict": module.state_dict()}, tmp_path / "model.pt")
    assert load_checkpoint(tmp_path / "model.pt").keys() == {"weight", "bias"}


@pytest.mark.parametrize("suffix, save", [WRITERS["npz"], WRITERS["compressed npz"]])
def test_flipped_bytes_in_npz(tmp_path: Path, suffix: str, save: Callable[[dict[str, Tensor], Path], Any]) -> None:
    path = tmp_path / f"model{suffix}"
    save({"weight": torch.randn(1000, generator=torch.Generator().manual_seed(0))}, path)
    content = bytearray(path.read_bytes())
    content[1000:1040] = bytes(255 - byte for byte in content[1000:1040])
    path.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=r"is damaged or not a \.npz file"):
        load_checkpoint(path)


def test_single_array(tmp_path: Path) -> None:
    with (tmp_path / "model.npz").open("wb") as file:
        np.save(file, np.ones(3))
    with pytest.raises(CheckpointError, match=r"holds a single array without a key; expected an archive written by np.savez"):
        load_checkpoint(tmp_path / "model.npz")


@pytest.mark.parametrize("array", [np.array(["text"]), np.ones(3, dtype=">f4")])
def test_array_without_tensor_dtype(tmp_path: Path, array: np.ndarray) -> None:
    np.savez(tmp_path / "model.npz", good=np.ones(2), bad=array)
    with pytest.raises(CheckpointError, match=r"The array 'bad' in .* cannot become a tensor"):
        load_checkpoint(tmp_path / "model.npz")


# == Paths ==


@pytest.mark.parametrize("name", ["model.h5", "model", "model.pt.gz"])
def test_unknown_extension(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=rf"Expected a file ending in \.safetensors, \.pt, .*\.npz \(got '{name}'\)"):
        load_checkpoint(tmp_path / name)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no checkpoint file '.*missing\.pt'"):
        load_checkpoint(tmp_path / "missing.pt")


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match=r"is a folder with no checkpoint \(.*; give the path of a checkpoint file in it"):
        load_checkpoint(tmp_path)
    for name in ("a.pt", "optimizer.pt", "scheduler.pt", "rng_state_0.pth", "training_args.bin", ".hidden.pt"):
        torch.save(weights(), tmp_path / name)
    assert load_checkpoint(tmp_path).keys() == weights().keys()
    torch.save(weights(), tmp_path / "b.pt")
    with pytest.raises(IsADirectoryError, match=r"is a folder with 2 networks, 'a.pt', 'b.pt'; give the path"):
        load_checkpoint(tmp_path)
    torch.save(weights(1), tmp_path / "pytorch_model.bin")
    safetensors.torch.save_file(weights(2), tmp_path / "model.safetensors")
    assert torch.equal(load_checkpoint(tmp_path)["0.weight"], weights(2)["0.weight"])


# == Sharded networks ==

LAYERS = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).state_dict()


def write_shards(folder: Path, ending: str = ".safetensors", **changes: Any) -> Path:
    """Two shards with their index, in which ``changes`` says other files of keys."""
    stem = "model" if ending == ".safetensors" else "pytorch_model"
    save = safetensors.torch.save_file if ending == ".safetensors" else torch.save
    places: dict[str, str] = {}
    for number, keys in enumerate([list(LAYERS)[:3], list(LAYERS)[3:]], 1):
        name = f"{stem}-0000{number}-of-00002{ending}"
        save({key: LAYERS[key] for key in keys}, folder / name)
        places |= dict.fromkeys(keys, name)
    index = folder / f"{stem}{ending}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": {**places, **changes}}, sort_keys=True))
    return index


@pytest.mark.parametrize("ending", [".safetensors", ".bin"])
def test_shards_are_one_network(tmp_path: Path, ending: str) -> None:
    index = write_shards(tmp_path, ending)
    for path in (tmp_path, index):
        loaded = load_checkpoint(path)
        assert loaded.keys() == LAYERS.keys()
        assert all(torch.equal(loaded[key], tensor) for key, tensor in LAYERS.items())
        assert list(loaded) == (sorted(LAYERS) if ending == ".safetensors" else list(LAYERS))
    shard = index.name.removesuffix(f"{ending}.index.json") + f"-00001-of-00002{ending}"
    with pytest.raises(CheckpointError, match=rf"is one of 2 files that hold one network together.*\({index.name}\)"):
        load_checkpoint(tmp_path / shard)
    (tmp_path / shard).unlink()
    with pytest.raises(FileNotFoundError, match=rf"index.json' names files that are not there: '{shard}'"):
        load_checkpoint(tmp_path)


def test_the_only_shard_is_a_network(tmp_path: Path) -> None:
    safetensors.torch.save_file(weights(), tmp_path / "model-00001-of-00001.safetensors")
    assert load_checkpoint(tmp_path).keys() == weights().keys()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"6.weight": "model-00001-of-00002.safetensors"}, r"'.*model-00001-of-00002.safetensors' lacks '6.weight', which"),
        ({"0.bias": "model-00002-of-00002.safetensors"}, r"holds '0.bias', which is in 'model-00002-of-00002.safetensors' according to"),
        ({"6.weight": "../other.safetensors"}, r"to name files beside it, without folders \(got '../other.safetensors'\)"),
        ({"6.weight": "/etc/hostname"}, r"without folders \(got '/etc/hostname'\)"),
        ({"6.weight": "sub/model.safetensors"}, r"without folders \(got 'sub/model.safetensors'\)"),
        ({"6.weight": ".."}, r"without folders \(got '..'\)"),
        ({"6.weight": "notes.txt"}, r"names files that are no checkpoints: 'notes.txt'"),
        ({"6.weight": 3}, r"to say in 'weight_map' which file each tensor is in"),
    ],
)
def test_index_that_disagrees_with_its_shards(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    (tmp_path / "notes.txt").touch()
    index = write_shards(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(index)


def test_shards_that_share_a_tensor_or_hold_too_much(tmp_path: Path) -> None:
    index = write_shards(tmp_path)
    second = tmp_path / "model-00002-of-00002.safetensors"
    held = safetensors.torch.load_file(second)
    safetensors.torch.save_file({**held, "0.weight": LAYERS["0.weight"]}, second)
    with pytest.raises(CheckpointError, match=r"'0.weight' is in two shards of .*, 'model-00001-of-.*' and 'model-00002-of-"):
        load_checkpoint(index)
    safetensors.torch.save_file({**held, "extra": torch.ones(1)}, second)
    with pytest.raises(CheckpointError, match=r"holds 'extra', which does not exist according to 'model.safetensors.index.json'"):
        load_checkpoint(index)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": []}'])
def test_damaged_index(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"model.safetensors.index.json' (is damaged or not an index|to say in 'weight_map')"):
        load_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="'entry' is for a file with several state dicts"):
        load_checkpoint(tmp_path, entry="model")


def test_error_is_a_value_error() -> None:
    assert issubclass(CheckpointError, ValueError)
