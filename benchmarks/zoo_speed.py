"""Networks trained per second: the zoo trainer, all networks side by side, against a plain torch loop, one network after the other.

Both train the same architecture on the same digits with the same number of steps, batch size, learning rates, weight decays and dropout
rates. Every worker computes with one thread: the operations of one small network are no faster with more. `make_zoo` uses one worker per
core; a single worker is measured too, which compares the trainers core by core. Run from the repository root:

    python benchmarks/zoo_speed.py
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from wsgraph import WeightSpace
from wsgraph.data import ClassificationData, CounterRandom, HyperparameterRanges, digits
from wsgraph.data.generators.classifiers import train_population
from wsgraph.files import write_json
from wsgraph.measure import machine

BATCH_SIZE = 16
STRIDES = (2, 1, 1)


def _plain_network(dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels, stride in zip((1, 16, 16), STRIDES, strict=True):
        layers += [nn.Conv2d(channels, 16, 3, stride, 1), nn.ReLU(), nn.Dropout2d(dropout)]
    return nn.Sequential(*layers[:-1], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(16, 10))


def train_one_by_one(data: ClassificationData, hyperparameters: dict[str, Tensor], *, fused: bool) -> None:
    """The loop that the zoo trainer replaces."""
    for i in range(len(hyperparameters["steps"])):
        h = {name: float(values[i]) for name, values in hyperparameters.items()}
        network = _plain_network(h["dropout"])
        optimizer = torch.optim.AdamW(network.parameters(), lr=h["learning_rate"], weight_decay=h["weight_decay"], fused=fused)
        count = round(h["training_fraction"] * len(data.images))
        order = torch.randperm(len(data.images))[:count]
        for _ in range(int(h["steps"])):
            chosen = order[torch.randint(count, (BATCH_SIZE,))]
            optimizer.zero_grad()
            F.cross_entropy(network(data.images[chosen]), data.labels[chosen]).backward()
            optimizer.step()


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(population: int, single: int, steps: int, rounds: int) -> dict[str, Any]:
    """Time both trainers in alternation, so that whatever else the machine does falls on both."""
    data = digits()
    space = WeightSpace.cnn([1, 16, 16, 16], [10], "relu", stride=STRIDES, padding=1)
    workers = torch.get_num_threads()
    torch.set_num_threads(1)
    networks = torch.arange(population * workers)
    every = HyperparameterRanges(steps=(steps, steps)).sample(CounterRandom(0), networks)
    some = {name: values[:single] for name, values in every.items()}

    def side_by_side(members: Tensor) -> None:
        train_population(space, data, members, {name: values[members] for name, values in every.items()}, batch_size=BATCH_SIZE)

    def all_workers() -> None:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(side_by_side, networks.split(population)))

    reference = f"side by side, {workers} workers"
    contestants: dict[str, tuple[int, Callable[[], object]]] = {
        reference: (len(networks), all_workers),
        "side by side, 1 worker": (population, lambda: side_by_side(networks[:population])),
        "one by one": (single, lambda: train_one_by_one(data, some, fused=False)),
        "one by one, fused optimizer": (single, lambda: train_one_by_one(data, some, fused=True)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _, work in contestants.values():
        work()
    for _ in range(rounds):
        for name, (count, work) in contestants.items():
            seconds[name].append(_seconds(work) / count)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "machine": machine(),
        "space": repr(space),
        "population": population,
        "workers": workers,
        "steps": steps,
        "batch_size": BATCH_SIZE,
        "rounds": rounds,
        "trainers": {
            name: {
                "networks_per_second": 1 / median,
                "seconds_per_network": seconds[name],
                "times_slower": median / medians[reference],
                "times_slower_by_round": [a / b for a, b in zip(seconds[name], seconds[reference], strict=True)],
            }
            for name, median in medians.items()
        },
    }


def main() -> None:
    """Measure, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--population", type=int, default=64, help="networks trained side by side")
    parser.add_argument("--single", type=int, default=6, help="networks per round of the plain loop")
    parser.add_argument("--steps", type=int, default=100, help="training steps per network")
    parser.add_argument("--rounds", type=int, default=7, help="rounds after one to warm up")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "zoo_speed.json")
    arguments = parser.parse_args()
    result = measure(arguments.population, arguments.single, arguments.steps, arguments.rounds)
    table = Table("training", "networks/s", "times slower", title=f"{result['space']}, {result['steps']} steps of {BATCH_SIZE} examples")
    for name, row in result["trainers"].items():
        table.add_row(name, f"{row['networks_per_second']:.1f}", f"{row['times_slower']:.1f}")
    Console().print(table)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(arguments.output, result)


if __name__ == "__main__":
    main()
