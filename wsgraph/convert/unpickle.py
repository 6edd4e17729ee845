"""Reading what ``torch.save`` wrote without trusting it: no name in the file is ever looked up, so none of its code can run."""

from __future__ import annotations

import io
import math
import pickle
import re
import zipfile
from collections.abc import Callable, Collection
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from wsgraph.convert.errors import CheckpointError

__all__ = ["Stub", "module_tensors", "open_inert", "read_inert", "resolve_inert", "to_plain"]

_DTYPES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
    "torch.ComplexFloatStorage": torch.complex64,
    "torch.ComplexDoubleStorage": torch.complex128,
    # Of bytes, whose dtype stands with the tensor.
    "torch.storage.UntypedStorage": torch.uint8,
}
_MOST_MODULES = 100_000
_MODULE = ("_parameters", "_buffers", "_modules")
# What a file of the format before PyTorch 1.6 begins with.
_MAGIC = 0x1950A86A20F9469CFC6C
_OLD_NAMES = {"__builtin__": "builtins", "copy_reg": "copyreg"}


# == What the file holds ==


class Stub:
    """What is left of an object of a class, or the result of a function, that the file names: everything it was given, nothing else.

    Attributes:
        name: What the file calls the class or function, such as ``"omegaconf.dictconfig.DictConfig"``.
        args: What it was called with.
        keywords: What it was called with by name.
        state: Its attributes, or whatever else it was restored from.
        entries: Pairs that were set, as of a dict.
        elements: What was added, as to a list or set.
    """

    __slots__ = ("args", "elements", "entries", "keywords", "state")
    name: ClassVar[str] = ""

    args: tuple[Any, ...]
    keywords: dict[str, Any]
    state: Any
    entries: list[tuple[Any, Any]]
    elements: list[Any]

    # The unpickler may skip __init__, so that everything is set here.
    def __new__(cls, *args: Any, **keywords: Any) -> Stub:
        stub = super().__new__(cls)
        stub.args, stub.keywords, stub.state, stub.entries, stub.elements = args, keywords, None, [], []
        return stub

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.entries.append((key, value))

    def append(self, element: Any) -> None:
        self.elements.append(element)

    def extend(self, elements: Any) -> None:
        self.elements.extend(elements)

    add = append

    def __call__(self, *args: Any, **keywords: Any) -> Stub:
        return _stub_class(f"{self.name}()")(*args, **keywords)

    def __repr__(self) -> str:
        return f"Stub({self.name})"


class _Storage(NamedTuple):
    """Where the numbers of a tensor lie in the file."""

    kind: str
    key: str
    length: int


def _stub_class(name: str) -> type[Stub]:
    return type("Stub", (Stub,), {"__slots__": (), "name": name})


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, encoding="utf-8")
        self._classes: dict[str, type[Stub]] = {}
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str, /) -> type[Stub]:
        full = f"{_OLD_NAMES.get(module, module)}.{name}"
        if full not in self._classes:
            self._classes[full] = _stub_class(full)
        return self._classes[full]

    @property
    def names(self) -> set[str]:
        """Everything that the file names."""
        return {*self._classes}

    def persistent_load(self, pid: Any, /) -> Any:
        match pid:
            case ("module", type() as kind, *_) if issubclass(kind, Stub):  # a class with its source, as PyTorch 1 wrote
                return kind
            case ("storage", type() as kind, str(key), _, int(length), *_) if issubclass(kind, Stub) and length >= 0:
                return self.storages.setdefault(key, _Storage(kind.name, key, length))
        raise pickle.UnpicklingError(f"it refers to {pid!r}, which is not a storage")


# == What becomes of it ==


