"""The parts of a chain of layers, which plain MLPs and CNNs are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from wsgraph.operators import OPERATORS, Activations, parse_operator, written_operator
from wsgraph.space.parts import Axis, Layer, NeuronGroup, Parameter, Tie

__all__ = ["FLAT_READOUT", "POOLED_READOUTS", "ChainLink", "chain_parts", "per_layer"]

# What may lie between convolutions and linear layers: pooling over all positions, or reading every position.
POOLED_READOUTS, FLAT_READOUT = ("global_avg_pool", "global_max_pool"), "flatten"


def per_layer(name: str, value: Any, count: int) -> list[Any]:
    """One value per convolution, from one for all or one for each."""
    values = list(value) if isinstance(value, Sequence) else [value]
    if len(values) == 1:
        values *= count
    if len(values) != count:
        raise ValueError(f"Expected '{name}' to be one value or one per convolution, {count} (got {len(values)}).")
    return values


@dataclass(frozen=True)
class ChainLink:
    """One layer of a chain: its kernel (empty for linear), output size, and what flattening put between it and its source."""

    kernel: tuple[int, ...]
    size: int
    positions: int | None = None
    stride: int = 1
    padding: int = 0
    operators: tuple[str, ...] = ()
    weight: str | None = None
    bias: str | None = None
    dtypes: tuple[str | None, str | None] = (None, None)


def written_activations(activation: Any) -> list[str]:
    """Activations, given as one or as several, by name, module or function, as weight spaces write them.

    Raises:
        ValueError: If it is none of these.
    """
    entries = list(activation) if isinstance(activation, (list, tuple)) else [activation]
    if not all(isinstance(entry, str) or callable(entry) for entry in entries):
        raise ValueError(f"Expected 'activation' to be the name of an activation, or one per hidden group (got {activation!r}).")
    return [written_operator(entry) for entry in entries]


def chain_parts(
    links: Sequence[ChainLink], inputs: int, activation: Activations, *, bias: bool = True
) -> tuple[tuple[NeuronGroup, ...], tuple[Layer, ...], tuple[Parameter, ...]]:
    """Groups, layers and parameters of a chain of layers; every public constructor of chains ends here.

    Links that name their parameters keep those names (and lack a bias where they name none); otherwise names are ``layers.{i}``.
    """
    if not links:
        raise ValueError("Expected a network with at least one layer, that is at least two sizes.")
    hidden = len(links) - 1
    given = written_activations(activation)
    activations = given if isinstance(activation, (list, tuple)) else given * hidden
    for name in set(given):
        if not OPERATORS[parse_operator(name)[0]].nonlinear:
            raise ValueError(f"Expected 'activation' to be an activation, not pooling or reshaping (got {name!r}).")
    if len(activations) != hidden:
        raise ValueError(f"Expected 'activation' to be one name or one per hidden group, {hidden} (got {len(activations)}).")
    names = ["input", *(f"hidden.{i}" for i in range(1, hidden + 1)), "output"]
    groups = [NeuronGroup(names[0], inputs, role="input")]
    layers, params = [], []
    labels = [link.weight.rsplit(".", 1)[0] if link.weight and "." in link.weight else f"layers.{i}" for i, link in enumerate(links)]
    if len(set(labels)) < len(labels):  # keys such as net.w1, net.w2
        labels = [f"layers.{i}" for i in range(len(links))]
    for i, link in enumerate(links):
        source, target, last = names[i], names[i + 1], i == hidden
        operators = (*link.operators,) if last else (activations[i], *link.operators)
        groups.append(NeuronGroup(target, link.size, role="output" if last else "hidden", operators=operators))
        inner = link.kernel or ((link.positions,) if link.positions else ())
        axes = (Axis(link.size, (Tie((target,), 1),)), Axis(groups[i].size, (Tie((source,), -1),)), *(Axis(size) for size in inner))
        shape = (link.size, groups[i].size, *link.kernel) if link.kernel else (link.size, groups[i].size * (link.positions or 1))
        named = link.weight is not None
        weight, offset = link.weight or f"layers.{i}.weight", link.bias if named else f"layers.{i}.bias" if bias else None
        params.append(Parameter(weight, shape, "weight", axes, link.dtypes[0]))
        if offset:
            params.append(Parameter(offset, (link.size,), "bias", axes[:1], link.dtypes[1]))
        layers.append(
            Layer(
                labels[i],
                "conv" if link.kernel else "linear",
                (source,),
                target,
                weight,
                offset,
                stride=link.stride,
                padding=link.padding,
            )
        )
    return tuple(groups), tuple(layers), tuple(params)
