"""Runs trained on a cluster: zoos go there, folders of runs come back, and no common file system is needed."""

from __future__ import annotations

import json
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from wsgraph._cluster import Cluster, fetched, files_of, write_files
from wsgraph.data import ZooStore
from wsgraph.files import new_folder, write_json
from wsgraph.plugins import add_plugin, named_plugins
from wsgraph.tasks.task import opened

__all__ = ["RemoteRuns", "SentZoo", "keep_run", "train_there"]

Train = Callable[..., tuple[Any, Path | None]]
"""Called with a folder to work in, the path of the zoo, those of further ones by name, and more: a result, and perhaps the run's folder."""

_NAMING = ("options.json", "result.json")  # files of a run that name its zoos


@dataclass(frozen=True)
class SentZoo:
    """A zoo for calls on other machines.

    Attributes:
        path: Where it lies on the machine that sends it.
        digest: What distinguishes its contents.
        files: Its files, fetched where a machine does not see the path; ``None`` where it must see it, as its weights lie elsewhere.
    """

    path: Path
    digest: str
    files: Any

    def received(self, folder: Path) -> Path:
        """Where the zoo lies on this machine: the same place where that is seen, else in a folder that it is written to.

        Args:
            folder: The folder.

        Raises:
            ValueError: If its weights lie in files that this machine does not see.
        """
        try:
            if ZooStore(self.path).digest == self.digest:
                return self.path
        except (OSError, ValueError):
            pass
        if self.files is None:
            raise ValueError(
                f"The zoo {str(self.path)!r} links to files that a machine of the cluster does not see: copy them into a zoo with "
                "`wsgraph zoo merge`, or put them where all machines see them."
            )
        write_files(folder / self.path.name, fetched(self.files))
        return folder / self.path.name


class RemoteRuns:
    """Trains runs on a cluster; every zoo is sent once.

    Args:
        machines: The cluster.
        at_a_time: Runs at a time (default: as many as the cluster has room for).
        threads: Threads of each.
    """

    def __init__(self, machines: Cluster, at_a_time: int | None = None, threads: int = 1) -> None:
        self._machines, self.at_a_time, self._threads = machines, at_a_time, threads
        self._sent: dict[Path, SentZoo] = {}

    def results(
        self, train: Train, runs: Iterable[tuple[Mapping[str, Any], tuple[Any, ...]]]
    ) -> Iterator[tuple[int, Any, dict[str, Any] | None]]:
        """Train runs.

        Args:
            train: What trains one, a function of a module.
            runs: For each its zoos by name, the first without one, and further arguments of ``train``.

        Yields:
            Number of every run, what ``train`` returned, and the files of its folder for :func:`keep_run`, in the order in which they end.
        """
        plugins = [str(Path(place).resolve()) if place.endswith(".py") else place for place in named_plugins()]
        calls = (
            (train, {name: self._send(zoo) for name, zoo in zoos.items()}, arguments, plugins, self._threads) for zoos, arguments in runs
        )
        gpus = self._machines.gpus_for_each(self.at_a_time)
        results = self._machines.results(train_there, calls, at_a_time=self.at_a_time, cpus=self._threads, gpus=gpus)
        for number, (result, files) in results:
            yield number, result, files

    def _send(self, zoo: Any) -> SentZoo:
        store = opened(zoo)
        path = Path(store.path).resolve()
        if path not in self._sent:
            seen = self._machines.local or store.linked_files
            self._sent[path] = SentZoo(path, store.digest, None if seen else self._machines.share(files_of(path)))
        return self._sent[path]


def train_there(
    train: Train, zoos: Mapping[str, SentZoo], arguments: tuple[Any, ...], plugins: list[str], threads: int
) -> tuple[Any, dict[str, Any] | None]:
    """Train a run on another machine.

    Args:
        train: What trains it.
        zoos: Its zoos by name, the first without one.
        arguments: Further arguments of ``train``.
        plugins: Modules and files of plugins to know.
        threads: Threads to use.

    Returns:
        What ``train`` returned, and the files of the run, in which zoos are named by where they came from.
    """
    torch.set_num_threads(threads)
    for place in plugins:
        add_plugin(place)
    with tempfile.TemporaryDirectory(prefix="wsgraph-") as temporary:
        work = Path(temporary) / "work"
        work.mkdir()
        paths = {name: zoo.received(Path(temporary) / "zoos" / str(number)) for number, (name, zoo) in enumerate(zoos.items())}
        result, run = train(work, paths[""], {name: path for name, path in paths.items() if name}, *arguments)
        if run is None:
            return result, None
        moved = {str(paths[name]): str(zoo.path) for name, zoo in zoos.items() if paths[name] != zoo.path}
        for file in [file for name in _NAMING for file in run.rglob(name)] if moved else ():
            write_json(file, _renamed(json.loads(file.read_text(encoding="utf-8")), moved))
        return result, files_of(run)


def _renamed(value: Any, moved: Mapping[str, str], name: str = "") -> Any:
    """A document with paths replaced, in commands too."""
    if isinstance(value, dict):
        return {key: _renamed(each, moved, key) for key, each in value.items()}
    if isinstance(value, list):
        return [_renamed(each, moved) for each in value]
    if not isinstance(value, str):
        return value
    if name == "command":
        return shlex.join([_renamed(word, moved) for word in shlex.split(value)])
    for before, after in moved.items():
        value = value.replace(before, after)
    return value


def keep_run(folder: Path, files: Mapping[str, Any]) -> None:
    """Write the files of a run from another machine, all or none; what an interrupted run has left there is removed.

    Args:
        folder: Folder of the run.
        files: What :func:`train_there` returned.
    """
    if folder.exists():
        shutil.rmtree(folder)
    with new_folder(folder) as temporary:
        write_files(temporary, files)
