"""Training tasks that read networks: from the zoo to the scores."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from wsgraph.data import DataLoader, ParameterStatistics, ZooStore
from wsgraph.data.transforms import Canonicalize, WeightTransform
from wsgraph.measure import peak_memory
from wsgraph.nn import build_model, model_entry
from wsgraph.scores import none_as_nan
from wsgraph.tasks.prediction import Prediction, TrainedModel, check_scored, composed, distinct_spaces, float32, opened, preparation
from wsgraph.tasks.result import Result
from wsgraph.tasks.training import Objective, fit, is_first_process, load_best, prepare_folder, start_run, targets_of

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
        output: Folder for checkpoints and logs (default: ``runs/TASK/ZOO-MODEL-seedSEED``).
        progress: Whether to show progress.
        resume: Continue an interrupted run from its last checkpoint.
        accelerator: As in Lightning: ``"auto"``, ``"cpu"`` or ``"gpu"``.
        devices: Processes that train together on this machine (data-parallel), each with its share of every batch; under ``torchrun`` its
            own number counts.
        model_options: Options of the model, such as ``{"channels": 32}``.
        select: Conditions on columns of the table that networks of all splits must meet; see :meth:`wsgraph.data.ZooDataset.select`.
        canonicalize: Which of ``"scale"``, ``"phase"``, ``"sign"`` and ``"order"`` to settle in all networks before they are read, after
            test networks were moved.
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
            not use, whose values mean nothing, scores are NaN and a warning names the parameters.
        record: What else the run depends on, for its ``config``.

    Returns:
        A :class:`~wsgraph.tasks.Result` whose metrics are the task's scores on test networks, each also with the suffix ``_scale_S`` on
        moved ones and ``_on_NAME`` on those of further zoos, ``parameters``, ``seconds_per_epoch``, ``peak_memory_mb`` (tensors of one
        training step), ``best_epoch`` and ``validation_loss``.

    Raises:
        ValueError: If the model is unknown, an option is out of range, the zoo lacks a split or the target, targets make no sense for the
            task, training diverges, or ``resume`` meets a run of another configuration.
        OSError: If the output folder cannot be written.
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
    for name, split in further.items() if deviations else ():
        if any([param.name for param in space.params] != list(deviations or ()) for space in split.spaces):
            raise ValueError(
                f"'standardize' divides by what was found for {splits['train'].space!r}, not for 'test_zoos' {name!r}: {split!r}."
            )
    folder = prepare_folder(output or Path("runs", task.name, f"{Path(store.path).name}-{model}-seed{seed}"))

    config = {
        "model": model,
        "zoo": Path(store.path).name,
        "epochs": epochs,
        "seed": seed,
        "scales": bounds,
        "target": target,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "model_options": model_options or {},
        "networks": {name: len(split) for name, split in splits.items()},
        "select": None if select is None else {name: value if _is_plain(value) else repr(value) for name, value in select.items()},
        "canonicalize": list(canonicalize),
        "standardize": deviations,
        "augment": None if augment is None else repr(augment),
        "augment_validation": augment_validation,
        "test": test,
        "test_zoos": {name: f"{Path(split.store.path).name} {split.store.digest}" for name, split in further.items()},
        **(record or {}),
    }
    start_run(folder, config, resume=resume)

    fixed = preparation(task, config)
    changed = composed(augment, fixed)
    # Those trained on come first.
    spaces = distinct_spaces([splits["train"], *further.values()])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        kind = {} if task.wrap is None else {"task": "equivariant"}
        module = build_model(model, spaces[0] if len(spaces) == 1 else spaces, width, **kind, **(model_options or {}))
        if task.wrap is not None:
            module = task.wrap(module, splits["train"].space, config)
        trained = TrainedModel(task, module, config, distinct_spaces([splits["train"]]))
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
        if resume and (folder / "result.json").exists():
            load_best(objective, folder)
            stored = json.loads((folder / "result.json").read_text())
            if is_first_process() and not (folder / "model" / "config.json").exists():
                trained.save(folder / "model")
            return Result(task.name, none_as_nan(stored["metrics"]), module.eval(), config, folder, stored["machine"])
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
            resume=resume,
            accelerator=accelerator,
            devices=devices,
        )
    module.to(device).eval()
    metrics: dict[str, float] = {}
    if test:
        metrics |= trained.evaluate(splits["test"], scales=bounds)
        for name, split in further.items():
            metrics |= {f"{score}_on_{name}": value for score, value in trained.evaluate(split).items()}
    trained.metrics = dict(metrics)
    metrics["parameters"] = float(sum(parameter.numel() for parameter in module.parameters()))
    metrics |= {"peak_memory_mb": bytes_used / 2**20, **costs}
    result = Result(task.name, metrics, module, config, folder)
    if is_first_process():
        trained.save(folder / "model")
        result.save(folder / "result.json")  # last: where it is, the run is finished
    return result


def _spread(of: ParameterStatistics) -> float:
    """The standard deviation of a parameter; 0 if it is what rounding makes of a constant. Digits that threads differ in are left out."""
    return float(f"{of.std:.6g}") if of.std > 1e-9 * max(abs(of.minimum), abs(of.maximum)) else 0.0


def _is_plain(value: Any) -> bool:
    return isinstance(value, (str, int, float, bool, list, tuple))
