"""Suites that measure what models cost: time and memory of a step, and parameters of layers."""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from wsgraph.bench.bench import Bench, register_suite
from wsgraph.data import ZooStore
from wsgraph.files import write_json
from wsgraph.measure import machine, step_costs
from wsgraph.nn import build_model
from wsgraph.nn.sharing import HNPLinear, MAGEPLinear, MonomialLinear, NPLinear, SharingLinear
from wsgraph.space import WeightSpace

__all__ = ["count_parameters"]

Costs = dict[str, dict[str, float]]

_UNKNOWN = dict.fromkeys(("parameters", "milliseconds", "networks_per_second", "kept_bytes", "peak_bytes"), math.nan)


def _measured(bench: Bench, title: str, space: WeightSpace, networks: int) -> Costs:
    """Costs of a step of all models on a batch of random networks, kept for this machine."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    here = machine()
    path = bench.cells / f"memory-{title.replace(' ', '-')}-{networks}-{space.digest}-{device.type}-{bench.parameters}" / "cell.json"
    kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if kept.get("machine") != here or not set(bench.models) <= {*kept["costs"], *kept["errors"]}:
        batch = space.batch(space.sample(networks, generator=torch.Generator().manual_seed(0))).to(device)
        models: dict[str, nn.Module] = {}
        errors: dict[str, str] = {}
        for label in bench.models:
            try:
                name, options = bench.model(label, [space])
                with torch.random.fork_rng():
                    torch.manual_seed(0)
                    models[label] = build_model(name, space, 1, **options).to(device)
            except (TypeError, ValueError) as error:
                errors[label] = str(error)
        kept = {"machine": here, "space": repr(space), "networks": networks, "costs": step_costs(models, batch), "errors": errors}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, kept)
    for label in bench.models:
        if label in kept["errors"]:
            print(f"{label} on {title}: {kept['errors'][label]}", file=sys.stderr)
    return {label: kept["costs"].get(label, _UNKNOWN) for label in bench.models}


# What tables show of a step, in which unit; all but the last are drawn too.
_MEASURES = {
    "milliseconds": ("time of a step, ms", 1.0),
    "kept_bytes": ("kept for the backward pass, MB", 1e6),
    "peak_bytes": ("peak of a step, MB", 1e6),
}


@register_suite("memory")
def memory(bench: Bench) -> None:
    """Time and memory of a training step of every model, on ReLU and Tanh CNNs, over the batch and over the width of the networks."""
    from wsgraph.plot import curve_panels

    spaces = {name: ZooStore(path).dataset(target=None).spaces for name, path in bench.zoos.items()}
    if mixed := [name for name, found in spaces.items() if len(found) > 1]:
        raise ValueError(f"Expected zoos of one architecture each (got {len(spaces[mixed[0]])} in {mixed[0]!r}).")
    one = {name: found[0] for name, found in spaces.items()}
    if not one:
        one = {f"{activation} CNN": WeightSpace.cnn([1, 16, 16, 16], [10], activation) for activation in ("relu", "tanh")}
    device = machine()["device"] if torch.cuda.is_available() else f"{torch.get_num_threads()} threads of {machine()['processor']}"
    batches, widths = bench.size.batches, bench.size.widths
    usual = min(batches, key=lambda n: abs(n - 64))
    first = next(iter(one))

    own = {name: _measured(bench, name, space, usual) for name, space in one.items()}
    over_batch = {n: _measured(bench, first, one[first], n) for n in batches}
    over_width = {n: _measured(bench, f"2-{n}-{n}-{n}-1", WeightSpace.mlp([2, n, n, n, 1]), 4) for n in widths}

    head = ["model", "parameters", *(f"{name}, {column}" for name in one for column in ("ms", "networks/s", "kept MB", "peak MB"))]
    rows = [
        [
            model,
            _whole(own[first][model]["parameters"]),
            *(cell for costs in own.values() for cell in _cells(costs[model])),
        ]
        for model in bench.models
    ]
    document = {"spaces": {name: repr(space) for name, space in one.items()}, "batch": usual, "costs": _known(own)}
    bench.write_table("memory", f"A training step on {usual} networks, {device}", head, rows, document)
    for name, title, costs in (
        ("memory-batch", f"Over the batch ({first}), {device}", over_batch),
        ("memory-width", f"Over the hidden width n of 4 networks 2-n-n-n-1, {device}", over_width),
    ):
        head = ["model", *(f"{n}: ms / kept MB / peak MB" for n in costs), "exponents of time, kept, peak"]
        rows = [
            [
                model,
                *(" / ".join(_number(each[model][measure] / unit) for measure, (_, unit) in _MEASURES.items()) for each in costs.values()),
                " / ".join(f"{_exponent(list(costs), [each[model][measure] for each in costs.values()]):.2f}" for measure in _MEASURES),
            ]
            for model in bench.models
        ]
        bench.write_table(name, title, head, rows, {"costs": _known(costs)})
    panels = {
        f"{label}\nover the {what}": {
            model: {float(n): each[model][measure] / unit for n, each in costs.items() if each[model][measure] > 0}
            for model in bench.models
        }
        for what, costs in ((f"batch ({first})", over_batch), ("hidden width n of 4 networks 2-n-n-n-1", over_width))
        for measure, (label, unit) in list(_MEASURES.items())[:-1]
    }
    bench.write_figure("memory", curve_panels(panels, log_y=True, title=f"A training step, {device}"))


def _known(costs: Mapping[Any, Costs]) -> dict[str, Costs]:
    return {str(key): {model: values for model, values in each.items() if values is not _UNKNOWN} for key, each in costs.items()}


def _cells(costs: Mapping[str, float]) -> list[str]:
    return [
        _number(costs["milliseconds"]),
        _whole(costs["networks_per_second"]),
        _number(costs["kept_bytes"] / 1e6),
        _number(costs["peak_bytes"] / 1e6),
    ]


def _whole(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:,.0f}"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def _exponent(values: Sequence[float], costs: Sequence[float]) -> float:
    """Exponent of the power law through the last three points."""
    if len(values) < 2 or not all(cost > 0 for cost in costs[-3:]):
        return math.nan
    x, y = ([math.log(value) for value in numbers[-3:]] for numbers in (values, costs))
    return statistics.linear_regression(x, y).slope


# == Parameters of layers ==


class _Layer(NamedTuple):
    """A layer and the symmetry it respects."""

    build: type[nn.Module]
    symmetry: str


class _Sweep(NamedTuple):
    """What is varied, the rest, the values, and the widths and channels that a value stands for."""

    variable: str
    fixed: str
    values: tuple[int, ...]
    case: Callable[[int], tuple[list[int], int]]


_LAYERS = (
    _Layer(NPLinear, "permutation, inputs and outputs too"),
    _Layer(HNPLinear, "permutation"),
    _Layer(MonomialLinear, "permutation, scale, sign"),
    _Layer(MAGEPLinear, "permutation, scale, sign"),
)
_SWEEPS = (
    _Sweep("layers L", "2-32-...-32-1, c = 16", (2, 4, 8, 16, 32), lambda n: ([2, *[32] * (n - 1), 1], 16)),
    _Sweep("hidden width n", "2-n-n-n-1, c = 16", (8, 16, 32, 64, 128, 256), lambda n: ([2, n, n, n, 1], 16)),
    _Sweep("channels c", "2-32-32-32-1", (1, 2, 4, 8, 16, 32, 64), lambda n: ([2, 32, 32, 32, 1], n)),
    _Sweep("inputs = outputs n₀", "n₀-32-32-32-n₀, c = 16", (1, 2, 4, 8, 16, 32, 64), lambda n: ([n, 32, 32, 32, n], 16)),
)


def count_parameters(layer: type[nn.Module], sizes: Sequence[int], channels: int) -> int:
    """Trainable parameters of a layer that maps a number of channels to as many, constants that only act through their sum counted once.

    Args:
        layer: A parameter-sharing layer.
        sizes: Widths of the MLP that it reads.
        channels: Channels in and out.

    Returns:
        The number of independent parameters.
    """
    built = layer(WeightSpace.mlp(sizes), channels, channels)
    repeated = _repeated_constants(built) if isinstance(built, SharingLinear) else 0
    return sum(parameter.numel() for parameter in built.parameters() if parameter.requires_grad) - repeated


def _repeated_constants(layer: SharingLinear) -> int:
    """Every term that writes a parameter adds a constant of its own to it."""
    written = [target.param for term in layer.terms if term.bias for target in term.targets]
    sizes = {
        target.param: rows
        for term, counts in zip(layer.terms, layer.rows, strict=True)
        for target, rows in zip(term.targets, counts, strict=True)
    }
    return sum((written.count(name) - 1) * sizes[name] for name in set(written))


@register_suite("parameters")
def parameters(bench: Bench) -> None:
    """Independent parameters of one parameter-sharing layer, counted on the layers themselves, as the networks that it reads grow.

    A larger group leaves fewer maps: layers equivariant under permutations alone map every weight and bias to every other through means, so
    that their parameters grow with the square of the depth; under scales too, hidden layers can only be mapped to themselves.
    """
    from wsgraph.plot import curve_panels

    counts = {
        sweep.variable: {layer.build.__name__: [count_parameters(layer.build, *sweep.case(n)) for n in sweep.values] for layer in _LAYERS}
        for sweep in _SWEEPS
    }
    head = ["layer", "equivariant under", *(f"in {sweep.variable} ({sweep.fixed})" for sweep in _SWEEPS), "2-32-32-32-1, c = 16"]
    rows = []
    for layer in _LAYERS:
        name = layer.build.__name__
        exponents = [_exponent(sweep.values, counts[sweep.variable][name]) for sweep in _SWEEPS]
        middle = counts["hidden width n"][name][_SWEEPS[1].values.index(32)]
        rows.append([name, layer.symmetry, *(f"{abs(exponent):.1f}" for exponent in exponents), f"{middle:,}"])
    title = "Independent parameters of one layer: exponents of their growth, and their number"
    sweeps = {sweep.variable: {"fixed": sweep.fixed, "values": sweep.values, "counts": counts[sweep.variable]} for sweep in _SWEEPS}
    bench.write_table("parameters", title, head, rows, {"sweeps": sweeps})
    panels = {
        f"{sweep.variable} ({sweep.fixed})": {
            name: dict(zip(map(float, sweep.values), map(float, numbers), strict=True)) for name, numbers in counts[sweep.variable].items()
        }
        for sweep in _SWEEPS
    }
    bench.write_figure("parameters", curve_panels(panels, y_label="independent parameters of one layer", log_y=True))
