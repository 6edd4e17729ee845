"""The graph of an ONNX model as steps that can be run, its tensors, inputs and outputs."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from wsgraph.convert.onnx import elementwise, entries, layers, resizing  # noqa: F401 (they fill the table)
from wsgraph.convert.onnx.nodes import OPERATORS, Step, UnsupportedError, dtypes, read_node, same_meaning

__all__ = ["OPEN_SIZE", "Graph", "Input", "read_graph"]

OPEN_SIZE = 2  # of every size that a file leaves open
_LARGE = 1024  # entries of tensors that cannot be a shape


@dataclass(frozen=True)
class Input:
    """An input of a network.

    Args:
        name: Its name.
        dtype: Type of its entries.
        declared: Its sizes in the file: numbers, names, or ``None`` for what has neither.
        shape: Its sizes for which the network is read.
    """

    name: str
    dtype: torch.dtype
    declared: tuple[int | str | None, ...]
    shape: tuple[int, ...]

    @property
    def opened(self) -> list[str]:
        """What the file leaves open, and how it was fixed."""
        texts = []
        for i, (size, fixed) in enumerate(zip(self.declared, self.shape, strict=False)):
            if not isinstance(size, int):
                texts.append(f"dimension {i} of {self.name!r}{f' ({size})' if size else ''} = {fixed}")
        return texts


@dataclass
class Graph:
    """A network as it is run.

    Args:
        inputs: What it takes.
        outputs: Names of what it returns.
        tensors: Tensors that the file holds, by name: those of a network, not those within
            operators.
        constants: Tensors within operators that ONNX defines by others.
        steps: Its operators in order.
        inferred: Types and sizes of values as ONNX's own inference gives them, as far as it does.
    """

    inputs: list[Input]
    outputs: list[str]
    tensors: dict[str, np.ndarray]
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    inferred: dict[str, tuple[torch.dtype | None, tuple[int | None, ...] | None]] = field(default_factory=dict)


def read_graph(model: Any, shapes: Sequence[Sequence[int]]) -> Graph:
    """Read a model in full.

    Args:
        model: An ``onnx.ModelProto``.
        shapes: Shapes of the inputs, or none.

    Raises:
        UnsupportedError: If the model has anything that would be left out; it continues "the file
            ...".
    """
    from onnx import defs, inliner

    if model.functions:
        model = inliner.inline_local_functions(model)
    operator_set = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if not operator_set:
        foreign = next((f"{node.domain}.{node.op_type} ({node.name or node.output[0]})" for node in model.graph.node), "none")
        raise UnsupportedError(f"has an operator that wsgraph cannot read, {foreign}")
    if operator_set > defs.onnx_opset_version():
        raise UnsupportedError(
            f"is of ONNX's operator set {operator_set}, and the installed package onnx knows those "
            f"up to {defs.onnx_opset_version()}: install a newer one"
        )
    source = model.graph
    if source.sparse_initializer:
        raise UnsupportedError(f"has a sparse tensor, {source.sparse_initializer[0].values.name!r}, which wsgraph cannot read")
    tensors = {tensor.name: _array(tensor) for tensor in source.initializer}
    constants, nodes = _taken(source.node)
    inputs = _inputs([value for value in source.input if value.name not in tensors], shapes)
    tensors.update(constants)
    graph = Graph(inputs, [value.name for value in source.output], tensors)
    for value in source.output:
        _dtype(value, "an output")
    skeleton = _skeleton(model, graph, nodes)
    types = _inferred(skeleton)
    while expanded := _expanded(nodes, operator_set, types):
        constants, nodes = _taken(expanded)
        graph.constants.update(constants)
        skeleton = _skeleton(model, graph, nodes)
        types = _inferred(skeleton)
    read = {name for node in nodes for name in node.input if name} | set(graph.outputs)
    graph.steps = [read_node(node, operator_set, read) for node in nodes]
    graph.inferred = {name: _type_and_sizes(value) for name, value in types.items()}
    _check_names(graph)
    return graph


# == Operators that ONNX defines by others ==


def _expanded(nodes: Sequence[Any], operator_set: int, types: Mapping[str, Any]) -> list[Any]:
    """The nodes with definitions for those that the table lacks; empty if there are none."""
    found, changed = [], False
    for node in nodes:
        definition = None
        if node.domain in ("", "ai.onnx") and node.op_type not in OPERATORS:
            definition = _definition(node, operator_set, types)
        changed |= definition is not None
        found += [node] if definition is None else _inlined(node, definition)
    return found if changed else []


def _definition(node: Any, operator_set: int, types: Mapping[str, Any]) -> Any:
    """An operator as ONNX defines it by others, if these mean the same in the operator set."""
    from onnx import FunctionProto, TypeProto, defs

    schema = defs.get_schema(node.op_type, operator_set, "")
    if schema.has_function:
        text = schema.get_function_with_opset_version(operator_set)
    elif schema.has_context_dependent_function:
        given = [types.get(name, TypeProto()).SerializeToString() for name in node.input]
        text = schema.get_context_dependent_function_with_opset_version(operator_set, node.SerializeToString(), given)
    else:
        return None
    function = FunctionProto()
    function.ParseFromString(text)
    written = next((entry.version for entry in function.opset_import if entry.domain in ("", "ai.onnx")), operator_set)
    if not function.node or any(
        inner.domain in ("", "ai.onnx") and not same_meaning(inner.op_type, written, operator_set) for inner in function.node
    ):
        return None
    defaults = {name: attribute.default_value for name, attribute in schema.attributes.items() if attribute.default_value.name}
    function.attribute_proto.extend(value for name, value in defaults.items() if name not in {a.name for a in function.attribute_proto})
    return function


def _inlined(node: Any, function: Any) -> list[Any]:
    """The nodes of a definition, under names of their own."""
    from onnx import NodeProto

    made = next(name for name in node.output if name)
    names = {"": "", **dict(itertools.zip_longest(function.input, node.input, fillvalue=""))}
    for inner, outer in itertools.zip_longest(function.output, node.output, fillvalue=""):
        names[inner] = outer or f"{made}/{node.op_type}/{inner}"
    given = {attribute.name: attribute for attribute in (*function.attribute_proto, *node.attribute)}
    nodes = []
    for inner in function.node:
        copied = NodeProto()
        copied.CopyFrom(inner)
        copied.name = f"in {node.op_type} {node.name or made}"
        del copied.input[:], copied.output[:], copied.attribute[:]
        copied.input.extend(names.get(name, f"{made}/{node.op_type}/{name}") for name in inner.input)
        copied.output.extend(names.get(name, f"{made}/{node.op_type}/{name}") for name in inner.output)
        for attribute in inner.attribute:
            if not attribute.ref_attr_name:
                copied.attribute.append(attribute)
            elif attribute.ref_attr_name in given:
                referred = copied.attribute.add()
                referred.CopyFrom(given[attribute.ref_attr_name])
                referred.name = attribute.name
        nodes.append(copied)
    return nodes


# == What the file holds ==


def _array(tensor: Any) -> np.ndarray:
    from onnx import TensorProto, numpy_helper

    if tensor.data_type not in dtypes():
        raise UnsupportedError(
            f"has a tensor of type {TensorProto.DataType.Name(tensor.data_type)}, {tensor.name!r}, which wsgraph cannot read"
        )
    return numpy_helper.to_array(tensor)


def _taken(nodes: Iterable[Any]) -> tuple[dict[str, np.ndarray], list[Any]]:
    """The values of nodes that hold a constant, and the other nodes."""
    from onnx import helper

    found, others = {}, []
    for node in nodes:
        if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
            others.append(node)
            continue
        if len(node.attribute) != 1:
            raise UnsupportedError(f"is damaged: Constant ({node.name or node.output[0]}) has no value")
        attribute = node.attribute[0]
        value = helper.get_attribute_value(attribute)
        if attribute.name == "value":
            found[node.output[0]] = _array(value)
        elif attribute.name in ("value_float", "value_floats"):
            found[node.output[0]] = np.array(value, dtype=np.float32)
        elif attribute.name in ("value_int", "value_ints"):
            found[node.output[0]] = np.array(value, dtype=np.int64)
        else:
            raise UnsupportedError(
                f"has an operator that wsgraph cannot read as it is, "
                f"Constant ({node.name or node.output[0]}): its attribute {attribute.name} is not supported"
            )
    return found, others


def _dtype(value: Any, what: str) -> torch.dtype:
    from onnx import TensorProto

    kind = value.type.WhichOneof("value") or "untyped"
    if kind != "tensor_type":
        raise UnsupportedError(
            f"has {what} that wsgraph cannot read, {value.name!r}: it is of the kind {kind.removesuffix('_type')}, no tensor"
        )
    number = value.type.tensor_type.elem_type
    if number not in dtypes():
        raise UnsupportedError(f"has {what} that wsgraph cannot read, {value.name!r}: a tensor of type {TensorProto.DataType.Name(number)}")
    return dtypes()[number]


def _inputs(values: Sequence[Any], shapes: Sequence[Sequence[int]]) -> list[Input]:
    if len(shapes) not in (0, len(values)):
        names = ", ".join(value.name for value in values) or "none"
        raise UnsupportedError(
            f"takes other inputs: expected 'shapes' with one shape for each of {names} (got {[tuple(shape) for shape in shapes]})"
        )
    inputs = []
    for i, value in enumerate(values):
        dtype = _dtype(value, "an input")
        kind = value.type.tensor_type
        given = tuple(int(size) for size in shapes[i]) if shapes else None
        if not kind.HasField("shape"):
            if given is None:
                raise UnsupportedError(
                    f"does not say how many dimensions its input {value.name!r} has: give the shapes of all inputs with shapes="
                )
            inputs.append(Input(value.name, dtype, (None,) * len(given), given))
            continue
        declared = tuple(_declared(dim) for dim in kind.shape.dim)
        if given is not None and len(given) != len(declared):
            raise UnsupportedError(f"has {len(declared)} dimensions in its input {value.name!r} (got the shape {list(given)})")
        fixed = given or tuple(size if isinstance(size, int) else OPEN_SIZE for size in declared)
        inputs.append(Input(value.name, dtype, declared, fixed))
    return inputs


def _declared(dim: Any) -> int | str | None:
    if dim.HasField("dim_value") and dim.dim_value >= 0:
        return int(dim.dim_value)
    return dim.dim_param or None


def _skeleton(model: Any, graph: Graph, nodes: Sequence[Any]) -> Any:
    """The model without large tensors, of known shapes: what ONNX's inference needs."""
    from onnx import helper, numpy_helper

    types = {dtype: number for number, dtype in dtypes().items()}
    inputs = [helper.make_tensor_value_info(given.name, types[given.dtype], given.shape) for given in graph.inputs]
    small = []
    for name, array in {**graph.tensors, **graph.constants}.items():
        if array.size <= _LARGE:
            small.append(numpy_helper.from_array(array, name))
        else:
            inputs.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape))
    outputs = [helper.make_value_info(name, _no_type()) for name in graph.outputs]
    skeleton = helper.make_graph([], "skeleton", inputs, outputs, small)
    skeleton.node.extend(nodes)
    return helper.make_model(skeleton, opset_imports=model.opset_import, ir_version=model.ir_version)


