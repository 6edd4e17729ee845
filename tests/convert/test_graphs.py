"""Parameter graphs of traced networks that layers cannot express: every weight is there, in its place, and symmetries move nodes."""

import dataclasses
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.convert.test_tracing import CASES, Function, image, tokens
from tests.networks import randomized
from wsgraph import ParameterGraph, SpaceMismatchError, TraceWarning, WeightSpace, trace
from wsgraph._outputs import largest_difference, module_outputs
from wsgraph.nn import build_model
from wsgraph.plot import draw_graph
from wsgraph.space import Connection
from wsgraph.symmetry import GroupElement
from wsgraph.testing import assert_invariant


def traced(module: nn.Module, *inputs: Tensor) -> WeightSpace:
    randomized(module)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TraceWarning)
        return trace(module, *inputs)


def moved_nodes(space: WeightSpace, g: GroupElement) -> Tensor:
    """Where every node lies after the group's permutations."""
    old = torch.arange(space.topology.num_nodes)
    for group in space.groups:
        nodes = space.topology.nodes[group.name]
        if nodes.start < nodes.stop and group.permutation in g.permutations:
            old[nodes] = nodes.start + g.permutations[group.permutation][0]
    return old.argsort()


def edges(graph: ParameterGraph, place: Tensor) -> Tensor:
    """Edges as rows (layer, target, source, weights), sorted, so that parallel ones compare too."""
    (space,) = graph.spaces
    # The groups of a grouped transposed convolution are wires of their own, which change places with the groups.
    wires = [(edges.first_position, space.wires[edges.wire].parameter or edges.wire) for edges in space.topology.edges]
    layer = torch.tensor([wires.index(wire) for wire in wires])[graph["edge_layer"]]
    index = torch.stack([layer, *place[graph["edge_index"]].flip(0)]).T
    rows = torch.cat([index.double(), graph["edge_attr"].double()], dim=1)
    for column in reversed(range(rows.shape[1])):
        rows = rows[rows[:, column].argsort(stable=True)]
    return rows


def _experts(m: Any, x: Tensor) -> Tensor:
    gates = m.g(x).softmax(-1)
    return (gates[..., None] * torch.stack([m.a(x), m.b(x)], dim=-2)).sum(-2)


def _heads(m: Any, x: Tensor) -> Tensor:
    q, k, v = (torch.einsum("btd,dhk->bthk", x, weight) for weight in (m.q, m.k, m.v))
    scores = torch.einsum("bthk,bshk->bhts", q, k).softmax(-1)
    return torch.einsum("bthk,hkd->btd", torch.einsum("bhts,bshk->bthk", scores, v), m.o)


def _ensemble(m: Any, x: Tensor) -> Tensor:
    h = torch.relu(torch.einsum("bi,eih->ebh", x, m.w1))
    return torch.einsum("ebh,eho->ebo", h, m.w2).sum(0)


def _filled(m: Any, x: Tensor) -> Tensor:
    h = m.a(x).clone()
    h[..., :2] = m.b(x)
    return m.out(h)


def with_parameters(module: nn.Module, **parameters: Tensor) -> nn.Module:
    for name, tensor in parameters.items():
        module.register_parameter(name, nn.Parameter(tensor))
    return module


