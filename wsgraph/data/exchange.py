"""Zoos from folders of checkpoints and back: safetensors, a table and weight spaces, as the Hugging Face Hub keeps data sets."""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from wsgraph.convert import load_checkpoint
from wsgraph.convert.chain import check_tied
from wsgraph.convert.checkpoint import _LOADERS, _load_file, checkpoint_ending, network_files
from wsgraph.convert.networks import chosen_network, matching_network
from wsgraph.convert.state_dict import read_network
from wsgraph.data.copies import Copies, Copy, listed
from wsgraph.data.dataset import ZooDataset, group_split
from wsgraph.data.manifest import ZooWarning
from wsgraph.data.public.base import tracked
from wsgraph.data.shards import checked_columns
from wsgraph.data.store import PathLike, ZooStore
from wsgraph.files import explained_errors, new_folder
from wsgraph.space import WeightSpace
from wsgraph.space.assumed import tell_assumed

__all__ = ["export_zoo", "import_zoo"]

_FORMAT = "wsgraph.export"
_VERSION = 1
_FILE, _SPACE = "file_name", "weight_space"
_TABLES = ("metadata.jsonl", "metadata.csv")
_POPULATION = 1000
_BLOCK_BYTES = 2**26
_HELD_BYTES = 2**28
_MOST_RUNS = 1000
_SHOWN = 5
_LISTED = 20

# Digits that 64 bits hold, and no zeros in front: other rows of digits are names, which numbers would change.
_INTEGER = re.compile(r"[+-]?(0|[1-9]\d{0,17})")
_NUMBER = re.compile(r"[+-]?((0|[1-9]\d{0,17})(\.\d*)?|\.\d+)(e[+-]?\d+)?|[+-]?(nan|inf|infinity)", re.IGNORECASE)


# == Tables ==


def _repeated(names: Iterable[str]) -> list[str]:
    """Names that occur more than once."""
    return [name for name, count in Counter(names).items() if count > 1]


def _read_json(file: Path, text: str, where: str = "") -> dict[str, Any]:
    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if repeated := _repeated(name for name, _ in pairs):
            raise ValueError(f"{str(file)!r} says {listed(repeated)} twice{where}. Leave one of each.")
        return dict(pairs)

    try:
        found = json.loads(text, object_pairs_hook=distinct)
    except json.JSONDecodeError as error:
        raise ValueError(f"{str(file)!r} is not JSON{where} ({error}).") from None
    if not isinstance(found, dict):
        raise ValueError(f"Expected {str(file)!r} to hold an object{where}, such as {{{_FILE!r}: ...}} (got {type(found).__name__}).")
    return found


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(file)!r} is not text in UTF-8 ({error}).") from None


def _read_table(file: Path) -> dict[str, list[Any]]:
    """Columns of a table in a file, with ``None`` where there is no value."""
    if not file.is_file():
        raise FileNotFoundError(f"There is no table {str(file)!r}.")
    kind = file.suffix.lower()
    if kind not in (".jsonl", ".csv"):
        raise ValueError(f"Expected a table ending in .jsonl or .csv (got {file.name!r}).")
    text = _read_text(file)
    if kind == ".jsonl":
        rows = [_read_json(file, line, f" in line {i}") for i, line in enumerate(text.split("\n"), 1) if line.strip()]
        columns = {name: [row.get(name) for row in rows] for name in dict.fromkeys(itertools.chain.from_iterable(rows))}
    else:
        columns = _read_csv(file, text)
        names = (_FILE, _SPACE, "split", "activation")
        columns = {name: texts if name in names else _from_text(texts) for name, texts in columns.items()}
    if not all(isinstance(name, str) and name for name in columns.get(_FILE, [None])):
        raise ValueError(f"Expected a column {_FILE!r} in {str(file)!r}, with the path of every checkpoint from its folder.")
    return columns


def _read_csv(file: Path, text: str) -> dict[str, list[Any]]:
    try:
        # As people write by hand, with a space behind every comma.
        header, *rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True) if row] or [[]]
    except csv.Error as error:
        raise ValueError(f"{str(file)!r} is not a CSV file ({error}).") from None
    header = [name.strip() for name in header]
    if _FILE not in header:
        sign = next((name for sign, name in ((";", "semicolons"), ("\t", "tabs")) if any(sign in column for column in header)), None)
        hint = f" Its columns are divided by {sign}: write commas, and points in numbers." if sign else ""
        raise ValueError(
            f"Expected a column {_FILE!r} in {str(file)!r}, with the path of every checkpoint from its folder "
            f"(its columns: {listed(header)}).{hint}"
        )
    if repeated := _repeated(header):
        raise ValueError(f"{str(file)!r} has several columns {listed(repeated)}. Rename or remove all but one.")
    if ragged := [i for i, row in enumerate(rows, 1) if len(row) != len(header)]:
        raise ValueError(f"Expected as many entries as columns in every row of {str(file)!r} (row {ragged[0]} has others).")
    columns = {name: [row[i] for row in rows] for i, name in enumerate(header)}
    # Numbers of rows, as pandas writes them in front.
    if (unnamed := columns.pop("", None)) is not None and unnamed != [str(i) for i in range(len(rows))]:
        raise ValueError(f"A column of {str(file)!r} has no name (it begins with {listed(unnamed, 3)}). Name or remove it.")
    if not rows:
        raise ValueError(f"{str(file)!r} has names of columns, but no rows.")
    return columns


