"""Tracing: real and odd modules keep their function under every symmetry that their weight space claims."""

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import wsgraph
from tests.networks import randomized
from wsgraph import TraceError, TraceWarning, WeightSpace, from_state_dict, trace
from wsgraph.convert.tracing import TRACED_OPERATORS, pointwise, register_traced_operator
from wsgraph.convert.tracing import layers as tracing_layers
from wsgraph.nn import build_model
from wsgraph.operators import UnsupportedError
from wsgraph.testing import assert_function_preserved, assert_invariant


class Function(nn.Module):
    """Layers by name, and a forward function of the module and its input."""

    def __init__(self, forward: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.function = forward

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self, *inputs)


def kinds(space: WeightSpace) -> dict[str, str]:
    return {group.name: space.describe_symmetry(group) for group in space.groups if group.role not in ("factor", "input")}


def image(channels: int = 3, side: int = 8, batch: int = 2) -> Tensor:
    return torch.randn(batch, channels, side, side, generator=torch.Generator().manual_seed(1))


def tokens(width: int = 8, length: int = 5, batch: int = 2) -> Tensor:
    return torch.randn(batch, length, width, generator=torch.Generator().manual_seed(1))


# == Chains are the spaces that their state dicts give ==


@pytest.mark.parametrize(
    ("net", "x", "activation"),
    [
        (nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(2, 4), "relu"),
        (nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)), torch.randn(2, 4), "tanh"),
        (nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.GELU(), nn.Dropout(), nn.Linear(8, 2)), image(3, 4), "gelu"),
    ],
)
def test_chains_equal_from_state_dict(net: nn.Module, x: Tensor, activation: str) -> None:
    space = trace(net.eval(), x)
    assert space == from_state_dict(net.state_dict(), activation=activation)[0]
    assert space.is_chain
    assert_function_preserved(net, space, x)


class Siren(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 8), nn.Linear(8, 8), nn.Linear(8, 1)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = torch.sin(30 * layer(x))
        return self.layers[-1](x)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, stride=1, padding=1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.b(F.relu(self.a(x))))
        return F.log_softmax(self.head(F.max_pool2d(x, 2).mean((2, 3))), dim=1)


class Concatenated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 5, 3), nn.Conv2d(9, 6, 3)
        self.head = nn.Linear(6 * 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([torch.relu(self.a(x)), torch.tanh(self.b(x))], dim=1)
        return self.head(F.avg_pool2d(F.leaky_relu(self.c(x), 0.2), 2).flatten(1))


@pytest.mark.parametrize(
    ("net", "x", "symmetries"),
    [
        (Siren(), torch.randn(5, 2), ["permutation x sign", "permutation x sign"]),
        (Residual(), image(), ["permutation x scale"] * 3),
        (Concatenated(), image(), ["permutation x scale", "permutation x sign", "permutation x scale"]),
    ],
)
def test_networks_of_layers_can_be_run_from_their_space(net: nn.Module, x: Tensor, symmetries: list[str]) -> None:
    net = randomized(net).double()
    x = x.double()
    space = trace(net, x)
    theta = space.flatten(net.state_dict())
    assert space.layers
    assert torch.allclose(space.evaluate(theta[None], x)[0], net(x), rtol=1e-12, atol=1e-12)
    assert_function_preserved(net, space, x)
    assert [kind for kind in kinds(space).values() if kind != "none"] == symmetries
    assert space.batch(theta[None]).thetas().equal(theta[None])


# == Any other network has its symmetries ==


def attention(self: Any, x: Tensor) -> Tensor:
    x = self.embed(x)
    batch, length, width = x.shape
    q, k, v = self.qkv(x).reshape(batch, length, 3, 4, width // 4).permute(2, 0, 3, 1, 4)
    weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(width // 4), dim=-1)
    return self.head(x + self.out((weights @ v).transpose(1, 2).reshape(batch, length, width)))


def squeeze_excite(self: Any, x: Tensor) -> Tensor:
    x = torch.relu(self.stem(x))
    gate = torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3), keepdim=True)))))
    return self.head((x * gate).amax((2, 3)))


def shuffled(self: Any, x: Tensor) -> Tensor:
    x = torch.relu(self.stem(x))
    for branch in (self.a, self.b):
        left, right = x.chunk(2, dim=1)
        x = torch.cat([left, torch.relu(branch(right))], dim=1)
        batch, channels, height, width = x.shape
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)
    return self.head(x.mean((2, 3)))


def padded_shortcut(self: Any, x: Tensor) -> Tensor:
    x = torch.relu(self.stem(x))
    return self.head(torch.relu(self.wide(x) + F.pad(x, (0, 0, 0, 0, 1, 2))).mean((2, 3)))


