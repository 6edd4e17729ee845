"""Zoos made here: populations of small networks, trained all at once."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from wsgraph.data.random import CounterRandom
from wsgraph.data.store import PathLike, ZooStore
from wsgraph.files import explained_errors, write_atomically, write_json
from wsgraph.space import NeuronGroup, WeightSpace
from wsgraph.space.evaluate import run_network

__all__ = [
    "ClassificationData",
    "HyperparameterRanges",
    "digits",
    "evaluate_population",
    "initial_thetas",
    "make_cnn_zoo",
    "make_mlp_zoo",
    "make_zoo",
    "train_population",
    "training_examples",
]

# Raised whenever the same arguments would give other networks, so that unfinished and finished zoos of both kinds never mix.
_ALGORITHM = 1
_METRICS = ("train_accuracy", "test_accuracy", "train_loss", "test_loss")
_BETAS = (0.9, 0.999)
_EPSILON = 1e-8
_IMAGES = 64


class ClassificationData(NamedTuple):
    """Labelled examples: inputs ``[n, n_0, *positions]`` and labels ``[n]``, for training and for testing."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def digits(seed: int = 0) -> ClassificationData:
    """The 8x8 digits that come with scikit-learn: 1,297 training and 500 test images ``[n, 1, 8, 8]`` with values in [-1, 1].

    Args:
        seed: Seed of the division into training and test images.

    Example:
        >>> [list(part.shape) for part in digits()]
        [[1297, 1, 8, 8], [1297], [500, 1, 8, 8], [500]]
    """
    from sklearn.datasets import load_digits

    source = load_digits()
    images = torch.from_numpy(source.images).float()[:, None] / 8 - 1
    labels = torch.from_numpy(source.target).long()
    order = CounterRandom(seed).uniform(torch.zeros(1, dtype=torch.long), "digits", (len(labels),))[0].argsort(stable=True)
    train, test = order[:-500], order[-500:]
    return ClassificationData(images[train], labels[train], images[test], labels[test])


# == Hyperparameters ==


@dataclass(frozen=True)
class HyperparameterRanges:
    """Where the hyperparameters of each network of a zoo are drawn from.

    Args:
        learning_rate: Lowest and highest learning rate of AdamW, log-uniform.
        initial_scale: Lowest and highest factor on the He initialisation, log-uniform.
        weight_decay: Lowest and highest decoupled weight decay, log-uniform.
        dropout: Lowest and highest dropout rate, uniform.
        training_fraction: Fractions of the training set, each as likely as the others.
        steps: Lowest and highest number of training steps, log-uniform.

    Raises:
        ValueError: If a range is empty or leaves the values that make sense.

    Example:
        >>> import torch
        >>> drawn = HyperparameterRanges(steps=(10, 20)).sample(CounterRandom(0), torch.arange(100))
        >>> int(drawn["steps"].min()), int(drawn["steps"].max())
        (10, 20)
    """

    learning_rate: tuple[float, float] = (5e-4, 2e-2)
    initial_scale: tuple[float, float] = (0.4, 1.5)
    weight_decay: tuple[float, float] = (1e-4, 1.0)
    dropout: tuple[float, float] = (0.0, 0.4)
    training_fraction: tuple[float, ...] = (0.05, 0.1, 0.25, 0.5, 1.0)
    steps: tuple[int, int] = (80, 600)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, tuple(getattr(self, field.name)))
        for name, lowest, highest in (
            ("learning_rate", 0, math.inf),
            ("initial_scale", 0, math.inf),
            ("weight_decay", 0, math.inf),
            ("dropout", None, 1),
            ("steps", 0, math.inf),
        ):
            values = getattr(self, name)
            if len(values) != 2 or not values[0] <= values[1] < highest or values[0] < 0 or values[0] == lowest:
                bound = "at least 0" if lowest is None else "positive"
                top = f" and below {highest}" if highest < math.inf else " and finite"
                raise ValueError(f"Expected '{name}' to be a lowest and a highest value, {bound}{top} (got {values}).")
        if not self.training_fraction or not all(0 < fraction <= 1 for fraction in self.training_fraction):
            raise ValueError(f"Expected 'training_fraction' to hold values above 0 and at most 1 (got {self.training_fraction}).")

    def sample(self, random: CounterRandom, networks: Tensor) -> dict[str, Tensor]:
        """Hyperparameters of the networks with the given numbers, by name, each ``[B]``."""

        def between(name: str) -> Tensor:
            low, high = (math.log(value) for value in getattr(self, name))
            return (low + (high - low) * random.uniform(networks, name)).exp()

        fractions = torch.tensor(self.training_fraction, dtype=torch.float64)
        low, high = self.dropout
        # One more than the highest, so that rounding down gives the highest number of steps its share too.
        first, last = math.log(self.steps[0]), math.log(self.steps[1] + 1)
        steps = (first + (last - first) * random.uniform(networks, "steps")).exp().long().clamp(*self.steps)
        return {
            "learning_rate": between("learning_rate"),
            "initial_scale": between("initial_scale"),
            "weight_decay": between("weight_decay"),
            "dropout": low + (high - low) * random.uniform(networks, "dropout_rate"),
            "training_fraction": fractions[(random.uniform(networks, "training_fraction") * len(fractions)).long()],
            "steps": steps,
        }


