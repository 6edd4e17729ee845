"""Programs: traced networks are run from their space alone, with the numbers of their modules, and files cannot make them do more."""

import dataclasses
import json
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks import NETWORKS, make
from wsgraph import SpaceMismatchError, TraceError, TraceWarning, WeightSpace, fold_batchnorm, trace
from wsgraph.convert.tracing import TRACED_OPERATORS, pointwise, register_traced_operator
from wsgraph.nn import build_model
from wsgraph.space import forms
from wsgraph.space.evaluate import tensors_of
from wsgraph.space.program import Constant, Program
from wsgraph.space.program_operators import Dtype
from wsgraph.testing import assert_function_preserved, assert_invariant


def quietly(module: nn.Module, *inputs: Any) -> WeightSpace:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TraceWarning)
        return trace(module.eval(), *inputs)


def _space(name: str) -> WeightSpace:
    module, inputs = make(name)
    return quietly(module, *inputs)


SPACES = {name: _space(name) for name in NETWORKS}


def double(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: double(item) for key, item in value.items()}
    return tuple(map(double, value)) if isinstance(value, tuple) else value


def check(module: nn.Module, *inputs: Any, networks: int = 2) -> WeightSpace:
    """Trace in float32, run several networks in float64, and compare with the module in float64."""
    space = quietly(module, *inputs)
    assert space.program is not None, space.unprogrammed
    space = WeightSpace.from_json(space.to_json())
    state = module.state_dict()
    generator = torch.Generator().manual_seed(0)
    scales = 1 + 0.2 * torch.rand(networks, space.num_params, generator=generator, dtype=torch.float64)
    theta = space.flatten(state).double()
    for param in space.params:  # integers are no weights
        if param.dtype and not getattr(torch, param.dtype).is_floating_point:
            scales[:, space.slices[param.name]] = 1
    thetas = theta * scales
    outputs = space.evaluate(thetas, *inputs)
    reference = module.double()
    for i, row in enumerate(thetas):
        weights = {key: tensor.to(reference.state_dict()[key].dtype) for key, tensor in space.unflatten(row).items()}
        with torch.no_grad():
            expected = torch.func.functional_call(reference, weights, double(inputs))
        same(outputs, expected, i)
    return space


def same(outputs: Any, expected: Any, network: int) -> None:
    """Compare one network's outputs, in the same structure, with what its module returns."""
    if isinstance(expected, Tensor):
        assert outputs[network].shape == expected.shape
        torch.testing.assert_close(outputs[network], expected, rtol=1e-12, atol=1e-12)
    elif isinstance(expected, dict):
        assert isinstance(outputs, dict)
        assert outputs.keys() == expected.keys()
        for key, value in expected.items():
            same(outputs[key], value, network)
    elif isinstance(expected, (list, tuple)):
        assert type(outputs) in (list, tuple)
        for output, value in zip(outputs, expected, strict=True):
            same(output, value, network)
    else:
        assert outputs == expected


# == The same numbers as the module ==


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_run_as_their_modules(name: str) -> None:
    module, inputs = make(name)
    space = check(module, *inputs, networks=3)
    assert space == SPACES[name]
    assert hash(space) == hash(SPACES[name])
    assert space.unlayered == SPACES[name].unlayered != ""
    assert space.program is not None
    assert not space.program.__dict__.get("_one_by_one")
    assert pickle.loads(pickle.dumps(space)) == space


