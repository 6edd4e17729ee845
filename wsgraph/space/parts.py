"""The parts a weight space is made of: neuron groups, parameter axes, parameters and layers. None of them holds a tensor."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from wsgraph.operators import OPERATORS, operator_symmetry, parse_operator

_ROLES = ("input", "hidden", "output", "fixed", "factor")

__all__ = ["Axis", "Connection", "Layer", "NeuronGroup", "Parameter", "Signal", "Symmetry", "Tie"]


class Symmetry(NamedTuple):
    """Factors a neuron may be multiplied with while the network's function stays the same; without any, neurons may only change places.

    Args:
        positive: Any positive number (ReLU family, identity).
        sign: -1 (odd activations, identity).
    """

    positive: bool
    sign: bool

    def __and__(self, other: Symmetry) -> Symmetry:
        return Symmetry(self.positive and other.positive, self.sign and other.sign)

    def __str__(self) -> str:
        kinds = [name for name, held in (("scale", self.positive), ("sign", self.sign)) if held]
        return " x ".join(["permutation", *kinds])


_ALL = Symmetry(True, True)


@dataclass(frozen=True)
class NeuronGroup:
    r"""Neurons produced at one place of the network, with the operators applied before they are consumed.

    Groups carry two labels, because two partitions are needed: groups with the same ``permutation`` label must be permuted alike
    (a residual sum, a depthwise convolution), groups with the same ``scale`` label must also be scaled alike (a residual sum only).

    Args:
        name: Unique name within the space.
        size: Number of neurons (channels).
        role: ``"hidden"``; ``"input"`` and ``"output"`` neurons have no symmetry, since their order is part of the function, nor do
            ``"fixed"`` ones; a ``"factor"`` has no neurons of its own, but the permutation of groups made of it (none with a ``reason``).
        operators: Operators between producer and consumers, such as ``("relu", "max_pool(2)")`` or ``("sin(30)",)``.
        permutation: Label of the class of groups that share one permutation (default: the group alone).
        scale: Label of the class of groups that share one scale (default: the permutation label).
        limits: Factors allowed by what happens to the neurons besides their operators (default: all).
        factors: Names of groups of role ``"factor"`` that neurons move with. With one, of size :math:`a`, they lie in as many blocks of
            size :math:`b`, and neuron :math:`i b + j` may go to :math:`\pi(i) b + \rho_i(j)`: the channels of a grouped convolution, the
            heads of attention. With two, of sizes :math:`a` and :math:`b`, it may go to :math:`\pi(i) b + \rho(j)`, in all blocks alike.
        reason: Why neurons of role ``"fixed"``, or the blocks that a ``"factor"`` stands for, cannot move.
        follows: Scale classes whose factors multiply the neurons, each with its power, where these are
            not those of the class ``scale``: the factors of a product beside those of its result.
    """

    name: str
    size: int
    role: Literal["input", "hidden", "output", "fixed", "factor"] = "hidden"
    operators: tuple[str, ...] = ()
    permutation: str = ""
    scale: str = ""
    limits: Symmetry = _ALL
    factors: tuple[str, ...] = ()
    reason: str = ""
    follows: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "size", operator.index(self.size))
        except TypeError:
            raise ValueError(f"Expected the size of neuron group {self.name!r} to be a positive integer (got {self.size!r}).") from None
        if self.size < 1:
            raise ValueError(f"Expected the size of neuron group {self.name!r} to be a positive integer (got {self.size!r}).")
        if self.role not in _ROLES:
            raise ValueError(f"Expected 'role' of neuron group {self.name!r} to be one of {', '.join(_ROLES)} (got {self.role!r}).")
        if len(self.factors) > 2:
            raise ValueError(f"Expected at most two 'factors' of neuron group {self.name!r} (got {self.factors}).")
        object.__setattr__(self, "limits", Symmetry(*self.limits))
        object.__setattr__(self, "factors", tuple(self.factors))
        object.__setattr__(self, "follows", tuple((str(label), int(power)) for label, power in self.follows))
        object.__setattr__(self, "operators", tuple(self.operators))
        for text in self.operators:
            parse_operator(text)
        object.__setattr__(self, "permutation", self.permutation or self.name)
        object.__setattr__(self, "scale", self.scale or self.permutation)

    @property
    def powers(self) -> tuple[tuple[str, int], ...]:
        """The scale classes whose factors multiply the neurons' values, each with its power."""
        return self.follows or ((self.scale, 1),)

    @cached_property
    def symmetry(self) -> Symmetry:
        """The symmetry that this group's own operators let through (the space intersects it over a class of groups)."""
        symmetry = self.limits
        for text in self.operators:
            symmetry &= Symmetry(*operator_symmetry(text))
        return symmetry

    @cached_property
    def activation(self) -> str:
        """The nonlinear operator as written, ``"identity"`` when there is none."""
        for text in self.operators:
            if OPERATORS[parse_operator(text)[0]].nonlinear:
                return text
        return "identity"


