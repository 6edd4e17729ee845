"""Parameter graphs in PyG's own machinery: loaders, transforms, layers, explainers, samplers, files."""

from __future__ import annotations

import copy
import functools
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_geometric.transforms as T
from torch import Tensor, nn
from torch_geometric.data import Batch, Data
from torch_geometric.data.lightning import LightningDataset
from torch_geometric.explain import Explainer, GNNExplainer
from torch_geometric.loader import DataLoader, DynamicBatchSampler, NeighborLoader, RandomNodeLoader
from torch_geometric.loader.utils import filter_data
from torch_geometric.nn import GINEConv, global_mean_pool
from torch_geometric.typing import WITH_PYG_LIB, WITH_TORCH_SPARSE
from torch_geometric.utils import to_networkx

from wsgraph import ParameterGraph, SpaceMismatchError, WeightSpace
from wsgraph.data import ZooStore
from wsgraph.nn import Probes, build_model, list_models
from wsgraph.space.graph import check_graph

SPACE = WeightSpace.cnn([1, 4, 5], [3], kernel_size=2)
SMALL: dict[str, dict[str, Any]] = {
    "monomial_gnn": {"channels": 8, "rounds": 1},
    "neural_graph": {"channels": 8, "layers": 2},
    "neural_graph_transformer": {"channels": 8, "layers": 2},
    "scalegmn": {"channels": 8, "layers": 2},
    "monomial": {"channels": (3, 2), "hidden": 20},
    "np": {"channels": (3, 2), "hidden": 20},
    "hnp": {"channels": (3, 2), "hidden": 20},
    "magep": {"channels": (3, 2), "hidden": 20},
}
MESSAGE_PASSING = ("monomial_gnn", "neural_graph", "neural_graph_transformer", "scalegmn")
every_model = pytest.mark.parametrize("name", list_models())


@functools.cache
def build(name: str, space: WeightSpace = SPACE, task: str = "invariant") -> nn.Module:
    torch.manual_seed(0)
    return build_model(name, space, 2, task, **SMALL.get(name, {})).eval()


def sample(count: int = 4, space: WeightSpace = SPACE) -> Tensor:
    return space.sample(count, generator=torch.Generator().manual_seed(0))


def graphs(count: int = 4) -> list[ParameterGraph]:
    return [SPACE.graph(theta, y=float(i)) for i, theta in enumerate(sample(count))]


@pytest.fixture
def store(tmp_path: Path) -> ZooStore:
    return ZooStore.create(tmp_path / "zoo", SPACE, sample(5), {"test_accuracy": torch.arange(5.0)})


# == Batches that PyG makes ==


@pytest.mark.parametrize("task, name", [(task, name) for task in ("invariant", "equivariant") for name in list_models(task)])
def test_models_read_batches_of_pyg_alike(name: str, task: str) -> None:
    model, expected = build(name, task=task), SPACE.batch(sample())
    batches = [Batch.from_data_list(graphs()), next(iter(DataLoader(graphs(), batch_size=4)))]
    batches += [Batch.from_data_list(expected.to_data_list()), Batch.from_data_list(graphs(), follow_batch=["edge_attr"])]
    for batch in batches:
        torch.testing.assert_close(model(batch), model(expected), rtol=0, atol=1e-6)


def test_loader_over_a_zoo(store: ZooStore) -> None:
    first, second = DataLoader(store.dataset(), batch_size=3)
    assert torch.equal(first.thetas(), sample(5)[:3])
    assert second.y.tolist() == [3.0, 4.0]
    shuffled = DataLoader(store.dataset(), batch_size=5, shuffle=True, generator=torch.Generator().manual_seed(1))
    assert sorted(next(iter(shuffled)).y.tolist()) == [0, 1, 2, 3, 4]


def test_loader_over_a_zoo_with_a_transform_of_pyg(store: ZooStore) -> None:
    (batch,) = DataLoader(store.dataset(transform=T.AddRandomWalkPE(2)), batch_size=5)
    assert batch.random_walk_pe.shape == (5 * 13, 2)
    assert torch.equal(batch.thetas(), sample(5))


def test_loader_with_batches_by_number_of_nodes() -> None:
    loader = DataLoader(graphs(), batch_sampler=DynamicBatchSampler(graphs(), max_num=30, mode="node"))
    assert [batch.num_networks for batch in loader] == [2, 2]


def test_loaders_of_lightning(store: ZooStore) -> None:
    dataset = store.dataset()
    loaders = LightningDataset(dataset[:3], dataset[3:], batch_size=2, pin_memory=False)
    assert next(iter(loaders.val_dataloader())).y.tolist() == [3.0, 4.0]
    assert sum(batch.num_networks for batch in loaders.train_dataloader()) == 3


