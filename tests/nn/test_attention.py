import pytest
import torch
from torch import Tensor, nn

from tests.spaces import CHAINS, GENERAL
from wsgraph import ParameterGraph, SpaceMismatchError, WeightSpace
from wsgraph.nn import NPAttention
from wsgraph.testing import assert_equivariant

FITTING = [name for name in CHAINS if name != "mlp_relu_no_bias"]
CASES = [(name, shared) for name in FITTING for shared in (False, True) if not (shared and name.startswith("cnn"))]


class Attention(nn.Module):
    """Two layers on four pointwise features of the weights, with a residual connection."""

    symmetries = NPAttention.symmetries

    def __init__(self, space: WeightSpace, *, shared: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(NPAttention(space, 4, 4, heads=heads, shared=shared, dropout=dropout) for heads in (2, 1))

    def forward(self, batch: ParameterGraph) -> Tensor:
        thetas = batch.thetas()
        features = torch.stack([thetas, thetas.cos(), thetas.abs(), 2 * thetas.square()], dim=-1)
        for layer in self.layers:
            features = features + layer(features).flatten()
        return features


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name, shared", CASES)
def test_equivariance(name: str, shared: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    errors = assert_equivariant(Attention(CHAINS[name], shared=shared), CHAINS[name], dtype=dtype)
    assert set(errors) == {("permutation", "all")}


def test_scales_do_change_the_output() -> None:
    torch.manual_seed(0)
    with pytest.raises(AssertionError, match="Attention is not equivariant under scale"):
        assert_equivariant(Attention(CHAINS["cnn_relu"]), CHAINS["cnn_relu"], symmetries=["permutation", "scale"])


@pytest.mark.parametrize("name, shared", [("cnn_flatten", False), ("mlp_mixed", True)])
def test_output_does_not_depend_on_batch_mates(name: str, shared: bool) -> None:
    torch.manual_seed(0)
    space = CHAINS[name]
    model = Attention(space, shared=shared).double().eval()
    thetas = space.sample(5, dtype=torch.float64)
    torch.testing.assert_close(model(space.batch(thetas))[2:3], model(space.batch(thetas[2:3])), rtol=1e-10, atol=1e-12)


def test_sharing_ties_the_projections_and_leaves_the_maps_out() -> None:
    torch.manual_seed(0)
    space = CHAINS["mlp_mixed"]
    shared, separate = NPAttention(space, 4, 4, heads=2, shared=True), NPAttention(space, 4, 4, heads=2)
    count = 4 * 12 + 12
    assert sum(p.numel() for p in shared.parameters()) == count
    assert sum(p.numel() for p in separate.parameters()) == 8 * count + 4 * (4 * 4 + 4)
    for projection in separate.projections:
        projection.load_state_dict(shared.projections[0].state_dict())
    for linear in separate.maps:
        linear.load_state_dict({"weight": torch.eye(4), "bias": torch.zeros(4)})
    features = torch.randn(3, space.num_params, 4)
    torch.testing.assert_close(separate(features).flatten(), shared(features).flatten())


def test_blocks_keep_channels_and_shapes() -> None:
    space = CHAINS["cnn_flatten"]
    blocks = space.blocks(torch.randn(3, space.num_params, 6))
    output = NPAttention(space, 6, 6, heads=3)(blocks)
    assert [None if w is None else w.shape for w in output.weights] == [None if w is None else w.shape for w in blocks.weights]
    assert [None if b is None else b.shape for b in output.biases] == [None if b is None else b.shape for b in blocks.biases]
    assert NPAttention(space, 1, 1)(space.batch(space.sample(2))).flatten().shape == (2, space.num_params, 1)


@pytest.mark.parametrize("name, shared", [("cnn_tanh", False), ("mlp_sine", True)])
def test_gradients_are_finite_and_reach_everything(name: str, shared: bool) -> None:
    torch.manual_seed(0)
    space = CHAINS[name]
    thetas = space.sample(4)
    thetas[0] = 0
    thetas[1] *= 1e3
    thetas.requires_grad_()
    model = Attention(space, shared=shared, dropout=0.3).train()
    output = model(space.batch(thetas))
    output.square().mean().backward()
    assert torch.isfinite(output).all()
    assert thetas.grad is not None
    for gradient in (thetas.grad, *(parameter.grad for parameter in model.parameters())):
        assert gradient is not None
        assert torch.isfinite(gradient).all()
        assert gradient.abs().max() > 0


def test_gradients_of_the_layer_are_exact() -> None:
    torch.manual_seed(0)
    space = WeightSpace.cnn([1, 2], [2], kernel_size=(2,))
    layer = NPAttention(space, 2, 2, heads=2).double()
    features = torch.randn(2, space.num_params, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda values: layer(values).flatten(), (features,))


def test_dropout_acts_in_training_mode_alone() -> None:
    torch.manual_seed(0)
    space = CHAINS["mlp_shallow"]
    layer = NPAttention(space, 2, 2, dropout=0.5)
    features = torch.randn(3, space.num_params, 2)
    first, second = (layer.train()(features).flatten() for _ in range(2))
    assert not torch.equal(first, second)
    layer.eval()
    exact = layer(features).flatten()
    assert torch.equal(exact, layer(features).flatten())
    layer.dropout = 0.0
    assert torch.equal(exact, layer.train()(features).flatten())


def test_unfit_spaces_and_arguments() -> None:
    with pytest.raises(ValueError, match=r"NPAttention needs a chain, whose weights meet .* \(got WeightSpace"):
        NPAttention(GENERAL["residual_relu"], 4, 4)
    with pytest.raises(ValueError, match=r"needs a bias in every layer \(missing in 'layers.0', 'layers.1', 'layers.2' of WeightSpace"):
        NPAttention(CHAINS["mlp_relu_no_bias"], 4, 4)
    with pytest.raises(ValueError, match=r"only where every weight has one kernel position .*; use shared=False"):
        NPAttention(CHAINS["cnn_relu"], 4, 4, shared=True)
    for heads in (3, 0):
        with pytest.raises(ValueError, match=rf"Expected 'heads' to be a divisor of the number of channels, 4 \(got {heads}\)"):
            NPAttention(CHAINS["mlp_shallow"], 4, 4, heads=heads)
    with pytest.raises(ValueError, match=r"Expected 'dropout' to be a rate between 0 and 1 \(got 1.5\)"):
        NPAttention(CHAINS["mlp_shallow"], 4, 4, dropout=1.5)


def test_unfit_inputs() -> None:
    space, other = CHAINS["mlp_shallow"], CHAINS["mlp_sine"]
    layer = NPAttention(space, 4, 4)
    with pytest.raises(ValueError, match="was built for 4 input channels but the blocks have 3"):
        layer(space.blocks(torch.zeros(2, space.num_params, 3)))
    with pytest.raises(ValueError, match=r"Expected 'features' of shape \[B, 37, 4\] for NPAttention"):
        layer(torch.zeros(2, 37, 3))
    with pytest.raises(SpaceMismatchError, match="NPAttention was built for"):
        layer(other.blocks(torch.zeros(2, other.num_params, 4)))


def test_representation() -> None:
    layer = NPAttention(CHAINS["mlp_shallow"], 4, 4, heads=2, dropout=0.1)
    assert layer.extra_repr() == f"{CHAINS['mlp_shallow']!r}, channels=4, heads=2, shared=False, dropout=0.1"


def test_other_channels_out() -> None:
    with pytest.raises(ValueError, match=r"NPAttention writes as many channels as it reads \(got 4 and 8\)"):
        NPAttention(CHAINS["mlp_shallow"], 4, 8)


def test_second_gradients() -> None:
    space = CHAINS["mlp_shallow"]
    torch.manual_seed(0)
    layer = NPAttention(space, 2, 2, heads=2).double()
    features = torch.randn(2, space.num_params, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda values: layer(values).flatten(), (features,), fast_mode=True)
