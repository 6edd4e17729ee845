"""Compare the parameter-sharing layers with vectors of the published code: ``python -m tests.reference FILE_OR_FOLDER ...``.

A file holds inputs, parameters and outputs of one published layer on one network, in float64 and under the published names, and describes
itself in the metadata entry ``meta``. The parameters are copied into our layer, all of them, and the outputs are compared. One line per
file gives the layer, the network and the largest absolute error; the exit status is 1 if an error exceeds the tolerance or a file cannot be
used.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from wsgraph import WeightSpace, nn
from wsgraph.nn.sharing.layout import Layout
from wsgraph.space import Axis, Blocks, Layer, NeuronGroup, Parameter, Tie

TOLERANCE = 1e-9
Tensors = dict[str, Tensor]


def under(prefix: str, tensors: Tensors) -> Tensors:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


# == Networks and their weights ==


def chain(sizes: Sequence[int], kernels: Sequence[Sequence[int] | None]) -> WeightSpace:
    """A chain of convolutions and linear layers; what happens between them does not matter to layers that read their weights."""
    last = len(kernels)
    groups = tuple(NeuronGroup(str(i), n, "input" if i == 0 else "output" if i == last else "hidden") for i, n in enumerate(sizes))
    layers, params = [], []
    for i, kernel in enumerate(kernels):
        axes = (Axis(sizes[i + 1], (Tie((str(i + 1),), 1),)), Axis(sizes[i], (Tie((str(i),), -1),)), *map(Axis, kernel or ()))
        params.append(Parameter(f"weight.{i}", tuple(axis.size for axis in axes), "weight", axes))
        params.append(Parameter(f"bias.{i}", (sizes[i + 1],), "bias", axes[:1]))
        layers.append(Layer(str(i), "conv" if kernel else "linear", (str(i),), str(i + 1), f"weight.{i}", f"bias.{i}"))
    return WeightSpace(groups, tuple(layers), tuple(params))


def to_blocks(space: WeightSpace, published: Tensors) -> Blocks:
    """From weights ``[B, C, n_out, n_in, *kernel]`` and biases ``[B, C, n_out]``."""
    expected = {param.name: param.shape for param in space.params}
    check_shapes("inputs", {key: values.shape[2:] for key, values in published.items()}, expected)
    return space.blocks(torch.cat([published[param.name].flatten(2) for param in space.params], dim=2).movedim(1, 2))


def to_published(output: Blocks | Tensor, kernels: bool) -> Tensors:
    """Our output under the published names and in the published shapes, where networks without kernels have no axes for them."""
    if isinstance(output, Tensor):
        return {"value": output}
    features, space = output.flatten().movedim(2, 1), output.space
    shapes = {param.name: param.shape if kernels else param.shape[:2] for param in space.params}
    return {name: features[:, :, space.slices[name]].unflatten(2, shape) for name, shape in shapes.items()}


def check_shapes(what: str, found: Mapping[str, Sequence[int]], expected: Mapping[str, Sequence[int]]) -> None:
    for key in {**expected, **found}:
        shapes = [tuple(shapes[key]) if key in shapes else None for shapes in (expected, found)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"{what} {key!r} should have the shape {shapes[0]} (got {shapes[1]})")


# == Parameters ==


class Published:
    """The published parameters, and ours to be filled with them: NaN until something is put there, and then never again."""

    def __init__(self, parameters: Tensors, layer: torch.nn.Module) -> None:
        self.left, self.layer, self.taken = dict(parameters), layer, ""
        for parameter in layer.parameters():
            parameter.data.fill_(math.nan)

    def take(self, name: str) -> Tensor:
        self.taken = name
        if name not in self.left:
            raise ValueError("missing")
        return self.left.pop(name)

    def put(self, values: Tensor, place: Tensor) -> None:
        """Write what was taken into a view of one of our parameters."""
        if place.shape != values.shape:
            raise ValueError(f"gives {list(values.shape)} for {list(place.shape)} of ours")
        if not place.isnan().all():
            raise ValueError("overwrites another one")
        place.copy_(values)

    def move(self, name: str, place: Tensor) -> None:
        self.put(self.take(name), place)

    def fill(self, function: Callable[[Published, Any], None]) -> None:
        """Fill our layer, completely and with all that there is."""
        try:
            function(self, self.layer)
        except (IndexError, RuntimeError, StopIteration, ValueError) as reason:
            raise ValueError(f"published parameter {self.taken!r}: {reason}") from reason
        if self.left:
            raise ValueError(f"published parameters without a place in our layer: {', '.join(sorted(self.left))}")
        if empty := [name for name, parameter in self.layer.named_parameters() if parameter.isnan().any()]:
            raise ValueError(f"parameters of our layer that nothing fills: {', '.join(empty)}")


def arrange(tensor: Tensor, letters: str, wanted: str) -> Tensor:
    """Reorder axes that are named by letters, as einsum would."""
    return tensor.permute([letters.index(letter) for letter in wanted])


# == Linear layers ==
#
# The published layers have one map per term, each with a name. Ours has one matrix per set of neuron axes; its rows are the features of all
# parameters that it writes, its columns those of all that it reads. A published map is a block of rows and, per source, a block of columns.


class Part(NamedTuple):
    """What a published map reads or writes: a weight or bias and the axes along which neurons are told apart.

    Axis 0 holds the neurons that a weight leads to, axis 1 those that it comes from. Along other axes, neurons whose order matters to the
    layer are features, unless the part is a ``mean``; all others are averaged, or broadcast.
    """

    param: str
    axes: tuple[int, ...]
    mean: bool = False


class Map(NamedTuple):
    """A published map, a constant if it has no sources. Coefficients that are not stored as a matrix have ``letters`` for their axes.

    Rows are made up of a, j and k (channel, output and input neuron of the entry that is written), columns of c, p and q (of that read).
    """

    name: str
    target: Part
    sources: tuple[Part, ...]
    letters: str = ""


def w(i: int, *axes: int) -> Part:
    return Part(f"weight.{i}", axes)


def b(i: int, *axes: int) -> Part:
    return Part(f"bias.{i}", axes)


def mean(of: Part) -> Part:
    return of._replace(mean=True)


def means(depth: int) -> tuple[Part, ...]:
    return (*(mean(w(i)) for i in range(depth)), *(mean(b(i)) for i in range(depth)))


def layer_maps(i: int, depth: int, g: tuple[Part, ...], first: Sequence[Part] = (), last: Sequence[Part] = ()) -> Iterator[Map]:
    """NPLinear at every layer; HNPLinear at those in between, where the first and last weights next to them are read in full too."""
    before = (mean(w(i - 1, 0)), b(i - 1, 0)) if i > 0 else ()
    after = (mean(w(i + 1, 1)),) if i < depth - 1 else ()
    columns = (mean(w(i, 0)), b(i, 0), *after, *last)
    yield Map(f"layer_{i}", w(i, 0, 1), (w(i, 0, 1),))
    yield Map(f"layer_{i}_rc", w(i), g)
    yield Map(f"layer_{i}_r", w(i, 1), (mean(w(i, 1)), *before, *first))
    yield Map(f"layer_{i}_c", w(i, 0), columns)
    yield Map(f"bias_{i}", b(i, 0), columns)
    yield Map(f"bias_{i}_rc", b(i), g)


def np_maps(depth: int) -> Iterator[Map]:
    for i in range(depth):
        yield from layer_maps(i, depth, means(depth))


def hnp_maps(depth: int) -> Iterator[Map]:
    last = depth - 1
    g = (*means(depth), w(0), w(last), b(last))
    u = (w(0, 0), mean(w(1, 1)), b(0, 0), *([w(last, 1)] if depth == 2 else []))
    yield Map("w0_rpt", w(0, 0), u)
    yield Map("w0_rbdcst", w(0), g)
    yield Map("bias_0", b(0, 0), u)
    yield Map("bias_0_rc", b(0), g)
    for i in range(1, last):
        yield from layer_maps(i, depth, g, [w(0, 0)] if i == 1 else [], [w(last, 1)] if i == last - 1 else [])
    yield Map("wfin_cpt", w(last, 1), (w(last, 1), mean(w(last - 1, 0)), *([w(0, 0)] if depth == 2 else [])))
    yield Map("wfin_cbdcst", w(last), g)
    yield Map("bias_fin_rc", b(last), g)


def monomial_maps(depth: int) -> Iterator[Map]:
    last = depth - 1
    yield Map("layer_0_Y_W", w(0, 0), (w(0, 0),), "acqk")
    yield Map("layer_0_Y_b", w(0, 0), (b(0, 0),), "ack")
    yield Map("layer_0_z_W", b(0, 0), (w(0, 0),), "acq")
    yield Map("layer_0_z_b", b(0, 0), (b(0, 0),), "ac")
    for i in range(1, last):
        yield Map(f"layer_{i}_Y_W", w(i, 0, 1), (w(i, 0, 1),), "ac")
        yield Map(f"layer_{i}_z_b", b(i, 0), (b(i, 0),), "ac")
    yield Map(f"layer_{last}_Y_W", w(last, 1), (w(last, 1),), "acpj")
    yield Map(f"layer_{last}_z_b", b(last), (b(last),), "acpj")
    yield Map(f"layer_{last}_z_tau", b(last), (), "aj")


def sine_maps(depth: int) -> Iterator[Map]:
    last = depth - 1
    yield from monomial_maps(depth)
    yield Map(f"layer_{last}_Y_b", w(last, 1), (b(last - 1, 0),), "acj")
    if depth > 2:
        yield Map(f"layer_{last - 1}_z_W", b(last - 1, 0), (w(last, 1),), "acp")


class Features(NamedTuple):
    """The features of an entry, folded into one axis: ours as (channel, neuron, position), the published as (channel, position, neuron)."""

    channels: int
    neurons: int
    positions: int

    def unfold(self, tensor: Tensor, dim: int) -> Tensor:
        return tensor.unflatten(dim, self)

    def unfold_published(self, tensor: Tensor, dim: int) -> Tensor:
        return tensor.unflatten(dim, (self.channels, self.positions, self.neurons)).transpose(dim + 1, dim + 2)


def fill_maps(published: Published, layer: Any, maps: Callable[[int], Iterator[Map]]) -> None:
    def find(part: Part, layout: Layout, channels: int) -> tuple[nn.Source, Features]:
        entries = layout.entries[part.param]
        pooled = part.mean and bool(entries.fixed)
        kept = tuple(entries.movable.index(axis) for axis in part.axes)
        return nn.Source(part.param, kept, pooled), Features(channels, 1 if pooled else entries.fixed_neurons, entries.positions)

    for name, written, read, letters in maps(len(layer.space.layers)):
        (param, kept, _), rows = find(written, layer.out_layout, layer.out_channels)
        sources = [find(each, layer.layout, layer.in_channels) for each in read]
        target = nn.Target(param, kept)
        t = next(i for i, term in enumerate(layer.terms) if target in term.targets)
        row = layer.terms[t].targets.index(target)
        values = published.take(f"{name}.weight")
        if letters:
            row_letters, column_letters = re.sub("[cpq]", "", letters), re.sub("[ajk]", "", letters)
            values = arrange(values, letters, row_letters + column_letters).flatten(0, len(row_letters) - 1)
        if read:
            places = layer.maps[t].weight.data.split(layer.rows[t])[row].split(layer.columns[t], dim=1)
            blocks = values.flatten(1).split([math.prod(columns) for _, columns in sources], dim=1)
            for (source, columns), block in zip(sources, blocks, strict=True):
                place = columns.unfold(places[layer.terms[t].sources.index(source)], 1)
                published.put(rows.unfold_published(columns.unfold_published(block, 1), 0), rows.unfold(place, 0))
        if not read or f"{name}.bias" in published.left:
            constant = published.take(f"{name}.bias") if read else values
            place = layer.maps[t].bias.data.split(layer.rows[t])[row]
            published.put(rows.unfold_published(constant, 0), rows.unfold(place, 0))


def fill_np(published: Published, layer: Any) -> None:
    fill_maps(published, layer, np_maps)
    for key, code in layer.embeddings.items():
        # Ours are [neurons, features]; theirs [1, d f, 1, n_0], [1, d f, n_L, 1] and [1, d, n_L].
        name = "in_embed" if key.endswith("source") else "out_embed" if key.startswith("weight") else "out_bias_embed"
        published.put(published.take(name)[0].flatten(1).T, code.data)


# == Polynomial layers ==
#
# Our matrices hold the coefficients of all products of weights side by side, their columns being (input channel, product). Those of the
# outputs of the last layer are (output neuron, input channel, product), followed by the traces (kind, s, input channel).


def fill_products(published: Published, place: Tensor, leading: str, prefix: str, products: dict[str, str]) -> None:
    """Fill ``place``, whose axes are the ``leading`` letters and, last, the products.

    Each product is named with the letters of its published coefficients. One with a letter that is not among the leading ones is a matrix
    and takes up one column per neuron.
    """
    for name, letters in products.items():
        own = "".join(letter for letter in letters if letter not in leading)
        values = arrange(published.take(f"{prefix}{name}.weight"), letters, leading + own)
        values = values if own else values.unsqueeze(-1)
        columns, place = place.tensor_split([values.shape[-1]], dim=-1)
        published.put(values, columns)


def fill_forms(published: Published, layer: Any) -> None:
    """Our vectors psi are one more row of the matrices Psi. The invariant layer has a single pair (s, t), which its names leave out."""
    several = isinstance(layer, nn.MAGEPLinear)
    forms = {f"t.{pair}" if several else "t": form for pair, form in layer.forms.forms.items()}
    for name, form in (forms | {f"s.{s}_{s}": form for s, form in layer.forms.diagonal.items()}).items():
        matrix, vector = form.data.tensor_split([layer.chain.n[0]], dim=1)
        published.move(f"Psi_s_0_L_{name}", matrix)
        published.move(f"Psi_s_L_{name}", vector)


def unfold_ends(matrix: Tensor, layer: Any) -> tuple[Tensor, Tensor]:
    """Columns as ``[..., p, c, product]`` and ``[..., s, c, kind]``."""
    channels, loops = layer.in_channels, layer.chain.depth - 1
    products, traces = matrix.tensor_split([matrix.shape[-1] - 2 * loops * channels], dim=-1)
    return products.unflatten(-1, (layer.chain.n[-1], channels, -1)), traces.unflatten(-1, (2, loops, channels)).movedim(-3, -1)


def fill_magep(published: Published, layer: Any) -> None:
    inputs, outputs, last = layer.chain.n[0], layer.chain.n[-1], layer.chain.depth - 1
    fill_forms(published, layer)
    weight, bias = layer.first.weight.data.unflatten(1, (layer.in_channels, -1)).tensor_split([layer.out_channels * inputs])
    products = {"W_W": "acqk", "W_WW": "acqk", "W_bW": "acqk", "W_b": "ack"}
    fill_products(published, weight.unflatten(0, (-1, inputs)), "akc", "layer_0_", products)
    products = {"b_W": "acq", "b_WW": "acq", "b_bW": "acq", "b_b": "ac"}
    fill_products(published, bias, "ac", "layer_0_", products)
    for i, (pair, linear) in enumerate(zip(layer.pairs, layer.middle_biases, strict=True), start=1):
        for name, values in (("W_W", pair.weight), ("W_WW", pair.weight_product), ("W_bW", pair.bias_product)):
            published.move(f"layer_{i}_{name}.weight", values.data)
        bias = linear.weight.data.unflatten(1, (layer.in_channels, -1))
        fill_products(published, bias, "ac", f"layer_{i}_", {**products, "b_Wb": "ac"})
    weight = layer.last.weight.data.unflatten(0, (-1, outputs)).unflatten(2, (layer.in_channels, -1))
    fill_products(published, weight, "ajc", f"layer_{last}_", {"W_W": "acpj", "W_WW": "acpj", "W_bW": "acpj"})
    bias, traces = unfold_ends(layer.last_bias.weight.data.unflatten(0, (-1, outputs)), layer)
    products = {"b_W": "acpqj", "b_WW_L0L0": "acpqj", "b_bW_LL0": "acpqj", "b_b_L": "acpj", "b_Wb": "acpj"}
    fill_products(published, bias, "ajpc", f"layer_{last}_", products)
    fill_products(published, traces, "ajsc", f"layer_{last}_", {"b_bW_L": "acsj", "b_WW_0L": "acsj"})
    published.move(f"layer_{last}_b.weight", layer.last_bias.bias.data.unflatten(0, (-1, outputs)))


def fill_magep_invariant(published: Published, layer: Any) -> None:
    fill_forms(published, layer)
    ends, traces = unfold_ends(layer.linear.weight.data, layer)
    fill_products(published, ends, "apc", "layer_", {"W": "acpq", "WW": "acpq", "bW": "acpq", "b": "acp", "Wb": "acp"})
    fill_products(published, traces, "asc", "layer_", {"bW_pp": "acs", "WW_pp": "acs"})
    published.move("tau_weight", layer.linear.bias.data)


# == Other layers ==


def fill_attention(published: Published, layer: Any) -> None:
    def fill(name: str, linear: Any, times: int = 1) -> None:
        published.move(f"{name}.linear.weight", linear.weight.data)
        published.put(times * published.take(f"{name}.linear.bias"), linear.bias.data)

    if layer.shared:
        fill("to_qkv", layer.projections[0])
    for i, linear in enumerate(layer.maps):
        fill(f"weight_to_qkv.{i}", layer.projections[2 * i])
        fill(f"bias_to_qkv.{i}", layer.projections[2 * i + 1])
        # What rows, columns and means give to a weight is mapped back one by one there, and added up first here.
        fill(f"unproject_weight.{i}", linear, times=3)


def fill_normalize(published: Published, layer: Any) -> None:
    for name, kind, i, end in re.findall(r"^(regularize_([Wb])_(\d+)\.(weight|bias))$", "\n".join(published.left), re.MULTILINE):
        places = layer.normalizer.weights if end == "weight" else layer.normalizer.biases
        published.move(name, places[f"{'weight' if kind == 'W' else 'bias'}/{i}"].data)


# == Comparison ==


class Stage(NamedTuple):
    """A layer of a file, which has several if it is a composite."""

    layer: str
    space: WeightSpace
    out_space: WeightSpace
    channels: tuple[int, int]
    heads: int


class Recipe(NamedTuple):
    """How a published layer is built of ours, and how ours is filled."""

    build: Callable[[Stage], torch.nn.Module]
    fill: Callable[[Published, Any], None] = lambda published, layer: None


def linear_recipe(layer: Any, maps: Callable[[int], Iterator[Map]], **options: Any) -> Recipe:
    return Recipe(lambda s: layer(s.space, *s.channels, out_space=s.out_space, **options), functools.partial(fill_maps, maps=maps))


def normalizing_recipe(layer: Any, mode: str) -> Recipe:
    return Recipe(lambda s: layer(s.space, s.channels[0], mode=mode, reference=True), fill_normalize)


MODES = {"": "param_mul_L2", "_L1": "L1", "_L2": "L2", "_L2_square": "L2_square"}
RECIPES = {
    "NPLinear": Recipe(lambda s: nn.NPLinear(s.space, *s.channels), fill_np),
    "NPLinear_ioembed": Recipe(lambda s: nn.NPLinear(s.space, *s.channels, io_embed=True), fill_np),
    "HNPLinear": linear_recipe(nn.HNPLinear, hnp_maps, reference=True),
    "HNPSLinear": linear_recipe(nn.MonomialLinear, monomial_maps),
    "HNPS_SirenLinear": linear_recipe(nn.MonomialSineLinear, sine_maps, reference=True),
    "HNPSMixerLinear": Recipe(lambda s: nn.MAGEPLinear(s.space, *s.channels, reference=True), fill_magep),
    "HNPSMixerInv": Recipe(lambda s: nn.MAGEPInvariant(s.space, *s.channels, reference=True), fill_magep_invariant),
    "NPAttention": Recipe(lambda s: nn.NPAttention(s.space, *s.channels, heads=s.heads), fill_attention),
    "NPAttention_shared": Recipe(lambda s: nn.NPAttention(s.space, *s.channels, heads=s.heads, shared=True), fill_attention),
    "NPPool": Recipe(lambda s: nn.NPPool(s.space, s.channels[0])),
    "HNPPool": Recipe(lambda s: nn.HNPPool(s.space, s.channels[0])),
    "StatFeaturizer": Recipe(lambda s: nn.StatFeaturizer(s.space, s.channels[0])),
    **{f"HNPSNormalize{suffix}": normalizing_recipe(nn.MonomialNormalize, mode) for suffix, mode in MODES.items()},
    **{f"HNPSPool{suffix}": normalizing_recipe(nn.MonomialPool, mode) for suffix, mode in MODES.items()},
}


def stages(meta: dict[str, Any]) -> Iterator[Stage]:
    """Composites list theirs as ``"HNPSLinear cnn->inner 3->4"``, where ``inner`` is the network without kernels."""
    space = chain(meta["layer_sizes"], meta["kernels"])
    spaces = {"cnn": space, "inner": space.without_kernels()}
    for text in meta.get("stages") or [f"{meta['layer']} cnn {meta['in_channels']}->{meta['out_channels']}"]:
        layer, networks, channels = text.split()
        if layer not in RECIPES:
            raise ValueError(f"unknown layer {layer!r}; known are {', '.join(RECIPES)}")
        source, *_, target = networks.split("->") * 2
        inputs, outputs = map(int, channels.split("->"))
        yield Stage(layer, spaces[source], spaces[target], (inputs, outputs), meta.get("num_heads") or 1)


def difference(ours: Tensors, published: Tensors) -> tuple[float, int]:
    """The largest absolute error, and the number of published values that are NaN, which are left out."""
    check_shapes("outputs", {key: values.shape for key, values in ours.items()}, {key: values.shape for key, values in published.items()})
    errors = torch.cat([(ours[key] - values).abs().flatten() for key, values in published.items()])
    missing = torch.cat([values.isnan().flatten() for values in published.values()])
    return float(errors.masked_fill(missing, 0).nan_to_num(nan=math.inf).max()), int(missing.sum())


@torch.no_grad()
def compare(meta: dict[str, Any], tensors: Tensors) -> float:
    """Run our layer on the published inputs with the published parameters: the largest absolute error of all outputs."""
    steps = list(stages(meta))
    value: Any = to_blocks(steps[0].space, under("in.", tensors))
    largest, missing = 0.0, 0
    for i, stage in enumerate(steps):
        layer = RECIPES[stage.layer].build(stage).double().eval()
        published = Published(under(f"param.{i}." if len(steps) > 1 else "param.", tensors), layer)
        published.fill(RECIPES[stage.layer].fill)
        value = layer(value)
        expected = under(f"mid.{i}." if i + 1 < len(steps) else "out.", tensors)
        error, count = difference(to_published(value, kernels=stage.out_space is steps[0].space), expected)
        largest, missing = max(largest, error), missing + count
    if missing != meta.get("nan_outputs", 0):
        raise ValueError(f"{missing} published outputs are NaN, not {meta.get('nan_outputs', 0)} as the metadata says")
    return largest


def load(path: Path) -> tuple[dict[str, Any], Tensors]:
    with safe_open(path, framework="pt") as file:
        meta = (file.metadata() or {}).get("meta")
        if meta is None:
            raise ValueError("no metadata entry 'meta', which would describe the layer")
        return json.loads(meta), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, no mapping


def report(path: Path) -> tuple[str, bool]:
    """The line of one file, and whether it passes."""
    try:
        meta, tensors = load(path)
        error = compare(meta, tensors)
        line = f"{meta['layer']:<24} {meta['spec']:<16} {error:.1e}"
    except Exception as reason:  # whatever is wrong with one file, the others are still compared
        return f"{path.name}: {type(reason).__name__}: {' '.join(str(reason).split())}", False
    return (line, True) if error <= TOLERANCE else (f"{line}  exceeds {TOLERANCE:.0e}", False)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.reference", description=str(__doc__).splitlines()[0])
    parser.add_argument("paths", nargs="+", type=Path, metavar="FILE_OR_FOLDER")
    passed = True
    for path in parser.parse_args(arguments).paths:
        files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        for line, passes in [report(file) for file in files] or [(f"{path}: holds no *.safetensors", False)]:
            print(line)
            passed &= passes
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
