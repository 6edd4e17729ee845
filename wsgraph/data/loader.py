"""A data loader that builds batches of parameter graphs at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils import data

from wsgraph.space import ParameterGraph

__all__ = ["DataLoader"]


class BatchedDataset(Protocol):
    """What the loader needs of a dataset."""

    def __len__(self) -> int: ...

    def batch(self, indices: list[int], transform: Callable[[Tensor], Tensor] | None = None, /) -> ParameterGraph: ...


class _Batches(data.Dataset[ParameterGraph]):
    """Indexed by lists of positions; a class, so that workers can receive it."""

    def __init__(self, dataset: BatchedDataset, transform: Callable[[Tensor], Tensor] | None) -> None:
        self.dataset, self.transform = dataset, transform

    def __getitem__(self, indices: list[int]) -> ParameterGraph:
        return self.dataset.batch(indices, self.transform)


def _unchanged(batch: Any) -> Any:
    return batch


class DataLoader(data.DataLoader[ParameterGraph]):
    """Batches of parameter graphs, equal to those of PyG's loader in the same order but built without a loop over networks.

    Args:
        dataset: Dataset with ``batch(indices, transform)``, such as :meth:`wsgraph.data.ZooStore.dataset` returns.
        batch_size: Networks per batch.
        shuffle: Whether every epoch has its own random order.
        drop_last: Whether to leave out a last, smaller batch.
        generator: Source of the random order.
        transform: Applied to the flat checkpoints ``[B, P]`` of every batch before the graphs are built, for instance an augmentation by
            group elements.
        **kwargs: Further options of :class:`torch.utils.data.DataLoader`, such as ``num_workers``.

    Raises:
        ValueError: If ``batch_size`` is not positive.

    Example:
        >>> import tempfile, torch
        >>> from wsgraph import WeightSpace
        >>> from wsgraph.data import ZooStore
        >>> space = WeightSpace.mlp([2, 8, 1])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = ZooStore.create(f"{folder}/zoo", space, space.sample(5), {"test_accuracy": torch.rand(5)})
        ...     move = lambda thetas: space.act(space.sample_symmetry(len(thetas)), thetas)
        ...     for batch in DataLoader(store.dataset(), batch_size=3, transform=move):
        ...         print(batch)
        ParameterGraphBatch(3 x 2-8-1, nodes=33, edges=72, y=[3])
        ParameterGraphBatch(2 x 2-8-1, nodes=22, edges=48, y=[2])
    """

    def __init__(
        self,
        dataset: BatchedDataset,
        batch_size: int = 64,
        *,
        shuffle: bool = False,
        drop_last: bool = False,
        generator: torch.Generator | None = None,
        transform: Callable[[Tensor], Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        order = range(len(dataset))
        sampler: data.Sampler[int] = data.RandomSampler(order, generator=generator) if shuffle else data.SequentialSampler(order)
        super().__init__(
            _Batches(dataset, transform),
            batch_size=None,
            sampler=data.BatchSampler(sampler, batch_size, drop_last),
            generator=generator,
            collate_fn=_unchanged,
            **kwargs,
        )
