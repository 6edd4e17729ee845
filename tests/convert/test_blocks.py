"""Blocks of neurons, such as the heads of attention and the groups of grouped convolutions: which of them move on their own."""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.convert.test_tracing import Function, image, kinds, tokens
from tests.networks import make, randomized
from wsgraph import WeightSpace, trace
from wsgraph._outputs import largest_difference, module_outputs
from wsgraph.nn import build_model
from wsgraph.space import Axis, NeuronGroup, Parameter, Tie
from wsgraph.symmetry import align
from wsgraph.testing import assert_equivariant, assert_function_preserved, assert_invariant

HEADS, SIZE = 3, 2


def projections(forward: Callable[..., Any], *, kv_heads: int = HEADS, size: int = SIZE, **more: nn.Module) -> tuple[nn.Module, Tensor]:
    """Queries, keys and values ``[batch, heads, tokens, size]`` of three layers, and a layer that reads the heads."""
    layers = {"q": HEADS, "k": kv_heads, "v": kv_heads}

    def run(net: Any, x: Tensor) -> Any:
        q, k, v = (getattr(net, name)(x).unflatten(-1, (count, size)).transpose(1, 2) for name, count in layers.items())
        return forward(net, q, k, v)

    made = {name: nn.Linear(8, count * size) for name, count in layers.items()}
    return Function(run, **made, **{"o": nn.Linear(HEADS * size, 3), **more}), tokens()


def out(net: Any, heads: Tensor) -> Tensor:
    result: Tensor = net.o(heads.transpose(1, 2).flatten(2))
    return result


def attended(net: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return out(net, F.scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1]))


