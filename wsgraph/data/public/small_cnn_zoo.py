"""The Small CNN Zoo: weights of small image classifiers as rows of one large matrix."""

from __future__ import annotations

import ast
import csv
import gzip
import math
import os
import random
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from wsgraph.data.dataset import group_split
from wsgraph.data.mapped import ArrayRows
from wsgraph.data.public.base import Archive, PublicZoo, integers, splits_file
from wsgraph.data.store import ZooStore
from wsgraph.data.transforms import WeightTransform
from wsgraph.space import ParameterGraph, WeightSpace

__all__ = ["SmallCNNZoo"]

_ADDRESS = "https://storage.googleapis.com/gresearch/smallcnnzoo-dataset"
_FILES = ("weights.npy", "layout.csv", "metrics.csv.gz")
_STEPS = (0, 1, 2, 3, 20, 40, 60, 80, 86)
_FINAL = _STEPS[-1]
# Those that the authors' training program knows, and that are the same functions in TensorFlow and here.
_ACTIVATIONS = ("relu", "tanh", "sigmoid", "selu")


class SmallCNNZoo(PublicZoo):
    """The Small CNN Zoo of `"Predicting Neural Network Accuracy from Weights" <https://arxiv.org/abs/2002.11448>`_ (Unterthiner et al.).

    Classifiers of small images with three convolutions (16 channels, 3x3, stride 2, no padding), global average pooling and a linear
    layer, 4,970 parameters, trained with varied hyperparameters, each kept at nine steps of its training.

    ============= =========== ======= ========== =======
    name          checkpoints runs    parameters classes
    ============= =========== ======= ========== =======
    cifar10       270,000     30,000  4,970      10
    svhn_cropped  269,892     ~30,000 4,970      10
    mnist         269,973     ~30,000 4,970      10
    fashion_mnist 270,000     30,000  4,970      10
    ============= =========== ======= ========== =======

    A few runs of the second and third zoo crashed. The networks read pictures of one channel (colours averaged) with pixels in [-1, 1].
    The data are licensed under CC BY 4.0.

    The matrix of weights, 5.4 GB, is not copied: networks are read from ``weights.npy`` where they are used. Keep that file in its place.

    The table has all columns of ``metrics.csv.gz`` under their published names, and ``activation``, ``run`` (the folder that a network was
    trained in), ``row`` (of the matrix) and ``split``. Networks with weights or a test accuracy that are not finite are left out, and
    counted in ``store.info`` (``dropped_non_finite``, ``dropped_without_accuracy``). Networks of different activations have different
    weight spaces: with ``activation=None`` those of one activation lie behind those of the other.

    Splits are 40 % train, 10 % val and 50 % test of the runs. Published results use the order in
    ``experiments/predict_gen_data_splits/{cifar10,svhn,mnist,fashion_mnist}_split.csv`` of https://github.com/AllanYangZhou/nfn: give such
    a file as ``splits``. Two conventions are in use, whose test sets of one activation differ, so that their numbers cannot be compared:
    ``split_before_filter=True`` (ScaleGMN) and ``False`` (Monomial-NFN, MAGEP-NFN). Both are about final checkpoints; with other steps,
    all checkpoints of a run go where its final one goes, and those of runs that have none to train, so that no run is in two splits.

    Args:
        root: Folder for all files.
        name: One of the names above.
        split: ``"train"``, ``"val"`` or ``"test"`` (default: all networks).
        target: Column that becomes ``y``; ``None`` for graphs without one.
        activation: Only networks with this activation, ``"relu"`` or ``"tanh"`` (default: all).
        steps: Training steps (epochs) of the checkpoints to read: one, several, or ``None`` for all.
        split_before_filter: Whether networks of all activations are split, and then filtered by activation; otherwise the other way round.
        splits: A published split file (default: runs are split at random).
        seed: Seed of the random split.
        transform: Applied at every access; see :class:`~wsgraph.data.ZooDataset`.
        pre_transform: One of :mod:`wsgraph.data.transforms`, applied once; then the weights are copied.
        force_reload: Whether to read the published files again.

    Raises:
        FileNotFoundError: If files are missing and cannot be fetched, or there is no file ``splits``.
        ValueError: If an option is unknown, no network is left, or a file is damaged or does not fit the others.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     SmallCNNZoo.write_fake(folder, "cifar10", runs=40)  # leave this out for the real data
        ...     train = SmallCNNZoo(folder, "cifar10", "train", activation="relu")
        ...     print(train.space)
        ...     print(train[0], train.y.dtype)
        WeightSpace(1-16-16-16-10, conv 3x3 | conv 3x3 | conv 3x3 | linear, relu, 4,970 parameters)
        ParameterGraph(1-16-16-16-10, nodes=59, edges=688, y=[1]) torch.float32
    """

    names: ClassVar[Mapping[str, str]] = {
        "cifar10": "CNNs for CIFAR-10 in grey",
        "svhn_cropped": "CNNs for SVHN in grey",
        "mnist": "CNNs for MNIST",
        "fashion_mnist": "CNNs for Fashion-MNIST",
    }
    archives: ClassVar[Mapping[str, Archive]] = {name: Archive(f"{_ADDRESS}/{name}.tar.xz") for name in names}
    where: ClassVar[str] = (
        "Fetch the archive of that name from https://github.com/google-research/google-research/tree/master/dnn_predict_accuracy "
        "and unpack it there."
    )

    def __init__(
        self,
        root: str | os.PathLike[str],
        name: str,
        split: str | None = None,
        *,
        target: str | None = "test_accuracy",
        activation: str | None = None,
        steps: int | Sequence[int] | None = _FINAL,
        split_before_filter: bool = True,
        splits: str | os.PathLike[str] | None = None,
        seed: int = 0,
        transform: Callable[[ParameterGraph], ParameterGraph] | None = None,
        pre_transform: WeightTransform | None = None,
        force_reload: bool = False,
    ) -> None:
        if activation is not None and activation not in _ACTIVATIONS:
            raise ValueError(f"Expected 'activation' to be None or one of {', '.join(_ACTIVATIONS)} (got {activation!r}).")
        self._splits, digest = splits_file(splits, " Those of nfn are in experiments/predict_gen_data_splits.")
        options = {
            "activation": activation,
            "steps": integers("steps", steps),
            "split_before_filter": bool(split_before_filter),
            "splits": digest,
            "seed": int(seed),
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

    @property
    def _folder(self) -> Path:
        """Where the files lie: in the folder that the archive unpacks to, or directly among the raw files."""
        inner = self.raw_dir / self.name
        return inner if inner.is_dir() else self.raw_dir

    def raw_file_names(self) -> list[str]:
        return [str((self._folder / file).relative_to(self.raw_dir)) for file in _FILES]

    def process(self, store: ZooStore) -> None:
        weights, layout, metrics = (self._folder / file for file in _FILES)
        count, width = ArrayRows(weights, torch.arange(0), torch.arange(0)).open().matrix.shape
        architecture = _read_layout(layout, width)
        table = _read_rows(metrics, ("step", "config.activation", "modeldir", "test_accuracy"))
        if len(table["step"]) != count:
            raise ValueError(f"{str(metrics)!r} has {len(table['step']):,} rows, but {str(weights)!r} has {count:,}: two zoos are mixed.")
        activations, runs = np.array(table["config.activation"]), np.array(table["modeldir"])
        steps = _numbers(metrics, "step", table["step"])
        of_activation = np.full(count, True) if self.options["activation"] is None else activations == self.options["activation"]
        kept = self._asked_for(metrics, activations, steps, of_activation)
        if len(np.unique(steps[kept])) > 1 and len(np.unique(runs[kept])) == len(kept):
            raise ValueError(
                f"The column 'modeldir' of {str(metrics)!r} does not say which checkpoints are of one run: all entries differ."
            )
        splits = self._split(runs, steps, of_activation)

        known = np.isfinite(_numbers(metrics, "test_accuracy", table["test_accuracy"])[kept])
        kept = kept[known]
        columns = {name: _column([values[row] for row in kept]) for name, values in table.items()}
        columns |= {"activation": activations[kept], "run": runs[kept], "row": kept, "split": splits[kept]}
        for activation in dict.fromkeys(activations[kept].tolist()):
            mine = activations[kept] == activation
            rows = ArrayRows(weights, torch.from_numpy(kept[mine]), architecture.columns)
            self.append(store, architecture.space(activation), rows, {name: values[mine] for name, values in columns.items()})
        store.finish(dropped_without_accuracy=int((~known).sum()))

    def _asked_for(self, metrics: Path, activations: np.ndarray, steps: np.ndarray, of_activation: np.ndarray) -> np.ndarray:
        """The rows of the steps and activation that were asked for."""
        of_step = np.full(len(steps), True) if self.options["steps"] is None else np.isin(steps, self.options["steps"])
        kept = np.flatnonzero(of_step & of_activation)
        if absent := sorted({*(self.options["steps"] or ())} - {*steps}):
            listed = ", ".join(f"{step:g}" for step in np.unique(steps))
            raise ValueError(f"{str(metrics)!r} has no networks of step {absent[0]}; its steps: {listed}.")
        if not len(kept):
            listed = ", ".join(np.unique(activations))
            raise ValueError(
                f"{str(metrics)!r} has no networks with activation {self.options['activation']!r} at that step; its activations: {listed}."
            )
        if unknown := sorted({*activations[kept]} - {*_ACTIVATIONS}):
            raise ValueError(f"{str(metrics)!r} names an unknown activation {str(unknown[0])!r}; known ones: {', '.join(_ACTIVATIONS)}.")
        return kept

    def _split(self, runs: np.ndarray, steps: np.ndarray, of_activation: np.ndarray) -> np.ndarray:
        """Name of the split of every row of the matrix."""
        divided = np.full(len(runs), True) if self.options["split_before_filter"] else of_activation
        if self._splits is None:
            splits = np.full(len(runs), "train")
            splits[divided] = group_split(runs[divided], {"train": 0.4, "val": 0.1, "test": 0.5}, seed=self.options["seed"])
            return splits
        order = _read_order(self._splits, len(runs))
        finals = order[(steps[order] == _FINAL) & divided[order]]
        names = np.full(len(finals), "train")
        half = len(finals) // 2
        names[half:] = "test"
        learning = list(range(half))
        random.Random(0).shuffle(learning)
        names[learning[int(0.8 * half) :]] = "val"
        of_run = dict(zip(runs[finals].tolist(), names.tolist(), strict=True))
        if len(of_run) < len(finals):
            raise ValueError(f"The column 'modeldir' of {self.name!r} does not tell runs apart: one has several final checkpoints.")
        return np.array([of_run.get(run, "train") for run in runs.tolist()])

    @classmethod
    def write_fake(  # type: ignore[override]  # sizes by their names
        cls,
        root: str | os.PathLike[str],
        name: str,
        *,
        seed: int = 0,
        runs: int = 40,
        steps: Sequence[int] = _STEPS,
        split_csv: bool = True,
    ) -> None:
        """Write a small twin in the published format: random weights of the real scale, and accuracies that follow from that scale.

        Two networks before the end of their training have NaN weights, and one has no accuracy: the reader leaves them out.

        Args:
            root: Folder to write to, to be given to the reader.
            name: One of :attr:`names`.
            seed: Seed of everything.
            runs: Number of training runs.
            steps: Steps at which each run is kept.
            split_csv: Whether to write a split file beside the others, in the published form.

        Raises:
            FileExistsError: If there are files of that name already.
            ValueError: If the name is unknown.
        """
        raw = cls._fake_folder(root, name)
        folder = raw / name
        folder.mkdir()
        generator = np.random.default_rng(seed)
        count = runs * len(steps)
        run, step = np.divmod(np.arange(count), len(steps))
        quality = generator.random(runs)[run] * np.sqrt(np.array(steps)[step] / _FINAL)
        weights = generator.standard_normal((count, 4970), dtype=np.float32) * (0.5 + quality[:, None]).astype(np.float32)
        layout, start = ["varname,start_idx,end_idx,size,shape"], 0
        for variable, shape, spread in _FAKE_VARIABLES:
            stop = start + math.prod(shape)
            weights[:, start:stop] *= spread
            layout.append(f'sequential/{variable},{start},{stop},{stop - start},"{shape}"')
            start = stop
        early = np.flatnonzero(step < len(steps) - 1)
        weights[early[1:3], 3000:] = np.nan
        np.save(folder / _FILES[0], weights)
        (folder / _FILES[1]).write_text("\n".join(layout) + "\n", encoding="utf-8")

        of_run = {
            "config.activation": generator.permutation(np.resize(["relu", "tanh"], runs)),
            "config.dropout": generator.uniform(0, 0.7, runs).round(6),
            "config.init_std": (10 ** generator.uniform(-3, 0, runs)).round(6),
            "config.l2reg": (10 ** generator.uniform(-8, -2, runs)).round(10),
            "config.learning_rate": (10 ** generator.uniform(-4, -1, runs)).round(8),
            "config.optimizer": generator.choice(["adam", "sgd", "rmsprop"], runs),
            "config.train_fraction": generator.choice([0.1, 0.25, 0.5, 1.0], runs),
            "config.w_init": generator.choice(["glorot_normal", "he_normal", "orthogonal", "normal"], runs),
            "modeldir": np.array([f"/fake/{name}/{i:05d}" for i in range(runs)]),
        }
        columns = {variable: values[run].tolist() for variable, values in of_run.items()}
        columns |= {variable: [value] * count for variable, value in (("config.dataset", name), *_FAKE_CONSTANTS.items())}
        test, train = (0.1 + 0.5 * quality).round(6).tolist(), (0.1 + 0.6 * quality).round(6).tolist()
        columns |= {"step": np.array(steps)[step].tolist(), "test_accuracy": test, "train_accuracy": train}
        columns |= {f"{part}_loss": [2.5 - value for value in accuracy] for part, accuracy in (("test", list(test)), ("train", train))}
        for row in early[3:4]:
            test[row] = ""
        columns = {"": list(range(count)), **dict(sorted(columns.items()))}
        lines = [",".join(map(str, row)) for row in (columns, *zip(*columns.values(), strict=True))]
        (folder / _FILES[2]).write_bytes(gzip.compress(("\n".join(lines) + "\n").encode(), mtime=0))
        if split_csv:
            order = [0, *generator.permutation(count).tolist()]
            file = raw / f"{name.removesuffix('_cropped')}_split.csv"
            file.write_text("".join(f"{row}\n" for row in order), encoding="utf-8")


_FAKE_CONSTANTS = {
    "config.b_init": "zeros",
    "config.dnn_architecture": "cnn",
    "config.epochs": 86,
    "config.epochs_between_checkpoints": 20,
    "config.num_layers": 3,
    "config.num_units": 16,
    "config.random_seed": 42,
}
# Variables in the order of the matrix, with the standard deviations of trained networks for CIFAR-10.
_FAKE_VARIABLES = (
    ("conv2d/bias:0", (16,), 0.407),
    ("conv2d/kernel:0", (3, 3, 1, 16), 0.550),
    ("conv2d_1/bias:0", (16,), 0.972),
    ("conv2d_1/kernel:0", (3, 3, 16, 16), 0.435),
    ("conv2d_2/bias:0", (16,), 1.945),
    ("conv2d_2/kernel:0", (3, 3, 16, 16), 0.364),
    ("dense/bias:0", (10,), 0.545),
    ("dense/kernel:0", (16, 10), 0.368),
)


# == Reading the published files ==


def _read_rows(file: Path, required: Sequence[str]) -> dict[str, list[str]]:
    """Columns of a CSV file by name; unnamed ones, such as the index that pandas writes, are left out."""
    try:
        with (gzip.open if file.suffix == ".gz" else open)(file, "rt", encoding="utf-8", newline="") as opened:
            rows = list(csv.reader(opened))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{str(file)!r} is damaged ({error}). Fetch it again.") from None
    header = rows[0] if rows else []
    if missing := [name for name in required if name not in header]:
        raise ValueError(f"{str(file)!r} lacks the column {missing[0]!r}; its columns: {', '.join(filter(None, header)) or 'none'}.")
    if wrong := [line for line, row in enumerate(rows, 1) if len(row) != len(header)]:
        raise ValueError(f"{str(file)!r} is damaged (line {wrong[0]} does not have {len(header)} entries). Fetch it again.")
    return {name: [row[i] for row in rows[1:]] for i, name in enumerate(header) if name}


def _numbers(file: Path, name: str, values: Sequence[str]) -> np.ndarray:
    try:
        return np.array([float(value or "nan") for value in values])
    except ValueError as error:
        raise ValueError(f"Expected numbers in the column {name!r} of {str(file)!r} ({error}).") from None


def _column(values: Sequence[str]) -> np.ndarray:
    """A column as integers or as floats, empty ones NaN, where all its entries can be read as such; otherwise as strings."""
    for read in (int, lambda value: float(value or "nan")):
        try:
            return np.array([read(value) for value in values])
        except ValueError:
            continue
    return np.array(values)


class _Architecture(NamedTuple):
    """What a layout says about all networks, and the column of the matrix that holds every entry of a flat checkpoint."""

    channels: list[int]
    kernels: list[tuple[int, ...]]
    linear: list[int]
    columns: Tensor

    def space(self, activation: str) -> WeightSpace:
        return WeightSpace.cnn(self.channels, self.linear, activation, kernel_size=self.kernels, stride=2)


def _read_layout(file: Path, width: int) -> _Architecture:
    """Read what lies where in a matrix of so many columns."""
    table = _read_rows(file, ("varname", "start_idx", "end_idx", "shape"))
    starts, stops = (_numbers(file, name, table[name]) for name in ("start_idx", "end_idx"))
    layers: dict[str, dict[str, np.ndarray]] = {}
    covered = 0
    for i in np.argsort(starts):
        name, text, start, stop = table["varname"][i], table["shape"][i], starts[i], stops[i]
        scope, _, kind = name.rpartition("/")
        if kind not in ("kernel:0", "bias:0"):
            raise ValueError(f"{str(file)!r} names a variable {name!r}; expected names that end in /kernel:0 or /bias:0.")
        if start != covered:
            raise ValueError(f"{str(file)!r} is damaged: {name!r} begins at column {start:g}, not {covered}. Fetch it again.")
        try:
            covered = int(stop)
            layers.setdefault(scope, {})[kind] = np.arange(int(start), covered).reshape(ast.literal_eval(text))
        except (ValueError, SyntaxError, TypeError):
            raise ValueError(f"{str(file)!r} is damaged: {name!r} in columns {start:g} to {stop:g} has shape {text!r}.") from None
    if covered != width:
        raise ValueError(f"{str(file)!r} says what lies in {covered:,} columns, but the matrix beside it has {width:,}.")
    return _architecture(file, layers)


def _architecture(file: Path, layers: Mapping[str, Mapping[str, np.ndarray]]) -> _Architecture:
    channels: list[int] = []
    kernels: list[tuple[int, ...]] = []
    linear: list[int] = []
    columns = []
    for scope, parts in layers.items():
        kernel, bias = (parts.get(kind, np.empty(0)) for kind in ("kernel:0", "bias:0"))
        *positions, inputs, outputs = kernel.shape if kernel.ndim > 1 else (0, 0)
        before = [*channels, *linear][-1:] or [inputs]
        if kernel.ndim not in (2, 4) or bias.shape != (outputs,) or before != [inputs] or (positions and linear):
            raise ValueError(
                f"{str(file)!r}: the kernel of {scope!r} of shape {list(kernel.shape)} and its bias of shape {list(bias.shape)} do not "
                "continue a chain of 2-dimensional convolutions and then linear layers, each with a bias."
            )
        channels = channels or [inputs]
        (channels if positions else linear).append(outputs)
        kernels += [tuple(positions)] if positions else []
        # TensorFlow keeps kernels as [*positions, in, out]; the order here is [out, in, *positions], and the bias behind it.
        columns += [np.moveaxis(kernel, (-1, -2), (0, 1)).ravel(), bias]
    return _Architecture(channels, kernels, linear, torch.from_numpy(np.concatenate(columns)))


def _read_order(file: Path, count: int) -> np.ndarray:
    """The permutation of so many rows in a split file, without the header that was written into it as a first row 0."""
    try:
        order = np.array([int(line) for line in file.read_text(encoding="utf-8").split()])
    except ValueError as error:
        raise ValueError(f"Expected one row number per line in the split file {str(file)!r} ({error}).") from None
    if len(order) and order[0] == 0 and 0 in order[1:]:
        order = order[1:]
    if outside := [row for row in order if not 0 <= row < count]:
        raise ValueError(
            f"The split file {str(file)!r} names row {outside[0]}, but the zoo has rows 0 to {count - 1}; it is of another zoo."
        )
    if len(missing := np.setdiff1d(np.arange(count), order)) or len(order) != count:
        what = f"lacks {len(missing)} of the {count} rows of the zoo, such as {missing[0]}" if len(missing) else "names rows twice"
        raise ValueError(f"The split file {str(file)!r} {what}; it is of another zoo.")
    return order
