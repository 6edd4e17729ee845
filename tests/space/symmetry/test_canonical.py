import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from tests.convert.test_tracing import Function
from tests.space.symmetry.test_group import draw, relative
from tests.spaces import SPACES
from wsgraph import WeightSpace, trace
from wsgraph._outputs import module_outputs
from wsgraph.space import Axis, Layer, NeuronGroup, Parameter, Tie


@pytest.mark.parametrize("name", SPACES)
def test_canonical_form(name: str) -> None:
    space = SPACES[name]
    thetas, g, inputs = draw(space, batch=20)
    canonical = space.canonicalize(thetas)
    outputs = space.evaluate(thetas, inputs)
    assert relative(space.evaluate(canonical, inputs), outputs) < 1e-11  # omega = 30 amplifies the rounding of the phase
    torch.testing.assert_close(space.canonicalize(space.act(g, thetas)), canonical, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(space.canonicalize(canonical), canonical, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", SPACES)
def test_canonical_form_in_float32_over_wide_scales(name: str) -> None:
    space = SPACES[name]
    thetas, g, _ = draw(space, batch=20)
    canonical = space.canonicalize(thetas.float())
    moved = space.canonicalize(space.act(g, thetas.float()))
    torch.testing.assert_close(moved, canonical, rtol=1e-3, atol=1e-4)


def test_incoming_vectors_have_norm_one() -> None:
    space = WeightSpace.mlp([2, 8, 6, 1])
    tensors = space.unflatten(space.canonicalize(space.sample(3, dtype=torch.float64)))
    for i in (0, 1):
        incoming = torch.cat([tensors[f"layers.{i}.weight"], tensors[f"layers.{i}.bias"][..., None]], dim=-1)
        torch.testing.assert_close(incoming.norm(dim=-1), torch.ones(incoming.shape[:2], dtype=torch.float64))


def test_signs_and_order_by_hand() -> None:
    space = WeightSpace.mlp([1, 2, 1], "tanh")
    tensors = {
        "layers.0.weight": torch.tensor([[2.0], [-3.0]]),
        "layers.0.bias": torch.tensor([1.0, 0.5]),
        "layers.1.weight": torch.tensor([[5.0, 7.0]]),
        "layers.1.bias": torch.tensor([1.0]),
    }
    canonical = space.unflatten(space.canonicalize(space.flatten(tensors)[None])[0])
    assert canonical["layers.0.weight"].tolist() == [[2.0], [3.0]]
    assert canonical["layers.0.bias"].tolist() == [1.0, -0.5]
    assert canonical["layers.1.weight"].tolist() == [[5.0, -7.0]]


def test_structured_weights_with_ties() -> None:
    # Entries of equal magnitude, as in a hand-made XOR network: neither signs nor order may hang on the last bit.
    for activation in ("relu", "tanh", "identity"):
        space = WeightSpace.mlp([2, 4, 1], activation)
        tensors = {
            "layers.0.weight": torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]).double(),
            "layers.0.bias": torch.zeros(4).double(),
            "layers.1.weight": torch.tensor([[1.0, 2.0, 3.0, 5.0]]).double(),
            "layers.1.bias": torch.zeros(1).double(),
        }
        theta = space.flatten(tensors)[None].expand(50, -1)
        moved = space.act(space.sample_symmetry(50, (1e-3, 1e3), generator=torch.Generator().manual_seed(0)), theta)
        torch.testing.assert_close(space.canonicalize(moved), space.canonicalize(theta), rtol=1e-9, atol=1e-12)


