"""Commands that draw figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wsgraph.cli.checkpoints import Activation, Entry, Inputs, Module, Network, Prefix, Space, open_network
from wsgraph.cli.common import Seed, Split, Trained, app, explained, split_named

__all__ = ["figure_file"]

plot_app = typer.Typer(help="Draw figures for papers: .pdf and .svg are vectors, .png has 200 dots per inch.", no_args_is_help=True)
app.add_typer(plot_app, name="plot")

_Runs = Annotated[
    list[Path],
    typer.Argument(help="Folders of finished runs on one zoo, or folders with such below. Runs that differ in the seed are averaged."),
]
_Zoo = Annotated[Path, typer.Option(help="Folder of the zoo.")]
_Title = Annotated[str | None, typer.Option(help="Title above the figure.")]


def _file(default: str) -> typer.models.OptionInfo:
    return typer.Option("--output", "-o", help=f"File to write, .png, .pdf or .svg (default: {default}).", show_default=False)


def _wrote(path: Path) -> None:
    typer.echo(f"Figure: {path}")


def figure_file(path: Path) -> Path:
    """The path of a figure to write, whose folder is there then; refused unless it ends in .png, .pdf or .svg."""
    from wsgraph.files import prepare_folder

    prepare_folder(path.parent)
    if path.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise ValueError(f"Expected a file ending in .png, .pdf or .svg (got {path.name!r}).")
    return path


@plot_app.command("robustness")
def robustness(runs: _Runs, output: Annotated[Path, _file("robustness.pdf")] = Path("robustness.pdf"), title: _Title = None) -> None:
    """Kendall's tau of models against the scale by which test networks were moved, from runs of generalization.

    Example: wsgraph plot robustness runs/generalization --output robustness.pdf
    """
    from wsgraph.plot import robustness_curve, robustness_data
    from wsgraph.tasks import read_results

    with explained():
        robustness_curve(robustness_data(read_results(*runs)), figure_file(output), title=title)
    _wrote(output)


@plot_app.command("costs")
def costs(
    runs: _Runs,
    output: Annotated[Path, _file("costs.pdf")] = Path("costs.pdf"),
    score: Annotated[str, typer.Option(help="Score of the vertical axis.")] = "tau",
    title: _Title = None,
) -> None:
    """What models achieve over what they cost: a score against the time of an epoch and the memory of a training step.

    Example: wsgraph plot costs runs/generalization --output costs.svg
    """
    from wsgraph.plot import cost_chart
    from wsgraph.tasks import read_results

    with explained():
        cost_chart(read_results(*runs), figure_file(output), score=score, title=title)
    _wrote(output)


@plot_app.command("scatter")
def scatter(
    model: Trained,
    zoo: _Zoo,
    split: Split = "test",
    output: Annotated[Path, _file("scatter.pdf")] = Path("scatter.pdf"),
    title: _Title = None,
) -> None:
    """Predicted against true accuracies of the networks of a zoo.

    Example: wsgraph plot scatter runs/generalization/my-zoo-monomial_gnn-seed0 --zoo my-zoo
    """
    from wsgraph.data import ZooStore
    from wsgraph.plot import prediction_scatter
    from wsgraph.tasks import TrainedModel

    with explained():
        trained = TrainedModel.load(model)
        target = trained.task.column
        data = trained.task.labelled(ZooStore(zoo).dataset(split_named(split), target=None))
        predicted = trained.predict_zoo(data)
        if target is None or predicted.ndim != 1:
            raise ValueError(f"A model trained for {trained.task.name} predicts no single numbers to draw.")
        prediction_scatter(predicted, data.y, figure_file(output), label=target.replace("_", " "), title=title)
    _wrote(output)


@plot_app.command("zoo")
def zoo_command(
    zoo: Annotated[Path, typer.Argument(help="Folder of the zoo.")],
    color: Annotated[str, typer.Option(help="Column of the table that gives the colour.")] = "test_accuracy",
    method: Annotated[str, typer.Option(help="pca or tsne.")] = "pca",
    canonical: Annotated[bool, typer.Option("--canonical/--raw", help="Whether networks are brought into canonical form first.")] = True,
    networks: Annotated[int, typer.Option(min=3, help="At most so many networks are drawn.")] = 2000,
    seed: Seed = 0,
    output: Annotated[Path, _file("zoo.pdf")] = Path("zoo.pdf"),
    title: _Title = None,
) -> None:
    """A map of the weights of a zoo: every network a point, coloured by a column of the table.

    Example: wsgraph plot zoo my-zoo --method tsne --color train_loss
    """
    from wsgraph.data import ZooStore
    from wsgraph.plot import zoo_map

    with explained():
        data = ZooStore(zoo).dataset(target=None)
        zoo_map(data, figure_file(output), color=color, method=method, canonicalize=canonical, networks=networks, seed=seed, title=title)
    _wrote(output)


@plot_app.command("graph")
def graph(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint file, as `wsgraph info` reads it.")],
    activation: Activation = None,
    module: Module = None,
    inputs: Inputs = None,
    space: Space = None,
    prefix: Prefix = None,
    entry: Entry = None,
    network: Network = None,
    html: Annotated[
        Path | None, typer.Option(help="Write a page (.html) instead of a figure: to zoom, fold by module and point at; it loads nothing.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write, .png, .pdf or .svg (default, without --html: graph.pdf).")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Title above the figure, or of the page.")] = None,
) -> None:
    """The parameter graph of a checkpoint: neurons and weights of small networks, groups and layers of large ones.

    Examples: wsgraph plot graph model.safetensors --activation tanh

    wsgraph plot graph resnet.pth --space resnet.json --html resnet.html
    """
    from wsgraph.files import prepare_folder
    from wsgraph.plot import draw_graph, graph_page

    with explained():
        if html is not None and html.suffix.lower() not in (".html", ".htm"):
            raise ValueError(f"Expected --html as a file ending in .html (got {html.name!r}).")
        figure = Path("graph.pdf") if output is None and html is None else output
        figure = figure and figure_file(figure)
        opened = open_network(checkpoint, activation, module, inputs, False, prefix, entry, space_file=space, role=network)
        if figure is not None:
            draw_graph(opened.space, opened.theta, figure, title=title)
        if html is not None:
            prepare_folder(html.parent)
            graph_page(opened.space, opened.theta, html, title=title)
    if figure is not None:
        _wrote(figure)
    if html is not None:
        typer.echo(f"Page: {html}")


@plot_app.command("editing")
def editing(
    model: Trained,
    zoo: _Zoo,
    split: Split = "test",
    pictures: Annotated[int, typer.Option(min=1, help="Number of pictures.")] = 8,
    output: Annotated[Path, _file("editing.pdf")] = Path("editing.pdf"),
    title: _Title = None,
) -> None:
    """Pictures before and after editing, beside what they should have become, from a run of inr_editing.

    Example: wsgraph plot editing runs/inr_editing/sirens-monomial_gnn-seed0 --zoo sirens
    """
    from wsgraph.data import ZooStore
    from wsgraph.plot import picture_grid
    from wsgraph.tasks import TrainedModel
    from wsgraph.tasks.inr_editing import before_and_after

    with explained():
        trained = TrainedModel.load(model)
        data = ZooStore(zoo).dataset(split_named(split), target=None)
        picture_grid(before_and_after(trained.module, data.batch(slice(0, pictures))), figure_file(output), title=title)
    _wrote(output)
