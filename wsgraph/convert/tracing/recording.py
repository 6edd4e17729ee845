"""Record what a module computes with ``torch.export``, and say what is wrong with modules that cannot be recorded."""

from __future__ import annotations

import copy
import io
import logging
import traceback
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from wsgraph.space.inputs import shown

__all__ = ["ModuleInputs", "TraceError", "check_module", "copied", "export", "first_line"]


class TraceError(ValueError):
    """A module cannot be traced into a weight space.

    Example:
        >>> import torch
        >>> from wsgraph import trace
        >>> trace(torch.nn.Dropout(), torch.ones(1, 3))
        Traceback (most recent call last):
        ...
        TraceError: The module is in training mode (the module itself ...): call module.eval() first.
    """


class ModuleInputs(NamedTuple):
    """What a module is called with."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> ModuleInputs:
        """Inputs by position and by name.

        Raises:
            TraceError: If those by name are no dict of inputs by name.
        """
        if kwargs is not None and not (isinstance(kwargs, Mapping) and all(isinstance(name, str) for name in kwargs)):
            got = f"the names {list(kwargs)!r:.60}" if isinstance(kwargs, Mapping) else type(kwargs).__name__
            raise TraceError(f"Expected 'kwargs' to be a dict of inputs by name, such as {{'mask': mask}} (got {got}).")
        return cls(args, dict(kwargs or {}))

    @classmethod
    def carried(cls, inputs: tuple[Any, ...], keywords: tuple[str, ...]) -> ModuleInputs:
        """Inputs in one tuple, those by name behind the others.

        Raises:
            TraceError: If there are fewer inputs than names.
        """
        count = len(inputs) - len(keywords)
        if count < 0:
            raise TraceError(f"Expected inputs by name, {', '.join(keywords)}, behind the others (got {len(inputs)} inputs).")
        return cls(inputs[:count], dict(zip(keywords, inputs[count:], strict=True)))

    def call(self, module: nn.Module) -> Any:
        """What the module returns."""
        return module(*self.args, **self.kwargs)

    def __str__(self) -> str:
        named = (f"{name}={shown([value], dtypes=True)}" for name, value in self.kwargs.items())
        return ", ".join([*([shown(self.args, dtypes=True)] if self.args else []), *named])


def check_module(module: nn.Module) -> None:
    """Raise a clear error for modules that cannot be run as they are."""
    if not isinstance(module, nn.Module):
        raise TraceError(f"Expected 'module' to be a torch.nn.Module (got {type(module).__name__}). For a state dict use from_state_dict.")
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if is_lazy(tensor):
            raise TraceError(f"Parameter {name!r} has no shape yet: run the lazy module once on its inputs, then trace it.")
        if tensor.is_meta:
            raise TraceError(f"Parameter {name!r} is on the meta device: give the module memory with module.to_empty(device='cpu') first.")
        if tensor.is_complex():
            raise TraceError(f"Parameter {name!r} is complex; weight spaces hold real numbers.")
    for name, entry in module.state_dict().items():
        if not isinstance(entry, Tensor):
            raise TraceError(f"The state dict entry {name!r} is no tensor ({type(entry).__name__}); a weight space holds tensors alone.")
    if training := [name or "the module itself" for name, part in module.named_modules() if part.training]:
        raise TraceError(
            f"The module is in training mode ({training[0]} and {len(training) - 1} more), where dropout and batch statistics change its "
            "function: call module.eval() first."
        )


def copied(module: nn.Module) -> nn.Module:
    """A deep copy of a module, also of one that holds tensors with a history, as weight norm's hook does.

    Raises:
        TraceError: If the module holds something that cannot be copied.
    """
    tensors = [entry for part in module.modules() for entry in vars(part).values() if isinstance(entry, Tensor)]
    memo: dict[int, Any] = {id(tensor): tensor.detach().clone() for tensor in tensors if not tensor.is_leaf}
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:
        raise TraceError(f"The module cannot be copied: {type(error).__name__}: {first_line(error)}") from error


def export(module: nn.Module, inputs: ModuleInputs) -> Any:
    """The module's operators as ``torch.export`` records them.

    The module itself is run only where it cannot be recorded: that says what is wrong with it, and some
    modules keep what their first call makes, which recording must not assign.

    Raises:
        TraceError: If the module does not run on the inputs, or its control flow depends on their values.
    """
    registered = _registered(module)
    with suppress(Exception):
        program, made = _recorded(module, inputs)
        if made == registered:
            if _may_not_run(program):
                with _restored(module):
                    _run(module, inputs)
            return program
    _run(module, inputs)  # which makes what is made in the first call
    try:
        return _recorded(module, inputs)[0]
    except Exception as error:
        raise TraceError(
            f"The module runs, but torch.export cannot record it: {first_line(error)}{_place(error)} Control flow that depends on the "
            "values of tensors, or Python code outside tensors, is the usual cause: write it with torch.where, or without it. The weights "
            "of a plain chain of layers can be read without running the module, with wsgraph.from_state_dict."
        ) from error


def _may_not_run(program: Any) -> bool:
    """Whether an operator does not run on tensors of the dtypes that it was recorded on, all of them 0.

    Recording looks at shapes: a linear layer of float32 is recorded on integers, and on numbers of float64.
    """
    seen = set()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for part in program.graph_module.modules():
            for node in part.graph.nodes if isinstance(part, fx.GraphModule) else ():
                tensors = [source.meta.get("val") for source in node.all_input_nodes]
                dtypes = tuple(tensor.dtype for tensor in tensors if isinstance(tensor, Tensor))
                alike = len(set(dtypes)) == 1 and dtypes[0].is_floating_point
                if not isinstance(node.target, torch._ops.OpOverload) or not dtypes or alike or (node.target, dtypes) in seen:
                    continue
                seen.add((node.target, dtypes))
                try:
                    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: _zeros(source.meta["val"]))
                    node.target(*args, **kwargs)
                except Exception:
                    return True
    return False


def _zeros(value: Any) -> Any:
    """A tensor of zeros like a recorded one, with no more memory than that where it is expanded."""
    if not isinstance(value, Tensor):
        return value
    own = [size if step else min(size, 1) for size, step in zip(value.shape, value.stride(), strict=True)]
    return torch.zeros(own, dtype=value.dtype, device=value.device).expand(value.shape)


def _registered(module: nn.Module) -> set[str]:
    """Names of all parameters and buffers."""
    tensors = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    return {name for name, _ in tensors}


def _recorded(module: nn.Module, inputs: ModuleInputs) -> tuple[Any, set[str]]:
    """The recorded program, and the names of what was registered at its end; the module is left as it was."""
    fast_path, disabled = torch.backends.mha.get_fastpath_enabled(), logging.root.manager.disable
    torch.backends.mha.set_fastpath_enabled(False)  # which does a whole transformer layer in one operator
    logging.disable(logging.ERROR)  # what goes wrong is said in an error
    try:
        with _restored(module), warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            return torch.export.export(module, inputs.args, inputs.kwargs, strict=False), _registered(module)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        logging.disable(disabled)


@contextmanager
def _restored(module: nn.Module) -> Iterator[None]:
    """Takes back what a forward function assigns and appends: recording leaves tensors without values there."""
    before = [(vars(part), dict(vars(part))) for part in module.modules()]
    contents = [(held, copy.copy(held)) for _, attributes in before for held in attributes.values() if type(held) in _CONTAINERS]
    try:
        yield
    finally:
        for attributes, kept in before:
            attributes.clear()
            attributes.update(kept)
        for held, kept in contents:
            held.clear()
            held.extend(kept) if isinstance(held, list) else held.update(kept)


_CONTAINERS = (list, dict, set, OrderedDict)


def _run(module: nn.Module, inputs: ModuleInputs) -> None:
    """Run the module on the inputs, which leaves its buffers as they are."""
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            inputs.call(module)
            for name, buffer in module.named_buffers():  # a forward function may count its calls
                if name in buffers and not torch.equal(buffer, buffers[name]):
                    buffer.copy_(buffers[name])
    except Exception as error:
        dtypes = {str(entry.dtype).removeprefix("torch.") for entry in module.state_dict().values() if entry.is_floating_point()}
        weights = f"Its weights are {' and '.join(sorted(dtypes))}. " if dtypes else ""
        raise TraceError(
            f"The module does not run on the example inputs ({inputs}): {type(error).__name__}: {first_line(error)} {weights}Pass "
            "inputs as you would call the module, of the shapes and dtypes that it takes, and those by name as kwargs={...}."
        ) from error


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its kind where it has none."""
    text = str(error).strip().splitlines()
    return (text[0].strip() if text else type(error).__name__).rstrip(".") + "."


def _place(error: BaseException) -> str:
    """The last line of the module's own code in a traceback."""
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if "/torch/" not in frame.filename and "wsgraph/" not in frame.filename
    ]
    return f" ({frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line})" if frames else ""