class _Resolver:
    """Turns the few stubs that stand for plain data into that data, and leaves all others.

    Args:
        read: Reads the numbers of a storage as a flat tensor.
    """

    def __init__(self, read: Callable[[_Storage], Tensor]) -> None:
        self._read = read
        self._storages: dict[_Storage, Tensor] = {}
        # With every result what it was made of, lest that is freed and another object gets its id.
        self._done: dict[int, tuple[Any, Any]] = {}
        self._known: dict[str, Callable[[Stub], Any]] = {
            "collections.OrderedDict": lambda stub: self._pairs([*(stub.args[0] if stub.args else ()), *stub.entries]),
            "collections.defaultdict": lambda stub: self._pairs(stub.entries),
            "torch._utils._rebuild_tensor": self._tensor,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_tensor_v3": self._untyped_tensor,
            "torch.storage._load_from_bytes": self._storage,
            **dict.fromkeys(
                ["torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"], lambda stub: self(stub.args[0])
            ),
            "builtins.set": lambda stub: set(*stub.args),
            "builtins.frozenset": lambda stub: frozenset(*stub.args),
            "_codecs.encode": self._bytes,
            **dict.fromkeys(["numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"], self._scalar),
            **dict.fromkeys(["numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer"], self._buffer),
            **dict.fromkeys(["numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"], self._array),
        }

    def __call__(self, value: Any) -> Any:
        if id(value) in self._done:
            return self._done[id(value)][1]
        resolved = value
        if isinstance(value, (dict, list)):
            # Containers are changed in place, so that those that hold themselves need no care.
            self._done[id(value)] = value, value
            if isinstance(value, dict):
                value.update([(key, self(entry)) for key, entry in value.items()])
            else:
                value[:] = [self(entry) for entry in value]
        elif type(value) is tuple:
            resolved = tuple(self(entry) for entry in value)
        elif isinstance(value, Stub) and value.name in self._known:
            resolved = self._known[value.name](value)
        elif isinstance(value, Stub):
            self._done[id(value)] = value, value
            value.entries = [(key, self(entry)) for key, entry in value.entries]
            if _is_module(value):
                value.state = self(value.state)
        self._done[id(value)] = value, resolved
        return resolved

    def _pairs(self, pairs: Any) -> dict[Any, Any]:
        return {key: self(entry) for key, entry in pairs}

    def _numbers(self, storage: Any) -> Tensor:
        if isinstance(storage, Stub) and storage.name == "torch.storage._load_from_bytes":
            numbers: Tensor = self(storage)
            return numbers
        if not isinstance(storage, _Storage):
            raise ValueError(f"a tensor lies in {storage!r}, which is not a storage")
        if storage not in self._storages:
            self._storages[storage] = self._read(storage)
        return self._storages[storage]

    def _tensor(self, stub: Stub) -> Tensor:
        storage, offset, size, stride = stub.args[:4]
        return _view(self._numbers(storage), offset, size, stride)

    def _untyped_tensor(self, stub: Stub) -> Tensor:
        storage, offset, size, stride, _, _, kind = stub.args[:7]
        name = kind.name.removeprefix("torch.") if isinstance(kind, type) and issubclass(kind, Stub) else ""
        dtype = getattr(torch, name, None) if name.isidentifier() else None
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"a tensor has the dtype {name!r}, which is not known here")
        return _view(self._numbers(storage).view(dtype), offset, size, stride)

    def _storage(self, stub: Stub) -> Tensor:
        """The storage of a tensor that was pickled without ``torch.save``: a file of its own among the bytes of the other."""
        storage, read, _ = _open_legacy(self(stub.args[0]))
        if not isinstance(storage, _Storage):
            raise ValueError(f"a tensor lies in {storage!r}, which is not a storage")
        return read(storage)

    def _bytes(self, stub: Stub) -> Any:
        match stub.args:
            case (str(text), "latin1"):
                return text.encode("latin1")
        return stub

    def _dtype(self, stub: Any) -> np.dtype[Any] | None:
        """A dtype of numbers, or none: bytes of a dtype of objects would be taken for their addresses."""
        if not isinstance(stub, Stub) or stub.name != "numpy.dtype":
            return None
        match stub.args, stub.state:
            case (str(text), *_), (_, "<" | ">" | "=" | "|" as order, *_) if re.fullmatch("[biufc][0-9]+", text):
                return np.dtype(text).newbyteorder(order)
        return None

    def _scalar(self, stub: Stub) -> Any:
        dtype = self._dtype(stub.args[0])
        return stub if dtype is None else np.frombuffer(self(stub.args[1]), dtype)[0].item()

    def _array(self, stub: Stub) -> Any:
        dtype = self._dtype(stub.state[2]) if isinstance(stub.state, tuple) else None
        if dtype is None:
            return stub
        _, shape, _, is_fortran, data = stub.state
        return np.frombuffer(self(data), dtype).reshape(shape, order="F" if is_fortran else "C").copy()

    def _buffer(self, stub: Stub) -> Any:
        data, kind, shape, order = stub.args
        dtype = self._dtype(kind)
        return stub if dtype is None else np.frombuffer(data, dtype).reshape(shape, order=order).copy()


