"""Seconds that it takes to make a zoo of a folder of files of other libraries.

A folder holds as many small MLPs in every format (state dicts of PyTorch, safetensors, Keras,
ONNX), in several architectures. It is imported whole, and once for every format alone, in a
process that has read one file of each architecture and format before, as imports take seconds of
libraries otherwise. Run from the repository root:

    python benchmarks/import_speed.py
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import statistics
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from wsgraph.data import import_zoo
from wsgraph.files import write_json
from wsgraph.measure import machine

SIZES = ((4, 16, 16, 2), (4, 32, 32, 2), (8, 16, 16, 16, 3), (8, 64, 3))

Weights = Sequence[tuple[np.ndarray, np.ndarray]]


def make_weights(sizes: Sequence[int], seed: int) -> Weights:
    """Weights ``[out, in]`` and biases of an MLP."""
    rng = np.random.default_rng(seed)
    return [(rng.normal(size=(b, a)).astype(np.float32), rng.normal(size=b).astype(np.float32)) for a, b in pairwise(sizes)]


def _state(weights: Weights) -> dict[str, torch.Tensor]:
    named = {"weight": 0, "bias": 1}
    return {f"{2 * i}.{name}": torch.from_numpy(layer[place]) for i, layer in enumerate(weights) for name, place in named.items()}


def write_torch(path: Path, weights: Weights) -> None:
    """A state dict as ``torch.save`` writes it."""
    torch.save(_state(weights), path)


def write_safetensors(path: Path, weights: Weights) -> None:
    """A state dict as safetensors."""
    save_file(_state(weights), path)


def write_keras(path: Path, weights: Weights) -> None:
    """A sequential model in the layout of Keras 3, with its numbers in names of layers."""
    layers: list[dict[str, Any]] = [
        {
            "module": "keras.layers",
            "class_name": "InputLayer",
            "config": {"batch_shape": [None, weights[0][0].shape[1]], "dtype": "float32", "name": "input_layer"},
            "registered_name": None,
        }
    ]
    for i, (weight, _) in enumerate(weights):
        activation = "relu" if i + 1 < len(weights) else "linear"
        policy = {"module": "keras", "class_name": "DTypePolicy", "config": {"name": "float32"}, "registered_name": None}
        config = {"name": f"dense_{i}", "trainable": True, "dtype": policy, "units": weight.shape[0], "activation": activation}
        config |= {"use_bias": True, "kernel_regularizer": None, "bias_regularizer": None, "quantization_config": None}
        layers.append({"module": "keras.layers", "class_name": "Dense", "config": config, "registered_name": None})
    model = {
        "module": "keras",
        "class_name": "Sequential",
        "config": {"name": "sequential", "layers": layers},
        "registered_name": None,
    }
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for i, arrays in enumerate(weights):
            group = file.create_group(f"layers/dense{f'_{i}' if i else ''}/vars")
            group["0"], group["1"] = arrays[0].T, arrays[1]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.15.1"}))
        archive.writestr("config.json", json.dumps(model))
        archive.writestr("model.weights.h5", buffer.getvalue())


def write_onnx(path: Path, weights: Weights) -> None:
    """A network of ``Gemm`` and ``Relu``, as PyTorch exports it."""
    nodes, tensors, value = [], [], "x"
    for i, arrays in enumerate(weights):
        names = [f"{2 * i}.weight", f"{2 * i}.bias"]
        tensors += [numpy_helper.from_array(array, name) for array, name in zip(arrays, names, strict=True)]
        is_last = i + 1 == len(weights)
        made = "y" if is_last else f"linear_{i}"
        nodes.append(helper.make_node("Gemm", [value, *names], [made], f"node_linear_{i}", alpha=1.0, beta=1.0, transB=1))
        if not is_last:
            value = f"relu_{i}"
            nodes.append(helper.make_node("Relu", [made], [value], f"node_relu_{i}"))
    inputs, outputs = weights[0][0].shape[1], weights[-1][0].shape[0]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size]) for name, size in (("x", inputs), ("y", outputs))]
    graph = helper.make_graph(nodes, "main_graph", ends[:1], ends[1:], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


WRITERS: dict[str, Callable[[Path, Weights], None]] = {
    "pt": write_torch,
    "safetensors": write_safetensors,
    "keras": write_keras,
    "onnx": write_onnx,
}


def write_folder(folder: Path, endings: Sequence[str], files: int) -> None:
    """So many files in all, of these formats and of all architectures in turn, no two alike."""
    folder.mkdir()
    for number in range(files):
        kind, sizes = number % len(endings), number // len(endings) % len(SIZES)
        ending = endings[kind]
        WRITERS[ending](folder / f"{number:05d}.{ending}", make_weights(SIZES[sizes], number))


def seconds_to_import(folder: Path, target: Path) -> tuple[float, float]:
    """Seconds to make a zoo of a folder, and those of them that the processor was busy with it."""
    start, busy = time.perf_counter(), time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_zoo(target, folder, activation="relu" if any(folder.glob("*.[ps]*t*")) else None, progress=False)
    seconds = time.perf_counter() - start, time.process_time() - busy
    shutil.rmtree(target)
    return seconds


def main() -> None:
    """Measure, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few files, to see that it runs")
    parser.add_argument("--files", type=int, default=2000, help="files in a folder")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    if options.quick:
        options.files, options.rounds = 40, 1
    torch.set_num_threads(1)
    kinds = {"mixed": [*WRITERS], **{ending: [ending] for ending in WRITERS}}
    work = Path(tempfile.mkdtemp())
    rows: dict[str, list[tuple[float, float]]] = {name: [] for name in kinds}
    try:
        for name, endings in kinds.items():
            write_folder(work / name, endings, options.files)
        write_folder(work / "first", [*WRITERS], len(WRITERS) * len(SIZES))
        first = seconds_to_import(work / "first", work / "zoo")
        for _ in range(options.rounds):
            for name, seconds in rows.items():
                seconds.append(seconds_to_import(work / name, work / "zoo"))
    finally:
        shutil.rmtree(work)
    table = Table("files", "seconds", "busy", "ms a file", title=f"A zoo of {options.files:,} files, one thread")
    for name, seconds in rows.items():
        passed, busy = (statistics.median(values) for values in zip(*seconds, strict=True))
        table.add_row(name, f"{passed:.2f}", f"{busy:.2f}", f"{1000 * busy / options.files:.2f}")
    Console().print(table)
    document = {
        "machine": machine(),
        "files": options.files,
        "architectures": [list(sizes) for sizes in SIZES],
        "first_seconds": first[0],
        "seconds": {name: [passed for passed, _ in seconds] for name, seconds in rows.items()},
        "busy_seconds": {name: [busy for _, busy in seconds] for name, seconds in rows.items()},
        "command": f"python benchmarks/import_speed.py --files {options.files} --rounds {options.rounds}",
    }
    options.output.mkdir(parents=True, exist_ok=True)
    write_json(options.output / "import_speed.json", document)


if __name__ == "__main__":
    main()
