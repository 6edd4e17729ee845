"""A run never deletes, overwrites or mixes with another, and goes on where it was interrupted."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import filelock
import pytest
import torch
from typer.testing import CliRunner

from tests.tasks.test_generalization import interrupt, make_store, same, train
from wsgraph import WeightSpace
from wsgraph.bench import Cell, run_cells
from wsgraph.bench import cells as cells_module
from wsgraph.cli import app
from wsgraph.data import ZooStore
from wsgraph.data.transforms import Compose, WeightNoise, WeightTransform
from wsgraph.files import prepare_folder
from wsgraph.nn import build_model, save_model
from wsgraph.tasks import Result, TrainedModel, read_results, run, training
from wsgraph.tasks import runs as runs_module
from wsgraph.tasks.runs import OtherRunError, RunningError, claimed

ROOT = Path(__file__).parents[2]
FEW: dict[str, Any] = {"model": "statnn", "epochs": 1, "progress": False, "intervals": 0, "model_options": {"hidden": 8}}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ZooStore:
    return make_store(tmp_path_factory.mktemp("zoos") / "relu", networks=24)


def default(zoo: ZooStore | Path | str, **options: Any) -> Result:
    """A run in the default folder."""
    return run("generalization", zoo=zoo, **{**FEW, **options})


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


# == Which folder ==


def test_a_sweep_keeps_all_of_its_runs(store: ZooStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = [default(store, learning_rate=rate) for rate in (1e-3, 1e-2, 1e-1)]
    assert [str(result.folder) for result in found] == [f"runs/generalization/relu-statnn-seed0{end}" for end in ("", "-2", "-3")]
    before = contents(tmp_path / "runs")
    again = default(store, learning_rate=1e-2)
    assert again.folder == found[1].folder
    assert again.metrics == found[1].metrics
    assert contents(tmp_path / "runs") == before
    assert sorted(document["config"]["learning_rate"] for document in read_results("runs")) == [1e-3, 1e-2, 1e-1]
    trained_again = default(store, learning_rate=1e-2, overwrite=True)  # that run alone
    assert trained_again.folder == found[1].folder
    after = contents(tmp_path / "runs")
    assert {name for name in after if after[name] != before.get(name)} <= {name for name in before if "seed0-2/" in name}
    with pytest.raises(OtherRunError, match=r"There exists another run in .*learning_rate: 0.001 there, 0.5 now"):
        default(store, learning_rate=0.5, resume=True)


def test_other_contents_under_the_same_name_are_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    zoo = make_store(tmp_path / "a" / "zoo", networks=24)
    first = default(zoo)
    namesake = default(make_store(tmp_path / "b" / "zoo", "tanh", networks=24))
    assert namesake.folder != first.folder
    shutil.copytree(tmp_path / "a", tmp_path / "c")
    assert default(tmp_path / "c" / "zoo").folder == first.folder  # moved, and still the same networks
    zoo.set_column("test_accuracy", [0.5, *zoo.column("test_accuracy").tolist()[1:]])
    assert default(ZooStore(zoo.path)).folder not in (first.folder, namesake.folder)
    monkeypatch.chdir(zoo.path)
    assert default(".").folder.name == "zoo-statnn-seed0"


def test_options_that_print_alike_are_other_runs(store: ZooStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Scaled(WeightTransform):
        def __init__(self, factor: float) -> None:
            self._factor = factor

        def weights(self, space: WeightSpace, thetas: torch.Tensor) -> torch.Tensor:
            return thetas

    monkeypatch.chdir(tmp_path)
    bounds = sorted(store.column("test_accuracy"))[2:4]
    bounds.append(bounds[0])
    folders = [default(store, select={"test_accuracy": lambda accuracy, bound=bound: accuracy > bound}).folder for bound in bounds]
    assert folders[0] == folders[2] != folders[1]  # what counts is which networks were chosen
    folders = [default(store, augment=augment).folder for augment in (WeightNoise(0.1), WeightNoise(0.1), WeightNoise(0.2))]
    assert folders[0] == folders[1] != folders[2]
    # What the text of somebody's transform leaves out counts too, also within another.
    assert len({default(store, augment=Scaled(factor)).folder for factor in (1.0, 2.0, 1.0)}) == 2
    assert len({default(store, augment=Compose([WeightNoise(0.1), Scaled(factor)])).folder for factor in (1.0, 2.0)}) == 2


def test_a_folder_that_was_named_is_refused_to_others(store: ZooStore, tmp_path: Path) -> None:
    train(store, tmp_path / "run")
    before = contents(tmp_path / "run")
    cases: list[tuple[dict[str, Any], str]] = [({"seed": 7}, ""), ({"epochs": 3}, r"resume=True \(--resume\) to continue it, ")]
    for more, hint in cases:
        with pytest.raises(
            OtherRunError,
            match=rf"There exists another run in .*run', which is kept .*Choose another 'output' .*, .*{hint}or give overwrite=True",
        ):
            train(store, tmp_path / "run", **more)
    with pytest.raises(OtherRunError, match="seed: 0 there, 7 now"):
        train(store, tmp_path / "run", seed=7, resume=True)
    assert contents(tmp_path / "run") == before
    other = train(store, tmp_path / "run", seed=7, overwrite=True)
    assert same(other, train(store, tmp_path / "fresh", seed=7))
    assert len(read_results(tmp_path / "run")) == 1


def test_what_is_no_run_is_left_alone(store: ZooStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match=r"which is a file. Choose a folder"):
        train(store, tmp_path / "file")
    zoo = make_store(tmp_path / "zoo", networks=12)
    save_model(build_model("statnn", store.space, 1), tmp_path / "model")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "best.ckpt").write_text("theirs")
    for name, message in (
        ("zoo", "is a zoo: choose another 'output'"),
        ("model", "holds a saved model or files of another kind, and no run"),
        ("theirs", "holds a saved model or files of another kind, and no run"),
        ("weights", "holds 'best.ckpt', and no record of the run that wrote it"),
    ):
        before = contents(tmp_path / name)
        for overwrite in (False, True):
            with pytest.raises(OtherRunError, match=message):
                train(store, tmp_path / name, overwrite=overwrite)
        assert contents(tmp_path / name) == before
    assert not zoo.verify()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").write_text("mine")
    train(store, tmp_path / "notes")
    assert (tmp_path / "notes" / "notes.txt").read_text() == "mine"


def test_damaged_records(store: ZooStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(store, tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text('{"model": ')
    with pytest.raises(ValueError, match=r"config.json' is damaged .* or give overwrite=True \(--overwrite\) to remove the run"):
        train(store, tmp_path / "run")
    assert train(store, tmp_path / "run", overwrite=True).metrics
    (tmp_path / "run" / "result.json").write_text('{"task": ')
    with pytest.raises(ValueError, match=r"result.json' is damaged .*overwrite=True"):
        train(store, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    first = default(store)
    (first.folder / "config.json").write_text("[")
    assert default(store).folder.name == "relu-statnn-seed0-2"
    assert (first.folder / "result.json").exists()


def test_what_a_killed_run_left_is_cleaned_up(store: ZooStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(store, tmp_path / "run", monkeypatch, epochs=4)
    left = [f".result.json.{'0' * 32}.tmp", ".write-test-12345"]
    for name in (*left, ".mine.tmp"):
        (tmp_path / "run" / name).write_text("")
    train(store, tmp_path / "run", epochs=4)
    assert [(tmp_path / "run" / name).exists() for name in (*left, ".mine.tmp")] == [False, False, True]


# == One at a time ==


def test_two_runs_in_one_folder_at_once_are_refused(store: ZooStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options: dict[str, Any] = {
        "base": Path("runs/generalization/relu-statnn-seed0"),
        "resume": False,
        "overwrite": False,
        "distributed": False,
    }
    config = default(store).config
    with claimed(**options, config=config, numbered=True):  # as another process that has the run
        for overwrite in (False, True):
            with pytest.raises(RunningError, match=r"Another process trains in .*relu-statnn-seed0': wait until it has finished"):
                default(store, overwrite=overwrite)
            with pytest.raises(RunningError, match=r"Another process trains"):
                default(store, output=options["base"], overwrite=overwrite)
        assert default(store, seed=0, learning_rate=0.5).folder.name == "relu-statnn-seed0-2"
    assert default(store).folder == options["base"]  # free again


@pytest.mark.slow
def test_processes_that_start_at_the_same_instant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    errors: list[str] = []
    everybody = threading.Barrier(6)

    def claim(rate: float) -> None:
        everybody.wait()
        try:
            config = {"model": "m", "epochs": 1, "rate": rate}
            with claimed(tmp_path / "run", config, numbered=True, resume=False, overwrite=False, distributed=False) as claim:
                taken.append(claim.folder.name)
                done.wait(20)
        except RunningError as error:
            errors.append(str(error))
            if len(errors) == 3:
                done.set()

    done = threading.Event()
    threads = [threading.Thread(target=claim, args=(rate,)) for rate in (1.0, 2.0, 3.0, 1.0, 2.0, 3.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == ["run", "run-2", "run-3"]
    assert len(errors) == 3
    recorded = {json.loads((tmp_path / name / "config.json").read_text())["rate"] for name in taken}
    assert recorded == {1.0, 2.0, 3.0}


def test_a_folder_is_writable_though_another_process_tidies_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Path.touch

    def touch(self: Path) -> None:
        made(self)
        runs_module._remove_temporary(tmp_path)

    monkeypatch.setattr(Path, "touch", touch)
    assert prepare_folder(tmp_path) == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_never_records_is_not_waited_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs_module, "_PATIENCE", 0.2)
    (tmp_path / "run").mkdir()
    with (
        filelock.FileLock(tmp_path / "run" / ".lock"),
        pytest.raises(RunningError, match=r"Another process trains"),
        claimed(tmp_path / "run", {"model": "m"}, numbered=True, resume=False, overwrite=False, distributed=False),
    ):
        pass
    assert not (tmp_path / "run" / "config.json").exists()


# == Interrupts ==


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user presses Ctrl-C in the third epoch."""
    original = training.Objective.training_step

    def step(self: training.Objective, batch: Any, number: int) -> Any:
        if self.current_epoch == 2:
            monkeypatch.setattr(training.Objective, "training_step", original)
            raise KeyboardInterrupt
        return original(self, batch, number)

    monkeypatch.setattr(training.Objective, "training_step", step)


