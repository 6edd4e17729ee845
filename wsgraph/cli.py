"""The `wsgraph` command."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

if TYPE_CHECKING:
    from torch import Tensor, nn

    from wsgraph import WeightSpace
    from wsgraph.tasks import Result

__all__ = ["app"]

app = typer.Typer(
    name="wsgraph",
    help="Weight-space learning: treat neural networks as data.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
)
zoo_app = typer.Typer(help="Make and inspect zoos of trained networks.", no_args_is_help=True)
app.add_typer(zoo_app, name="zoo")

_Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
_NewFolder = Annotated[Path, typer.Argument(help="Folder to create.")]
_SomeNetworks = Annotated[int | None, typer.Option(min=1, help="Number of networks to train.")]
_OneSeed = Annotated[int | None, typer.Option(help="Seed of everything random (default: 0).")]

_SHOWN_SPACES = 4
_QUICKSTART_MODELS = ("statnn", "neural_graph", "monomial", "monomial_gnn")


@contextmanager
def _explained() -> Iterator[None]:
    """Turn errors that a user can mend into one line, and an interrupt into what was kept."""
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError) as error:
        typer.secho(f"Error: {error}", fg=typer.colors.RED, err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.secho("Interrupted. Zoos and finished epochs are kept: repeat the command to continue (train: with --resume).", err=True)
        raise typer.Exit(130) from None


def _version(show: bool) -> None:
    if show:
        from wsgraph import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _main(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False) -> None:
    pass


@app.command()
def models() -> None:
    """List the models that tasks and benchmarks can name."""
    from rich.console import Console

    from wsgraph.nn import list_models, model_entry

    console = Console()
    for name in list_models():
        entry = model_entry(name)
        mixed = "; mixed batches" if entry.mixed else ""
        symmetries = " x ".join(entry.symmetries) or "no symmetry"
        console.print(f"[bold]{name}[/bold]  {entry.family}")
        console.print(f"  {', '.join(entry.tasks)}; {symmetries}{mixed}", highlight=False)
        console.print(textwrap.fill(entry.description, console.width - 1, initial_indent="  ", subsequent_indent="  "), highlight=False)


_Checkpoint = Annotated[
    Path, typer.Argument(help="A .safetensors, .pt, .pth, .ckpt or .npz file with a network's weights, or an .onnx file.")
]
_Activations = Annotated[
    str | None,
    typer.Option(help="Without --module: activation of the hidden neurons, such as relu, tanh or 'sin(30)'; relu if not given."),
]
_Module = Annotated[
    str | None,
    typer.Option(
        help="What makes the network, as package:function or file.py:function; without it, the weights must be an MLP or CNN chain."
    ),
]
_Inputs = Annotated[
    list[str] | None, typer.Option("--input", help="Shape of an input of the module, such as 1x3x224x224; repeat it for several.")
]
_Fold = Annotated[bool, typer.Option("--fold-batchnorm", help="Fold batch norms into the layers before them first.")]


@app.command()
def info(
    checkpoint: _Checkpoint,
    activation: _Activations = None,
    module: _Module = None,
    inputs: _Inputs = None,
    fold_batchnorm: _Fold = False,
) -> None:
    """Print the neuron groups, layers, symmetries and parameters of a checkpoint.

    Examples: wsgraph info model.safetensors --activation tanh

    wsgraph info resnet.pth --module torchvision.models:resnet18 --input 1x3x224x224

    wsgraph info model.onnx
    """
    with _explained():
        network = _open_network(checkpoint, activation, module, inputs, fold_batchnorm)
    typer.echo(network.space.summary())
    typer.echo("\n".join(network.space.report().splitlines()[1:]))


@app.command()
def convert(
    checkpoint: _Checkpoint,
    output: Annotated[Path, typer.Argument(help="File to write: .pt (a dict of tensors for torch.load) or .safetensors.")],
    activation: _Activations = None,
    module: _Module = None,
    inputs: _Inputs = None,
    fold_batchnorm: _Fold = False,
) -> None:
    """Write the parameter graph of a checkpoint: x, edge_index, edge_attr and what belongs to every neuron and edge.

    Example: wsgraph convert model.safetensors graph.pt, then torch_geometric.data.Data(**torch.load("graph.pt", weights_only=True))
    """
    from wsgraph.convert.graph_file import save_graph

    with _explained():
        network = _open_network(checkpoint, activation, module, inputs, fold_batchnorm)
        graph = network.space.graph(network.theta)
        save_graph(graph, output)
    typer.echo(f"{graph!r}: {output}")


@app.command()
def check(
    checkpoint: _Checkpoint,
    activation: _Activations = None,
    module: _Module = None,
    inputs: _Inputs = None,
    fold_batchnorm: _Fold = False,
    scale: Annotated[float, typer.Option(min=1, help="Largest factor of a neuron; the smallest is its inverse.")] = 1000.0,
    tolerance: Annotated[float, typer.Option(help="Largest relative difference that passes.")] = 1e-8,
    seed: _Seed = 0,
) -> None:
    """Move a checkpoint by random symmetries and report how much its outputs change: not at all, if the symmetries are its own.

    Example: wsgraph check model.pth --module models.py:make --input 1x3x32x32
    """
    with _explained():
        network = _open_network(checkpoint, activation, module, inputs, fold_batchnorm)
        difference, moved = network.difference(scale, seed)
    typer.echo(f"{network.space!r}")
    typer.echo(f"{100 * moved:.1f} % of the weights moved; largest relative difference of an output: {difference:.1e}")
    if not difference <= tolerance:
        typer.secho(f"Error: the difference is above {tolerance:.0e}: this network does not have these symmetries.", fg="red", err=True)
        raise typer.Exit(1)


class _Network(NamedTuple):
    """A checkpoint with its space, and its module where one was given."""

    space: WeightSpace
    theta: Tensor
    module: nn.Module | None
    inputs: tuple[Tensor, ...]

    def difference(self, scale: float, seed: int) -> tuple[float, float]:
        """Largest relative difference of the outputs under a random group element, and the share of weights that it moves."""
        import torch

        from wsgraph.testing import largest_difference, module_outputs

        generator = torch.Generator().manual_seed(seed)
        g = self.space.sample_symmetry(1, (1 / scale, scale), generator=generator)
        if self.module is None:
            theta = self.theta.double()[None]
            inputs = self.space.example_inputs(8, generator=generator, dtype=torch.float64)
            moved = self.space.act(g, theta)
            before, after = ([self.space.evaluate(weights, inputs)] for weights in (theta, moved))
        else:
            theta, outputs = module_outputs(self.module, self.space, self.inputs)
            moved = self.space.act(g, theta)
            before, after = outputs(theta), outputs(moved)
        return largest_difference(after, before), float((moved != theta).double().mean())


def _open_network(checkpoint: Path, activation: str | None, module: str | None, inputs: list[str] | None, fold_batchnorm: bool) -> _Network:
    import torch

    from wsgraph import from_state_dict, load_checkpoint, load_onnx

    if checkpoint.suffix.lower() == ".onnx":
        if module is not None or activation is not None:
            raise ValueError("--module and --activation are for weights alone; an .onnx file holds the whole network.")
        exported = load_onnx(checkpoint, [_shape(text) for text in inputs or ()])
        return _traced(exported, exported.example_inputs, fold_batchnorm)
    state = load_checkpoint(checkpoint)
    if module is None:
        if inputs or fold_batchnorm:
            raise ValueError("--input and --fold-batchnorm need --module: weights alone do not say how they are used.")
        if activation is None:
            typer.echo(
                "A checkpoint does not name its activation: relu is assumed, which decides the symmetries. Say otherwise with --activation."
            )
        space, theta = from_state_dict(state, activation=activation or "relu")
        return _Network(space, theta, None, ())
    if activation is not None:
        raise ValueError("--activation is for weights without --module; a module has its own.")
    network = _make_module(module)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"The weights of {str(checkpoint)!r} are not those of {module!r}: {error}") from None
    generator = torch.Generator().manual_seed(0)
    arguments = tuple(torch.randn(_shape(text), generator=generator) for text in inputs or ())
    if not arguments:
        raise ValueError("--module needs the shape of its input, such as --input 1x3x224x224.")
    return _traced(network.eval(), arguments, fold_batchnorm)


def _traced(network: nn.Module, arguments: tuple[Tensor, ...], fold_batchnorm: bool) -> _Network:
    from wsgraph import fold_batchnorm as fold
    from wsgraph import trace

    if fold_batchnorm:
        network = fold(network, *arguments)
    space = trace(network, *arguments)
    return _Network(space, space.flatten(network.state_dict()), network, arguments)


def _shape(text: str) -> list[int]:
    try:
        return [int(size) for size in text.split("x")]
    except ValueError:
        raise ValueError(f"Expected --input as sizes joined by x, such as 1x3x224x224 (got {text!r}).") from None


def _make_module(text: str) -> nn.Module:
    import importlib
    import importlib.util
    import sys

    from torch import nn

    place, colon, name = text.rpartition(":")
    if not colon or not place or not name:
        raise ValueError(f"Expected --module as package:function or file.py:function (got {text!r}).")
    try:
        if place.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(place).stem, place)
            assert spec is not None
            assert spec.loader is not None
            found = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(found)
        else:
            sys.path.insert(0, str(Path.cwd()))
            found = importlib.import_module(place)
        made = getattr(found, name)()
    except (ImportError, FileNotFoundError, AttributeError) as error:
        raise ValueError(f"--module {text!r} cannot be used: {error}") from None
    if not isinstance(made, nn.Module):
        raise ValueError(f"Expected {text!r} to return a torch.nn.Module (got {type(made).__name__}).")
    return made


def _named_folders(option: str, texts: Sequence[str]) -> dict[str, Path]:
    pairs = [text.partition("=") for text in texts]
    if bad := [text for text, (name, _, folder) in zip(texts, pairs, strict=True) if not name or not folder]:
        raise ValueError(f"Expected {option} as NAME=FOLDER (got {bad[0]!r}).")
    if len({name for name, _, _ in pairs}) < len(pairs):
        raise ValueError(f"Expected {option} with different names (got {', '.join(name for name, _, _ in pairs)}).")
    return {name: Path(folder) for name, _, folder in pairs}


@app.command()
def train(
    task: Annotated[str, typer.Argument(help="Task to train: generalization, inr_classification or inr_editing.")],
    zoo: Annotated[Path, typer.Option(help="Folder of the zoo.")],
    model: Annotated[str, typer.Option(help="Model to train; `wsgraph models` lists them.")] = "monomial_gnn",
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training networks.")] = 30,
    seed: _Seed = 0,
    scale: Annotated[
        list[float] | None, typer.Option(help="Upper bound of the scales of moved test networks; repeat it (default: as the task).")
    ] = None,
    learning_rate: Annotated[float, typer.Option(help="Largest learning rate of the one-cycle schedule.")] = 3e-3,
    batch_size: Annotated[int, typer.Option(min=1, help="Networks per step.")] = 64,
    output: Annotated[Path | None, typer.Option(help="Folder for checkpoints and logs (default: runs/TASK/ZOO-MODEL-seedSEED).")] = None,
    canonicalize: Annotated[
        list[str] | None, typer.Option(help="Settle scale, phase, sign or order in all networks before they are read; repeat it.")
    ] = None,
    operation: Annotated[
        str | None, typer.Option(help="Of inr_editing: dilate, erode, gradient, sharpen or contrast (default: dilate).")
    ] = None,
    augment_scale: Annotated[
        float | None,
        typer.Option(help="Of generalization: move training networks too, with factors up to this bound, anew in every epoch."),
    ] = None,
    train_size: Annotated[int | None, typer.Option(min=2, help="Number of training networks, chosen by the seed (default: all).")] = None,
    test_zoo: Annotated[
        list[str] | None, typer.Option(help="Further zoo whose test networks are scored, as NAME=FOLDER; repeat it.")
    ] = None,
    devices: Annotated[int, typer.Option(min=1, help="Processes that train together, each with its share of every batch.")] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run from its last checkpoint.")] = False,
) -> None:
    """Train a model on a task and print its scores.

    Examples: wsgraph train generalization --zoo my-zoo --model monomial_gnn --epochs 30

    wsgraph train inr_classification --zoo mnist-sirens --canonicalize phase

    wsgraph train generalization --zoo mnist-cnns --test-zoo svhn=svhn-cnns

    torchrun --nproc-per-node 4 -m wsgraph train generalization --zoo my-zoo
    """
    from wsgraph.tasks import run
    from wsgraph.tasks.training import is_first_process

    with _explained():
        for name, value, of in (("operation", operation, "inr_editing"), ("augment-scale", augment_scale, "generalization")):
            if value is not None and task != of:
                raise ValueError(f"--{name} is for {of}, not for {task}.")
        result = run(
            task,
            zoo=zoo,
            model=model,
            epochs=epochs,
            seed=seed,
            **_given(scales=tuple(scale) if scale else None, operation=operation, augment_scale=augment_scale),
            train_size=train_size,
            test_zoos=_named_folders("--test-zoo", test_zoo or ()),
            canonicalize=tuple(canonicalize or ()),
            learning_rate=learning_rate,
            batch_size=batch_size,
            output=output,
            devices=devices,
            resume=resume,
        )
    if is_first_process():
        _print_results([result], f"{task} on {zoo}")
        typer.echo(f"Checkpoints, logs and result.json: {result.folder}")


_Widths = Annotated[
    list[str] | None, typer.Option(help="Widths of the hidden layers, such as 16,16,16; repeat it for several architectures.")
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
_Ray = Annotated[str | None, typer.Option(help="Train on a Ray cluster: its address, 'auto', or 'local' for one of this machine.")]
_SomeActivations = Annotated[
    list[str] | None, typer.Option("--activation", help="Activation, such as relu or tanh; repeat it for several.")
]

_COMMON = ("networks", "seed", "population", "device", "workers", "ray")
_TRAINING = ("activation", "ranges", "checkpoints", "batch_size", *_COMMON)


_Images = Annotated[
    Path | None,
    typer.Option(help="Pictures with labels: a folder of IDX files (MNIST's format) or an .npz file (default: scikit-learn's digits)."),
]


@app.command()
def bench(
    suite: Annotated[
        str,
        typer.Argument(
            help="What to measure: generalization, robustness, train-size, transfer, inr, editing, memory, parameters or invariance."
        ),
    ],
    full: Annotated[bool, typer.Option("--full/--quick", help="Hours, for results to report, or minutes, to see that it runs.")] = False,
    model: Annotated[
        list[str] | None, typer.Option(help="Model to compare, as NAME or NAME:OPTION=VALUE,...; repeat it (default: all).")
    ] = None,
    zoo: Annotated[list[str] | None, typer.Option(help="Your zoo instead of those made here, as NAME=FOLDER; repeat it.")] = None,
    images: _Images = None,
    parameters: Annotated[
        int | None, typer.Option(min=1, help="Bring all models to this number of parameters (default: published widths).")
    ] = None,
    networks: Annotated[
        int | None, typer.Option(min=20, help="Networks in every zoo (default: 200, or 400 of pictures; with --full, 2,000 and 10,000).")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the training networks (default: 6 or, with --full, 20).")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Trainings of every model (default: 2 or, with --full, 3).")] = None,
    folder: Annotated[Path, typer.Option(help="Where zoos and finished cells are kept.")] = Path("wsgraph-bench"),
    output: Annotated[Path | None, typer.Option(help="Where tables and figures go (default: FOLDER/results).")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Trainings at a time (default: one per core).")] = None,
) -> None:
    """Compare models on the papers' tasks: a table (terminal, Markdown, JSON) and figures.

    Every model gets the same data, epochs and search of the learning rate. Zoos and finished trainings are kept: a run that was killed
    continues when the command is repeated.

    Examples: wsgraph bench robustness --quick --model statnn --model monomial_gnn

    wsgraph bench inr --full --images mnist-folder

    wsgraph bench inr --model scalegmn --model scalegmn:bidirectional=true,channels=16

    wsgraph bench generalization --full --zoo cifar10=small-cnn-zoo/processed
    """
    import os
    from dataclasses import replace

    from wsgraph.bench import SIZES, run_suite
    from wsgraph.tasks.training import prepare_folder

    size = SIZES["full" if full else "quick"]
    with _explained():
        run_suite(
            suite,
            size=replace(
                size, **_given(networks=networks, pictures=networks, epochs=epochs, seeds=None if seeds is None else tuple(range(seeds)))
            ),
            folder=prepare_folder(folder),
            output=prepare_folder(output or folder / "results"),
            models=model,
            zoos=_named_folders("--zoo", zoo or ()),
            images=images,
            parameters=parameters,
            workers=workers or os.cpu_count() or 1,
        )
    typer.echo(f"Tables and figures: {output or folder / 'results'}")


@zoo_app.command("make-cnn")
def make_cnn(
    path: _NewFolder,
    networks: _SomeNetworks = None,
    activation: _SomeActivations = None,
    seed: _OneSeed = None,
    images: _Images = None,
    channels: _Widths = None,
    checkpoint: _Checkpoints = None,
    config: _Config = None,
    population: _Population = None,
    device: _Device = None,
    workers: _Workers = None,
    ray: _Ray = None,
) -> None:
    """Train small CNNs with varied hyperparameters: 1000, of 16-16-16 channels, with ReLU, if nothing else is said.

    Every finished population is kept: an interrupted run continues when the command is repeated, and the zoo opens meanwhile.

    Examples: wsgraph zoo make-cnn digits-tanh --networks 2000 --activation tanh

    wsgraph zoo make-cnn mnist --images mnist-folder --channels 16,16,16 --channels 8,8 --checkpoint 0
    """
    from wsgraph.data import make_cnn_zoo

    common = _given(networks=networks, seed=seed, population=population, device=device, workers=workers, ray=ray)
    own = _given(activation=activation, channels=_widths(channels), checkpoints=checkpoint)
    options = _configured(config, ("channels", "stride", *_TRAINING)) | common | own
    _make_zoo(make_cnn_zoo, path, images, options)


@zoo_app.command("make-mlp")
def make_mlp(
    path: _NewFolder,
    networks: _SomeNetworks = None,
    activation: _SomeActivations = None,
    seed: _OneSeed = None,
    images: _Images = None,
    hidden: _Widths = None,
    checkpoint: _Checkpoints = None,
    config: _Config = None,
    population: _Population = None,
    device: _Device = None,
    workers: _Workers = None,
    ray: _Ray = None,
) -> None:
    """Train small MLPs with varied hyperparameters: 1000, with two hidden layers of 32 ReLU neurons, if nothing else is said.

    Example: wsgraph zoo make-mlp digits-mlp --networks 500 --hidden 32,32 --hidden 64
    """
    from wsgraph.data import make_mlp_zoo

    common = _given(networks=networks, seed=seed, population=population, device=device, workers=workers, ray=ray)
    own = _given(activation=activation, hidden=_widths(hidden), checkpoints=checkpoint)
    options = _configured(config, ("hidden", *_TRAINING)) | common | own
    _make_zoo(make_mlp_zoo, path, images, options)


@zoo_app.command("make-inr")
def make_inr(
    path: _NewFolder,
    networks: _SomeNetworks = None,
    seed: _OneSeed = None,
    images: _Images = None,
    convention: Annotated[
        str | None, typer.Option(help="navon (values 0 to 1, column first) or zhou (-1 to 1, row first) (default: navon).")
    ] = None,
    hidden: _Widths = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of Adam for every network (default: 500).")] = None,
    config: _Config = None,
    population: _Population = None,
    device: _Device = None,
    workers: _Workers = None,
    ray: _Ray = None,
) -> None:
    """Fit sinusoidal networks (SIRENs) to pictures: one of 2-32-32-1 to each, if nothing else is said.

    Example: wsgraph zoo make-inr mnist-sirens --images mnist-folder --networks 10000
    """
    from wsgraph.data import make_inr_zoo

    allowed = ("hidden", "omega", "steps", "learning_rate", "pixels", "convention", *_COMMON)
    common = _given(networks=networks, seed=seed, population=population, device=device, workers=workers, ray=ray)
    own = _given(convention=convention, hidden=_widths(hidden), steps=steps)
    options = _configured(config, allowed) | common | own
    _make_zoo(make_inr_zoo, path, images, options)


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _widths(texts: list[str] | None) -> list[list[int]] | list[int] | None:
    if not texts:
        return None
    with _explained():
        try:
            found = [[int(width) for width in text.split(",")] for text in texts]
        except ValueError:
            raise ValueError(f"Expected widths joined by commas, such as 16,16,16 (got {', '.join(texts)}).") from None
    return found if len(found) > 1 else found[0]


def _configured(config: Path | None, allowed: tuple[str, ...]) -> dict[str, Any]:
    from wsgraph.data.generate import read_zoo_configuration

    with _explained():
        return {} if config is None else read_zoo_configuration(config, allowed)


def _make_zoo(make: Any, path: Path, images: Path | None, options: dict[str, Any]) -> None:
    from wsgraph.data import load_images

    with _explained():
        data = None if images is None else load_images(images)
        store = make(path, data=data, **options)
    typer.echo(repr(store))


@zoo_app.command("verify")
def zoo_verify(path: Annotated[Path, typer.Argument(help="Folder of the zoo.")]) -> None:
    """Read all of a zoo and report what is wrong: checksums, shapes, NaN, rows of the table; exit status 1 if anything is."""
    from wsgraph.data import ZooStore

    with _explained():
        store = ZooStore(path)
        problems = store.verify()
    for problem in problems:
        typer.secho(problem, fg=typer.colors.RED, err=True)
    if problems:
        raise typer.Exit(1)
    typer.echo(f"{store!r}: nothing is wrong.")


@zoo_app.command("merge")
def zoo_merge(path: _NewFolder, zoos: Annotated[list[Path], typer.Argument(help="Folders of the zoos to join.")]) -> None:
    """Write the networks of several zoos as one, with the columns that all have and the name of the zoo each comes from.

    Example: wsgraph zoo merge both digits-relu digits-tanh
    """
    from wsgraph.data import ZooStore

    with _explained():
        store = ZooStore.merge(path, [ZooStore(each) for each in zoos])
    typer.echo(repr(store))


@zoo_app.command("info")
def zoo_info(path: Annotated[Path, typer.Argument(help="Folder of the zoo.")]) -> None:
    """Print what a zoo holds: its weight space, splits and columns."""
    import numpy as np
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from wsgraph.data import ZooStore

    with _explained():
        store = ZooStore(path)
        spaces, columns, title = store.spaces, store.table, repr(store)
    typer.echo(title)
    for space in spaces[:_SHOWN_SPACES]:
        typer.echo(space.summary())
    if len(spaces) > _SHOWN_SPACES:
        typer.echo(f"... and {len(spaces) - _SHOWN_SPACES} further weight spaces")
    table = Table("column", "values")
    for name, column in columns.items():
        if column.dtype.kind in "fiu":
            quartiles = np.nanquantile(column, [0, 0.25, 0.5, 0.75, 1])
            table.add_row(escape(name), "min {:.4g}, quartiles {:.4g} {:.4g} {:.4g}, max {:.4g}".format(*quartiles))
        else:
            values, counts = np.unique(column, return_counts=True)
            listed = ", ".join(f"{value} ({count})" for value, count in list(zip(values, counts, strict=True))[:8])
            table.add_row(escape(name), escape(listed) + (", ..." if len(values) > 8 else ""))
    Console().print(table)


@contextmanager
def _half_of_the_threads() -> Iterator[None]:
    """Small models gain little from every core, and lose an order of magnitude when another job takes one of them."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // 2))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@app.command()
