"""What networks answer to learned inputs: features that no symmetry can change."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from wsgraph.nn.normalize import symlog
from wsgraph.nn.registry import Spaces, as_spaces
from wsgraph.space import ParameterGraph, SpaceMismatchError
from wsgraph.space.assumed import tell_assumed
from wsgraph.space.base import BaseSpace
from wsgraph.space.evaluate import accepts, draw_leaves, keeps_rows_apart, run_calls, smallest_input_shape, tensors_of
from wsgraph.space.graph import check_graph

__all__ = ["Probes", "default_probes"]

_SIDE = 8
_PROBES, _PICTURE_PROBES = 64, 256
_MOST_PARAMETERS, _MOST_ENTRIES = 10**6, 10**4  # of networks, and of one of their inputs, that are run by default
_MOST_FEATURES = 256


class Probes(nn.Module):
    r"""Outputs of every network on learned inputs, as in `neural graphs <https://arxiv.org/abs/2403.12143>`_.

    .. math:: \left[ \mathrm{softmax}(z_m), \, \mathrm{symlog}(z_m) \right]_{m = 1 \ldots M}, \qquad z_m = f_\theta(x_m)

    with :math:`x_m` trained with the model, in the beginning standard normal or, for networks of pictures, uniform between the ends of
    their coordinates. Moving a network along a symmetry leaves its function, and so these features, unchanged. A mixed batch is run one
    distinct architecture after the other; those that take inputs of one shape share the learned inputs.

    Every traced network that can be run is read. All its floating point inputs are learned; integers,
    such as tokens, are fixed random rows of the table that they are looked up in (1 without a table),
    booleans are true. Several outputs lie side by side. An output for several positions is averaged
    over them: its features are the last of three dimensions (tokens), the second of more (channels).
    More than 256 features in all are averaged in 256 runs of equal length. Where the first dimension of
    the inputs is no batch, such as time in a recurrent network, every probe is a whole call.

    Args:
        space: Weight space of the networks, or a sequence of spaces.
        probes: Number :math:`M` of learned inputs.
        shape: Positions of an input, such as ``(28, 28)`` (default: 8 along every dimension, or the smallest that the network accepts
            where 8 does not fit; those with which it was traced where it is not written as layers).

    Shapes:
        input: batch of ``B`` networks. output: ``[B, out_features]`` with ``2 * probes * n_L`` features, :math:`n_L` the largest number of
        outputs; where a network has fewer, zeros.

    Raises:
        SpaceMismatchError: If the batch holds networks that take inputs of another shape, or have more outputs; if a space does not say
            what its networks compute.
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
        self.spaces, self.shape = as_spaces(space, layered=False), None if shape is None else tuple(shape)
        self.probes = probes
        tell_assumed(self.spaces)
        for entry in self.spaces:
            entry.check_runs("Probes")
            if self.shape is not None and not _accepts_positions(entry, self.shape):
                raise ValueError(f"{entry!r} does not accept inputs with the positions 'shape' {self.shape}.")
        # Coordinates of a picture lie between -1 and 1, other inputs around 0.
        ordered = sorted(self.spaces, key=lambda entry: entry.signal is not None)
        draws = {key: (shape, entry.signal) for entry in ordered for key, shape in self._learned(entry).items()}
        self.inputs = nn.ParameterDict(
            {
                key: torch.randn(probes, *shape) if signal is None else 2 * torch.rand(probes, *shape) - 1
                for key, (shape, signal) in sorted(draws.items(), key=lambda item: item[1][0])
            }
        )
        self.outputs = max(_call_of(entry).features for entry in self.spaces)
        self.out_features = 2 * probes * self.outputs

    def _learned(self, space: BaseSpace) -> dict[str, tuple[int, ...]]:
        """Shapes of one probe of a network, by the name of the learned inputs."""
        call = _call_of(space)
        if self.shape is not None and not call.is_traced:
            shapes: tuple[tuple[int, ...] | None, ...] = ((_neurons(space, "input"), *self.shape),)
        else:
            shapes = call.inputs
        return {_key(i, shape): shape for i, shape in enumerate(shapes) if shape is not None}

    def forward(self, batch: ParameterGraph) -> Tensor:
        pieces = check_graph(batch).pieces()
        if len(pieces) == 1:
            return self._answers(pieces[0][0], pieces[0][2])
        result = pieces[0][2].new_zeros(batch.num_networks, self.out_features)
        for space, networks, thetas in pieces:
            result[networks] = self._answers(space, thetas).to(result.dtype)
        return result

    def _answers(self, space: BaseSpace, thetas: Tensor) -> Tensor:
        """Features ``[B, out_features]`` of networks of one space."""
        call = _call_of(space)
        learned, missing = self._learned(space), self.outputs - call.features
        if not any(space.matches(entry) for entry in self.spaces) and (missing < 0 or learned.keys() - self.inputs.keys()):
            raise SpaceMismatchError(
                f"Probes was built for {', '.join(map(repr, self.spaces[:3]))} but the batch holds networks of {space!r}. "
                "Build the model with all weight spaces that it shall read."
            )
        outputs = call.features_of(self._outputs(space, thetas, learned))
        answers = torch.stack([outputs.softmax(-1), symlog(outputs)], dim=2)
        return nn.functional.pad(answers, (0, missing)).flatten(1)

    def _outputs(self, space: BaseSpace, thetas: Tensor, learned: dict[str, tuple[int, ...]]) -> list[Tensor]:
        call = _call_of(space)
        given = [self.inputs[key] for key in learned]
        if not call.is_traced:
            return [space.evaluate(thetas, *given)]
        assert space.program is not None
        return _run(space, thetas, given, self.probes, call.apart)

    def extra_repr(self) -> str:
        return f"out_features={self.out_features}"


