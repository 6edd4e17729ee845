"""Transforms of weights: on tensors, graphs and batches alike, and what each leaves as it is."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.transforms import Compose as PyGCompose
from torch_geometric.transforms import ToUndirected

from wsgraph import ParameterGraph, WeightSpace
from wsgraph.data import DataLoader, ZooStore
from wsgraph.data.transforms import (
    Canonicalize,
    Compose,
    INRTransform,
    Normalize,
    RandomINRTransform,
    RandomSymmetry,
    WeightDropout,
    WeightNoise,
    WeightTransform,
)
from wsgraph.space import Signal

CNN = WeightSpace.cnn([1, 4, 3], [2], "relu", padding=1)
SIREN = WeightSpace.siren([2, 6, 5, 1])
STATISTICS = {param.name: (0.1 * i, 1.0 + i) for space in (CNN, SIREN) for i, param in enumerate(space.params)}


def _thetas(space: WeightSpace, count: int = 5, seed: int = 0) -> torch.Tensor:
    return space.sample(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


ALL: list[Callable[[], WeightTransform]] = [
    lambda: RandomSymmetry((0.1, 10)),
    Canonicalize,
    lambda: Normalize(STATISTICS),
    WeightNoise,
    lambda: WeightDropout(0.3),
    lambda: Compose([Canonicalize(), WeightNoise(0.1)]),
]
OF_INRS: list[Callable[[], WeightTransform]] = [lambda: INRTransform(30, 1.2, (0.1, -0.2)), RandomINRTransform]


@pytest.mark.parametrize("space, make", [*((CNN, make) for make in ALL), *((SIREN, make) for make in ALL + OF_INRS)])
def test_graphs_and_batches_change_as_flat_weights_do(space: WeightSpace, make: Callable[[], WeightTransform]) -> None:
    thetas = _thetas(space)
    expected = make().weights(space, thetas)
    assert not torch.equal(expected, thetas)
    assert expected.dtype == thetas.dtype
    batch = space.batch(thetas, y=torch.arange(5))
    changed = make()(batch)
    assert torch.equal(changed.thetas(), expected)
    assert torch.equal(changed.y, torch.arange(5))
    assert torch.equal(batch.thetas(), thetas)  # PyG's transforms leave what they are given as it was
    graph = space.graph(thetas[0])
    assert torch.equal(make()(graph).thetas()[0], make().weights(space, thetas[:1])[0])
    assert type(make()(graph)) is ParameterGraph


def test_batches_of_several_architectures() -> None:
    scale = _Doubled()
    graphs = [CNN.batch(_thetas(CNN, 2)), SIREN.batch(_thetas(SIREN, 3)), CNN.batch(_thetas(CNN, 1, seed=1))]
    changed = scale(ParameterGraph.join(graphs))
    expected = ParameterGraph.join([scale(graph) for graph in graphs])
    assert torch.equal(changed.x, expected.x)
    assert torch.equal(changed.edge_attr, expected.edge_attr)
    assert changed.num_networks == 6


class _Doubled(WeightTransform):
    def weights(self, space: WeightSpace, thetas: torch.Tensor) -> torch.Tensor:
        return 2 * thetas


def test_only_parameter_graphs_are_transformed() -> None:
    with pytest.raises(TypeError, match=r"Canonicalize transforms parameter graphs \(got Data\)"):
        Canonicalize()(Data())
    with pytest.raises(TypeError, match=r"Expected transforms of weights \(got ToUndirected\); torch_geometric.transforms.Compose"):
        Compose([ToUndirected()])


def test_they_work_with_those_of_pyg() -> None:
    graph = PyGCompose([_Doubled(), ToUndirected()])(CNN.graph(_thetas(CNN, 1)[0]))
    assert graph.edge_index.shape[1] == 2 * CNN.topology.num_edges


# == In datasets and loaders ==


@pytest.fixture
def store(tmp_path: Path) -> ZooStore:
    return ZooStore.create(tmp_path / "zoo", CNN, _thetas(CNN, 12), {"test_accuracy": np.arange(12) / 12})


def test_in_datasets_and_loaders(store: ZooStore) -> None:
    dataset = store.dataset().with_transform(_Doubled())
    assert torch.equal(dataset[3].thetas()[0], 2 * store.thetas[3])
    assert torch.equal(dataset[2:5].batch([0, 2]).thetas(), 2 * store.thetas[[2, 4]])
    (batch,) = DataLoader(dataset, 12, transform=_Doubled())
    assert torch.equal(batch.thetas(), 4 * store.thetas)
    assert "transform=_Doubled()" in repr(dataset)


def test_transforms_of_graphs_in_datasets(store: ZooStore) -> None:
    dataset = store.dataset().with_transform(ToUndirected())
    batch = dataset.batch([1, 5])
    assert batch.edge_index.shape[1] == 4 * CNN.topology.num_edges
    assert torch.equal(batch[1].edge_index, dataset[5].edge_index)
    assert torch.equal(batch.y, store.dataset().y[[1, 5]])


def test_workers_draw_their_own_numbers(store: ZooStore) -> None:
    dataset = store.dataset().with_transform(WeightNoise(1.0, seed=3))
    batches = [batch.thetas() for batch in DataLoader(dataset, 6, num_workers=2)]
    first, second = batches[0] - store.thetas[:6], batches[1] - store.thetas[6:]
    assert bool((first != 0).all())
    signs = (first.sign() == second.sign()).double().mean()
    assert 0.3 < float(signs) < 0.7


# == Random ones ==


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: RandomSymmetry(seed=seed),
        lambda seed: WeightNoise(seed=seed),
        lambda seed: WeightDropout(0.5, seed=seed),
        lambda seed: RandomINRTransform(seed=seed),
    ],
)
def test_seeds_act(make: Any) -> None:
    thetas = _thetas(SIREN)
    one, same, other = make(1), make(1), make(2)
    first = one.weights(SIREN, thetas)
    assert torch.equal(first, same.weights(SIREN, thetas))
    assert not torch.equal(first, one.weights(SIREN, thetas))
    assert not torch.equal(first, other.weights(SIREN, thetas))
    assert torch.equal(pickle.loads(pickle.dumps(one)).weights(SIREN, thetas), first)


def test_random_symmetry_keeps_the_function_and_draws_as_told() -> None:
    thetas = _thetas(CNN, 400)
    inputs = CNN.example_inputs(3, dtype=torch.float64)
    published = RandomSymmetry((1, 100), distribution="uniform", symmetries=["scale"]).weights(CNN, thetas)
    torch.testing.assert_close(CNN.evaluate(published, inputs), CNN.evaluate(thetas, inputs), rtol=1e-9, atol=1e-9)
    factors = (CNN.unflatten(published)["layers.0.weight"] / CNN.unflatten(thetas)["layers.0.weight"])[:, :, 0, 0, 0]
    assert 1 <= float(factors.min()) < 2
    assert 99 < float(factors.max()) <= 100
    assert float((factors > 10).double().mean()) == pytest.approx(10 / 11, abs=0.03)
    even = RandomSymmetry((1, 100), symmetries=["scale"]).weights(CNN, thetas)
    factors = (CNN.unflatten(even)["layers.0.weight"] / CNN.unflatten(thetas)["layers.0.weight"])[:, :, 0, 0, 0]
    assert float((factors > 10).double().mean()) == pytest.approx(0.5, abs=0.05)
    some = RandomSymmetry((1, 100), probability=0.3).weights(CNN, thetas)
    assert float((some != thetas).any(1).double().mean()) == pytest.approx(0.3, abs=0.08)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: RandomSymmetry((0, 1)), "'scale' to be"),
        (lambda: RandomSymmetry(distribution="normal"), "'distribution'"),
        (lambda: RandomSymmetry(probability=1.5), "'probability' between 0 and 1"),
        (lambda: WeightNoise(-1), "'amount' to be at least 0"),
        (lambda: WeightDropout(1), "'rate' to be at least 0 and below 1"),
        (lambda: Canonicalize(["signs"]), "'fix' to name some of scale, phase, flip, sign, order"),
        (lambda: INRTransform(scale=0), "'scale' to be positive"),
        (lambda: RandomINRTransform(angle=-1), "'angle' and 'translation' of at least 0"),
        (lambda: Normalize({"a": (0, -1)}), r"standard deviations of at least 0 \(got {'a': -1.0}\)"),
        (lambda: INRTransform(angle=float("nan")), "Expected a finite 'angle'"),
        (lambda: RandomINRTransform(scale=(1, 2, 3)), "'scale' with 0 < low <= high"),  # type: ignore[arg-type]
        (lambda: Normalize({"a": (0, 1)}).weights(CNN, _thetas(CNN)), r"no statistics for 'layers.0.weight'"),
        (lambda: INRTransform().weights(CNN, _thetas(CNN)), "networks of two coordinates"),
        (lambda: INRTransform().weights(WeightSpace.mlp([2, 3, 1], bias=False), torch.zeros(1, 9)), "linear with a bias"),
    ],
)
def test_bad_arguments(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# == What each does ==


def test_normalize_survives_permutation_and_comes_back(store: ZooStore) -> None:
    normal = Normalize(store.dataset().statistics())
    thetas = store.thetas
    changed = normal.weights(CNN, thetas)
    for values in CNN.unflatten(changed).values():
        assert float(values.mean()) == pytest.approx(0, abs=1e-12)
        assert float(values.std(correction=0)) == pytest.approx(1)
    torch.testing.assert_close(normal.inverse(CNN, changed), thetas)
    g = CNN.sample_symmetry(12, (1, 1))
    torch.testing.assert_close(normal.weights(CNN, CNN.act(g, thetas)), CNN.act(g, changed))
    scaled = Normalize(store.dataset().statistics(), subtract_mean=False).weights(CNN, thetas)
    for name, values in CNN.unflatten(scaled).items():
        torch.testing.assert_close(values, CNN.unflatten(thetas)[name] / store.dataset().statistics()[name].std)


def test_constant_parameters_are_only_shifted() -> None:
    thetas = torch.ones(4, CNN.num_params)
    normal = Normalize({param.name: (1.0, 0.0) for param in CNN.params})
    assert not normal.weights(CNN, thetas).any()
    assert torch.equal(normal.inverse(CNN, normal.weights(CNN, thetas)), thetas)


def test_noise_is_in_proportion_to_each_parameter() -> None:
    scales = torch.cat([torch.full((param.size,), 10.0**i) for i, param in enumerate(CNN.params)]).double()
    thetas = scales * torch.randn(300, CNN.num_params, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = WeightNoise(0.2).weights(CNN, thetas) - thetas
    for param in CNN.params:
        part = CNN.slices[param.name]
        own = thetas[:, part].std(dim=1, correction=0).square().mean().sqrt()
        assert float(noise[:, part].std() / own) == pytest.approx(0.2, rel=0.1), param.name
    assert torch.equal(WeightNoise(0).weights(CNN, thetas), thetas)


def test_dropout_spares_biases() -> None:
    dropped = WeightDropout(0.4).weights(CNN, torch.ones(500, CNN.num_params))
    for name, values in CNN.unflatten(dropped).items():
        assert float(values.mean()) == pytest.approx(1.0 if name.endswith("bias") else 0.6, abs=0.02), name


@pytest.mark.parametrize("first_axis", ["column", "row"])
def test_inr_transforms_move_the_picture(first_axis: Any) -> None:
    """Rendered, against the same motion of the array of pixels."""
    space = WeightSpace.siren([2, 6, 5, 1], 3.0, signal=Signal((9, 9), first_axis=first_axis))
    thetas = _thetas(space, 3)
    pictures = space.render(thetas)
    turned = space.render(INRTransform(angle=90).weights(space, thetas))
    torch.testing.assert_close(turned, pictures.rot90(1, (2, 3)))  # counter-clockwise, as numpy and torch turn arrays
    width = 2 * 2 / 8  # two pixels
    right = space.render(INRTransform(translation=(width, 0) if first_axis == "column" else (0, width)).weights(space, thetas))
    torch.testing.assert_close(right[..., 2:], pictures[..., :-2])
    down = space.render(INRTransform(translation=(0, width) if first_axis == "column" else (width, 0)).weights(space, thetas))
    torch.testing.assert_close(down[:, :, 2:], pictures[:, :, :-2])
    doubled = space.render(INRTransform(scale=2).weights(space, thetas), (17, 17))
    torch.testing.assert_close(doubled[..., ::2, ::2], space.render(thetas, (17, 17))[..., 4:13, 4:13])


@pytest.mark.parametrize("first_axis", ["column", "row"])
def test_turns_of_pictures_that_are_not_square(first_axis: Any) -> None:
    """A quarter turn about the centre takes a pixel 3 to its right to one 3 above it, whatever the sides."""
    space = WeightSpace.siren([2, 6, 5, 1], 3.0, signal=Signal((11, 21), first_axis=first_axis))
    thetas = _thetas(space, 3)
    pictures, turned = space.render(thetas), space.render(INRTransform(angle=90).weights(space, thetas))
    for k in range(-5, 6):
        torch.testing.assert_close(turned[:, :, 5 - k, 10], pictures[:, :, 5, 10 + k])


def test_transforms_are_reseeded() -> None:
    thetas = _thetas(CNN)
    transform = Compose([Canonicalize(), WeightNoise(seed=3)])
    first = transform.weights(CNN, thetas)
    transform.reseed(1)
    second = transform.weights(CNN, thetas)
    transform.reseed(0)
    assert torch.equal(transform.weights(CNN, thetas), first)
    transform.reseed(1)
    assert torch.equal(pickle.loads(pickle.dumps(transform)).weights(CNN, thetas), second)
    assert not torch.equal(first, second)


def test_random_inr_motions_stay_in_their_bounds() -> None:
    thetas = _thetas(SIREN, 500)
    moved = RandomINRTransform(angle=30, scale=(0.5, 2), translation=0.25).weights(SIREN, thetas)
    before, after = (SIREN.unflatten(each) for each in (thetas, moved))
    matrices = torch.linalg.lstsq(before["layers.0.weight"], after["layers.0.weight"]).solution
    scale = 1 / matrices.det().abs().sqrt()
    assert 0.5 <= float(scale.min()) < 0.55
    assert 1.85 < float(scale.max()) <= 2
    angle = torch.atan2(matrices[:, 0, 1], matrices[:, 0, 0]).rad2deg().abs()
    assert 27 < float(angle.max()) <= 30
    shifts = torch.linalg.lstsq(before["layers.0.weight"], (after["layers.0.bias"] - before["layers.0.bias"])[..., None]).solution
    back = -(matrices.inverse() @ shifts)[..., 0]
    assert 0.24 < float(back.abs().max()) <= 0.25
    torch.testing.assert_close(after["layers.1.weight"], before["layers.1.weight"])
