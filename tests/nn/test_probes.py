"""Learned inputs and what networks answer to them."""

import pytest
import torch

from tests.spaces import CHAINS, SPACES
from wsgraph import ParameterGraph, SpaceMismatchError, WeightSpace
from wsgraph.nn import MonomialGNN, Probes
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