def default_probes(space: Spaces) -> int:
    """How many learned inputs a model reads the answers to, if nobody says.

    Networks of pictures are asked at 256 points, others at 64 inputs, and those that are expensive to run not at all: with more than a
    million parameters, or an input of more than 10,000 entries. Nor are those that do not say what they compute.

    Args:
        space: Weight space of the networks, or a sequence of spaces.

    Returns:
        The number of inputs; 0 if any of the spaces asks for none.

    Example:
        >>> from wsgraph import WeightSpace
        >>> default_probes(WeightSpace.mlp([2, 8, 1])), default_probes(WeightSpace.siren()), default_probes(WeightSpace.mlp([999, 1999, 1]))
        (64, 256, 0)
    """
    spaces = as_spaces(space, layered=False)
    if any(not entry.can_run or entry.num_params > _MOST_PARAMETERS or _entries(entry) > _MOST_ENTRIES for entry in spaces):
        return 0
    return _PROBES if all(entry.signal is None for entry in spaces) else _PICTURE_PROBES


def _entries(space: BaseSpace) -> int:
    """Entries of the largest input that a network is asked about."""
    if _is_traced(space):
        assert space.program is not None
        return max((math.prod(given.shape[1:]) for given in space.program.inputs), default=0)
    return math.prod(default_shape(space))


# == How networks are called ==


class _Call(NamedTuple):
    """How networks of a space are called for one probe.

    ``inputs`` holds the shape of every learned input, ``None`` for those that are fixed; ``features`` is the number of outputs; ``apart``
    says whether many probes are rows of one call.
    """

    is_traced: bool
    apart: bool
    inputs: tuple[tuple[int, ...] | None, ...]
    features: int

    def features_of(self, outputs: Sequence[Tensor]) -> Tensor:
        """Features ``[B, M, n]`` of outputs ``[B, M, ...]``."""
        return _features(outputs, self.apart) if self.is_traced else outputs[0]


