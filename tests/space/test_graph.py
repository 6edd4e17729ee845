from __future__ import annotations

import copy
import pickle
import statistics
import time
from collections.abc import Iterator
from typing import Any

import networkx as nx
import pytest
import torch
from torch import Tensor
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader

from tests.space.handmade import branching, residual
from wsgraph import ParameterGraph, WeightSpace
from wsgraph.space import SpaceMismatchError
from wsgraph.space.operators import operator_index

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
def test_blocks_of_a_batch_are_views_of_its_features(space: WeightSpace) -> None:
    batch = space.batch(sample(space))
    blocks, expected = batch.blocks(), space.blocks(sample(space))
    for tensors, wanted, store in ((blocks.weights, expected.weights, batch.edge_attr), (blocks.biases, expected.biases, batch.x)):
        storage = store.untyped_storage()
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
    with pytest.raises(SpaceMismatchError, match=r"^blocks\(\) needs networks of one architecture"):
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
        0: {"bias": [0.0], "group": "input", "role": "input", "activation": "identity"},
        1: {"bias": [9.0], "group": "hidden.1", "role": "hidden", "activation": "relu"},
        2: {"bias": [10.0], "group": "hidden.1", "role": "hidden", "activation": "relu"},
        3: {"bias": [15.0], "group": "output", "role": "output", "activation": "identity"},
    }
    assert {(source, target): edge for source, target, edge in graph.edges(data=True)} == {
        (0, 1): {"weight": [1.0, 2.0, 3.0, 4.0], "layer": "layers.0"},
        (0, 2): {"weight": [5.0, 6.0, 7.0, 8.0], "layer": "layers.0"},
        (1, 3): {"weight": [11.0, 12.0], "layer": "layers.1"},
        (2, 3): {"weight": [13.0, 14.0], "layer": "layers.1"},
    }


def test_to_networkx_of_a_residual_network() -> None:
    graph = residual().to_networkx()
    assert nx.is_directed_acyclic_graph(graph)
    skips = [edge for edge in graph.edges(data=True) if edge[2]["layer"] == "skip"]
    assert skips == [(i, i + 9, {"weight": [1.0], "layer": "skip"}) for i in range(3, 7)]


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
