"""Commands that read one checkpoint."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from wsgraph.cli.common import AsJson, Seed, app, explained, given, terminal_width, told_warnings, working
from wsgraph.cli.modules import inputs_of, module_of, shape_of
from wsgraph.cli.results import print_json

if TYPE_CHECKING:
    from torch import Tensor, nn

    from wsgraph.convert import BatchNormFolding
    from wsgraph.space import WeightSpace

__all__ = [
    "Activation",
    "Entry",
    "Inputs",
    "Layout",
    "Module",
    "Padding",
    "Pooling",
    "Prefix",
    "Readout",
    "Stride",
    "geometry_of",
    "open_network",
    "options_for",
    "tell_geometry",
]

Checkpoint = Annotated[
    Path,
    typer.Argument(
        help="A file of any format that is known: a state dict (.safetensors, .pt, .npz, ...; a folder or index of shards), .onnx, .keras, "
        ".h5, .msgpack of Flax, .zip of Stable-Baselines3, .nnet."
    ),
]
Activation = Annotated[
    str | None,
    typer.Option(help="Without --module: activation of the hidden neurons, such as relu, tanh or 'sin(30)'; relu if not given."),
]
Module = Annotated[
    str | None,
    typer.Option(
        help="What makes the network, as package:function or file.py:function; without it, the weights must be an MLP or CNN chain."
    ),
]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        help="Shape of an input of the module, such as 1x3x224x224; repeat it for several. Another dtype than float32 stands behind, a "
        "name of an input by name before it: 1x8:int64, mask=1x8:bool. Numbers are random, integers 0, every second boolean is true.",
    ),
]
Space = Annotated[
    Path | None,
    typer.Option(
        help="A .json file with the weight space of the network, as wsgraph convert writes it: what --module says, without the module."
    ),
]
Prefix = Annotated[
    str | None, typer.Option(help="What the keys of the network begin with, such as q_net., where the file holds several networks.")
]
Entry = Annotated[str | None, typer.Option(help="Which state dict of a file with several, such as ema or model.state_dict.")]
Network = Annotated[str | None, typer.Option(help="Which network of a file with several, such as policy or q1_target of an agent.")]
Stride = Annotated[list[int] | None, typer.Option(help="Without --module: stride of the convolutions; repeat it for each (assumed: 1).")]
Padding = Annotated[
    list[int] | None, typer.Option(help="Without --module: zero padding of the convolutions; repeat it for each (assumed: 0).")
]
Pooling = Annotated[
    list[str] | None,
    typer.Option(
        help="Without --module: pooling after all convolutions but the last, such as 'max_pool(2)', or none; repeat it for each "
        "convolution, the last one included (assumed: none)."
    ),
]
Readout = Annotated[
    str | None,
    typer.Option(help="Without --module: global_avg_pool or global_max_pool between convolutions and linear layers (assumed: the former)."),
]
Depth = Annotated[
    int | None, typer.Option(min=1, help="Levels of modules in the table (default: as many as fit on a screen; a large number lists all).")
]
Brief = Annotated[bool, typer.Option("--brief", help="Only what is movable and what is fixed and why, without the table of modules.")]
Parameters = Annotated[
    list[str] | None,
    typer.Option(
        "--parameter",
        help="Which neurons the entries of a parameter follow, with which powers; * stands for any characters. Repeat it for several.",
    ),
]
Layout = Annotated[
    str | None,
    typer.Option(help="in_out where state dicts hold weights [in, out], as arrays of Keras, Flax and scikit-learn (default: out_in)."),
]
Fold = Annotated[bool, typer.Option("--fold-batchnorm", help="Fold batch norms into the layers before them first, and say which stay.")]


@app.command()
def info(
    checkpoint: Checkpoint,
    activation: Activation = None,
    module: Module = None,
    inputs: Inputs = None,
    space: Space = None,
    fold_batchnorm: Fold = False,
    prefix: Prefix = None,
    entry: Entry = None,
    network: Network = None,
    stride: Stride = None,
    padding: Padding = None,
    pooling: Pooling = None,
    readout: Readout = None,
    layout: Layout = None,
    depth: Depth = None,
    brief: Brief = False,
    parameter: Parameters = None,
    as_json: AsJson = False,
) -> None:
    """Print the modules, neurons, symmetries and parameters of a checkpoint, and what is fixed and why.

    Examples: wsgraph info model.safetensors --activation tanh

    wsgraph info resnet.pth --space resnet.json --depth 3

    wsgraph info agent.pth --space agent.json --parameter "lstm.*"

    wsgraph info resnet.pth --module torchvision.models:resnet18 --input 1x3x224x224

    wsgraph info model.onnx

    wsgraph info resnet.pth --space resnet.json
    """
    from wsgraph.cli.described import about, described, parameter_data

    with explained():
        if brief + bool(parameter) + (depth is not None) > 1:
            raise ValueError("Give one of --brief (no table), --depth (of the table of modules) and --parameter (tables of single ones).")
        geometry = geometry_of(stride, padding, pooling, readout, layout)
        opened = open_network(checkpoint, activation, module, inputs, fold_batchnorm, prefix, entry, geometry, space, network)
        names = list(dict.fromkeys(name for pattern in parameter or () for name in opened.space.params_matching(pattern)))
    if as_json:
        more = {"params": [parameter_data(opened.space, name) for name in names]} if names else described(opened.space, depth)
        print_json(about(opened.space) | ({} if brief else more) | opened.folding_data())
        return
    opened.print_folding()
    if names:
        typer.echo("\n".join(map(opened.space.describe_parameter, names)))
        return
    table = [] if brief else opened.space.summary(depth, width=terminal_width()).splitlines()
    typer.echo("\n".join([*table, *(line for line in opened.space.report().splitlines() if line not in table)]))


@app.command()
def convert(
    checkpoint: Checkpoint,
    output: Annotated[
        Path,
        typer.Argument(
            help="File to write: .pt (a dict of tensors for torch.load) or .safetensors; .json for the weight space, which --space reads."
        ),
    ],
    activation: Activation = None,
    module: Module = None,
    inputs: Inputs = None,
    space: Space = None,
    fold_batchnorm: Fold = False,
    prefix: Prefix = None,
    entry: Entry = None,
    network: Network = None,
    stride: Stride = None,
    padding: Padding = None,
    pooling: Pooling = None,
    readout: Readout = None,
    layout: Layout = None,
) -> None:
    """Write the parameter graph of a checkpoint (x, edge_index, edge_attr and what belongs to every neuron and edge), or its weight space.

    Examples: wsgraph convert model.safetensors graph.pt, then torch_geometric.data.Data(**torch.load("graph.pt", weights_only=True))

    wsgraph convert resnet.pth resnet.json --module torchvision.models:resnet18 --input 1x3x224x224
    """
    from wsgraph.convert.graph_file import save_graph
    from wsgraph.files import prepare_folder, write_atomically

    with explained():
        prepare_folder(output.parent)
        geometry = geometry_of(stride, padding, pooling, readout, layout)
        opened = open_network(checkpoint, activation, module, inputs, fold_batchnorm, prefix, entry, geometry, space, network)
        if output.suffix.lower() == ".json":
            made: Any = opened.space
            write_atomically(output, lambda temporary: temporary.write_text(opened.space.to_json(), encoding="utf-8"))
        else:
            made = opened.space.graph(opened.theta)
            save_graph(made, output)
    opened.print_folding()
    typer.echo(f"{made!r}: {output}")


@app.command()
def check(
    checkpoint: Checkpoint,
    activation: Activation = None,
    module: Module = None,
    inputs: Inputs = None,
    space: Space = None,
    fold_batchnorm: Fold = False,
    prefix: Prefix = None,
    entry: Entry = None,
    network: Network = None,
    stride: Stride = None,
    padding: Padding = None,
    pooling: Pooling = None,
    readout: Readout = None,
    layout: Layout = None,
    scale: Annotated[float, typer.Option(min=1, help="Largest factor of a neuron; the smallest is its inverse.")] = 1000.0,
    tolerance: Annotated[float, typer.Option(help="Largest relative difference that passes.")] = 1e-8,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Move a checkpoint by random symmetries and report how much its outputs change: not at all, if the symmetries are its own.

    Examples: wsgraph check model.pth --module models.py:make --input 1x3x32x32

    wsgraph check model.pth --space model.json
    """
    with explained():
        geometry = geometry_of(stride, padding, pooling, readout, layout)
        opened = open_network(checkpoint, activation, module, inputs, fold_batchnorm, prefix, entry, geometry, space, network)
        difference, moved = opened.difference(scale, seed, tolerance)
    if as_json:
        result = {"space": repr(opened.space), "moved": moved, "difference": difference, "passes": difference <= tolerance}
        print_json(result | opened.folding_data())
        if not difference <= tolerance:
            raise typer.Exit(1)
        return
    opened.print_folding()
    typer.echo(f"{opened.space!r}")
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
    folding: tuple[BatchNormFolding, ...] | None = None
    kwargs: Mapping[str, Tensor] | None = None

    def folding_data(self) -> dict[str, Any]:
        """What became of every batch norm, for programs, where they were to be folded."""
        return {} if self.folding is None else {"batch_norms": [asdict(entry) for entry in self.folding]}

    def print_folding(self) -> None:
        """Say how many batch norms were folded, and which stay and why."""
        if self.folding is not None:
            stay = [entry for entry in self.folding if entry.layer is None]
            lines = [f"{len(self.folding) - len(stay)} of {len(self.folding)} batch norms folded", *map(str, stay)]
            typer.echo("\n  ".join(lines))

    def difference(self, scale: float, seed: int, tolerance: float) -> tuple[float, float]:
        """Largest relative difference of the outputs under a random group element, and the share of weights that it moves.

        Raises:
            ValueError: If it is above the tolerance because the network is random.
        """
        import torch

        from wsgraph._outputs import largest_difference, module_outputs, said_of_repeats, space_outputs

        generator = torch.Generator().manual_seed(seed)
        g = self.space.sample_symmetry(1, (1 / scale, scale), generator=generator)
        if self.module is None:
            theta = self.theta.double()[None]
            outputs = space_outputs(self.space, self.space.example_inputs(generator=generator, dtype=torch.float64))
        else:
            theta, outputs = module_outputs(self.module, self.space, self.inputs, self.kwargs)
        moved = self.space.act(g, theta)
        expected = outputs(theta)
        difference = largest_difference(outputs(moved), expected)
        if not difference <= tolerance and (text := said_of_repeats(outputs, theta, expected)):
            raise ValueError(text)
        return difference, float((moved != theta).double().mean())


