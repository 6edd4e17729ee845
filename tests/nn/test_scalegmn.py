from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.space.handmade import linear, space_of
from tests.spaces import CHAINS, SPACES, broken_networks, residual_space, with_dtypes
from wsgraph import ParameterGraph, SpaceMismatchError, WeightSpace
from wsgraph.nn.message import scalegmn
from wsgraph.nn.message.scalegmn import ScaleGMN, ScaleGMNConv
from wsgraph.nn.message.wiring import Wiring
from wsgraph.space import NeuronGroup, Symmetry
from wsgraph.testing import assert_equivariant, assert_invariant

DIRECTIONS = pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "bidirectional"])
CASES = with_dtypes(itertools.product(SPACES, [False, True]))
MIXED = [
    WeightSpace.mlp([3, 7, 5, 2], "relu"),
    WeightSpace.mlp([3, 6, 5, 4, 2], ["relu", "tanh", "gelu"]),
    WeightSpace.cnn([1, 4, 3], [4], "tanh"),
    residual_space(),
]


def build(space: WeightSpace | list[WeightSpace], bidirectional: bool, out_channels: int = 3, **options: Any) -> ScaleGMN:
    torch.manual_seed(0)
    return ScaleGMN(space, out_channels, **{"channels": 8, "layers": 2, "hidden": 16, "bidirectional": bidirectional, **options})


def mixed_batch(dtype: torch.dtype = torch.float64) -> ParameterGraph:
    generator = torch.Generator().manual_seed(1)
    return ParameterGraph.join([space.batch(space.sample(3, generator=generator, dtype=dtype)) for space in MIXED])


@pytest.mark.parametrize(("space", "bidirectional", "dtype"), CASES)
def test_invariant(space: str, bidirectional: bool, dtype: torch.dtype) -> None:
    assert_invariant(build(SPACES[space], bidirectional), SPACES[space], dtype=dtype)


@pytest.mark.parametrize(("space", "bidirectional", "dtype"), CASES)
def test_equivariant(space: str, bidirectional: bool, dtype: torch.dtype) -> None:
    model = build(SPACES[space], bidirectional, 2, task="equivariant")
    assert_equivariant(model, SPACES[space], dtype=dtype)
    assert model(SPACES[space].batch(SPACES[space].sample(2))).shape == (2, SPACES[space].num_params, 2)


def test_messages_against_the_edges_need_the_dual(monkeypatch: pytest.MonkeyPatch) -> None:
    space = SPACES["cnn_relu"]
    model = build(space, True)
    assert_invariant(model, space)
    monkeypatch.setattr(scalegmn, "_dual", lambda edge_attr, symmetry: edge_attr)
    with pytest.raises(AssertionError, match="is not invariant under scale"):
        assert_invariant(model, space)


def test_the_dual_transforms_inversely_and_zero_stays_zero() -> None:
    positive = Symmetry(True, False)
    edges = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    edges[0] = 0
    edges.requires_grad_()
    dual = scalegmn._dual(edges, positive)
    torch.testing.assert_close((edges * dual).sum(-1), torch.tensor([0.0, 1, 1, 1, 1], dtype=torch.float64))
    torch.testing.assert_close(scalegmn._dual(edges * 1e-5, positive), dual * 1e5)
    dual.sum().backward()
    assert edges.grad is not None
    assert torch.isfinite(edges.grad).all()
    assert scalegmn._dual(edges, Symmetry(False, True)) is edges


def outputs_and_gradients(model: ScaleGMN, batch: ParameterGraph, dense: bool) -> list[Tensor]:
    model.zero_grad()
    output = model.read(Wiring.of(batch, dense=dense))
    output.square().sum().backward()
    return [output.detach(), *(parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None)]


