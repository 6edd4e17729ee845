"""What readers of files raise."""

__all__ = ["CheckpointError"]


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
