"""Measurements that make comparisons of models fair: memory of a step, what it keeps for its backward pass, and the machine it ran on."""

from __future__ import annotations

import os
import platform
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["kept_bytes", "machine", "peak_memory"]


def _storages(tree: Any) -> Iterator[torch.UntypedStorage]:
    # Called twice per operation, where PyTorch's trees, open to any container, would take most of the time of a step.
    if isinstance(tree, Tensor):
        if tree.layout == torch.strided:
            yield tree.untyped_storage()
    elif isinstance(tree, (tuple, list, dict)):
        for branch in tree.values() if isinstance(tree, dict) else tree:
            yield from _storages(branch)


class _LiveStorages(TorchDispatchMode):
    """Follows the bytes of all tensor storages created while active, and their maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self.known: set[int] = set()

    def _follow(self, storage: torch.UntypedStorage, size: int) -> None:
        address = storage._cdata
        if address not in self.known:
            self.known.add(address)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._release, address, size)

    def _release(self, address: int, size: int) -> None:
        self.live -= size
        self.known.discard(address)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Everything created during the step is followed, so an input that is not known yet existed before and does not count.
        for storage in _storages((args, kwargs)):
            self._follow(storage, 0)
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            self._follow(storage, storage.nbytes())
        return result


def peak_memory(step: Callable[[], Any]) -> int:
    """Largest number of bytes of tensors alive at once among those that a step creates.

    On a GPU this is what the allocator reports; on the CPU, where allocators hide what they keep, every storage that an operation returns
    is followed until it is freed. Buffers inside an operation are not seen on the CPU.

    Args:
        step: Called once, for instance a forward and backward pass; run it before to warm up.

    Returns:
        Bytes above what was allocated before the step.

    Example:
        >>> import torch
        >>> x = torch.zeros(1000)
        >>> peak_memory(lambda: (x + 1).sum())
        4004
    """
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        on_device = torch.cuda.max_memory_allocated() - before
        if on_device > 0:
            return on_device
    with _LiveStorages() as storages:
        step()
    return storages.peak


class _Saved:
    """What autograd holds on to, in a form that can be watched."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def kept_bytes(forward: Callable[[], Any], given: Any = ()) -> int:
    """Bytes that a forward pass keeps for its backward pass: those of the distinct storages that autograd saves.

    Of what :func:`torch.utils.checkpoint.checkpoint` computes only the inputs are kept, and counted. A custom
    :class:`torch.autograd.Function` counts with what it hands to ``save_for_backward``; tensors that it holds as attributes are not seen.

    Args:
        forward: Called once; returns its outputs. What autograd saves for other results is gone when it returns, and does not count.
        given: Tensors, in nested lists, tuples or dictionaries, that exist anyway and do not count: the parameters, the input.

    Returns:
        Bytes beyond those of what is given.

    Example:
        >>> import torch
        >>> x = torch.zeros(1000, requires_grad=True)
        >>> kept_bytes(lambda: x.exp().tanh()), kept_bytes(lambda: x.square(), given=x)
        (8000, 0)
    """
    saved: weakref.WeakSet[_Saved] = weakref.WeakSet()

    def pack(tensor: Tensor) -> _Saved:
        holder = _Saved(tensor.detach())
        saved.add(holder)
        return holder

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda holder: holder.tensor):
        outputs = forward()
    sizes = {storage.data_ptr(): storage.nbytes() for storage in _storages([holder.tensor for holder in saved])}
    del outputs
    return sum(sizes[address] for address in sizes.keys() - {storage.data_ptr() for storage in _storages(given)})


def machine() -> dict[str, Any]:
    """What a measurement ran on: processor, cores, threads, accelerator and versions."""
    import torch_geometric

    processor = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            processor = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), processor)
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_geometric": torch_geometric.__version__,
    }
