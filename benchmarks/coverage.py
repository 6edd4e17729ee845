"""How much of networks that were not written for wsgraph tracing understands: torchvision's classification models.

Every model gets random weights and norm statistics, is traced, and moved by random elements of the symmetry group (permutations,
factors in [1e-3, 1e3], signs) in float64, which must leave its output unchanged. The table gives the share of parameters that touch a
neuron group with a symmetry, the kinds of symmetry, the operators that tracing does not know, the time of tracing, and the time and peak
memory of building the parameter graph, topology included. torchvision is needed (``pip install torchvision``). Run from the repository
root:

    python benchmarks/coverage.py
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from networks import randomize, torchvision_models
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

import wsgraph
from wsgraph import WeightSpace
from wsgraph.files import write_json
from wsgraph.measure import machine, peak_memory
from wsgraph.testing import assert_function_preserved

SMALL = ("alexnet", "vgg11_bn", "resnet18", "squeezenet1_1", "mobilenet_v3_small", "shufflenet_v2_x0_5")
CONVOLUTIONAL = 0.95


def example_of(name: str) -> Tensor:
    """One random image of the size that a model is made for."""
    side = 299 if name == "inception_v3" else 224
    return torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))


def measure(name: str, build: Any, largest: int) -> dict[str, Any]:
    """Trace one model and check its symmetries."""
    module = randomize(build())
    image = example_of(name)
    count = sum(tensor.numel() for tensor in module.state_dict().values())
    began = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        space = wsgraph.trace(module, image)
    seconds = time.perf_counter() - began
    kinds = Counter(space.describe_symmetry(g) for g in space.groups if g.role == "hidden" and space.is_permutable(g.permutation))
    state = module.state_dict()
    back = space.unflatten(space.flatten(state))
    row = {
        "name": name,
        "parameters": count,
        "seconds": seconds,
        "groups": sum(group.role == "hidden" for group in space.groups),
        "kinds": dict(kinds),
        "coverage": space.coverage,
        "unknown": [str(entry.message) for entry in caught if issubclass(entry.category, wsgraph.TraceWarning)],
        "round_trip": all(torch.equal(back[key], tensor) and back[key].dtype == tensor.dtype for key, tensor in state.items()),
        "difference": None,
        "graph": None,
    }
    del back
    gc.collect()
    if count <= largest:
        row["graph"] = measure_graph(space, space.flatten(state))
        row["difference"] = assert_function_preserved(module, space, image, draws=1)
    return row


def measure_graph(space: WeightSpace, theta: Tensor) -> dict[str, Any]:
    """Size, time and peak memory of the parameter graph, built without anything at hand but the space."""
    fresh = WeightSpace.from_json(space.to_json())
    began = time.perf_counter()
    graph = fresh.graph(theta)
    seconds = time.perf_counter() - began
    row = {
        "nodes": graph.num_nodes,
        "edges": graph.num_edges,
        "seconds": seconds,
        "absent": space.absent_from_graph,
    }
    del graph, fresh
    gc.collect()
    again = WeightSpace.from_json(space.to_json())
    row["bytes"] = peak_memory(lambda: again.graph(theta))
    return row


def short(kinds: dict[str, int]) -> str:
    """Number of groups by what may be done to their neurons besides permuting them."""
    totals: Counter[str] = Counter()
    for kind, count in kinds.items():
        factors = [factor for factor in ("scale", "sign") if factor in kind.split("each")[-1]]
        totals[" x ".join(factors) or "permutation only"] += count
    return ", ".join(f"{count} {kind}" for kind, count in totals.most_common())


def show(rows: list[dict[str, Any]], console: Console) -> None:
    """Print the table."""
    table = Table(title="Tracing torchvision's classification models")
    columns = (
        "model",
        "parameters",
        "traced, s",
        "covered",
        "groups",
        "symmetries",
        "difference",
        "graph: edges",
        "s",
        "GB",
        "unknown operators",
    )
    for column in columns:
        table.add_column(column, justify="left" if column in ("model", "symmetries", "unknown operators") else "right")
    for row in rows:
        difference = "too large" if row["difference"] is None else f"{row['difference']:.0e}"
        graph = row["graph"]
        built = ["-"] * 3 if graph is None else [f"{graph['edges']:,}", f"{graph['seconds']:.2f}", f"{graph['bytes'] / 1e9:.2f}"]
        cells = [
            f"{row['parameters']:,}",
            f"{row['seconds']:.1f}",
            f"{100 * row['coverage']:.2f} %",
            str(row["groups"]),
            short(row["kinds"]),
        ]
        table.add_row(row["name"], *cells, difference, *built, "; ".join(row["unknown"]) or "-")
    console.print(table)


def main() -> None:
    """Measure all models and write the table as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="folder of the JSON")
    parser.add_argument("--models", nargs="+", help="names of models (default: all)")
    parser.add_argument("--largest", type=int, default=150_000_000, help="parameters up to which the function is checked, in float64")
    parser.add_argument("--quick", action="store_true", help="a few small models")
    arguments = parser.parse_args()
    available = torchvision_models()
    names = arguments.models or (list(SMALL) if arguments.quick else list(available))
    console = Console(width=None if sys.stdout.isatty() else 210)
    rows = []
    for name in track(names, "tracing", console=Console(stderr=True)):
        rows.append(measure(name, available[name], arguments.largest))
        arguments.output.mkdir(parents=True, exist_ok=True)
        write_json(arguments.output / "coverage.json", {"machine": machine(), "models": rows})
    show(rows, console)


if __name__ == "__main__":
    main()
