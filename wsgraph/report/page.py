"""The page: what was compared, section by section, how to repeat it, and where it ran."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from wsgraph._labels import as_text, labelled, options_of, plain
from wsgraph._page import filled_page
from wsgraph.files import write_atomically
from wsgraph.plot import in_order_of_styles
from wsgraph.report.charts import chart, legend, style_sheet
from wsgraph.report.found import Run, Suite, find
from wsgraph.report.sections import Point, Row, Section, lead_paragraph, main_score, score_charts, score_parts
from wsgraph.report.suites import suite_section, trained_results
from wsgraph.report.tables import Cell, Column, table
from wsgraph.scores import mean_and_error, meaning

__all__ = ["write_report"]

_SEEDS = ("Seed", "Seeds")


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


def _page(runs: list[Run], suites: list[Suite], title: str | None) -> str:
    comparisons = _comparisons(runs)
    models = {str(run.config.get("model")) for run in runs} | {
        str(result.get("model")) for suite in suites for result in trained_results(suite)
    }
    # One look for a model on the whole page, the same as in figures of the same models.
    labels = [str(result.get("model")) for suite in suites for result in trained_results(suite)]
    labels += [row.label for _, group in comparisons for row in _rows(group)]
    styles = {label: i for i, label in enumerate(in_order_of_styles(labels))}
    drawn: set[str] = set()
    sections = [_compared(heading, group, styles) for heading, group in comparisons]
    # Other suites hold the same trainings as that of robustness, whose curves are best seen there.
    sections += [suite_section(suite, styles, drawn) for suite in sorted(suites, key=lambda suite: suite.name != "robustness")]
    sections += [_machines(sections)]
    heading = title or (sections[0].title if len(sections) == 2 else "Weight-space models compared")
    anchors = [f"section-{i}" for i in range(1, len(sections) + 1)]
    body = "".join(
        f'<section id="{anchor}"><h2>{escape(section.title)}</h2>{"".join(section.parts)}{_repeated(section)}</section>'
        for anchor, section in zip(anchors, sections, strict=True)
    )
    links = "".join(f'<li><a href="#{anchor}">{escape(each.title)}</a></li>' for anchor, each in zip(anchors, sections, strict=True))
    return filled_page(
        "wsgraph.report",
        "page",
        title=escape(heading),
        summary=escape(_summary(runs, suites, models)),
        styles=style_sheet(),
        links=links,
        sections=body,
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


def _rows(group: list[Run]) -> list[Row]:
    rows = []
    for label, runs in _by_model(group).items():
        metrics = {name: mean_and_error([run.metrics.get(name) for run in runs]) for name in runs[0].metrics}
        epochs = sorted({epoch for run in runs for epoch in run.losses})
        logged = [run.losses for run in runs if run.losses]
        losses = {float(epoch + 1): mean_and_error([each[epoch] for each in logged if epoch in each]) for epoch in epochs}
        rows.append(Row(label, ", ".join(plain(run.config.get("seed", "-")) for run in runs), metrics, losses))
    return rows


def _compared(title: str, group: list[Run], styles: Mapping[str, int]) -> Section:
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
    main = main_score(rows)
    seeds = rows[0].seeds.split(", ")
    sentences = [
        group[0].description,
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
    parts = [lead_paragraph(sentences), score_parts(title, rows, styles)]
    graphs = score_charts({title: rows}, styles, drawn=set())
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
    return Section(title, parts, commands, configuration, _distinct(group))


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


# == What every section ends with ==


def _repeated(section: Section) -> str:
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


def _machines(sections: Sequence[Section]) -> Section:
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
        [table("Machines and versions", columns, rows, head="no.")]
        if rows
        else [lead_paragraph(["The results do not say where they were made."])]
    )
    parts.append(f'<p class="notes">Page written by wsgraph {escape(__version__)}.</p>')
    return Section("Machines and versions", parts, [], None, [])
