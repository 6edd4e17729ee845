"""The table of operators: what an entry declares is true, and one entry makes an operator known everywhere."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from wsgraph import CheckpointError, WeightSpace, from_state_dict, load_onnx, trace
from wsgraph.convert.tracing.rules.elementwise import rule_of
from wsgraph.nn import build_model
from wsgraph.nn.sharing.activation import Activation
from wsgraph.operators import apply_operator, operator_index, parse_operator, written_operator
from wsgraph.space import OPERATORS, NeuronGroup, Symmetry, register_operator
from wsgraph.testing import assert_function_preserved

# Numbers for operators that need some.
NUMBERS: dict[str, tuple[tuple[float, ...], ...]] = {
    "pow": ((2.0,), (3.0,), (0.5,), (-1.0,)),
    "clamp_min": ((0.0,), (1.0,)),
    "clamp_max": ((0.0,), (-1.0,)),
    "threshold": ((0.0, 0.0), (0.5, 0.1)),
}
# Where a function is defined.
POSITIVE, WITHIN = {"sqrt", "rsqrt", "log", "log2", "log10"}, {"asin", "acos", "atanh", "log1p"}
CASES = [(name, numbers) for name in OPERATORS for numbers in NUMBERS.get(name, ((),))]


@pytest.fixture
def registry() -> Iterator[dict[str, object]]:
    before = dict(OPERATORS)
    yield OPERATORS  # type: ignore[misc]
    OPERATORS.clear()
    OPERATORS.update(before)


def values(*shape: int) -> Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def arguments_of(name: str, numbers: tuple[float, ...]) -> Tensor:
    """Values where an operator is defined, on both sides of 0 where it is."""
    v = values(6, 5, 4, 4)
    v[0] = 0
    if name in POSITIVE or (name == "pow" and numbers == (0.5,)):
        return v.abs() + 0.1
    return v.abs() + 2 if name == "acosh" else v / v.abs().max() * 0.3 if name in WITHIN else v


@pytest.mark.parametrize(("name", "numbers"), CASES)
def test_what_an_entry_declares_is_true(name: str, numbers: tuple[float, ...]) -> None:
    entry, v = OPERATORS[name], arguments_of(name, numbers)
    flow = entry.flow(*numbers)

    def f(x: Tensor) -> Tensor:
        return entry.function(x, *numbers)

    factor = 2.5
    homogeneous = torch.allclose(f(factor * v), factor ** float(flow.degree) * f(v), equal_nan=True)
    assert homogeneous == flow.positive
    if bool((v < 0).any()):
        assert torch.allclose(f(-v), -f(v), equal_nan=True) == flow.odd
        assert torch.allclose(f(-v), f(v), equal_nan=True) == flow.even
    assert torch.allclose(f(v + 0.01), f(v) + 0.01) == entry.shifts(*numbers)
    if (flip := entry.flips(*numbers)) is not None:
        assert torch.allclose(f(flip[0] - v), flip[1] - f(v))


@pytest.mark.usefixtures("no_loops")
def test_operators_are_applied_to_several_networks_at_once() -> None:
    for name, numbers in CASES:
        v = torch.stack([arguments_of(name, numbers)] * 2)
        found = torch.func.vmap(lambda x, name=name, numbers=numbers: OPERATORS[name].function(x, *numbers))(v)
        torch.testing.assert_close(found[1], OPERATORS[name].function(v[1], *numbers), msg=name)


@pytest.mark.parametrize("name", [name for name, entry in OPERATORS.items() if entry.rule != "own" or entry.nonlinear])
def test_operators_act_on_each_neuron_alone(name: str) -> None:
    numbers = NUMBERS.get(name, ((),))[0]
    v = arguments_of(name, numbers)
    permutation = torch.tensor([3, 0, 4, 1, 2])
    expected = OPERATORS[name].function(v, *numbers).reshape(6, 5, -1)[:, permutation]
    torch.testing.assert_close(OPERATORS[name].function(v[:, permutation], *numbers).reshape(6, 5, -1), expected)


def test_names_of_pytorch_have_rules_and_are_written_back() -> None:
    for name, entry in OPERATORS.items():
        assert all(rule_of(aten) is not None for aten in entry.aten), name
        for made in (*entry.functions, *(module for module in entry.modules if entry.rule == "pointwise" and 0 in entry.arguments)):
            assert parse_operator(written_operator(made))[0] in (name, "gelu"), name


@pytest.mark.parametrize(
    "text, expected",
    [
        ("relu", ("relu", ())),
        ("sin(30)", ("sin", (30.0,))),
        (" max_pool ( 3 ) ", ("max_pool", (3.0,))),
        ("dropout(0.5)", ("dropout", (0.5,))),
    ],
)
def test_parse_operator(text: str, expected: tuple[str, tuple[float, ...]]) -> None:
    assert parse_operator(text) == expected


@pytest.mark.parametrize("text", ["", "sin(30", "sin(30))", "sin 30", "2relu", None, 3])
def test_parse_operator_rejects_other_forms(text: object) -> None:
    with pytest.raises(ValueError, match=r"Expected an operator written 'name' or 'name\(number\)' \(got "):
        parse_operator(text)  # type: ignore[arg-type]


def test_parse_operator_rejects_unknown_names() -> None:
    with pytest.raises(ValueError, match=r"Unknown activation or operator 'swoosh'.*Known ones: identity, relu,.*register_operator"):
        parse_operator("swoosh")


def test_parse_operator_rejects_arguments_that_are_no_numbers() -> None:
    with pytest.raises(ValueError, match=r"Expected the arguments of operator 'sin' to be numbers \(got 'fast'\)"):
        parse_operator("sin(fast)")


@pytest.mark.parametrize(
    "text, expected",
    [
        ("sin(30)", lambda v: torch.sin(30 * v)),
        ("max_pool", lambda v: torch.nn.functional.max_pool2d(v, 2)),
        ("max_pool(3)", lambda v: torch.nn.functional.max_pool2d(v, 3)),
        ("avg_pool(2)", lambda v: torch.nn.functional.avg_pool2d(v, 2)),
        ("global_max_pool", lambda v: v.amax((2, 3))),
        ("global_avg_pool", lambda v: v.mean((2, 3))),
        ("flatten", lambda v: v.reshape(2, -1)),
        ("dropout(0.5)", lambda v: v),
    ],
)
def test_apply_operator(text: str, expected: object) -> None:
    v = values(2, 3, 6, 6)
    torch.testing.assert_close(apply_operator(text, v), expected(v))  # type: ignore[operator]


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("kind", ["max", "avg"])
def test_pooling_of_every_dimension(kind: str, dimensions: int) -> None:
    v = values(2, 3, *(4,) * dimensions)
    function = getattr(torch.nn.functional, f"{kind}_pool{dimensions}d")
    assert torch.equal(apply_operator(f"{kind}_pool(2)", v), function(v, 2))


def test_register_operator(registry: dict[str, object]) -> None:
    register_operator("cube", lambda v: v**3, positive=False, sign=True)
    assert operator_index("cube") == len(OPERATORS) - 1
    assert NeuronGroup("h", 3, operators=("cube",)).symmetry == Symmetry(False, True)
    space = WeightSpace.mlp([1, 1, 1], "cube", bias=False)
    output = space.evaluate(torch.tensor([[2.0, 1.0]]), torch.tensor([[3.0]]))
    assert output.item() == 216.0


def test_register_operator_rejects_taken_names() -> None:
    with pytest.raises(ValueError, match="The operator 'relu' exists already; choose another 'name'"):
        register_operator("relu", torch.relu, positive=True, sign=False)


@pytest.mark.parametrize("name", ["Cube", "cube(3)", "a b", ""])
def test_register_operator_rejects_names_that_cannot_be_parsed(name: str) -> None:
    with pytest.raises(ValueError, match="Expected 'name' to be a lower-case identifier"):
        register_operator(name, torch.relu, positive=True, sign=False)


def test_symmetry_of_a_group_is_what_all_operators_let_through() -> None:
    assert NeuronGroup("h", 3).symmetry == Symmetry(True, True)
    assert NeuronGroup("h", 3, operators=("avg_pool(2)", "flatten")).symmetry == Symmetry(True, True)
    assert NeuronGroup("h", 3, operators=("relu", "flatten")).symmetry == Symmetry(True, False)
    assert NeuronGroup("h", 3, operators=("tanh", "max_pool(2)")).symmetry == Symmetry(False, False)
    assert NeuronGroup("h", 3, operators=("tanh", "avg_pool(2)")).symmetry == Symmetry(False, True)


def test_activation_of_a_group_is_its_nonlinear_operator() -> None:
    assert NeuronGroup("h", 3, operators=("max_pool(2)", "sin(30)", "flatten")).activation == "sin(30)"
    assert NeuronGroup("h", 3, operators=("flatten",)).activation == "identity"


@pytest.mark.parametrize(
    "symmetry, text",
    [
        (Symmetry(True, True), "permutation x scale x sign"),
        (Symmetry(True, False), "permutation x scale"),
        (Symmetry(False, True), "permutation x sign"),
        (Symmetry(False, False), "permutation"),
    ],
)
def test_symmetry_text(symmetry: Symmetry, text: str) -> None:
    assert str(symmetry) == text


# == One entry ==


def write_onnx(net: nn.Module, path: Path, operator: str, **attributes: float) -> None:
    """A network of two layers with an operator of another domain between them."""
    onnx = pytest.importorskip("onnx")
    weights = {key: tensor.float().numpy() for key, tensor in net.state_dict().items()}
    make = onnx.helper.make_node
    graph = onnx.helper.make_graph(
        [
            make("Gemm", ["x", "0.weight", "0.bias"], ["a"], transB=1),
            make(operator, ["a"], ["b"], domain="example.functions", **attributes),
            make("Gemm", ["b", "2.weight", "2.bias"], ["y"], transB=1),
        ],
        "network",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [4, 3])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [4, 2])],
        [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("example.functions", 1)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9), path)


class Bessel(nn.Module):
    """A function that no entry has."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j1(x)


