"""Linear parameter-sharing layers: each is a list of terms, read off which axes of the weight space carry symmetry."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from wsgraph.nn.sharing.layout import Layout, Powers, SharingModule, autocast_together, check_map_size, mean_over, parameter_key
from wsgraph.space import Blocks, ParameterGraph, WeightSpace
from wsgraph.symmetry import SYMMETRIES

__all__ = ["HNPLinear", "MonomialLinear", "MonomialSineLinear", "NPLinear", "Pointwise", "SharingLinear", "Source", "Target", "Term"]


class Source(NamedTuple):
    """What a term reads: a parameter, averaged over movable axes.

    Args:
        param: Name of the parameter.
        kept: Its movable axes that are not averaged over.
        pooled: Whether to average over fixed neurons too.
    """

    param: str
    kept: tuple[int, ...]
    pooled: bool = False


class Target(NamedTuple):
    """What a term writes: a parameter, broadcast over movable axes.

    Args:
        param: Name of the parameter.
        kept: Its movable axes that are not broadcast over.
    """

    param: str
    kept: tuple[int, ...]


class Term(NamedTuple):
    """One dense map over features and channels, applied to every neuron (or pair of neurons) of the axes that sources and targets keep.

    Args:
        sources: What it reads, joined along the features.
        targets: What it writes, all from one matrix product.
        bias: Whether the map adds a constant.
    """

    sources: tuple[Source, ...]
    targets: tuple[Target, ...]
    bias: bool = True


class SharingLinear(SharingModule):
    r"""The linear layer of a list of terms: what all linear parameter-sharing layers have in common.

    .. math:: y^{(q)} = \sum_{t \ni q} \text{broadcast}\Big( \sum_{p \in t} A_{t q p} \, \text{mean}(x^{(p)}) + \tau_{t q} \Big)

    :math:`A_{t q p}` maps features (channels, kernel positions, fixed neurons) to features; the mean and the broadcast run over the movable
    axes of :math:`p` and :math:`q` that the term :math:`t` does not keep. All targets of a term are computed by one matrix product. Layers
    of your own choose other terms.

    Args:
        space: Weight space of the networks.
        in_channels: Channels per weight on the way in.
        out_channels: Channels per weight on the way out.
        terms: The terms, or a function of the layout that lists them. The axes that they keep count the movable axes of a parameter: for a
            last weight, 0 is the axis of its sources.
        boundary: Whether input and output neurons are movable axes rather than features.
        out_space: Weight space of the output (default: ``space``); it may differ in kernel sizes.

    Shapes:
        input: :class:`~wsgraph.space.Blocks` of ``in_channels``, a batch of networks (for one channel) or ``[B, P, in_channels]``.
        output: :class:`~wsgraph.space.Blocks` of ``out_channels``; ``.flatten()`` gives ``[B, P, out_channels]``.

    Raises:
        SpaceMismatchError: If the input belongs to another weight space.
        ValueError: If a term names an unknown parameter or axis, or keeps different neurons in its sources and targets; if not exactly
            one term keeps all movable axes of a parameter that it writes; if ``out_space`` differs in more than kernel sizes; or if the
            number of channels of the input differs.

    Example:
        >>> space = WeightSpace.mlp([2, 8, 1], bias=False)
        >>> per_neuron = Term((Source("layers.0.weight", (0,)), Source("layers.1.weight", (0,))), (Target("layers.0.weight", (0,)),))
        >>> alone = Term((Source("layers.1.weight", (0,)),), (Target("layers.1.weight", (0,)),))
        >>> SharingLinear(space, 1, 4, [per_neuron, alone])(space.batch(space.sample(3))).flatten().shape
        torch.Size([3, 24, 4])
    """

    symmetries: tuple[str, ...] = ("permutation",)

    def __init__(
        self,
        space: WeightSpace,
        in_channels: int,
        out_channels: int,
        terms: Iterable[Term] | Callable[[Layout], Iterable[Term]],
        *,
        boundary: bool = False,
        out_space: WeightSpace | None = None,
    ) -> None:
        super().__init__(space, in_channels)
        self.out_channels = out_channels
        name = type(self).__name__
        self.layout = Layout(space, boundary=boundary, user=name)
        self.out_space = space if out_space is None else out_space
        self.out_layout = self.layout if out_space is None else Layout(out_space, boundary=boundary, user=name)
        _check_spaces(self.layout, self.out_layout)
        listed = _checked(terms(self.layout) if callable(terms) else terms, self.layout, self.out_layout)
        # What few axes keep is small and comes first, so that it is summed before it is broadcast over the pairs of neurons.
        self.terms = tuple(sorted(listed, key=lambda term: len(term.targets[0].kept)))
        self.rows = tuple([out_channels * self.out_layout.entries[target.param].features for target in term.targets] for term in self.terms)
        self.columns = tuple([in_channels * self._features(source) for source in term.sources] for term in self.terms)
        for rows, columns in zip(self.rows, self.columns, strict=True):
            check_map_size(name, sum(rows), sum(columns), *self._largest())
        self.maps = nn.ModuleList(
            nn.Linear(sum(columns), sum(rows), bias=term.bias)
            for term, rows, columns in zip(self.terms, self.rows, self.columns, strict=True)
        )

    def _largest(self) -> tuple[str, int]:
        """The name of the entries with the most features, and how many they have."""
        largest = max(self.layout.entries.values(), key=lambda entries: entries.features)
        return largest.name, largest.features

    def _features(self, source: Source) -> int:
        entries = self.layout.entries[source.param]
        return entries.positions if source.pooled else entries.features

    def read(self, features: Blocks) -> dict[str, Tensor]:
        """The entries that the terms read, for layers that change them first.

        Args:
            features: :class:`~wsgraph.space.Blocks` with a channel axis.

        Returns:
            Entries by parameter, see :class:`~wsgraph.nn.sharing.Entries`.
        """
        return self.layout.read(features)

    def forward(self, features: Blocks | ParameterGraph | Tensor) -> Blocks:
        reader = _Reader(self.layout, self.read(self.as_blocks(features)))
        outputs: dict[str, Tensor] = {}
        parts: dict[str, list[Tensor]] = {name: [] for name in self.out_layout.entries}  # to be broadcast, those of no kept axis first
        for term, rows, columns, linear in zip(self.terms, self.rows, self.columns, self.maps, strict=True):
            weight, bias = cast(Tensor, linear.weight), cast("Tensor | None", linear.bias)
            inputs = [reader(source) for source in term.sources]
            if (count := len(term.targets[0].kept)) >= 2:
                ones = (1,) * count
                shifts = [[]] * len(rows) if bias is None else [[shift.view(-1, *ones)] for shift in bias.split(rows)]
                for (name, kept), matrix, shift in zip(term.targets, weight.split(rows), shifts, strict=True):
                    whole = count == len(self.out_layout.entries[name].movable)
                    added = shift + (parts[name] if whole else [])
                    value = _mix_pairs(matrix.split(columns, dim=1), inputs, _merge(added))
                    if whole:
                        outputs[name] = value
                    else:
                        parts[name].append(self._spread(name, kept, value))
                continue
            mixed = nn.functional.linear(inputs[0] if len(inputs) == 1 else torch.cat(inputs, dim=-1), weight, bias).split(rows, dim=-1)
            for (name, kept), value in zip(term.targets, mixed, strict=True):
                movable = len(self.out_layout.entries[name].movable)
                if len(kept) == movable:
                    outputs[name] = sum((part.unsqueeze(1) for part in parts[name]), start=value)
                elif movable == 1:
                    parts[name].append(value)
                else:
                    parts[name].append(self._spread(name, kept, value.transpose(1, 2) if kept else value))
        return self.out_layout.write(outputs, self.out_channels)

    def _spread(self, name: str, kept: tuple[int, ...], value: Tensor) -> Tensor:
        """``[B, features, *kept]`` with axes of size one where neurons are broadcast over."""
        entries = self.out_layout.entries[name]
        if entries.own is not None and len(kept) == 1:
            if kept == (entries.own.within,):
                return entries.own.spread(value, entries.neurons[entries.movable[entries.own.across]])
            return entries.own.spread_across(value)
        for axis in range(len(entries.movable)):
            if axis not in kept:
                value = value.unsqueeze(2 + axis)
        return value


class _Reader:
    """Means of the entries over the axes that a source does not keep, each computed once."""

    def __init__(self, layout: Layout, entries: dict[str, Tensor]) -> None:
        self.layout, self.entries = layout, entries
        self.means: dict[Source, Tensor] = {}

    def __call__(self, source: Source) -> Tensor:
        """``[B, features]``, ``[B, n, features]`` or, where two axes or more are kept, ``[B, features, n_out, n_in]``."""
        if source not in self.means:
            self.means[source] = self._mean(source)
        return self.means[source]

    def _mean(self, source: Source) -> Tensor:
        entries = self.layout.entries[source.param]
        if source.pooled:
            mean = self(Source(source.param, source.kept))
            return mean_over(mean.unflatten(-1, (-1, entries.fixed_neurons, entries.positions)), -2).flatten(-2)
        movable = len(entries.movable)
        if len(source.kept) == movable:
            return self.entries[source.param]
        if not source.kept:
            return mean_over(self(Source(source.param, (0,))), 1)
        if entries.own is not None:
            read = entries.own.mean if source.kept == (entries.own.within,) else entries.own.mean_across
            return read(self.entries[source.param]).transpose(1, 2)
        pooled = tuple(2 + axis for axis in range(movable) if axis not in source.kept)
        mean = mean_over(self.entries[source.param], pooled)
        return mean.transpose(1, 2) if len(source.kept) == 1 else mean


class _MixPairs(torch.autograd.Function):
    """One matrix over the features of entries ``[B, features, n_out, n_in]``, with the broadcast parts added in place.

    Plain autograd copies whole gradients for an addition in place to a reshaped product. The backward pass is made of differentiable
    operations, so gradients of gradients work.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, entries: Tensor, *parts: Tensor) -> Tensor:
        ctx.save_for_backward(matrix, entries)
        ctx.shapes = [part.shape for part in parts]
        result = torch.bmm(matrix.expand(entries.shape[0], -1, -1), entries.flatten(2)).unflatten(2, entries.shape[2:])
        for part in parts:
            result += part
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        matrix, entries = ctx.saved_tensors
        flat = gradient.flatten(2)
        needs_matrix, needs_entries, *needs_parts = ctx.needs_input_grad
        parts = [gradient.sum_to_size(shape) if needed else None for shape, needed in zip(ctx.shapes, needs_parts, strict=True)]
        return (
            torch.bmm(flat, entries.flatten(2).mT).sum(0) if needs_matrix else None,
            torch.bmm(matrix.mT.expand(flat.shape[0], -1, -1), flat).unflatten(2, gradient.shape[2:]) if needs_entries else None,
            *parts,
        )


