"""Predicting generalization: a network's test accuracy from its weights alone."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from scipy.stats import kendalltau
from sklearn.metrics import r2_score
from torch import Tensor, nn

from wsgraph.data import DataLoader, ZooStore
from wsgraph.data.transforms import RandomSymmetry
from wsgraph.measure import peak_memory
from wsgraph.nn import build_model, model_entry
from wsgraph.space import ParameterGraph, WeightSpace
from wsgraph.tasks.registry import register_task
from wsgraph.tasks.result import Result
from wsgraph.tasks.training import Objective, fit, is_first_process, load_best, prepare_folder, start_run

__all__ = ["kendall_tau", "predict", "run_generalization"]


def _float32(thetas: Tensor) -> Tensor:
    return thetas.float()  # models train in single precision, whatever the zoo stores


def _accuracy(outputs: Tensor) -> Tensor:
    return outputs[:, 0].sigmoid()


def _loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.mse_loss(_accuracy(outputs), targets.to(outputs.dtype))


def kendall_tau(predictions: Tensor, targets: Tensor) -> float:
    """Kendall's rank correlation (tau-b) of predicted and true values, NaN where either is constant.

    Example:
        >>> import torch
        >>> kendall_tau(torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.0, 0.5, 0.9]))
        1.0
    """
    return float(kendalltau(targets.double().cpu().numpy(), predictions.double().cpu().numpy()).statistic)


def _score(outputs: Tensor, targets: Tensor) -> float:
    tau = kendall_tau(outputs[:, 0], targets)
    return tau if tau == tau else 0.0  # constant predictions rank nothing


@torch.no_grad()
def _outputs(model: nn.Module, batches: Iterable[ParameterGraph]) -> Tensor:
    device = next(model.parameters()).device
    model.eval()
    return torch.cat([model(batch.to(device)).cpu() for batch in batches])


def predict(model: nn.Module, space: WeightSpace, thetas: Tensor, *, batch_size: int = 256) -> Tensor:
    """Predicted accuracies of networks.

    Args:
        model: Trained model with one output.
        space: Weight space of the networks.
        thetas: Flat checkpoints ``[N, P]``.
        batch_size: Networks per forward pass.

    Returns:
        Tensor of shape ``[N]`` with values in (0, 1), on the CPU.
    """
    return _accuracy(_outputs(model, (space.batch(_float32(part)) for part in thetas.split(batch_size))))


@register_task("generalization")
def run_generalization(
    *,
    zoo: ZooStore | str | os.PathLike[str],
    model: str = "monomial_gnn",
    epochs: int = 30,
    seed: int = 0,
    scales: Sequence[float] = (1, 10, 100, 10000),
    target: str = "test_accuracy",
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    weight_decay: float = 1e-2,
    output: str | os.PathLike[str] | None = None,
    progress: bool = True,
    resume: bool = False,
    accelerator: str = "auto",
    devices: int = 1,
    model_options: dict[str, Any] | None = None,
) -> Result:
    r"""Train a model to predict test accuracies from weights, and score it on clean and on moved test networks.

    The model's output goes through a sigmoid and is fitted by mean squared error. The epoch with the lowest validation loss is tested once.
    For every upper bound :math:`s` in ``scales`` each test network is moved by one random element of its own symmetry group: neurons
    permuted, scaled by :math:`U[1, s]` where positive scales are allowed, their signs flipped with probability 1/2 where signs are.

    Args:
        zoo: Zoo of networks or its path, with splits ``train``, ``val`` and ``test``.
        model: One of :func:`wsgraph.nn.list_models`.
        epochs: Passes over the training split.
        seed: Seed of initialisation, batches, dropout and group elements.
        scales: Upper bounds of the scales for moved test networks.
        target: Column of the zoo's table to predict, with values in [0, 1].
        batch_size: Networks per step.
        learning_rate: Largest learning rate of the one-cycle schedule.
        weight_decay: Weight decay of AdamW.
        output: Folder for checkpoints and logs (default: ``runs/generalization/ZOO-MODEL-seedSEED``).
        progress: Whether to show progress.
        resume: Continue an interrupted run from its last checkpoint.
        accelerator: As in Lightning: ``"auto"``, ``"cpu"`` or ``"gpu"``.
        devices: Processes that train together on this machine (data-parallel), each with its share of every batch; under ``torchrun`` its
            own number counts.
        model_options: Options of the model, such as ``{"channels": 32}``.

    Returns:
        A :class:`~wsgraph.tasks.Result` whose metrics are ``tau`` and ``r2`` on clean test networks, ``tau_scale_S`` and ``r2_scale_S`` on
        moved ones, ``parameters``, ``seconds_per_epoch``, ``peak_memory_mb`` (tensors of one training step) and ``best_epoch``.

    Raises:
        ValueError: If the model is unknown, an option is out of range, the zoo lacks a split or the target, the target leaves [0, 1],
            training diverges, or ``resume`` meets a run of another configuration.
        OSError: If the output folder cannot be written.
    """
    store = zoo if isinstance(zoo, ZooStore) else ZooStore(zoo)
    model_entry(model)
    if not isinstance(epochs, int) or epochs < 1:
        raise ValueError(f"Expected 'epochs' to be an integer of at least 1 (got {epochs!r}).")
    if not isinstance(devices, int) or devices < 1:
        raise ValueError(f"Expected 'devices' to be an integer of at least 1 (got {devices!r}).")
    scales = [float(scale) for scale in (scales if isinstance(scales, Sequence) else [scales])]
    if bad := [scale for scale in scales if not 1 <= scale < float("inf")]:
        raise ValueError(f"Expected 'scales', upper bounds of U[1, s], to be finite and at least 1 (got {bad[0]:g}).")
    splits = {name: store.dataset(name, target=target) for name in ("train", "val", "test")}
    for name, split in splits.items():
        if len(split) < 2:
            raise ValueError(f"Expected at least 2 networks in the split {name!r} of {store!r} (got {len(split)}).")
        if not ((split.y >= 0) & (split.y <= 1)).all():
            raise ValueError(f"Expected the column {target!r} to hold values between 0 and 1, without NaN, in the split {name!r}.")
    folder = prepare_folder(output or Path("runs", "generalization", f"{Path(store.path).name}-{model}-seed{seed}"))

    config = {
        "model": model,
        "zoo": Path(store.path).name,
        "epochs": epochs,
        "seed": seed,
        "scales": scales,
        "target": target,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "model_options": model_options or {},
        "networks": {name: len(split) for name, split in splits.items()},
    }
    start_run(folder, config, resume=resume)

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = build_model(model, store.space, 1, **(model_options or {}))
        objective = Objective(module, _loss, _score, "tau", learning_rate=learning_rate, weight_decay=weight_decay, seed=seed)
        if resume and (folder / "result.json").exists():
            load_best(objective, folder)
            stored = json.loads((folder / "result.json").read_text())
            metrics = {name: float("nan") if value is None else value for name, value in stored["metrics"].items()}
            return Result("generalization", metrics, module.eval(), config, folder, stored["machine"])
        train = DataLoader(splits["train"], batch_size, shuffle=True, generator=torch.Generator().manual_seed(seed), transform=_float32)
        device = torch.device("cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu")
        module.to(device)
        first = splits["train"].batch(list(range(min(batch_size, len(splits["train"])))), _float32).to(device)
        bytes_used = peak_memory(lambda: _loss(module(first), first.y).backward())
        module.zero_grad(set_to_none=True)
        torch.manual_seed(seed)
        costs = fit(
            objective,
            train,
            DataLoader(splits["val"], 4 * batch_size, transform=_float32),
            folder,
            epochs=epochs,
            title=model,
            progress=progress,
            resume=resume,
            accelerator=accelerator,
            devices=devices,
        )
    module.to(device).eval()
    test, metrics = splits["test"], {}
    moves = {f"_scale_{scale:g}": RandomSymmetry((1.0, scale), distribution="uniform", seed=seed) for scale in scales}
    for suffix, move in {"": None, **moves}.items():
        moved = test.with_transform(move)
        # Batch by batch, so that a test split larger than memory can be scored; not by a loader, which would give each process a share.
        outputs = _outputs(module, (moved.batch(slice(start, start + 256), _float32) for start in range(0, len(test), 256)))
        # Ranks are those of the predicted accuracies, taken before the sigmoid, which rounds far outputs to ties.
        metrics[f"tau{suffix}"] = kendall_tau(outputs[:, 0], test.y)
        metrics[f"r2{suffix}"] = float(r2_score(test.y.numpy(), _accuracy(outputs).numpy()))
    metrics["parameters"] = float(sum(parameter.numel() for parameter in module.parameters()))
    metrics |= {"peak_memory_mb": bytes_used / 2**20, **costs}
    result = Result("generalization", metrics, module, config, folder)
    if is_first_process():
        result.save(folder / "result.json")
    return result
