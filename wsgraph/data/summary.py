"""What is in a zoo, as one looks at it before training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from wsgraph.data.store import ZooStore

__all__ = ["check_up", "divided", "group_labels"]

_COUNTED = 20
# Names of columns that say what networks have in common.
_GROUPS = ("run", "run_id", "run_name", "trial", "trial_id", "modeldir", "model", "model_id", "model_name", "network", "experiment")


def check_up(store: ZooStore) -> dict[str, Any]:
    """What is in a zoo, as plain data for JSON: what one looks at before training.

    Args:
        store: The zoo.

    Returns:
        ``networks``, their number; ``architectures`` with the networks of each, the most frequent
        first; sizes of ``splits``; ``groups`` of networks that belong together, by their file,
        folder or run, with the number of groups that lie in several splits; of every one of
        ``columns`` the range and quartiles of numbers or the counts of classes, and how many values
        are missing; and what an import noticed: ``duplicates``, files that are ``bad``, with the
        reason, or ``skipped``, and ``notes``.

    Example:
        >>> import tempfile
        >>> from wsgraph import WeightSpace
        >>> from wsgraph.data import ZooStore, check_up
        >>> space = WeightSpace.mlp([2, 8, 1])
        >>> table = {"accuracy": [0.5, 0.7, 0.9, 0.9], "kind": ["a", "b", "b", "b"], "split": ["train", "train", "val", "test"]}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     found = check_up(ZooStore.create(f"{folder}/zoo", space, space.sample(4), table))
        >>> found["splits"], found["architectures"][0]["networks"]
        ({'train': 2, 'val': 1, 'test': 1}, 4)
        >>> found["columns"]["kind"]
        {'values': 'text', 'missing': 0, 'distinct': 2, 'counts': {'b': 3, 'a': 1}}
    """
    imported = store.info.get("imported", {})
    counts: dict[str, int] = {}
    for shard in store.shards:
        counts[shard.space] = counts.get(shard.space, 0) + shard.count
    spaces = [(store.load_space(key), count) for key, count in sorted(counts.items(), key=lambda pair: -pair[1])]
    architectures = [
        {"space": repr(space), "digest": space.digest, "parameters": space.num_params, "networks": count} for space, count in spaces
    ]
    return {
        "zoo": str(store.path),
        "networks": len(store),
        "architectures": architectures,
        "splits": store.splits,
        "groups": [_group(name, labels, store.table.get("split")) for name, labels in group_labels(store.table).items()],
        "columns": {name: _described(column) for name, column in store.table.items() if name != "split"},
        "dropped_non_finite": store.info["dropped_non_finite"],
        **{name: imported.get(name, type(empty)()) for name, empty in (("duplicates", {}), ("bad", {}), ("skipped", []), ("notes", []))},
    }


def group_labels(table: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What networks have in common that may make them near copies of each other: the label of every
    network, by what it is.

    Args:
        table: Columns of a zoo.

    Returns:
        Labels ``[n]``, by the name of a column or ``"folder"``; where several networks, though not
        all, share one.

    Example:
        >>> {name: labels.tolist() for name, labels in group_labels({"file": np.array(["a/1.pt", "a/2.pt", "b/1.pt"])}).items()}
        {'folder': ['a', 'a', 'b']}
    """
    found = {}
    if "file" in table and table["file"].dtype.kind == "U":
        found["file"] = table["file"]
        found["folder"] = np.array([PurePosixPath(file).parent.as_posix() for file in table["file"].tolist()])
    found |= {name: column for name, column in table.items() if name.lower() in _GROUPS}
    sizes = {name: np.unique(labels, return_counts=True)[1] for name, labels in found.items()}
    return {name: labels for name, labels in found.items() if len(sizes[name]) > 1 and sizes[name].max() > 1}


def divided(labels: np.ndarray, split: np.ndarray) -> list[str]:
    """The groups that lie in several splits; networks without a label are in none."""
    names, number = np.unique(labels, return_inverse=True)
    pairs = {*zip(number.tolist(), split.tolist(), strict=True)}
    splits = np.bincount([each for each, _ in pairs], minlength=len(names))
    return [str(name) for name, count in zip(names, splits, strict=True) if count > 1 and str(name) not in (".", "")]


def _group(name: str, labels: np.ndarray, split: np.ndarray | None) -> dict[str, Any]:
    counts = np.unique(labels, return_counts=True)[1]
    across = 0 if split is None else len(divided(labels, split))
    return {"by": name, "groups": len(counts), "largest": int(counts.max()), "in_several_splits": across}


def _described(column: np.ndarray) -> dict[str, Any]:
    """Range or counts of a column."""
    kind = {"U": "text", "b": "booleans"}.get(column.dtype.kind, "numbers")
    is_missing = column == "" if kind == "text" else np.isnan(column) if column.dtype.kind == "f" else np.zeros(len(column), bool)
    values, counts = np.unique(column[~is_missing], return_counts=True)
    described: dict[str, Any] = {"values": kind, "missing": int(is_missing.sum()), "distinct": len(values)}
    if kind == "numbers":
        known = column[~is_missing].astype(float)
        finite = known[np.isfinite(known)]
        if len(finite) < len(known):
            described["infinite"] = len(known) - len(finite)
        if len(finite):
            low, *quartiles, high = np.quantile(finite, [0, 0.25, 0.5, 0.75, 1]).tolist()
            described |= {"min": low, "quartiles": quartiles, "max": high}
    is_class = kind != "numbers" or (len(values) <= _COUNTED and bool((values == np.round(values)).all()))
    if is_class and len(values):
        order = np.argsort(-counts, kind="stable")[:_COUNTED]
        described["counts"] = {_name(values[i]): int(counts[i]) for i in order}
    return described


def _name(value: Any) -> str:
    return str(value) if value.dtype.kind != "f" else f"{value:g}"
