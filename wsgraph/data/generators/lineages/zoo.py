"""Zoos of families: roots, and what was made of them, hidden behind symmetries."""

from __future__ import annotations

import dataclasses
import itertools
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wsgraph.data.generators.generate import generate_zoo
from wsgraph.data.generators.hyperparameters import HyperparameterRanges
from wsgraph.data.generators.lineages.derivations import Derivation, DerivationContext, derivation_named
from wsgraph.data.generators.lineages.kinds import LineageKind, lineage_kind
from wsgraph.data.generators.problem import Advance, Columns, Problem, check_positive
from wsgraph.data.images import ClassificationData
from wsgraph.data.random import CounterRandom
from wsgraph.data.store import PathLike, ZooStore
from wsgraph.space import WeightSpace

__all__ = ["make_lineage_zoo"]

_FACTORS = (1e-3, 1e3)
_SCORED = 64
_POPULATION = 50
_DERIVATIONS = ("fine_tuned", "trained_longer", "noisy", "pruned", "pruned_fine_tuned", "quantised", "distilled")


def _begun(space: WeightSpace, parents: Tensor, context: DerivationContext) -> Tensor:
    return context.train(context.initial().to(parents))


_ROOT = Derivation("root", _begun, steps=1.0, new_task=False, inherits=False)


@dataclass(frozen=True, eq=False)
class _Lineages(Problem):
    """Families, one for every number: a root, a child of it by every derivation, and children of these; from ``families`` on, roots alone.

    Member 0 is the root, members 1 to D are its children in the order of the derivations (one that comes after another derivation is made
    from the child of that), others are made from any of those before them but
    the root, by a derivation that hands down weights and is another one than their parent's.
    """

    name: str
    kind: LineageKind
    derivations: tuple[Derivation, ...]  # the first makes roots
    ranges: HyperparameterRanges
    families: int
    grandchildren: int
    seed: int

    @property
    def space(self) -> WeightSpace:  # type: ignore[override]
        return self.kind.space

    @property
    def members(self) -> int:
        """Size of a family."""
        return len(self.derivations) + self.grandchildren

    def configuration(self) -> dict[str, Any]:
        return {
            "problem": "lineages",
            "kind": self.name,
            **self.kind.configuration(),
            "derivations": [each.name for each in self.derivations],
            "families": self.families,
            "grandchildren": self.grandchildren,
            "seed": self.seed,
            **{name: list(values) for name, values in dataclasses.asdict(self.ranges).items()},
        }

    def _plan(self, families: Tensor) -> tuple[Tensor, Tensor]:
        """Of every member the parent (0 of roots) and the derivation ``[B, M]``, -1 of members that are not there."""
        parents = torch.zeros(len(families), self.members, dtype=torch.long)
        names = [each.name for each in self.derivations]
        for number, derivation in enumerate(self.derivations):
            if derivation.after in names[:number]:
                parents[:, number] = names.index(derivation.after)
        made_by = torch.arange(self.members).repeat(len(families), 1)
        inheriting = torch.tensor([i for i, each in enumerate(self.derivations) if each.inherits], dtype=torch.long)
        draws = CounterRandom(self.seed).uniform(families, "grandchildren", (self.grandchildren, 2))
        for number in range(len(self.derivations), self.members):
            which, how = draws[:, number - len(self.derivations)].unbind(1)
            parents[:, number] = 1 + (which * (number - 1)).long()
            allowed = inheriting != made_by.gather(1, parents[:, number : number + 1])
            allowed |= ~allowed.any(1, keepdim=True)  # where there is one alone
            place = (how * allowed.sum(1)).long()
            made_by[:, number] = inheriting[(allowed.cumsum(1) > place[:, None]).long().argmax(1)]
        made_by[families >= self.families, 1:] = -1
        return parents, made_by

    def _hyperparameters(self, numbers: Tensor, made_by: Tensor) -> dict[str, Tensor]:
        """Hyperparameters of networks ``[B, M]`` that are made in these ways; none of those that are not there take steps."""
        drawn = self.ranges.sample(CounterRandom(self.seed), numbers.flatten())
        shares = torch.tensor([*(each.steps for each in self.derivations), 0.0], dtype=torch.float64)[made_by]
        result = {name: values.view_as(numbers) for name, values in drawn.items()}
        return {**result, "steps": torch.where(shares > 0, (shares * result["steps"]).round().long().clamp(min=1), 0)}

    def _numbers(self, families: Tensor) -> Tensor:
        return families[:, None] * self.members + torch.arange(self.members)

    def hyperparameters(self, networks: Tensor) -> dict[str, Tensor]:
        """Steps that families take in all."""
        return {"steps": self._hyperparameters(self._numbers(networks), self._plan(networks)[1])["steps"].sum(1)}

    def train(self, networks: Tensor, *, device: torch.device | str, advance: Advance) -> tuple[Tensor, Columns]:
        random, kind, numbers = CounterRandom(self.seed), self.kind, self._numbers(networks)
        parents, made_by = self._plan(networks)
        drawn = self._hyperparameters(numbers, made_by)
        tasks = kind.first_tasks(random, networks)[:, None].repeat(1, self.members)
        steps, depth = drawn["steps"].clone(), torch.zeros_like(parents)
        thetas = torch.zeros(*parents.shape, self.space.num_params, device=device)
        for member, way in itertools.product(range(self.members), range(len(self.derivations))):
            rows, derivation = (made_by[:, member] == way).nonzero().flatten(), self.derivations[way]
            if not len(rows):
                continue
            own, parent = (rows, member), (rows, parents[rows, member])
            tasks[own] = kind.other_tasks(random, numbers[own], tasks[parent]) if derivation.new_task else tasks[parent]
            if derivation.inherits:
                steps[own] += steps[parent]
                depth[own] = depth[parent] + 1
            context = DerivationContext(kind, random, numbers[own], tasks[own], {name: each[own] for name, each in drawn.items()}, advance)
            thetas[own] = derivation.make(self.space, thetas[parent], context)
        there = made_by >= 0
        thetas, way_of, parents = thetas[there.to(thetas.device)], made_by[there], torch.where(made_by > 0, parents, -1)[there]
        inherits = torch.tensor([each.inherits for each in self.derivations])[way_of]
        parts = zip(thetas.split(_SCORED), tasks[there].split(_SCORED), strict=True)
        scores = [kind.scores(random, *part) for part in parts]
        return thetas.cpu(), {
            "family": networks[:, None].expand_as(there)[there],
            "member": torch.arange(self.members).expand_as(there)[there],
            "parent": torch.where(inherits, parents, -1),
            "teacher": torch.where(inherits, -1, parents),
            "derivation": [self.derivations[i].name for i in way_of.tolist()],
            **{name: values[there] for name, values in (("depth", depth), ("steps", steps), ("task", tasks))},
            **{name: torch.cat([each[name] for each in scores]) for name in scores[0]},
        }


