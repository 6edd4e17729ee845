"""Cells of a benchmark: one training each, in a process of its own, kept when it is finished."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from functools import cached_property
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import torch

from wsgraph._cluster import cluster
from wsgraph.data import ZooStore
from wsgraph.files import write_json
from wsgraph.nn import model_entry
from wsgraph.plugins import source_of
from wsgraph.tasks.registry import task_class
from wsgraph.tasks.remote import RemoteRuns, keep_run

if TYPE_CHECKING:
    from wsgraph.tasks import Result

__all__ = ["Cell", "run_cells"]

# Part of the name of every cell: to be raised when the same options train to other results, so that no table mixes old and new ones.
_ALGORITHM = 1


@dataclass(frozen=True)
class Cell:
    """One training of a benchmark.

    Args:
        task: Name of the task.
        zoo: Folder of the zoo.
        options: Options of the task, anything that JSON can hold.
        test_zoos: Folders of further zoos to be scored on, by name.
    """

    task: str
    zoo: Path
    options: dict[str, Any] = field(default_factory=dict)
    test_zoos: dict[str, Path] = field(default_factory=dict)

    @cached_property
    def name(self) -> str:
        """Name of the cell's folder, which differs for other options, whatever their order, and for other contents of the zoos.

        Raises:
            FileNotFoundError: If a zoo is not there.
        """
        zoos = [("", self.zoo), *self.test_zoos.items()]
        contents = {name: ZooStore(path).digest for name, path in zoos}
        identity = json.dumps(
            [_ALGORITHM, self.task, contents, self.options, *_sources(self.task, self.options.get("model"))], sort_keys=True
        )
        digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
        return "-".join([self.task, self.zoo.resolve().name, str(self.options.get("model", "")), digest])

    def train(self, folder: Path) -> Result:
        """The result of the training, which is read where it is finished, continued where it was begun, and else made.

        Args:
            folder: Where results of all cells are kept.
        """
        from wsgraph.tasks import run
        from wsgraph.tasks.runs import OtherRunError

        further = {"test_zoos": self.test_zoos} if self.test_zoos else {}
        options: dict[str, Any] = {**self.options, **further, "output": folder / self.name / "run", "progress": False, "intervals": 0}
        try:
            return run(self.task, zoo=self.zoo, **options)
        except OtherRunError:  # begun by another version of the library
            return run(self.task, zoo=self.zoo, overwrite=True, **options)


def _sources(task: str, model: str | None) -> list[str]:
    """What tells versions of a task and a model of plugins apart."""
    made = [task_class(task), *([] if model is None else [model_entry(model).build])]
    return [source for value in made if (source := source_of(value)) is not None]


def _end_with(pipe: Connection) -> None:
    """Leave when the other end of a pipe is closed: by a process that was interrupted, or because it is gone and can tell nobody."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # meant for the process that started this one, which closes the pipe

    def leave() -> None:
        with contextlib.suppress(EOFError, OSError):
            pipe.recv()
        os._exit(1)

    threading.Thread(target=leave, daemon=True).start()


def _train(cell: Cell, cells: Path, threads: int) -> dict[str, Any]:
    """Train one cell, in the process of a worker; what went wrong is part of what is returned, and tried again the next time."""
    from wsgraph.tasks.training import DivergedError

    folder = cells / cell.name
    torch.set_num_threads(threads)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning").setLevel(logging.ERROR)
    folder.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {"task": cell.task, "zoo": cell.zoo.name, "options": cell.options}
    # Another run may be at it: wait for what it comes to rather than write beside it.
    with filelock.FileLock(folder / ".lock"):
        if (folder / "cell.json").exists():
            return _read(folder)
        try:
            document = cell.train(cells).document()
            record |= {"metrics": document["metrics"], "machine": document["machine"]}
        except DivergedError as error:  # a finding, which would come out the same again
            record |= {"metrics": {}, "error": str(error)}
        except Exception as error:  # the other cells are worth having
            what = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            return record | {"metrics": {}, "error": what}
        write_json(folder / "cell.json", record)
    return record


def _read(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "cell.json").read_text(encoding="utf-8"))
    return record


