"""Implicit neural representations of pictures, one file each: SIRENs of Navon et al. and of Zhou et al."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wsgraph.convert import CheckpointError
from wsgraph.convert.unpickle import Stub, read_inert
from wsgraph.data.public.base import PublicZoo, tracked
from wsgraph.data.store import ZooStore
from wsgraph.space import WeightSpace

__all__ = ["Fit", "PublicINRs", "entries_of", "read_state_dict", "save_random", "theta_of", "unknown_file"]

# Networks that are held in memory until they are written.
_BLOCK = 8192


@dataclass
class Fit:
    """A file, the row of its network in the table, and the label that the splits say it has."""

    path: Path
    row: dict[str, Any]
    claimed: int | None = None


class PublicINRs(PublicZoo):
    """Networks of one architecture, one file each."""

    @abstractmethod
    def _space(self) -> WeightSpace:
        """The weight space of all networks."""

    @abstractmethod
    def _fits(self) -> Sequence[Fit]:
        """The files to read, in the order of the zoo."""

    def _read(self, fit: Fit, space: WeightSpace) -> Tensor:
        return theta_of(fit.path, read_state_dict(fit.path), space)

    def process(self, store: ZooStore) -> None:
        """Read all files, and append the networks block by block."""
        space, fits = self._space(), self._fits()
        if not fits:
            raise ValueError(f"Found no networks in {str(self.raw_dir)!r}. {self.where}")
        block: list[tuple[Tensor, dict[str, Any]]] = []
        for done, fit in enumerate(tracked(fits, "reading networks"), start=1):
            block.append((self._read(fit, space), fit.row))
            if len(block) == _BLOCK or done == len(fits):
                table = {column: [row[column] for _, row in block] for column in fit.row}
                self.append(store, space, torch.stack([theta for theta, _ in block]), table)
                block = []


def read_state_dict(path: Path) -> dict[Any, Any]:
    """The tensors of a file by key, read without running code."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r}, although its folder is there. Unpack the archive again.")
    content = read_inert(path.read_bytes(), str(path))
    if not isinstance(content, dict):
        found = repr(content) if isinstance(content, Stub) else type(content).__name__
        raise CheckpointError(f"Expected {str(path)!r} to hold a state dict, that is tensors by key (got {found}).")
    return content


def theta_of(path: Path, state: Mapping[Any, Any], space: WeightSpace) -> Tensor:
    """The flat checkpoint of a state dict whose tensors have the shapes of the space, in order; their keys differ between the zoos."""
    if len(state) != len(space.params):
        raise CheckpointError(
            f"Expected {str(path)!r} to hold {len(space.params)} tensors (got {len(state)}: {', '.join(map(repr, state)) or 'none'})."
        )
    for (key, tensor), param in zip(state.items(), space.params, strict=True):
        if not isinstance(tensor, Tensor) or tuple(tensor.shape) != param.shape or not tensor.is_floating_point():
            found = f"shape {list(tensor.shape)}, {tensor.dtype}" if isinstance(tensor, Tensor) else repr(tensor)
            raise CheckpointError(
                f"Expected {key!r} in {str(path)!r} to be the {param.role} of shape {list(param.shape)} of {space!r} (got {found})."
            )
    return torch.cat([tensor.reshape(-1) for tensor in state.values()])


def entries_of(folder: Path) -> Iterator[os.DirEntry[str]]:
    """What lies in a folder, without what file managers leave there."""
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {str(folder)!r}. Unpack the archive again.")
    with os.scandir(folder) as entries:
        yield from (entry for entry in entries if not entry.name.startswith("."))


def unknown_file(path: str, expected: str) -> ValueError:
    """What to raise for a file that is not one of those published."""
    return ValueError(f"Expected names such as {expected} (got {path!r}). Remove what is not part of the published files.")


def save_random(path: Path, layers: Sequence[str], channels: int, scales: Any, generator: torch.Generator, **extra: Any) -> None:
    """Write a network with normal weights and biases, ``scales`` their standard deviations."""
    state: dict[str, Any] = {}
    for layer, weight, bias, (outputs, inputs) in zip(layers, *scales, ((32, 2), (32, 32), (channels, 32)), strict=True):
        state[f"{layer}.weight"] = weight * torch.randn(outputs, inputs, generator=generator)
        state[f"{layer}.bias"] = bias * torch.randn(outputs, generator=generator)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({**state, **extra}, path)
