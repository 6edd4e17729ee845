"""Time and memory of a training step of every registered model, and how they grow with batch, channels and the networks themselves.

A step is a forward and a backward pass down to the parameters, for an invariant task with one output. Four numbers each: the median time
of a step; the bytes that autograd keeps for the backward pass beyond the batch and the parameters, which exist anyway; the peak of a step;
and the networks read per second. Models compared in one table read the same batch and take turns, so that whatever else the machine does
falls on all. What would take too much memory, judged by a smaller batch, is left out and said so. Tables, in order:

1. ``monomial_gnn`` against ``scalegmn`` at equal width on 64 CNNs of the Small CNN Zoo, beside what the published code takes.
2. All models with their default options: CNNs of the zoo, SIRENs, a batch of mixed architectures, ResNet-20s.
3. Over the batch, at default options, until a step takes too long or too much memory.
4. Over the channels, for models with one width.
5. Memory over the width n of the networks, 2-n-n-n-1: the parameters grow with n^2, and so do features of edges, while neurons grow with n.

Run from the repository root:

    python benchmarks/message_speed.py
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import math
import shlex
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from networks import resnet20
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn

from wsgraph import WeightSpace
from wsgraph.files import write_atomically, write_json
from wsgraph.measure import kept_bytes, machine, peak_memory
from wsgraph.nn import build_model, list_models, model_entry
from wsgraph.space import ParameterGraph

SEED = 0
# The published code of ScaleGMN on the batch of the first table, on 2 cores: time and memory kept for the backward pass.
PUBLISHED: dict[str, dict[str, Any]] = {
    "published scalegmn, bidirectional": {"milliseconds": 3500.0, "kept_bytes": 3.8e9, "peak_bytes": None, "parameters": None},
    "published scalegmn, forward": {"milliseconds": 2000.0, "kept_bytes": 1.9e9, "peak_bytes": None, "parameters": None},
}
PUBLISHED_NOTE = "published code on the same batch, 2 CPU cores, float32"
# Okabe and Ito's colours with markers: safe for colour-blind readers. Message passing is solid, other families are dashed and hollow.
STYLES = (("#D55E00", "o"), ("#0072B2", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#E69F00", "v"), ("#56B4E9", "P"), ("#000000", "X"))
MEASURES = ("milliseconds", "kept_bytes", "peak_bytes")

Row = dict[str, Any]


class Workload(NamedTuple):
    """Networks that come in one batch."""

    name: str
    spaces: tuple[WeightSpace, ...]
    size: int

    @property
    def is_mixed(self) -> bool:
        return len(self.spaces) > 1

    def batch(self, size: int) -> ParameterGraph:
        """Random networks, as many of each architecture as of the others."""
        generator = torch.Generator().manual_seed(SEED)
        sizes = [len(range(i, size, len(self.spaces))) for i in range(len(self.spaces))]
        batches = [space.batch(space.sample(n, generator=generator)) for space, n in zip(self.spaces, sizes, strict=True) if n]
        return ParameterGraph.join(batches) if self.is_mixed else batches[0]


ZOO_CNN = WeightSpace.cnn([1, 16, 16, 16], [10])
SIREN = WeightSpace.mlp([2, 32, 32, 1], "sin(30)")
MIXED = (ZOO_CNN, SIREN, WeightSpace.cnn([1, 12, 12], [10], "tanh"), WeightSpace.mlp([8, 32, 24, 16, 10], "gelu"))
RESNET = (resnet20(),)


class Settings(NamedTuple):
    """What is measured, and with how much patience."""

    workloads: tuple[Workload, ...]
    batches: tuple[int, ...] = (64, 256, 1024, 4096)
    channels: tuple[int, ...] = (32, 64, 128, 256)
    widths: tuple[int, ...] = (16, 32, 64, 128, 256)
    headline: tuple[int, int] = (128, 4)  # channels, layers
    repeats: int = 15
    least: int = 2


FULL = Settings(
    (
        Workload("zoo CNNs", (ZOO_CNN,), 64),
        Workload("SIRENs", (SIREN,), 64),
        Workload("mixed", MIXED, 64),
        Workload("ResNet-20s", RESNET, 8),
    )
)
SMALL = (WeightSpace.cnn([1, 4, 4], [3]), WeightSpace.mlp([2, 4, 4, 1], "sin(30)"), WeightSpace.mlp([2, 6, 2], "tanh"))
QUICK = Settings(
    (
        Workload("small CNNs", SMALL[:1], 4),
        Workload("small SIRENs", SMALL[1:2], 4),
        Workload("mixed", SMALL, 3),
        Workload("small ResNets", (resnet20(2, blocks=1),), 2),
    ),
    batches=(4, 8),
    channels=(8, 16),
    widths=(8, 32),
    headline=(8, 1),
    repeats=1,
    least=1,
)


# == What is measured ==


class Contestant:
    """A model and the batch that it reads."""

    def __init__(self, model: nn.Module, batch: ParameterGraph, dtype: torch.dtype) -> None:
        self.model, self.batch, self.dtype = model, batch, dtype
        self.device = cast(Tensor, batch.x).device
        self.num_params = sum(p.numel() for p in model.parameters())
        self.param_bytes = sum(p.numel() * p.element_size() for p in model.parameters())

    def forward(self) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            return cast(Tensor, self.model(self.batch))

    def step(self) -> None:
        self.model.zero_grad()
        output = self.forward()
        output.backward(torch.ones_like(output))

    def milliseconds(self) -> float:
        self._synchronize()
        start = time.perf_counter()
        self.step()
        self._synchronize()
        return 1000 * (time.perf_counter() - start)

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def kept_bytes(self) -> int:
        given = [*self.model.parameters(), *self.model.buffers(), *self.batch.to_dict().values()]
        return kept_bytes(self.forward, given=given)

    def peak_bytes(self) -> int:
        self.model.zero_grad()
        return peak_memory(self.step)


class Case(NamedTuple):
    """A model with its options on a batch."""

    name: str
    model: str
    workload: Workload
    size: int
    options: dict[str, Any] = {}  # noqa: RUF012
    compiled: bool = False

    def contestant(self, options: argparse.Namespace, size: int) -> Contestant:
        torch.manual_seed(SEED)
        spaces = self.workload.spaces
        model = build_model(self.model, spaces if self.workload.is_mixed else spaces[0], 1, **self.options).to(options.device)
        if self.compiled:
            model.compile()
        return Contestant(model, self.workload.batch(size).to(options.device), getattr(torch, options.dtype))

    def row(self, **values: Any) -> Row:
        row = {"name": self.name, "model": self.model, "workload": self.workload.name, "batch": self.size, "options": self.options}
        return row | dict.fromkeys(["parameters", *MEASURES]) | {"note": None} | values


class CannotMeasureError(Exception):
    """A case that cannot be measured, and why."""


def prepare(case: Case, options: argparse.Namespace, known: tuple[float, Row] | None = None) -> tuple[Contestant, Row]:
    """The contestant, warmed up, and what memory it takes.

    Args:
        case: What to measure.
        options: Device and limits.
        known: A smaller case that was measured already, and how many times as large this one is.

    Raises:
        CannotMeasureError: If the model cannot read such networks, or would pass a limit of time or memory.
    """
    if case.workload.is_mixed and not model_entry(case.model).mixed:
        raise CannotMeasureError("reads one architecture")
    try:
        if known is None:
            _check_memory(case, options)
        else:
            factor, row = known
            _check(case, options, factor * row["peak_bytes"], factor * row["milliseconds"])
        contestant = case.contestant(options, case.size)
        if case.compiled:
            return contestant, _compile(case, contestant)
        kept, peak = contestant.kept_bytes(), contestant.peak_bytes()
    except torch.OutOfMemoryError:
        raise CannotMeasureError(_out_of_memory(case)) from None
    except ValueError as error:
        if "chain" not in str(error) or case.workload.spaces[0].is_chain:
            raise
        raise CannotMeasureError("needs a chain") from None
    return contestant, case.row(parameters=contestant.num_params, kept_bytes=kept, peak_bytes=peak)


def _check_memory(case: Case, options: argparse.Namespace) -> None:
    size = case.size // 8
    if size < len(case.workload.spaces) or case.compiled:
        return  # as small as it gets
    smaller = case.contestant(options, size)
    of_gradients = smaller.param_bytes
    _check(case, options, of_gradients + (smaller.peak_bytes() - of_gradients) * case.size / size)


def _check(case: Case, options: argparse.Namespace, needed: float, milliseconds: float = 0.0) -> None:
    if needed > options.memory * 2**30:
        raise CannotMeasureError(_out_of_memory(case))
    if milliseconds > 1000 * options.step_seconds:
        raise CannotMeasureError(f"over {options.step_seconds:g} s at batch {case.size}")


def _out_of_memory(case: Case) -> str:
    return f"out of memory at batch {case.size}"


def _compile(case: Case, contestant: Contestant) -> Row:
    try:
        for _ in range(3):
            contestant.step()
    except Exception as error:  # whatever the compiler raises
        raise CannotMeasureError(f"torch.compile failed: {str(error).splitlines()[0][:80]}") from error
    # The compiler decides what is kept, and on the CPU operations within its kernels cannot be followed.
    peak = contestant.peak_bytes() if contestant.device.type == "cuda" else None
    return case.row(parameters=contestant.num_params, peak_bytes=peak)


def compare(cases: Sequence[Case], settings: Settings, options: argparse.Namespace, progress: Progress) -> list[Row]:
    """Rows of cases that take turns."""
    rows, contestants = [], []
    for case in progress.track(cases, description=f"Preparing {cases[0].workload.name}"):
        try:
            contestant, row = prepare(case, options)
            contestants.append((contestant, row))
        except CannotMeasureError as reason:
            row = case.row(note=str(reason))
        rows.append(row)
    take_turns(
        contestants, progress.track(range(settings.repeats), description=f"Timing {cases[0].workload.name}"), settings.least, options
    )
    return rows


def take_turns(contestants: Sequence[tuple[Contestant, Row]], rounds: Iterable[int], least: int, options: argparse.Namespace) -> None:
    """Write times into the rows; who has had its share of time stops early."""
    times: list[list[float]] = [[] for _ in contestants]
    for _ in rounds:
        for (contestant, _), own in zip(contestants, times, strict=True):
            if len(own) < least or sum(own) < 1000 * options.seconds:
                own.append(contestant.milliseconds())
    for (_, row), own in zip(contestants, times, strict=True):
        median = statistics.median(own)
        row |= {"milliseconds": median, "milliseconds_by_repeat": own, "networks_per_second": 1000 * row["batch"] / median}


def sweep(cases: dict[int, Case], known: tuple[int, Row], settings: Settings, options: argparse.Namespace) -> list[Row]:
    """Rows of cases by size, in growing order, until one passes a limit, foreseen from a known row of some size."""
    rows: list[Row] = []
    for size, case in cases.items():
        try:
            contestant, row = prepare(case, options, (size / known[0], known[1]))
        except CannotMeasureError as reason:
            return [*rows, case.row(note=str(reason))]
        take_turns([(contestant, row)], range(settings.repeats), settings.least, options)
        rows.append(row)
        known = size, row
    return rows


def default(model: str, option: str) -> Any:
    """Default of an option of a model, which its class may leave to the one that it extends; ``None`` if it has no such option."""
    for cls in inspect.getmro(cast(type, model_entry(model).build)):
        if option in (parameters := inspect.signature(cls).parameters):
            return parameters[option].default
    return None


def has_width(model: str) -> bool:
    """Whether one number is the model's width."""
    return isinstance(default(model, "channels"), int)


