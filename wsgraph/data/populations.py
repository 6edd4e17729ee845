"""Populations of small networks, trained all at once: classifiers of pictures, and implicit neural representations of them."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wsgraph.data.images import ClassificationData
from wsgraph.data.random import CounterRandom
from wsgraph.operators import parse_operator
from wsgraph.space import NeuronGroup, WeightSpace
from wsgraph.space.evaluate import run_network

__all__ = [
    "Advance",
    "Classifiers",
    "HyperparameterRanges",
    "ImageFits",
    "Problem",
    "evaluate_population",
    "initial_sirens",
    "initial_thetas",
    "train_population",
    "training_examples",
]

_METRICS = ("train_accuracy", "test_accuracy", "train_loss", "test_loss")
_BETAS = (0.9, 0.999)
_EPSILON = 1e-8
_IMAGES = 64

Advance = Callable[[int], None]
Columns = dict[str, Any]


def _nothing(_: int) -> None:
    pass


class Problem(ABC):
    """What the networks of one architecture are trained on.

    Everything random belongs to a network's number, so that up to rounding a network does not depend on those beside it.

    Attributes:
        space: The weight space of the networks.
        seed: Seed of everything random.
    """

    space: WeightSpace
    seed: int

    @abstractmethod
    def configuration(self) -> dict[str, Any]:
        """Everything that results depend on but the numbers of the networks, as JSON can hold it."""

    @abstractmethod
    def hyperparameters(self, networks: Tensor) -> dict[str, Tensor]:
        """Hyperparameters by name of the networks with these numbers, each ``[B]``, among them ``steps``."""

    @abstractmethod
    def train(self, networks: Tensor, *, device: torch.device | str, advance: Advance) -> tuple[Tensor, Columns]:
        """Train networks side by side.

        Args:
            networks: Their numbers ``[B]``.
            device: Device of the training.
            advance: Called after every step with the number of networks that took it.

        Returns:
            Flat checkpoints ``[n, P]``, NaN or infinite where a network diverged, and their rows of the zoo's table.
        """


# == Hyperparameters ==


@dataclass(frozen=True)
class HyperparameterRanges:
    """Where the hyperparameters of each network of a zoo are drawn from.

    Args:
        learning_rate: Lowest and highest learning rate of AdamW, log-uniform.
        initial_scale: Lowest and highest factor on the He initialisation, log-uniform.
        weight_decay: Lowest and highest decoupled weight decay, log-uniform.
        dropout: Lowest and highest dropout rate, uniform.
        training_fraction: Fractions of the training set, each as likely as the others.
        steps: Lowest and highest number of training steps, log-uniform.

    Raises:
        ValueError: If a range is empty or leaves the values that make sense.

    Example:
        >>> import torch
        >>> drawn = HyperparameterRanges(steps=(10, 20)).sample(CounterRandom(0), torch.arange(100))
        >>> int(drawn["steps"].min()), int(drawn["steps"].max())
        (10, 20)
    """

    learning_rate: tuple[float, float] = (5e-4, 2e-2)
    initial_scale: tuple[float, float] = (0.4, 1.5)
    weight_decay: tuple[float, float] = (1e-4, 1.0)
    dropout: tuple[float, float] = (0.0, 0.4)
    training_fraction: tuple[float, ...] = (0.05, 0.1, 0.25, 0.5, 1.0)
    steps: tuple[int, int] = (80, 600)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, tuple(getattr(self, field.name)))
        for name, lowest, highest in (
            ("learning_rate", 0, math.inf),
            ("initial_scale", 0, math.inf),
            ("weight_decay", 0, math.inf),
            ("dropout", None, 1),
            ("steps", 0, 2**31),
        ):
            values = getattr(self, name)
            if len(values) != 2 or not values[0] <= values[1] < highest or values[0] < 0 or values[0] == lowest:
                bound = "at least 0" if lowest is None else "positive"
                top = f" and below {highest}" if highest < math.inf else " and finite"
                raise ValueError(f"Expected '{name}' to be a lowest and a highest value, {bound}{top} (got {values}).")
        if not self.training_fraction or not all(0 < fraction <= 1 for fraction in self.training_fraction):
            raise ValueError(f"Expected 'training_fraction' to hold values above 0 and at most 1 (got {self.training_fraction}).")

    def sample(self, random: CounterRandom, networks: Tensor) -> dict[str, Tensor]:
        """Draw the hyperparameters of some networks.

        Args:
            random: Source of randomness.
            networks: Numbers of the networks ``[B]``.

        Returns:
            Values ``[B]`` by name: ``learning_rate``, ``initial_scale``, ``weight_decay``, ``dropout``, ``training_fraction`` and
                ``steps``.
        """

        def between(name: str) -> Tensor:
            low, high = (math.log(value) for value in getattr(self, name))
            return (low + (high - low) * random.uniform(networks, name)).exp()

        fractions = torch.tensor(self.training_fraction, dtype=torch.float64)
        low, high = self.dropout
        # One more than the highest, so that rounding down gives the highest number of steps its share too.
        first, last = math.log(self.steps[0]), math.log(self.steps[1] + 1)
        steps = (first + (last - first) * random.uniform(networks, "steps")).exp().long().clamp(*self.steps)
        return {
            "learning_rate": between("learning_rate"),
            "initial_scale": between("initial_scale"),
            "weight_decay": between("weight_decay"),
            "dropout": low + (high - low) * random.uniform(networks, "dropout_rate"),
            "training_fraction": fractions[(random.uniform(networks, "training_fraction") * len(fractions)).long()],
            "steps": steps,
        }


def splits_of(random: CounterRandom, numbers: Tensor) -> list[str]:
    """6 of every 10 in a row train, 1 validates, 3 test: near-exact shares that do not depend on how many there are."""
    ranks = random.uniform(numbers // 10, "split", (10,)).argsort(dim=1, stable=True).argsort(1)
    rank = ranks.gather(1, (numbers % 10)[:, None]).flatten()
    return ["train" if r < 6 else "val" if r < 7 else "test" for r in rank.tolist()]


# == Training ==


def initial_thetas(space: WeightSpace, random: CounterRandom, networks: Tensor, scale: Tensor) -> Tensor:
    r"""He-initialised networks, scaled.

    .. math:: w \sim \mathcal{N}(0, 2 s^2 / \text{fan-in}), \quad b = 0

    Args:
        space: The weight space.
        random: Source of randomness.
        networks: Numbers of the networks ``[B]``.
        scale: Factor :math:`s` of each network ``[B]``.

    Returns:
        Float64 tensor ``[B, P]``.
    """
    thetas = random.normal(networks, "initial_weights", (space.num_params,))
    for param in space.params:
        thetas[:, space.slices[param.name]] *= math.sqrt(2 / param.fan_in) if param.role == "weight" else 0
    return thetas * scale[:, None]


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


Gradient = Callable[[int, dict[str, Tensor]], dict[str, Tensor]]
Checkpoint = Callable[[int, Tensor], None]


def _optimize(
    space: WeightSpace,
    thetas: Tensor,
    gradient: Gradient,
    steps: Tensor,
    rate: Callable[[int], Tensor],
    weight_decay: Tensor,
    advance: Advance,
    checkpoints: Collection[int] = (),
    keep: Checkpoint = lambda step, thetas: None,
) -> None:
    """AdamW over a population, as :class:`torch.optim.AdamW` but with steps, learning rates and weight decays per network, in place.

    Args:
        space: The weight space.
        thetas: Flat checkpoints ``[B, P]``, trained in place.
        gradient: Gradients by parameter name at a step.
        steps: Steps of every network ``[B]``, on the CPU.
        rate: Learning rates ``[B]`` at a step.
        weight_decay: Decoupled weight decays ``[B]``.
        advance: Called after every step with the number of networks that took it.
        checkpoints: Steps before which ``keep`` is called with the step and a copy of all weights.
        keep: What to do with them.
    """
    first, second = torch.zeros_like(thetas), torch.zeros_like(thetas)
    for step in range(int(steps.max())):
        if step in checkpoints:
            keep(step, thetas.clone())
        running = steps > step
        before = None if running.all() else thetas.clone()
        # By parameter, not by flat vector: the gradient of a slice would be padded to the whole vector once per parameter.
        gradients = space.flatten(gradient(step, space.unflatten(thetas)))
        first.lerp_(gradients, 1 - _BETAS[0])
        second.mul_(_BETAS[1]).addcmul_(gradients, gradients, value=1 - _BETAS[1])
        towards_one = [1 - beta ** (step + 1) for beta in _BETAS]
        divisor = second.sqrt().div_(math.sqrt(towards_one[1])).add_(_EPSILON)
        now = rate(step)
        thetas.mul_((1 - now * weight_decay)[:, None]).sub_(first.div(divisor).mul_(now[:, None] / towards_one[0]))
        if before is not None:
            thetas.copy_(torch.where(running[:, None].to(thetas.device), thetas, before))
        advance(int(running.sum()))


# == Classifiers ==


def _loss(space: WeightSpace, hidden: Mapping[str, slice]) -> Callable[[dict[str, Tensor], Tensor, Tensor, Tensor | None], Tensor]:
    """Cross entropy of one network on ``images`` and ``labels``, its hidden neurons multiplied by ``masks [m, H]``."""

    def loss(tensors: dict[str, Tensor], images: Tensor, labels: Tensor, masks: Tensor | None) -> Tensor:
        def drop(group: NeuronGroup, values: Tensor) -> Tensor:
            assert masks is not None
            mask = masks[:, hidden[group.name]].repeat_interleave(values.shape[1] // group.size, dim=1)  # flattening widens a neuron
            return values * mask.reshape(*mask.shape, *[1] * (values.ndim - 2))

        return F.cross_entropy(run_network(space, tensors, images, None if masks is None else drop), labels)

    return loss


def train_population(
    space: WeightSpace,
    data: ClassificationData,
    networks: Tensor,
    hyperparameters: Mapping[str, Tensor],
    *,
    seed: int = 0,
    batch_size: int = 16,
    advance: Advance = _nothing,
    checkpoints: Collection[int] = (),
    keep: Checkpoint = lambda step, thetas: None,
) -> Tensor:
    """Train classifiers side by side with AdamW and cross entropy, without a loop over networks.

    Everything random is drawn by the network's number, so that up to rounding a network does not depend on its population. Examples are
    drawn with replacement. Dropout removes neurons after their operators; of a convolution it removes whole channels.

    Args:
        space: The weight space.
        data: Examples; their device and dtype are those of the training.
        networks: Numbers of the networks ``[B]``.
        hyperparameters: From :meth:`HyperparameterRanges.sample`, each ``[B]``.
        seed: Seed of the zoo.
        batch_size: Examples per step.
        advance: Called after every step with the number of networks that took it.
        checkpoints: Steps before which ``keep`` is called.
        keep: Called with the step and a copy of all weights ``[B, P]``.

    Returns:
        Flat checkpoints ``[B, P]``; networks that diverged hold NaN or infinite weights.
    """
    random, device, dtype = CounterRandom(seed), data.images.device, data.images.dtype
    thetas = initial_thetas(space, random, networks.cpu(), hyperparameters["initial_scale"].cpu()).to(device, dtype)
    networks = networks.to(device)
    order, count = training_examples(random, networks, hyperparameters["training_fraction"], len(data.images))
    learning_rate, weight_decay = (hyperparameters[name].to(device, dtype) for name in ("learning_rate", "weight_decay"))
    groups = [group for group in space.groups if group.role == "hidden"]
    stops = list(itertools.accumulate(group.size for group in groups))
    hidden = {group.name: slice(stop - group.size, stop) for group, stop in zip(groups, stops, strict=True)}
    dropout = hyperparameters["dropout"].to(device)[:, None, None]
    kept = (1 / (1 - dropout)).to(dtype)
    has_dropout = bool(groups) and bool((dropout > 0).any())
    slope = torch.func.vmap(torch.func.grad(_loss(space, hidden)), in_dims=(0, 0, 0, 0 if has_dropout else None), randomness="error")

    def gradient(step: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        positions = (random.uniform(networks, "minibatch", (batch_size,), step=step) * count[:, None]).long()
        chosen = order.gather(1, positions)
        masks = None
        if has_dropout:
            masks = (random.uniform(networks, "dropout", (batch_size, stops[-1]), step=step) >= dropout) * kept
        found: dict[str, Tensor] = slope(tensors, data.images[chosen], data.labels[chosen], masks)
        return found

    steps = hyperparameters["steps"].cpu()
    _optimize(space, thetas, gradient, steps, lambda step: learning_rate, weight_decay, advance, checkpoints, keep)
    return thetas


def _scores(space: WeightSpace, thetas: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Correctness and cross entropy of every network on every example, each ``[B, n]``."""
    correct, losses = [], []
    for part, truth in zip(images.split(_IMAGES), labels.split(_IMAGES), strict=True):
        logits = space.evaluate(thetas, part)
        correct.append(logits.argmax(2) == truth)
        losses.append(F.cross_entropy(logits.flatten(0, 1), truth.repeat(len(thetas)), reduction="none").view(len(thetas), -1))
    return torch.cat(correct, 1), torch.cat(losses, 1)


