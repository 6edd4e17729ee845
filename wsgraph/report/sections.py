"""Sections of a report's page: rows of scores, and what they are drawn and listed as."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from wsgraph._labels import as_text
from wsgraph.report.charts import chart
from wsgraph.report.found import number
from wsgraph.report.tables import Cell, Column, amount, column_of, score_cell, table
from wsgraph.scores import is_count, meaning

__all__ = ["ROBUSTNESS", "Row", "Section", "lead_paragraph", "main_score", "score_charts", "score_parts"]

Point = tuple[float, float]
_COSTS = ("parameters", "peak_memory_mb", "seconds_per_epoch", "validation_loss", "best_epoch")
ROBUSTNESS = "Robustness to scaled neurons"
_SCALE_LABEL = "upper bound s of the neuron scales U[1, s]"


@dataclass
class Row:
    """One model in a comparison."""

    label: str
    seeds: str
    metrics: dict[str, Point]
    losses: dict[float, Point] = field(default_factory=dict)
    note: str = ""


@dataclass
class Section:
    """One comparison: what it shows, and what it came from."""

    title: str
    parts: list[str]
    commands: list[str]
    configuration: Any
    machines: list[dict[str, Any]]


def main_score(rows: Iterable[Row]) -> str:
    """The score that models are compared by."""
    return next((name for row in rows for name in row.metrics if name not in _COSTS and "_scale_" not in name and "_on_" not in name), "")


def lead_paragraph(sentences: Iterable[str]) -> str:
    """A paragraph at the top of a section."""
    text = " ".join(sentence for sentence in sentences if sentence)
    return f'<p class="lead">{escape(text)}</p>' if text else ""


def _scale(name: str) -> float:
    try:
        return number(float(name.rpartition("_scale_")[2]))
    except ValueError:
        return math.nan


def score_parts(title: str, rows: Sequence[Row], styles: Mapping[str, int], *, everything: bool = True) -> str:
    """The table of scores and costs, or of the main score alone."""
    main = main_score(rows)
    names = list(dict.fromkeys(name for row in rows for name in row.metrics))
    others = [name for name in names if name != main and "_scale_" not in name and "_on_" not in name and name not in _COSTS]
    scaled = sorted((name for name in names if name.startswith(f"{main}_scale_") and not math.isnan(_scale(name))), key=_scale)
    further = [name for name in names if name.startswith(f"{main}_on_")]
    columns = [(name, column_of(name)) for name in ([main] if main else []) + (others if everything else [])]
    columns += [(name, column_of(name, f"s={_scale(name):g}", f"{main}, neurons scaled by U[1, s]")) for name in scaled]
    columns += [(name, column_of(name, name.removeprefix(f"{main}_on_"), f"{main} on other zoos")) for name in further]
    columns += [(name, column_of(name)) for name in _COSTS if everything and name in names]
    missing = (math.nan, math.nan)
    cells = {row.label: [score_cell(name, row.metrics.get(name, missing)) for name, _ in columns] for row in rows}
    heads = [column for _, column in columns]
    if len({row.seeds + row.note for row in rows}) > 1:
        heads.append(Column("seeds"))
        cells = {row.label: [*cells[row.label], Cell(row.seeds + row.note)] for row in rows}
    return table(title, heads, cells, sort=0 if main else None, styles=styles)


def score_charts(panels: Mapping[str, Sequence[Row]], styles: Mapping[str, int], drawn: set[str]) -> list[tuple[str, str]]:
    """Scores against scales and against costs under their headings, a panel for every group of rows, unless the same were drawn before."""
    curves = []
    for title, rows in panels.items():
        main = main_score(rows)
        points = {
            row.label: {_scale(name): point for name, point in row.metrics.items() if main and name.startswith(f"{main}_scale_")}
            for row in rows
        }
        identity = as_text([[label, sorted(each.items())] for label, each in sorted(points.items())])
        scales = sorted({scale for each in points.values() for scale in each if math.isfinite(scale)})
        if len(scales) < 2 or identity in drawn:
            continue
        drawn.add(identity)
        curves.append(
            chart(
                points,
                styles,
                title=title if len(panels) > 1 else "",
                x_label=_SCALE_LABEL,
                y_label=meaning(main),
                x_name=lambda x: f"s = {x:g}",
                y_name=_value_of(main),
                x_ticks=scales if len(scales) <= 8 else None,
            )
        )
    costs = _cost_charts(panels, styles)
    return [*([(ROBUSTNESS, "".join(curves))] if any(curves) else []), *([("Scores and costs", costs)] if costs else [])]


def _value_of(name: str) -> Callable[[float, float], str]:
    def value_of(mean: float, error: float) -> str:
        cell = score_cell(name, (mean, error))
        return cell.text + cell.error

    return value_of


def _cost_charts(panels: Mapping[str, Sequence[Row]], styles: Mapping[str, int]) -> str:
    """Scores against one of several costs, of which the reader chooses."""
    axes = (
        ("peak_memory_mb", "peak memory", "peak memory of a training step, MB", "MB"),
        ("seconds_per_epoch", "time", "seconds of training per epoch", "s per epoch"),
        ("parameters", "parameters", "parameters of the model", "parameters"),
    )
    choices = []
    for cost, short, label, unit in axes:
        found = []
        for title, rows in panels.items():
            main = main_score(rows)
            points = {
                row.label: {row.metrics[cost][0]: row.metrics[main]}
                for row in rows
                if cost in row.metrics and main in row.metrics and row.metrics[cost][0] > 0
            }
            if len(points) > 1:
                found.append(
                    chart(
                        points,
                        styles,
                        title=title if len(panels) > 1 else "",
                        x_label=label,
                        y_label=f"{meaning(main)}, networks as they are",
                        x_name=lambda x, cost=cost, unit=unit: f"{x:,.0f} {unit}" if is_count(cost) else f"{amount(x)} {unit}",  # type: ignore[misc]
                        y_name=_value_of(main),
                        joined=False,
                    )
                )
        if any(found):
            choices.append((short, "".join(found)))
    if not choices:
        return ""
    # Buttons of one group need a name that no other group on the page has, for which their contents are good.
    name = "cost-" + hashlib.sha256("".join(panel for _, panel in choices).encode("utf-8", "replace")).hexdigest()[:12]
    buttons = "".join(
        f'<label><input type="radio" name="{name}" value="{i}"{" checked" if i == 0 else ""}>{short}</label>'
        for i, (short, _) in enumerate(choices)
    )
    shown = "".join(f'<div class="panels" data-choice="{i}">{panel}</div>' for i, (_, panel) in enumerate(choices))
    return f'<div class="costs"><fieldset><legend>Horizontal axis</legend>{buttons}</fieldset>{shown}</div>'
