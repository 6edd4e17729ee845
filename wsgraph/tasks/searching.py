"""Search of learning rates, widths and other options by the validation loss, with Optuna."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import torch
from rich.console import Console

from wsgraph._cluster import cluster
from wsgraph.files import write_atomically, write_json
from wsgraph.options import KINDS, acting_options, given_options, plain_value, written_options
from wsgraph.plugins import named_plugins
from wsgraph.scores import finite_or_none
from wsgraph.tasks.registry import task_class
from wsgraph.tasks.remote import Sender, SentZoo, keep_run, received, returned
from wsgraph.tasks.result import Result
from wsgraph.tasks.running import run
from wsgraph.tasks.runs import OtherRunError, RunningError, prepare_folder
from wsgraph.tasks.search_space import Dimension, default_space, read_space, usual_values, with_values
from wsgraph.tasks.task import Task, opened
from wsgraph.tasks.training import DivergedError

__all__ = ["SearchResult", "search"]

_JOURNAL, _SETTINGS, _FOUND, _TABLE = "optuna.log", "settings.json", "search.json", "trials.csv"
_AT_A_TIME = 8  # trials on a cluster
_SHOWN = ("validation_loss", "best_epoch", "parameters", "seconds_per_epoch")


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
    space: Mapping[str, Sequence[Any]] | None = None,
    output: str | os.PathLike[str] | None = None,
    ray: str | None = None,
    workers: int | None = None,
    **options: Any,
) -> SearchResult:
    """Search options with the lowest validation loss, and score a run with them; the test split stays untouched until then.

    Optuna's tree-structured Parzen estimator chooses the values, by the seed of the runs. The first trial has the usual ones, where the
    space holds them. The same call continues a search that was interrupted, as if it had not been, and with more trials goes on.

    Args:
        task: One of :func:`list_tasks`, or a :class:`Task`.
        trials: Number of trials.
        space: What is varied, by name: ``[low, high, "log"]``, ``[low, high, "uniform"]`` or choices, such as ``{"learning_rate": [1e-4,
            1e-2, "log"], "model_options.channels": [16, 32, 64]}`` (default: ``learning_rate`` in ``[3e-4, 3e-2, "log"]``,
            ``weight_decay`` in ``[1e-4, 1e-1, "log"]``, and half, once and twice the widths of the model, without those that are given).
        output: Folder of the trials, ``OUTPUT/trialI`` for each (default: ``runs/TASK/ZOO-MODEL-seedSEED-search``).
        ray: Address of a Ray cluster to train trials on, ``"auto"`` for the one that this machine belongs to, ``"local"`` for a new one
            of this machine alone (default: here, one after the other).
        workers: Trials at a time on a cluster, which are chosen by those before them (default: 8).
        **options: Those of :func:`run`.

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
    if output is None:
        zoo = Path(opened(options["zoo"]).path).resolve().name
        output = Path("runs", kind.name, f"{zoo}-{options.get('model', 'monomial_gnn')}-seed{options.get('seed', 0)}-search")
    dimensions = read_space(kind, default_space(kind, options) if space is None else space, options)
    at_a_time = 1 if ray is None else workers or _AT_A_TIME
    return _Search(task, dimensions, Path(output), options, trials, at_a_time).result(ray)


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
    at_a_time: int

    @property
    def kind(self) -> type[Task]:
        return task_class(self.task) if isinstance(self.task, str) else type(self.task)

    def result(self, ray: str | None) -> SearchResult:
        """Make the trials that are missing, and the run with the best values."""
        prepare_folder(self.folder)
        with self.alone(), _quiet_optuna():
            self.begin()
            study = self.study()
            with cluster(ray, "A search on a cluster") if ray is not None else contextlib.nullcontext() as machines:
                sender = None if machines is None else Sender(machines)
                while numbers := self.next_round(study):
                    values = {number: self.values(study, number) for number in numbers}
                    errors = []
                    for number, found in self.made(values, machines, sender):
                        self.tell(study, number, values[number], found)
                        errors += [found] if isinstance(found, Exception) else []
                    if not study.get_trials(deepcopy=False, states=[_optuna().trial.TrialState.COMPLETE]):
                        self.forget()  # more likely the call is wrong than the values
                        raise errors[0]
            return self.scored(study)

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

    # == What is searched ==

    def begin(self) -> None:
        """Record what is searched, or see that it is what the folder holds."""
        settings = json.loads(json.dumps(self.settings()))
        path = self.folder / _SETTINGS
        if self.options.get("overwrite"):
            self.forget()
        if not path.exists():
            if (self.folder / "zoo.json").exists() or (self.folder / "result.json").exists():
                raise OtherRunError(f"{str(self.folder)!r} holds a zoo or a run: choose another 'output' (--output) for the search.")
            write_json(path, settings)
            return
        try:
            recorded = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
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

    def settings(self) -> dict[str, Any]:
        """All that the trials depend on."""
        own = {} if isinstance(self.task, str) else {name: plain_value(value) for name, value in self.task.own_options().items()}
        written, unwritten = written_options({**own, **self.options}, list(acting_options(self.kind, *KINDS)))
        return {
            "task": self.kind.name,
            **written,
            **unwritten,
            "zoo": opened(self.options["zoo"]).digest,
            "space": {each.name: list(each.given) for each in self.dimensions},
        }

    def forget(self) -> None:
        """Remove a search."""
        for name in (_FOUND, _TABLE, _JOURNAL, f"{_JOURNAL}.lock"):
            (self.folder / name).unlink(missing_ok=True)
        for path in [*self.folder.glob("trial*"), *self.folder.glob("best-trial*")]:
            if path.is_dir():
                shutil.rmtree(path)
        (self.folder / _SETTINGS).unlink(missing_ok=True)

    # == Trials ==

    def study(self) -> Any:
        """Optuna's record of the trials, a file of JSON lines."""
        optuna = _optuna()
        from optuna.storages.journal import JournalFileBackend

        storage = optuna.storages.JournalStorage(JournalFileBackend(str(self.folder / _JOURNAL)))
        study = optuna.create_study(study_name="search", storage=storage, load_if_exists=True, direction="minimize")
        if not study.trials:
            usual = usual_values(self.kind, self.options, self.dimensions)
            study.enqueue_trial({each.name: each.parameter(usual[each.name]) for each in self.dimensions if each.name in usual})
        return study

    def next_round(self, study: Any) -> list[int]:
        """Numbers of the trials to be made next: those that were interrupted, and new ones to fill the round."""
        states = _optuna().trial.TrialState
        found = study.get_trials(deepcopy=False)
        numbers = [trial.number for trial in found if trial.state == states.RUNNING and trial.number < self.trials]
        begun = sum(trial.state != states.WAITING for trial in found)
        while begun < self.trials and (not numbers or begun % self.at_a_time):
            self.reseed(study, begun)
            numbers.append(study.ask().number)
            begun += 1
        return numbers

    def reseed(self, study: Any, number: int) -> None:
        """What a trial gets depends on the seed, its number and the trials before: a search that is continued goes on alike."""
        study.sampler = _optuna().samplers.TPESampler(seed=(self.options.get("seed", 0) * 1_000_003 + number) % 2**32)

    def values(self, study: Any, number: int) -> dict[str, Any]:
        """The values of a trial, chosen where they are not yet."""
        self.reseed(study, number)
        trial = self.trial(study, number)
        for each in self.dimensions:
            each.suggest(trial)
        return {each.name: each.value(trial.params) for each in self.dimensions}

    def where(self, number: int) -> Path:
        """Folder of the run of a trial."""
        return self.folder / f"trial{number + 1}"

    def trial(self, study: Any, number: int) -> Any:
        """A trial that is under way, perhaps since before this process."""
        return _optuna().trial.Trial(study, study.get_trials(deepcopy=False)[number]._trial_id)

    def trial_options(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Options of the run of a trial."""
        options = {name: value for name, value in self.options.items() if name not in ("resume", "overwrite")}
        return {**with_values(options, values), "test": False, "intervals": 0, "baselines": False, "progress": False}

    def made(
        self, values: Mapping[int, Mapping[str, Any]], machines: Any, sender: Sender | None
    ) -> Iterator[tuple[int, dict[str, float] | Exception]]:
        """Numbers of trials, and what came of them."""
        if machines is None or sender is None:
            for number, each in values.items():
                yield number, _attempt(self.task, {**self.trial_options(each), "output": self.where(number)})
            return
        further = self.options.get("test_zoos") or {}
        zoos = {name: sender.send(zoo) for name, zoo in {"": self.options["zoo"], **further}.items()}
        numbers, plugins = list(values), named_plugins()
        given = [
            {name: value for name, value in self.trial_options(values[n]).items() if name not in ("zoo", "test_zoos")} for n in numbers
        ]
        calls = ((self.task, options, zoos, plugins) for options in given)
        for i, (found, files) in machines.results(_attempt_there, calls, gpus=machines.gpus_for_each(self.at_a_time)):
            if files is not None:
                keep_run(self.where(numbers[i]), files)
            yield numbers[i], found

    def tell(self, study: Any, number: int, values: Mapping[str, Any], found: dict[str, float] | Exception) -> None:
        """Record what came of a trial."""
        states = _optuna().trial.TrialState
        trial = self.trial(study, number)
        text = ", ".join(f"{name}={_text(value)}" for name, value in values.items())
        if isinstance(found, Exception):
            trial.set_user_attr("error", str(found))
            self.say(f"trial {number + 1} of {self.trials}: {text}: {found}")
            if isinstance(found, DivergedError):  # as bad as can be
                study.tell(number, math.inf)
            else:
                study.tell(number, state=states.FAIL)
            return
        trial.set_user_attr("metrics", {name: found[name] for name in _SHOWN if name in found})
        study.tell(number, found["validation_loss"])
        self.say(f"trial {number + 1} of {self.trials}: {text}: validation loss {found['validation_loss']:.4g}")

    def say(self, text: str) -> None:
        """Tell how the search goes."""
        if self.options.get("progress", True):
            Console(stderr=True).print(text, highlight=False, markup=False, soft_wrap=True)

    # == What was found ==

    def scored(self, study: Any) -> SearchResult:
        """A run with the best values, scored on test networks."""
        rows = [self.row(trial) for trial in study.get_trials(deepcopy=False)[: self.trials]]
        succeeded = [row for row in rows if row["error"] is None]
        if not succeeded:
            raise ValueError(f"No trial of the search succeeded: {rows[0]['error']} Vary the options within other ranges.")
        first = min(succeeded, key=lambda row: (row["validation_loss"], row["trial"]))
        best = {each.name: first[each.name] for each in self.dimensions}
        options = {name: value for name, value in self.options.items() if name not in ("resume", "overwrite")}
        result = run(self.task, **with_values(options, best), output=self.folder / f"best-trial{first['trial']}")
        found = SearchResult(best, rows, result, self.folder)
        write_json(self.folder / _FOUND, found.document())
        write_atomically(self.folder / _TABLE, lambda temporary: _write_table(temporary, rows))
        return found

    def row(self, trial: Any) -> dict[str, Any]:
        """A row of the table of trials."""
        metrics, error = trial.user_attrs.get("metrics", {}), trial.user_attrs.get("error")
        values = {each.name: each.value(trial.params) for each in self.dimensions}
        return {"trial": trial.number + 1, **values, **{name: metrics.get(name) for name in _SHOWN}, "error": error}


def _attempt(task: str | Task, options: Mapping[str, Any]) -> dict[str, float] | Exception:
    """Metrics of the run of a trial, or what went wrong with it."""
    try:
        return run(task, **options).metrics
    except (OtherRunError, RunningError):
        raise
    except (ValueError, TypeError, RuntimeError) as error:  # such as a width that leaves no memory
        return error


def _attempt_there(
    task: str | Task, options: Mapping[str, Any], zoos: Mapping[str, SentZoo], plugins: list[str]
) -> tuple[dict[str, float] | Exception, dict[str, Any] | None]:
    """The same on a machine of a cluster, with the files of the run."""
    torch.set_num_threads(1)
    with received(zoos, plugins) as (folder, paths):
        further = {name: path for name, path in paths.items() if name}
        found = _attempt(task, {**options, "test_zoos": further or None, "zoo": paths[""], "output": folder / "run"})
        return found, None if isinstance(found, Exception) else returned(folder / "run", zoos, paths)


def _write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@contextlib.contextmanager
def _quiet_optuna() -> Iterator[None]:
    optuna = _optuna()
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)
