"""Learned inputs and what networks answer to them."""

import dataclasses

import pytest
import torch

from tests.networks import NETWORKS, make
from tests.spaces import CHAINS, SPACES
from wsgraph import ParameterGraph, SpaceMismatchError, WeightSpace, trace
from wsgraph.nn import MonomialGNN, Probes
from wsgraph.nn.normalize import symlog
from wsgraph.nn.probes import default_probes
from wsgraph.testing import assert_invariant


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("space", SPACES)
def test_answers_are_invariant(space: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    assert_invariant(Probes(SPACES[space], 5), SPACES[space], dtype=dtype)


def test_answers_are_those_of_the_networks() -> None:
    space = CHAINS["mlp_sine"]
    torch.manual_seed(0)
    probes = Probes(space, 4)
    thetas = space.sample(3)
    features = probes(space.batch(thetas)).view(3, 4, 2)
    outputs = space.evaluate(thetas, probes.inputs["2"])
    torch.testing.assert_close(features[..., 1:], outputs.sign() * torch.log1p(100 * outputs.abs()) / 5)
    assert (features[..., 0] == 1).all()  # the softmax of a single output


@pytest.mark.parametrize(
    ("space", "shape"),
    [
        (WeightSpace.cnn([1, 4, 4], [10]), (1, 8, 8)),
        (WeightSpace.cnn([1, 4, 4], [10], kernel_size=[7, 5]), (1, 11, 11)),
        (CHAINS["cnn_flatten"], (2, 4, 4)),
        (CHAINS["mlp_relu_no_bias"], (3,)),
    ],
)
def test_shape_of_the_inputs(space: WeightSpace, shape: tuple[int, ...]) -> None:
    assert [inputs.shape for inputs in Probes(space, 2).inputs.values()] == [(2, *shape)]


def test_shape_of_ones_own() -> None:
    space = WeightSpace.cnn([1, 4, 4], [10])
    assert Probes(space, 2, shape=(28, 20)).inputs["1x28x20"].shape == (2, 1, 28, 20)
    with pytest.raises(ValueError, match=r"does not accept inputs with the positions 'shape' \(2, 2\)"):
        Probes(space, 2, shape=(2, 2))


def test_inputs_are_trained_with_the_model() -> None:
    space = CHAINS["cnn_relu"]
    torch.manual_seed(0)
    model = MonomialGNN(space, 1, channels=8, rounds=1, probes=3)
    model(space.batch(space.sample(4))).sum().backward()
    assert model.probes is not None
    gradient = next(iter(model.probes.inputs.values())).grad
    assert gradient is not None
    assert gradient.abs().sum() > 0
    assert MonomialGNN(space, 1, channels=8, rounds=1, probes=0).probes is None


MIXED = [
    WeightSpace.cnn([1, 4, 4], [5], kernel_size=[3, 2]),
    WeightSpace.cnn([1, 3], [2], "tanh"),
    WeightSpace.mlp([1, 6, 3]),
]


def test_mixed_batches() -> None:
    torch.manual_seed(0)
    probes = Probes(MIXED, 3).double()
    assert sorted(probes.inputs) == ["1", "1x8x8"]
    batches = [space.batch(space.sample(2, dtype=torch.float64)) for space in MIXED]
    graphs = [batch[i] for i in range(2) for batch in batches]  # networks of one space do not lie together
    joined = probes(ParameterGraph.join(graphs))
    assert joined.shape == (6, 2 * 3 * 5)
    torch.testing.assert_close(joined, torch.stack([probes(batch)[i] for i in range(2) for batch in batches]), rtol=1e-12, atol=1e-12)
    alone = Probes(MIXED[1], 3).double()
    alone.inputs["1x8x8"] = probes.inputs["1x8x8"]
    padded = joined[[1, 4]].view(2, 3, 2, 5)
    torch.testing.assert_close(padded[..., :2].flatten(1), alone(batches[1]))
    assert padded[..., 2:].abs().sum() == 0


def test_unknown_networks_are_refused_unless_their_inputs_fit() -> None:
    probes = Probes(MIXED[0], 2)
    fitting, other, wide = WeightSpace.cnn([1, 7], [4]), WeightSpace.mlp([2, 3]), WeightSpace.cnn([1, 7], [6])
    assert probes(fitting.batch(fitting.sample(3))).shape == (3, probes.out_features)
    for space in (other, wide):
        with pytest.raises(SpaceMismatchError, match=r"Probes was built for WeightSpace\(1-4-4-5.* but the batch holds networks of"):
            probes(space.batch(space.sample(1)))


def test_transformed_graphs_are_refused() -> None:
    space = MIXED[0]
    batch = space.batch(space.sample(2))
    batch.edge_index = batch.edge_index.flip(1)
    with pytest.raises(SpaceMismatchError, match="a transform added, removed or reordered some"):
        Probes(space, 2)(batch)


def test_probes_of_pictures_start_within_them() -> None:
    siren = WeightSpace.siren((2, 16, 16, 1))
    inputs = next(iter(Probes(siren, 500).inputs.values())).detach()
    assert -1 <= float(inputs.min()) < -0.9
    assert 0.9 < float(inputs.max()) <= 1
    inputs = next(iter(Probes(WeightSpace.mlp([2, 16, 16, 1]), 500).inputs.values())).detach()
    assert float(inputs.abs().max()) > 2
    for space, count in ((siren, 256), (WeightSpace.mlp([2, 16, 16, 1]), 64), ([WeightSpace.mlp([2, 4, 1]), siren], 256)):
        probes = MonomialGNN(space, 1, channels=4, rounds=1).probes
        assert probes is not None
        inputs = next(iter(probes.inputs.values())).detach()
        assert len(inputs) == count
        assert bool((inputs.abs() <= 1).all()) == (count == 256)


# == Traced networks ==


def traced(name: str) -> tuple[WeightSpace, torch.Tensor]:
    """A space, and three networks of it."""
    module, inputs = make(name)
    space = trace(module, *inputs)
    thetas = torch.stack([space.flatten(make(name, seed=seed)[0].state_dict()) for seed in range(3)])
    return space, thetas.double()


@pytest.mark.parametrize("name", NETWORKS)
def test_traced_networks_answer(name: str) -> None:
    torch.manual_seed(0)
    space, thetas = traced(name)
    probes = Probes(space, 3).double()
    assert_invariant(probes, space, thetas=thetas, tolerance=1e-9, networks=3)
    features = probes(space.batch(thetas))
    assert features.shape == (3, probes.out_features)
    assert len({tuple(row.tolist()) for row in features}) == 3
    if probes.inputs:
        features.square().sum().backward()
        assert all(entry.grad is not None and entry.grad.abs().sum() > 0 for entry in probes.inputs.values())
    assert default_probes(space) == 64


def test_answers_of_traced_networks_are_their_outputs() -> None:
    torch.manual_seed(0)
    space, thetas = traced("actor-critic")
    probes = Probes(space, 4).double()
    assert {key: entry.shape for key, entry in probes.inputs.items()} == {"5": (4, 5)}
    outputs = space.evaluate(thetas, probes.inputs["5"])
    joined = torch.cat([outputs["policy"], outputs["value"][..., None]], dim=-1)
    features = probes(space.batch(thetas)).view(3, 4, 2, 4)
    torch.testing.assert_close(features[:, :, 0], joined.softmax(-1))
    torch.testing.assert_close(features[:, :, 1], symlog(joined))
    # Tokens are fixed; positions are averaged, and the last of two dimensions are features.
    space, thetas = traced("gpt")
    probes = Probes(space, 2).double()
    assert not probes.inputs
    assert probes.out_features == 2 * 2 * 11
    assert torch.equal(probes(space.batch(thetas)), probes(space.batch(thetas)))
    # Of three dimensions the first are features.
    space, thetas = traced("u-net")
    probes = Probes(space, 2).double()
    outputs = space.evaluate(thetas, probes.inputs["1x8x8"]).mean((3, 4))
    torch.testing.assert_close(probes(space.batch(thetas)).view(3, 2, 2, 2)[:, :, 1], symlog(outputs))


def test_many_features_are_averaged_and_calls_without_a_batch_are_whole() -> None:
    torch.manual_seed(0)

    class Wide(torch.nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.rnn, self.head = torch.nn.GRU(3, 4), torch.nn.Linear(4, width)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.rnn(x)[0])

    module = Wide(512).eval()
    space = trace(module, torch.randn(5, 2, 3))  # time comes first
    probes = Probes(space, 3)
    assert probes.inputs["5x2x3"].shape == (3, 5, 2, 3)
    theta = space.flatten(module.state_dict())[None]
    outputs = torch.stack([module(x).mean((0, 1)).view(256, 2).mean(1) for x in probes.inputs["5x2x3"]])
    torch.testing.assert_close(probes._answers(space, theta).view(3, 2, 256)[:, 1], symlog(outputs), rtol=1e-4, atol=1e-5)


def test_mixed_batches_of_traced_networks_and_layers() -> None:
    torch.manual_seed(0)
    entries = [traced("resnet"), traced("nerf"), (MIXED[0], MIXED[0].sample(3, dtype=torch.float64))]
    probes = Probes([space for space, _ in entries], 3).double()
    assert sorted(probes.inputs) == ["1x8x8", "3", "3x8x8", "input 1: 3"]
    batches = [space.batch(thetas) for space, thetas in entries]
    joined = probes(ParameterGraph.join(batches))
    torch.testing.assert_close(joined, torch.cat([probes(batch) for batch in batches]), rtol=1e-12, atol=1e-12)


def test_expensive_networks_are_not_asked_by_default() -> None:
    assert default_probes(MIXED) == 64
    assert default_probes([WeightSpace.siren(), MIXED[0]]) == 256
    assert default_probes(WeightSpace.mlp([3, 1000, 1000, 1])) == 0
    assert default_probes(WeightSpace.mlp([10_001, 2])) == 0
    old = dataclasses.replace(traced("resnet")[0], program=None)
    assert default_probes([MIXED[0], old]) == 0
    with pytest.raises(SpaceMismatchError, match="Probes has to run networks"):
        Probes(old, 3)
    with pytest.raises(ValueError, match="does not accept inputs with the positions"):
        Probes(traced("resnet")[0], 3, shape=(9, 9))
