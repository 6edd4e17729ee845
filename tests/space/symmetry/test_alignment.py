from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

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


def test_nothing_to_align() -> None:
    space = WeightSpace.mlp([2, 3, 1])
    with pytest.raises(SpaceMismatchError, match="at least one network to align"):
        align(space, space.sample(1)[:0], space.sample(1)[0])


def test_errors_name_the_argument() -> None:
    space = SPACES["relu"]
    thetas = _thetas(space, 2)
    with pytest.raises(SpaceMismatchError, match=r"one reference or one per network, 2 \(got 3\)"):
        align(space, thetas, _thetas(space, 3))
    with pytest.raises(SpaceMismatchError, match="Expected 'reference' of shape"):
        align(space, thetas, thetas[0, :-1])
    with pytest.raises(ValueError, match="'reference' holds NaN"):
        align(space, thetas, thetas * float("nan"))


# == Never farther, planted elements, activations ==


class Residual(nn.Module):
    """A small residual network with batch norms."""

    def __init__(self, activation: type[nn.Module] = nn.ReLU, channels: int = 6) -> None:
        super().__init__()
        self.stem, self.norm, self.activation = nn.Conv2d(1, channels, 3, padding=1), nn.BatchNorm2d(channels), activation()
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, channels, 3, padding=1),
                nn.BatchNorm2d(channels),
                activation(),
                nn.Conv2d(channels, channels, 3, padding=1),
                nn.BatchNorm2d(channels),
            )
            for _ in range(2)
        )
        self.head = nn.Linear(channels, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.norm(self.stem(x)))
        for block in self.blocks:
            x = self.activation(x + block(x))
        return self.head(x.mean((2, 3)))


def _settled(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module in double precision, with norms and biases as training leaves them."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        elif tensor.is_floating_point() and tensor.ndim == 1:
            tensor.add_(0.5 * torch.randn(tensor.shape, generator=generator))
    return module.double().eval()


class Gated(nn.Module):
    """Two layers whose gates come from one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.first, self.second, self.head = (nn.Linear(*size) for size in ((3, 8), (3, 4), (3, 4), (8, 2)))

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.gates(x).sigmoid().chunk(2, -1)
        return self.head(torch.cat([one * self.first(x).relu(), other * self.second(x).relu()], -1))


TRACED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual": (Residual, (2, 1, 6, 6)),
    "residual tanh": (lambda: Residual(nn.Tanh), (2, 1, 6, 6)),
    "gates": (Gated, (2, 3)),
    "transformer": (lambda: nn.TransformerEncoderLayer(16, 4, 24, batch_first=True), (2, 5, 16)),
    "pre-norm transformer": (
        lambda: nn.Sequential(nn.Linear(3, 12), nn.TransformerEncoderLayer(12, 3, 16, batch_first=True, norm_first=True), nn.Linear(12, 2)),
        (2, 5, 3),
    ),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name == "residual" else name for name in TRACED])
def test_planted_elements_of_traced_networks_are_undone(name: str) -> None:
    make, shape = TRACED[name]
    for seed in range(2):
        torch.manual_seed(seed)
        module = _settled(make(), seed)
        space = trace(module, torch.randn(shape, dtype=torch.float64))
        theta = space.flatten(module.state_dict())[None]
        generator = torch.Generator().manual_seed(seed)
        moved = space.act(space.sample_symmetry(1, (1e-2, 1e2), generator=generator), theta)
        torch.testing.assert_close(space.act(align(space, moved, theta), moved), theta, rtol=1e-7, atol=1e-9)
        # And those of a network beside it, to about what it was moved by.
        near = theta + 0.02 * theta.abs().mean() * torch.randn(theta.shape, generator=generator, dtype=torch.float64)
        moved = space.act(space.sample_symmetry(1, (1e-2, 1e2), generator=generator), near)
        assert (space.act(align(space, moved, theta), moved) - theta).norm() <= 1.0001 * (near - theta).norm()


@pytest.mark.parametrize("name", SPACES)
def test_networks_are_never_farther_after_alignment(name: str) -> None:
    space = SPACES[name]
    reference = _thetas(space, 1)[0]
    for i, noise in enumerate((0.0, 0.03, 0.3, 3.0)):
        near = reference + noise * reference.abs().mean() * _thetas(space, 6, seed=i).sign()
        aligned = space.act(align(space, near, reference), near)
        assert ((aligned - reference).norm(dim=1) <= (near - reference).norm(dim=1) * (1 + 1e-12)).all()


@pytest.mark.parametrize("size", [1e-30, 1e-7, 1e7])
def test_the_size_of_weights_does_not_matter(size: float) -> None:
    space = SPACES["cnn"]
    thetas = _thetas(space, 2) * size
    moved = space.act(space.sample_symmetry(2, (0.1, 10), generator=torch.Generator().manual_seed(1)), thetas)
    torch.testing.assert_close(space.act(align(space, moved, thetas), moved) / size, thetas / size, rtol=1e-9, atol=1e-9)


def test_factors_of_least_distance_by_hand() -> None:
    # One neuron with incoming weight 1 and outgoing weight 1, the reference's are 2 and 4: d + 1/d must fit (2, 4) best.
    space = WeightSpace.mlp([1, 1, 1], bias=False)
    reference, theta = torch.tensor([2.0, 4.0]).double(), torch.tensor([[1.0, 1.0]]).double()
    grid = torch.logspace(-2, 2, 100_001, dtype=torch.float64)
    best = grid[((grid - 2) ** 2 + (1 / grid - 4) ** 2).argmin()]
    g = align(space, theta, reference)
    torch.testing.assert_close(g.scales["hidden.1"], best.view(1, 1), rtol=1e-4, atol=0)


@pytest.mark.slow
def test_counters_are_no_part_of_the_distance() -> None:
    module = _settled(Residual())
    space = trace(module, torch.randn(2, 1, 6, 6, dtype=torch.float64))
    theta = space.flatten(module.state_dict())[None]
    moved = space.act(space.sample_symmetry(1, (0.1, 10.0), generator=torch.Generator().manual_seed(0)), theta)
    counted = moved.clone()
    counted[:, space.slices["norm.num_batches_tracked"]] = 1e9
    g, same = align(space, counted, theta), align(space, moved, theta)
    assert all(torch.equal(g.permutations[label], same.permutations[label]) for label in g.permutations)
    assert all(torch.allclose(g.scales[label], same.scales[label], rtol=1e-12) for label in g.scales)


@pytest.mark.parametrize("name", SPACES)
def test_activations_match_neurons_of_chains(name: str) -> None:
    space = SPACES[name]
    thetas = _thetas(space, 3)
    moved = space.act(space.sample_symmetry(3, (0.1, 10), generator=torch.Generator().manual_seed(1)), thetas)
    shape = space.example_inputs(1).shape[1:]
    inputs = torch.randn(40, *shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    torch.testing.assert_close(space.act(align(space, moved, thetas, inputs=inputs), moved), thetas, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", TRACED)
def test_activations_match_neurons_of_traced_networks(name: str) -> None:
    make, shape = TRACED[name]
    torch.manual_seed(0)
    module = _settled(make())
    space = trace(module, torch.randn(shape, dtype=torch.float64))
    theta = space.flatten(module.state_dict())[None]
    moved = space.act(space.sample_symmetry(1, (0.1, 10.0), generator=torch.Generator().manual_seed(1)), theta)
    inputs = torch.randn(20, *shape[1:], generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for runs in (module, None):
        aligned = space.act(align(space, moved, theta, inputs=inputs, module=runs), moved)
        torch.testing.assert_close(aligned, theta, rtol=1e-7, atol=1e-9)
    with pytest.raises(SpaceMismatchError, match=r"without the 'module' that was traced, has to run networks .* does not say"):
        align(replace(space, program=None), moved, theta, inputs=inputs)


class TokenMixing(nn.Module):
    """Tokens and channels are mixed in turn, so that neurons of two classes lie along the axes of one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.tokens = nn.Linear(3, 6), nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 4))
        self.last = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.last((x + self.tokens(x.transpose(1, 2)).transpose(1, 2)).mean(1))


