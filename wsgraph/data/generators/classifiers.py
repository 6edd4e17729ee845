"""Populations of classifiers, trained side by side."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsgraph.data.generators.hyperparameters import HyperparameterRanges
from wsgraph.data.generators.modules import ModulePopulation
from wsgraph.data.generators.optimizer import optimize
from wsgraph.data.generators.problem import Advance, Columns, Problem, check_images, check_positive, described, digest_of, splits_of
from wsgraph.data.images import ClassificationData
from wsgraph.data.random import CounterRandom
from wsgraph.space import WeightSpace

__all__ = ["Classifiers", "evaluate_population", "train_population", "training_examples"]

_IMAGES = 64


def training_examples(random: CounterRandom, networks: Tensor, fraction: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The examples that each network may see: the first ones of its own random order.

    Args:
        random: Source of randomness.
        networks: Numbers of the networks ``[B]``.
        fraction: Fraction of the training set that each may see ``[B]``.
        count: Size of the training set.

    Returns:
        The orders ``[B, count]`` and how many of each are seen ``[B]``, at least one.
    """
    order = random.uniform(networks, "training_order", (count,)).argsort(dim=1, stable=True)
    return order, (fraction.to(order.device) * count).round().long().clamp(1, count)


def train_population(
    space: WeightSpace,
    data: ClassificationData,
    networks: Tensor,
    hyperparameters: Mapping[str, Tensor],
    *,
    module: nn.Module | None = None,
    seed: int = 0,
    batch_size: int = 16,
    advance: Advance = lambda steps: None,
    checkpoints: Collection[int] = (),
    keep: Callable[[int, Tensor], None] = lambda step, thetas: None,
) -> Tensor:
    """Train classifiers side by side with AdamW and cross entropy, without a loop over networks.

    Everything random is drawn by the network's number, so that up to rounding a network does not depend on its population. Examples are
    drawn with replacement. Dropout takes place where the module has a dropout module, with the rate of the network; where the space alone
    describes the networks, it removes hidden neurons after their operators, of a convolution whole channels.

    Args:
        space: The weight space.
        data: Examples; their device and dtype are those of the training.
        networks: Numbers of the networks ``[B]``.
        hyperparameters: From :meth:`HyperparameterRanges.sample`, each ``[B]``.
        module: The module that has this space (default: what the layers of the space describe).
        seed: Seed of the zoo.
        batch_size: Examples per step.
        advance: Called after every step with the number of networks that took it.
        checkpoints: Steps before which ``keep`` is called.
        keep: Called with the step and a copy of all weights ``[B, P]``.

    Returns:
        Flat checkpoints ``[B, P]``; networks that diverged hold NaN or infinite weights.
    """
    random, device, dtype = CounterRandom(seed), data.images.device, data.images.dtype
    population = ModulePopulation(space, data.images, module)
    parameters, buffers = population.initial(random, networks.cpu(), hyperparameters["initial_scale"].cpu())
    networks = networks.to(device)
    order, count = training_examples(random, networks, hyperparameters["training_fraction"], len(data.images))
    learning_rate, weight_decay = (hyperparameters[name].to(device, dtype) for name in ("learning_rate", "weight_decay"))
    sizes = {name: math.prod(shape) for name, shape in population.mask_shapes.items()}
    dropout = hyperparameters["dropout"].to(device)[:, None, None]
    factor = (1 / (1 - dropout)).to(dtype)
    has_dropout = bool(sizes) and bool((dropout > 0).any())

    def masks(step: int) -> dict[str, Tensor]:
        if not has_dropout:
            return {}
        kept = (random.uniform(networks, "dropout", (batch_size, sum(sizes.values())), step=step) >= dropout) * factor
        parts = zip(population.mask_shapes.items(), kept.split(list(sizes.values()), 2), strict=True)
        return {name: part.unflatten(2, shape) for (name, shape), part in parts}

    def gradients(step: int, parameters: Tensor) -> Tensor:
        positions = (random.uniform(networks, "minibatch", (batch_size,), step=step) * count[:, None]).long()
        chosen = order.gather(1, positions)
        return population.gradients(parameters, buffers, data.images[chosen], data.labels[chosen], masks(step))

    optimize(
        parameters,
        gradients,
        hyperparameters["steps"].cpu(),
        lambda step: learning_rate,
        weight_decay,
        advance,
        checkpoints,
        lambda step: keep(step, population.flatten(parameters, buffers)),
        list(buffers.values()),
    )
    return population.flatten(parameters, buffers)


