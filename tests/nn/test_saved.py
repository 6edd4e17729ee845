"""Saved models do not depend on what is registered, in which order, when they are loaded."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from wsgraph import CheckpointError, WeightSpace
from wsgraph.nn import build_model, list_models, load_model, model_entry, save_model
from wsgraph.space import OPERATORS, register_operator

OPERATORS_OF_OTHERS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"aa": torch.atan, "bb": torch.asinh}
SMALL: dict[str, Any] = {"channels": 8}


def register(*names: str) -> None:
    for name in names:
        register_operator(name, OPERATORS_OF_OTHERS[name], positive=False, sign=True)


@pytest.fixture(autouse=True)
def registry() -> Iterator[dict[str, object]]:
    before = dict(OPERATORS)
    yield OPERATORS  # type: ignore[misc]
    OPERATORS.clear()
    OPERATORS.update(before)


@pytest.mark.parametrize("name", [name for name in list_models() if model_entry(name).mixed])
def test_the_order_of_registration_does_not_matter(name: str, tmp_path: Path, registry: dict[str, object]) -> None:
    register("aa", "bb")
    space = WeightSpace.mlp([2, 4, 4, 1], ["aa", "relu"])
    model = build_model(name, space, 1, **SMALL).eval()
    thetas = space.sample(3)
    expected = model(space.batch(thetas))
    save_model(model, tmp_path / "model")
    for order in (("bb", "aa"), ("aa",)):
        for operator in ("aa", "bb"):
            registry.pop(operator, None)
        register(*order)
        assert torch.equal(load_model(tmp_path / "model")(WeightSpace.from_json(space.to_json()).batch(thetas)), expected)


@pytest.mark.parametrize("name", list_models())
def test_models_saved_before_a_plugin_was_installed(name: str, tmp_path: Path) -> None:
    space = WeightSpace.mlp([2, 4, 1])
    model, thetas = build_model(name, space, 1).eval(), space.sample(3)
    save_model(model, tmp_path / "model")
    register("bb")
    assert torch.equal(load_model(tmp_path / "model")(space.batch(thetas)), model(space.batch(thetas)))


def test_what_operator_is_missing_and_how_to_get_it(tmp_path: Path, registry: dict[str, object]) -> None:
    register("aa")
    save_model(build_model("statnn", WeightSpace.mlp([2, 4, 1], "aa"), 1), tmp_path / "model")
    del registry["aa"]
    with pytest.raises(ValueError, match=r"reads networks with the operator 'aa', .* Import the module that registers it .* --plugin"):
        load_model(tmp_path / "model")
    register_operator("aa", torch.relu, positive=True, sign=False)
    with pytest.raises(ValueError, match=r"'aa' let signs through when the model in .* was saved, and lets positive factors through"):
        load_model(tmp_path / "model")
    del registry["aa"]
    register_operator("aa", torch.tanh, positive=False, sign=True)  # the same symmetries, another function
    with pytest.raises(ValueError, match=r"'aa' computes other values than when the model in .* was saved"):
        load_model(tmp_path / "model")
    del registry["aa"]
    register_operator("aa", lambda v: torch.atan(v) * (1 + 1e-7), positive=False, sign=True)  # the rounding of another machine
    assert load_model(tmp_path / "model") is not None


def as_saved_before(folder: Path, table: torch.Tensor) -> None:
    """Rewrites a saved `neural_graph` as versions wrote it that knew activations by their position."""
    document = json.loads((folder / "config.json").read_text())
    del document["operators"]
    (folder / "config.json").write_text(json.dumps({**document, "format": 1}))
    state = {name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if "activations" not in name}
    save_file({**state, "activations.weight": table}, folder / "model.safetensors")


def test_models_of_earlier_versions(tmp_path: Path) -> None:
    space, table = WeightSpace.mlp([2, 4, 4, 1], ["tanh", "relu"]), torch.randn(26, 8)
    model = build_model("neural_graph", space, 1, **SMALL).eval()
    for name, row in (("identity", 0), ("relu", 1), ("tanh", 3)):
        model.get_parameter(f"activations.{name}").data = table[row].clone()
    save_model(model, tmp_path / "model")
    as_saved_before(tmp_path / "model", table)
    batch = space.batch(space.sample(3))
    assert torch.equal(load_model(tmp_path / "model")(batch), model(batch))
    register("aa", "bb")
    save_model(build_model("neural_graph", WeightSpace.mlp([2, 4, 1], "bb"), 1, **SMALL), tmp_path / "other")
    as_saved_before(tmp_path / "other", torch.randn(28, 8))
    with pytest.raises(CheckpointError, match=r"the activation 'bb' was saved by a position .* train the model again"):
        load_model(tmp_path / "other")


def test_neural_graphs_refuse_activations_that_they_do_not_know() -> None:
    relu, tanh = WeightSpace.mlp([2, 4, 1]), WeightSpace.mlp([2, 4, 1], "tanh")
    with pytest.raises(ValueError, match=r"neurons with the activations identity, relu .got 'tanh'.: build the model with all spaces"):
        build_model("neural_graph", relu, 1)(tanh.batch(tanh.sample(2)))
    assert build_model("neural_graph", [relu, tanh], 1)(tanh.batch(tanh.sample(2))).shape == (2, 1)
