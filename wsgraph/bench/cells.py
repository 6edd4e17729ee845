"""Cells of a benchmark: one training each, in a process of its own, kept when it is finished."""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import torch

from wsgraph.files import write_json

if TYPE_CHECKING:
    from wsgraph.tasks import Result

__all__ = ["Cell", "run_cells"]

_LONGEST = 240  # of names of files on common systems, 255


@dataclass(frozen=True)
class Cell:
    """One training of a benchmark.

    Args:
        task: Name of the task.
        zoo: Folder of the zoo.
        options: Options of the task, anything that JSON can hold.
    """

    task: str
    zoo: Path
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What distinguishes the cell, as the name of a folder.

        Example:
            >>> Cell("generalization", Path("zoos/relu"), {"model": "np", "seed": 1, "model_options": {"hidden": 32}}).name
            'generalization-relu-model=np-seed=1-model_options=hidden=32'
        """

        def text(value: Any) -> str:
            if isinstance(value, dict):
                return ",".join(f"{key}={text(each)}" for key, each in value.items()) or "none"
            return ",".join(map(text, value)) or "none" if isinstance(value, (list, tuple)) else str(value)

        name = "-".join([self.task, self.zoo.name, *(f"{key}={text(value)}" for key, value in self.options.items())])
        if len(name) <= _LONGEST and "/" not in name:
            return name
        return f"{name[: _LONGEST // 2].replace('/', '_')}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"

    def train(self, folder: Path) -> Result:
        """The result of the training, which is read where it is finished, continued where it was begun, and else made.

        Args:
            folder: Where results of all cells are kept.
        """
        from wsgraph.tasks import run

        return run(self.task, zoo=self.zoo, output=folder / self.name / "run", progress=False, resume=True, **self.options)


def _train(cell: Cell, cells: Path, threads: int) -> None:
    """Train one cell, in the process of a worker."""
    folder = cells / cell.name
    torch.set_num_threads(threads)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning").setLevel(logging.ERROR)
    folder.mkdir(parents=True, exist_ok=True)
    # The worker of a run that was killed may still be at it: wait for what it comes to rather than write beside it.
    with filelock.FileLock(folder / ".lock"):
        if (folder / "cell.json").exists():
            return
        record: dict[str, Any] = {"task": cell.task, "zoo": cell.zoo.name, "options": cell.options}
        try:
            record["metrics"] = cell.train(cells).document()["metrics"]
        except (TypeError, ValueError) as error:  # a model that cannot read these networks, has no such option, or diverged, is a finding
            record |= {"metrics": {}, "error": str(error)}
        write_json(folder / "cell.json", record)


def run_cells(cells: Sequence[Cell], folder: Path, *, workers: int = 1, threads: int = 1, title: str = "training") -> list[dict[str, Any]]:
    """Train the cells that are not finished yet, and read the results of all.

    Args:
        cells: The cells; equal ones are trained once.
        folder: Where results are kept, in a folder for each.
        workers: Cells trained at a time, each in a process of its own.
        threads: Threads of each.
        title: Shown beside the progress bar.

    Returns:
        For every cell its ``metrics`` (empty where it failed, with an ``error``).
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    folders = {cell.name: folder / cell.name for cell in cells}
    missing = {cell.name: cell for cell in cells if not (folders[cell.name] / "cell.json").exists()}
    if missing:
        columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        context = multiprocessing.get_context("spawn")
        with (
            Progress(*columns, console=Console(stderr=True)) as bar,
            ProcessPoolExecutor(min(workers, len(missing)), mp_context=context) as pool,
        ):
            task = bar.add_task(title, total=len(folders), completed=len(folders) - len(missing))
            try:
                for future in as_completed([pool.submit(_train, cell, folder, threads) for cell in missing.values()]):
                    future.result()
                    bar.advance(task)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return [json.loads((folders[cell.name] / "cell.json").read_text(encoding="utf-8")) for cell in cells]
