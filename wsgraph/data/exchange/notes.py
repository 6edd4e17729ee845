"""What an import should say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from wsgraph._counts import counted
from wsgraph.data.copies import listed
from wsgraph.data.exchange.folders import Folder, stem
from wsgraph.data.exchange.noticed import Noticed, by_reason
from wsgraph.data.exchange.tables import NUMBER, SHOWN, TABLES
from wsgraph.data.store import ZooStore
from wsgraph.data.summary import divided, group_labels

__all__ = ["notes_on"]

_KINDS = "such as states of optimizers, copies in another format, other zoos or links to folders"
_SPLITS = ("train", "val", "test")
_SPELLINGS = {"training": "train", "validation": "val", "valid": "val", "dev": "val", "testing": "test", "eval": "val"}


def notes_on(
    store: ZooStore, folder: Folder, columns: Mapping[str, np.ndarray], read: Noticed, shares: Mapping[str, float] | None
) -> Iterator[str]:
    """What one might otherwise not notice of a zoo that was imported, a sentence each; ``shares``
    if its split was drawn."""
    if skipped := sorted([*folder.skipped, *read.others]):
        what = "file or folder is no network of its own and was skipped", "files or folders are no networks of their own and were skipped"
        yield f"{counted(len(skipped), *what)}, {_KINDS}: {listed(skipped)}."
    if read.bad:
        reasons = by_reason(read.bad)
        told = "; ".join(f"{listed(files)}: {reason.rstrip('.')}" for reason, files in reasons[:SHOWN])
        rest = f"; and {counted(len(reasons) - SHOWN, 'further reason')} in info['imported']['bad']" if len(reasons) > SHOWN else ""
        count = counted(len({*folder.files, *read.bad}), "file")
        yield f"{len(read.bad)} of {count} cannot be imported and {'was' if len(read.bad) == 1 else 'were'} left out. {told}{rest}."
    dropped = [read.label(folder, i) for i, network in enumerate(read.networks) if not network.is_finite] + [*read.diverged]
    if dropped:
        what = "network with NaN or infinite weights was left out", "networks with NaN or infinite weights were left out"
        yield f"{counted(len(dropped), *what)}: {listed(dropped)}."
    yield from (*folder.notes, *read.remarks)
    yield from _notes_on_copies(folder, columns, read)
    if folder.export:
        return  # whose columns are those of a zoo
    if shares is None:
        yield from _notes_on_split(store)
        if across := divided(np.array(folder.files), columns["split"]):
            yield (
                f"Networks of one file lie in several splits: {listed(across)}. They know of each "
                "other, as a "
                "target does of what it follows: give them one split."
            )
    else:
        if lacking := [name for name, share in shares.items() if share > 0 and name not in store.splits]:
            yield (
                f"No network fell to {listed(lacking)} of {counted(len(store), 'network')} and shares "
                f"{', '.join(f'{share:g}' for share in shares.values())}, and training needs "
                "train, val and test. Add networks, choose other "
                "shares (split=...), or name splits in a column 'split'."
            )
        yield from _notes_on_groups(folder, columns)
    lost = {name: sum(value is None or value == "" for value in values) for name, values in folder.columns.items()}
    if lost := {name: count for name, count in lost.items() if count}:
        counts = ", ".join(f"{name!r} of {count}" for name, count in lost.items())
        yield f"Values are missing, which are NaN (of text: empty) in the zoo: {counts} of {counted(len(folder.files), 'network')}."
    for name, values in folder.columns.items():
        texts = [value for value in values if isinstance(value, str) and value]
        others = [text for text in texts if not NUMBER.fullmatch(text)]
        if 0 < len(others) < len(texts) / 2:
            yield (
                f"The column {name!r} is text, for not all of its entries are numbers: {listed(dict.fromkeys(others))}. "
                "Leave entries empty that have no value."
            )
    unread = sorted(file.name for file in folder.path.iterdir() if file.suffix.lower() in (".csv", ".tsv", ".jsonl"))
    if not folder.has_table and unread:
        yield f"{listed(unread)} beside the checkpoints was not read: only {' or '.join(TABLES)} is, or table=..."
    elif not folder.columns and not read.knows_more:
        yield (
            "Nothing is known of the networks but their files: what should be predicted, such as test_accuracy, needs a table metadata.csv."
        )


def _notes_on_copies(folder: Folder, columns: Mapping[str, np.ndarray], read: Noticed) -> Iterator[str]:
    files = folder.files
    if across := read.across(columns):
        splits = {number: columns["split"][read.networks[number].row] for copy in across for number in copy}
        pairs = [" = ".join(f"{read.label(folder, number)} ({splits[number]})" for number in copy) for copy in across]
        yield (
            f"{counted(len(across), 'network has', 'networks have')} the weights of one in another split, so that what is "
            "learned of one is scored on the other: "
            f"{listed(pairs)}. Put equal networks into one split."
        )
    elif read.copies and not folder.export:
        pairs = [f"{read.label(folder, i)} = {read.label(folder, j)}" for i, j in read.copies]
        what = (
            "network has the weights of another one, and is in its split",
            "networks have the weights of another one, and are in its split",
        )
        yield f"{counted(len(pairs), *what)}: {listed(pairs)}."
    copied = {files[read.networks[number].row] for copy in read.copies for number in copy}
    groups: dict[str, list[str]] = {}
    for file in dict.fromkeys(files):
        if file not in copied:
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
    for name, labels in group_labels({"file": np.array(folder.files), **columns}).items():
        if across := divided(labels, columns["split"]):
            advice = "store.set_column('split', group_split(store.column(...), ...))"
            yield (
                f"Checkpoints of {'one folder' if name == 'folder' else f'equal {name!r}'} lie in "
                f"several splits: {listed(across)}. If "
                "they are of one training run, they are near "
                f"copies: put them into one split with {advice}."
            )
            return
