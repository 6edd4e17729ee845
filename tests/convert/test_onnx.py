"""ONNX files become modules with the same outputs, or are refused by name."""

import copy
import json
import pickle
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typer.testing import CliRunner

from tests.convert.test_tracing import image, tokens
from tests.networks import randomized
from wsgraph import CheckpointError, TraceError, load_onnx, trace
from wsgraph.cli import app
from wsgraph.convert.onnx import OnnxWarning
from wsgraph.convert.onnx.nodes import OPERATORS
from wsgraph.testing import assert_function_preserved

onnx = pytest.importorskip("onnx")
helper, numpy_helper = onnx.helper, onnx.numpy_helper


FLOAT, INT64, BOOL = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.BOOL
make = helper.make_node

# Most files here have one operator and no weights.
pytestmark = pytest.mark.filterwarnings("ignore:.*holds no weights:wsgraph.convert.onnx.OnnxWarning")


def modelled(
    nodes: list[Any],
    weights: dict[str, Any],
    inputs: dict[str, Any],
    outputs: Sequence[str] = ("y",),
    operator_set: int = 18,
    *,
    output_type: int = FLOAT,
    **more: Any,
) -> Any:
    """A model; inputs are shapes of floating point tensors, or pairs of a type and a shape."""
    typed = {name: given if isinstance(given, tuple) else (FLOAT, given) for name, given in inputs.items()}
    initializers = [
        value if hasattr(value, "dims") else numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in typed.items()],
        [helper.make_tensor_value_info(name, output_type, None) for name in outputs],
        initializers,
    )
    opsets = more.pop("opset_imports", [helper.make_opsetid("", operator_set)])
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, **more)


def saved(path: Path, model: Any) -> Path:
    onnx.save(model, path)
    return path


def written(path: Path, nodes: list[Any], weights: dict[str, Any], shape: list[Any], output: str = "y", operator_set: int = 18) -> Path:
    """A file with one input ``x``."""
    return saved(path, modelled(nodes, weights, {"x": shape}, [output], operator_set))


def reference(model: Any, *inputs: Tensor) -> list[Any]:
    """What ONNX's own evaluator returns."""
    from onnx.reference import ReferenceEvaluator

    stored = {tensor.name for tensor in model.graph.initializer}
    names = [value.name for value in model.graph.input if value.name not in stored]
    results: list[Any] = ReferenceEvaluator(model).run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})
    return results


def exported(module: nn.Module, x: Tensor, path: Path) -> Path:
    pytest.importorskip("onnxscript")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (x,), path, dynamo=True, verbose=False)
    return path


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(8, 16), nn.Linear(16, 3)
        self.norm, self.qkv, self.out = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k, v = self.qkv(self.norm(x)).view(*x.shape[:2], 3, 4, 4).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(F.gelu(x + self.out(attended)).mean(1))


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.down, self.up, self.head = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.deep(F.hardswish(self.stem(x))))
        gate = torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))
        return self.head(torch.flatten(F.max_pool2d(x * gate, 2).mean((2, 3)), 1))


@pytest.mark.parametrize(
    ("module", "x", "layers"),
    [
        (nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)), torch.randn(2, 8), 2),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2)), image(), 2),
        (Gated(), image(), 0),
        (Transformer(), tokens(), 0),
    ],
)
def test_exported_networks_come_back(module: nn.Module, x: Tensor, layers: int, tmp_path: Path) -> None:
    module = randomized(module)
    read = load_onnx(exported(module, x, tmp_path / "model.onnx"))
    assert torch.allclose(read(x), module(x), rtol=1e-4, atol=1e-5)
    space, original = trace(read, *read.example_inputs), trace(module, x)
    assert_function_preserved(read, space, read.example_inputs)
    assert abs(space.coverage - original.coverage) < 0.03
    assert len(space.layers) == layers  # exporters fold norms


def test_sizes_left_open_are_two_or_given(tmp_path: Path) -> None:
    weights = {"net.fc.weight": np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32), "net.fc.bias": np.ones(3, np.float32)}
    nodes = [helper.make_node("Gemm", ["x", "net.fc.weight", "net.fc.bias"], ["y"], transB=1)]
    path = written(tmp_path / "model.onnx", nodes, weights, ["batch", 4])
    with pytest.warns(OnnxWarning, match=r"fixed at loading: dimension 0 of 'x' \(batch\) = 2\. Choose them with shapes=\[\(2, 4\)\]"):
        module = load_onnx(path)
    assert sorted(module.state_dict()) == ["net.fc.bias", "net.fc.weight"]
    assert module.example_inputs[0].shape == (2, 4)
    assert module(torch.randn(5, 4)).shape == (5, 3)
    assert load_onnx(path, [(7, 4)]).example_inputs[0].shape == (7, 4)
    with pytest.raises(CheckpointError, match=r"expected 'shapes' with one shape for each of x \(got \[\(7, 4\), \(7, 4\)\]\)"):
        load_onnx(path, [(7, 4), (7, 4)])
    with pytest.raises(CheckpointError, match=r"has 2 dimensions in its input 'x' \(got the shape \[7, 4, 1\]\)"):
        load_onnx(path, [(7, 4, 1)])
    with pytest.raises(ValueError, match=r"Expected the inputs x of .* \(got 2 tensors\)"):
        module(torch.randn(2, 4), torch.randn(2, 4))
    with pytest.raises(ValueError, match=r"input 'x' of .* in the shape \['batch', 4\] \(got \[2, 5\]\); the file fixes it"):
        module(torch.randn(2, 5))
    with pytest.raises(ValueError, match=r"input 'x' of .* in the type torch.float32 \(got torch.int64\)"):
        module(torch.zeros(2, 4, dtype=torch.long))
    with pytest.raises(TypeError, match=r"input 'x' of .* as a tensor \(got list\)"):
        module([0.0])
    with pytest.raises(
        CheckpointError, match=r"The operator Gemm \(y\) of .* cannot be run: .* shapes x \[7, 5\] .*; choose others with shapes="
    ):
        load_onnx(path, [(7, 5)])
    fixed = written(tmp_path / "fixed.onnx", nodes, weights, [1, 4])
    with pytest.raises(
        ValueError, match=r"in the shape \[1, 4\] \(got \[5, 4\]\); the file fixes it. Other sizes .* load_onnx\(..., shapes=\)"
    ):
        load_onnx(fixed)(torch.randn(5, 4))
    with pytest.warns(OnnxWarning, match=r"fixes sizes that 'shapes' changed: 'x' of \[1, 4\] as \[5, 4\]"):
        assert load_onnx(fixed, [(5, 4)])(torch.randn(5, 4)).shape == (5, 3)
    for missing, sizes in (([-1, 4], r"dimension 0 of 'x' = 2"), ([None, 4], r"dimension 0 of 'x' = 2")):
        with pytest.warns(OnnxWarning, match=sizes):
            load_onnx(written(tmp_path / "missing.onnx", nodes, weights, missing))
    shapeless = written(tmp_path / "shapeless.onnx", nodes, weights, None)  # type: ignore[arg-type]
    with pytest.raises(
        CheckpointError, match="does not say how many dimensions its input 'x' has: give the shapes of all inputs with shapes="
    ):
        load_onnx(shapeless)
    assert load_onnx(shapeless, [(3, 4)])(torch.randn(3, 4)).shape == (3, 3)


R = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return R.normal(size=shape).astype(np.float32)


def single(values: Any) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


