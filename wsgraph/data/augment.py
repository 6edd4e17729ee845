"""Zoos made of others: with transformed copies of their networks, or with some of them."""

from __future__ import annotations

import os

import numpy as np
import torch

from wsgraph.data.dataset import ZooDataset
from wsgraph.data.store import ZooStore
from wsgraph.data.transforms import WeightTransform

__all__ = ["augment_zoo", "subset_zoo"]


def augment_zoo(path: str | os.PathLike[str], zoo: ZooStore | ZooDataset, transform: WeightTransform, *, factor: int = 2) -> ZooStore:
    """Write a zoo in which every network is followed by transformed copies of itself, with its row of the table.

    With ``RandomSymmetry((1, 10**i), distribution="uniform")`` and a factor of 2 these are the augmented zoos of Monomial-NFN and MAGEP:
    one moved copy of each network in every split. The published draws are unseeded; these come from the transform's seed. To draw new
    copies at every access instead, give the transform to the dataset.

    Args:
        path: Folder to write, which must not exist.
        zoo: The zoo, or a part of it.
        transform: Called once for every copy.
        factor: Number of networks that each becomes, itself included.

    Returns:
        The new zoo, with the further columns ``original`` (position in the old one) and ``copy`` (0 for the network itself).

    Raises:
        FileExistsError: If the path exists.
        OSError: If it cannot be written, with what to do about it.
        ValueError: If ``factor`` is not positive, or the dataset has a transform of its own.

    Example:
        >>> import tempfile
        >>> from wsgraph import WeightSpace
        >>> from wsgraph.data.transforms import RandomSymmetry
        >>> space = WeightSpace.mlp([2, 8, 1])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = ZooStore.create(f"{folder}/zoo", space, space.sample(3), {"test_accuracy": [0.1, 0.2, 0.3]})
        ...     double = augment_zoo(f"{folder}/double", store, RandomSymmetry((1, 10), distribution="uniform"))
        ...     double.column("test_accuracy").tolist(), double.column("copy").tolist()
        ([0.1, 0.1, 0.2, 0.2, 0.3, 0.3], [0, 1, 0, 1, 0, 1])
    """
    if not isinstance(factor, int) or factor < 1:
        raise ValueError(f"Expected 'factor' to be a positive integer (got {factor!r}).")
    dataset = zoo if isinstance(zoo, ZooDataset) else zoo.dataset(target=None)
    info = {"augmented": {"zoo": dataset.store.path.name, "transform": repr(transform), "factor": factor, "info": dataset.store.info}}
    if dataset.transform is not None:
        raise ValueError(f"Expected a dataset without a transform of its own (got {dataset.transform!r}): compose it with 'transform'.")
    with ZooStore.writing(path, info=info) as store:
        for space in dataset.spaces:
            for part in dataset.of_space(space).blocks(factor):
                thetas = dataset.store.read(part)
                copies = torch.stack([thetas, *(transform.weights(space, thetas) for _ in range(factor - 1))], dim=1)
                rows = part.numpy().repeat(factor)
                table = {name: column[rows] for name, column in dataset.store.table.items()}
                store.append(space, copies.flatten(0, 1), {**table, "original": rows, "copy": np.tile(np.arange(factor), len(part))})
    return store


def subset_zoo(path: str | os.PathLike[str], zoo: ZooDataset) -> ZooStore:
    """Write some networks of a zoo as a zoo of their own, with all columns.

    Args:
        path: Folder to write, which must not exist.
        zoo: The networks, such as ``store[positions]``; networks of one architecture will lie side by side.

    Returns:
        The new zoo, with the further column ``original``: positions in the old one.

    Raises:
        FileExistsError: If the path exists.
        OSError: If it cannot be written, with what to do about it.

    Example:
        >>> import tempfile
        >>> from wsgraph import WeightSpace
        >>> space = WeightSpace.mlp([2, 8, 1])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = ZooStore.create(f"{folder}/zoo", space, space.sample(3), {"test_accuracy": [0.1, 0.2, 0.3]})
        ...     subset_zoo(f"{folder}/two", store[[0, 2]]).column("test_accuracy").tolist()
        [0.1, 0.3]
    """
    with ZooStore.writing(path, info={"subset": {"zoo": zoo.store.path.name, "info": zoo.store.info}}) as store:
        for space in zoo.spaces:
            for rows in zoo.of_space(space).blocks():
                table = {name: column[rows.numpy()] for name, column in zoo.store.table.items()}
                store.append(space, zoo.store.read(rows), {**table, "original": rows.numpy()})
    return store
