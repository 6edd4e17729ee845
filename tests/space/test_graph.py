from __future__ import annotations

import copy
import json
import pickle
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
import torch_geometric.transforms as T
from torch import Tensor
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader

import wsgraph
from tests.space.handmade import branching, residual
from wsgraph import ParameterGraph, WeightSpace
from wsgraph.operators import operator_index
from wsgraph.space import SpaceMismatchError

SPACES: dict[str, WeightSpace] = {
    "mlp": WeightSpace.mlp([2, 5, 4, 3], ["sin(30)", "relu"]),
    "no bias": WeightSpace.mlp([2, 5, 3], "tanh", bias=False),
    "cnn": WeightSpace.cnn([1, 4, 6], [5, 3], kernel_size=[3, (1, 2)]),
    "flatten": WeightSpace.cnn([2, 4], [3], readout="flatten", positions=16),
    "residual": residual(),
    "branching": branching(),
}
every_space = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES.keys())
STRUCTURE = ("node_group", "node_role", "node_activation", "node_position", "edge_layer")


def sample(space: WeightSpace, batch: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    return space.sample(batch, generator=torch.Generator().manual_seed(0), dtype=dtype)


def assert_same(first: Any, second: Any) -> None:
    assert sorted(first.keys()) == sorted(second.keys())
    for key in first.keys():  # noqa: SIM118  (Data iterates over pairs)
        if isinstance(first[key], Tensor):
            assert first[key].dtype == second[key].dtype, key
            assert torch.equal(first[key], second[key]), key
        else:
            assert first[key] == second[key], key


# == One graph ==


def expected_edges(space: WeightSpace, theta: Tensor) -> Iterator[tuple[int, int, int, list[float]]]:
    """Source, target, layer and weights of every edge, by plain loops in the documented order."""
    start, nodes = 0, {}
    for group in space.groups:
        nodes[group.name] = range(start, start + group.size)
        start += group.size
    tensors = space.unflatten(theta)
    for i, layer in enumerate(space.layers):
        sources = [node for name in layer.sources for node in nodes[name]]
        if layer.weight is None:
            yield from ((source, target, i, [1.0]) for source, target in zip(sources, nodes[layer.target], strict=True))
            continue
        weight = tensors[layer.weight].reshape(len(nodes[layer.target]), len(sources), -1)
        for t, target in enumerate(nodes[layer.target]):
            for s, source in enumerate(sources):
                yield source, target, i, weight[t, s].tolist()


@every_space
def test_edges_lie_layer_by_layer_then_target_then_source(space: WeightSpace) -> None:
    theta = sample(space)[0]
    graph = space.graph(theta)
    edges = list(expected_edges(space, theta))
    width = max(len(weights) for *_, weights in edges)
    assert graph.edge_index.tolist() == [[edge[0] for edge in edges], [edge[1] for edge in edges]]
    assert graph.edge_layer.tolist() == [edge[2] for edge in edges]
    assert graph.edge_attr.tolist() == [weights + [0.0] * (width - len(weights)) for *_, weights in edges]


def test_edges_of_a_small_network_written_out() -> None:
    space = WeightSpace.mlp([2, 2, 1])
    graph = space.graph(torch.arange(1.0, 10.0))  # weights 1 2 3 4, biases 5 6, weights 7 8, bias 9
    assert graph.edge_index.tolist() == [[0, 1, 0, 1, 2, 3], [2, 2, 3, 3, 4, 4]]
    assert graph.edge_attr.flatten().tolist() == [1, 2, 3, 4, 7, 8]
    assert graph.x.flatten().tolist() == [0, 0, 5, 6, 9]


def test_nodes() -> None:
    graph = SPACES["mlp"].graph(sample(SPACES["mlp"])[0])
    sine, relu = operator_index("sin"), operator_index("relu")
    assert graph.node_group.tolist() == [0] * 2 + [1] * 5 + [2] * 4 + [3] * 3
    assert graph.node_role.tolist() == [0] * 2 + [1] * 9 + [2] * 3
    assert graph.node_activation.tolist() == [0] * 2 + [sine] * 5 + [relu] * 4 + [0] * 3
    assert graph.node_position.tolist() == [1, 2] + [0] * 9 + [1, 2, 3]
    assert graph.num_nodes == 14


def test_biases_are_node_features() -> None:
    space = SPACES["mlp"]
    theta = sample(space)[0]
    tensors = space.unflatten(theta)
    expected = torch.cat([torch.zeros(2), *(tensors[f"layers.{i}.bias"] for i in range(3))])
    assert torch.equal(space.graph(theta).x, expected[:, None])
    assert not SPACES["no bias"].graph(sample(SPACES["no bias"])[0]).x.any()


def test_two_biases_of_one_group_have_columns_of_their_own() -> None:
    space = SPACES["branching"]
    theta = sample(space)[0]
    graph, tensors = space.graph(theta), space.unflatten(theta)
    assert graph.x.shape == (11, 2)
    assert torch.equal(graph.x[-2:], torch.stack([tensors["head.bias"], tensors["shortcut.bias"]], dim=1))
    assert not graph.x[:-2, 1].any()


def test_skip_connections_are_edges_of_weight_one() -> None:
    space = SPACES["residual"]
    graph = space.graph(sample(space)[0])
    skip = graph.edge_layer == 3
    assert graph.edge_attr[skip].tolist() == [[1.0]] * 4
    assert graph.edge_index[:, skip].tolist() == [[3, 4, 5, 6], [12, 13, 14, 15]]


@every_space
def test_graph_is_valid_and_gives_back_theta(space: WeightSpace) -> None:
    theta = sample(space)[0]
    graph = space.graph(theta)
    assert isinstance(graph, ParameterGraph)
    assert graph.validate()
    assert graph.num_networks == 1
    assert graph.spaces == [space]
    assert torch.equal(graph.thetas(), theta[None])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_dtype_is_kept(dtype: torch.dtype) -> None:
    batch = SPACES["mlp"].batch(sample(SPACES["mlp"], dtype=dtype))
    assert batch.x.dtype == batch.edge_attr.dtype == dtype


@pytest.mark.parametrize("y, shape", [(0.5, [1]), ([1.0, 2.0], [1, 2]), (torch.ones(2, 3), [1, 2, 3])])
def test_target_of_a_graph_has_a_leading_dimension(y: Any, shape: list[int]) -> None:
    space = SPACES["mlp"]
    graph = space.graph(sample(space)[0], y=y)
    assert list(graph.y.shape) == shape
    assert torch.equal(graph.y[0], torch.as_tensor(y))
    assert "y" not in space.graph(sample(space)[0])


def test_pickle_and_copy() -> None:
    space = SPACES["residual"]
    graph = space.graph(sample(space)[0], y=1)
    assert_same(pickle.loads(pickle.dumps(graph)), graph)
    assert_same(copy.copy(graph), graph)
    batch = space.batch(sample(space))
    assert torch.equal(pickle.loads(pickle.dumps(batch)).thetas(), sample(space))


# == Batches ==


@every_space
@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("targets", [None, (), (2,)])
def test_batch_equals_what_pyg_collates(space: WeightSpace, size: int, targets: tuple[int, ...] | None) -> None:
    thetas = sample(space, size)
    y = None if targets is None else torch.randn(size, *targets, generator=torch.Generator().manual_seed(1))
    graphs = [space.graph(theta, None if y is None else y[i]) for i, theta in enumerate(thetas)]
    collated, batch = Batch.from_data_list(graphs), space.batch(thetas, y)
    assert type(batch) is type(collated)
    assert_same(batch, collated)
    assert batch.num_graphs == collated.num_graphs == size
    assert batch._slice_dict.keys() == collated._slice_dict.keys()
    for key, value in collated._slice_dict.items():
        assert torch.equal(torch.as_tensor(batch._slice_dict[key]), torch.as_tensor(value)), key
    assert batch._inc_dict.keys() == collated._inc_dict.keys()
    for key, value in collated._inc_dict.items():
        if value is None:
            assert batch._inc_dict[key] is None
        else:
            assert torch.equal(batch._inc_dict[key], value), key


@every_space
def test_batch_gives_back_its_graphs(space: WeightSpace) -> None:
    thetas, y = sample(space, 4), torch.arange(4.0)
    batch = space.batch(thetas, y)
    graphs = batch.to_data_list()
    assert len(graphs) == 4
    for i, graph in enumerate(graphs):
        assert type(graph) is ParameterGraph
        assert_same(graph, space.graph(thetas[i], y[i]))
        assert_same(batch[i], graph)
    picked = batch[torch.tensor([2, 0])]
    assert [graph.y.item() for graph in picked] == [2.0, 0.0]


@every_space
def test_batch_gives_back_thetas(space: WeightSpace) -> None:
    thetas = sample(space, 4)
    assert torch.equal(space.batch(thetas).thetas(), thetas)


@pytest.mark.parametrize("key", STRUCTURE)
def test_structure_is_not_shared_with_the_space(key: str) -> None:
    space = WeightSpace.mlp([2, 3, 1])
    before = getattr(space.topology, key).clone()
    space.batch(sample(space))[key].fill_(9)
    assert torch.equal(getattr(space.topology, key), before)


def test_targets_are_converted() -> None:
    space = SPACES["mlp"]
    assert space.batch(sample(space), y=[1, 2, 3]).y.tolist() == [1, 2, 3]


@every_space
def test_blocks_of_a_batch_are_views_of_the_weights(space: WeightSpace) -> None:
    thetas = sample(space)
    blocks, expected = space.batch(thetas).blocks(), space.blocks(sample(space))
    storage = thetas.untyped_storage()
    for tensors, wanted in ((blocks.weights, expected.weights), (blocks.biases, expected.biases)):
        for tensor, value in zip(tensors, wanted, strict=True):
            if value is None:
                assert tensor is None
                continue
            assert tensor is not None
            assert torch.equal(tensor, value)
            assert tensor.untyped_storage().data_ptr() == storage.data_ptr()
            assert storage.data_ptr() <= tensor.data_ptr() < storage.data_ptr() + storage.nbytes()


@every_space
def test_gradients_flow_from_the_batch_to_thetas(space: WeightSpace) -> None:
    thetas = sample(space).requires_grad_()
    batch = space.batch(thetas)
    ((batch.x**2).sum() + (batch.edge_attr**2).sum()).backward()
    assert thetas.grad is not None
    torch.testing.assert_close(thetas.grad, 2 * thetas.detach())


def test_gradients_flow_through_blocks_of_the_batch() -> None:
    space = SPACES["cnn"]
    thetas = sample(space).requires_grad_()
    (space.batch(thetas).thetas() ** 2).sum().backward()
    assert thetas.grad is not None
    torch.testing.assert_close(thetas.grad, 2 * thetas.detach())


def test_batch_moves_between_dtypes_and_devices() -> None:
    space = SPACES["cnn"]
    batch = space.batch(sample(space)).to("meta")
    assert {value.device.type for _, value in batch if isinstance(value, Tensor)} == {"meta"}
    assert batch.spaces == [space]


# == PyG's loader ==


def test_loader_over_graphs_of_one_space() -> None:
    space = SPACES["mlp"]
    thetas, y = sample(space, 6), torch.arange(6)
    loader = DataLoader([space.graph(theta, label) for theta, label in zip(thetas, y, strict=True)], batch_size=4)
    first, second = loader
    assert (first.num_networks, second.num_networks) == (4, 2)
    assert_same(first, space.batch(thetas[:4], y[:4]))
    assert torch.equal(second.thetas(), thetas[4:])
    assert first.common_space() is space


def test_loader_over_mixed_architectures() -> None:
    small, large = SPACES["mlp"], WeightSpace.mlp([3, 6, 2])
    graphs = [small.graph(sample(small)[0], 0), large.graph(sample(large)[0], 1), small.graph(sample(small)[1], 2)]
    (batch,) = DataLoader(graphs, batch_size=3)
    assert batch.spaces == [small, large]
    assert batch.num_networks == 3
    assert batch.y.tolist() == [0, 1, 2]
    assert batch.ptr.tolist() == [0, 14, 25, 39]
    assert repr(batch) == "ParameterGraphBatch(3 networks of 2 weight spaces, nodes=39, edges=114, y=[3])"
    for i, graph in enumerate(graphs):
        assert_same(batch[i], graph)
    with pytest.raises(SpaceMismatchError, match=r"^blocks\(\) needs networks of one architecture, but the batch mixes 2 weight spaces"):
        batch.blocks()
    with pytest.raises(SpaceMismatchError, match=r"^thetas\(\) needs networks of one architecture"):
        batch.thetas()


def test_equal_spaces_count_once() -> None:
    first, second = WeightSpace.mlp([2, 3, 1]), WeightSpace.mlp([2, 3, 1])
    (batch,) = DataLoader([first.graph(sample(first)[0]), second.graph(sample(first)[1])], batch_size=2)
    assert batch.spaces == [first]
    assert torch.equal(batch.thetas(), sample(first)[:2])


def test_common_space() -> None:
    space = WeightSpace.mlp([2, 3, 1])
    batch = space.batch(sample(space))
    assert batch.common_space(WeightSpace.from_json(space.to_json().replace("layers.", "fc."))) is space
    with pytest.raises(SpaceMismatchError, match=r"^dwsnet was built for WeightSpace\(2-4-1, .* but the batch holds networks of .*2-3-1"):
        batch.common_space(WeightSpace.mlp([2, 4, 1]), "dwsnet")


# == Other views ==


def test_to_networkx() -> None:
    space = WeightSpace.cnn([1, 2], [1], readout="flatten", positions=2, kernel_size=2)
    theta = torch.arange(1.0, space.num_params + 1)
    graph = space.to_networkx(theta)
    assert isinstance(graph, nx.DiGraph)
    assert dict(graph.nodes(data=True)) == {
        0: {"bias": 0.0, "group": "input", "role": "input", "activation": "identity"},
        1: {"bias": 9.0, "group": "hidden.1", "role": "hidden", "activation": "relu"},
        2: {"bias": 10.0, "group": "hidden.1", "role": "hidden", "activation": "relu"},
        3: {"bias": 15.0, "group": "output", "role": "output", "activation": "identity"},
    }
    assert {(source, target): edge for source, target, edge in graph.edges(data=True)} == {
        (0, 1): {"weight": 10.0, "kernel": [1.0, 2.0, 3.0, 4.0], "layer": "layers.0"},
        (0, 2): {"weight": 26.0, "kernel": [5.0, 6.0, 7.0, 8.0], "layer": "layers.0"},
        (1, 3): {"weight": 23.0, "kernel": [11.0, 12.0], "layer": "layers.1"},
        (2, 3): {"weight": 27.0, "kernel": [13.0, 14.0], "layer": "layers.1"},
    }


def test_to_networkx_of_a_residual_network() -> None:
    graph = residual().to_networkx()
    assert nx.is_directed_acyclic_graph(graph)
    skips = [edge for edge in graph.edges(data=True) if edge[2]["layer"] == "skip"]
    assert skips == [(i, i + 9, {"weight": 1.0, "layer": "skip"}) for i in range(3, 7)]


def test_to_networkx_keeps_parallel_edges() -> None:
    # Two layers join "left" to "out" in this network; one of them must not swallow the other.
    space = branching()
    graph = space.to_networkx()
    assert graph.number_of_edges() == space.topology.num_edges
    layers = sorted(edge["layer"] for source, target, edge in graph.edges(data=True) if (source, target) == (2, 9))
    assert layers == ["head", "shortcut"]
    assert not residual().to_networkx().is_multigraph()


def test_to_networkx_of_a_batch() -> None:
    space = SPACES["mlp"]
    batch = space.batch(sample(space))
    with pytest.raises(SpaceMismatchError, match=r"to_networkx\(\) draws one network: take one with batch\[i\]"):
        batch.to_networkx()
    assert batch[1].to_networkx().number_of_nodes() == 14


def test_repr() -> None:
    space = WeightSpace.mlp([2, 3, 1])
    assert repr(space.graph(sample(space)[0])) == "ParameterGraph(2-3-1, nodes=6, edges=9)"
    assert repr(space.graph(sample(space)[0], y=1)) == "ParameterGraph(2-3-1, nodes=6, edges=9, y=[1])"
    assert repr(space.batch(sample(space), torch.zeros(3, 2))) == "ParameterGraphBatch(3 x 2-3-1, nodes=18, edges=27, y=[3, 2])"
    text = "ParameterGraph(WeightSpace(5 groups, 5 layers, 75 parameters), nodes=18, edges=64)"
    assert repr(residual().graph(sample(residual())[0])) == text
    assert repr(ParameterGraph()) == "ParameterGraph()"


def test_algorithms_of_networkx_read_the_weights() -> None:
    space = SPACES["mlp"]
    theta = sample(space)[0]
    graph, weight = space.to_networkx(theta), space.unflatten(theta)["layers.0.weight"]
    dense = nx.to_numpy_array(graph)
    assert torch.equal(torch.from_numpy(dense[:2, 2:7]).float().T, weight)
    assert not dense[2:7, :2].any()
    assert nx.adjacency_matrix(graph).toarray().tolist() == dense.tolist()
    lengths = nx.DiGraph([(a, b, {"weight": abs(edge["weight"])}) for a, b, edge in graph.edges(data=True)])
    path = nx.shortest_path(graph, 0, 13, weight=lambda source, target, edge: abs(edge["weight"]))
    assert path == nx.shortest_path(lengths, 0, 13, weight="weight")
    weights = [dense[:2, 2:7][0], dense[2:7, 7:11], dense[7:11, 11:][:, 2]]  # from the first input to the last output
    sums = weights[0][:, None] + weights[1] + weights[2]
    assert nx.bellman_ford_path_length(graph, 0, 13) == pytest.approx(sums.min())
    between = nx.descendants(graph, 0) & nx.ancestors(graph, 13) | {0, 13}
    assert nx.dag_longest_path_length(graph.subgraph(between)) >= sums.max() - 1e-9
    assert nx.shortest_path_length(lengths, 0, 13, weight="weight") == pytest.approx(
        (abs(weights[0])[:, None] + abs(weights[1]) + abs(weights[2])).min()
    )
    assert sum(nx.pagerank(lengths).values()) == pytest.approx(1)
    flow, _ = nx.maximum_flow(lengths, 0, 13, capacity="weight")
    assert 0 < flow <= lengths.out_degree(0, weight="weight")
    assert graph.out_degree(0, weight="weight") == pytest.approx(float(weight[:, 0].sum()), abs=1e-6)
    assert nx.minimum_spanning_tree(graph.to_undirected()).number_of_edges() == 13
    assert max(nx.betweenness_centrality(lengths, weight="weight").values()) > 0


@every_space
def test_networkx_graphs_become_json_and_graphml(space: WeightSpace, tmp_path: Path) -> None:
    graph = space.to_networkx(sample(space)[0])
    back = nx.node_link_graph(json.loads(json.dumps(nx.node_link_data(graph, edges="links"))), edges="links")
    assert dict(back.nodes(data=True)) == dict(graph.nodes(data=True))
    assert list(back.edges(data=True)) == list(graph.edges(data=True))
    for _, _, edge in graph.edges(data=True):
        assert type(edge["weight"]) is float
        assert edge["weight"] == pytest.approx(sum(edge.get("kernel", [edge["weight"]])))
        assert len(edge.get("kernel", [1, 2])) > 1
    assert {type(value) for _, node in graph.nodes(data=True) for value in node.values()} == {str, float}
    if not any("kernel" in edge for _, _, edge in graph.edges(data=True)):  # GraphML has no lists
        nx.write_graphml(graph, tmp_path / "graph.graphml")
        assert nx.read_graphml(tmp_path / "graph.graphml").number_of_edges() == graph.number_of_edges()


def test_weight_of_a_kernel_in_networkx_is_what_reaches_the_target_from_a_constant_source() -> None:
    space = WeightSpace.cnn([2, 3, 4], [1], "identity", kernel_size=3)
    theta = sample(space, dtype=torch.float64)[0]
    graph = space.to_networkx(theta)
    values = [0.7, -1.3]
    for node in range(2, graph.number_of_nodes()):
        read = (values[source] * edge["weight"] for source, _, edge in graph.in_edges(node, data=True))
        values.append(graph.nodes[node]["bias"] + sum(read))
    constant = torch.tensor(values[:2], dtype=torch.float64).view(1, 2, 1, 1).expand(1, 2, 7, 7)
    assert space.evaluate(theta[None], constant).item() == pytest.approx(values[-1])


def test_networkx_of_part_of_a_graph_and_of_half_precision() -> None:
    space = SPACES["mlp"]
    graph = space.graph(sample(space, dtype=torch.bfloat16)[0])
    assert type(graph.to_networkx().edges[0, 3]["weight"]) is float
    part = graph.subgraph(torch.arange(14) != 3).to_networkx()
    assert [node["group"] for _, node in part.nodes(data=True)].count("hidden.1") == 4
    assert part.number_of_edges() == 42 - 2 - 4


def test_networkx_of_neurons_with_several_biases_and_of_norms() -> None:
    space = SPACES["branching"]
    theta = sample(space)[0]
    tensors, graph = space.unflatten(theta), space.to_networkx(theta)
    expected = [tensors["head.bias"][0].item(), tensors["shortcut.bias"][0].item()]
    assert [graph.nodes[9]["bias"], graph.nodes[9]["bias2"]] == expected
    assert "bias2" not in graph.nodes[0]
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3), torch.nn.PReLU(), torch.nn.Linear(3, 1)).eval()
    traced = wsgraph.trace(net, torch.randn(2, 2))
    drawn = traced.to_networkx(traced.flatten(net.state_dict()).detach())
    norm = [node for _, node in drawn.nodes(data=True) if "variance" in node]
    assert [(node["mean"], node["variance"]) for node in norm] == [(0.0, 1.0)] * 3
    assert [node["slope"] for _, node in drawn.nodes(data=True) if "slope" in node] == [0.25] * 3