@pytest.mark.parametrize(
    ("operator", "sources", "attributes", "expected"),
    [
        ("Conv", {"w": normal(4, 3, 3, 3)}, {"pads": [1, 0, 0, 1]}, lambda x, w: F.conv2d(F.pad(x, (0, 1, 1, 0)), w)),
        (
            "Conv",
            {"w": normal(4, 3, 3, 3)},
            {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
            lambda x, w: F.conv2d(F.pad(x, (0, 1, 0, 1)), w, stride=2),
        ),
        ("ConvTranspose", {"w": normal(3, 4, 2, 2)}, {"strides": [2, 2]}, lambda x, w: F.conv_transpose2d(x, w, stride=2)),
        (
            "MaxPool",
            {},
            {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1]},
            lambda x: F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-torch.inf), 2, 1),
        ),
        ("AveragePool", {}, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)),
        ("GlobalAveragePool", {}, {}, lambda x: x.mean((2, 3), keepdim=True)),
        ("GlobalMaxPool", {}, {}, lambda x: x.amax((2, 3), keepdim=True)),
        (
            "BatchNormalization",
            {"a": normal(3), "b": normal(3), "m": normal(3), "v": normal(3) ** 2 + 1},
            {},
            lambda x, a, b, m, v: F.batch_norm(x, m, v, a, b),
        ),
        ("InstanceNormalization", {"a": normal(3), "b": normal(3)}, {}, lambda x, a, b: F.instance_norm(x, weight=a, bias=b)),
        ("LayerNormalization", {"a": normal(4), "b": normal(4)}, {}, lambda x, a, b: F.layer_norm(x, (4,), a, b)),
        ("MatMul", {"w": normal(4, 5)}, {}, lambda x, w: x @ w),
        ("PRelu", {"a": normal(3, 1, 1)}, {}, lambda x, a: F.prelu(x, a.flatten())),
        ("LeakyRelu", {}, {"alpha": 0.3}, lambda x: F.leaky_relu(x, 0.3)),
        ("Clip", {"low": np.float32(0), "high": np.float32(6)}, {}, lambda x, low, high: F.relu6(x)),
        ("HardSigmoid", {}, {}, lambda x: (0.2 * x + 0.5).clamp(0, 1)),
        ("Elu", {}, {"alpha": 0.5}, lambda x: F.elu(x, 0.5)),
        ("Erf", {}, {}, torch.erf),
        ("Softmax", {}, {"axis": 1}, lambda x: x.softmax(1)),
        ("ReduceMean", {"axes": ints(2, 3)}, {"keepdims": 0}, lambda x, axes: x.mean((2, 3))),
        ("ReduceSum", {}, {}, lambda x: x.sum((0, 1, 2, 3), keepdim=True)),
        ("ReduceL2", {"axes": ints(1)}, {}, lambda x, axes: x.norm(dim=1, keepdim=True)),
        ("Reshape", {"shape": ints(0, -1)}, {}, lambda x, shape: x.flatten(1)),
        ("Flatten", {}, {"axis": 2}, lambda x: x.reshape(6, 16)),
        ("Transpose", {}, {"perm": [0, 2, 3, 1]}, lambda x: x.permute(0, 2, 3, 1)),
        ("Unsqueeze", {"axes": ints(0, -1)}, {}, lambda x, axes: x[None, ..., None]),
        ("Slice", {"starts": ints(1), "ends": ints(2**62), "axes": ints(-1), "steps": ints(2)}, {}, lambda x, *_: x[..., 1::2]),
        ("Gather", {"i": ints(2, 0)}, {"axis": 1}, lambda x, i: x[:, [2, 0]]),
        ("Gather", {"i": np.array(1)}, {"axis": 1}, lambda x, i: x[:, 1]),
        ("Concat", {"w": normal(2, 1, 4, 4)}, {"axis": 1}, lambda x, w: torch.cat([x, w], 1)),
        (
            "Pad",
            {"pads": ints(0, 0, 1, 0, 0, 0, 0, 2), "value": np.float32(3)},
            {},
            lambda x, pads, value: F.pad(x, (0, 2, 1, 0), value=3.0),
        ),
        ("Expand", {"shape": ints(5, 1, 1, 1, 1)}, {}, lambda x, shape: x.expand(5, *x.shape)),
        ("Tile", {"repeats": ints(1, 2, 1, 1)}, {}, lambda x, repeats: x.repeat(1, 2, 1, 1)),
        (
            "Resize",
            {"": None, "scales": np.array([1, 1, 2, 2], np.float32)},
            {"mode": "nearest"},
            lambda x, scales: F.interpolate(x, scale_factor=2),
        ),
        ("SpaceToDepth", {}, {"blocksize": 2}, lambda x: x.view(2, 3, 2, 2, 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(2, 12, 2, 2)),
        ("Add", {"b": normal(3, 1, 1)}, {}, torch.add),
        ("Pow", {"e": np.float32(2)}, {}, torch.pow),
        ("Div", {"e": np.float32(2)}, {}, torch.div),
        ("Where", {"mask": None, "b": normal(1)}, {}, None),
    ],
)
def test_operators(operator: str, sources: dict[str, Any], attributes: dict[str, Any], expected: Any, tmp_path: Path) -> None:
    given = {name: value for name, value in sources.items() if value is not None}
    nodes = [helper.make_node(operator, ["x", *sources], ["y"], **attributes)]
    if operator == "Where":
        nodes = [helper.make_node("Greater", ["x", "b"], ["mask"]), helper.make_node("Where", ["mask", "x", "b"], ["y"])]
        expected = lambda x, b: torch.where(x > b, x, b)  # noqa: E731
    module = load_onnx(written(tmp_path / "model.onnx", nodes, given, [2, 3, 4, 4]))
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    result = expected(x, *(torch.tensor(value) for value in given.values()))
    torch.testing.assert_close(module(x), result)


