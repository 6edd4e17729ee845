"""A space that can be built has only symmetries that its networks have, and views that fit its weights."""

import dataclasses

import pytest
import torch
import torch_geometric.transforms as T

from tests.spaces import CHAINS, residual_space
from wsgraph import ParameterGraph, SpaceMismatchError, WeightSpace
from wsgraph.space import Axis, Layer, NeuronGroup, Parameter, Tie
from wsgraph.testing import assert_equivariant


def weights(batch: ParameterGraph) -> torch.Tensor:
    return batch.thetas()


@pytest.mark.parametrize("labels", [("", ""), ("stream", "other")], ids=["permutation", "scale"])
def test_a_skip_between_untied_groups_is_refused(labels: tuple[str, str]) -> None:
    space = residual_space()
    untied = tuple(dataclasses.replace(g, permutation=labels[0], scale=labels[1]) if g.name == "r" else g for g in space.groups)
    with pytest.raises(ValueError, match="must have the same 'permutation' and 'scale' labels"):
        WeightSpace(untied, space.layers, space.params)


def shared_weight_space(tied: bool) -> WeightSpace:
    """x -> a -> b -> c -> y with one square weight from a to b and from b to c."""
    label = "stream" if tied else ""
    x, y = NeuronGroup("x", 2, role="input"), NeuronGroup("y", 1, role="output")
    a, b, c = (NeuronGroup(name, 4, operators=("relu",), permutation=label) for name in "abc")

    def weight(name: str, out: tuple[Tie, ...], into: tuple[Tie, ...], shape: tuple[int, int]) -> Parameter:
        return Parameter(name, shape, "weight", (Axis(shape[0], out), Axis(shape[1], into)))

    return WeightSpace(
        groups=(x, a, b, c, y),
        layers=(
            Layer("1", "linear", ("x",), "a", "w1"),
            Layer("2", "linear", ("a",), "b", "shared"),
            Layer("3", "linear", ("b",), "c", "shared"),
            Layer("4", "linear", ("c",), "y", "w4"),
        ),
        params=(
            weight("w1", (Tie(("a",), 1),), (Tie(("x",), -1),), (4, 2)),
            weight("shared", (Tie(("b",), 1), Tie(("c",), 1)), (Tie(("a",), -1), Tie(("b",), -1)), (4, 4)),
            weight("w4", (Tie(("y",), 1),), (Tie(("c",), -1),), (1, 4)),
        ),
    )


def test_a_weight_used_twice_moves_once() -> None:
    space = shared_weight_space(tied=True)
    thetas = space.sample(3, dtype=torch.float64)
    inputs = torch.randn(5, 2, dtype=torch.float64)
    moved = space.act(space.sample_symmetry(3, (0.1, 10)), thetas)
    torch.testing.assert_close(space.evaluate(moved, inputs), space.evaluate(thetas, inputs), rtol=1e-10, atol=1e-12)


def test_a_weight_used_twice_ties_its_groups() -> None:
    with pytest.raises(ValueError, match="of parameter 'shared' must share their permutation"):
        shared_weight_space(tied=False)


def test_hardtanh_is_odd_only_between_symmetric_limits() -> None:
    symmetric = WeightSpace.mlp([3, 5, 2], "hardtanh(-2,2)")
    assert symmetric.groups[1].symmetry == (False, True)
    assert WeightSpace.mlp([3, 5, 2], "hardtanh").groups[1].symmetry == (False, True)
    lopsided = WeightSpace.mlp([3, 5, 2], "hardtanh(-1,2)")
    assert lopsided.groups[1].symmetry == (False, False)
    for space in (symmetric, lopsided):
        assert_equivariant(weights, space)


@pytest.mark.parametrize("transform", [T.ToUndirected(), T.AddSelfLoops()], ids=["undirected", "self loops"])
def test_blocks_refuse_graphs_with_other_edges(transform: T.BaseTransform) -> None:
    space = CHAINS["mlp_shallow"]
    graph = transform(space.graph(space.sample(1)[0]))
    with pytest.raises(SpaceMismatchError, match="a transform added, removed or reordered some"):
        graph.blocks()


