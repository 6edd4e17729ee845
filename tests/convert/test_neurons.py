"""Partitions of neurons: what is done for many families at once is what is done family by family."""

import numpy as np
import pytest

from wsgraph.convert.tracing.arrays import Growing, distinct, numbered, occurrence
from wsgraph.convert.tracing.partition import Partition


def state(partition: Partition) -> dict[str, list[object]]:
    """All that can be asked of a partition."""
    ids = np.arange(len(partition._family))
    return {
        "neurons": partition.resolve(ids).tolist(),
        "families": partition.family(ids).tolist(),
        "parts": partition.part(ids).tolist(),
        "fixed": partition.is_fixed(ids).tolist(),
        "members": [members.tolist() for members in partition._members],
    }


def refined(seed: int, *, at_once: bool) -> Partition:
    """A partition after random refinements."""
    partition = Partition()
    if not at_once:
        partition._unify_apart = lambda one, other: False  # type: ignore[method-assign]
    random = np.random.default_rng(seed)
    layers = [partition.new(size) for size in (4, 6, 10, 10, 16, 26, 26, 52, 8)]
    for step in range(12):
        kind = random.integers(6)
        first = layers[random.integers(len(layers))]
        if kind == 0:
            partition.split(random.choice(first, 3, replace=False), f"split {step}")
        elif kind == 1 and random.random() < 0.2:
            partition.fix(first[:1], f"fix {step}")
        elif kind == 2:  # neurons repeated, as by flattening
            partition.unify(np.repeat(layers[5], 2), layers[7], f"repeat {step}")
        elif kind == 3:  # one layer's neurons laid end to end
            partition.unify(np.concatenate([layers[2], layers[4]]), random.permutation(layers[5]), f"cat {step}")
        elif kind == 4:
            partition.unify(np.concatenate([layers[0], layers[1]]), layers[2], f"cat {step}")
        else:
            count = int(random.integers(2, 8))
            others = layers[random.integers(len(layers))]
            pairs = random.permutation(first)[:count], random.permutation(others)[:count]
            count = min(map(len, pairs))
            partition.unify(pairs[0][:count], pairs[1][:count], f"pairs {step}")
    return partition


def test_families_unified_at_once_are_those_unified_one_by_one() -> None:
    different = 0
    for seed in range(60):
        at_once, one_by_one = (refined(seed, at_once=way) for way in (True, False))
        assert state(at_once) == state(one_by_one), seed
        assert at_once.reasons == one_by_one.reasons
        different += len({*state(at_once)["families"]}) > 3
    assert different > 10


def test_what_became_one_neuron_stays_together() -> None:
    partition = Partition()
    layers = [partition.new(5) for _ in range(400)]  # more than are followed one by one
    for layer in layers[1:]:
        partition.unify(layers[0], layer, "sum")
    assert all((partition.resolve(layer) == layers[0]).all() for layer in layers)
    partition.split(layers[7][1:3], "slice")
    parts = np.stack([partition.part(layer) for layer in layers])
    assert (parts[:, 1] == parts[:, 2]).all()
    assert (parts[:, 1] != parts[:, 0]).all()
    assert len(distinct(partition.family(np.concatenate(layers)))) == 2


def test_unifying_layers_touches_only_their_neurons(monkeypatch: pytest.MonkeyPatch) -> None:
    partition = Partition()
    layers = [partition.new(32) for _ in range(300)]
    touched = 0
    read = Growing.__getitem__

    def count(self: Growing, index: object) -> object:
        nonlocal touched
        result = read(self, index)
        touched += np.size(result)
        return result

    monkeypatch.setattr(Growing, "__getitem__", count)
    for one, other in zip(layers[::2], layers[1::2], strict=True):
        partition.unify(one, other, "sum")
    assert 0 < touched < 20 * 32 * len(layers)


@pytest.mark.parametrize("numbers", [[], [3], [1, 2, 9], [4, 4, 4], [5, 1, 5, 2, 1, 5]])
def test_numbers_of_a_vector(numbers: list[int]) -> None:
    given = np.array(numbers, np.int64)
    values, which, counts = np.unique(given, return_inverse=True, return_counts=True)
    assert distinct(given).tolist() == values.tolist()
    assert [found.tolist() for found in numbered(given)] == [values.tolist(), which.tolist(), counts.tolist()]
    assert occurrence(given).tolist() == [numbers[:i].count(number) for i, number in enumerate(numbers)]
