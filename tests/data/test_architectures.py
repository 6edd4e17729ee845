"""Zoos of any module: batch normalisation, dropout, transformers and mixers, side by side and from the registry."""

import copy
import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.data.blobs import blobs
from wsgraph import WeightSpace, trace
from wsgraph.data import (
    Classifiers,
    CounterRandom,
    HyperparameterRanges,
    ZooStore,
    architecture_of,
    generate_zoo,
    make_cnn_zoo,
    make_zoo,
    register_architecture,
)
from wsgraph.data.generators import architectures
from wsgraph.data.generators.architectures import ResNet
from wsgraph.data.generators.classifiers import train_population, training_examples
from wsgraph.data.generators.modules import ModulePopulation

FAST = HyperparameterRanges(steps=(3, 9))
DATA = blobs(side=4)
DOUBLE = DATA._replace(images=DATA.images.double(), test_images=DATA.test_images.double())
TINY: dict[str, dict[str, Any]] = {
    "resnet": {"channels": (3, 4)},
    "vit": {"width": 4, "depth": 1, "hidden": 5, "pooling": "token"},
    "mixer": {"width": 4, "depth": 1, "hidden": 5, "token_hidden": 3},
}


@functools.cache
def _traced(name: str) -> tuple[nn.Module, WeightSpace]:
    module = architecture_of(name).build(1, 3, (4, 4), **TINY[name])
    assert isinstance(module, nn.Module)
    return module.eval().requires_grad_(False), trace(module, DATA.images[:1])