@pytest.mark.parametrize("name", ["token mixing", "dead neurons", "constant neurons"])
def test_weights_match_neurons_of_which_answers_say_nothing(name: str) -> None:
    torch.manual_seed(0)
    shape = (4, 3) if name == "token mixing" else (3,)
    chain = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2))
    module = (TokenMixing() if name == "token mixing" else chain).double().eval()
    with torch.no_grad():
        if name == "dead neurons":
            module.get_parameter("0.bias")[1:4] = -8.0
        elif name == "constant neurons":
            module.get_parameter("2.weight")[1:4] = 0.0
    space = trace(module, torch.randn(2, *shape, dtype=torch.float64))
    theta = space.flatten(module.state_dict())[None]
    inputs = torch.randn(60, *shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for seed in range(3):
        moved = space.act(space.sample_symmetry(1, generator=torch.Generator().manual_seed(seed)), theta)
        aligned = space.act(align(space, moved, theta, inputs=inputs, module=None if space.layers else module), moved)
        torch.testing.assert_close(aligned, theta, rtol=1e-7, atol=1e-9)


def test_matching_by_activations_says_what_it_needs() -> None:
    space = SPACES["relu"]
    thetas = _thetas(space, 2)
    with pytest.raises(ValueError, match="A 'module' is run on 'inputs'"):
        align(space, thetas, thetas, module=nn.Linear(2, 2))
    with pytest.raises(SpaceMismatchError, match=r"one tensor of 'inputs' .* \(got 2\)"):
        align(space, thetas, thetas, inputs=(torch.zeros(3, 4), torch.zeros(3, 4)))
    module, other = _settled(Residual()), _settled(Residual(channels=5))
    inputs = torch.randn(2, 1, 6, 6, dtype=torch.float64)
    space = trace(module, inputs)
    theta = space.flatten(module.state_dict())[None]
    with pytest.raises(SpaceMismatchError, match="The 'module' has another weight space"):
        align(space, theta, theta, inputs=inputs, module=other)