# == The tables ==


def run_headline(models: Sequence[str], settings: Settings, options: argparse.Namespace, progress: Progress) -> dict[str, Any] | None:
    """The message-passing models of exact symmetry at equal width."""
    if not {"monomial_gnn", "scalegmn"} <= set(models):
        return None
    channels, layers = settings.headline
    workload = settings.workloads[0]

    def case(name: str, model: str, compiled: bool = False, **more: Any) -> Case:
        return Case(name, model, workload, workload.size, {"channels": channels, **more}, compiled)

    cases = [
        case("monomial_gnn", "monomial_gnn", rounds=layers),
        case("monomial_gnn, no probes", "monomial_gnn", rounds=layers, probes=0),
        case("scalegmn, forward", "scalegmn", layers=layers, bidirectional=False),
        case("scalegmn, bidirectional", "scalegmn", layers=layers, bidirectional=True),
    ]
    if options.compile:
        cases.insert(1, case("monomial_gnn, compiled", "monomial_gnn", compiled=True, rounds=layers))
    rows = compare(cases, settings._replace(least=max(settings.least, min(settings.repeats, 5))), options, progress)
    published = {} if options.quick or options.device == "cuda" else PUBLISHED
    others = {row["name"]: row for row in rows} | published
    ratios = {
        name: {m: row[m] / rows[0][m] if row[m] and rows[0][m] else None for m in MEASURES}
        for name, row in others.items()
        if name != rows[0]["name"]
    }
    return {"rows": rows, "published": published, "published_note": PUBLISHED_NOTE, "ratios_to_monomial_gnn": ratios}


