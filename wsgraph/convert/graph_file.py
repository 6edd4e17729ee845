"""Parameter graphs as files of plain tensors, which no reader has to trust."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from wsgraph.files import write_atomically
from wsgraph.space import OPERATORS, ParameterGraph

__all__ = ["save_graph"]


def save_graph(graph: ParameterGraph, path: str | os.PathLike[str]) -> None:
    """Write the parameter graph of one network.

    A ``.pt`` file holds a dict of tensors, the weight space as JSON under ``"space_json"``, and under ``"operators_json"`` the names that
    the numbers of ``node_activation`` stand for; ``torch.load`` reads it without trust in the file, and ``torch_geometric.data.Data``
    takes it as keywords. A ``.safetensors`` file holds the same, with what is JSON as metadata.

    Args:
        graph: A graph from :meth:`WeightSpace.graph`.
        path: File to write.

    Raises:
        ValueError: If the name ends otherwise.

    Example:
        >>> import tempfile, torch
        >>> from torch_geometric.data import Data
        >>> from wsgraph import WeightSpace
        >>> from wsgraph.convert import save_graph
        >>> space = WeightSpace.mlp([2, 3, 1])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_graph(space.graph(space.sample(1)[0]), f"{folder}/graph.pt")
        ...     data = Data(**torch.load(f"{folder}/graph.pt", weights_only=True))
        >>> data.num_nodes, data.num_edges, WeightSpace.from_json(data.space_json) == space
        (6, 9, True)
    """
    path = Path(path)
    if path.suffix not in (".pt", ".safetensors"):
        raise ValueError(f"Expected the name of a graph file to end in .pt or .safetensors (got {path.name!r}).")
    tensors: dict[str, Tensor] = {name: value.contiguous() for name, value in graph.to_dict().items() if isinstance(value, Tensor)}
    # Positions of operators that plugins register depend on the order in which they do.
    texts = {"space_json": graph.spaces[0].to_json(), "operators_json": json.dumps(list(OPERATORS))}

    def save(temporary: Path) -> None:
        if path.suffix == ".pt":
            torch.save({**tensors, **texts}, temporary)
        else:
            save_file(tensors, temporary, metadata=texts)

    write_atomically(path, save)
