"""The command that repeats a run, from what `wsgraph.tasks.run` was called with."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from wsgraph._labels import plain

__all__ = ["command_of"]

# Options of tasks that `wsgraph train` has, and how they are written there.
_ONE = {
    name: f"--{name.replace('_', '-')}"
    for name in ("zoo", "model", "epochs", "seed", "learning_rate", "batch_size", "operation", "augment_scale", "train_size")
}
_SEVERAL = {"scales": "--scale", "canonicalize": "--canonicalize"}
_NAMED = {"test_zoos": "--test-zoo"}
_FLAGS = {"standardize": "--standardize"}


def command_of(document: Mapping[str, Any]) -> str:
    """The command that repeats a run, or the call of Python where the command lacks an option.

    Args:
        document: What :meth:`wsgraph.tasks.Result.document` returned.

    Returns:
        A line for a shell; empty where it is not known what was called.

    Example:
        >>> call = {"task": "generalization", "options": {"zoo": "my zoo", "model": "np", "scales": [1, 10]}, "plugins": ["mine.py"]}
        >>> command_of({"call": call, "config": {"epochs": 30, "seed": 0}})
        "wsgraph --plugin mine.py train generalization --zoo 'my zoo' --model np --epochs 30 --seed 0 --scale 1 --scale 10"
    """
    call, config = document.get("call"), document.get("config")
    if not isinstance(call, dict) or not isinstance(call.get("task"), str) or not isinstance(call.get("options"), dict):
        return ""
    config = config if isinstance(config, dict) else {}
    options, plugins = call["options"], [place for place in call.get("plugins") or () if isinstance(place, str)]
    unwritten = call.get("unwritten")
    written = _command(call["task"], options, config, plugins)
    if written is None or unwritten:
        written = _python(call["task"], options, plugins)
    # Functions and transforms cannot be read back from their text.
    left_out = (
        ", ".join(f"{name}={' '.join(str(value).split())}" for name, value in unwritten.items()) if isinstance(unwritten, dict) else ""
    )
    lengthened = config.get("continued_from")
    notes = [f"continued from a run of {plain(lengthened[-1])} epochs: first that, then this with --resume"] if lengthened else []
    notes += [left_out] if left_out else []
    return written + (f"  # {'; '.join(notes)}" if notes else "")


def _command(task: str, options: Mapping[str, Any], config: Mapping[str, Any], plugins: list[str]) -> str | None:
    if set(options) - {*_ONE, *_SEVERAL, *_NAMED, *_FLAGS}:
        return None
    # What the command would choose itself is what a task of somebody else may not.
    given = {name: config[name] for name in ("model", "epochs", "seed", "learning_rate", "batch_size") if name in config} | dict(options)
    words = ["wsgraph", *(word for place in plugins for word in ("--plugin", place)), "train", task]
    words += [word for name, flag in _ONE.items() if name in given for word in (flag, plain(given[name]))]
    for name, flag in _SEVERAL.items():
        values = given.get(name, ())
        words += [word for value in (values if isinstance(values, (list, tuple)) else [values]) for word in (flag, plain(value))]
    words += [flag for name, flag in _FLAGS.items() if given.get(name)]
    for name, flag in _NAMED.items():
        zoos = given.get(name)
        words += [word for key, zoo in (zoos.items() if isinstance(zoos, dict) else ()) for word in (flag, f"{key}={zoo}")]
    return shlex.join(words)


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
