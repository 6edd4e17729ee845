"""The command that writes a page about runs and results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wsgraph.cli.common import app, explained

__all__: list[str] = []


@app.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of train, bench or quickstart, their JSON files, or folders with such in them.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")] = Path("report.html"),
    title: Annotated[str | None, typer.Option(help="Title of the page (default: what is compared).")] = None,
) -> None:
    """Compare runs and results of the benchmark on one HTML page, which needs no other file and no network.

    Runs that differ only in the seed are one row, with mean and standard error.

    Examples: wsgraph report runs --output report.html

    wsgraph report wsgraph-bench/results --title "All models on ReLU and Tanh CNNs"
    """
    from wsgraph.files import prepare_folder
    from wsgraph.report import write_report

    with explained():
        prepare_folder(output.parent)
        write_report(output, runs, title=title)
    typer.echo(f"Report: {output}")
