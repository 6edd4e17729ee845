"""Flax files, written by msgpack in the layout of ``flax.serialization``."""

from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wsgraph import CheckpointError, load_networks


def packed(value: Any) -> Any:
    """What ``flax.serialization`` packs: arrays are extensions with shape, type and bytes."""
    if isinstance(value, dict):
        return {name: packed(entry) for name, entry in value.items()}
    if isinstance(value, np.ndarray):
        return msgpack.ExtType(1, msgpack.packb((value.shape, value.dtype.name, value.tobytes())))
    return value


def save(path: Path, content: Any) -> Path:
    path.write_bytes(msgpack.packb(packed(content)))
    return path


def dense(rng: np.random.Generator, inputs: int, outputs: int) -> dict[str, np.ndarray]:
    # Flax sorts names, and with them the bias before the kernel.
    return {
        "bias": rng.normal(size=outputs).astype(np.float32),
        "kernel": (rng.normal(size=(inputs, outputs)) / np.sqrt(inputs)).astype(np.float32),
    }


def through(layers: list[dict[str, np.ndarray]], x: Tensor) -> Tensor:
    for i, layer in enumerate(layers):
        x = x @ torch.from_numpy(layer["kernel"]) + torch.from_numpy(layer["bias"])
        x = torch.tanh(x) if i + 1 < len(layers) else x
    return x


@pytest.mark.parametrize("wrap", ["params", "variables", "training state", "nnx", "nnx variables", "prefix"])
def test_layers_follow_each_other_by_their_numbers(tmp_path: Path, wrap: str) -> None:
    rng = np.random.default_rng(0)
    layers = [dense(rng, 4, 4) for _ in range(12)]
    names = sorted(f"Dense_{i}" for i in range(12))  # Dense_10 before Dense_2
    params: dict[str, Any] = {name: layers[int(name[6:])] for name in names}
    options: dict[str, Any] = {"activation": "tanh"}
    content: dict[str, Any] = params
    if wrap == "variables":
        content = {"params": params}
    elif wrap == "training state":
        content = {"opt_state": {"0": {"count": np.array(3), "mu": params}}, "params": {"params": params}, "step": 3}
    elif wrap == "nnx":
        content = {"drop": {"rngs": {"count": np.array(0, dtype=np.uint32)}}, "layers": {name[6:]: layer for name, layer in params.items()}}
    elif wrap == "nnx variables":
        content = {name: {kind: {"value": array} for kind, array in layer.items()} for name, layer in params.items()}
    elif wrap == "prefix":
        content = {"params": {"actor": params, "critic": params}}
        options["prefix"] = "actor"
    (found,) = load_networks(save(tmp_path / "a.msgpack", content), **options)
    x = torch.randn(5, 4)
    assert torch.allclose(found.space.evaluate(found.theta[None], x)[0], through(layers, x), atol=1e-5)
    assert found.name == options.get("prefix", "")


def test_convolutions_and_flattening_are_reordered(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(3, 3, 2, 4)).astype(np.float32)
    first, last = dense(rng, 16, 5), dense(rng, 5, 2)
    # An array that is as large as those that Flax divides.
    chunks = {"0": first["kernel"].ravel()[:30], "1": first["kernel"].ravel()[30:]}
    divided = {"__msgpack_chunked_array__": True, "shape": {"0": 16, "1": 5}, "chunks": chunks}
    params = {"Conv_0": {"kernel": kernel}, "Dense_0": {**first, "kernel": divided}, "Dense_1": last}
    path = save(tmp_path / "a.msgpack", {"params": params})
    images = torch.randn(3, 2, 4, 4)
    (found,) = load_networks(path, activation="tanh", stride=1, padding=0, pooling="none")
    features = torch.tanh(nn.functional.conv2d(images, torch.from_numpy(kernel).permute(3, 2, 0, 1)))
    expected = through([first, last], features.permute(0, 2, 3, 1).flatten(1))
    assert torch.allclose(found.space.evaluate(found.theta[None], images)[0], expected, atol=1e-5)


def test_half_precision_is_kept(tmp_path: Path) -> None:
    weights = torch.randn(4, 2).bfloat16()
    data = weights.view(torch.int16).numpy().tobytes()
    array = msgpack.ExtType(1, msgpack.packb(((4, 2), "bfloat16", data)))
    (found,) = load_networks(save(tmp_path / "a.msgpack", {"Dense_0": {"kernel": array}}), activation="relu")
    assert torch.equal(found.space.unflatten(found.theta)["Dense_0/weight"], weights.T)


def test_what_cannot_be_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "a.msgpack"
    layer = {"Dense_0": dense(rng, 4, 2)}
    norm = {"BatchNorm_0": {"scale": np.ones(4, dtype=np.float32), "bias": np.ones(4, dtype=np.float32)}}
    cases: list[tuple[Any, dict[str, Any], str]] = [
        ({"params": layer}, {}, "a.msgpack' does not say the activations of its network: give them with activation="),
        (
            {"params": layer, "batch_stats": norm},
            {},
            "holds 'batch_stats' beside its parameters, as batch norms do. Flax files hold weights",
        ),
        ({"params": {**layer, **norm}}, {"activation": "relu"}, "cannot be read: 'BatchNorm_0/scale' .* chains of dense layers"),
        ({"step": 3}, {}, r"a.msgpack' holds no parameters that Flax wrote \(it holds: step\)"),
        ([1, 2], {}, "holds a list; expected a dict of parameters"),
        ({"a": msgpack.ExtType(9, b"")}, {}, r"holds values of an unknown kind \(9\)"),
        ({"a": np.ones(2, dtype=np.complex64)}, {}, "an array of the type 'complex64', which is not read here"),
        (
            {"a": msgpack.ExtType(1, msgpack.packb(((2**40, 2**20), "float32", b"")))},
            {},
            "is damaged: an array of the shape .* has 0 bytes",
        ),
    ]
    for content, options, message in cases:
        with pytest.raises(CheckpointError, match=message):
            load_networks(save(path, content), **options)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match="is damaged or not a msgpack file"):
        load_networks(path)
    monkeypatch.setitem(__import__("sys").modules, "msgpack", None)
    with pytest.raises(ImportError, match=r"needs the package msgpack: pip install 'wsgraph\[flax\]'"):
        load_networks(path)
