"""Layers of Keras that have weights: dense, convolutions, norms, embeddings, recurrent."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from wsgraph.convert.formats.keras.activations import Function
from wsgraph.convert.formats.keras.layer import (
    ChannelsLast,
    KerasLayer,
    Step,
    Value,
    blank,
    channels_of,
    filled,
    keras_layer,
    pad_steps,
    padding_of,
    sizes_of,
    with_channels,
)

__all__: list[str] = []

# == Dense layers and convolutions ==


@keras_layer("Dense", unordered=True)
def _dense(layer: KerasLayer, inputs: list[Value]) -> list[Step]:
    (value,) = inputs
    x, units = value.tensor, layer.config["units"]
    axis = layer.axis(-1, x.ndim)
    layer.refuse(lora_rank=None, quantization_config=None)
    kernel, *bias = layer.weights((x.shape[axis], units), (units,) if layer.config.get("use_bias", True) else None)
    if value.unordered:
        channels, *positions = value.unordered
        kernel = kernel.reshape(*positions, channels, units).movedim(-2, 0).reshape(-1, units)
    module = filled(blank(nn.Linear, kernel.shape[0], units, bool(bias)), weight=kernel.T.contiguous(), bias=bias[0] if bias else None)
    if axis != x.ndim - 1:
        module = ChannelsLast(module, outer=axis, inner_axis=-1)
    return [Step(module), *layer.activation(x.ndim)]


_CONVOLUTIONS: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def _convolution(
    layer: KerasLayer, x: Tensor, kernel: Tensor, bias: Tensor | None, groups: int, name: str = "", **changed: Any
) -> list[Step]:
    """A convolution with a kernel ``[out, in, *kernel]``."""
    dims = kernel.ndim - 2
    strides = changed.get("strides", sizes_of(layer.config.get("strides", 1), dims))
    dilation = changed.get("dilation", sizes_of(layer.config.get("dilation_rate", 1), dims))
    pads = padding_of(layer, x, kernel.shape[2:], strides, dilation)
    steps, left = pad_steps(layer, x, pads, 0.0)
    channels = (kernel.shape[1] * groups, kernel.shape[0])
    module = blank(_CONVOLUTIONS[dims], *channels, tuple(kernel.shape[2:]), strides, left, dilation, groups, bias is not None)
    return [*steps, Step(with_channels(filled(module, weight=kernel, bias=bias), x, layer), name)]


@keras_layer("Conv1D", "Conv2D", "Conv3D", "Convolution1D", "Convolution2D", "Convolution3D")
def _conv(layer: KerasLayer, inputs: list[Value]) -> list[Step]:
    x = inputs[0].tensor
    dims, filters, groups = x.ndim - 2, layer.config["filters"], layer.config.get("groups", 1)
    layer.refuse(lora_rank=None, quantization_config=None)
    shape = (*sizes_of(layer.config["kernel_size"], dims), channels_of(layer, x) // groups, filters)
    kernel, *bias = layer.weights(shape, (filters,) if layer.config.get("use_bias", True) else None)
    turned = kernel.movedim((-1, -2), (0, 1)).contiguous()
    return [*_convolution(layer, x, turned, bias[0] if bias else None, groups), *layer.activation(x.ndim)]


def _by_channel(kernel: Tensor) -> Tensor:
    """The kernel ``[*kernel, in, multiplier]`` of a depthwise convolution as ``[in * multiplier, 1, *kernel]``."""
    return kernel.movedim((-2, -1), (0, 1)).flatten(0, 1)[:, None].contiguous()


@keras_layer("DepthwiseConv1D", "DepthwiseConv2D")
def _depthwise(layer: KerasLayer, inputs: list[Value]) -> list[Step]:
    x = inputs[0].tensor
    channels, several = channels_of(layer, x), layer.config.get("depth_multiplier", 1)
    shape = (*sizes_of(layer.config["kernel_size"], x.ndim - 2), channels, several)
    kernel, *bias = layer.weights(shape, (channels * several,) if layer.config.get("use_bias", True) else None)
    return [*_convolution(layer, x, _by_channel(kernel), bias[0] if bias else None, channels), *layer.activation(x.ndim)]


@keras_layer("SeparableConv1D", "SeparableConv2D", "SeparableConvolution2D")
def _separable(layer: KerasLayer, inputs: list[Value]) -> list[Step]:
    x = inputs[0].tensor
    dims, channels, filters, several = x.ndim - 2, channels_of(layer, x), layer.config["filters"], layer.config.get("depth_multiplier", 1)
    shapes = (*sizes_of(layer.config["kernel_size"], dims), channels, several), (*[1] * dims, channels * several, filters)
    kernel, pointwise, *bias = layer.weights(*shapes, (filters,) if layer.config.get("use_bias", True) else None)
    ones = (1,) * dims
    turned = pointwise.movedim((-1, -2), (0, 1)).contiguous()
    depthwise = _convolution(layer, x, _by_channel(kernel), None, channels, "depthwise")
    with torch.no_grad():
        for step in depthwise:
            x = step.module(x)
    pointwise_steps = _convolution(layer, x, turned, bias[0] if bias else None, 1, "pointwise", strides=ones, dilation=ones)
    return [*depthwise, *pointwise_steps, *layer.activation(x.ndim)]


@keras_layer("Conv2DTranspose", "Convolution2DTranspose")
def _transposed(layer: KerasLayer, inputs: list[Value]) -> list[Step]:
    x = inputs[0].tensor
    layer.refuse(output_padding=None, dilation_rate=[1, 1])
    filters, size, strides = layer.config["filters"], sizes_of(layer.config["kernel_size"], 2), sizes_of(layer.config["strides"], 2)
    shape = (*size, filters, channels_of(layer, x))
    kernel, *bias = layer.weights(shape, (filters,) if layer.config.get("use_bias", True) else None)
    turned = kernel.movedim((-1, -2), (0, 1)).contiguous()
    if layer.config.get("padding", "valid") == "valid":
        cuts = [(0, min(k - s, 0)) for k, s in zip(size, strides, strict=True)]
    else:
        layer.refuse(padding="same")
        cuts = [((k - s) // 2 if k > s else 0, (k - s) - (k - s) // 2 if k > s else k - s) for k, s in zip(size, strides, strict=True)]
    # PyTorch cuts both ends alike, and adds to the end what a kernel smaller than the stride lacks.
    alike = all(before == behind or behind < 0 for before, behind in cuts)
    padding = (cuts[0][0], cuts[1][0]) if alike else (0, 0)
    more = max(-cuts[0][1], 0), max(-cuts[1][1], 0)
    module = nn.ConvTranspose2d(
        turned.shape[0], filters, (size[0], size[1]), (strides[0], strides[1]), padding, more, bias=bool(bias), device="meta"
    )
    steps = [Step(filled(module, weight=turned, bias=bias[0] if bias else None))]
    if not alike:
        (top, bottom), (left, right) = cuts
        with torch.no_grad():
            height, width = module(x).shape[2:]
        steps.append(Step(Function(lambda x: x[:, :, top : height - max(bottom, 0), left : width - max(right, 0)])))
    return [*steps, *layer.activation(x.ndim)]


# == Norms ==


class _Standardized(nn.Module):
    """Entries with a mean and a variance that were measured before training."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: Tensor, variance: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", variance.sqrt().clamp(min=1e-7))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.deviation


