"""Several networks in one state dict, wrappers around keys, and counters beside weights."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from typer.testing import CliRunner

from wsgraph import AssumedGeometryWarning, WeightSpace, from_state_dict, list_networks, trace
from wsgraph.cli import app
from wsgraph.data import ZooStore, import_zoo

# Small folders without a table, of which an import has more to say.
pytestmark = pytest.mark.filterwarnings("ignore:.* was imported")


def network(*sizes: int) -> nn.Sequential:
    sizes = sizes or (4, 8, 2)
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def agent() -> dict[str, Tensor]:
    return {**nn.ModuleDict({"q_net": network(), "q_net_target": network()}).state_dict(), "log_std": torch.zeros(2)}


# == Wrappers and counters ==


def under(prefix: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {f"{prefix}{key}": tensor for key, tensor in state.items()}


WRAPPED: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "parallel": under("module."),
    "compiled": under("_orig_mod."),
    "lightning": under("model."),
    "fabric": under("_forward_module."),
    "all of them": under("module.model._orig_mod."),
    "in another order": under("_orig_mod.module."),
    "inside": lambda state: {key.replace("2.", "2._orig_mod.").replace("0.", "0._fsdp_wrapped_module."): t for key, t in state.items()},
    "counter": lambda state: {"n_averaged": torch.tensor(7), **under("module.")(state)},
    "counters": lambda state: {**state, "step": torch.tensor([3]), "initted": torch.tensor(True), "num_batches_tracked": torch.tensor(1)},
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED.keys())
def test_wrapped_networks_have_the_space_of_the_network(wrap: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    state = network().state_dict()
    space, theta = from_state_dict(state, "tanh")
    wrapped, same = from_state_dict(wrap(state), "tanh")
    assert wrapped == space
    assert torch.equal(same, theta)
    network().load_state_dict(wrapped.unflatten(same))


def test_averaged_model() -> None:
    module = network()
    space, _ = from_state_dict(AveragedModel(module).state_dict())
    assert space == from_state_dict(module.state_dict())[0]


@pytest.mark.parametrize("prefix", ["net.", "layers.", "actor.", "params."])
def test_names_of_attributes_stay(prefix: str) -> None:
    space, _ = from_state_dict(under(prefix)(network().state_dict()))
    assert next(param.name for param in space.params) == f"{prefix}0.weight"


def test_a_layer_called_as_a_wrapper_stays() -> None:
    space, _ = from_state_dict(nn.ModuleDict({"model": nn.Linear(4, 8), "head": nn.Linear(8, 2)}).state_dict())
    assert [param.name for param in space.params] == ["model.weight", "model.bias", "head.weight", "head.bias"]


def test_counters_alone() -> None:
    with pytest.raises(ValueError, match="holds no weights, only 'step', 'n_averaged'"):
        from_state_dict({"step": torch.tensor(1), "n_averaged": torch.tensor(2)})


@pytest.mark.parametrize("value", [torch.tensor(1.0), torch.tensor([1, 2]), torch.ones(3, dtype=torch.int64)])
def test_what_may_enter_outputs_is_no_counter(value: Tensor) -> None:
    with pytest.raises(ValueError, match=r"'step' of shape|'step' has dtype torch.int64"):
        from_state_dict({**network().state_dict(), "step": value})


# == Prefixes ==


@pytest.mark.parametrize("prefix", ["q_net_target.", "q_net_target"])
@pytest.mark.parametrize("wrapper", ["", "module."])
def test_one_of_several_networks(prefix: str, wrapper: str) -> None:
    state = agent()
    space, theta = from_state_dict(under(wrapper)(state), prefix=prefix)
    assert [param.name for param in space.params] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert torch.equal(theta, torch.cat([tensor.flatten() for key, tensor in state.items() if key.startswith("q_net_target.")]))
    # A prefix that is part of a name is none.
    assert len(from_state_dict(state, prefix="q_net")[0].params) == 4
    assert from_state_dict(under(wrapper)(state), prefix=f"{wrapper}q_net")[0] == space


def test_wrapper_below_a_prefix() -> None:
    state = {**under("actor.module.")(network().state_dict()), **under("critic.")(network(4, 8, 1).state_dict())}
    assert from_state_dict(state, prefix="actor")[0] == from_state_dict(network().state_dict())[0]


def test_prefix_that_no_key_has() -> None:
    with pytest.raises(ValueError, match=r"No key of the state dict begins with 'actor.' \(they begin with: 'q_net.', 'q_net_target.'\)"):
        from_state_dict(agent(), prefix="actor")
    with pytest.raises(ValueError, match=r"begins with 'a.' \(they begin with: no prefix\)"):
        from_state_dict({"weight": torch.ones(1, 1)}, prefix="a.")


def test_several_networks_below_a_prefix_are_named_in_full() -> None:
    with pytest.raises(ValueError, match=r"2 networks, under 'agent.q_net.', 'agent.q_net_target.': choose one with prefix='agent.q_net.'"):
        from_state_dict(under("agent.")({key: value for key, value in agent().items() if key != "log_std"}), prefix="agent")


def test_refusals_name_the_chains_below() -> None:
    state = {**nn.ModuleDict({"critic": network(4, 8, 1), "actor_mean": network()}).state_dict(), "actor_logstd": torch.zeros(1, 2)}
    with pytest.raises(ValueError, match=r"'actor_logstd' .* Chains of layers are under 'critic.', 'actor_mean.': prefix='critic.' \(--p"):
        from_state_dict(state)


# == Lists ==


def test_list_of_networks() -> None:
    found = list_networks(agent())
    assert [(entry.prefix, entry.layers, entry.parameters, entry.reason) for entry in found] == [
        ("q_net.", "4-8-2, linear | linear", 58, ""),
        ("q_net_target.", "4-8-2, linear | linear", 58, ""),
    ]
    for entry in found:
        from_state_dict(agent(), prefix=entry.prefix)


def test_list_follows_prefixes_as_deep_as_chains_lie() -> None:
    inner = nn.ModuleDict({"policy_net": network(8, 8, 8), "value_net": network(8, 8, 8)})
    policy = nn.ModuleDict({"mlp_extractor": inner, "action_net": nn.Linear(8, 2), "norm": nn.LayerNorm(8)})
    found = {entry.prefix: entry for entry in list_networks(under("model.")(policy.state_dict()))}
    assert list(found) == ["model.mlp_extractor.policy_net.", "model.mlp_extractor.value_net.", "model.action_net.", "model.norm."]
    assert found["model.action_net."].layers == "8-2, linear"
    assert found["model.norm."].layers == ""
    assert "vectors that scale or normalise" in found["model.norm."].reason


def test_list_of_one_network_and_of_none() -> None:
    assert [(entry.prefix, entry.layers) for entry in list_networks(under("module.")(network().state_dict()))] == [
        ("", "4-8-2, linear | linear")
    ]
    only = list_networks(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2)).state_dict())
    assert [(entry.prefix, entry.layers) for entry in only] == [("", "")]
    assert "'1.weight' of shape [4] does not fit" in only[0].reason
    with pytest.raises(TypeError, match="Expected 'state_dict' to be a mapping"):
        list_networks(network())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="The state dict is empty"):
        list_networks({})


# == Zoos ==


def test_networks_with_and_without_a_wrapper_are_one_architecture(tmp_path: Path) -> None:
    for i, wrap in enumerate(WRAPPED.values()):
        save_file({key: tensor.contiguous() for key, tensor in wrap(network().state_dict()).items()}, tmp_path / f"{i}.safetensors")
    zoo = import_zoo(tmp_path / "zoo", tmp_path, activation="relu")
    assert len(zoo) == len(WRAPPED)
    assert len(zoo.spaces) == 1


def test_zoo_of_one_network_of_every_file(tmp_path: Path) -> None:
    states = [agent() for _ in range(3)]
    for i, state in enumerate(states):
        torch.save(state, tmp_path / f"{i}.pt")
    with pytest.raises(ValueError, match=r"'0.pt', '1.pt', '2.pt': This holds 2 networks, under 'q_net.', 'q_net_target.'"):
        import_zoo(tmp_path / "zoo", tmp_path, activation="relu")
    zoo = import_zoo(tmp_path / "zoo", tmp_path, activation="relu", prefix="q_net")
    assert torch.equal(zoo.thetas[1], from_state_dict(states[1], prefix="q_net")[1])


def test_zoo_of_a_known_space_reads_wrapped_keys(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)).eval()
    for i in range(3):
        torch.save(AveragedModel(module).state_dict(), tmp_path / f"{i}.pt")
    space = trace(module, torch.randn(2, 4))
    zoo = import_zoo(tmp_path / "zoo", tmp_path, space=space)
    assert torch.equal(zoo.thetas[0], space.flatten(module.state_dict()))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.norm, self.decoder = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)
        self.decoder.weight = self.encoder.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.decoder(self.norm(self.encoder(x)).relu())
        return out


def test_zoo_of_tied_networks_reads_wrapped_files_of_one_key(tmp_path: Path) -> None:
    modules = [Tied().eval() for _ in range(3)]
    for i, module in enumerate(modules):
        state = AveragedModel(module).state_dict()
        del state["module.decoder.weight"]
        save_file(dict(state), tmp_path / f"{i}.safetensors")
    space = trace(modules[0], torch.randn(2, 4))
    zoo = import_zoo(tmp_path / "zoo", tmp_path, space=space)
    for theta, module in zip(zoo.thetas, modules, strict=True):
        assert torch.equal(theta, space.flatten(module.state_dict()))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )


def test_zoo_says_once_what_was_assumed(tmp_path: Path) -> None:
    source = tmp_path / "networks"
    source.mkdir()
    for i in range(6):
        torch.save((cnn() if i % 2 else network()).state_dict(), source / f"{i}.pt")
    with pytest.warns(AssumedGeometryWarning, match="Weights do not show stride 1, padding 0, no pooling, global_avg_pool") as caught:
        zoo = import_zoo(tmp_path / "assumed", source, activation="relu")
    assert [warning.category for warning in caught].count(AssumedGeometryWarning) == 1
    assert sorted(len(space.assumed) for space in ZooStore(zoo.path).spaces) == [0, 4]
    options: dict[str, Any] = {"stride": [1, 2], "padding": 1, "pooling": "none", "readout": "global_avg_pool"}
    given = import_zoo(tmp_path / "given", source, activation="relu", **options)
    assert all(not space.assumed for space in given.spaces)
    assert any([layer.stride for layer in space.layers] == [1, 2, 1] for space in given.spaces)
    with pytest.raises(ValueError, match="are for networks whose space is not known; 'space' has its own"):
        import_zoo(tmp_path / "both", source, space=given.spaces[0], stride=2)


@pytest.mark.parametrize("first", ["assumed", "given"])
def test_what_is_assumed_does_not_split_an_architecture(tmp_path: Path, first: str) -> None:
    given = WeightSpace.cnn([1, 4], [2])
    spaces = {"given": given, "assumed": dataclasses.replace(given, assumed=("padding 0",))}
    zoo = ZooStore.create(tmp_path / "zoo", spaces.pop(first), given.sample(2), {})
    for space in (*spaces.values(), given):
        zoo.append(space, given.sample(2), {})
    zoo = ZooStore(tmp_path / "zoo")
    assert len(zoo) == 6
    assert zoo.space == given
    assert zoo.space.assumed == (("padding 0",) if first == "assumed" else ())
    zoo.append(given, given.sample(1), {})
    assert ZooStore(zoo.path).spaces == [given]


# == Commands ==


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_commands_with_prefix_and_entry(tmp_path: Path) -> None:
    path = tmp_path / "agent.pt"
    torch.save({"last": agent(), "best": agent()}, path)
    result = run("info", path)
    assert result.exit_code == 1
    assert "holds several state dicts, 'last', 'best'" in result.stderr
    result = run("info", path, "--entry", "best")
    assert result.exit_code == 1
    assert "under 'q_net.', 'q_net_target.': choose one with prefix='q_net.' (--prefix on the command line)" in result.stderr
    chosen = ("--entry", "best", "--prefix", "q_net", "--activation", "relu")
    for command in (("info", path), ("check", path), ("convert", path, tmp_path / "graph.pt")):
        result = run(*command, *chosen)
        assert result.exit_code == 0, result.output
    assert "WeightSpace(4-8-2, linear | linear, relu, 58 parameters)" in run("info", path, *chosen).stdout


def test_commands_say_what_is_assumed(tmp_path: Path) -> None:
    folder = tmp_path / "networks"
    folder.mkdir()
    path = folder / "cnn.pt"
    torch.save(cnn().state_dict(), path)
    text = (
        "Weights do not show stride 1, padding 0, no pooling, global_avg_pool before the linear layers: this is assumed of WeightSpace(1-4-"
    )
    for command in (("info", path), ("check", path), ("zoo", "import", tmp_path / "zoo", folder)):
        result = run(*command, "--activation", "relu")
        assert result.exit_code == 0, result.output
        assert result.stderr.count(text) == 1
        assert "Say otherwise with --stride, --padding, --pooling and --readout." in result.stderr
    assert run("info", path, "--activation", "relu").stdout.count("Assumed, since weights do not show it: stride 1,") == 1
    given = (
        "--stride",
        "1",
        "--stride",
        "2",
        "--padding",
        "1",
        "--pooling",
        "none",
        "--readout",
        "global_avg_pool",
        "--activation",
        "relu",
    )
    for command in (("info", path), ("check", path), ("zoo", "import", tmp_path / "given", folder)):
        result = run(*command, *given)
        assert result.exit_code == 0, result.output
        assert "ssumed" not in result.output
    assert [layer.stride for layer in ZooStore(tmp_path / "given").space.layers] == [1, 2, 1]
    result = run("info", path, "--module", "builtins:dict", "--stride", "2")
    assert "are for weights without --module; a module has its own" in result.stderr


def test_commands_print_doubts(tmp_path: Path) -> None:
    save_file({"a.weight": torch.ones(4, 4), "b.weight": torch.ones(4, 4)}, tmp_path / "model.safetensors")
    result = run("info", tmp_path / "model.safetensors", "--activation", "relu")
    assert result.exit_code == 0
    assert "Warning: The keys are in alphabetical order" in result.stderr
    assert "StateDictWarning" not in result.stderr


def test_module_with_wrapped_weights(tmp_path: Path) -> None:
    (tmp_path / "made.py").write_text(
        "from torch import nn\n\ndef make():\n    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))\n"
    )
    module = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    torch.save({f"agent.{key}": value for key, value in AveragedModel(module).state_dict().items()}, tmp_path / "model.pt")
    module_options = ("--module", f"{tmp_path / 'made.py'}:make", "--input", "2x4")
    assert run("check", tmp_path / "model.pt", *module_options).exit_code == 1
    result = run("check", tmp_path / "model.pt", *module_options, "--prefix", "agent")
    assert result.exit_code == 0, result.output
