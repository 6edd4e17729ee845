"""Training tasks that read networks: from the zoo to the scores."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import uuid
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from wsgraph.data import DataLoader, ParameterStatistics, ZooDataset, ZooStore
from wsgraph.data.folder import ZooFolder
from wsgraph.data.transforms import Canonicalize, WeightTransform
from wsgraph.measure import peak_memory
from wsgraph.nn import build_model, list_models, model_entry
from wsgraph.plugins import named_plugins, source_of
from wsgraph.scores import none_as_nan
from wsgraph.tasks.prediction import (
    Prediction,
    all_match,
    composed,
    distinct_spaces,
    float32,
    opened,
    preparation,
)
from wsgraph.tasks.registry import CALL
from wsgraph.tasks.result import Result
from wsgraph.tasks.runs import RunFolder, claimed, is_first_process
from wsgraph.tasks.trained import TrainedModel, check_read, check_scored
from wsgraph.tasks.training import Objective, fit, targets_of

__all__ = ["run_prediction"]

_SPLITS = ("train", "val", "test")


def _checked(scales: Sequence[float] | float, epochs: int, devices: int) -> list[float]:
    for name, value in (("epochs", epochs), ("devices", devices)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"Expected '{name}' to be an integer of at least 1 (got {value!r}).")
    bounds = [float(scale) for scale in (scales if isinstance(scales, Sequence) else [scales])]
    if bad := [scale for scale in bounds if not 1 <= scale < float("inf")]:
        raise ValueError(f"Expected 'scales', upper bounds of U[1, s], to be finite and at least 1 (got {bad[0]:g}).")
    return bounds


def run_prediction(
    task: Prediction,
    *,
    zoo: ZooStore | str | os.PathLike[str],
    model: str = "monomial_gnn",
    epochs: int = 30,
    seed: int = 0,
    scales: Sequence[float] | float = (1,),
    target: str | None = None,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    weight_decay: float = 1e-2,
    output: str | os.PathLike[str] | None = None,
    progress: bool = True,
    resume: bool = False,
    overwrite: bool = False,
    accelerator: str = "auto",
    devices: int = 1,
    model_options: dict[str, Any] | None = None,
    select: Mapping[str, Any] | None = None,
    canonicalize: Collection[str] = (),
    standardize: bool = False,
    augment: WeightTransform | None = None,
    augment_validation: bool = False,
    train_size: int | None = None,
    test: bool = True,
    test_zoos: Mapping[str, ZooStore | str | os.PathLike[str]] | None = None,
    record: Mapping[str, Any] | None = None,
) -> Result:
    """Train a model on the training split, choose an epoch by the validation loss, and score it on the test split once.

    Args:
        task: What is learned.
        zoo: Zoo of networks or its path, with splits ``train``, ``val`` and ``test``.
        model: One of :func:`wsgraph.nn.list_models`.
        epochs: Passes over the training split.
        seed: Seed of initialisation, batches, dropout and group elements.
        scales: Upper bounds of the positive factors of moved test networks, where their activation allows any.
        target: Column of the zoo's table to predict (default: that of the task).
        batch_size: Networks per step.
        learning_rate: Largest learning rate of the one-cycle schedule.
        weight_decay: Weight decay of AdamW.
        output: Folder for checkpoints and logs (default: ``runs/TASK/ZOO-MODEL-seedSEED``, followed by ``-2``, ``-3``, ... where that
            holds a run of other options). The same run is continued there where it was interrupted, and its result is returned where it
            has finished; a folder that holds another run is refused.
        progress: Whether to show progress.
        resume: Continue a run of fewer epochs, and refuse any other that the folder holds. The learning rate goes on where the cycle of
            the longer run is by then; ``config["continued_from"]`` says after how many epochs, and a result that the shorter run has is
            kept in ``epochs-N`` in its folder.
        overwrite: Train again, removing the run that ``output`` holds or, in the default folders, the run of these options.
        accelerator: As in Lightning: ``"auto"``, ``"cpu"`` or ``"gpu"``.
        devices: Processes that train together on this machine (data-parallel), each with its share of every batch; under ``torchrun`` its
            own number counts.
        model_options: Options of the model, such as ``{"channels": 32}``.
        select: Conditions on columns of the table that networks of all splits must meet; see :meth:`wsgraph.data.ZooDataset.select`.
        canonicalize: Which of ``"scale"``, ``"phase"``, ``"flip"``, ``"sign"`` and ``"order"`` to settle in
            all networks before they are read, after test networks were moved.
        standardize: Whether every parameter is divided by its standard deviation over the training networks, as publications on implicit
            neural representations do, whose weights are small. It keeps all symmetries, but not what a network computes: leave it out for
            models with probes. For networks of one architecture.
        augment: Random transform of the training networks, drawn anew in every epoch, such as
            :class:`wsgraph.data.transforms.RandomINRTransform`.
        augment_validation: Whether the transform is for the validation networks too, drawn alike in every epoch.
        train_size: Number of training networks, chosen by the seed (default: all).
        test: Whether to score the test split; without it, for searching by ``validation_loss``, it stays untouched.
        test_zoos: Further zoos by name whose test splits the model is scored on as they are, such as networks for other pictures; of other
            architectures for models that read mixed batches. Where such networks would pass through parameters that those trained on do
            not use, whose values mean nothing, scores are NaN and a warning names the parameters; validation and test networks of this
            kind are refused.
        record: What else the run depends on, for its ``config``.

    Returns:
        A :class:`~wsgraph.tasks.Result` whose metrics are the task's scores on test networks, each also with the suffix ``_scale_S`` on
        moved ones and ``_on_NAME`` on those of further zoos, ``parameters``, ``seconds_per_epoch``, ``peak_memory_mb`` (tensors of one
        training step, in 10^6 bytes), ``best_epoch`` (the first is 1) and ``validation_loss``.

    Raises:
        ValueError: If the model is unknown, an option is out of range, the zoo lacks a split or the target, targets make no sense for the
            task, networks of any split cannot be read, training diverges, ``output`` holds another run, or another process trains there.
        OSError: If the output folder cannot be written.
        KeyboardInterrupt: If training is interrupted; the same call continues it.
        SystemExit: If the process is asked to end by SIGTERM, as cluster schedulers do; the same call continues the run.
    """
    store = opened(zoo)
    model_entry(model)
    bounds = _checked(scales, epochs, devices)
    target = task.target if target is None else target
    splits = {name: store.dataset(name, target=target) for name in _SPLITS}
    if select:
        splits = {name: split.select(select) for name, split in splits.items()}
    if train_size is not None:
        if not isinstance(train_size, int) or not 2 <= train_size <= len(splits["train"]):
            raise ValueError(f"Expected 'train_size' to be an integer from 2 to {len(splits['train'])} (got {train_size!r}).")
        chosen = torch.randperm(len(splits["train"]), generator=torch.Generator().manual_seed(seed))[:train_size]
        splits["train"] = splits["train"][chosen.sort().values]
    for name, split in splits.items():
        if len(split) < 2:
            raise ValueError(f"Expected at least 2 networks in the split {name!r} of {store!r} (got {len(split)}).")
    width = task.width(splits)
    further = {name: opened(other).dataset("test", target=target) for name, other in (test_zoos or {}).items()}
    for name, split in further.items():
        try:
            check_scored(task, split, width, splits["train"].spaces)
        except ValueError as error:
            raise ValueError(f"'test_zoos' {name!r} cannot be scored on: {error}") from None
    if standardize and len(splits["train"].spaces) > 1:
        raise ValueError(f"'standardize' is for networks of one architecture (got {splits['train']!r}).")
    form = Canonicalize(canonicalize) if canonicalize else None
    deviations = {name: _spread(each) for name, each in splits["train"].statistics(form).items()} if standardize else None
    read = _read_networks(splits, further)
    for where, split in read.items() if deviations else ():
        if any([param.name for param in space.params] != list(deviations or ()) for space in split.spaces):
            raise ValueError(f"'standardize' divides by what was found for {splits['train'].space!r}, not for {where}: {split!r}.")

    config = {
        "model": model,
        "zoo": _name(store),
        "zoo_digest": store.digest,
        "epochs": epochs,
        "seed": seed,
        "scales": bounds,
        "target": target,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "model_options": model_options or {},
        "networks": {name: len(split) for name, split in splits.items()},
        "select": None if select is None else {name: value if _is_plain(value) else _named(value) for name, value in select.items()},
        "canonicalize": list(canonicalize),
        "standardize": deviations,
        "augment": None if augment is None else _named(augment),
        "augment_validation": augment_validation,
        "test": test,
        "test_zoos": {name: f"{_name(split.store)} {split.store.digest}" for name, split in further.items()},
        **(record or {}),
    }
    if select:
        config["selected"] = _digest(split.positions for split in splits.values())
    sources = {
        "model": source_of(model_entry(model).build),
        "task": source_of(task.predict),
        "augment": None if augment is None else _of_others(augment),
    }
    if any(sources.values()):
        config["sources"] = {name: source for name, source in sources.items() if source is not None}

    fixed = preparation(task, config)
    changed = composed(augment, fixed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        trained = _built(task, model, width, model_options or {}, splits, read, config)
        check_read(trained, read, [f"'test_zoos' {name!r}" for name in further])
        module = trained.module
        objective = Objective(
            module,
            task.loss,
            task.score,
            task.score_name,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            seed=seed,
            transform=changed,
        )
        base = Path(output or Path("runs", task.name, f"{_name(store)}-{model}-seed{seed}"))
        several = devices > 1 or int(os.environ.get("WORLD_SIZE", 1)) > 1
        with claimed(base, config, numbered=output is None, resume=resume, overwrite=overwrite, distributed=several) as claim:
            folder, trained.config = claim.folder, claim.config
            if claim.finished:
                _say(progress, f"{model}: finished already in {folder}; overwrite=True (--overwrite) trains it again")
                return _finished(task, claim)
            if claim.continues:
                _say(progress, f"{model}: continues the run in {folder}")
            order = torch.Generator().manual_seed(seed)
            train = DataLoader(splits["train"].with_transform(changed), batch_size, shuffle=True, generator=order, transform=float32)
            device = torch.device("cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu")
            module.to(device)
            first = splits["train"].batch(slice(0, batch_size), float32).to(device)
            bytes_used = peak_memory(lambda: task.loss(module(first), targets_of(first)).backward())
            module.zero_grad(set_to_none=True)
            torch.manual_seed(seed)
            costs = fit(
                objective,
                train,
                DataLoader(splits["val"].with_transform(changed if augment_validation else fixed), 4 * batch_size, transform=float32),
                folder,
                epochs=epochs,
                title=model,
                progress=progress,
                continues=claim.continues,
                accelerator=accelerator,
                devices=devices,
            )
            module.to(device).eval()
            metrics: dict[str, float] = {}
            if test:
                metrics |= trained.evaluate(splits["test"], scales=bounds)
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "The networks of .* are not scored by")  # as was said before training
                    scored = {name: trained.evaluate(split) for name, split in further.items()}
                metrics |= {f"{score}_on_{name}": value for name, scores in scored.items() for score, value in scores.items()}
            trained.metrics = dict(metrics)
            metrics["parameters"] = float(sum(parameter.numel() for parameter in module.parameters()))
            metrics |= {"peak_memory_mb": bytes_used / 1e6, **costs}
            result = Result(task.name, metrics, module, claim.config, folder, call=_call())
            if is_first_process():
                trained.save(folder / "model")
                result.save(folder / "result.json")  # last: where it is, the run is finished
    return result


def _read_networks(splits: Mapping[str, ZooDataset], further: Mapping[str, ZooDataset]) -> dict[str, ZooDataset]:
    """All networks that a model must read, by where they are; those trained on come first."""
    return {f"the split {name!r}": split for name, split in splits.items()} | {
        f"'test_zoos' {name!r}": split for name, split in further.items()
    }


def _built(
    task: Prediction,
    model: str,
    width: int,
    options: Mapping[str, Any],
    splits: Mapping[str, ZooDataset],
    read: Mapping[str, ZooDataset],
    config: dict[str, Any],
) -> TrainedModel:
    """A new model for all networks that it must read."""
    spaces = distinct_spaces(list(read.values()))
    if len(spaces) > 1 and not model_entry(model).mixed:
        where, other = next((where, space) for where, split in read.items() for space in split.spaces if space.digest != spaces[0].digest)
        able = ", ".join(name for name in list_models() if model_entry(name).mixed)
        raise ValueError(
            f"The model {model!r} reads networks of one architecture (got {len(spaces)} weight spaces): {where} holds networks of "
            f"{other!r} beside {spaces[0]!r}. Leave some out with 'select', or choose a model that reads several: {able}."
        )
    kind = {} if task.wrap is None else {"task": "equivariant"}
    module = build_model(model, spaces[0] if len(spaces) == 1 else spaces, width, **kind, **options)
    trained_on = distinct_spaces([splits["train"]])
    if task.wrap is not None:
        for where, split in read.items():
            if not all_match(split.spaces, trained_on[:1]):
                raise ValueError(f"Expected networks of {trained_on[0]!r} for {task.name} (got {split!r} as {where}).")
        module = task.wrap(module, splits["train"].space, config)
    return TrainedModel(task, module, config, trained_on)


def _finished(task: Prediction, claim: RunFolder) -> Result:
    """The result of a run, as it was saved."""
    file = claim.folder / "result.json"
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        metrics, machine, call = none_as_nan(stored["metrics"]), stored["machine"], stored.get("call") or {}
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{str(file)!r} is damaged ({type(error).__name__}: {error}). Give overwrite=True (--overwrite) to train again."
        ) from None
    if not (claim.folder / "model").exists():
        raise FileNotFoundError(
            f"The run in {str(claim.folder)!r} has finished, but the model is missing. Give overwrite=True (--overwrite) to train again."
        )
    module = TrainedModel.load(claim.folder).module
    return Result(task.name, metrics, module, claim.config, claim.folder, machine, call)


def _say(progress: bool, text: str) -> None:
    if progress and is_first_process():
        Console(stderr=True).print(text, highlight=False, markup=False, soft_wrap=True)


def _name(store: ZooFolder) -> str:
    return Path(store.path).resolve().name


def _digest(tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{len(tensor)} ".encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def _named(value: Any) -> str:
    return _ADDRESS.sub("", repr(value))


def _of_others(transform: WeightTransform) -> str | None:
    """What the text of a transform does not say of transforms of others within: a digest of their code and of all they hold."""
    digest = hashlib.sha256()

    def found(value: Any) -> bool:
        if isinstance(value, (list, tuple)):
            return max(map(found, value), default=False)  # every one counts
        if not isinstance(value, WeightTransform):
            return False
        theirs = source_of(type(value))
        if theirs is None:
            return max(map(found, vars(value).values()), default=False)
        try:
            content = pickle.dumps(vars(value))
        except Exception:  # whatever an object's own way of being pickled raises
            content = uuid.uuid4().bytes  # like no other
        digest.update(theirs.encode() + content)
        return True

    return digest.hexdigest()[:16] if found(transform) else None


def _call() -> dict[str, Any]:
    """What :func:`wsgraph.tasks.run` was called with, as JSON can hold it; under ``unwritten`` what it cannot, as text."""
    called = CALL.get()
    if called is None:
        return {}
    task, options = called
    written, unwritten = {}, {}
    for name, value in options.items():
        if name in _WHERE_AND_HOW or value is None or (isinstance(value, (Mapping, Collection)) and not value):
            continue
        plain = _plain(value)
        try:
            json.dumps(plain, allow_nan=False)
            written[name] = plain
        except (TypeError, ValueError):
            unwritten[name] = _named(value)
    return {"task": task, "options": written, "unwritten": unwritten, "plugins": named_plugins()}


# Options that the result does not depend on.
_WHERE_AND_HOW = ("output", "progress", "resume", "overwrite", "accelerator", "devices")


def _plain(value: Any) -> Any:
    if isinstance(value, ZooStore):
        return str(value.path)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return {name: _plain(each) for name, each in value.items()} if isinstance(value, Mapping) else value


def _spread(of: ParameterStatistics) -> float:
    """The standard deviation of a parameter; 0 if it is what rounding makes of a constant. Digits that threads differ in are left out."""
    return float(f"{of.std:.6g}") if of.std > 1e-9 * max(abs(of.minimum), abs(of.maximum)) else 0.0


def _is_plain(value: Any) -> bool:
    return isinstance(value, (str, int, float, bool, list, tuple))
