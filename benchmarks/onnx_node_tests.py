"""The node tests that the package onnx ships, read by wsgraph: right, or refused by name.

Every test is a small model with inputs and outputs. "as shipped": its inputs are given when the
module is called. "stored": all inputs but the first are put into the file, where exporters put
weights, shapes and axes. A test is right if all outputs have the expected type, shape and values
(to the test's own tolerance, or the last two bits of the type), refused if loading or running
raises a CheckpointError, wrong if an output differs, raw if another error is raised. Run from the
repository root:

    python benchmarks/onnx_node_tests.py
"""

from __future__ import annotations

import argparse
import re
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

import wsgraph
from wsgraph.files import write_json
from wsgraph.measure import machine

KINDS = ("right", "refused", "wrong", "raw")


def load_tests() -> list[Any]:
    """All node tests of the installed onnx."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(load_model_tests(kind="node"))


def with_stored_inputs(model: Any, inputs: list[Any]) -> tuple[Any, list[Any]]:
    """A model whose inputs after the first are tensors in the file."""
    names = [value.name for value in model.graph.input]
    stored = [i for i in range(1, len(inputs)) if isinstance(inputs[i], (np.ndarray, np.generic)) and inputs[i].dtype.kind not in "OSU"]
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    changed.ir_version = max(model.ir_version, 8)  # tensors of the file are no inputs any more
    del changed.graph.input[:]
    changed.graph.input.extend(value for i, value in enumerate(model.graph.input) if i not in stored)
    changed.graph.initializer.extend(numpy_helper.from_array(np.asarray(inputs[i]), names[i]) for i in stored)
    return changed, [value for i, value in enumerate(inputs) if i not in stored]


def as_tensor(value: Any) -> Any:
    """An array as a tensor; what is none stays as it is."""
    value = numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value
    if not isinstance(value, (np.ndarray, np.generic)):
        return value
    value = np.asarray(value)
    if str(value.dtype) == "bfloat16":
        return torch.tensor(value.astype("float32")).bfloat16()
    try:
        return torch.tensor(value)
    except TypeError:  # text, and numbers of a few bits
        return value


def same(output: Any, expected: Any, rtol: float, atol: float) -> bool:
    """Whether an output is what a test expects, in type, shape and values."""
    expected = numpy_helper.to_array(expected) if isinstance(expected, onnx.TensorProto) else expected
    if not isinstance(output, Tensor) or not isinstance(expected, (np.ndarray, np.generic)):
        return False
    expected = np.asarray(expected)
    if str(output.dtype).removeprefix("torch.") != str(expected.dtype) or tuple(output.shape) != expected.shape:
        return False
    if not output.is_floating_point():
        return bool(np.array_equal(output.numpy(), expected))
    rtol = max(rtol, 4 * torch.finfo(output.dtype).eps)
    return bool(np.allclose(output.double().numpy(), expected.astype(np.float64), rtol=rtol, atol=atol, equal_nan=True))


def classify(test: Any, model: Any, pairs: list[tuple[list[Any], list[Any]]], path: Path) -> tuple[str, str]:
    """The kind of a test's outcome, and the reason."""
    path.write_bytes(model.SerializeToString())
    try:
        module = wsgraph.load_onnx(path)
        for inputs, outputs in pairs:
            results = module(*map(as_tensor, inputs))
            results = results if isinstance(results, tuple) else (results,)
            for result, expected in zip(results, outputs, strict=True):
                if not same(result, expected, test.rtol, test.atol):
                    return "wrong", f"{result} in place of {expected}"
    except wsgraph.CheckpointError as error:
        return "refused", str(error)
    except Exception as error:
        return "raw", f"{type(error).__name__}: {error}"
    return "right", ""


def refused_operator(reason: str) -> str:
    """What a refusal names: an operator, an input or output, or the type of a tensor."""
    named = re.search(r"cannot read(?: as it is)?, (?:ai\.onnx\.)?([\w.]+) \(|cannot read, \d+ of (\w+)|The operator (\w+)", reason)
    if named:
        name = next(group for group in named.groups() if group)
        return f"{name} (an input that must be known)" if "depends on the values" in reason else name
    typed = re.search(r"tensor of type (\w+)|of the kind (\w+)", reason)
    return f"{next(group for group in typed.groups() if group).lower()} values" if typed else "other"


def measure(tests: list[Any], console: Console) -> list[dict[str, str]]:
    """Outcomes of all tests, as shipped and with stored inputs."""
    rows = []
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder, "model.onnx")
        for test in track(tests, "Node tests", console=console):
            pairs = [(list(inputs), list(outputs)) for inputs, outputs in test.data_sets]
            kind, reason = classify(test, test.model, pairs, path)
            row = {"name": test.name, "as shipped": kind, "reason": reason}
            if len(pairs) == 1 and len(pairs[0][0]) > 1:
                model, inputs = with_stored_inputs(test.model, pairs[0][0])
                row["stored"], row["reason stored"] = classify(test, model, [(inputs, pairs[0][1])], path)
            rows.append(row)
    return rows


def main() -> None:
    """Run all tests, print the table, write the outcomes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/onnx_node_tests.json"))
    arguments = parser.parse_args()
    console = Console()
    rows = measure(load_tests(), console)
    counts = {way: Counter(row[way] for row in rows if way in row) for way in ("as shipped", "stored")}
    table = Table("tests", *KINDS, "all")
    for way, count in counts.items():
        table.add_row(way, *(f"{count[kind]:,}" for kind in KINDS), f"{sum(count.values()):,}")
    console.print(table)
    refused: dict[str, list[str]] = {}
    for row in rows:
        if row["as shipped"] == "refused":
            refused.setdefault(refused_operator(row["reason"]), []).append(row["name"])
    refused = dict(sorted(refused.items(), key=lambda entry: -len(entry[1])))
    console.print("Refused, as shipped: " + ", ".join(f"{name} {len(tests)}" for name, tests in refused.items()))
    for row in rows:
        for way, reason in (("as shipped", "reason"), ("stored", "reason stored")):
            if row.get(way) in ("wrong", "raw"):
                console.print(f"{row['name']} ({way}) is {row[way]}: {row[reason][:300]}", markup=False)
    write_json(
        arguments.output,
        {
            "machine": {**machine(), "onnx": onnx.__version__},
            "counts": {way: {kind: count[kind] for kind in KINDS} for way, count in counts.items()},
            "refused": refused,
        },
    )


if __name__ == "__main__":
    main()
