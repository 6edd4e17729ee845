"""Flips of activations with a centre of symmetry: ``f(a - v) = c - f(v)``."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.space.symmetry.test_group import relative
from wsgraph import WeightSpace, trace
from wsgraph.operators import OPERATORS

CENTRES = {
    "sigmoid": (0.0, 1.0),
    "hardsigmoid": (0.0, 1.0),
    "relu6": (6.0, 6.0),
    "hardtanh(0, 1)": (1.0, 1.0),
}


def flip(state: dict[str, Tensor], weight: str, reader: str, neurons: Tensor, centre: tuple[float, float]) -> dict[str, Tensor]:
    """The state dict with some neurons ``[n]`` (0 or 1) of a layer flipped, computed by hand."""
    a, c = centre
    own, other = f"{weight}.weight", f"{reader}.weight"
    signs = 1 - 2 * neurons
    copies = state[other].shape[1] // len(neurons)  # flattened positions
    columns = signs.repeat_interleave(copies).reshape(1, -1, *[1] * (state[other].ndim - 2))
    turned = (state[other] * (1 - columns) / 2).flatten(1).sum(1)
    return {
        **state,
        own: state[own] * signs.reshape(-1, *[1] * (state[own].ndim - 1)),
        f"{weight}.bias": state[f"{weight}.bias"] * signs + a * neurons,
        other: state[other] * columns,
        f"{reader}.bias": state[f"{reader}.bias"] + c * turned,
    }


def convolutions(activation: str, padding: int) -> nn.Module:
    act: Any = nn.Sigmoid() if activation == "sigmoid" else nn.ReLU6()
    return (
        nn.Sequential(
            nn.Conv2d(2, 5, 3, padding=1), nn.AvgPool2d(2), act, nn.Conv2d(5, 4, 3, padding=padding), act, nn.Flatten(), nn.Linear(64, 3)
        )
        .double()
        .eval()
    )


def draw(space: WeightSpace, count: int = 4) -> Tensor:
    return 2 * space.sample(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("activation", CENTRES)
def test_flipped_networks_have_one_canonical_form(activation: str) -> None:
    space = WeightSpace.mlp([3, 7, 6, 2], activation)
    thetas = draw(space)
    inputs = torch.randn(50, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    flipped = []
    for i, theta in enumerate(thetas):
        state = space.unflatten(theta)
        for j, size in enumerate((7, 6)):
            chosen = torch.randint(0, 2, (size,), generator=torch.Generator().manual_seed(10 * i + j)).double()
            state = flip(state, f"layers.{j}", f"layers.{j + 1}", chosen, CENTRES[activation])
        flipped.append(space.flatten(state))
    moved = space.act(space.sample_symmetry(len(thetas), generator=torch.Generator().manual_seed(2)), torch.stack(flipped))
    outputs, canonical = space.evaluate(thetas, inputs), space.canonicalize(thetas)
    assert relative(space.evaluate(moved, inputs), outputs) < 1e-12  # the flips by hand keep the function
    assert relative(space.evaluate(canonical, inputs), outputs) < 1e-12
    torch.testing.assert_close(space.canonicalize(moved), canonical, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(space.canonicalize(canonical), canonical, rtol=1e-12, atol=1e-14)
    without = ["scale", "phase", "sign", "order"]
    assert not torch.allclose(space.canonicalize(moved, fix=without), space.canonicalize(thetas, fix=without))
    for layer in ("layers.0", "layers.1"):
        biases = space.unflatten(canonical)[f"{layer}.bias"]
        assert float(biases.min()) >= CENTRES[activation][0] / 2
    torch.testing.assert_close(space.canonicalize(moved.float()), canonical.float(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("activation", ["sigmoid", "relu6"])
def test_flips_pass_pooling_and_flattening_but_no_padding(activation: str) -> None:
    torch.manual_seed(0)
    module = convolutions(activation, padding=0)
    space = trace(module, torch.randn(2, 2, 12, 12, dtype=torch.float64))
    thetas = draw(space)
    inputs = torch.randn(6, 2, 12, 12, dtype=torch.float64)
    changed = []
    for i, theta in enumerate(thetas):
        state = space.unflatten(theta)
        for j, (weight, reader, size) in enumerate((("0", "3", 5), ("3", "6", 4))):
            chosen = torch.randint(0, 2, (size,), generator=torch.Generator().manual_seed(10 * i + j)).double()
            state = flip(state, weight, reader, chosen, CENTRES[activation])
        changed.append(space.flatten(state))
    moved, canonical = torch.stack(changed), space.canonicalize(thetas)
    assert relative(space.evaluate(moved, inputs), space.evaluate(thetas, inputs)) < 1e-12
    assert relative(space.evaluate(canonical, inputs), space.evaluate(thetas, inputs)) < 1e-12
    torch.testing.assert_close(space.canonicalize(moved), canonical, rtol=1e-9, atol=1e-11)

    padded = trace(
        nn.Sequential(nn.Conv2d(2, 5, 3), nn.Sigmoid(), nn.Conv2d(5, 4, 3, padding=1)).double().eval(), torch.randn(1, 2, 6, 6).double()
    )
    thetas = draw(padded)
    assert torch.equal(padded.canonicalize(thetas, fix=["flip"]), thetas)


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.Linear(3, 5), nn.Sigmoid(), nn.Linear(5, 2, bias=False)),  # nothing takes the shift
        nn.Sequential(nn.Linear(3, 5, bias=False), nn.ReLU6(), nn.Linear(5, 2)),  # nothing moves the centre
        nn.Sequential(nn.Conv2d(3, 5, 3), nn.Sigmoid(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(20, 2)),  # a maximum becomes a minimum
        nn.Sequential(nn.Linear(3, 5), nn.Sigmoid(), nn.ReLU(), nn.Linear(5, 2)),
        nn.Sequential(nn.Linear(3, 5), nn.GELU(), nn.Linear(5, 2)),
    ],
)
def test_what_cannot_flip_stays(module: nn.Sequential) -> None:
    inputs = torch.randn(2, 3, 6, 6).double() if isinstance(module[0], nn.Conv2d) else torch.randn(2, 3).double()
    space = trace(module.double().eval(), inputs)
    thetas = draw(space)
    assert torch.equal(space.canonicalize(thetas, fix=["flip"]), thetas)


def test_flips_without_biases_at_the_first_layer() -> None:
    space = trace(nn.Sequential(nn.Linear(3, 5, bias=False), nn.Sigmoid(), nn.Linear(5, 2)).double().eval(), torch.randn(2, 3).double())
    thetas = draw(space)
    canonical = space.canonicalize(thetas, fix=["flip"])
    inputs = torch.randn(9, 3, dtype=torch.float64)
    assert not torch.equal(canonical, thetas)
    assert relative(space.evaluate(canonical, inputs), space.evaluate(thetas, inputs)) < 1e-12
    weights = space.unflatten(canonical)["0.weight"]
    assert bool((weights.gather(2, weights.abs().argmax(2, keepdim=True)) > 0).all())


def test_flips_beside_tanh_and_relu() -> None:
    module = (
        nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 5), nn.Sigmoid(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
        .double()
        .eval()
    )
    space = trace(module, torch.randn(2, 3, dtype=torch.float64))
    thetas = draw(space)
    inputs = torch.randn(9, 3, dtype=torch.float64)
    flipped = []
    for i, theta in enumerate(thetas):
        chosen = torch.randint(0, 2, (5,), generator=torch.Generator().manual_seed(i)).double()
        flipped.append(space.flatten(flip(space.unflatten(theta), "2", "4", chosen, (0.0, 1.0))))
    moved = space.act(space.sample_symmetry(len(thetas), generator=torch.Generator().manual_seed(2)), torch.stack(flipped))
    canonical = space.canonicalize(thetas)
    assert relative(space.evaluate(canonical, inputs), space.evaluate(thetas, inputs)) < 1e-12
    torch.testing.assert_close(space.canonicalize(moved), canonical, rtol=1e-9, atol=1e-11)


def test_what_the_table_says_of_flips_is_so() -> None:
    values = torch.linspace(-4, 4, 81, dtype=torch.float64)
    checked = 0
    for name, operator in OPERATORS.items():
        numbers = (0.0, 1.0) if name == "hardtanh" else ()
        if (0 not in operator.arguments and not numbers) or (flips := operator.flips(*numbers)) is None:
            continue
        inside = values / 4 if name in ("acos", "asin", "atanh") else values
        a, c = flips
        left, right = operator.function(a - inside, *numbers), c - operator.function(inside, *numbers)
        torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12, msg=name)
        checked += 1
    assert checked > 10
