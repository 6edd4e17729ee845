"""What lies between two networks: losses and accuracies on the line from one to the other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wsgraph.data.public.base import tracked
from wsgraph.provenance.aligning import alignment_of, elements_beside
from wsgraph.provenance.merging import with_counters_of_first
from wsgraph.provenance.statistics import Averages
from wsgraph.space import WeightSpace

__all__ = ["Barrier", "Curve", "barrier", "scored"]

_ENTRIES = 2**22  # of inputs that are run at once


@dataclass(frozen=True)
class Curve:
    """Networks on a line between two.

    Attributes:
        losses: Mean loss of every network.
        accuracies: Share of the inputs that it gets right; empty where labels are no classes.
    """

    losses: tuple[float, ...]
    accuracies: tuple[float, ...]


@dataclass(frozen=True)
class Barrier:
    """Curves between two networks, by how the second was brought beside the first.

    Attributes:
        shares: Shares of the second network, from 0 to 1.
        curves: By name: ``"as they are"``, ``"aligned by weights"`` or ``"aligned by activations"``, and the latter also with statistics
            taken anew, ``"..., recalibrated"``.
    """

    shares: tuple[float, ...]
    curves: Mapping[str, Curve]

    def height(self, name: str) -> float:
        r"""The barrier: how far the loss rises above the line between the losses at the ends.

        .. math:: \max_\alpha \; L((1 - \alpha) \theta_1 + \alpha \theta_2) - (1 - \alpha) L(\theta_1) - \alpha L(\theta_2)
        """
        losses = self.curves[name].losses
        line = ((1 - share) * losses[0] + share * losses[-1] for share in self.shares)
        return max(loss - expected for loss, expected in zip(losses, line, strict=True))

    def accuracy_drop(self, name: str) -> float:
        """The same of accuracies: how far they fall below the line between the ends."""
        accuracies = self.curves[name].accuracies
        line = ((1 - share) * accuracies[0] + share * accuracies[-1] for share in self.shares)
        return max(expected - accuracy for accuracy, expected in zip(accuracies, line, strict=True))

    def document(self) -> dict[str, Any]:
        """The curves and barriers as plain values."""
        curves: dict[str, dict[str, Any]] = {}
        for name, curve in self.curves.items():
            losses = [loss if math.isfinite(loss) else None for loss in curve.losses]
            height = self.height(name)
            curves[name] = {"barrier": height if math.isfinite(height) else None, "losses": losses}
            if curve.accuracies:
                curves[name] |= {"accuracy_drop": self.accuracy_drop(name), "accuracies": list(curve.accuracies)}
        return {"shares": list(self.shares), "curves": curves}


def barrier(
    space: WeightSpace,
    first: Tensor,
    second: Tensor,
    inputs: Any,
    labels: Tensor,
    *,
    steps: int = 21,
    align: str | None = None,
    aligned_on: Any = None,
    recalibrate: Any = None,
    seed: int = 0,
    progress: bool = True,
) -> Barrier:
    """Loss and accuracy on the line between two networks: as they are, aligned, and with statistics taken anew.

    Args:
        space: The weight space of both.
        first: A checkpoint ``[P]``.
        second: Another one.
        inputs: What the networks are scored on, as for :meth:`~wsgraph.WeightSpace.evaluate`.
        labels: Classes ``[M]``, for cross entropy and accuracy; or numbers in the shape of the outputs, for the mean squared error.
        steps: Number of networks on the line, its ends included.
        align: How the second is brought beside the first, as for :func:`wsgraph.provenance.merge`.
        aligned_on: Inputs for alignment by activations (default: those that are scored on).
        recalibrate: Inputs for statistics (default: those that are scored on).
        seed: Seed of everything random.
        progress: Whether to show a progress bar for what takes more than two seconds.

    Returns:
        A curve for every way of bringing the second network beside the first.

    Raises:
        SpaceMismatchError: If a shape is wrong, or the space does not say what its networks compute.
        ValueError: If there are fewer than three steps, a weight is NaN or infinite, or inputs and labels do not fit the networks.

    References:
        Frankle et al., `Linear Mode Connectivity <https://arxiv.org/abs/1912.05671>`_; Entezari et al., `The Role of Permutation Invariance
        <https://arxiv.org/abs/2110.06296>`_.

    Example:
        >>> import torch
        >>> from wsgraph import WeightSpace
        >>> space, generator = WeightSpace.mlp([4, 16, 3], "tanh"), torch.Generator().manual_seed(0)
        >>> theta, inputs = space.sample(1, generator=generator), torch.randn(60, 4, generator=generator)
        >>> moved = space.act(space.sample_symmetry(generator=generator), theta)
        >>> found = barrier(space, theta[0], moved[0], inputs, space.evaluate(theta, inputs)[0].argmax(1), steps=5)
        >>> round(found.accuracy_drop("aligned by activations"), 3), found.accuracy_drop("as they are") > 0.1
        (0.0, True)
    """
    if steps < 3:
        raise ValueError(f"Expected 3 'steps' or more, the ends and what is between them (got {steps}).")
    for name, theta in (("first", first), ("second", second)):
        space.check_thetas(theta, name, batched=False)
    both = torch.stack([first, second]).detach()
    space.check_thetas(both, finite=True)
    aligned_on, taken = (inputs if given is None else given for given in (aligned_on, recalibrate))
    both = with_counters_of_first(space, both.double())
    kind = alignment_of(align, aligned_on)
    aligned = space.act(elements_beside(space, both, kind, inputs=aligned_on, seed=seed), both)
    dtype = torch.promote_types(first.dtype, torch.float32)
    lines = {"as they are": Averages(space, both.to(dtype))}
    if kind != "none":
        lines[f"aligned by {kind}"] = Averages(space, aligned.to(dtype))
    name = f"{list(lines)[-1]}, recalibrated"
    lines[name] = Averages(space, aligned.to(dtype), taken)
    shares = torch.linspace(0, 1, steps, dtype=torch.float64).tolist()
    work = [(name, share) for name in lines for share in shares]
    found: dict[str, list[tuple[float, float | None]]] = {name: [] for name in lines}
    for name, share in tracked(work, "between the networks") if progress else work:
        found[name].append(scored(space, lines[name]((1 - share, share)), inputs, labels))
    curves = {}
    for name, values in found.items():
        accuracies = tuple(accuracy for _, accuracy in values if accuracy is not None)
        curves[name] = Curve(tuple(loss for loss, _ in values), accuracies)
    return Barrier(tuple(shares), curves)


def scored(space: WeightSpace, theta: Tensor, inputs: Any, labels: Tensor) -> tuple[float, float | None]:
    """Loss and accuracy of a network.

    Args:
        space: Its weight space.
        theta: The network ``[P]``.
        inputs: What it is run on.
        labels: Classes ``[M]``, or numbers in the shape of the outputs.

    Returns:
        Mean cross entropy and accuracy, or the mean squared error and ``None``.

    Raises:
        ValueError: If outputs are no single tensor, or labels do not fit them.
    """
    outputs = torch.cat([_outputs(space, theta, batch) for batch in _batches(inputs)])
    labels = labels.to(outputs.device)
    classes = not labels.is_floating_point()
    if (
        len(labels) != len(outputs)
        or (classes and (labels.ndim != 1 or outputs.ndim != 2))
        or (not classes and labels.shape != outputs.shape)
    ):
        raise ValueError(
            f"Expected as many classes as inputs, of networks that give a score per class, or numbers in the shape of the outputs (got "
            f"labels of shape {list(labels.shape)}, {labels.dtype}, for outputs of shape {list(outputs.shape)})."
        )
    if not classes:
        return float(F.mse_loss(outputs, labels.to(outputs))), None
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < outputs.shape[1]:
        raise ValueError(f"Expected classes from 0 to {outputs.shape[1] - 1} (got {int(labels.min())} to {int(labels.max())}).")
    return float(F.cross_entropy(outputs, labels.long())), float((outputs.argmax(1) == labels).double().mean())


def _outputs(space: WeightSpace, theta: Tensor, inputs: tuple[Any, ...]) -> Tensor:
    with torch.no_grad():
        outputs = space.evaluate(theta[None], *inputs)
    if not isinstance(outputs, Tensor):
        raise ValueError(f"Expected networks that return one tensor, to compare it with labels (got a {type(outputs).__name__}).")
    return outputs[0]


def _batches(inputs: Any) -> Sequence[tuple[Any, ...]]:
    """Inputs cut to size, where they are one tensor."""
    if isinstance(inputs, tuple):
        return [inputs]
    return [(rows,) for rows in inputs.split(max(32, _ENTRIES // max(1, inputs[0].numel())))]
