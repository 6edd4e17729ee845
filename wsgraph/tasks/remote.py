"""Training on other machines: zoos go there, runs come back, and no common file system is needed."""

from __future__ import annotations

import json
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsgraph._cluster import Cluster, fetched, files_of, write_files
from wsgraph.data import ZooStore
from wsgraph.files import new_folder, write_json
from wsgraph.plugins import add_plugin
from wsgraph.tasks.task import opened

__all__ = ["Sender", "SentZoo", "keep_run", "received", "returned"]

_NAMING = ("options.json", "result.json")  # files of a run that name its zoos


@dataclass(frozen=True)
class SentZoo:
    """A zoo for calls on other machines.

    Attributes:
        path: Where it lies on the machine that sends it.
        digest: What distinguishes its contents.
        files: Its files, fetched where the machine does not see the path; ``None`` if some of them are of others.
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


class Sender:
    """Sends zoos to a cluster, each once.

    Args:
        machines: The cluster.
    """

    def __init__(self, machines: Cluster) -> None:
        self._machines = machines
        self._sent: dict[Path, SentZoo] = {}

    def send(self, zoo: Any) -> SentZoo:
        """A zoo as calls are given it.

        Args:
            zoo: The zoo or its path.
        """
        store = opened(zoo)
        path = Path(store.path).resolve()
        if path not in self._sent:
            files = None if store.linked_files else self._machines.share(files_of(path))
            self._sent[path] = SentZoo(path, store.digest, files)
        return self._sent[path]


@contextmanager
def received(zoos: Mapping[str, SentZoo], plugins: list[str]) -> Iterator[tuple[Path, dict[str, Path]]]:
    """In a call on another machine: a folder to work in, and zoos by the names under which they were sent.

    Args:
        zoos: The zoos.
        plugins: Modules and files of plugins to know.

    Yields:
        The folder, which is removed afterwards, and paths by name. Runs in the folder name the zoos by where they came from.
    """
    for place in plugins:
        add_plugin(place)
    with tempfile.TemporaryDirectory(prefix="wsgraph-") as temporary:
        folder = Path(temporary) / "work"
        folder.mkdir()
        paths = {name: zoo.received(Path(temporary) / "zoos" / str(number)) for number, (name, zoo) in enumerate(zoos.items())}
        yield folder, paths


def returned(run: Path, zoos: Mapping[str, SentZoo], paths: Mapping[str, Path]) -> dict[str, Any]:
    """The files of a run on another machine, in which zoos are named by where they came from.

    Args:
        run: Folder of the run.
        zoos: The zoos that were sent.
        paths: Where they were received.

    Returns:
        What :func:`keep_run` writes.
    """
    moved = {str(paths[name]): str(zoo.path) for name, zoo in zoos.items() if paths[name] != zoo.path}
    for name in _NAMING if moved else ():
        for file in run.rglob(name):
            write_json(file, _renamed(json.loads(file.read_text(encoding="utf-8")), moved))
    return files_of(run)


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
        files: What :func:`returned` returned there.
    """
    if folder.exists():
        shutil.rmtree(folder)
    with new_folder(folder) as temporary:
        write_files(temporary, files)
