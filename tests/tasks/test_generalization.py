import csv
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wsgraph import WeightSpace
from wsgraph.data import ZooStore
from wsgraph.data.transforms import RandomSymmetry, WeightNoise
from wsgraph.files import prepare_folder
from wsgraph.nn import list_models
from wsgraph.scores import SCORES
from wsgraph.tasks import Generalization, Result, list_tasks, register_task, run, run_seeds, training
from wsgraph.tasks.result import mean_and_error

SMALL: dict[str, dict[str, Any]] = {
    "monomial_gnn": {"channels": 8, "rounds": 1},
    "neural_graph": {"channels": 8, "layers": 1},
    "monomial": {"channels": (4, 2), "hidden": 32},
    "statnn": {"hidden": 32},
}


def make_store(path: Path, activation: str = "relu", networks: int = 200) -> ZooStore:
    """Random networks whose target is a function of their last bias: easy to learn, and unchanged by the group."""
    space = WeightSpace.mlp([2, 6, 1], activation)
    generator = torch.Generator().manual_seed(0)
    thetas = space.sample(networks, generator=generator)
    target = torch.sigmoid(5 * space.unflatten(thetas)["layers.1.bias"][:, 0])
    split = ["train"] * (networks // 2) + ["val"] * (networks // 4) + ["test"] * (networks - networks // 2 - networks // 4)
    return ZooStore.create(path, space, thetas, {"test_accuracy": target, "split": split})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ZooStore:
    return make_store(tmp_path_factory.mktemp("zoos") / "relu")


def train(store: ZooStore | Path | str, output: Path, model: str = "statnn", **options: Any) -> Result:
    options = {"epochs": 2, "batch_size": 32, "progress": False, "intervals": 0, "model_options": SMALL.get(model, {})} | options
    return run("generalization", zoo=store, model=model, output=output, **options)


def same(first: Result, second: Result) -> bool:
    keys = [key for key in first.metrics if key.startswith(("tau", "r2"))]
    return all(str(first.metrics[key]) == str(second.metrics[key]) for key in keys) and all(
        torch.equal(a, b) for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True)
    )


@pytest.mark.parametrize("model", list_models())
def test_every_model_trains_and_is_scored(store: ZooStore, tmp_path: Path, model: str) -> None:
    result = train(store, tmp_path / "run", model, scales=[1, 100])
    expected = {f"{score}{suffix}" for score in ("tau", "r2") for suffix in ("", "_scale_1", "_scale_100")}
    assert set(result.metrics) == expected | {"parameters", "peak_memory_mb", "seconds_per_epoch", "best_epoch", "validation_loss"}
    assert all(isinstance(value, float) for value in result.metrics.values())
    assert all(math.isfinite(value) for value in result.metrics.values())
    assert not result.model.training
    saved = json.loads((tmp_path / "run" / "result.json").read_text())
    assert saved["metrics"]["tau"] == result.metrics["tau"]
    assert saved["config"]["networks"] == {"train": 100, "val": 50, "test": 50}
    assert (tmp_path / "run" / "best.ckpt").exists()
    assert "val_tau" in (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0]


def test_training_learns_and_invariant_models_stay_flat(store: ZooStore, tmp_path: Path) -> None:
    invariant = train(store, tmp_path / "a", "monomial_gnn", epochs=20, scales=[1, 1e4], learning_rate=1e-2)
    assert invariant.metrics["tau"] > 0.5
    assert abs(invariant.metrics["tau_scale_10000"] - invariant.metrics["tau"]) < 1e-4
    baseline = train(store, tmp_path / "b", "statnn", epochs=20, scales=[1, 1e4], learning_rate=1e-2)
    assert baseline.metrics["tau"] > 0.3
    assert abs(baseline.metrics["tau_scale_1"] - baseline.metrics["tau"]) < 1e-4  # scale 1 is a permutation
    assert baseline.metrics["tau_scale_10000"] < baseline.metrics["tau"] - 0.1


