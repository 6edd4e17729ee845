"""The chain of layers that tensors form, read off their keys, shapes and order; or why they form none."""

from __future__ import annotations

import itertools
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from wsgraph.convert.chain_biases import pair_biases
from wsgraph.convert.chain_order import chain_misfit, natural_order, order_is_known, parent_of, search_orders
from wsgraph.convert.key_names import (
    common_prefix,
    foreign_key,
    names_beside,
    names_members,
    names_sequence,
    role,
    several_by_name,
)

__all__ = ["Chain", "NotAChainError", "StateDictWarning", "check_tied", "read_chain"]

_BIAS_WORD = re.compile(r"(?<![a-z])bias(?:es)?(?![a-z])", re.IGNORECASE)
# A vector of one of these names next to a layer without bias would otherwise be taken for the bias.
_STATISTIC = re.compile(r"(?<![a-z])(?:alpha|gamma|mean|running|scale|std|var)(?![a-z])", re.IGNORECASE)
# Frameworks that store weights as [in, out] call them so: Keras and Flax, Haiku, scikit-learn.
_IN_OUT = re.compile(r"(?<![a-z])(?:kernel|coefs?)(?![a-z])|[/~]w$", re.IGNORECASE)
_LISTED = 6
_TRACE = (
    "The wiring of such a network cannot be read from its shapes: it has to be traced from the module, or described by hand as "
    "WeightSpace(groups, layers, params)."
)


class NotAChainError(ValueError):
    """Tensors are not those of one chain of layers."""


class StateDictWarning(UserWarning):
    """A state dict was read as a chain of layers, but its keys and shapes allow another network too.

    Example:
        >>> import torch, warnings
        >>> from wsgraph import from_state_dict
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     _ = from_state_dict({"a.weight": torch.ones(4, 4), "b.weight": torch.ones(4, 4)})
        >>> caught[0].category.__name__, str(caught[0].message)[:34]
        ('StateDictWarning', 'The keys are in alphabetical order')
    """


class Chain(NamedTuple):
    """Weights in the order of a network, and the bias of each that has one."""

    weights: list[str]
    biases: dict[str, str]
    doubts: list[str]

    def warn(self, stacklevel: int) -> None:
        """Warn of every other network that these may be."""
        for doubt in self.doubts:
            warnings.warn(doubt, StateDictWarning, stacklevel=stacklevel + 1)


def read_chain(state_dict: Mapping[str, Tensor], prefix: str = "") -> Chain:
    """The chain of layers whose weights and biases a state dict holds.

    Args:
        state_dict: The tensors of one network.
        prefix: What their keys began with.

    Raises:
        NotAChainError: If they form none, or may form several.
    """
    check_tied(state_dict)
    misfits = _misfits_by_key(state_dict, prefix)
    valid = [key for key in state_dict if key not in misfits]
    biases, unpaired = pair_biases(state_dict, valid)
    misfits |= unpaired
    weights = [key for key in valid if state_dict[key].ndim > 1]
    if any(text.startswith("!") for text in misfits.values()):
        _raise_first(state_dict, misfits)
    doubts = _check_siblings(weights, state_dict, prefix)
    natural = natural_order(weights)
    _check_layout(state_dict, natural, biases)
    order, broken = natural, chain_misfit(state_dict, natural)
    known = order_is_known(state_dict, biases)
    if not misfits and (broken or not known):
        found = list(itertools.islice(search_orders(state_dict, natural), 2))
        if len(found) > 1 and biases:
            first, second = (", ".join(map(repr, candidate)) for candidate in found)
            raise NotAChainError(
                f"The order of the layers is ambiguous: the shapes allow {first} and also {second}, and the order of the dict does not "
                "decide. Pass the entries in the order of the network, each weight before its bias."
            )
        if len(found) > 1 and not broken:
            doubts.append(
                f"The keys are in alphabetical order, as those of safetensors files always are, and shapes allow several orders: read as "
                f"{', '.join(natural)}. If the network has another order, number its keys by layers."
            )
        elif len(found) > 1:
            raise NotAChainError(
                f"The order of the layers is ambiguous: the shapes allow {', '.join(map(repr, found[0]))} and also "
                f"{', '.join(map(repr, found[1]))}. Number the keys by layers."
            )
        elif found:
            if broken:
                doubts += _doubts_of_reordering(state_dict, natural, found[0], biases, known)
            order, broken = found[0], {}
    if broken:
        # Reported along the likeliest order, convolutions first, because a sorted dict may begin with its classifier.
        convolutions_first = sorted(order, key=lambda key: state_dict[key].ndim == 2)
        misfits = (chain_misfit(state_dict, convolutions_first) or broken) | misfits
    if misfits:
        _raise_first(state_dict, misfits)
    doubts += _doubts_of_wiring(state_dict, order, biases)
    return Chain(order, biases, doubts)


