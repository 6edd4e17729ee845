from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from wsgraph import AssumedGeometryWarning, StateDictWarning, WeightSpace
from wsgraph.convert import from_state_dict, list_networks
from wsgraph.nn import Probes


def tensor(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype)


def state(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    return {key: tensor(*shape, seed=i) for i, (key, shape) in enumerate(shapes.items())}


def read(state_dict: dict[str, Tensor], activation: str = "relu", **options: Any) -> tuple[WeightSpace, Tensor]:
    """Read a state dict, with the geometry that is assumed otherwise, and check the round trip bit for bit."""
    if any(tensor.ndim > 2 for tensor in state_dict.values()):
        options = {"stride": 1, "padding": 0, "pooling": "none", **options}
    space, theta = from_state_dict(state_dict, activation, **options)
    back = space.unflatten(theta)
    assert back.keys() == state_dict.keys()
    for key, original in state_dict.items():
        assert back[key].dtype == original.dtype
        assert torch.equal(back[key], original)
    return space, theta


def weights(space: WeightSpace) -> list[str | None]:
    return [layer.weight for layer in space.layers]


def biases(space: WeightSpace) -> list[str | None]:
    return [layer.bias for layer in space.layers]


# == Names ==

NAMINGS = {
    "torch": ("layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias", "layers.2.weight", "layers.2.bias"),
    "sequential": ("seq.0.weight", "seq.0.bias", "seq.2.weight", "seq.2.bias", "seq.4.weight", "seq.4.bias"),
    "numbered": ("W0", "b0", "W1", "b1", "W2", "b2"),
    "one prefix": ("net.w1", "net.b1", "net.w2", "net.b2", "net.w3", "net.b3"),
    "kernel": ("Dense_0/kernel", "Dense_0/bias", "Dense_1/kernel", "Dense_1/bias", "Dense_2/kernel", "Dense_2/bias"),
    "nested": ("net.0.linear.weight", "net.0.linear.bias", "net.1.linear.weight", "net.1.linear.bias", "head.weight", "head.bias"),
    "attribute": ("actor.fc1.weight", "actor.fc1.bias", "actor.fc2.weight", "actor.fc2.bias", "actor.out.weight", "actor.out.bias"),
    "other separator": ("w_1", "bias.1", "w_2", "bias.2", "w_3", "bias.3"),
    "no role word": ("arr_0", "arr_1", "arr_2", "arr_3", "arr_4", "arr_5"),
    "distinct names": ("first.weight", "first.bias", "second.weight", "second.bias", "last.weight", "last.bias"),
}
SHAPES: tuple[tuple[int, ...], ...] = ((8, 2), (8,), (8, 8), (8,), (1, 8), (1,))


@pytest.mark.parametrize("names", NAMINGS.values(), ids=NAMINGS.keys())
def test_reads_any_naming(names: tuple[str, ...]) -> None:
    space, theta = read(state(dict(zip(names, SHAPES, strict=True))))
    assert [group.size for group in space.groups] == [2, 8, 8, 1]
    assert tuple(param.name for param in space.params) == names
    assert weights(space) == list(names[::2])
    assert biases(space) == list(names[1::2])
    assert space.architecture == WeightSpace.mlp([2, 8, 8, 1]).architecture
    assert theta.shape == (space.num_params,)


@pytest.mark.parametrize("naming", [name for name in NAMINGS if name not in ("no role word", "nested", "distinct names")])
@pytest.mark.parametrize("order", ["weights first", "bias before weight", "sorted", "reversed"])
def test_order_of_numbered_keys_does_not_matter(naming: str, order: str) -> None:
    names = NAMINGS[naming]
    original = state(dict(zip(names, SHAPES, strict=True)))
    keys = {
        "weights first": [*names[::2], *names[1::2]],
        "bias before weight": [names[i] for i in (1, 0, 3, 2, 5, 4)],
        "sorted": sorted(names),
        "reversed": list(reversed(names)),
    }[order]
    space, theta = read({key: original[key] for key in keys})
    assert weights(space) == list(names[::2])
    assert biases(space) == list(names[1::2])
    assert torch.equal(theta, torch.cat([original[name].flatten() for name in names]))


def test_theta_is_the_concatenation_in_chain_order() -> None:
    original = state({"b.2": (1,), "w.2": (1, 3), "b.1": (3,), "w.1": (3, 2)})
    _, theta = read(original)
    assert torch.equal(theta, torch.cat([original[key].flatten() for key in ("w.1", "b.1", "w.2", "b.2")]))


def test_numbers_are_ordered_as_numbers() -> None:
    original = {f"layers.{i}.weight": tensor(4, 4, seed=i) for i in sorted(range(12), key=str)}
    assert list(original)[1:3] == ["layers.1.weight", "layers.10.weight"]
    space, _ = read(original)
    assert weights(space) == [f"layers.{i}.weight" for i in range(12)]


def test_numbers_are_ordered_within_unlike_layers() -> None:
    # Eleven entries of one Sequential whose blocks differ in name: their index decides, not the sorted file.
    names = [f"net.{i}.{'inner' if i % 2 else 'plain'}.weight" for i in range(11)]
    space, _ = read({key: tensor(4, 4, seed=i) for i, key in enumerate(sorted(names))})
    assert weights(space) == names


def test_numbers_sort_within_the_places_of_their_family() -> None:
    space, _ = read(state({"up2.weight": (4, 4), "down2.weight": (4, 4), "up1.weight": (4, 4), "down1.weight": (4, 4)}))
    assert weights(space) == ["up1.weight", "down1.weight", "up2.weight", "down2.weight"]


def test_leading_zeros_keep_the_place_in_the_dict() -> None:
    space, _ = read(state({"w1.weight": (4, 4), "w01.weight": (4, 4)}))
    assert weights(space) == ["w1.weight", "w01.weight"]


def test_classifier_listed_first_is_found_by_its_shape() -> None:
    shapes = {"fc.bias": (10,), "fc.weight": (10, 6), "layers.0.bias": (6,), "layers.0.weight": (6, 3), "layers.1.bias": (6,)}
    space, _ = read(state({**shapes, "layers.1.weight": (6, 6)}))
    assert weights(space) == ["layers.0.weight", "layers.1.weight", "fc.weight"]


def test_convolutions_come_before_linear_layers() -> None:
    shapes = {"classifier.weight": (16, 16), "features.0.weight": (16, 1, 3, 3), "features.1.weight": (16, 16, 3, 3)}
    space, _ = read(state(shapes), readout="global_avg_pool")
    assert weights(space) == ["features.0.weight", "features.1.weight", "classifier.weight"]


def test_ambiguous_order_is_an_error() -> None:
    shapes = {"a.weight": (4, 2), "d.weight": (1, 4), "b.weight": (4, 4), "c.weight": (4, 4)}
    with pytest.raises(ValueError, match=r"ambiguous.*'a.weight', 'b.weight', 'c.weight', 'd.weight' and also 'a.weight', 'c.weight'"):
        from_state_dict(state(shapes))


def test_alphabetical_order_that_chains_is_not_trusted() -> None:
    shapes = {"lower.bias": (4,), "lower.weight": (4, 4), "upper.bias": (4,), "upper.weight": (4, 4)}
    with pytest.raises(ValueError, match=r"order of the layers is ambiguous.*Pass the entries in the order of the network"):
        from_state_dict(state(shapes))
    original = state(shapes)
    space, _ = read({key: original[key] for key in ("upper.weight", "upper.bias", "lower.weight", "lower.bias")})
    assert weights(space) == ["upper.weight", "lower.weight"]


def test_alphabetical_order_within_dtypes_is_not_trusted() -> None:
    # Safetensors files list wider dtypes first.
    original = {"lower.bias": tensor(4), "upper.bias": tensor(4)}
    original |= {key: tensor(4, 4, dtype=torch.bfloat16) for key in ("lower.weight", "upper.weight")}
    with pytest.raises(ValueError, match="ambiguous"):
        from_state_dict(original)


def test_alphabetical_order_with_one_possible_chain_is_accepted() -> None:
    space, _ = read(state({"a.bias": (1,), "a.weight": (1, 4), "b.bias": (4,), "b.weight": (4, 2)}))
    assert weights(space) == ["b.weight", "a.weight"]


def test_search_for_an_order_ends() -> None:
    shapes = {f"{chr(97 + i)}.weight": (4, 4) for i in range(20)} | {"z.weight": (3, 5)}
    with pytest.raises(ValueError, match=r"'z.weight' of shape \[3, 5\] does not fit"):
        from_state_dict(state(shapes))


# == Biases ==


def test_layers_may_lack_a_bias() -> None:
    space, _ = read(state({"0.weight": (8, 2), "1.weight": (8, 8), "1.bias": (8,), "2.weight": (1, 8)}))
    assert biases(space) == [None, "1.bias", None]


def test_bias_without_matching_name_belongs_to_the_weight_before_it() -> None:
    space, _ = read(state({"one.matrix": (4, 2), "shift.a": (4,), "two.matrix": (4, 4), "shift.c": (4,)}))
    assert biases(space) == ["shift.a", "shift.c"]


def test_bias_without_matching_name_belongs_to_the_weight_after_it() -> None:
    space, _ = read(state({"shift.a": (4,), "one.matrix": (4, 2), "shift.c": (4,), "two.matrix": (4, 4)}))
    assert biases(space) == ["shift.a", "shift.c"]


def test_bias_without_matching_name_belongs_to_the_only_weight_of_its_size() -> None:
    space, _ = read(state({"u0": (8, 2), "u1": (3, 8), "c0": (8,), "c1": (3,)}))
    assert biases(space) == ["c0", "c1"]


@pytest.mark.parametrize(
    "shapes, key",
    [
        ({"u0": (4, 4), "u1": (4, 4), "c0": (4,), "c1": (4,)}, "c0"),
        ({"first": (4, 4), "middle": (4,), "last": (4, 4)}, "middle"),
        ({"w": (4, 2), "b": (4,), "extra": (4,)}, "extra"),
        ({"w1": (4, 2), "w2": (4, 4), "b2": (4,), "b3": (4,)}, "b3"),
        ({"conv.weight": (4, 2, 3), "a": (4,), "c": (4,), "fc.weight": (1, 4)}, "a"),
    ],
)
def test_vector_of_unclear_owner_is_an_error(shapes: dict[str, tuple[int, ...]], key: str) -> None:
    with pytest.raises(ValueError, match=rf"^'{key}' of shape \[4\] does not fit.*expected a bias whose key or place tells which weight"):
        from_state_dict(state(shapes))


def test_bias_of_wrong_size() -> None:
    with pytest.raises(
        ValueError, match=r"^'fc.bias' of shape \[3\] .* expected a bias of shape \[4\] for 'fc.weight' of shape \[4, 2\]\. "
    ):
        from_state_dict(state({"fc.weight": (4, 2), "fc.bias": (3,)}))


def test_transposed_weights_are_named_as_such() -> None:
    with pytest.raises(ValueError, match=r"^'fc.bias' of shape \[4\].*weights stored as \[in, out\] have to be transposed first"):
        from_state_dict(state({"fc.weight": (2, 4), "fc.bias": (4,)}))


# == Dtype, device ==


def test_mixed_dtypes_come_back_bit_for_bit() -> None:
    original = {
        "0.weight": tensor(4, 2, dtype=torch.bfloat16),
        "0.bias": tensor(4, dtype=torch.float32),
        "1.weight": tensor(4, 4, dtype=torch.float16),
        "2.weight": tensor(1, 4, dtype=torch.float64),
        "2.bias": tensor(1, dtype=torch.bfloat16),
    }
    original["0.bias"][0] = -0.0
    space, theta = read(original)
    assert theta.dtype == torch.float64
    assert [param.dtype for param in space.params] == ["bfloat16", "float32", "float16", None, "bfloat16"]
    assert torch.signbit(space.unflatten(theta)["0.bias"][0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_common_dtype_is_kept(dtype: torch.dtype) -> None:
    space, theta = read({"weight": tensor(1, 2, dtype=dtype), "bias": tensor(1, dtype=dtype)})
    assert theta.dtype == dtype
    assert [param.dtype for param in space.params] == [None, None]


def test_eight_bit_floats_are_widened() -> None:
    space, theta = from_state_dict({"weight": torch.tensor([[0.5, -2.0]]).to(torch.float8_e4m3fn), "bias": tensor(1)})
    assert theta.dtype == torch.float32
    back = space.unflatten(theta)["weight"]
    assert back.dtype == torch.float8_e4m3fn
    assert torch.equal(back.float(), torch.tensor([[0.5, -2.0]]))


def test_network_of_mixed_dtypes_runs_in_the_dtype_of_theta() -> None:
    original = {"weight": tensor(1, 2, dtype=torch.bfloat16), "bias": tensor(1)}
    space, theta = from_state_dict(original)
    x = tensor(3, 2, seed=1)
    expected = x @ original["weight"].float().T + original["bias"]
    torch.testing.assert_close(space.evaluate(theta[None], x)[0], expected)


def test_theta_stays_on_the_device() -> None:
    _, theta = from_state_dict({key: value.to("meta") for key, value in state({"weight": (1, 2), "bias": (1,)}).items()})
    assert theta.device.type == "meta"


def test_parameters_keep_their_gradient() -> None:
    module = nn.Linear(2, 1)
    _, theta = from_state_dict(dict(module.named_parameters()))
    theta.sum().backward()
    assert module.weight.grad is not None
    assert torch.equal(module.weight.grad, torch.ones(1, 2))


# == Functions ==


def randomize(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5, generator=generator)
    return module.double()


@pytest.mark.parametrize(
    "activation, layer", [("relu", nn.ReLU()), ("tanh", nn.Tanh()), ("gelu", nn.GELU()), ("sigmoid", nn.Sigmoid()), ("silu", nn.SiLU())]
)
def test_mlp_computes_the_function_of_the_module(activation: str, layer: nn.Module) -> None:
    module = randomize(nn.Sequential(nn.Linear(3, 7), layer, nn.Linear(7, 5, bias=False), layer, nn.Linear(5, 2)))
    space, theta = read(module.state_dict(), activation)
    x = tensor(6, 3, dtype=torch.float64)
    torch.testing.assert_close(space.evaluate(theta[None], x)[0], module(x))


def test_activations_per_hidden_group() -> None:
    module = randomize(nn.Sequential(nn.Linear(3, 7), nn.Tanh(), nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 2)))
    space, theta = from_state_dict(module.state_dict(), ["tanh", "relu"])
    x = tensor(6, 3, dtype=torch.float64)
    torch.testing.assert_close(space.evaluate(theta[None], x)[0], module(x))


CNNS: dict[str, tuple[nn.Module, dict[str, Any], tuple[int, ...], tuple[str, ...]]] = {
    "global average": (
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)),
        {"readout": "global_avg_pool"},
        (2, 8, 8),
        ("relu", "global_avg_pool"),
    ),
    "global maximum": (
        nn.Sequential(nn.Conv2d(2, 4, 5, stride=2, padding=1), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(4, 3)),
        {"readout": "global_max_pool", "stride": 2, "padding": 1},
        (2, 9, 9),
        ("relu", "global_max_pool"),
    ),
    "flatten": (
        nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 4 * 4, 6), nn.ReLU(), nn.Linear(6, 2)),
        {},
        (1, 6, 6),
        ("relu", "flatten"),
    ),
    "strides, paddings": (
        nn.Sequential(
            nn.Conv2d(1, 3, 3, stride=2, padding=1, bias=False),
            nn.ReLU(),
            nn.Conv2d(3, 4, (1, 3), stride=1, padding=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(4 * 9 * 7, 2),
        ),
        {"stride": [2, 1], "padding": [1, 2]},
        (1, 9, 9),
        ("relu", "flatten"),
    ),
    "pooling between": (
        nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)),
        {"pooling": "max_pool(2)"},
        (1, 8, 8),
        ("relu", "flatten"),
    ),
    "pooling after the last": (
        nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 2)),
        {"pooling": [None, "avg_pool(2)"]},
        (1, 8, 8),
        ("relu", "avg_pool(2)", "flatten"),
    ),
    "1d": (
        nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 5, 3)),
        {},
        (2, 7),
        ("relu", "flatten"),
    ),
    "3d": (
        nn.Sequential(nn.Conv3d(1, 2, 2), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(2, 3)),
        {"readout": "global_avg_pool"},
        (1, 4, 4, 4),
        ("relu", "global_avg_pool"),
    ),
    "kernel of one": (
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 4, 3)),
        {},
        (3, 2, 2),
        ("relu", "flatten"),
    ),
}


