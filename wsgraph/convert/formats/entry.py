"""The registry of file formats, and what every one of them returns."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from wsgraph.plugins import Registry
from wsgraph.space import WeightSpace

__all__ = ["FOLDER", "FORMATS", "FileFormat", "FileNetwork", "Reader", "register_format"]

FOLDER = "/"
"""Ending of a path that is a folder, for formats that read folders."""


@dataclass(frozen=True, eq=False)
class FileNetwork:
    r"""A network that was read from a file.

    Attributes:
        name: Its role in the file, such as ``"policy"`` or ``"q1_target"``; empty where a file holds one network.
        space: Its weight space.
        theta: Its weights :math:`\theta`, of shape ``[P]``.
        info: What else the file says of it, as plain values for JSON, such as its algorithm;
            ``"format"`` is always there. A zoo has its single values, and those of dicts in it, as
            columns.
        keys: Keys of tensors in the file by those of the space, where they differ.

    Example:
        >>> import torch
        >>> from wsgraph import WeightSpace
        >>> space = WeightSpace.mlp([2, 3, 1])
        >>> FileNetwork("policy", space, torch.zeros(space.num_params), {"algorithm": "ppo"})
        FileNetwork('policy', WeightSpace(2-3-1, linear | linear, relu, 13 parameters))
    """

    name: str
    space: WeightSpace
    theta: Tensor
    info: dict[str, Any] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"FileNetwork({self.name!r}, {self.space!r})"


Reader = Callable[..., list[FileNetwork]]


@dataclass(frozen=True)
class FileFormat:
    """What the registry knows of a format.

    Attributes:
        name: Its name.
        endings: Endings of its files' names in lower case; ``"/"`` for folders.
        read: ``read(path, **options)``, which returns the networks of a file.
        sniff: Whether a file with one of the endings is of this format; ``None`` where the ending says so.
        description: One line.
        tensors: ``tensors(path, entry=None)``, which returns the tensors by key, of formats that
            hold weights and nothing of what a network computes, so that a module or a weight space
            can say it; ``None`` for others.
    """

    name: str
    endings: tuple[str, ...]
    read: Reader
    sniff: Callable[[Path], bool] | None
    description: str
    tensors: Callable[..., dict[str, Tensor]] | None = None

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the options that :attr:`read` takes."""
        parameters = inspect.signature(self.read).parameters.values()
        return tuple(entry.name for entry in parameters if entry.kind is inspect.Parameter.KEYWORD_ONLY)


FORMATS: Registry[FileFormat] = Registry("file format")


def register_format(
    name: str,
    endings: Sequence[str],
    sniff: Callable[[Path], bool] | None = None,
    tensors: Callable[..., dict[str, Tensor]] | None = None,
) -> Callable[[Reader], Reader]:
    """Decorator that enters the reader of a file format in the registry of :func:`wsgraph.load_networks`.

    A reader is a function ``read(path, *, ...options)`` that returns a list of :class:`FileNetwork`; its docstring's first line
    describes the format. It runs no code of a file, and imports nothing that a file names. A :class:`ValueError` that it
    raises is passed on with the name of the file.

    Args:
        name: Name of the format.
        endings: Endings of file names, such as ``".zip"``; ``"/"`` for folders.
        sniff: ``sniff(path)`` tells by its content whether a file is of this format, where the ending does not.
        tensors: ``tensors(path, entry=None)`` returns the tensors of a file by key, where files
            hold nothing else.

    Returns:
        The decorator, which returns the reader unchanged.

    Raises:
        ValueError: If the name is taken.

    Example:
        >>> from wsgraph.convert.formats import FORMATS, FileNetwork, load_networks, register_format
        >>> from wsgraph import WeightSpace
        >>> import pathlib, tempfile, torch
        >>> @register_format("sizes", [".sizes"])
        ... def read_sizes(path):
        ...     '''An MLP of zeros, given by its sizes.'''
        ...     space = WeightSpace.mlp([int(size) for size in path.read_text().split()])
        ...     return [FileNetwork("", space, torch.zeros(space.num_params))]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "net.sizes")
        ...     _ = path.write_text("2 3 1")
        ...     load_networks(path)
        [FileNetwork('', WeightSpace(2-3-1, linear | linear, relu, 13 parameters))]
        >>> del FORMATS["sizes"]
    """

    def register(read: Reader) -> Reader:
        description = (read.__doc__ or "").strip().split("\n")[0]
        FORMATS.add(name, FileFormat(name, tuple(ending.lower() for ending in endings), read, sniff, description, tensors))
        return read

    return register
