"""One shard of a zoo: networks of one weight space and what is known about them, in a single file that is complete or not there."""

from __future__ import annotations

import itertools
import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from wsgraph._counts import counted
from wsgraph.data.columns import COLUMN_PREFIX, decode_column, encode_column
from wsgraph.data.headers import SHARD_FORMAT, SPACE_KEY, checksum_of, read_header
from wsgraph.data.mapped import ArrayRows, MappedRows
from wsgraph.files import explained_errors, flush

__all__ = ["Shard", "open_shard", "write_shard"]

_VERSION = 1


@dataclass(frozen=True)
class Shard:
    """What the header of a shard's file says.

    Attributes:
        file: The file.
        space: Key of the weight space of all its networks.
        shape: Number of networks and of parameters.
        dtype: Dtype of the weights.
        dropped: Networks left out because their weights were not finite.
        columns: Names of the table's columns.
        checksum: SHA-256 of weights and columns.
        source: Path from the folder of the file to the matrix that the weights lie in, or ``None`` where they lie in the file itself.
        fault: Why this is not the shard that belongs to the zoo under its name, or ``None``; one
            that has a fault is not read.
    """

    file: Path
    space: str
    shape: tuple[int, int]
    dtype: torch.dtype
    dropped: int
    columns: tuple[str, ...]
    checksum: str
    source: str | None
    fault: str | None = None

    @property
    def name(self) -> str:
        """Name of the shard within its zoo."""
        return self.file.stem

    @property
    def count(self) -> int:
        """Number of networks."""
        return self.shape[0]

    @property
    def is_linked(self) -> bool:
        """Whether the weights lie in a file of somebody else."""
        return self.source is not None

    @property
    def linked_file(self) -> Path | None:
        """The file of somebody else that the weights lie in, or ``None``."""
        return None if self.source is None else (self.file.parent / self.source).resolve()

    def _check(self) -> None:
        if self.fault is not None:
            raise ValueError(f"{self.fault} `wsgraph zoo verify` lists all that is wrong with the zoo.")

    def open(self) -> MappedRows:
        """The weights, mapped.

        Raises:
            ValueError: If the shard has a fault, or was exchanged since its header was read.
        """
        self._check()
        return self._open()

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        with safe_open(self.file, "pt") as tensors:
            self._check_same(tensors.metadata())
            yield tensors

    def _check_same(self, metadata: Mapping[str, str] | None) -> None:
        """Refuse a file that took the place of the one whose header was read."""
        if json.loads((metadata or {}).get(SHARD_FORMAT, "{}")).get("checksum") != self.checksum:
            raise ValueError(f"{str(self.file)!r} was exchanged since the zoo was opened. Open the zoo again.")

    def _open(self) -> MappedRows:
        if self.linked_file is not None:
            with self._opened() as tensors:
                rows, columns = tensors.get_tensor("rows"), tensors.get_tensor("columns")
            return ArrayRows(self.linked_file, rows, columns).open()
        with self.file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(length))
        self._check_same(header.get("__metadata__"))
        return MappedRows(self.file, 8 + length + header["thetas"]["data_offsets"][0], self.shape, self.dtype)

    def table(self) -> dict[str, np.ndarray]:
        """The columns of the table by name.

        Raises:
            ValueError: If the shard has a fault, or was exchanged since its header was read.
        """
        self._check()
        with self._opened() as tensors:
            return {name: decode_column(tensors.get_tensor(COLUMN_PREFIX + name)) for name in self.columns}

    def problems(self) -> Iterator[str]:
        """What is wrong with the contents, one sentence each; reads everything."""
        try:
            with safe_open(self.file, "pt") as tensors:
                held = {name: tensors.get_tensor(name) for name in tensors.keys() if name != "thetas"}  # noqa: SIM118  (no dict)
            weights = self._open()
        except (OSError, ValueError, SafetensorError) as error:
            yield str(error)
            return
        bad = 0

        def watched() -> Iterator[Tensor]:
            nonlocal bad
            for rows in weights.blocks():
                bad += int((~rows.isfinite().all(1)).sum())
                yield rows

        if checksum_of(itertools.chain(watched(), (held[COLUMN_PREFIX + name] for name in self.columns))) != self.checksum:
            file = f" or {str(self.linked_file)!r}, which it links to," if self.is_linked else ""
            yield (
                f"{str(self.file)!r}{file} is damaged: its contents do not have the checksum that "
                "was recorded when it was written. "
                "Restore the file."
            )
        if bad:
            networks = counted(bad, "network")
            yield f"{str(self.file)!r} holds {networks} with NaN or infinite weights. Make the zoo again: such networks are left out."
        if wrong := [name for name in self.columns if len(held[COLUMN_PREFIX + name]) != self.count]:
            yield f"{str(self.file)!r} holds {counted(self.count, 'network')}, but not as many rows in {', '.join(map(repr, wrong))}."