def _plain_loop(problem: Classifiers, network: int, masked: list[str]) -> dict[str, Tensor]:
    """One network, its own module, torch.optim.AdamW, with the same random numbers; dropout by hooks."""
    assert problem.module is not None
    random, number = CounterRandom(problem.seed), torch.tensor([network])
    hyper = {name: values.item() for name, values in problem.hyperparameters(number).items()}
    data, model = DOUBLE, type(problem.module)(1, 3, (4, 4), **TINY["resnet"]).double()
    population = ModulePopulation(problem.space, data.images, problem.module)
    start = population.flatten(*population.initial(random, number, torch.tensor([hyper["initial_scale"]])))
    model.load_state_dict(problem.space.unflatten(start[0]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=hyper["learning_rate"], weight_decay=hyper["weight_decay"])
    order, count = training_examples(random, number, torch.tensor([hyper["training_fraction"]]), len(data.images))
    kept: list[Tensor] = []
    for name in masked:
        model.get_submodule(name).eval()  # no dropout but that of the hook
        model.get_submodule(name).register_forward_hook(lambda *call: call[2] * kept.pop(0)[..., None, None])
    for step in range(int(hyper["steps"])):
        chosen = order[0, (random.uniform(number, "minibatch", (6,), step=step)[0] * count).long()]
        drawn = random.uniform(number, "dropout", (6, 7), step=step)[0] >= hyper["dropout"]
        kept[:] = (drawn / (1 - hyper["dropout"])).split([3, 4], 1)
        optimizer.zero_grad()
        F.cross_entropy(model(data.images[chosen]), data.labels[chosen]).backward()
        optimizer.step()
    return model.state_dict()


def test_batch_normalisation_is_that_of_networks_trained_one_by_one() -> None:
    module, space = _traced("resnet")
    ranges = HyperparameterRanges(steps=(3, 12), dropout=(0.1, 0.4))
    problem = Classifiers(space, DOUBLE, ranges, seed=4, batch_size=6, dtype=torch.float64, module=module)
    thetas, table = problem.train(torch.arange(5), device="cpu", advance=lambda _: None)
    assert len(set(table["steps"].tolist())) > 2
    for i, theta in enumerate(thetas):
        state, plain = space.unflatten(theta), _plain_loop(problem, i, ["blocks.1", "blocks.3"])
        assert list(state) == list(plain)
        for name, values in plain.items():
            torch.testing.assert_close(state[name], values, rtol=0, atol=1e-6)
        assert int(state["stem.0.1.num_batches_tracked"]) == table["steps"][i]
    assert (thetas[0] - thetas[1]).abs().max() > 1e-2


@pytest.mark.parametrize("name", TINY)
def test_stored_networks_are_the_modules_own_functions(name: str, tmp_path: Path) -> None:
    options = {"data": DATA, "architecture": name, "ranges": FAST, "progress": False, **TINY[name]}
    store = make_cnn_zoo(tmp_path / "zoo", 6, seed=1, population=4, checkpoints=(0,), **options)
    module, space = copy.deepcopy(_traced(name)[0]), _traced(name)[1]
    assert store.space == space
    assert len(store) == 12
    table, random = store.table, CounterRandom(1)
    for row, theta in enumerate(store.thetas):
        module.load_state_dict(store.space.unflatten(theta))
        logits = module(DATA.test_images)
        assert table["test_accuracy"][row] == pytest.approx(float((logits.argmax(1) == DATA.test_labels).double().mean()))
        assert table["test_loss"][row] == pytest.approx(float(F.cross_entropy(logits, DATA.test_labels)), rel=1e-4)
        fraction = torch.tensor([table["training_fraction"][row]])
        order, count = training_examples(random, torch.tensor([int(table["network"][row])]), fraction, 40)
        seen = order[0, : count[0]]
        loss = F.cross_entropy(module(DATA.images[seen]), DATA.labels[seen])
        assert table["train_loss"][row] == pytest.approx(float(loss), rel=1e-4)
    moved = [key for key, values in store.space.unflatten(store.thetas).items() if (values[0] != values[1]).any()]
    assert len(moved) == len(store.space.params)  # every tensor was trained, statistics, tokens and positions too
    assert store.info["configuration"]["architecture"].startswith(f"{name}(")


def test_networks_do_not_depend_on_those_beside_them(tmp_path: Path) -> None:
    module, space = _traced("resnet")
    problem = Classifiers(space, DOUBLE, FAST, dtype=torch.float64, module=module)
    four, one = (generate_zoo(tmp_path / str(size), [problem], 7, population=size, progress=False) for size in (4, 1))
    order = [store.column("network").argsort() for store in (four, one)]
    torch.testing.assert_close(four.thetas[order[0]], one.thetas[order[1]], rtol=0, atol=1e-8)
    assert four.column("test_loss")[order[0]].tolist() == pytest.approx(one.column("test_loss")[order[1]].tolist())


@pytest.mark.parametrize("name", TINY)
def test_architectures_learn(name: str) -> None:
    module, space = _traced(name)
    ranges = HyperparameterRanges(steps=(100, 100), learning_rate=(2e-2, 2e-2), dropout=(0, 0.1), training_fraction=(1.0,))
    problem = Classifiers(space, DATA, ranges, module=module)
    _, table = problem.train(torch.arange(3), device="cpu", advance=lambda _: None)
    assert table["train_accuracy"].min() > 0.7  # of three classes


def test_several_architectures_and_options_share_the_networks(tmp_path: Path) -> None:
    options: dict[str, Any] = {"width": [4, 6], "depth": 1, "hidden": 5, "patch": 4, "ranges": FAST, "progress": False}
    store = make_cnn_zoo(tmp_path / "zoo", 9, "relu", architecture=["vit", "cnn"], channels=(3,), data=DATA, **options)
    told = [each.get("architecture", "") for each in store.info["configuration"]["problems"].values()]
    assert told[:2] == [f"vit(patch=4, width={w}, depth=1, heads=2, hidden=5, pooling='mean', activation='relu')" for w in (4, 6)]
    assert store.spaces[2] == WeightSpace.cnn([1, 3], [3], stride=2, padding=1)
    assert sorted(store.dataset().of_space(store.spaces[1]).column("network").tolist()) == [1, 4, 7]
    assert len(store) == 9


class _Renamed(ResNet):
    pass


class _Odd(nn.Module):
    """Tied weights, a fixed table, a dropout module that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(16, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.third = nn.Linear(6, 6)
        self.third.weight = self.second.weight
        self.table: Tensor
        self.factor: Tensor
        self.register_buffer("table", torch.arange(6.0))
        self.register_buffer("factor", torch.full((6,), 0.5), persistent=False)
        self.dropout = nn.Dropout(0.5)

    def forward(self, images: Tensor) -> Tensor:
        values = self.dropout(torch.relu(self.first(images.flatten(1)))) + self.table * self.factor
        values = self.dropout(torch.relu(self.second(values)))
        result: Tensor = self.out(self.third(values))
        return result


def test_any_module(tmp_path: Path) -> None:
    module = _Odd()
    store = make_zoo(tmp_path / "zoo", module, **DATA._asdict(), networks=5, ranges={"steps": (5, 9)}, progress=False)
    assert module.training
    module.eval().load_state_dict(store.space.unflatten(store.thetas[0]))
    assert module.table.tolist() == list(range(6))
    accuracy = (module(DATA.test_images).argmax(1) == DATA.test_labels).double().mean()
    assert store.column("test_accuracy")[0] == pytest.approx(float(accuracy))
    population = ModulePopulation(store.space, DATA.images, module)
    assert population.mask_shapes == {"dropout.mask0": (6,), "dropout.mask1": (6,)}
    hyper = FAST.sample(CounterRandom(0), torch.arange(2))
    dropped, plain = (
        train_population(store.space, DATA, torch.arange(2), {**hyper, "dropout": torch.tensor([0.0, rate])}, module=module)
        for rate in (0.5, 0.0)
    )
    torch.testing.assert_close(dropped[0], plain[0])
    assert not torch.allclose(dropped[1], plain[1])


def test_interrupted_zoos_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, space = _traced("resnet")
    problem = Classifiers(space, DATA, FAST, module=module)

    def make(name: str, each: Classifiers = problem) -> ZooStore:
        return generate_zoo(tmp_path / name, [each], 8, population=4, workers=1, progress=False)

    whole, original, calls = make("whole"), Classifiers.train, []

    def stop(self: Classifiers, *arguments: Any, **keywords: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, *arguments, **keywords)

    monkeypatch.setattr(Classifiers, "train", stop)
    with pytest.raises(KeyboardInterrupt):
        make("stopped")
    assert len(ZooStore(tmp_path / "stopped")) == 4
    with pytest.raises(ValueError, match=r"begun with another configuration \(module: ResNet \w+ there, _Renamed \w+ now\)"):
        make("stopped", dataclasses.replace(problem, module=_Renamed(1, 3, (4, 4), **TINY["resnet"])))
    assert torch.equal(make("stopped").thetas, whole.thetas)
    assert len(calls) == 3


def test_a_registered_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(architectures.registry, "_ARCHITECTURES", type(architectures.registry._ARCHITECTURES)("architecture"))

    @register_architecture("perceptron", ranges=FAST)
    def perceptron(channels: int, classes: int, size: tuple[int, int], *, hidden: int = 8) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(channels * size[0] * size[1], hidden), nn.Tanh(), nn.Linear(hidden, classes))

    store = make_cnn_zoo(tmp_path / "zoo", 4, architecture="perceptron", hidden=[5, 6], data=DATA, progress=False)
    assert [space.num_params for space in store.spaces] == [16 * 5 + 5 + 5 * 3 + 3, 16 * 6 + 6 + 6 * 3 + 3]
    assert set(store.column("steps")) <= set(range(3, 10))
    with pytest.raises(ValueError, match="default value for the option 'width' of the architecture 'bad'"):
        register_architecture("bad")(lambda channels, classes, size, width: nn.Flatten())
    with pytest.raises(ValueError, match="architecture named 'perceptron' is registered already"):
        register_architecture("perceptron")(nn.Linear)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"architecture": "resent"}, "Unknown architecture 'resent'. Available architectures: .*resnet"),
        ({"architecture": "resnet", "width": 8}, r"'resnet' has no option 'width'; it has, with these defaults: channels \(\(8, 16\)\)"),
        ({"architecture": ["vit", "mixer"], "channels": (8,)}, "'vit' has no option 'channels'"),
        ({"architecture": "vit", "width": "wide"}, "option 'width' of the architecture 'vit' to be such as 16 .*'wide'"),
        ({"architecture": "vit", "width": 0}, "'width' to be a positive integer"),
        ({"architecture": "vit", "heads": 3}, r"'heads' to divide the width 16 \(got 3\)"),
        ({"architecture": "vit", "pooling": "max"}, "'pooling' to be 'mean' or 'token'"),
        ({"architecture": "mixer", "patch": 3}, "'patch' to divide height and width of the pictures, 4 and 4"),
        ({"architecture": "resnet", "channels": (4, 0)}, r"'channels\[1\]' to be a positive integer"),
        ({"architecture": "resnet", "activation": "swishy"}, "Unknown activation or operator 'swishy'"),
    ],
)
def test_bad_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_cnn_zoo(tmp_path / "zoo", 4, data=DATA, **options)
    assert not (tmp_path / "zoo").exists()


def test_modules_that_do_not_fit() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()
    space = trace(module, DATA.images[:1])
    with pytest.raises(ValueError, match=r"lacks the key '1\.weight'"):
        Classifiers(space, DATA, module=nn.Linear(16, 3))
    narrow = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).eval()
    with pytest.raises(ValueError, match="one integer label from 0 to 1"):
        Classifiers(trace(narrow, DATA.images[:1]), DATA, module=narrow)
    with pytest.raises(ValueError, match=r"cannot be run for many networks at once on images of shape \[1, 5, 5\]: "):
        Classifiers(space, blobs(), module=module)
    maps = nn.Conv2d(1, 3, 3).eval()
    with pytest.raises(ValueError, match=r"logits \[n, classes\] \(got shape \[1, 3, 2, 2\] for one image\)"):
        Classifiers(trace(maps, DATA.images[:1]), DATA, module=maps)