def _mix_pairs(matrices: Sequence[Tensor], inputs: Sequence[Tensor], parts: Sequence[Tensor]) -> Tensor:
    """Every input its own product: entries of pairs are never copied together."""
    total: Tensor | None = None
    for matrix, entries in zip(matrices, inputs, strict=True):
        mixed = cast(Tensor, _MixPairs.apply(*autocast_together(matrix, entries, *(parts if total is None else ()))))
        total = mixed if total is None else total + mixed
    assert total is not None
    return total


def _merge(parts: Sequence[Tensor]) -> list[Tensor]:
    """Fewer parts to broadcast: what is the same for all pairs of neurons is added to the next part."""
    merged: list[Tensor] = []
    for part in parts:
        same = merged and set(merged[-1].shape[-(part.ndim - 2) :]) == {1}
        merged.append((part + merged.pop() if same else part).contiguous())
    return merged


def _checked(terms: Iterable[Term], layout: Layout, out_layout: Layout) -> list[Term]:
    """The terms, if every one keeps the same neurons in all that it reads and writes, and every parameter is written once in full."""
    terms = list(terms)
    complete = []
    for term in terms:
        kept = set()
        for part, entries in [(p, layout.entries) for p in term.sources] + [(p, out_layout.entries) for p in term.targets]:
            if part.param not in entries or not all(0 <= axis < len(entries[part.param].movable) for axis in part.kept):
                raise ValueError(f"{part} is no parameter of {layout.space!r} with such movable axes.")
            kept.add(entries[part.param].classes(part.kept))
        if not term.sources or not term.targets or len(kept) > 1:
            raise ValueError(f"A term needs sources and targets that keep the same neurons, or it mixes what moves apart (got {term}).")
        complete += [target.param for target in term.targets if len(target.kept) == len(out_layout.entries[target.param].movable)]
    if sorted(complete) != sorted(out_layout.entries):
        raise ValueError(f"Expected exactly one term per parameter that keeps all of its movable axes (got them for {complete}).")
    return terms