def _from_text(texts: Sequence[Any]) -> list[Any]:
    """The values of a column of a CSV file: numbers or booleans where all entries are some, else text."""
    entries = [text for text in texts if text]
    convert: Callable[[str], Any]
    if all(_INTEGER.fullmatch(text) for text in entries):
        convert = int
    elif all(_NUMBER.fullmatch(text) for text in entries):
        convert = float
    elif all(text.lower() in ("true", "false") for text in entries):
        convert = "true".__eq__
    else:
        return list(texts)
    return [convert(text.lower()) if text else None for text in texts]


def _column(name: str, values: Sequence[Any]) -> np.ndarray:
    """A column with its type; where values are missing, NaN among numbers, which booleans then become, and empty text among text."""
    kinds = {type(value) for value in values}
    missing = type(None) in kinds
    kinds -= {type(None)}
    if kinds == {str}:
        column = np.array([value or "" for value in values])
    elif kinds == {int} and not missing:
        try:
            # Said, because numpy makes floats of integers that fit no common type.
            column = np.array(values, dtype=np.uint64 if max(values) >= 2**63 else np.int64)
        except OverflowError:
            raise ValueError(f"Expected the column {name!r} to hold integers of 64 bits; write larger ones as text.") from None
    elif kinds <= {int, float} or kinds == {bool}:
        if large := [value for value in values if isinstance(value, int) and abs(value) > 2**53]:
            raise ValueError(
                f"Expected the column {name!r}, which has fractions or lacks values, to hold integers that a float can "
                f"hold, up to 2**53 (got {large[0]}). Write them as text."
            )
        column = np.array([math.nan if value is None else value for value in values])
    else:
        mixed = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise ValueError(f"Expected the column {name!r} to hold numbers, booleans or text alone (got {mixed}). Leave it out, or divide it.")
    return checked_columns({name: column}, len(values))[name]


def _as_recorded(column: np.ndarray, dtype: str | None) -> np.ndarray:
    """A column in the dtype that it was exported from, unless that would change it now."""
    if dtype is None or column.dtype.kind == "U" or np.dtype(dtype).kind not in "biuf":
        return column
    with np.errstate(all="ignore"):
        recorded = column.astype(dtype)
    return recorded if np.array_equal(recorded, column, equal_nan=True) else column


# == Import ==


class _Folder(NamedTuple):
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


def _holds_optimizer(file: Path) -> bool:
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
            f"Expected every {_FILE!r} in {str(table)!r} to be a path from {str(folder)!r}, without '..' (got {listed(outside)})."
        )
    # A row may name the folder of a network.
    of_folder: dict[str, list[str]] = {}
    for name in present:
        of_folder.setdefault(PurePosixPath(name).parent.as_posix(), []).append(name)
    files = [of_folder[name][0] if len(of_folder.get(name, ())) == 1 else name for name in files]
    if repeated := _repeated(files):
        raise ValueError(f"{str(table)!r} has several rows of {listed(repeated)}. Leave one of each.")
    if missing := [name for name in files if not (folder / name).is_file()]:
        near = {_stem(name): name for name in present}
        hints = [f"{near[_stem(name)]!r} is there for {name!r}" for name in missing if _stem(name) in near]
        hint = f" ({', '.join(hints[:_SHOWN])})" if hints else ""
        raise FileNotFoundError(
            f"{str(table)!r} names files that are not in {str(folder)!r}: {listed(missing)}{hint}. Correct or remove those rows."
        )
    extra = sorted({*present} - {*files})
    others = [name for name in extra if _holds_optimizer(folder / name)]
    if extra := [name for name in extra if name not in others]:
        raise ValueError(f"{str(table)!r} has no row for {listed(extra)}. Add rows, or move those files out of {str(folder)!r}.")
    return files, others


def _stem(name: str) -> str:
    """A path without its ending and case: files that agree in it are easily mistaken for each
    other."""
    ending = checkpoint_ending(name)
    return (name[: -len(ending)] if ending else name).casefold()


