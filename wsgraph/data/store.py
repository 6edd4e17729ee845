"""Zoos of networks on disk: weights mapped into memory, a table of what is known about each network, and the space they live in."""

from __future__ import annotations

import json
import os
import shutil
import uuid
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Dataset

from wsgraph.files import explained_errors, flush
from wsgraph.space import ParameterGraph, WeightSpace

__all__ = ["ZooDataset", "ZooStore"]

_FORMAT = "wsgraph.ZooStore"
_VERSION = 1
_FILES = ("zoo.json", "space.json", "thetas.safetensors", "table.npz")
_ROWS = 4096

Indices = slice | Sequence[int] | Sequence[bool] | Tensor | np.ndarray
PathLike = str | os.PathLike[str]


# == Writing ==


@contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    """A temporary sibling that becomes ``path`` when the block ends, and is removed when it fails."""
    with explained_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        temporary.mkdir()
        try:
            yield temporary
            for file in temporary.iterdir():
                flush(file)
            flush(temporary)
            os.rename(temporary, path)
            flush(path.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _column(name: str, values: Any) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    column = np.asarray(values)
    if column.ndim != 1 or column.dtype.kind not in "biufU":
        raise ValueError(
            f"Expected column {name!r} of 'table' to be a flat list of numbers, bools or strings "
            f"(got shape {list(column.shape)}, dtype {column.dtype})."
        )
    return column


def _checked_table(table: Mapping[str, Any], count: int) -> dict[str, np.ndarray]:
    columns = {name: _column(name, values) for name, values in table.items()}
    if wrong := {name: len(column) for name, column in columns.items() if len(column) != count}:
        listed = ", ".join(f"{name!r} has {length}" for name, length in wrong.items())
        raise ValueError(f"Expected every column of 'table' to have one entry per network, {count} ({listed}).")
    return columns


def _write_table(path: Path, table: Mapping[str, np.ndarray]) -> None:
    # numpy.savez takes columns as keyword arguments, which rules out some names; the archive is the same.
    with zipfile.ZipFile(path, "w") as archive:
        for name, column in table.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, column, allow_pickle=False)


# == Reading ==


def _read_document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{str(path)!r} is damaged: it is not JSON ({error}). Make the zoo again or restore the file.") from None
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise ValueError(f'{str(path)!r} does not describe a zoo: expected "format": "{_FORMAT}".')
    version = document.get("version")
    if not isinstance(version, int) or version > _VERSION:
        raise ValueError(f"{str(path)!r} has format version {version!r}, this wsgraph reads up to {_VERSION}; update wsgraph to read it.")
    if not isinstance(document.get("count"), int) or not isinstance(document.get("info"), dict):
        raise ValueError(f"{str(path)!r} is damaged: it lacks 'count' or 'info'. Make the zoo again or restore the file.")
    return document


