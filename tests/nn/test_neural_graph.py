import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.space.handmade import branching, residual
from tests.spaces import CHAINS, SPACES
from wsgraph import ParameterGraph, WeightSpace
from wsgraph.nn.message.graph_layers import EdgeFeatures, NeuralGraphConv, RelationalAttention
from wsgraph.nn.message.links import DenseLink, End, Moments
from wsgraph.nn.message.neural_graph import NeuralGraphNet, NeuralGraphTransformer
from wsgraph.nn.message.wiring import Wiring
from wsgraph.testing import assert_equivariant, assert_invariant

KINDS = ("pna", "transformer")
TASKS = ("invariant", "equivariant")
MIXED = [CHAINS["cnn_relu"], residual(), CHAINS["cnn_flatten"], CHAINS["mlp_mixed"], branching(), CHAINS["mlp_relu_no_bias"]]
LAYERS: list[Callable[[], NeuralGraphConv | RelationalAttention]] = [lambda: NeuralGraphConv(8), lambda: RelationalAttention(8, heads=2)]


def build(space: WeightSpace | list[WeightSpace], layer: str, task: str = "invariant", **options: Any) -> NeuralGraphNet:
    torch.manual_seed(0)
    return NeuralGraphNet(space, 3, layer=layer, task=task, channels=8, layers=2, hidden=16, **options).double().eval()


