"""The model zoos of Schürholt et al.: checkpoints of CNNs in the folders that Ray Tune left behind."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from wsgraph.convert import CheckpointError, from_state_dict
from wsgraph.convert.checkpoint import _find_state_dict, _load_torch
from wsgraph.data.public.base import Archive, PublicZoo, integers, tracked
from wsgraph.data.store import ZooStore
from wsgraph.data.transforms import WeightTransform
from wsgraph.space import ParameterGraph, WeightSpace
from wsgraph.space.evaluate import accepts

__all__ = ["ModelZoo"]

_BLOCK_BYTES = 2**26
_METRICS = {
    "train_accuracy": "train_acc",
    "test_accuracy": "test_acc",
    "train_loss": "train_loss",
    "test_loss": "test_loss",
    "val_accuracy": "val_acc",
    "val_loss": "val_loss",
}
# What stands in the results where nothing was measured yet.
_UNKNOWN = -999
_ACTIVATIONS = {name.replace("_", ""): name for name in ("relu", "leaky_relu", "tanh", "sigmoid", "silu", "gelu")}
_CHECKPOINT = re.compile(r"checkpoint_(\d+)")
_ADVICE = "Fetch the zoo again, or delete the folder of that trial to leave it out."


class _Architecture(NamedTuple):
    """Side of the pictures that a network reads, and after which of its three convolutions it pools."""

    side: int
    pooling: tuple[bool, bool, bool]


_ARCHITECTURES = {
    "CNN": _Architecture(28, (True, True, False)),
    "CNN2": _Architecture(28, (True, True, False)),
    "CNN3": _Architecture(32, (True, True, True)),
}


class ModelZoo(PublicZoo):
    r"""The model zoos of `"Model Zoos: A Dataset of Diverse Populations of Neural Network Models" <https://arxiv.org/abs/2209.14764>`_.

    Small CNNs (Schürholt et al., NeurIPS 2022) that were trained with varied seeds or hyperparameters and kept after every epoch. CNN-s
    has 2,464 parameters for pictures of one channel and 2,864 for three, CNN-l has 10,853; both have ten classes.

    ================== ============= =============================================
    name               architectures where
    ================== ============= =============================================
    mnist              CNN-s         https://doi.org/10.5281/zenodo.6632086
    fashion_mnist      CNN-s         https://doi.org/10.5281/zenodo.6632104
    svhn               CNN-s         https://doi.org/10.5281/zenodo.6632120
    usps               CNN-s         https://doi.org/10.5281/zenodo.6633626
    cifar10            CNN-s, CNN-l  https://doi.org/10.5281/zenodo.6620868
    stl10              CNN-s, CNN-l  https://doi.org/10.5281/zenodo.6631783
    cifar10_large_seed CNN-l         one zoo of cifar10, fetched when it is needed
    cifar10_sample     CNN-l         a few epochs (SANE), fetched when it is needed
    ================== ============= =============================================

    Every page has several zoos, raw (``.zip``) and preprocessed (``.pt``). Unpack one or several of the raw ones into
    ``ROOT/NAME/raw``: every folder in there that holds a ``result.json`` is one trial. The preprocessed ones cannot be read without
    running code from the file. The data are licensed under CC BY 4.0.

    A checkpoint becomes a network with its weights alone, read without running code. The published configurations say
    ``model::use_bias=False`` and sometimes another ``model::o_dim``; both have no effect, and networks are read by their shapes. They pool
    before the activation: with an odd activation such as tanh, signs therefore are a symmetry only of layers without pooling.

    The table has the columns ``run`` (folder of the trial), ``epoch``, ``train_accuracy``, ``test_accuracy``, ``train_loss``,
    ``test_loss``, where they are known ``val_accuracy`` and ``val_loss``, ``ggap`` (training minus test accuracy), ``split``, and all
    numbers and strings of the configuration under their published names, such as ``optim::lr``. What was not measured is NaN. Networks of
    different activations have different weight spaces.

    Splits are 70 % train, 15 % val and 15 % test of the trials, all checkpoints of a trial in one. The authors shuffle trials in the order
    in which the file system lists them, which differs between machines; here they are sorted first.

    Networks with weights that are not finite are left out, and counted in ``store.info``, as are those with weights above ``max_weight``,
    checkpoints without a line in ``result.json``, and trials without any checkpoint (``dropped_non_finite``,
    ``dropped_above_max_weight``, ``dropped_without_result``, ``trials_without_checkpoints``).

    Args:
        root: Folder for all files.
        name: One of the names above.
        split: ``"train"``, ``"val"`` or ``"test"`` (default: all networks).
        target: Column that becomes ``y``; ``None`` for graphs without one.
        epochs: Epochs of the checkpoints to read: one, several, or ``None`` for all.
        max_weight: Networks with a weight of a larger absolute value are left out (default: none). The authors use 5, later 100.
        seed: Seed of the split.
        space: The weight space of all networks, of an architecture other than CNN-s and CNN-l: parameters by the keys of the checkpoints.
            For the ResNet-18 zoos, ``wsgraph.trace(module.eval(), torch.randn(1, 3, 32, 32))`` of a module with those keys.
        transform: Applied at every access; see :class:`~wsgraph.data.ZooDataset`.
        pre_transform: One of :mod:`wsgraph.data.transforms`, applied once.
        force_reload: Whether to read the published files again.

    Raises:
        CheckpointError: If a checkpoint is damaged or would run code.
        FileNotFoundError: If no trials are there, or a checkpoint has no file.
        ValueError: If an option is unknown, no network is left, a file is damaged, or an architecture is unknown.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     ModelZoo.write_fake(folder, "mnist")  # leave this out for the real data
        ...     train = ModelZoo(folder, "mnist", "train", target="ggap", epochs=[2, 3])
        ...     print(train.space)
        ...     print(train[0], train.column("epoch"))
        WeightSpace(1-8-6-4-20-10, conv 5x5 | conv 5x5 | conv 2x2 | linear | linear, tanh, 2,464 parameters)
        ParameterGraph(1-8-6-4-20-10, nodes=49, edges=360, y=[1]) [2 2 3 2 3]
    """

    names: ClassVar[Mapping[str, str]] = {
        "mnist": "CNN-s for MNIST",
        "fashion_mnist": "CNN-s for Fashion-MNIST",
        "svhn": "CNN-s for SVHN",
        "usps": "CNN-s for USPS",
        "cifar10": "CNN-s and CNN-l for CIFAR-10",
        "stl10": "CNN-s and CNN-l for STL-10",
        "cifar10_large_seed": "CNN-l for CIFAR-10 that differ in their seeds",
        "cifar10_sample": "CNN-l for CIFAR-10, a small sample",
    }
    archives: ClassVar[Mapping[str, Archive]] = {
        "cifar10_large_seed": Archive("https://zenodo.org/records/6620869/files/cifar_large_seed.zip"),
        "cifar10_sample": Archive("https://zenodo.org/records/13144018/files/cifar10_cnn_sample_ep21-25.zip"),
    }
    where: ClassVar[str] = (
        "Fetch a raw zoo (.zip) from the Zenodo pages listed at https://github.com/ModelZoos/ModelZooDataset and unpack it there."
    )

    def __init__(
        self,
        root: str | os.PathLike[str],
        name: str,
        split: str | None = None,
        *,
        target: str | None = "test_accuracy",
        epochs: int | Sequence[int] | None = None,
        max_weight: float | None = None,
        seed: int = 42,
        space: WeightSpace | None = None,
        transform: Callable[[ParameterGraph], ParameterGraph] | None = None,
        pre_transform: WeightTransform | None = None,
        force_reload: bool = False,
    ) -> None:
        if max_weight is not None and not max_weight > 0:
            raise ValueError(f"Expected 'max_weight' to be positive (got {max_weight!r}).")
        if space is not None and not isinstance(space, WeightSpace):
            raise TypeError(f"Expected 'space' to be a WeightSpace, such as wsgraph.trace returns (got {type(space).__name__}).")
        self._given_space = space
        options = {
            "epochs": integers("epochs", epochs),
            "max_weight": None if max_weight is None else float(max_weight),
            "seed": int(seed),
            "space": None if space is None else space.digest,
        }
        super().__init__(
            root,
            name,
            split,
            target=target,
            transform=transform,
            pre_transform=pre_transform,
            force_reload=force_reload,
            options=options,
        )

    def raw_file_names(self) -> list[str]:
        return [] if next(self._trials(), None) else ["folders of trials, each with a result.json,"]

    def _trials(self) -> Iterator[Path]:
        for folder, inner, files in os.walk(self.raw_dir):
            if "result.json" in files:
                inner.clear()  # thousands of checkpoints need not be listed
                yield Path(folder)

    def process(self, store: ZooStore) -> None:
        checkpoints, counts = self._checkpoints()
        # Facts come twice: first in the table, and not replaced by an entry of the configuration.
        table = _table([{**checkpoint.facts, **checkpoint.config, **checkpoint.facts} for checkpoint in checkpoints])
        spaces: dict[Any, WeightSpace] = {}
        waiting: dict[WeightSpace, list[tuple[int, Tensor]]] = {}

        def append(space: WeightSpace) -> None:
            rows, thetas = zip(*waiting.pop(space), strict=True)
            self.append(store, space, torch.stack(thetas), {name: column[list(rows)] for name, column in table.items()})

        limit = math.inf if self.options["max_weight"] is None else self.options["max_weight"]
        for row, checkpoint in enumerate(tracked(checkpoints, "reading checkpoints")):
            space, theta = self._read(checkpoint, spaces)
            if limit < theta.abs().max() < math.inf:  # others are left to the store, which counts those that are not finite
                counts["dropped_above_max_weight"] += 1
                continue
            waiting.setdefault(space, []).append((row, theta))
            if len(waiting[space]) * theta.nbytes >= _BLOCK_BYTES:
                append(space)
        for space in [*waiting]:
            append(space)
        if counts["dropped_above_max_weight"] == len(checkpoints):
            raise ValueError(f"All {len(checkpoints)} networks have weights above 'max_weight' of {limit:g}.")
        store.finish(**counts)

    def _checkpoints(self) -> tuple[list[_Checkpoint], Counter[str]]:
        """The checkpoints to read, and how many things are left out for which reason."""
        trials = sorted(self._trials(), key=self._run)
        splits = _split([self._run(trial) for trial in trials], self.options["seed"])
        wanted = self.options["epochs"]
        seen: set[int] = set()
        checkpoints = []
        counts = Counter(trials_without_checkpoints=0, dropped_without_result=0, dropped_above_max_weight=0)
        for trial in tracked(trials, "reading results"):
            folders = {int(match[1]): folder for folder in trial.iterdir() if (match := _CHECKPOINT.fullmatch(folder.name))}
            seen.update(folders)
            counts["trials_without_checkpoints"] += not folders
            epochs = sorted(epoch for epoch in folders if wanted is None or epoch in wanted)
            if not epochs:
                continue
            results = _read_results(trial / "result.json")
            config = _read_config(trial / "params.json", results)
            for epoch in epochs:
                if epoch not in results:
                    counts["dropped_without_result"] += 1
                    continue
                run = self._run(trial)
                facts = {"run": run, "epoch": epoch, **_metrics(trial, results[epoch]), "split": splits[run]}
                checkpoints.append(_Checkpoint(folders[epoch] / "checkpoints", facts, config))
        if not checkpoints:
            chosen = "" if wanted is None else f" of epoch {' or '.join(map(str, wanted))}"
            listed = ", ".join(map(str, sorted(seen))) or "none"
            raise ValueError(
                f"No checkpoint{chosen} with a result lies in {str(self.raw_dir)!r}; it has {len(trials)} trials, with checkpoints of "
                f"epochs: {listed}."
            )
        return checkpoints, counts

    def _run(self, trial: Path) -> str:
        return trial.relative_to(self.raw_dir).as_posix()

    def _read(self, checkpoint: _Checkpoint, spaces: dict[Any, WeightSpace]) -> tuple[WeightSpace, Tensor]:
        """The weight space and flat checkpoint of a network; spaces are kept, since thousands of networks share one."""
        state = _read_state(checkpoint.file)
        try:
            if self._given_space is not None:
                return self._given_space, self._given_space.flatten(state)
            state = _renamed(state)
            kind, activation = (checkpoint.config.get(name) for name in ("model::type", "model::nlin"))
            key = (kind, activation, *((name, tensor.shape) for name, tensor in state.items()))
            if key not in spaces:
                spaces[key] = _published_space(kind, activation, state)
            return spaces[key], spaces[key].flatten(state)
        except ValueError as error:
            raise ValueError(f"{str(checkpoint.file)!r} does not fit its architecture. {error}") from None

    @classmethod
    def write_fake(  # type: ignore[override]  # sizes by their names
        cls,
        root: str | os.PathLike[str],
        name: str,
        *,
        seed: int = 0,
        trials: int = 5,
        epochs: int = 4,
        architecture: str = "cnn-s",
        activations: Sequence[str] = ("tanh",),
    ) -> None:
        """Write a small twin in the published format: random weights that grow with the epochs, and accuracies that follow from them.

        Every other trial has dropout, which shifts the keys of CNN-s; the last trial has folders such as ``checkpoint_3`` in place of
        ``checkpoint_000003``, and the last checkpoint of the second one has NaN weights.

        Args:
            root: Folder to write to, to be given to the reader.
            name: One of :attr:`names`.
            seed: Seed of everything.
            trials: Number of training runs.
            epochs: Number of checkpoints of each, the first one from before the training.
            architecture: ``"cnn-s"`` or ``"cnn-l"``.
            activations: Names of activations as published, dealt out to the trials in turn.

        Raises:
            FileExistsError: If there are files of that name already.
            ValueError: If the name or the architecture is unknown.
        """
        if architecture not in _FAKES:
            raise ValueError(f"Expected 'architecture' to be one of {', '.join(_FAKES)} (got {architecture!r}).")
        zoo = cls._fake_folder(root, name) / f"tune_zoo_{name}_{architecture}"
        channels = 3 if architecture == "cnn-l" or name.startswith(("cifar", "stl")) else 1
        generator = torch.Generator().manual_seed(seed)
        for i in range(trials):
            trial = zoo / f"NN_tune_trainable_{seed:05x}_{i:05d}_{i}_seed={i + 1}_2021-07-01_16-59-53"
            trial.mkdir(parents=True)
            dropout = 0.5 * (i % 2)
            config = {
                "model::type": _FAKES[architecture].kind,
                "model::channels_in": channels,
                "model::o_dim": 10,
                "model::nlin": activations[i % len(activations)],
                "model::dropout": dropout,
                "model::init_type": "kaiming_uniform",
                "model::use_bias": False,
                "optim::optimizer": "adam",
                "optim::lr": 3e-4,
                "seed": i + 1,
                "training::epochs_train": epochs - 1,
                "training::checkpoint_dir": None,
            }
            (trial / "params.json").write_text(json.dumps(config), encoding="utf-8")
            quality = float(torch.rand((), generator=generator))
            lines = []
            for epoch in range(epochs):
                state = _fake_state(architecture, channels, dropout, 1 + quality * math.sqrt(epoch), generator)
                if i == 1 and epoch == epochs - 1:
                    next(iter(state.values()))[0] = torch.nan
                folder = trial / (f"checkpoint_{epoch}" if i == trials - 1 else f"checkpoint_{epoch:06d}")
                folder.mkdir()
                torch.save(state, folder / "checkpoints")
                test = 0.1 + 0.8 * quality * epoch / epochs
                result = {"train_loss": 2.3 - test, "train_acc": 1.05 * test, "test_loss": 2.4 - test, "test_acc": test}
                if epoch == 0:
                    result |= {"train_loss": float(_UNKNOWN), "train_acc": float(_UNKNOWN)}
                lines.append(json.dumps({**result, "training_iteration": epoch, "trial_id": f"{seed:05x}_{i:05d}", "config": config}))
            (trial / "result.json").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (zoo / "config.json").write_text(json.dumps({"model::type": _FAKES[architecture].kind}), encoding="utf-8")


# == Reading the published files ==


class _Checkpoint(NamedTuple):
    """Where a network lies and what is known about it."""

    file: Path
    facts: Mapping[str, Any]
    config: Mapping[str, Any]


def _split(runs: Sequence[str], seed: int) -> dict[str, str]:
    """The split of every run, from runs in a fixed order."""
    shuffled = list(runs)
    random.Random(seed).shuffle(shuffled)
    train = int(0.7 * len(runs))
    val = train + int(0.15 * len(runs))
    return {run: "train" if i < train else "val" if i < val else "test" for i, run in enumerate(shuffled)}


def _read_json(text: str, what: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{what} is damaged: it is not JSON ({error}). {_ADVICE}") from None
    if not isinstance(document, dict):
        raise ValueError(f"{what} is damaged: it holds no names with values. {_ADVICE}")
    return document


def _read_results(file: Path) -> dict[int, dict[str, Any]]:
    """The lines of ``result.json`` by their epoch; whether the first one is of epoch 0 or 1 differs between zoos."""
    results = {}
    for number, text in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        line = _read_json(text, f"Line {number} of {str(file)!r}")
        if not isinstance(line.get("training_iteration"), int) or "test_acc" not in line:
            raise ValueError(f"Line {number} of {str(file)!r} is damaged: it lacks 'training_iteration' or 'test_acc'. {_ADVICE}")
        results[line["training_iteration"]] = line
    return results


def _read_config(file: Path, results: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Numbers and strings of the configuration, which stands in a file and in every line of the results."""
    if file.is_file():
        config = _read_json(file.read_text(encoding="utf-8", errors="replace"), repr(str(file)))
    else:
        config = next((line["config"] for line in results.values() if isinstance(line.get("config"), dict)), {})
    return {name: value for name, value in config.items() if isinstance(value, (str, int, float))}


