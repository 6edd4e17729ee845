"""Kendall's tau of every model on a ReLU and a Tanh zoo of 1,500 digits CNNs, and what carries the gain of monomial_gnn.

The zoos are made first (1-16-16-16-10 channels; 1,024 networks to train on, 120 to choose the epoch, 356 to test). Every model then trains
for the same 30 epochs by the same recipe, once per seed, and is scored on the test networks as they are and on the same networks moved:
permuted, scaled by U[1, 10,000] (ReLU) or with signs flipped (Tanh). The first table compares all registered models, the second changes
one thing in monomial_gnn at a time. Every finished training is kept in the work folder, so that a run that was stopped goes on. Run from
the repository root:

    python benchmarks/accuracy_prediction.py
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple, cast

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn

from wsgraph import ParameterGraph, WeightSpace
from wsgraph.data import make_cnn_zoo
from wsgraph.files import write_atomically, write_json
from wsgraph.measure import machine
from wsgraph.nn import MonomialConv, MonomialGNN, Probes, list_models, register_model
from wsgraph.nn.heads import mlp_head
from wsgraph.space import Symmetry
from wsgraph.tasks import run

ACTIVATIONS = ("relu", "tanh")
SCALE = 10_000
OURS, RIVAL = "monomial_gnn", "magep"


# == What is taken away from monomial_gnn ==


class _Ungated(nn.Module):
    def forward(self, x: Tensor, *others: Any) -> Tensor:
        return x


@register_model("monomial_gnn without gates", family="ablation")
class WithoutGates(MonomialGNN):
    """Both streams linear in the weights, but for the activation."""

    def __init__(self, space: WeightSpace, out_channels: int, **options: Any) -> None:
        super().__init__(space, out_channels, **options)
        for conv in self.convs:
            for gates in (cast(MonomialConv, conv).forward_gates, cast(MonomialConv, conv).backward_gates):
                gates.update({key: _Ungated() for key in gates})


@register_model("monomial_gnn without activation", family="ablation")
class WithoutActivation(MonomialGNN):
    """No channel of the activation stream passes through a function of its own."""

    def __init__(self, space: WeightSpace, out_channels: int, **options: Any) -> None:
        super().__init__(space, out_channels, **options)
        for conv in self.convs:
            cast(Any, conv).activate = _unchanged


def _unchanged(x: Tensor, symmetry: Symmetry) -> Tensor:
    return x


@register_model("monomial_gnn with mean readout", family="ablation")
class MeanReadout(MonomialGNN):
    """The mean over the neurons of a level alone, without standard deviation and maximum."""

    pooling = ("mean",)


@register_model("probes alone", family="ablation")
class ProbesAlone(nn.Module):
    """The answers to learned inputs without any message passing."""

    symmetries = ("permutation", "scale", "sign")

    def __init__(self, space: WeightSpace, out_channels: int, *, probes: int = 64, hidden: int = 128, dropout: float = 0.2) -> None:
        super().__init__()
        self.probes = Probes(space, probes)
        self.head = mlp_head([self.probes.out_features, hidden, hidden, hidden, out_channels], dropout)

    def forward(self, batch: ParameterGraph) -> Tensor:
        output: Tensor = self.head(self.probes(batch))
        return output


class Case(NamedTuple):
    """One row of a table: a model with options."""

    name: str
    model: str
    options: dict[str, Any]


def models() -> list[Case]:
    """Every registered model with its default options; the names of ablations have spaces."""
    registered = [name for name in list_models() if " " not in name]
    return [Case(name, name, {}) for name in registered] + [Case("scalegmn bidirectional", "scalegmn", {"bidirectional": True})]


def ablations() -> list[Case]:
    """monomial_gnn with one thing changed at a time, and what explains its parts."""
    changed = [
        Case("1 round", OURS, {"rounds": 1}),
        Case("2 rounds", OURS, {"rounds": 2}),
        Case("4 rounds", OURS, {"rounds": 4}),
        Case("width 32", OURS, {"channels": 32}),
        Case("width 128", OURS, {"channels": 128}),
        Case("no gates", "monomial_gnn without gates", {}),
        Case("no activation in the stream", "monomial_gnn without activation", {}),
        Case("mean readout", "monomial_gnn with mean readout", {}),
        Case("no weight noise", OURS, {"weight_noise": 0.0}),
        Case("no probes", OURS, {"probes": 0}),
        Case("128 probes", OURS, {"probes": 128}),
        Case("64 probes alone", "probes alone", {}),
        Case("neural_graph with 64 probes", "neural_graph", {"probes": 64}),
    ]
    return [Case("default (width 64, 3 rounds, 64 probes)", OURS, {}), *changed]


# == Running ==


def make_zoo(folder: Path, activation: str, networks: int) -> Path:
    """A zoo with its networks divided at random into 1,024 of 1,500 for training, 120 for validation and the rest for testing."""
    path = folder / f"zoo-{activation}"
    if (path / "columns.safetensors").exists():  # divided already
        return path
    zoo = make_cnn_zoo(path, networks, activation, seed=0)
    numbers = zoo.column("network").argsort(kind="stable")
    order = torch.randperm(len(zoo), generator=torch.Generator().manual_seed(0)).numpy()
    train, validation = len(zoo) * 1024 // 1500, len(zoo) * 120 // 1500
    split = np.full(len(zoo), "test", dtype="U5")
    split[numbers[order[:train]]] = "train"
    split[numbers[order[train : train + validation]]] = "val"
    zoo.set_column("split", split)
    return path


def train(case: Case, zoo: Path, seed: int, epochs: int, result: Path) -> None:
    """Train one model in a process of its own, on one thread, and write what came of it."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning").setLevel(logging.ERROR)
    done = run(
        "generalization",
        zoo=zoo,
        model=case.model,
        epochs=epochs,
        seed=seed,
        scales=[SCALE],
        output=result.with_suffix(""),
        progress=False,
        model_options=case.options,
    )
    write_json(result, {"case": case._asdict(), "zoo": zoo.name, "seed": seed, "epochs": epochs, **done.metrics})


