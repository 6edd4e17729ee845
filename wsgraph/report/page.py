"""The page: what was compared, section by section, how to repeat it, and where it ran."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from wsgraph._labels import as_text, labelled, options_of, plain
from wsgraph.files import write_atomically
from wsgraph.plot import in_order_of_styles
from wsgraph.report.charts import chart, legend, style_sheet
from wsgraph.report.found import Run, Suite, find, number
from wsgraph.report.tables import Cell, Column, amount, column_of, read_cells, score_cell, table
from wsgraph.scores import mean_and_error, meaning

__all__ = ["write_report"]

Point = tuple[float, float]

_COSTS = ("parameters", "peak_memory_mb", "seconds_per_epoch", "validation_loss", "best_epoch")
_TASKS = {
    "generalization": "Models read the weights of networks and predict their test accuracy.",
    "inr_classification": "Models read the weights of implicit neural representations and name the class of the picture.",
    "inr_editing": "Models change the weights of implicit neural representations as an image operation changes their picture.",
}
_SEEDS = ("Seed", "Seeds")
_ROBUSTNESS = "Robustness to scaled neurons"
_SCALE_LABEL = "upper bound s of the neuron scales U[1, s]"


def write_report(path: str | os.PathLike[str], runs: Sequence[str | os.PathLike[str]], *, title: str | None = None) -> None:
    """Write one self-contained HTML page that compares training runs and results of the benchmark.

    Runs of one task and zoo are compared with each other; those that differ only in the seed are one row, with mean and standard error.

    Args:
        path: File to write.
        runs: Folders of ``wsgraph train``, ``wsgraph bench`` or ``wsgraph quickstart``, their JSON files, or folders with such in them.
        title: Title of the page (default: what is compared).

    Raises:
        FileNotFoundError: If one of ``runs`` does not exist.
        ValueError: If nothing is found in one of them, or a file is damaged.
        OSError: If the page cannot be written.

    Example:
        >>> import json, tempfile
        >>> run = {"task": "generalization", "config": {"model": "np", "zoo": "mine", "seed": 0}, "metrics": {"tau": 0.8}, "machine": {}}
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "result.json").write_text(json.dumps(run))
        >>> write_report(folder / "report.html", [folder])
        >>> "<title>generalization on mine</title>" in (folder / "report.html").read_text(encoding="utf-8")
        True
    """
    if not runs:
        raise ValueError("Expected 'runs' with at least one folder or file (got none).")
    page = _page(*find(runs), title)
    write_atomically(Path(path), lambda temporary: temporary.write_bytes(page.encode("utf-8", "replace")))


@dataclass
class _Row:
    """One model in a comparison."""

    label: str
    seeds: str
    metrics: dict[str, Point]
    losses: dict[float, Point] = field(default_factory=dict)
    note: str = ""


@dataclass
class _Section:
    """One comparison: what it shows, and what it came from."""

    title: str
    parts: list[str]
    commands: list[str]
    configuration: Any
    machines: list[dict[str, Any]]


def _page(runs: list[Run], suites: list[Suite], title: str | None) -> str:
    comparisons = _comparisons(runs)
    models = {str(run.config.get("model")) for run in runs} | {str(result.get("model")) for suite in suites for result in _results(suite)}
    # One look for a model on the whole page, the same as in figures of the same models.
    labels = [str(result.get("model")) for suite in suites for result in _results(suite)]
    labels += [row.label for _, group in comparisons for row in _rows(group)]
    styles = {label: i for i, label in enumerate(in_order_of_styles(labels))}
    drawn: set[str] = set()
    sections = [_compared(heading, group, styles) for heading, group in comparisons]
    # Other suites hold the same trainings as that of robustness, whose curves are best seen there.
    sections += [_suite(suite, styles, drawn) for suite in sorted(suites, key=lambda suite: suite.name != "robustness")]
    sections += [_machines(sections)]
    heading = title or (sections[0].title if len(sections) == 2 else "Weight-space models compared")
    anchors = [f"section-{i}" for i in range(1, len(sections) + 1)]
    body = "".join(
        f'<section id="{anchor}"><h2>{escape(section.title)}</h2>{"".join(section.parts)}{_repeated(section)}</section>'
        for anchor, section in zip(anchors, sections, strict=True)
    )
    links = "".join(f'<li><a href="#{anchor}">{escape(each.title)}</a></li>' for anchor, each in zip(anchors, sections, strict=True))
    template = resources.files("wsgraph.report").joinpath("page.html").read_text(encoding="utf-8")
    script = resources.files("wsgraph.report").joinpath("page.js").read_text(encoding="utf-8")
    return Template(template).substitute(
        title=escape(heading),
        summary=escape(_summary(runs, suites, models)),
        styles=style_sheet(),
        links=links,
        sections=body,
        script=script,
        # Only this script may run, whatever a file may have smuggled into the page.
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _summary(runs: list[Run], suites: list[Suite], models: set[str]) -> str:
    def counted(count: int, noun: str) -> str:
        return f"{count:,} {noun}{'' if count == 1 else 's'}"

    parts = []
    if runs:
        tasks = sorted({run.task for run in runs})
        parts.append(f"{counted(len(runs), 'training run')} of {_listed(tasks)}")
    if suites:
        names = sorted({suite.name for suite in suites})
        parts.append(f"the benchmark {'suites' if len(names) > 1 else 'suite'} {_listed(names)}")
    what = " and ".join(parts)
    compared = f"{counted(len(models), 'model')} in {what}." if models else f"{what[0].upper()}{what[1:]}."
    return f"{compared} ± is the standard error over seeds; the best value of a column is set in bold."


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


# == Training runs ==


def _comparisons(runs: list[Run]) -> list[tuple[str, list[Run]]]:
    """Runs that were scored on the same networks, under their heading."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        networks = run.config.get("networks")
        test = networks.get("test") if isinstance(networks, dict) else None
        scored_on = [run.config.get(key) for key in ("zoo", "zoo_digest", "operation", "target", "select", "selected")]
        groups.setdefault(as_text([run.task, *scored_on, test]), []).append(run)
    found = []
    for group in groups.values():
        first = group[0]
        operation = f" ({first.config['operation']})" if first.config.get("operation") else ""
        found.append((f"{first.task}{operation} on {first.config.get('zoo', 'an unnamed zoo')}", group))
    return found