def _scores(population: ModulePopulation, thetas: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Correctness and cross entropy of every network on every example, each ``[B, n]``."""
    correct, losses = [], []
    for part, truth in zip(images.split(_IMAGES), labels.split(_IMAGES), strict=True):
        logits = population.logits(thetas, part)
        correct.append(logits.argmax(2) == truth)
        losses.append(F.cross_entropy(logits.flatten(0, 1), truth.repeat(len(thetas)), reduction="none").view(len(thetas), -1))
    return torch.cat(correct, 1), torch.cat(losses, 1)


def evaluate_population(
    space: WeightSpace,
    data: ClassificationData,
    thetas: Tensor,
    networks: Tensor,
    training_fraction: Tensor,
    *,
    module: nn.Module | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Accuracies and cross entropies of trained networks, without dropout: on the examples each was trained on, and on the test set.

    Args:
        space: The weight space.
        data: The examples.
        thetas: Flat checkpoints ``[B, P]``.
        networks: Their numbers ``[B]``.
        training_fraction: Their fractions of the training set ``[B]``.
        module: The module that has this space (default: what the layers of the space describe).
        seed: Seed of the zoo.

    Returns:
        ``train_accuracy``, ``test_accuracy``, ``train_loss`` and ``test_loss``, each a float64 tensor ``[B]``.
    """
    order, count = training_examples(CounterRandom(seed), networks.to(thetas.device), training_fraction, len(data.images))
    seen = torch.zeros_like(order, dtype=torch.bool)
    seen.scatter_(1, order, torch.arange(order.shape[1], device=order.device) < count[:, None])
    population = ModulePopulation(space, data.images, module)
    train = _scores(population, thetas, data.images, data.labels)
    test = _scores(population, thetas, data.test_images, data.test_labels)
    on_train = [torch.where(seen, score.double(), 0).sum(1) / count for score in train]
    on_test = [score.double().mean(1) for score in test]
    return {"train_accuracy": on_train[0], "test_accuracy": on_test[0], "train_loss": on_train[1], "test_loss": on_test[1]}


@dataclass(frozen=True, eq=False)
class Classifiers(Problem):
    """Networks that classify pictures, trained by AdamW with varied hyperparameters; see :func:`train_population`.

    Args:
        space: The weight space of the networks, which return logits.
        data: The examples.
        ranges: Where hyperparameters are drawn from.
        seed: Seed of everything random.
        batch_size: Examples per step.
        checkpoints: Steps after which weights are kept too, besides those at the end.
        dtype: Dtype of training and of the weights.
        module: The module that has this space (default: what the layers of the space describe).
        architecture: What the configuration calls it.

    Raises:
        SpaceMismatchError: If the module does not have this space.
        ValueError: If examples do not fit the networks, or an argument is out of range.
    """

    space: WeightSpace
    data: ClassificationData
    ranges: HyperparameterRanges = dataclasses.field(default_factory=HyperparameterRanges)
    seed: int = 0
    batch_size: int = 16
    checkpoints: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32
    module: nn.Module | None = None
    architecture: str = ""

    def __post_init__(self) -> None:
        check_positive(batch_size=self.batch_size)
        if any(not isinstance(step, int) or step < 0 for step in self.checkpoints):
            raise ValueError(f"Expected 'checkpoints' to be numbers of steps, at least 0 (got {list(self.checkpoints)}).")
        images, labels, test_images, test_labels = self.data
        examples = (("images", images, labels), ("test_images", test_images, test_labels))
        for name, pictures, _ in examples:
            own = None if self.module is None else pictures.shape[1]  # a module says itself what it does not read
            channels = own or next(group.size for group in self.space.groups if group.role == "input")
            check_images(name, pictures, channels, self.space)
        if images.shape[1:] != test_images.shape[1:]:
            shapes = f"{list(images.shape[1:])} and {list(test_images.shape[1:])}"
            raise ValueError(f"Expected 'images' and 'test_images' of one shape (got {shapes}).")
        classes = self._classes()
        for name, pictures, truth in examples:
            if truth.shape != pictures.shape[:1] or truth.is_floating_point() or not 0 <= int(truth.min()) <= int(truth.max()) < classes:
                raise ValueError(
                    f"Expected one integer label from 0 to {classes - 1} for each of the {len(pictures)} '{name}' "
                    f"(got shape {list(truth.shape)}, {truth.dtype}, from {truth.min()} to {truth.max()})."
                )

    def _classes(self) -> int:
        """How many logits a network returns."""
        if self.module is None:
            return next(group.size for group in self.space.groups if group.role == "output")
        images = self._data("cpu").images[:1]
        theta = self.space.flatten(self.module.state_dict()).to(images)
        try:
            outputs = ModulePopulation(self.space, images, self.module).logits(theta[None], images)
        except (RuntimeError, TypeError, ValueError) as error:
            shape, told = list(images.shape[1:]), str(error).splitlines()[0]
            raise ValueError(f"The module cannot be run for many networks at once on images of shape {shape}: {told}") from error
        if outputs.ndim != 3:
            raise ValueError(f"Expected the module to return logits [n, classes] (got shape {list(outputs.shape[1:])} for one image).")
        return outputs.shape[2]

    def configuration(self) -> dict[str, Any]:
        """Space, data, ranges and options."""
        return {
            "problem": "classification",
            "space": described(self.space),
            "data": f"{len(self.data.images)} + {len(self.data.test_images)} examples {digest_of(*self._data('cpu'))}",
            "seed": self.seed,
            "batch_size": self.batch_size,
            "checkpoints": list(self.checkpoints),
            "dtype": str(self.dtype).removeprefix("torch."),
            **({} if self.module is None else {"module": self._module_text()}),
            **({"architecture": self.architecture} if self.architecture else {}),
            **{name: list(values) for name, values in dataclasses.asdict(self.ranges).items()},
        }

    def _module_text(self) -> str:
        digest = hashlib.sha256(repr(self.module).encode()).hexdigest()[:16]
        return f"{type(self.module).__qualname__} {digest}"

    def _data(self, device: torch.device | str) -> ClassificationData:
        images, labels, test_images, test_labels = (part.to(device) for part in self.data)
        return ClassificationData(images.to(self.dtype), labels.long(), test_images.to(self.dtype), test_labels.long())

    def hyperparameters(self, networks: Tensor) -> dict[str, Tensor]:
        return self.ranges.sample(CounterRandom(self.seed), networks)

    def train(self, networks: Tensor, *, device: torch.device | str, advance: Advance) -> tuple[Tensor, Columns]:
        data, hyperparameters = self._data(device), self.hyperparameters(networks)
        kept: list[tuple[Tensor, Tensor]] = []
        thetas = train_population(
            self.space,
            data,
            networks,
            hyperparameters,
            module=self.module,
            seed=self.seed,
            batch_size=self.batch_size,
            advance=advance,
            checkpoints=self.checkpoints,
            keep=lambda step, copy: kept.append((torch.full_like(networks, step), copy)),
        )
        kept.append((hyperparameters["steps"], thetas))
        step, every = torch.stack([step for step, _ in kept], 1), torch.stack([copy for _, copy in kept], 1)
        # A network's checkpoints side by side; what was copied after its last step is left out.
        last = torch.arange(len(kept)) == len(kept) - 1
        owner, column = ((step < hyperparameters["steps"][:, None]) | last).nonzero(as_tuple=True)
        thetas, numbers = every[owner.to(every.device), column.to(every.device)], networks[owner]
        hyperparameters = {name: values[owner] for name, values in hyperparameters.items()}
        fractions = hyperparameters["training_fraction"]
        metrics = evaluate_population(self.space, data, thetas, numbers, fractions, module=self.module, seed=self.seed)
        finite = torch.stack([values.isfinite() for values in metrics.values()]).all(0)
        thetas[~finite] = torch.nan  # finite weights whose outputs overflow are no network either
        table = {"network": numbers, "seed": torch.full_like(numbers, self.seed), **hyperparameters}
        table |= {"step": step[owner, column], "final": last[column], **{name: values.cpu() for name, values in metrics.items()}}
        return thetas.cpu(), {**table, "split": splits_of(CounterRandom(self.seed), numbers)}
