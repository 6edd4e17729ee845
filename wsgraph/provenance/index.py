"""An index of the networks of a zoo, on disk, by which those are found that are like a given one."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from wsgraph._counts import counted
from wsgraph.data import ZooStore
from wsgraph.data.folder import PathLike
from wsgraph.data.public.base import tracked
from wsgraph.data.shards import Shard
from wsgraph.files import new_folder, prepare_folder, write_atomically, write_json
from wsgraph.provenance.features import FEATURES, Features, WeightFeatures
from wsgraph.provenance.yardstick import Point
from wsgraph.space import SpaceMismatchError, WeightSpace
from wsgraph.tasks.trained import TrainedModel

__all__ = ["Group", "Index", "Match"]

_VERSION = 1
_FITTED = 2000  # networks of an architecture that features are fitted to
_FITTED_BYTES = 2**28
_BLOCK_BYTES = 2**26
_COMPARED = 2**26  # distances that are held at a time
_ALIGNED, _SPARE = 3, 8  # networks that are aligned for every one that is wanted, and more
_EQUAL = 1e-4  # distance up to rounding to float32


@dataclass(frozen=True)
class Match:
    """A network of a zoo that is like another one.

    Attributes:
        position: Its position in the zoo.
        distance: How far it is: 0 for an equal network, 1 for one whose entries were shuffled.
        aligned: Whether that is the distance after alignment, not one of features.
    """

    position: int
    distance: float
    aligned: bool


class Group:
    """The networks of a zoo that are compared with each other, by their features.

    Args:
        features: The features.
        positions: Positions of the networks in the zoo ``[n]``.
        vectors: Their vectors ``[n, D]``.
    """

    def __init__(self, features: Features, positions: np.ndarray, vectors: Tensor) -> None:
        self.features, self.positions, self.vectors = features, positions, vectors
        self._squares = vectors.square().sum(1)

    def __len__(self) -> int:
        return len(self.positions)

    def position(self, number: int) -> int:
        """The position in the zoo of a network by its number here."""
        return int(self.positions[number])

    def nearest(self, vectors: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The nearest networks to given vectors.

        Args:
            vectors: Vectors ``[Q, D]``.
            count: Number of networks wanted for each.

        Returns:
            Distances ``[Q, k]``, ascending, and the numbers of the networks in this group.
        """
        vectors, some = vectors.to(self.vectors), min(len(self), count + _SPARE)
        found = []
        for queries in vectors.split(max(1, _COMPARED // max(1, len(self)))):
            numbers = torch.addmm(self._squares, queries, self.vectors.T, alpha=-2).topk(some, largest=False).indices
            # Anew: the difference of squares is too coarse for those that are very near.
            distances = (self.vectors[numbers] - queries[:, None]).norm(dim=2)
            order = distances.argsort(dim=1, stable=True)[:, :count]
            found.append((distances.gather(1, order), numbers.gather(1, order)))
        distances, numbers = (torch.cat(parts) for parts in zip(*found, strict=True))
        return distances, numbers


class Index:
    r"""Features of all networks of a zoo, kept in a folder, by which networks like a given one are found.

    An index that exists is opened, and what is missing is added: networks that were appended to the zoo since. Features of a shard are
    kept when they are whole, so that an interrupted index goes on where it was. The zoo itself stays as it is.

    With features ``"weights"`` (:class:`~wsgraph.provenance.features.WeightFeatures`), the nearest networks by features are aligned
    with the one that is looked for, 3 times as many as are wanted and 8 more, or until as many equal ones were found.

    Args:
        zoo: The zoo.
        path: Folder of the index (default: that of the zoo with ``.index`` behind its name, and the features' name unless it is weights).
        features: ``"weights"``, within an architecture; ``"statistics"`` of weights, across architectures; ``"model"``, of a trained one.
        model: The model of features ``"model"``.
        dimensions: Numbers kept of every network, at most; of the weights of an architecture.
        seed: Seed of projections, and of the order of alignment.

    Raises:
        ValueError: If there is an index of another kind, or of another zoo, or a network is not finite.
        OSError: If the folder cannot be written.

    Example:
        >>> import tempfile, torch
        >>> from wsgraph import WeightSpace
        >>> from wsgraph.data import ZooStore
        >>> from wsgraph.search import Index
        >>> space, generator = WeightSpace.mlp([2, 8, 1]), torch.Generator().manual_seed(0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     zoo = ZooStore.create(f"{folder}/zoo", space, space.sample(50, generator=generator), {})
        ...     index = Index(zoo)
        ...     moved = space.act(space.sample_symmetry(generator=generator), zoo.read(torch.tensor([7])))
        ...     index, index.search(space, moved, top=1)[0][0].position
        (Index(50 networks, weights), 7)
    """

    def __init__(
        self,
        zoo: ZooStore,
        path: PathLike | None = None,
        *,
        features: str = "weights",
        model: TrainedModel | None = None,
        dimensions: int = 128,
        seed: int = 0,
    ) -> None:
        self._kind = FEATURES.find(features)
        self.zoo, self.features = zoo.snapshot(), features
        named = ".index" if features == "weights" else f".{features}.index"
        self.path = Path(path) if path is not None else zoo.path.resolve().with_name(f"{zoo.path.resolve().name}{named}")
        self._dimensions, self.seed = dimensions, seed
        self._groups: dict[str, Group] = {}
        self._open()
        self._key_of = {space.unnamed: self._key(space) for space in reversed(self.zoo.spaces)}
        fits = self._fits(model)
        todo = [shard for shard in self.zoo.shards if not self._file(shard).exists()]
        self._compute(fits, todo)
        self._loaded_fits = fits

    # == On disk ==

    def _open(self) -> None:
        file = self.path / "index.json"
        about = {"version": _VERSION, "features": self.features, "dimensions": self._dimensions, "seed": self.seed}
        if not file.exists():
            if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
                raise ValueError(f"Expected an index or a new folder in {str(self.path)!r}, but something else is there. Choose another.")
            prepare_folder(self.path)
            write_json(file, about)
        found = json.loads(file.read_text(encoding="utf-8"))
        if wrong := [name for name, value in about.items() if found.get(name) != value]:
            told = ", ".join(f"{name} {found.get(name)!r}, not {about[name]!r}" for name in wrong)
            raise ValueError(f"The index {str(self.path)!r} was made with {told}. Open it so, or choose another folder for a new one.")

    def _key(self, space: WeightSpace) -> str:
        """The folder of the fit that networks of a weight space are compared with."""
        if self._kind.across:
            return "all"
        # Names are no part of it: zoos may hold one architecture under several.
        text = json.dumps([space.architecture.to_json(), repr(space.unnamed[1:])])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _file(self, shard: Shard) -> Path:
        key = self._key_of[self.zoo.load_space(shard.space).unnamed]
        return self.path / key / f"shard-{shard.checksum[:32]}.safetensors"

    def _fits(self, model: TrainedModel | None) -> dict[str, Features]:
        """Features by key, fitted where they are not there yet."""
        fits = {}
        for space in self.zoo.spaces:
            key = self._key_of[space.unnamed]
            if key in fits:
                continue
            folder = self.path / key
            if not folder.exists():
                chosen = self.zoo.spaces if self._kind.across else [space]
                networks = [(each, self._some(each, len(chosen))) for each in chosen]
                made = self._kind.fit(networks, self._dimensions, self.seed, model)
                try:
                    with new_folder(folder) as temporary:
                        made.save(temporary)
                except FileExistsError:  # by another process in the meantime, of whose features those of shards are
                    pass
            fits[key] = self._kind.load(folder, None if self._kind.across else space)
        return fits

    def _some(self, space: WeightSpace, spaces: int) -> Tensor:
        """Networks of an architecture that features are fitted to, evenly spaced."""
        data = self.zoo.of_space(space)
        count = min(len(data), max(1, _FITTED // spaces), max(2, _FITTED_BYTES // (8 * space.num_params)))
        return self.zoo.read(data.positions[torch.linspace(0, len(data) - 1, count).long()]).double()

    def _compute(self, fits: Mapping[str, Features], shards: Sequence[Shard]) -> None:
        """Features of the networks of some shards, each kept when it is whole."""
        starts = dict(zip((shard.name for shard in self.zoo.shards), self._starts().tolist(), strict=True))
        found: list[Tensor] = []
        blocks = [
            (shard, rows)
            for shard in shards
            for rows in (torch.arange(shard.count) + starts[shard.name]).split(max(1, _BLOCK_BYTES // (8 * shard.shape[1])))
        ]
        for number, (shard, rows) in enumerate(tracked(blocks, "indexing")):
            space = self.zoo.load_space(shard.space)
            found.append(fits[self._key_of[space.unnamed]](space, self.zoo.read(rows)).float())
            if number + 1 == len(blocks) or blocks[number + 1][0] is not shard:
                write_atomically(self._file(shard), functools.partial(save_file, {"vectors": torch.cat(found)}))
                found = []

    def _starts(self) -> Tensor:
        return torch.tensor([0, *(shard.count for shard in self.zoo.shards)]).cumsum(0)[:-1]

    # == Networks that are compared ==

    @property
    def groups(self) -> list[Group]:
        """The networks that are compared with each other: those of every architecture, or all."""
        return [self._group(key) for key in dict.fromkeys(self._key_of.values())]

    def group_of(self, space: WeightSpace) -> Group:
        """The networks that those of a weight space are compared with.

        Args:
            space: The weight space.

        Returns:
            The group.

        Raises:
            SpaceMismatchError: If there are none.
        """
        if self._kind.across:
            return self._group("all")
        if space.unnamed not in self._key_of:
            some = "; ".join(map(repr, self.zoo.spaces[:3]))
            raise SpaceMismatchError(
                f"The index {str(self.path)!r} holds no network of {space!r} (but of {some}). "
                "Features 'statistics' compare networks of different architectures."
            )
        return self._group(self._key_of[space.unnamed])

    def _group(self, key: str) -> Group:
        if key not in self._groups:
            positions, vectors = [], []
            for shard, start in zip(self.zoo.shards, self._starts().tolist(), strict=True):
                if self._key_of[self.zoo.load_space(shard.space).unnamed] == key:
                    positions.append(np.arange(start, start + shard.count))
                    vectors.append(load_file(self._file(shard))["vectors"])
            self._groups[key] = Group(self._loaded_fits[key], np.concatenate(positions), torch.cat(vectors))
        return self._groups[key]

    def vectors(self) -> np.ndarray:
        """Features of all networks ``[N, D]`` in their order.

        Returns:
            Float32 array.

        Raises:
            SpaceMismatchError: If networks of different architectures are not compared by these features.
        """
        if len(self.groups) != 1:
            raise SpaceMismatchError(
                f"The zoo has {len(self.groups)} architectures, which features {self.features!r} do not compare. Features 'statistics' do."
            )
        group = self.groups[0]
        return group.vectors.numpy()[np.argsort(group.positions)]

    def networks(self, positions: np.ndarray) -> Tensor:
        """Checkpoints ``[n, P]`` of networks of one group, under whichever names they are kept.

        Args:
            positions: Their positions in the zoo.

        Returns:
            Float64 tensor.
        """
        wanted = torch.from_numpy(positions)
        keys = {self.zoo.shards[owner].space for owner in self.zoo.owners(wanted).tolist()}
        # Of one architecture under several names, one by one.
        parts = wanted.split(len(wanted) if len(keys) == 1 else 1)
        return torch.cat([self.zoo.read(part) for part in parts]).double()

    # == Searching ==

    def search(self, space: WeightSpace, thetas: Tensor, top: int = 10, *, align: bool = True) -> list[list[Match]]:
        """The networks of the zoo that are nearest to given ones.

        Args:
            space: The weight space of the given networks.
            thetas: Checkpoints ``[Q, P]``.
            top: How many are wanted for each, at most.
            align: Whether the nearest by features are aligned, where features are those of weights.

        Returns:
            For every given network its matches, nearest first.

        Raises:
            SpaceMismatchError: If the zoo has no network that it could be compared with, or the shape is wrong.
            ValueError: If a weight is NaN or infinite, or ``top`` is not positive.
        """
        if top < 1:
            raise ValueError(f"Expected 'top' to be at least 1 (got {top}).")
        space.check_thetas(thetas, finite=True)
        group = self.group_of(space)
        if not align or not isinstance(group.features, WeightFeatures):
            distances, numbers = group.nearest(group.features(space, thetas), top)
            rows = zip(distances.tolist(), numbers.tolist(), strict=True)
            return [[Match(group.position(j), distance, False) for distance, j in zip(*row, strict=True)] for row in rows]
        points = group.features.points(thetas)
        _, numbers = group.nearest(group.features.of_points(points), _ALIGNED * top + _SPARE)
        return [self._aligned(group, points[i : i + 1], chosen, top) for i, chosen in enumerate(numbers)]

    def _aligned(self, group: Group, target: Point, numbers: Tensor, top: int) -> list[Match]:
        """The nearest after alignment, of some networks that are the nearest by features, until all that are wanted are equal."""
        features = group.features
        assert isinstance(features, WeightFeatures)
        found = list[Match]()
        first, rest = numbers[:top], numbers[top:]
        for chosen in (first, rest):
            if len(chosen) and not (len(found) >= top and found[top - 1].distance < _EQUAL):
                points, order = features.points(self.networks(group.positions[chosen.numpy()])), torch.arange(len(chosen))
                distances = features.yardstick.between(points, order, target, torch.zeros_like(order), seed=self.seed)
                found += [Match(group.position(j), distance, True) for j, distance in zip(chosen.tolist(), distances.tolist(), strict=True)]
                found.sort(key=lambda match: match.distance)
        return found[:top]

    def __len__(self) -> int:
        return len(self.zoo)

    def __repr__(self) -> str:
        return f"Index({counted(len(self), 'network')}, {self.features})"
