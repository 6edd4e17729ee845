"""Zoos from folders of checkpoints, and back."""

import json
import math
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.spaces import residual_space
from tests.test_cli import call
from wsgraph import WeightSpace, from_state_dict
from wsgraph.data import ZooStore, ZooWarning, export_zoo, group_split, import_zoo
from wsgraph.data.exchange import exporting, importing, reading
from wsgraph.data.transforms import RandomSymmetry
from wsgraph.space import Signal

# What an import says is tested where it is asked for, by pytest.warns.
pytestmark = pytest.mark.filterwarnings("ignore::wsgraph.data.ZooWarning")


def assert_same(made: ZooStore, zoo: ZooStore) -> None:
    """Networks, weight spaces and tables agree bit for bit and row by row."""
    assert [shard.space for shard in made.shards for _ in range(shard.count)] == [
        shard.space for shard in zoo.shards for _ in range(shard.count)
    ]
    assert made.spaces == zoo.spaces
    for position in range(len(zoo)):
        row = torch.tensor([position])
        theta, there = zoo.read(row), made.read(row)
        assert theta.dtype == there.dtype
        assert torch.equal(theta, there)
    assert list(made.table) == list(zoo.table)
    for name, column in zoo.table.items():
        assert made.table[name].dtype == column.dtype
        np.testing.assert_array_equal(made.table[name], column)
    assert made.finished
    assert made.verify() == []


TABLE: dict[str, Any] = {
    "split": ["train", "test", "train", "val"],
    "test_accuracy": np.array([0.1, math.nan, 0.3, 1.0], dtype=np.float32),
    "loss": [math.inf, -math.inf, 1e-300, 3.0],
    "steps": np.array([1, 2, 3, 2**31 - 1], dtype=np.int32),
    "seed": np.array([0, 2**64 - 1, 1, 2], dtype=np.uint64),
    "final": [True, False, True, True],
    "note": ["", 'a "quoted", text', "Gewichte ü\n", "007"],
    "weird | name": [1, 2, 3, 4],
}
SPACES = {
    "cnn": WeightSpace.cnn([1, 3, 4], [2], "tanh", pooling="max_pool(2)"),
    "mlp": WeightSpace.mlp([3, 4, 2], ["gelu"]),
    "siren": WeightSpace.siren([2, 4, 1], signal=Signal((5, 6), "row")),
    "residual": residual_space(),
}


