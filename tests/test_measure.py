from typing import Any, cast

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from wsgraph import WeightSpace
from wsgraph.measure import _LiveStorages, kept_bytes, machine, peak_memory, step_costs
from wsgraph.nn import build_model, model_entry
from wsgraph.space import ParameterGraph


def test_kept_activations_count_and_freed_ones_do_not() -> None:
    x = torch.zeros(1000, requires_grad=True)

    def chain() -> torch.Tensor:
        y = x
        for _ in range(10):
            y = y.tanh()
        return y.sum()

    with torch.no_grad():
        assert peak_memory(chain) == 2 * 4000  # only the input and output of the current operation live
    assert peak_memory(chain) == 10 * 4000 + 4  # tanh keeps its output for the backward pass


def test_storages_from_before_do_not_count() -> None:
    weight = torch.zeros(1000, 10)
    assert peak_memory(lambda: weight.t().reshape(10, 10, 100)[0].view(-1)) == 0
    assert peak_memory(lambda: weight.view(-1)[:5]) == 0
    assert peak_memory(lambda: weight.t() @ weight) == 400


def test_backward_pass_is_seen() -> None:
    x = torch.ones(1000, requires_grad=True)
    forward_only = peak_memory(lambda: x.exp().sum())
    both = peak_memory(lambda: x.exp().sum().backward())
    assert forward_only == 4004
    assert both >= 8004


def test_repeated_measurements_agree() -> None:
    x = torch.randn(100, 100, requires_grad=True)
    assert len({peak_memory(lambda: (x @ x).relu().sum()) for _ in range(3)}) == 1


def test_machine_names_processor_and_versions() -> None:
    described = machine()
    assert described["torch"] == torch.__version__
    assert described["processor"]
    assert described["cores"] >= 1


def test_kept_bytes_are_what_lives_on_until_the_backward_pass() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(50, 20), torch.randn(20, 30, requires_grad=True)
    kept = []

    def forward() -> torch.Tensor:
        hidden = (x @ weight).tanh()
        (hidden * 2).exp()  # nothing reads this
        return hidden.square().sum(1)

    assert kept_bytes(forward, given=[x, {"weight": weight}]) == 50 * 30 * 4  # what tanh puts out; squaring keeps the same storage
    assert kept_bytes(forward) == (50 * 30 + 50 * 20) * 4
    with torch.no_grad():
        assert kept_bytes(lambda: kept.append(forward())) == 0


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_keep_their_inputs_alone(reentrant: bool) -> None:
    x = torch.randn(100, 10, requires_grad=True)

    def inner(x: torch.Tensor) -> torch.Tensor:
        return x.exp().tanh().sigmoid()

    def forward() -> torch.Tensor:
        return cast(torch.Tensor, checkpoint(inner, x * 2, use_reentrant=reentrant))

    assert kept_bytes(lambda: inner(x * 2), given=x) == 3 * 4000
    assert kept_bytes(forward, given=x) == 4000
    # The hooks of a checkpoint stay within it: the backward pass works, and computes again what was not kept.
    forward().sum().backward()
    gradient, x.grad = x.grad, None
    inner(x * 2).sum().backward()
    torch.testing.assert_close(x.grad, gradient)


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return 2 * ctx.saved_tensors[0] * gradient


def test_functions_of_ones_own_count_with_what_they_save() -> None:
    x = torch.randn(1000, requires_grad=True)
    assert kept_bytes(lambda: Square.apply(x + 1)) == 4000
    assert kept_bytes(lambda: Square.apply(x), given=(x,)) == 0


@pytest.mark.parametrize("name", ["monomial_gnn", "scalegmn", "neural_graph", "np", "magep"])
def test_kept_bytes_agree_with_what_is_alive_after_the_forward_pass(name: str) -> None:
    torch.manual_seed(0)
    space = WeightSpace.cnn([1, 4, 4], [3])
    model = build_model(name, space, 1)
    batch = space.batch(space.sample(5))
    if model_entry(name).mixed:
        other = WeightSpace.mlp([2, 6, 3], "tanh")
        model = build_model(name, [space, other], 1)
        batch = ParameterGraph.join([batch, other.batch(other.sample(5))])
    model(batch).sum().backward()  # gradients and whatever is made once exist from here on
    with _LiveStorages() as storages:
        output = model(batch)
        alive = storages.live
    kept = kept_bytes(lambda: model(batch), given=[*model.parameters(), *batch.to_dict().values()])
    assert kept == pytest.approx(alive - output.untyped_storage().nbytes(), rel=0.02)


def test_costs_of_steps() -> None:
    space = WeightSpace.mlp([2, 8, 1])
    batch = space.batch(space.sample(6))
    models = {name: build_model(name, space, 1) for name in ("statnn", "neural_graph")}
    costs = step_costs(models, batch, repeats=3)
    assert list(costs) == list(models)
    for name, each in costs.items():
        assert each["parameters"] == sum(parameter.numel() for parameter in models[name].parameters())
        assert each["networks_per_second"] == pytest.approx(6000 / each["milliseconds"])
        assert each["peak_bytes"] > each["kept_bytes"] > 0
        assert all(parameter.grad is None for parameter in models[name].parameters())
    model = models["neural_graph"]
    assert costs["neural_graph"]["kept_bytes"] == kept_bytes(
        lambda: model(batch), given=[*model.parameters(), *model.buffers(), *batch.to_dict().values()]
    )