@pytest.mark.parametrize("module, options, shape, operators", CNNS.values(), ids=CNNS.keys())
def test_cnn_computes_the_function_of_the_module(
    module: nn.Module, options: dict[str, Any], shape: tuple[int, ...], operators: tuple[str, ...]
) -> None:
    randomize(module)
    space, theta = read(module.state_dict(), **options)
    last = max(i for i, layer in enumerate(space.layers) if layer.operator == "conv")
    assert space.groups[last + 1].operators == operators
    x = tensor(4, *shape, dtype=torch.float64)
    torch.testing.assert_close(space.evaluate(theta[None], x)[0], module(x))


def test_cnn_equals_the_space_built_by_hand() -> None:
    space, _ = read(state({"c1.weight": (4, 1, 3, 3), "c1.bias": (4,), "fc.weight": (10, 4 * 9), "fc.bias": (10,)}), stride=2, padding=1)
    expected = WeightSpace.cnn([1, 4], [10], stride=2, padding=1, readout="flatten", positions=9)
    assert space.architecture == expected.architecture


# == Networks that are no chain ==


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, bias=False)
        self.conv2 = nn.Conv2d(4, 8, 3, bias=False)
        self.projection = nn.Conv2d(4, 8, 1, bias=False)
        self.fc = nn.Linear(8, 2)


