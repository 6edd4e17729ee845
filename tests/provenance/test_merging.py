import copy
import itertools
import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.networks import randomized
from tests.test_cli import call
from wsgraph import SpaceMismatchError, WeightSpace, trace
from wsgraph.provenance import Barrier, Curve, MergeWarning, barrier, merge
from wsgraph.provenance.statistics import Averages
from wsgraph.space import AssumedGeometryWarning

SPACES = {
    "mlp": WeightSpace.mlp([4, 10, 10, 3]),
    "cnn": WeightSpace.cnn([2, 6, 6], [3], padding=1),
    "tanh": WeightSpace.mlp([4, 10, 10, 3], "tanh"),
    "siren": WeightSpace.siren((2, 10, 10, 1)),
}
GENERATOR = torch.Generator


class _ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6))
        self.branch = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        result: Tensor = self.head((x + self.branch(x)).relu().mean((2, 3)))
        return result


def _resnet() -> tuple[WeightSpace, Tensor, nn.Module]:
    """A residual network with batch norms, whose gains, statistics and counters are those of no beginner."""
    module = randomized(_ResNet()).double()
    for name, tensor in module.state_dict().items():
        if name.endswith("num_batches_tracked"):
            tensor.fill_(7)
    space = trace(module, _inputs((3, 8, 8), 2))
    return space, space.flatten(module.state_dict()), module


@pytest.fixture(scope="module")
def resnet() -> tuple[WeightSpace, Tensor, nn.Module]:
    return _resnet()


def _inputs(shape: tuple[int, ...], count: int = 40, seed: int = 3) -> Tensor:
    return torch.randn(count, *shape, generator=GENERATOR().manual_seed(seed), dtype=torch.float64)


def _sample(space: WeightSpace, count: int = 1, seed: int = 0) -> Tensor:
    return space.sample(count, generator=GENERATOR().manual_seed(seed), dtype=torch.float64)


def _moved(space: WeightSpace, theta: Tensor, count: int, seed: int = 1) -> Tensor:
    """Copies of a network whose neurons were moved, but for the first."""
    g = space.sample_symmetry(count - 1, (0.05, 20.0), generator=GENERATOR().manual_seed(seed))
    return torch.cat([theta[None], space.act(g, theta.expand(count - 1, -1))])


def _error(space: WeightSpace, theta: Tensor, wanted: Tensor, inputs: Tensor) -> float:
    found, expected = space.evaluate(torch.stack([theta, wanted]), inputs)
    return float((found - expected).abs().max() / expected.abs().max())


# == Averages ==


@pytest.mark.parametrize("align", ["weights", "activations"])
@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("count", [2, 4])
def test_moved_copies_are_one_network(name: str, align: str, count: int) -> None:
    space = SPACES[name]
    theta, inputs = _sample(space)[0], _inputs(tuple(space.example_inputs(1).shape[1:]))
    copies = _moved(space, theta, count)
    merged = merge(space, copies, align=align, inputs=inputs, recalibrate=inputs, weights=[0.7, *[0.3 / (count - 1)] * (count - 1)])
    assert _error(space, merged.theta, theta, inputs) < 1e-9
    torch.testing.assert_close(merged.theta, theta, rtol=1e-9, atol=1e-12)  # beside the first
    assert merged.after.max() < 1e-4
    assert merged.before.max() > 0.5
    assert all(torch.allclose(scale[0], torch.ones_like(scale[0])) for scale in merged.element.scales.values())
    # As they are, copies are as good as strangers.
    assert _error(space, merge(space, copies, align="none").theta, theta, inputs) > 0.1


@pytest.mark.parametrize("align", ["weights", "activations"])
def test_moved_copies_of_a_network_with_batch_norms_are_one(resnet: Any, align: str) -> None:
    space, theta, _ = resnet
    inputs, copies = _inputs((3, 8, 8)), _moved(space, theta, 3)
    assert _error(space, merge(space, copies, align=align, inputs=inputs).theta, theta, inputs) < 1e-9
    assert _error(space, merge(space, copies, align="none").theta, theta, inputs) > 0.1
    # Statistics are those of all inputs, by which training normalises; what is kept of them estimates those of further inputs.
    recalibrated = merge(space, copies, align=align, inputs=inputs, recalibrate=inputs)
    assert _error(space, recalibrated.theta, theta, inputs) < 1e-2
    assert len(recalibrated.recalibrated) == 2