REFUSED: list[tuple[str, list[Any], dict[str, Any], list[int], int]] = [
    # what the message says, nodes, stored tensors, shape of x, operator set
    (
        "its attribute exclude_outside",
        [make("Resize", ["x", "", "s"], ["y"], exclude_outside=1)],
        {"s": single([1, 1, 2, 2])},
        [1, 3, 4, 4],
        18,
    ),
    (
        "halfway between entries",
        [make("Resize", ["x", "", "s"], ["y"], nearest_mode="floor")],
        {"s": single([1, 1, 0.6, 1])},
        [1, 3, 4, 4],
        18,
    ),
    (
        "align_corners with scales that give no whole sizes",
        [make("Resize", ["x", "", "s"], ["y"], mode="linear", coordinate_transformation_mode="align_corners")],
        {"s": single([1, 1, 1.5, 1])},
        [1, 3, 5, 4],
        18,
    ),
    (
        "pytorch_half_pixel for one entry",
        [make("Resize", ["x", "", "", "s"], ["y"], mode="cubic", coordinate_transformation_mode="pytorch_half_pixel")],
        {"s": ints(1, 3, 1, 4)},
        [1, 3, 5, 4],
        18,
    ),
    ("nearest entries with scales below 1", [make("Resize", ["x", "s"], ["y"])], {"s": single([1, 1, 0.6, 1])}, [1, 3, 4, 4], 10),
    ("pads as large as the kernel", [make("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], pads=[2, 0, 0, 0])], {}, [1, 3, 4, 4], 18),
    (
        "it gives .* where ONNX's own inference says",
        [make("AveragePool", ["x"], ["y"], kernel_shape=[1, 1], strides=[3, 3], ceil_mode=1)],
        {},
        [1, 3, 6, 6],
        17,
    ),
    ("together", [make("Conv", ["x", "w"], ["y"], auto_pad="SAME_UPPER", pads=[1, 1, 1, 1])], {"w": normal(4, 3, 3, 3)}, [1, 3, 4, 4], 18),
    (
        "ceil_mode with auto_pad = VALID",
        [make("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], strides=[3, 3], auto_pad="VALID", ceil_mode=1)],
        {},
        [1, 3, 6, 6],
        18,
    ),
    ("negative padding", [make("MaxPool", ["x"], ["y"], kernel_shape=[1, 1], strides=[3, 3], auto_pad="SAME_UPPER")], {}, [1, 3, 6, 6], 18),
    ("kernel_shape", [make("Conv", ["x", "w"], ["y"], kernel_shape=[1, 1])], {"w": normal(4, 3, 3, 3)}, [1, 3, 4, 4], 18),
    ("auto_pad", [make("ConvTranspose", ["x", "w"], ["y"], auto_pad="SAME_UPPER")], {"w": normal(3, 4, 3, 3)}, [1, 3, 4, 4], 8),
    (
        "result 2, 'i'",
        [make("MaxPool", ["x"], ["y", "i"], kernel_shape=[2, 2]), make("Cast", ["i"], ["z"], to=FLOAT)],
        {},
        [1, 3, 4, 4],
        18,
    ),
    (
        "training_mode = 1",
        [make("BatchNormalization", [*"xabmv"], ["y"], training_mode=1)],
        dict.fromkeys("abmv", normal(3) ** 2),
        [1, 3, 4, 4],
        18,
    ),
    ("results of training", [make("BatchNormalization", [*"xabmv"], [*"ypqrs"])], dict.fromkeys("abmv", normal(3) ** 2), [1, 3, 4, 4], 9),
    ("spatial = 0", [make("BatchNormalization", [*"xabmv"], ["y"], spatial=0)], dict.fromkeys("abmv", normal(3) ** 2), [1, 3, 4, 4], 7),
    ("training mode", [make("BatchNormalization", [*"xabmv"], ["y"])], dict.fromkeys("abmv", normal(3) ** 2), [1, 3, 4, 4], 6),
    ("at random", [make("Dropout", ["x", "r", "t"], ["y"])], {"r": np.float32(0.5), "t": np.array(True)}, [2, 3], 18),
    ("at random", [make("Dropout", ["x"], ["y"])], {}, [2, 3], 6),
    ("result 2, 'm'", [make("Dropout", ["x"], ["y", "m"]), make("Not", ["m"], ["z"])], {}, [2, 3], 10),
    ("ai.onnx.Bernoulli", [make("Bernoulli", ["x"], ["y"])], {}, [2, 3], 18),
    ("ai.onnx.NonZero", [make("NonZero", ["x"], ["y"])], {}, [2, 3], 18),
    ("ai.onnx.LSTM", [make("LSTM", ["x", "w", "r"], ["y"], hidden_size=2)], {"w": normal(1, 8, 3), "r": normal(1, 8, 2)}, [4, 2, 3], 18),
    (
        "ai.onnx.SequenceConstruct",
        [make("SequenceConstruct", ["x"], ["s"]), make("SequenceAt", ["s", "z"], ["y"])],
        {"z": np.array(0)},
        [2, 3],
        18,
    ),
    ("ai.onnx.Optional", [make("Optional", ["x"], ["o"]), make("OptionalGetElement", ["o"], ["y"])], {}, [2, 3], 18),
    ("1 of Cast .* it reads", [make("Cast", ["x"], ["y"], to="FLOAT")], {}, [2, 3], 1),
    (
        "type FLOAT8E5M2 is not",
        [make("Cast", ["x"], ["h"], to=onnx.TensorProto.FLOAT8E5M2), make("Cast", ["h"], ["y"], to=FLOAT)],
        {},
        [2, 3],
        19,
    ),
    ("broadcast", [make("Add", ["x", "w"], ["y"])], {"w": normal(3)}, [2, 3], 6),
    ("before operator set 8", [make("Max", ["x", "w"], ["y"])], {"w": normal(3)}, [2, 3], 6),
    ("parts of a dimension", [make("Split", ["x"], ["y", "z"], axis=1)], {}, [2, 3], 13),
    ("num_outputs = 3", [make("Split", ["x"], ["y", "z"], axis=1, num_outputs=3)], {}, [2, 6], 18),
    ("without its attribute fmod", [make("Mod", ["x", "w"], ["y"])], {"w": normal(3)}, [2, 3], 13),
    ("noop_with_empty_axes", [make("ReduceL2", ["x"], ["y"], noop_with_empty_axes=1)], {}, [2, 3], 18),
    ("block_size = 2", [make("DequantizeLinear", ["x", "s"], ["y"], axis=0, block_size=2)], {"s": normal(1, 3)}, [2, 3], 21),
    ("indices from -3 to 0", [make("Gather", ["x", "i"], ["y"])], {"i": ints(0, -3)}, [2, 3], 18),
    ("depends on the values", [make("Cast", ["x"], ["i"], to=INT64), make("Reshape", ["x", "i"], ["y"])], {}, [2], 18),
    ("negative pads", [make("Pad", ["x", "p"], ["y"], mode="reflect")], {"p": ints(0, -1, 0, 1)}, [2, 3], 18),
    (r"axes \[1\]", [make("Squeeze", ["x", "a"], ["y"])], {"a": ints(1)}, [2, 3], 18),
    ("value_string", [make("Constant", [], ["s"], value_string=b"text"), make("Relu", ["x"], ["y"])], {}, [2, 3], 18),
    (
        "a tensor of type STRING, 't'",
        [make("Relu", ["x"], ["y"])],
        {"t": helper.make_tensor("t", onnx.TensorProto.STRING, [1], [b"a"])},
        [2, 3],
        18,
    ),
    ("operator set 99, .* install a newer", [make("Relu", ["x"], ["y"])], {}, [2, 3], 99),
]


def test_what_has_no_equal_is_refused_by_name(tmp_path: Path) -> None:
    for i, (message, nodes, weights, shape, operator_set) in enumerate(REFUSED):
        kind = onnx.TensorProto.INT8 if nodes[0].op_type == "DequantizeLinear" else FLOAT
        model = modelled(nodes, weights, {"x": (kind, shape)}, [nodes[-1].output[-1]], operator_set)
        if operator_set < 9:  # where stored tensors are inputs too
            model.ir_version = 3
            model.graph.input.extend(helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in model.graph.initializer)
        with pytest.raises(CheckpointError, match=message) as caught:
            load_onnx(saved(tmp_path / f"{i}.onnx", model))
        if "a tensor of type" not in message and "operator set 99" not in message:
            assert any(node.op_type in str(caught.value) for node in nodes), caught.value


def test_control_flow_and_other_domains_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    branch = helper.make_graph([make("Identity", ["x"], ["b"])], "branch", [], [helper.make_tensor_value_info("b", FLOAT, [2, 3])])
    chosen = make("If", ["c"], ["y"], name="choice", then_branch=branch, else_branch=branch)
    with pytest.raises(CheckpointError, match=r"cannot read, ai.onnx.If \(choice\)\. Trace the module that it was exported from"):
        load_onnx(saved(path, modelled([chosen], {"c": np.array(True)}, {"x": [2, 3]})))
    both = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    fused = make("FusedGelu", ["x"], ["y"], domain="com.microsoft", name="fused")
    with pytest.raises(CheckpointError, match=r"cannot read, com.microsoft.FusedGelu \(fused\)"):
        load_onnx(saved(path, modelled([fused], {}, {"x": [2, 3]}, opset_imports=both)))
    with pytest.raises(CheckpointError, match=r"cannot read, com.microsoft.FusedGelu \(fused\)"):
        load_onnx(saved(path, modelled([fused], {}, {"x": [2, 3]}, opset_imports=both[1:])))
    assert (
        load_onnx(saved(path, modelled([make("Relu", ["x"], ["y"])], {}, {"x": [2, 3]}, opset_imports=both)))(-torch.ones(2, 3)).sum() == 0
    )
    text = modelled([make("Identity", ["x"], ["y"])], {}, {"x": (onnx.TensorProto.STRING, [2])}, output_type=onnx.TensorProto.STRING)
    with pytest.raises(CheckpointError, match=r"an input that wsgraph cannot read, 'x': a tensor of type STRING"):
        load_onnx(saved(path, text))
    sequence = modelled([make("Identity", ["x"], ["y"])], {}, {"x": [2]})
    for value in (*sequence.graph.input, *sequence.graph.output):
        value.type.CopyFrom(helper.make_sequence_type_proto(helper.make_tensor_type_proto(FLOAT, [2])))
    with pytest.raises(CheckpointError, match=r"an input that wsgraph cannot read, 'x': it is of the kind sequence, no tensor"):
        load_onnx(saved(path, sequence))
    sparse = modelled([make("Add", ["x", "w"], ["y"])], {}, {"x": [3]})
    values = helper.make_tensor("w", FLOAT, [1], [1.0])
    sparse.graph.sparse_initializer.append(helper.make_sparse_tensor(values, helper.make_tensor("i", INT64, [1, 1], [0]), [3]))
    with pytest.raises(CheckpointError, match=r"a sparse tensor, 'w', which wsgraph cannot read"):
        load_onnx(saved(path, sparse))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)).to(dtype).eval()
    x = torch.randn(2, 8).to(dtype)
    read = load_onnx(exported(module, x, tmp_path / "model.onnx"))
    assert torch.allclose(read(x), module(x), atol=0.05)
    assert all(tensor.dtype == dtype for tensor in read.state_dict().values())
    assert trace(read, *read.example_inputs).is_chain


def test_shapes_are_computed_once(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Constant", [], ["zero"], value=numpy_helper.from_array(np.array(0))),
        helper.make_node("Gather", ["shape", "zero"], ["batch"]),
        helper.make_node("Unsqueeze", ["batch", "first"], ["sizes"]),
        helper.make_node("Concat", ["sizes", "rest"], ["flat"], axis=0),
        helper.make_node("Reshape", ["x", "flat"], ["features"]),
        helper.make_node("Gemm", ["features", "w"], ["y"], transB=1),
    ]
    path = written(tmp_path / "model.onnx", nodes, {"first": ints(0), "rest": ints(-1), "w": normal(3, 12)}, ["n", 3, 2, 2])
    with pytest.warns(OnnxWarning, match="sizes of its inputs open"):
        module = load_onnx(path)
    assert "2 operators" in repr(module)
    for size in (2, 5, 1):  # what follows from shapes is computed anew for others
        x = torch.randn(size, 3, 2, 2)
        assert torch.allclose(module(x), x.flatten(1) @ module.state_dict()["w"].T)
        assert trace(module, x).params[0].shape == (3, 12)
    with pytest.raises(RuntimeError, match="Run the module once on inputs of these shapes before it is exported"):
        torch.export.export(module, (torch.randn(7, 3, 2, 2),), strict=False)


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "model.onnx", [helper.make_node("Gemm", ["x", "w"], ["y"])], {"w": normal(4, 3)}, [2, 4])
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match="is not a complete ONNX model"):
        load_onnx(broken)
    with pytest.raises(FileNotFoundError, match="There is no file"):
        load_onnx(tmp_path / "missing.onnx")
    for content in (b"", b"no model", b"\0" * 64):
        broken.write_bytes(content)
        with pytest.raises(CheckpointError, match="is not a complete ONNX model"):
            load_onnx(broken)
    short = onnx.TensorProto(name="w", data_type=FLOAT, dims=[4, 3], raw_data=b"\0" * 8)
    with pytest.raises(CheckpointError, match=r"is not a complete ONNX model: .* w"):
        load_onnx(written(broken, [make("Gemm", ["x", "w"], ["y"])], {"w": short}, [2, 4]))
    outside = onnx.TensorProto(name="w", data_type=FLOAT, dims=[4, 3], data_location=1)
    outside.external_data.add(key="location", value="gone.bin")
    with pytest.raises(CheckpointError, match=r"is not a complete ONNX model: .* w"):
        load_onnx(written(broken, [make("Gemm", ["x", "w"], ["y"])], {"w": outside}, [2, 4]))
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"needs the package onnx: pip install 'wsgraph\[onnx\]'"):
        load_onnx(path)


