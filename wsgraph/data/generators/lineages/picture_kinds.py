"""Families of implicit neural representations of pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from wsgraph.data.generators.hyperparameters import HyperparameterRanges
from wsgraph.data.generators.image_fits import fit_population, initial_sirens
from wsgraph.data.generators.lineages.kinds import LineageKind, register_lineage_kind
from wsgraph.data.generators.problem import Advance, described, digest_of
from wsgraph.data.images import ClassificationData
from wsgraph.data.random import CounterRandom
from wsgraph.space import Signal, WeightSpace

__all__ = ["PictureKind"]

_PICTURES = 64
_LEAST_LOSS = 1e-12  # 120 dB: what is less is rounding in float32

# The only hyperparameters that differ are the learning rate and the steps.
_RANGES = HyperparameterRanges(learning_rate=(5e-4, 2e-3), initial_scale=(1.0, 1.0), steps=(400, 800))


class PictureKind(LineageKind):
    """Sinusoidal networks 2-32-32-1, each fitted to a picture as by :func:`make_inr_zoo`; the task is the picture's position.

    Args:
        data: Pictures with values in [-1, 1]; labels are not looked at.
    """

    def __init__(self, data: ClassificationData) -> None:
        height, width = data.images.shape[2:]
        signal = Signal((height, width), first_axis="column", offset=0.5, value_range=(0.0, 1.0))
        self.space = WeightSpace.siren([2, 32, 32, data.images.shape[1]], signal=signal)
        self.data, self.ranges, self.inputs = data, _RANGES, signal.coordinates()
        pictures = torch.cat([data.images, data.test_images])
        self.pictures = ((pictures + 1) / 2).flatten(2).movedim(1, 2)

    def configuration(self) -> dict[str, Any]:
        return {"space": described(self.space), "data": digest_of(*self.data)}

    def initial(self, random: CounterRandom, networks: Tensor, scale: Tensor) -> Tensor:
        return initial_sirens(self.space, random, networks).to(self.pictures)

    def first_tasks(self, random: CounterRandom, families: Tensor) -> Tensor:
        order = random.uniform(torch.zeros(1, dtype=torch.long), "picture_order", (len(self.pictures),))[0].argsort(stable=True)
        return order[families % len(order)]

    def other_tasks(self, random: CounterRandom, networks: Tensor, tasks: Tensor) -> Tensor:
        further = 1 + (random.uniform(networks, "picture") * (len(self.pictures) - 1)).long()
        return (tasks + further) % len(self.pictures)

    def targets(self, random: CounterRandom, tasks: Tensor) -> Tensor:
        return self.pictures[tasks]

    def answers(self, thetas: Tensor) -> Tensor:
        return torch.cat([self.space.render(part).flatten(2).movedim(1, 2) for part in thetas.split(_PICTURES)])

    def train(
        self,
        random: CounterRandom,
        networks: Tensor,
        thetas: Tensor,
        targets: Tensor,
        hyperparameters: Mapping[str, Tensor],
        *,
        free: Tensor | None = None,
        advance: Advance = lambda steps: None,
    ) -> Tensor:
        thetas = thetas.clone()
        free = None if free is None else free.to(thetas.device)
        fit_population(self.space, thetas, targets.to(thetas), random, networks, hyperparameters, free=free, advance=advance)
        return thetas

    def scores(self, random: CounterRandom, thetas: Tensor, tasks: Tensor) -> dict[str, Tensor]:
        loss = (self.answers(thetas) - self.pictures[tasks].to(thetas)).double().square().mean((1, 2)).cpu()
        return {"loss": loss, "psnr": -10 * torch.log10(loss.clamp(min=_LEAST_LOSS))}


register_lineage_kind("siren")(PictureKind)
