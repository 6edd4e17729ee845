"""The nonlinearity between equivariant layers."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor, nn

from wsgraph.nn.sharing.layout import Entries, Layout
from wsgraph.space import Blocks, Symmetry, WeightSpace
from wsgraph.space.operators import apply_operator, operator_symmetry

__all__ = ["Activation"]


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
        ValueError: If the function is unknown or breaks a symmetry to be kept, naming the parameter.

    Example:
        >>> from wsgraph import WeightSpace
        >>> Activation(WeightSpace.mlp([2, 8, 1], "sin(30)"))
        Activation(tanh: 3 parameters, relu: 1 parameter)
        >>> Activation(WeightSpace.mlp([2, 8, 1], "sin(30)"), "relu")
        Traceback (most recent call last):
        ...
        ValueError: 'relu' breaks the sign symmetry of parameter 'layers.0.weight'; use one of tanh, sin, erf, softsign, hardtanh, identity.
    """

    def __init__(
        self, space: WeightSpace, function: str | None = None, symmetries: Collection[str] = ("permutation", "scale", "sign")
    ) -> None:
        super().__init__()
        self.space = space
        self.symmetries = tuple(symmetries)
        self.functions: dict[str | None, str] = {}
        for name, entries in Layout(space, user="Activation").entries.items():
            needed = Symmetry(entries.symmetry.positive and "scale" in symmetries, entries.symmetry.sign and "sign" in symmetries)
            self.functions[name] = _default(needed) if function is None else function
            _check(function, needed, entries)

    def forward(self, features: Blocks) -> Blocks:
        def apply(names: list[str | None], tensors: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
            pairs = zip(names, tensors, strict=True)
            return tuple(None if tensor is None else apply_operator(self.functions[name], tensor) for name, tensor in pairs)

        layers = self.space.layers
        return Blocks(
            features.space,
            apply([layer.weight for layer in layers], features.weights),
            apply([layer.bias for layer in layers], features.biases),
        )

    def extra_repr(self) -> str:
        used = list(self.functions.values())
        return ", ".join(f"{name}: {used.count(name)} parameter{'s' * (used.count(name) > 1)}" for name in dict.fromkeys(used))


def _default(needed: Symmetry) -> str:
    return {(False, False): "relu", (True, False): "relu", (False, True): "tanh", (True, True): "identity"}[needed]


def _check(function: str | None, needed: Symmetry, entries: Entries) -> None:
    if function is None:
        return
    kept = Symmetry(*operator_symmetry(function))
    for kind, wanted, held in (("scale", needed.positive, kept.positive), ("sign", needed.sign, kept.sign)):
        if wanted and not held:
            fitting = {"scale": ("relu", "leaky_relu", "identity"), "sign": ("tanh", "sin", "erf", "softsign", "hardtanh", "identity")}
            names = ("identity",) if all(needed) else fitting[kind]
            raise ValueError(f"{function!r} breaks the {kind} symmetry of parameter {entries.name!r}; use one of {', '.join(names)}.")
