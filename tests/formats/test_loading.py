"""One call for every format: how a format is chosen, options, and what errors say."""

import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from wsgraph import CheckpointError, load_networks
from wsgraph.convert.formats import FORMATS, FileNetwork, file_format, register_format
from wsgraph.convert.formats.archive import parsed_json, read_members


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def test_state_dicts_of_every_kind_are_read(tmp_path: Path) -> None:
    module = mlp()
    torch.save({"state_dict": module.state_dict(), "epoch": 3}, tmp_path / "model.pth.tar")
    np.savez(tmp_path / "model.npz", **{key: tensor.numpy() for key, tensor in module.state_dict().items()})
    folder = tmp_path / "run"
    folder.mkdir()
    torch.save({f"q_net.{key}": tensor for key, tensor in module.state_dict().items()}, folder / "best.pt")
    x = torch.randn(5, 3)
    for path, options in (("model.pth.tar", {}), ("model.npz", {}), ("run", {"prefix": "q_net"})):
        (found,) = load_networks(tmp_path / path, activation="tanh", **options)
        assert torch.allclose(found.space.evaluate(found.theta[None], x)[0], module(x), atol=1e-6)
        assert found.info["format"] == "state dict"
        assert found.name == options.get("prefix", "")


def test_onnx_is_read_and_traced(tmp_path: Path) -> None:
    module = mlp().eval()
    x = torch.randn(2, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        torch.onnx.export(module, (x,), tmp_path / "model.onnx", dynamo=True, verbose=False)
    (found,) = load_networks(tmp_path / "model.onnx")
    assert torch.allclose(found.space.evaluate(found.theta[None], x)[0], module(x), atol=1e-6)
    assert found.info == {"format": "ONNX", "inputs": [[2, 3]]}


def test_a_network_is_chosen_by_its_role(tmp_path: Path) -> None:
    torch.save(mlp().state_dict(), tmp_path / "model.pt")
    assert len(load_networks(tmp_path / "model.pt", network="")) == 1
    with pytest.raises(CheckpointError, match=r"model.pt' has no network 'policy' \(it has: ''\)"):
        load_networks(tmp_path / "model.pt", network="policy")


def test_errors_name_the_file_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file .*nothing.pt"):
        load_networks(tmp_path / "nothing.pt")
    (tmp_path / "model.txt").touch()
    with pytest.raises(CheckpointError, match=r"Expected a file ending in .*\.onnx.*\(got 'model.txt'\)"):
        load_networks(tmp_path / "model.txt")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme", "nothing")
    with pytest.raises(CheckpointError, match=r"other.zip' to be Stable-Baselines3 \(An agent .*\); its content is not"):
        load_networks(tmp_path / "other.zip")
    torch.save(mlp().state_dict(), tmp_path / "model.pt")
    with pytest.raises(TypeError, match=r"state dict, which has no option 'activations' .*Did you mean 'activation'\?"):
        load_networks(tmp_path / "model.pt", activations="relu")
    torch.save({"weight": torch.full((2, 2), torch.nan)}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"model.pt' cannot be read as state dict: 'weight' holds NaN"):
        load_networks(tmp_path / "model.pt")


def test_formats_of_plugins_are_chosen_by_content(tmp_path: Path) -> None:
    try:

        @register_format("mine", [".npz"], sniff=lambda path: path.read_bytes() == b"mine")
        def read(path: Path, *, twice: bool = False) -> list[FileNetwork]:
            """My own."""
            return []

        (tmp_path / "a.npz").write_bytes(b"mine")
        np.savez(tmp_path / "b.npz", weight=np.ones((2, 3), dtype=np.float32))
        assert load_networks(tmp_path / "a.npz", twice=True) == []
        assert file_format(tmp_path / "a.npz").options == ("twice",)
        assert file_format(tmp_path / "b.npz").name == "state dict"
    finally:
        FORMATS.pop("mine", None)


def test_archives_are_read_no_larger_than_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(10**6))
        archive.writestr("text", "{")
    assert len(read_members(path, "zeros")[0]) == 10**6  # small enough whatever the archive is
    monkeypatch.setattr("wsgraph.convert.formats.archive._SMALL", 1000)
    with pytest.raises(CheckpointError, match=r"Refused to read 'zeros' .*unpack to 1,000,000 bytes, from an archive of 1,\d\d\d"):
        read_members(path, "zeros")
    with pytest.raises(CheckpointError, match=r"a.zip' to hold one 'data' \(it has 0\)"):
        read_members(path, "data")
    (text,) = read_members(path, "text")
    with pytest.raises(CheckpointError, match=r"'text' of .* is damaged or no JSON"):
        parsed_json(text, path, "text")
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(CheckpointError, match="is damaged or not a zip archive"):
        read_members(path, "zeros")
