"""Networks per second from a zoo on disk to batches, and the memory that a zoo larger than it needs.

Three questions, each answered in processes of their own, as a training would be:

- How many CNNs of the Small CNN Zoo (4,970 parameters) per second come from disk as batches of parameter graphs, and as dense
  blocks, in random order, for several batch sizes? Beside it: PyG's own loader over the same dataset, which builds and collates graph by
  graph as published loaders do.
- How long does it take to open a zoo of 5 GB?
- How much memory does one epoch of training on it take?

The files are read once before, so that the disk of the machine is not what is measured. Run from the repository root:

    python benchmarks/store_speed.py
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch_geometric.loader import DataLoader as PyGDataLoader

from wsgraph import WeightSpace
from wsgraph.data import DataLoader, ZooStore
from wsgraph.files import write_json
from wsgraph.measure import machine

SPACE = WeightSpace.cnn([1, 16, 16, 16], [10], stride=2)
BATCH_SIZES = (64, 256, 1024)


def make_zoo(path: Path, networks: int) -> None:
    """Random networks, written a gigabyte at a time."""
    generator = torch.Generator().manual_seed(0)
    with ZooStore.writing(path) as store:
        for part in torch.arange(networks).split(50_000):
            split = ["train" if i % 10 < 6 else "val" if i % 10 < 7 else "test" for i in part.tolist()]
            thetas = torch.randn(len(part), SPACE.num_params, generator=generator)
            store.append(SPACE, thetas, {"test_accuracy": torch.rand(len(part), generator=generator), "split": split})


def _networks_per_second(batches: Iterable[Any], blocks: bool) -> float:
    count, start = 0, time.perf_counter()
    for batch in batches:
        if blocks:
            batch.blocks()
        count += batch.num_networks
    return count / (time.perf_counter() - start)


def measure_batches(path: Path, rounds: int, threads: int) -> list[dict[str, Any]]:
    """Medians over rounds, all kinds in turn in each."""
    torch.set_num_threads(threads)
    dataset = ZooStore(path).dataset()
    rows = []
    for size in BATCH_SIZES:
        few = dataset[: min(len(dataset), 2000)]
        rates: dict[str, list[float]] = {"graphs": [], "blocks": [], "graph_by_graph": []}
        for i in range(rounds + 1):
            generator = torch.Generator().manual_seed(i)
            rates["graphs"].append(_networks_per_second(DataLoader(dataset, size, shuffle=True, generator=generator), False))
            rates["blocks"].append(_networks_per_second(DataLoader(dataset, size, shuffle=True, generator=generator), True))
            rates["graph_by_graph"].append(_networks_per_second(PyGDataLoader(few, size, shuffle=True, generator=generator), False))
        medians = {f"{name}_per_second": statistics.median(values[1:]) for name, values in rates.items()}
        rows.append({"batch_size": size, **medians, "ratio": medians["graphs_per_second"] / medians["graph_by_graph_per_second"]})
    return rows


_OPEN = """
import sys, time
import wsgraph.data
start = time.perf_counter()
store = wsgraph.data.ZooStore(sys.argv[1])
len(store), store.space
print(time.perf_counter() - start)
"""
_TRAIN = """
import re, sys, threading, time
from wsgraph.tasks import run
most, running = [0], [True]
def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read()).group(1)) * 1024
def watch():
    while running[0]:
        most[0] = max(most[0], resident())
        time.sleep(0.01)
thread = threading.Thread(target=watch)
thread.start()
before, start = resident(), time.perf_counter()
try:
    run("generalization", zoo=sys.argv[1], model=sys.argv[3], epochs=1, batch_size=256, scales=[10], output=sys.argv[2], accelerator="cpu")
finally:
    running[0] = False
    thread.join()
print(before, most[0], time.perf_counter() - start)
"""


def _run(script: str, *arguments: str) -> list[float]:
    done = subprocess.run([sys.executable, "-c", script, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    return [float(value) for value in re.findall(r"[\d.e+-]+", done.stdout.strip().splitlines()[-1])]


def main() -> None:
    """Measure, print tables and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small zoo, to see that it runs")
    parser.add_argument("--gigabytes", type=float, default=5.0, help="size of the large zoo")
    parser.add_argument("--networks", type=int, default=20_000, help="networks in the zoo that batches are read from")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--model", default="statnn", help="model that is trained on the large zoo")
    parser.add_argument("--folder", type=Path, help="where to write the zoos, with room for them [default: a temporary folder]")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    if options.quick:
        options.gigabytes, options.networks, options.rounds = 0.02, 500, 1
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        make_zoo(folder / "zoo", options.networks)
        rows = measure_batches(folder / "zoo", options.rounds, options.threads)
        large = round(options.gigabytes * 1e9 / (4 * SPACE.num_params))
        make_zoo(folder / "large", large)
        size = sum(file.stat().st_size for file in (folder / "large").rglob("*") if file.is_file())
        opened = statistics.median(_run(_OPEN, str(folder / "large"))[0] for _ in range(3))
        before, most, seconds = _run(_TRAIN, str(folder / "large"), str(folder / "run"), options.model)
    finally:
        shutil.rmtree(folder)

    console = Console()
    table = Table("networks per batch", "graphs/s", "as blocks/s", "graph by graph/s", "ratio", title=f"From disk to batches, {SPACE!r}")
    for row in rows:
        cells = (f"{row[f'{name}_per_second']:,.0f}" for name in ("graphs", "blocks", "graph_by_graph"))
        table.add_row(str(row["batch_size"]), *cells, f"{row['ratio']:.1f}x")
    console.print(table)
    console.print(
        f"A zoo of {size / 1e9:.2f} GB ({large:,} networks) opens in {opened:.3f} s. One epoch of {options.model}, validation and test "
        f"included, took {seconds:.0f} s and at most {most / 1e9:.2f} GB of memory ({before / 1e9:.2f} GB before it began)."
    )
    document = {
        "machine": machine(),
        "space": repr(SPACE),
        "rows": rows,
        "large": {
            "bytes": size,
            "networks": large,
            "open_seconds": opened,
            "model": options.model,
            "epoch_seconds": seconds,
            "resident_bytes": most,
            "resident_bytes_of_libraries": before,
        },
        "command": f"python benchmarks/store_speed.py --gigabytes {options.gigabytes:g} --networks {options.networks}",
    }
    options.output.mkdir(parents=True, exist_ok=True)
    write_json(options.output / "store_speed.json", json.loads(json.dumps(document)))


if __name__ == "__main__":
    main()
