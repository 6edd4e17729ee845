"""AdamW over a population of networks, each with its own steps, learning rate and weight decay."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from wsgraph.data.generators.problem import Advance

__all__ = ["optimize"]

_BETAS = (0.9, 0.999)
_EPSILON = 1e-8


def optimize(
    thetas: Tensor,
    gradient: Callable[[int, Tensor], Tensor],
    steps: Tensor,
    rate: Callable[[int], Tensor],
    weight_decay: Tensor,
    advance: Advance,
    checkpoints: Collection[int] = (),
    keep: Callable[[int], None] = lambda step: None,
    states: Sequence[Tensor] = (),
) -> None:
    """AdamW over a population, as :class:`torch.optim.AdamW` but with steps, learning rates and weight decays per network, in place.

    Args:
        thetas: Parameters of all networks ``[B, P]``, trained in place.
        gradient: Their gradients ``[B, P]`` at a step.
        steps: Steps of every network ``[B]``, on the CPU.
        rate: Learning rates ``[B]`` at a step.
        weight_decay: Decoupled weight decays ``[B]``.
        advance: Called after every step with the number of networks that took it.
        checkpoints: Steps before which ``keep`` is called.
        keep: Called with the step.
        states: What ``gradient`` changes in place besides, each ``[B, ...]``; like the parameters
            it stays as it is once a network has taken its last step.
    """
    first, second = torch.zeros_like(thetas), torch.zeros_like(thetas)
    for step in range(int(steps.max())):
        if step in checkpoints:
            keep(step)
        running = steps > step
        frozen = [] if running.all() else [thetas, *states]
        before = [values.clone() for values in frozen]
        gradients = gradient(step, thetas)
        first.lerp_(gradients, 1 - _BETAS[0])
        second.mul_(_BETAS[1]).addcmul_(gradients, gradients, value=1 - _BETAS[1])
        towards_one = [1 - beta ** (step + 1) for beta in _BETAS]
        divisor = second.sqrt().div_(math.sqrt(towards_one[1])).add_(_EPSILON)
        now = rate(step)
        thetas.mul_((1 - now * weight_decay)[:, None]).sub_(first.div(divisor).mul_(now[:, None] / towards_one[0]))
        for values, old in zip(frozen, before, strict=True):
            still = running.view(-1, *[1] * (values.ndim - 1)).to(values.device)
            values.copy_(torch.where(still, values, old))
        advance(int(running.sum()))