L, C = nn.Linear, nn.Conv2d
MORE: dict[str, tuple[nn.Module, Tensor]] = {
    "one output": (nn.Sequential(L(8, 4), nn.LayerNorm(4), L(4, 1)), tokens()),
    "one map": (nn.Sequential(C(3, 4, 3), nn.BatchNorm2d(4), C(4, 1, 3)), image()),
    "fused weights": (
        Function(
            lambda m, x: m.out(m.n(F.linear(x, torch.cat([m.a.weight, m.b.weight]), torch.cat([m.a.bias, m.b.bias])))),
            a=L(8, 3),
            b=L(8, 4),
            n=nn.LayerNorm(7),
            out=L(7, 2),
        ),
        tokens(),
    ),
    "biases with a gap": (
        with_parameters(
            Function(
                lambda m, x: m.out(m.n(F.linear(x, m.a.weight, torch.cat([m.q, torch.zeros(2), m.v])))),
                a=L(8, 6, bias=False),
                n=nn.LayerNorm(6),
                out=L(6, 2),
            ),
            q=torch.zeros(2),
            v=torch.zeros(2),
        ),
        tokens(),
    ),
    "padded weight": (
        Function(
            lambda m, x: m.out(m.n(F.linear(x, torch.cat([torch.zeros(2, 8), m.a.weight])))),
            a=L(8, 4, bias=False),
            n=nn.LayerNorm(6),
            out=L(6, 2),
        ),
        tokens(),
    ),
    "experts": (Function(_experts, g=L(8, 2), a=L(8, 4), b=L(8, 4)), tokens()),
    "heads by einsum": (
        with_parameters(Function(_heads), **{name: torch.randn(8, 2, 4) for name in "qkv"}, o=torch.randn(2, 4, 8)),
        tokens(),
    ),
    "ensemble": (with_parameters(Function(_ensemble), w1=torch.randn(3, 8, 4), w2=torch.randn(3, 4, 2)), torch.randn(5, 8)),
    "mixing of tokens": (
        Function(lambda m, x: m.out(x + m.t(m.n(x).transpose(1, 2)).transpose(1, 2)), n=nn.LayerNorm(8), t=L(5, 5), out=L(8, 2)),
        tokens(),
    ),
    "bias made of parameters": (
        with_parameters(
            Function(
                lambda m, x: m.out(m.n(m.a(x) + m.c(torch.relu(m.b(m.table))))),
                a=L(8, 4),
                b=L(3, 6),
                c=L(6, 4),
                n=nn.LayerNorm(4),
                out=L(4, 2),
            ),
            table=torch.randn(3),
        ),
        tokens(),
    ),
    "shuffled pixels": (nn.Sequential(C(3, 8, 3), nn.PixelShuffle(2), C(2, 4, 3), nn.BatchNorm2d(4)), image()),
    "unflattened": (
        nn.Sequential(L(8, 32), nn.ReLU(), nn.Unflatten(1, (2, 4, 4)), nn.ConvTranspose2d(2, 3, 2), nn.BatchNorm2d(3)),
        torch.randn(2, 8),
    ),
    "grouped input": (nn.Sequential(C(3, 6, 3, groups=3), nn.BatchNorm2d(6), C(6, 2, 1)), image()),
    "written to a part": (Function(_filled, a=L(8, 4), b=L(8, 2), out=L(4, 3)), tokens()),
}
ALL = {**{name: case[:2] for name, case in CASES.items() if name != "recurrent"}, **MORE}
NAMES = list(ALL)


