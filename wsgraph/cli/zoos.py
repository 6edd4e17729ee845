"""Commands that make, inspect and move zoos."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from wsgraph._counts import counted
from wsgraph.cli.check_up import print_check_up
from wsgraph.cli.checkpoints import (
    Entry,
    Layout,
    Padding,
    Pooling,
    Prefix,
    Readout,
    Stride,
    geometry_of,
    tell_geometry,
)
from wsgraph.cli.common import AsJson, Images, Ray, given, terminal_width, told_warnings, working, zoo_app
from wsgraph.cli.common import explained as _explained
from wsgraph.cli.modules import spaces_in, spaces_of_modules
from wsgraph.cli.results import print_json

__all__: list[str] = []

_NewFolder = Annotated[Path, typer.Argument(help="Folder to create.")]
_SomeNetworks = Annotated[int | None, typer.Option(min=1, help="Number of networks to train.")]
_OneSeed = Annotated[int | None, typer.Option(help="Seed of everything random (default: 0).")]
_Widths = Annotated[
    list[str] | None, typer.Option(help="Widths of the hidden layers, such as 16,16,16; repeat it for several architectures.")
]
_Channels = Annotated[
    list[str] | None, typer.Option(help="Channels of the convolutions, such as 16,16,16; repeat it for several architectures.")
]
_Architectures = Annotated[
    list[str] | None, typer.Option(help="Architecture: cnn (default), resnet, vit, mixer or a plugin's; repeat it for several.")
]
_Options = Annotated[
    list[str] | None, typer.Option(help="Option of the architecture, NAME=VALUE, such as width=24 or depth=3; repeat it for several.")
]
_Checkpoints = Annotated[
    list[int] | None, typer.Option("--checkpoint", help="Keep the weights after this many steps too (0: initial ones); repeat it.")
]
_Config = Annotated[
    Path | None, typer.Option(help="TOML or JSON file with further options, such as a table 'ranges'; options given here win.")
]
_Population = Annotated[int | None, typer.Option(min=1, help="Networks trained side by side.")]
_Device = Annotated[str | None, typer.Option(help="Device of the training (default: a GPU where there is one).")]
_Workers = Annotated[int | None, typer.Option(min=1, help="Populations trained at a time on the CPU.")]
_SomeActivations = Annotated[
    list[str] | None, typer.Option("--activation", help="Activation, such as relu or tanh; repeat it for several.")
]

_COMMON = ("networks", "seed", "population", "device", "workers", "ray")
_TRAINING = ("activation", "ranges", "checkpoints", "batch_size", *_COMMON)
_SHOWN_SPACES = 4


@contextmanager
def explained() -> Iterator[None]:
    """Errors in one line, and warnings as text without the place in the code that they come
    from."""
    with _explained(), told_warnings():
        yield


@zoo_app.command("make-cnn")
def make_cnn(
    path: _NewFolder,
    networks: _SomeNetworks = None,
    activation: _SomeActivations = None,
    seed: _OneSeed = None,
    images: Images = None,
    architecture: _Architectures = None,
    channels: _Channels = None,
    option: _Options = None,
    checkpoint: _Checkpoints = None,
    config: _Config = None,
    population: _Population = None,
    device: _Device = None,
    workers: _Workers = None,
    ray: Ray = None,
) -> None:
    """Train small classifiers of pictures with varied hyperparameters: 1000 CNNs of 16-16-16 channels, with ReLU, if nothing else is said.

    Other architectures: resnet (with batch normalisation), vit (vision transformers), mixer (MLP-mixers), and those of plugins.

    Every finished population is kept: an interrupted run continues when the command is repeated, and the zoo opens meanwhile.

    Examples: wsgraph zoo make-cnn digits-tanh --networks 2000 --activation tanh

    wsgraph zoo make-cnn mnist --images mnist-folder --channels 16,16,16 --channels 8,8 --checkpoint 0

    wsgraph zoo make-cnn digits-resnet --architecture resnet --channels 8,16 --option depth=2

    wsgraph zoo make-cnn digits-tokens --architecture vit --architecture mixer --option width=16 --option width=24
    """
    from wsgraph.data import make_cnn_zoo

    common = given(networks=networks, seed=seed, population=population, device=device, workers=workers, ray=ray)
    own = given(activation=activation, architecture=architecture, channels=_widths(channels), checkpoints=checkpoint)
    options = _configured(config, ("architecture", *_architecture_options(), *_TRAINING)) | common | _settings(option) | own
    _make_zoo(make_cnn_zoo, path, images, options)


@zoo_app.command("make-mlp")
def make_mlp(
    path: _NewFolder,
    networks: _SomeNetworks = None,
    activation: _SomeActivations = None,
    seed: _OneSeed = None,
    images: Images = None,
    hidden: _Widths = None,
    checkpoint: _Checkpoints = None,
    config: _Config = None,
    population: _Population = None,
    device: _Device = None,
    workers: _Workers = None,
    ray: Ray = None,
) -> None:
    """Train small MLPs with varied hyperparameters: 1000, with two hidden layers of 32 ReLU neurons, if nothing else is said.

    Example: wsgraph zoo make-mlp digits-mlp --networks 500 --hidden 32,32 --hidden 64
    """
    from wsgraph.data import make_mlp_zoo

    common = given(networks=networks, seed=seed, population=population, device=device, workers=workers, ray=ray)
    own = given(activation=activation, hidden=_widths(hidden), checkpoints=checkpoint)
    options = _configured(config, ("hidden", *_TRAINING)) | common | own
    _make_zoo(make_mlp_zoo, path, images, options)


@zoo_app.command("make-inr")
def make_inr(
    path: _NewFolder,
    networks: _SomeNetworks = None,
    seed: _OneSeed = None,
    images: Images = None,
    convention: Annotated[
        str | None, typer.Option(help="navon (values 0 to 1, column first) or zhou (-1 to 1, row first) (default: navon).")
    ] = None,
    hidden: _Widths = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of Adam for every network (default: 500).")] = None,
    config: _Config = None,
    population: _Population = None,
    device: _Device = None,
    workers: _Workers = None,
    ray: Ray = None,
) -> None:
    """Fit sinusoidal networks (SIRENs) to pictures: one of 2-32-32-1 to each, if nothing else is said.

    Example: wsgraph zoo make-inr mnist-sirens --images mnist-folder --networks 10000
    """
    from wsgraph.data import make_inr_zoo

    allowed = ("hidden", "omega", "steps", "learning_rate", "pixels", "convention", *_COMMON)
    common = given(networks=networks, seed=seed, population=population, device=device, workers=workers, ray=ray)
    own = given(convention=convention, hidden=_widths(hidden), steps=steps)
    options = _configured(config, allowed) | common | own
    _make_zoo(make_inr_zoo, path, images, options)


def _widths(texts: list[str] | None) -> list[list[int]] | list[int] | None:
    if not texts:
        return None
    with explained():
        try:
            found = [[int(width) for width in text.split(",")] for text in texts]
        except ValueError:
            raise ValueError(f"Expected widths joined by commas, such as 16,16,16 (got {', '.join(texts)}).") from None
    return found if len(found) > 1 else found[0]


def _settings(texts: list[str] | None) -> dict[str, Any]:
    """Values by name of NAME=VALUE, a list of them where a name is given several times."""
    found: dict[str, list[Any]] = {}
    with explained():
        for text in texts or []:
            name, equals, value = text.partition("=")
            if not (name and equals and value):
                raise ValueError(f"Expected --option as NAME=VALUE (got {text!r}).")
            numbers = [_number_or_text(each) for each in value.split(",")]
            found.setdefault(name, []).append(numbers if len(numbers) > 1 else numbers[0])
    return {name: values if len(values) > 1 else values[0] for name, values in found.items()}


def _number_or_text(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def _architecture_options() -> list[str]:
    from wsgraph.data import architecture_of, list_architectures

    return list(dict.fromkeys(name for each in list_architectures() for name in architecture_of(each).options))


def _configured(config: Path | None, allowed: Sequence[str]) -> dict[str, Any]:
    from wsgraph.data.generators.configuration import read_zoo_configuration

    with explained():
        return {} if config is None else read_zoo_configuration(config, allowed)


def _make_zoo(make: Any, path: Path, images: Path | None, options: dict[str, Any]) -> None:
    from wsgraph.data import load_images

    with explained():
        data = None if images is None else load_images(images)
        store = make(path, data=data, **options)
    typer.echo(repr(store))


@zoo_app.command("verify")
def zoo_verify(path: Annotated[Path, typer.Argument(help="Folder of the zoo.")], as_json: AsJson = False) -> None:
    """Read all of a zoo and report what is not as it was written; exit status 1 if anything is.

    Checksums, rows and names of all files, NaN, the table, weight spaces; a zoo that does not open
    is read too.
    """
    from wsgraph.data import ZooStore, verify_zoo

    with explained(), working("Reading all shards"):
        problems = verify_zoo(path)
    if as_json:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # which the problems say
            try:
                networks = len(ZooStore(path))
            except (ValueError, OSError):
                networks = None
        print_json({"zoo": str(path), "networks": networks, "problems": problems})
        raise typer.Exit(1 if problems else 0)
    for problem in problems:
        typer.secho(problem, fg=typer.colors.RED, err=True)
    if problems:
        raise typer.Exit(1)
    typer.echo(f"{ZooStore(path)!r}: nothing is wrong.")


@zoo_app.command("upgrade")
def zoo_upgrade(path: Annotated[Path, typer.Argument(help="Folder of the zoo.")]) -> None:
    """Record checksums of all files of a zoo that was written by an earlier version, in place;
    weights stay as they are."""
    from wsgraph.data import ZooStore

    with explained():
        store = ZooStore(path)
        with working("Reading all shards"):
            store.upgrade()
    typer.echo(repr(store))


@zoo_app.command("merge")
def zoo_merge(path: _NewFolder, zoos: Annotated[list[Path], typer.Argument(help="Folders of the zoos to join.")]) -> None:
    """Write the networks of several zoos as one, with the columns that all have and the name of the zoo each comes from.

    Example: wsgraph zoo merge both digits-relu digits-tanh
    """
    from wsgraph.data import ZooStore

    with explained():
        store = ZooStore.merge(path, [ZooStore(each) for each in zoos])
    typer.echo(repr(store))


@zoo_app.command("import")
def zoo_import(
    path: _NewFolder,
    source: Annotated[Path, typer.Argument(help="Folder of files of any format that is known, mixed or not, also in folders below.")],
    activation: Annotated[
        str | None,
        typer.Option(help="Activation of networks of which neither their file, a column 'activation' nor a config.json says it."),
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(help="CSV, TSV or JSONL table of the files (default: metadata.jsonl or metadata.csv in the folder, if any)."),
    ] = None,
    file_column: Annotated[str | None, typer.Option(help="Column of the table that names files (default: file_name).")] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out what cannot be imported, list it with the reason and count it.")
    ] = False,
    module: Annotated[
        list[str] | None,
        typer.Option(
            help="What makes the network of state dicts, or several networks, as package:function or file.py:function; repeat it. A state "
            "dict is of the network with its keys and shapes."
        ),
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            help="With --module: shape of its input, such as 1x3x32x32; repeat it for several inputs, or for several networks.",
        ),
    ] = None,
    space: Annotated[
        list[Path] | None,
        typer.Option(help="Weight space of state dicts, a .json file that wsgraph convert wrote; repeat it for several."),
    ] = None,
    prefix: Prefix = None,
    entry: Entry = None,
    stride: Stride = None,
    padding: Padding = None,
    pooling: Pooling = None,
    readout: Readout = None,
    layout: Layout = None,
    seed: Annotated[int, typer.Option(help="Seed of the split, where the table has no column 'split'.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Make a zoo from a folder of networks and a table of what is known about them, or from a
    folder of `wsgraph zoo export`.

    Reads state dicts, ONNX, Keras, Flax, Stable-Baselines3 agents, NNet and what plugins add, mixed
    in one folder; agents become a row for each of their networks. Prints what there is:
    architectures, splits, groups, duplicates, columns, and what was left out.

    Examples: wsgraph zoo import my-zoo checkpoints --activation relu --table results.csv

    wsgraph zoo import my-zoo runs --table sweep.csv --file-column checkpoint

    wsgraph zoo import resnets checkpoints --module models.py:make --input 1x3x32x32

    wsgraph zoo import agents rl-trained-agents --skip-bad
    """
    from wsgraph.data import check_up, import_zoo
    from wsgraph.space import AssumedGeometryWarning

    with explained():
        warnings.simplefilter("ignore", AssumedGeometryWarning)  # said below, with the names of these options
        geometry = geometry_of(stride, padding, pooling, readout, layout)
        spaces = [*spaces_in(space or ()), *spaces_of_modules(module or (), inputs or ())]
        options = {**geometry, **given(file_column=file_column), "skip_bad": skip_bad, "entry": entry}
        store = import_zoo(path, source, activation=activation, space=spaces or None, prefix=prefix, table=table, seed=seed, **options)
    if as_json:
        print_json(check_up(store))
        return
    typer.echo(repr(store))
    tell_geometry(store.spaces)
    print_check_up(check_up(store))


