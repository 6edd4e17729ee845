"""A data loader that builds batches of parameter graphs at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils import data

from wsgraph.space import ParameterGraph

__all__ = ["DataLoader", "process_place"]


class BatchedDataset(Protocol):
    """What the loader needs of a dataset."""

    def __len__(self) -> int: ...

    def batch(self, indices: list[int], transform: Callable[[Tensor], Tensor] | None = None, /) -> ParameterGraph: ...


class _Batches(data.Dataset[ParameterGraph]):
    """Indexed by shares of batches; a class, so that workers can receive it."""

    def __init__(self, dataset: BatchedDataset, transform: Callable[[Tensor], Tensor] | None) -> None:
        self.dataset, self.transform = dataset, transform

    def __getitem__(self, share: tuple[list[int], int | None]) -> ParameterGraph:
        indices, counted = share
        batch = self.dataset.batch(indices, self.transform)
        if counted is not None:
            batch.num_counted = counted
        return batch


class _Shares(data.BatchSampler):
    """What this process takes of every batch: of several processes, such as those of a distributed training, each its own part.

    All processes draw the same order. Where there are fewer networks left than processes, those that go without take one that does not
    count, because all must take as many steps.
    """

    def __iter__(self) -> Iterator[tuple[list[int], int | None]]:  # type: ignore[override]
        rank, processes = process_place()
        for batch in super().__iter__():
            mine = batch[rank::processes]
            yield mine or batch[:1], len(mine) if processes > 1 else None


def process_place() -> tuple[int, int]:
    """Rank of this process and number of all, of a distributed run; (0, 1) otherwise."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return (torch.distributed.get_rank(), torch.distributed.get_world_size()) if distributed else (0, 1)


def _unchanged(batch: Any) -> Any:
    return batch


class DataLoader(data.DataLoader[ParameterGraph]):
    """Batches of parameter graphs, equal to those of PyG's loader in the same order but built without a loop over networks.

    In a distributed run every process gets its share of every batch, ``batch_size`` being that of all together; ``batch.num_counted`` says
    how many of its networks count (0 where a process takes one only to keep in step). The store is mapped, not copied, by every process.

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
            sampler=_Shares(sampler, batch_size, drop_last),
            generator=generator,
            collate_fn=_unchanged,
            **kwargs,
        )
