"""Pictures with labels: digits that come with scikit-learn, and the formats in which people keep others."""

from __future__ import annotations

import gzip
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from wsgraph.data.random import CounterRandom

__all__ = ["ClassificationData", "digits", "load_images"]


class ClassificationData(NamedTuple):
    """Labelled examples for training and for testing.

    Args:
        images: Training inputs ``[n, n_0, *positions]``.
        labels: Training labels ``[n]``.
        test_images: Test inputs, shaped alike.
        test_labels: Test labels.
    """

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def _divided(images: Tensor, labels: Tensor, test: int, seed: int, purpose: str) -> ClassificationData:
    """The last of a random order become the test set."""
    order = CounterRandom(seed).uniform(torch.zeros(1, dtype=torch.long), purpose, (len(labels),))[0].argsort(stable=True)
    first, last = order[: len(order) - test], order[len(order) - test :]
    return ClassificationData(images[first], labels[first], images[last], labels[last])


def digits(seed: int = 0) -> ClassificationData:
    """The 8x8 digits that come with scikit-learn: 1,297 training and 500 test images ``[n, 1, 8, 8]`` with values in [-1, 1].

    Args:
        seed: Seed of the division into training and test images.

    Example:
        >>> [list(part.shape) for part in digits()]
        [[1297, 1, 8, 8], [1297], [500, 1, 8, 8], [500]]
    """
    from sklearn.datasets import load_digits

    source = load_digits()
    images = torch.from_numpy(source.images).float()[:, None] / 8 - 1
    return _divided(images, torch.from_numpy(source.target).long(), 500, seed, "digits")


_IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_PARTS = {
    "train": (("train-images", "train-labels"), ("x_train", "y_train"), ("train_images", "train_labels")),
    "test": (("t10k-images", "t10k-labels"), ("x_test", "y_test"), ("test_images", "test_labels")),
    "all": (("images", "labels"), ("x", "y"), ("data", "target")),
}


def _read_idx(file: Path) -> np.ndarray:
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{str(file)!r} is damaged ({error}). Fetch it again.") from None
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _IDX_TYPES:
        raise ValueError(f"{str(file)!r} is not an IDX file.")
    dtype, dimensions = np.dtype(_IDX_TYPES[content[2]]), content[3]
    shape = np.frombuffer(content, ">i4", dimensions, 4) if len(content) >= 4 + 4 * dimensions else np.array([-1])
    start = 4 + 4 * dimensions
    if (shape < 0).any() or len(content) != start + int(shape.prod(dtype=np.int64)) * dtype.itemsize:
        raise ValueError(
            f"{str(file)!r} is truncated: {len(content):,} bytes do not hold an array of shape {shape.tolist()}. Fetch it again."
        )
    return np.frombuffer(content, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays at a path by name: the IDX files of a folder, or what is in an .npz file."""
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if "-idx" in file.name or ".idx" in file.name)
        if not files:
            raise ValueError(f"Expected IDX files such as train-images-idx3-ubyte.gz in {str(path)!r} (found none); or give an .npz file.")
        return {file.name.split("-idx")[0].split(".idx")[0]: _read_idx(file) for file in files}
    if not path.exists():
        raise FileNotFoundError(f"There are no images at {str(path)!r}. Give a folder of IDX files or an .npz file.")
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array")
            return {name: archive[name] for name in archive.files}
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError) as error:
        raise ValueError(f"{str(path)!r} is not an .npz file of arrays, or is damaged ({error}).") from None


def _pictures(name: str, images: np.ndarray, labels: np.ndarray, path: Path) -> tuple[Tensor, Tensor]:
    labels = labels.squeeze()
    if images.ndim not in (3, 4) or labels.shape != images.shape[:1] or labels.dtype.kind not in "iu" or not len(images):
        raise ValueError(
            f"Expected images [n, H, W] or [n, H, W, channels] and n integer labels as {name!r} in {str(path)!r} "
            f"(got shapes {list(images.shape)} and {list(labels.shape)}, {labels.dtype})."
        )
    if images.ndim == 3:
        images = images[:, None]
    elif images.shape[3] in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    elif images.shape[1] not in (1, 3):
        raise ValueError(f"Expected 1 or 3 channels in {name!r} in {str(path)!r} (got shape {list(images.shape)}).")
    values = torch.from_numpy(np.ascontiguousarray(images)).float()
    if images.dtype == np.uint8:
        values = values / 127.5 - 1
    elif not (float(values.min()) >= 0 and float(values.max()) <= 1):
        raise ValueError(
            f"Expected {name!r} in {str(path)!r} to hold bytes, or floats from 0 to 1 (got {values.min():g} to {values.max():g})."
        )
    else:
        values = values * 2 - 1
    return values, torch.from_numpy(labels.astype(np.int64))


def load_images(path: str | os.PathLike[str], *, test_fraction: float = 0.1, seed: int = 0) -> ClassificationData:
    """Read pictures with labels from a folder of IDX files (the format of MNIST, gzipped or not) or an ``.npz`` file.

    An ``.npz`` file holds ``x_train, y_train, x_test, y_test`` or ``images, labels``. Where there is one part alone, a random share of it
    becomes the test set.

    Args:
        path: The folder or file.
        test_fraction: Share of the test set where the files have none.
        seed: Seed of that division.

    Returns:
        Images ``[n, channels, H, W]`` with values in [-1, 1] and labels.

    Raises:
        FileNotFoundError: If there is nothing at the path.
        ValueError: If a file is damaged, or does not hold images with labels.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/mine.npz", images=np.zeros((50, 28, 28), np.uint8), labels=np.arange(50) % 10)
        ...     [list(part.shape) for part in load_images(f"{folder}/mine.npz")]
        [[45, 1, 28, 28], [45], [5, 1, 28, 28], [5]]
    """
    path = Path(path)
    if not 0 < test_fraction < 1:
        raise ValueError(f"Expected 'test_fraction' between 0 and 1 (got {test_fraction!r}).")
    arrays: dict[str, Any] = _read_arrays(path)
    parts = {
        part: _pictures(names[0], arrays[names[0]], arrays[names[1]], path)
        for part, choices in _PARTS.items()
        for names in choices
        if names[0] in arrays and names[1] in arrays
    }
    if "train" in parts and "test" in parts:
        if parts["train"][0].shape[1:] != parts["test"][0].shape[1:]:
            shapes = [list(images.shape[1:]) for images, _ in parts.values()]
            raise ValueError(f"Expected training and test images of one shape in {str(path)!r} (got {shapes[0]} and {shapes[1]}).")
        return ClassificationData(*parts["train"], *parts["test"])
    if not parts:
        raise ValueError(
            f"Expected images with labels in {str(path)!r}: train-images and train-labels, x_train and y_train, or images and labels "
            f"(found {', '.join(arrays) or 'nothing'})."
        )
    images, labels = next(iter(parts.values()))
    test = round(len(labels) * test_fraction)
    if not 0 < test < len(labels):
        raise ValueError(f"Too few images in {str(path)!r} to set {test_fraction:.0%} aside for testing (got {len(labels)}).")
    return _divided(images, labels, test, seed, "images")
