"""Zoos of networks on disk: shards that are mapped into memory, and a table of what is known about each network."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import math
import os
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, overload

import filelock
import numpy as np
import torch
from torch import Tensor

from wsgraph.data.copies import Copies, Copy, equal_rows, listed
from wsgraph.data.dataset import ZooDataset
from wsgraph.data.manifest import COLUMNS, DOCUMENT, Manifest, Record, ZooWarning, document_text, has_manifest, read_document
from wsgraph.data.shards import (
    ArrayRows,
    ColumnPart,
    MappedRows,
    Shard,
    checked_columns,
    may_be_joined,
    open_shard,
    save_columns,
    write_shard,
)
from wsgraph.data.verify import (
    NOT_FINISHED,
    check_parts,
    columns_record,
    list_shards,
    load_columns,
    not_checked,
    recorded_shards,
    shard_fault,
    shard_path,
    space_text,
    verify_zoo,
)
from wsgraph.files import explained_errors, new_folder, write_atomically
from wsgraph.space import ParameterGraph, WeightSpace
from wsgraph.space.errors import SpaceMismatchError
from wsgraph.space.indexing import Indices, positions_of

__all__ = ["PathLike", "ZooStore"]

_SHARD_BYTES = 2**28
_HELD_BYTES = 2**28
_OPEN_FILES = 128
_PATIENCE = 1.0  # seconds to wait for another process that writes to the zoo
# What is read of a mapped file counts as memory of the process until it is handed back: the rows, and around each of them what a page fault
# maps too, up to a huge page.
_RESIDENT = 2**29
_AROUND = 2**21

_EXISTS_ADVICE = "Open it with ZooStore(path), choose another path, or delete it."

PathLike = str | os.PathLike[str]


def _finite(thetas: Tensor | ArrayRows) -> Tensor:
    """Which networks have finite weights; by rows, so that a zoo mapped from disk is never held in memory at once."""
    blocks = thetas.open().blocks() if isinstance(thetas, ArrayRows) else thetas.detach().split(4096)
    return torch.cat([rows.isfinite().all(1) for rows in blocks]).cpu()


class ZooStore:
    """A zoo of networks in a folder, in shards that are written once.

    ``shards/NAME.safetensors`` holds the weights of networks of one architecture with their rows of the table, ``spaces/KEY.json`` the
    architectures, ``zoo.json`` how the zoo was made, ``columns.safetensors`` columns that were set later. A shard is there in full or not
    at all, whatever happens to the process that writes it. Opening reads headers alone: weights are mapped into memory and read from disk
    where they are used, and handed back after use, so that a zoo may be larger than memory.

    ``manifest.jsonl`` says of every file how many networks it is about, its size and its checksum,
    as it was written. Opening compares shards with it by their headers, and weight spaces with the
    checksum that is their name; :meth:`verify` compares everything. A shard that was exchanged is not
    read, one that was not written as a file of this zoo is left out with a warning, and nothing is
    read outside of the folder but the files of networks that were appended as :class:`ArrayRows`,
    which :attr:`linked_files` and the representation name.

    Args:
        path: Folder written by :meth:`create`, :meth:`begin` or :meth:`writing`.
        shards: Names of the shards to open (default: all there are).

    Attributes:
        path: The folder.
        shards: Its shards, in the order of their names, which is that of the networks.
        info: How the zoo was made, with counts such as ``dropped_non_finite``.
        dtype: Dtype of the weights; of several, the one that holds all.
        finished: Whether everything that should be in the zoo is there.

    Raises:
        FileNotFoundError: If the folder, ``zoo.json``, the manifest or a weight space is missing.
        ValueError: If a file is damaged, a weight space was changed after it was written, or another
            version wrote the zoo.

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
            what = [f"the shard {name!r} of {self._recorded[name]} networks is gone" for name in self.missing]
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

    def snapshot(self) -> ZooStore:
        """The zoo as it is now, whatever is added to it later; what is in memory is shared, not copied."""
        copied = object.__new__(type(self))  # copy.copy would open the folder again, as unpickling does
        copied.__dict__ |= {**self.__dict__, "_only": self._names}
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
        self._key_by_space: dict[WeightSpace, str] = getattr(self, "_key_by_space", {})
        self._checked: set[str] = getattr(self, "_checked", set())
        for key in self._keys:
            if key not in self._checked:
                space_text(self.path, key)
                self._checked.add(key)
        # Shared with snapshots, and left to them when shards are added.
        self._read: dict[str, Any] = {}

    # == Writing ==

    @classmethod
    def begin(cls, path: PathLike, *, info: Mapping[str, Any] | None = None) -> ZooStore:
        """Make an empty zoo, to be filled with :meth:`append` and closed with :meth:`finish`.

        Args:
            path: Folder to make, which must not exist.
            info: How the zoo is made, anything that JSON can hold.

        Returns:
            The zoo, empty and open for writing.

        Raises:
            FileExistsError: If the path exists.
            OSError: If it cannot be written, with what to do about it.
            ValueError: If ``info`` is not JSON.
        """
        with cls._new_folder(path, info) as store:
            pass
        return store

    @classmethod
    @contextmanager
    def _new_folder(cls, path: PathLike, info: Mapping[str, Any] | None) -> Iterator[ZooStore]:
        """An empty zoo under a temporary name, which becomes ``path`` when the block ends, and is removed when it fails."""
        path = Path(path).resolve()
        try:
            recorded = json.loads(json.dumps(dict(info or {})))
        except TypeError as error:
            raise ValueError(f"Expected 'info' to hold what JSON can hold: text, numbers, lists and dicts ({error}).") from None
        with new_folder(path, _EXISTS_ADVICE) as temporary:
            with explained_errors(path):
                for folder in (temporary / "shards", temporary / "spaces"):
                    folder.mkdir()
                write_atomically(temporary / DOCUMENT, _writing(document_text(recorded, finished=False)))
                Manifest.create(temporary, [Record.of(DOCUMENT, temporary / DOCUMENT)])
            store = cls(temporary)
            yield store
        store.path = path
        store.reload()

    @classmethod
    @contextmanager
    def writing(cls, path: PathLike, *, info: Mapping[str, Any] | None = None) -> Iterator[ZooStore]:
        """A new zoo, to be filled within the block; the folder appears complete when the block ends, or not at all.

        Args:
            path: Folder to make, which must not exist.
            info: How the zoo is made, anything that JSON can hold.

        Yields:
            The zoo, empty and open for writing; finished and open for reading when the block ends.

        Raises:
            FileExistsError: If the path exists.
            OSError: If it cannot be written, with what to do about it.
            ValueError: If ``info`` is not JSON, or the zoo is still empty at the end.

        Example:
            >>> import tempfile
            >>> space = WeightSpace.mlp([2, 8, 1])
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     with ZooStore.writing(f"{folder}/zoo") as store:
            ...         for epoch in range(3):
            ...             store.append(space, space.sample(4), {"epoch": [epoch] * 4})
            ...     len(ZooStore(f"{folder}/zoo"))
            12
        """
        with cls._new_folder(path, info) as store:
            yield store
            if not len(store):
                raise ValueError(f"A zoo needs at least one network with finite weights (dropped: {store.info['dropped_non_finite']}).")
            store.finish()

    @classmethod
    def create(
        cls,
        path: PathLike,
        space: WeightSpace,
        thetas: Tensor | ArrayRows,
        table: Mapping[str, Any],
        *,
        info: Mapping[str, Any] | None = None,
    ) -> ZooStore:
        """Write a zoo of one architecture and open it. The folder appears complete or not at all.

        Networks with NaN or infinite weights are left out, with their rows of the table, and counted in ``info["dropped_non_finite"]``.

        Args:
            path: Folder to write, which must not exist.
            space: The weight space.
            thetas: Flat checkpoints of shape ``[N, P]``, or where they lie.
            table: Columns by name, each one entry per network: numbers, bools or strings. ``split`` and ``test_accuracy`` have a meaning to
                :meth:`split` and :meth:`dataset`.
            info: How the zoo was made, anything that JSON can hold.

        Returns:
            The finished zoo, open for reading.

        Raises:
            FileExistsError: If the path exists.
            OSError: If it cannot be written, with what to do about it.
            SpaceMismatchError: If ``thetas`` has another width.
            ValueError: If no network is left, columns differ in length or hold something else, or ``info`` is not JSON.
        """
        with cls.writing(path, info=info) as store:
            store.append(space, thetas, table)
        return store

    def append(self, space: WeightSpace, thetas: Tensor | ArrayRows, table: Mapping[str, Any], *, name: str | None = None) -> None:
        """Add networks of one architecture, in shards of at most 256 MiB, each of which is there in full or not at all.

        Several processes may append to one zoo at a time. Networks with NaN or infinite weights are left out and counted.

        Args:
            space: The weight space.
            thetas: Flat checkpoints of shape ``[n, P]``, or rows of a ``.npy`` file, which are not copied.
            table: Columns by name, the same in all shards of a zoo.
            name: Name of the shard, which then must not exist and is not divided (default: the next number): letters, digits, ``-``, ``_``
                and ``.``, not in front.

        Raises:
            FileExistsError: If there is a shard of that name.
            OSError: If the shard cannot be written, with what to do about it.
            SpaceMismatchError: If ``thetas`` has another width.
            ValueError: If columns differ in length, from those of the zoo, or hold something else.
        """
        if name is not None and not re.fullmatch(r"[A-Za-z0-9_-][\w.-]*", name):
            raise ValueError(f"Expected 'name' to be letters, digits, '-', '_' and '.', not in front (got {name!r}).")
        self._writable()
        if self._only is None and len(list_shards(self.path)) != len(self.shards) + len(self._strays):
            self.reload()  # others have added to the zoo
        if isinstance(thetas, ArrayRows):
            if thetas.shape[1] != space.num_params:
                raise SpaceMismatchError(f"Expected {space.num_params} columns for {space!r} (got {thetas.shape[1]}).")
        else:
            space.check_thetas(thetas)
        finite = _finite(thetas)
        columns = checked_columns(table, len(finite))
        self._check_columns(columns)
        kept = finite.nonzero().flatten()
        row_bytes = 16 if isinstance(thetas, ArrayRows) else space.num_params * thetas.element_size()
        parts = kept.split(max(1, _SHARD_BYTES // row_bytes)) if name is None and len(kept) else [kept]
        if "split" in columns and not isinstance(thetas, ArrayRows):
            splits = columns["split"].tolist()
            across = [(splits[i], splits[j]) for i, j in equal_rows(thetas) if splits[i] != splits[j] and finite[i]]
            if across:
                warnings.warn(
                    f"{len(across)} networks that are added to a zoo have the weights of one in another split "
                    f"({across[0][0]!r} and {across[0][1]!r}): what is learned of one is scored on the other.",
                    ZooWarning,
                    stacklevel=2,
                )
        key = self._write_space(space)
        dropped, before = len(finite) - len(kept), self.shards
        records = []
        try:
            for part in parts:
                if not len(part) and dropped == 0 and name is None:
                    continue
                rows = {column: values[part.numpy()] for column, values in columns.items()}
                taken = thetas if len(part) == len(thetas) else thetas[part]
                records.append(self._write_shard(name, key, taken, rows, dropped))
                dropped = 0
            self._writable().record(records)
            self._recorded = {**self._recorded, **{Path(record.file).stem: record.rows for record in records}}
        except BaseException:
            # All or nothing: what is repeated after a disk was full should not be there twice.
            for shard in set(self.shards) - set(before):
                shard.file.unlink(missing_ok=True)
            self._index(before)
            raise

    def _writable(self) -> Manifest:
        if self._manifest is None:
            raise ValueError(
                f"The zoo {str(self.path)!r} was written by an earlier version of wsgraph, without "
                "checksums of everything, and is read only. Upgrade it in place with store.upgrade() "
                "or `wsgraph zoo upgrade`, which reads it once."
            )
        return self._manifest

    def _write_shard(
        self, name: str | None, key: str, thetas: Tensor | ArrayRows, columns: Mapping[str, np.ndarray], dropped: int
    ) -> Record:
        manifest, number, records = self._writable(), len(self.shards), []
        while True:
            relative = shard_path(f"{number:06d}" if name is None else name)
            file = self.path / relative

            def announce(temporary: Path, relative: str = relative) -> None:
                records.append(Record.of(relative, temporary, len(thetas)))
                manifest.announce(records[-1])

            if not file.exists() or name is not None:
                try:
                    write_shard(file, key, thetas, columns, dropped=dropped, announce=announce)
                    self._index([*self.shards, open_shard(file)])
                    return records[-1]
                except FileExistsError:
                    if name is not None:
                        raise
            number += 1  # somebody else took that number

    def _write_space(self, space: WeightSpace) -> str:
        if len(self._key_by_space) != len(self._keys):
            self._key_by_space = {self.load_space(key): key for key in reversed(self._keys)}
        # Spaces that differ in nothing but what was assumed of them are one architecture, and the first stands for both.
        if (key := self._key_by_space.get(space)) is None:
            key = self._key_by_space[space] = space.digest
        file = self.path / "spaces" / f"{key}.json"
        if not file.exists():
            write_atomically(file, lambda temporary: temporary.write_text(space.to_json(), encoding="utf-8"))
        return key

    def _check_columns(self, columns: Mapping[str, np.ndarray]) -> None:
        if not self.shards:
            return
        expected = self.shards[-1].columns
        if set(columns) != set(expected):
            raise ValueError(
                f"Expected the columns of the zoo {str(self.path)!r}, {', '.join(expected) or 'none'} (got {', '.join(columns) or 'none'})."
            )
        there = self.shards[-1].table()
        if wrong := [name for name in columns if not may_be_joined(there[name], columns[name])]:
            listed = ", ".join(f"{name!r}, {there[name].dtype} there and {columns[name].dtype} here" for name in wrong)
            raise ValueError(
                f"Expected strings where the zoo {str(self.path)!r} has strings, numbers of one type where it has numbers (got {listed})."
            )

    def finish(self, **info: Any) -> None:
        """Record that nothing is missing, and more about how the zoo was made.

        Shards that are gone are not expected any more.

        Args:
            **info: What to add to :attr:`info`.

        Raises:
            OSError: If it cannot be written, with what to do about it.
            ValueError: If a shard is not the one that was written under its name.
        """
        self.reload()
        manifest = self._writable()
        if fault := next((shard.fault for shard in self.shards if shard.fault is not None), None):
            raise ValueError(f"{fault} Until then the zoo cannot be finished.")
        manifest.remove(map(shard_path, self.missing))
        # What a writer left that died before it noted that its shard was there.
        unnoted = [shard for shard in self.shards if shard.name not in self._recorded]
        manifest.record(Record.of(shard_path(shard.name), shard.file, shard.count) for shard in unnoted)
        everything = {**self._info, **info}
        networks = sum(shard.count for shard in self.shards)
        text = document_text(everything, finished=True, shards=len(self.shards), networks=networks)
        manifest.replace(DOCUMENT, _writing(text), lambda temporary: Record.of(DOCUMENT, temporary))
        self.finished, self._info, self._recorded = True, everything, {shard.name: shard.count for shard in self.shards}
        self._index(self.shards)

    def upgrade(self) -> None:
        """Record size and checksum of every file of a zoo that was written by an earlier version,
        which :meth:`verify` then compares.

        Everything is read once; weights are not written again. A zoo that has them already is left
        as it is.

        Raises:
            OSError: If it cannot be written, with what to do about it.
            ValueError: If something is wrong with the zoo, which would be recorded as right.
        """
        if self._manifest is not None:
            return
        with self.lock():
            self.reload()
            unknown = not_checked(self.path)
            if problems := [problem for problem in verify_zoo(self.path) if problem != unknown and problem != NOT_FINISHED]:
                raise ValueError(f"The zoo {str(self.path)!r} cannot be upgraded as it is: {problems[0]}")
            counts = {"shards": len(self.shards), "networks": len(self)} if self.finished else {}
            text = document_text(self._info, finished=self.finished, **counts)
            records = [Record.of(shard_path(shard.name), shard.file, shard.count) for shard in self.shards]
            if parts := self._later_parts():
                checksums = {shard.name: shard.checksum for shard in self.shards}
                parts = [part._replace(checksum=checksums.get(part.shard)) for part in parts]
                write_atomically(self.path / COLUMNS, lambda temporary: save_columns(temporary, parts))
                records.append(columns_record(self.path / COLUMNS, parts))
            # The manifest counts from the moment that zoo.json says that there is one.
            temporary = self.path / f".{DOCUMENT}.upgraded.tmp"
            try:
                with explained_errors(temporary):
                    temporary.write_text(text, encoding="utf-8")
                Manifest.create(self.path, [*records, Record.of(DOCUMENT, temporary)])
            finally:
                temporary.unlink(missing_ok=True)
            write_atomically(self.path / DOCUMENT, _writing(text))
        self.reload()

    def set_column(self, name: str, values: Any) -> None:
        """Set a column of the table for all networks, or add one.

        Args:
            name: Name of the column.
            values: One entry per network: numbers, bools or strings.

        Raises:
            OSError: If it cannot be written, with what to do about it.
            ValueError: If the length differs, or it holds something else.

        Example:
            >>> import tempfile
            >>> from wsgraph.data import group_split
            >>> space = WeightSpace.mlp([2, 8, 1])
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     store = ZooStore.create(f"{folder}/zoo", space, space.sample(10), {"run": [i // 2 for i in range(10)]})
            ...     store.set_column("split", group_split(store.column("run"), {"train": 0.6, "test": 0.4}, seed=0))
            ...     store.dataset("train", target=None)
            ZooDataset(6 of 10 networks, WeightSpace(2-8-1, linear | linear, relu, 33 parameters), target=None)
        """
        column = checked_columns({name: values}, len(self))[name]
        if not self.shards:
            raise ValueError(f"The zoo {str(self.path)!r} is empty: append networks before setting columns.")
        manifest = self._writable()
        with self.lock():
            kept = [part for part in self._later_parts(lost=True) if part.name != name]
            values_of = zip(self.shards, np.split(column, self._starts[1:-1]), strict=True)
            parts = [*kept, *(ColumnPart(name, shard.name, shard.checksum, values) for shard, values in values_of)]
            manifest.replace(COLUMNS, lambda temporary: save_columns(temporary, parts), lambda temporary: columns_record(temporary, parts))
        self._read.pop("table", None)

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

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from changing the zoo in ways that exclude each other; a process that dies lets go.

        Raises:
            BlockingIOError: If another process holds the zoo.
        """
        try:
            with filelock.FileLock(self.path / ".lock", timeout=_PATIENCE):
                yield
        except filelock.Timeout:
            raise BlockingIOError(
                f"Another process is writing to the zoo {str(self.path)!r}. Wait until it is done, or choose another path."
            ) from None

    @classmethod
    def merge(cls, path: PathLike, stores: Sequence[ZooStore]) -> ZooStore:
        """Write the networks of several zoos, in their order, as one.

        The new zoo has the columns that all zoos have, and ``zoo``, the folder name of the zoo that
        each network comes from (with the folders above it where two have one name). Its shards are
        large, however small those of the zoos are: of a single zoo this makes one that is read
        faster. Columns that are left out, and networks that several zoos hold, are warned of.

        Args:
            path: Folder to write, which must not exist.
            stores: The zoos.

        Returns:
            The finished zoo, open for reading.

        Raises:
            FileExistsError: If the path exists.
            OSError: If it cannot be written, with what to do about it.
            ValueError: If no zoo is given, or a column holds strings in one and numbers in another.
        """
        stores = [store for store in stores if store.shards or store.missing or not store.finished]
        if not stores:
            raise ValueError("Expected at least one zoo with networks in 'stores' (got none).")
        if unfinished := [str(store.path) for store in stores if not store.finished or store.missing]:
            raise ValueError(f"Expected zoos that are finished, but {', '.join(map(repr, unfinished))} lacks networks. Finish it first.")
        names = [name for name in stores[0].table if all(name in store.table for store in stores) and name != "zoo"]
        labels = _distinct([store.path for store in stores])
        dropped = sum(store.info["dropped_non_finite"] for store in stores)
        described = [{"zoo": label, "info": store.info} for label, store in zip(labels, stores, strict=True)]
        info = {"merged": described, "dropped_non_finite": dropped}
        copies, owners, splits = Copies(), list[int](), list[Any]()
        shared: list[Copy] = []
        with cls.writing(path, info=info) as merged:
            for number, store in enumerate(stores):
                # Small shards side by side become large ones; those that link to a matrix may be larger than memory.
                for key, run in itertools.groupby(enumerate(store.shards), key=lambda pair: pair[1].space):
                    numbers = [number for number, _ in run]
                    positions = torch.arange(int(store._starts[numbers[0]]), int(store._starts[numbers[-1] + 1]))
                    space = store.load_space(key)
                    for part in positions.split(max(1, _SHARD_BYTES // (space.num_params * store.dtype.itemsize))):
                        columns = {name: store.table[name][part.numpy()] for name in names}
                        columns["zoo"] = np.full(len(part), labels[number])
                        thetas = store.read(part)
                        owners += [number] * len(part)
                        splits += columns["split"].tolist() if "split" in columns else [None] * len(part)
                        shared += [copy for copy in copies.add(space, thetas) if owners[copy.number] != owners[copy.first]]
                        with warnings.catch_warnings():
                            warnings.simplefilter("ignore", ZooWarning)  # what equals within a zoo is not of this making
                            merged.append(space, thetas, columns)
        left = {label: [name for name in store.table if name not in names] for label, store in zip(labels, stores, strict=True)}
        if left := {label: columns for label, columns in left.items() if columns}:
            told = "; ".join(f"{label}: {listed(columns)}" for label, columns in left.items())
            warnings.warn(
                f"Columns that not all zoos have, or that are named 'zoo', are left out of {str(merged.path)!r} ({told}).",
                ZooWarning,
                stacklevel=2,
            )
        if shared:
            pairs = dict.fromkeys((labels[owners[copy.first]], labels[owners[copy.number]]) for copy in shared)
            across = sum(splits[copy.number] != splits[copy.first] for copy in shared)
            told = listed(f"{first} and {second}" for first, second in pairs)
            warnings.warn(
                f"{len(shared)} networks are in several of the zoos that were merged into "
                f"{str(merged.path)!r}, "
                f"{across} of them in another split there ({told}). "
                "Leave them out, or give equal networks one split, before training on some and "
                "scoring on others.",
                ZooWarning,
                stacklevel=2,
            )
        return merged

    # == Reading ==

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
            raise ValueError(f"The zoo {str(self.path)!r} has no column {name!r}. Its columns: {', '.join(self.table) or 'none'}.{also}")
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

    def dataset(self, split: str | None = None, target: str | None = "test_accuracy", **options: Any) -> ZooDataset:
        """The networks of a split as a dataset of parameter graphs.

        Args:
            split: Name of the split (default: all networks).
            target: Column that becomes ``y``; ``None`` for graphs without one.
            **options: Further options of :class:`ZooDataset`, such as ``transform``.

        Returns:
            The dataset, for :class:`wsgraph.data.DataLoader` or PyG's.

        Raises:
            ValueError: If there is no such split or column, or the column holds strings.
        """
        return ZooDataset(self, None if split is None else self.split(split), target, **options)

    def of_space(self, space: WeightSpace, target: str | None = None) -> ZooDataset:
        """The networks of one weight space.

        Args:
            space: One of :attr:`spaces`.
            target: Column that becomes ``y`` (default: graphs without one).

        Returns:
            Their dataset, empty if the zoo has none.
        """
        return self.dataset(target=target).of_space(space)

    def verify(self) -> list[str]:
        """Read everything in the folder, and say what is wrong, a sentence each:
        :func:`verify_zoo`.

        Returns:
            The problems; an empty list for a zoo that is whole.
        """
        return verify_zoo(self.path)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, index: int) -> ParameterGraph: ...
    @overload
    def __getitem__(self, index: Indices) -> ZooDataset: ...
    def __getitem__(self, index: int | Indices) -> ParameterGraph | ZooDataset:
        """The graph of one network, or the dataset of several (a slice, positions or a boolean mask); without targets."""
        return self.dataset(target=None)[index]

    # Workers of a data loader open the files themselves instead of receiving the weights.
    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return functools.partial(type(self), shards=self._names), (self.path,)

    def __repr__(self) -> str:
        what = repr(self.space) if len(self._keys) == 1 else f"{len(self._keys)} weight spaces"
        try:
            columns, counts = f", {len(self.table)} columns", self.splits
        except (ValueError, OSError):  # of a zoo that is damaged, which is what one wants to look at
            columns, counts = ", columns that cannot be read", {}
        splits = "".join(f", {name} {count:,}" for name, count in counts.items())
        shards = f", {len(self.shards)} shards" if len(self.shards) != 1 else ""
        linked = "".join(f", weights in {str(file)!r}" for file in self.linked_files[:2])
        linked += f" and {len(self.linked_files) - 2} more" if len(self.linked_files) > 2 else ""
        state = "" if self.finished else ", not finished"
        state += f", {len(self.missing)} shards missing" if self.missing else ""
        state += f", {len(self._strays)} shards left out" if self._strays else ""
        return f"ZooStore({str(self.path)!r}, {len(self):,} networks, {what}{columns}{splits}{shards}{linked}{state})"


def _distinct(paths: Sequence[Path]) -> list[str]:
    """Names of folders, with as many of the folders above as it takes to tell them apart."""
    different = len({*paths})
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len({*names}) == different:
            break
    return names


def _writing(text: str) -> Callable[[Path], object]:
    return lambda temporary: temporary.write_text(text, encoding="utf-8")
