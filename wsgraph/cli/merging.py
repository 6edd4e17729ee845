"""The command that makes several networks one."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from wsgraph._counts import counted
from wsgraph.cli.checkpoints import (
    Activation,
    Entry,
    Inputs,
    Layout,
    Module,
    Network,
    Padding,
    Pooling,
    Prefix,
    Readout,
    Space,
    Stride,
    geometry_of,
    open_network,
    options_for,
)
from wsgraph.cli.common import AsJson, Seed, app, explained, given, working
from wsgraph.cli.results import print_json

if TYPE_CHECKING:
    from torch import Tensor

    from wsgraph.provenance import Barrier, Merged
    from wsgraph.space import WeightSpace

__all__: list[str] = []

_ALIGNED_ON, _TAKEN_OF = 1000, 10_000  # inputs, evenly spaced over those of the file
_ENDINGS = (".safetensors", ".pt", ".pth")


@app.command("merge")
def merge_command(
    files: Annotated[list[Path], typer.Argument(help="Two checkpoints or more of one architecture, of any formats that are known.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File to write, .safetensors, .pt or .pth, with the keys of the first file.")
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            help="What networks are aligned on, recalibrated on and scored on: pictures with labels as wsgraph zoo make-cnn takes them, of "
            "which the test part is for scores alone; an .npz file with inputs and perhaps labels; an .npy file of inputs."
        ),
    ] = None,
    by: Annotated[
        str | None, typer.Option(help="What neurons are matched by: activations (default with --data), weights (without) or none.")
    ] = None,
    weight: Annotated[
        list[float] | None, typer.Option(help="Weight of a network in the average; repeat it for each (default: equal ones).")
    ] = None,
    recalibrate: Annotated[
        bool, typer.Option("--recalibrate/--no-recalibrate", help="With --data: whether the average's neurons vary as the networks' do.")
    ] = True,
    figure: Annotated[
        Path | None, typer.Option(help="With --data: draw loss and accuracy from the first network to all others, .png, .pdf or .svg.")
    ] = None,
    steps: Annotated[int, typer.Option(min=3, help="With --figure: networks on each of these lines.")] = 21,
    activation: Activation = None,
    module: Module = None,
    inputs: Inputs = None,
    space: Space = None,
    prefix: Prefix = None,
    entry: Entry = None,
    network: Network = None,
    stride: Stride = None,
    padding: Padding = None,
    pooling: Pooling = None,
    readout: Readout = None,
    layout: Layout = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Average networks of one architecture, after their neurons are brought beside each other.

    Examples: wsgraph merge a.safetensors b.safetensors --activation relu --output merged.safetensors

    wsgraph merge a.pth b.pth c.pth --space resnet.json --data cifar10.npz --output merged.pth

    wsgraph merge a.pth b.onnx --module models.py:make --input 1x1x28x28 --data mnist --figure barrier.png -o merged.safetensors
    """
    from wsgraph.cli.figures import figure_file
    from wsgraph.files import prepare_folder
    from wsgraph.plot import barrier_curves
    from wsgraph.provenance import MergeWarning, merge

    with explained():
        if output.suffix.lower() not in _ENDINGS:
            raise ValueError(f"Expected --output as a file ending in {', '.join(_ENDINGS)} (got {output.name!r}).")
        prepare_folder(output.parent)
        drawn = None if figure is None else figure_file(figure)
        options = {"activation": activation, "module": module, "inputs": inputs, "space_file": space, "prefix": prefix, "entry": entry}
        geometry = geometry_of(stride, padding, pooling, readout, layout)
        networks = _opened(files, {**options, "geometry": geometry or None, "role": network})
        on = _Inputs() if data is None else _read(data, networks.space)
        if drawn is not None and on.labels is None:
            raise ValueError("--figure needs --data with labels: losses and accuracies are of labelled inputs.")
        aligned_on = None if by in ("weights", "none") else on.part(_ALIGNED_ON)
        taken = on.part(_TAKEN_OF) if recalibrate else None
        with working("Merging"), warnings.catch_warnings():
            warnings.simplefilter("ignore", MergeWarning)  # said below, with the names of files
            found = merge(networks.space, networks.thetas, weights=weight, align=by, inputs=aligned_on, recalibrate=taken, seed=seed)
        _save(output, networks, found.theta, files[0], prefix, entry)
        scores = _scores(networks, found.theta, on)
        barriers = {} if drawn is None else _barriers(files, networks, on, steps, {"align": by, "seed": seed})
        if drawn is not None:
            barrier_curves(barriers, drawn)
    if as_json:
        names = [{"file": str(file)} for file in (*files, output)]
        described = [{**each, **about, **score} for each, about, score in zip(names, [*_about(found), {}], scores, strict=True)]
        kinds = {"alignment": found.alignment, "recalibrated": list(found.recalibrated)}
        drawings = {name: each.document() for name, each in barriers.items()}
        print_json({"networks": described[:-1], "merged": described[-1], **kinds, "barriers": drawings})
        return
    _print(files, networks.space, found, scores)
    if taken is not None and found.recalibrated:
        typer.echo(f"Statistics of {counted(len(found.recalibrated), 'layer')} are those of {counted(len(taken), 'input')}.")
    for name, each in barriers.items():
        heights = ", ".join(f"{each.height(curve):.3g} {curve}" for curve in each.curves)
        typer.echo(f"Barrier of the loss from {name}: {heights}")
    typer.echo(f"Network: {output}")
    if drawn is not None:
        typer.echo(f"Figure: {drawn}")


