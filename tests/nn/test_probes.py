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
    outputs = space.evaluate(thetas, probes.inputs)
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
    assert Probes(space, 2).inputs.shape == (2, *shape)


def test_shape_of_ones_own() -> None:
    space = WeightSpace.cnn([1, 4, 4], [10])
    assert Probes(space, 2, shape=(28, 20)).inputs.shape == (2, 1, 28, 20)
    with pytest.raises(ValueError, match=r"does not accept inputs with the positions 'shape' \(2, 2\)"):
        Probes(space, 2, shape=(2, 2))


def test_inputs_are_trained_with_the_model() -> None:
    space = CHAINS["cnn_relu"]
    torch.manual_seed(0)
    model = MonomialGNN(space, 1, channels=8, rounds=1, probes=3)
    model(space.batch(space.sample(4))).sum().backward()
    assert model.probes is not None
    gradient = model.probes.inputs.grad
    assert gradient is not None
    assert gradient.abs().sum() > 0
    assert MonomialGNN(space, 1, channels=8, rounds=1, probes=0).probes is None


def test_mixed_batches_are_refused() -> None:
    space, other = CHAINS["cnn_relu"], CHAINS["mlp_sine"]
    mixed = ParameterGraph.join([space.batch(space.sample(1)), other.batch(other.sample(1))])
    with pytest.raises(SpaceMismatchError, match="Probes needs networks of one architecture"):
        Probes(space, 2)(mixed)