def run_all(cases: Sequence[Case], zoos: dict[str, Path], seeds: Sequence[int], arguments: argparse.Namespace) -> dict[str, Any]:
    """Every case on every zoo with every seed: ``{case: {activation: [metrics per seed]}}``."""
    jobs: dict[tuple[str, str, int], tuple[Case, Path, int, int, Path]] = {}
    for seed in seeds:
        for case in cases:
            for activation, zoo in zoos.items():
                options = "-".join(f"{name}={value}" for name, value in sorted(case.options.items()))
                name = f"{case.model}-{options}-{activation}-{seed}-{arguments.epochs}".replace(" ", "_")
                jobs[case.name, activation, seed] = (case, zoo, seed, arguments.epochs, arguments.folder / "runs" / f"{name}.json")
    # A case that appears in both tables has one file, and is trained once.
    missing = {job[-1]: job for job in jobs.values() if not job[-1].exists()}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.workers, mp_context=context) as pool, Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("training", total=len(missing))
        for future in as_completed([pool.submit(train, *job) for job in missing.values()]):
            future.result()
            progress.advance(bar)
    return {
        case.name: {activation: [json.loads(jobs[case.name, activation, seed][-1].read_text()) for seed in seeds] for activation in zoos}
        for case in cases
    }


# == Reporting ==


