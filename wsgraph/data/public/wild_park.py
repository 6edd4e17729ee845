"""The CNN Wild Park: convolutional networks of many architectures, read from the checkpoints of their training."""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import sys
import types
import typing
import zipfile
import zlib
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsgraph.convert import CheckpointError, TraceError, trace
from wsgraph.convert.unpickle import read_inert, to_plain
from wsgraph.data.dataset import group_split
from wsgraph.data.public.base import Archive, PublicZoo, read_splits, splits_file, tracked
from wsgraph.data.store import ZooStore
from wsgraph.data.transforms import WeightTransform
from wsgraph.space import ParameterGraph, WeightSpace

__all__ = ["CNNWildPark", "WildParkCNN"]

_FOLDER, _ARCHIVE, _SPLITS = "cifar10_zooV2", "cnn_wild_park.zip", "cnn_park_splits.json"
_ENTRY = re.compile(rf"{_FOLDER}/(?P<end>(?P<run>[^/]+)/checkpoint_(?P<number>[0-9]+)/checkpoint\.pt)")
_PER_LAYER = ("kernel_size", "stride", "padding", "residual", "activation")
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda values: values,
    "relu": F.relu,
    "gelu": F.gelu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "leaky_relu": F.leaky_relu,
}


def _checked_config(config: Any) -> dict[str, Any]:
    """The fields that make the network, whatever else there is."""
    if not isinstance(config, Mapping):
        raise ValueError(f"Expected a configuration by fields (got {config!r}).")
    fields = ("n_layers", "n_classes", "channels", *_PER_LAYER)
    if missing := [field for field in fields if field not in config]:
        raise ValueError(f"The configuration lacks {', '.join(map(repr, missing))} (it has: {', '.join(map(repr, config))}).")
    layers, channels = config["n_layers"], config["channels"]
    lists = {field: config[field] for field in ("channels", *_PER_LAYER)}
    lengths = {field: len(entries) if isinstance(entries, Sequence) else 0 for field, entries in lists.items()}
    if not isinstance(layers, int) or layers < 1 or lengths != {"channels": layers + 1, **dict.fromkeys(_PER_LAYER, layers)}:
        raise ValueError(f"Expected one entry for each of {layers} layers, and one more in 'channels' (got {lengths}).")
    if unknown := [name for name in config["activation"] if name not in _ACTIVATIONS]:
        raise ValueError(f"Expected activations among {', '.join(_ACTIVATIONS)} (got {unknown[0]!r}).")
    for i, source in enumerate(config["residual"]):
        if source not in (-1, *range(i - 1)):
            raise ValueError(f"Expected the residual of layer {i} to be -1 or a layer before the one before it (got {source!r}).")
    positive = [config["n_classes"], *channels, *config["kernel_size"], *config["stride"]]
    wrong = [size for size in positive if not isinstance(size, int) or size < 1]
    wrong += [size for size in config["padding"] if not isinstance(size, int) or size < 0]
    if wrong:
        raise ValueError(f"Expected sizes to be positive integers (got {wrong[0]!r}).")
    return {field: config[field] for field in fields}