ADVICE = r"wiring of such a network cannot be read from its shapes: it has to be traced .* WeightSpace\(groups, layers, params\)"
NO_CHAINS = {
    "batch norm": (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2)).state_dict(),
        r"^'1.weight' of shape \[4\] .* expected a weight of 2 to 5 dimensions \(vectors that scale or normalise",
    ),
    "batch norm without parameters": (
        nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, affine=False), nn.Flatten(), nn.Linear(4, 2)).state_dict(),
        r"^'1.running_mean' of shape \[4\] .* expected a weight of 2 to 5 dimensions",
    ),
    "layer scale": (
        state({"fc1.weight": (4, 2), "gamma": (4,), "fc2.weight": (1, 4)}),
        r"^'gamma' of shape \[4\] .* expected a weight of 2 to 5 dimensions",
    ),
    "residual": (
        Residual().state_dict(),
        r"^'projection.weight' of shape \[8, 4, 1, 1\] .* expected a convolution of shape \[\*, 8, \*, \*\] or a linear weight, after",
    ),
    "depthwise": (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, groups=4), nn.Flatten(), nn.Linear(4, 2)).state_dict(),
        r"^'1.weight' of shape \[4, 1, 3, 3\] .* expected a convolution of shape \[\*, 4, \*, \*\] or a linear weight, after '0.weight'",
    ),
    "attention": (
        nn.MultiheadAttention(8, 2).state_dict(),
        r"^'in_proj_weight' of shape \[24, 8\] .* expected a layer that reads the layer before it alone \(keys of this name",
    ),
    "square attention": (
        state({f"{name}_proj.weight": (8, 8) for name in ("q", "k", "v", "out")}),
        r"^'q_proj.weight' of shape \[8, 8\] .* expected a layer that reads the layer before it alone",
    ),
    "recurrent": (
        nn.RNN(4, 4).state_dict(),
        r"^'weight_ih_l0' of shape \[4, 4\] .* expected a layer that reads the layer before it alone",
    ),
    "square shortcut": (
        state({"conv.weight": (4, 4, 1, 1), "shortcut.weight": (4, 4, 1, 1), "fc.weight": (2, 4)}),
        r"^'shortcut.weight' of shape .* expected a layer that reads the layer before it alone",
    ),
    "wrong sizes": (
        state({"fc1.weight": (8, 2), "fc2.weight": (3, 7)}),
        r"^'fc2.weight' of shape \[3, 7\] .* expected a linear weight of shape \[\*, 8\], after 'fc1.weight' of shape \[8, 2\]",
    ),
    "wrong sizes after convolution": (
        state({"conv.weight": (4, 1, 3, 3), "fc.weight": (2, 6)}),
        r"^'fc.weight' of shape \[2, 6\] .* expected a linear weight of shape \[\*, 4\], or a multiple of 4 after flattening",
    ),
    "classifier listed first": (
        state({"fc.weight": (2, 6), "zonv.weight": (4, 1, 3, 3)}),
        r"^'fc.weight' of shape \[2, 6\] .* or a multiple of 4 after flattening, after 'zonv.weight'",
    ),
    "mixed dimensions": (
        state({"a.weight": (4, 1, 3, 3), "b.weight": (4, 4, 3), "fc.weight": (2, 4)}),
        r"^'b.weight' of shape \[4, 4, 3\] .* expected a convolution of shape \[\*, 4, \*, \*\]",
    ),
    "convolution at the end": (
        state({"a.weight": (4, 1, 3, 3), "b.weight": (4, 4, 3, 3)}),
        r"^'b.weight' of shape .* expected a linear layer at the end",
    ),
    "scalar": (
        state({"weight": (1, 2), "temperature": ()}),
        r"^'temperature' of shape \[\] .* expected a weight of 2 to 5 dimensions or a",
    ),
    "six dimensions": (state({"weight": (1, 1, 1, 1, 1, 1)}), r"^'weight' of shape .* expected a weight of 2 to 5 dimensions or a bias"),
    "size zero": (state({"weight": (0, 2)}), r"^'weight' of shape \[0, 2\] .* expected no dimension of size 0"),
    "bias of two dimensions": (state({"fc.weight": (8, 4), "fc.bias": (1, 8)}), r"^'fc.bias' of shape \[1, 8\] .* a bias of 1 dimension"),
    "bias alone": (state({"bias": (8,)}), r"^'bias' of shape \[8\] .* expected a bias whose key or place tells which weight"),
    "first of two": (
        state({"norm.weight": (2,), "fc.weight": (8, 2), "gc.weight": (3, 7)}),
        r"^'norm.weight' of shape \[2\] .* expected a weight of 2 to 5 dimensions",
    ),
}


