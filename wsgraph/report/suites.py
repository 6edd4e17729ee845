"""Sections of a report's page about suites of the benchmark."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from wsgraph._labels import as_text, plain
from wsgraph.report.charts import legend
from wsgraph.report.found import Suite, number
from wsgraph.report.sections import ROBUSTNESS, Row, Section, lead_paragraph, score_charts, score_parts
from wsgraph.report.tables import Cell, Column, column_of, read_cells, score_cell, table
from wsgraph.scores import is_count, mean_and_error

__all__ = ["suite_section", "trained_results"]


def trained_results(suite: Suite) -> list[dict[str, Any]]:
    """The results of a suite that are trainings."""
    results = suite.document.get("results")
    trained = (
        [each for each in results if isinstance(each, dict) and isinstance(each.get("runs"), list)] if isinstance(results, list) else []
    )
    return trained


def suite_section(suite: Suite, styles: Mapping[str, int], drawn: set[str]) -> Section:
    """The section about a suite."""
    document, results = suite.document, trained_results(suite)
    parts = [lead_paragraph([suite.title])]
    configuration = {key: document[key] for key in ("size", "parameters", "spaces", "batch") if document.get(key) is not None}
    found = [document.get("machine")]
    if results:
        panels = _panels(suite, results)
        styles = {label: style for label, style in styles.items() if any(row.label == label for rows in panels.values() for row in rows)}
        scores = document.get("scores")
        if isinstance(scores, dict):
            parts.append(_pivot(suite, results, scores, styles))
        else:
            parts += [f"<h3>{escape(title)}</h3>{score_parts(title, rows, styles, everything=False)}" for title, rows in panels.items()]
        errors = {f"{result.get('model')} on {result.get('zoo')}: {result['error']}": None for result in results if result.get("error")}
        if errors:
            listed = "".join(f"<li>{escape(error)}</li>" for error in errors)
            parts.append(f'<details><summary>Why values are missing</summary><ul class="notes">{listed}</ul></details>')
        with_rows = {title: rows for title, rows in panels.items() if any(row.metrics for row in rows)}
        graphs = []
        for heading, figures in score_charts(with_rows, styles, drawn):
            of_costs = heading != ROBUSTNESS
            # Other suites hold the same trainings, and show what they cost.
            if not of_costs or suite.name != "robustness":
                graphs.append(f'<h3>{heading}</h3><div class="panels">{figures}</div>{legend(styles, lines=not of_costs)}')
        # Curves are what the suite of robustness is read for, tables what the others are.
        parts = [*parts[:1], *graphs, *parts[1:]] if suite.name == "robustness" else [*parts, *graphs]
        rates = {f"{each.get('zoo')}, {each.get('model')}": each.get("learning_rate") for each in results if each.get("learning_rate")}
        configuration["learning rates found"] = rates
        found += [run.get("machine") for each in results for run in each["runs"] if isinstance(run, dict)]
    elif isinstance(document.get("costs"), dict):
        parts.append(_costs(suite, styles))
    elif suite.table:
        head, *rows = suite.table
        columns = [read_cells([row[k] for row in rows]) for k in range(1, len(head))]
        cells = {row[0]: [column[i] for column in columns] for i, row in enumerate(rows)}
        parts.append(table(suite.title or suite.name, [Column(name) for name in head[1:]], cells, head=head[0]))
    else:
        parts.append('<p class="lead">There is no table beside the JSON file: repeat the command to write it.</p>')
    if suite.name != "robustness" or not results:
        parts += [_figure(picture) for picture in suite.figures]
    command = document.get("command")
    machines = list({as_text(each): each for each in found if isinstance(each, dict)}.values())
    return Section(f"Benchmark: {suite.name}", parts, [command] if isinstance(command, str) else [], configuration, machines)


def _panels(suite: Suite, results: list[dict[str, Any]]) -> dict[str, list[Row]]:
    """Rows that were trained and scored alike, by what they were trained on."""
    size = suite.document.get("size")
    seeds = size.get("seeds") if isinstance(size, dict) else None
    panels: dict[str, list[Row]] = {}
    for result in results:
        metrics = [run["metrics"] for run in result["runs"] if isinstance(run, dict) and isinstance(run.get("metrics"), dict)]
        cells = [run.get("cell") for run in result["runs"] if isinstance(run, dict)]
        used = ", ".join(plain(cell.get("seed", "-")) for cell in cells if isinstance(cell, dict))
        names = metrics[0] if metrics else {}
        means = {name: mean_and_error([number(each.get(name)) for each in metrics]) for name in names}
        note = f" (of {len(seeds)})" if isinstance(seeds, list) and metrics and len(metrics) < len(seeds) else ""
        title = ", ".join(str(part) for part in (f"{result.get('zoo')} zoo", result.get("variant")) if part)
        panels.setdefault(title, []).append(Row(str(result.get("model")), used or "-", means, note=note))
    return panels


def _pivot(suite: Suite, results: list[dict[str, Any]], scores: Mapping[str, Any], styles: Mapping[str, int]) -> str:
    """The table of one score: a row for every model, a column for every zoo and variant."""
    places = list(dict.fromkeys((str(result.get("zoo")), str(result.get("variant"))) for result in results))
    several = len({zoo for zoo, _ in places}) > 1
    names = {place: str(scores.get(place[1], "")) for place in places}
    columns = [column_of(names[zoo, variant], variant or zoo, f"{zoo} zoo" if several and variant else "") for zoo, variant in places]
    models = list(dict.fromkeys(str(result.get("model")) for result in results))
    missing = (math.nan, math.nan)
    found: dict[tuple[str, str, str], Cell] = {}
    for result in results:
        zoo, variant, model = (str(result.get(key)) for key in ("zoo", "variant", "model"))
        row = _panels(suite, [result]).popitem()[1][0]
        name = names[zoo, variant]
        found[zoo, variant, model] = score_cell(
            name, row.metrics.get(name, missing), f" ({row.seeds.count(',') + 1} seeds)" if row.note else ""
        )
    rows = {model: [found.get((*place, model), Cell("-")) for place in places] for model in models}
    return table(suite.title or suite.name, columns, rows, sort=0, styles=styles)


def _costs(suite: Suite, styles: Mapping[str, int]) -> str:
    """The table of costs of a step: a row for every model, columns for every zoo, batch or width."""
    costs = {
        place: {model: values for model, values in each.items() if isinstance(values, dict)}
        for place, each in suite.document["costs"].items()
        if isinstance(each, dict)
    }
    models = sorted({model for each in costs.values() for model in each})
    known = {name for each in costs.values() for values in each.values() for name in values}
    measures = [name for name in ("parameters", "milliseconds", "networks_per_second", "kept_bytes", "peak_bytes") if name in known]
    units = {"kept_bytes": 1e6, "peak_bytes": 1e6}
    of_what = suite.name.partition("-")[2]
    columns = [(place, name, column_of(name, group=f"{of_what} {place}".strip())) for place in costs for name in measures]

    def cell(model: str, place: str, name: str) -> Cell:
        return score_cell(name, (number(costs[place].get(model, {}).get(name)) / units.get(name, 1), math.nan))

    # Where no model grows with the batch or width, once is enough.
    same = [name for name in measures if is_count(name) and all(len({cell(model, at, name).text for at in costs}) == 1 for model in models)]
    columns = [*((next(iter(costs)), name, column_of(name)) for name in same), *(each for each in columns if each[1] not in same)]
    rows = {model: [cell(model, place, name) for place, name, _ in columns] for model in models}
    shown = {model: styles[model] for model in models if model in styles}
    return table(suite.title or suite.name, [column for _, _, column in columns], rows, styles=shown)


def _figure(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    name = escape(path.stem)
    return f'<figure class="picture"><img src="data:image/png;base64,{data}" alt="Figure {name} of the benchmark" loading="lazy"></figure>'
