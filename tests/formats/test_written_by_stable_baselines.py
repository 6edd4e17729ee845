"""Agents that Stable-Baselines3 itself saved, which CI installs for these tests alone: the same outputs as the library's own."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wsgraph import load_networks

pytestmark = [
    pytest.mark.skipif(find_spec("sb3_contrib") is None, reason="stable_baselines3 and sb3_contrib are not installed"),
    pytest.mark.filterwarnings("ignore"),
]


def agent(algorithm: str, policy: str = "MlpPolicy", **options: Any) -> Any:
    import gymnasium
    import sb3_contrib
    import stable_baselines3

    boxes, images = gymnasium.spaces.Box(-1, 1, (3,), np.float32), gymnasium.spaces.Box(0, 255, (2, 44, 44), np.uint8)
    continuous = algorithm in ("SAC", "TQC", "TD3", "DDPG", "ARS")

    class Env(gymnasium.Env[Any, Any]):
        observation_space = images if policy == "CnnPolicy" else boxes
        action_space = gymnasium.spaces.Box(-2, 2, (2,), np.float32) if continuous else gymnasium.spaces.Discrete(4)

    torch.manual_seed(0)
    made = getattr(stable_baselines3, algorithm, None) or getattr(sb3_contrib, algorithm)
    settings = {"net_arch": [8, 7], **options.pop("policy_kwargs", {})}
    if policy == "CnnPolicy" and algorithm != "PPO":
        options["buffer_size"] = 10
    model = made(policy, Env(), device="cpu", policy_kwargs=settings, **options)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def read(model: Any, folder: Path) -> dict[str, Any]:
    model.save(folder / "agent.zip")
    return {network.name: network for network in load_networks(folder / "agent.zip")}


def outputs(network: Any, *inputs: Tensor) -> Tensor:
    found: Tensor = network.space.evaluate(network.theta[None], *inputs)[0]
    return found


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert expected.abs().max() > 1e-3
    assert torch.allclose(found, expected.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("algorithm", ["A2C", "PPO", "TRPO", "MaskablePPO"])
def test_policies_and_values(algorithm: str, tmp_path: Path) -> None:
    options = {"activation_fn": nn.ELU} if algorithm == "PPO" else {}
    model, x = agent(algorithm, policy_kwargs=options), torch.randn(5, 3)
    networks = read(model, tmp_path)
    assert set(networks) == {"policy", "value"}
    assert networks["policy"].info["algorithm"] == {"MaskablePPO": "maskable_ppo"}.get(algorithm, algorithm.lower())
    logits = torch.log_softmax(outputs(networks["policy"], x), 1)
    assert_close(logits, torch.log_softmax(model.policy.get_distribution(x).distribution.logits, 1))
    assert_close(outputs(networks["value"], x), model.policy.predict_values(x))


@pytest.mark.parametrize("algorithm", ["SAC", "TQC", "TD3", "DDPG"])
def test_actors_and_critics(algorithm: str, tmp_path: Path) -> None:
    model, x, actions = agent(algorithm), torch.randn(5, 3), torch.randn(5, 2)
    networks = read(model, tmp_path)
    policy = networks["policy"]
    assert policy.info["algorithm"] == algorithm.lower()
    assert policy.info["output_transform"] == ["tanh"]
    assert_close(torch.tanh(outputs(policy, x)), model.actor(x, deterministic=True) if algorithm in ("SAC", "TQC") else model.actor(x))
    for end, critic in (("", model.critic), ("_target", model.critic_target)):
        expected = critic(x, actions)
        expected = expected.unbind(1) if algorithm == "TQC" else expected
        for i, value in enumerate(expected):
            assert_close(outputs(networks[f"q{i + 1}{end}"], torch.cat([x, actions], 1)), value)
    assert f"q{len(expected) + 1}" not in networks


@pytest.mark.parametrize("algorithm", ["DQN", "QRDQN"])
def test_values_of_actions(algorithm: str, tmp_path: Path) -> None:
    model, x = agent(algorithm), torch.randn(5, 3)
    networks = read(model, tmp_path)
    name, net = ("q", model.policy.q_net) if algorithm == "DQN" else ("quantiles", model.policy.quantile_net)
    assert set(networks) == {name, f"{name}_target"}
    assert_close(outputs(networks[name], x).reshape(net(x).shape), net(x))


def test_random_search(tmp_path: Path) -> None:
    model, x = agent("ARS"), torch.randn(5, 3)
    networks = read(model, tmp_path)
    assert networks["policy"].info["output_transform"] == ["tanh"]
    assert_close(torch.tanh(outputs(networks["policy"], x)), model.policy(x))


@pytest.mark.parametrize("shared", [True, False])
def test_policies_and_values_of_images(shared: bool, tmp_path: Path) -> None:
    model = agent("PPO", "CnnPolicy", policy_kwargs={"share_features_extractor": shared})
    networks, images = read(model, tmp_path), torch.randint(0, 256, (3, 2, 44, 44))
    policy, value = networks["policy"], networks["value"]
    assert policy.info["extractor_shared_with"] == (["value"] if shared else [])
    scaled = images * policy.info["input_scale"]
    expected = model.policy.get_distribution(images).distribution.logits
    assert_close(torch.log_softmax(outputs(policy, scaled), 1), expected)
    assert_close(outputs(value, scaled), model.policy.predict_values(images))


def test_critics_of_images_read_actions_beside_them(tmp_path: Path) -> None:
    model = agent("SAC", "CnnPolicy", policy_kwargs={"share_features_extractor": True})
    networks, images, actions = read(model, tmp_path), torch.randint(0, 256, (3, 2, 44, 44)), torch.randn(3, 2)
    assert networks["policy"].info["extractor_shared_with"] == ["q1", "q2"]
    scaled = images * networks["q2"].info["input_scale"]
    assert_close(outputs(networks["q2"], scaled, actions), model.critic(images, actions)[1])
    assert_close(outputs(networks["q1_target"], scaled, actions), model.critic_target(images, actions)[0])
