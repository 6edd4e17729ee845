from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.spaces import SPACES
from wsgraph import WeightSpace
from wsgraph.space import SpaceMismatchError
from wsgraph.symmetry import GroupElement

WIDE = (1e-4, 1e4)


def draw(space: WeightSpace, batch: int = 5, seed: int = 0) -> tuple[Tensor, GroupElement, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    thetas = space.sample(batch, generator=generator, dtype=torch.float64)
    g = space.sample_symmetry(batch, WIDE, generator=generator)
    return thetas, g, space.example_inputs(7, generator=generator, dtype=torch.float64)


def relative(value: Tensor, expected: Tensor) -> float:
    return float((value - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", SPACES)
def test_action_keeps_every_network_function(name: str) -> None:
    space = SPACES[name]
    thetas, g, inputs = draw(space)
    moved = space.act(g, thetas)
    assert not torch.allclose(moved, thetas)
    assert relative(space.evaluate(moved, inputs), space.evaluate(thetas, inputs)) < 1e-12


@pytest.mark.parametrize("name", SPACES)
def test_group_laws(name: str) -> None:
    space = SPACES[name]
    thetas, g, _ = draw(space)
    h = space.sample_symmetry(5, WIDE, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(space.act(g @ h, thetas), space.act(g, space.act(h, thetas)), rtol=1e-12, atol=0)
    torch.testing.assert_close(space.act(g.inverse() @ g, thetas), thetas, rtol=1e-12, atol=0)
    torch.testing.assert_close(space.act(g.inverse(), space.act(g, thetas)), thetas, rtol=1e-12, atol=0)


def test_action_by_hand() -> None:
    space = WeightSpace.mlp([1, 2, 1])
    g = GroupElement(space, {"hidden.1": torch.tensor([[1, 0]])}, {"hidden.1": torch.tensor([[2.0, 4.0]])})
    theta = space.flatten(
        {
            "layers.0.weight": torch.tensor([[3.0], [5.0]]),
            "layers.0.bias": torch.tensor([7.0, 11.0]),
            "layers.1.weight": torch.tensor([[13.0, 17.0]]),
            "layers.1.bias": torch.tensor([19.0]),
        }
    )
    moved = space.unflatten(space.act(g, theta[None])[0])
    assert moved["layers.0.weight"].tolist() == [[10.0], [12.0]]
    assert moved["layers.0.bias"].tolist() == [22.0, 28.0]
    assert moved["layers.1.weight"].tolist() == [[8.5, 3.25]]
    assert moved["layers.1.bias"].tolist() == [19.0]


def test_each_group_gets_the_factors_its_activation_allows() -> None:
    space = SPACES["mlp_mixed"]  # relu, tanh, silu
    scales = space.sample_symmetry(200, (0.5, 2.0), generator=torch.Generator().manual_seed(0)).scales
    relu, tanh, silu = (scales[f"hidden.{i}"] for i in (1, 2, 3))
    assert relu.min() > 0.5
    assert relu.max() < 2
    assert relu.unique().numel() > 1000
    assert set(tanh.unique().tolist()) == {-1.0, 1.0}
    assert set(silu.unique().tolist()) == {1.0}


def test_max_pooling_takes_signs_away() -> None:
    assert SPACES["cnn_tanh"].class_symmetry("hidden.1").sign
    assert not SPACES["cnn_max_pool"].class_symmetry("hidden.1").sign


def test_residual_groups_move_together() -> None:
    space = SPACES["residual_relu"]
    g = space.sample_symmetry(2, WIDE)
    assert set(g.permutations) == {"stream", "c"}
    assert set(g.scales) == {"stream", "c"}


def test_class_symmetry_is_what_all_members_allow() -> None:
    # The sum of the residual stream has no activation of its own, but the branch before it does.
    assert SPACES["residual_relu"].class_symmetry("stream") == (True, False)
    assert SPACES["residual_tanh"].class_symmetry("stream") == (False, True)
    assert SPACES["residual_gelu"].class_symmetry("stream") == (False, False)
    assert SPACES["residual_identity"].class_symmetry("stream") == (True, True)


def test_uniform_distribution_follows_the_papers_protocol() -> None:
    space = WeightSpace.mlp([1, 1000, 1])
    generator = torch.Generator().manual_seed(0)
    scale = space.sample_symmetry(50, (1, 1e4), distribution="uniform", generator=generator).scales["hidden.1"]
    assert float((scale > 1000).double().mean()) == pytest.approx(0.9, abs=0.01)
    scale = space.sample_symmetry(50, (1, 1e4), generator=generator).scales["hidden.1"]
    assert float((scale > 1000).double().mean()) == pytest.approx(0.25, abs=0.01)


def test_permutations_are_uniform() -> None:
    space = WeightSpace.mlp([1, 3, 1])
    drawn = space.sample_symmetry(6000, generator=torch.Generator().manual_seed(0)).permutations["hidden.1"]
    counts = torch.unique(drawn, dim=0, return_counts=True)[1]
    assert counts.numel() == 6
    assert counts.min() > 900


def test_same_seed_same_element() -> None:
    space = SPACES["cnn_relu"]
    first, second = (space.sample_symmetry(3, generator=torch.Generator().manual_seed(4)) for _ in range(2))
    assert all(torch.equal(first.permutations[key], second.permutations[key]) for key in first.permutations)
    assert all(torch.equal(first.scales[key], second.scales[key]) for key in first.scales)


def test_selected_symmetries_and_classes_only() -> None:
    space = SPACES["mlp_identity"]
    g = space.sample_symmetry(3, symmetries=["scale"], classes=["hidden.2"])
    assert torch.equal(g.permutations["hidden.2"][0], torch.arange(5))
    assert torch.equal(g.scales["hidden.1"], torch.ones(3, 7, dtype=torch.float64))
    assert g.scales["hidden.2"].min() > 0
    assert not torch.equal(g.scales["hidden.2"], torch.ones(3, 5, dtype=torch.float64))


def test_action_is_differentiable_in_weights_and_factors() -> None:
    space = WeightSpace.mlp([2, 3, 1])
    thetas, g, _ = draw(space, batch=2)
    factors = g.scales["hidden.1"].clamp(0.5, 2)

    def moved(thetas: Tensor, factors: Tensor) -> Tensor:
        return space.act(GroupElement(space, g.permutations, {"hidden.1": factors}), thetas)

    assert torch.autograd.gradcheck(moved, (thetas.requires_grad_(), factors.requires_grad_()))


def test_action_on_features_moves_every_channel_alike() -> None:
    space = SPACES["cnn_flatten"]
    thetas, g, _ = draw(space)
    features = torch.stack([thetas, 2 * thetas], dim=-1)
    moved = space.act(g, features)
    torch.testing.assert_close(moved[..., 0], space.act(g, thetas))
    torch.testing.assert_close(moved[..., 1], 2 * space.act(g, thetas))


def test_one_element_serves_all_networks() -> None:
    space = SPACES["mlp_shallow"]
    thetas = space.sample(4)
    g = space.sample_symmetry(1)
    torch.testing.assert_close(space.act(g, thetas)[2:3], space.act(g, thetas[2:3]))


def test_dtype_is_kept() -> None:
    space = SPACES["cnn_relu"]
    assert space.act(space.sample_symmetry(2), space.sample(2)).dtype == torch.float32


def test_network_without_hidden_neurons_has_the_trivial_group() -> None:
    space = WeightSpace.mlp([3, 2])
    thetas = space.sample(4)
    g = space.sample_symmetry(4)
    assert torch.equal(space.act(g, thetas), thetas)
    assert repr(g) == "GroupElement(batch=1)"


@pytest.mark.parametrize("scale", [(0.0, 1.0), (2.0, 1.0), (1.0, float("inf")), (-1.0, 1.0)])
def test_bad_scale(scale: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="Expected 'scale' to be"):
        SPACES["cnn_relu"].sample_symmetry(2, scale)


def test_bad_options() -> None:
    space = SPACES["cnn_relu"]
    with pytest.raises(ValueError, match="Unknown symmetries \\['rotation'\\]"):
        space.sample_symmetry(2, symmetries=["rotation"])
    with pytest.raises(ValueError, match="Unknown classes \\['nowhere'\\]; this space has"):
        space.sample_symmetry(2, classes=["nowhere"])
    with pytest.raises(ValueError, match="Expected 'distribution'"):
        space.sample_symmetry(2, distribution="cauchy")


def test_elements_of_another_space() -> None:
    space, other = SPACES["cnn_relu"], SPACES["cnn_tanh"]
    with pytest.raises(SpaceMismatchError, match="belongs to"):
        space.act(other.sample_symmetry(2), space.sample(2))
    with pytest.raises(SpaceMismatchError, match="Cannot compose"):
        space.sample_symmetry(2) @ other.sample_symmetry(2)
    with pytest.raises(SpaceMismatchError, match="one group element per network, 3"):
        space.act(space.sample_symmetry(2), space.sample(3))
    with pytest.raises(SpaceMismatchError, match=r"Expected 'thetas' of shape"):
        space.act(space.sample_symmetry(2), torch.zeros(2, 3))


def test_weights_and_factors_that_are_no_numbers_are_refused() -> None:
    space = WeightSpace.mlp([2, 3, 1])
    thetas = space.sample(2, dtype=torch.float64)
    g = space.sample_symmetry(2)
    thetas[1, 3] = float("inf")
    with pytest.raises(ValueError, match=r"NaN or infinite weights \(first at network 1, parameter 'layers\.0\.weight'\)"):
        space.act(g, thetas)
    with pytest.raises(ValueError, match="NaN or infinite weights"):
        space.act(g, thetas[..., None].expand(-1, -1, 4))
    for value in (0.0, float("nan"), float("inf")):
        broken = replace(g, scales={"hidden.1": torch.full((2, 3), value)})
        with pytest.raises(ValueError, match=r"factors of class 'hidden\.1' of the group element must be finite and other than 0"):
            space.act(broken, space.sample(2))
