"""Data of PyG whose nodes and edges are drawn when somebody asks for them."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Self, cast

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from wsgraph.space.base import BaseSpace
from wsgraph.space.drawing import DRAWN, Networks, draw_batch, draw_graph, note_slices, side_by_side, version_of

__all__ = ["UndrawnData"]


class UndrawnData(Data):
    """Networks as flat checkpoints, which become a graph once one of its tensors is read or PyG looks at it.

    What a user sets beside, such as targets, is held by PyG's own store from the start.
    """

    @classmethod
    def of_networks(cls, networks: Sequence[Networks], spaces: Sequence[BaseSpace], *, batched: bool, y: Any = None) -> Self:
        """A graph, or a batch of graphs, whose nodes and edges are drawn when somebody asks for them.

        Args:
            networks: The networks in their order.
            spaces: The weight space of every network.
            batched: Whether it is a batch.
            y: Targets.
        """
        graph = cast(Self, Batch(_base_cls=cls)) if batched else cls()
        store = graph.__dict__["_store"]
        store["space"] = list(spaces) if batched else spaces[0]
        if y is not None:
            store["y"] = y
        if batched:
            store._num_graphs = len(spaces)
        graph.__dict__["_networks"], graph.__dict__["_is_drawn"] = tuple(networks), False
        return graph

    @classmethod
    def joined(cls, graphs: Sequence[Self]) -> Self:
        """One batch of graphs that were not drawn; networks of one space that lie side by side become one tensor."""
        runs: list[list[Networks]] = []
        for each in (networks for graph in graphs for networks in cast(Any, graph.networks())):
            if runs and (runs[-1][0].space is each.space or runs[-1][0].space.matches(each.space)):
                runs[-1].append(each)
            else:
                runs.append([each])
        networks = [Networks(run[0].space, torch.cat([each.thetas for each in run])) if len(run) > 1 else run[0] for run in runs]
        y = None if graphs[0].y is None else torch.cat([graph.y for graph in graphs])
        spaces = [space for graph in graphs for space in _listed(graph.space)]
        return cls.of_networks(networks, spaces, batched=True, y=y)

    @property
    def is_undrawn(self) -> bool:
        """Whether nodes and edges have not been asked for yet."""
        return self.__dict__.get("_is_drawn") is False

    @property
    def _store(self) -> Any:
        """The tensors as PyG holds them; whoever asks for all of them gets nodes and edges too."""
        if self.is_undrawn:
            self._draw()
        return self.__dict__["_store"]

    @_store.setter
    def _store(self, store: Any) -> None:
        self.__dict__["_store"] = store

    def _draw(self) -> None:
        store, networks = self.__dict__["_store"], cast(tuple[Networks, ...], self.networks())
        self.__dict__["_is_drawn"] = True
        batched = isinstance(self, Batch)
        drawn = [draw_batch(each) if batched else draw_graph(each) for each in networks]
        tensors = drawn[0] if len(drawn) == 1 else side_by_side(drawn)
        for name, values in tensors.items():
            store[name] = values
        if batched:
            note_slices(store, store["space"])
        known = self._note_order(True)
        tensors_read = store["x"], store["edge_attr"]
        self.__dict__["_drawn"] = (*tensors_read, *map(version_of, tensors_read), known)

    def __getattr__(self, key: str) -> Any:
        if self.is_undrawn and key not in DRAWN:
            return getattr(self.__dict__["_store"], key)
        return super().__getattr__(key)

    def __setattr__(self, key: str, value: Any) -> None:
        if self.is_undrawn and key not in DRAWN:
            setattr(self.__dict__["_store"], key, value)
        else:
            super().__setattr__(key, value)

    def __getitem__(self, key: Any) -> Any:
        return self.__dict__["_store"][key] if self.is_undrawn and key not in DRAWN else super().__getitem__(key)

    def __setitem__(self, key: str, value: Any) -> None:
        if self.is_undrawn and key not in DRAWN:
            self.__dict__["_store"][key] = value
        else:
            super().__setitem__(key, value)

    def __contains__(self, key: str) -> bool:
        return key in DRAWN or key in self.__dict__["_store"] if self.is_undrawn else super().__contains__(key)

    def __copy__(self) -> Self:
        return self._copied(copy.copy) if self.is_undrawn else cast(Self, super().__copy__())

    def __deepcopy__(self, memo: Any) -> Self:
        return self._copied(lambda entry: copy.deepcopy(entry, memo)) if self.is_undrawn else cast(Self, super().__deepcopy__(memo))

    def _copied(self, function: Callable[[Any], Any]) -> Self:
        result = self.__class__.__new__(self.__class__)
        for key, value in self.__dict__.items():
            result.__dict__[key] = function(value)
        result.__dict__["_store"]._parent = result
        return result

    @property
    def y(self) -> Any:
        """Targets, if given."""
        return self["y"] if "y" in self.__dict__["_store"] else None

    @y.setter
    def y(self, value: Any) -> None:
        self["y"] = value

    def networks(self) -> tuple[Networks, ...] | None:
        """The flat checkpoints of a batch whose nodes and edges nobody has touched, ``None`` of others."""
        if "_networks" not in self.__dict__:
            return None
        if not self.is_undrawn:
            x, edge_attr, *versions, known = self.__dict__["_drawn"]
            store = self.__dict__["_store"]
            if store.get("x") is not x or store.get("edge_attr") is not edge_attr or x.is_inference():
                return None  # what is written to tensors of inference mode leaves no trace
            if [version_of(x), version_of(edge_attr)] != versions or x.requires_grad or edge_attr.requires_grad:
                return None
            if self.__dict__.get("_ordered") != known or not self._is_ordered():
                return None
        networks = cast(tuple[Networks, ...], self.__dict__["_networks"])
        for each in networks:
            each.check()
        return networks

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return cast(tuple[Networks, ...], self.__dict__["_networks"])[0].thetas.device if self.is_undrawn else cast(Tensor, self.x).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return cast(tuple[Networks, ...], self.__dict__["_networks"])[0].thetas.dtype if self.is_undrawn else cast(Tensor, self.x).dtype

    @abstractmethod
    def _is_ordered(self) -> bool:
        """Whether nodes and edges of every network lie where its space put them, network by network."""

    @abstractmethod
    def _note_order(self, ordered: bool) -> Any:
        """Remember that."""

    def to(self, *args: Any, **options: Any) -> Self:
        """The graph with its tensors moved, as PyG's: ``batch.to("cuda")``."""
        return self._moved("to", args, options)

    def cpu(self, *args: Any, **options: Any) -> Self:
        """The graph with its tensors moved to the processor's memory, as PyG's."""
        return self._moved("cpu", args, options)

    def cuda(self, *args: Any, **options: Any) -> Self:
        """The graph with its tensors moved to an accelerator, as PyG's."""
        return self._moved("cuda", args, options)

    def pin_memory(self, *args: Any, **options: Any) -> Self:
        """The graph with its tensors in pinned memory, as PyG's."""
        return self._moved("pin_memory", args, options)

    def _moved(self, how: str, args: Any, options: Any) -> Self:
        if self.is_undrawn:
            self.__dict__["_networks"] = tuple(each.map(_mover(how, args, options)) for each in self.__dict__["_networks"])
            getattr(self.__dict__["_store"], how)(*args, **options)
            return self
        # Compared before: on an accelerator it would stall the stream in every forward pass.
        ordered = self._is_ordered()
        moved: Self = getattr(super(), how)(*args, **options)
        if ordered:
            moved._note_order(ordered)
        return moved


def _mover(how: str, args: Any, options: Any) -> Callable[[Tensor], Tensor]:
    def move(tensor: Tensor) -> Tensor:
        moved: Tensor = getattr(tensor, how)(*args, **options)
        return moved

    return move


def _listed(space: Any) -> list[BaseSpace]:
    return list(space) if isinstance(space, list) else [space]
