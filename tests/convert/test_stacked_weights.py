"""Stacked weights: experts, heads and groups, every one of which has neurons of its own."""

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.convert.test_blocks import freed
from tests.convert.test_tracing import Function, tokens
from tests.networks import randomized
from wsgraph import WeightSpace, trace
from wsgraph._outputs import largest_difference, module_outputs
from wsgraph.nn import build_model
from wsgraph.symmetry import align
from wsgraph.testing import assert_equivariant, assert_function_preserved, assert_invariant

EXPERTS, WIDTH, HIDDEN = 3, 5, 2


class Weights(Function):
    """A forward function of stacked weights by name, given by their shapes, and of layers."""

    def __init__(self, forward: Callable[..., Any], shapes: dict[str, tuple[int, ...]], **layers: nn.Module) -> None:
        super().__init__(forward, **layers)
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.empty(shape)))


def experts(forward: Callable[..., Tensor], *, inner: int = HIDDEN, **more: nn.Module) -> nn.Module:
    """Experts ``[experts, tokens, width]`` behind a layer, mixed by a gate, and a layer that reads them."""

    def run(net: Any, x: Tensor) -> Tensor:
        result: Tensor = net.out(forward(net, net.stem(x)))
        return result

    shapes = {
        "up": (EXPERTS, WIDTH, inner),
        "up_bias": (EXPERTS, inner),
        "down": (EXPERTS, HIDDEN, WIDTH),
        "down_bias": (EXPERTS, WIDTH),
    }
    layers = {"stem": nn.Linear(4, WIDTH), "gate": nn.Linear(WIDTH, EXPERTS), "out": nn.Linear(WIDTH, 2)}
    return Weights(run, shapes, **{**layers, **more})


def mixed(net: Any, x: Tensor) -> Tensor:
    hidden = torch.relu(torch.einsum("bd,edh->ebh", x, net.up) + net.up_bias[:, None])
    return torch.einsum("ebd,be->bd", torch.bmm(hidden, net.down) + net.down_bias[:, None], net.gate(x).softmax(-1))


def batched(net: Any, x: Tensor) -> Tensor:
    hidden = torch.tanh(torch.baddbmm(net.up_bias[:, None], x.expand(EXPERTS, -1, -1), net.up))
    outputs = torch.baddbmm(net.down_bias[:, None], hidden, net.down)
    return (outputs * net.gate(x).relu().t()[..., None]).sum(0)


def gated(net: Any, x: Tensor) -> Tensor:
    """Experts with gated hidden layers, applied twice."""
    for _ in range(2):
        first, second = (torch.einsum("bd,edh->beh", x, net.up) + net.up_bias).chunk(2, -1)
        weights = net.gate(x).softmax(-1)
        x = x + torch.einsum("beh,ehd,be->bd", F.silu(first) * second, net.down, weights) + weights @ net.down_bias
    return x


def scattered(scores: Tensor) -> Tensor:
    """Weights of the two best, which their numbers name."""
    values, chosen = scores.topk(2, -1)
    return torch.zeros_like(scores).scatter(-1, chosen, values.softmax(-1))


def switched(scores: Tensor) -> Tensor:
    chosen = scores.softmax(-1).argmax(-1)
    return F.one_hot(chosen, EXPERTS) * scores.gather(-1, chosen[:, None]).sigmoid()


def masked(scores: Tensor) -> Tensor:
    return scores.masked_fill(scores < scores.topk(2, -1)[0][..., -1:], -torch.inf).softmax(-1)


def numbered(scores: Tensor) -> Tensor:
    """The number of the best one counts."""
    return scores.softmax(-1) * (1 + scores.argmax(-1, keepdim=True))


def routed(net: Any, x: Tensor, routing: Callable[[Tensor], Tensor] = scattered) -> Tensor:
    weights = routing(net.gate(x))
    hidden = torch.relu(torch.einsum("bd,edh->beh", x, net.up) + net.up_bias)
    return torch.einsum("beh,ehd,be->bd", hidden, net.down, weights) + weights @ net.down_bias


def heads(forward: Callable[..., Tensor], shapes: dict[str, tuple[int, ...]], *, width: int = 6, outputs: int = 6) -> nn.Module:
    """Three heads of two neurons, which weights of their own read."""
    return Weights(
        lambda net, x: net.out(torch.relu(forward(net, torch.relu(net.stem(x)).unflatten(-1, (3, -1))).flatten(1))),
        shapes,
        stem=nn.Linear(4, width),
        out=nn.Linear(outputs, 2),
    )


def scored(net: Any, x: Tensor) -> Tensor:
    """Attention of graphs: a vector for every head."""
    return (x * net.vector).sum(-1, keepdim=True).softmax(0) * x