def test_signs_are_flipped_for_odd_activations(tmp_path: Path) -> None:
    store = make_store(tmp_path / "tanh", "tanh")
    invariant = train(store, tmp_path / "a", "monomial", scales=[1])
    assert invariant.metrics["tau_scale_1"] == pytest.approx(invariant.metrics["tau"], abs=1e-4)
    baseline = train(store, tmp_path / "b", "statnn", scales=[1])
    assert baseline.metrics["tau_scale_1"] != baseline.metrics["tau"]


def test_seeds_act_and_repeat(store: ZooStore, tmp_path: Path) -> None:
    first, again, other = (train(store, tmp_path / name, "monomial_gnn", seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert same(first, again)
    assert not same(first, other)


def test_global_random_state_is_left_alone(store: ZooStore, tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(store, tmp_path / "run")
    assert torch.equal(torch.rand(3), expected)


def test_zoo_may_be_a_path(store: ZooStore, tmp_path: Path) -> None:
    assert same(train(str(store.path), tmp_path / "a"), train(store, tmp_path / "b"))


def interrupt(store: ZooStore, folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    """Train until the third epoch's validation, then fail."""
    original = training.Objective.on_validation_epoch_end

    def stop(self: training.Objective) -> None:
        original(self)
        if self.trainer.current_epoch == 2:
            raise RuntimeError("the machine went away")

    monkeypatch.setattr(training.Objective, "on_validation_epoch_end", stop)
    with pytest.raises(RuntimeError, match="went away"):
        train(store, folder, **options)
    monkeypatch.setattr(training.Objective, "on_validation_epoch_end", original)


def logged_epochs(*logs: Path) -> list[int]:
    rows = [row for log in logs for row in csv.DictReader(log.read_text().splitlines()) if row["val_loss"]]
    return [int(row["epoch"]) for row in rows]


@pytest.mark.parametrize("model", ["statnn", "monomial_gnn"])
def test_interrupted_run_resumes_with_the_same_result(store: ZooStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    options: dict[str, Any] = {"model": model, "epochs": 5, "learning_rate": 1e-3}
    whole = train(store, tmp_path / "whole", **options)
    interrupt(store, tmp_path / "run", monkeypatch, **options)
    assert not (tmp_path / "run" / "result.json").exists()
    resumed = train(store, tmp_path / "run", **options)
    assert logged_epochs(tmp_path / "run" / "metrics.csv") == [2, 3, 4]
    assert logged_epochs(tmp_path / "run" / "metrics.1.csv")[:2] == [0, 1]
    assert same(whole, resumed)


def test_resuming_a_finished_run_returns_its_result(store: ZooStore, tmp_path: Path) -> None:
    first = train(store, tmp_path / "run")
    written = (tmp_path / "run" / "best.ckpt").stat().st_mtime_ns
    again = train(store, tmp_path / "run")
    assert (tmp_path / "run" / "best.ckpt").stat().st_mtime_ns == written
    assert same(first, again)
    assert again.metrics["seconds_per_epoch"] == first.metrics["seconds_per_epoch"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("model", ["statnn", "monomial_gnn"])
def test_zoos_in_other_precisions(store: ZooStore, tmp_path: Path, dtype: torch.dtype, model: str) -> None:
    table = {name: store.table[name] for name in ("test_accuracy", "split")}
    other = ZooStore.create(tmp_path / "zoo", store.space, store.thetas.to(dtype), table)
    assert math.isfinite(train(other, tmp_path / "run", model).metrics["tau"])


@pytest.mark.parametrize("value", [50.0, -0.1])
def test_targets_outside_of_0_to_1(tmp_path: Path, value: float) -> None:
    space = WeightSpace.mlp([2, 3, 1])
    table = {"test_accuracy": [0.5] * 5 + [value], "split": ["train", "train", "val", "val", "test", "test"]}
    store = ZooStore.create(tmp_path / "zoo", space, space.sample(6), table)
    with pytest.raises(ValueError, match="Expected values between 0 and 1 in the column 'test_accuracy'"):
        train(store, tmp_path / "run")


def test_divergence_is_named(store: ZooStore, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Training diverged in epoch \d+: the loss is not finite. Lower 'learning_rate'"):
        train(store, tmp_path / "run", epochs=5, learning_rate=1e30)


def test_kendall_tau_handles_ties_and_constants() -> None:
    tau = SCORES["tau"]
    assert tau(np.array([1.0, 2, 3, 4]), np.array([4.0, 3, 2, 1])) == -1
    assert tau(np.array([1.0, 1, 2, 3]), np.array([1.0, 2, 3, 4])) == pytest.approx(5 / math.sqrt(30))
    assert tau(np.ones(4), np.arange(4.0)) == 0.0  # constant predictions rank nothing
    assert math.isnan(tau(np.arange(4.0), np.ones(4)))


def test_means_of_scores_that_are_missing() -> None:
    assert mean_and_error([1.0, 2.0, 6.0]) == (3.0, pytest.approx(math.sqrt(7 / 3)))
    assert mean_and_error([2.0])[0] == 2.0
    assert math.isnan(mean_and_error([2.0])[1])
    for values in ([], [None], [1.0, None], [1.0, float("nan"), 2.0]):
        assert all(map(math.isnan, mean_and_error(values)))


def test_result_json_has_no_nan() -> None:
    result = Result("generalization", {"tau": float("nan")}, nn.Identity(), {"model": "x"}, Path())
    assert json.loads(result.to_json())["metrics"] == {"tau": None}
    assert repr(result) == "Result(generalization, x, tau=nan)"


def test_several_seeds_are_summarised(store: ZooStore, tmp_path: Path) -> None:
    options: dict[str, Any] = {"zoo": store, "model": "statnn", "epochs": 2, "progress": False, "intervals": 0, "scales": [1]}
    summary = run_seeds("generalization", seeds=[3, 5, 8], output=tmp_path / "runs", **options)
    taus = [result.metrics["tau"] for result in summary.results]
    assert [result.config["seed"] for result in summary.results] == [3, 5, 8]
    assert len(set(taus)) == 3
    assert summary.mean["tau"] == pytest.approx(sum(taus) / 3)
    assert summary.standard_error["tau"] == pytest.approx(torch.tensor(taus, dtype=torch.float64).std().item() / math.sqrt(3))
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["seed3", "seed5", "seed8"]
    assert "3 seeds" in repr(summary)
    written = (tmp_path / "runs" / "seed5" / "best.ckpt").stat().st_mtime_ns
    again = run_seeds("generalization", seeds=[5], output=tmp_path / "runs", **options)
    assert again.mean["tau"] == taus[1]
    assert math.isnan(again.standard_error["tau"])
    assert (tmp_path / "runs" / "seed5" / "best.ckpt").stat().st_mtime_ns == written
    for seeds in ([], [1, 1]):
        with pytest.raises(ValueError, match="'seeds' to be different seeds, at least one"):
            run_seeds("generalization", seeds=seeds, **options)


def test_networks_are_selected_and_counted(store: ZooStore, tmp_path: Path) -> None:
    result = train(store, tmp_path / "a", select={"test_accuracy": lambda accuracy: accuracy > 0.5}, train_size=20)
    kept = store.column("test_accuracy") > 0.5
    expected = {name: int((kept & (store.column("split") == name)).sum()) for name in ("val", "test")}
    assert result.config["networks"] == {"train": 20, **expected}
    assert json.loads((tmp_path / "a" / "result.json").read_text())["config"]["select"]["test_accuracy"].startswith("<function")
    other = train(store, tmp_path / "b", train_size=20, seed=1)
    assert not same(result, other)
    for size in (1, 101, 2.5):
        with pytest.raises(ValueError, match="'train_size' to be an integer from 2 to 100"):
            train(store, tmp_path / "c", train_size=size)


def test_canonical_weights_make_any_model_flat(store: ZooStore, tmp_path: Path) -> None:
    result = train(store, tmp_path / "a", scales=[1, 1e4], canonicalize=["scale", "order"], epochs=10, learning_rate=1e-2)
    assert abs(result.metrics["tau_scale_10000"] - result.metrics["tau"]) < 0.02
    assert result.metrics["tau"] > 0.3
    assert result.config["canonicalize"] == ["scale", "order"]


def test_augmented_training_is_recorded_and_acts(store: ZooStore, tmp_path: Path) -> None:
    plain = train(store, tmp_path / "a")
    augmented = train(store, tmp_path / "b", augment=RandomSymmetry((1, 100), distribution="uniform"))
    assert not same(plain, augmented)
    assert augmented.config["augment"].startswith("RandomSymmetry(scale=(1, 100), distribution='uniform'")


def test_augment_scale_moves_training_networks(store: ZooStore, tmp_path: Path) -> None:
    plain = train(store, tmp_path / "a", "neural_graph")
    augmented = train(store, tmp_path / "b", "neural_graph", augment_scale=100)
    assert not same(plain, augmented)
    half = RandomSymmetry((1.0, 100.0), distribution="uniform", probability=0.5)
    assert same(augmented, train(store, tmp_path / "c", "neural_graph", augment=half, augment_validation=True))
    # Validation networks are moved too, in every epoch alike: without training, so does the loss not change.
    still = {"epochs": 3, "learning_rate": 1e-12, "weight_decay": 0.0}
    losses = {}
    for scale in (None, 1000):
        train(store, tmp_path / "still", "neural_graph", augment_scale=scale, overwrite=True, **still)
        with (tmp_path / "still" / "metrics.csv").open() as file:
            losses[scale] = [float(row["val_loss"]) for row in csv.DictReader(file) if row["val_loss"]]
        assert losses[scale] == pytest.approx(losses[scale][:1] * 3, rel=1e-6)
    assert losses[None][0] != pytest.approx(losses[1000][0], rel=1e-3)
    for bad in (0.5, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="Expected 'augment_scale', an upper bound of U"):
            train(store, tmp_path / "d", augment_scale=bad)
    with pytest.raises(ValueError, match=r"Expected 'augment' or 'augment_scale' \(got both\)"):
        train(store, tmp_path / "d", augment_scale=10, augment=WeightNoise())


def test_further_zoos_are_scored(store: ZooStore, tmp_path: Path) -> None:
    same_networks = make_store(tmp_path / "same")
    fewer = ZooStore(tmp_path / "same").dataset("test")
    result = train(store, tmp_path / "a", test_zoos={"same": same_networks, "path": tmp_path / "same"})
    assert result.metrics["tau_on_same"] == result.metrics["tau_on_path"] == result.metrics["tau"]
    assert result.config["test_zoos"] == dict.fromkeys(("same", "path"), f"same {same_networks.digest}")
    assert len(fewer) == result.config["networks"]["test"]

    wide = WeightSpace.mlp([2, 9, 9, 1])
    thetas = wide.sample(40, generator=torch.Generator().manual_seed(0))
    table = {"test_accuracy": thetas[:, 0].sigmoid(), "split": ["test"] * 40}
    other = ZooStore.create(tmp_path / "wide", wide, thetas, table)
    moved = train(store, tmp_path / "b", "neural_graph", test_zoos={"wide": other})
    assert math.isfinite(moved.metrics["tau_on_wide"])
    assert not any(name.startswith("tau_on_wide_scale") for name in moved.metrics)
    with pytest.raises(
        ValueError,
        match=r"'statnn' reads networks of one architecture \(got 2 weight spaces\): 'test_zoos' 'wide' holds networks of .*2-9-9-1",
    ):
        train(store, tmp_path / "c", test_zoos={"wide": other})
    # Deeper networks pass through parameters that shallow ones do not train.
    with pytest.warns(UserWarning, match=r"in 'test_zoos' 'wide' will not be scored by scalegmn: they pass through parameters"):
        untrained = train(store, tmp_path / "d", "scalegmn", test_zoos={"wide": other, "same": same_networks})
    assert math.isnan(untrained.metrics["tau_on_wide"])
    assert untrained.metrics["tau_on_same"] == untrained.metrics["tau"]
    empty = ZooStore.create(tmp_path / "empty", wide, thetas[:2], {"test_accuracy": [0.1, 0.2], "split": ["train", "test"]})
    with pytest.raises(ValueError, match="'test_zoos' 'empty' cannot be scored on: Expected at least 2 networks to score"):
        train(store, tmp_path / "c", test_zoos={"empty": empty})


def test_augmentation_repeats_when_resumed(store: ZooStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    augment = WeightNoise(0.5)
    options: dict[str, Any] = {"epochs": 5, "learning_rate": 1e-3, "augment": augment}
    whole = train(store, tmp_path / "whole", **options)
    interrupt(store, tmp_path / "run", monkeypatch, **options)
    assert same(whole, train(store, tmp_path / "run", **options))


def test_batches_of_several_architectures(tmp_path: Path) -> None:
    """Outputs are compared with the targets of their own networks, though batches lie architecture by architecture."""
    spaces = [WeightSpace.mlp([2, 6, 1]), WeightSpace.mlp([2, 5, 1])]
    with ZooStore.writing(tmp_path / "zoo") as zoo:
        for i in range(8):
            space = spaces[i % 2]
            thetas = space.sample(40, generator=torch.Generator().manual_seed(i))
            target = torch.sigmoid(5 * space.unflatten(thetas)["layers.1.bias"][:, 0])
            zoo.append(space, thetas, {"test_accuracy": target, "split": (["train"] * 2 + ["val", "test"]) * 10})
    result = train(zoo, tmp_path / "run", "neural_graph", epochs=40, scales=[1], learning_rate=1e-2)
    assert result.metrics["tau"] > 0.4
    assert result.metrics["tau_scale_1"] == pytest.approx(result.metrics["tau"], abs=1e-3)


def test_errors(store: ZooStore, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Unknown task 'classification'\. Available tasks: generalization"):
        run("classification", zoo=store)
    with pytest.raises(ValueError, match="Unknown model 'transformer'"):
        train(store, tmp_path / "run", "transformer")
    with pytest.raises(ValueError, match="Expected 'epochs' to be an integer of at least 1 \\(got 0\\)"):
        train(store, tmp_path / "run", epochs=0)
    with pytest.raises(ValueError, match="Expected 'scales', upper bounds of U\\[1, s\\], to be finite and at least 1 \\(got -1\\)"):
        train(store, tmp_path / "run", scales=[1, -1])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        train(tmp_path / "nowhere", tmp_path / "run")
    with pytest.raises(ValueError, match="loss"):
        train(store, tmp_path / "run", target="loss")
    with pytest.raises(TypeError, match="depth"):
        train(store, tmp_path / "run", model_options={"depth": 2})


def test_zoo_without_a_split(tmp_path: Path) -> None:
    space = WeightSpace.mlp([2, 3, 1])
    store = ZooStore.create(tmp_path / "zoo", space, space.sample(4), {"test_accuracy": [0.1] * 4, "split": ["train"] * 4})
    with pytest.raises(ValueError, match="split"):
        train(store, tmp_path / "run")


def test_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"Cannot write to .*run.*Choose a path in a folder that you may write to"):
        prepare_folder(tmp_path / "file" / "run")


def test_task_registry() -> None:
    assert list_tasks() == ["generalization", "inr_classification", "inr_editing", "prediction"]
    with pytest.raises(ValueError, match="named 'generalization' is registered already"):
        register_task(dataclasses.make_dataclass("Other", [], bases=(Generalization,), namespace={"kind": "other"}, frozen=True))
    with pytest.raises(TypeError, match="Expected a task to be a frozen dataclass"):
        register_task(Generalization.__mro__[-1])


def test_module_sees_no_targets(store: ZooStore) -> None:
    # The target must not reach the model through the batch's features.
    batch = store.space.batch(store.thetas[:3], y=torch.zeros(3))
    other = store.space.batch(store.thetas[:3], y=torch.ones(3))
    features: list[tuple[Tensor, Tensor]] = [(batch[name], other[name]) for name in ("x", "edge_attr")]
    assert all(torch.equal(a, b) for a, b in features)
