"""Independent parameters of one parameter-sharing layer, counted on the layers themselves, as the networks it reads grow.

A larger group leaves fewer maps. Layers equivariant under permutations alone map every weight and bias of a network to every other through
means, so that their parameters grow with the square of its depth. Under scales too, hidden layers can only be mapped to themselves, and the
growth is linear. Hidden width changes nothing for either, channels cost their square, and inputs and outputs that are told apart cost the
square of their number, or the cube where a layer reads the product of all weights. Run from the repository root:

    python benchmarks/parameter_count.py
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import nn

from wsgraph import WeightSpace
from wsgraph.files import write_atomically, write_json
from wsgraph.measure import machine
from wsgraph.nn.sharing import HNPLinear, MAGEPLinear, MonomialLinear, NPLinear, SharingLinear

# By layer, the symmetry it respects. Okabe and Ito's colours; markers and dashes carry the difference without colour.
LAYERS: dict[type[nn.Module], tuple[str, str, str, str]] = {
    NPLinear: ("permutation", "#0072B2", "o", "-"),
    HNPLinear: ("permutation", "#56B4E9", "s", "--"),
    MonomialLinear: ("permutation x scale", "#D55E00", "^", "-"),
    MAGEPLinear: ("permutation x scale", "#E69F00", "D", "--"),
}


class Sweep(NamedTuple):
    """What is varied, its values, and the widths and channels that a value stands for."""

    variable: str
    fixed: str
    values: tuple[int, ...]
    case: Callable[[int], tuple[list[int], int]]


SWEEPS = {
    "depth": Sweep("layers L", "2-32-...-32-1, 16 channels", (2, 4, 8, 16, 32), lambda value: ([2, *[32] * (value - 1), 1], 16)),
    "width": Sweep("hidden width", "2-n-n-n-1, 16 channels", (8, 16, 32, 64, 128, 256), lambda value: ([2, value, value, value, 1], 16)),
    "channels": Sweep("channels in and out", "2-32-32-32-1", (1, 2, 4, 8, 16, 32, 64), lambda value: ([2, 32, 32, 32, 1], value)),
    "ends": Sweep(
        "inputs = outputs", "n-32-32-32-n, 16 channels", (1, 2, 4, 8, 16, 32, 64), lambda value: ([value, 32, 32, 32, value], 16)
    ),
}


def count_parameters(layer: type[nn.Module], sizes: Sequence[int], channels: int) -> int:
    """Trainable parameters of a layer that maps a number of channels to as many, constants that only act through their sum counted once."""
    built = layer(WeightSpace.mlp(sizes), channels, channels)
    return sum(p.numel() for p in built.parameters() if p.requires_grad) - (
        _repeated_constants(built) if isinstance(built, SharingLinear) else 0
    )


def _repeated_constants(layer: SharingLinear) -> int:
    """Every term that writes a parameter adds a constant of its own to it."""
    written = [target.param for term in layer.terms if term.bias for target in term.targets]
    sizes = {
        target.param: rows
        for term, counts in zip(layer.terms, layer.rows, strict=True)
        for target, rows in zip(term.targets, counts, strict=True)
    }
    return sum((written.count(name) - 1) * sizes[name] for name in set(written))


def slope_of_tail(values: Sequence[int], counts: Sequence[int]) -> float:
    """Exponent of the power law through the last three points."""
    x, y = ([math.log(value) for value in numbers[-3:]] for numbers in (values, counts))
    return statistics.linear_regression(x, y).slope


def measure(sweep: Sweep, values: Sequence[int]) -> dict[str, Any]:
    """Counts and exponents of every layer."""
    counts = {layer.__name__: [count_parameters(layer, *sweep.case(value)) for value in values] for layer in LAYERS}
    slopes = {name: slope_of_tail(values, numbers) for name, numbers in counts.items()}
    return {"variable": sweep.variable, "fixed": sweep.fixed, "values": list(values), "counts": counts, "slopes": slopes}


def show(console: Console, result: dict[str, Any]) -> None:
    """Print the table of one sweep."""
    table = Table("layer", title=f"{result['variable']} ({result['fixed']})", title_justify="left")
    for value in result["values"]:
        table.add_column(str(value), justify="right")
    table.add_column("exponent", justify="right", style="bold")
    for name, numbers in result["counts"].items():
        table.add_row(name, *(f"{number:,}" for number in numbers), f"{result['slopes'][name]:.2f}")
    console.print(table)


def draw(results: dict[str, dict[str, Any]]) -> Figure:
    """One panel per sweep, both axes logarithmic, exponents at the ends of the curves."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    for axes, result in zip(figure.subplots(1, len(results), sharey=True), results.values(), strict=True):
        for layer, (symmetry, color, marker, dashes) in LAYERS.items():
            name = layer.__name__
            style: dict[str, Any] = {"color": color, "marker": marker, "linestyle": dashes, "markersize": 5}
            axes.plot(result["values"], result["counts"][name], label=f"{name} ({symmetry})", **style)
        axes.set_xscale("log", base=2)
        axes.set_xlim(right=result["values"][-1] * (result["values"][-1] / result["values"][0]) ** 0.2)
        height = -math.inf
        for layer in sorted(LAYERS, key=lambda layer: result["counts"][layer.__name__][-1]):
            # Where curves end together, the numbers move up to stay apart.
            height = max(math.log10(result["counts"][layer.__name__][-1]), height + 0.42)
            text = f"{result['slopes'][layer.__name__]:.1f}"
            axes.annotate(text, (result["values"][-1], 10**height), (7, -3), textcoords="offset points", color=LAYERS[layer][1], fontsize=8)
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xlabel(result["variable"])
        axes.set_title(result["fixed"], fontsize=10)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        "Independent parameters of one layer; the numbers beside the curves are the exponents of their last three points", fontsize=11
    )
    figure.axes[0].set_ylabel("independent parameters")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(LAYERS), frameon=False, fontsize=9)
    return figure


def main() -> None:
    """Count, print the tables, write the JSON and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the three smallest networks of every sweep")
    parser.add_argument(
        "--output", type=Path, help="folder of the JSON and the figure (default: results; --quick writes only if it is given)"
    )
    options = parser.parse_args()
    results = {name: measure(sweep, sweep.values[: 3 if options.quick else None]) for name, sweep in SWEEPS.items()}
    console = Console()
    console.width = max(console.width, 120)
    for result in results.values():
        show(console, result)
    if options.quick and options.output is None:
        return
    folder = options.output or Path(__file__).parent / "results"
    folder.mkdir(parents=True, exist_ok=True)
    symmetries = {layer.__name__: symmetry for layer, (symmetry, *_) in LAYERS.items()}
    write_json(folder / "parameter_count.json", {"machine": machine(), "symmetries": symmetries, "sweeps": results})
    figure = draw(results)
    write_atomically(folder / "parameter_count.png", lambda path: figure.savefig(path, format="png", dpi=150))


if __name__ == "__main__":
    main()