def _view(numbers: Tensor, offset: int, size: Any, stride: Any) -> Tensor:
    if math.prod(size) > numbers.numel():
        raise ValueError(f"a tensor of shape {list(size)} is larger than its storage of {numbers.numel()} numbers")
    # This, unlike the function that the file names, never reaches beyond the storage.
    return numbers.as_strided(size, stride, offset)


def _is_module(stub: Stub) -> bool:
    return isinstance(stub.state, dict) and all(isinstance(stub.state.get(key), (dict, Stub)) for key in ("_parameters", "_modules"))


def module_tensors(value: Any) -> dict[str, Tensor] | None:
    """Parameters and buffers of a module that was pickled whole, by the keys of its state dict, or ``None`` for any other value.

    The class of the module is neither needed nor known: PyTorch keeps tensors and submodules under names of its own.

    Raises:
        CheckpointError: If modules hold themselves, or each other so often that no network can be meant.
    """
    if not _is_whole_module(value):
        return None
    found: dict[str, Tensor] = {}
    waiting = [("", value)]
    for _ in range(_MOST_MODULES):
        if not waiting:
            return found
        prefix, module = waiting.pop()
        left_out = module.state.get("_non_persistent_buffers_set") or ()
        kept = {name: tensor for name, tensor in module.state["_buffers"].items() if name not in left_out}
        found |= {f"{prefix}{name}": t for name, t in (module.state["_parameters"] | kept).items() if isinstance(t, Tensor)}
        inner = [(f"{prefix}{name}.", one) for name, one in module.state["_modules"].items() if _is_whole_module(one)]
        waiting += reversed(inner)
    raise CheckpointError(f"its modules hold each other more than {_MOST_MODULES:,} times")


def _is_whole_module(value: Any) -> bool:
    return isinstance(value, Stub) and _is_module(value) and all(isinstance(value.state.get(key), dict) for key in _MODULE)


# == Files ==


def _flat(data: bytes, storage: _Storage) -> Tensor:
    dtype = _DTYPES[storage.kind]
    if len(data) != storage.length * dtype.itemsize:
        raise ValueError(f"a storage has {len(data)} bytes, not {storage.length} numbers of {dtype}")
    return torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)


def _check_kind(storage: _Storage) -> None:
    if storage.kind not in _DTYPES:
        raise ValueError(f"it holds a {storage.kind}, which is not read here")


def _check_order(is_little: bool) -> None:
    if not is_little:
        raise ValueError("it was written on a big-endian machine")


_Opened = tuple[Any, Callable[[_Storage], Tensor], set[str]]


