"""Run a network straight from its weight space: the function that every symmetry must leave unchanged."""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from wsgraph.operators import apply_operator
from wsgraph.space.inputs import batch_size, described, matched
from wsgraph.space.program import MOST_ENTRIES, Program, rebuilt, references
from wsgraph.space.program_operators import Reference, StepError

if TYPE_CHECKING:
    from wsgraph.space.parts import Layer, NeuronGroup
    from wsgraph.space.structure import Structure

__all__ = [
    "Calls",
    "accepts",
    "calls_of",
    "draw_inputs",
    "draw_leaves",
    "keeps_rows_apart",
    "parameters_of",
    "run_calls",
    "run_network",
    "run_program",
    "sizes_of",
    "smallest_input_shape",
    "tensors_of",
]

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def _apply_layer(layer: Layer, tensors: Mapping[str, Tensor], values: Tensor) -> Tensor:
    if layer.weight is None:
        return values
    weight, bias = tensors[layer.weight], tensors[layer.bias] if layer.bias else None
    if layer.operator == "linear":
        return F.linear(values, weight, bias)
    return _CONVOLUTIONS[weight.ndim - 2](values, weight, bias, stride=layer.stride, padding=layer.padding)


def run_network(
    space: Structure,
    tensors: Mapping[str, Tensor],
    inputs: Tensor,
    transform: Callable[[NeuronGroup, Tensor], Tensor] | None = None,
    change: Callable[[Layer, Tensor], Tensor] | None = None,
) -> Tensor:
    """Evaluate one network, layer sums and operators group by group.

    Args:
        space: Its weight space, with one input and one output group.
        tensors: Its parameters by name, as from :meth:`WeightSpace.unflatten`.
        inputs: Tensor of shape ``[M, n_0, *positions]``.
        transform: Called with every hidden group and its values after the operators, for instance to apply dropout.
        change: Called with every layer and what it gives, and returns what is taken for that.

    Returns:
        Tensor of shape ``[M, n_L]``.
    """
    values: dict[str, Tensor] = {}
    result = inputs
    for group in space.topological_groups:
        layers = space.layers_into(group.name)
        if layers:
            sources = (torch.cat([values[name] for name in layer.sources], dim=1) for layer in layers)
            terms = map(_apply_layer, layers, itertools.repeat(tensors), sources)
            result = functools.reduce(torch.add, terms if change is None else map(change, layers, terms))
        else:
            result = inputs
        for operator in group.operators:
            result = apply_operator(operator, result)
        if transform is not None and group.role == "hidden":
            result = transform(group, result)
        values[group.name] = result
    return values[next(group.name for group in space.groups if group.role == "output")]


def accepts(space: Structure, shape: tuple[int, ...]) -> bool:
    """Whether an input of shape ``(n_0, *positions)`` runs through the network."""
    tensors = {param.name: torch.empty(param.shape, device="meta") for param in space.params}
    try:
        run_network(space, tensors, torch.empty(1, *shape, device="meta"))
    except RuntimeError:  # too few positions for the kernels, or not as many as a linear layer expects
        return False
    return True


def smallest_input_shape(space: Structure) -> tuple[int, ...]:
    """Shape ``(n_0, *positions)`` of the smallest square input that runs through the network."""
    group = next(group for group in space.groups if group.role == "input")
    dimensions = max((len(space.param(layer.weight).shape) - 2 for layer in space.layers if layer.weight is not None), default=0)
    for side in range(1, 257 if dimensions else 2):
        shape = (group.size, *[side] * dimensions)
        if accepts(space, shape):
            return shape
    raise ValueError(f"Found no square input that {space!r} accepts; pass inputs of the right shape yourself.")


# == Programs ==


def run_program(
    space: Structure, program: Program, thetas: Tensor, inputs: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None
) -> Any:
    """Run the networks of a traced space, all at once where their operators allow it.

    Args:
        space: The space.
        program: Its program.
        thetas: Flat checkpoints of shape ``[B, P]``.
        inputs: What the module is called with.
        kwargs: What it is called with by name, unless that lies behind the other inputs.

    Returns:
        What the module returns, with a first dimension over the networks before those of every tensor.

    Raises:
        ValueError: If the inputs are not those of the network, or the program does not run on them.
    """
    run = _Run(space, program)
    calls = calls_of(space, program, thetas, inputs, kwargs)
    if calls.rows is None:
        return run.restored(_over(run, thetas, calls.leaves))
    tensors = _over(run, thetas, calls.leaves, calls.dims)
    return run.restored([tensor.flatten(1, 2)[:, : calls.rows] for tensor in tensors])


