"""Networks of a folder as flat vectors."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from wsgraph.convert import load_checkpoint
from wsgraph.convert.chain import check_tied
from wsgraph.convert.networks import chosen_network, matching_network
from wsgraph.convert.state_dict import read_network
from wsgraph.data.copies import listed
from wsgraph.data.exchange.folders import Folder
from wsgraph.data.exchange.tables import SPACE, read_text
from wsgraph.space import WeightSpace
from wsgraph.space.assumed import tell_assumed

__all__ = ["Reader"]

_MOST_RUNS = 1000


class Reader:
    """Reads checkpoints as flat vectors; spaces are kept, since thousands of networks share one."""

    def __init__(
        self,
        folder: Folder,
        keys: Sequence[str | None],
        named: Sequence[Any],
        activation: str | Sequence[str] | None,
        space: WeightSpace | None,
        prefix: str | None = None,
        geometry: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self.keys, self.space = folder, keys, space
        self.prefix, self.geometry = prefix, dict(geometry or {})
        said = [bool(own) and isinstance(own, str) for own in named]
        self.activations = [own if own_said else activation for own, own_said in zip(named, said, strict=True)]
        self._known: dict[Any, WeightSpace] = {key: self._load(key) for key in dict.fromkeys(keys) if key}
        free = [i for i, key in enumerate(keys) if not key]
        if activation is not None and (space is not None or all(said[i] for i in free)):
            raise ValueError("'activation' is for weights of which nothing else says it; here 'space', the table or a configuration does.")
        if space is not None and not free:
            raise ValueError(f"'space' is for networks whose weight space is not known; the table of {str(folder.path)!r} names them.")
        if space is None and (silent := [folder.files[i] for i in free if self.activations[i] is None]):
            raise ValueError(
                f"Nothing says which activation {listed(silent)} have, and weights alone do not "
                "show it, although it decides their "
                "symmetries. Give 'activation', such as relu, or a column 'activation'; or 'space' for networks that are no plain chain."
            )

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

    def read(self, number: int) -> tuple[WeightSpace, Tensor]:
        """The weight space and flat checkpoint of a network."""
        state = load_checkpoint(self.folder.path / self.folder.files[number])
        space = self._known[key] if (key := self.keys[number]) else self.space
        if space is None:
            state = chosen_network(state, self.prefix)
            check_tied(state)
            space = self._space_of(state, self.activations[number])
        else:
            state = matching_network(state, [key for param in space.params for key in param.keys], self.prefix)
        theta = space.flatten(state)
        space.check_thetas(theta, batched=False)
        return space, theta

    def tell_assumed(self) -> None:
        """Warn, once for all spaces that networks were read in, of a geometry that nobody gave."""
        tell_assumed(dict.fromkeys(self._known.values()))

    def _space_of(self, state: Mapping[str, Tensor], activation: Any) -> WeightSpace:
        activation = activation if isinstance(activation, str) else tuple(activation)
        key = (activation, *((name, tensor.shape, tensor.dtype) for name, tensor in state.items()))
        if key not in self._known:
            # Shapes alone: whether weights are finite is left to the store, which counts those that are not.
            shapes = {name: tensor.to("meta") for name, tensor in state.items()}
            geometry = self.geometry if any(tensor.ndim > 2 for tensor in shapes.values()) else {}
            self._known[key], _ = read_network(shapes, activation, **geometry)
        return self._known[key]
