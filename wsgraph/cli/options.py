"""Options of runs on the command line, made of the dataclasses that hold them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from wsgraph.cli.common import explained
from wsgraph.files import read_configuration
from wsgraph.options import KINDS, Option, options_of, read_options, read_pairs, read_value

_DEFAULT = "prediction"

__all__ = ["chosen_options", "read_search_space", "with_run_options"]


def _parameter(name: str, about: Option) -> inspect.Parameter:
    """An option of the command line: not given unless it is written."""
    one: Any = about.kind if isinstance(about.kind, type) and about.form != "pairs" else str
    several = about.form in ("several", "pairs")
    if about.form == "switch":
        annotation: Any = Annotated[bool, typer.Option(about.flag, help=about.help)]
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)
    if about.form == "either":
        annotation = Annotated[bool | None, typer.Option(about.flag, help=about.help)]
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
    annotation = Annotated[list[one] | None if several else one | None, typer.Option(about.flag, help=about.help, min=about.minimum)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def with_run_options(function: Callable[..., None]) -> Callable[..., None]:
    """A command that also takes all options that tasks share, as its argument ``options``, a dictionary of those given.

    Args:
        function: The command, with a parameter ``options``.
    """
    shared = {name: about for kind in KINDS for name, about in options_of(kind).items() if about.flag}
    own = [each for name, each in inspect.signature(function, eval_str=True).parameters.items() if name != "options"]
    made = [_parameter(name, about) for name, about in shared.items()]

    def command(**arguments: Any) -> None:
        options = {}
        for name, about in shared.items():
            value = arguments.pop(name)
            if value is None or value == [] or (value is False and about.form == "switch"):
                continue
            with explained():
                options[name] = about.read(value) if about.form == "pairs" else value
        function(**arguments, options=options)

    parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own] + made
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    command.__name__, command.__doc__ = function.__name__, function.__doc__
    return command


def chosen_options(context: typer.Context, config: Path | None, given: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The task and its options: those of a file, over which those given win.

    Args:
        context: Of the command, whose ``words`` are no options that it knows: the task, and options of its own.
        config: TOML or JSON file with options by name, and perhaps the ``task``.
        given: Options that tasks share.

    Raises:
        ValueError: If the file or an option cannot be read.
    """
    from wsgraph.tasks import task_class

    known = {} if config is None else read_configuration(config)
    named = known.pop("task", None)
    words: list[str] = context.params["words"] or []
    task = words[0] if words and not words[0].startswith("-") else None
    name = task or named or _DEFAULT
    flags = [flag for each in context.command.params for flag in each.opts]
    return name, {**known, **given, **read_options(task_class(name), words[task is not None :], flags)}


def read_search_space(texts: list[str]) -> dict[str, list[Any]]:
    """What a search varies, from texts such as ``learning_rate=1e-4,1e-2,log`` and ``model_options.channels=[16,32]``.

    Args:
        texts: The texts.

    Raises:
        ValueError: If one is written otherwise, or a name comes twice.
    """

    def read(text: str) -> Any:
        value = read_value(text)
        return [read_value(each) for each in text.split(",")] if isinstance(value, str) else value if isinstance(value, list) else [value]

    return read_pairs("--search-space", texts, read)
