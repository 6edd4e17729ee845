"""Kinds of neurons and edges, of which monomial message passing has parameters of their own."""

from __future__ import annotations

from collections.abc import Sequence

from wsgraph.nn.message.links import DenseLink, End, Link
from wsgraph.nn.message.plan import LinkPlan, PartPlan, SpacePlan, feature_name, space_plan
from wsgraph.nn.message.wiring import Part, Wiring
from wsgraph.nn.registry import Spaces, as_spaces
from wsgraph.space import SpaceMismatchError

__all__ = ["Kinds"]


class Kinds:
    """Kinds of neurons and edges in some weight spaces: what has parameters of its own.

    Hidden neurons differ by their level, up to the last that is told apart, edges by the neurons they lead to, what they are and their
    kernel positions.
    """

    def __init__(self, spaces: Spaces, levels: int) -> None:
        self.spaces = as_spaces(spaces, layered=False)
        if levels < 1:
            raise ValueError(f"Expected 'levels' to be at least 1 (got {levels}).")
        self.levels = levels
        self.biases: dict[str, int] = {}
        self.features: dict[str, set[str]] = {}
        self.activations: dict[str, list[str]] = {}
        self.sizes: dict[str, int] = {"input": 0, "output": 0}
        self.fans: dict[str, tuple[int, int, int]] = {}
        self.from_neurons: dict[str, set[str]] = {}
        self.beside: dict[End, set[str]] = {"target": set(), "source": set()}
        self.roots: set[str] = set()
        for space in self.spaces:
            plan = space_plan(space)
            for part in plan.parts:
                key = self.of_part(part)
                self.biases[key] = max(self.biases.get(key, 0), sum(kind == "bias" for kind, _ in part.features))
                self.features.setdefault(key, set()).update(map(feature_name, _others(part.features)))
                seen = self.activations.setdefault(key, [])
                if part.activation not in seen:
                    seen.append(part.activation)
                if part.role != "hidden":
                    last = space.topology.node_position[space.topology.nodes[part.group]].max()
                    self.sizes[key] = max(self.sizes.get(key, 0), int(last))
                if part.root and not any(part.symmetry):
                    self.roots.add(key)
                if any(part.symmetry) and not all(carried.own for carried in part.carried):
                    self.beside["target"].add(key)
            for link in plan.links:
                source, target = (plan.parts[end] for end in (link.source, link.target))
                positions = space.topology.edges[link.edges].num_positions
                key = f"{self.of_part(target)}_{_edge_name(link.kind, positions)}"
                self.fans.setdefault(key, (positions, *_fans(plan, link)))
                self.from_neurons.setdefault(key, set()).add(source.role)
                if any(target.symmetry) and not link.transport.forward.own and not target.joint:
                    self.beside["target"].add(self.of_part(target))
                if any(source.symmetry) and not link.transport.backward.own:
                    self.beside["source"].add(self.of_part(source))

    def of_part(self, part: Part | PartPlan) -> str:
        return f"hidden{min(part.level, self.levels)}" if part.role == "hidden" else part.role

    def of_link(self, link: Link, wiring: Wiring) -> str:
        return f"{self.of_part(wiring.parts[link.target])}_{_edge_name(link.kind, link.positions)}"

    def check(self, wiring: Wiring, user: str) -> None:
        """Raise a clear error unless there are parameters for all neurons and edges of a batch."""
        lacking = []
        for part in wiring.parts:
            key = self.of_part(part)
            biases = sum(kind == "bias" for kind, _ in part.features)
            if key not in self.biases or biases > self.biases[key]:
                lacking.append(f"{biases} biases at each neuron of {key}")
            elif unread := set(map(feature_name, _others(part.features))).difference(self.features[key]):
                lacking.append(f"a {unread.pop()} at each neuron of {key}")
            elif part.root and not any(part.symmetry) and key not in self.roots:
                lacking.append(f"neurons of {key} that read nothing")
            elif part.activation not in self.activations[key]:
                lacking.append(f"{part.activation} neurons at {key}")
            elif part.role != "hidden" and part.num_positions > self.sizes[key]:
                lacking.append(f"{part.num_positions} {key} neurons")
        for link in wiring.links:
            if self.of_link(link, wiring) not in self.fans:
                kind = (
                    f"weights with {link.positions} kernel position{'s' * (link.positions > 1)}" if link.positions else "skip connections"
                )
                lacking.append(f"{kind} to {self.of_part(wiring.parts[link.target])}")
        if lacking:
            raise SpaceMismatchError(
                f"{user} was built for {', '.join(map(repr, self.spaces[:3]))} but the batch has {lacking[0]}. "
                f"Build it with all weight spaces that it shall read, such as {user}([first, second], ...)."
            )


def _others(features: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    return [feature for feature in features if feature[0] != "bias"]


def _edge_name(kind: str, positions: int) -> str:
    """What edges are, as part of the name of their parameters."""
    if kind in ("weight", "sum"):
        return str(positions or "skip")
    return f"{kind}_{positions}"


def _fans(plan: SpacePlan, link: LinkPlan) -> tuple[int, int]:
    """Edges at every target and at every source."""
    edges = plan.topology.edges[link.edges]
    if link.form is DenseLink:
        return (
            edges.num_sources if link.columns is None else len(link.columns),
            edges.num_targets if link.rows is None else len(link.rows),
        )
    return edges.num_sources, max(1, edges.num_targets // link.blocks)