def _raise_first(state_dict: Mapping[str, Tensor], misfits: Mapping[str, str]) -> None:
    # What a key says outright explains more than a shape that does not fit because of it.
    said = [key for key in state_dict if key in misfits and misfits[key].startswith("!")]
    key = next(iter(said), None) or next(key for key in state_dict if key in misfits)
    shape = f"{key!r} of shape {list(state_dict[key].shape)}"
    if said:
        raise NotAChainError(f"{shape} {misfits[key][1:]}.")
    raise NotAChainError(f"{shape} does not fit into a chain of convolutions and linear layers: expected {misfits[key]}. {_TRACE}")


# == Single keys ==


def _misfits_by_key(state_dict: Mapping[str, Tensor], prefix: str) -> dict[str, str]:
    """What was expected in place of tensors that are no weight and no bias; behind ``!``, what they are."""
    shared = common_prefix(state_dict) if len(state_dict) > 1 else ""
    own = {key.removeprefix(shared): tensor for key, tensor in state_dict.items()}
    matrices = [key for key, tensor in state_dict.items() if tensor.ndim > 1]
    roles = [role(key) == "weight" for key in matrices]
    misfits: dict[str, str] = {}
    for key, tensor in state_dict.items():
        if (found := foreign_key(key.removeprefix(shared), prefix + shared, own)) is not None:
            says, whole = found
            misfits[key] = f"!{says}" if whole else says
        elif text := _shape_misfit(key, tensor):
            misfits[key] = text
        elif any(roles) and tensor.ndim > 1 and role(key) != "weight":
            misfits[key] = "!belongs to no layer, for the keys of the layers say weight: leave it out"
        elif any(roles) and all(roles) and tensor.ndim == 1 and role(key) is None:
            misfits[key] = (
                "a bias whose key or place tells which weight it belongs to, as the keys of the layers do; what belongs to no layer has "
                "to be left out"
            )
    said = any(text.startswith("!") for text in misfits.values())
    return misfits if said else _several_matrices(state_dict, shared) | misfits


def _several_matrices(state_dict: Mapping[str, Tensor], shared: str) -> dict[str, str]:
    """What is wrong with matrices that make one layer together, such as the factors of a weight."""
    by_parent: dict[str, list[str]] = {}
    for key, tensor in state_dict.items():
        if tensor.ndim > 1 and len(parent_of(key)) > len(shared) and role(key) != "bias":
            by_parent.setdefault(parent_of(key), []).append(key)
    misfits = {}
    for parent, keys in by_parent.items():
        # Numbers alone tell layers apart that a module keeps itself, such as w1 and w2.
        if len({re.sub(r"\d", "", key) for key in keys}) > 1:
            names = ", ".join(repr(key.removeprefix(parent)) for key in keys[:_LISTED])
            misfits[keys[0]] = f"!is one of several matrices of the layer {parent[:-1]!r} ({names}), no plain layer: trace the module"
    return misfits


def _shape_misfit(key: str, tensor: Tensor) -> str | None:
    if not 1 <= tensor.ndim <= 5:
        return "a weight of 2 to 5 dimensions or a bias of 1; what belongs to no layer has to be left out"
    if tensor.numel() == 0:
        return "no dimension of size 0"
    if tensor.ndim > 1 and _BIAS_WORD.search(key.rsplit(".", 1)[-1]):
        return "a bias of 1 dimension (of networks stacked along the first dimension, choose one)"
    # Names of modules above, such as "actor_mean", say nothing of a tensor that is called a bias.
    name = key.rsplit(".", 1)[-1] if role(key) == "bias" else key
    if tensor.ndim == 1 and (role(key) == "weight" or _STATISTIC.search(name)):
        aside = "" if role(key) else "; what belongs to no layer has to be left out"
        return f"a weight of 2 to 5 dimensions (vectors that scale or normalise neurons are no layer of their own){aside}"
    return None


