import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

from tests.tasks.test_generalization import make_store
from wsgraph import WeightSpace, __version__
from wsgraph.cli import app
from wsgraph.cli.results import print_results
from wsgraph.data import ZooStore
from wsgraph.plot import in_order_of_styles
from wsgraph.space import Signal
from wsgraph.tasks import Result


def call(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "80"})
    assert result.exit_code == code, result.output
    return result.output


def test_help_names_every_command() -> None:
    text = call("--help")
    for command in ("quickstart", "train", "info", "convert", "check", "models", "zoo"):
        assert command in text


def test_version() -> None:
    assert call("--version").strip() == __version__


def test_models() -> None:
    text = call("models")
    assert "monomial_gnn" in text
    assert "permutation x scale x sign" in text


def test_info_reads_a_checkpoint(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
    save_file(module.state_dict(), tmp_path / "model.safetensors")
    text = call("info", str(tmp_path / "model.safetensors"), "--activation", "tanh")
    assert "WeightSpace(2-3-1, linear | linear, tanh, 13 parameters)" in text
    assert "permutation x sign" in text


def test_info_says_what_it_assumes(tmp_path: Path) -> None:
    save_file(torch.nn.Linear(2, 3).state_dict(), tmp_path / "model.safetensors")
    assert "relu is assumed" in call("info", str(tmp_path / "model.safetensors"))
    assert "assumed" not in call("info", str(tmp_path / "model.safetensors"), "--activation", "tanh")


def test_interrupts_say_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("wsgraph.data.make_mlp_zoo", interrupted)
    assert "Interrupted. Zoos and finished epochs are kept" in call("zoo", "make-mlp", str(tmp_path / "zoo"), code=130)


def test_unfinished_zoos_are_named(tmp_path: Path) -> None:
    ZooStore.begin(tmp_path / "zoo")
    assert "0 networks, 0 weight spaces, 0 columns, 0 shards, not finished" in call("zoo", "info", str(tmp_path / "zoo"))
    assert "is not finished. Repeat the command" in call("zoo", "verify", str(tmp_path / "zoo"), code=1)


def test_info_explains_what_it_cannot_read(tmp_path: Path) -> None:
    assert "Error:" in call("info", str(tmp_path / "missing.pt"), code=1)
    save_file({"bn.weight": torch.ones(3)}, tmp_path / "norm.safetensors")
    assert "'bn.weight'" in call("info", str(tmp_path / "norm.safetensors"), code=1)


def test_train_generalization(tmp_path: Path) -> None:
    make_store(tmp_path / "zoo")
    arguments = ["train", "generalization", "--zoo", str(tmp_path / "zoo"), "--model", "statnn", "--epochs", "2", "--scale", "1"]
    text = call(*arguments, "--scale", "50", "--output", str(tmp_path / "run"))
    assert "statnn" in text
    assert "s=50" in text
    assert "…" not in text
    assert all(len(line) <= 80 for line in text.splitlines() if line.startswith((" model", " statnn", "model", "statnn")))
    assert "tau_scale_50" in json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]
    more = ["--train-size", "20", "--augment-scale", "10", "--test-zoo", f"again={tmp_path / 'zoo'}", "--output", str(tmp_path / "more")]
    assert call(*arguments, *more)
    document = json.loads((tmp_path / "more" / "result.json").read_text())
    assert document["metrics"]["tau_on_again"] == document["metrics"]["tau"]
    assert document["config"]["networks"]["train"] == 20
    assert document["config"]["augment"].startswith("RandomSymmetry(scale=(1.0, 10.0)")


