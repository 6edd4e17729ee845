"""What a network computes, as data: operators by name from a fixed list, in order, and what each one reads."""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from wsgraph.space.forms import ALWAYS, BATCHED, DIFFERENTIABLE
from wsgraph.space.program_operators import Dtype, Reference, StepError, check_arguments, operator_named

__all__ = ["MOST_ENTRIES", "Constant", "Program", "ProgramInput", "Step", "rebuilt", "references", "replaced"]

_MOST_STEPS = 1_000_000
_MOST_BYTES = 2**30  # of all constants of a program together
MOST_ENTRIES = 2**34  # of one result


@dataclass(frozen=True)
class ProgramInput:
    """A tensor that the network is called with.

    Args:
        name: What it is called in the network's ``forward``.
        shape: Its shape when the network was traced.
        dtype: Its dtype then, such as ``"float32"``.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def is_floating_point(self) -> bool:
        """Whether it holds floating point numbers."""
        return bool(getattr(torch, self.dtype).is_floating_point)


@dataclass(frozen=True)
class Constant:
    """A tensor that belongs to the architecture: a causal mask, a table of frequencies.

    Args:
        shape: Its shape.
        dtype: Its dtype, and whether it follows that of the weights.
        data: Base64 text of the compressed bytes of its entries, little-endian and row by row, or of a single one that all are equal to.
    """

    shape: tuple[int, ...]
    dtype: Dtype
    data: str

    @classmethod
    def of(cls, tensor: Tensor, dtype: Dtype) -> Constant:
        """The constant that holds a tensor."""
        entries = tensor.detach().cpu().contiguous().flatten()
        first = entries[:1]
        if len(entries) > 1 and bool((entries.view(torch.uint8).view(len(entries), -1) == first.view(torch.uint8)).all()):
            entries = first
        data = entries.view(torch.uint8).numpy().tobytes() if len(entries) else b""
        return cls(tuple(tensor.shape), dtype, base64.b64encode(zlib.compress(data, 9)).decode())

    @property
    def num_bytes(self) -> int:
        """How much memory its entries take."""
        return math.prod(self.shape) * int(getattr(torch, self.dtype.name).itemsize)

    def tensor(self) -> Tensor:
        """The tensor itself, in its own dtype.

        Raises:
            ValueError: If the text does not hold its entries.
        """
        own: torch.dtype = getattr(torch, self.dtype.name)
        try:
            reader = zlib.decompressobj()
            data = reader.decompress(base64.b64decode(self.data, validate=True), self.num_bytes + 1)
        except (ValueError, zlib.error) as error:
            raise ValueError(f"A constant of the network's program cannot be read ({error}).") from None
        if len(data) == self.num_bytes:
            return torch.frombuffer(bytearray(data), dtype=own).view(self.shape) if data else torch.zeros(self.shape, dtype=own)
        if len(data) == own.itemsize:
            return torch.frombuffer(bytearray(data), dtype=own).expand(self.shape)
        raise ValueError(
            f"A constant of the network's program holds {len(data)} bytes; its shape {list(self.shape)} and {self.dtype.name} take "
            f"{self.num_bytes}."
        )


@dataclass(frozen=True)
class Step:
    """One operator and what it reads.

    Args:
        operator: ``"library::operator"``, as ``torch.ops`` knows it.
        overload: Which form of it, such as ``"default"``.
        arguments: Arguments by name, other than those at their defaults: numbers, text, booleans, :class:`Dtype`, :class:`Reference`, or
            tuples of such.
    """

    operator: str
    overload: str
    arguments: tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Program:
    """What a traced network computes: its operators in order, as data that holds no code.

    An operator is named, and looked up in a fixed list of functions of tensors. See :meth:`wsgraph.WeightSpace.evaluate`, which runs it.

    Args:
        inputs: The tensors that the network is called with.
        call: How they lie among the arguments of the call, those by name behind the others: a tuple of
            :class:`Reference`, numbers, text, ``None``, or tuples, lists (``("list", ...)``) and dicts
            (``("dict", (key, value), ...)``) of such.
        steps: The operators.
        outputs: What the network returns, written like ``call``.
        constants: Tensors that are neither inputs nor parameters.
        keywords: Names of the last arguments of the call, which the module takes by name.

    Raises:
        ValueError: If an operator is not in the list, lacks an argument or has an unknown one, reads what comes later, or sizes are absurd.

    Example:
        >>> import torch, wsgraph
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 2)).eval()
        >>> program = wsgraph.trace(net, torch.randn(3, 4)).program
        >>> [step.operator for step in program.steps]
        ['aten::linear', 'aten::layer_norm', 'aten::linear']
        >>> Program.from_data(program.to_data()) == program
        True
    """

    inputs: tuple[ProgramInput, ...]
    call: Any
    steps: tuple[Step, ...]
    outputs: Any
    constants: tuple[Constant, ...] = ()
    keywords: tuple[str, ...] = ()

    _STRUCTURES: ClassVar[tuple[str, ...]] = ("tuple", "list", "dict")

    def __post_init__(self) -> None:
        if len(self.steps) > _MOST_STEPS:
            raise ValueError(f"A program has at most {_MOST_STEPS:,} steps (got {len(self.steps):,}).")
        for given in self.inputs:
            _check_shape(given.shape, f"input {given.name!r}")
            _check_dtype(given.dtype)
        for constant in self.constants:
            _check_shape(constant.shape, "a constant")
            _check_dtype(constant.dtype.name)
        if (size := sum(constant.num_bytes for constant in self.constants)) > _MOST_BYTES:
            raise ValueError(f"The constants of a program take at most {_MOST_BYTES:,} bytes (got {size:,}).")
        arguments = len(self.call) - 1 if isinstance(self.call, tuple) else 0
        if len(set(self.keywords)) < len(self.keywords) or len(self.keywords) > arguments:
            raise ValueError(f"Expected distinct names of at most {arguments} arguments of the call (got {self.keywords!r:.80}).")
        for i, step in enumerate(self.steps):
            check_arguments(step.operator, step.overload, step.arguments)
            for reference in references(step.arguments):
                self._check_reference(reference, i)
        for reference in references(self.outputs):
            self._check_reference(reference, len(self.steps))
        for reference in references(self.call):
            self._check_reference(reference, 0)

    def _check_reference(self, reference: Reference, step: int) -> None:
        where = f"step {step} of the program" if step < len(self.steps) else "the program's outputs"
        counts = {"input": len(self.inputs), "constant": len(self.constants), "step": min(step, len(self.steps))}
        if reference.kind == "parameter" and isinstance(reference.key, str):
            return
        known = reference.kind in counts and type(reference.key) is int and type(reference.item) in (int, type(None))
        if not known:
            raise ValueError(f"Expected references to inputs, parameters, constants and steps (got {reference} in {where}).")
        if not 0 <= int(reference.key) < counts[reference.kind] or (reference.item or 0) < 0:
            raise ValueError(f"{where} reads {reference.kind} {reference.key}, but has {counts[reference.kind]} of them before it.")

    @cached_property
    def _hash(self) -> int:
        return hash((self.inputs, self.call, self.steps, self.outputs, self.constants, self.keywords))

    def __hash__(self) -> int:
        return self._hash

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters that it reads, in order."""
        arguments = (*(step.arguments for step in self.steps), self.outputs)
        return tuple(dict.fromkeys(str(r.key) for given in arguments for r in references(given) if r.kind == "parameter"))

    def renamed(self, parameters: Mapping[str, str]) -> Program:
        """The program with other names of its parameters, and its inputs called by their positions."""

        def rename(reference: Reference) -> Reference:
            return Reference("parameter", parameters[str(reference.key)]) if reference.kind == "parameter" else reference

        inputs = tuple(ProgramInput(str(i), given.shape, given.dtype) for i, given in enumerate(self.inputs))
        steps = tuple(Step(step.operator, step.overload, replaced(step.arguments, rename)) for step in self.steps)
        return Program(inputs, self.call, steps, replaced(self.outputs, rename), self.constants, self.keywords)

    # == Running ==

    @cached_property
    def _tensors(self) -> tuple[Tensor, ...]:
        return tuple(constant.tensor() for constant in self.constants)

    @cached_property
    def _compiled(self) -> list[tuple[tuple[Callable[..., Any], ...], dict[str, Any], tuple[int, ...]]]:
        """Every step's functions, its arguments, and the steps that nothing reads after it.

        There are three functions: for one network, for one whose weights need gradients, and for several.
        """
        last: dict[int, int] = {}
        for i, step in enumerate(self.steps):
            last.update({int(r.key): i for r in references(step.arguments) if r.kind == "step"})
        for r in references(self.outputs):
            last.pop(int(r.key), None) if r.kind == "step" else None
        freed: dict[int, list[int]] = {}
        for key, i in last.items():
            freed.setdefault(i, []).append(key)
        compiled: list[tuple[tuple[Callable[..., Any], ...], dict[str, Any], tuple[int, ...]]] = []
        for i, step in enumerate(self.steps):
            name = f"{step.operator}.{step.overload}"
            function = ALWAYS.get(name, operator_named(step.operator, step.overload))
            differentiable = DIFFERENTIABLE.get(name, function)
            compiled.append(((function, differentiable, BATCHED.get(name, differentiable)), dict(step.arguments), tuple(freed.get(i, ()))))
        return compiled

    def run(
        self,
        parameters: Mapping[str, Tensor],
        inputs: Sequence[Tensor],
        dtype: torch.dtype,
        *,
        batched: bool = False,
        look: Callable[[int, Any], None] | None = None,
        instead: Callable[[int, Callable[..., Any], dict[str, Any]], Any] | None = None,
    ) -> Any:
        """Run one network.

        Args:
            parameters: Its parameters by name, all of one floating dtype.
            inputs: The tensors of its inputs, in order.
            dtype: The dtype of its weights, which dtypes of the program follow.
            batched: Whether it runs within :func:`torch.func.vmap`.
            look: Called with the number and results of every step.
            instead: Called in place of every step, with its number, its function and its arguments by name; what it
                returns are the results.

        Returns:
            What the network returns, written as :attr:`outputs`, with tensors in place of references.

        Raises:
            StepError: If an operator does not run on what it is given, such as tokens beyond an embedding table.
        """
        device = next(iter(parameters.values())).device if parameters else inputs[0].device if inputs else torch.device("cpu")
        constants = [
            tensor.to(device=device, dtype=constant.dtype.resolve(dtype))
            for constant, tensor in zip(self.constants, self._tensors, strict=True)
        ]
        results: dict[int, Any] = {}
        mode = 2 if batched else int(torch.is_grad_enabled() and any(tensor.requires_grad for tensor in parameters.values()))

        def read(argument: Any) -> Any:
            if isinstance(argument, Reference):
                if argument.kind == "step":
                    result = results[argument.key]  # type: ignore[index]
                    return result if argument.item is None else result[argument.item]
                if argument.kind == "parameter":
                    return parameters[argument.key]  # type: ignore[index]
                return (inputs if argument.kind == "input" else constants)[argument.key]  # type: ignore[index]
            if isinstance(argument, Dtype):
                return argument.resolve(dtype)
            return [read(item) for item in argument] if isinstance(argument, tuple) else argument

        for i, (functions, arguments, freed) in enumerate(self._compiled):
            function = functions[mode]
            try:
                given = {name: read(argument) for name, argument in arguments.items()}
                result = function(**given) if instead is None else instead(i, function, given)
            except (torch.OutOfMemoryError, MemoryError):
                raise
            except Exception as error:
                text = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise StepError(
                    f"Step {i} of the network's program, {self.steps[i].operator}, does not run on these inputs: {text}"
                ) from error
            results[i] = result
            if look is not None:
                look(i, result)
            for key in freed:
                del results[key]
        return replaced(self.outputs, read)

    def arguments(self, leaves: Sequence[Any]) -> tuple[Any, ...]:
        """What the module is called with, by name behind the others, when its inputs are the given ones in order."""
        made = rebuilt(self.call, lambda reference: leaves[int(reference.key)])
        assert isinstance(made, tuple)
        return made

    # == Text ==

    def to_data(self) -> dict[str, Any]:
        """The program as lists, dicts, numbers and text, which :meth:`from_data` reads."""
        return {
            "inputs": [[given.name, list(given.shape), given.dtype] for given in self.inputs],
            "call": _written(self.call),
            "steps": [[step.operator, step.overload, {name: _written(a) for name, a in step.arguments}] for step in self.steps],
            "outputs": _written(self.outputs),
            "constants": [[list(constant.shape), _written(constant.dtype), constant.data] for constant in self.constants],
            **({"keywords": list(self.keywords)} if self.keywords else {}),
        }

    @classmethod
    def from_data(cls, data: Any) -> Program:
        """Read what :meth:`to_data` wrote, as it comes out of a file that anybody may have written.

        Raises:
            ValueError: If it is no program.
        """
        if not isinstance(data, dict) or data.keys() - {"keywords"} != {"inputs", "call", "steps", "outputs", "constants"}:
            raise ValueError("Expected a program with inputs, call, steps, outputs and constants.")
        try:
            inputs = tuple(ProgramInput(_text(name), tuple(shape), _text(dtype)) for name, shape, dtype in _rows(data["inputs"]))
            steps = tuple(
                Step(_text(operator), _text(overload), tuple((_text(name), _read(argument)) for name, argument in arguments.items()))
                for operator, overload, arguments in _rows(data["steps"])
            )
            constants = tuple(Constant(tuple(shape), _dtype(dtype), _text(text)) for shape, dtype, text in _rows(data["constants"]))
            keywords = tuple(map(_text, data.get("keywords", ())))
            program = cls(inputs, _read(data["call"]), steps, _read(data["outputs"]), constants, keywords)
            hash(program)
        except (AttributeError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"The program of the network is not written as one ({type(error).__name__}: {error}).") from None
        for constant in program.constants:
            constant.tensor()
        return program


