"""What builders of layers of Keras share: settings, weights, order of axes; and the list of layers that are known."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from wsgraph.convert.formats.keras.activations import Function, activation_module
from wsgraph.convert.formats.keras.files import Store

__all__ = [
    "LAYERS",
    "ChannelsLast",
    "KerasLayer",
    "LayerEntry",
    "Step",
    "Value",
    "blank",
    "channels_of",
    "filled",
    "in_order",
    "keras_layer",
    "keras_order",
    "pad_steps",
    "padding_of",
    "sizes_of",
    "torch_order",
    "with_channels",
]


@dataclass(frozen=True)
class Value:
    """A tensor on its way: images lie with their channels first.

    Attributes:
        tensor: An example.
        unordered: Sizes ``(channels, *positions)`` of what was flattened in the order of PyTorch, where Keras has another.
    """

    tensor: Tensor
    unordered: tuple[int, ...] = ()


@dataclass(frozen=True)
class Step:
    """A module that is called next, and what its keys begin with within those of the layer."""

    module: nn.Module
    name: str = ""


@dataclass
class KerasLayer:
    """A layer as its builder sees it.

    Attributes:
        name: Name in the model.
        kind: Its class.
        config: Its settings.
        store: Its weights.
        channels_first: Whether the model's own images lie so.
        version: Keras's major version.
        dtype: What the model computes in.
    """

    name: str
    kind: str
    config: Mapping[str, Any]
    store: Store
    channels_first: bool
    version: int
    dtype: torch.dtype = torch.float32
    unordered: tuple[int, ...] = field(default=())

    @property
    def label(self) -> str:
        return f"the layer {self.name!r} ({self.kind})"

    def weights(self, *shapes: Sequence[int | None] | None, inner: str = "", kinds: str = "f") -> list[Tensor]:
        """Arrays of these shapes, ``None`` for any size; a shape that is ``None`` is of an array that the layer lacks."""
        expected = [tuple(shape) for shape in shapes if shape is not None]
        arrays = self.store.arrays(inner)
        fits = len(arrays) == len(expected) and all(
            len(array.shape) == len(shape) and all(b is None or a == b for a, b in zip(array.shape, shape, strict=True))
            for array, shape in zip(arrays, expected, strict=True)
        )
        if not fits:
            held = ", ".join(str(list(array.shape)) for array in arrays) or "none"
            wanted = ", ".join(str([size or "any" for size in shape]) for shape in expected) or "none"
            raise ValueError(f"{self.label} has weights of the shapes {held}, where its configuration says {wanted}.")
        if whole := [array for array in arrays if array.dtype.kind not in kinds]:
            raise ValueError(f"{self.label} has weights of the type {whole[0].dtype}: dequantise the model before it is saved.")
        # Half precision is what weights were stored in, not what is computed in.
        return [torch.from_numpy(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))).to(self.dtype) for array in arrays]

    def refuse(self, **allowed: Any) -> None:
        """Raise where a setting is another than those that are built here."""
        for name, value in allowed.items():
            if (given := self.config.get(name, value)) != value:
                raise ValueError(
                    f"{self.label} has {name}={given!r}, which is not built here (only {value!r}). Export the model as ONNX, or build it "
                    "in PyTorch and trace it."
                )

    def axis(self, axis: int, ndim: int) -> int:
        """An axis of Keras among those of the tensor here."""
        axis %= ndim
        if ndim < 4 or self.channels_first or axis == 0:
            return axis
        return 1 if axis == ndim - 1 else axis + 1

    def activation(self, ndim: int, key: str = "activation") -> list[Step]:
        found = self.config.get(key)
        if isinstance(found, dict) and _is_layer(found):
            inner = KerasLayer(
                self.name, found["class_name"], found.get("config", {}), self.store, self.channels_first, self.version, self.dtype
            )
            return LAYERS[found["class_name"]].build(inner, [Value(torch.zeros([1] * ndim))])
        try:
            module = activation_module(found, self.axis(-1, ndim), self.version)
        except ValueError as error:
            raise ValueError(f"of {self.label} {error}") from None
        return [Step(module)] if module else []


def _is_layer(config: dict[str, Any]) -> bool:
    """Whether an activation is one of Keras's own layers."""
    entry = LAYERS.get(config.get("class_name", ""))
    return entry is not None and entry.activation and str(config.get("module", "keras")).partition(".")[0] == "keras"


Builder = Callable[[KerasLayer, list[Value]], list[Step]]


@dataclass(frozen=True)
class LayerEntry:
    """A layer that is known.

    Attributes:
        build: What makes its steps, from the layer and its inputs.
        unordered: Whether it reads what was flattened in either order, as what treats entries one by one does.
        activation: Whether it may stand as the activation of another layer.
        operation: Whether the operation of Keras that has the same name, such as that of ``x + y``, is the same function.
    """

    build: Builder
    unordered: bool = False
    activation: bool = False
    operation: bool = False


