"""ONNX files as modules that can be traced."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsgraph.convert.errors import CheckpointError
from wsgraph.convert.tracing.tracer import first_line

__all__ = ["OnnxModule", "load_onnx"]


def load_onnx(path: str | os.PathLike[str], shapes: Sequence[Sequence[int]] = ()) -> OnnxModule:
    """Read a network in the ONNX format as a module with the file's weights, to trace like any other.

    Args:
        path: An ``.onnx`` file.
        shapes: Shapes of the inputs (default: those in the file, with 2 for every size that it leaves open).

    Returns:
        A module in evaluation mode; its parameters are the floating point tensors of the file, under the names that they have there
        (numbers without dimensions count as constants), and ``example_inputs`` holds random inputs.

    Raises:
        ImportError: If the package ``onnx`` is not installed.
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is no ONNX model, or has an operator that is not known here.

    Example:
        >>> module = load_onnx("model.onnx")                          # doctest: +SKIP
        >>> space = wsgraph.trace(module, *module.example_inputs)     # doctest: +SKIP
    """
    try:
        import onnx
    except ImportError:
        raise ImportError("Reading ONNX files needs the package onnx: pip install 'wsgraph[onnx]'.") from None
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r}.")
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf's, onnx's and the file system's own
        raise CheckpointError(f"{str(path)!r} is not a complete ONNX model: {first_line(error)}") from error
    return OnnxModule(model, str(path), shapes)


class OnnxModule(nn.Module):
    """The operators of an ONNX graph, run by PyTorch; what depends on shapes alone is computed once, for those of the example inputs."""

    def __init__(self, model: Any, path: str, shapes: Sequence[Sequence[int]]) -> None:
        from onnx import helper, numpy_helper

        super().__init__()
        graph = model.graph
        self.path = path
        self.known: dict[str, Any] = {}
        self.weights: dict[str, str] = {}
        arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        statistics = {name for node in graph.node if node.op_type == "BatchNormalization" for name in node.input[3:5]}
        options = {name for node in graph.node for i in _OPTIONS.get(node.op_type, ()) for name in node.input[i : i + 1]}
        for name, array in arrays.items():
            if str(array.dtype) in _FLOATS and array.ndim and name not in options:
                self._register(name, _tensor(array), buffer=name in statistics)
            else:
                self.known[name] = array
        inputs = [value for value in graph.input if value.name not in arrays]
        self.inputs = [value.name for value in inputs]
        self.outputs = [value.name for value in graph.output]
        if len(shapes) not in (0, len(self.inputs)):
            raise CheckpointError(
                f"Expected 'shapes' with one shape for each input of {path!r}, {', '.join(self.inputs)} (got {list(shapes)})."
            )
        self.nodes: list[tuple[str, str, list[str], list[str], dict[str, Any]]] = []
        for node in graph.node:
            if node.op_type not in _OPERATORS or node.domain not in ("", "ai.onnx"):
                raise CheckpointError(
                    f"{path!r} has an operator that wsgraph cannot read, {node.domain or 'ai.onnx'}.{node.op_type}"
                    f"{f' ({node.name})' if node.name else ''}. Trace the module that it was exported from, with wsgraph.trace."
                )
            attributes = {attribute.name: _attribute(helper.get_attribute_value(attribute)) for attribute in node.attribute}
            self.nodes.append((node.op_type, node.name, list(node.input), list(node.output), attributes))
        self.example_inputs = tuple(_example(value, shape) for value, shape in itertools.zip_longest(inputs, shapes))
        self.eval()
        self._fold()

    def _register(self, name: str, tensor: Tensor, *, buffer: bool) -> None:
        """Register a weight under its own name, in modules within modules where it has dots."""
        *path, last = name.split(".")
        if any(not part for part in (*path, last)):
            path, last = [], name.replace(".", "_")
        owner: nn.Module = self
        for part in path:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        if buffer:
            owner.register_buffer(last, tensor)
        else:
            owner.register_parameter(last, nn.Parameter(tensor, requires_grad=False))
        self.weights[name] = ".".join((*path, last))

    def _fold(self) -> None:
        """Compute what does not depend on values that flow through the network, and leave the other operators for the forward pass."""
        values: dict[str, Any] = self._given(self.example_inputs)
        left = []
        for entry in self.nodes:
            name, _, sources, targets, _ = entry
            results = self._run(entry, values)
            if name in ("Constant", "Shape", "Size") or all(source in self.known for source in sources if source):
                for target, result in zip(targets, results, strict=False):
                    self.known[target] = result.detach().numpy() if isinstance(result, Tensor) else result
                    values[target] = self.known[target]
            else:
                left.append(entry)
                values.update(zip(targets, results, strict=False))
        self.nodes = left

    def _given(self, inputs: Sequence[Tensor]) -> dict[str, Any]:
        state = {}
        for name, key in self.weights.items():
            path, _, last = key.rpartition(".")
            state[name] = getattr(self.get_submodule(path), last)
        return {**self.known, **state, **dict(zip(self.inputs, inputs, strict=True))}

    def _run(self, entry: tuple[str, str, list[str], list[str], dict[str, Any]], values: Mapping[str, Any]) -> list[Any]:
        operator, name, sources, targets, attributes = entry
        try:
            if operator == "Split":
                attributes = {**attributes, "num_outputs": len(targets)}
            given = [self._argument(operator, i, values[source]) if source else None for i, source in enumerate(sources)]
            result = _OPERATORS[operator](*given, **attributes)
        except (TypeError, NotImplementedError, RuntimeError, IndexError, KeyError, ValueError) as error:
            if torch.compiler.is_exporting():
                raise
            raise CheckpointError(
                f"The operator {operator} ({name or targets[0]}) of {self.path!r} cannot be run: {first_line(error)}"
            ) from error
        return list(result) if isinstance(result, (list, tuple)) else [result]

    @staticmethod
    def _argument(operator: str, place: int, value: Any) -> Any:
        """Known floating point tensors are like any other; numbers, integers and options stay as they are."""
        is_tensor = isinstance(value, Tensor) or value.ndim == 0 or str(value.dtype) not in _FLOATS or place in _OPTIONS.get(operator, ())
        return value if is_tensor else _tensor(value)

    def forward(self, *inputs: Tensor) -> Any:
        if len(inputs) != len(self.inputs):
            raise ValueError(f"Expected the inputs {', '.join(self.inputs)} of {self.path!r} (got {len(inputs)} tensors).")
        values = self._given(inputs)
        for entry in self.nodes:
            values.update(zip(entry[3], self._run(entry, values), strict=False))
        outputs = tuple(_tensor(values[name]) for name in self.outputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def extra_repr(self) -> str:
        return f"{self.path}, {len(self.nodes)} operators"


_FLOATS = ("float16", "float32", "float64", "bfloat16")
# Inputs that say how an operator works, which files may hold like weights.
_OPTIONS = {"Clip": (1, 2), "Resize": (1, 2), "Pad": (2,), "Dropout": (1,)}


def _attribute(value: Any) -> Any:
    from onnx import TensorProto, numpy_helper

    if isinstance(value, TensorProto):
        return numpy_helper.to_array(value)
    return value.decode() if isinstance(value, bytes) else value


def _example(value: Any, shape: Sequence[int] | None) -> Tensor:
    from onnx import TensorProto

    kind = value.type.tensor_type
    sizes = list(shape) if shape is not None else [dim.dim_value or 2 for dim in kind.shape.dim]
    floats = {
        TensorProto.FLOAT: torch.float32,
        TensorProto.FLOAT16: torch.float16,
        TensorProto.BFLOAT16: torch.bfloat16,
        TensorProto.DOUBLE: torch.float64,
    }
    if kind.elem_type in floats:
        return torch.randn(sizes, generator=torch.Generator().manual_seed(0)).to(floats[kind.elem_type])
    return torch.zeros(sizes, dtype=torch.bool if kind.elem_type == TensorProto.BOOL else torch.long)


# == Operators: one entry each. Known values come as numpy arrays, all others as tensors. ==


def _tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    dtype = {"b": torch.bool, "i": torch.long, "u": torch.long}.get(value.dtype.kind) or getattr(torch, str(value.dtype))
    return torch.tensor(value.astype("float32") if dtype == torch.bfloat16 else value, dtype=dtype)


def _ints(value: Any) -> list[int]:
    if isinstance(value, Tensor):
        raise NotImplementedError("shapes that depend on the values of tensors are not supported.")
    return [int(entry) for entry in getattr(value, "ravel", lambda: value)()]


def _pair(pads: Sequence[int] | None, dimensions: int) -> tuple[list[int], list[int] | None]:
    """Padding that is alike on both sides, and, where it is not, what to pad before."""
    pads = list(pads or [0] * 2 * dimensions)
    low, high = pads[:dimensions], pads[dimensions:]
    if low == high:
        return low, None
    return [0] * dimensions, [side for pair in reversed(list(zip(low, high, strict=True))) for side in pair]


def _placed(x: Tensor, kernel: Sequence[int], attributes: dict[str, Any], *, fill: float = 0.0) -> tuple[Tensor, dict[str, Any]]:
    """The tensor padded where needed, and stride, padding and dilation as PyTorch takes them."""
    dimensions = len(kernel)
    strides, dilations = (list(attributes.get(name) or [1] * dimensions) for name in ("strides", "dilations"))
    pads = attributes.get("pads")
    mode = attributes.get("auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        total = [
            max((math.ceil(size / stride) - 1) * stride + (k - 1) * dilation + 1 - size, 0)
            for size, stride, k, dilation in zip(x.shape[2:], strides, kernel, dilations, strict=True)
        ]
        small, large = [t // 2 for t in total], [t - t // 2 for t in total]
        pads = [*small, *large] if mode == "SAME_UPPER" else [*large, *small]
    padding, before = _pair(pads, dimensions)
    if before is not None:
        x = F.pad(x, before, value=fill)
    return x, {"stride": strides, "padding": padding, "dilation": dilations}


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, group: int = 1, **attributes: Any) -> Tensor:
    x, options = _placed(x, weight.shape[2:], attributes)
    function: Callable[..., Tensor] = (F.conv1d, F.conv2d, F.conv3d)[weight.ndim - 3]
    return function(x, weight, bias, groups=group, **options)


def _conv_transpose(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, group: int = 1, **attributes: Any) -> Tensor:
    dimensions = weight.ndim - 2
    padding, before = _pair(attributes.get("pads"), dimensions)
    if before is not None or attributes.get("auto_pad", "NOTSET") != "NOTSET" or attributes.get("output_shape"):
        raise NotImplementedError("only padding that is alike on both sides is supported.")
    function: Callable[..., Tensor] = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[dimensions - 1]
    strides, dilations = (attributes.get(name) or [1] * dimensions for name in ("strides", "dilations"))
    more = attributes.get("output_padding") or [0] * dimensions
    return function(x, weight, bias, stride=strides, padding=padding, output_padding=more, groups=group, dilation=dilations)


def _pool(kind: str) -> Callable[..., Tensor]:
    def pool(x: Tensor, *, kernel_shape: Sequence[int], ceil_mode: int = 0, count_include_pad: int = 0, **attributes: Any) -> Tensor:
        padded, options = _placed(x, kernel_shape, attributes, fill=-math.inf if kind == "max" else 0.0)
        if padded is not x and kind == "avg" and not count_include_pad:
            raise NotImplementedError("averages over padding that differs between the sides are not supported.")
        x = padded
        if kind == "max":
            function: Callable[..., Tensor] = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(kernel_shape) - 1]
            return function(x, list(kernel_shape), ceil_mode=bool(ceil_mode), **options)
        del options["dilation"]
        averages: Callable[..., Tensor] = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(kernel_shape) - 1]
        return averages(x, list(kernel_shape), ceil_mode=bool(ceil_mode), count_include_pad=bool(count_include_pad), **options)

    return pool


def _gemm(
    a: Tensor, b: Tensor, c: Tensor | None = None, *, alpha: float = 1.0, beta: float = 1.0, transA: int = 0, transB: int = 0
) -> Tensor:
    a = a.T if transA else a
    if alpha == beta == 1 and transB and (c is None or c.ndim == 1):
        return F.linear(a, b, c)
    product = alpha * (a @ (b.T if transB else b))
    return product if c is None else product + beta * _tensor(c)


def _batch_norm(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, *, epsilon: float = 1e-5, **_: Any) -> Tensor:
    return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, epsilon)


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, axis: int = -1, epsilon: float = 1e-5, **_: Any) -> Tensor:
    return F.layer_norm(x, x.shape[axis:], weight, bias, epsilon)


def _reduce(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def reduce(x: Any, axes: Any = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0, **attributes: Any) -> Tensor:
        x = _tensor(x)
        dims = _ints(axes) if axes is not None else list(attributes.get("axes") or [])
        if not dims and noop_with_empty_axes:
            return x
        return function(x, dims or list(range(x.ndim)), keepdim=bool(keepdims))

    return reduce


def _reshape(x: Any, shape: Any, *, allowzero: int = 0) -> Tensor:
    x = _tensor(x)
    return x.reshape([x.shape[i] if size == 0 and not allowzero else size for i, size in enumerate(_ints(shape))])


def _squeeze(x: Any, axes: Any = None, **attributes: Any) -> Tensor:
    x = _tensor(x)
    dims = _ints(axes) if axes is not None else list(attributes.get("axes") or [i for i, size in enumerate(x.shape) if size == 1])
    return x.squeeze(dims)


def _unsqueeze(x: Any, axes: Any = None, **attributes: Any) -> Tensor:
    x = _tensor(x)
    dims = _ints(axes) if axes is not None else list(attributes["axes"])
    for dim in sorted(dim % (x.ndim + len(dims)) for dim in dims):
        x = x.unsqueeze(dim)
    return x


def _slice(x: Any, starts: Any = None, ends: Any = None, axes: Any = None, steps: Any = None, **attributes: Any) -> Tensor:
    x = _tensor(x)
    low, high = (_ints(value) if value is not None else list(attributes[name]) for value, name in ((starts, "starts"), (ends, "ends")))
    dims = _ints(axes) if axes is not None else list(attributes.get("axes") or range(len(low)))
    for start, stop, dim, step in zip(low, high, dims, _ints(steps) if steps is not None else [1] * len(low), strict=True):
        size = x.shape[dim]
        if step < 0:
            raise NotImplementedError("slices with negative steps are not supported.")
        bounds = [max(0, min(v + size if v < 0 else v, size)) for v in (start, stop)]
        index = [slice(None)] * x.ndim
        index[dim] = slice(bounds[0], bounds[1], step)
        x = x[tuple(index)]
    return x


def _split(x: Any, sizes: Any = None, *, axis: int = 0, num_outputs: int = 0, **attributes: Any) -> Sequence[Tensor]:
    x = _tensor(x)
    given = _ints(sizes) if sizes is not None else list(attributes.get("split") or [])
    if not given:
        each = math.ceil(x.shape[axis] / num_outputs)
        given = [min(each, x.shape[axis] - i * each) for i in range(num_outputs)]
    return x.split(given, dim=axis)


def _gather(x: Any, indices: Any, *, axis: int = 0) -> Tensor:
    x = _tensor(x)
    if not isinstance(indices, Tensor) and indices.ndim == 0:
        return x.select(axis, int(indices))
    if isinstance(indices, Tensor):
        if axis == 0 and x.ndim == 2:
            return F.embedding(indices, x)
        index = torch.where(indices < 0, indices + x.shape[axis], indices)
    else:
        index = _tensor(indices % x.shape[axis])
    return x.index_select(axis, index.flatten()).unflatten(axis, index.shape) if index.ndim != 1 else x.index_select(axis, index)


def _pad(x: Tensor, pads: Any = None, value: Any = None, axes: Any = None, *, mode: str = "constant", **attributes: Any) -> Tensor:
    sizes = _ints(pads) if pads is not None else list(attributes["pads"])
    dims = _ints(axes) if axes is not None else list(range(x.ndim))
    around = {dim % x.ndim: (sizes[i], sizes[i + len(dims)]) for i, dim in enumerate(dims)}
    flat = [side for dim in reversed(range(x.ndim)) for side in around.get(dim, (0, 0))]
    while flat and flat[-2:] == [0, 0]:
        del flat[-2:]
    names = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}
    fill = 0.0 if value is None else float(_tensor(value))
    return F.pad(x, flat, mode=names[mode], value=fill) if mode == "constant" else F.pad(x, flat, mode=names[mode])


def _resize(
    x: Tensor,
    roi: Any = None,
    scales: Any = None,
    sizes: Any = None,
    *,
    mode: str = "nearest",
    coordinate_transformation_mode: str = "half_pixel",
    nearest_mode: str = "round_prefer_floor",
    cubic_coeff_a: float = -0.75,
    antialias: int = 0,
    **attributes: Any,
) -> Tensor:
    size = _ints(sizes)[2:] if sizes is not None else [int(n * float(s)) for n, s in zip(x.shape[2:], scales.ravel()[2:], strict=True)]
    aligned = coordinate_transformation_mode == "align_corners"
    known = aligned or coordinate_transformation_mode in ("half_pixel", "pytorch_half_pixel")
    if mode == "nearest":
        # Whole multiples are alike in all ways of rounding that do not prefer the next entry.
        multiple = (
            all(new % old == 0 for new, old in zip(size, x.shape[2:], strict=True)) and coordinate_transformation_mode == "half_pixel"
        )
        known = (coordinate_transformation_mode == "asymmetric" and nearest_mode == "floor") or multiple
    if antialias or not known or cubic_coeff_a != -0.75 or attributes.get("exclude_outside") or attributes.get("axes"):
        raise NotImplementedError(f"mode {mode} with {coordinate_transformation_mode} coordinates and these options is not supported.")
    if mode == "nearest":
        return F.interpolate(x, size=size, mode="nearest")
    names = {"linear": ("linear", "bilinear", "trilinear")[x.ndim - 3], "cubic": "bicubic"}
    return F.interpolate(x, size=size, mode=names[mode], align_corners=aligned)


def _clip(x: Tensor, low: Any = None, high: Any = None, **attributes: Any) -> Tensor:
    low, high = (attributes.get(name) if value is None else float(_tensor(value)) for value, name in ((low, "min"), (high, "max")))
    return F.relu6(x) if (low, high) == (0, 6) else x.clamp(low, high)


def _binary(function: Callable[[Any, Any], Tensor]) -> Callable[[Any, Any], Tensor]:
    def apply(a: Any, b: Any) -> Tensor:
        # A number leaves more symmetries than a tensor of which nothing is known.
        if isinstance(a, Tensor) and not isinstance(b, Tensor) and b.ndim == 0:
            return function(a, b.item())
        return function(_tensor(a), _tensor(b))

    return apply


def _divide(a: Any, b: Any) -> Tensor:
    both = [torch.as_tensor(value) for value in (a, b)]
    return torch.div(a, b, rounding_mode=None if any(value.is_floating_point() for value in both) else "trunc")


def _folded(function: Callable[..., Tensor]) -> Callable[..., Any]:
    def fold(*tensors: Any) -> Any:
        result = _tensor(tensors[0])
        for other in tensors[1:]:
            result = function(result, _tensor(other))
        return result

    return fold


def _unary(function: Callable[..., Tensor], *names: str) -> Callable[..., Tensor]:
    """A function of one tensor, whose attributes are passed on under PyTorch's names."""
    renamed = dict(zip(names[::2], names[1::2], strict=True))

    def apply(x: Any, **attributes: Any) -> Tensor:
        return function(_tensor(x), **{renamed[name]: value for name, value in attributes.items()})

    return apply


