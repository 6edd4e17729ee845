"""The operators of an exported program as folding sees them: which stand where, and who reads what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from wsgraph.convert.folding_weights import OF_NORMS, Fold, StaysError
from wsgraph.convert.tracing.recording import ModuleInputs, TraceError, copied, export
from wsgraph.convert.tracing.tracer import INLINE, bind, operator_name, paths_of

__all__ = ["Program", "quoted"]


@dataclass(eq=False)
class _Step:
    """An operator, or a tensor that the program is given, with its arguments (steps where they are tensors) and its readers."""

    operator: str
    node: Any
    arguments: dict[str, Any] = field(default_factory=dict)
    readers: list[tuple[_Step, str]] = field(default_factory=list)

    @property
    def value(self) -> Tensor:
        """Its result, without entries."""
        result: Tensor = self.node.meta["val"]
        return result

    @property
    def given(self) -> Any:
        """What it is applied to: its first argument, which the operators that are looked through call so."""
        return self.arguments.get("self", self.arguments.get("input"))

    @property
    def paths(self) -> list[str]:
        """The modules that it belongs to, outermost first."""
        return paths_of(self.node)

    def __str__(self) -> str:
        if self.operator == "output":
            return "the module's output"
        library = "aten." if isinstance(self.node.target, torch._ops.OpOverload) and "::" not in self.operator else ""
        return f"{library}{self.operator} in {quoted(self.paths[-1])}"


# Operators that return what they are given, in evaluation mode.
_SAME = {"contiguous", "clone", "alias"}
_SAME_UNLESS_TRAINED = {"dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"}
_CASTS = {"to", "_to_copy", "type_as"}
_LAYERS = {"linear": 0, "conv1d": 1, "conv2d": 2, "conv3d": 3, "conv_transpose1d": 1, "conv_transpose2d": 2, "conv_transpose3d": 3}
# Modules that add a bias when they are given one.
_TAKE_A_BIAS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class Program:
    """A recorded program beside the module that it was recorded of."""

    def __init__(self, program: Any, module: nn.Module, inputs: ModuleInputs) -> None:
        self.inputs = inputs
        self.modules = dict(module.named_modules(remove_duplicate=False))
        self.tensors: dict[str, Tensor] = {
            **dict(module.named_parameters(remove_duplicate=False)),
            **dict(module.named_buffers(remove_duplicate=False)),
        }
        signature = program.graph_signature
        names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        given = {node: _Step("placeholder", node) for node in program.graph.nodes if node.op == "placeholder"}
        self.names = {step: names[node.name] for node, step in given.items() if node.name in names}
        self.steps: list[_Step] = []
        self.lowest_cast: torch.dtype | None = None
        self.outermost = program.graph
        self._read(program.graph, given)
        self.operators: dict[int, list[_Step]] = {}
        for step in self.steps:
            for owner in {id(self.modules.get(path)) for path in step.paths} if step.operator != "output" else ():
                self.operators.setdefault(owner, []).append(step)
        self.placeholders: dict[int, list[_Step]] = {}
        for step, name in self.names.items():
            self.placeholders.setdefault(id(self.tensors[name]), []).append(step)
        self.memory: dict[int, list[str]] = {}
        for name, tensor in self.tensors.items():
            self.memory.setdefault(_memory(tensor), []).append(name)

    def _read(self, graph: Any, given: dict[Any, Any]) -> dict[Any, Any]:
        """Add the steps of a graph whose placeholders are given; returns all of its results."""
        steps = dict(given)
        for node in graph.nodes:
            if node.op == "placeholder":
                continue
            for entry in pytree.tree_leaves((node.args, node.kwargs)):
                if isinstance(entry, torch.dtype) and entry.is_floating_point:
                    self.lowest_cast = min(self.lowest_cast or entry, entry, key=lambda dtype: torch.finfo(dtype).bits)
            held = [argument for argument in node.all_input_nodes if argument.op == "get_attr"]
            name = operator_name(node.target)[0] if node.op == "call_function" else node.op
            if name in INLINE:
                start = node.args.index(held[0]) + 1
                inside_graph = getattr(graph.owning_module, str(held[0].target)).graph
                inner = [inside for inside in inside_graph.nodes if inside.op == "placeholder"]
                values = [map_arg(argument, steps.__getitem__) for argument in node.args[start:]]
                results = self._read(inside_graph, dict(zip(inner, values, strict=True)))
                (end,) = (inside for inside in inside_graph.nodes if inside.op == "output")
                steps[node] = map_arg(end.args[0], results.__getitem__)
                continue
            arguments = {key: map_arg(argument, steps.__getitem__) for key, argument in bind(node).items()}
            if name == "output" and graph is not self.outermost:
                continue
            if getattr(node.target, "__name__", "") == "getitem" and isinstance(arguments["0"], (list, tuple)):
                steps[node] = arguments["0"][arguments["1"]]
                continue
            schema = node.target._schema if isinstance(node.target, torch._ops.OpOverload) else None
            if schema is not None and not schema.returns and not schema.is_mutable:
                continue  # a check of what is known already
            step = steps[node] = _Step(name, node, arguments)
            self.steps.append(step)
            for key, argument in arguments.items():
                for entry in pytree.tree_leaves(argument):
                    if isinstance(entry, _Step):
                        entry.readers.append((step, key))
        return steps

    def module_at(self, step: _Step) -> nn.Module | None:
        """The innermost module that an operator belongs to."""
        return self.modules.get(step.paths[-1])

    # == Norms ==

    def norms(self) -> dict[str, Fold | str]:
        """All batch norms by name: how to fold them, or why they stay."""
        found: dict[str, Fold | str] = {}
        known = set()
        for step in self.steps:
            if step.operator == "batch_norm":
                known.add(id(self.module_at(step)))
                name = self.name(step)
                known.add(id(self.modules.get(name)))
                if name not in found:
                    try:
                        found[name] = self.fold(step, name)
                    except StaysError as error:
                        found[name] = str(error)
        for name, module in dict(next(iter(self.modules.values())).named_modules()).items():
            if _is_norm(module) and id(module) not in known:
                found.setdefault(name, self.why_unread(module))
        return found

    def name(self, norm: _Step) -> str:
        """The path of the module that does nothing but call the norm, or the name of the norm's running mean."""
        mean = self.names.get(norm.arguments["running_mean"])
        if mean is None or self.steps_in(self.module_at(norm)) == [norm]:
            return norm.paths[-1]
        path = mean.rpartition(".")[0]
        return path if mean == f"{path}.running_mean".lstrip(".") and _is_norm(self.modules[path]) else mean

    def steps_in(self, module: nn.Module | None) -> list[_Step]:
        """All operators that belong to a module or those within it."""
        return self.operators.get(id(module), [])

    def why_unread(self, module: nn.Module) -> str:
        """Why a norm has no operator of its own in the program."""
        if own := self.steps_in(module):
            return f"it normalises in its own way, by {_listed(own)}"
        if readers := [step for tensor in (*module.parameters(), *module.buffers()) for step in self.readers(tensor)]:
            return f"it is not called by itself: {_listed(readers)} reads its weights"
        return "it is not called for these inputs"

    def fold(self, norm: _Step, name: str) -> Fold:
        """How to fold a norm.

        Raises:
            StaysError: If it cannot be folded.
        """
        arguments = norm.arguments
        if arguments["training"] or arguments["running_mean"] is None or arguments["running_var"] is None:
            raise StaysError("it uses the statistics of the batch")
        owner = self.check_owner(norm, name)
        statistics = {key: self.state_name(arguments[key], f"{key.replace(chr(95), chr(32))} of the norm") for key in OF_NORMS}
        for key, entry in (("weight", "gain"), ("bias", "bias"), *((key, key.replace("_", " ")) for key in OF_NORMS[2:])):
            self.check_readers(statistics[key], f"its {entry}", {norm})
        for text, _ in (*owner.named_parameters(recurse=False), *owner.named_buffers(recurse=False)):
            self.check_readers(f"{norm.paths[-1]}.{text}".lstrip("."), f"its {text}", {norm})
        rest = self.rest(norm, owner)
        steps = [norm]
        source = arguments["input"]
        while self.is_same(source):
            steps.append(source)
            source = source.given
        steps.append(source)
        transposed = self.check_layer(source, norm)
        for step in steps[1:]:
            if len(step.readers) > 1:
                readers = _listed([reader for reader, _ in step.readers if reader is not norm] or [norm])
                raise StaysError(f"{_of(step, source)} is read by {len(step.readers)} operators, also by {readers}")
        weight = self.state_name(source.arguments["weight"], "weight of the layer")
        bias = self.state_name(source.arguments["bias"], "bias of the layer")
        self.check_hooks(steps)
        assert weight is not None
        self.check_readers(weight, "the layer's weight", {source})
        self.check_readers(bias, "the layer's bias", {source})
        path = weight.rpartition(".")[0]
        layer = path if weight == f"{path}.weight".lstrip(".") else weight
        if bias is None:
            self.check_bias(source, path)
        if source.value.dtype != norm.value.dtype:
            raise StaysError(f"the layer returns {source.value.dtype}, the norm {norm.value.dtype}")
        groups = int(source.arguments.get("groups") or 1)
        numbers = (float(arguments["eps"]), groups if transposed else 0)
        return Fold(norm.paths[-1], rest, layer, weight, bias, statistics, *numbers)

    def check_owner(self, norm: _Step, name: str) -> nn.Module:
        """The module that calls the norm, which must do nothing else."""
        owner = self.module_at(norm)
        own = self.steps_in(owner)
        calls = [step for step in own if step.operator == "batch_norm"]
        if owner is not None and _is_norm(owner) and len(calls) > 1:
            raise StaysError(f"it is called {len(calls)} times")
        if owner is None or name != norm.paths[-1]:
            raise StaysError(f"it is a call of batch_norm in {quoted(norm.paths[-1])}, which does more than that")
        return owner

    def rest(self, norm: _Step, owner: nn.Module) -> tuple[str, ...]:
        """The modules within a norm's own that it calls afterwards, one after the other."""
        others = [step for step in self.steps_in(owner) if step is not norm]
        runs: dict[tuple[str, str], list[_Step]] = {}
        for step in others:
            place = next(i for i, path in enumerate(step.paths) if self.modules.get(path) is owner) + 1
            child = self.modules.get(step.paths[place]) if place < len(step.paths) else None
            name = next((name for name, module in owner._modules.items() if module is not None and module is child), "")
            call = list(step.node.meta["nn_module_stack"])[place] if name else ""  # every call of a module has a name of its own
            runs.setdefault((name, call), []).append(step)
        names = [name for name, _ in runs]
        before = norm
        for name, run in zip(names, runs.values(), strict=True):
            given = {entry for step in run for entry in pytree.tree_leaves(step.arguments) if isinstance(entry, _Step)}
            readers = {reader for step in (before, *run[:-1]) for reader, _ in step.readers}
            if not name or names.count(name) > 1 or not given <= {before, *run, *self.names} or not readers <= {*run}:
                raise StaysError(f"its module ({type(owner).__name__}) does more than normalise: {_listed(others)}")
            before = run[-1]
        return tuple(names)

    def state_name(self, argument: Any, text: str) -> str | None:
        """The name of a parameter or buffer that an operator takes as it is."""
        if argument is None:
            return None
        if argument not in self.names:
            by = f", by {argument}" if argument.arguments else ""
            raise StaysError(f"the {text} is computed{by}" if by else f"the {text} is no parameter or buffer")
        return self.names[argument]

    def readers(self, tensor: Tensor) -> list[_Step]:
        """All operators that read a parameter or buffer, whatever it is called, once for each time."""
        return [step for placeholder in self.placeholders.get(id(tensor), []) for step, _ in placeholder.readers]

    def check_readers(self, name: str | None, text: str, allowed: set[_Step]) -> None:
        """A tensor must be read by one operator alone, once, whatever it is called."""
        if name is None:
            return
        tensor = self.tensors[name]
        readers = self.readers(tensor)
        if others := [step for step in readers if step not in allowed]:
            raise StaysError(f"{text} is read elsewhere, by {_listed(others)}")
        if len(readers) > 1:
            raise StaysError(f"{text} is read twice, by {_listed(readers[:1])}")
        if type(tensor) not in (Tensor, nn.Parameter):
            raise StaysError(f"{text} is no plain tensor ({type(tensor).__name__})")
        shared = [other for other in self.memory[_memory(tensor)] if self.tensors[other] is not tensor]
        if shared and _memory(tensor):
            raise StaysError(f"{text} lies in the same memory as {shared[0]!r}")

    def is_same(self, step: Any) -> bool:
        """Whether a step returns what it is given."""
        if step.operator in _SAME or (step.operator in _SAME_UNLESS_TRAINED and not step.arguments["train"]):
            return True
        return step.operator in _CASTS and isinstance(step.given, _Step) and step.given.value.dtype == step.value.dtype

    def check_layer(self, layer: _Step, norm: _Step) -> bool:
        """Whether the layer is a transposed convolution; its outputs must lie where the norm's channels do."""
        if layer.operator == "placeholder":
            what = "a parameter" if layer in self.names else "an input of the module"
            raise StaysError(f"it reads {what}, no linear or convolutional layer")
        if layer.operator not in _LAYERS:
            raise StaysError(f"it follows {layer}, no linear or convolutional layer")
        if layer.value.ndim != _LAYERS[layer.operator] + 2:
            raise StaysError(f"it normalises another axis than that of the layer's outputs ({layer})")
        return "transpose" in layer.operator

    def check_hooks(self, steps: Sequence[_Step]) -> None:
        """Nobody may look at what flows between the layer and the norm."""
        inside = [[self.modules.get(path) for path in step.paths] for step in steps]
        for module in {id(module): module for module in chain(*inside)}.values():
            common = all(any(other is module for other in one) for one in inside)
            if module is not None and not common and any(len(getattr(module, hooks)) for hooks in _HOOKS):
                path = next(path for path, other in self.modules.items() if other is module)
                raise StaysError(f"{quoted(path)} has hooks, which would see other values")

    def check_bias(self, layer: _Step, path: str) -> None:
        """A layer without a bias must add one when it is given it."""
        module = self.modules[path]
        known = isinstance(module, _TAKE_A_BIAS) and module.bias is None and self.module_at(layer) is module
        if not known or not (_is_plain(module) or path in self.bias_takers):
            raise StaysError(f"{layer} takes no bias, and {type(module).__name__} is not known to pass one on")

    @cached_property
    def bias_takers(self) -> set[str]:
        """Layers with forward functions of their own and no bias that read one when they are given it."""
        reader = copied(self.modules[""])
        layers = {path: layer for path, layer in reader.named_modules() if isinstance(layer, _TAKE_A_BIAS) and layer.bias is None}
        layers = {path: layer for path, layer in layers.items() if not _is_plain(layer)}
        for layer in layers.values():
            size = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
            layer.register_parameter("bias", nn.Parameter(layer.weight.new_zeros(size), requires_grad=False))
        try:
            program = Program(export(copied(reader), self.inputs), reader, self.inputs)
        except TraceError:
            return set()
        found = set()
        for path, layer in layers.items():
            steps = program.readers(layer.bias) if layer.bias is not None else []
            if len(steps) == 1 and steps[0].operator in _LAYERS:
                weight = steps[0].arguments["weight"]
                if weight in program.names and program.tensors[program.names[weight]] is layer.weight:
                    found.add(path)
        return found


def _is_plain(module: nn.Module) -> bool:
    """Whether a module runs as torch's own layers do."""
    methods = [getattr(type(module), name, None) for name in ("forward", "_conv_forward")]
    plain = any(methods == [getattr(known, name, None) for name in ("forward", "_conv_forward")] for known in _TAKE_A_BIAS)
    return plain and not {"forward", "_conv_forward"} & set(vars(module))


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm) or isinstance(getattr(module, "running_var", None), Tensor)


def _memory(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):  # tensors without memory of their own
        return 0


def quoted(path: str) -> str:
    """The path of a module, in words."""
    return repr(path) if path else "the module itself"


def _listed(steps: Sequence[_Step]) -> str:
    texts = list(dict.fromkeys(str(step) for step in steps))
    return ", ".join(texts[:3]) + (f" and {len(texts) - 3} more" if len(texts) > 3 else "")


def _of(step: _Step, layer: _Step) -> str:
    return "the layer's output" if step is layer else f"what {step} returns"
