"""Pages of networks: what they hold, that nothing in them runs but their script, and what the script makes of it."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import wsgraph
from tests.convert.test_stacked_weights import CASES as STACKED
from tests.convert.test_stacked_weights import traced as traced_stack
from tests.networks import make
from tests.space.handmade import branching, residual
from wsgraph import WeightSpace
from wsgraph.cli import app
from wsgraph.plot import graph_page

SCRIPT = resources.files("wsgraph.plot").joinpath("graph.js")
NASTY = "</script><script>alert(1)</script><img src=x onerror=alert(2)> & \u2028 \" ' ]]> <!--"


class Elements(HTMLParser):
    """Elements of a page with their attributes, and what is in scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script" and self.scripts and data.strip():
            self.scripts[-1] += data


def data_of(page: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(Elements(page).scripts[0])
    return data


def numbers(text: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=dtype)


def traced(name: str) -> tuple[WeightSpace, torch.Tensor]:
    if name in STACKED:
        module, _, space = traced_stack(name)
        return space, space.flatten(module.state_dict())
    module, inputs = make(name)
    space = wsgraph.trace(module, *inputs)
    return space, space.flatten(module.state_dict())


def renamed(space: WeightSpace, name: str) -> WeightSpace:
    """The space with a name at the end of all its names."""
    text = space.to_json()
    names = {*(g.name for g in space.groups), *(p.name for p in space.params), *(layer.name for layer in space.layers)}
    for part in sorted(names, key=len, reverse=True):
        text = text.replace(json.dumps(part), json.dumps(f"{part}{name}"))
    return WeightSpace.from_json(text)


# == The page ==


def test_the_page_holds_modules_groups_and_weights() -> None:
    space = WeightSpace.mlp([2, 3, 3, 3, 3, 1])
    theta = space.sample(1)[0]
    data = data_of(graph_page(space, theta))
    assert data["small"]
    assert [module["label"] for module in data["modules"]] == ["the network", "layers", "0", "1..3", "1", "2", "3", "4"]
    assert [module["parent"] for module in data["modules"]] == [-1, 0, 1, 1, 3, 3, 3, 1]
    assert data["modules"][3]["alike"] == 3
    assert data["modules"][3]["parameters"] == 36
    assert data["modules"][0]["parameters"] == space.num_params
    hidden = data["groups"][1]
    assert hidden["name"] == "hidden.1"
    assert hidden["symmetry"] == "permutation x scale"
    assert hidden["operators"] == "relu"
    assert data["modules"][hidden["module"]]["name"] == "layers.0"
    state = space.unflatten(theta)
    for wire in [*data["wires"], *data["features"]]:
        torch.testing.assert_close(numbers(wire["values"]), state[wire["parameter"]].flatten(), rtol=0, atol=0)


def test_large_networks_start_folded_and_leave_weights_out() -> None:
    space = WeightSpace.mlp([784, 512, 512, 10])
    page = graph_page(space, space.sample(1)[0], weights=6200)
    assert len(page) < 100_000
    data = data_of(page)
    assert not data["small"]
    assert ["values" in wire for wire in data["wires"]] == [False, False, True]
    assert all("values" in feature for feature in data["features"])
    assert len(graph_page(space, space.sample(1)[0])) < 2_500_000
    without = data_of(graph_page(space))
    assert not without["weighted"]
    assert not any("values" in wire for wire in [*without["wires"], *without["features"]])


@pytest.mark.parametrize("title", [None, NASTY, "\ud800"])
def test_no_name_runs_or_becomes_markup(title: str | None, tmp_path: Path) -> None:
    space = renamed(residual(), NASTY)
    space = dataclasses.replace(space, assumed=(NASTY,))
    plain, page = Elements(graph_page(residual())), graph_page(space, space.sample(1)[0], tmp_path / "page.html", title=title)
    found = Elements(page)
    assert [tag for tag, _ in found.elements] == [tag for tag, _ in plain.elements]
    assert len(found.scripts) == 2
    assert found.scripts[1] == SCRIPT.read_text(encoding="utf-8")
    names = {group["name"] for group in json.loads(found.scripts[0])["groups"]}
    assert f"stem{NASTY}" in names
    (policy,) = [attributes["content"] for tag, attributes in found.elements if tag == "meta" and "http-equiv" in attributes]
    digest = base64.b64encode(hashlib.sha256(found.scripts[1].encode()).digest()).decode()
    assert policy is not None
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    assert (tmp_path / "page.html").read_bytes() == page.encode("utf-8", "xmlcharrefreplace")


def test_the_page_loads_nothing_and_writes_names_as_text_alone() -> None:
    page = graph_page(residual())
    for _, attributes in Elements(page).elements:
        assert not {"src", "href", "srcset", "action", "style"} & attributes.keys()
        assert not [name for name in attributes if name.startswith("on")]
    script = SCRIPT.read_text(encoding="utf-8")
    for word in (
        "innerHTML",
        "outerHTML",
        "insertAdjacent",
        "document.write",
        "eval(",
        "Function(",
        "fetch(",
        "XMLHttp",
        "import(",
        "http",
    ):
        assert word not in script


def test_a_page_refuses_what_it_cannot_draw(tmp_path: Path) -> None:
    space = WeightSpace.mlp([2, 3, 1])
    with pytest.raises(wsgraph.SpaceMismatchError, match=r"'theta' of shape \[13\]"):
        graph_page(space, torch.zeros(4))
    with pytest.raises(OSError, match="Cannot write to"):
        graph_page(space, None, tmp_path / "missing" / "page.html")
    bare = WeightSpace(space.groups, (), space.params)
    with pytest.raises(wsgraph.SpaceMismatchError, match=r"graph_page\(\) needs a network of dense"):
        graph_page(bare)


# == The script ==

node = pytest.mark.skipif(shutil.which("node") is None, reason="Node.js runs the script of the page without a browser")


def ran(space: WeightSpace, theta: torch.Tensor | None, code: str, **options: Any) -> Any:
    """What JavaScript returns that is given the script as ``graph``, and the network of the page."""
    data = json.dumps(data_of(graph_page(space, theta, **options)))
    lines = [
        f"const graph = require({json.dumps(str(SCRIPT))});",
        "const network = graph.load(JSON.parse(require('fs').readFileSync(0, 'utf8')));",
        f"const result = (() => {{ {code} }})();",
        "process.stdout.write(JSON.stringify(result));",
    ]
    done = subprocess.run(["node", "-e", "\n".join(lines)], input=data, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


EDGES = """
const called = (node) => { const group = graph.groupOf(network, node); return [group.name, node - group.start]; };
return network.wires.map((wire) => {
  const { from, to, values, count } = graph.edgesOf(network, wire);
  return { ends: Array.from(from, (node, i) => [called(node), called(to[i])]), values: values && Array.from(values), count };
});
"""


@node
@pytest.mark.parametrize("name", ["resnet", "pre-norm transformer", "lstm", "resnext", "gated experts, twice"])
def test_the_script_has_the_edges_and_weights_of_the_graph(name: str) -> None:
    space, theta = traced(name)
    wires = ran(space, theta, EDGES, weights=10**7)
    graph = space.graph(theta)
    assert graph.edge_index is not None
    assert graph.edge_attr is not None
    starts = {group.name: space.topology.nodes[group.name].start for group in space.groups}
    drawn = [number for number, wire in enumerate(space.wires) if wire.sources]
    seen = 0
    for edges in space.topology.edges:
        found = wires[drawn.index(edges.wire)]
        ends = torch.tensor([[starts[group] + place for group, place in pair] for pair in found["ends"]])
        assert torch.equal(ends.T, graph.edge_index[:, edges.start : edges.stop])
        if space.wires[edges.wire].parameter is not None:
            values = torch.tensor(found["values"]).view(found["count"], -1)
            part = values[:, edges.first_position : edges.first_position + edges.num_positions]
            assert torch.equal(part, graph.edge_attr[edges.start : edges.stop, : edges.num_positions])
        seen += edges.first_position == 0
    assert seen == len(wires)


@node
def test_what_is_pointed_at_is_explained() -> None:
    space = WeightSpace.cnn([1, 2, 3], [2], "tanh", kernel_size=2)
    theta = torch.arange(space.num_params, dtype=torch.float32) / 8
    told = ran(
        space,
        theta,
        """
        const state = graph.startState(network), scene = graph.layout(network, state, (text) => 6 * text.length);
        const fine = graph.drawnWires(network, state);
        const at = (kind, x, y) => graph.describe(network, scene, graph.hit(network, scene, fine, x, y, 4));
        const group = network.groups[1], node = group.start + 1, [x, y] = graph.place(scene, node);
        const [a, b] = [graph.place(scene, network.groups[0].start), graph.place(scene, group.start)];
        const box = scene.items[scene.itemOf[1]];
        return {
          neuron: at("neuron", x, y), box: at("item", box.x + 3, box.y + box.height / 2),
          edge: at("edge", (a[0] + b[0]) / 2, (a[1] + b[1]) / 2), nothing: graph.hit(network, scene, fine, -5000, 0, 4),
        };
        """,
    )
    assert told["neuron"] == ["hidden.1, neuron 1", "permutation x sign", "bias 1.125 (layers.0.bias)"]
    assert told["box"][:4] == ["hidden.1", "2 neurons", "then tanh", "permutation x sign"]
    assert told["edge"] == [
        "input[0] \u2192 hidden.1[0]",
        "layers.0.weight, 2x1x2x2",
        "weight 0.75, the sum of 4 positions",
        "0  0.125  0.25  0.375",
    ]
    assert told["nothing"] is None


@node
def test_modules_unfold_to_groups_and_groups_to_neurons() -> None:
    space, theta = traced("resnet")
    told = ran(
        space,
        theta,
        """
        const measure = (text) => 6 * text.length;
        const folded = { open: new Set([0]), neurons: new Set() };
        const open = { open: new Set(network.modules.map((module) => module.id)), neurons: new Set() };
        const shown = (state) => graph.layout(network, state, measure);
        const overlaps = (items) => items.some((a, i) => items.slice(i + 1).some((b) =>
          a.x < b.x + b.width && b.x < a.x + a.width && a.y < b.y + b.height && b.y < a.y + a.height));
        const whole = shown(open), neurons = shown({ open: open.open, neurons: new Set(network.groups.map((group) => group.id)) });
        const upward = whole.bundles.filter(({ from, to }) => whole.items[from].y >= whole.items[to].y).length;
        return {
          folded: shown(folded).items.length, groups: whole.items.length, frames: whole.frames.length, upward,
          overlaps: [whole, neurons, shown(folded)].map((scene) => overlaps(scene.items)),
          kinds: [...new Set(neurons.items.map((item) => item.kind))],
          start: graph.startState(network).neurons.size,
          inside: whole.frames.every((frame) => whole.items.slice(frame.first, frame.last + 1).every((item) =>
            item.x >= frame.x && item.x + item.width <= frame.x + frame.width && item.y >= frame.y)),
        };
        """,
    )
    assert told["folded"] < told["groups"] == len([group for group in space.groups if group.role != "factor"])
    assert told["upward"] == 0
    assert told["overlaps"] == [False, False, False]
    assert told["kinds"] == ["neurons"]
    assert told["start"] == 0
    assert told["frames"] > 0
    assert told["inside"]


@node
def test_layers_whose_weights_are_left_out_say_so() -> None:
    space = branching()
    code = "return graph.describeEdge(network, network.wires.find((wire) => wire.name === 'head'), 0);"
    assert ran(space, space.sample(1)[0], code, weights=10)[-1] == "weights of this layer are not in the page"
    assert ran(space, None, code)[-1] == "no weights were given"


# == The command ==


def call(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def test_the_command_writes_a_page_of_a_checkpoint(tmp_path: Path) -> None:
    space = WeightSpace.mlp([2, 4, 1])
    save_file(space.unflatten(space.sample(1)[0]), tmp_path / "model.safetensors")
    file, page = tmp_path / "model.safetensors", tmp_path / "new" / "page.html"
    assert call("plot", "graph", file, "--activation", "tanh", "--html", page, "--title", "Mine & <yours>") == f"Page: {page}"
    assert "<title>Mine &amp; &lt;yours&gt;</title>" in page.read_text()
    assert data_of(page.read_text())["groups"][1]["symmetry"] == "permutation x sign"
    text = call("plot", "graph", file, "--activation", "tanh", "--html", page, "--output", tmp_path / "graph.svg")
    assert text == f"Figure: {tmp_path / 'graph.svg'} Page: {page}"
    (tmp_path / "space.json").write_text(space.to_json())
    assert call("plot", "graph", file, "--space", tmp_path / "space.json", "--html", page) == f"Page: {page}"
    assert data_of(page.read_text())["groups"][1]["symmetry"] == "permutation x scale"
    wrong = call("plot", "graph", file, "--activation", "tanh", "--html", tmp_path / "page.pdf", code=1)
    assert "Expected --html as a file ending in .html (got 'page.pdf')." in wrong
    assert not re.search("Page:", wrong)
    assert not (tmp_path / "page.pdf").exists()