def run_comparisons(models: Sequence[str], settings: Settings, options: argparse.Namespace, progress: Progress) -> dict[str, list[Row]]:
    """All models that can read a workload, by its name."""
    result = {}
    for workload in settings.workloads:
        able = [model for model in models if model_entry(model).mixed or not workload.is_mixed]
        cases = [Case(model, model, workload, workload.size) for model in able]
        if options.compile and "monomial_gnn" in able:
            cases.append(Case("monomial_gnn, compiled", "monomial_gnn", workload, workload.size, compiled=True))
        result[workload.name] = compare(cases, settings, options, progress) if cases else []
    return result


def run_batches(
    comparisons: dict[str, list[Row]], settings: Settings, options: argparse.Namespace, progress: Progress
) -> dict[str, list[Row]]:
    """From the batch of the comparison on."""
    result: dict[str, list[Row]] = {}
    for workload in settings.workloads[:2]:
        rows = result.setdefault(workload.name, [])
        measured = [row for row in comparisons[workload.name] if row["milliseconds"] and row["kept_bytes"] is not None]
        for row in progress.track(measured, description=f"Over the batch, {workload.name}"):
            cases = {n: Case(row["name"], row["model"], workload, n) for n in settings.batches if n > workload.size}
            rows += [row, *sweep(cases, (workload.size, row), settings, options)]
    return result


