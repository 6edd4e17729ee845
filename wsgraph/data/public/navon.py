"""Implicit neural representations of Navon et al."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from wsgraph.convert import CheckpointError
from wsgraph.data.dataset import group_split
from wsgraph.data.public.base import Archive, read_splits, splits_file
from wsgraph.data.public.inrs import Fit, PublicINRs, entries_of, read_state_dict, save_random, theta_of, unknown_file
from wsgraph.data.transforms import WeightTransform
from wsgraph.space import ParameterGraph, Signal, WeightSpace

__all__ = ["NavonINRs"]

_NAVON_FOLDERS = {"mnist": "mnist-inrs", "fashion_mnist": "fmnist_inrs"}
_NAVON_SCALES = {
    "mnist": ((0.0628, 0.0183, 0.1179), (0.0213, 0.0110, 0.0999)),
    "fashion_mnist": ((0.0782, 0.0324, 0.1345), (0.0286, 0.0167, 0.0960)),
}
_DROPBOX = "https://www.dropbox.com/sh/56pakaxe58z29mq"


class NavonINRs(PublicINRs):
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

    def _found(self) -> Iterator[Fit]:
        folder = self.raw_dir / _NAVON_FOLDERS[self.name]
        if self.name == "mnist":
            for entry in entries_of(folder):
                if not entry.name.startswith("mnist_png_"):
                    continue
                match = re.fullmatch(r"mnist_png_(training|testing)_([0-9])_([0-9]+)", entry.name)
                if match is None:
                    raise unknown_file(entry.path, "mnist_png_training_2_23089")
                path = Path(entry.path) / "checkpoints" / "model_final.pth"
                yield Fit(path, {"label": int(match[2]), "index": int(match[3]), "image_set": match[1]})
            return
        for part, image_set in (("train", "training"), ("test", "testing")):
            for entry in entries_of(folder / part):
                if not entry.name.endswith(".pth"):
                    continue
                match = re.fullmatch(r"model_([0-9]+)\.pth", entry.name)
                if match is None:
                    raise unknown_file(entry.path, "model_23089.pth")
                yield Fit(Path(entry.path), {"label": -1, "index": int(match[1]), "image_set": image_set})

    def _fits(self) -> Sequence[Fit]:
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

    def _read(self, fit: Fit, space: WeightSpace) -> Tensor:
        state = read_state_dict(fit.path)
        if self.name == "fashion_mnist":
            # The label lies among the weights, as an integer or a tensor.
            label = state.pop("label", None)
            try:
                fit.row["label"] = int(label)
            except (TypeError, ValueError, RuntimeError):
                raise CheckpointError(f"Expected an integer 'label' in {str(fit.path)!r} (got {label!r}).") from None
        if fit.claimed not in (None, fit.row["label"]):
            raise ValueError(f"The splits say that {str(fit.path)!r} is of class {fit.claimed}, its own label is {fit.row['label']}.")
        return theta_of(fit.path, state, space)

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
                    save_random(path, layers, 1, _NAVON_SCALES[name], generator)
                else:
                    path = folder / image_set.removesuffix("ing") / f"model_{i}.pth"
                    save_random(path, layers, 1, _NAVON_SCALES[name], generator, label=i % 10)
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
