"""Scores of who was made from whom: predicted parents, and distances, against the truth.

Parents are positions of networks, -1 for none. Where there is nothing to score, scores are NaN.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

__all__ = [
    "false_alarms",
    "family_recall",
    "forest_f1",
    "nearest_networks",
    "parent_accuracy",
    "parent_accuracy_by",
    "parent_recall",
    "trees_of",
]


def _parents(name: str, parents: Any, count: int | None = None) -> np.ndarray:
    result = np.asarray(parents)
    count = len(result) if count is None else count
    if result.shape != (count,) or result.dtype.kind not in "iu" or (count and not -1 <= result.min() <= result.max() < count):
        raise ValueError(
            f"Expected {name!r} to hold a position from 0 to {count - 1}, or -1, for each of {count} networks "
            f"(got shape {list(result.shape)}, {result.dtype}{f', {result.min()} to {result.max()}' if result.size else ''})."
        )
    return result


def _distances(distances: Any) -> np.ndarray:
    """Distances ``[N, N]`` with those of networks to themselves infinite, a copy."""
    result = np.asarray(distances).astype(float)
    if result.ndim != 2 or result.shape[0] != result.shape[1]:
        raise ValueError(f"Expected 'distances' of every network to every other one, [N, N] (got shape {list(result.shape)}).")
    np.fill_diagonal(result, math.inf)
    return result


def _share(right: np.ndarray) -> float:
    return float(right.mean()) if right.size else math.nan


def nearest_networks(distances: Any, threshold: float = math.inf) -> np.ndarray:
    """The simplest guess at parents: of every network the nearest other one.

    Args:
        distances: Distances ``[N, N]``; those of networks to themselves are not looked at.
        threshold: Distance from which on there is no parent.

    Returns:
        Predicted parents ``[N]``.

    Raises:
        ValueError: If the distances are not square.

    Example:
        >>> nearest_networks([[0, 1, 5], [1, 0, 4], [5, 4, 0]], threshold=3).tolist()
        [1, 0, -1]
    """
    distances = _distances(distances)
    return np.where(distances.min(1, initial=math.inf) < threshold, distances.argmin(1) if len(distances) else -1, -1)


def parent_accuracy(predicted: Any, parents: Any) -> float:
    """Share of the networks with a parent whose parent is the predicted one.

    Args:
        predicted: Predicted parents ``[N]``.
        parents: True parents ``[N]``.

    Returns:
        A share from 0 to 1.

    Raises:
        ValueError: If something else than positions is given.

    Example:
        >>> parent_accuracy([-1, 0, 1, -1], [-1, 0, 0, -1])
        0.5
    """
    parents = _parents("parents", parents)
    return _share((_parents("predicted", predicted, len(parents)) == parents)[parents >= 0])


def parent_accuracy_by(predicted: Any, parents: Any, derivations: Any) -> dict[str, float]:
    """The accuracy of parents, for networks of every derivation apart.

    Args:
        predicted: Predicted parents ``[N]``.
        parents: True parents ``[N]``.
        derivations: How each was made ``[N]``.

    Returns:
        Shares by the names of derivations whose networks have parents, in alphabetical order.

    Raises:
        ValueError: If something else than positions is given.

    Example:
        >>> parent_accuracy_by([-1, 0, 1, 1], [-1, 0, 0, 1], ["root", "noisy", "pruned", "noisy"])
        {'noisy': 1.0, 'pruned': 0.0}
    """
    parents, derivations = _parents("parents", parents), np.asarray(derivations)
    right = _parents("predicted", predicted, len(parents)) == parents
    chosen = {str(name): (derivations == name) & (parents >= 0) for name in np.unique(derivations)}
    return {name: _share(right[rows]) for name, rows in chosen.items() if rows.any()}


def forest_f1(predicted: Any, parents: Any, *, directed: bool = True) -> float:
    r"""Agreement of the edges from parents to children.

    .. math:: F_1 = \frac{2 |E \cap \hat E|}{|E| + |\hat E|}

    with the true edges :math:`E` and the predicted ones :math:`\hat E`.

    Args:
        predicted: Predicted parents ``[N]``.
        parents: True parents ``[N]``.
        directed: Whether an edge the wrong way round is wrong; otherwise two networks that are each other's predicted parents are one
            edge.

    Returns:
        A number from 0 to 1.

    Raises:
        ValueError: If something else than positions is given.

    Example:
        >>> forest_f1([1, -1], [-1, 0]), forest_f1([1, -1], [-1, 0], directed=False)
        (0.0, 1.0)
    """
    parents = _parents("parents", parents)

    def edges(values: np.ndarray) -> set[tuple[int, int]]:
        pairs = ((int(parent), child) for child, parent in enumerate(values) if parent >= 0)
        return set(pairs) if directed else {(min(pair), max(pair)) for pair in pairs}

    true, found = edges(parents), edges(_parents("predicted", predicted, len(parents)))
    return 2 * len(true & found) / (len(true) + len(found)) if true or found else math.nan


def false_alarms(predicted: Any, parents: Any) -> float:
    """Share of the networks without a parent for which one is predicted.

    Args:
        predicted: Predicted parents ``[N]``.
        parents: True parents ``[N]``.

    Returns:
        A share from 0 to 1.

    Raises:
        ValueError: If something else than positions is given.

    Example:
        >>> false_alarms([-1, 0, 0, -1], [-1, 0, -1, -1]) == 1 / 3
        True
    """
    parents = _parents("parents", parents)
    return _share((_parents("predicted", predicted, len(parents)) >= 0)[parents < 0])


def _nearest(distances: np.ndarray, k: int) -> np.ndarray:
    if not isinstance(k, int) or k < 1:
        raise ValueError(f"Expected 'k' to be a positive integer (got {k!r}).")
    return distances.argsort(1, kind="stable")[:, : min(k, len(distances) - 1)]


def parent_recall(distances: Any, parents: Any, k: int = 1) -> float:
    """Share of the networks with a parent that have it among their ``k`` nearest.

    Args:
        distances: Distances ``[N, N]``; those of networks to themselves are not looked at.
        parents: True parents ``[N]``.
        k: How many networks are looked at.

    Returns:
        A share from 0 to 1.

    Raises:
        ValueError: If the distances are not square, something else than positions is given, or ``k`` is not positive.

    Example:
        >>> parent_recall([[0, 1, 2], [1, 0, 1], [2, 1, 0]], [-1, 0, 0]), parent_recall([[0, 1, 2], [1, 0, 1], [2, 1, 0]], [-1, 0, 0], 2)
        (0.5, 1.0)
    """
    distances = _distances(distances)
    parents = _parents("parents", parents, len(distances))
    return _share((_nearest(distances, k) == parents[:, None]).any(1)[parents >= 0])


def family_recall(distances: Any, families: Any, k: int = 1) -> float:
    """Share of the networks with relatives that have one among their ``k`` nearest.

    Args:
        distances: Distances ``[N, N]``; those of networks to themselves are not looked at.
        families: Labels ``[N]``, equal for relatives, such as those of :func:`trees_of`.
        k: How many networks are looked at.

    Returns:
        A share from 0 to 1.

    Raises:
        ValueError: If the distances are not square, there is not one label for each, or ``k`` is not positive.

    Example:
        >>> family_recall([[0, 1, 2], [1, 0, 1], [2, 1, 0]], ["a", "b", "a"]), family_recall([[0, 1], [1, 0]], ["a", "a"])
        (0.0, 1.0)
    """
    distances, families = _distances(distances), np.asarray(families)
    if families.shape != distances.shape[:1]:
        raise ValueError(f"Expected one label for each of {len(distances)} networks in 'families' (got shape {list(families.shape)}).")
    _, own, sizes = np.unique(families, return_inverse=True, return_counts=True)
    return _share((own[_nearest(distances, k)] == own[:, None]).any(1)[sizes[own] > 1])


def trees_of(parents: Any) -> np.ndarray:
    """The trees that parents and children make.

    Args:
        parents: Parents ``[N]``.

    Returns:
        Labels ``[N]``, equal for networks of one tree.

    Raises:
        ValueError: If something else than positions is given.

    Example:
        >>> trees_of([-1, 0, -1, 1]).tolist()
        [0, 0, 1, 0]
    """
    parents = _parents("parents", parents)
    children = np.flatnonzero(parents >= 0)
    edges = coo_array((np.ones(len(children)), (children, parents[children])), (len(parents), len(parents)))
    labels: np.ndarray = connected_components(edges, directed=False)[1]
    return labels
