"""Implicit neural representations fitted per second, and how well: a zoo of SIRENs, one for every picture.

`wsgraph.data.make_inr_zoo` with its defaults: 2-32-32-1 networks, 500 steps of Adam on a quarter of the pixels, in the convention of Navon
et al. Prints and writes the time and the quantiles of the PSNR (10 log10 of the squared value range over the mean squared error), and draws
pictures above what their networks render, from the worst to the best. From the repository root:

    python benchmarks/inr_fitting.py --images PATH --zoo FOLDER

where PATH is a folder of IDX files or an .npz file; without it, scikit-learn's digits.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from wsgraph.data import ClassificationData, ZooStore, digits, load_images, make_inr_zoo
from wsgraph.files import write_atomically, write_json
from wsgraph.measure import machine
from wsgraph.plot import picture_grid

QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
SHOWN = 12


def draw(store: ZooStore, data: ClassificationData, file: Path) -> None:
    """Pictures above, what their networks render below, sorted by PSNR."""
    order = np.argsort(store.column("psnr"))[np.linspace(0, len(store) - 1, SHOWN).round().astype(int)]
    signal = store.space.signal
    assert signal is not None
    low, high = signal.value_range
    pictures = (torch.cat([data.images, data.test_images])[store.column("image")[order]] + 1) / 2
    rendered = (store.space.render(store.read(torch.from_numpy(order))) - low) / (high - low)
    titles = [f"{value:.0f} dB" for value in store.column("psnr")[order]]
    figure = picture_grid({"picture": pictures, "network": rendered}, titles=titles)
    write_atomically(file, lambda temporary: figure.savefig(temporary, format="png", dpi=200))


def main() -> None:
    """Fit, print a table, write JSON and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few networks, to see that it runs")
    parser.add_argument("--images", type=Path, help="folder of IDX files or .npz file [default: scikit-learn's digits]")
    parser.add_argument("--networks", type=int, help="networks to fit [default: one for every picture]")
    parser.add_argument("--zoo", type=Path, help="where to keep the zoo [default: a temporary folder]")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    data = digits() if options.images is None else load_images(options.images)
    networks, steps = (24, 50) if options.quick else (options.networks, 500)
    path = options.zoo or Path(tempfile.mkdtemp()) / "zoo"
    if path.exists():
        raise SystemExit(f"{path} exists: the time that its networks took is not known. Choose another folder.")
    start = time.perf_counter()
    store = make_inr_zoo(path, networks, data=data, steps=steps)
    seconds = time.perf_counter() - start

    psnr = store.column("psnr")
    found = {f"{quantile:g}": float(np.quantile(psnr, quantile)) for quantile in QUANTILES}
    height, width = data.images.shape[2:]
    table = Table("quantile", *found, title=f"PSNR in dB of {len(store):,} networks {store.space!r} of {height}x{width} pictures")
    table.add_row("PSNR", *(f"{value:.1f}" for value in found.values()))
    console = Console()
    console.print(table)
    console.print(f"{seconds / 60:.1f} minutes: {len(store) / seconds:.1f} networks per second on {torch.get_num_threads()} threads.")
    document = {
        "machine": machine(),
        "space": repr(store.space),
        "pictures": f"{height}x{width}, {'digits' if options.images is None else options.images.name}",
        "networks": len(store),
        "dropped_non_finite": store.info["dropped_non_finite"],
        "seconds": seconds,
        "networks_per_second": len(store) / seconds,
        "psnr_quantiles": found,
        "share_above_30_db": float((psnr > 30).mean()),
        "configuration": store.info["configuration"],
    }
    options.output.mkdir(parents=True, exist_ok=True)
    write_json(options.output / "inr_fitting.json", document)
    draw(store, data, options.output / "inr_fitting.png")


if __name__ == "__main__":
    main()
