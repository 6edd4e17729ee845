"""Families of classifiers of pictures: plain CNNs, and residual networks with batch normalisation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from wsgraph.convert.tracing import trace
from wsgraph.data.generators.architectures import architecture_of
from wsgraph.data.generators.hyperparameters import HyperparameterRanges
from wsgraph.data.generators.lineages.kinds import LineageKind, register_lineage_kind
from wsgraph.data.generators.modules import ModulePopulation
from wsgraph.data.generators.optimizer import optimize
from wsgraph.data.generators.problem import Advance, described, digest_of
from wsgraph.data.images import ClassificationData
from wsgraph.data.random import CounterRandom

__all__ = ["ClassifierKind"]

_IMAGES = 64
_BATCH = 16

# No dropout, and all examples: networks that learned what they can.
_RANGES = HyperparameterRanges(
    learning_rate=(1e-3, 1e-2),
    initial_scale=(0.7, 1.4),
    weight_decay=(1e-4, 1e-1),
    dropout=(0.0, 0.0),
    training_fraction=(1.0,),
    steps=(400, 800),
)


class ClassifierKind(LineageKind):
    """Classifiers trained by AdamW and cross entropy.

    Task 0 is the labels as they are, any other one the classes in another order.

    Args:
        architecture: Name of their architecture, which has the options that it has if nothing is said.
        data: The examples.
    """

    def __init__(self, architecture: str, data: ClassificationData) -> None:
        entry = architecture_of(architecture)
        self.data, self.ranges, self.inputs = data, _RANGES, data.images[:_IMAGES]
        self.classes = int(torch.cat([data.labels, data.test_labels]).max()) + 1
        network = entry.build(data.images.shape[1], self.classes, tuple(data.images.shape[2:]), **entry.variants({})[0])
        self.module = network.eval() if isinstance(network, nn.Module) else None
        self.space = trace(network, data.images[:1]) if isinstance(network, nn.Module) else network

    def configuration(self) -> dict[str, Any]:
        return {"space": described(self.space), "data": digest_of(*self.data), "batch_size": _BATCH}

    def _population(self, thetas: Tensor) -> ModulePopulation:
        return ModulePopulation(self.space, self.data.images[:1].to(thetas), self.module)

    def initial(self, random: CounterRandom, networks: Tensor, scale: Tensor) -> Tensor:
        population = ModulePopulation(self.space, self.data.images[:1], self.module)
        return population.flatten(*population.initial(random, networks, scale))

    def first_tasks(self, random: CounterRandom, families: Tensor) -> Tensor:
        return torch.zeros_like(families)

    def other_tasks(self, random: CounterRandom, networks: Tensor, tasks: Tensor) -> Tensor:
        return networks  # no network that learns something else has number 0, which a root has

    def _labels(self, random: CounterRandom, tasks: Tensor, labels: Tensor) -> Tensor:
        permuted = random.uniform(tasks, "classes", (self.classes,)).argsort(1)
        names = torch.where(tasks[:, None] == 0, torch.arange(self.classes), permuted)
        return names[:, labels]

    def targets(self, random: CounterRandom, tasks: Tensor) -> Tensor:
        return self._labels(random, tasks, self.data.labels)

    def _logits(self, thetas: Tensor, images: Tensor) -> Tensor:
        population = self._population(thetas)
        return torch.cat([population.logits(thetas, part) for part in images.to(thetas).split(_IMAGES)], 1)

    def answers(self, thetas: Tensor) -> Tensor:
        return self._logits(thetas, self.data.images).softmax(2)

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
        population, images, networks = self._population(thetas), self.data.images.to(thetas), networks.to(thetas.device)
        (parameters, buffers), targets = population.divide(thetas), targets.to(thetas.device)
        mask = None if free is None else population.divide(free)[0]
        rate, decay = (hyperparameters[name].to(thetas) for name in ("learning_rate", "weight_decay"))
        rows = torch.arange(len(networks), device=thetas.device)[:, None]

        def gradients(step: int, parameters: Tensor) -> Tensor:
            chosen = (random.uniform(networks, "minibatch", (_BATCH,), step=step) * len(images)).long()
            slopes = population.gradients(parameters, buffers, images[chosen], targets[rows, chosen], {})
            return slopes if mask is None else slopes * mask

        steps = hyperparameters["steps"].cpu()
        optimize(parameters, gradients, steps, lambda step: rate, decay, advance, states=list(buffers.values()))
        return population.flatten(parameters, buffers)

    def scores(self, random: CounterRandom, thetas: Tensor, tasks: Tensor) -> dict[str, Tensor]:
        truth = self._labels(random, tasks, self.data.test_labels)
        right = self._logits(thetas, self.data.test_images).argmax(2).cpu() == truth
        return {"test_accuracy": right.double().mean(1)}


@register_lineage_kind("cnn")
def _cnn(data: ClassificationData) -> LineageKind:
    return ClassifierKind("cnn", data)


@register_lineage_kind("resnet")
def _resnet(data: ClassificationData) -> LineageKind:
    return ClassifierKind("resnet", data)
