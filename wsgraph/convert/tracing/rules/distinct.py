"""Which operators make numbers that are distinct, so that the largest of them are the same in every order."""

from __future__ import annotations

from wsgraph.convert.tracing.labels import Value, aligned
from wsgraph.convert.tracing.rules.table import Call

__all__ = ["distinct_numbers"]

# What takes distinct numbers to distinct ones, but for rounding.
_INJECTIVE = {
    *("sigmoid", "tanh", "exp", "atan", "softmax", "_softmax", "log_softmax", "_log_softmax", "log_sigmoid", "softplus", "neg"),
    *("contiguous", "to", "_to_copy", "clone", "dropout", "layer_norm", "rms_norm"),
}


def distinct_numbers(name: str, call: Call) -> frozenset[int]:
    """Dimensions along which the entries of a result are distinct: those of a layer with biases, or of one that reads such numbers."""
    (first, *rest), last = call.tensors or [Value(())], len(call.shapes[0]) - 1
    if name in ("linear", "addmm", "baddbmm", "matmul", "mm"):
        bias, read = (call["bias"], first) if name == "linear" else (first, None) if "add" in name else (None, first)
        biased = isinstance(bias, Value) and bias.unread is not None and bias.along(bias.ndim - 1) is not None
        reads = read is not None and (read.is_input or read.ndim - 1 in read.distinct) and any(value.has_pins for value in rest)
        return frozenset({last}) if biased or reads else frozenset()
    if name == "add" and any(value.unread is not None for value in rest):
        bias = aligned(rest[0], call.shapes[0])
        return frozenset(label.dims[0] for label in bias.labels if len(label.dims) == 1)
    if name in _INJECTIVE and len(first.shape) == last + 1:
        dims = call["dim"]
        return first.distinct if dims is None else first.distinct & {dims % (last + 1)}
    if name in ("mul", "div", "sub") and not rest and call["other"]:
        return first.distinct
    return frozenset()
