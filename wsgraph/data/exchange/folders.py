"""Folders of checkpoints: which files are networks, and what is known of each."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from wsgraph.convert.checkpoint import _LOADERS, _load_file, checkpoint_ending, network_files
from wsgraph.data.copies import listed
from wsgraph.data.exchange.tables import FILE, FORMAT, SHOWN, TABLES, VERSION, read_json, read_table, read_text, repeated_names
from wsgraph.data.folder import PathLike

__all__ = ["Folder", "holds_optimizer", "open_folder", "stem"]


class Folder(NamedTuple):
    """What a folder of checkpoints holds.

    Attributes:
        path: The folder.
        files: What holds a network each, by path from the folder: a file, or the index of several.
        columns: Columns of the table.
        export: What an export says of itself.
        skipped: Files with the ending of a checkpoint that are no network of their own.
        has_table: Whether there is a table.
    """

    path: Path
    files: list[str]
    columns: dict[str, list[Any]]
    export: dict[str, Any] | None
    skipped: list[str]
    has_table: bool


def _networks(folder: Path) -> tuple[list[str], list[str]]:
    """What holds a network each in a folder and those below, and files that look so and do not,
    sorted.

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
        chosen = network_files(files)
        shards = {shard for name in chosen for shard in _shards_of(Path(where) / name)}
        chosen = [name for name in chosen if name not in shards]
        looks = [name for name in files if checkpoint_ending(name) and not name.startswith(".")]
        rest = {*looks} - {*chosen} - shards
        for names, kept in ((chosen, found), ([*rest, *closed], skipped)):
            kept += [(PurePosixPath(Path(where).relative_to(folder).as_posix()) / name).as_posix() for name in names]
    return sorted(found), sorted(skipped)


def _shards_of(index: Path) -> set[str]:
    """Names of the files that an index names; none for anything else, also for one that is
    damaged, which reading it says."""
    if checkpoint_ending(index.name):
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


def _checked_files(folder: Path, table: Path, files: Sequence[str], present: Sequence[str]) -> tuple[list[str], list[str]]:
    """The networks that rows name, and those present that are no networks; raise unless every row
    has one network and the reverse."""
    # One spelling for each file; what leads out of the folder keeps its "..".
    files = [PurePosixPath(name).as_posix() for name in files]
    # By the path as written, not where links lead: the Hub's own cache consists of links.
    if outside := [name for name in files if Path(name).anchor or ".." in Path(name).parts]:
        raise ValueError(
            f"Expected every {FILE!r} in {str(table)!r} to be a path from {str(folder)!r}, without '..' (got {listed(outside)})."
        )
    # A row may name the folder of a network.
    of_folder: dict[str, list[str]] = {}
    for name in present:
        of_folder.setdefault(PurePosixPath(name).parent.as_posix(), []).append(name)
    files = [of_folder[name][0] if len(of_folder.get(name, ())) == 1 else name for name in files]
    if repeated := repeated_names(files):
        raise ValueError(f"{str(table)!r} has several rows of {listed(repeated)}. Leave one of each.")
    if missing := [name for name in files if not (folder / name).is_file()]:
        near = {stem(name): name for name in present}
        hints = [f"{near[stem(name)]!r} is there for {name!r}" for name in missing if stem(name) in near]
        hint = f" ({', '.join(hints[:SHOWN])})" if hints else ""
        raise FileNotFoundError(
            f"{str(table)!r} names files that are not in {str(folder)!r}: {listed(missing)}{hint}. Correct or remove those rows."
        )
    extra = sorted({*present} - {*files})
    others = [name for name in extra if holds_optimizer(folder / name)]
    if extra := [name for name in extra if name not in others]:
        raise ValueError(f"{str(table)!r} has no row for {listed(extra)}. Add rows, or move those files out of {str(folder)!r}.")
    return files, others


def stem(name: str) -> str:
    """A path without its ending and case: files that agree in it are easily mistaken for each
    other."""
    ending = checkpoint_ending(name)
    return (name[: -len(ending)] if ending else name).casefold()


def open_folder(folder: Path, table: PathLike | None) -> Folder:
    """What a folder holds, with its table (default: the one that lies in it)."""
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {str(folder)!r}.")
    if (folder / "zoo.json").exists():
        raise ValueError(f"{str(folder)!r} is a zoo already: open it with ZooStore(path).")
    present, skipped = _networks(folder)
    tables = [folder / name for name in TABLES if (folder / name).exists()] if table is None else [Path(table)]
    if not present and not (skipped and tables):
        raise ValueError(
            f"{str(folder)!r} holds no checkpoints of networks ({', '.join(_LOADERS)}){f', only {listed(skipped)}' if skipped else ''}."
        )
    if len(tables) > 1:
        raise ValueError(f"{str(folder)!r} holds {' and '.join(TABLES)}. Choose one with 'table', or delete one.")
    columns: dict[str, list[Any]] = read_table(tables[0]) if tables else {FILE: present}
    files = columns.pop(FILE)
    if tables:
        files, others = _checked_files(folder, tables[0], files, present)
        skipped = sorted({*skipped, *others} - {*files})
    configs = [_read_config((folder / name).with_name("config.json")) for name in files]
    for name in dict.fromkeys(itertools.chain.from_iterable(configs)):
        columns.setdefault(name, [config.get(name) for config in configs])
    return Folder(folder, files, columns, _read_export(folder / "export.json"), skipped, bool(tables))


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