def evaluate_population(
    space: WeightSpace, data: ClassificationData, thetas: Tensor, networks: Tensor, training_fraction: Tensor, *, seed: int = 0
) -> dict[str, Tensor]:
    """Accuracies and cross entropies of trained networks, without dropout: on the examples each was trained on, and on the test set.

    Args:
        space: The weight space.
        data: The examples.
        thetas: Flat checkpoints ``[B, P]``.
        networks: Their numbers ``[B]``.
        training_fraction: Their fractions of the training set ``[B]``.
        seed: Seed of the zoo.

    Returns:
        ``train_accuracy``, ``test_accuracy``, ``train_loss`` and ``test_loss``, each a float64 tensor ``[B]``.
    """
    order, count = training_examples(CounterRandom(seed), networks.to(thetas.device), training_fraction, len(data.images))
    seen = torch.zeros_like(order, dtype=torch.bool)
    seen.scatter_(1, order, torch.arange(order.shape[1], device=order.device) < count[:, None])
    train = _scores(space, thetas, data.images, data.labels)
    test = _scores(space, thetas, data.test_images, data.test_labels)
    on_train = [torch.where(seen, score.double(), 0).sum(1) / count for score in train]
    on_test = [score.double().mean(1) for score in test]
    return {"train_accuracy": on_train[0], "test_accuracy": on_test[0], "train_loss": on_train[1], "test_loss": on_test[1]}


