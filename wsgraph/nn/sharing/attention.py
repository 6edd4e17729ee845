"""Attention between the rows and columns of a chain's weights."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from wsgraph.nn.sharing.layout import Layout, SharingModule
from wsgraph.space import Blocks, ParameterGraph, WeightSpace

__all__ = ["NPAttention"]


class NPAttention(SharingModule):
    r"""Attention equivariant under permutations of all neurons, from `Neural Functional Transformers <https://arxiv.org/abs/2305.13546>`_.

    Every weight and bias is projected to queries, keys and values of :math:`d` channels per head. In neuron layer :math:`i`, the tokens are
    the columns of :math:`W^{(i)}`, the bias :math:`b^{(i)}` and the rows of :math:`W^{(i+1)}`: vectors over channels and the layer's
    :math:`n_i` neurons. In one more attention, the tokens are the means of all tensors.

    .. math::
        [Y^{(i)}, y^{(i)}, Z^{(i+1)}] = \text{softmax}\Big( \frac{Q_i K_i^\top}{\sqrt{d \, n_i}} \Big) V_i, \qquad
        [M^{(1)}, m^{(1)}, \ldots, M^{(L)}, m^{(L)}] = \text{softmax}\Big( \frac{\bar{Q} \bar{K}^\top}{\sqrt{d}} \Big) \bar{V}

    .. math::
        W^{(i)}_{jk} \mapsto U^{(i)} \big( Y^{(i)}_{jk} + Z^{(i)}_{jk} + M^{(i)} \big) + \tau^{(i)}, \qquad
        b^{(i)}_j \mapsto y^{(i)}_j + m^{(i)}

    :math:`U^{(i)}` maps channels to channels at every kernel position. Residual connections and norms are left to the model around.

    Args:
        space: Weight space of the networks: a chain with a bias in every layer.
        in_channels: Channels per weight on the way in.
        out_channels: Channels per weight on the way out, as many.
        heads: Attention heads, a divisor of the channels.
        shared: Whether all weights and biases share one projection, with :math:`U^{(i)} = 1, \tau^{(i)} = 0`, for networks of one kernel
            position per weight; else each has its own.
        dropout: Dropout rate of the attention weights in training mode.

    Shapes:
        input: :class:`~wsgraph.space.Blocks` of ``in_channels``, a batch of networks (for one channel) or ``[B, P, in_channels]``.
        output: :class:`~wsgraph.space.Blocks` of ``out_channels``; ``.flatten()`` gives ``[B, P, out_channels]``.

    Raises:
        SpaceMismatchError: If the input belongs to another weight space.
        ValueError: If the space is no chain, lacks a bias, or has kernels although projections are shared; if the channels out are others
            than in, or ``heads`` does not divide them; if ``dropout`` is no rate; or if the number of channels of the input differs.

    Example:
        >>> from wsgraph import WeightSpace
        >>> space = WeightSpace.mlp([2, 8, 8, 1])
        >>> layer = NPAttention(space, 4, 4, heads=2)
        >>> layer(torch.randn(3, space.num_params, 4)).flatten().shape
        torch.Size([3, 105, 4])
    """

    symmetries = ("permutation",)

    def __init__(
        self, space: WeightSpace, in_channels: int, out_channels: int, *, heads: int = 1, shared: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__(space, in_channels)
        if in_channels != out_channels:
            raise ValueError(f"NPAttention writes as many channels as it reads (got {in_channels} and {out_channels}).")
        self.out_channels = channels = out_channels
        if not space.is_chain:
            raise ValueError(f"NPAttention needs a chain, whose weights meet row by column at every neuron (got {space!r}).")
        if without := [layer.name for layer in space.layers if layer.bias is None]:
            raise ValueError(f"NPAttention needs a bias in every layer (missing in {', '.join(map(repr, without))} of {space!r}).")
        if shared and any(edges.num_positions != 1 for edges in space.topology.edges):
            raise ValueError(
                f"NPAttention can share projections only where every weight has one kernel position (got {space!r}); use shared=False."
            )
        if heads < 1 or channels % heads:
            raise ValueError(f"Expected 'heads' to be a divisor of the number of channels, {channels} (got {heads}).")
        if not 0 <= dropout <= 1:
            raise ValueError(f"Expected 'dropout' to be a rate between 0 and 1 (got {dropout}).")
        self.heads, self.shared, self.dropout = heads, shared, dropout
        self.layout = Layout(space, boundary=True, user="NPAttention")
        parameters = self.layout.entries.values()
        # Tokens of one neuron layer are vectors along all the axes that belong to it, of whatever parameter.
        self.axes: dict[tuple[str, ...], list[tuple[str, int]]] = {}
        for entries in parameters:
            for axis, label in enumerate(entries.labels):
                self.axes.setdefault(label, []).append((entries.name, axis))
        positions = [1] if shared else [entries.positions for entries in parameters]
        self.projections = nn.ModuleList(nn.Linear(channels * count, 3 * channels) for count in positions)
        weights = [] if shared else [entries for entries in parameters if len(entries.movable) == 2]
        self.index = {entries.name: i for i, entries in enumerate(weights)}
        self.maps = nn.ModuleList(nn.Linear(channels, channels * entries.positions) for entries in weights)

    def forward(self, features: Blocks | ParameterGraph | Tensor) -> Blocks:
        entries = self.layout.read(self.as_blocks(features))
        projections = [self.projections[0]] * len(entries) if self.shared else self.projections
        projected = {}  # [B, heads, 3, d, n_out, n_in], a bias being a single column
        for (name, values), linear in zip(entries.items(), projections, strict=True):
            columns = values if values.ndim == 4 else values.transpose(1, 2).unsqueeze(3)
            projected[name] = _mix(columns, linear).unflatten(1, (self.heads, 3, -1))

        means = self._attend(torch.stack([values.mean((4, 5)) for values in projected.values()], dim=3))
        mixed = dict(zip(projected, means[..., None, None].unbind(2), strict=True))  # [B, heads, d, n_out, n_in]
        for axes in self.axes.values():
            tokens = [projected[name].movedim(5 - axis, 3) for name, axis in axes]  # [B, heads, 3, tokens, d, n]
            attended = self._attend(torch.cat(tokens, dim=3).flatten(4)).unflatten(3, tokens[0].shape[4:])
            for (name, axis), part in zip(axes, attended.split([part.shape[3] for part in tokens], dim=2), strict=True):
                mixed[name] = mixed[name] + part.movedim(2, 4 - axis)

        outputs = {}
        for name, values in mixed.items():
            values = values.flatten(1, 2)
            if name in self.index:
                values = _mix(values, self.maps[self.index[name]])
            outputs[name] = values if len(self.layout.entries[name].movable) == 2 else values.squeeze(3).transpose(1, 2)
        return self.layout.write(outputs, self.in_channels)

    def _attend(self, tokens: Tensor) -> Tensor:
        """``[B, heads, tokens, features]`` from the queries, keys and values ``[B, heads, 3, tokens, features]``."""
        # Written out: the fused kernels have no second derivatives, and gain nothing where tokens are few and their features many.
        query, key, value = tokens.unbind(2)
        weights = (query @ key.mT * query.shape[-1] ** -0.5).softmax(-1)
        return nn.functional.dropout(weights, self.dropout, self.training) @ value

    def extra_repr(self) -> str:
        return f"{self.space!r}, channels={self.in_channels}, heads={self.heads}, shared={self.shared}, dropout={self.dropout}"


def _mix(values: Tensor, linear: nn.Module) -> Tensor:
    """An affine map of the features of ``[B, features, n_out, n_in]``, as one product per network without moving them in memory."""
    weight, bias = cast(Tensor, linear.weight), cast(Tensor, linear.bias)
    mixed = torch.baddbmm(bias[:, None], weight.expand(len(values), -1, -1), values.flatten(2))
    return mixed.unflatten(2, values.shape[2:])