def _open_folder(folder: Path, table: PathLike | None) -> _Folder:
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {str(folder)!r}.")
    if (folder / "zoo.json").exists():
        raise ValueError(f"{str(folder)!r} is a zoo already: open it with ZooStore(path).")
    present, skipped = _networks(folder)
    tables = [folder / name for name in _TABLES if (folder / name).exists()] if table is None else [Path(table)]
    if not present and not (skipped and tables):
        raise ValueError(
            f"{str(folder)!r} holds no checkpoints of networks ({', '.join(_LOADERS)}){f', only {listed(skipped)}' if skipped else ''}."
        )
    if len(tables) > 1:
        raise ValueError(f"{str(folder)!r} holds {' and '.join(_TABLES)}. Choose one with 'table', or delete one.")
    columns: dict[str, list[Any]] = _read_table(tables[0]) if tables else {_FILE: present}
    files = columns.pop(_FILE)
    if tables:
        files, others = _checked_files(folder, tables[0], files, present)
        skipped = sorted({*skipped, *others} - {*files})
    configs = [_read_config((folder / name).with_name("config.json")) for name in files]
    for name in dict.fromkeys(itertools.chain.from_iterable(configs)):
        columns.setdefault(name, [config.get(name) for config in configs])
    return _Folder(folder, files, columns, _read_export(folder / "export.json"), skipped, bool(tables))


def _read_config(file: Path) -> dict[str, Any]:
    """What the configuration beside a model says of it in single values."""
    found = _read_json(file, _read_text(file)) if file.is_file() else {}
    return {name: value for name, value in found.items() if isinstance(value, (bool, int, float, str))}


def _read_export(file: Path) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    found = _read_json(file, _read_text(file))
    if found.get("format") != _FORMAT or found.get("version") != _VERSION:
        raise ValueError(
            f"Expected {str(file)!r} to be of format {_FORMAT!r}, version {_VERSION} "
            f"(got {found.get('format')!r}, version {found.get('version')!r}); update wsgraph to read it."
        )
    return found


