"""Weight spaces without the views that know them: what graphs, blocks and models are typed by."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from wsgraph.space.flat import FlatSpace
from wsgraph.space.symmetry.canonical import canonicalize
from wsgraph.space.symmetry.group import GroupElement, act, sample_symmetry

__all__ = ["BaseSpace"]


class BaseSpace(FlatSpace):
    """A weight space as its own views know it: the structure, its flat vectors, and the group that moves them."""

    def sample_symmetry(self, batch: int = 1, scale: tuple[float, float] = (0.1, 10.0), **options: Any) -> GroupElement:
        """Random elements of the monomial group; see :func:`wsgraph.symmetry.sample_symmetry`.

        Args:
            batch: Number of elements.
            scale: Range of the positive factors.
            **options: Options of that function: ``distribution``, ``symmetries``, ``classes``, ``generator``, ``dtype``, ``device``.

        Returns:
            A batch of elements, as :meth:`act` takes it.

        Raises:
            ValueError: If the range, a symmetry or another option is not valid.
        """
        return sample_symmetry(self, batch, scale, **options)

    def act(self, g: GroupElement, thetas: Tensor) -> Tensor:
        """Move checkpoints by group elements, keeping their functions; see :func:`wsgraph.symmetry.act`.

        Args:
            g: Group elements, one per network or one for all.
            thetas: Flat checkpoints ``[B, P]`` or features ``[B, P, C]``.

        Returns:
            Tensor of the shape and dtype of ``thetas``, differentiable in them.

        Raises:
            SpaceMismatchError: If the shape is wrong, the elements belong to another space, or there are too many or too few of them.
            ValueError: If a weight is NaN or infinite.
        """
        return act(self, g, thetas)

    def canonicalize(self, thetas: Tensor, **options: Any) -> Tensor:
        """A fixed representative of each checkpoint's orbit; see :func:`wsgraph.symmetry.canonicalize`.

        Args:
            thetas: Flat checkpoints ``[B, P]``.
            **options: The option of that function: ``fix``, which of ``"scale"``, ``"phase"``, ``"flip"``,
                ``"sign"`` and ``"order"`` to settle.

        Returns:
            Tensor ``[B, P]``, differentiable in ``thetas``.

        Raises:
            SpaceMismatchError: If the shape is wrong.
            ValueError: If a weight is NaN or infinite, a network has no canonical form within the range of the dtype, or
                ``fix`` names something else.
        """
        return canonicalize(self, thetas, **options)
