"""Elements of the monomial group, batched over networks, and how they move checkpoints."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from wsgraph.space.errors import SpaceMismatchError
from wsgraph.space.flat import FlatSpace
from wsgraph.space.parts import Axis, NeuronGroup, Parameter
from wsgraph.space.symmetry.occurrences import segments

__all__ = ["SYMMETRIES", "GroupElement", "act", "flatten_logical", "logical_tensors", "move_parameter", "sample_symmetry", "with_products"]

SYMMETRIES = ("permutation", "scale", "sign")


@dataclass(frozen=True, eq=False)
class GroupElement:
    r"""A batch of elements :math:`g = (g_c)` of the monomial group, :math:`g_c = D_c P_c` for every movable class of neuron groups.

    .. math:: (g_c v)_j = d_{c,j} \, v_{\pi_c(j)}

    Args:
        space: The weight space.
        permutations: By permutation class, :math:`\pi_c` as a long tensor ``[B, n_c]``.
        scales: By scale class, :math:`d_c` as a tensor ``[B, n_c]``: positive numbers, signs or their products.

    ``g @ h`` applies ``h`` first: ``space.act(g @ h, t) == space.act(g, space.act(h, t))``.

    Example:
        >>> import torch
        >>> from wsgraph import WeightSpace
        >>> space = WeightSpace.mlp([2, 8, 1])
        >>> g = space.sample_symmetry(4, generator=torch.Generator().manual_seed(0))
        >>> g
        GroupElement(batch=4, hidden.1: permutation x scale)
        >>> thetas = space.sample(4, dtype=torch.float64)
        >>> torch.allclose(space.act(g.inverse() @ g, thetas), thetas)
        True
    """

    space: FlatSpace
    permutations: Mapping[str, Tensor]
    scales: Mapping[str, Tensor]

    @property
    def batch(self) -> int:
        """Number of elements."""
        return next(iter(self.permutations.values())).shape[0] if self.permutations else 1

    def inverse(self) -> GroupElement:
        r"""The inverse elements: :math:`\pi^{-1}` and :math:`1 / d_{\pi^{-1}(j)}`."""
        inverse = {label: permutation.argsort(dim=1) for label, permutation in self.permutations.items()}
        scales = {label: scale.reciprocal().gather(1, inverse[self._permutation_of(label)]) for label, scale in self.scales.items()}
        return GroupElement(self.space, inverse, scales)

    def __matmul__(self, other: GroupElement) -> GroupElement:
        if not isinstance(other, GroupElement):
            return NotImplemented
        if other.space != self.space:
            raise SpaceMismatchError(f"Cannot compose elements of the groups of {self.space!r} and {other.space!r}.")
        if 1 not in (self.batch, other.batch) and self.batch != other.batch:
            raise SpaceMismatchError(f"Cannot compose batches of {self.batch} and {other.batch} group elements.")
        self, other = (element._expand(max(self.batch, other.batch)) for element in (self, other))
        permutations = {label: other.permutations[label].gather(1, permutation) for label, permutation in self.permutations.items()}
        before = {label: other.scales[label].gather(1, self.permutations[self._permutation_of(label)]) for label in self.scales}
        scales = {label: scale * before[label] for label, scale in self.scales.items()}
        return GroupElement(self.space, permutations, scales)

    def _expand(self, batch: int) -> GroupElement:
        permutations = {label: tensor.expand(batch, -1) for label, tensor in self.permutations.items()}
        return replace(self, permutations=permutations, scales={label: tensor.expand(batch, -1) for label, tensor in self.scales.items()})

    def _permutation_of(self, scale_label: str) -> str:
        return self.space.scale_classes[scale_label][0].permutation

    def to(self, device: torch.device | str) -> GroupElement:
        """The same elements on another device."""
        permutations = {label: tensor.to(device) for label, tensor in self.permutations.items()}
        return replace(self, permutations=permutations, scales={label: tensor.to(device) for label, tensor in self.scales.items()})

    def __repr__(self) -> str:
        kinds = ", ".join(f"{label}: {self.space.class_symmetry(label)}" for label in self.scales)
        return f"GroupElement(batch={self.batch}{', ' if kinds else ''}{kinds})"


def sample_symmetry(
    space: FlatSpace,
    batch: int = 1,
    scale: tuple[float, float] = (0.1, 10.0),
    *,
    distribution: str = "log_uniform",
    symmetries: Collection[str] = SYMMETRIES,
    classes: Collection[str] | None = None,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> GroupElement:
    """Draw random elements of the monomial group of a weight space.

    Permutations are uniform; groups that allow positive factors (ReLU family) draw them from ``scale``; groups that allow signs (odd
    activations) draw -1 or 1 with equal probability. What a group does not allow is left at the identity.

    Args:
        space: The weight space.
        batch: Number of elements, one per network.
        scale: Smallest and largest positive factor per neuron.
        distribution: ``"log_uniform"``, or ``"uniform"`` as in the papers' augmentation protocol.
        symmetries: Which of ``"permutation"``, ``"scale"`` and ``"sign"`` to draw.
        classes: Labels of the classes to move (default: all).
        generator: Source of randomness, on the CPU.
        dtype: Dtype of the factors.
        device: Device of the result.

    Returns:
        A :class:`GroupElement` of that batch size.

    Raises:
        ValueError: If the scale range, the distribution, a symmetry or a class is not valid.

    Example:
        >>> import torch
        >>> from wsgraph import WeightSpace
        >>> space = WeightSpace.mlp([2, 8, 1], activation="tanh")
        >>> g = sample_symmetry(space, 3, generator=torch.Generator().manual_seed(0))
        >>> g.scales["hidden.1"].abs().unique()
        tensor([1.], dtype=torch.float64)
    """
    if batch < 1:
        raise ValueError(f"Expected 'batch' to be at least 1 (got {batch}).")
    low, high = scale
    if not (0 < low <= high < math.inf):
        raise ValueError(f"Expected 'scale' to be (low, high) with 0 < low <= high (got {tuple(scale)}).")
    if distribution not in ("log_uniform", "uniform"):
        raise ValueError(f"Expected 'distribution' to be 'log_uniform' or 'uniform' (got {distribution!r}).")
    if unknown := sorted(set(symmetries) - set(SYMMETRIES)):
        raise ValueError(f"Unknown symmetries {unknown}; expected some of {SYMMETRIES}.")
    known = {*space.permutation_classes, *space.scale_classes}
    if classes is not None and not set(classes) <= known:
        raise ValueError(f"Unknown classes {sorted(set(classes) - known)}; this space has {sorted(known)}.")

    if classes is not None:  # a class moves with the factors that it is made of
        made_of = {label: members[0].factors for label, members in space.permutation_classes.items()}
        classes = {*classes, *(space.group(name).permutation for label in classes for name in made_of.get(label, ()))}

    def moved(label: str) -> bool:
        return classes is None or label in classes

    permutations, scales = {}, {}
    for label, members in space.permutation_classes.items():
        if space.is_permutable(label) and len(members[0].factors) < 2:
            size = (batch, members[0].size)
            drawn = torch.rand(size, generator=generator, dtype=torch.float64)
            if members[0].factors:  # within blocks
                blocks = torch.arange(space.group(members[0].factors[0]).size)[:, None]
                drawn = drawn.unflatten(1, (len(blocks), -1)).argsort(dim=2)
                drawn = (blocks * drawn.shape[2] + drawn).flatten(1)
            else:
                drawn = drawn.argsort(dim=1)
            identity = torch.arange(members[0].size).expand(size)
            permutations[label] = (drawn if "permutation" in symmetries and moved(label) else identity).to(device)
    permutations = with_products(space, permutations, batch, device)
    for label, members in space.scale_classes.items():
        if members[0].permutation not in permutations or members[0].role == "factor":
            continue
        size = (batch, members[0].size)
        allowed = space.class_symmetry(label)
        factors = torch.ones(size, dtype=torch.float64)
        if allowed.positive and "scale" in symmetries and moved(label):
            uniform = torch.rand(size, generator=generator, dtype=torch.float64)
            if distribution == "uniform":
                factors = low + (high - low) * uniform
            else:
                factors = torch.exp(math.log(low) + (math.log(high) - math.log(low)) * uniform)
        if allowed.sign and "sign" in symmetries and moved(label):
            factors = factors * (1 - 2 * torch.randint(0, 2, size, generator=generator))
        scales[label] = factors.to(device=device, dtype=dtype)
    return GroupElement(space, permutations, scales)


def with_products(
    space: FlatSpace, permutations: Mapping[str, Tensor], batch: int, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Permutations of classes, and those of the groups that they are factors of, which follow from them.

    Args:
        space: The weight space.
        permutations: By class; of one with a single factor, the permutation within its blocks.
        batch: Number of elements.
        device: Device of the result.

    Returns:
        Permutations by class, those with factors included.
    """
    result = dict(permutations)

    def of(factor: NeuronGroup) -> Tensor:
        return result.get(factor.permutation, torch.arange(factor.size, device=device).expand(batch, -1))

    for label, members in space.permutation_classes.items():
        if space.is_permutable(label) and members[0].factors:
            outer, *rest = (space.group(name) for name in members[0].factors)
            inner = rest[0].size if rest else members[0].size // outer.size
            columns = of(rest[0]) if rest else torch.arange(inner, device=device).expand(batch, -1)
            moved = (of(outer)[:, :, None] * inner + columns[:, None]).flatten(1)
            result[label] = result[label].gather(1, moved) if label in permutations else moved
    return result


