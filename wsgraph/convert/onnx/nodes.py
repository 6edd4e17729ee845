"""How nodes of an ONNX graph are read: one table, and one check that nothing is left out.

An entry of the table is a function with the versions of the operator whose meaning it has. Its
positional parameters are the operator's inputs, its keyword parameters the attributes that it
heeds. Whatever else a node holds (an attribute that is not at its default, an input or a result
more) is refused by :func:`read_node`, for all operators alike; defaults come from ONNX's own
schemas.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from wsgraph import operators

__all__ = [
    "KNOWN",
    "OPERATORS",
    "WEIGHTS",
    "Array",
    "Floats",
    "Index",
    "Ints",
    "Number",
    "Operand",
    "Operator",
    "Scalar",
    "Setting",
    "Statistic",
    "Step",
    "UnsupportedError",
    "dtypes",
    "read_node",
    "register",
    "register_entry",
    "same_meaning",
    "to_array",
    "to_tensor",
]

# What an operator takes as an input. All others are tensors, and floating point tensors of the file
# among them are weights.
Ints = Annotated[list[int], "ints"]  # known before the network runs
Floats = Annotated[list[float], "floats"]  # known before the network runs
Number = Annotated[float, "number"]  # known before the network runs
Array = Annotated[np.ndarray, "array"]  # known before the network runs
Setting = Annotated[Tensor, "setting"]  # a tensor that is no weight
Scalar = Annotated[Any, "scalar"]  # a number if it is known, else a tensor; no weight
Operand = Annotated[Any, "operand"]  # a number if it is one in the file, else a tensor
Index = Annotated[Any, "index"]  # an array if it is known, else a tensor
Statistic = Annotated[Tensor, "statistic"]  # a buffer
KNOWN = ("ints", "floats", "number", "array")
WEIGHTS = ("tensor", "operand", "statistic")

# Attributes that never had a meaning for values.
_MEANINGLESS = {"consumed_inputs"}


class UnsupportedError(ValueError):
    """What a node asks for has no equal here."""


@dataclass(frozen=True)
class Operator:
    """One meaning of an operator.

    Args:
        name: Its name in ONNX.
        versions: Versions of the operator (the operator sets that changed it) whose meaning this
            is.
        function: The operator as a function of its inputs, with its attributes as keywords.
        inputs: Kinds of the inputs.
        others: Kind of any further inputs; ``None`` if there are none.
        attributes: Names of the attributes that the function heeds.
        context: Names of what else the function wants to know: ``results``, the number of results
            that have a name, and ``working``, the floating point type that the module was moved to.
        results: Number of results that it gives; ``None`` for any.
        by_shape: Whether its results follow from the shapes of its inputs.
        is_view: Whether it gives the entries of its first input in their order, in other
            dimensions.
    """

    name: str
    versions: tuple[int, ...]
    function: Callable[..., Any]
    inputs: tuple[str, ...]
    others: str | None
    attributes: frozenset[str]
    context: frozenset[str]
    results: int | None = 1
    by_shape: bool = False
    is_view: bool = False

    def __reduce__(self) -> tuple[Any, ...]:
        return _find, (self.name, self.versions[0])

    def kind(self, place: int) -> str:
        """The kind of an input."""
        return self.inputs[place] if place < len(self.inputs) else self.others or "tensor"


OPERATORS: dict[str, list[Operator]] = {}
_CONTEXT = {"results", "working"}


def _find(name: str, version: int) -> Operator | None:
    if "::" in name:
        return _foreign(name)
    return next((operator for operator in OPERATORS.get(name, []) if version in operator.versions), None)


def _foreign(name: str) -> Operator | None:
    """An operator of another domain than ONNX's own, if the table of operators has it."""
    forms = ((form, entry) for entry in operators.OPERATORS.values() for form in entry.onnx if form.name == name)
    return next((_of_entry(form, entry) for form, entry in forms), None)


def _of_entry(form: operators.OnnxForm, entry: operators.Operator) -> Operator:
    """An operator of the table, whose numbers are attributes."""

    def function(x: Tensor, **attributes: Any) -> Tensor:
        numbers = [attributes[name] for name in form.attributes]
        return entry.function(x, *(number for number in numbers if number is not None))

    return Operator(form.name, form.versions or (1,), function, ("tensor",), None, frozenset(form.attributes), frozenset())


def register_entry(form: operators.OnnxForm, entry: operators.Operator) -> None:
    """Enter an operator of the table of operators under its name in ONNX.

    Args:
        form: How ONNX writes it.
        entry: What it computes.
    """
    OPERATORS.setdefault(form.name, []).append(_of_entry(form, entry))


