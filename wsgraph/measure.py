"""Measurements that make comparisons of models fair: memory of a step, what it keeps for its backward pass, and the machine it ran on."""

from __future__ import annotations

import os
import platform
import statistics
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from wsgraph.space import ParameterGraph

__all__ = ["kept_bytes", "machine", "peak_memory", "step_costs"]


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


def step_costs(
    models: Mapping[str, nn.Module], batch: ParameterGraph, *, repeats: int = 9, seconds: float = 1.5
) -> dict[str, dict[str, float]]:
    """Time and memory of a training step of several models on the same batch: a forward and a backward pass down to the parameters.

    The models take turns, so that whatever else the machine does falls on all; the first step of each is not timed.

    Args:
        models: Models by name, on the device of the batch.
        batch: A batch of parameter graphs.
        repeats: Steps of each that are timed, at most.
        seconds: Time spent on the steps of each, after which two are enough.

    Returns:
        By name: ``parameters``, ``milliseconds`` (median), ``networks_per_second``, ``kept_bytes`` (see :func:`kept_bytes`) and
        ``peak_bytes`` (see :func:`peak_memory`).

    Example:
        >>> from wsgraph import WeightSpace
        >>> from wsgraph.nn import build_model
        >>> space = WeightSpace.mlp([2, 8, 1])
        >>> costs = step_costs({"statnn": build_model("statnn", space, 1)}, space.batch(space.sample(4)))
        >>> sorted(costs["statnn"])
        ['kept_bytes', 'milliseconds', 'networks_per_second', 'parameters', 'peak_bytes']
    """
    device = next(parameter.device for model in models.values() for parameter in model.parameters())

    def step(model: nn.Module) -> None:
        model.zero_grad()
        output = model(batch)
        output.backward(torch.ones_like(output))

    def seconds_of(model: nn.Module) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        step(model)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    costs: dict[str, dict[str, float]] = {}
    for name, model in models.items():
        given = [*model.parameters(), *model.buffers(), *batch.to_dict().values()]
        kept = kept_bytes(partial(model, batch), given=given)
        model.zero_grad()
        costs[name] = {
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "kept_bytes": kept,
            "peak_bytes": peak_memory(partial(step, model)),
        }
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(repeats):
        for name, model in models.items():
            if len(times[name]) < 2 or sum(times[name]) < seconds:
                times[name].append(seconds_of(model))
    for name, own in times.items():
        median = statistics.median(own)
        costs[name] |= {"milliseconds": 1000 * median, "networks_per_second": batch.num_networks / median}
        models[name].zero_grad()
    return costs


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