def _check_spaces(layout: Layout, out_layout: Layout) -> None:
    mine = [(entries.neurons, entries.movable, entries.kind) for entries in layout.entries.values()]
    other = [(entries.neurons, entries.movable, entries.kind) for entries in out_layout.entries.values()]
    if list(layout.entries) != list(out_layout.entries) or mine != other:
        raise ValueError(
            f"Expected 'out_space' to have the parameters and neuron groups of {layout.space!r} and to differ in kernel sizes alone "
            f"(got {out_layout.space!r})."
        )


# == Terms ==


def permutation_terms(layout: Layout) -> list[Term]:
    """All maps that commute with permutations: per set of kept axes, every parameter that has them to every parameter that has them."""
    sources: dict[tuple[object, ...], list[tuple[str, tuple[int, ...]]]] = {}
    for name, entries in layout.entries.items():
        for count in range(len(entries.movable) + 1):
            for kept in itertools.combinations(range(len(entries.movable)), count):
                sources.setdefault(entries.classes(kept), []).append((name, kept))
    return [Term(tuple(Source(*part) for part in parts), tuple(Target(*part) for part in parts)) for parts in sources.values()]


def monomial_terms(layout: Layout, *, signs_only: bool = False) -> list[Term]:
    """All maps that commute with permutations and scales: parameters of one kind to each other.

    Args:
        layout: Entries of the space.
        signs_only: Whether factors are signs, whose powers 1 and -1 are the same.
    """
    kinds: dict[object, list[str]] = {}
    for name, entries in layout.entries.items():
        kind = entries.kind
        if signs_only:
            kind = tuple(tuple((label, _odd(powers)) for label, powers in groups) for groups in kind)
        kinds.setdefault(kind, []).append(name)
    terms = []
    for names in kinds.values():
        whole = [(name, tuple(range(len(layout.entries[name].movable)))) for name in names]
        terms.append(Term(tuple(Source(*part) for part in whole), tuple(Target(*part) for part in whole), bias=not whole[0][1]))
    return terms


