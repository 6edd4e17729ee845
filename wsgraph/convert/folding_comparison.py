"""Whether a folded module answers as the original does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from wsgraph.convert.folding_weights import Fold, StaysError
from wsgraph.convert.tracing.recording import ModuleInputs, copied, first_line

__all__ = ["Comparison"]


class Comparison:
    """The outputs of a module beside those of its copies with folded norms."""

    def __init__(self, module: nn.Module, inputs: ModuleInputs, lowest_cast: torch.dtype | None) -> None:
        self.module, self.inputs = module, inputs
        floats = {t.dtype for t in chain(module.parameters(), module.buffers()) if t.is_floating_point()}
        lowest = min({*floats, lowest_cast or torch.float64}, key=lambda dtype: torch.finfo(dtype).bits)
        # Where a module computes in a lower precision whatever its weights have, nothing more can be asked of its outputs.
        self.tolerances: dict[bool, float] = {True: _TOLERANCE}
        if lowest_cast is not None and torch.finfo(lowest_cast).bits < 64:
            self.tolerances[False] = _tolerance(lowest)
        try:
            self.expected = {True: self.outputs((), double=True)}
        except Exception:  # a module that cannot run in float64 is compared as it is
            self.expected, self.tolerances = {}, {False: _tolerance(lowest)}
        if False in self.tolerances:
            self.expected[False] = self.outputs((), double=False)

    def confirmed(self, folds: Sequence[Fold]) -> dict[str, Fold | str]:
        """The folds by the name of the norm that change no output, and for others what they do."""
        kept: dict[str, Fold | str] = {}
        chosen: list[Fold] = []
        for fold in folds:
            try:
                fold.weights(self.module)
            except StaysError as error:
                kept[fold.norm] = str(error)
            else:
                chosen.append(fold)
        if self.objection(chosen) is not None:
            chosen, candidates = [], chosen
            for fold in candidates:
                objection = self.objection([*chosen, fold])
                if objection is None:
                    chosen.append(fold)
                else:
                    kept[fold.norm] = objection
        return kept

    def objection(self, folds: Sequence[Fold]) -> str | None:
        """What is wrong with a module whose norms are folded, ``None`` where nothing is."""
        text = None
        for double, tolerance in self.tolerances.items():
            try:
                outputs = self.outputs(folds, double=double)
            except Exception as error:
                text = f"without it the module does not run: {type(error).__name__}: {first_line(error)}".rstrip(".")
                continue
            difference = _difference(outputs, self.expected[double])
            if difference <= tolerance:
                return None
            size = f" (relative difference {difference:.0e})" if math.isfinite(difference) else ""
            text = f"the module's outputs change when it is folded{size}"
        return text

    def outputs(self, folds: Sequence[Fold], *, double: bool) -> list[Any]:
        """The outputs of a copy, always with the same random numbers."""
        module = copied(self.module)
        if double:
            module = module.double()
        for fold in folds:
            fold.apply(module)
        inputs = pytree.tree_map_only(Tensor, lambda x: x.double() if double and x.is_floating_point() else x.clone(), tuple(self.inputs))
        devices = {t.device for t in chain(module.parameters(), module.buffers()) if t.device.type == "cuda"}
        with torch.no_grad(), torch.random.fork_rng(sorted(devices, key=str)):
            torch.manual_seed(0)
            return pytree.tree_leaves(module(*inputs[0], **inputs[1]))


_TOLERANCE = 1e-9


def _tolerance(dtype: torch.dtype) -> float:
    return {64: _TOLERANCE, 32: 1e-4}.get(torch.finfo(dtype).bits, 0.1)


def _difference(outputs: Sequence[Any], expected: Sequence[Any]) -> float:
    """The largest difference of an output relative to its largest entry, infinite where they are not of one kind."""
    if len(outputs) != len(expected):
        return math.inf
    return max((_one_difference(one, other) for one, other in zip(outputs, expected, strict=True)), default=0.0)


def _one_difference(one: Any, other: Any) -> float:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return 0.0 if type(one) is type(other) and (one is other or one == other or one != one) else math.inf
    if one.shape != other.shape or one.dtype != other.dtype:
        return math.inf
    one, other = (tensor.to_dense() if tensor.is_sparse else tensor for tensor in (one, other))
    same = (one == other) | ((one != one) & (other != other))
    if bool(same.all()):
        return 0.0
    wide = torch.complex128 if one.is_complex() else torch.float64
    one, other = one.cpu().to(wide), other.cpu().to(wide)
    size = other.abs().nan_to_num(0, 0, 0).max()
    error = torch.where(same.cpu(), 0, (one - other).abs())
    return float((error / size).nan_to_num(math.inf, math.inf).max())
