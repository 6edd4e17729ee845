"""How well networks are aligned: planted elements, noise, and what lies halfway between two networks trained apart.

Three questions, for five architectures and two kinds of trained networks:

- A network is moved by a random element (permutations, factors from 0.01 to 100, signs). Is it brought back to the reference?
- Noise of a share of the mean magnitude is added to the reference, and the network then left where it is or moved. How far from the
  reference does it lie after alignment, relative to the distance of the noise?
- Two networks are trained on scikit-learn's digits from different seeds. How accurate is their midpoint as trained, aligned by weights,
  and aligned by activations on 300 training images; and with the statistics of its norms taken anew?

Run from the repository root:

    python benchmarks/alignment.py
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import wsgraph
from wsgraph import WeightSpace
from wsgraph.data import ClassificationData, digits
from wsgraph.files import write_atomically, write_json
from wsgraph.measure import machine
from wsgraph.symmetry import align

NOISES = (0.01, 0.03, 0.1, 0.3)
METHODS = ("as trained", "aligned by weights", "aligned by activations")
COLORS = {"as trained": "#0072B2", "aligned by weights": "#D55E00", "aligned by activations": "#009E73"}
RECALIBRATED = ", statistics recalibrated"


class ResNet(nn.Module):
    """A small residual network: a stem, two blocks of two convolutions, pooling and a linear layer.

    Args:
        channels: Channels of all convolutions.
        norms: Whether batch norms follow the convolutions.
    """

    def __init__(self, channels: int, *, norms: bool) -> None:
        super().__init__()

        def convolution(inputs: int) -> nn.Module:
            layer = nn.Conv2d(inputs, channels, 3, padding=1, bias=not norms)
            return nn.Sequential(layer, nn.BatchNorm2d(channels)) if norms else layer

        self.stem = convolution(1)
        self.blocks = nn.ModuleList(nn.Sequential(convolution(channels), nn.ReLU(), convolution(channels)) for _ in range(2))
        self.head = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for block in self.blocks:
            x = F.relu(x + block(x))
        return self.head(x.mean((2, 3)))


def mlp(width: int) -> nn.Module:
    """A multilayer perceptron."""
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 4))


def cnn(channels: int) -> nn.Module:
    """A CNN with pooling between its convolutions and flattening before its linear layer."""
    layers = [nn.Conv2d(1, channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.MaxPool2d(2), nn.Conv2d(channels, channels, 2), nn.ReLU(), nn.Flatten(), nn.Linear(channels, 10))


ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "MLP": (lambda: mlp(32), (2, 8)),
    "CNN": (lambda: cnn(16), (2, 1, 8, 8)),
    "ResNet": (lambda: ResNet(12, norms=False), (2, 1, 8, 8)),
    "ResNet with batch norms": (lambda: ResNet(12, norms=True), (2, 1, 8, 8)),
    "transformer layer": (lambda: nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), (2, 5, 16)),
}


def randomized(module: nn.Module, generator: torch.Generator) -> nn.Module:
    """The module in double precision, its biases, gains and statistics spread as training spreads them."""
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        elif tensor.is_floating_point() and tensor.ndim == 1:
            tensor.add_(0.3 * torch.randn(tensor.shape, generator=generator))
    return module.double().eval()


def aligned_distance(space: WeightSpace, theta: Tensor, reference: Tensor) -> float:
    """How far a network lies from the reference after alignment."""
    return float((space.act(align(space, theta, reference), theta) - reference).norm())


def planted_and_noisy(make: Callable[[], nn.Module], shape: tuple[int, ...], seeds: int, noises: Sequence[float]) -> dict[str, Any]:
    """Elements recovered, and ratios of distances with noise, over several networks."""
    recovered, seconds = 0, []
    beside: dict[float, list[float]] = {noise: [] for noise in noises}
    moved_too: dict[float, list[float]] = {noise: [] for noise in noises}
    space = None
    for seed in range(seeds):
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        module = randomized(make(), generator)
        space = wsgraph.trace(module, torch.randn(shape, dtype=torch.float64))
        theta = space.flatten(module.state_dict())[None]

        def move(thetas: Tensor, space: WeightSpace = space, generator: torch.Generator = generator) -> Tensor:
            return space.act(space.sample_symmetry(1, (1e-2, 1e2), generator=generator), thetas)

        start = time.perf_counter()
        recovered += aligned_distance(space, move(theta), theta) < 1e-6 * float(theta.norm())
        seconds.append(time.perf_counter() - start)
        for noise in noises:
            near = theta + noise * theta.abs().mean() * torch.randn(theta.shape, generator=generator, dtype=torch.float64)
            distance = float((near - theta).norm())
            beside[noise].append(aligned_distance(space, near, theta) / distance)
            moved_too[noise].append(aligned_distance(space, move(near), theta) / distance)

    def summary(ratios: dict[float, list[float]]) -> dict[str, dict[str, float]]:
        return {f"{noise:g}": {"median": statistics.median(values), "worst": max(values)} for noise, values in ratios.items()}

    return {
        "space": repr(space),
        "networks": seeds,
        "recovered": int(recovered),
        "seconds": statistics.median(seconds),
        "left_in_place": summary(beside),
        "moved": summary(moved_too),
    }


# == Between networks trained apart ==


def train(make: Callable[[], nn.Module], data: ClassificationData, seed: int, epochs: int) -> nn.Module:
    """One network after training with AdamW and a cosine schedule."""
    torch.manual_seed(seed)
    module = make().train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3, weight_decay=1e-3)
    batches = len(data.images) // 64
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
    for _ in range(epochs):
        for batch in torch.randperm(len(data.images))[: batches * 64].view(batches, 64):
            optimizer.zero_grad()
            F.cross_entropy(module(data.images[batch]), data.labels[batch]).backward()
            optimizer.step()
            schedule.step()
    return module.eval()


def accuracy(module: nn.Module, data: ClassificationData) -> float:
    """Share of the test images that a network gets right."""
    with torch.no_grad():
        return float((module(data.test_images).argmax(1) == data.test_labels).float().mean())


def recalibrated(module: nn.Module, images: Tensor) -> nn.Module:
    """A copy whose norms have the statistics of its own activations."""
    result = copy.deepcopy(module).train()
    for part in result.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.reset_running_stats()
            part.momentum = None  # which averages over batches
    with torch.no_grad():
        for batch in images.split(256):
            result(batch)
    return result.eval()


def between(make: Callable[[], nn.Module], data: ClassificationData, pairs: int, epochs: int, steps: int) -> dict[str, Any]:
    """Accuracies of networks on the line between two trained apart, by method, over several pairs."""
    curves: dict[str, list[list[float]]] = {}
    ends = []
    shares = torch.linspace(0, 1, steps).tolist()
    for pair in range(pairs):
        first, second = (train(make, data, 2 * pair + i, epochs) for i in (0, 1))
        space = wsgraph.trace(first, data.images[:2])
        one, other = (space.flatten(module.state_dict())[None] for module in (first, second))
        ends += [accuracy(first, data), accuracy(second, data)]
        elements = {
            "aligned by weights": align(space, other, one),
            "aligned by activations": align(space, other, one, inputs=(data.images[:300],), module=first),
        }
        moved = {"as trained": other, **{name: space.act(element, other) for name, element in elements.items()}}
        has_norms = any(isinstance(part, nn.BatchNorm2d) for part in first.modules())
        for name in METHODS:
            plain, anew = [], []
            for share in shares:
                blend = copy.deepcopy(first)
                blend.load_state_dict(space.unflatten(torch.lerp(one, moved[name], share)[0]))
                plain.append(accuracy(blend, data))
                anew.append(accuracy(recalibrated(blend, data.images), data) if has_norms else float("nan"))
            curves.setdefault(name, []).append(plain)
            if has_norms:
                curves.setdefault(name + RECALIBRATED, []).append(anew)
    middle = steps // 2
    return {
        "space": repr(space),
        "pairs": pairs,
        "epochs": epochs,
        "ends": statistics.mean(ends),
        "shares": shares,
        "curves": curves,
        "midpoints": {
            name: {"mean": statistics.mean(curve[middle] for curve in found), "worst": min(curve[middle] for curve in found)}
            for name, found in curves.items()
        },
    }


def draw(document: dict[str, Any], file: Path) -> None:
    """Distances after alignment, and accuracies between networks trained apart."""
    trained = document["between"]
    figure, axes = plt.subplots(1, 1 + len(trained), figsize=(4.2 * (1 + len(trained)), 4.2), layout="constrained")
    noisy, *others = axes
    for (name, found), marker in zip(document["architectures"].items(), "os^Dv", strict=True):
        noises = [float(noise) for noise in found["moved"]]
        noisy.plot(noises, [row["median"] for row in found["moved"].values()], marker=marker, markersize=4, label=name)
    noisy.axhline(1, color="gray", linewidth=0.8, linestyle=":")
    noisy.set(xscale="log", xlabel="noise, share of the mean magnitude", ylabel="distance after / of the noise")
    noisy.set_title("Moved networks, aligned (median)")
    for axis, (name, found) in zip(others, trained.items(), strict=True):
        for method, curves in found["curves"].items():
            anew = method.endswith(RECALIBRATED)
            mean = torch.tensor(curves).mean(0)
            color = COLORS[method.removesuffix(RECALIBRATED)]
            axis.plot(found["shares"], mean, color=color, linestyle="--" if anew else "-", label=method)
        axis.set(xlabel="share of the second network", ylabel="test accuracy", title=f"Between two {name}", ylim=(0, 1.02))
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    noisy.legend(frameon=False, fontsize=8)
    lines, labels = others[-1].get_legend_handles_labels()
    figure.legend(lines, labels, frameon=False, fontsize=8, ncols=3, loc="outside lower right")
    write_atomically(file, lambda temporary: figure.savefig(temporary, format="png", dpi=160))


def report(document: dict[str, Any], console: Console) -> None:
    """Print the tables."""
    noises = [f"{100 * float(noise):g} %" for noise in next(iter(document["architectures"].values()))["moved"]]
    table = Table("network", "recovered", "s", *noises, title="Distance after alignment / of the noise")
    for name, found in document["architectures"].items():
        for title, kind in (("left in place", "left_in_place"), ("moved", "moved")):
            cells = [f"{row['median']:.3f} ({row['worst']:.3f})" for row in found[kind].values()]
            first = kind == "left_in_place"
            counts = [f"{found['recovered']}/{found['networks']}", f"{found['seconds']:.2f}"] if first else ["", ""]
            table.add_row(f"{name}, {title}", *counts, *cells)
    console.print(table)
    console.print("Median (worst).")
    table = Table("networks", "ends", "midpoint", "accuracy", "worst pair", title="Halfway between networks trained apart")
    for name, found in document["between"].items():
        for method, row in found["midpoints"].items():
            table.add_row(name, f"{found['ends']:.3f}", method, f"{row['mean']:.3f}", f"{row['worst']:.3f}")
    console.print(table)


def main() -> None:
    """Align, print tables, write JSON and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few and small networks, to see that it runs")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    seeds, noises, pairs, epochs, steps, channels = (1, NOISES[2:3], 1, 1, 3, 6) if options.quick else (10, NOISES, 4, 40, 11, 48)
    data = digits()
    console = Console()
    document: dict[str, Any] = {"machine": machine(), "architectures": {}, "between": {}}
    for name, (make, shape) in ARCHITECTURES.items():
        console.print(f"{name} ...")
        document["architectures"][name] = planted_and_noisy(make, shape, seeds, noises)
    for name, make in (("digits CNNs", lambda: cnn(channels)), ("ResNets with batch norms", lambda: ResNet(channels, norms=True))):
        console.print(f"Between two {name} ...")
        document["between"][name] = between(make, data, pairs, epochs, steps)
    report(document, console)
    options.output.mkdir(parents=True, exist_ok=True)
    write_json(options.output / "alignment.json", document)
    draw(document, options.output / "alignment.png")


if __name__ == "__main__":
    main()