@DIRECTIONS
@pytest.mark.parametrize("task", ["invariant", "equivariant"])
@pytest.mark.parametrize("space", ["cnn_relu", "mlp_mixed", "mlp_relu_no_bias", "residual_relu", "residual_identity"])
def test_dense_and_indexed_wiring_agree(space: str, task: str, bidirectional: bool) -> None:
    model = build(SPACES[space], bidirectional, task=task).double()
    batch = SPACES[space].batch(SPACES[space].sample(3, dtype=torch.float64))
    dense, indexed = (outputs_and_gradients(model, batch, kind) for kind in (True, False))
    assert len(dense) == len(indexed)
    for first, second in zip(dense, indexed, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-11)


@DIRECTIONS
@pytest.mark.parametrize("options", [{}, {"task": "equivariant"}, {"probes": 2}], ids=str)
def test_mixed_batches_equal_single_networks(options: dict[str, Any], bidirectional: bool) -> None:
    model = build(MIXED, bidirectional, **options).double().eval()
    batch = mixed_batch()
    output = model(batch)
    for i in range(batch.num_networks):
        alone = model(batch[i])[0]
        torch.testing.assert_close(output[i][: len(alone)], alone, rtol=1e-9, atol=1e-11)
        assert not output[i][len(alone) :].any()


@DIRECTIONS
@pytest.mark.parametrize("task", ["invariant", "equivariant"])
@pytest.mark.parametrize("space", ["cnn_relu", "cnn_tanh", "mlp_identity", "mlp_mixed", "mlp_relu_no_bias", "residual_relu"])
def test_outputs_and_gradients_are_finite(space: str, task: str, bidirectional: bool) -> None:
    thetas = broken_networks(SPACES[space]).requires_grad_()
    model = build(SPACES[space], bidirectional, task=task, layers=4)
    output = model(SPACES[space].batch(thetas))
    (output / output.detach().abs().amax().clamp(min=1)).square().sum().backward()
    assert torch.isfinite(output).all()
    assert thetas.grad is not None
    assert torch.isfinite(thetas.grad).all()
    assert all(parameter.grad is None or torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@DIRECTIONS
@pytest.mark.parametrize("task", ["invariant", "equivariant"])
@pytest.mark.parametrize("space", ["cnn_relu", "cnn_tanh", "mlp_gelu", "residual_identity"])
def test_every_parameter_is_used(space: str, task: str, bidirectional: bool) -> None:
    model = build(SPACES[space], bidirectional, task=task)
    model(SPACES[space].batch(SPACES[space].sample(8))).square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()] == []


def test_matrices_for_signs_exist_only_where_signs_act() -> None:
    def count(model: nn.Module) -> int:
        return sum("symmetrisers" in name for name, _ in model.named_parameters())

    assert count(build(SPACES["cnn_relu"], True)) == 0
    assert count(build(SPACES["cnn_tanh"], True)) > 0


def larger_batches() -> dict[str, tuple[WeightSpace, str]]:
    return {
        "kernel": (WeightSpace.cnn([1, 6], [4], kernel_size=5), "at most 9 kernel positions, but the batch has 25, in WeightSpace"),
        "inputs": (WeightSpace.mlp([2, 6, 4]), "at most 1 input neurons, but the batch has 2"),
        "outputs": (WeightSpace.mlp([1, 6, 5]), r"at most 4 output neurons, but the batch has 5, .* Build it with the largest space"),
        "biases": (residual_space(), r"at most 1 biases at one neuron, but the batch has 2|at most 1 input neurons"),
        "signs": (WeightSpace.mlp([1, 6, 4], "tanh"), "at most 0 kinds of neurons whose sign may change, but the batch has 1"),
    }


@pytest.mark.parametrize("name", larger_batches())
def test_networks_that_the_model_was_not_built_for(name: str) -> None:
    space, message = larger_batches()[name]
    with pytest.raises(SpaceMismatchError, match=message):
        build(CHAINS["cnn_relu"], False)(space.batch(space.sample(2)))


