"""Load the tensors of a checkpoint file without ever running code from it."""

from __future__ import annotations

import os
import pickle
import pickletools
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["CheckpointError", "load_checkpoint"]

# How torch.load words that a pickle asks for more than tensors, in its several formats.
_REFUSAL = re.compile(r"unsupported (global|class)|trying to (call|load)|torchscript|legacy \.tar", re.IGNORECASE)


class CheckpointError(ValueError):
    """A checkpoint file cannot be read, is not safe to read, or does not hold one state dict.

    Example:
        >>> import pathlib, tempfile
        >>> from wsgraph import load_checkpoint
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "notes.txt")
        ...     path.touch()
        ...     load_checkpoint(path)
        Traceback (most recent call last):
        ...
        CheckpointError: Expected a file ending in .safetensors, .pt, .pth, .ckpt, .npz (got 'notes.txt').
    """


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Load the state dict of a checkpoint file.

    Reads ``.safetensors``, ``.pt``, ``.pth`` and ``.ckpt`` (PyTorch, Lightning) and ``.npz`` (NumPy). No code stored in the file is run: a
    pickle that asks for it is refused. Of a training checkpoint such as ``{"state_dict": {...}, "epoch": 3}`` the state dict is returned.

    Args:
        path: File to read.

    Returns:
        Tensors by key on the CPU, in the order of the file.

    Raises:
        FileNotFoundError: If there is no such file.
        IsADirectoryError: If the path is a folder.
        CheckpointError: If the format is unknown, the file is damaged or would run code, or it holds no state dict or several.

    Example:
        >>> import tempfile, torch
        >>> from wsgraph.convert import load_checkpoint
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"state_dict": torch.nn.Linear(2, 1).state_dict(), "epoch": 3}, f"{folder}/model.pt")
        ...     sorted(load_checkpoint(f"{folder}/model.pt"))
        ['bias', 'weight']
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{str(path)!r} is a folder; give the path of a checkpoint file in it.")
    if not path.exists():
        raise FileNotFoundError(f"There is no checkpoint file {str(path)!r}.")
    load = _LOADERS.get(path.suffix.lower())
    if load is None:
        raise CheckpointError(f"Expected a file ending in {', '.join(_LOADERS)} (got {path.name!r}).")
    try:
        content = load(path)
    except (CheckpointError, PermissionError):
        raise
    except Exception as error:  # what a parser raises on damaged bytes is not documented and ranges from EOFError to KeyError
        reason = str(error).split("\n")[0]
        raise CheckpointError(f"{str(path)!r} is damaged or not a {path.suffix} file ({type(error).__name__}: {reason}).") from None
    return _find_state_dict(content, path)


def _load_safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    return load_file(path)


def _load_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a TorchScript archive warns before it is refused
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        if not _is_refusal(str(error)):
            raise
        name = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it asks for {name[1]}, which" if name else "it holds more than tensors, which"
        raise CheckpointError(
            f"Refused to load {str(path)!r}: {what} would run code from the file. If you trust the file, save its tensors alone with "
            "torch.save(model.state_dict(), path), or as safetensors."
        ) from None


def _is_refusal(text: str) -> bool:
    """Whether torch.load understood the file and turned it down, rather than failed to understand it."""
    operand = re.search(r"Unsupported operand (\d+)", text)
    return chr(int(operand[1])) in {op.code for op in pickletools.opcodes} if operand else _REFUSAL.search(text) is not None


def _load_numpy(path: Path) -> Any:
    try:
        with path.open("rb") as file:  # opened here because np.load leaves the file of a damaged archive open
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise CheckpointError(f"{str(path)!r} holds a single array without a key; expected an archive written by np.savez.")
            arrays = {key: archive[key] for key in archive.files}
    except ValueError as error:
        if "Object arrays" not in str(error):
            raise
        raise CheckpointError(
            f"Refused to load {str(path)!r}: it holds object arrays, which would run code from the file. "
            "Save every weight as an array of numbers."
        ) from None
    tensors = {}
    for key, array in arrays.items():
        try:
            tensors[key] = torch.from_numpy(array)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"The array {key!r} in {str(path)!r} cannot become a tensor ({error}).") from None
    return tensors


_LOADERS = {".safetensors": _load_safetensors, ".pt": _load_torch, ".pth": _load_torch, ".ckpt": _load_torch, ".npz": _load_numpy}


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and all(isinstance(key, str) and isinstance(entry, Tensor) for key, entry in value.items())
        and any(entry.is_floating_point() and entry.ndim for entry in value.values())
    )


def _find_state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{str(path)!r} holds a {type(content).__name__}; expected a state dict, that is tensors by key.")
    if unnamed := [key for key, value in content.items() if isinstance(value, Tensor) and not isinstance(key, str)]:
        raise CheckpointError(f"Expected the keys of the tensors in {str(path)!r} to be strings (got {unnamed[0]!r}).")
    if content and all(isinstance(value, Tensor) for value in content.values()):
        return {key: tensor.detach() for key, tensor in content.items()}
    candidates = [key for key, value in content.items() if _is_state_dict(value)]
    if len(candidates) > 1:
        raise CheckpointError(
            f"{str(path)!r} holds several state dicts, {', '.join(map(repr, candidates))}; save the one you mean on its own, "
            f"for instance torch.save(checkpoint[{candidates[0]!r}], path)."
        )
    if candidates:
        return {key: tensor.detach() for key, tensor in content[candidates[0]].items()}
    listed = ", ".join(map(repr, list(content)[:8])) or "nothing"
    if tensors := [key for key, value in content.items() if isinstance(value, Tensor)]:
        other = next(key for key in content if key not in tensors)
        kind = type(content[other]).__name__
        raise CheckpointError(
            f"{str(path)!r} mixes tensors with other values ({other!r} is of type {kind}); save the tensors on their own."
        )
    raise CheckpointError(f"{str(path)!r} holds no tensors and no state dict (it holds: {listed}).")