def _metrics(trial: Path, line: Mapping[str, Any]) -> dict[str, float]:
    try:
        measured = {ours: float(line[theirs]) for ours, theirs in _METRICS.items() if theirs in line}
    except (TypeError, ValueError):
        raise ValueError(f"{str(trial / 'result.json')!r} is damaged: an accuracy or loss is no number. {_ADVICE}") from None
    measured = {name: math.nan if value == _UNKNOWN else value for name, value in measured.items()}
    return {**measured, "ggap": measured.get("train_accuracy", math.nan) - measured["test_accuracy"]}


def _table(rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Columns of rows that need not all have the same entries; those that are missing are NaN or empty."""
    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        if any(isinstance(value, str) for value in values):
            columns[name] = np.array(["" if value is None else str(value) for value in values])
        else:
            columns[name] = np.array([math.nan if value is None else value for value in values])
    return columns


def _read_state(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise FileNotFoundError(f"There is no checkpoint {str(file)!r}. {_ADVICE}")
    try:
        content = _load_torch(file)
    except (CheckpointError, PermissionError):
        raise
    except Exception as error:  # what a parser raises on damaged bytes is not documented
        reason = str(error).split("\n")[0]
        raise CheckpointError(f"{str(file)!r} is damaged ({type(error).__name__}: {reason}). {_ADVICE}") from None
    return _find_state_dict(content, file)


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with their layers counted: numbers in the published keys depend on the dropout, which has no weights."""
    layers = list(dict.fromkeys(key.rpartition(".")[0] for key in state))
    layers.sort(key=lambda layer: [int(number) for number in re.findall(r"\d+", layer)])
    return {f"layers.{layers.index(key.rpartition('.')[0])}.{key.rpartition('.')[2]}": tensor for key, tensor in state.items()}


def _published_space(kind: Any, activation: Any, state: Mapping[str, Tensor]) -> WeightSpace:
    if kind not in _ARCHITECTURES:
        raise ValueError(
            f"Its configuration says 'model::type' is {kind!r}, but only {', '.join(_ARCHITECTURES)} can be read by their shapes. "
            "Give the weight space of others as 'space', such as wsgraph.trace(module, inputs)."
        )
    if activation not in _ACTIVATIONS:
        raise ValueError(f"Its configuration says 'model::nlin' is {activation!r}; known ones: {', '.join(_ACTIVATIONS)}.")
    architecture = _ARCHITECTURES[kind]
    pooling = ["max_pool(2)" if pooled else None for pooled in architecture.pooling]
    # Zeros in place of the weights: the space must not depend on whether this one network has diverged.
    zeros = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    space, _ = from_state_dict(zeros, _ACTIVATIONS[activation], stride=1, padding=0, pooling=pooling)
    groups = tuple(dataclasses.replace(group, operators=_pooling_first(group.operators)) for group in space.groups)
    space = dataclasses.replace(space, groups=groups, assumed=())
    if not accepts(space, (space.groups[0].size, architecture.side, architecture.side)):
        raise ValueError(f"{space!r} does not read pictures of {architecture.side} x {architecture.side} pixels, as {kind!r} does.")
    return space


def _pooling_first(operators: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(operators, key=lambda operator: not operator.startswith("max_pool")))


# == Twins ==


class _Fake(NamedTuple):
    """Name of an architecture in configurations, its kernels, and where its layers stand among all modules, without dropout and with."""

    kind: str
    kernels: tuple[tuple[int, ...], ...]
    places: tuple[int, ...]
    places_with_dropout: tuple[int, ...]


_FAKES = {
    "cnn-s": _Fake("CNN", ((8, 0, 5), (6, 8, 5), (4, 6, 2), (20, 36), (10, 20)), (0, 3, 6, 9, 11), (0, 4, 8, 11, 14)),
    "cnn-l": _Fake("CNN3", ((16, 0, 3), (32, 16, 3), (15, 32, 3), (20, 60), (10, 20)), (0, 4, 8, 13, 16), (0, 4, 8, 13, 16)),
}


def _fake_state(architecture: str, channels: int, dropout: float, scale: float, generator: torch.Generator) -> dict[str, Tensor]:
    fake = _FAKES[architecture]
    state = {}
    for place, (outputs, inputs, *side) in zip(fake.places_with_dropout if dropout else fake.places, fake.kernels, strict=True):
        shape = (outputs, inputs or channels, *side, *side)
        weight = torch.randn(shape, generator=generator) * scale / math.sqrt(math.prod(shape[1:]))
        state[f"module_list.{place}.weight"] = weight
        state[f"module_list.{place}.bias"] = 0.1 * torch.randn(outputs, generator=generator)
    return state
