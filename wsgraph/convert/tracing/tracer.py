"""Run a module once, symbolically, and let every operator say what it does to neurons."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from wsgraph.convert.tracing.freedom import freedom
from wsgraph.convert.tracing.labels import Label, Value, coded
from wsgraph.convert.tracing.recording import TraceError
from wsgraph.convert.tracing.rules.distinct import distinct_numbers
from wsgraph.convert.tracing.rules.elementwise import entrywise, rule_of
from wsgraph.convert.tracing.rules.movement import MOVEMENTS
from wsgraph.convert.tracing.rules.table import GIVE_NUMBERS, READ_NOTHING, READ_NUMBERS, Call, unknown
from wsgraph.convert.tracing.stacks import alike
from wsgraph.convert.tracing.values import Scope
from wsgraph.operators import UnsupportedError, operator_text

__all__ = [
    "DROPOUTS",
    "INLINE",
    "bind",
    "draws_random_numbers",
    "interpret",
    "module_of",
    "operator_name",
    "paths_of",
    "saved_names",
    "transformed_names",
]


def saved_names(program: Any, keys: Mapping[str, str]) -> dict[str, str]:
    """Keys of the parameters and buffers that a program takes, by placeholder; of a tensor with several keys, the first."""
    signature = program.graph_signature
    return {node: keys.get(name, name) for node, name in {**signature.inputs_to_parameters, **signature.inputs_to_buffers}.items()}


# Operators of weights alone after which entries of 0 are still entries without effect: what moves, sums and multiplies them.
_LINEAR = {
    name
    for names in (
        "permute transpose t swapaxes swapdims movedim moveaxis numpy_T mT squeeze unsqueeze view reshape _unsafe_view flatten unflatten",
        "view_as reshape_as ravel select slice narrow chunk split split_with_sizes tensor_split unbind flip repeat tile repeat_interleave",
        "expand expand_as broadcast_to index index_select cat concat concatenate stack contiguous clone alias detach lift_fresh_copy to",
        "_to_copy type_as dropout add sub rsub mul multiply neg linear matmul mm bmm mv addmm baddbmm einsum embedding conv1d conv2d",
        "conv3d conv_transpose1d conv_transpose2d conv_transpose3d",
    )
    for name in names.split()
}


def transformed_names(program: Any, keys: Mapping[str, str]) -> set[str]:
    """The saved tensors of a program to whose entries it applies functions other than sums and products, before inputs come in."""
    names = saved_names(program, keys)
    read: dict[Any, set[str] | None] = {}  # by node: the saved tensors that it is made of, or None where inputs are among it
    found: set[str] = set()
    for node in program.graph.nodes:
        sources = [read.get(source) for source in node.all_input_nodes]
        own = {name for source in sources for name in source or ()}
        if node.op == "placeholder":
            is_input = node.name not in names and isinstance(node.meta.get("val"), Tensor)
            read[node] = None if is_input else {names[node.name]} if node.name in names else set()
        elif node.op == "get_attr":
            read[node] = set()
        elif str(node.target) in INLINE or (None not in sources and not _is_linear(node)):
            found |= own
            read[node] = None if None in sources else own
        else:
            read[node] = None if None in sources else own
    return found


def _is_linear(node: Any) -> bool:
    return getattr(node.target, "__name__", "") == "getitem" or operator_name(node.target)[0] in _LINEAR


def interpret(program: Any, keys: Mapping[str, str], results: dict[Any, Any] | None = None) -> Scope:
    """Let all operators of an exported program act on labelled values.

    Args:
        program: The program.
        keys: For every key of the state dict, the first key of the same tensor.
        results: Filled with what every operator returns, by node.

    Returns:
        What they found out, with the values of the parameters and buffers that the program uses.
    """
    scope = _settled(program, keys, results, merging=False)
    if scope.mergeable:
        found: dict[Any, Any] = {}
        other = _settled(program, keys, found, merging=True)
        if freedom(other) > freedom(scope):
            if results is not None:
                results.update(found)
            return other
    return scope


def _settled(program: Any, keys: Mapping[str, str], results: dict[Any, Any] | None, *, merging: bool) -> Scope:
    scope = Scope(merging=merging)
    _interpret(program, scope, keys, results)
    while found := alike(scope):  # what is not told apart from the start may have factors, too
        scope = Scope(alike=scope.alike | found, merging=merging)
        _interpret(program, scope, keys, results)
    return scope


def _interpret(program: Any, scope: Scope, keys: Mapping[str, str], results: dict[Any, Any] | None) -> None:
    signature = program.graph_signature
    names = saved_names(program, keys)
    constants = {**signature.inputs_to_lifted_tensor_constants}
    state = program.state_dict
    values = scope.saved
    environment: dict[Any, Any] = {}
    origin: dict[Any, list[Any]] = {}  # by node: all nodes so far that share its memory
    first: dict[str, Any] = {}  # the placeholder of every tensor
    placeholders: dict[str, list[Any]] = {}
    order = {node: i for i, node in enumerate(program.graph.nodes)}
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in names:
            placeholders.setdefault(names[node.name], []).append(node)
        if node.op == "placeholder" and node.users and names.get(node.name) in first:
            environment[node] = environment[first[names[node.name]]]
            scope.own.discard(first[names[node.name]])
            _share(node, first[names[node.name]], origin)
        elif node.op == "placeholder":
            environment[node], origin[node] = _placeholder(node, names, constants, state, program, scope), [node]
            if node.name in names and node.users:
                values[names[node.name]] = environment[node]
                first[names[node.name]] = node
                scope.reads[names[node.name]] = 0
                scope.own |= {node} if len(node.users) == 1 else set()
        elif node.op == "get_attr":
            environment[node], origin[node] = Value(tuple(node.meta["val"].shape)) if "val" in node.meta else None, [node]
        elif node.op == "output":
            scope.reason = "output"
            outputs = _values(_mapped(node.args, environment))
            scope.fix_all(*outputs)
            scope.outputs = torch.cat([torch.zeros(1, dtype=torch.long), *(output.marks for output in outputs)])
        else:
            _step(node, environment, origin, order, scope)
            if results is not None:
                results[node] = environment[node]
            for name in scope.changed:
                environment.update(dict.fromkeys(placeholders[name], values[name]))
            scope.changed.clear()


def _share(node: Any, other: Any, origin: dict[Any, list[Any]]) -> None:
    """A node that has the memory of another one."""
    origin[node] = origin[other]
    origin[node].append(node)


def _step(node: Any, environment: dict[Any, Any], origin: dict[Any, list[Any]], order: Mapping[Any, int], scope: Scope) -> None:
    """One operator of a program."""
    if str(node.target) in INLINE:
        environment[node], origin[node] = _inline(node, environment, scope), [node]
    elif getattr(node.target, "__name__", "") == "getitem":
        environment[node] = environment[node.args[0]][node.args[1]]
        _share(node, node.args[0], origin)
    else:
        environment[node] = _call(node, environment, scope)
        if (shared := _alias(node)) in origin:
            _share(node, shared, origin)
        else:
            origin[node] = [node]
        if _mutates(node):
            _mutate(node, environment, origin, order, scope)


# Parts of a program that torch.export keeps apart, because gradients or automatic casts are switched within them.
INLINE = {"wrap_with_set_grad_enabled", "wrap_with_autocast"}


def _inline(node: Any, environment: Mapping[Any, Any], scope: Scope) -> list[Any]:
    """The results of a part of a program that is kept apart."""
    place = next(i for i, argument in enumerate(node.args) if isinstance(argument, torch.fx.Node) and argument.op == "get_attr")
    graph = getattr(node.graph.owning_module, str(node.args[place].target)).graph
    values = iter(_read(_mapped(list(node.args[place + 1 :]), environment)))
    inner: dict[Any, Any] = {}
    origin: dict[Any, list[Any]] = {}
    order = {inside: i for i, inside in enumerate(graph.nodes)}
    for inside in graph.nodes:
        if inside.op == "placeholder":
            inner[inside], origin[inside] = next(values), [inside]
        elif inside.op == "output":
            results = _mapped(inside.args[0], inner)
            return list(results) if isinstance(results, list) else [results]
        else:
            _step(inside, inner, origin, order, scope)
    return []


def _placeholder(
    node: Any, names: Mapping[str, str], constants: Mapping[str, str], state: Mapping[str, Tensor], program: Any, scope: Scope
) -> Value:
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return Value(())
    shape = tuple(value.shape)
    if node.name in constants:
        tensor = program.constants.get(constants[node.name])
        return Value(shape) if tensor is None else constant_value(tensor)
    if node.name not in names:
        whole = scope.nodes.make(torch.zeros(1, dtype=torch.long), name=node.name, is_input=True)
        return Value(shape, is_input=True, whole=int(whole))
    name = names[node.name]
    if not value.is_floating_point():
        tensor = state.get(name, program.constants.get(name))
        return Value(shape, constant=tensor, saved=name in state)
    if name not in state:  # a buffer that is not saved is a constant of the architecture
        return Value(shape)
    labels = []
    for dim, size in enumerate(shape):
        if size > 1:
            unknown_factor = scope.factors.new(name, value=False)
            labels.append(Label((dim,), coded(scope.neurons.new(size), unknown_factor), scope.nodes.pins(name, dim, size)))
    return Value(shape, tuple(labels), whole=0 if labels else int(scope.nodes.pins(name, None, 1)), unread=(name, 0))


def _mapped(argument: Any, environment: Mapping[Any, Any]) -> Any:
    if isinstance(argument, torch.fx.Node):
        return environment.get(argument)
    if isinstance(argument, (list, tuple)):
        return [_mapped(item, environment) for item in argument]
    if isinstance(argument, dict):
        return {key: _mapped(item, environment) for key, item in argument.items()}
    return argument


def _read(argument: Any) -> Any:
    """What is known of tensors, of which more may have been read."""
    if isinstance(argument, Value):
        return replace(argument, unread=None)
    return [_read(item) for item in argument] if isinstance(argument, list) else argument


def _values(argument: Any) -> list[Value]:
    if isinstance(argument, Value):
        return [argument]
    if isinstance(argument, (list, tuple)):
        return [value for item in argument for value in _values(item)]
    if isinstance(argument, dict):
        return _values(list(argument.values()))
    return []


def paths_of(node: Any) -> list[str]:
    """Paths of the modules that a node belongs to, from the whole module to the innermost one."""
    stack = node.meta.get("nn_module_stack") or {"": ("", None)}
    return [_plain_path(str(path)) for path, _ in stack.values()]


def _plain_path(path: str) -> str:
    return path.removeprefix("L['self']").removeprefix("L__self__").lstrip("._").replace("._modules", "")


def module_of(node: Any) -> str:
    """Path of the module that a node belongs to."""
    stack = node.meta.get("nn_module_stack")
    return _plain_path(str(next(reversed(stack.values()))[0])) if stack else ""


def _results(node: Any) -> list[Any]:
    """What a node returns, as one list: tensors without entries, or other things."""
    value = node.meta.get("val")
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _shapes(node: Any) -> list[tuple[int, ...]]:
    items = _results(node)
    if any(not isinstance(size, int) for item in items if isinstance(item, Tensor) for size in item.shape):
        raise TraceError(
            f"The shape of what {node.target} returns in {module_of(node) or 'the module itself'} depends on the values of tensors; "
            "tracing needs fixed shapes: use a mask of fixed size in place of picking entries by it."
        )
    return [tuple(item.shape) if isinstance(item, Tensor) else () for item in items]


def operator_name(target: Any) -> tuple[str, Callable[..., Any]]:
    """The name under which an operator is registered, and its form that does not write to its arguments."""
    if not isinstance(target, torch._ops.OpOverload):
        return str(target), target
    library, name = target._schema.name.split("::")
    plain = name[:-1] if name.endswith("_") and not name.endswith("__") else name
    functional = getattr(getattr(getattr(torch.ops, library), plain, None), target._overloadname, None) if plain != name else target
    return (plain if library == "aten" else f"{library}::{plain}"), functional or target


def bind(node: Any) -> dict[str, Any]:
    """Arguments of a node by name."""
    if isinstance(node.target, torch._ops.OpOverload):
        schema = node.target._schema.arguments
        names = [argument.name for argument in schema]
        defaults = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
    else:
        names, defaults = [str(i) for i in range(len(node.args))], {}
    return {**defaults, **dict(zip(names, node.args, strict=False)), **node.kwargs}


# These return their first argument, unless they drop some of it.
DROPOUTS = {"dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "native_dropout", "dropout2d"}


def draws_random_numbers(node: Any) -> bool:
    """Whether an operator draws random numbers as it is called, whatever the mode of the module is."""
    name, _ = operator_name(node.target)
    tags = node.target.tags if isinstance(node.target, torch._ops.OpOverload) else ()
    if name not in DROPOUTS and torch.Tag.nondeterministic_seeded not in tags:
        return False
    arguments = bind(node)
    rate = arguments.get("dropout_p", arguments.get("p" if name in DROPOUTS else "dropout", 1))
    is_on = arguments.get("train", arguments.get("training", True))
    return rate != 0 and is_on is not False


def _call(node: Any, environment: Mapping[Any, Any], scope: Scope) -> Any:
    name, operation = operator_name(node.target)
    arguments = bind(node)
    named = {key: _mapped(argument, environment) for key, argument in arguments.items()}
    module = module_of(node)
    own = frozenset(key for key, argument in arguments.items() if isinstance(argument, torch.fx.Node) and argument in scope.own)
    call = Call(name, module, named, _shapes(node), operation, own)
    scope.name = call.name
    values = call.tensors
    read_twice = any(len(source.users) > 1 for source in node.all_input_nodes)
    scope.nodes.begin(call.name, shared=read_twice or any(value.shared for value in values))
    scope.reason = f"{name} in {module or 'the module itself'}"
    unread = [value.unread for value in _values(named) if value.unread is not None]
    for tensor, _ in unread:
        scope.reads[tensor] += 1
    if (known := _folded(node, call, values)) is not None:
        return known
    rule = rule_of(name)
    if rule is None and call.tensors and isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags:
        rule = entrywise
    if isinstance(node.target, torch._ops.OpOverload) and not node.target._schema.returns:
        return None  # a check of what is known already
    numbers = values[0].numbers if rule in MOVEMENTS else ()
    if name not in READ_NOTHING | READ_NUMBERS:
        scope.fix(*(label for value in _values(named) if not (numbers and value is values[0]) for label in value.numbers))
    if rule is None:
        # Values may lie deep among the arguments of what is not known.
        nested = {str(i): value for i, value in enumerate(_values(named))}
        results: Any = unknown(scope, Call(name, module, nested, call.shapes, operation))
    else:
        results = rule(scope, call)
    several = isinstance(node.meta.get("val"), (list, tuple))
    results = [results] if isinstance(results, Value) else list(results)
    if len(results) < len(call.shapes):
        results = unknown(scope, call)
    integers = [isinstance(item, Tensor) and not item.is_floating_point() for item in _results(node)]  # which no factor multiplies
    results = [scope.without_factors(result) if integer else result for result, integer in zip(results, integers, strict=True)]
    is_moved = rule in MOVEMENTS and len(unread) == len(results) == len(node.users) == 1
    moved = (unread[0][0], unread[0][1] + 1) if is_moved and values[0].unread is not None else None
    numbers_of = [numbers or (result.numbers if name in GIVE_NUMBERS else ()) for result in results]
    distinct = frozenset[int]() if any(integers) else distinct_numbers(name, call)
    results = [replace(result, unread=moved, numbers=own, distinct=distinct) for result, own in zip(results, numbers_of, strict=True)]
    if any(value.has_nodes for value in values) and name not in READ_NOTHING:
        results = [_with_nodes(result, values, name, arguments, scope) for result in results]
    for result, shape in zip(results, call.shapes, strict=True):
        assert tuple(result.shape) == shape, f"{name} in {module}: expected shape {shape}, its rule gave {result.shape}"
    return results if several else results[0]


# Makers of tensors of which it matters what they hold.
_MAKERS = {"arange", "eye", "linspace", "scalar_tensor", "zeros", "ones", "full"}
_LARGEST_CONSTANT = 1 << 20


def _folded(node: Any, call: Call, values: list[Value]) -> Value | None:
    """The result of an operator of constants alone, such as a table of indices, ``None`` of any other."""
    result = node.meta.get("val")
    known = all(value.constant is not None and not value.saved for value in values) if values else call.operator in _MAKERS
    if (
        not known
        or not isinstance(result, Tensor)
        or result.numel() > _LARGEST_CONSTANT
        or not isinstance(node.target, torch._ops.OpOverload)
    ):
        return None
    if torch.Tag.nondeterministic_seeded in node.target.tags or "empty" in call.operator or len(call.shapes) != 1:
        return None
    with torch.no_grad(), suppress(Exception):  # of which nothing is known then
        return constant_value(call.operation(**_constants(call.arguments)))
    return None


def _constants(argument: Any) -> Any:
    if isinstance(argument, Value):
        return argument.constant
    if isinstance(argument, dict):
        return {key: _constants(item) for key, item in argument.items()}
    return [_constants(item) for item in argument] if isinstance(argument, (list, tuple)) else argument


def constant_value(tensor: Tensor) -> Value:
    """What is known of a tensor that no weight and no input changes."""
    uniform = frozenset(dim for dim, size in enumerate(tensor.shape) if size and bool((tensor == tensor.narrow(dim, 0, 1)).all()))
    return Value(tuple(tensor.shape), uniform=uniform, zero=bool((tensor == 0).all()), constant=tensor)


def _with_nodes(result: Value, values: list[Value], name: str, arguments: Mapping[str, Any], scope: Scope) -> Value:
    """A result of values that flow through the network, with nodes: those that its rule gave it, or one that reads all others."""
    labels = tuple(label.with_nodes_only() for label in result.labels)
    whole = 0
    if not any(label.has_nodes for label in labels):
        whole = result.whole if result.whole > 0 else scope.nodes.gather(torch.cat([value.marks for value in values]))
        if labels and whole:  # neurons of which only this is known
            nodes = scope.nodes.make(labels[0].codes)
            scope.nodes.read("operator", torch.tensor([whole]), nodes)
            labels, whole = (replace(labels[0], nodes=nodes), *labels[1:]), 0
    with suppress(UnsupportedError):  # which the graph does not show
        text = operator_text(name, arguments)
        labels = tuple(
            replace(label, nodes=scope.nodes.operate(label.marks.flatten(), label.codes.flatten(), text).view(label.codes.shape))
            for label in labels
        )
    marks = torch.cat([label.marks.flatten() for label in labels]) if labels else torch.zeros(1)
    return replace(result, labels=labels, whole=whole, shared=scope.nodes.shared and not scope.nodes.is_fresh(marks))


# == Operators that write to their arguments ==


# Operators that may return their argument itself, though their schemas do not say so.
_MAY_ALIAS = {"reshape", "contiguous", "flatten", "type_as", "to"} | DROPOUTS


def _mutates(node: Any) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and any(
        argument.alias_info is not None and argument.alias_info.is_write for argument in node.target._schema.arguments
    )


def _alias(node: Any) -> Any:
    """The node whose memory a result shares: its first argument, for views and for operators that write to it."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return None
    schema = node.target._schema
    written = any(result.alias_info is not None for result in schema.returns)
    shares = written or schema.name.removeprefix("aten::") in _MAY_ALIAS
    first = node.args[0] if node.args else None
    return first if shares and isinstance(first, torch.fx.Node) else None


def _mutate(node: Any, environment: dict[Any, Any], origin: Mapping[Any, list[Any]], order: Mapping[Any, int], scope: Scope) -> None:
    """What is written to an argument is read under its old name too; other views of the same memory lose their symmetries."""
    target = node.args[0]
    result = environment[node]
    if not isinstance(result, Value) or not isinstance(target, torch.fx.Node):
        return
    for other in origin[target]:
        if other not in (node, target) and any(order[user] > order[node] for user in other.users):
            both = _values([environment[other], result])
            scope.fix_all(*both)
            whole = scope.nodes.gather(torch.cat([value.marks for value in both]))
            environment[other] = _plain(environment[other], whole)
            result = _plain(result, whole)
    environment[node] = environment[target] = result


def _plain(value: Any, whole: int) -> Any:
    """What is left of values of which only the node is known that reads all that was written to them."""
    if isinstance(value, list):
        return [_plain(item, whole) for item in value]
    return Value(value.shape, whole=whole) if isinstance(value, Value) else value
