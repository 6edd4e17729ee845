"""What a trained model says of networks wherever they are: files, folders, zoos, state dicts."""

from __future__ import annotations

import csv
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from wsgraph.convert import load_checkpoint
from wsgraph.convert.checkpoint import network_files
from wsgraph.convert.errors import CheckpointError, UnknownActivationError, cause_of
from wsgraph.convert.formats import FileNetwork, file_format, known_endings, load_networks
from wsgraph.convert.networks import chosen_network
from wsgraph.data import ZooDataset, ZooStore
from wsgraph.data.exchange.tables import ROLE
from wsgraph.files import write_atomically
from wsgraph.nn import model_entry
from wsgraph.space import SpaceMismatchError, WeightSpace
from wsgraph.tasks.distance import Reference
from wsgraph.tasks.task import Task, all_match

__all__ = ["Predictions", "Reading", "predictions_of"]

_ZOO = "zoo.json"


class Predictor(Protocol):
    """What predicts: a :class:`TrainedModel`."""

    task: Task
    trained_on: list[WeightSpace]
    reference: Reference | None

    @property
    def name(self) -> str:
        """Name of the model."""

    def read(self, state_dict: Mapping[str, Tensor], activation: str | None = None) -> tuple[WeightSpace, Tensor]:
        """Weight space and flat checkpoint of a state dict."""

    def predict(self, networks: Any, thetas: Any = None, *, batch_size: int = 256) -> Any:
        """What the model says of flat checkpoints."""

    def predict_zoo(self, data: ZooDataset, *, batch_size: int = 256) -> Tensor:
        """What the model says of the networks of a zoo."""


@dataclass
class Predictions:
    """A table of what a model says, one row per network, and what is wrong with networks that it cannot read.

    Attributes:
        rows: For every network its name, the prediction, and where these are known, ``distance`` from the training networks (1 is
            usual), ``nearer`` (the share of training networks that lie nearer) and ``new_architecture``.
        errors: By name of a network or file, what is wrong and what to do.

    Example:
        >>> Predictions([{"checkpoint": "a.pt", "predicted_accuracy": 0.9}], {"b.pt": "There is no file 'b.pt'."})
        Predictions(1 network, 1 error)
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the rows as a CSV file, atomically.

        Args:
            path: The file.

        Raises:
            OSError: If it cannot be written.
        """

        def write(temporary: Path) -> None:
            with temporary.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(self.rows[0]) if self.rows else [])
                writer.writeheader()
                writer.writerows(self.rows)

        write_atomically(Path(path), write)

    def __repr__(self) -> str:
        counts = [f"{len(held)} {name}{'s' * (len(held) != 1)}" for held, name in ((self.rows, "network"), (self.errors, "error"))]
        return f"Predictions({', '.join(counts)})"


@dataclass(frozen=True)
class Reading:
    """How networks in files are read.

    Args:
        activation: Activation of weights alone (default: that of the networks trained on).
        prefix: What the keys of the network begin with, in a state dict that holds more.
        entry: Which state dict of a file with several.
        opened: ``opened(path)`` returns a network with ``space`` and ``theta``, or nothing to read it otherwise.
    """

    activation: str | None = None
    prefix: str | None = None
    entry: str | None = None
    opened: Callable[[Path], Any] | None = None


@dataclass
class _Collected:
    """Networks by weight space, in their order, and what could not be read."""

    names: list[str] = field(default_factory=list)
    taken: set[str] = field(default_factory=set)
    by_space: dict[WeightSpace, dict[str, Tensor]] = field(default_factory=dict)
    zoos: list[tuple[str, ZooDataset]] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, space: WeightSpace, theta: Tensor) -> None:
        """Enter a network under a name of its own."""
        self.by_space.setdefault(space, {})[self.named(name)] = theta

    def named(self, name: str) -> str:
        """A name of its own for a further network."""
        name = next(each for each in itertools.chain([name], (f"{name} ({i})" for i in itertools.count(2))) if each not in self.taken)
        self.names.append(name)
        self.taken.add(name)
        return name