def test_one_entry_makes_an_operator_known_everywhere(registry: dict[str, object], tmp_path: Path) -> None:
    register_operator(
        "bessel",
        torch.special.bessel_j1,
        positive=False,
        sign=True,
        aten="special_bessel_j1",
        onnx="example.functions::Bessel",
        modules=Bessel,
        functions=torch.special.bessel_j1,
    )
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), Bessel(), nn.Linear(5, 2)).double().eval()
    x = torch.randn(4, 3, dtype=torch.float64)
    space = trace(net, x, strict=True)  # tracing
    theta = space.flatten(net.state_dict())[None]
    assert space.class_symmetry("hidden.1") == Symmetry(False, True)
    assert_function_preserved(net, space, x)
    torch.testing.assert_close(space.evaluate(theta, x)[0], net(x))  # evaluating
    for given in ("bessel", Bessel(), Bessel, torch.special.bessel_j1):
        assert from_state_dict(net.state_dict(), given)[0] == space  # state dicts
    activation = Activation(space, "bessel")  # equivariant layers
    moved = space.act(space.sample_symmetry(1), theta)
    assert not torch.equal(moved, theta)
    blocks = [activation(space.blocks(weights)) for weights in (theta, moved)]
    assert torch.allclose(blocks[0].flatten().abs().sum(), blocks[1].flatten().abs().sum())
    assert build_model("neural_graph", space, 1)(space.batch(theta.float())).isfinite().all()
    write_onnx(net, tmp_path / "net.onnx", "Bessel")  # ONNX
    module = load_onnx(tmp_path / "net.onnx")
    torch.testing.assert_close(module(x.float()), net.float()(x.float()))
    assert trace(module, x.float(), strict=True).class_symmetry("hidden.1") == Symmetry(False, True)


