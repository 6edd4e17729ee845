"""State dicts: the weights of a network without what it computes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wsgraph.convert.checkpoint import CHECKPOINT_ENDINGS, load_checkpoint
from wsgraph.convert.formats.entry import FOLDER, FileNetwork, register_format
from wsgraph.convert.state_dict import from_state_dict
from wsgraph.operators import Activations

__all__ = ["read_state_dict_file"]


@register_format("state dict", (*CHECKPOINT_ENDINGS, ".index.json", FOLDER), tensors=load_checkpoint)
def read_state_dict_file(
    path: Path,
    *,
    activation: Activations = "relu",
    entry: str | None = None,
    prefix: str | None = None,
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] | None = None,
    readout: str | None = None,
    pooling: str | Sequence[str | None] | None = None,
    layout: str = "out_in",
) -> list[FileNetwork]:
    """Tensors by key, as PyTorch, safetensors and NumPy save them.

    Args:
        path: The file, an index of shards, or a folder that holds one network.
        activation: What the file does not say; see :func:`wsgraph.from_state_dict`, as for the options below.
        entry: Which state dict of a file with several; see :func:`wsgraph.load_checkpoint`.
        prefix: What the keys of the network begin with; the network is called so.
        stride: Strides of convolutions.
        padding: Paddings of convolutions.
        readout: Pooling before linear layers.
        pooling: Pooling between convolutions.
        layout: Layout of weights.

    Returns:
        The network.
    """
    state = load_checkpoint(path, entry=entry)
    space, theta = from_state_dict(
        state, activation, prefix=prefix, stride=stride, padding=padding, readout=readout, pooling=pooling, layout=layout
    )
    return [FileNetwork((prefix or "").rstrip("./"), space, theta)]
