import ast
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import networkx as nx
import pytest

import wsgraph

# == When what is imported ==


def modules_after(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; import json, sys; print(json.dumps(list(sys.modules)))"],
        capture_output=True,
        text=True,
        check=True,
    )
    return {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


def test_help_and_completion_do_not_wait_for_pytorch() -> None:
    assert not {"torch", "rich_click", "matplotlib"} & modules_after("import wsgraph.cli")


def test_converting_brings_in_no_training_plotting_or_cluster() -> None:
    found = modules_after("import wsgraph; wsgraph.WeightSpace, wsgraph.trace, wsgraph.symmetry")
    assert "torch" in found
    assert not {"lightning", "matplotlib", "ray", "sklearn", "scipy", "onnx", "pandas"} & found


def test_every_public_name_is_there() -> None:
    for name in (*wsgraph.__all__, *wsgraph._MODULES):
        assert getattr(wsgraph, name) is not None
        assert name in dir(wsgraph)
    with pytest.raises(AttributeError, match="module 'wsgraph' has no attribute 'nothing'"):
        wsgraph.nothing  # noqa: B018


# == Imports point down only ==


def sources() -> dict[str, str]:
    """The source of every module of the package by its name."""
    root = Path(wsgraph.__file__).parent
    found = {}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    return found


def import_graph(modules: Mapping[str, str]) -> nx.DiGraph:
    """Which modules import which, also within functions and for type checkers alone.

    A name that a package re-exports counts as an import of the package.
    """
    graph = nx.DiGraph()
    for name, source in modules.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name} has a relative import, which this test does not follow."
                targets = [f"{node.module}.{alias.name}" for alias in node.names]
                targets = [target if target in modules else str(node.module) for target in targets]
            else:
                continue
            graph.add_edges_from((name, target) for target in targets if target in modules and target != name)
    return graph


def circles(graph: nx.DiGraph) -> list[str]:
    """The shortest circle of every tangle of imports."""
    tangles = [graph.subgraph(nodes) for nodes in nx.strongly_connected_components(graph) if len(nodes) > 1]
    shortest = [min(nx.simple_cycles(tangle, length_bound=6), key=len, default=list(tangle)) for tangle in tangles]
    return [" -> ".join([*circle, circle[0]]) for circle in shortest]


def by_package(module: str) -> str:
    """The package or module right below the root that a module lies in."""
    return ".".join(module.split(".")[:2])


def test_imports_point_down_only() -> None:
    modules = import_graph(sources())
    packages = nx.DiGraph((by_package(a), by_package(b)) for a, b in modules.edges if by_package(a) != by_package(b))
    assert packages.number_of_edges() > 20
    assert not circles(modules)
    assert not circles(packages)


@pytest.mark.parametrize(
    "statement",
    [
        "import p.low",
        "from p.low import name",
        "from p import low",
        "def f():\n  from p.low import name",
        "if TYPE_CHECKING:\n  from p.low import name",
        "class A:\n  def f(self):\n    import p.low as other",
    ],
)
def test_circles_are_seen(statement: str) -> None:
    modules = {"p": "from p.high import name", "p.high": statement, "p.low": "from p.middle import name", "p.middle": "import torch"}
    assert not circles(import_graph(modules))
    (circle,) = circles(import_graph({**modules, "p.middle": "from p import high"}))
    assert set(circle.split(" -> ")) == {"p.high", "p.low", "p.middle"}
    # A name that the package re-exports comes from a module above.
    assert circles(import_graph({**modules, "p.middle": "from p import name"}))
