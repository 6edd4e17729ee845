"""Parameter-sharing layers and models on networks that are more than layers."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import wsgraph
from tests.networks import NETWORKS, make
from wsgraph import SpaceMismatchError, WeightSpace
from wsgraph.nn import (
    Activation,
    HNPLinear,
    HNPPool,
    MonomialLinear,
    MonomialPool,
    MonomialSineLinear,
    NPLinear,
    NPPool,
    Pointwise,
    StatFeaturizer,
    build_model,
)
from wsgraph.nn.sharing import SharingModule, statistics
from wsgraph.nn.sharing.layout import Layout
from wsgraph.space import Axis, Blocks, NeuronGroup, Parameter, Tie
from wsgraph.symmetry import act, sample_symmetry
from wsgraph.testing import assert_equivariant, assert_invariant

SMALL: dict[str, Any] = {"channels": (3, 2), "hidden": 8}
MODELS = {
    ("np", "invariant"): SMALL,
    ("hnp", "equivariant"): SMALL,
    ("monomial", "invariant"): SMALL,
    ("monomial", "equivariant"): SMALL,
    ("statnn", "invariant"): {"hidden": 8},
}


@cache
def traced(name: str) -> tuple[nn.Module, WeightSpace, tuple[Any, ...]]:
    module, inputs = make(name)
    inputs = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    return module.double(), wsgraph.trace(module, *inputs), inputs


@pytest.mark.filterwarnings("ignore:Unknown operators")
@pytest.mark.parametrize("name", NETWORKS)
def test_models_read_networks_of_other_operators(name: str) -> None:
    module, space, inputs = traced(name)
    assert not space.layers
    thetas = space.sample(2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for (model, task), options in MODELS.items():
        torch.manual_seed(0)
        network = build_model(model, space, 2, task, **options).double()
        output = network(space.batch(thetas))
        assert output.isfinite().all()
        assert output.shape == ((2, 2) if task == "invariant" else (2, space.num_params, 2))
        if space.coverage:
            check = assert_invariant if task == "invariant" else assert_equivariant
            run: dict[str, Any] = {"module": module, "inputs": inputs}
            check(network, space, thetas=thetas, tolerance=1e-9, **run)


def handmade() -> WeightSpace:
    """Parameters of all kinds that axes allow: powers, orders, groups end to end, products of groups, three axes."""
    groups = [
        NeuronGroup("x", 3, role="input"),
        NeuronGroup("a", 4, operators=("relu",)),
        NeuronGroup("b", 4, permutation="a", scale="b", operators=("tanh",)),
        NeuronGroup("c", 5),
        NeuronGroup("heads", 2, role="factor"),
        NeuronGroup("inner", 3, role="factor"),
        NeuronGroup("d", 6, operators=("relu",), factors=("heads", "inner")),
        NeuronGroup("e", 4, operators=("gelu",)),
        NeuronGroup("f", 2, role="fixed"),
    ]

    def axis(size: int, *ties: tuple[tuple[str, ...], Any], order: tuple[int, ...] = ()) -> Axis:
        return Axis(size, tuple(Tie(*tie) for tie in ties), order)

    axes: dict[str, tuple[Axis, ...]] = {
        "gain": (axis(4, (("a",), 1), (("b",), -1)),),
        "variance": (axis(4, (("a",), 2)),),
        "cube": (axis(4, (("b",), 3)), axis(2)),
        "both": (axis(5, (("c",), 1)), axis(4, (("a",), -1)), axis(3)),
        "square": (axis(5, (("c",), 2)),),
        "joined": (axis(6, (("d",), 1)), axis(9, (("a", "c"), (-1, -2)))),
        "shuffled": (axis(9, (("a", "c"), -1), order=(3, 8, 0, 4, 1, 2, 7, 5, 6)), axis(5, (("c",), 1))),
        "mixed": (axis(12, (("x", "a", "c"), -1), order=(7, 2, 0, 11, 4, 1, 3, 5, 10, 6, 8, 9)), axis(4, (("e",), 0))),
        "twice": (axis(7, (("x", "a"), -1)), axis(6, (("e", "f"), 1))),
        "turned": (axis(4, (("a",), -1)), axis(2), axis(5, (("c",), 1))),
        "three": (axis(4, (("e",), 0)), axis(5, (("c",), -1)), axis(6, (("d",), -1)), axis(2)),
        "again": (axis(5, (("c",), -1)), axis(6, (("d",), -1))),
        "heads": (axis(2, (("heads",), 0)),),
        "still": (axis(3), axis(2)),
        "scalar": (axis(1),),
        "counter": (axis(2),),
    }
    params = tuple(
        Parameter(name, tuple(each.size for each in along), "buffer" if name == "counter" else "weight", along)
        for name, along in axes.items()
    )
    return WeightSpace(tuple(groups), (), params)


LINEAR: dict[str, Callable[[WeightSpace, int, int], SharingModule]] = {
    "np": NPLinear,
    "hnp": HNPLinear,
    "monomial": MonomialLinear,
    "sine": MonomialSineLinear,
    "pointwise": Pointwise,
    "pointwise_linear": lambda space, i, o: Pointwise(space, i, o, bias=False),
}
POOLS: dict[str, Callable[[WeightSpace, int], SharingModule]] = {
    "np": NPPool,
    "hnp": HNPPool,
    "monomial": MonomialPool,
    "statistics": StatFeaturizer,
}


def moved(space: WeightSpace, thetas: Tensor, symmetries: tuple[str, ...]) -> tuple[Any, Tensor]:
    generator = torch.Generator().manual_seed(1)
    g = sample_symmetry(space, len(thetas), (1e-3, 1e3), symmetries=symmetries, generator=generator)
    return g, act(space, g, thetas)


@pytest.mark.parametrize("layer", LINEAR)
def test_layers_are_equivariant_whatever_axes_follow(layer: str) -> None:
    space = handmade()
    torch.manual_seed(0)
    first, second = LINEAR[layer](space, 1, 2).double(), LINEAR[layer](space, 2, 3).double()
    between = Activation(space, symmetries=first.symmetries)
    network = lambda values: second(between(first(values[..., None]))).flatten()  # noqa: E731
    thetas = space.sample(2, dtype=torch.float64)
    g, other = moved(space, thetas, first.symmetries)
    assert (other - thetas).abs().max() > 0.1
    expected = act(space, g, network(thetas))
    output = network(other)
    for part in space.slices.values():
        torch.testing.assert_close(output[:, part], expected[:, part], rtol=1e-9, atol=1e-12)
    assert (expected - network(thetas)).abs().max() > 0.01
    assert not output[:, space.slices["counter"]].any()
    rolled = other.clone()  # as no element of the group does
    rolled[:, space.slices["joined"]] = other[:, space.slices["joined"]].roll(1, 1)
    assert not torch.allclose(network(rolled), output)


@pytest.mark.parametrize("pool", POOLS)
def test_pools_are_invariant_whatever_axes_follow(pool: str) -> None:
    space = handmade()
    torch.manual_seed(0)
    layer = POOLS[pool](space, 2).double()
    features = torch.randn(2, space.num_params, 2, dtype=torch.float64)
    _, other = moved(space, features, layer.symmetries)
    output = layer(features)
    assert output.shape == (2, 2, layer.out_features)
    torch.testing.assert_close(layer(other), output, rtol=1e-9, atol=1e-12)
    assert (layer(features + 0.1 * torch.randn_like(features)) - output).abs().max() > 1e-3
    counted = features.clone()
    counted[:, space.slices["counter"]] += 1
    assert torch.equal(layer(counted), output)


def test_powers_of_factors() -> None:
    layout = Layout(handmade())
    kinds = {name: entries.symmetry for name, entries in layout.entries.items() if "[" not in name}
    assert kinds["gain"] == (True, True)
    assert kinds["variance"] == (True, False)  # factors of a, squared
    assert kinds["cube"] == (False, True)
    assert kinds["square"] == (True, False)  # c has both, and its signs squared are none
    assert kinds["heads"] == kinds["still"] == (False, False)
    assert layout.symmetries["mixed"] == (True, True)


@pytest.mark.parametrize("boundary", [False, True])
def test_entries_are_read_and_written_without_loss(boundary: bool) -> None:
    space = handmade()
    layout = Layout(space, boundary=boundary)
    features = torch.randn(2, space.num_params, 3)
    features[:, space.slices["counter"]] = 0
    assert torch.equal(layout.write(layout.read(space.blocks(features)), 3).flatten(), features)


def test_groups_beside_fixed_neurons_have_entries_of_their_own() -> None:
    space = handmade()
    layout = Layout(space)
    mixed = [entries for name, entries in layout.entries.items() if name.startswith("mixed")]
    assert [entries.labels for entries in mixed] == [(("e",),), (("a",), ("e",)), (("c",), ("e",))]
    assert [entries.features for entries in mixed] == [3, 1, 1]
    assert len([name for name in layout.entries if name.startswith("twice")]) == 4
    # The entries of a's neurons are those of a, in a's order.
    values = torch.randn(1, space.num_params, 1)
    tensor, order = space.blocks(values).tensors["mixed"], space.param("mixed").axes[0].order
    rows = torch.stack([tensor[0, order.index(3 + neuron), :, 0] for neuron in range(4)])
    assert torch.equal(layout.read(space.blocks(values))["mixed[1]"][0, 0], rows)
    # For layers that tell no neurons apart, input neurons move like all others.
    assert Layout(space, boundary=True).entries["mixed"].labels == (("x", "a", "c"), ("e",))


def test_counters_change_nothing_and_come_out_as_zeros() -> None:
    _, space, _ = traced("resnet")
    thetas = space.sample(2, dtype=torch.float64)
    counters = [part for name, part in space.slices.items() if name.endswith("num_batches_tracked")]
    counted = thetas.clone()
    for part in counters:
        counted[:, part] = 1000
    for model, task in [*MODELS, ("mlp", "invariant")]:
        network = build_model(model, space, 2, task, **MODELS.get((model, task), {})).double()
        output = network(space.batch(thetas))
        assert torch.equal(network(space.batch(counted)), output)
        if task == "equivariant":
            assert not any(output[:, part].any() for part in counters)
            assert any(output[:, part].any() for name, part in space.slices.items() if name.endswith("running_var"))


def test_blocks_of_a_network_without_layers() -> None:
    _, space, _ = traced("gpt")
    thetas = torch.randn(3, space.num_params, 2)
    blocks = space.blocks(thetas)
    assert {name: tensor.shape[1:-1] for name, tensor in blocks.tensors.items()} == {
        param.name: param.logical_shape for param in space.params
    }
    assert torch.equal(blocks.flatten(), thetas)
    assert all(tensor.untyped_storage().data_ptr() == thetas.untyped_storage().data_ptr() for tensor in blocks.tensors.values())
    with pytest.raises(SpaceMismatchError, match=r"Blocks.weights needs a network of dense and convolutional layers"):
        blocks.weights  # noqa: B018
    with pytest.raises(SpaceMismatchError, match=r"Blocks.biases needs a network of dense and convolutional layers"):
        blocks.biases  # noqa: B018
    with pytest.raises(ValueError, match=r"The blocks hold no tensor for the parameter"):
        Blocks(space, {})
    plain = space.blocks(thetas[..., 0])
    assert torch.equal(plain.with_channels().flatten()[..., 0], plain.flatten())


def test_layers_that_tell_no_neurons_apart_do_so_at_inputs_and_outputs() -> None:
    net = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3)).eval()
    space = wsgraph.trace(net, torch.randn(2, 5))
    torch.manual_seed(0)
    tensors = space.unflatten(space.sample(2, dtype=torch.float64))
    shuffled = dict(tensors)
    shuffled["0.weight"] = tensors["0.weight"][:, :, torch.randperm(5)]
    order = torch.tensor([1, 2, 0])
    shuffled |= {name: tensors[name][:, order] for name in ("3.weight", "3.bias")}
    apart = {**shuffled, "3.bias": tensors["3.bias"]}
    batches = [space.batch(space.flatten(each)) for each in (tensors, shuffled, apart)]
    hidden, whole = build_model("hnp", space, 2, **SMALL).double(), build_model("np", space, 2, **SMALL).double()
    torch.testing.assert_close(whole(batches[1]), whole(batches[0]), rtol=1e-9, atol=1e-12)
    assert not torch.allclose(whole(batches[2]), whole(batches[0]))
    assert not torch.allclose(hidden(batches[1]), hidden(batches[0]))
    chain = wsgraph.trace(nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), torch.randn(2, 5))
    layouts = [Layout(each, boundary=True).entries for each in (space, chain)]
    assert [layouts[0][n].neurons for n in ("0.weight", "3.weight", "3.bias")] == [(8, 5), (3, 8), (3,)]
    assert [layouts[0][n].labels for n in ("3.weight", "3.bias")] == [(("3",), ("0",)), (("3",),)]
    assert [layouts[1][n].neurons for n in ("0.weight", "2.weight", "2.bias")] == [(8, 5), (3, 8), (3,)]


def test_polynomials_need_a_chain() -> None:
    _, space, _ = traced("actor-critic")
    with pytest.raises(ValueError, match=r"MAGEPNFN needs a chain .* not written as layers, because .* monomial reads it"):
        build_model("magep", space, 2)


def vocabulary(size: int) -> WeightSpace:
    groups = (NeuronGroup("h", 8, operators=("gelu",)),)
    return WeightSpace(groups, (), (Parameter("embedding", (size, 8), "weight", (Axis(size), Axis(8, (Tie(("h",), 1),)))),))


@pytest.mark.parametrize("model", ["np", "hnp", "monomial"])
def test_maps_of_absurd_size_are_refused(model: str) -> None:
    with pytest.raises(
        ValueError, match=r"reads every entry that does not move as a feature of its own, 150,528 of parameter 'embedding', and would map"
    ):
        build_model(model, vocabulary(150_528), 1)
    with pytest.raises(ValueError, match=r"MLP reads every entry .* 32,000,000 of parameter 'embedding'"):
        build_model("mlp", vocabulary(4_000_000), 1)
    assert StatFeaturizer(vocabulary(150_528)).out_features == 7


def test_a_network_without_weights() -> None:
    counter = Parameter("steps", (1,), "buffer", (Axis(1),))
    for make_layer in (lambda space: NPLinear(space, 1, 1), StatFeaturizer):
        with pytest.raises(ValueError, match=r"needs networks with weights to read"):
            make_layer(WeightSpace((), (), (counter,)))


def test_quartiles_of_more_entries_than_torch_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(2, 3, 22, generator=torch.Generator().manual_seed(0))
    for count in (1, 2, 7, 22):
        monkeypatch.undo()
        expected = statistics._quartiles(values[..., :count])
        monkeypatch.setattr(statistics, "_LARGEST_QUANTILE", 0)
        torch.testing.assert_close(statistics._quartiles(values[..., :count]), expected)


class Idle(nn.Module):
    """A network with a layer that it never calls."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.idle, self.last = nn.Linear(3, 4), nn.Linear(2, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.softmax(self.first(x), dim=-1))


def test_parameters_that_nothing_reads_are_no_features() -> None:
    space = wsgraph.trace(Idle().eval(), torch.randn(2, 3))
    assert "idle.weight" in space.slices
    thetas = space.sample(2)
    changed = thetas.clone()
    changed[:, space.slices["idle.weight"]] += 1
    for model, task in [*MODELS, ("mlp", "invariant")]:
        network = build_model(model, space, 2, task, **MODELS.get((model, task), {}))
        output = network(space.batch(thetas))
        assert torch.equal(network(space.batch(changed)), output)
        assert not torch.equal(network(space.batch(thetas + 1)), output)
        if task == "equivariant":
            assert not output[:, space.slices["idle.weight"]].any()