def predictions_of(
    trained: Predictor, networks: Any, reading: Reading, *, output: str | os.PathLike[str] | None = None, batch_size: int = 256
) -> Predictions:
    """What a model says of networks; those that cannot be read are named, and the others still are.

    Args:
        trained: The model.
        networks: A folder of checkpoints or of a zoo, a file, a zoo or dataset, a state dict, a network of :func:`wsgraph.load_networks`,
            a sequence of such, or a mapping of them by name.
        reading: How files are read.
        output: Folder for edited networks, of models that return networks.
        batch_size: Networks per forward pass.

    Returns:
        The table.

    Raises:
        ValueError: If the model returns networks and no folder for them is given.
    """
    if trained.task.edits and output is None:
        raise ValueError(
            f"The model was trained for {trained.task.name} and returns networks: name the folder for them with 'output' (--output)."
        )
    found = _Collected()
    _collect(trained, networks, "", reading, found)
    rows: dict[str, dict[str, Any]] = {}
    taken: set[Path] = set()
    known = _known(trained)
    for folder, data in found.zoos:
        names = [found.named(name) for name in _names_in(data, folder)]
        try:
            space = data.space if trained.task.edits else None
            said = trained.predict_zoo(data, batch_size=batch_size)
            rows |= _rows(trained, names, said, space, output, taken)
        except (ValueError, TypeError) as error:
            found.errors[folder] = f"{error} {known}"
            continue
        for each in data.spaces if trained.reference is not None and not trained.task.edits else ():
            own = data.of_space(each)
            places = {position: i for i, position in enumerate(data.positions.tolist())}
            theirs = [names[places[position]] for position in own.positions.tolist()]
            _locate(trained, each, theirs, torch.cat([data.store.read(part) for part in own.positions.split(1024)]), rows)
    for space, thetas in found.by_space.items():
        stacked = torch.stack(list(thetas.values()))
        try:
            rows |= _rows(trained, list(thetas), trained.predict(space, stacked, batch_size=batch_size), space, output, taken)
        except (ValueError, TypeError) as error:
            of_one = isinstance(error, SpaceMismatchError) and not model_entry(trained.name).mixed
            found.errors |= dict.fromkeys(thetas, f"It is a network of {space!r}. {known}" if of_one else f"{error} {known}")
            continue
        if trained.reference is not None and not trained.task.edits:
            _locate(trained, space, list(thetas), stacked, rows)
    return Predictions([rows[name] for name in found.names if name in rows], found.errors)


def _known(trained: Predictor) -> str:
    """What the model reads, for errors."""
    spaces = trained.trained_on
    which = repr(spaces[0]) + (f" and {len(spaces) - 1} more architectures" if len(spaces) > 1 else "")
    return f"{trained.name} was trained on networks of {which}: give it such networks, or train on some like these."


# == Reading ==


def _collect(trained: Predictor, networks: Any, name: str, reading: Reading, found: _Collected) -> None:
    """Enter networks, whatever they are given as."""
    if isinstance(networks, (ZooStore, ZooDataset)):
        data = networks if isinstance(networks, ZooDataset) else networks.dataset(None, target=None)
        found.zoos.append((name or str(data.store.path), data))
    elif isinstance(networks, (str, os.PathLike)):
        _read_path(trained, Path(networks), reading, found)
    elif isinstance(networks, FileNetwork):
        found.add(name or networks.name or "network", networks.space, networks.theta)
    elif isinstance(networks, Mapping) and networks and all(isinstance(value, Tensor) for value in networks.values()):
        with _Told(name or "state dict", found):
            space, theta = trained.read(networks, reading.activation)
            found.add(name or "state dict", space, theta)
    elif isinstance(networks, Mapping):
        for key, each in networks.items():
            _collect(trained, each, str(key), reading, found)
    elif isinstance(networks, Sequence):
        for i, each in enumerate(networks):
            _collect(trained, each, f"{name}{i}" if isinstance(each, Mapping) else "", reading, found)
    else:
        raise TypeError(
            f"Expected files, folders, zoos, state dicts or networks of load_networks to predict (got {type(networks).__name__})."
        )


class _Told:
    """Turns errors of one network into an entry, so that the others are still read."""

    def __init__(self, name: str, found: _Collected) -> None:
        self.name, self.found = name, found

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if isinstance(error, (ValueError, TypeError, OSError, ImportError)):
            self.found.errors[self.name] = str(error)
            return True
        return False


