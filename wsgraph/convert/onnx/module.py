"""ONNX files as modules that can be traced."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wsgraph.convert.errors import CheckpointError
from wsgraph.convert.onnx.graph import Graph, Input, read_graph
from wsgraph.convert.onnx.nodes import KNOWN, WEIGHTS, Step, UnsupportedError, to_array, to_tensor
from wsgraph.convert.tracing.recording import first_line

__all__ = ["OnnxModule", "OnnxWarning", "load_onnx"]

_SHAPES_KEPT = 16  # shapes of inputs for which what follows from them is kept


class OnnxWarning(UserWarning):
    """What was decided in reading an ONNX file: open sizes, names of weights; or that it has none.

    Example:
        >>> import warnings
        >>> warnings.filterwarnings("ignore", category=OnnxWarning)  # doctest: +SKIP
    """


def load_onnx(path: str | os.PathLike[str], shapes: Sequence[Sequence[int]] = ()) -> OnnxModule:
    """Read a network in the ONNX format as a module with its weights, to trace like any other.

    The floating point tensors of the file, initializers and constants alike, are its parameters
    (statistics of batch norms its buffers), under the names that they have there; numbers without
    dimensions, and what says how an operator works, are constants. Weights that are stored
    quantized are parameters as they are dequantized. Nothing in a file is left out: an operator, an
    attribute, a result or a version of an operator without an equal here is refused by name.

    Args:
        path: An ``.onnx`` file.
        shapes: Shapes of the inputs (default: those in the file, with 2 for every size that it
            leaves open). The module runs on other sizes too where the file leaves them open.

    Returns:
        A module in evaluation mode; ``example_inputs`` holds random inputs.

    Raises:
        ImportError: If the package ``onnx`` is not installed.
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is no ONNX model, has anything that has no equal here, or does
            not run on the shapes.

    Warns:
        OnnxWarning: If the file leaves sizes open, has names that no state dict can have, or holds
            no weights.

    Example:
        >>> module = load_onnx("model.onnx")                          # doctest: +SKIP
        >>> space = wsgraph.trace(module, *module.example_inputs)     # doctest: +SKIP
    """
    try:
        import onnx
    except ImportError:
        raise ImportError("Reading ONNX files needs the package onnx: pip install 'wsgraph[onnx]'.") from None
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r}.")
    try:
        model = onnx.load(path)
        _check(model, path)
    except Exception as error:  # protobuf's, onnx's and the file system's own
        raise CheckpointError(f"{str(path)!r} is not a complete ONNX model: {first_line(error)}") from error
    try:
        module = OnnxModule(read_graph(model, shapes), str(path))
    except CheckpointError:
        raise
    except UnsupportedError as error:
        advice = "" if "shapes" in str(error) else " Trace the module that it was exported from, with wsgraph.trace."
        raise CheckpointError(f"{str(path)!r} {str(error).rstrip('.')}.{advice}") from error
    except Exception as error:
        raise CheckpointError(f"{str(path)!r} cannot be read: {type(error).__name__}: {first_line(error)}") from error
    for message in module._remarks(given=bool(shapes)):
        warnings.warn(f"{str(path)!r} {message}", OnnxWarning, stacklevel=2)
    return module


def _check(model: Any, path: Path) -> None:
    """Let onnx check a file, but for shapes of inputs and outputs, which exporters leave out."""
    from onnx import ModelProto, checker

    try:
        checker.check_model(str(path))
    except checker.ValidationError as error:
        if "Field 'shape' of 'type' is required" not in str(error):
            raise
        shaped = ModelProto()
        shaped.CopyFrom(model)
        for value in (*shaped.graph.input, *shaped.graph.output):
            if value.type.WhichOneof("value") == "tensor_type":
                value.type.tensor_type.shape.SetInParent()
        checker.check_model(shaped)


class OnnxModule(nn.Module):
    """The operators of an ONNX graph, run by PyTorch.

    What depends on shapes alone is computed once for every shape of the inputs.

    A module that was moved to another floating point type computes in that type throughout:
    constants and casts of the file follow.

    Args:
        graph: What :func:`~wsgraph.convert.onnx.graph.read_graph` returned.
        path: The file, for messages.

    Returns:
        Called with a tensor for each input of the file, its output, or a tuple of its outputs.

    Raises:
        CheckpointError: If an operator does not run on the inputs.
        ValueError: If inputs are missing, or of sizes or types that the file does not take.

    Example:
        >>> module = load_onnx("model.onnx")          # doctest: +SKIP
        >>> outputs = module(*module.example_inputs)  # doctest: +SKIP
    """

    def __init__(self, graph: Graph, path: str) -> None:
        super().__init__()
        self._path = path
        self._inputs = graph.inputs
        self._outputs = graph.outputs
        self._keys: dict[str, str] = {}
        self._filed: dict[str, torch.dtype] = {}
        self._renamed: dict[str, str] = {}
        self._constants: dict[str, np.ndarray] = {}
        self._steps: list[Step] = []
        self._read_last: dict[int, list[str]] = {}  # values that nothing reads after a step
        self._fixed: set[str] = set()  # results that are known once the shapes of the inputs are
        self._by_shapes: dict[tuple[tuple[int, ...], ...], dict[str, Any]] = {}
        self.example_inputs = tuple(_example(given) for given in graph.inputs)
        self._fold(graph)
        self._run_first(graph)
        self.eval()

    @property
    def architecture(self) -> list[Any]:
        """All that the module computes but for its weights, as numbers, texts, bytes and lists."""
        inputs = [(given.name, str(given.dtype), given.declared) for given in self._inputs]
        constants = [(name, *_plain(value)) for name, value in sorted(self._constants.items())]
        steps = []
        for step in self._steps:
            attributes = [(name, _plain(value)) for name, value in sorted(step.attributes.items())]
            steps.append((step.operator.name, step.operator.versions, step.sources, step.targets, attributes))
        return [inputs, self._outputs, sorted(self._keys.items()), constants, steps]

    def _register(self, value: str, name: str, tensor: Tensor, *, buffer: bool) -> None:
        """Register a weight under its name, or one like it that is free; dots make modules."""
        path = name.split(".")
        if not all(path) or not _is_free(self, path):
            path = [name.replace(".", "_") or "weight"]
            while not _is_free(self, path):
                path[0] += "_"
        owner: nn.Module = self
        for part in path[:-1]:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        if buffer:
            owner.register_buffer(path[-1], tensor)
        else:
            owner.register_parameter(path[-1], nn.Parameter(tensor, requires_grad=False))
        self._keys[value] = ".".join(path)
        self._filed[value] = tensor.dtype
        if name != self._keys[value]:
            self._renamed[name] = self._keys[value]

    def _fold(self, graph: Graph) -> None:
        """Compute what is known without inputs, register weights, find what is known by shapes."""
        settings = _settings(graph)
        readers = Counter(name for step in graph.steps for name in step.sources)
        readers.update(self._outputs)
        weights = {name: array for name, array in graph.tensors.items() if _is_weight(array) and name not in settings}
        filed = {name: name for name in weights}  # names in the file, by names of values
        constants = {**graph.constants, **{name: array for name, array in graph.tensors.items() if name not in weights}}
        stored = {name for name, array in graph.tensors.items() if array.ndim}  # and what is made from them
        left = []
        for step in graph.steps:
            sources = [name for name in step.sources if name]
            if not step.operator.by_shape and all(name in constants for name in sources):
                results = [to_array(result) for result in self._run(step, {**constants}, None, None)]
                made = {name: result for name, result in zip(step.targets, results, strict=False) if name}
                constants.update(made)
                if any(name in stored and step.operator.kind(place) in WEIGHTS for place, name in enumerate(step.sources)):
                    stored.update(made)
            elif self._is_viewed_weight(step, weights, constants, readers):
                # Exporters store weights in other dimensions than those in which they are used, in
                # which their neurons lie.
                tensor = {step.sources[0]: to_tensor(weights.pop(step.sources[0]))}
                (weights[step.targets[0]],) = (to_array(result) for result in self._run(step, {**constants, **tensor}, None, None))
                filed[step.targets[0]] = filed.pop(step.sources[0])
            else:
                left.append(step)
        self._steps = left
        # Weights may be stored as whole numbers, and computed from them.
        for step in left:
            for place, name in enumerate(step.sources):
                if name in stored and name not in settings and step.operator.kind(place) in WEIGHTS and _is_weight(constants.get(name)):
                    weights[name], filed[name] = constants.pop(name), name
        statistics = {name for step in left for i, name in enumerate(step.sources) if step.operator.kind(i) == "statistic"}
        for name, array in weights.items():
            self._register(name, filed[name], to_tensor(array), buffer=name in statistics)
        read = {name for step in left for name in step.sources} | set(self._outputs)
        self._constants = {name: value for name, value in constants.items() if name in read}
        last = {name: place for place, step in enumerate(left) for name in step.sources if name and name not in self._outputs}
        for name, place in last.items():
            self._read_last.setdefault(place, []).append(name)
        for step in left:
            if step.operator.by_shape or all(name in self._constants or name in self._fixed for name in step.sources if name):
                self._fixed.update(name for name in step.targets if name)

    @staticmethod
    def _is_viewed_weight(step: Step, weights: Collection[str], constants: Collection[str], readers: Mapping[str, int]) -> bool:
        """Whether a step only gives a weight that nothing else reads other dimensions."""
        first, *others = step.sources or [""]
        return step.operator.is_view and first in weights and readers[first] == 1 and all(name in constants for name in others if name)

    def _run_first(self, graph: Graph) -> None:
        """Run the network once, and compare every value with what ONNX's inference says of it."""
        self._by_shapes = {}
        values: dict[str, Any] = {}
        with torch.no_grad():
            try:
                self._through(self.example_inputs, values, keep_all=True)
            except CheckpointError as error:
                shapes = ", ".join(f"{given.name} {list(given.shape)}" for given in graph.inputs)
                raise CheckpointError(
                    f"{error} It was run on inputs of the shapes {shapes or 'none'} (whole numbers as "
                    "0); choose others with shapes= (in the shell: --input)."
                ) from error
        for step in self._steps:
            for name in step.targets:
                dtype, sizes = graph.inferred.get(name, (None, None))
                value = values.get(name)
                if value is None:
                    continue
                value = to_tensor(value)
                wrong = dtype is not None and value.dtype != dtype
                wrong |= sizes is not None and (
                    len(sizes) != value.ndim or any(s not in (None, n) for s, n in zip(sizes, value.shape, strict=True))
                )
                if wrong:
                    expected = [("?" if size is None else size) for size in sizes] if sizes is not None else "any shape"
                    raise CheckpointError(
                        f"The operator {step.label} of {self._path!r} cannot be run: it gives "
                        f"{value.dtype} {list(value.shape)} for {name!r}, "
                        f"where ONNX's own inference says {dtype} {expected}."
                    )

    def _remarks(self, *, given: bool) -> list[str]:
        """What the file left open, and how it was decided."""
        remarks = []
        opened = [text for entry in self._inputs for text in entry.opened]
        if opened and not given:
            shapes = ", ".join(str(entry.shape) for entry in self._inputs)
            remarks.append(
                f"leaves sizes of its inputs open, fixed at loading: {'; '.join(opened)}. Choose them "
                f"with shapes=[{shapes}] (in the shell: --input)."
            )
        changed = [
            f"{entry.name!r} of {list(entry.declared)} as {list(entry.shape)}"
            for entry in self._inputs
            if any(isinstance(size, int) and size != fixed for size, fixed in zip(entry.declared, entry.shape, strict=True))
        ]
        if changed:
            remarks.append(
                f"fixes sizes that 'shapes' changed: {'; '.join(changed)}. What it computes for these sizes is not said in the file."
            )
        renamed = [f"{name!r} is {key!r}" for name, key in self._renamed.items()]
        if renamed:
            remarks.append(f"has weights whose names are taken, or cannot be keys of a state dict: {', '.join(renamed)}.")
        if not self._keys:
            remarks.append("holds no weights: its module computes a function, of which there is nothing to trace.")
        return remarks

    def _weights(self) -> tuple[dict[str, Tensor], torch.dtype | None]:
        """The weights by name, and the floating point type that they were moved to."""
        weights = {}
        for name, key in self._keys.items():
            path, _, last = key.rpartition(".")
            weights[name] = getattr(self.get_submodule(path), last)
        now = [tensor.dtype for tensor in weights.values()]
        if now == list(self._filed.values()):
            return weights, None
        working = now[0]
        for dtype in now:
            working = torch.promote_types(working, dtype)
        return weights, working

    def _through(self, inputs: Sequence[Tensor], values: dict[str, Any], *, keep_all: bool = False) -> None:
        """Compute all values, and keep those that follow from the shapes of the inputs."""
        weights, working = self._weights()
        device = next((tensor.device for tensor in (*inputs, *weights.values())), None)
        shapes = tuple(tuple(int(size) for size in x.shape) for x in inputs)
        kept = self._by_shapes.get(shapes)
        if kept is None and self._fixed and torch.compiler.is_exporting():
            raise RuntimeError(
                "Run the module once on inputs of these shapes before it is exported: what follows from shapes is not known yet."
            )
        values.update(self._constants)
        values.update(weights)
        values.update(zip((given.name for given in self._inputs), inputs, strict=True))
        fixed: dict[str, Any] = {}
        for place, step in enumerate(self._steps):
            is_fixed = any(name in self._fixed for name in step.targets)
            if kept is not None and is_fixed:
                values.update((name, kept[name]) for name in step.targets if name)
                continue
            results = self._run(step, values, working, device)
            if is_fixed:
                results = [to_array(result) for result in results]
                fixed.update(zip(step.targets, results, strict=False))
            values.update(zip(step.targets, results, strict=False))
            for name in self._read_last.get(place, ()) if not keep_all else ():
                del values[name]
        if kept is None and self._fixed:
            while len(self._by_shapes) >= _SHAPES_KEPT:
                del self._by_shapes[next(iter(self._by_shapes))]
            self._by_shapes[shapes] = fixed

    def _run(self, step: Step, values: dict[str, Any], working: torch.dtype | None, device: torch.device | None) -> list[Any]:
        try:
            return step.run(values, working, device)
        except Exception as error:
            if torch.compiler.is_exporting():
                raise
            raise CheckpointError(f"The operator {step.label} of {self._path!r} cannot be run: {first_line(error)}") from error

    def forward(self, *inputs: Tensor) -> Any:
        self._check(inputs)
        values: dict[str, Any] = {}
        self._through(inputs, values)
        working = self._weights()[1]
        outputs = tuple(to_tensor(values[name], working) for name in self._outputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def _check(self, inputs: Sequence[Tensor]) -> None:
        names = ", ".join(given.name for given in self._inputs)
        if len(inputs) != len(self._inputs):
            raise ValueError(f"Expected the inputs {names} of {self._path!r} (got {len(inputs)} tensors).")
        for given, x in zip(self._inputs, inputs, strict=True):
            if not isinstance(x, Tensor):
                raise TypeError(f"Expected the input {given.name!r} of {self._path!r} as a tensor (got {type(x).__name__}).")
            if x.is_floating_point() != given.dtype.is_floating_point or (x.dtype == torch.bool) != (given.dtype == torch.bool):
                raise ValueError(f"Expected the input {given.name!r} of {self._path!r} in the type {given.dtype} (got {x.dtype}).")
            free = [not isinstance(size, int) for size in given.declared]
            if x.ndim != len(given.shape) or any(
                n != size and not open_ for n, size, open_ in zip(x.shape, given.shape, free, strict=True)
            ):
                wanted = [
                    size if not open_ else given.declared[i] or "any" for i, (size, open_) in enumerate(zip(given.shape, free, strict=True))
                ]
                raise ValueError(
                    f"Expected the input {given.name!r} of {self._path!r} in the shape {wanted} (got "
                    f"{list(x.shape)}); the file fixes it. Other sizes can be asked for with "
                    "load_onnx(..., shapes=)."
                )

    def extra_repr(self) -> str:
        count = sum(not set(step.targets) & self._fixed for step in self._steps)
        return f"{self._path}, {count} operators"


def _plain(value: Any) -> Any:
    """A constant or attribute as numbers, texts, bytes and lists."""
    if isinstance(value, Tensor):
        value = to_array(value)
    if isinstance(value, np.ndarray | np.generic):
        return [value.dtype.str, list(value.shape), value.tobytes()]
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def _is_weight(array: np.ndarray | None) -> bool:
    return array is not None and array.ndim > 0 and getattr(torch, str(array.dtype)).is_floating_point


def _settings(graph: Graph) -> set[str]:
    """Values that say how operators work, and all that they are made from without inputs."""
    flowing = {given.name for given in graph.inputs}
    for step in graph.steps:
        if not step.operator.by_shape and flowing & set(step.sources):
            flowing.update(step.targets)
    kinds: dict[str, set[str]] = {}
    for step in graph.steps:
        for place, name in enumerate(step.sources):
            kinds.setdefault(name, set()).add(step.operator.kind(place))
    # What has to be known is, whatever else reads it; other settings may be weights elsewhere.
    found = {name for name, read in kinds.items() if name not in flowing and (read & {*KNOWN} or not read & {*WEIGHTS})}
    for step in reversed(graph.steps):
        if found & set(step.targets) and not step.operator.by_shape:
            found.update(name for name in step.sources if name not in flowing)
    return found


_EMPTY = nn.Module()


def _is_free(owner: nn.Module, path: Sequence[str]) -> bool:
    """Whether a module can have a parameter under a path."""
    for i, part in enumerate(path):
        inner = owner._modules.get(part) if i < len(path) - 1 else None
        if inner is None:
            return not hasattr(owner, part) and not any(hasattr(_EMPTY, name) for name in path[i + 1 :])
        owner = inner
    return False


def _example(given: Input) -> Tensor:
    if given.dtype.is_floating_point:
        return torch.randn(given.shape, generator=torch.Generator().manual_seed(0)).to(given.dtype)
    return torch.zeros(given.shape, dtype=given.dtype)