def normed(net: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attended(net, net.q_norm(q), net.k_norm(k), v)


def headwise(net: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scores of every head with every other one."""
    scores = torch.einsum("bhnd,bgnd->bhgn", q, k).softmax(2)
    return out(net, torch.einsum("bhgn,bgnd->bhnd", scores, v))


def talking(net: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = net.talk((q @ k.transpose(-1, -2)).movedim(1, -1)).movedim(-1, 1).softmax(-1)
    return out(net, scores @ v)


def turned(net: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Rotary positions."""
    angles = torch.arange(q.shape[2])[:, None] / torch.tensor([1.0, 2.0, 1.0, 2.0])
    q, k = (x * angles.cos() + torch.cat([-x[..., 2:], x[..., :2]], -1) * angles.sin() for x in (q, k))
    return attended(net, q, k, v)


def turned_in_pairs(net: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    angles = torch.arange(q.shape[2])[:, None] / torch.tensor([1.0, 2.0])
    c, s = angles.cos(), angles.sin()
    pairs = [x.unflatten(-1, (2, 2)).unbind(-1) for x in (q, k)]
    q, k = (torch.stack([a * c - b * s, a * s + b * c], -1).flatten(-2) for a, b in pairs)
    return attended(net, q, k, v)


def conv(inputs: int, outputs: int, **options: Any) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


def channels(*layers: nn.Module) -> tuple[nn.Module, Tensor]:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(2)), image()


def weight_read_twice(net: Any, x: Tensor) -> Any:
    return net.head(net.grouped(torch.relu(net.stem(x))).mean((2, 3))), net.grouped.weight.mean((0, 2, 3)).cumsum(0)


def of_two(net: Any, x: Tensor) -> Tensor:
    x = torch.cat([torch.relu(net.a(x)), torch.tanh(net.b(x))], 1)
    result: Tensor = net.head(torch.relu(net.grouped(x)).mean((2, 3)))
    return result


ALONE, ALIKE = f"permutation of {HEADS} blocks, and of {SIZE} in each on its own", f"permutation of {HEADS} blocks, and of {SIZE} in each"
BOTH, SCALE = "x scale x sign", "x scale"

# Heads that turn with their positions move as they are.
TURNED = {"k": f"permutation of {HEADS} blocks {BOTH}", "v": f"permutation of {HEADS} blocks, and of 4 in each on its own {BOTH}"}
# What the neurons of some groups may do.
CASES: dict[str, tuple[Callable[[], tuple[nn.Module, Any]], dict[str, str]]] = {
    "attention": (lambda: projections(attended), {"q": ALONE, "k": f"{ALONE} {BOTH}", "v": f"{ALONE} {BOTH}"}),
    "multi-head attention": (
        lambda: (
            Function(lambda net, x: net.o(net.a(x, x, x)[0]), a=nn.MultiheadAttention(8, 4, batch_first=True), o=nn.Linear(8, 3)),
            tokens(),
        ),
        {"a": f"permutation of 4 blocks, and of 2 in each on its own {BOTH}"},
    ),
    "keys and values of several heads": (
        lambda: projections(attended, kv_heads=1),
        {"k": f"permutation {BOTH}", "v": f"permutation {BOTH}"},
    ),
    # A gain that all heads share.
    "normed queries and keys": (
        lambda: projections(normed, q_norm=nn.RMSNorm(SIZE), k_norm=nn.RMSNorm(SIZE)),
        {"q": ALIKE, "k": ALIKE, "v": f"{ALONE} {BOTH}"},
    ),
    "normed queries and keys without gains": (
        lambda: projections(normed, q_norm=nn.RMSNorm(SIZE, elementwise_affine=False), k_norm=nn.RMSNorm(SIZE, elementwise_affine=False)),
        {"k": f"{ALONE} x sign", "v": f"{ALONE} {BOTH}"},
    ),
    "mean of heads": (
        lambda: projections(lambda net, q, k, v: net.o(F.scaled_dot_product_attention(q, k, v).mean(1)), o=nn.Linear(SIZE, 3)),
        {"k": f"{ALONE} {BOTH}", "v": ALIKE},
    ),
    "softmax over heads": (
        lambda: projections(lambda net, q, k, v: out(net, F.scaled_dot_product_attention(q, k, v).softmax(1))),
        {"k": f"{ALONE} {BOTH}", "v": ALIKE},
    ),
    "centred heads": (
        lambda: projections(lambda net, q, k, v: attended(net, q, k, v - v.mean(1, keepdim=True))),
        {"k": f"{ALONE} {BOTH}", "v": f"permutation of {SIZE} blocks, and of {HEADS} in each"},
    ),
    "heads with heads": (lambda: projections(headwise), {"q": "", "v": ""}),
    "talking heads": (lambda: projections(talking, talk=nn.Linear(HEADS, HEADS)), {"k": f"{ALONE} {BOTH}", "v": f"{ALONE} {BOTH}"}),
    "rotary positions": (lambda: projections(turned, size=4), TURNED),
    "rotary positions of pairs": (lambda: projections(turned_in_pairs, size=4), TURNED),
    "group norm": (
        lambda: channels(conv(3, 6), nn.GroupNorm(2, 6), nn.ReLU(), conv(6, 4)),
        {"0": "permutation of 2 blocks, and of 3 in each on its own"},
    ),
    "grouped": (
        lambda: channels(conv(3, 6), nn.ReLU(), conv(6, 4, groups=2), nn.Tanh()),
        {
            "0": "permutation of 2 blocks, and of 3 in each on its own x scale",
            "2": "permutation of 2 blocks, and of 2 in each on its own x sign",
        },
    ),
    "grouped transposed": (
        lambda: channels(conv(3, 6), nn.ReLU(), nn.ConvTranspose2d(6, 4, 2, groups=2), nn.Tanh()),
        {
            "0": "permutation of 2 blocks, and of 3 in each on its own x scale",
            "2": "permutation of 2 blocks, and of 2 in each on its own x sign",
        },
    ),
    "groups of groups": (
        lambda: channels(conv(3, 8), nn.ReLU(), conv(8, 8, groups=2), nn.ReLU(), conv(8, 4, groups=2), nn.ReLU()),
        {"2": "permutation of 2 blocks, and of 4 in each on its own x scale"},
    ),
    "groups of images": (lambda: channels(conv(3, 6, groups=3), nn.ReLU()), {"0": "permutation of 2 in each of 3 blocks x scale"}),
    # Channels of every group go to all groups of the next layer.
    "shuffled groups": (
        lambda: channels(conv(3, 6), nn.ReLU(), conv(6, 6, groups=2), nn.ChannelShuffle(2), nn.ReLU(), conv(6, 6, groups=3), nn.ReLU()),
        {"0": "permutation of 2 blocks, and of 3 in each on its own x scale", "2": "permutation of 2 blocks, and of 3 in each x scale"},
    ),
    "groups across groups": (
        lambda: channels(conv(3, 12), nn.ReLU(), conv(12, 12, groups=2), nn.ReLU(), conv(12, 12, groups=3), nn.ReLU()),
        {"2": ""},
    ),
    "groups of two layers": (
        lambda: (Function(of_two, a=conv(3, 4), b=conv(3, 4), grouped=conv(8, 4, groups=4), head=nn.Linear(4, 2)), image()),
        {
            "a": "permutation of 2 blocks, and of 2 in each on its own x scale",
            "b": "permutation of 2 blocks, and of 2 in each on its own x sign",
        },
    ),
    # Others read the weight as one of a layer whose inputs are the same in all groups.
    "weight that others read": (
        lambda: (Function(weight_read_twice, stem=conv(3, 6), grouped=conv(6, 4, groups=2), head=nn.Linear(4, 2)), image()),
        {"stem": "permutation of 2 blocks"},
    ),
    "weight norm": (
        lambda: channels(conv(3, 6), nn.ReLU(), parametrizations.weight_norm(conv(6, 4, groups=2)), nn.ReLU()),
        {"0": "permutation of 2 blocks, and of 3 in each"},
    ),
}


def traced(name: str) -> tuple[nn.Module, Any, WeightSpace]:
    torch.manual_seed(0)
    module, inputs = CASES[name][0]()
    module.eval()(inputs)
    randomized(module)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return module, inputs, trace(module, inputs, strict=True)


def freed(space: WeightSpace, *, inner: bool) -> WeightSpace:
    """The space with more claimed: blocks that move alike do on their own, or the neurons of all blocks mix."""
    count = 2 if inner else 1
    groups = tuple(
        dataclasses.replace(group, factors=group.factors[: count - 1]) if len(group.factors) == count else group for group in space.groups
    )
    return dataclasses.replace(space, groups=groups)


@pytest.mark.parametrize("name", CASES)
def test_blocks_move_as_far_as_the_function_lets_them(name: str) -> None:
    module, inputs, space = traced(name)
    found = kinds(space)
    expected = {group: kind for group, kind in CASES[name][1].items() if kind}
    assert {group: found.get(group) for group in expected} == expected
    assert all("blocks" not in found[group] for group in CASES[name][1].keys() - expected.keys())
    assert_function_preserved(module, space, inputs, scale=(1e-2, 1e2), draws=2)
    assert WeightSpace.from_json(space.to_json()) == space
    # Negative controls: what is not claimed would change the function.
    for inner in (False, True):
        if (claimed := freed(space, inner=inner)) != space:
            with pytest.raises(AssertionError, match=r"changes the output"):
                assert_function_preserved(module, claimed, inputs, scale=(1, 1))


@pytest.mark.parametrize(
    "name",
    ["attention", "normed queries and keys", "group norm", "groups of groups", "groups of images", "shuffled groups", "rotary positions"],
)
def test_canonical_forms_are_those_of_orbits(name: str) -> None:
    module, inputs, space = traced(name)
    theta, outputs = module_outputs(module, space, (inputs,))
    form = space.canonicalize(theta)
    assert largest_difference(outputs(form), outputs(theta)) < 1e-9
    generator = torch.Generator().manual_seed(0)
    moved = space.act(space.sample_symmetry(5, (1e-2, 1e2), generator=generator), theta.expand(5, -1))
    assert (space.canonicalize(moved) - form).abs().max() < 1e-9
    assert (space.canonicalize(form) - form).abs().max() < 1e-12
    # Blocks sorted but for one pair of neurons of the second one are another network.
    group = next(group for group in space.groups if len(group.factors) == 1)
    order = torch.arange(group.size)
    order[-2:] = order[-2:].flip(0)
    swapped = space.sample_symmetry(1, symmetries=[])
    swapped = dataclasses.replace(swapped, permutations={**swapped.permutations, group.permutation: order[None]})
    assert (space.act(swapped, form) - form).abs().max() > 1e-3
    assert (space.canonicalize(space.act(swapped, form)) - form).abs().max() < 1e-9


@pytest.mark.parametrize("name", ["attention", "groups of groups"])
def test_planted_elements_are_recovered(name: str) -> None:
    _, _, space = traced(name)
    generator = torch.Generator().manual_seed(0)
    thetas = space.sample(2, generator=generator, dtype=torch.float64)
    g = space.sample_symmetry(2, (0.5, 2.0), generator=generator)
    moved = space.act(g, thetas)
    assert (space.act(align(space, moved, thetas), moved) - thetas).abs().max() < 1e-6


def test_neurons_of_blocks_move_within_them() -> None:
    _, _, space = traced("groups of groups")
    group = next(group for group in space.groups if group.name == "2")
    (factor,) = map(space.group, group.factors)
    g = space.sample_symmetry(50, generator=torch.Generator().manual_seed(0))
    blocks = g.permutations[group.permutation].unflatten(1, (factor.size, -1))
    assert (blocks // 4 == g.permutations[factor.permutation][..., None]).all()
    assert (blocks % 4).flatten(0, 1).unique(dim=0).shape[0] > 12
    assert ((blocks % 4)[:, 0] != (blocks % 4)[:, 1]).any()
    # Composition, inverses and the choice of classes are those of the whole group.
    thetas = space.sample(50, dtype=torch.float64)
    h = space.sample_symmetry(50, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(space.act(g @ h, thetas), space.act(g, space.act(h, thetas)), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(space.act(g.inverse(), space.act(g, thetas)), thetas, rtol=1e-12, atol=1e-14)
    outer = space.sample_symmetry(50, classes=[factor.permutation], generator=torch.Generator().manual_seed(0))
    assert (outer.permutations[group.permutation].unflatten(1, (2, -1)) % 4 == torch.arange(4)).all()


@pytest.mark.parametrize("name", ["rotary positions", "groups of two layers"])
def test_models_know_blocks(name: str) -> None:
    module, inputs, space = traced(name)
    small: dict[str, dict[str, Any]] = {name: {"channels": 8, "probes": 0} for name in ("monomial_gnn", "scalegmn", "neural_graph")}
    for model, options in {**small, "np": {}, "hnp": {}, "monomial": {}, "statnn": {}}.items():
        torch.manual_seed(0)
        assert_invariant(build_model(model, space, 1, **options).eval().double(), space, module=module, inputs=inputs)
    for model in ("np", "monomial"):
        assert_equivariant(build_model(model, space, 1, "equivariant").eval().double(), space)


def test_weights_of_grouped_convolutions_have_neurons_of_their_own_in_every_group() -> None:
    _, _, space = traced("grouped")
    target, source, *_ = space.param("2.weight").axes
    assert (target.size, target.blocks) == (4, 1)
    assert (source.size, source.blocks, source.num_neurons) == (3, 2, 6)
    assert [(tie.groups, tie.exponent) for tie in source.ties] == [(("0",), -1)]


def test_spaces_without_blocks_keep_their_text() -> None:
    module, inputs = make("resnet")
    assert '"blocks": 1}' not in trace(module, *inputs).to_json()


def test_blocks_that_do_not_fit_are_refused() -> None:
    heads = NeuronGroup("heads", 2, role="factor")
    with pytest.raises(ValueError, match=r"factors of group 'a' must be groups without factors whose size divides 5"):
        WeightSpace((heads, NeuronGroup("a", 5, factors=("heads",))), (), ())
    with pytest.raises(ValueError, match="at most two 'factors' of neuron group 'a'"):
        NeuronGroup("a", 8, factors=("x", "y", "z"))
    with pytest.raises(ValueError, match="'blocks' of an axis to be positive, and 1 without tied neurons"):
        Axis(4, blocks=2)
    tie = Tie(("a",), -1)
    with pytest.raises(ValueError, match=r"first axis of parameter 'w', of size 3, must be made of the blocks"):
        Parameter("w", (3, 2), "weight", (Axis(3), Axis(2, (tie,), blocks=2)))
    param = Parameter("w", (4, 2), "weight", (Axis(4), Axis(2, (tie,), blocks=2)))
    with pytest.raises(ValueError, match=r"parameter 'w' has 2 entries in each of 2 blocks but its groups \('a',\) have 6 neurons"):
        WeightSpace((heads, NeuronGroup("a", 6, factors=("heads",))), (), (param,))
