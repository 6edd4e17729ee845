"""Folding batch norms into the layers before them."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from wsgraph.convert.tracing.tracer import check_module, export, module_of

__all__ = ["fold_batchnorm"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def fold_batchnorm(module: nn.Module, *example_inputs: Any) -> nn.Module:
    r"""A copy of a module whose batch norms are folded into the linear and convolutional layers that they follow.

    .. math:: W \to \frac{\gamma}{\sqrt{\sigma^2 + \epsilon}} W, \qquad b \to \beta + \frac{\gamma}{\sqrt{\sigma^2 + \epsilon}} (b - \mu)

    A norm is folded where it alone reads the layer and both are used once; others, such as those before an activation in a DenseNet, stay.
    The function in evaluation mode is the same up to rounding.

    Args:
        module: Any module in evaluation mode that :func:`wsgraph.trace` can read.
        example_inputs: What the module is called with.

    Returns:
        The copy; folded norms are ``torch.nn.Identity``, and their layers have a bias.

    Raises:
        TraceError: As :func:`wsgraph.trace`.

    Example:
        >>> import torch, wsgraph
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).eval()
        >>> x = torch.randn(2, 1, 4, 4)
        >>> folded = wsgraph.fold_batchnorm(net, x)
        >>> bool((folded(x) - net(x)).abs().max() < 1e-6)
        True
        >>> wsgraph.trace(folded, x)
        WeightSpace(1-4-3, conv 3x3 | linear, relu, 91 parameters)
    """
    check_module(module)
    nodes = [node for node in export(module, example_inputs).graph.nodes if node.op == "call_function"]
    # A module that several nodes belong to is used several times, or does more than its class says.
    uses = Counter(module_of(node) for node in nodes)
    folded = copy.deepcopy(module)
    modules = dict(folded.named_modules())
    names = Counter(id(part) for _, part in folded.named_modules(remove_duplicate=False))
    for node in nodes:
        source = node.args[0] if node.args else None
        if source is None or source not in nodes:
            continue
        path, before = module_of(node), module_of(source)
        norm, layer = modules.get(path), modules.get(before)
        if not (isinstance(norm, _NORMS) and layer is not None and uses[path] == uses[before] == 1 and len(source.users) == 1):
            continue
        if norm.running_mean is None or names[id(norm)] > 1 or names[id(layer)] > 1:
            continue
        if isinstance(layer, _CONVOLUTIONS):
            fused: nn.Module = fuse_conv_bn_eval(layer, norm)
        elif isinstance(layer, _TRANSPOSED) and layer.groups == 1:
            fused = fuse_conv_bn_eval(layer, norm, transpose=True)
        elif isinstance(layer, nn.Linear) and source.meta["val"].ndim == 2:
            fused = fuse_linear_bn_eval(layer, norm)
        else:
            continue
        _replace(folded, before, fused)
        _replace(folded, path, nn.Identity())
    return folded.eval()


def _replace(module: nn.Module, path: str, part: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, part)
