"""Layouts of weights: those of PyTorch, and those of libraries that store ``[in, out]``."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from wsgraph.space.weight_space import WeightSpace

__all__ = ["LAYOUTS", "check_layout", "flattened_channels_first", "turned"]

LAYOUTS = ("out_in", "in_out")
"""``[out, in, *kernel]`` as in PyTorch, and ``[*kernel, in, out]`` as in Keras, Flax, Haiku and scikit-learn."""

_KERNEL = re.compile(r"(?<![a-z])(?:kernel|coefs?_?|w)(?=$|[^a-zA-Z])", re.IGNORECASE)


def check_layout(layout: str) -> None:
    """Raise unless a layout is known."""
    if layout not in LAYOUTS:
        raise ValueError(f"Expected 'layout' to be {' or '.join(map(repr, LAYOUTS))} (got {layout!r}).")


def turned(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors ``[*kernel, in, out]`` as ``[out, in, *kernel]``, whose keys say weight in place of kernel.

    Raises:
        ValueError: If two keys would become one.

    Example:
        >>> import torch
        >>> {key: list(tensor.shape) for key, tensor in turned({"dense/kernel": torch.ones(3, 2), "dense/bias": torch.ones(2)}).items()}
        {'dense/weight': [2, 3], 'dense/bias': [2]}
    """
    result: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        head, mark, last = key.rpartition("/" if "/" in key else ".")
        name = f"{head}{mark}{_KERNEL.sub('weight', last)}"
        if name in result:
            raise ValueError(f"{key!r} and another key both become {name!r}: rename one of them.")
        result[name] = tensor.movedim((-1, -2), (0, 1)).contiguous() if tensor.ndim > 1 else tensor
    return result


def flattened_channels_first(space: WeightSpace, theta: Tensor) -> Tensor:
    """Weights whose columns lie as images with their channels last were flattened, in the order of the space."""
    tensors = space.unflatten(theta)
    changed = False
    for param in space.params:
        # A linear layer behind a flattening has an axis of positions that its shape lacks.
        if param.role == "weight" and len(param.axes) == len(param.shape) + 1:
            size, channels, positions = (axis.size for axis in param.axes)
            tensors[param.name] = tensors[param.name].reshape(size, positions, channels).transpose(1, 2).reshape(param.shape)
            changed = True
    return space.flatten(tensors) if changed else theta