_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def open_shard(file: Path) -> Shard:
    """Read the header of a shard.

    Raises:
        ValueError: If the file is damaged, truncated or no shard, or was written by a newer version.
    """
    damaged = f"{str(file)!r} is damaged or truncated ({{}}). Restore the file; without it, the rest of the zoo opens."
    try:
        with safe_open(file, "pt") as tensors:
            header = read_header(tensors)
            if not header:
                raise ValueError(f"{str(file)!r} is not a shard of a zoo. Take it out of the folder.")
            if header["version"] != _VERSION:
                raise ValueError(
                    f"{str(file)!r} has format version {header['version']}, this wsgraph reads {_VERSION}; update wsgraph to read it."
                )
            if "source" in header:
                shape = [tensors.get_slice(name).get_shape()[0] for name in ("rows", "columns")]
                kind = header["dtype"]
            else:
                weights = tensors.get_slice("thetas")
                shape, kind = weights.get_shape(), weights.get_dtype()
            columns = tuple(header["columns"])
            held = {name: tensors.get_slice(COLUMN_PREFIX + name).get_shape()[0] for name in columns}
            known = header["space"], (shape[0], shape[1]), _DTYPES[kind], header["dropped"], columns, header["checksum"]
    except (FileNotFoundError, PermissionError):
        raise
    except (SafetensorError, OSError) as error:
        raise ValueError(damaged.format(error)) from None
    except (KeyError, IndexError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(damaged.format(f"its header lacks something: {type(error).__name__}: {error}")) from None
    if not isinstance(header["space"], str) or not SPACE_KEY.fullmatch(header["space"]):
        raise ValueError(damaged.format(f"it names the weight space {header['space']!r}, which is no file of a zoo"))
    if type(header["dropped"]) is not int or not isinstance(header["checksum"], str):
        raise ValueError(damaged.format("its header holds values of other types"))
    source = header.get("source")
    if source is not None and (not isinstance(source, str) or os.path.isabs(source)):
        raise ValueError(damaged.format(f"it names {source!r}, which is no path from its folder"))
    if wrong := [name for name, length in held.items() if length != shape[0]]:
        raise ValueError(f"{str(file)!r} is damaged: {shape[0]} networks, but other numbers of rows in {', '.join(map(repr, wrong))}.")
    return Shard(file, *known, source)


def write_shard(
    file: Path,
    space: str,
    thetas: Tensor | ArrayRows,
    columns: Mapping[str, np.ndarray],
    *,
    dropped: int = 0,
    announce: Callable[[Path], object] = lambda temporary: None,
) -> None:
    """Write a shard: under a temporary name, until it is on disk, then under its own, which nobody else may have taken meanwhile.

    Args:
        file: File to write.
        space: Key of the weight space.
        thetas: Finite flat checkpoints ``[n, P]``, or where they lie.
        columns: The table.
        dropped: Number of networks that were left out.
        announce: Called with the path of the temporary file, before it gets its name.

    Raises:
        FileExistsError: If there is such a file.
        OSError: If it cannot be written, with what to do.
    """
    tensors = {COLUMN_PREFIX + name: encode_column(column) for name, column in columns.items()}
    header: dict[str, Any] = {"version": _VERSION, "space": space, "dropped": dropped, "columns": [*columns]}
    if isinstance(thetas, ArrayRows):
        source = thetas.open()
        weights: Iterable[Tensor] = source.blocks()
        header["source"] = os.path.relpath(thetas.file.resolve(), file.parent.resolve())
        header["dtype"] = next(name for name, dtype in _DTYPES.items() if dtype == source.matrix.dtype)
        tensors |= {"rows": thetas.rows.long().contiguous(), "columns": thetas.columns.long().contiguous()}
    else:
        tensors["thetas"] = thetas.detach().cpu().contiguous()
        weights = [tensors["thetas"]]
    header["checksum"] = checksum_of(itertools.chain(weights, (tensors[COLUMN_PREFIX + name] for name in columns)))
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex}.tmp")
    with explained_errors(file):
        try:
            save_file(tensors, temporary, {SHARD_FORMAT: json.dumps(header)})
            announce(temporary)
            flush(temporary)
            publish(temporary, file)
        finally:
            temporary.unlink(missing_ok=True)


def _taken(file: Path) -> FileExistsError:
    error = FileExistsError(f"{str(file)!r} exists already. Choose another name.")
    error.explained = True  # type: ignore[attr-defined]  # which is no failure to write
    return error


def publish(temporary: Path, file: Path) -> None:
    """Give a finished file its name, unless somebody has taken that name.

    Raises:
        FileExistsError: If there is such a file.
    """
    try:
        os.link(temporary, file)
    except FileExistsError:
        raise _taken(file) from None
    except OSError:  # a file system without links
        if file.exists():
            raise _taken(file) from None
        os.replace(temporary, file)
    flush(file.parent)