CASES: dict[str, tuple[nn.Module, Any, dict[str, str]]] = {
    "batch norm": (
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(64, 2)),
        image(),
        {"0": "permutation x scale x sign", "1": "permutation x scale", "3": "permutation x scale x sign", "5": "none"},
    ),
    "layer norm": (
        nn.Sequential(nn.Linear(8, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 4)),
        tokens(),
        {"0": "permutation", "1": "permutation x sign", "3": "none"},
    ),
    "rms norm": (
        nn.Sequential(nn.Linear(8, 6), nn.RMSNorm(6), nn.ReLU(), nn.Linear(6, 4)),
        tokens(),
        {"0": "permutation x sign", "1": "permutation x scale", "3": "none"},
    ),
    "group norm": (
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.GroupNorm(2, 6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(64, 2)),
        image(),
        {
            "0": "permutation of 2 blocks, and of 3 in each on its own",
            "1": "permutation of 2 blocks, and of 3 in each on its own x scale",
            "3": "permutation x scale x sign",
            "5": "none",
        },
    ),
    "instance norm": (
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.InstanceNorm2d(6, affine=True), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(64, 2)),
        image(),
        {"0": "permutation x sign", "1": "permutation x scale", "3": "permutation x scale x sign", "5": "none"},
    ),
    "prelu": (
        nn.Sequential(nn.Linear(4, 6), nn.PReLU(6), nn.Linear(6, 5), nn.PReLU(), nn.Linear(5, 3)),
        torch.randn(3, 4),
        {"0": "permutation x scale", "2": "permutation x scale", "4": "none"},
    ),
    "depthwise": (
        nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU6(), nn.Conv2d(6, 6, 3, groups=6), nn.ReLU(), nn.Conv2d(6, 2, 6), nn.Flatten()),
        image(),
        {"0": "permutation", "2": "permutation x scale", "4": "none"},
    ),
    "depthwise multiplier": (
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 12, 3, groups=4), nn.ReLU(), nn.Conv2d(12, 2, 6), nn.Flatten()),
        image(),
        {"0": "permutation x scale", "2": "permutation of 4 blocks, and of 3 in each on its own x scale", "4": "none"},
    ),
    "grouped": (
        nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 2, 6), nn.Flatten()),
        image(),
        {
            "0": "permutation of 2 blocks, and of 3 in each on its own x scale",
            "2": "permutation of 2 blocks, and of 4 in each on its own x scale",
            "4": "none",
        },
    ),
    "grouped, then flattened": (
        nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 7, groups=2), nn.SiLU(), nn.Flatten(), nn.Linear(16, 2)),
        image(),
        {
            "0": "permutation of 2 blocks, and of 3 in each on its own x scale",
            "2": "permutation of 2 blocks, and of 2 in each on its own",
            "5": "none",
        },
    ),
    "transposed": (
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.ConvTranspose2d(6, 5, 2, stride=2), nn.ReLU(), nn.Conv2d(5, 2, 3)),
        image(),
        {"0": "permutation x scale", "2": "permutation x scale", "4": "none"},
    ),
    "grouped transposed": (
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.ConvTranspose2d(6, 4, 2, groups=2), nn.ReLU(), nn.Conv2d(4, 2, 3)),
        image(),
        {
            "0": "permutation of 2 blocks, and of 3 in each on its own x scale",
            "2": "permutation of 2 blocks, and of 2 in each on its own x scale",
            "4": "none",
        },
    ),
    "conv1d": (
        nn.Sequential(nn.Conv1d(8, 6, 3), nn.BatchNorm1d(6), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(6, 2)),
        tokens(length=8),
        {"0": "permutation x scale x sign", "1": "permutation x scale", "5": "none"},
    ),
    "conv3d": (
        nn.Sequential(nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4), nn.ReLU(), nn.MaxPool3d(2), nn.Flatten(), nn.Linear(4, 2)),
        torch.randn(2, 1, 4, 4, 4),
        {"0": "permutation x scale x sign", "1": "permutation x scale", "5": "none"},
    ),
    "embedding": (
        nn.Sequential(nn.Embedding(10, 6), nn.Linear(6, 5), nn.SiLU(), nn.Flatten(), nn.Linear(20, 3)),
        torch.randint(0, 10, (2, 4)),
        {"0": "permutation x scale x sign", "1": "permutation", "4": "none"},
    ),
    "attention": (
        Function(attention, embed=nn.Linear(8, 16), qkv=nn.Linear(16, 48), out=nn.Linear(16, 16), head=nn.Linear(16, 3)),
        tokens(),
        {
            "embed": "permutation x scale x sign",
            "qkv": "permutation of 4 blocks, and of 4 in each on its own x scale x sign",
            "qkv[1]": "permutation of 4 blocks, and of 4 in each on its own",
            "qkv[2]": "permutation of 4 blocks, and of 4 in each on its own x scale x sign",
            "out": "permutation x scale x sign",
            "head": "none",
        },
    ),
    "squeeze and excite": (
        Function(squeeze_excite, stem=nn.Conv2d(3, 6, 3), down=nn.Conv2d(6, 2, 1), up=nn.Conv2d(2, 6, 1), head=nn.Linear(6, 3)),
        image(),
        {"stem": "permutation x scale", "down": "permutation x scale", "up": "permutation", "head": "none"},
    ),
    "two factors": (
        Function(lambda m, x: m.head(m.a(x) * m.b(x)), a=nn.Linear(8, 6), b=nn.Linear(8, 6), head=nn.Linear(6, 3)),
        tokens(),
        {"a": "permutation", "b": "permutation x scale x sign", "mul": "permutation x scale x sign", "head": "none"},
    ),
    "channel shuffle": (
        Function(shuffled, stem=nn.Conv2d(3, 12, 3), a=nn.Conv2d(6, 6, 1), b=nn.Conv2d(6, 6, 1), head=nn.Linear(12, 3)),
        image(),
        {},
    ),
    "zero-padded shortcut": (
        Function(padded_shortcut, stem=nn.Conv2d(3, 4, 3), wide=nn.Conv2d(4, 7, 3, padding=1), head=nn.Linear(7, 3)),
        image(),
        {},
    ),
    "crelu": (
        Function(lambda m, x: m.b(torch.relu(torch.cat([m.a(x), -m.a(x)], dim=-1))), a=nn.Linear(8, 6), b=nn.Linear(12, 3)),
        tokens(),
        {"a": "permutation x scale", "b": "none"},
    ),
    "transformer": (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), tokens(), {}),
    "multi-head attention": (
        Function(lambda m, x: m.attention(x, x, x)[0], attention=nn.MultiheadAttention(8, 2, batch_first=True)),
        tokens(),
        {},
    ),
    "recurrent": (nn.LSTM(8, 6, batch_first=True), tokens(), {}),
    "reused layer": (
        Function(lambda m, x: m.b(torch.relu(m.a(torch.relu(m.a(x))))), a=nn.Linear(8, 8), b=nn.Linear(8, 2)),
        tokens(),
        {},
    ),
    "functional weights": (
        Function(
            lambda m, x: F.linear(torch.tanh(F.linear(x, m.a.weight, m.a.bias)), m.b.weight * 2), a=nn.Linear(8, 6), b=nn.Linear(6, 2)
        ),
        tokens(),
        {},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_function_is_preserved(name: str) -> None:
    module, inputs, expected = CASES[name]
    randomized(module)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TraceWarning)
        space = trace(module, inputs)
    assert_function_preserved(module, space, inputs)
    found = kinds(space)
    if expected:
        assert {group: kind for group, kind in found.items() if group in expected} == expected
    state = module.state_dict()
    back = space.unflatten(space.flatten(state))
    assert list(back) == list(state)
    assert all(torch.equal(back[key], state[key]) and back[key].dtype == state[key].dtype for key in state)
    assert WeightSpace.from_json(space.to_json()) == space
    assert space.architecture.architecture == space.architecture
    assert repr(space) in space.report()
    # A layer from inputs to itself tells its neurons apart, and so do outputs of recurrent units.
    if name not in ("recurrent", "reused layer"):
        assert space.coverage > 0.3


