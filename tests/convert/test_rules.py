"""Rules of single operators: what they claim acts, keeps the function, and is all that there is to claim."""

import dataclasses
import warnings
from collections.abc import Callable
from types import CodeType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.convert.test_tracing import Function, image, kinds, tokens
from tests.networks import randomized
from wsgraph import TraceWarning, WeightSpace, trace
from wsgraph._outputs import largest_difference, module_outputs
from wsgraph.nn import build_model
from wsgraph.space import Symmetry
from wsgraph.testing import assert_function_preserved, assert_invariant

PERMUTATION, SCALE, SIGN, BOTH = "permutation", "permutation x scale", "permutation x sign", "permutation x scale x sign"


class Recurrent(nn.Module):
    """A recurrent layer, of whose states at the last step a head reads."""

    def __init__(self, layer: nn.Module, *, state: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer: Any = layer
        self.state = state
        width: Any = getattr(layer, "proj_size", 0) or self.layer.hidden_size
        self.head = nn.Linear(width * (2 if getattr(layer, "bidirectional", False) and not state else 1), 3)

    def forward(self, x: Tensor) -> Tensor:
        outputs, last = self.layer(x)
        if self.state:
            outputs = (last[0] if isinstance(last, tuple) else last)[-1:].transpose(0, 1)
        result: Tensor = self.head(outputs[:, -1])
        return result


class Unrolled(Recurrent):
    """A recurrent cell, step by step."""

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in range(x.shape[1]):
            state = self.layer(x[:, step], state)
        result: Tensor = self.head(state[0] if isinstance(state, tuple) else state)
        return result


class Joined(nn.Module):
    """A recurrent network by hand: one layer reads inputs and states, laid end to end, from states of zeros on."""

    def __init__(self, gates: int, step: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]], *, convolution: bool = False) -> None:
        super().__init__()
        self.layer: nn.Module = nn.Conv2d(3 + 6, 6 * gates, 3, padding=1) if convolution else nn.Linear(8 + 6, 6 * gates)
        self.head, self.step = nn.Linear(6, 3), step

    def forward(self, x: Tensor) -> Tensor:
        state = memory = x.new_zeros(x.shape[0], 6, *x.shape[3:])
        for inputs in x.unbind(1):
            state, memory = self.step(self.layer(torch.cat([inputs, state], 1)), state, memory)
        result: Tensor = self.head(state.reshape(*state.shape[:2], -1).mean(2))
        return result


