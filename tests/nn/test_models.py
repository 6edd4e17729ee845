from typing import Any

import pytest
import torch
from torch_geometric.data import Batch

from tests.spaces import CHAINS, SPACES, broken_networks, with_dtypes
from wsgraph import ParameterGraph, SpaceMismatchError, WeightSpace
from wsgraph.nn import (
    MAGEPNFN,
    MLP,
    STATNN,
    HNPNet,
    MonomialGNN,
    MonomialNFN,
    NeuralGraphNet,
    NeuralGraphTransformer,
    NPNet,
    ScaleGMN,
    build_model,
    list_models,
    model_entry,
    model_options,
    register_model,
    widths_for_parameters,
)
from wsgraph.nn.message import canonical_features
from wsgraph.nn.normalize import symlog, unit_vectors
from wsgraph.space import Symmetry
from wsgraph.testing import assert_equivariant, assert_invariant

ZOO_CNN = WeightSpace.cnn([1, 16, 16, 16], [10], stride=2)
SMALL: dict[str, dict[str, Any]] = {
    "monomial_gnn": {"channels": 8, "rounds": 2},
    "neural_graph": {"channels": 8, "layers": 2},
    "neural_graph_transformer": {"channels": 8, "layers": 2},
    "scalegmn": {"channels": 8, "layers": 2},
    "monomial": {"channels": (3, 2)},
    "np": {"channels": (3, 2), "hidden": 20},
    "hnp": {"channels": (3, 2), "hidden": 20},
    "magep": {"channels": (6, 4), "hidden": 20},
}
INVARIANT = [name for name in list_models("invariant") if model_entry(name).symmetries]
# The products of MAGEP run along a chain of layers; all other models read any network.
PAIRS = [(name, space) for name in list_models() for space in SPACES if name != "magep" or space in CHAINS]


def build(name: str, space: WeightSpace, out_channels: int = 3, task: str = "invariant") -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model(name, space, out_channels, task, **SMALL.get(name, {}))


@pytest.mark.parametrize(("name", "space", "dtype"), with_dtypes(pair for pair in PAIRS if pair[0] in INVARIANT))
def test_models_are_invariant(name: str, space: str, dtype: torch.dtype) -> None:
    assert_invariant(build(name, SPACES[space]), SPACES[space], dtype=dtype)


@pytest.mark.parametrize(("name", "space", "dtype"), with_dtypes(pair for pair in PAIRS if pair[0] in list_models("equivariant")))
def test_models_with_weights_out_are_equivariant(name: str, space: str, dtype: torch.dtype) -> None:
    model = build(name, SPACES[space], 2, task="equivariant")
    assert_equivariant(model, SPACES[space], dtype=dtype)
    assert model(SPACES[space].batch(SPACES[space].sample(2))).shape == (2, SPACES[space].num_params, 2)


