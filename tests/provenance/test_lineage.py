"""Who was made from whom."""

import json
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import torch
from torch import Tensor

from wsgraph import WeightSpace
from wsgraph.data import ZooStore
from wsgraph.plot import lineage_tree
from wsgraph.provenance import lineage
from wsgraph.search import Index

SPACE = WeightSpace.mlp([8, 24, 24, 4])
FAMILIES = 12


def _families(seed: int = 0) -> tuple[Tensor, Tensor, list[str]]:
    """Roots with noisy, pruned and quantised children, a grandchild, and strangers, all moved: networks, parents and how they were made."""
    generator = torch.Generator().manual_seed(seed)
    rows, parents, made = [], [], []

    def add(theta: Tensor, parent: int, how: str) -> int:
        rows.append(theta)
        parents.append(parent)
        made.append(how)
        return len(rows) - 1

    for root in SPACE.sample(FAMILIES, generator=generator):
        first = add(root, -1, "root")
        for _ in range(2):
            add(root * (1 + 0.2 * torch.randn(root.shape, generator=generator)), first, "noisy")
        pruned = root.clone()
        for param in SPACE.params:
            part = pruned[SPACE.slices[param.name]]
            if param.role == "weight":
                part[part.abs() < part.abs().median()] = 0
        second = add(pruned, first, "pruned")
        add(pruned * (1 + 0.2 * torch.randn(root.shape, generator=generator)), second, "pruned, noisy")
    for theta in SPACE.sample(30, generator=generator):
        add(theta, -1, "root")
    order = torch.randperm(len(rows), generator=generator)
    place = order.argsort()
    thetas = SPACE.act(SPACE.sample_symmetry(len(rows), (1e-3, 1e3), generator=generator), torch.stack(rows)[order])
    of = torch.tensor(parents)[order]
    return thetas, torch.where(of < 0, -1, place[of.clamp(min=0)]), [made[i] for i in order.tolist()]


def test_parents_are_found_and_strangers_have_none(tmp_path: Path) -> None:
    thetas, parents, made = _families()
    found = lineage(Index(ZooStore.create(tmp_path / "zoo", SPACE, thetas, {"made": made})))
    right = found.parents == parents
    assert right[parents >= 0].double().mean() >= 0.95
    assert (found.parents[parents < 0] == -1).double().mean() >= 0.95
    assert len(found.families) == FAMILIES
    graph = found.graph()
    assert nx.is_forest(graph)
    assert graph.number_of_edges() == int((found.parents >= 0).sum())
    pruned = [each for each, how in zip(found.descents, made, strict=True) if how == "pruned" and each.parent >= 0]
    assert all("zeros" in each.evidence and each.is_directed for each in pruned)
    strangers = [each for each in found.descents if each.parent < 0 and each.nearest >= 0]
    assert all(each.distance > 0.1 for each in strangers)
    document = json.loads(json.dumps(found.document()))
    assert document["false_alarms"] == 0.01
    assert len(document["networks"]) == len(thetas)
    assert str(found).startswith(f"{len(thetas)} networks: {FAMILIES} families")


def test_layers_that_were_kept_and_an_order(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    thetas = SPACE.sample(30, generator=generator)
    last = SPACE.slices["layers.2.weight"]
    thetas[1] = thetas[0]
    thetas[1, last] += 0.2 * torch.randn(last.stop - last.start, generator=generator)
    table = {"steps": [100, 50, *[10] * 28], "name": ["x"] * 30}
    index = Index(ZooStore.create(tmp_path / "zoo", SPACE, thetas, table))
    found = lineage(index, order="steps")
    assert found.parents[:2].tolist() == [1, -1]
    descent = found.descents[0]
    assert "training length" in descent.evidence
    assert descent.is_directed
    assert "layers.2.weight" not in descent.kept
    assert {"layers.0.weight", "layers.1.weight"} <= set(descent.kept)
    assert sorted(lineage(index).families[0]) == [0, 1]
    with pytest.raises(ValueError, match="column 'name' to hold numbers"):
        lineage(index, order="name")
    with pytest.raises(ValueError, match="no column 'step'"):
        lineage(index, order="step")
    with pytest.raises(ValueError, match="'false_alarms' to be a share"):
        lineage(index, false_alarms=0)


def test_small_and_mixed_zoos(tmp_path: Path) -> None:
    single = lineage(Index(ZooStore.create(tmp_path / "one", SPACE, SPACE.sample(1), {})))
    assert single.parents.tolist() == [-1]
    assert single.document()["networks"][0]["distance"] is None
    other = WeightSpace.mlp([4, 12, 2])
    with ZooStore.writing(tmp_path / "two") as zoo:
        for space in (SPACE, other):
            thetas = space.sample(20, generator=torch.Generator().manual_seed(0))
            thetas[1] = thetas[0] * 1.01
            zoo.append(space, thetas, {})
    found = lineage(Index(zoo))
    assert len(found.descents) == 40
    assert len(found.families) == 2
    assert len(found.thresholds) == 2


def test_the_figure(tmp_path: Path) -> None:
    thetas, _, made = _families()
    found = lineage(Index(ZooStore.create(tmp_path / "zoo", SPACE, thetas, {})))
    graph = found.graph()
    numbers = lineage_tree(graph, tmp_path / "numbers.png", values=np.arange(len(thetas)) / 10, label="test_accuracy")
    assert (tmp_path / "numbers.png").stat().st_size > 10_000
    axes = numbers.axes[0]
    assert len(axes.get_lines()) == graph.number_of_edges()
    assert len(np.asarray(axes.collections[0].get_offsets())) == len(thetas)
    assert numbers.axes[1].get_ylabel() == "test accuracy"
    for line in axes.get_lines():
        top, bottom = np.asarray(line.get_ydata(), dtype=float)
        assert top > bottom
    texts = lineage_tree(graph, values=np.array(made), label="made")
    legend = texts.axes[0].get_legend()
    assert legend is not None
    assert {text.get_text() for text in legend.get_texts()} == set(made)
    with pytest.raises(ValueError, match="at least one network"):
        lineage_tree(nx.DiGraph())