def test_attributes_of_ones_own_are_collated_and_kept() -> None:
    single = graphs()
    for i, graph in enumerate(single):
        graph.name, graph.score = f"network {i}", torch.tensor([[i, i + 1]])
    batch = Batch.from_data_list(single)
    assert batch.name == [f"network {i}" for i in range(4)]
    assert batch.score.shape == (4, 2)
    assert batch[2].name == "network 2"
    assert torch.equal(batch.thetas(), sample())


# == Copies, files, devices ==


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda batch: batch.clone(), lambda batch: pickle.loads(pickle.dumps(batch))])
def test_copies(copied: Callable[[Any], Any]) -> None:
    for original in (graphs()[0], SPACE.batch(sample()), Batch.from_data_list(graphs())):
        other = copied(original)
        assert type(other) is type(original)
        assert other.spaces == [SPACE]
        assert torch.equal(other.thetas(), original.thetas())


def test_save_and_load(tmp_path: Path) -> None:
    for original in (graphs()[0], SPACE.batch(sample())):
        torch.save(original, tmp_path / "graph.pt")
        loaded = torch.load(tmp_path / "graph.pt", weights_only=False)
        assert repr(loaded) == repr(original)
        assert torch.equal(loaded.thetas(), original.thetas())


def test_dictionary_and_back() -> None:
    graph = graphs()[0]
    assert torch.equal(ParameterGraph.from_dict(graph.to_dict()).thetas(), graph.thetas())
    plain = Data(**graph.to_dict())
    assert torch.equal(ParameterGraph.from_dict(plain.to_dict()).thetas(), graph.thetas())


def test_what_is_known_of_the_order_moves_along() -> None:
    # On an accelerator comparing the edges stalls the stream, on the meta device it is impossible.
    for batch in (SPACE.batch(sample()), Batch.from_data_list(graphs())):
        moved = batch.to("meta")
        assert moved.fits_layout()
        assert {str(weight.device) for weight in moved.blocks().weights if weight is not None} == {"meta"}
    assert not T.ToUndirected()(graphs()[0]).to("meta").fits_layout()


def test_reordered_after_it_was_built() -> None:
    batch = SPACE.batch(sample())
    assert batch.fits_layout()
    batch.edge_index[:, [0, 1]] = batch.edge_index[:, [1, 0]]
    assert not batch.fits_layout()
    other = SPACE.batch(sample())
    other.edge_index = other.edge_index.flip(1)
    assert not other.fits_layout()


def test_moved_between_devices_of_one_kind() -> None:
    batch = SPACE.batch(sample()).cpu().to("cpu", non_blocking=True)
    assert torch.equal(batch.thetas(), sample())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_accelerator() -> None:
    for batch in (SPACE.batch(sample()), Batch.from_data_list(graphs())):
        moved = batch.pin_memory().cuda(non_blocking=True)
        with torch.cuda.stream(torch.cuda.Stream()):
            assert torch.equal(moved.thetas().cpu(), sample())
    with pytest.raises(SpaceMismatchError, match="The edges or nodes of the batch are not those of"):
        T.RemoveDuplicatedEdges()(graphs()[0].cuda()).thetas()


def test_batches_in_inference_mode() -> None:
    # Tensors made there have no version counter.
    model = build("np")
    with torch.inference_mode():
        expected = model(SPACE.batch(sample()))
        torch.testing.assert_close(model(Batch.from_data_list(graphs())), expected)
    torch.testing.assert_close(model(SPACE.batch(sample())), expected)


# == Transforms ==

KEEP: dict[str, Any] = {
    "constant": T.Constant(),
    "degree": T.OneHotDegree(20),
    "indegree": T.TargetIndegree(),
    "random walks": T.AddRandomWalkPE(2),
    "splits of nodes": T.RandomNodeSplit(num_val=2, num_test=2),
    "self-loops removed": T.RemoveSelfLoops(),
    "several": T.Compose([T.LocalDegreeProfile(), T.RandomNodeSplit(num_val=1, num_test=1), T.ToDevice("cpu")]),
}
ADD: dict[str, Any] = {
    "undirected": T.ToUndirected(),
    "self-loops": T.AddSelfLoops(),
    "virtual node": T.VirtualNode(),
    "padded": T.Pad(30, 90),
    "sparse": T.ToSparseTensor(layout=torch.sparse_coo),
    "line graph": T.LineGraph(),
    "normalised": T.GCNNorm(),
    "several": T.Compose([T.NormalizeFeatures(), T.ToUndirected(), T.AddSelfLoops()]),
}
SMALLER: dict[str, Any] = {
    "sorted": lambda graph: graph.sort(),
    "coalesced": T.RemoveDuplicatedEdges(),
    "part of the nodes": lambda graph: graph.subgraph(torch.arange(5, 13)),
    "part of the edges": lambda graph: graph.edge_subgraph(torch.arange(39) % 2 == 0),
    "splits of edges": lambda graph: T.RandomLinkSplit(num_val=2, num_test=2, is_undirected=False)(graph)[0],
}