def quickstart(
    output: Annotated[Path, typer.Option(help="Folder for the zoo, logs and results.")] = Path("wsgraph-quickstart"),
    networks: Annotated[int, typer.Option(min=50, help="Number of CNNs in the zoo.")] = 800,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs per model.")] = 25,
    seed: _Seed = 0,
) -> None:
    """Predict generalization from weights, end to end and offline, in under five minutes on two cores.

    Trains a zoo of small ReLU CNNs on scikit-learn's digits (kept for the next run), then four models that read their weights. Shows how
    well each ranks unseen networks, as they are and after their neurons were rescaled, which changes no network's function.
    """
    from wsgraph.data import make_cnn_zoo
    from wsgraph.files import write_json
    from wsgraph.plot import robustness_curve, robustness_data
    from wsgraph.tasks import run
    from wsgraph.tasks.training import prepare_folder

    with _explained():
        prepare_folder(output)
        for name in ("quickstart.json", "robustness.png"):  # results of an earlier run must not pass for those of an interrupted one
            (output / name).unlink(missing_ok=True)
        known = ": found, used again" if (output / "zoo-relu").exists() else ""
        typer.secho(f"1/3  A zoo of {networks} ReLU CNNs trained on digits ({output / 'zoo-relu'}){known}", bold=True, err=True)
        store = make_cnn_zoo(output / "zoo-relu", networks, "relu", seed=seed)
        typer.secho(f"2/3  Four models learn to predict their test accuracy, {epochs} epochs each", bold=True, err=True)
        with _half_of_the_threads():
            results = [
                run("generalization", zoo=store, model=name, epochs=epochs, seed=seed, output=output / name) for name in _QUICKSTART_MODELS
            ]
        typer.secho("3/3  Results", bold=True, err=True)
        _print_results(results, f"Kendall's tau on {int(results[0].config['networks']['test'])} test networks, clean and moved by U[1, s]")
        write_json(output / "quickstart.json", {"zoo": store.info, "results": [result.document() for result in results]})
        robustness_curve(robustness_data(results), output / "robustness.png")
    typer.echo(f"Results: {output / 'quickstart.json'}\nFigure:  {output / 'robustness.png'}")


