"""In which order the weights of a chain follow each other."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from torch import Tensor

from wsgraph.convert.key_names import (
    names_before,
)

__all__ = ["chain_misfit", "natural_order", "order_is_known", "parent_of", "search_orders"]

_SEARCH_STEPS = 10_000


def parent_of(key: str) -> str:
    """What a key begins with, up to its last part."""
    return key[: max(key.rfind("."), key.rfind("/")) + 1]


def _step_misfit(previous: Tensor, tensor: Tensor) -> str | None:
    size = previous.shape[0]
    if previous.ndim == 2:
        return None if tensor.shape[1:] == (size,) else f"a linear weight of shape [*, {size}]"
    if tensor.ndim == 2:
        return None if tensor.shape[1] % size == 0 else f"a linear weight of shape [*, {size}], or a multiple of {size} after flattening"
    kernel = ", *" * (previous.ndim - 2)
    fits = tensor.ndim == previous.ndim and tensor.shape[1] == size
    return None if fits else f"a convolution of shape [*, {size}{kernel}] or a linear weight"


def chain_misfit(state_dict: Mapping[str, Tensor], order: Sequence[str], *, whole: bool = True) -> dict[str, str]:
    """The first key that cannot follow its predecessor, with what was expected; empty for a chain.

    A ``whole`` network does not end in a convolution.
    """
    for before, key in itertools.pairwise(order):
        if text := _step_misfit(state_dict[before], state_dict[key]):
            return {key: f"{text}, after {before!r} of shape {list(state_dict[before].shape)}"}
    if whole and order and state_dict[order[-1]].ndim > 2:
        return {order[-1]: "a linear layer at the end, after this convolution"}
    return {}


def natural_order(keys: Sequence[str], depth: int = 0) -> list[str]:
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
        ordered[text] = iter([key for number, run in runs for key in natural_order(run, depth + 2)])
    return [next(ordered[chunks[key][depth]]) for key in keys]


def order_is_known(state_dict: Mapping[str, Tensor], biases: Mapping[str, str]) -> bool:
    """Whether a dict is in the order of a module, which lists every weight just before its bias.

    Files that are sorted, as those of safetensors are within every dtype, or that group weights and biases, say nothing of the order.
    """
    keys = list(state_dict)
    places = {key: i for i, key in enumerate(keys)}
    if biases:
        return all(places[bias] == places[key] + 1 for key, bias in biases.items())
    by_dtype = [[key for key in keys if state_dict[key].dtype == dtype] for dtype in {tensor.dtype for tensor in state_dict.values()}]
    return not all(part == sorted(part) for part in by_dtype)


def _prefixes(key: str) -> list[str]:
    return [key[: match.end()] for match in re.finditer(r"[./]", key)]


def _precedes(first: str, second: str, by_name: Callable[[str, str], bool]) -> bool:
    pairs = zip(re.split(r"(\d+)", first), re.split(r"(\d+)", second), strict=False)
    for i, (a, b) in enumerate(pairs):
        if a != b:
            return int(a) < int(b) if i % 2 else by_name(first, second)
    return False


def _named_before(first: str, second: str) -> bool:
    """Whether the names that tell two keys apart say that one comes first, as encoder and decoder do."""
    pairs = zip(re.split(r"[./]", first), re.split(r"[./]", second), strict=False)
    return next((names_before(a, b) for a, b in pairs if a != b), False)


def search_orders(state_dict: Mapping[str, Tensor], keys: Sequence[str]) -> Iterator[list[str]]:
    """Orders that chain and keep numbered keys in the order of their numbers.

    If there are any, those that a module may have, which lists its submodules one by one, and of these the ones that names such
    as encoder and decoder say.
    """
    steps = iter(range(_SEARCH_STEPS))
    for by_name, undivided in ((_named_before, True), (_unnamed, True), (_unnamed, False)):
        found = _orders(state_dict, keys, by_name, undivided, steps)
        if (first := next(found, None)) is not None:
            return itertools.chain([first], found)
    return iter(())


def _unnamed(first: str, second: str) -> bool:
    return False


def _orders(
    state_dict: Mapping[str, Tensor], keys: Sequence[str], by_name: Callable[[str, str], bool], undivided: bool, steps: Iterator[int]
) -> Iterator[list[str]]:
    before = {key: {other for other in keys if _precedes(other, key, by_name)} for key in keys}
    members = {prefix: {key for key in keys if key.startswith(prefix)} for key in keys for prefix in _prefixes(key)}
    stack: list[list[str]] = [[]]
    while stack and next(steps, None) is not None:
        order = stack.pop()
        if len(order) == len(keys):
            if not chain_misfit(state_dict, order):
                yield order
            continue
        done = set(order)
        begun = [prefix for prefix in _prefixes(order[-1]) if not members[prefix] <= done] if order and undivided else []
        inside = begun[-1] if begun else ""
        for key in reversed(keys):
            fits = not order or _step_misfit(state_dict[order[-1]], state_dict[key]) is None
            if key not in done and key.startswith(inside) and before[key] <= done and fits:
                stack.append([*order, key])