def _odd(powers: Powers) -> Powers:
    return tuple((label, 1) for label, power in powers if power % 2)


def published_hnp_terms(layout: Layout) -> list[Term]:
    """The terms of the published HNP layer: redundant means beside what they are means of, and no last bias of a hidden layer in W^(L)."""
    weights = [layer.weight for layer in layout.space.layers if layer.weight is not None]
    biases = [layer.bias for layer in layout.space.layers if layer.bias is not None]
    depth = len(weights)
    if not layout.space.is_chain or depth < 2 or len(biases) < depth:
        raise ValueError(f"The published HNP layer needs a chain of at least two layers, all with biases (got {layout.space!r}).")

    def whole(name: str) -> Source:
        return Source(name, tuple(range(len(layout.entries[name].movable))))

    def mean_over_targets(i: int) -> Source:
        return Source(weights[i], (1,)) if i < depth - 1 else Source(weights[i], (0,), pooled=True)

    def mean_over_sources(i: int) -> Source:
        return Source(weights[i], (0,), pooled=i == 0)

    first, last = weights[0], weights[-1]
    means = [Source(name, (), pooled=bool(layout.entries[name].fixed)) for name in (*weights, *biases)]
    boundary = [Source(first, ()), Source(last, ()), whole(biases[-1])]
    terms = [Term((*means, *boundary), tuple(Target(name, ()) for name in (*weights, *biases)))]
    from_last = [whole(last)] if depth == 2 else []
    from_first = [whole(first)] if depth == 2 else []
    terms.append(
        Term((whole(first), mean_over_targets(1), whole(biases[0]), *from_last), (Target(*whole(first)[:2]), Target(*whole(biases[0])[:2])))
    )
    terms.append(Term((whole(last), mean_over_sources(depth - 2), *from_first), (Target(*whole(last)[:2]),)))
    for i in range(1, depth - 1):
        rows = [mean_over_targets(i), mean_over_sources(i - 1), whole(biases[i - 1]), *([whole(first)] if i == 1 else [])]
        columns = [mean_over_sources(i), whole(biases[i]), mean_over_targets(i + 1), *([whole(last)] if i == depth - 2 else [])]
        terms.append(Term(tuple(rows), (Target(weights[i], (1,)),)))
        terms.append(Term(tuple(columns), (Target(weights[i], (0,)), Target(biases[i], (0,)))))
        terms.append(Term((whole(weights[i]),), (Target(weights[i], (0, 1)),)))
    return terms


