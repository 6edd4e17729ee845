"""Implicit neural representations of Zhou et al."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch

from wsgraph.data.public.inrs import Fit, PublicINRs, entries_of, save_random, unknown_file
from wsgraph.data.transforms import WeightTransform
from wsgraph.space import ParameterGraph, Signal, WeightSpace

__all__ = ["ZhouSIRENs"]


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


class ZhouSIRENs(PublicINRs):
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

    def _fits(self) -> Sequence[Fit]:
        fits: list[Fit] = []
        missing = set(range(self.options["augmentations"]))
        for entry in entries_of(self.raw_dir / _ZHOU[self.name].folder):
            if not entry.is_dir():
                continue
            match = re.fullmatch(r"randinit_smaller_(?:aug([0-9]+)_)?([0-9])s", entry.name)
            if match is None:
                raise unknown_file(entry.path, "randinit_smaller_2s and randinit_smaller_aug0_2s")
            augmentation = -1 if match[1] is None else int(match[1])
            if augmentation < self.options["augmentations"]:
                missing.discard(augmentation)
                fits += self._fits_in(Path(entry.path), int(match[2]), augmentation)
        if missing:
            raise ValueError(
                f"The sets of refits {', '.join(map(str, sorted(missing)))} are not in {str(self.raw_dir)!r}: unpack them too."
            )
        return sorted(fits, key=lambda fit: (fit.row["augmentation"], fit.row["index"], fit.path))

    def _fits_in(self, folder: Path, label: int, augmentation: int) -> Iterator[Fit]:
        for entry in entries_of(folder):
            if not entry.name.endswith(".pth"):
                continue
            match = re.fullmatch(r"net([0-9]+)\.pth", entry.name)
            if match is None:
                raise unknown_file(entry.path, "net23089.pth")
            index = int(match[1])
            split = "train" if index < _ZHOU_VALIDATION else "val" if index < _ZHOU_TEST else "test"
            if augmentation < 0 or split == "train":
                yield Fit(Path(entry.path), {"label": label, "index": index, "augmentation": augmentation, "split": split})

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
                    save_random(path, ["net.0.linear", "net.1.linear", "net.2"], zoo.channels, zoo.scales, generator)