def test_bench_takes_seeds_and_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr("wsgraph.bench.run_suite", lambda suite, **options: seen.update(options, suite=suite))
    assert "results" in call("bench", "inr", "--full", "--seeds", "4", "--epochs", "7", "--folder", str(tmp_path), "--zoo", "a=x/y=z")
    assert seen["suite"] == "inr"
    assert seen["size"].seeds == (0, 1, 2, 3)
    assert (seen["size"].epochs, seen["size"].networks, seen["size"].pictures) == (7, 2000, 10000)
    call("bench", "editing", "--networks", "50", "--folder", str(tmp_path))
    assert (seen["size"].epochs, seen["size"].networks, seen["size"].pictures) == (6, 50, 50)
    call("bench", "inr", "--full", "--seeds", "4", "--folder", str(tmp_path), "--zoo", "a=x/y=z")
    assert seen["zoos"] == {"a": Path("x/y=z")}
    assert "(default: all)" in " ".join(call("bench", "--help").replace("│", " ").split())


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["train", "generalization", "--zoo", "ZOO", "--model", "nothing"], "Unknown model 'nothing'"),
        (["train", "other", "--zoo", "ZOO"], "Unknown task 'other'"),
        (["train", "inr_editing", "--zoo", "ZOO", "--augment-scale", "2"], "There is no option --augment-scale. The task has --operation"),
        (["train", "generalization", "--zoo", "ZOO", "--test-zoo", "x="], "Expected --test-zoo as NAME=VALUE (got 'x=')"),
        (["train", "generalization", "--zoo", "missing"], "missing"),
        (["train", "generalization", "--zoo", "ZOO", "--output", "FILE/run"], "Cannot write to"),
        (["zoo", "info", "missing"], "missing"),
        (["zoo", "make-cnn", "FILE/zoo", "--networks", "2"], "Cannot write"),
        (
            ["zoo", "make-cnn", "new", "--architecture", "vgg"],
            "Unknown architecture 'vgg'. Available architectures: cnn, mixer, ",
        ),
        (["zoo", "make-cnn", "new", "--architecture", "vit", "--channels", "8"], "The architecture 'vit' has no option 'channels'"),
        (["zoo", "make-cnn", "new", "--option", "width"], "Expected --option as NAME=VALUE (got 'width')"),
        (["zoo", "make-mlp", "new", "--hidden", "3,x"], "widths joined by commas"),
        (["zoo", "make-mlp", "new", "--config", "missing.toml"], "There is no configuration file 'missing.toml'"),
        (["zoo", "make-inr", "new", "--images", "missing"], "There are no images at 'missing'"),
        (["zoo", "make-mlp", "new", "--networks", "2", "--activation", "swishy"], "Unknown activation or operator 'swishy'"),
    ],
)
def test_errors_are_one_line_and_exit_1(arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_store(tmp_path / "ZOO", networks=8)
    (tmp_path / "FILE").write_text("")
    text = call(*arguments, code=1)
    assert message in text
    assert "Traceback" not in text


def test_zoos_of_every_kind(tmp_path: Path) -> None:
    (tmp_path / "zoo.toml").write_text("networks = 50\npopulation = 4\nranges.steps = [3, 5]\n")
    options = ["--config", str(tmp_path / "zoo.toml"), "--networks", "8"]
    zoos = [str(tmp_path / name) for name in ("cnn", "mlp", "inr")]
    text = call("zoo", "make-cnn", zoos[0], *options, "--channels", "3", "--channels", "4,4", "--checkpoint", "0")
    assert "16 networks, 2 weight spaces" in text
    assert "8 networks" in call("zoo", "make-mlp", zoos[1], *options, "--hidden", "5", "--activation", "tanh")
    np.savez(tmp_path / "images.npz", images=np.zeros((20, 6, 5), np.uint8), labels=np.arange(20))
    images = ["--images", str(tmp_path / "images.npz")]
    text = call("zoo", "make-inr", zoos[2], *images, "--steps", "3", "--hidden", "4", "--convention", "zhou")
    assert "20 networks, WeightSpace(2-4-1" in text
    assert ZooStore(zoos[2]).space.signal == Signal((6, 5), "row", 0.0, (-1.0, 1.0))
    text = call("zoo", "merge", str(tmp_path / "all"), *zoos)
    assert "44 networks, 4 weight spaces" in text
    assert "nothing is wrong" in call("zoo", "verify", str(tmp_path / "all"))
    ZooStore(tmp_path / "all").shards[1].file.write_bytes(b"")
    assert "is damaged or truncated" in call("zoo", "verify", str(tmp_path / "all"), code=1)


def test_zoos_of_other_architectures(tmp_path: Path) -> None:
    (tmp_path / "zoo.toml").write_text('architecture = "mixer"\ndepth = 1\npatch = 4\n[ranges]\nsteps = [2, 3]\n')
    options = ["--config", str(tmp_path / "zoo.toml"), "--networks", "4", "--option", "width=3", "--option", "width=4"]
    text = call("zoo", "make-cnn", str(tmp_path / "zoo"), *options, "--activation", "relu")
    assert "4 networks, 2 weight spaces" in text
    described = ZooStore(tmp_path / "zoo").info["configuration"]["problems"]["1"]
    assert described["architecture"] == "mixer(patch=4, width=4, depth=1, token_hidden=16, hidden=32, activation='relu')"
    assert described["steps"] == [2, 3]
    assert described["learning_rate"] == [5e-4, 2e-2]


def test_zoo_make_and_info(tmp_path: Path) -> None:
    text = call("zoo", "make-mlp", str(tmp_path / "zoo"), "--networks", "6", "--seed", "1")
    assert "6 networks" in text
    assert len(ZooStore(tmp_path / "zoo")) == 6
    text = call("zoo", "info", str(tmp_path / "zoo"))
    assert "test_accuracy" in text
    assert "hidden.1" in text


@pytest.mark.slow
def test_quickstart(tmp_path: Path) -> None:
    arguments = ["quickstart", "--output", str(tmp_path / "out"), "--networks", "60", "--epochs", "1"]
    text = call(*arguments)
    document = json.loads((tmp_path / "out" / "quickstart.json").read_text())
    assert [result["config"]["model"] for result in document["results"]] == ["statnn", "neural_graph", "monomial", "monomial_gnn"]
    assert all("tau_scale_10000" in result["metrics"] for result in document["results"])
    assert (tmp_path / "out" / "robustness.png").read_bytes().startswith(b"\x89PNG")
    assert "monomial_gnn" in text
    zoo = tmp_path / "out" / "zoo-relu" / "zoo.json"
    written = zoo.stat().st_mtime_ns
    # One model has one colour in the figure and on the page, in whatever order they were trained.
    page = (tmp_path / "out" / "report.html").read_text()
    colors = dict(re.findall(r'data-series="(\w+)"><svg class="c(\d+)"', page))
    assert [int(colors[name]) for name in in_order_of_styles(colors)] == [0, 1, 2, 3]
    trained = (tmp_path / "out" / "statnn" / "best.ckpt").stat().st_mtime_ns
    call(*arguments)
    assert zoo.stat().st_mtime_ns == written
    assert (tmp_path / "out" / "statnn" / "best.ckpt").stat().st_mtime_ns == trained
    before = (tmp_path / "out" / "quickstart.json").read_bytes()
    other = [*arguments[:-1], "2"]
    assert "another quick start (--epochs 1 there, 2 now): choose another --output, or give --overwrite" in " ".join(
        call(*other, code=1).split()
    )
    assert (tmp_path / "out" / "quickstart.json").read_bytes() == before


MODULE = """
import torch
from torch import nn

def make():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))

def make_wrong():
    return 3

class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.layer = nn.Embedding(7, 8), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, tokens, *, mask):
        return self.layer(self.table(tokens), src_key_padding_mask=mask)

class Random(nn.Linear):
    def forward(self, x):
        return nn.functional.dropout(super().forward(x).cumsum(1))

def make_random():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), Random(4, 2))
"""


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The weights of the network that the file beside them defines."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "their_models.py").write_text(MODULE)
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    torch.save(made.state_dict(), tmp_path / "model.pth")
    return tmp_path / "model.pth"


@pytest.mark.parametrize("module", ["their_models:make", "their_models.py:make"])
def test_info_and_check_of_a_module(network: Path, module: str) -> None:
    options = ("--module", module, "--input", "2x1x4x4")
    text = call("info", str(network), *options)
    assert "1.num_batches_tracked (buffer)" in text
    assert "permutation x scale x sign (1 group)" in text
    text = call("check", str(network), *options)
    assert "% of the weights moved; largest relative difference of an output: " in text
    folded = call("info", str(network), *options, "--fold-batchnorm")
    assert "WeightSpace(1-4-3, conv 3x3 | linear, relu, 91 parameters)" in folded
    assert folded.startswith("1 of 1 batch norms folded\n")
    described = json.loads(call("info", str(network), *options, "--fold-batchnorm", "--json"))
    assert described["batch_norms"] == [{"norm": "1", "layer": "0", "reason": None}]


def test_inputs_of_other_dtypes_and_by_name(network: Path) -> None:
    table, layer = nn.Embedding(7, 8), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    torch.save(nn.ModuleDict({"table": table, "layer": layer}).state_dict(), "reader.pth")
    options = ("reader.pth", "--module", "their_models:Reader", "--input", "2x5:int64", "--input", "mask=2x5:bool")
    assert json.loads(call("check", *options, "--json"))["passes"]
    call("convert", options[0], "reader.json", *options[1:])
    space = WeightSpace.from_json(Path("reader.json").read_text())
    assert space.program is not None
    assert space.program.keywords == ("mask",)
    assert json.loads(call("check", options[0], "--space", "reader.json", "--json"))["passes"]
    for given, message in (
        (("2x5:integers",), "dtype of --input as float32, int64, bool and the like (got '2x5:integers')"),
        (("2x5:",), "dtype of --input"),
        (("2x5:int64", "mask=2x5:bool", "mask=2x5:bool"), "every --input by name once"),
        (("2x5",), "missing 1 required keyword-only argument: 'mask'. Its weights are float32."),
        (("2x5", "mask=2x5:bool"), "does not run on the example inputs ([2, 5] float32, mask=[2, 5] bool): RuntimeError: Expected"),
    ):
        text = call("check", *options[:3], *(part for shape in given for part in ("--input", shape)), code=1)
        assert message in " ".join(text.split())


def test_check_says_that_a_module_is_random(network: Path) -> None:
    torch.save(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).state_dict(), "random.pth")
    text = call("check", "random.pth", "--module", "their_models:make_random", "--input", "2x3", code=1)
    assert "The network draws random numbers: with the same weights and inputs its outputs differ" in " ".join(text.split())


