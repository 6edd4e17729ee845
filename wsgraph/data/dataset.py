"""Networks of a zoo as a dataset of parameter graphs with targets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, cast, overload

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch_geometric.data import Batch

from wsgraph._counts import counted
from wsgraph.data.folder import ZooFolder
from wsgraph.data.random import CounterRandom
from wsgraph.data.transforms import WeightTransform
from wsgraph.space import ParameterGraph, WeightSpace
from wsgraph.space.errors import SpaceMismatchError
from wsgraph.space.indexing import Indices, is_single, position_of, positions_of

__all__ = ["Indices", "ParameterStatistics", "ZooDataset", "group_split"]

_BLOCK_BYTES = 2**26


class ParameterStatistics(NamedTuple):
    """Statistics of all entries of a parameter, over networks and neurons alike.

    Args:
        mean: Mean of the entries.
        std: Standard deviation, with the number of entries as divisor.
        minimum: Least entry.
        maximum: Greatest entry.
    """

    mean: float
    std: float
    minimum: float
    maximum: float


class ZooDataset(Dataset[ParameterGraph]):
    """Networks of a zoo as parameter graphs with targets, for PyG's data loader or :class:`wsgraph.data.DataLoader`.

    PyG's loader collates networks of several architectures only where their kernels have one size; wsgraph's pads them. The dataset is that
    of the zoo as it was when it was made: networks that are added later need a new one.

    Args:
        store: The zoo.
        indices: Positions of the networks in it (default: all).
        target: Column that becomes ``y``; ``None`` for graphs without one.
        transform: Applied at every access: one of :mod:`wsgraph.data.transforms`, which change the weights of a batch at once, or any
            other function of a graph, such as PyG's, which is called for every graph.

    Attributes:
        store: The zoo.
        indices: Positions of the networks in the zoo, or ``None`` for all.
        target: The column, or ``None``.
        transform: The transform, or ``None``.

    Raises:
        ValueError: If there is no such column, or it holds strings.
    """

    def __init__(
        self,
        store: ZooFolder,
        indices: Tensor | None = None,
        target: str | None = "test_accuracy",
        transform: Callable[[ParameterGraph], ParameterGraph] | None = None,
    ) -> None:
        self.indices = None if indices is None else positions_of(indices, len(store))
        self.target, self.transform = target, transform
        # The zoo as it is now: networks that are added later may lie between these, and would shift their positions.
        self.store = store.snapshot()
        self._y = None if target is None else self._targets(target)

    def _targets(self, target: str) -> Tensor:
        column = self.column(target)
        if column.dtype.kind == "U":
            raise ValueError(f"Expected a column of numbers as 'target', but {target!r} holds strings.")
        y = torch.from_numpy(column)
        return y.to(torch.promote_types(self.store.dtype, torch.float32)) if y.is_floating_point() else y

    def _chosen(self, chosen: Tensor) -> ZooDataset:
        """The dataset of some of these networks, by their positions in it, else like this one."""
        made = ZooDataset(self.store, self.positions[chosen], None, self.transform)
        made.target, made._y = self.target, None if self._y is None else self._y[chosen]
        return made

    @property
    def positions(self) -> Tensor:
        """Positions of the networks in the zoo ``[n]``."""
        return torch.arange(len(self.store)) if self.indices is None else self.indices

    @property
    def spaces(self) -> list[WeightSpace]:
        """The distinct weight spaces of these networks, in the order of the zoo."""
        shards = self.store.owners(self.positions).unique().tolist()
        return list(dict.fromkeys(self.store.load_space(self.store.shards[shard].space) for shard in shards))

    @property
    def space(self) -> WeightSpace:
        """The weight space of all these networks.

        Raises:
            SpaceMismatchError: If there are several.
        """
        spaces = self.spaces
        if len(spaces) != 1:
            listed = f" ({', '.join(map(repr, spaces[:2]))}, ...)" if spaces else ""
            raise SpaceMismatchError(
                f"{self!r} holds networks of {len(spaces)} architectures{listed}, but one is needed here. Take those of one with "
                "dataset.of_space(dataset.spaces[0]), or use a model that reads mixed batches, such as neural_graph."
            )
        return spaces[0]

    @property
    def y(self) -> Tensor:
        """Targets ``[n]``.

        Raises:
            ValueError: If the dataset was made without a target.
        """
        if self._y is None:
            raise ValueError(f"{self!r} has no targets. Name a column: store.dataset(target='test_accuracy').")
        return self._y

    @property
    def thetas(self) -> Tensor:
        """Flat checkpoints ``[n, P]``, untransformed; for a part of the zoo a copy made at every access, else as ``store.thetas``."""
        return self.store.thetas if self.indices is None else self.store.read(self.indices)

    def column(self, name: str) -> np.ndarray:
        """A column of the zoo's table, for these networks.

        Raises:
            ValueError: If there is none of that name; the message lists those there are.
        """
        column = self.store.column(name)
        return column if self.indices is None else column[self.indices.numpy()]

    def select(self, conditions: Mapping[str, Any]) -> ZooDataset:
        """The networks that meet all conditions on columns of the table.

        Args:
            conditions: For every column a value, a list or set of values, or a function of the column that returns a mask.

        Raises:
            ValueError: If there is no such column, a function returns no mask, or strings are
                looked for among numbers or the reverse.

        Example:
            >>> import tempfile
            >>> from wsgraph.data import ZooStore
            >>> space = WeightSpace.mlp([2, 8, 1])
            >>> table = {"step": [0, 86, 0, 86], "test_accuracy": [0.1, 0.2, 0.1, 0.9]}
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     dataset = ZooStore.create(f"{folder}/zoo", space, space.sample(4), table).dataset()
            ...     dataset.select({"step": 86, "test_accuracy": lambda accuracy: accuracy > 0.5}).indices
            tensor([3])
        """
        mask = np.ones(len(self), dtype=bool)
        for name, wanted in conditions.items():
            column = self.column(name)
            if callable(wanted):
                chosen = np.asarray(wanted(column))
                if chosen.shape != mask.shape or chosen.dtype != bool:
                    raise ValueError(
                        f"Expected the condition on {name!r} to return a mask with one entry per network, {len(self)} "
                        f"(got shape {list(chosen.shape)}, {chosen.dtype})."
                    )
                mask &= chosen
                continue
            values = np.asarray(list(wanted) if isinstance(wanted, (set, frozenset, range, tuple)) else wanted)
            if values.size and (values.dtype.kind == "U") != (column.dtype.kind == "U"):
                holds = "strings" if column.dtype.kind == "U" else "numbers or bools"
                raise ValueError(f"Expected the condition on {name!r}, which holds {holds}, to be of that kind too (got {wanted!r}).")
            # Numbers as the column holds them: 0.1 is not among floats of single precision.
            mask &= np.isin(column, values.astype(column.dtype) if column.dtype.kind == "f" and values.dtype.kind in "fiu" else values)
        return self._chosen(torch.from_numpy(mask))

    def of_space(self, space: WeightSpace) -> ZooDataset:
        """The networks of one weight space."""
        mine = torch.tensor([self.store.load_space(shard.space) == space for shard in self.store.shards])
        return self._chosen(mine[self.store.owners(self.positions)])

    def blocks(self, copies: int = 1) -> tuple[Tensor, ...]:
        """Positions of the networks, as many at a time as take 64 MiB in float64, or one.

        Args:
            copies: How many copies of every network are held at a time.

        Returns:
            Long tensors, in the order of the networks.
        """
        largest = max((space.num_params for space in self.spaces), default=1)
        return self.positions.split(max(1, _BLOCK_BYTES // (8 * copies * largest)))

    def under_names_of(self, spaces: Iterable[WeightSpace]) -> ZooDataset:
        """The same networks, in those of some weight spaces from which theirs differ in names of parts alone.

        Args:
            spaces: The weight spaces, such as those that a model was trained on.
        """
        made = ZooDataset(self.store.under_names_of(spaces), self.indices, None, self.transform)
        made.target, made._y = self.target, self._y
        return made

    def statistics(self, transform: WeightTransform | None = None) -> dict[str, ParameterStatistics]:
        r"""Mean, standard deviation, minimum and maximum of every parameter over networks and entries.

        .. math:: \mu = \frac{1}{n |w|} \sum_{b,i} w_{bi}, \quad \sigma^2 = \frac{1}{n |w|} \sum_{b,i} (w_{bi} - \mu)^2

        One number per parameter, not per entry: permuting the neurons of any network does not change it. Reads block by block.

        Args:
            transform: One of :mod:`wsgraph.data.transforms`, after which the statistics are taken (default: of the networks as stored).

        Returns:
            :class:`ParameterStatistics` by parameter name.

        Raises:
            SpaceMismatchError: If the networks have several architectures.
        """
        space = self.space
        sizes = torch.tensor([param.size for param in space.params], dtype=torch.float64)
        mean, squares = torch.zeros(2, len(sizes), dtype=torch.float64)
        low, high = torch.full_like(mean, torch.inf), torch.full_like(mean, -torch.inf)
        seen = 0
        for positions in self.blocks():
            thetas = self.store.read(positions).double()
            thetas = thetas if transform is None else transform.weights(space, thetas)
            parts = thetas.split([param.size for param in space.params], dim=1)
            count = len(positions)
            own = torch.stack([part.mean() for part in parts])
            # Merging means and squared deviations block by block loses nothing to cancellation, as sums of squares would.
            deviation = torch.stack([(part - centre).square().sum() for part, centre in zip(parts, own, strict=True)])
            squares += deviation + (own - mean).square() * sizes * (seen * count / (seen + count))
            mean += (own - mean) * (count / (seen + count))
            low = torch.minimum(low, torch.stack([part.min() for part in parts]))
            high = torch.maximum(high, torch.stack([part.max() for part in parts]))
            seen += count
        std = (squares / (sizes * seen)).sqrt()
        values = zip(*(each.tolist() for each in (mean, std, low, high)), strict=True)
        return {param.name: ParameterStatistics(*four) for param, four in zip(space.params, values, strict=True)}

    def batch(self, indices: Indices, transform: Callable[..., Any] | None = None) -> ParameterGraph:
        """The batch of several networks, built without a loop over them.

        Args:
            indices: Positions in this dataset: a slice, integers or a boolean mask.
            transform: Applied after the dataset's own, to the flat checkpoints ``[B, P]`` before the graphs are built: a transform of
                :mod:`wsgraph.data.transforms` or a function of a tensor.

        Returns:
            A batch of parameter graphs, equal to what PyG collates from the single ones; networks of several architectures lie
            architecture by architecture.
        """
        positions = positions_of(indices, len(self))
        rows = positions if self.indices is None else self.indices[positions]
        y = None if self._y is None else self._y[positions]
        of_weights = isinstance(self.transform, WeightTransform)
        changes: list[Any] = [*([self.transform] if of_weights else []), *([] if transform is None else [transform])]

        def change(space: WeightSpace, thetas: Tensor) -> Tensor:
            for step in changes:
                thetas = step.weights(space, thetas) if isinstance(step, WeightTransform) else step(thetas)
            return thetas

        batch = self.store.batch(rows, change if changes else None, y)
        if self.transform is None or of_weights:
            return batch
        graphs: list[Any] = cast(Any, batch).to_data_list()
        return cast(ParameterGraph, Batch.from_data_list([self.transform(graph) for graph in graphs]))

    def __len__(self) -> int:
        return len(self.store) if self.indices is None else len(self.indices)

    @overload
    def __getitem__(self, index: int) -> ParameterGraph: ...
    @overload
    def __getitem__(self, index: Indices) -> ZooDataset: ...
    def __getitem__(self, index: int | Indices) -> ParameterGraph | ZooDataset:
        """The graph of one network with ``y`` of shape ``[1]``, or the dataset of several."""
        if not is_single(index):
            return self._chosen(positions_of(cast(Indices, index), len(self)))
        position = position_of(index, len(self))
        row = torch.tensor([position]) if self.indices is None else self.indices[position : position + 1]
        space = self.store.load_space(self.store.shards[int(self.store.owners(row))].space)
        graph = space.graph(self.store.read(row)[0], None if self._y is None else self._y[position])
        return graph if self.transform is None else self.transform(graph)

    def with_targets(self, values: Tensor, target: str | None = None) -> ZooDataset:
        """The same networks with other targets, such as the numbers of classes.

        Args:
            values: A target for every network ``[n]``.
            target: What they are called.

        Returns:
            The dataset with these targets.

        Raises:
            ValueError: If there are more or fewer than networks.
        """
        if values.shape != (len(self),):
            raise ValueError(f"Expected one target per network, {len(self)} (got shape {list(values.shape)}).")
        made = ZooDataset(self.store, self.indices, None, self.transform)
        made.target, made._y = target, values
        return made

    def with_transform(self, transform: Callable[[ParameterGraph], ParameterGraph] | None) -> ZooDataset:
        """The same networks with another transform."""
        made = ZooDataset(self.store, self.indices, None, transform)
        made.target, made._y = self.target, self._y
        return made

    def __repr__(self) -> str:
        spaces = self.spaces
        what = repr(spaces[0]) if len(spaces) == 1 else f"{len(spaces)} weight spaces"
        transform = "" if self.transform is None else f", transform={self.transform!r}"
        return f"{type(self).__name__}({len(self):,} of {counted(len(self.store), 'network')}, {what}, target={self.target!r}{transform})"


def group_split(groups: Any, fractions: Mapping[str, float], *, seed: int = 0) -> np.ndarray:
    """Names of splits for networks, all of a group in one: the checkpoints of a training run are near copies of each other.

    Args:
        groups: What every network belongs to, such as the column ``modeldir`` ``[n]``.
        fractions: Share of the groups in every split, by name; they add up to 1.
        seed: Seed of the order in which groups are dealt out.

    Returns:
        Name of the split of every network ``[n]``.

    Raises:
        ValueError: If the shares are negative or do not add up to 1, or ``groups`` is no flat list
            of values.

    Example:
        >>> group_split(["a", "a", "b", "c", "c", "b"], {"train": 2 / 3, "test": 1 / 3}).tolist()
        ['train', 'train', 'train', 'test', 'test', 'train']
    """
    shares = np.array(list(fractions.values()), dtype=float)
    if not len(shares) or (shares < 0).any() or abs(shares.sum() - 1) > 1e-6:
        raise ValueError(f"Expected 'fractions' to be shares of at least 0 that add up to 1 (got {dict(fractions)}).")
    values = np.asarray(groups)
    if values.ndim != 1 or values.dtype.kind not in "biufU":
        raise ValueError(
            "Expected 'groups' to be a flat list of numbers, bools or strings, one for every "
            "network "
            f"(got shape {list(values.shape)}, dtype {values.dtype})."
        )
    unknown = np.isnan(values) if values.dtype.kind == "f" else values == "" if values.dtype.kind == "U" else np.zeros(len(values), bool)
    if unknown.any():
        raise ValueError(
            f"Expected 'groups' to say what every network belongs to ({int(unknown.sum())} of "
            f"{len(values)} are missing, "
            f"the first is number {int(unknown.argmax())}). Give each of these a group of its "
            f"own, or leave it out."
        )
    names, group = np.unique(values, return_inverse=True)
    rank = CounterRandom(seed).uniform(torch.zeros(1, dtype=torch.long), "group_split", (len(names),))[0].argsort().argsort().numpy()
    stops = np.round(shares.cumsum() * len(names)).astype(int)
    return np.array(list(fractions))[np.searchsorted(stops, rank, side="right")][group]
