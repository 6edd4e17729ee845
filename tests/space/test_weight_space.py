from __future__ import annotations

import dataclasses
import json
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.space.handmade import branching, in_axis, linear, out_axis, residual, run_branching, run_residual, space_of
from wsgraph import WeightSpace
from wsgraph.space import Axis, Layer, NeuronGroup, Parameter, Signal, SpaceMismatchError, Symmetry, Tie


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def single(**changes: Any) -> dict[str, Any]:
    """Parts of a valid space of one layer, with some of them replaced."""
    layer, params = linear("a", {"in": 2}, "out", 3)
    groups = (NeuronGroup("in", 2, "input"), NeuronGroup("out", 3, "output"))
    return {"groups": groups, "layers": (layer,), "params": tuple(params), **changes}


SPACES: dict[str, WeightSpace] = {
    "linear": WeightSpace.mlp([3, 2]),
    "mlp": WeightSpace.mlp([2, 5, 4, 3], ["sin(30)", "relu"]),
    "no bias": WeightSpace.mlp([2, 5, 3], "tanh", bias=False),
    "cnn": WeightSpace.cnn([1, 4, 6], [5, 3], stride=[2, 1], padding=[1, 0], kernel_size=[3, (1, 2)], pooling="max_pool(2)"),
    "flatten": WeightSpace.cnn([2, 4], [3], readout="flatten", positions=9),
    "residual": residual(),
    "branching": branching(),
    "dtype": WeightSpace(**single(params=[dataclasses.replace(p, dtype="bfloat16") for p in single()["params"]])),
}
every_space = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES.keys())

# == Value object ==


@every_space
def test_json_round_trip(space: WeightSpace) -> None:
    back = WeightSpace.from_json(space.to_json())
    assert back == space
    assert hash(back) == hash(space)
    assert repr(back) == repr(space)


def test_what_an_inr_represents_is_kept() -> None:
    space = WeightSpace.siren(signal=Signal((3, 5), "row", 0.0, (-1, 1)))
    back = WeightSpace.from_json(space.to_json())
    assert back == space
    assert back.signal == Signal((3, 5), "row", 0.0, (-1.0, 1.0))
    assert back != WeightSpace.siren()
    assert back.matches(WeightSpace.siren())  # of one architecture all the same
    assert WeightSpace.from_json(WeightSpace.mlp([2, 3]).to_json()).signal is None


@pytest.mark.parametrize("signal, first", [(Signal((3, 5), "column", 0.5), (0, 1)), (Signal((3, 5), "row"), (1, 0))])
def test_render(signal: Signal, first: tuple[int, int]) -> None:
    """The network that returns one coordinate draws a ramp along one side."""
    space = dataclasses.replace(WeightSpace.mlp([2, 2]), signal=signal)
    theta = space.flatten({"layers.0.weight": torch.eye(2), "layers.0.bias": torch.zeros(2)})[None]
    picture = space.render(theta)[0] - signal.offset
    assert torch.equal(picture[first[0]], torch.linspace(-1, 1, 5).expand(3, 5))
    assert torch.equal(picture[first[1]], torch.linspace(-1, 1, 3)[:, None].expand(3, 5))
    assert space.render(theta, (7, 2)).shape == (1, 2, 7, 2)
    with pytest.raises(SpaceMismatchError, match="does not say what picture its networks represent"):
        WeightSpace.mlp([2, 2]).render(theta)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"shape": (0, 3)}, "'shape'"),
        ({"first_axis": "x"}, "'first_axis' to be 'column' or 'row'"),
        ({"value_range": (1, 1)}, "'value_range'"),
    ],
)
def test_signals_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Signal(**{"shape": (3, 3), **options})