class _Reader:
    """Reads checkpoints as flat vectors; spaces are kept, since thousands of networks share one."""

    def __init__(
        self,
        folder: _Folder,
        keys: Sequence[str | None],
        named: Sequence[Any],
        activation: str | Sequence[str] | None,
        space: WeightSpace | None,
        prefix: str | None = None,
        geometry: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self.keys, self.space = folder, keys, space
        self.prefix, self.geometry = prefix, dict(geometry or {})
        said = [bool(own) and isinstance(own, str) for own in named]
        self.activations = [own if own_said else activation for own, own_said in zip(named, said, strict=True)]
        self._known: dict[Any, WeightSpace] = {key: self._load(key) for key in dict.fromkeys(keys) if key}
        free = [i for i, key in enumerate(keys) if not key]
        if activation is not None and (space is not None or all(said[i] for i in free)):
            raise ValueError("'activation' is for weights of which nothing else says it; here 'space', the table or a configuration does.")
        if space is not None and not free:
            raise ValueError(f"'space' is for networks whose weight space is not known; the table of {str(folder.path)!r} names them.")
        if space is None and (silent := [folder.files[i] for i in free if self.activations[i] is None]):
            raise ValueError(
                f"Nothing says which activation {listed(silent)} have, and weights alone do not "
                "show it, although it decides their "
                "symmetries. Give 'activation', such as relu, or a column 'activation'; or 'space' for networks that are no plain chain."
            )

    def _load(self, key: str) -> WeightSpace:
        spaces = self.folder.path / "spaces"
        file = spaces / f"{key}.json"
        if not isinstance(key, str) or not re.fullmatch(r"\w+", key) or not file.is_file():
            raise ValueError(f"Expected the column {_SPACE!r} to name files in {str(spaces)!r} (got {key!r}, which is not there).")
        try:
            text = _read_text(file)
            if re.fullmatch("[0-9a-f]{16}", key) and hashlib.sha256(text.encode()).hexdigest()[:16] != key:
                raise ValueError("It was changed after it was written: it is not the space that the weights are of. Fetch it again.")
            return WeightSpace.from_json(text)
        except ValueError as error:
            raise ValueError(f"{str(file)!r} is damaged. {error}") from None

    @property
    def keeps_order(self) -> bool:
        """Whether networks can lie in the order of their rows: spaces are known, and few enough shards hold them."""
        return all(self.keys) and sum(1 for _ in itertools.groupby(self.keys)) <= _MOST_RUNS

    def read(self, number: int) -> tuple[WeightSpace, Tensor]:
        """The weight space and flat checkpoint of a network."""
        state = load_checkpoint(self.folder.path / self.folder.files[number])
        space = self._known[key] if (key := self.keys[number]) else self.space
        if space is None:
            state = chosen_network(state, self.prefix)
            check_tied(state)
            space = self._space_of(state, self.activations[number])
        else:
            state = matching_network(state, [key for param in space.params for key in param.keys], self.prefix)
        theta = space.flatten(state)
        space.check_thetas(theta, batched=False)
        return space, theta

    def tell_assumed(self) -> None:
        """Warn, once for all spaces that networks were read in, of a geometry that nobody gave."""
        tell_assumed(dict.fromkeys(self._known.values()))

    def _space_of(self, state: Mapping[str, Tensor], activation: Any) -> WeightSpace:
        activation = activation if isinstance(activation, str) else tuple(activation)
        key = (activation, *((name, tensor.shape, tensor.dtype) for name, tensor in state.items()))
        if key not in self._known:
            # Shapes alone: whether weights are finite is left to the store, which counts those that are not.
            shapes = {name: tensor.to("meta") for name, tensor in state.items()}
            geometry = self.geometry if any(tensor.ndim > 2 for tensor in shapes.values()) else {}
            self._known[key], _ = read_network(shapes, activation, **geometry)
        return self._known[key]


def import_zoo(
    path: PathLike,
    source: PathLike,
    *,
    activation: str | Sequence[str] | None = None,
    space: WeightSpace | None = None,
    prefix: str | None = None,
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] | None = None,
    readout: str | None = None,
    pooling: str | Sequence[str | None] | None = None,
    table: PathLike | None = None,
    split: Sequence[float] = (0.6, 0.1, 0.3),
    seed: int = 0,
    progress: bool = True,
) -> ZooStore:
    """Make a zoo from a folder of checkpoints and a table of what is known about them; no code stored in a file is run.

    Checkpoints are files of :func:`wsgraph.load_checkpoint` anywhere below the folder, also
    ``NAME/model.safetensors`` with ``NAME/config.json``, whose single values become columns. A
    sharded network is its index, such as ``NAME/model.safetensors.index.json``; states of
    optimizers and what else training leaves beside networks are none, and skipped. The table is
    ``metadata.jsonl`` or ``metadata.csv`` in the folder, as Hugging Face data sets have, with the
    column ``file_name`` (the path from the folder) and any others: numbers, booleans or text.
    Missing numbers and booleans become NaN, missing text is empty. Without a table, checkpoints lie
    in the order of their paths.

    Networks are plain chains of layers, read by :func:`wsgraph.from_state_dict`, unless ``space`` says otherwise. Their activation is not
    seen in weights and never guessed. Networks of several architectures are grouped by architecture, in parts of 1,000; the column
    ``file`` keeps where each comes from.

    What one should know of the zoo is warned of, and kept in ``info["imported"]["notes"]``: files
    that were skipped, networks that were left out, equal networks (of which a split that is drawn
    keeps all in one), splits without a network or that training does not read, missing values.

    A folder of :func:`export_zoo` gives the zoo that was exported: its weight spaces, columns and order of networks, and nothing else.

    Args:
        path: Folder of the new zoo, which must not exist.
        source: Folder of the checkpoints.
        activation: Activation of the networks of which neither a column ``activation`` nor a configuration says it, as for
            :func:`wsgraph.from_state_dict`.
        space: The weight space of all networks, with the keys of the checkpoints: for residual networks the one of :func:`wsgraph.trace`,
            for strides or pooling that of :func:`wsgraph.from_state_dict` with these options.
        prefix: What the keys of the network begin with, where the checkpoints hold more; see :func:`wsgraph.list_networks`.
        stride: Strides of all networks with convolutions, as for :func:`wsgraph.from_state_dict`; what is not given is assumed, marked in
            the weight spaces, and said in a warning.
        padding: Their paddings.
        readout: What is between their convolutions and linear layers.
        pooling: Their pooling.
        table: Table to read instead, a ``.jsonl`` or ``.csv`` file anywhere.
        split: Shares of the splits train, val and test, dealt out at random where there is no column ``split``. Checkpoints of one training
            run are near copies of each other: for these set the column with :func:`group_split`.
        seed: Seed of that.
        progress: Whether to show a progress bar for what takes more than two seconds.

    Returns:
        The zoo. Networks with NaN or infinite weights are left out and counted in ``info["dropped_non_finite"]``.

    Raises:
        FileExistsError: If the path exists.
        FileNotFoundError: If there is no such folder or table, or a row of the table has no file.
        OSError: If the zoo cannot be written, with what to do about it.
        ValueError: If checkpoints cannot be read (the first are named), nothing says their activation, files have no row, a row names a
            file outside of the folder, or a column mixes types. Nothing is left of the new zoo.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Path(f"{folder}/runs").mkdir()
        ...     for i in range(10):
        ...         torch.save(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1)).state_dict(), f"{folder}/runs/{i}.pt")
        ...     rows = "".join(f"{i}.pt,0.{i}\\n" for i in range(10))
        ...     _ = Path(f"{folder}/runs/metadata.csv").write_text(f"file_name,test_accuracy\\n{rows}")
        ...     zoo = import_zoo(f"{folder}/zoo", f"{folder}/runs", activation="tanh")
        ...     print(zoo.space)
        ...     zoo.splits, zoo.column("test_accuracy")[:3].tolist(), zoo.column("file")[:2].tolist()
        WeightSpace(2-3-1, linear | linear, tanh, 13 parameters)
        ({'train': 6, 'test': 3, 'val': 1}, [0.0, 0.1, 0.2], ['0.pt', '1.pt'])
    """
    source = Path(source)
    if len(split) != 3:
        raise ValueError(f"Expected 'split' to be three shares, of train, val and test (got {split!r}).")
    folder = _open_folder(source, table)
    unknown = [None] * len(folder.files)
    keys = _column(_SPACE, folder.columns.pop(_SPACE)).tolist() if _SPACE in folder.columns else unknown
    recorded = (folder.export or {}).get("columns", {})
    columns = {name: _as_recorded(_column(name, values), recorded.get(name)) for name, values in folder.columns.items()}
    geometry = {"stride": stride, "padding": padding, "readout": readout, "pooling": pooling}
    if space is not None and any(option is not None for option in geometry.values()):
        raise ValueError("'stride', 'padding', 'readout' and 'pooling' are for networks whose space is not known; 'space' has its own.")
    named = columns["activation"].tolist() if "activation" in columns else unknown
    reader = _Reader(folder, keys, named, activation, space, prefix, geometry)
    shares = dict(zip(("train", "val", "test"), split, strict=True))
    drawn = not folder.export and "split" not in columns
    if not folder.export:
        columns.setdefault("file", np.array(folder.files))
    if drawn:
        columns["split"] = group_split(np.arange(len(folder.files)), shares, seed=seed)
    imported: dict[str, Any] = {"folder": source.resolve().name, "info": (folder.export or {}).get("info")}
    with ZooStore.writing(path, info={"imported": imported}) as store:
        read = _append(store, reader, columns, drawn=drawn, progress=progress)
        if folder.skipped or read.others:
            imported["skipped"] = sorted([*folder.skipped, *read.others])
        if notes := list(_notes(store, folder, columns, read, shares if drawn else None)):
            imported["notes"] = notes
        store.finish(imported=imported)
    reader.tell_assumed()
    if notes:
        warnings.warn(f"{str(path)!r} was imported. " + "\n".join(["Note:", *notes]), ZooWarning, stacklevel=2)
    return store