def _by_model(group: list[Run]) -> dict[str, list[Run]]:
    """Runs that differ only in the seed, in the order of their seeds, by their label."""
    runs = labelled([(run.config, run) for run in group])
    return {label: sorted(same, key=lambda run: as_text(run.config.get("seed")).zfill(20)) for label, same in runs.items()}


def _rows(group: list[Run]) -> list[_Row]:
    rows = []
    for label, runs in _by_model(group).items():
        metrics = {name: mean_and_error([run.metrics.get(name) for run in runs]) for name in runs[0].metrics}
        epochs = sorted({epoch for run in runs for epoch in run.losses})
        logged = [run.losses for run in runs if run.losses]
        losses = {float(epoch + 1): mean_and_error([each[epoch] for each in logged if epoch in each]) for epoch in epochs}
        rows.append(_Row(label, ", ".join(plain(run.config.get("seed", "-")) for run in runs), metrics, losses))
    return rows


def _compared(title: str, group: list[Run], styles: Mapping[str, int]) -> _Section:
    rows, by_model = _rows(group), _by_model(group)
    styles = {row.label: styles[row.label] for row in rows}
    config = group[0].config
    networks = config.get("networks")
    test = networks.get("test") if isinstance(networks, dict) else None
    target = "" if config.get("target") is None else f", target {config['target']}"
    # Whatever is compared should differ in nothing but the model.
    options = [options_of(run.config) for run in group]
    shared = {name for each in options for name in each if not name.startswith("model_options.")}
    differing = sorted(name for name in shared if len({as_text(each.get(name)) for each in options}) > 1)
    main = _main(rows)
    seeds = rows[0].seeds.split(", ")
    sentences = [
        _TASKS.get(group[0].task, ""),
        f"Scores are on {test:,} test networks{target}." if isinstance(test, int) else "",
        f"{main}: {meaning(main)}." if main and meaning(main) != main.replace("_", " ") else "",
        "s: neurons permuted and scaled by factors from U[1, s], or their signs flipped, which changes no network's function."
        if main and any(name.startswith(f"{main}_scale_") for row in rows for name in row.metrics)
        else "",
        f"{_SEEDS[len(seeds) > 1]} {_listed(seeds)}." if len({row.seeds for row in rows}) == 1 else "",
        f"Beside the model, runs differ in {_listed(differing)}." if differing else "",
        "Runs were made on different machines: compare their times with care." if len(_distinct(group)) > 1 else "",
    ]
    repeated = sorted(label for label, runs in by_model.items() if len({as_text(run.config.get("seed")) for run in runs}) < len(runs))
    if repeated:
        sentences.append(f"Of {_listed(repeated)}, a seed was run more than once.")
    parts = [_lead(sentences), _scores(title, rows, styles)]
    graphs = _charts({title: rows}, styles, drawn=set())
    validation = _validation({row.label: row.losses for row in rows}, styles)
    if validation:
        graphs.append(("Validation loss", validation))
    if graphs:
        blocks = "".join(f"<div><h3>{heading}</h3>{figures}</div>" for heading, figures in graphs)
        parts.append(f'<div class="panels">{blocks}{legend(styles, lines=True)}</div>')
    commands = list(dict.fromkeys(run.command for runs in by_model.values() for run in runs if run.command))
    same = {
        name: value for name, value in options[0].items() if all(name in each and as_text(each[name]) == as_text(value) for each in options)
    }
    own = {
        label: {name: value for name, value in options_of(runs[0].config).items() if name not in same} for label, runs in by_model.items()
    }
    configuration = {"all": same, **{label: each for label, each in own.items() if each}}
    return _Section(title, parts, commands, configuration, _distinct(group))


