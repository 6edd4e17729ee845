"""Whether two networks are the same, near, or strangers, modulo symmetry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wsgraph._counts import counted
from wsgraph._outputs import largest_difference, space_outputs
from wsgraph.provenance.yardstick import Yardstick
from wsgraph.space import SpaceMismatchError, WeightSpace
from wsgraph.space.distinct import differ_in_names_alone
from wsgraph.symmetry import GroupElement

__all__ = ["NEAR", "Comparison", "ParameterComparison", "compared", "difference_of", "same"]

NEAR = 0.85  # of the way to shuffled networks; benchmarks/README.md has the distances of strangers
_ROUNDINGS = 64  # of a dtype that equal networks may differ by, relative to the largest entry of a parameter
_LEAST = 1e-9  # to which factors are found
_UNMOVED = 1e-6


@dataclass(frozen=True)
class ParameterComparison:
    """A parameter of two networks.

    Attributes:
        name: Its name.
        size: Its number of entries.
        distance: Distance after alignment, in units of what shuffled networks have.
        kept: Whether it is bit for bit the same in both, as they are stored.
    """

    name: str
    size: int
    distance: float
    kept: bool


@dataclass(frozen=True)
class Comparison:
    """What two networks have to do with each other.

    Attributes:
        verdict: ``"equal"`` up to symmetry, ``"near"``, or ``"different"``.
        distance: Distance after alignment: 0 for equal networks, 1 for networks whose entries were shuffled.
        difference: Largest difference of an entry after alignment, relative to the largest entry of its parameter.
        parameters: Distances by parameter, in their order.
        element: Takes the first network beside the second.
        answers: Largest relative difference of the networks' answers to random inputs; ``None`` where they could not be run.

    Example:
        >>> import torch, wsgraph
        >>> space = wsgraph.WeightSpace.mlp([2, 8, 1])
        >>> theta = space.sample(1)[0]
        >>> found = wsgraph.same(space, theta, theta)
        >>> found.verdict, found.distance, found.moved, len(found.kept)
        ('equal', 0.0, False, 4)
    """

    verdict: str
    distance: float
    difference: float
    parameters: tuple[ParameterComparison, ...]
    element: GroupElement
    answers: float | None

    @property
    def kept(self) -> tuple[str, ...]:
        """Parameters that are bit for bit the same."""
        return tuple(each.name for each in self.parameters if each.kept)

    @property
    def moved(self) -> bool:
        """Whether neurons change places or signs, or are multiplied, if the networks are equal: near ones always differ in balance."""
        orders = self.element.permutations.values()
        if any(not torch.equal(each[0], torch.arange(each.shape[1], device=each.device)) for each in orders):
            return True
        scales = [scale if self.verdict == "equal" else scale.sign() for scale in self.element.scales.values()]
        return any(bool((each - 1).abs().max() > _UNMOVED) for each in scales)

    def document(self) -> dict[str, Any]:
        """The comparison as plain values, without the element."""
        parameters = [dict(vars(each)) for each in self.parameters]
        shares = {"verdict": self.verdict, "distance": self.distance, "difference": self.difference, "answers": self.answers}
        return {**shares, "moved": self.moved, "parameters": parameters}

    def __str__(self) -> str:
        how = " after its neurons are moved" if self.moved else ""
        kept = f", {len(self.kept)} of {len(self.parameters)} parameters bit for bit the same" if self.kept else ""
        told = {
            "equal": f"Equal{how}: no entry differs by more than rounding ({self.difference:.1e} of the largest of its parameter)",
            "near": f"Near{how}: at {self.distance:.3f} of the way to shuffled networks{kept}",
            "different": f"Different: at {self.distance:.3f} of the way to shuffled networks{kept}",
        }
        if self.answers is None:
            return f"{told[self.verdict]}."
        return f"{told[self.verdict]}. Answers to random inputs differ by {self.answers:.1e} of the largest."


def same(space: WeightSpace, first: Tensor, second: Tensor, *, seed: int = 0) -> Comparison:
    r"""Whether two networks are equal up to symmetry, near each other, or different.

    Both are balanced (:func:`wsgraph.symmetry.balance`), and permutations and signs are searched for that bring the first nearest to
    the second. The distance is given in units of what remains between networks whose entries are shuffled within every parameter
    (:class:`~wsgraph.provenance.yardstick.Yardstick`). Networks are equal if no entry differs by more than rounding of the coarser of both
    dtypes, near below 0.85, else different: networks that were trained apart are at 0.94 or more, almost all of them.

    Symmetries that are no permutation, factor or sign are not searched for: shifts of a sine's phase by its period, flips of sigmoids,
    bases of queries and keys. Networks that differ by one are called different or near, but ``answers`` says that they compute the same.

    Args:
        space: The weight space of both.
        first: A checkpoint ``[P]``.
        second: Another one ``[P]``.
        seed: Seed of shuffles, of the order of alignment and of random inputs.

    Returns:
        The comparison, with the element that takes the first beside the second.

    Raises:
        SpaceMismatchError: If a shape is wrong.
        ValueError: If a weight is NaN or infinite.

    Example:
        >>> import torch, wsgraph
        >>> space = wsgraph.WeightSpace.mlp([8, 32, 32, 4])
        >>> theta, other = space.sample(2, generator=torch.Generator().manual_seed(0))
        >>> moved = space.act(space.sample_symmetry(1, (1e-3, 1e3)), theta[None])[0]
        >>> found = wsgraph.same(space, theta, moved)
        >>> found.verdict, torch.allclose(space.act(found.element, theta[None])[0], moved)
        ('equal', True)
        >>> noisy = moved * (1 + 0.1 * torch.randn(space.num_params))
        >>> wsgraph.same(space, theta, noisy).verdict, wsgraph.same(space, theta, other).verdict
        ('near', 'different')
    """
    for name, theta in (("first", first), ("second", second)):
        space.check_thetas(theta, name, batched=False)
    both = torch.stack([theta.detach().double() for theta in (first, second)])
    space.check_thetas(both, finite=True)
    yardstick = Yardstick.of(space, both, seed=seed)
    points = yardstick.prepare(both)
    match = yardstick.match(points[:1], points[1:], seed=seed)
    factors = [yardstick.metric.factors(theta[None]) for theta in both]
    element = factors[1].inverse() @ match.element @ factors[0]
    difference = _difference(space, space.act(match.element, points.values[:1])[0], points.values[1])
    coarsest = max(torch.finfo(theta.dtype).eps for theta in (first, second))
    distance = float(yardstick.relative(match.distances, points.norms[:1], points.norms[1:]))
    if difference <= max(_ROUNDINGS * coarsest, _LEAST):
        verdict = "equal"
    else:
        verdict = "near" if distance < NEAR else "different"
    parameters = []
    for param in space.params:
        if param.role == "buffer":
            continue
        part, mean = space.slices[param.name], yardstick.means[param.name]
        norms = [(point[part] - mean).norm() for point in points.values]
        own = float(yardstick.relative(match.squares[param.name].sqrt(), norms[0], norms[1]))
        parameters.append(ParameterComparison(param.name, param.size, own, torch.equal(first[part], second[part])))
    return Comparison(verdict, distance, difference, tuple(parameters), element, _answers(space, both, seed))


def compared(first: tuple[WeightSpace, Tensor], second: tuple[WeightSpace, Tensor], *, seed: int = 0) -> Comparison:
    """:func:`same` of networks whose weight spaces were found apart, such as those of files of different formats.

    Args:
        first: A weight space and a checkpoint ``[P]``.
        second: Another weight space and a checkpoint.
        seed: Seed of everything random.

    Returns:
        The comparison, in the names of the first.

    Raises:
        SpaceMismatchError: If the networks have different architectures, with what differs.
        ValueError: If a weight is NaN or infinite.

    Example:
        >>> import torch, wsgraph
        >>> module = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1)).eval()
        >>> space = wsgraph.trace(module, torch.ones(1, 2))
        >>> compared((space, space.flatten(module.state_dict())), wsgraph.from_state_dict(module.state_dict(), "relu")).verdict
        'equal'
    """
    space = first[0]
    if not differ_in_names_alone(space, second[0]):
        raise SpaceMismatchError(f"Networks of different architectures have no distance: {difference_of(space, second[0])}")
    return same(space, first[1], second[1], seed=seed)


def difference_of(space: WeightSpace, other: WeightSpace) -> str:
    """In what two weight spaces differ, in a sentence."""
    shapes, others = ([(param.name, tuple(param.shape)) for param in each.params] for each in (space, other))
    if [shape for _, shape in shapes] != [shape for _, shape in others]:
        if len(shapes) != len(others):
            return f"{space!r} has {counted(len(shapes), 'parameter')}, {other!r} {len(others)}."
        (name, shape), (its_name, its_shape) = next(pair for pair in zip(shapes, others, strict=True) if pair[0][1] != pair[1][1])
        return f"{name} of {space!r} has shape {list(shape)}, {its_name} of {other!r} {list(its_shape)}."
    return (
        f"{space!r} and {other!r} have parameters of the same shapes, but other operators or connections. Say what they are by "
        "--activation, --module or --space, if it is not so."
    )


def _difference(space: WeightSpace, one: Tensor, other: Tensor) -> float:
    """The largest difference of an entry, relative to the largest entry of its parameter."""
    largest = 0.0
    for param in space.params:
        if param.role != "buffer":
            own, wanted = one[space.slices[param.name]], other[space.slices[param.name]]
            size = float(torch.maximum(own.abs().max(), wanted.abs().max()))
            largest = max(largest, float((own - wanted).abs().max()) / size if size else 0.0)
    return largest


def _answers(space: WeightSpace, thetas: Tensor, seed: int) -> float | None:
    """How far the answers of both networks to random inputs are apart; ``None`` where the space does not say what they compute."""
    try:
        outputs = space_outputs(space, space.example_inputs(generator=torch.Generator().manual_seed(seed), dtype=thetas.dtype))
        return largest_difference(outputs(thetas[:1]), outputs(thetas[1:]))
    except (SpaceMismatchError, ValueError):
        return None
