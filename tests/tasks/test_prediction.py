"""Predicting any column of a table."""

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tests.data import test_formats as formats
from wsgraph import WeightSpace
from wsgraph.cli import app
from wsgraph.data import ZooStore, ZooWarning, import_zoo
from wsgraph.options import TrainingOptions
from wsgraph.scores import SCORES
from wsgraph.tasks import Generalization, Prediction, Result, TrainedModel, cross_validate, run
from wsgraph.tasks.intervals import bootstrap_intervals
from wsgraph.tasks.registry import task_of
from wsgraph.tasks.running import read_predictions

NETWORKS = 160


def said(result: Any) -> str:
    """What a command printed, in one line."""
    return " ".join((result.output + result.stderr).split())


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ZooStore:
    """Networks whose columns are functions of their last bias, in many kinds."""
    space = WeightSpace.mlp([2, 6, 1])
    thetas = space.sample(NETWORKS, generator=torch.Generator().manual_seed(0))
    bias = space.unflatten(thetas)["layers.1.bias"][:, 0].double().numpy()
    level = np.digitize(bias, np.quantile(bias, [0.3, 0.6]))
    table = {
        "parameters_per_second": 5e6 + 3e6 * bias,
        "percent": 100 / (1 + np.exp(-5 * bias)),
        "count": np.round(50 * bias).astype(int),
        "name": np.array(["low", "middle", "high"])[level],
        "is_low": level == 0,
        "level": level,
        "constant": np.ones(NETWORKS),
        "blanks": np.where(np.arange(NETWORKS) % 5 == 0, np.nan, bias),
        "blank_names": np.where(np.arange(NETWORKS) % 5 == 0, "", np.array(["low", "middle", "high"])[level]),
        "blank_levels": np.where(np.arange(NETWORKS) % 5 == 0, np.nan, level),
        "run": np.arange(NETWORKS) // 4,
        "broken": np.where(np.arange(NETWORKS) == 3, np.inf, bias),
        "split": np.array(["train", "train", "val", "test"])[np.arange(NETWORKS) % 4],
    }
    return ZooStore.create(tmp_path_factory.mktemp("zoos") / "zoo", space, thetas, table)


def train(store: ZooStore, folder: Path, target: str, **options: Any) -> Result:
    options = {
        "epochs": 25,
        "learning_rate": 1e-2,
        "batch_size": 32,
        "progress": False,
        "intervals": 0,
        "scales": [1],
        "baselines": False,
    } | options
    return run("prediction", zoo=store, target=target, model="statnn", model_options={"hidden": 32}, output=folder, **options)


@pytest.mark.parametrize("target", ["parameters_per_second", "percent", "count"])
def test_numbers_are_predicted_in_their_units(store: ZooStore, tmp_path: Path, target: str) -> None:
    result = train(store, tmp_path / "run", target)
    assert result.metrics["tau"] > 0.4
    data = store.dataset("test", target=None)
    wanted = data.column(target).astype(float)
    trained = TrainedModel.load(tmp_path / "run")
    predicted = trained.predict(store.space, data.thetas).numpy()
    assert abs(predicted.mean() - wanted.mean()) < wanted.std()
    assert result.metrics["mae"] == pytest.approx(abs(predicted - wanted).mean(), rel=1e-4)
    assert result.metrics["rmse"] == pytest.approx(((predicted - wanted) ** 2).mean() ** 0.5, rel=1e-4)
    assert trained.task == dataclasses.replace(Prediction(target), **trained.task.state())
    assert list(trained.task.columns(torch.from_numpy(predicted))) == [f"predicted_{target}"]


@pytest.mark.parametrize(("target", "options", "classes"), [("name", {}, ["high", "low", "middle"]), ("is_low", {}, [False, True])])
def test_strings_and_booleans_are_classes(
    store: ZooStore, tmp_path: Path, target: str, options: dict[str, Any], classes: list[Any]
) -> None:
    result = train(store, tmp_path / "run", target, **options)
    assert set(result.metrics) >= {"accuracy", "balanced_accuracy", "macro_f1", "cross_entropy"}
    data = store.dataset("test", target=None)
    trained = TrainedModel.load(tmp_path / "run")
    found = trained.predict(store.space, data.thetas)
    assert found.shape == (len(data), len(classes))
    columns = trained.task.columns(found)
    assert set(columns[f"predicted_{target}"]) <= set(classes)
    right = np.mean([a == b for a, b in zip(columns[f"predicted_{target}"], data.column(target).tolist(), strict=True)])
    assert result.metrics["accuracy"] == pytest.approx(right)
    assert right > 0.5


