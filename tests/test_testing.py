import dataclasses

import pytest
import torch
from torch import Tensor, nn

from tests.networks import make
from tests.spaces import SPACES
from wsgraph import ParameterGraph, WeightSpace, trace
from wsgraph.space import OPERATORS, NeuronGroup, Symmetry, register_operator
from wsgraph.testing import assert_equivariant, assert_function_preserved, assert_invariant, equivariance_error

MLP = WeightSpace.mlp([2, 6, 5, 1])


def bias(batch: ParameterGraph, layer: int = 0) -> Tensor:
    values = batch.blocks().biases[layer]
    assert values is not None
    return values


def path_products(batch: ParameterGraph) -> Tensor:
    """An invariant of scale and permutation by construction: the product of all layers' matrices."""
    blocks = batch.blocks()
    product = None
    for weight in blocks.weights:
        assert weight is not None
        product = weight.sum(-1) if product is None else weight.sum(-1) @ product
    assert product is not None
    return product.flatten(1)


def test_an_invariant_passes_and_reports_each_symmetry() -> None:
    errors = assert_invariant(path_products, MLP)
    assert set(errors) == {("permutation", "all"), ("scale", "all"), ("permutation x scale", "all")}
    assert max(errors.values()) < 1e-12


def test_scale_dependence_is_named_with_its_groups() -> None:
    def norm(batch: ParameterGraph) -> Tensor:
        return bias(batch, 1).square().sum(1)

    with pytest.raises(
        AssertionError, match=r"norm is not invariant under scale, permutation x scale(?s:.*)scale of group 'hidden.2'"
    ) as info:
        assert_invariant(norm, MLP)
    assert "permutation of group" not in str(info.value)
    assert "'hidden.1'" not in str(info.value)


def test_permutation_dependence_is_named_with_its_groups() -> None:
    def first_neuron(batch: ParameterGraph) -> Tensor:
        return bias(batch)[:, 0].sign()

    with pytest.raises(AssertionError, match=r"first_neuron is not invariant under permutation(?s:.*)permutation of group 'hidden.1'"):
        assert_invariant(first_neuron, MLP, networks=16)


def test_sign_dependence_is_found() -> None:
    space = WeightSpace.mlp([2, 6, 1], "tanh")
    with pytest.raises(AssertionError, match="is not invariant under sign"):
        assert_invariant(lambda batch: bias(batch).sum(1), space)


def test_constant_functions_fail_the_negative_control() -> None:
    with pytest.raises(AssertionError, match="does not react to uncoupled permutations"):
        assert_invariant(lambda batch: torch.ones(batch.num_networks, 2), MLP)
    with pytest.raises(AssertionError, match="does not react to noise"):
        assert_invariant(lambda batch: torch.ones(batch.num_networks, 2), MLP, control="noise")
    assert_invariant(lambda batch: torch.ones(batch.num_networks, 2), MLP, control=None)


def test_equivariant_functions() -> None:
    errors = assert_equivariant(lambda batch: 3 * batch.thetas(), MLP)
    assert max(errors.values()) < 1e-12
    assert_equivariant(lambda batch: batch.thetas().relu()[..., None].expand(-1, -1, 2), MLP)
    with pytest.raises(AssertionError, match="is not equivariant under scale"):
        assert_equivariant(lambda batch: batch.thetas() + 1, MLP)
    with pytest.raises(AssertionError, match="does not react to uncoupled permutations"):
        assert_equivariant(lambda batch: torch.zeros_like(batch.thetas()), MLP)


def test_relu_is_not_equivariant_under_signs() -> None:
    space = WeightSpace.mlp([2, 6, 1], "tanh")
    assert_equivariant(lambda batch: batch.thetas().tanh(), space)
    with pytest.raises(AssertionError, match="is not equivariant under sign"):
        assert_equivariant(lambda batch: batch.thetas().relu(), space)


def test_non_finite_outputs_fail() -> None:
    with pytest.raises(AssertionError, match="relative error inf"):
        assert_invariant(lambda batch: path_products(batch) * float("nan"), MLP)


def test_a_space_that_claims_too_much_is_caught() -> None:
    register_operator("wrong_sigmoid", torch.sigmoid, positive=True, sign=False)
    try:
        space = WeightSpace.mlp([2, 6, 1], "wrong_sigmoid")
        with pytest.raises(AssertionError, match="claims a symmetry that its networks do not have"):
            assert_invariant(path_products, space)
    finally:
        del OPERATORS["wrong_sigmoid"]


class _Tolerant(nn.Module):
    symmetries = ("permutation",)

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, batch: ParameterGraph) -> Tensor:
        assert batch.edge_attr is not None
        assert batch.edge_attr.dtype == self.factor.dtype
        first = batch.blocks().weights[0]
        assert first is not None
        return self.factor * first[..., 0].sum(2).square().sum(1) * bias(batch).sum(1)


