"""Structures in words and tables for people: what their modules hold, what may be done to it, and what is fixed and why."""

from __future__ import annotations

import difflib
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from wsgraph.space.followed import Followed, followed
from wsgraph.space.modules import ModularStructure, Module, common_path
from wsgraph.space.parts import NeuronGroup, Parameter

__all__ = ["SummarizedStructure"]

_ITSELF = "(the module itself)"
_ROWS = 36  # of the table without a given depth: with the report below it, a screen of 50 lines
_OPTIONAL = ("reads", "shapes", "operators")  # columns of the table, the first to be left out first
_NAMES = 8  # names in one sentence
_SEGMENTS = 40  # lines about one axis of a parameter


@dataclass(frozen=True)
class _Row:
    """A line of the table: a module, or one parameter or input of a module whose parts have lines of their own."""

    label: str
    level: int
    params: tuple[Parameter, ...] = ()
    groups: tuple[NeuronGroup, ...] = ()
    module: Module | None = None
    whole: bool = True  # whether the line stands for all that is in the module, or for its own groups alone
    above: str = ""  # the module that the line lies in
    way: tuple[str, ...] = ()  # and the names that lead to it
    name: str = ""  # of a line about one parameter or group

    @property
    def size(self) -> int:
        return self.module.num_params if self.module else sum(param.size for param in self.params)

    def cells(self, symmetry: str) -> list[str]:
        count = self.module.count if self.module else 1
        size = f"{count} x {self.size:,}" if count > 1 else f"{self.size:,}" if self.params or self.size else "-"
        operators = dict.fromkeys(text for group in self.groups for text in group.operators)
        told = [self._shapes(), self._neurons(), _few(operators, " ", 2), symmetry]
        # What the lines below say is left out here.
        return ["  " * self.level + self.label, size, *(told if self.whole else ["" if text == "-" else text for text in told])]

    def _shapes(self) -> str:
        if self.module and (not self.whole or self.module.parts):
            return f"{self.module.num_tensors} tensors" if self.whole else "-"
        counts = Counter("x".join(map(str, param.shape)) or "1" for param in self.params)
        return _few((f"{shape} ({count})" if count > 1 else shape for shape, count in counts.items()), ", ", 3)

    def _neurons(self) -> str:
        if not self.groups:
            return "-"
        sizes = sorted({group.size for group in self.groups})
        told = ", ".join(f"{size:,}" for size in sizes) if len(sizes) < 4 else f"{sizes[0]:,} to {sizes[-1]:,}"
        count = self.module.num_groups if self.module and self.whole else len(self.groups)
        if count > 1:
            return f"{count} groups of {told}"
        name = self.groups[0].name
        known = not self.module or f"{self.module.name}.".startswith(f"{name.split('[')[0]}.") or name.startswith(self.module.name)
        return told if known else f"{name}: {told}"

    def seen_from(self, other: _Row) -> str:
        """The name of this line in another one: from a dot on where both lie in one module."""
        name = self.module.name if self.module else self.name
        inside = other.module.name if other.module and not other.whole else other.above
        if self.module and f"{inside}.".startswith(f"{name}."):
            return self.label
        common = len(common_path(tuple(name.split(".")[:-1]), tuple(inside.split("."))))
        return "." * bool(common) + ".".join(self.path[common:])

    @property
    def path(self) -> tuple[str, ...]:
        """The names that lead to it, with the numbers of all that folded modules stand for."""
        if self.module is None:
            return (*self.way, *_below(self.name, self.above).split("."))
        *before, last = _below(self.module.name, self.above).split(".")
        return (*self.way, *before, self.label[len(".".join([*before, ""])) :] or last)