def _cast(x: Any, *, to: int, **_: Any) -> Tensor:
    from onnx import helper

    x, dtype = _tensor(x), getattr(torch, str(helper.tensor_dtype_to_np_dtype(to)))
    return x if x.is_floating_point() and dtype.is_floating_point else x.to(dtype)  # the module's own dtype is kept


def _constant(**attributes: Any) -> Tensor:
    import numpy

    (value,) = attributes.values()
    return _tensor(numpy.asarray(value))


def _prelu(x: Tensor, slope: Tensor) -> Tensor:
    aligned = slope.reshape([1] * (x.ndim - slope.ndim) + list(slope.shape))
    if slope.numel() > 1 and (x.ndim < 2 or aligned.numel() != aligned.shape[1]):
        raise NotImplementedError(f"slopes of shape {list(slope.shape)} are not one per channel.")
    return F.prelu(x, slope.flatten())


def _selu(x: Tensor, *, alpha: float = 1.67326, gamma: float = 1.0507) -> Tensor:
    if not (math.isclose(alpha, 1.67326, rel_tol=1e-4) and math.isclose(gamma, 1.0507, rel_tol=1e-4)):
        raise NotImplementedError("only the alpha and gamma of the paper are supported.")
    return F.selu(x)


def _hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    return F.hardsigmoid(x) if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5 else (alpha * x + beta).clamp(0, 1)


