import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric.data import Batch

from tests.spaces import CHAINS, SPACES
from wsgraph import ParameterGraph, SpaceMismatchError, WeightSpace
from wsgraph.nn import (
    STATNN,
    MonomialGNN,
    MonomialLinear,
    MonomialNFN,
    MonomialPointwise,
    MonomialPool,
    NeuralGraphNet,
    StatFeaturizer,
    build_model,
    list_models,
    model_entry,
    register_model,
)
from wsgraph.nn.message import canonical_features, symlog
from wsgraph.nn.normalize import unit_vectors
from wsgraph.space import Symmetry
from wsgraph.testing import assert_equivariant, assert_invariant

ZOO_CNN = WeightSpace.cnn([1, 16, 16, 16], [10], stride=2)
SMALL: dict[str, dict[str, Any]] = {
    "monomial_gnn": {"channels": 8, "rounds": 2},
    "neural_graph": {"channels": 8, "layers": 2},
    "monomial": {"channels": (3, 2)},
}


def build(name: str, space: WeightSpace, out_channels: int = 3) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model(name, space, out_channels, **SMALL.get(name, {}))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("name", list_models())
def test_models_are_invariant(name: str, space: str, dtype: torch.dtype) -> None:
    assert_invariant(build(name, SPACES[space]), SPACES[space], dtype=dtype)