def test_statistics_are_those_of_training(resnet: Any) -> None:
    space, theta, module = resnet
    copies, inputs = _moved(space, theta, 2), _inputs((3, 8, 8), 50)
    merged = merge(space, copies, align="none", recalibrate=inputs).theta
    network = copy.deepcopy(module)
    network.load_state_dict(space.unflatten(merged))
    for part in network.train().modules():
        if isinstance(part, nn.BatchNorm2d):
            part.reset_running_stats()
            part.momentum = None
    network(inputs)
    for name, tensor in network.state_dict().items():
        if "running" in name:
            torch.testing.assert_close(tensor, space.unflatten(merged)[name], rtol=1e-9, atol=1e-12)
    assert space.unflatten(merged)["stem.1.num_batches_tracked"] == 7


def test_networks_traced_on_one_input_are_averaged_alike(resnet: Any) -> None:
    space, theta, module = resnet
    single = trace(module, _inputs((3, 8, 8), 1))
    copies, inputs = _moved(space, theta + 0.05 * _sample(space)[0].abs(), 2), _inputs((3, 8, 8), 20)
    expected, found = (merge(each, torch.stack([theta, copies[1]]), inputs=inputs, recalibrate=inputs) for each in (space, single))
    assert expected.alignment == "activations"
    torch.testing.assert_close(found.theta, expected.theta, rtol=1e-8, atol=1e-10)


@pytest.mark.filterwarnings("ignore::wsgraph.provenance.MergeWarning")
def test_layers_without_norms_vary_as_those_of_the_networks() -> None:
    space = WeightSpace.mlp([4, 64, 64, 3])
    thetas, inputs = _sample(space, 2), _inputs((4,), 200)
    averages = Averages(space, thetas, inputs)

    def deviations(theta: Tensor) -> Tensor:
        state = space.unflatten(theta)
        hidden = inputs @ state["layers.0.weight"].T + state["layers.0.bias"]
        return (hidden.relu() @ state["layers.1.weight"].T + state["layers.1.bias"]).std(0, correction=0)

    wanted = 0.3 * deviations(thetas[0]) + 0.7 * deviations(thetas[1])
    torch.testing.assert_close(deviations(averages((0.3, 0.7))), wanted)
    assert deviations(0.3 * thetas[0] + 0.7 * thetas[1]).mean() < 0.9 * wanted.mean()
    assert averages.corrected == ("layers.0.weight", "layers.1.weight")
    torch.testing.assert_close(averages((0, 1)), thetas[1])
    module = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3)).double().eval()
    traced = trace(module, inputs[:5])
    theta = traced.flatten(module.state_dict())
    averages = Averages(traced, torch.stack([theta, theta]), inputs)
    assert averages.corrected == ("0.weight",)
    torch.testing.assert_close(averages((0.5, 0.5)), theta)


def test_several_networks_are_brought_to_their_means() -> None:
    space = SPACES["tanh"]
    theta = _sample(space)[0]
    noisy = theta + 0.3 * theta.abs().mean() * torch.randn(5, len(theta), generator=GENERATOR().manual_seed(2), dtype=torch.float64)
    g = space.sample_symmetry(5, generator=GENERATOR().manual_seed(3))
    thetas = space.act(g, noisy)
    found, again = (merge(space, thetas, seed=4) for _ in range(2))
    assert torch.equal(found.theta, again.theta)
    others = merge(space, thetas, reference=2)
    assert found.after.mean() <= others.after.mean() * 1.001
    assert found.after.max() < 0.5 < found.before.min()
    back = space.act(g.inverse(), found.theta.expand(5, -1))[0]
    assert (back - noisy.mean(0)).norm() < 0.2 * noisy.mean(0).norm()
    torch.testing.assert_close(found.aligned, space.act(found.element, thetas))


def test_averages_are_in_the_dtype_of_the_networks() -> None:
    space = SPACES["mlp"]
    copies = _moved(space, _sample(space)[0], 2)
    for dtype in (torch.float32, torch.bfloat16):
        merged = merge(space, copies.to(dtype))
        assert merged.theta.dtype == merged.aligned.dtype == dtype
    weights = merge(space, copies, weights=[1, 0])
    torch.testing.assert_close(weights.theta, copies[0])
    assert weights.weights == (1.0, 0.0)


