"""What readers of files raise."""

from __future__ import annotations

from typing import TypeVar

__all__ = ["CheckpointError", "NoConvolutionsError", "NonFiniteWeightsError", "UnknownActivationError", "cause_of"]


class CheckpointError(ValueError):
    """A checkpoint file cannot be read, is not safe to read, or does not hold one state dict.

    Example:
        >>> import pathlib, tempfile
        >>> from wsgraph import load_checkpoint
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "notes.txt")
        ...     path.touch()
        ...     load_checkpoint(path)
        Traceback (most recent call last):
        ...
        CheckpointError: Expected a file ending in .safetensors, .pt, ..., .npz (got 'notes.txt').
    """


class NonFiniteWeightsError(ValueError):
    """A network has NaN or infinite weights."""


class NoConvolutionsError(ValueError):
    """Strides, paddings or pooling are given for a network without convolutions."""


class UnknownActivationError(ValueError):
    """Nothing says which activation a network has, and it has to be given.

    Args:
        message: What to do.
        written: What the file calls it, where it names one that is not known.
    """

    def __init__(self, message: str, written: str = "") -> None:
        super().__init__(message)
        self.written = written


Cause = TypeVar("Cause", bound=BaseException)


def cause_of(error: BaseException | None, kind: type[Cause]) -> Cause | None:
    """The error of a kind that an error was raised from, or is itself.

    Example:
        >>> try:
        ...     try:
        ...         raise KeyError("a")
        ...     except KeyError as error:
        ...         raise ValueError("b") from error
        ... except ValueError as error:
        ...     cause_of(error, KeyError), cause_of(error, OSError)
        (KeyError('a'), None)
    """
    while error is not None and not isinstance(error, kind):
        error = error.__cause__
    return error
