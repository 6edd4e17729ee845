"""The training loop shared by tasks: Lightning, with progress, checkpoints, CSV logs and seeds that act."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import logging
import math
import os
import signal
import statistics
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch import loggers as lightning_loggers
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from wsgraph._suggestions import did_you_mean
from wsgraph.data.transforms import WeightTransform
from wsgraph.options import TrainingOptions
from wsgraph.space import ParameterGraph
from wsgraph.tasks.runs import RunFolder, is_first_process
from wsgraph.tasks.task import Task, targets_of

__all__ = ["DivergedError", "Objective", "check_training", "fit", "load_best"]


class DivergedError(ValueError):
    """A loss stopped being finite."""


def _single_precision(outputs: Tensor) -> Tensor:
    """Outputs that mixed precision made half, in which a loss would lose digits."""
    return outputs.float() if outputs.dtype in (torch.float16, torch.bfloat16) else outputs


class Objective(L.LightningModule):
    """A model with its loss, validation score and optimisation recipe: AdamW with a one-cycle learning rate.

    Args:
        model: Called with a batch of parameter graphs.
        task: Whose loss is minimised, and whose first score of the whole validation split is logged.
        training: Learning rate, weight decay, schedule and seed.
        transform: That of the training networks, if any, and perhaps of the validation networks.
    """

    def __init__(self, model: nn.Module, task: Task, training: TrainingOptions, transform: WeightTransform | None = None) -> None:
        super().__init__()
        self.model, self.task, self.training_options = model, task, training
        self.score_name = task.metrics[0].name
        self.seed, self.order = training.seed, torch.Generator()
        self.transform = transform
        self.outputs: list[tuple[Tensor, Tensor]] = []

    def on_train_epoch_start(self) -> None:
        """Order, dropout and noise depend on seed and epoch alone, so that a resumed run repeats what was interrupted."""
        seed = self.seed * 1_000_003 + self.current_epoch
        torch.manual_seed(seed)
        self.order.manual_seed(seed)
        if self.transform is not None:
            self.transform.reseed(seed)

    def training_step(self, batch: ParameterGraph, _: int) -> Tensor:
        """Loss of one batch."""
        loss = self.task.loss(_single_precision(self.model(batch)), targets_of(batch))
        if not torch.isfinite(loss):
            raise DivergedError(f"Training diverged in epoch {self.current_epoch + 1}: the loss is not finite. Lower 'learning_rate'.")
        total = batch.num_networks
        if self.trainer.world_size > 1:
            # Gradients are averaged over processes: weighting by what each holds makes that the mean over the networks of all.
            counted = torch.tensor(float(batch.num_counted), device=loss.device)
            every = counted.clone()
            torch.distributed.all_reduce(every)
            loss, total = loss * counted * self.trainer.world_size / every, int(every)
        self.log("train_loss", loss.detach(), on_step=False, on_epoch=True, batch_size=total, sync_dist=self.trainer.world_size > 1)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Where validation networks are transformed too, all epochs are compared on the same ones."""
        if self.transform is not None:
            self.transform.reseed(self.seed)

    def validation_step(self, batch: ParameterGraph, _: int) -> None:
        """Collects outputs: rank scores need the whole split at once."""
        counted = batch.num_counted if self.trainer.world_size > 1 else batch.num_networks
        self.outputs.append((_single_precision(self.model(batch))[:counted], targets_of(batch)[:counted]))

    def on_validation_epoch_end(self) -> None:
        """Logs loss and score of the validation split."""
        outputs, targets = (torch.cat(parts) for parts in zip(*self.outputs, strict=True))
        self.outputs.clear()
        if self.trainer.world_size > 1:
            held: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(held, (outputs.cpu(), targets.cpu()))
            outputs, targets = (torch.cat(parts).to(outputs.device) for parts in zip(*held, strict=True))
        self.log("val_loss", self.task.loss(outputs, targets), batch_size=len(targets))
        self.log(f"val_{self.score_name}", self.task.followed(outputs, targets), batch_size=len(targets))

    def configure_optimizers(self) -> Any:
        """AdamW and a schedule over the whole run."""
        options = self.training_options
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)
        steps = int(self.trainer.estimated_stepping_batches)
        make = options.schedule if callable(options.schedule) else _SCHEDULES[options.schedule]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": make(optimizer, steps), "interval": "step"}}


