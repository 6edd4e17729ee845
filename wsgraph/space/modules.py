"""The modules of a network: its parameters and neuron groups by dotted name, with repeated blocks folded into one."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from wsgraph.space.checks import CheckedStructure
from wsgraph.space.parts import Layer, NeuronGroup, Parameter

__all__ = ["ModularStructure", "Module", "common_path"]

_DEEPEST = 40  # levels of modules; names with more dots than any network has are not taken apart further
_Path = tuple[str, ...]


@dataclass(frozen=True)
class Module:
    """A module of a network, by the dotted names of parameters, or several siblings of equal structure folded into one.

    Args:
        names: Dotted names of the modules it stands for, the first of them with the parts below; ``("",)`` for the whole network.
        params: Parameters of its own.
        groups: Neuron groups of its own: those that its parameters write, and those named after it.
        children: Modules within it.

    Example:
        >>> from wsgraph import WeightSpace
        >>> space = WeightSpace.mlp([2, 8, 8, 8, 8, 1])
        >>> [(module.label, module.count, module.num_params) for module in space.modules.parts]
        [('layers.0', 1, 24), ('layers.1..3', 3, 72), ('layers.4', 1, 9)]
    """

    names: tuple[str, ...]
    params: tuple[Parameter, ...] = ()
    groups: tuple[NeuronGroup, ...] = ()
    children: tuple[Module, ...] = ()

    @property
    def name(self) -> str:
        """Dotted name of the first module that it stands for."""
        return self.names[0]

    @property
    def count(self) -> int:
        """Number of modules that it stands for."""
        return len(self.names)

    @property
    def label(self) -> str:
        """Its dotted name, with the numbers of all modules that it stands for."""
        if self.count == 1:
            return self.name
        stem, numbers = _numbered(self.name)[0], [_numbered(name)[1] for name in self.names]
        steps = {int(after) - int(before) for before, after in itertools.pairwise(numbers)}
        if steps == {1}:
            return f"{stem}{numbers[0]}..{numbers[-1]}"
        listed = numbers if len(numbers) < 4 else numbers[:2]
        return stem + ",".join(listed) + (f"..{numbers[-1]}" if len(numbers) > 3 else "")

    @cached_property
    def num_params(self) -> int:
        """Number of entries of all parameters in one of the modules that it stands for."""
        return sum(param.size for param in self.params) + sum(child.count * child.num_params for child in self.children)

    @cached_property
    def parts(self) -> tuple[Module, ...]:
        """The modules within it, those that hold nothing but one other replaced by that one."""
        parts = []
        for child in self.children:
            while child._is_wrapper and len(child.children) == 1:
                child = child.children[0]
            parts.append(child)
        lone = len(parts) == 1 and not self.name and parts[0]._is_wrapper
        return (lone and parts[0].parts) or tuple(parts)

    @cached_property
    def num_tensors(self) -> int:
        """Number of parameters in one of the modules that it stands for."""
        return len(self.params) + sum(child.count * child.num_tensors for child in self.children)

    @cached_property
    def num_groups(self) -> int:
        """Number of neuron groups in one of the modules that it stands for."""
        return len(self.groups) + sum(child.count * child.num_groups for child in self.children)

    @property
    def _is_wrapper(self) -> bool:
        return self.count == 1 and not self.params and not self.groups

    @cached_property
    def depth(self) -> int:
        """Number of levels of parts below."""
        return max((1 + part.depth for part in self.parts), default=0)

    def walk(self) -> Iterator[Module]:
        """The module and all modules within it, each before its own."""
        yield self
        for child in self.children:
            yield from child.walk()


class ModularStructure(CheckedStructure):
    """A structure that knows its modules, and says the symmetry of neurons in words."""

    @cached_property
    def modules(self) -> Module:
        """The network as a tree of modules, with siblings of equal structure folded into one.

        Siblings are equal where they are called alike but for their number, hold parameters of the same names
        and shapes that follow neurons of the same size, symmetry and power, and groups alike in size,
        operators and symmetry.

        Example:
            >>> from wsgraph import WeightSpace
            >>> [part.label for part in WeightSpace.mlp([2, 8, 8, 8, 1]).modules.parts]
            ['layers.0', 'layers.1..2', 'layers.3']
        """
        return self._folded(self.all_modules)[0]

    @cached_property
    def _first_of_folded(self) -> dict[str, str]:
        """By name of a group of a module that is folded into another one, the same group of that one."""
        same: dict[str, str] = {}

        def pair(folded: Module, each: Module) -> None:
            same.update((mine.name, first.name) for first, mine in zip(folded.groups, each.groups, strict=True) if first is not mine)
            by_name = {child.name[len(each.name) :]: child for child in each.children}
            for child in folded.children:
                for name in child.names:
                    pair(child, by_name[name[len(folded.name) :]])

        pair(self.modules, self.all_modules)
        return same

    @cached_property
    def all_modules(self) -> Module:
        """The network as a tree of modules, each for itself.

        Example:
            >>> from wsgraph import WeightSpace
            >>> sum(1 for _ in WeightSpace.mlp([2, 8, 8, 8, 1]).all_modules.walk())
            6
        """
        params: dict[_Path, list[Parameter]] = {(): []}
        for param in self.params:
            path = _path(param.name)
            for i in range(len(path)):
                params.setdefault(path[:i], [])
            params[path[:-1]].append(param)
        groups: dict[_Path, list[NeuronGroup]] = {path: [] for path in params}
        for group in self.groups:
            if group.role != "factor":
                groups[self._module_of(group, params)].append(group)
        children: dict[_Path, list[_Path]] = {path: [] for path in params}
        for path in params:
            if path:
                children[path[:-1]].append(path)

        def made(path: _Path) -> Module:
            return Module((".".join(path),), tuple(params[path]), tuple(groups[path]), tuple(map(made, children[path])))

        return made(())

    def _module_of(self, group: NeuronGroup, modules: Collection[_Path]) -> _Path:
        """The module whose parameters write the neurons, or that they are named after."""
        if group.role == "input":
            return ()
        named = _path(group.name.split("[")[0])
        while named not in modules:
            named = named[:-1]
        writers = [_path(name)[:-1] for name in self._written_by.get(group.name, ())]
        shared = functools.reduce(common_path, writers) if writers else ()
        return shared if len(shared) >= len(named) and named not in writers else named

    @cached_property
    def _written_by(self) -> dict[str, list[str]]:
        """Names of the parameters that lie on edges into every group."""
        written: dict[str, list[str]] = {}
        for wire in self.wires:
            if wire.sources and wire.parameter is not None:
                for target in wire.targets:
                    written.setdefault(target, []).append(wire.parameter)
        return written

    # == Folding ==

    def _folded(self, module: Module) -> tuple[Module, Any]:
        """The module with equal children folded, and what it has in common with its equals."""
        made = [self._folded(child) for child in module.children]
        children: list[Module] = []
        at = 0
        while at < len(made):
            period, count = _repeated([(_numbered(child.name), key) for child, key in made[at:]])
            for offset in range(period):
                run = [made[at + offset + i * period][0] for i in range(count)]
                children.append(dataclasses.replace(run[0], names=tuple(child.name for child in run)) if count > 1 else run[0])
            at += period * count
        folded = dataclasses.replace(module, children=tuple(children))
        start = len(module.name) + 1 if module.name else 0
        key = (
            tuple((param.name[start:], *self._kind_of_param(param)) for param in module.params),
            tuple(self._kind_of(group) for group in module.groups),
            tuple((child.name[len(module.name) :], key) for child, key in made),
        )
        return folded, key

    def _kind_of(self, group: NeuronGroup) -> tuple[Any, ...]:
        return group.size, group.role, group.operators, self._symmetry_words[group.name]

    def _kind_of_param(self, param: Parameter) -> tuple[Any, ...]:
        ties = tuple(
            (axis.size, axis.blocks, bool(axis.order), tuple((tuple(map(self._size_of, tie.groups)), tie.exponents) for tie in axis.ties))
            for axis in param.axes
        )
        return param.shape, param.role, param.dtype, param.unused, param.transformed, len(param.aliases), ties

    def _size_of(self, name: str) -> tuple[int, str]:
        return self.group(name).size, self._symmetry_words[name]

    # == Symmetries in words ==

    @cached_property
    def _symmetry_words(self) -> dict[str, str]:
        return {group.name: self.describe_symmetry(group) for group in self.groups}

    def describe_layer(self, layer: Layer) -> str:
        """A layer's operator with its kernel, such as ``conv 3x3``."""
        if layer.weight is None:
            return layer.operator
        shape = self.param(layer.weight).shape
        return f"conv {'x'.join(map(str, shape[2:]))}" if layer.operator == "conv" else layer.operator

    def describe_symmetry(self, group: NeuronGroup) -> str:
        """What may be done to the neurons of a group, in words.

        Example:
            >>> from wsgraph import WeightSpace
            >>> space = WeightSpace.mlp([2, 8, 1], "tanh")
            >>> [space.describe_symmetry(group) for group in space.groups]
            ['none', 'permutation x sign', 'none']
        """
        if not self.is_permutable(group.permutation):
            return "none"
        kind = str(self.class_symmetry(group.scale))
        if not group.factors:
            return kind
        outer, *rest = (self.group(name) for name in group.factors)
        inner = group.size // outer.size
        if not self.is_permutable(outer.permutation):
            told = f"of {inner} in each of {outer.size} blocks{', alike' if rest else ''}"
        elif inner == 1 or (rest and not self.is_permutable(rest[0].permutation)):
            told = f"of {outer.size} blocks"
        else:
            told = f"of {outer.size} blocks, and of {inner} in each{'' if rest else ' on its own'}"
        return kind.replace("permutation", f"permutation {told}")

    def why_fixed(self, group: NeuronGroup) -> str:
        """Why the neurons of a group cannot change places; nothing where they can.

        Example:
            >>> from wsgraph import WeightSpace
            >>> space = WeightSpace.mlp([2, 8, 1])
            >>> [space.why_fixed(group) for group in space.groups]
            ['input', '', 'output']
        """
        if self.is_permutable(group.permutation):
            return ""
        if group.role == "fixed":
            return group.reason or "their place"
        if group.role != "hidden":
            return group.role
        for member in self.permutation_classes[group.permutation]:
            if member.role != "hidden":
                return member.reason or f"a tie to {member.name}"
        reasons = [self.group(name).reason for name in group.factors]
        return next(filter(None, reasons), "the order of its blocks")

    def symmetry_of(self, groups: Sequence[NeuronGroup]) -> str:
        """What may be done to the neurons of several groups, in a few words: brackets hold what only some of them admit.

        Blocks are not counted, as :meth:`describe_symmetry` does.

        Example:
            >>> from wsgraph import WeightSpace
            >>> space = WeightSpace.mlp([2, 8, 8, 1], ["relu", "tanh"])
            >>> space.symmetry_of(space.groups[1:3]), space.symmetry_of(space.groups)
            ('permutation [x scale] [x sign]', 'permutation [x scale] [x sign]; none (input, output)')
        """
        free = [group for group in groups if self._symmetry_words[group.name] != "none"]
        still = [group for group in groups if self._symmetry_words[group.name] == "none"]
        reasons = ", ".join(dict.fromkeys(map(self.why_fixed, still)))
        if not free:
            return f"none ({reasons})" if still else "-"
        symmetries = [self.class_symmetry(group.scale) for group in free]
        held: list[tuple[str, Sequence[object]]] = [("in blocks", [group.factors for group in free])]
        held += [(f"x {name}", [symmetry[i] for symmetry in symmetries]) for i, name in enumerate(("scale", "sign"))]
        told = " ".join(["permutation", *(text if all(each) else f"[{text}]" for text, each in held if any(each))])
        return f"{told}; none ({reasons})" if still else told


