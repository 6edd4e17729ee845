"""What an option is: a field of a dataclass that says how it is given and what it does."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Option", "defaults_of", "option", "options_of", "read_pairs", "read_value"]


def read_value(text: str) -> Any:
    """A value as people write it on a command line: JSON where it is that, else text.

    Args:
        text: The text.

    Returns:
        The value.

    Example:
        >>> read_value("3"), read_value("true"), read_value("[4, 2]"), read_value("relu")
        (3, True, [4, 2], 'relu')
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def read_pairs(flag: str, texts: Sequence[str], kind: Callable[[str], Any] = read_value) -> dict[str, Any]:
    """Values by name, from texts such as ``NAME=VALUE``.

    Args:
        flag: The option that they are given by.
        texts: The texts.
        kind: What makes a value of a text.

    Returns:
        The values by name.

    Raises:
        ValueError: If one is written otherwise, or a name comes twice.

    Example:
        >>> read_pairs("--model-option", ["channels=32", "name=a=b"])
        {'channels': 32, 'name': 'a=b'}
    """
    pairs = [text.partition("=") for text in texts]
    if bad := [text for text, (name, _, value) in zip(texts, pairs, strict=True) if not name or not value]:
        raise ValueError(f"Expected {flag} as NAME=VALUE (got {bad[0]!r}).")
    if len({name for name, _, _ in pairs}) < len(pairs):
        raise ValueError(f"Expected {flag} with different names (got {', '.join(name for name, _, _ in pairs)}).")
    return {name: kind(value) for name, _, value in pairs}


@dataclass(frozen=True)
class Option:
    """What is known of an option beside its name and default.

    Args:
        help: What it does, in a sentence.
        flag: Its name on the command line; empty for one of Python alone.
        form: How the command line reads it: ``"one"`` value, ``"several"`` (repeated), ``"pairs"`` (``NAME=VALUE``,
            repeated), ``"switch"``, ``"either"`` (on or off).
        kind: What makes a value of a text there: a type, or :func:`read_value`.
        minimum: Least value there.
        acts: Whether results depend on it; others say where a run lies and how it is watched.
        searched: Whether runs that differ in it can be compared by their validation loss.
    """

    help: str
    flag: str = ""
    form: str = "one"
    kind: Callable[[str], Any] = str
    minimum: float | None = None
    acts: bool = True
    searched: bool = False

    def read(self, texts: Sequence[str]) -> Any:
        """The value of texts of a command line.

        Args:
            texts: One text, or several.

        Returns:
            The value, or several.

        Raises:
            ValueError: If a text is no value of its kind.
        """
        if self.form == "pairs":
            return read_pairs(self.flag, texts, self.kind)
        try:
            values = [self.kind(text) for text in texts]
        except ValueError:
            kind = getattr(self.kind, "__name__", "text")
            raise ValueError(f"Expected {self.flag} to be of type {kind} (got {', '.join(texts)}).") from None
        if self.minimum is not None and (low := [value for value in values if value < self.minimum]):
            raise ValueError(f"Expected {self.flag} to be at least {self.minimum:g} (got {low[0]}).")
        return values if self.form == "several" else values[-1]


def option(default: Any, help: str, **about: Any) -> Any:
    """A field of a dataclass of options.

    Args:
        default: Its default; ``dataclasses.MISSING`` where it must be given.
        help: What it does.
        **about: Fields of :class:`Option`.

    Returns:
        The field of the dataclass.

    Example:
        >>> @dataclass(frozen=True)
        ... class Mine:
        ...     width: int = option(3, "Width of the head.", flag="--width", kind=int)
        >>> Mine().width, options_of(Mine)["width"].help
        (3, 'Width of the head.')
    """
    return field(default=default, metadata={"option": Option(help, **about)})


def options_of(kind: Any) -> dict[str, Option]:
    """The options among the fields of a dataclass, by name.

    Args:
        kind: A dataclass, or an object of one.

    Returns:
        What is known of each.
    """
    return {each.name: each.metadata["option"] for each in dataclasses.fields(kind) if "option" in each.metadata}


def defaults_of(kind: Any) -> dict[str, Any]:
    """Defaults of the options among the fields of a dataclass, by name.

    Args:
        kind: A dataclass, or an object of one.

    Returns:
        The default of each that has one; others must be given.

    Example:
        >>> @dataclass(frozen=True)
        ... class Mine:
        ...     target: str = option(dataclasses.MISSING, "Column to predict.")
        ...     width: int = option(3, "Width of the head.")
        >>> defaults_of(Mine)
        {'width': 3}
    """
    fields = [each for each in dataclasses.fields(kind) if "option" in each.metadata]
    made = {each.name: each.default_factory() for each in fields if each.default_factory is not dataclasses.MISSING}
    return {**{each.name: each.default for each in fields if each.default is not dataclasses.MISSING}, **made}
