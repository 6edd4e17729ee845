"""Every public name is documented: what it does, its arguments, what it returns, and how it is used."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import sys
import types
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import pytest
from torch import Tensor

import wsgraph

# == What is public ==


def public_modules(package: types.ModuleType) -> list[types.ModuleType]:
    """What users import from: the package and its subpackages, modules beside them, and modules that a package lists by name.

    Other modules hold what their package re-exports, or what the library keeps to itself.
    """
    modules = [package]
    for found in pkgutil.iter_modules(package.__path__):
        if found.name.startswith("_"):
            continue
        name = f"{package.__name__}.{found.name}"
        listed = package.__name__ == package.__name__.partition(".")[0] or found.name in getattr(package, "__all__", ())
        if found.ispkg:
            modules += public_modules(importlib.import_module(name))
        elif listed:
            modules.append(importlib.import_module(name))
    return modules


def public_names(package: types.ModuleType) -> dict[str, Any]:
    """Public functions and classes by the first name under which users find them."""
    names: dict[str, Any] = {}
    for module in public_modules(package):
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            ours = (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__.startswith(package.__name__)
            if ours and not any(value is other for other in names.values()):
                names[f"{module.__name__}.{name}"] = value
    return names


def public_methods(cls: type, public: Collection[type] = ()) -> dict[str, Any]:
    """Public methods and properties of a class, unless they are those of a documented base class in another form.

    Those of its base classes count where these are of the same package, neither private nor public themselves.
    """
    found: dict[str, Any] = {}
    package = cls.__module__.partition(".")[0]
    bases = [base for base in cls.__mro__[1:] if base.__module__.partition(".")[0] == package and not base.__name__.startswith("_")]
    for owner in (cls, *(base for base in bases if base not in public)):
        for name, member in vars(owner).items():
            function = member.__func__ if isinstance(member, (staticmethod, classmethod)) else member
            described = any(inspect.getdoc(vars(base)[name]) for base in owner.__mro__[1:] if name in vars(base))
            method = inspect.isfunction(function) or isinstance(member, (property, cached_property))
            if method and not name.startswith("_") and not described and name not in found:
                found[name] = member
    return found


# == What is lacking ==


def section(doc: str, title: str) -> str:
    """The indented text below a title."""
    match = re.search(rf"^{title}:\n((?:[ ]+.*\n|\n)*)", f"{inspect.cleandoc(doc)}\n", re.MULTILINE)
    return match[1] if match else ""


def lacks(name: str, value: Any, *, method: bool = False, example: bool = False) -> list[str]:
    """What the docstring of a function or class lacks, in words."""
    doc = value.__doc__ or ""
    # Python writes the signature of a dataclass or named tuple that has no docstring.
    if not doc.strip() or doc.startswith(f"{value.__name__}("):
        return [f"{name}: a docstring"]
    found = []
    named = section(doc, "Args") + section(doc, "Attributes")
    # The sentence on a method of one argument is about that argument.
    for parameter in () if method and len(parameters_of(value)) == 1 else parameters_of(value):
        if not re.search(rf"^ +\**{parameter}( \(.*\))?:", named, re.MULTILINE):
            found.append(f"{name}: {parameter!r} under Args:")
    if (returned := returns(value)) and not says_what_returns(value, returned):
        found.append(f"{name}: a section Returns:, Shapes: or Yields: of at least three words, for {returned}")
    if example and ">>>" not in doc:
        found.append(f"{name}: a runnable example")
    return found


def says_what_returns(value: Any, returned: str) -> bool:
    """Whether the docstring says what comes out, and of a tensor which axes it has.

    The first sentence on a function of one argument is about what it returns; a shape in it says the axes.
    """
    doc = inspect.cleandoc(value.__doc__)
    if any(len(section(doc, title).split()) >= 3 for title in ("Returns", "Shapes", "Yields")):
        return True
    simple = not inspect.isclass(value) and len(parameters_of(value)) < 2
    return simple and ("Tensor" not in returned or "``[" in doc.partition("\n\n")[0])


def parameters_of(value: Any) -> list[str]:
    """Parameters of a function, or of a class that has a constructor of its own."""
    if inspect.isclass(value):
        own = "__init__" in vars(value) or "__new__" in vars(value)
        if not own or issubclass(value, BaseException):
            return []
    return [name for name in inspect.signature(value).parameters if name not in ("self", "cls") and not name.startswith("_")]


def returns(value: Any) -> str:
    """What a function is annotated to return, or a module's ``forward``; empty for nothing."""
    if inspect.isclass(value):
        value = vars(value).get("forward")
        if value is None:
            return ""
    annotation = inspect.signature(value).return_annotation
    return "" if annotation in (None, "None", inspect.Signature.empty, "Self") else str(annotation)


