"""What the readers of public zoos share: where files lie, when they are fetched, and how they become a zoo once."""

from __future__ import annotations

import hashlib
import json
import lzma
import operator
import os
import shutil
import tarfile
import time
import zipfile
import zlib
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import filelock
from torch import Tensor
from torch_geometric.data import download_url

from wsgraph.data.columns import checked_columns
from wsgraph.data.dataset import ZooDataset
from wsgraph.data.mapped import ArrayRows
from wsgraph.data.store import ZooStore
from wsgraph.data.transforms import WeightTransform
from wsgraph.files import explained_errors
from wsgraph.space import ParameterGraph, WeightSpace

__all__ = ["Archive", "PublicZoo", "integers", "read_splits", "splits_file", "tracked"]

_BLOCK = 4096
_PATIENCE = 2.0
# Raised whenever a reader would make another zoo of the same files.
_VERSION = 1
_UNPACKING = ".unpacking"

Item = TypeVar("Item")


class Archive(NamedTuple):
    """A file to fetch: its stable public address, and its SHA-256 where it is known."""

    url: str
    checksum: str | None = None


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_splits(file: Path, parts: int) -> dict[str, dict[str, Any]]:
    """What a published JSON file of splits says of every network, by the last components of the path of its file.

    Such files hold for every split a list of paths, or a dict of lists of which one is ``"path"``.

    Args:
        file: The file.
        parts: How many components of a path to keep; those before are folders of the authors' machine.

    Returns:
        For every network its ``"split"`` and what else is listed.

    Raises:
        ValueError: If the file has another form, or lists a network twice.
    """
    listed = []
    try:
        for split, lists in json.loads(file.read_text(encoding="utf-8")).items():
            columns = lists if isinstance(lists, dict) else {"path": lists}
            for values in zip(*columns.values(), strict=True):
                row = dict(zip(columns, values, strict=True))
                listed.append(("/".join(row.pop("path").split("/")[-parts:]), {"split": split, **row}))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{str(file)!r} is no file of splits: expected lists of paths by split ({error}).") from None
    rows: dict[str, dict[str, Any]] = {}
    for end, row in listed:
        if end in rows:
            raise ValueError(f"{str(file)!r} lists {end!r} twice, for {rows[end]['split']!r} and for {row['split']!r}.")
        rows[end] = row
    return rows


def splits_file(path: str | os.PathLike[str] | None, advice: str = "") -> tuple[Path | None, str | None]:
    """A file of splits with its SHA-256, because its contents matter, wherever it lies; ``None`` twice where none is given.

    Raises:
        FileNotFoundError: If there is no such file, with the advice.
    """
    if path is None:
        return None, None
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no split file {str(path)!r}.{advice}")
    return Path(path), sha256(Path(path))


def integers(name: str, value: int | Sequence[int] | None) -> list[int] | None:
    """An option that is one integer, several, or ``None`` for all, as a sorted list.

    Raises:
        ValueError: If it is something else.

    Example:
        >>> integers("epochs", 3), integers("epochs", range(2)), integers("epochs", None)
        ([3], [0, 1], None)
    """
    if value is None:
        return None
    try:
        chosen = sorted({operator.index(each) for each in (value if isinstance(value, Iterable) else [value])})
    except TypeError:
        chosen = []
    if not chosen:
        raise ValueError(f"Expected '{name}' to be an integer, several, or None for all (got {value!r}).")
    return chosen


def tracked(items: Sequence[Item], what: str) -> Iterator[Item]:
    """The items, with a progress bar and its rate on standard error once working through them has taken two seconds.

    Args:
        items: What is worked through.
        what: What is done, shown in front of the bar.

    Example:
        >>> list(tracked([1, 2, 3], "reading"))
        [1, 2, 3]
    """
    started, done = time.monotonic(), 0
    while done < len(items) and time.monotonic() - started <= _PATIENCE:
        yield items[done]
        done += 1
    if done == len(items):
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:,.0f}/s" if task.speed else "")

    times = TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), Rate(), *times)
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=len(items), completed=done)
        for item in items[done:]:
            yield item
            bar.advance(task)


