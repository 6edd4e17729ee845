"""Message-passing models read traced networks: alone, in mixed batches, drawn or not, and keep all symmetries that they claim."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

import wsgraph
from tests.networks import NETWORKS, make
from wsgraph import ParameterGraph, WeightSpace
from wsgraph.nn import build_model
from wsgraph.nn.message import graph_layers
from wsgraph.nn.message.wiring import Wiring
from wsgraph.testing import assert_equivariant, assert_invariant

MODELS = ("monomial_gnn", "scalegmn", "neural_graph")
SMALL = {"channels": 8, "hidden": 8}


@functools.cache
def traced(name: str) -> WeightSpace:
    module, inputs = make(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return wsgraph.trace(module, *inputs)


def double(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(entry.double() if entry.is_floating_point() else entry for entry in inputs)


def built(model: str, space: WeightSpace | list[WeightSpace], task: str = "invariant", **options: object) -> nn.Module:
    torch.manual_seed(0)
    probes = {"probes": 0} if task == "invariant" else {}
    return build_model(model, space, 2, task, **{**SMALL, **probes, **options}).eval().double()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", NETWORKS)
def test_invariant_to_all_that_the_space_claims(name: str, model: str) -> None:
    module, inputs = make(name)
    assert_invariant(built(model, traced(name)), traced(name), module=module.double(), inputs=double(inputs))


@pytest.mark.parametrize("options", [{"bidirectional": True}, {"task": "equivariant"}, {"task": "equivariant", "bidirectional": True}])
@pytest.mark.parametrize("name", ["resnet", "gpt"])
def test_scalegmn_both_ways_and_weights_out(name: str, options: dict[str, object]) -> None:
    model = built("scalegmn", traced(name), **options)  # type: ignore[arg-type]
    if options.get("task") == "equivariant":
        assert_equivariant(model, traced(name))
    else:
        assert_invariant(model, traced(name))


@pytest.mark.parametrize("model", ["monomial_gnn", "neural_graph"])
@pytest.mark.parametrize("name", ["resnet", "post-norm transformer", "squeeze-excite"])
def test_weights_out_move_as_weights_do(name: str, model: str) -> None:
    assert_equivariant(built(model, traced(name), "equivariant"), traced(name))


@pytest.mark.parametrize("model", MODELS)
def test_every_parameter_on_the_graph_matters(model: str) -> None:
    for name in ("resnet", "gpt", "depthwise"):
        space = traced(name)
        thetas = space.sample(1, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
        built(model, space)(space.batch(thetas)).sum().backward()
        assert thetas.grad is not None
        on_graph = {wire.parameter for wire in space.wires}
        for key in on_graph - {None}:
            assert bool((thetas.grad[:, space.slices[str(key)]] != 0).any()), (name, key)


@pytest.mark.parametrize("task", ["invariant", "equivariant"])
@pytest.mark.parametrize("model", [*MODELS, "neural_graph_transformer"])
def test_wires_and_edges_give_the_same(model: str, task: str) -> None:
    for name in NETWORKS:
        space = traced(name)
        thetas = space.sample(2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        network, batch = built(model, space, task), space.batch(thetas)
        wires = network.read(Wiring.of(batch, dense=True))  # type: ignore[operator]
        edges = network.read(Wiring.of(batch, dense=False))  # type: ignore[operator]
        torch.testing.assert_close(wires, edges, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("model", MODELS)
def test_mixed_batches_equal_single_networks(model: str) -> None:
    spaces = [*map(traced, NETWORKS), WeightSpace.cnn([1, 4, 4], [3]), WeightSpace.mlp([2, 5, 1], "tanh")]
    network = built(model, spaces)
    thetas = [space.sample(2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) for space in spaces]
    batches = [space.batch(own) for space, own in zip(spaces, thetas, strict=True)]
    alone = torch.cat([network(batch) for batch in batches])
    mixed = ParameterGraph.join([*batches[1:], batches[0]])
    torch.testing.assert_close(network(mixed), torch.cat([alone[2:], alone[:2]]), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(network.read(Wiring.of(mixed, dense=False)), network(mixed), rtol=1e-9, atol=1e-12)  # type: ignore[operator]


def test_graphs_that_pyg_collates_are_read_alike() -> None:
    space = traced("squeeze-excite")
    batch = space.batch(space.sample(3, dtype=torch.float64))
    collated = Batch.from_data_list([graph.clone() for graph in batch.to_data_list()])
    network = built("monomial_gnn", space)
    torch.testing.assert_close(network(collated), network(batch), rtol=1e-9, atol=1e-12)
    assert torch.equal(collated.thetas(), batch.thetas())
    collated.edge_attr = collated.edge_attr * 2
    with pytest.raises(wsgraph.space.SpaceMismatchError, match="cannot be read off its edges"):
        collated.thetas()


def test_nothing_is_drawn_unless_asked_for() -> None:
    space = traced("resnet")
    batch = space.batch(space.sample(2), y=torch.zeros(2))
    built("neural_graph", space).float()(batch.to("cpu"))
    repr(batch), batch.num_networks, batch.y, batch[0], batch.thetas(), batch.spaces
    assert batch.is_undrawn
    assert batch.edge_attr is not None
    assert not batch.is_undrawn


def test_weights_changed_in_place_are_noticed() -> None:
    space = WeightSpace.mlp([2, 3, 1])
    thetas = space.sample(2)
    batch = space.batch(thetas)
    thetas.mul_(2)
    with pytest.raises(RuntimeError, match="changed in place after it was made"):
        batch.thetas()
    drawn = space.batch(thetas)
    assert drawn.x is not None
    drawn.x.mul_(2)
    torch.testing.assert_close(drawn.blocks().biases[0], 2 * thetas[:, space.slices["layers.0.bias"]])


def test_large_networks_are_computed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    space = traced("resnet")
    thetas = space.sample(2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    network = built("neural_graph", space)

    def outputs_and_gradients() -> list[Tensor]:
        network.zero_grad()
        own = thetas.clone().requires_grad_()
        outputs = network(space.batch(own))
        outputs.square().sum().backward()
        return [outputs.detach(), own.grad, *(p.grad for p in network.parameters() if p.grad is not None and p.grad.any())]

    whole = outputs_and_gradients()
    for name, value in (("_HEAVY", 1), ("_HEAVY_LINK", 1), ("_CHUNK", 64)):
        monkeypatch.setattr(graph_layers, name, value)
    for one, other in zip(whole, outputs_and_gradients(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


class _Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(x) * self.second(x))


def test_products_of_neurons_of_one_kind_are_products_along_edges_too() -> None:
    space = wsgraph.trace(_Product().eval(), torch.zeros(2, 4))
    network = built("monomial_gnn", space)
    batch = space.batch(space.sample(2, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    assert_invariant(network, space)
    wires, edges = (network.read(Wiring.of(batch, dense=dense)) for dense in (True, False))  # type: ignore[operator]
    torch.testing.assert_close(wires, edges, rtol=1e-9, atol=1e-12)


class _Stacked(nn.Module):
    """A function of weights of given shapes, between linear layers."""

    def __init__(self, function: Callable[..., Tensor], outputs: int, *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.function, self.first, self.last = function, nn.Linear(4, 6), nn.Linear(outputs, 2)
        self.weights = nn.ParameterList(torch.randn(shape) for shape in shapes)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x), *self.weights))


def _experts(x: Tensor, first: Tensor, bias: Tensor, second: Tensor) -> Tensor:
    return torch.bmm((x @ first + bias).relu(), second).transpose(0, 1).flatten(1)


def _routed(x: Tensor, route: Tensor, first: Tensor, gate: Tensor, second: Tensor) -> Tensor:
    values, indices = (x @ route).topk(2, -1)
    shares = torch.zeros_like(x @ route).scatter(-1, indices, values.softmax(-1))
    hidden = nn.functional.silu(torch.einsum("bd,edh->ebh", x, first)) * torch.einsum("bd,edh->ebh", x, gate)
    return (torch.bmm(hidden, second) * shares.T[..., None]).sum(0)


def _two_steps(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    grouped = torch.einsum("bgi,gio->bog", x.unflatten(1, (2, 3)), first).relu()
    return torch.einsum("bog,oga->boa", grouped, second).relu().flatten(1)


def _bilinear(x: Tensor, weight: Tensor) -> Tensor:
    return torch.einsum("bi,oij,bj->bo", x[:, :2].relu(), weight, x[:, 2:4].tanh())


STACKED = {
    "experts": lambda: _Stacked(_experts, 4, (2, 6, 4), (2, 1, 4), (2, 4, 2)),
    "routed experts": lambda: _Stacked(_routed, 3, (6, 4), (4, 6, 3), (4, 6, 3), (4, 3, 3)),
    "two steps": lambda: _Stacked(_two_steps, 12, (2, 3, 4), (4, 2, 3)),
    "bilinear": lambda: _Stacked(_bilinear, 3, (3, 2, 2)),
    "absolute": lambda: _Stacked(lambda x, weight: x.relu() @ weight.abs(), 3, (6, 3)),
}


@pytest.mark.parametrize("model", ["monomial_gnn", "scalegmn"])
@pytest.mark.parametrize("name", STACKED)
def test_weights_with_more_axes_than_neurons_keep_models_invariant(name: str, model: str) -> None:
    torch.manual_seed(0)
    space = wsgraph.trace(STACKED[name]().eval(), torch.randn(3, 4))
    assert_invariant(built(model, space), space)


class _Latents(nn.Module):
    """Learned queries that read tokens by attention of several heads."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attention, self.head = nn.Linear(4, 8), nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 2)
        self.latents = nn.Parameter(torch.randn(1, 3, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(self.attention(self.latents.expand(len(x), -1, -1), x, x, need_weights=False)[0].mean(1))


@pytest.mark.parametrize("model", MODELS)
def test_queries_that_are_parameters_read_neurons_of_all_heads_alike(model: str) -> None:
    torch.manual_seed(0)
    space = wsgraph.trace(_Latents().eval(), torch.randn(2, 5, 4))
    (latents,) = (wire for wire in space.wires if wire.parameter == "latents")
    assert latents.num_parallel == 8
    assert_invariant(built(model, space), space)
    batch = space.batch(space.sample(2, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    network = built(model, space)
    wires, edges = (network.read(Wiring.of(batch, dense=dense)) for dense in (True, False))  # type: ignore[operator]
    torch.testing.assert_close(wires, edges, rtol=1e-9, atol=1e-12)


def test_networks_of_which_only_outputs_are_drawn() -> None:
    module = _Stacked(lambda x: torch.einsum("bi,bj->bij", x[:, :3], x[:, 3:]).tril().flatten(1), 9)
    space = wsgraph.trace(module.eval(), torch.randn(3, 4))
    for model in MODELS:
        assert built(model, space)(space.batch(space.sample(2, dtype=torch.float64))).isfinite().all()
