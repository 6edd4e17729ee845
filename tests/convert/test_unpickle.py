"""Files of torch.save that nobody trusts: what comes back, and that nothing in them ever runs."""

import io
import os
import pickle
import struct
import sys
import zipfile
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wsgraph.convert import CheckpointError
from wsgraph.convert.unpickle import Stub, read_inert, to_plain
from wsgraph.data.public.wild_park import _save_with_omegaconf


def _saved(content: Any, *, legacy: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def _archive(pickled: bytes, compression: int = zipfile.ZIP_STORED, **entries: bytes) -> bytes:
    """A file of torch.save around a pickle of one's own."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, data in entries.items():
            archive.writestr(f"archive/{name.replace('_', '/')}", data)
    return file.getvalue()


def _same(value: Any, expected: Any) -> bool:
    if isinstance(expected, dict):
        return type(value) is dict and list(value) == list(expected) and all(_same(value[key], expected[key]) for key in expected)
    if isinstance(expected, (list, tuple)):
        return (
            type(value) is type(expected) and len(value) == len(expected) and all(_same(v, e) for v, e in zip(value, expected, strict=True))
        )
    if isinstance(expected, torch.Tensor):
        return isinstance(value, torch.Tensor) and value.dtype == expected.dtype and torch.equal(value, expected)
    if isinstance(expected, np.ndarray):
        return isinstance(value, np.ndarray) and value.dtype == expected.dtype and np.array_equal(value, expected)
    return type(value) is type(expected) and bool(value == expected)


# == Plain data ==

_MATRIX = torch.arange(12.0).view(3, 4)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "content, expected",
    [
        ({"a": 1, "b": [2.5, None, True, "ä"], "c": (1, (2,)), 3: {"d": {4, 5}, "e": frozenset([6])}},) * 2,
        (OrderedDict([("b", torch.ones(2)), ("a", torch.zeros(1, 2))]), {"b": torch.ones(2), "a": torch.zeros(1, 2)}),
        (defaultdict(list, {"a": [1]}), {"a": [1]}),
        ([_MATRIX, _MATRIX.T, _MATRIX[1:, ::2], _MATRIX[2, 3]],) * 2,
        ([torch.empty(0, 3), torch.tensor(2.0), torch.tensor([True, False])],) * 2,
        (torch.nn.Parameter(torch.ones(3)), torch.ones(3)),
        ({"x": np.float64(0.5), "y": np.int64(-3), "z": np.bool_(True)}, {"x": 0.5, "y": -3, "z": True}),
        ({"x": np.arange(6).reshape(2, 3).T, "y": np.ones(2, ">f4"), "z": b"\x00\xff"},) * 2,
    ],
)
def test_plain_data_come_back(content: Any, expected: Any, legacy: bool) -> None:
    assert _same(read_inert(_saved(content, legacy=legacy), "x.pt"), expected)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "dtype",
    [
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.complex64,
        torch.uint16,
        torch.float8_e4m3fn,
    ],
)
def test_dtypes_come_back(dtype: torch.dtype, legacy: bool) -> None:
    tensor = torch.arange(5).to(dtype)
    assert _same(read_inert(_saved(tensor, legacy=legacy), "x.pt"), tensor)


def test_what_the_file_shares_is_shared() -> None:
    first, second, third = read_inert(_saved([_MATRIX, _MATRIX[1], _MATRIX]), "x.pt")
    first[1] = 7.0
    assert second.tolist() == [7.0] * 4
    assert third is first
    nested: list[Any] = [torch.ones(1)]
    nested.append(nested)
    loaded = read_inert(_saved(nested), "x.pt")
    assert loaded[1] is loaded
    assert torch.equal(loaded[0], torch.ones(1))


def test_only_some_entries_are_read() -> None:
    # The storage of the other tensor is gone, which nobody notices who does not read it.
    data = _saved({"a": torch.ones(2), "b": torch.zeros(3), "c": 1})
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(file, "w") as archive:
        for entry in source.infolist():
            if not entry.filename.endswith("data/1"):
                archive.writestr(entry.filename, source.read(entry))
    assert _same(read_inert(file.getvalue(), "x.pt", keys=["c", "a", "missing"]), {"c": 1, "a": torch.ones(2)})
    with pytest.raises(CheckpointError, match=r"'x.pt' is damaged .*data/1"):
        read_inert(file.getvalue(), "x.pt")


# == Foreign classes ==


class _Settings:
    def __init__(self, width: int) -> None:
        self.width = width


class _Names(list[str]):
    pass


class _Table(dict[str, int]):
    pass


def test_objects_of_other_classes_keep_what_they_were_given() -> None:
    table = _Table(a=1)
    settings, names, loaded, queue, dtype = read_inert(
        _saved([_Settings(3), _Names(["a", "b"]), table, deque([1, 2]), torch.float16]), "x.pt"
    )
    assert isinstance(settings, Stub)
    assert (settings.name, settings.state) == (f"{__name__}._Settings", {"width": 3})
    assert names.elements == ["a", "b"]
    assert loaded.entries == [("a", 1)]
    assert (queue.name, queue.elements or queue.args[0]) == ("collections.deque", [1, 2])
    assert issubclass(dtype, Stub)
    assert dtype.name == "torch.float16"
    assert repr(settings) == f"Stub({__name__}._Settings)"


def test_arrays_of_objects_stay_stubs() -> None:
    objects, text = read_inert(_saved([np.array([None, 1], dtype=object), np.str_("a")]), "x.pt")
    assert isinstance(objects, Stub)
    assert isinstance(text, Stub)


# == Files that want to run code ==


class _Call:
    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> Any:
        return self.function, self.args


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def _attacks(canary: Path) -> dict[str, bytes]:
    """Pickles that make a file where they are trusted."""
    code, command = f"open({str(canary)!r}, 'w').close()", f"touch '{canary}'"
    short = _text(command)
    getattr_ = b"cbuiltins\ngetattr\n"
    return {
        "eval": pickle.dumps(_Call(eval, code), 2),
        "exec": pickle.dumps({"weight": _Call(exec, code)}, 2),
        "os.system": pickle.dumps([_Call(os.system, command)], 4),
        "open": pickle.dumps(_Call(open, str(canary), "w"), 2),
        "Path.touch": pickle.dumps(_Call(Path.touch, canary), 4),
        "subprocess": b"csubprocess\ncheck_call\n(](" + _text("touch") + _text(str(canary)) + b"etR.",
        "a pickle in a pickle": pickle.dumps(_Call(pickle.loads, pickle.dumps(_Call(eval, code))), 2),
        "getattr": getattr_ + b"(cos\nsystem\n" + _text("__call__") + b"tR(" + short + b"tR.",
        "getattr of a module": getattr_
        + b"(cimportlib\nimport_module\n("
        + _text("os")
        + b"tR"
        + _text("system")
        + b"tR("
        + short
        + b"tR.",
        "a dotted name": b"\x80\x04" + _text("os") + _text("path.os.system") + b"\x93(" + short + b"tR.",
        "INST": b"(" + short + b"ios\nsystem\n.",
        "OBJ": b"(csubprocess\nPopen\n](" + _text("touch") + _text(str(canary)) + b"eo.",
        "a partial function": b"cfunctools\npartial\n(cos\nsystem\n" + short + b"tR)R.",
        "map": b"cbuiltins\nlist\n(cbuiltins\nmap\n(cos\nsystem\n](" + short + b"etRtR.",
        "NEWOBJ": b"\x80\x02cbuiltins\nlist\ncbuiltins\nmap\ncos\nsystem\n](" + short + b"e\x86\x81\x85R.",
    }


_NAMES = list(_attacks(Path("canary")))


@pytest.mark.parametrize("name", _NAMES)
def test_no_code_runs(name: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    attack = _attacks(canary)[name]
    trusted = pickle.loads(attack)
    if hasattr(trusted, "wait"):
        trusted.wait()
    if hasattr(trusted, "close"):
        trusted.close()
    assert canary.exists(), "the attack proves nothing"
    canary.unlink()
    for data in (_archive(attack), attack, pickle.dumps(0x1950A86A20F9469CFC6C, 2) + attack):
        try:
            read_inert(data, "bad.pt")
        except CheckpointError as error:
            assert str(error).startswith("'bad.pt' is damaged or was not written by torch.save")  # noqa: PT017  (some are, some are not)
        assert not canary.exists()


def test_nothing_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "module_with_a_trap.py").write_text("class Trap: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert read_inert(_archive(b"cmodule_with_a_trap\nTrap\n)R."), "x.pt").name == "module_with_a_trap.Trap"
    assert "module_with_a_trap" not in sys.modules


@pytest.mark.parametrize("state", [b"}" + _text("trap") + b"K\x01s", b"(N}" + _text("__defaults__") + b"K\x01\x85st"])
@pytest.mark.parametrize("name", [b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n", b"cos\nPathLike\n"])
def test_nothing_is_changed(name: bytes, state: bytes) -> None:
    functions = [torch._utils._rebuild_tensor_v2, torch.FloatStorage, os.PathLike, Stub]
    before = [(dict(vars(function)), getattr(function, "__defaults__", None)) for function in functions]
    with pytest.raises(CheckpointError, match="__setstate__"):
        read_inert(_archive(name + state + b"b."), "x.pt")
    assert [(dict(vars(function)), getattr(function, "__defaults__", None)) for function in functions] == before


def test_results_of_calls_may_be_called() -> None:
    called = read_inert(_archive(b"coperator\nmethodcaller\n(" + _text("x") + b"tR(K\x01tR."), "x.pt")
    assert (called.name, called.args) == ("operator.methodcaller()", (1,))


# == Damaged files ==


@pytest.mark.parametrize("legacy", [False, True])
def test_truncated_and_altered_files(legacy: bool) -> None:
    content = {"model": OrderedDict(weight=torch.ones(3, 2), bias=torch.zeros(3)), "step": np.int64(3), "name": _Settings(2)}
    data = _saved(content, legacy=legacy)
    assert read_inert(data, "x.pt")["step"] == 3
    for stop in range(0, len(data) - 1, 37):
        with pytest.raises(CheckpointError, match=r"'x.pt' is damaged"):
            read_inert(data[:stop], "x.pt")
    random = np.random.default_rng(0)
    failed = 0
    for _ in range(400):
        altered = bytearray(data)
        altered[random.integers(len(data))] = random.integers(256)
        try:
            read_inert(bytes(altered), "x.pt")
        except CheckpointError:
            failed += 1
    assert failed > 0


def _tensor(size: bytes = b"K\x02K\x01\x86", kind: bytes = b"FloatStorage", key: bytes = _text("0"), length: bytes = b"K\x02") -> bytes:
    """A pickle of one tensor with two columns, by hand."""
    storage = b"(" + _text("storage") + b"ctorch\n" + kind + b"\n" + key + _text("cpu") + length + b"tQ"
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00" + size + b"K\x01K\x01\x86\x89NtR."


@pytest.mark.parametrize(
    "pickled, message",
    [
        (_tensor(b"K\x03K\x01\x86"), r"a tensor of shape \[3, 1\] is larger than its storage of 2 numbers"),
        (_tensor(length=b"K\x03"), "a storage has 8 bytes, not 3 numbers of torch.float32"),
        (_tensor(kind=b"QInt8Storage"), "it holds a torch.QInt8Storage, which is not read here"),
        (_tensor(key=b"K\x00"), "is not a storage"),
        (_tensor(length=b"J\xff\xff\xff\xff"), "is not a storage"),
        (_tensor(key=_text("1")), "no item named 'archive/data/1'"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n(" + _text("0") + b"K\x00))tR.", "a tensor lies in '0', which is not a storage"),
        (b"K\x01", "EOFError"),
        (b"", "EOFError"),
    ],
)
def test_tensors_that_do_not_fit(pickled: bytes, message: str) -> None:
    good = read_inert(_archive(_tensor(), data_0=struct.pack("<2f", 1, 2)), "x.pt")
    assert good.tolist() == [[1.0], [2.0]]
    with pytest.raises(CheckpointError, match=message):
        read_inert(_archive(pickled, data_0=struct.pack("<2f", 1, 2)), "x.pt")


def test_tensors_beyond_their_storage() -> None:
    for offset, stride in ((b"K\x01", b"K\x01K\x01\x86"), (b"K\x00", b"K\x7fK\x01\x86"), (b"K\x00", b"J\xff\xff\xff\xffK\x01\x86")):
        pickled = _tensor().replace(b"QK\x00K\x02K\x01\x86K\x01K\x01\x86", b"Q" + offset + b"K\x02K\x01\x86" + stride)
        assert pickled != _tensor()
        with pytest.raises(CheckpointError, match="RuntimeError"):
            read_inert(_archive(pickled, data_0=struct.pack("<2f", 1, 2)), "x.pt")


def test_other_machines_and_compressed_files() -> None:
    with pytest.raises(CheckpointError, match="big-endian machine"):
        read_inert(_archive(b"K\x01.", byteorder=b"big"), "x.pt")
    with pytest.raises(CheckpointError, match="parts are compressed"):
        read_inert(_archive(b"K\x01.", zipfile.ZIP_DEFLATED), "x.pt")
    with pytest.raises(CheckpointError, match="does not begin as files of PyTorch do"):
        read_inert(pickle.dumps({"weight": 1}), "x.pt")


# == OmegaConf ==


def test_configurations_of_omegaconf() -> None:
    config = {"n_layers": 2, "channels": [3, 4, 8], "activation": ["relu", "none"]}
    file = io.BytesIO()
    _save_with_omegaconf({"config": config, "last_result": {"test/acc": 0.5}}, file)
    assert "omegaconf" not in sys.modules
    with pytest.raises(pickle.UnpicklingError):
        torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    content = read_inert(file.getvalue(), "x.pt")
    assert content["config"].name == "omegaconf.dictconfig.DictConfig"
    assert to_plain(content["config"]) == config
    whole = content["config"].state["_parent"]
    assert to_plain(whole) == {"batch_size": 128, "model": config}
    # A dataclass of the training program, by its fields.
    assert to_plain(content["last_result"]) == {"test/acc": 0.5, "config": {"model": config}}


def _node(**state: Any) -> Stub:
    stub = Stub()
    stub.state = state
    return stub


def test_nodes_without_content() -> None:
    config = _node(_content={"a": _node(_val=None), "b": _node(_content=None), "c": _node(_content="${a}"), "d": _node(_val="???")})
    assert to_plain(config) == {"a": None, "b": None, "c": "${a}", "d": "???"}
    assert to_plain((1, "x", torch.ones(1)))[:2] == [1, "x"]


def test_a_configuration_that_holds_itself() -> None:
    config = _node(_content={})
    config.state["_content"]["a"] = config
    with pytest.raises(ValueError, match="holds itself"):
        to_plain(config)
