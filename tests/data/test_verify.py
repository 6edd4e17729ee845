"""Zoos that are not what was written: what verify sees, what opening refuses, what earlier zoos do."""

import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.test_cli import call
from wsgraph import WeightSpace
from wsgraph.data import ArrayRows, ZooStore, ZooWarning, verify_zoo

SPACE = WeightSpace.mlp([2, 4, 1])


def draw(count: int, seed: int = 0) -> torch.Tensor:
    return SPACE.sample(count, generator=torch.Generator().manual_seed(seed))


def make(path: Path, seed: int = 0) -> ZooStore:
    """Three shards of 3, 3 and 4 networks, and a column that was set later."""
    with ZooStore.writing(path, info={"seed": seed}) as store:
        for i, count in enumerate((3, 3, 4)):
            values = [10 * seed + 3 * i + j for j in range(count)]
            store.append(SPACE, draw(count, 10 * seed + i), {"number": values}, name=f"{i:03d}")
    store.set_column("score", np.arange(10) / 10)
    assert verify_zoo(path) == []
    return store


def shard(zoo: Path, number: int) -> Path:
    return zoo / "shards" / f"{number:03d}.safetensors"


def swap(first: Path, second: Path) -> None:
    kept = first.with_name("kept")
    os.rename(first, kept)
    os.rename(second, first)
    os.rename(kept, second)


def flip(file: Path, position: int) -> None:
    contents = bytearray(file.read_bytes())
    contents[position] ^= 1
    file.write_bytes(contents)


def edit(file: Path, before: str, after: str) -> None:
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after, 1))