def test_integers_are_classes_on_request(store: ZooStore, tmp_path: Path) -> None:
    assert "tau" in train(store, tmp_path / "a", "level", epochs=1).metrics
    result = train(store, tmp_path / "b", "level", kind="class", class_weights=True, epochs=1)
    assert "accuracy" in result.metrics
    train_level = store.dataset("train", target=None).column("level")
    expected = [len(train_level) / (3 * (train_level == i).sum()) for i in range(3)]
    assert result.config["learned"]["learned_values"]["weights"] == pytest.approx(expected)


@pytest.mark.parametrize(("target", "kind"), [("blanks", "auto"), ("blank_names", "auto"), ("blank_levels", "class")])
def test_blanks_are_left_out_and_counted(
    store: ZooStore, tmp_path: Path, target: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    result = train(store, tmp_path / "run", target, kind=kind, epochs=1, progress=True)
    assert result.config["blanks"] == {"train": 16, "val": 8, "test": 8}
    assert result.config["networks"] == {"train": 64, "val": 32, "test": 32}
    assert f"networks without a value of '{target}' are left out: 16 of train" in " ".join(capsys.readouterr().err.split())
    # Other zoos may have blanks too.
    assert set(TrainedModel.load(tmp_path / "run").evaluate(store)) <= set(result.metrics)


def test_families_stay_together(store: ZooStore, tmp_path: Path) -> None:
    result = train(store, tmp_path / "run", "percent", group="run", epochs=1, intervals=20)
    assert sum(result.config["networks"].values()) == NETWORKS
    assert result.config["networks"]["train"] == 96
    assert result.config["group"] == "run"
    again = train(store, tmp_path / "again", "percent", group="run", epochs=1, seed=1)
    assert again.config["networks"]["train"] == 96
    assert again.metrics["tau"] != result.metrics["tau"]
    assert set(result.intervals) == {"tau", "r2", "mae", "rmse"}


def test_intervals_hold_the_score_and_narrow_with_networks(store: ZooStore, tmp_path: Path) -> None:
    result = train(store, tmp_path / "run", "percent", intervals=200)
    for name in ("tau", "mae", "rmse"):
        low, high = result.intervals[name]
        assert low <= result.metrics[name] <= high
        assert low < high
    document = json.loads((tmp_path / "run" / "result.json").read_text())
    assert document["intervals"]["tau"] == list(result.intervals["tau"])
    assert train(store, tmp_path / "run", "percent", intervals=200).intervals == result.intervals  # read again

    def share(outputs: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
        return {"share": float((outputs == targets).double().mean())}

    generator = torch.Generator().manual_seed(0)
    widths = []
    for count in (50, 800):
        outputs = torch.randint(0, 2, (count,), generator=generator)
        low, high = bootstrap_intervals(share, outputs, torch.ones(count, dtype=torch.long), 400)["share"]
        widths.append(high - low)
        assert (high - low) == pytest.approx(2 * 1.96 * math.sqrt(0.25 / count), rel=0.25)
    assert widths[1] < widths[0]
    # Families of equal networks count once.
    outputs = torch.randint(0, 2, (50,), generator=generator).repeat_interleave(16)
    alone = bootstrap_intervals(share, outputs, torch.ones(800, dtype=torch.long), 400)["share"]
    families = bootstrap_intervals(share, outputs, torch.ones(800, dtype=torch.long), 400, groups=np.arange(50).repeat(16))["share"]
    assert families[1] - families[0] > 2 * (alone[1] - alone[0])


def test_errors(store: ZooStore, tmp_path: Path) -> None:
    for options, error, match in (
        ({"target": "nothing"}, ValueError, "nothing"),
        ({"target": "name", "kind": "number"}, ValueError, r"Expected numbers in the column 'name'.*Give kind='class'"),
        ({"target": "broken"}, ValueError, r"Expected finite numbers in the column 'broken'.*\(got inf\)"),
        ({"target": "blanks", "kind": "class"}, ValueError, "Expected classes to be strings, booleans or integers"),
        ({"target": "constant", "kind": "class"}, ValueError, r"Expected at least two classes to tell apart \(got \[1\]\)"),
        ({"target": "name", "kind": "classes"}, ValueError, r"Expected 'kind' to be one of auto, number, share, class \(got 'classes'\)"),
        ({}, TypeError, "Expected the option 'target': Column of the zoo's table to predict"),
        ({"target": "name", "epoch": 3}, TypeError, r"The task has no option 'epoch'\. Did you mean 'epochs'"),
        ({"target": "name", "patience": 0}, ValueError, "Expected 'patience' to be an integer of at least 1"),
        ({"target": "name", "schedule": "linear"}, ValueError, "Expected 'schedule' to be one of one_cycle, constant, cosine"),
        ({"target": "name", "logger": "paper"}, ValueError, "Expected 'logger' to be one of csv, tensorboard"),
        ({"target": "name", "logger": "tensorbord"}, ValueError, r"\(got 'tensorbord'\)\. Did you mean 'tensorboard'\?"),
        ({"target": "name", "schedule": "one_circle"}, ValueError, r"\(got 'one_circle'\)\. Did you mean 'one_cycle'\?"),
        (
            {"target": "name", "trainer_options": {"precision": "64-true"}},
            ValueError,
            r"does not take precision=64-true .* zoos and models are float32, so the precision may be 32-true, or 16-mixed",
        ),
        (
            {"target": "name", "trainer_options": {"precision": "bf17", "max_steps": 3}},
            ValueError,
            r"does not take precision=bf17 among 'trainer_options' \(--trainer-option\): .* Allowed precision values: .*bf16-mixed",
        ),
        (
            {"target": "name", "trainer_options": {"gradient_clip_val": "x"}},
            ValueError,
            "does not take gradient_clip_val=x .* a float",
        ),
        ({"target": "name", "trainer_options": {"precisoin": 16}}, ValueError, r"no option 'precisoin'\. Did you mean 'precision'\?"),
        ({"target": "name", "trainer_options": {"max_epochs": 3}}, ValueError, "Give 'epochs' rather than 'max_epochs'"),
    ):
        with pytest.raises(error, match=match):
            run("prediction", zoo=store, model="statnn", output=tmp_path / "run", progress=False, **{"epochs": 1, **options})
    with pytest.raises(TypeError, match="leave target out"):
        run(Prediction("name"), zoo=store, target="name")
    result = train(store, tmp_path / "names", "name", epochs=1)
    others = {"name": ["other"] * 4, "split": ["test"] * 4}
    theirs = ZooStore.create(tmp_path / "zoo", store.space, store.thetas[:4], others)
    with pytest.raises(ValueError, match=r"Expected the classes trained on, high, low, middle, in the column 'name'.*\(got 'other'\)"):
        TrainedModel.load(result.folder).evaluate(theirs)


def test_constant_targets_train(store: ZooStore, tmp_path: Path) -> None:
    result = train(store, tmp_path / "run", "constant", epochs=1)
    assert result.metrics["mae"] < 5
    assert math.isfinite(result.metrics["validation_loss"])


@pytest.mark.parametrize("schedule", ["constant", "cosine", lambda optimizer, steps: torch.optim.lr_scheduler.StepLR(optimizer, steps)])
def test_schedules(store: ZooStore, tmp_path: Path, schedule: Any) -> None:
    result = train(store, tmp_path / "run", "percent", epochs=2, schedule=schedule)
    assert math.isfinite(result.metrics["tau"])
    assert result.config["schedule"] == (schedule if isinstance(schedule, str) else result.config["schedule"])
    assert "schedule" not in train(store, tmp_path / "default", "percent", epochs=1).config


def test_options_of_lightning_reach_it(store: ZooStore, tmp_path: Path) -> None:
    from lightning.pytorch.callbacks import Callback
    from lightning.pytorch.loggers import CSVLogger

    seen = []

    class Watch(Callback):
        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            seen.append((trainer.precision, trainer.accumulate_grad_batches, trainer.current_epoch))

    options = {"precision": "bf16-mixed", "accumulate_grad_batches": 2}
    result = train(
        store,
        tmp_path / "run",
        "percent",
        epochs=40,
        learning_rate=1e-12,
        schedule="constant",
        patience=2,
        trainer_options=options,
        callbacks=[Watch()],
        logger=[CSVLogger(tmp_path / "theirs", name=None, version="")],
    )
    ((precision, accumulated, epochs),) = seen
    assert (precision, accumulated) == ("bf16-mixed", 2)
    assert 3 <= epochs < 40  # nothing gets better, so that it stops
    assert (tmp_path / "theirs" / "metrics.csv").exists()
    assert (tmp_path / "run" / "metrics.csv").exists()
    assert result.config["trainer_options"] == options


def test_the_command_and_its_file_repeat_a_run(store: ZooStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["train", "--zoo", str(store.path), "--target", "percent", "--model", "statnn", "--model-option", "hidden=8", "--epochs", "1"]
    words += ["--intervals", "10", "--trainer-option", "precision=bf16-mixed", "--patience", "3", "--select", "level=[0,1]"]
    first = CliRunner().invoke(app, [*words, "--output", "first", "--json"])
    assert first.exit_code == 0, said(first)
    document = json.loads(first.stdout)
    assert document["task"] == "prediction"
    assert document["config"]["model_options"] == {"hidden": 8}
    assert document["config"]["select"] == {"level": [0, 1]}
    file = json.loads(Path("first/options.json").read_text())
    assert file["task"] == "prediction"
    again = CliRunner().invoke(app, ["train", "--config", "first/options.json", "--output", "again", "--json"])
    assert again.exit_code == 0, said(again)
    assert json.loads(again.stdout)["config"] == document["config"]
    lines = [f"{name} = {json.dumps(value)}" for name, value in file.items() if not isinstance(value, dict)]
    Path("run.toml").write_text("\n".join(lines) + "\n[model_options]\nhidden = 8\n")
    other = CliRunner().invoke(app, ["train", "--config", "run.toml", "--seed", "4", "--output", "other", "--json"])
    assert other.exit_code == 0, said(other)
    assert json.loads(other.stdout)["config"]["seed"] == 4
    wrong = CliRunner().invoke(app, ["train", "--zoo", str(store.path), "--traget", "percent"])
    assert wrong.exit_code == 1
    assert "There is no option --traget. Did you mean --target?" in said(wrong)
    wrong = CliRunner().invoke(app, ["train", "--zoo", str(store.path), "--target", "name", "--epoch", "1"])
    assert "There is no option --epoch. Did you mean --epochs?" in said(wrong)


def test_the_table_shows_intervals(store: ZooStore, tmp_path: Path) -> None:
    words = ["train", "--zoo", str(store.path), "--target", "name", "--model", "statnn", "--epochs", "1", "--output", str(tmp_path / "run")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, said(result)
    assert "[0." in result.output
    assert "95 %" in result.output
    assert "ridge on statistics" in result.output


def test_options_say_their_types() -> None:
    assert TrainingOptions().model == "monomial_gnn"
    with pytest.raises(ValueError, match="Expected 'batch_size' to be an integer of at least 1"):
        TrainingOptions(batch_size=0)


def test_baselines_are_scored_on_the_same_networks(store: ZooStore, tmp_path: Path) -> None:
    result = train(store, tmp_path / "numbers", "percent", epochs=1, baselines=True, intervals=20)
    assert set(result.baselines) == {
        "mean",
        "ridge on statistics",
        "boosting on statistics",
        "ridge on canonical weights",
        "boosting on canonical weights",
    }
    assert result.baselines["mean"]["tau"] == 0.0
    assert result.baselines["ridge on statistics"]["tau"] > 0.5  # the last bias is a parameter of its own
    low, high = result.baselines["ridge on statistics"].intervals["tau"]
    assert low <= result.baselines["ridge on statistics"]["tau"] <= high
    again = train(store, tmp_path / "numbers", "percent", epochs=1, baselines=True, intervals=20)  # read from the folder
    assert again.baselines == result.baselines
    classes = train(store, tmp_path / "classes", "name", epochs=1, baselines=True).baselines
    assert classes["boosting on statistics"]["accuracy"] > classes["mean"]["accuracy"] + 0.1
    assert train(store, tmp_path / "none", "name", epochs=1).baselines == {}


def test_baselines_of_several_architectures(tmp_path: Path) -> None:
    spaces = [WeightSpace.mlp([2, 6, 1]), WeightSpace.mlp([2, 5, 5, 1])]
    with ZooStore.writing(tmp_path / "zoo") as zoo:
        for i in range(6):
            thetas = spaces[i % 2].sample(20, generator=torch.Generator().manual_seed(i)) * (1 + i % 3)
            zoo.append(spaces[i % 2], thetas, {"size": [1 + i % 3] * 20, "split": (["train"] * 2 + ["val", "test"]) * 5})
    options: dict[str, Any] = {"model": "neural_graph", "model_options": {"channels": 4, "layers": 1}, "progress": False, "epochs": 1}
    result = run("prediction", zoo=zoo, target="size", output=tmp_path / "run", intervals=0, **options)
    assert set(result.baselines) == {"mean", "ridge on statistics", "boosting on statistics"}
    assert result.baselines["ridge on statistics"]["r2"] > 0.6


@pytest.mark.parametrize("group", [None, "run"])
def test_cross_validation_tests_every_network_once(store: ZooStore, tmp_path: Path, group: str | None) -> None:
    options: dict[str, Any] = {"model": "statnn", "epochs": 2, "progress": False, "baselines": False, "intervals": 20, "group": group}
    validated = cross_validate("prediction", folds=4, zoo=store, target="percent", output=tmp_path / "runs", **options)
    positions = torch.cat([read_predictions(result.folder)[0] for result in validated.results])
    assert positions.sort().values.tolist() == list(range(NETWORKS))
    if group is not None:
        families = [set(store.column("run")[read_predictions(result.folder)[0]]) for result in validated.results]
        assert sum(map(len, families)) == len(set().union(*families)) == NETWORKS // 4
    assert validated.scores.targets is not None
    assert validated.scores.predictions is not None
    assert validated.scores["mae"] == pytest.approx(float((validated.scores.predictions - validated.scores.targets).abs().mean()))
    low, high = validated.scores.intervals["mae"]
    assert low < validated.scores["mae"] < high
    assert validated.mean["mae"] == pytest.approx(np.mean([result.metrics["mae"] for result in validated.results]))
    document = json.loads((tmp_path / "runs" / "folds.json").read_text())
    assert document["pooled"]["metrics"]["mae"] == validated.scores["mae"]
    written = (tmp_path / "runs" / "fold2" / "best.ckpt").stat().st_mtime_ns
    assert (
        cross_validate("prediction", folds=4, zoo=store, target="percent", output=tmp_path / "runs", **options).scores == validated.scores
    )
    assert (tmp_path / "runs" / "fold2" / "best.ckpt").stat().st_mtime_ns == written
    assert "4 folds" in repr(validated)


def test_folds_keep_networks_of_one_file_and_equal_ones_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space = WeightSpace.mlp([2, 4, 1])
    thetas = space.sample(48, generator=torch.Generator().manual_seed(0))
    thetas[1::2] = thetas[0::2]  # each but two equals the one before
    thetas[[3, 5]] += 1
    files = [f"agent{i // 2}.zip" if 2 <= i < 12 else f"{i}.pt" for i in range(48)]
    zoo = ZooStore.create(tmp_path / "zoo", space, thetas, {"file": files, "size": np.arange(48) % 5})
    options: dict[str, Any] = {"model": "statnn", "epochs": 1, "intervals": 30, "zoo": zoo, "target": "size", "baselines": False}
    validated = cross_validate("prediction", folds=4, output=tmp_path / "runs", **options)
    # Intervals are drawn by what is kept together.
    task = task_of("prediction", validated.results[0].config)
    positions = torch.cat([read_predictions(result.folder).positions for result in validated.results])
    outputs, targets = validated.scores.predictions, validated.scores.targets
    assert outputs is not None
    assert targets is not None
    drawn = bootstrap_intervals(task.scores_of, outputs, targets, 30, groups=(positions // 2).numpy())
    assert validated.scores.intervals["mae"] == pytest.approx(drawn["mae"], rel=0.5)
    assert validated.scores.intervals["mae"] != pytest.approx(bootstrap_intervals(task.scores_of, outputs, targets, 30)["mae"])
    for result in validated.results:
        tested = set(read_predictions(result.folder)[0].tolist())
        assert tested == {position ^ 1 for position in tested}
        assert result.config["networks"]["test"] == 12
    told = " ".join(capsys.readouterr().err.split())
    assert told.count("networks of one file, and equal ones, lie in one fold: 24 families of 48 networks") == 1
    run("prediction", group="file", output=tmp_path / "by-file", **options)
    assert "networks have the weights of one in another split" in capsys.readouterr().err


def test_networks_are_dealt_among_those_that_are_read(store: ZooStore, tmp_path: Path) -> None:
    options: dict[str, Any] = {"model": "statnn", "epochs": 1, "progress": False, "intervals": 0, "baselines": False, "zoo": store}
    chosen = {"run": list(range(6))}  # 24 networks, of which every fifth has no value
    result = run("prediction", target="blanks", select=chosen, fold=(0, 3), output=tmp_path / "run", **options)
    assert result.config["networks"] == {"train": 6, "val": 7, "test": 6}
    assert result.config["blanks"] == {"the zoo": 5}
    with pytest.raises(
        ValueError, match=r"in the split 'val' .* \(got 0\)\. Note that those with one value of 'constant' lie in one split\."
    ):
        run("prediction", target="percent", group="constant", output=tmp_path / "one", **options)
    with pytest.raises(ValueError, match=r"\(got 0\)\. Note that 'select' keeps only networks with {'name': 'none'}\."):
        run("prediction", target="percent", select={"name": "none"}, output=tmp_path / "none", **options)


def test_what_one_should_know_of_a_column_is_said(store: ZooStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def told(values: Any) -> str:
        zoo = ZooStore(store.path)
        zoo.set_column("told", values)
        train(zoo, tmp_path / "run", "told", epochs=1, progress=True, overwrite=True)
        return " ".join(capsys.readouterr().err.split())

    split = store.column("split")
    assert "the column 'told': 1 of 3 classes have no training network and cannot be predicted: 'c'" in told(
        np.where(split == "test", "c", np.where(np.arange(NETWORKS) % 8 < 4, "a", "b"))
    )
    assert "holds 160 classes of 160 networks, too many to learn" in told(np.array([f"{i} of 160" for i in range(NETWORKS)]))
    assert "the column 'told': holds 2 alone for all training networks: there is nothing to learn" in told(np.full(NETWORKS, 2.0))
    assert "holds 0 and 1 alone and is predicted as a number: --kind class" in told((np.arange(NETWORKS) % 3 == 0).astype(float))


def test_boosting_learns_from_few_networks(store: ZooStore, tmp_path: Path) -> None:
    result = train(store, tmp_path / "run", "percent", epochs=1, train_size=24, baselines=True)
    assert result.baselines["boosting on statistics"]["mae"] != pytest.approx(result.baselines["mean"]["mae"])


def test_baselines_may_be_asked_for_later(store: ZooStore, tmp_path: Path) -> None:
    assert not train(store, tmp_path / "run", "percent", epochs=1, train_size=24).baselines
    later = train(store, tmp_path / "run", "percent", epochs=1, train_size=24, baselines=True)
    assert "mean" in later.baselines
    assert train(store, tmp_path / "run", "percent", epochs=1, train_size=24).baselines == later.baselines


def test_folds_have_intervals_of_baselines_and_say_what_is_left_out(store: ZooStore, tmp_path: Path) -> None:
    options: dict[str, Any] = {"zoo": store, "target": "blanks", "model": "statnn", "epochs": 1, "progress": False, "intervals": 20}
    # Baselines that finished runs are asked for later are pooled too.
    cross_validate("prediction", folds=3, output=tmp_path / "runs", baselines=False, **options)
    validated = cross_validate("prediction", folds=3, output=tmp_path / "runs", baselines=True, **options)
    assert validated.left_out == {"without a value of 'blanks'": NETWORKS // 5}
    pooled = validated.pooled_baselines["ridge on statistics"]
    low, high = pooled.intervals["r2"]
    assert low < pooled["r2"] < high
    assert pooled.predictions is not None
    assert len(pooled.predictions) == NETWORKS - NETWORKS // 5
    document = json.loads((tmp_path / "runs" / "folds.json").read_text())
    assert document["pooled_baselines"]["ridge on statistics"]["intervals"]["r2"] == [low, high]
    assert document["left_out"] == validated.left_out
    words = ["train", "--zoo", str(store.path), "--target", "blanks", "--folds", "3", "--model", "statnn", "--epochs", "1", "--baselines"]
    result = CliRunner().invoke(app, [*words, "--intervals", "20", "--output", str(tmp_path / "runs")])
    assert "3 folds, 128 networks; left out are 32 without a value of 'blanks'" in said(result)
    assert said(result).count("lower end of 95 %") == 1 + len(validated.baselines)


def test_folds_from_the_command_line(store: ZooStore, tmp_path: Path) -> None:
    words = ["train", "--zoo", str(store.path), "--target", "name", "--folds", "3", "--model", "statnn", "--epochs", "1"]
    result = CliRunner().invoke(app, [*words, "--intervals", "10", "--output", str(tmp_path / "runs")])
    assert result.exit_code == 0, said(result)
    for text in (
        "3 folds, 160 networks",
        "statnn, mean over folds",
        "ridge on statistics",
        "lower end of 95 %",
        "accuracy: share of classes",
    ):
        assert text in said(result)
    for options, error, match in (
        ({"folds": 2}, ValueError, "Expected 'folds' to be an integer of at least 3"),
        ({"folds": 3, "zoo": None}, TypeError, "Expected the option 'zoo'"),
    ):
        given: dict[str, Any] = {"zoo": store, "target": "name", **options}
        with pytest.raises(error, match=match):
            cross_validate("prediction", **{name: value for name, value in given.items() if value is not None})
    with pytest.raises(ValueError, match="'inr_editing' returns networks, whose scores are not pooled"):
        cross_validate("inr_editing", folds=3, zoo=store)
    with pytest.raises(ValueError, match=r"Expected 'fold' to be \(i, n\)"):
        train(store, tmp_path / "run", "name", fold=(3, 3))


def test_few_networks_are_said_to_be_few(store: ZooStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(store, tmp_path / "run", "percent", epochs=1, progress=True)
    assert "80 training networks are few: cross-validate (--folds 5), compare with" in " ".join(capsys.readouterr().err.split())
    train(store, tmp_path / "again", "percent", epochs=1, progress=True, baselines=True)
    assert "are few: cross-validate (--folds 5), and prefer a small model" in " ".join(capsys.readouterr().err.split())


def test_scores_are_those_of_scikit_learn() -> None:
    from sklearn import metrics

    generator = np.random.default_rng(0)
    predictions, targets = generator.random((60, 4)), generator.integers(0, 3, 60)  # one class is predicted alone
    said = predictions.argmax(1)
    assert SCORES["macro_f1"](predictions, targets) == pytest.approx(metrics.f1_score(targets, said, average="macro", zero_division=0))
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        balanced = metrics.balanced_accuracy_score(targets, said)
    assert SCORES["balanced_accuracy"](predictions, targets) == pytest.approx(balanced)
    shares = predictions / predictions.sum(1, keepdims=True)
    assert SCORES["cross_entropy"](shares, targets) == pytest.approx(metrics.log_loss(targets, shares, labels=range(4)))
    numbers, wanted = generator.random(50), generator.random(50)
    assert SCORES["r2"](numbers, wanted) == pytest.approx(metrics.r2_score(wanted, numbers))
    assert SCORES["mae"](numbers, wanted) == pytest.approx(metrics.mean_absolute_error(wanted, numbers))
    assert SCORES["rmse"](numbers, wanted) == pytest.approx(metrics.root_mean_squared_error(wanted, numbers))
    with pytest.raises(ValueError, match="'parameters' is measured, not computed"):
        SCORES["parameters"](numbers, wanted)


def test_tasks_that_have_seen_no_column_say_so() -> None:
    with pytest.raises(ValueError, match="'prediction' has not seen the column 'name' yet: train with it, or call its method fitted"):
        Prediction("name").loss(torch.zeros(2, 1), torch.zeros(2))
    assert Generalization().outputs == 1


def test_architectures_that_a_fold_does_not_train_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spaces = [WeightSpace.mlp([2, 6, 1]), WeightSpace.mlp([2, 5, 5, 1])]
    with ZooStore.writing(tmp_path / "zoo") as zoo:
        for i, count in enumerate((60, 2)):
            thetas = spaces[i].sample(count, generator=torch.Generator().manual_seed(i))
            zoo.append(spaces[i], thetas, {"size": torch.arange(count) % 3, "family": ["rare" if i else f"{j}" for j in range(count)]})
    options: dict[str, Any] = {"model": "scalegmn", "model_options": {"channels": 4, "layers": 1}, "epochs": 1, "intervals": 0}
    options |= {"target": "size", "baselines": False, "group": "family", "zoo": zoo}
    validated = cross_validate("prediction", folds=3, output=tmp_path / "runs", **options)
    assert validated.scores.targets is not None
    assert len(validated.scores.targets) == 60  # all but those of which no model learns anything
    assert validated.left_out == {"of architectures that no training network has": 2}
    told = [result.config.get("untrained") for result in validated.results]
    assert sorted(map(str, told)) == ["None", "{'test': 2}", "{'val': 2}"]
    assert "networks of architectures that no training network has are left out: 2 of test" in " ".join(capsys.readouterr().err.split())


def test_the_list_of_tasks_says_what_must_be_given(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["tasks"], env={"COLUMNS": "80"})
    assert re.search(
        r"prediction .*--target: Column of the zoo's table to predict\. \(required\).*--kind: .*\(default: auto\)", said(result)
    )
    assert "--target: Column of the zoo's table to predict. (default: test_accuracy)" in said(result)
    listed = {entry["name"]: entry["options"] for entry in json.loads(CliRunner().invoke(app, ["tasks", "--json"]).output)}
    assert listed["prediction"]["target"]["required"]
    assert listed["generalization"]["target"] == {
        "help": "Column of the zoo's table to predict.",
        "required": False,
        "default": "test_accuracy",
    }
    assert "test accuracy" not in CliRunner().invoke(app, ["predict", "--help"]).output


def test_booleans_with_blanks_are_classes(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    lines = ["file_name,is_best"]
    for i in range(40):
        torch.save(formats.state_of(formats.make_layers(i, (2, 6, 1))), tmp_path / "runs" / f"{i}.pt")
        lines.append(f"{i}.pt,{('True', 'False', '')[i % 3]}")
    (tmp_path / "runs" / "metadata.csv").write_text("\n".join(lines))
    with pytest.warns(ZooWarning, match="Values are missing, .* 'is_best' of 13 of 40 networks"):
        zoo = import_zoo(tmp_path / "zoo", tmp_path / "runs", activation="relu", progress=False)
    assert dict(zip(*np.unique(zoo.column("is_best"), return_counts=True), strict=True)) == {"": 13, "false": 13, "true": 14}
    result = run("prediction", zoo=zoo, target="is_best", model="statnn", epochs=1, output=tmp_path / "run", progress=False, intervals=0)
    assert sum(result.config["blanks"].values()) == 13
    assert {"predicted_is_best", "true"} & set(TrainedModel.load(tmp_path / "run").predict(zoo).rows[0])
    assert "accuracy" in result.metrics


def test_the_command_of_a_run_repeats_its_intervals_and_baselines(store: ZooStore, tmp_path: Path) -> None:
    options: dict[str, Any] = {"model": "statnn", "epochs": 1, "progress": False, "output": tmp_path / "run"}
    result = run("prediction", zoo=store, target="percent", intervals=20, baselines=False, **options)
    assert result.call["command"].endswith("--intervals 20 --no-baselines")
