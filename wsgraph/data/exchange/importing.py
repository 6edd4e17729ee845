"""Zoos from folders of files."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wsgraph._counts import counted
from wsgraph.convert.errors import NonFiniteWeightsError, cause_of
from wsgraph.data.copies import Copies, Copy, listed
from wsgraph.data.dataset import group_split
from wsgraph.data.exchange.folders import Folder, holds_optimizer, open_folder
from wsgraph.data.exchange.network_columns import FORMAT_COLUMN, network_columns
from wsgraph.data.exchange.notes import notes_on
from wsgraph.data.exchange.noticed import Noticed, ReadNetwork, by_reason
from wsgraph.data.exchange.reading import Reader, ReadingOptions
from wsgraph.data.exchange.tables import FILE, ROLE, SHOWN, SPACE, as_recorded, read_column
from wsgraph.data.folder import PathLike
from wsgraph.data.manifest import ZooWarning
from wsgraph.data.public.base import tracked
from wsgraph.data.store import ZooStore
from wsgraph.space import WeightSpace

__all__ = ["import_zoo"]

_POPULATION = 1000
_HELD_BYTES = 2**28


def import_zoo(
    path: PathLike,
    source: PathLike,
    *,
    activation: str | Sequence[str] | None = None,
    space: WeightSpace | Sequence[WeightSpace] | None = None,
    prefix: str | None = None,
    entry: str | None = None,
    layout: str = "out_in",
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] | None = None,
    readout: str | None = None,
    pooling: str | Sequence[str | None] | None = None,
    table: PathLike | None = None,
    file_column: str = FILE,
    skip_bad: bool = False,
    split: Sequence[float] = (0.6, 0.1, 0.3),
    seed: int = 0,
    progress: bool = True,
) -> ZooStore:
    """Make a zoo from a folder of files of any format and a table of what is known about them; no
    code stored in a file is run.

    Files are those of :func:`wsgraph.load_networks`, of one format or several, anywhere below the
    folder: state dicts, ONNX, Keras, Flax, Stable-Baselines3 agents, NNet and formats of plugins.
    Beside ``NAME/model.safetensors``, single values of ``NAME/config.json`` become columns. A
    sharded network is its index, such as ``NAME/model.safetensors.index.json``; states of
    optimizers and what else training leaves beside networks are none, and skipped.

    A file of several networks, such as an agent, becomes as many rows, with the column ``role``
    (``"policy"``, ``"q1_target"``), one split for all of them, and columns of what the file says of
    each in single values, such as ``algorithm`` and ``hyperparameters.gamma``. ``format`` is a
    column where there are several.

    The table is ``metadata.jsonl`` or ``metadata.csv`` in the folder, as Hugging Face data sets
    have, with the column ``file_name`` (the path from the folder, with or without its ending) and
    any others: numbers, booleans or text; a column ``role`` chooses one network of a file.
    Semicolons and tabs divide columns as well as commas. Missing numbers become NaN, missing text
    is empty; booleans of which some are missing are text, ``true``, ``false`` or empty. Without a
    table, networks lie in the order of their paths.

    State dicts are plain chains of layers, read by :func:`wsgraph.from_state_dict`, unless
    ``space`` says otherwise. Their activation is not seen in weights and never guessed. Networks of
    several architectures are grouped by architecture, in parts of 1,000; the column ``file`` keeps
    where each comes from.

    What one should know of the zoo is warned of, and kept in ``info["imported"]["notes"]``: files
    that were skipped, networks that were left out, equal networks (of which a split that is drawn
    keeps all in one), splits without a network or that training does not read, missing values.
    :func:`check_up` sums up what there is.

    A folder of :func:`export_zoo` gives the zoo that was exported: its weight spaces, columns and order of networks, and nothing else.

    Args:
        path: Folder of the new zoo, which must not exist.
        source: Folder of the files.
        activation: Activation of the networks of which neither their file, a column ``activation``
            nor a configuration says it, as for :func:`wsgraph.from_state_dict`.
        space: The weight space of all state dicts, with their keys, or several, of which each is of
            the one with its keys and shapes: for residual networks that of :func:`wsgraph.trace`.
        prefix: What the keys of the network begin with, where state dicts hold more; see
            :func:`wsgraph.list_networks`.
        entry: Which state dict of files with several; see :func:`wsgraph.load_checkpoint`.
        layout: ``"in_out"`` where state dicts hold weights ``[in, out]``, as for
            :func:`wsgraph.from_state_dict`.
        stride: Strides of all networks with convolutions, as for :func:`wsgraph.from_state_dict`; what is not given is assumed, marked in
            the weight spaces, and said in a warning.
        padding: Their paddings.
        readout: What is between their convolutions and linear layers.
        pooling: Their pooling.
        table: Table to read instead, a ``.csv``, ``.tsv`` or ``.jsonl`` file anywhere.
        file_column: The column of the table that names files.
        skip_bad: Leave out files that cannot be read, rows without a file and files without a row;
            they are listed with the reason in ``info["imported"]["bad"]`` and counted in a note.
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
        ValueError: If files cannot be read (the first are named), nothing says their activation,
            files have no row, a row names a file outside of the folder, or a column mixes types.
            Nothing is left of the new zoo.

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
    folder = open_folder(source, table, file_column, skip_bad=skip_bad)
    unknown = [None] * len(folder.files)
    keys = read_column(SPACE, folder.columns.pop(SPACE)).tolist() if SPACE in folder.columns else unknown
    recorded = (folder.export or {}).get("columns", {})
    columns = {name: as_recorded(read_column(name, values), recorded.get(name)) for name, values in folder.columns.items()}
    geometry = {"stride": stride, "padding": padding, "readout": readout, "pooling": pooling}
    spaces = () if space is None else (space,) if isinstance(space, WeightSpace) else tuple(space)
    if spaces and any(option is not None for option in geometry.values()):
        raise ValueError("'stride', 'padding', 'readout' and 'pooling' are for networks whose space is not known; 'space' has its own.")
    named = columns["activation"].tolist() if "activation" in columns else unknown
    options = ReadingOptions(activation, spaces, prefix, entry, layout, geometry)
    reader = Reader(folder, keys, named, options, lenient=skip_bad)
    shares = dict(zip(("train", "val", "test"), split, strict=True))
    drawn = not folder.export and "split" not in columns
    if not folder.export:
        columns.setdefault("file", np.array(folder.files))
    if drawn:
        # Networks of one file belong together, such as a target and what it follows.
        numbers = {file: number for number, file in enumerate(dict.fromkeys(folder.files))}
        columns["split"] = group_split(np.array([numbers[file] for file in folder.files]), shares, seed=seed)
    imported: dict[str, Any] = {"folder": source.resolve().name, "info": (folder.export or {}).get("info")}
    with ZooStore.writing(path, info={"imported": imported}) as store:
        read = _append(store, reader, columns, drawn=drawn, skip_bad=skip_bad, progress=progress)
        if known := network_columns(read, columns, folder.columns):
            store.set_columns(known)
            read.knows_more = not {*known} <= {ROLE, FORMAT_COLUMN}
        imported |= read.described(folder, columns)
        if notes := list(notes_on(store, folder, columns, read, shares if drawn else None)):
            imported["notes"] = notes
        store.finish(imported=imported, **({"dropped_non_finite": len(read.diverged)} if read.diverged else {}))
    reader.tell_assumed()
    if notes:
        warnings.warn(f"{str(path)!r} was imported. " + "\n".join(["Note:", *notes]), ZooWarning, stacklevel=2)
    return store


