"""The networks that a state dict holds: what wrappers put around their keys, and which prefix each has."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from wsgraph.convert.chain import read_chain
from wsgraph.convert.errors import NonFiniteWeightsError
from wsgraph.space.dtypes import computable

__all__ = [
    "StoredNetwork",
    "check_mapping",
    "check_quantised",
    "check_values",
    "chosen_network",
    "list_networks",
    "matching_network",
    "prefix_hint",
    "unwrapped",
]

# Wrappers that hold the whole network under their name: DataParallel, torch.compile, Lightning, Fabric, Opacus.
_WRAPPERS = ("module", "model", "_orig_mod", "_forward_module", "_module")
# Wrappers that may be around any submodule: torch.compile, FSDP, activation checkpointing.
_INNER_WRAPPERS = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_COUNTER = re.compile(r"(?<![a-z])(?:n|num|step|steps|epoch|count|counter|init\w*|version|iterations?)(?![a-z])", re.IGNORECASE)
_QUANTISED = re.compile(r"zero_?point|fake_quant|observer", re.IGNORECASE)
_LISTED = 6
# Types of which several share a byte.
_PACKED = {torch.float4_e2m1fn_x2, *(getattr(torch, f"{sign}int{bits}") for sign in ("", "u") for bits in range(1, 8))}


@dataclass(frozen=True)
class StoredNetwork:
    """A network that a state dict holds.

    Attributes:
        prefix: What its keys begin with, for ``prefix=`` of :func:`wsgraph.from_state_dict`; empty if all do.
        layers: Its layers, such as ``"4-8-2, linear | linear"``; empty if it is no chain.
        parameters: Number of its parameters.
        reason: Why it is no chain of layers; empty if it is one.

    Example:
        >>> from wsgraph import list_networks
        >>> list_networks(torch.nn.Linear(4, 2).state_dict())
        [StoredNetwork(prefix='', layers='4-2, linear', parameters=10, reason='')]
    """

    prefix: str
    layers: str
    parameters: int
    reason: str


def unwrapped(keys: Iterable[str]) -> dict[str, str]:
    """Keys by what is left of them without the names of wrappers that all of them have, such as ``module.`` and ``_orig_mod.``.

    Example:
        >>> unwrapped(["module._orig_mod.0.weight", "module._orig_mod.0.bias"])
        {'0.weight': 'module._orig_mod.0.weight', '0.bias': 'module._orig_mod.0.bias'}
    """
    keys = list(keys)
    shorten = _without_wrappers(keys)
    short = {shorten(key): key for key in keys}
    return short if len(short) == len(keys) else {key: key for key in keys}


def _without_wrappers(keys: Collection[str]) -> Callable[[str], str]:
    """What takes the wrappers that all of these keys have off a key."""
    inner = [_INNER_WRAPPERS.sub("", key) for key in keys]
    prefix = ""
    while wrapper := next((name for name in _WRAPPERS if inner and all(key.startswith(f"{prefix}{name}.") for key in inner)), None):
        prefix += f"{wrapper}."
    return lambda key: _INNER_WRAPPERS.sub("", key).removeprefix(prefix)


def _is_counter(key: str, tensor: Tensor) -> bool:
    """Whether a tensor counts or marks something, as ``n_averaged`` and ``num_batches_tracked`` do, and enters no output."""
    whole = not tensor.is_floating_point() and not tensor.is_complex()
    return whole and not _QUANTISED.search(key) and (tensor.ndim == 0 or (tensor.numel() == 1 and _COUNTER.search(key) is not None))


def chosen_network(state_dict: Mapping[str, Tensor], prefix: str | None) -> dict[str, Tensor]:
    """The tensors of one network by their keys within it: below a prefix, without counters and wrappers.

    Raises:
        ValueError: If no key has the prefix, or nothing but counters is left.
    """
    state = dict(state_dict)
    if prefix:
        state = _below(state, prefix)
    check_quantised(state)
    kept = [key for key, tensor in state.items() if not _is_counter(key, tensor)]
    if not kept:
        raise ValueError(f"The state dict holds no weights{f' under {prefix!r}' if prefix else ''}, only {', '.join(map(repr, state))}.")
    return {short: state[key] for short, key in unwrapped(kept).items()}


def check_quantised(state: Mapping[str, Tensor]) -> None:
    """Raise where weights are stored in fewer bits than they have, whose numbers and shapes are not those of the weights.

    Raises:
        ValueError: If a tensor is quantised.
    """
    for key, tensor in state.items():
        packed = tensor.dtype in _PACKED or (tensor.dtype in (torch.uint8, torch.int8) and tensor.ndim > 1)
        if packed or tensor.is_quantized:
            raise ValueError(
                f"Expected floating point weights, but {key!r} is quantised ({tensor.dtype}): dequantise the network first, with "
                "the library that quantised it, or read the one that was quantised."
            )


def matching_network(state_dict: Mapping[str, Tensor], names: Collection[str], prefix: str | None) -> dict[str, Tensor]:
    """The tensors of one network by the keys that are known of it: below a prefix, and without wrappers where keys have them.

    Args:
        state_dict: Tensors by key.
        names: Keys of the network.
        prefix: What its keys begin with.

    Returns:
        Tensors by key; where keys are unknown, as they are, for whoever knows the network to say so.
    """
    state = _below(state_dict, prefix) if prefix else dict(state_dict)
    shorten = _without_wrappers([key for key, tensor in state.items() if not _is_counter(key, tensor)])
    for found in (state, {shorten(key): tensor for key, tensor in state.items()}):
        known = {key: tensor for key, tensor in found.items() if key in names or not _is_counter(key, tensor)}
        # Of tied weights, files may hold one key only.
        if known.keys() <= set(names) and len(found) == len(state):
            return known
    return state


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    beginnings = [prefix] if prefix[-1] in "./" else [f"{prefix}.", f"{prefix}/"]
    for names in ({key: key for key in state}, unwrapped(state)):
        for start in beginnings:
            found = {short.removeprefix(start): state[key] for short, key in names.items() if short.startswith(start) and short != start}
            if found:
                return found
    listed = list(dict.fromkeys(match[0] for key in state if (match := re.match(r"[^./]+[./]", key))))
    available = ", ".join(map(repr, listed[:_LISTED])) + (f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else "")
    raise ValueError(f"No key of the state dict begins with {beginnings[0]!r} (they begin with: {available or 'no prefix'}).")


def list_networks(state_dict: Mapping[str, Tensor]) -> list[StoredNetwork]:
    """The networks that a state dict holds, each with the prefix of its keys.

    Where all tensors form one chain of layers, that is one network without a prefix. Otherwise prefixes are followed as long as chains
    of several layers lie below them; what is no chain is listed with the reason.

    Args:
        state_dict: Tensors by key.

    Returns:
        The networks in the order of the dict.

    Raises:
        TypeError: If ``state_dict`` is not a mapping.
        ValueError: If it is empty, or holds other values than tensors.

    Example:
        >>> from wsgraph import list_networks
        >>> def network():
        ...     return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> agent = torch.nn.ModuleDict({"q_net": network(), "q_net_target": network()})
        >>> for found in list_networks(agent.state_dict()):
        ...     print(found.prefix, found.layers)
        q_net. 4-8-2, linear | linear
        q_net_target. 4-8-2, linear | linear
    """
    check_mapping(state_dict)
    return _networks(state_dict, "")


def _networks(state_dict: Mapping[str, Tensor], prefix: str) -> list[StoredNetwork]:
    here = _described(state_dict, prefix)
    return _networks_below(state_dict, prefix) or [here] if here.reason else [here]


def _networks_below(state_dict: Mapping[str, Tensor], prefix: str) -> list[StoredNetwork]:
    """The networks under the next segments, if there are chains of several layers among them."""
    below: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state_dict.items():
        if tensor.ndim and (match := re.match(r"[^./]+[./]", key)) and match.end() < len(key):
            below.setdefault(match[0], {})[key[match.end() :]] = tensor
    inner = [found for name, own in below.items() for found in _networks(own, prefix + name)]
    return inner if any(" | " in found.layers for found in inner) or len(below) == 1 else []


def _described(own: Mapping[str, Tensor], prefix: str) -> StoredNetwork:
    try:
        tensors = chosen_network(own, None)
        order, biases, _ = read_chain(tensors, prefix)
        check_values(tensors)
    except ValueError as error:
        return StoredNetwork(prefix, "", sum(tensor.numel() for tensor in own.values()), str(error))
    weights = [tensors[key] for key in order]
    sizes = "-".join(str(size) for size in (weights[0].shape[1], *(weight.shape[0] for weight in weights)))
    kinds = (f"conv {'x'.join(map(str, weight.shape[2:]))}" if weight.ndim > 2 else "linear" for weight in weights)
    count = sum(tensors[key].numel() for key in (*order, *biases.values()))
    return StoredNetwork(prefix, f"{sizes}, {' | '.join(kinds)}", count, "")


def prefix_hint(state_dict: Mapping[str, Tensor]) -> str:
    """What to do where the tensors are no chain, but those below some prefixes are."""
    # What lies directly under a prefix may as well be what one layer is made of.
    deep = [key for key in state_dict if re.search(r"[./].+[./]", key)]
    prefixes = [
        found.prefix
        for found in _networks_below(state_dict, "")
        if " | " in found.layers and any(key.startswith(found.prefix) and re.search(r"[./]", key[len(found.prefix) :]) for key in deep)
    ]
    if not prefixes:
        return ""
    listed = ", ".join(map(repr, prefixes[:_LISTED])) + (f" and {len(prefixes) - _LISTED} more" if len(prefixes) > _LISTED else "")
    chains = "A chain of layers is" if len(prefixes) == 1 else "Chains of layers are"
    return f" {chains} under {listed}: prefix={prefixes[0]!r} (--prefix on the command line) reads one alone."


def check_mapping(state_dict: Mapping[str, Tensor]) -> None:
    """Raise unless these are tensors by key."""
    if not isinstance(state_dict, Mapping):
        raise TypeError(
            f"Expected 'state_dict' to be a mapping of keys to tensors (got {type(state_dict).__name__}); see module.state_dict()."
        )
    if not state_dict:
        raise ValueError("The state dict is empty: expected at least one weight.")
    for key, value in state_dict.items():
        if not isinstance(key, str):
            raise ValueError(f"Expected the keys of the state dict to be strings (got {key!r}).")
        if not isinstance(value, Tensor):
            nested = [name for name, entry in state_dict.items() if isinstance(entry, Mapping)]
            entry = "state_dict" if "state_dict" in nested or not nested else nested[0]
            raise ValueError(
                f"The state dict holds a {type(value).__name__} under {key!r}, not a tensor. Of a training checkpoint pass the entry that "
                f"holds the weights, such as checkpoint[{entry!r}]; convert arrays with torch.as_tensor."
            )
        if is_lazy(value):
            raise ValueError(f"{key!r} has no shape yet, as lazy layers have before they are first used: run the module once.")
        if value.is_nested or value.layout != torch.strided:
            kind = "a nested tensor" if value.is_nested else str(value.layout)
            raise ValueError(f"{key!r} is stored as {kind}, not as an ordinary tensor; convert it, for instance with .to_dense().")


def check_values(state_dict: Mapping[str, Tensor]) -> None:
    """Raise unless tensors are finite floating point numbers on one device."""
    device = next(iter(state_dict.values())).device
    for key, tensor in state_dict.items():
        if not tensor.is_floating_point():
            raise ValueError(f"Expected floating point weights, but {key!r} has dtype {tensor.dtype}; dequantize or convert it first.")
        if tensor.device != device:
            raise ValueError(
                f"Expected all tensors on one device, {device}, but {key!r} is on {tensor.device}; move them with .to(device)."
            )
        if not tensor.is_meta and not torch.isfinite(tensor.to(computable(tensor.dtype))).all():
            raise NonFiniteWeightsError(
                f"{key!r} holds NaN or infinite weights; such a network has diverged and cannot be compared with others."
            )
