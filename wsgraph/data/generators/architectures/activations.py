"""Activations of the architectures of a zoo by name."""

from __future__ import annotations

from torch import Tensor, nn

from wsgraph.operators import apply_operator, parse_operator

__all__ = ["Activation"]


class Activation(nn.Module):
    """An operator by its name, such as ``relu`` or ``gelu``.

    Args:
        name: The name.

    Raises:
        ValueError: If there is no such operator.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        parse_operator(name)
        self.name = name

    def extra_repr(self) -> str:
        return self.name

    def forward(self, values: Tensor) -> Tensor:
        return apply_operator(self.name, values)
