"""Tasks that read networks and are trained by examples: what they share, from the zoo to the scores."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wsgraph.data import DataLoader, ZooDataset, ZooStore
from wsgraph.data.transforms import Canonicalize, Compose, RandomSymmetry, WeightTransform
from wsgraph.measure import peak_memory
from wsgraph.nn import build_model, model_entry
from wsgraph.space import ParameterGraph, WeightSpace
from wsgraph.tasks.result import Result
from wsgraph.tasks.training import Objective, fit, is_first_process, load_best, prepare_folder, start_run, targets_of

__all__ = ["Prediction", "all_match", "distinct_spaces", "model_outputs", "run_prediction"]

_SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Prediction:
    """What tasks that are trained by examples differ in.

    Args:
        name: Name of the task.
        target: Column of the zoo's table to predict, unless another is named; ``None`` where targets are made from the networks.
        score_name: What models are chosen by on the validation split, beside the loss.
        loss: Of outputs and targets.
        score: Of outputs and targets.
        scores: All scores of outputs and targets, by name.
        width: Number of outputs of the model, from the datasets of all splits; raises ``ValueError`` where targets make no sense.
        wrap: Of tasks whose models return weights, what makes predictions of them, from the model and the weight space.
    """

    name: str
    target: str | None
    score_name: str
    loss: Callable[[Tensor, Tensor], Tensor]
    score: Callable[[Tensor, Tensor], float]
    scores: Callable[[Tensor, Tensor], dict[str, float]]
    width: Callable[[Mapping[str, ZooDataset]], int]
    wrap: Callable[[nn.Module, WeightSpace], nn.Module] | None = None


def _float32(thetas: Tensor) -> Tensor:
    return thetas.float()  # models train in single precision, whatever the zoo stores


@torch.no_grad()
def model_outputs(model: nn.Module, batches: Iterable[ParameterGraph]) -> tuple[Tensor, Tensor]:
    """Outputs ``[N, ...]`` of a model for all networks of some batches, and their targets ``[N]``, on the CPU; NaN where there are none."""
    device = next(model.parameters()).device
    model.eval()
    pairs = [(model(batch.to(device)).cpu(), targets_of(batch).cpu()) for batch in batches]
    outputs, targets = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    return outputs, targets


def _checked(scales: Sequence[float] | float, epochs: int, devices: int) -> list[float]:
    for name, value in (("epochs", epochs), ("devices", devices)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"Expected '{name}' to be an integer of at least 1 (got {value!r}).")
    bounds = [float(scale) for scale in (scales if isinstance(scales, Sequence) else [scales])]
    if bad := [scale for scale in bounds if not 1 <= scale < float("inf")]:
        raise ValueError(f"Expected 'scales', upper bounds of U[1, s], to be finite and at least 1 (got {bad[0]:g}).")
    return bounds


def _opened(zoo: ZooStore | str | os.PathLike[str]) -> ZooStore:
    return zoo if isinstance(zoo, ZooStore) else ZooStore(zoo)


def _composed(*transforms: WeightTransform | None) -> WeightTransform | None:
    given = [transform for transform in transforms if transform is not None]
    return given[0] if len(given) == 1 else Compose(given) if given else None


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
    store = _opened(zoo)
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
    further = {name: _opened(other).dataset("test", target=target) for name, other in (test_zoos or {}).items()}
    for name, split in further.items():
        if len(split) < 2:
            raise ValueError(f"Expected at least 2 networks in the test split of 'test_zoos' {name!r}, {split.store!r} (got {len(split)}).")
        if (found := task.width({"test": split})) > width:
            raise ValueError(f"Expected 'test_zoos' of at most {width} classes, as {store!r} (got {found} in {name!r}).")
        if task.wrap is not None and not all_match(split.spaces, [splits["train"].space]):
            raise ValueError(f"Expected 'test_zoos' of networks of {splits['train'].space!r} for {task.name} (got {split!r} in {name!r}).")
    fixed = Canonicalize(canonicalize) if canonicalize else None
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
        "augment": None if augment is None else repr(augment),
        "augment_validation": augment_validation,
        "test": test,
        "test_zoos": {name: f"{Path(split.store.path).name} {split.store.digest}" for name, split in further.items()},
        **(record or {}),
    }
    start_run(folder, config, resume=resume)

    changed = _composed(augment, fixed)
    # Those trained on come first.
    spaces = distinct_spaces([splits["train"], *further.values()])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        kind = {} if task.wrap is None else {"task": "equivariant"}
        module = build_model(model, spaces[0] if len(spaces) == 1 else spaces, width, **kind, **(model_options or {}))
        if task.wrap is not None:
            module = task.wrap(module, splits["train"].space)
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
            known = {name: float("nan") if value is None else value for name, value in stored["metrics"].items()}
            return Result(task.name, known, module.eval(), config, folder, stored["machine"])
        order = torch.Generator().manual_seed(seed)
        train = DataLoader(splits["train"].with_transform(changed), batch_size, shuffle=True, generator=order, transform=_float32)
        device = torch.device("cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu")
        module.to(device)
        first = splits["train"].batch(slice(0, batch_size), _float32).to(device)
        bytes_used = peak_memory(lambda: task.loss(module(first), targets_of(first)).backward())
        module.zero_grad(set_to_none=True)
        torch.manual_seed(seed)
        costs = fit(
            objective,
            train,
            DataLoader(splits["val"].with_transform(changed if augment_validation else fixed), 4 * batch_size, transform=_float32),
            folder,
            epochs=epochs,
            title=model,
            progress=progress,
            resume=resume,
            accelerator=accelerator,
            devices=devices,
        )
    module.to(device).eval()
    moves = {f"_scale_{scale:g}": RandomSymmetry((1.0, scale), distribution="uniform", seed=seed) for scale in bounds}
    scored = {suffix: splits["test"].with_transform(_composed(move, fixed)) for suffix, move in {"": None, **moves}.items()}
    scored |= {f"_on_{name}": split.with_transform(fixed) for name, split in further.items()}
    metrics: dict[str, float] = {}
    untrained = {f"_on_{name}": _untrained(task, module, splits["train"], split, fixed) for name, split in further.items() if test}
    for suffix, split in scored.items() if test else ():
        # Batch by batch, so that a test split larger than memory can be scored; not by a loader, which would give each process a share.
        batches = (split.batch(slice(start, start + 256), _float32) for start in range(0, len(split), 256))
        outputs, targets = model_outputs(module, batches)
        unknown = untrained.get(suffix, [])
        if unknown:
            listed = ", ".join(unknown[:3]) + (", ..." if len(unknown) > 3 else "")
            warnings.warn(
                f"The networks of 'test_zoos' {suffix.removeprefix('_on_')!r} pass through parameters of {model} that those trained on do "
                f"not use ({listed}): they are not scored.",
                stacklevel=2,
            )
        scores = task.scores(outputs, targets)
        metrics |= {f"{name}{suffix}": math.nan if unknown else value for name, value in scores.items()}
    metrics["parameters"] = float(sum(parameter.numel() for parameter in module.parameters()))
    metrics |= {"peak_memory_mb": bytes_used / 2**20, **costs}
    result = Result(task.name, metrics, module, config, folder)
    if is_first_process():
        result.save(folder / "result.json")
    return result


def all_match(spaces: Sequence[WeightSpace], known: Sequence[WeightSpace]) -> bool:
    """Whether all spaces have an architecture among the known ones."""
    return all(any(space.matches(each) for each in known) for space in spaces)


def distinct_spaces(datasets: Sequence[ZooDataset]) -> list[WeightSpace]:
    """The distinct weight spaces of several datasets, in their order."""
    return list({space.digest: space for dataset in datasets for space in dataset.spaces}.values())


def _untrained(task: Prediction, module: nn.Module, trained: ZooDataset, other: ZooDataset, fixed: WeightTransform | None) -> list[str]:
    """Names of parameters that act on other networks but not on those trained on."""
    if all_match(other.spaces, trained.spaces):
        return []
    device = next(module.parameters()).device
    acting = []
    for dataset in (trained, other):
        module.zero_grad(set_to_none=True)
        batch = dataset.with_transform(fixed).batch(torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[:64], _float32)
        module(batch.to(device)).square().sum().backward()
        acting.append({name for name, parameter in module.named_parameters() if parameter.grad is not None and bool(parameter.grad.any())})
    module.zero_grad(set_to_none=True)
    return sorted(acting[1] - acting[0])


def _is_plain(value: Any) -> bool:
    return isinstance(value, (str, int, float, bool, list, tuple))