# == Networks of a batch ==


def batches() -> dict[str, ParameterGraph]:
    small, other = SPACES["mlp"], WeightSpace.mlp([3, 6, 2])
    thetas, y = sample(small, 4), torch.arange(4.0)
    made = small.batch(thetas, y)
    mixed = [
        small.graph(thetas[0], 0.0),
        other.graph(sample(other)[1], 1.0),
        small.graph(thetas[2], 2.0),
        other.graph(sample(other)[0], 3.0),
    ]
    (loaded,) = DataLoader(made.to_data_list(), batch_size=4, follow_batch=["x", "edge_attr"])
    batches = {
        "built": made,
        "collated": Batch.from_data_list([small.graph(theta, float(i)) for i, theta in enumerate(thetas)]),
        "mixed": Batch.from_data_list(mixed),
        "joined": ParameterGraph.join([small.batch(thetas[:2], y[:2]), small.batch(thetas[2:], y[2:])]),
        "follow_batch": loaded,
        "moved": small.batch(thetas, y).to("cpu").cpu(),
        "pickled": pickle.loads(pickle.dumps(made)),
        "copied": copy.deepcopy(copy.copy(made)),
        "again": Batch.from_data_list([made[i] for i in (0, -3, 2, -1)]),
    }
    return batches


@pytest.mark.parametrize("name", batches())
def test_every_way_of_picking_networks_of_a_batch(name: str) -> None:
    batch: Any = batches()[name]
    graphs = batch.to_data_list()
    assert [graph.y.item() for graph in graphs] == [0, 1, 2, 3]
    assert all(type(graph) is ParameterGraph and graph.validate() and graph.fits_layout() for graph in graphs)

    def assert_picked(picked: Any, expected: Any) -> None:
        assert len(picked) == len(expected)
        for graph, wanted in zip(picked, expected, strict=True):
            assert_same(graph, wanted)

    for i in range(-4, 4):
        for index in (i, np.int64(i), np.int8(i), np.array(i), torch.tensor(i), torch.tensor(i, dtype=torch.int32)):
            assert_same(batch[index], graphs[i])
        assert_same(batch.get_example(i), graphs[i])
    for stretch in (slice(None, None, -1), slice(-3, -1), slice(3, None, -2), slice(4, 9)):
        assert_picked(batch[stretch], graphs[stretch])
        assert_picked(batch.index_select(stretch), graphs[stretch])
    for chosen in ([-1, -4, 2], (-2, 0), range(-2, 1), [-2], []):
        wanted = [graphs[i] for i in chosen]
        made = torch.tensor(list(chosen), dtype=torch.long)
        for several in (chosen, made, made.int(), made.numpy(), made[:, None]):
            assert_picked(batch[several], wanted)
            assert_picked(batch.index_select(several), wanted)
    mask = [True, False, False, True]
    for given in (mask, np.array(mask), torch.tensor(mask)):
        assert_picked(batch[given], [graphs[0], graphs[3]])
    assert torch.equal(batch["y"], torch.arange(4.0))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (4, "Network 4 is out of range: the batch has 4"),
        (-5, "Network -5 is out of range: the batch has 4"),
        (torch.tensor(7), "Network 7 is out of range"),
        (True, r"position of one network to be an integer \(got True\)"),
        (np.bool_(False), "position of one network to be an integer"),
        (torch.tensor(True), "position of one network to be an integer"),
        (torch.tensor(1.0), "position of one network to be an integer"),
        ([0, 4], r"the batch has 4 networks \(got 0 to 4\)"),
        (torch.tensor([-5]), "out of range"),
        ([True, False], r"a mask with one entry per network, 4 \(got 2\)"),
        (torch.tensor([True] * 5), r"a mask with one entry per network, 4 \(got 5\)"),
        ([0.0, 1.0], "Expected positions or a boolean mask"),
        ({1}, r"Expected positions or a boolean mask, one-dimensional \(got set\)"),
        (1.0, "Expected positions or a boolean mask"),
        (None, "Expected positions or a boolean mask"),
    ],
)
def test_networks_that_a_batch_does_not_have(index: Any, message: str) -> None:
    space = SPACES["mlp"]
    with pytest.raises(IndexError, match=message):
        space.batch(sample(space, 4))[index]


