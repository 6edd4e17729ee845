"""Suites of the benchmark: which cells make a table and a figure."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from wsgraph.bench.cells import Cell, run_cells
from wsgraph.files import write_atomically, write_json
from wsgraph.measure import machine
from wsgraph.tasks.result import mean_and_error

if TYPE_CHECKING:
    from wsgraph import WeightSpace

__all__ = ["Size", "list_suites", "register_suite", "run_suite"]


@dataclass(frozen=True)
class Size:
    """How large a benchmark is.

    Attributes:
        networks: Networks in every zoo of classifiers.
        pictures: Networks in every zoo of implicit neural representations.
        epochs: Passes over the training split.
        seeds: Seeds of the models.
        learning_rates: Learning rates of the search, the same for every model, chosen by the validation loss with the first seed.
        scales: Upper bounds of the scales of moved test networks.
    """

    networks: int
    pictures: int
    epochs: int
    seeds: tuple[int, ...]
    learning_rates: tuple[float, ...]
    scales: tuple[float, ...] = (1, 10, 100, 1000, 10000)


SIZES = {
    "quick": Size(networks=200, pictures=400, epochs=6, seeds=(0, 1), learning_rates=(1e-3, 1e-2)),
    "full": Size(networks=2000, pictures=10000, epochs=30, seeds=(0, 1, 2), learning_rates=(1e-3, 3e-3, 1e-2)),
}


@dataclass(frozen=True)
class Bench:
    """What a suite runs with."""

    folder: Path
    output: Path
    size: Size
    models: tuple[str, ...]
    images: Path | None
    workers: int

    def trial(self, task: str, zoo: Path, model: str, variant: Mapping[str, Any], **more: Any) -> Cell:
        """A training of a model in a variant of a task."""
        return Cell(task, zoo, {"model": model, "epochs": self.size.epochs, **variant, **more})

    def final(self, task: str, zoo: Path, model: str, variant: Mapping[str, Any], rate: float, seed: int) -> Cell:
        """A training with the learning rate that was found, to be scored on the test split."""
        return self.trial(task, zoo, model, variant, seed=seed, learning_rate=rate, scales=list(self.size.scales))

    def searched(self, task: str, zoos: Mapping[str, Path], variants: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
        """Every model on every zoo in every variant: a search of the learning rate, then all seeds with the best.

        Returns:
            For every model, zoo and variant ``metrics``, a list with one dict per seed, the ``learning_rate``, or an ``error``.
        """
        places = [(model, zoo, variant) for model in self.models for zoo in zoos for variant in variants]
        made_of = {place: (zoos[place[1]], place[0], variants[place[2]]) for place in places}
        first = self.size.seeds[0]
        trials = [(place, rate) for place in places for rate in self.size.learning_rates]
        searches = [self.trial(task, *made_of[place], seed=first, learning_rate=rate, test=False) for place, rate in trials]
        losses: dict[tuple[str, str, str], dict[float, float]] = {place: {} for place in places}
        errors: dict[tuple[str, str, str], str] = {}
        for (place, rate), found in zip(trials, self.run(searches, f"{task}: learning rates"), strict=True):
            loss = found["metrics"].get("validation_loss")
            if loss is None:
                errors[place] = found.get("error", "the validation loss is not finite")
            else:
                losses[place][rate] = loss
        best = {place: min(rates, key=rates.__getitem__) for place, rates in losses.items() if rates}
        runs = [(place, seed) for place in best for seed in self.size.seeds]
        finals = [self.final(task, *made_of[place], best[place], seed) for place, seed in runs]
        results: dict[tuple[str, str, str], list[dict[str, Any]]] = {place: [] for place in places}
        for (place, _), found in zip(runs, self.run(finals, f"{task}: seeds"), strict=True):
            if found["metrics"]:
                results[place].append(found["metrics"])
            else:
                errors[place] = found["error"]
        rows = []
        for place in places:
            row = {
                **dict(zip(("model", "zoo", "variant"), place, strict=True)),
                "metrics": results[place],
                "learning_rate": best.get(place),
            }
            rows.append(row if results[place] else {**row, "error": errors[place]})
        return rows

    @property
    def cells(self) -> Path:
        """Where results of cells are kept."""
        return self.folder / "cells"

    def run(self, cells: Sequence[Cell], title: str) -> list[dict[str, Any]]:
        """Results of cells, trained where they are not finished."""
        return run_cells(cells, self.cells, workers=self.workers, title=title)

    def classifiers(self) -> dict[str, Path]:
        """Zoos of small CNNs, ReLU and Tanh, as they are and with a moved copy of every network."""
        from wsgraph.data import ZooStore, augment_zoo, make_cnn_zoo
        from wsgraph.data.transforms import RandomSymmetry

        zoos: dict[str, Path] = {}
        for activation in ("relu", "tanh"):
            path = self.folder / f"cnn-{activation}-{self.size.networks}"
            store = make_cnn_zoo(path, self.size.networks, activation)
            double = path.with_name(f"{path.name}-augmented")
            if not double.exists():
                augment_zoo(double, store, RandomSymmetry((1, 100), distribution="uniform"))
            zoos |= {activation: path, f"{activation}, augmented": ZooStore(double).path}
        return zoos

    def pictures(self) -> dict[str, Path]:
        """A zoo of implicit neural representations."""
        from wsgraph.data import load_images, make_inr_zoo

        name = "digits" if self.images is None else self.images.stem
        path = self.folder / f"inr-{name}-{self.size.pictures}"
        make_inr_zoo(path, self.size.pictures, data=None if self.images is None else load_images(self.images))
        return {name: path}


# == Tables ==


def _cell_text(values: Sequence[float | None]) -> str:
    mean, error = mean_and_error(values)
    return "-" if math.isnan(mean) else f"{mean:.3f}" if math.isnan(error) else f"{mean:.3f} ± {error:.3f}"


def write_table(bench: Bench, name: str, title: str, head: Sequence[str], rows: Sequence[Sequence[str]], document: dict[str, Any]) -> None:
    """Print a table, and write it as Markdown with what it was made of as JSON."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*head, title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    lines = [f"### {title}", "", "| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    bench.output.mkdir(parents=True, exist_ok=True)
    write_atomically(bench.output / f"{name}.md", lambda temporary: temporary.write_text("\n".join(lines) + "\n", encoding="utf-8"))
    write_json(bench.output / f"{name}.json", {"machine": machine(), "size": bench.size.__dict__, **document})