def undocumented(package: types.ModuleType) -> list[str]:
    """What lacks in a package, a line for each."""
    found = []
    public = public_names(package)
    classes = [value for value in public.values() if inspect.isclass(value)]
    for name, value in public.items():
        found += lacks(name, value, example=name.count(".") == 1)
        for method, member in public_methods(value, classes).items() if inspect.isclass(value) else ():
            if isinstance(member, (property, cached_property)):
                function = member.fget if isinstance(member, property) else member.func
                found += [] if (function.__doc__ or "").strip() else [f"{name}.{method}: a docstring"]
            elif method == "forward" and section(value.__doc__ or "", "Shapes"):
                continue  # the class says what the module reads and returns
            else:
                function = member.__func__ if isinstance(member, (staticmethod, classmethod)) else member
                found += lacks(f"{name}.{method}", function, method=True)
    return found


# == Tests ==


def test_every_public_name_is_documented() -> None:
    found = undocumented(wsgraph)
    assert not found, f"{len(found)} things are missing from docstrings:\n" + "\n".join(found)


@dataclass(frozen=True)
class Point:
    x: float


class Layer:
    """A layer.

    Args:
        width: How wide it is.

    Example:
        >>> Layer(3, 1.0).width
        3
    """

    def __init__(self, width: int, rate: float) -> None:
        self.width = width

    @property
    def depth(self) -> int:
        return 1

    def forward(self, x: Tensor) -> Tensor:
        return x

    def grow(self, by: int) -> None:
        """Make it wider by a number of neurons."""

    def _hidden(self) -> None: ...


class Described(Layer):
    """A layer of which all is said.

    Shapes:
        input and output: ``[B, C]``.
    """

    depth = 2

    def forward(self, x: Tensor) -> Tensor:
        return x


def undescribed(count: int) -> int:
    return count


def scaled(x: Tensor, factor: float, *parts: int, **options: Any) -> Tensor:
    """Multiply.

    Args:
        x: A tensor, whose factor: is not explained here.
        *parts: Which parts of it.

    Returns:
        Tensor
    """
    return x * factor


def described(x: Tensor, factor: float, **options: Any) -> Tensor:
    """Multiply.

    Args:
        x: A tensor of any shape.
        factor: What it is multiplied by.
        **options: Nothing else.

    Returns:
        A tensor of the same shape.
    """
    return x * factor


def axes(x: Tensor) -> Tensor:
    """The tensor ``[B, C]`` as it is.

    Args:
        x: A tensor.

    Example:
        >>> axes(1)
        1
    """
    return x


def no_axes(x: Tensor) -> Tensor:
    """The tensor as it is.

    Args:
        x: A tensor.
    """
    return x


def test_what_lacks_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    # A package of the names above, one of them in a module beside it, and another in a private one.
    package, beside, private = (types.ModuleType(name) for name in ("fake", "fake.beside", "fake._private"))
    monkeypatch.setattr(package, "__path__", ["somewhere"], raising=False)
    contents: dict[types.ModuleType, list[Any]] = {
        package: [Point, Layer, axes, undescribed],
        beside: [Layer, Described, scaled, described, no_axes],
        private: [undocumented],
    }
    for module, values in contents.items():
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(module, "__all__", [value.__name__ for value in values], raising=False)
        for value in values:
            monkeypatch.setattr(value, "__module__", module.__name__)
            monkeypatch.setattr(module, value.__name__, value, raising=False)
    infos = [pkgutil.ModuleInfo(cast(Any, None), name, False) for name in ("_private", "beside")]
    monkeypatch.setattr(pkgutil, "iter_modules", lambda path: infos)
    assert undocumented(package) == [
        "fake.Point: a docstring",
        "fake.Layer: 'rate' under Args:",
        "fake.Layer: a section Returns:, Shapes: or Yields: of at least three words, for Tensor",
        "fake.Layer.depth: a docstring",
        "fake.Layer.forward: a docstring",
        "fake.undescribed: a docstring",
        "fake.beside.scaled: 'factor' under Args:",
        "fake.beside.scaled: 'options' under Args:",
        "fake.beside.scaled: a section Returns:, Shapes: or Yields: of at least three words, for Tensor",
        "fake.beside.no_axes: a section Returns:, Shapes: or Yields: of at least three words, for Tensor",
    ]
    monkeypatch.setattr(axes, "__doc__", "The tensor ``[B, C]`` as it is.")
    assert {"fake.axes: 'x' under Args:", "fake.axes: a runnable example"} < set(undocumented(package))


def test_public_modules_are_found() -> None:
    names = {module.__name__ for module in public_modules(wsgraph)}
    expected = "nn nn.sharing nn.message data data.transforms symmetry space convert tasks bench plot testing measure"
    assert {"wsgraph", *(f"wsgraph.{name}" for name in expected.split())} <= names
    assert "wsgraph.nn.registry" not in names  # its package re-exports what is public
