"""How large the runs of a suite are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

__all__ = ["SIZES", "Size"]


@dataclass(frozen=True)
class Size:
    """How large a benchmark is.

    Attributes:
        networks: Networks in every zoo of classifiers.
        pictures: Networks in every zoo of implicit neural representations.
        epochs: Passes over the training split.
        seeds: Seeds of the models.
        learning_rates: Learning rates of the search, the same for every model, chosen by the validation loss with the first seed.
        search_epochs: Passes over the training split in the search.
        search_networks: At most so many training networks in the search.
        scales: Upper bounds of the scales of moved test networks; ``augment_scale`` is always among them.
        augment_scale: Upper bound of the scales by which augmented training moves its networks.
        train_sizes: Numbers of training networks of the curves over them; more than a zoo has are left out.
        batches: Networks in a batch whose costs are measured.
        widths: Hidden widths of networks whose costs are measured.
        families: Families of networks whose heritage is looked for, and as many networks without relatives.
    """

    networks: int
    pictures: int
    epochs: int
    seeds: tuple[int, ...]
    learning_rates: tuple[float, ...]
    search_epochs: int
    search_networks: int = 2000
    scales: tuple[float, ...] = (1, 10, 100, 1000, 10000)
    augment_scale: float = 100
    train_sizes: tuple[int, ...] = (32, 100, 320, 1000)
    batches: tuple[int, ...] = (16, 64, 256)
    widths: tuple[int, ...] = (16, 32, 64, 128)
    families: int = 100

    def __post_init__(self) -> None:
        for name in ("seeds", "learning_rates", "train_sizes", "batches", "widths"):
            if not getattr(self, name):
                raise ValueError(f"Expected '{name}' with at least one entry (got none).")
        # Who was trained on moved networks is scored on networks that were moved as far.
        object.__setattr__(self, "scales", tuple(sorted({*self.scales, self.augment_scale})))


SIZES = {
    "quick": Size(
        networks=200,
        pictures=400,
        epochs=6,
        seeds=(0, 1),
        learning_rates=(1e-3, 1e-2),
        search_epochs=3,
        train_sizes=(32, 100),
        batches=(8, 32),
        widths=(8, 32),
        families=10,
    ),
    "full": Size(networks=2000, pictures=10000, epochs=20, seeds=(0, 1, 2), learning_rates=(1e-3, 3e-3, 1e-2), search_epochs=6),
}
