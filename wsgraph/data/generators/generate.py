"""Zoos made here: populations trained on this machine or on many, each kept as soon as it is finished."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wsgraph._cluster import cluster
from wsgraph.data.generators.problem import Advance, Problem
from wsgraph.data.store import PathLike, ZooStore

__all__ = ["generate_zoo"]

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
    with cluster(address) as machines:
        shared = [machines.share(problem) for problem in problems]
        calls = ((shared[population.problem], population.networks, device) for population in populations)
        for number, trained in machines.results(_train_in_ray, calls, gpus=device.startswith("cuda")):
            keep(populations[number], *trained)
            advance(populations[number].steps)


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
        ConnectionError: If there is no Ray cluster at the address.
        ImportError: If Ray is asked for and not installed.
        OSError: If the folder cannot be written.
        ValueError: If an argument is out of range, a zoo of another configuration lies at the path, or all networks diverged.

    Example:
        >>> import tempfile
        >>> from wsgraph import WeightSpace
        >>> from wsgraph.data import Classifiers, HyperparameterRanges, digits
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