def run_cells(
    cells: Sequence[Cell], folder: Path, *, workers: int | None = 1, threads: int = 1, ray: str | None = None, title: str = "training"
) -> list[dict[str, Any]]:
    """Train the cells that are not finished yet, and read the results of all.

    Args:
        cells: The cells; equal ones are trained once.
        folder: Where results are kept, in a folder for each.
        workers: Cells trained at a time, each in a process of its own; ``None`` for as many as there are processors.
        threads: Threads of each.
        ray: Address of a Ray cluster to train on, ``"auto"`` for the one that this machine belongs to, ``"local"`` for a new one of this
            machine alone (default: without Ray). Only this process writes: machines need no common file system.
        title: Shown beside the progress bar.

    Returns:
        For every cell its ``metrics`` and the ``machine`` it was trained on, or no metrics and an ``error``.

    Raises:
        ConnectionError: If there is no Ray cluster at the address.
        ImportError: If Ray is asked for and not installed.
        RuntimeError: If a process died, as for want of memory.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    by_name = {cell.name: cell for cell in cells}
    found = {name: _read(folder / name) for name in by_name if (folder / name / "cell.json").exists()}
    missing = {name: cell for name, cell in by_name.items() if name not in found}
    if missing:
        columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(title, total=len(by_name), completed=len(found))
            if ray is None:
                trained = _in_processes(missing, folder, workers or os.cpu_count() or 1, threads, title)
            else:
                trained = _on_cluster(missing, folder, workers, threads, ray)
            with contextlib.closing(trained):  # what is raised here ends it at once
                for name, record in trained:
                    found[name] = record
                    bar.advance(task)
    return [found[cell.name] for cell in cells]


# == Engines ==


def _in_processes(
    missing: Mapping[str, Cell], folder: Path, workers: int, threads: int, title: str
) -> Generator[tuple[str, dict[str, Any]]]:
    """Train cells in processes of this machine."""
    context = multiprocessing.get_context("spawn")
    theirs, ours = context.Pipe(duplex=False)
    with ProcessPoolExecutor(min(workers, len(missing)), mp_context=context, initializer=_end_with, initargs=(theirs,)) as pool:
        try:
            futures = {pool.submit(_train, cell, folder, threads): name for name, cell in missing.items()}
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool:
            raise RuntimeError(
                f"A process that trained {title} died, most likely for want of memory. What is finished is kept: repeat the call to "
                f"continue, with fewer than {workers} workers."
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            ours.close()  # ends trainings under way, which continue from their last epoch the next time
            raise
    for end in (theirs, ours):
        end.close()


def _on_cluster(
    missing: Mapping[str, Cell], folder: Path, workers: int | None, threads: int, address: str
) -> Generator[tuple[str, dict[str, Any]]]:
    """Train cells on a cluster; a cell is kept as soon as it comes back, and trained anew where it does not."""
    with cluster(address, "Training on a cluster") as machines:
        names = list(missing)
        runs = (({"": cell.zoo, **cell.test_zoos}, (cell, threads)) for cell in missing.values())
        for number, record, files in RemoteRuns(machines, workers, threads).results(_train_apart, runs):
            yield names[number], _kept(folder / names[number], record, files)


def _train_apart(folder: Path, zoo: Path, test_zoos: dict[str, Path], cell: Cell, threads: int) -> tuple[dict[str, Any], Path | None]:
    """Train one cell on a machine of a cluster: its record, and the folder of its run if it is finished."""
    there = replace(cell, zoo=zoo, test_zoos=test_zoos)
    record = _train(there, folder, threads) | {"zoo": cell.zoo.name}
    finished = (folder / there.name / "cell.json").exists()
    return record, folder / there.name / "run" if finished else None


def _kept(folder: Path, record: dict[str, Any], files: dict[str, Any] | None) -> dict[str, Any]:
    """Write a cell that was trained elsewhere, unless another process has written it in the meantime."""
    if files is None:
        return record
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder / ".lock"):
        if (folder / "cell.json").exists():
            return _read(folder)
        keep_run(folder / "run", files)
        write_json(folder / "cell.json", record)
    return record