@keras_layer("Normalization")
def _normalization(layer: KerasLayer, inputs: list[Value]) -> list[Step]:
    x = inputs[0].tensor
    layer.refuse(invert=False)
    axes = layer.config.get("axis", -1)
    if [axis % x.ndim for axis in (axes if isinstance(axes, (list, tuple)) else [axes])] != [x.ndim - 1]:
        raise ValueError(f"{layer.label} normalises along {axes}, not along the last axis alone. Export the model as ONNX.")
    count = x.shape[layer.axis(-1, x.ndim)]
    given = [layer.config.get(name) for name in ("mean", "variance")]
    if None in given:
        mean, variance = layer.weights((count,), (count,), (), kinds="fiu")[:2]
    else:
        mean, variance = (torch.tensor(value, dtype=layer.dtype).reshape(-1).expand(count).clone() for value in given)
    shape = (count, *[1] * (x.ndim - 2)) if layer.axis(-1, x.ndim) == 1 and x.ndim > 2 else (count,)
    return [Step(_Standardized(mean.reshape(shape), variance.reshape(shape)))]


@keras_layer("BatchNormalization")
def _batch_norm(layer: KerasLayer, inputs: list[Value]) -> list[Step]:
    x = inputs[0].tensor
    last = channels_of(layer, x)
    axis = layer.config.get("axis", -1)
    axis = layer.axis(axis[0] if isinstance(axis, list) else axis, x.ndim)
    layer.refuse(renorm=False)
    if axis != layer.axis(1 if layer.channels_first else -1, x.ndim):
        raise ValueError(f"{layer.label} normalises the axis {layer.config['axis']}, which are no channels. Export the model as ONNX.")
    scale, center = ((last,) if layer.config.get(name, True) else None for name in ("scale", "center"))
    stored = iter(layer.weights(scale, center, (last,), (last,)))
    weight, bias = next(stored) if scale else None, next(stored) if center else None
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[x.ndim]
    module = kind(last, eps=layer.config.get("epsilon", 1e-3), device="meta")
    filled(module, weight=weight, bias=bias, running_mean=next(stored), running_var=next(stored), num_batches_tracked=None)
    return [Step(with_channels(module, x, layer))]


