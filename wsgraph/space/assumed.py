"""What of networks' functions was assumed, because weights do not show it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from wsgraph.space.structure import Structure

__all__ = ["AssumedGeometryWarning", "tell_assumed"]


class AssumedGeometryWarning(UserWarning):
    """Strides, paddings or pooling of networks were assumed, because weights do not show them and nobody gave them.

    Their symmetries are right all the same; their outputs are, if the assumption is.

    Example:
        >>> import warnings
        >>> import torch
        >>> from wsgraph import from_state_dict
        >>> weights = {"0.weight": torch.ones(4, 1, 3, 3), "1.weight": torch.ones(2, 4)}
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore", AssumedGeometryWarning)
        ...     from_state_dict(weights, stride=2)[0].assumed
        ('padding 0', 'no pooling', 'global_avg_pool before the linear layers')
    """


def tell_assumed(spaces: Iterable[Structure]) -> None:
    """Warn, once for each space, that networks are about to be run in a geometry that was assumed."""
    untold = [space for space in spaces if space.assumed and not space.__dict__.get("_told")]
    if not untold:
        return
    more = f" and {len(untold) - 1} more spaces" if len(untold) > 1 else ""
    warnings.warn(
        f"Weights do not show {', '.join(untold[0].assumed)}; this was assumed of {untold[0]!r}{more}. Symmetries do not depend on it, but "
        "outputs do, and all that is made of them. Say how the networks are with stride=, padding=, pooling= ('none' for no pooling) and "
        "readout= where they are read; if the assumption is right, dataclasses.replace(space, assumed=()) says so.",
        AssumedGeometryWarning,
        stacklevel=3,
    )
    for space in untold:
        object.__setattr__(space, "_told", True)