class _Read(NamedTuple):
    """What was noticed while checkpoints were read, all by the number of their row.

    Attributes:
        copies: Networks with the weights of another.
        dropped: Networks with NaN or infinite weights.
        others: Files that hold no network but the state of an optimizer.
    """

    copies: list[Copy]
    dropped: list[int]
    others: list[str]


def _append(store: ZooStore, reader: _Reader, columns: dict[str, np.ndarray], *, drawn: bool, progress: bool) -> _Read:
    """Read all checkpoints, and append those of one architecture and dtype together; copies go to
    the split of the first, if it was drawn."""
    waiting: dict[tuple[WeightSpace, torch.dtype], list[tuple[int, Tensor]]] = {}
    problems: list[str] = []
    read, seen, numbers_seen = _Read([], [], []), Copies(), list[int]()

    def append(kind: tuple[WeightSpace, torch.dtype]) -> None:
        numbers, thetas = zip(*waiting.pop(kind), strict=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ZooWarning)  # on copies, which are told with their names in the end
            store.append(kind[0], torch.stack(thetas), {name: column[list(numbers)] for name, column in columns.items()})

    files, in_order, held = reader.folder.files, reader.keeps_order, 0
    for number in tracked(range(len(files)), "importing") if progress else range(len(files)):
        try:
            space, theta = reader.read(number)
        except (ValueError, TypeError, OSError) as error:
            if not reader.folder.has_table and _holds_optimizer(reader.folder.path / files[number]):
                read.others.append(files[number])
                continue
            problems.append(f"{files[number]!r}: {error}")
            if len(problems) == _SHOWN:
                break
            continue
        if problems:
            continue  # nothing will be kept: the rest is read for what else is wrong
        if not theta.isfinite().all():
            read.dropped.append(number)
        else:
            numbers_seen.append(number)
            for copy in seen.add(space, theta[None]):
                first = numbers_seen[copy.first]
                read.copies.append(Copy(number, first))
                if drawn:
                    columns["split"][number] = columns["split"][first]
        kind = space, theta.dtype
        if held + theta.nbytes > _HELD_BYTES or (in_order and kind not in waiting):
            held = 0
            for each in [*waiting]:
                append(each)
        held += theta.nbytes
        waiting.setdefault(kind, []).append((number, theta))
        if len(waiting[kind]) == _POPULATION:
            held -= _POPULATION * theta.nbytes
            append(kind)
    if problems:
        many = f"{_SHOWN} or more" if len(problems) == _SHOWN else f"{len(problems)}"
        raise ValueError(f"{many} of {len(files):,} checkpoints cannot be imported, so nothing is:\n" + "\n".join(problems))
    for kind in [*waiting]:
        append(kind)
    return read


