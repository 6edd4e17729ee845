"""Options as they are given: by name in Python, as words of a command line, as plain values in files."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
import os
import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from wsgraph.options.entry import Option, options_of
from wsgraph.options.runs import KINDS

__all__ = [
    "acting_options",
    "command_text",
    "command_words",
    "differing",
    "given_options",
    "named_text",
    "plain_value",
    "read_options",
    "signature_of",
    "written_options",
]

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def given_options(own: type, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Options by what they belong to: those of a task, and those of every kind of :data:`KINDS`.

    Args:
        own: Class of the task.
        options: Options by name.

    Returns:
        One dictionary for the task and one for every kind.

    Raises:
        TypeError: If a name is none of them, with those that are like it.
    """
    names = [list(options_of(kind)) for kind in (own, *KINDS)]
    known = [name for each in names for name in each]
    if unknown := [name for name in options if name not in known]:
        near = difflib.get_close_matches(unknown[0], known, n=2, cutoff=0.5)
        meant = f" Did you mean {' or '.join(map(repr, near))}?" if near else f" There are {', '.join(sorted(known))}."
        raise TypeError(f"The task has no option {unknown[0]!r}.{meant}")
    return [{name: options[name] for name in each if name in options} for each in names]


def signature_of(*kinds: type) -> inspect.Signature:
    """The signature of a function that takes the options of some dataclasses by name.

    Args:
        *kinds: The dataclasses; of two fields of one name, the first counts.

    Returns:
        The signature.
    """
    fields: dict[str, inspect.Parameter] = {}
    for kind in kinds:
        for each in dataclasses.fields(kind):
            if "option" in each.metadata:
                default = inspect.Parameter.empty if each.default is dataclasses.MISSING else each.default
                made = inspect.Parameter(each.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=each.type)
                fields.setdefault(each.name, made)
    return inspect.Signature(list(fields.values()))


def named_text(value: Any) -> str:
    """What an object says of itself, without its address.

    Args:
        value: The object.

    Returns:
        The text.
    """
    return _ADDRESS.sub("", repr(value))


def plain_value(value: Any) -> Any:
    """A value as JSON can hold it: paths and zoos as text; others as they are.

    Args:
        value: The value.

    Returns:
        The same in plain values.
    """
    path = getattr(value, "path", None)
    if isinstance(path, (str, os.PathLike)):
        return os.fspath(path)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {name: plain_value(each) for name, each in value.items()}
    return [plain_value(each) for each in value] if isinstance(value, (tuple, set, frozenset)) else value