def test_heads_of_attention_move_as_blocks_with_inverse_factors_of_queries_and_keys() -> None:
    module, inputs, _ = CASES["attention"]
    space = trace(module.eval(), inputs)
    (rows,) = (axis for axis in space.param("qkv.weight").axes if axis.size == 48)
    (tie,) = rows.ties
    assert [space.group(name).size for name in tie.groups] == [16, 16, 16]
    assert tie.exponents == (1, -1, 1)
    assert tie.groups[0] == tie.groups[1]  # queries and keys share their permutation and factor
    groups = [space.group(name) for name in tie.groups]
    assert groups[0].factors == groups[2].factors  # values move with the heads
    assert groups[0].permutation != groups[2].permutation  # but within a head on their own


def test_transformers_without_gradients_are_traced_like_others() -> None:
    module, inputs, _ = CASES["transformer"]
    randomized(module)
    frozen = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).requires_grad_(False).eval()
    assert trace(frozen, inputs) == trace(module, inputs)
    assert torch.backends.mha.get_fastpath_enabled()


def test_scales_of_a_product_are_those_of_its_factors() -> None:
    module, inputs, _ = CASES["two factors"]
    space = trace(randomized(module), inputs)
    theta = space.flatten(module.double().state_dict())[None]
    g = space.sample_symmetry(1, (0.01, 100.0), symmetries=["scale"])
    moved = space.unflatten(space.act(g, theta)[0])
    a, b, head = (moved[key] / tensor for key, tensor in module.state_dict().items() if key.endswith("weight"))
    assert torch.allclose(a[:, 0] * b[:, 0] * head[0], torch.ones(6, dtype=torch.float64))
    assert (a[:, 0] != 1).all()
    assert (b[:, 0] != 1).all()
    module.float()


# == What is unknown is fixed ==


def test_unknown_operators_fix_their_neurons_and_are_named() -> None:
    net = randomized(Function(lambda m, x: m.b(torch.renorm(m.a(x), 2, 0, 1.0)) + m.d(m.c(x)), **{k: nn.Linear(8, 8) for k in "abcd"}))
    with pytest.warns(TraceWarning, match=r"renorm in the module itself.*register_traced_operator"):
        space = trace(net, tokens())
    assert_function_preserved(net, space, tokens())
    found = kinds(space)
    assert found["a"] == "none"
    assert found["c"] == "permutation x scale x sign"
    assert "Fixed, because of renorm in the module itself: a." in space.report()
    with pytest.raises(TraceError, match="renorm"):
        trace(net, tokens(), strict=True)


def test_an_operator_is_added_by_one_entry() -> None:
    net = randomized(Function(lambda m, x: m.b(torch.renorm(m.a(x), 2, 0, 1.0)), a=nn.Linear(8, 6), b=nn.Linear(6, 2)))
    with pytest.warns(TraceWarning, match="renorm"):
        assert kinds(trace(net, tokens()))["a"] == "none"
    register_traced_operator("renorm", pointwise(positive=False, sign=True))
    try:
        space = trace(net, tokens(), strict=True)
    finally:
        del TRACED_OPERATORS["renorm"]
    assert kinds(space)["a"] == "permutation x sign"
    assert_function_preserved(net, space, tokens())


def _overwrite(m: Any, x: Tensor) -> Tensor:
    x = m.a(x)
    view = x[..., :3]
    view.mul_(2.0).relu_()
    return m.b(x)


def _overwrite_base(m: Any, x: Tensor) -> Tensor:
    x = m.a(x)
    view = x.view(-1, 6)
    torch.relu_(x)
    return m.b(view)


def _queries_and_keys(m: Any, x: Tensor) -> Tensor:
    queries, keys = m.a(x).chunk(2, -1)
    return F.scaled_dot_product_attention(queries, keys, m.b(m.a(x)))


