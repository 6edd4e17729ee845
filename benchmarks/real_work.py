"""One measurement of `real_networks.py`, in a process of its own and of the version of wsgraph that ``PYTHONPATH`` names.

Its arguments come as JSON on standard input, the result or the reason of a failure goes to standard output as JSON.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import statistics
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from real_models import REAL_MODELS, example_of
from torch import Tensor

__all__ = ["TASKS", "PeakMemory", "resident_bytes"]

SEED = 0


def resident_bytes(field: str = "VmRSS") -> int:
    """Resident memory of this process, or its peak (``VmHWM``)."""
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(field))


class PeakMemory:
    """The peak of resident memory while it is entered, above what there was before.

    The kernel's own mark is reset where it may be; else a thread looks every millisecond.
    """

    def __enter__(self) -> PeakMemory:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what was freed before would serve what is measured, unseen
        self.before = self.peak = resident_bytes()
        try:
            Path("/proc/self/clear_refs").write_text("5")
            self.marked = resident_bytes("VmHWM") <= self.before + 2**20
        except OSError:
            self.marked = False
        self.done = threading.Event()
        self.watch = threading.Thread(target=self._look, daemon=True)
        if not self.marked:
            self.watch.start()
        return self

    def _look(self) -> None:
        while not self.done.wait(1e-3):
            self.peak = max(self.peak, resident_bytes())

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.peak = max(self.peak, resident_bytes("VmHWM") if self.marked else resident_bytes())

    @property
    def bytes(self) -> int:
        return max(self.peak - self.before, 0)


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _network(name: str) -> torch.nn.Module:
    from networks import randomize

    torch.manual_seed(SEED)
    return randomize(REAL_MODELS[name](), SEED)


def prepare(folder: str, network: str) -> dict[str, Any]:
    """Write the weight space of a network and its flat weights, for the measurements that follow."""
    import wsgraph

    module = _network(network)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        space = wsgraph.trace(module, example_of())
    Path(folder, "space.json").write_text(space.to_json())
    torch.save(space.flatten(module.state_dict()).detach(), Path(folder, "theta.pt"))
    return {"parameters": space.num_params}


def _prepared(folder: str) -> tuple[str, Tensor]:
    from wsgraph import WeightSpace

    # What is done once in every process does not count.
    small = WeightSpace.mlp([2, 3, 1])
    graph = small.batch(small.sample(2))
    _ = graph.edge_index, graph.edge_attr
    return Path(folder, "space.json").read_text(), torch.load(Path(folder, "theta.pt"), weights_only=True)


def measure_graph(folder: str, edges: bool, repeats: int) -> dict[str, Any]:
    """The graph of one network, from nothing but its weight space and weights."""
    from wsgraph import WeightSpace

    text, theta = _prepared(folder)

    def build(space: WeightSpace) -> float:
        began = time.perf_counter()
        graph = space.graph(theta)
        if edges:
            _ = graph.edge_index, graph.edge_attr
        return time.perf_counter() - began

    first = WeightSpace.from_json(text)
    with PeakMemory() as memory:
        seconds = [build(first)]
    del first  # with what it has cached
    seconds += [build(WeightSpace.from_json(text)) for _ in range(repeats - 1)]
    return {"seconds": statistics.median(seconds), "bytes": memory.bytes, "weight_bytes": theta.nbytes}


def measure_step(folder: str, model: str, repeats: int) -> dict[str, Any]:
    """A forward and backward pass of a model on one network."""
    from wsgraph import WeightSpace
    from wsgraph.nn import build_model

    text, theta = _prepared(folder)
    space = WeightSpace.from_json(text)
    torch.manual_seed(SEED)
    reader = build_model(model, space, 1)
    seconds = []

    def step() -> None:
        reader.zero_grad()
        reader(space.batch(theta[None])).sum().backward()

    with PeakMemory() as memory:
        first = _seconds(step)
    for _ in range(repeats):
        seconds.append(_seconds(step))
    return {
        "seconds": statistics.median(seconds or [first]),
        "first_seconds": first,
        "bytes": memory.bytes,
        "weight_bytes": theta.nbytes,
        "parameters": sum(parameter.numel() for parameter in reader.parameters()),
    }


def measure_trace(network: str, repeats: int) -> dict[str, Any]:
    """Tracing a network, with the time that ``torch.export`` takes of it."""
    import wsgraph

    exporting: list[float] = []
    original = torch.export.export

    def export(*arguments: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return original(*arguments, **options)
        finally:
            exporting.append(time.perf_counter() - began)

    torch.export.export = export
    warnings.simplefilter("ignore")
    wsgraph.trace(torch.nn.Linear(2, 1).eval(), torch.zeros(1, 2))
    rows = []
    for _ in range(repeats):
        module, example = _network(network), example_of()
        exporting.clear()
        total = _seconds(lambda: wsgraph.trace(module, example))  # noqa: B023
        rows.append((total, sum(exporting)))
    if not all(export for _, export in rows):
        raise RuntimeError("Tracing did not call torch.export.export, so its time is not known.")
    own = statistics.median(total - export for total, export in rows)
    return {
        "seconds": own,
        "total_seconds": statistics.median(total for total, _ in rows),
        "export_seconds": statistics.median(export for _, export in rows),
        "relative_to_export": statistics.median((total - export) / export for total, export in rows),
    }


def _zoo_batch(networks: int) -> tuple[Any, Tensor]:
    from wsgraph import WeightSpace

    space = WeightSpace.cnn([1, 16, 16, 16], [10], stride=2)
    return space, space.sample(networks, generator=torch.Generator().manual_seed(SEED))


def measure_batch(networks: int, edges: bool, repeats: int) -> dict[str, Any]:
    """Zoo CNNs to a batch of graphs."""
    space, thetas = _zoo_batch(networks)

    def build() -> None:
        batch = space.batch(thetas)
        if edges:
            _ = batch.edge_index, batch.edge_attr

    for _ in range(3):
        build()
    return {"seconds": statistics.median(_seconds(build) for _ in range(repeats))}


def measure_model(model: str, networks: int, repeats: int) -> dict[str, Any]:
    """A training step of a model on a batch of zoo CNNs, and what autograd keeps of it."""
    from wsgraph.measure import kept_bytes
    from wsgraph.nn import build_model

    space, thetas = _zoo_batch(networks)
    torch.manual_seed(SEED)
    reader = build_model(model, space, 1)
    batch = space.batch(thetas)

    def step() -> None:
        reader.zero_grad()
        reader(batch).sum().backward()

    for _ in range(2):
        step()
    # From the weights, so that what a batch holds counts where a model keeps it, whenever it is made.
    kept = kept_bytes(lambda: reader(space.batch(thetas)), given=[*reader.parameters(), *reader.buffers(), thetas])
    return {"seconds": statistics.median(_seconds(step) for _ in range(repeats)), "kept_bytes": kept}


def models() -> dict[str, Any]:
    """Names of all models with invariant outputs."""
    from wsgraph.nn import list_models

    return {"models": list_models("invariant")}


TASKS: dict[str, Callable[..., dict[str, Any]]] = {
    task.__name__: task for task in (prepare, measure_graph, measure_step, measure_trace, measure_batch, measure_model, models)
}


def main() -> None:
    """Run the task that the command line names, with so many threads."""
    import wsgraph

    task, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    expected = Path(os.environ["PYTHONPATH"]).resolve()
    if not Path(wsgraph.__file__).resolve().is_relative_to(expected):
        raise SystemExit(f"Expected wsgraph from {str(expected)!r} (got {wsgraph.__file__!r}).")
    try:
        result = TASKS[task](**json.loads(sys.stdin.read()))
    except Exception as error:  # whatever an earlier version raises is what its row says
        result = {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
