"""Agents in the layout of Stable-Baselines3: a zip archive with settings as JSON, and the weights of the policy."""

import io
import json
import zipfile
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wsgraph import CheckpointError, WeightSpace, load_networks

BOX = {":type:": "<class 'gymnasium.spaces.box.Box'>", ":serialized:": "gAWV", "_shape": [3], "low": "[-1. -1. -8.]"}
DISCRETE = {":type:": "<class 'gymnasium.spaces.discrete.Discrete'>", ":serialized:": "gAWV", "n": "2", "_shape": []}
PPO = ("stable_baselines3.common.policies", "ActorCriticPolicy")
ON_POLICY: dict[str, Any] = {"clip_range": {":type:": "<class 'function'>"}, "gae_lambda": 0.95}


def save(path: Path, state: Mapping[str, Tensor], policy: tuple[str, str] = PPO, settings: Any = None, **data: Any) -> Path:
    module, name = policy
    said = {"__module__": module, "__init__": f"<function {name}.__init__ at 0x7f8a>", ":serialized:": "gAWV"}
    content = {
        "policy_class": said,
        "policy_kwargs": settings or {},
        "observation_space": BOX,
        "action_space": DISCRETE,
        "gamma": 0.99,
        "_n_updates": 7,
        **data,
    }
    weights = io.BytesIO()
    torch.save(dict(state), weights)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", json.dumps(content))
        archive.writestr("policy.pth", weights.getvalue())
        archive.writestr("policy.optimizer.pth", b"never read")
    return path


def layers(*sizes: int, act: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    """Linear layers with an activation behind each."""
    parts = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), act())]
    return nn.Sequential(*parts)


def actor_critic(act: type[nn.Module] = nn.Tanh) -> nn.ModuleDict:
    extractor = nn.ModuleDict({"policy_net": layers(3, 8, 8, act=act), "value_net": layers(3, 6, act=act)})
    return nn.ModuleDict({"mlp_extractor": extractor, "action_net": nn.Linear(8, 2), "value_net": nn.Linear(6, 1)})


def outputs(network: Any, x: Tensor) -> Tensor:
    found: Tensor = network.space.evaluate(network.theta[None], x)[0]
    return found


@pytest.mark.parametrize(
    ("settings", "act", "source"),
    [
        ({}, nn.Tanh, "default of ActorCriticPolicy"),
        ({":type:": "<class 'dict'>", "activation_fn": "<class 'torch.nn.modules.activation.ELU'>"}, nn.ELU, "policy_kwargs"),
    ],
)
def test_policy_and_value_compute_what_the_agent_computes(
    tmp_path: Path, settings: dict[str, Any], act: type[nn.Module], source: str
) -> None:
    agent: Any = actor_critic(act)
    state = {"log_std": torch.zeros(2), **agent.state_dict()}
    policy, value = load_networks(save(tmp_path / "a.zip", state, settings=settings, **ON_POLICY))
    x = torch.randn(9, 3)
    assert torch.allclose(outputs(policy, x), agent["action_net"](agent["mlp_extractor"]["policy_net"](x)), atol=1e-6)
    assert torch.allclose(outputs(value, x), agent["value_net"](agent["mlp_extractor"]["value_net"](x)), atol=1e-6)
    assert policy.space == WeightSpace.mlp([3, 8, 8, 2], act())  # the same space as of any other MLP
    info = policy.info
    assert (policy.name, value.name, info["algorithm"]) == ("policy", "value", "ppo")
    assert info["activation_from"] == source
    assert info["action_space"] == {"type": "Discrete", "shape": [], "n": 2}
    assert info["observation_space"] == {"type": "Box", "shape": [3]}
    assert info["hyperparameters"] == {"gae_lambda": 0.95, "gamma": 0.99}
    assert info["left_out"] == ["log_std"]
    back = {policy.keys[name]: tensor for name, tensor in policy.space.unflatten(policy.theta).items()}
    assert all(torch.equal(tensor, state[key]) for key, tensor in back.items())
    assert json.loads(json.dumps(info)) == info