@pytest.mark.parametrize("name", NAMES)
def test_permutations_move_the_nodes(name: str) -> None:
    module, inputs = ALL[name]
    space = traced(module, inputs)
    theta = space.sample(1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    stay = torch.arange(space.topology.num_nodes)
    for seed in range(2):
        g = space.sample_symmetry(symmetries=["permutation"], generator=torch.Generator().manual_seed(seed))
        before, after = space.graph(theta[0]), space.graph(space.act(g, theta)[0])
        place = moved_nodes(space, g)
        assert edges(before, place).equal(edges(after, stay))
        assert after["x"][place].equal(before["x"])
        assert edges(before, stay).equal(edges(after, stay)) == space.act(g, theta).equal(theta)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_of_the_function_is_on_the_graph(name: str) -> None:
    module, inputs = ALL[name]
    space = traced(module, inputs)
    numbers = torch.arange(1.0, space.num_params + 1, dtype=torch.float64)
    graph = space.graph(numbers)
    found = set(graph["x"].flatten().tolist()) | set(graph["edge_attr"].flatten().tolist())
    # What the function does not use, or makes other parameters of.
    expected = {"functional weights": ["b.bias"], "bias made of parameters": ["table", "b.weight", "b.bias", "c.bias"]}.get(name, [])
    missing = [
        param.name for param in space.params if param.role != "buffer" and not found >= set(numbers[space.slices[param.name]].tolist())
    ]
    assert missing == expected
    assert space.absent_from_graph == expected
    unused = {param.name for param in space.params if param.unused}
    drawable = ", ".join(text for text in expected if text not in unused)
    assert (f"Not on the parameter graph: {drawable}." in space.report()) == bool(drawable)
    assert WeightSpace.from_json(space.to_json()) == space
    assert space.architecture.graph(numbers)["edge_attr"].equal(graph["edge_attr"])


@pytest.mark.parametrize(
    "name", ["batch norm", "depthwise multiplier", "grouped", "attention", "squeeze and excite", "embedding", "reused layer"]
)
@pytest.mark.parametrize("model", ["neural_graph", "neural_graph_transformer"])
def test_permutation_invariant_models_read_traced_networks(name: str, model: str) -> None:
    module, inputs, _ = CASES[name]
    space = traced(module, inputs)
    torch.manual_seed(0)
    network = build_model(model, space, 2, channels=8).double().eval()
    if name == "reused layer":  # no symmetry
        assert network(space.batch(space.sample(2).double())).shape == (2, 2)
    else:
        assert_invariant(network, space, module=module, inputs=inputs)
    for dtype in (torch.float32, torch.float64):
        batch = space.batch(space.sample(3, dtype=dtype))
        network.to(dtype)(batch).sum().backward()
    one = space.batch(space.sample(3).double())
    assert torch.allclose(network(one)[1:2], network(one[1]), rtol=1e-9)


def test_batches_mix_traced_networks_and_chains() -> None:
    spaces = [traced(*CASES[name][:2]) for name in ("batch norm", "attention")] + [WeightSpace.mlp([3, 8, 2])]
    model = build_model("neural_graph", spaces, 1).eval()
    batch = ParameterGraph.join([space.batch(space.sample(2, generator=torch.Generator().manual_seed(0))) for space in spaces])
    outputs = model(batch)
    assert outputs.shape == (6, 1)
    alone = torch.cat([model(space.batch(space.sample(2, generator=torch.Generator().manual_seed(0)))) for space in spaces])
    assert torch.allclose(outputs, alone, atol=1e-5)
    with pytest.raises(ValueError, match=r"Expected edges of kind sum, weight.*build the model with all spaces"):
        build_model("neural_graph", WeightSpace.mlp([12, 8, 12]), 1)(batch)


@pytest.mark.parametrize("name", CASES)
def test_canonical_forms(name: str) -> None:
    module, inputs, _ = CASES[name]
    space = traced(module, inputs)
    thetas = space.sample(3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    canonical = space.canonicalize(thetas)
    torch.testing.assert_close(space.canonicalize(canonical), canonical, rtol=1e-9, atol=1e-9)
    for seed in range(2):
        g = space.sample_symmetry(3, (1e-3, 1e3), generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(space.canonicalize(space.act(g, thetas)), canonical, rtol=1e-9, atol=1e-9)
    theta, outputs = module_outputs(module, space, (inputs,))
    assert largest_difference(outputs(space.canonicalize(theta)), outputs(theta)) < 1e-12


# == What lies where ==


def weights_between(graph: ParameterGraph, source: str, target: str) -> Tensor:
    """``[targets, sources, K]``, zero where there is no edge."""
    space = graph.spaces[0]
    rows, columns = space.topology.nodes[target], space.topology.nodes[source]
    table = graph["x"].new_zeros(space.topology.num_nodes, space.topology.num_nodes, graph["edge_attr"].shape[1])
    table[graph["edge_index"][1], graph["edge_index"][0]] = graph["edge_attr"]
    return table[rows, columns]


def column(graph: ParameterGraph, kind: str, group: str) -> Tensor:
    topology = graph.spaces[0].topology
    return graph["x"][topology.nodes[group], topology.columns.index(kind)]


def test_norms_are_neurons_of_their_own_with_statistics_as_features() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3))
    space = traced(net, image())
    state = net.state_dict()
    graph = space.graph(space.flatten(state))
    assert repr(graph).startswith("ParameterGraph(WeightSpace(4 groups")
    assert space.topology.columns == ("bias", "mean", "variance")
    assert weights_between(graph, "input", "0").equal(state["0.weight"].flatten(2))
    assert weights_between(graph, "0", "1")[..., 0].equal(state["1.weight"].diag())
    assert weights_between(graph, "1", "3").equal(state["3.weight"].flatten(2))
    for kind, group, key in (
        ("bias", "0", "0.bias"),
        ("bias", "1", "1.bias"),
        ("mean", "0", "1.running_mean"),
        ("variance", "0", "1.running_var"),
    ):
        assert column(graph, kind, group).equal(state[key])
    assert [space.group(name).role for name in ("input", "0", "1", "3")] == ["input", "hidden", "hidden", "output"]
    assert space.group("1").activation == "relu"


def test_grouped_and_depthwise_wiring() -> None:
    grouped, depthwise = nn.Conv2d(4, 6, 3, groups=2), nn.Conv2d(6, 6, 3, groups=6)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), grouped, nn.ReLU(), depthwise, nn.ReLU(), nn.Conv2d(6, 2, 1))
    space = traced(net, image())
    state = net.state_dict()
    graph = space.graph(space.flatten(state))
    expected = torch.zeros(6, 4, 9)
    expected[:3, :2], expected[3:, 2:] = (half.flatten(2) for half in state["2.weight"].split(3))
    assert weights_between(graph, "0", "2").equal(expected)
    assert weights_between(graph, "2", "4").equal(torch.diag_embed(state["4.weight"].view(6, 9).T).permute(1, 2, 0))