@dataclass(frozen=True)
class Tie:
    """How entries along an axis follow neurons.

    Args:
        groups: Names of the groups laid end to end along it.
        exponent: Power of their scale that entries are multiplied with: one number, or one per group.

    Raises:
        ValueError: If there are several exponents, but not one per group.
    """

    groups: tuple[str, ...]
    exponent: int | tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", tuple(self.groups))
        if not isinstance(self.exponent, int):
            exponents = tuple(self.exponent)
            if len(exponents) != len(self.groups):
                raise ValueError(f"Expected one exponent per group of {self.groups} (got {exponents}).")
            object.__setattr__(self, "exponent", exponents[0] if len(set(exponents)) == 1 else exponents)

    @property
    def exponents(self) -> tuple[int, ...]:
        """The power of every group's scale."""
        return (self.exponent,) * len(self.groups) if isinstance(self.exponent, int) else self.exponent


@dataclass(frozen=True)
class Axis:
    """One logical axis of a parameter.

    An axis without ties is fixed (kernel positions, flattened positions). A weight's output axis is tied to its target group with
    exponent 1, its input axis to its source groups with exponent -1. Ties of one axis share their permutation; ties of equal exponent (a
    weight used by two layers) also share their scale.

    Args:
        size: Number of entries along it.
        ties: The neurons that its entries follow.
        order: Which of the neurons laid end to end stands at every place, where this is not their own order.
        blocks: In how many equal blocks the entries along the parameter's first axis come, each of which has neurons of its own along
            this one: entry ``i`` in block ``k`` follows the neuron at place ``k * size + i``, as in the weight of a grouped convolution.

    Raises:
        ValueError: If ``order`` is no permutation of the tied neurons, or an axis without ties has blocks.
    """

    size: int
    ties: tuple[Tie, ...] = ()
    order: tuple[int, ...] = ()
    blocks: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "ties", tuple(self.ties))
        order = tuple(self.order)
        if self.blocks < 1 or (self.blocks > 1 and not self.ties):
            raise ValueError(f"Expected 'blocks' of an axis to be positive, and 1 without tied neurons (got {self.blocks}).")
        if order and (not self.ties or sorted(order) != list(range(self.num_neurons))):
            raise ValueError(
                f"Expected 'order' of an axis to be a permutation of its {self.num_neurons} tied neurons (got {order[:8]}...)."
            )
        object.__setattr__(self, "order", () if order == tuple(range(self.num_neurons)) else order)

    @property
    def num_neurons(self) -> int:
        """Number of neurons that its entries follow: as many as entries, in every block."""
        return self.size * self.blocks


@dataclass(frozen=True)
class Parameter:
    """One tensor of the state dict: its key, shape and logical axes.

    Args:
        name: Key in the state dict.
        shape: Shape in the state dict.
        role: ``"weight"`` or ``"bias"``.
        axes: Logical axes in storage order. Their sizes multiply to the number of entries; one stored dimension may hold several
            axes (the flattened input of a linear layer is channel x position).
        dtype: Name of the stored dtype where it differs from that of the flat vector, such as ``"bfloat16"``.
        aliases: Further keys of the same tensor in the state dict: weights that are tied, layers used under several names.
        transformed: Whether functions are applied to the entries themselves, such as the norms of weight norm: then even entries
            that meet nothing but zeros matter.
        unused: Whether no operator of the traced network reads it.
    """

    name: str
    shape: tuple[int, ...]
    role: str
    axes: tuple[Axis, ...]
    dtype: str | None = None
    aliases: tuple[str, ...] = ()
    transformed: bool = False
    unused: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(size) for size in self.shape))
        object.__setattr__(self, "axes", tuple(self.axes))
        object.__setattr__(self, "aliases", tuple(self.aliases))
        logical = math.prod(axis.size for axis in self.axes)
        if logical != self.size:
            raise ValueError(f"The axes of parameter {self.name!r} hold {logical} entries, its shape {self.shape} holds {self.size}.")
        if self.axes[0].blocks > 1 or any(self.axes[0].size % axis.blocks for axis in self.axes):
            raise ValueError(
                f"The first axis of parameter {self.name!r}, of size {self.axes[0].size}, must be made of the blocks that its other axes "
                f"have neurons for (got {[axis.blocks for axis in self.axes]})."
            )

    @property
    def keys(self) -> tuple[str, ...]:
        """All keys of the tensor in the state dict, its name first."""
        return (self.name, *self.aliases)

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def logical_shape(self) -> tuple[int, ...]:
        """Sizes of the logical axes."""
        return tuple(axis.size for axis in self.axes)


