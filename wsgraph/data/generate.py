"""Zoos made here: populations trained on this machine or on many, each kept as soon as it is finished."""

from __future__ import annotations

import itertools
import json
import os
import threading
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wsgraph.data.images import ClassificationData, digits
from wsgraph.data.populations import Advance, Classifiers, HyperparameterRanges, ImageFits, Problem
from wsgraph.data.store import PathLike, ZooStore
from wsgraph.space import Signal, WeightSpace

__all__ = ["generate_zoo", "make_cnn_zoo", "make_inr_zoo", "make_mlp_zoo", "make_zoo", "read_zoo_configuration"]

# Raised whenever the same arguments would give other networks, so that unfinished and finished zoos of both kinds never mix.
_ALGORITHM = 2


@dataclass(frozen=True)
class Population:
    """Networks that are trained side by side: the shard that they become, what they are trained on, and their numbers."""

    shard: str
    problem: int
    networks: Tensor
    steps: int


def _populations(problems: Sequence[Problem], networks: int, size: int) -> list[Population]:
    """Networks dealt out to the problems in turn, then divided."""
    found = []
    for i, problem in enumerate(problems):
        numbers = torch.arange(i, networks, len(problems))
        if not len(numbers):
            continue
        steps = problem.hyperparameters(numbers)["steps"]
        # Networks that take about equally many steps are trained together, so that few of them wait for the others; the longest first, so
        # that all workers have something to do until the end.
        order = steps.argsort(descending=True, stable=True)
        for j, part in enumerate(order.split(size)):
            found.append(Population(f"{i:03d}-{j:06d}", i, numbers[part], int(steps[part].sum())))
    return found


# == What was begun before ==


def _differences(recorded: Mapping[str, Any], wanted: Mapping[str, Any], path: str = "") -> Iterator[str]:
    for name in {**recorded, **wanted}:
        there, now = recorded.get(name), wanted.get(name)
        if isinstance(there, dict) and isinstance(now, dict):
            yield from _differences(there, now, f"{path}{name}.")
        elif there != now:
            yield f"{path}{name}: {there} there, {now} now"


def _open(path: Path, configuration: dict[str, Any]) -> ZooStore:
    """Begin a zoo, or open one that was begun with the same configuration."""
    if not os.path.lexists(path):
        try:
            return ZooStore.begin(path, info={"made_by": "wsgraph.data.generate_zoo", "configuration": configuration})
        except FileExistsError:  # begun by another process a moment ago
            pass
    store = ZooStore(path)
    recorded = store.info.get("configuration")
    if not isinstance(recorded, dict) or store.info.get("made_by") != "wsgraph.data.generate_zoo":
        raise ValueError(f"The zoo {str(path)!r} was not made by a generator. Open it with ZooStore(path), or choose another path.")
    if differences := list(_differences(recorded, configuration)):
        state = "made" if store.finished else "begun"
        raise ValueError(
            f"The zoo {str(path)!r} was {state} with another configuration ({'; '.join(differences)}). "
            "Open it with ZooStore(path), choose another path, or delete that folder to make it anew."
        )
    return store


# == Progress ==


@contextmanager
def _progress(shown: bool, networks: int, steps: int) -> Iterator[Advance]:
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


# == Engines ==

Keep = Callable[[Population, Tensor, dict[str, Any]], None]


class _Stopped(Exception):  # noqa: N818  (a signal to a worker, never seen by a caller)
    pass


def _train_here(
    problems: Sequence[Problem], populations: Sequence[Population], keep: Keep, advance: Advance, *, device: str, workers: int
) -> None:
    """Train several populations at a time, each by one thread; after an error or an interrupt all stop at once.

    The operations of one step are too small to be worth dividing among threads: that gains little on an idle machine and, where the threads
    wait for each other on a busy one, makes training many times slower.
    """
    stop = threading.Event()

    def advance_or_stop(steps: int) -> None:
        if stop.is_set():
            raise _Stopped
        advance(steps)

    def train(population: Population) -> None:
        keep(population, *problems[population.problem].train(population.networks, device=device, advance=advance_or_stop))

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(workers) as pool:
            try:
                for future in as_completed([pool.submit(train, population) for population in populations]):
                    future.result()
            except BaseException:
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise
    finally:
        torch.set_num_threads(threads)


