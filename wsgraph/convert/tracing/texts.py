"""What an operator of a program is called among the operators of a neuron group."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["UnsupportedError", "number", "operator_text", "square"]


class UnsupportedError(Exception):
    """The network has something that layers cannot express."""


def number(value: float) -> str:
    """A number as operators are written with."""
    return repr(float(value)).removesuffix(".0")


def square(value: Any) -> int:
    """One number for all dimensions."""
    numbers = set(value) if isinstance(value, (list, tuple)) else {value}
    if len(numbers) != 1:
        raise UnsupportedError
    return int(numbers.pop())


def _pool(name: str) -> Callable[[dict[str, Any]], str]:
    def text(arguments: dict[str, Any]) -> str:
        kernel, padding = square(arguments["kernel_size"]), square(arguments.get("padding") or 0)
        stride = square(arguments.get("stride") or kernel)
        outside = name == "avg_pool" and padding and not arguments.get("count_include_pad", True)
        if square(arguments.get("dilation") or 1) != 1 or arguments.get("ceil_mode") or arguments.get("divisor_override") or outside:
            raise UnsupportedError
        return (
            f"{name}({kernel},{stride},{padding})" if padding else f"{name}({kernel},{stride})" if stride != kernel else f"{name}({kernel})"
        )

    return text


def _global(name: str) -> Callable[[dict[str, Any]], str]:
    def text(arguments: dict[str, Any]) -> str:
        if square(arguments["output_size"]) != 1:
            raise UnsupportedError
        return name

    return text


def _if_default(name: str, **defaults: Any) -> Callable[[dict[str, Any]], str]:
    def text(arguments: dict[str, Any]) -> str:
        if any(arguments.get(key, value) != value for key, value in defaults.items()):
            raise UnsupportedError
        return name

    return text


# What an operator of the program is called among the operators of a group.
_TEXTS: dict[str, Callable[[dict[str, Any]], str]] = {
    **{
        name: _if_default(name)
        for name in ("relu", "tanh", "erf", "softsign", "relu6", "silu", "selu", "sigmoid", "hardswish", "hardsigmoid", "mish")
    },
    "leaky_relu": lambda a: f"leaky_relu({number(a['negative_slope'])})" if a.get("negative_slope", 0.01) != 0.01 else "leaky_relu",
    "hardtanh": lambda a: f"hardtanh({number(a.get('min_val', -1))},{number(a.get('max_val', 1))})",
    "gelu": _if_default("gelu", approximate="none"),
    "elu": _if_default("elu", alpha=1.0, scale=1.0, input_scale=1.0),
    "softplus": _if_default("softplus", beta=1.0, threshold=20.0),
    "softmax": _if_default("softmax", dim=1),
    "log_softmax": _if_default("log_softmax", dim=1),
    **{f"max_pool{d}d": _pool("max_pool") for d in (1, 2, 3)},
    **{f"avg_pool{d}d": _pool("avg_pool") for d in (1, 2, 3)},
    **{f"adaptive_avg_pool{d}d": _global("global_avg_pool") for d in (1, 2, 3)},
    **{f"adaptive_max_pool{d}d": _global("global_max_pool") for d in (1, 2, 3)},
}


def operator_text(name: str, arguments: Mapping[str, Any]) -> str:
    """The operator as a weight space writes it.

    Raises:
        UnsupportedError: If it has no name there, or options that cannot be written.
    """
    if name not in _TEXTS:
        raise UnsupportedError
    return _TEXTS[name]({key: value for key, value in arguments.items() if value is not None})
