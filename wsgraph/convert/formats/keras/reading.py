"""The reader of Keras files."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wsgraph.convert.errors import CheckpointError
from wsgraph.convert.formats.entry import FileNetwork, register_format
from wsgraph.convert.formats.keras.files import KerasFile, is_hdf5, is_keras_archive, open_keras_file
from wsgraph.convert.formats.keras.model import KerasModule, build_module, without_names
from wsgraph.convert.state_dict import from_state_dict
from wsgraph.convert.tracing import trace
from wsgraph.operators import Activations
from wsgraph.space import WeightSpace

__all__ = ["read_keras_file"]

_ENDINGS = (".keras", ".h5", ".hdf5")


def _is_keras(path: Path) -> bool:
    return is_hdf5(path) or is_keras_archive(path)


@register_format("Keras", _ENDINGS, _is_keras)
def read_keras_file(path: Path, *, shapes: Sequence[Sequence[int]] = (), activation: Activations | None = None) -> list[FileNetwork]:
    """A model of Keras, with its configuration or with weights alone.

    Args:
        path: The file.
        shapes: Shapes of inputs, for sizes that the configuration leaves open: with a batch, and channels first.
        activation: Of files with weights alone: what they do not say.

    Returns:
        The network of the file.
    """
    file = open_keras_file(path)
    if file.config is None:
        return [_weights_alone(file, path, activation)]
    if activation is not None:
        raise CheckpointError(f"{str(path)!r} says the activations of its model itself: leave out 'activation'.")
    try:
        module = build_module(file, shapes)
    except ValueError as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{str(path)!r} cannot be read: {error}") from error
    space = _space(file, module)
    return [FileNetwork("", space, space.flatten(module.state_dict()), _facts(file, module.example_inputs))]


# Spaces of the models that were read last: files of a collection of models have few architectures, and tracing takes longest.
_SPACES: OrderedDict[str, WeightSpace] = OrderedDict()
_SPACES_KEPT = 64


def _space(file: KerasFile, module: KerasModule) -> WeightSpace:
    assert file.config is not None
    sizes = [(key, tuple(tensor.shape), str(tensor.dtype)) for key, tensor in module.state_dict().items()]
    inputs = [(tuple(x.shape), str(x.dtype)) for x in module.example_inputs]
    architecture = f"{file.version} {sizes} {inputs} {without_names(file.config)}"
    space = _SPACES.pop(architecture, None) or trace(module, *module.example_inputs)
    _SPACES[architecture] = space
    while len(_SPACES) > _SPACES_KEPT:
        _SPACES.popitem(last=False)
    return space


def _facts(file: KerasFile, inputs: Sequence[Tensor]) -> dict[str, Any]:
    facts: dict[str, Any] = {"keras_version": file.version, "inputs": [[None, *x.shape[1:]] for x in inputs]}
    config = file.config.get("config") if file.config else None
    if isinstance(config, Mapping) and isinstance(config.get("name"), str):
        facts["model"] = config["name"]
    if any(x.ndim > 3 for x in inputs):
        facts["image_layout"] = "channels first"
    return facts


def _weights_alone(file: KerasFile, path: Path, activation: Activations | None) -> FileNetwork:
    """The network of a file without a configuration, if it is a chain of layers."""
    advice = "Save the whole model, with model.save('model.keras'), which says what its layers are."
    if activation is None:
        raise CheckpointError(f"{str(path)!r} holds weights without a model: give its activations with activation=. {advice}")
    state: dict[str, Tensor] = {}
    for name, arrays in _in_model_order(file):
        kernel, *bias = arrays
        if kernel.ndim < 2 or len(bias) > 1 or any(array.shape != kernel.shape[-1:] for array in bias):
            shapes = ", ".join(str(list(array.shape)) for array in arrays)
            raise CheckpointError(
                f"{str(path)!r} holds weights without a model, and those of {name!r} ({shapes}) are of no dense layer or "
                f"convolution. {advice}"
            )
        key = f"layers.{sum(1 for known in state if known.endswith('.kernel'))}"
        state |= {f"{key}.{kind}": torch.from_numpy(array) for kind, array in zip(("kernel", "bias"), arrays, strict=False)}
    if not state:
        raise CheckpointError(f"{str(path)!r} holds no weights that Keras wrote.")
    space, theta = from_state_dict(state, activation, layout="in_out")
    return FileNetwork("", space, theta, {"keras_version": file.version})


def _in_model_order(file: KerasFile) -> list[tuple[str, list[Any]]]:
    """Layers with weights: as the file lists them, or convolutions and then dense layers, each by its number."""
    layers = list(file.store.layers())
    if file.store.is_listed:
        return layers

    def place(layer: tuple[str, list[Any]]) -> tuple[bool, int]:
        number = re.search(r"_(\d+)$", layer[0])
        return layer[1][0].ndim == 2, int(number[1]) if number else 0

    return sorted(layers, key=place)
