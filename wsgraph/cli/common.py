"""What commands share: the application, errors as people read them, options."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = [
    "AsJson",
    "Images",
    "Ray",
    "Seed",
    "Split",
    "Trained",
    "app",
    "explained",
    "given",
    "named_folders",
    "split_named",
    "terminal_width",
    "told_warnings",
    "working",
    "zoo_app",
]

app = typer.Typer(
    name="wsgraph",
    help="Weight-space learning: treat neural networks as data.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
)
zoo_app = typer.Typer(help="Make and inspect zoos of trained networks.", no_args_is_help=True)
app.add_typer(zoo_app, name="zoo")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of text.")]
Split = Annotated[str, typer.Option(help="Which networks: a split of the zoo, or 'all'.")]
Trained = Annotated[Path, typer.Argument(help="Folder of a finished run of `wsgraph train`, or of a model saved from one.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Ray = Annotated[str | None, typer.Option("--ray", help="Train on a Ray cluster: its address, 'auto', or 'local' for one of this machine.")]
Images = Annotated[
    Path | None,
    typer.Option(help="Pictures with labels: a folder of IDX files (MNIST's format) or an .npz file (default: scikit-learn's digits)."),
]


def terminal_width() -> int | None:
    """Characters in a line of the terminal; ``None`` where the output goes to a file or another program."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


@contextmanager
def explained() -> Iterator[None]:
    """Turn errors that a user can mend into one line, and an interrupt into what was kept."""
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError) as error:
        typer.secho(f"Error: {error}", fg=typer.colors.RED, err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt as interrupt:
        typer.secho(str(interrupt) or "Interrupted. Zoos and finished epochs are kept: repeat the command to continue.", err=True)
        raise typer.Exit(130) from None


@contextmanager
def working(what: str) -> Iterator[None]:
    """Show on a terminal that something is under way whose end is not known."""
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield


@contextmanager
def told_warnings() -> Iterator[None]:
    """Print warnings as lines for people, without the source code that gave them."""
    import warnings

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    for text in dict.fromkeys(str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)):
        typer.secho(f"Warning: {text}", fg=typer.colors.YELLOW, err=True)


def split_named(text: str) -> str | None:
    """The split that an option names; ``None`` for all networks."""
    return None if text == "all" else text


def given(**options: Any) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in options.items() if value is not None}


def named_folders(option: str, texts: Sequence[str]) -> dict[str, Path]:
    """Folders by name, from texts such as ``NAME=FOLDER``."""
    pairs = [text.partition("=") for text in texts]
    if bad := [text for text, (name, _, folder) in zip(texts, pairs, strict=True) if not name or not folder]:
        raise ValueError(f"Expected {option} as NAME=FOLDER (got {bad[0]!r}).")
    if len({name for name, _, _ in pairs}) < len(pairs):
        raise ValueError(f"Expected {option} with different names (got {', '.join(name for name, _, _ in pairs)}).")
    return {name: Path(folder) for name, _, folder in pairs}


def _version(show: bool) -> None:
    if show:
        from wsgraph._version import __version__

        typer.echo(__version__)
        raise typer.Exit


def _plug(places: list[str] | None) -> list[str] | None:
    from wsgraph.plugins import add_plugin

    with explained():
        for place in places or ():
            add_plugin(place)
    return places


@app.callback()
def _main(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
    plugin: Annotated[
        list[str] | None,
        typer.Option(callback=_plug, help="Module or .py file that registers models, tasks, suites or operators of yours; repeat it."),
    ] = None,
) -> None:
    pass
