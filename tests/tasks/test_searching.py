"""Searching options by the validation loss: the test split stays untouched, and nothing is lost."""

import csv
import json
import os
import sys
from pathlib import Path
from typing import Any

import filelock
import pytest
from typer.testing import CliRunner

from tests.tasks.test_generalization import make_store
from wsgraph.cli import app
from wsgraph.data import ZooStore
from wsgraph.nn import list_models, scaled_widths
from wsgraph.tasks import INREditing, Prediction, SearchResult, run, search, searching
from wsgraph.tasks.search_space import default_space, default_values, read_space

pytest.importorskip("optuna")

SPACE: dict[str, Any] = {"learning_rate": [1e-4, 1e-2, "log"], "model_options.hidden": [4, 8, 16]}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ZooStore:
    return make_store(tmp_path_factory.mktemp("zoos") / "zoo", networks=24)


def tried(store: ZooStore, folder: Path, trials: int = 3, **options: Any) -> SearchResult:
    options = {"model": "statnn", "epochs": 1, "scales": [1], "intervals": 0, "progress": False, "search_space": SPACE, **options}
    return search("generalization", trials=trials, zoo=store, output=folder, **options)


def values(found: SearchResult) -> list[Any]:
    return [{name: value for name, value in row.items() if name != "seconds_per_epoch"} for row in found.trials]


# == What is found ==


def test_the_lowest_validation_loss_is_scored_once(store: ZooStore, tmp_path: Path) -> None:
    found = tried(store, tmp_path / "search", 4)
    assert [row["trial"] for row in found.trials] == [1, 2, 3, 4]
    assert len({row["learning_rate"] for row in found.trials}) == 4
    assert all(1e-4 <= row["learning_rate"] <= 1e-2 and row["model_options.hidden"] in (4, 8, 16) for row in found.trials)
    assert found.trials[0]["learning_rate"] == 3e-3  # the first trial has the default values
    first = min(found.trials, key=lambda row: row["validation_loss"])
    assert found.best == {name: first[name] for name in SPACE}
    for row in found.trials:
        document = json.loads((tmp_path / "search" / f"trial{row['trial']}" / "result.json").read_text())
        assert document["config"]["test"] is False
        assert not {"tau", "r2"} & set(document["metrics"])
        assert document["config"]["learning_rate"] == row["learning_rate"]
        assert document["metrics"]["validation_loss"] == row["validation_loss"]
    # A run with the best values by hand comes to the same.
    options: dict[str, Any] = {"model": "statnn", "epochs": 1, "scales": [1], "intervals": 0, "progress": False}
    chosen = {"learning_rate": found.best["learning_rate"], "model_options": {"hidden": found.best["model_options.hidden"]}}
    alone = run("generalization", zoo=store, output=tmp_path / "alone", **options, **chosen)
    assert alone.metrics["tau"] == found.result.metrics["tau"]
    assert found.result.metrics["validation_loss"] == first["validation_loss"]
    document = json.loads((tmp_path / "search" / "search.json").read_text())
    assert (document["best"], len(document["trials"])) == (found.best, 4)
    assert document["result"]["metrics"]["tau"] == alone.metrics["tau"]
    with (tmp_path / "search" / "trials.csv").open() as file:
        assert [float(row["validation_loss"]) for row in csv.DictReader(file)] == [row["validation_loss"] for row in found.trials]
    assert repr(found).startswith("SearchResult(4 trials, learning_rate=")