def test_modules_run_in_the_dtype_asked_for_and_with_the_symmetries_they_claim() -> None:
    module = _Tolerant()
    assert set(assert_invariant(module, MLP, control="noise")) == {("permutation", "all")}
    assert_invariant(module, MLP, dtype=torch.float32, control="noise")
    assert module.factor.dtype == torch.float32
    with pytest.raises(AssertionError, match="_Tolerant is not invariant under scale"):
        assert_invariant(module, MLP, symmetries=["permutation", "scale"])


def test_tolerance_decides() -> None:
    with pytest.raises(AssertionError, match="tolerance 1e-30"):
        assert_invariant(path_products, MLP, tolerance=1e-30)


def test_errors_per_group() -> None:
    errors = equivariance_error(path_products, MLP, per_group=True)
    assert ("scale", "hidden.2") in errors
    assert ("sign", "all") not in errors


@pytest.mark.parametrize("name", SPACES)
def test_every_space_of_the_suite_keeps_its_functions(name: str) -> None:
    # The weights themselves are equivariant in every space, so this runs the function check and all symmetries of the space.
    assert_equivariant(lambda batch: batch.thetas(), SPACES[name])


def test_functions_may_say_that_they_ignore_uncoupled_permutations() -> None:
    def weights(batch: ParameterGraph) -> Tensor:
        return batch.thetas().sort(1).values

    space = WeightSpace.mlp([2, 6, 1], "gelu")
    with pytest.raises(AssertionError, match=r"does not react to uncoupled permutations(?s:.*)takes control='noise'"):
        assert_invariant(lambda batch: bias(batch).sum(1), space)
    weights.ignores_uncoupled_permutations = True  # type: ignore[attr-defined]
    assert_invariant(weights, space)

    def constant(batch: ParameterGraph) -> Tensor:
        return torch.ones(batch.num_networks, 1)

    constant.ignores_uncoupled_permutations = True  # type: ignore[attr-defined]
    with pytest.raises(AssertionError, match="does not react to noise"):
        assert_invariant(constant, space)


def test_traced_networks_need_no_module() -> None:
    module, inputs = make("actor-critic")
    space = trace(module, *inputs)
    theta = space.flatten(module.state_dict())
    assert assert_function_preserved(None, space, theta=theta) < 1e-12
    assert assert_function_preserved(None, space, inputs) < 1e-12

    def norms(batch: ParameterGraph) -> Tensor:
        return torch.stack([thetas.square().sum(1) for _, _, thetas in batch.pieces()], dim=1)

    assert max(assert_invariant(norms, space, symmetries=("permutation", "sign"), control="noise").values()) < 1e-12
    free = dataclasses.replace(space, groups=tuple(_freed(group) for group in space.groups))
    with pytest.raises(AssertionError, match=r"A group element \(scale\).*changes the output of the network"):
        assert_function_preserved(None, free)
    with pytest.raises(AssertionError, match="claims a symmetry that its networks do not have"):
        assert_invariant(norms, free, symmetries=["permutation"])


def _freed(group: NeuronGroup) -> NeuronGroup:
    """The group without what its operators forbid."""
    return dataclasses.replace(group, operators=(), limits=Symmetry(True, True)) if group.role == "hidden" else group


def test_nothing_to_test_is_no_pass() -> None:
    gelu = WeightSpace.mlp([2, 3, 1], "gelu")
    for space, symmetries in ((gelu, ["scale"]), (gelu, []), (WeightSpace.mlp([2, 1]), None)):
        with pytest.raises(ValueError, match="There is nothing to test"):
            assert_invariant(lambda batch: batch.thetas(), space, symmetries=symmetries)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="Expected 'dtype' to be one of"):
        assert_invariant(path_products, MLP, dtype=torch.int32)
    with pytest.raises(ValueError, match="Expected 'output'"):
        equivariance_error(path_products, MLP, output="other")
    with pytest.raises(ValueError, match="Unknown symmetries"):
        equivariance_error(path_products, MLP, symmetries=["rotation"])
    with pytest.raises(ValueError, match="Expected 'control'"):
        assert_invariant(path_products, MLP, control="none")
    with pytest.raises(AssertionError, match="one row per network, 4"):
        assert_invariant(lambda batch: torch.zeros(1), MLP)
    with pytest.raises(AssertionError, match="equivariant output of shape"):
        assert_equivariant(path_products, MLP)


def test_symmetry_prints_as_words() -> None:
    assert str(Symmetry(True, True)) == "permutation x scale x sign"
    assert str(Symmetry(False, False)) == "permutation"