def _without_gradient(layer: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        result: Tensor = layer(x)
    return result


ODD: dict[str, Callable[..., Any]] = {
    "a view is written to": _overwrite,
    "a base is written to": _overwrite_base,
    "own transpose added": lambda m, x: m.b(m.a(x) + m.a(x).flip(-1)),
    "indices of a maximum": lambda m, x: m.b(m.a(x)) + m.a(x).max(-1, keepdim=True).indices,
    "sorted": lambda m, x: m.b(m.a(x).sort(-1).values),
    "one neuron alone": lambda m, x: m.b(m.a(x)) + m.a(x)[..., 2:3],
    "every other neuron": lambda m, x: m.b(m.a(x)) + m.a(x)[..., ::2].sum(-1, keepdim=True),
    "a constant per neuron": lambda m, x: m.b(m.a(x) + torch.arange(6.0).to(x)),
    "a constant": lambda m, x: m.b(m.a(x) + 1),
    "position and neuron": lambda m, x: m.b(m.a(x).transpose(1, 2).reshape(2, 5, 6)),
    "rolled after flattening": lambda m, x: m.b(m.a(x).transpose(1, 2).flatten(1).roll(7, 1).view(2, 6, 5).transpose(1, 2)),
    "cut after flattening": lambda m, x: m.a(x).transpose(1, 2).flatten(1)[:, 2:14] @ m.c.weight[:, :12].T,
    "weight used both ways": lambda m, x: m.a(x) @ m.a.weight + m.a(x).square() @ m.a.weight,
    "integer steps": lambda m, x: m.b(m.a(x).to(torch.int64).to(x.dtype)),
    "outer product": lambda m, x: m.b((m.a(x)[..., :, None] * m.a(x)[..., None, :]).sum(-2)),
    "gram matrix": lambda m, x: m.a(x) @ m.a(x).transpose(1, 2),
    "covariance of neurons": lambda m, x: m.b(m.a(x).transpose(1, 2) @ m.a(x)),
    "mixed over positions": lambda m, x: m.b((m.c(F.pad(m.a(x).transpose(1, 2), (0, 1)))).transpose(1, 2)),
    "a gate of zeros": lambda m, x: m.b(torch.sigmoid(F.pad(m.a(x)[..., :4], (0, 2))) * m.a(x)),
    "log-sum-exp": lambda m, x: m.b(m.a(x)) + m.a(x).logsumexp(-1, keepdim=True),
    "softmax over neurons": lambda m, x: m.b(m.a(x).softmax(-1)),
    "repeated": lambda m, x: m.d(m.a(x).repeat(1, 1, 2)),
    "interleaved": lambda m, x: m.d(torch.stack([m.a(x), -m.a(x)], -1).flatten(-2)),
    "divided": lambda m, x: m.b(m.a(x) / (1 + m.a(x).square())),
    "reciprocal of another": lambda m, x: m.b(m.a(x) / torch.exp(m.a(x))),
    "where": lambda m, x: m.b(torch.where(m.a(x) > 0, m.a(x), -m.a(x))),
    "clamped": lambda m, x: m.b(m.a(x).clamp(min=0)) + m.b(m.a(x).clamp(-1, 1)),
    "einsum": lambda m, x: torch.einsum("bti,oi->bto", m.a(x), m.b.weight),
    "norm of neurons": lambda m, x: m.b(F.normalize(m.a(x), dim=-1)),
    "halves that gate each other": lambda m, x: (lambda u, v: u * F.gelu(v))(*m.a(x).chunk(2, -1)) @ m.b.weight[:, :3].T,
    "halves that multiply each other": lambda m, x: (lambda u, v: u * v)(*m.a(x).chunk(2, -1)) @ m.b.weight[:, :3].T,
    "queries and keys of one layer": lambda m, x: _queries_and_keys(m, x),
    "gated linear unit": lambda m, x: F.glu(m.a(x), -1) @ m.b.weight[:, :3].T,
    "positions and neurons reshaped": lambda m, x: m.d(
        m.a(x).relu()[:, :4].transpose(1, 2).reshape(2, 4, 6).transpose(1, 2).flatten(1)[:, :12]
    ),
    "rolled over everything": lambda m, x: m.b(m.a(x).relu().roll(1)),
    "diagonal": lambda m, x: m.b(m.a(x).relu()) * m.b.weight.diagonal().sum(),
    "diagonal by indices": lambda m, x: m.b(m.a(x).relu()) * m.b.weight[torch.arange(3), torch.arange(3)].sum(),
    "positions that meet neurons": lambda m, x: m.b(m.a(x)[:, torch.arange(5), torch.arange(5)] @ m.c.weight[:5, :6]),
    "rolled after a norm of two copies": lambda m, x: m.d(
        F.layer_norm(torch.cat([m.a(x).flip(-1), m.a(x)], -1), [12], m.d.weight[0], m.d.weight[1]).roll(1, -1)
    ),
    "causal attention": lambda m, x: F.scaled_dot_product_attention(m.a(x), m.a(x), m.b(m.a(x)), is_causal=True),
    "padded and summed": lambda m, x: m.d(F.pad(m.a(x), (0, 6)) + x.sum(-1, keepdim=True) + F.pad(m.a(x), (6, 0))),
    "padded and centred": lambda m, x: m.d((lambda h: h - h.mean(-1, keepdim=True))(F.pad(m.a(x), (0, 6)))),
    "softmax of zeros": lambda m, x: m.b(torch.relu(m.a(x) + torch.zeros_like(m.a(x)).softmax(-1))),
    "log-sum-exp of zeros": lambda m, x: m.b(m.a(x).relu().mean(1) + torch.zeros_like(m.a(x)).logsumexp(1)),
    "log-sum-exp of padding": lambda m, x: m.d(F.pad(m.a(x).relu(), (0, 6)).logsumexp(1)),
    "integers by another tensor": lambda m, x: m.b((10 * m.a(x)).type_as(torch.arange(3)).type_as(x)),
    "number of entries": lambda m, x: m.b(torch.linalg.vector_norm(m.a(x).relu(), ord=0, dim=1)),
    "limits that cross": lambda m, x: m.b(m.a(x).clamp(1, -1) + m.a(x)),
    "hardtanh by default": lambda m, x: m.b(torch.ops.aten.hardtanh(m.a(x))),
    "chosen from zeros": lambda m, x: m.b(m.a(x) + torch.where(torch.zeros_like(m.a(x)) > 0, torch.zeros_like(m.a(x)), 5.0)),
    "norm without epsilon": lambda m, x: m.b(
        F.batch_norm(m.a(x).flatten(0, 1), m.d.weight[0, :6].detach(), m.c.bias.detach().abs() + 1, eps=0.0)
    ),
    "norm of padding": lambda m, x: m.d(
        F.relu(F.batch_norm(F.pad(m.a(x), (0, 6)).flatten(0, 1), m.d.weight[0].detach(), m.d.weight[1].detach().abs() + 1))
    ),
    "quotient of three": lambda m, x: m.b(m.a(x) / (m.c(F.pad(m.a(x), (0, 6))) * m.c(F.pad(m.a(x).abs(), (0, 6))))),
    "three factors": lambda m, x: m.b(m.a(x) * m.c(F.pad(m.a(x), (0, 6))) * m.c(F.pad(m.a(x).abs(), (0, 6)))),
    "cast in place": lambda m, x: m.b(F.silu(m.a(x)).to(x.dtype).float().to(x.dtype)),
    "dropout that returns its input": lambda m, x: (lambda h: m.b(F.dropout(h, 0.1, False).mul_(m.a(x).abs())) + m.b(h))(m.a(x)),
    "repeated unevenly": lambda m, x: m.d(m.a(x).repeat_interleave(torch.tensor([1, 3, 2, 2, 2, 2]), dim=-1, output_size=12)),
    "doubled": lambda m, x: m.b((lambda h: torch.relu(h + h))(m.a(x))),
    "a row of weights": lambda m, x: F.linear(m.a(x), m.b.weight[0]),
    "a layer of a parameter": lambda m, x: m.b(m.a(x)) + m.b(m.a(m.a.weight[:1, :8])),
    "several outputs": lambda m, x: (m.b(m.a(x)), {"norm": m.a(x).square().sum(-1)}),
    "no gradient": lambda m, x: m.b(_without_gradient(m.a, x)),
    "native norm": lambda m, x: m.b(torch.native_layer_norm(m.a(x), [6], None, None, 1e-5)[0]),
    "bilinear": lambda m, x: F.bilinear(m.a(x), m.a(x), m.e),
}


POOLED = {
    "pooling over neurons": (nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.MaxPool1d(3, 1, 1), nn.Linear(8, 2)), torch.randn(3, 4)),
    "pooling over channels": (
        nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(3, 1, 1), nn.Conv1d(8, 2, 3), nn.Flatten(), nn.Linear(8, 2)),
        torch.randn(2, 3, 8),
    ),
    "one pixel widened": (
        Function(
            lambda m, x: m.h(F.relu(m.a(x) + m.p.weight[0]).mean((2, 3))),
            a=nn.ConvTranspose2d(3, 8, 4),
            h=nn.Linear(8, 2),
            p=nn.Conv2d(8, 1, 4),
        ),
        torch.randn(2, 3, 1, 1),
    ),
    "gated depthwise": (
        Function(
            lambda m, x: (lambda u, v: m.c(u * v))(*m.b(m.a(x)).chunk(2, 1)),
            a=nn.Conv2d(3, 8, 1),
            b=nn.Conv2d(8, 8, 3, padding=1, groups=8),
            c=nn.Conv2d(4, 3, 1),
        ),
        image(),
    ),
    "depthwise after grouped": (
        Function(
            lambda m, x: m.d(torch.cat([m.b(m.a(x)), m.c(m.a(x))], 1)),
            a=nn.Conv2d(3, 8, 1),
            b=nn.Conv2d(8, 6, 1, groups=2),
            c=nn.Conv2d(8, 16, 1, groups=8),
            d=nn.Conv2d(22, 2, 1),
        ),
        image(),
    ),
    "depthwise transposed": (
        nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.ConvTranspose2d(6, 6, 2, groups=6), nn.ReLU(), nn.Conv2d(6, 2, 1)),
        image(),
    ),
    "a module called factor": (
        nn.Sequential(nn.Conv2d(3, 6, 1), nn.ModuleDict({"factor": nn.Conv2d(6, 8, 3, groups=2)})["factor"], nn.ReLU(), nn.Conv2d(8, 2, 1)),
        image(),
    ),
}