def _train_with_ray(
    problems: Sequence[Problem], populations: Sequence[Population], keep: Keep, advance: Advance, *, device: str, address: str
) -> None:
    """Train every population as a task of Ray; only this process writes, so that machines need no common file system.

    A task whose worker dies is run again by Ray; what it had not returned is written once, when it has.
    """
    try:
        import ray
    except ImportError:
        raise ImportError("Training with Ray needs Ray. Install it with: pip install 'wsgraph[zoo]'") from None
    started = not ray.is_initialized()
    if started:
        ray.init(address=None if address == "local" else address, log_to_driver=False, include_dashboard=False, logging_level="ERROR")
    task = ray.remote(num_cpus=1, num_gpus=1 if device.startswith("cuda") else 0, max_retries=10)(_train_in_ray)
    try:
        shared = [ray.put(problem) for problem in problems]
        waiting = iter(populations)
        running = {}
        for population in itertools.islice(waiting, _IN_FLIGHT):
            running[task.remote(shared[population.problem], population.networks, device)] = population
        while running:
            (done, *_), _ = ray.wait(list(running), num_returns=1)
            population = running.pop(done)
            keep(population, *ray.get(done))
            advance(population.steps)
            for following in itertools.islice(waiting, 1):
                running[task.remote(shared[following.problem], following.networks, device)] = following
    finally:
        if started:
            ray.shutdown()


# Enough for the largest clusters; a bound, because results that are not yet written fill the memory of the machines.
_IN_FLIGHT = 4096


def _train_in_ray(problem: Problem, networks: Tensor, device: str) -> tuple[Tensor, dict[str, Any]]:
    torch.set_num_threads(1)
    return problem.train(networks, device=device, advance=lambda steps: None)


