"""Agents of Stable-Baselines3 and its contributed algorithms: every network of theirs, by its role."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wsgraph.convert.errors import CheckpointError, UnknownActivationError
from wsgraph.convert.formats.archive import has_members, parsed_json, read_members
from wsgraph.convert.formats.entry import FileNetwork, register_format
from wsgraph.convert.state_dict import read_network
from wsgraph.convert.tracing import trace
from wsgraph.convert.unpickle import read_inert
from wsgraph.operators import OPERATORS, apply_operator, written_operator
from wsgraph.space import WeightSpace

__all__ = ["read_agent"]

_DATA, _WEIGHTS = "data", "policy.pth"
_OURS = re.compile(r"(?:stable_baselines3|sb3_contrib)\.")
_ADVICE = "Load it with its library and trace the network that you mean, with wsgraph.trace."
# The convolutional extractor of the library: number, kernel and stride of its convolutions, and its linear layer.
_CONVOLUTIONS = (("cnn.0", 8, 4), ("cnn.2", 4, 2), ("cnn.4", 3, 1))
_LINEAR = "linear.0"


@dataclass(frozen=True)
class _Role:
    """A network of an agent, ``{}`` in whose name is a number: its extractor of features and then its modules."""

    name: str
    extractors: tuple[str, ...]
    modules: tuple[str, ...]


@dataclass(frozen=True)
class _Family:
    """Policies with the same modules: those that tell them apart, what they have by default, what follows their outputs."""

    needs: tuple[str, ...]
    activation: type[nn.Module]
    roles: tuple[_Role, ...]
    output_transform: Callable[[_Agent], list[str]] = lambda agent: []


@dataclass(frozen=True)
class _Agent:
    """What a file holds: its weights, and what can be read of its settings."""

    state: dict[str, Tensor]
    data: Mapping[str, Any]
    policy_class: str

    @property
    def settings(self) -> Mapping[str, Any]:
        found = self.data.get("policy_kwargs")
        return found if isinstance(found, Mapping) else {}

    def has(self, module: str) -> bool:
        return any(key.startswith(f"{module}.") for key in self.state)


# == Families of policies ==


def _squashed(agent: _Agent) -> list[str]:
    clip = agent.settings.get("clip_mean", 2.0)
    explores = agent.has("actor.latent_pi") and bool(agent.data.get("use_sde") or agent.settings.get("use_sde"))
    return [*([f"clip({-clip:g}, {clip:g})"] if explores and clip > 0 else []), "tanh"]


def _squashed_on_demand(agent: _Agent) -> list[str]:
    return ["tanh"] if agent.settings.get("squash_output") else []


def _squashed_if_continuous(agent: _Agent) -> list[str]:
    linear = agent.policy_class.endswith(".ARSLinearPolicy")
    continuous = _space(agent.data.get("action_space")).get("type") == "Box"
    return ["tanh"] if continuous and not linear and agent.settings.get("squash_output", True) else []


def _with_target(name: str, parent: str, *modules: str) -> tuple[_Role, _Role]:
    """A network and its slow copy, which lie in two modules of the policy."""
    live, target = (
        _Role(f"{name}{end}", (f"{parent}{end}.features_extractor",), tuple(f"{parent}{end}.{module}" for module in modules))
        for end in ("", "_target")
    )
    return live, target


_FAMILIES = (
    _Family(
        ("action_net", "value_net"),
        nn.Tanh,
        (
            _Role(
                "policy",
                ("pi_features_extractor", "features_extractor"),
                ("mlp_extractor.shared_net", "mlp_extractor.policy_net", "action_net"),
            ),
            _Role(
                "value",
                ("vf_features_extractor", "features_extractor"),
                ("mlp_extractor.shared_net", "mlp_extractor.value_net", "value_net"),
            ),
        ),
        _squashed_on_demand,
    ),
    _Family(("q_net.q_net",), nn.ReLU, _with_target("q", "q_net", "q_net")),
    _Family(("quantile_net.quantile_net",), nn.ReLU, _with_target("quantiles", "quantile_net", "quantile_net")),
    _Family(
        ("actor.mu", "critic.qf0"),
        nn.ReLU,
        (*_with_target("policy", "actor", "latent_pi", "mu"), *_with_target("q{}", "critic", "qf{}")),
        _squashed,
    ),
    _Family(("action_net",), nn.ReLU, (_Role("policy", ("features_extractor",), ("action_net",)),), _squashed_if_continuous),
)


# == Reading ==


def _is_agent(path: Path) -> bool:
    return has_members(path, (_DATA, _WEIGHTS))


@register_format("Stable-Baselines3", (".zip",), _is_agent)
def read_agent(path: Path, *, activation: str | type[nn.Module] | nn.Module | None = None) -> list[FileNetwork]:
    """An agent of Stable-Baselines3, with its policy, value and Q networks.

    Args:
        path: The file that ``model.save`` wrote.
        activation: Activation of hidden layers where the file does not say it, or says it of a class that is not known here.

    Returns:
        The networks by role: ``policy`` and ``value``; ``q``, ``q1``, ``quantiles`` with their ``_target``.
    """
    agent = _open_agent(path)
    family = next((entry for entry in _FAMILIES if all(agent.has(module) for module in entry.needs)), None)
    if family is None:
        raise CheckpointError(f"{str(path)!r} has no networks that are known (keys such as {_listed(agent.state)}). {_ADVICE}")
    function, source = _activation(agent, family, activation)
    info = {**_facts(agent), "activation": function, "activation_from": source}
    read: set[str] = set()
    chains = []
    for role in family.roles:
        for number in range(len(agent.state)):
            modules = [module.format(number) for module in role.modules]
            if not agent.has(modules[-1]):
                break
            extractor = next((name for name in role.extractors if agent.has(name)), None)
            layers = _layers(agent, extractor, modules)
            read.update(key for layer in layers for key in layer)
            chains.append((role.name.format(number + 1), extractor, layers))
            if modules == list(role.modules):
                break
    left_out = _check_rest(agent, read)
    networks = []
    for name, extractor, layers in chains:
        network = _chain if extractor is None or _is_chain(agent, layers) else _with_actions
        space, theta, keys = network(agent, layers, extractor, function)
        own = {**info, "left_out": left_out}
        if name.startswith("policy"):
            own["output_transform"] = family.output_transform(agent)
        if extractor is not None:
            own["input_scale"] = 1.0 if agent.settings.get("normalize_images") is False else 1 / 255
            own["extractor_shared_with"] = [
                other for other, _, rest in chains if other != name and _share(agent, (name, layers), (other, rest))
            ]
        networks.append(FileNetwork(name, space, theta, own, keys))
    return networks


def _open_agent(path: Path) -> _Agent:
    text, weights = read_members(path, _DATA, _WEIGHTS)
    data, state = parsed_json(text, path, _DATA), read_inert(weights, f"{path}/{_WEIGHTS}")
    plain = isinstance(state, Mapping) and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items())
    if not isinstance(data, Mapping) or not plain or not state:
        wrong = f"{_WEIGHTS!r} to be a state dict" if isinstance(data, Mapping) else f"{_DATA!r} to be a JSON object"
        raise CheckpointError(f"Expected {wrong} in {str(path)!r}. {_ADVICE}")
    policy = data.get("policy_class")
    policy = policy if isinstance(policy, Mapping) else {}
    found = re.match(r"<function (\w+)\.__init__ at", str(policy.get("__init__", "")))
    module = str(policy.get("__module__", ""))
    return _Agent({key: value.detach() for key, value in state.items()}, data, f"{module}.{found[1]}" if found and module else module)


def _activation(agent: _Agent, family: _Family, given: Any) -> tuple[str, str]:
    """The activation as spaces write it, and what says so."""
    if given is not None:
        return written_operator(given), "argument"
    if (written := agent.settings.get("activation_fn")) is not None:
        known = {f"<class '{cls.__module__}.{cls.__name__}'>": cls for entry in OPERATORS.values() for cls in entry.modules}
        if written not in known:
            message = f"its activation {written!r} is not known: give it with activation=, such as activation=torch.nn.ReLU."
            raise UnknownActivationError(message, str(written))
        return written_operator(known[written]), "policy_kwargs"
    if not _OURS.match(agent.policy_class):
        raise UnknownActivationError(
            f"its policy is of the class {agent.policy_class or 'unknown'!r}, whose activation the file does not say: give it with "
            "activation=, such as activation=torch.nn.ReLU."
        )
    return written_operator(family.activation), f"default of {agent.policy_class.rpartition('.')[2]}"


# == Layers ==


def _layers(agent: _Agent, extractor: str | None, modules: list[str]) -> list[tuple[str, ...]]:
    """Keys of weight and bias of each layer, from the inputs to the outputs."""
    layers = _extractor_layers(agent, extractor) if extractor else []
    if not extractor and any("features_extractor." in key for key in agent.state):
        raise ValueError(f"it has an extractor of features, but none for {modules[-1]!r}. {_ADVICE}")
    for module in modules:
        numbers: dict[int, dict[str, str]] = {}
        for key in agent.state:
            if not key.startswith(f"{module}."):
                continue
            found = re.fullmatch(r"(?:(\d+)\.)?(weight|bias)", key[len(module) + 1 :])
            if not found or agent.state[key].ndim != (2 if found[2] == "weight" else 1):
                raise ValueError(f"{key!r} of shape {list(agent.state[key].shape)} belongs to no linear layer. {_ADVICE}")
            numbers.setdefault(int(found[1] or 0), {})[found[2]] = key
        # An activation lies between two layers.
        if sorted(numbers) != list(range(0, 2 * len(numbers), 2)) or any("weight" not in layer for layer in numbers.values()):
            raise ValueError(f"the layers of {module!r} are numbered {sorted(numbers)}, not 0, 2, 4 as in this library. {_ADVICE}")
        layers += [tuple(numbers[number][name] for name in ("weight", "bias") if name in numbers[number]) for number in sorted(numbers)]
    return layers


def _extractor_layers(agent: _Agent, extractor: str) -> list[tuple[str, ...]]:
    named = str(agent.settings.get("features_extractor_class", "NatureCNN"))
    layers = [tuple(f"{extractor}.{name}.{kind}" for kind in ("weight", "bias")) for name, *_ in (*_CONVOLUTIONS, (_LINEAR,))]
    stored = {key for key in agent.state if key.startswith(f"{extractor}.")}
    kernels = [tuple(agent.state[layer[0]].shape[2:]) for layer in layers[:-1] if layer[0] in stored]
    if stored != {key for layer in layers for key in layer} or kernels != [(size, size) for _, size, _ in _CONVOLUTIONS]:
        raise ValueError(f"its extractor of features {extractor!r} is no NatureCNN (it holds {_listed(stored)}). {_ADVICE}")
    if not re.search(r"\bNatureCNN\b", named):
        raise ValueError(f"its extractor of features is of the class {named}, which is not known here. {_ADVICE}")
    return layers


def _chain(
    agent: _Agent, layers: list[tuple[str, ...]], extractor: str | None, activation: str
) -> tuple[WeightSpace, Tensor, dict[str, str]]:
    """Space and weights of a chain of layers, and the keys of the file by those of the space."""
    keys = {f"layers.{i}.{key.rpartition('.')[2]}": key for i, layer in enumerate(layers) for key in layer}
    extracting = len(_CONVOLUTIONS) + 1 if extractor else 0
    activations = [written_operator(nn.ReLU)] * extracting + [activation] * (len(layers) - 1 - extracting)
    options: dict[str, Any] = {"stride": [stride for *_, stride in _CONVOLUTIONS], "padding": 0, "pooling": "none"} if extractor else {}
    space, theta = read_network({name: agent.state[key] for name, key in keys.items()}, activations, **options)
    # Of a single position, flattening and pooling are the same.
    return dataclasses.replace(space, assumed=()), theta, keys


def _is_chain(agent: _Agent, layers: list[tuple[str, ...]]) -> bool:
    """Whether the layer behind the extractor reads its features alone, and not the actions beside them."""
    features, head = (agent.state[layers[len(_CONVOLUTIONS) + i][0]] for i in range(2))
    return head.shape[1] == features.shape[0]


class _Activation(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return apply_operator(self.name, x)


class _FeaturesAndActions(nn.Module):
    """A network that reads features of images, and actions beside them."""

    def __init__(self, extractor: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.extractor, self.head = extractor, head

    def forward(self, images: Tensor, actions: Tensor) -> Tensor:
        result: Tensor = self.head(torch.cat([self.extractor(images), actions], 1))
        return result


def _with_actions(
    agent: _Agent, layers: list[tuple[str, ...]], extractor: str | None, activation: str
) -> tuple[WeightSpace, Tensor, dict[str, str]]:
    """The network of values of actions in images, which is no chain: its inputs are images and actions."""
    shape = _space(agent.data.get("observation_space")).get("shape", [])
    channels = agent.state[layers[0][0]].shape[1]
    if len(shape) != 3 or channels not in (shape[0], shape[-1]):
        raise ValueError(f"its observations have the shape {shape or 'unknown'}, which are no images of {channels} channels. {_ADVICE}")
    image = shape if shape[0] == channels else [shape[-1], *shape[:-1]]
    count = len(_CONVOLUTIONS) + 1
    modules: list[list[nn.Module]] = []
    for i, layer in enumerate(layers):
        weight = agent.state[layer[0]]
        if i < count - 1:
            outputs, inputs, size, _ = weight.shape
            module: nn.Module = nn.Conv2d(inputs, outputs, size, _CONVOLUTIONS[i][2], device="meta")
        else:
            module = nn.Linear(weight.shape[1], weight.shape[0], bias=len(layer) > 1, device="meta")
        module.load_state_dict({key.rpartition(".")[2]: agent.state[key] for key in layer}, assign=True)
        acts = [nn.ReLU()] if i < count else [_Activation(activation)] if i + 1 < len(layers) else []
        modules.append([module, *acts, *([nn.Flatten()] if i + 2 == count else [])])
    halves = [nn.Sequential(*(module for part in half for module in part)) for half in (modules[:count], modules[count:])]
    network = _FeaturesAndActions(*halves).eval()
    actions = agent.state[layers[count][0]].shape[1] - agent.state[layers[count - 1][0]].shape[0]
    dtype = agent.state[layers[0][0]].dtype
    space = trace(network, torch.zeros([2, *image], dtype=dtype), torch.zeros([2, actions], dtype=dtype))
    state = network.state_dict()
    keys = dict(zip(state, (key for layer in layers for key in layer), strict=True))
    return space, space.flatten(state), keys


def _share(agent: _Agent, first: tuple[str, list[tuple[str, ...]]], second: tuple[str, list[tuple[str, ...]]]) -> bool:
    """Whether two networks, of which one has an extractor, read it from one module; a network and its target may only be equal."""
    (name, layers), (other, others) = first, second
    pairs = list(zip(layers, others, strict=False))[: len(_CONVOLUTIONS) + 1]
    equal = (_is_equal(agent.state[one], agent.state[two]) for pair in pairs for one, two in zip(*pair, strict=False))
    return name.endswith("_target") == other.endswith("_target") and all(equal)


def _check_rest(agent: _Agent, read: set[str]) -> list[str]:
    """Keys that belong to no network, such as standard deviations; raises where they are of a network that is not known."""
    left_out = []
    for key in (key for key in agent.state if key not in read):
        module, _, name = key.rpartition("features_extractor.")
        twins = [other for other in read if name and other.rpartition("features_extractor.")[2] == name]
        if module or name != key:
            if any(_is_equal(agent.state[key], agent.state[other]) for other in twins):
                continue  # one extractor that several modules list
        elif re.search(r"(?:^|\.)log_std(?:\.|$)", key):
            left_out.append(key)
            continue
        raise ValueError(f"{key!r} of shape {list(agent.state[key].shape)} belongs to no network that is known. {_ADVICE}")
    return left_out


def _is_equal(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and torch.equal(first, second)


def _listed(names: Any) -> str:
    names = sorted(names)
    return ", ".join(map(repr, names[:4])) + (" ..." if len(names) > 4 else "")


# == Settings ==


def _facts(agent: _Agent) -> dict[str, Any]:
    plain = {key: value for key, value in agent.data.items() if not key.startswith("_") and isinstance(value, bool | int | float | str)}
    return {
        "algorithm": _algorithm(agent),
        "policy_class": agent.policy_class,
        "observation_space": _space(agent.data.get("observation_space")),
        "action_space": _space(agent.data.get("action_space")),
        "hyperparameters": plain,
    }


def _algorithm(agent: _Agent) -> str:
    """The algorithm: where its policy lies, or what only it has where algorithms share a policy."""
    found = re.match(r"(?:stable_baselines3|sb3_contrib)\.(?:common\.)?(\w+)\.", agent.policy_class + ".")
    name = found[1] if found else ""
    marks = {"cg_max_steps": "trpo", "clip_range": "ppo", "gae_lambda": "a2c"}
    shared = next((algorithm for mark, algorithm in marks.items() if mark in agent.data), "")
    if ".common." in agent.policy_class:
        return shared if name == "policies" else f"{name}_{shared}"
    if name == "td3" and agent.settings.get("n_critics") == 1:
        return "ddpg"
    return name


def _space(written: Any) -> dict[str, Any]:
    """Kind and sizes of a space of observations or actions."""
    if not isinstance(written, Mapping):
        return {}
    kind = re.search(r"(\w+)'>$", str(written.get(":type:", "")))
    facts: dict[str, Any] = {"type": kind[1] if kind else ""}
    shape = written.get("shape", written.get("_shape"))
    if isinstance(shape, list) and all(isinstance(size, int) for size in shape):
        facts["shape"] = shape
    if str(written.get("n", "")).isdigit():
        facts["n"] = int(written["n"])
    return facts
