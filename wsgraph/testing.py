"""Checks of equivariance that ship with the library: every layer's test here, and a user's own layer, calls them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from wsgraph._outputs import FUNCTION_TOLERANCE, largest_difference, module_outputs, relative_error, said_of_repeats, space_outputs
from wsgraph.space import Blocks, ParameterGraph, WeightSpace
from wsgraph.symmetry import SYMMETRIES, GroupElement, act, sample_symmetry

__all__ = ["TOLERANCES", "assert_equivariant", "assert_function_preserved", "assert_invariant", "equivariance_error"]

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.1}
"""Largest relative error by dtype that counts as equal."""

_REACTION = 1e-6

Function = Callable[[ParameterGraph], Tensor | Blocks]


def assert_function_preserved(
    module: nn.Module | None,
    space: WeightSpace,
    example_inputs: Tensor | tuple[Any, ...] | None = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    theta: Tensor | None = None,
    scale: tuple[float, float] = (1e-3, 1e3),
    tolerance: float = 1e-8,
    draws: int = 3,
    seed: int = 0,
) -> float:
    r"""Fail unless random group elements leave a network's output unchanged: :math:`f_{g \theta}(x) = f_\theta(x)`.

    Runs in float64, with the module's own weights moved by permutations, positive factors and signs, kind by kind and all at once. Without
    a module the space itself runs the network, as :meth:`WeightSpace.evaluate` does. Also fails if no element moves any weight although
    the space has symmetries.

    Args:
        module: The module that the space was traced from, or another one of the same parameters; ``None`` to run the space itself.
        space: Its weight space.
        example_inputs: What the module is called with: a tensor or a tuple (default: random ones that the space allows).
        kwargs: What it is called with by name, unless that lies behind the others, as in :meth:`WeightSpace.example_inputs`.
        theta: Without a module, the flat checkpoint ``[P]`` to move (default: a random one).
        scale: Range of the positive factors.
        tolerance: Largest relative difference of an output.
        draws: Number of elements per kind.
        seed: Seed of the elements.

    Returns:
        The largest relative difference.

    Raises:
        AssertionError: Naming the kind of symmetry, the neuron group that fails alone, and the difference.
        SpaceMismatchError: If nothing is known that could run the network.

    Example:
        >>> import torch, wsgraph
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).eval()
        >>> x = torch.randn(2, 1, 4, 4)
        >>> assert_function_preserved(net, wsgraph.trace(net, x), x) < 1e-10
        True
        >>> assert_function_preserved(None, wsgraph.trace(net, x)) < 1e-10
        True
    """
    __tracebackhide__ = True
    generator = torch.Generator().manual_seed(seed)
    if module is None:
        space.check_runs("assert_function_preserved() without a module")
    if example_inputs is None and kwargs is not None:
        example_inputs = ()
    elif example_inputs is None:
        example_inputs = space.example_inputs(generator=generator, dtype=torch.float64)
    if module is None:
        outputs = space_outputs(space, example_inputs, kwargs)
        theta = space.sample(1, generator=generator, dtype=torch.float64) if theta is None else theta.double()[None]
    else:
        inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
        theta, outputs = module_outputs(module, space, inputs, kwargs)
    weights, name = theta, "the network" if module is None else type(module).__name__

    def error(g: GroupElement) -> float:
        return largest_difference(outputs(act(space, g, weights)), expected)

    expected = outputs(weights)
    kinds = [kind for kind in SYMMETRIES if _acts(space, kind)]
    worst, moves = 0.0, not kinds
    for symmetries in [*([kind] for kind in kinds), kinds]:
        for _ in range(draws if symmetries else 0):
            g = sample_symmetry(space, 1, scale, symmetries=symmetries, generator=generator)
            moves |= not torch.equal(act(space, g, weights), weights)
            found = error(g)
            worst = max(worst, found)
            if not found <= tolerance:
                if text := said_of_repeats(outputs, weights, expected):
                    raise AssertionError(text)
                alone = {}
                for label in space.scale_classes:
                    classes = {label, space.scale_classes[label][0].permutation} & {*g.permutations, *g.scales}
                    if classes:
                        single = sample_symmetry(space, 1, scale, symmetries=symmetries, classes=classes, generator=generator)
                        alone[label] = error(single)
                where = "".join(f"\n  group {label!r}: {value:.1e}" for label, value in alone.items() if not value <= tolerance)
                raise AssertionError(
                    f"A group element ({' x '.join(symmetries)}) of {space!r} changes the output of {name} (relative difference "
                    f"{found:.1e}, tolerance {tolerance:.0e}): the space claims a symmetry that it does not have.{where}"
                )
    if not moves:
        raise AssertionError(f"No group element of {space!r} moves a weight of {name}, so this test proves nothing.")
    return worst


def _prepare(fn: Function, dtype: torch.dtype) -> Function:
    return copy.deepcopy(fn).to(dtype).eval() if isinstance(fn, nn.Module) else fn


def _run(fn: Function, space: WeightSpace, thetas: Tensor, dtype: torch.dtype) -> Tensor:
    with torch.no_grad():
        output = fn(space.batch(thetas.to(dtype)))
        if isinstance(output, Blocks):
            output = output.flatten()
    if not isinstance(output, Tensor) or output.shape[:1] != thetas.shape[:1]:
        received = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise AssertionError(
            f"Expected a tensor with one row per network, {thetas.shape[0]}, from the function under test (got {received})."
        )
    return output


def _pull_back(space: WeightSpace, g: GroupElement, moved: Tensor) -> list[Tensor]:
    """Undo the action on an equivariant output, parameter by parameter so that each is compared at its own magnitude."""
    if moved.shape[1:2] != (space.num_params,):
        raise AssertionError(
            f"Expected an equivariant output of shape [B, {space.num_params}] or [B, {space.num_params}, C] (got {list(moved.shape)})."
        )
    back = act(space, g.inverse(), moved.double())
    return [back[:, part] for part in space.slices.values()]


def _error(fn: Function, space: WeightSpace, thetas: Tensor, g: GroupElement, output: str, dtype: torch.dtype) -> float:
    expected = _run(fn, space, thetas, dtype)
    moved = _run(fn, space, act(space, g, thetas), dtype)
    if output == "invariant":
        return relative_error(moved, expected)
    parts = [expected.double()[:, part] for part in space.slices.values()]
    return max(relative_error(back, part) for back, part in zip(_pull_back(space, g, moved), parts, strict=True))


def _claimed(fn: Any, symmetries: Collection[str] | None) -> tuple[str, ...]:
    claimed = getattr(fn, "symmetries", SYMMETRIES) if symmetries is None else symmetries
    claimed = [claimed] if isinstance(claimed, str) else claimed
    if unknown := sorted(set(claimed) - set(SYMMETRIES)):
        raise ValueError(f"Unknown symmetries {unknown}; expected some of {SYMMETRIES}.")
    return tuple(kind for kind in SYMMETRIES if kind in claimed)


def _acts(space: WeightSpace, kind: str) -> bool:
    movable = [label for label, members in space.scale_classes.items() if space.is_permutable(members[0].permutation)]
    return (
        bool(movable)
        if kind == "permutation"
        else any(getattr(space.class_symmetry(label), {"scale": "positive", "sign": "sign"}[kind]) for label in movable)
    )


def equivariance_error(
    fn: Function,
    space: WeightSpace,
    *,
    output: str = "invariant",
    symmetries: Collection[str] | None = None,
    per_group: bool = False,
    thetas: Tensor | None = None,
    networks: int = 4,
    scale: tuple[float, float] = (1e-4, 1e4),
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> dict[tuple[str, str], float]:
    r"""Measure how far a function of parameter graphs is from invariance or equivariance.

    .. math:: \text{invariant: } f(g \theta) = f(\theta) \qquad \text{equivariant: } g^{-1} f(g \theta) = f(\theta)

    The action is computed in float64 whatever the function uses, so the error is the function's. Equivariant outputs are pulled back and
    compared parameter by parameter.

    Args:
        fn: Model, layer or function, called with a batch from :meth:`WeightSpace.batch`; a module is copied, cast and put in eval mode.
            Returns ``[B, ...]`` (invariant), or weights as ``[B, P]``, ``[B, P, C]`` or :class:`~wsgraph.space.Blocks` (equivariant).
        space: The weight space of the networks.
        output: ``"invariant"`` or ``"equivariant"``.
        symmetries: Kinds to test among ``"permutation"``, ``"scale"`` and ``"sign"`` (default: the function's own ``symmetries``
            attribute, else all). Kinds that the space does not have are left out.
        per_group: Also move every class of neuron groups alone.
        thetas: Networks ``[B, P]`` to use (default: ``space.sample``).
        networks: Number of networks drawn when ``thetas`` is not given.
        scale: Range of the positive factors, drawn log-uniformly.
        dtype: Dtype in which the function runs.
        seed: Seed of networks and group elements.

    Returns:
        Largest relative error by ``(symmetry, group)``; the group is ``"all"`` when all move together.

    Raises:
        ValueError: If ``output`` or a symmetry is unknown, or the space has none of the symmetries.

    Example:
        >>> from wsgraph import WeightSpace
        >>> space = WeightSpace.mlp([2, 8, 1])
        >>> errors = equivariance_error(lambda batch: batch.thetas().square().sum(1), space)
        >>> errors["permutation", "all"] < 1e-12, errors["scale", "all"] > 1
        (True, True)
    """
    if output not in ("invariant", "equivariant"):
        raise ValueError(f"Expected 'output' to be 'invariant' or 'equivariant' (got {output!r}).")
    claimed = _claimed(fn, symmetries)
    kinds = [kind for kind in claimed if _acts(space, kind)]
    if not kinds:
        raise ValueError(f"There is nothing to test: {space!r} has none of the symmetries {claimed}.")
    generator = torch.Generator().manual_seed(seed)
    thetas = (space.sample(networks, generator=generator, dtype=torch.float64) if thetas is None else thetas).double()
    prepared = _prepare(fn, dtype)
    labels = [label for label, members in space.scale_classes.items() if space.is_permutable(members[0].permutation)]
    cases: list[tuple[str, str, Collection[str], Collection[str] | None]] = [(kind, "all", [kind], None) for kind in kinds]
    if len(kinds) > 1:
        cases.append((" x ".join(kinds), "all", kinds, None))
    if per_group:
        cases += [(kind, label, [kind], {label, space.scale_classes[label][0].permutation}) for kind in kinds for label in labels]
    errors = {}
    for kind, name, drawn, classes in cases:
        g = sample_symmetry(space, thetas.shape[0], scale, symmetries=drawn, classes=classes, generator=generator)
        errors[kind, name] = _error(prepared, space, thetas, g, output, dtype)
    return errors


def _assert_function_kept(
    space: WeightSpace,
    thetas: Tensor,
    scale: tuple[float, float],
    inputs: Tensor | tuple[Any, ...] | None,
    module: nn.Module | None,
    seed: int,
) -> None:
    """The group elements of a test must not change the networks' own functions, or the test proves nothing."""
    __tracebackhide__ = True
    if module is not None:
        assert_function_preserved(module, space, inputs, draws=1, seed=seed)
        return
    if not space.can_run:
        raise ValueError(
            f"The networks of {space!r} are run by the module that it was traced from: give it as 'module', in evaluation mode, and what "
            f"it is called with as 'inputs'. The space itself cannot run them, because {space.unprogrammed or 'it holds no program'}."
        )
    generator = torch.Generator().manual_seed(seed)
    outputs = space_outputs(space, space.example_inputs(generator=generator, dtype=torch.float64) if inputs is None else inputs)
    g = sample_symmetry(space, thetas.shape[0], scale, generator=generator)
    pairs = zip(outputs(act(space, g, thetas)), outputs(thetas), strict=True)
    error = max((relative_error(moved, expected) for moved, expected in pairs), default=0.0)
    if not error <= FUNCTION_TOLERANCE:
        raise AssertionError(
            f"A group element of {space!r} changes the networks' outputs (relative error {error:.1e}): the weight space claims a symmetry "
            "that its networks do not have, so invariance under it means nothing."
        )


