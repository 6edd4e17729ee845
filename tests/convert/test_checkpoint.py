from __future__ import annotations

import argparse
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Callable
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
    ],
    ids=["short", "lightning", "optimizer", "loss", "rng", "any name"],
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
    with pytest.raises(CheckpointError, match=r"holds several state dicts, 'model', 'ema'; .* torch.save\(checkpoint\['model'\], path\)"):
        load_checkpoint(tmp_path / "model.pt")


@pytest.mark.parametrize(
    "content, message",
    [
        ({}, r"holds no tensors and no state dict \(it holds: nothing\)"),
        ({"epoch": 3, "name": "x"}, r"holds no tensors and no state dict \(it holds: 'epoch', 'name'\)"),
        ({"optimizer": OPTIMIZER}, r"holds no tensors and no state dict \(it holds: 'optimizer'\)"),
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


@pytest.mark.parametrize(
    "content, name",
    [
        (nn.Linear(2, 1), "torch.nn.modules.linear.Linear"),
        ({"state_dict": weights(), "args": argparse.Namespace(x=1)}, "argparse.Namespace"),
    ],
)
def test_pickled_objects_are_refused_by_name(tmp_path: Path, content: Any, name: str) -> None:
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=f"it asks for {name}, which would run code"):
        load_checkpoint(tmp_path / "model.pt")


def test_torchscript_is_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(nn.Linear(2, 1), torch.ones(1, 2)).save(tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"Refused to load .* it holds more than tensors, which would run code"):
        load_checkpoint(tmp_path / "model.pt")


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
    with pytest.raises(IsADirectoryError, match="is a folder; give the path of a checkpoint file in it"):
        load_checkpoint(tmp_path)


def test_error_is_a_value_error() -> None:
    assert issubclass(CheckpointError, ValueError)