@keras_layer("LayerNormalization")
def _layer_norm(layer: KerasLayer, inputs: list[Value]) -> list[Step]:
    x = inputs[0].tensor
    axes = layer.config.get("axis", -1)
    layer.refuse(rms_scaling=False)
    if [axis % x.ndim for axis in (axes if isinstance(axes, list) else [axes])] != [x.ndim - 1]:
        raise ValueError(f"{layer.label} normalises the axes {axes}, not the last alone. Export the model as ONNX.")
    axis = layer.axis(-1, x.ndim)
    shape = (x.shape[axis],)
    scale, center = (shape if layer.config.get(name, True) else None for name in ("scale", "center"))
    stored = iter(layer.weights(scale, center))
    module = nn.LayerNorm(shape, eps=layer.config.get("epsilon", 1e-3), device="meta")
    filled(module, weight=next(stored) if scale else None, bias=next(stored) if center else None)
    return [Step(module if axis == x.ndim - 1 else ChannelsLast(module, outer=axis, inner_axis=-1))]


@keras_layer("RMSNormalization")
def _rms_norm(layer: KerasLayer, inputs: list[Value]) -> list[Step]:
    x = inputs[0].tensor
    axes = layer.config.get("axis", -1)
    if [axis % x.ndim for axis in (axes if isinstance(axes, list) else [axes])] != [x.ndim - 1]:
        raise ValueError(f"{layer.label} normalises the axes {axes}, not the last alone. Export the model as ONNX.")
    axis = layer.axis(-1, x.ndim)
    (scale,) = layer.weights((x.shape[axis],))
    module = filled(nn.RMSNorm(x.shape[axis], eps=layer.config.get("epsilon", 1e-6), device="meta"), weight=scale)
    return [Step(module if axis == x.ndim - 1 else ChannelsLast(module, outer=axis, inner_axis=-1))]


@keras_layer("GroupNormalization")
def _group_norm(layer: KerasLayer, inputs: list[Value]) -> list[Step]:
    x = inputs[0].tensor
    channels, axis = channels_of(layer, x), layer.config.get("axis", -1)
    if layer.axis(axis, x.ndim) != layer.axis(1 if layer.channels_first else -1, x.ndim):
        raise ValueError(f"{layer.label} has groups along the axis {axis}, not of channels. Export the model as ONNX.")
    groups = layer.config.get("groups", 32)
    scale, center = ((channels,) if layer.config.get(name, True) else None for name in ("scale", "center"))
    stored = iter(layer.weights(scale, center))
    module = nn.GroupNorm(channels if groups == -1 else groups, channels, layer.config.get("epsilon", 1e-3), device="meta")
    filled(module, weight=next(stored) if scale else None, bias=next(stored) if center else None)
    return [Step(with_channels(module, x, layer))]