def test_info_shows_as_much_as_is_asked_for(network: Path) -> None:
    options = (str(network), "--module", "their_models:make", "--input", "2x1x4x4")
    table, whole, brief = (call("info", *options, *more).splitlines() for more in ((), ("--depth", "9"), ("--brief",)))
    assert table[1].split() == ["module", "parameters", "shapes", "neurons", "operators", "symmetry", "reads"]
    assert "  running_var" in "\n".join(whole)
    assert "running_var" not in "\n".join(table)
    assert brief == [table[0], *table[-len(brief) + 1 :]]
    assert "% of the parameters touch a neuron group with a symmetry" in brief[1]
    told = call("info", *options, "--parameter", "1.weight", "--parameter", "0.*").splitlines()
    assert told[0] == "1.weight: scale, 4, 4 entries"
    assert told[2].split() == ["0", "0-3", "1", "0", "-1", "permutation", "x", "scale", "x", "sign"]
    assert [line for line in told if line.startswith("0.")] == ["0.weight: weight, 4x1x3x3, 36 entries", "0.bias: bias, 4, 4 entries"]


def test_info_fits_the_terminal(network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsgraph.cli.checkpoints.terminal_width", lambda: 60)
    table = call("info", str(network), "--module", "their_models:make", "--input", "2x1x4x4")
    assert "Left out for 60 columns: reads, shapes" in " ".join(table.split())


def test_info_as_json_shows_as_much_as_is_asked_for(network: Path) -> None:
    options = (str(network), "--module", "their_models:make", "--input", "2x1x4x4", "--json")
    whole, brief, single = (json.loads(call("info", *options, *more)) for more in ((), ("--brief",), ("--parameter", "1.weight")))
    assert whole["unmoved_parameters"] == {"buffer": ["1.num_batches_tracked"], "output": ["4.bias"]}
    assert [module["name"] for module in whole["modules"]] == ["0", "1", "4"]
    assert whole["modules"][1]["params"][0] == "1.weight"
    assert {"groups", "layers", "params", "modules"} == whole.keys() - brief.keys()
    (weight,) = single["params"]
    assert [run["follow"][0]["power"] for run in weight["follows"]] == [-1, 1]
    assert weight["follows"][0] == {
        "axis": 0,
        "entries": [0, 4],
        "blocks": 1,
        "lie_at": ["1"],
        "follow": [{"group": "0", "power": -1, "symmetry": "permutation x scale x sign", "factors": {"0": -1}}],
        "in_order": True,
    }


def test_info_refuses_what_does_not_go_together(network: Path) -> None:
    options = ("info", str(network), "--module", "their_models:make", "--input", "2x1x4x4")
    for more in (("--brief", "--depth", "2"), ("--brief", "--parameter", "*"), ("--depth", "2", "--parameter", "*")):
        assert "Give one of --brief (no table), --depth" in call(*options, *more, code=1)
    text = call(*options, "--parameter", "1.weigth", code=1)
    assert "No parameter of WeightSpace(4 groups, 108 parameters) is called '1.weigth'; there are 1.weight" in text
    assert "--depth" in call(*options, "--depth", "0", code=2)


def test_a_space_from_a_file_takes_the_place_of_the_module(network: Path) -> None:
    text = call("convert", str(network), "space.json", "--module", "their_models:make", "--input", "2x1x4x4")
    assert text == "WeightSpace(4 groups, 108 parameters): space.json\n"
    (network.parent / "their_models.py").unlink()
    options = (str(network), "--space", "space.json")
    checked = json.loads(call("check", *options, "--json"))
    assert checked["passes"]
    assert 0 < checked["difference"] < 1e-12
    assert checked["moved"] > 0.5
    assert "because batch_norm is no layer or known operator (in 1)." in call("info", *options)
    assert "ParameterGraph(WeightSpace(4 groups, 108 parameters)" in call("convert", str(network), "graph.pt", "--space", "space.json")
    for arguments, message in (
        (("--activation", "relu"), "--space says all about the network"),
        (("--module", "their_models:make", "--input", "2x1x4x4"), "--space says all about the network"),
    ):
        assert message in call("check", *options, *arguments, code=1)
    document = json.loads(Path("space.json").read_text())
    del document["program"]
    Path("space.json").write_text(json.dumps(document))
    assert "Trace it again with wsgraph.trace" in " ".join(call("check", *options, code=1).split())
    Path("space.json").write_text("[]")
    assert "Expected the JSON text of a weight space" in call("check", *options, code=1)


def test_batch_norms_that_stay_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "norms.py").write_text(
        "from torch import nn\ndef make():\n    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.BatchNorm1d(4))\n"
    )
    made = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.BatchNorm1d(4))
    torch.save(made.state_dict(), "norms.pth")
    options = ("norms.pth", "--module", "norms.py:make", "--input", "2x3", "--fold-batchnorm")
    said = "1 of 2 batch norms folded\n  '3' stays: it follows aten.relu in '2', no linear or convolutional layer\n"
    assert call("check", *options).startswith(said)
    assert call("convert", options[0], "graph.pt", *options[1:]).startswith(said)
    entries = json.loads(call("check", *options, "--json"))["batch_norms"]
    assert [entry["layer"] for entry in entries] == ["0", None]
    assert "batch_norms" not in json.loads(call("check", *options[:-1], "--json"))


