"""Layers of Keras without weights: activations, shapes, pooling, sums and other joints."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from wsgraph.convert.formats.keras.activations import Function
from wsgraph.convert.formats.keras.layer import (
    KerasLayer,
    Step,
    Value,
    keras_layer,
    keras_order,
    pad_steps,
    padding_of,
    sizes_of,
    torch_order,
    with_channels,
)

__all__: list[str] = []

# == Entry by entry ==


@keras_layer(
    "ActivityRegularization",
    "AlphaDropout",
    "Dropout",
    "GaussianDropout",
    "GaussianNoise",
    "Identity",
    "SpatialDropout1D",
    "SpatialDropout2D",
    "SpatialDropout3D",
    unordered=True,
)
def _nothing(layer: KerasLayer, inputs: list[Value]) -> list[Step]:
    """What does something during training alone."""
    return []


@keras_layer("Activation", unordered=True)
def _activation(layer: KerasLayer, inputs: list[Value]) -> list[Step]:
    return layer.activation(inputs[0].tensor.ndim)


@keras_layer("ReLU", unordered=True, activation=True)
def _relu(layer: KerasLayer, inputs: list[Value]) -> list[Step]:
    layer.refuse(threshold=0.0)
    limit, slope = layer.config.get("max_value"), layer.config.get("negative_slope") or 0.0
    if limit is None:
        return [Step(nn.LeakyReLU(slope) if slope else nn.ReLU())]
    if slope:
        raise ValueError(f"{layer.label} has a limit and a slope, which are not built here together. Export the model as ONNX.")
    return [Step(nn.ReLU6() if limit == 6 else nn.Hardtanh(0.0, float(limit)))]


@keras_layer("LeakyReLU", unordered=True, activation=True)
def _leaky_relu(layer: KerasLayer, inputs: list[Value]) -> list[Step]:
    # Keras 2 calls it alpha.
    return [Step(nn.LeakyReLU(float(layer.config.get("negative_slope", layer.config.get("alpha", 0.3)))))]


@keras_layer("ELU", unordered=True, activation=True)
def _elu(layer: KerasLayer, inputs: list[Value]) -> list[Step]:
    return [Step(nn.ELU(float(layer.config.get("alpha", 1.0))))]


@keras_layer("Softmax", activation=True)
def _softmax(layer: KerasLayer, inputs: list[Value]) -> list[Step]:
    axis = layer.config.get("axis", -1)
    if isinstance(axis, list):
        layer.refuse(axis=axis[:1])
        axis = axis[0]
    return [Step(nn.Softmax(layer.axis(axis, inputs[0].tensor.ndim)))]


@keras_layer("Rescaling")
def _rescaling(layer: KerasLayer, inputs: list[Value]) -> list[Step]:
    scale, offset = layer.config.get("scale", 1.0), layer.config.get("offset", 0.0)
    if not isinstance(scale, int | float) or not isinstance(offset, int | float):
        raise ValueError(f"{layer.label} has a scale or an offset per channel, which is not built here. Export the model as ONNX.")
    return [Step(Function(lambda x: x * scale + offset))]


# == Shapes ==


@keras_layer("Flatten", unordered=True)
def _flatten(layer: KerasLayer, inputs: list[Value]) -> list[Step]:
    (value,) = inputs
    x = value.tensor
    if value.unordered or x.ndim == 2:
        return []
    channels_first = layer.config.get("data_format") == "channels_first"
    # Keras reads channels last, whatever the layout of the images is, if the layer is told of it.
    if x.ndim > 3 and channels_first == layer.channels_first:
        layer.unordered = tuple(x.shape[1:]) if x.shape[1] > 1 and x.shape[2:].numel() > 1 else ()
    elif channels_first:
        return [Step(Function(lambda x: x.movedim(1, -1).flatten(1)))]
    return [Step(nn.Flatten())]


@keras_layer("Reshape")
def _reshape(layer: KerasLayer, inputs: list[Value]) -> list[Step]:
    example = inputs[0].tensor[0].flatten()
    shape = tuple(example.reshape(tuple(layer.config["target_shape"])).shape)
    if layer.channels_first:
        return [Step(Function(lambda x: x.reshape(-1, *shape)))]
    return [Step(Function(lambda x: torch_order(keras_order(x).reshape(-1, *shape))))]


@keras_layer("Permute")
def _permute(layer: KerasLayer, inputs: list[Value]) -> list[Step]:
    order = (0, *layer.config["dims"])
    if layer.channels_first:
        return [Step(Function(lambda x: x.permute(order)))]
    return [Step(Function(lambda x: torch_order(keras_order(x).permute(order))))]


@keras_layer("RepeatVector")
def _repeat(layer: KerasLayer, inputs: list[Value]) -> list[Step]:
    count = layer.config["n"]
    return [Step(Function(lambda x: x[:, None].expand(-1, count, -1)))]


@keras_layer("ZeroPadding2D")
def _zero_padding(layer: KerasLayer, inputs: list[Value]) -> list[Step]:
    padding = layer.config["padding"]
    (top, bottom), (left, right) = [(side, side) if isinstance(side, int) else side for side in sizes_of(padding, 2)]
    return [Step(Function(lambda x: functional.pad(x, (left, right, top, bottom))))]


@keras_layer("Cropping2D")
def _cropping(layer: KerasLayer, inputs: list[Value]) -> list[Step]:
    cropping = layer.config["cropping"]
    (top, bottom), (left, right) = [(side, side) if isinstance(side, int) else side for side in sizes_of(cropping, 2)]
    height, width = inputs[0].tensor.shape[2:]
    return [Step(Function(lambda x: x[:, :, top : height - bottom, left : width - right]))]


@keras_layer("UpSampling2D")
def _upsampling(layer: KerasLayer, inputs: list[Value]) -> list[Step]:
    layer.refuse(interpolation="nearest")
    factors = tuple(float(size) for size in sizes_of(layer.config["size"], 2))
    return [Step(nn.Upsample(scale_factor=factors))]


# == Pooling ==


def _pooling(layer: KerasLayer, x: Tensor, kinds: dict[int, Any], value: float | None, **options: Any) -> list[Step]:
    dims = x.ndim - 2
    window = sizes_of(layer.config["pool_size"], dims)
    strides = sizes_of(layer.config.get("strides") or window, dims)
    pads = padding_of(layer, x, window, strides, [1] * dims)
    if value is None and any(before != behind for before, behind in pads):
        raise ValueError(
            f"{layer.label} averages with a padding of {pads}, of which backends of Keras have different ideas. Export the model as ONNX."
        )
    steps, left = pad_steps(layer, x, pads, value or 0.0)
    return [*steps, Step(with_channels(kinds[dims](window, strides, left, **options), x, layer))]


@keras_layer("MaxPooling1D", "MaxPooling2D", "MaxPooling3D", "MaxPool1D", "MaxPool2D", "MaxPool3D")
def _max_pooling(layer: KerasLayer, inputs: list[Value]) -> list[Step]:
    return _pooling(layer, inputs[0].tensor, {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}, -torch.inf)


@keras_layer("AveragePooling1D", "AveragePooling2D", "AveragePooling3D", "AvgPool1D", "AvgPool2D", "AvgPool3D")
def _average_pooling(layer: KerasLayer, inputs: list[Value]) -> list[Step]:
    x = inputs[0].tensor
    return _pooling(layer, x, {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}, None, count_include_pad=False)


def _global_pooling(layer: KerasLayer, x: Tensor, reduce: Callable[..., Tensor]) -> list[Step]:
    axes = tuple(range(2, x.ndim)) if x.ndim > 3 or layer.channels_first else (1,)
    keep = bool(layer.config.get("keepdims", False))
    return [Step(Function(lambda x: reduce(x, axes, keepdim=keep)))]


@keras_layer("GlobalAveragePooling1D", "GlobalAveragePooling2D", "GlobalAveragePooling3D")
def _global_average(layer: KerasLayer, inputs: list[Value]) -> list[Step]:
    x = inputs[0].tensor
    if x.ndim == 4 and not layer.config.get("keepdims"):
        return [Step(nn.AdaptiveAvgPool2d(1)), Step(nn.Flatten())]
    return _global_pooling(layer, x, torch.mean)


@keras_layer("GlobalMaxPooling1D", "GlobalMaxPooling2D", "GlobalMaxPooling3D")
def _global_max(layer: KerasLayer, inputs: list[Value]) -> list[Step]:
    x = inputs[0].tensor
    if x.ndim == 4 and not layer.config.get("keepdims"):
        return [Step(nn.AdaptiveMaxPool2d(1)), Step(nn.Flatten())]
    return _global_pooling(layer, x, torch.amax)


# == Several inputs ==


def _joint(kinds: tuple[str, ...], join: Callable[[Tensor, Tensor], Tensor]) -> None:
    @keras_layer(*kinds, operation=True)
    def build(layer: KerasLayer, inputs: list[Value]) -> list[Step]:
        if len({value.tensor.ndim for value in inputs}) > 1:
            raise ValueError(f"{layer.label} joins tensors of different dimensions. Export the model as ONNX.")
        return [Step(Function(lambda *tensors: functools.reduce(join, tensors)))]


_joint(("Add",), operator.add)
_joint(("Subtract",), operator.sub)
_joint(("Multiply",), operator.mul)
_joint(("Maximum",), torch.maximum)
_joint(("Minimum",), torch.minimum)


@keras_layer("Average")
def _average(layer: KerasLayer, inputs: list[Value]) -> list[Step]:
    count = len(inputs)
    return [Step(Function(lambda *tensors: functools.reduce(operator.add, tensors) / count))]


@keras_layer("Concatenate")
def _concatenate(layer: KerasLayer, inputs: list[Value]) -> list[Step]:
    axis = layer.axis(layer.config.get("axis", -1), inputs[0].tensor.ndim)
    return [Step(Function(lambda *tensors: torch.cat(tensors, axis)))]