@pytest.mark.parametrize("name", POOLED)
def test_odd_convolutions_are_sound(name: str) -> None:
    module, x = POOLED[name]
    assert_function_preserved(randomized(module), trace(module, x), x)


def test_tracing_leaves_the_module_as_it_is() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 2)
            self.calls: Tensor
            self.register_buffer("calls", torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            self.calls.add_(1)
            result: Tensor = self.layer(x)
            return result

    net = Counting().eval()
    trace(net, tokens())
    assert net.calls.equal(torch.zeros(3))


def test_mixed_dtypes_come_back() -> None:
    net = Function(lambda m, x: m.b(m.a(x.to(torch.bfloat16)).float()), a=nn.Linear(8, 6).to(torch.bfloat16), b=nn.Linear(6, 2)).eval()
    space = trace(net, tokens(), strict=True)
    back = space.unflatten(space.flatten(net.state_dict()))
    assert all(back[key].dtype == tensor.dtype and back[key].equal(tensor) for key, tensor in net.state_dict().items())


def test_modules_without_parameters_are_refused() -> None:
    with pytest.raises(TraceError, match="The module has no parameters: a weight space needs at least one floating point tensor"):
        trace(nn.ReLU().eval(), tokens())


def test_frequencies_and_slopes_are_kept_to_the_last_digit() -> None:
    net = randomized(
        Function(
            lambda m, x: m.b(F.leaky_relu(m.c(torch.sin(30.1234567 * m.a(x))), 0.123456789)),
            **{"a": nn.Linear(4, 6), "b": nn.Linear(6, 2), "c": nn.Linear(6, 6)},
        )
    ).double()
    x = torch.randn(3, 4, dtype=torch.float64)
    space = trace(net, x)
    assert torch.allclose(space.evaluate(space.flatten(net.state_dict())[None], x)[0], net(x), rtol=1e-13, atol=1e-13)


def test_networks_that_begin_with_flattening_take_images() -> None:
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, 2)).eval(), image(3, 4)
    space = trace(net, x)
    assert torch.allclose(space.evaluate(space.flatten(net.state_dict())[None], x)[0], net(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ODD)
def test_odd_networks_are_sound(name: str) -> None:
    layers = {"a": nn.Linear(8, 6), "b": nn.Linear(6, 3), "c": nn.Linear(6 if "mixed" in name else 12, 6), "d": nn.Linear(12, 3)}
    net = Function(ODD[name], **layers)
    if name == "bilinear":
        net.e = nn.Parameter(torch.randn(2, 6, 6))
    randomized(net)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TraceWarning)
        space = trace(net, tokens())
    used = [name for name, _ in net.named_parameters()]
    if not any(space.is_moved(space.param(name)) for name in used):
        assert space.coverage == 0
    assert_function_preserved(net, space, tokens(), scale=(0.1, 10.0))


