"""Colours, markers and labels that all figures share."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


__all__ = ["HATCHES", "STYLES", "finished", "in_order_of_styles"]

# Okabe and Ito's colours, ordered so that neighbours also differ in lightness; markers and dashes carry the difference without colour.
STYLES = (
    ("#0072B2", "o", "-"),
    ("#D55E00", "s", "--"),
    ("#009E73", "^", "-."),
    ("#000000", "D", ":"),
    ("#CC79A7", "v", (0, (5, 1))),
    ("#56B4E9", "P", (0, (3, 1, 1, 1))),
    ("#E69F00", "X", (0, (1, 1))),
    ("#7F7F7F", "*", (0, (7, 2))),
    ("#8C564B", "<", (0, (4, 2, 1, 2))),
    ("#17BECF", ">", (0, (2, 2))),
    ("#BCBD22", "h", (0, (6, 1, 1, 1))),
)
HATCHES = ("", "///", "...", "xxx")
Point = float | tuple[float, float]


def in_order_of_styles(names: Iterable[str]) -> list[str]:
    """Names of series in the order in which they get their colours, markers and dashes: the same in all figures of the same series.

    Args:
        names: The names, perhaps some of them repeated.

    Returns:
        Every name once.

    Example:
        >>> in_order_of_styles(["statnn", "np", "statnn"])
        ['np', 'statnn']
    """
    return sorted(set(names))


SCALES_LABEL = r"upper bound $s$ of the neuron scales $U[1, s]$ applied to test networks"


def finished(figure: Figure, path: str | os.PathLike[str] | None, title: str | None) -> Figure:
    """The figure with its title, written where a path is given."""
    if title:
        figure.suptitle(title, fontsize=10)
    if path is not None:
        figure.savefig(path)
    return figure
