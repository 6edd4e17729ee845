"""Networks that know of each other: what is learned of one must not be scored on the other."""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from wsgraph.data.copies import Copies, Copy
from wsgraph.data.dataset import ZooDataset
from wsgraph.data.summary import group_labels

__all__ = ["copies_among", "families_of"]


def copies_among(data: ZooDataset) -> list[Copy]:
    """Networks with the weights of another one.

    Args:
        data: The networks.

    Returns:
        Their numbers in the dataset, and those of the first ones with their weights.

    Example:
        >>> import tempfile, torch
        >>> from wsgraph import WeightSpace
        >>> from wsgraph.data import ZooStore
        >>> space = WeightSpace.mlp([2, 3, 1])
        >>> thetas = space.sample(2)[[0, 1, 0]]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     copies_among(ZooStore.create(f"{folder}/zoo", space, thetas, {"kind": [0, 1, 2]}).dataset(target=None))
        [Copy(number=2, first=0)]
    """
    number = {position: i for i, position in enumerate(data.positions.tolist())}
    found, copies, read = [], Copies(), list[int]()
    for space in data.spaces:
        for rows in data.of_space(space).blocks():
            read += [number[position] for position in rows.tolist()]
            found += [Copy(read[copy.number], read[copy.first]) for copy in copies.add(space.unnamed, data.store.read(rows))]
    return found


def families_of(data: ZooDataset, group: str | None = None) -> np.ndarray:
    """Which networks belong together: those with one value of a column or, where none is named, those of one file, such as a target and
    what it follows, and equal ones.

    Args:
        data: The networks.
        group: The column.

    Returns:
        A label for every network ``[n]``, equal for those that belong together.
    """
    if group is not None:
        return data.column(group)
    count = len(data)
    pairs = [(copy.number, copy.first) for copy in copies_among(data)]
    known = {"file": data.column("file")} if "file" in data.store.table else {}
    if (files := group_labels(known).get("file")) is not None:
        _, first, own = np.unique(files, return_index=True, return_inverse=True)
        pairs += zip(range(count), first[own].tolist(), strict=True)
    one, other = np.array(pairs, dtype=int).reshape(-1, 2).T
    labels: np.ndarray = connected_components(coo_array((np.ones(len(one)), (one, other)), (count, count)), directed=False)[1]
    return labels