def _validation(curves: Mapping[str, Mapping[float, Point]], styles: Mapping[str, int]) -> str:
    epochs = [epoch for points in curves.values() for epoch in points]
    ticks = (
        [epoch for epoch in sorted(set(epochs)) if epoch in (1, max(epochs)) or epoch % max(1, math.ceil(max(epochs) / 6)) == 0]
        if epochs
        else []
    )
    # The last round number would run into the last epoch.
    ticks = [epoch for epoch in ticks if epoch == ticks[-1] or epoch == 1 or ticks[-1] - epoch >= max(epochs) / 12]
    return chart(
        curves,
        styles,
        title="",
        x_label="epoch",
        y_label="loss on validation networks, mean over seeds",
        x_name=lambda x: f"epoch {x:g}",
        y_name=lambda mean, error: f"{mean:.4g}" + ("" if math.isnan(error) else f" ± {error:.2g}"),
        log_x=False,
        log_y=True,
        x_ticks=ticks,
    )


def _distinct(group: list[Run]) -> list[dict[str, Any]]:
    return list({as_text(run.machine): run.machine for run in group if run.machine}.values())


# == What runs and suites share ==


def _main(rows: Iterable[_Row]) -> str:
    """The score that models are compared by."""
    return next((name for row in rows for name in row.metrics if name not in _COSTS and "_scale_" not in name and "_on_" not in name), "")


def _lead(sentences: Iterable[str]) -> str:
    text = " ".join(sentence for sentence in sentences if sentence)
    return f'<p class="lead">{escape(text)}</p>' if text else ""


def _scale(name: str) -> float:
    try:
        return number(float(name.rpartition("_scale_")[2]))
    except ValueError:
        return math.nan


def _scores(title: str, rows: Sequence[_Row], styles: Mapping[str, int], *, everything: bool = True) -> str:
    """The table of scores and costs, or of the main score alone."""
    main = _main(rows)
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


def _charts(panels: Mapping[str, Sequence[_Row]], styles: Mapping[str, int], drawn: set[str]) -> list[tuple[str, str]]:
    """Scores against scales and against costs under their headings, a panel for every group of rows, unless the same were drawn before."""
    curves = []
    for title, rows in panels.items():
        main = _main(rows)
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
    return [*([(_ROBUSTNESS, "".join(curves))] if any(curves) else []), *([("Scores and costs", costs)] if costs else [])]


def _value_of(name: str) -> Callable[[float, float], str]:
    def value_of(mean: float, error: float) -> str:
        cell = score_cell(name, (mean, error))
        return cell.text + cell.error

    return value_of


def _cost_charts(panels: Mapping[str, Sequence[_Row]], styles: Mapping[str, int]) -> str:
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
            main = _main(rows)
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
                        x_name=lambda x, unit=unit: f"{x:,.0f} {unit}" if unit == "parameters" else f"{amount(x)} {unit}",  # type: ignore[misc]
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


# == Suites of the benchmark ==


def _results(suite: Suite) -> list[dict[str, Any]]:
    results = suite.document.get("results")
    trained = (
        [each for each in results if isinstance(each, dict) and isinstance(each.get("runs"), list)] if isinstance(results, list) else []
    )
    return trained


