"""Suites of the benchmark that train models: predicted accuracies, classes and edits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from wsgraph.bench.bench import Bench, documented, read_model, register_suite, scores_of
from wsgraph.data import ZooStore
from wsgraph.nn import model_entry, model_options
from wsgraph.scores import on_axis
from wsgraph.tasks.inr_editing import before_and_after
from wsgraph.tasks.result import mean_and_error
from wsgraph.tasks.task import all_match

__all__: list[str] = []


def _who(bench: Bench) -> str:
    seeds = len(bench.size.seeds)
    return f"mean and standard error over {seeds} seeds" if seeds > 1 else "one seed"


def _predicted(bench: Bench) -> list[dict[str, Any]]:
    """Predicted accuracies on all zoos of classifiers, trained on networks as they are and on moved ones."""
    variants: dict[str, dict[str, Any]] = {"original": {}, "augmented": {"augment_scale": bench.size.augment_scale}}
    return bench.searched("generalization", bench.classifiers(), variants, search="original")


@register_suite("generalization")
def generalization(bench: Bench) -> None:
    """Kendall's tau of predicted accuracies, ReLU and Tanh zoos, original and augmented."""
    found, scale = _predicted(bench), bench.size.augment_scale
    if not bench.zoos:
        found += bench.searched("generalization", {"mixed": bench.classifier_zoo("relu", "tanh")}, {"original": {}}, search="original")
    title = f"Kendall's tau on test networks, {_who(bench)}; augmented: training and test networks moved, factors U[1, {scale:g}]"
    bench.write_scores("generalization", title, found, {"original": "tau", "augmented": f"tau_scale_{scale:g}"})


@register_suite("architectures")
def architectures(bench: Bench) -> None:
    """Kendall's tau on zoos of residual networks, vision transformers and mixers, and of all in one; on networks as they are and moved."""
    zoos = bench.architecture_zoos()
    found = bench.searched("generalization", zoos, {"": {}}, search="")
    furthest = max(bench.size.scales)
    scores = {"original": "tau", f"s={furthest:g}": f"tau_scale_{furthest:g}"}
    title = f"Kendall's tau on test networks, {_who(bench)}; s={furthest:g}: test networks moved, factors U[1, {furthest:g}]"
    bench.write_scores(
        "architectures",
        title,
        [{**row, "variant": variant} for row in found for variant in scores],
        scores,
    )


@register_suite("robustness")
def robustness(bench: Bench) -> None:
    """Kendall's tau against the scales by which test networks were moved, trained on original and on moved networks."""
    from wsgraph.plot import curve_panels
    from wsgraph.plot.styles import SCALES_LABEL

    found, scales = _predicted(bench), bench.size.scales
    head = ["zoo", "trained on", "model", "as they are", *(f"s={scale:g}" for scale in scales)]
    rows = []
    panels: dict[str, dict[str, dict[float, tuple[float, float]]]] = {}
    zoos = list(dict.fromkeys(row["zoo"] for row in found))
    for row in sorted(found, key=lambda row: (zoos.index(row["zoo"]), row["variant"] == "augmented")):
        trained_on = "moved" if row["variant"] == "augmented" else "original"
        taus = {scale: scores_of(row, f"tau_scale_{scale:g}") for scale in scales}
        rows.append([row["zoo"], trained_on, row["model"], *map(bench.cell, [scores_of(row, "tau"), *taus.values()])])
        if row["runs"]:
            curves = panels.setdefault(f"{row['zoo']} zoo, trained on {trained_on} networks", {})
            curves[row["model"]] = {scale: mean_and_error(values) for scale, values in taus.items()}
    title = f"Kendall's tau on test networks moved with factors U[1, s] or flipped, {_who(bench)}"
    bench.write_table("robustness", title, head, rows, {"results": documented(found)})
    bench.write_figure("robustness", curve_panels(panels, x_label=SCALES_LABEL, y_label=on_axis("tau")))


@register_suite("train-size")
def train_size(bench: Bench) -> None:
    """Kendall's tau against the number of training networks."""
    from wsgraph.plot import curve_panels

    zoos = bench.classifiers()
    everything = {name: len(ZooStore(path).dataset("train", target=None)) for name, path in zoos.items()}
    most = min(everything.values())
    # Small sets are passed more often, up to five times: the same epochs would be too few steps to learn from.
    variants: dict[str, dict[str, Any]] = {
        f"{size:,}": {"train_size": size, "epochs": math.ceil(bench.size.epochs * min(5, most / size))}
        for size in bench.size.train_sizes
        if 1.5 * size < most
    }
    found = bench.searched("generalization", zoos, {**variants, "all": {}}, search="all")
    title = f"Kendall's tau on test networks by number of training networks, {_who(bench)}"
    bench.write_scores("train-size", title, found, dict.fromkeys([*variants, "all"], "tau"))
    panels: dict[str, dict[str, dict[float, tuple[float, float]]]] = {}
    for row in found:
        if row["runs"]:
            size = variants.get(row["variant"], {}).get("train_size", everything[row["zoo"]])
            panels.setdefault(f"{row['zoo']} zoo", {}).setdefault(row["model"], {})[size] = mean_and_error(scores_of(row, "tau"))
    bench.write_figure("train-size", curve_panels(panels, x_label="training networks", y_label=on_axis("tau")))


