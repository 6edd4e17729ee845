"""What was noticed while files were read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from wsgraph.data.copies import Copy
from wsgraph.data.exchange.folders import Folder

__all__ = ["Noticed", "ReadNetwork", "by_reason"]


class ReadNetwork(NamedTuple):
    """A network that was read.

    Attributes:
        row: Its row of the table.
        role: Its name in the file.
        info: What the file says of it.
        is_finite: Whether its weights are finite, so that it is kept.
    """

    row: int
    role: str
    info: Mapping[str, Any]
    is_finite: bool


def by_reason(bad: Mapping[str, str]) -> list[tuple[str, list[str]]]:
    """Files that cannot be imported, together where the reason is the same, the most frequent first.

    Args:
        bad: The reason of every file; its own name in it makes no other reason.

    Returns:
        Reasons, as they are said of the first file, with the files.

    Example:
        >>> by_reason({"a.pt": "It is damaged.", "b.pt": "'b.pt' lacks 'w'.", "c.pt": "'c.pt' lacks 'w'."})
        [("'b.pt' lacks 'w'.", ['b.pt', 'c.pt']), ('It is damaged.', ['a.pt'])]
    """
    groups: dict[str, list[str]] = {}
    for file, reason in bad.items():
        # A network of a file is written with its role behind.
        groups.setdefault(reason.replace(file, "").replace(file.rpartition(" (")[0] or file, ""), []).append(file)
    return [(bad[files[0]], files) for files in sorted(groups.values(), key=len, reverse=True)]


@dataclass
class Noticed:
    """What was noticed while files were read.

    Attributes:
        networks: The networks, in the order in which they were read.
        stored: Their numbers in the order in which they were written.
        copies: Numbers of networks with the weights of another.
        diverged: Files whose networks have NaN or infinite weights, so that they were not read.
        others: Files that hold no network but the state of an optimizer.
        bad: Files that cannot be imported, with the reason.
        remarks: What readers warned of, a sentence each.
        knows_more: Whether files say more of their networks than what they are.
    """

    networks: list[ReadNetwork] = field(default_factory=list)
    stored: list[int] = field(default_factory=list)
    copies: list[Copy] = field(default_factory=list)
    diverged: dict[str, None] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    bad: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    knows_more: bool = False

    @property
    def kept(self) -> list[ReadNetwork]:
        """The networks of the zoo, in its order."""
        return [self.networks[number] for number in self.stored if self.networks[number].is_finite]

    def label(self, folder: Folder, number: int) -> str:
        """A network for a message: its file, and its role there."""
        network = self.networks[number]
        return folder.files[network.row] + (f" ({network.role})" if network.role else "")

    def across(self, columns: Mapping[str, np.ndarray]) -> list[Copy]:
        """Copies that lie in another split than what they are copies of."""
        splits = columns.get("split")
        if splits is None:
            return []
        return [copy for copy in self.copies if splits[self.networks[copy.number].row] != splits[self.networks[copy.first].row]]

    def described(self, folder: Folder, columns: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """What a zoo keeps of it, as JSON."""
        skipped = sorted([*folder.skipped, *self.others])
        duplicates = {"networks": len(self.copies), "across_splits": len(self.across(columns))} if self.copies else {}
        kept = {"skipped": skipped, "bad": dict(sorted(self.bad.items())), "duplicates": duplicates}
        return {name: value for name, value in kept.items() if value}
