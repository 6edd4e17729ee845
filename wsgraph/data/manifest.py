"""What a zoo consists of: how it was made, and for every file its rows, size and checksum."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from wsgraph.files import explained_errors, flush, write_atomically

__all__ = [
    "COLUMNS",
    "DOCUMENT",
    "LOG",
    "Manifest",
    "Record",
    "ZooWarning",
    "check_inside",
    "document_text",
    "has_manifest",
    "read_document",
]

DOCUMENT, COLUMNS, LOG = "zoo.json", "columns.safetensors", "manifest.jsonl"
_FORMAT = "wsgraph.ZooStore"
_VERSION = 3
_EARLIER = 2  # without a manifest: still read, not written to
_NAME = re.compile(rf"shards/[A-Za-z0-9_-][\w.-]*\.safetensors|{re.escape(COLUMNS)}|{re.escape(DOCUMENT)}")
_ANNOUNCED, _WRITTEN, _REMOVED = "announced", "written", "removed"


class ZooWarning(UserWarning):
    """Something about a zoo is other than one would think, and work goes on.

    Example:
        >>> import warnings
        >>> warnings.simplefilter("ignore", ZooWarning)  # once it was read
    """


def check_inside(folder: Path, file: Path) -> None:
    """Refuse a file of a zoo that is a link to somewhere else.

    Args:
        folder: The folder of the zoo, without links in its path.
        file: A file in it.

    Raises:
        ValueError: If the file lies outside of the folder.
    """
    if not os.path.islink(file) and not os.path.islink(file.parent):
        return
    real = Path(os.path.realpath(file))
    if not real.is_relative_to(folder):
        raise ValueError(
            f"{str(file)!r} is a link to {str(real)!r}, outside of the zoo, and is not read. Put "
            "the file itself there (`cp -rL` "
            "copies a folder with what its links lead to)."
        )


# == zoo.json ==


def read_document(folder: Path) -> dict[str, Any]:
    """What ``zoo.json`` says: ``version``, ``finished``, ``info`` and what was there when the zoo
    was finished.

    Args:
        folder: The folder of the zoo.

    Returns:
        The document.

    Raises:
        ValueError: If it is damaged, of another version, or a link to somewhere else.
    """
    file = folder / DOCUMENT
    check_inside(folder, file)
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{str(file)!r} is damaged: it is not JSON ({error}). Make the zoo again or restore the file.") from None
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise ValueError(f'{str(file)!r} does not describe a zoo: expected "format": "{_FORMAT}".')
    version = document.get("version")
    if version not in (_EARLIER, _VERSION):
        advice = "update wsgraph to read it" if isinstance(version, int) and version > _VERSION else "make the zoo again"
        raise ValueError(f"{str(file)!r} has format version {version!r}, this wsgraph reads {_VERSION}; {advice}.")
    if not isinstance(document.get("finished"), bool) or not isinstance(document.get("info"), dict):
        raise ValueError(f"{str(file)!r} is damaged: it lacks 'finished' or 'info'. Make the zoo again or restore the file.")
    return document


def has_manifest(document: Mapping[str, Any]) -> bool:
    """Whether a zoo is of the present format, with a manifest."""
    return document["version"] > _EARLIER


def document_text(info: Mapping[str, Any], *, finished: bool, shards: int = 0, networks: int = 0) -> str:
    """The text of ``zoo.json``.

    Args:
        info: How the zoo was made.
        finished: Whether nothing is missing.
        shards: Number of shards when it was finished.
        networks: Number of networks then.

    Returns:
        JSON.
    """
    document = {"format": _FORMAT, "version": _VERSION, "finished": finished, "info": info, "shards": shards, "networks": networks}
    return json.dumps(document, indent=2)


# == The manifest ==


class Record(NamedTuple):
    """A file of a zoo as it was written.

    Attributes:
        file: Path from the folder of the zoo.
        rows: Number of networks, 0 for ``zoo.json``.
        bytes: Size of the file.
        checksum: SHA-256 of the file; of a ``.safetensors`` file that of its header, which holds
            the checksum of the contents, so that it can be compared without reading these.
        columns: Names of the columns in ``columns.safetensors``.
    """

    file: str
    rows: int
    bytes: int
    checksum: str
    columns: tuple[str, ...] = ()

    @classmethod
    def of(cls, file: str, written: Path, rows: int = 0, columns: Iterable[str] = ()) -> Record:
        """The record of a file that lies at the path ``written``, which may be a temporary one."""
        with open(written, "rb", buffering=0) as opened:
            size = os.fstat(opened.fileno()).st_size
            contents = opened.read(8) if file.endswith(".safetensors") else opened.read()
            if file.endswith(".safetensors"):
                contents += opened.read(min(int.from_bytes(contents, "little"), size))
        return cls(file, rows, size, hashlib.sha256(contents).hexdigest(), tuple(columns))

    def is_valid(self) -> bool:
        """Whether the fields are of their types, which nothing guarantees of what a file says."""
        texts = (self.file, self.checksum, *self.columns)
        return all(isinstance(text, str) for text in texts) and all(type(number) is int for number in (self.rows, self.bytes))

    def matches(self, other: Record) -> bool:
        """Whether both are of the same contents, whatever the name."""
        return (self.rows, self.bytes, self.checksum) == (other.rows, other.bytes, other.checksum)


class Manifest:
    """The records of the files of a zoo, ``manifest.jsonl``, a log that several processes append to.

    A file is *announced* before it gets its name, and recorded as *written* when it has it. Whenever
    a process dies, what lies in the folder is what was last written or something announced since:
    everything else did not get there by :class:`ZooStore`.

    Args:
        folder: The folder of the zoo.

    Attributes:
        written: The record of every file that must be there, by its path from the folder.
        unreadable: Numbers of the lines that are no records.

    Raises:
        FileNotFoundError: If there is no manifest.
        ValueError: If it names what cannot be a file of a zoo, or is a link to somewhere else.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reload()

    @classmethod
    def create(cls, folder: Path, records: Iterable[Record]) -> Manifest:
        """Write a manifest of files that are there.

        Args:
            folder: The folder of the zoo.
            records: Their records.

        Returns:
            The manifest.

        Raises:
            OSError: If it cannot be written, with what to do.
        """
        text = "".join(_line(record, _WRITTEN) for record in records)
        write_atomically(folder / LOG, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        return cls(folder)

    def reload(self) -> None:
        """Read again what other processes have added."""
        self.written: dict[str, Record] = {}
        self.unreadable: list[int] = []
        self._announced: dict[str, list[Record]] = {}
        file = self.folder / LOG
        check_inside(self.folder, file)
        if not file.is_file():
            raise FileNotFoundError(
                f"The zoo {str(self.folder)!r} lacks {LOG}, without which nobody can tell what "
                "belongs to it. Restore the file, or make the zoo again."
            )
        for number, entry in enumerate(_entries(file.read_bytes()), 1):
            if entry is None:
                continue
            try:
                state, columns = entry.pop("state"), tuple(entry.pop("columns", ()))
                record = Record(**entry, columns=columns)
                name = record.file
                if state not in (_ANNOUNCED, _WRITTEN, _REMOVED) or not record.is_valid():
                    raise ValueError
            except (ValueError, TypeError, KeyError, AttributeError):  # torn by a failing disk, or edited: its file is then not known
                self.unreadable.append(number)
                continue
            if not _NAME.fullmatch(name):
                raise ValueError(
                    f"{str(file)!r} names {name!r} in line {number}, which is no file of a zoo: it was changed by hand. Restore the file."
                )
            self._note(record, state)

    def _note(self, record: Record, state: str) -> None:
        if state == _ANNOUNCED:
            self._announced.setdefault(record.file, []).append(record)
            return
        self._announced.pop(record.file, None)
        if state == _WRITTEN:
            self.written[record.file] = record
        else:
            self.written.pop(record.file, None)

    def _append(self, records: Iterable[Record], state: str, *, wait: bool) -> None:
        records = list(records)
        text = "".join(_line(record, state) for record in records).encode()
        with explained_errors(self.folder / LOG):
            # One call in append mode: lines of several processes do not mix.
            descriptor = os.open(self.folder / LOG, os.O_WRONLY | os.O_APPEND)
            try:
                if os.write(descriptor, text) < len(text):
                    raise OSError(28, "No space left on device")
                if wait:
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)
        for record in records:
            self._note(record, state)

    def announce(self, record: Record) -> None:
        """Note what a file will be; on disk before this returns.

        Raises:
            OSError: If it cannot be written, with what to do.
        """
        self._append([record], _ANNOUNCED, wait=True)

    def record(self, records: Iterable[Record]) -> None:
        """Note that files have got their names. Should this line be lost with the power, what was
        announced still says what they are.

        Raises:
            OSError: If it cannot be written, with what to do.
        """
        self._append(records, _WRITTEN, wait=False)

    def remove(self, names: Iterable[str]) -> None:
        """Note that files are not expected any more.

        Raises:
            OSError: If it cannot be written, with what to do.
        """
        if removed := [self.written[name] for name in names]:
            self._append(removed, _REMOVED, wait=True)

    def replace(self, name: str, write: Callable[[Path], object], describe: Callable[[Path], Record]) -> None:
        """Write a file of the zoo anew: under a temporary name, then under its own.

        Args:
            name: Path of the file from the folder.
            write: Called with the path of the temporary file, which it makes.
            describe: Called with that path; returns the record.

        Raises:
            OSError: If it cannot be written, with what to do.
        """
        records: list[Record] = []

        def write_and_announce(temporary: Path) -> None:
            write(temporary)
            flush(temporary)
            records.append(describe(temporary))
            self.announce(records[0])

        write_atomically(self.folder / name, write_and_announce)
        self.record(records)

    def possible(self, name: str) -> list[Record]:
        """What a file may be: as last written, or as announced since."""
        return [*([self.written[name]] if name in self.written else []), *self._announced.get(name, ())]

    def knows(self, name: str) -> bool:
        """Whether a file of that name belongs to the zoo."""
        return name in self.written or name in self._announced

    def accepts(self, record: Record) -> bool:
        """Whether a file is what was written or announced under its name."""
        return any(record.matches(each) for each in self.possible(record.file))

    def fault(self, record: Record) -> str | None:
        """Why a file that lies in the zoo is not what belongs there, in a sentence; ``None`` where
        it is."""
        if self.accepts(record):
            return None
        file = str(self.folder / record.file)
        if twins := [name for name, each in self.written.items() if each.matches(record)]:
            return f"{file!r} holds what was written as {twins[0]!r}: files were swapped, copied or renamed. Put each under its own name."
        possible = self.possible(record.file)
        if not possible:
            return f"{file!r} is not in {LOG}: it was not written as a file of this zoo. Take it out of the folder."
        expected = possible[0]
        differences = [
            f"{there:,} {what} instead of {wanted:,}"
            for what, there, wanted in (("networks", record.rows, expected.rows), ("bytes", record.bytes, expected.bytes))
            if there != wanted
        ]
        what = f" ({', '.join(differences)})" if differences else ""
        return (
            f"{file!r} is not what {LOG} records{what}: it was exchanged or changed after it was written, or {LOG} was. Restore the file."
        )


def _entries(text: bytes) -> list[Any]:
    """What every line says: ``None`` where it is empty, text where it is no JSON."""
    lines = text.split(b"\n")
    try:
        # At once, which takes a fraction of the time.
        found: list[Any] = json.loads(b"[" + b",".join(line.strip() or b"null" for line in lines) + b"]")
        if len(found) == len(lines):
            return found
    except ValueError:
        pass
    entries: list[Any] = []
    for line in lines:
        try:
            entries.append(json.loads(line) if line.strip() else None)
        except ValueError:
            entries.append("")
    return entries


def _line(record: Record, state: str) -> str:
    # The line break comes first, so that a line that was not finished, on a full disk, takes no
    # other with it.
    entry = record._asdict()
    if not record.columns:
        del entry["columns"]
    return "\n" + json.dumps({**entry, "state": state})
