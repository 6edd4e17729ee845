"""The reader of Keras files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wsgraph.convert.errors import CheckpointError, UnknownActivationError
from wsgraph.convert.formats.entry import FileNetwork, register_format
from wsgraph.convert.formats.keras.files import KerasFile, is_hdf5, is_keras_archive, open_keras_file
from wsgraph.convert.formats.keras.model import build_module, without_names
from wsgraph.convert.formats.known_spaces import traced_once
from wsgraph.convert.state_dict import from_state_dict
from wsgraph.operators import Activations

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
    space = traced_once(module, module.example_inputs, (file.version, without_names(file.config)))
    return [FileNetwork("", space, space.flatten(module.state_dict()), _facts(file, module.example_inputs))]


def _facts(file: KerasFile, inputs: Sequence[Tensor]) -> dict[str, Any]:
    facts: dict[str, Any] = {"keras_version": file.version, "inputs": [[None, *x.shape[1:]] for x in inputs]}
    config = file.config.get("config") if file.config else None
    if isinstance(config, Mapping) and isinstance(config.get("name"), str):
        facts["keras_model"] = config["name"]
    if any(x.ndim > 3 for x in inputs):
        facts["image_layout"] = "channels first"
    return facts


def _weights_alone(file: KerasFile, path: Path, activation: Activations | None) -> FileNetwork:
    """The network of a file without a configuration, if it is a chain of layers."""
    advice = "Save the whole model, with model.save('model.keras'), which says what its layers are."
    if activation is None:
        reason = UnknownActivationError("The activations of its network are not in the file.")
        raise CheckpointError(f"{str(path)!r} holds weights without a model: give its activations with activation=. {advice}") from reason
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
