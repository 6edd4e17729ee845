"""Commands that say where networks come from: the same, like others, made from others, twice in a zoo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsgraph._counts import counted
from wsgraph.cli.checkpoints import Activation, Checkpoint, Entry, Inputs, Module, Network, Prefix, Space, open_network, options_for
from wsgraph.cli.common import AsJson, Seed, app, explained, working, zoo_app
from wsgraph.cli.results import print_json

if TYPE_CHECKING:
    from torch import Tensor

    from wsgraph.data import ZooStore
    from wsgraph.search import Index
    from wsgraph.space import WeightSpace

__all__: list[str] = []

_Zoo = Annotated[Path, typer.Argument(help="Folder of the zoo.")]
_IndexFolder = Annotated[
    Path | None, typer.Option("--index", help="Folder of the index, made or brought up to date (default: beside the zoo).")
]
_Features = Annotated[
    str, typer.Option(help="weights (within an architecture, aligned), statistics (across architectures) or model (with --model).")
]
_Model = Annotated[Path | None, typer.Option(help="With --features model: folder of a finished run whose model embeds networks.")]
_LISTED = 20
_COLUMNS = 4  # of the table, beside what was found


def _open_index(zoo: Path, folder: Path | None, features: str = "weights", model: Path | None = None) -> Index:
    from wsgraph.data import ZooStore
    from wsgraph.search import Index
    from wsgraph.tasks import TrainedModel

    return Index(ZooStore(zoo), folder, features=features, model=None if model is None else TrainedModel.load(model))


def _opened(file: Path, options: dict[str, Any]) -> tuple[WeightSpace, Tensor]:
    """The network of a file; options that say how to read weights alone are for files that do not say it themselves."""
    found = open_network(file, fold_batchnorm=False, **options_for(file, options))
    return found.space, found.theta


def _names(zoo: ZooStore) -> list[str]:
    """What networks are called: their files where the zoo knows them, else their positions."""
    table = zoo.table
    return [str(name) for name in table["file"]] if "file" in table else [str(position) for position in range(len(zoo))]


@app.command("same")
def same_command(
    first: Checkpoint,
    second: Annotated[Path, typer.Argument(help="Another file, of the same format or another one.")],
    activation: Activation = None,
    module: Module = None,
    inputs: Inputs = None,
    space: Space = None,
    prefix: Prefix = None,
    entry: Entry = None,
    network: Network = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Say whether two networks are equal, near or different, whatever the order, signs and scales of their neurons.

    The distance is 0 for equal networks and 1 for networks whose entries were shuffled; those that were trained apart are near 1.

    Examples: wsgraph same model.pt model.onnx --activation relu

    wsgraph same before.pth after.pth --module models.py:make --input 1x3x32x32
    """
    from wsgraph.provenance import compared

    options = {"activation": activation, "module": module, "inputs": inputs, "space_file": space}
    options |= {"prefix": prefix, "entry": entry, "role": network}
    with explained():
        networks = [_opened(file, options) for file in (first, second)]
        with working("Aligning"):
            found = compared(*networks, seed=seed)
    if as_json:
        print_json({"first": str(first), "second": str(second), **found.document()})
        return
    typer.echo(str(found))
    if found.verdict != "equal":
        _print_parameters(found.parameters)


