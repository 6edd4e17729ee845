"""The suite of heritage: whether parents of fine-tuned, pruned, quantised, ... networks are found behind random symmetries."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wsgraph.bench.bench import Bench, register_suite
from wsgraph.bench.provenance_baselines import BaselineContext, list_provenance_baselines, provenance_baseline
from wsgraph.bench.provenance_scores import (
    false_alarms,
    family_recall,
    forest_f1,
    nearest_networks,
    parent_accuracy,
    parent_accuracy_by,
    parent_recall,
    trees_of,
)
from wsgraph.data import ZooStore
from wsgraph.data.generators.lineages import LineageKind, lineage_kind
from wsgraph.data.random import CounterRandom
from wsgraph.plot import bar_panel
from wsgraph.provenance import lineage
from wsgraph.provenance.merging import merge
from wsgraph.search import Index

__all__: list[str] = []

_OURS = "lineage"
_WANTED = 10
_THRESHOLDS = 200
_SHARES = {
    "parents": "parents",
    "directed_f1": "directed F1",
    "undirected_f1": "undirected F1",
    "parent_at_1": "parent @1",
    "parent_at_10": f"parent @{_WANTED}",
    "relative_at_1": "relative @1",
    "false_alarms": "false alarms",
}


@register_suite("provenance")
def provenance(bench: Bench) -> None:
    """Parents, relatives and false alarms among networks that random permutations, signs and factors hide, against simpler distances."""
    zoos = {name: ZooStore(path) for name, path in bench.lineage_zoos().items()}
    results = [each for name, store in zoos.items() for each in _of_zoo(name, store, _kind_of(store))]
    rows = [[each["zoo"], each["method"], *(_share(each[key]) for key in _SHARES), f"{each['seconds']:.1f}"] for each in results]
    title = (
        "Heritage of networks that were moved by random elements (factors 0.001 to 1000): the share of networks with a parent whose parent "
        "is named, agreement of the edges, whether the parent or any relative is among the nearest, and the share of networks without a "
        "parent that are given one; baselines name the nearest network, below the threshold at which their F1 is best, which they are told"
    )
    bench.write_table("provenance", title, ["zoo", "method", *_SHARES.values(), "s"], rows, {"results": results})
    _by_derivation(bench, results)
    _write_merged(bench, zoos)


def _kind_of(store: ZooStore) -> LineageKind:
    return lineage_kind(str(store.info["configuration"]["kind"]))


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _of_zoo(name: str, store: ZooStore, kind: LineageKind) -> list[dict[str, Any]]:
    """Scores of all methods on a zoo."""
    parents, derivations = store.column("parent"), store.column("derivation")
    results = []
    for method in list_provenance_baselines():
        started = time.perf_counter()
        context = BaselineContext(kind.inputs, kind.module)
        distances = provenance_baseline(method)(store.space, store.read(torch.arange(len(store))), context).numpy()
        seconds = time.perf_counter() - started
        predicted = nearest_networks(distances, _best_threshold(distances, parents))
        results.append(_scores(name, method, seconds, predicted, distances, parents, derivations))
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:  # so that its time is that of a new index
        found = lineage(Index(store, Path(folder) / "index"))
    seconds = time.perf_counter() - started
    distances = np.full((len(store), len(store)), math.inf)
    for first, second, distance in found.related:
        distances[first, second] = distances[second, first] = distance
    results.append(_scores(name, _OURS, seconds, found.parents.numpy(), distances, parents, derivations))
    return results


def _best_threshold(distances: np.ndarray, parents: np.ndarray) -> float:
    """The distance below which the nearest network is called the parent, such that the edges agree best with the truth."""
    nearest = np.array(distances, dtype=float)
    np.fill_diagonal(nearest, math.inf)
    levels = np.quantile(nearest.min(1), np.linspace(0, 1, _THRESHOLDS))
    return max((*levels, math.inf), key=lambda level: forest_f1(nearest_networks(distances, float(level)), parents))


def _scores(
    zoo: str, method: str, seconds: float, predicted: np.ndarray, distances: np.ndarray, parents: np.ndarray, derivations: np.ndarray
) -> dict[str, Any]:
    of_roots = np.where((parents >= 0) & (parents[parents] < 0), parents, -1)
    return {
        "zoo": zoo,
        "method": method,
        "seconds": seconds,
        "parents": parent_accuracy(predicted, parents),
        "parents_of_children": parent_accuracy(predicted, of_roots),
        "directed_f1": forest_f1(predicted, parents),
        "undirected_f1": forest_f1(predicted, parents, directed=False),
        "parent_at_1": parent_recall(distances, parents),
        "parent_at_10": parent_recall(distances, parents, _WANTED),
        "relative_at_1": family_recall(distances, trees_of(parents)),
        "false_alarms": false_alarms(predicted, parents),
        "parents_by_derivation": parent_accuracy_by(predicted, parents, derivations),
        "parents_of_children_by_derivation": parent_accuracy_by(predicted, of_roots, derivations),
        "networks": len(parents),
    }


def _by_derivation(bench: Bench, results: list[dict[str, Any]]) -> None:
    """A table of parents by how networks were made, and a figure of it for every zoo."""
    names = list(dict.fromkeys(name for each in results for name in each["parents_by_derivation"]))
    kinds = ("parents_by_derivation", "parents_of_children_by_derivation")
    rows = []
    for each in results:
        pairs = [[_share(each[kind].get(name, math.nan)) for kind in kinds] for name in names]
        rows.append([each["zoo"], each["method"], *(f"{every} ({of_roots})" for every, of_roots in pairs)])
    title = (
        "Share of networks whose parent is named, by how they were made from it (in brackets: those made from roots or distilled networks)"
    )
    bench.write_table("provenance-derivations", title, ["zoo", "method", *(name.replace("_", " ") for name in names)], rows, {})
    for zoo in dict.fromkeys(each["zoo"] for each in results):
        own = {each["method"].replace("_", " "): each["parents_by_derivation"] for each in results if each["zoo"] == zoo}
        bars = {name.replace("_", " "): {method: shares.get(name, math.nan) for method, shares in own.items()} for name in names}
        bench.write_figure(f"provenance-{zoo}", bar_panel(bars, y_label="share of parents named", title=f"Families of {zoo} networks"))


def _write_merged(bench: Bench, zoos: Mapping[str, ZooStore]) -> None:
    """A table of what becomes of a network and its child, which are averaged half and half, as they are and aligned."""
    rows, results = [], []
    for name, store in zoos.items():
        for each in _merged(name, store):
            results.append(each)
            rows.append([name, each["derivation"].replace("_", " "), str(each["pairs"]), *(f"{each[key]:.3f}" for key in _ENDS)])
    title = (
        "Networks and their children, moved by random elements and averaged half and half: the mean score of the networks (accuracy, or "
        "PSNR in dB), of the averages of networks as they are, and after alignment by weights, with statistics taken anew"
    )
    bench.write_table("provenance-merging", title, ["zoo", "child", "pairs", *_ENDS.values()], rows, {"results": results})


_ENDS = {"ends": "networks", "naive": "averaged as they are", "merged": "aligned"}
_MERGED = 20  # pairs of every derivation


def _merged(name: str, store: ZooStore) -> list[dict[str, Any]]:
    """Mean scores of averages of networks with those of their children that do the same, by how these were made."""
    kind, random = _kind_of(store), CounterRandom(int(store.info["configuration"]["seed"]))
    parents, tasks, derivations = (store.column(column) for column in ("parent", "task", "derivation"))

    def score(thetas: list[torch.Tensor], rows: np.ndarray) -> float:
        # The last column is the one that is larger where networks are better.
        scores = list(kind.scores(random, torch.stack(thetas).float(), torch.from_numpy(tasks[rows])).values())[-1]
        return float(scores.double().mean())

    results = []
    for derivation in dict.fromkeys(derivations[parents >= 0].tolist()):
        children = np.flatnonzero((derivations == derivation) & (parents >= 0) & (tasks == tasks[parents]))[:_MERGED]
        if not len(children):
            continue
        pairs = [store.read(torch.tensor([parents[child], child])) for child in children]
        naive = [pair.mean(0) for pair in pairs]
        merged = [merge(store.space, pair, align="weights", recalibrate=kind.inputs).theta for pair in pairs]
        ends = (score([pair[0] for pair in pairs], children) + score([pair[1] for pair in pairs], children)) / 2
        scores = {"ends": ends, "naive": score(naive, children), "merged": score(merged, children)}
        results.append({"zoo": name, "derivation": derivation, "pairs": len(children), **scores})
    return results
