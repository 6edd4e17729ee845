"""Zoos of networks on disk: shards that are mapped into memory, and a table of what is known about each network."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch

from wsgraph._counts import counted
from wsgraph.data.copies import Copies, Copy, listed
from wsgraph.data.dataset import ZooDataset
from wsgraph.data.folder import PathLike
from wsgraph.data.manifest import ZooWarning
from wsgraph.data.writing import SHARD_BYTES, WritableZoo
from wsgraph.space import ParameterGraph, WeightSpace
from wsgraph.space.indexing import Indices

__all__ = ["PathLike", "ZooStore"]


class ZooStore(WritableZoo):
    """A zoo of networks in a folder, in shards that are written once.

    ``shards/NAME.safetensors`` holds the weights of networks of one architecture with their rows of the table, ``spaces/KEY.json`` the
    architectures, ``zoo.json`` how the zoo was made, ``columns.safetensors`` columns that were set later. A shard is there in full or not
    at all, whatever happens to the process that writes it. Opening reads headers alone: weights are mapped into memory and read from disk
    where they are used, and handed back after use, so that a zoo may be larger than memory.

    ``manifest.jsonl`` says of every file how many networks it is about, its size and its checksum,
    as it was written. Opening compares shards with it by their headers, and weight spaces with the
    checksum that is their name; :meth:`verify` compares everything. A shard that was exchanged is not
    read, one that was not written as a file of this zoo is left out with a warning, and nothing is
    read outside of the folder but the files of networks that were appended as :class:`ArrayRows`,
    which :attr:`linked_files` and the representation name.

    Args:
        path: Folder written by :meth:`create`, :meth:`begin` or :meth:`writing`.
        shards: Names of the shards to open (default: all there are).

    Attributes:
        path: The folder.
        shards: Its shards, in the order of their names, which is that of the networks.
        info: How the zoo was made, with counts such as ``dropped_non_finite``.
        dtype: Dtype of the weights; of several, the one that holds all.
        finished: Whether everything that should be in the zoo is there.

    Raises:
        FileNotFoundError: If the folder, ``zoo.json``, the manifest or a weight space is missing.
        ValueError: If a file is damaged, a weight space was changed after it was written, or another
            version wrote the zoo.

    Example:
        >>> import tempfile, torch
        >>> from wsgraph import WeightSpace
        >>> space = WeightSpace.mlp([2, 8, 1])
        >>> table = {"test_accuracy": [0.5, 0.9, 0.8], "split": ["train", "train", "test"]}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = ZooStore.create(f"{folder}/zoo", space, space.sample(3), table)
        ...     print(store.split("train"), store[2])
        ...     store.dataset("train").y
        tensor([0, 1]) ParameterGraph(2-8-1, nodes=11, edges=24)
        tensor([0.5000, 0.9000])
    """

    @classmethod
    def merge(cls, path: PathLike, stores: Sequence[ZooStore]) -> ZooStore:
        """Write the networks of several zoos, in their order, as one.

        The new zoo has the columns that all zoos have, and ``zoo``, the folder name of the zoo that
        each network comes from (with the folders above it where two have one name). Its shards are
        large, however small those of the zoos are: of a single zoo this makes one that is read
        faster. Columns that are left out, and networks that several zoos hold, are warned of.

        Args:
            path: Folder to write, which must not exist.
            stores: The zoos.

        Returns:
            The finished zoo, open for reading.

        Raises:
            FileExistsError: If the path exists.
            OSError: If it cannot be written, with what to do about it.
            ValueError: If no zoo is given, or a column holds strings in one and numbers in another.
        """
        stores = [store for store in stores if store.shards or store.missing or not store.finished]
        if not stores:
            raise ValueError("Expected at least one zoo with networks in 'stores' (got none).")
        if unfinished := [str(store.path) for store in stores if not store.finished or store.missing]:
            raise ValueError(f"Expected zoos that are finished, but {', '.join(map(repr, unfinished))} lacks networks. Finish it first.")
        names = [name for name in stores[0].table if all(name in store.table for store in stores) and name != "zoo"]
        labels = _distinct([store.path for store in stores])
        dropped = sum(store.info["dropped_non_finite"] for store in stores)
        described = [{"zoo": label, "info": store.info} for label, store in zip(labels, stores, strict=True)]
        info = {"merged": described, "dropped_non_finite": dropped}
        copies, owners, splits = Copies(), list[int](), list[Any]()
        shared: list[Copy] = []
        with cls.writing(path, info=info) as merged:
            for number, store in enumerate(stores):
                # Small shards side by side become large ones; those that link to a matrix may be larger than memory.
                for key, run in itertools.groupby(enumerate(store.shards), key=lambda pair: pair[1].space):
                    numbers = [number for number, _ in run]
                    positions = torch.arange(int(store._starts[numbers[0]]), int(store._starts[numbers[-1] + 1]))
                    space = store.load_space(key)
                    for part in positions.split(max(1, SHARD_BYTES // (space.num_params * store.dtype.itemsize))):
                        columns = {name: store.table[name][part.numpy()] for name in names}
                        columns["zoo"] = np.full(len(part), labels[number])
                        thetas = store.read(part)
                        owners += [number] * len(part)
                        splits += columns["split"].tolist() if "split" in columns else [None] * len(part)
                        shared += [copy for copy in copies.add(space.unnamed, thetas) if owners[copy.number] != owners[copy.first]]
                        with warnings.catch_warnings():
                            warnings.simplefilter("ignore", ZooWarning)  # what equals within a zoo is not of this making
                            merged.append(space, thetas, columns)
        left = {label: [name for name in store.table if name not in names] for label, store in zip(labels, stores, strict=True)}
        if left := {label: columns for label, columns in left.items() if columns}:
            told = "; ".join(f"{label}: {listed(columns)}" for label, columns in left.items())
            warnings.warn(
                f"Columns that not all zoos have, or that are named 'zoo', are left out of {str(merged.path)!r} ({told}).",
                ZooWarning,
                stacklevel=2,
            )
        if shared:
            pairs = dict.fromkeys((labels[owners[copy.first]], labels[owners[copy.number]]) for copy in shared)
            across = sum(splits[copy.number] != splits[copy.first] for copy in shared)
            told = listed(f"{first} and {second}" for first, second in pairs)
            warnings.warn(
                f"{counted(len(shared), 'network is', 'networks are')} in several of the zoos that were merged into "
                f"{str(merged.path)!r}, "
                f"{across} of them in another split there ({told}). "
                "Leave them out, or give equal networks one split, before training on some and "
                "scoring on others.",
                ZooWarning,
                stacklevel=2,
            )
        return merged

    def dataset(self, split: str | None = None, target: str | None = "test_accuracy", **options: Any) -> ZooDataset:
        """The networks of a split as a dataset of parameter graphs.

        Args:
            split: Name of the split (default: all networks).
            target: Column that becomes ``y``; ``None`` for graphs without one.
            **options: Further options of :class:`ZooDataset`, such as ``transform``.

        Returns:
            The dataset, for :class:`wsgraph.data.DataLoader` or PyG's.

        Raises:
            ValueError: If there is no such split or column, or the column holds strings.
        """
        return ZooDataset(self, None if split is None else self.split(split), target, **options)

    def of_space(self, space: WeightSpace, target: str | None = None) -> ZooDataset:
        """The networks of one weight space.

        Args:
            space: One of :attr:`spaces`.
            target: Column that becomes ``y`` (default: graphs without one).

        Returns:
            Their dataset, empty if the zoo has none.
        """
        return self.dataset(target=target).of_space(space)

    @overload
    def __getitem__(self, index: int) -> ParameterGraph: ...
    @overload
    def __getitem__(self, index: Indices) -> ZooDataset: ...
    def __getitem__(self, index: int | Indices) -> ParameterGraph | ZooDataset:
        """The graph of one network, or the dataset of several (a slice, positions or a boolean mask); without targets."""
        return self.dataset(target=None)[index]

    def __repr__(self) -> str:
        what = repr(self.space) if len(self._keys) == 1 else f"{len(self._keys)} weight spaces"
        try:
            columns, counts = f", {counted(len(self.table), 'column')}", self.splits
        except (ValueError, OSError):  # of a zoo that is damaged, which is what one wants to look at
            columns, counts = ", columns that cannot be read", {}
        splits = "".join(f", {name} {count:,}" for name, count in counts.items())
        shards = f", {len(self.shards)} shards" if len(self.shards) != 1 else ""
        linked = "".join(f", weights in {str(file)!r}" for file in self.linked_files[:2])
        linked += f" and {len(self.linked_files) - 2} more" if len(self.linked_files) > 2 else ""
        state = "" if self.finished else ", not finished"
        state += f", {counted(len(self.missing), 'shard')} missing" if self.missing else ""
        state += f", {counted(len(self._strays), 'shard')} left out" if self._strays else ""
        return f"ZooStore({str(self.path)!r}, {counted(len(self), 'network')}, {what}{columns}{splits}{shards}{linked}{state})"


def _distinct(paths: Sequence[Path]) -> list[str]:
    """Names of folders, with as many of the folders above as it takes to tell them apart."""
    different = len({*paths})
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len({*names}) == different:
            break
    return names
