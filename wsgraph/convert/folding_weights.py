"""The weights of a layer with its norm folded in."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["OF_NORMS", "Fold", "StaysError"]


class StaysError(Exception):
    """Why a norm cannot be folded."""


OF_NORMS = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True)
class Fold:
    """How to fold a norm, by the names of what takes part in it.

    Args:
        norm: Path of the norm's module.
        rest: Names of the modules in it that go on with its result.
        layer: Path of the layer.
        weight: Name of its weight.
        bias: Name of its bias.
        statistics: Names of the norm's tensors.
        eps: Its epsilon.
        groups: Of a transposed convolution, 0 for other layers.
    """

    norm: str
    rest: tuple[str, ...]
    layer: str
    weight: str
    bias: str | None
    statistics: dict[str, str | None]
    eps: float
    groups: int

    @torch.no_grad()
    def weights(self, module: nn.Module) -> tuple[Tensor, Tensor]:
        """The weight and the bias of a module's layer after folding.

        Raises:
            StaysError: If their dtype cannot hold them.
        """
        weight, bias = _tensor(module, self.weight), _tensor(module, self.bias)
        gain, shift, mean, variance = (
            None if tensor is None else tensor.detach().to("cpu", torch.float64)
            for tensor in (_tensor(module, self.statistics[key]) for key in OF_NORMS)
        )
        assert weight is not None
        assert mean is not None
        assert variance is not None
        factor = (variance + self.eps).rsqrt() * (1 if gain is None else gain)
        exact = weight.detach().to("cpu", torch.float64)
        if self.groups:  # [inputs, outputs per group, ...]: the inputs say which group it is
            sizes = (self.groups, -1, *exact.shape[1:])
            rows = factor.view(self.groups, 1, exact.shape[1], *[1] * (exact.ndim - 2))
            exact = (exact.reshape(sizes) * rows).reshape(exact.shape)
        else:
            exact = exact * factor.view(-1, *[1] * (exact.ndim - 1))
        moved = -mean if bias is None else bias.detach().to("cpu", torch.float64) - mean
        moved = moved * factor + (0 if shift is None else shift)
        return _cast(exact, weight), _cast(moved, weight if bias is None else bias)

    @torch.no_grad()
    def apply(self, module: nn.Module) -> None:
        """Fold the norm of a module."""
        weight, bias = _tensor(module, self.weight), _tensor(module, self.bias)
        new_weight, new_bias = self.weights(module)
        assert weight is not None
        weight.data = torch.empty_like(weight).copy_(new_weight)
        if bias is None:
            made = nn.Parameter(new_bias.to(weight.device), requires_grad=weight.requires_grad)
            module.get_submodule(self.layer).register_parameter("bias", made)
        else:
            bias.data = torch.empty_like(bias).copy_(new_bias)
        norm = module.get_submodule(self.norm)
        left = nn.Sequential(OrderedDict((name, norm.get_submodule(name)) for name in self.rest)) if self.rest else nn.Identity()
        left.eval()
        for parent in module.modules():
            for name, child in parent._modules.items():
                if child is norm:
                    parent._modules[name] = left


def _tensor(module: nn.Module, name: str | None) -> Tensor | None:
    if name is None:
        return None
    path, _, last = name.rpartition(".")
    tensor: Tensor = getattr(module.get_submodule(path), last)
    return tensor


def _cast(exact: Tensor, like: Tensor) -> Tensor:
    """A tensor in the dtype of another one, which must be able to hold it."""
    result = exact.to(like.dtype)
    error = (result.double() - exact).abs().amax() if exact.numel() else exact.new_zeros(())
    if not bool(error <= torch.finfo(like.dtype).eps * exact.abs().amax() if exact.numel() else True):
        raise StaysError(f"the layer's weights after folding would not be finite or representable in {like.dtype}")
    return result