@register_suite("transfer")
def transfer(bench: Bench) -> None:
    """Kendall's tau on zoos of other widths, depths, activations or pictures than that trained on."""
    source, others = bench.transfer_zoos()
    name = next(iter(bench.zoos), "itself")
    trained_on = ZooStore(source).dataset(target=None).spaces
    same = {other: path for other, path in others.items() if all_match(ZooStore(path).dataset(target=None).spaces, trained_on)}
    found = []
    for mixed, readable in ((True, others), (False, same)):
        if able := tuple(label for label in bench.models if model_entry(read_model(label)[0]).mixed == mixed):
            part = replace(bench, models=able)
            found += part.searched("generalization", {name: source}, {"": {}}, search="", test_zoos=readable)
    columns = {name: "tau", **{other: f"tau_on_{other}" for other in others}}
    rows = [
        [row["model"], *(bench.cell(scores_of(row, score)) for score in columns.values())]
        for row in sorted(found, key=lambda row: bench.models.index(row["model"]))
    ]
    title = f"Kendall's tau on test networks of the zoo trained on and of others, {_who(bench)}; -: not readable, or not without training"
    bench.write_table("transfer", title, ["model", *columns], rows, {"source": source.name, "results": documented(found)})


def reads_functions(label: str) -> bool:
    """Whether a model, as :func:`~wsgraph.bench.bench.read_model` reads it, runs the networks on learned probes."""
    name, options = read_model(label)
    return {**model_options(name), **options}.get("probes", 0) != 0  # None stands for as many as suit the networks


def _standardized(zoos: Mapping[str, Path], variants: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Mapping[str, Any]]:
    """Variants whose models read weights divided by their spread, as in publications: those of SIRENs are small. For one architecture."""
    if any(len(ZooStore(path).dataset(target=None).spaces) > 1 for path in zoos.values()):
        return variants
    return {name: {**options, "standardize": True} for name, options in variants.items()}


@register_suite("inr")
def inr(bench: Bench) -> None:
    """Accuracy of classifying SIRENs by their weights: as they are, with signs settled, with phases settled."""
    from wsgraph.plot import bar_panel

    variants: dict[str, dict[str, Any]] = {
        "raw": {},
        "sign": {"canonicalize": ["sign"]},
        "phase": {"canonicalize": ["phase", "sign"]},
    }
    zoos = bench.pictures()
    found = []
    for probed in (False, True):
        if able := tuple(label for label in bench.models if reads_functions(label) == probed):
            # What is probed must stay what it is.
            prepared = variants if probed else _standardized(zoos, variants)
            found += replace(bench, models=able).searched("inr_classification", zoos, prepared, search="phase")
    found.sort(key=lambda row: bench.models.index(row["model"]))
    networks = ", ".join(f"{len(ZooStore(path).dataset(target=None)):,} of {name}" for name, path in zoos.items())
    title = f"Accuracy of classifying SIRENs ({networks}), {_who(bench)}"
    bench.write_scores("inr", title, found, dict.fromkeys(variants, "accuracy"))
    for name in zoos:
        bars = {
            row["model"]: {
                each["variant"]: mean_and_error(scores_of(each, "accuracy"))
                for each in found
                if each["runs"] and (each["zoo"], each["model"]) == (name, row["model"])
            }
            for row in found
        }
        figure = bar_panel(bars, y_label="test accuracy", title=f"SIRENs of {name}, by canonical form of the weights")
        bench.write_figure("inr" if len(zoos) == 1 else f"inr-{name}", figure)


@register_suite("editing")
def editing(bench: Bench) -> None:
    """Error of edited SIRENs by operation, and pictures before and after."""
    from wsgraph.plot import picture_grid

    able = tuple(model for model in bench.models if "equivariant" in model_entry(read_model(model)[0]).tasks)
    if not able:
        raise ValueError(f"Expected models that return weights (got {', '.join(bench.models)}).")
    bench = replace(bench, models=able)
    zoos = bench.pictures()
    operations = {operation: {"operation": operation} for operation in ("dilate", "contrast")}
    found = bench.searched("inr_editing", zoos, _standardized(zoos, operations), search="dilate")  # weights out read no probes
    title = f"Pixel MSE of edited pictures of SIRENs, {_who(bench)}"
    bench.write_scores("editing", title, found, dict.fromkeys(operations, "mse"), {"left as they are": "mse_unedited"}, places=5)
    for (name, path), operation in itertools.product(zoos.items(), operations):
        edited = [run for row in found if (row["zoo"], row["variant"]) == (name, operation) for run in row["runs"]]
        if not edited:
            continue
        best = min(edited, key=lambda run: math.inf if run["metrics"]["mse"] is None else run["metrics"]["mse"])
        editor = best["cell"].train(bench.cells).model
        batch = ZooStore(path).dataset("test", target=None).batch(slice(0, 10), lambda thetas: thetas.float())
        rows = before_and_after(editor, batch)
        title = f"{operation}: SIRENs of {name} edited by {best['cell'].options['model']} through their weights"
        bench.write_figure(f"editing-{operation}" if len(zoos) == 1 else f"editing-{name}-{operation}", picture_grid(rows, title=title))
