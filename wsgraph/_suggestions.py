"""What may have been meant by a name that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["did_you_mean"]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question for the end of a message; empty where no known name is near.

    Args:
        name: What was written.
        known: Names there are.

    Example:
        >>> did_you_mean("test_acuracy", ["loss", "Test_accuracy"]), did_you_mean("seed", ["loss"])
        (" Did you mean 'Test_accuracy'?", '')
    """
    names = {each.casefold(): each for each in known}
    close = difflib.get_close_matches(name.casefold(), names, n=1)
    return f" Did you mean {names[close[0]]!r}?" if close else ""
