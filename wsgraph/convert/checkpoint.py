"""Load the tensors of a checkpoint file without ever running code from it."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wsgraph.convert.errors import CheckpointError
from wsgraph.convert.unpickle import Stub, module_tensors, open_inert, resolve_inert

__all__ = ["CHECKPOINT_ENDINGS", "INDEX_ENDING", "CheckpointError", "checkpoint_ending", "is_hub_model", "load_checkpoint", "network_files"]

INDEX_ENDING = ".index.json"
_HUB = ("model.safetensors", f"model.safetensors{INDEX_ENDING}", "pytorch_model.bin", f"pytorch_model.bin{INDEX_ENDING}")
# What training leaves beside a network: an optimizer, a schedule, random states, arguments. The whole name must say so, for
# hyperparameters stand in names of networks too.
_OTHER_FILE = re.compile(
    r"(optim(izer)?s?|(lr_?)?sched(uler)?s?|(grad_?)?scaler|rng|random|training_args|train(er)?|amp)(_states?)?(_dict)?([_-]?\d+)*",
    re.IGNORECASE,
)
_OTHER_ENTRY = re.compile(
    r"(?<![a-z])(optim(izer)?s?|(lr_?)?sched(uler)?s?|(grad_?)?scaler|rng|amp|loops|callbacks|hparams|hyper_?param\w*|config|cfg|args)"
    r"(?![a-z])",
    re.IGNORECASE,
)
_OPTIMIZER_KEYS = {"param_groups", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "acc_delta"}
_SHARD = re.compile(r"(?P<name>.+)-(?P<number>\d{3,})-of-(?P<count>\d{3,})$")
# Nothing of a file is ever run; but one that asks for these was not made to hold a network.
_PROGRAM = re.compile(
    r"builtins\.(exec|eval|compile|__import__|open|input|breakpoint)$|pickle\.loads?$"
    r"|(os|posix|nt|sys|subprocess|shutil|socket|ctypes|importlib|runpy|pty|code|codeop|webbrowser)\."
)


def load_checkpoint(path: str | os.PathLike[str], *, entry: str | None = None) -> dict[str, Tensor]:
    """Load the state dict of a checkpoint: a file, or several files that hold one network together.

    Reads ``.safetensors``, ``.pt``, ``.pth``, ``.ckpt``, ``.bin``, ``.pkl``, ``.pth.tar`` and ``.pt.tar`` (PyTorch, Lightning) and ``.npz``
    (NumPy). No code stored in a file is run: whatever a pickle holds beside tensors, numbers and containers is skipped, and a file that
    asks for commands is refused. Of a training checkpoint such as ``{"state_dict": {...}, "epoch": 3}`` the state dict is returned, also
    from dicts within dicts; of a module that was pickled whole, its parameters and buffers. States of optimizers are never taken.

    Sharded networks, as on the Hugging Face Hub, are read whole from their folder or from ``model.safetensors.index.json``.

    Args:
        path: File to read; an index of shards; or a folder that holds one network.
        entry: Which state dict of a file with several, such as ``"ema"`` or ``"model.state_dict"``.

    Returns:
        Tensors by key on the CPU, in the order of the file; those of sharded safetensors, whose order says nothing, sorted.

    Raises:
        FileNotFoundError: If there is no such file, or a shard is missing.
        IsADirectoryError: If the path is a folder that does not hold one network.
        CheckpointError: If the format is unknown, the file is damaged or asks for commands, it holds no state dict or several, is one
            shard of several, or shards and index disagree.

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
        path = _only_network(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no checkpoint file {str(path)!r}.")
    if path.name.lower().endswith(INDEX_ENDING):
        if entry is not None:
            raise CheckpointError(f"'entry' is for a file with several state dicts; {str(path)!r} is the index of one (got {entry!r}).")
        return _load_sharded(path)
    shard = _shard_of(path.name)
    if shard and int(shard["count"]) > 1:
        raise CheckpointError(
            f"{str(path)!r} is one of {int(shard['count'])} files that hold one network together. Give their folder, or their index "
            f"({shard['name']}{checkpoint_ending(path.name)}{INDEX_ENDING})."
        )
    return _find_state_dict(_load_file(path), path, entry)


def checkpoint_ending(name: str) -> str | None:
    """The ending of a file name that :func:`load_checkpoint` knows, such as ``".pth.tar"``, or ``None``.

    Example:
        >>> checkpoint_ending("best.pth.tar"), checkpoint_ending("notes.txt")
        ('.pth.tar', None)
    """
    return next((ending for ending in _LOADERS if name.lower().endswith(ending)), None)


def network_files(names: Iterable[str]) -> list[str]:
    """Which of the files in one folder are checkpoints of a network each: of a sharded one, its index.

    Of a folder as on the Hugging Face Hub, which may hold a network in several formats, the one that its
    own libraries prefer. What training leaves beside a network (optimizers, schedules, random states,
    arguments) is none.

    Args:
        names: Names of the files.

    Returns:
        Names for :func:`load_checkpoint`, sorted.

    Example:
        >>> network_files(["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"])
        ['model.safetensors.index.json']
        >>> network_files(["a.pt", "b.pth.tar", "optimizer.pt", "notes.txt"])
        ['a.pt', 'b.pth.tar']
    """
    names = sorted(names)
    for hub in _HUB:
        if hub in names:
            return [hub]
    indexes = [name for name in names if name.endswith(INDEX_ENDING) and checkpoint_ending(name.removesuffix(INDEX_ENDING))]
    whole = []
    for name in names:
        shard = _shard_of(name)
        if (
            checkpoint_ending(name)
            and not name.startswith(".")
            and not _OTHER_FILE.fullmatch(name[: -len(checkpoint_ending(name) or "")])
            and not (shard and f"{shard['name']}{checkpoint_ending(name)}{INDEX_ENDING}" in indexes)
        ):
            whole.append(name)
    return sorted(indexes + whole)


def is_hub_model(names: Sequence[str]) -> bool:
    """Whether files of :func:`network_files` are the model of a folder as on the Hub."""
    return len(names) == 1 and names[0] in _HUB


# == Several files ==


def _shard_of(name: str) -> re.Match[str] | None:
    ending = checkpoint_ending(name)
    return _SHARD.match(name[: -len(ending)]) if ending else None


def _only_network(folder: Path) -> Path:
    found = network_files(entry.name for entry in folder.iterdir() if entry.is_file())
    if len(found) != 1:
        listed = f"{len(found)} networks, {_listed(found)}" if found else f"no checkpoint ({', '.join(_LOADERS)})"
        raise IsADirectoryError(f"{str(folder)!r} is a folder with {listed}; give the path of a checkpoint file in it.")
    return folder / found[0]


def _load_sharded(index: Path) -> dict[str, Tensor]:
    try:
        places = json.loads(index.read_text(encoding="utf-8")).get("weight_map")
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{str(index)!r} is damaged or not an index of shards ({error}).") from None
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise CheckpointError(f"Expected {str(index)!r} to say in 'weight_map' which file each tensor is in.")
    files = sorted(set(places.values()))
    # A name alone: an index must not lead to files elsewhere.
    if outside := [name for name in files if not name or Path(name).name != name or "\\" in name or name in (".", "..")]:
        raise CheckpointError(f"Expected {str(index)!r} to name files beside it, without folders (got {_listed(outside)}).")
    if missing := [name for name in files if not (index.parent / name).is_file()]:
        raise FileNotFoundError(f"{str(index)!r} names files that are not there: {_listed(missing)}.")
    if unknown := [name for name in files if checkpoint_ending(name) is None]:
        raise CheckpointError(f"{str(index)!r} names files that are no checkpoints: {_listed(unknown)}.")
    tensors: dict[str, Tensor] = {}
    for name in files:
        found = _find_state_dict(_load_file(index.parent / name), index.parent / name)
        if lacking := [key for key, place in places.items() if place == name and key not in found]:
            raise CheckpointError(f"{str(index.parent / name)!r} lacks {_listed(lacking)}, which {index.name!r} says is in it.")
        for key in found:
            if key in tensors:
                raise CheckpointError(f"{key!r} is in two shards of {str(index)!r}, {places[key]!r} and {name!r}.")
            if places.get(key) != name:
                said = f"is in {places[key]!r}" if key in places else "does not exist"
                raise CheckpointError(f"{str(index.parent / name)!r} holds {key!r}, which {said} according to {index.name!r}.")
        tensors |= found
    if all(name.endswith(".safetensors") for name in files):
        # Each shard is sorted, which must not look like the order of a module where they follow each other.
        return {key: tensors[key] for key in sorted(tensors)}
    return tensors


def _listed(names: Iterable[Any], most: int = 8) -> str:
    names = list(names)
    return ", ".join(map(repr, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


# == One file ==


def _load_file(path: Path) -> Any:
    ending = checkpoint_ending(path.name)
    if ending is None:
        raise CheckpointError(f"Expected a file ending in {', '.join(_LOADERS)} (got {path.name!r}).")
    try:
        return _LOADERS[ending](path)
    except (CheckpointError, PermissionError):
        raise
    except Exception as error:  # what a parser raises on damaged bytes is not documented and ranges from EOFError to KeyError
        reason = _what_it_is(path) or f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise CheckpointError(f"{str(path)!r} is damaged or not a {path.name[-len(ending) :]} file ({reason}).") from None


def _what_it_is(path: Path) -> str | None:
    """What a file is that its ending does not say, of the kinds that people meet in its place."""
    with path.open("rb") as file:
        start = file.read(512)
    kinds = {
        "it is empty": not start,
        "it is a pointer of Git LFS, which has to be replaced by the file: git lfs pull": start.startswith(b"version https://git-lfs"),
        "it is a web page": start.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html")),
        "it is a tar archive, which has to be unpacked": start[257:262] == b"ustar",
        "it is compressed with gzip, and has to be unpacked": start.startswith(b"\x1f\x8b"),
    }
    return next((text for text, holds in kinds.items() if holds), None)


def _load_safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    return load_file(path)


def _load_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a TorchScript archive warns before it is refused
            return torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError:
        raise
    except Exception:  # it holds more than tensors, was not written by torch.save, or is damaged: what it is shows below
        pass
    try:
        opened = open_inert(path.read_bytes(), pickles=True)
        if programs := sorted(name for name in opened[2] if _PROGRAM.match(name)):
            raise CheckpointError(
                f"it asks for {programs[0]}, which would run code from the file. If you trust the file, save its tensors alone with "
                "torch.save(model.state_dict(), path), or as safetensors"
            )
        return resolve_inert(opened)
    except CheckpointError as error:
        raise CheckpointError(f"Refused to load {str(path)!r}: {error}.") from None


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
    return _as_tensors(arrays, path)


def _as_tensors(arrays: Mapping[str, np.ndarray], path: Path) -> dict[str, Tensor]:
    tensors = {}
    for key, array in arrays.items():
        try:
            tensors[key] = torch.from_numpy(array)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"The array {key!r} in {str(path)!r} cannot become a tensor ({error}).") from None
    return tensors


_LOADERS: dict[str, Callable[[Path], Any]] = {
    ".safetensors": _load_safetensors,
    **dict.fromkeys((".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pth.tar", ".pt.tar"), _load_torch),
    ".npz": _load_numpy,
}
CHECKPOINT_ENDINGS = tuple(_LOADERS)


# == The state dict in a file ==


def _find_state_dict(content: Any, path: Path, entry: str | None = None) -> dict[str, Tensor]:
    content = _opened(content, path)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{str(path)!r} holds {_kind(content)}; expected a state dict, that is tensors by key.")
    if unnamed := [key for key, value in content.items() if isinstance(value, Tensor) and not isinstance(key, str)]:
        raise CheckpointError(f"Expected the keys of the tensors in {str(path)!r} to be strings (got {unnamed[0]!r}).")
    tensors = _without_extra_state(content)
    if tensors and entry is None and all(isinstance(value, Tensor) for value in tensors.values()):
        return {key: tensor.detach() for key, tensor in tensors.items()}
    candidates = dict(_candidates(content, path, named=entry is not None))
    if entry is not None:
        if entry not in candidates:
            raise CheckpointError(f"{str(path)!r} has no state dict {entry!r} (it has: {_listed(candidates) or 'none'}).")
        return {key: tensor.detach() for key, tensor in candidates[entry].items()}
    # Vectors alone, such as the weights of classes in a loss, are no network beside one.
    matrices = {name: found for name, found in candidates.items() if any(tensor.ndim > 1 for tensor in found.values())}
    candidates = matrices or candidates
    first = next(iter(candidates.values()), None)
    if len(candidates) > 1 and not all(_is_same(found, first) for found in candidates.values()):
        names = list(candidates)
        raise CheckpointError(
            f"{str(path)!r} holds several state dicts, {_listed(names)}; choose one with load_checkpoint(path, entry={names[0]!r}), "
            f"or --entry {names[0]} on the command line."
        )
    if first is not None:
        return {key: tensor.detach() for key, tensor in first.items()}
    raise CheckpointError(f"{str(path)!r} {_without_network(content, path)}")


def _opened(value: Any, path: Path) -> Any:
    """The mapping that a value stands for: a module its tensors, a class of dicts its entries, arrays their tensors."""
    if (tensors := module_tensors(value)) is not None:
        return tensors
    if isinstance(value, Stub) and value.entries:
        return {key: entry for key, entry in value.entries if isinstance(key, str)}
    if isinstance(value, Mapping) and value and all(isinstance(key, str) and isinstance(v, np.ndarray) for key, v in value.items()):
        return _as_tensors(value, path)
    return value


def _candidates(content: Mapping[Any, Any], path: Path, *, named: bool) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """State dicts among the entries of a dict and of dicts within it, by the path of keys that leads to each.

    Those of callbacks, optimizers and configurations are for who names them.
    """
    for where, values in _mappings(content, path, named=named):
        if _OPTIMIZER_KEYS & {key for key in values if isinstance(key, str)}:
            continue
        for key, value in values.items():
            inner = _opened(value, path)
            if not isinstance(key, str) or not isinstance(inner, Mapping) or (_OTHER_ENTRY.search(key) and not named):
                continue
            tensors = _without_extra_state(inner)
            if _is_state_dict(tensors):
                yield f"{where}{key}", tensors


def _mappings(content: Mapping[Any, Any], path: Path, *, named: bool = False) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """A dict and those within it, once each, with the keys that lead to it; without what belongs to an optimizer."""
    waiting, seen = [("", content)], {id(content)}
    while waiting:
        where, values = waiting.pop(0)
        yield where, values
        if _OPTIMIZER_KEYS & {key for key in values if isinstance(key, str)}:
            continue
        for key, value in values.items():
            inner = _opened(value, path)
            if isinstance(key, str) and isinstance(inner, Mapping) and id(value) not in seen and (named or not _OTHER_ENTRY.search(key)):
                seen.add(id(value))
                waiting.append((f"{where}{key}.", inner))


def _without_extra_state(content: Mapping[Any, Any]) -> dict[Any, Any]:
    """A state dict without what layers keep beside their tensors, which is no weight."""
    return {key: value for key, value in content.items() if not (isinstance(key, str) and key.endswith("_extra_state"))}


def _is_state_dict(value: Mapping[Any, Any]) -> bool:
    return (
        all(isinstance(key, str) and isinstance(entry, Tensor) for key, entry in value.items())
        and any(entry.is_floating_point() and entry.ndim for entry in value.values())
        and not _OPTIMIZER_KEYS & {*value}
    )


def _is_same(first: Mapping[str, Tensor], second: Mapping[str, Tensor] | None) -> bool:
    """Whether two entries are one state dict under two names, as the same numbers in memory show."""
    return second is not None and first.keys() == second.keys() and all(_place(first[key]) == _place(second[key]) for key in first)


def _place(tensor: Tensor) -> tuple[Any, ...]:
    # Tensors that are not strided have no address.
    return (tensor.data_ptr(), tensor.shape, tensor.dtype) if tensor.layout == torch.strided else (id(tensor),)


def _without_network(content: Mapping[Any, Any], path: Path) -> str:
    keys = {key for key in content if isinstance(key, str)}
    if "param_groups" in keys:
        return "holds the state of an optimizer, not a network; give the file with the weights."
    for where, values in _mappings(content, path):
        tensors = [key for key, value in values.items() if isinstance(value, Tensor) or _type(value).startswith("torch._utils._rebuild")]
        others = [key for key, value in values.items() if not isinstance(value, Tensor)]
        if tensors and others:
            under = f" under {where[:-1]!r}" if where else ""
            return f"mixes tensors with other values{under} ({others[0]!r} is of type {_type(values[others[0]])}); save the tensors alone."
    listed = _listed(content) or "nothing"
    optimizers = [key for key in keys if _OTHER_ENTRY.search(key)]
    hint = "; what belongs to training alone, such as an optimizer, is no network" if optimizers else ""
    return f"holds no tensors and no state dict (it holds: {listed}{hint})."


def _kind(value: Any) -> str:
    return f"an object of the class {value.name}, which is not looked up" if isinstance(value, Stub) else f"a {_type(value)}"


def _type(value: Any) -> str:
    return value.name if isinstance(value, Stub) else type(value).__name__