def same_meaning(name: str, first: int, second: int) -> bool:
    """Whether an operator means the same in two operator sets."""
    from onnx import defs

    if name == "Constant":  # which is no step
        return True
    versions = [defs.get_schema(name, operator_set, "").since_version for operator_set in (first, second)]
    return versions[0] == versions[1] or (_find(name, versions[0]) is _find(name, versions[1]) is not None)


def register(
    names: str,
    versions: Sequence[int],
    function: Callable[..., Any],
    *,
    results: int | None = 1,
    by_shape: bool = False,
    is_view: bool = False,
) -> None:
    """Enter an operator, or several with one meaning, into the table.

    Args:
        names: Names of the operators, with spaces between them.
        versions: Versions whose meaning the function has.
        function: See :class:`Operator`.
        results: Number of results that it gives; ``None`` for any.
        by_shape: Whether its results follow from the shapes of its inputs.
        is_view: Whether it gives the entries of its first input in their order, in other
            dimensions.
    """
    hints = typing.get_type_hints(function, include_extras=True)
    inputs: list[str] = []
    others = None
    keywords = set()
    for parameter in inspect.signature(function).parameters.values():
        kind = _kind(hints.get(parameter.name))
        if parameter.kind is parameter.VAR_POSITIONAL:
            others = kind
        elif parameter.kind is parameter.KEYWORD_ONLY:
            keywords.add(parameter.name)
        else:
            inputs.append(kind)
    attributes, context = frozenset(keywords - _CONTEXT), frozenset(keywords & _CONTEXT)
    for name in names.split():
        entry = Operator(name, tuple(versions), function, tuple(inputs), others, attributes, context, results, by_shape, is_view)
        OPERATORS.setdefault(name, []).append(entry)


def _kind(hint: Any) -> str:
    for each in (hint, *typing.get_args(hint)):
        for text in getattr(each, "__metadata__", ()):
            return str(text)
    return "tensor"


@dataclass
class Step:
    """One node of a graph, read in full.

    Args:
        operator: What it does.
        label: How messages call it.
        sources: Names of its inputs; empty where one is left out.
        targets: Names of its results; empty where one is left out.
        attributes: Attributes that the operator heeds.
    """

    operator: Operator
    label: str
    sources: list[str]
    targets: list[str]
    attributes: dict[str, Any] = field(repr=False)

    def run(self, values: dict[str, Any], working: torch.dtype | None, device: torch.device | None) -> list[Any]:
        """The results, from tensors and, where they are known before the network runs, arrays."""
        given = [values[source] if source else None for source in self.sources]
        while given and given[-1] is None:
            given.pop()
        flowing = any(isinstance(value, Tensor) for value in given)
        arguments = [self._argument(place, value, flowing, working, device) for place, value in enumerate(given)]
        context = {"results": len(self.targets), "working": working}
        result = self.operator.function(*arguments, **self.attributes, **{name: context[name] for name in self.operator.context})
        return list(result) if isinstance(result, (list, tuple)) else [result]

    def _argument(self, place: int, value: Any, flowing: bool, working: torch.dtype | None, device: torch.device | None) -> Any:
        kind = self.operator.kind(place)
        if value is None:
            return None
        if isinstance(value, Tensor):
            if kind in KNOWN:
                raise UnsupportedError(
                    f"its input {place + 1}, {self.sources[place]!r}, depends on the values of the "
                    "network's inputs; only what is known before the network runs is supported there."
                )
            return value
        if kind in ("array", "index"):
            return value
        if kind in ("ints", "floats"):
            return [{"ints": int, "floats": float}[kind](entry) for entry in value.ravel()]
        single = value.size == 1 if kind in ("number", "scalar") else value.ndim == 0 and kind == "operand" and flowing
        if kind == "number" and not single:
            raise UnsupportedError(f"its input {place + 1}, {self.sources[place]!r}, must be one number (got shape {list(value.shape)}).")
        return value.item() if single else to_tensor(value, working, device)


