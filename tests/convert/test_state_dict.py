from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wsgraph import WeightSpace
from wsgraph.convert import from_state_dict


def tensor(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype)


def state(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    return {key: tensor(*shape, seed=i) for i, (key, shape) in enumerate(shapes.items())}


def read(state_dict: dict[str, Tensor], activation: str = "relu", **options: Any) -> tuple[WeightSpace, Tensor]:
    """Read a state dict and check the round trip bit for bit."""
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
    "module": ("module.fc1.weight", "module.fc1.bias", "module.fc2.weight", "module.fc2.bias", "module.out.weight", "module.out.bias"),
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
    space, _ = read(state({"classifier.weight": (16, 16), "features.0.weight": (16, 1, 3, 3), "features.1.weight": (16, 16, 3, 3)}))
    assert weights(space) == ["features.0.weight", "features.1.weight", "classifier.weight"]


def test_ambiguous_order_is_an_error() -> None:
    shapes = {"a.weight": (4, 2), "d.weight": (1, 4), "b.weight": (4, 4), "c.weight": (4, 4)}
    with pytest.raises(ValueError, match=r"ambiguous.*'a.weight', 'b.weight', 'c.weight', 'd.weight' and also 'a.weight', 'c.weight'"):
        from_state_dict(state(shapes))


def test_alphabetical_order_that_chains_is_not_trusted() -> None:
    shapes = {"head.bias": (4,), "head.weight": (4, 4), "trunk.bias": (4,), "trunk.weight": (4, 4)}
    with pytest.raises(ValueError, match=r"order of the layers is ambiguous.*Pass the entries in the order of the network"):
        from_state_dict(state(shapes))
    original = state(shapes)
    space, _ = read({key: original[key] for key in ("trunk.weight", "trunk.bias", "head.weight", "head.bias")})
    assert weights(space) == ["trunk.weight", "head.weight"]


def test_alphabetical_order_within_dtypes_is_not_trusted() -> None:
    # Safetensors files list wider dtypes first.
    original = {"head.bias": tensor(4), "trunk.bias": tensor(4)}
    original |= {key: tensor(4, 4, dtype=torch.bfloat16) for key in ("head.weight", "trunk.weight")}
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
    with pytest.raises(ValueError, match=r"^'fc/bias' of shape \[4\].*weights stored as \[in, out\] have to be transposed first"):
        from_state_dict(state({"fc/kernel": (2, 4), "fc/bias": (4,)}))


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
        {},
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
        {},
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
    "counter": (
        {**state({"weight": (1, 2)}), "num_batches_tracked": torch.tensor(3)},
        r"^'num_batches_tracked' of shape \[\] .* expected a weight of 2 to 5 dimensions or a bias of 1",
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


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.complex64])
def test_dtypes_that_are_not_floating(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=rf"Expected floating point weights, but '1.weight' has dtype {dtype}; "):
        from_state_dict({"0.weight": tensor(2, 2), "1.weight": torch.ones(1, 2, dtype=dtype)})


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
    with pytest.raises(ValueError, match="The state dict has no convolutions: leave out 'stride', 'padding' and 'pooling'"):
        from_state_dict(MLP, **options)


@pytest.mark.parametrize("name, value", [("stride", [1, 2, 1]), ("padding", [0, 0, 0]), ("pooling", [None, None, None])])
def test_wrong_number_of_options(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"Expected '{name}' to be one value or one per convolution, 2 \(got 3\)"):
        from_state_dict(CNN, **{name: value})