def _digest(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{list(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _described(space: WeightSpace) -> str:
    return f"{space!r} {space.digest}"


def _check_positive(**values: Any) -> None:
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"Expected '{name}' to be a positive integer (got {value!r}).")


def _check_images(name: str, images: Tensor, channels: int, space: WeightSpace) -> None:
    if not images.is_floating_point() or images.ndim < 2 or images.shape[1] != channels or not images.numel():
        raise ValueError(
            f"Expected '{name}' to be a floating tensor [n, {channels}, ...] for {space!r} "
            f"(got shape {list(images.shape)}, {images.dtype})."
        )


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

    Raises:
        ValueError: If examples do not fit the space, or an argument is out of range.
    """

    space: WeightSpace
    data: ClassificationData
    ranges: HyperparameterRanges = dataclasses.field(default_factory=HyperparameterRanges)
    seed: int = 0
    batch_size: int = 16
    checkpoints: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        _check_positive(batch_size=self.batch_size)
        if any(not isinstance(step, int) or step < 0 for step in self.checkpoints):
            raise ValueError(f"Expected 'checkpoints' to be numbers of steps, at least 0 (got {list(self.checkpoints)}).")
        inputs, outputs = (next(group for group in self.space.groups if group.role == role) for role in ("input", "output"))
        images, labels, test_images, test_labels = self.data
        for name, examples, truth in (("images", images, labels), ("test_images", test_images, test_labels)):
            _check_images(name, examples, inputs.size, self.space)
            if (
                truth.shape != examples.shape[:1]
                or truth.is_floating_point()
                or not 0 <= int(truth.min()) <= int(truth.max()) < outputs.size
            ):
                raise ValueError(
                    f"Expected one integer label from 0 to {outputs.size - 1} for each of the {len(examples)} '{name}' "
                    f"(got shape {list(truth.shape)}, {truth.dtype}, from {truth.min()} to {truth.max()})."
                )

    def configuration(self) -> dict[str, Any]:
        """Space, data, ranges and options."""
        return {
            "problem": "classification",
            "space": _described(self.space),
            "data": f"{len(self.data.images)} + {len(self.data.test_images)} examples {_digest(*self._data('cpu'))}",
            "seed": self.seed,
            "batch_size": self.batch_size,
            "checkpoints": list(self.checkpoints),
            "dtype": str(self.dtype).removeprefix("torch."),
            **{name: list(values) for name, values in dataclasses.asdict(self.ranges).items()},
        }

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
        metrics = evaluate_population(self.space, data, thetas, numbers, hyperparameters["training_fraction"], seed=self.seed)
        finite = torch.stack([values.isfinite() for values in metrics.values()]).all(0)
        thetas[~finite] = torch.nan  # finite weights whose outputs overflow are no network either
        table = {"network": numbers, "seed": torch.full_like(numbers, self.seed), **hyperparameters}
        table |= {"step": step[owner, column], "final": last[column], **{name: values.cpu() for name, values in metrics.items()}}
        return thetas.cpu(), {**table, "split": splits_of(CounterRandom(self.seed), numbers)}


# == Implicit neural representations ==


def initial_sirens(space: WeightSpace, random: CounterRandom, networks: Tensor) -> Tensor:
    r"""Sinusoidal networks as `Sitzmann et al. (2020) <https://arxiv.org/abs/2006.09661>`_ initialise them.

    .. math:: W_1 \sim U[-1/n_0, 1/n_0], \quad W_l \sim U[-\sqrt{6/n_{l-1}}/\omega, \sqrt{6/n_{l-1}}/\omega], \quad
        b_l \sim U[-1/\sqrt{n_{l-1}}, 1/\sqrt{n_{l-1}}]

    Args:
        space: The weight space, a chain with activation ``sin(omega)``.
        random: Source of randomness.
        networks: Numbers of the networks ``[B]``.

    Returns:
        Float64 tensor ``[B, P]``.
    """
    thetas = 2 * random.uniform(networks, "initial_weights", (space.num_params,)) - 1
    for i, layer in enumerate(space.layers):
        assert layer.weight is not None
        weight = space.param(layer.weight)
        bound = 1 / weight.fan_in if i == 0 else math.sqrt(6 / weight.fan_in) / _omega(space)
        thetas[:, space.slices[layer.weight]] *= bound
        if layer.bias is not None:
            thetas[:, space.slices[layer.bias]] /= math.sqrt(weight.fan_in)
    return thetas


def _omega(space: WeightSpace) -> float:
    (name, numbers), *others = {parse_operator(group.activation) for group in space.groups if group.role == "hidden"} or {("", ())}
    if name != "sin" or others:
        raise ValueError(f"Expected a network with sinusoidal activations of one frequency, such as WeightSpace.siren (got {space!r}).")
    return numbers[0] if numbers else 1.0


@dataclass(frozen=True, eq=False)
class ImageFits(Problem):
    r"""Implicit neural representations, each fitted to one picture by Adam with a learning rate that falls along a cosine.

    .. math:: \min_\theta \sum_{ij} (f_\theta(p_{ij}) + c - \text{picture}_{ij})^2

    Every step sees a share of the pixels, each pixel once in an epoch. Network number :math:`i` fits picture :math:`i \bmod n` of a random
    order of all pictures, training and test: further rounds fit every picture again from another initialisation.

    Args:
        space: The weight space, :meth:`~wsgraph.WeightSpace.siren` with a signal of the pictures' size.
        data: Pictures ``[n, channels, H, W]`` with values in [-1, 1], and labels.
        seed: Seed of everything random.
        learning_rate: Learning rate at the beginning.
        steps: Number of steps.
        pixels: Pixels per step (default: a quarter of them).
        validation: Share of the training pictures whose networks validate.
        dtype: Dtype of training and of the weights.

    Raises:
        ValueError: If pictures do not fit the space, or an argument is out of range.
    """

    space: WeightSpace
    data: ClassificationData
    seed: int = 0
    learning_rate: float = 1e-3
    steps: int = 500
    pixels: int | None = None
    validation: float = 0.1
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        _check_positive(steps=self.steps, **({} if self.pixels is None else {"pixels": self.pixels}))
        if not 0 < self.learning_rate < math.inf or not 0 <= self.validation < 1:
            raise ValueError(
                "Expected a positive 'learning_rate' and 'validation' of at least 0 and below 1 "
                f"(got {self.learning_rate!r} and {self.validation!r})."
            )
        _omega(self.space)
        signal, channels = self.space.signal, self.space.groups[-1].size
        for name, images in (("images", self.data.images), ("test_images", self.data.test_images)):
            _check_images(name, images, channels, self.space)
            if signal is None or tuple(images.shape[2:]) != signal.shape:
                raise ValueError(f"Expected '{name}' of the size of the signal of the space, {signal} (got shape {list(images.shape)}).")
            if not (float(images.min()) >= -1 and float(images.max()) <= 1):
                raise ValueError(f"Expected '{name}' with values in [-1, 1] (got {images.min():g} to {images.max():g}).")

    def configuration(self) -> dict[str, Any]:
        """Space, data and options."""
        return {
            "problem": "image fitting",
            "space": _described(self.space),
            "data": f"{len(self.data.images)} + {len(self.data.test_images)} images {_digest(*self.data)}",
            "seed": self.seed,
            "learning_rate": self.learning_rate,
            "steps": self.steps,
            "pixels": self.pixels,
            "validation": self.validation,
            "dtype": str(self.dtype).removeprefix("torch."),
        }

    def hyperparameters(self, networks: Tensor) -> dict[str, Tensor]:
        return {"steps": torch.full_like(networks, self.steps)}

    def _drawn(self, purpose: str, count: int) -> Tensor:
        return CounterRandom(self.seed).uniform(torch.zeros(1, dtype=torch.long), purpose, (count,))[0]

    def train(self, networks: Tensor, *, device: torch.device | str, advance: Advance) -> tuple[Tensor, Columns]:
        space, signal = self.space, self.space.signal
        assert signal is not None
        training, total = len(self.data.images), len(self.data.images) + len(self.data.test_images)
        image = self._drawn("picture_order", total).argsort(stable=True)[networks % total]
        pictures = torch.cat([self.data.images[image[image < training]], self.data.test_images[image[image >= training] - training]])
        pictures = pictures[(image >= training).long().argsort(stable=True).argsort()]
        low, high = signal.value_range
        pictures = low + (high - low) * (pictures + 1) / 2
        targets = pictures.flatten(2).movedim(1, 2).to(device, self.dtype)
        thetas = self._fit(targets, networks, device, advance)

        error = torch.cat(
            [
                (space.render(part).flatten(2).movedim(1, 2) - truth).double().square().mean((1, 2))
                for part, truth in zip(thetas.split(_IMAGES), targets.split(_IMAGES), strict=True)
            ]
        ).cpu()
        labels = torch.cat([self.data.labels, self.data.test_labels])[image]
        # The order of validation is that of training pictures, so that all fits of a picture lie in one split.
        held_out = self._drawn("validation", training).argsort().argsort() < round(self.validation * training)
        split = ["test" if i >= training else "val" if held_out[i] else "train" for i in image.tolist()]
        table = {
            "network": networks,
            "seed": torch.full_like(networks, self.seed),
            "image": image,
            "fit": networks // total,
            "label": labels,
        }
        return thetas.cpu(), {**table, "loss": error, "psnr": 10 * torch.log10((high - low) ** 2 / error), "split": split}

    def _fit(self, targets: Tensor, networks: Tensor, device: torch.device | str, advance: Advance) -> Tensor:
        """Networks fitted to targets ``[B, pixels, channels]``."""
        space, signal, random = self.space, self.space.signal, CounterRandom(self.seed)
        assert signal is not None
        thetas = initial_sirens(space, random, networks).to(device, self.dtype)
        networks, coordinates, offset = networks.to(device), signal.coordinates().to(device, self.dtype), signal.offset
        total = len(coordinates)
        pixels = min(total, self.pixels or -(-total // 4))
        rounds = total // pixels
        order = torch.empty(0)

        def loss(tensors: dict[str, Tensor], points: Tensor, truth: Tensor) -> Tensor:
            return (run_network(space, tensors, points) + offset - truth).square().mean()

        slope = torch.func.vmap(torch.func.grad(loss))

        def gradient(step: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            nonlocal order
            epoch, part = divmod(step, rounds)
            if part == 0:
                order = random.uniform(networks, "pixels", (total,), step=epoch).argsort(1)
            chosen = order[:, part * pixels : (part + 1) * pixels]
            found: dict[str, Tensor] = slope(
                tensors, coordinates[chosen], targets.gather(1, chosen[:, :, None].expand(-1, -1, targets.shape[2]))
            )
            return found

        rate = torch.full((len(networks),), self.learning_rate, dtype=self.dtype, device=device)
        steps = torch.full((len(networks),), self.steps)
        _optimize(
            space, thetas, gradient, steps, lambda step: rate * (0.5 + 0.5 * math.cos(math.pi * step / self.steps)), 0 * rate, advance
        )
        return thetas