def _print_parameters(parameters: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("parameter", "entries", "distance", "bit for bit", box=None, pad_edge=False)
    for each in parameters:
        table.add_row(each.name, f"{each.size:,}", f"{each.distance:.3f}", "same" if each.kept else "")
    Console().print(table)


@app.command("search")
def search_command(
    zoo: _Zoo,
    files: Annotated[list[Path], typer.Argument(help="Checkpoints to look for.")],
    top: Annotated[int, typer.Option(min=1, help="How many networks to list for each file.")] = 10,
    features: _Features = "weights",
    model: _Model = None,
    index: _IndexFolder = None,
    activation: Activation = None,
    module: Module = None,
    inputs: Inputs = None,
    space: Space = None,
    prefix: Prefix = None,
    entry: Entry = None,
    network: Network = None,
    as_json: AsJson = False,
) -> None:
    """Find the networks of a zoo that are like those of files, whatever the order, signs and scales of their neurons.

    The index of the zoo is made at the first search, and brought up to date when the zoo has grown.

    Examples: wsgraph search my-zoo unknown.safetensors --activation relu --top 5

    wsgraph search my-zoo *.pt --features statistics
    """
    options = {"activation": activation, "module": module, "inputs": inputs, "space_file": space}
    options |= {"prefix": prefix, "entry": entry, "role": network}
    with explained():
        opened = _open_index(zoo, index, features, model)
        found = {}
        for file in files:
            own, theta = _opened(file, options)
            found[str(file)] = opened.search(own, theta[None], top=top)[0]
        table = opened.zoo.table
    if as_json:
        listed = {name: [vars(match) for match in matches] for name, matches in found.items()}
        print_json({"zoo": str(zoo), "features": features, "matches": listed})
        return
    for name, matches in found.items():
        typer.echo(name)
        for match in matches:
            about = ", ".join(f"{label} {_shown(column[match.position])}" for label, column in list(table.items())[:_COLUMNS])
            kind = "" if match.aligned else " by features"
            typer.echo(f"  {match.distance:7.4f}{kind}  network {match.position}{'  ' + about if about else ''}")


def _shown(value: Any) -> str:
    return f"{value:.4g}" if getattr(value, "dtype", None) is not None and value.dtype.kind == "f" else str(value)


@app.command("lineage")
def lineage_command(
    zoo: _Zoo,
    false_alarms: Annotated[float, typer.Option(help="Share of networks without relatives that may be given a parent.")] = 0.01,
    order: Annotated[str | None, typer.Option(help="Column that is larger the later a network was made, such as steps or epochs.")] = None,
    color: Annotated[str | None, typer.Option(help="Column that colours the figure.")] = None,
    figure: Annotated[Path | None, typer.Option(help="File to draw the trees to, .png, .pdf or .svg.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file to write.")] = None,
    index: _IndexFolder = None,
    as_json: AsJson = False,
) -> None:
    """Say which networks of a zoo were likely made from which others: fine-tuned, pruned, quantised, trained on.

    A network whose nearest one is no nearer than strangers are has no parent. Directions without evidence are marked with a question mark.

    Example: wsgraph lineage my-zoo --order steps --color test_accuracy --figure family.png
    """
    from wsgraph.cli.figures import figure_file
    from wsgraph.files import write_json
    from wsgraph.plot import lineage_tree
    from wsgraph.provenance import lineage

    with explained():
        drawn = None if figure is None else figure_file(figure)
        opened = _open_index(zoo, index)
        values = None if color is None else opened.zoo.column(color)
        found = lineage(opened, false_alarms=false_alarms, order=order)
        if output is not None:
            write_json(output, found.document())
        if drawn is not None:
            lineage_tree(found.graph(), drawn, values=values, label=color or "", title=str(found).partition(" (")[0])
    if as_json:
        print_json(found.document())
        return
    typer.echo(str(found))
    for space, threshold in found.thresholds.items():
        typer.echo(f"Relatives are nearer than {threshold:.3f}: {space}")
    _print_families(found, _names(opened.zoo))
    if output is not None:
        typer.echo(f"Forest: {output}")
    if drawn is not None:
        typer.echo(f"Figure: {drawn}")


def _print_families(found: Any, names: list[str]) -> None:
    graph = found.graph()
    for family in found.families[:_LISTED]:
        root = next(node for node in family if graph.in_degree(node) == 0)
        _print_branch(graph, root, names)
    if len(found.families) > _LISTED:
        typer.echo(f"... and {counted(len(found.families) - _LISTED, 'family', 'families')} more")


def _print_branch(graph: Any, root: int, names: list[str]) -> None:
    stack: list[tuple[int, int, Any]] = [(root, 0, None)]
    while stack:
        node, depth, about = stack.pop()
        told = ""
        if about is not None:
            kept = f", {counted(len(about['kept']), 'parameter')} kept" if about["kept"] else ""
            why = f" ({', '.join(about['evidence'])})" if about["evidence"] else ""
            told = f"  {about['distance']:.3f}{'' if about['is_directed'] else ' ?'}{why}{kept}"
        typer.echo(f"{'  ' * depth}{names[node]}{told}")
        children = sorted(graph.successors(node), key=lambda child: graph[node][child]["distance"], reverse=True)
        stack += [(child, depth + 1, graph[node][child]) for child in children]


@zoo_app.command("map")
def zoo_map_command(
    zoo: _Zoo,
    color: Annotated[str, typer.Option(help="Column of numbers that gives the colour.")] = "test_accuracy",
    method: Annotated[str, typer.Option(help="tsne or pca.")] = "tsne",
    features: _Features = "weights",
    model: _Model = None,
    networks: Annotated[int, typer.Option(min=3, help="At most so many networks are drawn.")] = 2000,
    index: _IndexFolder = None,
    seed: Seed = 0,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write, .png, .pdf or .svg.")] = Path("map.png"),
    title: Annotated[str | None, typer.Option(help="Title above the figure.")] = None,
) -> None:
    """Draw the networks of a zoo near each other where they are alike modulo symmetry, coloured by a column.

    Examples: wsgraph zoo map my-zoo --color test_accuracy

    wsgraph zoo map mixed-zoo --features statistics --method pca
    """
    from wsgraph.cli.figures import figure_file
    from wsgraph.plot import zoo_map

    with explained():
        file = figure_file(output)
        opened = _open_index(zoo, index, features, model)
        data, vectors = opened.zoo.dataset(target=None), opened.vectors()
        zoo_map(data, file, color=color, method=method, vectors=vectors, networks=networks, seed=seed, title=title)
    typer.echo(f"Figure: {file}")


@zoo_app.command("dedupe")
def zoo_dedupe(
    zoo: _Zoo,
    within: Annotated[
        float, typer.Option(min=0, help="Largest distance of duplicates: 0 of equal networks, 1 of networks whose entries were shuffled.")
    ] = 1e-4,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of a new zoo with the first network of every cluster.")
    ] = None,
    index: _IndexFolder = None,
    as_json: AsJson = False,
) -> None:
    """List networks that a zoo holds more than once, whatever the order, signs and scales of their neurons, or leave them out.

    Examples: wsgraph zoo dedupe my-zoo

    wsgraph zoo dedupe my-zoo --within 0.05 --output my-zoo-once
    """
    from wsgraph.data import subset_zoo
    from wsgraph.provenance import duplicates

    with explained():
        opened = _open_index(zoo, index)
        clusters = duplicates(opened, within=within)
        left_out = [position for members in clusters for position in members[1:]]
        made = None if output is None else subset_zoo(output, opened.zoo[sorted({*range(len(opened))} - {*left_out})])
    if as_json:
        print_json({"zoo": str(zoo), "networks": len(opened), "within": within, "clusters": clusters})
        return
    names = _names(opened.zoo)
    if not clusters:
        typer.echo(f"{counted(len(opened), 'network')}, none of them twice.")
    for members in clusters[:_LISTED]:
        typer.echo(" = ".join(names[i] for i in members[:12]) + (" = ..." if len(members) > 12 else ""))
    if clusters:
        more = f" (the first {_LISTED} are listed)" if len(clusters) > _LISTED else ""
        typer.echo(f"{counted(len(clusters), 'cluster')}{more}: {counted(len(left_out), 'network')} of {len(opened):,} could be left out.")
    if made is not None:
        typer.echo(repr(made))