def test_constructor_errors() -> None:
    space = CHAINS["cnn_relu"]
    with pytest.raises(ValueError, match="Expected 'task' to be"):
        ScaleGMN(space, 1, task="other")
    with pytest.raises(ValueError, match="Expected 'layers' to be at least 1 \\(got 0\\)"):
        ScaleGMN(space, 1, layers=0)
    with pytest.raises(ValueError, match="leave 'probes' out for weights out \\(got 4\\)"):
        ScaleGMN(space, 1, task="equivariant", probes=4)


def test_several_inputs_are_told_apart() -> None:
    groups = [NeuronGroup("left", 2, "input"), NeuronGroup("right", 3, "input"), NeuronGroup("out", 1, "output")]
    space = space_of(groups, [linear("a", {"left": 2, "right": 3}, "out", 1)])
    thetas = space.sample(2)
    model = ScaleGMN(space, 1).eval()
    outputs = model(space.batch(thetas))
    assert outputs.shape == (2, 1)
    assert not torch.allclose(outputs, model(space.batch(thetas[:, [4, 1, 2, 3, 0, *range(5, space.num_params)]])))


def test_a_network_without_hidden_neurons() -> None:
    space = WeightSpace.mlp([3, 2])
    assert build(space, True)(space.batch(space.sample(4))).shape == (4, 3)


def test_deeper_networks_share_the_parameters_of_the_last_level() -> None:
    deep = WeightSpace.mlp([1, 4, 4, 4, 4, 4])
    assert build(CHAINS["cnn_relu"], True)(deep.batch(deep.sample(2))).shape == (2, 3)


def test_probes_are_read_too() -> None:
    space = SPACES["cnn_relu"]
    assert_invariant(build(space, True, probes=3, probe_shape=(9, 9)), space)


def features(wiring: Wiring, channels: int, factor: Callable[[int], float]) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    x = [factor(i) * torch.randn(*part.bias.shape[:2], channels, generator=generator) for i, part in enumerate(wiring.parts)]
    edge_attr = [
        factor(link.target) / factor(link.source) * torch.randn(*link.values.shape[:-1], channels, generator=generator)
        for link in wiring.links
    ]
    return x, edge_attr


@DIRECTIONS
def test_convolution_keeps_the_factors_of_neurons_and_edges(bidirectional: bool) -> None:
    space = SPACES["residual_identity"]
    wiring = Wiring.of(space.batch(space.sample(2)))
    torch.manual_seed(0)
    conv = ScaleGMNConv(8, bidirectional=bidirectional)

    def factor(part: int) -> float:
        return -8.0 if wiring.parts[part].symmetry.sign else 1.0

    x, edge_attr = conv(*_arguments(wiring, lambda part: 1.0))
    moved_x, moved_edges = conv(*_arguments(wiring, factor))
    for i, (moved, original) in enumerate(zip(moved_x, x, strict=True)):
        torch.testing.assert_close(moved, factor(i) * original, rtol=1e-4, atol=1e-4)
    for link, moved, original in zip(wiring.links, moved_edges, edge_attr, strict=True):
        torch.testing.assert_close(moved, factor(link.target) / factor(link.source) * original, rtol=1e-4, atol=1e-4)


def _arguments(wiring: Wiring, factor: Callable[[int], float]) -> tuple[list[Tensor], Wiring, list[Tensor]]:
    x, edge_attr = features(wiring, 8, factor)
    return x, wiring, edge_attr


def test_it_learns_the_mean_output_of_networks() -> None:
    space = WeightSpace.mlp([2, 6, 1], "relu")
    generator = torch.Generator().manual_seed(0)
    thetas = space.sample(64, generator=generator)
    y = space.evaluate(thetas, torch.randn(50, 2, generator=generator)).mean((1, 2))
    y = (y - y.mean()) / y.std()
    model, batch = build(space, True, 1, channels=16), space.batch(thetas)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(100):
        optimizer.zero_grad()
        loss = (model(batch)[:, 0] - y).square().mean()
        loss.backward()
        optimizer.step()
    assert loss < 0.3