LAYERS: dict[str, LayerEntry] = {}


def keras_layer(*kinds: str, **options: bool) -> Callable[[Builder], Builder]:
    """Decorator that enters the builder of layers of these classes; options as of :class:`LayerEntry`."""

    def register(build: Builder) -> Builder:
        for kind in kinds:
            LAYERS[kind] = LayerEntry(build, **options)
        return build

    return register


# == Order of entries ==


def keras_order(x: Tensor) -> Tensor:
    """A tensor with its channels last, as Keras has images."""
    return x.movedim(1, -1) if x.ndim > 3 else x


def torch_order(x: Tensor) -> Tensor:
    """A tensor of Keras with its channels second."""
    return x.movedim(-1, 1) if x.ndim > 3 else x


def in_order(value: Value) -> Function:
    """What brings entries that were flattened in the order of PyTorch into that of Keras."""
    sizes = value.unordered
    return Function(lambda x: x.reshape(-1, *sizes).movedim(1, -1).flatten(1))


class ChannelsLast(nn.Module):
    """A module that reads channels in the last axis, called with them in the second; or the other way round."""

    def __init__(self, inner: nn.Module, *, outer: int, inner_axis: int) -> None:
        super().__init__()
        self.inner, self.outer, self.axis = inner, outer, inner_axis

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.inner(x.movedim(self.outer, self.axis)).movedim(self.axis, self.outer)
        return result


_BLANKS: dict[tuple[Any, ...], nn.Module] = {}
_BLANKS_KEPT = 1024


def blank(kind: type[nn.Module], *settings: Any) -> nn.Module:
    """A module without weights, to be filled; drawing them takes longer than reading a small file."""
    if (kind, *settings) not in _BLANKS:
        if len(_BLANKS) == _BLANKS_KEPT:
            _BLANKS.clear()
        _BLANKS[kind, *settings] = kind(*settings, device="meta")
    module = copy.copy(_BLANKS[kind, *settings])
    module._parameters, module._buffers = dict(module._parameters), dict(module._buffers)
    return module


def filled(module: nn.Module, **tensors: Tensor | None) -> nn.Module:
    """A module with these as its parameters, and as its statistics where they are buffers."""
    for name, tensor in tensors.items():
        if name in module._buffers:
            module._buffers[name] = tensor
        else:
            module._parameters[name] = None if tensor is None else nn.Parameter(tensor, requires_grad=False)
    return module


def with_channels(module: nn.Module, x: Tensor, layer: KerasLayer) -> nn.Module:
    """A module of PyTorch that reads channels second, for a tensor of any layout."""
    is_sequence = x.ndim == 3 and not layer.channels_first
    return ChannelsLast(module, outer=-1, inner_axis=1) if is_sequence else module


# == Windows ==


def sizes_of(value: Any, dims: int) -> tuple[int, ...]:
    """A size for every dimension, from one for all or one for each."""
    return tuple(value) if isinstance(value, Sequence) else (value,) * dims


def padding_of(
    layer: KerasLayer, x: Tensor, kernel: Sequence[int], strides: Sequence[int], dilation: Sequence[int]
) -> list[tuple[int, int]]:
    """What Keras pads every axis of positions with, before and behind."""
    kind = layer.config.get("padding", "valid")
    reach = [(k - 1) * d for k, d in zip(kernel, dilation, strict=True)]
    if kind == "valid":
        return [(0, 0)] * len(kernel)
    if kind == "causal":
        return [(reach[0], 0)]
    layer.refuse(padding="same")
    positions = x.shape[2:] if x.ndim > 3 or layer.channels_first else x.shape[1:-1]
    totals = [max((-(-n // s) - 1) * s + r + 1 - n, 0) for n, s, r in zip(positions, strides, reach, strict=True)]
    return [(total // 2, total - total // 2) for total in totals]


def pad_steps(layer: KerasLayer, x: Tensor, pads: list[tuple[int, int]], value: float) -> tuple[list[Step], tuple[int, ...]]:
    """Padding as a step of its own where it is not symmetric, and what is left for the layer itself."""
    if all(before == behind for before, behind in pads):
        return [], tuple(before for before, _ in pads)
    flat = [size for pair in reversed(pads) for size in pair]
    if x.ndim == 3 and not layer.channels_first:
        flat = [0, 0, *flat]
    return [Step(Function(lambda x: functional.pad(x, flat, value=value)))], (0,) * len(pads)


def channels_of(layer: KerasLayer, x: Tensor) -> int:
    """Number of channels of a tensor."""
    return x.shape[layer.axis(1 if layer.channels_first else -1, x.ndim)]