# == Refusals ==


def test_refusals() -> None:
    space = SPACES["mlp"]
    thetas = _sample(space, 2)
    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: merge(space, thetas[:1]), "two networks or more"),
        (lambda: merge(space, thetas, weights=[0.5, 0.4]), "sum to 1 .*sum 0.9"),
        (lambda: merge(space, thetas, weights=[1.5, -0.5]), "none negative"),
        (lambda: merge(space, thetas, weights=[1.0]), "Expected 2 'weights'"),
        (lambda: merge(space, thetas, align="answers"), "one of weights, activations, none"),
        (lambda: merge(space, thetas, align="activations"), "needs 'inputs'"),
        (lambda: merge(space, thetas, reference=2), "0 to 1"),
        (lambda: merge(space, torch.full_like(thetas, torch.nan)), "NaN or infinite .*network 0, parameter 'layers.0.weight'"),
        (lambda: merge(space, thetas[:, 1:]), "Expected 'thetas' of shape"),
        (lambda: barrier(space, thetas[0], thetas[1], _inputs((4,)), torch.zeros(40).long(), steps=2), "3 'steps' or more"),
        (lambda: barrier(space, thetas[0], thetas[1], _inputs((4,)), torch.zeros(39).long()), "as many classes as inputs"),
        (lambda: barrier(space, thetas[0], thetas[1], _inputs((4,)), torch.full((40,), 3)), "classes from 0 to 2"),
    ]
    for run, message in cases:
        with pytest.raises((ValueError, SpaceMismatchError), match=message):
            run()


def test_statistics_are_of_networks_that_run(resnet: Any) -> None:
    space, theta, _ = resnet
    with pytest.raises(SpaceMismatchError, match="Restoring statistics has to run networks"):
        merge(replace(space, program=None), _moved(space, theta, 2), recalibrate=_inputs((3, 8, 8)))


def test_strangers_are_averaged_with_a_warning() -> None:
    space = WeightSpace.mlp([8, 32, 32, 4])
    with pytest.warns(MergeWarning, match=r"Network 0, network 1 are at (0\.9|1\.0)\d of the way to shuffled networks"):
        merge(space, _sample(space, 2))
    thetas = _sample(space)
    merge(space, torch.cat([thetas, thetas * (1 + 0.1 * _sample(space, 1, seed=1).sign())]))


def test_averages_of_statistics_are_told(resnet: Any) -> None:
    space, theta, _ = resnet
    both = torch.stack([theta, theta * (1 + 0.1 * _sample(space)[0].sign())])
    with pytest.warns(MergeWarning, match="Averages of running statistics of norms do not fit averaged weights"):
        merge(space, both)
    merge(space, both, recalibrate=_inputs((3, 8, 8)))


def test_integers_of_quantised_networks_are_refused() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).eval()
    module.register_buffer("packed", torch.zeros(2, 2, dtype=torch.int8))
    module.register_buffer("steps", torch.zeros((), dtype=torch.int64))
    space = trace(module, torch.ones(1, 2))
    theta = space.flatten(module.state_dict())
    other = theta.clone()
    other[space.slices["steps"]] = 9
    assert merge(space, torch.stack([other, theta])).theta[space.slices["steps"]] == 9
    other[space.slices["packed"]] = 3
    with pytest.raises(ValueError, match="'packed' is stored as int8"):
        merge(space, torch.stack([theta, other]))


# == Barriers ==


def test_barriers_are_largest_rises_above_the_line() -> None:
    found = Barrier((0.0, 0.5, 1.0), {"as they are": Curve((1.0, 5.0, 2.0), (0.9, 0.2, 0.7)), "flat": Curve((1.0, 1.2, 1.4), ())})
    assert found.height("as they are") == 3.5
    assert abs(found.accuracy_drop("as they are") - 0.6) < 1e-12
    assert abs(found.height("flat")) < 1e-12
    assert found.document()["curves"]["flat"] == {"barrier": found.height("flat"), "losses": [1.0, 1.2, 1.4]}


