"""Folders of checkpoints: which files are networks, and what is known of each."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from wsgraph.convert.checkpoint import INDEX_ENDING, _load_file, checkpoint_ending, is_hub_model, network_files
from wsgraph.convert.formats import file_ending, known_endings
from wsgraph.data.copies import listed
from wsgraph.data.exchange.tables import FILE, FORMAT, ROLE, SHOWN, TABLES, VERSION, read_json, read_table, read_text, repeated_names
from wsgraph.data.folder import PathLike

__all__ = ["Folder", "holds_optimizer", "open_folder", "stem"]


class Folder(NamedTuple):
    """What a folder of checkpoints holds.

    Attributes:
        path: The folder.
        files: The file of every row, by path from the folder: one that holds networks, or the index
            of several that hold one.
        roles: Which of a file's networks a row is about; ``None`` for all.
        columns: Columns of the table.
        export: What an export says of itself.
        skipped: Files with the ending of a checkpoint that are no network of their own.
        has_table: Whether there is a table.
        bad: What the folder or the table lack and what is left out for that, with the reason.
        notes: What was decided in reading the table, a sentence each.
    """

    path: Path
    files: list[str]
    roles: list[str | None]
    columns: dict[str, list[Any]]
    export: dict[str, Any] | None
    skipped: list[str]
    has_table: bool
    bad: dict[str, str]
    notes: list[str]


def _networks(folder: Path) -> tuple[list[str], list[str]]:
    """What holds networks in a folder and those below, and files that look so and do not, sorted.

    A sharded network is its index. Of a folder as models on the Hub have, that model alone is
    taken.
    """
    found: list[str] = []
    skipped: list[str] = []
    for where, inner, files in os.walk(folder):
        inner[:] = [name for name in inner if not name.startswith(".")]
        # Links to folders are not followed, and the shards of a zoo hold many networks each.
        closed = [name for name in inner if Path(where, name).is_symlink() or Path(where, name, "zoo.json").exists()]
        inner[:] = [name for name in inner if name not in closed]
        visible = [name for name in files if not name.startswith(".")]
        chosen = network_files(visible)
        looks = [name for name in visible if file_ending(name) and not name.endswith(INDEX_ENDING)]
        if not is_hub_model(chosen):
            chosen = sorted({*chosen, *(name for name in looks if not checkpoint_ending(name))})
        shards = {shard for name in chosen for shard in _shards_of(Path(where) / name)}
        chosen = [name for name in chosen if name not in shards]
        rest = {*looks} - {*chosen} - shards
        for names, kept in ((chosen, found), ([*rest, *closed], skipped)):
            kept += [(PurePosixPath(Path(where).relative_to(folder).as_posix()) / name).as_posix() for name in names]
    return sorted(found), sorted(skipped)


def _shards_of(index: Path) -> set[str]:
    """Names of the files that an index names; none for anything else, also for one that is
    damaged, which reading it says."""
    if not index.name.endswith(INDEX_ENDING):
        return set()
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {name for name in places.values() if isinstance(name, str)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()


def holds_optimizer(file: Path) -> bool:
    """Whether a file holds the state of an optimizer, as its ``state_dict`` gives it, and no
    network."""
    try:
        content = _load_file(file)
    except Exception:  # of the many kinds that damaged or foreign files raise, none is the state of an optimizer
        return False
    return isinstance(content, Mapping) and {"state", "param_groups"} <= {*content}


class _Rows(NamedTuple):
    """Which networks rows of a table name.

    Attributes:
        numbers: The rows that are kept.
        files: Their files.
        skipped: Files that are no networks.
        bad: Files that rows or folders lack, with the reason, where these are left out.
    """

    numbers: list[int]
    files: list[str]
    skipped: list[str]
    bad: dict[str, str]


def _named_rows(folder: Path, table: Path, named: Sequence[str], roles: Sequence[Any], present: Sequence[str], skip_bad: bool) -> _Rows:
    """The networks that rows name; raise unless all rows have one and the reverse."""
    # One spelling for each file; what leads out of the folder keeps its "..".
    files = [PurePosixPath(name).as_posix() for name in named]
    # By the path as written, not where links lead: the Hub's own cache consists of links.
    if outside := [name for name in files if Path(name).anchor or ".." in Path(name).parts]:
        raise ValueError(
            f"Expected every file that {str(table)!r} names to be a path from {str(folder)!r}, without '..' (got {listed(outside)})."
        )
    # A row may name the folder of a network, or a file without its ending.
    short: dict[str, list[str]] = {}
    for name in present:
        for text in (PurePosixPath(name).parent.as_posix(), name.removesuffix(_ending(name))):
            short.setdefault(text, []).append(name)
    known = {*present}
    files = [short[name][0] if name not in known and len(short.get(name, ())) == 1 else name for name in files]
    if repeated := repeated_names(f"{file}{f' ({role})' if role else ''}" for file, role in zip(files, roles, strict=True)):
        raise ValueError(f"{str(table)!r} has several rows of {listed(repeated)}. Leave one of each.")
    missing = list(dict.fromkeys(name for name in files if not (folder / name).is_file()))
    bad = dict.fromkeys(missing, "there is no such file")
    if missing and not skip_bad:
        near = {stem(name): name for name in present}
        hints = [f"{near[stem(name)]!r} is there for {name!r}" for name in missing if stem(name) in near]
        hint = f" ({', '.join(hints[:SHOWN])})" if hints else ""
        raise FileNotFoundError(
            f"{str(table)!r} names files that are not in {str(folder)!r}: {listed(missing)}{hint}. "
            "Correct or remove those rows, or leave "
            "them out with skip_bad=True (--skip-bad)."
        )
    extra = sorted(known - {*files})
    others = [name for name in extra if holds_optimizer(folder / name)]
    extra = [name for name in extra if name not in others]
    bad |= dict.fromkeys(extra, f"{table.name} has no row for it")
    if extra and not skip_bad:
        raise ValueError(
            f"{str(table)!r} has no row for {listed(extra)}. Add rows, move those files out of "
            f"{str(folder)!r}, or leave them out with "
            "skip_bad=True (--skip-bad)."
        )
    numbers = [number for number, name in enumerate(files) if name not in bad]
    return _Rows(numbers, [files[number] for number in numbers], others, bad)


def _ending(name: str) -> str:
    return name[len(name) - len(file_ending(name) or "") :]


def stem(name: str) -> str:
    """A path without its ending and case: files that agree in it are easily mistaken for each
    other."""
    return name.removesuffix(_ending(name)).casefold()


def open_folder(folder: Path, table: PathLike | None, file_column: str = FILE, *, skip_bad: bool = False) -> Folder:
    """What a folder holds, with its table (default: the one that lies in it).

    Args:
        folder: The folder.
        table: Its table.
        file_column: The column of the table that names files.
        skip_bad: Whether rows without a file and files without a row are left out.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {str(folder)!r}.")
    if (folder / "zoo.json").exists():
        raise ValueError(f"{str(folder)!r} is a zoo already: open it with ZooStore(path).")
    present, skipped = _networks(folder)
    tables = [folder / name for name in TABLES if (folder / name).exists()] if table is None else [Path(table)]
    if not present and not (skipped and tables):
        only = f", only {listed(skipped)}" if skipped else ""
        raise ValueError(f"{str(folder)!r} holds no checkpoints of networks ({', '.join(known_endings())}){only}.")
    if len(tables) > 1:
        raise ValueError(f"{str(folder)!r} holds {' and '.join(TABLES)}. Choose one with 'table', or delete one.")
    if not tables and file_column != FILE:
        raise ValueError(f"There is no table in {str(folder)!r} whose column {file_column!r} could name files. Give one with 'table'.")
    files, columns, notes, bad = present, dict[str, list[Any]](), list[str](), dict[str, str]()
    if tables:
        known = {*present, *map(stem, present)}
        read = read_table(tables[0], file_column, lambda name: not {PurePosixPath(name).as_posix(), stem(name)}.isdisjoint(known))
        columns, notes = read.columns, read.notes
        rows = _named_rows(folder, tables[0], read.files, columns.get(ROLE, [None] * len(read.files)), present, skip_bad)
        files, bad = rows.files, rows.bad
        columns = {name: [values[number] for number in rows.numbers] for name, values in columns.items()}
        skipped = sorted({*skipped, *rows.skipped} - {*files})
    configs = [_read_config((folder / name).with_name("config.json")) for name in files]
    for name in dict.fromkeys(itertools.chain.from_iterable(configs)):
        columns.setdefault(name, [config.get(name) for config in configs])
    export = _read_export(folder / "export.json")
    # An export has a file for every network.
    named = [None] * len(files) if export else columns.pop(ROLE, [None] * len(files))
    roles = [str(role) if role else None for role in named]
    return Folder(folder, files, roles, columns, export, skipped, bool(tables), bad, notes)


def _read_config(file: Path) -> dict[str, Any]:
    """What the configuration beside a model says of it in single values."""
    found = read_json(file, read_text(file)) if file.is_file() else {}
    return {name: value for name, value in found.items() if isinstance(value, (bool, int, float, str))}


def _read_export(file: Path) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    found = read_json(file, read_text(file))
    if found.get("format") != FORMAT or found.get("version") != VERSION:
        raise ValueError(
            f"Expected {str(file)!r} to be of format {FORMAT!r}, version {VERSION} "
            f"(got {found.get('format')!r}, version {found.get('version')!r}); update wsgraph to read it."
        )
    return found
