"""Folding of batch norms: what is exactly a layer and then a norm is folded, all else stays, and the list says why."""

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

import wsgraph
from tests.convert.test_tracing import Function, image
from tests.networks import randomized
from wsgraph import trace
from wsgraph.convert import BatchNormFolding, FoldingWarning
from wsgraph.testing import assert_function_preserved


def folding(folded: nn.Module) -> tuple[BatchNormFolding, ...]:
    assert isinstance(folded.batchnorm_folding, tuple)
    return folded.batchnorm_folding


def fold(net: nn.Module, *inputs: Tensor) -> tuple[nn.Module, dict[str, str]]:
    """The folded module, checked in float64, and for every norm the layer that it went into or why it stays."""
    net = randomized(net).double()
    inputs = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with torch.no_grad():
        folded = wsgraph.fold_batchnorm(net, *inputs)
        outputs, expected = ([x for x in pytree.tree_leaves(run(*inputs)) if x is not None] for run in (folded, net))
    assert len(outputs) == len(expected)
    for output, wanted in zip(outputs, expected, strict=True):
        assert output.isfinite().all()
        assert (output - wanted).abs().max() <= 1e-9 * wanted.abs().max()
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
    entries = folding(folded)
    assert not any(module.training for module in folded.modules())
    return folded, {entry.norm: entry.layer if entry.layer is not None else f"stays: {entry.reason}" for entry in entries}


# == What is folded ==


class OwnNorm(nn.BatchNorm2d):
    """A norm that reads neither its gain nor its bias."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, None, None, False, 0.1, self.eps)


class NormAct(nn.BatchNorm2d):
    """A norm with dropout and an activation of its own, as model zoos write it, called ``times`` times."""

    def __init__(self, size: int, act: nn.Module, times: int = 1) -> None:
        super().__init__(size)
        self.drop, self.act, self.times = nn.Identity(), act, times

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.1, self.eps))
        for _ in range(self.times):
            x = self.act(x)
        return x


class NormThenRelu(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(super().forward(x))


def conv(size: int = 6, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(3, size, 3, **options)


def block(forward: Callable[..., Any], **layers: nn.Module) -> nn.Module:
    return Function(forward, **{"conv": conv(), "norm": nn.BatchNorm2d(6), **layers})


def without_gradient(net: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = net.norm(net.conv(x))
    return torch.relu(y)


class ConvNorm(nn.Conv2d):
    """A convolution that holds its norm, as detection networks write it."""

    def __init__(self) -> None:
        super().__init__(3, 6, 3, bias=False)
        self.norm = nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(F.conv2d(x, self.weight, self.bias))


class Bare(nn.Module):
    """A convolution that is a function call."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.shift = nn.Parameter(torch.ones(6, 3, 2, 2)), nn.Parameter(torch.zeros(6))
        self.norm = nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(F.conv2d(x, self.kernel, self.shift))


