"""Tracing: any module becomes a weight space."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from wsgraph.convert.tracing.labels import Label, Value
from wsgraph.convert.tracing.layers import as_layers
from wsgraph.convert.tracing.lowering import lower
from wsgraph.convert.tracing.program import make_program
from wsgraph.convert.tracing.recording import ModuleInputs, TraceError, check_module, export
from wsgraph.convert.tracing.rules import TRACED_OPERATORS, Call, move, pointwise, register_traced_operator, spatial, statistic
from wsgraph.convert.tracing.tracer import interpret, transformed_names
from wsgraph.convert.tracing.tying import check_constants, tied_keys
from wsgraph.convert.tracing.values import Scope
from wsgraph.operators import UnsupportedError
from wsgraph.space import Parameter, WeightSpace
from wsgraph.space.dtypes import flat_dtype

__all__ = [
    "TRACED_OPERATORS",
    "Call",
    "Label",
    "Scope",
    "TraceError",
    "TraceWarning",
    "Value",
    "move",
    "pointwise",
    "register_traced_operator",
    "spatial",
    "statistic",
    "trace",
]


class TraceWarning(UserWarning):
    """A traced network has operators of which wsgraph knows nothing, so its neurons there have no symmetry.

    Example:
        >>> import torch, warnings
        >>> class Spectrum(torch.nn.Linear):
        ...     def forward(self, x):
        ...         return torch.fft.rfft(super().forward(x)).abs()
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     _ = trace(Spectrum(3, 8).eval(), torch.ones(1, 3))
        >>> str(caught[0].message)
        'Unknown operators, whose inputs lose their symmetries: fft_rfft in the module itself. Say what they do with ...'
    """


def trace(
    module: nn.Module,
    *example_inputs: Any,
    kwargs: Mapping[str, Any] | None = None,
    strict: bool = False,
    fold_batchnorm: bool = False,
) -> WeightSpace:
    r"""The weight space of any module: which of its neurons may be permuted, scaled or flipped without a change of its function.

    The module is run once by ``torch.export``; every operator says which entries of its result belong to which neurons, which neurons must
    move alike, and which factors it lets through. Nothing is known of unknown operators: the neurons that they read lose their symmetry.

    The space holds every parameter and persistent buffer of the module. A network of dense and convolutional layers, residual sums,
    concatenations and known activations and poolings has ``layers``: it is read by every model. Other networks have ``connections``,
    which message-passing models read, and a ``program``, the operators as data; ``unlayered`` says why they have no
    layers. Both kinds are run from the space alone, by :meth:`WeightSpace.evaluate`.

    Args:
        module: Any module in evaluation mode.
        example_inputs: What the module is called with; shapes and dtypes matter, values do not.
        kwargs: What it is called with by name, as in ``torch.export``. Where inputs lie in one tuple, as those of
            :meth:`WeightSpace.example_inputs` do, they come behind the others, in this order.
        strict: Raise where an operator is unknown, instead of a warning.
        fold_batchnorm: Trace the network that :func:`wsgraph.fold_batchnorm` returns in its place; a
            :class:`~wsgraph.convert.FoldingWarning` names every batch norm that stays and says why.

    Returns:
        A :class:`~wsgraph.WeightSpace` whose parameter names are the keys of ``module.state_dict()``; its ``report()`` says what is fixed
        and why. A tensor that has several keys, such as a tied weight, is one parameter, with the further keys as ``aliases``.

    Raises:
        TraceError: If the module has no parameters, is in training mode, lazy or on the meta device, does not run on the inputs, or
            cannot be exported; if it reads none of its parameters; if tensors share a part of their memory;
            with ``strict``, if an operator is unknown.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import wsgraph
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2)).eval()
        >>> space = wsgraph.trace(net, torch.randn(1, 4))
        >>> space.sample_symmetry()
        GroupElement(batch=1, 0: permutation, 1: permutation x scale)
        >>> theta = space.flatten(net.state_dict())
        >>> moved = space.unflatten(space.act(space.sample_symmetry(), theta[None])[0])  # another state dict of the same function

        Inputs that a module takes by name:

        >>> class Masked(nn.Linear):
        ...     def forward(self, x, *, mask):
        ...         return super().forward(x).masked_fill(mask, 0)
        >>> x, mask = torch.randn(2, 4), torch.tensor([[True], [False]])
        >>> masked = wsgraph.trace(Masked(4, 3).eval(), x, kwargs={"mask": mask})
        >>> masked.evaluate(masked.sample(5), x, mask=mask).shape
        torch.Size([5, 2, 3])
    """
    if fold_batchnorm:
        from wsgraph.convert.folding import FoldingWarning
        from wsgraph.convert.folding import fold_batchnorm as fold

        module = fold(module, *example_inputs, kwargs=kwargs)
        entries: tuple[Any, ...] = module.batchnorm_folding  # type: ignore[assignment]
        if kept := [str(entry) for entry in entries if entry.layer is None]:
            message = f"{len(kept)} of {len(entries)} batch norms could not be folded: {'; '.join(kept)}."
            warnings.warn(message, FoldingWarning, stacklevel=2)
    check_module(module)
    program = export(module, ModuleInputs.of(example_inputs, kwargs))
    check_constants(module, program)
    whole, keys = module.state_dict(), tied_keys(module)
    if not any(tensor.is_floating_point() and tensor.numel() for tensor in whole.values()):
        raise TraceError("The module has no parameters: a weight space needs at least one floating point tensor in its state dict.")
    dtype = flat_dtype(whole.values())
    state = {name: tensor for name, tensor in whole.items() if keys[name] == name}
    transformed = transformed_names(program, keys)
    try:
        layers = as_layers(program, state, dtype, keys)
        return WeightSpace(layers[0], layers[1], _completed(layers[2], keys, transformed))
    except UnsupportedError as error:
        unlayered = str(error)
    scope = interpret(program, keys)
    if not any(state[name].is_floating_point() for name in scope.saved):
        raise TraceError(
            f"The network reads none of its {len(state)} saved tensors (the first is {next(iter(state))!r}): "
            "its output is the same whatever the weights are. Its layers may hold their weights in objects "
            "of another library, as those of Keras do, or forward may use copies made outside of it: use the "
            "parameters themselves in forward. Weights alone, in a file that the other library wrote, are "
            "read with wsgraph.load_checkpoint and wsgraph.from_state_dict."
        )
    if scope.unknown:
        listed = "; ".join(
            f"{name} in {', '.join(place or 'the module itself' for place in dict.fromkeys(p))}" for name, p in scope.unknown.items()
        )
        message = (
            f"Unknown operators, whose inputs lose their symmetries: {listed}. Say what they do with "
            "wsgraph.convert.tracing.register_traced_operator."
        )
        if strict:
            raise TraceError(message)
        warnings.warn(message, TraceWarning, stacklevel=2)
    groups, params, connections, _ = lower(scope, state, dtype)
    computed, unprogrammed = make_program(program, state, keys)
    params = _completed(params, keys, transformed)
    return WeightSpace(groups, (), params, connections, program=computed, unlayered=unlayered, unprogrammed=unprogrammed)


def _completed(params: Sequence[Parameter], keys: Mapping[str, str], transformed: Collection[str]) -> tuple[Parameter, ...]:
    """Parameters with the further keys of their tensors, and whether functions are applied to their entries."""
    aliases: dict[str, list[str]] = {}
    for key, name in keys.items():
        if key != name:
            aliases.setdefault(name, []).append(key)
    return tuple(replace(param, aliases=tuple(aliases.get(param.name, ())), transformed=param.name in transformed) for param in params)