@pytest.mark.parametrize("state_dict, message", NO_CHAINS.values(), ids=NO_CHAINS.keys())
def test_network_that_is_no_chain(state_dict: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        from_state_dict(state_dict)
    assert caught.match(ADVICE)


# == Networks that only look like a chain ==


def mlp(*sizes: int, bias: bool = True) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(a, b, bias=bias) for a, b in itertools.pairwise(sizes)))


def joined(**networks: nn.Module) -> dict[str, Tensor]:
    return nn.ModuleDict(networks).state_dict()


def reparametrized(change: Callable[[Any], Any]) -> dict[str, Tensor]:
    """Two square layers, of which the first is changed: all shapes would chain."""
    module = mlp(8, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of weight norm under its old names
        change(module[0])
    return module.state_dict()


def lists(*modules: nn.Module) -> nn.ModuleList:
    return nn.ModuleList(modules)


TIED = tensor(8, 8)
# Every one of these was read as a chain, without a word.
LOOK_LIKE_CHAINS: dict[str, tuple[dict[str, Tensor], str]] = {
    # Adapters
    "LoRA": (state({"a.lora_A.weight": (4, 16), "a.lora_B.weight": (16, 4)}), "'a.lora_A.weight' .*adapter.*merge it"),
    "LoRA of kohya": (state({"a.lora_down.weight": (4, 16), "a.lora_up.weight": (16, 4)}), "belongs to an adapter"),
    "LoRA of diffusers": (state({"a.lora.down.weight": (4, 16), "a.lora.up.weight": (16, 4)}), "belongs to an adapter"),
    "LoRA in a network": ({**mlp(8, 8).state_dict(), **state({"0.lora_A": (2, 8), "0.lora_B": (8, 2)})}, "'0.lora_A' .*adapter"),
    "DoRA": (state({"a.weight": (8, 8), "a.lora_magnitude_vector": (8,)}), "'a.lora_magnitude_vector' .*adapter"),
    "LoHa": (state({"a.hada_w1_a": (8, 2), "a.hada_w1_b": (2, 8)}), "belongs to an adapter"),
    "IA3": (state({"a.ia3_l": (8, 1)}), "belongs to an adapter"),
    # Parametrized weights
    "weight norm, old": (reparametrized(lambda layer: nn.utils.weight_norm(layer)), "weight norm, not the weight.*remove_weight_norm"),
    "weight norm": (reparametrized(nn.utils.parametrizations.weight_norm), "parametrized.*remove_parametrizations"),
    "spectral norm, old": (reparametrized(nn.utils.spectral_norm), "spectral norm, not the weight.*remove_spectral_norm"),
    "spectral norm": (reparametrized(nn.utils.parametrizations.spectral_norm), "parametrized.*remove_parametrizations"),
    "orthogonal": (reparametrized(nn.utils.parametrizations.orthogonal), "parametrized.*remove_parametrizations"),
    "pruned": (reparametrized(lambda layer: prune.l1_unstructured(layer, "weight", 0.5)), "is pruned, not the weight.*prune.remove"),
    "pruned bias": (reparametrized(lambda layer: prune.l1_unstructured(layer, "bias", 0.5)), "is pruned.*prune.remove"),
    "noisy layer": (state({"fc.weight_mu": (8, 8), "fc.weight_sigma": (8, 8)}), "drawn at random"),
    "Bayesian layer": (
        state({"fc.weight_mu": (8, 8), "fc.weight_rho": (8, 8), "fc.bias_mu": (8,), "fc.bias_rho": (8,)}),
        "drawn at random",
    ),
    "spline layer": (state({"0.base_weight": (8, 8), "0.spline_scaler": (8, 8)}), "'0.spline_scaler' .* belongs to no layer"),
    "factors": (state({"a.U": (8, 2), "a.V": (2, 8), "b.U": (2, 8), "b.V": (2, 2)}), "one of several matrices of the layer 'a' .'U', 'V'."),
    "factors with a bias": (state({"fc.U": (8, 2), "fc.V": (2, 8), "fc.bias": (8,)}), "'fc.bias' .*whose key or place"),
    "tied and transposed": ({"enc.weight": TIED[:2], "dec.weight": TIED[:2].T}, "'enc.weight' and 'dec.weight' are one tensor"),
    "tied": ({"enc.weight": TIED, "dec.weight": TIED}, "'enc.weight' and 'dec.weight' are one tensor"),
    # Several networks
    "online and target": (
        joined(q_net=mlp(8, 8, 8), q_net_target=mlp(8, 8, 8)),
        r"holds 2 networks, under 'q_net.', 'q_net_target.': choose one with prefix='q_net.' \(--prefix",
    ),
    "moving average": (joined(model=mlp(8, 8, 8), ema_model=mlp(8, 8, 8)), "2 networks, under 'model.', 'ema_model.'"),
    "student and teacher": (joined(student=mlp(8, 8, 8), teacher=mlp(8, 8, 8)), "holds 2 networks"),
    "fast and slow": (joined(fast=mlp(8, 8, 8), slow=mlp(8, 8, 8)), "holds 2 networks"),
    "layers and their copies": (
        joined(fc1=nn.Linear(8, 8), fc2=nn.Linear(8, 8), fc1_target=nn.Linear(8, 8), fc2_target=nn.Linear(8, 8)),
        "names 'fc1', 'fc2', 'fc1_target', 'fc2_target' are those of networks",
    ),
    "policy and value": (joined(policy=mlp(8, 8, 8), value=mlp(8, 8, 1)), "2 networks, under 'policy.', 'value.'"),
    "generator and discriminator": (joined(generator=mlp(8, 8, 8), discriminator=mlp(8, 8, 1)), "holds 2 networks"),
    "names of no meaning": (joined(G=mlp(8, 8, 8), D=mlp(8, 8, 1)), "2 networks, under 'G.', 'D.'"),
    "momentum contrast": (joined(encoder_q=mlp(8, 8, 8), encoder_k=mlp(8, 8, 8)), "2 networks, under 'encoder_q.', 'encoder_k.'"),
    "twins": (joined(q1=mlp(8, 8, 8), q2=mlp(8, 8, 8)), "2 networks, under 'q1.', 'q2.'"),
    "siamese branches": (joined(left=mlp(8, 8), right=mlp(8, 8), out=nn.Linear(8, 1)), "names 'left', 'right', 'out'"),
    "ensemble": (joined(members=lists(mlp(8, 8, 8), mlp(8, 8, 8))), "2 networks, under 'members.0.', 'members.1.'"),
    "list of networks": (joined(nets=lists(mlp(4, 8, 4), mlp(4, 8, 4))), "2 networks, under 'nets.0.', 'nets.1.'"),
    "deep copies": ({f"agent.{k}": t for k, t in joined(net=mlp(8, 8, 8), old=mlp(8, 8, 8)).items()}, "under 'agent.net.', 'agent.old.'"),
    "hypernetwork": (joined(hypernet=mlp(8, 8, 8), main=mlp(8, 8, 8)), "makes the weights of another one"),
    "experts": (joined(router=nn.Linear(8, 8), experts=lists(mlp(8, 8, 8), mlp(8, 8, 8))), "mixture of experts"),
    # Several heads
    "two heads": (
        joined(trunk=nn.Linear(8, 8), policy=nn.Linear(8, 8), value=nn.Linear(8, 1)),
        "names 'trunk', 'policy', 'value' are those of networks or heads beside each other",
    ),
    "dueling heads": (joined(body=mlp(8, 8, 8), advantage=nn.Linear(8, 8), value=nn.Linear(8, 1)), "heads beside each other"),
    "numbered heads": (joined(trunk=mlp(8, 8), head1=nn.Linear(8, 8), head2=nn.Linear(8, 8)), "heads beside each other"),
    "list of heads": (joined(trunk=mlp(8, 8, 8), heads=lists(nn.Linear(8, 8), nn.Linear(8, 8))), "names '0', '1' under 'heads.'"),
    "moments": (joined(enc=mlp(8, 8), mu=nn.Linear(8, 8), logvar=nn.Linear(8, 8), dec=mlp(8, 8)), "heads beside each other"),
    "detection": (joined(body=mlp(8, 8), cls_head=nn.Linear(8, 8), bbox_head=nn.Linear(8, 4)), "heads beside each other"),
    "heads of names": (
        joined(trunk=mlp(8, 8), heads=nn.ModuleDict({"age": mlp(8, 8), "size": mlp(8, 8)})),
        "names 'age', 'size' under 'heads.'",
    ),
    "prior and posterior": (joined(prior=mlp(8, 8), posterior=mlp(8, 8)), "heads beside each other"),
    "players": (joined(player1=mlp(8, 8), player2=mlp(8, 8)), "heads beside each other"),
    "time of a denoiser": (joined(time_emb=nn.Linear(8, 8), net=mlp(8, 8, 8)), "'time_emb.weight' .*conditions a network"),
    "branch and trunk": (joined(branch_net=mlp(8, 8), trunk_net=mlp(8, 8)), "names 'branch_net', 'trunk_net' are"),
    "dynamics and reward": (joined(dynamics=mlp(8, 8), reward=mlp(8, 1)), "heads beside each other"),
    "fast weights": (joined(net=mlp(8, 8), fast_net=mlp(8, 8)), "heads beside each other"),
    "scales and shifts": (joined(gamma=mlp(8, 8), beta=mlp(8, 8)), "heads beside each other"),
    "gaussian actor": (joined(latent_pi=mlp(8, 8), mu=nn.Linear(8, 8), log_std=nn.Linear(8, 8)), "heads beside each other"),
    "tasks": (joined(shared=mlp(8, 8), task_a=nn.Linear(8, 8), task_b=nn.Linear(8, 8)), "heads beside each other"),
    # Other layers
    "embedding": (state({"emb.weight": (10, 4), "fc.weight": (4, 4), "fc.bias": (4,)}), "'emb.weight' .*table of vectors"),
    "square embedding": (state({"tok_emb.weight": (8, 8), "fc.weight": (8, 8), "fc.bias": (8,)}), "'tok_emb.weight' .*table of vectors"),
    "positions": (state({"pos_embed": (1, 8, 8), "fc.weight": (8, 8), "fc.bias": (8,)}), "'pos_embed' .*table of vectors"),
    "recurrent": (joined(i2h=nn.Linear(8, 8), h2h=nn.Linear(8, 8), h2o=nn.Linear(8, 8)), "recurrent"),
    "attention": (joined(q_proj=nn.Linear(8, 8), k_proj=nn.Linear(8, 8)), "attention"),
    "keys and values": (joined(key=nn.Linear(8, 8), value=nn.Linear(8, 8)), "heads beside each other"),
    "mask of a layer": (state({"0.weight": (8, 8), "0.mask": (8, 8), "1.weight": (8, 8)}), "'0.mask' .*multiplies its weight"),
    "prototypes": (state({"0.weight": (8, 8), "0.bias": (8,), "prototypes.weight": (8, 8)}), "'prototypes.weight' .*table"),
    "upsampling": (state({"up1.weight": (8, 8, 4, 4), "up2.weight": (8, 8, 4, 4), "fc.weight": (2, 8)}), "transposed convolutions"),
    "skip": (joined(down=nn.Linear(8, 8), skip=nn.Linear(8, 8), up=nn.Linear(8, 8)), "residual"),
    "gate": (joined(gate_proj=nn.Linear(8, 8), up_proj=nn.Linear(8, 8), down_proj=nn.Linear(8, 8)), "gate, which multiplies"),
    "depthwise by name": (state({"dwconv.weight": (3, 1, 3, 3), "fc.weight": (2, 3)}), "depthwise or grouped"),
    "transposed by name": (state({"deconv.weight": (8, 8, 3, 3), "fc.weight": (2, 8)}), "transposed convolutions"),
    "transposed": (state({"0.weight": (16, 8, 4, 4), "2.weight": (8, 4, 4, 4), "fc.weight": (2, 4)}), "transposed convolutions"),
    "bilinear": (state({"bilinear.weight": (8, 8, 8), "fc.weight": (8, 8)}), "bilinear"),
    "optimizer": ({**mlp(8, 8).state_dict(), "optimizer.exp_avg": tensor(8, 8)}, "'optimizer.exp_avg' .* state of an optimizer"),
    "quantised": (state({"0.weight": (8, 8), "0.weight_scale": (8,), "1.weight": (8, 8)}), "quantised network: dequantize"),
    "quantised zero point": ({**state({"weight": (1, 2)}), "zero_point": torch.tensor(3)}, "'zero_point' .*quantised"),
    # Layout
    "kernels of Flax": (state({"a/kernel": (8, 8), "a/bias": (8,), "b/kernel": (8, 8), "b/bias": (8,)}), r"stored \[in, out\] are"),
    "kernels of Keras": (state({"a/kernel": (3, 3, 3, 3), "b/kernel": (3, 3, 3, 3), "c/kernel": (10, 3)}), r"stored \[in, out\] are"),
    "kernels of Haiku": (state({"net/~/linear/w": (8, 8), "net/~/linear/b": (8,)}), r"stored \[in, out\] are"),
    "matrices of scikit-learn": (state({"coefs_0": (8, 8), "intercepts_0": (8,), "coefs_1": (8, 8)}), r"stored \[in, out\] are"),
    "channels last": (
        state({"a.weight": (3, 3, 1, 16), "b.weight": (3, 3, 16, 16), "fc.weight": (10, 3)}),
        r"'a.weight' .* stored as \[\*kernel, in, out\]",
    ),
    "transposed matrices": (state({"a.weight": (2, 8), "b.weight": (8, 1)}), r"stored as \[in, out\], not as \[out, in\]"),
    "order of groups": (
        state({"lower.weight": (8, 8), "upper.weight": (8, 8), "upper.bias": (8,), "lower.bias": (8,)}),
        "order of the layers is ambiguous",
    ),
    "stacked ensemble": (
        state({"0.weight": (5, 8, 4), "0.bias": (5, 8), "1.weight": (5, 2, 8)}),
        "'0.bias' .*bias of 1 dimension .of networks stacked",
    ),
    # Beside a network
    "log_std": ({**mlp(8, 8, 2).state_dict(), "log_std": tensor(2)}, "'log_std' .*what belongs to no layer has to be left out"),
    "log_std of two dimensions": ({**mlp(8, 8, 2).state_dict(), "actor_logstd": tensor(1, 2)}, "'actor_logstd' .* belongs to no layer"),
    "covariance": ({**mlp(8, 8, 2).state_dict(), "cov": tensor(2, 2)}, "'cov' .* belongs to no layer, .* leave it out"),
    "Fourier features": (state({"rff.weight": (8, 2), "0.weight": (8, 8), "0.bias": (8,)}), "'rff.weight' .* called as frequencies are"),
    "gradients": (state({"0.weight": (8, 8), "0.weight.grad": (8, 8)}), "'0.weight.grad' .*as a gradient is"),
    "saved modules": (
        state({"0.original_module.weight": (8, 8), "0.modules_to_save.default.weight": (8, 8)}),
        "'0.original_module.weight' .* adapter",
    ),
    "frequencies": ({"B": tensor(8, 8), **mlp(8, 8, 2).state_dict()}, "'B' .* belongs to no layer"),
    "shift of the inputs": ({**mlp(8, 8, 2, bias=False).state_dict(), "obs_shift": tensor(8)}, "'obs_shift' .*has to be left out"),
    "scales of layers": (state({"0.weight": (8, 8), "0.s": (8,), "1.weight": (2, 8)}), "'0.s' .*has to be left out"),
}


@pytest.mark.parametrize("state_dict, message", LOOK_LIKE_CHAINS.values(), ids=LOOK_LIKE_CHAINS.keys())
def test_what_only_looks_like_a_chain_is_refused(state_dict: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_state_dict(state_dict)


@pytest.mark.parametrize(
    "sections",
    [
        {"encoder": mlp(8, 4, 2), "decoder": mlp(2, 4, 8)},
        {"encoder": mlp(8, 4), "to_latent": nn.Linear(4, 2), "decoder": mlp(2, 4, 8)},
        {"input_proj": nn.Linear(4, 8), "hidden": nn.Linear(8, 8), "output_proj": nn.Linear(8, 4)},
        {"trunk": mlp(4, 4), "head": nn.Linear(4, 4)},
        {"phi": mlp(4, 8, 8), "eta": mlp(8, 8, 2)},
        {"stem": nn.Conv2d(3, 8, 3), "body": nn.Conv2d(8, 8, 3), "head": nn.Linear(8, 10)},
    ],
    ids=lambda sections: " ".join(sections),
)
def test_names_and_submodules_tell_the_order_of_sorted_keys(sections: dict[str, nn.Module]) -> None:
    original = joined(**sections)
    given: dict[str, Any] = {"stride": 1, "padding": 0, "pooling": "none", "readout": "global_avg_pool"}
    geometry = given if "stem" in sections else {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected, _ = from_state_dict(original, **geometry)
        space, theta = from_state_dict(dict(sorted(original.items())), **geometry)
    assert weights(space) == weights(expected) == [key for key in original if key.endswith("weight")]
    assert all(torch.equal(tensor, original[key]) for key, tensor in space.unflatten(theta).items())


def test_names_do_not_overrule_shapes() -> None:
    space, _ = read(state({"input.bias": (2,), "input.weight": (2, 8), "output.bias": (8,), "output.weight": (8, 4)}))
    assert weights(space) == ["output.weight", "input.weight"]


UNDECIDED: dict[str, tuple[dict[str, Tensor], str]] = {
    "depthwise": (
        nn.Sequential(nn.Conv2d(3, 3, 3, groups=3), nn.Conv2d(3, 8, 1), nn.Flatten(), nn.Linear(8, 2)).state_dict(),
        r"'0.weight' of shape \[3, 1, 3, 3\] before '1.weight' .* depthwise convolution of 3 channels .* ordinary convolution of 1 channel",
    ),
    "residual blocks": (joined(blocks=lists(mlp(8, 16, 8), mlp(8, 16, 8))), "blocks under 'blocks.' have layers of the same shapes"),
    "unnamed ensemble": (lists(mlp(8, 8, 8), mlp(8, 8, 8)).state_dict(), "blocks under .* of ensembles do"),
    "gated layer": (state({"w1.weight": (16, 8), "w2.weight": (8, 16), "w3.weight": (16, 8)}), "shapes of a gated layer"),
    "sorted, without biases": (state({"a.weight": (4, 4), "b.weight": (4, 4)}), "alphabetical order.*number its keys"),
    "unlike the order": (
        state({"out.weight": (2, 4), "out.bias": (2,), "in.weight": (4, 3), "in.bias": (4,)}),
        "Read as in.weight, out.weight, the only order that shapes allow, though the layers do not follow",
    ),
    "table under another name": (
        state({"alphabet.weight": (10, 4), "fc.bias": (4,), "fc.weight": (4, 4)}),
        "Read as fc.weight, alphabet.weight, .* though the order of the dict says nothing",
    ),
    "branches of a layer": (
        state({"convs.0.lin_l.weight": (8, 8), "convs.0.lin_l.bias": (8,), "convs.0.lin_r.weight": (8, 8)}),
        "names 'lin_l' and 'lin_r' are as those of layers that read the same input",
    ),
    "gates of a cell": (joined(W_i=nn.Linear(8, 8), W_f=nn.Linear(8, 8)), "names 'W_i' and 'W_f'"),
    "two inputs": (joined(fcs1=nn.Linear(8, 8), fca1=nn.Linear(8, 8), fc2=nn.Linear(8, 1)), "names 'fcs1' and 'fca1'"),
    "two gates": (joined(U=nn.Linear(8, 8), V=nn.Linear(8, 8)), "names 'U' and 'V'"),
    "sections of equal width": (joined(encoder=mlp(8, 8, 8), decoder=mlp(8, 8, 8)), "read one behind the other, as their names say"),
}


@pytest.mark.parametrize("state_dict, message", UNDECIDED.values(), ids=UNDECIDED.keys())
def test_what_may_be_another_network_is_said(state_dict: dict[str, Tensor], message: str) -> None:
    geometry: dict[str, Any] = {"stride": 1, "padding": 0, "pooling": "none", "readout": "global_avg_pool"}
    options = geometry if any(value.ndim > 2 for value in state_dict.values()) else {}
    with pytest.warns(StateDictWarning, match=message):
        from_state_dict(state_dict, **options)


ORDINARY = {
    "autoencoder": joined(encoder=mlp(8, 4, 2), decoder=mlp(2, 4, 8)),
    "sections": joined(backbone=mlp(8, 8, 8), head=nn.Linear(8, 2)),
    "digits": nn.Sequential(nn.Conv2d(1, 16, 3), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(16, 10)).state_dict(),
    "convolutions, then linear": joined(features=nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3)), classifier=mlp(8, 8, 10)),
    "one head": joined(fc1=nn.Linear(8, 8), fc2=nn.Linear(8, 8), value=nn.Linear(8, 1)),
    "linear layer called embed": joined(embed=nn.Linear(8, 8), body=mlp(8, 8, 8), head=nn.Linear(8, 2)),
    "names": joined(input_layer=nn.Linear(8, 8), hidden_layer=nn.Linear(8, 8), output_layer=nn.Linear(8, 8)),
    "a target network alone": {f"target_net.{key}": value for key, value in mlp(8, 8, 2).state_dict().items()},
    "an expert alone": {f"experts.0.{key}": value for key, value in mlp(8, 8, 2).state_dict().items()},
    "blocks of convolutions": joined(
        block1=nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3)), block2=nn.Sequential(nn.Conv2d(8, 16, 3)), fc=nn.Linear(16, 2)
    ),
    "transposed kernels of another name": state({"a/kernel": (8, 2), "a/bias": (8,), "b/kernel": (8, 8), "b/bias": (8,)}),
    "equal values": {"a.weight": tensor(4, 4), "b.weight": tensor(4, 4), "b.bias": tensor(4)},
    # Names that resemble others
    "actor": joined(actor_mean=mlp(4, 8, 2)),
    "mean of an actor": joined(policy=nn.ModuleDict({"fc": nn.Linear(4, 8), "mean": nn.Linear(8, 2)})),
    "actor and mean": joined(actor=nn.ModuleDict({"latent_pi": mlp(4, 8, 8), "mu": nn.Linear(8, 2)})),
    "two heads one behind the other": joined(fc=nn.Linear(4, 8), pre_head=nn.Linear(8, 8), head=nn.Linear(8, 2)),
    "conditioning alone": joined(time_mlp=mlp(4, 8, 2)),
    "layers called frequency": joined(frequency_in=nn.Linear(4, 8), gradient_out=nn.Linear(8, 2)),
}