def test_barriers_of_moved_copies_vanish(resnet: Any) -> None:
    space = SPACES["mlp"]
    (first, second), inputs = _moved(space, _sample(space)[0], 2), _inputs((4,), 60)
    outputs = space.evaluate(first[None], inputs)[0]
    found = barrier(space, first, second, inputs, outputs.argmax(1), steps=5)
    assert list(found.curves) == ["as they are", "aligned by activations", "aligned by activations, recalibrated"]
    assert found.height("as they are") > 0.05
    assert all(abs(found.height(name)) < 1e-9 and found.curves[name].accuracies == (1.0,) * 5 for name in list(found.curves)[1:])
    numbers = barrier(space, first, second, inputs, outputs, steps=3, align="weights")
    assert numbers.curves["aligned by weights"].losses[1] < 1e-20 < numbers.curves["as they are"].losses[1]
    assert numbers.curves["as they are"].accuracies == ()
    norms, theta, _ = resnet
    pictures = _inputs((3, 8, 8), 30)
    labels = norms.evaluate(theta[None], pictures)[0].argmax(1)
    found = barrier(norms, theta, _moved(norms, theta, 2)[1], pictures, labels, steps=3, align="weights")
    losses = {name: curve.losses for name, curve in found.curves.items()}
    for name, tolerance in {"aligned by weights": 1e-9, "aligned by weights, recalibrated": 1e-3}.items():
        assert max(losses[name]) - min(losses[name]) < tolerance
    assert abs(losses["as they are"][1] - losses["as they are"][0]) > 0.1


# == The command ==


def _chain(widths: tuple[int, ...] = (16, 24, 4)) -> nn.Sequential:
    layers = [[nn.Linear(*sizes), nn.ReLU()] for sizes in itertools.pairwise(widths)]
    return nn.Sequential(*[part for pair in layers for part in pair][:-1]).eval()


