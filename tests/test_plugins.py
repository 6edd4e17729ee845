import os
import re
import shlex
import sys
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.tasks.test_generalization import make_store
from wsgraph import WeightSpace, plugins
from wsgraph.bench import bench, run_suite
from wsgraph.bench.cells import Cell, run_cells
from wsgraph.cli import app
from wsgraph.cli.results import print_results
from wsgraph.nn import list_models
from wsgraph.nn import registry as models
from wsgraph.plugins import Registry, add_plugin, import_place, load_plugins
from wsgraph.report import write_report
from wsgraph.space import OPERATORS
from wsgraph.tasks import list_tasks, read_results, run
from wsgraph.tasks import registry as tasks

PLUGIN = '''
"""Somebody's model, operator, task and suite."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from wsgraph.bench import register_suite
from wsgraph.nn import register_model
from wsgraph.space import register_operator
from wsgraph.scores import SCORES
from wsgraph.tasks import Generalization, Task, option, register_task


@dataclass
class Settings:
    width: int = 1


@register_model("theirs", family="statistics")
class Theirs(nn.Module):
    """The mean weight."""

    symmetries = ("permutation",)

    def __init__(self, space, out_channels):
        super().__init__()
        self.head = nn.Linear(1, out_channels)

    def forward(self, batch):
        return self.head(batch.thetas().mean(1, keepdim=True))


@register_task
@dataclass(frozen=True)
class TheirPrediction(Task):
    name = "their_prediction"
    description = "Models predict the test accuracy."
    metrics = (SCORES["mae"],)

    target: str = option("test_accuracy", "Column to predict.", flag="--target")
    weight: float = option(1.0, "Weight of the loss.", flag="--weight", kind=float)

    def targets(self, data):
        return torch.from_numpy(data.column(self.target))

    def loss(self, outputs, targets):
        return self.weight * nn.functional.mse_loss(outputs[:, 0], targets.to(outputs.dtype))

    def predictions(self, outputs):
        return outputs[:, 0]


@register_task
@dataclass(frozen=True)
class TheirTask(Generalization):
    name = "their_task"


register_operator("cubed", lambda v: v**3, positive=False, sign=True)
register_suite("their_suite")(lambda bench: bench.write_table("their_suite", "Theirs", ["model"], [[name] for name in bench.models], {}))
'''


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file with the plugin, of which no trace is left afterwards."""
    (tmp_path / "theirs.py").write_text(PLUGIN)
    registries: list[Any] = [models._MODELS, tasks._TASKS, bench._SUITES, OPERATORS, plugins._loaded]
    before = [registry.copy() for registry in registries]
    monkeypatch.setenv("WSGRAPH_PLUGINS", "")
    yield tmp_path / "theirs.py"
    sys.modules.pop("theirs", None)
    for registry, kept in zip(registries, before, strict=True):
        registry.clear()
        registry.update(kept)


def test_installed_packages_add_models_tasks_suites_and_operators(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = plugin.parent
    (folder / "theirs-1.0.dist-info").mkdir()
    (folder / "theirs-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (folder / "theirs-1.0.dist-info" / "entry_points.txt").write_text("[wsgraph.plugins]\ntheirs = theirs\n")
    monkeypatch.syspath_prepend(str(folder))
    assert str(WeightSpace.mlp([2, 3, 1], "cubed").groups[1].symmetry) == "permutation x sign"
    assert "theirs" in list_models()
    assert "their_task" in list_tasks()
    for suite in ("their_suite", "invariance"):
        run_suite(suite, folder=folder, output=folder, models=["theirs"])
    assert "| theirs |" in (folder / "their_suite.md").read_text()
    assert "| theirs | permutation |" in (folder / "invariance.md").read_text()


def test_files_named_on_the_command_line_are_known_to_the_processes_that_train(plugin: Path) -> None:
    result = CliRunner().invoke(app, ["--plugin", str(plugin), "models"])
    assert "theirs" in result.output
    zoo = make_store(plugin.parent / "zoo", networks=24)
    (found,) = run_cells([Cell("generalization", Path(zoo.path), {"model": "theirs", "epochs": 1})], plugin.parent / "cells")
    assert found["metrics"]["parameters"] == 2
    before = Cell("generalization", Path(zoo.path), {"model": "theirs"}).name
    plugin.write_text(PLUGIN.replace("mean(1", "std(1"))
    assert Cell("generalization", Path(zoo.path), {"model": "theirs"}).name != before  # another model: it is trained again


def reproduced(folder: Path, page: Path) -> str:
    """The command that a report prints, run as in a process that knows no plugin."""
    write_report(page, [folder])
    text = unescape(re.findall(r"<code>(.*?)</code>", page.read_text(), flags=re.DOTALL)[0])
    for registry in (models._MODELS, tasks._TASKS, bench._SUITES, OPERATORS):
        for name in [name for name in registry if name in ("theirs", "their_task", "their_prediction", "their_suite", "cubed")]:
            del registry[name]
    plugins._loaded.clear()
    os.environ["WSGRAPH_PLUGINS"] = ""
    program, *words = shlex.split(text)
    if program == "python":
        exec(words[1], {})
    else:
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
    return text


def test_printed_commands_of_plugins_run(plugin: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(plugin.parent)
    make_store(plugin.parent / "zoo", networks=24)
    add_plugin("theirs.py")
    cases: list[tuple[str, dict[str, Any]]] = [
        ("their_prediction", {"model": "theirs"}),
        ("their_prediction", {"model": "statnn", "weight": 2.0}),
        ("generalization", {"model": "theirs", "epochs": 1, "model_options": {}}),
    ]
    for i, (task, options) in enumerate(cases):
        first = run(task, zoo="zoo", seed=1, output=f"first{i}", progress=False, **options)
        monkeypatch.chdir(plugin.parent)
        text = reproduced(Path(f"first{i}"), plugin.parent / "report.html")
        assert "theirs.py" in text
        again = read_results(f"runs/{first.task}/zoo-{first.config['model']}-seed1")[0]
        assert again["config"] == first.config
        assert {name: again["metrics"][name] for name in ("validation_loss", "parameters")} == {
            name: first.metrics[name] for name in ("validation_loss", "parameters")
        }
        if task == "their_prediction":  # whose errors are not those of pictures
            print_results([first], "theirs")
            assert "mae: mean absolute error, in units of the column on test networks" in capsys.readouterr().out
            assert "mae: mean absolute error, in units of the column." in (plugin.parent / "report.html").read_text(encoding="utf-8")


def test_a_changed_plugin_makes_other_runs(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(plugin.parent)
    make_store(plugin.parent / "zoo", networks=24)
    folders = []
    for text in (PLUGIN, PLUGIN, PLUGIN.replace("mean(1", "std(1")):
        plugin.write_text(text)
        for registry in (models._MODELS, tasks._TASKS, bench._SUITES, OPERATORS):
            for name in [name for name in registry if name in ("theirs", "their_task", "their_prediction", "their_suite", "cubed")]:
                del registry[name]
        plugins._loaded.clear()
        add_plugin("theirs.py")
        folders.append(run("generalization", zoo="zoo", model="theirs", epochs=1, progress=False).folder)
    assert folders[0] == folders[1] != folders[2]


def test_a_plugin_that_fails_is_named_and_takes_nothing_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.py").write_text("raise RuntimeError('out of order')")
    monkeypatch.setenv("WSGRAPH_PLUGINS", str(tmp_path / "broken.py"))
    with pytest.warns(UserWarning, match=r"The plugin '.*broken.py' of wsgraph cannot be loaded: RuntimeError: out of order"):
        load_plugins()
    load_plugins()  # each is tried once
    with pytest.raises(ImportError, match="There is no file"):
        add_plugin(str(tmp_path / "missing.py"))
    with pytest.raises(ImportError):
        import_place("no_such_module")
    assert os.environ["WSGRAPH_PLUGINS"] == str(tmp_path / "broken.py")


def test_names_are_taken_once() -> None:
    registry: Registry[int] = Registry("number")
    registry.add("one", 1)
    with pytest.raises(ValueError, match=r"A number named 'one' is registered already \(1\)"):
        registry.add("one", 2)
    with pytest.raises(ValueError, match=r"Unknown number 'two'\. Available numbers: one"):
        registry.find("two")
