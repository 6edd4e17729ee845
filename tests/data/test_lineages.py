"""Zoos of families: what derivations do, what is recorded, that functions survive the hiding, resuming."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.data.blobs import blobs
from wsgraph.data import ClassificationData, CounterRandom, HyperparameterRanges, ZooStore
from wsgraph.data.generators.lineages import (
    DerivationContext,
    LineageKind,
    derivation_named,
    lineage_kind,
    make_lineage_zoo,
    register_derivation,
    zoo,
)

KINDS = ("cnn", "resnet", "siren")
FAST: dict[str, Any] = {"ranges": {"steps": (4, 8)}, "progress": False}
BLOBS = blobs()
PICTURES = ClassificationData(BLOBS.images.tanh(), BLOBS.labels, BLOBS.test_images.tanh(), BLOBS.test_labels)
LEARNED = ("weight", "bias", "scale")


def _context(kind: LineageKind, count: int = 3, steps: int = 6, begin: int = 7) -> DerivationContext:
    random, networks = CounterRandom(0), torch.arange(begin, begin + count)
    drawn = {**kind.ranges.sample(random, networks), "steps": torch.full((count,), steps)}
    return DerivationContext(kind, random, networks, kind.first_tasks(random, torch.arange(count)), drawn, lambda steps: None)


def _roots(kind: LineageKind, steps: int = 6) -> Tensor:
    context = _context(kind, steps=steps, begin=0)
    return context.train(context.initial())


def _made(name: str, kind: LineageKind, parents: Tensor, **options: Any) -> Tensor:
    return derivation_named(name).make(kind.space, parents, _context(kind, **options))


def _by_role(kind: LineageKind, thetas: Tensor) -> dict[str, Tensor]:
    return {param.name: thetas[:, kind.space.slices[param.name]] for param in kind.space.params}


def _of_weights(kind: LineageKind, thetas: Tensor) -> list[Tensor]:
    return [thetas[:, kind.space.slices[param.name]] for param in kind.space.params if param.role == "weight"]


# == Derivations ==


@pytest.mark.parametrize("name", KINDS)
def test_pruning_leaves_half_of_every_weight(name: str) -> None:
    kind = lineage_kind(name, PICTURES)
    roots = _roots(kind)
    pruned, tuned = (_made(each, kind, roots) for each in ("pruned", "pruned_fine_tuned"))
    for before, now, later in zip(*(_of_weights(kind, thetas) for thetas in (roots, pruned, tuned)), strict=True):
        zeros = now == 0
        assert (zeros.sum(1) == round(now.shape[1] / 2)).all()
        assert torch.equal(now[~zeros], before[~zeros])
        largest_pruned = before.abs().where(zeros, torch.zeros(())).amax(1)
        assert (largest_pruned <= before.abs().where(~zeros, torch.full((), torch.inf)).amin(1)).all()
        assert (later[zeros] == 0).all()
        assert (later[~zeros] != before[~zeros]).float().mean() > 0.5
    for param, now in _by_role(kind, pruned).items():
        if kind.space.param(param).role != "weight":
            assert torch.equal(now, _by_role(kind, roots)[param])


@pytest.mark.parametrize("name", KINDS)
def test_quantising_leaves_at_most_255_levels(name: str) -> None:
    kind = lineage_kind(name, PICTURES)
    roots = _roots(kind)
    quantised = _made("quantised", kind, roots)
    for before, now in zip(_of_weights(kind, roots), _of_weights(kind, quantised), strict=True):
        step = before.abs().amax(1, keepdim=True) / 127
        torch.testing.assert_close(now / step, (now / step).round(), rtol=0, atol=1e-4)
        assert ((now - before).abs() <= 0.5001 * step).all()
        assert all(len(row.unique()) <= 255 for row in now)
    assert torch.equal(_made("quantised", kind, torch.zeros_like(roots)), torch.zeros_like(roots))


@pytest.mark.parametrize("name", KINDS)
def test_noise_is_a_tenth_of_every_standard_deviation(name: str) -> None:
    kind = lineage_kind(name, PICTURES)
    roots = _roots(kind)
    noisy = _made("noisy", kind, roots)
    for param in kind.space.params:
        before, now = (thetas[:, kind.space.slices[param.name]] for thetas in (roots, noisy))
        if param.role not in LEARNED:
            assert torch.equal(now, before)
        elif param.size > 400:
            torch.testing.assert_close((now - before).std(1), 0.1 * before.std(1), rtol=0.2, atol=0)
    assert not torch.equal(noisy[0] - roots[0], noisy[1] - roots[1])


@pytest.mark.parametrize("name", KINDS)
def test_training_goes_on_from_the_parents(name: str) -> None:
    kind = lineage_kind(name, PICTURES)
    roots = _roots(kind, steps=40)
    random, tasks = CounterRandom(0), _context(kind).tasks
    longer = _made("trained_longer", kind, roots, steps=1)
    distances = (longer - roots).norm(dim=1) / roots.norm(dim=1)
    assert ((distances > 0) & (distances < 0.1)).all()
    distilled = _made("distilled", kind, roots, steps=1)
    assert ((distilled - roots).norm(dim=1) > 0.5 * roots.norm(dim=1)).all()
    own = _made("trained_longer", kind, roots, steps=60)
    score = next(iter(kind.scores(random, roots, tasks)))
    better = -1 if score == "loss" else 1
    before, after = (better * kind.scores(random, thetas, tasks)[score] for thetas in (roots, own))
    assert after.mean() >= before.mean() - 0.05


def test_fine_tuning_permutes_classes() -> None:
    kind = lineage_kind("cnn", BLOBS)
    random, networks = CounterRandom(0), torch.arange(20, 26)
    tasks = kind.other_tasks(random, networks, torch.zeros_like(networks))
    assert (tasks != 0).all()
    labels = kind.targets(random, tasks)
    assert torch.equal(kind.targets(random, torch.zeros(1, dtype=torch.long))[0], BLOBS.labels)
    for row in labels:
        pairs = {(int(old), int(new)) for old, new in zip(BLOBS.labels, row, strict=True)}
        assert len(pairs) == len({new for _, new in pairs}) == 3
    assert len({tuple(row.tolist()) for row in labels}) > 2
    derivation = derivation_named("fine_tuned")
    assert derivation.new_task
    context = _context(kind, count=6, steps=120, begin=20)
    parents = context.train(context.initial())
    moved = DerivationContext(kind, random, networks, tasks, context.hyperparameters, context.advance)
    children = derivation.make(kind.space, parents, moved)
    right = kind.scores(random, children, tasks)["test_accuracy"].mean()
    assert right > kind.scores(random, children, 0 * tasks)["test_accuracy"].mean() + 0.1
    assert right > kind.scores(random, parents, tasks)["test_accuracy"].mean() + 0.1


def test_other_pictures_are_other_pictures() -> None:
    kind = lineage_kind("siren", PICTURES)
    random, networks = CounterRandom(0), torch.arange(200)
    own = kind.first_tasks(random, networks[:60])
    assert len(own.unique()) == 60
    tasks = torch.arange(200) % 60
    other = kind.other_tasks(random, networks, tasks)
    assert (other != tasks).all()
    assert set(other.tolist()) <= set(range(60))


def test_distilling_matches_answers() -> None:
    kind = lineage_kind("cnn", BLOBS)
    answers = kind.answers(_roots(kind))
    assert answers.shape == (3, 40, 3)
    torch.testing.assert_close(answers.sum(2), torch.ones(3, 40))
    siren = lineage_kind("siren", PICTURES)
    roots = _roots(siren, steps=100)
    distilled = _made("distilled", siren, roots, steps=300)
    error = (siren.answers(distilled) - siren.answers(roots)).square().mean((1, 2))
    assert (error < 1e-3).all()


# == Zoos ==


@pytest.mark.parametrize("name", KINDS)
def test_what_is_recorded_is_true(name: str, tmp_path: Path) -> None:
    store = make_lineage_zoo(tmp_path / "zoo", name, 4, strangers=3, grandchildren=3, data=PICTURES, **FAST)
    assert [file.name for file in tmp_path.iterdir()] == ["zoo"]
    assert len(store) == 4 * 11 + 3
    assert store.thetas.dtype == torch.float32
    table = store.table
    assert {"family", "parent", "derivation", "teacher", "depth", "steps", "task"} < set(table)
    family, parent, teacher, derivation, depth = (table[key] for key in ("family", "parent", "teacher", "derivation", "depth"))
    assert np.array_equal(np.bincount(family), [11] * 4 + [1] * 3)
    assert np.array_equal(parent < 0, (derivation == "root") | (derivation == "distilled"))
    assert np.array_equal(teacher >= 0, derivation == "distilled")
    assert (derivation == "root").sum() == 7
    child = parent >= 0
    assert np.array_equal(family[child], family[parent[child]])
    assert np.array_equal(depth[child], depth[parent[child]] + 1)
    assert (depth[~child] == 0).all()
    assert np.array_equal(family[teacher >= 0], family[teacher[teacher >= 0]])
    more = table["steps"][child] - table["steps"][parent[child]]
    trained = np.isin(derivation[child], ["fine_tuned", "trained_longer", "pruned_fine_tuned"])
    assert (more[trained] > 0).all()
    assert (more[~trained] == 0).all()
    own = table["task"][child] != table["task"][parent[child]]
    assert np.array_equal(own, derivation[child] == "fine_tuned")
    for number in range(4):  # the root has one child of every derivation, but of what comes after another; others have the rest
        root = np.flatnonzero((family == number) & (derivation == "root"))[0]
        of_root = derivation[(parent == root) | (teacher == root)]
        assert sorted([*of_root, "pruned_fine_tuned"]) == sorted(zoo._DERIVATIONS)
        (pruned,) = np.flatnonzero((parent == root) & (derivation == "pruned"))
        assert "pruned_fine_tuned" in derivation[parent == pruned]
    assert depth.max() >= 2
    again = derivation[child & (depth > 1)] == derivation[parent[child & (depth > 1)]]
    assert not again.any()
    assert not np.array_equal(np.sort(family), family)


def _made_zoo(monkeypatch: pytest.MonkeyPatch, path: Path, name: str, *, hidden: bool = True, **options: Any) -> ZooStore:
    with monkeypatch.context() as patch:
        if not hidden:
            patch.setattr(zoo, "_hidden", lambda space, thetas, seed: thetas)
        return make_lineage_zoo(path, name, 2, data=PICTURES, **{**FAST, **options})


@pytest.mark.parametrize("name", KINDS)
def test_hiding_preserves_functions(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = lineage_kind(name, PICTURES)
    hidden = _made_zoo(monkeypatch, tmp_path / "hidden", name)
    bare = _made_zoo(monkeypatch, tmp_path / "bare", name, hidden=False)
    assert hidden.column("derivation").tolist() == bare.column("derivation").tolist()
    outputs, expected = (kind.space.evaluate(store.thetas, kind.inputs) for store in (hidden, bare))
    torch.testing.assert_close(outputs, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    scores = kind.scores(CounterRandom(0), hidden.thetas, torch.from_numpy(hidden.column("task")))
    for key, values in scores.items():
        torch.testing.assert_close(values, torch.from_numpy(hidden.column(key)), rtol=1e-2, atol=0.051)
    assert ((hidden.thetas - bare.thetas).norm(dim=1) > 0.5 * bare.thetas.norm(dim=1)).all()
    for param in kind.space.params:
        if param.role == "buffer":
            assert (hidden.thetas[:, kind.space.slices[param.name]] == 0).all()


def test_factors_span_six_decades(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, bare = (_made_zoo(monkeypatch, tmp_path / str(flag), "cnn", hidden=flag) for flag in (True, False))
    bias = hidden.space.slices["layers.0.weight"]
    ratios = hidden.thetas[:, bias].view(len(hidden), 16, -1).norm(dim=2).sort(1).values.log10()
    assert ratios.max() > 2
    assert ratios.min() < -2
    assert float(bare.thetas[:, bias].view(len(bare), 16, -1).norm(dim=2).log10().min()) > -2


def test_the_same_seed_gives_the_same_zoo(tmp_path: Path) -> None:
    options = {"data": PICTURES, **FAST}
    first, same, other = (
        make_lineage_zoo(tmp_path / name, "siren", 3, seed=seed, **options) for name, seed in (("a", 4), ("b", 4), ("c", 5))
    )
    assert torch.equal(first.thetas, same.thetas)
    assert all(np.array_equal(column, same.table[name]) for name, column in first.table.items())
    assert not torch.equal(first.thetas, other.thetas)
    assert first.column("derivation").tolist() != other.column("derivation").tolist()


def test_an_interrupted_run_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"data": PICTURES, "population": 2, "workers": 1, **FAST}
    whole = make_lineage_zoo(tmp_path / "whole", "siren", 4, **options)
    original, calls = zoo._Lineages.train, list[Tensor]()

    def stop(self: Any, networks: Tensor, **keywords: Any) -> Any:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(networks)
        return original(self, networks, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(zoo._Lineages, "train", stop)
        with pytest.raises(KeyboardInterrupt):
            make_lineage_zoo(tmp_path / "zoo", "siren", 4, **options)
    assert not (tmp_path / "zoo").exists()
    assert len(ZooStore(tmp_path / "zoo.parts").shards) == 2

    def count(self: Any, networks: Tensor, **keywords: Any) -> Any:
        calls.append(networks)
        return original(self, networks, **keywords)

    calls.clear()
    with monkeypatch.context() as patch:
        patch.setattr(zoo._Lineages, "train", count)
        resumed = make_lineage_zoo(tmp_path / "zoo", "siren", 4, **options)
        assert len(calls) == 2
        again = make_lineage_zoo(tmp_path / "zoo", "siren", 4, **options)
        assert len(calls) == 2
    assert not (tmp_path / "zoo.parts").exists()
    assert torch.equal(resumed.thetas, whole.thetas)
    assert torch.equal(again.thetas, whole.thetas)
    assert resumed.table["parent"].tolist() == whole.table["parent"].tolist()


def test_a_write_that_fails_leaves_nothing_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Tensor:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(zoo, "_hidden", fail)
        with pytest.raises(OSError, match="No space left"):
            make_lineage_zoo(tmp_path / "zoo", "siren", 2, data=PICTURES, **FAST)
    assert [file.name for file in tmp_path.iterdir()] == ["zoo.parts"]
    assert len(make_lineage_zoo(tmp_path / "zoo", "siren", 2, data=PICTURES, **FAST)) == 20


def test_networks_that_diverge_are_left_out(tmp_path: Path) -> None:
    ranges = {"steps": (30, 40), "learning_rate": (1e-2, 1e18)}
    store = make_lineage_zoo(tmp_path / "zoo", "siren", 6, data=PICTURES, ranges=ranges, progress=False)
    parent, derivation = store.column("parent"), store.column("derivation")
    assert 0 < store.info["dropped_non_finite"] < 72
    assert np.array_equal(parent < 0, np.isin(derivation, ["root", "distilled"]))
    assert np.array_equal(store.column("family")[parent >= 0], store.column("family")[parent[parent >= 0]])


def test_own_derivations(tmp_path: Path) -> None:
    name = "negated"

    @register_derivation(name)
    def negated(space: Any, parents: Tensor, context: DerivationContext) -> Tensor:
        return -parents

    store = make_lineage_zoo(tmp_path / "zoo", "siren", 2, data=PICTURES, derivations=[name], grandchildren=2, strangers=0, **FAST)
    assert sorted(store.column("derivation")) == [name] * 6 + ["root"] * 2


# == What is refused ==


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Unknown kind of networks 'cnm'.*Did you mean 'cnn'"):
        make_lineage_zoo(tmp_path / "zoo", "cnm", 2)
    with pytest.raises(ValueError, match=r"Unknown derivation 'prune'"):
        make_lineage_zoo(tmp_path / "zoo", "siren", 2, derivations=["prune"])
    negative: dict[str, Any] = {"strangers": -1, "grandchildren": -1}
    for name, value in negative.items():
        with pytest.raises(ValueError, match=rf"Expected '{name}' to be an integer of at least 0 \(got -1\)"):
            make_lineage_zoo(tmp_path / "zoo", "siren", 2, **{**FAST, name: value})
    with pytest.raises(ValueError, match=r"Expected 'families' to be a positive integer \(got 0\)"):
        make_lineage_zoo(tmp_path / "zoo", "siren", 0)
    with pytest.raises(ValueError, match=r"Expected a derivation that hands down weights for 1 'grandchildren' \(got \['distilled'\]\)"):
        make_lineage_zoo(tmp_path / "zoo", "siren", 2, derivations=["distilled"])
    with pytest.raises(ValueError, match=r"Expected images of shape \[n, C, H, W\] \(got \[40, 25\]\)"):
        lineage_kind("cnn", BLOBS._replace(images=BLOBS.images.flatten(1)))
    assert not list(tmp_path.iterdir())


def test_another_zoo_at_the_path_is_refused(tmp_path: Path) -> None:
    options = {"data": PICTURES, **FAST}
    store = make_lineage_zoo(tmp_path / "zoo", "siren", 2, **options)
    with pytest.raises(ValueError, match=r"was made with another configuration \(networks: 4 there, 6 now; families: 2 there, 3 now\)"):
        make_lineage_zoo(tmp_path / "zoo", "siren", 3, **options)
    ranges = HyperparameterRanges(steps=(4, 8))
    with pytest.raises(ValueError, match="another configuration"):
        make_lineage_zoo(tmp_path / "zoo", "siren", 2, **{**options, "ranges": ranges})
    store.shards[0].file.unlink()
    with pytest.warns(UserWarning, match="is gone"), pytest.raises(ValueError, match=r"lost networks\. Delete it to make it anew"):
        make_lineage_zoo(tmp_path / "zoo", "siren", 2, **options)
