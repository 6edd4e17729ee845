"""Running a task: from the zoo to the scores."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import MISSING
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from wsgraph.data import DataLoader
from wsgraph.data.families import families_of
from wsgraph.files import write_atomically, write_json
from wsgraph.measure import peak_memory
from wsgraph.nn import build_model, list_models, model_entry
from wsgraph.options import (
    KINDS,
    ScoringOptions,
    TrainingOptions,
    acting_options,
    command_text,
    given_options,
    known_options,
    signature_of,
    written_options,
)
from wsgraph.plugins import named_plugins
from wsgraph.scores import none_as_nan
from wsgraph.tasks.baselines import baseline_scores
from wsgraph.tasks.distance import Reference
from wsgraph.tasks.networks import RunNetworks, name_of
from wsgraph.tasks.registry import task_class
from wsgraph.tasks.result import Result, Summary, scores_of_document
from wsgraph.tasks.runs import RunFolder, claimed, is_first_process
from wsgraph.tasks.scored import Scores
from wsgraph.tasks.task import Task, all_match, composed, distinct_spaces, float32, opened, preparation, targets_of
from wsgraph.tasks.trained import TrainedModel, check_read
from wsgraph.tasks.training import Objective, check_training, fit

__all__ = ["default_folder", "run", "run_seeds"]


def run(task: str | Task, **options: Any) -> Result:
    """Train a model on the training split, choose an epoch by the validation loss, and score it on the test split once.

    Args:
        task: One of :func:`list_tasks`, or a :class:`Task`.
        **options: Those of :class:`ReadingOptions`, :class:`TrainingOptions`, :class:`ScoringOptions` and :class:`FolderOptions`, and of a
            task that is named its own, such as ``target``.

    Returns:
        A :class:`Result` whose metrics are the task's scores on test networks, each also with the suffix ``_scale_S`` on
        moved ones and ``_on_NAME`` on those of further zoos, ``parameters``, ``seconds_per_epoch``, ``peak_memory_mb`` (tensors of one
        training step, in 10^6 bytes), ``best_epoch`` (the first is 1) and ``validation_loss``.

    Raises:
        TypeError: If there is no such option, or one that has no default is not given.
        ValueError: If the task or model is unknown, an option is out of range, the zoo lacks a split or the target, targets make no sense
            for the task, networks of any split cannot be read, training diverges, ``output`` holds another run, or another process trains
            there.
        OSError: If the output folder cannot be written.
        KeyboardInterrupt: If training is interrupted; the same call continues it.
        SystemExit: If the process is asked to end by SIGTERM, as cluster schedulers do; the same call continues the run.
    """
    kind = task_class(task) if isinstance(task, str) else type(task)
    own, *shared = given_options(kind, options)
    if isinstance(task, Task):
        if own:
            raise TypeError(f"The task is given with its options: leave {', '.join(own)} out, or name the task {task.name!r} instead.")
        made, own = task, {name: value for name, value in task.own_options().items() if value is not None}
    else:
        made = _made(kind, own)
    shared[KINDS.index(ScoringOptions)] = {**made.scoring(), **shared[KINDS.index(ScoringOptions)]}
    reading, training, scoring, folder = (_made(each, given) for each, given in zip(KINDS, shared, strict=True))
    written, unwritten = written_options({**own, **options}, list(acting_options(kind, *KINDS)))
    call: dict[str, Any] = {"task": made.name, "options": written, "unwritten": unwritten, "plugins": named_plugins()}
    # What another version would choose is not left to it.
    chosen = {name: getattr(training, name) for name in ("model", "epochs", "seed", "learning_rate", "batch_size")}
    call["command"] = command_text({**call, "options": {**chosen, **written}}, known_options(kind))
    return _Run(made, made.prepared(reading), training, scoring, folder, call).result()


run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [
        inspect.Parameter("task", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation="str | Task"),
        *signature_of(*KINDS).parameters.values(),
        inspect.Parameter("options", inspect.Parameter.VAR_KEYWORD, annotation="Any"),
    ],
    return_annotation="Result",
)


_PREDICTIONS = "test_predictions.safetensors"
_BASELINE = "baselines."


def _described(kind: type) -> str:
    """What the docstring of a dataclass says of its fields, to be part of another."""
    lines = inspect.cleandoc(kind.__doc__ or "").split("\n")
    start = lines.index("Args:") + 1
    return "\n".join(f"    {line}" for line in itertools.takewhile(lambda line: line.startswith(" "), lines[start:]))


_MARK = "        **options: "
run.__doc__ = (run.__doc__ or "").replace(_MARK, "\n".join(map(_described, KINDS)) + f"\n{_MARK}")


def default_folder(task: type[Task], options: Mapping[str, Any], *names: str) -> Path:
    """Where runs lie unless ``output`` says otherwise.

    Args:
        task: Class of the task.
        options: Options of :func:`run`.
        *names: What stands at the end of the folder's name.

    Returns:
        ``runs/TASK/ZOO-MODEL-seedSEED``, with the names.
    """
    model, seed = options.get("model", TrainingOptions.model), options.get("seed", TrainingOptions.seed)
    return Path("runs", task.name, "-".join([name_of(opened(options["zoo"])), model, f"seed{seed}", *names]))


def run_seeds(task: str | Task, *, seeds: Sequence[int], output: str | os.PathLike[str] | None = None, **options: Any) -> Summary:
    """Train a model on a task with several seeds, and summarise the scores.

    Args:
        task: One of :func:`list_tasks`, or a :class:`Task`.
        seeds: The seeds, one run for each.
        output: Folder of the runs, ``OUTPUT/seedSEED`` for each (default: the task's own).
        **options: Those of :func:`run`, without ``seed``; finished runs are read, not repeated.

    Returns:
        A :class:`Summary` with mean and standard error of every score.

    Raises:
        ValueError: If there is no seed, one is repeated, or as the task says.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"Expected 'seeds' to be different seeds, at least one (got {list(seeds)}).")
    return Summary([run(task, seed=seed, output=None if output is None else Path(output) / f"seed{seed}", **options) for seed in seeds])


