"""Operators written in others, where torch's own do not differentiate, or cannot be run for several networks at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wsgraph.space.batched_forms import WITHOUT_BATCHING_RULE

__all__ = ["ALWAYS", "BATCHED", "DIFFERENTIABLE"]

# From what a step's input and the state before it add to the gates, and the state itself, to the next state.
Cell = Callable[[Tensor, Tensor, Sequence[Tensor]], list[Tensor]]


def _lstm(given: Tensor, kept: Tensor, state: Sequence[Tensor]) -> list[Tensor]:
    i, f, g, o = (given + kept).chunk(4, dim=-1)
    cell = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return [o.sigmoid() * cell.tanh(), cell]


def _gru(given: Tensor, kept: Tensor, state: Sequence[Tensor]) -> list[Tensor]:
    (r, z, n), (from_r, from_z, from_n) = given.chunk(3, dim=-1), kept.chunk(3, dim=-1)
    update = (z + from_z).sigmoid()
    fresh = (n + (r + from_r).sigmoid() * from_n).tanh()
    return [fresh + update * (state[0] - fresh)]


def _rnn(function: Callable[[Tensor], Tensor]) -> Cell:
    return lambda given, kept, state: [function(given + kept)]


def _layers(cell: Cell, states: int) -> Callable[..., tuple[Tensor, ...]]:
    """A form of ``aten::lstm`` and its like, step by step, with the arguments and results of the operator."""

    def run(
        input: Tensor,
        hx: Tensor | Sequence[Tensor],
        params: Sequence[Tensor],
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> tuple[Tensor, ...]:
        initial = [hx] if isinstance(hx, Tensor) else list(hx)
        directions = 1 + bidirectional
        count = len(params) // (num_layers * directions)
        sequence = input.transpose(0, 1) if batch_first else input
        last: list[list[Tensor]] = []
        for _ in range(num_layers):
            outputs = []
            for direction in range(directions):
                i = len(last)
                weight, recurrent, *rest = params[i * count : (i + 1) * count]
                bias, kept_bias = rest[:2] if has_biases else (None, None)
                projection = rest[2 * has_biases :]
                given = F.linear(sequence, weight, bias).unbind(0)
                state, results = [values[i] for values in initial], []
                for values in reversed(given) if direction else given:
                    state = cell(values, F.linear(state[0], recurrent, kept_bias), state)
                    if projection:
                        state[0] = F.linear(state[0], projection[0])
                    results.append(state[0])
                outputs.append(torch.stack(results[::-1] if direction else results))
                last.append(state)
            sequence = torch.cat(outputs, dim=-1)
        final = (torch.stack([state[k] for state in last]) for k in range(states))
        return (sequence.transpose(0, 1) if batch_first else sequence, *final)

    return run


def _one_step(cell: Cell) -> Callable[..., Any]:
    """A form of ``aten::lstm_cell`` and its like."""

    def run(
        input: Tensor,
        hx: Tensor | Sequence[Tensor],
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor | None = None,
        b_hh: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        state = [hx] if isinstance(hx, Tensor) else hx
        after = cell(F.linear(input, w_ih, b_ih), F.linear(state[0], w_hh, b_hh), state)
        return after[0] if isinstance(hx, Tensor) else tuple(after)

    return run


def _norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor, eps: float) -> Tensor:
    """A batch norm by given statistics, whose own operator does not differentiate by them."""
    factor = (variance + eps).rsqrt() if weight is None else weight * (variance + eps).rsqrt()
    shift = -mean * factor if bias is None else bias - mean * factor
    shape = (-1, *[1] * (x.ndim - 2))
    return torch.addcmul(shift.view(shape), x, factor.view(shape))


def _batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    if running_mean is None or running_var is None:
        return torch.batch_norm(input, weight, bias, running_mean, running_var, training, momentum, eps, cudnn_enabled)
    return _norm(input, weight, bias, running_mean, running_var, eps)


def _instance_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    if use_input_stats or running_mean is None or running_var is None:
        return torch.instance_norm(input, weight, bias, None, None, True, momentum, eps, cudnn_enabled)
    return _norm(input, weight, bias, running_mean, running_var, eps)


def _normalised(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    empty = input.new_zeros(0)  # statistics are those given, and not returned
    return _norm(input, weight, bias, running_mean, running_var, eps), empty, empty


def _copy(self: Tensor, src: Tensor, non_blocking: bool = False) -> Tensor:
    """What a tensor holds once another one is copied into it, which torch differentiates in place alone."""
    return src.to(self).expand(self.shape)


def _channel_shuffle(self: Tensor, groups: int) -> Tensor:
    return self.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


ALWAYS: dict[str, Callable[..., Any]] = {"aten::copy.default": _copy, "aten::native_channel_shuffle.default": _channel_shuffle}
"""Forms by operator and overload that are used wherever a program is run: torch's own do not differentiate."""

DIFFERENTIABLE: dict[str, Callable[..., Any]] = {
    "aten::_native_batch_norm_legit_no_training.default": _normalised,
    "aten::batch_norm.default": _batch_norm,
    "aten::instance_norm.default": _instance_norm,
}
"""Forms that differentiate by all weights."""

BATCHED: dict[str, Callable[..., Any]] = {
    "aten::lstm.input": _layers(_lstm, 2),
    "aten::gru.input": _layers(_gru, 1),
    "aten::rnn_tanh.input": _layers(_rnn(torch.tanh), 1),
    "aten::rnn_relu.input": _layers(_rnn(torch.relu), 1),
    "aten::lstm_cell.default": _one_step(_lstm),
    "aten::gru_cell.default": _one_step(_gru),
    "aten::rnn_tanh_cell.default": _one_step(_rnn(torch.tanh)),
    "aten::rnn_relu_cell.default": _one_step(_rnn(torch.relu)),
    **WITHOUT_BATCHING_RULE,
}
"""Forms that run for several networks at once. Evaluation mode: there is no dropout between layers."""
