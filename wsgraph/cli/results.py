"""Results of runs as a table."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import typer

from wsgraph.scores import meaning, places

if TYPE_CHECKING:
    from rich.table import Table

    from wsgraph.tasks import Result

__all__ = ["print_json", "print_results", "print_whole"]


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
        table.add_row(str(result.config["model"]), *row)
    print_whole(table)
    typer.echo(
        f"{scores[0]}: {meaning(scores[0])} on test networks as they are; s=S: neurons permuted and scaled by U[1, S] or sign-flipped."
    )
    for result in results:
        if listed := [
            f"{name} [{low:.{places(name)}f}, {high:.{places(name)}f}]"
            for name, (low, high) in result.intervals.items()
            if math.isfinite(low + high) and "_on_" not in name
        ]:
            typer.echo(f"Intervals of 95 % over test networks, {result.config['model']}: {', '.join(listed)}")
