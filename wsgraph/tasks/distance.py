"""How far networks lie from those that a model was trained on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wsgraph.data import ZooDataset
from wsgraph.space import WeightSpace

__all__ = ["Reference", "network_statistics", "weight_statistics"]

_QUARTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
_NETWORKS = 2000  # of the training networks, evenly spaced
_BLOCK_BYTES = 2**26
_LEVELS = 101  # quantiles of distances that are kept
_FORMS = ("scale", "phase", "flip", "sign")


def weight_statistics(values: Tensor) -> Tensor:
    """Mean, standard deviation and quartiles of entries ``[B, n]``.

    Args:
        values: The entries.

    Returns:
        Statistics ``[B, 7]``, which no permutation changes.
    """
    ordered = values.sort(1).values
    places = [round(level * (values.shape[1] - 1)) for level in _QUARTILES]
    return torch.cat([values.mean(1, keepdim=True), values.std(1, correction=0, keepdim=True), ordered[:, places]], dim=1)


def network_statistics(space: WeightSpace, thetas: Tensor) -> Tensor:
    """Statistics of networks of any architecture, which no symmetry changes.

    Mean, standard deviation and quartiles of all weights, of all other parameters, and of the first and last weight, and logarithms of
    numbers of parameters, of canonical forms.

    Args:
        space: The weight space.
        thetas: Flat checkpoints ``[B, P]``.

    Returns:
        Statistics ``[B, F]`` in float64; infinite where a network has no canonical form within the range of numbers.
    """
    try:
        thetas = space.canonicalize(thetas.double(), fix=_FORMS)
    except ValueError:  # no canonical form within the range of numbers: as far as can be
        return torch.full((len(thetas), 4 * (2 + len(_QUARTILES)) + 2), torch.inf, dtype=torch.float64)
    tensors = dict(zip(space.params, thetas.split([param.size for param in space.params], dim=1), strict=True))
    weights = [tensor for param, tensor in tensors.items() if param.role == "weight"]
    others = [tensor for param, tensor in tensors.items() if param.role not in ("weight", "buffer")]
    nothing = thetas.new_zeros(len(thetas), 1)
    chosen = [
        torch.cat(weights, dim=1) if weights else nothing,
        torch.cat(others, dim=1) if others else nothing,
        weights[0] if weights else nothing,
        weights[-1] if weights else nothing,
    ]
    sizes = thetas.new_tensor([[np.log(space.num_params), len(space.params)]])
    return torch.cat([*map(weight_statistics, chosen), sizes.expand(len(thetas), 2)], dim=1)


@dataclass(frozen=True)
class Reference:
    r"""Where the networks lie that a model was trained on, by statistics of their weights.

    .. math:: d(\theta) = \sqrt{\frac{1}{F} \sum_f \Bigl( \frac{\phi_f(\theta) - \mu_f}{\sigma_f} \Bigr)^2}

    with :math:`\phi` mean, standard deviation and quartiles of all weights, of all other parameters, and of the first and last weight, and
    numbers of parameters, of the canonical form of a network: no symmetry changes them. Training networks have a root mean square of 1.

    Args:
        mean: Means :math:`\mu` of the training networks.
        deviation: Their standard deviations :math:`\sigma`.
        quantiles: Quantiles of their own distances, from 0 to 100 %.
    """

    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    quantiles: tuple[float, ...]

    @classmethod
    def of(cls, data: ZooDataset) -> Reference:
        """The reference of some networks.

        Args:
            data: The networks, of which at most 2,000 are looked at.

        Returns:
            The reference.
        """
        chosen = data if len(data) <= _NETWORKS else data[torch.linspace(0, len(data) - 1, _NETWORKS).long()]
        found = []
        for space in chosen.spaces:
            found += [network_statistics(space, chosen.store.read(rows)) for rows in chosen.of_space(space).blocks()]
        features = torch.cat(found)
        features = features[features.isfinite().all(1)]
        if not len(features):
            return cls((), (), ())
        mean, deviation = features.mean(0), features.std(0, correction=0)
        # What all training networks have in common may differ by rounding; what differs by more lies far.
        deviation = torch.where(deviation > 0, deviation, 1e-3 * mean.abs().clamp(min=1e-3))
        own = ((features - mean) / deviation).square().mean(1).sqrt()
        quantiles = own.quantile(torch.linspace(0, 1, _LEVELS, dtype=own.dtype))
        return cls(tuple(mean.tolist()), tuple(deviation.tolist()), tuple(quantiles.tolist()))

    def distances(self, space: WeightSpace, thetas: Tensor) -> tuple[Tensor, Tensor]:
        """How far networks lie.

        Args:
            space: Their weight space.
            thetas: Flat checkpoints ``[N, P]``.

        Returns:
            Distances ``[N]``, and the shares ``[N]`` of training networks that lie nearer.
        """
        rows = thetas.split(max(1, _BLOCK_BYTES // (8 * space.num_params)))
        features = torch.cat([network_statistics(space, part.cpu()) for part in rows])
        mean, deviation = (torch.tensor(values, dtype=torch.float64) for values in (self.mean, self.deviation))
        distances = ((features - mean) / deviation).square().mean(1).sqrt()
        shares = np.searchsorted(np.array(self.quantiles), distances.numpy()) / _LEVELS
        return distances, torch.from_numpy(np.asarray(shares))

    def document(self) -> dict[str, Any]:
        """The reference as plain values."""
        return {name: list(values) for name, values in asdict(self).items()}

    def __repr__(self) -> str:
        return f"Reference({len(self.mean)} statistics)"