class _OneCycle(torch.optim.lr_scheduler.OneCycleLR):
    """One cycle over the whole run; a run that is continued with more epochs goes on where the longer cycle is by then."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        own = {name: vars(self)[name] for name in ("total_steps", "_schedule_phases")}
        super().load_state_dict({**state_dict, **own})
        if state_dict["total_steps"] != self.total_steps:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*use `get_last_lr")  # which is that of the shorter cycle
                self._last_lr = self.get_lr()
            for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
                group["lr"] = rate


_SCHEDULES: dict[str, Callable[[torch.optim.Optimizer, int], Any]] = {
    "one_cycle": lambda optimizer, steps: _OneCycle(optimizer, optimizer.defaults["lr"], total_steps=steps),
    "constant": lambda optimizer, steps: torch.optim.lr_scheduler.LambdaLR(optimizer, _constant),
    "cosine": lambda optimizer, steps: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps),
}


def _constant(step: int) -> float:
    return 1.0


def _tensorboard(folder: Path) -> Any:
    return lightning_loggers.TensorBoardLogger(folder, name="", version="tensorboard")


_LOGGERS: dict[str, Callable[[Path], Any]] = {
    "csv": lambda folder: None,  # which there is anyway
    "tensorboard": _tensorboard,
    "wandb": lambda folder: lightning_loggers.WandbLogger(save_dir=folder),
    "mlflow": lambda folder: lightning_loggers.MLFlowLogger(tracking_uri=(folder / "mlruns").resolve().as_uri()),
}


def _loggers(wanted: Any, folder: Path) -> list[Any]:
    """``metrics.csv`` and the loggers that were asked for, by name or as objects of Lightning."""
    made: list[Any] = [lightning_loggers.CSVLogger(folder, name=None, version="")]
    for each in _listed(wanted):
        if not isinstance(each, str):
            made.append(each)
            continue
        try:
            found = _LOGGERS[each](folder)
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"Logging to {each} needs a package: pip install 'wsgraph[{each}]' ({error})") from None
        made += [] if found is None else [found]
    return made


def _listed(wanted: Any) -> Sequence[Any]:
    return wanted if isinstance(wanted, (list, tuple)) else [] if wanted is None else [wanted]


def check_training(training: TrainingOptions) -> None:
    """Refuse options that would only be found wrong when training starts.

    Args:
        training: The options.

    Raises:
        ValueError: If a schedule, a logger or an option of Lightning's trainer is unknown.
    """
    if not callable(training.schedule) and training.schedule not in _SCHEDULES:
        meant = did_you_mean(str(training.schedule), _SCHEDULES)
        raise ValueError(f"Expected 'schedule' to be one of {', '.join(_SCHEDULES)} or a function (got {training.schedule!r}).{meant}")
    for each in _listed(training.logger):
        if isinstance(each, str) and each not in _LOGGERS:
            meant = did_you_mean(each, _LOGGERS)
            raise ValueError(f"Expected 'logger' to be one of {', '.join(_LOGGERS)} or a logger of Lightning (got {each!r}).{meant}")
    # But for those that runs have by other names.
    given = training.trainer_options
    names = {"max_epochs": "epochs", **dict.fromkeys(("callbacks", "logger", "accelerator", "devices"))}
    known = [name for name in inspect.signature(L.Trainer).parameters if name not in names]
    for name in given or ():
        if name in names:
            raise ValueError(f"Give {names[name] or name!r} rather than {name!r} among 'trainer_options'.")
        if name not in known:
            meant = did_you_mean(name, known) or f" It has {', '.join(known)}."
            raise ValueError(f"Lightning's Trainer has no option {name!r}.{meant}")
    # Objects among the values belong to one trainer.
    plain = {name: value for name, value in (given or {}).items() if isinstance(value, str | int | float | None)}
    if error := _refused(training, plain):
        alone = {name: refused for name in plain if (refused := _refused(training, {name: plain[name]}))}
        (which, error), *_ = [*((f"{name}={plain[name]}", refused) for name, refused in alone.items()), ("all of them together", error)]
        raise ValueError(f"Lightning's Trainer does not take {which} among 'trainer_options' (--trainer-option): {error}")


def _refused(training: TrainingOptions, options: Mapping[str, Any]) -> str:
    """What Lightning says against options of its trainer; nothing where it takes them."""
    if not options:
        return ""
    own = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    with _quiet_lightning(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # which training says again
        try:
            trainer = L.Trainer(accelerator=training.accelerator, devices=1, max_epochs=training.epochs, **{**own, **options})
        except Exception as error:  # of the kinds that Lightning and its plugins raise
            return str(error)
    if str(trainer.precision).endswith("-true") and trainer.precision != "32-true":
        return "zoos and models are float32, so the precision may be 32-true, or 16-mixed or bf16-mixed for less memory."
    return ""


class _BestAndLast(ModelCheckpoint):
    """Checkpoints of the best and the last epoch, which are found where the folder of the run was moved or copied to."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def here(path: str) -> str:
            return str(Path(str(self.dirpath), Path(path).name)) if path else path

        moved = {name: here(state_dict[name]) for name in ("best_model_path", "kth_best_model_path", "last_model_path")}
        kept = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **moved, "best_k_models": kept, "dirpath": self.dirpath})