def _print_results(results: list[Result], title: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table

    scales, first = results[0].config["scales"], results[0].metrics
    scores = [name for name in first if f"{name}_scale_{scales[0]:g}" in first]
    # Narrow enough for a terminal of 80 columns, where a table that wraps cannot be read.
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    table.add_column("model", no_wrap=True)
    for head in ("params", "s/epoch", "peak MB", *scores, *(f"s={scale:g}" for scale in scales)):
        table.add_column(head, justify="right", no_wrap=True)
    further = [name for name in first if name.startswith(f"{scores[0]}_on_")]
    for name in further:
        table.add_column(name.removeprefix(f"{scores[0]}_"), justify="right", no_wrap=True)
    for result in results:
        m = result.metrics
        row = [
            f"{m['parameters']:,.0f}",
            f"{m['seconds_per_epoch']:.2f}",
            f"{m['peak_memory_mb']:.1f}",
            *(f"{m[name]:.3f}" for name in [*scores, *(f"{scores[0]}_scale_{scale:g}" for scale in scales), *further]),
        ]
        table.add_row(str(result.config["model"]), *row)
    console = Console()
    console.width = max(console.width, Measurement.get(console, console.options.update(max_width=1000), table).maximum)
    console.print(table)
    meaning = {"tau": "tau: Kendall's tau", "accuracy": "accuracy: share of classes found", "mse": "mse: mean squared error of pixels"}
    typer.echo(
        f"{meaning.get(scores[0], scores[0])} on test networks as they are; s=S: neurons permuted and scaled by U[1, S] or sign-flipped."
    )