# == What an import should say ==

_KINDS = "such as states of optimizers, copies in another format, other zoos or links to folders"
_SPLITS = ("train", "val", "test")
_SPELLINGS = {"training": "train", "validation": "val", "valid": "val", "dev": "val", "testing": "test", "eval": "val"}
# Names of columns that say what networks have in common.
_GROUPS = ("run", "run_id", "run_name", "trial", "trial_id", "modeldir", "model", "model_id", "model_name", "network", "experiment")


def _notes(
    store: ZooStore, folder: _Folder, columns: Mapping[str, np.ndarray], read: _Read, shares: Mapping[str, float] | None
) -> Iterator[str]:
    """What one might otherwise not notice of a zoo that was imported, a sentence each; ``shares``
    if its split was drawn."""
    if skipped := sorted([*folder.skipped, *read.others]):
        yield (f"{len(skipped)} files or folders are no networks of their own and were skipped, {_KINDS}: {listed(skipped)}.")
    if read.dropped:
        yield f"{len(read.dropped)} networks with NaN or infinite weights were left out: {listed(folder.files[i] for i in read.dropped)}."
    yield from _notes_on_copies(folder, columns, read)
    if folder.export:
        return  # whose columns are those of a zoo
    if shares is None:
        yield from _notes_on_split(store)
    else:
        if lacking := [name for name, share in shares.items() if share > 0 and name not in store.splits]:
            yield (
                f"No network fell to {listed(lacking)} of {len(store)} networks and shares "
                f"{', '.join(f'{share:g}' for share in shares.values())}, and training needs "
                "train, val and test. Add networks, choose other "
                "shares (split=...), or name splits in a column 'split'."
            )
        yield from _notes_on_groups(folder, columns)
    lost = {name: sum(value is None or value == "" for value in values) for name, values in folder.columns.items()}
    if lost := {name: count for name, count in lost.items() if count}:
        counts = ", ".join(f"{name!r} of {count}" for name, count in lost.items())
        yield f"Values are missing, which are NaN (of text: empty) in the zoo: {counts} of {len(folder.files)} networks."
    for name, values in folder.columns.items():
        texts = [value for value in values if isinstance(value, str) and value]
        others = [text for text in texts if not _NUMBER.fullmatch(text)]
        if 0 < len(others) < len(texts) / 2:
            yield (
                f"The column {name!r} is text, for not all of its entries are numbers: {listed(dict.fromkeys(others))}. "
                "Leave entries empty that have no value."
            )
    unread = sorted(file.name for file in folder.path.iterdir() if file.suffix.lower() in (".csv", ".jsonl"))
    if not folder.has_table and unread:
        yield f"{listed(unread)} beside the checkpoints was not read: only {' or '.join(_TABLES)} is, or table=..."
    elif not folder.columns:
        yield (
            "Nothing is known of the networks but their files: what should be predicted, such as test_accuracy, needs a table metadata.csv."
        )


def _notes_on_copies(folder: _Folder, columns: Mapping[str, np.ndarray], read: _Read) -> Iterator[str]:
    files, splits = folder.files, columns.get("split")
    across = [] if splits is None else [copy for copy in read.copies if splits[copy.number] != splits[copy.first]]
    if across:
        pairs = [f"{files[i]} ({splits[i]}) = {files[j]} ({splits[j]})" for i, j in across] if splits is not None else []
        yield (
            f"{len(across)} networks have the weights of one in another split, so that what is "
            "learned of one is scored on the other: "
            f"{listed(pairs)}. Put equal networks into one split."
        )
    elif read.copies and not folder.export:
        pairs = [f"{files[i]} = {files[j]}" for i, j in read.copies]
        yield f"{len(pairs)} networks have the weights of another one, and are in its split: {listed(pairs)}."
    copied = {number for copy in read.copies for number in copy}
    groups: dict[str, list[str]] = {}
    for number, file in enumerate(files):
        if number not in copied:
            groups.setdefault(_stem(file), []).append(file)
    if alike := [" and ".join(names) for names in groups.values() if len(names) > 1]:
        yield f"Files that differ in ending or case alone, and in their weights: {listed(alike)}. If they are of one network, keep one."