def test_weights_laid_end_to_end() -> None:
    module, inputs = MORE["fused weights"]
    space = traced(module, inputs)
    state = module.state_dict()
    graph = space.graph(space.flatten(state))
    for layer in "ab":
        (wire,) = (wire for wire in space.wires if wire.parameter == f"{layer}.weight")
        rows = torch.cat([weights_between(graph, wire.sources[0], name)[..., 0] for name in wire.targets])
        assert rows[list(wire.target_order) or slice(None)].equal(state[f"{layer}.weight"])
        biases = torch.cat([column(graph, "bias", name) for name in wire.targets])
        assert biases[list(wire.target_order) or slice(None)].equal(state[f"{layer}.bias"])
    module, inputs = MORE["biases with a gap"]
    space = traced(module, inputs)
    state = {**module.state_dict(), "q": torch.tensor([1.0, 2.0]), "v": torch.tensor([3.0, 4.0])}
    graph = space.graph(space.flatten(state))
    (wire,) = (wire for wire in space.wires if wire.parameter == "a.weight")
    biases = torch.cat([column(graph, "bias", name) for name in wire.targets])
    assert biases[list(wire.target_order) or slice(None)].tolist() == [1, 2, 0, 0, 3, 4]


def test_every_output_is_one() -> None:
    net = Function(lambda m, x: ((h := m.n(m.a(x)))[..., 1:], m.out(h)), a=nn.Linear(8, 4), n=nn.LayerNorm(4), out=nn.Linear(4, 3))
    space = traced(net, tokens())
    assert [(group.name, group.size) for group in space.groups if group.role == "output"] == [("n[1]", 3), ("out", 3)]


def test_grouped_transposed_wiring() -> None:
    module, inputs, _ = CASES["grouped transposed"]
    space = traced(module, inputs)
    state = module.state_dict()
    graph = space.graph(space.flatten(state))
    expected = torch.zeros(4, 6, 4)
    for half in (0, 1):
        rows, columns = slice(2 * half, 2 * half + 2), slice(3 * half, 3 * half + 3)
        expected[rows, columns] = state["2.weight"][columns].flatten(2).transpose(0, 1)
    assert weights_between(graph, "0", "2")[..., :4].equal(expected)
    assert column(graph, "bias", "2").equal(state["2.bias"])