class _Splits:
    """The drawn splits: a file with a copy goes where the first one is, unless it was written."""

    def __init__(self, folder: Folder, columns: dict[str, np.ndarray]) -> None:
        self.rows: dict[str, list[int]] = {}
        for row, file in enumerate(folder.files):
            self.rows.setdefault(file, []).append(row)
        self.files, self.column, self.settled = folder.files, columns["split"], set[str]()

    def join(self, row: int, firsts: Sequence[int]) -> None:
        """Settle the split of a row's file, whose networks are copies of those of other rows."""
        file = self.files[row]
        elsewhere = [first for first in firsts if self.files[first] != file]
        if elsewhere and file not in self.settled:
            self.column[self.rows[file]] = self.column[elsewhere[0]]
        self.settled.add(file)


def _append(store: ZooStore, reader: Reader, columns: dict[str, np.ndarray], *, drawn: bool, skip_bad: bool, progress: bool) -> Noticed:
    """Read all files, and append networks of one architecture and dtype together."""
    waiting: dict[tuple[WeightSpace, torch.dtype], list[tuple[int, Tensor]]] = {}
    folder, read, seen, finite = reader.folder, Noticed(), Copies(), list[int]()
    splits = _Splits(folder, columns) if drawn else None

    def append(kind: tuple[WeightSpace, torch.dtype]) -> None:
        numbers, thetas = zip(*waiting.pop(kind), strict=True)
        rows = [read.networks[number].row for number in numbers]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ZooWarning)  # on copies, which are told with their names in the end
            store.append(kind[0], torch.stack(thetas), {name: column[rows] for name, column in columns.items()})
        read.stored.extend(numbers)

    files, in_order, held = folder.files, reader.keeps_order, 0
    for row in tracked(range(len(files)), "importing") if progress else range(len(files)):
        try:
            networks = reader.read(row)
        except (ImportError, MemoryError):
            raise  # which no file is to blame for
        except Exception as error:  # readers, those of plugins among them, raise what they do
            if cause_of(error, NonFiniteWeightsError):
                read.diverged |= {files[row]: None}
            elif not folder.has_table and holds_optimizer(folder.path / files[row]):
                read.others.append(files[row])
            else:
                role = folder.roles[row]
                read.bad[files[row] + (f" ({role})" if role else "")] = reader.reason(row, error)
                if not skip_bad and len(read.bad) == SHOWN:
                    break
            continue
        if read.bad and not skip_bad:
            continue  # nothing will be kept: the rest is read for what else is wrong
        firsts: list[int] = []
        for network in networks:
            number = len(read.networks)
            is_finite = bool(network.theta.isfinite().all())
            read.networks.append(ReadNetwork(row, network.name, network.info, is_finite))
            if is_finite:
                finite.append(number)
                for copy in seen.add(network.space, network.theta[None]):
                    read.copies.append(Copy(number, finite[copy.first]))
                    firsts.append(read.networks[finite[copy.first]].row)
        if splits is not None:
            splits.join(row, firsts)
        for number, network in enumerate(networks, len(read.networks) - len(networks)):
            kind = network.space, network.theta.dtype
            if held + network.theta.nbytes > _HELD_BYTES or (in_order and kind not in waiting):
                held = 0
                for each in [*waiting]:
                    append(each)
            held += network.theta.nbytes
            waiting.setdefault(kind, []).append((number, network.theta))
            if len(waiting[kind]) == _POPULATION:
                held -= _POPULATION * network.theta.nbytes
                append(kind)
    read.bad |= folder.bad
    if read.bad and not (skip_bad and read.networks):
        many = f"{SHOWN} or more" if len(read.bad) == SHOWN and not skip_bad else f"{len(read.bad)}"
        told = "\n".join(f"{listed(files)}: {reason}" for reason, files in by_reason(read.bad)[:SHOWN])
        advice = "" if skip_bad else "\nLeave out what cannot be imported with skip_bad=True (--skip-bad)."
        raise ValueError(
            f"{many} of {counted(len({*files, *folder.bad}), 'checkpoint')} cannot be imported, so nothing is:\n{told}{advice}"
        )
    for kind in [*waiting]:
        append(kind)
    if reader.options.activation is not None and not reader.used_activation:
        read.remarks.append("'activation' was not needed: the files, the table or configurations say those of all networks.")
    for text, named in [*reader.remarks.items()][:SHOWN]:
        read.remarks.append(f"{named[0]!r}{f' and {len(named) - 1} more files' if len(named) > 1 else ''}: {text}")
    for first, others in reader.renamed.items():
        read.remarks.append(
            f"{counted(len(others), 'file names', 'files name')} the parameters of an architecture otherwise than {first!r}, whose names "
            f"the zoo has: {listed(others)}. What they compute stays the same."
        )
    if (rest := len(reader.remarks) - SHOWN) > 0:
        read.remarks.append(f"Readers of files warned of {rest} more things; load_networks says them of one file.")
    return read