def geometry_of(
    stride: list[int] | None, padding: list[int] | None, pooling: list[str] | None, readout: str | None, layout: str | None
) -> dict[str, Any]:
    """The options of :func:`wsgraph.from_state_dict` that were given."""
    one_or_all = {name: values[0] if len(values) == 1 else values for name, values in given(pooling=pooling or None).items()}
    return {**given(stride=stride or None, padding=padding or None, readout=readout, layout=layout), **one_or_all}


def tell_geometry(spaces: Iterable[WeightSpace]) -> None:
    """Say what of the networks was assumed, and how to give it."""
    if assumed := [space for space in spaces if space.assumed]:
        which = f"{assumed[0]!r}{f' and {len(assumed) - 1} more' if len(assumed) > 1 else ''}"
        typer.secho(
            f"Weights do not show {', '.join(assumed[0].assumed)}: this is assumed of {which}, and decides outputs, though not symmetries. "
            "Say otherwise with --stride, --padding, --pooling and --readout.",
            err=True,
        )


def options_for(file: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are for a file: how weights are used is for those that do not say it themselves."""
    from wsgraph.convert.formats import file_format

    if not file.is_file() or (kind := file_format(file)).tensors is not None:
        return {**options, "role": None}
    known = {"activation": "activation", "prefix": "prefix", "inputs": "shapes"}
    own = {name: value if known.get(name) in kind.options else None for name, value in options.items()}
    own["inputs"] = own["inputs"] if options["module"] is None else None  # of the module
    return {**own, "role": None if file.suffix.lower() == ".onnx" else options["role"]}


def open_network(
    checkpoint: Path,
    activation: str | None,
    module: str | None,
    inputs: list[str] | None,
    fold_batchnorm: bool,
    prefix: str | None = None,
    entry: str | None = None,
    geometry: dict[str, Any] | None = None,
    space_file: Path | None = None,
    role: str | None = None,
) -> _Network:
    """A checkpoint with its weight space, and its module where one is named."""
    import torch

    from wsgraph.convert import from_state_dict, load_checkpoint, load_onnx
    from wsgraph.convert.formats import file_format
    from wsgraph.convert.networks import matching_network
    from wsgraph.convert.onnx import OnnxWarning
    from wsgraph.convert.tracing.tying import tie_state
    from wsgraph.space import AssumedGeometryWarning

    if space_file is not None and (module is not None or activation is not None or inputs or fold_batchnorm or geometry):
        raise ValueError(
            "--space says all about the network: leave --module, --input, --activation, --fold-batchnorm and what convolutions do out."
        )
    chosen = None if checkpoint.is_dir() or not checkpoint.exists() else file_format(checkpoint)
    if checkpoint.suffix.lower() == ".onnx":
        if space_file is not None:
            raise ValueError("--space is for weights alone; an .onnx file holds the whole network.")
        if module is not None or activation is not None:
            raise ValueError("--module and --activation are for weights alone; an .onnx file holds the whole network.")
        if prefix or entry or geometry or role:
            raise ValueError(
                "--prefix, --entry, --network and what convolutions do are for other files; an .onnx file holds one whole network."
            )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", OnnxWarning)
            exported = load_onnx(checkpoint, [shape_of(text) for text in inputs or ()])
        for warning in caught:
            typer.secho(str(warning.message), err=True)
        return _traced(exported, exported.example_inputs, fold_batchnorm)
    if chosen is not None and chosen.tensors is None:
        if module is not None or space_file is not None or entry or fold_batchnorm:
            raise ValueError(
                "--module, --space, --entry and --fold-batchnorm are for state dicts; a file of "
                f"{chosen.name} says "
                "itself what its network is."
            )
        options = {**(geometry or {}), **given(activation=activation, prefix=prefix)}
        return _of_format(checkpoint, options | ({"shapes": [shape_of(text) for text in inputs]} if inputs else {}), role)
    if role is not None:
        raise ValueError("--network is for files that name their networks; of a state dict with several, --prefix chooses one.")
    state = load_checkpoint(checkpoint, entry=entry)
    if space_file is not None:
        return _of_space(space_file, state, prefix)
    if module is None:
        if inputs or fold_batchnorm:
            raise ValueError("--input and --fold-batchnorm need --module: weights alone do not say how they are used.")
        if activation is None:
            typer.secho(
                "A checkpoint does not name its activation: relu is assumed, which decides the symmetries. "
                "Say otherwise with --activation.",
                err=True,
            )
        with told_warnings():
            warnings.simplefilter("ignore", AssumedGeometryWarning)  # said below, with the names of these options
            space, theta = from_state_dict(state, activation or "relu", prefix=prefix, **(geometry or {}))
        tell_geometry([space])
        return _Network(space, theta, None, ())
    if activation is not None:
        raise ValueError("--activation is for weights without --module; a module has its own.")
    if geometry:
        raise ValueError("--stride, --padding, --pooling, --readout and --layout are for weights without --module; a module has its own.")
    network = module_of(module)
    try:
        network.load_state_dict(tie_state(network, matching_network(state, network.state_dict().keys(), prefix)))
    except RuntimeError as error:
        raise ValueError(f"The weights of {str(checkpoint)!r} are not those of {module!r}: {error}") from None
    generator = torch.Generator().manual_seed(0)
    arguments, named = inputs_of(inputs or (), generator)
    if not arguments and not named:
        raise ValueError("--module needs the shape of its input, such as --input 1x3x224x224.")
    return _traced(network.eval(), arguments, fold_batchnorm, named)


def _of_format(checkpoint: Path, options: dict[str, Any], role: str | None) -> _Network:
    """A network of a file that says what its network is."""
    from wsgraph.convert import load_networks

    with told_warnings():
        found = load_networks(checkpoint, network=role, **options)
    if len(found) > 1:
        names = [network.name for network in found]
        raise ValueError(f"{str(checkpoint)!r} holds several networks, {', '.join(names)}: choose one with --network, such as {names[0]}.")
    return _Network(found[0].space, found[0].theta, None, ())


def _of_space(file: Path, state: Mapping[str, Tensor], prefix: str | None) -> _Network:
    """Weights and the space that a file holds."""
    from wsgraph import WeightSpace
    from wsgraph.convert.networks import matching_network

    space = WeightSpace.from_json(file.read_text(encoding="utf-8"))
    keys = [key for param in space.params for key in param.keys]
    return _Network(space, space.flatten(matching_network(state, keys, prefix)), None, ())


def _traced(
    network: nn.Module, arguments: tuple[Tensor, ...], fold_batchnorm: bool, kwargs: Mapping[str, Tensor] | None = None
) -> _Network:
    from wsgraph.convert import fold_batchnorm as fold
    from wsgraph.convert import trace

    folding: Any = None
    with working("Tracing the network"):
        if fold_batchnorm:
            network = fold(network, *arguments, kwargs=kwargs)
            folding = network.batchnorm_folding
        space = trace(network, *arguments, kwargs=kwargs)
    return _Network(space, space.flatten(network.state_dict()), network, arguments, folding, kwargs or {})