def _made(kind: type, given: Mapping[str, Any]) -> Any:
    """Options of one kind, with those that have no default."""
    for each in dataclasses.fields(kind):
        if "option" in each.metadata and each.default is MISSING and each.name not in given:
            raise TypeError(f"Expected the option {each.name!r}: {each.metadata['option'].help}")
    return kind(**given)


class _Run(RunNetworks):
    """One run, step by step."""

    def result(self) -> Result:
        """Read, train, score and save; or read what was saved."""
        model_entry(self.training.model)
        check_training(self.training)
        self.read_networks()
        config = self.config()
        transforms = composed(self.reading.augment, preparation(self.task, config))
        with torch.random.fork_rng():
            torch.manual_seed(self.training.seed)
            trained = self.built(config)
            if self.reading.group is not None or self.reading.fold is not None:
                self.leave_out_untrained(trained, config)
            check_read(trained, self.all_networks, [f"'test_zoos' {name!r}" for name in self.further])
            objective = Objective(trained.module, self.task, self.training, transforms)
            with self.claimed(config) as claim:
                trained.config = claim.config
                if claim.finished:
                    self.say(f"finished already in {claim.folder}; overwrite=True (--overwrite) trains it again")
                    return self.with_baselines(_finished(self.task, claim))
                if claim.continues:
                    self.say(f"continues the run in {claim.folder}")
                if is_first_process():  # what `wsgraph train --config` repeats
                    write_json(claim.folder / "options.json", {"task": self.task.name, **self.call["options"]})
                costs = self.trained(objective, claim, config)
                scores = self.scores(trained)
                trained.metrics = dict(scores)
                trained.reference = Reference.of(self.splits["train"])
                metrics = {**scores, "parameters": float(sum(p.numel() for p in trained.module.parameters())), **costs}
                result = Result(
                    self.task.name,
                    metrics,
                    trained.module,
                    claim.config,
                    claim.folder,
                    call=self.call,
                    intervals=scores.intervals,
                    description=self.task.description,
                    baselines=self.baselines() if self.scoring.baselines and is_first_process() else {},
                )
                if is_first_process():
                    if scores.predictions is not None and scores.targets is not None and not self.task.edits:
                        self.save_predictions(claim.folder, scores.predictions, scores.targets, result.baselines)
                    trained.save(claim.folder / "model")
                    result.save(claim.folder / "result.json")  # last: where it is, the run is finished
        return result

    # == Training ==

    def claimed(self, config: Mapping[str, Any]) -> AbstractContextManager[RunFolder]:
        """The folder of the run."""
        where, training = self.where, self.training
        given = {"zoo": self.store, "model": training.model, "seed": training.seed}
        base = default_folder(type(self.task), given) if where.output is None else Path(where.output)
        several = training.devices > 1 or int(os.environ.get("WORLD_SIZE", 1)) > 1
        return claimed(
            base,
            config,
            numbered=where.output is None,
            resume=where.resume,
            overwrite=where.overwrite,
            distributed=several,
        )

    # == Training and scoring ==

    def built(self, config: dict[str, Any]) -> TrainedModel:
        """A new model for all networks that it must read."""
        task, model = self.task, self.training.model
        spaces = distinct_spaces(list(self.all_networks.values()))
        if len(spaces) > 1 and not model_entry(model).mixed:
            where, other = next(
                (where, space) for where, split in self.all_networks.items() for space in split.spaces if not all_match([space], spaces[:1])
            )
            able = ", ".join(name for name in list_models() if model_entry(name).mixed)
            raise ValueError(
                f"The model {model!r} reads networks of one architecture (got {len(spaces)} weight spaces): {where} holds networks of "
                f"{other!r} beside {spaces[0]!r}. Leave some out with 'select', or choose a model that reads several: {able}."
            )
        kind = {"task": "equivariant"} if task.edits else {}
        space = spaces[0] if len(spaces) == 1 else spaces
        module: nn.Module = build_model(model, space, task.outputs, **kind, **(self.training.model_options or {}))
        trained_on = distinct_spaces([self.splits["train"]])
        if task.edits:
            for where, split in self.all_networks.items():
                if not all_match(split.spaces, trained_on[:1]):
                    raise ValueError(f"Expected networks of {trained_on[0]!r} for {task.name} (got {split!r} as {where}).")
        return TrainedModel(task, task.wrap(module, trained_on[0], config), config, trained_on)

    def leave_out_untrained(self, trained: TrainedModel, config: dict[str, Any]) -> None:
        """Leave networks of which nothing can be learned out of validation and test, in splits that nobody chose."""
        left_out = {}
        for name in ("val", "test"):
            split = self.splits[name]
            strange = [space for space in split.spaces if trained.untrained([space])]
            if not strange:
                continue
            kept = torch.ones(len(split), dtype=torch.bool)
            places = {position: i for i, position in enumerate(split.positions.tolist())}
            for space in strange:
                kept[[places[position] for position in split.of_space(space).positions.tolist()]] = False
            left_out[name] = len(split) - int(kept.sum())
            self.splits[name] = split[kept]
            if len(self.splits[name]) < 2:
                raise ValueError(
                    f"Of the {len(split)} networks of the split {name!r}, {left_out[name]} have architectures that no "
                    "training network has, and too few are left: give another number of folds, or more networks."
                )
            self.all_networks[f"the split {name!r}"] = self.splits[name]
        if left_out:
            listed = ", ".join(f"{count:,} of {name}" for name, count in left_out.items())
            self.say(f"networks of architectures that no training network has are left out: {listed}")
            config |= {"untrained": left_out, "networks": {name: len(split) for name, split in self.splits.items()}}

    def trained(self, objective: Objective, claim: RunFolder, config: Mapping[str, Any]) -> dict[str, float]:
        """Train the model, and report the cost."""
        training, module = self.training, objective.model
        fixed = preparation(self.task, config)
        order = torch.Generator().manual_seed(training.seed)
        data = self.splits["train"].with_transform(objective.transform)
        train = DataLoader(data, training.batch_size, shuffle=True, generator=order, transform=float32)
        moved = objective.transform if self.reading.augment_validation else fixed
        validation = DataLoader(self.splits["val"].with_transform(moved), 4 * training.batch_size, transform=float32)
        device = torch.device("cuda" if training.accelerator != "cpu" and torch.cuda.is_available() else "cpu")
        module.to(device)
        first = self.splits["train"].batch(slice(0, training.batch_size), float32).to(device)
        bytes_used = peak_memory(lambda: self.task.loss(module(first), targets_of(first)).backward())
        module.zero_grad(set_to_none=True)
        torch.manual_seed(training.seed)
        costs = fit(objective, train, validation, claim, training, progress=self.where.progress)
        module.to(device).eval()
        return {"peak_memory_mb": bytes_used / 1e6, **costs}

    def scores(self, trained: TrainedModel) -> Scores:
        """Scores on the test networks, and on those of further zoos."""
        scoring, scores = self.scoring, Scores()
        if not scoring.test:
            return scores
        scores = trained.evaluate(self.splits["test"], scales=scoring.bounds, intervals=scoring.intervals, group=self.reading.group)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The networks of .* are not scored by")  # as was said before training
            for name, split in self.further.items():
                scores.add(trained.evaluate(split, intervals=scoring.intervals), f"_on_{name}")
        return scores

    def baselines(self) -> dict[str, Scores]:
        """Scores of simple models on the same networks."""
        if not self.scoring.test or self.task.edits:
            return {}
        seed, intervals = self.training.seed, self.scoring.intervals
        groups = families_of(self.splits["test"], self.reading.group) if intervals else None
        return baseline_scores(self.task, self.splits, intervals=intervals, groups=groups, seed=seed)

    def with_baselines(self, result: Result) -> Result:
        """A finished run with the baselines that it was not asked for before."""
        if self.scoring.baselines and not result.baselines and is_first_process():
            result.baselines = self.baselines()
            if result.baselines:
                if (result.folder / _PREDICTIONS).exists():
                    known = read_predictions(result.folder)
                    self.save_predictions(result.folder, known.predictions, known.targets, result.baselines)
                result.save(result.folder / "result.json")
        return result

    def save_predictions(self, folder: Path, predictions: Tensor, targets: Tensor, baselines: Mapping[str, Scores]) -> None:
        """Keep what was said of the test networks."""
        kept = {"positions": self.splits["test"].positions, "predictions": predictions.contiguous(), "targets": targets}
        kept |= {f"{_BASELINE}{name}": each.predictions.contiguous() for name, each in baselines.items() if each.predictions is not None}
        write_atomically(folder / _PREDICTIONS, lambda temporary: save_file(kept, temporary))