def _read_path(trained: Predictor, path: Path, reading: Reading, found: _Collected) -> None:
    if path.is_dir() and (path / _ZOO).exists():
        with _Told(str(path), found):
            _collect(trained, ZooStore(path), str(path), reading, found)
        return
    files = list(_files(path)) if path.is_dir() else [path]
    if not files:
        found.errors[str(path)] = (
            f"The folder holds no networks ({', '.join(known_endings())}), and those below it are not looked into: give their paths."
        )
    for file in files:
        with _Told(str(file), found):
            for name, space, theta in _read_file(trained, file, reading):
                found.add(name, space, theta)


def _files(folder: Path) -> Iterator[Path]:
    """What holds networks in a folder; the folder itself where it is one as a whole."""
    if _is_network(folder):
        yield folder
        return
    held = sorted(file for file in folder.iterdir() if not file.name.startswith("."))
    whole = set(network_files(file.name for file in held if file.is_file()))
    for file in held:
        if file.name in whole or (file.is_file() and _is_network(file)):
            yield file


def _is_network(path: Path) -> bool:
    """Whether a file or folder is of a format that says what its networks are; a table, a note or a picture is not."""
    try:
        return file_format(path).tensors is None
    except ValueError:
        return False


def _read_file(trained: Predictor, file: Path, reading: Reading) -> Iterator[tuple[str, WeightSpace, Tensor]]:
    """The networks of a file with their names."""
    network = None if reading.opened is None else reading.opened(file)
    if network is not None:
        yield str(file), network.space, network.theta
    elif not file.exists() or file_format(file).tensors is not None:  # weights alone: as those trained on
        state = load_checkpoint(file, entry=reading.entry)
        yield str(file), *trained.read(chosen_network(state, reading.prefix) if reading.prefix else state, reading.activation)
    else:
        for each in _of_format(file, reading.activation):
            yield f"{file}:{each.name}" if each.name else str(file), each.space, each.theta


def _of_format(file: Path, activation: str | None) -> list[FileNetwork]:
    """Networks of a file that says what they are, but for their activation where it does not."""
    try:
        return load_networks(file)
    except CheckpointError as error:
        unknown = cause_of(error, UnknownActivationError)
        if activation is None or unknown is None or unknown.written:
            raise
        return load_networks(file, activation=activation)


# == Rows ==


def _names_in(data: ZooDataset, folder: str) -> list[str]:
    """What networks of a zoo are called: the file that each was imported from, with its role there, or its position."""
    if data.store.table.get("file", np.zeros(0)).dtype.kind != "U":
        return [f"{folder}/{i}" for i in data.positions.tolist()]
    roles = data.column(ROLE).tolist() if ROLE in data.store.table else [""] * len(data)
    return [f"{folder}/{file}{f':{role}' if role else ''}" for file, role in zip(data.column("file").tolist(), roles, strict=True)]


def _rows(
    trained: Predictor,
    names: Sequence[str],
    said: Tensor,
    space: WeightSpace | None,
    output: str | os.PathLike[str] | None,
    taken: set[Path],
) -> dict[str, dict[str, Any]]:
    if not trained.task.edits:
        columns = trained.task.columns(said)
        return {name: {"checkpoint": name, **{key: values[i] for key, values in columns.items()}} for i, name in enumerate(names)}
    assert space is not None
    assert output is not None
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    rows = {}
    for name, theta in zip(names, said, strict=True):
        # Files of one name in several folders, or of several kinds, must not overwrite each other.
        stem = name.removesuffix(".safetensors").replace("/", "-").lstrip(".-")
        places = (folder / f"{stem}{end}.safetensors" for end in itertools.chain([""], (f"-{number}" for number in itertools.count(2))))
        file = next(place for place in places if place not in taken)
        taken.add(file)
        state = {key: value.contiguous().clone() for key, value in space.unflatten(theta).items()}
        write_atomically(file, lambda temporary, state=state: save_file(state, temporary, {"format": "pt"}))  # type: ignore[misc]
        rows[name] = {"checkpoint": name, "edited": str(file)}
    return rows


def _locate(trained: Predictor, space: WeightSpace, names: Sequence[str], thetas: Tensor, rows: dict[str, dict[str, Any]]) -> None:
    """Say of every row how far its network lies from those trained on."""
    assert trained.reference is not None
    new = not all_match([space], trained.trained_on)
    distances, shares = trained.reference.distances(space, thetas)
    for name, distance, share in zip(names, distances.tolist(), shares.tolist(), strict=True):
        rows[name] |= {"distance": distance, "nearer": share, "new_architecture": new}
