"""What the neurons of a traced network answer, as it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from wsgraph.convert.tracing.arrays import numbered
from wsgraph.convert.tracing.labels import Label, Value, expressions_of, neurons_of
from wsgraph.convert.tracing.lowering import lower
from wsgraph.convert.tracing.recording import ModuleInputs, check_module, export
from wsgraph.convert.tracing.tracer import interpret, saved_names
from wsgraph.convert.tracing.tying import tied_keys
from wsgraph.space import SpaceMismatchError, WeightSpace
from wsgraph.space.dtypes import flat_dtype

__all__ = ["TracedAnswers"]


class TracedAnswers:
    """A module prepared to say what its neurons answer.

    Args:
        module: The module that the space was traced from.
        inputs: What it is called with, by name behind the others.
        space: Its weight space.
        samples: How many answers per neuron are kept at most, evenly spaced over inputs and positions.

    Raises:
        SpaceMismatchError: If the module is not of that space.
        TraceError: As :func:`wsgraph.trace`.
    """

    def __init__(self, module: nn.Module, inputs: tuple[Any, ...], space: WeightSpace, samples: int) -> None:
        check_module(module)
        called = ModuleInputs.carried(inputs, space.program.keywords if space.program is not None else ())
        self.program, self.inputs, self.space, self.samples = export(module, called), inputs, space, samples
        self.values: dict[Any, Value] = {}
        self.keys = tied_keys(module)
        state = {name: tensor for name, tensor in module.state_dict().items() if self.keys[name] == name}
        scope = interpret(self.program, self.keys, self.values)
        groups, params, _, self.lowering = lower(scope, state, flat_dtype(state.values()))
        if (groups, tuple((param.name, param.axes) for param in params)) != (space.groups, tuple((p.name, p.axes) for p in space.params)):
            raise SpaceMismatchError(
                f"The 'module' has another weight space, with {len(groups)} groups, than {space!r}: give the module that was traced (after "
                "folding its norms, if they were folded), and inputs of the kind that it was traced with; where outputs are not "
                "told apart by example, of the same batch size too."
            )
        raw = list(self.lowering.groups.values())
        self.permutations = {old.permutation: new.permutation for old, new in zip(raw, groups, strict=True)}
        self.scales = {old.scale: new.scale for old, new in zip(raw, groups, strict=True)}

    def __call__(self, theta: Tensor) -> dict[tuple[str, str], list[Tensor]]:
        """The answers ``[n, samples]`` of one network ``[P]``, by permutation class and scale class.

        The scale class is empty where the answers follow no single one.
        """
        runner = _Runner(self, self.space.unflatten(theta))
        with torch.no_grad():
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

    def arguments(self) -> list[Any]:
        """What the program is called with: parameters, buffers and constants by name, and the inputs."""
        program = self.answers.program
        signature = program.graph_signature
        names = saved_names(program, self.answers.keys)
        inputs = iter(tree_leaves(self.answers.inputs))
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
        return arguments

    def run_node(self, n: torch.fx.Node) -> Any:
        result = super().run_node(n)
        if n.op != "call_function" or not isinstance(result, Tensor) or not result.is_floating_point():
            return result
        value = self.answers.values.get(n)
        read = [self.env[source] for source in n.all_input_nodes]
        views = any(isinstance(x, Tensor) and x.untyped_storage().data_ptr() == result.untyped_storage().data_ptr() for x in read)
        if isinstance(value, Value) and value.has_nodes and not views:
            for key, label, entries in self.answers.neurons(value):
                other = [dim for dim in range(result.ndim) if dim not in label.dims]
                flat = result.permute(*label.dims, *other).reshape(label.codes.numel(), -1)[entries].flatten(1)
                self.found.setdefault(key, []).append(flat[:, :: max(1, flat.shape[1] // self.answers.samples)])
        return result