class ZooStore:
    """A zoo of networks of one architecture, in a folder.

    The folder holds ``thetas.safetensors`` (one tensor ``thetas``), ``space.json``, ``table.npz`` and ``zoo.json``. Opening reads headers
    alone: weights are mapped into memory and read from disk where they are used.

    Args:
        path: Folder written by :meth:`create`.

    Attributes:
        path: The folder.
        space: The :class:`~wsgraph.WeightSpace` of all networks.
        info: How the zoo was made, with counts such as ``dropped_non_finite``.

    Raises:
        FileNotFoundError: If the folder or one of its files is missing.
        ValueError: If a file is damaged, or was written by a newer version.

    Example:
        >>> import tempfile, torch
        >>> from wsgraph import WeightSpace
        >>> space = WeightSpace.mlp([2, 8, 1])
        >>> table = {"test_accuracy": [0.5, 0.9, 0.8], "split": ["train", "train", "test"]}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = ZooStore.create(f"{folder}/zoo", space, space.sample(3), table)
        ...     print(store.split("train"), store[2])
        ...     store.dataset("train").y
        tensor([0, 1]) ParameterGraph(2-8-1, nodes=11, edges=24)
        tensor([0.5000, 0.9000])
    """

    def __init__(self, path: PathLike) -> None:
        self.path = Path(path).resolve()
        if missing := [name for name in _FILES if not (self.path / name).is_file()]:
            if len(missing) == len(_FILES):
                what = "is not a folder" if not self.path.is_dir() else "is not a zoo: it has no zoo.json"
                if self.path.with_name(f"{self.path.name}.partial").is_dir():
                    raise FileNotFoundError(f"{str(path)!r} is not finished. Repeat the command or call that makes it: it will continue.")
                raise FileNotFoundError(
                    f"{str(path)!r} {what}. Make a zoo there with `wsgraph zoo make-cnn`, wsgraph.data.make_cnn_zoo or ZooStore.create."
                )
            raise FileNotFoundError(f"The zoo {str(path)!r} lacks {', '.join(missing)}. Make the zoo again or restore the file.")
        document = _read_document(self.path / "zoo.json")
        self.info: dict[str, Any] = document["info"]
        self._count: int = document["count"]
        try:
            self.space = WeightSpace.from_json((self.path / "space.json").read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{str(self.path / 'space.json')!r} is damaged. {error}") from None
        self._check_header()

    def _check_header(self) -> None:
        file = self.path / "thetas.safetensors"
        try:
            with safe_open(file, "pt") as tensors:
                shape = list(tensors.get_slice("thetas").get_shape())
        except SafetensorError as error:
            raise ValueError(f"{str(file)!r} is damaged or truncated ({error}). Make the zoo again or restore the file.") from None
        if shape != [self._count, self.space.num_params]:
            raise ValueError(
                f"Expected {str(file)!r} to hold {self._count} networks of {self.space!r} (got shape {shape}); the folder mixes two zoos."
            )

    @classmethod
    def create(
        cls,
        path: PathLike,
        space: WeightSpace,
        thetas: Tensor,
        table: Mapping[str, Any],
        *,
        info: Mapping[str, Any] | None = None,
    ) -> ZooStore:
        """Write a zoo and open it. The folder appears complete or not at all.

        Networks with NaN or infinite weights are left out, with their rows of the table, and counted in ``info["dropped_non_finite"]``.

        Args:
            path: Folder to write, which must not exist.
            space: The weight space.
            thetas: Flat checkpoints of shape ``[N, P]``.
            table: Columns by name, each one entry per network: numbers, bools or strings. ``split`` and ``test_accuracy`` have a meaning to
                :meth:`split` and :meth:`dataset`.
            info: How the zoo was made, anything that JSON can hold.

        Raises:
            FileExistsError: If the path exists.
            OSError: If it cannot be written, with what to do about it.
            SpaceMismatchError: If ``thetas`` has another width.
            ValueError: If no network is left, columns differ in length or hold something else, or ``info`` is not JSON.
        """
        path = Path(path).resolve()
        space.check_thetas(thetas)
        columns = _checked_table(table, len(thetas))
        if os.path.lexists(path):
            raise FileExistsError(f"{str(path)!r} exists already. Open it with ZooStore(path), choose another path, or delete it.")
        if not len(thetas):
            raise ValueError("A zoo needs at least one network (got an empty 'thetas').")
        # By rows, so that a zoo mapped from disk is never held in memory at once.
        finite = torch.cat([rows.isfinite().all(1) for rows in thetas.detach().split(_ROWS)]).cpu()
        if not finite.any():
            raise ValueError(f"A zoo needs at least one network, but all {len(thetas)} in 'thetas' have NaN or infinite weights.")
        if not finite.all():
            thetas, columns = thetas[finite.to(thetas.device)], {name: column[finite.numpy()] for name, column in columns.items()}
        recorded = dict(info or {})
        recorded["dropped_non_finite"] = recorded.get("dropped_non_finite", 0) + int((~finite).sum())
        document = {"format": _FORMAT, "version": _VERSION, "count": len(thetas), "info": recorded}
        try:
            text = json.dumps(document, indent=2)
        except TypeError as error:
            raise ValueError(f"Expected 'info' to hold what JSON can hold: text, numbers, lists and dicts ({error}).") from None
        with _new_folder(path) as folder:
            save_file({"thetas": thetas.detach().cpu().contiguous()}, folder / "thetas.safetensors")
            _write_table(folder / "table.npz", columns)
            (folder / "space.json").write_text(space.to_json(), encoding="utf-8")
            (folder / "zoo.json").write_text(text, encoding="utf-8")
        return cls(path)

    @cached_property
    def thetas(self) -> Tensor:
        """Flat checkpoints ``[N, P]``, mapped from disk: reading a row reads that row. Writing to it does not change the file."""
        with safe_open(self.path / "thetas.safetensors", "pt") as tensors:
            thetas: Tensor = tensors.get_tensor("thetas")
        return thetas

    @cached_property
    def table(self) -> dict[str, np.ndarray]:
        """Columns by name, each with one entry per network."""
        file = self.path / "table.npz"
        try:
            with file.open("rb") as opened, np.load(opened, allow_pickle=False) as archive:
                table = {name: archive[name] for name in archive.files}
        except (zipfile.BadZipFile, ValueError, EOFError) as error:
            raise ValueError(f"{str(file)!r} is damaged ({error}). Make the zoo again or restore the file.") from None
        return _checked_table(table, self._count)

    def column(self, name: str) -> np.ndarray:
        """A column of the table.

        Raises:
            ValueError: If there is none of that name; the message lists those there are.
        """
        if name not in self.table:
            raise ValueError(f"The zoo {str(self.path)!r} has no column {name!r}. Its columns: {', '.join(self.table) or 'none'}.")
        return self.table[name]

    def split(self, name: str) -> Tensor:
        """Positions of the networks of a split, by the column ``split``.

        Raises:
            ValueError: If there is no such column, or no such split; the message lists those there are.
        """
        column = self.column("split")
        indices = np.flatnonzero(column == name)
        if not len(indices):
            raise ValueError(f"The zoo {str(self.path)!r} has no split {name!r}. Its splits: {', '.join(map(str, self._splits))}.")
        return torch.from_numpy(indices)

    @property
    def _splits(self) -> dict[str, int]:
        """Splits by name with their sizes, in order of appearance."""
        names, first, counts = np.unique(self.table["split"], return_index=True, return_counts=True)
        return {str(names[i]): int(counts[i]) for i in np.argsort(first)}

    def dataset(self, split: str | None = None, target: str | None = "test_accuracy") -> ZooDataset:
        """The networks of a split as a dataset of parameter graphs.

        Args:
            split: Name of the split (default: all networks).
            target: Column that becomes ``y``; ``None`` for graphs without one.

        Raises:
            ValueError: If there is no such split or column, or the column holds strings.
        """
        return ZooDataset(self, None if split is None else self.split(split), target)

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> ParameterGraph: ...
    @overload
    def __getitem__(self, index: Indices) -> ZooDataset: ...
    def __getitem__(self, index: int | Indices) -> ParameterGraph | ZooDataset:
        """The graph of one network, or the dataset of several (a slice, positions or a boolean mask); without targets."""
        return self.dataset(target=None)[index]

    # Workers of a data loader open the file themselves instead of receiving the weights.
    def __reduce__(self) -> tuple[type[ZooStore], tuple[Path]]:
        return type(self), (self.path,)

    def __repr__(self) -> str:
        splits = "".join(f", {name} {count:,}" for name, count in self._splits.items()) if "split" in self.table else ""
        return f"ZooStore({str(self.path)!r}, {len(self):,} networks, {self.space!r}, {len(self.table)} columns{splits})"


class ZooDataset(Dataset[ParameterGraph]):
    """Networks of a zoo as parameter graphs with targets, for PyG's data loader or :class:`wsgraph.data.DataLoader`.

    Args:
        store: The zoo.
        indices: Positions of the networks in it (default: all).
        target: Column that becomes ``y``; ``None`` for graphs without one.

    Attributes:
        store: The zoo.
        space: The weight space.
        indices: Positions of the networks in the zoo, or ``None`` for all.
        target: The column, or ``None``.

    Raises:
        ValueError: If there is no such column, or it holds strings.
    """

    def __init__(self, store: ZooStore, indices: Tensor | None = None, target: str | None = "test_accuracy") -> None:
        self.store, self.indices, self.target = store, indices, target
        self.space = store.space
        self._y = None if target is None else self._targets(target)

    def _targets(self, target: str) -> Tensor:
        column = self.store.column(target)
        if column.dtype.kind == "U":
            raise ValueError(f"Expected a column of numbers as 'target', but {target!r} holds strings.")
        y = torch.from_numpy(column)
        if y.is_floating_point():
            y = y.to(torch.promote_types(self.store.thetas.dtype, torch.float32))
        return y if self.indices is None else y[self.indices]

    @property
    def y(self) -> Tensor:
        """Targets ``[n]``.

        Raises:
            ValueError: If the dataset was made without a target.
        """
        if self._y is None:
            raise ValueError(f"{self!r} has no targets. Name a column: store.dataset(target='test_accuracy').")
        return self._y

    @property
    def thetas(self) -> Tensor:
        """Flat checkpoints ``[n, P]``; for a part of the zoo a copy made at every access, else mapped from disk."""
        return self.store.thetas if self.indices is None else self.store.thetas[self.indices]

    def batch(self, indices: Indices, transform: Callable[[Tensor], Tensor] | None = None) -> ParameterGraph:
        """The batch of several networks, built without a loop over them.

        Args:
            indices: Positions in this dataset: a slice, integers or a boolean mask.
            transform: Applied to the flat checkpoints ``[B, P]`` before the graphs are built.

        Returns:
            A batch of parameter graphs, equal to what PyG collates from the single ones.
        """
        positions = _positions(indices, len(self))
        thetas = self.store.thetas[positions if self.indices is None else self.indices[positions]]
        return self.space.batch(thetas if transform is None else transform(thetas), None if self._y is None else self._y[positions])

    def __len__(self) -> int:
        return len(self.store) if self.indices is None else len(self.indices)

    @overload
    def __getitem__(self, index: int) -> ParameterGraph: ...
    @overload
    def __getitem__(self, index: Indices) -> ZooDataset: ...
    def __getitem__(self, index: int | Indices) -> ParameterGraph | ZooDataset:
        """The graph of one network with ``y`` of shape ``[1]``, or the dataset of several."""
        if not isinstance(index, (int, np.integer)) and not (isinstance(index, Tensor) and index.ndim == 0):
            positions = _positions(index, len(self))
            return ZooDataset(self.store, positions if self.indices is None else self.indices[positions], self.target)
        position = int(index)
        if not -len(self) <= position < len(self):
            raise IndexError(f"Network {position} is out of range: the dataset has {len(self)}.")
        row = position % len(self) if self.indices is None else int(self.indices[position])
        return self.space.graph(self.store.thetas[row], None if self._y is None else self._y[position])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self):,} of {len(self.store):,} networks, {self.space!r}, target={self.target!r})"


def _positions(indices: Indices, count: int) -> Tensor:
    """Positions as an index tensor, counted from the front."""
    if isinstance(indices, slice):
        return torch.arange(count)[indices]
    chosen = torch.as_tensor(np.asarray(indices) if isinstance(indices, Sequence) else indices).cpu()
    if chosen.numel() == 0 and chosen.dtype != torch.bool:
        chosen = chosen.long()
    if chosen.ndim != 1 or chosen.is_floating_point():
        raise IndexError(f"Expected positions or a boolean mask, one-dimensional (got shape {list(chosen.shape)}, {chosen.dtype}).")
    if chosen.dtype == torch.bool:
        if len(chosen) != count:
            raise IndexError(f"Expected a mask with one entry per network, {count} (got {len(chosen)}).")
        return chosen.nonzero().flatten()
    if len(chosen) and not (-count <= int(chosen.min()) and int(chosen.max()) < count):
        raise IndexError(f"A position is out of range: the dataset has {count} networks (got {int(chosen.min())} to {int(chosen.max())}).")
    return chosen.long().remainder(count) if count else chosen.long()