@pytest.mark.parametrize("transform", KEEP.values(), ids=KEEP)
def test_transforms_that_add_attributes_or_columns_change_no_output(transform: Any) -> None:
    batch = Batch.from_data_list([transform(graph) for graph in graphs()])
    assert torch.equal(batch.thetas(), sample())
    for name in list_models():
        model = build(name)
        torch.testing.assert_close(model(batch), model(SPACE.batch(sample())), rtol=0, atol=1e-6)


def test_transforms_that_change_values_change_the_networks() -> None:
    scaled = T.NormalizeFeatures()(graphs()[0])  # node features, that is biases, are moved and scaled
    assert scaled.fits_layout()
    roles = [param.role for param in SPACE.params for _ in range(param.size)]
    changed = scaled.thetas()[0] != sample()[0]
    assert {role for role, change in zip(roles, changed, strict=True) if change} == {"bias"}


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("transform", ADD.values(), ids=ADD)
def test_transforms_that_add_nodes_or_edges_are_refused(transform: Any) -> None:
    batch = Batch.from_data_list([transform(graph) for graph in graphs()])
    for name in list_models():
        reason = "has edges that .* does not have" if name in MESSAGE_PASSING else "edges or nodes of the batch are not those of"
        with pytest.raises(SpaceMismatchError, match=f"{reason}.*a transform added"):
            build(name)(batch)


@pytest.mark.parametrize("transform", SMALLER.values(), ids=SMALLER)
def test_message_passing_reads_a_part_of_the_network_in_any_order(transform: Any) -> None:
    changed = Batch.from_data_list([transform(graph) for graph in graphs()])
    for name in ("neural_graph", "scalegmn"):
        assert build(name)(changed).shape == (4, 2)
    with pytest.raises(SpaceMismatchError, match=r"in their order.*message-passing models .* can do with a part"):
        build("np")(changed)
    with pytest.raises(SpaceMismatchError, match="in their order"):  # its weights out need a place for every weight
        build("neural_graph", task="equivariant")(changed)


@pytest.mark.parametrize("name", ["neural_graph", "neural_graph_transformer", "scalegmn"])
def test_order_of_edges_does_not_matter_to_message_passing(name: str) -> None:
    model = build(name)
    batch = Batch.from_data_list([graph.sort() for graph in graphs()])
    torch.testing.assert_close(model(batch), model(SPACE.batch(sample())), rtol=0, atol=1e-6)


def test_mixed_batches_are_checked_too() -> None:
    other = WeightSpace.mlp([1, 4, 3])
    mixed = ParameterGraph.join([SPACE.batch(sample()), other.batch(sample(2, other))])
    model = build_model("neural_graph", [SPACE, other], 2, **SMALL["neural_graph"]).eval()
    expected = model(mixed)
    order = torch.randperm(mixed.edge_index.shape[1], generator=torch.Generator().manual_seed(0))
    for name in ("edge_index", "edge_attr", "edge_layer"):
        mixed[name] = mixed[name][..., order] if name == "edge_index" else mixed[name][order]
    torch.testing.assert_close(model(mixed), expected, rtol=0, atol=1e-6)
    with pytest.raises(SpaceMismatchError, match=r"are not those of WeightSpace\(1-4-5-3.* and WeightSpace\(1-4-3"):
        mixed.by_space()
    mixed.edge_index = mixed.edge_index.flip(0)
    with pytest.raises(SpaceMismatchError, match="The batch has edges that its network does not have"):
        model(mixed)


# == What is no parameter graph ==


@every_model
def test_plain_data_is_refused(name: str) -> None:
    plain = [Data(x=graph.x, edge_index=graph.edge_index, edge_attr=graph.edge_attr) for graph in graphs()]
    for batch, kind in ((Batch.from_data_list(plain), "DataBatch"), (plain[0], "Data")):
        with pytest.raises(TypeError, match=rf"Expected a batch of parameter graphs \(got {kind}\).*space.batch\(thetas\)"):
            build(name)(batch)
    without = Batch.from_data_list(graphs(), exclude_keys=["space"])
    with pytest.raises(SpaceMismatchError, match="The graph has no weight space, the attribute 'space'"):
        build(name)(without)


def test_probes_and_tensors() -> None:
    with pytest.raises(TypeError, match=r"Expected a batch of parameter graphs \(got Data\)"):
        Probes(SPACE, 2)(Data())
    with pytest.raises(TypeError, match=rf"got a tensor of shape \[4, {SPACE.num_params}\]\): pass space.batch\(thetas\)"):
        build("neural_graph")(sample())
    assert check_graph(graph := graphs()[0]) is graph