def test_weights_that_are_tied_move_together() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(10, 6)
            self.mix = nn.Linear(6, 6)
            self.head = nn.Linear(6, 10, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.head(self.embed(x) + torch.tanh(self.mix(self.embed(x))))
            return result

    net, x = randomized(Tied()), torch.randint(0, 10, (2, 4))
    space = trace(net, x)
    assert_function_preserved(net, space, x)
    assert space.param("head.weight").axes == space.param("embed.weight").axes
    assert kinds(space)["embed"] == "permutation x sign"  # read as it is written: factors must be their own inverse


def test_unused_parameters_and_buffers_are_kept_and_fixed() -> None:
    net = Function(lambda m, x: m.a(x), a=nn.Linear(8, 6), unused=nn.Linear(3, 3))
    net.register_buffer("steps", torch.tensor(7))
    net.register_buffer("table", torch.arange(4))
    space = trace(net.eval(), tokens())
    state = net.state_dict()
    back = space.unflatten(space.flatten(state))
    assert {key: tensor.dtype for key, tensor in back.items()} == {key: tensor.dtype for key, tensor in state.items()}
    assert all(torch.equal(back[key], state[key]) for key in state)
    assert space.report().splitlines()[-1] == "Used by nothing: unused.weight, unused.bias."
    assert [param.name for param in WeightSpace.from_json(space.to_json()).params if param.unused] == ["unused.weight", "unused.bias"]
    state["steps"] = torch.tensor(2**24 + 1)
    with pytest.raises(wsgraph.SpaceMismatchError, match=r"integers of 'steps' are too large for torch\.float32"):
        space.flatten(state)
    state = {key: tensor.double() if tensor.is_floating_point() else tensor for key, tensor in state.items()}
    assert torch.equal(space.unflatten(space.flatten(state))["steps"], state["steps"])


def test_spaces_without_layers_say_what_they_cannot_do() -> None:
    module, inputs, _ = CASES["batch norm"]
    space = trace(module.eval(), inputs)
    thetas = space.sample(2)
    with pytest.raises(
        wsgraph.SpaceMismatchError,
        match=r"dense and convolutional layers.*'0.weight' and 10 more. It is not written as layers, because batch_norm .* \(in 1\)\.",
    ):
        space.check_layers("This")
    assert "Not written as layers, because batch_norm is no layer or known operator (in 1)." in space.report().splitlines()
    assert (space.unflatten(thetas)["1.running_var"] > 0).all()
    assert "  running_var" in space.summary(2)
    module, inputs, _ = CASES["recurrent"]
    space = dataclasses.replace(trace(module.eval(), inputs), connections=())
    with pytest.raises(wsgraph.SpaceMismatchError, match=r"A parameter graph needs a network.*canonicalize and report work\."):
        _ = space.batch(space.sample(2)).edge_index


def test_weights_picked_by_inputs() -> None:
    def experts(m: Any, x: Tensor, chosen: Tensor) -> Tensor:
        return torch.bmm(torch.bmm(x[:, None], m.weights[0][chosen]).relu(), m.weights[1][chosen])

    module = Function(experts, weights=nn.ParameterList([torch.randn(4, 6, 5), torch.randn(4, 5, 2)])).eval()
    inputs = torch.randn(3, 6), torch.tensor([0, 2, 3])
    space = trace(module, *inputs)
    theta = space.flatten(module.state_dict())
    torch.testing.assert_close(space.evaluate(theta[None], *inputs)[0], module(*inputs))


# == Modules that cannot be traced ==


def _branches(m: Any, x: Tensor) -> Tensor:
    if x.sum() > 0:
        return m.a(x)
    return m.a(-x)


READ = {
    "linear": (nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)), torch.float32),
    "normalised": (nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 2)), torch.float32),
    "product": (Function(lambda m, x: x @ m.a.weight, a=nn.Linear(4, 8)), torch.float32),
    "float64": (nn.Linear(8, 2).double(), torch.float64),
    "attention": (nn.TransformerEncoderLayer(8, 2, 8, batch_first=True), torch.float32),
    "table": (nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 2)), torch.int64),
}


@pytest.mark.parametrize("name", READ)
def test_example_inputs_of_dtypes_that_the_module_does_not_read_are_refused(name: str) -> None:
    """torch.export records most of them, as it looks at shapes alone."""
    module, own = READ[name]
    module.eval()
    assert trace(module, torch.ones(2, 5, 8, dtype=own) if name == "attention" else torch.ones(2, 8, dtype=own)).num_params
    for dtype in (torch.float16, torch.float32, torch.float64, torch.int64, torch.bool, torch.complex64):
        inputs = torch.ones((2, 5, 8) if name == "attention" else (2, 8), dtype=dtype)
        if dtype is own:
            continue
        weights = "float64" if name == "float64" else "float32"
        with pytest.raises(
            TraceError, match=rf"does not run on the example inputs.* {dtype}\).*Its weights are {weights}".replace("torch.", "")
        ):
            trace(module, inputs)


def test_inputs_by_name_are_a_dict_of_names() -> None:
    for kwargs, got in ((torch.ones(2), "Tensor"), ({1: torch.ones(2)}, r"the names \[1\]")):
        with pytest.raises(TraceError, match=rf"Expected 'kwargs' to be a dict of inputs by name.*\(got {got}\)"):
            trace(nn.Linear(8, 2).eval(), tokens(), kwargs=kwargs)  # type: ignore[arg-type]
    with pytest.raises(TraceError, match=r"\(.2, 5, 8. float32, mask=3\): TypeError: .*argument 'mask'.*those by name as kwargs="):
        trace(nn.Linear(8, 2).eval(), tokens(), kwargs={"mask": 3})


def test_modules_that_read_other_dtypes_are_traced_without_being_run() -> None:
    calls = []

    def forward(m: Any, pixels: Tensor, tokens: Tensor, mask: Tensor, scale: Tensor) -> Tensor:
        calls.append(pixels)
        h = m.a(pixels.to(m.a.weight.dtype) / 255) * scale + m.b(tokens)
        return m.c(torch.where(mask, h.to(m.a.weight.dtype), 0) + F.one_hot(tokens, 6))

    module = randomized(Function(forward, a=nn.Linear(8, 6), b=nn.Embedding(5, 6), c=nn.Linear(6, 2)))
    inputs = (
        torch.randint(255, (2, 8), dtype=torch.uint8),
        torch.tensor([1, 4]),
        torch.tensor([[True], [False]]),
        torch.ones(1, dtype=torch.float64),
    )
    space = trace(module, *inputs)
    assert len(calls) == 1  # by torch.export
    assert_function_preserved(module, space, inputs)


@pytest.mark.parametrize(
    ("module", "inputs", "message"),
    [
        (nn.Linear(8, 2).train(), tokens(), r"in training mode \(the module itself.*call module.eval\(\) first"),
        (nn.Sequential(nn.Linear(8, 2), nn.Dropout()).eval().train(), tokens(), r"the module itself and 2 more"),
        (nn.LazyLinear(2).eval(), tokens(), "'weight' has no shape yet: run the lazy module once"),
        (nn.Linear(8, 2, device="meta").eval(), tokens(), "'weight' is on the meta device.*to_empty"),
        (nn.Linear(7, 2).eval(), tokens(), r"does not run on the example inputs \(\[2, 5, 8\] float32\): RuntimeError: .*shapes"),
        (Function(_branches, a=nn.Linear(8, 2)).eval(), tokens(), r"torch.export cannot record it.*if x.sum\(\) > 0.*from_state_dict"),
        ({"weight": torch.zeros(2)}, tokens(), r"to be a torch.nn.Module \(got dict\).*from_state_dict"),
        (
            Function(lambda m, x: m.a(x)[x[..., :2] > 0], a=nn.Linear(8, 2)).eval(),
            tokens(),
            "depends on the values of tensors; tracing needs",
        ),
        (nn.ParameterList([nn.Parameter(torch.zeros(2, dtype=torch.complex64))]).eval(), tokens(), "'0' is complex"),
        (Function(lambda m, x: x.relu(), a=nn.Linear(8, 2)).eval(), tokens(), "reads none of its 2 saved tensors.*'a.weight'.*in forward"),
    ],
)
def test_modules_that_cannot_be_traced(module: Any, inputs: Tensor, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TraceError, match=f"(?s){message}"):
        trace(module, inputs)
    assert capfd.readouterr() == ("", "")  # the error says all


