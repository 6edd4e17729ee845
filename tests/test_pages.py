"""What the pages name is there: functions, classes, methods, keywords, commands and their options, in prose and in code."""

import dataclasses
import importlib
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import typer
from typer.testing import CliRunner

import wsgraph
from tests.test_api import parameters_of, public_methods, public_names
from tests.test_examples import unregistered
from wsgraph.cli import app
from wsgraph.options import KINDS, options_of
from wsgraph.tasks import list_tasks, task_class

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "benchmarks/README.md")
}
# Keywords and calls of other libraries.
THEIR_KEYWORDS = ("tie_weights",)
OF_OTHERS = ("torch.", "nn.", "F.", "python ", "pip ", "torchrun ")


def spans(text: str) -> list[str]:
    """What stands in backticks in prose."""
    return re.findall(r"`([^`]+)`", re.sub(r"<!--.*?-->|^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))


def resolved(name: str) -> Any:
    """What a dotted name stands for; an ``AttributeError`` if it is nothing."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            value: Any = importlib.import_module(".".join(parts[:count]))
        except ImportError:
            continue
        for part in parts[count:]:
            value = getattr(value, part)
        return value
    raise AttributeError(name)


def missing_names(text: str) -> list[str]:
    """Dotted names of ours, anywhere in a page, that are nothing."""
    found = []
    for name in sorted(set(re.findall(r"\bwsgraph(?:\.[A-Za-z_]\w*)+", text))):
        try:
            resolved(name)
        except AttributeError:
            found.append(name)
    return found


def callables() -> tuple[set[str], set[str]]:
    """Names of public functions, classes and methods, and of all of their parameters."""
    functions = public_names(wsgraph)
    names, keywords = set(), set()
    for name, value in functions.items():
        names.add(name.rpartition(".")[2])
        keywords |= set(parameters_of(value))
        names |= {field.name for field in dataclasses.fields(value)} if dataclasses.is_dataclass(value) else set()
        for method, member in (public_methods(value) if inspect.isclass(value) else {}).items():
            names.add(method)
            function = member.__func__ if isinstance(member, (staticmethod, classmethod)) else member
            keywords |= set(inspect.signature(function).parameters) if inspect.isfunction(function) else set()
    return names, keywords


def of_others(name: str) -> bool:
    """Whether a name is one of PyTorch's, or an operator of ONNX."""
    return hasattr(torch, name) or hasattr(torch.nn.Module, name) or onnx.defs.has(name)


def missing_calls(text: str) -> list[str]:
    """Calls, classes and keywords in prose that no public function, class, method or parameter has."""
    names, keywords = callables()
    found = []
    for span in spans(text):
        if span.startswith(OF_OTHERS):
            continue
        called = re.findall(r"([A-Za-z_]\w*)\(", span) if re.match(r"[A-Za-z_][\w.]*\(", span) else []
        called += [span] if re.fullmatch(r"(?:[A-Z]+[a-z]\w*){1,}[A-Z]\w*", span) else []  # a class: words run together
        called += re.findall(r"^(?:zoo|dataset|graph|space|plot)\.(\w+)$", span)
        found += [f"{span}: {name}" for name in called if name not in names and not of_others(name)]
        found += [f"{span}: {name}=" for name in re.findall(r"^(\w+)=", span) if name not in keywords and name not in THEIR_KEYWORDS]
    return found


def commands() -> dict[str, set[str]]:
    """Options of every command, by its words."""

    def walk(command: Any, words: tuple[str, ...]) -> Iterator[tuple[str, set[str]]]:
        options = {text for each in command.params for text in (*each.opts, *each.secondary_opts) if text.startswith("-")} | {"--help"}
        yield " ".join(words), options
        for name, child in getattr(command, "commands", {}).items():
            yield from walk(child, (*words, name))

    found = dict(walk(typer.main.get_command(app), ("wsgraph",)))
    found["wsgraph train"] |= {about.flag for name in list_tasks() for about in options_of(task_class(name)).values() if about.flag}
    return found


def missing_options(text: str) -> list[str]:
    """Commands and options, in prose and in shell blocks, that the command line does not have."""
    known = commands()
    every = set().union(*known.values()) | {"--nproc-per-node", "--no-build-isolation", "--index-url"}
    lines = [line for block in re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL) for line in block.splitlines()]
    found = [span for span in spans(text) if re.fullmatch(r"--[a-z-]+", span.split()[0]) and span.split()[0] not in every]
    for line in [*lines, *spans(text)]:
        match = re.search(r"(?:^|[/ ])wsgraph (?!=)(.*)", re.sub(r"\$\(.*?\)", "", line.partition(" #")[0]))
        if match is None or line.startswith("pip"):
            continue
        words = match[1].replace("|", " ").split()
        before = []
        while words and words[0].startswith("--"):
            before.append(words.pop(0))
            words = words[1:]
        name = "wsgraph"
        while words and f"{name} {words[0]}" in known:
            name = f"{name} {words.pop(0)}"
        given = [word for word in words if word.startswith("-")]
        found += [f"{line}: {word}" for word in before if word not in known["wsgraph"]]
        found += [f"{line}: no such command"] if name == "wsgraph" and words else []
        found += [f"{line}: {word}" for word in given if word not in known[name]]
    return found


@pytest.mark.parametrize("page", PAGES)
def test_what_pages_name_is_there(page: str) -> None:
    assert not [*missing_names(PAGES[page]), *missing_calls(PAGES[page]), *missing_options(PAGES[page])]


def test_what_is_not_there_is_seen() -> None:
    text = (
        "Call `wsgraph.nn.nothing` or `build_modell(name, 1)` or `zoo.nothing`, a `MonomialLinearr`, `nothing_such=3`; "
        "run `wsgraph trian` or `wsgraph train generalization --nothing`, `--never`.\n```bash\nwsgraph plot nothing --zoo x\n```\n"
    )
    assert missing_names(text) == ["wsgraph.nn.nothing"]
    assert [each.rpartition(": ")[2] for each in missing_calls(text)] == ["build_modell", "nothing", "MonomialLinearr", "nothing_such="]
    assert len(missing_options(text)) == 4
    assert not missing_calls("`build_model(name, space, 1)`, `zoo.append`, `MonomialLinear`, `select=`")


def test_the_plugin_of_the_readme_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", PAGES["README.md"], flags=re.DOTALL) if block.startswith("# mine.py")]
    Path("mine.py").write_text(block)
    (command,) = [span for span in spans(PAGES["README.md"]) if "--plugin mine.py" in span]
    monkeypatch.setenv("WSGRAPH_PLUGINS", "")
    with unregistered():
        result = CliRunner().invoke(app, shlex.split(command)[1:])
    assert result.exit_code == 0, result.output
    assert "| mine | permutation, scale, sign |" in Path("wsgraph-bench/results/invariance.md").read_text()


def test_the_command_has_the_options_of_the_function() -> None:
    shared = {about.flag.partition("/")[0] for kind in KINDS for about in options_of(kind).values() if about.flag}
    command = typer.main.get_command(app).commands["train"]  # type: ignore[attr-defined]
    of_several_runs = {"--folds", "--search", "--search-space", "--workers", "--ray"}
    options = {text for each in command.params for text in each.opts if text.startswith("-")}
    assert options == shared | of_several_runs | {"--config", "--json"}
    # Those of one name mean one thing, and no task takes what all have.
    for name in list_tasks():
        assert not shared & {about.flag for about in options_of(task_class(name)).values()}
