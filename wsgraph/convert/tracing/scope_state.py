"""What is known while a network is traced, as the operators find it out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from wsgraph.convert.tracing.arrays import distinct
from wsgraph.convert.tracing.labels import (
    Label,
    Value,
)
from wsgraph.convert.tracing.neurons import Factors, Neurons
from wsgraph.convert.tracing.nodes import Nodes

__all__ = ["ScopeState"]


@dataclass
class ScopeState:
    """What the operators of a network have found out so far.

    Args:
        neurons: Which neurons are the same, and which cannot move.
        factors: What is known of their factors.
        nodes: The nodes and edges of the parameter graph.
        reason: Which operator is at work, to say why neurons cannot move.
        name: What its values are called.
        unknown: In which modules unknown operators stood, by the operator's name.
        outputs: Which nodes the network returns.
        own: What stands for saved tensors in the program that one operator alone reads.
        grouped: The parameters with dimensions that follow other neurons in every group of their first one, with the codes of
            these neurons by dimension, ``[groups, n]``.
        saved: What is known of every saved tensor, by name.
        reads: How many operators have read it, or what was moved of it.
        stacks: The parameters whose first dimension is a stack, with its marks; see :mod:`.stacks`.
        changed: Those of which more is known since the operator at work started.
        alike: Dimensions of parameters whose neurons are the same in all entries of a stack.
        merging: Whether heads that read neurons which all of them share are told apart no more, for the factors of these neurons.
        mergeable: Whether there were such heads.
    """

    neurons: Neurons = field(default_factory=Neurons)
    factors: Factors = field(default_factory=Factors)
    nodes: Nodes = field(default_factory=Nodes)
    reason: str = ""
    name: str = ""
    unknown: dict[str, list[str]] = field(default_factory=dict)
    outputs: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    own: set[Any] = field(default_factory=set)
    grouped: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    saved: dict[str, Value] = field(default_factory=dict)
    reads: dict[str, int] = field(default_factory=dict)
    stacks: dict[str, Tensor] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)
    alike: frozenset[tuple[str, int]] = frozenset()
    merging: bool = False
    mergeable: bool = False

    def name_values(self, labels: Iterable[Label]) -> None:
        """The neurons of a weight are those of the values that flow through the network from here on."""
        for label in labels:
            for expression in distinct(label.expressions.numpy().ravel()).tolist():
                unknown, power = self.factors.expressions[expression]
                if power:
                    self.factors.make_value(unknown, self.name)