def _permutation_along(space: FlatSpace, axis: Axis, permutations: Mapping[str, Tensor]) -> Tensor | None:
    """Where each entry along an axis comes from, ``[B, n]``; ``None`` where all stay."""
    groups = [group for group, _ in segments(space, axis)]
    some = next((permutations[group.permutation] for group in groups if group.permutation in permutations), None)
    if some is None:
        return None
    laid, offset = [], 0
    for group in groups:
        own = permutations.get(group.permutation)
        own = torch.arange(group.size, device=some.device).expand(some.shape[0], -1) if own is None else own
        laid.append(own + offset if offset else own)
        offset += group.size
    result = torch.cat(laid, dim=1) if len(laid) > 1 else laid[0]
    if not axis.order:
        return result
    order = torch.tensor(axis.order, device=result.device)
    return order.argsort()[result[:, order]]


def _factor_along(space: FlatSpace, axis: Axis, scales: Mapping[str, Tensor]) -> Tensor | None:
    """What each entry along an axis is multiplied with, ``[B, n]``; ``None`` where that is 1."""
    found = segments(space, axis)
    some = next((scales[label] for _, powers in found for label, _ in powers if label in scales), None)
    if some is None:
        return None
    laid = []
    for group, powers in found:
        factors = [scales[label] if power == 1 else scales[label] ** power for label, power in powers if label in scales]
        laid.append(math.prod(factors[1:], start=factors[0]) if factors else some.new_ones(some.shape[0], group.size))
    result = torch.cat(laid, dim=1) if len(laid) > 1 else laid[0]
    return result[:, torch.tensor(axis.order, device=result.device)] if axis.order else result


