"""Configuration and weights of Keras files, without Keras: nothing but numbers and JSON is read."""

from __future__ import annotations

import io
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from wsgraph.convert.errors import CheckpointError
from wsgraph.convert.formats.archive import has_members, parsed_json, read_members

__all__ = ["KerasFile", "Store", "is_hdf5", "is_keras_archive", "open_keras_file", "snake_case"]

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_CONFIG, _METADATA, _WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
_SMALL, _RATIO = 64 * 2**20, 100


class Store(Protocol):
    """The weights of a model, or of a layer, in a file."""

    def child(self, name: str, key: str) -> Store:
        """The weights of a layer, by its name and by its class and number among the layers of a model."""

    def arrays(self, inner: str = "") -> list[np.ndarray]:
        """The arrays of a layer, or of what lies within it, in the order in which Keras makes them."""


class Model(Store, Protocol):
    """The weights of the outermost model, whose layers can be listed."""

    is_listed: bool

    def layers(self) -> Iterator[tuple[str, list[np.ndarray]]]:
        """Every layer that has weights; where the file lists its layers, in the order of the model."""


@dataclass(frozen=True)
class KerasFile:
    """What a file holds: the configuration of its model (``None`` where it has weights alone), and the weights."""

    config: Mapping[str, Any] | None
    store: Model
    version: str


def is_keras_archive(path: Path) -> bool:
    """Whether a file is a zip archive as Keras 3 writes it."""
    return has_members(path, (_CONFIG, _WEIGHTS))


def is_hdf5(path: Path) -> bool:
    """Whether a file begins as those of HDF5 do."""
    with path.open("rb") as file:
        return file.read(len(_SIGNATURE)) == _SIGNATURE


def open_keras_file(path: Path) -> KerasFile:
    """Open a ``.keras``, ``.h5`` or ``.weights.h5`` file.

    Raises:
        CheckpointError: If the file is damaged or was not written by Keras.
        ImportError: If h5py is not installed.
    """
    if is_hdf5(path):
        return _open_hdf5(path)
    *texts, data = read_members(path, _CONFIG, _METADATA, _WEIGHTS)
    config, metadata = (parsed_json(text, path, name) for text, name in zip(texts, (_CONFIG, _METADATA), strict=True))
    version = str(metadata.get("keras_version", "")) if isinstance(metadata, Mapping) else ""
    if not data.startswith(_SIGNATURE):
        raise CheckpointError(f"{_WEIGHTS!r} of {str(path)!r} is no HDF5 file, or it is damaged.")
    return KerasFile(config, _Groups(_open(io.BytesIO(data), f"{path}/{_WEIGHTS}", len(data))), version)


def snake_case(name: str) -> str:
    """A class as Keras writes it in names of layers and files.

    Example:
        >>> snake_case("BatchNormalization"), snake_case("Conv2DTranspose"), snake_case("LSTM")
        ('batch_normalization', 'conv2d_transpose', 'lstm')
    """
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


# == HDF5 ==


@contextmanager
def _reading(label: str) -> Iterator[None]:
    """Say what h5py raises on damaged bytes, which ranges over several classes, as an error of the file."""
    try:
        yield
    except (OSError, RuntimeError, KeyError, TypeError, UnicodeDecodeError, MemoryError) as error:
        raise CheckpointError(f"{label!r} is damaged or no HDF5 file ({error}).") from None


@dataclass(frozen=True)
class _Group:
    """A group of an HDF5 file; arrays are read from the file itself and never larger than it can hold."""

    group: Any
    label: str
    size: int
    found: dict[str, _Group | None] = field(default_factory=dict, compare=False)

    def get(self, path: str) -> _Group | None:
        """A group below, by names with slashes; links to other files are no way to it."""
        if path not in self.found:
            self.found[path] = self._get(path)
        return self.found[path]

    def _get(self, path: str) -> _Group | None:
        import h5py

        # h5py's own classes look every name up several times.
        opened = self.group.id
        with _reading(self.label):
            for name in filter(None, path.split("/")):
                key = name.encode()
                if not isinstance(opened, h5py.h5g.GroupID) or not opened.links.exists(key):
                    return None
                if opened.links.get_info(key).type != h5py.h5l.TYPE_HARD:
                    return None
                opened = h5py.h5o.open(opened, key)
            if isinstance(opened, h5py.h5g.GroupID):
                return _Group(h5py.Group(opened), self.label, self.size)
            return _Group(h5py.Dataset(opened), self.label, self.size) if isinstance(opened, h5py.h5d.DatasetID) else None

    def names(self) -> list[str]:
        """Names of what lies in it."""
        with _reading(self.label):
            return list(self.group)

    def attribute(self, name: str) -> Any:
        """An attribute, or ``None``."""
        with _reading(self.label):
            return self.group.attrs.get(name)

    def array(self) -> np.ndarray:
        with _reading(self.label):
            return self._array()

    def _array(self) -> np.ndarray:
        import h5py

        data = self.group
        is_array = isinstance(data, h5py.Dataset)
        dtype, shape = (data.dtype, data.shape) if is_array else (None, None)
        if dtype is None or shape is None or dtype.kind not in "fiu":
            kind = dtype if is_array else "a group"
            raise CheckpointError(f"{data.name!r} of {self.label!r} is no array of numbers (its type is {kind}).")
        stored = data.id.get_create_plist()
        if stored.get_external_count() or stored.get_layout() == h5py.h5d.VIRTUAL:
            raise CheckpointError(f"Refused to read {data.name!r} of {self.label!r}: its numbers lie in other files.")
        if (size := math.prod(shape) * dtype.itemsize) > max(_SMALL, _RATIO * self.size):
            raise CheckpointError(
                f"Refused to read {data.name!r} of {self.label!r}: it says to hold {size:,} bytes, the file {self.size:,}."
            )
        return np.asarray(data[()])

    def texts(self, name: str) -> list[str]:
        """Texts in an attribute, which Keras divides where they are long."""
        whole = self.attribute(name)
        chunks = (self.attribute(f"{name}{i}") for i in itertools.count())
        found = [whole] if whole is not None else list(itertools.takewhile(lambda chunk: chunk is not None, chunks))
        with _reading(self.label):
            return [text.decode() if isinstance(text, bytes) else str(text) for part in found for text in np.atleast_1d(part)]