# == What steps read ==


def references(argument: Any) -> Iterator[Reference]:
    """All references in an argument or a structure."""
    if isinstance(argument, Reference):
        yield argument
    elif isinstance(argument, tuple):
        for item in argument:
            yield from references(item)


def replaced(argument: Any, change: Callable[[Reference], Any]) -> Any:
    """An argument or a structure with something else in place of its references."""
    if isinstance(argument, Reference):
        return change(argument)
    return tuple(replaced(item, change) for item in argument) if isinstance(argument, tuple) else argument


def _check_shape(shape: Any, what: str) -> None:
    if not isinstance(shape, tuple) or not all(type(size) is int and size >= 0 for size in shape) or math.prod(shape) > MOST_ENTRIES:
        raise ValueError(f"Expected the shape of {what} as sizes of a tensor of at most {MOST_ENTRIES:,} entries (got {shape!r:.80}).")


_DTYPES = (
    "float64 float32 float16 bfloat16 complex64 complex128 int64 int32 int16 int8 uint8 uint16 uint32 uint64 bool float8_e4m3fn float8_e5m2"
)


def _check_dtype(name: Any) -> None:
    if not isinstance(name, str) or name not in _DTYPES.split():
        raise ValueError(f"Expected a dtype of torch such as 'float32' in the program (got {name!r:.80}).")