def _open_archive(data: bytes) -> _Opened:
    archive = zipfile.ZipFile(io.BytesIO(data))
    names = archive.namelist()
    folder = next((name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl")), "")
    if folder + "constants.pkl" in names:
        raise CheckpointError(
            "it is a TorchScript program, a network with its code; if you trust it, torch.jit.load(path).state_dict() gives its weights, "
            "for torch.save or safetensors"
        )

    def read(name: str) -> bytes:
        entry = archive.getinfo(folder + name)
        if entry.compress_type != zipfile.ZIP_STORED:
            raise ValueError("its parts are compressed, which those of torch.save never are, and may unpack to any size")
        return archive.read(entry)

    def storage(where: _Storage) -> Tensor:
        _check_kind(where)
        return _flat(read(f"data/{where.key}"), where)

    _check_order(folder + "byteorder" not in names or read("byteorder") == b"little")
    unpickler = _Unpickler(io.BytesIO(read("data.pkl")))
    return unpickler.load(), storage, unpickler.names


def _open_legacy(data: bytes) -> _Opened:
    file = io.BytesIO(data)
    # A damaged file is recognised by its first value, before the others are read.
    if _Unpickler(file).load() != _MAGIC:
        raise ValueError("it does not begin as files of PyTorch do")
    _, machine = (_Unpickler(file).load() for _ in range(2))
    _check_order(machine["little_endian"])
    unpickler = _Unpickler(file)
    content = unpickler.load()
    # Storages lie one behind the other without their types, which stand where the storages are referred to.
    places: dict[str, slice] = {}
    keys, start = _Unpickler(file).load(), file.tell()
    for key in keys:
        _check_kind(unpickler.storages[key])
        count = int.from_bytes(data[start : start + 8], "little")
        places[key] = slice(start + 8, start + 8 + count * _DTYPES[unpickler.storages[key].kind].itemsize)
        start = places[key].stop
    return content, lambda where: _flat(data[places[where.key]], where), unpickler.names


def _open_pickle(data: bytes) -> _Opened:
    """A pickle that ``torch.save`` did not write, in which storages are files of their own."""

    def storage(where: _Storage) -> Tensor:
        raise ValueError(f"the storage {where.key!r} is not in it")

    unpickler = _Unpickler(io.BytesIO(data))
    return unpickler.load(), storage, unpickler.names


def open_inert(data: bytes, *, pickles: bool = False) -> _Opened:
    """What a file of ``torch.save`` holds, for :func:`resolve_inert`, with all names of classes and functions in it.

    Args:
        data: The bytes of the file.
        pickles: Whether pickles that ``torch.save`` did not write are read too.
    """
    if data[:2] == b"PK":
        return _open_archive(data)
    plain = pickles and _Unpickler(io.BytesIO(data)).load() != _MAGIC
    return _open_pickle(data) if plain else _open_legacy(data)


def resolve_inert(opened: _Opened, keys: Collection[str] | None = None) -> Any:
    """The tensors and plain data of an opened file, and stubs for everything else.

    Args:
        opened: What :func:`open_inert` returned.
        keys: Entries of the outermost dict to read (default: all).
    """
    content, read, _ = opened
    resolve = _Resolver(read)
    if keys is None:
        return resolve(content)
    if isinstance(content, dict):
        return {key: resolve(content[key]) for key in keys if key in content}
    return content


def read_inert(data: bytes, name: str, keys: Collection[str] | None = None) -> Any:
    """What ``torch.save`` wrote, without running any code: tensors, containers and plain values, and a :class:`Stub` for all else.

    Nothing that the file names is imported or called, not even functions of PyTorch: tensors, dicts in order, sets and numbers of NumPy are
    recognised by their names and made here. Both formats of ``torch.save`` are read, with ``nn.Parameter`` as a tensor, all on the CPU.

    Args:
        data: The bytes of the file.
        name: What to call the file in errors.
        keys: Entries of the outermost dict to read (default: all); other entries, such as the state of an optimiser, cost no time then.

    Raises:
        CheckpointError: If the file is damaged, compressed, or holds tensors of a kind that is not read.

    Example:
        >>> import datetime, io
        >>> file = io.BytesIO()
        >>> torch.save({"weight": torch.ones(2), "date": datetime.date(2024, 1, 1)}, file)
        >>> read_inert(file.getvalue(), "model.pt")
        {'weight': tensor([1., 1.]), 'date': Stub(datetime.date)}
    """
    try:
        return resolve_inert(open_inert(data), keys)
    except Exception as error:  # what an unpickler raises on damaged bytes ranges from EOFError to KeyError
        reason = str(error).split("\n")[0]
        raise CheckpointError(f"{name!r} is damaged or was not written by torch.save ({type(error).__name__}: {reason}).") from None


def to_plain(value: Any) -> Any:
    """A configuration of OmegaConf, of which :func:`read_inert` left stubs, as dicts, lists and values; plain ones stay as they are.

    Interpolations such as ``"${seed}"`` are not resolved. Objects of other classes, such as dataclasses, become a dict of their attributes.

    Raises:
        ValueError: If it holds itself.

    Example:
        >>> to_plain({"sizes": (1, 2)})
        {'sizes': [1, 2]}
    """
    try:
        return _plain(value)
    except RecursionError:
        raise ValueError("The configuration holds itself, or is nested too deeply.") from None


def _plain(value: Any) -> Any:
    if isinstance(value, Stub) and isinstance(value.state, dict):
        # A dict or list keeps its nodes in one attribute and a node its value in the other.
        return _plain(next((value.state[key] for key in ("_content", "_val") if key in value.state), value.state))
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value