def summary(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Per case and zoo the mean and standard deviation over seeds, and the largest change under moved networks."""
    rows = []
    for name, by_zoo in results.items():
        row: dict[str, Any] = {"name": name}
        for activation, runs in by_zoo.items():
            taus = [entry["tau"] for entry in runs]
            row[activation] = {
                "tau": statistics.fmean(taus),
                "deviation": statistics.stdev(taus) if len(taus) > 1 else 0.0,
                "taus": taus,
                "tau_moved": statistics.fmean(entry[f"tau_scale_{SCALE}"] for entry in runs),
                "largest_change": max(abs(entry[f"tau_scale_{SCALE}"] - entry["tau"]) for entry in runs),
                "seconds_per_epoch": statistics.median(entry["seconds_per_epoch"] for entry in runs),
            }
            row["parameters"] = int(runs[0]["parameters"])
        rows.append(row)
    return rows


def show(title: str, rows: list[dict[str, Any]], console: Console) -> None:
    """Print one table."""
    table = Table(title=title)
    table.add_column("model")
    table.add_column("parameters", justify="right")
    for activation in ACTIVATIONS:
        table.add_column(f"{activation}: tau", justify="right")
        table.add_column("moved", justify="right")
        table.add_column("s / epoch", justify="right")
    for row in rows:
        cells = [row["name"], f"{row['parameters']:,}"]
        for activation in ACTIVATIONS:
            entry = row[activation]
            cells += [f"{entry['tau']:.3f} ± {entry['deviation']:.3f}", f"{entry['tau_moved']:.3f}", f"{entry['seconds_per_epoch']:.1f}"]
        table.add_row(*cells)
    console.print(table)


def draw(tables: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Horizontal dots with one small mark per seed, one row per model, one column per zoo, one block per table."""
    heights = [len(rows) for rows in tables.values()]
    figure = Figure(figsize=(8.6, 0.31 * sum(heights) + 1.4), dpi=160, layout="constrained")
    axes = figure.subplots(len(tables), len(ACTIVATIONS), squeeze=False, height_ratios=heights)
    for line, (title, rows) in zip(axes, tables.items(), strict=True):
        for axis, activation in zip(line, ACTIVATIONS, strict=True):
            ordered = rows if title == "ablation" else sorted(rows, key=lambda row: row[activation]["tau"])
            for height, row in enumerate(reversed(ordered) if title == "ablation" else ordered):
                entry, ours = row[activation], row["name"].startswith(("monomial_gnn", "default"))
                color = "#D55E00" if ours else "#0072B2"
                axis.plot(entry["taus"], [height] * len(entry["taus"]), "|", color=color, markersize=9, markeredgewidth=1.2)
                axis.plot(entry["tau"], height, "o", color=color, markersize=6)
                if title != "ablation":  # whose differences are small beside what moving the networks does to some
                    axis.plot(entry["tau_moved"], height, "o", color=color, markersize=6, fillstyle="none", zorder=0)
            names = [row["name"] for row in ordered]
            axis.set_yticks(range(len(names)), list(reversed(names)) if title == "ablation" else names, fontsize=8)
            axis.grid(axis="x", color="0.9", linewidth=0.8)
            axis.set_axisbelow(True)
            axis.set_title(f"{activation} zoo, {title}", fontsize=9, loc="left")
            axis.tick_params(labelsize=8)
            for side in ("top", "right"):
                axis.spines[side].set_visible(False)
    for axis in axes[-1]:
        axis.set_xlabel(r"Kendall's $\tau$ (open: moved)", fontsize=8.5)

    def save(temporary: Path) -> None:
        figure.savefig(temporary, format="png")

    write_atomically(path, save)


def verdict(rows: list[dict[str, Any]], activation: str) -> str:
    """How far ahead ours is."""
    tau = {row["name"]: row[activation]["tau"] for row in rows}
    best = max((name for name in tau if name != OURS), key=lambda name: tau[name])
    return (
        f"{activation}: {OURS} is {tau[OURS] - tau[RIVAL]:+.3f} to {RIVAL}, {tau[OURS] - tau[best]:+.3f} to {best}, the best of the others"
    )


def main() -> None:
    """Make the zoos, train what is missing, and write tables, JSON and PNG."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/accuracy_prediction"), help="work folder: zoos and finished trainings")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="folder of the JSON and PNG")
    parser.add_argument("--networks", type=int, default=1500)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the comparison of models")
    parser.add_argument("--ablation-seeds", type=int, default=2, help="seeds of the ablation")
    parser.add_argument("--workers", type=int, default=2, help="trainings at once, one thread each")
    parser.add_argument("--tables", nargs="+", choices=["models", "ablation"], default=["models", "ablation"])
    parser.add_argument("--quick", action="store_true", help="a few networks and epochs, to see that everything runs")
    arguments = parser.parse_args()
    chosen: dict[str, Callable[[], list[Case]]] = {"models": models, "ablation": ablations}
    seeds = {"models": arguments.seeds, "ablation": arguments.ablation_seeds}
    if arguments.quick:
        arguments.networks, arguments.epochs, seeds = 48, 1, {"models": 2, "ablation": 1}
        chosen = {"models": lambda: [Case(name, name, {}) for name in (OURS, RIVAL, "statnn")], "ablation": lambda: ablations()[::6]}
    began = time.time()
    arguments.folder = arguments.folder.resolve()
    zoos = {activation: make_zoo(arguments.folder, activation, arguments.networks) for activation in ACTIVATIONS}
    tables = {name: summary(run_all(chosen[name](), zoos, range(seeds[name]), arguments)) for name in arguments.tables}
    console = Console(width=None if sys.stdout.isatty() else 130)
    for name, rows in tables.items():
        show(f"{name}: {arguments.epochs} epochs, mean ± standard deviation over {seeds[name]} seeds", rows, console)
    if "models" in tables:
        for activation in ACTIVATIONS:
            console.print(verdict(tables["models"], activation))
    arguments.output.mkdir(parents=True, exist_ok=True)
    document = {
        "machine": machine(),
        "networks": arguments.networks,
        "epochs": arguments.epochs,
        "seeds": seeds,
        "workers": arguments.workers,
        "seconds": time.time() - began,
        "tables": tables,
    }
    write_json(arguments.output / "accuracy_prediction.json", document)
    draw(tables, arguments.output / "accuracy_prediction.png")


if __name__ == "__main__":
    matplotlib.use("agg")
    main()
