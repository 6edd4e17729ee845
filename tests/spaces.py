"""Weight spaces that many tests share, chains and general networks, one per symmetry kind."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from tests.space.handmade import linear, space_of
from wsgraph import WeightSpace
from wsgraph.space import Layer, NeuronGroup

CHAINS = {
    "cnn_relu": WeightSpace.cnn([1, 6, 5], [4], "relu", kernel_size=[3, 2]),
    "cnn_flatten": WeightSpace.cnn([2, 5, 4], [6, 3], "leaky_relu", kernel_size=[3, 5], padding=1, readout="flatten", positions=4),
    "cnn_max_pool": WeightSpace.cnn([1, 6, 5], [4], "tanh", pooling="max_pool(2)"),
    "cnn_tanh": WeightSpace.cnn([1, 6, 5], [4], "tanh", pooling="avg_pool(2)"),
    "mlp_relu_no_bias": WeightSpace.mlp([3, 7, 5, 2], "relu", bias=False),
    "mlp_sine": WeightSpace.mlp([2, 8, 8, 1], "sin(30)"),
    "mlp_gelu": WeightSpace.mlp([3, 7, 2], "gelu"),
    "mlp_identity": WeightSpace.mlp([3, 7, 5, 2], "identity"),
    "mlp_mixed": WeightSpace.mlp([3, 7, 6, 5, 2], ["relu", "tanh", "silu"]),
    "mlp_shallow": WeightSpace.mlp([2, 9, 1], "relu"),
}


def residual_space(activation: str = "relu") -> WeightSpace:
    """x -> a = f(W1 x + b1); c = f(W2 a + b2); r = a + W3 c (tied to a); y = W4 [r, c]: a skip, two consumers, a concatenation."""
    groups = [
        NeuronGroup("x", 3, role="input"),
        NeuronGroup("a", 6, operators=(activation,), permutation="stream"),
        NeuronGroup("c", 4, operators=(activation,)),
        NeuronGroup("r", 6, operators=(), permutation="stream"),
        NeuronGroup("y", 2, role="output"),
    ]
    parts = [
        linear("1", {"x": 3}, "a", 6),
        linear("2", {"a": 6}, "c", 4),
        (Layer("skip", "identity", ("a",), "r"), []),
        linear("3", {"c": 4}, "r", 6),
        linear("4", {"r": 6, "c": 4}, "y", 2),
    ]
    return space_of(groups, parts)


GENERAL = {f"residual_{activation}": residual_space(activation) for activation in ("relu", "tanh", "gelu", "identity")}
SPACES = {**CHAINS, **GENERAL}


def with_dtypes(cases: Iterable[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Cases in float64, where symmetries are exact, and every third in float32 too, where rounding is what can go wrong."""
    return [(*case, dtype) for i, case in enumerate(cases) for dtype in (torch.float64, *[torch.float32] * (i % 3 == 0))]


def broken_networks(space: WeightSpace) -> Tensor:
    """Networks with zero weights, dead neurons, zero biases, and magnitudes far apart."""
    thetas = space.sample(7, generator=torch.Generator().manual_seed(0))
    thetas[0] = 0
    thetas[1, ::2] = 0
    for param in space.params:
        if param.role == "bias":
            thetas[2, space.slices[param.name]] = 0
    thetas[3, : space.num_params // 2] = 0
    thetas[4] *= 1e-6
    thetas[5, ::3] *= 1e-30
    thetas[6] *= 1e3
    return thetas
