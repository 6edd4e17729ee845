"""Zoos from folders of files of other libraries."""

import json
import math
import re
import shutil
import zipfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx import save as save_onnx
from safetensors.torch import save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from tests.data.test_exchange import assert_same, write_csv
from tests.formats import test_flax as flax
from tests.formats import test_keras as keras
from tests.formats import test_nnet as nnet
from tests.formats import test_stable_baselines as agents
from tests.test_cli import call
from wsgraph import WeightSpace, load_networks, trace
from wsgraph.cli import app
from wsgraph.convert.formats import FORMATS, FileNetwork, known_spaces, register_format
from wsgraph.convert.tracing import TraceWarning, register_traced_operator
from wsgraph.data import ZooStore, ZooWarning, check_up, export_zoo, import_zoo
from wsgraph.nn import build_model
from wsgraph.space import Signal
from wsgraph.space.distinct import DistinctSpaces
from wsgraph.tasks import TrainedModel, run

# What an import says is tested where it is asked for, by pytest.warns.
pytestmark = pytest.mark.filterwarnings("ignore::wsgraph.data.ZooWarning")

Layers = list[tuple[Tensor, Tensor]]


def make_layers(seed: int, sizes: Sequence[int] = (3, 5, 2)) -> Layers:
    """Weights ``[out, in]`` and biases of an MLP."""
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(b, a, generator=generator), torch.randn(b, generator=generator)) for a, b in pairwise(sizes)]


def state_of(layers: Layers) -> dict[str, Tensor]:
    return {f"{2 * i}.{name}": tensor for i, layer in enumerate(layers) for name, tensor in zip(("weight", "bias"), layer, strict=True)}


def through(layers: Layers, x: Tensor, slope: float = 0.0) -> Tensor:
    for i, (weight, bias) in enumerate(layers):
        x = x @ weight.T + bias
        x = nn.functional.leaky_relu(x, slope) if i + 1 < len(layers) else x
    return x


def write_keras(path: Path, layers: Layers, number: int = 0) -> Path:
    """A sequential model of Keras, whose layers are named as late in a session."""
    acts = ["relu"] * (len(layers) - 1) + ["linear"]
    dense = [
        keras.layer("Dense", f"dense_{number + i}", units=len(bias), activation=act)
        for i, ((_, bias), act) in enumerate(zip(layers, acts, strict=True))
    ]
    stored = {f"dense{f'_{i}' if i else ''}": [weight.T.numpy(), bias.numpy()] for i, (weight, bias) in enumerate(layers)}
    return keras.save(path, keras.sequential([layers[0][0].shape[1]], *dense), stored)


