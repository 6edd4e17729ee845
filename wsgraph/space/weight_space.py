"""The weight space: an architecture as data, and every cheap view of its checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from wsgraph.operators import Activations
from wsgraph.space.base import BaseSpace
from wsgraph.space.blocks import Blocks, make_blocks
from wsgraph.space.chains import FLAT_READOUT, POOLED_READOUTS, ChainLink, chain_parts, per_layer
from wsgraph.space.graph import ParameterGraph, make_batch, make_graph
from wsgraph.space.parts import Signal

if TYPE_CHECKING:
    import networkx as nx

__all__ = ["WeightSpace"]


class WeightSpace(BaseSpace):
    r"""A network architecture as data: neuron groups, the parameters that connect them, and the symmetry each group has.

    A checkpoint is a point :math:`\theta \in \mathbb{R}^P` of its weight space. The space holds no tensors, is hashable and comparable,
    and turns :math:`\theta` into every other view: state dict, parameter graph, dense layer blocks, a moved or canonical copy.

    Build one with :meth:`mlp` or :meth:`cnn`, read it off a checkpoint with :func:`wsgraph.from_state_dict`, or describe any feed-forward
    network (residual sums, several consumers, tied groups) by its parts.

    Args:
        groups: Neuron groups.
        layers: Layers between them, in any order without cycles.
        params: Parameters, in the order in which they lie in :math:`\theta`.
        connections: Of a network that layers cannot express, which neurons read which: its parameter graph.
        signal: Of an implicit neural representation, what it represents; it says nothing about symmetry.
        assumed: What of the networks' function nobody gave and weights do not show, such as ``"padding 0"``. Spaces that differ in this
            alone are equal; ``dataclasses.replace(space, assumed=())`` says that it is right.
        program: Of a network that layers cannot express, what it computes: its operators as data, which :meth:`evaluate` runs.
        unlayered: Why a traced network is not written as layers. Spaces that differ in this alone are equal.
        unprogrammed: Why a traced network has neither layers nor a program, likewise.

    Raises:
        ValueError: If names repeat, a layer names an unknown part, sizes disagree, or the layers form a cycle.

    Example:
        >>> from wsgraph import WeightSpace
        >>> space = WeightSpace.mlp([2, 32, 32, 1], activation="sin(30)")
        >>> space
        WeightSpace(2-32-32-1, linear | linear | linear, sin(30), 1,185 parameters)
        >>> space.groups[1].symmetry
        Symmetry(positive=False, sign=True)
        >>> WeightSpace.from_json(space.to_json()) == space
        True
    """

    # == Spaces by hand ==

    @classmethod
    def mlp(cls, sizes: Sequence[int], activation: Activations = "relu", *, bias: bool = True) -> WeightSpace:
        """The weight space of a multilayer perceptron.

        Args:
            sizes: Widths :math:`n_0, \\ldots, n_L` from the input to the output.
            activation: One activation for all hidden groups or one per hidden group, such as ``"relu"``, ``"sin(30)"`` or ``nn.Tanh()``.
            bias: Whether every layer has a bias.

        Returns:
            A chain of linear layers named ``layers.0``, ``layers.1``, ..., with the activation between any two.

        Raises:
            ValueError: If there are fewer than two sizes, a size is not positive, or an activation is unknown.

        Example:
            >>> WeightSpace.mlp([784, 128, 10], activation="gelu")
            WeightSpace(784-128-10, linear | linear, gelu, 101,770 parameters)
        """
        return cls(*chain_parts([ChainLink((), size) for size in sizes[1:]], sizes[0] if len(sizes) else 0, activation, bias=bias))

    @classmethod
    def siren(cls, sizes: Sequence[int] = (2, 32, 32, 1), omega: float = 30.0, *, signal: Signal | None = None) -> WeightSpace:
        r"""The weight space of sinusoidal implicit neural representations (`Sitzmann et al., 2020 <https://arxiv.org/abs/2006.09661>`_).

        .. math:: h_l = \sin(\omega (W_l h_{l-1} + b_l)), \quad f = W_L h_{L-1} + b_L

        Args:
            sizes: Widths from the two coordinates to the channels of the picture.
            omega: Frequency factor of every hidden layer.
            signal: What the networks represent (default: pictures of 28x28 pixels in the convention of `Navon et al.
                <https://arxiv.org/abs/2301.12780>`_: first coordinate along columns, 0.5 added, values from 0 to 1).

        Returns:
            A chain of linear layers with ``sin(omega)`` between any two, and the signal that :meth:`render` draws.

        Raises:
            ValueError: As for :meth:`mlp`.

        Example:
            >>> WeightSpace.siren().signal
            Signal(shape=(28, 28), first_axis='column', offset=0.5, value_range=(0.0, 1.0))
        """
        space = cls.mlp(sizes, f"sin({omega:g})")
        return dataclasses.replace(space, signal=signal or Signal((28, 28), offset=0.5))

    @classmethod
    def cnn(
        cls,
        channels: Sequence[int],
        linear: Sequence[int],
        activation: Activations = "relu",
        *,
        kernel_size: int | tuple[int, ...] | Sequence[int | tuple[int, ...]] = 3,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        pooling: str | None = None,
        readout: str = "global_avg_pool",
        positions: int | None = None,
        bias: bool = True,
    ) -> WeightSpace:
        """The weight space of a plain CNN: convolutions, then global pooling or flattening, then linear layers.

        Args:
            channels: Input channels, then the output channels of every convolution.
            linear: Output sizes of the linear layers; the last one is the network's output.
            activation: One activation for all hidden groups or one per hidden group.
            kernel_size: One kernel size or one per convolution; an integer means a square 2-dimensional kernel, a tuple gives each side.
            stride: One stride or one per convolution.
            padding: One zero padding or one per convolution.
            pooling: Operator applied after the activation of every convolution but the last, such as ``"max_pool(2)"``.
            readout: ``"global_avg_pool"``, ``"global_max_pool"`` or ``"flatten"`` between the convolutions and the linear layers.
            positions: Spatial positions per channel that ``readout="flatten"`` turns into inputs of the first linear layer.
            bias: Whether every layer has a bias.

        Returns:
            A chain of layers named ``layers.0``, ``layers.1``, ..., with the activation between any two.

        Raises:
            ValueError: If sizes, options per convolution or the readout do not fit together, or an activation is unknown.

        Example:
            >>> WeightSpace.cnn([1, 16, 16, 16], [10], stride=2)
            WeightSpace(1-16-16-16-10, conv 3x3 | conv 3x3 | conv 3x3 | linear, relu, 4,970 parameters)
        """
        count = len(channels) - 1
        if count < 1 or not linear:
            raise ValueError(f"Expected at least two 'channels' and one 'linear' size (got {list(channels)} and {list(linear)}).")
        if readout not in (*POOLED_READOUTS, FLAT_READOUT):
            raise ValueError(f"Expected 'readout' to be {', '.join(POOLED_READOUTS)} or {FLAT_READOUT} (got {readout!r}).")
        if (readout == FLAT_READOUT) != (positions is not None):
            raise ValueError("Give 'positions', the number of spatial positions per channel, with readout='flatten' and only then.")
        kernels = per_layer("kernel_size", [kernel_size] if isinstance(kernel_size, tuple) else kernel_size, count)
        strides, paddings = per_layer("stride", stride, count), per_layer("padding", padding, count)
        for name, values in (
            ("kernel_size", [side for k in kernels for side in (k if isinstance(k, tuple) else (k,))]),
            ("stride", strides),
        ):
            if any(value < 1 for value in values):
                raise ValueError(f"Expected '{name}' to be positive (got {values}).")
        if positions is not None and positions < 1:
            raise ValueError(f"Expected 'positions' to be positive (got {positions}).")
        if len({len(k) if isinstance(k, tuple) else 2 for k in kernels}) > 1:
            raise ValueError(f"Expected kernels of one number of dimensions in 'kernel_size' (got {kernels}).")
        links = [
            ChainLink(
                kernel if isinstance(kernel, tuple) else (kernel, kernel),
                size,
                stride=strides[i],
                padding=paddings[i],
                operators=(readout,) if i == count - 1 else (pooling,) if pooling else (),
            )
            for i, (kernel, size) in enumerate(zip(kernels, channels[1:], strict=True))
        ]
        links += [ChainLink((), size, positions=positions if i == 0 else None) for i, size in enumerate(linear)]
        return cls(*chain_parts(links, channels[0], activation, bias=bias))

    # == Views ==

    def blocks(self, thetas: Tensor) -> Blocks:
        """Dense layer blocks ``[B, n_out, n_in, K]`` and biases ``[B, n_out]``, as views of ``thetas``.

        Args:
            thetas: Tensor of shape ``[B, P]``, or ``[B, P, C]`` with channels, which then come last in every block.

        Returns:
            :class:`~wsgraph.space.Blocks` with one weight and one bias (or ``None``) per layer.
        """
        return make_blocks(self, thetas)

    def graph(self, theta: Tensor, y: Any = None) -> ParameterGraph:
        """The parameter graph of one checkpoint.

        Args:
            theta: Flat checkpoint of shape ``[P]``.
            y: Target of the network, stored with a leading dimension of one.

        Returns:
            The graph, in the dtype and on the device of ``theta``.

        Raises:
            SpaceMismatchError: If the shape is wrong.
            ValueError: If a weight is NaN or infinite.

        Example:
            >>> import torch
            >>> space = WeightSpace.mlp([2, 3, 1])
            >>> space.graph(space.sample(1, generator=torch.manual_seed(0))[0], y=0.5)
            ParameterGraph(2-3-1, nodes=6, edges=9, y=[1])
        """
        return make_graph(self, theta, y)

    def batch(self, thetas: Tensor, y: Any = None) -> ParameterGraph:
        """A PyG batch of parameter graphs, built without a loop over networks.

        Args:
            thetas: Flat checkpoints of shape ``[B, P]``.
            y: Targets of shape ``[B, ...]``.

        Returns:
            A :class:`~wsgraph.space.ParameterGraph` batch; edges lie layer by layer, then target neuron, then source neuron.

        Raises:
            SpaceMismatchError: If the shape is wrong.
            ValueError: If a weight is NaN or infinite, or the targets do not match.
        """
        return make_batch(self, thetas, y)

    def to_networkx(self, theta: Tensor | None = None) -> nx.DiGraph:
        """The parameter graph as a networkx graph, with the weights of ``theta`` (zeros without one)."""
        return self.graph(torch.zeros(self.num_params) if theta is None else theta).to_networkx()
