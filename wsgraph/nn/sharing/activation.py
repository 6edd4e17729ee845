"""The nonlinearity between equivariant layers."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from wsgraph.nn.sharing.layout import Layout
from wsgraph.operators import apply_operator, fitting_operators, operator_symmetry, parse_operator
from wsgraph.space import OPERATORS, Blocks, SpaceMismatchError, Symmetry, WeightSpace
from wsgraph.symmetry import SYMMETRIES

__all__ = ["Activation", "fitting_function"]


class Activation(nn.Module):
    r"""A pointwise function of every weight and bias that commutes with the symmetries to be kept.

    ReLU commutes with positive factors only, odd functions such as tanh with signs only, and the identity with both:

    .. math:: \rho(c x) = c \rho(x) \;\; (c > 0), \qquad \rho(-x) = -\rho(x)

    By default every parameter gets what its entries allow: ReLU where they carry positive factors or none, tanh where they carry signs, the
    identity where they carry both (a ReLU group beside a tanh group, identity groups). A function that breaks a symmetry is refused.

    Args:
        space: Weight space of the networks.
        function: An operator such as ``"relu"``, ``"leaky_relu(0.1)"`` or ``"sin"`` for all parameters (default: chosen per parameter).
        symmetries: Symmetries to be kept, among ``"permutation"``, ``"scale"`` and ``"sign"``: those of the layers around.

    Shapes:
        input and output: :class:`~wsgraph.space.Blocks`, with or without channels.

    Raises:
        ValueError: If the function is unknown, is no activation or breaks a symmetry to be kept, naming the parameter.
        SpaceMismatchError: If blocks of another weight space are given.

    Example:
        >>> from wsgraph import WeightSpace
        >>> Activation(WeightSpace.mlp([2, 8, 1], "sin(30)"))
        Activation(tanh: 3 parameters, relu: 1 parameter)
        >>> Activation(WeightSpace.mlp([2, 8, 1], "sin(30)"), "relu")
        Traceback (most recent call last):
        ...
        ValueError: 'relu' breaks the sign symmetry of parameter 'layers.0.weight'; use one of tanh, sin, erf, softsign, hardtanh, identity.
    """

    def __init__(self, space: WeightSpace, function: str | None = None, symmetries: Collection[str] = SYMMETRIES) -> None:
        super().__init__()
        if unknown := sorted(set(symmetries) - set(SYMMETRIES)):
            raise ValueError(f"Unknown symmetries {unknown}; expected some of {', '.join(SYMMETRIES)}.")
        if function is not None and not OPERATORS[parse_operator(function)[0]].nonlinear:
            raise ValueError(f"Expected 'function' to be an activation, which acts on every weight alone (got {function!r}).")
        self.space = space
        self.symmetries = tuple(symmetries)
        self.functions: dict[str, str] = {param.name: function or "relu" for param in space.params}
        if not {"scale", "sign"} & set(symmetries):
            return  # permutations commute with any function of every weight alone
        for name, allowed in Layout(space, user="Activation").symmetries.items():
            needed = Symmetry(allowed.positive and "scale" in symmetries, allowed.sign and "sign" in symmetries)
            self.functions[name] = function or fitting_function(needed)
            _check(function, needed, name)

    def forward(self, features: Blocks) -> Blocks:
        if not self.space.matches(features.space):
            raise SpaceMismatchError(f"Activation was built for {self.space!r} but the blocks belong to {features.space!r}.")
        pairs = zip(self.functions.values(), features.space.params, strict=True)  # names may differ
        tensors = {param.name: apply_operator(function, features.tensors[param.name]) for function, param in pairs}
        return Blocks(features.space, tensors)

    def extra_repr(self) -> str:
        used = list(self.functions.values())
        return ", ".join(f"{name}: {used.count(name)} parameter{'s' * (used.count(name) > 1)}" for name in dict.fromkeys(used))


def fitting_function(symmetry: Symmetry) -> str:
    """The operator that commutes with all factors that a symmetry allows: ReLU, tanh or, where both act, the identity.

    Example:
        >>> [fitting_function(Symmetry(*kinds)) for kinds in ((False, False), (True, False), (False, True), (True, True))]
        ['relu', 'relu', 'tanh', 'identity']
    """
    return fitting_operators(*symmetry)[0]


def _check(function: str | None, needed: Symmetry, name: str) -> None:
    if function is None:
        return
    kept = Symmetry(*operator_symmetry(function))
    for kind, wanted, held in (("scale", needed.positive, kept.positive), ("sign", needed.sign, kept.sign)):
        if wanted and not held:
            names = fitting_operators(*needed)
            raise ValueError(f"{function!r} breaks the {kind} symmetry of parameter {name!r}; use one of {', '.join(names)}.")