@pytest.mark.parametrize("name", NETWORKS)
def test_any_number_of_inputs(name: str) -> None:
    """Rows beyond the traced batch are run in chunks; gradients come through to weights and inputs."""
    module, _ = make(name)
    space = SPACES[name]
    module = module.double()
    theta = space.flatten(module.state_dict())[None]
    for count in (1, 5):
        inputs = space.example_inputs(count, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        inputs = inputs if isinstance(inputs, tuple) else (inputs,)
        for leaf in inputs:
            assert len(leaf) == count
            leaf.requires_grad_(leaf.is_floating_point())
        weights = theta.clone().requires_grad_()
        outputs = tensors_of(space.evaluate(weights.expand(2, -1), *inputs))
        expected = tensors_of(module(*inputs))
        for output, value in zip(outputs, expected, strict=True):
            torch.testing.assert_close(output, torch.stack([value, value]), rtol=1e-12, atol=1e-12)
        floating = [leaf for leaf in inputs if leaf.is_floating_point()]
        loss = sum((output**2).sum() for output in outputs)
        wanted = 2 * sum((value**2).sum() for value in expected)
        assert isinstance(loss, Tensor)
        assert isinstance(wanted, Tensor)
        gradients = torch.autograd.grad(loss, [weights, *floating])
        named = {key: value for key, value in module.named_parameters() if key in space.program.parameters}  # type: ignore[union-attr]
        own = torch.autograd.grad(wanted, [*named.values(), *floating])
        for (key, value), gradient in zip(named.items(), own, strict=False):
            torch.testing.assert_close(gradients[0][0, space.slices[key]].view_as(value), gradient, rtol=1e-9, atol=1e-10)
        for one, other in zip(gradients[1:], own[len(named) :], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


class Net(nn.Module):
    """A linear layer or others by name, and a function of the module and its inputs."""

    def __init__(self, function: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.function, self.a = function, nn.Linear(4, 6)
        for name, part in parts.items():
            if isinstance(part, Tensor):
                self.register_buffer(name, part, persistent=name.startswith("saved"))
            else:
                setattr(self, name, part)

    def forward(self, *inputs: Any) -> Any:
        return self.function(self, *inputs)


def written(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    h[:, 0] = 1.0
    h[:, 1:3] += x[:, :2]
    view = h[:, 3:]
    view.mul_(2)
    return F.dropout(F.silu(h, inplace=True), 0.2, training=False, inplace=True).relu_()


def positions(m: Any, x: Tensor) -> Tensor:
    frequencies = torch.exp(torch.arange(3).float() * -0.7)  # fixed numbers in float32, whatever the dtype of the network
    angles = torch.linspace(0, 1, len(x))[:, None] * frequencies
    return m.a(x) + torch.cat([angles.sin(), angles.cos()], dim=-1) + torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])


def cast(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    state = torch.zeros(len(x), 6, dtype=h.dtype)
    return (h.to(m.a.weight.dtype) + state).type_as(x) * torch.ones_like(h) + h.new_full((6,), 0.5)


def switched(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        scale = m.a.weight.norm() * (m.bands * 3.3).sin().sum()
    with torch.autocast("cpu", enabled=False):
        return m.a(x) / scale


def gathered(m: Any, ids: Tensor, mask: Tensor) -> Tensor:
    h = m.table(ids)[:, m.saved_order]
    return torch.where(mask[..., None], h, m.a.weight.sum()).sum(1)


def structured(m: Any, x: dict[str, Any], n: int, nothing: None) -> Any:
    h = m.a(x["points"][0]) * n
    return {"out": (h, [h.amax(1), h.argmax(1)]), "n": n, "other": nothing}


def _tied() -> nn.Module:
    net = Net(lambda m, x: m.c(torch.relu(m.b(m.a(x)))), b=nn.Linear(6, 4))
    net.c = net.a
    return net


IDS = torch.tensor([[1, 0, 2], [4, 3, 3]])
ODD: dict[str, tuple[nn.Module, tuple[Any, ...]]] = {
    "writes to its tensors": (Net(written), (torch.randn(3, 4),)),
    "numbers made in forward": (Net(positions), (torch.randn(3, 4),)),
    "writes and drops out in place": (Net(lambda m, x: F.dropout(m.a(x).relu_(), training=False, inplace=True) * 2), (torch.randn(3, 4),)),
    "casts and tensors like others": (Net(cast), (torch.randn(3, 4),)),
    "modes switched within": (Net(switched, bands=torch.tensor([0.1, 0.7, 0.3])), (torch.randn(3, 4),)),
    "tables, orders and masks": (
        Net(gathered, table=nn.Embedding(5, 6), saved_order=torch.tensor([2, 0, 1])),
        (IDS, torch.tensor([[True, False, True], [True, True, False]])),
    ),
    "structures": (Net(structured), ({"points": (torch.randn(3, 4),)}, 3, None)),
    "tied": (_tied(), (torch.randn(3, 4),)),
    "lstm cell": (Net(lambda m, x: m.c(m.a(x), (m.a(x), m.a(x).tanh()))[0], c=nn.LSTMCell(6, 6)), (torch.randn(3, 4),)),
    "instance norm": (Net(lambda m, x: m.n(m.a(x)), n=nn.InstanceNorm1d(3, affine=True)), (torch.randn(2, 3, 4),)),
    "gru": (Net(lambda m, x: m.gru(m.a(x)), gru=nn.GRU(6, 3, 2, bidirectional=True)), (torch.randn(5, 2, 4),)),
    "rnn": (Net(lambda m, x: m.rnn(m.a(x))[0].sum(1), rnn=nn.RNN(6, 3, batch_first=True, nonlinearity="relu")), (torch.randn(2, 5, 4),)),
    "projected lstm": (Net(lambda m, x: m.l(m.a(x))[1], l=nn.LSTM(6, 5, proj_size=2)), (torch.randn(5, 2, 4),)),
    "spectrum": (Net(lambda m, x: torch.fft.rfft(m.a(x)).abs()), (torch.randn(3, 4),)),
    "transformer layer": (nn.TransformerEncoderLayer(4, 2, 6, batch_first=True), (torch.randn(2, 3, 4),)),
    "batch statistics": (Net(lambda m, x: m.n(m.a(x)), n=nn.BatchNorm1d(6, track_running_stats=False)), (torch.randn(3, 4),)),
    "vector": (Net(lambda m, x: m.a(x)), (torch.randn(4),)),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("name", ODD)
def test_odd_networks_are_run_as_their_modules(name: str) -> None:
    torch.manual_seed(0)
    module, inputs = ODD[name]
    for part in module.float().state_dict().values():
        if part.is_floating_point():
            nn.init.normal_(part, std=0.5)
    space = check(module.eval(), *inputs)
    assert_function_preserved(None, space, inputs, draws=1)


def test_operators_without_a_rule_for_batches_are_run_one_network_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(forms.BATCHED, "aten::lstm.input")
    module, inputs = make("lstm")
    space = check(module, *inputs, networks=3)
    assert space.program is not None
    assert space.program.__dict__["_one_by_one"]
    x = torch.randn(5, 5, 4).double()
    theta = space.flatten(module.state_dict())[None]
    torch.testing.assert_close(space.evaluate(theta, x)[0], module(x), rtol=1e-12, atol=1e-12)


# Writes to a part of a hidden layer, whose operators torch differentiates and batches in place alone.
ROWS, COLUMNS = torch.tensor([0, 1]), torch.tensor([True, False, False, True, True, False])


def _assigned(where: Any, value: Callable[[Tensor], Any]) -> Callable[[Tensor, Tensor], Tensor]:
    def write(h: Tensor, g: Tensor) -> Tensor:
        h[where] = value(g)
        return h

    return write


def _buffer(h: Tensor, g: Tensor) -> Tensor:
    made = torch.zeros_like(h)
    made[:, :2] = h[:, :2]
    made[:, 2:] += g[:, 2:]
    return made


def _swapped(h: Tensor, g: Tensor) -> Tensor:
    h[:, :3], h[:, 3:] = h[:, 3:].clone(), h[:, :3].clone()
    return h


def _viewed(write: Callable[[Tensor, Tensor], Any]) -> Callable[[Tensor, Tensor], Tensor]:
    def run(h: Tensor, g: Tensor) -> Tensor:
        write(h, g)
        return h

    return run


WRITES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "slice": _assigned((slice(None), slice(4)), lambda g: g[:, :4]),
    "slice with a number": _assigned((slice(None), slice(4)), lambda g: 0.5),
    "slice with one tensor": _assigned((slice(None), slice(4)), lambda g: g.mean()),
    "slice to the end": _assigned((..., slice(-2, None)), lambda g: g[:, :2]),
    "every second": _assigned((slice(None), slice(None, None, 2)), lambda g: g[:, :3]),
    "column": _assigned((slice(None), 3), lambda g: g[:, 1]),
    "columns": _assigned((slice(None), ROWS), lambda g: g[:, :2]),
    "mask": _assigned((slice(None), COLUMNS), lambda g: g[:, :3]),
    "filled with a tensor": _viewed(lambda h, g: h.index_fill_(1, ROWS, g.mean())),
    "entries": _viewed(lambda h, g: h.index_put_((ROWS, ROWS), g[0, :2], accumulate=True)),
    "numbered": _viewed(lambda h, g: h.put_(ROWS, g[0, :2])),
    "masked fill": _viewed(lambda h, g: h.masked_fill_(h > 0, g.mean())),
    "masked scatter": _viewed(lambda h, g: h.masked_scatter_(COLUMNS.expand(3, 6), g)),
    "scatter": _viewed(lambda h, g: h.scatter_(1, ROWS.expand(3, 2), g[:, :2])),
    "whole": _viewed(lambda h, g: h.copy_(g[0])),
    "zeros": _viewed(lambda h, g: h[:, 0].zero_()),
    "diagonal": _viewed(lambda h, g: h.diagonal().copy_(g[0, :3])),
    "transposed view": _viewed(lambda h, g: h.t()[:4].copy_(g.t()[:4])),
    "every second view": _viewed(lambda h, g: h.view(3, 3, 2)[:, :, 0].copy_(g[:, :3])),
    "buffer": _buffer,
    "swapped": _swapped,
}


@pytest.mark.parametrize("name", WRITES)
def test_writes_to_tensors_have_the_gradients_of_the_module(name: str) -> None:
    torch.manual_seed(0)
    module = Net(lambda m, x: m.b(WRITES[name](m.a(x).tanh() * 2, m.a(x).sin())), b=nn.Linear(6, 2)).double().eval()
    x = torch.randn(3, 4, dtype=torch.float64).requires_grad_()
    space = quietly(module, x)
    assert space.program is not None, space.unprogrammed
    names, parameters = zip(*module.named_parameters(), strict=True)
    *expected, of_inputs = torch.autograd.grad(module(x).square().sum(), [*parameters, x])
    theta = space.flatten(module.state_dict())
    thetas = torch.stack([torch.randn_like(theta), theta]).requires_grad_()
    weights = space.flatten(dict(zip(names, expected, strict=True)))
    for given in (thetas, thetas[1:]):
        found, inputs = torch.autograd.grad(space.evaluate(given, x)[-1].square().sum(), (thetas, x))
        torch.testing.assert_close(found[1], weights, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(inputs, of_inputs, rtol=1e-10, atol=1e-10)
    # As probes are: fixed weights, learned inputs.
    (inputs,) = torch.autograd.grad(space.evaluate(theta[None], x).square().sum(), x)
    torch.testing.assert_close(inputs, of_inputs, rtol=1e-10, atol=1e-10)
    assert not space.program.__dict__.get("_one_by_one")


def test_probes_learn_the_inputs_of_networks_that_write_to_tensors() -> None:
    space = quietly(Net(lambda m, x: m.b(WRITES["slice"](m.a(x).tanh() * 2, m.a(x))), b=nn.Linear(6, 2)), torch.randn(3, 4))
    model = build_model("monomial_gnn", space, 1, probes=2)
    model(space.batch(space.sample(3))).sum().backward()
    grads = [p.grad for name, p in model.named_parameters() if "inputs" in name]
    assert grads
    assert all(grad is not None and bool(grad.abs().sum() > 0) for grad in grads)


@pytest.mark.parametrize("name", ["bilinear", "gru cell", "rectifiers", "weight norm"])
def test_several_networks_are_run_at_once_without_warnings(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """What torch loops over, it warns of, from outside of Python."""
    networks: dict[str, Callable[[], nn.Module]] = {
        "bilinear": lambda: Net(lambda m, x: m.c(m.a(x), x), c=nn.Bilinear(6, 4, 5)),
        "gru cell": lambda: Net(lambda m, x: m.c(x, m.a(x)), c=nn.GRUCell(4, 6)),
        "rectifiers": lambda: Net(lambda m, x: F.rrelu(m.a(x)).exp()),
        "weight norm": lambda: Net(lambda m, x: m.c(m.a(x)).exp(), c=nn.utils.parametrizations.weight_norm(nn.Linear(6, 5))),
    }
    space = check(networks[name](), torch.randn(3, 4), networks=3)
    assert space.program is not None
    assert not space.program.__dict__.get("_one_by_one")
    assert capfd.readouterr().err == ""


def test_gradients_stop_where_the_module_stops_them() -> None:
    module, x = Net(lambda m, x: m.a(x) + (m.a(x).round() - m.a(x)).detach()).eval(), torch.randn(3, 4)
    space = quietly(module, x)
    theta = space.flatten(module.state_dict())[None].requires_grad_()
    (found,) = torch.autograd.grad(space.evaluate(theta, x).sum(), theta)
    expected = torch.autograd.grad(module(x).sum(), list(module.parameters()))
    torch.testing.assert_close(space.unflatten(found[0])["a.weight"], expected[0])
    assert found.abs().sum() > 0


def test_operators_of_other_libraries_are_run_once_they_are_registered() -> None:
    @torch.library.custom_op("wsgraph_tests::halved", mutates_args=())
    def halved(x: Tensor) -> Tensor:
        return x / 2

    halved.register_fake(torch.empty_like)
    module, x = Net(lambda m, x: halved(m.a(x)).cumsum(1)), torch.randn(3, 4)
    space = quietly(module, x)
    assert space.program is None
    assert "operator that programs cannot name (wsgraph_tests::halved in the module itself)" in space.unprogrammed
    register_traced_operator("wsgraph_tests::halved", pointwise(positive=True, sign=True))
    try:
        check(module, x)
    finally:
        del TRACED_OPERATORS["wsgraph_tests::halved"]


# == Inputs ==


def test_inputs_of_other_shapes_are_refused() -> None:
    space = SPACES["resnet"]
    theta = space.sample(1)
    for inputs, message in (
        ((torch.randn(2, 3, 9, 8),), r"traced with inputs input \[2, 3, 8, 8\].*or another number of rows than 2.*got \[2, 3, 9, 8\]"),
        ((torch.randn(3, 8, 8),), r"give it inputs of these shapes"),
        ((torch.randn(2, 3, 8, 8), 1), r"of the same structure \(got \[2, 3, 8, 8\], 1\)"),
        (([torch.randn(2, 3, 8, 8)],), r"of the same structure \(got list\(\[2, 3, 8, 8\]\)\)"),
        ((torch.randn(2, 3, 8, 8).numpy(),), r"of the same structure \(got ndarray\)"),
        ((torch.ones(2, 3, 8, 8, dtype=torch.long),), r"Expected floating point numbers as input 'input'.*got integers, torch.int64"),
    ):
        with pytest.raises(ValueError, match=message):
            space.evaluate(theta, *inputs)
    with pytest.raises(ValueError, match="of the same structure"):
        SPACES["nerf"].evaluate(SPACES["nerf"].sample(1), torch.randn(3, 3))
    with pytest.raises(ValueError, match="give it inputs of these shapes"):
        SPACES["nerf"].evaluate(SPACES["nerf"].sample(1), torch.randn(3, 3), torch.randn(4, 3))
    with pytest.raises(ValueError, match=r"Step .*aten::embedding, does not run on these inputs: index out of range"):
        SPACES["gpt"].evaluate(SPACES["gpt"].sample(1), torch.full((2, 5), 99))
    with pytest.raises(ValueError, match=r"Expected one tensor of inputs.*got 2 arguments"):
        WeightSpace.mlp([2, 1]).evaluate(WeightSpace.mlp([2, 1]).sample(1), torch.ones(1, 2), torch.ones(1, 2))


NUMBERS = {
    "floating point numbers": torch.float64,
    "complex numbers": torch.complex64,
    "integers": torch.int32,
    "booleans": torch.bool,
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_inputs_of_another_kind_of_numbers_are_refused(kind: str) -> None:
    """Floating point numbers of any precision are those of the weights; all other kinds mean something else."""

    def forward(m: Any, x: Any, scale: Tensor | None = None) -> Tensor:
        h = m.t(x) if kind == "integers" else m.a(torch.where(x, 1.0, 2.0)) if kind == "booleans" else m.a(x.real)
        return h.cumsum(1)

    traced = {"floating point numbers": torch.float32, "integers": torch.int64}.get(kind, NUMBERS[kind])
    space = quietly(Net(forward, t=nn.Embedding(5, 3)), torch.ones(2, 4, dtype=traced))
    theta = space.sample(1)
    assert space.evaluate(theta, torch.ones(2, 4, dtype=NUMBERS[kind]))[0].isfinite().all()
    for other, dtype in NUMBERS.items():
        if other != kind:
            message = rf"Expected {kind} as input 'inputs_0'.*got {other}, {dtype}\): convert it with .to\({traced}\), or trace the network"
            with pytest.raises(ValueError, match=message):
                space.evaluate(theta, torch.ones(2, 4, dtype=dtype))


def test_integers_that_the_traced_dtype_cannot_hold_are_refused() -> None:
    space = quietly(Net(lambda m, ids: m.t(ids).cumsum(1), t=nn.Embedding(5, 3)), torch.ones(2, 4, dtype=torch.int32))
    theta, ids = space.sample(1), torch.full((2, 4), 3)
    torch.testing.assert_close(space.evaluate(theta, ids), space.evaluate(theta, ids.int()))
    with pytest.raises(ValueError, match=r"Expected integers that torch.int32 can hold as input.*got larger ones, of torch.int64"):
        space.evaluate(theta, ids + 2**32)


def test_inputs_that_networks_of_layers_cannot_read_are_refused() -> None:
    mlp, cnn = WeightSpace.mlp([4, 3, 2]), WeightSpace.cnn([2, 3], [5], kernel_size=3)
    for space, inputs, message in (
        (mlp, torch.ones(2, 4, dtype=torch.long), r"Expected floating point numbers as inputs of the network .*got integers, torch.int64"),
        (mlp, torch.ones(2, 4, dtype=torch.bool), "got booleans"),
        (mlp, torch.ones(2, 4, dtype=torch.complex64), "got complex numbers"),
        (mlp, torch.ones(2, 3), r"Expected inputs of shape \[M, 4, \*positions\] for .*got \[2, 3\]"),
        (mlp, torch.ones(4), r"got \[4\]"),
        (cnn, torch.ones(2, 3, 8, 8), r"Expected inputs of shape \[M, 2, \*positions\]"),
        (cnn, torch.ones(2, 2, 2, 2), r"does not run on inputs of shape \[2, 2, 2, 2\]: Calculated padded input size.*See example_inputs"),
        (cnn, [1.0], "Expected one tensor of inputs.*got a list"),
    ):
        with pytest.raises(ValueError, match=message):
            space.evaluate(space.sample(2), inputs)
    thetas, inputs = mlp.sample(2, dtype=torch.float64), torch.randn(3, 4)
    torch.testing.assert_close(mlp.evaluate(thetas, inputs), mlp.evaluate(thetas, inputs.double()))


# == Inputs by name ==


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor, *, mask: Tensor, strict: bool = False) -> Tensor:
        """A mask, and an option that is called as one of trace."""
        return self.b(torch.relu(self.a(x)).masked_fill(mask, 0)) * (2 if strict else 1)


def test_inputs_by_name_are_given_by_name_or_behind_the_others() -> None:
    module, x, mask = Masked().double().eval(), torch.randn(3, 4).double(), torch.tensor([[True], [False], [False]])
    space = WeightSpace.from_json(trace(module, x, kwargs={"strict": True, "mask": mask}).to_json())
    theta, expected = space.flatten(module.state_dict())[None], module(x, mask=mask, strict=True)
    assert space.program is not None
    assert space.program.keywords == ("strict", "mask")
    assert space.program.renamed({name: name for name in space.program.parameters}).keywords == ("strict", "mask")
    given: tuple[tuple[tuple[Any, ...], dict[str, Any]], ...] = (
        ((x,), {"mask": mask, "strict": True}),
        ((x, True), {"mask": mask}),
        ((x, True, mask), {}),
        (((x, True, mask),), {}),
        ((torch.cat([x, x]),), {"mask": torch.cat([mask, mask]), "strict": True}),
    )
    for args, kwargs in given:
        torch.testing.assert_close(space.evaluate(theta, *args, **kwargs)[0, :3], expected, rtol=1e-12, atol=1e-12)
    refused: tuple[tuple[tuple[Any, ...], dict[str, Any], str], ...] = (
        ((x,), {"mask": mask}, r"1 by position and strict, mask by name. Give it the same \(got 1 by position and mask by name\)"),
        ((x,), {"mask": mask, "strict": True, "other": 1}, "got 1 by position and mask, strict, other by name"),
        ((), {"x": x, "mask": mask, "strict": True}, "got 0 by position and x, mask, strict by name"),
        ((x, True, mask), {"mask": mask}, "got 3 by position and mask by name"),
        ((x,), {"mask": mask, "strict": False}, "inputs of the same structure"),
        ((x, mask), {}, "inputs of the same structure"),
    )
    for args, kwargs, message in refused:
        with pytest.raises(ValueError, match=message):
            space.evaluate(theta, *args, **kwargs)
    with pytest.raises(ValueError, match=r"none by name. Give it the same"):
        SPACES["resnet"].evaluate(SPACES["resnet"].sample(1), torch.randn(2, 3, 8, 8), mask=mask)
    with pytest.raises(ValueError, match=r"by position for .*got 1 arguments, x by name"):
        WeightSpace.mlp([2, 1]).evaluate(WeightSpace.mlp([2, 1]).sample(1), x=torch.ones(1, 2))


def test_checks_and_models_take_networks_with_inputs_by_name() -> None:
    module, x, mask = Masked().eval(), torch.randn(3, 4), torch.tensor([[True], [False], [False]])
    space = trace(module, x, kwargs={"mask": mask})
    given = space.example_inputs(5)
    assert [tuple(part.shape) for part in given] == [(5, 4), (5, 1)]
    assert_function_preserved(module, space, x, kwargs={"mask": mask})
    assert_function_preserved(module, space, (x, mask))
    assert_function_preserved(module, space)
    assert_function_preserved(None, space, x, kwargs={"mask": mask})
    assert_invariant(build_model("monomial_gnn", space, 1, probes=2), space, module=module, inputs=(x, mask))
    with pytest.raises(TraceError, match=r"Expected inputs by name, mask, behind the others \(got 0 inputs\)"):
        assert_function_preserved(module, space, ())
    with pytest.raises(TraceError, match=r"does not run in float64 on the inputs \(.3, 4. float32, mask=3\): .*as kwargs="):
        assert_function_preserved(module, space, x, kwargs={"mask": 3})


def test_a_network_of_layers_whose_input_has_a_name() -> None:
    class Named(nn.Sequential):
        def forward(self, *, x: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x)

    module, x = Named(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)).eval(), torch.randn(3, 4)
    space = trace(module, kwargs={"x": x}, fold_batchnorm=True)
    assert space.is_chain
    folded = fold_batchnorm(module, kwargs={"x": x})
    assert_function_preserved(folded, space, kwargs={"x": x})
    torch.testing.assert_close(space.evaluate(space.flatten(folded.state_dict())[None], x)[0], module(x=x))


@pytest.mark.parametrize("name", ["gru", "batch statistics"])
def test_a_first_dimension_that_is_no_batch_is_not_cut_into_chunks(name: str) -> None:
    module, inputs = ODD[name]
    space = quietly(module.float(), *inputs)
    theta = space.flatten(module.state_dict())[None]
    more = torch.cat([inputs[0], inputs[0]])
    with pytest.raises(ValueError, match="their first dimension is no batch"):
        space.evaluate(theta, more)


def test_example_inputs_are_rows_of_the_tables_that_they_are_looked_up_in() -> None:
    ids = SPACES["gpt"].example_inputs(200, generator=torch.Generator().manual_seed(0))
    assert ids.dtype == torch.long
    assert (int(ids.min()), int(ids.max())) == (0, 10)
    module, inputs = ODD["tables, orders and masks"]
    ids, mask = quietly(module.float(), *inputs).example_inputs(50)
    assert (int(ids.min()), int(ids.max()), bool(mask.all())) == (0, 4, True)
    one_hot = Net(lambda m, ids: m.a(F.one_hot(ids, 4).to(m.a.weight.dtype)))
    assert int(quietly(one_hot, torch.tensor([0, 1])).example_inputs(50).max()) == 3


# == Spaces without a program ==


def test_what_cannot_be_run_says_why() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 6)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.a(x)) + torch.rand_like(x[:, :1])

    space = quietly(Noisy(), torch.randn(3, 4))
    assert space.program is None
    assert "Cannot be run from its weights alone, because it draws random numbers (rand_like in the module itself)." in space.report()
    assert WeightSpace.from_json(space.to_json()).unprogrammed == space.unprogrammed
    with pytest.raises(SpaceMismatchError, match=r"evaluate\(\) has to run.*because it draws random numbers.*Give the module"):
        space.evaluate(space.sample(1), torch.randn(3, 4))


# Random whatever the mode of the module is: the operator that says so, and the function of a hidden layer.
RANDOM: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "dropout": ("dropout", lambda h: F.dropout(h, 0.5)),
    "dropout in place": ("dropout", lambda h: F.dropout(h * 1, 0.5, inplace=True)),
    "dropout without gradients": ("dropout", torch.no_grad()(lambda h: F.dropout(h, 0.5))),
    "alpha dropout": ("alpha_dropout", lambda h: F.alpha_dropout(h, 0.5, training=True)),
    "dropout of channels": ("feature_dropout", lambda h: F.dropout1d(h, 0.5)),
    "alpha dropout of channels": ("feature_alpha_dropout", lambda h: F.feature_alpha_dropout(h, 0.5, training=True)),
    "native dropout": ("native_dropout", lambda h: torch.native_dropout(h, 0.5, True)[0]),
    "rectifier": ("rrelu", lambda h: F.rrelu(h, training=True)),
    "attention": ("scaled_dot_product_attention", lambda h: F.scaled_dot_product_attention(h, h, h, dropout_p=0.3)),
    "noise": ("rand_like", lambda h: h + torch.rand_like(h)),
    "noise in place": ("uniform", lambda h: h + torch.empty(6).uniform_()),
    "coins": ("bernoulli", lambda h: torch.bernoulli(h.sigmoid())),
    "draws": ("multinomial", lambda h: h * torch.multinomial(h.softmax(1), 1)),
    "gumbel": ("exponential", lambda h: F.gumbel_softmax(h, hard=True)),
    "order": ("randperm", lambda h: h[:, torch.randperm(6)]),
}


@pytest.mark.parametrize("name", RANDOM)
def test_random_networks_are_not_run_as_if_they_were_none(name: str) -> None:
    operator, function = RANDOM[name]
    space = quietly(Net(lambda m, x: m.b(function(torch.relu(m.a(x)))), b=nn.Linear(6, 2)), torch.randn(3, 4))
    assert not space.layers
    with pytest.raises(SpaceMismatchError, match=rf"because it draws random numbers \({operator} in the module itself\)"):
        space.evaluate(space.sample(1), torch.randn(3, 4))
    if "alpha" in name:  # what is dropped becomes another number than 0
        assert not any(space.class_symmetry(label).positive for label in space.scale_classes)


def test_operators_that_could_be_random_and_are_not_are_run() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        h = F.rrelu(F.dropout(m.a(x), 0.0, training=True).cumsum(1))
        h = F.feature_alpha_dropout(F.alpha_dropout(h, 0.5, training=False), 0.5, training=False)
        _ = torch.rand_like(x)  # which nothing reads
        return F.scaled_dot_product_attention(h, h, h, dropout_p=0.0)

    check(Net(forward), torch.randn(3, 4))


def test_checks_of_random_modules_say_that_they_are_random() -> None:
    module = Net(lambda m, x: m.b(F.dropout(torch.relu(m.a(x)), 0.5)), b=nn.Linear(6, 2)).eval()
    x = torch.randn(3, 4)
    with pytest.raises(AssertionError, match=r"The network draws random numbers.*outputs differ from call to call.*training=self.training"):
        assert_function_preserved(module, trace(module, x), x)


def test_spaces_of_earlier_files_say_what_to_do() -> None:
    space = SPACES["resnet"]
    document = json.loads(space.to_json())
    for key in ("program", "unlayered"):
        del document[key]
    old = WeightSpace.from_json(json.dumps(document))
    assert old != space
    assert old.matches(space)
    assert json.loads(old.to_json()).keys() == document.keys()
    with pytest.raises(SpaceMismatchError, match=r"read from a file of an earlier version.*Trace it again with wsgraph.trace"):
        old.evaluate(old.sample(1), torch.randn(2, 3, 8, 8))
    with pytest.raises(SpaceMismatchError, match="Trace it again"):
        old.example_inputs(2)
    with pytest.raises(ValueError, match="give it as 'module'"):
        assert_invariant(lambda batch: batch.thetas().sum(1), old)
    with pytest.raises(SpaceMismatchError, match="without a module has to run networks"):
        assert_function_preserved(None, old)
    assert "program" not in json.loads(WeightSpace.mlp([2, 3]).to_json())


def test_networks_that_compute_other_functions_are_not_equal() -> None:
    def space(function: Callable[[Tensor], Tensor]) -> WeightSpace:
        return quietly(Net(lambda m, x: function(m.a(x)) * 2), torch.randn(2, 4))

    one, other = space(lambda h: torch.cumsum(h, 1)), space(lambda h: torch.cumprod(h, 1))
    assert one != other
    assert one.architecture != other.architecture
    assert one.digest != other.digest
    named = dataclasses.replace(
        one,
        params=tuple(dataclasses.replace(param, name=f"module.{param.name}") for param in one.params),
        program=one.program and one.program.renamed({name: f"module.{name}" for name in one.program.parameters}),
        connections=tuple(dataclasses.replace(c, parameter=c.parameter and f"module.{c.parameter}") for c in one.connections),
    )
    assert named.architecture == one.architecture


# == Files that anybody may have written ==


def _program(change: Callable[[dict[str, Any]], None]) -> str:
    document = json.loads(SPACES["gpt"].to_json())
    change(document["program"])
    return json.dumps(document)


def _set(*path: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: Any) -> None:
        *inner, last, value = path
        for key in inner:
            data = data[key]
        data[last] = value

    return change


LINEAR = {"input": {"input": 0}, "weight": {"parameter": "wte.weight"}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("steps", 0, ["aten::from_file", "default", {"filename": "/dev/null"}]), "'aten::from_file' that is not among those"),
        (_set("steps", 0, ["aten::rand", "default", {"size": [2]}]), "'aten::rand' that is not among those"),
        (_set("steps", 0, ["prims::device_put", "default", {}]), "not among those that programs may name"),
        (_set("steps", 0, ["os::system", "default", {}]), "not among those that programs may name"),
        (_set("steps", 0, ["aten::relu", "out", {"self": {"input": 0}}]), "aten::relu.out (writes to its arguments|lacks)|no overload"),
        (_set("steps", 0, ["aten::relu", "__class__", {"self": {"input": 0}}]), "has no overload '__class__'"),
        (_set("steps", 0, ["aten::linear", "default", {"input": {"input": 0}}]), "lacks its argument 'weight'"),
        (_set("steps", 0, ["aten::linear", "default", LINEAR | {"more": 1}]), "has no argument 'more'"),
        (_set("steps", 0, ["aten::linear", "default", LINEAR | {"bias": "text"}]), r"Expected Optional\[Tensor\] as argument 'bias'"),
        (_set("steps", 0, ["aten::relu", "default", {"self": {"step": 0}}]), "step 0 of the program reads step 0, but has 0"),
        (_set("steps", 0, ["aten::relu", "default", {"self": {"step": 7}}]), "reads step 7"),
        (_set("steps", 0, ["aten::relu", "default", {"self": {"step": -1}}]), "reads step -1"),
        (_set("steps", 0, ["aten::relu", "default", {"self": {"input": 1}}]), "reads input 1, but has 1"),
        (_set("steps", 0, ["aten::relu", "default", {"self": {"parameter": "none"}}]), "reads an unknown parameter 'none'"),
        (_set("steps", 0, ["aten::relu", "default", {"self": {"module": "os"}}]), "Expected a reference"),
        (_set("steps", 0, ["aten::relu", "default"]), "is not written as one"),
        (_set("steps", 0, [["aten::relu"], "default", {}]), "Expected text"),
        (_set("steps", 0, ["aten::zeros", "default", {"size": [2**70]}]), r"Expected List\[int\]"),
        (_set("keywords", ["a", "b"]), "distinct names of at most 1 arguments"),
        (_set("keywords", [1]), "Expected text"),
        (_set("keywords", 3), "is not written as one"),
        (_set("outputs", {"step": 10**6}), "the program's outputs reads step 1000000"),
        (_set("inputs", 0, 1, [2**40]), "Expected the shape of input 'ids'"),
        (_set("inputs", 0, 1, [-1]), "Expected the shape of input 'ids'"),
        (_set("inputs", 0, 2, "load"), "Expected a dtype of torch"),
        (_set("constants", 0, 0, [2**34]), "take at most"),
        (_set("constants", 0, 0, [3, 3]), "A constant of the network's program holds"),
        (_set("constants", 0, 2, "!"), "cannot be read"),
        (_set("constants", 0, 1, {"dtype": "Tensor"}), "Expected a dtype of torch"),
        (lambda data: data.pop("outputs"), "Expected a program with inputs, call, steps"),
        (lambda data: data.update(code="import os"), "Expected a program with inputs, call, steps"),
    ],
)
def test_hostile_programs_are_refused(change: Callable[[dict[str, Any]], None], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WeightSpace.from_json(_program(change))


def test_results_of_absurd_size_are_refused_before_they_are_made() -> None:
    data: dict[str, Any] = {
        "inputs": [["x", [2, 4], "float32"]],
        "call": ["tuple", {"input": 0}],
        "steps": [["aten::expand", "default", {"self": {"parameter": "a.weight"}, "size": [2**40, 6, 4]}]],
        "outputs": {"step": 0},
        "constants": [],
    }
    document = json.loads(quietly(Net(lambda m, x: m.a(x).cumsum(1)), torch.randn(2, 4)).to_json())
    space = WeightSpace.from_json(json.dumps(document | {"program": data}))
    with pytest.raises(ValueError, match=r"Step 0 of the program, aten::expand, makes a tensor of shape \[1099511627776, 6, 4\]"):
        space.evaluate(space.sample(1), torch.randn(2, 4))


def test_constants_are_stored_exactly() -> None:
    for tensor in (
        torch.randn(3, 4),
        torch.randn(2, 3).t(),
        torch.tensor([[True, False]]),
        torch.tensor(7),
        torch.zeros(0, 3),
        torch.full((5, 5), 0.1, dtype=torch.float64),
        torch.tensor([1.5, -2]).bfloat16(),
        torch.tensor([1 + 2j]),
    ):
        constant = Constant.of(tensor, Dtype(str(tensor.dtype).removeprefix("torch.")))
        assert torch.equal(constant.tensor(), tensor)
        assert constant.tensor().dtype == tensor.dtype
    assert len(Constant.of(torch.ones(1000, 1000), Dtype("float32")).data) < 40


def test_programs_hold_no_steps_that_nothing_needs() -> None:
    def wasteful(m: Any, x: Tensor) -> Tensor:
        _ = m.a(x).exp()
        return m.a(x).contiguous().clone().to(torch.float32).cumsum(1) + torch.arange(3).sum() * 2

    program = quietly(Net(wasteful), torch.randn(2, 4)).program
    assert isinstance(program, Program)
    assert [step.operator for step in program.steps] == ["aten::linear", "aten::cumsum", "aten::add"]
    assert len(program.constants) == 1