def test_a_search_goes_on_as_if_it_had_not_been_interrupted(store: ZooStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Beyond the ten that Optuna draws at random, it learns from those before.
    one_go = tried(store, tmp_path / "one", 12)
    calls: list[Path] = []
    interrupts = [12, 3]

    def interrupted(task: Any, **options: Any) -> Any:
        calls.append(Path(options["output"]))
        if interrupts and len(calls) == interrupts[-1]:
            interrupts.pop()
            raise KeyboardInterrupt
        return run(task, **options)

    monkeypatch.setattr(searching, "run", interrupted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            tried(store, tmp_path / "two", 12)
    again = tried(store, tmp_path / "two", 12)
    names = [path.name for path in calls]
    assert names == [*(f"trial{i}" for i in (1, 2, 3, 3, 4, 5, 6, 7, 8, 9, 10, 11, 11, 12)), f"best-{one_go.result.folder.name[5:]}"]
    assert values(again) == values(one_go)
    assert again.best == one_go.best
    # Finished searches are read; more trials go on.
    calls.clear()
    assert values(tried(store, tmp_path / "two", 12)) == values(one_go)
    assert [path.name for path in calls] == [one_go.result.folder.name]
    assert values(tried(store, tmp_path / "two", 13))[:12] == values(one_go)
    assert [path.name for path in calls][1] == "trial13"
    assert values(tried(store, tmp_path / "seed", 2, seed=1))[1] != values(one_go)[1]


def test_trials_that_fail(store: ZooStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space = {"learning_rate": [1e-3, 1e30], "model_options.dropout": [0.0, 7.0]}
    found = tried(store, tmp_path / "search", 6, search_space=space, learning_rate=1e-3, progress=True)
    failed = [row for row in found.trials if row["error"]]
    assert 0 < len(failed) < 6
    for row in failed:
        assert ("dropout probability" if row["model_options.dropout"] == 7 else "Training diverged") in row["error"]
        assert row["validation_loss"] is None
    assert found.best == {"learning_rate": 1e-3, "model_options.dropout": 0.0}
    assert "trial 6 of 6" in capsys.readouterr().err
    # What fails from the start is wrong in the call, which may be mended.
    with pytest.raises(ValueError, match="has no column 'los'"):
        tried(store, tmp_path / "mended", target="los")
    assert len(tried(store, tmp_path / "mended", 1).trials) == 1
    with pytest.raises(ValueError, match="No trial of the search succeeded: Training diverged"):
        tried(store, tmp_path / "diverged", 2, search_space={"learning_rate": [1e30, 1e31]})


def test_a_folder_holds_one_search(store: ZooStore, tmp_path: Path) -> None:
    tried(store, tmp_path / "search", 1)
    with pytest.raises(ValueError, match=r"another search in .*epochs: 1 there, 2 now\)\. Choose another 'output'"):
        tried(store, tmp_path / "search", 1, epochs=2)
    with pytest.raises(ValueError, match=r"another search in .*search_space: "):
        tried(store, tmp_path / "search", 1, search_space={"learning_rate": [1e-3, 1e-2]})
    assert len(tried(store, tmp_path / "search", 1, epochs=2, overwrite=True).trials) == 1
    with pytest.raises(ValueError, match="holds a zoo or a run: choose another 'output'"):
        tried(store, Path(store.path), 1)
    with filelock.FileLock(tmp_path / "search" / ".lock"), pytest.raises(ValueError, match="Another process searches in"):
        tried(store, tmp_path / "search", 1, epochs=2)
    (tmp_path / "search" / "search.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        tried(store, tmp_path / "search", 1)


# == What is varied ==


def test_spaces_are_plain_data() -> None:
    options: dict[str, Any] = {"model": "neural_graph", "zoo": "zoo"}
    space: dict[str, list[Any]] = {
        "learning_rate": [1, 2, "uniform"],
        "batch_size": [8, 64, "log"],
        "model_options.dropout": [0, 1, "uniform"],
        "model_options.layers": [1, 4, "uniform"],
        "model_options.channels": [16, 32],
        "schedule": ["one_cycle", "cosine"],
        "canonicalize": [[], ["sign"]],
    }
    found = {each.name: each for each in read_space(Prediction, space, options)}
    assert [name for name, each in found.items() if each.is_integer] == ["batch_size", "model_options.layers"]
    assert [name for name, each in found.items() if each.is_range] == list(space)[:4]
    defaults = default_values(Prediction, options, list(found.values()))
    assert defaults == {
        "batch_size": 64,
        "model_options.dropout": 0.1,
        "model_options.layers": 3,
        "model_options.channels": 32,
        "schedule": "one_cycle",
    }


def test_what_is_given_is_not_varied() -> None:
    for name in list_models():
        space = default_space(Prediction, {"model": name})
        widths = {f"model_options.{option}" for option in scaled_widths(name, 1)}
        assert widths
        assert set(space) == {"learning_rate", "weight_decay", *widths}
        for each in read_space(Prediction, space, {"model": name}):
            assert each.name in default_values(Prediction, {"model": name}, [each])
    assert default_space(Prediction, {"model": "statnn", "learning_rate": 1e-3, "weight_decay": 0.0}) == {
        "model_options.hidden": [128, 256, 512]
    }
    assert "model_options.hidden" not in default_space(INREditing, {"model": "np"})


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"search_space": {"zoo": ["a", "b"]}}, TypeError, "A search cannot vary 'zoo': its runs are compared by their validation loss"),
        ({"search_space": {"learning_rat": [1, 2]}}, TypeError, "A search cannot vary 'learning_rat': .* Did you mean 'learning_rate'"),
        ({"search_space": {"model_options": [1, 2]}}, TypeError, r"model_options\.NAME"),
        ({"search_space": {"model_options.hiden": [1, 2]}}, TypeError, r"'statnn' has no option 'hiden'\. Did you mean 'hidden'\?"),
        ({"search_space": {"learning_rate": []}}, ValueError, r"\[low, high, 'log'\], \[low, high, 'uniform'\] or choices"),
        ({"search_space": {"learning_rate": 0.1}}, ValueError, r"got learning_rate: 0\.1"),
        ({"search_space": {"learning_rate": [0, 1, "log"]}}, ValueError, "logarithmic range of 'learning_rate' to be above 0"),
        ({"search_space": {"learning_rate": [2, 1, "uniform"]}}, ValueError, "of which the first is smaller"),
        ({"search_space": {"canonicalize": [{1, 2}]}}, ValueError, "to be plain values"),
        ({"search_space": {"learning_rate": [1e-4, 1e-2, "lin"]}}, ValueError, r"or choices of one kind \(got \[0.0001, 0.01, 'lin'\]\)"),
        ({"search_space": {}}, ValueError, "nothing to vary"),
        ({"trials": 0}, ValueError, "Expected 'trials' to be an integer of at least 1"),
        ({"ray": "local", "workers": 0}, ValueError, "Expected 'workers' to be an integer of at least 1"),
        ({"devices": 2}, ValueError, "leave 'devices' out"),
        ({"epoch": 2}, TypeError, "Did you mean 'epochs'"),
    ],
)
def test_errors(store: ZooStore, tmp_path: Path, options: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        tried(store, tmp_path / "search", **options)
    assert not os.listdir(tmp_path)


def test_optuna_that_is_not_installed(store: ZooStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r"pip install 'wsgraph\[search\]'"):
        tried(store, tmp_path / "search")
    monkeypatch.undo()
    with pytest.raises(TypeError, match="Expected the option 'zoo'"):
        search("generalization")


# == From the command line ==


def test_searches_from_the_command_line(store: ZooStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.toml").write_text('model = "statnn"\nepochs = 1\nintervals = 0\n[search_space]\n"model_options.hidden" = [4, 8]\n')
    words = ["train", "generalization", "--zoo", str(store.path), "--config", "run.toml", "--scale", "1"]
    result = CliRunner().invoke(app, [*words, "--search", "2", "--search-space", "learning_rate=1e-4,1e-2,log"])
    text = " ".join(result.output.split())
    assert result.exit_code == 0, text
    for part in ("2 trials", "learning_rate params validation loss", "tau: Kendall's tau", "Trials, trials.csv and search.json: runs/"):
        assert part in text
    assert (tmp_path / "runs" / "generalization" / "zoo-statnn-seed0-search" / "trial2").is_dir()
    # Only standard output is JSON, and the file says what to vary too.
    result = CliRunner().invoke(app, [*words, "--search", "1", "--json", "--output", "other"])
    assert list(json.loads(result.stdout)["best"]) == ["model_options.hidden"]
    for more, message in (
        (["--search", "2", "--folds", "3"], "Expected --search or --folds (got both)"),
        (["--search-space", "learning_rate=1,2"], "are for searches: give the number of trials"),
        (["--search", "2", "--search-space", "learning_rate"], "Expected --search-space as NAME=VALUE"),
        (["--search", "2", "--search-spce", "learning_rate=1,2"], "There is no option --search-spce. Did you mean --search-space?"),
    ):
        result = CliRunner().invoke(app, [*words, *more])
        assert result.exit_code == 1
        assert message in " ".join((result.output + result.stderr).split())
    assert CliRunner().invoke(app, [*words, "--epochs", "2"]).exit_code == 0  # a run is none of it