def test_networks_of_a_batch_that_a_transform_changed_are_not_mixed() -> None:
    # PyG keeps where networks began before the transform, and would make one network of nodes of several.
    space = SPACES["mlp"]
    batch: Any = space.batch(sample(space))
    part = batch.subgraph(torch.arange(batch.num_nodes) > 4)
    for index in (1, -1, [0, 1], slice(None)):
        with pytest.raises(SpaceMismatchError, match=r"A transform changed the batch: 'x' has \d+ entries, \d+ when its networks"):
            part[index]
    with pytest.raises(SpaceMismatchError, match=r"Transform single graphs, before they are collated"):
        part.to_data_list()
    looped = T.AddSelfLoops()(copy.copy(batch))
    with pytest.raises(SpaceMismatchError, match="'edge_index' has"):
        looped[0]
    extended = T.AddRandomWalkPE(2)(copy.copy(batch))  # adds a column, moves nothing
    assert_same(extended[1], batch[1])


# == Errors ==


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite(value: float) -> None:
    space = SPACES["mlp"]
    thetas = sample(space)
    thetas[1, space.slices["layers.1.bias"].start] = value
    with pytest.raises(ValueError, match=r"'thetas' holds NaN or infinite weights \(first at network 1, parameter 'layers.1.bias'\)"):
        space.batch(thetas)
    with pytest.raises(ValueError, match=r"'theta' holds NaN or infinite weights \(first at parameter 'layers.1.bias'\).*isfinite"):
        space.graph(thetas[1])
    assert space.graph(thetas[0]).num_networks == 1


