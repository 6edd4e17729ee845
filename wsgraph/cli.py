"""The `wsgraph` command."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
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
_Networks = Annotated[int, typer.Option(min=1, help="Number of networks to train.")]
_Activation = Annotated[str, typer.Option(help="Activation of all networks.")]

_QUICKSTART_MODELS = ("statnn", "neural_graph", "monomial", "monomial_gnn")


@contextmanager
def _explained() -> Iterator[None]:
    """Turn errors that a user can mend into one line, and an interrupt into what was kept."""
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
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


@app.command()
def info(
    checkpoint: Annotated[
        Path, typer.Argument(help="A .safetensors, .pt, .pth, .ckpt or .npz file with the weights of an MLP or CNN chain.")
    ],
    activation: Annotated[
        str | None, typer.Option(help="Activation of the hidden neurons, such as relu, tanh or 'sin(30)'; relu if not given.")
    ] = None,
) -> None:
    """Print the neuron groups, layers, symmetries and parameters of a checkpoint.

    Example: wsgraph info model.safetensors --activation tanh
    """
    from wsgraph import from_state_dict, load_checkpoint

    with _explained():
        space, _ = from_state_dict(load_checkpoint(checkpoint), activation=activation or "relu")
    if activation is None:
        typer.echo(
            "A checkpoint does not name its activation: relu is assumed, which decides the symmetries. Say otherwise with --activation."
        )
    typer.echo(space.summary())


@app.command()
def train(
    task: Annotated[str, typer.Argument(help="Task to train, such as generalization.")],
    zoo: Annotated[Path, typer.Option(help="Folder of the zoo.")],
    model: Annotated[str, typer.Option(help="Model to train; `wsgraph models` lists them.")] = "monomial_gnn",
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training networks.")] = 30,
    seed: _Seed = 0,
    scale: Annotated[
        list[float] | None, typer.Option(help="Upper bound of the scales of moved test networks; repeat it [default: 1 10 100 10000].")
    ] = None,
    learning_rate: Annotated[float, typer.Option(help="Largest learning rate of the one-cycle schedule.")] = 3e-3,
    batch_size: Annotated[int, typer.Option(min=1, help="Networks per step.")] = 64,
    output: Annotated[Path | None, typer.Option(help="Folder for checkpoints and logs [default: runs/TASK/ZOO-MODEL-seedSEED].")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run from its last checkpoint.")] = False,
) -> None:
    """Train a model on a task and print its scores.

    Example: wsgraph train generalization --zoo my-zoo --model monomial_gnn --epochs 30
    """
    from wsgraph.tasks import run

    with _explained():
        result = run(
            task,
            zoo=zoo,
            model=model,
            epochs=epochs,
            seed=seed,
            scales=tuple(scale or (1, 10, 100, 10000)),
            learning_rate=learning_rate,
            batch_size=batch_size,
            output=output,
            resume=resume,
        )
    _print_results([result], f"{task} on {zoo}")
    typer.echo(f"Checkpoints, logs and result.json: {result.folder}")


@zoo_app.command("make-cnn")
def make_cnn(
    path: _NewFolder,
    networks: _Networks = 1000,
    activation: _Activation = "relu",
    seed: _Seed = 0,
) -> None:
    """Train small CNNs on scikit-learn's digits with varied hyperparameters; an interrupted run resumes.

    Example: wsgraph zoo make-cnn digits-tanh --networks 2000 --activation tanh
    """
    from wsgraph.data import make_cnn_zoo

    _make_zoo(make_cnn_zoo, path, networks, activation, seed)


@zoo_app.command("make-mlp")
def make_mlp(
    path: _NewFolder,
    networks: _Networks = 1000,
    activation: _Activation = "relu",
    seed: _Seed = 0,
) -> None:
    """Train small MLPs on scikit-learn's digits with varied hyperparameters; an interrupted run resumes."""
    from wsgraph.data import make_mlp_zoo

    _make_zoo(make_mlp_zoo, path, networks, activation, seed)


def _make_zoo(make: Any, path: Path, networks: int, activation: str, seed: int) -> None:
    with _explained():
        store = make(path, networks, activation, seed=seed)
    typer.echo(repr(store))


@zoo_app.command("info")
def zoo_info(path: Annotated[Path, typer.Argument(help="Folder of the zoo.")]) -> None:
    """Print what a zoo holds: its weight space, splits and columns."""
    import numpy as np
    from rich.console import Console
    from rich.table import Table

    from wsgraph.data import ZooStore

    with _explained():
        store = ZooStore(path)
    typer.echo(repr(store))
    typer.echo(store.space.summary())
    table = Table("column", "values")
    for name, column in store.table.items():
        if column.dtype.kind in "fiu":
            quartiles = np.nanquantile(column, [0, 0.25, 0.5, 0.75, 1])
            table.add_row(name, "min {:.4g}, quartiles {:.4g} {:.4g} {:.4g}, max {:.4g}".format(*quartiles))
        else:
            values, counts = np.unique(column, return_counts=True)
            listed = ", ".join(f"{value} ({count})" for value, count in list(zip(values, counts, strict=True))[:8])
            table.add_row(name, listed + (", ..." if len(values) > 8 else ""))
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

    scales = results[0].config["scales"]
    # Narrow enough for a terminal of 80 columns, where a table that wraps cannot be read.
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    table.add_column("model", no_wrap=True)
    for head in ("params", "s/epoch", "peak MB", "tau", "R2", *(f"s={scale:g}" for scale in scales)):
        table.add_column(head, justify="right", no_wrap=True)
    for result in results:
        m = result.metrics
        row = [
            f"{m['parameters']:,.0f}",
            f"{m['seconds_per_epoch']:.2f}",
            f"{m['peak_memory_mb']:.1f}",
            f"{m['tau']:.3f}",
            f"{m['r2']:.3f}",
        ]
        table.add_row(str(result.config["model"]), *row, *(f"{m[f'tau_scale_{scale:g}']:.3f}" for scale in scales))
    console = Console()
    console.width = max(console.width, Measurement.get(console, console.options.update(max_width=1000), table).maximum)
    console.print(table)
    typer.echo("tau: Kendall's tau on test networks as they are; s=S: neurons permuted and scaled by U[1, S] or sign-flipped.")