class SummarizedStructure(ModularStructure):
    """A structure that describes itself to people."""

    def __repr__(self) -> str:
        if not self.is_chain:
            groups = sum(group.role != "factor" for group in self.groups)
            layers = f"{len(self.layers)} layers, " if self.layers else ""
            return f"WeightSpace({groups} groups, {layers}{self.num_params:,} parameters)"
        sizes = "-".join(_runs(str(group.size) for group in self.groups))
        hidden = list(dict.fromkeys(group.activation for group in self.groups[1:-1])) or ["identity"]
        layers = " | ".join(_runs(self.describe_layer(layer) for layer in self.layers))
        return f"WeightSpace({sizes}, {layers}, {'/'.join(hidden)}, {self.num_params:,} parameters)"

    # == The table ==

    def summary(self, depth: int | None = None, *, width: int | None = None) -> str:
        """A table of the modules with their parameters, neurons and symmetries, that a person can read.

        A line per module, those of equal structure folded into one, such as ``layers.0..11`` with ``12 x`` as many
        parameters: the shapes of its own parameters, its neurons with the operators applied to them, their
        symmetry, and the lines that it reads (``.conv`` is in the same module). Lines of modules whose parts
        are not shown count everything within them.

        Args:
            depth: Levels of modules that are shown (default: as many as fit on a screen).
            width: Characters of a line; columns are left out where the table is wider.

        Returns:
            The table as text.

        Raises:
            ValueError: If ``depth`` is not positive.

        Example:
            >>> from wsgraph import WeightSpace
            >>> print(WeightSpace.mlp([2, 3, 3, 3, 1]).summary())
            WeightSpace(2-3-3-3-1, linear | linear | linear | linear, relu, 37 parameters)
            module       parameters  shapes  neurons      operators  symmetry
            input                 -  -       2            -          none (input)
            layers.0              9  3x2, 3  hidden.1: 3  relu       permutation x scale
            layers.1..2      2 x 12  3x3, 3  hidden.2: 3  relu       permutation x scale
            layers.3              4  1x3, 1  output: 1    -          none (output)
        """
        if depth is not None and depth < 1:
            raise ValueError(f"Expected 'depth' to be at least 1 level of modules (got {depth}).")
        levels = depth or self._levels
        rows = self._rows(levels)
        while depth is None and len(rows) > _ROWS and levels > 1:
            levels -= 1
            rows = self._rows(levels)
        lines = [row.cells(self._symmetry_of_row(row)) for row in rows]
        head = ["module", "parameters", "shapes", "neurons", "operators", "symmetry"]
        if not self.is_chain:
            head.append("reads")
            lines = [[*line, read] for line, read in zip(lines, self._reads(rows), strict=True)]
        notes = ["[...]: some of these neurons only."] if any("[" in line[5] for line in lines) else []
        if any(row.module and row.whole and row.module.parts for row in rows):
            notes.append(f"Shown to depth {levels} of {self._levels}.")
        if levels <= self._levels and any(row.whole and len(row.groups) > 1 for row in rows):
            notes.append(f"Depth {self._levels + 1} lists every parameter and group.")
        table, left_out = [head, *lines], []
        for name in (name for name in _OPTIONAL if name in head):
            if width is None or max(map(len, _table(table))) <= width:
                break
            left_out.append(name)
            table = [[cell for cell, column in zip(line, table[0], strict=True) if column != name] for line in table]
        if left_out:
            notes.append(f"Left out for {width} columns: {', '.join(left_out)}.")
        return "\n".join([repr(self), *_table(table), *([" ".join(notes)] if notes else []), *self._said_assumed])

    @property
    def _levels(self) -> int:
        return max(self.modules.depth, 1)

    def _rows(self, depth: int) -> list[_Row]:
        """The lines of the table with so many levels of modules."""
        root = self.modules
        rows = [_Row(group.name, 0, groups=(group,), name=group.name) for group in root.groups if group.role == "input"]
        rest = tuple(group for group in root.groups if group.role != "input")
        own = () if root.parts else root.params
        if len(rest) > 1 or own:
            rows.append(_Row(_ITSELF, 0, own, rest, name=_ITSELF))
        if not own or depth > self._levels:
            rows += self._rows_of_own(root, rest if own or len(rest) == 1 or depth > self._levels else (), int(len(rest) > 1), "", ())
        return rows + [row for part in root.parts for row in self._rows_of(part, 0, depth, "", ())]

    def _rows_of(self, module: Module, level: int, depth: int, above: str, way: tuple[str, ...]) -> Iterator[_Row]:
        label = _below(module.label, above)
        every = list(module.walk())
        groups = tuple(group for each in every for group in each.groups)
        alone = not module.parts and max(len(module.params), len(groups)) < 2
        if alone or level + 1 >= depth or (not module.parts and depth <= self._levels):
            yield _Row(label, level, tuple(param for each in every for param in each.params), groups, module, above=above, way=way)
            return
        head = _Row(label, level, (), module.groups, module, whole=False, above=above, way=way)
        yield head
        own = module.groups if depth > self._levels and len(module.groups) > 1 else ()
        yield from self._rows_of_own(module, own, level + 1, module.name, head.path)
        for part in module.parts:
            yield from self._rows_of(part, level + 1, depth, module.name, head.path)

    def _rows_of_own(self, module: Module, groups: Sequence[NeuronGroup], level: int, above: str, way: tuple[str, ...]) -> Iterator[_Row]:
        """Lines about the parameters of a module, and about some of its groups."""
        for param in module.params:
            yield _Row(_below(param.name, above), level, (param,), above=above, way=way, name=param.name)
        for group in groups:
            yield _Row(_below(group.name, above), level, groups=(group,), above=above, way=way, name=group.name)

    def _symmetry_of_row(self, row: _Row) -> str:
        groups = row.groups or self._followed_groups(row.params)
        still = dict.fromkeys(map(self.why_unmoved, row.params))
        return self.symmetry_of(groups) if groups or not any(still) else f"none ({', '.join(filter(None, still))})"

    def _followed_groups(self, params: Sequence[Parameter]) -> list[NeuronGroup]:
        names = dict.fromkeys(name for param in params for axis in param.axes for tie in axis.ties for name in tie.groups)
        return [self.group(name) for name in names]

    def _reads(self, rows: Sequence[_Row]) -> list[str]:
        """Per line, the other lines whose neurons those of it, or of the first module of several, read."""
        at = {group.name: i for i, row in enumerate(rows) for group in row.groups}
        holds = {param.name: i for i, row in enumerate(rows) if not row.groups for param in row.params}
        known = {**{name: at[same] for name, same in self._first_of_folded.items() if same in at}, **at}
        sources: list[dict[int, None]] = [{} for _ in rows]
        for wire in self.wires:
            read = [known[name] for name in wire.sources if name in known]
            # What a parameter on a line of its own reads is read by way of it.
            through = holds.get(wire.parameter or "") if read else None
            if through is not None:
                sources[through].update(dict.fromkeys(read))
                read = [through]
            for target in wire.targets:
                if target in at:
                    sources[at[target]].update(dict.fromkeys(read))
        told = (_few((rows[j].seen_from(row) for j in sources[i] if j != i), ", ", 2) for i, row in enumerate(rows))
        return ["" if text == "-" and not row.whole else text for text, row in zip(told, rows, strict=True)]

    # == The report ==

    def report(self) -> str:
        """What is movable and what is fixed, and why, in words.

        Names that differ in numbers alone are folded into one, with their count.

        Example:
            >>> from wsgraph import WeightSpace
            >>> print(WeightSpace.mlp([2, 8, 1]).report())
            WeightSpace(2-8-1, linear | linear, relu, 33 parameters)
            97.0 % of the parameters touch a neuron group with a symmetry: permutation x scale (1 group).
            Parameters that nothing moves: layers.1.bias (output).
        """
        free = [group for group in self.groups if group.role == "hidden" and self.is_permutable(group.permutation)]
        kinds = Counter(map(self.describe_symmetry, free))
        listed = _few((f"{kind} ({count} group{'s' if count > 1 else ''})" for kind, count in kinds.most_common()), "; ", 5)
        lines = [
            repr(self),
            f"{100 * self.coverage:.1f} % of the parameters touch a neuron group with a symmetry{f': {listed}' if kinds else ''}.",
        ]
        lines += [f"Fixed, because of {reason}: {_folded_names(names)}." for reason, names in self.fixed_groups.items()]
        lines += [f"Not written as layers, because {self.unlayered}."] if self.unlayered else []
        lines += [f"Cannot be run from its weights alone, because {self.unprogrammed}."] if self.unprogrammed else []
        tied = [" = ".join(param.keys) for param in self.params if param.aliases]
        lines += [f"Tied, each one tensor that is counted once: {_few(tied, ', ', _NAMES)}."] if tied else []
        told = "; ".join(f"{_folded_names(names)} ({reason})" for reason, names in self.unmoved_params.items())
        lines += [f"Parameters that nothing moves: {told}."] if told else []
        unused = [param.name for param in self.params if param.unused]
        absent = [name for name in self.absent_from_graph if name not in unused]
        lines += [f"Not on the parameter graph: {_folded_names(absent)}."] if absent else []
        lines += [f"Used by nothing: {_folded_names(unused)}."] if unused else []
        return "\n".join([*lines, *self._said_assumed])

    @property
    def fixed_groups(self) -> dict[str, list[str]]:
        """Names of the groups within the network whose neurons cannot change places, by the reason.

        Example:
            >>> from wsgraph import WeightSpace
            >>> WeightSpace.mlp([2, 8, 1]).fixed_groups
            {}
        """
        inner = [group for group in self.groups if group.role in ("hidden", "fixed")]
        return _by_reason((self.why_fixed(group), group.name) for group in inner)

    @property
    def unmoved_params(self) -> dict[str, list[str]]:
        """Names of the parameters that no symmetry moves, by the reason.

        Example:
            >>> from wsgraph import WeightSpace
            >>> WeightSpace.mlp([2, 8, 1]).unmoved_params
            {'output': ['layers.1.bias']}
        """
        return _by_reason((self.why_unmoved(param), param.name) for param in self.params)

    def why_unmoved(self, param: Parameter) -> str:
        """Why no symmetry moves a parameter: whose neurons it belongs to; nothing where one does.

        Example:
            >>> from wsgraph import WeightSpace
            >>> space = WeightSpace.mlp([2, 8, 1])
            >>> [space.why_unmoved(param) for param in space.params]
            ['', '', '', 'output']
        """
        if self.is_moved(param):
            return ""
        if param.unused:
            return "used by nothing"
        followed_groups = self._followed_groups([param])
        wired = [self.group(name) for wire in self.wires_of(param.name) for name in (*wire.sources, *wire.targets)]
        reasons = dict.fromkeys(filter(None, map(self.why_fixed, [*followed_groups, *wired])))
        return ", ".join(reasons) or ("buffer" if param.role == "buffer" else "follows no neurons")

    @property
    def _said_assumed(self) -> list[str]:
        return [f"Assumed, since weights do not show it: {', '.join(self.assumed)}."] if self.assumed else []

    # == Single parameters ==

    def followed(self, name: str) -> tuple[Followed, ...]:
        """Which neurons the entries of a parameter follow, axis by axis.

        Args:
            name: Its name, or another key of the same tensor.

        Returns:
            Runs of entries that follow the same neurons with the same power, such as the gates of an LSTM.

        Raises:
            ValueError: If there is no such parameter, with those that are called alike.

        Example:
            >>> from wsgraph import WeightSpace
            >>> first, second = WeightSpace.mlp([2, 8, 8, 1]).followed("layers.1.weight")
            >>> first.groups, first.powers, second.groups, second.powers
            (('hidden.2',), (1,), ('hidden.1',), (-1,))
        """
        return followed(self, self.param(self.params_matching(name, exactly=True)[0]))

    def params_matching(self, pattern: str, *, exactly: bool = False) -> list[str]:
        """Names of the parameters that a pattern stands for.

        Args:
            pattern: A key of the state dict, with ``*`` and ``?`` for any characters.
            exactly: Whether these stand for themselves.

        Returns:
            The names, at least one.

        Raises:
            ValueError: If there is none, with those that are called alike.

        Example:
            >>> from wsgraph import WeightSpace
            >>> WeightSpace.mlp([2, 8, 1]).params_matching("*.bias")
            ['layers.0.bias', 'layers.1.bias']
        """
        names = [p.name for p in self.params if pattern in p.keys or (not exactly and any(fnmatchcase(key, pattern) for key in p.keys))]
        if not names:
            keys = [key for param in self.params for key in param.keys]
            near = difflib.get_close_matches(pattern, keys, 3, 0.5) or keys[:3]
            raise ValueError(f"No parameter of {self!r} is called {pattern!r}; there are {', '.join(near)} and others.")
        return names

    def describe_parameter(self, name: str) -> str:
        """Which neurons the entries of a parameter follow, with which powers of their factors, in how many blocks: a table.

        A line per run of entries along an axis: the neurons of the parameter graph at which they lie (the gates of an
        LSTM, say), the neurons that they are permuted with, the power of these neurons' factor (or sign) that
        they are multiplied by, and what may be done to them. With a power of 0 they are permuted alone. Entries that
        follow several, such as the weight of a norm its input and its output, have a line for each.

        Args:
            name: Its name, or another key of the same tensor.

        Returns:
            The table as text.

        Raises:
            ValueError: If there is no such parameter, with those that are called alike.

        Example:
            >>> from wsgraph import WeightSpace
            >>> print(WeightSpace.mlp([2, 8, 8, 1], "tanh").describe_parameter("layers.1.weight"))
            layers.1.weight: weight, 8x8, 64 entries
            axis  entries  lie at    follow    power  symmetry
            0     0-7      hidden.2  hidden.2      1  permutation x sign
            1     0-7      hidden.1  hidden.1     -1  permutation x sign
        """
        runs = self.followed(name)
        param = self.param(name)
        about = [f"{' = '.join(param.keys)}: {param.role}", "x".join(map(str, param.shape)) or "scalar", _counted(param.size, "entry")]
        about += [param.dtype] if param.dtype else []
        about += ["functions are applied to the entries themselves"] if param.transformed else []
        why = self.why_unmoved(param)
        about += [f"moved by nothing ({why})"] if why else []
        rows = [["axis", "entries", "lie at", "follow", "power", "symmetry"]]
        for axis in range(len(param.axes)):
            along = [run for run in runs if run.axis == axis]
            rows += [self._run_cells(run) for run in along[:_SEGMENTS]]
            if len(along) > _SEGMENTS:
                rows.append([str(axis), f"... and {len(along) - _SEGMENTS} more runs of entries", "", "", "", ""])
        return "\n".join([", ".join(about), *(_table(rows) if runs else [])])

    def _run_cells(self, run: Followed) -> list[str]:
        entries = f"{run.start}-{run.stop - 1}" if run.stop - run.start > 1 else f"{run.start}"
        entries += f" in each of {run.blocks} blocks" if run.blocks > 1 else ""
        groups = [self.group(name) for name in run.groups]
        order = "" if run.in_order else " in an order of its own"
        powers = dict.fromkeys(map(self._power, groups, run.powers))
        symmetry = _few(dict.fromkeys(map(self._admitted, groups, run.powers)), "; ", 3) if groups else "none"
        return [
            str(run.axis),
            entries,
            _few(run.neurons, ", ", 3),
            _few(run.groups, ", ", 3) + order,
            _few(powers, ", ", 3),
            symmetry,
        ]

    def _admitted(self, group: NeuronGroup, power: int) -> str:
        """What may be done to entries that follow neurons with a power: an even one takes no signs, that of 0 no factors."""
        symmetry = self.describe_symmetry(group)
        for kind, taken in (("scale", power != 0), ("sign", power % 2 == 1)):
            symmetry = symmetry if taken or group.follows else symmetry.replace(f" x {kind}", "")
        return symmetry

    def _power(self, group: NeuronGroup, power: int) -> str:
        """A power, and of which factors where these are not the neurons' own."""
        of = " ".join(f"{label}^{power * each}" for label, each in group.follows)
        return f"{power} ({of})" if of else str(power)