def long_short_term(gates: Tensor, state: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    inputs, forget, cell, output = gates.chunk(4, 1)
    memory = forget.sigmoid() * memory + inputs.sigmoid() * cell.tanh()
    return output.sigmoid() * memory.tanh(), memory


class Started(Recurrent):
    """A recurrent layer whose first state is a parameter."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__(layer)
        self.start = nn.Parameter(torch.randn(1, 1, self.layer.hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.layer(x, self.start.expand(-1, len(x), -1).contiguous())[0][:, -1])
        return result


def dense(forward: Callable[..., Any], *more: int) -> tuple[nn.Module, Tensor]:
    """A function of a layer ``a`` of 6 neurons (and ``c`` beside it) before a layer ``b``."""
    torch.manual_seed(0)
    layers = {"a": nn.Linear(8, 6), "b": nn.Linear(more[0] if more else 6, 3), "c": nn.Linear(8, 6)}
    return Function(forward, **{name: layer for name, layer in layers.items() if name in names_in(forward.__code__)}), tokens()


def names_in(code: CodeType) -> set[str]:
    """What a function and those within it name."""
    return {*code.co_names}.union(*(names_in(inner) for inner in code.co_consts if isinstance(inner, CodeType)))


def grouped_queries(m: Any, x: Tensor) -> Tensor:
    batch, length, _ = x.shape
    q, k, v = (layer(x).view(batch, length, -1, 4).transpose(1, 2) for layer in (m.q, m.k, m.v))
    answers = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    result: Tensor = m.o(answers.transpose(1, 2).reshape(batch, length, 16))
    return result


def shuffled_by_indices(m: Any, x: Tensor) -> Tensor:
    x = torch.relu(m.stem(x))
    x = torch.cat([torch.relu(m.a(x[:, :6])), x[:, 6:]], 1)
    result: Tensor = m.head(x[:, torch.arange(12).view(2, 6).t().reshape(-1)].mean((2, 3)))
    return result


def preactivated(m: Any, x: Tensor) -> Tensor:
    x = m.stem(x)
    x = x + m.b(torch.relu(m.n2(m.a(torch.relu(m.n1(x))))))
    result: Tensor = m.h(torch.relu(m.n3(x)).mean((2, 3)))
    return result


def convolutions(*layers: nn.Module) -> tuple[nn.Module, Tensor]:
    return nn.Sequential(*layers), image()


def conv(inputs: int, outputs: int, side: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, side, padding=side // 2)


def recurrent(kind: type[nn.Module], made: type[Recurrent] = Recurrent, **options: Any) -> tuple[nn.Module, Tensor]:
    state = {"state": options.pop("state")} if "state" in options else {}
    step = {} if made is Unrolled else {"batch_first": True}
    return made(kind(8, 6, **step, **options), **state), tokens()


LSTM_GATES = {"input_gate": PERMUTATION, "cell_gate": SIGN, "output_gate": PERMUTATION}


def gates(prefix: str) -> dict[str, str]:
    return {f"{prefix}.{name}": kind for name, kind in LSTM_GATES.items()}


CASES: dict[str, tuple[Callable[[], tuple[nn.Module, Tensor]], dict[str, str]]] = {
    "lstm": (lambda: recurrent(nn.LSTM), {**gates("layer.l0"), "layer.l0.hidden.state": SIGN, "layer.l0.cell.state": SIGN}),
    "lstm, last state": (lambda: recurrent(nn.LSTM, state=True, num_layers=2), {**gates("layer.l0"), **gates("layer.l1")}),
    "lstm, both directions": (
        lambda: recurrent(nn.LSTM, num_layers=2, bidirectional=True),
        {**gates("layer.l0"), **gates("layer.l0_reverse"), **gates("layer.l1"), **gates("layer.l1_reverse")},
    ),
    "lstm, projected": (
        lambda: recurrent(nn.LSTM, num_layers=2, proj_size=4, bias=False),
        {**gates("layer.l0"), "layer.l0.hidden.state": BOTH, "layer.l0.cell.state": SIGN, "layer.l1.hidden.state": BOTH},
    ),
    "gru": (
        lambda: recurrent(nn.GRU, num_layers=2),
        {
            "layer.l0.reset_gate": PERMUTATION,
            "layer.l0.update_gate": PERMUTATION,
            "layer.l0.new_gate": SIGN,
            "layer.l1.hidden.state": SIGN,
        },
    ),
    "gru from a parameter": (lambda: recurrent(nn.GRU, Started), {"layer.l0.hidden.state": SIGN}),
    "rnn": (lambda: recurrent(nn.RNN, bidirectional=True), {"layer.l0.hidden.state": SIGN, "layer.l0_reverse.hidden.state": SIGN}),
    "rnn of relu": (lambda: recurrent(nn.RNN, nonlinearity="relu", num_layers=2), {"layer.l0.hidden.state": SCALE}),
    "lstm cell": (lambda: recurrent(nn.LSTMCell, Unrolled), gates("layer")),
    "gru cell": (lambda: recurrent(nn.GRUCell, Unrolled), {"layer.reset_gate": PERMUTATION, "layer.new_gate": SIGN}),
    "rnn cell": (lambda: recurrent(nn.RNNCell, Unrolled), {"layer.hidden": SIGN}),
    "rnn cell of relu": (lambda: recurrent(nn.RNNCell, Unrolled, nonlinearity="relu"), {"layer.hidden": SCALE}),
    "rnn of inputs beside states": (lambda: (Joined(1, lambda gates, *_: (gates.tanh(), gates)), tokens()), {"layer": SIGN}),
    "rnn of relu beside states": (lambda: (Joined(1, lambda gates, *_: (gates.relu(), gates)), tokens()), {"layer": SCALE}),
    "lstm of inputs beside states": (lambda: (Joined(4, long_short_term), tokens()), {"tanh": SIGN, "sigmoid": PERMUTATION}),
    "convolutional lstm": (
        lambda: (Joined(4, long_short_term, convolution=True), torch.randn(2, 3, 3, 4, 4)),
        {"tanh": SIGN, "sigmoid": PERMUTATION},
    ),
    "where": (lambda: dense(lambda m, x: (lambda h: m.b(torch.where(h > 0, h, 0.0)))(m.a(x))), {"a": SCALE, "where": SCALE}),
    "where of zeros": (lambda: dense(lambda m, x: (lambda h: m.b(torch.where(h >= 0, h, torch.zeros_like(h))))(m.a(x))), {"a": SCALE}),
    "mask": (lambda: dense(lambda m, x: (lambda h: m.b(h * (h > 0)))(m.a(x))), {"a": SCALE}),
    "masked fill": (lambda: dense(lambda m, x: (lambda h: m.b(h.masked_fill(h < 0, 0)))(m.a(x))), {"a": SCALE}),
    "comparison of two": (lambda: dense(lambda m, x: m.b(torch.where(m.a(x) > m.c(x), m.a(x), m.c(x)))), {"a": SCALE, "c": SCALE}),
    "threshold": (lambda: dense(lambda m, x: m.b(F.threshold(m.a(x), 0, 0))), {"a": SCALE}),
    "higher threshold": (lambda: dense(lambda m, x: m.b(F.threshold(m.a(x), 0.5, 0.1))), {"a": PERMUTATION}),
    "lower limit": (lambda: dense(lambda m, x: m.b(m.a(x).clamp(min=0))), {"a": SCALE}),
    "upper limit": (lambda: dense(lambda m, x: m.b(m.a(x).clamp(max=0))), {"a": SCALE}),
    "both limits": (lambda: dense(lambda m, x: m.b(m.a(x).clamp(-0.5, 0.5))), {"a": SIGN}),
    "maximum with 0": (lambda: dense(lambda m, x: m.b(torch.maximum(m.a(x), torch.tensor(0.0)))), {"a": SCALE}),
    "minimum with 1": (lambda: dense(lambda m, x: m.b(torch.minimum(m.a(x), torch.tensor(1.0)))), {"a": PERMUTATION}),
    "maximum of two": (lambda: dense(lambda m, x: m.b(torch.maximum(m.a(x), m.c(x)))), {"a": SCALE, "c": SCALE}),
    "square": (lambda: dense(lambda m, x: m.b(m.a(x).square())), {"a": BOTH}),
    "cube": (lambda: dense(lambda m, x: m.b(m.a(x) ** 3)), {"a": BOTH}),
    "square of relu": (lambda: dense(lambda m, x: m.b(torch.relu(m.a(x)) ** 2)), {"a": SCALE}),
    "root of squares": (lambda: dense(lambda m, x: m.b(m.a(x).square().sum(1).sqrt())), {"square": PERMUTATION}),
    "power of a half": (lambda: dense(lambda m, x: m.b(torch.exp(m.a(x)) ** 0.5)), {"a": PERMUTATION}),
    "absolute value": (lambda: dense(lambda m, x: m.b(m.a(x).abs())), {"abs": SCALE, "abs[1]": SIGN}),
    "softsign": (lambda: dense(lambda m, x: (lambda h: m.b(h / (1 + h.abs())))(m.a(x))), {"abs[1]": SIGN}),
    "cosine": (lambda: dense(lambda m, x: m.b(m.a(x).cos())), {"a": SIGN}),
    "sine and cosine": (lambda: dense(lambda m, x: m.b(torch.cat([m.a(x).cos(), m.a(x).sin()], -1)), 12), {"a": SIGN}),
    "tanh gelu": (lambda: dense(lambda m, x: m.b(F.gelu(m.a(x), approximate="tanh"))), {}),
    "pixel shuffle": (
        lambda: convolutions(conv(3, 24), nn.PixelShuffle(2), nn.ReLU(), conv(6, 4), nn.ReLU(), conv(4, 2)),
        {"1": SCALE, "3": SCALE},
    ),
    "pixel unshuffle": (
        lambda: convolutions(conv(3, 6), nn.ReLU(), nn.PixelUnshuffle(2), conv(24, 4), nn.ReLU(), conv(4, 2)),
        {"0": SCALE, "3": SCALE},
    ),
    "grouped transposed": (
        lambda: convolutions(conv(3, 6), nn.ReLU(), nn.ConvTranspose2d(6, 4, 2, groups=2), nn.ReLU(), conv(4, 2)),
        {
            "0": "permutation of 2 blocks, and of 3 in each on its own x scale",
            "2": "permutation of 2 blocks, and of 2 in each on its own x scale",
        },
    ),
    "depthwise transposed": (
        lambda: convolutions(conv(3, 6), nn.ReLU(), nn.ConvTranspose2d(6, 12, 2, groups=6), nn.ReLU(), conv(12, 2)),
        {"0": SCALE, "2": "permutation of 6 blocks, and of 2 in each on its own x scale"},
    ),
    "shuffled by indices": (
        lambda: (Function(shuffled_by_indices, stem=conv(3, 12), a=conv(6, 6), head=nn.Linear(12, 3)), image()),
        {"stem": SCALE, "a": SCALE},
    ),
    "bags": (
        lambda: (nn.Sequential(nn.EmbeddingBag(10, 6), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)), torch.randint(0, 10, (3, 4))),
        {"0": BOTH, "1": SCALE},
    ),
    "largest of bags": (
        lambda: (nn.Sequential(nn.EmbeddingBag(10, 6, mode="max"), nn.Linear(6, 5)), torch.randint(0, 10, (3, 4))),
        {"0": SCALE},
    ),
    "bilinear": (
        lambda: (
            Function(
                lambda m, x: m.h(torch.relu(m.bi(m.a(x), m.c(x)))),
                a=nn.Linear(8, 6),
                c=nn.Linear(8, 4),
                bi=nn.Bilinear(6, 4, 5),
                h=nn.Linear(5, 2),
            ),
            tokens(),
        ),
        {"a": BOTH, "c": BOTH, "bi": SCALE},
    ),
    "einsum of three": (
        lambda: dense(lambda m, x: torch.einsum("bti,oi,ko->btk", m.a(x), m.c.weight[:, :6], m.b.weight)),
        {"a": BOTH},
    ),
    "einsum with an ellipsis": (lambda: dense(lambda m, x: torch.einsum("...i,oi->...o", torch.relu(m.a(x)), m.b.weight)), {"a": SCALE}),
    "einsum without a result": (lambda: dense(lambda m, x: torch.einsum("bti,io", torch.relu(m.a(x)), m.b.weight.T)), {"a": SCALE}),
    "einsum entry by entry": (lambda: dense(lambda m, x: m.b(torch.einsum("bti,bti->bti", m.a(x), m.c(x)))), {"einsum": BOTH}),
    "grouped queries": (
        lambda: (Function(grouped_queries, q=nn.Linear(8, 16), k=nn.Linear(8, 8), v=nn.Linear(8, 8), o=nn.Linear(16, 3)), tokens()),
        {
            "k": "permutation of 2 blocks, and of 4 in each on its own x scale x sign",
            "v": "permutation of 2 blocks, and of 4 in each on its own x scale x sign",
        },
    ),
    "batch norm": (lambda: convolutions(conv(3, 6), nn.BatchNorm2d(6), nn.ReLU(), conv(6, 2)), {"0": BOTH, "1": SCALE}),
    "batch norm without gain": (
        lambda: convolutions(conv(3, 6), nn.BatchNorm2d(6, affine=False), nn.ReLU(), conv(6, 2)),
        {"0": SCALE, "1": SCALE},
    ),
    "batch norm of batches": (
        lambda: convolutions(conv(3, 6), nn.BatchNorm2d(6, track_running_stats=False), nn.ReLU(), conv(6, 2)),
        {"0": SIGN, "1": SCALE},
    ),
    "batch norm of inputs": (lambda: convolutions(nn.BatchNorm2d(3), conv(3, 6), nn.ReLU(), conv(6, 2)), {"0": "none", "1": SCALE}),
    "batch norm before layers": (
        lambda: (
            Function(
                preactivated,
                stem=conv(3, 6),
                n1=nn.BatchNorm2d(6),
                a=conv(6, 6),
                n2=nn.BatchNorm2d(6),
                b=conv(6, 6),
                n3=nn.BatchNorm2d(6),
                h=nn.Linear(6, 3),
            ),
            image(),
        ),
        {"stem": BOTH, "n1": BOTH, "n1[1]": SCALE, "a": BOTH, "n2": SCALE, "add": BOTH, "n3": SCALE},
    ),
    "running sum": (lambda: dense(lambda m, x: m.b(torch.relu(m.a(x)).cumsum(1))), {"a": SCALE}),
    "running product": (lambda: dense(lambda m, x: m.b(torch.relu(m.a(x)).cumprod(1))), {"a": PERMUTATION}),
    "largest": (lambda: dense(lambda m, x: m.b(m.a(x).topk(3, 1).values)), {"a": SCALE}),
    "sorted": (lambda: dense(lambda m, x: m.b(m.a(x).sort(1, descending=True).values)), {"a": SCALE}),
    "median": (lambda: dense(lambda m, x: m.b(m.a(x).median(1).values)), {"a": BOTH}),
    "median of an even number": (lambda: dense(lambda m, x: m.b(m.a(x)[:, 1:].median(1).values)), {"a": SCALE}),
    "index of the largest": (lambda: dense(lambda m, x: m.b(m.a(x)) + m.a(x).argmax(1, keepdim=True).sum(-1, keepdim=True)), {"a": SCALE}),
    "spectral norm": (
        lambda: (nn.Sequential(parametrizations.spectral_norm(nn.Linear(8, 6)), nn.ReLU(), nn.Linear(6, 2)), tokens()),
        {"0": SCALE},
    ),
}


def widened(space: WeightSpace) -> WeightSpace:
    """The space with all factors allowed to all neurons that have any."""
    everything = Symmetry(True, True)
    groups = tuple(
        dataclasses.replace(group, limits=everything, operators=()) if any(space.class_symmetry(group.scale)) else group
        for group in space.groups
    )
    return dataclasses.replace(space, groups=groups, layers=())


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("name", CASES)
def test_what_a_rule_claims_is_all_that_keeps_the_function(name: str) -> None:
    make, expected = CASES[name]
    module, inputs = make()
    randomized(module)
    with warnings.catch_warnings():
        warnings.simplefilter("error", TraceWarning)
        space = trace(module, inputs, strict=True)
    if not any(group.role == "fixed" for group in space.groups):
        assert space.coverage > 0.8
    found = kinds(space)
    assert {group: found.get(group) for group in expected} == expected
    assert_function_preserved(module, space, inputs, scale=(1e-2, 1e2), draws=1)
    assert WeightSpace.from_json(space.to_json()) == space
    assert not [text for text in space.absent_from_graph if not text.endswith(("bias", "_u", "_v"))]
    theta, outputs = module_outputs(module, space, (inputs,))
    space.graph(theta[0].float())
    form = space.canonicalize(theta)
    moved = space.act(space.sample_symmetry(1, generator=torch.Generator().manual_seed(0)), theta)
    assert (space.canonicalize(moved) - form).abs().max() < 1e-8
    assert largest_difference(outputs(form), outputs(theta)) < 1e-8
    if {SCALE, SIGN} & set(found.values()):
        with pytest.raises(AssertionError, match=r"changes the output"):
            assert_function_preserved(module, widened(space), inputs, scale=(0.1, 10.0))


@pytest.mark.parametrize("name", ["lstm", "rnn of relu", "softsign", "square", "batch norm without gain"])
def test_models_read_what_rules_place_on_the_graph(name: str) -> None:
    module, inputs = CASES[name][0]()
    randomized(module)
    space = trace(module, inputs)
    for model in ("neural_graph", "monomial_gnn"):
        assert_invariant(build_model(model, space, 1, channels=8), space, module=module, inputs=inputs)


def test_statistics_belong_to_the_neurons_before_a_norm() -> None:
    module, inputs = CASES["batch norm"][0]()
    space = trace(randomized(module), inputs)
    targets = {wire.kind: wire.targets for wire in space.wires if wire.parameter in ("1.running_mean", "1.running_var", "1.bias")}
    assert targets == {"mean": ("0",), "variance": ("0",), "bias": ("1",)}


def test_hidden_states_are_read_without_circles() -> None:
    module, inputs = CASES["gru from a parameter"][0]()
    space = trace(randomized(module), inputs)
    (start,) = (wire for wire in space.wires if wire.parameter == "start")
    assert start.kind == "bias"
    assert start.targets == ("layer.l0.hidden.state",)
    readers = {target for wire in space.wires if "layer.l0.hidden.state" in wire.sources for target in wire.targets}
    assert {"layer.l0.reset_gate[1]", "layer.l0.update_gate[1]", "layer.l0.new_gate[1]"} <= readers
    order = [group.name for group in space.topological_groups]
    assert all(order.index(source) < order.index(target) for wire in space.wires for source in wire.sources for target in wire.targets)


def test_maxima_are_no_sums_on_the_graph() -> None:
    module, inputs = CASES["maximum of two"][0]()
    kinds_of = {wire.kind for wire in trace(module.eval(), inputs).wires if wire.targets == ("maximum",)}
    added, _ = dense(lambda m, x: m.b(m.a(x) + m.c(x)))
    sums = {wire.kind for wire in trace(added.eval(), inputs).wires}
    assert kinds_of == {"operator"}
    assert "operator" not in sums


class Counted(nn.Module):
    """A layer whose outputs a saved counter multiplies, which is 0 in this checkpoint and another number in others."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 6), nn.Linear(6, 3)
        self.counter: Tensor
        self.register_buffer("counter", torch.zeros(6, dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.b(torch.tanh(self.a(x) * self.counter.to(x.dtype)) + torch.tanh(self.a(x)))
        return result


def test_claims_hold_whatever_saved_integers_are() -> None:
    module = randomized(Counted())
    space = trace(module, tokens())
    module.counter = torch.arange(6)
    assert kinds(space)["a"] == "none"
    assert_function_preserved(module, space, tokens())


def test_memory_that_nothing_was_written_to_is_no_constant() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        scale = torch.empty_like(torch.ones(6)).fill_(2.0)
        drawn = torch.rand_like(torch.ones(6)) * 0
        result: Tensor = m.b(m.a(x) * scale + drawn)
        return result

    module, inputs = dense(forward)
    assert_function_preserved(randomized(module), trace(module, inputs), inputs)