def published_sine_terms(layout: Layout) -> list[Term]:
    """The terms of the published sine layer: a chain of two layers lacks those between W^(1) and W^(2), and that from W^(2) to b^(1)."""
    terms = monomial_terms(layout, signs_only=True)
    if len(layout.space.layers) != 2:
        return terms
    first, second = layout.space.layers
    published = [term for term in terms if second.weight not in [source.param for source in term.sources]]
    (mixed,) = [term for term in terms if term not in published]

    def part(reads: Sequence[str | None], writes: Sequence[str | None]) -> Term:
        sources = tuple(source for source in mixed.sources if source.param in reads)
        return Term(sources, tuple(target for target in mixed.targets if target.param in writes), bias=False)

    alone = (first.weight, first.bias)
    return [*published, part(alone, alone), part((second.weight, first.bias), (second.weight,))]


# == Layers ==


class NPLinear(SharingLinear):
    r"""Linear layer equivariant under permutations of all neurons, inputs and outputs included (`Zhou et al. 2023 <https://arxiv.org/abs/2302.14040>`_).

    With :math:`W_{\bullet k}`, :math:`W_{j \bullet}` the means over rows and columns, every neuron :math:`k` collects
    :math:`u_k = [W^{(i)}_{k \bullet}, b^{(i)}_k, W^{(i+1)}_{\bullet k}]`, the network collects :math:`g`, the means of all tensors, and

    .. math::
        Y^{(i)}_{jk} = A^{(i)} W^{(i)}_{jk} + P^{(i)} u_k + Q^{(i)} u_j + G^{(i)} g, \qquad z^{(i)}_j = Q_b^{(i)} u_j + G_b^{(i)} g

    every map affine. This is the published parameterisation and every equivariant map of a chain. Kernel positions are features.

    Args:
        space: Weight space of the networks, a chain or any other.
        in_channels: Channels per weight on the way in.
        out_channels: Channels per weight on the way out.
        io_embed: Whether learned codes of the input and output neurons are added first, which leaves hidden neurons alone permutable.
        out_space: Weight space of the output (default: ``space``); it may differ in kernel sizes.

    Shapes:
        input: :class:`~wsgraph.space.Blocks` of ``in_channels``, a batch of networks (for one channel) or ``[B, P, in_channels]``.
        output: :class:`~wsgraph.space.Blocks` of ``out_channels``; ``.flatten()`` gives ``[B, P, out_channels]``.

    Raises:
        SpaceMismatchError: If the input belongs to another weight space.
        ValueError: If the number of channels of the input differs, or ``out_space`` differs in more than kernel sizes.

    Example:
        >>> from wsgraph import WeightSpace
        >>> space = WeightSpace.mlp([2, 8, 8, 1])
        >>> layer = NPLinear(space, 1, 4)
        >>> layer(space.batch(space.sample(3))).flatten().shape
        torch.Size([3, 105, 4])
    """

    symmetries: tuple[str, ...] = ("permutation",)

    def __init__(
        self, space: WeightSpace, in_channels: int, out_channels: int, *, io_embed: bool = False, out_space: WeightSpace | None = None
    ) -> None:
        super().__init__(space, in_channels, out_channels, permutation_terms, boundary=True, out_space=out_space)
        self.embeddings = nn.ParameterDict()
        if io_embed:
            for layer in space.layers:
                outward = space.group(layer.target).role == "output"
                inward = all(space.group(name).role == "input" for name in layer.sources)
                for name, sides in ((layer.weight, ("target", "source")), (layer.bias, ("target",))):
                    for axis, side in enumerate(sides):
                        if name is not None and (inward if side == "source" else outward):
                            entries = self.layout.entries[name]
                            shape = [entries.neurons[axis], in_channels * entries.features]
                            self.embeddings[_embedding(name, side)] = nn.Parameter(0.1 * torch.randn(shape))

    def read(self, features: Blocks) -> dict[str, Tensor]:
        entries = super().read(features)
        for name, values in entries.items():
            if (code := self._code(name, "target")) is not None:
                values = values + (code if values.ndim == 3 else code.T[:, :, None])
            if (code := self._code(name, "source")) is not None:
                values = values + code.T[:, None, :]
            entries[name] = values
        return entries

    def _code(self, name: str, side: str) -> Tensor | None:
        key = _embedding(name, side)
        return self.embeddings[key] if key in self.embeddings else None  # noqa: SIM401  (ParameterDict.get cannot say "none")


