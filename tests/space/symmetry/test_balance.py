"""Balanced networks: least norm, one point per orbit of factors."""

import pytest
import torch
from torch import nn

from wsgraph import SpaceMismatchError, WeightSpace, trace
from wsgraph.symmetry import balance


class _Squared(nn.Module):
    """A layer whose factors pass as their squares."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x)) ** 2)


def _spaces() -> dict[str, WeightSpace]:
    layers = [nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.Flatten(), nn.Linear(32, 3)]
    norms = trace(nn.Sequential(*layers).double().eval(), torch.randn(2, 2, 6, 6, dtype=torch.float64))
    squared = trace(_Squared().double().eval(), torch.randn(2, 3, dtype=torch.float64))
    return {"deep": WeightSpace.mlp([4, 12, 12, 12, 12, 2]), "norms": norms, "squared": squared}


SPACES = _spaces()


@pytest.mark.parametrize("name", SPACES)
def test_one_point_per_orbit_of_least_norm(name: str) -> None:
    space, generator = SPACES[name], torch.Generator().manual_seed(0)
    thetas = space.sample(6, generator=generator, dtype=torch.float64)
    thetas[3:] *= torch.rand(3, space.num_params, generator=generator, dtype=torch.float64) < 0.6  # some neurons die
    moved = space.act(space.sample_symmetry(6, (1e-4, 1e4), symmetries=["scale"], generator=generator), thetas)
    balanced, same = (space.act(balance(space, tensor, vanish=True), tensor) for tensor in (thetas, moved))
    torch.testing.assert_close(same, balanced, rtol=1e-9, atol=1e-11)
    g = space.sample_symmetry(6, (0.9, 1.1), symmetries=["scale"], generator=generator)
    buffers = torch.cat([torch.full((param.size,), param.role == "buffer") for param in space.params])
    squares = [tensor.square()[:, ~buffers].sum(1) for tensor in (balanced, space.act(g, balanced), thetas)]
    assert (squares[0] <= squares[1]).all()
    assert (squares[0] <= squares[2] * (1 + 1e-12)).all()


def test_dead_neurons_stay_unless_they_are_to_vanish() -> None:
    space = WeightSpace.mlp([2, 3, 1])
    thetas = space.sample(1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    state = space.unflatten(thetas[0])
    last = next(param.name for param in space.params[::-1] if param.role == "weight")
    state[last][:, 1] = 0  # nothing reads the second neuron
    theta = space.flatten(state)[None]
    (label,) = space.scale_classes.keys() & balance(space, theta).scales.keys()
    assert balance(space, theta).scales[label][0, 1] == 1
    assert balance(space, theta, vanish=True).scales[label][0, 1] < 1e-50


def test_networks_without_factors_stay() -> None:
    space = WeightSpace.mlp([2, 3, 1], "tanh")
    thetas = space.sample(2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(space.act(balance(space, thetas), thetas), thetas)
    with pytest.raises(SpaceMismatchError, match="at least one network to balance"):
        balance(space, thetas[:0])