def _uncoupled(space: WeightSpace, thetas: Tensor, generator: torch.Generator) -> Tensor:
    """Permute the axes of every parameter independently of its neighbours: other functions, from the same numbers."""
    moved = []
    for param in space.params:
        tensor = thetas[:, space.slices[param.name]].unflatten(1, param.logical_shape)
        for dim, axis in enumerate(param.axes, start=1):
            if axis.ties:
                tensor = tensor.index_select(dim, torch.randperm(axis.size, generator=generator))
        moved.append(tensor.flatten(1))
    return torch.cat(moved, dim=1)


def _assert_reacts(fn: Function, space: WeightSpace, thetas: Tensor, control: str, dtype: torch.dtype, seed: int) -> None:
    __tracebackhide__ = True
    # Another seed than that of the networks: noise drawn as they were may be a multiple of them, which a scale-invariant function ignores.
    generator = torch.Generator().manual_seed(seed + 1)
    if control == "uncoupled":
        changed = _uncoupled(space, thetas, generator)
    else:
        changed = thetas + thetas.std() * torch.randn(thetas.shape, generator=generator, dtype=thetas.dtype)
    error = relative_error(_run(fn, space, changed, dtype), _run(fn, space, thetas, dtype))
    if not error > _REACTION:
        what = "uncoupled permutations of its inputs" if control == "uncoupled" else "noise on its inputs"
        raise AssertionError(
            f"{_name(fn)} does not react to {what} (relative change {error:.1e}), so passing the invariance test would mean nothing."
            + (
                " A function of whole tensors, which axes permuted on their own do not change, takes control='noise'."
                if control == "uncoupled"
                else ""
            )
        )