@pytest.mark.parametrize("shape", [(12,), (1, 13), ()])
def test_graph_of_wrong_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(SpaceMismatchError, match=r"Expected 'theta' of shape \[13\] for WeightSpace\(2-3-1, .*\(got "):
        WeightSpace.mlp([2, 3, 1]).graph(torch.ones(shape))


def test_graph_of_integers() -> None:
    with pytest.raises(TypeError, match=r"Expected 'theta' to be a floating point tensor \(got dtype torch.int64\)"):
        WeightSpace.mlp([2, 3, 1]).graph(torch.ones(13, dtype=torch.long))


@pytest.mark.parametrize("y, shape", [(torch.zeros(2), r"\[2\]"), (1.0, r"\[\]"), ([[1, 2, 3]], r"\[1, 3\]")])
def test_wrong_targets(y: Any, shape: str) -> None:
    space = SPACES["mlp"]
    with pytest.raises(ValueError, match=rf"Expected 'y' with one entry per network, 3 \(got shape {shape}\)"):
        space.batch(sample(space), y=y)


# == Speed ==


def test_batch_of_a_zoo_is_built_in_two_milliseconds() -> None:
    space = WeightSpace.cnn([1, 16, 16, 16], [10])
    thetas = sample(space, 64)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(5):
            space.batch(thetas)
        medians = []
        for _ in range(8):
            times = []
            for _ in range(9):
                start = time.perf_counter()
                space.batch(thetas)
                times.append(time.perf_counter() - start)
            medians.append(statistics.median(times))
    finally:
        torch.set_num_threads(threads)
    assert min(medians) < 2e-3


def test_graph_is_pyg_data() -> None:
    assert issubclass(ParameterGraph, Data)
    assert isinstance(SPACES["mlp"].batch(sample(SPACES["mlp"])), Batch)