class PublicZoo(ZooDataset):
    """A zoo that others published, read from its own format once and kept as a :class:`~wsgraph.data.ZooStore`, in PyG's manner.

    ``ROOT/NAME/raw`` holds the files as published, ``ROOT/NAME/processed`` a zoo for every choice of options.

    A subclass names its zoos in :attr:`names`, the files it needs in :meth:`raw_file_names`, and reads them in :meth:`process`.

    Args:
        root: Folder for all files.
        name: One of :attr:`names`.
        split: Name of the split (default: all networks).
        target: Column that becomes ``y``; ``None`` for graphs without one.
        transform: Applied at every access; see :class:`~wsgraph.data.ZooDataset`.
        pre_transform: One of :mod:`wsgraph.data.transforms`, applied once, before the zoo is written.
        force_reload: Whether to read the published files again.
        options: Everything else that :meth:`process` depends on, anything that JSON can hold.

    Raises:
        FileNotFoundError: If files are missing and cannot be fetched; the message says where to get them and where to put them.
        ValueError: If the name or the split is unknown, or a file is damaged.
    """

    names: ClassVar[Mapping[str, str]]
    """What can be read, with a few words each."""
    archives: ClassVar[Mapping[str, Archive]] = {}
    """What can be fetched, by name."""
    where: ClassVar[str]
    """Where people get the files that cannot be fetched, one sentence."""

    def __init__(
        self,
        root: str | os.PathLike[str],
        name: str,
        split: str | None,
        *,
        target: str | None,
        transform: Callable[[ParameterGraph], ParameterGraph] | None,
        pre_transform: WeightTransform | None,
        force_reload: bool,
        options: Mapping[str, Any],
    ) -> None:
        if name not in self.names:
            raise ValueError(f"Expected 'name' to be one of {', '.join(self.names)} (got {name!r}).")
        if pre_transform is not None and not isinstance(pre_transform, WeightTransform):
            raise TypeError(f"Expected 'pre_transform' to be one of wsgraph.data.transforms (got {type(pre_transform).__name__}).")
        self.root, self.name, self.options, self.pre_transform = Path(root).resolve(), name, dict(options), pre_transform
        made_of = {"version": _VERSION, "options": self.options, "pre_transform": None if pre_transform is None else repr(pre_transform)}
        key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:12]
        path = self.processed_dir / key
        if force_reload or not path.exists():
            self._read_once(path, force_reload, {"read_by": f"wsgraph.data.{type(self).__name__}", "name": name, **made_of})
        store = ZooStore(path)
        super().__init__(store, None if split is None else store.split(split), target, transform)

    def _read_once(self, path: Path, force: bool, info: Mapping[str, Any]) -> None:
        with explained_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        # Of several processes, such as those of a distributed training, one reads and the others wait for it.
        with filelock.FileLock(path.with_name(f".{path.name}.lock")):
            if path.exists() and not force:
                return
            for leftover in path.parent.glob(f".{path.name}.*.tmp"):  # of a process that was killed
                shutil.rmtree(leftover, ignore_errors=True)
            self._fetch()
            # What is there is given up only for what was read in full.
            new = path.with_name(f".{path.name}.new.tmp")
            with ZooStore.writing(new, info=info) as store:
                self.process(store)
            shutil.rmtree(path, ignore_errors=True)
            os.rename(new, path)

    @property
    def raw_dir(self) -> Path:
        """Folder of the files as published."""
        return self.root / self.name / "raw"

    @property
    def processed_dir(self) -> Path:
        """Folder of the zoos."""
        return self.root / self.name / "processed"

    @abstractmethod
    def raw_file_names(self) -> list[str]:
        """Files or folders that must lie in :attr:`raw_dir`."""

    @abstractmethod
    def process(self, store: ZooStore) -> None:
        """Read the files in :attr:`raw_dir` and append all networks to an empty zoo."""

    def append(self, store: ZooStore, space: WeightSpace, thetas: Tensor | ArrayRows, table: Mapping[str, Any]) -> None:
        """Append networks to the zoo after ``pre_transform``; without one, rows of a file stay where they are.

        Args:
            store: The zoo.
            space: The weight space of the networks.
            thetas: Flat checkpoints of shape ``[n, P]``, or rows of a ``.npy`` file.
            table: Columns by name.
        """
        if self.pre_transform is None:
            return store.append(space, thetas, table)
        columns, seen = checked_columns(table, len(thetas)), 0
        for rows in thetas.open().blocks(_BLOCK) if isinstance(thetas, ArrayRows) else thetas.split(_BLOCK):
            part, seen = slice(seen, seen + len(rows)), seen + len(rows)
            # Networks that the store will drop are spared the transform, which may not bear them.
            finite = rows.isfinite().all(1)
            changed = self.pre_transform.weights(space, rows[finite])
            rows = rows.to(changed.dtype)
            rows[finite] = changed
            store.append(space, rows, {name: column[part] for name, column in columns.items()})

    @classmethod
    @abstractmethod
    def write_fake(cls, root: str | os.PathLike[str], name: str, *, seed: int = 0, **sizes: Any) -> None:
        """Write a small twin with random networks in the published format, for tests and for trying things out.

        Args:
            root: Folder to write to, to be given to the reader.
            name: One of :attr:`names`.
            seed: Seed of the weights.
            **sizes: How many networks, and the like.

        Raises:
            FileExistsError: If there are files of that name already.
            ValueError: If the name is unknown.
        """

    @classmethod
    def _fake_folder(cls, root: str | os.PathLike[str], name: str) -> Path:
        """The folder of the files of a twin, which are never mixed with real ones."""
        if name not in cls.names:
            raise ValueError(f"Expected 'name' to be one of {', '.join(cls.names)} (got {name!r}).")
        folder = Path(root) / name / "raw"
        if folder.exists():
            raise FileExistsError(f"{str(folder)!r} exists already, and may hold published files. Choose another folder for the twin.")
        folder.mkdir(parents=True)
        return folder

    def _missing(self) -> list[str]:
        return [name for name in self.raw_file_names() if not (self.raw_dir / name).exists()]

    def _fetch(self) -> None:
        if (self._missing() or (self.raw_dir / _UNPACKING).exists()) and self.name in self.archives:
            self.download()
        if missing := self._missing():
            raise FileNotFoundError(
                f"The files of {self.name!r} are not there: {', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''} in "
                f"{str(self.raw_dir)!r}. {self.where}"
            )

    def download(self) -> None:
        """Fetch and unpack the archive of this zoo.

        Raises:
            FileNotFoundError: If the archive cannot be fetched.
            ValueError: If it is not the published one, by its checksum, or is damaged.
        """
        archive = self.archives[self.name]
        try:
            file = Path(download_url(archive.url, str(self.raw_dir)))
        except OSError as error:
            # What arrived before the connection broke would be taken for the whole archive the next time.
            (self.raw_dir / archive.url.rpartition("/")[2].partition("?")[0]).unlink(missing_ok=True)
            raise FileNotFoundError(f"{archive.url} could not be fetched to {str(self.raw_dir)!r} ({error}). {self.where}") from None
        if archive.checksum is not None and (found := sha256(file)) != archive.checksum:
            file.unlink()
            raise ValueError(
                f"{archive.url} did not give the published file: its SHA-256 is {found}, not {archive.checksum}. "
                f"It was deleted; try again, or put the unpacked files into {str(self.raw_dir)!r}."
            )
        self.unpack(file)

    def unpack(self, file: Path) -> None:
        """Unpack an archive into :attr:`raw_dir`, nothing outside of it, and delete it.

        Raises:
            ValueError: If the archive is damaged.
        """
        # Beside the others at first: a folder that was unpacked in part would pass for the whole.
        folder = self.raw_dir / _UNPACKING
        shutil.rmtree(folder, ignore_errors=True)
        try:
            if file.suffix == ".zip":
                shutil.unpack_archive(file, folder)
            else:
                shutil.unpack_archive(file, folder, filter="data")
        except (shutil.ReadError, tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, OSError) as error:
            advice = "Unless the disk is full, it is damaged: delete it and try again."
            shutil.rmtree(folder, ignore_errors=True)
            raise ValueError(f"Cannot unpack {str(file)!r} ({error}). {advice}") from None
        for entry in folder.iterdir():
            target = self.raw_dir / entry.name
            if target.is_dir():
                shutil.rmtree(target)
            os.replace(entry, target)
        folder.rmdir()
        file.unlink()
