"""Parameter-sharing layers against the published implementations, written out in published.py: time and memory of a training step.

Every layer maps 16 channels to 16 for a batch of networks. A step is a forward and a backward pass, down to the parameters and to the
input; the two implementations take turns, so that whatever else the machine does falls on both. Three numbers each: the median time of a
step; the bytes that autograd keeps for the backward pass beyond the input and the parameters, which exist anyway; and the peak of a step.
Both read the same networks: ours in the memory that one of our layers leaves, the published ones in contiguous memory. Ratios are published
over ours: above 1, ours is faster or smaller.

The second table runs the polynomial layer on two networks that differ in their number of inputs n_0. For few inputs ours never forms the
products of weights, for many it does, one layer at a time: "other order" is the same layer made to choose the other way. Run from the
repository root:

    python benchmarks/sharing_speed.py
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import re
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import published
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from wsgraph import WeightSpace
from wsgraph.files import write_atomically, write_json
from wsgraph.measure import kept_bytes, machine, peak_memory
from wsgraph.nn.sharing import HNPLinear, MAGEPInvariant, MAGEPLinear, MonomialLinear, NPLinear
from wsgraph.space import Blocks

CHANNELS = 16
WARM_UP = 3


class Network(NamedTuple):
    """A chain of layers by its widths and the kernels of its weights."""

    sizes: tuple[int, ...]
    kernels: tuple[tuple[int, int] | None, ...]

    @property
    def name(self) -> str:
        runs = [(size, len(list(run))) for size, run in itertools.groupby(self.sizes)]
        widths = "-".join(f"{size}x{count}" if count > 3 else "-".join([str(size)] * count) for size, count in runs)
        return f"CNN {widths}" if any(self.kernels) else widths

    @property
    def space(self) -> WeightSpace:
        return WeightSpace.cnn(self.sizes[:-1], self.sizes[-1:], stride=2) if any(self.kernels) else WeightSpace.mlp(self.sizes)


def mlp(*sizes: int) -> Network:
    """A network of dense layers."""
    return Network(sizes, (None,) * (len(sizes) - 1))


class Kind(NamedTuple):
    """A layer in both implementations."""

    ours: type[nn.Module]
    published: type[published.PublishedLayer]
    polynomial: bool = False
    has_reference: bool = True

    def options(self, terms: str) -> dict[str, bool]:
        return {"reference": True} if terms == "published" and self.has_reference else {}


KINDS = {
    "np": Kind(NPLinear, published.NPLinear, has_reference=False),
    "hnp": Kind(HNPLinear, published.HNPLinear),
    "monomial": Kind(MonomialLinear, published.MonomialLinear, has_reference=False),
    "magep": Kind(MAGEPLinear, published.MAGEPLinear, polynomial=True),
    "magep_invariant": Kind(MAGEPInvariant, published.MAGEPInvariant, polynomial=True),
}
# The last is the architecture of the Small CNN Zoo. Polynomial layers need one kernel position per weight and leave it out.
NETWORKS = (
    mlp(2, 32, 32, 1),
    mlp(2, 64, 64, 64, 3),
    mlp(2, 128, 128, 128, 128, 128, 128, 3),
    Network((1, 16, 16, 16, 10), ((3, 3), (3, 3), (3, 3), None)),
)
BY_INPUTS = (mlp(2, 128, 128, 128, 3), mlp(64, 128, 128, 128, 3))
# Okabe and Ito's colours with hatches: safe for colour-blind readers and readable in greyscale.
STYLES = (("#0072B2", ""), ("#E69F00", "//"), ("#009E73", "\\\\"), ("#CC79A7", "xx"))
# By measure, its title, and the unit and size of that unit in tables.
MEASURES = {
    "milliseconds": ("time of a step", "ms", 1.0),
    "peak_bytes": ("peak memory of a step", "peak MB", 1e6),
    "kept_bytes": ("memory kept for backward", "kept MB", 1e6),
}


# == What is measured ==


class Contestant:
    """One implementation of a layer, its input, and fixed gradients of its outputs.

    Args:
        layer: The layer.
        inputs: Every tensor of the input.
        call: Applies the layer to the input and returns every tensor of the output.
    """

    def __init__(self, layer: nn.Module, inputs: Sequence[Tensor], call: Callable[[], Sequence[Tensor]]) -> None:
        self.call = call
        self.leaves = [*inputs, *layer.parameters()]
        self.num_params = sum(p.numel() for p in layer.parameters() if p.requires_grad)
        self.gradients = [torch.randn_like(output) for output in call()]

    def forget(self) -> None:
        """Free the gradients of the last step."""
        for leaf in self.leaves:
            leaf.grad = None

    def step(self) -> None:
        self.forget()
        torch.autograd.backward(self.call(), self.gradients)

    def milliseconds(self) -> float:
        device = self.leaves[0].device
        _synchronize(device)
        start = time.perf_counter()
        self.step()
        _synchronize(device)
        return 1000 * (time.perf_counter() - start)

    def kept_bytes(self) -> int:
        return kept_bytes(self.call, given=self.leaves)

    def peak_bytes(self) -> int:
        self.forget()
        return peak_memory(self.step)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def contestants(
    kind: Kind, network: Network, options: argparse.Namespace, batch: int, *, other_order: bool = False
) -> dict[str, Contestant]:
    """Both implementations, with the same networks as input, and ours in the other order of contraction if asked for."""
    torch.manual_seed(0)
    where, space = (options.device, getattr(torch, options.dtype)), network.space
    previous = KINDS["magep"] if kind.polynomial else kind
    before = previous.ours(space, 1, CHANNELS, **previous.options(options.terms)).to(*where)
    ours = kind.ours(space, CHANNELS, CHANNELS, **kind.options(options.terms)).to(*where)
    theirs = kind.published(network.sizes, network.kernels, CHANNELS, CHANNELS).to(*where)
    blocks: Blocks = before(space.blocks(space.sample(batch).to(*where))).map(lambda tensor: tensor.detach().requires_grad_())
    weights = [
        _published_layout(weight, kernel) for weight, kernel in zip(blocks.weights, network.kernels, strict=True) if weight is not None
    ]
    biases = [_published_layout(bias, None) for bias in blocks.biases if bias is not None]

    def reading_blocks(layer: nn.Module) -> Contestant:
        def call() -> Sequence[Tensor]:
            result = layer(blocks)
            return _tensors(result) if isinstance(result, Blocks) else [result]

        return Contestant(layer, _tensors(blocks), call)

    def call_published() -> Sequence[Tensor]:
        result = theirs(weights, biases)
        return [result] if isinstance(result, Tensor) else [*result[0], *result[1]]

    both = {"ours": reading_blocks(ours), "published": Contestant(theirs, [*weights, *biases], call_published)}
    return both | {"other_order": reading_blocks(_in_other_order(ours))} if other_order else both


def _in_other_order(layer: nn.Module) -> nn.Module:
    layer = copy.deepcopy(layer)
    choices = [module for module in layer.modules() if hasattr(module, "forms_products")]
    assert choices, "Expected a layer that chooses its order of contraction."
    for module in choices:
        module.forms_products = not module.forms_products  # type: ignore[assignment]
    return layer


def _tensors(blocks: Blocks) -> list[Tensor]:
    return list(blocks.tensors.values())


def _published_layout(block: Tensor, kernel: tuple[int, int] | None) -> Tensor:
    """Channels first and kernel positions last, contiguous."""
    tensor = block.detach().movedim(-1, 1)
    if block.ndim == 5:
        tensor = tensor.unflatten(-1, kernel) if kernel else tensor.squeeze(-1)
    return tensor.clone(memory_format=torch.contiguous_format).requires_grad_()


def measure(name: str, network: Network, options: argparse.Namespace, batch: int, *, other_order: bool = False) -> dict[str, Any]:
    """Time and memory of the implementations of one layer on one network."""
    every = contestants(KINDS[name], network, options, batch, other_order=other_order)
    times: dict[str, list[float]] = {who: [] for who in every}
    for i in range(WARM_UP + options.repeats):
        for who, contestant in every.items():
            elapsed = contestant.milliseconds()
            if i >= WARM_UP:
                times[who].append(elapsed)
    result: dict[str, Any] = {"layer": name, "network": network.name, "batch": batch}
    for who, contestant in every.items():
        result[who] = {
            "milliseconds": statistics.median(times[who]),
            "milliseconds_by_repeat": times[who],
            "kept_bytes": contestant.kept_bytes(),
            "peak_bytes": contestant.peak_bytes(),
            "trainable_parameters": contestant.num_params,
        }
    # A layer that keeps nothing has no ratio.
    result["ratios"] = {m: result["published"][m] / result["ours"][m] if result["ours"][m] else None for m in MEASURES}
    return result


def geometric_mean(values: Sequence[float | None]) -> float | None:
    """Geometric mean of what is known."""
    known = [math.log(value) for value in values if value]
    return math.exp(statistics.fmean(known)) if known else None


# == What is shown ==


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _amounts(row: dict[str, Any], measure: str, *who: str) -> list[str]:
    return [f"{row[name][measure] / MEASURES[measure][2]:.{2 if row['ours'][measure] / MEASURES[measure][2] < 10 else 1}f}" for name in who]


def _table(rows: Sequence[dict[str, Any]], means: dict[str, dict[str, float | None]], title: str) -> Table:
    table = Table("layer", "network", title=f"{title}: ours / published, and their ratio")
    for _, unit, _ in MEASURES.values():
        table.add_column(unit, justify="right", no_wrap=True)
        table.add_column("ratio", justify="right", style="bold")
    for name, mean in means.items():
        for row in (row for row in rows if row["layer"] == name):
            cells = [(" / ".join(_amounts(row, m, "ours", "published")), _ratio(row["ratios"][m])) for m in MEASURES]
            table.add_row(name, row["network"], *itertools.chain(*cells))
        table.add_row(name, "geometric mean", *itertools.chain(*(("", _ratio(mean[m])) for m in MEASURES)), style="bold", end_section=True)
    return table


def _table_of_orders(rows: Sequence[dict[str, Any]], title: str) -> Table:
    table = Table("layer", "network", title=f"{title}: ours / other order / published")
    for _, unit, _ in MEASURES.values():
        table.add_column(unit, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row["layer"], row["network"], *(" / ".join(_amounts(row, m, "ours", "other_order", "published")) for m in MEASURES))
    return table


def draw(rows: Sequence[dict[str, Any]], title: str) -> Figure:
    """Bars of the ratios by layer and network, one panel per measure."""
    layers, networks = (list(dict.fromkeys(row[key] for row in rows)) for key in ("layer", "network"))
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    width = 0.8 / len(networks)
    for axes, (m, (label, _, _)) in zip(figure.subplots(1, len(MEASURES)), MEASURES.items(), strict=True):
        for i, network in enumerate(networks):
            color, hatch = STYLES[i % len(STYLES)]
            known = [(row["layer"], row["ratios"][m]) for row in rows if row["network"] == network and row["ratios"][m] is not None]
            x = [layers.index(layer) + (i - (len(networks) - 1) / 2) * width for layer, _ in known]
            # Bars start at 1, equality: what is slower or larger hangs below.
            heights = [ratio - 1 for _, ratio in known]
            axes.bar(x, heights, width, bottom=1, color=color, hatch=hatch, edgecolor="white", linewidth=0.5, label=network)
        axes.axhline(1, color="black", linewidth=1)
        axes.set_yscale("log")
        low, high = (bound([1.0, *(row["ratios"][m] or 1.0 for row in rows)]) for bound in (min, max))
        axes.set_ylim(min(low / 1.1, 0.8), max(high * 1.15, 2.5))
        axes.set_yticks([tick for tick in (0.25, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500) if low / 1.2 <= tick <= max(high * 1.15, 2.5)])
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}x")
        axes.minorticks_off()
        axes.set_xticks(range(len(layers)), [layer.replace("_", "\n") for layer in layers])
        axes.set_title(label, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("published / ours")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(networks), frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=11)
    return figure


def main() -> None:
    """Measure, print the tables, write the JSON and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", default=",".join(KINDS), help="names separated by commas (default: all)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument(
        "--terms", choices=("published", "default"), default="published", help="whether our layers keep exactly the published terms"
    )
    parser.add_argument("--repeats", type=int, default=15, help="steps per implementation after the warm-up")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads (default: all cores)")
    parser.add_argument("--quick", action="store_true", help="a few steps on the smallest network, to see that everything runs")
    parser.add_argument(
        "--output", type=Path, help="folder of the JSON and the figure (default: results; --quick writes only if it is given)"
    )
    options = parser.parse_args()
    names = options.layers.split(",")
    if unknown := set(names) - set(KINDS):
        parser.error(f"unknown layers {sorted(unknown)}; choose from {list(KINDS)}")
    torch.set_num_threads(options.threads)
    options.repeats = min(options.repeats, 2) if options.quick else options.repeats

    tasks = [(name, network) for name in names for network in NETWORKS[: 1 if options.quick else None]]
    tasks = [(name, network) for name, network in tasks if not (KINDS[name].polynomial and any(network.kernels))]
    rows = [measure(name, network, options, 32) for name, network in tasks]
    by_inputs: Sequence[Network] = [] if "magep" not in names else NETWORKS[:1] if options.quick else BY_INPUTS
    orders = [measure("magep", network, options, 8, other_order=True) for network in by_inputs]
    means = {name: {m: geometric_mean([row["ratios"][m] for row in rows if row["layer"] == name]) for m in MEASURES} for name in names}
    description = machine()
    device = description["device"] if options.device == "cuda" else "cpu"
    title = f"{CHANNELS} channels, {options.dtype}, {device if options.device == 'cuda' else description['processor']}"
    console = Console()
    console.width = max(console.width, 120)
    console.print(_table(rows, means, f"Batch 32, {title}"))
    if orders:
        console.print(_table_of_orders(orders, f"Number of inputs, batch 8, {title}"))

    if options.quick and options.output is None:
        return
    variant = [part for part in (options.dtype, options.terms) if part not in ("float32", "published")]
    stem = "_".join(["sharing_speed", re.sub(r"[^a-z0-9]+", "_", device.lower()), *variant])
    folder = options.output or Path(__file__).parent / "results"
    document = {
        "command": shlex.join(["python", "benchmarks/sharing_speed.py", *sys.argv[1:]]),
        "machine": description | {"matplotlib": matplotlib.__version__},
        "settings": {key: getattr(options, key) for key in ("device", "dtype", "terms", "repeats", "threads")} | {"channels": CHANNELS},
        "layers": rows,
        "geometric_means": means,
        "orders_of_contraction": orders,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{stem}.json", document)
    figure = draw(rows, f"What a training step of one layer needs, published over ours ({title})")
    write_atomically(folder / f"{stem}.png", lambda path: figure.savefig(path, format="png", dpi=150))


if __name__ == "__main__":
    main()