# == Networks ==


class _Networks(NamedTuple):
    """Networks ``[K, P]`` of one space, that of the first file, in the widest of their dtypes; and the dtype of the first."""

    space: WeightSpace
    thetas: Tensor
    dtype: Any


def _opened(files: Sequence[Path], options: Mapping[str, Any]) -> _Networks:
    """The networks of files, each with those options that its format takes."""
    import dataclasses
    import functools

    import torch

    from wsgraph.provenance.merging import check_mergeable

    if len(files) < 2:
        raise ValueError(f"Expected two files or more to merge (got {len(files)}).")
    chosen = [options_for(file, options) for file in files]
    if unused := [name for name, value in options.items() if value is not None and all(own[name] is None for own in chosen)]:
        chosen[0] = {**chosen[0], unused[0]: options[unused[0]]}  # refused below, with what to do
    found = [open_network(file, fold_batchnorm=False, **own) for file, own in zip(files, chosen, strict=True)]
    for file, each in zip(files, found, strict=True):
        check_mergeable(found[0].space, each.space, str(files[0]), str(file))
        each.space.check_thetas(each.theta, str(file), batched=False, finite=True)
        _check_stored(file, each.space, options["prefix"], options["entry"])
    widest = functools.reduce(torch.promote_types, (each.theta.dtype for each in found))
    space = dataclasses.replace(found[0].space, assumed=())  # what was assumed has been said
    return _Networks(space, torch.stack([each.theta.detach().to(widest) for each in found]), found[0].theta.dtype)


def _check_stored(file: Path, space: WeightSpace, prefix: str | None, entry: str | None) -> None:
    """Raise where weights that are floating point numbers in the space are stored as bytes: those of a quantised network."""
    from wsgraph.convert.networks import check_quantised

    if (state := _state_of(file, entry)) is not None:
        check_quantised({key: tensor for key, (_, tensor) in _own(state, space, prefix).items() if space.param(key).role != "buffer"})


def _state_of(file: Path, entry: str | None) -> dict[str, Tensor] | None:
    """The tensors of a file that holds nothing else."""
    from wsgraph.convert import load_checkpoint
    from wsgraph.convert.formats import file_format

    return load_checkpoint(file, entry=entry) if file.is_dir() or file_format(file).tensors is not None else None


def _own(state: Mapping[str, Tensor], space: WeightSpace, prefix: str | None) -> dict[str, tuple[str, Tensor]]:
    """Keys and tensors of a network in a file, by its keys in the space."""
    from wsgraph.convert.networks import matching_network

    keys = [key for param in space.params for key in param.keys]
    names = {id(tensor): name for name, tensor in state.items()}
    return {key: (names[id(tensor)], tensor) for key, tensor in matching_network(state, keys, prefix).items() if key in keys}


def _save(output: Path, networks: _Networks, theta: Tensor, first: Path, prefix: str | None, entry: str | None) -> None:
    """Write a network with the keys of the first file, and what else that holds."""
    import torch
    from safetensors.torch import save_file

    from wsgraph.files import write_atomically

    merged = networks.space.unflatten(theta.to(networks.dtype))
    state = _state_of(first, entry)
    if state is not None and (own := _own(state, networks.space, prefix)):
        merged = {**state, **{name: merged[key].to(tensor.dtype) for key, (name, tensor) in own.items()}}
    tensors = {key: tensor.detach().clone().contiguous() for key, tensor in merged.items()}
    if output.suffix.lower() == ".safetensors":
        write_atomically(output, lambda temporary: save_file(tensors, temporary, metadata={"format": "pt"}))
    else:
        write_atomically(output, lambda temporary: torch.save(tensors, temporary))


# == Data ==


class _Inputs(NamedTuple):
    """Inputs of networks; those that they are scored on, which may be the same; and labels of the latter."""

    inputs: Tensor | None = None
    scored_on: Tensor | None = None
    labels: Tensor | None = None

    def part(self, count: int) -> Tensor | None:
        """At most so many of the inputs, evenly spaced, since files may hold one class after the other."""
        import torch

        if self.inputs is None or len(self.inputs) <= count:
            return self.inputs
        return self.inputs[torch.linspace(0, len(self.inputs) - 1, count).round().long()]


