"""Flax files: weights by name, as ``flax.serialization`` writes them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wsgraph.convert.errors import CheckpointError, UnknownActivationError
from wsgraph.convert.formats.entry import FileNetwork, register_format
from wsgraph.convert.state_dict import from_state_dict
from wsgraph.operators import Activations

__all__ = ["read_flax"]

_ADVICE = (
    "Flax files hold weights and not what they compute: chains of dense layers and convolutions can be read. Build other networks in "
    "PyTorch and trace them."
)
_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3  # Flax's own extensions of msgpack
_CHUNKED = "__msgpack_chunked_array__"
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8)
} | {"uint8": torch.uint8, "uint16": torch.uint16, "uint32": torch.uint32, "uint64": torch.uint64, "bool": torch.bool}
# What modules keep beside weights: states of random numbers, and what a layer saw last.
_OTHER = {"rngs", "rng", "cache", "intermediates"}


@register_format("Flax", (".msgpack",))
def read_flax(
    path: Path,
    *,
    activation: Activations | None = None,
    prefix: str | None = None,
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] | None = None,
    readout: str | None = None,
    pooling: str | Sequence[str | None] | None = None,
) -> list[FileNetwork]:
    """Weights of a Flax module (linen or nnx), of its variables or of a training state.

    Layers of one kind follow each other by their numbers, ``Dense_2`` before ``Dense_10``, wherever they stand in the file. Flax
    numbers layers as they are made: ``Dense(2)(Dense(8)(x))`` in one expression makes the outer one first, and where shapes allow both
    orders, the file does not show it.

    Args:
        path: The file.
        activation: What the file does not say; see :func:`wsgraph.from_state_dict`, as for the options below.
        prefix: What the names of the network begin with, such as ``"actor/"``.
        stride: Strides of convolutions.
        padding: Paddings of convolutions.
        readout: Pooling before linear layers.
        pooling: Pooling between convolutions.

    Returns:
        The network of the file.
    """
    content = _unpacked(path)
    state, others = _parameters(content)
    if not state:
        raise CheckpointError(f"{str(path)!r} holds no parameters that Flax wrote (it holds: {', '.join(map(str, content)) or 'nothing'}).")
    if others:
        raise CheckpointError(f"{str(path)!r} holds {', '.join(map(repr, others))} beside its parameters, as batch norms do. {_ADVICE}")
    if activation is None:
        reason = UnknownActivationError("The activations of its network are not in the file.")
        raise CheckpointError(f"{str(path)!r} does not say the activations of its network: give them with activation=.") from reason
    try:
        space, theta = from_state_dict(
            state, activation, prefix=prefix, stride=stride, padding=padding, readout=readout, pooling=pooling, layout="in_out"
        )
    except ValueError as error:
        raise CheckpointError(f"{str(path)!r} cannot be read: {str(error).rstrip('.')}. {_ADVICE}") from error
    return [FileNetwork((prefix or "").rstrip("./"), space, theta)]


def _parameters(content: Mapping[Any, Any]) -> tuple[dict[str, Tensor], list[str]]:
    """Parameters by path, and the names of other collections that a network needs, such as statistics."""
    others: list[str] = []
    while isinstance(content.get("params"), Mapping):
        statistics = [str(name) for name, value in content.items() if str(name).endswith("_stats") and isinstance(value, Mapping) and value]
        others += statistics
        content = content["params"]
    return dict(_leaves(content)), others


def _leaves(content: Mapping[Any, Any], path: str = "") -> Iterator[tuple[str, Tensor]]:
    for name, value in content.items():
        # Variables of nnx may be wrapped.
        while isinstance(value, Mapping) and len(value) == 1 and next(iter(value)) in ("value", "raw_value"):
            (value,) = value.values()
        if isinstance(value, Tensor):
            yield f"{path}{name}", value
        elif isinstance(value, Mapping) and name not in _OTHER:
            yield from _leaves(value, f"{path}{name}/")


# == Decoding ==


def _unpacked(path: Path) -> Mapping[Any, Any]:
    try:
        import msgpack
    except ImportError:
        raise ImportError("Reading Flax files needs the package msgpack: pip install 'wsgraph[flax]'.") from None
    try:
        content = msgpack.unpackb(path.read_bytes(), ext_hook=_extension, strict_map_key=False, raw=False)
    except CheckpointError as error:
        raise CheckpointError(f"{str(path)!r} {error}") from None
    except Exception as error:  # what msgpack raises on damaged bytes ranges over several classes
        raise CheckpointError(f"{str(path)!r} is damaged or not a msgpack file ({type(error).__name__}: {error}).") from None
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{str(path)!r} holds a {type(content).__name__}; expected a dict of parameters, as Flax writes it.")
    return {name: _joined(value) for name, value in content.items()}


def _extension(code: int, data: bytes) -> Any:
    """An array or number of Flax; its bytes are compared with its shape before it is made."""
    import msgpack

    if code == _COMPLEX:
        return None
    if code not in (_ARRAY, _SCALAR):
        raise CheckpointError(f"holds values of an unknown kind ({code}), which Flax does not write.")
    shape, name, numbers = msgpack.unpackb(data, raw=False)
    dtype = _DTYPES.get(name)
    if dtype is None:
        raise CheckpointError(f"holds an array of the type {name!r}, which is not read here: convert it to float32 first.")
    if len(numbers) != math.prod(shape) * dtype.itemsize:
        raise CheckpointError(f"is damaged: an array of the shape {shape} and the type {name} has {len(numbers)} bytes.")
    return torch.frombuffer(bytearray(numbers), dtype=dtype).reshape(shape) if numbers else torch.empty(shape, dtype=dtype)


def _joined(value: Any) -> Any:
    """Containers as they are, with arrays that Flax divided in one piece again."""
    if not isinstance(value, Mapping):
        return value
    if _CHUNKED in value:
        shape, chunks = ([value[name][str(i)] for i in range(len(value[name]))] for name in ("shape", "chunks"))
        return torch.cat([chunk.reshape(-1) for chunk in chunks]).reshape(shape)
    return {name: _joined(entry) for name, entry in value.items()}
