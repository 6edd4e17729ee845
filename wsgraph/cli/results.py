"""Results of runs as a table."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

from wsgraph._counts import counted
from wsgraph.scores import better, label, meaning, places

if TYPE_CHECKING:
    from rich.table import Table

    from wsgraph.tasks import CrossValidation, Result, SearchResult
    from wsgraph.tasks.scored import Scores

__all__ = ["print_folds", "print_json", "print_results", "print_search", "print_whole"]

_SHOWN_TRIALS = 10


def print_json(document: Any) -> None:
    """Print what programs read: JSON alone on the standard output."""
    typer.echo(json.dumps(document, indent=2, allow_nan=False))


def print_whole(table: Table) -> None:
    """Print a table with all of its text, wider than the terminal if need be: names that are cut or wrapped cannot be copied."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console()
    console.width = max(console.width, Measurement.get(console, console.options.update(max_width=1000), table).maximum)
    console.print(table)


def _leaders(result: Result, score: str) -> list[str]:
    """Baselines that are at least as good as a model."""
    own, direction = result.metrics[score], better(score)
    return [name for name, found in result.baselines.items() if direction * found[score] >= direction * own]


def print_folds(validated: CrossValidation) -> None:
    """Print scores of a cross-validation beside those of its baselines."""
    from rich import box
    from rich.table import Table

    model, count = str(validated.results[0].config["model"]), len(validated.results)
    scores = list(validated.scores)
    targets = validated.scores.targets
    networks = counted(0 if targets is None else len(targets), "network")
    left = " and ".join(f"{number:,} {reason}" for reason, number in validated.left_out.items())
    title = f"{counted(count, 'fold')}, {networks}{f'; left out are {left}' if left else ''}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    table.add_column("model", no_wrap=True)
    for head in scores:
        table.add_column(label(head), justify="right", no_wrap=True)
    first = scores[0]
    direction, own = better(first), validated.mean[first]
    leaders = [name for name, found in validated.baselines.items() if direction * found[first] >= direction * own]

    def row(values: Mapping[str, float]) -> list[str]:
        return [f"{values[name]:.{places(name)}f}" for name in scores]

    def add(name: str, mean: Mapping[str, float], pooled: Scores | None, style: str | None = None) -> None:
        table.add_row(name, *row(mean), style=style)
        if pooled is None:  # of a run of an earlier version
            return
        table.add_row("  all predictions", *row(pooled), style=style)
        if pooled.intervals:
            for end, text in enumerate(("lower end of 95 %", "upper end of 95 %")):
                table.add_row(f"  {text}", *row({each: pooled.intervals[each][end] for each in scores}), style=style)

    add(f"{model}, mean over folds{' *' * bool(leaders)}", validated.mean, validated.scores)
    for name, found in validated.baselines.items():
        add(f"{name}, mean over folds", found, validated.pooled_baselines.get(name), "dim")
    print_whole(table)
    if leaders:
        typer.echo(f"* {model} does not beat {', '.join(leaders)}: look there first.")
    typer.echo(f"{label(first)}: {meaning(first)}.")


def print_results(results: list[Result], title: str) -> None:
    """Print costs and scores of runs of one task."""
    from rich import box
    from rich.table import Table

    scales, first = results[0].config.get("scales"), results[0].metrics
    if not scales:  # of a task that scores in its own way
        table = Table("model", *first, title=title, title_justify="left")
        for result in results:
            table.add_row(str(result.config.get("model")), *(f"{value:.4g}" for value in result.metrics.values()))
        print_whole(table)
        return
    scores = [name for name in first if f"{name}_scale_{scales[0]:g}" in first]
    # Narrow enough for a terminal of 80 columns, where a table that wraps cannot be read.
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    table.add_column("model", no_wrap=True)
    for head in ("params", "s/epoch", "peak MB", *scores, *(f"s={scale:g}" for scale in scales)):
        table.add_column(head, justify="right", no_wrap=True)
    further = [name for name in first if name.startswith(f"{scores[0]}_on_")]
    for name in further:
        table.add_column(name.removeprefix(f"{scores[0]}_"), justify="right", no_wrap=True)
    for result in results:
        m = result.metrics
        row = [
            f"{m['parameters']:,.0f}",
            f"{m['seconds_per_epoch']:.2f}",
            f"{m['peak_memory_mb']:.1f}",
            *(f"{m[name]:.{places(name)}f}" for name in [*scores, *(f"{scores[0]}_scale_{scale:g}" for scale in scales), *further]),
        ]
        table.add_row(str(result.config["model"]) + " *" * bool(_leaders(result, scores[0])), *row)
    for name, found in results[0].baselines.items():
        values = [f"{found[score]:.{places(score)}f}" for score in scores]
        table.add_row(name, "", "", "", *values, *[""] * (len(scales) + len(further)), style="dim")
    print_whole(table)
    for result in results:
        if leaders := _leaders(result, scores[0]):
            typer.echo(f"* {result.config['model']} does not beat {', '.join(leaders)}: look there first.")
    typer.echo(
        f"{scores[0]}: {meaning(scores[0])} on test networks as they are; s=S: neurons permuted and scaled by U[1, S] or sign-flipped."
    )
    intervals = [(str(result.config["model"]), result.intervals) for result in results]
    for name, ends in [*intervals, *((name, found.intervals) for name, found in results[0].baselines.items())]:
        if listed := [
            f"{score} [{low:.{places(score)}f}, {high:.{places(score)}f}]"
            for score, (low, high) in ends.items()
            if math.isfinite(low + high) and "_on_" not in score
        ]:
            typer.echo(f"Intervals of 95 % over test networks, {name}: {', '.join(listed)}")


def print_search(found: SearchResult) -> None:
    """Print the trials of a search, those of the lowest validation loss first."""
    from rich import box
    from rich.table import Table

    count = len(found.trials)
    table = Table(title=f"{count} trial{'s' * (count != 1)}", title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    for head in ("trial", *found.best, "params", "validation loss"):
        table.add_column(head.removeprefix("model_options."), justify="right", no_wrap=True)

    def text(value: Any) -> str:
        return f"{value:.3g}" if isinstance(value, float) else json.dumps(value) if isinstance(value, list) else str(value)

    ranked = sorted(found.trials, key=lambda row: (row["error"] is not None, row["validation_loss"], row["trial"]))
    for row in ranked[:_SHOWN_TRIALS]:
        ended = f"{row['validation_loss']:.4g}" if row["error"] is None else "failed"
        size = "" if row["parameters"] is None else f"{row['parameters']:,.0f}"
        table.add_row(str(row["trial"]), *(text(row[name]) for name in found.best), size, ended)
    print_whole(table)
    if count > _SHOWN_TRIALS:
        typer.echo(f"... and {count - _SHOWN_TRIALS:,} more in trials.csv")
    for row in ranked:
        if row["error"] is not None:
            typer.echo(f"Trial {row['trial']}: {row['error']}")