class _Tabulated(nn.Module):
    """Keeps a table that its first call makes, and counts its calls."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 6), nn.Linear(6, 2)
        self.table: Tensor | None = None
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.table is None:
            self.table = torch.linspace(1, 2, 6)
        return self.b(self.a(x).relu() * self.table)


class _Lazy(nn.Module):
    """Makes a tensor in its first call, and leaves tensors behind in every one."""

    made: Tensor

    def __init__(self, make: Callable[[nn.Module, Tensor], None]) -> None:
        super().__init__()
        self.make, self.inner, self.seen = make, nn.ReLU(), list[Tensor]()
        self.a, self.b = nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.last, self.inner.inputs = x * 2, x
        self.seen.append(x)
        if not hasattr(self, "made"):
            self.make(self, torch.arange(8.0))
        return self.b(self.inner(self.a(x + self.made)))


@pytest.mark.parametrize(
    ("make", "is_saved"),
    [
        (lambda module, tensor: module.register_buffer("made", tensor), True),
        (lambda module, tensor: module.register_parameter("made", nn.Parameter(tensor)), True),
        (lambda module, tensor: module.register_buffer("made", tensor, persistent=False), False),
        (lambda module, tensor: setattr(module, "made", tensor), False),
    ],
)
def test_tracing_leaves_no_tensors_without_values_in_modules(make: Callable[[nn.Module, Tensor], None], is_saved: bool) -> None:
    module = _Lazy(make)
    module.eval()
    space = trace(module, tokens())
    held = [value for part in module.modules() for value in vars(part).values()] + [*module.parameters(), *module.buffers(), *module.seen]
    assert not any(type(value).__name__ == "FakeTensor" for value in held)
    assert [param.name for param in space.params] == list(module.state_dict())
    assert ("made" in module.state_dict()) == is_saved
    assert_function_preserved(module, space, tokens())
    assert trace(module, tokens()) == space


def test_modules_that_keep_what_their_first_call_makes() -> None:
    module = _Tabulated()
    module.eval()
    space = trace(module, tokens())
    assert (space.group("a").size, int(module.calls)) == (6, 0)
    assert_function_preserved(module, space, tokens())


def test_assert_function_preserved_finds_wrong_spaces() -> None:
    net = randomized(nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 2)))
    x = torch.randn(3, 4)
    wrong = from_state_dict(net.state_dict(), activation="relu")[0]
    with pytest.raises(AssertionError, match=r"(?s)A group element \(scale\).*Sequential.*group 'hidden.1'"):
        assert_function_preserved(net, wrong, x)
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    space = trace(net, x)
    with pytest.raises(AssertionError, match=r"No group element.*proves nothing"):
        assert_function_preserved(net, space, x)
    assert assert_function_preserved(nn.Linear(4, 2).eval(), trace(nn.Linear(4, 2).eval(), x), x) == 0


# == Weights that are computed ==


def old_weight_norm(layer: nn.Module, dim: Any = 0) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(layer, dim=dim)


def weight_norm(layer: nn.Module, dim: Any = 0) -> nn.Module:
    return parametrizations.weight_norm(layer, dim=dim)


def between(layer: nn.Module, activation: nn.Module) -> nn.Sequential:
    """A layer from 6 to 5 neurons, with others around it."""
    return nn.Sequential(nn.Linear(4, 6), activation, layer, activation, nn.Linear(5, 2))


def convolutions(layer: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), layer, nn.ReLU(), nn.Conv2d(6, 2, 1))


# The layer, the direction's name, and what its inputs, results and directions may do.
PERMUTATION, SCALE, SIGN = "permutation", "permutation x scale", "permutation x sign"
WEIGHT_NORMS = {
    "relu": (lambda: between(weight_norm(nn.Linear(6, 5)), nn.ReLU()), PERMUTATION, SCALE, SCALE),
    "tanh": (lambda: between(weight_norm(nn.Linear(6, 5)), nn.Tanh()), SIGN, SIGN, SCALE),
    "inputs": (lambda: between(weight_norm(nn.Linear(6, 5), dim=1), nn.ReLU()), SCALE, PERMUTATION, SCALE),
    "inputs, tanh": (lambda: between(weight_norm(nn.Linear(6, 5), dim=1), nn.Tanh()), SIGN, SIGN, SCALE),
    "all": (lambda: between(weight_norm(nn.Linear(6, 5), dim=None), nn.ReLU()), PERMUTATION, PERMUTATION, ""),
    "all, tanh": (lambda: between(weight_norm(nn.Linear(6, 5), dim=None), nn.Tanh()), SIGN, SIGN, ""),
    "old": (lambda: between(old_weight_norm(nn.Linear(6, 5)), nn.ReLU()), PERMUTATION, SCALE, SCALE),
    "old, inputs": (lambda: between(old_weight_norm(nn.Linear(6, 5), 1), nn.ReLU()), SCALE, PERMUTATION, SCALE),
    "old, all": (lambda: between(old_weight_norm(nn.Linear(6, 5), None), nn.ReLU()), PERMUTATION, PERMUTATION, ""),
    "convolution": (lambda: convolutions(weight_norm(nn.Conv2d(6, 6, 3))), PERMUTATION, SCALE, SCALE),
    "transposed": (lambda: convolutions(weight_norm(nn.ConvTranspose2d(6, 6, 3))), SCALE, PERMUTATION, SCALE),
    "grouped": (
        lambda: convolutions(weight_norm(nn.Conv2d(6, 6, 3, groups=2))),
        "permutation of 2 blocks, and of 3 in each",
        "permutation of 2 blocks, and of 3 in each on its own x scale",
        "permutation of 2 blocks, and of 3 in each on its own x scale",
    ),
    "depthwise": (lambda: convolutions(weight_norm(nn.Conv2d(6, 6, 3, groups=6))), SCALE, SCALE, SCALE),
}


@pytest.mark.parametrize("name", WEIGHT_NORMS)
def test_weight_norm_has_the_symmetries_of_the_layer_it_makes(name: str) -> None:
    make, before, after, direction = WEIGHT_NORMS[name]
    net: Any = randomized(make())
    inputs = image() if isinstance(net[0], nn.Conv2d) else torch.randn(3, 4)
    space = trace(net, inputs, strict=True)
    assert_function_preserved(net, space, inputs, scale=(1e-4, 1e4))
    found = kinds(space)
    assert found["0"] == before
    results = [kind for group, kind in found.items() if group.startswith("2") and not group.startswith("2.")]
    assert results[-1] == after
    directions = [kind for group, kind in found.items() if "original1" in group or "weight_v" in group]
    assert directions == ([direction] if direction else [])
    assert not space.absent_from_graph
    theta = space.flatten(net.state_dict())[None].double()
    form = space.canonicalize(theta)
    for thetas in (form, space.act(space.sample_symmetry(1, (1e-3, 1e3), generator=torch.Generator().manual_seed(0)), theta)):
        assert (space.canonicalize(thetas) - form).abs().max() < 1e-9


@pytest.mark.parametrize(
    ("rule", "kind"),
    [
        # No factor of the direction reaches the layer, neither along its rows nor along its inputs, and its rows move with the gains.
        (lambda scope, call: scope.combine(call["v"], call["g"], product=True), r"\(scale\)"),
        (lambda scope, call: call["v"], r"\(permutation\)"),
    ],
)
def test_wrong_rules_for_weight_norm_are_found(rule: Any, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TRACED_OPERATORS, "_weight_norm", rule)
    net = randomized(between(weight_norm(nn.Linear(6, 5)), nn.ReLU()))
    with pytest.raises(AssertionError, match=kind):
        assert_function_preserved(net, trace(net, torch.ones(1, 4)), torch.randn(3, 4), scale=(1e-4, 1e4))


def test_weight_norm_of_weights_that_others_read() -> None:
    def forward(net: Any, x: Tensor) -> Any:
        y = torch.relu(net.layer(torch.relu(net.layer(x))))
        return net.head(y), net.layer.parametrizations.weight.original1.square().sum(), net.other(y)

    net = Function(forward, layer=weight_norm(nn.Linear(6, 6)), other=nn.Linear(6, 6), head=nn.Linear(6, 2))
    net.other.weight = net.layer.parametrizations.weight.original1  # type: ignore[union-attr]
    inputs = torch.randn(3, 6)
    assert_function_preserved(randomized(net), trace(net, inputs), inputs, scale=(1e-4, 1e4))


def test_directions_computed_from_inputs_lose_their_symmetries() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        return F.linear(x, torch._weight_norm(net.make(x).view(4, 3), net.gain.weight.view(4, 1)))

    net = randomized(Function(forward, make=nn.Linear(3, 12), gain=nn.Linear(4, 1)))
    with pytest.warns(TraceWarning, match="_weight_norm"):
        space = trace(net, torch.randn(1, 3))
    assert "permutation" not in str(kinds(space))


def test_graphs_of_weight_norm_are_read_invariantly() -> None:
    net = randomized(between(weight_norm(nn.Linear(6, 5)), nn.ReLU()))
    space = trace(net, torch.randn(1, 4))
    assert {"weight", "scale"} == {wire.kind for wire in space.wires if wire.parameter and wire.parameter.startswith("2.para")}
    assert_invariant(build_model("neural_graph", space, 1, channels=8), space, module=net, inputs=torch.randn(3, 4))


def test_spectral_norm_lets_what_its_vectors_allow_pass() -> None:
    net = randomized(nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 6)), nn.Tanh(), nn.Linear(6, 2)))
    space = trace(net, torch.randn(3, 4), strict=True)
    assert_function_preserved(net, space, torch.randn(3, 4), scale=(1e-4, 1e4))
    assert kinds(space)["0"] == SIGN


class FixedWeight(nn.Module):
    """A linear map by a buffer that no state dict holds, then a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mixing", torch.randn(4, 3), persistent=False)
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.relu(nn.functional.linear(x, self.get_buffer("mixing"))))