def _notes_on_split(store: ZooStore) -> Iterator[str]:
    counts = store.splits
    if store.table["split"].dtype.kind != "U":
        yield f"The column 'split' holds no names ({listed(counts)}), and training reads those of train, val and test: write names."
        return
    if unknown := {name: count for name, count in counts.items() if name not in _SPLITS}:
        meant = {name: _SPELLINGS.get(name.strip().lower(), name.strip().lower()) for name in unknown}
        hints = [f"{name!r} is {known!r} there" for name, known in meant.items() if known in _SPLITS]
        told = ", ".join(f"{name!r} ({count})" for name, count in [*unknown.items()][:_SHOWN])
        yield (
            "Networks in splits other than train, val and test are not trained or scored on: "
            f"{told}{'; ' if hints else ''}{', '.join(hints)}."
        )
    if lacking := [name for name in _SPLITS if name not in counts]:
        yield f"The column 'split' names no network of {listed(lacking)}, and training needs train, val and test."


def _notes_on_groups(folder: _Folder, columns: Mapping[str, np.ndarray]) -> Iterator[str]:
    groups = {"one folder": np.array([PurePosixPath(file).parent.as_posix() for file in folder.files])}
    groups |= {f"equal {name!r}": column for name, column in columns.items() if name.lower() in _GROUPS}
    for what, group in groups.items():
        names, number, counts = np.unique(group, return_inverse=True, return_counts=True)
        if len(names) == 1 or counts.max() == 1:
            continue
        divided = [
            name for i, name in enumerate(names) if str(name) not in (".", "") and len({*columns["split"][number == i].tolist()}) > 1
        ]
        if divided:
            advice = "store.set_column('split', group_split(store.column(...), ...))"
            yield (
                f"Checkpoints of {what} lie in several splits: {listed(map(str, divided))}. If "
                "they are of one training run, they are near "
                f"copies: put them into one split with {advice}."
            )
            return


# == Export ==


def _to_json(value: Any) -> str:
    """A value of a table as JSON: NaN as null; infinity as ``Infinity``, which is no strict JSON, but read by Python, Arrow and pandas."""
    return "null" if value != value else json.dumps(value, ensure_ascii=False)


def _card(title: str, dataset: ZooDataset, counts: Mapping[str, int], columns: Mapping[str, np.ndarray]) -> str:
    """The card of a data set on the Hugging Face Hub: a header that the Hub reads, and what people want to know."""
    spaces = [f"- `{key}`: {count:,} networks, `{dataset.store.load_space(key)!r}`" for key, count in counts.items()]
    if len(spaces) > _LISTED:
        spaces[_LISTED:] = [f"- and {len(spaces) - _LISTED} further weight spaces"]
    kinds = {"U": "text", "b": "booleans"}
    listed = [f"- `{name}`: {kinds.get(column.dtype.kind, column.dtype.name)}" for name, column in columns.items()]
    return f"""---
pretty_name: {json.dumps(title)}
tags:
- model-zoo
- weight-space-learning
- wsgraph
configs:
- config_name: default
  data_files: metadata.jsonl
---

# {title}

A zoo of {len(dataset):,} trained neural networks with what is known about each.

`networks/` holds the state dict of every network as safetensors, `metadata.jsonl` a row for each, `spaces/` the architectures: neuron
groups, layers and their symmetries, as JSON.

## Architectures

{chr(10).join(spaces)}

## Columns

- `{_FILE}`: the state dict of the network
- `{_SPACE}`: its architecture in `spaces/`
{chr(10).join(listed)}

## Reading

One network as a PyTorch state dict:

```python
from safetensors.torch import load_file

module.load_state_dict(load_file("networks/000000.safetensors"))
```

All of them, as a zoo of wsgraph:

```python
from wsgraph.data import import_zoo

zoo = import_zoo("zoo", "path/to/this/folder")
```
"""