class RunPredictions(NamedTuple):
    """What a run and its baselines said of its test networks.

    Attributes:
        positions: Positions in the zoo ``[n]``.
        targets: Targets ``[n]``.
        predictions: Predictions of the model ``[n, ...]``.
        baselines: Those of baselines, by name.
    """

    positions: Tensor
    targets: Tensor
    predictions: Tensor
    baselines: dict[str, Tensor]


def read_predictions(folder: Path) -> RunPredictions:
    """What was said of the test networks of a run.

    Args:
        folder: Folder of the run.

    Raises:
        FileNotFoundError: If the run has none.
    """
    if not (folder / _PREDICTIONS).exists():
        raise FileNotFoundError(f"The run in {str(folder)!r} holds no predictions of test networks: train it again (--overwrite).")
    saved = load_file(folder / _PREDICTIONS)
    baselines = {name.removeprefix(_BASELINE): each for name, each in saved.items() if name.startswith(_BASELINE)}
    return RunPredictions(saved["positions"], saved["targets"], saved["predictions"], baselines)


def _finished(task: Task, claim: RunFolder) -> Result:
    """The result of a run, as it was saved."""
    file = claim.folder / "result.json"
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        metrics, machine, call = none_as_nan(stored["metrics"]), stored["machine"], stored.get("call") or {}
        intervals = {name: (low, high) for name, (low, high) in (stored.get("intervals") or {}).items()}
        baselines = {name: scores_of_document(scores) for name, scores in (stored.get("baselines") or {}).items()}
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{str(file)!r} is damaged ({type(error).__name__}: {error}). Give overwrite=True (--overwrite) to train again."
        ) from None
    if not (claim.folder / "model").exists():
        raise FileNotFoundError(
            f"The run in {str(claim.folder)!r} has finished, but the model is missing. Give overwrite=True (--overwrite) to train again."
        )
    module = TrainedModel.load(claim.folder).module
    return Result(task.name, metrics, module, claim.config, claim.folder, machine, call, intervals, task.description, baselines)
