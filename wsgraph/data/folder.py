"""The folder of a zoo: what it holds, and how it is read."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import os
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from wsgraph._counts import counted
from wsgraph._suggestions import did_you_mean
from wsgraph.data.columns import ColumnPart, checked_columns
from wsgraph.data.copies import listed
from wsgraph.data.manifest import COLUMNS, Manifest, ZooWarning, has_manifest, read_document
from wsgraph.data.mapped import MappedRows
from wsgraph.data.shards import Shard, open_shard
from wsgraph.data.verify import check_parts, list_shards, load_columns, recorded_shards, shard_fault, shard_path, space_text, verify_zoo
from wsgraph.space import ParameterGraph, WeightSpace
from wsgraph.space.distinct import DistinctSpaces
from wsgraph.space.errors import SpaceMismatchError
from wsgraph.space.indexing import positions_of

__all__ = ["PathLike", "ZooFolder"]

_HELD_BYTES = 2**28
_OPEN_FILES = 128
_COLUMNS_SHOWN = 12  # in messages
# What is read of a mapped file counts as memory of the process until it is handed back: the rows, and around each of them what a page fault
# maps too, up to a huge page.
_RESIDENT = 2**29
_AROUND = 2**21

PathLike = str | os.PathLike[str]


class ZooFolder:
    """A zoo as it is read; :class:`~wsgraph.data.ZooStore` explains it, and writes it too."""

    path: Path
    shards: tuple[Shard, ...]
    info: dict[str, Any]
    dtype: torch.dtype
    finished: bool

    def __init__(self, path: PathLike, *, shards: Sequence[str] | None = None) -> None:
        self.path, self._only = Path(path).resolve(), shards
        if not (self.path / "zoo.json").is_file():
            what = "is not a zoo: it has no zoo.json" if self.path.is_dir() else "is not a folder"
            raise FileNotFoundError(
                f"{str(path)!r} {what}. Make a zoo with `wsgraph zoo make-cnn`, from checkpoint files with `wsgraph zoo import`, or with "
                "ZooStore.create."
            )
        self.reload()

    def reload(self) -> None:
        """Read again what the folder holds, after another process added to it."""
        # What is listed first was announced by the time that the manifest is read.
        names = {*(list_shards(self.path) if self._only is None else self._only)}
        document = read_document(self.path)
        self.finished, self._info = document["finished"], document["info"]
        self._manifest = Manifest(self.path) if has_manifest(document) else None
        self._recorded = recorded_shards(document, self._manifest)
        if self._only is None:
            names |= {name for name in self._recorded.keys() - names if (self.path / shard_path(name)).is_file()}
        self._strays = sorted(name for name in names if self._manifest is not None and not self._manifest.knows(shard_path(name)))
        shards, unreadable = [], []
        for name in sorted(names.difference(self._strays)):
            try:
                shards.append(self._tied(open_shard(self.path / shard_path(name))))
            except ValueError as error:
                unreadable.append(str(error))
        if unreadable:
            more = f" ({len(unreadable) - 1} more shards cannot be read: see `wsgraph zoo verify`.)" if len(unreadable) > 1 else ""
            raise ValueError(unreadable[0] + more)
        self._index(shards)
        if self._strays or self.missing:
            what = [f"the shard {name!r} of {counted(self._recorded[name], 'network')} is gone" for name in self.missing]
            what += [f"{shard_path(name)!r} was not written as a file of it and is left out" for name in self._strays]
            warnings.warn(
                f"The zoo {str(self.path)!r} is not what was written: {'; '.join(what[:5])}. `wsgraph zoo verify` says what to do.",
                ZooWarning,
                stacklevel=3,
            )

    def _tied(self, shard: Shard) -> Shard:
        """A shard with what speaks against its being the one that was written under its name."""
        fault = shard_fault(self.path, self._manifest, shard)
        return shard if fault is None else dataclasses.replace(shard, fault=fault)

    @property
    def missing(self) -> list[str]:
        """Names of shards that were written, and are not there any more."""
        there = {shard.name for shard in self.shards}
        return [name for name in self._recorded if name not in there] if self._only is None else []

    @property
    def linked_files(self) -> list[Path]:
        """Files that hold weights of this zoo and are not its own, of networks appended as
        :class:`ArrayRows`."""
        return list(dict.fromkeys(shard.linked_file for shard in self.shards if shard.linked_file is not None))

    @property
    def digest(self) -> str:
        """What distinguishes the contents of this zoo from others: 16 hexadecimal digits of checksums of its shards and columns.

        Example:
            >>> import tempfile
            >>> from wsgraph import WeightSpace
            >>> from wsgraph.data import ZooStore
            >>> space = WeightSpace.mlp([2, 8, 1])
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     store = ZooStore.create(f"{folder}/zoo", space, space.sample(3), {})
            ...     before = store.digest
            ...     store.append(space, space.sample(1), {})
            ...     before == store.digest, ZooStore(store.path).digest == store.digest
            (False, True)
        """
        digest = hashlib.sha256()
        for shard in self.shards:
            digest.update(f"{shard.space} {shard.checksum}\n".encode())
        if (self.path / COLUMNS).exists():
            digest.update((self.path / COLUMNS).read_bytes())
        return digest.hexdigest()[:16]

    def snapshot(self) -> Self:
        """The zoo as it is now, whatever is added to it later; what is in memory is shared, not copied."""
        copied = object.__new__(type(self))  # copy.copy would open the folder again, as unpickling does
        copied.__dict__ |= {**self.__dict__, "_only": self._names}
        return copied

    def under_names_of(self, spaces: Iterable[WeightSpace]) -> Self:
        """A snapshot whose networks are of given weight spaces where theirs differ from one in names of parts alone.

        Args:
            spaces: The weight spaces.
        """
        known, copied = DistinctSpaces(spaces), self.snapshot()
        copied._spaces = {key: known.first(self.load_space(key)) for key in self._keys}
        return copied

    def _index(self, shards: Sequence[Shard]) -> None:
        """Take note of the shards there are."""
        self.shards = tuple(sorted(shards, key=lambda shard: shard.name))
        dropped = self._info.get("dropped_non_finite", 0) + sum(shard.dropped for shard in self.shards)
        self.info = {**self._info, "dropped_non_finite": dropped}
        self._starts = torch.tensor([0, *(shard.count for shard in self.shards)]).cumsum(0)
        places = {key: i for i, key in enumerate(dict.fromkeys(shard.space for shard in self.shards))}
        self._keys, self._key_of = list(places), torch.tensor([places[shard.space] for shard in self.shards], dtype=torch.long)
        self.dtype = functools.reduce(torch.promote_types, (shard.dtype for shard in self.shards)) if self.shards else torch.float32
        size = sum(math.prod(shard.shape) for shard in self.shards) * self.dtype.itemsize
        # Many small files, such as a generator writes, are slow to read from: as long as they are few bytes, they are held in memory.
        self._is_held = len(self.shards) > 1 and len(self._keys) == 1 and size <= _HELD_BYTES
        self._mapped: OrderedDict[Path, MappedRows] = OrderedDict()
        self._resident = 0
        self._spaces: dict[str, WeightSpace] = getattr(self, "_spaces", {})
        self._key_by_space: dict[Hashable, str] = getattr(self, "_key_by_space", {})
        self._noted: set[str] = getattr(self, "_noted", set())
        self._checked: set[str] = getattr(self, "_checked", set())
        for key in self._keys:
            if key not in self._checked:
                space_text(self.path, key)
                self._checked.add(key)
        # Shared with snapshots, and left to them when shards are added.
        self._read: dict[str, Any] = {}

    @property
    def _names(self) -> list[str]:
        return [shard.name for shard in self.shards]

    def load_space(self, key: str) -> WeightSpace:
        """The weight space of the shards with a key."""
        if key not in self._spaces:
            text = space_text(self.path, key)
            try:
                space = WeightSpace.from_json(text)
            except ValueError as error:
                raise ValueError(f"{str(self.path / 'spaces' / key)!r}.json cannot be read. {error}") from None
            if wrong := [shard for shard in self.shards if shard.space == key and shard.shape[1] != space.num_params]:
                raise ValueError(
                    f"Expected {str(wrong[0].file)!r} to hold networks of {space!r} (got shape {list(wrong[0].shape)}); "
                    "the folder mixes two zoos."
                )
            self._spaces[key] = space
        return self._spaces[key]

    @property
    def spaces(self) -> list[WeightSpace]:
        """The distinct weight spaces, in order of appearance."""
        return [self.load_space(key) for key in self._keys]

    @property
    def space(self) -> WeightSpace:
        """The weight space of all networks.

        Raises:
            SpaceMismatchError: If the zoo is empty or holds several architectures.
        """
        keys = self._keys
        if len(keys) != 1:
            what = "is empty" if not keys else f"holds {len(keys)} architectures (the first two: {', '.join(map(repr, self.spaces[:2]))})"
            raise SpaceMismatchError(
                f"The zoo {str(self.path)!r} {what}, but one is needed here. "
                "Choose networks of one with store.of_space(store.spaces[0]), or use a model that reads mixed batches."
            )
        return self.load_space(keys[0])

    def _rows(self, shard: int, positions: Tensor) -> Tensor:
        """Some rows of a shard, copied."""
        # By file, not by position: snapshots share what is mapped.
        file = self.shards[shard].file
        mapped = self._mapped.pop(file, None) or self.shards[shard].open()
        self._mapped[file] = mapped
        if len(self._mapped) > _OPEN_FILES:
            self._mapped.popitem(last=False)
        count, (_, width), dtype = len(positions), self.shards[shard].shape, self.shards[shard].dtype
        step = max(1, _RESIDENT // (width * dtype.itemsize + _AROUND))
        parts = []
        for part in positions.split(step) if count else (positions,):
            self._resident += len(part)
            if self._resident > step:
                for each in self._mapped.values():
                    each.release()
                self._resident = len(part)
            parts.append(mapped.take(part))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def owners(self, positions: Tensor) -> Tensor:
        """The shards that hold some networks.

        Args:
            positions: Positions of the networks ``[n]``.

        Returns:
            Positions in :attr:`shards`, ``[n]``.
        """
        return torch.bucketize(positions, self._starts[1:], right=True)

    def read(self, positions: Tensor) -> Tensor:
        """Flat checkpoints ``[n, P]`` of some networks of one architecture, copied from disk.

        Args:
            positions: Positions of the networks ``[n]``.

        Raises:
            IndexError: If a position is out of range.
            SpaceMismatchError: If the networks have several architectures.
        """
        return self._taken(positions_of(positions, len(self)))

    def _taken(self, positions: Tensor) -> Tensor:
        return self.thetas[positions] if self._is_held else self._gathered(positions)

    def _gathered(self, positions: Tensor) -> Tensor:
        owners = self.owners(positions) if len(self.shards) > 1 else torch.zeros_like(positions)
        found = owners.unique().tolist()
        if len(found) == 1:
            return self._rows(found[0], positions - self._starts[found[0]])
        if not found:
            return torch.empty(0, self.space.num_params, dtype=self.dtype)
        spaces = {self.shards[shard].space for shard in found}
        if len(spaces) != 1:
            raise SpaceMismatchError(f"Expected networks of one architecture (got {len(spaces)} of the zoo {str(self.path)!r}).")
        thetas = torch.empty(len(positions), self.shards[found[0]].shape[1], dtype=self.dtype)
        for shard in found:
            mine = (owners == shard).nonzero().flatten()
            thetas[mine] = self._rows(shard, positions[mine] - self._starts[shard]).to(thetas.dtype)
        return thetas

    def batch(
        self, positions: Tensor, transform: Callable[[WeightSpace, Tensor], Tensor] | None = None, y: Tensor | None = None
    ) -> ParameterGraph:
        """The batch of some networks, built without a loop over them.

        Networks of one architecture lie side by side, architectures in the order of their shards.

        Args:
            positions: Positions of the networks ``[n]``.
            transform: Applied to each weight space and its flat checkpoints ``[b, P]`` before the graphs are built.
            y: Targets ``[n]``.

        Returns:
            A batch of parameter graphs with ``y`` where targets are given.
        """
        positions = positions_of(positions, len(self))
        if len(self._keys) == 1:
            return self._part(self._keys[0], positions, transform, y)
        which = self._key_of[self.owners(positions)]
        parts = []
        for i in which.unique().tolist():
            mine = (which == i).nonzero().flatten()
            parts.append(self._part(self._keys[i], positions[mine], transform, None if y is None else y[mine]))
        return parts[0] if len(parts) == 1 else ParameterGraph.join(parts)

    def _part(
        self, key: str, positions: Tensor, transform: Callable[[WeightSpace, Tensor], Tensor] | None, y: Tensor | None
    ) -> ParameterGraph:
        """The batch of networks of one architecture."""
        space, thetas = self.load_space(key), self._taken(positions)
        return space.batch(thetas if transform is None else transform(space, thetas), y)

    @property
    def thetas(self) -> Tensor:
        """Flat checkpoints ``[N, P]`` of a zoo of one architecture. Writing to it does not change the files.

        Of a zoo of one shard mapped from disk: reading a row reads that row, and what was read stays in memory. Of several shards all in
        memory: for zoos that are larger, :meth:`read` and :meth:`dataset` take what they need.

        Raises:
            SpaceMismatchError: If the zoo holds several architectures.
        """
        if "thetas" not in self._read:
            space = self.space  # which there is only one of, if any
            if len(self.shards) == 1 and not self.shards[0].is_linked:
                self._read["thetas"] = self.shards[0].open().matrix
            else:
                self._read["thetas"] = self._gathered(torch.arange(len(self))) if len(self) else torch.empty(0, space.num_params)
        thetas: Tensor = self._read["thetas"]
        return thetas

    @property
    def table(self) -> dict[str, np.ndarray]:
        """Columns by name, each with one entry per network."""
        if "table" not in self._read:
            self._read["table"] = self._whole_table()
        table: dict[str, np.ndarray] = self._read["table"]
        return table

    def _whole_table(self) -> dict[str, np.ndarray]:
        tables = {shard.name: shard.table() for shard in self.shards}
        later = self._later_columns()
        names = dict.fromkeys([*(self.shards[0].columns if self.shards else ()), *later])
        table = {}
        for name in names:
            parts = [part for shard, own in tables.items() if (part := later.get(name, {}).get(shard, own.get(name))) is not None]
            if len(parts) == len(self.shards):
                table[name] = np.concatenate(parts)
        return checked_columns(table, len(self))

    def column(self, name: str) -> np.ndarray:
        """A column of the table.

        Raises:
            ValueError: If there is none of that name; the message lists those there are.
        """
        if name not in self.table and name in self._later_columns():
            self._read.pop("table", None)  # it may have been set by another process
        if name not in self.table:
            also = " It was set before some of the networks were added: set it again." if name in self._later_columns() else ""
            raise ValueError(
                f"The zoo {str(self.path)!r} has no column {name!r}. Its columns: "
                f"{listed(self.table, _COLUMNS_SHOWN) or 'none'}.{also}{did_you_mean(name, self.table)}"
            )
        return self.table[name]

    def split(self, name: str) -> Tensor:
        """Positions of the networks of a split, by the column ``split``.

        Returns:
            Positions in the zoo ``[n]``, in its order.

        Raises:
            ValueError: If there is no such column, or no such split; the message lists those there are.
        """
        column = self.column("split")
        indices = np.flatnonzero(column == name)
        if not len(indices):
            raise ValueError(f"The zoo {str(self.path)!r} has no split {name!r}. Its splits: {', '.join(map(str, self.splits))}.")
        return torch.from_numpy(indices)

    @property
    def splits(self) -> dict[str, int]:
        """Splits by name with their sizes, in order of appearance; empty without a column ``split``."""
        if "split" not in self.table:
            return {}
        names, first, counts = np.unique(self.table["split"], return_index=True, return_counts=True)
        return {str(names[i]): int(counts[i]) for i in np.argsort(first)}

    def _later_parts(self, *, lost: bool = False) -> list[ColumnPart]:
        """What was set after shards were written; nothing where the file is gone, if that is
        allowed."""
        parts, fault = load_columns(self.path, self._manifest)
        if fault is not None and self._manifest is not None:
            self._manifest.reload()  # another process may have set a column meanwhile
            parts, fault = load_columns(self.path, self._manifest)
        if fault is not None and not (lost and not os.path.lexists(self.path / COLUMNS)):
            raise ValueError(fault)
        return parts

    def _later_columns(self) -> dict[str, dict[str, np.ndarray]]:
        """Columns that were set after their shards were written, by name and shard."""
        columns: dict[str, dict[str, np.ndarray]] = {}
        by_name = {shard.name: shard for shard in self.shards}
        for part, stale in check_parts(self._later_parts(), by_name, self.path / COLUMNS):
            own = columns.setdefault(part.name, {})
            if stale is None:
                own[part.shard] = part.values
        return columns

    def verify(self) -> list[str]:
        """Read everything in the folder, and say what is wrong, a sentence each:
        :func:`verify_zoo`.

        Returns:
            The problems; an empty list for a zoo that is whole.
        """
        return verify_zoo(self.path)

    def __len__(self) -> int:
        return int(self._starts[-1])

    # Workers of a data loader open the files themselves instead of receiving the weights.
    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return functools.partial(type(self), shards=self._names), (self.path,)