def run_channels(comparisons: dict[str, list[Row]], settings: Settings, options: argparse.Namespace, progress: Progress) -> list[Row]:
    """For models with one width on the first workload."""
    rows: list[Row] = []
    workload = settings.workloads[0]
    known = {row["name"]: row for row in comparisons[workload.name] if row["milliseconds"] and has_width(row["model"])}
    models = [name for name, row in known.items() if name == row["model"]]
    for model in progress.track(models, description="Over the channels"):
        cases = {n: Case(model, model, workload, workload.size, {"channels": n}) for n in settings.channels}
        rows += sweep(cases, (default(model, "channels"), known[model]), settings, options)
    return rows


def run_widths(models: Sequence[str], settings: Settings, options: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    """Memory alone, for models with one width."""
    rows: list[Row] = []
    for model in progress.track([model for model in models if has_width(model)], description="Over the width of the networks"):
        fixed = {"channels": 32} | ({} if default(model, "probes") is inspect.Parameter.empty else {"probes": 0})
        before: tuple[int, Row] | None = None
        for n in settings.widths:
            case = Case(model, model, Workload(f"2-{n}-{n}-{n}-1", (WeightSpace.mlp([2, n, n, n, 1]),), 4), 4, fixed)
            try:
                # Only memory is measured, which grows with n^2 at most.
                known = before and ((n / before[0]) ** 2, before[1] | {"milliseconds": 0.0})
                row = prepare(case, options, known)[1]
            except CannotMeasureError as reason:
                rows.append(case.row(width=n, note=str(reason)))
                break
            rows.append(row | {"width": n})
            before = n, row
    slopes = {
        model: {m: exponent([row for row in rows if row["model"] == model], m) for m in ("kept_bytes", "peak_bytes")}
        for model in dict.fromkeys(row["model"] for row in rows)
    }
    return {"rows": rows, "slopes": slopes}


def exponent(rows: Sequence[Row], measure: str) -> float | None:
    """Exponent of the power law through the last three widths."""
    points = [(math.log(row["width"]), math.log(row[measure])) for row in rows if row[measure]][-3:]
    return statistics.linear_regression(*zip(*points, strict=True)).slope if len(points) > 1 else None


# == What is shown ==


def _number(value: float | None, unit: float = 1.0) -> str:
    if value is None:
        return "-"
    return f"{value / unit:,.{0 if value / unit >= 100 else 1 if value / unit >= 10 else 2}f}"


def _batch_of(row: Row) -> str:
    return f"{row['batch']} {row['workload']}"


def _cells(row: Row) -> list[str]:
    return [
        "-" if row["parameters"] is None else f"{row['parameters']:,}",
        _number(row["milliseconds"]),
        _number(row.get("networks_per_second")),
        _number(row["kept_bytes"], 1e6),
        _number(row["peak_bytes"], 1e6),
    ]


def table_of_headline(headline: dict[str, Any], title: str) -> Table:
    """Every number beside its ratio to that of ``monomial_gnn``."""
    table = Table("model", title=title, title_justify="left")
    for column in ("parameters", "ms", "ratio", "kept MB", "ratio", "peak MB", "ratio"):
        table.add_column(column, justify="right", style="bold" if column == "ratio" else None)
    ratios = headline["ratios_to_monomial_gnn"]
    for row in (*headline["rows"], *({"name": name} | row for name, row in headline["published"].items())):
        own = [_number(value) for value in ratios[row["name"]].values()] if row["name"] in ratios else [""] * 3
        parameters, *amounts = itertools.compress(_cells(row), [1, 1, 0, 1, 1])
        table.add_row(row["name"], parameters, *itertools.chain(*zip(amounts, own, strict=True)))
    return table


def table_of_models(rows: Sequence[Row], title: str) -> Table:
    """One line per model."""
    table = Table("model", "family", title=title, title_justify="left")
    for column in ("parameters", "ms", "networks/s", "kept MB", "peak MB"):
        table.add_column(column, justify="right")
    table.add_column("note")
    for row in rows:
        table.add_row(row["name"], model_entry(row["model"]).family, *_cells(row), row["note"] or "")
    return table


def table_of_sweep(rows: Sequence[Row], key: str, title: str, slopes: dict[str, Any] | None = None) -> Table:
    """One line per model, one column per value of what is varied."""
    measures = ("kept_bytes", "peak_bytes") if slopes else ("milliseconds", "kept_bytes")
    points: dict[str, dict[int, Row]] = {}
    for row in rows:
        points.setdefault(row["name"], {})[_varied(row, key)] = row
    table = Table("model", title=f"{title}: {'kept MB / peak MB' if slopes else 'ms / kept MB'}", title_justify="left")
    values = sorted({value for own in points.values() for value in own})
    for value in values:
        table.add_column(f"{value:,}", justify="right")
    if slopes:
        table.add_column("exponents", justify="right", style="bold")
    for name, own in points.items():
        cells = [_point(own.get(value), measures) for value in values]
        table.add_row(name, *cells, *([" / ".join(map(_number, slopes[name].values()))] if slopes else []))
    return table


def _point(row: Row | None, measures: Sequence[str]) -> str:
    if row is None:
        return ""
    return row["note"] or " / ".join(_number(row[m], 1.0 if m == "milliseconds" else 1e6) for m in measures)


def _varied(row: Row, key: str) -> int:
    return cast(int, row["options"][key] if key in row["options"] else row[key])


def styles(models: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour, marker and line of every model."""
    result = {}
    for passing in (True, False):
        own = [model for model in models if (model_entry(model).family == "message passing") == passing]
        for model, (color, marker) in zip(own, itertools.cycle(STYLES), strict=False):
            line = {"linestyle": "-"} if passing else {"linestyle": "--", "markerfacecolor": "white"}
            result[model] = {"color": color, "marker": marker, "markersize": 6, "linewidth": 1.6, "label": model, **line}
    return result


def draw(document: dict[str, Any], title: str) -> Figure:
    """Six panels, one legend."""
    figure = Figure(figsize=(15, 9), layout="constrained")
    panels = figure.subplots(2, 3).flat
    style = styles(document["settings"]["models"])
    comparisons, batches = document["comparisons"], document["batches"]
    draw_headline(next(panels), document["headline"])
    first = next(iter(comparisons))
    draw_scatter(next(panels), comparisons[first], style, f"all models, default options, {_batch_of(comparisons[first][0])}")
    channels = document["channels"]
    draw_lines(next(panels), channels, style, "channels", f"time over channels, {_batch_of(comparisons[first][0])}")
    for name, rows in batches.items():
        draw_lines(next(panels), rows, style, "batch", f"time over the batch, {name}")
    draw_widths(next(panels), document["widths"], style)
    handles = {line.get_label(): line for axes in figure.axes[1:] for line in axes.get_lines() if line.get_label() in style}
    legend = [handles[name] for name in style if name in handles]
    figure.legend(handles=legend, loc="outside lower center", ncols=min(len(legend), 6), frameon=False, fontsize=10)
    figure.suptitle(title, fontsize=12)
    return figure


def draw_headline(axes: Axes, headline: dict[str, Any] | None) -> None:
    """Bars of time and of memory kept, from the least to the most."""
    if headline is None:
        axes.set_axis_off()
        return
    rows = {row["name"]: row for row in headline["rows"] if row["note"] is None} | headline["published"]
    amounts = [
        ("milliseconds", 1e3, "time of a step, s", "#0072B2", -0.2),
        ("kept_bytes", 1e9, "memory kept for backward, GB", "#E69F00", 0.2),
    ]
    for m, unit, label, color, shift in amounts:
        known = [(i, row[m] / unit) for i, row in enumerate(rows.values()) if row[m]]
        bars = axes.barh([i + shift for i, _ in known], [value for _, value in known], 0.36, color=color, label=label)
        axes.bar_label(bars, [f"{value:.2g}" for _, value in known], padding=3, fontsize=9)
    axes.set_yticks(range(len(rows)), [name.replace(", ", "\n").replace("published ", "published\n") for name in rows], fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    options = headline["rows"][0]["options"]
    axes.set_title(f"width {options['channels']}, depth {options['rounds']}, {_batch_of(headline['rows'][0])}", fontsize=10)
    axes.legend(frameon=False, fontsize=9, loc="best")


def _finish(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set(xscale="log", yscale="log", xlabel=x, ylabel=y)
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.yaxis.set_major_formatter(_plain)
    # Where there are few decades, 2 and 5 are named between them.
    low, high = axes.get_ylim()
    axes.yaxis.set_minor_formatter(lambda value, _: _plain(value) if high < 100 * low and f"{value:e}"[0] in "25" else "")


def _plain(value: float, _: object = None) -> str:
    return f"{value:g}"


def _ticks(axes: Axes, values: Sequence[int]) -> None:
    axes.set_xticks(values, [str(value) for value in values])
    axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())


def draw_scatter(axes: Axes, rows: Sequence[Row], style: dict[str, dict[str, Any]], title: str) -> None:
    """Time against memory, one marker per model."""
    for row in rows:
        if row["milliseconds"] and row["kept_bytes"]:
            axes.plot(row["milliseconds"], row["kept_bytes"] / 1e6, **style[row["model"]] | {"linestyle": "", "markersize": 10})
    _finish(axes, title, "time of a step, ms", "memory kept for backward, MB")
    axes.xaxis.set_major_formatter(_plain)
    axes.xaxis.set_minor_formatter(lambda value, _: "")
    axes.margins(0.1)


def draw_lines(axes: Axes, rows: Sequence[Row], style: dict[str, dict[str, Any]], key: str, title: str) -> None:
    """Time over what is varied, one curve per model."""
    for model in dict.fromkeys(row["model"] for row in rows):
        points = [(_varied(row, key), row["milliseconds"]) for row in rows if row["model"] == model and row["milliseconds"]]
        if points:
            axes.plot(*zip(*points, strict=True), **style[model])
    _finish(axes, title, {"batch": "networks in the batch"}.get(key, key), "time of a step, ms")
    _ticks(axes, sorted({_varied(row, key) for row in rows}))


def draw_widths(axes: Axes, widths: dict[str, Any], style: dict[str, dict[str, Any]]) -> None:
    """Memory kept over the width of the networks, with its peak dotted and slopes 1 and 2 for reference."""
    for model in widths["slopes"]:
        rows = [row for row in widths["rows"] if row["model"] == model and row["note"] is None]
        x = [row["width"] for row in rows]
        axes.plot(x, [row["kept_bytes"] / 1e6 for row in rows], **style[model])
        axes.plot(x, [row["peak_bytes"] / 1e6 for row in rows], color=style[model]["color"], linestyle=":", linewidth=1.2)
    values = sorted({row["width"] for row in widths["rows"]})
    kept = [row["kept_bytes"] / 1e6 for row in widths["rows"] if row["kept_bytes"]]
    # Slope 1 runs below all curves, slope 2 above them.
    for slope, start in ((1, 0.5 * min(kept, default=1)), (2, 2 * max(kept, default=1) * (values[0] / values[-1]) ** 2 if values else 1)):
        y = [start * (value / values[0]) ** slope for value in values]
        axes.plot(values, y, color="grey", linestyle="-", linewidth=0.8)
        if values:
            axes.annotate(f"slope {slope}", (values[-1], y[-1]), (4, 0), textcoords="offset points", fontsize=8, color="grey", va="center")
    _finish(axes, "memory over width n, 4 MLPs 2-n-n-n-1, 32 channels", "width n", "memory kept (dotted: peak), MB")
    if values:
        _ticks(axes, values)
        axes.set_xlim(right=values[-1] * (values[-1] / values[0]) ** 0.18)


def main() -> None:
    """Measure, print the tables, write the JSON and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(list_models("invariant")), help="names separated by commas (default: all)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="bfloat16 by autocast")
    parser.add_argument("--compile", action="store_true", help="also time monomial_gnn under torch.compile")
    parser.add_argument("--memory", type=float, help="largest peak of a step in GiB (default: 8, or nine tenths of a GPU)")
    parser.add_argument("--seconds", type=float, default=1.5, help="time spent on the steps of one model on one batch")
    parser.add_argument("--step-seconds", type=float, default=5.0, help="longest step at which a sweep goes on")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads (default: all cores)")
    parser.add_argument("--quick", action="store_true", help="a few steps on small batches, to see that everything runs")
    parser.add_argument(
        "--output", type=Path, help="folder of the JSON and the figure (default: results; --quick writes only if it is given)"
    )
    options = parser.parse_args()
    models = options.models.split(",")
    if unknown := set(models) - set(list_models("invariant")):
        parser.error(f"unknown models {sorted(unknown)}; choose from {list_models('invariant')}")
    torch.set_num_threads(options.threads)
    if options.memory is None:
        options.memory = 0.9 * torch.cuda.get_device_properties(0).total_memory / 2**30 if options.device == "cuda" else 8.0
    settings = QUICK if options.quick else FULL
    description = machine()
    title = f"{options.dtype}, {description['device'] if options.device == 'cuda' else description['processor']}"
    console = Console()
    console.width = max(console.width, 140)
    start = time.perf_counter()
    with Progress(console=console, transient=True) as progress:
        comparisons = run_comparisons(models, settings, options, progress)
        results = {
            "headline": run_headline(models, settings, options, progress),
            "comparisons": comparisons,
            "batches": run_batches(comparisons, settings, options, progress),
            "channels": run_channels(comparisons, settings, options, progress),
            "widths": run_widths(models, settings, options, progress),
        }
    show(console, results, title)

    if options.quick and options.output is None:
        return
    folder = options.output or Path(__file__).parent / "results"
    names = ("device", "dtype", "compile", "memory", "seconds", "step_seconds", "threads", "quick")
    document = {
        "command": shlex.join(["python", "benchmarks/message_speed.py", *sys.argv[1:]]),
        "machine": description | {"matplotlib": matplotlib.__version__},
        "settings": {name: getattr(options, name) for name in names}
        | {"seed": SEED, "models": models}
        | {name: getattr(settings, name) for name in ("repeats", "least", "batches", "channels", "widths")}
        | {"workloads": {work.name: {"spaces": list(map(repr, work.spaces)), "batch": work.size} for work in settings.workloads}},
        "families": {model: model_entry(model).family for model in models},
        "seconds": time.perf_counter() - start,
        **results,
    }
    folder.mkdir(parents=True, exist_ok=True)
    stem = "_".join(["message_speed", options.device, *([options.dtype] if options.dtype != "float32" else [])])
    write_json(folder / f"{stem}.json", document)
    figure = draw(document, f"What a training step of each model needs ({title})")
    write_atomically(folder / f"{stem}.png", lambda path: figure.savefig(path, format="png", dpi=130))


def show(console: Console, results: dict[str, Any], title: str) -> None:
    """Print the tables."""
    headline = results["headline"]
    if headline is not None:
        console.print(table_of_headline(headline, f"{_batch_of(headline['rows'][0])}, equal widths, ratios to monomial_gnn, {title}"))
    for rows in results["comparisons"].values():
        if rows:
            console.print(table_of_models(rows, f"{_batch_of(rows[0])}, default options, {title}"))
    for name, rows in results["batches"].items():
        console.print(table_of_sweep(rows, "batch", f"Over the batch, {name}"))
    if results["channels"]:
        console.print(table_of_sweep(results["channels"], "channels", f"Over the channels, {_batch_of(results['channels'][0])}"))
        widths = results["widths"]
        console.print(table_of_sweep(widths["rows"], "width", "Over the width n of 4 networks 2-n-n-n-1", widths["slopes"]))


if __name__ == "__main__":
    main()