def _name(fn: Any) -> str:
    return type(fn).__name__ if isinstance(fn, nn.Module) else getattr(fn, "__name__", repr(fn))


def _assert(
    fn: Function,
    space: WeightSpace,
    output: str,
    symmetries: Collection[str] | None,
    thetas: Tensor | None,
    networks: int,
    scale: tuple[float, float],
    dtype: torch.dtype,
    tolerance: float | None,
    control: str | None,
    inputs: Tensor | tuple[Any, ...] | None,
    module: nn.Module | None,
    seed: int,
) -> dict[tuple[str, str], float]:
    __tracebackhide__ = True
    if control not in ("uncoupled", "noise", None):
        raise ValueError(f"Expected 'control' to be 'uncoupled', 'noise' or None (got {control!r}).")
    if control == "uncoupled" and getattr(fn, "ignores_uncoupled_permutations", False):
        control = "noise"
    if tolerance is None:
        if dtype not in TOLERANCES:
            raise ValueError(f"Expected 'dtype' to be one of {list(TOLERANCES)} (got {dtype}), or give a 'tolerance'.")
        tolerance = TOLERANCES[dtype]
    if thetas is None:
        thetas = space.sample(networks, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    thetas = thetas.double()
    _assert_function_kept(space, thetas, scale, inputs, module, seed)
    options: dict[str, Any] = {"output": output, "symmetries": symmetries, "thetas": thetas, "scale": scale, "dtype": dtype, "seed": seed}
    errors = equivariance_error(fn, space, **options)
    if failed := {kind: error for (kind, _), error in errors.items() if not error <= tolerance}:
        single = equivariance_error(fn, space, per_group=True, **options)
        groups = {key: error for key, error in single.items() if key[1] != "all" and not error <= tolerance}
        where = "".join(f"\n  {kind} of group {label!r}: {error:.1e}" for (kind, label), error in groups.items())
        raise AssertionError(
            f"{_name(fn)} is not {output} under {', '.join(failed)} of {space!r}: relative error {max(failed.values()):.1e}, "
            f"tolerance {tolerance:.0e} in {dtype}.{where}"
        )
    if control is not None:
        _assert_reacts(_prepare(fn, dtype), space, thetas, control, dtype, seed)
    return errors


def assert_invariant(
    fn: Function,
    space: WeightSpace,
    *,
    symmetries: Collection[str] | None = None,
    thetas: Tensor | None = None,
    networks: int = 4,
    scale: tuple[float, float] = (1e-4, 1e4),
    dtype: torch.dtype = torch.float64,
    tolerance: float | None = None,
    control: str | None = "uncoupled",
    inputs: Tensor | tuple[Any, ...] | None = None,
    module: nn.Module | None = None,
    seed: int = 0,
) -> dict[tuple[str, str], float]:
    """Fail unless a function of parameter graphs is invariant under the symmetries it claims.

    Three things are checked: the group elements leave the networks' own functions unchanged; the outputs agree for moved networks, per
    symmetry and for all of them at once; and, as a negative control, the function reacts to a change that is no symmetry.

    Args:
        fn: Model, layer or function of a batch, returning ``[B, ...]``; see :func:`equivariance_error`.
        space: The weight space of the networks.
        symmetries: Kinds to test (default: those that the function claims in its own ``symmetries`` attribute, else all; a model that
            claims permutations alone is tested for permutations alone).
        thetas: Networks ``[B, P]`` to use (default: random ones).
        networks: Number of networks drawn when ``thetas`` is not given.
        scale: Range of the positive factors.
        dtype: Dtype in which the function runs.
        tolerance: Largest relative error allowed (default: :data:`TOLERANCES` of the dtype).
        control: Negative control: ``"uncoupled"`` permutes the axes of every parameter independently, ``"noise"`` perturbs the weights (for
            functions that are invariant under uncoupled permutations too, and say so by an attribute ``ignores_uncoupled_permutations``),
            ``None`` leaves it out.
        inputs: Network inputs for the function check, a tensor or a tuple, those by name last (default: those of
            :meth:`WeightSpace.example_inputs`).
        module: The module that runs the networks (default: the space itself runs them).
        seed: Seed of networks, group elements and controls.

    Returns:
        The errors, as from :func:`equivariance_error`.

    Raises:
        AssertionError: Naming the symmetry and the neuron group that fail, or the control.
        ValueError: If the space does not say what its networks compute, and no module is given.

    Example:
        >>> from wsgraph import WeightSpace
        >>> assert_invariant(lambda batch: batch.thetas().square().sum(1), WeightSpace.mlp([2, 8, 1]), control="noise")
        Traceback (most recent call last):
        ...
        AssertionError: <lambda> is not invariant under scale, permutation x scale ...
    """
    __tracebackhide__ = True
    return _assert(fn, space, "invariant", symmetries, thetas, networks, scale, dtype, tolerance, control, inputs, module, seed)


def assert_equivariant(
    fn: Function,
    space: WeightSpace,
    *,
    symmetries: Collection[str] | None = None,
    thetas: Tensor | None = None,
    networks: int = 4,
    scale: tuple[float, float] = (1e-4, 1e4),
    dtype: torch.dtype = torch.float64,
    tolerance: float | None = None,
    control: str | None = "uncoupled",
    inputs: Tensor | tuple[Any, ...] | None = None,
    module: nn.Module | None = None,
    seed: int = 0,
) -> dict[tuple[str, str], float]:
    """Fail unless a function from parameter graphs to weights is equivariant under the symmetries it claims.

    The function returns weights as ``[B, P]``, ``[B, P, C]`` or :class:`~wsgraph.space.Blocks`. What is checked, and how, is as in
    :func:`assert_invariant`; the negative control compares the outputs of networks whose axes were permuted independently, which must
    differ.

    Args:
        fn: Model, layer or function of a batch, returning weights.
        space: The weight space of the networks.
        symmetries: Kinds to test (default: those that the function claims, else all).
        thetas: Networks ``[B, P]`` to use (default: random ones).
        networks: Number of networks drawn when ``thetas`` is not given.
        scale: Range of the positive factors.
        dtype: Dtype in which the function runs.
        tolerance: Largest relative error allowed (default: :data:`TOLERANCES` of the dtype).
        control: Negative control: ``"uncoupled"``, ``"noise"`` or ``None``.
        inputs: Network inputs for the function check, a tensor or a tuple, those by name last (default: those of
            :meth:`WeightSpace.example_inputs`).
        module: The module that runs the networks (default: the space itself runs them).
        seed: Seed of networks, group elements and controls.

    Returns:
        The errors, as from :func:`equivariance_error`.

    Raises:
        AssertionError: Naming the symmetry and the neuron group that fail, or the control.
        ValueError: If the space does not say what its networks compute, and no module is given.

    Example:
        >>> from wsgraph import WeightSpace
        >>> space = WeightSpace.mlp([2, 8, 1])
        >>> errors = assert_equivariant(lambda batch: batch.thetas() * 2, space)
        >>> max(errors.values()) < 1e-12
        True
    """
    __tracebackhide__ = True
    return _assert(fn, space, "equivariant", symmetries, thetas, networks, scale, dtype, tolerance, control, inputs, module, seed)
