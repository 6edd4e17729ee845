"""Merge independently trained CNNs: halfway between two networks, with and without aligning their neurons first."""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from wsgraph.data import HyperparameterRanges, digits, make_cnn_zoo
from wsgraph.symmetry import align

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "example-merge")
pairs = int(sys.argv[2]) if len(sys.argv) > 2 else 8

# Networks that differ in their random numbers alone.
same = HyperparameterRanges(
    learning_rate=(3e-3, 3e-3),
    initial_scale=(1.0, 1.0),
    weight_decay=(1e-3, 1e-3),
    dropout=(0.0, 0.0),
    training_fraction=(1.0,),
    steps=(400, 400),
)
zoo = make_cnn_zoo(folder / "zoo", networks=2 * pairs, channels=(48, 48, 48), seed=0, ranges=same)
space, data = zoo.space, digits()
first, second = torch.as_tensor(zoo.thetas[:]).chunk(2)
aligned = space.act(align(space, second, first), second)  # the same functions, neuron beside neuron


def accuracy(thetas: torch.Tensor) -> torch.Tensor:
    """Share of the test images that each network gets right."""
    return (space.evaluate(thetas, data.test_images).argmax(-1) == data.test_labels).float().mean(1)


steps = torch.linspace(0, 1, 21)
curves = {
    name: torch.stack([accuracy(torch.lerp(first, other, step.item())) for step in steps])
    for name, other in (("as trained", second), ("aligned", aligned))
}
for name, curve in curves.items():
    middle = curve[10]
    spread = f"{middle.min():.3f} to {middle.max():.3f}, {pairs} pairs"
    print(f"{name:10s}  ends {curve[[0, -1]].mean():.3f}, midpoint {middle.mean():.3f} ({spread})")

figure, axes = plt.subplots(figsize=(5, 3.2), layout="constrained")
for (name, curve), color in zip(curves.items(), ("#0072B2", "#D55E00"), strict=True):
    axes.plot(steps, curve, color=color, alpha=0.25, linewidth=0.8)
    axes.plot(steps, curve.mean(1), color=color, linewidth=2, label=name)
axes.set(xlabel="share of the second network", ylabel="test accuracy", title="Between two digits CNNs")
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False)
figure.savefig(folder / "merge.png", dpi=160)