MASKABLE = ("sb3_contrib.common.maskable.policies", "MaskableActorCriticPolicy")


@pytest.mark.parametrize(
    ("policy", "marks", "algorithm"),
    [
        (PPO, {"gae_lambda": 1.0}, "a2c"),
        (PPO, {"gae_lambda": 1.0, "cg_max_steps": 15}, "trpo"),
        (PPO, {}, ""),
        (MASKABLE, ON_POLICY, "maskable_ppo"),
    ],
)
def test_algorithms_that_share_a_policy_are_told_apart(
    tmp_path: Path, policy: tuple[str, str], marks: dict[str, Any], algorithm: str
) -> None:
    first, _ = load_networks(save(tmp_path / "a.zip", actor_critic().state_dict(), policy, **marks))
    assert first.info["algorithm"] == algorithm


def test_layers_that_policy_and_value_share_are_read_in_both(tmp_path: Path) -> None:
    agent: Any = actor_critic()
    agent["mlp_extractor"]["shared_net"] = layers(3, 3)
    policy, value = load_networks(save(tmp_path / "a.zip", agent.state_dict()))
    assert repr(policy.space).startswith("WeightSpace(3-3-8-8-2")
    assert repr(value.space).startswith("WeightSpace(3-3-6-1")


@pytest.mark.parametrize(
    ("parent", "module", "role", "policy"),
    [
        ("q_net", "q_net", "q", ("stable_baselines3.dqn.policies", "DQNPolicy")),
        ("quantile_net", "quantile_net", "quantiles", ("sb3_contrib.qrdqn.policies", "QRDQNPolicy")),
    ],
)
def test_value_networks_and_their_targets(tmp_path: Path, parent: str, module: str, role: str, policy: tuple[str, str]) -> None:
    net, target = nn.Sequential(*layers(3, 8, act=nn.ReLU), nn.Linear(8, 4)), nn.Sequential(*layers(3, 8), nn.Linear(8, 4))
    state = {f"{parent}.{module}.{key}": value for key, value in net.state_dict().items()}
    state |= {f"{parent}_target.{module}.{key}": value for key, value in target.state_dict().items()}
    found = load_networks(save(tmp_path / "a.zip", state, policy))
    assert [entry.name for entry in found] == [role, f"{role}_target"]
    x = torch.randn(5, 3)
    assert torch.allclose(outputs(found[0], x), net(x), atol=1e-6)
    assert found[0].info["algorithm"] == policy[0].split(".")[1]
    assert found[1].theta.equal(torch.cat([value.flatten() for value in target.state_dict().values()]))


def continuous(critics: int, *, latent: bool, **options: Any) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for end in ("", "_target"):
        if latent and not end:
            actor = {"latent_pi": layers(3, 8, act=nn.ReLU), "mu": nn.Linear(8, 1), "log_std": nn.Linear(8, 1)}
        elif not latent:
            actor = {"mu": nn.Sequential(*layers(3, 8, act=nn.ReLU), nn.Linear(8, 1))}
        else:
            actor = {}
        state |= {f"actor{end}.{key}": value for key, value in nn.ModuleDict(actor).state_dict().items()}
        qs = {f"qf{i}": nn.Sequential(*layers(4, 8, act=nn.ReLU), nn.Linear(8, 1)) for i in range(critics)}
        state |= {f"critic{end}.{key}": value for key, value in nn.ModuleDict(qs).state_dict().items()}
    return state


