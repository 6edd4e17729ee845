"""Attention in which several heads of queries share their keys and values, in the ways in which it is written."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.convert.test_blocks import freed
from tests.convert.test_stacked_weights import fact, group_size
from tests.convert.test_tracing import Function, tokens
from tests.networks import randomized
from wsgraph import WeightSpace, trace
from wsgraph._outputs import largest_difference, module_outputs
from wsgraph.nn import build_model
from wsgraph.testing import assert_function_preserved, assert_invariant

HEADS, SHARED, SIZE, INNER = 2, 2, 4, 3


def turned(x: Tensor) -> Tensor:
    """Rotary positions, of halves."""
    angles = torch.arange(x.shape[-2], dtype=x.dtype)[:, None] / torch.tensor([1.0, 2.0], dtype=x.dtype)
    first, second = x.chunk(2, -1)
    return torch.cat([first * angles.cos() - second * angles.sin(), first * angles.sin() + second * angles.cos()], -1)


def repeated(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = (x.repeat_interleave(SHARED, 1) for x in (k, v))
    return (q @ k.transpose(-1, -2)).softmax(-1) @ v


def expanded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = (x[:, :, None].expand(-1, -1, SHARED, -1, -1).flatten(1, 2) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v)


def viewed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q.unflatten(1, (HEADS, SHARED)) @ k[:, :, None].transpose(-1, -2)
    return (scores.softmax(-1) @ v[:, :, None]).flatten(1, 2)


def contracted(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("bhgtd,bhsd->bhgts", q.unflatten(1, (HEADS, SHARED)), k).softmax(-1)
    return torch.einsum("bhgts,bhsd->bhgtd", scores, v).flatten(1, 2)


def enabled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def attention(form: Callable[[Tensor, Tensor, Tensor], Tensor], turn: Callable[[Tensor], Tensor]) -> tuple[nn.Module, Tensor, WeightSpace]:
    def run(net: Any, x: Tensor) -> Tensor:
        q = net.q(x).unflatten(-1, (HEADS * SHARED, SIZE)).transpose(1, 2)
        k, v = (layer(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for layer in (net.k, net.v))
        result: Tensor = net.o(form(turn(q), turn(k), v).transpose(1, 2).flatten(2))
        return result

    sizes = {"q": (8, HEADS * SHARED * SIZE), "k": (8, HEADS * SIZE), "v": (8, HEADS * INNER), "o": (HEADS * SHARED * INNER, 3)}
    module = randomized(Function(run, **{name: nn.Linear(*size) for name, size in sizes.items()}))
    return module, tokens(), trace(module, tokens(), strict=True)


FORMS = {form.__name__: form for form in (repeated, expanded, viewed, contracted, enabled)}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rotary", [False, True])
def test_heads_that_share_keys_move_together_and_their_neurons_within_them(form: str, rotary: bool) -> None:
    module, inputs, space = attention(FORMS[form], turned if rotary else lambda x: x)
    # Pairs of neurons that turn together stay where they are, and have one factor.
    within, factors = (1, HEADS * SIZE // 2) if rotary else (fact(SIZE, HEADS), HEADS * SIZE)
    values = HEADS * INNER
    assert group_size(space) == (fact(HEADS) * within * fact(INNER, HEADS), factors + values, factors + values)
    assert_function_preserved(module, space, inputs, draws=2)
    for inner in (False, True):
        if (claimed := freed(space, inner=inner)) != space:
            with pytest.raises(AssertionError, match=r"changes the output"):
                assert_function_preserved(module, claimed, inputs, scale=(1, 1))
    theta = space.sample(2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moved = space.act(space.sample_symmetry(2, (1e-2, 1e2), generator=torch.Generator().manual_seed(0)), theta)
    assert (space.canonicalize(moved) - space.canonicalize(theta)).abs().max() < 1e-9


@pytest.mark.parametrize("shared", ["keys", "keys and values"])
def test_heads_that_all_read_the_same_keys_leave_their_neurons_all_factors(shared: str) -> None:
    values = 1 if shared == "keys and values" else HEADS

    def run(net: Any, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (count, -1)).transpose(1, 2) for layer, count in ((net.q, HEADS), (net.k, 1), (net.v, values)))
        result: Tensor = net.o(((q @ k.transpose(-1, -2)).softmax(-1) @ v).transpose(1, 2).flatten(2))
        return result

    sizes = {"q": (8, HEADS * SIZE), "k": (8, SIZE), "v": (8, values * INNER), "o": (HEADS * INNER, 3)}
    module = randomized(Function(run, **{name: nn.Linear(*size) for name, size in sizes.items()}))
    space = trace(module, tokens(), strict=True)
    factors = SIZE + values * INNER
    if shared == "keys":  # then the heads move, and with them the values of each: more permutations than factors are given up for
        assert group_size(space) == (fact(HEADS) * fact(SIZE) * fact(INNER, HEADS), values * INNER, values * INNER)
    else:
        assert group_size(space) == (fact(SIZE) * fact(INNER), factors, factors)
    assert_function_preserved(module, space, tokens(), draws=2)
    for model in ("monomial_gnn", "scalegmn", "neural_graph"):
        torch.manual_seed(0)
        assert_invariant(build_model(model, space, 1, channels=8, probes=0).eval().double(), space, module=module, inputs=tokens())


@pytest.mark.parametrize("form", ["repeated", "enabled"])
@pytest.mark.parametrize("gain", [nn.RMSNorm, nn.LayerNorm])
def test_heads_move_whose_queries_and_keys_are_normalised_by_one_gain_and_then_turned(form: str, gain: type[nn.Module]) -> None:
    first, second = gain(SIZE), gain(SIZE)

    def run(net: Any, x: Tensor) -> Tensor:
        q = net.first(net.q(x).unflatten(-1, (HEADS * SHARED, SIZE))).transpose(1, 2)
        k = net.second(net.k(x).unflatten(-1, (HEADS, SIZE))).transpose(1, 2)
        v = net.v(x).unflatten(-1, (HEADS, INNER)).transpose(1, 2)
        result: Tensor = net.o(FORMS[form](turned(q), turned(k), v).transpose(1, 2).flatten(2))
        return result

    sizes = {"q": (8, HEADS * SHARED * SIZE), "k": (8, HEADS * SIZE), "v": (8, HEADS * INNER), "o": (HEADS * SHARED * INNER, 3)}
    layers = {name: nn.Linear(*size) for name, size in sizes.items()}
    module = randomized(Function(run, **layers, first=first, second=second))
    space = trace(module, tokens(), strict=True)
    assert group_size(space) == (fact(HEADS) * fact(INNER, HEADS), HEADS * INNER, HEADS * INNER)
    assert_function_preserved(module, space, tokens(), draws=2)


def rolled(dims: tuple[int, ...], gain: bool) -> nn.Module:
    """Neurons of rows and columns that are added to their neighbours along some dimensions."""

    def run(net: Any, x: Tensor) -> Tensor:
        hidden = net.a(x).unflatten(-1, (3, 4)) * (net.gain.weight[0] if gain else 1)
        result: Tensor = net.o((hidden + hidden.roll((1,) * len(dims), dims)).flatten(-2))
        return result

    return randomized(Function(run, a=nn.Linear(8, 12), gain=nn.Linear(4, 1), o=nn.Linear(12, 2)))


@pytest.mark.parametrize("dims", [(-1,), (-2,), (-2, -1)])
@pytest.mark.parametrize("gain", [False, True])
def test_neurons_that_become_neighbours_of_theirs_stay(dims: tuple[int, ...], gain: bool) -> None:
    module = rolled(dims, gain)
    space = trace(module, tokens(), strict=True)
    theta, outputs = module_outputs(module, space, (tokens(),))
    moved = space.act(space.sample_symmetry(1, generator=torch.Generator().manual_seed(0)), theta)
    assert largest_difference(outputs(moved), outputs(theta)) < 1e-10


@pytest.mark.parametrize("form", ["contracted", "enabled"])
def test_models_read_grouped_queries(form: str) -> None:
    module, inputs, space = attention(FORMS[form], turned)
    for model in ("monomial_gnn", "scalegmn", "neural_graph"):
        torch.manual_seed(0)
        assert_invariant(build_model(model, space, 1, channels=8, probes=0).eval().double(), space, module=module, inputs=inputs)