@zoo_app.command("export")
def zoo_export(
    zoo: Annotated[Path, typer.Argument(help="Folder of the zoo.")],
    folder: _NewFolder,
    split: Annotated[str | None, typer.Option(help="Networks of one split (default: all).")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="So many networks at most, the first ones.")] = None,
) -> None:
    """Write the networks of a zoo as safetensors files with a table and a card, as the Hugging Face Hub keeps data sets.

    Example: wsgraph zoo export my-zoo my-zoo-shared --split test --limit 100
    """
    from wsgraph.data import ZooStore, export_zoo

    with explained():
        dataset = ZooStore(zoo).dataset(split, target=None)
        made = export_zoo(dataset if limit is None else dataset[:limit], folder)
    typer.echo(f"{counted(min(len(dataset), limit or len(dataset)), 'network')}: {made}")


@zoo_app.command("info")
def zoo_info(path: Annotated[Path, typer.Argument(help="Folder of the zoo.")], as_json: AsJson = False) -> None:
    """Print what a zoo holds: its weight spaces, splits, groups and columns."""
    from wsgraph.data import ZooStore, check_up

    with explained():
        store = ZooStore(path)
        spaces, found, title = store.spaces, check_up(store), repr(store)
    if as_json:
        about = {**found, "digest": store.digest, "linked_files": [str(file) for file in store.linked_files], "info": store.info}
        print_json(about)
        return
    typer.echo(title)
    for note in found["notes"]:
        typer.secho(note, fg=typer.colors.YELLOW)
    for space in spaces[:_SHOWN_SPACES]:
        typer.echo(space.summary(width=terminal_width()))
    print_check_up(found, whole=True)