@keras_layer("PReLU", activation=True)
def _prelu(layer: KerasLayer, inputs: list[Value]) -> list[Step]:
    x = inputs[0].tensor
    channels = channels_of(layer, x)
    shared = {axis % x.ndim for axis in layer.config.get("shared_axes") or ()}
    if shared != set(range(1, x.ndim - 1)) or layer.channels_first:
        raise ValueError(f"{layer.label} has a slope per position, not per channel. Export the model as ONNX.")
    (slopes,) = layer.weights((*[1] * (x.ndim - 2), channels))
    module = filled(nn.PReLU(channels, device="meta"), weight=slopes.flatten())
    return [Step(with_channels(module, x, layer))]


# == Sequences ==


@keras_layer("Embedding")
def _embedding(layer: KerasLayer, inputs: list[Value]) -> list[Step]:
    layer.refuse(mask_zero=False, lora_rank=None, quantization_config=None)
    count, size = layer.config["input_dim"], layer.config["output_dim"]
    (table,) = layer.weights((count, size))
    return [Step(filled(nn.Embedding(count, size, device="meta"), weight=table))]


class _WholeOrLast(nn.Module):
    """A recurrent module that returns its outputs at all steps, or at the last."""

    def __init__(self, rnn: nn.Module, whole: bool) -> None:
        super().__init__()
        self.rnn, self.whole = rnn, whole

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.rnn(x)[0]
        return result if self.whole else result[:, -1]


def _recurrent(layer: KerasLayer, x: Tensor, module: nn.RNNBase, gates: list[int], double: bool = False) -> list[Step]:
    """A recurrent layer whose gates PyTorch has in this order; ``double`` with a bias of its own for the state."""
    layer.refuse(return_state=False, go_backwards=False, stateful=False, time_major=False, zero_output_for_mask=False)
    size, inputs, has_bias = module.hidden_size, x.shape[-1], layer.config.get("use_bias", True)
    count = len(gates) * size
    bias_shape = ((2, count) if double else (count,)) if has_bias else None
    # Keras 3 keeps the weights in the cell of the layer, Keras 2 in the layer.
    inner = "cell" if layer.store.arrays("cell") else ""
    kernel, state, *bias = layer.weights((inputs, count), (size, count), bias_shape, inner=inner)

    def turned(rows: Tensor) -> Tensor:
        return rows.reshape(len(gates), size, -1)[gates].reshape(rows.shape).contiguous()

    tensors = {"weight_ih_l0": turned(kernel.T), "weight_hh_l0": turned(state.T)}
    if bias:
        first, second = (bias[0][0], bias[0][1]) if double else (bias[0], torch.zeros(count, dtype=bias[0].dtype))
        tensors |= {"bias_ih_l0": turned(first), "bias_hh_l0": turned(second)}
    for name, tensor in tensors.items():
        setattr(module, name, nn.Parameter(tensor, requires_grad=False))
    return [Step(_WholeOrLast(module, bool(layer.config.get("return_sequences"))))]


@keras_layer("LSTM")
def _lstm(layer: KerasLayer, inputs: list[Value]) -> list[Step]:
    x = inputs[0].tensor
    layer.refuse(activation="tanh", recurrent_activation="sigmoid")
    module = nn.LSTM(x.shape[-1], layer.config["units"], bias=layer.config.get("use_bias", True), batch_first=True)
    return _recurrent(layer, x, module, [0, 1, 2, 3])


@keras_layer("GRU")
def _gru(layer: KerasLayer, inputs: list[Value]) -> list[Step]:
    x = inputs[0].tensor
    layer.refuse(activation="tanh", recurrent_activation="sigmoid", reset_after=True)
    module = nn.GRU(x.shape[-1], layer.config["units"], bias=layer.config.get("use_bias", True), batch_first=True)
    return _recurrent(layer, x, module, [1, 0, 2], double=True)


@keras_layer("SimpleRNN")
def _simple_rnn(layer: KerasLayer, inputs: list[Value]) -> list[Step]:
    x = inputs[0].tensor
    layer.refuse(activation="tanh")
    module = nn.RNN(x.shape[-1], layer.config["units"], bias=layer.config.get("use_bias", True), batch_first=True)
    return _recurrent(layer, x, module, [0])
