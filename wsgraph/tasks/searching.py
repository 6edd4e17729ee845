"""Search of learning rates, widths and other options by the validation loss, with Optuna."""

from __future__ import annotations

import contextlib
import csv
import functools
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock
from rich.console import Console

from wsgraph._cluster import cluster
from wsgraph.files import prepare_folder, write_atomically, write_json
from wsgraph.options import KINDS, acting_options, given_options, plain_value, written_options
from wsgraph.scores import finite_or_none
from wsgraph.tasks.registry import task_class
from wsgraph.tasks.remote import RemoteRuns, keep_run
from wsgraph.tasks.result import Result
from wsgraph.tasks.running import default_folder, run
from wsgraph.tasks.runs import OtherRunError, RunningError
from wsgraph.tasks.search_space import Dimension, default_space, default_values, read_space, with_values
from wsgraph.tasks.task import Task, opened
from wsgraph.tasks.training import DivergedError

__all__ = ["SearchResult", "search"]

_RECORD, _TABLE = "search.json", "trials.csv"
_TRIAL = re.compile(r"(best-)?trial\d+")  # folders of runs
_AT_A_TIME = 8  # trials on a cluster
_REPORTED = ("validation_loss", "best_epoch", "parameters", "seconds_per_epoch")
_OWN = ("resume", "overwrite")  # options of runs that mean the search as a whole
_ZOOS = ("zoo", "test_zoos")

Outcome = dict[str, float] | Exception
"""Metrics of a run, or what went wrong with it."""


@dataclass
class SearchResult:
    """What a search found.

    Attributes:
        best: The values of the trial with the lowest validation loss, by name.
        trials: For every trial its number, values, ``validation_loss``, ``best_epoch``, ``parameters`` and ``seconds_per_epoch``,
            or the ``error`` that ended it.
        result: A run with the best values, which alone was scored on test networks.
        folder: Where the trials lie.
    """

    best: dict[str, Any]
    trials: list[dict[str, Any]]
    result: Result
    folder: Path

    def document(self) -> dict[str, Any]:
        """What was found, as plain values."""
        return {"best": self.best, "trials": [finite_or_none(row) for row in self.trials], "result": self.result.document()}

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={_text(value)}" for name, value in self.best.items())
        return f"SearchResult({len(self.trials)} trials, {values}, {self.result!r})"


