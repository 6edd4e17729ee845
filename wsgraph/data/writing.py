"""Writing zoos: shard by shard, column by column, each there in full or not at all."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import filelock
import numpy as np
import torch
from torch import Tensor

from wsgraph._counts import counted
from wsgraph.data.columns import ColumnPart, checked_columns, may_be_joined, save_columns
from wsgraph.data.copies import equal_rows
from wsgraph.data.folder import PathLike, ZooFolder
from wsgraph.data.manifest import COLUMNS, DOCUMENT, Manifest, Record, ZooWarning, document_text
from wsgraph.data.mapped import ArrayRows
from wsgraph.data.shards import open_shard, write_shard
from wsgraph.data.verify import NOT_FINISHED, columns_record, list_shards, not_checked, shard_path, verify_zoo
from wsgraph.files import explained_errors, new_folder, write_atomically
from wsgraph.space import WeightSpace
from wsgraph.space.errors import SpaceMismatchError

__all__ = ["SHARD_BYTES", "WritableZoo"]

SHARD_BYTES = 2**28
_PATIENCE = 1.0  # seconds to wait for another process that writes to the zoo

_ACROSS = "network that is added to a zoo has", "networks that are added to a zoo have"
_EXISTS_ADVICE = "Open it with ZooStore(path), choose another path, or delete it."


def _finite(thetas: Tensor | ArrayRows) -> Tensor:
    """Which networks have finite weights; by rows, so that a zoo mapped from disk is never held in memory at once."""
    blocks = thetas.open().blocks() if isinstance(thetas, ArrayRows) else thetas.detach().split(4096)
    return torch.cat([rows.isfinite().all(1) for rows in blocks]).cpu()


class WritableZoo(ZooFolder):
    """A zoo that networks and columns are added to."""

    @classmethod
    def begin(cls, path: PathLike, *, info: Mapping[str, Any] | None = None) -> Self:
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
    def _new_folder(cls, path: PathLike, info: Mapping[str, Any] | None) -> Iterator[Self]:
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
    def writing(cls, path: PathLike, *, info: Mapping[str, Any] | None = None) -> Iterator[Self]:
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
            >>> from wsgraph import WeightSpace
            >>> from wsgraph.data import ZooStore
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
    ) -> Self:
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
        parts = kept.split(max(1, SHARD_BYTES // row_bytes)) if name is None and len(kept) else [kept]
        if "split" in columns and not isinstance(thetas, ArrayRows):
            splits = columns["split"].tolist()
            across = [(splits[i], splits[j]) for i, j in equal_rows(thetas) if splits[i] != splits[j] and finite[i]]
            if across:
                warnings.warn(
                    f"{counted(len(across), *_ACROSS)} the weights of one in another split "
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
        # Spaces that differ in nothing but names or what was assumed of them are one architecture, and the first stands for all.
        for there in self._keys:
            if there not in self._noted:
                self._noted.add(there)
                self._key_by_space.setdefault(self.load_space(there).unnamed, there)
        if (key := self._key_by_space.get(space.unnamed)) is None:
            key = self._key_by_space[space.unnamed] = space.digest
            self._noted.add(key)
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
            >>> from wsgraph import WeightSpace
            >>> from wsgraph.data import ZooStore, group_split
            >>> space = WeightSpace.mlp([2, 8, 1])
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     store = ZooStore.create(f"{folder}/zoo", space, space.sample(10), {"run": [i // 2 for i in range(10)]})
            ...     store.set_column("split", group_split(store.column("run"), {"train": 0.6, "test": 0.4}, seed=0))
            ...     store.dataset("train", target=None)
            ZooDataset(6 of 10 networks, WeightSpace(2-8-1, linear | linear, relu, 33 parameters), target=None)
        """
        self.set_columns({name: values})

    def set_columns(self, table: Mapping[str, Any]) -> None:
        """Set columns of the table for all networks, or add them: all or, where one is refused,
        none.

        Args:
            table: Columns by name, each with one entry per network: numbers, bools or strings.

        Raises:
            OSError: If they cannot be written, with what to do about it.
            ValueError: If a length differs, or one holds something else.

        Example:
            >>> import tempfile
            >>> from wsgraph import WeightSpace
            >>> from wsgraph.data import ZooStore
            >>> space = WeightSpace.mlp([2, 8, 1])
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     store = ZooStore.create(f"{folder}/zoo", space, space.sample(2), {})
            ...     store.set_columns({"run": [0, 1], "split": ["train", "test"]})
            ...     list(ZooStore(store.path).table)
            ['run', 'split']
        """
        columns = checked_columns(table, len(self))
        if not self.shards:
            raise ValueError(f"The zoo {str(self.path)!r} is empty: append networks before setting columns.")
        manifest = self._writable()
        with self.lock():
            parts = [part for part in self._later_parts(lost=True) if part.name not in columns]
            for name, column in columns.items():
                values_of = zip(self.shards, np.split(column, self._starts[1:-1]), strict=True)
                parts += [ColumnPart(name, shard.name, shard.checksum, values) for shard, values in values_of]
            manifest.replace(COLUMNS, lambda temporary: save_columns(temporary, parts), lambda temporary: columns_record(temporary, parts))
        self._read.pop("table", None)

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


def _writing(text: str) -> Callable[[Path], object]:
    return lambda temporary: temporary.write_text(text, encoding="utf-8")
