"""Tensors that a module has under several keys: weights that are tied, layers that are used under several names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from wsgraph.convert.tracing.recording import TraceError
from wsgraph.space.dtypes import holds_same

__all__ = ["check_constants", "tie_state", "tied_keys"]


def tied_keys(module: nn.Module) -> dict[str, str]:
    """For every key of a module's state dict, the first key of the same tensor.

    Raises:
        TraceError: If two tensors share memory in any other way, so that they are neither one tensor nor two.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> tied_keys(nn.Sequential(layer, nn.ReLU(), layer))
        {'0.weight': '0.weight', '0.bias': '0.bias', '2.weight': '0.weight', '2.bias': '0.bias'}
    """
    tensors = _saved(module)
    first: dict[Any, str] = {}
    keys = {name: first.setdefault(_identity(tensor), name) for name, tensor in tensors.items()}
    for one, other in _overlapping((name, tensors[name]) for name in first.values()):
        raise TraceError(
            f"{one!r} and {other!r} share memory, but are not the same entries in the same order, so they are neither one tensor nor two: "
            "loading weights into one changes the other. Keep one of them and make the other of it in forward, or give it memory of its "
            "own with clone()."
        )
    return keys


def check_constants(module: nn.Module, program: Any) -> None:
    """Check that a network reads its saved tensors as such, not through the memory that something else shares with them.

    Raises:
        TraceError: If it reads one through a plain attribute or a buffer that is not saved: loading weights changes those too, which
            :func:`torch.func.functional_call` leaves as they are.
    """
    signature = program.graph_signature
    names = {**signature.inputs_to_buffers, **signature.inputs_to_lifted_tensor_constants}
    read = {names[node.name] for node in program.graph.nodes if node.op == "placeholder" and node.users and node.name in names}
    saved = _saved(module)
    held = {name: tensor for name, tensor in program.constants.items() if name in read and name not in saved and isinstance(tensor, Tensor)}
    for one, other in _overlapping((*saved.items(), *held.items())):
        if len({one, other} & held.keys()) == 1:
            key, name = (one, other) if other in held else (other, one)
            raise TraceError(
                f"The network reads the memory of {key!r} through {name!r} too, which the state dict does not hold: what it computes after "
                f"loading weights depends on how they are loaded. Read {key!r} itself in forward, or register {name!r} as a parameter."
            )


def tie_state(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict for a module with tied weights, completed where it has a tensor under one of its keys only, as safetensors files do.

    Raises:
        ValueError: If the state dict holds different tensors under two keys of one tensor, of which loading would keep the last.
    """
    tensors: dict[str, tuple[str, Tensor]] = {}
    keys = tied_keys(module)
    for key, first in keys.items():
        if key in state:
            given, tensor = tensors.setdefault(first, (key, state[key]))
            if not holds_same(tensor, state[key]):
                raise ValueError(
                    f"{given!r} and {key!r} are one tensor of the module, but differ in the weights: loading would keep one of them. They "
                    "are of a network that does not tie them."
                )
    return {**state, **{key: tensors[first][1] for key, first in keys.items() if key not in state and first in tensors}}


def _saved(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of the state dict, as the module holds them where it does: hooks may have copied them."""
    own = {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers(remove_duplicate=False))}
    return {name: own.get(name, tensor) for name, tensor in module.state_dict(keep_vars=True).items()}


def _address(tensor: Tensor) -> int:
    """Where the memory of a tensor begins; 0 where it has none of its own."""
    try:
        return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided and tensor.numel() else 0
    except (NotImplementedError, RuntimeError):  # tensors that wrap others
        return 0


def _identity(tensor: Tensor) -> Any:
    """Equal for two tensors that are one: the same entries of the same memory in the same order."""
    if not (address := _address(tensor)):
        return id(tensor)
    strides = tuple(stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1)
    return address, tensor.dtype, tensor.storage_offset(), tuple(tensor.shape), strides


class _Stretch(NamedTuple):
    """The bytes from the first to the last entry of a tensor; others may have some between."""

    start: int
    stop: int
    name: str
    tensor: Tensor

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> _Stretch:
        steps = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        start = int(tensor.storage_offset()) * tensor.itemsize
        return cls(start, start + (steps + 1) * tensor.itemsize, name, tensor)

    def overlaps(self, other: _Stretch) -> bool:
        if other.start >= self.stop or self.start >= other.stop:
            return False
        start, stop = min(self.start, other.start), max(self.stop, other.stop)
        return bool((_bytes(self, start, stop) & _bytes(other, start, stop)).any())


def _overlapping(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, str]]:
    """Names of tensors that have memory in common; two tensors of integers, which nothing moves, may."""
    by_address: dict[int, list[_Stretch]] = {}
    for name, tensor in tensors:
        if address := _address(tensor):
            by_address.setdefault(address, []).append(_Stretch.of(name, tensor))
    for members in by_address.values():
        members.sort(key=lambda member: (member.start, member.stop))
        for i, one in enumerate(members):
            for other in members[i + 1 :]:
                if other.start >= one.stop:
                    break
                if (one.tensor.is_floating_point() or other.tensor.is_floating_point()) and one.overlaps(other):
                    yield one.name, other.name


def _bytes(stretch: _Stretch, start: int, stop: int) -> Tensor:
    """Which bytes of a stretch of memory belong to a tensor."""
    tensor, mask = stretch.tensor, torch.zeros(stop - start, dtype=torch.bool)
    strides = [stride * tensor.itemsize for stride in tensor.stride()]
    mask.as_strided((*tensor.shape, tensor.itemsize), (*strides, 1), stretch.start - start).fill_(True)
    return mask
