"""A weight space's program as a module again, for what has to follow its operators once more."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from wsgraph.space import WeightSpace

__all__ = ["ProgramModule"]


class ProgramModule(nn.Module):
    """A network that runs by the program of its weight space, with the keys of its state dict.

    It is called with the tensors of its inputs, in the order and the shapes with which the network was traced.

    Args:
        space: A weight space with a program.
        theta: The weights ``[P]``.

    Example:
        >>> import torch, wsgraph
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2)).eval()
        >>> space = wsgraph.trace(net, torch.ones(3, 4))
        >>> module = ProgramModule(space, space.flatten(net.state_dict()))
        >>> list(module.state_dict()) == list(net.state_dict()), torch.equal(module(torch.ones(3, 4)), net(torch.ones(3, 4)))
        (True, True)
    """

    def __init__(self, space: WeightSpace, theta: Tensor) -> None:
        super().__init__()
        assert space.program is not None
        self.program, self.weights_dtype = space.program, theta.dtype
        tensors = space.unflatten(theta.detach())
        for param in space.params:
            *folders, name = param.name.split(".")
            owner: nn.Module = self
            for folder in folders:
                if folder not in owner._modules:
                    owner.add_module(folder, nn.Module())
                owner = owner.get_submodule(folder)
            tensor = tensors[param.name]
            tensor = tensor.to(theta.dtype) if tensor.is_floating_point() else tensor
            owner.register_buffer(name, tensor)
        self.eval()

    def forward(self, *leaves: Tensor) -> Any:
        parameters = {name: self.get_buffer(name) for name in self.program.parameters}
        return self.program.run(parameters, leaves, self.weights_dtype)