def test_blocks_refuse_reordered_edges() -> None:
    space = CHAINS["mlp_shallow"]
    batch = space.batch(space.sample(2))
    order = torch.randperm(batch.num_edges, generator=torch.Generator().manual_seed(0))
    batch.edge_index, batch.edge_attr = batch.edge_index[:, order], batch.edge_attr[order]
    with pytest.raises(SpaceMismatchError, match="a transform added, removed or reordered some"):
        batch.thetas()


def test_blocks_do_not_depend_on_how_the_index_lies_in_memory() -> None:
    space = CHAINS["mlp_shallow"]
    thetas = space.sample(2)
    batch = space.batch(thetas)
    assert batch.edge_index is not None
    batch.edge_index = batch.edge_index.t().contiguous().t()
    assert torch.equal(batch.thetas(), thetas)


def test_no_network_is_no_batch() -> None:
    space = CHAINS["cnn_relu"]
    with pytest.raises(ValueError, match="at least one network"):
        space.batch(space.sample(3)[:0])


def test_names_do_not_make_another_architecture() -> None:
    space = WeightSpace.mlp([3, 4, 2])
    renamed = WeightSpace.from_json(space.to_json().replace("layers.", "net."))
    joined = ParameterGraph.join([space.batch(space.sample(2)), renamed.batch(renamed.sample(3))])
    assert joined.spaces == [space]
    assert joined.thetas().shape == (5, space.num_params)


def test_flatten_widens_8_bit_floats() -> None:
    space = WeightSpace.mlp([2, 3, 1])
    tensors = {key: value.to(torch.float8_e4m3fn) for key, value in space.unflatten(space.sample(1)[0]).items()}
    assert space.flatten(tensors).dtype == torch.float32


@pytest.mark.parametrize("activation", [None, 3, ["relu", 3]])
def test_activations_are_names(activation: object) -> None:
    with pytest.raises(ValueError, match="Expected 'activation' to be the name of an activation"):
        WeightSpace.mlp([2, 3, 3, 1], activation)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "activation, message",
    [
        ("ReLU", "Unknown activation or operator 'ReLU'. Did you mean 'relu'?"),
        ("relu(3)", r"Expected operator 'relu' with 0 numbers in brackets"),
        ("sin(30, 1)", r"Expected operator 'sin' with 0 or 1 numbers"),
        ("sin(0)", "frequency of 'sin' to be other than 0"),
        ("max_pool", "to be an activation, not pooling or reshaping"),
    ],
)
def test_bad_activations(activation: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WeightSpace.mlp([2, 1], activation)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"stride": 0}, "Expected 'stride' to be positive"),
        ({"kernel_size": 0}, "Expected 'kernel_size' to be positive"),
        ({"readout": "flatten", "positions": 0}, "Expected 'positions' to be positive"),
        ({"kernel_size": [(3,), (3, 3)]}, "kernels of one number of dimensions"),
        ({"padding": -1}, "'padding' of at least 0"),
    ],
)
def test_bad_convolutions(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WeightSpace.cnn([1, 4, 4], [2], **options)  # type: ignore[arg-type]


def test_sizes_may_be_any_integers() -> None:
    assert WeightSpace.mlp(torch.tensor([2, 3, 1])) == WeightSpace.mlp([2, 3, 1])  # type: ignore[arg-type]


def test_group_elements_compose_across_batches() -> None:
    space = CHAINS["mlp_shallow"]
    thetas = space.sample(4, dtype=torch.float64)
    one, four, three = (space.sample_symmetry(n) for n in (1, 4, 3))
    torch.testing.assert_close(space.act(one @ four, thetas), space.act(one, space.act(four, thetas)))
    torch.testing.assert_close(space.act(four @ one, thetas), space.act(four, space.act(one, thetas)))
    with pytest.raises(SpaceMismatchError, match="Cannot compose batches of 4 and 3 group elements"):
        four @ three
    with pytest.raises(ValueError, match="Expected 'batch' to be at least 1"):
        space.sample_symmetry(0)
    with pytest.raises(TypeError, match="floating point tensor"):
        space.act(one, [1.0])  # type: ignore[arg-type]
