"""Files in the layouts of Keras 3 (``.keras``, ``.weights.h5``) and Keras 2 (``.h5``), written by h5py and zipfile."""

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wsgraph import CheckpointError, WeightSpace, load_networks

RNG = np.random.default_rng(0)
Arrays = Sequence[np.ndarray]


def arrays(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    return [RNG.normal(size=shape).astype(np.float32) for shape in shapes]


def layer(kind: str, name: str, calls: Any = None, module: str = "keras.layers", **config: Any) -> dict[str, Any]:
    """A layer in a configuration; ``calls`` lists the names that each of its calls reads."""
    entry: dict[str, Any] = {"module": module, "class_name": kind, "config": {"name": name, **config}, "registered_name": None}
    if calls is not None:
        nodes = [[place(source) for source in sources] for sources in calls]
        entry |= {"name": name, "inbound_nodes": [{"args": node if len(node) == 1 else [node], "kwargs": {}} for node in nodes]}
    return entry


def place(source: str) -> dict[str, Any]:
    name, _, call = source.partition("@")
    return {"class_name": "__keras_tensor__", "config": {"shape": [None], "keras_history": [name, int(call or 0), 0]}}


def sequential(shape: Sequence[int | None], *layers: dict[str, Any]) -> dict[str, Any]:
    first = layer("InputLayer", "input", batch_shape=[None, *shape])
    return {"module": "keras", "class_name": "Sequential", "config": {"name": "model", "layers": [first, *layers]}}


def functional(outputs: Sequence[str], *layers: dict[str, Any]) -> dict[str, Any]:
    config = {"name": "model", "layers": list(layers), "input_layers": [["input", 0, 0]], "output_layers": [[n, 0, 0] for n in outputs]}
    return {"module": "keras.src.models.functional", "class_name": "Functional", "config": config}


def weights_h5(weights: Mapping[str, Arrays], target: Any) -> None:
    """The weights of Keras 3, by class and number of layers; h5py sorts them."""
    with h5py.File(target, "w") as file:
        for key, values in weights.items():
            group = file.create_group(f"layers/{key}/vars")
            for i, value in enumerate(values):
                group[str(i)] = value


def save(path: Path, config: Any, weights: Mapping[str, Arrays], version: str = "3.15.1") -> Path:
    buffer = io.BytesIO()
    weights_h5(weights, buffer)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": version}))
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("model.weights.h5", buffer.getvalue())
    return path


def save_named(path: Path, config: Any, weights: Mapping[str, Mapping[str, np.ndarray]], version: str = "2.11.0") -> Path:
    """A file of Keras 2: groups by names of layers, which list their weights."""
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = version
        if config is not None:
            file.attrs["model_config"] = json.dumps(config)
        root = file.create_group("model_weights") if config is not None else file
        root.attrs["layer_names"] = [name.encode() for name in weights]
        for name in sorted(weights):
            group = root.create_group(name)
            group.attrs["weight_names"] = [key.encode() for key in weights[name]]
            for key, value in weights[name].items():
                group[key] = value
    return path


def outputs(path: Path, *inputs: Tensor, **options: Any) -> Any:
    (found,) = load_networks(path, **options)
    result = found.space.evaluate(found.theta[None], *inputs)
    return [value[0] for value in result] if isinstance(result, (tuple, list)) else result[0]


def torched(*values: np.ndarray) -> list[Tensor]:
    return [torch.from_numpy(value) for value in values]


# == Chains ==


def test_an_mlp_is_the_same_space_as_any_other(tmp_path: Path) -> None:
    stored = {"dense": arrays((4, 6), (6,)), "dense_1": arrays((6, 5), (5,)), "dense_2": arrays((5, 3), (3,))}
    names = ["zebra", "dense_7", "dense_8"]  # not alphabetical, and numbered as in a long session
    layers = [
        layer("Dense", name, units=units, activation=act)
        for name, units, act in zip(names, (6, 5, 3), ("relu", "tanh", "softmax"), strict=True)
    ]
    (found,) = load_networks(save(tmp_path / "a.keras", sequential([4], *layers), stored))
    x = torch.randn(7, 4)
    (k1, b1), (k2, b2), (k3, b3) = (torched(*stored[name]) for name in ("dense", "dense_1", "dense_2"))
    expected = torch.softmax(torch.tanh(torch.relu(x @ k1 + b1) @ k2 + b2) @ k3 + b3, -1)
    assert torch.allclose(found.space.evaluate(found.theta[None], x)[0], expected, atol=1e-6)
    other = WeightSpace.mlp([4, 6, 5, 3], ["relu", "tanh"])
    assert [(group.size, group.operators) for group in found.space.groups[:-1]] == [(g.size, g.operators) for g in other.groups[:-1]]
    assert len(found.space.layers) == 3
    assert [param.name for param in found.space.params][::2] == ["zebra.weight", "dense.weight", "dense_1.weight"]
    assert found.info == {"format": "Keras", "keras_version": "3.15.1", "inputs": [[None, 4]], "keras_model": "model"}


def test_norms_of_groups_of_channels_and_of_root_mean_squares(tmp_path: Path) -> None:
    layers = [
        layer("GroupNormalization", "groups", groups=2, axis=-1, epsilon=0.1, scale=True, center=True),
        layer("RMSNormalization", "rms", axis=-1, epsilon=0.2),
        layer("GroupNormalization", "instance", groups=-1, axis=3, epsilon=0.1, scale=False, center=False),
    ]
    stored = {"group_normalization": arrays((4,), (4,)), "rms_normalization": arrays((4,))}
    path = save(tmp_path / "a.keras", sequential([3, 2, 4], *layers), stored)
    x = torch.randn(5, 3, 2, 4)  # channels last, as in Keras
    (gamma, beta), (scale,) = (torched(*stored[name]) for name in stored)
    grouped = x.reshape(5, 6, 2, 2)
    grouped = (grouped - grouped.mean((1, 3), keepdim=True)) / (grouped.var((1, 3), correction=0, keepdim=True) + 0.1).sqrt()
    y = grouped.reshape(x.shape) * gamma + beta
    y = y / (y.square().mean(-1, keepdim=True) + 0.2).sqrt() * scale
    expected = (y - y.mean((1, 2), keepdim=True)) / (y.var((1, 2), correction=0, keepdim=True) + 0.1).sqrt()
    assert torch.allclose(outputs(path, x.movedim(-1, 1)).movedim(1, -1), expected, atol=1e-5)
    for kind, message in (
        ("GroupNormalization", "has groups along the axis 1, not of channels"),
        ("RMSNormalization", "normalises the axes 1"),
    ):
        path = save(tmp_path / "b.keras", sequential([3, 2, 4], layer(kind, "other", axis=1)), {})
        with pytest.raises(CheckpointError, match=message):
            load_networks(path)


def test_models_that_differ_in_names_alone_share_a_space(tmp_path: Path) -> None:
    def model(number: int, act: str) -> Path:
        # A layer that is called as an activation: names must not be taken for settings.
        layers = [layer("Dense", f"dense_{number}", units=6, activation=act), layer("Dense", f"dense_{number + 1}", units=3)]
        weights = {"dense": arrays((4, 6), (6,)), "dense_1": arrays((6, 3), (3,))}
        return save(tmp_path / f"{number}{act}.keras", sequential([4], *layers), weights)

    (first,), (second,), (other,) = (load_networks(model(*given)) for given in ((3, "relu"), (8, "relu"), (3, "tanh")))
    assert first.space is second.space
    assert other.space != first.space
    assert not torch.equal(first.theta, second.theta)


@pytest.mark.parametrize("dense_after", ["Flatten", "Flatten + Dropout", "Flatten + BatchNormalization"])
def test_images_are_channels_first_and_flattening_is_reordered(tmp_path: Path, dense_after: str) -> None:
    kernel, bias, dense, offset = arrays((3, 3, 2, 4), (4,), (4 * 3 * 4, 5), (5,))
    stored = {"conv2d": [kernel, bias], "dense": [dense, offset]}
    between = [layer("Flatten", "flatten", data_format="channels_last")]
    scale = torch.ones(48)
    if "Dropout" in dense_after:
        between.append(layer("Dropout", "dropout", rate=0.5))
    if "Batch" in dense_after:
        between.append(layer("BatchNormalization", "norm", epsilon=0.5, center=False))
        stored["batch_normalization"] = [RNG.uniform(1, 2, 48), np.zeros(48), RNG.uniform(1, 2, 48)]
        gamma, _, variance = torched(*(value.astype(np.float32) for value in stored["batch_normalization"]))
        scale = gamma / torch.sqrt(variance + 0.5)
    convolution = layer("Conv2D", "conv", filters=4, kernel_size=[3, 3], strides=[2, 2], padding="same", data_format="channels_last")
    config = sequential([5, 8, 2], convolution, *between, layer("Dense", "out", units=5))
    images = torch.randn(3, 2, 5, 8)
    (found,) = load_networks(save(tmp_path / "a.keras", config, stored))
    # Keras pads an even size with stride 2 at the end alone.
    weight = torch.from_numpy(kernel).permute(3, 2, 0, 1)
    features = nn.functional.conv2d(nn.functional.pad(images, (0, 1, 1, 1)), weight, torch.from_numpy(bias), stride=2)
    expected = (features.permute(0, 2, 3, 1).flatten(1) * scale) @ torch.from_numpy(dense) + torch.from_numpy(offset)
    assert torch.allclose(found.space.evaluate(found.theta[None], images)[0], expected, atol=1e-5)
    assert found.info["image_layout"] == "channels first"


def test_a_plain_cnn_has_layers(tmp_path: Path) -> None:
    config = sequential(
        [8, 8, 1],
        layer("Conv2D", "conv", filters=4, kernel_size=[3, 3], padding="same", activation="relu"),
        layer("MaxPooling2D", "pool", pool_size=[2, 2]),
        layer("Flatten", "flatten"),
        layer("Dense", "out", units=5),
    )
    stored = {"conv2d": arrays((3, 3, 1, 4), (4,)), "dense": arrays((64, 5), (5,))}
    (found,) = load_networks(save(tmp_path / "a.keras", config, stored))
    assert repr(found.space).startswith("WeightSpace(1-4-5, conv 3x3 | linear, relu")


# == Graphs ==


def test_a_graph_is_wired_as_its_configuration_says(tmp_path: Path) -> None:
    dense: dict[str, Any] = {"units": 6, "activation": "linear"}
    config = functional(
        ["a", "sigmoid"],
        layer("InputLayer", "input", [], batch_shape=[None, 4]),
        layer("Dense", "z", [["input"]], units=6, activation="relu"),
        layer("Dense", "twice", [["z"], ["twice@0"]], **dense),
        layer("Add", "add", [["z", "twice@1"]]),
        layer("Multiply", "plus", [["add", "z"]], module="keras.src.ops.numpy"),
        layer("Concatenate", "join", [["plus", "input"]], axis=-1),
        layer("Dense", "a", [["join"]], units=2, use_bias=False),
        layer("Activation", "sigmoid", [["a"]], activation="sigmoid"),
    )
    stored = {"dense": arrays((4, 6), (6,)), "dense_1": arrays((6, 6), (6,)), "dense_2": arrays((10, 2))}
    path = save(tmp_path / "a.keras", config, stored)
    x = torch.randn(5, 4)
    (k1, b1), (k2, b2), (k3,) = (torched(*stored[name]) for name in stored)
    z = torch.relu(x @ k1 + b1)
    a = torch.cat([(z + ((z @ k2 + b2) @ k2 + b2)) * z, x], 1) @ k3
    first, second = outputs(path, x)
    assert torch.allclose(first, a, rtol=1e-5, atol=1e-5)
    assert torch.allclose(second, torch.sigmoid(a), atol=1e-5)


def nested_files(tmp_path: Path) -> tuple[list[Path], Tensor, Tensor]:
    """A model within a model, called twice, in files of Keras 3 and 2; an input, and what comes out."""
    (k1, b1), (k2, b2) = arrays((4, 4), (4,)), arrays((4, 2), (2,))
    inner = functional(
        ["hidden"],
        layer("InputLayer", "input", [], batch_shape=[None, 4]),
        layer("Dense", "hidden", [["input"]], units=4, activation="relu"),
    )
    # In a graph, models count their calls from one.
    wrapped = {**inner, "name": "inner", "config": {**inner["config"], "name": "inner"}}
    calls = [{"args": [place(source)], "kwargs": {"training": None}} for source in ("input", "inner@1")]
    config = functional(
        ["out"],
        layer("InputLayer", "input", [], batch_shape=[None, 4]),
        {**wrapped, "inbound_nodes": calls},
        layer("Dense", "out", [["inner@2"]], units=2),
    )
    new = tmp_path / "a.keras"
    save(new, config, {"functional/layers/dense": [k1, b1], "dense": [k2, b2]})
    old_inner = {
        "class_name": "Functional",
        "name": "inner",
        "config": {
            "name": "inner",
            "layers": [
                {
                    "class_name": "InputLayer",
                    "name": "input",
                    "config": {"name": "input", "batch_input_shape": [None, 4]},
                    "inbound_nodes": [],
                },
                {
                    "class_name": "Dense",
                    "name": "hidden",
                    "config": {"name": "hidden", "units": 4, "activation": "relu"},
                    "inbound_nodes": [[["input", 0, 0, {}]]],
                },
            ],
            "input_layers": [["input", 0, 0]],
            "output_layers": [["hidden", 0, 0]],
        },
        "inbound_nodes": [[["input", 0, 0, {}]], [["inner", 1, 0, {"training": False}]]],
    }
    old_config = {
        "class_name": "Functional",
        "config": {
            "name": "model",
            "layers": [
                {
                    "class_name": "InputLayer",
                    "name": "input",
                    "config": {"name": "input", "batch_input_shape": [None, 4]},
                    "inbound_nodes": [],
                },
                old_inner,
                {"class_name": "Dense", "name": "out", "config": {"name": "out", "units": 2}, "inbound_nodes": [[["inner", 2, 0, {}]]]},
            ],
            "input_layers": [["input", 0, 0]],
            "output_layers": [["out", 0, 0]],
        },
    }
    old = tmp_path / "a.h5"
    named = {"input": {}, "inner": {"hidden/kernel:0": k1, "hidden/bias:0": b1}, "out": {"out/kernel:0": k2, "out/bias:0": b2}}
    save_named(old, old_config, named)
    x = torch.randn(5, 4)
    hidden = x
    for _ in range(2):
        hidden = torch.relu(hidden @ torch.from_numpy(k1) + torch.from_numpy(b1))
    return [new, old], x, hidden @ torch.from_numpy(k2) + torch.from_numpy(b2)


def test_models_within_models_are_read_from_both_layouts(tmp_path: Path) -> None:
    paths, x, expected = nested_files(tmp_path)
    for path in paths:
        (found,) = load_networks(path)
        assert torch.allclose(found.space.evaluate(found.theta[None], x)[0], expected, atol=1e-5)
        assert {param.name for param in found.space.params} == {f"{n}.{k}" for n in ("inner.hidden", "out") for k in ("weight", "bias")}


def test_symmetries_of_a_convolutional_graph_keep_its_function(tmp_path: Path) -> None:
    config = functional(
        ["out"],
        layer("InputLayer", "input", [], batch_shape=[None, 6, 6, 2]),
        layer("Conv2D", "conv", [["input"]], filters=4, kernel_size=[3, 3], padding="same", activation="relu"),
        layer("DepthwiseConv2D", "deep", [["conv"]], kernel_size=[3, 3], padding="same", depth_multiplier=1),
        layer("BatchNormalization", "norm", [["deep"]], epsilon=0.01),
        layer("Add", "add", [["conv", "norm"]]),
        layer("GlobalAveragePooling2D", "pool", [["add"]]),
        layer("Dense", "out", [["pool"]], units=3),
    )
    stored = {
        "conv2d": arrays((3, 3, 2, 4), (4,)),
        "depthwise_conv2d": arrays((3, 3, 4, 1), (4,)),
        "batch_normalization": [*arrays((4,), (4,), (4,)), RNG.uniform(1, 2, 4).astype(np.float32)],
        "dense": arrays((4, 3), (3,)),
    }
    (found,) = load_networks(save(tmp_path / "a.keras", config, stored))
    x = torch.randn(2, 2, 6, 6)
    assert found.space.coverage > 0.9
    moved = found.space.act(found.space.sample_symmetry(), found.theta[None])
    assert not torch.allclose(moved[0], found.theta)
    assert torch.allclose(found.space.evaluate(moved, x), found.space.evaluate(found.theta[None], x), atol=1e-4)


# == Versions ==


def test_activations_are_those_of_the_version(tmp_path: Path) -> None:
    x = torch.linspace(-4, 4, 9)[:, None]
    config = sequential([1], layer("Dense", "dense", units=1, activation="hard_sigmoid", use_bias=False))
    one = [np.ones((1, 1), dtype=np.float32)]
    new = outputs(save(tmp_path / "a.keras", config, {"dense": one}), x)
    old = outputs(save_named(tmp_path / "a.h5", config, {"dense": {"dense/kernel:0": one[0]}}), x)
    assert torch.allclose(new, torch.clamp(x / 6 + 0.5, 0, 1), atol=1e-6)
    assert torch.allclose(old, torch.clamp(0.2 * x + 0.5, 0, 1), atol=1e-6)


def test_a_sequential_model_of_keras_2_needs_no_input_layer(tmp_path: Path) -> None:
    first = {"name": "first", "batch_input_shape": [None, 4], "units": 3, "activation": "elu"}
    layers = [{"class_name": "Dense", "config": first}, {"class_name": "Dense", "config": {"name": "b", "units": 2}}]
    (k1, b1), (k2, b2) = arrays((4, 3), (3,)), arrays((3, 2), (2,))
    named = {"first": {"first/kernel:0": k1, "first/bias:0": b1}, "b": {"b/kernel:0": k2, "b/bias:0": b2}}
    x = torch.randn(5, 4)
    expected = nn.functional.elu(x @ torch.from_numpy(k1) + torch.from_numpy(b1)) @ torch.from_numpy(k2) + torch.from_numpy(b2)
    for config in (layers, {"name": "model", "layers": layers}):  # the first releases had the list alone
        found = outputs(save_named(tmp_path / "a.h5", {"class_name": "Sequential", "config": config}, named), x)
        assert torch.allclose(found, expected, atol=1e-6)


def test_weights_alone_are_read_as_a_chain(tmp_path: Path) -> None:
    kernel, bias, dense, offset = arrays((3, 3, 1, 4), (4,), (4 * 4, 5), (5,))
    last = arrays((5, 2), (2,))
    weights_h5({"dense": [dense, offset], "dense_1": last, "conv2d": [kernel, bias], "dropout": []}, tmp_path / "a.weights.h5")
    names = {"conv": {"k": kernel, "b": bias}, "out": {"k": dense, "b": offset}, "again": {"k": last[0], "b": last[1]}}
    save_named(tmp_path / "a.h5", None, names)
    images = torch.randn(2, 1, 4, 4)
    hidden = torch.relu(nn.functional.conv2d(images, torch.from_numpy(kernel).permute(3, 2, 0, 1), torch.from_numpy(bias)))
    hidden = torch.relu(hidden.permute(0, 2, 3, 1).flatten(1) @ torch.from_numpy(dense) + torch.from_numpy(offset))
    expected = hidden @ torch.from_numpy(last[0]) + torch.from_numpy(last[1])
    for path in (tmp_path / "a.weights.h5", tmp_path / "a.h5"):
        with pytest.warns(match="Weights do not show stride 1"):
            found = outputs(path, images, activation="relu")
        assert torch.allclose(found, expected, atol=1e-5)
        with pytest.raises(CheckpointError, match=r"holds weights without a model: give its activations with activation=. Save the whole"):
            load_networks(path)
    weights_h5({"dense": arrays((3, 2), (2,)), "batch_normalization": arrays((2,), (2,), (2,), (2,))}, tmp_path / "b.weights.h5")
    with pytest.raises(CheckpointError, match=r"those of 'batch_normalization' \(\[2\], \[2\], \[2\], \[2\]\) are of no dense layer"):
        load_networks(tmp_path / "b.weights.h5", activation="relu")


def test_double_precision_stays(tmp_path: Path) -> None:
    config = sequential([4], layer("Dense", "dense", units=2, dtype="float64"))
    stored = [value.astype(np.float64) for value in arrays((4, 2), (2,))]
    x = torch.randn(3, 4, dtype=torch.float64)
    found = outputs(save(tmp_path / "a.keras", config, {"dense": stored}), x)
    assert found.dtype == torch.float64
    assert torch.allclose(found, x @ torch.from_numpy(stored[0]) + torch.from_numpy(stored[1]), atol=1e-12)


# == What is refused ==

REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        functional(
            ["mean"],
            layer("InputLayer", "input", [], batch_shape=[None, 4]),
            layer("Dense", "dense", [["input"]], units=2),
            # The function of that name is a mean over an axis; the layer is one over its inputs.
            layer("Average", "mean", [["dense"]], module="keras.src.ops.numpy"),
        ),
        "'mean' is of the class Average, which is not among",
    ),
    (
        sequential([4], layer("Lambda", "half", function="lambda")),
        r"'half' is of the class Lambda, which is not among .* Export .* as ONNX",
    ),
    (sequential([4], layer("Mine", "mine", module="my.layers")), "'mine' is of the class my.layers.Mine"),
    (
        sequential([4], {**layer("Dense", "mine", units=2), "registered_name": "my>Dense"}),
        "'mine' is of the class my>Dense, which is not among",
    ),
    (
        sequential([4], layer("Dense", "dense", units=2, activation={"class_name": "function", "config": "f"})),
        "activation 'f' is not known",
    ),
    (sequential([4], layer("Dense", "dense", units=3)), r"'dense' \(Dense\) has weights of the shapes \[4, 2\], \[2\], where .* \[4, 3\]"),
    (sequential([None], layer("Dense", "dense", units=2)), r"sizes of its input 'input' open, .* shapes=\[\(1, 8\)\]"),
    (
        sequential([4], layer("Dense", "dense", units=2, dtype={"class_name": "QuantizedDTypePolicy"})),
        "'dense' is quantised .* save the model as it was before",
    ),
    (sequential([4], layer("Embedding", "table", input_dim=4, output_dim=2, mask_zero=True)), "mask_zero=True, which is not built here"),
    (sequential([4], layer("Dense", "dense", unit=2)), r"'dense' \(Dense\) has a configuration that cannot be read \(KeyError: 'units'\)"),
    ({"class_name": "MyModel", "config": {}}, "its model is of the class 'MyModel', whose wiring is code that is not in the file"),
    (
        functional(["out"], layer("InputLayer", "input", [], batch_shape=[None, 4]), layer("Dense", "out", [["gone"]], units=2)),
        "its layers 'gone' are read and never called",
    ),
    (
        {"class_name": "Functional", "config": {"layers": [], "input_layers": [{"class_name": "__keras_tensor__"}], "output_layers": []}},
        r"its configuration describes no model that runs \(KeyError: 'config'\)",
    ),
    (
        functional(
            ["sum"],
            layer("InputLayer", "input", [], batch_shape=[None, 4]),
            layer("Dense", "dense", [["input"]], units=2),
            layer("Add", "sum", [["dense", "input"]]),
        ),
        r"describes no model that runs \(RuntimeError: The size of tensor a \(2\) must match",
    ),
    ([], "its configuration is a list, not that of a model"),  # type: ignore[list-item]
]


