"""What an import should say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np

from wsgraph.data.copies import Copy, listed
from wsgraph.data.exchange.folders import Folder, stem
from wsgraph.data.exchange.tables import NUMBER, SHOWN, TABLES
from wsgraph.data.store import ZooStore

__all__ = ["Noticed", "notes_on"]

_KINDS = "such as states of optimizers, copies in another format, other zoos or links to folders"
_SPLITS = ("train", "val", "test")
_SPELLINGS = {"training": "train", "validation": "val", "valid": "val", "dev": "val", "testing": "test", "eval": "val"}
# Names of columns that say what networks have in common.
_GROUPS = ("run", "run_id", "run_name", "trial", "trial_id", "modeldir", "model", "model_id", "model_name", "network", "experiment")


class Noticed(NamedTuple):
    """What was noticed while checkpoints were read, all by the number of their row.

    Attributes:
        copies: Networks with the weights of another.
        dropped: Networks with NaN or infinite weights.
        others: Files that hold no network but the state of an optimizer.
    """

    copies: list[Copy]
    dropped: list[int]
    others: list[str]


def notes_on(
    store: ZooStore, folder: Folder, columns: Mapping[str, np.ndarray], read: Noticed, shares: Mapping[str, float] | None
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
        others = [text for text in texts if not NUMBER.fullmatch(text)]
        if 0 < len(others) < len(texts) / 2:
            yield (
                f"The column {name!r} is text, for not all of its entries are numbers: {listed(dict.fromkeys(others))}. "
                "Leave entries empty that have no value."
            )
    unread = sorted(file.name for file in folder.path.iterdir() if file.suffix.lower() in (".csv", ".jsonl"))
    if not folder.has_table and unread:
        yield f"{listed(unread)} beside the checkpoints was not read: only {' or '.join(TABLES)} is, or table=..."
    elif not folder.columns:
        yield (
            "Nothing is known of the networks but their files: what should be predicted, such as test_accuracy, needs a table metadata.csv."
        )


def _notes_on_copies(folder: Folder, columns: Mapping[str, np.ndarray], read: Noticed) -> Iterator[str]:
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
            groups.setdefault(stem(file), []).append(file)
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
        told = ", ".join(f"{name!r} ({count})" for name, count in [*unknown.items()][:SHOWN])
        yield (
            "Networks in splits other than train, val and test are not trained or scored on: "
            f"{told}{'; ' if hints else ''}{', '.join(hints)}."
        )
    if lacking := [name for name in _SPLITS if name not in counts]:
        yield f"The column 'split' names no network of {listed(lacking)}, and training needs train, val and test."


def _notes_on_groups(folder: Folder, columns: Mapping[str, np.ndarray]) -> Iterator[str]:
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
