"""Scores of heritage on cases made by hand, and the baselines' invariances."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from wsgraph.bench.provenance_baselines import BaselineContext, list_provenance_baselines, provenance_baseline
from wsgraph.bench.provenance_scores import (
    false_alarms,
    family_recall,
    forest_f1,
    nearest_networks,
    parent_accuracy,
    parent_accuracy_by,
    parent_recall,
    trees_of,
)
from wsgraph.data.generators.lineages import lineage_kind

# A root with two children and a grandchild, a stranger, and a distilled network with a child.
PARENTS = np.array([-1, 0, 0, 2, -1, -1, 5])
WAYS = np.array(["root", "noisy", "pruned", "noisy", "root", "distilled", "pruned"])


def test_a_perfect_guess() -> None:
    assert parent_accuracy(PARENTS, PARENTS) == 1
    assert parent_accuracy_by(PARENTS, PARENTS, WAYS) == {"noisy": 1, "pruned": 1}
    assert forest_f1(PARENTS, PARENTS) == forest_f1(PARENTS, PARENTS, directed=False) == 1
    assert false_alarms(PARENTS, PARENTS) == 0


def test_accuracy_of_parents() -> None:
    predicted = np.array([1, 0, -1, 0, 3, -1, 5])  # one is not found, one is given to its grandparent, two get one that have none
    assert parent_accuracy(predicted, PARENTS) == 0.5
    assert parent_accuracy_by(predicted, PARENTS, WAYS) == {"noisy": 0.5, "pruned": 0.5}
    assert false_alarms(predicted, PARENTS) == 2 / 3


def test_edges() -> None:
    predicted = np.array([1, -1, 0, 2, -1, -1, -1])  # 0 -> 1 the wrong way round, 5 -> 6 missing
    assert forest_f1(predicted, PARENTS) == pytest.approx(2 * 2 / (4 + 3))
    assert forest_f1(predicted, PARENTS, directed=False) == pytest.approx(2 * 3 / (4 + 3))
    mutual = np.array([1, 0, -1, -1, -1, -1, -1])  # two that are each other's parents are one edge
    assert forest_f1(mutual, PARENTS) == pytest.approx(2 / (4 + 2))
    assert forest_f1(mutual, PARENTS, directed=False) == pytest.approx(2 / (4 + 1))
    assert forest_f1(np.full(7, -1), PARENTS) == 0


def test_recall() -> None:
    places = np.array([0.0, 1.0, 2.5, 2.9, 3.1, 9.0, 9.5])
    distances = np.abs(places[:, None] - places)
    assert nearest_networks(distances).tolist() == [1, 0, 3, 4, 3, 6, 5]
    assert nearest_networks(distances, threshold=0.3).tolist() == [-1, -1, -1, 4, 3, -1, -1]
    assert parent_recall(distances, PARENTS, 1) == 0.5  # of 1 and 6
    assert parent_recall(distances, PARENTS, 2) == 0.75  # of 3 too
    assert parent_recall(distances, PARENTS, 3) == 0.75
    assert parent_recall(distances, PARENTS, 4) == 1
    assert parent_recall(torch.from_numpy(distances), torch.from_numpy(PARENTS), 100) == 1
    trees = trees_of(PARENTS)
    assert trees.tolist() == [0, 0, 0, 0, 1, 2, 2]
    assert family_recall(distances, trees) == 5 / 6  # 3 is next to the stranger
    assert family_recall(distances, trees, 2) == 1
    assert family_recall(distances, ["a", "b", "c", "d", "e", "f", "f"]) == 1


def test_distances_of_networks_to_themselves_do_not_count() -> None:
    distances = np.array([[5.0, 1, 2], [1, 5, 3], [2, 3, 5]])
    kept = distances.copy()
    assert parent_recall(distances, [-1, 0, 0]) == 1
    assert np.array_equal(distances, kept)


def test_nothing_to_score() -> None:
    nobody = np.array([-1, -1])
    assert math.isnan(parent_accuracy(nobody, nobody))
    assert parent_accuracy_by(nobody, nobody, ["root", "root"]) == {}
    assert math.isnan(forest_f1(nobody, nobody))
    assert math.isnan(false_alarms([1, 0], [1, 0]))
    assert math.isnan(parent_recall(np.zeros((2, 2)), nobody))
    assert math.isnan(family_recall(np.zeros((2, 2)), [0, 1]))
    assert nearest_networks(np.zeros((1, 1))).tolist() == [-1]


@pytest.mark.parametrize("predicted", [[0, 1], [0, 1, 3], [0, -2, 1], [0.0, 1.0, 2.0], [[0, 1, 2]]])
def test_what_are_no_positions(predicted: Any) -> None:
    with pytest.raises(ValueError, match=r"Expected 'predicted' to hold a position from 0 to 2, or -1, for each of 3 networks \(got"):
        parent_accuracy(predicted, [-1, 0, 0])


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"Expected 'distances' of every network to every other one, \[N, N\] \(got shape \[2, 3\]\)"):
        nearest_networks(np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"Expected 'k' to be a positive integer \(got 0\)"):
        parent_recall(np.zeros((2, 2)), [-1, 0], 0)
    with pytest.raises(ValueError, match=r"Expected one label for each of 2 networks in 'families' \(got shape \[3\]\)"):
        family_recall(np.zeros((2, 2)), [0, 0, 0])


# == Baselines ==

INVARIANT = {
    "raw_l2": [],
    "raw_cosine": [],
    "sorted_weights": ["permutation"],
    "statistics": ["permutation"],
    "activations": ["permutation", "scale", "sign"],
}


@pytest.mark.parametrize("kind_name", ["cnn", "resnet", "siren"])
@pytest.mark.parametrize("name", INVARIANT)
def test_baselines(name: str, kind_name: str) -> None:
    assert set(INVARIANT) <= set(list_provenance_baselines())
    kind, generator = lineage_kind(kind_name), torch.Generator().manual_seed(0)
    thetas = kind.space.sample(6, generator=generator, dtype=torch.float64)
    near = thetas[:3] + 1e-3 * thetas[:3].abs().mean() * torch.randn(3, kind.space.num_params, generator=generator)
    for param in kind.space.params:
        if param.role == "variance":
            near[:, kind.space.slices[param.name]] = thetas[:3, kind.space.slices[param.name]]
    networks = torch.cat([thetas, near])
    context = BaselineContext(kind.inputs[:16], kind.module)
    distances = provenance_baseline(name)(kind.space, networks, context)
    assert distances.shape == (9, 9)
    assert distances.dtype == torch.float64
    torch.testing.assert_close(distances, distances.T)
    assert (distances >= 0).all()
    assert (distances.diagonal() <= 1e-6 * distances.max()).all()
    assert nearest_networks(distances)[6:].tolist() == [0, 1, 2]
    if INVARIANT[name]:
        g = kind.space.sample_symmetry(9, (0.1, 10), symmetries=INVARIANT[name], generator=generator)
        moved = provenance_baseline(name)(kind.space, kind.space.act(g, networks), context)
        torch.testing.assert_close(moved, distances, rtol=1e-3, atol=1e-3 * float(distances.max()))
