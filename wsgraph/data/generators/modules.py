"""Networks of one architecture as one module: begun, run, differentiated and stored side by side."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from wsgraph.data.random import CounterRandom
from wsgraph.space import NeuronGroup, WeightSpace
from wsgraph.space.evaluate import run_network

__all__ = ["ModulePopulation", "SpaceNetwork", "initial_thetas"]

_WHOLE_CHANNELS = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


def initial_thetas(
    space: WeightSpace,
    random: CounterRandom,
    networks: Tensor,
    scale: Tensor,
    constants: Mapping[str, Tensor] | None = None,
    fan_in: Mapping[str, int] | None = None,
) -> Tensor:
    r"""He-initialised networks, scaled.

    .. math:: w \sim \mathcal{N}(0, 2 s^2 / \text{fan-in}), \quad b = 0

    Args:
        space: The weight space.
        random: Source of randomness.
        networks: Numbers of the networks ``[B]``.
        scale: Factor :math:`s` of each network ``[B]``.
        constants: Values by name of parameters with which all networks begin, whatever their
            scale, such as the gains of norms.
        fan_in: Fan-in of weights by name (default: those of the space).

    Returns:
        Float64 tensor ``[B, P]``.
    """
    thetas = random.normal(networks, "initial_weights", (space.num_params,))
    fan_ins = {**space.fan_ins, **(fan_in or {})}
    for param in space.params:
        thetas[:, space.slices[param.name]] *= math.sqrt(2 / fan_ins[param.name]) if param.role == "weight" else 0
    thetas *= scale[:, None]
    for name, values in (constants or {}).items():
        thetas[:, space.slices[name]] = values.flatten().to(thetas)
    return thetas


class SpaceNetwork(nn.Module):
    """The network that the layers of a weight space describe, with dropout after every hidden group.

    Args:
        space: The weight space, with one input and one output group.
    """

    prefix = "tensors."

    def __init__(self, space: WeightSpace) -> None:
        super().__init__()
        self.space = space
        hidden = [group.name for group in space.groups if group.role == "hidden"]
        self.position = {name: i for i, name in enumerate(hidden)}
        self.dropouts = nn.ModuleList(nn.Dropout1d() for _ in hidden)
        self.tensors = nn.Module()
        for param in space.params:
            *folders, name = param.name.split(".")
            owner: nn.Module = self.tensors
            for folder in folders:
                if folder not in owner._modules:
                    owner.add_module(folder, nn.Module())
                owner = owner.get_submodule(folder)
            owner.register_parameter(name, nn.Parameter(torch.zeros(param.shape)))

    def forward(self, images: Tensor) -> Tensor:
        def drop(group: NeuronGroup, values: Tensor) -> Tensor:
            # Flattening widens a neuron to several entries, which are dropped together as its positions are.
            entries = values.reshape(len(values), group.size, -1)
            dropped: Tensor = self.dropouts[self.position[group.name]](entries)
            return dropped.reshape(values.shape)

        return run_network(self.space, dict(self.tensors.named_parameters()), images, drop)


class _Masked(nn.Module):
    """Stands for a dropout module: its masks are given, one for each call in a forward pass."""

    def __init__(self, whole_channels: bool) -> None:
        super().__init__()
        self.whole_channels = whole_channels
        self.shapes: list[tuple[int, ...]] = []
        self.recording = True
        self.call = 0

    def record_no_more(self) -> None:
        self.recording = False
        for i in range(len(self.shapes)):
            self.register_buffer(f"mask{i}", torch.ones(()), persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        if self.recording:
            positions = [1] * (values.ndim - 2) if self.whole_channels else values.shape[2:]
            self.shapes.append((*values.shape[1:2], *positions))
            return values
        mask: Tensor = getattr(self, f"mask{self.call}")
        self.call = (self.call + 1) % len(self.shapes)
        return values * mask


def _with_masks(module: nn.Module, images: Tensor) -> tuple[nn.Module, dict[str, tuple[int, ...]]]:
    """A copy in training mode whose dropout takes masks, and their shapes by name."""
    made = copy.deepcopy(module).train()
    replaced: dict[nn.Module, tuple[str, _Masked]] = {}
    for path, child in list(made.named_modules(remove_duplicate=False)):
        if isinstance(child, (nn.Dropout, *_WHOLE_CHANNELS)):
            _, mask = replaced.setdefault(child, (path, _Masked(isinstance(child, _WHOLE_CHANNELS))))
            owner, _, name = path.rpartition(".")
            setattr(made.get_submodule(owner), name, mask)
    buffers = {name: values.clone() for name, values in made.named_buffers()}
    with torch.no_grad():
        functional_call(made, buffers, (images[:1].expand(2, *images.shape[1:]),))
    shapes: dict[str, tuple[int, ...]] = {}
    for path, mask in replaced.values():
        mask.record_no_more()
        shapes |= {f"{path}.mask{i}": shape for i, shape in enumerate(mask.shapes)}
    return made, shapes


class ModulePopulation:
    """Networks of one architecture, computed by one module for all of them at once.

    Buffers that training changes, such as the running statistics of batch normalisation, are each
    network's own. Dropout modules drop what they are told, so that whoever trains decides of rates
    and random numbers.

    Args:
        space: The weight space of the networks.
        images: Examples, whose shape, dtype and device are those of the computation.
        module: The module whose weight space it is (default: what its layers describe).
    """

    def __init__(self, space: WeightSpace, images: Tensor, module: nn.Module | None = None) -> None:
        self.space = space
        self.device, self.dtype = images.device, images.dtype
        self.prefix = SpaceNetwork.prefix if module is None else ""
        # Copies, because a call puts the tensors of the networks into the module while other threads do the same.
        evaluated = copy.deepcopy(SpaceNetwork(space) if module is None else module).to(images).eval()
        self._evaluated = evaluated
        self._trained, self.mask_shapes = _with_masks(evaluated, images)
        # Tensors by key, each of one object however many keys it has, as the space has it too.
        own = {**dict(evaluated.named_parameters(remove_duplicate=False)), **dict(evaluated.named_buffers(remove_duplicate=False))}
        tensors = {param: own[self.prefix + param.name] for param in space.params}
        self._parameters = [param for param, tensor in tensors.items() if isinstance(tensor, nn.Parameter)]
        self._buffers = [param for param in space.params if param not in self._parameters]
        self._constants = {
            param.name: tensor.detach()
            for param, tensor in tensors.items()
            if module is not None and (param in self._buffers or _is_constant(tensor))
        }
        # As PyTorch counts; a traced space does not tell the outputs from the inputs of a weight whose outputs cannot move.
        self._fan_in = {param.name: math.prod(param.shape[1:]) for param in space.params if module is not None and len(param.shape) > 1}
        self._slopes = vmap(grad(self._loss), randomness="error")

    def initial(self, random: CounterRandom, networks: Tensor, scale: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Networks that are not yet trained.

        Args:
            random: Source of randomness.
            networks: Their numbers ``[B]``, on the CPU.
            scale: Factor of each on its initial weights ``[B]``.

        Returns:
            Parameters ``[B, T]``, and buffers by name, each ``[B, ...]``.
        """
        return self.divide(initial_thetas(self.space, random, networks, scale, self._constants, self._fan_in))

    def divide(self, thetas: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """What :meth:`flatten` joins.

        Args:
            thetas: Flat checkpoints ``[B, P]``.

        Returns:
            Parameters ``[B, T]``, and buffers by name, each ``[B, ...]``; copies.
        """
        tensors = self.space.unflatten(thetas.to(self.device, self.dtype))
        buffers = {param.name: tensors[param.name].clone() for param in self._buffers}
        return self._joined(tensors), buffers

    def flatten(self, parameters: Tensor, buffers: Mapping[str, Tensor]) -> Tensor:
        """Flat checkpoints ``[B, P]`` of parameters ``[B, T]`` and buffers, a copy."""
        return self.space.flatten({**self._divided(parameters), **buffers})

    def gradients(
        self, parameters: Tensor, buffers: Mapping[str, Tensor], images: Tensor, labels: Tensor, masks: Mapping[str, Tensor]
    ) -> Tensor:
        """Gradients of the cross entropy of every network on its own examples, in training mode, which moves the buffers.

        Args:
            parameters: Parameters of all networks ``[B, T]``.
            buffers: Their buffers by name, changed in place.
            images: Inputs ``[B, m, ...]``.
            labels: Labels ``[B, m]``.
            masks: What values are multiplied by in place of dropout, ``[B, m, *shape]`` for every
                shape of :attr:`mask_shapes` (empty: no dropout).

        Returns:
            Gradients ``[B, T]``.
        """
        # By parameter, not by flat vector: the gradient of a slice would be padded to the whole vector once per parameter.
        state = {**self._keyed(buffers), **masks}
        return self._joined(self._slopes(self._divided(parameters), state, images, labels))

    def _loss(self, parameters: dict[str, Tensor], state: dict[str, Tensor], images: Tensor, labels: Tensor) -> Tensor:
        tensors = {**self._keyed(parameters), **state}
        logits = functional_call(self._trained, tensors, (images,), tie_weights=False)
        return F.cross_entropy(logits, labels)

    def logits(self, thetas: Tensor, images: Tensor) -> Tensor:
        """Outputs ``[B, n, classes]`` of networks ``[B, P]`` on images ``[n, ...]`` in evaluation mode."""

        def run(tensors: dict[str, Tensor]) -> Tensor:
            result: Tensor = functional_call(self._evaluated, tensors, (images,), tie_weights=False)
            return result

        tensors = self.space.unflatten(thetas)
        return vmap(run)({self.prefix + key: values for key, values in tensors.items()})

    def _keyed(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors under all keys that the module has for them."""
        return {self.prefix + key: tensors[param.name] for param in self.space.params if param.name in tensors for key in param.keys}

    def _joined(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([tensors[param.name].flatten(1) for param in self._parameters], 1)

    def _divided(self, parameters: Tensor) -> dict[str, Tensor]:
        parts = parameters.split([param.size for param in self._parameters], 1)
        return {
            param.name: part.unflatten(1, param.shape or (1,)).reshape(len(part), *param.shape)
            for param, part in zip(self._parameters, parts, strict=True)
        }


def _is_constant(tensor: Tensor) -> bool:
    """Whether a module begins with this value, rather than with a random one: gains, biases or embeddings of ones or zeros."""
    return (tensor.ndim < 2 or tensor.numel() > 1) and bool((tensor == tensor.flatten()[0]).all())
