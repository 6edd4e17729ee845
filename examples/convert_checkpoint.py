"""Convert a checkpoint, look at its parameter graph, move it by its symmetry group and bring it into canonical form."""

import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

import wsgraph

torch.manual_seed(0)
module = nn.Sequential(
    nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)
)
images = torch.randn(5, 1, 28, 28)

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "model.safetensors"
    save_file(module.state_dict(), path)
    state_dict = wsgraph.load_checkpoint(path)
# What weights do not show of convolutions: without these arguments it would be assumed, with a warning.
space, theta = wsgraph.from_state_dict(state_dict, activation="relu", stride=1, padding=0, pooling="none", readout="global_avg_pool")
print(space.summary())

graph = space.graph(theta)
print(graph, "->", graph.to_networkx())

g = space.sample_symmetry(1, scale=(1e-3, 1e3), generator=torch.Generator().manual_seed(0))
moved = space.act(g, theta[None])[0]
before = module(images)
module.load_state_dict(space.unflatten(moved))
print(f"weights changed by up to {(moved - theta).abs().max():.3g}, outputs by up to {(module(images) - before).abs().max():.3g}")

canonical = space.canonicalize(torch.stack([theta, moved]))
print(f"canonical forms differ by at most {(canonical[0] - canonical[1]).abs().max():.3g}")
