"""Read the weight space of a plain network off its state dict."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from wsgraph.convert.chain import NotAChainError, read_chain
from wsgraph.convert.errors import NoConvolutionsError
from wsgraph.convert.layouts import check_layout, flattened_channels_first, turned
from wsgraph.convert.networks import check_mapping, check_quantised, check_values, chosen_network, prefix_hint
from wsgraph.operators import Activations
from wsgraph.space.assumed import tell_assumed
from wsgraph.space.chains import POOLED_READOUTS, ChainLink, chain_parts, per_layer
from wsgraph.space.dtypes import flat_dtype, stored_dtype
from wsgraph.space.weight_space import WeightSpace

__all__ = ["from_state_dict", "read_network"]

_NO_POOLING = "none"


def from_state_dict(
    state_dict: Mapping[str, Tensor],
    activation: Activations = "relu",
    *,
    prefix: str | None = None,
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] | None = None,
    readout: str | None = None,
    pooling: str | Sequence[str | None] | None = None,
    layout: str = "out_in",
) -> tuple[WeightSpace, Tensor]:
    r"""Read the weight space and the flat checkpoint of a plain MLP or CNN off its tensors, whatever their keys are called.

    The network is a chain: convolutions (1, 2 or 3 dimensions), then global pooling or flattening, then linear layers; or linear layers
    alone. Weights are stored as PyTorch does, ``[out, in, *kernel]``, or as ``layout`` says. What shapes do not tell (activations,
    strides) is given by the arguments; strides, paddings and pooling that are not given are assumed, with a warning, and marked in
    ``space.assumed``. Skip connections have no weights and cannot be seen: do not read residual networks this way. What is no chain by
    its keys or shapes
    (adapters, weights under weight norm or pruned, embeddings, several networks in one dict, ...) is refused; what may be one or
    another network is read with a warning.

    Names of wrappers that all keys have (``module.``, ``_orig_mod.``, ``model.``) are left out, so that a network has the same space with
    and without them; so are counters such as ``n_averaged``, integers that enter no output.

    Layers whose keys differ in a number are ordered by that number (``layers.2`` before ``layers.10``), other layers by their place in the
    dict. Where that order does not chain, or the dict is sorted alphabetically and its order therefore says nothing, the order is
    taken from the shapes, provided that they allow a single one; submodules stay whole, and names such as encoder and decoder, or input
    and output, decide where shapes do not. Flattening is recognised where the first linear layer reads several
    positions per channel.

    Args:
        state_dict: Floating point tensors by key. ``space.params`` keeps the keys, without prefix and wrappers, and the shapes.
        activation: One activation for all hidden groups or one per hidden group, such as ``"relu"``, ``"sin(30)"`` or ``nn.Tanh()``.
        prefix: What the keys of the network begin with, such as ``"q_net."``, where the dict holds more; see :func:`list_networks`.
        stride: One stride or one per convolution (assumed: 1).
        padding: One zero padding or one per convolution (assumed: 0).
        readout: ``"global_avg_pool"`` or ``"global_max_pool"`` between convolutions and a linear layer that reads one value per
            channel (assumed: the former).
        pooling: Operator after the activation of every convolution but the last, such as ``"max_pool(2)"``, or ``"none"``; or a list
            with one operator or ``None`` per convolution, the last one included (assumed: none).
        layout: ``"out_in"`` where weights are ``[out, in, *kernel]``, as in PyTorch; ``"in_out"`` where they are ``[*kernel, in, out]``,
            as in Keras, Flax and scikit-learn, whose flattening of images has the channels last. These are turned into the former: the
            space has ``weight`` in its keys for ``kernel``, and images are read ``[N, C, H, W]``.

    Returns:
        The space, and :math:`\theta` of shape ``[P]``: weight and bias layer by layer, on the tensors' device and in their promoted
        dtype. ``space.unflatten(theta)`` gives back the tensors bit for bit, each in its own dtype.

    Raises:
        TypeError: If ``state_dict`` is not a mapping.
        ValueError: If the tensors do not form such a chain (the first key that does not fit is named), they are of several networks or
            several orders of the layers are possible, a value is not a finite floating point tensor on the common device, no key has the
            prefix, or an option does not fit the network.

    Example:
        >>> import torch
        >>> from wsgraph.convert import from_state_dict
        >>> module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
        >>> space, theta = from_state_dict(module.state_dict(), "tanh")
        >>> space
        WeightSpace(2-3-1, linear | linear, tanh, 13 parameters)
        >>> all(torch.equal(space.unflatten(theta)[key], tensor) for key, tensor in module.state_dict().items())
        True
    """
    check_layout(layout)
    if is_turned := layout != "out_in":
        check_mapping(state_dict)
        check_quantised(state_dict)
        state_dict = turned(state_dict)
    space, theta = read_network(
        state_dict, activation, prefix, stride=stride, padding=padding, readout=readout, pooling=pooling, stacklevel=2
    )
    if is_turned:
        theta = flattened_channels_first(space, theta)
    tell_assumed([space])
    return space, theta


def read_network(
    state_dict: Mapping[str, Tensor],
    activation: Activations,
    prefix: str | None = None,
    *,
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] | None = None,
    readout: str | None = None,
    pooling: str | Sequence[str | None] | None = None,
    stacklevel: int = 1,
) -> tuple[WeightSpace, Tensor]:
    """What :func:`from_state_dict` does, for callers that say themselves what was assumed."""
    check_mapping(state_dict)
    if readout is not None and readout not in POOLED_READOUTS:
        raise ValueError(f"Expected 'readout' to be {' or '.join(POOLED_READOUTS)} (got {readout!r}); flattening is read off the shapes.")
    chosen = chosen_network(state_dict, prefix)
    try:
        chain = read_chain(chosen, f"{prefix.rstrip('./')}." if prefix else "")
    except NotAChainError as error:
        hint = "" if prefix or "prefix=" in str(error) else prefix_hint(state_dict)
        raise ValueError(f"{error}{hint}") from None
    chain.warn(stacklevel + 1)
    order, biases = chain.weights, chain.biases
    check_values(chosen)
    tensors = [chosen[key] for key in order]
    convolutions = sum(tensor.ndim > 2 for tensor in tensors)
    if not convolutions and any(option is not None for option in (stride, padding, pooling, readout)):
        raise NoConvolutionsError("The state dict has no convolutions: leave out 'stride', 'padding', 'pooling' and 'readout'.")
    pooled = bool(convolutions) and tensors[convolutions].shape[1] == tensors[convolutions - 1].shape[0]
    if convolutions and readout is not None and not pooled:
        raise ValueError(
            f"'readout' is {readout!r}, but {order[convolutions]!r} reads several positions of every channel, which flattening leaves: "
            "leave out 'readout'."
        )
    assumed = _assumed(convolutions, stride=stride, padding=padding, pooling=pooling, readout=readout if pooled else "flatten")
    strides = per_layer("stride", 1 if stride is None else stride, convolutions)
    paddings = per_layer("padding", 0 if padding is None else padding, convolutions)
    if pooling is None or isinstance(pooling, str):
        pools = [None if pooling == _NO_POOLING else pooling] * (convolutions - 1) + [None]
    else:
        pools = [None if pool == _NO_POOLING else pool for pool in per_layer("pooling", list(pooling), convolutions)]

    dtype = flat_dtype(chosen.values())
    links = []
    parts: list[Tensor] = []
    for i, (key, tensor) in enumerate(zip(order, tensors, strict=True)):
        bias = biases.get(key)
        stored = [chosen[name] for name in (key, bias) if name is not None]
        names = [stored_dtype(part, dtype) for part in stored]
        parts += (part.to(dtype).reshape(-1) for part in stored)
        operators: list[str] = []
        positions = None
        if i < convolutions and (pool := pools[i]):
            operators.append(pool)
        if i + 1 == convolutions:
            operators.append((readout or "global_avg_pool") if pooled else "flatten")
        if i and i == convolutions and tensor.shape[1] > tensors[i - 1].shape[0]:
            positions = tensor.shape[1] // tensors[i - 1].shape[0]
        links.append(
            ChainLink(
                tuple(tensor.shape[2:]),
                tensor.shape[0],
                positions=positions,
                stride=strides[i] if i < convolutions else 1,
                padding=paddings[i] if i < convolutions else 0,
                operators=tuple(operators),
                weight=key,
                bias=bias,
                dtypes=(names[0], names[1] if bias else None),
            )
        )
    return dataclasses.replace(WeightSpace(*chain_parts(links, tensors[0].shape[1], activation)), assumed=assumed), torch.cat(parts)


def _assumed(convolutions: int, **options: Any) -> tuple[str, ...]:
    """What of a network with convolutions nobody gave."""
    texts = {"stride": "stride 1", "padding": "padding 0", "pooling": "no pooling", "readout": "global_avg_pool before the linear layers"}
    return tuple(texts[name] for name, value in options.items() if value is None) if convolutions else ()
