"""NNet files: ReLU networks as text, as controllers of aircraft and benchmarks of verification are published."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn

from wsgraph.convert.errors import CheckpointError, NonFiniteWeightsError
from wsgraph.convert.formats.entry import FileNetwork, register_format
from wsgraph.space import WeightSpace

__all__ = ["read_nnet"]


@register_format("NNet", (".nnet",))
def read_nnet(path: Path, *, fold_normalization: bool = False) -> list[FileNetwork]:
    """A fully connected ReLU network as text, with the normalisation of its inputs and outputs.

    The network reads normalised inputs, ``(clip(x, minimums, maximums) - means) / ranges``, and its outputs are ``y * range + mean``
    in units; ``info`` has these numbers.

    Args:
        path: The file.
        fold_normalization: Whether weights and biases of the first and last layer take the normalisation in, but for the clipping,
            so that the network reads and returns numbers in units.

    Returns:
        The network of the file.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise CheckpointError(f"{str(path)!r} is no text, which NNet files are.") from None
    numbered = ((i + 1, line.strip().rstrip(",").strip()) for i, line in enumerate(lines))
    content = ((number, line) for number, line in numbered if line and not line.startswith("//"))
    reader = _Lines(path, content)
    count, inputs, outputs, *_ = reader.whole("number of layers, of inputs and of outputs", None, least=3)
    sizes = reader.whole("size of every layer", count + 1)
    if count < 1 or min(sizes) < 1 or (sizes[0], sizes[-1]) != (inputs, outputs):
        raise CheckpointError(f"{str(path)!r} says to have {count} layers from {inputs} to {outputs} neurons, and sizes {sizes}: damaged?")
    reader.numbers("flag", None)
    low, high = (reader.numbers(f"{name} of every input", inputs) for name in ("minimum", "maximum"))
    means, ranges = (reader.numbers(f"{name} of every input, and one of the outputs", inputs + 1) for name in ("mean", "range"))
    layers = []
    for i, (before, after) in enumerate(pairwise(sizes)):
        weight = np.array([reader.numbers(f"row of the weights of layer {i + 1}", before) for _ in range(after)])
        bias = np.array([reader.numbers(f"bias of layer {i + 1}", 1) for _ in range(after)])[:, 0]
        layers.append((weight, bias))
    reader.check_end()
    if fold_normalization:
        weight, bias = layers[0]
        scaled = weight / np.array(ranges[:-1])
        layers[0] = scaled, bias - scaled @ np.array(means[:-1])
        weight, bias = layers[-1]
        layers[-1] = weight * ranges[-1], bias * ranges[-1] + means[-1]
    theta = torch.from_numpy(np.concatenate([array.reshape(-1) for layer in layers for array in layer])).float()
    if not torch.isfinite(theta).all():
        raise NonFiniteWeightsError("it holds weights that are not finite in single precision.")
    info = {
        "input_minimums": low,
        "input_maximums": high,
        "input_means": means[:-1],
        "input_ranges": ranges[:-1],
        "output_mean": means[-1],
        "output_range": ranges[-1],
        "normalization_folded": fold_normalization,
    }
    return [FileNetwork("", WeightSpace.mlp(sizes, nn.ReLU()), theta, info)]


class _Lines:
    """Lines of numbers, each of which is asked for by what it holds."""

    def __init__(self, path: Path, lines: Iterator[tuple[int, str]]) -> None:
        self.path, self.lines = path, lines

    def numbers(self, what: str, count: int | None) -> list[float]:
        number, line = next(self.lines, (0, ""))
        if not number:
            raise CheckpointError(f"{str(self.path)!r} ends before its {what}: it is cut off.")
        values = line.split(",")
        try:
            found = [float(value) for value in values]
        except ValueError:
            raise CheckpointError(f"Line {number} of {str(self.path)!r} holds other things than numbers (expected the {what}).") from None
        if count is not None and len(found) != count:
            raise CheckpointError(f"Line {number} of {str(self.path)!r} has {len(found)} numbers; expected the {what}, {count}.")
        return found

    def whole(self, what: str, count: int | None, least: int = 1) -> Sequence[int]:
        found = self.numbers(what, count)
        if len(found) < least or any(value != int(value) for value in found if np.isfinite(value)) or not np.isfinite(found).all():
            raise CheckpointError(f"{str(self.path)!r} begins with {found}; expected the {what}, as NNet files do.")
        return [int(value) for value in found]

    def check_end(self) -> None:
        if (rest := next(self.lines, None)) is not None:
            raise CheckpointError(
                f"{str(self.path)!r} goes on in line {rest[0]} after its last bias: it is damaged, or a variant of the format with more "
                "than fully connected ReLU layers."
            )