def check_tied(state_dict: Mapping[str, Tensor]) -> None:
    """Raise where two keys hold one tensor, whose copies could not be moved apart."""
    seen: dict[tuple[int, int], str] = {}
    for key, tensor in state_dict.items():
        if tensor.is_meta or not tensor.numel():
            continue
        # Transposed too, as a decoder may be its encoder.
        first = seen.setdefault((tensor.data_ptr(), tensor.numel()), key)
        if first != key:
            raise NotAChainError(
                f"{first!r} and {key!r} are one tensor, which the network uses twice: a chain would have two. Trace the module instead, "
                "or pass copies with .clone() if they only happen to share memory."
            )


# == Several networks ==


def _tree(keys: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    """By every prefix, such as ``"net."``, the names beside each other below it, each with its keys."""
    tree: dict[str, dict[str, list[str]]] = {}
    for key in keys:
        for match in re.finditer(r"[./]", key):
            start = max(key.rfind(sign, 0, match.start()) for sign in "./") + 1
            tree.setdefault(key[:start], {}).setdefault(key[start : match.start()], []).append(key)
    return tree


def _check_siblings(weights: Sequence[str], state_dict: Mapping[str, Tensor], prefix: str) -> list[str]:
    """Raise where layers lie beside each other under names of several networks, or twice under the same names; doubts otherwise."""
    doubts = []
    tree = {parent: children for parent, children in sorted(_tree(weights).items()) if len(children) > 1}
    above = {parent: f"{prefix}{parent}"[:-1].replace("/", ".").rpartition(".")[2] for parent in tree}
    inner = {
        parent: [keys[0][: len(parent) + len(name) + 1] for name, keys in children.items() if len(keys) > 1]
        for parent, children in tree.items()
    }
    for parent, children in tree.items():
        if several_by_name(list(children), above[parent]):
            if len(inner[parent]) > 1:
                raise NotAChainError(_several(inner[parent], prefix))
            under = f" under {prefix + parent!r}" if prefix + parent else ""
            raise NotAChainError(
                f"The names {', '.join(map(repr, list(children)[:_LISTED]))}{under} are those of networks or heads beside each other, not "
                f"of layers one behind the other. {_TRACE} If it is a chain after all, give its keys other names."
            )
    for parent, children in tree.items():
        if beside := names_beside(list(children)):
            doubts.append(
                f"The names {' and '.join(map(repr, beside))} are as those of layers that read the same input: read one behind the other. "
                "If they lie beside each other, trace the module."
            )
        alike = _alike(state_dict, [(start, children[start[len(parent) : -1]]) for start in inner[parent]])
        if not alike:
            continue
        if names_sequence(list(children)):
            doubts.append(
                f"The networks under {', '.join(map(repr, alike))} read inputs of one size: read one behind the other, as their names say. "
                f"If they lie beside each other, choose one with prefix={prefix + alike[0]!r}."
            )
        elif not all(name.isdigit() for name in children) or names_members(above[parent]):
            raise NotAChainError(_several(alike, prefix))
    return doubts


def _several(starts: Sequence[str], prefix: str) -> str:
    prefixes = [prefix + start for start in starts]
    listed = ", ".join(map(repr, prefixes[:_LISTED])) + (f" and {len(prefixes) - _LISTED} more" if len(prefixes) > _LISTED else "")
    return f"This holds {len(prefixes)} networks, under {listed}: choose one with prefix={prefixes[0]!r} (--prefix on the command line)."


def _alike(state_dict: Mapping[str, Tensor], networks: Sequence[tuple[str, list[str]]]) -> list[str]:
    """Prefixes of networks that begin at inputs of one size, each a chain by itself."""
    found: dict[tuple[int, int], list[str]] = {}
    for prefix, keys in networks:
        order = natural_order(keys)
        first = state_dict[order[0]]
        if not chain_misfit(state_dict, order, whole=False):
            found.setdefault((first.ndim, first.shape[1]), []).append(prefix)
    return next((alike for alike in found.values() if len(alike) > 1), [])


# == Layout of weights ==


def _check_layout(state_dict: Mapping[str, Tensor], order: Sequence[str], biases: Mapping[str, str]) -> None:
    """Raise where weights are stored as [in, out], or [*kernel, in, out], as other frameworks do."""
    transpose = 'from_state_dict(..., layout="in_out") turns them'
    named = [key for key in order if _IN_OUT.search(key)]
    linear = [key for key in order if state_dict[key].ndim == 2]
    # A bias along the first axis of a weight that is not square shows that someone transposed it already.
    shown = [key for key in biases if state_dict[key].shape[0] != state_dict[key].shape[1]]
    if named and not shown:
        raise NotAChainError(
            f"{named[0]!r} is called as weights stored [in, out] are (Keras, Flax, Haiku, scikit-learn), and shapes do not show otherwise: "
            f"{transpose}."
        )
    if len(linear) == len(order) > 1 and not biases and _is_transposed_chain(state_dict, order) and chain_misfit(state_dict, order):
        raise NotAChainError(
            f"The weights {', '.join(map(repr, order[:_LISTED]))} follow each other if they are stored as [in, out], not as [out, in]: "
            f"{transpose}."
        )
    convolutions = [state_dict[key] for key in order if state_dict[key].ndim > 2]
    if len(convolutions) > 1 and all(first.shape[-1] == second.shape[-2] for first, second in itertools.pairwise(convolutions)):
        kernels_first = all(len(set(tensor.shape[:-2])) == 1 and tensor.shape[0] < tensor.shape[-1] for tensor in convolutions)
        if kernels_first and any(tensor.shape[-1] != tensor.shape[-2] for tensor in convolutions):
            key = next(key for key in order if state_dict[key].ndim > 2)
            raise NotAChainError(
                f"{key!r} of shape {list(state_dict[key].shape)} follows the others if it is stored as [*kernel, in, out]: {transpose}."
            )
    pairs = list(itertools.pairwise(convolutions))
    transposed = all(first.shape[1] == second.shape[0] for first, second in pairs) and any(
        first.shape[0] != second.shape[1] for first, second in pairs
    )
    # A file that is sorted may hold ordinary ones the other way round.
    if transposed and next(search_orders(state_dict, order), None) is None:
        key = next(key for key in order if state_dict[key].ndim > 2)
        raise NotAChainError(
            f"{key!r} of shape {list(state_dict[key].shape)} and those after it follow each other if they are stored as "
            f"[in, out, *kernel], as those of transposed convolutions are. {_TRACE}"
        )


def _is_transposed_chain(state_dict: Mapping[str, Tensor], order: Sequence[str]) -> bool:
    return all(state_dict[first].shape[1] == state_dict[second].shape[0] for first, second in itertools.pairwise(order))


# == Doubts ==


def _doubts_of_reordering(
    state_dict: Mapping[str, Tensor], natural: Sequence[str], found: Sequence[str], biases: Mapping[str, str], known: bool
) -> list[str]:
    """Whether an order taken from shapes contradicts the dict, or rests on a layer unlike the others."""
    unlike = 0 < len(biases) < len(found)
    if not known and not unlike:
        return []
    why = "the layers do not follow each other in the order of the dict" if known else "the order of the dict says nothing"
    return [f"Read as {', '.join(found)}, the only order that shapes allow, though {why}. See whether the network is this one."]


def _doubts_of_wiring(state_dict: Mapping[str, Tensor], order: Sequence[str], biases: Mapping[str, str]) -> list[str]:
    doubts = []
    for parent, children in _tree(order).items():
        blocks = [
            [(key[len(parent) + len(name) :], tuple(state_dict[key].shape)) for key in keys]
            for name, keys in children.items()
            if name.isdigit() and len(keys) > 1
        ]
        if len(blocks) > 1 and any(first == second for first, second in itertools.combinations(blocks, 2)):
            doubts.append(
                f"The blocks under {parent!r} have layers of the same shapes, as those of residual networks and of ensembles do, which are "
                "no chains: read as layers one behind the other. If they are not, trace the module, or choose one with prefix=."
            )
    tensors = [state_dict[key] for key in order]
    if len(tensors) > 1:
        first, second = tensors[:2]
        size = first.shape[0]
        pointwise = second.ndim == first.ndim > 2 and max(second.shape[2:]) == 1 < max(first.shape[2:])
        if first.shape[1] == 1 < size and pointwise:
            doubts.append(
                f"{order[0]!r} of shape {list(first.shape)} before {order[1]!r} of shape {list(second.shape)} is as a depthwise "
                f"convolution of {size} channels before a pointwise one: read as an ordinary convolution of 1 channel. If it is "
                "depthwise, trace the module."
            )
    for keys in zip(order, order[1:], order[2:], strict=False):
        a, b, c = (state_dict[key] for key in keys)
        glu = a.ndim == 2 and a.shape == c.shape == b.shape[::-1] and a.shape[0] > a.shape[1] and not any(k in biases for k in keys)
        if glu and [re.findall(r"w(\d+)", key)[-1:] for key in keys] == [["1"], ["2"], ["3"]]:
            doubts.append(
                f"{', '.join(map(repr, keys))} have the names and shapes of a gated layer, w2(act(w1 x) * w3 x): read as three layers one "
                "behind the other. If they are gated, trace the module."
            )
    return doubts
