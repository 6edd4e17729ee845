"""ONNX files become modules with the same outputs, whose weight spaces are those of the networks they were exported from."""

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typer.testing import CliRunner

from tests.convert.test_tracing import image, randomized, tokens
from wsgraph import CheckpointError, load_onnx, trace
from wsgraph.cli import app
from wsgraph.testing import assert_function_preserved

onnx = pytest.importorskip("onnx")
helper, numpy_helper = onnx.helper, onnx.numpy_helper


def written(path: Path, nodes: list[Any], weights: dict[str, Any], shape: list[Any], output: str = "y") -> Path:
    """A file with one input ``x``, and an operator set of today's exporters."""
    inputs = [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)]
    outputs = [helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, ["any"])]
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "network", inputs, outputs, initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    return path


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
    module = load_onnx(path)
    assert sorted(module.state_dict()) == ["net.fc.bias", "net.fc.weight"]
    assert module.example_inputs[0].shape == (2, 4)
    assert load_onnx(path, [(7, 4)]).example_inputs[0].shape == (7, 4)
    with pytest.raises(CheckpointError, match=r"'shapes' with one shape for each input of .*, x \(got \[\(7, 4\), \(7, 4\)\]\)"):
        load_onnx(path, [(7, 4), (7, 4)])
    with pytest.raises(ValueError, match=r"Expected the inputs x of .* \(got 2 tensors\)"):
        load_onnx(path)(torch.randn(2, 4), torch.randn(2, 4))
    with pytest.raises(CheckpointError, match=r"The operator Gemm \(y\) of .* cannot be run: "):
        load_onnx(path, [(7, 5)])


R = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return R.normal(size=shape).astype(np.float32)


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
    trace(module, x)


@pytest.mark.parametrize(
    ("operator", "sources", "attributes"),
    [
        ("Resize", {"": None, "scales": np.array([1, 1, 2, 2], np.float32)}, {"mode": "linear", "antialias": 1}),
        ("Resize", {"": None, "scales": np.array([1, 1, 1.5, 1.5], np.float32)}, {"mode": "nearest"}),
        (
            "Resize",
            {"": None, "scales": np.array([1, 1, 2, 2], np.float32)},
            {"mode": "linear", "coordinate_transformation_mode": "asymmetric"},
        ),
        ("AveragePool", {}, {"kernel_shape": [2, 2], "auto_pad": "SAME_UPPER"}),
        ("Selu", {}, {"alpha": 1.0}),
        ("PRelu", {"a": normal(4)}, {}),
        ("Slice", {"starts": ints(3), "ends": ints(0), "axes": ints(3), "steps": ints(-1)}, {}),
    ],
)
def test_options_without_an_equal_are_refused(operator: str, sources: dict[str, Any], attributes: dict[str, Any], tmp_path: Path) -> None:
    given = {name: value for name, value in sources.items() if value is not None}
    path = written(tmp_path / "model.onnx", [helper.make_node(operator, ["x", *sources], ["y"], **attributes)], given, [2, 3, 4, 4])
    with pytest.raises(CheckpointError, match=rf"The operator {operator} \(y\) of .* cannot be run: .*(not|only)"):
        load_onnx(path)


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
    module = load_onnx(path)
    assert "2 operators" in repr(module)
    x = torch.randn(2, 3, 2, 2)
    assert torch.allclose(module(x), x.flatten(1) @ module.state_dict()["w"].T)
    assert trace(module, x).params[0].shape == (3, 12)


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "model.onnx", [helper.make_node("Gemm", ["x", "w"], ["y"])], {"w": normal(4, 3)}, [2, 4])
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match="is not a complete ONNX model"):
        load_onnx(broken)
    with pytest.raises(FileNotFoundError, match="There is no file"):
        load_onnx(tmp_path / "missing.onnx")
    unknown = written(tmp_path / "unknown.onnx", [helper.make_node("Hardmax", ["x"], ["y"], name="choice")], {}, [2, 4])
    with pytest.raises(CheckpointError, match=r"an operator that wsgraph cannot read, ai.onnx.Hardmax \(choice\). Trace the module"):
        load_onnx(unknown)
    shaped = [helper.make_node("Cast", ["x"], ["size"], to=onnx.TensorProto.INT64), helper.make_node("Reshape", ["x", "size"], ["y"])]
    with pytest.raises(CheckpointError, match=r"The operator Reshape .*shapes that depend on the values of tensors are not supported"):
        load_onnx(written(tmp_path / "shaped.onnx", shaped, {}, [2]))
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

    assert "WeightSpace(4-6-2, linear | linear, tanh, 42 parameters)" in call("info", path)
    assert "permutation x sign" in call("info", path, "--input", "5x4")
    assert "largest relative difference of an output: " in call("check", path)
    assert "ParameterGraph(4-6-2" in call("convert", path, str(tmp_path / "graph.pt"))
    assert "an .onnx file holds the whole network" in call("info", path, "--activation", "relu", code=1)
    assert "cannot be run" in call("info", path, "--input", "5x3", code=1)
