"""Zoos of common kinds, each made by one call."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wsgraph.convert.tracing import trace
from wsgraph.data.generators.architectures import architecture_of
from wsgraph.data.generators.classifiers import Classifiers
from wsgraph.data.generators.generate import generate_zoo
from wsgraph.data.generators.hyperparameters import HyperparameterRanges
from wsgraph.data.generators.image_fits import ImageFits
from wsgraph.data.images import ClassificationData, digits
from wsgraph.data.store import PathLike, ZooStore
from wsgraph.space import Signal, WeightSpace

__all__ = ["make_cnn_zoo", "make_inr_zoo", "make_mlp_zoo", "make_zoo"]


def make_zoo(
    path: PathLike,
    space: WeightSpace | nn.Module | Sequence[WeightSpace | nn.Module],
    *,
    images: Tensor,
    labels: Tensor,
    test_images: Tensor,
    test_labels: Tensor,
    networks: int,
    seed: int = 0,
    batch_size: int = 16,
    ranges: HyperparameterRanges | Mapping[str, Any] | None = None,
    checkpoints: Sequence[int] = (),
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> ZooStore:
    """Train a zoo of classifiers with varied hyperparameters.

    The table has the columns ``network`` (its number), ``seed``, the hyperparameters, ``step`` and ``final`` (whether this is its last
    one), ``train_accuracy`` and ``train_loss`` on the examples that the network was trained on, ``test_accuracy``, ``test_loss`` and
    ``split`` (60 % train, 10 % val, 30 % test, all checkpoints of a network in one). Networks that diverged are left out and counted in
    ``info["dropped_non_finite"]``.

    A module says by its code what the networks compute, and by its :class:`torch.nn.Dropout` modules where neurons are dropped; its
    values serve as the initial ones only where they are constants, such as the gains of norms. Running statistics of batch normalisation
    are each network's own.

    Args:
        path: Folder of the zoo.
        space: The networks, which return logits: their weight space, or a module to be traced; of several, each gets an equal share of
            the networks.
        images: Training inputs ``[n, n_0, *positions]``.
        labels: Training labels ``[n]``.
        test_images: Test inputs.
        test_labels: Test labels.
        networks: Number of networks to train.
        seed: Seed of everything random.
        batch_size: Examples per step.
        ranges: Where hyperparameters are drawn from (default: :class:`HyperparameterRanges`), or those ranges by name that differ.
        checkpoints: Steps after which weights are kept too, besides those at the end; 0 keeps the initial ones.
        dtype: Dtype of training and of the stored weights.
        **options: Options of :func:`generate_zoo`: ``population``, ``device``, ``workers``, ``ray``, ``progress``.

    Returns:
        The finished zoo, open for reading.

    Raises:
        OSError: If the folder cannot be written.
        ValueError: If an argument is out of range, examples do not fit the space, a zoo of another configuration lies at the path, or all
            networks diverged.
    """
    data = ClassificationData(images, labels, test_images, test_labels)
    ranges = _ranges(HyperparameterRanges(), ranges)
    networks_of = [space] if isinstance(space, (WeightSpace, nn.Module)) else list(space)
    common: dict[str, Any] = {"ranges": ranges, "seed": seed, "batch_size": batch_size, "checkpoints": tuple(checkpoints), "dtype": dtype}
    problems = [_classifiers(each, data, **common) for each in networks_of]
    return generate_zoo(path, problems, networks, **options)


def _ranges(default: HyperparameterRanges, given: HyperparameterRanges | Mapping[str, Any] | None) -> HyperparameterRanges:
    return given if isinstance(given, HyperparameterRanges) else dataclasses.replace(default, **(given or {}))


def _classifiers(network: WeightSpace | nn.Module, data: ClassificationData, **options: Any) -> Classifiers:
    if isinstance(network, WeightSpace):
        return Classifiers(network, data, **options)
    module = copy.deepcopy(network).eval()
    dtype = next((tensor.dtype for tensor in module.state_dict().values() if tensor.is_floating_point()), data.images.dtype)
    return Classifiers(trace(module, data.images[:1].to(dtype)), data, module=module, **options)


def make_cnn_zoo(
    path: PathLike,
    networks: int = 1000,
    activation: str | Sequence[str] | None = None,
    *,
    architecture: str | Sequence[str] = "cnn",
    seed: int = 0,
    data: ClassificationData | None = None,
    batch_size: int = 16,
    ranges: HyperparameterRanges | Mapping[str, Any] | None = None,
    checkpoints: Sequence[int] = (),
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> ZooStore:
    """Train a zoo of small classifiers of pictures, by default CNNs 1-16-16-16-10 on scikit-learn's 8x8 digits; see :func:`make_zoo`.

    Every option of an architecture may have several values; each combination gets an equal share of the networks.

    Args:
        path: Folder of the zoo.
        networks: Number of networks to train.
        activation: Activation of the networks, which decides their symmetry (default: ReLU, GELU in transformers and mixers).
        architecture: ``"cnn"`` with options ``channels`` and ``stride``; ``"resnet"`` with batch normalisation and ``channels``, ``depth``;
            ``"vit"``, a vision transformer with ``patch``, ``width``, ``depth``, ``heads``, ``hidden``, ``pooling``; ``"mixer"`` with
            ``patch``, ``width``, ``depth``, ``token_hidden``, ``hidden``; or what others registered. Of several, each gets an equal share.
        seed: Seed of everything random but the division into training and test images.
        data: Examples with images ``[n, C, H, W]`` (default: :func:`digits`).
        batch_size: Examples per step.
        ranges: Where hyperparameters are drawn from (default: the ranges of the architecture), or those ranges by name that differ.
        checkpoints: Steps after which weights are kept too, besides those at the end; 0 keeps the initial ones.
        dtype: Dtype of training and of the stored weights.
        **options: Options of the architectures, and of :func:`generate_zoo`, such as ``workers``.

    Returns:
        The finished zoo, open for reading.

    Raises:
        OSError: If the folder cannot be written.
        ValueError: If an argument is out of range, an architecture or an option of it is not known, a zoo of another configuration lies
            at the path, or all networks diverged.

    Example:
        >>> import tempfile
        >>> ranges = HyperparameterRanges(steps=(5, 10))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = make_cnn_zoo(f"{folder}/zoo", 10, "tanh", ranges=ranges, progress=False)
        ...     print(store.dataset("train"))
        ZooDataset(6 of 10 networks, WeightSpace(1-16-16-16-10, conv 3x3 | ...), target='test_accuracy')
    """
    data = digits() if data is None else data
    if data.images.ndim != 4:
        raise ValueError(f"Expected images of shape [n, C, H, W] (got {list(data.images.shape)}).")
    classes = int(torch.cat([data.labels, data.test_labels]).max()) + 1
    of_generation = {name: options.pop(name) for name in _GENERATION if name in options}
    own = {**options, **({} if activation is None else {"activation": activation})}
    entries = [architecture_of(name) for name in ([architecture] if isinstance(architecture, str) else architecture)]
    shared = {name for entry in entries for name in entry.options}
    problems = []
    for entry in entries:
        # Of several architectures each takes the options that it has; one that none has is named by the first.
        given = {name: value for name, value in own.items() if name in entry.options or name not in shared}
        for variant in entry.variants(given):
            network = entry.build(data.images.shape[1], classes, tuple(data.images.shape[2:]), **variant)
            text = f"{entry.name}({', '.join(f'{name}={value!r}' for name, value in variant.items())})"
            told = "" if isinstance(network, WeightSpace) else text
            common: dict[str, Any] = {"seed": seed, "batch_size": batch_size, "checkpoints": tuple(checkpoints), "dtype": dtype}
            problems.append(_classifiers(network, data, ranges=_ranges(entry.ranges, ranges), architecture=told, **common))
    return generate_zoo(path, problems, networks, **of_generation)


def _listed(value: Any) -> list[Any]:
    """One choice or several: a list of lists, or of texts, holds several."""
    return (
        list(value) if isinstance(value, Sequence) and not isinstance(value, str) and value and not isinstance(value[0], int) else [value]
    )


_GENERATION = ("population", "device", "workers", "ray", "progress")


def make_mlp_zoo(
    path: PathLike,
    networks: int = 1000,
    activation: str | Sequence[str] = "relu",
    *,
    seed: int = 0,
    data: ClassificationData | None = None,
    hidden: Sequence[int] | Sequence[Sequence[int]] = (32, 32),
    **options: Any,
) -> ZooStore:
    """Train a zoo of small MLPs, by default 64-32-32-10 on scikit-learn's 8x8 digits; see :func:`make_zoo`.

    Args:
        path: Folder of the zoo.
        networks: Number of networks to train.
        activation: Activation of the networks, which decides their symmetry; of several, each gets an equal share.
        seed: Seed of everything random but the division into training and test images.
        data: Examples, whose images are flattened (default: :func:`digits`).
        hidden: Widths of the hidden layers; of several such lists, each gets an equal share of the networks.
        **options: Further options of :func:`make_zoo` and :func:`generate_zoo`, such as ``ranges``, ``checkpoints`` or ``workers``.

    Returns:
        The finished zoo, open for reading.

    Example:
        >>> import tempfile
        >>> ranges = HyperparameterRanges(steps=(5, 10))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     make_mlp_zoo(f"{folder}/zoo", 10, ranges=ranges, progress=False).space
        WeightSpace(64-32-32-10, linear | linear | linear, relu, 3,466 parameters)
    """
    data = digits() if data is None else data
    data = data._replace(images=data.images.flatten(1), test_images=data.test_images.flatten(1))
    classes = int(torch.cat([data.labels, data.test_labels]).max()) + 1
    spaces = [
        WeightSpace.mlp([data.images.shape[1], *widths, classes], kind)
        for widths, kind in itertools.product(_listed(hidden), _listed(activation))
    ]
    return make_zoo(path, spaces, **data._asdict(), networks=networks, seed=seed, **options)


_CONVENTIONS: dict[str, dict[str, Any]] = {
    "navon": {"first_axis": "column", "offset": 0.5, "value_range": (0.0, 1.0)},
    "zhou": {"first_axis": "row", "offset": 0.0, "value_range": (-1.0, 1.0)},
}


def make_inr_zoo(
    path: PathLike,
    networks: int | None = None,
    *,
    seed: int = 0,
    data: ClassificationData | None = None,
    convention: str = "navon",
    hidden: Sequence[int] | Sequence[Sequence[int]] = (32, 32),
    omega: float = 30.0,
    steps: int = 500,
    learning_rate: float = 1e-3,
    pixels: int | None = None,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> ZooStore:
    """Fit sinusoidal networks to pictures, one to each, by default 2-32-32-1 to scikit-learn's 8x8 digits.

    The table has the columns ``network`` (its number), ``seed``, ``image`` (position of its picture among training, then test pictures),
    ``fit`` (0 for the first network of a picture, 1 for the second, ...), ``label``, ``loss`` (mean squared error), ``psnr`` in decibels
    and ``split``: networks of test pictures are for testing, those of a tenth of the others for validation.

    Args:
        path: Folder of the zoo.
        networks: Number of networks to fit (default: one for every picture); beyond the number of pictures each is fitted again.
        seed: Seed of everything random.
        data: Pictures ``[n, C, H, W]`` with values in [-1, 1] and labels (default: :func:`digits`).
        convention: ``"navon"``: first coordinate along columns, 0.5 added to the output, values from 0 to 1 (`Navon et al., 2023
            <https://arxiv.org/abs/2301.12780>`_); ``"zhou"``: along rows, nothing added, values from -1 to 1 (`Zhou et al., 2023
            <https://arxiv.org/abs/2302.14040>`_). It is recorded in the weight space.
        hidden: Widths of the hidden layers; of several such lists, each gets an equal share of the networks.
        omega: Frequency factor.
        steps: Number of steps of Adam.
        learning_rate: Learning rate at the beginning, which falls along a cosine.
        pixels: Pixels per step (default: a quarter of them).
        dtype: Dtype of training and of the stored weights.
        **options: Options of :func:`generate_zoo`: ``population``, ``device``, ``workers``, ``ray``, ``progress``.

    Returns:
        The finished zoo, open for reading.

    Raises:
        OSError: If the folder cannot be written.
        ValueError: If an argument is out of range, or a zoo of another configuration lies at the path.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = make_inr_zoo(f"{folder}/zoo", 8, steps=20, progress=False)
        ...     store.space.render(store.thetas).shape
        torch.Size([8, 1, 8, 8])
    """
    data = digits() if data is None else data
    if convention not in _CONVENTIONS:
        raise ValueError(f"Expected 'convention' to be {' or '.join(map(repr, _CONVENTIONS))} (got {convention!r}).")
    height, width = data.images.shape[2:]
    signal = Signal((height, width), **_CONVENTIONS[convention])
    problems = [
        ImageFits(
            WeightSpace.siren([2, *widths, data.images.shape[1]], omega, signal=signal),
            data,
            seed=seed,
            learning_rate=learning_rate,
            steps=steps,
            pixels=pixels,
            dtype=dtype,
        )
        for widths in _listed(hidden)
    ]
    total = len(data.images) + len(data.test_images)
    return generate_zoo(path, problems, total if networks is None else networks, **{"population": 32, **options})
