"""Pictures in the formats in which people keep them."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wsgraph.data import digits, load_images


def test_digits() -> None:
    data = digits()
    assert [len(part) for part in data] == [1297, 1297, 500, 500]
    assert (data.images.min(), data.images.max()) == (-1, 1)
    assert data.labels.unique().tolist() == list(range(10))
    every = torch.cat([data.images, data.test_images]).flatten(1)
    assert torch.equal(every.sum(1).sort().values, torch.cat([digits(1).images, digits(1).test_images]).flatten(1).sum(1).sort().values)
    assert torch.equal(digits().test_images, data.test_images)
    assert not torch.equal(digits(1).test_labels, data.test_labels)


# == Files ==

_IMAGES = np.random.default_rng(0).integers(0, 256, (20, 5, 4)).astype(np.uint8)
_LABELS = (np.arange(20) % 3).astype(np.uint8)


def _idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.astype(np.uint8).tobytes()


def test_idx_files(tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(_idx(_IMAGES[:15])))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(_idx(_LABELS[:15])))
    (tmp_path / "t10k-images.idx3-ubyte").write_bytes(_idx(_IMAGES[15:]))
    (tmp_path / "t10k-labels.idx1-ubyte").write_bytes(_idx(_LABELS[15:]))
    data = load_images(tmp_path)
    assert torch.equal(data.images, torch.from_numpy(_IMAGES[:15])[:, None] / 127.5 - 1)
    assert torch.equal(data.test_images, torch.from_numpy(_IMAGES[15:])[:, None] / 127.5 - 1)
    assert torch.equal(data.labels, torch.from_numpy(_LABELS[:15]).long())
    assert data.test_labels.tolist() == _LABELS[15:].tolist()


def test_one_part_is_divided(tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", images=_IMAGES, labels=_LABELS)
    data = load_images(tmp_path / "mine.npz", test_fraction=0.25)
    assert [len(part) for part in data] == [15, 15, 5, 5]
    every = torch.cat([data.images, data.test_images])[:, 0]
    back = {tuple(image.flatten().tolist()): label for image, label in zip(_IMAGES / 127.5 - 1, _LABELS, strict=True)}
    assert len(back) == 20
    labels = torch.cat([data.labels, data.test_labels]).tolist()
    nearest = torch.cdist(every.flatten(1), torch.tensor(list(back), dtype=torch.float32)).argmin(1)
    assert [list(back.values())[i] for i in nearest.tolist()] == labels
    assert not torch.equal(load_images(tmp_path / "mine.npz", test_fraction=0.25, seed=1).test_images, data.test_images)


def test_colour_and_floats(tmp_path: Path) -> None:
    colour = np.random.default_rng(1).random((12, 4, 6, 3))
    np.savez(tmp_path / "a.npz", x_train=colour, y_train=_LABELS[:12, None], x_test=colour[:3].transpose(0, 3, 1, 2), y_test=_LABELS[:3])
    data = load_images(tmp_path / "a.npz")
    torch.testing.assert_close(data.images, torch.from_numpy(colour).permute(0, 3, 1, 2).float() * 2 - 1)
    assert torch.equal(data.test_images, data.images[:3])


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"pixels": _IMAGES}, r"Expected images with labels .*\(found pixels\)"),
        ({"images": _IMAGES, "labels": _LABELS[:5]}, r"n integer labels as 'images' .*shapes \[20, 5, 4\] and \[5\]"),
        ({"images": _IMAGES, "labels": _LABELS * 0.5}, "integer labels"),
        ({"images": _IMAGES.astype(float), "labels": _LABELS}, r"bytes, or floats from 0 to 1 \(got 0 to 255\)"),
        ({"images": _IMAGES.reshape(10, 5, 4, 2), "labels": _LABELS[:10]}, "1 or 3 channels"),
        ({"images": _IMAGES[:2], "labels": _LABELS[:2]}, r"Too few images .* to set 10% aside"),
        (
            {"x_train": _IMAGES, "y_train": _LABELS, "x_test": _IMAGES[:, 1:], "y_test": _LABELS},
            r"of one shape .*\(got \[1, 5, 4\] and \[1, 4, 4\]\)",
        ),
    ],
)
def test_arrays_that_do_not_fit(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        load_images(tmp_path / "a.npz")


def test_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="There are no images at"):
        load_images(tmp_path / "nothing")
    with pytest.raises(ValueError, match="Expected IDX files such as train-images-idx3-ubyte"):
        load_images(tmp_path)
    file = tmp_path / "images.idx3-ubyte"
    for content, message in ((_idx(_IMAGES)[:-1], "is truncated"), (b"\x89PNG", "is not an IDX file"), (b"\0\0\x08\x03\0", "is truncated")):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            load_images(tmp_path)
    file.unlink()
    (tmp_path / "images-idx3-ubyte.gz").write_bytes(gzip.compress(_idx(_IMAGES))[:50])
    with pytest.raises(ValueError, match="is damaged"):
        load_images(tmp_path)
    np.savez(tmp_path / "objects.npz", images=np.array([{}, {}]))
    with pytest.raises(ValueError, match=r"is not an \.npz file of arrays, or is damaged"):
        load_images(tmp_path / "objects.npz")
    np.save(tmp_path / "one.npy", _IMAGES)
    for bad in (tmp_path / "one.npy", _truncated(tmp_path)):
        with pytest.raises(ValueError, match=r"is not an \.npz file of arrays, or is damaged"):
            load_images(bad)
    with pytest.raises(ValueError, match="'test_fraction' between 0 and 1"):
        load_images(tmp_path, test_fraction=1)


def _truncated(folder: Path) -> Path:
    np.savez(folder / "half.npz", images=_IMAGES, labels=_LABELS)
    (folder / "half.npz").write_bytes((folder / "half.npz").read_bytes()[:300])
    return folder / "half.npz"