@pytest.mark.parametrize(
    ("algorithm", "critics", "settings", "transform"),
    [
        ("sac", 2, {}, ["tanh"]),
        ("tqc", 3, {"use_sde": True, "clip_mean": 1.5}, ["clip(-1.5, 1.5)", "tanh"]),
        ("td3", 2, {}, ["tanh"]),
        ("ddpg", 1, {"n_critics": 1}, ["tanh"]),
    ],
)
def test_actors_and_critics(tmp_path: Path, algorithm: str, critics: int, settings: dict[str, Any], transform: list[str]) -> None:
    latent = algorithm in ("sac", "tqc")
    module = {"sac": "stable_baselines3.sac", "tqc": "sb3_contrib.tqc"}.get(algorithm, "stable_baselines3.td3")
    state = continuous(critics, latent=latent)
    found = load_networks(save(tmp_path / "a.zip", state, (f"{module}.policies", "Policy"), settings, action_space=BOX))
    names = ["policy", *([] if latent else ["policy_target"])]
    names += [f"q{i + 1}{end}" for end in ("", "_target") for i in range(critics)]
    assert [entry.name for entry in found] == names
    assert found[0].info["output_transform"] == transform
    assert found[0].info["algorithm"] == algorithm
    assert "output_transform" not in found[-1].info
    assert found[0].info["left_out"] == (["actor.log_std.weight", "actor.log_std.bias"] if latent else [])
    (last,) = load_networks(tmp_path / "a.zip", network=f"q{critics}_target")
    x, weights = torch.randn(5, 4), [state[f"critic_target.qf{critics - 1}.{i}.weight"] for i in (0, 2)]
    biases = [state[f"critic_target.qf{critics - 1}.{i}.bias"] for i in (0, 2)]
    expected = torch.relu(x @ weights[0].T + biases[0]) @ weights[1].T + biases[1]
    assert torch.allclose(outputs(last, x), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "state", "space", "transform"),
    [
        ("ARSLinearPolicy", {"action_net.weight": torch.ones(1, 3)}, BOX, []),
        ("ARSPolicy", nn.ModuleDict({"action_net": nn.Sequential(*layers(3, 4), nn.Linear(4, 1))}).state_dict(), BOX, ["tanh"]),
        ("ARSPolicy", nn.ModuleDict({"action_net": nn.Sequential(*layers(3, 4), nn.Linear(4, 2))}).state_dict(), DISCRETE, []),
    ],
)
def test_random_search(tmp_path: Path, name: str, state: dict[str, Tensor], space: dict[str, Any], transform: list[str]) -> None:
    (found,) = load_networks(save(tmp_path / "a.zip", state, ("sb3_contrib.ars.policies", name), action_space=space))
    assert (found.name, found.info["algorithm"], found.info["output_transform"]) == ("policy", "ars", transform)
    assert found.space.num_params == sum(value.numel() for value in state.values())


def nature(positions: int = 4) -> nn.ModuleDict:
    convolutions = [nn.Conv2d(1, 4, 8, 4), nn.ReLU(), nn.Conv2d(4, 4, 4, 2), nn.ReLU(), nn.Conv2d(4, 4, 3, 1), nn.ReLU(), nn.Flatten()]
    return nn.ModuleDict({"cnn": nn.Sequential(*convolutions), "linear": nn.Sequential(nn.Linear(4 * positions, 6), nn.ReLU())})


@pytest.mark.parametrize(("size", "positions"), [(44, 4), (36, 1)])
def test_an_extractor_that_is_listed_thrice_is_one(tmp_path: Path, size: int, positions: int) -> None:
    extractor: Any = nature(positions)
    heads: Any = nn.ModuleDict({"action_net": nn.Linear(6, 2), "value_net": nn.Linear(6, 1)})
    names = ("features_extractor", "pi_features_extractor", "vf_features_extractor")
    state = {f"{name}.{key}": value for name in names for key, value in extractor.state_dict().items()} | heads.state_dict()
    policy, value = load_networks(save(tmp_path / "a.zip", state, (PPO[0], "ActorCriticCnnPolicy"), **ON_POLICY))
    images = torch.rand(2, 1, size, size)
    assert torch.allclose(outputs(policy, images), heads["action_net"](extractor["linear"](extractor["cnn"](images))), atol=1e-6)
    assert policy.space.num_params == sum(p.numel() for p in extractor.parameters()) + 14
    assert policy.info["extractor_shared_with"] == ["value"]
    assert policy.info["input_scale"] == 1 / 255
    assert not policy.space.assumed
    # Each with one of its own, and none shared.
    state |= {f"vf_features_extractor.{key}": value + 1 for key, value in extractor.state_dict().items()}
    policy, value = load_networks(save(tmp_path / "a.zip", state))
    assert policy.info["extractor_shared_with"] == value.info["extractor_shared_with"] == []