class Twice(nn.Module):
    """Modules that are registered in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(), nn.BatchNorm2d(6)
        self.both = nn.Sequential(self.conv, self.norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


FOLDED: dict[str, tuple[nn.Module, Tensor]] = {
    "convolution": (nn.Sequential(conv(bias=False), nn.BatchNorm2d(6)), image()),
    "grouped": (nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6, affine=False)), image(4)),
    "padded": (nn.Sequential(conv(padding=1, padding_mode="circular", bias=False), nn.BatchNorm2d(6)), image()),
    "one axis": (nn.Sequential(nn.Conv1d(3, 4, 3, padding="same"), nn.BatchNorm1d(4)), torch.randn(2, 3, 5)),
    "three axes": (nn.Sequential(nn.ConvTranspose3d(2, 4, 2), nn.BatchNorm3d(4)), torch.randn(1, 2, 2, 2, 2)),
    "transposed groups": (nn.Sequential(nn.ConvTranspose2d(4, 6, 2, groups=2, bias=False), nn.BatchNorm2d(6)), image(4)),
    "depthwise transposed": (nn.Sequential(nn.ConvTranspose2d(4, 4, 2, stride=2, groups=4), nn.BatchNorm2d(4)), image(4)),
    "dense": (nn.Sequential(nn.Linear(4, 5, bias=False), nn.BatchNorm1d(5)), torch.randn(3, 4)),
    "synchronised": (nn.Sequential(conv(), nn.SyncBatchNorm(6)), image()),
    "dropout": (
        nn.Sequential(conv(), nn.Identity(), nn.Dropout2d(0.5), nn.Dropout(0.5), nn.BatchNorm2d(6), nn.ReLU(inplace=True)),
        image(),
    ),
    "copies": (
        block(lambda net, x: net.norm(net.conv(x).contiguous().clone().type_as(x).to(memory_format=torch.channels_last))),
        image(),
    ),
    "own norm": (nn.Sequential(conv(), OwnNorm(6)), image()),
    "activation inside": (nn.Sequential(conv(), NormAct(6, nn.PReLU(6)), nn.Conv2d(6, 2, 1)), image()),
    "checkpoint": (block(lambda net, x: checkpoint(lambda y: net.norm(net.conv(y)), x, use_reentrant=False)), image()),
    "without gradient": (block(without_gradient), image()),
    "functional call": (
        block(lambda net, x: net.norm(torch.func.functional_call(net.conv, {"weight": net.conv.weight, "bias": net.conv.bias}, (x,)))),
        image(),
    ),
    "nested outputs": (block(lambda net, x: {"a": (net.norm(net.conv(x)), [x.sum()]), "b": None}), image()),
    "norm inside": (nn.Sequential(ConvNorm(), nn.ReLU()), image()),
    "function of parameters": (Bare(), image()),
    "registered twice": (Twice(), image()),
}


@pytest.mark.parametrize("name", FOLDED)
def test_layer_then_norm_is_folded(name: str) -> None:
    net, x = FOLDED[name]
    folded, entries = fold(net, x)
    assert len(entries) == 1
    assert not any("stays" in entry for entry in entries.values())
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in folded.modules())
    assert "batch_norm" not in str(torch.export.export(folded, (x.double(),)).graph)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        space = trace(net, x.double(), fold_batchnorm=True)
    state = folded.state_dict()
    back = space.unflatten(space.flatten(state))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in state.items())


def test_gains_of_zero_and_tiny_variances() -> None:
    net: Any = randomized(nn.Sequential(conv(), nn.BatchNorm2d(6, eps=1e-12), nn.ReLU(), nn.Conv2d(6, 2, 1)))
    net[1].weight.data[:3] = 0
    net[1].running_var[2:4] = 0
    folded = wsgraph.fold_batchnorm(net.double(), image().double())
    with torch.no_grad():
        output, expected = folded(image().double()), net(image().double())
    assert folded.batchnorm_folding == (BatchNormFolding("1", "0"),)
    assert (output - expected).abs().max() <= 1e-9 * expected.abs().max()


def test_activation_of_a_norm_keeps_its_parameters_and_symmetries() -> None:
    folded, _ = fold(*FOLDED["activation inside"])
    assert list(folded.state_dict()) == ["0.weight", "0.bias", "1.act.weight", "2.weight", "2.bias"]
    net = nn.Sequential(conv(), NormAct(6, nn.ReLU()), nn.Flatten(), nn.Linear(6 * 36, 2))
    folded, _ = fold(net, image())
    space = trace(folded, image().double())
    assert space.layers
    assert_function_preserved(folded, space, image())


# == What stays ==


class Tied(nn.Module):
    """An autoencoder that reads its weight on the way out too."""

    def __init__(self) -> None:
        super().__init__()
        self.code, self.norm = nn.Linear(4, 6), nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.relu(self.norm(self.code(x))), self.code.weight.t())


class Parent(nn.Module):
    """A norm that is a function call, with parameters of the module around it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()
        self.mean: Tensor
        self.running_var: Tensor
        self.gain, self.shift = nn.Parameter(torch.ones(6)), nn.Parameter(torch.zeros(6))
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("running_var", torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(self.conv(x), self.mean, self.running_var, self.gain, self.shift)


class Frozen(nn.Module):
    """A norm of sums and products, as detection networks have it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight: Tensor
        self.bias: Tensor
        self.running_mean: Tensor
        self.running_var: Tensor
        for name, value in {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}.items():
            self.register_buffer(name, torch.full((6,), value))

    def forward(self, x: Tensor) -> Tensor:
        factor = self.weight * (self.running_var + 1e-5).rsqrt()
        return x * factor[:, None, None] + (self.bias - self.running_mean * factor)[:, None, None]


class OwnConv(nn.Conv2d):
    """A convolution that adds no bias, whether it has one or not."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight)


class Pair(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> tuple[Tensor, int]:  # type: ignore[override]
        return super().forward(x), 1


class PlainList(nn.Module):
    """Modules that are registered, and called from a list that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(), nn.BatchNorm2d(6)
        self.steps = [self.conv, self.norm]

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return x


def hooked(net: nn.Sequential, place: int) -> nn.Sequential:
    net[place].register_forward_hook(lambda module, inputs, output: output * 2)
    return net


def old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(conv())


def shared_memory() -> nn.Module:
    net: Any = block(lambda net, x: net.norm(net.conv(x)), other=conv()).double()
    net.other.weight = nn.Parameter(net.conv.weight.data)
    return net


def tied_layers(net: Any, x: Tensor) -> Tensor:
    return torch.relu(net.norm(net.conv(x))) + torch.relu(net.other(net.conv(x)))


STAYS: dict[str, tuple[Callable[[], nn.Module], Tensor, dict[str, str]]] = {
    "tied autoencoder": (Tied, torch.randn(3, 4), {"norm": "the layer's weight is read elsewhere, by aten.t in the module itself"}),
    "penalty": (
        lambda: block(lambda net, x: (net.norm(net.conv(x)), net.conv.weight.square().sum())),
        image(),
        {"norm": "the layer's weight is read elsewhere, by aten.square"},
    ),
    "bias returned": (
        lambda: block(lambda net, x: (net.norm(net.conv(x)), net.conv.bias)),
        image(),
        {"norm": "the layer's bias is read elsewhere, by the module's output"},
    ),
    "gain read": (
        lambda: block(lambda net, x: net.norm(net.conv(x)) + net.norm.weight[:, None, None]),
        image(),
        {"norm": "its gain is read elsewhere, by aten.unsqueeze"},
    ),
    "statistics read": (
        lambda: block(lambda net, x: net.norm(net.conv(x)) * net.norm.running_var.sum()),
        image(),
        {"norm": "its running var is read elsewhere, by aten.sum"},
    ),
    "two norms": (
        lambda: block(tied_layers, other=nn.BatchNorm2d(6)),
        image(),
        {"norm": "the layer's weight is read elsewhere", "other": "the layer's weight is read elsewhere"},
    ),
    "two norms of one output": (
        lambda: block(lambda net, x: (lambda y: net.norm(y) + net.other(y))(net.conv(x)), other=nn.BatchNorm2d(6)),
        image(),
        {
            "norm": "the layer's output is read by 2 operators, also by aten.batch_norm in 'other'",
            "other": "the layer's output is read by 2 operators",
        },
    ),
    "shared norm": (
        lambda: block(lambda net, x: net.norm(net.conv(x)) + net.norm(net.other(x)), other=conv()),
        image(),
        {"norm": "it is called 2 times"},
    ),
    "function inside": (
        lambda: nn.Sequential(conv(), NormThenRelu(6)),
        image(),
        {"1": r"its module \(NormThenRelu\) does more than normalise: aten.relu in '1'"},
    ),
    "activation called twice": (
        lambda: nn.Sequential(conv(), NormAct(6, nn.Tanh(), times=2)),
        image(),
        {"1": r"its module \(NormAct\) does more than normalise: aten.tanh in '1.act'"},
    ),
    "activation before": (
        lambda: nn.Sequential(conv(), nn.ReLU(), nn.BatchNorm2d(6), nn.Conv2d(6, 2, 1)),
        image(),
        {"2": "it follows aten.relu in '1', no linear or convolutional layer"},
    ),
    "first": (lambda: nn.Sequential(nn.BatchNorm2d(3), conv()), image(), {"0": "it reads an input of the module"}),
    "unbatched": (
        lambda: nn.Sequential(nn.Conv1d(3, 4, 3, padding=1), nn.BatchNorm1d(4)),
        torch.randn(3, 4),
        {"1": r"it normalises another axis than that of the layer's outputs \(aten.conv1d in '0'\)"},
    ),
    "tokens": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5)),
        torch.randn(2, 5, 4),
        {"1": "it normalises another axis than that of the layer's outputs"},
    ),
    "function of the parent": (Parent, image(), {"mean": "it is a call of batch_norm in the module itself, which does more"}),
    "function of a norm's parameters": (
        lambda: block(
            lambda net, x: F.batch_norm(net.conv(x), net.norm.running_mean, net.norm.running_var, net.norm.weight, net.norm.bias)
        ),
        image(),
        {"norm": "it is a call of batch_norm in the module itself, which does more than that"},
    ),
    "sums and products": (lambda: nn.Sequential(conv(), Frozen()), image(), {"1": "it normalises in its own way, by aten.add in '1'"}),
    "statistics of the batch": (
        lambda: nn.Sequential(conv(), nn.BatchNorm2d(6, track_running_stats=False)),
        image(),
        {"1": "it uses the statistics of the batch"},
    ),
    "hook of the layer": (lambda: hooked(nn.Sequential(conv(), nn.BatchNorm2d(6)), 0), image(), {"1": "it follows aten.mul in '0'"}),
    "hook of the norm": (
        lambda: hooked(nn.Sequential(conv(), nn.BatchNorm2d(6)), 1),
        image(),
        {"1": r"its module \(BatchNorm2d\) does more than normalise: aten.mul"},
    ),
    "weight norm": (
        lambda: nn.Sequential(parametrizations.weight_norm(conv()), nn.BatchNorm2d(6)),
        image(),
        {"1": "the weight of the layer is computed, by aten._weight_norm in '0.parametrizations.weight.0'"},
    ),
    "spectral norm": (
        lambda: nn.Sequential(parametrizations.spectral_norm(conv()), nn.BatchNorm2d(6)),
        image(),
        {"1": "the weight of the layer is computed"},
    ),
    "old weight norm": (
        lambda: nn.Sequential(old_weight_norm(), nn.BatchNorm2d(6)),
        image(),
        {"1": "the weight of the layer is computed, by aten._weight_norm in '0'"},
    ),
    "gain computed": (
        lambda: nn.Sequential(conv(), parametrizations.weight_norm(nn.BatchNorm2d(6))),
        image(),
        {"1": "the weight of the norm is computed"},
    ),
    "layer without bias": (
        lambda: nn.Sequential(OwnConv(3, 6, 3, bias=False), nn.BatchNorm2d(6)),
        image(),
        {"1": "aten.conv2d in '0' takes no bias, and OwnConv is not known to pass one on"},
    ),
    "two results": (
        lambda: block(lambda net, x: net.norm(net.conv(x))[0], norm=Pair(6)),
        image(),
        {"norm": "the module's outputs change when it is folded"},
    ),
    "size of the norm read": (
        lambda: block(lambda net, x: net.norm(net.conv(x)) / net.norm.num_features),
        image(),
        {"norm": "without it the module does not run: AttributeError: 'Identity' object has no attribute 'num_features'"},
    ),
    "list": (PlainList, image(), {"norm": "the module's outputs change when it is folded"}),
    "shared memory": (shared_memory, image(), {"norm": "the layer's weight lies in the same memory as 'other.weight'"}),
    "unused": (
        lambda: block(lambda net, x: net.conv(x)),
        image(),
        {"norm": "it is not called for these inputs"},
    ),
}


@pytest.mark.filterwarnings("ignore::wsgraph.TraceWarning")
@pytest.mark.parametrize("name", STAYS)
def test_all_else_stays_and_the_list_says_why(name: str) -> None:
    make, x, reasons = STAYS[name]
    _, entries = fold(make(), x)
    assert list(entries) == list(reasons)
    for norm, reason in reasons.items():
        assert re.match(f"stays: {reason}", entries[norm]), entries
    norm, reason = next(iter(reasons.items()))
    with pytest.warns(FoldingWarning, match=f"batch norms could not be folded: '{norm}' stays: {reason}"):
        trace(randomized(make()).double(), x.double(), fold_batchnorm=True)


def test_only_folds_that_change_the_outputs_are_undone() -> None:
    net = nn.Sequential(PlainList(), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4))
    folded: Any
    folded, entries = fold(net, image())
    assert entries == {"0.norm": "stays: the module's outputs change when it is folded (relative difference 2e-01)", "3": "2"}
    assert isinstance(folded[0].norm, nn.BatchNorm2d)


def test_branches_stay() -> None:
    def forward(net: Any, x: Tensor) -> Any:
        return torch.cond(x.sum() > 1e9, lambda y: net.norm(net.dense(y)), lambda y: net.dense(y), (x,))

    net = Function(forward, dense=nn.Linear(4, 5), norm=nn.BatchNorm1d(5))
    assert fold(net.requires_grad_(False), torch.randn(3, 4))[1] == {
        "norm": "stays: it is not called by itself: cond in the module itself reads its weights"
    }


class Counting(nn.Module):
    """A module that changes its buffers and attributes when it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(), nn.BatchNorm2d(6)
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros(()))
        self.last: Any = None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.norm(self.conv(x)) * self.calls


def test_the_module_and_what_is_untouched_stay_what_they_are() -> None:
    net: Any = Counting()
    x = image()
    net.other = nn.Linear(2, 2)
    net.other.register_forward_hook(lambda *_: None)
    net.conv.weight.requires_grad_(False)
    net.conv.bias = None
    net = randomized(net).requires_grad_(False)
    net.other.weight.requires_grad_(True)
    net.calls.zero_()
    folded: Any = wsgraph.fold_batchnorm(net, x)
    assert net.calls == folded.calls == 0
    assert net.last is folded.last is None
    assert [name for name, tensor in folded.named_parameters() if tensor.requires_grad] == ["other.weight"]
    assert len(folded.other._forward_hooks) == 1
    assert torch.equal(folded.other.weight, net.other.weight)
    assert torch.allclose(folded(x), net(x), rtol=1e-4, atol=1e-5)
    assert isinstance(net.norm, nn.BatchNorm2d)
    assert not hasattr(net, "batchnorm_folding")


def test_low_precision() -> None:
    net: Any = randomized(nn.Sequential(nn.Linear(4, 5, bias=False), nn.BatchNorm1d(5))).to(torch.float16)
    x = torch.randn(3, 4, dtype=torch.float16)
    folded = wsgraph.fold_batchnorm(net, x)
    assert {tensor.dtype for tensor in folded.parameters()} == {torch.float16}
    assert torch.allclose(folded(x), net(x), rtol=0.02, atol=0.02)
    for running_var, gain in ((0.0, 1e4), (1.0, 1e-7)):  # too large and too small for float16
        net[1].running_var.fill_(running_var)
        net[1].weight.data.fill_(gain)
        (entry,) = folding(wsgraph.fold_batchnorm(net, x))
        assert entry.reason == "the layer's weights after folding would not be finite or representable in torch.float16"


def test_modules_that_compute_in_lower_precision_whatever_their_weights_have() -> None:
    def cast(net: Any, x: Tensor) -> Tensor:
        return torch.relu(net.norm(net.conv(x))).float().double().sum() if x.dtype == torch.float64 else net.norm(net.conv(x.float()))

    def automatic(net: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return torch.relu(net.norm(net.conv(x))).to(x.dtype)

    def only_single(net: Any, x: Tensor) -> Tensor:
        return net.norm(net.conv(x)) @ torch.ones(6, 1)

    for forward in (cast, automatic, only_single):
        net = randomized(block(forward))
        folded = wsgraph.fold_batchnorm(net, image())
        assert folded.batchnorm_folding == (BatchNormFolding("norm", "conv"),)
        assert torch.allclose(folded(image()), net(image()), rtol=0.05, atol=0.05)


def test_random_numbers_are_the_same_in_both() -> None:
    net = randomized(block(lambda net, x: F.dropout(net.norm(net.conv(x)), 0.5, training=True)))
    before = torch.get_rng_state()
    assert wsgraph.fold_batchnorm(net, image()).batchnorm_folding == (BatchNormFolding("norm", "conv"),)
    assert torch.equal(torch.get_rng_state(), before)


def test_modules_without_norms_and_those_that_cannot_be_copied() -> None:
    assert wsgraph.fold_batchnorm(nn.Linear(2, 2).eval(), torch.ones(1, 2)).batchnorm_folding == ()
    net: Any = nn.Sequential(conv(), nn.BatchNorm2d(6)).eval()
    net.stream = (i for i in range(3))
    with pytest.raises(wsgraph.TraceError, match=r"The module cannot be copied: TypeError: cannot pickle 'generator' object"):
        wsgraph.fold_batchnorm(net, image())
    with pytest.raises(wsgraph.TraceError, match="training mode"):
        wsgraph.fold_batchnorm(nn.BatchNorm2d(3), image())


# == Whole networks ==


class Bottleneck(nn.Module):
    """A residual block, with a norm before any layer, one read twice and one after a dense layer, which each needs care."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm2d(3)
        self.stem, self.norm = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.a, self.norm_a = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6, affine=False)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.up, self.norm_up = nn.ConvTranspose2d(6, 4, 2, stride=2), nn.BatchNorm2d(4)
        self.twice, self.norm_twice = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.dense, self.norm_dense = nn.Linear(4, 5), nn.BatchNorm1d(5)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.norm(self.stem(self.first(x)))))
        x = torch.relu(x + self.norm_a(self.a(x)))
        x = torch.relu(self.norm_up(self.up(x)))
        read_twice = self.twice(x)
        x = torch.relu(self.norm_twice(read_twice)) + read_twice
        return self.head(torch.relu(self.norm_dense(self.dense(x.mean((2, 3))))))


def test_fold_batchnorm_keeps_the_function_and_what_cannot_be_folded() -> None:
    net, x = randomized(Bottleneck()).double(), image().double()
    folded = wsgraph.fold_batchnorm(net, x)
    assert torch.allclose(folded(x), net(x), rtol=1e-12, atol=1e-12)
    left = [name for name, part in folded.named_modules() if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d))]
    assert left == ["first", "norm_twice"]
    assert "stem.bias" in folded.state_dict()
    assert "norm.weight" in net.state_dict()
    with pytest.warns(
        FoldingWarning, match=r"2 of 6 batch norms could not be folded: 'first' stays: it reads an input.*'norm_twice' stays"
    ):
        space = trace(net, x, fold_batchnorm=True)
    assert [param.name for param in space.params] == list(folded.state_dict())
    assert_function_preserved(folded, space, x)


class Folded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.a, self.norm_a = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(torch.relu(self.norm(self.stem(x))), 3, stride=2, padding=1)
        x = torch.relu(self.norm_a(self.a(x)) + x)
        result: Tensor = self.head(F.avg_pool2d(x, 3, stride=1, padding=1).mean((2, 3)))
        return result


def test_a_folded_residual_network_is_one_of_layers() -> None:
    net, x = randomized(Folded()).double(), image().double()
    space = trace(net, x, fold_batchnorm=True)
    theta = space.flatten(wsgraph.fold_batchnorm(net, x).state_dict())
    assert torch.allclose(space.evaluate(theta[None], x)[0], net(x), rtol=1e-12, atol=1e-12)
    assert [group.operators for group in space.groups[1:3]] == [("relu", "max_pool(3,2,1)"), ("relu", "avg_pool(3,1,1)", "global_avg_pool")]
    assert not trace(net, x).layers