def read_node(node: Any, operator_set: int, read: Collection[str]) -> Step:
    """Read a node in full, or say what in it has no equal here.

    Args:
        node: An ``onnx.NodeProto``.
        operator_set: Version of ONNX's operators that the model names.
        read: Names of all values that something reads.

    Raises:
        UnsupportedError: If anything in the node would be left out.
    """
    from onnx import defs

    label = f"{node.op_type} ({node.name or next((name for name in node.output if name), '')})"
    own = node.domain in ("", "ai.onnx")
    if not own and (foreign := _find(f"{node.domain}::{node.op_type}", 0)) is not None:
        try:
            return Step(foreign, label, _sources(node, foreign), _targets(node, foreign, read), _attributes(node, foreign, {}))
        except UnsupportedError as error:
            raise UnsupportedError(f"has an operator that wsgraph cannot read as it is, {label}: {error}") from None
    if not own or node.op_type not in OPERATORS:
        raise UnsupportedError(f"has an operator that wsgraph cannot read, {node.domain or 'ai.onnx'}.{label}")
    schema = defs.get_schema(node.op_type, operator_set, "")
    operator = _find(node.op_type, schema.since_version)
    if operator is None:
        known = sorted(version for entry in OPERATORS[node.op_type] for version in entry.versions)
        raise UnsupportedError(
            f"has an operator in a version that wsgraph cannot read, {schema.since_version} of "
            f"{label}; it reads {known} (onnx.version_converter converts many models to another "
            "operator set)"
        )
    try:
        return Step(
            operator, label, _sources(node, operator), _targets(node, operator, read), _attributes(node, operator, schema.attributes)
        )
    except UnsupportedError as error:
        raise UnsupportedError(f"has an operator that wsgraph cannot read as it is, {label}: {error}") from None


def _sources(node: Any, operator: Operator) -> list[str]:
    sources = list(node.input)
    while sources and not sources[-1]:
        sources.pop()
    if operator.others is None and len(sources) > len(operator.inputs):
        raise UnsupportedError(f"its input {len(operator.inputs) + 1}, {sources[len(operator.inputs)]!r}, is not supported")
    return sources


def _targets(node: Any, operator: Operator, read: Collection[str]) -> list[str]:
    targets = list(node.output)
    if operator.results is not None:
        for place, name in enumerate(targets[operator.results :], start=operator.results + 1):
            if name in read:
                raise UnsupportedError(f"its result {place}, {name!r}, is not supported")
    while targets and not targets[-1]:
        targets.pop()
    return targets


def _attributes(node: Any, operator: Operator, known: Mapping[str, Any]) -> dict[str, Any]:
    from onnx import AttributeProto, helper

    def value_of(attribute: Any) -> Any:
        return _attribute(helper.get_attribute_value(attribute))

    # A default that the schema does not have is read as an empty attribute.
    defaults = {name: value_of(a.default_value) if a.default_value.name else None for name, a in known.items()}
    given = {}
    for attribute in node.attribute:
        if attribute.ref_attr_name or attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
            raise UnsupportedError(f"its attribute {attribute.name} is a graph, or belongs to a function; that is not supported")
        value = value_of(attribute)
        if attribute.name in operator.attributes:
            given[attribute.name] = value
        elif attribute.name not in _MEANINGLESS and not _same(value, defaults.get(attribute.name)):
            text = np.array2string(value, threshold=8) if isinstance(value, np.ndarray) else repr(value)
            raise UnsupportedError(f"its attribute {attribute.name} = {text} is not supported")
    return {name: given.get(name, defaults.get(name)) for name in operator.attributes}


def _same(value: Any, default: Any) -> bool:
    return type(value) is type(default) and bool(np.array_equal(value, default))


def _attribute(value: Any) -> Any:
    from onnx import TensorProto, numpy_helper

    if isinstance(value, TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return list(value) if isinstance(value, (list, tuple)) or hasattr(value, "extend") else value


# == Types ==


@functools.cache
def dtypes() -> dict[int, torch.dtype]:
    """PyTorch's types by those of ONNX; others (text, complex, less than 8 bits) are not read."""
    from onnx import TensorProto

    names = {"FLOAT": "float32", "DOUBLE": "float64", "FLOAT16": "float16", "BFLOAT16": "bfloat16", "BOOL": "bool"}
    whole = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
    return {TensorProto.DataType.Value(k): getattr(torch, v) for k, v in {**names, **{w.upper(): w for w in whole}}.items()}


def to_tensor(value: Any, working: torch.dtype | None = None, device: torch.device | None = None) -> Tensor:
    """A tensor of an array; floating point ones in the type that the module was moved to."""
    if isinstance(value, Tensor):
        return value
    dtype = getattr(torch, str(value.dtype))
    tensor = torch.tensor(value.astype("float32") if dtype == torch.bfloat16 else value, dtype=dtype, device=device)
    return tensor if working is None or not dtype.is_floating_point else tensor.to(working)


def to_array(value: Any) -> np.ndarray:
    """An array of what an operator returned."""
    if not isinstance(value, Tensor):
        return np.asarray(value)
    value = value.detach().cpu()
    if value.dtype != torch.bfloat16:
        return value.numpy()
    from onnx import TensorProto, helper

    return value.float().numpy().astype(helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16))
