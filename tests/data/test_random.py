"""The counter-based generator: good numbers, and each a function of its address alone."""

import pytest
import torch
from scipy.stats import kstest

from wsgraph.data import CounterRandom

NETWORKS = torch.arange(200)


def test_uniform_numbers_are_uniform() -> None:
    values = CounterRandom(0).uniform(NETWORKS, "test", (500,))
    assert values.shape == (200, 500)
    assert values.dtype == torch.float64
    assert values.min() >= 0
    assert values.max() < 1
    assert float(values.mean()) == pytest.approx(1 / 2, abs=0.004)
    assert float(values.var()) == pytest.approx(1 / 12, abs=0.001)
    assert kstest(values.flatten(), "uniform").pvalue > 0.01


def test_normal_numbers_are_normal() -> None:
    values = CounterRandom(0).normal(NETWORKS, "test", (500,))
    assert values.isfinite().all()
    assert float(values.mean()) == pytest.approx(0, abs=0.013)
    assert float(values.var()) == pytest.approx(1, abs=0.02)
    assert kstest(values.flatten(), "norm").pvalue > 0.01


def test_every_bit_is_balanced() -> None:
    bits = CounterRandom(3).bits(NETWORKS, "test", (500,)).flatten()
    ones = torch.stack([(bits >> i) & 1 for i in range(64)]).double().mean(1)
    assert (ones - 0.5).abs().max() < 0.007


def test_neighbours_are_uncorrelated() -> None:
    random = CounterRandom(0)
    values = random.normal(NETWORKS, "test", (500,))
    others = {
        "position": values.roll(1, dims=1),
        "network": values.roll(1, dims=0),
        "step": random.normal(NETWORKS, "test", (500,), step=1),
        "purpose": random.normal(NETWORKS, "other", (500,)),
        "seed": CounterRandom(1).normal(NETWORKS, "test", (500,)),
    }
    for name, other in others.items():
        correlation = float(torch.corrcoef(torch.stack([values.flatten(), other.flatten()]))[0, 1])
        assert abs(correlation) < 0.013, name


def test_numbers_repeat_and_do_not_depend_on_the_batch() -> None:
    whole = CounterRandom(7).bits(NETWORKS, "test", (4, 5), step=9)
    chosen = torch.tensor([150, 3, 3, 77])
    assert torch.equal(CounterRandom(7).bits(chosen, "test", (4, 5), step=9), whole[chosen])
    assert whole.unique().numel() == whole.numel()


def test_longer_shapes_extend_shorter_ones() -> None:
    random = CounterRandom(7)
    assert torch.equal(random.bits(NETWORKS, "test", (12,))[:, :5], random.bits(NETWORKS, "test", (5,)))
    assert random.bits(NETWORKS, "test").shape == (200,)


def test_the_numbers_are_part_of_the_format() -> None:
    # Zoos are resumed and compared across versions, so these may only change together with the trainer's algorithm number.
    assert CounterRandom(0).bits(torch.arange(3), "test").tolist() == [6815867636790816702, -7919686095845419670, 5945927669122242651]
    assert repr(CounterRandom(5)) == "CounterRandom(seed=5)"
