"""Which bias belongs to which weight of a chain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from torch import Tensor

from wsgraph.convert.chain_order import natural_order, parent_of
from wsgraph.convert.key_names import (
    role,
    stem,
)

__all__ = ["pair_biases"]


def pair_biases(state_dict: Mapping[str, Tensor], keys: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Biases by weight, and what was expected in place of vectors that belong to no weight."""
    weights = [key for key in keys if state_dict[key].ndim > 1]
    by_stem: dict[tuple[str, ...], list[str]] = {}
    for key in weights:
        by_stem.setdefault(stem(key), []).append(key)
    inside = Counter(map(parent_of, weights))
    biases: dict[str, str] = {}
    misfits: dict[str, str] = {}
    loose = []
    for key in keys:
        if state_dict[key].ndim > 1:
            continue
        owners = by_stem.get(stem(key), []) if role(key) else []
        if role(key) and parent_of(key) and not owners and inside[parent_of(key)] != 1:
            misfits[key] = "a bias whose key or place tells which weight it belongs to"
            continue
        if len(owners) != 1 or owners[0] in biases:
            loose.append(key)
            continue
        size, shape = state_dict[key].numel(), state_dict[owners[0]].shape
        if size == shape[0]:
            biases[owners[0]] = key
        else:
            hint = "; weights stored as [in, out] have to be transposed first" if size == shape[1] else ""
            misfits[key] = f"a bias of shape [{shape[0]}] for {owners[0]!r} of shape {list(shape)}{hint}"
    if loose:
        free = [key for key in weights if key not in biases]
        matchings = _match_neighbours(state_dict, natural_order(keys), loose, free)
        if not matchings and not biases:
            matchings = _match_sizes(state_dict, loose, free)
        if len(matchings) == 1:
            biases |= matchings[0]
        else:
            misfits[loose[0]] = "a bias whose key or place tells which weight it belongs to"
    return biases, misfits


def _match_neighbours(state_dict: Mapping[str, Tensor], sequence: list[str], loose: list[str], free: list[str]) -> list[dict[str, str]]:
    """Ways to give every loose vector to the weight just before it, or every one to the weight just after it."""
    matchings = []
    for step in (-1, 1):
        matching = {}
        for key in loose:
            i = sequence.index(key) + step
            if 0 <= i < len(sequence) and sequence[i] in free and state_dict[sequence[i]].shape[0] == state_dict[key].numel():
                matching[sequence[i]] = key
        if len(matching) == len(loose):
            matchings.append(matching)
    return matchings


def _match_sizes(state_dict: Mapping[str, Tensor], loose: list[str], free: list[str]) -> list[dict[str, str]]:
    """The matching of loose vectors with weights of their size, where sizes leave no choice."""
    matching = {}
    for key in loose:
        owners = [weight for weight in free if state_dict[weight].shape[0] == state_dict[key].numel()]
        if len(owners) == 1:
            matching[owners[0]] = key
    return [matching] if len(matching) == len(loose) else []