def _gap(columns: Sequence[Mapping[str, float]], largest: bool) -> list[str]:
    """For every column the best model, and by how much it leads the second."""
    cells = []
    for scores in columns:
        ranked = sorted((score, model) for model, score in scores.items() if not math.isnan(score))
        ranked = ranked[::-1] if largest else ranked
        cells.append(f"{ranked[0][1]} by {abs(ranked[0][0] - ranked[1][0]):.3f}" if len(ranked) > 1 else "-")
    return cells


def _score_table(bench: Bench, name: str, title: str, found: Sequence[Mapping[str, Any]], score: str) -> None:
    columns = list(dict.fromkeys((row["zoo"], row["variant"]) for row in found))
    several = len({variant for _, variant in columns}) > 1
    head = ["model", *(f"{zoo}, {variant}" if several else zoo for zoo, variant in columns)]
    values = {(row["model"], row["zoo"], row["variant"]): [metrics[score] for metrics in row["metrics"]] for row in found}
    rows = [[model, *(_cell_text(values[model, *column]) for column in columns)] for model in bench.models]
    means = [{model: mean_and_error(values[model, *column])[0] for model in bench.models} for column in columns]
    rows.append(["gap to the second", *_gap(means, largest=score != "mse")])
    write_table(bench, name, title, head, rows, {"score": score, "results": list(found)})
    for row in found:
        if "error" in row:
            print(f"{row['model']} on {row['zoo']}{', ' if row['variant'] else ''}{row['variant']}: {row['error']}", file=sys.stderr)


# == Suites ==

_SUITES: dict[str, Callable[[Bench], None]] = {}


def register_suite(name: str) -> Callable[[Callable[[Bench], None]], Callable[[Bench], None]]:
    """Decorator that enters a function of a :class:`Bench` as a suite of ``wsgraph bench``.

    Raises:
        ValueError: If the name is taken.
    """

    def register(function: Callable[[Bench], None]) -> Callable[[Bench], None]:
        if name in _SUITES:
            raise ValueError(f"A suite named {name!r} is registered already.")
        _SUITES[name] = function
        return function

    return register


