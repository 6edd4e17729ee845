"""Small networks as people build them: a factory of every module, and its inputs."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["NETWORKS", "make", "randomized"]


def randomized(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights, norm gains and statistics, so that no layer is the identity, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            drawn = torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                tensor.copy_(drawn.abs() + 0.5)
            elif tensor.ndim < 2:
                tensor.copy_(drawn * 0.3 + (1 if name.endswith("weight") else 0))
            else:
                tensor.copy_(drawn / math.sqrt(tensor[0].numel()))
    return module.eval()


class _Block(nn.Module):
    """A residual block with batch norms, and a projection where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        h += self.downsample(x)
        return self.relu(h)


def _resnet() -> nn.Module:
    stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
    body = nn.Sequential(_Block(4, 4, 1), _Block(4, 6, 2))
    return nn.Sequential(stem, body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))


class _Encoder(nn.Module):
    """A vision transformer: patches, a class token, positions and one encoder layer of torch."""

    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 8, 4, stride=4)
        self.token, self.positions = nn.Parameter(torch.zeros(1, 1, 8)), nn.Parameter(torch.zeros(1, 5, 8))
        self.layer = nn.TransformerEncoderLayer(
            8, 2, 12, norm_first=norm_first, batch_first=True, activation="gelu" if norm_first else "relu"
        )
        self.norm: nn.Module = nn.LayerNorm(8) if norm_first else nn.Identity()
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.positions
        return self.head(self.norm(self.layer(x))[:, 0])


class _GPT(nn.Module):
    """A causal language model of one block whose output layer is its embedding."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(11, 8), nn.Embedding(6, 8)
        self.ln_1, self.ln_2, self.ln_f = nn.LayerNorm(8), nn.LayerNorm(8), nn.LayerNorm(8)
        self.c_attn, self.c_proj = nn.Linear(8, 24), nn.Linear(8, 8)
        self.mlp = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))
        self.lm_head = nn.Linear(8, 11, bias=False)
        self.lm_head.weight = self.wte.weight
        self.register_buffer("mask", torch.ones(6, 6).tril().bool(), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        batch, length = ids.shape
        x = self.wte(ids) + self.wpe(torch.arange(length, device=ids.device))
        q, k, v = self.c_attn(self.ln_1(x)).view(batch, length, 3, 2, 4).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-1, -2) / 2).masked_fill(~self.mask[:length, :length], float("-inf"))
        x = x + self.c_proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, 8))
        return self.lm_head(self.ln_f(x + self.mlp(self.ln_2(x))))


class _UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.bottom = (
            nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU()),
            nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU()),
        )
        self.up, self.merge, self.head = nn.ConvTranspose2d(6, 4, 2, stride=2), nn.Conv2d(8, 4, 3, padding=1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        x = self.up(self.bottom(F.max_pool2d(skip, 2)))
        return self.head(torch.relu(self.merge(torch.cat([skip, x], dim=1))))


class _ActorCritic(nn.Module):
    """A policy and a value of normalised observations."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(5))
        self.register_buffer("std", torch.ones(5))
        self.trunk = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())
        self.actor, self.critic = nn.Linear(8, 3), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.trunk((x - self.mean) / self.std.abs().clamp(min=0.1))
        return {"policy": torch.tanh(self.actor(h)), "value": self.critic(h).squeeze(-1)}


class _NeRF(nn.Module):
    """Colour and density of points and directions, with Fourier features and a skip of the input."""

    bands: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bands", 2.0 ** torch.arange(2), persistent=False)
        self.first, self.second, self.third = nn.Linear(15, 8), nn.Linear(8, 8), nn.Linear(8 + 15, 8)
        self.density, self.features = nn.Linear(8, 1), nn.Linear(8, 8)
        self.direction, self.colour = nn.Linear(8 + 3, 6), nn.Linear(6, 3)

    def forward(self, points: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        angles = (points[..., None] * self.bands).flatten(-2)
        encoded = torch.cat([points, angles.sin(), angles.cos()], dim=-1)
        h = F.relu(self.second(F.relu(self.first(encoded))))
        h = F.relu(self.third(torch.cat([h, encoded], dim=-1)))
        colour = self.colour(F.relu(self.direction(torch.cat([self.features(h), directions], dim=-1))))
        return torch.sigmoid(colour), F.softplus(self.density(h))


class _LSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


def _depthwise() -> nn.Module:
    def separable(inputs: int, outputs: int) -> list[nn.Module]:
        depth = [nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False), nn.BatchNorm2d(inputs), nn.ReLU6()]
        return [*depth, nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    stem = [nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*stem, *separable(4, 6), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))


class _ResNeXt(nn.Module):
    """A residual block with a grouped convolution, a batch norm and a group norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.reduce, self.norm1 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.grouped, self.norm2, self.expand = nn.Conv2d(8, 12, 3, padding=1, groups=2), nn.GroupNorm(2, 12), nn.Conv2d(12, 6, 1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        h = torch.relu(self.norm1(self.reduce(x)))
        h = torch.relu(self.norm2(self.grouped(h)))
        return self.head(torch.relu(x + self.expand(h)).mean((2, 3)))


class _SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down, self.up = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 2, 1), nn.Conv2d(2, 6, 1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        gate = torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3), keepdim=True)))))
        return self.head((x * gate).mean((2, 3)))


def _random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[Any, ...]]] = {
    "resnet": (_resnet, (_random(2, 3, 8, 8),)),
    "pre-norm transformer": (lambda: _Encoder(norm_first=True), (_random(2, 1, 8, 8),)),
    "post-norm transformer": (lambda: _Encoder(norm_first=False), (_random(2, 1, 8, 8),)),
    "gpt": (_GPT, (torch.tensor([[1, 4, 2, 10, 0], [3, 3, 9, 7, 5]]),)),
    "u-net": (_UNet, (_random(2, 1, 8, 8),)),
    "actor-critic": (_ActorCritic, (_random(3, 5),)),
    "nerf": (_NeRF, (_random(3, 3), F.normalize(_random(3, 3, seed=2), dim=-1))),
    "lstm": (_LSTM, (_random(2, 5, 4),)),
    "depthwise": (_depthwise, (_random(2, 3, 8, 8),)),
    "resnext": (_ResNeXt, (_random(2, 3, 8, 8),)),
    "squeeze-excite": (_SqueezeExcite, (_random(2, 3, 8, 8),)),
}
"""Factories of modules and what each is called with, by name. The modules have torch's own initial weights; see :func:`make`."""


def make(name: str, seed: int = 0) -> tuple[nn.Module, tuple[Any, ...]]:
    """One of the networks in evaluation mode with random weights and norm statistics, and its inputs."""
    factory, inputs = NETWORKS[name]
    return randomized(factory(), seed), inputs
