"""Zoos from folders of checkpoints, and back."""

import json
import math
import os
import shutil
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
from wsgraph.data import ZooStore, export_zoo, import_zoo
from wsgraph.data import exchange as exchange_module
from wsgraph.data.transforms import RandomSymmetry
from wsgraph.space import Signal


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
    monkeypatch.setattr(exchange_module, "_MOST_RUNS", 3)
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
    monkeypatch.setattr(exchange_module, "_LISTED", 1)
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
    np.testing.assert_array_equal(table["partly"], [1, math.nan, 0])
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
    monkeypatch.setattr(exchange_module, "_POPULATION", 2)
    zoo = import_zoo(tmp_path / "zoo", tmp_path / "runs", activation="relu")
    assert [shard.shape for shard in zoo.shards] == [(2, 13), (2, 13), (2, 29), (2, 29), (1, 13), (1, 29)]
    monkeypatch.setattr(exchange_module, "_HELD_BYTES", 100)
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
    with pytest.raises(ValueError, match=r"5 or more of 7 checkpoints .*\n'0.pt': Unknown activation or operator 'relo'"):
        import_zoo(tmp_path / "zoo", tmp_path / "runs", activation="relo")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["file_name", "0.pt"], "has no row for '1.pth'. Add rows, or move those files out of"),
        (["file_name", "0.pt", "1.pth", "2.pt"], "names files that are not in '.*runs': '2.pt'. Remove those rows"),
        (["file_name", "0.pt", "1.pth", "./0.pt"], "has several rows of '0.pt'. Leave one of each"),
        (["file_name", "0.pt", "1.pth", "../../x.pt"], r"without '..' \(got '../../x.pt'\)"),
        (["file_name", "0.pt", "a/../../runs/1.pth"], r"without '..' \(got 'a/../../runs/1.pth'\)"),
        (["file_name", "0.pt", "/etc/x.pt"], r"to be a path from '.*runs', without '..' \(got '/etc/x.pt'\)"),
        (["name", "0.pt", "1.pth"], "Expected a column 'file_name' in"),
        (["file_name", '""'], "Expected a column 'file_name' in"),
        (["file_name,a", "0.pt,1", "1.pth"], r"as many entries as columns in every row of '.*metadata.csv' \(row 2 has others\)"),
        (["file_name", '"0.pt'], "is not a CSV file"),
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
        ('{"file_name": 3}', "Expected a column 'file_name'"),
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
    with pytest.raises(ValueError, match=r"a table ending in .jsonl or .csv \(got '0.pt'\)"):
        import_zoo(tmp_path / "zoo", runs, activation="relu", table=runs / "0.pt")
    (tmp_path / "latin.csv").write_bytes("file_name,größe".encode("latin-1"))
    with pytest.raises(ValueError, match="is not text in UTF-8"):
        import_zoo(tmp_path / "zoo", runs, activation="relu", table=tmp_path / "latin.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds no checkpoints \(.safetensors, "):
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
    space.write_text(text[:-9])
    with pytest.raises(ValueError, match=r"'.*spaces.*json' is damaged. Expected the JSON text of a weight space"):
        import_zoo(tmp_path / "again", folder)
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

    monkeypatch.setattr(exchange_module, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_zoo(zoo, tmp_path / "shared")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["taken", "zoo"]


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
