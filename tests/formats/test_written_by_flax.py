"""Files that Flax itself wrote, with write_flax_files.py in an environment of its own: the same outputs as Flax's."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from wsgraph import load_networks

FOLDER = os.environ.get("WSGRAPH_FLAX_FILES", "")
pytestmark = pytest.mark.skipif(not FOLDER, reason="WSGRAPH_FLAX_FILES names no folder of files that Flax wrote")


@pytest.mark.parametrize("name", ["deep", "convolutional", "listed"])
def test_outputs_are_those_of_flax(name: str) -> None:
    folder = Path(FOLDER)
    options = json.loads((folder / "options.json").read_text())[name]
    with np.load(folder / f"{name}.npz") as stored:
        x, y = torch.from_numpy(stored["x"]), stored["y"]
    files = sorted(folder.glob(f"{name}-*.msgpack"))
    assert files
    for path in files:
        (found,) = load_networks(path, activation="tanh", **options)
        result = found.space.evaluate(found.theta[None], x.movedim(-1, 1) if x.ndim > 3 else x)[0]
        assert np.abs(y).max() > 0.1
        assert np.allclose(result.numpy(), y, rtol=1e-5, atol=1e-5)
