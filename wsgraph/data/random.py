"""Random numbers by counter: every network draws its own, whatever population it is trained in."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["CounterRandom"]


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)


def _shift(values: Tensor, count: int) -> Tensor:
    # torch shifts int64 arithmetically; the mask clears the copies of the sign bit.
    return (values >> count).bitwise_and_((1 << (64 - count)) - 1)


def _mix(values: Tensor) -> Tensor:
    """The finaliser of splitmix64, in place: a bijection of 64-bit integers whose output bits each depend on all input bits."""
    values.bitwise_xor_(_shift(values, 30)).mul_(_FIRST)
    values.bitwise_xor_(_shift(values, 27)).mul_(_SECOND)
    return values.bitwise_xor_(_shift(values, 31))


class CounterRandom:
    r"""Random numbers that are a function of their address (`Steele et al., 2014 <https://doi.org/10.1145/2660193.2660195>`_).

    .. math:: r = h(h(h(k_{\text{seed}, \text{purpose}} + \gamma\, \text{network}) + \gamma\, \text{step}) + \gamma\, \text{position})

    where :math:`h` is the finaliser of splitmix64, :math:`\gamma` its golden-ratio constant and :math:`k` a key hashed from seed and
    purpose. Nothing is stateful: a network gets the same numbers trained alone, in a population of any size, or after an interruption.

    Args:
        seed: Any integer.

    Example:
        >>> import torch
        >>> random = CounterRandom(0)
        >>> together = random.uniform(torch.arange(8), "dropout", (3,), step=5)
        >>> torch.equal(random.uniform(torch.tensor([6]), "dropout", (3,), step=5), together[6:7])
        True
    """

    def __init__(self, seed: int) -> None:
        self.seed = int(seed)

    def bits(self, networks: Tensor, purpose: str, shape: Sequence[int] = (), *, step: int = 0) -> Tensor:
        """Random 64-bit integers.

        Args:
            networks: Numbers of the networks, an integer tensor ``[B]``.
            purpose: What the numbers are for; other purposes get independent ones.
            shape: Shape of the numbers of one network.
            step: Training step, or any other counter.

        Returns:
            An int64 tensor ``[B, *shape]`` on the device of ``networks``.
        """
        digest = hashlib.blake2b(f"{self.seed}/{purpose}".encode(), digest_size=8).digest()
        keys = _mix(networks.long() * _GOLDEN + int.from_bytes(digest, "little", signed=True))
        keys = _mix(keys + _signed(step * _GOLDEN % (1 << 64)))
        positions = torch.arange(1, math.prod(shape) + 1, device=networks.device) * _GOLDEN
        return _mix(keys[:, None] + positions).reshape(len(networks), *shape)

    def uniform(self, networks: Tensor, purpose: str, shape: Sequence[int] = (), *, step: int = 0) -> Tensor:
        """Uniform numbers in [0, 1), with all 53 bits.

        Args:
            networks: Numbers of the networks, an integer tensor ``[B]``.
            purpose: What the numbers are for; other purposes get independent ones.
            shape: Shape of the numbers of one network.
            step: Training step, or any other counter.

        Returns:
            A float64 tensor ``[B, *shape]`` on the device of ``networks``.
        """
        return _shift(self.bits(networks, purpose, shape, step=step), 11).double().mul_(2.0**-53)

    def normal(self, networks: Tensor, purpose: str, shape: Sequence[int] = (), *, step: int = 0) -> Tensor:
        """Standard normal numbers, by inversion of the distribution function.

        Args:
            networks: Numbers of the networks, an integer tensor ``[B]``.
            purpose: What the numbers are for; other purposes get independent ones.
            shape: Shape of the numbers of one network.
            step: Training step, or any other counter.

        Returns:
            A float64 tensor ``[B, *shape]`` on the device of ``networks``.
        """
        # Half a unit inwards keeps the argument inside (0, 1), where the inverse is finite; 52 bits keep that half exact.
        inside = _shift(self.bits(networks, purpose, shape, step=step), 12).double().add_(0.5).mul_(2.0**-52)
        return torch.special.ndtri(inside)

    def __repr__(self) -> str:
        return f"CounterRandom(seed={self.seed})"