@dataclass(frozen=True)
class Layer:
    """A map from source groups to a target group; several layers into one target are summed before its operators.

    Args:
        name: Unique name within the space.
        operator: ``"linear"``, ``"conv"`` (1, 2 or 3 dimensions, by the weight's shape) or ``"identity"`` (a skip connection).
        sources: Groups read; several are concatenated.
        target: Group written.
        weight: Name of the weight parameter (absent for an identity).
        bias: Name of the bias parameter, if any.
        stride: Stride of a convolution, the same along all dimensions.
        padding: Zero padding of a convolution, the same on all sides.
    """

    name: str
    operator: Literal["linear", "conv", "identity"]
    sources: tuple[str, ...]
    target: str
    weight: str | None = None
    bias: str | None = None
    stride: int = field(default=1, kw_only=True)
    padding: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sources", tuple(self.sources))
        if self.operator not in ("linear", "conv", "identity"):
            raise ValueError(f"Layer {self.name!r} has operator {self.operator!r}; expected linear, conv or identity.")
        if self.stride < 1 or self.padding < 0:
            raise ValueError(
                f"Layer {self.name!r}: expected 'stride' of at least 1 and 'padding' of at least 0 (got {self.stride} and {self.padding})."
            )
        if (self.weight is None) != (self.operator == "identity"):
            raise ValueError(f"Layer {self.name!r}: a {self.operator} layer needs {'no' if self.weight else 'a'} weight.")


@dataclass(frozen=True)
class Signal:
    r"""What an implicit neural representation stands for: a picture, and how its values are read.

    .. math:: \text{picture}[i, j] = f(p_{ij}) + c, \quad p_{ij} = (x_j, y_i) \text{ or } (y_i, x_j), \quad x, y \in [-1, 1]

    Args:
        shape: Height and width in pixels.
        first_axis: What the first coordinate counts: ``"column"`` (Navon et al.) or ``"row"`` (Zhou et al.).
        offset: The constant :math:`c` added to the network's output.
        value_range: Values of black and white.

    Raises:
        ValueError: If the shape is not positive, the axis is unknown or the range is empty.

    Example:
        >>> Signal((2, 3)).coordinates().tolist()
        [[-1.0, -1.0], [0.0, -1.0], [1.0, -1.0], [-1.0, 1.0], [0.0, 1.0], [1.0, 1.0]]
    """

    shape: tuple[int, int]
    first_axis: Literal["column", "row"] = "column"
    offset: float = 0.0
    value_range: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        object.__setattr__(self, "value_range", tuple(self.value_range))
        if len(self.shape) != 2 or min(self.shape) < 1:
            raise ValueError(f"Expected 'shape' to be a positive height and width (got {self.shape}).")
        if self.first_axis not in ("column", "row"):
            raise ValueError(f"Expected 'first_axis' to be 'column' or 'row' (got {self.first_axis!r}).")
        if len(self.value_range) != 2 or not self.value_range[0] < self.value_range[1]:
            raise ValueError(f"Expected 'value_range' to be a lower and a higher value (got {self.value_range}).")

    def coordinates(self, shape: tuple[int, int] | None = None) -> Tensor:
        """Coordinates of all pixels, row by row, float64 ``[H * W, 2]``.

        Args:
            shape: Height and width (default: those of the signal).
        """
        rows, columns = (torch.linspace(-1, 1, size, dtype=torch.float64) for size in shape or self.shape)
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        return torch.stack([x, y] if self.first_axis == "column" else [y, x], dim=-1).flatten(0, 1)