@pytest.mark.parametrize("state_dict", ORDINARY.values(), ids=ORDINARY.keys())
def test_ordinary_networks_are_read_without_a_word(state_dict: dict[str, Tensor]) -> None:
    options = {"readout": "global_avg_pool"} if any(value.ndim > 2 for value in state_dict.values()) else {}
    space, _ = read(state_dict, **options)
    assert len(space.layers) == sum(value.ndim > 1 for value in state_dict.values())


# == Geometry ==


def test_geometry_that_nobody_gave_is_said_and_marked() -> None:
    assumed = "stride 1, padding 0, no pooling, global_avg_pool before the linear layers"
    message = f"Weights do not show {assumed}; this was assumed of .*stride=, padding="
    with pytest.warns(AssumedGeometryWarning, match=message):
        space, theta = from_state_dict(CNN)
    assert space.assumed == ("stride 1", "padding 0", "no pooling", "global_avg_pool before the linear layers")
    told = f"Assumed, since weights do not show it: {assumed}."
    assert space.summary().splitlines()[-1] == space.report().splitlines()[-1] == told
    given, _ = from_state_dict(CNN, stride=1, padding=0, pooling="none", readout="global_avg_pool")
    assert given.assumed == ()
    assert (given, hash(given)) == (space, hash(space))
    assert given.digest != space.digest
    back = WeightSpace.from_json(space.to_json())
    assert back.assumed == space.assumed
    assert WeightSpace.from_json(given.to_json()).assumed == ()
    # Told once for each space: by from_state_dict of its own, by evaluate() of one from a file.
    inputs = tensor(1, 2, 8, 8)
    space.evaluate(theta[None], inputs)
    with pytest.warns(AssumedGeometryWarning, match="Weights do not show"):
        back.evaluate(theta[None], inputs)
    back.evaluate(theta[None], inputs)
    with pytest.warns(AssumedGeometryWarning, match="and 1 more spaces"):
        Probes([WeightSpace.from_json(space.to_json()), dataclasses.replace(space, assumed=("padding 0",))], 2)
    Probes(dataclasses.replace(space, assumed=()), 2)