def test_an_interrupt_says_how_to_continue(store: ZooStore, tmp_path: Path, interrupted: None) -> None:
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(
        KeyboardInterrupt, match=r"Interrupted. Finished epochs are kept in '.*run': repeat what started the run to continue"
    ):
        train(store, tmp_path / "run", epochs=4)
    assert signal.getsignal(signal.SIGINT) is handler  # which Lightning sets to ignore all that follow
    assert same(train(store, tmp_path / "run", epochs=4), train(store, tmp_path / "whole", epochs=4))


def test_a_run_that_is_told_to_end_is_no_success(
    store: ZooStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    original = training.Objective.training_step

    def step(self: training.Objective, batch: Any, number: int) -> Any:
        if self.current_epoch == 2:
            monkeypatch.setattr(training.Objective, "training_step", original)
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch, number)

    monkeypatch.setattr(training.Objective, "training_step", step)
    handler = signal.getsignal(signal.SIGTERM)
    command = ["train", "generalization", "--zoo", str(store.path), "--model", "statnn", "--epochs", "4", "--output", str(tmp_path / "run")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 128 + signal.SIGTERM
    assert "Terminated. Finished epochs are kept in" in result.output + capfd.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is handler
    assert not (tmp_path / "run" / "result.json").exists()
    assert CliRunner().invoke(app, command).exit_code == 0
    assert (tmp_path / "run" / "result.json").exists()


def test_the_status_of_an_interrupted_command(store: ZooStore, tmp_path: Path, interrupted: None) -> None:
    command = ["train", "generalization", "--zoo", str(store.path), "--model", "statnn", "--epochs", "4", "--output", str(tmp_path / "run")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 130
    assert "Interrupted. Finished epochs are kept in" in result.output
    assert CliRunner().invoke(app, command).exit_code == 0
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 0
    assert "finished already in" in " ".join(again.output.split())


def test_an_interrupted_benchmark(store: ZooStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("wsgraph.bench.bench.run_cells", stop)
    command = ["bench", "generalization", "--zoo", f"mine={store.path}", "--model", "statnn", "--folder", str(tmp_path)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 130, result.output
    assert "Interrupted. Zoos and finished epochs are kept" in result.output


_SCRIPT = """
import sys
from wsgraph.bench import Cell, run_cells
from pathlib import Path
if __name__ == "__main__":
    run_cells([Cell("generalization", Path(sys.argv[1]), {"model": "statnn", "epochs": 100000, "scales": [1]})], Path(sys.argv[2]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("what", ["train", "bench"])
def test_a_signal_ends_all_that_was_started(store: ZooStore, tmp_path: Path, what: str) -> None:
    (tmp_path / "script.py").write_text(_SCRIPT)
    options = ["--zoo", str(store.path), "--model", "statnn", "--epochs", "100000", "--output", str(tmp_path / "run")]
    command = ["-m", "wsgraph", "train", "generalization", *options] if what == "train" else ["script.py", str(store.path), "cells"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, *command], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list(tmp_path.rglob("last.ckpt")):
        threading.Event().wait(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in ((130,) if what == "train" else (130, -signal.SIGINT)), errors
    assert ("Interrupted. Finished epochs are kept" if what == "train" else "KeyboardInterrupt") in errors
    folder = next(tmp_path.rglob("last.ckpt")).parent
    with filelock.FileLock(folder / ".lock").acquire(timeout=20):  # nobody works there any more
        assert not (folder / "result.json").exists()


# == More epochs ==


def rates(folder: Path) -> list[float]:
    """Validation losses of the epochs in the log, of all attempts."""
    logs = [*sorted(folder.glob("metrics.*.csv")), folder / "metrics.csv"]
    return [float(row["val_loss"]) for log in logs for row in csv.DictReader(log.read_text().splitlines()) if row["val_loss"]]


def test_a_finished_run_is_continued_with_more_epochs(store: ZooStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = {"epochs": 2, "learning_rate": 1e-2}
    first = default(store, **options)
    kept = contents(first.folder)
    learning: list[float] = []
    monkeypatch.setattr(
        training.Objective, "on_train_batch_start", lambda self, *_: learning.append(self.optimizers().param_groups[0]["lr"])
    )
    longer = default(store, **{**options, "epochs": 5}, resume=True)
    assert longer.folder == first.folder
    assert longer.config["continued_from"] == [2]
    assert longer.config["epochs"] == 5
    # The rate goes on where that of a run of five epochs is after two.
    steps = len(learning) // 3
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    whole = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=5 * steps)
    expected = []
    for _ in range(5 * steps):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        whole.step() if len(expected) < 5 * steps else None
    assert learning == pytest.approx(expected[2 * steps :])
    assert len(rates(longer.folder)) == 5
    # The result of the shorter run is kept, with its model.
    earlier = contents(first.folder / "epochs-2")
    assert earlier["result.json"] == kept["result.json"]
    assert earlier["model/model.safetensors"] == kept["model/model.safetensors"]
    assert sorted(document["config"]["epochs"] for document in read_results("runs")) == [2, 5]
    assert TrainedModel.load(first.folder / "epochs-2").config["epochs"] == 2
    # It is not the run of five epochs, nor taken for it.
    assert default(store, **{**options, "epochs": 5}, resume=True).metrics == longer.metrics
    assert default(store, **{**options, "epochs": 5}).folder.name == "relu-statnn-seed0-2"
    with pytest.raises(OtherRunError, match=r"continued_from: \[2\] there, None now.*resume=True"):
        default(store, **{**options, "epochs": 5}, output=first.folder)
    with pytest.raises(OtherRunError, match="epochs: 5 there, 3 now"):
        default(store, **{**options, "epochs": 3}, output=first.folder, resume=True)


def test_an_interrupted_run_is_continued_with_more_epochs(store: ZooStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(store, tmp_path / "run", monkeypatch, epochs=4)
    longer = train(store, tmp_path / "run", epochs=6, resume=True)
    assert longer.config["continued_from"] == [4]
    assert not (tmp_path / "run" / "epochs-4").exists()  # there was no result to keep
    (tmp_path / "run" / "last.ckpt").unlink()
    with pytest.raises(OtherRunError, match=r"cannot be continued: its 'last.ckpt' is missing"):
        train(store, tmp_path / "run", epochs=8, resume=True)
    assert (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize("function", ["copytree", "rmtree"])
def test_a_run_that_is_killed_while_it_is_lengthened_stays_what_it_is(
    store: ZooStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise RuntimeError("killed")

    train(store, tmp_path / "run")
    kept = contents(tmp_path / "run")
    with monkeypatch.context() as patched:
        patched.setattr(shutil, function, killed)
        with pytest.raises(RuntimeError, match="killed"):
            train(store, tmp_path / "run", epochs=4, resume=True)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["epochs"] == 2
    assert train(store, tmp_path / "run", epochs=4, resume=True).config["continued_from"] == [2]
    assert contents(tmp_path / "run" / "epochs-2")["result.json"] == kept["result.json"]


def test_a_run_that_was_moved_keeps_its_best_epoch(store: ZooStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Epochs get worse: where the best so far were forgotten, a later one would take its place.
    losses = iter([0.1, 0.2, 0.3, 0.4, 0.5])
    options: dict[str, Any] = {"epochs": 5, "learning_rate": 1e-3}
    original = training.Objective.on_validation_epoch_end

    def worse(self: training.Objective) -> None:
        log = self.log
        loss = next(losses)
        self.log = lambda name, value, **more: log(name, torch.tensor(loss) if name == "val_loss" else value, **more)  # type: ignore[method-assign]
        original(self)
        self.log = log  # type: ignore[method-assign]
        if self.current_epoch == 2 and loss == 0.3:
            raise RuntimeError("the machine went away")

    monkeypatch.setattr(training.Objective, "on_validation_epoch_end", worse)
    with pytest.raises(RuntimeError, match="went away"):
        train(store, tmp_path / "run", **options)
    (tmp_path / "run").rename(tmp_path / "moved")
    assert train(store, tmp_path / "moved", **options).metrics["best_epoch"] == 1
    assert not (tmp_path / "run").exists()


def test_epochs_of_all_attempts_are_timed(store: ZooStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"epochs": 3}
    original = training._EpochProgress.on_train_epoch_end

    def stop(self: Any, trainer: Any, module: Any) -> None:
        original(self, trainer, module)

    monkeypatch.setattr(training._EpochProgress, "on_train_epoch_end", stop)
    evaluate = TrainedModel.evaluate
    monkeypatch.setattr(TrainedModel, "evaluate", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # after the last epoch, before its scores
        train(store, tmp_path / "run", **options)
    monkeypatch.setattr(TrainedModel, "evaluate", evaluate)
    assert train(store, tmp_path / "run", **options).metrics["seconds_per_epoch"] > 0


# == Architectures of other splits ==


def mixed_zoo(path: Path, split: str, second: WeightSpace) -> ZooStore:
    first = WeightSpace.mlp([2, 4, 1])
    accuracies = [0.1 * (j % 9) + 0.05 for j in range(12)]
    table = {"test_accuracy": accuracies, "split": ["train"] * 8 + ["val"] * 2 + ["test"] * 2}
    zoo = ZooStore.create(path, first, first.sample(12), table)
    zoo.append(second, second.sample(4), {"test_accuracy": accuracies[:4], "split": [split] * 4})
    return zoo


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize(
    ("model", "space", "message"),
    [
        (
            "neural_graph",
            WeightSpace.mlp([3, 4, 1]),
            r"3-4-1.* in the split '{}' have an architecture that no training network has: .*places",
        ),
        ("monomial_gnn", WeightSpace.mlp([2, 4, 4, 1]), r"2-4-4-1.* in the split '{}' have an architecture that no training network has"),
        ("scalegmn", WeightSpace.mlp([2, 4, 1], "tanh"), r"tanh.* in the split '{}' have an architecture that no training network has"),
        ("statnn", WeightSpace.mlp([2, 5, 1]), r"'statnn' reads networks of one architecture .*the split '{}' holds networks of .*2-5-1"),
        ("neural_graph", WeightSpace.mlp([2, 7, 1]), None),
        ("monomial_gnn", WeightSpace.mlp([2, 7, 1]), None),
    ],
)
def test_architectures_that_no_training_network_has(
    tmp_path: Path, split: str, model: str, space: WeightSpace, message: str | None
) -> None:
    zoo = mixed_zoo(tmp_path / "zoo", split, space)
    if message is None:
        result = train(zoo, tmp_path / "run", model, epochs=1)
        assert {"tau", "validation_loss"} <= set(result.metrics)
    else:
        with pytest.raises(ValueError, match=message.format(split)):
            train(zoo, tmp_path / "run", model, epochs=1)
        assert not (tmp_path / "run").exists()


def test_models_of_others_are_asked_before_they_are_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wsgraph.nn import register_model
    from wsgraph.nn import registry as models

    class Picky(torch.nn.Module):
        """Reads networks with two inputs."""

        symmetries = ("permutation",)

        def __init__(self, space: Any, out_channels: int) -> None:
            super().__init__()
            self.head = torch.nn.Linear(1, out_channels)

        def forward(self, batch: Any) -> Any:
            if any(space.groups[0].size != 2 for space in batch.spaces):
                raise ValueError("two inputs, please")
            return self.head(batch.x.new_ones(batch.num_networks, 1))

    monkeypatch.setattr(models, "_MODELS", models._MODELS.__class__("model"))
    register_model("picky", family="statistics", mixed=True)(Picky)
    zoo = mixed_zoo(tmp_path / "zoo", "val", WeightSpace.mlp([3, 4, 1]))
    with pytest.raises(ValueError, match=r"'picky' cannot read networks of .*3-4-1.* in the split 'val': two inputs, please"):
        train(zoo, tmp_path / "run", "picky", epochs=1)
    assert not (tmp_path / "run").exists()


def test_cells_wait_for_each_other(store: ZooStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = Cell("generalization", Path(store.path), {"model": "statnn", "epochs": 1})
    answers: list[Any] = []
    threads = [threading.Thread(target=lambda: answers.append(cells_module._train(cell, tmp_path, 1))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers[0]["metrics"] == answers[1]["metrics"]
    assert run_cells([cell], tmp_path)[0]["metrics"] == answers[0]["metrics"]
