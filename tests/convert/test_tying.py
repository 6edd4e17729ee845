"""Tensors with several keys: one parameter of the space, moved once, under all keys of the state dict."""

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file, save_model
from torch import Tensor, nn
from torch.func import functional_call, vmap
from typer.testing import CliRunner

import wsgraph
from tests.convert.test_tracing import Function, image, tokens
from tests.networks import randomized
from wsgraph import SpaceMismatchError, TraceError, WeightSpace, trace
from wsgraph.cli import app
from wsgraph.convert.tracing.tying import tie_state
from wsgraph.data import ZooStore, export_zoo, import_zoo
from wsgraph.nn import build_model
from wsgraph.testing import assert_function_preserved


class Language(nn.Module):
    """Embedding and head are one tensor; a block used twice; the norm is registered at another depth too."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        self.again = nn.Sequential(self.block)
        self.norm = nn.LayerNorm(8)
        self.inner = nn.ModuleDict({"deep": nn.Sequential(self.norm)})
        self.head = nn.Linear(8, 10, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.inner["deep"](self.again(self.block(self.norm(self.embed(x))))))
        return result


def language() -> tuple[nn.Module, Tensor]:
    return Language(), torch.randint(0, 10, (2, 4), generator=torch.Generator().manual_seed(0))


def assigned(key: str = "weight") -> tuple[Any, Tensor]:
    """Two layers of one stream that share a parameter."""
    net = Function(lambda m, x: m.out(torch.relu(m.b(torch.relu(m.a(x))))), a=nn.Linear(8, 8), b=nn.Linear(8, 8), out=nn.Linear(8, 3))
    setattr(net.b, key, getattr(net.a, key))
    return net, tokens()


def autoencoder(transposed: bool) -> tuple[nn.Module, Tensor]:
    net: Any = Function(lambda m, x: F.linear(torch.tanh(m.encode(x)), m.decode.T if transposed else m.decode), encode=nn.Linear(8, 8))
    net.decode = net.encode.weight
    return net, tokens()


def recurrent() -> tuple[nn.Module, Tensor]:
    """One cell for all steps, under two names."""

    def forward(m: Any, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 6)
        for i, step in enumerate(x.unbind(1)):
            h = torch.tanh((m.read if i % 2 else m.same)(step) + m.loop(h))
        result: Tensor = m.out(h)
        return result

    read = nn.Linear(8, 6)
    return Function(forward, read=read, same=read, loop=nn.Linear(6, 6), out=nn.Linear(6, 2)), tokens()


def shared_norm() -> tuple[nn.Module, Tensor]:
    def forward(m: Any, x: Tensor) -> Tensor:
        h = torch.relu(m.norm(m.a(x)))
        result: Tensor = m.out(torch.relu(m.other(m.b(h)) + h).mean((2, 3)))
        return result

    norm = nn.BatchNorm2d(4)
    layers = {"a": nn.Conv2d(3, 4, 3), "b": nn.Conv2d(4, 4, 3, padding=1), "out": nn.Linear(4, 2)}
    return Function(forward, norm=norm, other=norm, **layers), image()


def siamese() -> tuple[nn.Module, Tensor]:
    """Two towers of one encoder, and a head for what they say."""
    tower = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    net = Function(lambda m, x: m.head(torch.cat([m.left(x), m.right(x.flip(1))], -1)), left=tower, right=tower, head=nn.Linear(8, 2))
    return net, tokens()


def same_memory() -> tuple[nn.Module, Tensor]:
    """Two parameters made of one tensor, which are not the same object."""
    net, x = assigned()
    net.b.weight = nn.Parameter(net.a.weight.data)
    return net, x


def buffers() -> tuple[nn.Module, Tensor]:
    net = Function(lambda m, x: m.b(torch.relu(m.a(x) * m.first) * m.second), a=nn.Linear(8, 6), b=nn.Linear(6, 2))
    table = torch.rand(6)
    net.register_buffer("first", table)
    net.register_buffer("second", table)
    return net, tokens()


def unused_name() -> tuple[nn.Module, Tensor]:
    """A chain whose layers have a second name: still a network of layers."""
    a, b = nn.Linear(8, 6), nn.Linear(6, 2)
    return Function(lambda m, x: m.b(torch.relu(m.a(x))), a=a, b=b, layers=nn.ModuleList([a, b])), torch.randn(3, 8)


def dtypes() -> tuple[nn.Module, Tensor]:
    net, x = assigned("bias")
    net.out.to(torch.float64)
    return Function(lambda m, x: m.out(torch.relu(m.b(torch.relu(m.a(x)))).double()), **dict(net.named_children())), x


CASES: dict[str, tuple[Callable[[], tuple[nn.Module, Tensor]], int]] = {
    "language model": (language, 80 + 16 + (24 * 8 + 24 + 64 + 8 + 12 * 8 + 12 + 8 * 12 + 8 + 32)),
    "weight": (assigned, 64 + 8 + 8 + 27),
    "bias": (lambda: assigned("bias"), 64 + 64 + 8 + 27),
    "autoencoder": (lambda: autoencoder(False), 64 + 8),
    "transposed autoencoder": (lambda: autoencoder(True), 64 + 8),
    "recurrent": (recurrent, 48 + 6 + 36 + 6 + 14),
    "shared norm": (shared_norm, 108 + 4 + 144 + 4 + 10 + 17),
    "siamese": (siamese, 54 + 28 + 18),
    "same memory": (same_memory, 64 + 8 + 8 + 27),
    "buffers": (buffers, 54 + 6 + 14),
    "unused name": (unused_name, 54 + 14),
    "dtypes": (dtypes, 64 + 64 + 8 + 27),
}
every_case = pytest.mark.parametrize("name", CASES)


def traced(name: str) -> tuple[nn.Module, WeightSpace, Tensor]:
    net, x = CASES[name][0]()
    return randomized(net), trace(net, x), x


def called(net: nn.Module, state: dict[str, Tensor], x: Tensor, **options: Any) -> Tensor:
    """As documented: of copies, since functional_call swaps the tensors of a layer with two names twice and puts back the wrong ones."""
    result: Tensor = functional_call(copy.deepcopy(net), dict(state), (x,), **options)
    return result


@every_case
def test_tied_tensors_are_one_parameter(name: str) -> None:
    net, space, x = traced(name)
    state = net.state_dict()
    assert space.num_params == CASES[name][1] < sum(tensor.numel() for tensor in state.values())
    theta = space.flatten(state)
    back = space.unflatten(theta)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) and back[key].dtype == state[key].dtype for key in state)
    assert torch.equal(space.flatten(back), theta)
    for param in space.params:
        assert all(back[key] is back[param.name] for key in param.aliases)
        assert all(space.param(key) is param for key in param.keys)
    # Networks drawn at random are networks of the module: what is loaded, and what is run without loading, is the same.
    drawn = space.unflatten(space.sample(1, generator=torch.Generator().manual_seed(0), dtype=theta.dtype)[0])
    loaded = copy.deepcopy(net)
    loaded.load_state_dict(drawn)
    torch.testing.assert_close(loaded(x), called(net, drawn, x))
    assert not torch.allclose(loaded(x), net(x))


@every_case
def test_symmetries_hold_for_every_use(name: str) -> None:
    net, space, x = traced(name)
    if name not in ("weight", "same memory", "autoencoder", "transposed autoencoder"):
        assert space.coverage > 0.4
    if space.coverage:
        assert_function_preserved(net, space, x)
    # Loaded into the tied module itself, in which a tensor cannot differ under its keys.
    net, theta = net.double(), space.flatten(net.double().state_dict())
    x = x.double() if x.is_floating_point() else x
    expected = net(x)
    for seed in range(3):
        moved = space.act(space.sample_symmetry(generator=torch.Generator().manual_seed(seed)), theta[None])[0]
        net.load_state_dict(space.unflatten(moved))
        tolerance = 1e-6 if name == "dtypes" else 1e-9  # weights are stored as float32
        torch.testing.assert_close(net(x), expected, rtol=tolerance, atol=tolerance)


def test_symmetries_that_one_use_would_allow_are_not_claimed() -> None:
    # Negative control: as two tensors, the layers could move neurons and factors that the tied ones cannot.
    net, x = assigned()
    untied = copy.deepcopy(net)
    untied.b.weight = nn.Parameter(net.a.weight.detach().clone())
    assert trace(net.eval(), x).coverage == 0 < trace(untied.eval(), x).coverage
    shared, x = assigned("bias")
    space = trace(shared.eval(), x)
    assert len({space.group(name).scale for name in ("a", "b")}) == 1  # one bias, one factor
    assert space.describe_symmetry(space.group("a")) == "permutation x scale"


@every_case
def test_text_equality_and_views(name: str) -> None:
    net, space, _ = traced(name)
    again = WeightSpace.from_json(space.to_json())
    assert again == space
    assert hash(again) == hash(space)
    assert again.digest == space.digest
    bare = WeightSpace.from_json(json.dumps({**(text := json.loads(space.to_json())), "params": [
        {key: value for key, value in param.items() if key != "aliases"} for param in text["params"]
    ]}))  # fmt: skip
    assert bare != space
    assert bare.digest != space.digest
    assert bare.matches(space)  # flat vectors mean the same
    tied = next(param for param in space.params if param.aliases)
    assert f"{tied.name} = {tied.aliases[0]}" in space.report()
    assert not set(tied.keys) & set(space.absent_from_graph)
    theta = space.flatten(net.state_dict())
    assert space.graph(theta.float()).num_networks == 1


def test_layers_under_two_names_are_a_network_of_layers() -> None:
    net, space, x = traced("unused name")
    assert space.is_chain
    assert repr(space).startswith("WeightSpace(8-6-2, linear | linear, relu, 68 ")
    torch.testing.assert_close(space.evaluate(space.flatten(net.state_dict())[None], x)[0], net(x))
    plain = trace(nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)).eval(), x)
    assert space.matches(plain)
    batch = space.batch(space.sample(3))
    assert build_model("statnn", plain, 2)(batch).shape == (3, 2)


def test_spaces_without_tied_weights_keep_their_text_and_digest() -> None:
    # As written before there were aliases: the names of spaces in saved zoos.
    assert WeightSpace.mlp([2, 3, 1]).digest == "f7c96cec4fdf92af"
    assert WeightSpace.cnn([1, 4], [3], "tanh").digest == "47c9793686600fd7"
    assert "aliases" not in WeightSpace.mlp([2, 3, 1]).to_json()


def test_spaces_pickled_before_there_were_aliases_are_read() -> None:
    space = WeightSpace.mlp([2, 3, 1])
    old = copy.deepcopy(space)
    for param in old.params:
        del param.__dict__["aliases"]
    back = pickle.loads(pickle.dumps(old))
    assert back == space
    assert hash(back) == hash(space)
    assert back.to_json() == space.to_json()


# == State dicts with one key, with both, with values that differ ==


def test_one_key_is_enough_and_order_does_not_matter() -> None:
    net, space, _ = traced("language model")
    state, theta = net.state_dict(), space.flatten(net.state_dict())
    for param in space.params:
        for kept in param.keys:
            part = {key: tensor for key, tensor in reversed(state.items()) if key not in param.keys or key == kept}
            assert torch.equal(space.flatten(part), theta)
    with pytest.raises(SpaceMismatchError, match=r"lacks the key 'embed\.weight' or 'head\.weight' and 0 more"):
        space.flatten({key: tensor for key, tensor in state.items() if key not in ("embed.weight", "head.weight")})


def test_keys_that_disagree_are_refused_by_name() -> None:
    net, space, _ = traced("language model")
    state = net.state_dict()
    state["head.weight"] = state["head.weight"].clone()
    theta = space.flatten(state)  # equal copies are no contradiction
    state["embed.weight"] = state["embed.weight"].clone()
    state["embed.weight"][3, 2] = state["head.weight"][3, 2] = float("nan")
    assert space.flatten(state).isnan().sum() == 1  # nor is NaN in the same place
    state["head.weight"][3, 2] = 0
    with pytest.raises(SpaceMismatchError, match=r"'embed\.weight' and 'head\.weight' are one tensor in .* but differ in the state dict"):
        space.flatten(state)
    stacked = space.unflatten(theta.expand(3, -1))
    assert torch.equal(space.flatten(stacked), theta.expand(3, -1))
    stacked["head.weight"] = stacked["head.weight"].clone()
    stacked["head.weight"][2, 0, 0] += 1
    with pytest.raises(SpaceMismatchError, match="differ in the state dict"):
        space.flatten(stacked)
    with pytest.raises(SpaceMismatchError, match=r"Expected 'head\.weight' of shape \[3, 10, 8\]"):
        space.flatten({**space.unflatten(theta.expand(3, -1)), "head.weight": theta[:80].view(10, 8)})
    with pytest.raises(SpaceMismatchError, match=r"has a key 'tail\.weight'"):
        space.flatten({**net.state_dict(), "tail.weight": torch.zeros(2)})


def test_aliases_are_names_like_others() -> None:
    _, space, _ = traced("bias")
    params = [{**param, "aliases": ["out.bias"]} if param["name"] == "a.bias" else param for param in json.loads(space.to_json())["params"]]
    with pytest.raises(ValueError, match=r"Names in 'params' must be unique \(repeated: out\.bias\)"):
        WeightSpace.from_json(json.dumps({**json.loads(space.to_json()), "params": params}))


def test_state_dicts_are_completed_for_a_module() -> None:
    net, _, _ = traced("language model")
    state = net.state_dict()
    part = {key: tensor for key, tensor in state.items() if key not in ("embed.weight", "again.0.norm1.bias")}
    completed = tie_state(net, part)
    assert completed.keys() == state.keys()
    assert all(torch.equal(completed[key], state[key]) for key in state)
    with pytest.raises(ValueError, match=r"'embed\.weight' and 'head\.weight' are one tensor of the module, but differ in the weights"):
        tie_state(net, {**state, "head.weight": state["head.weight"] + 1})


# == Memory that is shared otherwise ==


def _part_of(net: Any) -> None:
    net.register_buffer("table", torch.randn(12))
    net.register_buffer("six", net.table[:6])


def _columns(net: Any) -> None:
    both = torch.randn(6, 16)
    net.a.weight, net.b.weight = nn.Parameter(both[:, :8]), nn.Parameter(both[:, 7:15])


def _transposed(net: Any) -> None:
    net.b.weight = nn.Parameter(net.a.weight.data.T)


def _reshaped(net: Any) -> None:
    net.register_buffer("row", net.a.weight.data.view(-1))


@pytest.mark.parametrize(
    ("share", "names"),
    [
        (_part_of, ("table", "six")),
        (_columns, ("a.weight", "b.weight")),
        (_transposed, ("a.weight", "b.weight")),
        (_reshaped, ("a.weight", "row")),
    ],
)
def test_tensors_that_share_a_part_are_refused_by_name(share: Callable[[Any], None], names: tuple[str, str]) -> None:
    net = Function(lambda m, x: F.linear(m.a(x), m.b.weight[:, :6]), a=nn.Linear(8, 6), b=nn.Linear(8, 6))
    share(net)
    with pytest.raises(TraceError, match="share memory, but are not the same entries in the same order") as error:
        trace(net.eval(), tokens() if share is not _transposed else torch.randn(2, 8))
    assert all(repr(name) in str(error.value) for name in names)


def test_neighbours_in_one_memory_share_nothing() -> None:
    both = torch.randn(6, 16)
    net: Any = Function(lambda m, x: m.b(torch.relu(m.a(x))), a=nn.Linear(8, 6), b=nn.Linear(6, 6))
    net.a.weight, net.b.weight = nn.Parameter(both[:, :8]), nn.Parameter(both[:, 8:14])
    net.register_buffer("positions", torch.arange(5))
    net.register_buffer("fewer", net.positions[:3])
    net.register_buffer("none", torch.zeros(0))
    net.register_buffer("nothing", torch.zeros(0))
    net.register_buffer("repeated", torch.ones(1).expand(4))
    space = trace(net.eval(), tokens())
    assert not any(param.aliases for param in space.params)
    assert all(torch.equal(space.unflatten(space.flatten(net.state_dict()))[key], tensor) for key, tensor in net.state_dict().items())


def test_memory_that_the_state_dict_does_not_name_is_refused() -> None:
    def make(share: Callable[[Any], None]) -> nn.Module:
        net = Function(lambda m, x: F.linear(torch.relu(m.a(x)), m.held[0] if isinstance(m.held, list) else m.held), a=nn.Linear(8, 8))
        share(net)
        return net.eval()

    def buffer(net: Any) -> None:
        net.register_buffer("held", net.a.weight.data, persistent=False)

    def view(net: Any) -> None:
        net.held = net.a.weight.data.T

    def hidden(net: Any) -> None:
        net.held = [net.a.weight]

    for share in (buffer, view, hidden):
        with pytest.raises(TraceError, match=r"reads the memory of 'a\.weight' through '.*' too, which the state dict does not hold"):
            trace(make(share), tokens())
    hidden_module: Any = Function(lambda m, x: F.linear(torch.relu(m.a(x)), m.held[0].weight), a=nn.Linear(8, 8))
    hidden_module.held = [hidden_module.a]
    assert trace(hidden_module.eval(), tokens()).num_params == 72  # a module in a list is still itself


# == Files, zoos, the command line ==


def test_zoos_of_tied_networks(tmp_path: Path) -> None:
    net, space, _ = traced("language model")
    thetas = space.sample(4, generator=torch.Generator().manual_seed(0))
    store = ZooStore.create(tmp_path / "zoo", space, thetas, {"test_accuracy": torch.arange(4.0)})
    assert store.verify() == []
    assert ZooStore(tmp_path / "zoo").space == space
    assert torch.equal(ZooStore(tmp_path / "zoo").thetas, thetas)
    export_zoo(store, tmp_path / "files", progress=False)
    state = load_file(tmp_path / "files" / "networks" / "000002.safetensors")
    net.load_state_dict(state)
    assert torch.equal(space.flatten(net.state_dict()), thetas[2])
    back = import_zoo(tmp_path / "back", tmp_path / "files", progress=False)
    assert torch.equal(back.thetas, thetas)
    assert back.space == space
    # Files that hold every tensor once, as safetensors' own function for modules writes them.
    for number in range(4):
        net.load_state_dict(space.unflatten(thetas[number]))
        save_model(net, str(tmp_path / "files" / "networks" / f"{number:06d}.safetensors"))
    assert len(load_file(tmp_path / "files" / "networks" / "000002.safetensors")) < len(state)
    assert torch.equal(import_zoo(tmp_path / "once", tmp_path / "files", progress=False).thetas, thetas)


def test_command_line_reads_tied_weights_under_one_key(tmp_path: Path) -> None:
    (tmp_path / "tied.py").write_text(
        "from torch import nn\n\n\ndef make():\n    layer = nn.Linear(4, 4)\n    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), layer, "
        "nn.Tanh(), layer)\n"
    )
    layer = nn.Linear(4, 4)
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), layer, nn.Tanh(), layer)
    save_model(net, str(tmp_path / "once.safetensors"))
    assert len(load_file(tmp_path / "once.safetensors")) == 4
    options = ["--module", f"{tmp_path / 'tied.py'}:make", "--input", "2x4"]
    shown = CliRunner().invoke(app, ["info", str(tmp_path / "once.safetensors"), *options])
    assert shown.exit_code == 0, shown.output
    assert "2.weight = 4.weight" in shown.output
    assert CliRunner().invoke(app, ["check", str(tmp_path / "once.safetensors"), *options]).exit_code == 0
    described = json.loads(CliRunner().invoke(app, ["info", str(tmp_path / "once.safetensors"), *options, "--json"]).stdout)
    assert {param["name"]: param.get("aliases") for param in described["params"]}["2.bias"] == ["4.bias"]
    assert "aliases" not in described["params"][0]
    state = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    save_file({**state, "4.weight": state["4.weight"] + 1}, tmp_path / "two.safetensors")
    refused = CliRunner().invoke(app, ["info", str(tmp_path / "two.safetensors"), *options])
    assert refused.exit_code == 1
    assert "'2.weight' and '4.weight' are one tensor of the module, but differ" in " ".join(refused.output.split())


def test_onnx_files_of_tied_networks(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    weight = onnx.numpy_helper.from_array(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)).numpy(), "w")
    nodes = [
        onnx.helper.make_node(*node) for node in (("MatMul", ["x", "w"], ["a"]), ("Tanh", ["a"], ["b"]), ("MatMul", ["b", "w"], ["y"]))
    ]
    ends = [[onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2, 4])] for name in ("x", "y")]
    graph = onnx.helper.make_graph(nodes, "tied", *ends, [weight])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]), tmp_path / "tied.onnx")
    module = wsgraph.load_onnx(tmp_path / "tied.onnx")
    space = trace(module, *module.example_inputs)
    assert space.num_params == 16
    assert space.coverage == 0  # input and output neurons are neurons of the same axes


# == torch.func ==


def test_functional_call_with_tied_weights() -> None:
    net, space, x = traced("language model")
    theta = space.sample(1, generator=torch.Generator().manual_seed(0))[0]
    state = space.unflatten(theta)
    net_of_theta = copy.deepcopy(net)
    net_of_theta.load_state_dict(state)
    expected = net_of_theta(x)
    torch.testing.assert_close(called(net, state, x), expected)
    torch.testing.assert_close(called(net, state, x, tie_weights=False), expected)
    # What the documentation warns of: copies are not the same object, and one key with tie_weights=False leaves the module's own weights.
    copied = {key: tensor.clone() for key, tensor in state.items()}
    with pytest.raises(ValueError, match="multiple values for keys"):
        called(net, copied, x)
    torch.testing.assert_close(called(net, copied, x, tie_weights=False), expected)
    once = {param.name: state[param.name] for param in space.params}
    torch.testing.assert_close(called(net, once, x), expected)
    assert not torch.allclose(called(net, once, x, tie_weights=False), expected)


@pytest.mark.parametrize("name", ["weight", "recurrent"])
def test_functional_call_of_many_tied_networks_and_their_gradients(name: str) -> None:
    net, space, x = traced(name)
    net, x = net.double(), x.double()
    thetas = space.sample(3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    outputs = vmap(lambda theta: called(net, space.unflatten(theta), x))(thetas)
    with pytest.raises(ValueError, match="multiple values for keys"):  # each key gets an object of its own
        vmap(lambda state: called(net, state, x))(space.unflatten(thetas))
    # The gradient of a tied weight is the sum over its uses, as in the module itself.
    gradients = torch.func.vmap(torch.func.grad(lambda theta: called(net, space.unflatten(theta), x).square().sum()))(thetas)
    for theta, output, gradient in zip(thetas, outputs, gradients, strict=True):
        net.load_state_dict(space.unflatten(theta))
        net.zero_grad()
        torch.testing.assert_close(net(x), output)
        net(x).square().sum().backward()
        own = {key: parameter.grad for key, parameter in net.named_parameters() if parameter.grad is not None}
        torch.testing.assert_close(gradient, space.flatten(own))


def test_tracing_leaves_tied_modules_as_they_are() -> None:
    for make, _ in CASES.values():
        net, x = make()
        before = {key: (id(tensor), tensor.detach().clone()) for key, tensor in net.eval().state_dict(keep_vars=True).items()}
        trace(net, x)
        after = net.state_dict(keep_vars=True)
        assert all(id(after[key]) == number and torch.equal(after[key], tensor) for key, (number, tensor) in before.items())
