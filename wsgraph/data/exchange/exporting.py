"""Zoos as folders that others can read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from wsgraph._counts import counted
from wsgraph.data.dataset import ZooDataset
from wsgraph.data.exchange.tables import FILE, FORMAT, SPACE, VERSION
from wsgraph.data.folder import PathLike
from wsgraph.data.public.base import tracked
from wsgraph.data.store import ZooStore
from wsgraph.files import explained_errors, new_folder

__all__ = ["export_zoo"]

_BLOCK_BYTES = 2**26
_LISTED = 20


def _to_json(value: Any) -> str:
    """A value of a table as JSON: NaN as null; infinity as ``Infinity``, which is no strict JSON, but read by Python, Arrow and pandas."""
    return "null" if value != value else json.dumps(value, ensure_ascii=False)


def _card(title: str, dataset: ZooDataset, counts: Mapping[str, int], columns: Mapping[str, np.ndarray]) -> str:
    """The card of a data set on the Hugging Face Hub: a header that the Hub reads, and what people want to know."""
    spaces = [f"- `{key}`: {counted(count, 'network')}, `{dataset.store.load_space(key)!r}`" for key, count in counts.items()]
    if len(spaces) > _LISTED:
        spaces[_LISTED:] = [f"- and {len(spaces) - _LISTED} further weight spaces"]
    kinds = {"U": "text", "b": "booleans"}
    listed = [f"- `{name}`: {kinds.get(column.dtype.kind, column.dtype.name)}" for name, column in columns.items()]
    return f"""---
pretty_name: {json.dumps(title)}
tags:
- model-zoo
- weight-space-learning
- wsgraph
configs:
- config_name: default
  data_files: metadata.jsonl
---

# {title}

A zoo of {len(dataset):,} trained neural networks with what is known about each.

`networks/` holds the state dict of every network as safetensors, `metadata.jsonl` a row for each, `spaces/` the architectures: neuron
groups, layers and their symmetries, as JSON.

## Architectures

{chr(10).join(spaces)}

## Columns

- `{FILE}`: the state dict of the network
- `{SPACE}`: its architecture in `spaces/`
{chr(10).join(listed)}

## Reading

One network as a PyTorch state dict:

```python
from safetensors.torch import load_file

module.load_state_dict(load_file("networks/000000.safetensors"))
```

All of them, as a zoo of wsgraph:

```python
from wsgraph.data import import_zoo

zoo = import_zoo("zoo", "path/to/this/folder")
```
"""


def _state_dicts(dataset: ZooDataset) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Number and state dict of every network, shard by shard."""
    store, positions = dataset.store, dataset.positions
    owners = store.owners(positions)
    for shard in owners.unique().tolist():
        space, dtype = store.load_space(store.shards[shard].space), store.shards[shard].dtype
        for part in (owners == shard).nonzero().flatten().split(max(1, _BLOCK_BYTES // max(1, space.num_params * dtype.itemsize))):
            thetas = store.read(positions[part]).to(dtype)
            tensors = space.unflatten(thetas)
            if not torch.equal(space.flatten(tensors).to(dtype), thetas):
                # Weights that moved since they were stored as, say, bfloat16 may need more digits than that.
                tensors = space._views(thetas)
            # Files hold tied weights under all their keys, as load_state_dict wants them, and safetensors no memory twice.
            tied = {alias for param in space.params for alias in param.aliases}
            for i, number in enumerate(part.tolist()):
                yield number, {key: tensor[i].clone() if key in tied else tensor[i] for key, tensor in tensors.items()}


def export_zoo(
    zoo: ZooStore | ZooDataset,
    path: PathLike,
    *,
    select: Mapping[str, Any] | None = None,
    split: str | None = None,
    progress: bool = True,
) -> Path:
    """Write the networks of a zoo as safetensors files with a table, in a folder that can be uploaded to the Hugging Face Hub as it is.

    ``networks/000123.safetensors`` holds the state dict of a network, for ``safetensors.torch.load_file`` and ``load_state_dict``;
    ``metadata.jsonl`` its row, with ``file_name``, ``weight_space`` and all columns of the zoo (NaN as null); ``spaces/KEY.json`` the
    weight spaces, ``export.json`` the types of the columns and how the zoo was made, ``README.md`` a card with what is there. The folder
    appears complete or not at all. :func:`import_zoo` makes the same zoo of it.

    Args:
        zoo: The zoo, or a part of it, in the order in which to write it.
        path: Folder to write, which must not exist.
        select: Conditions on columns, as for :meth:`ZooDataset.select` (default: all networks).
        split: Name of the split (default: all networks).
        progress: Whether to show a progress bar for what takes more than two seconds.

    Returns:
        Path of the folder.

    Raises:
        FileExistsError: If the path exists.
        OSError: If it cannot be written, with what to do about it.
        ValueError: If no network is chosen, the dataset has a transform, or a column is called as one of those written.

    Example:
        >>> import json, math, tempfile, torch
        >>> from wsgraph import WeightSpace
        >>> from wsgraph.data import ZooStore, export_zoo, import_zoo
        >>> space = WeightSpace.mlp([2, 8, 1])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     zoo = ZooStore.create(f"{folder}/zoo", space, space.sample(3), {"test_accuracy": [0.5, math.nan, 0.8]})
        ...     made = export_zoo(zoo, f"{folder}/shared")
        ...     print(sorted(entry.name for entry in made.iterdir()))
        ...     print(json.loads((made / "metadata.jsonl").read_text().splitlines()[1]))
        ...     torch.equal(import_zoo(f"{folder}/again", made).thetas, zoo.thetas)
        ['README.md', 'export.json', 'metadata.jsonl', 'networks', 'spaces']
        {'file_name': 'networks/000001.safetensors', 'weight_space': '2d56f7ac0ff54e7b', 'test_accuracy': None}
        True
    """
    dataset = zoo if isinstance(zoo, ZooDataset) else zoo.dataset(target=None)
    if dataset.transform is not None:
        raise ValueError(f"Expected a dataset without a transform, which files would not show (got {dataset.transform!r}).")
    dataset = dataset.select({**(select or {}), **({} if split is None else {"split": split})})
    store, path = dataset.store, Path(path).resolve()
    if not len(dataset):
        raise ValueError(f"No network of {str(store.path)!r} is chosen (its splits: {', '.join(store.splits) or 'none'}).")
    columns = {name: column[dataset.positions.numpy()] for name, column in store.table.items()}
    if taken := [name for name in (FILE, SPACE) if name in columns]:
        raise ValueError(f"A column of the zoo has the name {taken[0]!r}, which the table of an export uses itself.")
    keys = [store.shards[shard].space for shard in store.owners(dataset.positions).tolist()]
    files = [f"networks/{number:06d}.safetensors" for number in range(len(dataset))]
    counts = {key: keys.count(key) for key in dict.fromkeys(keys)}
    export = {
        "format": FORMAT,
        "version": VERSION,
        "columns": {name: column.dtype.name for name, column in columns.items() if column.dtype.kind != "U"},
        "info": store.info,
    }
    written: dict[str, Any] = {FILE: files, SPACE: keys, **{name: column.tolist() for name, column in columns.items()}}
    entries = [[f"{json.dumps(name)}: {_to_json(value)}" for value in values] for name, values in written.items()]
    with new_folder(path) as folder:
        with explained_errors(path):
            for inner in ("networks", "spaces"):
                (folder / inner).mkdir()
            for key in counts:
                (folder / "spaces" / f"{key}.json").write_text(store.load_space(key).to_json(), encoding="utf-8")
            rows = "".join(f"{{{', '.join(row)}}}\n" for row in zip(*entries, strict=True))
            (folder / "metadata.jsonl").write_text(rows, encoding="utf-8")
            (folder / "export.json").write_text(json.dumps(export, indent=2), encoding="utf-8")
            (folder / "README.md").write_text(_card(path.name, dataset, counts, columns), encoding="utf-8")
        numbers = tracked(files, "exporting") if progress else files
        for _, (number, state) in zip(numbers, _state_dicts(dataset), strict=True):
            with explained_errors(path):
                save_file(state, folder / files[number], {"format": "pt"})
        os.sync()  # all files at once: waiting for each of thousands takes far longer
    return path