def _state_dicts(dataset: ZooDataset) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Number and state dict of every network, shard by shard."""
    store, positions = dataset.store, dataset.positions
    owners = store.owners(positions)
    for shard in owners.unique().tolist():
        space, dtype = store.load_space(store.shards[shard].space), store.shards[shard].dtype
        for part in (owners == shard).nonzero().flatten().split(max(1, _BLOCK_BYTES // max(1, space.num_params * dtype.itemsize))):
            thetas = store.read(positions[part]).to(dtype)
            tensors = space.unflatten(thetas)
            if not torch.equal(space.flatten(tensors).to(dtype), thetas):
                # Weights that moved since they were stored as, say, bfloat16 may need more digits than that.
                tensors = space._views(thetas)
            # Files hold tied weights under all their keys, as load_state_dict wants them, and safetensors no memory twice.
            tied = {alias for param in space.params for alias in param.aliases}
            for i, number in enumerate(part.tolist()):
                yield number, {key: tensor[i].clone() if key in tied else tensor[i] for key, tensor in tensors.items()}


def export_zoo(
    zoo: ZooStore | ZooDataset,
    path: PathLike,
    *,
    select: Mapping[str, Any] | None = None,
    split: str | None = None,
    progress: bool = True,
) -> Path:
    """Write the networks of a zoo as safetensors files with a table, in a folder that can be uploaded to the Hugging Face Hub as it is.

    ``networks/000123.safetensors`` holds the state dict of a network, for ``safetensors.torch.load_file`` and ``load_state_dict``;
    ``metadata.jsonl`` its row, with ``file_name``, ``weight_space`` and all columns of the zoo (NaN as null); ``spaces/KEY.json`` the
    weight spaces, ``export.json`` the types of the columns and how the zoo was made, ``README.md`` a card with what is there. The folder
    appears complete or not at all. :func:`import_zoo` makes the same zoo of it.

    Args:
        zoo: The zoo, or a part of it, in the order in which to write it.
        path: Folder to write, which must not exist.
        select: Conditions on columns, as for :meth:`ZooDataset.select` (default: all networks).
        split: Name of the split (default: all networks).
        progress: Whether to show a progress bar for what takes more than two seconds.

    Returns:
        Path of the folder.

    Raises:
        FileExistsError: If the path exists.
        OSError: If it cannot be written, with what to do about it.
        ValueError: If no network is chosen, the dataset has a transform, or a column is called as one of those written.

    Example:
        >>> import tempfile
        >>> from wsgraph.data import ZooStore, export_zoo, import_zoo
        >>> space = WeightSpace.mlp([2, 8, 1])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     zoo = ZooStore.create(f"{folder}/zoo", space, space.sample(3), {"test_accuracy": [0.5, math.nan, 0.8]})
        ...     made = export_zoo(zoo, f"{folder}/shared")
        ...     print(sorted(entry.name for entry in made.iterdir()))
        ...     print(json.loads((made / "metadata.jsonl").read_text().splitlines()[1]))
        ...     torch.equal(import_zoo(f"{folder}/again", made).thetas, zoo.thetas)
        ['README.md', 'export.json', 'metadata.jsonl', 'networks', 'spaces']
        {'file_name': 'networks/000001.safetensors', 'weight_space': '2d56f7ac0ff54e7b', 'test_accuracy': None}
        True
    """
    dataset = zoo if isinstance(zoo, ZooDataset) else zoo.dataset(target=None)
    if dataset.transform is not None:
        raise ValueError(f"Expected a dataset without a transform, which files would not show (got {dataset.transform!r}).")
    dataset = dataset.select({**(select or {}), **({} if split is None else {"split": split})})
    store, path = dataset.store, Path(path).resolve()
    if not len(dataset):
        raise ValueError(f"No network of {str(store.path)!r} is chosen (its splits: {', '.join(store.splits) or 'none'}).")
    columns = {name: column[dataset.positions.numpy()] for name, column in store.table.items()}
    if taken := [name for name in (_FILE, _SPACE) if name in columns]:
        raise ValueError(f"A column of the zoo has the name {taken[0]!r}, which the table of an export uses itself.")
    keys = [store.shards[shard].space for shard in store.owners(dataset.positions).tolist()]
    files = [f"networks/{number:06d}.safetensors" for number in range(len(dataset))]
    counts = {key: keys.count(key) for key in dict.fromkeys(keys)}
    export = {
        "format": _FORMAT,
        "version": _VERSION,
        "columns": {name: column.dtype.name for name, column in columns.items() if column.dtype.kind != "U"},
        "info": store.info,
    }
    written: dict[str, Any] = {_FILE: files, _SPACE: keys, **{name: column.tolist() for name, column in columns.items()}}
    entries = [[f"{json.dumps(name)}: {_to_json(value)}" for value in values] for name, values in written.items()]
    with new_folder(path) as folder:
        with explained_errors(path):
            for inner in ("networks", "spaces"):
                (folder / inner).mkdir()
            for key in counts:
                (folder / "spaces" / f"{key}.json").write_text(store.load_space(key).to_json(), encoding="utf-8")
            rows = "".join(f"{{{', '.join(row)}}}\n" for row in zip(*entries, strict=True))
            (folder / "metadata.jsonl").write_text(rows, encoding="utf-8")
            (folder / "export.json").write_text(json.dumps(export, indent=2), encoding="utf-8")
            (folder / "README.md").write_text(_card(path.name, dataset, counts, columns), encoding="utf-8")
        numbers = tracked(files, "exporting") if progress else files
        for _, (number, state) in zip(numbers, _state_dicts(dataset), strict=True):
            with explained_errors(path):
                save_file(state, folder / files[number], {"format": "pt"})
        os.sync()  # all files at once: waiting for each of thousands takes far longer
    return path
