"""What networks answer to learned inputs: features that no symmetry can change."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from wsgraph.nn.normalize import symlog
from wsgraph.nn.registry import Spaces, as_spaces
from wsgraph.space import ParameterGraph, SpaceMismatchError
from wsgraph.space.assumed import tell_assumed
from wsgraph.space.base import BaseSpace
from wsgraph.space.evaluate import accepts, smallest_input_shape
from wsgraph.space.flat import FlatSpace
from wsgraph.space.graph import check_graph

__all__ = ["Probes", "default_probes"]

_SIDE = 8


class Probes(nn.Module):
    r"""Outputs of every network on learned inputs, as in `neural graphs <https://arxiv.org/abs/2403.12143>`_.

    .. math:: \left[ \mathrm{softmax}(z_m), \, \mathrm{symlog}(z_m) \right]_{m = 1 \ldots M}, \qquad z_m = f_\theta(x_m)

    with :math:`x_m` trained with the model, in the beginning standard normal or, for networks of pictures, uniform between the ends of
    their coordinates. Moving a network along a symmetry leaves its function, and so these features, unchanged. A mixed batch is run one
    distinct architecture after the other; those that take inputs of one shape share the learned inputs.

    Args:
        space: Weight space of the networks, with one input and one output group, or a sequence of spaces.
        probes: Number :math:`M` of learned inputs.
        shape: Positions of an input, such as ``(28, 28)`` (default: 8 along every dimension, or the smallest that the network accepts
            where 8 does not fit).

    Shapes:
        input: batch of ``B`` networks. output: ``[B, out_features]`` with ``2 * probes * n_L`` features, :math:`n_L` the largest number of
        outputs; where a network has fewer, zeros.

    Raises:
        SpaceMismatchError: If the batch holds networks that take inputs of another shape, or have more outputs.
        ValueError: If no square input fits a network and no shape is given, or a network does not accept the given one.

    Example:
        >>> from wsgraph import WeightSpace
        >>> space = WeightSpace.cnn([1, 4, 4], [10])
        >>> Probes(space, 3)(space.batch(space.sample(2))).shape
        torch.Size([2, 60])
    """

    symmetries = ("permutation", "scale", "sign")

    def __init__(self, space: Spaces, probes: int, *, shape: Sequence[int] | None = None) -> None:
        super().__init__()
        self.spaces, self.shape = as_spaces(space), None if shape is None else tuple(shape)
        tell_assumed(self.spaces)
        for entry in self.spaces:
            if self.shape is not None and not accepts(entry, (_neurons(entry, "input"), *self.shape)):
                raise ValueError(f"{entry!r} does not accept inputs with the positions 'shape' {self.shape}.")
        shapes = {self._input_shape(entry): entry.signal for entry in sorted(self.spaces, key=lambda entry: entry.signal is not None)}
        # Coordinates of a picture lie between -1 and 1, other inputs around 0.
        drawn = {shape: torch.randn if shapes[shape] is None else _between_ends for shape in sorted(shapes)}
        self.inputs = nn.ParameterDict({_key(shape): draw(probes, *shape) for shape, draw in drawn.items()})
        self.outputs = max(_neurons(entry, "output") for entry in self.spaces)
        self.out_features = 2 * probes * self.outputs

    def _input_shape(self, space: FlatSpace) -> tuple[int, ...]:
        return default_shape(space) if self.shape is None else (_neurons(space, "input"), *self.shape)

    def forward(self, batch: ParameterGraph) -> Tensor:
        if check_graph(batch).fits_layout():
            return self._answers(batch.spaces[0], batch.thetas())
        x, edge_attr = cast(Tensor, batch.x), cast(Tensor, batch.edge_attr)
        result = x.new_zeros(batch.num_networks, self.out_features)
        for rows in batch.by_space():
            result[rows.networks] = self._answers(rows.space, rows.blocks(x, edge_attr).flatten()).to(result.dtype)
        return result

    def _answers(self, space: FlatSpace, thetas: Tensor) -> Tensor:
        known = any(space.matches(entry) for entry in self.spaces)
        key, missing = _key(self._input_shape(space)), self.outputs - _neurons(space, "output")
        if not known and (key not in self.inputs or missing < 0):
            raise SpaceMismatchError(
                f"Probes was built for {', '.join(map(repr, self.spaces[:3]))} but the batch holds networks of {space!r}. "
                "Build the model with all weight spaces that it shall read."
            )
        outputs = space.evaluate(thetas, self.inputs[key])
        answers = torch.stack([outputs.softmax(-1), symlog(outputs)], dim=2)
        return nn.functional.pad(answers, (0, missing)).flatten(1)

    def extra_repr(self) -> str:
        return f"out_features={self.out_features}"


def _between_ends(*shape: int) -> Tensor:
    return 2 * torch.rand(*shape) - 1


@functools.lru_cache(maxsize=4096)
def default_shape(space: FlatSpace) -> tuple[int, ...]:
    """Shape ``(n_0, *positions)`` of a small input that a network accepts."""
    smallest = smallest_input_shape(space)
    wider = (smallest[0], *(max(_SIDE, side) for side in smallest[1:]))
    return wider if accepts(space, wider) else smallest


def _key(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _neurons(space: FlatSpace, role: str) -> int:
    return next(group.size for group in space.groups if group.role == role)


def default_probes(spaces: Sequence[BaseSpace]) -> int:
    """How many probes models read unless told otherwise: 64, 256 where networks take coordinates of a picture, which cost little.

    None where a network has more than a million parameters or cannot be run.
    """
    if any(space.num_params > 1_000_000 or not space.layers for space in spaces):
        return 0
    return 64 if all(space.signal is None for space in spaces) else 256
