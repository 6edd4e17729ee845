"""The layers, pools and activations of the parameter-sharing family."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.space.handmade import linear, space_of
from tests.spaces import CHAINS, SPACES, with_dtypes
from wsgraph import ParameterGraph, SpaceMismatchError, WeightSpace
from wsgraph.nn import (
    Activation,
    HNPLinear,
    HNPPool,
    MAGEPInvariant,
    MAGEPLinear,
    MonomialLinear,
    MonomialNormalize,
    MonomialPool,
    MonomialSineLinear,
    NPAttention,
    NPLinear,
    NPPool,
    Pointwise,
    StatFeaturizer,
)
from wsgraph.nn.sharing import SharingLinear, SharingModule, Source, Target, Term
from wsgraph.space import Axis, Blocks, NeuronGroup, Parameter, Tie
from wsgraph.space import Layer as SpaceLayer
from wsgraph.testing import assert_equivariant, assert_invariant, equivariance_error

Layer = Callable[[WeightSpace, int, int], SharingModule]

LINEAR: dict[str, Layer] = {
    "np": NPLinear,
    "np_io_embed": lambda space, i, o: NPLinear(space, i, o, io_embed=True),
    "hnp": HNPLinear,
    "monomial": MonomialLinear,
    "sine": MonomialSineLinear,
    "pointwise": Pointwise,
    "pointwise_linear": lambda space, i, o: Pointwise(space, i, o, bias=False),
}
REFERENCE: dict[str, Layer] = {
    "hnp_reference": lambda space, i, o: HNPLinear(space, i, o, reference=True),
    "sine_reference": lambda space, i, o: MonomialSineLinear(space, i, o, reference=True),
}
POLYNOMIAL: dict[str, Layer] = {
    "magep": MAGEPLinear,
    "magep_separate": lambda space, i, o: MAGEPLinear(space, i, o, separate_bias_terms=True),
    "magep_reference": lambda space, i, o: MAGEPLinear(space, i, o, reference=True),
}
CASES = [
    *((name, space) for name in LINEAR for space in SPACES),
    *((name, space) for name in REFERENCE for space in CHAINS if space != "mlp_relu_no_bias"),
    *((name, space) for name in POLYNOMIAL for space in CHAINS if (name, space) != ("magep_reference", "mlp_relu_no_bias")),
]
LAYERS = {**LINEAR, **REFERENCE, **POLYNOMIAL}


class Stack(nn.Module):
    """Two layers with an activation between them, weights out."""

    def __init__(self, make: Layer, space: WeightSpace) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = make(space, 1, 3), make(space, 3, 2)
        self.symmetries = self.first.symmetries
        self.activation = Activation(space, symmetries=self.symmetries)

    def forward(self, batch: ParameterGraph) -> Blocks:
        blocks: Blocks = self.second(self.activation(self.first(batch)))
        return blocks


def dense(name: str) -> WeightSpace:
    """A space of the shared ones, its kernels folded away for layers that need that."""
    return SPACES[name].without_kernels()


@pytest.mark.parametrize(("layer", "space", "dtype"), with_dtypes(CASES))
def test_layers_are_equivariant(layer: str, space: str, dtype: torch.dtype) -> None:
    networks = dense(space) if layer in POLYNOMIAL else SPACES[space]
    control = "noise" if layer.startswith("pointwise") else "uncoupled"  # what maps every entry alone commutes with any permutation
    stack = Stack(LAYERS[layer], networks)
    assert_equivariant(stack, networks, dtype=dtype, control=control)


@pytest.mark.parametrize(
    ("layer", "symmetry"), [("np", "scale"), ("hnp", "scale"), ("sine", "scale"), ("pointwise", "scale"), ("np_io_embed", "scale")]
)
def test_layers_do_not_have_symmetries_that_they_do_not_claim(layer: str, symmetry: str) -> None:
    errors = equivariance_error(Stack(LAYERS[layer], CHAINS["cnn_relu"]), CHAINS["cnn_relu"], output="equivariant", symmetries=[symmetry])
    assert max(errors.values()) > 1e-3


@pytest.mark.parametrize(("layer", "moves"), [("np", True), ("np_io_embed", False), ("hnp", False)])
def test_permutations_of_inputs_and_outputs(layer: str, moves: bool) -> None:
    torch.manual_seed(0)
    space = WeightSpace.mlp([3, 5, 4, 2])
    network = LAYERS[layer](space, 1, 2).double()
    blocks = space.blocks(space.sample(2, dtype=torch.float64))

    def permute(values: Blocks) -> Blocks:
        weights, biases = list(values.weights), list(values.biases)
        weights[0], weights[-1], biases[-1] = weights[0][:, :, [2, 0, 1]], weights[-1][:, [1, 0]], biases[-1][:, [1, 0]]  # type: ignore[index]
        return Blocks.from_layers(space, weights, biases)

    difference = network(permute(blocks)).flatten() - permute(network(blocks)).flatten()
    assert (difference.abs().max() < 1e-12) == moves


@pytest.mark.parametrize("layer", LAYERS)
def test_first_and_second_gradients(layer: str) -> None:
    space = WeightSpace.mlp([2, 4, 3, 3, 2])
    torch.manual_seed(0)
    network = LAYERS[layer](space, 2, 2).double()
    features = torch.randn(2, space.num_params, 2, dtype=torch.float64, requires_grad=True)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    assert torch.autograd.gradcheck(lambda values, *_: network(values).flatten(), (features, *trained), fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda values: network(values).flatten(), (features,), fast_mode=True)


NEED_ALL_BIASES = ("hnp_reference", "magep_reference")


@pytest.mark.parametrize(
    ("layer", "missing"),
    [(name, bias) for name in LAYERS for bias in (None, "layers.1.bias", "layers.3.bias") if bias is None or name not in NEED_ALL_BIASES],
)
def test_every_trained_parameter_acts(layer: str, missing: str | None) -> None:
    space = WeightSpace.mlp([2, 6, 5, 4, 3])
    if missing is not None:
        layers = [dataclasses.replace(part, bias=None if part.bias == missing else part.bias) for part in space.layers]
        space = WeightSpace(space.groups, tuple(layers), tuple(param for param in space.params if param.name != missing))
    torch.manual_seed(0)
    network = LAYERS[layer](space, 2, 3)
    (network(torch.randn(4, space.num_params, 2)).flatten() * torch.randn(4, space.num_params, 3)).sum().backward()
    for name, parameter in [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]:
        assert parameter.grad is not None, name
        assert (parameter.grad != 0).all(), name


@pytest.mark.parametrize("layer", LAYERS)
def test_blocks_batches_and_flat_features_are_the_same_input(layer: str) -> None:
    space = WeightSpace.mlp([2, 6, 5, 3])
    torch.manual_seed(0)
    network = LAYERS[layer](space, 1, 2)
    thetas = space.sample(3)
    expected = network(space.blocks(thetas)).flatten()
    torch.testing.assert_close(network(space.batch(thetas)).flatten(), expected)
    torch.testing.assert_close(network(thetas[..., None]).flatten(), expected)


def test_weights_are_read_and_written_without_a_copy() -> None:
    space = WeightSpace.cnn([1, 6, 5], [4])
    thetas = space.sample(3)
    batch = space.batch(thetas)
    layer = MonomialLinear(space, 1, 4)
    blocks = batch.blocks().with_channels()
    assert {weight.untyped_storage().data_ptr() for weight in blocks.weights if weight is not None} == {thetas.untyped_storage().data_ptr()}
    produced = layer(blocks)
    for entries in (layer.layout.read(blocks)["layers.1.weight"], *layer.layout.read(produced).values()):
        sources = [
            tensor.untyped_storage().data_ptr() for tensor in (*blocks.weights, *produced.weights, *produced.biases) if tensor is not None
        ]
        assert entries.untyped_storage().data_ptr() in sources


@pytest.mark.parametrize("layer", [*LINEAR, *REFERENCE])
def test_output_kernels_of_other_sizes(layer: str) -> None:
    space = CHAINS["cnn_relu"]
    inner = space.without_kernels()
    torch.manual_seed(0)

    def make(read: WeightSpace, write: WeightSpace) -> SharingModule:
        kind: dict[str, Callable[..., SharingModule]] = {
            "np": NPLinear,
            "hnp": HNPLinear,
            "sine": MonomialSineLinear,
            "monomial": MonomialLinear,
            "pointwise": Pointwise,
        }
        options: dict[str, Any] = {"io_embed": {"io_embed": True}, "linear": {"bias": False}, "reference": {"reference": True}}
        name, _, option = layer.partition("_")
        return kind[name](read, 1, 1, out_space=write, **options.get(option, {}))

    fold, unfold = make(space, inner), make(inner, space)
    symmetries = fold.symmetries
    folded = fold(space.batch(space.sample(2)))
    assert [weight.shape[3] for weight in folded.weights] == [1, 1, 1]
    both = nn.ModuleList([fold, unfold]).double()
    control = "noise" if layer.startswith("pointwise") else "uncoupled"
    assert_equivariant(lambda batch: both[1](both[0](batch)).flatten(), space, symmetries=symmetries, control=control)


def test_output_space_of_another_network() -> None:
    with pytest.raises(
        ValueError, match=r"Expected 'out_space' to have the parameters and neuron groups of .* and to differ in kernel sizes"
    ):
        MonomialLinear(WeightSpace.mlp([2, 4, 1]), 1, 1, out_space=WeightSpace.mlp([2, 5, 1]))


def test_hnp_contains_np_and_what_the_published_layer_lacks() -> None:
    # A zero-mean change of b^(L-1) moves W^(L) in NP and in the complete HNP layer; the published one leaves it as it was.
    space = WeightSpace.mlp([2, 4, 5, 2])
    torch.manual_seed(0)
    thetas = space.sample(1, dtype=torch.float64)
    change = torch.zeros_like(thetas)
    change[0, space.slices["layers.1.bias"]] = torch.tensor([1.0, -1, 0.5, -0.5, 0], dtype=torch.float64)
    moved = {}
    for name in ("np", "hnp", "hnp_reference"):
        layer = LAYERS[name](space, 1, 3).double()
        before, after = (layer(space.blocks(values)).weights[-1] for values in (thetas, thetas + change))
        moved[name] = float((after - before).abs().max().detach())
    assert moved["np"] > 1e-3
    assert moved["hnp"] > 1e-3
    assert moved["hnp_reference"] < 1e-15


def test_monomial_linear_against_the_closed_form() -> None:
    # The published layer on a chain: W1 with b1 per neuron, middle parameters alone, W_L over outputs, b_L affine.
    torch.manual_seed(0)
    space = WeightSpace.mlp([2, 5, 4, 3])
    layer = MonomialLinear(space, 2, 3).double()
    features = space.blocks(torch.randn(6, space.num_params, 2, dtype=torch.float64))
    (w1, w2, w3), (b1, b2, b3) = ([tensor for tensor in kind if tensor is not None] for kind in (features.weights, features.biases))
    output = layer(features)
    (y1, y2, y3), (z1, z2, z3) = output.weights, output.biases
    maps = {term.targets[0].param: linear for term, linear in zip(layer.terms, layer.maps, strict=True)}
    matrix = maps["layers.0.weight"].get_parameter("weight")
    # Features of a neuron: channel, then input neuron.
    expected = torch.cat([w1.squeeze(3).transpose(2, 3).flatten(2), b1], dim=2) @ matrix.T
    torch.testing.assert_close(y1.squeeze(3).transpose(2, 3).flatten(2), expected[..., : 2 * 3])
    torch.testing.assert_close(z1, expected[..., 2 * 3 :])
    torch.testing.assert_close(y2, w2 @ maps["layers.1.weight"].get_parameter("weight").T)
    torch.testing.assert_close(z2, b2 @ maps["layers.1.bias"].get_parameter("weight").T)
    last = w3.squeeze(3).permute(0, 2, 3, 1).flatten(2) @ maps["layers.2.weight"].get_parameter("weight").T
    torch.testing.assert_close(y3.squeeze(3).permute(0, 2, 3, 1).flatten(2), last)
    torch.testing.assert_close(z3.transpose(1, 2).flatten(1), maps["layers.2.bias"](b3.transpose(1, 2).flatten(1)))


@pytest.mark.parametrize("sizes", [[2, 5, 4, 6, 3], [7, 5, 4, 2], [3, 4, 5, 9]])
def test_magep_against_products_formed_in_full(sizes: list[int]) -> None:
    # Every [WW]^(s,0)(L,t) and [bW]^(s)(L,t) as a matrix, with the layer's own coefficients.
    torch.manual_seed(0)
    space = WeightSpace.mlp(sizes)
    depth, inputs = len(sizes) - 1, sizes[0]
    layer = MAGEPLinear(space, 2, 3).double()
    features = space.blocks(torch.randn(4, space.num_params, 2, dtype=torch.float64))
    output = layer(features)
    weights = [None, *(weight.squeeze(3).permute(0, 3, 1, 2) for weight in features.weights if weight is not None)]
    biases = [None, *(bias.transpose(1, 2) for bias in features.biases if bias is not None)]

    def product(s: int, t: int) -> Tensor:
        result = weights[s]
        for i in range(s - 1, t, -1):
            result = result @ weights[i]  # type: ignore[operator]
        assert result is not None
        return result

    for i in range(2, depth):
        pair = layer.pairs[i - 2]
        forms = layer.forms(i, i - 1)
        both = product(i, 0) @ forms[:, :inputs] @ product(depth, i - 1)
        one = biases[i].unsqueeze(-1) * (forms[:, inputs:] @ product(depth, i - 1))  # type: ignore[union-attr]
        expected = sum(
            torch.einsum("ac,bcjk->bajk", coefficient, value)
            for coefficient, value in ((pair.weight, weights[i]), (pair.weight_product, both), (pair.bias_product, one))
        )
        torch.testing.assert_close(output.weights[i - 1].squeeze(3).permute(0, 3, 1, 2), expected)
        both, one = product(i, 0) @ layer.forms(i, 0)[:, :inputs] @ product(depth, 0), layer.forms(i, 0)[:, inputs:] @ product(depth, 0)
        sums = sum((product(i, t) @ biases[t].unsqueeze(-1) for t in range(1, i)), torch.zeros(()))  # type: ignore[union-attr]
        columns = torch.cat([product(i, 0), both, biases[i].unsqueeze(-1) * one, biases[i].unsqueeze(-1), sums], dim=-1)  # type: ignore[union-attr]
        torch.testing.assert_close(output.biases[i - 1], layer.middle_biases[i - 2](columns.transpose(1, 2).flatten(2)))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", [[2, 8, 7, 6, 3], [12, 8, 7, 6, 3]])
def test_magep_contraction_orders_agree(sizes: list[int], bias: bool) -> None:
    torch.manual_seed(0)
    space = WeightSpace.mlp(sizes, bias=bias)
    layer = MAGEPLinear(space, 2, 3).double()
    other = copy.deepcopy(layer)
    for pair in other.pairs:
        pair.forms_products = not pair.forms_products  # type: ignore[assignment]
    features = torch.randn(4, space.num_params, 2, dtype=torch.float64)
    outputs, gradients = [], []
    for network in (layer, other):
        values = features.clone().requires_grad_()
        outputs.append(network(values).flatten())
        outputs[-1].square().sum().backward()
        gradients.append([values.grad, *(parameter.grad for parameter in network.parameters())])
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(*gradients)


def test_magep_chooses_its_order_by_size() -> None:
    sizes = [2, 128, 128, 3], [64, 128, 128, 3], [3, 128, 128, 64], [64, 128, 128, 64]
    layers = [MAGEPLinear(WeightSpace.mlp(widths), 16, 16) for widths in sizes]
    assert [layer.pairs[0].forms_products for layer in layers] == [False, False, False, True]
    assert MAGEPLinear(WeightSpace.mlp([2, 16, 16, 1]), 128, 128).pairs[0].forms_products
    one, ten = (MAGEPInvariant(WeightSpace.mlp([2, 8, 8, n]), 2, 2) for n in (1, 10))
    assert [layer.from_outputs for layer in (one, ten)] == [True, False]


def test_magep_invariant_from_either_end() -> None:
    torch.manual_seed(0)
    space = WeightSpace.mlp([2, 8, 7, 3])
    layer = MAGEPInvariant(space, 2, 4).double()
    features = torch.randn(3, space.num_params, 2, dtype=torch.float64)
    values = []
    for layer.from_outputs in (True, False):
        values.append(layer(features))
    torch.testing.assert_close(*values)


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("space", [name for name in CHAINS if name != "mlp_relu_no_bias"])
def test_magep_invariant_is_invariant(space: str, reference: bool) -> None:
    torch.manual_seed(0)
    layer = MAGEPInvariant(dense(space), 1, 5, reference=reference)
    for dtype in (torch.float64, torch.float32):
        assert_invariant(layer, dense(space), dtype=dtype)


@pytest.mark.filterwarnings("ignore:.*ackward hook")
def test_gradients_that_hooks_see_stay_as_they_were() -> None:
    # The layer adds in place to gradients of its own weights; nobody else may hold those.
    space = WeightSpace.mlp([2, 6, 5, 4, 3])
    layer = MAGEPLinear(space, 2, 2)
    seen: list[tuple[Tensor, Tensor]] = []

    def hook(module: nn.Module, inputs: Any, outputs: Any) -> None:
        seen.extend((value, value.clone()) for value in (*inputs, *outputs) if value is not None)

    handle = nn.modules.module.register_module_full_backward_hook(hook)
    try:
        layer(torch.randn(3, space.num_params, 2, requires_grad=True)).flatten().square().sum().backward()
    finally:
        handle.remove()
    assert seen
    assert all(torch.equal(*pair) for pair in seen)


def test_magep_keeps_little_for_the_backward_pass() -> None:
    # Depth 8: kept bytes grow with n (n_0 + n_L) per layer, while all products would take n^2 for every pair of layers.
    space = WeightSpace.mlp([2, *[32] * 7, 1])
    layer = MAGEPLinear(space, 4, 4)
    blocks = MonomialLinear(space, 1, 4)(space.blocks(space.sample(4))).map(lambda block: block.detach().requires_grad_())
    own = {tensor.untyped_storage().data_ptr() for tensor in (*blocks.weights, *blocks.biases, *layer.parameters()) if tensor is not None}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        layer(blocks)
    matrix = 4 * 4 * 32 * 32 * 4  # batch, channels, neurons, bytes
    assert sum(kept.values()) < 6 * matrix  # a matrix per layer at most, where 7 * 8 / 2 products would be 28 and more


POOLS: dict[str, Callable[[WeightSpace, int], SharingModule]] = {
    "np": NPPool,
    "hnp": HNPPool,
    "statistics": StatFeaturizer,
    "monomial": MonomialPool,
    "monomial_L2": lambda space, c: MonomialPool(space, c, mode="L2"),
    "monomial_L1": lambda space, c: MonomialPool(space, c, mode="L1"),
    "monomial_L2_square": lambda space, c: MonomialPool(space, c, mode="L2_square"),
    "published": lambda space, c: MonomialPool(space, c, reference=True),
    "published_L2_square": lambda space, c: MonomialPool(space, c, mode="L2_square", reference=True),
}


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("pool", POOLS)
def test_pools_are_invariant(pool: str, space: str) -> None:
    networks = SPACES[space]
    torch.manual_seed(0)
    pooling = POOLS[pool](networks, 3).double()
    mix = MonomialLinear(networks, 1, 3).double()
    # The smallest norms, 1e-12 in the published form, are not reached by factors of this range.
    scale = (1e-2, 1e2) if "published" in pool else (1e-4, 1e4)
    assert_invariant(lambda batch: pooling(mix(batch)).flatten(1), networks, symmetries=pooling.symmetries, scale=scale, control="noise")


def test_the_published_pool_changes_with_signs() -> None:
    space = CHAINS["cnn_tanh"]
    pool = MonomialPool(space, 1, reference=True)
    assert pool.symmetries == ("permutation", "scale")
    with pytest.raises(AssertionError, match="is not invariant under sign"):
        assert_invariant(pool, space, symmetries=["sign"], control=None)


@pytest.mark.parametrize("mode", ["param_mul_L2", "L2", "L2_square", "L1"])
@pytest.mark.parametrize("space", ["cnn_relu", "cnn_tanh", "mlp_mixed"])
def test_normalisation_keeps_permutations_and_drops_the_rest(space: str, mode: str) -> None:
    networks = CHAINS[space]
    torch.manual_seed(0)
    mix, normalize = MonomialLinear(networks, 1, 3).double(), MonomialNormalize(networks, 3, mode=mode).double()
    assert_equivariant(lambda batch: normalize(mix(batch)).flatten(), networks, symmetries=["permutation"])
    for symmetry in ("scale", "sign"):
        if symmetry == "sign" and space == "cnn_relu":
            continue
        if symmetry == "scale" and space == "cnn_tanh":
            continue
        assert_invariant(lambda batch: normalize(mix(batch)).flatten(), networks, symmetries=[symmetry], control="noise")


def test_unknown_mode() -> None:
    with pytest.raises(ValueError, match="Expected 'mode' to be one of param_mul_L2, L2, L2_square, L1 \\(got 'max'\\)"):
        MonomialPool(CHAINS["cnn_relu"], 1, mode="max")


def test_monomial_pool_by_hand() -> None:
    space = WeightSpace.mlp([1, 2, 1], "tanh")
    pool = MonomialPool(space, 2)
    features = torch.zeros(1, space.num_params, 2)
    blocks = space.blocks(features)
    blocks.weights[0][0, :, 0, 0] = torch.tensor([[3.0, -4.0], [0.0, 2.0]])  # type: ignore[index]
    blocks.biases[1][0, 0] = torch.tensor([7.0, -8.0])  # type: ignore[index]
    assert pool(features)[0].tolist() == [pytest.approx([0.3, 0, 0, 7]), pytest.approx([0.9, 0, 0, -8])]


def test_statistics_by_hand() -> None:
    space = WeightSpace.mlp([1, 4, 1])
    thetas = torch.tensor([[1.0, 2, 3, 6, 0, 0, 0, 0, -1, -1, 1, 1, 5]])
    features = StatFeaturizer(space)(space.batch(thetas)).view(4, 7)
    assert features[0].tolist() == pytest.approx([3, 14 / 3, 1, 1.75, 2.5, 3.75, 6])
    assert features[3].tolist() == [5, 0, 5, 5, 5, 5, 5]
    both = StatFeaturizer(space, 2)(torch.stack([thetas, 2 * thetas], dim=-1))
    torch.testing.assert_close(both[:, 0].view(4, 7), features)
    torch.testing.assert_close(both[:, 1].view(4, 7)[:, 0], 2 * features[:, 0])


def test_activation_of_every_symmetry() -> None:
    assert repr(Activation(CHAINS["mlp_relu_no_bias"])) == "Activation(relu: 3 parameters)"
    assert repr(Activation(CHAINS["mlp_identity"])) == "Activation(identity: 5 parameters, relu: 1 parameter)"
    assert repr(Activation(CHAINS["mlp_sine"], symmetries=["permutation"])) == "Activation(relu: 6 parameters)"
    assert repr(Activation(CHAINS["mlp_sine"], "sin")) == "Activation(sin: 6 parameters)"


@pytest.mark.parametrize(
    ("space", "function", "message"),
    [
        ("cnn_tanh", "relu", "'relu' breaks the sign symmetry of parameter 'layers.0.weight'; use one of tanh, sin"),
        ("cnn_relu", "tanh", "'tanh' breaks the scale symmetry of parameter 'layers.0.weight'; use one of relu, leaky_relu, abs, identity"),
        ("mlp_identity", "relu", "'relu' breaks the sign symmetry of .*; use one of identity"),
        ("cnn_relu", "max_pool(2)", "Expected 'function' to be an activation, which acts on every weight alone"),
        ("cnn_relu", "rellu", "Unknown activation or operator 'rellu'. Did you mean 'relu'"),
    ],
)
def test_wrong_activations_are_refused(space: str, function: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Activation(CHAINS[space], function)


def test_activation_of_another_network_or_symmetry() -> None:
    with pytest.raises(ValueError, match=r"Unknown symmetries \['signs'\]; expected some of permutation, scale, sign"):
        Activation(CHAINS["cnn_tanh"], symmetries=["signs"])
    space = CHAINS["mlp_shallow"]
    with pytest.raises(SpaceMismatchError, match=r"Activation was built for .* but the blocks belong to"):
        Activation(CHAINS["cnn_relu"])(space.blocks(space.sample(2)))


def test_wrong_activation_does_break_the_symmetry() -> None:
    space = CHAINS["cnn_tanh"]
    activation = Activation(space, "relu", symmetries=["permutation"])
    with pytest.raises(AssertionError, match="is not equivariant under sign"):
        assert_equivariant(lambda batch: activation(batch.blocks()).flatten(), space, control=None)


@pytest.mark.parametrize("layer", LAYERS)
def test_wrong_input(layer: str) -> None:
    space = CHAINS["mlp_shallow"]
    network = LAYERS[layer](space, 2, 3)
    name = type(network).__name__
    with pytest.raises(ValueError, match=rf"Expected 'features' of shape \[B, 37, 2\] for {name} \(got \[4, 37, 1\]\)"):
        network(torch.zeros(4, 37, 1))
    with pytest.raises(ValueError, match=f"{name} was built for 2 input channels but the blocks have 1"):
        network(space.blocks(space.sample(3)))
    other = WeightSpace.mlp([3, 7, 2])
    with pytest.raises(SpaceMismatchError, match=rf"{name} was built for WeightSpace\(2-9-1.* but the blocks belong to WeightSpace\(3-7-2"):
        network(other.blocks(other.sample(3)))
    mixed = ParameterGraph.join([space.batch(space.sample(1)), other.batch(other.sample(1))])
    with pytest.raises(SpaceMismatchError, match=f"{name} needs networks of one architecture, but the batch mixes 2 weight spaces"):
        network(mixed)


def test_blocks_of_wrong_shapes() -> None:
    space = CHAINS["mlp_shallow"]
    blocks = space.blocks(space.sample(3))
    turned = tuple(weight.transpose(1, 2) for weight in blocks.weights if weight is not None)
    with pytest.raises(
        ValueError, match=r"Expected the blocks of layer 'layers.0' to have a weight \[B, 9, 2, 1, C\] \(got \[3, 2, 9, 1\]"
    ):
        Blocks.from_layers(space, turned, blocks.biases)
    with pytest.raises(ValueError, match=r"The blocks hold no tensor for the parameter 'layers.0.bias'"):
        Blocks.from_layers(space, blocks.weights, (None, None))
    with pytest.raises(ValueError, match=r"Expected blocks of 2 layers \(got 1 weights, 2 biases\)"):
        Blocks.from_layers(space, blocks.weights[:1], blocks.biases)
    with pytest.raises(ValueError, match=r"to have a bias \[B, 9, C\] \(got \[3, 1\]\)"):
        Blocks.from_layers(space, blocks.weights, blocks.biases[::-1])
    shorter = Blocks(space, {**blocks.tensors, "layers.0.weight": blocks.tensors["layers.0.weight"][:, :5]})
    with pytest.raises(ValueError, match=r"parameter 'layers.0.weight' to have shape \[B, 9, 2, C\] \(got \[3, 5, 2, 1\]\)"):
        MonomialLinear(space, 1, 2)(shorter)


def test_not_a_number_is_refused_with_the_batch() -> None:
    space = CHAINS["mlp_shallow"]
    thetas = space.sample(3)
    thetas[1, 5] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        MonomialLinear(space, 1, 2)(space.batch(thetas))


def test_magep_refuses_what_it_cannot_multiply() -> None:
    with pytest.raises(ValueError, match=r"MAGEPLinear needs a chain of at least two layers.*got WeightSpace\(2-1"):
        MAGEPLinear(WeightSpace.mlp([2, 1]), 1, 1)
    with pytest.raises(
        ValueError, match=r"MAGEPInvariant needs one kernel position per weight .* Fold the kernels first with MonomialLinear"
    ):
        MAGEPInvariant(CHAINS["cnn_relu"], 1, 1)
    with pytest.raises(ValueError, match="The published MAGEPLinear needs a bias in every layer"):
        MAGEPLinear(CHAINS["mlp_relu_no_bias"], 1, 1, reference=True)
    space = CHAINS["mlp_sine"]
    for layer in (MAGEPLinear(space, 1, 1), MAGEPInvariant(space, 1, 1)):
        with pytest.raises(ValueError, match="overflows float16 beyond 65,504; use bfloat16 or float32"):
            layer.half()(space.blocks(space.sample(2).half()))
        assert layer.bfloat16()(space.blocks(space.sample(2).bfloat16())) is not None


def test_float64_and_float16_under_autocast() -> None:
    space = CHAINS["mlp_sine"]
    torch.manual_seed(0)
    thetas = space.sample(3, dtype=torch.float64)
    for layer in (MonomialLinear(space, 1, 2).double(), MAGEPLinear(space, 1, 2).double()):
        expected = layer(space.blocks(thetas)).flatten()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(layer(space.blocks(thetas)).flatten(), expected)
    with torch.autocast("cpu", dtype=torch.float16), pytest.raises(ValueError, match="overflows float16"):
        MAGEPLinear(space, 1, 1)(space.blocks(thetas.float()))


def test_means_do_not_overflow_half_precision() -> None:
    space = WeightSpace.mlp([2, 64, 64, 1])
    thetas = torch.full((1, space.num_params), 30.0, dtype=torch.float16)
    torch.testing.assert_close(NPPool(space, 1)(space.blocks(thetas)), torch.full((1, 1, 6), 30.0, dtype=torch.float16))
    assert torch.isfinite(NPLinear(space, 1, 1).half()(space.blocks(thetas)).flatten()).all()
    assert torch.isfinite(StatFeaturizer(space)(space.blocks(thetas))).all()


@pytest.mark.parametrize("layer", ["np", "hnp", "monomial"])
def test_transposed_weight_sharing(layer: str) -> None:
    # x -> a -> h -> a' -> y, the third weight the transpose of the second.
    groups = [
        NeuronGroup("x", 2, role="input"),
        NeuronGroup("a", 3, operators=("gelu",), permutation="a"),
        NeuronGroup("h", 5, operators=("gelu",)),
        NeuronGroup("decoded", 3, operators=("gelu",), permutation="a", scale="decoded"),
        NeuronGroup("y", 1, role="output"),
    ]
    hidden = Axis(5, (Tie(("h",), 1), Tie(("h",), -1)))
    outer = Axis(3, (Tie(("a",), -1), Tie(("decoded",), 1)))
    shared = Parameter("shared", (5, 3), "weight", (hidden, outer))
    encode, decode = SpaceLayer("2", "linear", ("a",), "h", "shared"), SpaceLayer("3", "linear", ("h",), "decoded", "shared")
    space = space_of(groups, [linear("1", {"x": 2}, "a", 3), (encode, [shared]), (decode, []), linear("4", {"decoded": 3}, "y", 1)])
    assert max(equivariance_error(Stack(LINEAR[layer], space), space, output="equivariant").values()) < 1e-9
    blocks = space.blocks(space.sample(2))
    assert torch.equal(blocks.weights[1], blocks.weights[2].transpose(1, 2))  # type: ignore[arg-type, union-attr]
    assert torch.equal(Blocks.from_layers(space, blocks.weights, blocks.biases).flatten(), blocks.flatten())


@pytest.mark.parametrize("layer", [*LINEAR, "magep", "attention", "statistics", "pool"])
def test_parameters_in_another_order(layer: str) -> None:
    # The order of space.params is that of flat vectors; what a layer computes does not depend on it.
    space = WeightSpace.mlp([2, 5, 4, 3], "tanh")
    order = [3, 0, 5, 2, 1, 4]
    other = WeightSpace(space.groups, space.layers, tuple(space.params[i] for i in order))
    more: dict[str, Layer] = {
        "attention": lambda space, i, o: NPAttention(space, i, i),
        "statistics": lambda space, i, o: StatFeaturizer(space, i),
        "pool": lambda space, i, o: HNPPool(space, i),
    }
    make = {**LAYERS, **more}[layer]
    thetas = space.sample(3, dtype=torch.float64)
    moved = torch.cat([thetas[:, space.slices[param.name]] for param in other.params], dim=1)
    if layer in ("statistics", "pool"):
        values = [make(network, 1, 1)(network.blocks(flat)) for network, flat in ((space, thetas), (other, moved))]
        assert values[0].flatten().sort().values.tolist() == pytest.approx(values[1].flatten().sort().values.tolist())
        assert not torch.equal(*values)
        return
    stack = make(other, 1, 2).double()
    expected = ["permutation"] if "permutation" in stack.symmetries else []
    assert_equivariant(stack, other, symmetries=expected, control="noise" if layer.startswith("pointwise") else "uncoupled")


@pytest.mark.parametrize("layer", LAYERS)
def test_autocast(layer: str) -> None:
    space = WeightSpace.mlp([2, 6, 5, 3])
    torch.manual_seed(0)
    network = LAYERS[layer](space, 1, 2)
    thetas = space.sample(3).requires_grad_()
    expected = network(space.blocks(thetas)).flatten()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = network(space.blocks(thetas)).flatten()
    output.float().square().sum().backward()
    torch.testing.assert_close(output.float(), expected, rtol=0.1, atol=0.1)
    assert thetas.grad is not None
    assert torch.isfinite(thetas.grad).all()


def test_published_hnp_layer_needs_its_chain() -> None:
    for space in (WeightSpace.mlp([2, 1]), CHAINS["mlp_relu_no_bias"], SPACES["residual_relu"]):
        with pytest.raises(ValueError, match="The published HNP layer needs a chain of at least two layers, all with biases"):
            HNPLinear(space, 1, 1, reference=True)


def test_one_layer_networks() -> None:
    space = WeightSpace.mlp([3, 2])
    for layer in (NPLinear, HNPLinear, MonomialLinear, MonomialSineLinear, Pointwise):
        assert layer(space, 1, 2)(space.blocks(space.sample(4))).flatten().shape == (4, 8, 2)


def test_terms_of_ones_own() -> None:
    space = WeightSpace.mlp([2, 4, 1])
    whole = [(name, (0,) if name != "layers.1.bias" else ()) for name in space.slices]
    terms = [Term((Source(*part),), (Target(*part),)) for part in whole]
    layer = SharingLinear(space, 1, 3, terms)
    assert layer(space.blocks(space.sample(2))).flatten().shape == (2, space.num_params, 3)
    assert len(SharingLinear(space, 1, 3, iter(terms)).terms) == len(terms)
    with pytest.raises(ValueError, match="Expected exactly one term per parameter that keeps all of its movable axes"):
        SharingLinear(space, 1, 3, terms[:-1])
    with pytest.raises(ValueError, match=r"is no parameter of .* with such movable axes"):
        SharingLinear(space, 1, 3, [Term((Source("layers.9.weight", ()),), (Target("layers.0.weight", ()),))])
    square = WeightSpace.mlp([2, 4, 4, 1])
    turned = Term((Source("layers.1.weight", (1,)),), (Target("layers.1.weight", (0,)),))
    with pytest.raises(ValueError, match="A term needs sources and targets that keep the same neurons"):
        SharingLinear(square, 1, 3, [turned])


@pytest.mark.parametrize("layer", ["np", "hnp", "monomial"])
def test_concatenated_fixed_and_movable_neurons(layer: str) -> None:
    groups = [NeuronGroup("x", 3, role="input"), NeuronGroup("a", 4, operators=("relu",)), NeuronGroup("y", 2, role="output")]
    space = space_of(groups, [linear("1", {"x": 3}, "a", 4), linear("2", {"x": 3, "a": 4}, "y", 2)])
    assert_equivariant(Stack(LINEAR[layer], space), space)