def test_convert_writes_a_graph_that_loads_without_trust(network: Path) -> None:
    options = ("--module", "their_models:make", "--input", "2x1x4x4")
    assert "ParameterGraph(1-4-3" in call("convert", str(network), "graph.pt", *options, "--fold-batchnorm")
    stored = torch.load("graph.pt", weights_only=True)
    space = WeightSpace.from_json(stored["space_json"])
    assert stored["edge_index"].equal(space.topology.edge_index)
    call("convert", str(network), "graph.safetensors", *options, "--fold-batchnorm")
    assert load_file("graph.safetensors")["edge_attr"].equal(stored["edge_attr"])
    assert "ParameterGraph(WeightSpace(4 groups, 108 parameters), nodes=12" in call("convert", str(network), "graph.pt", *options)
    stored = torch.load("graph.pt", weights_only=True)
    assert WeightSpace.from_json(stored["space_json"]).topology.edge_index.equal(stored["edge_index"])
    assert "to end in .pt or .safetensors" in call("convert", str(network), "graph.csv", *options, "--fold-batchnorm", code=1)


def test_check_finds_wrong_symmetries(tmp_path: Path) -> None:
    save_file(nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2)).state_dict(), tmp_path / "model.safetensors")
    assert "difference" in call("check", str(tmp_path / "model.safetensors"), "--activation", "gelu")
    # In float64 no difference is as small as that.
    assert "Error: the difference is above" in call("check", str(tmp_path / "model.safetensors"), "--tolerance", "0", code=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--module", "their_models:make"), "needs the shape of its input"),
        (("--module", "their_models:make", "--input", "1,2"), "sizes joined by x"),
        (("--module", "their_models:make", "--input", "2x7x4x4"), "does not run on the example inputs"),
        (("--module", "their_models:missing", "--input", "2x1x4x4"), "cannot be used: module 'their_models' has no attribute 'missing'"),
        (("--module", "nowhere:make", "--input", "2x1x4x4"), "No module named 'nowhere'"),
        (("--module", "nowhere.py:make", "--input", "2x1x4x4"), "cannot be used"),
        (("--module", "their_models", "--input", "2x1x4x4"), "package:function or file.py:function"),
        (("--module", "their_models:make_wrong", "--input", "2x1x4x4"), "to return a torch.nn.Module (got int)"),
        (("--module", "torch.nn:Identity", "--input", "2x1x4x4"), "are not those of 'torch.nn:Identity'"),
        (("--module", "their_models:make", "--activation", "relu"), "a module has its own"),
        (("--input", "2x1x4x4"), "need --module"),
    ],
)
def test_modules_that_cannot_be_used(network: Path, options: tuple[str, ...], message: str) -> None:
    assert message in " ".join(call("info", str(network), *options, code=1).split())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    store = make_store(folder / "zoo", networks=60)
    options = ["--model", "statnn", "--epochs", "1", "--scale", "1"]
    call("train", "generalization", "--zoo", str(folder / "zoo"), *options, "--output", str(folder / "run"))
    for i in range(3):
        save_file(store.space.unflatten(store.thetas[i]), folder / f"network{i}.safetensors")
    return folder


