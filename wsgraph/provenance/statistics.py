"""Means and variances of neurons: those that norms keep, and those that networks without norms lose when they are averaged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wsgraph.space import WeightSpace
from wsgraph.space.observed import observe
from wsgraph.space.program import Program, references
from wsgraph.space.program_operators import Reference

__all__ = ["Averages", "has_running_statistics"]

_NORMS = ("aten::batch_norm", "aten::_native_batch_norm_legit_no_training")
_LAYERS = ("aten::linear", "aten::conv1d", "aten::conv2d", "aten::conv3d")
_CONSTANT = 1e-6  # of the wanted deviation: a neuron that varies less does not vary


class Averages:
    r"""Averages of aligned networks, whose neurons vary on some inputs as those of the networks do.

    Averages of neurons that answer differently vary less than these, layer after layer. Of networks with norms by running statistics,
    statistics are taken anew, as a forward pass in training mode takes them: batch by batch, in every norm by those of the batch, and
    averaged over batches. Beforehand, every network is written with its own statistics on these inputs, and with gains and shifts that
    leave its function as it is, so that what is averaged does not depend on the factors of neurons in front of norms.

    Of other networks, weights and biases of every hidden layer are changed so that, before the activation, its neurons have

    .. math:: \mu = \sum_k \lambda_k \mu_k, \qquad \sigma = \sum_k \lambda_k \sigma_k

    with :math:`\lambda` the weights of the average and :math:`\mu_k, \sigma_k` the means and deviations of the neurons of network
    :math:`k`. Layers whose weight or bias something else reads, that have no bias, or that are summed with others stay as they are.

    Args:
        space: The weight space.
        thetas: Aligned networks ``[K, P]``.
        inputs: What to take statistics of, as for :meth:`~wsgraph.WeightSpace.evaluate`; without any, averages are left as they are.

    Raises:
        SpaceMismatchError: If there are inputs, but the space does not say what its networks compute.
        ValueError: If the inputs are not those of the networks.

    References:
        Jordan et al., `REPAIR <https://arxiv.org/abs/2211.08403>`_.

    Example:
        >>> space = WeightSpace.mlp([2, 8, 1])
        >>> first, second = space.sample(2, generator=torch.Generator().manual_seed(0))
        >>> averages = Averages(space, torch.stack([first, second]), torch.randn(50, 2))
        >>> torch.allclose(averages([1, 0]), first, atol=1e-6), torch.allclose(averages([0.5, 0.5]), (first + second) / 2)
        (True, False)
    """

    def __init__(self, space: WeightSpace, thetas: Tensor, inputs: Any = None) -> None:
        self.space, self.inputs = space, inputs
        self.thetas = thetas
        if inputs is not None:
            space.check_runs("Restoring statistics")
        self.places: Mapping[Any, _Place] = {} if inputs is None else _places(space)
        self.moments = [self._measured(theta, None) for theta in thetas] if self.places else []
        if self.places:
            self.thetas = torch.stack([self._rewritten(theta, own) for theta, own in zip(thetas, self.moments, strict=True)])

    @property
    def corrected(self) -> tuple[str, ...]:
        """The running variances of norms, or else the weights of layers, that averages get anew."""
        return tuple(dict.fromkeys(place.variance if isinstance(place, _Norm) else place.weight for place in self.places.values()))

    def __call__(self, weights: Sequence[float]) -> Tensor:
        """The average ``[P]`` of the networks with these weights."""
        shares = torch.as_tensor(weights, dtype=self.thetas.dtype, device=self.thetas.device)
        theta = shares @ self.thetas
        if not self.places:
            return theta
        wanted = {place: _mixed([own[place] for own in self.moments], shares) for place in self.moments[0]}
        found = self._measured(theta, wanted)
        tensors = self._tensors(theta)
        return self._with(theta, {place: place.corrected(tensors, found[place], wanted[place]) for place in found})

    def _measured(self, theta: Tensor, wanted: Mapping[_Place, _Moments] | None) -> dict[_Place, _Moments]:
        """Statistics of all places of a network, which are corrected one after the other where it is known what is wanted."""
        seen: dict[_Place, list[_Moments]] = {}

        def change(key: Any, given: Mapping[str, Any], result: Any) -> Any:
            place = self.places.get(key)
            if place is None:
                return result
            moments = place.moments(given, result)
            seen.setdefault(place, []).append(moments)
            return result if wanted is None else place.changed(given, result, moments, wanted[place])

        observe(self.space, theta, self.inputs, change)
        return {place: _averaged(several) for place, several in seen.items()}

    def _rewritten(self, theta: Tensor, moments: Mapping[_Place, _Moments]) -> Tensor:
        tensors = self._tensors(theta)
        return self._with(theta, {place: place.rewritten(tensors, own) for place, own in moments.items()})

    def _tensors(self, theta: Tensor) -> dict[str, Tensor]:
        return {param.name: theta[self.space.slices[param.name]].view(param.shape) for param in self.space.params}

    def _with(self, theta: Tensor, changes: Mapping[_Place, Mapping[str, Tensor]]) -> Tensor:
        result = theta.clone()
        for tensors in changes.values():
            for name, tensor in tensors.items():
                result[self.space.slices[name]] = tensor.flatten()
        return result


def has_running_statistics(space: WeightSpace) -> bool:
    """Whether networks of a space have norms by running statistics, as batch norms are, as far as the space says what they compute.

    Args:
        space: The weight space.

    Example:
        >>> import torch, wsgraph
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Linear(8, 1)).eval()
        >>> has_running_statistics(wsgraph.trace(net, torch.ones(3, 2))), has_running_statistics(wsgraph.WeightSpace.mlp([2, 8, 1]))
        (True, False)
    """
    return space.program is not None and bool(dict(_norms(space.program)))


# == Means and variances ==


@dataclass(frozen=True)
class _Moments:
    """Means and variances ``[n]`` of neurons, the latter also as an estimate of what values in addition would show."""

    mean: Tensor
    variance: Tensor
    unbiased: Tensor

    @classmethod
    def of(cls, values: Tensor, channel: int) -> _Moments:
        """Those of values whose neurons lie along a dimension."""
        rows = values.movedim(channel, 0).flatten(1)
        variance = rows.var(1, correction=0)
        return cls(rows.mean(1), variance, variance * rows.shape[1] / max(1, rows.shape[1] - 1))


def _averaged(several: Sequence[_Moments]) -> _Moments:
    """Averages over batches."""
    return _Moments(*(torch.stack([getattr(each, name) for each in several]).mean(0) for name in ("mean", "variance", "unbiased")))


def _mixed(several: Sequence[_Moments], shares: Tensor) -> _Moments:
    """Averages of means and of deviations over networks."""
    means, variances, unbiased = (torch.stack([getattr(each, name) for each in several]) for name in ("mean", "variance", "unbiased"))
    return _Moments(shares @ means, (shares @ variances.sqrt()).square(), (shares @ unbiased.sqrt()).square())


# == Where they are found ==


@dataclass(frozen=True)
class _Norm:
    """A norm by running statistics: the names of its parameters; those of gains and shifts where nothing else reads any of them."""

    mean: str
    variance: str
    weight: str | None
    bias: str | None
    epsilon: float

    def moments(self, given: Mapping[str, Any], result: Any) -> _Moments:
        """What the norm would normalise by."""
        return _Moments.of(given["input"].flatten(0, 1), 1)

    def changed(self, given: Mapping[str, Any], result: Any, own: _Moments, wanted: _Moments) -> Any:
        """What the norm gives by its own statistics."""
        values = given["input"]
        affine = given.get("weight"), given.get("bias")
        normal = F.batch_norm(values.flatten(0, 1), own.mean, own.variance, *affine, eps=self.epsilon).view(values.shape)
        return normal if isinstance(result, Tensor) else (normal, *result[1:])

    def corrected(self, tensors: Mapping[str, Tensor], own: _Moments, wanted: _Moments) -> dict[str, Tensor]:
        """Its running statistics."""
        return {self.mean: own.mean, self.variance: own.unbiased}

    def rewritten(self, tensors: Mapping[str, Tensor], own: _Moments) -> dict[str, Tensor]:
        """The same function with other statistics."""
        if self.weight is None or self.bias is None:
            return {}
        factor = tensors[self.weight] * (tensors[self.variance] + self.epsilon).rsqrt()
        weight = factor * (own.unbiased + self.epsilon).sqrt()
        bias = tensors[self.bias] + factor * (own.mean - tensors[self.mean])
        return {self.weight: weight, self.bias: bias, self.mean: own.mean, self.variance: own.unbiased}


@dataclass(frozen=True)
class _Layer:
    """A layer with a bias: the names of its parameters, and along which dimension of its result neurons lie."""

    weight: str
    bias: str
    channel: int

    def moments(self, given: Mapping[str, Any], result: Any) -> _Moments:
        """Those of what the layer gives."""
        return _Moments.of(result, self.channel)

    def changed(self, given: Mapping[str, Any], result: Any, own: _Moments, wanted: _Moments) -> Any:
        """What the layer gives, with the wanted mean and deviation."""
        shape = [1] * result.ndim
        shape[self.channel] = -1
        factor = _factor(own, wanted)
        return torch.addcmul((wanted.mean - own.mean * factor).view(shape), result, factor.view(shape))

    def corrected(self, tensors: Mapping[str, Tensor], own: _Moments, wanted: _Moments) -> dict[str, Tensor]:
        """Its parameters, so that it gives that."""
        factor, weight = _factor(own, wanted), tensors[self.weight]
        bias = wanted.mean + (tensors[self.bias] - own.mean) * factor
        return {self.weight: weight * factor.view(-1, *[1] * (weight.ndim - 1)), self.bias: bias}

    def rewritten(self, tensors: Mapping[str, Tensor], own: _Moments) -> dict[str, Tensor]:
        """Nothing: it keeps no statistics."""
        return {}


_Place = _Norm | _Layer


def _factor(own: _Moments, wanted: _Moments) -> Tensor:
    deviation, target = own.variance.sqrt(), wanted.variance.sqrt()
    varies = deviation > _CONSTANT * target
    return torch.where(varies, target / torch.where(varies, deviation, 1), 1)


def _places(space: WeightSpace) -> Mapping[Any, _Place]:
    """Norms by running statistics, or layers where there are none, by number of the step or name of the layer."""
    if not space._outside_layers:
        return dict(_layers(space))
    assert space.program is not None
    return dict(_norms(space.program)) or dict(_layer_steps(space, space.program))


def _norms(program: Program) -> Iterator[tuple[int, _Norm]]:
    reads = _reads(program)
    found = {}
    for i, step in enumerate(program.steps):
        arguments = dict(step.arguments)
        mean, variance, weight, bias = (_named(arguments.get(name)) for name in ("running_mean", "running_var", "weight", "bias"))
        if step.operator in _NORMS and mean and variance and not arguments.get("training"):
            found[i] = _Norm(mean, variance, weight, bias, arguments["eps"])
    steps = Counter(found.values())
    for i, norm in found.items():
        alone = all(name and reads[name] == steps[norm] for name in (norm.mean, norm.variance, norm.weight, norm.bias))
        yield i, norm if alone else _Norm(norm.mean, norm.variance, None, None, norm.epsilon)


def _layers(space: WeightSpace) -> Iterator[tuple[str, _Layer]]:
    reads = Counter(name for layer in space.layers for name in (layer.weight, layer.bias))
    for layer in space.layers:
        alone = reads[layer.weight] == reads[layer.bias] == len(space.layers_into(layer.target)) == 1
        if alone and layer.weight and layer.bias and _gives_hidden(space, layer.weight):
            yield layer.name, _Layer(layer.weight, layer.bias, 1)


def _layer_steps(space: WeightSpace, program: Program) -> Iterator[tuple[int, _Layer]]:
    reads = _reads(program)
    for i, step in enumerate(program.steps):
        weight, bias = (_named(dict(step.arguments).get(name)) for name in ("weight", "bias"))
        if step.operator in _LAYERS and weight and bias and reads[weight] == reads[bias] == 1 and _gives_hidden(space, weight):
            yield i, _Layer(weight, bias, 1 - len(space.param(weight).shape))


def _named(argument: Any) -> str | None:
    return str(argument.key) if isinstance(argument, Reference) and argument.kind == "parameter" else None


def _reads(program: Program) -> Counter[str]:
    """How often every parameter is read."""
    arguments = (*(step.arguments for step in program.steps), program.outputs)
    return Counter(str(each.key) for given in arguments for each in references(given) if each.kind == "parameter")


def _gives_hidden(space: WeightSpace, weight: str) -> bool:
    """Whether the results of a layer are neurons that can move."""
    groups = [space.group(name) for tie in space.param(weight).axes[0].ties for name in tie.groups]
    return bool(groups) and all(space.is_permutable(group.permutation) for group in groups)