def _read(path: Path, space: WeightSpace) -> _Inputs:
    """Inputs of a file or folder, in the shape that the networks take."""
    import numpy as np
    import torch

    from wsgraph.data import load_images

    if not path.exists():
        raise FileNotFoundError(f"There is no --data {str(path)!r}.")
    arrays: Any = {}
    if path.suffix.lower() in (".npy", ".npz"):
        try:
            arrays = np.load(path, allow_pickle=False)
            arrays = {"inputs": arrays} if isinstance(arrays, np.ndarray) else dict(arrays)
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(f"{str(path)!r} holds no arrays of numbers, or is damaged ({error}).") from None
    if "inputs" not in arrays:
        images = load_images(path)
        return _Inputs(_shaped(images.images, space), _shaped(images.test_images, space), images.test_labels)
    inputs, labels = (torch.from_numpy(np.ascontiguousarray(arrays[name])) if name in arrays else None for name in ("inputs", "labels"))
    assert inputs is not None
    if not inputs.ndim or not len(inputs) or (labels is not None and len(labels) != len(inputs)):
        shapes = " and ".join(str(list(each.shape)) for each in (inputs, labels) if each is not None)
        raise ValueError(f"Expected inputs [n, ...] and, if there are any, as many labels in {str(path)!r} (got shapes {shapes}).")
    inputs = _shaped(inputs, space)
    return _Inputs(inputs, inputs, labels)


def _shaped(inputs: Tensor, space: WeightSpace) -> Tensor:
    """Pictures as vectors, or with their channels last, where the networks were traced on such."""
    if space.program is None or len(space.program.inputs) != 1:
        size = next(group.size for group in space.groups if group.role == "input")
        return inputs.flatten(1) if inputs.ndim > 2 and inputs.shape[1] != size == inputs[0].numel() else inputs
    wanted = space.program.inputs[0].shape[1:]
    if len(wanted) == 1 and inputs[0].numel() == wanted[0]:
        return inputs.flatten(1)
    last = inputs.movedim(1, -1) if inputs.ndim > 2 else inputs
    return last if tuple(inputs.shape[1:]) != wanted == tuple(last.shape[1:]) else inputs


# == Scores ==


def _scores(networks: _Networks, merged: Tensor, on: _Inputs) -> list[dict[str, float]]:
    """Losses and accuracies of all networks and of their average; nothing of them without labels."""
    from wsgraph.provenance.barriers import scored

    if on.labels is None:
        return [{}] * (len(networks.thetas) + 1)
    with working("Scoring"):
        found = [scored(networks.space, theta, on.scored_on, on.labels) for theta in (*networks.thetas, merged)]
    return [given(loss=loss, accuracy=accuracy) for loss, accuracy in found]


def _barriers(files: Sequence[Path], networks: _Networks, on: _Inputs, steps: int, options: Mapping[str, Any]) -> dict[str, Barrier]:
    """What lies between the first network and every other one."""
    from wsgraph.provenance import barrier

    first, *others = networks.thetas
    lines = {"steps": steps, "aligned_on": on.part(_ALIGNED_ON), "recalibrate": on.part(_TAKEN_OF), **options}
    assert on.labels is not None
    return {
        f"{files[0].name} to {file.name}": barrier(networks.space, first, other, on.scored_on, on.labels, **lines)
        for file, other in zip(files[1:], others, strict=True)
    }


def _about(found: Merged) -> list[dict[str, float]]:
    columns = zip(found.weights, found.before.tolist(), found.after.tolist(), strict=True)
    return [{"weight": weight, "distance_before": before, "distance_after": after} for weight, before, after in columns]


def _print(files: Sequence[Path], space: WeightSpace, found: Merged, scores: Sequence[Mapping[str, float]]) -> None:
    """Print what was merged, and how good it is."""
    from rich.console import Console
    from rich.table import Table

    from wsgraph.provenance.merging import doubts

    typer.echo("Averaged as they are" if found.alignment == "none" else f"Aligned by {found.alignment}; distances: 0 equal, 1 shuffled")
    table = Table("network", "weight", "distance before", "after", *scores[-1], box=None, pad_edge=False)
    rows = zip([*(file.name for file in files), "their average"], [*_about(found), {}], scores, strict=True)
    for name, about, score in rows:
        if score or about:
            columns = [f"{value:.3f}" for value in about.values()] or [""] * 3
            table.add_row(name, *columns, *(f"{value:.4f}" for value in score.values()))
    Console().print(table)
    for text in doubts(space, found, [file.name for file in files]):
        typer.secho(f"Warning: {text}", fg=typer.colors.YELLOW, err=True)