@every_space
def test_pickle_round_trip_drops_caches(space: WeightSpace) -> None:
    _ = hash(space), space.topology
    back = pickle.loads(pickle.dumps(space))
    assert back == space
    assert set(back.__dict__) <= {field.name for field in dataclasses.fields(back)} | {"_groups_by_name", "_params_by_name"}
    assert hash(back) == hash(space)


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", r"Expected the JSON text of a weight space \("),
        ("[]", 'Expected the JSON text of a weight space, with "format": "wsgraph.WeightSpace"'),
        ('{"format": "other"}', 'Expected the JSON text of a weight space, with "format": "wsgraph.WeightSpace"'),
        ('{"format": "wsgraph.WeightSpace", "version": 99}', r"Expected a weight space of version 1 \(got 99\); update wsgraph"),
        ('{"format": "wsgraph.WeightSpace", "version": 1}', r"incomplete or has unknown fields \('groups'\)"),
    ],
)
def test_from_json_rejects_other_texts(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WeightSpace.from_json(text)


def test_from_json_rejects_unknown_fields_and_checks_the_parts() -> None:
    document = json.loads(WeightSpace.mlp([2, 3, 1]).to_json())
    document["groups"][0]["colour"] = "red"
    with pytest.raises(ValueError, match=r"incomplete or has unknown fields \(.*'colour'"):
        WeightSpace.from_json(json.dumps(document))
    del document["groups"][0]["colour"]
    document["groups"][0]["size"] = 7
    with pytest.raises(
        ValueError, match=r"An axis of parameter 'layers.0.weight' has 2 entries but its groups \('input',\) have 7 neurons"
    ):
        WeightSpace.from_json(json.dumps(document))


def test_equality_and_hash() -> None:
    space = WeightSpace.mlp([2, 3, 1])
    assert space == WeightSpace.mlp([2, 3, 1])
    assert len({space, WeightSpace.mlp([2, 3, 1]), WeightSpace.mlp([2, 3, 1], "tanh"), WeightSpace.mlp([2, 3, 1], bias=False)}) == 3
    assert space != WeightSpace.mlp([2, 4, 1])


def test_space_is_immutable() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        WeightSpace.mlp([2, 3, 1]).groups = ()  # type: ignore[misc]


def renamed(part: Any, key: str = "") -> Any:
    """A copy of a space's JSON document with every name and label changed."""
    if isinstance(part, dict):
        return {field: renamed(value, field) for field, value in part.items()}
    if isinstance(part, list):
        return [renamed(value, key) for value in part]
    is_name = key in ("name", "groups", "sources", "target", "permutation", "scale") or (key in ("weight", "bias") and part)
    return f"new {part}" if is_name else part


@every_space
def test_architecture_ignores_names(space: WeightSpace) -> None:
    other = WeightSpace.from_json(json.dumps(renamed(json.loads(space.to_json()))))
    assert other != space
    assert {part.name for part in other.params}.isdisjoint(part.name for part in space.params)
    assert other.architecture == space.architecture
    assert space.architecture.architecture == space.architecture
    assert space.architecture.num_params == space.num_params


def test_architecture_tells_functions_and_layouts_apart() -> None:
    base = residual()
    mlp = WeightSpace.mlp([2, 3, 3, 1])
    tied = tuple(dataclasses.replace(g, permutation="tied", scale="tied") if g.role == "hidden" else g for g in mlp.groups)
    reordered = WeightSpace(base.groups, base.layers, base.params[::-1])
    spaces = [
        base,
        mlp,
        WeightSpace(tied, mlp.layers, mlp.params),
        reordered,
        WeightSpace.mlp([2, 3, 1]),
        WeightSpace.mlp([2, 3, 1], "tanh"),
        WeightSpace.cnn([2, 3], [1]),
    ]
    spaces.append(WeightSpace.cnn([2, 3], [1], stride=2))
    assert len({space.architecture for space in spaces}) == len(spaces)


# == Text ==


@pytest.mark.parametrize(
    "space, text",
    [
        (SPACES["linear"], "WeightSpace(3-2, linear, identity, 8 parameters)"),
        (SPACES["mlp"], "WeightSpace(2-5-4-3, linear | linear | linear, sin(30)/relu, 54 parameters)"),
        (SPACES["cnn"], "WeightSpace(1-4-6-5-3, conv 3x3 | conv 1x2 | linear | linear, relu, 147 parameters)"),
        (SPACES["residual"], "WeightSpace(5 groups, 5 layers, 75 parameters)"),
        (WeightSpace.mlp([784, 128, 10]), "WeightSpace(784-128-10, linear | linear, relu, 101,770 parameters)"),
        (
            WeightSpace.mlp([2, *[8] * 20, 1]),
            "WeightSpace(2-8 (20 times)-1, linear (21 times), relu, 1,401 parameters)",
        ),
    ],
)
def test_repr(space: WeightSpace, text: str) -> None:
    assert repr(space) == text


# == Flat vectors ==


@every_space
@pytest.mark.parametrize(("batch", "dtype"), [((), torch.float32), ((3,), torch.float64), ((2, 3), torch.bfloat16), ((0,), torch.float32)])
def test_flatten_and_unflatten_are_inverse(space: WeightSpace, batch: tuple[int, ...], dtype: torch.dtype) -> None:
    theta = torch.randn(*batch, space.num_params, generator=generator()).to(torch.bfloat16).to(dtype)
    tensors = space.unflatten(theta)
    assert list(tensors) == [param.name for param in space.params]
    for param in space.params:
        assert tensors[param.name].shape == (*batch, *param.shape)
        assert tensors[param.name].dtype == (getattr(torch, param.dtype) if param.dtype else dtype)
    back = space.flatten(dict(reversed(tensors.items())))
    assert torch.equal(back.to(dtype), theta)


def test_flatten_follows_the_order_of_the_parameters() -> None:
    space = WeightSpace.mlp([2, 1], bias=True)
    flat = space.flatten({"layers.0.bias": torch.tensor([3.0]), "layers.0.weight": torch.tensor([[1.0, 2.0]])})
    assert flat.tolist() == [1.0, 2.0, 3.0]


def test_flatten_promotes_dtypes_and_keeps_the_device() -> None:
    space = WeightSpace.mlp([2, 1])
    tensors = {"layers.0.weight": torch.ones(1, 2, dtype=torch.float64), "layers.0.bias": torch.ones(1, dtype=torch.float16)}
    assert space.flatten(tensors).dtype == torch.float64
    assert space.flatten({key: tensor.to("meta") for key, tensor in tensors.items()}).device.type == "meta"


def test_unflatten_gives_views() -> None:
    space = SPACES["cnn"]
    theta = space.sample(2, generator=generator())
    for name, tensor in space.unflatten(theta).items():
        assert tensor.data_ptr() == theta[:, space.slices[name]].data_ptr()
        assert tensor.untyped_storage().data_ptr() == theta.untyped_storage().data_ptr()


def test_gradients_flow_through_flatten_and_unflatten() -> None:
    space = SPACES["mlp"]
    theta = space.sample(1, generator=generator())[0].requires_grad_()
    (space.flatten(space.unflatten(theta)) ** 2).sum().backward()
    assert theta.grad is not None
    torch.testing.assert_close(theta.grad, 2 * theta.detach())


def test_flatten_names_the_missing_key() -> None:
    with pytest.raises(SpaceMismatchError, match=r"lacks the key 'layers.0.weight' and 3 more \(it has: 'fc.weight'\).*from_state_dict"):
        WeightSpace.mlp([2, 3, 1]).flatten({"fc.weight": torch.ones(3, 2)})


def test_flatten_names_the_unexpected_key() -> None:
    tensors = {"layers.0.weight": torch.ones(1, 2), "layers.0.bias": torch.ones(1), "extra": torch.ones(1)}
    with pytest.raises(SpaceMismatchError, match=r"has a key 'extra' that .* does not have; flattening would lose it"):
        WeightSpace.mlp([2, 1]).flatten(tensors)


@pytest.mark.parametrize(
    "weight, bias, message",
    [
        ((1, 3), (1,), r"Expected 'layers.0.weight' of shape \[1, 2\] in the state dict \(got \[1, 3\]\)"),
        ((1, 2), (2,), r"Expected 'layers.0.bias' of shape \[1\] in the state dict \(got \[2\]\)"),
        ((5, 1, 2), (1,), r"Expected 'layers.0.bias' of shape \[5, 1\] in the state dict \(got \[1\]\)"),
        ((2,), (1,), r"Expected 'layers.0.weight' of shape \[1, 2\] in the state dict \(got \[2\]\)"),
    ],
)
def test_flatten_names_the_wrong_shape(weight: tuple[int, ...], bias: tuple[int, ...], message: str) -> None:
    with pytest.raises(SpaceMismatchError, match=message):
        WeightSpace.mlp([2, 1]).flatten({"layers.0.weight": torch.ones(weight), "layers.0.bias": torch.ones(bias)})


@pytest.mark.parametrize("shape", [(4,), (2, 2), ()])
def test_unflatten_rejects_other_sizes(shape: tuple[int, ...]) -> None:
    with pytest.raises(SpaceMismatchError, match="Expected 'theta' with last dimension 3 for"):
        WeightSpace.mlp([2, 1]).unflatten(torch.ones(shape))


def test_sample() -> None:
    space = WeightSpace.cnn([3, 16], [5])
    thetas = space.sample(500, generator=generator(), dtype=torch.float64)
    assert thetas.shape == (500, space.num_params)
    assert thetas.dtype == torch.float64
    assert torch.equal(thetas, space.sample(500, generator=generator(), dtype=torch.float64))
    deviations = {name: thetas[:, part].std().item() for name, part in space.slices.items()}
    expected = {"layers.0.weight": (2 / 27) ** 0.5, "layers.0.bias": 0.3, "layers.1.weight": (2 / 16) ** 0.5, "layers.1.bias": 0.3}
    assert deviations == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(
    "thetas, error, message",
    [
        (torch.ones(4, 3, dtype=torch.long), TypeError, r"Expected 'thetas' to be a floating point tensor \(got dtype torch.int64\)"),
        ([[1.0, 2.0, 3.0]], TypeError, r"Expected 'thetas' to be a floating point tensor \(got list\)"),
        (
            torch.ones(3),
            SpaceMismatchError,
            r"Expected 'thetas' of shape \[B, 3\] for WeightSpace\(2-1, .*\(got \[3\]\). Of a single network pass theta",
        ),
        (torch.ones(4, 2), SpaceMismatchError, r"Expected 'thetas' of shape \[B, 3\] .*\(got \[4, 2\]\)"),
    ],
)
@pytest.mark.parametrize("use", ["check_thetas", "batch", "evaluate", "blocks"])
def test_wrong_thetas(thetas: Any, error: type[Exception], message: str, use: str) -> None:
    space = WeightSpace.mlp([2, 1])
    arguments = (torch.ones(1, 2),) if use == "evaluate" else ()
    with pytest.raises(error, match=message):
        getattr(space, use)(thetas, *arguments)


# == Spaces by hand ==


def test_mlp_parts() -> None:
    space = WeightSpace.mlp([2, 4, 3, 1], ["sin(30)", "relu"])
    assert [(g.name, g.size, g.role, g.operators) for g in space.groups] == [
        ("input", 2, "input", ()),
        ("hidden.1", 4, "hidden", ("sin(30)",)),
        ("hidden.2", 3, "hidden", ("relu",)),
        ("output", 1, "output", ()),
    ]
    assert {param.name: param.shape for param in space.params} == {
        "layers.0.weight": (4, 2),
        "layers.0.bias": (4,),
        "layers.1.weight": (3, 4),
        "layers.1.bias": (3,),
        "layers.2.weight": (1, 3),
        "layers.2.bias": (1,),
    }
    assert space.slices["layers.1.weight"] == slice(12, 24)
    assert [space.class_symmetry(g.scale) for g in space.groups[1:3]] == [Symmetry(False, True), Symmetry(True, False)]


def test_cnn_parts() -> None:
    space = WeightSpace.cnn([1, 4, 6], [5, 3], stride=[2, 1], padding=1, kernel_size=[3, (1, 2)], pooling="max_pool(2)")
    assert [g.operators for g in space.groups] == [(), ("relu", "max_pool(2)"), ("relu", "global_avg_pool"), ("relu",), ()]
    assert [(layer.operator, layer.stride, layer.padding) for layer in space.layers] == [
        ("conv", 2, 1),
        ("conv", 1, 1),
        ("linear", 1, 0),
        ("linear", 1, 0),
    ]
    assert [space.param(layer.weight or "").shape for layer in space.layers] == [(4, 1, 3, 3), (6, 4, 1, 2), (5, 6), (3, 5)]


def test_flattened_positions_are_an_axis_of_their_own() -> None:
    param = WeightSpace.cnn([2, 4], [3], readout="flatten", positions=9).param("layers.1.weight")
    assert param.shape == (3, 36)
    assert param.logical_shape == (3, 4, 9)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (([],), "Expected a network with at least one layer"),
        (([3],), "Expected a network with at least one layer"),
        (([3, 0, 1],), r"Expected the size of neuron group 'hidden.1' to be a positive integer \(got 0\)"),
        (([3, 2.5, 1],), r"Expected the size of neuron group 'hidden.1' to be a positive integer \(got 2.5\)"),
        (([3, 2, -1],), r"Expected the size of neuron group 'output' to be a positive integer \(got -1\)"),
        (([3, 2, 1], "swoosh"), "Unknown activation or operator 'swoosh'"),
        (([3, 2, 1], ["relu", "relu"]), r"Expected 'activation' to be one name or one per hidden group, 1 \(got 2\)"),
    ],
)
def test_mlp_rejects_bad_arguments(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WeightSpace.mlp(*arguments)


@pytest.mark.parametrize(
    "arguments, options, message",
    [
        (([1], [3]), {}, r"Expected at least two 'channels' and one 'linear' size \(got \[1\] and \[3\]\)"),
        (([1, 4], []), {}, r"Expected at least two 'channels' and one 'linear' size \(got \[1, 4\] and \[\]\)"),
        (([1, 4], [3]), {"readout": "mean"}, r"Expected 'readout' to be global_avg_pool, global_max_pool or flatten \(got 'mean'\)"),
        (([1, 4], [3]), {"readout": "flatten"}, "Give 'positions', .* with readout='flatten' and only then"),
        (([1, 4], [3]), {"positions": 9}, "Give 'positions', .* with readout='flatten' and only then"),
        (([1, 4, 4], [3]), {"stride": [1, 2, 1]}, r"Expected 'stride' to be one value or one per convolution, 2 \(got 3\)"),
        (([1, 4, 4], [3]), {"padding": [1, 2, 1]}, r"Expected 'padding' to be one value or one per convolution, 2 \(got 3\)"),
        (([1, 4, 4], [3]), {"kernel_size": [3, 3, 3]}, r"Expected 'kernel_size' to be one value or one per convolution, 2 \(got 3\)"),
        (([1, 4, 4], [3]), {"pooling": "squeeze"}, "Unknown activation or operator 'squeeze'"),
        (([1, 4, 4], [3], "swoosh"), {}, "Unknown activation or operator 'swoosh'"),
        (([1, 0], [3]), {}, r"Expected the size of neuron group 'hidden.1' to be a positive integer \(got 0\)"),
    ],
)
def test_cnn_rejects_bad_arguments(arguments: tuple[Any, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WeightSpace.cnn(*arguments, **options)


# == Spaces from parts ==


def test_hand_made_spaces_are_no_chains() -> None:
    assert not residual().is_chain
    assert not branching().is_chain
    assert WeightSpace.mlp([2, 3, 3, 1]).is_chain


def test_chain_with_tied_groups_or_shared_parameters_is_no_chain() -> None:
    space = WeightSpace.mlp([2, 3, 3, 1])
    tied = [dataclasses.replace(g, permutation="same", scale="same") if g.role == "hidden" else g for g in space.groups]
    assert not WeightSpace(tuple(tied), space.layers, space.params).is_chain


@pytest.mark.parametrize("make, run", [(residual, run_residual), (branching, run_branching)])
def test_hand_made_spaces_compute_their_function(
    make: Callable[[], WeightSpace], run: Callable[[dict[str, Tensor], Tensor], Tensor]
) -> None:
    space = make()
    thetas = space.sample(3, generator=generator(), dtype=torch.float64)
    x = torch.randn(5, space.groups[0].size, generator=generator(1), dtype=torch.float64)
    outputs = space.evaluate(thetas, x)
    assert outputs.shape == (3, 5, 2)
    for theta, output in zip(thetas, outputs, strict=True):
        torch.testing.assert_close(output, run(space.unflatten(theta), x))


def test_layers_may_be_listed_in_any_order() -> None:
    space = residual()
    shuffled = WeightSpace(space.groups[::-1], space.layers[::-1], space.params)
    theta = space.sample(1, generator=generator(), dtype=torch.float64)
    x = torch.randn(5, 3, generator=generator(1), dtype=torch.float64)
    assert [group.name for group in shuffled.topological_groups] == ["in", "stem", "inner", "sum", "out"]
    torch.testing.assert_close(shuffled.evaluate(theta, x), space.evaluate(theta, x))


def test_classes_of_tied_groups() -> None:
    space = residual()
    assert [group.name for group in space.permutation_classes["trunk"]] == ["stem", "sum"]
    assert [group.name for group in space.scale_classes["trunk"]] == ["stem", "sum"]
    assert space.is_permutable("trunk")
    assert not space.is_permutable("in")
    assert [layer.name for layer in space.layers_into("sum")] == ["c", "skip"]
    assert space.layers_into("in") == ()


def test_symmetry_of_a_class_is_that_of_all_its_groups() -> None:
    space = residual()
    changed = [dataclasses.replace(g, operators=("tanh",)) if g.name == "sum" else g for g in space.groups]
    assert space.class_symmetry("trunk") == Symmetry(True, False)
    assert WeightSpace(tuple(changed), space.layers, space.params).class_symmetry("trunk") == Symmetry(False, False)


def test_groups_tied_to_an_output_keep_their_order() -> None:
    space = residual()
    fixed = [dataclasses.replace(g, permutation="x", scale="x") if g.name in ("in", "inner") else g for g in space.groups]
    fixed[0] = dataclasses.replace(fixed[0], size=5)
    params = [linear("a", {"in": 5}, "stem", 4)[1], space.params[2:]]
    tied = WeightSpace(tuple(fixed), space.layers, tuple(p for part in params for p in part))
    assert not tied.is_permutable("x")
    assert tied.class_symmetry("x") == Symmetry(False, False)


def test_names_must_be_unique() -> None:
    parts = single()
    for field in ("groups", "layers", "params"):
        with pytest.raises(ValueError, match=rf"Names in '{field}' must be unique \(repeated: {parts[field][0].name}\)"):
            WeightSpace(**{**parts, field: (*parts[field], parts[field][0])})


def test_cycle() -> None:
    groups = [NeuronGroup("in", 2, "input"), NeuronGroup("a", 3), NeuronGroup("b", 3), NeuronGroup("out", 1, "output")]
    parts = [linear("1", {"in": 2}, "a", 3), linear("2", {"a": 3}, "b", 3), linear("3", {"b": 3}, "a", 3), linear("4", {"b": 3}, "out", 1)]
    with pytest.raises(ValueError, match=r"The layers form a cycle through the groups \['a', 'b', 'out'\]"):
        space_of(groups, parts)


def test_classes_need_one_size() -> None:
    space = residual()
    changed = [dataclasses.replace(g, permutation="trunk", scale="trunk") if g.name == "inner" else g for g in space.groups]
    with pytest.raises(ValueError, match=r"Groups of permutation class 'trunk' must have one size \(got 'stem': 4, 'inner': 5, 'sum': 4\)"):
        WeightSpace(tuple(changed), space.layers, space.params)


def test_scale_classes_are_finer_than_permutation_classes() -> None:
    space = residual()
    changed = [dataclasses.replace(g, permutation=g.name, scale="trunk") if g.name in ("stem", "sum") else g for g in space.groups]
    with pytest.raises(
        ValueError, match="Groups of scale class 'trunk' must share one permutation class; scale classes are the finer ones"
    ):
        WeightSpace(tuple(changed), space.layers, space.params)
    mlp = WeightSpace.mlp([2, 3, 3, 1])
    finer = [dataclasses.replace(g, permutation="tied", scale=g.name) if g.role == "hidden" else g for g in mlp.groups]
    classes = WeightSpace(tuple(finer), mlp.layers, mlp.params)
    assert (len(classes.permutation_classes), len(classes.scale_classes)) == (3, 4)


WEIGHT, BIAS = single()["params"]
WRONG_PARTS: dict[str, tuple[dict[str, Any], str]] = {
    "group of a tie": (
        {"params": (dataclasses.replace(WEIGHT, axes=(out_axis("nowhere", 3), WEIGHT.axes[1])), BIAS)},
        r"Parameter 'a.weight' names unknown neuron groups \['nowhere'\]",
    ),
    "size of an axis": (
        {"params": (Parameter("a.weight", (3, 4), "weight", (out_axis("out", 3), in_axis(("in",), 4))), BIAS)},
        r"An axis of parameter 'a.weight' has 4 entries but its groups \('in',\) have 2 neurons",
    ),
    "source": (
        {"layers": (Layer("a", "linear", ("nowhere",), "out", "a.weight", "a.bias"),)},
        r"Layer 'a' names unknown neuron groups \['nowhere'\]",
    ),
    "target": (
        {"layers": (Layer("a", "linear", ("in",), "nowhere", "a.weight", "a.bias"),)},
        r"Layer 'a' names unknown neuron groups \['nowhere'\]",
    ),
    "weight": ({"layers": (Layer("a", "linear", ("in",), "out", "gone", "a.bias"),)}, "Layer 'a' names an unknown parameter 'gone'"),
    "bias": ({"layers": (Layer("a", "linear", ("in",), "out", "a.weight", "gone"),)}, "Layer 'a' names an unknown parameter 'gone'"),
    "identity": (
        {"layers": (Layer("a", "identity", ("in",), "out"), Layer("b", "linear", ("in",), "out", "a.weight", "a.bias"))},
        "Identity layer 'a' passes neurons on as they are, so its one source and its target must have the same 'permutation' and 'scale'",
    ),
    "unused": ({"layers": (Layer("a", "linear", ("in",), "out", "a.weight"),)}, "No layer uses the parameter 'a.bias'"),
    "bias without tie": (
        {"params": (WEIGHT, dataclasses.replace(BIAS, axes=(Axis(BIAS.size),)))},
        "Bias 'a.bias' of layer 'a' needs a single axis tied to 'out' with exponent 1",
    ),
    "untied axis": (
        {"params": (dataclasses.replace(WEIGHT, axes=(Axis(3), WEIGHT.axes[1])), BIAS)},
        r"Weight 'a.weight' of layer 'a' needs one axis tied to 'out' \(exponent 1\), one tied to \('in',\) \(exponent -1\)",
    ),
    "wrong exponent": (
        {"params": (dataclasses.replace(WEIGHT, axes=(WEIGHT.axes[0], Axis(2, (Tie(("in",), 1),)))), BIAS)},
        "Weight 'a.weight' of layer 'a' needs one axis tied to 'out'",
    ),
}


@pytest.mark.parametrize("changes, message", WRONG_PARTS.values(), ids=WRONG_PARTS.keys())
def test_parts_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WeightSpace(**single(**changes))


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: NeuronGroup("h", 3, "middle"),  # type: ignore[arg-type]
            r"Expected 'role' of neuron group 'h' to be one of input, hidden, output, fixed, factor \(got 'middle'\)",
        ),
        (lambda: NeuronGroup("h", 3, operators=("swoosh",)), "Unknown activation or operator 'swoosh'"),
        (
            lambda: Layer("a", "attention", ("in",), "out"),  # type: ignore[arg-type]
            "Layer 'a' has operator 'attention'; expected linear, conv or identity",
        ),
        (lambda: Layer("a", "linear", ("in",), "out"), "Layer 'a': a linear layer needs a weight"),
        (lambda: Layer("a", "identity", ("in",), "out", "w"), "Layer 'a': a identity layer needs no weight"),
        (
            lambda: Parameter("w", (3, 4), "weight", (Axis(3), Axis(3))),
            r"axes of parameter 'w' hold 9 entries, its shape \(3, 4\) holds 12",
        ),
    ],
)
def test_parts_check_themselves(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_parts_turn_lists_into_tuples() -> None:
    space = residual()
    again = WeightSpace(list(space.groups), list(space.layers), list(space.params))  # type: ignore[arg-type]
    assert again == space
    assert hash(NeuronGroup("h", 3, operators=["relu"])) == hash(NeuronGroup("h", 3, operators=("relu",)))  # type: ignore[arg-type]


# == Functions ==

MODULES: dict[str, tuple[WeightSpace, nn.Sequential, tuple[int, ...]]] = {
    "mlp": (
        WeightSpace.mlp([3, 7, 5, 2], ["tanh", "gelu"]),
        nn.Sequential(nn.Linear(3, 7), nn.Tanh(), nn.Linear(7, 5), nn.GELU(), nn.Linear(5, 2)),
        (3,),
    ),
    "mlp without bias": (WeightSpace.mlp([3, 2], bias=False), nn.Sequential(nn.Linear(3, 2, bias=False)), (3,)),
    "cnn": (
        WeightSpace.cnn([1, 3, 4], [5, 2], stride=[2, 1], padding=[1, 0], pooling="max_pool(2)"),
        nn.Sequential(
            *(nn.Conv2d(1, 3, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 3), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)),
        ),
        (1, 14, 14),
    ),
    "global maximum": (
        WeightSpace.cnn([1, 3], [2], readout="global_max_pool"),
        nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(3, 2)),
        (1, 6, 6),
    ),
    "flatten": (
        WeightSpace.cnn([2, 3], [2], "sin(3)", readout="flatten", positions=5, kernel_size=(3,)),
        nn.Sequential(nn.Conv1d(2, 3, 3), nn.Flatten(), nn.Linear(15, 2)),
        (2, 7),
    ),
}