def _open(source: Any, label: str, size: int) -> _Group:
    try:
        import h5py
    except ImportError:
        raise ImportError("Reading Keras files needs the package h5py: pip install 'wsgraph[keras]'.") from None
    with _reading(label):
        return _Group(h5py.File(source, "r"), label, size)


def _open_hdf5(path: Path) -> KerasFile:
    root = _open(path, str(path), path.stat().st_size)
    written = root.attribute("model_config")
    config = None
    if written is not None:
        try:
            config = json.loads(written)
        except (ValueError, TypeError, RecursionError) as error:
            raise CheckpointError(f"'model_config' of {str(path)!r} is damaged ({type(error).__name__}: {error}).") from None
    weights = root.get("model_weights") or root
    version = root.attribute("keras_version") or weights.attribute("keras_version") or ""
    version = version.decode() if isinstance(version, bytes) else str(version)
    store: Model = _NamedLayers(weights) if weights.texts("layer_names") else _Groups(weights)
    return KerasFile(config, store, version)


# == Layouts of weights ==


@dataclass(frozen=True)
class _Groups:
    """Keras 3: groups by class and number, in each its arrays by number under ``vars``."""

    group: _Group
    is_listed = False

    def child(self, name: str, key: str) -> Store:
        for parent in ("layers", "_layer_checkpoint_dependencies"):
            if (layers := self.group.get(parent)) and (found := layers.get(key)):
                own = found.get("vars")
                said = own.attribute("name") if own else None
                if said is not None and (said.decode() if isinstance(said, bytes) else said) != name:
                    raise CheckpointError(f"The weights {key!r} of {found.label!r} are of the layer {said!r}, not of {name!r}.")
                return _Groups(found)
        return _Arrays([])

    def arrays(self, inner: str = "") -> list[np.ndarray]:
        found = self.group.get(f"{inner}/vars")
        if found is None:
            return []
        numbered = [found.get(str(number)) for number in range(len(found.names()))]
        return [entry.array() for entry in numbered if entry is not None]

    def layers(self) -> Iterator[tuple[str, list[np.ndarray]]]:
        """Every layer that has weights, by class and number."""
        found = self.group.get("layers") or self.group.get("_layer_checkpoint_dependencies")
        for key in found.names() if found else ():
            below = found.get(key) if found else None
            if below is not None and (arrays := _Groups(below).arrays()):
                yield key, arrays


@dataclass(frozen=True)
class _NamedLayers:
    """Keras 2: groups by names of layers, each of which lists its arrays in order."""

    group: _Group
    is_listed = True

    def child(self, name: str, key: str) -> Store:
        # Names with slashes are groups within groups.
        found = self.group.get(name)
        return _NamedArrays(self._named(found)) if found else _Arrays([])

    @staticmethod
    def _named(group: _Group) -> list[tuple[str, np.ndarray]]:
        named = []
        for name in group.texts("weight_names"):
            entry = group.get(name)
            if entry is None:
                raise CheckpointError(f"{group.label!r} lacks the weights {name!r}, which the layer {group.group.name!r} lists.")
            named.append((name, entry.array()))
        return named

    def arrays(self, inner: str = "") -> list[np.ndarray]:
        return []

    def layers(self) -> Iterator[tuple[str, list[np.ndarray]]]:
        """Every layer that has weights, in the order of the model."""
        for name in self.group.texts("layer_names"):
            if (found := self.group.get(name)) and (named := self._named(found)):
                yield name, [array for _, array in named]


@dataclass(frozen=True)
class _NamedArrays:
    """Arrays of a layer, or of a model within a model, whose layers their names tell apart."""

    named: list[tuple[str, np.ndarray]]

    def child(self, name: str, key: str) -> Store:
        return _NamedArrays([(path, array) for path, array in self.named if f"/{name}/" in f"/{path.rpartition('/')[0]}/"])

    def arrays(self, inner: str = "") -> list[np.ndarray]:
        return [array for _, array in self.named]


@dataclass(frozen=True)
class _Arrays:
    named: list[np.ndarray]

    def child(self, name: str, key: str) -> Store:
        return self

    def arrays(self, inner: str = "") -> list[np.ndarray]:
        return self.named
