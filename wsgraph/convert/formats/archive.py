"""Files within zip archives, read by name and never larger than the archive can hold."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from wsgraph.convert.errors import CheckpointError

__all__ = ["has_members", "parsed_json", "read_members"]

# Weights hardly compress. What unpacks to more than this, and to many times the archive, is none.
_SMALL = 64 * 2**20
_RATIO = 100


def has_members(path: Path, names: Collection[str]) -> bool:
    """Whether a file is a zip archive with members of all these names.

    Example:
        >>> has_members(Path(__file__), ["data"])
        False
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return set(names) <= set(archive.namelist())
    except (OSError, ValueError, NotImplementedError, OverflowError, zipfile.BadZipFile):
        return False


def read_members(path: Path, *names: str) -> list[bytes]:
    """The bytes of members of a zip archive.

    Args:
        path: The archive.
        *names: Names of the members.

    Raises:
        CheckpointError: If the archive is damaged or encrypted, has no such member or several, or a
            member is far larger than the archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return [_read(archive, path, name) for name in names]
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OverflowError, OSError) as error:
        if isinstance(error, FileNotFoundError | PermissionError):
            raise
        raise CheckpointError(f"{str(path)!r} is damaged or not a zip archive ({error}).") from None


def _read(archive: zipfile.ZipFile, path: Path, name: str) -> bytes:
    found = [entry for entry in archive.infolist() if entry.filename == name]
    if len(found) != 1:
        raise CheckpointError(f"Expected {str(path)!r} to hold one {name!r} (it has {len(found)}).")
    (entry,) = found
    if entry.file_size > max(_SMALL, _RATIO * path.stat().st_size):
        raise CheckpointError(
            f"Refused to read {name!r} of {str(path)!r}: it says to unpack to {entry.file_size:,} "
            "bytes, "
            f"from an archive of {path.stat().st_size:,}. If you trust the file, pack it anew "
            "without compression."
        )
    if entry.flag_bits & 1:
        raise CheckpointError(f"{name!r} of {str(path)!r} is encrypted; unpack it and pack it anew without a password.")
    return archive.read(entry)


def parsed_json(content: bytes, path: Path, name: str) -> Any:
    """The content of a member that was read, as JSON; raises a :class:`CheckpointError` otherwise."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{name!r} of {str(path)!r} is damaged or no JSON ({type(error).__name__}: {error}).") from None
