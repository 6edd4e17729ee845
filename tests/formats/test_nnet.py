"""NNet files: text as the repository of the format describes it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from wsgraph import CheckpointError, WeightSpace, load_networks

HEADER = "// A comment,\n// and another.\n2, 3, 2, 4,\n3, 4, 2,\n0,\n-1,-2,-3,\n1,2,3,\n0.5,0.25,0,10,\n2,4,8,100,\n"


def written(path: Path) -> tuple[Path, list[np.ndarray]]:
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape) for shape in ((4, 3), (4, 1), (2, 4), (2, 1))]
    body = "\n".join(",".join(f"{value:.12e}" for value in row) + "," for array in arrays for row in array)
    path.write_text(f"{HEADER}{body}\n")
    return path, arrays


def test_a_controller_computes_what_the_format_says(tmp_path: Path) -> None:
    path, (w1, b1, w2, b2) = written(tmp_path / "a.nnet")
    (found,) = load_networks(path)
    assert found.space == WeightSpace.mlp([3, 4, 2], "relu")
    units = np.random.default_rng(1).uniform(-1, 1, size=(6, 3))
    x = (units - [0.5, 0.25, 0]) / [2, 4, 8]
    y = np.maximum(x @ w1.T + b1[:, 0], 0) @ w2.T + b2[:, 0]
    result = found.space.evaluate(found.theta[None], torch.from_numpy(x).float())[0]
    assert np.allclose(result.numpy(), y, atol=1e-5)
    (folded,) = load_networks(path, fold_normalization=True)
    result = folded.space.evaluate(folded.theta[None], torch.from_numpy(units).float())[0]
    assert np.allclose(result.numpy(), y * 100 + 10, rtol=1e-5, atol=1e-4)
    assert found.info == {
        "format": "NNet",
        "input_minimums": [-1, -2, -3],
        "input_maximums": [1, 2, 3],
        "input_means": [0.5, 0.25, 0],
        "input_ranges": [2, 4, 8],
        "output_mean": 10,
        "output_range": 100,
        "normalization_folded": False,
    }


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("2, 3, 2, 4,", "2, 3, 5, 4,", r"says to have 2 layers from 3 to 5 neurons, and sizes \[3, 4, 2\]"),
        ("3, 4, 2,\n", "3, 4, 4, 2,\n", "Line 4 of .* has 4 numbers; expected the size of every layer, 3"),
        ("0.5,0.25,0,10,", "0.5,0.25,0,", "Line 8 of .* has 3 numbers; expected the mean of every input, and one of the outputs, 4"),
        ("-1,-2,-3,", "-1,-2,relu,", "Line 6 of .* holds other things than numbers"),
        ("2, 3, 2, 4,", "2.5, 3, 2, 4,", "begins with .2.5, 3.0, 2.0, 4.0.; expected the number of layers"),
    ],
)
def test_damaged_files_are_refused_with_the_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    path, _ = written(tmp_path / "a.nnet")
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(CheckpointError, match=message):
        load_networks(path)


def test_files_that_are_too_long_or_too_short_are_refused(tmp_path: Path) -> None:
    path, _ = written(tmp_path / "a.nnet")
    text = path.read_text()
    path.write_text(text + "0.1,\n")
    with pytest.raises(CheckpointError, match="goes on in line 22 after its last bias"):
        load_networks(path)
    path.write_text("\n".join(text.splitlines()[:-1]))
    with pytest.raises(CheckpointError, match=r"a.nnet' ends before its bias of layer 2: it is cut off"):
        load_networks(path)
    path.write_text(HEADER.replace("2, 3, 2, 4", "2, 3, 1000000000, 4").replace("3, 4, 2", "3, 4, 1000000000"))
    with pytest.raises(CheckpointError, match=r"ends before its row of the weights of layer 1"):
        load_networks(path)
    path.write_bytes(b"\x89\xff\xfe")
    with pytest.raises(CheckpointError, match="is no text"):
        load_networks(path)