@pytest.mark.parametrize("name", list_models())
def test_models_on_the_zoo_architecture(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(name, ZOO_CNN, 1)
    for dtype in (torch.float64, torch.float32):
        assert_invariant(model, ZOO_CNN, dtype=dtype)


@pytest.mark.parametrize("name", ["statnn", "neural_graph"])
def test_baselines_do_change_with_scale(name: str) -> None:
    with pytest.raises(AssertionError, match="is not invariant under scale"):
        assert_invariant(build(name, ZOO_CNN), ZOO_CNN, symmetries=["permutation", "scale"], control=None)


def broken_networks(space: WeightSpace) -> Tensor:
    """Networks with zero weights, dead neurons, zero biases, and magnitudes far apart."""
    thetas = space.sample(6, generator=torch.Generator().manual_seed(0))
    thetas[0] = 0
    thetas[1, ::2] = 0
    for param in space.params:
        if param.role == "bias":
            thetas[2, space.slices[param.name]] = 0
    thetas[3, : space.num_params // 2] = 0
    thetas[4] *= 1e-6
    thetas[5] *= 1e3
    return thetas


@pytest.mark.parametrize("space", ["cnn_relu", "cnn_tanh", "mlp_identity", "mlp_mixed", "residual_relu"])
@pytest.mark.parametrize("name", list_models())
def test_outputs_and_gradients_are_finite(name: str, space: str) -> None:
    thetas = broken_networks(SPACES[space]).requires_grad_()
    model = build(name, SPACES[space])
    output = model(SPACES[space].batch(thetas))
    output.square().mean().backward()
    assert torch.isfinite(output).all()
    assert thetas.grad is not None
    assert torch.isfinite(thetas.grad).all()
    for parameter in model.parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all()


@pytest.mark.parametrize("name", list_models())
def test_every_parameter_is_used(name: str) -> None:
    space = SPACES["residual_relu"] if name == "monomial_gnn" else CHAINS["cnn_flatten"]
    model = build(name, space)
    model(space.batch(space.sample(8))).square().sum().backward()
    used = {key for key, parameter in model.named_parameters() if parameter.grad is not None}
    assert used == {key for key, parameter in model.named_parameters() if parameter.numel()}


@pytest.mark.parametrize("name", list_models())
def test_prediction_does_not_depend_on_batch_mates(name: str) -> None:
    space = CHAINS["cnn_relu"]
    model = build(name, space).double().eval()
    thetas = space.sample(5, dtype=torch.float64)
    alone = model(space.batch(thetas[2:3]))
    torch.testing.assert_close(model(space.batch(thetas))[2:3], alone, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", list_models())
def test_models_read_batches_collated_by_pyg_and_single_graphs(name: str) -> None:
    space = CHAINS["cnn_relu"]
    model = build(name, space).eval()
    thetas = space.sample(3)
    graphs = [space.graph(theta) for theta in thetas]
    expected = model(space.batch(thetas))
    torch.testing.assert_close(model(Batch.from_data_list(graphs)), expected)
    torch.testing.assert_close(model(graphs[1]), expected[1:2])


@pytest.mark.parametrize("name", list_models())
def test_mixed_architectures(name: str) -> None:
    large, small = CHAINS["cnn_relu"], WeightSpace.mlp([1, 5, 2])
    mixed = ParameterGraph.join([large.batch(large.sample(1)), small.graph(small.sample(1)[0])])
    model = build(name, large).eval()
    if model_entry(name).mixed:
        output = model(mixed)
        torch.testing.assert_close(output[1:], model(mixed[1]), rtol=1e-4, atol=1e-5)
    else:
        with pytest.raises(SpaceMismatchError, match="needs networks of one architecture, but the batch mixes 2 weight spaces"):
            model(mixed)


@pytest.mark.parametrize("name", [name for name in list_models() if not model_entry(name).mixed])
def test_other_architecture_than_built_for(name: str) -> None:
    other = WeightSpace.mlp([3, 4, 2])
    with pytest.raises(SpaceMismatchError, match="was built for WeightSpace\\(1-6-5-4"):
        build(name, CHAINS["cnn_relu"])(other.batch(other.sample(2)))


def test_renamed_parameters_are_the_same_architecture() -> None:
    space = WeightSpace.mlp([2, 4, 1])
    renamed = WeightSpace.from_json(space.to_json().replace("layers.", "net."))
    assert renamed != space
    thetas = space.sample(3)
    model = build("monomial", space)
    torch.testing.assert_close(model(renamed.batch(thetas)), model(space.batch(thetas)))


def test_neural_graph_refuses_what_its_embeddings_cannot_hold() -> None:
    model = build("neural_graph", WeightSpace.mlp([2, 4, 1]))
    wide, conv = WeightSpace.mlp([3, 4, 1]), WeightSpace.cnn([2, 4], [1])
    with pytest.raises(ValueError, match="at most 2 input or output neurons \\(got 3\\)"):
        model(wide.batch(wide.sample(2)))
    with pytest.raises(ValueError, match="Expected 'edge_attr' with at most 1 columns \\(got 9\\)"):
        model(conv.batch(conv.sample(2)))


def test_published_parameter_counts() -> None:
    counts = {name: sum(p.numel() for p in build_model(name, ZOO_CNN, 1).parameters()) for name in ("statnn", "monomial")}
    assert counts["statnn"] == 80_641
    assert counts["monomial"] == 254_619 - 10  # the published pool has a normalisation of the last bias that it never uses


def test_registry_errors() -> None:
    with pytest.raises(ValueError, match=r"Unknown model 'transformer'\. Available models: monomial"):
        build_model("transformer", ZOO_CNN, 1)
    with pytest.raises(ValueError, match="Expected 'task' to be"):
        build_model("statnn", ZOO_CNN, 1, task="other")
    with pytest.raises(ValueError, match="'statnn' does not solve equivariant tasks"):
        build_model("statnn", ZOO_CNN, 1, task="equivariant")
    with pytest.raises(TypeError, match="depth"):
        build_model("statnn", ZOO_CNN, 1, depth=3)
    with pytest.raises(ValueError, match="named 'statnn' is registered already"):
        register_model("statnn", family="statistics")(STATNN)


def test_registry_entries() -> None:
    assert list_models() == ["monomial", "monomial_gnn", "neural_graph", "statnn"]
    classes = {"monomial": MonomialNFN, "monomial_gnn": MonomialGNN, "neural_graph": NeuralGraphNet, "statnn": STATNN}
    assert {name: type(build(name, CHAINS["cnn_relu"])) for name in list_models()} == classes
    assert all(model_entry(name).description for name in list_models())


@pytest.mark.parametrize("space", SPACES)
def test_monomial_layers_are_equivariant(space: str) -> None:
    torch.manual_seed(0)
    layers = torch.nn.Sequential(
        MonomialLinear(SPACES[space], 1, 4), MonomialPointwise(SPACES[space]), MonomialLinear(SPACES[space], 4, 2)
    ).double()
    assert_equivariant(lambda batch: layers(batch.thetas()[..., None]), SPACES[space])
    single = copy.deepcopy(layers).float()
    assert_equivariant(lambda batch: single(batch.thetas()[..., None]), SPACES[space], dtype=torch.float32)


def test_monomial_linear_against_the_closed_form() -> None:
    # The published layer on a chain: W1 with b1 per neuron, middle parameters alone, W_L over outputs, b_L affine.
    torch.manual_seed(0)
    space = WeightSpace.mlp([2, 5, 4, 3])
    layer = MonomialLinear(space, 2, 3).double()
    features = torch.randn(6, space.num_params, 2, dtype=torch.float64)

    def split(values: Tensor) -> list[Tensor]:
        # [B, n_out, n_in, 1, C] and [B, n_out, C] in the order W1, b1, W2, b2, W3, b3
        blocks = space.blocks(values)
        parts = [part for pair in zip(blocks.weights, blocks.biases, strict=True) for part in pair if part is not None]
        assert len(parts) == 6
        return parts

    (w1, b1, w2, b2, w3, b3), (y1, z1, y2, z2, y3, z3) = split(features), split(layer(features))
    first, middle, middle_bias, last, last_bias = (linear.get_parameter("weight") for linear in layer.maps)
    expected = torch.cat([w1.flatten(2), b1], dim=2) @ first.T
    torch.testing.assert_close(y1.flatten(2), expected[..., : 2 * 3])
    torch.testing.assert_close(z1, expected[..., 2 * 3 :])
    torch.testing.assert_close(y2, w2 @ middle.T)
    torch.testing.assert_close(z2, b2 @ middle_bias.T)
    torch.testing.assert_close(y3.transpose(1, 2).flatten(2), w3.transpose(1, 2).flatten(2) @ last.T)
    torch.testing.assert_close(z3.flatten(1), b3.flatten(1) @ last_bias.T + layer.maps[4].get_parameter("bias"))


def test_monomial_pool_by_hand() -> None:
    space = WeightSpace.mlp([1, 2, 1], "tanh")
    pool = MonomialPool(space, 2)
    features = torch.zeros(1, space.num_params, 2)
    blocks = space.blocks(features)
    blocks.weights[0][0, :, 0, 0] = torch.tensor([[3.0, -4.0], [0.0, 2.0]])  # type: ignore[index]
    blocks.biases[1][0, 0] = torch.tensor([7.0, -8.0])  # type: ignore[index]
    assert pool(features)[0].tolist() == pytest.approx([0.3, 0.9, 0, 0, 0, 0, 7, -8])


def test_statistics_by_hand() -> None:
    space = WeightSpace.mlp([1, 4, 1])
    thetas = torch.tensor([[1.0, 2, 3, 6, 0, 0, 0, 0, -1, -1, 1, 1, 5]])
    features = StatFeaturizer(space)(space.batch(thetas)).view(4, 7)
    assert features[0].tolist() == pytest.approx([3, 14 / 3, 1, 1.75, 2.5, 3.75, 6])
    assert features[3].tolist() == [5, 0, 5, 5, 5, 5, 5]


@pytest.mark.parametrize("function", [unit_vectors, lambda x: canonical_features(x, Symmetry(True, False))])
def test_normalisation_survives_any_magnitude(function: object) -> None:
    assert callable(function)
    base = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    for magnitude in (1e-30, 1e-10, 1e10, 1e30):
        torch.testing.assert_close(function(base * magnitude), function(base), rtol=1e-5, atol=1e-6)
    assert torch.equal(function(torch.zeros(2, 8)), torch.zeros(2, 8))
    x = torch.zeros(2, 8, requires_grad=True)
    function(x).sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    wide = base.double().requires_grad_()
    assert torch.autograd.gradcheck(function, (wide,))


def test_symlog_is_odd_and_compresses() -> None:
    x = torch.tensor([-1e8, -1.0, 0.0, 1.0, 1e8])
    torch.testing.assert_close(symlog(-x), -symlog(x))
    assert symlog(x).abs().max() < 6


def test_wrong_features() -> None:
    space = CHAINS["mlp_shallow"]
    with pytest.raises(ValueError, match=r"Expected 'features' of shape \[B, 37, 2\]"):
        MonomialLinear(space, 2, 3)(torch.zeros(4, 37, 1))
