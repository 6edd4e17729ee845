"""ONNX files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wsgraph.convert.formats.entry import FileNetwork, register_format
from wsgraph.convert.formats.known_spaces import traced_once
from wsgraph.convert.onnx import load_onnx

__all__ = ["read_onnx_file"]


@register_format("ONNX", (".onnx",))
def read_onnx_file(path: Path, *, shapes: Sequence[Sequence[int]] = ()) -> list[FileNetwork]:
    """A network with its weights and operators, as ONNX exporters write it.

    Args:
        path: The file.
        shapes: Shapes of its inputs; see :func:`wsgraph.load_onnx`.

    Returns:
        The network.
    """
    module = load_onnx(path, shapes)
    space = traced_once(module, module.example_inputs, module.architecture)
    return [FileNetwork("", space, space.flatten(module.state_dict()), {"inputs": [list(x.shape) for x in module.example_inputs]})]