class Unbatched(nn.Module):
    """A sum of inputs without channels before a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.view(3) + x.reshape(3, 1).flatten())


@pytest.mark.parametrize(("module", "shape"), [(FixedWeight(), (2, 3)), (Unbatched(), (3,))])
def test_what_layers_cannot_express_is_found_without_an_error_within(
    module: nn.Module, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    original = tracing_layers._Builder.build

    def build(self: Any) -> Any:
        try:
            return original(self)
        except Exception as error:
            found.append(type(error))
            raise

    monkeypatch.setattr(tracing_layers._Builder, "build", build)
    space = wsgraph.trace(module.eval(), torch.randn(shape))
    assert found == [UnsupportedError]
    assert not space.layers


def test_a_mistake_in_reading_layers_is_not_taken_for_a_network_without_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    def mistaken(*_: Any) -> None:
        raise KeyError("weight")

    monkeypatch.setattr(tracing_layers._Builder, "layer", mistaken)
    with pytest.raises(KeyError, match="weight"):
        wsgraph.trace(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).eval(), torch.randn(2, 2))


def test_parameters_say_whether_functions_are_applied_to_their_entries() -> None:
    normalized = parametrizations.weight_norm(nn.Linear(3, 3))
    net = nn.Sequential(nn.Linear(3, 3), normalized, nn.Tanh(), nn.LayerNorm(3), nn.PReLU(3), nn.Linear(3, 1)).eval()
    space = trace(net, torch.ones(2, 3))
    assert [param.name for param in space.params if param.transformed] == [
        "1.parametrizations.weight.original0",
        "1.parametrizations.weight.original1",
    ]
    assert WeightSpace.from_json(space.to_json()) == space
    low_rank = Function(lambda net, x: F.linear(x, net.base.weight + net.up.weight @ net.down.weight))
    low_rank.base, low_rank.down, low_rank.up = nn.Linear(3, 3), nn.Linear(3, 1), nn.Linear(1, 3)
    assert not any(param.transformed for param in trace(low_rank.eval(), torch.ones(2, 3)).params)
