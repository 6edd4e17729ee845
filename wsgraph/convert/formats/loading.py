"""One call that reads the networks of a file of any format."""

from __future__ import annotations

import dataclasses
import functools
import os
from pathlib import Path
from typing import Any

from wsgraph._suggestions import did_you_mean
from wsgraph.convert.errors import CheckpointError
from wsgraph.convert.formats.entry import FOLDER, FORMATS, FileFormat, FileNetwork

__all__ = ["file_ending", "file_format", "known_endings", "load_networks", "read_networks"]


def load_networks(path: str | os.PathLike[str], *, network: str | None = None, **options: Any) -> list[FileNetwork]:
    r"""The networks of a file, in any format that is known: each with its role, weight space and weights.

    State dicts of PyTorch and NumPy, ONNX, Stable-Baselines3 agents (``.zip``), Keras (``.keras``, ``.h5``) and further formats
    that plugins add. The format follows from the ending of the name, and from the content where several formats have it. No code of
    a file is run, and nothing that it names is imported.

    Where a file says what its network computes, ``space.evaluate(theta[None], x)`` gives those outputs; state dicts do not say their
    activations, which are given by ``activation=``. Images are ``[N, C, H, W]`` whatever the file's library calls them.

    Args:
        path: A file, or a folder that holds one network.
        network: Role of the network to return, such as ``"policy"`` (default: all).
        **options: The format's own, such as ``activation``, ``prefix`` and ``layout`` of state dicts (see
            :func:`wsgraph.from_state_dict`) and ``shapes`` of inputs of ONNX and Keras files.

    Returns:
        The networks; ``info`` says the ``"format"`` and what else the file says of each.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the format is unknown or the file is damaged, holds what cannot be read, or has no such network.
        ImportError: If the format needs a package that is not installed; the error says which extra has it.
        TypeError: If the format takes no such option.

    Example:
        >>> import tempfile, torch
        >>> from wsgraph import load_networks
        >>> module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save(module.state_dict(), f"{folder}/model.pt")
        ...     load_networks(f"{folder}/model.pt", activation="tanh")
        [FileNetwork('', WeightSpace(2-3-1, linear | linear, tanh, 13 parameters))]
    """
    path = Path(path)
    found = read_networks(path, file_format(path), **options)
    if network is not None:
        names = [entry.name for entry in found]
        if network not in names:
            raise CheckpointError(
                f"{str(path)!r} has no network {network!r} (it has: {', '.join(map(repr, names))}).{did_you_mean(network, names)}"
            )
        found = [entry for entry in found if entry.name == network]
    return found


def read_networks(path: Path, chosen: FileFormat, **options: Any) -> list[FileNetwork]:
    """What :func:`load_networks` does, for callers that know the format."""
    if unknown := [name for name in options if name not in chosen.options]:
        takes = f"it takes: {', '.join(chosen.options)}" if chosen.options else "it takes none"
        hint = did_you_mean(unknown[0], chosen.options)
        raise TypeError(f"{str(path)!r} is read as {chosen.name}, which has no option {unknown[0]!r} ({takes}).{hint}")
    try:
        found = chosen.read(path, **options)
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{str(path)!r} cannot be read as {chosen.name}: {error}") from error
    return [dataclasses.replace(entry, info={"format": chosen.name, **entry.info}) for entry in found]


@functools.cache
def _load_plugins() -> None:
    """Load the formats of plugins, once: looking for them takes longer than reading a small file."""
    FORMATS.names()


def known_endings() -> list[str]:
    """All endings of files of networks, for messages.

    Example:
        >>> ".keras" in known_endings()
        True
    """
    _load_plugins()
    return sorted({ending for entry in FORMATS.values() for ending in entry.endings} - {FOLDER})


def file_ending(name: str) -> str | None:
    """The longest ending of a file's name that a format has, or ``None``.

    Args:
        name: The name.

    Example:
        >>> file_ending("model.onnx"), file_ending("best.pth.tar"), file_ending("notes.txt")
        ('.onnx', '.pth.tar', None)
    """
    _load_plugins()
    endings = (ending for entry in FORMATS.values() for ending in entry.endings if ending != FOLDER and name.lower().endswith(ending))
    return max(endings, key=len, default=None)


def file_format(path: str | os.PathLike[str]) -> FileFormat:
    """The format of a file, by its ending and, where that does not decide, its content.

    Args:
        path: A file or folder.

    Returns:
        The registry's entry, whose ``name`` and ``options`` say how it is read.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If no format reads it.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "model.safetensors")
        ...     path.touch()
        ...     file_format(path).name
        'state dict'
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no file {str(path)!r}.")
    name = path.name.lower() + (FOLDER if path.is_dir() else "")
    _load_plugins()
    known = list(FORMATS.values())
    fitting = [(max((len(ending) for ending in entry.endings if name.endswith(ending)), default=0), entry) for entry in known]
    longest = max((length for length, _ in fitting), default=0)
    candidates = [entry for length, entry in fitting if length and length == longest]
    if not candidates:
        raise CheckpointError(f"Expected a file ending in {', '.join(known_endings())} (got {path.name!r}).")
    # Formats that look into a file come before those that take any of the ending.
    for entry in sorted(candidates, key=lambda entry: entry.sniff is None):
        if entry.sniff is None or entry.sniff(path):
            return entry
    expected = " or ".join(f"{entry.name} ({entry.description.rstrip('.')})" for entry in candidates)
    raise CheckpointError(f"Expected {str(path)!r} to be {expected}; its content is not, or it is damaged.")
