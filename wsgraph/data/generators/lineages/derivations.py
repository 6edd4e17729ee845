"""How networks are made from others: fine-tuned, pruned, quantised, ..., many side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from wsgraph.data.generators.lineages.kinds import LineageKind
from wsgraph.data.generators.problem import Advance
from wsgraph.data.random import CounterRandom
from wsgraph.plugins import Registry
from wsgraph.space import WeightSpace

__all__ = ["Derivation", "DerivationContext", "derivation_named", "list_derivations", "register_derivation"]

_STATISTICS = ("mean", "variance", "buffer")  # roles of what training counts, but does not learn
_NOISE = 0.1
_PRUNED = 0.5
_LEVELS = 127  # of int8, on either side of 0


@dataclass(frozen=True)
class DerivationContext:
    """What children are made with.

    Attributes:
        kind: How networks of this kind begin and learn.
        random: Source of randomness.
        networks: Numbers of the children ``[B]``.
        tasks: What each is trained on ``[B]``.
        hyperparameters: Hyperparameters by name, each ``[B]``, among them ``steps``.
        advance: Called after every training step with the number of networks that took it.
    """

    kind: LineageKind
    random: CounterRandom
    networks: Tensor
    tasks: Tensor
    hyperparameters: Mapping[str, Tensor]
    advance: Advance

    def initial(self) -> Tensor:
        """Networks ``[B, P]`` of new random starts."""
        return self.kind.initial(self.random, self.networks, self.hyperparameters["initial_scale"])

    def train(self, thetas: Tensor, *, targets: Tensor | None = None, free: Tensor | None = None) -> Tensor:
        """Train networks.

        Args:
            thetas: What they begin with ``[B, P]``.
            targets: What they should answer (default: what their tasks say).
            free: Which weights may change, a boolean tensor ``[B, P]``; others are 0 (default: all).

        Returns:
            Trained checkpoints ``[B, P]``.
        """
        targets = self.kind.targets(self.random, self.tasks) if targets is None else targets
        return self.kind.train(self.random, self.networks, thetas, targets, self.hyperparameters, free=free, advance=self.advance)


Make = Callable[[WeightSpace, Tensor, DerivationContext], Tensor]


@dataclass(frozen=True)
class Derivation:
    """How children are made.

    Attributes:
        name: Its name.
        make: Function of the weight space, the parents ``[B, P]`` and the context that returns the children ``[B, P]``.
        steps: Training steps, as a share of those of a root.
        new_task: Whether children are trained on something else than their parents.
        inherits: Whether children have their weights from their parents.
        after: Name of the derivation whose child of the root it is made from, where a family has one; empty for the root itself.
    """

    name: str
    make: Make
    steps: float
    new_task: bool
    inherits: bool
    after: str = ""


_DERIVATIONS: Registry[Derivation] = Registry("derivation")


def register_derivation(
    name: str, *, steps: float = 0.0, new_task: bool = False, inherits: bool = True, after: str = ""
) -> Callable[[Make], Make]:
    """Enter a derivation under a name, by which :func:`make_lineage_zoo` knows it.

    Args:
        name: The name.
        steps: Training steps, as a share of those of a root.
        new_task: Whether children are trained on something else than their parents.
        inherits: Whether children have their weights from their parents.
        after: Name of the derivation whose child of the root it is made from, where a family has one.

    Returns:
        A decorator of a function of the weight space, the parents ``[B, P]`` and the context that returns the children ``[B, P]``.

    Raises:
        ValueError: If the name is taken.

    Example:
        >>> @register_derivation("rounded")
        ... def rounded(space, parents, context):
        ...     return parents.bfloat16().to(parents)
        >>> derivation_named("rounded").steps
        0.0
    """

    def enter(make: Make) -> Make:
        _DERIVATIONS.add(name, Derivation(name, make, steps, new_task, inherits, after))
        return make

    return enter


def derivation_named(name: str) -> Derivation:
    """The derivation of a name.

    Args:
        name: One of :func:`list_derivations`.

    Returns:
        The entry.

    Raises:
        ValueError: If there is none of that name.

    Example:
        >>> derivation_named("distilled").inherits
        False
    """
    return _DERIVATIONS.find(name)


def list_derivations() -> list[str]:
    """Names of all derivations.

    Example:
        >>> {"distilled", "fine_tuned", "noisy", "pruned", "quantised"} <= set(list_derivations())
        True
    """
    return _DERIVATIONS.names()


# == Derivations ==


@register_derivation("fine_tuned", steps=0.5, new_task=True)
def _fine_tuned(space: WeightSpace, parents: Tensor, context: DerivationContext) -> Tensor:
    """Trained on something else: classifiers on permuted classes, pictures on another picture."""
    return context.train(parents)


@register_derivation("trained_longer", steps=0.5)
def _trained_longer(space: WeightSpace, parents: Tensor, context: DerivationContext) -> Tensor:
    """Trained on what the parents were trained on."""
    return context.train(parents)


@register_derivation("noisy")
def _noisy(space: WeightSpace, parents: Tensor, context: DerivationContext) -> Tensor:
    """Gaussian noise of 10 % of the standard deviation of every parameter; what training counts stays, and no variance becomes negative."""
    noise = context.random.normal(context.networks, "noise", (space.num_params,)).to(parents)
    children = parents.clone()
    for param in space.params:
        if param.role not in _STATISTICS:
            entries = parents[:, space.slices[param.name]]
            children[:, space.slices[param.name]] += (
                _NOISE * entries.std(1, correction=0, keepdim=True) * noise[:, space.slices[param.name]]
            )
    return children


def _largest(space: WeightSpace, thetas: Tensor) -> Tensor:
    """Which entries ``[B, P]`` pruning keeps: of every weight the larger half, all of what is no weight."""
    kept = torch.ones_like(thetas, dtype=torch.bool)
    for param in space.params:
        if param.role == "weight":
            ranks = thetas[:, space.slices[param.name]].abs().argsort(dim=1, stable=True).argsort(1)
            kept[:, space.slices[param.name]] = ranks >= round(_PRUNED * param.size)
    return kept


@register_derivation("pruned")
def _pruned(space: WeightSpace, parents: Tensor, context: DerivationContext) -> Tensor:
    """The half of every weight that is smallest in magnitude becomes 0."""
    return parents * _largest(space, parents)


@register_derivation("pruned_fine_tuned", steps=0.25, after="pruned")
def _pruned_fine_tuned(space: WeightSpace, parents: Tensor, context: DerivationContext) -> Tensor:
    """Pruned, then trained while what was pruned stays 0."""
    kept = _largest(space, parents)
    return context.train(parents * kept, free=kept)


@register_derivation("quantised")
def _quantised(space: WeightSpace, parents: Tensor, context: DerivationContext) -> Tensor:
    """Weights rounded to int8 with one step for each tensor, and read back."""
    children = parents.clone()
    for param in space.params:
        if param.role == "weight":
            entries = parents[:, space.slices[param.name]]
            step = entries.abs().amax(1, keepdim=True) / _LEVELS
            children[:, space.slices[param.name]] = (entries / torch.where(step > 0, step, 1)).round() * step
    return children


@register_derivation("distilled", steps=1.0, inherits=False)
def _distilled(space: WeightSpace, parents: Tensor, context: DerivationContext) -> Tensor:
    """New random starts, trained on the parents' answers."""
    return context.train(context.initial(), targets=context.kind.answers(parents))