@pytest.mark.parametrize(
    "options, assumed",
    [
        ({"stride": 2, "padding": 1, "pooling": "none"}, ("global_avg_pool before the linear layers",)),
        ({"stride": [1, 2], "readout": "global_max_pool", "pooling": [None, "none"]}, ("padding 0",)),
        ({"stride": 1, "padding": 0, "readout": "global_max_pool"}, ("no pooling",)),
    ],
)
def test_only_what_was_not_given_is_assumed(options: dict[str, Any], assumed: tuple[str, ...]) -> None:
    with pytest.warns(AssumedGeometryWarning, match=f"Weights do not show {assumed[0]}; "):
        assert from_state_dict(CNN, **options)[0].assumed == assumed


def test_nothing_is_assumed_of_flattening_and_of_linear_layers() -> None:
    shapes = {"c.weight": (4, 1, 3, 3), "fc.weight": (10, 4 * 9)}
    assert from_state_dict(state(shapes), stride=2, padding=1, pooling="none")[0].assumed == ()
    assert from_state_dict(MLP)[0].assumed == ()
    with pytest.raises(ValueError, match=r"'readout' is 'global_avg_pool', but 'fc.weight' reads several positions of every channel"):
        from_state_dict(state(shapes), stride=2, padding=1, pooling="none", readout="global_avg_pool")


