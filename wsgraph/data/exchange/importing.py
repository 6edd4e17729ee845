"""Zoos from folders of checkpoints."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wsgraph.data.copies import Copies, Copy
from wsgraph.data.dataset import group_split
from wsgraph.data.exchange.folders import holds_optimizer, open_folder
from wsgraph.data.exchange.notes import Noticed, notes_on
from wsgraph.data.exchange.reading import Reader
from wsgraph.data.exchange.tables import SHOWN, SPACE, as_recorded, read_column
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
    folder = open_folder(source, table)
    unknown = [None] * len(folder.files)
    keys = read_column(SPACE, folder.columns.pop(SPACE)).tolist() if SPACE in folder.columns else unknown
    recorded = (folder.export or {}).get("columns", {})
    columns = {name: as_recorded(read_column(name, values), recorded.get(name)) for name, values in folder.columns.items()}
    geometry = {"stride": stride, "padding": padding, "readout": readout, "pooling": pooling}
    if space is not None and any(option is not None for option in geometry.values()):
        raise ValueError("'stride', 'padding', 'readout' and 'pooling' are for networks whose space is not known; 'space' has its own.")
    named = columns["activation"].tolist() if "activation" in columns else unknown
    reader = Reader(folder, keys, named, activation, space, prefix, geometry)
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
        if notes := list(notes_on(store, folder, columns, read, shares if drawn else None)):
            imported["notes"] = notes
        store.finish(imported=imported)
    reader.tell_assumed()
    if notes:
        warnings.warn(f"{str(path)!r} was imported. " + "\n".join(["Note:", *notes]), ZooWarning, stacklevel=2)
    return store


def _append(store: ZooStore, reader: Reader, columns: dict[str, np.ndarray], *, drawn: bool, progress: bool) -> Noticed:
    """Read all checkpoints, and append those of one architecture and dtype together; copies go to
    the split of the first, if it was drawn."""
    waiting: dict[tuple[WeightSpace, torch.dtype], list[tuple[int, Tensor]]] = {}
    problems: list[str] = []
    read, seen, numbers_seen = Noticed([], [], []), Copies(), list[int]()

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
            if not reader.folder.has_table and holds_optimizer(reader.folder.path / files[number]):
                read.others.append(files[number])
                continue
            problems.append(f"{files[number]!r}: {error}")
            if len(problems) == SHOWN:
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
        many = f"{SHOWN} or more" if len(problems) == SHOWN else f"{len(problems)}"
        raise ValueError(f"{many} of {len(files):,} checkpoints cannot be imported, so nothing is:\n" + "\n".join(problems))
    for kind in [*waiting]:
        append(kind)
    return read
