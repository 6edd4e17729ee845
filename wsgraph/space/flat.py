"""Flat vectors of weights: from and to state dicts, at random, and the functions that they stand for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from wsgraph.space.assumed import tell_assumed
from wsgraph.space.dtypes import flat_dtype, holds_same
from wsgraph.space.errors import SpaceMismatchError
from wsgraph.space.evaluate import accepts, draw_inputs, run_network, run_program, smallest_input_shape
from wsgraph.space.inputs import check_layer_inputs
from wsgraph.space.parts import Parameter
from wsgraph.space.text import DescribedStructure
from wsgraph.space.topology import Topology, build_topology

__all__ = ["FlatSpace"]


class FlatSpace(DescribedStructure):
    """A structure with its flat vectors: what parameter graphs, dense blocks and symmetries of a weight space are made of."""

    def check_thetas(self, thetas: Tensor, name: str = "thetas", *, batched: bool = True, finite: bool = False) -> None:
        """Raise a clear error unless a tensor holds flat checkpoints of this space.

        Args:
            thetas: What should be a floating point tensor ``[B, P]``, or ``[P]`` when not batched.
            name: What the error calls it.
            batched: Whether the first axis runs over networks.
            finite: Whether NaN and infinite weights are refused too.

        Raises:
            TypeError: If it is no floating point tensor.
            SpaceMismatchError: If the shape is wrong.
            ValueError: If a weight is NaN or infinite, naming the parameter.
        """
        if not isinstance(thetas, Tensor) or not thetas.is_floating_point():
            received = f"dtype {thetas.dtype}" if isinstance(thetas, Tensor) else type(thetas).__name__
            raise TypeError(
                f"Expected '{name}' to be a floating point tensor (got {received}). "
                "Stack state dicts with torch.stack([space.flatten(state_dict) for state_dict in ...])."
            )
        if thetas.ndim != 1 + batched or thetas.shape[-1] != self.num_params:
            expected = f"[B, {self.num_params}]" if batched else f"[{self.num_params}]"
            hint = "Flatten state dicts with space.flatten, or read the space off them with wsgraph.from_state_dict."
            if thetas.shape[-1:] == (self.num_params,) and thetas.ndim < 3:
                hint = "Of a single network pass theta[None]." if batched else "Of several networks make a batch with space.batch."
            raise SpaceMismatchError(f"Expected '{name}' of shape {expected} for {self!r} (got {list(thetas.shape)}). {hint}")
        # A sum is finite only if all its terms are, and takes one pass where comparing them takes several; large ones may overflow it.
        if finite and not torch.isfinite(thetas.sum()) and not torch.isfinite(thetas).all():
            where = torch.nonzero(~torch.isfinite(thetas))[0].tolist()
            param = next(key for key, part in self.slices.items() if part.start <= where[-1] < part.stop)
            network = f"network {where[0]}, " if batched else ""
            raise ValueError(
                f"'{name}' holds NaN or infinite weights (first at {network}parameter {param!r}). "
                "Drop such networks first, for instance with thetas[thetas.isfinite().all(1)]."
            )

    def flatten(self, state_dict: Mapping[str, Tensor]) -> Tensor:
        """Lay the tensors of a state dict end to end, the exact inverse of :meth:`unflatten`.

        A tensor that has several keys lies there once. The state dict may have it under all of them or, as safetensors files do, under one.

        Args:
            state_dict: Tensors by key, each of shape ``[*batch, *shape]`` with the same leading batch shape for all (none for one network).

        Returns:
            Tensor of shape ``[*batch, P]``, on the tensors' device and in their (promoted) dtype.

        Raises:
            SpaceMismatchError: If a key is missing or unexpected, a shape differs, or two keys of one tensor hold different values.

        Example:
            >>> import torch
            >>> from wsgraph import WeightSpace
            >>> space = WeightSpace.mlp([2, 3, 1])
            >>> space.flatten(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1)).state_dict())
            Traceback (most recent call last):
            ...
            SpaceMismatchError: The state dict lacks the key 'layers.0.weight' ...
        """
        given = {param.name: [key for key in param.keys if key in state_dict] for param in self.params}
        if missing := [param for param in self.params if not given[param.name]]:
            raise SpaceMismatchError(
                f"The state dict lacks the key {' or '.join(map(repr, missing[0].keys))} and {len(missing) - 1} more (it has: "
                f"{', '.join(map(repr, state_dict))}). A space read from one of the checkpoints, wsgraph.from_state_dict, carries their "
                "own keys."
            )
        if unexpected := [key for key in state_dict if key not in self._params_by_key]:
            raise SpaceMismatchError(f"The state dict has a key {unexpected[0]!r} that {self!r} does not have; flattening would lose it.")
        if not self.params:
            return torch.zeros(0)
        first = state_dict[given[self.params[0].name][0]]
        batch = first.shape[: max(first.ndim - len(self.params[0].shape), 0)]
        parts = []
        dtype = flat_dtype(state_dict.values())
        for param in self.params:
            converted = [self._converted(param, key, state_dict[key], batch, dtype) for key in given[param.name]]
            for key, other in zip(given[param.name][1:], converted[1:], strict=True):
                if not holds_same(converted[0], other):
                    raise SpaceMismatchError(
                        f"{given[param.name][0]!r} and {key!r} are one tensor in {self!r}, but differ in the state dict: flattening would "
                        "lose one of them. These weights are of a network that does not tie them: trace that one."
                    )
            parts.append(converted[0].reshape(*batch, param.size))
        return torch.cat(parts, dim=-1)

    def _converted(self, param: Parameter, key: str, tensor: Tensor, batch: torch.Size, dtype: torch.dtype) -> Tensor:
        """One tensor of a state dict, checked, in the dtype of the flat vector."""
        if tuple(tensor.shape) != (*batch, *param.shape):
            raise SpaceMismatchError(f"Expected {key!r} of shape {[*batch, *param.shape]} in the state dict (got {list(tensor.shape)}).")
        converted = tensor.to(dtype)
        if not tensor.is_floating_point() and not torch.equal(converted.to(tensor.dtype), tensor):
            raise SpaceMismatchError(
                f"The integers of {key!r} are too large for {dtype}, in which the other tensors are: flattening would change them. Convert "
                "the floating point tensors to float64 first."
            )
        return converted

    def unflatten(self, theta: Tensor) -> dict[str, Tensor]:
        """Views of a flat checkpoint by key, the exact inverse of :meth:`flatten`.

        Args:
            theta: Tensor of shape ``[*batch, P]``.

        Returns:
            Tensors of shape ``[*batch, *shape]`` by key; views of ``theta``, except where a parameter is stored in another dtype. All keys
            of one tensor have the same object, which :func:`torch.func.functional_call` takes for one tensor too.

        Raises:
            SpaceMismatchError: If the last dimension is not ``P``.
        """
        if theta.shape[-1:] != (self.num_params,):
            raise SpaceMismatchError(f"Expected 'theta' with last dimension {self.num_params} for {self!r} (got {list(theta.shape)}).")
        tensors = self._views(theta)
        for param in self.params:
            if param.dtype:
                tensors.update(dict.fromkeys(param.keys, tensors[param.name].to(getattr(torch, param.dtype))))
        return tensors

    def _views(self, theta: Tensor) -> dict[str, Tensor]:
        """Views of a flat checkpoint by key, all in its own dtype, so that layers of several stored dtypes compute together."""
        batch, tensors = theta.shape[:-1], {}
        for param in self.params:
            view = theta[..., self.slices[param.name]].unflatten(-1, param.shape or (1,)).reshape((*batch, *param.shape))
            tensors.update(dict.fromkeys(param.keys, view))
        return tensors

    def sample(self, batch: int, *, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """Random networks: weights normal with variance 2 / fan-in, biases normal with standard deviation 0.3.

        Scales and variances of normalisation layers are log-normal, integer buffers 0.

        Args:
            batch: Number of networks.
            generator: Source of randomness.
            dtype: Floating dtype of the result.

        Returns:
            Tensor of shape ``[batch, P]``.
        """
        thetas = torch.randn(batch, self.num_params, generator=generator, dtype=torch.float64)
        for param in self.params:
            part = thetas[:, self.slices[param.name]]
            if param.role in ("scale", "variance"):
                part.mul_(0.3).exp_()
            elif param.role == "buffer":
                part.zero_()
            else:
                part.mul_(math.sqrt(2 / self.fan_ins[param.name]) if param.role == "weight" else 0.3)
        return thetas.to(dtype)

    @cached_property
    def fan_ins(self) -> dict[str, int]:
        """Number of entries that reach one neuron, by parameter.

        What the axes of a weight follow does not say it where the neurons are fixed: wires do.
        """
        result = {
            param.name: math.prod(axis.size for axis in param.axes if not any(max(tie.exponents) > 0 for tie in axis.ties))
            for param in self.params
        }
        for wire in reversed(self.wires):
            if wire.kind == "weight" and wire.parameter and (axes := wire.end_axes("target")):
                result[wire.parameter] = math.prod(size for axis, size in enumerate(wire.shape) if axis not in axes)
        return result

    # == Views ==

    @cached_property
    def topology(self) -> Topology:
        """Nodes and edges shared by all parameter graphs of this space, built once."""
        if not self.connections:
            self.check_layers("A parameter graph")
        return build_topology(self)

    def evaluate(self, thetas: Tensor, *inputs: Any, **kwargs: Any) -> Any:
        """Run the networks, all at once, on inputs that they share; differentiable in both.

        A traced network that is not written as layers is run by its program, with the same numbers as its module. Its inputs are what the
        module is called with, in the shapes with which it was traced or, where their first dimension is a batch, with any number of rows.
        Casts of the program to the dtype of the traced network are casts to that of ``thetas``, and so are
        floating point inputs; integers, booleans and complex numbers must be what they were in tracing.

        Args:
            thetas: Flat checkpoints of shape ``[B, P]``.
            *inputs: Of a network of layers, one tensor of shape ``[M, n_0, *positions]``; of another one, the arguments of its module.
            **kwargs: Those that the module was traced with by name; they may also come behind the others, in the order of tracing.

        Returns:
            Outputs of shape ``[B, M, n_L]``, or what the module returns (a tensor, or tuples, lists and dicts of such), with a first
            dimension over the networks before those of every tensor.

        Raises:
            SpaceMismatchError: If the shape of ``thetas`` is wrong, or the space does not say what its networks compute, as where they
                draw random numbers.
            ValueError: If the inputs are not those with which the network was traced, or it does not run on them.

        Example:
            >>> import torch
            >>> from wsgraph import WeightSpace
            >>> space = WeightSpace.mlp([2, 3, 1])
            >>> space.evaluate(space.sample(4), torch.randn(5, 2)).shape
            torch.Size([4, 5, 1])
        """
        tell_assumed([self])
        self.check_runs("evaluate()")
        self.check_thetas(thetas)
        if self._outside_layers:
            assert self.program is not None
            return run_program(self, self.program, thetas, inputs, kwargs)
        if kwargs or len(inputs) != 1 or not isinstance(inputs[0], Tensor):
            got = f"a {type(inputs[0]).__name__}" if len(inputs) == 1 and not kwargs else f"{len(inputs) + len(kwargs)} arguments"
            by_name = f", {', '.join(kwargs)} by name" if kwargs else ""
            raise ValueError(f"Expected one tensor of inputs, [M, n_0, *positions], by position for {self!r} (got {got}{by_name}).")
        check_layer_inputs(self, inputs[0], thetas.dtype)
        values = inputs[0].to(thetas)
        first = next(group for group in self.groups if group.role == "input")
        if values.ndim > 2 and values.shape[1] != first.size == values[0].numel():  # images read by a linear layer
            values = values.flatten(1)
        try:
            return torch.func.vmap(lambda theta: run_network(self, self._views(theta), values), randomness="error")(thetas)
        except RuntimeError as error:
            if accepts(self, tuple(values.shape[1:])):
                raise
            reason = str(error).strip().splitlines()[0]
            raise ValueError(
                f"{self!r} does not run on inputs of shape {list(inputs[0].shape)}: {reason}. See example_inputs()."
            ) from error

    def render(self, thetas: Tensor, shape: tuple[int, int] | None = None) -> Tensor:
        """The pictures that implicit neural representations stand for.

        Args:
            thetas: Flat checkpoints of shape ``[B, P]``.
            shape: Height and width in pixels (default: those of :attr:`signal`).

        Returns:
            Pictures of shape ``[B, channels, H, W]``, in the value range of :attr:`signal`, not clipped to it.

        Raises:
            SpaceMismatchError: If the space does not say what its networks represent.

        Example:
            >>> from wsgraph import WeightSpace
            >>> space = WeightSpace.siren()
            >>> space.render(space.sample(4)).shape
            torch.Size([4, 1, 28, 28])
        """
        if self.signal is None:
            raise SpaceMismatchError(
                f"{self!r} does not say what picture its networks represent. "
                "Build it with WeightSpace.siren, or give it a signal: dataclasses.replace(space, signal=Signal((28, 28)))."
            )
        height, width = shape or self.signal.shape
        inputs = self.signal.coordinates((height, width)).to(thetas)
        outputs = self.evaluate(thetas, inputs)
        if not isinstance(outputs, Tensor) or outputs.ndim != 3:
            raise SpaceMismatchError(f"Expected networks that give one value per channel for a list of points; those of {self!r} do not.")
        outputs = outputs + self.signal.offset
        return outputs.movedim(2, 1).unflatten(2, (height, width))

    def example_inputs(
        self, count: int | None = None, *, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32
    ) -> Any:
        """Random inputs that the networks accept.

        They are standard normal. For networks of layers, they have the smallest (square) size that fits; for other traced networks, the
        traced one, and integers among them are uniform over the rows of the tables that are read with them (1 without one), booleans true.

        Args:
            count: Number of inputs (default: 8, or as many as the network was traced with).
            generator: Source of randomness.
            dtype: Dtype of the inputs.

        Returns:
            Tensor ``[count, n_0, *positions]``, or a tuple of inputs for a network that takes several, those by name last.

        Raises:
            SpaceMismatchError: If the space does not say what its networks compute.
            ValueError: If no square input of up to 256 positions a side fits, for instance because flattening expects a rectangle.

        Example:
            >>> from wsgraph import WeightSpace
            >>> WeightSpace.mlp([2, 3, 1]).example_inputs(5).shape
            torch.Size([5, 2])
        """
        self.check_runs("example_inputs()")
        if self._outside_layers:
            assert self.program is not None
            return draw_inputs(self, self.program, count, generator=generator, dtype=dtype)
        return torch.randn(8 if count is None else count, *smallest_input_shape(self), generator=generator, dtype=dtype)