class _EpochProgress(Callback):
    """One bar per run on a terminal, a line now and then elsewhere; also times the epochs."""

    def __init__(self, title: str, score_name: str, show: bool) -> None:
        self.title, self.score_name = title, score_name
        console = Console(stderr=True, quiet=not show)
        self.console = console
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("epochs {task.fields[score]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not (show and console.is_terminal),
        )
        self.seconds: list[float] = []
        self.started = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.task = self.bar.add_task(self.title, total=trainer.max_epochs, completed=trainer.current_epoch, score="")
        self.bar.start()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.started = time.perf_counter()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Validation runs inside the training epoch; the time of an epoch is that of its training steps.
        if self.started:
            self.seconds.append(time.perf_counter() - self.started)
            self.started = 0.0

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        score = f"{self.score_name} {float(trainer.callback_metrics[f'val_{self.score_name}']):.3f}"
        done, total = trainer.current_epoch + 1, trainer.max_epochs or 1
        self.bar.update(self.task, completed=done, score=f"{score}, {self.seconds[-1]:.1f} s/epoch")
        if self.bar.disable and (done == total or done % max(1, total // 5) == 0):
            self.console.print(f"{self.title}: epoch {done}/{total}, validation {score}, {self.seconds[-1]:.2f} s/epoch", highlight=False)

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds = list(state_dict["seconds"])

    def stop(self) -> None:
        """Leave the terminal as it was, also after an error."""
        self.bar.stop()


@contextlib.contextmanager
def _quiet_lightning() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # Batches are built from one tensor by one vectorised call: worker processes would only add copies.
            warnings.filterwarnings("ignore", ".*does not have many workers.*")
            warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists and is not empty.*")
            warnings.filterwarnings("ignore", ".*The number of training batches .* is smaller than the logging interval.*")
            warnings.filterwarnings("ignore", ".*isinstance\\(treespec, LeafSpec\\).*")
            # Scores of the whole validation split are computed by every process, from the outputs of all.
            warnings.filterwarnings("ignore", ".*sync_dist=True.*")
            warnings.filterwarnings("ignore", ".*Experiment logs directory .* exists.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _kept_handler() -> Iterator[None]:
    """Lightning makes a process that was interrupted once ignore it for ever."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)


def _kept(folder: Path) -> str:
    return f"Finished epochs are kept in {str(folder)!r}: repeat what started the run to continue it."


def _keep_log(folder: Path) -> None:
    """Rename the log of an earlier attempt, which the logger would delete, to ``metrics.1.csv``, ``metrics.2.csv``, ..."""
    log = folder / "metrics.csv"
    if log.exists():
        log.rename(next(path for i in itertools.count(1) if not (path := folder / f"metrics.{i}.csv").exists()))


def load_best(objective: Objective, folder: Path) -> float:
    """Load the weights with the lowest validation loss and return their epoch, the first of which is 1."""
    checkpoint = torch.load(folder / "best.ckpt", weights_only=True, map_location="cpu")
    objective.load_state_dict(checkpoint["state_dict"])
    return float(checkpoint["epoch"] + 1)


def fit(
    objective: Objective, train: Any, validation: Any, claim: RunFolder, training: TrainingOptions, *, progress: bool
) -> dict[str, float]:
    """Train, load the weights of the epoch with the lowest validation loss, and report the cost.

    Args:
        objective: What to train.
        train: Loader of training batches, with the generator of their order.
        validation: Loader of validation batches.
        claim: Where checkpoints and ``metrics.csv`` go, and whether ``last.ckpt`` lies there to continue from.
        training: Epochs, devices, callbacks, loggers and further options of Lightning.
        progress: Whether to show progress.

    Returns:
        ``seconds_per_epoch`` (median over epochs, training steps only), ``best_epoch`` (the first is 1) and its ``validation_loss``.

    Raises:
        DivergedError: If the loss stops being finite.
        KeyboardInterrupt: If training is interrupted, with what to do.
        SystemExit: If the process is asked to end by SIGTERM, with the status 143.
    """
    folder, continues = claim.folder, claim.continues
    shown = _EpochProgress(training.model, objective.score_name, progress and is_first_process())
    best = _BestAndLast(
        folder, filename="best", monitor="val_loss", save_last=True, save_on_train_epoch_end=True, enable_version_counter=False
    )
    # The loader also draws a seed for workers whenever it is iterated, which must not shift the order of networks.
    objective.order, train.generator = train.generator, torch.Generator()
    last = folder / "last.ckpt" if continues else None
    if continues and is_first_process():
        _keep_log(folder)
    # torchrun says itself how many processes there are.
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", training.devices))
    nodes = int(os.environ.get("WORLD_SIZE", processes)) // processes if "LOCAL_WORLD_SIZE" in os.environ else 1
    with _quiet_lightning():
        options: dict[str, Any] = {
            "num_nodes": nodes,
            "strategy": "ddp" if processes * nodes > 1 else "auto",
            "use_distributed_sampler": False,
            "gradient_clip_val": 10.0,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            **(training.trainer_options or {}),
        }
        stops = [] if training.patience is None else [EarlyStopping("val_loss", patience=training.patience)]
        trainer = L.Trainer(
            accelerator=training.accelerator,
            devices=processes,
            max_epochs=training.epochs,
            logger=_loggers(training.logger, folder),
            callbacks=[shown, best, *stops, *training.callbacks],
            **options,
        )
        interrupted = False
        try:
            with _kept_handler():
                trainer.fit(objective, train, validation, ckpt_path=last, weights_only=True)
            interrupted = trainer.interrupted
        except SIGTERMException:  # whose exit status would be that of success
            if is_first_process():
                Console(stderr=True).print(f"Terminated. {_kept(folder)}", highlight=False, markup=False, soft_wrap=True)
            raise SystemExit(128 + signal.SIGTERM) from None
        except SystemExit as end:  # which is how Lightning answers an interrupt
            interrupted = isinstance(end.__context__, KeyboardInterrupt)
            if not interrupted:
                raise
        finally:
            shown.stop()
    if interrupted:
        raise KeyboardInterrupt(f"Interrupted. {_kept(folder)}")
    loss = float("nan") if best.best_model_score is None else float(best.best_model_score)
    if not math.isfinite(loss):
        raise DivergedError("Training diverged: the validation loss is not finite in any epoch. Lower 'learning_rate'.")
    best_epoch = load_best(objective, folder)
    seconds = statistics.median(shown.seconds) if shown.seconds else float("nan")
    return {"seconds_per_epoch": seconds, "best_epoch": best_epoch, "validation_loss": loss}