def _embedding(name: str, side: str) -> str:
    return parameter_key(f"{name}:{side}")


class HNPLinear(SharingLinear):
    r"""Linear layer equivariant under permutations of hidden neurons (`Zhou et al. 2023 <https://arxiv.org/abs/2302.14040>`_).

    As :class:`NPLinear`, but input and output neurons are distinguished: along their axes entries are features and are mapped by dense
    matrices, so that :math:`W^{(1)}`'s rows and :math:`W^{(L)}`'s columns are features of hidden neurons.

    .. math:: Y^{(1)}_j = P^{(1)} u_j + G^{(1)} g \qquad u_j = [W^{(1)}_j, b^{(1)}_j, W^{(2)}_{\bullet j}]

    The published layer lacks the term from :math:`b^{(L-1)}` to :math:`W^{(L)}` and carries means of :math:`W^{(1)}, W^{(L)}, b^{(L)}`
    beside the entries that they are means of; this one is complete and without redundant inputs.

    Args:
        space: Weight space of the networks, a chain or any other.
        in_channels: Channels per weight on the way in.
        out_channels: Channels per weight on the way out.
        reference: Use the published parameterisation (chains of at least two layers with biases).
        out_space: Weight space of the output (default: ``space``); it may differ in kernel sizes.

    Shapes:
        input: :class:`~wsgraph.space.Blocks` of ``in_channels``, a batch of networks (for one channel) or ``[B, P, in_channels]``.
        output: :class:`~wsgraph.space.Blocks` of ``out_channels``; ``.flatten()`` gives ``[B, P, out_channels]``.

    Raises:
        SpaceMismatchError: If the input belongs to another weight space.
        ValueError: If the number of channels of the input differs, or the published parameterisation does not exist for the space.

    Example:
        >>> from wsgraph import WeightSpace
        >>> space = WeightSpace.cnn([1, 4, 4], [10])
        >>> HNPLinear(space, 1, 4)(space.batch(space.sample(3))).weights[1].shape
        torch.Size([3, 4, 4, 9, 4])
    """

    symmetries: tuple[str, ...] = ("permutation",)

    def __init__(
        self, space: WeightSpace, in_channels: int, out_channels: int, *, reference: bool = False, out_space: WeightSpace | None = None
    ) -> None:
        terms = published_hnp_terms if reference else permutation_terms
        super().__init__(space, in_channels, out_channels, terms, out_space=out_space)


class MonomialLinear(SharingLinear):
    r"""Linear layer equivariant under permutations, scales and signs, from `Monomial-NFN <https://arxiv.org/abs/2409.11697>`_.

    Entries of parameters that transform alike are mixed by one matrix; nothing else may be mixed, and means or biases would break the
    symmetry. With :math:`T(p)` the parameters that transform as :math:`p`,

    .. math:: y^{(p)}_{u} = \sum_{q \in T(p)} A_{p q} \, x^{(q)}_{u} \quad (+ \tau_p \text{ where nothing transforms})

    For a chain this is: :math:`W^{(1)}` with :math:`b^{(1)}` per neuron, every middle weight and bias alone, :math:`W^{(L)}` over outputs,
    and :math:`b^{(L)}` as a plain affine map, which is the published layer. The same rule serves residual networks.

    Args:
        space: Weight space of the networks, a chain or any other.
        in_channels: Channels per weight on the way in.
        out_channels: Channels per weight on the way out.
        out_space: Weight space of the output (default: ``space``); it may differ in kernel sizes.

    Shapes:
        input: :class:`~wsgraph.space.Blocks` of ``in_channels``, a batch of networks (for one channel) or ``[B, P, in_channels]``.
        output: :class:`~wsgraph.space.Blocks` of ``out_channels``; ``.flatten()`` gives ``[B, P, out_channels]``.

    Raises:
        SpaceMismatchError: If the input belongs to another weight space.
        ValueError: If the number of channels of the input differs, or ``out_space`` differs in more than kernel sizes.

    Example:
        >>> from wsgraph import WeightSpace
        >>> space = WeightSpace.mlp([2, 8, 8, 1])
        >>> layer = MonomialLinear(space, 1, 4)
        >>> layer(space.batch(space.sample(3))).flatten().shape
        torch.Size([3, 105, 4])
    """

    symmetries = SYMMETRIES

    def __init__(self, space: WeightSpace, in_channels: int, out_channels: int, *, out_space: WeightSpace | None = None) -> None:
        super().__init__(space, in_channels, out_channels, monomial_terms, out_space=out_space)


