"""Spaces of modules that were traced before: collections have few architectures."""

from __future__ import annotations

import hashlib
import marshal
import warnings
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

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
        architecture: All that it computes but for its weights, as numbers, texts, bytes and lists,
            tuples and dicts of them.

    Example:
        >>> import torch
        >>> first, second, wide = (torch.nn.Linear(2, size).eval() for size in (3, 3, 4))
        >>> space = traced_once(first, [torch.ones(2, 2)], "linear")
        >>> traced_once(second, [torch.ones(2, 2)], "linear") is space, traced_once(wide, [torch.ones(2, 2)], "linear") is space
        (True, False)
    """
    inputs = tuple(inputs)
    shapes = [(key, tuple(tensor.shape), str(tensor.dtype)) for key, tensor in module.state_dict().items()]
    called = [(tuple(x.shape), str(x.dtype)) for x in inputs]
    # What is registered later may know an operator that was unknown before.
    rules = hash(tuple(map(id, TRACED_OPERATORS.values())))
    # Equal values are equal bytes in the first version of marshal, which later ones do not promise.
    text = marshal.dumps([type(module).__qualname__, shapes, called, rules, architecture], 0)
    key = hashlib.sha256(text).digest()
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
