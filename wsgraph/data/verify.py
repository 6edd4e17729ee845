"""Whether a zoo is what was written, file by file."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wsgraph.data.columns import ColumnPart, may_be_joined, read_columns
from wsgraph.data.manifest import COLUMNS, DOCUMENT, LOG, Manifest, Record, check_inside, has_manifest, read_document
from wsgraph.data.shards import Shard, open_shard
from wsgraph.space import WeightSpace

__all__ = [
    "NOT_FINISHED",
    "check_parts",
    "columns_record",
    "list_shards",
    "load_columns",
    "not_checked",
    "recorded_shards",
    "shard_fault",
    "shard_path",
    "space_text",
    "verify_zoo",
]

NOT_FINISHED = "The zoo is not finished. Repeat the command or call that makes it: it will continue."


def list_shards(folder: Path) -> list[str]:
    """Names of the shards that lie in the folder of a zoo, sorted."""
    ending = ".safetensors"
    names = os.listdir(folder / "shards") if (folder / "shards").is_dir() else []
    return sorted(name.removesuffix(ending) for name in names if name.endswith(ending) and not name.startswith("."))


def shard_path(name: str) -> str:
    """Path of a shard from the folder of its zoo."""
    return f"shards/{name}.safetensors"


def recorded_shards(document: Mapping[str, Any], manifest: Manifest | None) -> dict[str, int]:
    """Number of networks of every shard that was written, by its name."""
    if manifest is None:
        earlier: dict[str, int] = document.get("shards", {})
        return earlier
    return {Path(name).stem: record.rows for name, record in sorted(manifest.written.items()) if name not in (COLUMNS, DOCUMENT)}


def shard_fault(folder: Path, manifest: Manifest | None, shard: Shard) -> str | None:
    """Why a shard is not the one that was written under its name, in a sentence; ``None`` where
    nothing speaks against it."""
    try:
        check_inside(folder, shard.file)
    except ValueError as error:
        return str(error)
    return None if manifest is None else manifest.fault(Record.of(shard_path(shard.name), shard.file, shard.count))


def space_text(folder: Path, key: str) -> str:
    """The JSON of a weight space, which its key is the checksum of.

    Raises:
        FileNotFoundError: If it is missing.
        ValueError: If it was changed after it was written.
    """
    file = folder / "spaces" / f"{key}.json"
    check_inside(folder, file)
    if not file.is_file():
        raise FileNotFoundError(f"The zoo {str(folder)!r} lacks {file.name}. Make the zoo again or restore the file.")
    text = file.read_bytes()
    if hashlib.sha256(text).hexdigest()[:16] != key:
        raise ValueError(
            f"{str(file)!r} was changed after it was written: it is not the weight space that the weights are of. Restore the file."
        )
    return text.decode()


def columns_record(file: Path, parts: list[ColumnPart]) -> Record:
    """The record of columns that were set later."""
    rows: dict[str, int] = {}
    for part in parts:
        rows[part.name] = rows.get(part.name, 0) + len(part.values)
    return Record.of(COLUMNS, file, max(rows.values(), default=0), rows)


def load_columns(folder: Path, manifest: Manifest | None) -> tuple[list[ColumnPart], str | None]:
    """Columns that were set after shards were written, and what is wrong with their file, if
    anything is."""
    file = folder / COLUMNS
    record = None if manifest is None else manifest.written.get(COLUMNS)
    if not file.exists():
        lost = "" if record is None else ", ".join(map(repr, record.columns))
        return [], f"{str(file)!r} is gone, and with it the columns {lost}. Restore it, or set all of these again." if lost else None
    try:
        check_inside(folder, file)
        parts = read_columns(file)
    except ValueError as error:
        return [], str(error)
    return parts, None if manifest is None else manifest.fault(columns_record(file, parts))


def check_parts(parts: list[ColumnPart], shards: Mapping[str, Shard], file: Path) -> Iterator[tuple[ColumnPart, str | None]]:
    """Parts of columns of shards that are there, each with why it says nothing about their
    networks, or ``None``.

    Raises:
        ValueError: If a part has another number of rows than its shard.
    """
    for part in parts:
        if (shard := shards.get(part.shard)) is None:
            continue
        if part.checksum is not None and part.checksum != shard.checksum:
            yield part, f"The column {part.name!r} was set for other networks than shard {part.shard!r} holds now: set it again."
            continue
        if len(part.values) != shard.count:
            raise ValueError(
                f"The column {part.name!r} in {str(file)!r} has {len(part.values)} rows for the "
                f"{shard.count} networks of shard "
                f"{part.shard!r}. Restore the file, or set the column again."
            )
        yield part, None


def not_checked(folder: Path) -> str:
    """What :func:`verify_zoo` cannot check of a zoo that was written by an earlier version."""
    return (
        f"{str(folder)!r} was written by an earlier version of wsgraph: it has no {LOG}, so "
        "whether shards were swapped, copied or brought "
        f"from elsewhere, and whether {COLUMNS} and {DOCUMENT} were changed, is not checked. "
        "store.upgrade() or `wsgraph zoo upgrade` "
        "records the checksums of what is there now."
    )


def verify_zoo(path: str | os.PathLike[str]) -> list[str]:
    """Read everything in the folder of a zoo, also of one that does not open, and say what is
    wrong, a sentence each.

    Every file is compared with the manifest: rows, size and checksum of shards, of columns that
    were set later and of ``zoo.json``, and whether it belongs to the zoo at all; weights with the
    checksum in their shard, and whether they are finite; weight spaces with the checksum that is
    their name; columns with the shards that they were set for.

    Args:
        path: The folder.

    Returns:
        The problems, each with the file and what to do; an empty list for a zoo that is what was
        written.

    Raises:
        FileNotFoundError: If the folder or ``zoo.json`` is missing.

    Example:
        >>> import tempfile
        >>> from wsgraph.data import ZooStore
        >>> space = WeightSpace.mlp([2, 8, 1])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = ZooStore.create(f"{folder}/zoo", space, space.sample(3), {})
        ...     before = verify_zoo(store.path)
        ...     store.shards[0].file.write_bytes(b"")
        ...     before, len(verify_zoo(store.path))
        0
        ([], 1)
    """
    folder = Path(path).resolve()
    if not (folder / DOCUMENT).is_file():
        raise FileNotFoundError(f"{str(path)!r} is not a zoo: it has no {DOCUMENT}.")
    return list(_problems(folder))


def _problems(folder: Path) -> Iterator[str]:
    listed = list_shards(folder)  # before the manifest, which then says what each of them is
    try:
        document = read_document(folder)
        manifest = Manifest(folder) if has_manifest(document) else None
    except (OSError, ValueError) as error:
        yield str(error)
        return
    recorded = recorded_shards(document, manifest)
    listed += [name for name in recorded.keys() - {*listed} if os.path.lexists(folder / shard_path(name))]
    shards: list[Shard] = []
    for name in map(shard_path, listed):
        file = folder / name
        if manifest is not None and not manifest.knows(name):
            try:
                yield manifest.fault(Record.of(name, file, open_shard(file).count)) or ""
            except (OSError, ValueError):
                yield manifest.fault(Record.of(name, file)) or ""
            continue
        try:
            shard = open_shard(file)
        except (OSError, ValueError) as error:
            yield str(error)
            continue
        fault = shard_fault(folder, manifest, shard)
        if fault is not None:
            yield fault
            if file.is_symlink() or shard.is_linked:
                continue  # what it leads to is not read
        shards.append(dataclasses.replace(shard, fault=fault))
        yield from shard.problems()
    for name, count in recorded.items():
        if name not in listed:
            yield f"The shard {name!r} of {count} networks is gone. Restore it, or repeat the call that made the zoo."
    yield from _spaces(folder, shards)
    yield from _columns(folder, manifest, shards)
    if manifest is None:
        yield not_checked(folder)
    else:
        yield from _documents(folder, document, manifest, recorded)
    if not document["finished"]:
        yield NOT_FINISHED


def _spaces(folder: Path, shards: list[Shard]) -> Iterator[str]:
    for key in dict.fromkeys(shard.space for shard in shards):
        file = folder / "spaces" / f"{key}.json"
        try:
            space = WeightSpace.from_json(space_text(folder, key))
        except FileNotFoundError as error:
            yield str(error)
            continue
        except ValueError as error:
            yield str(error) if str(file) in str(error) else f"{str(file)!r} is damaged. {error}"
            continue
        for shard in shards:
            if shard.space == key and shard.shape[1] != space.num_params:
                yield f"{str(shard.file)!r} holds {shard.shape[1]} weights of every network, {space!r} has {space.num_params}."


def _columns(folder: Path, manifest: Manifest | None, shards: list[Shard]) -> Iterator[str]:
    tables: list[tuple[Shard, dict[str, np.ndarray]]] = []
    for shard in shards:
        try:
            tables.append((shard, shard.table()))
        except (OSError, ValueError):  # told already
            continue
    for (_, before), (shard, after) in itertools.pairwise(tables):
        if before.keys() != after.keys() or not all(may_be_joined(before[name], after[name]) for name in before):
            yield f"{str(shard.file)!r} has other columns than the shard before it, or columns of other types."
    parts, fault = load_columns(folder, manifest)
    if fault is not None:
        yield fault
        return
    by_name = {shard.name: shard for shard in shards if shard.fault is None}
    for part in parts:
        try:
            yield from (problem for _, problem in check_parts([part], by_name, folder / COLUMNS) if problem is not None)
        except ValueError as error:
            yield str(error)


def _documents(folder: Path, document: Mapping[str, Any], manifest: Manifest, recorded: Mapping[str, int]) -> Iterator[str]:
    if fault := manifest.fault(Record.of(DOCUMENT, folder / DOCUMENT)):
        yield f"{fault} If its change is meant, store.finish() records it."
    for number in manifest.unreadable:
        yield (
            f"Line {number} of {str(folder / LOG)!r} is no record of a file: it was changed by "
            "hand, or the disk was full. Restore the file, "
            "or delete the line if nothing else is wrong."
        )
    shards, networks = document.get("shards", 0), document.get("networks", 0)
    if len(recorded) < shards or sum(recorded.values()) < networks:
        yield (
            f"{str(folder / LOG)!r} records {len(recorded)} shards with "
            f"{sum(recorded.values()):,} networks, but there were {shards} with "
            f"{networks:,} when the zoo was finished: lines are gone. Restore the file."
        )
