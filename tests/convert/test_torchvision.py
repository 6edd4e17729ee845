"""Networks that were not written for wsgraph: small models of torchvision, which CI installs for these tests alone."""

import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from wsgraph import fold_batchnorm, trace
from wsgraph.plot import graph_page
from wsgraph.testing import assert_function_preserved

pytestmark = pytest.mark.skipif(find_spec("torchvision") is None, reason="torchvision is not installed")
NAMES = ("mnasnet0_5", "mobilenet_v3_small", "regnet_y_400mf", "resnet18", "shufflenet_v2_x0_5", "squeezenet1_1")


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import networks

    yield networks
    sys.modules.pop("networks")


@pytest.mark.parametrize("name", NAMES)
def test_torchvision_models(name: str, networks: object) -> None:
    module = networks.randomize(networks.torchvision_models()[name]())  # type: ignore[attr-defined]
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no unknown operator
        space = trace(module, image, strict=True)
    assert space.coverage > 0.95
    assert_function_preserved(module, space, image, draws=1)
    state = module.state_dict()
    back = space.unflatten(space.flatten(state))
    assert all(torch.equal(back[key], tensor) and back[key].dtype == tensor.dtype for key, tensor in state.items())
    graph = space.graph(space.flatten(state))
    drawn = {wire.parameter for wire in space.wires}
    assert drawn >= {param.name for param in space.params if param.role != "buffer"}
    assert [group.size for group in space.groups if group.role == "output"] == [1000]
    assert graph.num_edges == space.topology.num_edges > 1e5


def test_folded_resnets_are_networks_of_layers(networks: object) -> None:
    module = networks.randomize(networks.torchvision_models()["resnet18"]()).double()  # type: ignore[attr-defined]
    image = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    folded = fold_batchnorm(module, image)
    space = trace(folded, image)
    outputs = space.evaluate(space.flatten(folded.state_dict())[None], image)[0]
    assert torch.allclose(outputs, module(image), rtol=1e-9, atol=1e-9)
    assert len(space.layers) == 26


def test_deep_networks_are_told_on_a_screen(networks: object) -> None:
    module = networks.randomize(networks.torchvision_models()["resnet50"]())  # type: ignore[attr-defined]
    space = trace(module, torch.randn(1, 3, 64, 64))
    table = space.summary().splitlines()
    assert len(table) + len(space.report().splitlines()) <= 50
    assert max(map(len, table)) <= 140
    assert any(line.split()[:4] == ["1..5", "5", "x", "1,120,259"] for line in table)
    assert len(graph_page(space, space.flatten(module.state_dict()))) < 3_000_000