def projected(net: Any, x: Tensor) -> Tensor:
    """Attention with weights by head."""
    q, k, v = (torch.einsum("btd,hdk->bhtk", x, weight) for weight in (net.q, net.k, net.v))
    return torch.einsum("bhtk,hko->bto", F.scaled_dot_product_attention(q, k, v), net.o)


def linear_attention(feature: Callable[[Tensor], Tensor]) -> nn.Module:
    def run(net: Any, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (3, 2)).transpose(1, 2) for part in net.qkv(x).chunk(3, -1))
        q, k = feature(q), feature(k)
        summed = k.transpose(-1, -2) @ v
        result: Tensor = net.out(((q @ summed) / (0.1 + (q * k.sum(2, keepdim=True)).sum(-1, keepdim=True))).transpose(1, 2).flatten(2))
        return result

    return Function(run, qkv=nn.Linear(8, 18), out=nn.Linear(6, 2))


def across_channels(net: Any, x: Tensor) -> Tensor:
    q, k, v = net.qkv(x).unflatten(-1, (3, 3, 2)).permute(2, 0, 3, 4, 1)
    scores = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT).softmax(-1)
    result: Tensor = net.out((scores @ v).permute(0, 3, 1, 2).flatten(2))
    return result


def contracted(equation: str) -> nn.Module:
    def run(net: Any, x: Tensor) -> Tensor:
        a, b = torch.relu(net.a(x)), torch.tanh(net.b(x))
        operands = {"bi": a, "bj": b, "oij": net.weight}
        result: Tensor = net.out(torch.einsum(equation, *(operands[name] for name in equation.split("->")[0].split(","))))
        return result

    return Weights(run, {"weight": (3, 4, 5)}, a=nn.Linear(4, 4), b=nn.Linear(4, 5), out=nn.Linear(3, 2))


def vectors() -> Tensor:
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(1))


def fact(n: int, times: int = 1) -> int:
    return math.factorial(n) ** times


# Every network with the number of permutations, of scales and of signs of its group.
CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], tuple[int, int, int]]] = {
    # The layers before and after the experts have any factors, too.
    "experts": (lambda: experts(mixed), vectors, (fact(3) * fact(2, 3) * fact(5, 2), 6 + 10, 10)),
    # A gate of another scale, and experts of the inverse one.
    "batched experts": (lambda: experts(batched), vectors, (fact(3) * fact(2, 3) * fact(5, 2), 3 + 10, 6 + 10)),
    "gated experts, twice": (lambda: experts(gated, inner=2 * HIDDEN), vectors, (fact(3) * fact(2, 3) * fact(5), 6 + 5, 6 + 5)),
    **{
        f"routed experts, {routing.__name__}": (
            lambda routing=routing: experts(lambda net, x: routed(net, x, routing)),  # type: ignore[misc]
            vectors,
            (fact(3) * fact(2, 3) * fact(5, 2), 6 + 10, 10),
        )
        for routing in (scattered, switched, masked)
    },
    # Of experts whose scores are equal, as many are after a ReLU, the first are chosen.
    "routed experts, of equal scores": (
        lambda: experts(lambda net, x: routed(net, x, lambda scores: scattered(scores.relu()))),
        vectors,
        (fact(2, 3) * fact(5, 2), 6 + 10, 10),
    ),
    "routed experts, whose number counts": (
        lambda: experts(lambda net, x: routed(net, x, numbered)),
        vectors,
        (fact(2, 3) * fact(5, 2), 6 + 10, 10),
    ),
    "ensemble": (
        lambda: Weights(
            lambda net, x: torch.einsum("beh,eho->beo", torch.relu(torch.einsum("bi,eih->beh", x, net.a)), net.b).mean(1),
            {"a": (3, 4, 2), "b": (3, 2, 2)},
        ),
        vectors,
        (fact(3) * fact(2, 3), 6, 0),
    ),
    "groups": (
        lambda: heads(lambda net, x: torch.einsum("bgi,gio->bgo", x, net.w) + net.c, {"w": (3, 2, 2), "c": (3, 2)}),
        vectors,
        (fact(3) * fact(2, 6), 12, 0),
    ),
    # A layer that reads its own results.
    "groups, twice": (
        lambda: heads(
            lambda net, x: torch.einsum("bgi,gio->bgo", torch.relu(torch.einsum("bgi,gio->bgo", x, net.w)), net.w), {"w": (3, 2, 2)}
        ),
        vectors,
        (fact(3) * fact(2, 3), 6, 0),
    ),
    # The second dimension of a weight that is stored as [group, outputs, inputs].
    "groups and a residual": (
        lambda: heads(lambda net, x: x + torch.einsum("bgi,goi->bgo", x, net.w), {"w": (3, 2, 2)}),
        vectors,
        (fact(3) * fact(2, 3), 6, 0),
    ),
    "vector for every head": (lambda: heads(scored, {"vector": (1, 3, 2)}), vectors, (fact(3) * fact(2, 3), 6, 0)),
    "projections by head": (
        lambda: Weights(projected, {"q": (3, 8, 2), "k": (3, 8, 2), "v": (3, 8, 2), "o": (3, 2, 4)}),
        tokens,
        (fact(3) * fact(2, 6), 12, 12),
    ),
    "linear attention, elu": (lambda: linear_attention(lambda x: F.elu(x) + 1), tokens, (fact(3) * fact(2, 6), 6, 6)),
    # The scales of keys and those of queries cancel in the numerator and in the denominator.
    "linear attention, relu": (lambda: linear_attention(torch.relu), tokens, (fact(3) * fact(2, 6), 12, 6)),
    "attention across channels": (
        lambda: Function(across_channels, qkv=nn.Linear(8, 18), out=nn.Linear(6, 2)),
        tokens,
        (fact(3) * fact(2, 6), 0, 0),
    ),
    "outer product before the weight": (lambda: contracted("bi,bj,oij->bo"), vectors, (fact(3) * fact(4) * fact(5), 3 + 4, 3 + 5)),
    "weight between two factors": (lambda: contracted("bj,oij,bi->bo"), vectors, (fact(3) * fact(4) * fact(5), 3 + 4, 3 + 5)),
    # Positions cannot move, but the neurons at every one can.
    "weights by position": (
        lambda: Weights(
            lambda net, x: net.out(torch.relu(torch.einsum("bti,tio->bto", x, net.w)).flatten(1)),
            {"w": (5, 8, 2)},
            out=nn.Linear(10, 2),
        ),
        tokens,
        (fact(2, 5), 10, 0),
    ),
    # A bias, or a mean, that entries of the stack share lets their neurons move in all of them alike.
    "bias that all share": (
        lambda: Weights(
            lambda net, x: torch.relu(torch.einsum("bi,gio->bgo", x, net.w) + net.c).mean(1) @ net.v,
            {"w": (3, 4, 2), "c": (2,), "v": (2, 2)},
        ),
        vectors,
        (fact(3) * fact(2), 2, 0),
    ),
}