def _path(name: str) -> _Path:
    """A dotted name as the modules on the way to it, and what it is called there."""
    return tuple(name.split(".", _DEEPEST))


def common_path(first: _Path, second: _Path) -> _Path:
    """The modules that two dotted names begin with."""
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))
    return tuple(part for part, _ in same)


def _numbered(name: str) -> tuple[str, str]:
    """A name without the number at its end, and that number; nothing without one."""
    match = re.fullmatch(r"(.*?)([0-9]{1,9})", name, re.DOTALL)
    return (match[1], match[2]) if match else (name, "")


def _repeated(siblings: Sequence[tuple[tuple[str, str], Any]]) -> tuple[int, int]:
    """How many siblings in a row, up to four, come again how often: one of them twice at least, several of them thrice."""
    best = (1, 1)
    for period in range(1, min(4, len(siblings) // 2) + 1):
        count = 1
        while (count + 1) * period <= len(siblings) and all(
            _is_next(siblings[count * period + i - period], siblings[count * period + i]) for i in range(period)
        ):
            count += 1
        if count >= (2 if period == 1 else 3) and count * period > best[0] * best[1]:
            best = (period, count)
    return best


def _is_next(before: tuple[tuple[str, str], Any], after: tuple[tuple[str, str], Any]) -> bool:
    (stem, number), key = before
    (next_stem, next_number), next_key = after
    return bool(number) and stem == next_stem and int(number) < int(next_number or -1) and key == next_key