def test_dead_and_duplicate_neurons() -> None:
    space = WeightSpace.mlp([2, 5, 1])
    thetas = space.sample(30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tensors = {key: value.clone() for key, value in space.unflatten(thetas).items()}
    for dead in (1, 3):
        tensors["layers.0.weight"][:, dead] = 0
        tensors["layers.0.bias"][:, dead] = 0
    tensors["layers.0.weight"][:, 2] = tensors["layers.0.weight"][:, 0]
    tensors["layers.0.bias"][:, 2] = tensors["layers.0.bias"][:, 0]
    thetas = space.flatten(tensors)
    g = space.sample_symmetry(30, (1e-3, 1e3), symmetries=["permutation"], generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(space.canonicalize(space.act(g, thetas)), space.canonicalize(thetas), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["cnn_relu", "mlp_sine", "mlp_identity"])
def test_gradients_are_finite_for_zero_weights(name: str) -> None:
    space = SPACES[name]
    thetas = space.sample(3, dtype=torch.float64)
    thetas[0] = 0
    thetas[1, ::2] = 0
    thetas.requires_grad_()
    canonical = space.canonicalize(thetas)
    assert torch.isfinite(canonical).all()
    canonical.square().sum().backward()
    assert thetas.grad is not None
    assert torch.isfinite(thetas.grad).all()


def test_canonical_form_is_differentiable() -> None:
    space = WeightSpace.mlp([2, 3, 1])
    thetas = space.sample(2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(space.canonicalize, (thetas,))


@pytest.mark.parametrize("omega", [1.0, 30.0])
def test_phase_is_reduced_with_omega(omega: float) -> None:
    space = WeightSpace.mlp([2, 8, 8, 1], f"sin({omega:g})")
    thetas = 5 * space.sample(10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    canonical = space.unflatten(space.canonicalize(thetas))
    for i in (0, 1):
        phase = omega * canonical[f"layers.{i}.bias"]
        assert phase.min() > -math.pi / 2
        assert phase.max() <= math.pi / 2 + 1e-12
    inputs = torch.rand(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    torch.testing.assert_close(space.evaluate(space.canonicalize(thetas), inputs), space.evaluate(thetas, inputs), rtol=1e-9, atol=1e-9)


def test_phase_shifts_by_full_turns_are_undone() -> None:
    space = WeightSpace.mlp([2, 8, 1], "sin(30)")
    thetas = space.sample(4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shifted = thetas.clone()
    shifted[:, space.slices["layers.0.bias"]] += 2 * math.pi / 30 * torch.arange(8, dtype=torch.float64)
    torch.testing.assert_close(space.canonicalize(shifted), space.canonicalize(thetas), rtol=1e-9, atol=1e-11)


def test_phase_on_the_boundary_is_idempotent() -> None:
    space = WeightSpace.mlp([1, 2, 1], "sin")
    for weight in (1.0, -1.0, 3.0, -3.0):
        for bias in (math.pi / 2, -math.pi / 2):
            theta = space.flatten(
                {
                    "layers.0.weight": torch.tensor([[weight], [0.3]], dtype=torch.float64),
                    "layers.0.bias": torch.tensor([bias, 0.1], dtype=torch.float64),
                    "layers.1.weight": torch.tensor([[2.0, 1.0]], dtype=torch.float64),
                    "layers.1.bias": torch.zeros(1, dtype=torch.float64),
                }
            )[None]
            canonical = space.canonicalize(theta)
            torch.testing.assert_close(space.canonicalize(canonical), canonical, rtol=0, atol=1e-15)


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("fix", [(), ("phase",), ("sign",), ("phase", "sign"), ("scale",), ("scale", "sign", "phase"), ("order",)])
def test_parts_of_the_canonical_form_keep_the_function(name: str, fix: tuple[str, ...]) -> None:
    space = SPACES[name]
    thetas, _, inputs = draw(space)
    canonical = space.canonicalize(thetas, fix=fix)
    assert relative(space.evaluate(canonical, inputs), space.evaluate(thetas, inputs)) < 1e-11
    torch.testing.assert_close(space.canonicalize(canonical, fix=fix), canonical, rtol=1e-9, atol=1e-11)
    if not fix:
        assert torch.equal(canonical, thetas)
    if "order" not in fix:
        g = space.sample_symmetry(len(thetas), symmetries=["permutation"])
        moved = space.canonicalize(space.act(g, thetas), fix=fix)
        torch.testing.assert_close(moved, space.act(g, canonical), rtol=1e-9, atol=1e-11)


def test_each_part_settles_what_it_says() -> None:
    space = WeightSpace.siren()
    thetas = space.sample(5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    g = space.sample_symmetry(5, symmetries=["sign"], generator=torch.Generator().manual_seed(1))
    signed = space.canonicalize(thetas, fix=["sign"])
    assert torch.equal(space.canonicalize(space.act(g, thetas), fix=["sign"]), signed)
    assert not torch.equal(space.canonicalize(space.act(g, thetas), fix=["order"]), space.canonicalize(thetas, fix=["order"]))
    for name in ("layers.0.bias", "layers.1.bias"):
        assert float(30 * space.unflatten(signed)[name].abs().max()) > math.pi / 2
        for fix in (["phase"], ["phase", "sign"]):
            assert float(30 * space.unflatten(space.canonicalize(thetas, fix=fix))[name].abs().max()) <= math.pi / 2 + 1e-12
    with pytest.raises(ValueError, match=r"'fix' to name some of scale, phase, flip, sign, order \(got 'signs'\)"):
        space.canonicalize(thetas, fix=["signs"])


def test_nan_weights_are_refused() -> None:
    space = SPACES["cnn_relu"]
    thetas = space.sample(3)
    thetas[1, -1] = float("nan")
    with pytest.raises(ValueError, match=r"NaN or infinite weights \(first at network 1, parameter 'layers\.2\.bias'\)"):
        space.canonicalize(thetas)


# == Neurons that answer 0, ties, extremes ==


def _assert_canonical(space: WeightSpace, thetas: Tensor, seed: int) -> None:
    """One point per orbit, the same again, and the function of before."""
    g = space.sample_symmetry(len(thetas), (1e-3, 1e3), generator=torch.Generator().manual_seed(seed))
    canonical = space.canonicalize(thetas)
    torch.testing.assert_close(space.canonicalize(space.act(g, thetas)), canonical, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(space.canonicalize(canonical), canonical, rtol=1e-9, atol=1e-9)
    inputs = space.example_inputs(4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    outputs = space.evaluate(thetas, inputs)
    assert (space.evaluate(canonical, inputs) - outputs).abs().max() <= 1e-9 * outputs.abs().max()


def _without_biases(space: WeightSpace, thetas: Tensor) -> Tensor:
    thetas = thetas.clone()
    for param in space.params:
        if param.role == "bias":
            thetas[:, space.slices[param.name]] = 0
    return thetas


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("share", [0.05, 0.3, 0.6])
def test_pruned_networks(name: str, share: float) -> None:
    space = SPACES[name]
    for seed, biases in ((0, True), (1, False)):
        generator = torch.Generator().manual_seed(seed)
        thetas = space.sample(8, generator=generator, dtype=torch.float64)
        thetas = thetas * (torch.rand(thetas.shape, generator=generator, dtype=torch.float64) < share)
        _assert_canonical(space, thetas if biases else _without_biases(space, thetas), seed)


@pytest.mark.parametrize("name", SPACES)
def test_networks_of_equal_magnitudes(name: str) -> None:
    # Ties everywhere: signs and order must follow the documented rules, and never the last bit or the order that neurons came in.
    space = SPACES[name]
    for values in (2, 3):
        generator = torch.Generator().manual_seed(values)
        signs = space.sample(8, generator=generator, dtype=torch.float64).sign()
        _assert_canonical(space, signs * torch.randint(0, values, signs.shape, generator=generator), values)


def test_neurons_that_only_others_without_inputs_read_become_zero() -> None:
    for activation in ("relu", "tanh"):
        space = WeightSpace.mlp([2, 3, 3, 1], activation)
        thetas = _without_biases(space, space.sample(2, dtype=torch.float64))
        tensors = space.unflatten(thetas)
        tensors["layers.0.weight"][:, 1] = 0  # hidden neuron 1 answers 0,
        tensors["layers.1.weight"][:, 2, [0, 2]] = 0  # so neuron 2 of the next layer does too,
        tensors["layers.2.weight"][:, :, 2] = 0  # and nothing reads that one
        tensors["layers.1.weight"][:, :2, 1] = 0
        thetas = space.flatten(tensors)
        assert (space.canonicalize(thetas) != 0).sum() == (thetas != 0).sum() - 2
        _assert_canonical(space, thetas, 0)


def test_dead_neurons_are_settled_by_what_reads_them() -> None:
    space = WeightSpace.mlp([2, 2, 2], "relu", bias=False)
    tensors = {
        "layers.0.weight": torch.tensor([[0.0, 0.0], [3.0, 4.0]]).double(),
        "layers.1.weight": torch.tensor([[6.0, 1.0], [-8.0, 1.0]]).double(),
    }
    canonical = space.unflatten(space.canonicalize(space.flatten(tensors)[None])[0])
    torch.testing.assert_close(canonical["layers.0.weight"], torch.tensor([[0.0, 0.0], [0.6, 0.8]]).double())
    torch.testing.assert_close(canonical["layers.1.weight"], torch.tensor([[0.6, 5.0], [-0.8, 5.0]]).double())


@pytest.mark.parametrize("size", [1e-38, 1e-20, 1e13, 1e20])
@pytest.mark.parametrize("depth", [1, 12])
def test_tiny_and_huge_networks_stay_in_range(size: float, depth: int) -> None:
    space = WeightSpace.mlp([3, *[6] * depth, 2])
    generator = torch.Generator().manual_seed(0)
    thetas = space.sample(4, generator=generator) * size
    canonical = space.canonicalize(thetas)
    assert canonical.isfinite().all()
    assert (canonical != 0).sum() == (thetas != 0).sum()
    moved = space.act(space.sample_symmetry(4, (0.5, 2), generator=generator), thetas.double()).float()
    largest = canonical.abs().amax(1, keepdim=True)
    torch.testing.assert_close(space.canonicalize(moved) / largest, canonical / largest, rtol=1e-3, atol=1e-4)


def test_networks_without_a_form_in_range_are_refused() -> None:
    space = WeightSpace.mlp([3, 6, 6, 6, 2])
    thetas = space.sample(2, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1.0], [1e37]])
    with pytest.raises(ValueError, match=r"Network 1 has no canonical form within the range of torch\.float32.*thetas\.double"):
        space.canonicalize(thetas)
    assert space.canonicalize(thetas.double()).isfinite().all()


def test_a_bias_averaged_with_padding_has_no_phase() -> None:
    groups = [
        NeuronGroup("x", 1, "input"),
        NeuronGroup("h", 4, operators=("avg_pool(3, 1, 1)", "sin(5)", "global_avg_pool")),
        NeuronGroup("y", 2, "output"),
    ]
    params = [
        Parameter("w", (4, 1, 3, 3), "weight", (Axis(4, (Tie(("h",), 1),)), Axis(1, (Tie(("x",), -1),)), Axis(3), Axis(3))),
        Parameter("b", (4,), "bias", (Axis(4, (Tie(("h",), 1),)),)),
        Parameter("v", (2, 4), "weight", (Axis(2, (Tie(("y",), 1),)), Axis(4, (Tie(("h",), -1),)))),
    ]
    layers = [Layer("1", "conv", ("x",), "h", "w", "b"), Layer("2", "linear", ("h",), "y", "v")]
    inputs = torch.randn(5, 1, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for pool, reduced in (("avg_pool(3, 1, 1)", False), ("avg_pool(3, 1)", True), ("max_pool(3, 1, 1)", True)):
        groups[1] = dataclasses.replace(groups[1], operators=(pool, "sin(5)", "global_avg_pool"))
        space = WeightSpace(tuple(groups), tuple(layers), tuple(params))
        thetas = 3 * space.sample(3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        canonical = space.canonicalize(thetas)
        assert relative(space.evaluate(canonical, inputs), space.evaluate(thetas, inputs)) < 1e-11
        assert (float(5 * space.unflatten(canonical)["b"].abs().max()) <= math.pi + 1e-9) == reduced


def test_phases_of_residual_networks_are_idempotent() -> None:
    space = dataclasses.replace(SPACES["residual_tanh"])
    groups = tuple(
        dataclasses.replace(group, operators=tuple("sin(3)" if text == "tanh" else text for text in group.operators))
        for group in space.groups
    )
    space = WeightSpace(groups, space.layers, space.params)
    for seed in range(10):
        _assert_canonical(space, 4 * space.sample(10, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), seed)


def _experts(activation: Callable[[Tensor], Tensor]) -> nn.Module:
    """Experts whose weights are stacked in two tensors without biases, so that two classes multiply the same entries."""

    def forward(net: Any, x: Tensor) -> Tensor:
        hidden = activation(torch.einsum("bi,eih->beh", x, net.first))
        return (net.gain[:, None] * torch.einsum("beh,eho->beo", hidden, net.second)).sum(1)

    torch.manual_seed(0)
    net = Function(forward)
    net.first, net.second = nn.Parameter(torch.randn(3, 3, 5)), nn.Parameter(torch.randn(3, 5, 2))
    net.gain = nn.Parameter(torch.randn(3))
    return net.eval()


def _low_rank(net: Any, x: Tensor) -> Tensor:
    """A layer with a low-rank update whose rows are normalised, as DoRA has it."""
    weight = net.base.weight + net.up.weight @ net.down.weight
    return net.last(torch.relu(F.linear(x, net.gain.weight * weight / weight.norm(dim=1, keepdim=True), net.base.bias)))


def _normalized(dim: int | None) -> nn.Module:
    torch.manual_seed(0)
    hidden = weight_norm(nn.Linear(4, 4), dim=dim)  # type: ignore[arg-type]
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), hidden, nn.Tanh(), nn.Linear(4, 2)).eval()


def _low_rank_network() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"base": (3, 5), "down": (3, 2), "up": (2, 5), "gain": (1, 5)}
    layers = {name: nn.Linear(*size, bias=name == "base") for name, size in sizes.items()}
    return Function(_low_rank, **layers, last=nn.Linear(5, 2)).eval()


def _without(net: nn.Module, **entries: Any) -> nn.Module:
    """The network with some entries of its parameters 0: for each, the indices."""
    with torch.no_grad():
        for name, index in entries.items():
            net.get_parameter(name.replace("__", "."))[index] = 0
    return net


@pytest.mark.parametrize(
    "net",
    [
        _experts(torch.relu),
        _experts(torch.tanh),
        _without(_experts(torch.tanh), gain=...),
        _without(_normalized(0), **{"0__weight": ..., "0__bias": ...}),  # nothing is read by the norm's rows
        _without(
            _normalized(None),  # one norm of all entries
            **{"0__weight": 1, "0__bias": 1, "2__bias": 2, "4__weight": (slice(None), 2)},
            **{"2__parametrizations__weight__original1": (2, [0, 2, 3])},
        ),
        _without(_low_rank_network(), gain__weight=1, base__bias=1, last__weight=(slice(None), 1)),  # an update that nobody reads
    ],
    ids=["experts", "odd experts", "unread experts", "weight norm", "norm of all", "low rank"],
)
def test_weights_that_networks_combine_keep_the_function(net: nn.Module) -> None:
    x = torch.randn(6, 3)
    space = trace(net, x)
    theta, outputs = module_outputs(net, space, (x,))
    canonical = space.canonicalize(theta)
    torch.testing.assert_close(outputs(canonical), outputs(theta), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(space.canonicalize(canonical), canonical, rtol=1e-9, atol=1e-11)
    for seed in range(4):
        g = space.sample_symmetry(generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(space.canonicalize(space.act(g, theta)), canonical, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("mlp_sine", torch.float16), ("mlp_mixed", torch.bfloat16), ("mlp_identity", torch.float16), ("mlp_identity", torch.bfloat16)],
)
def test_half_precision_is_idempotent(name: str, dtype: torch.dtype) -> None:
    space = SPACES[name]
    thetas = draw(space, batch=20)[0]
    thetas[:, ::2] = 0  # signs must not hang on entries that are 0
    canonical = space.canonicalize(thetas.to(dtype))
    again = space.canonicalize(canonical)
    torch.testing.assert_close(again, canonical, rtol=4 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)
    if name == "mlp_sine":  # phases at the ends of their interval are the same up to a rounding that is large here
        return
    flips = space.sample_symmetry(20, symmetries=["sign"], generator=torch.Generator().manual_seed(1))
    moved = space.canonicalize(space.act(flips, thetas.to(dtype)))
    torch.testing.assert_close(moved, canonical, rtol=4 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)


def test_no_networks() -> None:
    space = WeightSpace.mlp([2, 3, 1])
    assert space.canonicalize(space.sample(1)[:0]).shape == (0, space.num_params)
