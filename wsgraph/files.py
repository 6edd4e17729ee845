"""Writing files so that nothing is ever half there, and saying clearly why one cannot be written."""

from __future__ import annotations

import json
import os
import shutil
import tomllib
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

__all__ = ["explained_errors", "flush", "new_folder", "prepare_folder", "read_configuration", "write_atomically", "write_json"]


def flush(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on disk.

    Args:
        path: The file or folder.

    Raises:
        OSError: If it cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def explained_errors(path: Path) -> Iterator[None]:
    """Turn a failure to write into a message that says what to do.

    Args:
        path: What is being written, named in the message.

    Yields:
        Nothing; the block does the writing.

    Raises:
        OSError: For any failure of the block to write, of the same kind, with what to do.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if hasattr(error, "explained"):
            raise
        kind = type(error) if isinstance(error, OSError) else OSError
        reason = getattr(error, "strerror", None) or str(error)
        explained = kind(
            f"Cannot write to {str(path)!r} ({reason}). Choose a path in a folder that you may write to, on a disk with space."
        )
        explained.explained = True  # type: ignore[attr-defined]
        raise explained from error


def prepare_folder(folder: str | os.PathLike[str]) -> Path:
    """Create a folder for results, or say clearly why it cannot be written.

    Args:
        folder: The folder.

    Returns:
        Its path.

    Raises:
        OSError: If the folder cannot be created or written.
    """
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"Cannot write to {str(path)!r}, which is a file. Choose a folder, which may be a new one.")
    with explained_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".write-test-{os.getpid()}"
        probe.touch()
        probe.unlink(missing_ok=True)  # another process may have removed it, as what one that was killed has left
    return path


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file, wait until it is on disk, and rename it; on failure nothing is left.

    Args:
        path: Where the file shall be; one that is there is replaced.
        write: Called with the path of the temporary file, which it makes.

    Raises:
        OSError: If the file cannot be written, with what to do.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    with explained_errors(path):
        try:
            write(temporary)
            flush(temporary)
            os.replace(temporary, path)
            flush(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def new_folder(path: Path, advice: str = "Choose another path, or delete it.") -> Iterator[Path]:
    """A folder under a temporary name, which becomes ``path`` when the block ends, and is removed when it fails.

    Args:
        path: Folder to make.
        advice: What to do where it exists.

    Yields:
        Path of the temporary folder.

    Raises:
        FileExistsError: If the path exists.
        OSError: If it cannot be made, with what to do.
    """
    if os.path.lexists(path):
        raise FileExistsError(f"{str(path)!r} exists already. {advice}")
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with explained_errors(path):
            temporary.mkdir(parents=True)
        yield temporary
        if os.path.lexists(path):  # made by somebody else in the meantime
            raise FileExistsError(f"{str(path)!r} exists already. {advice}")
        with explained_errors(path):
            os.rename(temporary, path)
            flush(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_json(path: str | os.PathLike[str], document: Any) -> None:
    """Write a JSON file atomically.

    Args:
        path: Where the file shall be; one that is there is replaced.
        document: Anything that JSON can hold.

    Raises:
        OSError: If the file cannot be written, with what to do.
        TypeError: If JSON cannot hold the document.
    """
    text = json.dumps(document, indent=2) + "\n"
    write_atomically(Path(path), lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_configuration(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Options by name from a TOML or JSON file.

    Args:
        path: The file; JSON if its name ends so.

    Returns:
        The options.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not TOML or JSON, or holds no table.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no configuration file {str(path)!r}.")
    kind = "JSON" if path.suffix == ".json" else "TOML"
    try:
        text = path.read_text(encoding="utf-8")
        options: Any = json.loads(text) if kind == "JSON" else tomllib.loads(text)
    except (json.JSONDecodeError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{str(path)!r} is not {kind} ({error}).") from None
    if not isinstance(options, dict):
        raise ValueError(f"Expected {str(path)!r} to hold options by name (got {type(options).__name__}).")
    return options