def _splits(random: CounterRandom, networks: Tensor) -> list[str]:
    """6 of every 10 networks in a row train, 1 validates, 3 test: near-exact shares that do not depend on the size of the zoo."""
    ranks = random.uniform(networks // 10, "split", (10,)).argsort(dim=1, stable=True).argsort(1)
    rank = ranks.gather(1, (networks % 10)[:, None]).flatten()
    return ["train" if r < 6 else "val" if r < 7 else "test" for r in rank.tolist()]


# == Training ==


def initial_thetas(space: WeightSpace, random: CounterRandom, networks: Tensor, scale: Tensor) -> Tensor:
    r"""He-initialised networks, scaled.

    .. math:: w \sim \mathcal{N}(0, 2 s^2 / \text{fan-in}), \quad b = 0

    Args:
        space: The weight space.
        random: Source of randomness.
        networks: Numbers of the networks ``[B]``.
        scale: Factor :math:`s` of each network ``[B]``.

    Returns:
        Float64 tensor ``[B, P]``.
    """
    thetas = random.normal(networks, "initial_weights", (space.num_params,))
    for param in space.params:
        thetas[:, space.slices[param.name]] *= math.sqrt(2 / param.fan_in) if param.role == "weight" else 0
    return thetas * scale[:, None]


def training_examples(random: CounterRandom, networks: Tensor, fraction: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The examples that each network may see: the first ones of its own random order.

    Args:
        random: Source of randomness.
        networks: Numbers of the networks ``[B]``.
        fraction: Fraction of the training set that each may see ``[B]``.
        count: Size of the training set.

    Returns:
        The orders ``[B, count]`` and how many of each are seen ``[B]``, at least one.
    """
    order = random.uniform(networks, "training_order", (count,)).argsort(dim=1, stable=True)
    return order, (fraction.to(order.device) * count).round().long().clamp(1, count)


def _loss(space: WeightSpace, hidden: Mapping[str, slice]) -> Callable[[dict[str, Tensor], Tensor, Tensor, Tensor | None], Tensor]:
    """Cross entropy of one network on ``images`` and ``labels``, its hidden neurons multiplied by ``masks [m, H]``."""

    def loss(tensors: dict[str, Tensor], images: Tensor, labels: Tensor, masks: Tensor | None) -> Tensor:
        def drop(group: NeuronGroup, values: Tensor) -> Tensor:
            assert masks is not None
            mask = masks[:, hidden[group.name]].repeat_interleave(values.shape[1] // group.size, dim=1)  # flattening widens a neuron
            return values * mask.reshape(*mask.shape, *[1] * (values.ndim - 2))

        return F.cross_entropy(run_network(space, tensors, images, None if masks is None else drop), labels)

    return loss


class _AdamW:
    """AdamW over a population, as :class:`torch.optim.AdamW` but with a learning rate and a weight decay per network, in place."""

    def __init__(self, thetas: Tensor, learning_rate: Tensor, weight_decay: Tensor) -> None:
        self.thetas = thetas
        self.rate, self.kept = learning_rate[:, None], (1 - learning_rate * weight_decay)[:, None]
        self.first, self.second = torch.zeros_like(thetas), torch.zeros_like(thetas)
        self.steps = 0

    def step(self, gradients: Tensor) -> None:
        self.steps += 1
        first, second = (1 - beta**self.steps for beta in _BETAS)
        self.first.lerp_(gradients, 1 - _BETAS[0])
        self.second.mul_(_BETAS[1]).addcmul_(gradients, gradients, value=1 - _BETAS[1])
        divisor = self.second.sqrt().div_(math.sqrt(second)).add_(_EPSILON)
        self.thetas.mul_(self.kept).sub_(self.first.div(divisor).mul_(self.rate / first))


def train_population(
    space: WeightSpace,
    data: ClassificationData,
    networks: Tensor,
    hyperparameters: Mapping[str, Tensor],
    *,
    seed: int = 0,
    batch_size: int = 16,
    advance: Callable[[int], None] = lambda steps: None,
) -> Tensor:
    """Train networks side by side with AdamW and cross entropy, without a loop over networks.

    Everything random is drawn by the network's number, so that up to rounding a network does not depend on its population. Examples are
    drawn with replacement. Dropout removes neurons after their operators; of a convolution it removes whole channels.

    Args:
        space: The weight space.
        data: Examples; their device and dtype are those of the training.
        networks: Numbers of the networks ``[B]``.
        hyperparameters: From :meth:`HyperparameterRanges.sample`, each ``[B]``.
        seed: Seed of the zoo.
        batch_size: Examples per step.
        advance: Called after every step with the number of networks that took it.

    Returns:
        Flat checkpoints ``[B, P]``; networks that diverged hold NaN or infinite weights.
    """
    random, device, dtype = CounterRandom(seed), data.images.device, data.images.dtype
    thetas = initial_thetas(space, random, networks.cpu(), hyperparameters["initial_scale"].cpu()).to(device, dtype)
    steps, networks = hyperparameters["steps"].cpu(), networks.to(device)
    order, count = training_examples(random, networks, hyperparameters["training_fraction"], len(data.images))
    optimizer = _AdamW(thetas, *(hyperparameters[name].to(device, dtype) for name in ("learning_rate", "weight_decay")))
    groups = [group for group in space.groups if group.role == "hidden"]
    stops = list(itertools.accumulate(group.size for group in groups))
    hidden = {group.name: slice(stop - group.size, stop) for group, stop in zip(groups, stops, strict=True)}
    dropout = hyperparameters["dropout"].to(device)[:, None, None]
    kept = (1 / (1 - dropout)).to(dtype)
    has_dropout = bool(groups) and bool((dropout > 0).any())
    gradient = torch.func.vmap(torch.func.grad(_loss(space, hidden)), in_dims=(0, 0, 0, 0 if has_dropout else None), randomness="error")
    for step in range(int(steps.max())):
        positions = (random.uniform(networks, "minibatch", (batch_size,), step=step) * count[:, None]).long()
        chosen = order.gather(1, positions)
        masks = None
        if has_dropout:
            masks = (random.uniform(networks, "dropout", (batch_size, stops[-1]), step=step) >= dropout) * kept
        running = steps > step
        before = None if running.all() else thetas.clone()
        # By parameter, not by flat vector: the gradient of a slice would be padded to the whole vector once per parameter.
        optimizer.step(space.flatten(gradient(space.unflatten(thetas), data.images[chosen], data.labels[chosen], masks)))
        if before is not None:
            thetas.copy_(torch.where(running[:, None].to(device), thetas, before))
        advance(int(running.sum()))
    return thetas


def _scores(space: WeightSpace, thetas: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Correctness and cross entropy of every network on every example, each ``[B, n]``."""
    correct, losses = [], []
    for part, truth in zip(images.split(_IMAGES), labels.split(_IMAGES), strict=True):
        logits = space.evaluate(thetas, part)
        correct.append(logits.argmax(2) == truth)
        losses.append(F.cross_entropy(logits.flatten(0, 1), truth.repeat(len(thetas)), reduction="none").view(len(thetas), -1))
    return torch.cat(correct, 1), torch.cat(losses, 1)


def evaluate_population(
    space: WeightSpace, data: ClassificationData, thetas: Tensor, networks: Tensor, training_fraction: Tensor, *, seed: int = 0
) -> dict[str, Tensor]:
    """Accuracies and cross entropies of trained networks, without dropout: on the examples each was trained on, and on the test set.

    Args:
        space: The weight space.
        data: The examples.
        thetas: Flat checkpoints ``[B, P]``.
        networks: Their numbers ``[B]``.
        training_fraction: Their fractions of the training set ``[B]``.
        seed: Seed of the zoo.

    Returns:
        ``train_accuracy``, ``test_accuracy``, ``train_loss`` and ``test_loss``, each a float64 tensor ``[B]``.
    """
    order, count = training_examples(CounterRandom(seed), networks.to(thetas.device), training_fraction, len(data.images))
    seen = torch.zeros_like(order, dtype=torch.bool)
    seen.scatter_(1, order, torch.arange(order.shape[1], device=order.device) < count[:, None])
    train = _scores(space, thetas, data.images, data.labels)
    test = _scores(space, thetas, data.test_images, data.test_labels)
    on_train = [torch.where(seen, score.double(), 0).sum(1) / count for score in train]
    on_test = [score.double().mean(1) for score in test]
    return {"train_accuracy": on_train[0], "test_accuracy": on_test[0], "train_loss": on_train[1], "test_loss": on_test[1]}


# == Zoos ==


def _digest(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{list(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _checked_data(space: WeightSpace, data: ClassificationData, dtype: torch.dtype, device: torch.device | str) -> ClassificationData:
    inputs, outputs = (next(group for group in space.groups if group.role == role) for role in ("input", "output"))
    for name, images, labels in (("images", data.images, data.labels), ("test_images", data.test_images, data.test_labels)):
        if not images.is_floating_point() or images.ndim < 2 or images.shape[1] != inputs.size or not len(images):
            raise ValueError(
                f"Expected '{name}' to be a floating tensor [n, {inputs.size}, ...] for {space!r} "
                f"(got shape {list(images.shape)}, {images.dtype})."
            )
        if labels.shape != images.shape[:1] or labels.is_floating_point() or not 0 <= int(labels.min()) <= int(labels.max()) < outputs.size:
            raise ValueError(
                f"Expected one integer label from 0 to {outputs.size - 1} for each of the {len(images)} '{name}' "
                f"(got shape {list(labels.shape)}, {labels.dtype}, from {labels.min()} to {labels.max()})."
            )
    return ClassificationData(
        data.images.to(device, dtype), data.labels.to(device).long(), data.test_images.to(device, dtype), data.test_labels.to(device).long()
    )


def _differences(recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    names = [name for name in {**recorded, **wanted} if recorded.get(name) != wanted.get(name)]
    return "; ".join(f"{name}: {recorded.get(name)} there, {wanted.get(name)} now" for name in names)


def _open_working_folder(folder: Path, configuration: Mapping[str, Any]) -> None:
    """Begin or continue an unfinished zoo."""
    with explained_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    file = folder / "configuration.json"
    if not file.exists():
        write_json(file, configuration)
        return
    try:
        recorded = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{str(file)!r} is damaged ({error}). Delete the folder {str(folder)!r} to start over.") from None
    if recorded != configuration:
        raise ValueError(
            f"The unfinished zoo in {str(folder)!r} was begun with another configuration ({_differences(recorded, configuration)}). "
            "Continue it with the same arguments, choose another path, or delete that folder to start over."
        )


def _open_finished(path: Path, configuration: Mapping[str, Any]) -> ZooStore:
    store = ZooStore(path)
    recorded = store.info.get("configuration")
    if recorded is None:
        raise ValueError(f"The zoo {str(path)!r} was not made by make_zoo. Open it with ZooStore(path), or choose another path.")
    if recorded != configuration:
        raise ValueError(
            f"The zoo {str(path)!r} was made with another configuration ({_differences(recorded, configuration)}). "
            "Open it with ZooStore(path), choose another path, or delete that folder to make it anew."
        )
    return store


@contextmanager
def _progress(shown: bool, networks: int, steps: int) -> Iterator[Callable[[int], None]]:
    """A bar over the training steps of all networks, most of the work; it counts networks, in proportion."""
    if not shown:
        yield lambda done: None
        return
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            done = networks * task.completed / steps
            rate = f", {networks * task.speed / steps:.1f}/s" if task.speed else ""
            return Text(f"{done:,.0f}/{networks:,} networks{rate}")

    columns = (TextColumn("training"), BarColumn(), Rate(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, speed_estimate_period=10) as bar:
        task = bar.add_task("training", total=steps)
        yield lambda done: bar.advance(task, done)


class _Stopped(Exception):  # noqa: N818  (a signal to a worker, never seen by a caller)
    pass


def _work_through(
    files: Sequence[Path], train: Callable[[Path, Callable[[int], None]], None], advance: Callable[[int], None], workers: int
) -> None:
    """Train the populations of ``files``, several at a time, each by one thread; after an error or an interrupt all stop at once.

    The operations of one step are too small to be worth dividing among threads: that gains little on an idle machine and, where the threads
    wait for each other on a busy one, makes training many times slower.
    """
    stop = threading.Event()

    def advance_or_stop(steps: int) -> None:
        if stop.is_set():
            raise _Stopped
        advance(steps)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(workers) as pool:
            try:
                for future in as_completed([pool.submit(train, file, advance_or_stop) for file in files]):
                    future.result()
            except BaseException:
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise
    finally:
        torch.set_num_threads(threads)


def make_zoo(
    path: PathLike,
    space: WeightSpace,
    *,
    images: Tensor,
    labels: Tensor,
    test_images: Tensor,
    test_labels: Tensor,
    networks: int,
    seed: int = 0,
    population: int = 64,
    batch_size: int = 16,
    ranges: HyperparameterRanges | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    workers: int | None = None,
    progress: bool = True,
) -> ZooStore:
    """Train a zoo of classifiers of one architecture with varied hyperparameters.

    Networks are trained in populations, all of one side by side. Each finished population is kept in the folder ``PATH.partial``: a run
    that was interrupted continues there when it is started again with the same arguments, and gives the same zoo. A zoo that is finished
    is opened instead of made again.

    The table has the columns ``network`` (its number), ``seed``, the hyperparameters, ``train_accuracy`` and ``train_loss`` on the
    examples that the network was trained on, ``test_accuracy``, ``test_loss`` and ``split`` (60 % train, 10 % val, 30 % test). Networks
    that diverged are left out and counted in ``info["dropped_non_finite"]``.

    Args:
        path: Folder of the zoo.
        space: The weight space of the networks, which return logits.
        images: Training inputs ``[n, n_0, *positions]``.
        labels: Training labels ``[n]``.
        test_images: Test inputs.
        test_labels: Test labels.
        networks: Number of networks to train.
        seed: Seed of everything random.
        population: Networks trained side by side; changes results by rounding only.
        batch_size: Examples per step.
        ranges: Where hyperparameters are drawn from (default: :class:`HyperparameterRanges`).
        dtype: Dtype of training and of the stored weights.
        device: Device of the training.
        workers: Populations trained at a time, each by one thread; no influence on results (default: on the CPU as many as torch uses
            threads, elsewhere one).
        progress: Whether to show a progress bar.

    Returns:
        The zoo.

    Raises:
        OSError: If the folder cannot be written.
        ValueError: If an argument is out of range, examples do not fit the space, a zoo of another configuration lies or was begun at the
            path, or all networks diverged.
    """
    if workers is None:
        workers = torch.get_num_threads() if torch.device(device).type == "cpu" else 1
    for name, value in (("networks", networks), ("population", population), ("batch_size", batch_size), ("workers", workers)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"Expected '{name}' to be a positive integer (got {value!r}).")
    path, ranges = Path(path).resolve(), ranges or HyperparameterRanges()
    data = _checked_data(space, ClassificationData(images, labels, test_images, test_labels), dtype, device)
    configuration: dict[str, Any] = {
        "algorithm": _ALGORITHM,
        "space": f"{space!r} {hashlib.sha256(space.to_json().encode()).hexdigest()[:16]}",
        "data": f"{len(images)} + {len(test_images)} examples {_digest(*(tensor.cpu() for tensor in data))}",
        "networks": networks,
        "seed": seed,
        "population": population,
        "batch_size": batch_size,
        "dtype": str(dtype).removeprefix("torch."),
        **{name: list(values) for name, values in dataclasses.asdict(ranges).items()},
    }
    if os.path.lexists(path):
        return _open_finished(path, configuration)
    folder = path.with_name(f"{path.name}.partial")
    _open_working_folder(folder, configuration)

    random, numbers = CounterRandom(seed), torch.arange(networks)
    hyperparameters = ranges.sample(random, numbers)
    # Networks that take about equally many steps are trained together, so that few of them wait for the others; the longest first, so
    # that all workers have something to do until the end.
    order = hyperparameters["steps"].argsort(descending=True, stable=True)
    members = {folder / f"population-{i:05d}.safetensors": part for i, part in enumerate(order.split(population))}

    def train(file: Path, advance: Callable[[int], None]) -> None:
        chosen = {name: values[members[file]] for name, values in hyperparameters.items()}
        thetas = train_population(space, data, members[file], chosen, seed=seed, batch_size=batch_size, advance=advance)
        metrics = evaluate_population(space, data, thetas, members[file], chosen["training_fraction"], seed=seed)
        tensors = {"thetas": thetas.cpu(), **{name: metrics[name].cpu() for name in _METRICS}}
        write_atomically(file, lambda temporary: save_file(tensors, temporary))

    with _progress(progress, networks, int(hyperparameters["steps"].sum())) as advance:
        finished = [file for file in members if file.exists()]
        advance(sum(int(hyperparameters["steps"][members[file]].sum()) for file in finished))
        _work_through([file for file in members if file not in finished], train, advance, workers)

    parts = [load_file(file) for file in members]
    back = order.argsort()
    trained = {name: torch.cat([part[name] for part in parts])[back] for name in ("thetas", *_METRICS)}
    finite = torch.stack([trained["thetas"].isfinite().all(1), *(trained[name].isfinite() for name in _METRICS)]).all(0)
    if not finite.any():
        raise ValueError(
            f"All {networks} networks diverged. Lower 'learning_rate' or 'initial_scale' of 'ranges', "
            f"and delete the folder {str(folder)!r} to start over."
        )
    table: dict[str, Any] = {"network": numbers, "seed": torch.full_like(numbers, seed), **hyperparameters}
    table |= {name: trained[name] for name in _METRICS}
    splits = _splits(random, numbers)
    store = ZooStore.create(
        path,
        space,
        trained["thetas"][finite],
        {**{name: values[finite] for name, values in table.items()}, "split": [splits[i] for i in numbers[finite].tolist()]},
        info={"made_by": "wsgraph.data.make_zoo", "configuration": configuration, "dropped_non_finite": int((~finite).sum())},
    )
    shutil.rmtree(folder)
    return store


def make_cnn_zoo(
    path: PathLike,
    networks: int = 1000,
    activation: str = "relu",
    *,
    seed: int = 0,
    data: ClassificationData | None = None,
    channels: Sequence[int] = (16, 16, 16),
    stride: int | Sequence[int] = (2, 1, 1),
    **options: Any,
) -> ZooStore:
    """Train a zoo of small CNNs, by default 1-16-16-16-10 on scikit-learn's 8x8 digits; see :func:`make_zoo`.

    Args:
        path: Folder of the zoo.
        networks: Number of networks to train.
        activation: Activation of all networks, which decides their symmetry.
        seed: Seed of everything random but the division into training and test images.
        data: Examples with images ``[n, C, H, W]`` (default: :func:`digits`).
        channels: Output channels of the 3x3 convolutions, padded by 1; global average pooling and a linear layer follow.
        stride: Stride of all or of each convolution.
        **options: Further options of :func:`make_zoo`, such as ``ranges``, ``population`` or ``workers``.

    Returns:
        The zoo.

    Example:
        >>> import tempfile
        >>> ranges = HyperparameterRanges(steps=(5, 10))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = make_cnn_zoo(f"{folder}/zoo", 10, "tanh", ranges=ranges, progress=False)
        ...     print(store.dataset("train"))
        ZooDataset(6 of 10 networks, WeightSpace(1-16-16-16-10, conv 3x3 | ...), target='test_accuracy')
    """
    data = digits() if data is None else data
    classes = int(torch.cat([data.labels, data.test_labels]).max()) + 1
    space = WeightSpace.cnn([data.images.shape[1], *channels], [classes], activation, stride=stride, padding=1)
    return make_zoo(path, space, **data._asdict(), networks=networks, seed=seed, **options)


def make_mlp_zoo(
    path: PathLike,
    networks: int = 1000,
    activation: str = "relu",
    *,
    seed: int = 0,
    data: ClassificationData | None = None,
    hidden: Sequence[int] = (32, 32),
    **options: Any,
) -> ZooStore:
    """Train a zoo of small MLPs, by default 64-32-32-10 on scikit-learn's 8x8 digits; see :func:`make_zoo`.

    Args:
        path: Folder of the zoo.
        networks: Number of networks to train.
        activation: Activation of all networks, which decides their symmetry.
        seed: Seed of everything random but the division into training and test images.
        data: Examples, whose images are flattened (default: :func:`digits`).
        hidden: Widths of the hidden layers.
        **options: Further options of :func:`make_zoo`, such as ``ranges``, ``population`` or ``workers``.

    Returns:
        The zoo.

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
    space = WeightSpace.mlp([data.images.shape[1], *hidden, classes], activation)
    return make_zoo(path, space, **data._asdict(), networks=networks, seed=seed, **options)
