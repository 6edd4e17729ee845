"""Networks of a folder as flat vectors."""

from __future__ import annotations

import hashlib
import itertools
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from wsgraph._suggestions import did_you_mean
from wsgraph.convert import CheckpointError, FileNetwork
from wsgraph.convert.chain import check_tied
from wsgraph.convert.errors import NoConvolutionsError, UnknownActivationError, cause_of
from wsgraph.convert.formats import FileFormat, file_format
from wsgraph.convert.formats.loading import read_networks
from wsgraph.convert.layouts import check_layout, flattened_channels_first, turned
from wsgraph.convert.networks import check_quantised, chosen_network, matching_network
from wsgraph.convert.state_dict import read_network
from wsgraph.data.copies import listed
from wsgraph.data.exchange.folders import Folder
from wsgraph.data.exchange.tables import ROLE, SPACE, read_text
from wsgraph.space import AssumedGeometryWarning, WeightSpace
from wsgraph.space.assumed import tell_assumed
from wsgraph.space.distinct import DistinctSpaces

__all__ = ["Reader", "ReadingOptions"]

_MOST_RUNS = 1000
_SILENT = "Nothing says which activation it has: give 'activation' (--activation), such as relu, or a column 'activation'."


@dataclass(frozen=True)
class ReadingOptions:
    """What files do not say of their networks.

    Attributes:
        activation: Activation of networks of which nothing else says it.
        spaces: Weight spaces of state dicts, one of which each is of; none for chains of layers.
        prefix: What keys begin with.
        entry: Which state dict of files with several.
        layout: Layout of weights.
        geometry: Options of convolutions.
    """

    activation: Any = None
    spaces: tuple[WeightSpace, ...] = ()
    prefix: str | None = None
    entry: str | None = None
    layout: str = "out_in"
    geometry: Mapping[str, Any] = field(default_factory=dict)