def move_parameter(
    space: FlatSpace, param: Parameter, tensor: Tensor, permutations: Mapping[str, Tensor], scales: Mapping[str, Tensor]
) -> Tensor:
    """Move one parameter, given with its logical axes ``[B, *logical_shape, *channels]``; classes that are not named stay."""
    for i, axis in enumerate(param.axes):
        dim = 1 + i
        permutation, factor = _permutation_along(space, axis, permutations), _factor_along(space, axis, scales)
        if permutation is None and factor is None:
            continue
        if axis.blocks > 1:
            if permutation is not None:  # blocks have moved with the first axis
                permutation = permutation % axis.size
            tensor, dim = tensor.unflatten(1, (axis.blocks, -1)), dim + 1
        shape = [1] * tensor.ndim
        shape[0], shape[1], shape[dim] = -1, axis.blocks, axis.size
        if permutation is not None:
            tensor = torch.take_along_dim(tensor, permutation.reshape(shape), dim=dim)
        if factor is not None:
            tensor = tensor * factor.to(tensor.dtype).reshape(shape)
        if axis.blocks > 1:
            tensor = tensor.flatten(1, 2)
    return tensor


def logical_tensors(space: FlatSpace, thetas: Tensor) -> dict[str, Tensor]:
    """Views ``[B, *logical_shape, *channels]`` of every parameter of ``thetas`` ``[B, P, *channels]``."""
    return {param.name: thetas[:, space.slices[param.name]].unflatten(1, param.logical_shape) for param in space.params}


def flatten_logical(space: FlatSpace, tensors: Mapping[str, Tensor]) -> Tensor:
    """The inverse of :func:`logical_tensors`."""
    return torch.cat([tensors[param.name].flatten(1, len(param.axes)) for param in space.params], dim=1)


def act(space: FlatSpace, g: GroupElement, thetas: Tensor) -> Tensor:
    r"""Move checkpoints by group elements, which leaves their functions unchanged.

    .. math:: W^{(i)} \to g_i W^{(i)} g_{i-1}^{-1}, \qquad b^{(i)} \to g_i b^{(i)}

    at every kernel position and feature channel alike; differentiable in ``thetas`` and in the factors of ``g``.

    Args:
        space: The weight space.
        g: Group elements, as many as networks (or one for all).
        thetas: Checkpoints ``[B, P]`` or features ``[B, P, C]``.

    Returns:
        Tensor of the shape and dtype of ``thetas``.

    Raises:
        SpaceMismatchError: If ``g`` belongs to another space, or batch sizes differ.
        ValueError: If a weight is NaN or infinite, which no symmetry of a network's function moves, or a factor is that or 0.
    """
    if isinstance(thetas, Tensor) and thetas.ndim > 2:  # features: the first channel tells the shape, all of them must be finite
        space.check_thetas(thetas[..., 0])
        space.check_thetas(thetas.movedim(-1, 1).flatten(0, 1), finite=True)
    else:
        space.check_thetas(thetas, finite=True)
    if g.space != space:
        raise SpaceMismatchError(f"The group element belongs to {g.space!r}, not to {space!r}.")
    if g.permutations and g.batch not in (1, thetas.shape[0]):
        raise SpaceMismatchError(f"Expected one group element per network, {thetas.shape[0]} (got {g.batch}).")
    for label, factors in g.scales.items():
        if not bool((factors.isfinite() & (factors != 0)).all()):
            raise ValueError(f"The factors of class {label!r} of the group element must be finite and other than 0.")
    if not space.params:
        return thetas
    g = g.to(thetas.device)
    moved = {
        param.name: move_parameter(space, param, tensor, g.permutations, g.scales)
        for param, tensor in zip(space.params, logical_tensors(space, thetas).values(), strict=True)
    }
    return flatten_logical(space, moved)
