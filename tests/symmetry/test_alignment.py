import pytest
import torch
from torch import nn

from wsgraph import SpaceMismatchError, WeightSpace, trace
from wsgraph.symmetry import align

SPACES = {
    "relu": WeightSpace.mlp([4, 12, 12, 2]),
    "tanh": WeightSpace.mlp([4, 12, 12, 2], "tanh"),
    "identity": WeightSpace.mlp([4, 12, 2], "identity"),
    "gelu": WeightSpace.mlp([4, 12, 12, 2], "gelu"),
    "cnn": WeightSpace.cnn([1, 8, 8], [3]),
}


def _thetas(space: WeightSpace, count: int, seed: int = 0) -> torch.Tensor:
    return space.sample(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", SPACES)
def test_moved_networks_are_brought_back(name: str) -> None:
    space = SPACES[name]
    thetas = _thetas(space, 4)
    moved = space.act(space.sample_symmetry(4, (1e-3, 1e3), generator=torch.Generator().manual_seed(1)), thetas)
    g = align(space, moved, thetas)
    torch.testing.assert_close(space.act(g, moved), thetas, rtol=1e-9, atol=1e-12)
    # One reference for all: only the network that is the reference coincides with it.
    back = space.act(align(space, moved, thetas[0]), moved)
    torch.testing.assert_close(back[0], thetas[0], rtol=1e-9, atol=1e-12)
    assert (back[1:] - thetas[:1]).abs().amax(1).min() > 1e-3


@pytest.mark.parametrize("name", SPACES)
def test_alignment_keeps_functions_and_brings_networks_closer(name: str) -> None:
    space = SPACES[name]
    thetas = _thetas(space, 4)
    references = space.act(space.sample_symmetry(4, generator=torch.Generator().manual_seed(1)), thetas + 0.05 * _thetas(space, 4, seed=2))
    aligned = space.act(align(space, thetas, references), thetas)
    inputs = space.example_inputs(6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(space.evaluate(aligned, inputs), space.evaluate(thetas, inputs), rtol=1e-9, atol=1e-9)
    assert ((aligned - references).norm(dim=1) < 0.5 * (thetas - references).norm(dim=1)).all()


def test_alignment_of_a_traced_network_with_norms() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.Tanh(), nn.Flatten(), nn.Linear(8 * 4, 3)]
    net = nn.Sequential(*layers).double().eval()
    norm = net[1]
    assert isinstance(norm, nn.BatchNorm2d)
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        assert tensor is not None
        nn.init.normal_(tensor)
    space = trace(net, torch.randn(2, 2, 6, 6, dtype=torch.float64))
    theta = space.flatten(net.state_dict())[None]
    moved = space.act(space.sample_symmetry(1, (0.1, 10.0), generator=torch.Generator().manual_seed(3)), theta)
    assert (moved != theta).double().mean() > 0.9
    torch.testing.assert_close(space.act(align(space, moved, theta), moved), theta, rtol=1e-8, atol=1e-10)


def test_networks_without_weights_on_one_side_stay_finite() -> None:
    space = SPACES["relu"]
    thetas = _thetas(space, 2)
    thetas[0, space.slices["layers.0.weight"]] = 0
    thetas[1] = 0
    assert space.act(align(space, thetas, _thetas(space, 2, seed=1)), thetas).isfinite().all()


def test_errors_name_the_argument() -> None:
    space = SPACES["relu"]
    thetas = _thetas(space, 2)
    with pytest.raises(SpaceMismatchError, match=r"one reference or one per network, 2 \(got 3\)"):
        align(space, thetas, _thetas(space, 3))
    with pytest.raises(SpaceMismatchError, match="Expected 'reference' of shape"):
        align(space, thetas, thetas[0, :-1])
    with pytest.raises(ValueError, match="'reference' holds NaN"):
        align(space, thetas, thetas * float("nan"))
