"""Activations of Keras as modules of PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["ACTIVATIONS", "Function", "activation_module"]


class Function(nn.Module):
    """A function without weights as a module."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


def _hard_sigmoid(x: Tensor) -> Tensor:
    """What Keras 2 called so; Keras 3 means another function."""
    return torch.clamp(0.2 * x + 0.5, 0.0, 1.0)


# By Keras's names; those that depend on an axis or a version are made below.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "celu": nn.CELU,
    "elu": nn.ELU,
    "exponential": lambda: Function(torch.exp),
    "gelu": nn.GELU,
    "hard_shrink": nn.Hardshrink,
    "hard_silu": nn.Hardswish,
    "hard_swish": nn.Hardswish,
    "hard_tanh": nn.Hardtanh,
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
    "log_sigmoid": nn.LogSigmoid,
    "mish": nn.Mish,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "selu": nn.SELU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "soft_shrink": nn.Softshrink,
    "softplus": nn.Softplus,
    "softsign": nn.Softsign,
    "swish": nn.SiLU,
    "tanh": nn.Tanh,
    "tanh_shrink": nn.Tanhshrink,
}
_ALONG_AXIS: dict[str, Callable[[int], nn.Module]] = {"softmax": nn.Softmax, "log_softmax": nn.LogSoftmax}


def activation_module(name: Any, last_axis: int, version: int) -> nn.Module | None:
    """The activation of a layer as a module, ``None`` for none.

    Args:
        name: What the configuration says.
        last_axis: The axis of the tensor that Keras has last.
        version: Keras's major version.

    Raises:
        ValueError: If the activation is not known.
    """
    if name in (None, "linear"):
        return None
    if isinstance(name, str):
        if name in ACTIVATIONS:
            return ACTIVATIONS[name]()
        if name in _ALONG_AXIS:
            return _ALONG_AXIS[name](last_axis)
        if name == "hard_sigmoid":
            return Function(_hard_sigmoid) if version < 3 else Function(functional.hardsigmoid)
    shown = name.get("config", name) if isinstance(name, dict) else name
    raise ValueError(
        f"the activation {shown!r} is not known. What Keras itself does not define is code that the file only names: export the model "
        "as ONNX, or build it in PyTorch and trace it."
    )
