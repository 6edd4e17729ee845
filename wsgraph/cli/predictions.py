"""What a trained model says of checkpoints in files and zoos."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsgraph.cli.common import told_warnings
from wsgraph.files import write_atomically

if TYPE_CHECKING:
    from torch import Tensor

    from wsgraph.space import WeightSpace
    from wsgraph.tasks import TrainedModel

__all__ = ["predictions_of", "write_csv"]


def predictions_of(
    trained: TrainedModel,
    paths: Sequence[Path],
    output: Path | None,
    opened: Callable[[Path], Any],
    activation: str | None,
    prefix: str | None = None,
    entry: str | None = None,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Rows of a table, one for every network that can be read, and what is wrong with the others.

    Args:
        trained: The model.
        paths: Checkpoint files and folders of zoos.
        output: Where edited networks go, if the model edits.
        opened: A network with ``space`` and ``theta`` from a file, or ``None`` to read it as those that the model was trained on.
        activation: Of networks in files.
        prefix: What the keys of networks in files begin with.
        entry: Which state dict of files with several.
    """
    import torch

    from wsgraph.convert import load_checkpoint
    from wsgraph.convert.checkpoint import network_files
    from wsgraph.convert.networks import chosen_network
    from wsgraph.data import ZooStore

    if trained.task.edits and output is None:
        raise ValueError(f"The model was trained for {trained.task.name} and returns networks: name the folder for them with --output.")
    errors: dict[str, str] = {}
    taken: set[Path] = set()
    rows: dict[str, dict[str, Any]] = {}
    by_space: dict[WeightSpace, dict[str, Tensor]] = {}
    for path in paths:
        try:
            if path.is_dir() and not network_files(file.name for file in path.iterdir()):
                data = ZooStore(path).dataset(target=None)
                space = data.space if trained.task.edits else None
                rows |= _rows(trained, [f"{path}/{i}" for i in range(len(data))], trained.predict_zoo(data), space, output, taken)
                continue
            network = opened(path)
            if network is None:
                state = load_checkpoint(path, entry=entry)
                with told_warnings():
                    space, theta = trained.read(chosen_network(state, prefix) if prefix else state, activation)
            else:
                space, theta = network.space, network.theta
            by_space.setdefault(space, {})[str(path)] = theta
        except (ValueError, TypeError, OSError) as error:
            errors[str(path)] = str(error)
    for space, thetas in by_space.items():
        try:
            rows |= _rows(trained, list(thetas), trained.predict(space, torch.stack(list(thetas.values()))), space, output, taken)
        except ValueError as error:
            errors |= dict.fromkeys(thetas, str(error))
    given = {str(path): i for i, path in enumerate(paths)}
    return sorted(rows.values(), key=lambda row: given.get(row["checkpoint"], given.get(str(Path(row["checkpoint"]).parent), 0))), errors


def _rows(
    trained: TrainedModel, names: Sequence[str], found: Tensor, space: WeightSpace | None, output: Path | None, taken: set[Path]
) -> dict[str, dict[str, Any]]:
    if not trained.task.edits:
        columns = trained.task.columns(found)
        return {name: {"checkpoint": name, **{key: values[i] for key, values in columns.items()}} for i, name in enumerate(names)}
    from safetensors.torch import save_file

    assert space is not None
    assert output is not None
    output.mkdir(parents=True, exist_ok=True)
    rows = {}
    for name, theta in zip(names, found, strict=True):
        # Files of one name in several folders, or of several kinds, must not overwrite each other.
        stem = name.removesuffix(".safetensors").replace("/", "-").lstrip(".-")
        places = (output / f"{stem}{end}.safetensors" for end in itertools.chain([""], (f"-{number}" for number in itertools.count(2))))
        file = next(place for place in places if place not in taken)
        taken.add(file)
        state = {key: value.contiguous().clone() for key, value in space.unflatten(theta).items()}
        write_atomically(file, lambda temporary, state=state: save_file(state, temporary, {"format": "pt"}))  # type: ignore[misc]
        rows[name] = {"checkpoint": name, "edited": str(file)}
    return rows


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write a table as CSV, atomically."""

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    write_atomically(path, write)