class Calls(NamedTuple):
    """Inputs as a network is called with them.

    Args:
        leaves: The tensors among them: of the traced shapes, or as several such calls behind a first dimension.
        rows: How many rows all calls have together, without those that fill the last one up; ``None`` where it is one call.
    """

    leaves: list[Tensor]
    rows: int | None

    @property
    def dims(self) -> list[int | None]:
        """Along which dimension the calls lie in every tensor."""
        return [0 if self.rows is not None and leaf.ndim else None for leaf in self.leaves]


def calls_of(space: Structure, program: Program, thetas: Tensor, inputs: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> Calls:
    """Inputs on the device and in the dtype of networks, in calls of the traced shapes.

    Args:
        space: The space.
        program: Its program.
        thetas: Flat checkpoints of shape ``[B, P]``.
        inputs: What the module is called with, with any number of rows where their first dimension is a batch.
        kwargs: What it is called with by name, unless that lies behind the other inputs.

    Returns:
        The inputs.

    Raises:
        ValueError: If the inputs are not those of the network.
    """
    leaves, count = matched(program, inputs, kwargs or {})
    run = _Run(space, program)
    leaves = run.prepared(leaves, thetas)
    size = batch_size(program)
    if count is None or size is None:
        return Calls(leaves, None)
    if not run.keeps_rows_apart(thetas[0]):
        raise ValueError(
            f"The network was traced with {described(program)}, and outputs for one row of them depend on the other rows: their first "
            "dimension is no batch. Give it inputs of these shapes, or trace it on inputs of other ones."
        )
    return Calls([_chunks(leaf, size) if leaf.ndim else leaf for leaf in leaves], count)


def run_calls(space: Structure, program: Program, thetas: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    """Tensors ``[B, C, ...]`` that the networks return for ``C`` calls, whose inputs have the traced shapes behind a first dimension."""
    run = _Run(space, program)
    return _over(run, thetas, run.prepared(leaves, thetas), [0] * len(leaves))


def keeps_rows_apart(space: Structure, program: Program, theta: Tensor) -> bool:
    """Whether the first dimension of all inputs is a batch, so that the outputs for one row do not depend on other rows."""
    return batch_size(program) is not None and _Run(space, program).keeps_rows_apart(theta)


class _Run:
    """One network of a traced space as a function of its flat checkpoint and inputs."""

    def __init__(self, space: Structure, program: Program) -> None:
        sizes_of(space, program)
        self.space, self.program = space, program
        self.template: Any = None

    def __call__(self, theta: Tensor, *inputs: Tensor, batched: bool = False) -> tuple[Tensor, ...]:
        parameters = parameters_of(self.space, self.program, theta)
        self.template = self.program.run(parameters, inputs, theta.dtype, batched=batched)
        return tuple(_flat(self.template))

    def batched(self, theta: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The same within :func:`torch.func.vmap`."""
        with sdpa_kernel(SDPBackend.MATH):  # the other ones have no rule for batches and would loop over them
            return self(theta, *inputs, batched=True)

    def prepared(self, leaves: Sequence[Tensor], thetas: Tensor) -> list[Tensor]:
        """Inputs on the device of the networks, and in their dtype."""
        dtypes = (thetas.dtype if given.is_floating_point else getattr(torch, given.dtype) for given in self.program.inputs)
        return [leaf.to(device=thetas.device, dtype=dtype) for leaf, dtype in zip(leaves, dtypes, strict=True)]

    def restored(self, tensors: Sequence[Tensor]) -> Any:
        """Tensors in the structure that the module returns."""
        remaining = iter(tensors)
        return rebuilt(self.template, lambda _: next(remaining))

    def keeps_rows_apart(self, theta: Tensor) -> bool:
        """Whether rows of outputs move with rows of inputs, and stay when all other rows become like them."""
        known = self.program.__dict__
        if "_rows_are_apart" not in known:
            size = batch_size(self.program)
            drawn = self.prepared(draw_leaves(self.space, self.program, generator=torch.Generator().manual_seed(0)), theta)
            # Where a row depends on those before it alone, as in time, the first row does not tell, but the last one does.
            variants = (torch.arange(size or 0).roll(1), torch.zeros(size or 0).long(), torch.full((size or 0,), (size or 0) - 1))
            with torch.no_grad():
                outputs = self(theta.detach(), *drawn)
                known["_rows_are_apart"] = all(output.shape[:1] == (size,) for output in outputs) and all(
                    torch.allclose(changed[where == row], output[row], rtol=1e-3, atol=1e-5, equal_nan=True)
                    for where in variants
                    for output, changed in zip(outputs, self(theta.detach(), *(_rows(leaf, where) for leaf in drawn)), strict=True)
                    for row in where.unique().tolist()
                )
        return bool(known["_rows_are_apart"])


def _rows(leaf: Tensor, where: Tensor) -> Tensor:
    return leaf[where.to(leaf.device)] if leaf.ndim else leaf


def parameters_of(space: Structure, program: Program, theta: Tensor) -> dict[str, Tensor]:
    """The parameters that a program reads, as views of a flat checkpoint; integers, which are no weights, as what they are."""
    tensors = {}
    for name in program.parameters:
        param = space.param(name)
        view = theta[space.slices[param.name]].reshape(param.shape)
        dtype: torch.dtype | None = getattr(torch, param.dtype) if param.dtype else None
        tensors[name] = view if dtype is None or dtype.is_floating_point else view.round().to(dtype)
    return tensors


def _over(run: _Run, thetas: Tensor, leaves: Sequence[Tensor], dims: Sequence[int | None] = ()) -> list[Tensor]:
    """Results for all networks, and for all chunks of inputs where ``dims`` says which are chunked."""
    program = run.program
    chunked = any(dim is not None for dim in dims)
    many = torch.func.vmap(run.batched, in_dims=(None, *dims)) if chunked else run if len(thetas) == 1 else run.batched
    if not program.__dict__.get("_one_by_one"):
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="There is a performance drop")
                if len(thetas) == 1:  # with no more memory than the module itself
                    return [tensor[None] for tensor in many(thetas[0], *leaves)]
                return list(torch.func.vmap(many, in_dims=(0, *[None] * len(leaves)))(thetas, *leaves))
        except ValueError:
            if len(thetas) == 1 and not chunked:
                raise
    # Only an operator that cannot be run for several networks at once comes here, or one that fails on these inputs, and fails again.
    calls = next((len(leaf) for leaf, dim in zip(leaves, dims, strict=False) if dim == 0), 1)
    rows = []
    for theta in thetas:
        each = (
            [run(theta, *(leaf[i] if dim == 0 else leaf for leaf, dim in zip(leaves, dims, strict=True))) for i in range(calls)]
            if chunked
            else []
        )
        rows.append([torch.stack(tensors) for tensors in zip(*each, strict=True)] if chunked else run(theta, *leaves))
    program.__dict__["_one_by_one"] = True
    return [torch.stack(tensors) for tensors in zip(*rows, strict=True)]


def _chunks(leaf: Tensor, size: int) -> Tensor:
    """Rows in chunks of a size; the last is filled up with the last row."""
    missing = -len(leaf) % size
    return (torch.cat([leaf, leaf[-1:].expand(missing, *leaf.shape[1:])]) if missing else leaf).unflatten(0, (-1, size))


def _flat(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [tensor for item in value for tensor in _flat(item)] if isinstance(value, tuple) else []


def tensors_of(outputs: Any) -> list[Tensor]:
    """All tensors in what networks return, in order."""
    if isinstance(outputs, Mapping):
        outputs = list(outputs.values())
    if isinstance(outputs, (list, tuple)):
        return [tensor for item in outputs for tensor in tensors_of(item)]
    return [outputs] if isinstance(outputs, Tensor) else []


# == Inputs of programs ==

# After these, entries are still the numbers that they were, so that a table which is read with them says how large they may be.
_KEEPING = (
    "reshape view reshape_as flatten unflatten slice select narrow unsqueeze squeeze transpose permute t expand expand_as clone detach to "
    "movedim unbind split chunk stack cat flip repeat ravel"
)
_TABLES = {
    "embedding": ("weight", "indices"),
    "embedding_bag": ("weight", "indices"),
    "index_select": ("self", "index"),
    "gather": ("self", "index"),
}


def sizes_of(space: Structure, program: Program) -> dict[int, Any]:
    """Shapes of the results of a program's steps, one or a list, as far as they can be told without running it.

    Raises:
        ValueError: If a result is absurdly large.
    """
    known = program.__dict__
    if "_sizes" not in known:
        sizes: dict[int, Any] = {}

        def look(i: int, result: Any) -> None:
            several = [item for item in (result if isinstance(result, (list, tuple)) else [result]) if isinstance(item, Tensor)]
            if any(tensor.numel() > MOST_ENTRIES for tensor in several):
                step = program.steps[i]
                raise ValueError(
                    f"Step {i} of the program, {step.operator}, makes a tensor of shape {list(several[0].shape)}; at most "
                    f"{MOST_ENTRIES:,} entries are allowed."
                )
            sizes[i] = [tuple(item.shape) for item in several] if isinstance(result, (list, tuple)) else tuple(several[0].shape)

        meta = [torch.empty(given.shape, dtype=getattr(torch, given.dtype), device="meta") for given in program.inputs]
        theta = torch.empty(space.num_params, device="meta")
        with suppress(StepError), torch.no_grad():  # operators whose results depend on values, or that know no shapes alone
            program.run(
                parameters_of(space, program, theta), [m.float() if m.is_floating_point() else m for m in meta], theta.dtype, look=look
            )
        known["_sizes"] = sizes
    return dict(known["_sizes"])


def _limits(space: Structure, program: Program) -> dict[int, int]:
    """Rows of the tables that are read with the integers of an input, by the input's position."""
    sizes = sizes_of(space, program)

    def shape(reference: Any) -> tuple[int, ...]:
        if not isinstance(reference, Reference):
            return ()
        if reference.kind == "parameter":
            return space.param(str(reference.key)).shape
        if reference.kind == "step":
            found = sizes.get(int(reference.key), ())
            return tuple(found[reference.item or 0] if isinstance(found, list) else found)
        return (program.inputs if reference.kind == "input" else program.constants)[int(reference.key)].shape

    limits: dict[int, int] = {}
    origin: dict[tuple[str, int | str], int] = {("input", i): i for i, given in enumerate(program.inputs) if not given.is_floating_point}

    def source(reference: Any) -> int | None:
        return origin.get((reference.kind, reference.key)) if isinstance(reference, Reference) else None

    def limit(reference: Any, rows: int) -> None:
        if (found := source(reference)) is not None:
            limits[found] = min(limits.get(found, rows), rows)

    for i, step in enumerate(program.steps):
        arguments = dict(step.arguments)
        name = step.operator.removeprefix("aten::")
        if name in _KEEPING.split():
            for reference in references(step.arguments):
                if (found := source(reference)) is not None:
                    origin["step", i] = found
        elif name in _TABLES:
            table, index = (arguments.get(key) for key in _TABLES[name])
            rows = shape(table)
            dim = arguments.get("dim", 0)
            limit(index, rows[dim] if rows and -len(rows) <= dim < len(rows) else 1)
        elif name == "index":
            for dim, index in enumerate(arguments["indices"]):
                limit(index, (*shape(arguments["self"])[dim:], 1)[0])
        elif name == "one_hot":
            limit(arguments["self"], max(int(arguments.get("num_classes", 1)), 1))
    return limits


def draw_leaves(
    space: Structure,
    program: Program,
    rows: int | None = None,
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    """Random inputs for a traced network, in order; see :func:`draw_inputs`."""
    leaves = []
    limits = _limits(space, program)
    for i, given in enumerate(program.inputs):
        shape = given.shape if rows is None or batch_size(program) is None or not given.shape else (rows, *given.shape[1:])
        if given.is_floating_point:
            leaves.append(torch.randn(shape, generator=generator, dtype=dtype))
        elif i in limits:
            leaves.append(torch.randint(max(limits[i], 1), shape, generator=generator).to(getattr(torch, given.dtype)))
        else:
            leaves.append(torch.ones(shape, dtype=getattr(torch, given.dtype)))
    return leaves


def draw_inputs(
    space: Structure,
    program: Program,
    rows: int | None = None,
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
) -> Any:
    """Random inputs for a traced network: a tensor, or a tuple where its module takes several, those by name last.

    Floating point inputs are standard normal, integers are uniform over the rows of the tables that are read with them, and ones where
    there is no such table; booleans are true.
    """
    leaves = draw_leaves(space, program, rows, generator=generator, dtype=dtype)
    call = program.arguments(leaves)
    return call[0] if len(call) == 1 and isinstance(call[0], Tensor) else call
