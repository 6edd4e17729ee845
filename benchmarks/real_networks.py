"""What networks that people use cost, as ratios to an earlier version measured in the same run.

The earlier version is written out of git into a temporary folder. Every measurement runs in a fresh process of either version, in turns,
so that whatever else the machine does falls on both; numbers are medians over the turns. Rows:

1. The parameter graph of a ViT-B/16: what ``space.graph(theta)`` returns, and that with ``edge_index`` and ``edge_attr`` asked for.
2. A forward and backward pass of ``monomial_gnn`` on one ViT-B/16 and on one ResNet-50, and of ``neural_graph`` on one ResNet-18, norms
   included, from the flat weights to the gradients of the model.
3. Tracing a DenseNet-121 and a ResNet-50: time outside of ``torch.export`` relative to its own.
4. CNNs of the Small CNN Zoo: 1024 of them to a batch, and a training step of every model on 64 of them.

Memory of rows 1 and 2 is the peak of the process's resident memory above what it held before, weights and model included; that of row 4
is what autograd keeps beyond weights and parameters. A row that cannot be measured says why. Run from the repository root, which must be
a git clone with its history:

    python benchmarks/real_networks.py
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import shlex
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from wsgraph.files import write_atomically, write_json
from wsgraph.measure import machine

ROOT = Path(__file__).resolve().parents[1]
WORKER = Path(__file__).resolve().parent / "real_work.py"
BASELINE = "ea9bfcd"
RESOLUTION = 2**20  # resident memory: less is noise of allocators


# == Two versions in turns ==


@dataclass
class Versions:
    """Folders of both versions, and how measurements are run in them."""

    folders: dict[str, Path]
    threads: int
    seconds: float

    def run(self, version: str, task: str, **arguments: Any) -> dict[str, Any]:
        """Run a task in a fresh process of a version."""
        environment = {**os.environ, "PYTHONPATH": str(self.folders[version]), "OMP_NUM_THREADS": str(self.threads)}
        command = [sys.executable, str(WORKER), task, str(self.threads)]
        try:
            done = subprocess.run(
                command, input=json.dumps(arguments), capture_output=True, text=True, env=environment, timeout=self.seconds
            )
        except subprocess.TimeoutExpired:
            return {"error": f"took more than {self.seconds:g} s"}
        if done.returncode < 0:
            return {"error": f"ended by signal {-done.returncode}" + (", out of memory" if done.returncode == -9 else "")}
        if done.returncode:
            return {"error": (done.stderr.strip().splitlines() or ["ended without a word"])[-1]}
        result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return result

    def compare(self, turns: int, task: str, prepared: dict[str, Path] | None = None, **arguments: Any) -> dict[str, dict[str, Any]]:
        """Medians of both versions over turns; a version that fails is not asked again."""
        every: dict[str, list[dict[str, Any]]] = {version: [] for version in self.folders}
        for turn in range(turns):
            order = list(self.folders) if turn % 2 == 0 else list(self.folders)[::-1]
            for version in order:
                if every[version] and "error" in every[version][-1]:
                    continue
                own = {"folder": str(prepared[version])} if prepared else {}
                every[version].append(self.run(version, task, **own, **arguments))
        return {version: _medians(results) for version, results in every.items()}


def _medians(results: list[dict[str, Any]]) -> dict[str, Any]:
    if failed := [result for result in results if "error" in result]:
        return failed[0]
    return {name: statistics.median(result[name] for result in results) for name in results[0]} | {"turns": results}


@contextmanager
def checkouts(baseline: str) -> Iterator[dict[str, Path]]:
    """Folders of the earlier version, written out for the time being where it is a commit, and of this one."""
    if Path(baseline).is_dir():
        yield {"old": Path(baseline), "new": ROOT}
        return
    made = subprocess.run(["git", "-C", str(ROOT), "archive", "--format=tar", baseline], capture_output=True)
    if made.returncode:
        told = made.stderr.decode().strip()
        raise SystemExit(f"Cannot read commit {baseline} ({told}). Run this in a git clone with its history.")
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(made.stdout)) as archive:
            archive.extractall(folder, filter="data")
        yield {"old": Path(folder), "new": ROOT}


def row(name: str, kind: str, target: str, results: dict[str, dict[str, Any]], memory: str = "bytes") -> dict[str, Any]:
    """A row of the table: both versions, and how many times as fast and as small the new one is."""
    ratios = {}
    for measure in ("seconds", memory):
        old, new = (results[version].get(measure) for version in ("old", "new"))
        least = {"bytes": RESOLUTION, "kept_bytes": 1}.get(measure, 0)
        ratios[measure] = None if old is None or new is None else max(old, least) / max(new, least)
    return {"name": name, "kind": kind, "target": target, "memory": memory, **results, "old_to_new": ratios}


@dataclass(frozen=True)
class Settings:
    """What is measured, and how often."""

    vit: str = "ViT-B/16"
    deep: str = "ResNet-50"
    residual: str = "ResNet-18"
    dense: str = "DenseNet-121"
    turns: int = 3
    repeats: int = 3
    zoo: tuple[int, int] = (1024, 64)
    zoo_repeats: int = 30
    models: tuple[str, ...] = ()


QUICK = Settings("small ViT", "small ResNet", "small ResNet", "small DenseNet", 1, 1, (8, 4), 2, ("monomial_gnn", "statnn"))


def measure(versions: Versions, settings: Settings, only: list[str], tell: Callable[[dict[str, Any]], None]) -> list[dict[str, Any]]:
    """All rows, each told as soon as it is known."""
    rows: list[dict[str, Any]] = []
    turns, repeats = settings.turns, settings.repeats

    def add(*arguments: Any, **options: Any) -> None:
        rows.append(row(*arguments, **options))
        tell(rows[-1])

    with tempfile.TemporaryDirectory() as folder:
        known: dict[str, tuple[dict[str, Path], dict[str, dict[str, Any]]]] = {}

        def prepared(network: str) -> tuple[dict[str, Path], dict[str, dict[str, Any]]]:
            """Folders of a network in both versions, and what kept a version from tracing it."""
            if network not in known:
                folders = {version: Path(folder, version, network.replace("/", "-")) for version in versions.folders}
                failures = {}
                for version, own in folders.items():
                    own.mkdir(parents=True)
                    result = versions.run(version, "prepare", folder=str(own), network=network)
                    if "error" in result:
                        failures[version] = {"error": f"tracing: {result['error']}"}
                known[network] = folders, failures
            return known[network]

        def of_network(network: str, task: str, **arguments: Any) -> dict[str, dict[str, Any]]:
            folders, failures = prepared(network)
            able = Versions({v: f for v, f in versions.folders.items() if v not in failures}, versions.threads, versions.seconds)
            results = able.compare(turns, task, folders, repeats=repeats, **arguments)
            return {version: failures.get(version) or results[version] for version in versions.folders}

        if "graph" in only:
            for edges, what in ((False, "graph"), (True, "graph with edges asked for")):
                target = "20x faster, 8x less memory" if not edges else ""
                add(f"{what} of one {settings.vit}", "graph", target, of_network(settings.vit, "measure_graph", edges=edges))
        if "models" in only:
            for model, network, target in (
                ("monomial_gnn", settings.vit, "under 3 GB"),
                ("monomial_gnn", settings.deep, "under 1 GB"),
                ("neural_graph", settings.residual, "3x faster, 5x less memory"),
            ):
                add(f"{model} on one {network}", "step", target, of_network(network, "measure_step", model=model))
    if "trace" in only:
        for network in (settings.dense, settings.deep):
            results = versions.compare(turns, "measure_trace", network=network, repeats=repeats)
            add(f"trace of a {network}, without torch.export", "trace", "at most 0.5 of torch.export's time", results)
    if "zoo" in only:
        large, small = settings.zoo
        for edges, what in ((False, "batch"), (True, "batch with edges asked for")):
            results = versions.compare(turns, "measure_batch", networks=large, edges=edges, repeats=settings.zoo_repeats)
            add(f"{what} of {large} zoo CNNs", "zoo", "no slower" if not edges else "", results)
        names = settings.models or tuple(versions.run("new", "models")["models"])
        for model in names:
            results = versions.compare(turns, "measure_model", model=model, networks=small, repeats=settings.zoo_repeats)
            add(f"{model}, a step on {small} zoo CNNs", "zoo", "no slower, keeps no more", results, memory="kept_bytes")
    return rows


# == Table and figure ==


def _amount(value: float | None, unit: float = 1.0) -> str:
    if value is None:
        return ""
    return f"{value / unit:,.0f}" if value >= 100 * unit else f"{value / unit:.3g}"


def show(rows: list[dict[str, Any]], baseline: str) -> None:
    """Print the table."""
    console = Console()
    console.width = max(console.width, 170)
    table = Table(title=f"This version against {baseline}", title_justify="left")
    table.add_column("work")
    for column in ("s, old", "s, new", "times faster", "MB, old", "MB, new", "times smaller"):
        table.add_column(column, justify="right", style="bold" if column.startswith("times") else None)
    table.add_column("target and notes")
    for each in rows:
        old, new, ratios = each["old"], each["new"], each["old_to_new"]
        notes = [each["target"]] if each["target"] else []
        if "relative_to_export" in new:
            before = f"{old['relative_to_export']:.2f}" if "relative_to_export" in old else "-"
            notes.append(f"relative to torch.export: {before} old, {new['relative_to_export']:.2f} new")
        notes += [f"{version}: {each[version]['error']}" for version in ("old", "new") if "error" in each[version]]
        cells = []
        for measure, unit in (("seconds", 1.0), (each["memory"], 1e6)):
            cells += [_amount(old.get(measure), unit), _amount(new.get(measure), unit)]
            cells.append(_amount(ratios[measure]))
        table.add_row(each["name"], *cells, "; ".join(notes))
    console.print(table)


def draw(rows: list[dict[str, Any]], title: str) -> Figure:
    """Bars of how many times as fast and as small this version is."""
    figure = Figure(figsize=(12, 1.5 + 0.42 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for measure, label, color, shift in (("seconds", "times faster", "#0072B2", -0.2), ("memory", "times less memory", "#E69F00", 0.2)):
        values = [each["old_to_new"][each["memory"] if measure == "memory" else measure] for each in rows]
        known = [(i + shift, value) for i, value in enumerate(values) if value is not None]
        if known:
            bars = axes.barh([y for y, _ in known], [value for _, value in known], 0.38, color=color, label=label)
            axes.bar_label(bars, [_amount(value) for _, value in known], padding=3, fontsize=8)
    for i, each in enumerate(rows):
        told = [f"{v}: {each[v]['error'].partition(':')[0]}" for v in ("old", "new") if "error" in each[v]]  # the table says more
        if told:
            new = each["new"]
            sizes = [] if "error" in new else [f"new: {new['seconds']:.3g} s, {new[each['memory']] / 1e6:,.0f} MB"]
            note = axes.annotate("; ".join([*sizes, *(text[:90] for text in told)]), (1.05, i), fontsize=8, va="center")
            note.set_in_layout(False)  # long texts would leave no room for the bars
    axes.axvline(1, color="grey", linewidth=0.8)
    axes.set_xscale("log")
    axes.margins(x=0.12)
    axes.set_yticks(range(len(rows)), [each["name"] for each in rows], fontsize=9)
    axes.invert_yaxis()
    axes.set_xlabel("ratio to the earlier version, more is better")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    axes.set_title(title, fontsize=11)
    return figure


PARTS = ("graph", "models", "trace", "zoo")


def main() -> None:
    """Measure, print the table, write the JSON and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baseline", default=BASELINE, help=f"commit, or folder of a tree, to compare with (default: {BASELINE})")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="some of the rows (default: all)")
    parser.add_argument("--turns", type=int, help="fresh processes of each version for every row (default: 3)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads (default: all cores)")
    parser.add_argument("--seconds", type=float, default=1800.0, help="longest time of one measurement")
    parser.add_argument("--quick", action="store_true", help="small networks, once, to see that everything runs")
    parser.add_argument(
        "--output", type=Path, help="folder of the JSON and the figure (default: results; --quick and --only write only if it is given)"
    )
    arguments = parser.parse_args()
    settings = QUICK if arguments.quick else Settings()
    if arguments.turns:
        settings = dataclasses.replace(settings, turns=arguments.turns)
    torch.set_num_threads(arguments.threads)
    began = time.perf_counter()

    def tell(each: dict[str, Any]) -> None:
        told = {v: {k: value for k, value in each[v].items() if k != "turns"} for v in ("old", "new")}
        print(f"{time.perf_counter() - began:6.0f} s  {each['name']}: {told}", file=sys.stderr)

    with checkouts(arguments.baseline) as folders:
        rows = measure(Versions(folders, arguments.threads, arguments.seconds), settings, arguments.only, tell)
    show(rows, arguments.baseline)
    if arguments.output is None and (arguments.quick or set(arguments.only) != set(PARTS)):
        return
    folder = arguments.output or Path(__file__).parent / "results"
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "command": shlex.join(["python", "benchmarks/real_networks.py", *sys.argv[1:]]),
        "machine": machine(),
        "baseline": arguments.baseline,
        "settings": dataclasses.asdict(settings),
        "seconds": time.perf_counter() - began,
        "rows": rows,
    }
    write_json(folder / "real_networks.json", document)
    figure = draw(rows, f"Real networks, this version against {arguments.baseline}")
    write_atomically(folder / "real_networks.png", lambda path: figure.savefig(path, format="png", dpi=130))


if __name__ == "__main__":
    main()