def _suite(suite: Suite, styles: Mapping[str, int], drawn: set[str]) -> _Section:
    document, results = suite.document, _results(suite)
    parts = [_lead([suite.title])]
    configuration = {key: document[key] for key in ("size", "parameters", "spaces", "batch") if document.get(key) is not None}
    found = [document.get("machine")]
    if results:
        panels = _panels(suite, results)
        styles = {label: style for label, style in styles.items() if any(row.label == label for rows in panels.values() for row in rows)}
        scores = document.get("scores")
        if isinstance(scores, dict):
            parts.append(_pivot(suite, results, scores, styles))
        else:
            parts += [f"<h3>{escape(title)}</h3>{_scores(title, rows, styles, everything=False)}" for title, rows in panels.items()]
        errors = {f"{result.get('model')} on {result.get('zoo')}: {result['error']}": None for result in results if result.get("error")}
        if errors:
            listed = "".join(f"<li>{escape(error)}</li>" for error in errors)
            parts.append(f'<details><summary>Why values are missing</summary><ul class="notes">{listed}</ul></details>')
        with_rows = {title: rows for title, rows in panels.items() if any(row.metrics for row in rows)}
        graphs = []
        for heading, figures in _charts(with_rows, styles, drawn):
            of_costs = heading != _ROBUSTNESS
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
    return _Section(f"Benchmark: {suite.name}", parts, [command] if isinstance(command, str) else [], configuration, machines)


def _panels(suite: Suite, results: list[dict[str, Any]]) -> dict[str, list[_Row]]:
    """Rows that were trained and scored alike, by what they were trained on."""
    size = suite.document.get("size")
    seeds = size.get("seeds") if isinstance(size, dict) else None
    panels: dict[str, list[_Row]] = {}
    for result in results:
        metrics = [run["metrics"] for run in result["runs"] if isinstance(run, dict) and isinstance(run.get("metrics"), dict)]
        cells = [run.get("cell") for run in result["runs"] if isinstance(run, dict)]
        used = ", ".join(plain(cell.get("seed", "-")) for cell in cells if isinstance(cell, dict))
        names = metrics[0] if metrics else {}
        means = {name: mean_and_error([number(each.get(name)) for each in metrics]) for name in names}
        note = f" (of {len(seeds)})" if isinstance(seeds, list) and metrics and len(metrics) < len(seeds) else ""
        title = ", ".join(str(part) for part in (f"{result.get('zoo')} zoo", result.get("variant")) if part)
        panels.setdefault(title, []).append(_Row(str(result.get("model")), used or "-", means, note=note))
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
    if "parameters" in measures and all(len({cell(model, place, "parameters").text for place in costs}) == 1 for model in models):
        first = (next(iter(costs)), "parameters", column_of("parameters"))
        columns = [first, *(each for each in columns if each[1] != "parameters")]
    rows = {model: [cell(model, place, name) for place, name, _ in columns] for model in models}
    shown = {model: styles[model] for model in models if model in styles}
    return table(suite.title or suite.name, [column for _, _, column in columns], rows, styles=shown)


def _figure(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    name = escape(path.stem)
    return f'<figure class="picture"><img src="data:image/png;base64,{data}" alt="Figure {name} of the benchmark" loading="lazy"></figure>'


# == What every section ends with ==


def _repeated(section: _Section) -> str:
    """Commands that repeat a comparison, and its configuration."""
    parts = []
    if section.commands:
        text = escape("\n".join(section.commands))
        several = "s" if len(section.commands) > 1 else ""
        parts.append(
            f'<h3>Reproduce</h3><div class="code"><button type="button" class="copy">Copy</button>'
            f'<pre tabindex="0" aria-label="Command{several}"><code>{text}</code></pre></div>'
        )
    if section.configuration:
        text = escape(json.dumps(section.configuration, indent=2, ensure_ascii=False))
        parts.append(
            f'<details><summary>Configuration</summary><pre tabindex="0" aria-label="Configuration"><code>{text}</code></pre></details>'
        )
    return "".join(parts)


def _machines(sections: Sequence[_Section]) -> _Section:
    """The machines that results come from, with the comparisons of each."""
    from wsgraph._version import __version__

    used: dict[str, list[str]] = {}
    known: dict[str, dict[str, Any]] = {}
    for section in sections:
        for machine in section.machines:
            known[as_text(machine)] = machine
            used.setdefault(as_text(machine), []).append(section.title)
    names = list(dict.fromkeys(name for machine in known.values() for name in machine))
    columns = [Column(name.replace("_", " ")) for name in names] + [Column("results")]
    rows = {
        str(i): [*(Cell(plain(known[key].get(name, "-"))) for name in names), Cell(", ".join(dict.fromkeys(used[key])))]
        for i, key in enumerate(sorted(known), 1)
    }
    parts = (
        [table("Machines and versions", columns, rows, head="no.")] if rows else [_lead(["The results do not say where they were made."])]
    )
    parts.append(f'<p class="notes">Page written by wsgraph {escape(__version__)}.</p>')
    return _Section("Machines and versions", parts, [], None, [])