def written_options(options: Mapping[str, Any], acting: Collection[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Options that results depend on, as JSON can hold them; and those that it cannot hold, as text.

    Args:
        options: Options by name.
        acting: Names of those that results depend on.

    Returns:
        Both, by name.
    """
    written, unwritten = {}, {}
    for name, value in options.items():
        if name not in acting or value is None or (isinstance(value, (Mapping, Collection)) and not value):
            continue
        plain = plain_value(value)
        try:
            json.dumps(plain, allow_nan=False)
            written[name] = plain
        except (TypeError, ValueError):
            unwritten[name] = named_text(value)
    return written, unwritten


def acting_options(*kinds: type) -> Iterator[str]:
    """Names of the options that results depend on.

    Args:
        *kinds: Dataclasses of options.

    Yields:
        One name after the other.
    """
    for kind in kinds:
        yield from (name for name, about in options_of(kind).items() if about.acts)


def differing(kind: Any, names: Collection[str]) -> dict[str, Any]:
    """Of some options of an object, those that are not at their defaults, as text or plain values.

    Args:
        kind: An object of a dataclass of options.
        names: Which options.

    Returns:
        The options by name.
    """
    defaults = {each.name: each.default for each in dataclasses.fields(kind)}
    found = {name: getattr(kind, name) for name in names if getattr(kind, name) != defaults[name]}
    written, unwritten = written_options(found, found)
    return written | unwritten


def read_options(kind: Any, words: Sequence[str], shared: Collection[str] = ()) -> dict[str, Any]:
    """Options of a dataclass from the words of a command line.

    Args:
        kind: The dataclass.
        words: Words such as ``["--operation", "erode"]``.
        shared: Options that are read elsewhere and may have been meant.

    Returns:
        Options by name.

    Raises:
        ValueError: If an option is unknown, with those like it, or lacks its value.

    Example:
        >>> from wsgraph.options import ReadingOptions
        >>> read_options(ReadingOptions, ["--canonicalize", "scale", "--canonicalize=sign", "--standardize"])
        {'standardize': True, 'canonicalize': ['scale', 'sign']}
    """
    flags = {about.flag: (name, about) for name, about in options_of(kind).items() if about.flag}
    found: dict[str, Any] = {}
    texts: dict[str, list[str]] = {}
    left = list(words)
    while left:
        flag, given, value = left.pop(0).partition("=")
        if flag not in flags:
            near = difflib.get_close_matches(flag, [*flags, *shared], n=1, cutoff=0.75)  # --augment-scale is no typo of --scale
            meant = f" Did you mean {near[0]}?" if near else f" The task has {', '.join(flags) or 'no options of its own'}."
            raise ValueError(f"There is no option {flag}.{meant}")
        name, about = flags[flag]
        if about.form == "switch":
            found[name] = True
            continue
        if not given and not left:
            raise ValueError(f"Expected a value after {flag}: {about.help}")
        texts.setdefault(name, []).append(value if given else left.pop(0))
    for name, values in texts.items():
        about = options_of(kind)[name]
        found[name] = about.read(values)
    return found


def command_words(options: Mapping[str, Any], known: Mapping[str, Option]) -> list[str] | None:
    """The words of a command line that give options; ``None`` where it lacks one.

    Args:
        options: Plain values by name.
        known: What is known of all options.

    Returns:
        The words, or nothing.

    Example:
        >>> from wsgraph.options import known_options
        >>> command_words({"epochs": 3, "canonicalize": ["sign"], "standardize": True}, known_options())
        ['--epochs', '3', '--canonicalize', 'sign', '--standardize']
    """
    words: list[str] = []
    for name, value in options.items():
        about = known.get(name)
        if about is None or not about.flag:
            return None
        if about.form == "switch":
            words += [about.flag] * bool(value)
        elif about.form == "either":
            words.append(about.flag.split("/")[not value])
        elif about.form == "pairs":
            if not all(isinstance(each, (str, int, float, bool, list, tuple)) for each in value.values()):
                return None
            words += [word for key, each in value.items() for word in (about.flag, f"{key}={_word(each)}")]
        else:
            several = value if about.form == "several" and isinstance(value, (list, tuple)) else [value]
            words += [word for each in several for word in (about.flag, _word(each))]
    return words


def _word(value: Any) -> str:
    if isinstance(value, float):
        return short if float(short := f"{value:g}") == value else repr(value)
    return value if isinstance(value, str) else json.dumps(value)


def command_text(call: Mapping[str, Any], known: Mapping[str, Option]) -> str:
    """The command that repeats a call of :func:`wsgraph.tasks.run`, or the call in Python where the command lacks an option.

    Args:
        call: Its ``task``, ``options`` as plain values, ``unwritten`` ones as text, and ``plugins``.
        known: What is known of options, by name.

    Returns:
        A line for a shell.

    Example:
        >>> from wsgraph.options import known_options
        >>> call = {"task": "prediction", "options": {"zoo": "my zoo", "scales": [1, 10]}, "plugins": ["mine.py"]}
        >>> command_text(call, known_options())
        "wsgraph --plugin mine.py train prediction --zoo 'my zoo' --scale 1 --scale 10"
    """
    task, options, plugins = call["task"], call["options"], call.get("plugins") or []
    words = None if call.get("unwritten") else command_words(options, known)
    if words is None:
        return _python(task, options, plugins)
    return shlex.join(["wsgraph", *(word for place in plugins for word in ("--plugin", place)), "train", task, *words])


def _python(task: str, options: Mapping[str, Any], plugins: list[str]) -> str:
    lines = ["from wsgraph.tasks import run"]
    if plugins:
        lines.append("from wsgraph.plugins import add_plugin")
        lines += [f"add_plugin({_literal(place)})" for place in plugins]
    arguments = ", ".join([_literal(task), *(f"{name}={_literal(value)}" for name, value in options.items())])
    return shlex.join(["python", "-c", "; ".join([*lines, f"run({arguments})"])])


def _literal(value: Any) -> str:
    """A value of a JSON file as Python, with quotes that need no escape in a shell."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_literal(name)}: {_literal(each)}" for name, each in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return json.dumps(value) if isinstance(value, str) else repr(value)
