"""Networks of dense and convolutional layers, residual sums and known operators, written as layers between neuron groups.

Such a space can be run and read by every model. Other networks have their symmetries and a graph, see :mod:`.lowering`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx

from wsgraph.convert.tracing.tracer import DROPOUTS, bind, draws_random_numbers, module_of, operator_name, saved_names
from wsgraph.operators import UnsupportedError, number, operator_flow, operator_text, square_number
from wsgraph.space import Axis, Layer, NeuronGroup, Parameter, Tie
from wsgraph.space.dtypes import stored_dtype

__all__ = ["as_layers"]


@dataclass
class _Group:
    """A group in the making: the layers that are summed into it and the operators applied since."""

    size: int
    layers: list[dict[str, Any]]
    operators: list[str] = field(default_factory=list)
    read: bool = False
    name: str = ""


@dataclass(frozen=True)
class _Stream:
    """What a node of the program is: groups laid end to end along the channels, at a stage of their operators."""

    groups: tuple[_Group, ...]
    stage: int = 0
    shape: tuple[int, ...] = ()
    factor: float = 1.0


_SAME = {"contiguous", "clone", "alias", "detach", "lift_fresh_copy"} | DROPOUTS
_RESHAPE = {"view", "reshape", "flatten", "squeeze", "_unsafe_view"}


class _Builder:
    def __init__(self, program: Any, state: Mapping[str, Tensor], theta_dtype: torch.dtype, keys: Mapping[str, str]) -> None:
        self.names = saved_names(program, keys)
        self.state, self.theta_dtype = state, theta_dtype
        self.nodes = list(program.graph.nodes)
        self.streams: dict[Any, _Stream] = {}
        self.groups: list[_Group] = []
        self.used: set[str] = set()

    # == Reading the program ==

    def build(self) -> tuple[tuple[NeuronGroup, ...], tuple[Layer, ...], tuple[Parameter, ...]]:
        inputs = [node for node in self.nodes if node.op == "placeholder" and node.name not in self.names]
        if len(inputs) != 1 or not isinstance(inputs[0].meta.get("val"), Tensor):
            raise UnsupportedError(f"it takes {len(inputs)} inputs" if len(inputs) != 1 else "its input is no tensor")
        shape = tuple(inputs[0].meta["val"].shape)
        source = _Group(0, [])
        self.groups.append(source)
        self.streams[inputs[0]] = _Stream((source,), 0, shape)
        output = None
        for node in self.nodes:
            if node.op == "output":
                outputs = node.args[0] if isinstance(node.args[0], (list, tuple)) else [node.args[0]]
                if len(outputs) != 1:
                    raise UnsupportedError(f"it returns {len(outputs)} results")
                (output,) = outputs
            elif node.op == "call_function":
                self.streams[node] = self.call(node)
            elif node.op != "placeholder":
                raise UnsupportedError(f"it holds {node.op} {node.target}, which is no operator")
        if unused := [name for name in self.state if name not in self.used]:
            raise UnsupportedError(f"no layer has the tensor {unused[0]!r}{f' and {len(unused) - 1} more' if len(unused) > 1 else ''}")
        if output not in self.streams:
            raise UnsupportedError("its output is none of the values that its layers compute")
        stream = self.final(self.streams[output])
        if len(stream.groups) != 1 or stream.groups[0].read or stream.groups[0] is source or len(stream.shape) != 2:
            raise UnsupportedError("its output is not what one layer computes, of shape [inputs, outputs]")
        return self.parts(stream.groups[0])

    def final(self, stream: _Stream) -> _Stream:
        """A stream at the last stage of its groups: what layers read."""
        if stream.factor != 1 or any(stream.stage != len(group.operators) for group in stream.groups if len(stream.groups) == 1):
            raise UnsupportedError("a value is read before the operators behind its layer, or multiplied by a number")
        return stream

    def read(self, stream: _Stream) -> _Stream:
        for group in self.final(stream).groups:
            group.read = True
        return stream

    def call(self, node: fx.Node) -> _Stream:
        name, _ = operator_name(node.target)
        where, arguments = module_of(node) or "the module itself", bind(node)
        if draws_random_numbers(node):
            raise UnsupportedError(f"{name} in {where} draws random numbers")
        if not isinstance(node.meta.get("val"), Tensor):
            raise UnsupportedError(f"{name} in {where} returns several tensors")
        shape = tuple(node.meta["val"].shape)
        if len(shape) < 2:  # without channels
            raise UnsupportedError(f"{name} in {where} returns a tensor of shape {list(shape)}, without channels")
        streams = [
            self.streams[argument]
            for value in arguments.values()
            for argument in (value if isinstance(value, (list, tuple)) else [value])
            if isinstance(argument, fx.Node) and argument in self.streams
        ]
        if name == "linear" or name in ("conv1d", "conv2d", "conv3d"):
            if arguments["input"] not in self.streams:
                raise UnsupportedError(f"{name} in {where} reads something that no layer computes")
            return self.layer(node, name, arguments, self.streams[arguments["input"]], shape)
        if name == "add" and arguments.get("alpha", 1) == 1 and len(streams) == 2 and streams[0] is not streams[1]:
            return self.add(node, streams, shape)
        if name == "cat" and arguments.get("dim", 0) % len(shape) == 1:
            return self.concatenate(streams, shape)
        if len(streams) != 1 or len(streams[0].groups) != 1:
            raise UnsupportedError(f"{name} in {where} is not applied to the values of one layer alone")
        (stream,) = streams
        (group,) = stream.groups
        if name in _SAME:
            return stream
        if group is self.groups[0] and name in _RESHAPE and shape[:1] == stream.shape[:1]:
            return replace(stream, shape=shape)
        if stream.stage != len(group.operators) or group.read or group is self.groups[0]:
            raise UnsupportedError(f"{name} in {where} is applied to the network's input, or to values that are read before it too")
        if name == "mul" and isinstance(arguments["other"], (int, float)):
            return replace(stream, factor=stream.factor * arguments["other"])
        try:
            text = self.operator(name, arguments, stream, shape)
        except UnsupportedError as error:
            raise UnsupportedError(f"{error} (in {where})") from None
        if text:
            group.operators.append(text)
        pooled = text.startswith("global_")
        return _Stream(stream.groups, len(group.operators), shape[:2] if pooled else shape)

    def operator(self, name: str, arguments: dict[str, Any], stream: _Stream, shape: tuple[int, ...]) -> str:
        """The operator as a weight space writes it; empty where nothing happens."""
        if name in _RESHAPE:
            if shape == stream.shape:
                return ""  # global pooling has left one position already
            if len(shape) == 2 and shape[0] == stream.shape[0] and stream.factor == 1:
                return "flatten"
            raise UnsupportedError(f"{name} makes a tensor of shape {list(shape)} of one of {list(stream.shape)}")
        if name == "sin":
            return f"sin({number(stream.factor)})" if stream.factor != 1 else "sin"
        if stream.factor != 1:
            raise UnsupportedError(f"{name} is applied to values that are multiplied by {number(stream.factor)}")
        if name == "mean" and sorted(d % len(stream.shape) for d in arguments.get("dim") or [0]) == list(range(2, len(stream.shape))):
            return "global_avg_pool"
        dimensions = [int(digit) for digit in name if digit.isdigit()] if "pool" in name else []
        if any(len(stream.shape) != 2 + d for d in dimensions):  # fewer are read as without a batch
            raise UnsupportedError(f"{name} is applied to a tensor of shape {list(stream.shape)}, without a dimension for inputs")
        text = operator_text(name, arguments)
        if operator_flow(text).positive and operator_flow(text).degree != 1:  # whose factors layers cannot hold
            raise UnsupportedError(f"{name} lets factors pass as powers, which layers do not write")
        if "softmax" in text and len(shape) != 2:
            raise UnsupportedError(f"{name} is applied to a tensor of shape {list(shape)}")
        return text

    def layer(self, node: fx.Node, name: str, arguments: dict[str, Any], source: _Stream, shape: tuple[int, ...]) -> _Stream:
        where = module_of(node) or "the module itself"
        weight, bias = (
            self.names.get(entry.name) if isinstance(entry, fx.Node) else None for entry in (arguments["weight"], arguments.get("bias"))
        )
        if weight is None or weight in self.used or (arguments.get("bias") is not None and bias is None) or bias in self.used:
            raise UnsupportedError(f"the weight of {name} in {where} is no saved tensor, is made of others, or is used twice")
        if weight not in self.state or (bias is not None and bias not in self.state):  # buffers that no state dict holds
            raise UnsupportedError(f"the weight or bias of {name} in {where} is no saved tensor")
        self.used |= {weight} | ({bias} if bias else set())
        self.read(source)
        options: dict[str, Any] = {}
        sizes = self.state[weight].shape
        if name == "linear":
            if len(source.shape) != 2:
                raise UnsupportedError(f"{name} in {where} is applied to a tensor of shape {list(source.shape)}")
        else:
            padding = arguments.get("padding", 0)
            if square_number(arguments.get("dilation", 1)) != 1 or arguments.get("groups", 1) != 1 or isinstance(padding, str):
                raise UnsupportedError(f"{name} in {where} is grouped, dilated or padded by a name")
            if len(source.shape) != len(sizes):
                raise UnsupportedError(f"{name} in {where} is applied to a tensor of shape {list(source.shape)}")
            options = {"stride": square_number(arguments.get("stride", 1)), "padding": square_number(padding)}
        if self.groups[0] in source.groups:
            if self.groups[0].size not in (0, source.shape[1]):
                raise UnsupportedError("its layers read its input in several shapes")
            self.groups[0].size = source.shape[1]
        positions, rest = divmod(sizes[1], sum(group.size for group in source.groups))
        if rest or (positions > 1 and len(source.groups) > 1):
            raise UnsupportedError(f"{name} in {where} reads other channels than those of the layers before it")
        made = {"operator": "linear" if name == "linear" else "conv", "sources": source.groups, "weight": weight, "bias": bias, **options}
        made.update(name=module_of(node) or weight.rpartition(".")[0], positions=positions if name == "linear" else 1)
        group = _Group(int(sizes[0]), [made])
        self.groups.append(group)
        return _Stream((group,), 0, shape)

    def add(self, node: fx.Node, streams: list[_Stream], shape: tuple[int, ...]) -> _Stream:
        if any(stream.shape != shape or len(stream.groups) != 1 for stream in streams):
            raise UnsupportedError(f"{module_of(node) or 'the module itself'} adds tensors of different shapes, or concatenated ones")
        layers: list[dict[str, Any]] = []
        merged = []
        for stream in streams:
            (group,) = stream.groups
            users = [user for user, other in self.streams.items() if other is stream]
            alone = len(users) == 1 and len(users[0].users) == 1
            fresh = group.layers and not group.operators and not group.read and stream.factor == 1 and alone
            if fresh:
                layers += group.layers
                merged.append(group)
            else:
                self.read(stream)
                layers.append({"operator": "identity", "sources": stream.groups, "name": f"{module_of(node) or 'sum'}.skip"})
        for group in merged:
            self.groups.remove(group)
        total = _Group(shape[1], layers)
        self.groups.append(total)
        return _Stream((total,), 0, shape)

    def concatenate(self, streams: list[_Stream], shape: tuple[int, ...]) -> _Stream:
        groups = tuple(group for stream in streams for group in self.read(stream).groups)
        if self.groups[0] in groups or sum(group.size for group in groups) != shape[1]:
            raise UnsupportedError("it concatenates its input, or something else than channels")
        return _Stream(groups, 0, shape)

    # == Writing the space ==

    def parts(self, output: _Group) -> tuple[tuple[NeuronGroup, ...], tuple[Layer, ...], tuple[Parameter, ...]]:
        if any(not group.read and group is not output for group in self.groups):
            raise UnsupportedError("something that it computes is not used, or both added and used")
        hidden = 0
        for group in self.groups:
            hidden += group not in (self.groups[0], output)
            group.name = "input" if group is self.groups[0] else "output" if group is output else f"hidden.{hidden}"
        label = {group.name: group.name for group in self.groups}
        for group in self.groups:  # a residual sum ties its groups
            for layer in group.layers:
                if layer["operator"] == "identity":
                    old, new = label[group.name], label[layer["sources"][0].name]
                    label = {name: new if value == old else value for name, value in label.items()}
        groups = tuple(
            NeuronGroup(
                group.name,
                group.size,
                "input" if group is self.groups[0] else "output" if group is output else "hidden",
                tuple(group.operators),
                label[group.name],
            )
            for group in self.groups
        )
        layers: list[Layer] = []
        axes: dict[str, tuple[Axis, ...]] = {}
        for group in self.groups:
            for made in group.layers:
                sources = tuple(source.name for source in made["sources"])
                names = [layer.name for layer in layers]
                name = made["name"] if made["name"] not in names else f"{made['name']}.{len(names)}"
                options = {key: made[key] for key in ("stride", "padding") if key in made}
                layers.append(Layer(name, made["operator"], sources, group.name, made.get("weight"), made.get("bias"), **options))
                if made["operator"] == "identity":
                    continue
                out = Axis(group.size, (Tie((group.name,), 1),))
                inner = Axis(sum(source.size for source in made["sources"]), (Tie(sources, -1),))
                kernel = self.state[made["weight"]].shape[2:] or ((made["positions"],) if made["positions"] > 1 else ())
                axes[made["weight"]] = (out, inner, *(Axis(size) for size in kernel))
                if made["bias"]:
                    axes[made["bias"]] = (out,)
        biases = {layer.bias for layer in layers}
        params = []
        for name, tensor in self.state.items():
            role = "bias" if name in biases else "weight"
            params.append(Parameter(name, tuple(tensor.shape), role, axes[name], stored_dtype(tensor, self.theta_dtype)))
        return groups, tuple(layers), tuple(params)


def as_layers(
    program: Any, state: Mapping[str, Tensor], theta_dtype: torch.dtype, keys: Mapping[str, str]
) -> tuple[tuple[NeuronGroup, ...], tuple[Layer, ...], tuple[Parameter, ...]]:
    """Groups, layers and parameters of a network that they express in full.

    Raises:
        UnsupportedError: Saying what of another network layers do not express.
    """
    return _Builder(program, state, theta_dtype, keys).build()
