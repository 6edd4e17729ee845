"""Populations: the vectorised trainers against plain torch loops."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.data.blobs import BLOBS
from tests.spaces import residual_space
from wsgraph import WeightSpace
from wsgraph.data import ClassificationData, Classifiers, CounterRandom, HyperparameterRanges, ImageFits
from wsgraph.data.generators.classifiers import evaluate_population, train_population, training_examples
from wsgraph.data.generators.image_fits import initial_sirens
from wsgraph.data.generators.modules import initial_thetas
from wsgraph.space import Signal

FAST = HyperparameterRanges(steps=(4, 9))


def _double(data: ClassificationData, flat: bool = False) -> ClassificationData:
    images, test_images = (part.double().flatten(1) if flat else part.double() for part in (data.images, data.test_images))
    return data._replace(images=images, test_images=test_images)


# == Hyperparameters ==


def test_hyperparameters_fill_their_ranges() -> None:
    ranges = HyperparameterRanges(steps=(1, 3), training_fraction=(0.5, 1.0))
    drawn = ranges.sample(CounterRandom(0), torch.arange(4000))
    for name in ("learning_rate", "initial_scale", "weight_decay"):
        low, high = getattr(ranges, name)
        position = (drawn[name] / low).log() / np.log(high / low)
        assert position.min() >= 0
        assert position.max() <= 1
        assert float(position.mean()) == pytest.approx(0.5, abs=0.02), name
    assert float(drawn["dropout"].mean()) == pytest.approx(sum(ranges.dropout) / 2, abs=0.01)
    # Log-uniform on [1, 4), rounded down: 1, 2 and 3 with probabilities log 2, log 3/2 and log 4/3 over log 4.
    shares = torch.bincount(drawn["steps"], minlength=4)[1:] / 4000
    assert shares.tolist() == pytest.approx([0.5, 0.2925, 0.2075], abs=0.03)
    assert float((drawn["training_fraction"] == 1).double().mean()) == pytest.approx(0.5, abs=0.03)


def test_hyperparameters_belong_to_the_network() -> None:
    every = HyperparameterRanges().sample(CounterRandom(2), torch.arange(50))
    some = HyperparameterRanges().sample(CounterRandom(2), torch.tensor([40, 7]))
    assert all(torch.equal(some[name], every[name][[40, 7]]) for name in every)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"learning_rate": (0, 1)}, "'learning_rate' to be a lowest and a highest value, positive and finite"),
        ({"initial_scale": (2, 1)}, "'initial_scale' to be a lowest and a highest value"),
        ({"weight_decay": (1, float("inf"))}, "'weight_decay'"),
        ({"dropout": (0.5, 1.0)}, "'dropout' to be a lowest and a highest value, at least 0 and below 1"),
        ({"steps": (0, 5)}, "'steps'"),
        ({"steps": (5,)}, "'steps'"),
        ({"training_fraction": ()}, "'training_fraction' to hold values above 0 and at most 1"),
        ({"training_fraction": (0.5, 1.5)}, "'training_fraction'"),
    ],
)
def test_bad_ranges(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HyperparameterRanges(**options)


# == Training ==


def test_initialisation() -> None:
    space = WeightSpace.cnn([1, 16, 16], [10])
    thetas = initial_thetas(space, CounterRandom(0), torch.arange(200), torch.full((200,), 0.5))
    tensors = space.unflatten(thetas)
    for name, fan_in in (("layers.0.weight", 9), ("layers.1.weight", 144), ("layers.2.weight", 16)):
        assert float(tensors[name].std()) == pytest.approx(0.5 * (2 / fan_in) ** 0.5, rel=0.02)
    assert not tensors["layers.1.bias"].any()


def _plain_loop(space: WeightSpace, data: ClassificationData, network: int, hyper: Mapping[str, Tensor], seed: int, batch: int) -> Tensor:
    """One network, torch modules and torch.optim.AdamW, with the same random numbers."""
    random, number = CounterRandom(seed), torch.tensor([network])
    h = {name: values[network : network + 1] for name, values in hyper.items()}
    model = nn.ModuleList([nn.Conv2d(1, 3, 3, 2, 1), nn.Conv2d(3, 4, 3, 1, 1), nn.Linear(4, 3)]).double()
    tensors = space.unflatten(initial_thetas(space, random, number, h["initial_scale"])[0])
    model.load_state_dict({name.removeprefix("layers."): tensor for name, tensor in tensors.items()})
    optimizer = torch.optim.AdamW(model.parameters(), lr=float(h["learning_rate"]), weight_decay=float(h["weight_decay"]))
    order, count = training_examples(random, number, h["training_fraction"], len(data.images))
    rate = float(h["dropout"])
    for step in range(int(h["steps"])):
        chosen = order[0, (random.uniform(number, "minibatch", (batch,), step=step)[0] * count).long()]
        kept = (random.uniform(number, "dropout", (batch, 7), step=step)[0] >= rate) / (1 - rate)
        values = F.relu(model[0](data.images[chosen])) * kept[:, :3, None, None]
        values = F.relu(model[1](values)).mean((2, 3)) * kept[:, 3:]
        optimizer.zero_grad()
        F.cross_entropy(model[2](values), data.labels[chosen]).backward()
        optimizer.step()
    return space.flatten({f"layers.{name}": tensor for name, tensor in model.state_dict().items()})


def test_population_equals_networks_trained_one_by_one() -> None:
    space = WeightSpace.cnn([1, 3, 4], [3], "relu", stride=(2, 1), padding=1)
    data, networks = _double(BLOBS), torch.arange(8)
    ranges = HyperparameterRanges(steps=(5, 30), learning_rate=(1e-3, 5e-2))
    hyper = ranges.sample(CounterRandom(4), networks)
    assert len(hyper["steps"].unique()) > 3
    thetas = train_population(space, data, networks, hyper, seed=4, batch_size=6)
    for i in range(8):
        alone = train_population(space, data, networks[i : i + 1], {k: v[i : i + 1] for k, v in hyper.items()}, seed=4, batch_size=6)
        torch.testing.assert_close(thetas[i], alone[0], rtol=0, atol=1e-8)
        torch.testing.assert_close(thetas[i], _plain_loop(space, data, i, hyper, 4, 6), rtol=0, atol=1e-8)
    start = initial_thetas(space, CounterRandom(4), networks, hyper["initial_scale"])
    assert (thetas - start).abs().amax(1).min() > 1e-3


@pytest.mark.parametrize(
    "space",
    [
        WeightSpace.cnn([1, 3, 4], [6, 3], "tanh", stride=2, padding=1, readout="flatten", positions=4),
        WeightSpace.mlp([25, 6, 3], "gelu", bias=False),
        WeightSpace.mlp([25, 3]),
    ],
    ids=["cnn_flatten", "mlp_no_bias", "linear"],
)
def test_any_classifier_trains(space: WeightSpace) -> None:
    data = _double(BLOBS, flat=len(space.params[0].shape) == 2)
    hyper = HyperparameterRanges(steps=(150, 150), learning_rate=(2e-2, 2e-2), dropout=(0.1, 0.1), training_fraction=(1.0,)).sample(
        CounterRandom(0), torch.arange(4)
    )
    thetas = train_population(space, data, torch.arange(4), hyper)
    metrics = evaluate_population(space, data, thetas, torch.arange(4), hyper["training_fraction"])
    assert metrics["train_accuracy"].min() > 0.75
    assert metrics["train_loss"].max() < 0.6


def test_general_networks_train() -> None:
    space, generator = residual_space("relu"), torch.Generator().manual_seed(0)
    images = torch.randn(40, 3, generator=generator)
    labels = (images.sum(1) > 0).long()
    hyper = HyperparameterRanges(steps=(100, 100), learning_rate=(2e-2, 2e-2), training_fraction=(1.0,)).sample(
        CounterRandom(0), torch.arange(3)
    )
    data = ClassificationData(images, labels, images, labels)
    thetas = train_population(space, data, torch.arange(3), hyper)
    assert evaluate_population(space, data, thetas, torch.arange(3), hyper["training_fraction"])["test_accuracy"].min() > 0.9


def test_networks_see_only_their_fraction_of_the_training_set() -> None:
    space, networks = WeightSpace.mlp([25, 6, 3]), torch.arange(2)
    data = _double(BLOBS, flat=True)
    hyper = HyperparameterRanges(steps=(20, 20), training_fraction=(0.25,)).sample(CounterRandom(0), networks)
    order, count = training_examples(CounterRandom(0), networks, hyper["training_fraction"], 40)
    assert count.tolist() == [10, 10]
    assert order.sort(1).values.tolist() == [list(range(40))] * 2
    assert not torch.equal(order[0], order[1])
    thetas = train_population(space, data, networks, hyper)
    for network, (seen, unseen) in enumerate(zip(order[:, :10], order[:, 10:], strict=True)):
        results = []
        for spoiled in (seen, unseen):
            images = data.images.clone()
            images[spoiled] += 1
            results.append(train_population(space, data._replace(images=images), networks, hyper)[network])
        assert not torch.allclose(results[0], thetas[network])
        assert torch.equal(results[1], thetas[network])
    assert training_examples(CounterRandom(0), networks, torch.tensor([1e-9, 1.0]), 40)[1].tolist() == [1, 40]


def test_dropout_matters_and_rates_differ_by_network() -> None:
    space, data, networks = WeightSpace.mlp([25, 6, 3]), _double(BLOBS, flat=True), torch.arange(3)
    hyper = HyperparameterRanges(steps=(10, 10), dropout=(0, 0)).sample(CounterRandom(0), networks)
    plain = train_population(space, data, networks, hyper)
    mixed = train_population(space, data, networks, {**hyper, "dropout": torch.tensor([0.0, 0.5, 0.0], dtype=torch.float64)})
    same = [bool(torch.allclose(a, b, rtol=0, atol=1e-10)) for a, b in zip(plain, mixed, strict=True)]
    assert same == [True, False, True]


def test_progress_is_reported_per_network_step() -> None:
    space, data, networks = WeightSpace.mlp([25, 6, 3]), _double(BLOBS, flat=True), torch.arange(5)
    hyper = FAST.sample(CounterRandom(0), networks)
    done: list[int] = []
    train_population(space, data, networks, hyper, advance=done.append)
    assert sum(done) == int(hyper["steps"].sum())
    assert len(done) == int(hyper["steps"].max())


def test_divergence_stays_with_its_network() -> None:
    space, data, networks = WeightSpace.mlp([25, 6, 3]), _double(BLOBS, flat=True), torch.arange(3)
    hyper = FAST.sample(CounterRandom(0), networks)
    calm = train_population(space, data, networks, hyper)
    wild = train_population(space, data, networks, {**hyper, "learning_rate": hyper["learning_rate"] * torch.tensor([1, torch.inf, 1])})
    assert not wild[1].isfinite().all()
    assert torch.equal(wild[[0, 2]], calm[[0, 2]])


def test_checkpoints_are_what_the_network_was_at_that_step() -> None:
    space, networks = WeightSpace.mlp([25, 6, 3]), torch.arange(12)
    problem = Classifiers(space, _double(BLOBS, flat=True), FAST, seed=2, checkpoints=(0, 5), dtype=torch.float64)
    thetas, table = problem.train(networks, device="cpu", advance=lambda _: None)
    steps = problem.hyperparameters(networks)["steps"]
    assert table["network"].tolist() == [n for n in range(12) for _ in range(3 if steps[n] > 5 else 2)]
    assert table["step"].tolist() == [step for n in range(12) for step in ([0, 5] if steps[n] > 5 else [0]) + [int(steps[n])]]
    assert torch.equal(table["final"], table["step"] == table["steps"])
    first = table["step"] == 0
    assert torch.equal(thetas[first], initial_thetas(space, CounterRandom(2), networks, table["initial_scale"][first]))
    shorter = {**problem.hyperparameters(networks), "steps": torch.full((12,), 5)}
    five = train_population(space, problem.data, networks, shorter, seed=2)
    assert torch.equal(thetas[table["step"] == 5], five[steps >= 5])
    scores = evaluate_population(space, problem.data, thetas[first], networks, table["training_fraction"][first], seed=2)
    assert torch.equal(table["test_loss"][first], scores["test_loss"])
    assert len(set(zip(table["network"].tolist(), table["split"], strict=True))) == 12


# == Implicit neural representations ==

_PICTURES = ClassificationData(
    torch.rand(7, 2, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1,
    torch.arange(7) % 3,
    torch.rand(3, 2, 4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1,
    torch.arange(3),
)


def _fits(**options: Any) -> ImageFits:
    signal = options.pop("signal", Signal((4, 6), offset=0.5))
    return ImageFits(WeightSpace.siren([2, 5, 4, 2], 20, signal=signal), _PICTURES, **{"steps": 9, "dtype": torch.float64, **options})


def test_initial_sirens_are_those_of_the_paper() -> None:
    tensors = WeightSpace.siren().unflatten(initial_sirens(WeightSpace.siren(), CounterRandom(0), torch.arange(500)))
    bounds = {"layers.0.weight": 1 / 2, "layers.1.weight": (6 / 32) ** 0.5 / 30, "layers.2.weight": (6 / 32) ** 0.5 / 30}
    bounds |= {"layers.0.bias": 2**-0.5, "layers.1.bias": 32**-0.5, "layers.2.bias": 32**-0.5}
    for name, bound in bounds.items():
        assert float(tensors[name].abs().max()) == pytest.approx(bound, rel=0.01), name
        assert float(tensors[name].std()) == pytest.approx(bound / 3**0.5, rel=0.05), name


class _Siren(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 5), nn.Linear(5, 4), nn.Linear(4, 2)])

    def forward(self, points: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            points = torch.sin(20 * layer(points))
        result: Tensor = self.layers[-1](points)
        return result


@pytest.mark.parametrize("signal", [Signal((4, 6), "column", 0.5, (0, 1)), Signal((4, 6), "row", 0.0, (-1, 1))])
def test_fits_equal_networks_fitted_one_by_one(signal: Signal) -> None:
    """Against a torch module, torch.optim.Adam and torch's own cosine schedule, with the same random numbers."""
    problem, networks = _fits(signal=signal, seed=4), torch.tensor([3, 12, 8])
    thetas, table = problem.train(networks, device="cpu", advance=lambda _: None)
    random = CounterRandom(4)
    pictures = torch.cat([_PICTURES.images, _PICTURES.test_images])
    lin = [torch.linspace(-1, 1, side, dtype=torch.float64) for side in (4, 6)]
    grid = [[(lin[1][j], lin[0][i]) if signal.first_axis == "column" else (lin[0][i], lin[1][j]) for j in range(6)] for i in range(4)]
    points = torch.tensor(grid, dtype=torch.float64).view(24, 2)
    for i, number in enumerate(networks[:, None]):
        model = _Siren().double()
        model.load_state_dict(problem.space.unflatten(initial_sirens(problem.space, random, number)[0]))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 9)
        picture = pictures[table["image"][i]]
        truth = (picture if signal.value_range == (-1, 1) else (picture + 1) / 2).flatten(1).T
        for step in range(9):
            order = random.uniform(number, "pixels", (24,), step=step // 4)[0].argsort()
            chosen = order[6 * (step % 4) : 6 * (step % 4) + 6]
            optimizer.zero_grad()
            F.mse_loss(model(points[chosen]) + signal.offset, truth[chosen]).backward()
            optimizer.step()
            schedule.step()
        torch.testing.assert_close(thetas[i], problem.space.flatten(model.state_dict()), rtol=0, atol=1e-10)
        loss = F.mse_loss(problem.space.render(thetas[i : i + 1])[0].flatten(1).T, truth)
        assert float(table["loss"][i]) == pytest.approx(float(loss))
        low, high = signal.value_range
        assert float(table["psnr"][i]) == pytest.approx(float(10 * torch.log10((high - low) ** 2 / loss)))


def test_every_picture_is_fitted_before_any_is_again() -> None:
    _, table = _fits(validation=0.3).train(torch.arange(30), device="cpu", advance=lambda _: None)
    assert sorted(table["image"][:10].tolist()) == sorted(table["image"][10:20].tolist()) == list(range(10))
    assert table["fit"].tolist() == [0] * 10 + [1] * 10 + [2] * 10
    labels = torch.cat([_PICTURES.labels, _PICTURES.test_labels])
    assert torch.equal(table["label"], labels[table["image"]])
    splits = dict(zip(table["image"].tolist(), table["split"], strict=True))
    assert all(splits[image] == split for image, split in zip(table["image"].tolist(), table["split"], strict=True))
    assert [list(splits.values()).count(name) for name in ("train", "val", "test")] == [5, 2, 3]
    assert all((splits[image] == "test") == (image >= 7) for image in splits)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"signal": Signal((4, 5))}, r"size of the signal of the space, .* \(got shape \[7, 2, 4, 6\]\)"),
        ({"learning_rate": 0}, "positive 'learning_rate'"),
        ({"validation": 1}, "'validation' of at least 0 and below 1"),
        ({"steps": 0}, "'steps' to be a positive integer"),
        ({"pixels": -1}, "'pixels' to be a positive integer"),
    ],
)
def test_fits_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _fits(**options)


def test_fits_need_sines_and_pictures_in_range() -> None:
    with pytest.raises(ValueError, match="sinusoidal activations of one frequency"):
        ImageFits(WeightSpace.mlp([2, 5, 2]), _PICTURES)
    with pytest.raises(ValueError, match=r"'images' with values in \[-1, 1\]"):
        ImageFits(WeightSpace.siren([2, 5, 2], signal=Signal((4, 6))), _PICTURES._replace(images=_PICTURES.images * 3))
    with pytest.raises(ValueError, match=r"'images' to be a floating tensor \[n, 1, ...\]"):
        ImageFits(WeightSpace.siren([2, 5, 1], signal=Signal((4, 6))), _PICTURES)