# == Wrong values ==


def test_empty_dict() -> None:
    with pytest.raises(ValueError, match="The state dict is empty"):
        from_state_dict({})


def test_module_instead_of_state_dict() -> None:
    with pytest.raises(TypeError, match=r"Expected 'state_dict' to be a mapping .* \(got Linear\); see module.state_dict\(\)"):
        from_state_dict(nn.Linear(2, 1))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "content, message",
    [
        ({"epoch": 3, "state_dict": {}}, r"holds a int under 'epoch', not a tensor.*checkpoint\['state_dict'\]"),
        ({"model": {"weight": torch.ones(1, 1)}}, r"holds a dict under 'model', not a tensor.*checkpoint\['model'\]"),
        ({"weight": [[1.0]]}, r"holds a list under 'weight', not a tensor.*checkpoint\['state_dict'\]"),
        ({"weight": torch.ones(1, 1).numpy()}, r"holds a ndarray under 'weight'.*convert arrays with torch.as_tensor"),
        ({0: torch.ones(1, 1)}, r"Expected the keys of the state dict to be strings \(got 0\)"),
    ],
)
def test_values_that_are_no_tensors(content: dict[Any, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_state_dict(content)


def test_tensors_of_other_kinds() -> None:
    sparse = tensor(2, 2).to_sparse()
    with pytest.raises(ValueError, match=r"'0.weight' is stored as torch.sparse_coo, not as an ordinary tensor; convert it"):
        from_state_dict({"0.weight": sparse})
    with pytest.raises(ValueError, match=r"'weight' has no shape yet, as lazy layers have"):
        from_state_dict(nn.LazyLinear(4).state_dict())


@pytest.mark.parametrize("dtype", [torch.int16, torch.int64, torch.bool, torch.complex64])
def test_dtypes_that_are_not_floating(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=rf"Expected floating point weights, but '1.weight' has dtype {dtype}; "):
        from_state_dict({"0.weight": tensor(2, 2), "1.weight": torch.ones(1, 2, dtype=dtype)})


QUANTISED: dict[str, Callable[[], Tensor]] = {
    "per tensor": lambda: torch.quantize_per_tensor(torch.ones(4, 4), 0.1, 0, torch.qint8),
    "per channel": lambda: torch.quantize_per_channel(torch.ones(4, 4), torch.ones(4), torch.zeros(4), 0, torch.qint8),
    "packed bytes": lambda: torch.ones(8, 1, dtype=torch.uint8),
    "bytes": lambda: torch.ones(4, 4, dtype=torch.int8),
    "floats of 4 bits": lambda: torch.ones(4, 2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
    "integers of 4 bits": lambda: torch.empty(4, 4, dtype=getattr(torch, "int4")),  # noqa: B009,
}


@pytest.mark.filterwarnings("ignore:.*quantized tensor creation functions")
@pytest.mark.parametrize("layout", ["out_in", "in_out"])
@pytest.mark.parametrize("kind", QUANTISED)
def test_quantised_weights(kind: str, layout: str) -> None:
    weight = QUANTISED[kind]()
    network = {"0.weight": weight, "0.bias": torch.ones(4)}
    with pytest.raises(ValueError, match=r"but '0.weight' is quantised \(torch\..*\): dequantise the network first"):
        from_state_dict(network, layout=layout)
    (found,) = list_networks(network)
    assert "is quantised" in found.reason


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite(value: float) -> None:
    original = state({"0.weight": (2, 2), "0.bias": (2,), "1.weight": (1, 2)})
    original["0.bias"][1] = value
    with pytest.raises(ValueError, match=r"'0\.bias' holds NaN or infinite weights"):
        from_state_dict(original)


def test_tensors_on_different_devices() -> None:
    with pytest.raises(ValueError, match=r"Expected all tensors on one device, cpu, but '1.weight' is on meta; move them"):
        from_state_dict({"0.weight": tensor(2, 2), "1.weight": tensor(1, 2).to("meta")})


# == Wrong options ==

MLP = state({"0.weight": (4, 2), "1.weight": (1, 4)})
CNN = state({"0.weight": (4, 2, 3, 3), "1.weight": (4, 4, 3, 3), "2.weight": (1, 4)})


def test_unknown_activation() -> None:
    with pytest.raises(ValueError, match="Unknown activation or operator 'swoosh'"):
        from_state_dict(MLP, "swoosh")


def test_wrong_number_of_activations() -> None:
    with pytest.raises(ValueError, match=r"Expected 'activation' to be one name or one per hidden group, 1 \(got 2\)"):
        from_state_dict(MLP, ["relu", "tanh"])


@pytest.mark.parametrize("readout", ["flatten", "mean"])
def test_unknown_readout(readout: str) -> None:
    with pytest.raises(ValueError, match=rf"Expected 'readout' to be global_avg_pool or global_max_pool \(got '{readout}'\)"):
        from_state_dict(CNN, readout=readout)


@pytest.mark.parametrize("options", [{"stride": 2}, {"padding": 1}, {"pooling": "max_pool(2)"}])
def test_options_of_convolutions_without_convolutions(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="The state dict has no convolutions: leave out 'stride', 'padding', 'pooling'"):
        from_state_dict(MLP, **options)


@pytest.mark.parametrize("name, value", [("stride", [1, 2, 1]), ("padding", [0, 0, 0]), ("pooling", [None, None, None])])
def test_wrong_number_of_options(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"Expected '{name}' to be one value or one per convolution, 2 \(got 3\)"):
        from_state_dict(CNN, **{name: value})


# == Layouts of other libraries ==


def in_out(module: nn.Module, sep: str = "/") -> dict[str, Tensor]:
    """The weights of a module as other libraries store them: kernels ``[*kernel, in, out]``."""
    names = {"weight": "kernel", "bias": "bias"}
    state = {}
    for key, tensor in module.state_dict().items():
        number, _, kind = key.rpartition(".")
        state[f"layer_{number}{sep}{names[kind]}"] = tensor.movedim((0, 1), (-1, -2)) if tensor.ndim > 1 else tensor
    return state


@pytest.mark.parametrize("sep", ["/", "."])
def test_kernels_that_are_stored_in_out_are_turned(sep: str) -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 3))
    space, theta = from_state_dict(in_out(module, sep), layout="in_out")
    x = torch.randn(5, 4)
    assert torch.allclose(space.evaluate(theta[None], x)[0], module(x), atol=1e-6)
    assert [param.name for param in space.params][:2] == [f"layer_0{sep}weight", f"layer_0{sep}bias"]
    with pytest.raises(ValueError, match=r"is called as weights stored \[in, out\] are"):
        from_state_dict(in_out(module, sep))


def test_images_that_were_flattened_with_their_channels_last_are_reordered() -> None:
    module = nn.Sequential(nn.Conv2d(2, 3, (3, 2)), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 12, 4), nn.ReLU(), nn.Linear(4, 2))
    state = in_out(module)
    kernel = state["layer_3/kernel"].reshape(3, 12, 4)
    state["layer_3/kernel"] = kernel.transpose(0, 1).reshape(36, 4)
    space, theta = from_state_dict(state, layout="in_out", stride=1, padding=0, pooling="none")
    x = torch.randn(5, 2, 6, 4)
    assert torch.allclose(space.evaluate(theta[None], x)[0], module(x), atol=1e-5)


def test_layouts_that_are_not_known() -> None:
    with pytest.raises(ValueError, match=r"Expected 'layout' to be 'out_in' or 'in_out' \(got 'keras'\)"):
        from_state_dict(nn.Linear(2, 2).state_dict(), layout="keras")
    with pytest.raises(ValueError, match="and another key both become 'a/weight'"):
        from_state_dict({"a/kernel": torch.ones(2, 2), "a/weight": torch.ones(2, 2)}, layout="in_out")
    with pytest.raises(TypeError, match="Expected 'state_dict' to be a mapping"):
        from_state_dict([torch.ones(2, 2)], layout="in_out")  # type: ignore[arg-type]
