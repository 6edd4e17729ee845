"""Read the weight space of a plain network off its state dict."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from wsgraph.space.weight_space import WeightSpace, _Link, _per_layer, chain_space, computable, flat_dtype, stored_dtype

__all__ = ["from_state_dict"]

_ROLE = re.compile(r"(?<![a-z])(?:(?P<weight>weights?|kernels?|w)|(?P<bias>bias(?:es)?|b))(?![a-z])", re.IGNORECASE)
_BIAS_WORD = re.compile(r"(?<![a-z])bias(?:es)?(?![a-z])", re.IGNORECASE)
# A vector of one of these names next to a layer without bias would otherwise be taken for the bias.
_STATISTIC = re.compile(r"(?<![a-z])(?:alpha|gamma|mean|running|scale|std|var)(?![a-z])", re.IGNORECASE)
# Shapes of these layers can chain by accident, above all where all widths are equal.
_OTHER_WIRING = re.compile(
    r"(?<![a-z])(?:attn|attention|in_proj|[qkv]_proj|to_[qkv]+|qkv|query|weight_[ih]h|downsample|shortcut)(?![a-z])", re.IGNORECASE
)
_SEARCH_STEPS = 10_000


def from_state_dict(
    state_dict: Mapping[str, Tensor],
    activation: str | Sequence[str] = "relu",
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    readout: str = "global_avg_pool",
    pooling: str | Sequence[str | None] | None = None,
) -> tuple[WeightSpace, Tensor]:
    r"""Read the weight space and the flat checkpoint of a plain MLP or CNN off its tensors, whatever their keys are called.

    The network is a chain: convolutions (1, 2 or 3 dimensions), then global pooling or flattening, then linear layers; or linear layers
    alone. Weights are stored as PyTorch does, ``[out, in, *kernel]``. What shapes do not tell (activations, strides) is given by the
    arguments. Skip connections have no weights and cannot be seen: do not read residual networks this way.

    Layers whose keys differ in a number are ordered by that number (``layers.2`` before ``layers.10``), other layers by their place in the
    dict. Where that order does not chain, or the dict is sorted alphabetically and its order therefore says nothing, the order is
    taken from the shapes, provided that they allow a single one. Flattening is recognised where the first linear layer reads several
    positions per channel.

    Args:
        state_dict: Floating point tensors by key. ``space.params`` keeps the keys and shapes.
        activation: One activation for all hidden groups or one per hidden group, such as ``"relu"`` or ``"sin(30)"``.
        stride: One stride or one per convolution.
        padding: One zero padding or one per convolution.
        readout: ``"global_avg_pool"`` or ``"global_max_pool"`` between convolutions and a linear layer that reads one value per channel.
        pooling: Operator after the activation of every convolution but the last, such as ``"max_pool(2)"``; or a list with one operator
            or ``None`` per convolution, the last one included.

    Returns:
        The space, and :math:`\theta` of shape ``[P]``: weight and bias layer by layer, on the tensors' device and in their promoted
        dtype. ``space.unflatten(theta)`` gives back the tensors bit for bit, each in its own dtype.

    Raises:
        TypeError: If ``state_dict`` is not a mapping.
        ValueError: If the tensors do not form such a chain (the first key that does not fit is named), several orders of the layers are
            possible, a value is not a finite floating point tensor on the common device, or an option does not fit the network.

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
    _check_mapping(state_dict)
    if readout not in ("global_avg_pool", "global_max_pool"):
        raise ValueError(
            f"Expected 'readout' to be global_avg_pool or global_max_pool (got {readout!r}); flattening is read off the shapes."
        )
    order, biases = _read_chain(state_dict)
    _check_values(state_dict)
    tensors = [state_dict[key] for key in order]
    convolutions = sum(tensor.ndim > 2 for tensor in tensors)
    if not convolutions and (stride, padding, pooling) != (1, 0, None):
        raise ValueError("The state dict has no convolutions: leave out 'stride', 'padding' and 'pooling'.")
    strides, paddings = _per_layer("stride", stride, convolutions), _per_layer("padding", padding, convolutions)
    if pooling is None or isinstance(pooling, str):
        pools = [pooling] * (convolutions - 1) + [None]
    else:
        pools = _per_layer("pooling", list(pooling), convolutions)

    dtype = flat_dtype(state_dict.values())
    links = []
    parts: list[Tensor] = []
    for i, (key, tensor) in enumerate(zip(order, tensors, strict=True)):
        bias = biases.get(key)
        stored = [state_dict[name] for name in (key, bias) if name is not None]
        names = [stored_dtype(part, dtype) for part in stored]
        parts += (part.to(dtype).reshape(-1) for part in stored)
        operators: list[str] = []
        positions = None
        if i < convolutions and (pool := pools[i]):
            operators.append(pool)
        if i + 1 == convolutions:
            operators.append(readout if tensors[i + 1].shape[1] == tensor.shape[0] else "flatten")
        if i and i == convolutions and tensor.shape[1] > tensors[i - 1].shape[0]:
            positions = tensor.shape[1] // tensors[i - 1].shape[0]
        links.append(
            _Link(
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
    return chain_space(links, tensors[0].shape[1], activation), torch.cat(parts)


# == Checks ==


def _check_mapping(state_dict: Mapping[str, Tensor]) -> None:
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


def _check_values(state_dict: Mapping[str, Tensor]) -> None:
    device = next(iter(state_dict.values())).device
    for key, tensor in state_dict.items():
        if not tensor.is_floating_point():
            raise ValueError(f"Expected floating point weights, but {key!r} has dtype {tensor.dtype}; dequantize or convert it first.")
        if tensor.device != device:
            raise ValueError(
                f"Expected all tensors on one device, {device}, but {key!r} is on {tensor.device}; move them with .to(device)."
            )
        if not tensor.is_meta and not torch.isfinite(tensor.to(computable(tensor.dtype))).all():
            raise ValueError(f"{key!r} holds NaN or infinite weights; such a network has diverged and cannot be compared with others.")


# == The chain ==


def _read_chain(state_dict: Mapping[str, Tensor]) -> tuple[list[str], dict[str, str]]:
    """The keys of the weights in the order of the network, and the bias of each weight that has one."""
    misfits = {key: text for key, tensor in state_dict.items() if (text := _shape_misfit(key, tensor))}
    valid = [key for key in state_dict if key not in misfits]
    biases, unpaired = _pair_biases(state_dict, valid)
    misfits |= unpaired
    order = _natural_order([key for key in valid if state_dict[key].ndim > 1])
    broken = _chain_misfit(state_dict, order)
    is_sorted = _is_sorted(state_dict, biases)
    if not misfits and (broken or is_sorted):
        found = list(itertools.islice(_search_orders(state_dict, order), 2))
        if len(found) > 1:
            first, second = (", ".join(map(repr, candidate)) for candidate in found)
            raise ValueError(
                f"The order of the layers is ambiguous: the shapes allow {first} and also {second}, and the order of the dict does not "
                "decide. Pass the entries in the order of the network, each weight before its bias."
            )
        if found:
            return found[0], biases
    if broken:
        # Reported along the likeliest order, convolutions first, because a sorted dict may begin with its classifier.
        convolutions_first = sorted(order, key=lambda key: state_dict[key].ndim == 2)
        misfits = (_chain_misfit(state_dict, convolutions_first) or broken) | misfits
    if misfits:
        key = next(key for key in state_dict if key in misfits)
        raise ValueError(
            f"{key!r} of shape {list(state_dict[key].shape)} does not fit into a chain of convolutions and linear layers: expected "
            f"{misfits[key]}. The wiring of such a network cannot be read from its shapes: it has to be traced from the module, or "
            "described by hand as WeightSpace(groups, layers, params)."
        )
    return order, biases


def _role(key: str) -> str | None:
    matches = list(_ROLE.finditer(key))
    return matches[-1].lastgroup if matches else None


def _stem(key: str) -> tuple[str, ...]:
    """What is left of a key without its role word: equal for the weight and the bias of one layer."""
    matches = list(_ROLE.finditer(key))
    rest = f"{key[: matches[-1].start()]}.{key[matches[-1].end() :]}" if matches else key
    return tuple(re.findall(r"[^\W\d_]+|\d+", rest.lower()))


def _shape_misfit(key: str, tensor: Tensor) -> str | None:
    if not 1 <= tensor.ndim <= 5:
        return "a weight of 2 to 5 dimensions or a bias of 1"
    if _OTHER_WIRING.search(key):
        return "a layer that reads the layer before it alone (keys of this name belong to attention, recurrent or residual layers)"
    if tensor.numel() == 0:
        return "no dimension of size 0"
    if tensor.ndim > 1 and _BIAS_WORD.search(key.rsplit(".", 1)[-1]):
        return "a bias of 1 dimension"
    if tensor.ndim == 1 and (_role(key) == "weight" or _STATISTIC.search(key)):
        return "a weight of 2 to 5 dimensions (vectors that scale or normalise neurons are no layer of their own)"
    return None


def _pair_biases(state_dict: Mapping[str, Tensor], keys: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Biases by weight, and what was expected in place of vectors that belong to no weight."""
    weights = [key for key in keys if state_dict[key].ndim > 1]
    by_stem: dict[tuple[str, ...], list[str]] = {}
    for key in weights:
        by_stem.setdefault(_stem(key), []).append(key)
    biases: dict[str, str] = {}
    misfits: dict[str, str] = {}
    loose = []
    for key in keys:
        if state_dict[key].ndim > 1:
            continue
        owners = by_stem.get(_stem(key), []) if _role(key) else []
        if len(owners) != 1 or owners[0] in biases:
            loose.append(key)
            continue
        size, shape = state_dict[key].numel(), state_dict[owners[0]].shape
        if size == shape[0]:
            biases[owners[0]] = key
        else:
            hint = "; weights stored as [in, out] have to be transposed first" if size == shape[1] else ""
            misfits[key] = f"a bias of shape [{shape[0]}] for {owners[0]!r} of shape {list(shape)}{hint}"
    if loose:
        free = [key for key in weights if key not in biases]
        matchings = _match_neighbours(state_dict, _natural_order(keys), loose, free)
        if not matchings and not biases:
            matchings = _match_sizes(state_dict, loose, free)
        if len(matchings) == 1:
            biases |= matchings[0]
        else:
            misfits[loose[0]] = "a bias whose key or place tells which weight it belongs to"
    return biases, misfits


def _match_neighbours(state_dict: Mapping[str, Tensor], sequence: list[str], loose: list[str], free: list[str]) -> list[dict[str, str]]:
    """Ways to give every loose vector to the weight just before it, or every one to the weight just after it."""
    matchings = []
    for step in (-1, 1):
        matching = {}
        for key in loose:
            i = sequence.index(key) + step
            if 0 <= i < len(sequence) and sequence[i] in free and state_dict[sequence[i]].shape[0] == state_dict[key].numel():
                matching[sequence[i]] = key
        if len(matching) == len(loose):
            matchings.append(matching)
    return matchings


def _match_sizes(state_dict: Mapping[str, Tensor], loose: list[str], free: list[str]) -> list[dict[str, str]]:
    """The matching of loose vectors with weights of their size, where sizes leave no choice."""
    matching = {}
    for key in loose:
        owners = [weight for weight in free if state_dict[weight].shape[0] == state_dict[key].numel()]
        if len(owners) == 1:
            matching[owners[0]] = key
    return [matching] if len(matching) == len(loose) else []


def _step_misfit(previous: Tensor, tensor: Tensor) -> str | None:
    size = previous.shape[0]
    if previous.ndim == 2:
        return None if tensor.shape[1:] == (size,) else f"a linear weight of shape [*, {size}]"
    if tensor.ndim == 2:
        return None if tensor.shape[1] % size == 0 else f"a linear weight of shape [*, {size}], or a multiple of {size} after flattening"
    kernel = ", *" * (previous.ndim - 2)
    fits = tensor.ndim == previous.ndim and tensor.shape[1] == size
    return None if fits else f"a convolution of shape [*, {size}{kernel}] or a linear weight"


def _chain_misfit(state_dict: Mapping[str, Tensor], order: Sequence[str]) -> dict[str, str]:
    """The first key that cannot follow its predecessor, with what was expected; empty for a chain."""
    for before, key in itertools.pairwise(order):
        if text := _step_misfit(state_dict[before], state_dict[key]):
            return {key: f"{text}, after {before!r} of shape {list(state_dict[before].shape)}"}
    if order and state_dict[order[-1]].ndim > 2:
        return {order[-1]: "a linear layer at the end, after this convolution"}
    return {}


# == Order ==


def _natural_order(keys: Sequence[str], depth: int = 0) -> list[str]:
    """Keys that differ in a number sorted by it, within the places that they have in the sequence together."""
    if len(keys) < 2:
        return list(keys)
    chunks = {key: re.split(r"(\d+)", key) for key in keys}
    families: dict[str, list[str]] = {}
    for key in keys:
        families.setdefault(chunks[key][depth], []).append(key)
    ordered: dict[str, Iterator[str]] = {}
    for text, members in families.items():
        numbered: dict[str, list[str]] = {}
        for key in members:
            numbered.setdefault(chunks[key][depth + 1] if depth + 1 < len(chunks[key]) else "", []).append(key)
        runs = sorted(numbered.items(), key=lambda run: int(run[0] or -1))
        ordered[text] = iter([key for number, run in runs for key in _natural_order(run, depth + 2)])
    return [next(ordered[chunks[key][depth]]) for key in keys]


def _is_sorted(state_dict: Mapping[str, Tensor], biases: Mapping[str, str]) -> bool:
    """Whether the dict was sorted by whoever wrote it, so that its order says nothing about the network.

    PyTorch lists a weight before its bias, alphabetical order does not. Safetensors files are sorted within each dtype.
    """
    keys = list(state_dict)
    dtypes = {tensor.dtype for tensor in state_dict.values()}
    by_dtype = [[key for key in keys if state_dict[key].dtype == dtype] for dtype in dtypes]
    return all(part == sorted(part) for part in by_dtype) and any(keys.index(bias) < keys.index(key) for key, bias in biases.items())


def _precedes(first: str, second: str) -> bool:
    pairs = zip(re.split(r"(\d+)", first), re.split(r"(\d+)", second), strict=False)
    for i, (a, b) in enumerate(pairs):
        if a != b:
            return i % 2 == 1 and int(a) < int(b)
    return False


def _search_orders(state_dict: Mapping[str, Tensor], keys: Sequence[str]) -> Iterator[list[str]]:
    """Orders that chain and keep numbered keys in the order of their numbers."""
    before = {key: {other for other in keys if _precedes(other, key)} for key in keys}
    stack: list[list[str]] = [[]]
    for _ in range(_SEARCH_STEPS):
        if not stack:
            return
        order = stack.pop()
        if len(order) == len(keys):
            if not _chain_misfit(state_dict, order):
                yield order
            continue
        done = set(order)
        for key in reversed(keys):
            fits = not order or _step_misfit(state_dict[order[-1]], state_dict[key]) is None
            if key not in done and before[key] <= done and fits:
                stack.append([*order, key])
