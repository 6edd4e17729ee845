from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from wsgraph import WeightSpace
from wsgraph.operators import apply_operator, operator_index, operator_symmetry, parse_operator
from wsgraph.space import OPERATORS, NeuronGroup, Symmetry, register_operator

# Graph files store these positions, so an operator may be appended but never moved.
FROZEN_ORDER = [
    *("identity", "relu", "leaky_relu", "tanh", "sin", "erf", "softsign", "hardtanh", "relu6", "gelu", "silu", "elu", "selu", "sigmoid"),
    *("softplus", "max_pool", "avg_pool", "global_max_pool", "global_avg_pool", "flatten", "dropout"),
    *("hardswish", "hardsigmoid", "mish", "softmax", "log_softmax"),
]


@pytest.fixture
def registry() -> Iterator[dict[str, object]]:
    before = dict(OPERATORS)
    yield OPERATORS  # type: ignore[misc]
    OPERATORS.clear()
    OPERATORS.update(before)


def values(*shape: int) -> Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_positions_in_the_registry_are_frozen() -> None:
    assert list(OPERATORS)[: len(FROZEN_ORDER)] == FROZEN_ORDER
    assert [operator_index(name) for name in ("identity", "relu", "dropout")] == [0, 1, 20]


@pytest.mark.parametrize("name", FROZEN_ORDER)
def test_declared_symmetry_is_the_true_one(name: str) -> None:
    v = values(6, 5, 4, 4)
    plain = apply_operator(name, v)
    commutes_with_scale = torch.allclose(apply_operator(name, 2.5 * v), 2.5 * plain)
    odd = torch.allclose(apply_operator(name, -v), -plain)
    assert (commutes_with_scale, odd) == operator_symmetry(name)


@pytest.mark.parametrize("name", FROZEN_ORDER)
def test_operators_act_on_each_neuron_alone(name: str) -> None:
    v = values(3, 5, 4, 4)
    permutation = torch.tensor([3, 0, 4, 1, 2])
    expected = apply_operator(name, v).reshape(3, 5, -1)[:, permutation]
    torch.testing.assert_close(apply_operator(name, v[:, permutation]).reshape(3, 5, -1), expected)


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
    with pytest.raises(ValueError, match=r"Unknown activation or operator 'swoosh'. Known ones: identity, relu,.*register_operator"):
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
    assert operator_index("cube") == len(FROZEN_ORDER)
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
