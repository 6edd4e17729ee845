"""Networks that families are made of, by name: those here, and those that others register."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from wsgraph.data.generators.hyperparameters import HyperparameterRanges
from wsgraph.data.generators.problem import Advance
from wsgraph.data.images import ClassificationData, digits
from wsgraph.data.random import CounterRandom
from wsgraph.plugins import Registry
from wsgraph.space import WeightSpace

__all__ = ["LineageKind", "lineage_kind", "list_lineage_kinds", "register_lineage_kind"]

Build = Callable[[ClassificationData], "LineageKind"]
_KINDS: Registry[Build] = Registry("kind of networks")


class LineageKind(ABC):
    """How networks of one architecture begin, learn and are scored, many side by side.

    What a network is trained on is a number, its task.

    Attributes:
        space: The weight space of the networks.
        module: The module that has this space; ``None`` where its layers describe the networks.
        ranges: Where hyperparameters are drawn from.
        inputs: A batch of inputs for the networks.
    """

    space: WeightSpace
    module: nn.Module | None = None
    ranges: HyperparameterRanges
    inputs: Tensor

    @abstractmethod
    def configuration(self) -> dict[str, Any]:
        """What results depend on but seed and hyperparameters, as JSON can hold it."""

    @abstractmethod
    def initial(self, random: CounterRandom, networks: Tensor, scale: Tensor) -> Tensor:
        """Networks that are not yet trained.

        Args:
            random: Source of randomness.
            networks: Their numbers ``[B]``.
            scale: Factor of each on its initial weights ``[B]``.

        Returns:
            Flat checkpoints ``[B, P]``.
        """

    @abstractmethod
    def first_tasks(self, random: CounterRandom, families: Tensor) -> Tensor:
        """What roots are trained on.

        Args:
            random: Source of randomness.
            families: Numbers of their families ``[B]``.

        Returns:
            Tasks of the roots ``[B]``.
        """

    @abstractmethod
    def other_tasks(self, random: CounterRandom, networks: Tensor, tasks: Tensor) -> Tensor:
        """What networks are trained on that learn something else.

        Args:
            random: Source of randomness.
            networks: Their numbers ``[B]``.
            tasks: What they have been trained on ``[B]``.

        Returns:
            Other tasks ``[B]``.
        """

    @abstractmethod
    def targets(self, random: CounterRandom, tasks: Tensor) -> Tensor:
        """What networks should answer to every example.

        Args:
            random: Source of randomness.
            tasks: What they are trained on ``[B]``.

        Returns:
            Tensor ``[B, examples, ...]``.
        """

    @abstractmethod
    def answers(self, thetas: Tensor) -> Tensor:
        """What networks ``[B, P]`` answer to every example, as targets ``[B, examples, ...]`` of others."""

    @abstractmethod
    def train(
        self,
        random: CounterRandom,
        networks: Tensor,
        thetas: Tensor,
        targets: Tensor,
        hyperparameters: Mapping[str, Tensor],
        *,
        free: Tensor | None = None,
        advance: Advance = lambda steps: None,
    ) -> Tensor:
        """Train networks side by side.

        Args:
            random: Source of randomness.
            networks: Their numbers ``[B]``.
            thetas: What they begin with ``[B, P]``.
            targets: What they should answer.
            hyperparameters: From :meth:`HyperparameterRanges.sample`, each ``[B]``.
            free: Which weights have gradients, a boolean tensor ``[B, P]`` (default: all).
            advance: Called after every step with the number of networks that took it.

        Returns:
            Trained checkpoints ``[B, P]``.
        """

    @abstractmethod
    def scores(self, random: CounterRandom, thetas: Tensor, tasks: Tensor) -> dict[str, Tensor]:
        """How good networks are at what they were trained on.

        Args:
            random: Source of randomness.
            thetas: Flat checkpoints ``[B, P]``.
            tasks: What each was trained on ``[B]``.

        Returns:
            Columns of the table, each ``[B]``.
        """


def register_lineage_kind(name: str) -> Callable[[Build], Build]:
    """Enter a kind of networks under a name, by which :func:`make_lineage_zoo` knows it.

    Args:
        name: The name.

    Returns:
        A decorator of a function that makes the kind from pictures with labels.

    Raises:
        ValueError: If the name is taken.

    Example:
        >>> @register_lineage_kind("narrow")
        ... def narrow(data):
        ...     return lineage_kind("cnn")
        >>> "narrow" in list_lineage_kinds()
        True
    """

    def enter(build: Build) -> Build:
        _KINDS.add(name, build)
        return build

    return enter


def lineage_kind(name: str, data: ClassificationData | None = None) -> LineageKind:
    """The kind of networks of a name.

    Args:
        name: One of :func:`list_lineage_kinds`.
        data: Pictures with labels (default: :func:`wsgraph.data.digits`).

    Returns:
        What says how its networks begin, learn and are scored.

    Raises:
        ValueError: If there is none of that name, or the pictures are not ``[n, C, H, W]``.

    Example:
        >>> lineage_kind("cnn").space
        WeightSpace(1-16-16-16-10, conv 3x3 | conv 3x3 | conv 3x3 | linear, relu, 4,970 parameters)
    """
    data = digits() if data is None else data
    if data.images.ndim != 4:
        raise ValueError(f"Expected images of shape [n, C, H, W] (got {list(data.images.shape)}).")
    return _KINDS.find(name)(data)


def list_lineage_kinds() -> list[str]:
    """Names of all kinds of networks that families can be made of.

    Example:
        >>> {"cnn", "resnet", "siren"} <= set(list_lineage_kinds())
        True
    """
    return _KINDS.names()
