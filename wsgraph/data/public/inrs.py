"""Implicit neural representations of pictures, one file each: SIRENs of Navon et al. and of Zhou et al."""

from __future__ import annotations

import json
import os
import re
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from wsgraph.convert import CheckpointError
from wsgraph.convert.unpickle import Stub, read_inert
from wsgraph.data.dataset import group_split
from wsgraph.data.public.base import Archive, PublicZoo, read_splits, splits_file, tracked
from wsgraph.data.store import ZooStore
from wsgraph.data.transforms import WeightTransform
from wsgraph.space import ParameterGraph, Signal, WeightSpace

__all__ = ["NavonINRs", "ZhouSIRENs"]

# Networks that are held in memory until they are written.
_BLOCK = 8192


@dataclass
class _Fit:
    """A file, the row of its network in the table, and the label that the splits say it has."""

    path: Path
    row: dict[str, Any]
    claimed: int | None = None


class _INRs(PublicZoo):
    """Networks of one architecture, one file each."""

    @abstractmethod
    def _space(self) -> WeightSpace:
        """The weight space of all networks."""

    @abstractmethod
    def _fits(self) -> Sequence[_Fit]:
        """The files to read, in the order of the zoo."""

    def _read(self, fit: _Fit, space: WeightSpace) -> Tensor:
        return _theta(fit.path, _state_dict(fit.path), space)

    def process(self, store: ZooStore) -> None:
        """Read all files, and append the networks block by block."""
        space, fits = self._space(), self._fits()
        if not fits:
            raise ValueError(f"Found no networks in {str(self.raw_dir)!r}. {self.where}")
        block: list[tuple[Tensor, dict[str, Any]]] = []
        for done, fit in enumerate(tracked(fits, "reading networks"), start=1):
            block.append((self._read(fit, space), fit.row))
            if len(block) == _BLOCK or done == len(fits):
                table = {column: [row[column] for _, row in block] for column in fit.row}
                self.append(store, space, torch.stack([theta for theta, _ in block]), table)
                block = []


def _state_dict(path: Path) -> dict[Any, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r}, although its folder is there. Unpack the archive again.")
    content = read_inert(path.read_bytes(), str(path))
    if not isinstance(content, dict):
        found = repr(content) if isinstance(content, Stub) else type(content).__name__
        raise CheckpointError(f"Expected {str(path)!r} to hold a state dict, that is tensors by key (got {found}).")
    return content


def _theta(path: Path, state: Mapping[Any, Any], space: WeightSpace) -> Tensor:
    """The flat checkpoint of a state dict whose tensors have the shapes of the space, in order; their keys differ between the zoos."""
    if len(state) != len(space.params):
        raise CheckpointError(
            f"Expected {str(path)!r} to hold {len(space.params)} tensors (got {len(state)}: {', '.join(map(repr, state)) or 'none'})."
        )
    for (key, tensor), param in zip(state.items(), space.params, strict=True):
        if not isinstance(tensor, Tensor) or tuple(tensor.shape) != param.shape or not tensor.is_floating_point():
            found = f"shape {list(tensor.shape)}, {tensor.dtype}" if isinstance(tensor, Tensor) else repr(tensor)
            raise CheckpointError(
                f"Expected {key!r} in {str(path)!r} to be the {param.role} of shape {list(param.shape)} of {space!r} (got {found})."
            )
    return torch.cat([tensor.reshape(-1) for tensor in state.values()])


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """What lies in a folder, without what file managers leave there."""
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {str(folder)!r}. Unpack the archive again.")
    with os.scandir(folder) as entries:
        yield from (entry for entry in entries if not entry.name.startswith("."))


def _unknown(path: str, expected: str) -> ValueError:
    return ValueError(f"Expected names such as {expected} (got {path!r}). Remove what is not part of the published files.")


