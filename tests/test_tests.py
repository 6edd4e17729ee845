"""Every test asserts something, whatever its parameters are."""

import ast
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

_FUNCTIONS = ("raises", "warns", "fail")


def always_run(statements: list[ast.stmt]) -> Iterator[ast.AST]:
    """What runs in every case: not what stands below a condition, unless below each of its branches, nor in functions within."""
    for statement in statements:
        if isinstance(statement, ast.If):
            yield statement.test
            both = [list(always_run(branch)) for branch in (statement.body, statement.orelse)]
            yield from (node for node in both[0] if statement.orelse and any(map(asserts, both[1])))
        elif isinstance(statement, (ast.With, ast.For, ast.Try)):
            yield from (item.context_expr for item in getattr(statement, "items", ()))
            yield from always_run(statement.body)
        elif isinstance(statement, ast.Assert):
            yield statement
        elif not isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
            yield from ast.walk(statement)


def asserts(node: ast.AST, helpers: Collection[str] = ()) -> bool:
    """Whether a node is an assertion, or calls a function that makes some."""
    if not isinstance(node, ast.Call):
        return isinstance(node, ast.Assert)
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    return name in _FUNCTIONS or name in helpers or name.startswith(("assert_", "check_"))


def silent(source: str) -> list[str]:
    """Names of the tests in a file that may pass without an assertion."""
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    helpers = [node.name for node in functions if any(map(asserts, always_run(node.body)))]
    tests = [node for node in functions if node.name.startswith("test_")]
    return [test.name for test in tests if not any(asserts(node, helpers) for node in always_run(test.body))]


def test_every_test_asserts_something() -> None:
    found = {path.name: names for path in Path(__file__).parent.rglob("test_*.py") if (names := silent(path.read_text(encoding="utf-8")))}
    assert not found


@pytest.mark.parametrize(
    ("body", "quiet"),
    [
        ("run()", True),
        ("if fast:\n  assert run()", True),
        ("if fast:\n  assert run()\n else:\n  run()", True),
        ("def check():\n  assert run()", True),
        ("if fast:\n  assert run()\n else:\n  assert_close(run())", False),
        ("with pytest.raises(ValueError):\n  run()", False),
        ("for i in range(3):\n  assert run(i)", False),
    ],
)
def test_tests_without_assertions_are_seen(body: str, quiet: bool) -> None:
    assert bool(silent(f"def test_x():\n {body}")) == quiet