def generate_zoo(
    path: PathLike,
    problems: Sequence[Problem],
    networks: int,
    *,
    population: int = 64,
    device: str | None = None,
    workers: int | None = None,
    ray: str | None = None,
    progress: bool = True,
) -> ZooStore:
    """Train a zoo of networks, population by population.

    Each finished population is a shard of the zoo, which opens at any time. A run that was interrupted, however, continues when it is
    started again with the same arguments, and gives the same zoo. A zoo that is finished is opened instead of made again.

    Args:
        path: Folder of the zoo.
        problems: What networks are trained on, one for every architecture; network ``i`` gets problem ``i`` modulo their number.
        networks: Number of networks to train.
        population: Networks trained side by side; changes results by rounding only.
        device: Device of the training (default: a GPU where there is one).
        workers: Populations trained at a time, each by one thread; no influence on results (default: on the CPU as many as torch uses
            threads, elsewhere one).
        ray: Address of a Ray cluster to train on, ``"auto"`` for the one that this machine belongs to, ``"local"`` for a new one of this
            machine alone (default: without Ray).
        progress: Whether to show a progress bar.

    Returns:
        The finished zoo, open for reading.

    Raises:
        BlockingIOError: If another process is making the same zoo.
        ImportError: If Ray is asked for and not installed.
        OSError: If the folder cannot be written.
        ValueError: If an argument is out of range, a zoo of another configuration lies at the path, or all networks diverged.

    Example:
        >>> import tempfile
        >>> from wsgraph.data import Classifiers
        >>> space = WeightSpace.mlp([64, 8, 10], "tanh")
        >>> data = digits()
        >>> flat = data._replace(images=data.images.flatten(1), test_images=data.test_images.flatten(1))
        >>> problem = Classifiers(space, flat, HyperparameterRanges(steps=(5, 10)), checkpoints=(0, 5))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = generate_zoo(f"{folder}/zoo", [problem], 6, progress=False)
        ...     len(store.dataset().select({"final": True})), len(store.dataset().select({"step": 0}))
        (6, 6)
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"Cannot train on 'device' {device!r}: {str(error).splitlines()[0]}") from None
    if workers is None:
        workers = torch.get_num_threads() if device == "cpu" else 1
    for name, value in (("networks", networks), ("population", population), ("workers", workers)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"Expected '{name}' to be a positive integer (got {value!r}).")
    if bad := [problem.seed for problem in problems if not isinstance(problem.seed, int) or not -(2**63) <= problem.seed < 2**63]:
        raise ValueError(f"Expected 'seed' to be an integer of 64 bits (got {bad[0]!r}).")
    path = Path(path).resolve()
    described = [problem.configuration() for problem in problems]
    configuration: dict[str, Any] = {"algorithm": _ALGORITHM, "networks": networks, "population": population}
    configuration |= described[0] if len(described) == 1 else {"problems": {str(i): each for i, each in enumerate(described)}}
    store = _open(path, json.loads(json.dumps(configuration)))
    if store.finished and not store.missing:
        return store
    with store.lock():
        for leftover in (store.path / "shards").glob(".*tmp*"):  # of a run that was killed; nobody else writes while we hold the lock
            leftover.unlink()
        store.reload()
        every = _populations(problems, networks, population)
        kept = {shard.name for shard in store.shards}
        writing = threading.Lock()

        def keep(finished: Population, thetas: Tensor, table: dict[str, Any]) -> None:
            with writing:
                store.append(problems[finished.problem].space, thetas, table, name=finished.shard)

        with _progress(progress, networks, sum(each.steps for each in every)) as advance:
            advance(sum(each.steps for each in every if each.shard in kept))
            missing = [each for each in every if each.shard not in kept]
            if ray is None:
                _train_here(problems, missing, keep, advance, device=device, workers=workers)
            elif missing:
                _train_with_ray(problems, missing, keep, advance, device=device, address=ray)
        if not len(store):
            raise ValueError(
                f"All {networks} networks diverged. Lower the learning rate or the initial scale, and delete {str(path)!r} to start over."
            )
        store.finish()
    return store


# == Zoos of common kinds ==


def make_zoo(
    path: PathLike,
    space: WeightSpace | Sequence[WeightSpace],
    *,
    images: Tensor,
    labels: Tensor,
    test_images: Tensor,
    test_labels: Tensor,
    networks: int,
    seed: int = 0,
    batch_size: int = 16,
    ranges: HyperparameterRanges | None = None,
    checkpoints: Sequence[int] = (),
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> ZooStore:
    """Train a zoo of classifiers with varied hyperparameters.

    The table has the columns ``network`` (its number), ``seed``, the hyperparameters, ``step`` and ``final`` (whether this is its last
    one), ``train_accuracy`` and ``train_loss`` on the examples that the network was trained on, ``test_accuracy``, ``test_loss`` and
    ``split`` (60 % train, 10 % val, 30 % test, all checkpoints of a network in one). Networks that diverged are left out and counted in
    ``info["dropped_non_finite"]``.

    Args:
        path: Folder of the zoo.
        space: The weight space of the networks, which return logits; of several, each gets an equal share of the networks.
        images: Training inputs ``[n, n_0, *positions]``.
        labels: Training labels ``[n]``.
        test_images: Test inputs.
        test_labels: Test labels.
        networks: Number of networks to train.
        seed: Seed of everything random.
        batch_size: Examples per step.
        ranges: Where hyperparameters are drawn from (default: :class:`HyperparameterRanges`).
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
    spaces = [space] if isinstance(space, WeightSpace) else list(space)
    ranges = ranges or HyperparameterRanges()
    problems = [Classifiers(each, data, ranges, seed, batch_size, tuple(checkpoints), dtype) for each in spaces]
    return generate_zoo(path, problems, networks, **options)


