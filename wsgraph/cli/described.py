"""What `wsgraph info` says of a network, for programs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsgraph.space import Module, NeuronGroup, Parameter, WeightSpace

__all__ = ["about", "described", "parameter_data"]


def about(space: WeightSpace) -> dict[str, Any]:
    """What is said of the whole network."""
    return {
        "space": repr(space),
        "parameters": space.num_params,
        "digest": space.digest,
        "share_with_symmetry": space.coverage,
        "assumed": list(space.assumed),
        "not_written_as_layers": space.unlayered or None,
        "cannot_be_run": space.unprogrammed or None,
        "fixed_groups": space.fixed_groups,
        "unmoved_parameters": space.unmoved_params,
    }


def described(space: WeightSpace, depth: int | None = None) -> dict[str, Any]:
    """All that is known of its groups, layers, parameters and modules, these to a depth."""
    layers = [{"name": layer.name, "operator": layer.operator, "from": layer.sources, "to": layer.target} for layer in space.layers]
    return {
        "groups": [_group_data(space, group) for group in space.groups],
        "layers": layers,
        "params": [_param_data(space, param) for param in space.params],
        "modules": _modules(space.modules.parts, depth),
    }


def _modules(modules: Iterable[Module], depth: int | None) -> list[dict[str, Any]]:
    below = None if depth is None else depth - 1
    return [
        {
            "name": module.label,
            "names": module.names,
            "parameters": module.num_params,
            "tensors": module.num_tensors,
            "params": [param.name for param in module.params],
            "groups": [group.name for group in module.groups],
            **({} if below == 0 else {"modules": _modules(module.parts, below)}),
        }
        for module in modules
    ]


def _group_data(space: WeightSpace, group: NeuronGroup) -> dict[str, Any]:
    reason = space.why_fixed(group)
    return {
        "name": group.name,
        "neurons": group.size,
        "role": group.role,
        "operators": group.operators,
        "symmetry": space.describe_symmetry(group),
        **({"reason": reason} if reason and reason != group.role else {}),
        "permuted_with": group.permutation,
        "scaled_with": group.scale,
    }


def _param_data(space: WeightSpace, param: Parameter) -> dict[str, Any]:
    return {
        "name": param.name,
        "shape": param.shape,
        "moved": space.is_moved(param),
        **({"aliases": param.aliases} if param.aliases else {}),
    }


def parameter_data(space: WeightSpace, name: str) -> dict[str, Any]:
    """What the entries of a parameter follow, axis by axis."""
    param = space.param(name)
    runs = [
        {
            "axis": run.axis,
            "entries": [run.start, run.stop],
            "blocks": run.blocks,
            "lie_at": run.neurons,
            "follow": [
                {
                    "group": group,
                    "power": power,
                    "symmetry": space.describe_symmetry(space.group(group)),
                    "factors": {label: power * each for label, each in space.group(group).powers},
                }
                for group, power in zip(run.groups, run.powers, strict=True)
            ],
            "in_order": run.in_order,
        }
        for run in space.followed(name)
    ]
    return {**_param_data(space, param), "role": param.role, "axes": param.logical_shape, "follows": runs}