def test_predict_new_checkpoints(trained: Path) -> None:
    files = [str(trained / f"network{i}.safetensors") for i in (2, 0)]
    document = json.loads(call("predict", str(trained / "run"), *files, "--json"))
    assert [row["checkpoint"] for row in document["predictions"]] == files
    everything = json.loads(call("predict", str(trained / "run" / "model"), str(trained / "zoo"), "--json"))["predictions"]
    assert len(everything) == 60
    known = {row["checkpoint"]: row["predicted_accuracy"] for row in everything}
    assert document["predictions"][0]["predicted_accuracy"] == pytest.approx(known[f"{trained / 'zoo'}/2"], abs=1e-6)
    text = call("predict", str(trained / "run"), str(trained / "zoo"), "--output", str(trained / "all.csv"))
    assert "and 10 more; --output writes all" in text
    assert len((trained / "all.csv").read_text().splitlines()) == 61


def test_predict_of_one_network_of_a_file(trained: Path, tmp_path: Path) -> None:
    state = load_file(trained / "network0.safetensors")
    copies = {f"{name}.{key}": value for name in ("net", "net_ema") for key, value in state.items()}
    copies = {key: value.clone() for key, value in copies.items()}
    torch.save({"last": {key: 2 * value for key, value in copies.items()}, "best": copies}, tmp_path / "both.pt")
    expected = json.loads(call("predict", str(trained / "run"), str(trained / "network0.safetensors"), "--json"))["predictions"][0]
    file = str(tmp_path / "both.pt")
    assert "holds several state dicts" in call("predict", str(trained / "run"), file, code=1)
    assert "holds 2 networks" in call("predict", str(trained / "run"), file, "--entry", "best", code=1)
    given = json.loads(call("predict", str(trained / "run"), file, "--entry", "best", "--prefix", "net", "--json"))["predictions"][0]
    assert given["predicted_accuracy"] == pytest.approx(expected["predicted_accuracy"], abs=1e-6)


