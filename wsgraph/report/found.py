"""What a report is made from: result files of `wsgraph train`, `wsgraph bench` and `wsgraph quickstart`, searched and read."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

__all__ = ["Run", "Suite", "find", "number"]

from wsgraph._labels import as_text
from wsgraph.report.commands import command_of

_QUICKSTART = "wsgraph quickstart"
_WRITERS = "`wsgraph train`, `wsgraph bench` or `wsgraph quickstart`"


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        task: Name of the task.
        config: Options of the run.
        metrics: Scores and costs; NaN where there is none.
        machine: What it ran on.
        losses: Validation loss by epoch, where there is a log.
        command: The command or call that repeats the run, where that is known; one may make several runs.
        description: What models of the task do.
    """

    task: str
    config: dict[str, Any]
    metrics: dict[str, float]
    machine: dict[str, Any]
    losses: dict[int, float] = field(default_factory=dict)
    command: str = ""
    description: str = ""

    @property
    def identity(self) -> str:
        """What two copies of a run have in common."""
        return as_text([self.task, self.config, self.metrics, self.machine])


@dataclass(frozen=True)
class Suite:
    """Results of a suite of the benchmark.

    Attributes:
        name: Name of the suite.
        document: Its JSON file.
        title: First line of the Markdown file beside it, or nothing.
        table: Head and rows of the table in that file.
        figures: Pictures beside it.
    """

    name: str
    document: dict[str, Any]
    title: str = ""
    table: tuple[list[str], ...] = ()
    figures: tuple[Path, ...] = ()


def number(value: Any) -> float:
    """A score as it was found in a file: NaN unless it is a finite number."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) else math.nan


def find(paths: Sequence[str | os.PathLike[str]]) -> tuple[list[Run], list[Suite]]:
    """Runs and suites in files and folders, each once, in an order that does not depend on that of the paths.

    Args:
        paths: Result files, or folders that hold some at any depth.

    Raises:
        FileNotFoundError: If a path does not exist.
        ValueError: If nothing is found in a path, or a file is damaged.
    """
    runs: dict[str, Run] = {}
    suites: dict[str, Suite] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"There is no file or folder {str(path)!r}. Name a folder that {_WRITERS} wrote, or a JSON file in it.")
        several = path.is_dir()
        found = [item for file in (_result_files(path) if several else [path]) for item in _read(file)]
        if not found:
            where = f"in the folder {str(path)!r}" if several else f"as the file {str(path)!r}"
            raise ValueError(
                f"Expected results of {_WRITERS} {where} (found none). Name a folder that holds a result.json, a quickstart.json or the "
                "JSON file of a suite, in it or below; a run that has not finished has none yet: repeat its command to continue it."
            )
        for item in found:
            if isinstance(item, Suite):
                known_suite = suites.setdefault(as_text(item.document), item)
                if not known_suite.table and not known_suite.figures:
                    suites[as_text(item.document)] = item
            else:
                known = runs.setdefault(item.identity, item)
                # A run of the quick start is in its folder, with a log, and in the file of all its runs, which one command made.
                commands = sorted((each.command for each in (known, item)), key=lambda text: not text.startswith(_QUICKSTART))
                command = next(filter(None, commands), "")
                runs[item.identity] = replace(known, losses=known.losses or item.losses, command=command)
    return [runs[key] for key in sorted(runs)], [suites[key] for key in sorted(suites, key=lambda key: (suites[key].name, key))]


def _result_files(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        here = Path(place)
        # Cells of a benchmark, searches of learning rates among them, are summed up in its own results.
        if here != folder and (here.parent / "cell.json").exists():
            continue
        yield from (here / name for name in sorted(files) if name.endswith(".json"))


def _read(path: Path) -> list[Run | Suite]:
    """What a JSON file holds, nothing if it is of another kind."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} is damaged: expected JSON ({error}). Remove it, or repeat the command that wrote it.") from None
    if not isinstance(document, dict):
        return []
    if isinstance(document.get("suite"), str):
        return [_suite(path, document)]
    if _is_run(document):
        return [_run(document, losses=_losses(path.parent), command=command_of(document))]
    results = document.get("results")
    if isinstance(results, list) and results and all(map(_is_run, results)):
        return [_run(each, command=_quickstart(document, each)) for each in results]
    return []


def _is_run(document: Any) -> bool:
    return (
        isinstance(document, dict)
        and isinstance(document.get("task"), str)
        and isinstance(document.get("config"), dict)
        and isinstance(document.get("metrics"), dict)
    )


def _run(document: dict[str, Any], **more: Any) -> Run:
    machine = document.get("machine")
    metrics = {name: number(value) for name, value in document["metrics"].items()}
    more["description"] = str(document.get("description") or "")
    return Run(document["task"], document["config"], metrics, machine if isinstance(machine, dict) else {}, **more)


def _quickstart(document: dict[str, Any], run: dict[str, Any]) -> str:
    try:
        networks, config = int(document["zoo"]["configuration"]["networks"]), run["config"]
        return f"{_QUICKSTART} --networks {networks} --epochs {int(config['epochs'])} --seed {int(config['seed'])}"
    except (KeyError, OverflowError, TypeError, ValueError):
        return ""


def _losses(folder: Path) -> dict[int, float]:
    """Validation loss by epoch, from the logs of all attempts at a run; the later one counts."""
    earlier = sorted(folder.glob("metrics.*.csv"), key=lambda path: (len(path.name), path.name))
    losses: dict[int, float] = {}
    for path in [*earlier, folder / "metrics.csv"]:
        if path.exists():
            try:
                with path.open(newline="", encoding="utf-8") as file:
                    losses |= {int(row["epoch"]): number(float(row["val_loss"])) for row in csv.DictReader(file) if row.get("val_loss")}
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{str(path)!r} is damaged: expected numbers as 'epoch' and 'val_loss' ({error}). Remove it to leave out its curve."
                ) from None
    return dict(sorted(losses.items()))


def _suite(path: Path, document: dict[str, Any]) -> Suite:
    page = path.with_suffix(".md")
    lines = page.read_text(encoding="utf-8").splitlines() if page.exists() else []
    table = [[cell.strip() for cell in line.strip()[1:-1].split(" | ")] for line in lines if line.startswith("|")]
    if table and any(len(row) != len(table[0]) for row in table):
        raise ValueError(
            f"{str(page)!r} is damaged: expected rows of {len(table[0])} cells. Remove it, or repeat the command that wrote it."
        )
    pictures = [path.with_suffix(".png"), *sorted(path.parent.glob(f"{path.stem}-*.png"))]
    own = tuple(
        picture for picture in pictures if picture.exists() and (picture == pictures[0] or not picture.with_suffix(".json").exists())
    )
    title = next((line.strip() for line in lines if line.strip() and not line.startswith("|")), "")
    return Suite(document["suite"], document, title, tuple(table[:1] + table[2:]), own)
