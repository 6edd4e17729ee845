"""Options of a zoo in a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from wsgraph.data.generators.hyperparameters import HyperparameterRanges
from wsgraph.data.store import PathLike
from wsgraph.files import read_configuration

__all__ = ["read_zoo_configuration"]


def read_zoo_configuration(path: PathLike, allowed: Sequence[str]) -> dict[str, Any]:
    """Options of a zoo from a TOML or JSON file.

    Args:
        path: The file; a table ``ranges`` holds ranges of :class:`HyperparameterRanges`.
        allowed: Names of the options that it may set.

    Returns:
        Options for :func:`make_cnn_zoo`, :func:`make_mlp_zoo` or :func:`make_inr_zoo`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not TOML or JSON, or sets something else.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     text = 'channels = [[8, 8], [16, 16, 16]]\\n[ranges]\\nsteps = [10, 20]\\n'
        ...     _ = Path(f"{folder}/zoo.toml").write_text(text)
        ...     read_zoo_configuration(f"{folder}/zoo.toml", ["channels", "ranges"])["ranges"]
        {'steps': [10, 20]}
    """
    options = read_configuration(path)
    if unknown := [name for name in options if name not in allowed]:
        raise ValueError(f"Expected {str(path)!r} to set some of {', '.join(allowed)} (got {', '.join(map(repr, unknown))}).")
    if "ranges" in options:
        try:
            HyperparameterRanges(**options["ranges"])
        except TypeError as error:
            raise ValueError(f"The table 'ranges' in {str(path)!r} does not fit: {error}.") from None
    return options
