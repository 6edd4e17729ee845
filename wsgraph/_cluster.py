"""Calls spread over a Ray cluster, and files that go there and come back."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Cluster", "cluster", "fetched", "files_of", "write_files"]

# Enough for the largest clusters; a bound, because results that are not yet written fill the memory of the machines.
_IN_FLIGHT = 4096
_RETRIES = 10  # of a call whose worker died


class Cluster:
    """A Ray cluster that this process is connected to; see :func:`cluster`.

    Args:
        ray: The module.
        local: Whether it is of this machine alone, so that calls see its files.
    """

    def __init__(self, ray: Any, local: bool) -> None:
        self._ray, self.local = ray, local

    def share(self, value: Any) -> Any:
        """A value that many calls read, sent once to every machine that does.

        Args:
            value: The value.

        Returns:
            What calls are given in its place; within a collection, :func:`fetched` reads it.
        """
        return self._ray.put(value)

    def gpus_for_each(self, at_a_time: int | None = None) -> float:
        """The GPUs of a call, where calls share those of the cluster equally.

        Args:
            at_a_time: Calls at a time (default: one for every processor).

        Returns:
            At most 1; 0 where the cluster has none.
        """
        resources = self._ray.cluster_resources()
        share = resources.get("GPU", 0.0) / max(1.0, at_a_time or resources.get("CPU", 1.0))
        return min(1.0, int(share * 1e4) / 1e4)

    def results(
        self,
        function: Callable[..., Any],
        calls: Iterable[tuple[Any, ...]],
        *,
        at_a_time: int | None = None,
        cpus: int = 1,
        gpus: float = 0,
    ) -> Generator[tuple[int, Any]]:
        """Call a function on the cluster. A call whose worker dies is made again; what still runs when the iterator is closed is ended.

        Args:
            function: The function.
            calls: Arguments of every call.
            at_a_time: Calls at a time (default: as many as the cluster has room for).
            cpus: Processors of each.
            gpus: GPUs of each.

        Yields:
            Number and result of every call, in the order in which they end.

        Raises:
            Exception: What the function raises.
            RuntimeError: If a worker dies again and again.
        """
        remote = self._ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=_RETRIES)(function)
        waiting = iter(enumerate(calls))
        running: dict[Any, int] = {}
        try:
            for number, arguments in itertools.islice(waiting, at_a_time or _IN_FLIGHT):
                running[remote.remote(*arguments)] = number
            while running:
                (done, *_), _ = self._ray.wait(list(running), num_returns=1)
                yield running.pop(done), self._result(done)
                for number, arguments in itertools.islice(waiting, 1):
                    running[remote.remote(*arguments)] = number
        finally:
            for call in running if self._ray.is_initialized() else ():
                self._ray.cancel(call, force=True)

    def _result(self, done: Any) -> Any:
        try:
            return self._ray.get(done)
        except self._ray.exceptions.RayTaskError as error:  # whose text is a traceback
            raise error.cause from None
        except self._ray.exceptions.RayError as error:
            raise RuntimeError(
                f"A worker of the cluster died {_RETRIES + 1} times, most likely for want of memory. What is finished is kept: repeat the "
                f"call to continue, with fewer workers. ({str(error).strip().splitlines()[0]})"
            ) from None


@contextmanager
def cluster(address: str, purpose: str = "Training with Ray") -> Iterator[Cluster]:
    """Connect to a Ray cluster, or use the one that this process is connected to.

    Args:
        address: Its address, ``"auto"`` for the one that this machine belongs to, ``"local"`` for a new one of this machine alone.
        purpose: What it is for, in messages.

    Yields:
        The cluster.

    Raises:
        ImportError: If Ray is not installed.
        ConnectionError: If there is no cluster at the address.
    """
    try:
        import ray
    except ImportError:
        raise ImportError(f"{purpose} needs Ray. Install it with: pip install 'wsgraph[zoo]'") from None
    started = not ray.is_initialized()
    if started:
        options = {"log_to_driver": False, "include_dashboard": False, "logging_level": "ERROR"}
        try:
            ray.init(address=address, **options)
        except (OSError, RuntimeError, ValueError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ConnectionError(
                f"There is no Ray cluster at {address!r} ({reason}). Start one with `ray start --head`, or give 'local' for one of this "
                "machine alone."
            ) from None
    try:
        yield Cluster(ray, started and address == "local")
    finally:
        if started:
            ray.shutdown()


def fetched(reference: Any) -> Any:
    """What :meth:`Cluster.share` was given, in a call on the cluster.

    Args:
        reference: What it returned.

    Returns:
        The value.
    """
    import ray

    return ray.get(reference)


# == Files ==


def files_of(folder: Path) -> dict[str, np.ndarray]:
    """The files of a folder, but for hidden ones, which are locks and what others have not finished.

    Args:
        folder: The folder.

    Returns:
        Bytes by path within the folder.
    """
    paths = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    visible = [path for path in paths if not any(name.startswith(".") for name in path.parts)]
    return {path.as_posix(): np.fromfile(folder / path, np.uint8) for path in visible}


def write_files(folder: Path, files: Mapping[str, np.ndarray]) -> None:
    """Write files that :func:`files_of` has read.

    Args:
        folder: Where to; made where it is missing.
        files: Bytes by path within the folder.
    """
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content.tofile(path)