def write_onnx(path: Path, layers: Layers, slope: float = 0.0) -> Path:
    nodes, tensors, value = [], [], "x"
    for i, (weight, bias) in enumerate(layers):
        tensors += [numpy_helper.from_array(weight.numpy(), f"{i}.weight"), numpy_helper.from_array(bias.numpy(), f"{i}.bias")]
        made = "y" if i + 1 == len(layers) else f"linear_{i}"
        nodes.append(helper.make_node("Gemm", [value, f"{i}.weight", f"{i}.bias"], [made], transB=1))
        if made != "y":
            value = f"act_{i}"
            nodes.append(
                helper.make_node("LeakyRelu", [made], [value], alpha=slope) if slope else helper.make_node("Relu", [made], [value])
            )
    sizes = (layers[0][0].shape[1], layers[-1][0].shape[0])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size]) for name, size in zip("xy", sizes, strict=True)]
    graph = helper.make_graph(nodes, "graph", ends[:1], ends[1:], tensors)
    save_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def write_agent(path: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    return agents.save(path, {"log_std": torch.zeros(2), **agents.actor_critic().state_dict()}, **agents.ON_POLICY)


def write_q_agent(path: Path, equal: bool = True) -> Path:
    """A DQN agent whose target is a copy, as right after an update."""
    torch.manual_seed(1)
    nets = {"q_net.q_net": agents.layers(3, 4)[:1], "q_net_target.q_net": agents.layers(3, 4)[:1]}
    state = {f"{name}.{key}": tensor for name, net in nets.items() for key, tensor in net.state_dict().items()}
    if equal:
        state |= {key.replace("q_net.q_net", "q_net_target.q_net"): tensor for key, tensor in state.items() if "target" not in key}
    return agents.save(path, state, ("stable_baselines3.dqn.policies", "DQNPolicy"))


def write_flax(path: Path, layers: Layers) -> Path:
    stored = {f"Dense_{i}": {"bias": bias.numpy(), "kernel": weight.T.numpy()} for i, (weight, bias) in enumerate(layers)}
    return flax.save(path, {"params": stored})


def mixed(folder: Path) -> list[Layers]:
    """The same six networks in as many formats, and an agent."""
    folder.mkdir()
    networks = [make_layers(seed) for seed in range(6)]
    torch.save(state_of(networks[0]), folder / "0.pt")
    save_file(state_of(networks[1]), folder / "1.safetensors")
    write_keras(folder / "2.keras", networks[2], 7)
    write_onnx(folder / "3.onnx", networks[3])
    write_flax(folder / "4.msgpack", networks[4])
    np.savez(folder / "5.npz", **{key: tensor.numpy() for key, tensor in state_of(networks[5]).items()})  # type: ignore[arg-type]
    write_agent(folder / "6.zip")
    nnet.written(folder / "7.nnet")
    return networks


def test_a_folder_may_mix_all_formats(tmp_path: Path) -> None:
    networks = mixed(tmp_path / "runs")
    with pytest.warns(ZooWarning, match="3.onnx': leaves sizes of its inputs open, .* Choose them") as caught:
        zoo = import_zoo(tmp_path / "zoo", tmp_path / "runs", activation="relu")
    assert len(caught) == 1
    assert zoo.verify() == []
    files = zoo.column("file").tolist()
    assert sorted(files) == ["0.pt", "1.safetensors", "2.keras", "3.onnx", "4.msgpack", "5.npz", "6.zip", "6.zip", "7.nnet"]
    x = torch.randn(4, 3)
    for number, layers in enumerate(networks):
        (position,) = (i for i, file in enumerate(files) if file.startswith(str(number)))
        graph = zoo[position]
        theta = zoo.read(torch.tensor([position]))
        assert torch.allclose(graph.space.evaluate(theta, x)[0], through(layers, x), atol=1e-5)
    said = {file: (form, act) for file, form, act in zip(files, zoo.column("format"), zoo.column("activation"), strict=True)}
    assert said["6.zip"] == ("Stable-Baselines3", "tanh")
    assert said["2.keras"] == ("Keras", "")
    assert said["0.pt"] == ("state dict", "relu")
    assert zoo.column("hyperparameters.gamma")[files.index("6.zip")] == 0.99
    assert math.isnan(zoo.column("hyperparameters.gamma")[files.index("0.pt")])
    # An export holds state dicts, with the roles as a column, and comes back as it was.
    assert_same(import_zoo(tmp_path / "again", export_zoo(zoo, tmp_path / "shared")), zoo)


def test_agents_become_a_row_for_each_network(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    for number in range(8):
        write_agent(runs / f"ppo-{number}.zip", number)
    write_q_agent(runs / "dqn.zip")
    with pytest.warns(ZooWarning, match=r"1 network has the weights of another one, .*'dqn.zip \(q_target\) = dqn.zip \(q\)'"):
        zoo = import_zoo(tmp_path / "zoo", runs)
    roles = dict.fromkeys(zip(zoo.column("file").tolist(), zoo.column("role").tolist(), strict=True))
    assert len(roles) == len(zoo) == 18
    assert {role for file, role in roles if file == "dqn.zip"} == {"q", "q_target"}
    assert {*zoo.column("algorithm").tolist()} == {"ppo", "dqn"}
    assert "format" not in zoo.table
    assert "Nothing is known" not in " ".join(zoo.info["imported"]["notes"])
    for number, (file, role) in enumerate(zip(zoo.column("file").tolist(), zoo.column("role").tolist(), strict=True)):
        (found,) = load_networks(runs / file, network=role)
        assert torch.equal(zoo.read(torch.tensor([number]))[0], found.theta)
    # All networks of an agent lie in one split, whatever is drawn.
    for seed in range(3):
        drawn = import_zoo(tmp_path / f"zoo-{seed}", runs, seed=seed)
        assert check_up(drawn)["groups"][0] == {"by": "file", "groups": 9, "largest": 2, "in_several_splits": 0}
        assert len(drawn.splits) == 3
    # A table may say something of a whole agent, or of one of its networks.
    files = [f"ppo-{number}.zip,policy,{number},train" for number in range(4)]
    write_csv(runs / "metadata.csv", "file_name,role,reward,split", *files, "ppo-3,value,30,test", "ppo-4.zip,,4,test")
    with pytest.raises(ValueError, match=r"has no row for 'dqn.zip', 'ppo-5.zip'"):
        import_zoo(tmp_path / "table", runs)
    with pytest.warns(ZooWarning, match=r"Networks of one file lie in several splits: 'ppo-3.zip'\. .*give them one split"):
        zoo = import_zoo(tmp_path / "table", runs, skip_bad=True)
    rows = {*zip(zoo.column("file").tolist(), zoo.column("role").tolist(), zoo.column("reward").tolist(), strict=True)}
    assert {("ppo-3.zip", "policy", 3), ("ppo-3.zip", "value", 30), ("ppo-4.zip", "policy", 4), ("ppo-4.zip", "value", 4)} < rows
    assert len(rows) == 7
    write_csv(runs / "metadata.csv", "file_name,role", "ppo-0.zip,polcy")
    with pytest.raises(ValueError, match=r"no network 'polcy', which the column 'role' names .*Did you mean 'policy'\?"):
        import_zoo(tmp_path / "typo", runs, skip_bad=True)


def test_formats_alone_are_no_labels(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    for number in range(10):
        write_keras(tmp_path / "runs" / f"{number}.keras", make_layers(number))
        write_onnx(tmp_path / "runs" / f"{number}.onnx", make_layers(10 + number))
    with pytest.warns(ZooWarning, match=r"(?s)'0.onnx' and 9 more files: leaves sizes .* open"):
        zoo = import_zoo(tmp_path / "zoo", tmp_path / "runs")
    assert {*zoo.table} == {"file", "split", "format", "keras_version", "keras_model"}
    for file in (tmp_path / "runs").glob("*.keras"):
        torch.save(state_of(make_layers(int(file.stem))), file.with_suffix(".pt"))
        file.unlink()
    with pytest.warns(ZooWarning, match="Nothing is known of the networks but their files"):
        zoo = import_zoo(tmp_path / "again", tmp_path / "runs", activation="relu")
    assert {*zoo.table} == {"file", "split", "format"}


def test_copies_of_a_file_are_in_its_split(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    for number in range(12):
        write_agent(runs / f"{number:02d}.zip", number)
    shutil.copy(runs / "03.zip", runs / "a copy.zip")
    for seed in range(4):
        zoo = import_zoo(tmp_path / f"zoo-{seed}", runs, seed=seed)
        splits = {*zip(zoo.column("file").tolist(), zoo.column("split").tolist(), strict=True)}
        assert len(splits) == 13
        assert dict(splits)["a copy.zip"] == dict(splits)["03.zip"]
        assert check_up(zoo)["duplicates"] == {"networks": 2, "across_splits": 0}


def test_what_cannot_be_read_is_left_out_and_listed(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    mixed(runs)
    (runs / "damaged.onnx").write_bytes(b"no protobuf")
    with zipfile.ZipFile(runs / "logs.zip", "w") as archive:
        archive.writestr("log.txt", "epoch 1")
    np.savez(runs / "evaluations.npz", timesteps=np.arange(3), results=np.ones((3, 2)))
    save_file({key: tensor / 0 for key, tensor in state_of(make_layers(9)).items()}, runs / "diverged.safetensors")
    write_flax(runs / "diverged.msgpack", [(weight / 0, bias) for weight, bias in make_layers(9)])
    with pytest.raises(ValueError, match=r"3 of 13 checkpoints cannot be imported.*\n(.*\n)*Leave out .* skip_bad=True \(--skip-bad\)"):
        import_zoo(tmp_path / "zoo", runs, activation="relu")
    assert not (tmp_path / "zoo").exists()
    with pytest.warns(ZooWarning, match="3 of 13 files cannot be imported and were left out. 'damaged.onnx': is not a complete"):
        zoo = import_zoo(tmp_path / "zoo", runs, activation="relu", skip_bad=True)
    assert len(zoo) == 9
    bad = ZooStore(tmp_path / "zoo").info["imported"]["bad"]
    assert [*bad] == ["damaged.onnx", "evaluations.npz", "logs.zip"]
    assert "not a complete ONNX model" in bad["damaged.onnx"]
    assert "Stable-Baselines3" in bad["logs.zip"]
    assert zoo.info["dropped_non_finite"] == 2
    assert any("2 networks with NaN or infinite weights" in note for note in zoo.info["imported"]["notes"])
    text = call("zoo", "import", str(tmp_path / "shell"), str(runs), "--activation", "relu", "--skip-bad")
    assert "Files left out: 3 that cannot be read" in text
    assert "damaged.onnx: " in text
    # Without an activation, what needs one is left out.
    zoo = import_zoo(tmp_path / "silent", runs, skip_bad=True)
    assert {*zoo.column("file").tolist()} == {"2.keras", "3.onnx", "6.zip", "7.nnet"}
    assert zoo.info["imported"]["bad"]["0.pt"] == zoo.info["imported"]["bad"]["4.msgpack"]
    # Reasons are said once, with the option that helps.
    text = call("zoo", "import", str(tmp_path / "grouped"), str(runs), "--skip-bad")
    assert re.search(
        r"  \d files, 0.pt, 1.safetensors, 4.msgpack( and \d more)?: Nothing says which activation it has: .*\(--activation\)", text
    )
    assert text.count("Nothing says which activation it has") == 2  # in a note and in the check-up
    # Where nothing is left, nothing is made.
    for file in (*runs.glob("[2-7].*"),):
        file.unlink()
    with pytest.raises(ValueError, match="7 of 7 checkpoints cannot be imported, so nothing is"):
        import_zoo(tmp_path / "none", runs, skip_bad=True)
    assert not (tmp_path / "none").exists()


def test_rows_without_a_file_may_be_left_out(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    mixed(runs)
    table = write_csv(tmp_path / "table.csv", "file_name,reward", "0.pt,0", "1,1", "gone.pt,2", "3.onnx,3")
    with pytest.raises(FileNotFoundError, match=r"'gone.pt'. Correct or remove those rows, or leave them out with skip_bad=True"):
        import_zoo(tmp_path / "zoo", runs, table=table, activation="relu")
    zoo = import_zoo(tmp_path / "zoo", runs, table=table, activation="relu", skip_bad=True)
    assert dict(zip(zoo.column("file").tolist(), zoo.column("reward").tolist(), strict=True)) == {
        "0.pt": 0,
        "1.safetensors": 1,
        "3.onnx": 3,
    }
    bad = zoo.info["imported"]["bad"]
    assert bad["gone.pt"] == "there is no such file"
    assert bad["2.keras"] == "table.csv has no row for it"


@pytest.mark.parametrize(
    ("lines", "options"),
    [
        (["checkpoint;reward;note", "0.pt;0,5;a, b", "1.safetensors;-1;", "5.npz;;c"], {"file_column": "checkpoint"}),
        (["reward\tnote\tfile_name", "0.5\ta, b\t0", "-1\t\t1", "\tc\t5"], {}),
    ],
)
def test_tables_with_other_columns_and_dividers(tmp_path: Path, lines: list[str], options: dict[str, Any]) -> None:
    runs = tmp_path / "runs"
    mixed(runs)
    for name in ("2.keras", "3.onnx", "4.msgpack", "6.zip", "7.nnet"):
        (runs / name).unlink()
    table = write_csv(tmp_path / "table.tsv", *lines)
    zoo = import_zoo(tmp_path / "zoo", runs, activation="relu", table=table, **options)
    assert zoo.column("file").tolist() == ["0.pt", "1.safetensors", "5.npz"]
    np.testing.assert_array_equal(zoo.column("reward"), [0.5, -1, math.nan])
    assert zoo.column("note").tolist() == ["a, b", "", "c"]
    assert any("were read as decimal ones" in note for note in zoo.info["imported"].get("notes", [])) == (";" in lines[0])
    shell = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    call("zoo", "import", str(tmp_path / "shell"), str(runs), "--activation=relu", f"--table={table}", *shell)
    with pytest.raises(ValueError, match=r"Expected a column 'fil_name' in .*table.tsv"):
        import_zoo(tmp_path / "none", runs, activation="relu", table=table, file_column="fil_name")


def test_numbers_with_commas_between_commas_stay_text(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    torch.save(state_of(make_layers(0)), tmp_path / "runs" / "0.pt")
    write_csv(tmp_path / "runs" / "metadata.csv", "file_name,version", '0.pt,"0,5"')
    assert import_zoo(tmp_path / "zoo", tmp_path / "runs", activation="relu").column("version").tolist() == ["0,5"]


@pytest.mark.parametrize(("line", "expected"), [("0.pt,50 %", 50), ("0.pt,5.5%", 5.5), ("0.pt;5,5 %", 5.5)])
def test_percent_are_numbers(tmp_path: Path, line: str, expected: float) -> None:
    (tmp_path / "runs").mkdir()
    torch.save(state_of(make_layers(0)), tmp_path / "runs" / "0.pt")
    write_csv(tmp_path / "runs" / "metadata.csv", "file_name,share".replace(",", line[4]), line)
    zoo = import_zoo(tmp_path / "zoo", tmp_path / "runs", activation="relu")
    assert zoo.column("share").tolist() == [expected]
    assert "percent" in str(zoo.info["imported"]["notes"]) or "decimal" in str(zoo.info["imported"]["notes"])


def test_a_row_that_is_there_twice_counts_once(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    torch.save(state_of(make_layers(0)), tmp_path / "runs" / "0.pt")
    write_csv(tmp_path / "runs" / "metadata.csv", "file_name,size", "0.pt,3", "0.pt,3")
    zoo = import_zoo(tmp_path / "zoo", tmp_path / "runs", activation="relu")
    assert zoo.column("size").tolist() == [3]
    assert any("1 row repeats another one word for word and was left out: '0.pt'." in note for note in zoo.info["imported"]["notes"])
    write_csv(tmp_path / "runs" / "metadata.csv", "file_name,size", "0.pt,3", "0.pt,4")
    with pytest.raises(ValueError, match=r"has several rows of '0.pt'"):
        import_zoo(tmp_path / "other", tmp_path / "runs", activation="relu")


def test_names_that_are_nearly_right(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    mixed(runs)
    write_csv(runs / "metadata.csv", "weights_file,test_accuracy", "0.pt,0.5", "1.safetensors,0.6", "lost.pt,0.7")
    with pytest.raises(ValueError, match=r"Its column 'weights_file' names files: .*\(--file-column weights_file\)"):
        import_zoo(tmp_path / "zoo", runs, activation="relu")
    with pytest.raises(ValueError, match=r"Expected a column 'weight_file' .*file_column='weights_file'"):
        import_zoo(tmp_path / "zoo", runs, activation="relu", file_column="weight_file")
    zoo = import_zoo(tmp_path / "zoo", runs, activation="relu", file_column="weights_file", skip_bad=True)
    with pytest.raises(ValueError, match=r"has no column 'test_acuracy'.*Did you mean 'test_accuracy'\?"):
        zoo.dataset(target="test_acuracy")
    (runs / "metadata.csv").unlink()
    with pytest.raises(ValueError, match=r"There is no table in .* whose column 'name' could name files"):
        import_zoo(tmp_path / "none", runs, activation="relu", file_column="name")


# == Activations that files do not say ==


def test_an_activation_is_for_what_nothing_says(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    write_keras(runs / "a.keras", make_layers(0))
    write_flax(runs / "b.msgpack", make_layers(1))
    write_agent(runs / "c.zip")
    zoo = import_zoo(tmp_path / "zoo", runs, activation="gelu")
    found = {file: zoo[i].space.groups[1].activation for i, file in enumerate(zoo.column("file").tolist())}
    assert found == {"a.keras": "relu", "b.msgpack": "gelu", "c.zip": "tanh"}
    (runs / "b.msgpack").unlink()
    with pytest.warns(ZooWarning, match="'activation' was not needed"):
        import_zoo(tmp_path / "unneeded", runs, activation="gelu")
    # An agent names an activation of its own: another one that is given for the rest is not its own, unless the table says so.
    settings = {"activation_fn": "<class 'mine.Bent'>"}
    agents.save(runs / "d.zip", agents.actor_critic().state_dict(), settings=settings, **agents.ON_POLICY)
    with pytest.raises(ValueError, match=r"'d.zip': .*its activation .*mine.Bent.* is not known"):
        import_zoo(tmp_path / "own", runs, activation="gelu")
    write_csv(runs / "metadata.csv", "file_name,activation", "a.keras,", "c.zip,", "d.zip,elu")
    zoo = import_zoo(tmp_path / "own", runs)
    found = {file: zoo[i].space.groups[1].activation for i, file in enumerate(zoo.column("file").tolist())}
    assert found == {"a.keras": "relu", "c.zip": "tanh", "d.zip": "elu"}
    (runs / "metadata.csv").unlink()
    for file in runs.glob("*.zip"):
        file.unlink()
    (runs / "a.keras").unlink()
    write_onnx(runs / "e.onnx", make_layers(0))
    with pytest.raises(ValueError, match=r"'activation' is for weights of which nothing else says it; here .* the files do"):
        import_zoo(tmp_path / "none", runs, activation="gelu")


def test_geometry_is_for_networks_with_convolutions(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    write_flax(runs / "mlp.msgpack", make_layers(0))
    kernel = {"bias": np.ones(4, np.float32), "kernel": np.ones((3, 3, 1, 4), np.float32)}
    flax.save(runs / "cnn.msgpack", {"Conv_0": kernel, "Dense_0": flax.dense(np.random.default_rng(0), 4, 2)})
    zoo = import_zoo(tmp_path / "zoo", runs, activation="relu", stride=2, padding=1)
    spaces = {file: zoo[i].space for i, file in enumerate(zoo.column("file").tolist())}
    assert spaces["cnn.msgpack"].assumed == ("no pooling", "global_avg_pool before the linear layers")
    assert spaces["mlp.msgpack"] == load_networks(runs / "mlp.msgpack", activation="relu")[0].space


def test_state_dicts_may_be_stored_the_other_way_round_or_within_others(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    layers = make_layers(0)
    np.savez(runs / "a.npz", **{f"{i}.kernel": weight.T.numpy() for i, (weight, _) in enumerate(layers)})  # type: ignore[arg-type]
    zoo = import_zoo(tmp_path / "zoo", runs, activation="relu", layout="in_out")
    x = torch.randn(4, 3)
    assert torch.allclose(zoo.space.evaluate(zoo.thetas, x)[0], through([(w, 0 * b) for w, b in layers], x), atol=1e-6)
    (runs / "a.npz").unlink()
    torch.save({"model": state_of(make_layers(1)), "ema": state_of(layers)}, runs / "b.pt")
    with pytest.raises(ValueError, match=r"holds several state dicts, 'model.*', 'ema.*'; choose one"):
        import_zoo(tmp_path / "several", runs, activation="relu")
    zoo = import_zoo(tmp_path / "several", runs, activation="relu", entry="ema")
    assert torch.equal(zoo.thetas[0], zoo.space.flatten(state_of(layers)))


# == Networks that a function makes ==

MODELS = """
from torch import nn

class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(3, width), nn.Linear(width, width), nn.Linear(width, 2)

    def forward(self, x):
        x = self.first(x).relu()
        return self.head(x + self.second(x).relu())

def narrow():
    return Residual(4)

def both():
    return {"narrow": Residual(4), "wide": Residual(6)}

def alike():
    return [Residual(4), Residual(4)]

def nothing():
    return [3]
"""


def test_state_dicts_of_modules_that_functions_make(tmp_path: Path) -> None:
    runs, models = tmp_path / "runs", tmp_path / "models.py"
    runs.mkdir()
    models.write_text(MODELS)
    namespace: dict[str, Any] = {}
    exec(MODELS, namespace)
    made = {f"{i}": namespace["Residual"](4 if i % 2 else 6).eval() for i in range(5)}
    for name, module in made.items():
        torch.save({"state_dict": {f"module.{key}": tensor for key, tensor in module.state_dict().items()}}, runs / f"{name}.ckpt")
    zoo_import = ("zoo", "import", str(tmp_path / "zoo"), str(runs))
    text = call(*zoo_import, "--module", f"{models}:both", "--input", "2x3")
    zoo = ZooStore(tmp_path / "zoo")
    assert len(zoo.spaces) == 2
    assert "5 networks, 2 weight spaces" in text
    x = torch.randn(4, 3)
    for i, file in enumerate(zoo.column("file").tolist()):
        theta = zoo.read(torch.tensor([i]))
        assert torch.allclose(zoo[i].space.evaluate(theta, x)[0], made[file[0]](x), atol=1e-6)
    again = ("zoo", "import", str(tmp_path / "again"), str(runs))
    assert "holds none" not in call(*again, f"--module={models}:both", "--input=2x3", "--input=2x3")
    narrow = trace(namespace["narrow"]().eval(), torch.ones(2, 3))
    (tmp_path / "narrow.json").write_text(narrow.to_json())
    assert "3 of 5 checkpoints cannot" in call(
        "zoo", "import", str(tmp_path / "c"), str(runs), f"--space={tmp_path / 'narrow.json'}", code=1
    )
    assert "2 networks" in call("zoo", "import", str(tmp_path / "c"), str(runs), f"--space={tmp_path / 'narrow.json'}", "--skip-bad")
    for options, message in (
        (["--module", f"{models}:both"], "--module and --input belong together"),
        (["--input", "2x3"], "--module and --input belong together"),
        (["--module", f"{models}:both", *["--input=2x3"] * 3], "one --input for all 2 networks, or one for each (got 3)"),
        (["--module", f"{models}:alike", "--input=2x3"], "have the same keys and shapes, so that files do not show which"),
        (["--module", f"{models}:nothing", "--input=2x3"], "to return a torch.nn.Module (got int)"),
        (["--module", f"{models}:lacking", "--input=2x3"], "cannot be used"),
    ):
        assert message in " ".join(call("zoo", "import", str(tmp_path / "none"), str(runs), *options, code=1).split())
    save_file(state_of(make_layers(0)), runs / "other.safetensors")
    spaces = [trace(module.eval(), torch.ones(2, 3)) for module in namespace["both"]().values()]
    with pytest.raises(
        ValueError, match=r"'other\.safetensors': It has the weights of none of the 2 networks that were given. Of the nearest"
    ):
        import_zoo(tmp_path / "none", runs, space=spaces)
    # Files that say what they are need no module.
    (runs / "other.safetensors").unlink()
    write_onnx(runs / "a.onnx", make_layers(1))
    assert len(import_zoo(tmp_path / "mixed", runs, space=spaces).spaces) == 3


# == Spaces that are known already ==


def test_networks_that_differ_in_weights_alone_are_traced_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    traced: list[Any] = []

    def counted(*given: Any) -> WeightSpace:
        traced.append(given)
        return trace(*given)

    monkeypatch.setattr(known_spaces, "trace", counted)
    monkeypatch.setattr(known_spaces, "_KNOWN", type(known_spaces._KNOWN)())
    (tmp_path / "runs").mkdir()
    sizes = [(3, 5, 2), (3, 5, 2), (3, 6, 2), (3, 5, 2)]
    networks = [make_layers(i, each) for i, each in enumerate(sizes)]
    for i, layers in enumerate(networks):
        write_onnx(tmp_path / "runs" / f"{i}.onnx", layers, 0.1 if i < 3 else 0.2)
    zoo = import_zoo(tmp_path / "zoo", tmp_path / "runs")
    assert len(traced) == len(zoo.spaces) == 3
    x = torch.randn(4, 3)
    for i, file in enumerate(zoo.column("file").tolist()):
        number = int(file[0])
        outputs = zoo[i].space.evaluate(zoo.read(torch.tensor([i])), x)[0]
        assert torch.allclose(outputs, through(networks[number], x, 0.1 if number < 3 else 0.2), atol=1e-5)


def test_known_spaces_follow_constants_shapes_and_rules(tmp_path: Path) -> None:
    linear = nn.Linear(2, 3).eval()
    x = torch.ones(2, 2)
    first = known_spaces.traced_once(linear, [x], ["a", 1.0])
    assert known_spaces.traced_once(nn.Linear(2, 3).eval(), [x], ["a", 1.0]) is first
    for other, inputs, architecture in (
        (linear, [x], ["a", 1.5]),
        (linear, [torch.ones(3, 2)], ["a", 1.0]),
        (nn.Linear(2, 3, bias=False).eval(), [x], ["a", 1.0]),
    ):
        assert known_spaces.traced_once(other, inputs, architecture) is not first
    with pytest.raises(ValueError, match="unmarshallable"):
        known_spaces.traced_once(linear, [x], [linear])


def test_unknown_operators_are_said_of_every_file(tmp_path: Path) -> None:
    class Odd(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.rfft(super().forward(x)).abs()

    for _ in range(2):
        with pytest.warns(TraceWarning, match="fft_rfft"):
            space = known_spaces.traced_once(Odd(3, 8).eval(), [torch.ones(1, 3)], ["odd"])
    from wsgraph.convert.tracing import TRACED_OPERATORS

    try:
        register_traced_operator("never_called", lambda scope, call: [])
        with pytest.warns(TraceWarning, match="fft_rfft"):
            assert known_spaces.traced_once(Odd(3, 8).eval(), [torch.ones(1, 3)], ["odd"]) is not space
    finally:
        TRACED_OPERATORS.pop("never_called", None)


# == The same networks ==


def test_networks_of_keras_are_predicted_as_those_of_torch(tmp_path: Path) -> None:
    for folder in ("keras", "torch", "onnx"):
        (tmp_path / folder).mkdir()
    for i in range(6):
        layers = make_layers(i, (3, 6, 6, 2) if i % 2 else (3, 5, 2))
        write_keras(tmp_path / "keras" / f"{i}.keras", layers, 10 * i)
        torch.save(state_of(layers), tmp_path / "torch" / f"{i}.pt")
        write_onnx(tmp_path / "onnx" / f"{i}.onnx", layers)
    zoos = [import_zoo(tmp_path / f"zoo-{name}", tmp_path / name, activation=act) for name, act in (("keras", None), ("torch", "relu"))]
    zoos.append(import_zoo(tmp_path / "zoo-onnx", tmp_path / "onnx"))
    torch.manual_seed(0)
    model = build_model("monomial_gnn", zoos[1].spaces, 1, task="invariant").eval()
    results = []
    for zoo in zoos:
        with torch.no_grad():
            found = {
                file[0]: model(zoo.dataset(target=None).batch(torch.tensor([i]))) for i, file in enumerate(zoo.column("file").tolist())
            }
        results.append(torch.cat([found[str(i)] for i in range(6)]))
    assert results[0].std() > 1e-3
    assert torch.allclose(results[0], results[1], atol=1e-5)


def write_mixed(folder: Path, count: int = 30) -> list[str]:
    """Networks of one architecture in three formats, which name their parameters otherwise, with a table."""
    folder.mkdir()
    lines = ["file_name,bias"]
    for i in range(count):
        layers = make_layers(i, (4, 8, 2))
        if i % 3 == 0:
            torch.save(state_of(layers), folder / (name := f"{i}.pt"))
        else:
            name = (write_keras(folder / f"{i}.keras", layers, i) if i % 3 == 1 else write_flax(folder / f"{i}.msgpack", layers)).name
        lines.append(f"{name},{layers[0][1][0]}")
    return write_csv(folder / "metadata.csv", *lines).read_text().splitlines()


def test_spaces_that_differ_in_names_alone_are_one(tmp_path: Path) -> None:
    write_mixed(tmp_path / "runs")
    with pytest.warns(ZooWarning, match="20 files name the parameters of an architecture otherwise than '0.pt', .* '1.keras', '2.msgpack'"):
        zoo = import_zoo(tmp_path / "zoo", tmp_path / "runs", activation="relu")
    assert [param.name for param in zoo.space.params] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert zoo.dataset(target="bias").y.tolist() == pytest.approx(zoo.space.unflatten(zoo.thetas)["0.bias"][:, 0].tolist())
    # A model that reads one architecture is trained on them, and all baselines are compared.
    options = {"model": "statnn", "epochs": 1, "standardize": True, "accelerator": "cpu", "progress": False, "intervals": 0}
    result = run("prediction", zoo=zoo, target="bias", output=tmp_path / "run", baselines=True, **options)
    assert "ridge on canonical weights" in result.baselines
    # What it says of a network does not depend on the library that wrote it, in files and in zoos.
    trained = TrainedModel.load(tmp_path / "run")
    for folder in ("keras", "torch"):
        (tmp_path / folder).mkdir()
    for i in range(4):
        write_keras(tmp_path / "keras" / f"{i}.keras", make_layers(i, (4, 8, 2)), 5)
        torch.save(state_of(make_layers(i, (4, 8, 2))), tmp_path / "torch" / f"{i}.pt")
    zoos = [import_zoo(tmp_path / f"zoo-{name}", tmp_path / name, activation=act) for name, act in (("keras", None), ("torch", "relu"))]
    assert zoos[0].space != zoos[1].space
    said = [
        [row["predicted_bias"] for row in trained.predict(each).rows] for each in (*zoos, *(tmp_path / name for name in ("keras", "torch")))
    ]
    assert all(each == pytest.approx(said[0], abs=1e-6) for each in said[1:])
    zoos[0].set_column("bias", [0.0, 1.0, 2.0, 3.0])
    assert trained.evaluate(zoos[0], split=None)["mae"] > 0
    # Appended and merged, they are one architecture too.
    assert ZooStore.merge(tmp_path / "merged", zoos).space == zoos[0].space


def test_copies_in_another_library_are_copies(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    for i in range(4):
        torch.save(state_of(make_layers(i)), tmp_path / "runs" / f"{i}.pt")
    write_keras(tmp_path / "runs" / "4.keras", make_layers(1))
    with pytest.warns(ZooWarning, match=r"has the weights of another one, and is in its split: '4.keras = 1.pt'"):
        import_zoo(tmp_path / "zoo", tmp_path / "runs", activation="relu")


class Scaled(nn.Module):
    """Networks that differ in a number of their program alone."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.first, self.last, self.factor = nn.Linear(2, 3), nn.Linear(3, 1), factor

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.softmax(self.factor * self.first(x), 1))


def test_spaces_that_compute_something_else_stay_apart() -> None:
    space = WeightSpace.siren([2, 8, 1])
    other = WeightSpace.siren([2, 8, 1], signal=Signal((5, 5)))
    doubled, tripled = (trace(Scaled(factor).eval(), torch.ones(2, 2)) for factor in (2.0, 3.0))
    assert doubled.matches(tripled)
    assert len(DistinctSpaces([space, other, doubled, tripled, doubled])) == 4


# == The check-up ==


def test_the_check_up_says_what_there_is(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for number in range(20):
        (runs / f"run-{number // 4}").mkdir(parents=True, exist_ok=True)
        torch.save(state_of(make_layers(number, (3, 5, 2) if number < 14 else (3, 4, 2))), runs / f"run-{number // 4}" / f"{number}.pt")
    shutil.copy(runs / "run-0" / "0.pt", runs / "run-0" / "copy.pt")
    rows = [f"run-{n // 4}/{n}.pt,{n / 10 if n else ''},{'ab'[n % 2]},{n % 3},yes" for n in range(20)]
    write_csv(runs / "metadata.csv", "file_name,loss,kind,label,same", *rows, "run-0/copy.pt,inf,a,0,yes")
    text = call("zoo", "import", str(tmp_path / "zoo"), str(runs), "--activation", "relu")
    found = check_up(ZooStore(tmp_path / "zoo"))
    printed = CliRunner().invoke(app, ["zoo", "import", str(tmp_path / "json"), str(runs), "--activation", "relu", "--json"]).stdout
    assert json.loads(printed) == {**found, "zoo": str(tmp_path / "json")}
    assert [(entry["networks"], entry["parameters"]) for entry in found["architectures"]] == [(15, 32), (6, 26)]
    assert sum(found["splits"].values()) == found["networks"] == 21
    assert found["duplicates"] == {"networks": 1, "across_splits": 0}
    (group,) = found["groups"]
    assert (group["by"], group["groups"], group["largest"]) == ("folder", 5, 5)
    assert found["columns"]["kind"] == {"values": "text", "missing": 0, "distinct": 2, "counts": {"a": 11, "b": 10}}
    assert found["columns"]["label"]["counts"] == {"0": 8, "1": 7, "2": 6}
    loss = found["columns"]["loss"]
    assert (loss["missing"], loss["infinite"], loss["min"], loss["max"]) == (1, 1, pytest.approx(0.1), pytest.approx(1.9))
    assert loss["quartiles"][1] == pytest.approx(1.0)
    for line in (
        "15 x WeightSpace(3-5-2",
        "Groups by folder: 5 of up to 5 networks",
        "Duplicates: 1 network has the weights of another one, in its split",
        "The same for all networks: same = yes",
    ):
        assert line in text
    assert "1 infinite, 1 missing (NaN)" in " ".join(text.replace("│", " ").split())
    whole = call("zoo", "info", str(tmp_path / "zoo"))
    assert "same" in whole
    assert "hidden.1" in whole


def test_columns_are_set_together(tmp_path: Path) -> None:
    space = WeightSpace.mlp([2, 3, 1])
    zoo = ZooStore.create(tmp_path / "zoo", space, space.sample(2), {"a": [1, 2]})
    zoo.set_columns({"b": [3, 4], "a": ["x", "y"]})
    with pytest.raises(ValueError, match="one entry per network, 2"):
        zoo.set_columns({"c": [1, 2], "d": [1]})
    assert {name: column.tolist() for name, column in ZooStore(zoo.path).table.items()} == {"a": ["x", "y"], "b": [3, 4]}
    assert zoo.verify() == []


def test_formats_of_plugins_are_imported(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "a.sizes").write_text("2 3 1")
    (tmp_path / "runs" / "b.sizes").write_text("2 4 1")
    try:

        @register_format("sizes", [".sizes"])
        def read(path: Path) -> list[FileNetwork]:
            """An MLP of ones."""
            if "broken" in path.read_text():
                raise ZeroDivisionError(1)
            if "lacking" in path.read_text():
                raise ImportError("needs a package")
            space = WeightSpace.mlp([int(size) for size in path.read_text().split()])
            info = {"depth": 2, "big": 2**60, "mixed": 1 if "3" in path.read_text() else "x", "nested": {"deep": {"no": 1}, "rate": 0.5}}
            return [FileNetwork("", space, torch.ones(space.num_params), info)]

        zoo = import_zoo(tmp_path / "zoo", tmp_path / "runs")
        (tmp_path / "runs" / "c.sizes").write_text("2 3 1 broken")
        with pytest.raises(ValueError, match=r"'c.sizes': .*ZeroDivisionError: 1"):
            import_zoo(tmp_path / "broken", tmp_path / "runs")
        skipped = import_zoo(tmp_path / "broken", tmp_path / "runs", skip_bad=True)
        assert skipped.info["imported"]["bad"] == {"c.sizes": "ZeroDivisionError: 1"}
        (tmp_path / "runs" / "c.sizes").write_text("2 3 1 lacking")
        with pytest.raises(ImportError, match="needs a package"):  # of which no file is to blame
            import_zoo(tmp_path / "none", tmp_path / "runs", skip_bad=True)
    finally:
        FORMATS.pop("sizes", None)
    assert zoo.column("depth").tolist() == [2, 2]
    assert zoo.column("big").tolist() == [str(2**60)] * 2
    assert zoo.column("mixed").tolist() == ["1", "x"]
    assert zoo.column("nested.rate").tolist() == [0.5, 0.5]
    assert {*zoo.table} == {"file", "split", "depth", "big", "mixed", "nested.rate"}


# == One file on the command line ==


def test_commands_read_every_format(tmp_path: Path) -> None:
    layers = make_layers(0)
    write_keras(tmp_path / "a.keras", layers)
    write_agent(tmp_path / "a.zip")
    write_flax(tmp_path / "a.msgpack", layers)
    assert "permutation x scale" in call("info", str(tmp_path / "a.keras"))
    assert "WeightSpace(3-5-2" in call("info", str(tmp_path / "a.msgpack"), "--activation", "tanh")
    assert "WeightSpace(3-8-8-2" in call("info", str(tmp_path / "a.zip"), "--network", "policy")
    page = tmp_path / "policy.html"
    call("plot", "graph", str(tmp_path / "a.zip"), "--network", "policy", "--html", str(page))
    assert "WeightSpace(3-8-8-2" in page.read_text(encoding="utf-8")
    assert json.loads(call("check", str(tmp_path / "a.zip"), "--network", "value", "--json"))["passes"] is True
    np.savez(tmp_path / "a.npz", **{f"{i}.kernel": weight.T.numpy() for i, (weight, _) in enumerate(layers)})  # type: ignore[arg-type]
    assert "WeightSpace(3-5-2" in call("info", str(tmp_path / "a.npz"), "--activation", "relu", "--layout", "in_out")
    call("convert", str(tmp_path / "a.keras"), str(tmp_path / "graph.pt"))
    graph = torch.load(tmp_path / "graph.pt", weights_only=True)
    assert graph["x"].shape[0] == 10
    for arguments, message in (
        (["a.zip"], "holds several networks, policy, value: choose one with --network, such as policy"),
        (["a.zip", "--network", "polcy"], "Did you mean 'policy'?"),
        (["a.msgpack"], "give them with activation="),
        (["a.keras", "--stride", "2"], "which has no option 'stride'"),
        (["b.pt", "--layout", "in"], "Expected 'layout' to be 'out_in' or 'in_out' (got 'in')"),
        (["a.keras", "--fold-batchnorm"], "a file of Keras says itself what its network is"),
        (["b.pt", "--network", "policy"], "--prefix chooses one"),
    ):
        torch.save(state_of(layers), tmp_path / "b.pt")
        assert message in " ".join(call("info", str(tmp_path / arguments[0]), *arguments[1:], code=1).split())
