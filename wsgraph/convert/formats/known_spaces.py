"""Spaces of modules that were traced before: collections have few architectures."""

from __future__ import annotations

import hashlib
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wsgraph.convert.tracing import TRACED_OPERATORS, TraceWarning, trace
from wsgraph.space import WeightSpace

__all__ = ["traced_once"]

_KNOWN: OrderedDict[bytes, tuple[WeightSpace, list[Warning]]] = OrderedDict()
_KEPT = 512


def traced_once(module: nn.Module, inputs: Iterable[Tensor], architecture: Any) -> WeightSpace:
    """The space of a module: that of an earlier one where both are the same but for their weights.

    Args:
        module: The module.
        inputs: What it is called with.
        architecture: All that it computes but for its weights, as numbers, texts, arrays and
            containers of them.

    Example:
        >>> import torch
        >>> first, second = (torch.nn.Linear(2, 3) for _ in range(2))
        >>> traced_once(first, [torch.ones(2, 2)], "linear") is traced_once(second, [torch.ones(2, 2)], "linear")
        True
        >>> traced_once(torch.nn.Linear(2, 4), [torch.ones(2, 2)], "linear") is traced_once(first, [torch.ones(2, 2)], "linear")
        False
    """
    inputs = tuple(inputs)
    shapes = [(key, tuple(tensor.shape), tensor.dtype) for key, tensor in module.state_dict().items()]
    digest = hashlib.sha256()
    # What is registered later may know an operator that was unknown before.
    rules = [id(rule) for rule in TRACED_OPERATORS.values()]
    _add(digest, [type(module).__qualname__, shapes, [(tuple(x.shape), x.dtype) for x in inputs], rules, architecture])
    key = digest.digest()
    if key not in _KNOWN:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            space = trace(module, *inputs)
        _KNOWN[key] = space, [warning.message for warning in caught if isinstance(warning.message, TraceWarning)]
        while len(_KNOWN) > _KEPT:
            _KNOWN.popitem(last=False)
    _KNOWN.move_to_end(key)
    space, messages = _KNOWN[key]
    for message in messages:
        warnings.warn(message, stacklevel=2)
    return space


def _add(digest: Any, value: Any) -> None:
    """Add a value to a digest, so that no two that differ add the same bytes."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray | np.generic):
        digest.update(f"a{value.dtype.str}{value.shape};".encode())
        digest.update(value.tobytes())
    elif isinstance(value, Mapping):
        digest.update(f"m{len(value)};".encode())
        for key, entry in value.items():
            _add(digest, key)
            _add(digest, entry)
    elif isinstance(value, list | tuple):
        digest.update(f"l{len(value)};".encode())
        for entry in value:
            _add(digest, entry)
    elif value is not None and not isinstance(value, str | bytes | int | float | torch.dtype):
        raise TypeError(f"Expected an architecture as numbers, texts and arrays (got {type(value).__name__}).")
    else:
        text = repr(value)
        digest.update(f"v{len(text)};{text}".encode())