@pytest.mark.parametrize("name", MODULES)
def test_evaluate_computes_the_function_of_the_module(name: str) -> None:
    space, module, shape = MODULES[name]
    module.double()
    thetas = space.sample(3, generator=generator(), dtype=torch.float64)
    x = torch.randn(4, *shape, generator=generator(1), dtype=torch.float64)
    outputs = space.evaluate(thetas, x)
    for theta, output in zip(thetas, outputs, strict=True):
        tensors = space.unflatten(theta)
        module.load_state_dict({key: tensors[param.name] for key, param in zip(module.state_dict(), space.params, strict=True)})
        if name == "flatten":
            expected = module[1:](torch.sin(3 * module[0](x)))
        else:
            expected = module(x)
        torch.testing.assert_close(output, expected)


def test_evaluate_is_differentiable() -> None:
    space = WeightSpace.mlp([2, 3, 1], "tanh")
    thetas = space.sample(2, generator=generator(), dtype=torch.float64).requires_grad_()
    x = torch.randn(4, 2, generator=generator(1), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda t: space.evaluate(t, x), thetas)


def test_evaluate_computes_in_the_dtype_of_thetas() -> None:
    # A stored dtype is how a parameter goes back to its file; it must not round the weights while the network runs.
    space = SPACES["dtype"]
    theta = torch.full((1, space.num_params), 1.001)
    outputs = space.evaluate(theta, torch.ones(1, 2))
    torch.testing.assert_close(outputs, torch.full((1, 1, 3), 3.003))