def _is_traced(space: BaseSpace) -> bool:
    return not space.layers and space.program is not None


@functools.lru_cache(maxsize=4096)
def _call_of(space: BaseSpace) -> _Call:
    if not _is_traced(space):
        return _Call(False, True, (default_shape(space),), _neurons(space, "output"))
    program = space.program
    assert program is not None
    theta = space.sample(1, generator=torch.Generator().manual_seed(0))
    apart = keeps_rows_apart(space, program, theta[0])
    shapes = tuple((given.shape[1:] if apart else given.shape) if given.is_floating_point else None for given in program.inputs)
    learned = [torch.zeros(1, *shape) for shape in shapes if shape is not None]
    with torch.no_grad():
        outputs = _run(space, theta, learned, 1, apart)
    return _Call(True, apart, shapes, _features(outputs, apart).shape[-1])


def _run(space: BaseSpace, thetas: Tensor, learned: Sequence[Tensor], probes: int, apart: bool) -> list[Tensor]:
    """Outputs ``[B, M, ...]`` of traced networks for learned inputs, and fixed ones of integers and booleans."""
    program = space.program
    assert program is not None
    remaining = iter(learned)
    # Drawn anew in every pass, from one seed: they are no parameters, and take no memory.
    generator = torch.Generator().manual_seed(0)
    rows = [draw_leaves(space, program, probes if apart else None, generator=generator) for _ in range(1 if apart else probes)]
    fixed = rows[0] if apart else [torch.stack(drawn) for drawn in zip(*rows, strict=True)]
    leaves = [next(remaining) if given.is_floating_point else leaf for given, leaf in zip(program.inputs, fixed, strict=True)]
    if not apart:
        return run_calls(space, program, thetas, leaves)
    return tensors_of(space.evaluate(thetas, *program.arguments(leaves)))


def _features(outputs: Sequence[Tensor], apart: bool) -> Tensor:
    """Outputs ``[B, M, ...]`` side by side, averaged over positions, and in runs of equal length where they are very many.

    Features are the last of up to three dimensions that the module returns, the second of more; ``M`` takes the place of the first of
    them where probes are rows of one call.
    """
    flat = []
    for output in outputs:
        output = torch.view_as_real(output).flatten(-2) if output.is_complex() else output
        values = output if output.is_floating_point() else output.to(torch.get_default_dtype())
        place = -1 if values.ndim <= 4 + (not apart) else 3 - apart
        flat.append(values.movedim(place, 2).flatten(3).mean(3) if values.ndim > 3 else values.reshape(*values.shape[:2], -1))
    dtype = functools.reduce(torch.promote_types, (values.dtype for values in flat))
    joined = torch.cat([values.to(dtype) for values in flat], dim=-1)
    return joined if joined.shape[-1] <= _MOST_FEATURES else nn.functional.adaptive_avg_pool1d(joined, _MOST_FEATURES)


def _accepts_positions(space: BaseSpace, positions: tuple[int, ...]) -> bool:
    if _is_traced(space):
        assert space.program is not None
        return all(given.shape[2:] == positions for given in space.program.inputs if given.is_floating_point)
    return accepts(space, (_neurons(space, "input"), *positions))


@functools.lru_cache(maxsize=4096)
def default_shape(space: BaseSpace) -> tuple[int, ...]:
    """Shape ``(n_0, *positions)`` of a small input that a network accepts."""
    smallest = smallest_input_shape(space)
    wider = (smallest[0], *(max(_SIDE, side) for side in smallest[1:]))
    return wider if accepts(space, wider) else smallest


def _key(position: int, shape: Sequence[int]) -> str:
    """Name of learned inputs: those of the first input are called by their shape alone."""
    text = "x".join(map(str, shape)) or "1 number"
    return f"input {position}: {text}" if position else text


def _neurons(space: BaseSpace, role: str) -> int:
    return next(group.size for group in space.groups if group.role == role)
