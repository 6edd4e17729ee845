"""Whether two networks are the same."""

import math

import pytest
import torch
from torch import nn

from wsgraph import SpaceMismatchError, WeightSpace, from_state_dict, same, trace
from wsgraph.provenance import Yardstick, compared


def _space(name: str) -> WeightSpace:
    if name == "resnet":
        layers = [nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()]
        return trace(nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 4)).double().eval(), torch.randn(2, 1, 8, 8, dtype=torch.float64))
    return {
        "relu": WeightSpace.mlp([8, 24, 24, 4]),
        "tanh": WeightSpace.cnn([1, 12, 12], [4], "tanh"),
        "siren": WeightSpace.siren((2, 24, 24, 1)),
    }[name]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", ["relu", "tanh", "siren", "resnet"])
def test_equal_near_and_different(name: str, dtype: torch.dtype) -> None:
    space, generator = _space(name), torch.Generator().manual_seed(0)
    first, other = space.sample(2, generator=generator, dtype=dtype)
    moved = space.act(space.sample_symmetry(1, (1e-3, 1e3), generator=generator), first[None])[0]
    equal = same(space, first, moved)
    assert equal.verdict == "equal"
    assert equal.moved
    assert equal.distance < 1e-5
    assert equal.answers is not None
    assert equal.answers < (1e-9 if dtype == torch.float64 else 1e-3)
    torch.testing.assert_close(space.act(equal.element, first[None])[0], moved, rtol=1e-4 if dtype == torch.float32 else 1e-8, atol=1e-6)
    noise = 0.1 * torch.randn(space.num_params, generator=generator, dtype=dtype)
    near = same(space, first, moved * (1 + noise))
    assert near.verdict == "near"
    assert 0.01 < near.distance < 0.4
    different = same(space, first, other)
    assert different.verdict == "different"
    assert 0.85 < different.distance < 1.2


def test_layers_that_were_kept() -> None:
    space = WeightSpace.mlp([8, 24, 24, 4])
    first = space.sample(1, generator=torch.Generator().manual_seed(0))[0]
    tuned = first.clone()
    last = space.slices["layers.2.weight"]
    tuned[last] += 0.1 * torch.randn(last.stop - last.start, generator=torch.Generator().manual_seed(1))
    found = same(space, first, tuned)
    assert found.verdict == "near"
    assert not found.moved
    assert "layers.2.weight" not in found.kept
    assert {"layers.0.weight", "layers.1.weight", "layers.1.bias"} <= set(found.kept)
    by_name = {each.name: each for each in found.parameters}
    assert by_name["layers.2.weight"].distance > 0.05 > by_name["layers.0.weight"].distance
    assert f"{len(found.kept)} of {len(found.parameters)} parameters bit for bit the same" in str(found)
    assert found.document()["verdict"] == "near"


def test_dead_neurons_may_hold_anything() -> None:
    space, generator = WeightSpace.mlp([4, 8, 2]), torch.Generator().manual_seed(0)
    theta = space.sample(1, generator=generator, dtype=torch.float64)
    state = space.unflatten(theta)
    state["layers.1.weight"][..., 0] = 0  # nothing reads the neuron
    theta = space.flatten(state)
    moved = space.act(space.sample_symmetry(1, (1e-3, 1e3), generator=generator), theta)
    assert same(space, theta[0], moved[0]).verdict == "equal"


def test_networks_of_zeros_are_equal_to_themselves() -> None:
    space = WeightSpace.mlp([2, 4, 1])
    found = same(space, torch.zeros(space.num_params), torch.zeros(space.num_params))
    assert found.verdict == "equal"
    assert found.distance == 0
    assert math.isfinite(found.difference)


def test_files_of_other_formats_and_architectures() -> None:
    module = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).eval()
    space = trace(module, torch.ones(1, 4))
    own = space, space.flatten(module.state_dict())
    read = from_state_dict(module.state_dict(), "tanh")
    assert compared(own, read).verdict == "equal"
    wide = WeightSpace.mlp([4, 9, 2], "tanh")
    with pytest.raises(SpaceMismatchError, match=r"different architectures.*0\.weight of .* has shape \[8, 4\], .*\[9, 4\]"):
        compared(own, (wide, wide.sample(1)[0]))
    with pytest.raises(SpaceMismatchError, match="parameters of the same shapes, but other operators"):
        compared(own, from_state_dict(module.state_dict(), "relu"))
    deep = WeightSpace.mlp([4, 8, 8, 2], "tanh")
    with pytest.raises(SpaceMismatchError, match=r"has 4 parameters, .* 6"):
        compared(own, (deep, deep.sample(1)[0]))


def test_errors() -> None:
    space = WeightSpace.mlp([2, 4, 1])
    theta = space.sample(1)[0]
    with pytest.raises(SpaceMismatchError, match="'second' of shape"):
        same(space, theta, theta[1:])
    with pytest.raises(ValueError, match="NaN or infinite"):
        same(space, theta, theta * torch.nan)


def test_the_yardstick_is_one_at_shuffled_networks() -> None:
    space, generator = WeightSpace.cnn([1, 8, 8], [4]), torch.Generator().manual_seed(0)
    thetas = space.sample(40, generator=generator, dtype=torch.float64)
    thetas[:, space.slices["layers.0.bias"]] += 3  # what all have in common is no likeness
    yardstick = Yardstick.of(space, thetas)
    points = yardstick.prepare(thetas)
    strangers = yardstick.between(points, torch.arange(20), points, torch.arange(20, 40))
    assert float(strangers.min()) > 0.9
    assert float(strangers.max()) < 1.1