def test_the_command_reads_onnx(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "a.weight", "a.bias"], ["h"], transB=1),
        helper.make_node("Tanh", ["h"], ["t"]),
        helper.make_node("Gemm", ["t", "b.weight"], ["y"], transB=1),
    ]
    path = str(written(tmp_path / "model.onnx", nodes, {"a.weight": normal(6, 4), "a.bias": normal(6), "b.weight": normal(2, 6)}, ["n", 4]))

    def call(*arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(app, list(arguments))
        assert result.exit_code == code, result.output
        return " ".join(result.output.split())

    described = call("info", path)
    assert "WeightSpace(4-6-2, linear | linear, tanh, 42 parameters)" in described
    assert "dimension 0 of 'x' (n) = 2. Choose them with shapes=[(2, 4)] (in the shell: --input)" in described
    assert "permutation x sign" in call("info", path, "--input", "5x4")
    assert "largest relative difference of an output: " in call("check", path)
    assert "ParameterGraph(4-6-2" in call("convert", path, str(tmp_path / "graph.pt"))
    assert "an .onnx file holds the whole network" in call("info", path, "--activation", "relu", code=1)
    assert "cannot be run" in call("info", path, "--input", "5x3", code=1)
    weightless = str(written(tmp_path / "function.onnx", [make("Relu", ["x"], ["y"])], {}, [2, 4]))
    for command in (["info", weightless], ["check", weightless], ["convert", weightless, str(tmp_path / "empty.pt")]):
        assert "holds no weights" in (result := call(*command, code=1))
        assert "The module has no parameters: a weight space needs at least one floating point tensor" in result
    assert not (tmp_path / "empty.pt").exists()


# == Weights ==


def rectified(first: list[Any], weight: str = "W") -> list[Any]:
    """A network of two layers, after nodes that make its first weight."""
    return [*first, make("MatMul", ["x", weight], ["h"]), make("Relu", ["h"], ["r"]), make("MatMul", ["r", "V"], ["y"])]


def constant(name: str, value: Any = None, **attributes: Any) -> Any:
    given = attributes or {"value": numpy_helper.from_array(np.asarray(value), name)}
    return make("Constant", [], [name], **given)


W, WHOLE = normal(3, 8), R.integers(-9, 9, (3, 8)).astype(np.int8)


@pytest.mark.parametrize(
    ("nodes", "weight", "names"),
    [
        ([constant("W", W)], "W", {"W": (3, 8)}),
        ([constant("W", W.T), make("Transpose", ["W"], ["T"], perm=[1, 0])], "T", {"W": (8, 3)}),
        ([constant("W", W), make("Identity", ["W"], ["I"]), make("Identity", ["I"], ["J"])], "J", {"W": (3, 8)}),
        ([constant("W", W.ravel()), constant("s", ints(3, 8)), make("Reshape", ["W", "s"], ["K"])], "K", {"W": (3, 8)}),
        (
            [constant("W", value_floats=W.ravel().tolist()), constant("s", value_ints=[3, -1]), make("Reshape", ["W", "s"], ["K"])],
            "K",
            {"W": (3, 8)},
        ),
        ([constant("W", W[None]), constant("a", ints(0)), make("Squeeze", ["W", "a"], ["K"])], "K", {"W": (3, 8)}),
        ([constant("W", W.astype(np.float16)), make("Cast", ["W"], ["K"], to=FLOAT)], "K", {"W": (3, 8)}),
        ([constant("W", WHOLE), constant("s", np.float32(0.1)), make("DequantizeLinear", ["W", "s"], ["K"])], "K", {"K": (3, 8)}),
        (
            [
                constant("W", WHOLE),
                constant("s", abs(normal(8))),
                constant("z", WHOLE[0]),
                make("DequantizeLinear", ["W", "s", "z"], ["K"]),
            ],
            "K",
            {"K": (3, 8)},
        ),
        (
            [constant("W", WHOLE), make("Cast", ["W"], ["F"], to=FLOAT), constant("s", np.float32(0.1)), make("Mul", ["F", "s"], ["K"])],
            "K",
            {"K": (3, 8)},
        ),
        ([constant("A", W[:1]), constant("B", W[1:]), make("Concat", ["A", "B"], ["K"], axis=0)], "K", {"A": (1, 8), "B": (2, 8)}),
    ],
)
def test_weights_are_parameters_however_they_are_stored(nodes: list[Any], weight: str, names: dict[str, Any], tmp_path: Path) -> None:
    model = modelled(rectified(nodes, weight), {"V": normal(8, 2)}, {"x": [2, 3]}, operator_set=19)
    module = load_onnx(saved(tmp_path / "model.onnx", model))
    assert {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()} == {**names, "V": (8, 2)}
    assert isinstance(module.get_parameter("V"), nn.Parameter)
    x = module.example_inputs[0]
    torch.testing.assert_close(module(x), torch.tensor(reference(model, x)[0]))
    space = trace(module, x)
    assert space.coverage == 1
    assert_function_preserved(module, space, x)


def test_settings_never_hide_weights(tmp_path: Path) -> None:
    """A scale made from activations, or an activation read for its type, hides no weight."""
    quantized = [make("DynamicQuantizeLinear", ["h"], ["q", "s", "z"]), make("DequantizeLinear", ["q", "s", "z"], ["r"])]
    for operator_set, inner in (
        (13, quantized),
        (18, [make("Shrink", ["h"], ["r"], lambd=0.3)]),
        (18, [make("ThresholdedRelu", ["h"], ["r"], alpha=0.3)]),
    ):
        nodes = [make("MatMul", ["x", "W"], ["h"]), *inner, make("MatMul", ["r", "V"], ["y"])]
        module = load_onnx(written(tmp_path / "model.onnx", nodes, {"W": W, "V": normal(8, 2)}, [2, 3], operator_set=operator_set))
        assert sorted(module.state_dict()) == ["V", "W"]
        assert_function_preserved(module, trace(module, *module.example_inputs), module.example_inputs)


@pytest.mark.parametrize(
    ("names", "keys"),
    [
        (("a.b", "a_b", "a..b", "a__b"), ["a.b", "a_b", "a__b", "a__b_"]),
        (("a", "a.b", "a.b.c", "a_b"), ["a", "a_b", "a_b_c", "a_b_"]),
        (("forward", "training", "_parameters", "__class__"), ["forward_", "training_", "_parameters_", "__class___"]),
        (("class", "lambda", "None", "0"), ["class", "lambda", "None", "0"]),
        (("fc.forward", "fc.T", ".b", "c."), ["fc_forward", "fc.T", "_b", "c_"]),
        (("/fc/MatMul:0", "onnx::Gemm_1", "ü", "a b"), ["/fc/MatMul:0", "onnx::Gemm_1", "ü", "a b"]),
        (("path", "weights", "example_inputs", "self"), ["path", "weights", "example_inputs_", "self"]),
        (("p_x", "inputs_0", "args", "input"), ["p_x", "inputs_0", "args", "input"]),
    ],
)
def test_names_that_a_state_dict_cannot_have_are_changed_and_said(names: Sequence[str], keys: list[str], tmp_path: Path) -> None:
    w, b, v, c = names
    nodes = [make("Gemm", ["x", w, b], ["/h"], transB=1), make("Relu", ["/h"], ["/r"]), make("Gemm", ["/r", v, c], ["/y"], transB=1)]
    arrays = [normal(8, 3), normal(8), normal(2, 8), normal(2)]
    model = modelled(nodes, dict(zip(names, arrays, strict=True)), {"x": [2, 3]}, ["/y"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        module = load_onnx(saved(tmp_path / "model.onnx", model))
    said = "".join(str(warning.message) for warning in caught)
    assert all((f"{name!r} is {key!r}" in said) == (name != key) for name, key in zip(names, keys, strict=True))
    state = module.state_dict()
    assert sorted(state) == sorted(keys)
    assert all(state[key].equal(torch.tensor(array)) for key, array in zip(keys, arrays, strict=True))
    x = module.example_inputs[0]
    torch.testing.assert_close(module(x), torch.tensor(reference(model, x)[0]))
    assert_function_preserved(module, trace(module, x), x)


def test_a_file_without_weights_is_said_to_have_none(tmp_path: Path) -> None:
    path = written(tmp_path / "model.onnx", [make("Relu", ["x"], ["y"])], {}, [2, 3])
    with pytest.warns(OnnxWarning, match="holds no weights: its module computes a function, of which there is nothing to trace"):
        module = load_onnx(path)
    with pytest.raises(TraceError, match="has no parameters"):
        trace(module, *module.example_inputs)


# == Types ==


@pytest.mark.parametrize(
    ("nodes", "weights", "inputs"),
    [
        ([make("Cast", ["a"], ["x"], to=FLOAT)], {}, {"a": (onnx.TensorProto.INT32, [2, 3])}),
        ([make("Cast", ["a"], ["d"], to=onnx.TensorProto.DOUBLE), make("Cast", ["d"], ["x"], to=FLOAT)], {}, {"a": [2, 3]}),
        ([make("Add", ["a", "k"], ["x"])], {"k": np.float32(0.1)}, {"a": [2, 3]}),
        ([constant("k", single([0.5, 2, 3])), make("Mul", ["k", "a"], ["x"])], {}, {"a": [2, 3]}),
        ([constant("s", ints(2, 3)), make("ConstantOfShape", ["s"], ["z"]), make("Max", ["a", "z"], ["x"])], {}, {"a": [2, 3]}),
        ([make("Greater", ["a", "k"], ["m"]), make("CastLike", ["m", "a"], ["x"])], {"k": np.float32(0.1)}, {"a": [2, 3]}),
    ],
)
def test_casts_and_constants_follow_the_type_of_the_module(
    nodes: list[Any], weights: dict[str, Any], inputs: dict[str, Any], tmp_path: Path
) -> None:
    model = modelled(rectified(nodes), {"W": W, "V": normal(8, 2), **weights}, inputs)
    module = load_onnx(saved(tmp_path / "model.onnx", model))
    given = [torch.ones(2, 3, dtype=x.dtype) if not x.is_floating_point() else x for x in module.example_inputs]
    expected = torch.tensor(reference(model, *given)[0])
    torch.testing.assert_close(module(*given), expected)
    for dtype in (torch.float64, torch.bfloat16):
        moved = copy.deepcopy(module).to(dtype)
        output = moved(*(x.to(dtype) if x.is_floating_point() else x for x in given))
        assert output.dtype == dtype
        torch.testing.assert_close(output.float(), expected, atol=0.2 if dtype == torch.bfloat16 else 1e-5, rtol=0.05)
    assert_function_preserved(module, trace(module, *given), tuple(given))


def test_casts_of_a_module_in_its_own_types_round(tmp_path: Path) -> None:
    model = modelled([make("Cast", ["x"], ["h"], to=onnx.TensorProto.FLOAT16), make("Cast", ["h"], ["y"], to=FLOAT)], {}, {"x": [2, 3]})
    x = torch.randn(2, 3)
    assert load_onnx(saved(tmp_path / "model.onnx", model))(x).equal(x.half().float())


# == Meanings that operator sets changed, and what ONNX defines by other operators ==


def softmax(x: Tensor, axis: int) -> Tensor:
    return x.reshape(int(np.prod(x.shape[:axis])), -1).softmax(1).reshape(x.shape)


X = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(3))
Q = torch.randn(2, 12, 4, 4, generator=torch.Generator().manual_seed(4))
GIVEN = {"x": X, "u": X[None], "q": Q}
CHANGED: list[tuple[Any, dict[str, Any], int, Tensor]] = [
    (make("Softmax", ["x"], ["y"]), {}, 11, softmax(X, 1)),
    (make("Softmax", ["x"], ["y"], axis=2), {}, 11, softmax(X, 2)),
    (make("Softmax", ["x"], ["y"], axis=-2), {}, 11, softmax(X, 2)),
    (make("Softmax", ["x"], ["y"]), {}, 13, X.softmax(-1)),
    (make("LogSoftmax", ["x"], ["y"]), {}, 11, softmax(X, 1).log()),
    (make("LogSoftmax", ["x"], ["y"]), {}, 13, X.log_softmax(-1)),
    (make("Hardmax", ["x"], ["y"]), {}, 11, F.one_hot(X.flatten(1).argmax(1), 48).view(X.shape).float()),
    (make("Hardmax", ["x"], ["y"], axis=1), {}, 13, (X.amax(1, keepdim=True) == X).float()),
    (make("Clip", ["x"], ["y"], min=0.0, max=6.0), {}, 6, F.relu6(X)),
    (make("Clip", ["x"], ["y"], min=-0.5), {}, 6, X.clamp(min=-0.5)),
    (make("Clip", ["x", "", "h"], ["y"]), {"h": np.float32(0.5)}, 13, X.clamp(max=0.5)),
    (make("Pad", ["x"], ["y"], pads=[0, 0, 1, 0, 0, 0, 0, 2], value=3.0), {}, 2, F.pad(X, (0, 2, 1, 0), value=3.0)),
    (make("Slice", ["x"], ["y"], starts=[1], ends=[-1], axes=[2]), {}, 1, X[:, :, 1:-1]),
    (make("Slice", ["x", "s", "e", "a", "t"], ["y"]), {"s": ints(-9), "e": ints(-99), "a": ints(3), "t": ints(-1)}, 13, X[..., :1]),
    (make("Slice", ["x", "s", "e", "a", "t"], ["y"]), {"s": ints(9), "e": ints(-99), "a": ints(3), "t": ints(-3)}, 13, X[..., [3, 0]]),
    (make("Squeeze", ["u"], ["y"], axes=[0]), {}, 11, X),
    (make("Unsqueeze", ["x"], ["y"], axes=[-1, 0]), {}, 11, X[None, ..., None]),
    (make("ReduceSum", ["x"], ["y"], axes=[1], keepdims=0), {}, 11, X.sum(1)),
    (make("ReduceSum", ["x", "a"], ["y"], keepdims=0), {"a": ints(1)}, 13, X.sum(1)),
    (make("ReduceMean", ["x"], ["y"], axes=[-1]), {}, 13, X.mean(-1, keepdim=True)),
    (make("ReduceMax", ["x"], ["y"], noop_with_empty_axes=1), {}, 18, X),
    (make("TopK", ["x"], ["y", "i"], k=2), {}, 1, X.topk(2).values),
    (make("TopK", ["x", "k"], ["y", "i"], largest=0, axis=1), {"k": ints(2)}, 11, X.sort(1).values[:, :2]),
    (
        make("Upsample", ["x", "s"], ["y"], mode="nearest"),
        {"s": single([1, 1, 2, 3])},
        9,
        X.repeat_interleave(2, 2).repeat_interleave(3, 3),
    ),
    (make("Upsample", ["x"], ["y"], scales=[1.0, 1.0, 2.0, 1.0]), {}, 7, X.repeat_interleave(2, 2)),
    (make("Resize", ["x", "s"], ["y"], mode="nearest"), {"s": single([1, 1, 0.5, 1])}, 10, X[:, :, ::2]),
    (make("Dropout", ["x"], ["y", "unread"]), {}, 7, X),
    (make("Dropout", ["x"], ["y"], is_test=1), {}, 6, X),
    (make("Dropout", ["x", "r", "t"], ["y"]), {"r": np.float32(0), "t": np.array(True)}, 18, X),
    (make("Add", ["x", "b"], ["y"], broadcast=1, axis=1), {"b": single([1, 2, 3])}, 6, X + torch.tensor([1.0, 2, 3])[:, None, None]),
    (make("PRelu", ["x", "b"], ["y"]), {"b": single([1, 2, 3])}, 6, F.prelu(X, torch.tensor([1.0, 2, 3]))),
    (make("PRelu", ["x", "b"], ["y"]), {"b": single([1, 2, 3, 4])}, 9, torch.where(X < 0, X * torch.tensor([1.0, 2, 3, 4]), X)),
    (make("Split", ["x"], ["y", "z"], axis=3, split=[1, 3]), {}, 2, X[..., :1]),
    (make("Split", ["x"], ["y", "z"], axis=1, num_outputs=2), {}, 18, X[:, :2]),
    (make("SpaceToDepth", ["x"], ["y"], blocksize=2, mode="CRD"), {}, 28, F.pixel_unshuffle(X, 2)),
    (make("DepthToSpace", ["q"], ["y"], blocksize=2), {}, 11, Q.reshape(2, 2, 2, 3, 4, 4).permute(0, 3, 4, 1, 5, 2).reshape(2, 3, 8, 8)),
    (make("Selu", ["x"], ["y"]), {}, 6, F.selu(X)),
    (make("Selu", ["x"], ["y"], alpha=1.0, gamma=2.0), {}, 6, 2 * F.elu(X)),
    (make("Swish", ["x"], ["y"], alpha=2.0), {}, 24, X * torch.sigmoid(2 * X)),
    (make("Gelu", ["x"], ["y"], approximate="tanh"), {}, 20, F.gelu(X, approximate="tanh")),
    (make("LpNormalization", ["x"], ["y"], p=1, axis=1), {}, 22, F.normalize(X, p=1, dim=1)),
    (make("LRN", ["x"], ["y"], size=3, alpha=0.3, bias=2.0), {}, 13, F.local_response_norm(X, 3, 0.3, 0.75, 2.0)),
    (make("MaxPool", ["x"], ["y"], kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_LOWER"), {}, 18, F.max_pool2d(X, 3, 2, 1)),
    (
        make("AveragePool", ["x"], ["y"], kernel_shape=[3, 3], strides=[3, 3], ceil_mode=1),
        {},
        22,
        F.avg_pool2d(X, 3, 3, ceil_mode=True, count_include_pad=False),
    ),
    (
        make("AveragePool", ["x"], ["y"], kernel_shape=[2, 2], pads=[0, 1, 1, 0], count_include_pad=1),
        {},
        11,
        F.avg_pool2d(F.pad(X, (1, 0, 0, 1)), 2, 1),
    ),
    (make("AveragePool", ["x"], ["y"], kernel_shape=[2, 1], dilations=[3, 1]), {}, 19, (X[:, :, :1] + X[:, :, 3:]) / 2),
    (make("LpPool", ["x"], ["y"], kernel_shape=[2, 2], p=3), {}, 18, (4 * F.avg_pool2d(X.abs() ** 3, 2, 1)) ** (1 / 3)),
    (make("Mod", ["x", "b"], ["y"]), {"b": np.float32(-2)}, 28, torch.remainder(X, torch.tensor(-2.0))),
    (make("Shrink", ["x"], ["y"], lambd=0.3), {}, 18, torch.where(X.abs() > 0.3, X, 0.0)),
    (make("MeanVarianceNormalization", ["x"], ["y"]), {}, 13, (X - X.mean((0, 2, 3), True)) / X.std((0, 2, 3), correction=0, keepdim=True)),
    (make("RMSNormalization", ["x", "g"], ["y"]), {"g": np.ones(4, np.float32)}, 23, F.rms_norm(X, (4,), eps=1e-5)),
]


def test_every_operator_set_has_its_own_meaning(tmp_path: Path) -> None:
    for i, (node, weights, operator_set, expected) in enumerate(CHANGED):
        x = GIVEN[node.input[0]]
        model = modelled([node], weights, {node.input[0]: list(x.shape)}, ["y"], operator_set)
        if operator_set < 9:
            model.ir_version = 3
            model.graph.input.extend(helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in model.graph.initializer)
        results = load_onnx(saved(tmp_path / f"{i}.onnx", model))(x)
        result = results[0] if isinstance(results, tuple) else results
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)


def test_the_table_names_versions_inputs_and_attributes_of_onnx() -> None:
    schemas: dict[str, dict[int, Any]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "":
            schemas.setdefault(schema.name, {})[schema.since_version] = schema
    for name, entries in OPERATORS.items():
        versions = [version for entry in entries for version in entry.versions]
        assert len(set(versions)) == len(versions), name
        known = [version for version in versions if version <= onnx.defs.onnx_opset_version()]
        assert set(known) <= set(schemas[name]), name
        for entry in entries:
            heeded = set().union(*(schemas[name][version].attributes for version in entry.versions if version in known))
            assert entry.attributes <= heeded, name
            most = max(schemas[name][version].max_input for version in entry.versions if version in known)
            assert len(entry.inputs) <= most, name


def test_modules_can_be_copied_stored_and_mapped_over_weights(tmp_path: Path) -> None:
    nodes = [
        make("MatMul", ["x", "W"], ["h"]),
        make("Shape", ["h"], ["s"]),
        make("Reshape", ["h", "s"], ["r"]),
        make("MatMul", ["r", "V"], ["y"]),
    ]
    module = load_onnx(written(tmp_path / "model.onnx", nodes, {"W": W, "V": normal(8, 2)}, [2, 3]))
    x = module.example_inputs[0]
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert other(x).equal(module(x))
    several = {name: torch.stack([tensor, 2 * tensor]) for name, tensor in module.state_dict().items()}
    outputs = torch.func.vmap(lambda state: torch.func.functional_call(module, state, (x,)))(several)
    torch.testing.assert_close(outputs, torch.stack([module(x), 4 * module(x)]))


# == Beside ONNX's own evaluator ==


def drawn_nodes(generator: np.random.Generator) -> list[tuple[Any, dict[str, Any], list[int], int]]:
    """Nodes with random attributes, of operators in which the evaluator is right."""

    def one(*values: Any) -> Any:
        return values[generator.integers(len(values))]

    def node(operator: str, inputs: Sequence[str], **attributes: Any) -> Any:
        return make(operator, inputs, ["y"], **{name: value for name, value in attributes.items() if value is not None})

    def array(*shape: int) -> np.ndarray:
        return generator.normal(size=shape).astype(np.float32)

    drawn: list[tuple[Any, dict[str, Any], list[int], int]] = []
    dims = one(1, 2, 3)
    sides = [int(side) for side in generator.integers(4, 8, dims)]
    kernel = [int(size) for size in generator.integers(1, 4, dims)]
    pads = one(None, [int(size) for size in generator.integers(0, 3, 2 * dims)])
    placed = {
        "auto_pad": one("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER") if pads is None else None,
        "pads": pads,
        "strides": one(None, [int(step) for step in generator.integers(1, 3, dims)]),
    }
    group = one(1, 2)
    drawn += [
        (
            node("Conv", ["x", "w", *one([], ["b"])], group=group, dilations=one(None, [2] + [1] * (dims - 1)), **placed),
            {"w": array(6, 4 // group, *kernel), "b": array(6)},
            [2, 4, *(side + 4 for side in sides)],
            one(8, 11, 22),
        )
    ]
    mode = one("nearest", "linear", "cubic")
    coordinates = one("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric", "tf_crop_and_resize")
    resize = node(
        "Resize",
        ["x", "roi", "", "sizes"],
        mode=mode,
        coordinate_transformation_mode=coordinates,
        nearest_mode=one(None, "floor", "ceil", "round_prefer_ceil"),
        cubic_coeff_a=one(None, -0.5),
        exclude_outside=one(None, 1) if mode != "nearest" else None,
        antialias=one(None, 1) if mode != "nearest" else None,
        extrapolation_value=one(None, 7.0),
    )
    roi = single([0, 0, 0.25, 0.125, 1, 1, 0.75, 1.25])
    drawn.append(
        (resize, {"roi": roi, "sizes": ints(1, 2, *generator.integers(2, 9, 2))}, [1, 2, *map(int, generator.integers(2, 7, 2))], 19)
    )
    scales = {"s": single([1, 1, *generator.choice([0.5, 0.75, 1.5, 2, 2.3, 3], 2)])}
    scaled = one("half_pixel", "asymmetric", "half_pixel_symmetric")
    drawn.append(
        (node("Resize", ["x", "", "s"], mode=one("linear", "cubic"), coordinate_transformation_mode=scaled), scales, [1, 2, 5, 4], 19)
    )
    rank = one(1, 2, 3, 4)
    shape = [int(size) for size in generator.integers(2, 5, rank)]
    around, wrapping = ints(*generator.integers(0, 4, 2 * rank)), one("constant", "reflect", "edge", "wrap")
    drawn.append((node("Pad", ["x", "p", *one([], ["v"])], mode=wrapping), {"p": around, "v": np.float32(1.5)}, shape, 19))
    axes = [int(axis) for axis in generator.permutation(rank)[: generator.integers(1, rank + 1)]]
    axis = int(generator.integers(-rank, rank))
    bounds = {"s": generator.integers(0, 5, len(axes)), "e": generator.integers(-5, 6, len(axes)), "a": ints(*axes)}
    steps = {"t": generator.choice([1, 2, -1, -2], len(axes))}
    drawn.append((node("Slice", ["x", "s", "e", "a", "t"]), {**bounds, **steps}, shape, one(10, 13)))
    reduced, kept = one("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSumExp"), one(None, 0, 1)
    drawn.append((node(f"Reduce{reduced}", ["x"], axes=one(None, axes), keepdims=kept), {}, shape, 11))
    drawn.append((node(f"Reduce{reduced}", ["x", "a"], keepdims=kept), {"a": ints(*axes)}, shape, 18))
    picks = generator.integers(-shape[axis], shape[axis], one((), (2,), (2, 3)))
    drawn.append((node("Gather", ["x", "i"], axis=axis), {"i": picks}, shape, one(1, 11, 13)))
    places = {"i": np.argsort(generator.random(shape), axis=axis), "u": array(*shape)}
    drawn.append((node("ScatterElements", ["x", "i", "u"], axis=axis, reduction=one(None, "add", "mul", "max", "min")), places, shape, 18))
    drawn.append((node("GatherElements", ["x", "i"], axis=axis), {"i": generator.integers(-shape[axis], shape[axis], shape)}, shape, 13))
    drawn.append((node(one("ArgMax", "ArgMin"), ["x"], axis=axis, keepdims=kept, select_last_index=one(None, 1)), {}, shape, 13))
    drawn.append((node("CumSum", ["x", "a"], exclusive=one(None, 1), reverse=one(None, 1)), {"a": np.array(axis)}, shape, 14))
    drawn.append((node("Flatten", ["x"], axis=one(None, axis)), {}, shape, 13))
    summand = {"b": array(4, 3), "c": array(*one((), (1,), (3,), (2, 1), (1, 3), (2, 3)))}
    drawn.append((node("Gemm", ["x", "b", "c"], alpha=one(None, 0.5), beta=one(None, 2.0)), summand, [2, 4], one(7, 11, 13)))
    norm = node("LayerNormalization", ["x", "g", "g"], axis=one(None, 1, -2), epsilon=one(None, 0.1))
    drawn.append((norm, {"g": array(5)}, [2, 3, 4, 5], 17))
    drawn.append((node("Trilu", ["x", "k"], upper=one(None, 0)), {"k": np.array(int(generator.integers(-3, 4)))}, [2, 3, 4], 14))
    return drawn


def test_random_nodes_are_as_in_the_evaluator_of_onnx(tmp_path: Path) -> None:
    for seed in range(25):
        for node, weights, shape, operator_set in drawn_nodes(np.random.default_rng(seed)):
            kind = INT64 if node.op_type.startswith("Arg") else FLOAT
            read = {name: value for name, value in weights.items() if name in node.input}
            model = modelled([node], read, {"x": shape}, operator_set=operator_set, output_type=kind)
            x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
            result = load_onnx(saved(tmp_path / "model.onnx", model))(x)
            expected = torch.tensor(np.array(reference(model, x)[0]))
            assert torch.allclose(result, expected, atol=1e-4, rtol=1e-4), node
            assert result.dtype == expected.dtype


# Operators whose functions are written out here; a network around each must keep its function under
# its symmetries.
BETWEEN: list[tuple[list[Any], dict[str, Any]]] = [
    (
        [make("Resize", ["h", "", "s"], ["k"], mode="linear", coordinate_transformation_mode="asymmetric")],
        {"s": single([1, 1, 2, 1.5])},
    ),
    ([make("Resize", ["h", "", "s"], ["k"], mode="nearest", nearest_mode="ceil")], {"s": single([1, 1, 1.5, 1.5])}),
    ([make("AveragePool", ["h"], ["k"], kernel_shape=[2, 2], pads=[0, 0, 1, 1])], {}),
    ([make("AveragePool", ["h"], ["k"], kernel_shape=[2, 2], dilations=[2, 2])], {}),
    ([make("MaxPool", ["h"], ["k"], kernel_shape=[2, 2], pads=[0, 0, 1, 1])], {}),
    ([make("LpPool", ["h"], ["k"], kernel_shape=[2, 2], p=2)], {}),
    ([make("LRN", ["h"], ["k"], size=3)], {}),
    ([make("Pad", ["h", "p"], ["k"], mode="wrap")], {"p": ints(0, 0, 1, 1, 0, 0, 1, 1)}),
    ([make("Pad", ["h", "p"], ["k"], mode="reflect")], {"p": ints(0, 2, 0, 0, 0, 2, 0, 0)}),
    ([make("Slice", ["h", "s", "e", "a", "t"], ["k"])], {"s": ints(-1), "e": ints(-9), "a": ints(3), "t": ints(-1)}),
    ([make("LpNormalization", ["h"], ["k"], axis=1)], {}),
    ([make("DepthToSpace", ["h"], ["k"], blocksize=2)], {}),
    ([make("SpaceToDepth", ["h"], ["k"], blocksize=2)], {}),
    ([make("PRelu", ["h", "p"], ["k"])], {"p": normal(4, 4)}),
    ([make("HardSigmoid", ["h"], ["k"])], {}),
    ([make("Swish", ["h"], ["k"], alpha=2.0)], {}),
    ([make("Clip", ["h", "p"], ["k"])], {"p": np.float32(0)}),
    ([make("Sub", ["p", "h"], ["k"])], {"p": np.float32(1)}),
    ([make("MeanVarianceNormalization", ["h"], ["k"])], {}),
    ([make("Celu", ["h"], ["k"], alpha=0.5)], {}),
    ([make("Sign", ["h"], ["k"])], {}),
    ([make("Expand", ["h", "p"], ["k"])], {"p": ints(2, 8, 4, 4)}),
    ([make("ScatterElements", ["h", "i", "u"], ["k"], axis=2)], {"i": np.zeros((2, 8, 1, 4), np.int64), "u": normal(2, 8, 1, 4)}),
]


def test_operators_keep_the_symmetries_of_networks(tmp_path: Path) -> None:
    moved = []
    for i, (nodes, settings) in enumerate(BETWEEN):
        first = [make("Conv", ["x", "W"], ["before"]), make("LeakyRelu", ["before"], ["h"]), *nodes]
        weights = {"W": normal(8, 3, 1, 1), "axes": ints(2, 3), **settings}
        read = {name: value for name, value in weights.items() if name != "axes"}
        channels = load_onnx(written(tmp_path / "first.onnx", first, read, [2, 3, 4, 4], "k", 24))(torch.randn(2, 3, 4, 4)).shape[1]
        head = [make("ReduceSum", ["k", "axes"], ["g"], keepdims=0), make("Gemm", ["g", "V"], ["y"])]
        module = load_onnx(written(tmp_path / f"{i}.onnx", first + head, {**weights, "V": normal(channels, 2)}, [2, 3, 4, 4], "y", 24))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of operators that tracing does not know, whose neurons stay where they are
            space = trace(module, *module.example_inputs)
        if space.coverage:
            moved.append(nodes[0].op_type)
            assert_function_preserved(module, space, module.example_inputs, draws=1)
    assert len(moved) >= 18


# == The benchmark ==


def test_the_benchmark_tells_outcomes_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    import onnx_node_tests

    ones, case = np.ones((2, 3), np.float32), SimpleNamespace(rtol=1e-3, atol=1e-7)
    relu, unknown = modelled([make("Relu", ["x"], ["y"])], {}, {"x": [2, 3]}), modelled([make("NonZero", ["x"], ["y"])], {}, {"x": [2, 3]})

    def outcome(model: Any, given: Any, expected: Any) -> str:
        kind, reason = onnx_node_tests.classify(case, model, [([given], [expected])], tmp_path / "model.onnx")
        assert (kind == "right") == (reason == "")
        return str(kind)

    assert outcome(relu, ones, ones) == "right"
    assert outcome(relu, ones, 2 * ones) == outcome(relu, ones, ones.astype(np.float64)) == outcome(relu, ones, ones[0]) == "wrong"
    assert outcome(unknown, ones, ones) == "refused"
    assert outcome(relu, "text", ones) == "raw"
    added = modelled([make("Add", ["x", "b"], ["y"])], {}, {"x": [2, 3], "b": [2, 3]})
    stored, inputs = onnx_node_tests.with_stored_inputs(added, [ones, ones])
    assert len(inputs) == 1
    assert outcome(stored, inputs[0], 2 * ones) == "right"
    refusal = r"'m.onnx' has an operator that wsgraph cannot read, ai.onnx.NonZero (y). Trace the module"
    assert onnx_node_tests.refused_operator(refusal) == "NonZero"
    assert (
        onnx_node_tests.refused_operator("'m.onnx' has an input that wsgraph cannot read, 'x': a tensor of type STRING.") == "string values"
    )


def test_the_node_tests_of_onnx_meet_what_the_page_says() -> None:
    folder = Path(__file__).parents[2] / "benchmarks"
    document = json.loads((folder / "results" / "onnx_node_tests.json").read_text())
    page = (folder / "README.md").read_text()
    for way, counts in document["counts"].items():
        assert counts["wrong"] == counts["raw"] == 0
        assert f"| {way} | {counts['right']:,} | {counts['refused']:,} | 0 | 0 | {sum(counts.values()):,} |" in page
    assert document["counts"]["as shipped"]["right"] >= 620
    assert sum(map(len, document["refused"].values())) == document["counts"]["as shipped"]["refused"]
