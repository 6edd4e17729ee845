"""Rules for the source files of the package: their length, numbers of parameters, and where names are spelled."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import wsgraph
from wsgraph import scores
from wsgraph.nn import list_models, model_entry
from wsgraph.operators import OPERATORS
from wsgraph.tasks import list_tasks
from wsgraph.tasks.registry import task_class

ROOT = Path(wsgraph.__file__).parent

# == Length ==

LIMIT = 500


def test_no_file_is_too_long() -> None:
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines()) for path in ROOT.rglob("*.py")}
    too_long = {name: length for name, length in lengths.items() if length > LIMIT}
    assert not too_long, f"Longer than {LIMIT} lines, divide them by topic: {too_long}"


# == Parameters ==

PARAMETERS = 8


def parameters(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Functions of a module, and how many parameters a caller sees: without ``self`` or ``cls``, ``**options`` counted once."""
    methods = {id(node) for each in ast.walk(tree) if isinstance(each, ast.ClassDef) for node in each.body}
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            taken = node.args
            count = len([*taken.posonlyargs, *taken.args, *taken.kwonlyargs]) + (taken.vararg is not None) + (taken.kwarg is not None)
            static = any(isinstance(each, ast.Name) and each.id == "staticmethod" for each in node.decorator_list)
            yield node.name, count - (id(node) in methods and not static)


def test_functions_of_tasks_take_few_parameters() -> None:
    files = (ROOT / "tasks").rglob("*.py")
    counts = {f"{path.name}: {name}": count for path in files for name, count in parameters(ast.parse(path.read_text(encoding="utf-8")))}
    assert counts
    too_many = {name: count for name, count in counts.items() if count > PARAMETERS}
    assert not too_many, f"More than {PARAMETERS} parameters, gather them in an object: {too_many}"


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("def f(a, /, b, *c, d, **e): ...", 5),
        ("class C:\n def f(self, a): ...", 1),
        ("class C:\n @classmethod\n def f(cls, a): ...", 1),
        ("class C:\n @staticmethod\n def f(a): ...", 1),
        ("async def f(a): ...", 1),
    ],
)
def test_parameters_are_counted(source: str, count: int) -> None:
    assert list(parameters(ast.parse(source))) == [("f", count)]


# == Names ==

# Names that mean something else there, and names that are the subject of the file, by kind; what is not listed has to ask the registry.
ELSEWHERE = {
    ("bench/cost.py", "score"): "The suite's own columns: what it measures, in which unit.",
    ("convert/formats/keras/activations.py", "operator"): "Keras's names of activations.",
    ("convert/onnx/resizing.py", "operator"): "ONNX's names of ways to round.",
    ("convert/tracing/layers.py", "operator"): "A layer's kind 'identity'; text that a frequency or softmax is part of.",
    ("data/generators/image_fits.py", "operator"): "Initialisation that is defined for sine networks alone.",
    ("data/public/model_zoos.py", "operator"): "The published order of a pooling before its activation.",
    ("data/public/wild_park.py", "operator"): "Names in the published table.",
    ("nn/sharing/activation.py", "operator"): "The symmetry 'sign', no operator.",
    ("space/parts.py", "operator"): "A layer's kind 'identity', and the activation of neurons without one.",
    ("space/structure.py", "operator"): "A layer's kind 'identity'.",
    ("space/symmetry/canonical_state.py", "operator"): "The form 'sign', no operator.",
    ("space/symmetry/group.py", "operator"): "The symmetry 'sign', no operator.",
    ("tasks/search_space.py", "operator"): "A logarithmic range.",
    ("testing.py", "operator"): "The symmetry 'sign', no operator.",
}


def file_of(value: object) -> str:
    """The file that defines a function or class, from the root of the package."""
    return Path(str(sys.modules[str(value.__module__)].__file__)).relative_to(ROOT).as_posix()


def owned() -> dict[str, dict[str, set[str]]]:
    """By kind, the files in which every registered name may be spelled."""
    tasks = {name: {file_of(task_class(name))} for name in list_tasks()}
    return {
        "model": {name: {file_of(model_entry(name).build)} for name in list_models()},
        "task": tasks,
        "operator": {name: {"operators/table.py"} for name in OPERATORS},
        "score": {name: {"scores.py"}.union(*tasks.values()) for name in scores.SCORES},
    }


def texts(node: ast.expr | None) -> Iterator[str]:
    """String literals that an expression is, or lists."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, (ast.Tuple, ast.List, ast.Set)):
        for element in node.elts:
            yield from texts(element)


def decided_by(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and text of string literals that code decides by: compared, matched, or keys of a dict that is looked into."""
    tables = [node.value for node in tree.body if isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(node.value, ast.Dict)]
    for node in ast.walk(tree):
        found: list[ast.expr | None] = []
        if isinstance(node, ast.Compare):
            found = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            found = [node.value]
        elif isinstance(node, ast.Dict) and node in tables:
            found = [*node.keys]
        elif isinstance(node, ast.Subscript) and isinstance(node.value, ast.Dict):
            found = [*node.value.keys]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if isinstance(node.func.value, ast.Dict):
                found = [*node.func.value.keys]
            elif node.func.attr in ("startswith", "endswith", "removeprefix", "removesuffix"):
                found = [*node.args]
        yield from ((each.lineno, text) for each in found if each is not None for text in texts(each))


def misplaced(files: Mapping[str, str], owners: Mapping[str, Mapping[str, set[str]]]) -> dict[tuple[str, str], list[str]]:
    """By file and kind, where names of a registry are decided by outside of their own files."""
    result: dict[tuple[str, str], list[str]] = {}
    for file, source in files.items():
        for line, text in decided_by(ast.parse(source)):
            for kind, names in owners.items():
                if text in names and file not in names[text]:
                    result.setdefault((file, kind), []).append(f"{text!r} in line {line}")
    return result


def test_names_are_spelled_in_their_own_files_only() -> None:
    # Rules of tracing are entered in their registry by the names of PyTorch's operators.
    files = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in ROOT.rglob("*.py")}
    files = {name: source for name, source in files.items() if not name.startswith("convert/tracing/rules/")}
    found = misplaced(files, owned())
    new = {where: names for where, names in found.items() if where not in ELSEWHERE}
    assert not new, f"Ask the registry instead: {new}"
    done = sorted(where for where in ELSEWHERE if where not in found)
    assert not done, f"Not spelled there any more, take them off the list: {done}"


@pytest.mark.parametrize(
    ("source", "seen"),
    [
        ("x = 1 if name == 'np' else 2", True),
        ("x = 'np' != name", True),
        ("x = name in ('statnn', 'np')", True),
        ("x = name not in {'np'}", True),
        ("x = {'np': 1}[name]", True),
        ("x = {'np': 1}.get(name)", True),
        ("TABLE = {'np': 1}", True),
        ("x = name.startswith('np')", True),
        ("def f():\n match name:\n  case 'np':\n   return 1", True),
        ("x = build_model('np')", False),
        ("def f():\n return {'np': 1}", False),
        ("x = name == 'other'", False),
    ],
)
def test_names_that_code_decides_by_are_seen(source: str, seen: bool) -> None:
    owners = {"model": {"np": {"own.py"}, "statnn": {"user.py"}}}
    found = misplaced({"user.py": source, "own.py": source}, owners)
    assert (("user.py", "model") in found) == seen
    assert ("own.py", "model") not in found or "statnn" in source
