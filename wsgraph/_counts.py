"""Numbers of things, as people write them."""

from __future__ import annotations

__all__ = ["counted"]


def counted(count: int, one: str, several: str | None = None) -> str:
    """A number with what it counts, in the singular where it is one.

    Args:
        count: The number.
        one: What is counted, with what else agrees with it, such as a verb.
        several: The same of several (default: with an s).

    Example:
        >>> counted(1, "file"), counted(1200, "file"), counted(1, "network has", "networks have")
        ('1 file', '1,200 files', '1 network has')
    """
    return f"{count:,} {one if count == 1 else several or f'{one}s'}"