def _hidden(space: WeightSpace, thetas: Tensor, seed: int) -> Tensor:
    """Networks moved by random elements of their whole group, and without counters, which would tell how long each was trained."""
    generator = torch.Generator().manual_seed(seed)
    moved = space.act(space.sample_symmetry(len(thetas), _FACTORS, generator=generator), thetas.double())
    for param in space.params:
        if param.role == "buffer":
            moved[:, space.slices[param.name]] = 0
    return moved.float()


def make_lineage_zoo(
    path: PathLike,
    kind: str = "cnn",
    families: int = 100,
    *,
    strangers: int | None = None,
    grandchildren: int = 1,
    derivations: Sequence[str] = _DERIVATIONS,
    ranges: HyperparameterRanges | Mapping[str, Any] | None = None,
    data: ClassificationData | None = None,
    seed: int = 0,
    **options: Any,
) -> ZooStore:
    r"""Make a zoo of families whose heritage is known, and hidden behind symmetries.

    Every family has a root, trained from its own random start, a child of the root by every derivation (what is pruned and then trained is
    made from what is pruned), and networks that are derived from any of these, so that there are chains as well as stars. Strangers are
    roots without children. At the end every network is moved by a random element of its whole group (permutations, signs, factors from
    0.001 to 1000) and kept in float32, counters of batches set to 0, all in a random order.

    The derivations: ``fine_tuned`` on permuted classes or another picture, ``trained_longer``, ``noisy`` (10 % of every parameter's
    standard deviation), ``pruned`` (half of every weight), ``pruned_fine_tuned`` (what was pruned stays 0), ``quantised`` (weights to int8
    and back), and ``distilled``, a new random start trained on the answers of another network, which inherits nothing by weights.

    The table has the columns ``family``, ``parent`` (position of the network whose weights it began with; -1 for roots and distilled ones),
    ``teacher`` (position of the network that was distilled, else -1), ``derivation`` (``"root"`` for roots), ``depth`` (number of ancestors
    by weights), ``steps`` (training steps behind its weights, ancestors' included), ``task`` (what it was trained on: 0 for the classes as
    they are, the position of the picture), and how good it is at that: ``test_accuracy`` of classifiers, ``loss`` and ``psnr`` of
    pictures. Distilled networks, and what was derived from them, belong to the family of their teacher.

    A run that was interrupted continues when it is started again with the same arguments; the zoo appears when it is complete. Until
    then, populations that are finished lie in ``PATH.parts``.

    Args:
        path: Folder of the zoo.
        kind: ``"cnn"`` and ``"resnet"`` as in :func:`make_cnn_zoo`, ``"siren"`` as in :func:`make_inr_zoo`, or what others registered.
        families: Number of families.
        strangers: Number of roots without children (default: as many as families).
        grandchildren: Networks of every family that are derived from other ones than the root.
        derivations: Names of the derivations by which every root has a child.
        ranges: Where hyperparameters are drawn from (default: those of the kind), or those ranges by name that differ.
        data: Pictures with labels (default: :func:`digits`).
        seed: Seed of everything random.
        **options: Options of :func:`generate_zoo`: ``population`` (families made side by side), ``device``, ``workers``, ``ray``,
            ``progress``.

    Returns:
        The finished zoo, open for reading.

    Raises:
        OSError: If the folder cannot be written.
        ValueError: If an argument is out of range, a kind or derivation is not known, a zoo of another configuration lies at the path, or
            the zoo there lost networks.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     zoo = make_lineage_zoo(f"{folder}/zoo", "siren", 2, ranges={"steps": (5, 10)}, progress=False)
        ...     parents, derivations = zoo.column("parent"), zoo.column("derivation")
        ...     len(zoo), sorted(derivations[parents < 0].tolist())
        (20, ['distilled', 'distilled', 'root', 'root', 'root', 'root'])
    """
    for name, value in (("strangers", strangers), ("grandchildren", grandchildren)):
        if value is not None and (not isinstance(value, int) or value < 0):
            raise ValueError(f"Expected {name!r} to be an integer of at least 0 (got {value!r}).")
    check_positive(families=families)
    made = lineage_kind(kind, data)
    found = tuple(derivation_named(name) for name in derivations)
    if grandchildren and not any(each.inherits for each in found):
        raise ValueError(f"Expected a derivation that hands down weights for {grandchildren} 'grandchildren' (got {derivations!r}).")
    ranges = ranges if isinstance(ranges, HyperparameterRanges) else dataclasses.replace(made.ranges, **(ranges or {}))
    problem = _Lineages(kind, made, (_ROOT, *found), ranges, families, grandchildren, seed)
    count, options = families + (families if strangers is None else strangers), {"population": _POPULATION, **options}
    path = Path(path).resolve()
    parts = path.with_name(f"{path.name}.parts")
    if os.path.lexists(path):
        there = ZooStore(path)
        if there.missing:
            raise ValueError(f"The zoo {str(path)!r} lost networks. Delete it to make it anew.")
        store = generate_zoo(path, [problem], count, **options)  # compares how it was made, and opens it
    else:
        store = _assembled(path, generate_zoo(parts, [problem], count, **options), seed)
    shutil.rmtree(parts, ignore_errors=True)
    return store


def _assembled(path: Path, parts: ZooStore, seed: int) -> ZooStore:
    """The zoo of networks that were made family by family."""
    order = CounterRandom(seed).uniform(torch.zeros(1, dtype=torch.long), "rows", (len(parts),))[0].argsort(stable=True)
    table = {name: column[order.numpy()] for name, column in parts.table.items()}
    members = table.pop("member")
    place = {key: i for i, key in enumerate(zip(table["family"].tolist(), members.tolist(), strict=True))}
    for name in ("parent", "teacher"):
        wanted = zip(table["family"].tolist(), table[name].tolist(), strict=True)
        table[name] = np.array([-1 if member < 0 else place[family, member] for family, member in wanted])
    return ZooStore.create(path, parts.space, _hidden(parts.space, parts.read(order), seed), table, info=parts.info)
