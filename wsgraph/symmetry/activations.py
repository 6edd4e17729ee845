"""What the neurons of networks answer to inputs, class by class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from wsgraph.space import SpaceMismatchError, WeightSpace

__all__ = ["Activations", "class_activations"]

# By permutation class and scale class (empty where the answers follow no single one): standardized answers [B, n, samples].
Activations = dict[tuple[str, str], list[Tensor]]

_SAMPLES = 20_000  # answers per neuron that are compared, evenly spaced over inputs and positions


def class_activations(space: WeightSpace, thetas: Tensor, inputs: Any, module: nn.Module | None) -> Activations:
    """Answers of all movable neurons.

    Args:
        space: The weight space.
        thetas: Networks ``[B, P]``.
        inputs: A batch of inputs, or a tuple of what the module is called with.
        module: The network as a module, where the space has no layers.

    Returns:
        Answers by permutation and scale class, in an order that is the same for all networks of the space.

    Raises:
        SpaceMismatchError: If the module is needed, or is of another space.
    """
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    found: Activations = {}
    if space.layers:
        for name, values in _of_layers(space, thetas, given).items():
            group = space.group(name)
            if space.is_permutable(group.permutation):
                found.setdefault((group.permutation, group.scale), []).append(_standardized(values.transpose(1, 2).flatten(2)))
        return found
    if module is None:
        raise SpaceMismatchError(
            f"{space!r} has no layers that wsgraph could run on 'inputs'; give the network as 'module' too: the one that was traced."
        )
    from wsgraph.convert.tracing.activations import TracedAnswers  # which needs all of tracing

    answers = TracedAnswers(module, given, space, _SAMPLES)
    networks = [answers(theta) for theta in thetas]
    for key in networks[0]:
        found[key] = [_standardized(torch.stack(values)) for values in zip(*(network[key] for network in networks), strict=True)]
    return found


def _of_layers(space: WeightSpace, thetas: Tensor, inputs: tuple[Any, ...]) -> dict[str, Tensor]:
    """Values ``[B, M, n, *positions]`` of all hidden groups after their operators."""
    from wsgraph.space.evaluate import run_network

    if len(inputs) != 1:
        raise SpaceMismatchError(f"Expected one tensor of 'inputs' for {space!r} (got {len(inputs)}).")

    def run(theta: Tensor) -> dict[str, Tensor]:
        values: dict[str, Tensor] = {}

        def keep(group: Any, result: Tensor) -> Tensor:
            values[group.name] = result
            return result

        run_network(space, {key: tensor.to(theta) for key, tensor in space.unflatten(theta).items()}, inputs[0].to(theta), keep)
        return values

    return torch.func.vmap(run)(thetas)


def _standardized(values: Tensor) -> Tensor:
    """Values ``[B, n, samples]``, evenly thinned out, with mean 0 and norm 1 per neuron; 0 where a neuron always answers the same."""
    values = values.double()[..., :: max(1, values.shape[2] // _SAMPLES)]
    size = values.norm(dim=2, keepdim=True)
    values = values - values.mean(dim=2, keepdim=True)
    norm = values.norm(dim=2, keepdim=True)
    least = torch.maximum(1e-12 * norm.amax(dim=1, keepdim=True), 1e-10 * size)  # below, it is rounding
    return values / torch.where(norm > least, norm, torch.inf)
