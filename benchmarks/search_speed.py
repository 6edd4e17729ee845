"""What it takes to index a zoo and to find moved copies of its networks.

Random networks are written as a zoo in a temporary folder and indexed. Then some of them are moved by random elements of their whole group
(factors 0.001 to 1000), as they are and with noise of 10 and 30 % of every weight, and looked for one by one. The nearest network of a
moved copy is the one that it was made from, at distance 0 after alignment, so that this is also what aligning it with all networks would
find. Every zoo has a process of its own, whose largest resident memory is told. Run from the repository root:

    python benchmarks/search_speed.py
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from wsgraph import WeightSpace
from wsgraph.data import ZooStore
from wsgraph.files import write_atomically, write_json
from wsgraph.measure import machine
from wsgraph.search import Index

SPACES = {"CNN 1-16-16-16-10": WeightSpace.cnn([1, 16, 16, 16], [10]), "MLP 4-16-16-2": WeightSpace.mlp([4, 16, 16, 2])}
NOISES = (0.0, 0.1, 0.3)
_BLOCK = 5000


def measured(name: str, networks: int, queries: int, dimensions: int) -> dict[str, Any]:
    """Seconds and bytes of an index, and seconds and recall of searches."""
    space, generator = SPACES[name], torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        with ZooStore.writing(Path(folder) / "zoo") as zoo:
            for start in range(0, networks, _BLOCK):
                zoo.append(space, space.sample(min(_BLOCK, networks - start), generator=generator), {})
        started = time.perf_counter()
        index = Index(zoo, dimensions=dimensions)
        built = time.perf_counter() - started
        size = sum(path.stat().st_size for path in index.path.rglob("*") if path.is_file())
        started = time.perf_counter()
        index = Index(ZooStore(zoo.path), dimensions=dimensions)
        wanted = torch.randint(networks, (queries,), generator=generator)
        thetas = zoo.read(wanted)
        index.search(space, thetas[:1], top=1)  # which reads the vectors
        opened = time.perf_counter() - started
        rows = []
        for noise in NOISES:
            changed = thetas * (1 + noise * torch.randn(thetas.shape, generator=generator))
            moved = space.act(space.sample_symmetry(queries, (1e-3, 1e3), generator=generator), changed)
            seconds, right, by_features = [], 0, 0
            for theta, position in zip(moved, wanted.tolist(), strict=True):
                started = time.perf_counter()
                (matches,) = index.search(space, theta[None], top=1)
                seconds.append(time.perf_counter() - started)
                right += matches[0].position == position
                by_features += index.search(space, theta[None], top=1, align=False)[0][0].position == position
            ordered = sorted(seconds)
            slow = ordered[min(len(ordered) - 1, round(0.95 * len(ordered)))]
            times = {"query_seconds": statistics.median(seconds), "slow_query_seconds": slow}
            rows.append({"noise": noise, "recall": right / queries, "recall_by_features": by_features / queries, **times})
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    sizes = {"networks": networks, "parameters": space.num_params, "dimensions": dimensions, "index_bytes": size, "peak_bytes": peak}
    return {"space": name, **sizes, "built_seconds": built, "opened_seconds": opened, "searches": rows}


def in_process(name: str, networks: int, queries: int, dimensions: int, threads: int) -> dict[str, Any]:
    """The same, by a process of its own."""
    arguments = ["--of", name, "--networks", str(networks), "--queries", str(queries), "--dimensions", str(dimensions)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run([sys.executable, __file__, *arguments], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def figure_of(results: list[dict[str, Any]]) -> Figure:
    """Recall and time of searches over noise."""
    figure = Figure(figsize=(7, 2.8), dpi=160, layout="constrained")
    for axes, key, factor, label in zip(
        figure.subplots(1, 2), ("recall", "query_seconds"), (1, 1e3), ("recall@1", "time of a query, ms"), strict=True
    ):
        for marker, each in zip("os^v", results, strict=False):
            points = [factor * row[key] for row in each["searches"]]
            axes.plot(
                [100 * row["noise"] for row in each["searches"]], points, marker=marker, label=f"{each['networks']:,} x {each['space']}"
            )
        axes.set(xlabel="noise of moved copies, % of every weight", ylabel=label, ylim=(0, None))
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False, fontsize=7, loc="lower left")
    return figure


def main() -> None:
    """Measure, print a table, write JSON and figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few networks, to see that it runs")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--queries", type=int, default=100, help="networks that are looked for")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--of", help=argparse.SUPPRESS)
    parser.add_argument("--networks", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--dimensions", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.of is not None:
        print(json.dumps(measured(options.of, options.networks, options.queries, options.dimensions)))
        return
    cases = [("CNN 1-16-16-16-10", 100_000, 128), ("MLP 4-16-16-2", 1_000_000, 64)]
    if options.quick:
        cases, options.queries = [(name, 40, dimensions) for name, _, dimensions in cases], 4
    results = [in_process(name, networks, options.queries, dimensions, options.threads) for name, networks, dimensions in cases]
    table = Table("networks", "space", "index, s", "index, MB", "peak, GB", "noise, %", "recall@1", "by features", "query, ms", "95 %, ms")
    for each in results:
        for row in each["searches"]:
            sizes = [f"{each['built_seconds']:.0f}", f"{each['index_bytes'] / 1e6:.0f}", f"{each['peak_bytes'] / 1e9:.1f}"]
            scores = [f"{100 * row['noise']:.0f}", f"{row['recall']:.2f}", f"{row['recall_by_features']:.2f}"]
            times = [f"{1e3 * row[key]:.0f}" for key in ("query_seconds", "slow_query_seconds")]
            table.add_row(f"{each['networks']:,}", each["space"], *sizes, *scores, *times)
    Console(width=140).print(table)
    options.output.mkdir(parents=True, exist_ok=True)
    document = {"machine": machine(), "threads": options.threads, "queries": options.queries, "results": results}
    write_json(options.output / "search_speed.json", document)
    write_atomically(options.output / "search_speed.png", lambda temporary: figure_of(results).savefig(temporary, format="png"))


if __name__ == "__main__":
    main()