def _shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters by key, found without making the network, whose size the file decides."""
    shapes: dict[str, tuple[int, ...]] = {}
    for i, ((inputs, outputs), side) in enumerate(zip(itertools.pairwise(config["channels"]), config["kernel_size"], strict=True)):
        shapes |= {f"layers.{i}.weight": (outputs, inputs, side, side), f"layers.{i}.bias": (outputs,)}
    return {**shapes, "fc.weight": (config["n_classes"], config["channels"][-1]), "fc.bias": (config["n_classes"],)}


class WildParkCNN(nn.Module):
    r"""A network of the CNN Wild Park.

    .. math:: h_i = \sigma_i(W_i * h_{i-1} + b_i + r_i), \quad f = W \operatorname{mean}(h_L) + b

    Where ``residual[i]`` names a layer, :math:`r_i` is what that layer returns, in the channels that both layers have, and zero in those
    that only layer :math:`i` has. The networks read pictures of CIFAR-10.

    Args:
        config: ``n_layers``, ``n_classes``, ``channels`` (of the input, then of every layer) and for every layer ``kernel_size``,
            ``stride``, ``padding``, ``residual`` (-1 for none) and ``activation``.

    Shapes:
        input: pictures ``[B, 3, H, W]``. output: logits ``[B, n_classes]``.

    Raises:
        ValueError: If fields are missing, have other lengths, or values that are not known.

    Example:
        >>> config = {"n_layers": 3, "n_classes": 10, "channels": [3, 8, 4, 4], "kernel_size": [3, 5, 3], "stride": [1, 1, 1],
        ...           "padding": [1, 2, 1], "residual": [-1, -1, 0], "activation": ["relu", "none", "tanh"]}
        >>> WildParkCNN(config)(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        config = _checked_config(config)
        super().__init__()
        self.residual, self.activation = list(config["residual"]), list(config["activation"])
        sizes = zip(itertools.pairwise(config["channels"]), config["kernel_size"], config["stride"], config["padding"], strict=True)
        self.layers = nn.ModuleList(nn.Conv2d(*channels, kernel, stride, padding) for channels, kernel, stride, padding in sizes)
        self.fc = nn.Linear(config["channels"][-1], config["n_classes"])

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[B, n_classes]`` of pictures ``[B, 3, H, W]``."""
        outputs: list[Tensor] = []
        for layer, source, activation in zip(self.layers, self.residual, self.activation, strict=True):
            x = layer(x)
            if source >= 0:
                shared = min(x.shape[1], outputs[source].shape[1])
                total = x[:, :shared] + outputs[source][:, :shared]
                # A sum of all channels is left as one, which weight spaces express by layers.
                x = total if shared == x.shape[1] else torch.cat([total, x[:, shared:]], dim=1)
            x = _ACTIVATIONS[activation](x)
            outputs.append(x)
        return self.fc(x.mean(dim=(2, 3)))


class _Checkpoint(NamedTuple):
    """A file of the zoo, by its place in the folder or archive, and the number of its training step in its name."""

    entry: str
    run: str
    number: int
    end: str


class CNNWildPark(PublicZoo):
    """The CNN Wild Park of `Kofinas et al., 2024 <https://arxiv.org/abs/2403.12143>`_, CNNs of many architectures.

    Classifiers of CIFAR-10 with varied numbers of layers, channels, kernel sizes, activations and residual connections, each kept at many
    steps of its training; see :class:`WildParkCNN`. Published with "Graph Neural Networks for Learning Equivariant Representations of
    Neural Networks".

    ======= =========== ===== ====== ============ ============ =======
    name    checkpoints runs  layers channels     kernel sizes classes
    ======= =========== ===== ====== ============ ============ =======
    cifar10 117,241     2,800 2 to 5 4, 8, 16, 32 3, 5, 7      10
    ======= =========== ===== ====== ============ ============ =======

    Almost every run has an architecture of its own, and so a weight space of its own: use a model that reads mixed batches, such as
    ``neural_graph``. Spaces are traced, so that residual connections between layers of different widths bind exactly those neurons that
    they connect; such spaces have connections in place of layers, which models of permutations alone read.

    The files hold objects of OmegaConf and of the training program, which ``torch.load`` would have to run. None of that is needed or run
    here: weights and settings are read, the rest is passed over. The archive is read in place, without being unpacked.

    The table holds ``run``, ``step`` (epochs), ``test_accuracy``, ``test_loss``, ``n_layers``, ``config`` (JSON, for
    ``WildParkCNN(json.loads(config))``) and ``split``. All checkpoints of a run lie side by side, by step, and in one split: they are near
    copies of each other. Published results are on ``cnn_park_splits.json``, which is not part of the archive: give it as ``splits``, or put
    it beside the archive. Otherwise runs are split 70 % train, 15 % val and 15 % test.

    Args:
        root: Folder for all files.
        name: ``"cifar10"``.
        split: ``"train"``, ``"val"`` or ``"test"`` (default: all networks).
        target: Column that becomes ``y``; ``None`` for graphs without one.
        steps: ``"all"`` checkpoints, or the ``"last"`` one of every run.
        splits: A JSON file of splits (default: as above); networks that it does not list are left out.
        seed: Seed of the random split.
        transform: Applied at every access; see :class:`~wsgraph.data.ZooDataset`.
        pre_transform: One of :mod:`wsgraph.data.transforms`, applied once, before the zoo is written.
        force_reload: Whether to read the published files again.

    Raises:
        FileNotFoundError: If files are missing and cannot be fetched, or there is no file ``splits``.
        CheckpointError: If a checkpoint is damaged, or its weights do not fit its configuration.
        ValueError: If an option or the split is unknown, the archive is damaged, or the file of splits does not fit the networks.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     CNNWildPark.write_fake(folder, runs=6)  # leave this out for the real data
        ...     train = CNNWildPark(folder, split="train")
        ...     print(train.spaces, train.batch([0, 3]).num_networks)
        ...     network = WildParkCNN(json.loads(train.column("config")[0]))
        ...     network.load_state_dict(train.spaces[0].unflatten(train.thetas[0]))
        [WeightSpace(3-4-8-10, conv 3x3 | conv 5x5 | linear, relu/leaky_relu, 1,010 parameters)] 2
        <All keys matched successfully>
    """

    names: ClassVar[Mapping[str, str]] = {"cifar10": "CNNs of many architectures for CIFAR-10"}
    archives: ClassVar[Mapping[str, Archive]] = {
        "cifar10": Archive(f"https://zenodo.org/records/12797219/files/{_ARCHIVE}?download=1"),
    }
    where: ClassVar[str] = f"Fetch {_ARCHIVE} from https://doi.org/10.5281/zenodo.12797219 and put it there, unpacked or not."

    def __init__(
        self,
        root: str | os.PathLike[str],
        name: str = "cifar10",
        split: str | None = None,
        *,
        target: str | None = "test_accuracy",
        steps: Literal["all", "last"] = "all",
        splits: str | os.PathLike[str] | None = None,
        seed: int = 0,
        transform: Callable[[ParameterGraph], ParameterGraph] | None = None,
        pre_transform: WeightTransform | None = None,
        force_reload: bool = False,
    ) -> None:
        if steps not in ("all", "last"):
            raise ValueError(f"Expected 'steps' to be 'all' or 'last' (got {steps!r}).")
        published = Path(root) / name / "raw" / _SPLITS
        self._splits, digest = splits_file(splits if splits is not None else published if published.is_file() else None)
        options = {"steps": steps, "splits": digest, "seed": int(seed)}
        super().__init__(
            root,
            name,
            split,
            target=target,
            transform=transform,
            pre_transform=pre_transform,
            force_reload=force_reload,
            options=options,
        )

    def raw_file_names(self) -> list[str]:
        """The folder in the archive where there is one, else the archive."""
        return [_FOLDER if (self.raw_dir / _FOLDER).is_dir() else _ARCHIVE]

    def unpack(self, file: Path) -> None:
        """Leave the archive as it is: it is read in place."""

    @contextmanager
    def _opened(self) -> Iterator[tuple[list[str], Callable[[str], bytes]]]:
        """All files, and a function that reads one."""
        if (self.raw_dir / _FOLDER).is_dir():
            paths = (self.raw_dir / _FOLDER).glob("*/*/checkpoint.pt")
            yield [path.relative_to(self.raw_dir).as_posix() for path in paths], lambda entry: (self.raw_dir / entry).read_bytes()
            return
        file = self.raw_dir / _ARCHIVE
        try:
            archive = zipfile.ZipFile(file)
        except zipfile.BadZipFile as error:
            raise ValueError(f"{str(file)!r} is damaged ({error}): delete it and try again.") from None
        with archive:
            yield archive.namelist(), archive.read

    def process(self, store: ZooStore) -> None:
        """Read all checkpoints, and append them run by run."""
        with self._opened() as (entries, read):
            found = [_Checkpoint(entry, m["run"], int(m["number"]), m["end"]) for entry in entries if (m := _ENTRY.fullmatch(entry))]
            if not found:
                raise ValueError(f"Found no checkpoints in {str(self.raw_dir)!r}. {self.where}")
            split_of = self._split_of(found)
            runs: dict[str, list[_Checkpoint]] = {}
            for checkpoint in sorted(found, key=lambda each: (each.run, each.number)):
                runs.setdefault(checkpoint.run, []).append(checkpoint)
            spaces: dict[str, WeightSpace] = {}
            for checkpoints in tracked(list(runs.values()), "reading runs"):
                chosen = checkpoints if self.options["steps"] == "all" else checkpoints[-1:]
                listed = [checkpoint for checkpoint in chosen if checkpoint.end in split_of]
                read_ones = [self._read(checkpoint, read, split_of[checkpoint.end], spaces) for checkpoint in listed]
                for config, group in itertools.groupby(read_ones, key=lambda each: each[1]["config"]):
                    thetas, rows = zip(*group, strict=True)
                    table = {column: [row[column] for row in rows] for column in rows[0]}
                    self.append(store, spaces[config], torch.stack(thetas), table)

    def _split_of(self, found: Sequence[_Checkpoint]) -> dict[str, str]:
        if self._splits is None:
            names = group_split([each.run for each in found], {"train": 0.7, "val": 0.15, "test": 0.15}, seed=self.options["seed"])
            return dict(zip([each.end for each in found], names.tolist(), strict=True))
        listed = {end: row["split"] for end, row in read_splits(self._splits, 3).items()}
        if missing := sorted(listed.keys() - {each.end for each in found}):
            raise ValueError(
                f"{str(self._splits)!r} lists {len(missing)} checkpoints that are not in {str(self.raw_dir)!r}, such as {missing[0]!r}."
            )
        return listed

    def _read(
        self, checkpoint: _Checkpoint, read: Callable[[str], bytes], split: str, spaces: dict[str, WeightSpace]
    ) -> tuple[Tensor, dict[str, Any]]:
        """Flat checkpoint and row of the table of one file; a space that is new is added to ``spaces``, by configuration."""
        place = str(self.raw_dir / checkpoint.entry)
        try:
            data = read(checkpoint.entry)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
            raise CheckpointError(f"{place!r} is damaged in its archive ({error}). Fetch the archive again.") from None
        content = read_inert(data, place, keys=["model", "config", "iteration", "last_result"])
        try:
            state, results = dict(content["model"]), content["last_result"]
            config = _checked_config(to_plain(content["config"]))
            row = {"run": checkpoint.run, "step": int(content["iteration"])}
            row |= {"test_accuracy": float(results["test/acc"]), "test_loss": float(results["test/loss"])}
        except KeyError as error:
            raise CheckpointError(f"{place!r} is no checkpoint of the CNN Wild Park: it lacks {error}.") from None
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{place!r} is no checkpoint of the CNN Wild Park. {error}") from None
        expected = _shapes(config)
        shapes = {key: tuple(value.shape) for key, value in state.items() if isinstance(value, Tensor) and value.is_floating_point()}
        if wrong := [key for key in [*expected, *state] if shapes.get(key) != expected.get(key)]:
            raise CheckpointError(
                f"Expected {wrong[0]!r} in {place!r} to be of shape {expected.get(wrong[0])}, by the configuration "
                f"(got {shapes.get(wrong[0])})."
            )
        key = json.dumps(config)
        if key not in spaces:
            try:
                spaces[key] = trace(WildParkCNN(config).eval(), torch.zeros(1, config["channels"][0], 32, 32), strict=True)
            except TraceError as error:
                raise CheckpointError(f"The network of {place!r} does not read pictures of CIFAR-10. {error}") from None
        row |= {"n_layers": config["n_layers"], "config": key, "split": split}
        return spaces[key].flatten(state), row

    @classmethod
    def write_fake(  # type: ignore[override]  # sizes by their names
        cls,
        root: str | os.PathLike[str],
        name: str = "cifar10",
        *,
        seed: int = 0,
        runs: int = 3,
        checkpoints: int = 2,
        zipped: bool = False,
        split_json: bool = True,
    ) -> None:
        """Write a small twin in the published format: random weights, accuracies between 0.1 and 0.7.

        Of any three runs one has residual connections between layers of different widths, and one has a configuration of OmegaConf.

        Args:
            root: Folder to write to, to be given to the reader.
            name: ``"cifar10"``.
            seed: Seed of the weights and accuracies.
            runs: Number of training runs.
            checkpoints: Checkpoints of each.
            zipped: Whether to write an archive instead of a folder.
            split_json: Whether to write a file of splits beside it, in the published form, runs dealt to the three splits in turn.

        Raises:
            FileExistsError: If there are files of that name already.
            ValueError: If the name is unknown.
        """
        raw = cls._fake_folder(root, name)
        generator = torch.Generator().manual_seed(seed)
        listed: dict[str, dict[str, list[Any]]] = {split: {"path": [], "score": [], "step": []} for split in ("train", "val", "test")}
        with zipfile.ZipFile(raw / _ARCHIVE, "w", zipfile.ZIP_DEFLATED) as archive:
            for run, j in itertools.product(range(runs), range(checkpoints)):
                config = {"n_classes": 10, **_FAKES[run % len(_FAKES)]}
                config |= {"n_layers": len(config["kernel_size"]), "stride": [1] * len(config["kernel_size"])}
                config |= {"padding": [side // 2 for side in config["kernel_size"]]}
                shapes = _shapes(config)
                accuracy = 0.1 + 0.6 * float(torch.rand((), generator=generator))
                content = {
                    "model": OrderedDict((key, 0.2 * torch.randn(shape, generator=generator)) for key, shape in shapes.items()),
                    "optimizer": {"state": {}, "param_groups": [{"lr": 0.001, "params": list(range(len(shapes)))}]},
                    "config": config,
                    "iteration": 10 * (j + 1),
                    "timesteps_total": None,
                    "last_result": {"test/acc": accuracy, "test/loss": 2.5 - accuracy, "training_iteration": 10 * (j + 1)},
                    "ray_version": "2.3.0",
                }
                file = io.BytesIO()
                if run % 3 == 2:
                    _save_with_omegaconf(content, file)
                else:
                    torch.save(content, file)
                entry = f"{_FOLDER}/NN_tune_trainable_{run:05d}/checkpoint_{10 * (j + 1):06d}/checkpoint.pt"
                archive.writestr(entry, file.getvalue())
                for column, value in (("path", entry), ("score", accuracy), ("step", 10 * (j + 1))):
                    listed[list(listed)[run % 3]][column].append(value)
        if split_json:
            (raw / _SPLITS).write_text(json.dumps(listed), encoding="utf-8")
        if not zipped:
            with zipfile.ZipFile(raw / _ARCHIVE) as archive:
                archive.extractall(raw)
            (raw / _ARCHIVE).unlink()


# == Twins ==

_FAKES: list[dict[str, Any]] = [
    {"channels": [3, 4, 8], "kernel_size": [3, 5], "residual": [-1, -1], "activation": ["relu", "leaky_relu"]},
    {"channels": [3, 4, 4, 8], "kernel_size": [3, 3, 7], "residual": [-1, -1, 0], "activation": ["relu", "gelu", "relu"]},
    {"channels": [3, 8, 4, 8, 4], "kernel_size": [3] * 4, "residual": [-1, -1, 0, 0], "activation": ["tanh", "none", "none", "sigmoid"]},
]
_FOREIGN = {
    "omegaconf": [],
    "omegaconf.base": ["ContainerMetadata", "Metadata"],
    "omegaconf.dictconfig": ["DictConfig"],
    "omegaconf.listconfig": ["ListConfig"],
    "omegaconf.nodes": ["IntegerNode", "StringNode"],
    "cnn_sampler": ["CNNConfig"],
}


@contextmanager
def _foreign_classes() -> Iterator[dict[str, type]]:
    """Classes that pickle refers to as those of packages that need not be installed; loading what it wrote would need them."""
    modules, classes = {name: types.ModuleType(name) for name in _FOREIGN}, {}
    for module, names in _FOREIGN.items():
        for name in names:
            classes[name] = type(name, (), {"__module__": module})
            setattr(modules[module], name, classes[name])
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield classes
    finally:
        for name, replaced in before.items():
            if replaced is None:
                del sys.modules[name]
            else:
                sys.modules[name] = replaced


def _save_with_omegaconf(content: Mapping[str, Any], file: io.BytesIO) -> None:
    """Save a checkpoint whose configuration is held by OmegaConf, by a class of the training program, as the published ones are."""
    with _foreign_classes() as classes:

        def made(name: str, **state: Any) -> Any:
            thing = classes[name]()
            vars(thing).update(state)
            return thing

        def node(value: Any, parent: Any, key: Any) -> Any:
            metadata = {"ref_type": typing.Any, "object_type": type(value), "optional": True, "key": key, "flags": {}, "flags_root": False}
            metadata |= {"resolver_cache": defaultdict(dict)}
            if not isinstance(value, (dict, list)):
                kind = "IntegerNode" if isinstance(value, int) else "StringNode"
                return made(kind, _metadata=made("Metadata", **metadata), _parent=parent, _val=value)
            if isinstance(value, dict):
                metadata["object_type"] = classes["CNNConfig"] if parent else dict
            metadata |= {"key_type": typing.Any, "element_type": typing.Any}
            container = made("DictConfig" if isinstance(value, dict) else "ListConfig", _metadata=made("ContainerMetadata", **metadata))
            vars(container)["_parent"] = parent
            pairs = value.items() if isinstance(value, dict) else enumerate(value)
            nodes = {name: node(entry, container, name) for name, entry in pairs}
            vars(container)["_content"] = nodes if isinstance(value, dict) else list(nodes.values())
            return container

        # The networks' settings are a part of those of the training, to which they refer back.
        whole = node({"batch_size": 128, "model": content["config"]}, None, None)
        results = {**content["last_result"], "config": {"model": made("CNNConfig", **content["config"])}}
        torch.save({**content, "config": vars(whole)["_content"]["model"], "last_result": results}, file)