@pytest.mark.parametrize(("config", "message"), REFUSED)
def test_what_is_not_known_is_refused_by_name(tmp_path: Path, config: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=f"a.keras' cannot be read: .*{message}"):
        load_networks(save(tmp_path / "a.keras", config, {"dense": arrays((4, 2), (2,))}))


def test_sizes_that_are_open_can_be_given(tmp_path: Path) -> None:
    config = sequential([None, None, 2], layer("Conv2D", "conv", filters=3, kernel_size=[2, 2]), layer("GlobalMaxPooling2D", "pool"))
    path = save(tmp_path / "a.keras", config, {"conv2d": arrays((2, 2, 2, 3), (3,))})
    (found,) = load_networks(path, shapes=[(1, 2, 5, 6)])
    assert found.info["inputs"] == [[None, 2, 5, 6]]
    with pytest.raises(CheckpointError, match=r"a shape for the input 'input' that fits \['N', 2, None, None\] \(got \['N', 3, 5, 6\]\)"):
        load_networks(path, shapes=[(1, 3, 5, 6)])


def test_nothing_outside_of_the_file_is_read(tmp_path: Path) -> None:
    config = sequential([4], layer("Dense", "dense", units=2, use_bias=False))
    save_named(tmp_path / "other.h5", None, {"dense": {"kernel": np.ones((4, 2), dtype=np.float32)}})
    path = save_named(tmp_path / "a.h5", config, {"dense": {}})
    with h5py.File(path, "a") as file:
        group = file["model_weights/dense"]
        group.attrs["weight_names"] = [b"kernel"]
        group["kernel"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "dense/kernel")
    with pytest.raises(CheckpointError, match="lacks the weights 'kernel', which the layer"):
        load_networks(path)
    with h5py.File(path, "a") as file:
        del file["model_weights/dense/kernel"]
        (tmp_path / "numbers").write_bytes(bytes(32))
        file["model_weights/dense"].create_dataset("kernel", (4, 2), "f4", external=[(str(tmp_path / "numbers"), 0, 32)])
    with pytest.raises(CheckpointError, match=r"Refused to read '/model_weights/dense/kernel' .*: its numbers lie in other files"):
        load_networks(path)
    with h5py.File(path, "a") as file:
        del file["model_weights/dense/kernel"]
        file["model_weights/dense"].create_dataset("kernel", (2**20, 2**20), "f4", chunks=(8, 8))
    with pytest.raises(CheckpointError, match=r"Refused to read .* it says to hold 4,398,046,511,104 bytes, the file [\d,]+\."):
        load_networks(path)