def test_predict_goes_on_after_a_bad_checkpoint(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.pt").write_bytes(b"no network")
    save_file(nn.Linear(5, 3).state_dict(), tmp_path / "other.safetensors")
    paths = [str(tmp_path / "bad.pt"), str(trained / "network0.safetensors"), str(tmp_path / "other.safetensors")]
    text = call("predict", str(trained / "run"), *paths, code=1)
    assert "network0" in text
    assert "bad.pt' is damaged or not a .pt file" in text.replace("\n", " ")
    assert "other.safetensors: " in text
    assert "There is no model in" in call("predict", str(tmp_path), paths[1], code=1)


def test_evaluate_on_other_zoos(trained: Path, tmp_path: Path) -> None:
    make_store(tmp_path / "other", networks=40)
    arguments = ["evaluate", str(trained / "run"), "--zoo", str(trained / "zoo"), "--zoo", str(tmp_path / "other")]
    found = json.loads(call(*arguments, "--scale", "10", "--json"))
    scores = json.loads((trained / "run" / "result.json").read_text())["metrics"]
    assert found[str(trained / "zoo")]["tau"] == scores["tau"]
    assert set(found[str(tmp_path / "other")]) == {"tau", "r2", "tau_scale_10", "r2_scale_10"}
    assert "TrainedModel(generalization, statnn" in call(*arguments, "--split", "all")


def test_edited_networks_are_written(tmp_path: Path) -> None:
    space = WeightSpace.siren((2, 4, 1), signal=Signal((4, 4), "row"))
    thetas = space.sample(8, generator=torch.Generator().manual_seed(0))
    zoo = ZooStore.create(tmp_path / "zoo", space, thetas, {"split": ["train"] * 4 + ["val"] * 2 + ["test"] * 2})
    train = ["train", "inr_editing", "--zoo", str(zoo.path), "--model", "np", "--epochs", "1", "--output", str(tmp_path / "run")]
    call(*train)
    assert "name the folder for them with 'output' (--output)" in call("predict", str(tmp_path / "run"), str(zoo.path), code=1)
    predict = ["predict", str(tmp_path / "run"), str(zoo.path), "--output", str(tmp_path / "edited"), "--json"]
    rows = json.loads(call(*predict))["predictions"]
    assert len({row["edited"] for row in rows}) == 8
    assert load_file(rows[3]["edited"])["layers.0.weight"].shape == (4, 2)
    alike = [tmp_path / "a-b.safetensors", tmp_path / "a" / "b.safetensors"]
    alike[1].parent.mkdir()
    for file in alike:
        shutil.copy(rows[0]["edited"], file)
    rows = json.loads(call("predict", str(tmp_path / "run"), *map(str, alike), *predict[3:]))["predictions"]
    assert [row["checkpoint"] for row in rows] == [str(file) for file in alike]
    assert all(load_file(row["edited"]) for row in rows)
    assert len({row["edited"] for row in rows}) == 2


def test_json_for_programs(network: Path, trained: Path) -> None:
    file = str(trained / "network0.safetensors")
    info = json.loads(call("info", file, "--activation", "tanh", "--json"))
    assert info["groups"][1] == {
        "name": "hidden.1",
        "neurons": 6,
        "role": "hidden",
        "operators": ["tanh"],
        "symmetry": "permutation x sign",
        "permuted_with": "hidden.1",
        "scaled_with": "hidden.1",
    }
    assert json.loads(call("check", file, "--activation", "tanh", "--json"))["passes"] is True
    about = json.loads(call("zoo", "info", str(trained / "zoo"), "--json"))
    assert (about["networks"], about["splits"]["train"], about["architectures"][0]["parameters"]) == (60, 30, 25)
    assert about["columns"]["test_accuracy"]["values"] == "numbers"
    assert json.loads(call("zoo", "verify", str(trained / "zoo"), "--json"))["problems"] == []
    listed = {entry["name"]: entry for entry in json.loads(call("models", "--json"))}
    assert listed["monomial_gnn"]["symmetries"] == ["permutation", "scale", "sign"]
    assert listed["statnn"]["options"]["hidden"] == 256
    again = ["train", "generalization", "--zoo", str(trained / "zoo"), "--model", "statnn", "--epochs", "1", "--output", str(trained / "b")]
    result = CliRunner().invoke(app, [*again, "--json"])
    assert json.loads(result.stdout)["folder"] == str(trained / "b")


def test_figures_from_runs_zoos_and_checkpoints(trained: Path, tmp_path: Path) -> None:
    run, zoo = str(trained / "run"), str(trained / "zoo")
    for arguments in (
        ["robustness", run],
        ["costs", run],
        ["scatter", run, "--zoo", zoo],
        ["zoo", zoo, "--networks", "20"],
        ["graph", str(trained / "network0.safetensors"), "--activation", "tanh"],
    ):
        file = tmp_path / "new" / f"{arguments[0]}.svg"
        assert f"Figure: {file}" in call("plot", *arguments, "--output", str(file)).replace("\n", "")
        assert file.read_text().startswith("<?xml")
    assert "There is no finished run in" in call("plot", "robustness", zoo, code=1)
    assert "Expected a file ending in .png, .pdf or .svg" in call("plot", "zoo", zoo, "--output", "zoo.gif", code=1)
    assert "Expected a model trained for inr_editing" in call("plot", "editing", run, "--zoo", zoo, code=1)


def test_pictures_of_editing(tmp_path: Path) -> None:
    space = WeightSpace.siren((2, 4, 1), signal=Signal((4, 4), "row"))
    thetas = space.sample(8, generator=torch.Generator().manual_seed(0))
    zoo = ZooStore.create(tmp_path / "zoo", space, thetas, {"split": ["train"] * 4 + ["val"] * 2 + ["test"] * 2})
    call("train", "inr_editing", "--zoo", str(zoo.path), "--model", "np", "--epochs", "1", "--output", str(tmp_path / "run"))
    call("plot", "editing", str(tmp_path / "run"), "--zoo", str(zoo.path), "--pictures", "2", "-o", str(tmp_path / "editing.png"))
    assert (tmp_path / "editing.png").read_bytes().startswith(b"\x89PNG")
    text = call("plot", "scatter", str(tmp_path / "run"), "--zoo", str(zoo.path), code=1)
    assert "predicts no single numbers" in text


def test_small_errors_are_not_rounded_away(capsys: pytest.CaptureFixture[str]) -> None:
    costs = {"parameters": 10.0, "seconds_per_epoch": 1.0, "peak_memory_mb": 2.0}
    results = [
        Result("inr_editing", {"mse": mse, "mse_scale_1": mse, **costs}, torch.nn.Identity(), {"model": name, "scales": [1.0]}, Path())
        for name, mse in (("np", 0.00123), ("hnp", 0.00149))
    ]
    print_results(results, "Edits")
    text = capsys.readouterr().out
    assert "0.00123" in text
    assert "0.00149" in text


def _save(module: nn.Module, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    save_file(module.state_dict(), path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_provenance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same, search, lineage, dedupe and map, on a folder of files as a user has them."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    space = WeightSpace.mlp([8, 24, 24, 4])
    modules = [nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 4)) for _ in range(20)]
    names = list(modules[0].state_dict())
    for number, module in enumerate(modules):
        _save(module, tmp_path / "files" / f"{number:02d}.safetensors")
    theta = torch.cat([tensor.flatten() for tensor in modules[3].state_dict().values()])

    def moved(noise: float) -> dict[str, torch.Tensor]:
        changed = theta * (1 + noise * torch.randn(theta.shape, generator=torch.Generator().manual_seed(1)))
        state = space.unflatten(space.act(space.sample_symmetry(1, generator=torch.Generator().manual_seed(0)), changed[None])[0])
        return {name: tensor.contiguous() for name, tensor in zip(names, state.values(), strict=True)}

    save_file(moved(0.0), tmp_path / "files" / "copy.safetensors")
    save_file(moved(0.1), tmp_path / "files" / "tuned.safetensors")
    save_file(moved(0.0), tmp_path / "unknown.safetensors")
    modules[3].eval()
    torch.onnx.export(modules[3], (torch.randn(1, 8),), str(tmp_path / "model.onnx"), dynamo=False, verbose=False)
    activation = ("--activation", "relu")

    text = call("same", "files/03.safetensors", "unknown.safetensors", *activation)
    assert text.startswith("Equal after its neurons are moved")
    assert call("same", "unknown.safetensors", "model.onnx", *activation).startswith("Equal")
    document = json.loads(call("same", "files/03.safetensors", "files/tuned.safetensors", *activation, "--json"))
    assert document["verdict"] == "near"
    assert len(document["parameters"]) == 6
    text = call("same", "files/03.safetensors", "files/04.safetensors", *activation)
    assert text.startswith("Different")
    assert "0.weight" in text
    wide = nn.Sequential(nn.Linear(8, 25), nn.ReLU(), nn.Linear(25, 4))
    _save(wide, tmp_path / "wide" / "w.safetensors")
    assert "different architectures" in call("same", "files/03.safetensors", "wide/w.safetensors", *activation, code=1)

    call("zoo", "import", "zoo", "files", *activation)
    text = call("search", "zoo", "unknown.safetensors", *activation, "--top", "3")
    assert "0.0000  network" in text
    found = json.loads(call("search", "zoo", "unknown.safetensors", *activation, "--top", "3", "--json"))["matches"]["unknown.safetensors"]
    assert [each["distance"] < limit for each, limit in zip(found, (1e-4, 1e-4, 0.3), strict=True)] == [True] * 3
    assert "holds no network of" in call("search", "zoo", "wide/w.safetensors", *activation, code=1)
    assert "by features" in call("search", "zoo", "wide/w.safetensors", *activation, "--features", "statistics")

    text = call("lineage", "zoo", "--figure", "tree.png", "--output", "forest.json")
    assert "22 networks: 1 family, 2 with a parent, 20 without" in text
    assert "copy.safetensors" in text
    assert (tmp_path / "tree.png").exists()
    assert len(json.loads((tmp_path / "forest.json").read_text())["networks"]) == 22
    assert ".png, .pdf or .svg" in call("lineage", "zoo", "--figure", "tree.gif", code=1)

    text = call("zoo", "dedupe", "zoo", "--output", "once")
    assert "03.safetensors = copy.safetensors" in text
    assert len(ZooStore(tmp_path / "once")) == 21
    assert json.loads(call("zoo", "dedupe", "once", "--json"))["clusters"] == []
    assert "no column 'number'" in call("zoo", "map", "zoo", "--color", "number", "--output", "map.png", code=1)
    ZooStore(tmp_path / "zoo").set_column("number", np.arange(22.0))
    call("zoo", "map", "zoo", "--color", "number", "--output", "map.png")
    assert (tmp_path / "map.png").stat().st_size > 10_000
