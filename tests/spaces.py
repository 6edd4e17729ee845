"""Weight spaces that many tests share, chains and general networks, one per symmetry kind."""

from wsgraph import WeightSpace
from wsgraph.space import Axis, Layer, NeuronGroup, Parameter, Tie

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


def _weight(name: str, target: NeuronGroup, *sources: NeuronGroup) -> Parameter:
    axes = (
        Axis(target.size, (Tie((target.name,), 1),)),
        Axis(sum(g.size for g in sources), (Tie(tuple(g.name for g in sources), -1),)),
    )
    return Parameter(name, (axes[0].size, axes[1].size), "weight", axes)


def _bias(name: str, target: NeuronGroup) -> Parameter:
    return Parameter(name, (target.size,), "bias", (Axis(target.size, (Tie((target.name,), 1),)),))


def residual_space(activation: str = "relu") -> WeightSpace:
    """x -> a = f(W1 x + b1); c = f(W2 a + b2); r = a + W3 c (tied to a); y = W4 [r, c]: a skip, two consumers, a concatenation."""
    x = NeuronGroup("x", 3, role="input")
    a = NeuronGroup("a", 6, operators=(activation,), permutation="stream")
    c = NeuronGroup("c", 4, operators=(activation,))
    r = NeuronGroup("r", 6, operators=(), permutation="stream")
    y = NeuronGroup("y", 2, role="output")
    return WeightSpace(
        groups=(x, a, c, r, y),
        layers=(
            Layer("1", "linear", ("x",), "a", "w1", "b1"),
            Layer("2", "linear", ("a",), "c", "w2", "b2"),
            Layer("skip", "identity", ("a",), "r"),
            Layer("3", "linear", ("c",), "r", "w3", "b3"),
            Layer("4", "linear", ("r", "c"), "y", "w4", "b4"),
        ),
        params=(
            _weight("w1", a, x),
            _bias("b1", a),
            _weight("w2", c, a),
            _bias("b2", c),
            _weight("w3", r, c),
            _bias("b3", r),
            _weight("w4", y, r, c),
            _bias("b4", y),
        ),
    )


GENERAL = {f"residual_{activation}": residual_space(activation) for activation in ("relu", "tanh", "gelu", "identity")}
SPACES = {**CHAINS, **GENERAL}