def rewrite(file: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Write other tensors under the header of a shard."""
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata)


def cut(zoo: Path, *numbers: int) -> None:
    for number in numbers:
        os.truncate(shard(zoo, number), 50)


def damage_three(zoo: Path) -> None:
    cut(zoo, 0)
    flip(shard(zoo, 1), -3)
    shard(zoo, 2).unlink()


def link_away(file: Path, away: Path) -> None:
    os.rename(file, away)
    file.symlink_to(away)


def put_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def drop_lines(zoo: Path, word: str, *files: Path) -> None:
    for file in files:
        file.unlink()
    lines = (zoo / "manifest.jsonl").read_text().splitlines()
    (zoo / "manifest.jsonl").write_text("\n".join(line for line in lines if word not in line))


# Every way in which a zoo can differ from what was written, and what is said of it.
DAMAGES: dict[str, tuple[Callable[[Path, Path], Any], list[str]]] = {
    "weights changed": (lambda zoo, other: flip(shard(zoo, 1), -3), ["001.safetensors' is damaged: its contents do not have the checks"]),
    "shards swapped": (
        lambda zoo, other: swap(shard(zoo, 0), shard(zoo, 1)),
        ["000.safetensors' holds what was written as 'shards/001", "001.safetensors' holds what was written as 'shards/000.*Put each"],
    ),
    "a shard copied over another": (
        lambda zoo, other: shutil.copy(shard(zoo, 0), shard(zoo, 1)),
        ["001.safetensors' holds what was written as 'shards/000.safetensors': files were swapped, copied or renamed"],
    ),
    "a shard copied under a new name": (
        lambda zoo, other: shutil.copy(shard(zoo, 0), shard(zoo, 7)),
        ["007.safetensors' holds what was written as 'shards/000.safetensors'"],
    ),
    "a shard renamed": (
        lambda zoo, other: os.rename(shard(zoo, 2), shard(zoo, 5)),
        ["005.safetensors' holds what was written as 'shards/002", "The shard '002' of 4 networks is gone"],
    ),
    "a shard of another zoo": (
        lambda zoo, other: shutil.copy(shard(other, 0), shard(zoo, 0)),
        ["000.safetensors' is not what manifest.jsonl records: it was exchanged or changed .* Restore the file"],
    ),
    "a shard of another zoo with other rows": (
        lambda zoo, other: shutil.copy(shard(other, 2), shard(zoo, 0)),
        [r"000.safetensors' is not what manifest.jsonl records \(4 networks instead of 3, \d+ bytes instead of \d+\)"],
    ),
    "a stray shard": (
        lambda zoo, other: shutil.copy(shard(other, 2), shard(zoo, 9)),
        ["009.safetensors' is not in manifest.jsonl: it was not written as a file of this zoo. Take it out"],
    ),
    "a stray file that is no shard": (lambda zoo, other: shard(zoo, 9).write_bytes(b"x"), ["009.safetensors' is not in manifest.jsonl"]),
    "a shard gone": (lambda zoo, other: shard(zoo, 1).unlink(), ["The shard '001' of 3 networks is gone. Restore it"]),
    "two shards that cannot be read": (
        lambda zoo, other: cut(zoo, 0, 2),
        ["000.safetensors' is damaged or truncated", "002.safetensors' is damaged or truncated"],
    ),
    "one unreadable, one changed, one gone": (
        lambda zoo, other: damage_three(zoo),
        ["000.safetensors' is damaged or truncated", "001.safetensors' is damaged: its contents", "The shard '002' of 4 networks"],
    ),
    "rows moved within a column": (
        lambda zoo, other: rewrite(shard(zoo, 1), lambda held: held.update({"table/number": held["table/number"].flip(0)})),
        ["001.safetensors' is damaged: its contents"],
    ),
    "the type of a column": (
        lambda zoo, other: rewrite(shard(zoo, 1), lambda held: held.update({"table/number": held["table/number"].view(torch.float64)})),
        ["001.safetensors' is not what manifest.jsonl records"],
    ),
    "set columns changed": (
        lambda zoo, other: flip(zoo / "columns.safetensors", -2),
        [r"columns.safetensors' is damaged \(its contents do not have the checksum .* delete it and set its columns again"],
    ),
    "set columns gone": (
        lambda zoo, other: (zoo / "columns.safetensors").unlink(),
        ["columns.safetensors' is gone, and with it the columns 'score'. Restore it, or set all of these again"],
    ),
    "set columns of another zoo": (
        lambda zoo, other: shutil.copy(other / "columns.safetensors", zoo),
        ["columns.safetensors' is not what manifest.jsonl records"],
    ),
    "info changed": (lambda zoo, other: edit(zoo / "zoo.json", '"seed": 0', '"seed": 7'), ["zoo.json' is not what manifest.jsonl records"]),
    "rows in the manifest changed": (
        lambda zoo, other: edit(zoo / "manifest.jsonl", '"rows": 4', '"rows": 5'),
        [],  # of what was announced, not of what was written since
    ),
    "a checksum in the manifest changed": (
        lambda zoo, other: (zoo / "manifest.jsonl").write_text((zoo / "manifest.jsonl").read_text().replace('"rows": 4', '"rows": 5')),
        [r"002.safetensors' is not what manifest.jsonl records \(4 networks instead of 5\).* or manifest.jsonl was"],
    ),
    "a shard taken out of the manifest": (
        lambda zoo, other: drop_lines(zoo, "shards/001"),
        [
            "001.safetensors' is not in manifest.jsonl",
            "records 2 shards with 7 networks, but there were 3 with 10 when the zoo was finished",
        ],
    ),
    "a shard taken out of folder and manifest": (
        lambda zoo, other: drop_lines(zoo, "shards/001", shard(zoo, 1)),
        ["records 2 shards with 7 networks, but there were 3 with 10"],
    ),
    "a torn line": (
        lambda zoo, other: (zoo / "manifest.jsonl").write_text((zoo / "manifest.jsonl").read_text() + '\n{"file": "shards/00'),
        [r"Line \d+ of '.*manifest.jsonl' is no record of a file: it was changed by hand, or the disk was full"],
    ),
    "a line of other types": (
        lambda zoo, other: edit(zoo / "manifest.jsonl", '"rows": 3', '"rows": "3"'),
        [r"Line \d+ of '.*manifest.jsonl' is no record of a file"],
    ),
    "a folder in place of set columns": (
        lambda zoo, other: put_folder(zoo / "columns.safetensors"),
        ["columns.safetensors' is damaged .*set its columns again"],
    ),
    "a folder in place of a shard": (
        lambda zoo, other: put_folder(shard(zoo, 1)),
        ["001.safetensors' is damaged or truncated"],
    ),
    "no manifest": (lambda zoo, other: (zoo / "manifest.jsonl").unlink(), ["lacks manifest.jsonl, without which nobody can tell"]),
    "a path out of the folder": (
        lambda zoo, other: edit(zoo / "manifest.jsonl", "shards/000.safetensors", "../other/shards/000.safetensors"),
        ["names '../other/shards/000.safetensors' in line 3, which is no file of a zoo"],
    ),
    "an absolute path": (
        lambda zoo, other: edit(zoo / "manifest.jsonl", "columns.safetensors", "/columns.safetensors"),
        ["names '/columns.safetensors' in line"],
    ),
    "a link out of the folder": (
        lambda zoo, other: link_away(shard(zoo, 1), zoo.parent / "away"),
        ["001.safetensors' is a link to '.*away', outside of the zoo, and is not read. Put the file itself there"],
    ),
    "columns linked out of the folder": (
        lambda zoo, other: link_away(zoo / "columns.safetensors", zoo.parent / "away"),
        ["columns.safetensors' is a link to '.*away', outside of the zoo"],
    ),
    "a space gone": (lambda zoo, other: shutil.rmtree(zoo / "spaces"), [rf"lacks {SPACE.digest}.json. Make the zoo again or restore"]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_verify_sees_everything(tmp_path: Path, damage: str) -> None:
    zoo, other = make(tmp_path / "zoo").path, make(tmp_path / "other", 1).path
    handle = ZooStore(zoo)
    change, expected = DAMAGES[damage]
    change(zoo, other)
    problems = verify_zoo(zoo)
    assert len(problems) == len(expected), problems
    for text in expected:
        assert any(re.search(text, problem) for problem in problems), (text, problems)
    assert all(any(name in problem for name in ("safetensors", ".json", "shard '")) for problem in problems)
    assert handle.verify() == problems


def test_the_command_reports_all_problems(tmp_path: Path) -> None:
    zoo, other = make(tmp_path / "zoo").path, make(tmp_path / "other", 1).path
    assert "nothing is wrong" in call("zoo", "verify", str(zoo))
    assert json.loads(call("zoo", "verify", str(zoo), "--json")) == {"zoo": str(zoo), "networks": 10, "problems": []}
    DAMAGES["one unreadable, one changed, one gone"][0](zoo, other)
    problems = verify_zoo(zoo)
    text = call("zoo", "verify", str(zoo), code=1)
    assert all(problem in text for problem in problems)
    told = json.loads(call("zoo", "verify", str(zoo), "--json", code=1))
    assert told == {"zoo": str(zoo), "networks": None, "problems": problems}
    assert "is not a zoo: it has no zoo.json" in call("zoo", "verify", str(tmp_path), code=1)


@pytest.mark.parametrize(
    "damage",
    ["shards swapped", "a shard copied over another", "a shard of another zoo", "the type of a column", "a link out of the folder"],
)
def test_a_shard_that_is_not_the_one_that_was_written_is_not_read(tmp_path: Path, damage: str) -> None:
    zoo, other = make(tmp_path / "zoo").path, make(tmp_path / "other", 1).path
    DAMAGES[damage][0](zoo, other)
    store = ZooStore(zoo)
    assert "columns that cannot be read" in repr(store)
    for read in (lambda: store.thetas, lambda: store.read(torch.arange(10)), lambda: store.table, lambda: store.dataset(target=None)[4]):
        with pytest.raises(ValueError, match=r"00[01].safetensors' (holds what|is not what|is a link).*`wsgraph zoo verify` lists all"):
            read()


def test_a_shard_that_is_exchanged_while_the_zoo_is_open_is_not_read(tmp_path: Path) -> None:
    store, other = make(tmp_path / "zoo"), make(tmp_path / "other", 1)
    os.replace(shard(other.path, 1), shard(store.path, 1))
    for read in (lambda: store.read(torch.arange(10)), lambda: store.table):
        with pytest.raises(ValueError, match=r"001.safetensors' was exchanged since the zoo was opened. Open the zoo again"):
            read()
    with pytest.raises(ValueError, match=r"is not what manifest.jsonl records"):
        ZooStore(store.path).thetas  # noqa: B018


@pytest.mark.parametrize("name", ["shards", "spaces", "zoo.json", "manifest.jsonl"])
def test_what_belongs_to_a_zoo_lies_in_its_folder(tmp_path: Path, name: str) -> None:
    zoo = make(tmp_path / "zoo").path
    link_away(zoo / name, tmp_path / "away")
    expected = "is a link to '.*away(/.*)?', outside of the zoo, and is not read"
    if name == "shards":
        with pytest.raises(ValueError, match=expected):
            ZooStore(zoo).thetas  # noqa: B018
    else:
        with pytest.raises(ValueError, match=expected):
            ZooStore(zoo)
    assert all(re.search(expected, problem) for problem in verify_zoo(zoo))
    assert len(verify_zoo(zoo)) >= 1
    # The zoo itself may lie anywhere.
    os.remove(zoo / name)
    os.rename(tmp_path / "away", zoo / name)
    (tmp_path / "link").symlink_to(zoo)
    assert ZooStore(tmp_path / "link").verify() == verify_zoo(tmp_path / "link") == []


def test_a_change_of_info_that_is_meant(tmp_path: Path) -> None:
    zoo = make(tmp_path / "zoo").path
    edit(zoo / "zoo.json", '"seed": 0', '"seed": 7')
    (problem,) = verify_zoo(zoo)
    assert problem.endswith("If its change is meant, store.finish() records it.")
    ZooStore(zoo).finish()
    assert verify_zoo(zoo) == []
    assert ZooStore(zoo).info["seed"] == 7


def test_a_zoo_with_an_exchanged_shard_cannot_be_finished(tmp_path: Path) -> None:
    zoo = make(tmp_path / "zoo").path
    shutil.copy(shard(zoo, 0), shard(zoo, 1))
    with pytest.raises(ValueError, match=r"001.*holds what was written as.* Until then the zoo cannot be finished"):
        ZooStore(zoo).finish()


def test_a_stray_shard_is_left_out_and_said(tmp_path: Path) -> None:
    zoo, other = make(tmp_path / "zoo"), make(tmp_path / "other", 1)
    thetas, digest = zoo.thetas, zoo.digest
    shutil.copy(shard(other.path, 0), shard(zoo.path, 0).with_name("aaa.safetensors"))
    with pytest.warns(ZooWarning, match=r"zoo' is not what was written: 'shards/aaa.safetensors' was not written as a file of it"):
        store = ZooStore(zoo.path)
    assert torch.equal(store.thetas, thetas)
    assert store.digest == digest
    assert "1 shard left out" in repr(store)
    with pytest.raises(FileExistsError, match=r"aaa.safetensors' exists already"):
        store.append(SPACE, draw(1), {"number": [1]}, name="aaa")


def test_several_shards_that_cannot_be_read(tmp_path: Path) -> None:
    zoo = make(tmp_path / "zoo").path
    for number in (0, 1, 2):
        os.truncate(shard(zoo, number), 50)
    with pytest.raises(ValueError, match=r"000.safetensors' is damaged .* \(2 more shards cannot be read: see `wsgraph zoo verify`"):
        ZooStore(zoo)


def test_headers_lead_nowhere_else(tmp_path: Path) -> None:
    zoo = make(tmp_path / "zoo").path
    with safe_open(shard(zoo, 0), "pt") as opened:
        header = json.loads(opened.metadata()["wsgraph.shard"])
    tensors = load_file(shard(zoo, 0))
    for change, message in (
        ({"space": "../../x"}, "names the weight space '../../x', which is no file of a zoo"),
        ({"source": "/x.npy", "dtype": "F32"}, "names '/x.npy', which is no path from its folder"),
        ({"columns": ["missing"]}, "is damaged or truncated"),
        ({"dropped": "2"}, "its header holds values of other types"),
        ({"checksum": None, "version": 9}, "format version 9"),
    ):
        held = {"rows": torch.arange(3), "columns": torch.arange(3)} if "source" in change else {}
        save_file({**tensors, **held}, shard(zoo, 0), {"wsgraph.shard": json.dumps({**header, **change})})
        with pytest.raises(ValueError, match=message):
            ZooStore(zoo)
    save_file(tensors, shard(zoo, 0), {"wsgraph.shard": json.dumps({"version": 1})})
    with pytest.raises(ValueError, match=r"is damaged or truncated .its header lacks something: KeyError"):
        ZooStore(zoo)


# == Columns that are set later ==


def test_set_columns_that_are_gone_are_missed_until_they_are_set_again(tmp_path: Path) -> None:
    zoo = make(tmp_path / "zoo")
    zoo.set_column("split", ["train"] * 10)
    (zoo.path / "columns.safetensors").unlink()
    store = ZooStore(zoo.path)
    assert "columns that cannot be read" in repr(store)
    with pytest.raises(ValueError, match="is gone, and with it the columns 'score', 'split'"):
        store.column("score")
    store.set_column("score", range(10))
    assert ZooStore(zoo.path).column("score").tolist() == [*range(10)]
    assert store.verify() == []


def test_set_columns_are_of_the_networks_that_they_were_set_for(tmp_path: Path) -> None:
    """A shard that is made again with other networks does not get the values of those before."""
    zoo = make(tmp_path / "zoo")
    shard(zoo.path, 1).unlink()
    with pytest.warns(ZooWarning, match="'001' of 3 networks is gone"):
        store = ZooStore(zoo.path)
    store.append(SPACE, draw(3, 77), {"number": [0, 0, 0]}, name="001")
    (problem,) = store.verify()
    assert "The column 'score' was set for other networks than shard '001' holds now: set it again" in problem
    with pytest.raises(ValueError, match=r"no column 'score'.*set it again"):
        ZooStore(zoo.path).column("score")
    store.set_column("score", range(10))
    assert store.verify() == []


def test_a_column_set_through_another_handle_is_read(tmp_path: Path) -> None:
    first = make(tmp_path / "zoo")
    second = ZooStore(first.path)
    first.set_column("score", range(10))
    assert second.column("score").tolist() == [*range(10)]
    second.set_column("more", range(10))
    assert set(ZooStore(first.path).table) == {"number", "score", "more"}
    assert first.verify() == []


# == Writers that die ==


def test_a_writer_may_die_at_any_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After every call that reaches the disk the zoo is as before or as after, and nothing is wrong with it."""

    class Died(BaseException):
        pass

    base = make(tmp_path / "base").path
    calls, fatal = [0], [0]

    def counted(function: Any) -> Any:
        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            calls[0] += 1
            if calls[0] == fatal[0]:
                raise Died
            if calls[0] > fatal[0]:
                raise AssertionError("a dead process does nothing more")
            return function(*arguments, **keywords)

        return wrapped

    def act(store: ZooStore, number: int) -> None:
        if number == 0:
            store.append(SPACE, draw(2, 5), {"number": [50, 51]})
        elif number == 1:
            store.set_column("score", np.arange(len(store)) + 100)
        else:
            store.finish(note="later")

    for number in range(3):
        step, finished = 0, False
        while not finished:
            step += 1
            zoo = tmp_path / f"{number}-{step}"
            shutil.copytree(base, zoo)
            store = ZooStore(zoo)
            calls[0], fatal[0] = 0, step
            with monkeypatch.context() as patch:
                for name in ("write", "fsync", "link", "replace", "open"):
                    patch.setattr(os, name, counted(getattr(os, name)))
                # A process that is killed cleans nothing up.
                patch.setattr(Path, "unlink", lambda *arguments, **keywords: None)
                try:
                    act(store, number)
                    finished = True
                except (Died, AssertionError):
                    pass
            assert verify_zoo(zoo) == [], (number, step)
            opened = ZooStore(zoo)
            assert len(opened) in (10, 12)
            if number == 1:
                assert opened.column("score")[0] in (0, 100)
            if step % 2:
                opened.finish()
            else:
                act(opened, number)
            assert verify_zoo(zoo) == []
            assert len(ZooStore(zoo)) == len(opened)
        assert step > 4  # that is, the loop went through several


def test_two_writers_of_one_name(tmp_path: Path) -> None:
    """What the slower one announced is not there, and that is no fault."""
    first = make(tmp_path / "zoo")
    second = ZooStore(first.path)
    first.append(SPACE, draw(1, 3), {"number": [1]})
    second._index(second.shards)
    second.append(SPACE, draw(1, 4), {"number": [2]})
    assert sorted(ZooStore(first.path).column("number").tolist())[:4] == [0, 1, 1, 2]
    assert verify_zoo(first.path) == []


def test_a_snapshot_while_others_append(tmp_path: Path) -> None:
    store = make(tmp_path / "zoo")
    thetas = store.thetas.clone()
    dataset = store.dataset(target="number")

    def write() -> None:
        other = ZooStore(store.path)
        for i in range(40):
            other.append(SPACE, draw(1, i), {"number": [i]}, name=f"{(i * 37) % 100:03d}-{i}")

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(write)
        looked = 0
        while not writer.done():
            opened = ZooStore(store.path)  # neither too few nor too many, and never a warning
            assert len(opened) == len(opened.shards) + 7
            assert verify_zoo(store.path) == []
            looked += 1
        writer.result()
    assert looked > 1
    assert len(ZooStore(store.path)) == 50
    for same in (dataset, pickle.loads(pickle.dumps(dataset))):
        assert torch.equal(same.thetas, thetas)
        assert same.column("number").tolist() == [*range(10)]


# == Networks that lie elsewhere ==


def test_files_outside_are_named(tmp_path: Path) -> None:
    matrix = tmp_path / "weights.npy"
    np.save(matrix, draw(5).numpy())
    store = ZooStore.create(tmp_path / "zoo", SPACE, ArrayRows(matrix, torch.arange(5), torch.arange(SPACE.num_params)), {"i": range(5)})
    assert store.linked_files == [matrix]
    assert f"weights in {str(matrix)!r}" in repr(store)
    assert str(matrix) in call("zoo", "info", str(store.path)).replace("\n", "")
    assert json.loads(call("zoo", "info", str(store.path), "--json"))["linked_files"] == [str(matrix)]
    assert "weights.npy" in call("zoo", "verify", str(store.path)).replace("\n", "")
    assert make(tmp_path / "own").linked_files == []
    np.save(matrix, draw(5, 1).numpy())
    (problem,) = store.verify()
    assert "weights.npy', which it links to, is damaged: its contents do not have the checksum" in problem
    (tmp_path / "away").mkdir()
    os.rename(store.path, tmp_path / "away" / "zoo")
    (problem,) = verify_zoo(tmp_path / "away" / "zoo")
    assert "away/weights.npy', which is not there: put it back; a zoo that links to it moves with it" in problem
    with pytest.raises(FileNotFoundError, match="which is not there"):
        ZooStore(tmp_path / "away" / "zoo").read(torch.arange(2))


def test_a_link_that_nobody_made_is_not_followed(tmp_path: Path) -> None:
    zoo = make(tmp_path / "zoo").path
    np.save(tmp_path / "weights.npy", draw(3).numpy())
    with safe_open(shard(zoo, 1), "pt") as opened:
        header = json.loads(opened.metadata()["wsgraph.shard"])
    held = {"rows": torch.arange(3), "columns": torch.arange(SPACE.num_params), "table/number": load_file(shard(zoo, 1))["table/number"]}
    text = json.dumps({**header, "source": "../../weights.npy", "dtype": "F32"})
    save_file(held, shard(zoo, 1), {"wsgraph.shard": text})
    (problem,) = verify_zoo(zoo)
    assert "001.safetensors' is not what manifest.jsonl records" in problem
    with pytest.raises(ValueError, match=r"is not what manifest.jsonl records"):
        ZooStore(zoo).read(torch.arange(10))


def test_a_zoo_that_lost_all_shards_is_not_merged(tmp_path: Path) -> None:
    stores = [make(tmp_path / "zoo"), make(tmp_path / "lost", 1)]
    shutil.rmtree(stores[1].path / "shards")
    with pytest.warns(ZooWarning, match="is gone"):
        lost = ZooStore(stores[1].path)
    with pytest.raises(ValueError, match=r"'.*lost' lacks networks"):
        ZooStore.merge(tmp_path / "merged", [stores[0], lost])


# == Zoos of earlier versions ==


def downgrade(zoo: Path) -> None:
    """Make of a zoo what the version before would have written."""
    document = json.loads((zoo / "zoo.json").read_text())
    shards = {file.stem: len(load_file(file)["thetas"]) for file in sorted((zoo / "shards").iterdir())}
    (zoo / "zoo.json").write_text(json.dumps({**document, "version": 2, "shards": shards if document["finished"] else {}}))
    (zoo / "manifest.jsonl").unlink()
    file = zoo / "columns.safetensors"
    if file.exists():
        with safe_open(file, "pt") as opened:
            parts = json.loads(opened.metadata()["wsgraph.columns"])["parts"]
        save_file(load_file(file), file, {"parts": json.dumps([part[:2] for part in parts])})


def test_zoos_of_the_version_before(tmp_path: Path) -> None:
    new = make(tmp_path / "zoo")
    score = new.column("score").tolist()
    downgrade(new.path)
    store = ZooStore(new.path)
    assert torch.equal(store.thetas, new.thetas)
    assert store.column("score").tolist() == score
    (problem,) = store.verify()
    assert "was written by an earlier version of wsgraph: it has no manifest.jsonl, so whether shards were swapped" in problem
    assert "wsgraph zoo upgrade" in problem
    for write in (
        lambda: store.append(SPACE, draw(1), {"number": [1]}),
        lambda: store.set_column("a", range(10)),
        lambda: store.finish(),
    ):
        with pytest.raises(ValueError, match=r"is read only\. Upgrade it in place with store.upgrade\(\) or `wsgraph zoo upgrade`"):
            write()
    text = call("zoo", "upgrade", str(new.path))
    assert "10 networks" in text
    upgraded = ZooStore(new.path)
    assert upgraded.verify() == []
    assert torch.equal(upgraded.thetas, new.thetas)
    assert upgraded.column("score").tolist() == score
    assert upgraded.info == store.info
    upgraded.append(SPACE, draw(1), {"number": [1]})
    before = (new.path / "manifest.jsonl").read_bytes()
    upgraded.upgrade()
    assert (new.path / "manifest.jsonl").read_bytes() == before
    swap(shard(new.path, 0), shard(new.path, 1))
    assert len(verify_zoo(new.path)) == 2


def test_a_damaged_zoo_is_not_upgraded(tmp_path: Path) -> None:
    new = make(tmp_path / "zoo")
    downgrade(new.path)
    flip(shard(new.path, 1), -3)
    with pytest.raises(ValueError, match=r"cannot be upgraded as it is: .*001.safetensors' is damaged"):
        ZooStore(new.path).upgrade()
    assert not (new.path / "manifest.jsonl").exists()
    assert len(ZooStore(new.path)) == 10


def test_an_unfinished_zoo_of_the_version_before(tmp_path: Path) -> None:
    store = ZooStore.begin(tmp_path / "zoo")
    store.append(SPACE, draw(2), {"number": [1, 2]})
    downgrade(store.path)
    earlier = ZooStore(store.path)
    earlier.upgrade()
    assert not earlier.finished
    earlier.append(SPACE, draw(2, 1), {"number": [3, 4]})
    earlier.finish()
    assert earlier.verify() == []
    assert len(ZooStore(store.path)) == 4