@pytest.mark.parametrize("name", INVARIANT)
def test_models_on_the_zoo_architecture(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(name, ZOO_CNN, 4)  # several outputs, as errors are relative to the largest and a single one may be near zero
    for dtype in (torch.float64, torch.float32):
        assert_invariant(model, ZOO_CNN, dtype=dtype)


@pytest.mark.parametrize("name", ["statnn", "neural_graph", "np", "hnp"])
def test_baselines_do_change_with_scale(name: str) -> None:
    with pytest.raises(AssertionError, match="is not invariant under scale"):
        assert_invariant(build(name, ZOO_CNN), ZOO_CNN, symmetries=["permutation", "scale"], control=None)


def test_a_plain_mlp_has_no_symmetry() -> None:
    model = build("mlp", ZOO_CNN)
    with pytest.raises(AssertionError, match="is not invariant under permutation"):
        assert_invariant(model, ZOO_CNN, symmetries=["permutation"], control=None)


def test_magep_needs_a_chain() -> None:
    with pytest.raises(ValueError, match="MAGEPNFN needs a chain of at least two layers"):
        build("magep", SPACES["residual_relu"])


TRIED = ("cnn_relu", "cnn_tanh", "mlp_identity", "mlp_mixed", "residual_relu")


@pytest.mark.parametrize(("name", "space"), [pair for pair in PAIRS if pair[1] in TRIED])
def test_outputs_and_gradients_are_finite(name: str, space: str) -> None:
    thetas = broken_networks(SPACES[space])
    if name == "magep":  # products of a thousand times larger weights leave the range of float32, as the docstring says
        thetas = thetas[:-1]
    thetas.requires_grad_()
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
    if model_entry(name).mixed:
        model = build_model(name, [large, small], 1).eval()
        output = model(mixed)
        torch.testing.assert_close(output[1:], model(mixed[1]), rtol=1e-4, atol=1e-5)
    else:
        with pytest.raises(SpaceMismatchError, match="needs networks of one architecture, but the batch mixes 2 weight spaces"):
            build(name, large)(mixed)


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


PUBLISHED: dict[str, tuple[int, dict[str, Any]]] = {
    "np": (1_940_433, {}),
    "hnp": (2_811_743, {"reference": True}),
    "monomial": (254_619, {"reference": True}),
    "magep": (1_008_521, {"reference": True}),
    "statnn": (80_641, {}),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_counts(name: str) -> None:
    count, options = PUBLISHED[name]
    assert sum(parameter.numel() for parameter in build_model(name, ZOO_CNN, 1, **options).parameters()) == count


def test_parameters_that_nothing_reads_are_left_out() -> None:
    def count(name: str, **options: Any) -> int:
        return sum(parameter.numel() for parameter in build_model(name, ZOO_CNN, 1, **options).parameters())

    # The published pool normalises the last bias, 5 + 5 parameters, and never uses it.
    assert count("monomial") == count("monomial", reference=True) - 10
    # The complete HNP layer has more terms and fewer redundant inputs than the published one.
    assert count("hnp") < count("hnp", reference=True)
    assert count("magep") < count("magep", reference=True)
    assert all(parameter.requires_grad for parameter in build_model("magep", ZOO_CNN, 1).parameters())


def test_registry_errors() -> None:
    with pytest.raises(ValueError, match=r"Unknown model 'transformer'\. Available models: hnp"):
        build_model("transformer", ZOO_CNN, 1)
    with pytest.raises(ValueError, match="Expected 'task' to be"):
        build_model("statnn", ZOO_CNN, 1, task="other")
    with pytest.raises(ValueError, match="'statnn' does not solve equivariant tasks"):
        build_model("statnn", ZOO_CNN, 1, task="equivariant")
    with pytest.raises(ValueError, match=r"Expected 'task' to be one of invariant, equivariant \(got 'editing'\)"):
        NPNet(ZOO_CNN, 1, task="editing")
    for name in ("monomial", "magep"):
        with pytest.raises(ValueError, match=r"Expected 'channels' to be at least one positive width \(got \[\]\)"):
            build_model(name, ZOO_CNN, 1, channels=[])
    with pytest.raises(TypeError, match="depth"):
        build_model("statnn", ZOO_CNN, 1, depth=3)
    with pytest.raises(ValueError, match="named 'statnn' is registered already"):
        register_model("statnn", family="statistics")(STATNN)


def test_registry_entries() -> None:
    classes = {
        "hnp": HNPNet,
        "magep": MAGEPNFN,
        "mlp": MLP,
        "monomial": MonomialNFN,
        "monomial_gnn": MonomialGNN,
        "neural_graph": NeuralGraphNet,
        "neural_graph_transformer": NeuralGraphTransformer,
        "np": NPNet,
        "scalegmn": ScaleGMN,
        "statnn": STATNN,
    }
    assert list_models() == list(classes)
    assert list_models("equivariant") == [
        "hnp",
        "magep",
        "monomial",
        "monomial_gnn",
        "neural_graph",
        "neural_graph_transformer",
        "np",
        "scalegmn",
    ]
    assert {name: type(build(name, CHAINS["cnn_relu"])) for name in list_models()} == classes
    assert all(model_entry(name).description for name in list_models())


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
    wide = torch.linspace(-3, 3, 8, dtype=torch.float64).requires_grad_()
    torch.testing.assert_close(symlog(wide), wide.sign() * torch.log1p(100 * wide.abs()) / 5)
    assert torch.autograd.gradcheck(symlog, (wide,))
    assert torch.autograd.gradgradcheck(symlog, (wide,))
    torch.testing.assert_close(torch.func.vmap(symlog)(wide), symlog(wide))


@pytest.mark.parametrize("task, name", [(task, name) for task in ("invariant", "equivariant") for name in list_models(task)])
def test_widths_for_a_number_of_parameters(name: str, task: str) -> None:
    space = WeightSpace.siren((2, 32, 32, 1))
    for wanted in (40_000, 400_000):
        widths = widths_for_parameters(name, space, 10, wanted, task)
        count = sum(parameter.numel() for parameter in build_model(name, space, 10, task, **widths).parameters())
        assert 0.8 * wanted < count < 1.25 * wanted


def test_widths_that_are_out_of_reach() -> None:
    space = WeightSpace.siren((2, 32, 32, 1))
    with pytest.raises(ValueError, match=r"The model 'neural_graph' has [\d,]+ parameters at the least or most, far from 10\."):
        widths_for_parameters("neural_graph", space, 1, 10)
    with pytest.raises(ValueError, match="Unknown model 'nothing'"):
        widths_for_parameters("nothing", space, 1, 1000)


def test_models_of_one_architecture_refuse_several() -> None:
    spaces = [WeightSpace.mlp([2, 3, 1]), WeightSpace.mlp([2, 4, 1])]
    for name in [name for name in list_models() if not model_entry(name).mixed]:
        with pytest.raises(ValueError, match=rf"The model '{name}' reads networks of one architecture \(got 2 weight spaces\)"):
            build_model(name, spaces, 1)


@pytest.mark.parametrize("name", list_models())
def test_every_option_that_is_listed_can_be_given(name: str) -> None:
    space = WeightSpace.mlp([2, 4, 4, 1])
    given = build_model(name, space, 1, **model_options(name))
    usual = build_model(name, space, 1)
    assert {key: value.shape for key, value in given.state_dict().items()} == {
        key: value.shape for key, value in usual.state_dict().items()
    }


def test_an_option_that_there_is_not_is_refused_with_those_there_are() -> None:
    with pytest.raises(
        TypeError, match=r"The model 'statnn' has no option 'hiden'\. Its options: hidden, dropout\. Did you mean 'hidden'\?"
    ):
        build_model("statnn", WeightSpace.mlp([2, 4, 1]), 1, hiden=3)
    with pytest.raises(ValueError, match=r"Unknown model 'statn'.*Did you mean 'statnn'\?"):
        build_model("statn", WeightSpace.mlp([2, 4, 1]), 1)


def test_an_option_that_the_class_settles_is_refused() -> None:
    assert "layer" not in model_options("neural_graph_transformer")
    with pytest.raises(TypeError, match="has no option 'layer'"):
        build_model("neural_graph_transformer", WeightSpace.mlp([2, 4, 1]), 1, layer="pna")