class Reader:
    """Reads files as flat vectors; spaces are kept, since thousands of networks share one.

    Args:
        folder: The folder.
        keys: Name of the weight space of every row, where the table says it.
        named: Its activation, where the table says it.
        options: What nothing says.
        lenient: Whether what cannot be read will be left out.

    Attributes:
        remarks: What readers warned of, with the files of which they did.
        renamed: Files with other names of parameters than the first of their architecture, by that
            file, with their own weight space.
        used_activation: Whether a network took the activation that was given.

    Raises:
        ValueError: If options contradict the table or each other, or nothing says the activation of
            a state dict.
    """

    def __init__(
        self, folder: Folder, keys: Sequence[str | None], named: Sequence[Any], options: ReadingOptions, *, lenient: bool = False
    ) -> None:
        check_layout(options.layout)
        self.folder, self.keys, self.options = folder, keys, options
        self.said = [own if isinstance(own, str) and own else None for own in named]
        self.remarks: dict[str, list[str]] = {}
        self.used_activation = False
        self._spaces: dict[Any, WeightSpace] = {key: self._load(key) for key in dict.fromkeys(keys) if key}
        self._told: dict[WeightSpace, None] = {}
        self._distinct = DistinctSpaces[WeightSpace]()
        self._named_by: dict[WeightSpace, str] = {}
        self.renamed: dict[str, dict[str, WeightSpace]] = {}
        self._formats: dict[str, FileFormat] = {}
        self._last: tuple[Any, list[FileNetwork]] = (None, [])
        free = [i for i, key in enumerate(keys) if not key]
        states = [i for i in free if self._holds_weights_alone(i)]
        given = bool(options.spaces)
        takes = len(states) < len(free) and any("activation" in entry.options for entry in self._formats.values() if entry.tensors is None)
        if options.activation is not None and not takes and (given or all(self.said[i] for i in states)):
            raise ValueError(
                "'activation' is for weights of which nothing else says it; here 'space', the table, a configuration or the files do."
            )
        if given and not free:
            raise ValueError(f"'space' is for networks whose weight space is not known; the table of {str(folder.path)!r} names them.")
        signatures = [_signature(space) for space in options.spaces]
        if alike := [i for i, signature in enumerate(signatures) if signature in signatures[:i]]:
            first, second = options.spaces[signatures.index(signatures[alike[0]])], options.spaces[alike[0]]
            raise ValueError(
                f"Weights of {first!r} and of {second!r} have the same keys and shapes, so that "
                "files do not show which they are of. "
                "Import them as two zoos, and join these with ZooStore.merge."
            )
        silent = [folder.files[i] for i in states if options.activation is None and not self.said[i]]
        if silent and not given and not lenient:
            raise ValueError(
                f"Nothing says which activation {listed(silent)} have, and weights alone do not "
                "show it, although it decides their "
                "symmetries. Give 'activation', such as relu, or a column 'activation'; or 'space' for networks that are no plain chain."
            )

    def _holds_weights_alone(self, number: int) -> bool:
        """Whether a file is a state dict; what is of no format is left to reading it."""
        try:
            return self._format(number).tensors is not None
        except (OSError, CheckpointError):
            return False

    def _format(self, number: int) -> FileFormat:
        file = self.folder.files[number]
        if file not in self._formats:
            self._formats[file] = file_format(self.folder.path / file)
        return self._formats[file]

    def _load(self, key: str) -> WeightSpace:
        spaces = self.folder.path / "spaces"
        file = spaces / f"{key}.json"
        if not isinstance(key, str) or not re.fullmatch(r"\w+", key) or not file.is_file():
            raise ValueError(f"Expected the column {SPACE!r} to name files in {str(spaces)!r} (got {key!r}, which is not there).")
        try:
            text = read_text(file)
            if re.fullmatch("[0-9a-f]{16}", key) and hashlib.sha256(text.encode()).hexdigest()[:16] != key:
                raise ValueError("It was changed after it was written: it is not the space that the weights are of. Fetch it again.")
            return WeightSpace.from_json(text)
        except ValueError as error:
            raise ValueError(f"{str(file)!r} is damaged. {error}") from None

    @property
    def keeps_order(self) -> bool:
        """Whether networks can lie in the order of their rows: spaces are known, and few enough shards hold them."""
        return all(self.keys) and sum(1 for _ in itertools.groupby(self.keys)) <= _MOST_RUNS

    def read(self, number: int) -> list[FileNetwork]:
        """The networks of a row: those of its file, or the one that the row names."""
        file, role = self.folder.files[number], self.folder.roles[number]
        if self._last[0] != (read_as := (file, self.said[number], self.keys[number])):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", UserWarning)
                self._last = read_as, [self._under_first_names(network, file) for network in self._networks(number)]
            for warning in caught:
                if issubclass(warning.category, UserWarning) and not issubclass(warning.category, AssumedGeometryWarning):
                    self.remarks.setdefault(self.reason(number, warning.message), []).append(file)
            self._told.update(dict.fromkeys(network.space for network in self._last[1]))
        found = self._last[1]
        if role is None:
            return found
        if len(found) == 1 and not found[0].name:
            return [replace(found[0], name=role)]
        names = [network.name for network in found]
        if role not in names:
            raise ValueError(
                f"It has no network {role!r}, which the column {ROLE!r} names (it has: "
                f"{', '.join(map(repr, names))})."
                f"{did_you_mean(role, names)}"
            )
        return [network for network in found if network.name == role]

    def _under_first_names(self, network: FileNetwork, file: str) -> FileNetwork:
        """A network in the space of the first one that differs from its own in names alone."""
        space = self._distinct.first(network.space)
        first = self._named_by.setdefault(space, file)
        if space == network.space:
            return network
        self.renamed.setdefault(first, {})[file] = network.space
        return replace(network, space=space)

    def reason(self, number: int, error: Any) -> str:
        """What is said of a row's file, for messages that begin with its name."""
        file = self.folder.files[number]
        path = str(self.folder.path / file)
        unknown = cause_of(error, UnknownActivationError) if isinstance(error, BaseException) else None
        if unknown is not None and not unknown.written:
            return _SILENT
        said = isinstance(error, ValueError | TypeError | OSError | Warning)
        text = str(error) if said else f"{type(error).__name__}: {error}"
        return text.removeprefix(f"{path!r} ").replace(path, file)

    def tell_assumed(self) -> None:
        """Warn, once for all spaces that networks were read in, of a geometry that nobody gave."""
        tell_assumed(self._told)

    def _networks(self, number: int) -> list[FileNetwork]:
        path = self.folder.path / self.folder.files[number]
        chosen = self._format(number)
        if chosen.tensors is not None:
            space, theta = self._weights(chosen.tensors(path, entry=self.options.entry), number)
            activation = self.said[number] or self.options.activation
            return [FileNetwork("", space, theta, {"format": chosen.name, **({"activation": activation} if activation else {})})]
        if self.keys[number]:
            raise ValueError(f"The column {SPACE!r} is for weights alone; a file of {chosen.name} says itself what its network is.")
        return self._of_format(path, chosen, number)

    def _of_format(self, path: Path, chosen: FileFormat, number: int) -> list[FileNetwork]:
        """Networks of a file that says what they are, but for what it leaves open."""
        given = {name: value for name, value in (*self.options.geometry.items(), ("prefix", self.options.prefix)) if value is not None}
        given = {name: value for name, value in given.items() if name in chosen.options}
        while True:
            try:
                return read_networks(path, chosen, **given)
            except CheckpointError as error:
                activation = cause_of(error, UnknownActivationError)
                if activation is not None and "activation" not in given:
                    # What a file calls by a name that is not known is no other activation.
                    said = self.said[number] or (None if activation.written else self._given_activation())
                    if said is None:
                        raise
                    given["activation"] = said
                elif cause_of(error, NoConvolutionsError) and any(name in given for name in self.options.geometry):
                    given = {name: value for name, value in given.items() if name not in self.options.geometry}
                else:
                    raise

    def _given_activation(self) -> Any:
        self.used_activation |= self.options.activation is not None
        return self.options.activation

    def _weights(self, state: Mapping[str, Tensor], number: int) -> tuple[WeightSpace, Tensor]:
        """The space and flat vector of a state dict."""
        if is_turned := self.options.layout != "out_in" and not self.keys[number]:
            check_quantised(state)
            state = turned(state)
        if key := self.keys[number]:
            space, state = self._spaces[key], self._matching(state, self._spaces[key])
        elif self.options.spaces:
            space, state = self._fitting(state)
        else:
            activation = self.said[number] or self._given_activation()
            if activation is None:
                raise UnknownActivationError(_SILENT)
            state = chosen_network(state, self.options.prefix)
            check_tied(state)
            space = self._space_of(state, activation)
        theta = space.flatten(state)
        space.check_thetas(theta, batched=False)
        return space, flattened_channels_first(space, theta) if is_turned else theta

    def _matching(self, state: Mapping[str, Tensor], space: WeightSpace) -> Mapping[str, Tensor]:
        return matching_network(state, [key for param in space.params for key in param.keys], self.options.prefix)

    def _fitting(self, state: Mapping[str, Tensor]) -> tuple[WeightSpace, Mapping[str, Tensor]]:
        """The space of those given that a state dict is of, and its tensors by the keys there."""
        spaces = self.options.spaces
        if len(spaces) == 1:
            return spaces[0], self._matching(state, spaces[0])
        for space in spaces:
            own = self._matching(state, space)
            shapes = {key: tuple(param.shape) for param in space.params for key in param.keys}
            names = {param.name for param in space.params if not any(key in own for key in param.keys)}
            if not names and all(shapes.get(key) == tuple(tensor.shape) for key, tensor in own.items()):
                return space, own
        keys = {*state}
        near = max(spaces, key=lambda space: len(keys & {key for param in space.params for key in param.keys}))
        try:
            near.check_thetas(near.flatten(self._matching(state, near)), batched=False)
            reason = "Its shapes are others."
        except (ValueError, TypeError) as error:
            reason = str(error)
        raise ValueError(f"It has the weights of none of the {len(spaces)} networks that were given. Of the nearest, {near!r}: {reason}")

    def _space_of(self, state: Mapping[str, Tensor], activation: Any) -> WeightSpace:
        activation = activation if isinstance(activation, str) else tuple(activation)
        key = (activation, *((name, tensor.shape, tensor.dtype) for name, tensor in state.items()))
        if key not in self._spaces:
            # Shapes alone: whether weights are finite is left to the store, which counts those that are not.
            shapes = {name: tensor.to("meta") for name, tensor in state.items()}
            geometry = self.options.geometry if any(tensor.ndim > 2 for tensor in shapes.values()) else {}
            self._spaces[key], _ = read_network(shapes, activation, **geometry)
        return self._spaces[key]


def _signature(space: WeightSpace) -> frozenset[Any]:
    return frozenset((param.name, tuple(param.shape)) for param in space.params)