def _save_random(path: Path, layers: Sequence[str], channels: int, scales: Any, generator: torch.Generator, **extra: Any) -> None:
    """Write a network with normal weights and biases, ``scales`` their standard deviations."""
    state: dict[str, Any] = {}
    for layer, weight, bias, (outputs, inputs) in zip(layers, *scales, ((32, 2), (32, 32), (channels, 32)), strict=True):
        state[f"{layer}.weight"] = weight * torch.randn(outputs, inputs, generator=generator)
        state[f"{layer}.bias"] = bias * torch.randn(outputs, generator=generator)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({**state, **extra}, path)


# == Navon et al. ==

_NAVON_FOLDERS = {"mnist": "mnist-inrs", "fashion_mnist": "fmnist_inrs"}
_NAVON_SCALES = {
    "mnist": ((0.0628, 0.0183, 0.1179), (0.0213, 0.0110, 0.0999)),
    "fashion_mnist": ((0.0782, 0.0324, 0.1345), (0.0286, 0.0167, 0.0960)),
}
_DROPBOX = "https://www.dropbox.com/sh/56pakaxe58z29mq"


class NavonINRs(_INRs):
    r"""The SIRENs of `"Equivariant Architectures for Learning in Deep Weight Spaces" <https://arxiv.org/abs/2301.12780>`_ (Navon et al.).

    Every network represents one picture of MNIST or Fashion-MNIST, 28x28 pixels with values in [0, 1]:

    .. math:: \text{picture}[i, j] = f(x_j, y_i) + 0.5, \quad f = W_2 \sin(30 (W_1 \sin(30 (W_0 p + b_0)) + b_1)) + b_2

    ============= ======== ========== ======= =======================
    name          networks parameters classes train / val / test
    ============= ======== ========== ======= =======================
    mnist         70,000   1,185      10      55,000 / 5,000 / 10,000
    fashion_mnist 70,000   1,185      10      55,000 / 5,000 / 10,000
    ============= ======== ========== ======= =======================

    The first coordinate counts columns, and 0.5 is added to what the network says; ``space.signal`` records both, and ``space.render``
    draws the pictures. The networks of :class:`ZhouSIRENs` differ in both.

    The table holds ``label``, ``index`` (of the picture in ``image_set``), ``image_set`` (``"training"`` or ``"testing"``) and ``split``.
    Fits of the training pictures come first, in the order of the pictures.

    Networks of the testing pictures are the split ``"test"``. The archive of Fashion-MNIST says which of the training pictures are for
    validation. For MNIST the authors draw them without a seed: results of different papers are on different sets. Here they are drawn with
    ``seed``, 1 of 12, unless ``splits`` names a file such as ``mnist_splits.json`` of one of the published repositories; networks that it
    does not list are left out. ``mnist-inrs.zip`` also holds fits of other pictures, which are not read.

    Args:
        root: Folder for all files.
        name: One of the names above.
        split: ``"train"``, ``"val"`` or ``"test"`` (default: all networks).
        target: Column that becomes ``y``; ``None`` for graphs without one.
        splits: A JSON file of splits (default: as above).
        seed: Seed of the validation split, where it is drawn.
        transform: Applied at every access; see :class:`~wsgraph.data.ZooDataset`.
        pre_transform: One of :mod:`wsgraph.data.transforms`, applied once, before the zoo is written.
        force_reload: Whether to read the published files again.

    Raises:
        FileNotFoundError: If files are missing and cannot be fetched, or there is no file ``splits``.
        CheckpointError: If a file is damaged or holds another network.
        ValueError: If the name or the split is unknown, a folder has an unexpected name, or the file of splits does not fit the networks.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     NavonINRs.write_fake(folder, "mnist")  # leave this out for the real data
        ...     train = NavonINRs(folder, "mnist", "train")
        ...     print(train.space)
        ...     print(train[0], len(train), train.space.render(train.thetas).shape)
        WeightSpace(2-32-32-1, linear | linear | linear, sin(30), 1,185 parameters)
        ParameterGraph(2-32-32-1, nodes=67, edges=1120, y=[1]) 22 torch.Size([22, 1, 28, 28])
    """

    names: ClassVar[Mapping[str, str]] = {"mnist": "SIRENs of MNIST digits", "fashion_mnist": "SIRENs of Fashion-MNIST clothes"}
    archives: ClassVar[Mapping[str, Archive]] = {
        "mnist": Archive(f"{_DROPBOX}/AABrctdu2U65jGYr2WQRzmMna/mnist-inrs.zip?dl=1"),
        "fashion_mnist": Archive(f"{_DROPBOX}/AAAssoHq719OmSHSKKTiKKHGa/fmnist_inrs.zip?dl=1"),
    }
    where: ClassVar[str] = (
        "Fetch mnist-inrs.zip or fmnist_inrs.zip by the links in "
        "https://github.com/mkofinas/neural-graphs/tree/main/experiments/inr_classification and unpack it there."
    )

    def __init__(
        self,
        root: str | os.PathLike[str],
        name: str,
        split: str | None = None,
        *,
        target: str | None = "label",
        splits: str | os.PathLike[str] | None = None,
        seed: int = 0,
        transform: Callable[[ParameterGraph], ParameterGraph] | None = None,
        pre_transform: WeightTransform | None = None,
        force_reload: bool = False,
    ) -> None:
        self._splits, digest = splits_file(splits)
        options = {"splits": digest, "seed": int(seed)}
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
        """The folder in the archive."""
        return [_NAVON_FOLDERS[self.name]]

    def _space(self) -> WeightSpace:
        signal = Signal((28, 28), first_axis="column", offset=0.5, value_range=(0.0, 1.0))
        return WeightSpace.siren((2, 32, 32, 1), 30.0, signal=signal)

    def _found(self) -> Iterator[_Fit]:
        folder = self.raw_dir / _NAVON_FOLDERS[self.name]
        if self.name == "mnist":
            for entry in _entries(folder):
                if not entry.name.startswith("mnist_png_"):
                    continue
                match = re.fullmatch(r"mnist_png_(training|testing)_([0-9])_([0-9]+)", entry.name)
                if match is None:
                    raise _unknown(entry.path, "mnist_png_training_2_23089")
                path = Path(entry.path) / "checkpoints" / "model_final.pth"
                yield _Fit(path, {"label": int(match[2]), "index": int(match[3]), "image_set": match[1]})
            return
        for part, image_set in (("train", "training"), ("test", "testing")):
            for entry in _entries(folder / part):
                if not entry.name.endswith(".pth"):
                    continue
                match = re.fullmatch(r"model_([0-9]+)\.pth", entry.name)
                if match is None:
                    raise _unknown(entry.path, "model_23089.pth")
                yield _Fit(Path(entry.path), {"label": -1, "index": int(match[1]), "image_set": image_set})

    def _fits(self) -> Sequence[_Fit]:
        fits = sorted(self._found(), key=lambda fit: (fit.row["image_set"] == "testing", fit.row["index"], fit.path))
        file = self._splits
        if self.name == "fashion_mnist" and file is None:
            published = self.raw_dir / "fmnist_inrs" / "splits.json"
            file = published if published.is_file() else None
        if file is None:
            training = [fit for fit in fits if fit.row["image_set"] == "training"]
            drawn = iter(group_split(range(len(training)), {"train": 11 / 12, "val": 1 / 12}, seed=self.options["seed"]).tolist())
            for fit in fits:
                fit.row["split"] = next(drawn) if fit.row["image_set"] == "training" else "test"
            return fits
        # Of a path its end tells the network; where it begins is a matter of the machine on which the splits were made.
        parts = 3 if self.name == "mnist" else 2
        by_end = {"/".join(fit.path.parts[-parts:]): fit for fit in fits}
        listed = read_splits(file, parts)
        if missing := [end for end in listed if end not in by_end]:
            raise ValueError(f"{str(file)!r} lists {len(missing)} networks that are not in {str(self.raw_dir)!r}, such as {missing[0]!r}.")
        for end, row in listed.items():
            by_end[end].row["split"] = row["split"]
            # Some files have labels as strings.
            by_end[end].claimed = int(row["label"]) if "label" in row else None
        return [fit for fit in fits if "split" in fit.row]

    def _read(self, fit: _Fit, space: WeightSpace) -> Tensor:
        state = _state_dict(fit.path)
        if self.name == "fashion_mnist":
            # The label lies among the weights, as an integer or a tensor.
            label = state.pop("label", None)
            try:
                fit.row["label"] = int(label)
            except (TypeError, ValueError, RuntimeError):
                raise CheckpointError(f"Expected an integer 'label' in {str(fit.path)!r} (got {label!r}).") from None
        if fit.claimed not in (None, fit.row["label"]):
            raise ValueError(f"The splits say that {str(fit.path)!r} is of class {fit.claimed}, its own label is {fit.row['label']}.")
        return _theta(fit.path, state, space)

    @classmethod
    def write_fake(  # type: ignore[override]  # sizes by their names
        cls, root: str | os.PathLike[str], name: str, *, seed: int = 0, training: int = 24, testing: int = 6
    ) -> None:
        """Write a small twin in the published format: random weights of the published scale, and labels in turn.

        Args:
            root: Folder to write to, to be given to the reader.
            name: One of :attr:`names`.
            seed: Seed of the weights.
            training: Number of fits of training pictures.
            testing: Number of fits of testing pictures.

        Raises:
            FileExistsError: If there are files of that name already.
            ValueError: If the name is unknown.
        """
        folder = cls._fake_folder(root, name) / _NAVON_FOLDERS[name]
        generator = torch.Generator().manual_seed(seed)
        layers = ["seq.0", "seq.1", "seq.2"]
        for image_set, count in (("training", training), ("testing", testing)):
            for i in range(count):
                if name == "mnist":
                    path = folder / f"mnist_png_{image_set}_{i % 10}_{i}" / "checkpoints" / "model_final.pth"
                    _save_random(path, layers, 1, _NAVON_SCALES[name], generator)
                else:
                    path = folder / image_set.removesuffix("ing") / f"model_{i}.pth"
                    _save_random(path, layers, 1, _NAVON_SCALES[name], generator, label=i % 10)
        if name == "fashion_mnist":
            validation = max(1, training // 12)
            numbers = {
                "train": [("train", i) for i in range(validation, training)],
                "val": [("train", i) for i in range(validation)],
                "test": [("test", i) for i in range(testing)],
            }
            # The published paths are those of the authors' machine.
            listed = {split: [f"/home/author/fmnist_inrs/{part}/model_{i}.pth" for part, i in files] for split, files in numbers.items()}
            (folder / "splits.json").write_text(json.dumps(listed), encoding="utf-8")


# == Zhou et al. ==


class _Zhou(NamedTuple):
    folder: str
    channels: int
    side: int
    sets: int
    scales: tuple[tuple[float, float, float], tuple[float, float, float]]


_ZHOU_MNIST_SCALES = (0.2868, 0.0171, 0.0639), (0.4090, 0.1041, 0.0970)
_ZHOU = {
    "mnist": _Zhou("siren_mnist_wts", 1, 28, 10, _ZHOU_MNIST_SCALES),
    "fashion_mnist": _Zhou("siren_fashion_wts", 1, 28, 10, _ZHOU_MNIST_SCALES),
    "cifar10": _Zhou("siren_cifar_wts", 3, 32, 20, ((0.2803, 0.0177, 0.0546), (0.4087, 0.1039, 0.0873))),
}
# Pictures are numbered through the training set and then the test set of the picture data, from which the splits are cut.
_ZHOU_VALIDATION, _ZHOU_TEST = 45_000, 50_000


class ZhouSIRENs(_INRs):
    r"""The SIRENs of `"Permutation Equivariant Neural Functionals" <https://arxiv.org/abs/2302.14040>`_ (Zhou et al.).

    Every network represents one picture of MNIST, Fashion-MNIST (28x28 pixels) or CIFAR-10 (32x32, 3 channels), with values in [-1, 1]:

    .. math:: \text{picture}[i, j] = f(y_i, x_j), \quad f = W_2 \sin(30 (W_1 \sin(30 (W_0 p + b_0)) + b_1)) + b_2

    ============= ============ ============== ========== =======
    name          networks     sets of refits parameters classes
    ============= ============ ============== ========== =======
    mnist         up to 70,000 10             1,185      10
    fashion_mnist up to 70,000 10             1,185      10
    cifar10       60,000       20             1,251      10
    ============= ============ ============== ========== =======

    The first coordinate counts rows, and nothing is added to what the network says; ``space.signal`` records both, and ``space.render``
    draws the pictures. The networks of :class:`NavonINRs` differ in both.

    Splits go by the number of the picture, training pictures before testing pictures: train below 45,000, val below 50,000, then test. Of
    MNIST and Fashion-MNIST, pictures 50,000 to 59,999 are training pictures, so that their test split is not that of the picture data.

    With ``augmentations``, other fits of the same training pictures from other initialisations join the training split, and no other: the
    authors' loader finds them for validation and testing too, where their folders come first.

    The table holds ``label``, ``index`` (of the picture), ``augmentation`` (the set of refits, -1 for the first fit) and ``split``.

    Args:
        root: Folder for all files.
        name: One of the names above.
        split: ``"train"``, ``"val"`` or ``"test"`` (default: all networks).
        target: Column that becomes ``y``; ``None`` for graphs without one.
        augmentations: How many of the sets of refits to add to the training split.
        transform: Applied at every access; see :class:`~wsgraph.data.ZooDataset`.
        pre_transform: One of :mod:`wsgraph.data.transforms`, applied once, before the zoo is written.
        force_reload: Whether to read the published files again.

    Raises:
        FileNotFoundError: If files are missing, as they cannot be fetched.
        CheckpointError: If a file is damaged or holds another network.
        ValueError: If the name or the split is unknown, a folder or file has an unexpected name, or there are fewer sets of refits.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     ZhouSIRENs.write_fake(folder, "cifar10")  # leave this out for the real data
        ...     train = ZhouSIRENs(folder, "cifar10", "train", augmentations=1)
        ...     print(train.space)
        ...     print(train[0], len(train), train.space.render(train.thetas).shape)
        WeightSpace(2-32-32-3, linear | linear | linear, sin(30), 1,251 parameters)
        ParameterGraph(2-32-32-3, nodes=69, edges=1184, y=[1]) 24 torch.Size([24, 3, 32, 32])
    """

    names: ClassVar[Mapping[str, str]] = {
        "mnist": "SIRENs of MNIST digits",
        "fashion_mnist": "SIRENs of Fashion-MNIST clothes",
        "cifar10": "SIRENs of CIFAR-10 pictures",
    }
    where: ClassVar[str] = (
        "Fetch siren_mnist_wts.tar, siren_fashion_wts.tar or siren_cifar_wts.tar by the link in "
        "https://github.com/AllanYangZhou/nfn/tree/main/experiments and unpack it there."
    )

    def __init__(
        self,
        root: str | os.PathLike[str],
        name: str,
        split: str | None = None,
        *,
        target: str | None = "label",
        augmentations: int = 0,
        transform: Callable[[ParameterGraph], ParameterGraph] | None = None,
        pre_transform: WeightTransform | None = None,
        force_reload: bool = False,
    ) -> None:
        most = _ZHOU[name].sets if name in _ZHOU else augmentations
        if not isinstance(augmentations, int) or not 0 <= augmentations <= most:
            raise ValueError(f"Expected 'augmentations' to be an integer from 0 to {most} (got {augmentations!r}).")
        super().__init__(
            root,
            name,
            split,
            target=target,
            transform=transform,
            pre_transform=pre_transform,
            force_reload=force_reload,
            options={"augmentations": augmentations},
        )

    def raw_file_names(self) -> list[str]:
        """The folder in the archive."""
        return [_ZHOU[self.name].folder]

    def _space(self) -> WeightSpace:
        zoo = _ZHOU[self.name]
        signal = Signal((zoo.side, zoo.side), first_axis="row", offset=0.0, value_range=(-1.0, 1.0))
        return WeightSpace.siren((2, 32, 32, zoo.channels), 30.0, signal=signal)

    def _fits(self) -> Sequence[_Fit]:
        fits: list[_Fit] = []
        missing = set(range(self.options["augmentations"]))
        for entry in _entries(self.raw_dir / _ZHOU[self.name].folder):
            if not entry.is_dir():
                continue
            match = re.fullmatch(r"randinit_smaller_(?:aug([0-9]+)_)?([0-9])s", entry.name)
            if match is None:
                raise _unknown(entry.path, "randinit_smaller_2s and randinit_smaller_aug0_2s")
            augmentation = -1 if match[1] is None else int(match[1])
            if augmentation < self.options["augmentations"]:
                missing.discard(augmentation)
                fits += self._fits_in(Path(entry.path), int(match[2]), augmentation)
        if missing:
            raise ValueError(
                f"The sets of refits {', '.join(map(str, sorted(missing)))} are not in {str(self.raw_dir)!r}: unpack them too."
            )
        return sorted(fits, key=lambda fit: (fit.row["augmentation"], fit.row["index"], fit.path))

    def _fits_in(self, folder: Path, label: int, augmentation: int) -> Iterator[_Fit]:
        for entry in _entries(folder):
            if not entry.name.endswith(".pth"):
                continue
            match = re.fullmatch(r"net([0-9]+)\.pth", entry.name)
            if match is None:
                raise _unknown(entry.path, "net23089.pth")
            index = int(match[1])
            split = "train" if index < _ZHOU_VALIDATION else "val" if index < _ZHOU_TEST else "test"
            if augmentation < 0 or split == "train":
                yield _Fit(Path(entry.path), {"label": label, "index": index, "augmentation": augmentation, "split": split})

    @classmethod
    def write_fake(  # type: ignore[override]  # sizes by their names
        cls,
        root: str | os.PathLike[str],
        name: str,
        *,
        seed: int = 0,
        training: int = 12,
        validation: int = 4,
        testing: int = 4,
        augmentations: int = 1,
    ) -> None:
        """Write a small twin in the published format: random weights of the published scale, and labels in turn.

        Args:
            root: Folder to write to, to be given to the reader.
            name: One of :attr:`names`.
            seed: Seed of the weights.
            training: Number of networks in the training split.
            validation: Number of networks in the validation split.
            testing: Number of networks in the test split.
            augmentations: Number of sets of refits, each of all pictures.

        Raises:
            FileExistsError: If there are files of that name already.
            ValueError: If the name is unknown.
        """
        zoo_folder = cls._fake_folder(root, name)
        zoo = _ZHOU[name]
        generator = torch.Generator().manual_seed(seed)
        for part in ["", *(f"aug{k}_" for k in range(augmentations))]:
            for start, count in ((0, training), (_ZHOU_VALIDATION, validation), (_ZHOU_TEST, testing)):
                for i in range(start, start + count):
                    path = zoo_folder / zoo.folder / f"randinit_smaller_{part}{i % 10}s" / f"net{i}.pth"
                    _save_random(path, ["net.0.linear", "net.1.linear", "net.2"], zoo.channels, zoo.scales, generator)