def traced(name: str) -> tuple[nn.Module, Tensor, WeightSpace]:
    torch.manual_seed(0)
    module, inputs = CASES[name][0](), CASES[name][1]()
    randomized(module)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return module, inputs, trace(module, inputs, strict=True)


def group_size(space: WeightSpace) -> tuple[int, int, int]:
    """Number of permutations, and how many neurons have scales and signs."""
    permutations = 1
    for label, (member, *_) in space.permutation_classes.items():
        if space.is_permutable(label) and len(member.factors) < 2:
            blocks = math.prod(space.group(name).size for name in member.factors)
            permutations *= fact(member.size // blocks, blocks)
    moving = {label: members[0] for label, members in space.scale_classes.items() if space.is_permutable(members[0].permutation)}
    factors = [(space.class_symmetry(label), member.size) for label, member in moving.items()]
    return permutations, sum(size for symmetry, size in factors if symmetry.positive), sum(size for each, size in factors if each.sign)


@pytest.mark.parametrize("name", CASES)
def test_every_entry_of_a_stack_has_neurons_of_its_own(name: str) -> None:
    module, inputs, space = traced(name)
    assert group_size(space) == CASES[name][2]
    assert_function_preserved(module, space, inputs, draws=2)
    assert WeightSpace.from_json(space.to_json()) == space
    # Negative controls: neurons of different entries do not mix, and entries do not move alone.
    for inner in (False, True):
        if (claimed := freed(space, inner=inner)) != space:
            with pytest.raises(AssertionError, match=r"changes the output"):
                assert_function_preserved(module, claimed, inputs, scale=(1, 1))
    theta, outputs = module_outputs(module, space, (inputs,))
    form = space.canonicalize(theta)
    assert largest_difference(outputs(form), outputs(theta)) < 1e-9
    moved = space.act(space.sample_symmetry(3, (1e-2, 1e2), generator=torch.Generator().manual_seed(0)), theta.expand(3, -1))
    assert (space.canonicalize(moved) - form).abs().max() < 1e-9


def test_experts_move_as_whole_experts() -> None:
    module, inputs, space = traced("experts")
    (rows,) = {group.factors[0] for group in space.groups if group.factors}
    theta, outputs = module_outputs(module, space, (inputs,))
    g = space.sample_symmetry(1, symmetries=["permutation"], classes=[space.group(rows).permutation])
    rotated = torch.arange(EXPERTS).roll(1)
    hidden = next(group for group in space.groups if group.factors).permutation
    turn = {space.group(rows).permutation: rotated[None], hidden: torch.arange(EXPERTS * HIDDEN).view(EXPERTS, -1)[rotated].view(1, -1)}
    moved = space.act(dataclasses.replace(g, permutations={**g.permutations, **turn}), theta)
    before, after = space.unflatten(theta[0]), space.unflatten(moved[0])
    for name in ("up", "up_bias", "down", "down_bias", "gate.weight", "gate.bias"):
        torch.testing.assert_close(after[name], before[name][rotated], rtol=0, atol=0)
    assert largest_difference(outputs(moved), outputs(theta)) < 1e-12
    # Experts that move without their gate are another network.
    alone = moved.clone()
    for part in (space.slices[name] for name in ("gate.weight", "gate.bias")):
        alone[:, part] = theta[:, part]
    assert largest_difference(outputs(alone), outputs(theta)) > 1e-3


@pytest.mark.parametrize("name", ["batched experts", "groups", "vector for every head", "linear attention, relu"])
def test_models_read_stacked_weights(name: str) -> None:
    module, inputs, space = traced(name)
    for model in ("monomial_gnn", "scalegmn", "neural_graph"):
        torch.manual_seed(0)
        built = build_model(model, space, 1, channels=8, probes=0).eval().double()
        assert_invariant(built, space, module=module, inputs=inputs)


@pytest.mark.parametrize("name", ["batched experts", "groups, twice"])
def test_sharing_layers_read_the_neurons_of_all_weights_of_a_stack_along_one_axis(name: str) -> None:
    _, _, space = traced(name)
    for model in ("np", "hnp", "monomial", "statnn"):
        torch.manual_seed(0)
        assert_invariant(build_model(model, space, 1).eval().double(), space)
    for model in ("np", "monomial"):
        assert_equivariant(build_model(model, space, 1, "equivariant").eval().double(), space)


def test_planted_elements_are_recovered() -> None:
    _, _, space = traced("groups, twice")
    generator = torch.Generator().manual_seed(0)
    thetas = space.sample(2, generator=generator, dtype=torch.float64)
    moved = space.act(space.sample_symmetry(2, (0.5, 2.0), generator=generator), thetas)
    assert (space.act(align(space, moved, thetas), moved) - thetas).abs().max() < 1e-9


def test_the_graph_has_a_node_for_every_neuron_of_every_expert() -> None:
    _, _, space = traced("experts")
    wires = {wire.parameter: wire for wire in space.wires if wire.parameter}
    assert (wires["up"].source_axis, wires["up"].target_axis) == (1, (0, 2))
    assert (wires["down"].source_axis, wires["down"].target_axis) == ((0, 1), 2)
    assert sum(space.group(name).size for name in wires["up"].targets) == EXPERTS * HIDDEN
    theta = torch.arange(float(space.num_params))[None]
    up, edges = theta[:, space.slices["up"]], space.graph(theta[0])
    assert wires["up"].weight(up)[0, 3, :, 0].tolist() == up.view(EXPERTS, WIDTH, HIDDEN)[1, :, 1].tolist()
    assert edges.num_nodes == space.topology.num_nodes
    grouped = {wire.parameter: wire for wire in traced("groups")[2].wires}["w"]
    assert (grouped.blocks, grouped.source_axis, grouped.target_axis) == (3, 1, (0, 2))


def quotient(net: Any, x: Tensor) -> Tensor:
    return x / net.gain


def squared(net: Any, x: Tensor) -> Tensor:
    """Of the products with a square, factors pass as roots, which no weight has."""
    return x * net.gain**2


@pytest.mark.parametrize("forward", [quotient, squared])
def test_what_is_made_of_a_weight_is_told_apart_by_none(forward: Callable[..., Tensor]) -> None:
    module = heads(forward, {"gain": (3, 2)})
    randomized(module)
    assert_function_preserved(module, trace(module, vectors()), vectors(), draws=2)


def test_a_weight_of_which_only_a_part_is_read_is_told_apart_by_none() -> None:
    module = heads(lambda net, x: torch.einsum("bgi,gio->bgo", x, net.w[1:]), {"w": (4, 2, 2)})
    randomized(module)
    space = trace(module, vectors())
    assert all(axis.blocks == 1 for axis in space.param("w").axes)
    assert_function_preserved(module, space, vectors(), draws=2)