def test_damaged_files_and_a_missing_package_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_named(tmp_path / "a.h5", sequential([4]), {})
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(CheckpointError, match=r"a.h5' is damaged or no HDF5 file"):
        load_networks(path)
    kept = save_named(tmp_path / "c.h5", sequential([4], layer("Dense", "d", units=2)), {"d": {"k": np.ones((4, 2)), "b": np.ones(2)}})
    monkeypatch.setattr(h5py.Dataset, "__getitem__", lambda *given: (_ for _ in ()).throw(RuntimeError("bad heap")))
    with pytest.raises(CheckpointError, match=r"c.h5' is damaged or no HDF5 file \(bad heap\)"):
        load_networks(kept)
    monkeypatch.undo()
    (tmp_path / "b.h5").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"b.h5' to be Keras \(A model of Keras.*its content is not"):
        load_networks(tmp_path / "b.h5")
    good = save(tmp_path / "a.keras", sequential([4], layer("Dense", "d", units=2)), {"dense": arrays((4, 2), (2,))})
    with pytest.raises(CheckpointError, match="says the activations of its model itself: leave out 'activation'"):
        load_networks(good, activation="relu")
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(ImportError, match=r"needs the package h5py: pip install 'wsgraph\[keras\]'"):
        load_networks(good)