def sample(space: WeightSpace, networks: int, seed: int = 0) -> Tensor:
    return space.sample(networks, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("layer", KINDS)
@pytest.mark.parametrize("name", SPACES)
def test_dense_and_indexed_links_agree(name: str, layer: str, task: str) -> None:
    space = SPACES[name]
    model = build(space, layer, task)
    results = []
    for dense in (True, False):
        thetas = sample(space, 3).requires_grad_()
        output = model.read(Wiring.of(space.batch(thetas), dense=dense))
        gradients = torch.autograd.grad(output.square().sum(), [thetas, *model.parameters()], materialize_grads=True)
        results.append([output, *gradients])
    for dense_result, indexed in zip(*results, strict=True):
        torch.testing.assert_close(indexed, dense_result, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("layer", KINDS)
def test_mixed_batches_give_what_networks_give_alone(layer: str, task: str) -> None:
    model = build(MIXED, layer, task)
    graphs = [space.graph(theta) for seed, space in enumerate(MIXED) for theta in sample(space, 2, seed)]
    order = torch.randperm(len(graphs), generator=torch.Generator().manual_seed(0)).tolist()
    joined = model(ParameterGraph.join([graphs[i] for i in order]))
    for row, i in zip(joined, order, strict=True):
        alone = model(graphs[i])[0]
        torch.testing.assert_close(row[: len(alone)], alone, rtol=1e-8, atol=1e-9)
        assert task == "invariant" or not row[len(alone) :].any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("layer", KINDS)
@pytest.mark.parametrize("space", [residual(), branching()], ids=["residual", "branching"])
def test_skips_and_several_consumers_keep_the_symmetry(space: WeightSpace, layer: str, dtype: torch.dtype) -> None:
    assert_invariant(build(space, layer), space, dtype=dtype)
    assert_equivariant(build(space, layer, "equivariant"), space, dtype=dtype)


@pytest.mark.parametrize("layer", KINDS)
def test_input_and_output_neurons_are_told_apart(layer: str) -> None:
    space = WeightSpace.mlp([2, 4, 2])
    model = build(space, layer)
    theta = sample(space, 1)
    weights = space.unflatten(theta)
    first, last = [param.name for param in space.params if param.role == "weight"]
    expected = model(space.batch(theta))
    for name, dim in ((first, 2), (last, 1)):
        swapped = space.flatten({**weights, name: weights[name].flip(dim)})
        assert (model(space.batch(swapped)) - expected).abs().max() > 1e-6


@pytest.mark.parametrize("layer", KINDS)
def test_a_weight_of_zero_is_an_edge(layer: str) -> None:
    space = CHAINS["mlp_mixed"]
    model = build(space, layer, "equivariant")
    theta = sample(space, 1)
    theta[0, 3] = 0
    nudged = theta.clone()
    nudged[0, 3] = 1e-9
    change = (model(space.batch(nudged)) - model(space.batch(theta))).abs().max()
    assert 0 < change < 1e-6


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("layer", KINDS)
def test_networks_of_zeros_and_of_huge_weights(layer: str, task: str) -> None:
    space = CHAINS["cnn_relu"]
    model = build(space, layer, task).float()
    thetas = space.sample(3)
    thetas = (thetas * torch.tensor([0.0, 1e-6, 1e4])[:, None]).requires_grad_()
    for dense in (True, False):
        output = model.read(Wiring.of(space.batch(thetas), dense=dense))
        for gradient in torch.autograd.grad((output / 1e4).square().sum(), [thetas, *model.parameters()]):
            assert torch.isfinite(gradient).all()
        assert torch.isfinite(output).all()


@pytest.mark.parametrize("make", LAYERS)
def test_layers_read_graphs_as_pyg_writes_them(make: Callable[[], NeuralGraphConv | RelationalAttention]) -> None:
    torch.manual_seed(0)
    layer = make().double()
    graph = ParameterGraph.join([space.batch(sample(space, 2)) for space in (residual(), branching())])
    wiring = Wiring.of(graph)
    assert wiring.neurons is not None
    assert wiring.edges is not None
    assert graph.edge_index is not None
    x, edge_attr = torch.randn(graph.num_nodes, 8).double(), torch.randn(graph.num_edges, 8).double()
    new_x, new_edges = layer(x, graph.edge_index, edge_attr)
    parts, links = layer([x[index] for index in wiring.neurons], wiring, [edge_attr[index] for index in wiring.edges])
    for index, part in zip(wiring.neurons, parts, strict=True):
        torch.testing.assert_close(part, new_x[index])
    for index, link in zip(wiring.edges, links, strict=True):
        torch.testing.assert_close(link, new_edges[index])


EDGES = torch.tensor([[0, 1, 2, 0, 3], [2, 2, 3, 3, 1]])
OTHERS = torch.tensor([[5, 6], [7, 7]])  # neuron 4 has no edges


@pytest.mark.parametrize("make", LAYERS)
def test_neurons_see_only_those_that_edges_join_them_with(make: Callable[[], NeuralGraphConv | RelationalAttention]) -> None:
    torch.manual_seed(0)
    layer = make().double()
    x, edge_attr = torch.randn(8, 8).double().requires_grad_(), torch.randn(7, 8).double()
    both, _ = layer(x, torch.cat([EDGES, OTHERS], dim=1), edge_attr)
    alone, _ = layer(x[:4], EDGES, edge_attr[:5])
    torch.testing.assert_close(both[:4], alone)
    (gradient,) = torch.autograd.grad(both[4].sum(), x, retain_graph=True)
    assert torch.isfinite(both).all()
    assert gradient[4].any()
    assert not gradient[[0, 1, 2, 3, 5, 6, 7]].any()
    (gradient,) = torch.autograd.grad(both[0].square().sum(), x)
    assert gradient.any(1).tolist() == [True, False, True, True, False, False, False, False]


def test_messages_are_summarised_by_their_statistics() -> None:
    torch.manual_seed(0)
    conv = NeuralGraphConv(4).double()
    x, edge_attr = torch.randn(4, 4).double(), torch.randn(5, 4).double()
    for messages, (start, end) in zip(conv.messages, (EDGES, EDGES.flip(0)), strict=True):
        sent = (messages.from_there(x[start]) + messages.from_here(x[end])) * messages.factor(edge_attr) + messages.term(edge_attr)  # type: ignore[operator]
        wiring = Wiring.from_edges(EDGES, 4)
        (received,) = messages([x], wiring, EdgeFeatures([edge_attr], torch.nn.Identity(), wiring))
        for neuron in range(4):
            own = sent[end == neuron]
            if not len(own):
                assert not received[neuron].any()
                continue
            deviation = (own.var(0, correction=0) + 1e-6).sqrt() - 1e-3
            expected = torch.cat([own.mean(0), deviation, own.amax(0), own.amin(0)])
            scale = torch.tensor(len(own) + 1).double().log() / torch.tensor(17).double().log()
            torch.testing.assert_close(received[neuron], torch.cat([expected, expected * scale]))


@pytest.mark.parametrize("magnitude", [1, 1000])
def test_attention_is_a_softmax_over_edges_at_both_ends(magnitude: float) -> None:
    torch.manual_seed(0)
    layer = RelationalAttention(8, heads=2).double()
    logits = [[magnitude * torch.randn(5, 2).double()] for _ in range(2)]
    values = [[torch.randn(5, 2, 4).double()] for _ in range(2)]
    (attended,) = layer._attend([torch.zeros(5, 8).double()], Wiring.from_edges(EDGES, 5), logits, values)
    for neuron in range(5):
        own = [index == neuron for index in EDGES.flip(0)]  # incoming edges, then outgoing ones
        pairs = torch.cat([torch.zeros(1, 2).double(), *(side[0][mask] for side, mask in zip(logits, own, strict=True))])
        read = torch.cat([torch.zeros(1, 2, 4).double(), *(side[0][mask] for side, mask in zip(values, own, strict=True))])
        torch.testing.assert_close(attended[neuron], (pairs.softmax(0)[..., None] * read).sum(0).flatten())


def test_the_last_layer_of_an_invariant_model_leaves_edges_alone() -> None:
    updates = [[layer.edge_update is not None for layer in build(residual(), "pna", task).layers] for task in TASKS]
    assert updates == [[True, False], [True, True]]
    layer = NeuralGraphConv(8, update_edges=False)
    edge_attr = torch.randn(5, 8)
    assert layer(torch.randn(4, 8), EDGES, edge_attr)[1] is edge_attr
    assert repr(layer).startswith("NeuralGraphConv(\n  8, update_edges=False")


@pytest.mark.parametrize("layer", KINDS)
def test_probes(layer: str) -> None:
    space = CHAINS["cnn_relu"]
    model = build(space, layer, probes=4)
    output = model(space.batch(sample(space, 2)))
    assert output.shape == (2, 3)
    output.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert_invariant(model, space)

    both = [space, residual()]
    model = build(both, layer, probes=4)
    batches = [one.batch(sample(one, 2)) for one in both]
    torch.testing.assert_close(model(ParameterGraph.join(batches)), torch.cat([model(batch) for batch in batches]))


def test_the_transformer_is_the_net_with_attention() -> None:
    space = CHAINS["mlp_mixed"]
    torch.manual_seed(0)
    model = NeuralGraphTransformer(space, 3, channels=8, layers=2, hidden=16).double().eval()
    batch = space.batch(sample(space, 2))
    torch.testing.assert_close(model(batch), build(space, "transformer")(batch))


def test_errors() -> None:
    space = WeightSpace.mlp([2, 4, 1])
    with pytest.raises(ValueError, match=r"Expected 'task' to be one of invariant, equivariant \(got 'editing'\)"):
        NeuralGraphNet(space, 1, task="editing")
    with pytest.raises(ValueError, match=r"Expected 'layer' to be one of pna, transformer \(got 'gcn'\)"):
        NeuralGraphNet(space, 1, layer="gcn")
    with pytest.raises(ValueError, match=r"leave 'probes' out for weights out \(got 2\)"):
        NeuralGraphNet(space, 1, task="equivariant", probes=2)
    for heads in (0, 3):
        with pytest.raises(ValueError, match=rf"Expected 'heads' to be a divisor of the number of channels, 8 \(got {heads}\)"):
            RelationalAttention(8, heads=heads)
    for small, large in itertools.permutations((space, branching())):
        if small is space:
            with pytest.raises(ValueError, match=r"Expected 'x' with at most 1 columns \(got 2\)"):
                NeuralGraphNet(small, 1)(large.batch(large.sample(2)))
        NeuralGraphNet([small, large], 1)(large.batch(large.sample(2)))


def test_moments_of_messages_have_the_gradients_of_their_formulas() -> None:
    link = DenseLink(0, 1, 1, torch.zeros(2, 3, 4, 1))
    messages = torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.autograd.gradgradcheck(lambda messages: tuple(link.moments(messages, "source")), messages.requires_grad_())
    tied = messages.detach().round().requires_grad_()  # of messages that are largest together each gets a share
    ends: list[tuple[End, int]] = [("target", 2), ("source", 1)]
    for end, dim in ends:
        moments = link.moments(tied, end)
        mean = tied.mean(dim, keepdim=True)
        expected = mean.squeeze(dim), (tied - mean).square().sum(dim), tied.amax(dim), tied.amin(dim)
        weights = [torch.randn(value.shape, dtype=torch.float64) for value in expected]
        gradients = [torch.autograd.grad(each, tied, weights)[0] for each in (moments, expected)]
        torch.testing.assert_close(moments, Moments(*expected))
        torch.testing.assert_close(*gradients)