def _choices(value: Any) -> list[Any]:
    """One choice or several: a list of lists, or of texts, holds several."""
    return (
        list(value) if isinstance(value, Sequence) and not isinstance(value, str) and value and not isinstance(value[0], int) else [value]
    )


def make_cnn_zoo(
    path: PathLike,
    networks: int = 1000,
    activation: str | Sequence[str] = "relu",
    *,
    seed: int = 0,
    data: ClassificationData | None = None,
    channels: Sequence[int] | Sequence[Sequence[int]] = (16, 16, 16),
    stride: int | Sequence[int] = (2, 1, 1),
    **options: Any,
) -> ZooStore:
    """Train a zoo of small CNNs, by default 1-16-16-16-10 on scikit-learn's 8x8 digits; see :func:`make_zoo`.

    Args:
        path: Folder of the zoo.
        networks: Number of networks to train.
        activation: Activation of the networks, which decides their symmetry; of several, each gets an equal share.
        seed: Seed of everything random but the division into training and test images.
        data: Examples with images ``[n, C, H, W]`` (default: :func:`digits`).
        channels: Output channels of the 3x3 convolutions, padded by 1; global average pooling and a linear layer follow. Of several such
            lists, each gets an equal share of the networks.
        stride: Stride of all or of each convolution; networks of fewer convolutions take the first.
        **options: Further options of :func:`make_zoo` and :func:`generate_zoo`, such as ``ranges``, ``checkpoints`` or ``workers``.

    Returns:
        The finished zoo, open for reading.

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
    spaces = [
        WeightSpace.cnn(
            [data.images.shape[1], *widths],
            [classes],
            kind,
            stride=stride if isinstance(stride, int) else list(stride)[: len(widths)],
            padding=1,
        )
        for widths, kind in itertools.product(_choices(channels), _choices(activation))
    ]
    return make_zoo(path, spaces, **data._asdict(), networks=networks, seed=seed, **options)


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
        for widths, kind in itertools.product(_choices(hidden), _choices(activation))
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
        for widths in _choices(hidden)
    ]
    total = len(data.images) + len(data.test_images)
    return generate_zoo(path, problems, total if networks is None else networks, **{"population": 32, **options})


def read_zoo_configuration(path: PathLike, allowed: Sequence[str]) -> dict[str, Any]:
    """Options of a zoo from a TOML or JSON file.

    Args:
        path: The file; a table ``ranges`` holds the ranges of :class:`HyperparameterRanges`.
        allowed: Names of the options that it may set.

    Returns:
        Options for :func:`make_cnn_zoo`, :func:`make_mlp_zoo` or :func:`make_inr_zoo`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not TOML or JSON, or sets something else.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     text = 'channels = [[8, 8], [16, 16, 16]]\\n[ranges]\\nsteps = [10, 20]\\n'
        ...     _ = Path(f"{folder}/zoo.toml").write_text(text)
        ...     read_zoo_configuration(f"{folder}/zoo.toml", ["channels", "ranges"])["ranges"].steps
        (10, 20)
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no configuration file {str(path)!r}.")
    try:
        text = path.read_text(encoding="utf-8")
        options: Any = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (json.JSONDecodeError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{str(path)!r} is not {'JSON' if path.suffix == '.json' else 'TOML'} ({error}).") from None
    if not isinstance(options, dict) or (unknown := [name for name in options if name not in allowed]):
        found = ", ".join(map(repr, unknown)) if isinstance(options, dict) else type(options).__name__
        raise ValueError(f"Expected {str(path)!r} to set some of {', '.join(allowed)} (got {found}).")
    if "ranges" in options:
        try:
            options["ranges"] = HyperparameterRanges(**options["ranges"])
        except TypeError as error:
            raise ValueError(f"The table 'ranges' in {str(path)!r} does not fit: {error}.") from None
    return options