def test_sums_products_and_concatenations_are_seen() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        h = torch.relu(m.norm(m.a(x)))
        gate = torch.sigmoid(m.g(h))
        return m.out(torch.cat([h + m.b(h), h * gate], dim=-1))

    net = Function(forward, a=nn.Linear(8, 4), norm=nn.LayerNorm(4), b=nn.Linear(4, 4), g=nn.Linear(4, 4), out=nn.Linear(8, 2))
    space = traced(net, tokens())
    state = net.state_dict()
    graph = space.graph(space.flatten(state))
    one = torch.eye(4)
    for source, target in (("norm", "add"), ("b", "add"), ("norm", "mul"), ("g", "mul")):
        assert weights_between(graph, source, target)[..., 0].equal(one)
    assert weights_between(graph, "add", "out")[..., 0].equal(state["out.weight"][:, :4])
    assert weights_between(graph, "mul", "out")[..., 0].equal(state["out.weight"][:, 4:])
    kinds = {(wire.sources, wire.targets): wire.kind for wire in space.wires if wire.parameter is None}
    assert kinds[("norm",), ("add",)] == kinds[("b",), ("add",)] == "sum"
    assert kinds[("norm",), ("mul",)] == kinds[("g",), ("mul",)] == "product"
    assert space.group("g").activation == "sigmoid"
    drawn = graph.to_networkx()
    assert drawn.number_of_nodes() == graph.num_nodes
    assert {data["layer"] for _, _, data in drawn.edges(data=True)} == {wire.name for wire in space.wires if wire.sources}


def test_flattened_positions_are_kernel_positions() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    space = traced(net, image())
    state = net.state_dict()
    graph = space.graph(space.flatten(state))
    assert weights_between(graph, "1", "3")[..., :36].equal(state["3.weight"].view(2, 4, 36))


def test_attention_is_rows_of_heads() -> None:
    module, inputs, _ = CASES["attention"]
    space = traced(module, inputs)
    state = module.state_dict()
    graph = space.graph(space.flatten(state))
    rows = torch.cat([weights_between(graph, "embed", name)[..., 0] for name in ("qkv", "qkv[1]", "qkv[2]")])
    assert rows.equal(state["qkv.weight"])
    heads = torch.eye(4).repeat_interleave(4, dim=1)
    for source, target in (("qkv", "matmul"), ("qkv[1]", "matmul[1]")):  # a node per head reads its queries, or keys
        assert weights_between(graph, source, target)[..., 0].equal(heads)
    assert weights_between(graph, "matmul[2]", "matmul[3]")[..., 0].equal(heads.T)  # and weighs its values
    assert weights_between(graph, "qkv[2]", "matmul[3]")[..., 0].equal(torch.eye(16))
    assert weights_between(graph, "matmul[3]", "out")[..., 0].equal(state["out.weight"])


def test_tables_of_positions_and_tokens() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.out(m.table(x) + m.places(torch.arange(5)) * m.factor)

    net = Function(forward, table=nn.Embedding(11, 8), places=nn.Embedding(5, 8), out=nn.Linear(8, 3))
    net.register_parameter("factor", nn.Parameter(torch.tensor(0.5)))
    space = traced(net, torch.randint(0, 11, (2, 5)))
    state = net.state_dict()
    graph = space.graph(space.flatten(state))
    assert weights_between(graph, "inputs_0", "table")[..., 0].equal(state["table.weight"].T)
    assert weights_between(graph, "constant", "table")[:, 0, :5].equal(state["places.weight"].T)
    assert space.group("inputs_0").role == "input"
    assert space.group("constant").reason == "a constant"


def test_what_is_read_twice_is_not_changed_for_both() -> None:
    net = Function(
        lambda m, x: m.out(torch.cat([(h := m.a(x)).relu(), m.norm(h), h], dim=-1)),
        a=nn.Linear(8, 4),
        norm=nn.LayerNorm(4),
        out=nn.Linear(12, 2),
    )
    space = traced(net, tokens())
    assert space.group("a").activation == "identity"
    graph = space.graph(space.flatten(net.state_dict()))
    assert weights_between(graph, "a", "relu")[..., 0].equal(torch.eye(4))
    assert space.group("relu").activation == "relu"
    assert weights_between(graph, "a", "out")[..., 0].equal(net.state_dict()["out.weight"][:, 8:])


