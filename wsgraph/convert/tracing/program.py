"""From the operators that torch.export records to the program that a weight space stores: the same function, as data."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind
from torch.utils import _pytree as pytree

from wsgraph.convert.tracing.recording import first_line
from wsgraph.convert.tracing.tracer import DROPOUTS, INLINE, bind, draws_random_numbers, module_of, operator_name, saved_names
from wsgraph.operators import UnsupportedError
from wsgraph.space.program import Constant, Program, ProgramInput, Step, references, replaced
from wsgraph.space.program_operators import Dtype, Reference, is_allowed

__all__ = ["make_program"]

# Results of these are other names of their first argument, which nothing writes to any more. (Not detach, which stops gradients.)
_SAME = {"contiguous", "clone", "alias", "lift_fresh_copy", "lift_fresh", "positive"}
_CASTS = {"to", "_to_copy", "type_as"}
_VIEWS = {"view": "reshape", "_unsafe_view": "reshape", "view_as": "reshape_as"}  # where memory does not lie as it did when traced
_CREATED = {"zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_empty"}
_UNDEFINED = {"empty", "new_empty", "empty_like"}  # zeros do as well
_LEFT_OUT = {"device", "pin_memory", "layout", "memory_format", "non_blocking", "generator", "copy"}
_SAFE_TO_FOLD = 2**16  # entries; above, what is larger than what it is made of stays a step
_MAY_ALIAS = {"reshape", "contiguous", "flatten", "type_as", "to", "reshape_as", "expand_as"} | DROPOUTS


def make_program(
    exported: Any, state: Mapping[str, Tensor], keys: Mapping[str, str], buffers: Collection[torch.dtype] = ()
) -> tuple[Program | None, str]:
    """What a module computes, as a weight space stores it.

    Args:
        exported: What ``torch.export`` recorded.
        state: The tensors of the module's state dict, each once.
        keys: For every key of the state dict, the first key of the same tensor.
        buffers: Further dtypes that are the module's own.

    Returns:
        The program, and an empty text; or ``None`` and a sentence that says what it cannot say.
    """
    own = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()} | set(buffers)
    try:
        if _writes_to_shared_memory(exported.graph):
            exported = exported.run_decompositions({})
        return _Builder(exported, state, keys, own).build(), ""
    except (UnsupportedError, ValueError) as error:
        return None, first_line(error).rstrip(".")


def _writes_to_shared_memory(graph: fx.Graph) -> bool:
    """Whether anything is written to a tensor that is read under another name afterwards."""
    nodes = list(graph.nodes)
    order = {node: i for i, node in enumerate(nodes)}
    origin: dict[fx.Node, fx.Node] = {}
    members: dict[fx.Node, list[fx.Node]] = {}
    for node in nodes:
        first = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        shares = getattr(node.target, "__name__", "") == "getitem"
        writes = False
        if isinstance(node.target, torch._ops.OpOverload):
            schema = node.target._schema
            shares = any(result.alias_info is not None for result in schema.returns) or operator_name(node.target)[0] in _MAY_ALIAS
            writes = schema.is_mutable
        elif str(node.target) in INLINE:
            inner = next(argument for argument in node.args if isinstance(argument, fx.Node) and argument.op == "get_attr")
            if any(isinstance(n.target, torch._ops.OpOverload) and n.target._schema.is_mutable for n in _graph(inner).nodes):
                return True
        origin[node] = origin[first] if shares and first is not None else node
        members.setdefault(origin[node], []).append(node)
        if writes and first is not None:
            others = (other for other in members[origin[first]] if other not in (node, first))
            if any(order[user] > order[node] for other in others for user in other.users):
                return True
    return False


def _graph(attribute: fx.Node) -> fx.Graph:
    graph = getattr(attribute.graph.owning_module, str(attribute.target)).graph
    assert isinstance(graph, fx.Graph)
    return graph


@dataclass(frozen=True, eq=False)
class _Known:
    """A tensor that depends on neither inputs nor parameters."""

    tensor: Tensor


class _Builder:
    def __init__(self, exported: Any, state: Mapping[str, Tensor], keys: Mapping[str, str], own: Collection[torch.dtype]) -> None:
        self.exported, self.state, self.own = exported, state, own
        self.names = saved_names(exported, keys)
        self.inputs: list[ProgramInput] = []
        self.steps: list[Step] = []
        self.constants: list[Constant] = []
        self.numbers: dict[int, tuple[_Known, Reference]] = {}

    # == Reading the graph ==

    def build(self) -> Program:
        signature, graph = self.exported.graph_signature, self.exported.graph
        values: dict[fx.Node, Any] = {}
        nodes = {node.name: node for node in graph.nodes if node.op == "placeholder"}
        leaves: list[Any] = []
        for spec in signature.input_specs:
            node = nodes.get(spec.arg.name)
            value = self.placeholder(spec, node)
            if node is not None:
                values[node] = value
            if spec.kind == InputKind.USER_INPUT:
                leaves.append(value)
        (_, positional, (_, *named)) = self.structure(self.exported.call_spec.in_spec, leaves)
        call, keywords = (*positional, *(value for _, value in named)), tuple(name for name, _ in named)
        results = self.walk(graph, values)
        if len(results) != len(signature.output_specs):
            raise UnsupportedError("torch.export says nothing of some of its results")
        pairs = zip(results, signature.output_specs, strict=True)
        leaves = [self.argument(result) for result, spec in pairs if spec.kind == OutputKind.USER_OUTPUT]
        return self.pruned(call, self.structure(self.exported.call_spec.out_spec, leaves), keywords)

    def placeholder(self, spec: Any, node: fx.Node | None) -> Any:
        if spec.kind == InputKind.USER_INPUT:
            if isinstance(spec.arg, ConstantArgument) or node is None or not isinstance(node.meta.get("val"), Tensor):
                return self.literal(spec.arg.value if isinstance(spec.arg, ConstantArgument) else node and node.meta.get("val"))
            value = node.meta["val"]
            self.inputs.append(ProgramInput(node.name, tuple(value.shape), _name(value.dtype)))
            return Reference("input", len(self.inputs) - 1)
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and self.names[spec.arg.name] in self.state:
            return Reference("parameter", self.names[spec.arg.name])
        tensor = self.exported.constants.get(spec.target, self.exported.state_dict.get(spec.target))
        if not isinstance(tensor, Tensor):
            return None
        if spec.kind == InputKind.BUFFER and tensor.is_floating_point():  # module.double() converts it, so that it is no fixed number
            return self.reference(_Known(tensor))
        return _Known(tensor.detach())

    def structure(self, spec: Any, leaves: list[Any]) -> Any:
        """Tensors and other leaves as they lie in tuples, lists and dicts."""
        return _structured(pytree.tree_unflatten([_Leaf(leaf) for leaf in leaves], spec))

    def walk(self, graph: fx.Graph, values: dict[fx.Node, Any]) -> list[Any]:
        """Follow all operators of a graph; what it returns."""
        for node in graph.nodes:
            if node.op == "output":
                returned = node.args[0]
                return [_mapped(item, values) for item in (returned if isinstance(returned, (list, tuple)) else [returned])]
            if node.op == "get_attr":
                target = getattr(graph.owning_module, str(node.target), None)
                values[node] = _Known(target.detach()) if isinstance(target, Tensor) else None
            elif node.op == "call_function" and (node.users or not isinstance(node.target, torch._ops.OpOverload) or _writes(node)):
                values[node] = self.call(node, values)
        return []

    def call(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        if getattr(node.target, "__name__", "") == "getitem":
            return _item(values[node.args[0]], node.args[1])  # type: ignore[index]
        if str(node.target) in INLINE:
            return self.inline(node, values)
        if not isinstance(node.target, torch._ops.OpOverload):
            raise UnsupportedError(
                f"it has {node.target} in {module_of(node) or 'the module itself'}, which is more than a function of tensors"
            )
        if not node.target._schema.returns:
            return None  # a check of what is known already
        name, operation = operator_name(node.target)
        if not isinstance(operation, torch._ops.OpOverload):
            operation = node.target
        arguments = {key: _mapped(value, values) for key, value in bind(node).items()}
        # Forms that write to an argument may call it otherwise.
        names = {a.name: b.name for a, b in zip(node.target._schema.arguments, operation._schema.arguments, strict=False)}
        arguments = {names.get(key, key): value for key, value in arguments.items()}
        result = self.apply(node, name, operation, arguments)
        if _writes(node) and isinstance(node.args[0], fx.Node):
            values[node.args[0]] = result
        return result

    def inline(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        place = next(i for i, argument in enumerate(node.args) if isinstance(argument, fx.Node) and argument.op == "get_attr")
        if "autocast" in str(node.target) and True in node.args[:place] and node.args[0] == "cpu":
            raise UnsupportedError("it computes a part of itself in another precision, with automatic casts")
        graph = _graph(node.args[place])  # type: ignore[arg-type]
        inputs = [inside for inside in graph.nodes if inside.op == "placeholder"]
        given = [_mapped(argument, values) for argument in node.args[place + 1 :]]
        return self.walk(graph, dict(zip(inputs, given, strict=True)))

    # == Operators ==

    def apply(self, node: fx.Node, name: str, operation: Any, arguments: dict[str, Any]) -> Any:
        """What an operator returns: what it was given, a tensor that is known, or the results of a new step."""
        where = f"{name} in {module_of(node) or 'the module itself'}"
        first = arguments.get(operation._schema.arguments[0].name) if operation._schema.arguments else None
        if draws_random_numbers(node):
            raise UnsupportedError(f"it draws random numbers ({where})")
        if name in DROPOUTS:
            return [first, None] if name == "native_dropout" else first
        if name in _SAME:
            return first
        meta = node.meta.get("val")
        if name in _CASTS and isinstance(meta, Tensor):
            if isinstance(first, _Known):
                return _Known(first.tensor.to(meta.dtype))
            source = _tensor(node.args[0])
            if source is not None and source.dtype == meta.dtype:
                return first
            return self.step("aten::to", "dtype", {"self": first, "dtype": self.dtype(meta.dtype)})
        if (
            name in ("empty", *_CREATED)
            and isinstance(meta, Tensor)
            and (name in _UNDEFINED or isinstance(arguments.get("fill_value", 0), (int, float)))
        ):
            fill = 1 if "ones" in name else arguments.get("fill_value") or 0
            return _Known(torch.full((), fill, dtype=meta.dtype).expand(meta.shape))
        if name == "batch_norm" and arguments.get("training"):
            arguments |= {"running_mean": None, "running_var": None}
        library = operation._schema.name
        if name in _VIEWS and operation._overloadname == "default":
            library = f"aten::{_VIEWS[name]}"
            operation = getattr(torch.ops.aten, _VIEWS[name]).default
            arguments = {"shape" if key == "size" else key: value for key, value in arguments.items()}
        if not is_allowed(library):
            raise UnsupportedError(f"it has an operator that programs cannot name ({where})")
        if not any(isinstance(leaf, Reference) for leaf in _leaves(arguments)) and (known := self.known(operation, arguments)) is not None:
            return known
        literal = {key: value for key, value in arguments.items() if key not in _LEFT_OUT or _has_reference(value)}
        result = self.step(library, operation._overloadname, literal, operation._schema)
        if isinstance(meta, (list, tuple)):
            return [Reference("step", result.key, i) for i in range(len(meta))]
        return result

    def known(self, operation: Any, arguments: dict[str, Any]) -> Any:
        """The results of an operator on tensors that are known, ``None`` where they are too large to be stored."""
        tensors = [item.tensor for item in _leaves(arguments) if isinstance(item, _Known)]
        given = {key: _unknown(value) for key, value in arguments.items()}
        given |= {key: torch.device("cpu") for key, value in given.items() if isinstance(value, torch.device)}
        try:
            with torch.no_grad():
                result = operation(**given)
        except (RuntimeError, TypeError):
            return None
        several = list(result) if isinstance(result, (list, tuple)) else [result]
        size = sum(tensor.numel() for tensor in several if isinstance(tensor, Tensor))
        if tensors and size > max(_SAFE_TO_FOLD, 2 * sum(tensor.numel() for tensor in tensors)):
            return None
        found = [_Known(item) if isinstance(item, Tensor) else item for item in several]
        return found if isinstance(result, (list, tuple)) else found[0]

    def step(self, operator: str, overload: str, arguments: Mapping[str, Any], schema: Any = None) -> Reference:
        """A new step; arguments at their defaults are left out."""
        defaults = {a.name: self.literal(a.default_value) for a in schema.arguments if a.has_default_value()} if schema else {}
        given = tuple(
            (name, value)
            for name, value in ((name, self.argument(value)) for name, value in arguments.items())
            if name not in defaults or type(value) is not type(defaults[name]) or value != defaults[name]
        )
        self.steps.append(Step(operator, overload, given))
        return Reference("step", len(self.steps) - 1)

    def argument(self, value: Any) -> Any:
        """A value as steps read it."""
        if isinstance(value, _Known):
            return self.reference(value)
        if isinstance(value, (list, tuple)):
            return tuple(self.argument(item) for item in value)
        return value if isinstance(value, (Reference, Dtype)) else self.literal(value)

    def literal(self, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return tuple(self.literal(item) for item in value)
        if isinstance(value, torch.dtype):
            return self.dtype(value)
        if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            raise UnsupportedError("a size in it depends on the values of tensors")
        if isinstance(value, float) and math.isnan(value):
            return math.nan  # one object, which equals itself in tuples
        if value is None or isinstance(value, (bool, int, float, complex, str)):
            return value
        raise UnsupportedError(f"an argument is a {type(value).__name__}, which is no number, text or tensor")

    def dtype(self, dtype: torch.dtype) -> Dtype:
        """A dtype, and whether it is that of the weights when the network is run in another one."""
        if not dtype.is_floating_point:
            return Dtype(_name(dtype))
        if dtype in self.own:
            return Dtype(_name(dtype), "always")
        wider = bool(self.own) and all(torch.promote_types(dtype, other) == dtype for other in self.own)
        return Dtype(_name(dtype), "up" if wider else "")

    def reference(self, known: _Known) -> Reference:
        if id(known) not in self.numbers:
            self.numbers[id(known)] = (known, Reference("constant", len(self.constants)))
            self.constants.append(Constant.of(known.tensor, self.dtype(known.tensor.dtype)))
        return self.numbers[id(known)][1]

    # == Writing the program ==

    def pruned(self, call: Any, outputs: Any, keywords: tuple[str, ...]) -> Program:
        """The program of the steps and constants on which the outputs depend."""
        used: set[Reference] = set()
        waiting = list(references(outputs))
        while waiting:
            reference = waiting.pop()
            name = Reference(reference.kind, reference.key)
            if name not in used:
                used.add(name)
                if reference.kind == "step":
                    waiting += references(self.steps[int(reference.key)].arguments)
        order: dict[str, dict[int, int]] = {}
        for kind, count in (("step", len(self.steps)), ("constant", len(self.constants))):
            kept = [i for i in range(count) if Reference(kind, i) in used]
            order[kind] = {old: new for new, old in enumerate(kept)}

        def renumber(reference: Reference) -> Reference:
            if reference.kind not in order:
                return reference
            return Reference(reference.kind, order[reference.kind][int(reference.key)], reference.item)

        steps = (self.steps[i] for i in order["step"])
        return Program(
            tuple(self.inputs),
            call,
            tuple(Step(step.operator, step.overload, replaced(step.arguments, renumber)) for step in steps),
            replaced(outputs, renumber),
            tuple(self.constants[i] for i in order["constant"]),
            keywords,
        )


def _writes(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


# == Values ==


@dataclass(frozen=True, eq=False)
class _Leaf:
    value: Any


def _structured(value: Any) -> Any:
    """Leaves within tuples, lists and dicts as programs write them; whatever else torch.export takes apart is a tuple."""
    if isinstance(value, _Leaf):
        return value.value
    if isinstance(value, Mapping):
        return ("dict", *((key, _structured(item)) for key, item in value.items()))
    if isinstance(value, list):
        return ("list", *map(_structured, value))
    if isinstance(value, tuple):
        return ("tuple", *map(_structured, value))
    if type(value) in pytree.SUPPORTED_NODES:
        return ("tuple", *map(_structured, pytree.SUPPORTED_NODES[type(value)].flatten_fn(value)[0]))
    return value


def _mapped(argument: Any, values: Mapping[fx.Node, Any]) -> Any:
    if isinstance(argument, fx.Node):
        return values[argument]
    if isinstance(argument, (list, tuple)):
        return [_mapped(item, values) for item in argument]
    return argument


def _leaves(argument: Any) -> list[Any]:
    if isinstance(argument, dict):
        argument = list(argument.values())
    return [leaf for item in argument for leaf in _leaves(item)] if isinstance(argument, (list, tuple)) else [argument]


def _has_reference(value: Any) -> bool:
    return any(isinstance(leaf, (Reference, _Known)) for leaf in _leaves(value))


def _unknown(value: Any) -> Any:
    """A value as operators take it."""
    if isinstance(value, _Known):
        return value.tensor
    return [_unknown(item) for item in value] if isinstance(value, (list, tuple)) else value


def _item(value: Any, index: Any) -> Any:
    if isinstance(value, Reference):
        return Reference(value.kind, value.key, index)
    return value[index]


def _tensor(node: Any) -> Tensor | None:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return value if isinstance(value, Tensor) else None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