def draw(space: WeightSpace, count: int = 4, dtype: torch.dtype = torch.float32) -> Tensor:
    return space.sample(count, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize("name", SPACES)
def test_a_zoo_that_was_exported_comes_back(tmp_path: Path, name: str) -> None:
    zoo = ZooStore.create(tmp_path / "zoo", SPACES[name], draw(SPACES[name]), TABLE, info={"made": "here"})
    folder = export_zoo(zoo, tmp_path / "shared")
    made = import_zoo(tmp_path / "again", folder)
    assert_same(made, zoo)
    assert made.space.signal == SPACES[name].signal
    assert made.info["imported"] == {"folder": "shared", "info": zoo.info}
    assert sorted(entry.name for entry in folder.parent.iterdir()) == ["again", "shared", "zoo"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtypes_come_back(tmp_path: Path, dtype: torch.dtype) -> None:
    zoo = ZooStore.create(tmp_path / "zoo", SPACES["mlp"], draw(SPACES["mlp"], dtype=dtype), TABLE)
    folder = export_zoo(zoo, tmp_path / "shared")
    assert {tensor.dtype for tensor in load_file(folder / "networks" / "000002.safetensors").values()} == {dtype}
    assert_same(import_zoo(tmp_path / "again", folder), zoo)


def test_parameters_of_several_dtypes_come_back(tmp_path: Path) -> None:
    state = {"a.weight": torch.randn(3, 2).bfloat16(), "a.bias": torch.randn(3), "b.weight": torch.randn(1, 3), "b.bias": torch.randn(1)}
    space, theta = from_state_dict(state, "relu")
    zoo = ZooStore.create(tmp_path / "zoo", space, torch.stack([theta, theta]), {"run": [0, 1]})
    folder = export_zoo(zoo, tmp_path / "shared")
    assert all(torch.equal(tensor, state[key]) for key, tensor in load_file(folder / "networks" / "000001.safetensors").items())
    assert_same(import_zoo(tmp_path / "again", folder), zoo)
    moved = ZooStore.create(tmp_path / "moved", space, torch.stack([theta, theta / 3]), {"run": [0, 1]})  # which bfloat16 cannot hold
    assert_same(import_zoo(tmp_path / "moved-again", export_zoo(moved, tmp_path / "moved-shared")), moved)


def test_zoos_of_several_architectures_keep_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ZooStore.writing(tmp_path / "zoo") as zoo:
        for i, name in enumerate(["mlp", "cnn", "mlp", "residual", "residual"]):
            dtype = torch.float64 if i == 2 else torch.float32
            zoo.append(SPACES[name], draw(SPACES[name], dtype=dtype), {"part": [i] * 4, "number": range(4)})
    folder = export_zoo(zoo, tmp_path / "shared", progress=False)
    kinds = [load_file(folder / "networks" / f"{i:06d}.safetensors").popitem()[1].dtype for i in range(20)]
    assert kinds == [torch.float32] * 8 + [torch.float64] * 4 + [torch.float32] * 8
    assert_same(import_zoo(tmp_path / "again", folder, progress=False), zoo)
    # Of very many runs of one architecture each, shards are few instead.
    monkeypatch.setattr(reading, "_MOST_RUNS", 3)
    grouped = import_zoo(tmp_path / "grouped", folder)
    assert grouped.column("part").tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4
    assert len(grouped.shards) == 4


def test_parts_of_a_zoo(tmp_path: Path) -> None:
    zoo = ZooStore.create(tmp_path / "zoo", SPACES["mlp"], draw(SPACES["mlp"]), TABLE)
    made = import_zoo(tmp_path / "a", export_zoo(zoo, tmp_path / "a-shared", split="train", select={"final": True}))
    assert torch.equal(made.thetas, zoo.thetas[[0, 2]])
    made = import_zoo(tmp_path / "b", export_zoo(zoo.dataset(target=None)[[3, 1]], tmp_path / "b-shared"))
    assert torch.equal(made.thetas, zoo.thetas[[3, 1]])
    with pytest.raises(ValueError, match=r"No network of '.*zoo' is chosen \(its splits: train, test, val\)"):
        export_zoo(zoo, tmp_path / "none", split="other")
    with pytest.raises(ValueError, match="without a transform, which files would not show"):
        export_zoo(zoo.dataset().with_transform(RandomSymmetry()), tmp_path / "none")
    zoo.set_column("file_name", ["a", "b", "c", "d"])
    with pytest.raises(ValueError, match="has the name 'file_name', which the table of an export uses itself"):
        export_zoo(zoo, tmp_path / "none")


def test_what_is_exported_can_be_read_by_others(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    geometry: dict[str, Any] = {"stride": 1, "padding": 0, "pooling": "none", "readout": "global_avg_pool"}
    space, theta = from_state_dict(module.state_dict(), "relu", **geometry)
    zoo = ZooStore.create(
        tmp_path / "zoo", space, torch.stack([theta, 2 * theta]), {"test_accuracy": [0.5, math.nan], "loss": [1, math.inf]}
    )
    folder = export_zoo(zoo, tmp_path / "shared")
    other = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    other.load_state_dict(load_file(folder / "networks" / "000000.safetensors"))
    inputs = torch.randn(2, 1, 5, 5)
    assert torch.equal(other(inputs), module(inputs))
    lines = (folder / "metadata.jsonl").read_text().splitlines()
    names = {"file_name": "networks/000001.safetensors", "weight_space": space.digest}
    assert json.loads(lines[1]) == {**names, "test_accuracy": None, "loss": math.inf}
    assert "Infinity" in lines[1]  # as Arrow, and so the Hub, reads it; not 1e999, which it refuses
    assert WeightSpace.from_json((folder / "spaces" / f"{space.digest}.json").read_text()) == space
    card = (folder / "README.md").read_text()
    assert card.startswith('---\npretty_name: "shared"\ntags:\n- model-zoo\n')
    assert "configs:\n- config_name: default\n  data_files: metadata.jsonl\n---\n" in card
    assert f"- `{space.digest}`: 2 networks, `{space!r}`" in card
    assert "- `test_accuracy`: float64" in card


def test_the_card_of_many_architectures_stays_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ZooStore.writing(tmp_path / "zoo") as zoo:
        for width in (2, 3, 4):
            space = WeightSpace.mlp([2, width, 1])
            zoo.append(space, draw(space, 1), {})
    monkeypatch.setattr(exporting, "_LISTED", 1)
    assert "- and 2 further weight spaces\n" in (export_zoo(zoo, tmp_path / "shared") / "README.md").read_text()


# == Checkpoints of one's own ==


def networks(folder: Path, count: int = 5, hidden: int = 3) -> list[dict[str, Tensor]]:
    """Checkpoints of small MLPs in all formats, with what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    states = []
    for i in range(count):
        states.append(nn.Sequential(nn.Linear(2, hidden), nn.ReLU(), nn.Linear(hidden, 1)).state_dict())
        suffix = (".pt", ".pth", ".ckpt", ".safetensors", ".npz")[i % 5]
        file = folder / f"{i}{suffix}"
        if suffix == ".safetensors":
            save_file(states[-1], file)
        elif suffix == ".npz":
            np.savez(file, **{key: tensor.numpy() for key, tensor in states[-1].items()})
        else:
            torch.save({"state_dict": states[-1], "epoch": 3} if suffix == ".ckpt" else states[-1], file)
    return states


def write_csv(file: Path, *lines: str) -> Path:
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def test_checkpoints_without_a_table(tmp_path: Path) -> None:
    states = networks(tmp_path / "runs")
    (tmp_path / "runs" / ".hidden").mkdir()
    shutil.copy(tmp_path / "runs" / "0.pt", tmp_path / "runs" / ".hidden" / "0.pt")
    (tmp_path / "runs" / "notes.txt").write_text("")
    zoo = import_zoo(tmp_path / "zoo", tmp_path / "runs", activation="tanh", seed=1)
    assert zoo.space == from_state_dict(states[0], "tanh")[0]
    for theta, state in zip(zoo.thetas, states, strict=True):
        assert all(torch.equal(tensor, state[key]) for key, tensor in zoo.space.unflatten(theta).items())
    assert zoo.column("file").tolist() == ["0.pt", "1.pth", "2.ckpt", "3.safetensors", "4.npz"]
    assert zoo.splits == {"train": 3, "val": 1, "test": 1}
    again = import_zoo(tmp_path / "again", tmp_path / "runs", activation="tanh", seed=1)
    assert again.column("split").tolist() == zoo.column("split").tolist()
    # A zoo that was imported keeps its names and splits on its way through an export.
    assert_same(import_zoo(tmp_path / "third", export_zoo(zoo, tmp_path / "shared")), zoo)


def test_types_of_a_csv_table(tmp_path: Path) -> None:
    networks(tmp_path / "runs", 3)
    lines = (
        "file_name,steps,test_accuracy,final,partly,name,hash,empty,split,activation",
        "2.ckpt,10,0.5,True,true,a,007,,train,relu",
        './0.pt,-3,nan,false,,"b, c",12345678901234567890,,test,tanh',
        "1.pth,,1e-3,TRUE,false,3,1_0,,train,relu",
    )
    file = write_csv(tmp_path / "elsewhere.CSV", "\ufeff" + lines[0], *lines[1:])
    zoo = import_zoo(tmp_path / "zoo", tmp_path / "runs", table=file)
    # Grouped by architecture, in order of appearance.
    assert zoo.column("file").tolist() == ["2.ckpt", "1.pth", "0.pt"]
    table = {name: zoo.column(name)[[0, 2, 1]] for name in zoo.table}
    np.testing.assert_array_equal(table["steps"], [10, -3, math.nan])
    np.testing.assert_array_equal(table["test_accuracy"], [0.5, math.nan, 1e-3])
    assert table["final"].dtype == bool
    assert table["final"].tolist() == [True, False, True]
    assert table["partly"].tolist() == ["true", "", "false"]  # classes, not numbers
    assert table["name"].tolist() == ["a", "b, c", "3"]
    assert table["hash"].tolist() == ["007", "12345678901234567890", "1_0"]
    assert np.isnan(table["empty"]).all()
    assert zoo.splits == {"train": 2, "test": 1}
    assert [space.groups[1].activation for space in zoo.spaces] == ["relu", "tanh"]


def test_types_of_a_jsonl_table(tmp_path: Path) -> None:
    networks(tmp_path / "runs", 2)
    rows = [{"file_name": "0.pt", "steps": 3, "name": "a"}, {"file_name": "1.pth", "steps": 4.5, "name": None, "late": 2}]
    (tmp_path / "runs" / "metadata.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    zoo = import_zoo(tmp_path / "zoo", tmp_path / "runs", activation=["relu"])
    assert zoo.column("steps").tolist() == [3, 4.5]
    assert zoo.column("name").tolist() == ["a", ""]
    np.testing.assert_array_equal(zoo.column("late"), [math.nan, 2])


def test_networks_may_be_added_to_an_export(tmp_path: Path) -> None:
    zoo = ZooStore.create(tmp_path / "zoo", SPACES["mlp"], draw(SPACES["mlp"], 2), {"test_accuracy": [0.5, 0.6]})
    folder = export_zoo(zoo, tmp_path / "shared")
    states = networks(folder / "networks", 1)
    with (folder / "metadata.jsonl").open("a") as table:
        table.write('{"file_name": "networks/0.pt", "test_accuracy": 0.7}\n')
    made = import_zoo(tmp_path / "again", folder, activation="tanh")
    assert made.spaces == [zoo.space, from_state_dict(states[0], "tanh")[0]]
    assert made.column("test_accuracy").tolist() == [0.5, 0.6, 0.7]
    write_csv(tmp_path / "runs.csv", "file_name,activation", "0.pt,relu")
    networks(tmp_path / "runs", 1)
    with pytest.raises(ValueError, match="'activation' is for weights of which nothing else says it"):
        import_zoo(tmp_path / "none", tmp_path / "runs", table=tmp_path / "runs.csv", activation="relu")


def test_folders_of_models_with_configurations(tmp_path: Path) -> None:
    for i, activation in enumerate(["tanh", "relu", "tanh"]):
        networks(tmp_path / "runs" / f"run-{i}", 4)
        os.rename(tmp_path / "runs" / f"run-{i}" / "3.safetensors", tmp_path / "runs" / f"run-{i}" / "model.safetensors")
        config = {"activation": activation, "learning_rate": 0.1 * i, "hidden": [3], "bias": True}
        (tmp_path / "runs" / f"run-{i}" / "config.json").write_text(json.dumps(config))
    zoo = import_zoo(tmp_path / "zoo", tmp_path / "runs")
    assert zoo.column("file").tolist() == [f"run-{i}/model.safetensors" for i in (0, 2, 1)]
    assert [space.groups[1].activation for space in zoo.spaces] == ["tanh", "relu"]
    assert zoo.column("learning_rate").tolist() == [0.0, 0.2, 0.1]
    assert set(zoo.table) == {"activation", "learning_rate", "bias", "file", "split"}
    # What a table says wins.
    names = "\n".join(f"run-{i}/model.safetensors,gelu" for i in range(3))
    write_csv(tmp_path / "runs" / "metadata.csv", "file_name,activation", names)
    assert import_zoo(tmp_path / "other", tmp_path / "runs").space.groups[1].activation == "gelu"


def test_a_weight_space_may_be_given(tmp_path: Path) -> None:
    space = SPACES["residual"]
    thetas = draw(space)
    (tmp_path / "runs").mkdir()
    for i, theta in enumerate(thetas):
        save_file({key: tensor.clone() for key, tensor in space.unflatten(theta).items()}, tmp_path / "runs" / f"{i}.safetensors")
    zoo = import_zoo(tmp_path / "zoo", tmp_path / "runs", space=space)
    assert zoo.space == space
    assert torch.equal(zoo.thetas, thetas)
    with pytest.raises(ValueError, match=r"'3.safetensors': The state dict lacks the key"):
        import_zoo(tmp_path / "none", tmp_path / "runs", space=SPACES["mlp"])
    with pytest.raises(ValueError, match="'activation' is for weights of which nothing else says it"):
        import_zoo(tmp_path / "none", tmp_path / "runs", space=space, activation="relu")
    with pytest.raises(ValueError, match="names them"):
        import_zoo(tmp_path / "none", export_zoo(zoo, tmp_path / "shared"), space=space)


def test_populations_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    networks(tmp_path / "runs", 5)
    networks(tmp_path / "runs" / "wide", 5, hidden=7)
    monkeypatch.setattr(importing, "_POPULATION", 2)
    zoo = import_zoo(tmp_path / "zoo", tmp_path / "runs", activation="relu")
    assert [shard.shape for shard in zoo.shards] == [(2, 13), (2, 13), (2, 29), (2, 29), (1, 13), (1, 29)]
    monkeypatch.setattr(importing, "_HELD_BYTES", 100)
    zoo = import_zoo(tmp_path / "small", tmp_path / "runs", activation="relu")
    assert max(shard.count for shard in zoo.shards) == 1
    assert zoo.column("file").tolist()[5:] == [f"wide/{name}" for name in zoo.column("file")[:5]]


def test_networks_that_diverged_are_left_out(tmp_path: Path) -> None:
    states = networks(tmp_path / "runs", 3)
    torch.save({key: tensor * math.nan for key, tensor in states[0].items()}, tmp_path / "runs" / "0.pt")
    zoo = import_zoo(tmp_path / "zoo", tmp_path / "runs", activation="relu")
    assert zoo.column("file").tolist() == ["1.pth", "2.ckpt"]
    assert zoo.info["dropped_non_finite"] == 1


def test_links_within_the_folder_are_followed(tmp_path: Path) -> None:
    """The Hub's cache consists of links to files elsewhere."""
    networks(tmp_path / "blobs", 2)
    (tmp_path / "snapshot").mkdir()
    for name in ("0.pt", "1.pth"):
        (tmp_path / "snapshot" / name).symlink_to(tmp_path / "blobs" / name)
    assert len(import_zoo(tmp_path / "zoo", tmp_path / "snapshot", activation="relu")) == 2


# == What is refused ==


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("echo ran > /dev/null",)


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    networks(tmp_path / "runs", 4)
    torch.save({"weight": torch.zeros(2, 2), "code": Code()}, tmp_path / "runs" / "malicious.pt")
    content = (tmp_path / "runs" / "3.safetensors").read_bytes()
    (tmp_path / "runs" / "truncated.safetensors").write_bytes(content[:-5])
    torch.save({"attention.weight": torch.zeros(2, 2)}, tmp_path / "runs" / "unknown.pt")
    monkeypatch.setattr(os, "system", lambda command: pytest.fail("code of a checkpoint was run"))
    with pytest.raises(ValueError, match="3 of 7 checkpoints cannot be imported, so nothing is:") as caught:
        import_zoo(tmp_path / "zoo", tmp_path / "runs", activation="relu")
    lines = str(caught.value).splitlines()
    assert lines[1].startswith("'malicious.pt': Refused to load")
    assert lines[2].startswith("'truncated.safetensors': ")
    assert "is damaged" in lines[2]
    assert lines[3].startswith("'unknown.pt': 'attention.weight' of shape [2, 2] does not fit into a chain")
    assert [entry.name for entry in tmp_path.iterdir()] == ["runs"]
    with pytest.raises(ValueError, match=r"5 or more of 7 checkpoints .*\n'0.pt', .*: Unknown activation or operator 'relo'"):
        import_zoo(tmp_path / "zoo", tmp_path / "runs", activation="relo")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["file_name", "0.pt"], "has no row for '1.pth'. Add rows, move those files out of .*, or leave them out with skip_bad=True"),
        (["file_name", "0.pt", "1.pth", "2.pt"], "names files that are not in '.*runs': '2.pt'. Correct or remove those rows"),
        (["file_name", "0.pt", "1.pth", "./0.pt"], "has several rows of '0.pt'. Leave one of each"),
        (["file_name", "0.pt", "1.pth", "../../x.pt"], r"without '..' \(got '../../x.pt'\)"),
        (["file_name", "0.pt", "a/../../runs/1.pth"], r"without '..' \(got 'a/../../runs/1.pth'\)"),
        (["file_name", "0.pt", "/etc/x.pt"], r"to be a path from '.*runs', without '..' \(got '/etc/x.pt'\)"),
        (["name", "0.pt", "1.pth"], r"Expected a column 'file_name' in .* \(its columns: 'name'\)"),
        (["name;a", "0.pt;0,1", "1.pth;0,2"], r"\(its columns: 'name', 'a'\)\. Its column 'name' names files: file_column='name'"),
        (["filename\ta", "x\t1", "y\t2"], r"\(its columns: 'filename', 'a'\)\. Did you mean 'filename'\?"),
        (["file_name,a"], "has names of columns, but no rows"),
        ([",file_name", "a,0.pt", "b,1.pth"], r"has no name \(it begins with 'a', 'b'\). Name or remove it"),
        (["file_name", '""'], "Expected the column 'file_name' of .* to hold the path of every"),
        (["file_name,a", "0.pt,1", "1.pth"], r"as many entries as columns in every row of '.*metadata.csv' \(row 2 has others\)"),
        (["file_name", '"0.pt'], "is not a CSV file"),
        (["file_name,a,a", "0.pt,1,2", "1.pth,1,2"], "metadata.csv' has several columns 'a'. Rename or remove all but one"),
        (["file_name,weight_space", "0.pt,../x", "1.pth,"], r"to name files in '.*spaces' \(got '../x', which is not there\)"),
        (["file_name,weight_space", "0.pt,x", "1.pth,"], r"to name files in '.*spaces' \(got 'x', which is not there\)"),
        (["file_name,activation", "0.pt,relu", "1.pth,"], "which activation '1.pth' have"),
    ],
)
def test_tables_that_do_not_fit(tmp_path: Path, lines: list[str], message: str) -> None:
    networks(tmp_path / "runs", 2)
    write_csv(tmp_path / "x.pt")
    write_csv(tmp_path / "runs" / "metadata.csv", *lines)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        import_zoo(tmp_path / "zoo", tmp_path / "runs", activation=None if "activation" in lines[0] or "space" in lines[0] else "relu")
    assert not (tmp_path / "zoo").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"file_name": "0.pt"', "is not JSON in line 1"),
        ("[1]", r"to hold an object in line 1, such as .* \(got list"),
        ('{"file_name": "0.pt", "weight_space": [1]}\n{"file_name": "1.pth"}', r"column 'weight_space' to hold .* \(got list\)"),
        ('{"file_name": 3}', "Expected the column 'file_name' of .* to hold the path of every"),
        ('{"file_name": "0.pt", "a": 1, "a": 2}', "metadata.jsonl' says 'a' twice in line 1. Leave one of each"),
        (
            '{"file_name": "0.pt", "a": 9007199254740993}\n{"file_name": "1.pth"}',
            r"'a', which has fractions or lacks values, to hold integers that a float can hold, up to 2\*\*53 \(got 9007199254740993",
        ),
        (
            '{"file_name": "0.pt", "a": "x"}\n{"file_name": "1.pth", "a": 1}',
            r"column 'a' to hold numbers, booleans or text alone \(got int, str\)",
        ),
        (
            '{"file_name": "0.pt", "a": [1]}\n{"file_name": "1.pth", "a": [2]}',
            r"column 'a' to hold numbers, booleans or text alone \(got list",
        ),
        ('{"file_name": "0.pt", "a": -1}\n{"file_name": "1.pth", "a": 9223372036854775808}', "'a' to hold integers of 64 bits"),
        ('{"file_name": "0.pt", "a": 1e2}\n{"file_name": "1.pth", "a": true}', r"alone \(got bool, float\)"),
    ],
)
def test_rows_that_cannot_be_read(tmp_path: Path, text: str, message: str) -> None:
    networks(tmp_path / "runs", 2)
    (tmp_path / "runs" / "metadata.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        import_zoo(tmp_path / "zoo", tmp_path / "runs", activation="relu")


def test_arguments_that_do_not_fit(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    networks(runs, 2)
    with pytest.raises(ValueError, match=r"which activation '0.pt', '1.pth' have, .* decides their symmetries. Give 'activation'"):
        import_zoo(tmp_path / "zoo", runs)
    with pytest.raises(ValueError, match="'split' to be three shares"):
        import_zoo(tmp_path / "zoo", runs, activation="relu", split=(0.5, 0.5))
    with pytest.raises(ValueError, match="shares of at least 0 that add up to 1"):
        import_zoo(tmp_path / "zoo", runs, activation="relu", split=(0.5, 0.5, 0.5))
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        import_zoo(tmp_path / "zoo", tmp_path / "missing", activation="relu")
    with pytest.raises(FileNotFoundError, match=r"There is no table 'missing.csv'"):
        import_zoo(tmp_path / "zoo", runs, activation="relu", table="missing.csv")
    with pytest.raises(ValueError, match=r"a table ending in .jsonl, .csv or .tsv \(got '0.pt'\)"):
        import_zoo(tmp_path / "zoo", runs, activation="relu", table=runs / "0.pt")
    (tmp_path / "latin.csv").write_bytes("file_name,größe".encode("latin-1"))
    with pytest.raises(ValueError, match="is not text in UTF-8"):
        import_zoo(tmp_path / "zoo", runs, activation="relu", table=tmp_path / "latin.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds no checkpoints of networks \(.bin, .ckpt, .h5, .*.onnx, "):
        import_zoo(tmp_path / "zoo", tmp_path / "empty", activation="relu")
    for name in ("metadata.csv", "metadata.jsonl"):
        (runs / name).write_text("")
    with pytest.raises(ValueError, match="Choose one with 'table', or delete one"):
        import_zoo(tmp_path / "zoo", runs, activation="relu")
    for name in ("metadata.csv", "metadata.jsonl"):
        (runs / name).unlink()
    import_zoo(tmp_path / "zoo", runs, activation="relu")
    with pytest.raises(FileExistsError, match=r"zoo' exists already. Open it with ZooStore\(path\)"):
        import_zoo(tmp_path / "zoo", runs, activation="relu")
    with pytest.raises(ValueError, match=r"is a zoo already: open it with ZooStore\(path\)"):
        import_zoo(tmp_path / "other", tmp_path / "zoo", activation="relu")


def test_damaged_exports(tmp_path: Path) -> None:
    zoo = ZooStore.create(tmp_path / "zoo", SPACES["mlp"], draw(SPACES["mlp"]), TABLE)
    folder = export_zoo(zoo, tmp_path / "shared")
    (space,) = (folder / "spaces").iterdir()
    text = space.read_text()
    for changed in (text[:-9], text.replace("gelu", "relu")):
        space.write_text(changed)
        with pytest.raises(ValueError, match=r"'.*spaces.*json' is damaged. It was changed after it was written: it is not the space"):
            import_zoo(tmp_path / "again", folder)
    space.rename(folder / "spaces" / "mine.json")
    with pytest.raises(ValueError, match=r"which is not there"):
        import_zoo(tmp_path / "again", folder)
    (folder / "spaces" / "mine.json").rename(space)
    space.write_text(text)
    with pytest.raises(ValueError, match="'activation' is for weights of which nothing else says it"):
        import_zoo(tmp_path / "again", folder, activation="relu")
    (folder / "export.json").write_text('{"format": "wsgraph.export", "version": 2}')
    with pytest.raises(ValueError, match=r"version 1 \(got 'wsgraph.export', version 2\); update wsgraph to read it"):
        import_zoo(tmp_path / "again", folder)
    # Without it, types are those of the text, and weight spaces are still known.
    (folder / "export.json").unlink()
    made = import_zoo(tmp_path / "again", folder)
    assert made.space == zoo.space
    assert made.column("steps").dtype == np.int64
    assert torch.equal(made.thetas, zoo.thetas)


def test_exports_appear_complete_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo = ZooStore.create(tmp_path / "zoo", SPACES["mlp"], draw(SPACES["mlp"]), TABLE)
    (tmp_path / "taken").mkdir()
    with pytest.raises(FileExistsError, match=r"taken' exists already. Choose another path, or delete it"):
        export_zoo(zoo, tmp_path / "taken")
    with pytest.raises(OSError, match=r"Cannot write to .* Choose a path in a folder that you may write to"):
        export_zoo(zoo, tmp_path / "zoo" / "zoo.json" / "shared")
    seen: list[Any] = []

    def interrupted(*arguments: Any) -> None:
        seen.append(save_file(*arguments))
        if len(seen) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(exporting, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_zoo(zoo, tmp_path / "shared")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["taken", "zoo"]


# == What an import says ==


def write_network(path: Path, seed: int, dtype: torch.dtype = torch.float32, hidden: int = 3) -> dict[str, Tensor]:
    """A network as file of any format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    shapes = {"0.weight": (hidden, 2), "0.bias": (hidden,), "2.weight": (1, hidden), "2.bias": (1,)}
    state = {key: torch.randn(shape, generator=generator).to(dtype) for key, shape in shapes.items()}
    if path.suffix == ".npz":
        np.savez(path, **{key: tensor.numpy() for key, tensor in state.items()})  # type: ignore[arg-type]
    elif path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return state


def write_shards(folder: Path, seed: int, form: str = "model{}.safetensors", index: str = "model.safetensors.index.json") -> None:
    state = write_network(folder / "whole.pt", seed)
    (folder / "whole.pt").unlink()
    names = [form.format(f"-{i:05d}-of-00002") for i in (1, 2)]
    keys = [list(state)[:2], list(state)[2:]]
    for name, own in zip(names, keys, strict=True):
        part = {key: state[key] for key in own}
        save_file(part, folder / name) if name.endswith(".safetensors") else torch.save(part, folder / name)
    places = {key: name for name, own in zip(names, keys, strict=True) for key in own}
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def imported(path: Path, match: str = "", **options: Any) -> tuple[ZooStore, list[str]]:
    """A zoo of the folder ``runs`` beside it, and what was said of it."""
    with pytest.warns(ZooWarning, match=match) as caught:
        zoo = import_zoo(path, path.parent / "runs", activation="relu", **options)
    notes = zoo.info["imported"]["notes"]
    assert ZooStore(zoo.path).info == zoo.info
    assert zoo.verify() == []
    assert [str(warning.message).splitlines()[1:] for warning in caught] == [notes]
    return zoo, notes


def test_sharded_networks_are_one_each(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    write_shards(runs / "a", 0)
    write_shards(runs / "b", 1, "pytorch_model{}.bin", "pytorch_model.bin.index.json")
    write_shards(runs / "c", 2, "part{}.pt", "net.pt.index.json")
    write_shards(runs / "d", 3)
    write_shards(runs / "d", 3, "pytorch_model{}.bin", "pytorch_model.bin.index.json")  # the same once more, as on the Hub
    (runs / "a" / "config.json").write_text('{"test_accuracy": 0.5}')
    zoo, _ = imported(tmp_path / "zoo")
    assert zoo.column("file").tolist() == [
        "a/model.safetensors.index.json",
        "b/pytorch_model.bin.index.json",
        "c/net.pt.index.json",
        "d/model.safetensors.index.json",
    ]
    np.testing.assert_array_equal(zoo.column("test_accuracy"), [0.5, math.nan, math.nan, math.nan])
    for number, theta in enumerate(zoo.thetas):
        state = write_network(tmp_path / "again.pt", number)
        assert all(torch.equal(tensor, state[key]) for key, tensor in zoo.space.unflatten(theta).items())
    # Rows name the index or the folder.
    write_csv(runs / "metadata.csv", "file_name,test_accuracy", "b,0.2", "a/model.safetensors.index.json,0.1", "./d,0.4", "c/,0.3")
    zoo, _ = imported(tmp_path / "named")
    assert zoo.column("test_accuracy").tolist() == [0.2, 0.1, 0.4, 0.3]
    write_csv(runs / "metadata.csv", "file_name", "b", "b/pytorch_model.bin.index.json", "a", "c", "d")
    with pytest.raises(ValueError, match=r"has several rows of 'b/pytorch_model.bin.index.json'"):
        import_zoo(tmp_path / "twice", runs, activation="relu")
    write_csv(runs / "metadata.csv", "file_name", "b", "a/model-00001-of-00002.safetensors", "c", "d")
    with pytest.raises(ValueError, match=r"has no row for 'a/model.safetensors.index.json'"):
        import_zoo(tmp_path / "shard", runs, activation="relu")
    (runs / "metadata.csv").unlink()
    (runs / "c" / "part-00002-of-00002.pt").unlink()
    with pytest.raises(ValueError, match=r"'c/net.pt.index.json': .*names files that are not there"):
        import_zoo(tmp_path / "lacking", runs, activation="relu")


def test_what_training_leaves_beside_networks_is_skipped_and_listed(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    module = nn.Linear(2, 1)
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    for number in range(5):
        write_network(runs / f"run-{number}" / "model.safetensors", number)
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "rng_state_0.pth", "training_args.bin", "scaler.pt"):
            torch.save(optimizer.state_dict(), runs / f"run-{number}" / name)
    torch.save({**optimizer.state_dict(), "saved in": Path("runs")}, runs / "opt_1.pt")  # whose name does not say it
    zoo, _notes = imported(
        tmp_path / "zoo",
        "31 files or folders are no networks of their own and were skipped, such as states of optimizers.*: 'opt_1.pt', 'run-0/opt",
    )
    assert len(zoo) == 5
    assert len(zoo.info["imported"]["skipped"]) == 31
    rows = [f"run-{number}/model.safetensors,0.5" for number in range(5)]
    write_csv(runs / "metadata.csv", "file_name,test_accuracy", *rows)
    assert len(imported(tmp_path / "named", "31 files")[0]) == 5
    # What a row names is read, whatever it is called; and is not skipped if it holds no network.
    write_network(runs / "optimizer_study.pt", 7)
    write_csv(runs / "metadata.csv", "file_name,test_accuracy", *rows, "optimizer_study.pt,0.5")
    assert "optimizer_study.pt" in imported(tmp_path / "study", "31 files")[0].column("file")
    write_csv(runs / "metadata.csv", "file_name,test_accuracy", *rows, "optimizer_study.pt,0.5", "opt_1.pt,0.5")
    with pytest.raises(ValueError, match=r"'opt_1.pt': .*holds the state of an optimizer"):
        import_zoo(tmp_path / "wrong", runs, activation="relu")


def test_equal_networks_lie_in_one_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = tmp_path / "runs"
    for number in range(20):
        write_network(runs / f"{number:02d}.pt", number)
    shutil.copy(runs / "03.pt", runs / "a copy.pt")
    (runs / "a link.pt").symlink_to(runs / "05.pt")
    write_network(runs / "other format.safetensors", 7)
    write_network(runs / "other type.npz", 9)
    held = np.load(runs / "other type.npz")
    np.savez(runs / "other type.npz", **{key: held[key].astype(np.float64) for key in held.files})
    write_network(runs / "another activation.pt", 11)
    monkeypatch.setattr(importing, "_POPULATION", 6)  # copies are far apart
    for seed in range(4):
        zoo, (note, *_) = imported(tmp_path / f"zoo-{seed}", seed=seed)
        split = dict(zip(zoo.column("file").tolist(), zoo.column("split").tolist(), strict=True))
        pairs = {"a copy": "03", "a link": "05", "other format": "07", "other type": "09", "another activation": "11"}
        endings = {"other format": "safetensors", "other type": "npz"}
        for copy, first in pairs.items():
            name = f"{copy}.{endings.get(copy, 'pt')}"
            assert split[name] == split[f"{first}.pt"]
            assert f"{name} = {first}.pt" in note
        assert note.startswith("5 networks have the weights of another one, and are in its split: ")
    # A split that is given is kept, and said.
    rows = [f"{name},{'test' if name.startswith('a') else 'train'}" for name in sorted(split)]
    write_csv(runs / "metadata.csv", "file_name,split", *rows)
    zoo, (note, *_) = imported(tmp_path / "given")
    assert note.startswith("3 networks have the weights of one in another split")
    assert "'a copy.pt (test) = 03.pt (train)'" in note
    assert zoo.splits == {"train": 22, "test": 3}
    # Through an export too, where equal networks in one split are nothing new.
    shared = export_zoo(zoo, tmp_path / "shared")
    with pytest.warns(ZooWarning, match="3 networks have the weights of one in another split"):
        import_zoo(tmp_path / "again", shared)


def test_splits_that_training_does_not_read_are_said(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for number in range(4):
        write_network(runs / f"{number}.pt", number)
    os.rename(runs / "3.pt", tmp_path / "3.pt")
    assert imported(tmp_path / "drawn", "No network fell to 'val' of 3 networks and shares 0.6, 0.1, 0.3.*choose other shares")[0].splits
    os.rename(tmp_path / "3.pt", runs / "3.pt")
    assert len(imported(tmp_path / "none", split=(0.5, 0.5, 0.0))[1]) == 1  # of labels alone: no test was asked for
    for number, (splits, expected) in enumerate(
        (
            (
                ["train", "validation", "Test ", ""],
                r"'validation' \(1\), 'Test ' \(1\), '' \(1\); 'validation' is 'val' there, 'Test ' is 'test'",
            ),
            (["train", "train", "test", "test"], "names no network of 'val', and training needs"),
            (["0", "1", "1", "0"], r"train, val and test are not trained or scored on: '0' \(2\), '1' \(2\)"),
        )
    ):
        write_csv(runs / "metadata.csv", "file_name,split", *[f"{i}.pt,{split}" for i, split in enumerate(splits)])
        imported(tmp_path / f"given-{number}", expected)
    write_csv(
        runs / "metadata.csv", "file_name,split,test_accuracy", *[f"{i}.pt,{s},.5" for i, s in enumerate(["train", "val", "test", "test"])]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        zoo = import_zoo(tmp_path / "good", runs, activation="relu")
    assert "notes" not in zoo.info["imported"]


def test_checkpoints_of_one_run_in_several_splits_are_said(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for number in range(24):
        write_network(runs / f"run-{number // 4}" / f"step-{number % 4}.pt", number)
    imported(tmp_path / "zoo", "Checkpoints of one folder lie in several splits: 'run-0'.*group_split")
    write_csv(runs / "metadata.csv", "file_name,Run", *[f"run-{n // 4}/step-{n % 4}.pt,{n % 3}" for n in range(24)])
    os.rename(runs, tmp_path / "nested")
    (tmp_path / "runs").mkdir()
    for number in range(24):
        shutil.copy(tmp_path / "nested" / f"run-{number // 4}" / f"step-{number % 4}.pt", runs / f"{number}.pt")
    write_csv(runs / "metadata.csv", "file_name,Run", *[f"{n}.pt,{n % 3}" for n in range(24)])
    zoo, _notes = imported(tmp_path / "flat", "Checkpoints of equal 'Run' lie in several splits: '0', '1', '2'")
    zoo.set_column("split", group_split(zoo.column("Run"), {"train": 0.6, "test": 0.4}))
    assert len({(run, split) for run, split in zip(zoo.column("Run"), zoo.column("split"), strict=True)}) == 3


def test_values_that_are_missing_and_networks_that_are_left_out_are_said(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for number in range(10):
        state = write_network(runs / f"{number}.pt", number)
    torch.save({key: tensor / 0 for key, tensor in state.items()}, runs / "9.pt")
    torch.save({key: tensor / 0 for key, tensor in state.items()}, runs / "8.pt")  # equal, but nobody keeps them
    rows = [f"{i}.pt,{'' if i == 3 else i / 10},{'' if i < 2 else 'a'},{i}" for i in range(10)]
    write_csv(runs / "metadata.csv", "file_name,test_accuracy,name,seed", *rows)
    zoo, notes = imported(tmp_path / "zoo")
    assert notes[0] == "2 networks with NaN or infinite weights were left out: '8.pt', '9.pt'."
    assert "(of text: empty) in the zoo: 'test_accuracy' of 1, 'name' of 2 of 10 networks." in notes[-1]
    assert len(notes) == 2
    assert len(zoo) == 8
    zoo.set_column("nothing", np.full(8, np.nan))
    text = " ".join(call("zoo", "info", str(zoo.path)).split())
    assert "1 missing (NaN)" in text
    assert "no values, 8 missing (NaN)" in text
    assert notes[0] in text


def test_files_whose_names_are_nearly_equal(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for number, name in enumerate(["net.pt", "Net.pt", "net.safetensors", "other.pt"]):
        write_network(runs / name, number)
    imported(tmp_path / "zoo", "Files that differ in ending or case alone, and in their weights: 'Net.pt and net.pt and net.safetensors'")
    write_csv(runs / "metadata.csv", "file_name", "net.pt", "Net.pt", "net.safetensors", "Other.PT")
    with pytest.raises(FileNotFoundError, match=r"not in '.*runs': 'Other.PT' \('other.pt' is there for 'Other.PT'\)\. Correct or"):
        import_zoo(tmp_path / "none", runs, activation="relu")


def test_a_table_as_people_and_pandas_write_it(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    splits = ["train", "val", "test", "train", "train"]
    networks(runs)
    names = sorted(file.name for file in runs.iterdir())
    rows = [f"{i}, {names[i]}, {split}, 0.{i}, {'N/A' if i == 2 else i}" for i, split in enumerate(splits)]
    write_csv(runs / "metadata.csv", ", file_name, split , test_accuracy, depth", *rows)
    zoo, _ = imported(tmp_path / "zoo", "The column 'depth' is text, for not all of its entries are numbers: 'N/A'. Leave")
    assert {*zoo.table} == {"file", "split", "test_accuracy", "depth"}
    assert zoo.column("split").tolist() == splits
    assert zoo.column("test_accuracy").tolist() == [0, 0.1, 0.2, 0.3, 0.4]


def test_tied_layers_are_no_chain(tmp_path: Path) -> None:
    weight = torch.randn(2, 4)
    (tmp_path / "runs").mkdir()
    torch.save({"encoder.weight": weight, "decoder.weight": weight.T}, tmp_path / "runs" / "0.pt")
    with pytest.raises(ValueError, match=r"'0.pt': 'encoder.weight' and 'decoder.weight' are one tensor"):
        import_zoo(tmp_path / "zoo", tmp_path / "runs", activation="relu")


def test_what_lies_between_networks_is_said(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for number in range(10):
        write_network(runs / f"{number}.pt", number)
    zoo, notes = imported(runs.parent / "zoo")
    os.rename(zoo.path, runs / "zoo")
    write_network(tmp_path / "elsewhere" / "best.pt", 99)
    (runs / "best").symlink_to(tmp_path / "elsewhere")
    write_csv(runs / "results.csv", "file_name,test_accuracy", *[f"{i}.pt,0.5" for i in range(10)])
    zoo, notes = imported(tmp_path / "again", "2 files or folders are no networks .* other zoos or links to folders: 'best', 'zoo'")
    assert len(zoo) == 10
    assert notes[-1] == "'results.csv' beside the checkpoints was not read: only metadata.jsonl or metadata.csv is, or table=..."


def test_notes_on_the_command_line(tmp_path: Path) -> None:
    write_network(tmp_path / "runs" / "0.pt", 0)
    write_network(tmp_path / "runs" / "1.pt", 0)
    text = call("zoo", "import", str(tmp_path / "zoo"), str(tmp_path / "runs"), "--activation", "relu")
    assert "1 network has the weights of another one, and is in its split: '1.pt = 0.pt'." in text
    assert "UserWarning" not in text
    assert "ZooWarning" not in text
    assert "the weights of another one" in call("zoo", "info", str(tmp_path / "zoo"), "--json")


# == Commands ==


def test_commands(tmp_path: Path) -> None:
    networks(tmp_path / "runs", 5)
    table = write_csv(tmp_path / "table.csv", "file_name,run", "0.pt,0", "1.pth,1", "2.ckpt,2", "3.safetensors,3", "4.npz,4")
    zoo = str(tmp_path / "zoo")
    assert "Error: Nothing says which activation" in call("zoo", "import", zoo, str(tmp_path / "runs"), code=1)
    options = ["--activation", "relu", "--table", str(table), "--seed", "3"]
    assert "5 networks" in call("zoo", "import", zoo, str(tmp_path / "runs"), *options)
    assert "2 networks:" in call("zoo", "export", zoo, str(tmp_path / "shared"), "--split", "train", "--limit", "2")
    assert "exists already" in call("zoo", "export", zoo, str(tmp_path / "shared"), code=1)
    assert "2 networks" in call("zoo", "import", str(tmp_path / "again"), str(tmp_path / "shared"))
    assert "no split 'other'" in " ".join(call("zoo", "export", zoo, str(tmp_path / "other"), "--split", "other", code=1).split())
