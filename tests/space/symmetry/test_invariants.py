"""Numbers that no symmetry changes, and distances of orbits."""

import pytest
import torch
from torch import nn

from tests.spaces import SPACES
from wsgraph import SpaceMismatchError, WeightSpace, trace
from wsgraph.space.symmetry.invariants import Invariants
from wsgraph.space.symmetry.metric import OrbitMetric


class _Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.grouped, self.last = nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.first(x)))
        return self.last((x + self.grouped(x)).mean((2, 3)))


def _traced() -> dict[str, WeightSpace]:
    attention = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0).double().eval()
    return {
        "residual_norms": trace(_Residual().double().eval(), torch.randn(2, 2, 6, 6, dtype=torch.float64)),
        "attention": trace(attention, torch.randn(2, 5, 8, dtype=torch.float64)),
    }


ALL = {**SPACES, **_traced()}


@pytest.mark.parametrize("name", ALL)
def test_no_symmetry_changes_balanced_networks(name: str) -> None:
    space, generator = ALL[name], torch.Generator().manual_seed(0)
    thetas = space.sample(5, generator=generator, dtype=torch.float64)
    moved = space.act(space.sample_symmetry(5, (1e-4, 1e4), generator=generator), thetas)
    metric, invariants = OrbitMetric(space), Invariants(space)
    points, other = metric.prepare(thetas), metric.prepare(moved)
    values, again = invariants(points), invariants(other)
    torch.testing.assert_close(again, values, rtol=1e-8, atol=1e-9)
    assert values.shape == (5, invariants.length)
    # A negative control: other networks, and the same with one entry changed, have other numbers.
    assert (values[0] - values[1]).abs().max() > 1e-3
    if space.permutation_classes:
        changed = points.clone()
        where = next(space.slices[param.name].start for param in space.params if param.role == "weight")
        changed[:, where] += 0.5
        assert ((invariants(changed) - values).abs().amax(1) > 1e-4).all()


@pytest.mark.parametrize("name", ["cnn_relu", "mlp_sine", "residual_norms"])
def test_equal_seeds_equal_numbers_and_small_changes_small(name: str) -> None:
    space, generator = ALL[name], torch.Generator().manual_seed(0)
    points = OrbitMetric(space).prepare(space.sample(4, generator=generator, dtype=torch.float64))
    assert torch.equal(Invariants(space, seed=1)(points), Invariants(space, seed=1)(points))
    assert not torch.equal(Invariants(space, seed=1)(points), Invariants(space, seed=2)(points))
    noise = torch.randn(points.shape, generator=generator, dtype=torch.float64)
    near = (Invariants(space)(points + 1e-6 * noise) - Invariants(space)(points)).norm(dim=1)
    assert (near < 1e-6 * 100 * noise.norm(dim=1)).all()
    with pytest.raises(SpaceMismatchError):
        Invariants(space)(points[:, 1:])


@pytest.mark.parametrize("name", ["cnn_relu", "cnn_tanh", "mlp_sine", "residual_relu", "residual_norms", "attention"])
def test_distance_is_of_orbits(name: str) -> None:
    space, generator = ALL[name], torch.Generator().manual_seed(0)
    thetas = space.sample(6, generator=generator, dtype=torch.float64)
    moved = space.act(space.sample_symmetry(6, (1e-3, 1e3), generator=generator), thetas)
    metric = OrbitMetric(space)
    points, other = metric.prepare(thetas), metric.prepare(moved)
    match = metric.match(points, other)
    assert (match.distances <= 1e-8 * points.norm(dim=1)).all()
    torch.testing.assert_close(space.act(match.element, points), other, rtol=1e-8, atol=1e-9)
    strangers = metric.match(points[:3], points[3:]).distances
    assert (strangers > 0.1 * points[:3].norm(dim=1)).all()
    assert (strangers <= (points[:3] - points[3:]).norm(dim=1) * (1 + 1e-9)).all() or name != "attention"


def test_weights_count() -> None:
    space = WeightSpace.mlp([2, 4, 1])
    points = OrbitMetric(space, {"layers.0.weight": 3.0}).prepare(torch.ones(1, space.num_params))
    plain = OrbitMetric(space).prepare(torch.ones(1, space.num_params))
    first = space.slices["layers.0.weight"]
    torch.testing.assert_close(points[:, first], 3 * plain[:, first])
    assert torch.equal(points[:, first.stop :], plain[:, first.stop :])