def _no_type() -> Any:
    from onnx import TypeProto

    return TypeProto()


def _inferred(skeleton: Any) -> dict[str, Any]:
    """Types of all values, as far as ONNX's own inference gives them."""
    from onnx import helper, shape_inference

    try:
        known = shape_inference.infer_shapes(skeleton, data_prop=True).graph
    except Exception:  # its own; the model runs without it
        known = skeleton.graph
    stored = {tensor.name: helper.make_tensor_type_proto(tensor.data_type, tensor.dims) for tensor in known.initializer}
    return {**stored, **{value.name: value.type for value in (*known.input, *known.value_info, *known.output)}}


def _type_and_sizes(value: Any) -> tuple[torch.dtype | None, tuple[int | None, ...] | None]:
    kind = value.tensor_type
    sizes = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim) if kind.HasField("shape") else None
    return dtypes().get(kind.elem_type), sizes


def _check_names(graph: Graph) -> None:
    """Every value that is read is made before."""
    made = {given.name for given in graph.inputs} | set(graph.tensors) | set(graph.constants)
    for step in graph.steps:
        if missing := [name for name in step.sources if name and name not in made]:
            raise UnsupportedError(f"is damaged: {step.label} reads {missing[0]!r}, which nothing makes")
        made.update(name for name in step.targets if name)
    if missing := [name for name in graph.outputs if name not in made]:
        raise UnsupportedError(f"is damaged: nothing makes its output {missing[0]!r}")
