from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.space.handmade import branching, residual
from wsgraph import WeightSpace
from wsgraph.space import Axis, Layer, NeuronGroup, Parameter, SpaceMismatchError, Tie

SPACES: dict[str, WeightSpace] = {
    "mlp": WeightSpace.mlp([2, 5, 4, 3]),
    "no bias": WeightSpace.mlp([2, 5, 3], bias=False),
    "cnn": WeightSpace.cnn([1, 4, 6], [5, 3], kernel_size=[3, (1, 2)]),
    "flatten": WeightSpace.cnn([2, 4], [3], readout="flatten", positions=9),
    "residual": residual(),
    "branching": branching(),
}
every_space = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES.keys())


def sample(space: WeightSpace, batch: int = 3) -> Tensor:
    return space.sample(batch, generator=torch.Generator().manual_seed(0))


def transposed() -> WeightSpace:
    """One layer whose weight is stored as kernel, in, out."""
    axes = (Axis(2), Axis(3, (Tie(("in",), -1),)), Axis(4, (Tie(("out",), 1),)))
    groups = (NeuronGroup("in", 3, "input"), NeuronGroup("out", 4, "output"))
    return WeightSpace(groups, (Layer("a", "conv", ("in",), "out", "w"),), (Parameter("w", (2, 3, 4), "weight", axes),))


@every_space
def test_blocks_hold_the_tensors_layer_by_layer(space: WeightSpace) -> None:
    thetas = sample(space)
    tensors, blocks = space.unflatten(thetas), space.blocks(thetas)
    assert blocks.space is space
    for layer, weight, bias in zip(space.layers, blocks.weights, blocks.biases, strict=True):
        if layer.weight is None:
            assert weight is None
        else:
            assert weight is not None
            num_in = sum(space.group(name).size for name in layer.sources)
            num_out = space.group(layer.target).size
            assert torch.equal(weight, tensors[layer.weight].reshape(3, num_out, num_in, -1))
        if layer.bias is None:
            assert bias is None
        else:
            assert bias is not None
            assert torch.equal(bias, tensors[layer.bias])


@every_space
def test_blocks_are_views(space: WeightSpace) -> None:
    thetas = sample(space)
    blocks = space.blocks(thetas)
    storage = thetas.untyped_storage()
    tensors = [tensor for tensor in (*blocks.weights, *blocks.biases) if tensor is not None]
    assert len(tensors) == len(space.params)
    for tensor in tensors:
        assert tensor.untyped_storage().data_ptr() == storage.data_ptr()
        assert storage.data_ptr() <= tensor.data_ptr() < storage.data_ptr() + storage.nbytes()
        tensor.zero_()
    assert not thetas.any()


@every_space
@pytest.mark.parametrize("channels", [(), (1,), (2,)])
def test_flatten_is_the_inverse(space: WeightSpace, channels: tuple[int, ...]) -> None:
    thetas = torch.randn(3, space.num_params, *channels, generator=torch.Generator().manual_seed(0))
    assert torch.equal(space.blocks(thetas).flatten(), thetas)


@pytest.mark.parametrize("channels", [(), (2,)])
def test_weights_stored_in_another_order(channels: tuple[int, ...]) -> None:
    space = transposed()
    thetas = torch.randn(5, space.num_params, *channels, generator=torch.Generator().manual_seed(0))
    blocks = space.blocks(thetas)
    stored = thetas.unflatten(1, (2, 3, 4))
    assert blocks.weights[0] is not None
    assert torch.equal(blocks.weights[0], stored.transpose(1, 3))
    assert blocks.biases == (None,)
    assert torch.equal(blocks.flatten(), thetas)


def test_channels_come_last() -> None:
    space = SPACES["cnn"]
    thetas = torch.stack([sample(space), 2 * sample(space)], dim=-1)
    blocks, plain = space.blocks(thetas), space.blocks(sample(space))
    assert [None if w is None else tuple(w.shape) for w in blocks.weights] == [
        (3, 4, 1, 9, 2),
        (3, 6, 4, 2, 2),
        (3, 5, 6, 1, 2),
        (3, 3, 5, 1, 2),
    ]
    for two, one in zip((*blocks.weights, *blocks.biases), (*plain.weights, *plain.biases), strict=True):
        assert two is not None
        assert one is not None
        assert torch.equal(two[..., 0], one)
        assert torch.equal(two[..., 1], 2 * one)


def test_with_channels() -> None:
    space = SPACES["residual"]
    plain = space.blocks(sample(space))
    blocks = plain.with_channels()
    assert blocks.with_channels() is blocks
    for one, two in zip((*plain.weights, *plain.biases), (*blocks.weights, *blocks.biases), strict=True):
        if one is None:
            assert two is None
        else:
            assert two is not None
            assert two.shape == (*one.shape, 1)
            assert two.data_ptr() == one.data_ptr()
    assert torch.equal(blocks.flatten()[..., 0], sample(space))


def test_map() -> None:
    space = SPACES["residual"]
    thetas = sample(space)
    doubled = space.blocks(thetas).map(lambda tensor: 2 * tensor)
    assert doubled.weights[3] is None
    assert torch.equal(doubled.flatten(), 2 * thetas)


@every_space
def test_gradients_flow_back(space: WeightSpace) -> None:
    thetas = sample(space).requires_grad_()
    (space.blocks(thetas).flatten() ** 2).sum().backward()
    assert thetas.grad is not None
    torch.testing.assert_close(thetas.grad, 2 * thetas.detach())


@pytest.mark.parametrize("shape", [(3, 12), (13,), (3, 12, 2)])
def test_wrong_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(SpaceMismatchError, match=r"Expected 'thetas' of shape \[B, 13\] for WeightSpace\(2-3-1"):
        WeightSpace.mlp([2, 3, 1]).blocks(torch.ones(shape))