def list_suites() -> list[str]:
    """Names of the suites.

    Example:
        >>> list_suites()
        ['editing', 'generalization', 'inr', 'invariance', 'robustness']
    """
    return sorted(_SUITES)


@register_suite("generalization")
def generalization(bench: Bench) -> None:
    """Kendall's tau of predicted accuracies, ReLU and Tanh zoos, original and augmented."""
    found = bench.searched("generalization", bench.classifiers(), {"": {}})
    title = (
        f"Kendall's tau on test networks, zoos of {bench.size.networks} CNNs, mean and standard error over {len(bench.size.seeds)} seeds"
    )
    _score_table(bench, "generalization", title, found, "tau")


@register_suite("robustness")
def robustness(bench: Bench) -> None:
    """Kendall's tau against the scales by which test networks were moved, trained on original and on augmented zoos."""
    from wsgraph.plot import robustness_curve

    found = bench.searched("generalization", bench.classifiers(), {"": {}})
    scales = bench.size.scales
    head = ["zoo", "model", *(f"s={scale:g}" for scale in scales)]
    rows = []
    for row in sorted(found, key=lambda row: str(row["zoo"])):
        taus = {scale: [metrics[f"tau_scale_{scale:g}"] for metrics in row["metrics"]] for scale in scales}
        rows.append([row["zoo"], row["model"], *(_cell_text(taus[scale]) for scale in scales)])
    title = "Kendall's tau on test networks with neurons permuted and scaled by U[1, s], or flipped"
    write_table(bench, "robustness", title, head, rows, {"results": found})
    for zoo in dict.fromkeys(row["zoo"] for row in found):
        curves = {
            row["model"]: {scale: mean_and_error([metrics[f"tau_scale_{scale:g}"] for metrics in row["metrics"]]) for scale in scales}
            for row in found
            if row["zoo"] == zoo and row["metrics"]
        }
        means = {model: {scale: mean for scale, (mean, _) in points.items()} for model, points in curves.items()}
        errors = {model: {scale: error for scale, (_, error) in points.items()} for model, points in curves.items()}
        figure = robustness_curve(means, title=f"{zoo} zoo", errors=errors)
        write_atomically(bench.output / f"robustness-{zoo.replace(', ', '-')}.png", partial(_save, figure))


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, format="png")


@register_suite("inr")
def inr(bench: Bench) -> None:
    """Accuracy of classifying SIRENs by their weights: as they are, with signs settled, with phases settled."""
    variants: dict[str, dict[str, Any]] = {
        "raw": {},
        "sign": {"canonicalize": ["sign"]},
        "phase": {"canonicalize": ["phase", "sign"]},
    }
    found = bench.searched("inr_classification", bench.pictures(), variants)
    title = f"Accuracy of classifying {bench.size.pictures} SIRENs, mean and standard error over {len(bench.size.seeds)} seeds"
    _score_table(bench, "inr", title, found, "accuracy")


@register_suite("editing")
def editing(bench: Bench) -> None:
    """Error of edited SIRENs by operation, and pictures before and after."""
    from wsgraph.data import ZooStore
    from wsgraph.nn import model_entry
    from wsgraph.plot import picture_grid

    able = tuple(model for model in bench.models if "equivariant" in model_entry(model).tasks)
    if not able:
        raise ValueError(f"Expected models that return weights (got {', '.join(bench.models)}).")
    bench = replace(bench, models=able)
    zoos = bench.pictures()
    operations: dict[str, dict[str, Any]] = {"dilate": {"operation": "dilate"}, "contrast": {"operation": "contrast"}}
    found = bench.searched("inr_editing", zoos, operations)
    title = f"Pixel MSE of edited pictures, {bench.size.pictures} SIRENs, mean and standard error over {len(bench.size.seeds)} seeds"
    _score_table(bench, "editing", title, found, "mse")
    best = min((row for row in found if row["variant"] == "dilate" and row["metrics"]), key=lambda row: row["metrics"][0]["mse"])
    name, path = next(iter(zoos.items()))
    cell = bench.final("inr_editing", path, best["model"], operations["dilate"], best["learning_rate"], bench.size.seeds[0])
    editor = cell.train(bench.cells).model
    batch = ZooStore(path).dataset("test", target=None).batch(slice(0, 8), lambda thetas: thetas.float())
    with torch.no_grad():
        edited, target, before = editor(batch.to(next(editor.parameters()).device)).cpu().clamp(0, 1).unbind(1)
    figure = picture_grid({"network": before, "dilated": target, best["model"]: edited}, title=f"SIRENs of {name}, edited by their weights")
    write_atomically(bench.output / "editing.png", partial(_save, figure))


