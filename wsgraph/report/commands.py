"""The command that repeats a run, as it was recorded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wsgraph._labels import plain

__all__ = ["command_of"]


def command_of(document: Mapping[str, Any]) -> str:
    """The command that repeats a run, from its result.

    Args:
        document: What :meth:`wsgraph.tasks.Result.document` returned.

    Returns:
        A line for a shell; empty where it is not known what was called.

    Example:
        >>> command_of({"call": {"command": "wsgraph train prediction --zoo mine"}, "config": {"continued_from": [3]}})
        'wsgraph train prediction --zoo mine  # continued from a run of 3 epochs: first that, then this with --resume'
    """
    call, config = document.get("call"), document.get("config")
    if not isinstance(call, dict) or not isinstance(call.get("command"), str):
        return ""
    config, unwritten = config if isinstance(config, dict) else {}, call.get("unwritten")
    lengthened = config.get("continued_from")
    notes = [f"continued from a run of {plain(lengthened[-1])} epochs: first that, then this with --resume"] if lengthened else []
    if isinstance(unwritten, dict) and unwritten:  # functions and transforms cannot be read back from their text
        notes.append(", ".join(f"{name}={' '.join(str(value).split())}" for name, value in unwritten.items()))
    return call["command"] + (f"  # {'; '.join(notes)}" if notes else "")