def _by_reason(names: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Names by why something cannot be done to them, without those that have no reason."""
    result: dict[str, list[str]] = {}
    for reason, name in names:
        if reason:
            result.setdefault(reason, []).append(name)
    return result


# == Words ==


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun if count == 1 else noun[:-1] + 'ies'}"


def _few(texts: Iterable[str], separator: str, limit: int) -> str:
    """Texts in a row, the first of them where they are many; a dash for none."""
    every = list(texts)
    more = [f"and {len(every) - limit} more"] if len(every) > limit + 1 else []
    return separator.join([*(every[:limit] if more else every), *more]) or "-"


def _runs(texts: Iterable[str]) -> list[str]:
    """Texts in a row, five and more of the same as one."""
    runs = [(text, len(list(same))) for text, same in itertools.groupby(texts)]
    return [part for text, count in runs for part in ([f"{text} ({count} times)"] if count > 4 else [text] * count)]


def _folded_names(names: Sequence[str]) -> str:
    """Names in a row, three and more that differ in numbers alone as one."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(re.sub(r"[0-9]+", "*", name), []).append(name)
    for least in (3, 2):
        folded = [[f"{kind} ({len(each)})"] if len(each) >= least else each for kind, each in kinds.items()]
        told = [text for each in folded for text in each]
        if len(told) <= _NAMES:
            break
    return _few(told, ", ", _NAMES)


def _below(name: str, above: str) -> str:
    """A dotted name as it is called within a module; neurons named after the module keep its own name."""
    if name.startswith(f"{above}."):
        return name[len(above) + 1 :]
    return name[above.rfind(".") + 1 :] if name.split("[")[0] == above else name


def _table(rows: list[list[str]]) -> list[str]:
    numeric = {"parameters", "power"}
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    cells = (
        (cell.rjust(width) if head in numeric else cell.ljust(width) for cell, width, head in zip(row, widths, rows[0], strict=True))
        for row in rows
    )
    return ["  ".join(row).rstrip() for row in cells]
