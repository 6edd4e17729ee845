"""What the neurons of a traced network answer, as it runs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx.node import map_aggregate
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves

from wsgraph.convert.tracing.arrays import numbered
from wsgraph.convert.tracing.labels import Label, Value, expressions_of, neurons_of
from wsgraph.convert.tracing.lowering import lower
from wsgraph.convert.tracing.programmed import ProgramModule
from wsgraph.convert.tracing.recording import ModuleInputs, check_module, export
from wsgraph.convert.tracing.tracer import interpret, saved_names
from wsgraph.convert.tracing.tying import tied_keys
from wsgraph.space import SpaceMismatchError, WeightSpace
from wsgraph.space.dtypes import flat_dtype
from wsgraph.space.evaluate import calls_of
from wsgraph.space.forms import BATCHED

__all__ = ["TracedAnswers"]


class TracedAnswers:
    """A module prepared to say what its neurons answer.

    Args:
        module: The module that the space was traced from.
        inputs: What it is called with, by name behind the others.
        space: Its weight space.
        samples: How many answers per neuron are kept at most, evenly spaced over inputs and positions.
        several: The tensors among the inputs of several calls, each behind a first dimension over the calls (scalars without), where
            the answers to these are wanted instead.

    Raises:
        SpaceMismatchError: If the module is not of that space.
        TraceError: As :func:`wsgraph.trace`.
    """

    def __init__(
        self,
        module: nn.Module,
        inputs: tuple[Any, ...],
        space: WeightSpace,
        samples: int,
        *,
        several: Sequence[Tensor] | None = None,
    ) -> None:
        check_module(module)
        by_name = space.program.keywords if space.program is not None and not isinstance(module, ProgramModule) else ()
        self.program, self.space, self.samples = export(module, ModuleInputs.carried(inputs, by_name)), space, samples
        self.inputs: list[Any] = tree_leaves(inputs) if several is None else list(several)
        self.in_calls = several is not None
        self.values: dict[Any, Value] = {}
        self.keys = tied_keys(module)
        state = {name: tensor for name, tensor in module.state_dict().items() if self.keys[name] == name}
        scope = interpret(self.program, self.keys, self.values)
        groups, params, _, self.lowering = lower(scope, state, flat_dtype(state.values()))
        if not WeightSpace(groups, (), params).matches(WeightSpace(space.groups, (), space.params)):
            raise SpaceMismatchError(
                f"The 'module' has another weight space, with {len(groups)} groups, than {space!r}: give the module that was traced (after "
                "folding its norms, if they were folded), and inputs of the kind that it was traced with; where outputs are not "
                "told apart by example, of the same batch size too."
            )
        raw = list(self.lowering.groups.values())
        self.permutations = {old.permutation: new.permutation for old, new in zip(raw, space.groups, strict=True)}
        self.scales = {old.scale: new.scale for old, new in zip(raw, space.groups, strict=True)}

    @classmethod
    def of_program(cls, space: WeightSpace, theta: Tensor, inputs: tuple[Any, ...], samples: int) -> TracedAnswers:
        """The networks of a space run by its program, with inputs of any number of rows where their first dimension is a batch.

        Args:
            space: The weight space.
            theta: One of the networks ``[P]``.
            inputs: What its module is called with.
            samples: As above.

        Returns:
            The networks, prepared.

        Raises:
            ValueError: If the inputs are not those of the network.
        """
        assert space.program is not None
        calls = calls_of(space, space.program, theta[None], inputs)
        module = ProgramModule(space, theta)
        if calls.rows is None:
            return cls(module, tuple(calls.leaves), space, samples)
        first = tuple(leaf if dim is None else leaf[0] for leaf, dim in zip(calls.leaves, calls.dims, strict=True))
        return cls(module, first, space, samples, several=calls.leaves)

    def __call__(self, theta: Tensor) -> dict[tuple[str, str], list[Tensor]]:
        """The answers ``[n, samples]`` of one network ``[P]``, by permutation class and scale class.

        The scale class is empty where the answers follow no single one.
        """
        runner = _Runner(self, self.space.unflatten(theta))
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop")
            runner.run(*runner.arguments())
        return runner.found

    def neurons(self, value: Value) -> Iterator[tuple[tuple[str, str], Label, Tensor]]:
        """The classes that a tensor holds: their names, the label that says where, and entries ``[n, copies]`` in order of the neurons."""
        movable = [label for label in value.labels if not self.lowering.neurons.is_fixed(label.ids.numpy()).all()]
        for label in movable:
            if len(movable) > 1:  # samples along neurons of another class come in an order that differs between networks
                break
            codes = label.codes.numpy().ravel()
            ids, expressions = neurons_of(codes), expressions_of(codes)
            parts = self.lowering.neurons.part(ids)
            for place, positions, numbers, _ in self.lowering.classes.places(ids):
                name, size = self.lowering.labels.get(place.kind), self.lowering.classes.sizes.get(place.kind, 0)
                if place.kind[0] == "fixed" or name not in self.permutations:
                    continue
                # The same neurons may come several times with different factors, such as queries and keys.
                kinds = numbered(parts[positions] * (int(expressions.max()) + 1) + expressions[positions])[1]
                for kind in range(int(kinds.max()) + 1):
                    used, which = positions[kinds == kind], numbers[kinds == kind]
                    counts = np.bincount(which, minlength=size)
                    if counts.min() == counts.max():
                        terms = self.lowering.solved(int(expressions[used[0]]), int(parts[used[0]]))
                        odd = [key for key, power in terms.items() if power % 2]
                        scale = self.lowering.scale({odd[0]: 1}, place)[0] if len(terms) == len(odd) == 1 else ""
                        entries = torch.from_numpy(used[which.argsort(kind="stable")].reshape(size, -1))
                        yield (self.permutations[name], self.scales.get(scale, "")), label, entries


class _Runner(torch.fx.Interpreter):
    """One run of a program that keeps what neurons answer."""

    def __init__(self, answers: TracedAnswers, state: Mapping[str, Tensor]) -> None:
        super().__init__(answers.program.graph_module)
        self.answers, self.state = answers, state
        self.found: dict[tuple[str, str], list[Tensor]] = {}
        self.in_calls: set[torch.fx.Node] = set()  # whose results lie behind a dimension over the calls

    def arguments(self) -> list[Any]:
        """What the program is called with: parameters, buffers and constants by name, and the inputs."""
        program = self.answers.program
        signature = program.graph_signature
        names = saved_names(program, self.answers.keys)
        inputs = iter(self.answers.inputs)
        arguments = []
        for node in program.graph.nodes:
            if node.op != "placeholder":
                continue
            if (name := names.get(node.name)) is not None:
                own = program.state_dict.get(name, program.constants.get(name))
                arguments.append(self.state[name].to(own) if name in self.state else own)
            elif node.name in signature.inputs_to_lifted_tensor_constants:
                arguments.append(program.constants[signature.inputs_to_lifted_tensor_constants[node.name]])
            else:
                arguments.append(next(inputs))
                if self.answers.in_calls and arguments[-1].ndim > node.meta["val"].ndim:
                    self.in_calls.add(node)
        return arguments

    def evaluated(self, n: torch.fx.Node) -> Any:
        """The results of an operator, of all calls at once where it depends on their inputs."""
        if n.op != "call_function" or not self.in_calls.intersection(n.all_input_nodes):
            return super().run_node(n)
        self.in_calls.add(n)
        given = self.fetch_args_kwargs_from_env(n)
        if getattr(n.target, "__name__", "") == "getitem":
            return given[0][0][given[0][1]]
        operator: Any = n.target
        function = BATCHED.get(f"{operator._schema.name}.{operator._overloadname}", operator)
        dims = map_aggregate((n.args, n.kwargs), lambda a: 0 if isinstance(a, torch.fx.Node) and a in self.in_calls else None)
        return torch.func.vmap(lambda args, kwargs: function(*args, **kwargs), in_dims=dims)(*given)

    def run_node(self, n: torch.fx.Node) -> Any:
        result = self.evaluated(n)
        if n.op != "call_function" or not isinstance(result, Tensor) or not result.is_floating_point():
            return result
        value = self.answers.values.get(n)
        read = [self.env[source] for source in n.all_input_nodes]
        views = any(isinstance(x, Tensor) and x.untyped_storage().data_ptr() == result.untyped_storage().data_ptr() for x in read)
        if isinstance(value, Value) and value.has_nodes and not views:
            calls = int(n in self.in_calls)
            for key, label, entries in self.answers.neurons(value):
                dims = [calls + dim for dim in label.dims]
                other = [dim for dim in range(result.ndim) if dim not in dims]
                flat = result.permute(*dims, *other).reshape(label.codes.numel(), -1)[entries].flatten(1)
                self.found.setdefault(key, []).append(flat[:, :: max(1, flat.shape[1] // self.answers.samples)])
        return result
