"""Models, tasks, suites and operators of others: found by entry point or by name, and kept beside our own."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import uuid
import warnings
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from wsgraph._suggestions import did_you_mean

__all__ = ["ENTRY_POINTS", "VARIABLE", "Registry", "add_plugin", "import_place", "load_plugins", "named_plugins", "source_of"]

ENTRY_POINTS = "wsgraph.plugins"
"""Group of entry points; each names a module that registers what it adds when it is imported."""

VARIABLE = "WSGRAPH_PLUGINS"
"""Environment variable with further modules or ``.py`` files, separated as in ``PATH``; processes that benchmarks start inherit it."""

Value = TypeVar("Value")

_loaded: set[str] = set()


def import_place(place: str) -> ModuleType:
    """Import a module by its name, or a ``.py`` file by its path.

    Args:
        place: Such as ``package.module`` or ``folder/file.py``. Modules in the working folder are found too.

    Returns:
        The module.

    Raises:
        ImportError: If there is no such module or file.

    Example:
        >>> import_place("math").sqrt(4)
        2.0
    """
    if not place.endswith(".py"):
        if (here := str(Path.cwd())) not in sys.path:
            sys.path.insert(0, here)
        return importlib.import_module(place)
    name = f"{Path(place).stem}_{hashlib.sha256(str(Path(place).resolve()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, place)
    if spec is None or spec.loader is None or not Path(place).exists():
        raise ImportError(f"There is no file {place!r}.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickles look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    return module


def load_plugins() -> None:
    """Import the modules of all entry points and those that the environment variable names, each once.

    A module that fails is named in a warning: it must not take the others with it.
    """
    wanted = {f"{entry.name} = {entry.value}": entry.load for entry in entry_points(group=ENTRY_POINTS)}
    for place in named_plugins():
        wanted[place] = lambda place=place: import_place(place)  # type: ignore[misc]
    for name in [name for name in wanted if name not in _loaded]:
        _loaded.add(name)
        try:
            wanted[name]()
        except Exception as error:
            warnings.warn(f"The plugin {name!r} of wsgraph cannot be loaded: {type(error).__name__}: {error}", stacklevel=2)


def add_plugin(place: str) -> None:
    """Import a plugin now, and in the processes that benchmarks start.

    Args:
        place: A module by its name, or a ``.py`` file by its path.

    Raises:
        ImportError: If there is no such module or file.
    """
    if place not in _loaded:
        import_place(place)
        _loaded.add(place)
    os.environ[VARIABLE] = os.pathsep.join(dict.fromkeys([*named_plugins(), place]))


def named_plugins() -> list[str]:
    """Modules and files of plugins that were named, by :func:`add_plugin` or the environment variable."""
    return [place for place in os.environ.get(VARIABLE, "").split(os.pathsep) if place]


def _origin(value: object) -> object:
    """Where something was defined in a script or notebook; of anything else, an identity of its own."""
    made = getattr(value, "build", value)
    return getattr(made, "__qualname__", "") if getattr(made, "__module__", "") == "__main__" else object()


@functools.cache
def _in_this_session(value: object) -> str:
    return f"defined in a session {uuid.uuid4().hex}"


def source_of(value: Any) -> str | None:
    """What tells versions of a class or function of a plugin apart: a digest of the file that defines it, ``None`` for one of ours.

    Args:
        value: The class or function.

    Returns:
        The digest; of what was defined in a session, that of its own source or, where that is not known, a text that no other has.

    Example:
        >>> source_of(source_of), len(source_of(hashlib.new))
        (None, 16)
    """
    if str(getattr(value, "__module__", "")).partition(".")[0] == "wsgraph":
        return None
    try:
        content = Path(inspect.getfile(value)).read_bytes()
    except (OSError, TypeError):
        try:
            content = inspect.getsource(value).encode()
        except (OSError, TypeError):
            return _in_this_session(value)
    return hashlib.sha256(content).hexdigest()[:16]


class Registry(dict[str, Value]):
    """What can be named: ours, and what plugins add, which are loaded when a name is looked up.

    Args:
        kind: What it holds, in messages.

    Example:
        >>> suites = Registry("suite")
        >>> suites.add("memory", print)
        >>> suites.find("memry")
        Traceback (most recent call last):
        ValueError: Unknown suite 'memry'. Available suites: memory. Did you mean 'memory'?
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def add(self, name: str, value: Value) -> None:
        """Enter a value.

        Args:
            name: Its name.
            value: The value.

        Raises:
            ValueError: If the name is taken.
        """
        # A cell of a notebook may be run again.
        if name in self and _origin(value) != _origin(self[name]):
            raise ValueError(f"A {self.kind} named {name!r} is registered already ({self[name]!r}).")
        self[name] = value

    def find(self, name: str) -> Value:
        """The value of a name.

        Args:
            name: One of :meth:`names`.

        Raises:
            ValueError: If there is none of that name.
        """
        if name not in self:
            load_plugins()
        if name not in self:
            names = self.names()
            raise ValueError(f"Unknown {self.kind} {name!r}. Available {self.kind}s: {', '.join(names)}.{did_you_mean(name, names)}")
        return self[name]

    def names(self) -> list[str]:
        """All names, sorted."""
        load_plugins()
        return sorted(self)