def _scatter(x: Any, indices: Any, updates: Any, *, reduction: str = "none") -> Tensor:
    if reduction != "none":
        raise NotImplementedError("reductions are not supported.")
    return _tensor(x).index_put(tuple(_tensor(indices).unbind(-1)), _tensor(updates))


def _depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    if mode != "CRD":
        raise NotImplementedError("only mode CRD, PyTorch's own, is supported.")
    return F.pixel_shuffle(x, blocksize)


_OPERATORS: dict[str, Callable[..., Any]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": lambda a, b: torch.matmul(_tensor(a), _tensor(b)),
    "Einsum": lambda *tensors, equation: torch.einsum(equation, *map(_tensor, tensors)),
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "InstanceNormalization": lambda x, w, b, epsilon=1e-5: F.instance_norm(x, weight=w, bias=b, eps=epsilon),
    "GroupNormalization": lambda x, w, b, num_groups, epsilon=1e-5, **_: F.group_norm(x, num_groups, w, b, epsilon),
    "MaxPool": _pool("max"),
    "AveragePool": _pool("avg"),
    "GlobalAveragePool": lambda x: x.mean(list(range(2, x.ndim)), keepdim=True),
    "GlobalMaxPool": lambda x: x.amax(list(range(2, x.ndim)), keepdim=True),
    "ReduceMean": _reduce(torch.mean),
    "ReduceSum": _reduce(torch.sum),
    "ReduceMax": _reduce(torch.amax),
    "ReduceMin": _reduce(torch.amin),
    "ReduceL2": _reduce(lambda x, dims, keepdim: torch.linalg.vector_norm(x, dim=dims, keepdim=keepdim)),
    # Functions of every entry.
    "Relu": _unary(F.relu),
    "LeakyRelu": lambda x, alpha=0.01: F.leaky_relu(x, alpha),
    "PRelu": _prelu,
    "Elu": _unary(F.elu, "alpha", "alpha"),
    "Selu": _selu,
    "Celu": _unary(F.celu, "alpha", "alpha"),
    "Sigmoid": _unary(torch.sigmoid),
    "Tanh": _unary(torch.tanh),
    "Softplus": _unary(F.softplus),
    "Softsign": _unary(F.softsign),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _unary(F.hardswish),
    "Gelu": _unary(F.gelu, "approximate", "approximate"),
    "Mish": _unary(F.mish),
    "Swish": _unary(F.silu),
    **{name.capitalize(): _unary(getattr(torch, name)) for name in ("erf", "exp", "log", "sqrt", "abs", "neg", "reciprocal", "sin", "cos")},
    **{
        name.capitalize(): _unary(getattr(torch, name))
        for name in ("floor", "ceil", "sign", "tan", "atan", "asin", "sinh", "asinh", "round")
    },
    "Clip": _clip,
    "Softmax": lambda x, axis=-1: F.softmax(x, dim=axis),
    "LogSoftmax": lambda x, axis=-1: F.log_softmax(x, dim=axis),
    "Add": _binary(lambda a, b: a + b),
    "Sub": _binary(lambda a, b: a - b),
    "Mul": _binary(lambda a, b: a * b),
    "Div": _binary(_divide),
    "Pow": _binary(lambda a, b: a**b),
    "Equal": _binary(torch.eq),
    "Greater": _binary(torch.gt),
    "GreaterOrEqual": _binary(torch.ge),
    "Less": _binary(torch.lt),
    "LessOrEqual": _binary(torch.le),
    "And": _binary(torch.logical_and),
    "Or": _binary(torch.logical_or),
    "Not": _unary(torch.logical_not),
    "Where": lambda mask, a, b: torch.where(_tensor(mask), _tensor(a), _tensor(b)),
    "Sum": _folded(torch.add),
    "Max": _folded(torch.maximum),
    "Min": _folded(torch.minimum),
    # Entries moved.
    "Flatten": lambda x, axis=1: x.flatten(axis) if axis == 1 else x.reshape(math.prod(x.shape[:axis]), -1),
    "Reshape": _reshape,
    "Transpose": lambda x, perm=None: _tensor(x).permute(list(perm or reversed(range(x.ndim)))),
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Concat": lambda *tensors, axis: torch.cat([_tensor(x) for x in tensors], dim=axis),
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "Pad": _pad,
    "Expand": lambda x, shape: _tensor(x).expand(torch.broadcast_shapes(x.shape, _ints(shape))),
    "Tile": lambda x, repeats: _tensor(x).repeat(_ints(repeats)),
    "Resize": _resize,
    "ScatterND": _scatter,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": lambda x, blocksize: F.pixel_unshuffle(x, blocksize).unflatten(1, (-1, blocksize**2)).transpose(1, 2).flatten(1, 2),
    "Identity": lambda x: x,
    "Dropout": lambda x, *_, **__: x,
    "Cast": _cast,
    # Facts about shapes, and constants.
    "Constant": _constant,
    "ConstantOfShape": lambda shape, value=None: torch.full(_ints(shape), 0.0 if value is None else value.item()),
    "Shape": lambda x, start=0, end=None: torch.tensor(list(x.shape[start:end])),
    "Size": lambda x: torch.tensor(math.prod(x.shape)),
    "Range": lambda start, limit, delta: torch.arange(start.item(), limit.item(), delta.item()),
}
