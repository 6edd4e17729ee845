"""Terms of linear maps that commute with a group: those of permutations, of monomial matrices, and published choices."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from wsgraph.nn.sharing.layout import Layout, Powers
from wsgraph.nn.sharing.sharing_linear import Source, Target, Term

__all__ = ["monomial_terms", "permutation_terms", "published_hnp_terms", "published_sine_terms"]


def permutation_terms(layout: Layout) -> list[Term]:
    """All maps that commute with permutations: per set of kept axes, every parameter that has them to every parameter that has them."""
    sources: dict[tuple[object, ...], list[tuple[str, tuple[int, ...]]]] = {}
    for name, entries in layout.entries.items():
        for count in range(len(entries.movable) + 1):
            for kept in itertools.combinations(range(len(entries.movable)), count):
                sources.setdefault(entries.classes(kept), []).append((name, kept))
    return [Term(tuple(Source(*part) for part in parts), tuple(Target(*part) for part in parts)) for parts in sources.values()]


def monomial_terms(layout: Layout, *, signs_only: bool = False) -> list[Term]:
    """All maps that commute with permutations and scales: parameters of one kind to each other.

    Args:
        layout: Entries of the space.
        signs_only: Whether factors are signs, whose powers 1 and -1 are the same.
    """
    kinds: dict[object, list[str]] = {}
    for name, entries in layout.entries.items():
        kind = entries.kind
        if signs_only:
            kind = tuple(tuple((label, _odd(powers)) for label, powers in groups) for groups in kind)
        kinds.setdefault(kind, []).append(name)
    terms = []
    for names in kinds.values():
        whole = [(name, tuple(range(len(layout.entries[name].movable)))) for name in names]
        terms.append(Term(tuple(Source(*part) for part in whole), tuple(Target(*part) for part in whole), bias=not whole[0][1]))
    return terms


def _odd(powers: Powers) -> Powers:
    return tuple((label, 1) for label, power in powers if power % 2)


def published_hnp_terms(layout: Layout) -> list[Term]:
    """The terms of the published HNP layer: redundant means beside what they are means of, and no last bias of a hidden layer in W^(L)."""
    weights = [layer.weight for layer in layout.space.layers if layer.weight is not None]
    biases = [layer.bias for layer in layout.space.layers if layer.bias is not None]
    depth = len(weights)
    if not layout.space.is_chain or depth < 2 or len(biases) < depth:
        raise ValueError(f"The published HNP layer needs a chain of at least two layers, all with biases (got {layout.space!r}).")

    def whole(name: str) -> Source:
        return Source(name, tuple(range(len(layout.entries[name].movable))))

    def mean_over_targets(i: int) -> Source:
        return Source(weights[i], (1,)) if i < depth - 1 else Source(weights[i], (0,), pooled=True)

    def mean_over_sources(i: int) -> Source:
        return Source(weights[i], (0,), pooled=i == 0)

    first, last = weights[0], weights[-1]
    means = [Source(name, (), pooled=bool(layout.entries[name].fixed)) for name in (*weights, *biases)]
    boundary = [Source(first, ()), Source(last, ()), whole(biases[-1])]
    terms = [Term((*means, *boundary), tuple(Target(name, ()) for name in (*weights, *biases)))]
    from_last = [whole(last)] if depth == 2 else []
    from_first = [whole(first)] if depth == 2 else []
    terms.append(
        Term((whole(first), mean_over_targets(1), whole(biases[0]), *from_last), (Target(*whole(first)[:2]), Target(*whole(biases[0])[:2])))
    )
    terms.append(Term((whole(last), mean_over_sources(depth - 2), *from_first), (Target(*whole(last)[:2]),)))
    for i in range(1, depth - 1):
        rows = [mean_over_targets(i), mean_over_sources(i - 1), whole(biases[i - 1]), *([whole(first)] if i == 1 else [])]
        columns = [mean_over_sources(i), whole(biases[i]), mean_over_targets(i + 1), *([whole(last)] if i == depth - 2 else [])]
        terms.append(Term(tuple(rows), (Target(weights[i], (1,)),)))
        terms.append(Term(tuple(columns), (Target(weights[i], (0,)), Target(biases[i], (0,)))))
        terms.append(Term((whole(weights[i]),), (Target(weights[i], (0, 1)),)))
    return terms


def published_sine_terms(layout: Layout) -> list[Term]:
    """The terms of the published sine layer: a chain of two layers lacks those between W^(1) and W^(2), and that from W^(2) to b^(1)."""
    terms = monomial_terms(layout, signs_only=True)
    if len(layout.space.layers) != 2:
        return terms
    first, second = layout.space.layers
    published = [term for term in terms if second.weight not in [source.param for source in term.sources]]
    (mixed,) = [term for term in terms if term not in published]

    def part(reads: Sequence[str | None], writes: Sequence[str | None]) -> Term:
        sources = tuple(source for source in mixed.sources if source.param in reads)
        return Term(sources, tuple(target for target in mixed.targets if target.param in writes), bias=False)

    alone = (first.weight, first.bias)
    return [*published, part(alone, alone), part((second.weight, first.bias), (second.weight,))]
