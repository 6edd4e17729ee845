"""Canonical forms: one representative for every orbit of the monomial group."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor

from wsgraph.space.flat import FlatSpace
from wsgraph.space.symmetry.canonical_order import CanonicalOrder
from wsgraph.space.symmetry.group import flatten_logical

__all__ = ["FORMS", "canonicalize"]

FORMS = ("scale", "phase", "flip", "sign", "order")


def canonicalize(space: FlatSpace, thetas: Tensor, fix: Collection[str] = FORMS) -> Tensor:
    r"""Replace each checkpoint by a fixed representative of its orbit; the network's function is kept.

    1. Phase, for :math:`\sin(\omega (w x + b))` in networks of layers: half turns :math:`b \to b - k \pi / \omega`, outgoing
       :math:`\to (-1)^k` outgoing bring :math:`\omega b` into :math:`(-\pi/2, \pi/2]`; where the sign cannot change, full turns bring it
       into :math:`(-\pi, \pi]`. The phase is not part of the monomial group, so this reduces more than its orbits. A bias that reaches
       the sine through an average over padding has none.
    2. Flip, for sigmoid, hard sigmoid, ReLU6 and other activations with a centre of symmetry, :math:`f(a - v) = c - f(v)`, in networks of
       layers: where the bias of what reads a neuron can take the shift (no zero padding), :math:`(w, b) \to (-w, a - b)` with outgoing
       :math:`u \to -u` and :math:`c \, u` added to that bias brings the neuron's own bias to :math:`b \ge a / 2`. It is not part of the
       monomial group either.
    3. Scale: the incoming vector (weights of all kernel positions, biases, norm parameters) of every neuron that allows positive factors
       gets norm 1, class by class from the input.
    4. Sign: the incoming entry of largest magnitude is made positive; of entries equally large to about :math:`10^3` roundings (8 in
       half precision), the first in the order of the neurons that they come from.
    5. Permutation: neurons are sorted lexicographically by those of their weights whose other ends are sorted already, then by the others,
       sorted (their magnitudes, where symmetries change signs); neurons in blocks (heads of attention, groups of convolutions) first within
       their block, then the blocks; of neurons that move as rows and columns, first the rows are sorted, then the columns.

    A neuron whose incoming weights are all zero, or come from such neurons alone, always answers 0, and its
    incoming vector says nothing: its outgoing vector settles scale (norm 1), sign and order in the same way.
    One without either can have any weights: they become 0.

    Groups that move alike (residual sums) are compared by what is settled of all of them. The result is idempotent and, up to rounding, the
    same for every point of an orbit. Neurons that agree in all of this to about ten digits (four in float32) are told apart by
    weights further away, by colour refinement; those that agree in these too stay in the order in which they are.
    Where two classes of factors multiply the same entries and nothing else (experts and
    their hidden neurons in one tensor), the entries' logarithms are centred along both, and the first neuron keeps its sign.

    Where norms of 1 would leave the range of the dtype (all weights of a deep network tiny or huge), every class of neurons gets one norm
    other than 1: those that bring the largest entries of all parameters nearest to 1, in the sum of their squared logarithms.

    Args:
        space: The weight space.
        thetas: Checkpoints ``[B, P]``.
        fix: Which of ``"scale"``, ``"phase"``, ``"flip"``, ``"sign"`` and ``"order"`` to settle; what is left
            out stays as it is. Models that do not see the order of neurons need no order, for instance.

    Returns:
        Tensor ``[B, P]``, differentiable in ``thetas`` (the order of the neurons is piecewise constant).

    Raises:
        SpaceMismatchError: If the shape is wrong.
        ValueError: If a weight is NaN or infinite, no norms bring a network into the range of its dtype, or ``fix`` names something else.

    Example:
        >>> import torch
        >>> from wsgraph import WeightSpace
        >>> space = WeightSpace.mlp([2, 8, 1])
        >>> thetas = space.sample(4, dtype=torch.float64)
        >>> moved = space.act(space.sample_symmetry(4), thetas)
        >>> torch.allclose(space.canonicalize(moved), space.canonicalize(thetas))
        True
    """
    space.check_thetas(thetas, finite=True)
    if unknown := sorted(set(fix) - set(FORMS)):
        raise ValueError(f"Expected 'fix' to name some of {', '.join(FORMS)} (got {', '.join(map(repr, unknown))}).")
    if not space.params or not len(thetas):
        return thetas
    return _Canonicalization(space, thetas, fix).result()


class _Canonicalization(CanonicalOrder):
    """Parameters that are settled step by step."""

    def result(self) -> Tensor:
        """The canonical forms ``[B, P]``."""
        forward = [group for group in self.space.topological_groups if group.role in ("hidden", "factor")]
        for group in forward:  # a flip shifts the biases, and so the phases, of what reads the neuron
            if self.flips:
                self.reduce_flip(group)
            if self.phases:
                self.reduce_phase(group)
        self.alive = self.reached_from_inputs()
        self.erase_idle()
        # Norms do not depend on signs or on the order of neurons, so all scales can be settled before any neuron is compared with another.
        self.settle(forward, self.fix_scale)
        self.centre_rest()
        self.until_settled(self.scaled, forward[::-1], self.scale_dead)
        self.bring_into_range()
        self.settle(forward, self.fix_sign_and_order)
        self.settle(forward, self.fix_sign)  # those that waited for an order
        self.sign_rest(forward)
        self.until_settled(self.signed, forward[::-1], self.sign_dead)
        for group in reversed(forward):
            self.sort_dead(group)
        return flatten_logical(self.space, self.tensors).to(self.thetas.dtype)