def test_command_merges_files_of_several_formats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    first = _chain()
    state = {f"net.{name}": tensor for name, tensor in first.state_dict().items()}
    save_file({**state, "other.weight": torch.ones(2)}, "first.safetensors")
    space = WeightSpace.mlp([16, 24, 4])
    theta = torch.cat([tensor.flatten() for tensor in state.values()])
    moved = space.unflatten(_moved(space, theta.double(), 2)[1].float())
    second = _chain()
    second.load_state_dict(dict(zip(first.state_dict(), moved.values(), strict=True)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(second, (torch.ones(1, 16),), "second.onnx", dynamo=False, verbose=False)
    inputs = torch.randn(60, 16)
    labels = first(inputs).argmax(1)
    np.savez("data.npz", inputs=inputs.numpy(), labels=labels.numpy())

    options = ("--activation", "relu", "--prefix", "net.")
    text = call("merge", "first.safetensors", "second.onnx", *options, "--output", "merged.safetensors")
    assert "Aligned by weights" in text
    assert "Warning" not in text
    merged = load_file("merged.safetensors")
    assert list(merged) == list(load_file("first.safetensors"))
    for name, tensor in state.items():
        torch.testing.assert_close(merged[name], tensor, rtol=1e-4, atol=1e-5)

    more = ("--data", "data.npz", "--figure", "barrier.png", "--steps", "5", "--output", "merged.pt")
    text = call("merge", "first.safetensors", "second.onnx", *options, *more, "--weight", "0.25", "--weight", "0.75")
    assert "Aligned by activations" in text
    assert "Statistics of 1 layer are those of 60 inputs" in text
    assert "Barrier of the loss from first.safetensors to second.onnx" in text
    assert Path("barrier.png").stat().st_size > 10_000
    assert list(torch.load("merged.pt", weights_only=True)) == list(merged)
    document = json.loads(call("merge", "first.safetensors", "second.onnx", *options, *more, "--by", "weights", "--json"))
    assert document["merged"]["accuracy"] == document["networks"][0]["accuracy"] == 1.0
    assert document["networks"][0]["distance_after"] < 1e-3 < 0.5 < document["networks"][0]["distance_before"]
    heights = {name: curve["barrier"] for name, curve in document["barriers"]["first.safetensors to second.onnx"]["curves"].items()}
    assert heights["aligned by weights"] < 1e-3 < heights["as they are"]


def test_command_reads_pictures_and_norms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    space, theta, _ = _resnet()
    Path("resnet.json").write_text(space.to_json())
    for name, weights in zip("abc", _moved(space, theta, 3), strict=True):
        torch.save({key: tensor.clone().float() for key, tensor in space.unflatten(weights).items()}, f"{name}.pth")
    generator = np.random.default_rng(0)
    np.savez("data.npz", images=generator.integers(0, 255, (60, 8, 8, 3), np.uint8), labels=generator.integers(0, 3, 60))
    arguments = ["merge", "a.pth", "b.pth", "c.pth", "--space", "resnet.json", "--data", "data.npz", "--output", "merged.pth"]
    text = call(*arguments, "--no-recalibrate")
    assert "their average" in text
    assert "Statistics" not in text
    before, merged = (torch.load(file, weights_only=True) for file in ("a.pth", "merged.pth"))
    assert list(before) == list(merged)
    assert all(before[key].dtype == merged[key].dtype for key in before)
    torch.testing.assert_close(merged, before, rtol=1e-3, atol=1e-4)
    assert "Statistics of 2 layers are those of 54 inputs" in call(*arguments)


def test_command_says_what_it_cannot_merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    for name, widths in {"a": (4, 8, 2), "b": (4, 8, 2), "wide": (4, 9, 2), "inputs": (5, 8, 2), "deep": (4, 8, 8, 2)}.items():
        save_file(_chain(widths).state_dict(), f"{name}.safetensors")
    state = _chain((4, 8, 2)).state_dict()
    save_file({**state, "0.bias": torch.full((8,), torch.nan)}, "nan.safetensors")
    save_file({**state, "2.weight": torch.ones(2, 8, dtype=torch.int8)}, "bytes.safetensors")
    np.savez("unlabelled.npz", inputs=np.zeros((5, 4), np.float32))
    np.savez("uneven.npz", inputs=np.zeros((5, 4), np.float32), labels=np.zeros(4, np.int64))
    call("info", "a.safetensors", "--activation", "relu")
    call("convert", "a.safetensors", "space.json", "--activation", "relu")

    def refused(*arguments: str) -> str:
        return " ".join(call("merge", *arguments, code=1).split())

    relu, end = ("--activation", "relu"), ("--output", "merged.pt")
    assert "two files or more" in refused("a.safetensors", *relu, *end)
    assert "0.weight has shape [8, 4] there and [9, 4] here; 0.bias" in refused("a.safetensors", "wide.safetensors", *relu, *end)
    assert "0.weight has shape [8, 4] there and [8, 5] here." in refused("a.safetensors", "inputs.safetensors", *relu, *end)
    assert "2.bias has shape [2] there and [8] here; 4.weight is new; and 1 more" in refused(
        "a.safetensors", "deep.safetensors", *relu, *end
    )
    assert "NaN" in refused("a.safetensors", "nan.safetensors", *relu, *end)
    assert "'nan.safetensors' holds NaN" in refused("a.safetensors", "nan.safetensors", "--space", "space.json", *end)
    assert "'2.weight' is quantised" in refused("a.safetensors", "bytes.safetensors", "--space", "space.json", *end)
    pair = ("a.safetensors", "b.safetensors", *relu)
    assert "ending in .safetensors, .pt, .pth" in refused(*pair, "--output", "merged.npz")
    assert "sum to 1" in refused(*pair, *end, "--weight", "0.5", "--weight", "0.6")
    assert "--figure needs --data" in refused(*pair, *end, "--figure", "barrier.png")
    assert "--figure needs --data with labels" in refused(*pair, *end, "--figure", "barrier.png", "--data", "unlabelled.npz")
    assert "as many labels" in refused(*pair, *end, "--data", "uneven.npz")
    assert "There is no --data 'missing'" in refused(*pair, *end, "--data", "missing")
    assert "one of weights, activations, none" in refused(*pair, *end, "--by", "hand")
    assert not Path("merged.pt").exists()
    text = " ".join(call("merge", *pair, *end, "--data", "unlabelled.npz").split())
    assert "a.safetensors, b.safetensors are at" in text
    assert Path("merged.pt").exists()


def test_command_tells_assumptions_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    save_file(module.state_dict(), "a.safetensors")
    np.save("inputs.npy", np.random.default_rng(0).normal(size=(5, 1, 8, 8)).astype(np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("error", AssumedGeometryWarning)
        text = call("merge", "a.safetensors", "a.safetensors", "--activation", "relu", "--data", "inputs.npy", "--output", "merged.pt")
    assert "Weights do not show stride 1" in text
    torch.testing.assert_close(torch.load("merged.pt", weights_only=True), module.state_dict())
