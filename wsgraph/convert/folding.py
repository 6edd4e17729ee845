"""Folding batch norms into the layers before them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from wsgraph.convert.folding_comparison import Comparison
from wsgraph.convert.folding_steps import Program, quoted
from wsgraph.convert.folding_weights import Fold
from wsgraph.convert.tracing.recording import ModuleInputs, check_module, copied, export

__all__ = ["BatchNormFolding", "FoldingWarning", "fold_batchnorm"]


@dataclass(frozen=True)
class BatchNormFolding:
    """What became of one batch norm of a module, an entry of ``fold_batchnorm(module, ...).batchnorm_folding``.

    Args:
        norm: Path of the norm in the module; for a function call, the module or the name of its running mean.
        layer: Path of the layer that the norm was folded into (for a function call, the name of its weight), ``None`` where the norm
            stays.
        reason: Why the norm stays, ``None`` where it was folded.

    Example:
        >>> import torch, wsgraph
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.BatchNorm1d(4)).eval()
        >>> for entry in wsgraph.fold_batchnorm(net, torch.ones(2, 3)).batchnorm_folding:
        ...     print(entry)
        '1' is folded into '0'
        '3' stays: it follows aten.relu in '2', no linear or convolutional layer
    """

    norm: str
    layer: str | None = None
    reason: str | None = None

    def __str__(self) -> str:
        name = quoted(self.norm)
        return f"{name} stays: {self.reason}" if self.layer is None else f"{name} is folded into {quoted(self.layer)}"


class FoldingWarning(UserWarning):
    """Batch norms that ``trace(..., fold_batchnorm=True)`` could not fold are still in the weight space.

    Example:
        >>> import torch, warnings, wsgraph
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     _ = wsgraph.trace(torch.nn.BatchNorm1d(3).eval(), torch.ones(2, 3), fold_batchnorm=True)
        >>> str(caught[0].message)
        '1 of 1 batch norms could not be folded: the module itself stays: it reads an input of the module, no linear or ...'
    """


def fold_batchnorm(module: nn.Module, *example_inputs: Any, kwargs: Mapping[str, Any] | None = None) -> nn.Module:
    r"""A copy of a module whose batch norms are folded into the linear and convolutional layers that they follow.

    .. math:: W \to \frac{\gamma}{\sqrt{\sigma^2 + \epsilon}} W, \qquad
              b \to \beta + \frac{\gamma}{\sqrt{\sigma^2 + \epsilon}} (b - \mu)

    A norm is folded where the program that ``torch.export`` records shows nothing but a layer, then the norm: the layer's
    output goes to the norm alone (dropout may stand between them), the weights of both are parameters that nothing else reads,
    and the norm's module does nothing else but call modules that it holds, such as an activation, with the result. Then the
    outputs of both modules on the example inputs are compared in float64, and a fold that changes them is undone. All other
    norms stay, and the copy says why.

    Args:
        module: Any module in evaluation mode that :func:`wsgraph.trace` can read; it is left as it is.
        example_inputs: What the module is called with.
        kwargs: What it is called with by name.

    Returns:
        The copy; folded norms are ``torch.nn.Identity`` (those that hold their activation, a ``torch.nn.Sequential`` of it), and their
        layers have a bias. Its attribute ``batchnorm_folding`` is a tuple with a :class:`~wsgraph.convert.BatchNormFolding` for every
        batch norm.

    Raises:
        TraceError: As :func:`wsgraph.trace`.

    Example:
        >>> import torch, wsgraph
        >>> from torch import nn
        >>> net = nn.Sequential(
        ...     nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
        ... ).eval()
        >>> x = torch.randn(2, 1, 4, 4)
        >>> folded = wsgraph.fold_batchnorm(net, x)
        >>> bool((folded(x) - net(x)).abs().max() < 1e-6)
        True
        >>> folded.batchnorm_folding
        (BatchNormFolding(norm='1', layer='0', reason=None),)
        >>> wsgraph.trace(folded, x)
        WeightSpace(1-4-3, conv 3x3 | linear, relu, 91 parameters)
    """
    check_module(module)
    reader = copied(module)  # running a module may change it
    inputs = ModuleInputs.of(example_inputs, kwargs)
    program = Program(export(reader, inputs), module, inputs)
    found = program.norms()
    folds = [fold for fold in found.values() if isinstance(fold, Fold)]
    if folds:
        found |= Comparison(module, inputs, program.lowest_cast).confirmed(folds)
    folded = copied(module)
    entries = []
    for name, fold in found.items():
        if isinstance(fold, Fold):
            fold.apply(folded)
            entries.append(BatchNormFolding(name, layer=fold.layer))
        else:
            entries.append(BatchNormFolding(name, reason=fold))
    folded.batchnorm_folding = tuple(entries)  # type: ignore[assignment]
    return folded