class MonomialSineLinear(SharingLinear):
    r"""Linear layer equivariant under permutations and signs, but not scales, from `Monomial-NFN <https://arxiv.org/abs/2409.11697>`_.

    A sign is its own inverse, so that parameters whose factors are :math:`\varepsilon` and :math:`\varepsilon^{-1}` transform alike:
    :class:`MonomialLinear` with powers counted modulo two. For a chain this adds the maps between :math:`W^{(L)}` and :math:`b^{(L-1)}` per
    neuron, and for two layers those between :math:`W^{(1)}, b^{(1)}` and :math:`W^{(2)}`, which the published layer lacks.

    Args:
        space: Weight space of the networks, a chain or any other.
        in_channels: Channels per weight on the way in.
        out_channels: Channels per weight on the way out.
        reference: Use the published terms.
        out_space: Weight space of the output (default: ``space``); it may differ in kernel sizes.

    Shapes:
        input: :class:`~wsgraph.space.Blocks` of ``in_channels``, a batch of networks (for one channel) or ``[B, P, in_channels]``.
        output: :class:`~wsgraph.space.Blocks` of ``out_channels``; ``.flatten()`` gives ``[B, P, out_channels]``.

    Raises:
        SpaceMismatchError: If the input belongs to another weight space.
        ValueError: If the number of channels of the input differs, or ``out_space`` differs in more than kernel sizes.

    Example:
        >>> from wsgraph import WeightSpace
        >>> space = WeightSpace.mlp([2, 8, 8, 1], "sin(30)")
        >>> layer = MonomialSineLinear(space, 1, 4)
        >>> layer(space.batch(space.sample(3))).flatten().shape
        torch.Size([3, 105, 4])
    """

    symmetries: tuple[str, ...] = ("permutation", "sign")

    def __init__(
        self, space: WeightSpace, in_channels: int, out_channels: int, *, reference: bool = False, out_space: WeightSpace | None = None
    ) -> None:
        terms = published_sine_terms if reference else functools.partial(monomial_terms, signs_only=True)
        super().__init__(space, in_channels, out_channels, terms, out_space=out_space)


class Pointwise(SharingLinear):
    r"""Every weight and bias mapped alone, the ablation of `Zhou et al. 2023 <https://arxiv.org/abs/2302.14040>`_: no entry sees another.

    .. math:: Y^{(i)}_{jk} = A^{(i)} W^{(i)}_{jk} + \alpha^{(i)}, \qquad z^{(i)}_j = A_b^{(i)} b^{(i)}_j + \alpha_b^{(i)}

    Args:
        space: Weight space of the networks, a chain or any other.
        in_channels: Channels per weight on the way in.
        out_channels: Channels per weight on the way out.
        bias: Whether the maps are affine; without, the layer is equivariant under scales and signs too.
        out_space: Weight space of the output (default: ``space``); it may differ in kernel sizes.

    Shapes:
        input: :class:`~wsgraph.space.Blocks` of ``in_channels``, a batch of networks (for one channel) or ``[B, P, in_channels]``.
        output: :class:`~wsgraph.space.Blocks` of ``out_channels``; ``.flatten()`` gives ``[B, P, out_channels]``.

    Raises:
        SpaceMismatchError: If the input belongs to another weight space.
        ValueError: If the number of channels of the input differs, or ``out_space`` differs in more than kernel sizes.

    Example:
        >>> from wsgraph import WeightSpace
        >>> space = WeightSpace.mlp([2, 8, 1])
        >>> Pointwise(space, 1, 4)(space.batch(space.sample(3))).biases[0].shape
        torch.Size([3, 8, 4])
    """

    symmetries: tuple[str, ...] = ("permutation",)

    def __init__(
        self, space: WeightSpace, in_channels: int, out_channels: int, *, bias: bool = True, out_space: WeightSpace | None = None
    ) -> None:
        def terms(layout: Layout) -> list[Term]:
            whole = [(name, tuple(range(len(entries.movable)))) for name, entries in layout.entries.items()]
            return [Term((Source(*part),), (Target(*part),), bias) for part in whole]

        super().__init__(space, in_channels, out_channels, terms, boundary=True, out_space=out_space)
        if not bias:
            self.symmetries = SYMMETRIES
