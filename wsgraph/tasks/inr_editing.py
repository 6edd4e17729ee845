"""Editing implicit neural representations: new weights, such that the picture changes as an image operation would change it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn

from wsgraph.data import ZooDataset
from wsgraph.data.transforms import Normalize
from wsgraph.scores import SCORES, Score
from wsgraph.space import ParameterGraph, WeightSpace
from wsgraph.tasks.registry import register_task
from wsgraph.tasks.task import Task, option, standardization

__all__ = ["OPERATIONS", "Editor", "INREditing", "before_and_after", "edit_pictures"]

_SHARPEN = np.array([[-0.25, -0.25, -0.25], [-0.25, 3.0, -0.25], [-0.25, -0.25, -0.25]])[None, None]


def _gradient(pictures: np.ndarray) -> np.ndarray:
    size = (1, 1, 2, 2)
    return ndimage.grey_dilation(pictures, size) - ndimage.grey_erosion(pictures, size)


def _contrast(pictures: np.ndarray) -> np.ndarray:
    mean = pictures.mean((1, 2, 3), keepdims=True)
    return mean + 1.5 * (pictures - mean)


OPERATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "dilate": lambda pictures: ndimage.grey_dilation(pictures, (1, 1, 3, 3)),
    "erode": lambda pictures: ndimage.grey_erosion(pictures, (1, 1, 2, 2)),
    "gradient": _gradient,
    "sharpen": lambda pictures: ndimage.convolve(pictures, _SHARPEN),
    "contrast": _contrast,
}
"""Image operations of pictures ``[B, channels, H, W]`` with values from 0 to 1, by name."""


def edit_pictures(pictures: Tensor, operation: str) -> Tensor:
    """Apply an image operation.

    ``dilate`` and ``erode`` take the largest of 3x3 and the smallest of 2x2 pixels, ``gradient`` the difference of the largest and the
    smallest of 2x2, ``sharpen`` weighs a pixel 3 and its neighbours -0.25, ``contrast`` moves values away from the picture's mean by half.

    Args:
        pictures: Pictures ``[B, channels, H, W]`` with values from 0 to 1; others are clipped.
        operation: One of :data:`OPERATIONS`.

    Returns:
        Pictures of the same shape with values from 0 to 1.

    Raises:
        ValueError: If the operation is unknown.

    Example:
        >>> picture = torch.zeros(1, 1, 5, 5)
        >>> picture[0, 0, 2, 2] = 1
        >>> edit_pictures(picture, "dilate").sum()
        tensor(9.)
    """
    if operation not in OPERATIONS:
        raise ValueError(f"Expected 'operation' to be one of {', '.join(OPERATIONS)} (got {operation!r}).")
    edited = OPERATIONS[operation](pictures.detach().clamp(0, 1).cpu().numpy())
    return torch.from_numpy(np.clip(edited, 0, 1)).to(pictures)


class Editor(nn.Module):
    r"""A model of weights as an editor of pictures: rendered edited networks beside their targets.

    .. math:: \theta' = \theta + s \odot \sigma \odot \delta(\theta / \sigma)

    with one learned factor :math:`s` for every parameter, 0.01 in the beginning, and its standard deviation :math:`\sigma` if the weights
    are standardized, 1 otherwise.

    Args:
        model: Equivariant model with one output channel, ``[B, P, 1]``.
        space: Weight space of the networks, with a signal.
        operation: One of :data:`OPERATIONS`.
        standardize: What divides parameters by :math:`\sigma` for the model, which the networks themselves keep.

    Shapes:
        Input: a batch of parameter graphs. Output: ``[B, 3, channels, H, W]``, the edited network's picture, what it should be, and that of
        the network as it was, with values from 0 to 1.
    """

    sizes: Tensor

    def __init__(self, model: nn.Module, space: WeightSpace, operation: str, standardize: Normalize | None = None) -> None:
        super().__init__()
        self.model, self.space, self.operation, self.standardize = model, space, operation, standardize
        self.scales = nn.Parameter(torch.full((len(space.params),), 0.01))
        self.register_buffer("sizes", torch.tensor([param.size for param in space.params]), persistent=False)

    def edit(self, batch: ParameterGraph) -> Tensor:
        """Edited flat checkpoints ``[B, P]``."""
        change: Tensor = self.model(batch if self.standardize is None else self.standardize(batch))[:, :, 0]
        if self.standardize is not None:
            change = self.standardize.inverse(self.space, change)
        return batch.thetas() + self.scales.repeat_interleave(self.sizes) * change

    def pictures(self, thetas: Tensor) -> Tensor:
        """Pictures ``[B, channels, H, W]`` of networks, the range of the signal brought to 0 to 1."""
        assert self.space.signal is not None
        low, high = self.space.signal.value_range
        return (self.space.render(thetas) - low) / (high - low)

    def forward(self, batch: ParameterGraph) -> Tensor:
        """Edited pictures, their targets and the pictures before, ``[B, 3, channels, H, W]``."""
        with torch.no_grad():
            before = self.pictures(batch.thetas())
        return torch.stack([self.pictures(self.edit(batch)), edit_pictures(before, self.operation), before], dim=1)


@torch.no_grad()
def before_and_after(editor: nn.Module, batch: ParameterGraph) -> dict[str, Tensor]:
    """Pictures of networks, what an operation makes of them, and those of the edited networks.

    Args:
        editor: A trained :class:`Editor`.
        batch: Networks.

    Returns:
        By label, pictures ``[B, channels, H, W]`` with values from 0 to 1, for :func:`wsgraph.plot.picture_grid`.

    Raises:
        ValueError: If the model is no editor.
    """
    if not isinstance(editor, Editor):
        raise ValueError(f"Expected a model trained for inr_editing (got {type(editor).__name__}).")
    after, target, before = editor(batch.to(next(editor.parameters()).device)).cpu().clamp(0, 1).unbind(1)
    return {"network": before, "target": target, "edited": after}


@register_task
@dataclass(frozen=True)
class INREditing(Task):
    r"""Editing implicit neural representations by their weights, such that their pictures change as by an image operation.

    .. math:: \min \frac{1}{n} \sum \| \text{render}(\theta + s \odot \delta(\theta)) - \text{operation}(\text{render}(\theta)) \|^2

    Pictures are those that the networks render, with values from 0 to 1. Scores are ``mse`` and ``mse_unedited`` (of leaving the networks
    as they are), on test networks as they are and moved by random symmetries of their own; the trained module is an :class:`Editor`, its
    model one that returns weights. `Zhou et al., 2023 <https://arxiv.org/abs/2302.14040>`_ edit the pictures that networks were fitted to,
    and report errors in the value range of the signal.

    Args:
        operation: One of :data:`OPERATIONS`; see :func:`edit_pictures`.

    Raises:
        ValueError: If the operation is unknown.
    """

    name = "inr_editing"
    description = "Models change the weights of implicit neural representations as an image operation changes their picture."
    edits = True

    operation: str = option("dilate", "Image operation: dilate, erode, gradient, sharpen or contrast.", flag="--operation")

    def __post_init__(self) -> None:
        if self.operation not in OPERATIONS:
            raise ValueError(f"Expected 'operation' to be one of {', '.join(OPERATIONS)} (got {self.operation!r}).")

    @property
    def metrics(self) -> tuple[Score, ...]:
        return SCORES["mse"], SCORES["mse_unedited"]

    def fitted(self, splits: Mapping[str, ZooDataset]) -> INREditing:
        space = next(iter(splits.values())).space
        if space.signal is None:
            raise ValueError(f"Expected networks that represent pictures, of a weight space with a signal (got {space!r}).")
        return self

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.mse_loss(outputs[:, 0], outputs[:, 1])

    def wrap(self, model: nn.Module, space: WeightSpace, config: Mapping[str, Any]) -> Editor:
        return Editor(model, space, self.operation, standardization(config))

    def predictions(self, outputs: Tensor) -> Tensor:
        return outputs[:, 0]

    def predict(self, module: nn.Module, batch: ParameterGraph) -> Tensor:
        assert isinstance(module, Editor)
        return module.edit(batch)

    def measured(self, outputs: Tensor, targets: Tensor, metrics: Sequence[Score] | None = None) -> dict[str, float]:
        unedited = nn.functional.mse_loss(outputs[:, 2], outputs[:, 1])
        return {"mse": float(self.loss(outputs, targets)), "mse_unedited": float(unedited)}