# == Layers, explainers, samplers ==


class GNN(nn.Module):
    """Two of PyG's layers and a mean over neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.first = GINEConv(nn.Linear(1, 8), edge_dim=4)
        self.second = GINEConv(nn.Linear(8, 8), edge_dim=4)
        self.head = nn.Linear(8, 1)

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor, batch: Tensor | None = None) -> Tensor:
        x = self.second(self.first(x, edge_index, edge_attr).relu(), edge_index, edge_attr)
        return self.head(global_mean_pool(x, batch))


class OfPieces(nn.Module):
    """A model of wsgraph as explainers call models, with the features that they mask."""

    def __init__(self, model: nn.Module, batch: ParameterGraph) -> None:
        super().__init__()
        self.model, self.whole = model, batch

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        batch = copy.copy(self.whole)
        batch.x, batch.edge_index = x, edge_index
        return self.model(batch)


def explainer(model: nn.Module, **options: Any) -> Explainer:
    config = {"mode": "regression", "task_level": "graph", "return_type": "raw"}
    return Explainer(model, GNNExplainer(epochs=3), explanation_type="model", model_config=config, **options)


def test_layers_and_explainers_of_pyg() -> None:
    torch.manual_seed(0)
    batch = SPACE.batch(sample())
    explained = explainer(GNN(), node_mask_type="object", edge_mask_type="object")(
        batch.x, batch.edge_index, edge_attr=batch.edge_attr, batch=batch.batch
    )
    assert explained.edge_mask.shape == (batch.num_edges,)
    assert explained.node_mask.shape == (batch.num_nodes, 1)


@pytest.mark.parametrize("name", ["np", "neural_graph"])
def test_explainers_of_our_models(name: str) -> None:
    graph = graphs()[0]
    explained = explainer(OfPieces(build(name), graph), node_mask_type="object")(graph.x, graph.edge_index)
    assert explained.node_mask.shape == (13, 1)
    assert torch.isfinite(explained.node_mask).all()


LARGE = WeightSpace.mlp([10, 30, 30, 5])


def test_part_of_a_large_graph_around_some_neurons() -> None:
    # What NeighborLoader returns for a sampled part, for which it needs a compiled extension itself.
    graph = LARGE.graph(sample(1, LARGE)[0])
    nodes = torch.tensor([74, 60, 61, 3])
    edges = torch.tensor([i for i, (s, t) in enumerate(graph.edge_index.T.tolist()) if s in nodes and t in nodes])
    local = {int(node): i for i, node in enumerate(nodes)}
    row, col = (torch.tensor([local[int(node)] for node in ends]) for ends in graph.edge_index[:, edges])
    part = filter_data(graph, nodes, row, col, edges)
    assert isinstance(part, ParameterGraph)
    assert part.node_role.tolist() == [2, 1, 1, 0]
    assert torch.equal(part.edge_attr, graph.edge_attr[edges])
    assert build("neural_graph", LARGE)(part).shape == (1, 2)


def test_random_parts_of_a_large_graph() -> None:
    graph = LARGE.graph(sample(1, LARGE)[0])
    parts = list(RandomNodeLoader(graph, num_parts=3, shuffle=True))
    assert sum(part.num_nodes for part in parts) == LARGE.topology.num_nodes
    assert all(build("neural_graph", LARGE)(part).shape == (1, 2) for part in parts)


@pytest.mark.skipif(not (WITH_PYG_LIB or WITH_TORCH_SPARSE), reason="needs pyg-lib or torch-sparse")
def test_neighbour_loader() -> None:
    graph = LARGE.graph(sample(1, LARGE)[0])
    loader = NeighborLoader(graph, num_neighbors=[4, 4], batch_size=2, input_nodes=graph.node_role == 2)
    for part in loader:
        assert isinstance(part, ParameterGraph)
        assert build("neural_graph", LARGE)(part).shape == (1, 2)


def test_networkx_of_pyg() -> None:
    graph = graphs()[0]
    network = to_networkx(graph, node_attrs=["x"], edge_attrs=["edge_layer"])
    assert (network.number_of_nodes(), network.number_of_edges()) == (13, graph.num_edges)
    assert to_networkx(SPACE.batch(sample())).number_of_nodes() == 4 * 13


@pytest.mark.skipif(sys.platform == "win32", reason="workers are started anew there")
def test_workers() -> None:
    (batch,) = DataLoader(graphs(), batch_size=4, num_workers=1, multiprocessing_context="fork")
    assert torch.equal(batch.thetas(), sample())