def rebuilt(structure: Any, change: Callable[[Any], Any]) -> Any:
    """The tuples, lists and dicts that a structure stands for, with something else in place of what is neither.

    ``change`` is called with references and tensors alone; numbers and text stay.
    """
    if isinstance(structure, (Reference, Tensor)):
        return change(structure)
    if not isinstance(structure, tuple):
        return structure
    kind, *items = structure
    if kind == "dict":
        return {key: rebuilt(item, change) for key, item in items}
    made = [rebuilt(item, change) for item in items]
    return made if kind == "list" else tuple(made)


# == Data ==


def _written(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, Reference):
        return {value.kind: value.key} | ({} if value.item is None else {"item": value.item})
    if isinstance(value, Dtype):
        return {"dtype": value.name} | ({"follows": value.follows} if value.follows else {})
    if isinstance(value, tuple):
        return [_written(item) for item in value]
    if isinstance(value, complex):
        return {"complex": [_written(value.real), _written(value.imag)]}
    if isinstance(value, float) and not math.isfinite(value):
        return {"number": str(value)}
    return value


def _read(value: Any) -> Any:
    """What :func:`_written` wrote."""
    if isinstance(value, list):
        return tuple(_read(item) for item in value)
    if not isinstance(value, dict):
        return value
    if "dtype" in value:
        return _dtype(value)
    if value.keys() == {"number"}:
        return float({"inf": "inf", "-inf": "-inf", "nan": "nan"}[value["number"]])
    if value.keys() == {"complex"}:
        real, imaginary = (_read(entry) for entry in value["complex"])
        return complex(real, imaginary)
    (kind, key), *more = value.items()
    if kind not in ("input", "parameter", "constant", "step") or (more and (len(more) > 1 or more[0][0] != "item")):
        raise ValueError(f"Expected a reference in the program (got {value!r:.80}).")
    return Reference(kind, key, more[0][1] if more else None)


def _dtype(value: Any) -> Dtype:
    if not isinstance(value, dict) or not value.keys() <= {"dtype", "follows"} or value.get("follows", "") not in ("", "always", "up"):
        raise ValueError(f"Expected a dtype in the program (got {value!r:.80}).")
    _check_dtype(value.get("dtype"))
    return Dtype(value["dtype"], value.get("follows", ""))


def _rows(value: Any) -> list[list[Any]]:
    if not isinstance(value, list) or not all(isinstance(row, list) and len(row) == 3 for row in value):
        raise ValueError(f"The program of the network is not written as one: expected lists of three entries (got {value!r:.80}).")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"Expected text in the program (got {value!r:.80}).")
    return value