def test_wide_kernels_lie_on_several_edges() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 16, stride=16), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), *[nn.Linear(8, 8) for _ in range(200)])
    space = traced(net, image(side=16))
    graph = space.graph(space.flatten(net.state_dict()))
    topology = space.topology
    first = [part for part in topology.edges if space.wires[part.wire].parameter == "0.weight"]
    assert topology.edge_width < 256
    assert len(first) == -(-256 // topology.edge_width)
    pieces = [graph["edge_attr"][part.start : part.stop, : part.num_positions].view(8, 3, -1) for part in first]
    assert torch.cat(pieces, dim=2).equal(net.state_dict()["0.weight"].flatten(2))
    assert [part.kind(space) for part in first[:2]] == ["weight", f"weight@{topology.edge_width}"]


def test_unknown_operators_stand_between_what_they_read_and_write() -> None:
    net = Function(lambda m, x: m.out(torch.renorm(m.a(x), 2, 0, 1.0)), a=nn.Linear(8, 4), out=nn.Linear(4, 2))
    space = traced(net, tokens())
    graph = space.graph(space.flatten(net.state_dict()))
    (operator,) = (group.name for group in space.groups if group.size == 1)
    assert weights_between(graph, "a", operator).shape == (1, 4, 1)
    assert weights_between(graph, "a", operator).all()
    levels = space.levels
    assert levels["a"] < levels[operator] < levels["out"]


def test_draw_graph_of_a_traced_network() -> None:
    module, inputs, _ = CASES["attention"]
    texts = [text.get_text() for text in draw_graph(traced(module, inputs), neurons=4).axes[0].texts]
    assert sum(text.startswith("qkv.weight: 48x16") for text in texts) == 1
    assert "product" in texts
    assert not any(text.startswith("factor") for text in texts)
    module, inputs, _ = CASES["layer norm"]
    assert len(draw_graph(traced(module, inputs)).axes[0].collections) == 5  # four groups, and lines


# == Bad connections ==


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources": ("nowhere",)}, r"names unknown neuron groups \['nowhere'\]"),
        ({"parameter": "nothing"}, "unknown parameter 'nothing'"),
        ({"shape": (2, 2)}, r"reads parameter '0.weight' of shape \(4, 3, 3, 3\) as \(2, 2\)"),
        ({"source_axis": 0, "target_axis": 1}, r"with 4 entries for 3 sources and 3 for 4 targets"),
        ({"source_order": (0, 1, 7)}, "'source_order' of connection .* names neurons beyond its 3"),
        ({"blocks": 3}, "are not made of 3 blocks"),
        ({"sources": (), "parameter": None}, "needs sources or a parameter"),
    ],
)
def test_connections_must_fit(changes: dict[str, Any], message: str) -> None:
    space = traced(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3)), image())
    first = dataclasses.replace(space.connections[0], **changes)
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(space, connections=(first, *space.connections[1:]))


def test_a_space_has_layers_or_connections() -> None:
    space = WeightSpace.mlp([2, 3, 1])
    with pytest.raises(ValueError, match="either 'layers' or 'connections'"):
        dataclasses.replace(space, connections=(Connection("a", "sum", ("input",), ("output",)),))


def test_probes_and_weights_out_of_traced_networks() -> None:
    module, inputs, _ = CASES["batch norm"]
    space = traced(module, inputs)
    batch = space.batch(space.sample(2))
    assert build_model("neural_graph", space, 3, task="equivariant")(batch).shape == (2, space.num_params, 3)
    assert build_model("monomial_gnn", space, 3, probes=4)(batch).shape == (2, 3)
    with pytest.raises(SpaceMismatchError, match="needs a network of dense"):
        space.check_layers("This")