def test_homogeneous_operators_pass_factors_as_their_powers(registry: dict[str, object]) -> None:
    @torch.library.custom_op("wsgraph_tests::cubed_relu", mutates_args=())
    def cubed_relu(x: Tensor) -> Tensor:
        return torch.relu(x) ** 3

    cubed_relu.register_fake(lambda x: torch.empty_like(x))
    register_operator("cubed_relu", cubed_relu, positive=True, sign=False, degree=3, aten="wsgraph_tests::cubed_relu")

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.second(cubed_relu(self.first(x)))
            return result

    net, x = Net().eval(), torch.randn(4, 3)
    space = trace(net, x, strict=True)
    assert space.class_symmetry("first") == Symmetry(True, False)
    assert_function_preserved(net, space, x, scale=(0.01, 100.0))
    theta = space.flatten(net.state_dict())[None]
    torch.testing.assert_close(space.evaluate(theta, x)[0], net(x))  # from its program, which names the operator
    g = space.sample_symmetry(symmetries=["scale"])
    moved = space.unflatten(space.act(g, space.flatten(net.state_dict()).double()[None])[0])
    ratios = [moved[f"{name}.weight"] / net.state_dict()[f"{name}.weight"] for name in ("first", "second")]
    torch.testing.assert_close(ratios[1][0], ratios[0][:, 0] ** -3)


@pytest.mark.parametrize("given", [nn.Linear(2, 3), torch.matmul])
def test_activations_that_are_no_operators_are_named(given: object) -> None:
    with pytest.raises(ValueError, match=r"No operator is known by (Linear|matmul).*register_operator\(.*modules="):
        WeightSpace.mlp([2, 3, 1], given)  # type: ignore[arg-type]


def test_operators_of_onnx_itself_are_not_registered_anew() -> None:
    with pytest.raises(ValueError, match="written domain::name, since ONNX's own operators are fixed"):
        register_operator("mine", torch.tanh, positive=False, sign=True, onnx="Tanh")


def test_numbers_of_an_operator_are_attributes_in_onnx(registry: dict[str, object], tmp_path: Path) -> None:
    register_operator(
        "wave",
        lambda v, rate=1.0: torch.sin(rate * v),
        positive=False,
        sign=True,
        arguments=(0, 1),
        numbers=("rate",),
        onnx="example.functions::Wave",
    )
    net, x = nn.Sequential(nn.Linear(3, 5), nn.Identity(), nn.Linear(5, 2)).eval(), torch.randn(4, 3)
    for attributes, rate in (({}, 1.0), ({"rate": 2.5}, 2.5)):
        write_onnx(net, tmp_path / "net.onnx", "Wave", **attributes)
        torch.testing.assert_close(load_onnx(tmp_path / "net.onnx")(x), net[2](torch.sin(rate * net[0](x))))
    write_onnx(net, tmp_path / "net.onnx", "Wave", shift=1.0)
    with pytest.raises(CheckpointError, match=r"Wave.*its attribute shift = 1.0 is not supported"):
        load_onnx(tmp_path / "net.onnx")
    write_onnx(net, tmp_path / "net.onnx", "Swirl")
    with pytest.raises(CheckpointError, match=r"cannot read, example.functions.Swirl"):
        load_onnx(tmp_path / "net.onnx")