def search(
    task: str | Task,
    *,
    trials: int = 20,
    search_space: Mapping[str, Sequence[Any]] | None = None,
    output: str | os.PathLike[str] | None = None,
    ray: str | None = None,
    workers: int | None = None,
    **options: Any,
) -> SearchResult:
    """Search the options of the lowest validation loss, and score a run with them; the test split stays untouched until then.

    Optuna's tree-structured Parzen estimator chooses the values, by the seed of the runs. The first trial has the default values, where the
    search space holds them. The same call continues a search that was interrupted, as if it had not been, and with more trials goes on.

    Args:
        task: One of :func:`list_tasks`, or a :class:`Task`.
        trials: Number of trials.
        search_space: What is varied, by name: ``[low, high, "log"]``, ``[low, high, "uniform"]`` or choices, such as
            ``{"learning_rate": [1e-4, 1e-2, "log"], "model_options.channels": [16, 32, 64]}`` (default: ``learning_rate`` in
            ``[3e-4, 3e-2, "log"]``, ``weight_decay`` in ``[1e-4, 1e-1, "log"]``, and half, once and twice the widths of the model,
            without those that are given).
        output: Folder of the trials, ``OUTPUT/trialI`` for each (default: ``runs/TASK/ZOO-MODEL-seedSEED-search``).
        ray: Address of a Ray cluster to train on, ``"auto"`` for the one that this machine belongs to, ``"local"`` for a new one
            of this machine alone (default: here, one trial after the other).
        workers: Trials at a time on a cluster, which are chosen by those before them (default: 8).
        **options: Those of :func:`run`; ``overwrite`` removes another search from the folder.

    Returns:
        A :class:`SearchResult`, also written as ``search.json`` and ``trials.csv``.

    Raises:
        ConnectionError: If there is no Ray cluster at the address.
        ImportError: If Optuna, or Ray where it is asked for, is not installed.
        TypeError: If an option is unknown or cannot be varied, or as :func:`run`.
        ValueError: If a range makes no sense, the folder holds another search, no trial succeeds, or as :func:`run`.
    """
    _optuna()
    kind = task_class(task) if isinstance(task, str) else type(task)
    given_options(kind, options)
    if "zoo" not in options:
        raise TypeError("Expected the option 'zoo': Folder of the zoo.")
    for name, value in (("trials", trials), ("workers", 1 if workers is None else workers)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"Expected {name!r} to be an integer of at least 1 (got {value!r}).")
    if options.get("devices", 1) != 1 or int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("A search trains every trial in one process: leave 'devices' out, and give 'ray' to train several at a time.")
    folder = default_folder(kind, options, "search") if output is None else Path(output)
    dimensions = read_space(kind, default_space(kind, options) if search_space is None else search_space, options)
    return _Search(task, dimensions, folder, options, trials, ray, workers or _AT_A_TIME).result()


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise ImportError("A search needs Optuna. Install it with: pip install 'wsgraph[search]'") from None
    return optuna


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@dataclass
class _Search:
    """One search, step by step."""

    task: str | Task
    dimensions: list[Dimension]
    folder: Path
    options: dict[str, Any]
    trials: int
    ray: str | None
    at_a_time: int
    rows: list[dict[str, Any]] = field(default_factory=list)
    connection: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def kind(self) -> type[Task]:
        """Class of the task."""
        return task_class(self.task) if isinstance(self.task, str) else type(self.task)

    def result(self) -> SearchResult:
        """Make the trials that are missing, and the run with the best values."""
        prepare_folder(self.folder)
        with self.alone(), self.connection:
            self.begin()
            while waiting := self.unfinished() or self.chosen():
                jobs = {f"trial{row['trial']}": self.trial_options(row) for row in waiting}
                failures = [outcome for name, outcome in self.tried(jobs) if isinstance(outcome, Exception)]
                wrong = [each for each in failures if not isinstance(each, DivergedError)]
                if wrong and all(row["error"] for row in self.rows[: self.trials]):  # more likely the call is wrong than the values
                    self.forget()
                    raise wrong[0]
            return self.scored()

    @functools.cached_property
    def remote(self) -> RemoteRuns | None:
        """The cluster, connected to when it is needed."""
        if self.ray is None:
            return None
        return RemoteRuns(self.connection.enter_context(cluster(self.ray, "A search on a cluster")), self.at_a_time)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Have the folder, while the block runs."""
        lock = filelock.FileLock(self.folder / ".lock")
        try:
            lock.acquire(timeout=0.25)
        except filelock.Timeout:
            raise RunningError(
                f"Another process searches in {str(self.folder)!r}: wait until it has finished, or choose another 'output' (--output)."
            ) from None
        try:
            yield
        finally:
            lock.release()

    # == The record ==

    def begin(self) -> None:
        """Read the trials that the folder holds, if they are of this search."""
        path = self.folder / _RECORD
        if not path.exists():
            if any((self.folder / name).exists() for name in ("zoo.json", "result.json")):
                raise OtherRunError(f"{str(self.folder)!r} holds a zoo or a run: choose another 'output' (--output) for the search.")
            return
        if self.options.get("overwrite"):
            self.forget()
            return
        settings = self.settings
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            recorded, self.rows = dict(document["settings"]), document["trials"]
        except (ValueError, KeyError, TypeError) as error:  # of JSON too
            raise ValueError(
                f"{str(path)!r} is damaged ({error}). Give overwrite=True (--overwrite) to search again, or another 'output'."
            ) from None
        names = [name for name in {**recorded, **settings} if recorded.get(name) != settings.get(name)]
        if names:
            differences = "; ".join(f"{name}: {recorded.get(name)!r} there, {settings.get(name)!r} now" for name in names)
            raise OtherRunError(
                f"There exists another search in {str(self.folder)!r}, which is kept ({differences}). Choose another 'output' (--output), "
                "or give overwrite=True (--overwrite) to remove it."
            )
        self.say(f"continues the search in {self.folder}: {sum('error' in row for row in self.rows)} trials are finished")

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """All that the trials depend on, as JSON holds it."""
        own = {} if isinstance(self.task, str) else {name: plain_value(value) for name, value in self.task.own_options().items()}
        written, unwritten = written_options({**own, **self.options}, list(acting_options(self.kind, *KINDS)))
        settings: dict[str, Any] = {"task": self.kind.name, **written, **unwritten, "zoo": opened(self.options["zoo"]).digest}
        settings["search_space"] = {each.name: each.given for each in self.dimensions}
        return dict(json.loads(json.dumps(settings)))

    def save(self, **found: Any) -> None:
        """Record the trials, and what was found."""
        rows = [finite_or_none(row) for row in self.rows]
        write_json(self.folder / _RECORD, {"settings": self.settings, "trials": rows, **found})

    def forget(self) -> None:
        """Remove a search. Whenever this is interrupted, what is left is a search that is not finished."""
        for path in self.folder.iterdir():
            if path.is_dir() and _TRIAL.fullmatch(path.name):
                shutil.rmtree(path)
        for name in (_TABLE, _RECORD):
            (self.folder / name).unlink(missing_ok=True)

    # == Trials ==

    def unfinished(self) -> list[dict[str, Any]]:
        """Trials that were interrupted."""
        return [row for row in self.rows[: self.trials] if "error" not in row]

    def chosen(self) -> list[dict[str, Any]]:
        """The trials after those that are finished, as many as are made at a time; recorded, so that they keep their values."""
        begun = len(self.rows)
        if begun >= self.trials:
            return []
        optuna, at_a_time = _optuna(), 1 if self.remote is None else self.at_a_time
        distributions = {each.name: each.distribution for each in self.dimensions}
        told = [
            optuna.trial.create_trial(
                params={each.name: each.parameter(row[each.name]) for each in self.dimensions},
                distributions=distributions,
                value=math.inf if row["error"] else row["validation_loss"],  # what fails is as bad as can be
            )
            for row in self.rows
        ]
        with _quiet(optuna):
            for number in range(begun + 1, min(begun + at_a_time, self.trials) + 1):
                # Values depend on the seed, the number and the finished trials: a search that is continued goes on alike.
                sampler = optuna.samplers.TPESampler(seed=(self.options.get("seed", 0) * 1_000_003 + number) % 2**32)
                study = optuna.create_study(sampler=sampler)
                if number == 1:
                    defaults = default_values(self.kind, self.options, self.dimensions)
                    study.enqueue_trial(
                        {each.name: each.parameter(defaults[each.name]) for each in self.dimensions if each.name in defaults}
                    )
                study.add_trials(told)
                parameters = study.ask(distributions).params
                self.rows.append({"trial": number, **{each.name: each.value(parameters[each.name]) for each in self.dimensions}})
        self.save()
        return self.unfinished()

    def run_options(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Options of a run with the values of a trial."""
        options = {name: value for name, value in self.options.items() if name not in _OWN}
        return with_values(options, {each.name: row[each.name] for each in self.dimensions})

    def trial_options(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The same for the trial itself, which is not scored."""
        return {**self.run_options(row), "test": False, "intervals": 0, "baselines": False, "progress": False}

    def tried(self, jobs: Mapping[str, dict[str, Any]]) -> Iterator[tuple[str, Outcome]]:
        """Make the runs of trials, and record what comes of them."""
        rows = {f"trial{row['trial']}": row for row in self.rows}
        for name, outcome in self.made(jobs):
            row = rows[name]
            if isinstance(outcome, Exception):
                row |= {**dict.fromkeys(_REPORTED), "error": str(outcome) or type(outcome).__name__}
            else:
                row |= {**{each: outcome.get(each) for each in _REPORTED}, "error": None}
            self.save()
            values = ", ".join(f"{each.name}={_text(row[each.name])}" for each in self.dimensions)
            what = row["error"] or f"validation loss {row['validation_loss']:.4g}"
            self.say(f"trial {row['trial']} of {self.trials}: {values}: {what}")
            yield name, outcome

    def made(self, jobs: Mapping[str, dict[str, Any]]) -> Iterator[tuple[str, Outcome]]:
        """Names of runs, and what comes of them, here or on the cluster."""
        if self.remote is None:
            for name, options in jobs.items():
                yield name, _outcome(self.task, {**options, "output": self.folder / name})
            return
        names = list(jobs)
        zoos = {"": self.options["zoo"], **(self.options.get("test_zoos") or {})}
        runs = ((zoos, (self.task, {name: value for name, value in options.items() if name not in _ZOOS})) for options in jobs.values())
        for number, outcome, files in self.remote.results(_made_apart, runs):
            if files is not None:
                keep_run(self.folder / names[number], files)
            yield names[number], outcome

    def say(self, text: str) -> None:
        """Tell how the search goes."""
        if self.options.get("progress", True):
            Console(stderr=True).print(text, highlight=False, markup=False, soft_wrap=True)

    # == What was found ==

    def scored(self) -> SearchResult:
        """A run with the best values, scored on test networks."""
        rows = self.rows[: self.trials]
        succeeded = [row for row in rows if row["error"] is None]
        if not succeeded:
            raise ValueError(f"No trial of the search succeeded: {rows[0]['error']} Vary the options within other ranges.")
        first = min(succeeded, key=lambda row: (row["validation_loss"], row["trial"]))
        name, options = f"best-trial{first['trial']}", self.run_options(first)
        if self.ray is not None and not (self.folder / name / "result.json").exists():
            options["progress"] = False
            for _, outcome in self.made({name: options}):
                if isinstance(outcome, Exception):
                    raise outcome
        result = run(self.task, **options, output=self.folder / name)
        best = {each.name: first[each.name] for each in self.dimensions}
        found = SearchResult(best, rows, result, self.folder)
        self.save(best=best, result=result.document())
        write_atomically(self.folder / _TABLE, lambda temporary: _write_table(temporary, rows))
        return found


def _outcome(task: str | Task, options: Mapping[str, Any]) -> Outcome:
    """What comes of a run."""
    try:
        return run(task, **options).metrics
    except (OtherRunError, RunningError):
        raise
    except (ValueError, TypeError, RuntimeError) as error:  # such as a width that leaves no memory
        return error


def _made_apart(
    folder: Path, zoo: Path, test_zoos: dict[str, Path], task: str | Task, options: Mapping[str, Any]
) -> tuple[Outcome, Path | None]:
    """The same on a machine of a cluster, with the folder of the run if it is finished."""
    further = {"test_zoos": test_zoos} if test_zoos else {}
    outcome = _outcome(task, {**options, "zoo": zoo, **further, "output": folder / "run"})
    return outcome, None if isinstance(outcome, Exception) else folder / "run"


def _write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@contextlib.contextmanager
def _quiet(optuna: Any) -> Iterator[None]:
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)