@register_suite("invariance")
def invariance(bench: Bench) -> None:
    """Largest relative change of a model's outputs when its networks are moved by each symmetry, in double precision."""
    from wsgraph import WeightSpace
    from wsgraph.nn import build_model, model_entry
    from wsgraph.testing import largest_difference

    spaces = {
        "relu CNN": WeightSpace.cnn([1, 8, 8], [4], "relu"),
        "tanh CNN": WeightSpace.cnn([1, 8, 8], [4], "tanh"),
        "SIREN": WeightSpace.siren((2, 16, 16, 1)),
    }
    columns = [(name, kind) for name, space in spaces.items() for kind in _moves(space)]
    rows, results = [], []
    for model in bench.models:
        changes = {}
        for name, kind in columns:
            space, generator = spaces[name], torch.Generator().manual_seed(0)
            with torch.random.fork_rng():
                torch.manual_seed(0)
                module = build_model(model, space, 3).double().eval()
            thetas = space.sample(32, generator=generator, dtype=torch.float64)
            g = space.sample_symmetry(32, (1e-2, 1e2), symmetries=[kind], generator=generator)
            with torch.no_grad():
                changes[name, kind] = largest_difference(module(space.batch(space.act(g, thetas))), module(space.batch(thetas)))
        claimed = ", ".join(model_entry(model).symmetries) or "none"
        rows.append([model, claimed, *(f"{changes[column]:.0e}" for column in columns)])
        results.append({"model": model, "changes": {f"{name}, {kind}": change for (name, kind), change in changes.items()}})
    head = ["model", "claims", *(f"{name}, {kind}" for name, kind in columns)]
    write_table(bench, "invariance", "Largest relative change of outputs under each symmetry, untrained", head, rows, {"results": results})


def _moves(space: WeightSpace) -> list[str]:
    allowed = [space.class_symmetry(label) for label, groups in space.scale_classes.items() if groups[0].role == "hidden"]
    return ["permutation", *(["scale"] if allowed[0].positive else []), *(["sign"] if allowed[0].sign else [])]


def run_suite(
    name: str,
    *,
    size: str | Size = "quick",
    folder: Path,
    output: Path,
    models: Sequence[str] | None = None,
    images: Path | None = None,
    workers: int = 1,
) -> None:
    """Run a suite of the benchmark: a table on the terminal, as Markdown and JSON, and figures.

    Zoos and finished cells are kept: a run that was interrupted, however, continues when it is started again.

    Args:
        name: One of :func:`list_suites`.
        size: ``"quick"`` (minutes), ``"full"`` (hours) or a :class:`Size`.
        folder: Where zoos and cells are kept.
        output: Where tables and figures go.
        models: Models to compare (default: all of :func:`wsgraph.nn.list_models`).
        images: Pictures for implicit neural representations, a folder of IDX files or an ``.npz`` file (default: digits).
        workers: Cells trained at a time, each by one thread.

    Raises:
        OSError: If a folder cannot be written.
        ValueError: If the suite, the size or a model is unknown.
    """
    from wsgraph.nn import list_models, model_entry

    if name not in _SUITES:
        raise ValueError(f"Unknown suite {name!r}. Available suites: {', '.join(list_suites())}.")
    if isinstance(size, str) and size not in SIZES:
        raise ValueError(f"Expected 'size' to be {' or '.join(map(repr, SIZES))} or a Size (got {size!r}).")
    for model in models or ():
        model_entry(model)
    chosen = SIZES[size] if isinstance(size, str) else size
    _SUITES[name](Bench(Path(folder), Path(output), chosen, tuple(models or list_models()), images, workers))