@dataclass(frozen=True)
class Connection:
    r"""Neurons that read others, one edge per pair, or neurons that a parameter belongs to.

    The sources' groups are laid end to end, and so are the targets', each in a given order. Both then come in ``blocks`` of equal size:
    every target reads the sources of its block (all of them in a dense layer, one in a skip connection or a depthwise convolution).
    Without sources, the parameter is a feature of its targets: a bias, the statistics of a normalisation, a slope.

    Args:
        name: Where in the network it stands.
        kind: ``"weight"`` (a layer), ``"scale"`` (neuron times parameter), ``"sum"`` and ``"product"`` (of neurons), ``"operator"``
            (anything else that makes neurons of others); without sources ``"bias"``, ``"mean"``, ``"variance"`` or ``"slope"``.
        sources: Groups read.
        targets: Groups written.
        source_order: Which of the sources' neurons is read at every place; they may repeat. Empty for their own order.
        target_order: Which of the targets' neurons is written at every place.
        blocks: Number of blocks.
        parameter: Name of the parameter whose entries lie on the edges, or belong to the targets; none for edges of weight 1.
        shape: Shape in which to view the parameter.
        source_axis: Its axis along which the sources of a block lie, or several that are laid into one; none where all have the
            same entry.
        target_axis: Its axis along which the targets lie, or several: of a stack of weights, that of the stack and that of the
            neurons. Other axes are kernel positions.
        parallel_axes: Axes whose entries are edges of their own between the same two neurons: positions in no order.
        source_index: Entries of the source axis that are used, empty for all.
        target_index: Entries of the target axis that are used, empty for all.
    """

    name: str
    kind: Literal["weight", "scale", "sum", "product", "operator", "bias", "mean", "variance", "slope"]
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    source_order: tuple[int, ...] = ()
    target_order: tuple[int, ...] = ()
    blocks: int = 1
    parameter: str | None = None
    shape: tuple[int, ...] = ()
    source_axis: int | tuple[int, ...] | None = None
    target_axis: int | tuple[int, ...] | None = None
    source_index: tuple[int, ...] = ()
    target_index: tuple[int, ...] = ()
    parallel_axes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("sources", "targets", "source_order", "target_order", "shape", "source_index", "target_index", "parallel_axes"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("source_axis", "target_axis"):
            if isinstance(getattr(self, name), (tuple, list)):
                object.__setattr__(self, name, tuple(getattr(self, name)))

    def end_axes(self, end: Literal["source", "target"]) -> tuple[int, ...]:
        """The axes of the parameter along which the neurons at one end lie.

        Args:
            end: Which end.

        Returns:
            None, one, or several that are laid into one.
        """
        axis = self.source_axis if end == "source" else self.target_axis
        return () if axis is None else axis if isinstance(axis, tuple) else (axis,)

    @property
    def num_positions(self) -> int:
        """Kernel positions per edge, 0 where there is no parameter."""
        axes = (*self.end_axes("source"), *self.end_axes("target"), *self.parallel_axes)
        return math.prod(size for i, size in enumerate(self.shape) if i not in axes) if self.parameter else 0

    @property
    def num_parallel(self) -> int:
        """Edges between the same two neurons."""
        return math.prod(self.shape[axis] for axis in self.parallel_axes)

    def weight(self, parameter: Tensor) -> Tensor:
        """The parameter ``[B, *shape]`` as it lies on the edges, ``[B, targets, edges per target, positions]``; sizes may be 1."""
        ends = [self.end_axes("target"), self.end_axes("source"), self.parallel_axes]
        taken = [axis for axes in ends for axis in axes]
        order = [*taken, *(axis for axis in range(len(self.shape)) if axis not in taken)]
        sizes = [math.prod(self.shape[axis] for axis in axes) for axes in ends]
        viewed = parameter.view(len(parameter), *self.shape).permute(0, *(1 + axis for axis in order))
        viewed = viewed.reshape(len(parameter), *sizes, max(self.num_positions, 1))
        for dim, index in ((1, self.target_index), (2, self.source_index)):
            if index:
                viewed = viewed.index_select(dim, torch.tensor(index, device=viewed.device))
        return viewed.flatten(2, 3)