def test_critics_of_images_read_actions_beside_the_features(tmp_path: Path) -> None:
    extractor: Any = nature()
    critic: Any = nn.Sequential(*layers(6 + 2, 8, act=nn.ReLU), nn.Linear(8, 1))
    actor = nn.ModuleDict({"features_extractor": extractor, "latent_pi": layers(6, 8), "mu": nn.Linear(8, 2)})
    state = {f"actor.{key}": value for key, value in actor.state_dict().items()}
    both = nn.ModuleDict({"features_extractor": extractor, "qf0": critic})
    state |= {f"critic{end}.{key}": value for end in ("", "_target") for key, value in both.state_dict().items()}
    images = {**BOX, "_shape": [44, 44, 1]}
    policy = ("stable_baselines3.sac.policies", "CnnPolicy")
    path = save(tmp_path / "a.zip", state, policy, {"normalize_images": False}, observation_space=images)
    found = {entry.name: entry for entry in load_networks(path)}
    x, actions = torch.rand(3, 1, 44, 44), torch.randn(3, 2)
    expected = critic(torch.cat([extractor["linear"](extractor["cnn"](x)), actions], 1))
    assert torch.allclose(found["q1"].space.evaluate(found["q1"].theta[None], x, actions)[0], expected, atol=1e-6)
    assert found["q1"].info["extractor_shared_with"] == ["policy"]  # and not with its target, which is only equal
    assert found["q1"].info["input_scale"] == 1.0
    back = {found["q1"].keys[name]: value for name, value in found["q1"].space.unflatten(found["q1"].theta).items()}
    assert all(torch.equal(value, state[key]) for key, value in back.items())
    with pytest.raises(CheckpointError, match=r"observations have the shape \[3\], which are no images of 1 channels"):
        load_networks(save(path, state, policy))


def test_what_is_not_known_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path, state = tmp_path / "a.zip", actor_critic().state_dict()
    cases: list[tuple[Mapping[str, Tensor], dict[str, Any], str]] = [
        (state, {"policy": ("__main__", "MyPolicy")}, r"class '__main__.MyPolicy', whose activation .* activation=torch.nn.ReLU"),
        (state, {"settings": {"activation_fn": "<function f at 0x7>"}}, r"activation '<function f at 0x7>' is not known: give it"),
        ({**state, "lstm_actor.weight_hh_l0": torch.ones(4, 4)}, {}, "'lstm_actor.weight_hh_l0' .* belongs to no network that is known"),
        ({**state, "mlp_extractor.policy_net.1.weight": torch.ones(8)}, {}, "'mlp_extractor.policy_net.1.weight' .* no linear layer"),
        ({**state, "mlp_extractor.policy_net.5.weight": torch.ones(8, 8)}, {}, r"numbered \[0, 2, 5\], not 0, 2, 4"),
        ({**state, "features_extractor.extractors.vec.weight": torch.ones(8, 8)}, {}, "'features_extractor' is no NatureCNN"),
        ({"net.weight": torch.ones(2, 2)}, {}, r"a.zip' has no networks that are known \(keys such as 'net.weight'\)"),
    ]
    for weights, options, message in cases:
        with pytest.raises(CheckpointError, match=message):
            load_networks(save(path, weights, **options))
    found = load_networks(save(path, state, ("__main__", "MyPolicy")), activation=nn.ReLU)
    assert found[0].info["activation_from"] == "argument"
    mine = {f"features_extractor.{key}": value for key, value in nature().state_dict().items()}
    mine |= {"action_net.weight": torch.ones(2, 6), "value_net.weight": torch.ones(1, 6)}
    with pytest.raises(CheckpointError, match=r"extractor of features is of the class <class 'mine.Net'>"):
        load_networks(save(path, mine, settings={"features_extractor_class": "<class 'mine.Net'>"}))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", "[]")
        archive.writestr("policy.pth", b"no tensors")
    with pytest.raises(CheckpointError, match=r"policy.pth' is damaged or was not written by torch.save"):
        load_networks(path)
