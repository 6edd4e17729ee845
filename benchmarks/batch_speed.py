"""Building a batch of parameter graphs: `space.batch`, vectorised over networks, against PyG's collation of single graphs.

One thread, the architecture of the Small CNN Zoo (1-16-16-16-10, 3x3 kernels). Run from the repository root:

    python benchmarks/batch_speed.py
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch_geometric.data import Batch

from wsgraph import WeightSpace
from wsgraph.files import write_json
from wsgraph.measure import machine


def median_milliseconds(work: Callable[[], object], repetitions: int) -> float:
    """Median time of a call after a warm-up."""
    seconds = []
    for i in range(repetitions + 3):
        start = time.perf_counter()
        work()
        if i >= 3:
            seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds)


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "batch_speed.json")
    output = parser.parse_args().output
    torch.set_num_threads(1)
    space = WeightSpace.cnn([1, 16, 16, 16], [10], stride=2)
    table = Table("networks", "space.batch ms", "graphs + PyG collate ms", "PyG collate alone ms", "ratio to PyG collate")
    rows = []
    for networks in (64, 256, 1024):
        thetas = space.sample(networks)
        graphs = [space.graph(theta) for theta in thetas]
        ours = median_milliseconds(lambda thetas=thetas: space.batch(thetas), 50)  # type: ignore[misc]
        built = median_milliseconds(lambda thetas=thetas: Batch.from_data_list([space.graph(theta) for theta in thetas]), 5)  # type: ignore[misc]
        collated = median_milliseconds(lambda graphs=graphs: Batch.from_data_list(graphs), 5)  # type: ignore[misc]
        rows.append({"networks": networks, "batch_ms": ours, "graphs_and_collate_ms": built, "collate_ms": collated})
        table.add_row(str(networks), f"{ours:.2f}", f"{built:.1f}", f"{collated:.1f}", f"{collated / ours:.0f}x")
    Console().print(table)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(output, {"machine": machine(), "space": repr(space), "rows": rows})


if __name__ == "__main__":
    main()
