"""Measurements that make comparisons of models fair: memory of a step, and the machine it ran on."""

from __future__ import annotations

import os
import platform
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["machine", "peak_memory"]


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.layout == torch.strided]


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
