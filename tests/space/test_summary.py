"""What networks say of themselves: tables of modules, reports, what single parameters follow."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn

import wsgraph
from tests.convert.test_stacked_weights import CASES as STACKED
from tests.convert.test_stacked_weights import traced as traced_stack
from tests.networks import make
from tests.space.handmade import branching, residual
from wsgraph import WeightSpace
from wsgraph.space import Axis, NeuronGroup, Parameter, Tie


def lines(space: WeightSpace, depth: int | None = None) -> list[str]:
    return [" ".join(line.split()) for line in space.summary(depth).splitlines()]


def traced(module: nn.Module, *shape: int) -> WeightSpace:
    return wsgraph.trace(module.eval(), torch.randn(*shape))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.tanh(self.up(self.norm(x))))


def deep(*widths: int, blocks: int = 6) -> WeightSpace:
    """Stages of residual blocks between linear layers."""
    stages = []
    for before, width in zip((4, *widths), widths, strict=False):
        stages.append(nn.Sequential(nn.Linear(before, width), *(Block(width) for _ in range(blocks))))
    return traced(nn.Sequential(nn.Sequential(*stages), nn.Linear(widths[-1], 2)), 3, 4)


# == Tables of modules ==


def test_summary_of_a_residual_network() -> None:
    assert residual().summary().splitlines() == [
        "WeightSpace(5 groups, 5 layers, 75 parameters)",
        "module  parameters  shapes  neurons   operators  symmetry             reads",
        "in               -  -       3         -          none (input)         -",
        "a               16  4x3, 4  stem: 4   relu       permutation x scale  in",
        "b               25  5x4, 5  inner: 5  relu       permutation x scale  a",
        "c               24  4x5, 4  sum: 4    relu       permutation x scale  b, a",
        "d               10  2x4, 2  out: 2    -          none (output)        c",
    ]


def test_summary_names_concatenated_sources_and_summed_layers() -> None:
    told = lines(branching())
    assert "head 16 2x7, 2 - - permutation [x scale] [x sign]; none (output) a, b" in told
    assert "out - - 2 - none (output) head, shortcut" in told


def test_blocks_of_equal_structure_are_one_line() -> None:
    space = deep(8, blocks=5)
    told = lines(space)
    assert told[3:] == [
        "0.0 1,520",
        "0 40 8x4, 8 8 - permutation input",
        "1..5 5 x 296 8 permutation .0, .down",
        "norm 16 8 (2) 8 - permutation x scale x sign .0",
        "up 144 16x8, 16 16 tanh permutation x sign .norm",
        "down 136 8x16, 8 8 - permutation .up",
        "1 18 2x8, 2 2 - none (output) 0.0.1..5",
    ]
    assert sum(part.count * part.num_params for part in space.modules.parts) == space.num_params


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda blocks: setattr(blocks[2], "down", nn.Linear(16, 8, bias=False)), id="a parameter less"),
        pytest.param(lambda blocks: setattr(blocks[2], "norm", nn.RMSNorm(8)), id="another norm"),
    ],
)
def test_blocks_of_other_structure_have_lines_of_their_own(change: object) -> None:
    blocks = nn.Sequential(*(Block(8) for _ in range(5)))
    assert callable(change)
    change(blocks)
    space = traced(nn.Sequential(nn.Linear(4, 8), blocks, nn.Linear(8, 2)), 3, 4)
    labels = [module.label for module in space.modules.walk()]
    assert {"1.0..1", "1.2", "1.3..4"} <= {*labels}


def test_equal_shapes_with_another_activation_are_not_folded() -> None:
    labels = [part.label for part in WeightSpace.mlp([4, 8, 8, 8, 8, 8, 2], ["relu", "relu", "relu", "tanh", "tanh"]).modules.parts]
    assert labels == ["layers.0", "layers.1..2", "layers.3", "layers.4", "layers.5"]


def test_repeated_pairs_are_folded_together() -> None:
    layers = [layer for _ in range(9) for layer in (nn.Linear(6, 6), nn.LayerNorm(6), nn.ReLU())]
    told = lines(traced(nn.Sequential(*layers, nn.Linear(6, 2)), 3, 6))
    assert [line.split(" ")[0] for line in told[2:]] == ["input", "0", "1,4..22", "3,6..24", "25", "27"]
    assert "8 x 12 6 (2) 6 relu permutation" in told[4]
    assert "8 x 42 6x6, 6 6 - permutation" in told[5]


def test_folded_modules_count_everything_once() -> None:
    for name in ("resnet", "gpt", "u-net", "lstm", "resnext"):
        module, inputs = make(name)
        space = wsgraph.trace(module, *inputs)

        def counted(module: wsgraph.space.Module) -> tuple[int, int]:
            below = [counted(child) for child in module.children]
            tensors = len(module.params) + sum(count * child.count for (count, _), child in zip(below, module.children, strict=True))
            groups = len(module.groups) + sum(count * child.count for (_, count), child in zip(below, module.children, strict=True))
            return tensors, groups

        assert counted(space.modules) == counted(space.all_modules) == (space.modules.num_tensors, space.modules.num_groups)
        assert space.modules.num_tensors == len(space.params)
        assert space.modules.num_groups == sum(group.role != "factor" for group in space.groups)
        assert space.modules.num_params == space.num_params
        names = {name for module in space.all_modules.walk() for name in module.names}
        assert len(names) == sum(1 for _ in space.all_modules.walk())


def test_deep_networks_fit_on_a_screen_and_are_shown_whole_on_demand() -> None:
    widths = (6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28)
    space = deep(*widths, blocks=2)
    told = lines(space)
    assert len(told) + len(space.report().splitlines()) <= 50
    assert told[-1].endswith("Shown to depth 2 of 4. Depth 5 lists every parameter and group.")
    whole = lines(space, 99)
    assert len([line for line in whole if line.startswith("weight ")]) > 30
    assert lines(space, 5) == whole
    assert len(lines(space, 1)) < len(told) < len(lines(space, 3)) < len(whole)
    assert "Shown to depth" not in whole[-1]


def test_a_depth_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Expected 'depth' to be at least 1 level of modules \(got 0\)"):
        residual().summary(0)


@pytest.mark.parametrize("key", [".".join("a" * 3000), "..", "", "9" * 5000, "a.[0]", "\n\u2028<script>", "(.*)+1"])
def test_any_name_of_a_parameter_can_be_told(key: str) -> None:
    base = WeightSpace.mlp([2, 3, 1])
    renamed = tuple(dataclasses.replace(param, name=f"{key}{param.name[-8:]}" if i else key) for i, param in enumerate(base.params))
    groups = tuple(group if group.role == "input" else dataclasses.replace(group, name=f"{group.name}{key}") for group in base.groups)

    def tie(old: Tie) -> Tie:
        return Tie(tuple(name if name == "input" else f"{name}{key}" for name in old.groups), old.exponent)

    params = tuple(
        dataclasses.replace(param, axes=tuple(dataclasses.replace(axis, ties=tuple(map(tie, axis.ties))) for axis in param.axes))
        for param in renamed
    )
    space = WeightSpace(groups, (), params)
    assert space.modules.num_params == space.num_params
    assert space.summary()
    assert space.summary(99)
    assert space.report()
    assert space.describe_parameter(key)


# == Reports ==


def test_the_report_says_why_parameters_do_not_move() -> None:
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
            self.spare = nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers(x)

    space = traced(Spare(), 5, 3)
    assert space.unmoved_params == {
        "buffer": ["layers.1.num_batches_tracked"],
        "output": ["layers.3.bias"],
        "used by nothing": ["spare.weight", "spare.bias"],
    }
    assert "layers.1.num_batches_tracked (buffer); layers.3.bias (output); spare.weight, spare.bias (used by nothing)." in space.report()


def test_neurons_that_move_with_outputs_say_so() -> None:
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.first(x))
            return x + self.second(x)

    space = traced(Skip(), 5, 3)
    assert space.fixed_groups == {"a tie to output": ["hidden.1"]}
    assert "Fixed, because of a tie to output: hidden.1." in space.report()
    assert "first 16 4x3, 4 hidden.1: 4 relu none (a tie to output) input" in lines(space)


def test_names_that_differ_in_numbers_are_folded_in_reports() -> None:
    layers = [layer for _ in range(6) for layer in (nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU())]
    report = traced(nn.Sequential(*layers, nn.Linear(4, 2)), 5, 4).report()
    assert "Parameters that nothing moves: *.num_batches_tracked (6) (buffer); 18.bias (output)." in report


# == Single parameters ==


def predicted(space: WeightSpace, factors: dict[str, float], without: str = "") -> torch.Tensor:
    """What every weight is multiplied with where all neurons of a scale class have one factor, by what parameters say they follow."""
    parts = []
    for param in space.params:
        entries = torch.ones(param.logical_shape, dtype=torch.float64)
        for run in space.followed(param.name):
            told = {
                math.prod(factors[label] ** (power * each) for label, each in space.group(name).powers)
                for name, power in zip(run.groups, run.powers, strict=True)
            }
            (factor,) = told or {1.0}
            entries.narrow(run.axis, run.start, run.stop - run.start).mul_(1.0 if param.name == without else factor)
        parts.append(entries.flatten())
    return torch.cat(parts)


@pytest.mark.parametrize(
    "name", ["resnet", "pre-norm transformer", "gpt", "lstm", "resnext", "squeeze-excite", "nerf", "gated experts, twice"]
)
def test_what_parameters_follow_is_how_they_move(name: str) -> None:
    if name in STACKED:
        module, _, space = traced_stack(name)
    else:
        module, inputs = make(name)
        space = wsgraph.trace(module, *inputs)
    theta = space.flatten(module.state_dict())[None].double()
    theta = torch.where(theta == 0, 0.5, theta)
    generator = torch.Generator().manual_seed(0)
    factors = {}
    for label in space.scale_classes:
        positive, sign = space.class_symmetry(label)
        size = float(torch.rand((), generator=generator)) + 0.5 if positive else 1.0
        factors[label] = size * (-1.0 if sign and torch.rand((), generator=generator) < 0.5 else 1.0)
    same = space.sample_symmetry(1, symmetries=())
    scales = {label: torch.full_like(scale, factors[label]) for label, scale in same.scales.items()}
    moved = space.act(dataclasses.replace(same, scales=scales), theta)
    assert not torch.equal(moved, theta)
    assert torch.allclose((moved / theta)[0], predicted(space, factors), rtol=1e-9)
    changed = [
        param.name for param in space.params if not torch.allclose(moved[:, space.slices[param.name]], theta[:, space.slices[param.name]])
    ]
    assert not torch.allclose((moved / theta)[0], predicted(space, factors, without=changed[0]), rtol=1e-9)


def test_the_gates_of_an_lstm_follow_its_units() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.LSTM(5, 8, batch_first=True), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.rnn(x)[0][:, -1])

    space = traced(Net(), 2, 4, 5)
    runs = space.followed("rnn.weight_hh_l0")
    assert [(run.axis, run.start, run.stop, run.powers) for run in runs] == [
        (0, 0, 8, (0,)),
        (0, 8, 16, (0,)),
        (0, 16, 24, (1,)),
        (0, 24, 32, (0,)),
        (1, 0, 8, (-1,)),
    ]
    gates = [run.neurons[0].removeprefix("rnn.l0.").removesuffix("[1]") for run in runs[:4]]
    assert gates == ["input_gate", "forget_gate", "cell_gate", "output_gate"]
    assert {run.groups for run in runs} == {("rnn.l0.hidden.state",)}
    told = space.describe_parameter("rnn.weight_hh_l0").splitlines()
    assert told[0] == "rnn.weight_hh_l0: weight, 32x8, 256 entries"
    assert told[3].split() == ["0", "8-15", "rnn.l0.forget_gate[1]", "rnn.l0.hidden.state", "0", "permutation"]
    assert told[4].split() == ["0", "16-23", "rnn.l0.cell_gate[1]", "rnn.l0.hidden.state", "1", "permutation", "x", "sign"]


def test_heads_grouped_convolutions_and_weight_norm_show_their_neurons() -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.attention, self.head = nn.Linear(3, 8), attention, nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.embed(x)
            return self.head(self.attention(x, x, x, need_weights=False)[0])

    space = traced(Net(), 2, 4, 3)
    query, key, value, embedded = space.followed("attention.in_proj_weight")
    assert (query.powers, key.powers, value.powers, embedded.powers) == ((1,), (-1,), (1,), (-1,))
    assert query.groups == key.groups != value.groups
    assert len({query.neurons, key.neurons, value.neurons}) == 3
    assert "permutation of 2 blocks, and of 4 in each on its own" in space.describe_parameter("attention.in_proj_weight")

    grouped = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3, groups=2), nn.ReLU())
    normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(6, 5, 1))
    space = traced(nn.Sequential(*grouped, normed, nn.ReLU(), nn.Flatten(), nn.Linear(5 * 16, 2)), 2, 4, 8, 8)
    outer, inner = space.followed("2.weight")
    assert (outer.blocks, outer.stop, inner.blocks, inner.stop, inner.groups) == (1, 6, 2, 4, ("0",))
    assert "0-3 in each of 2 blocks" in space.describe_parameter("2.weight")
    (gain,) = space.followed("4.parametrizations.weight.original0")
    direction, read = space.followed("4.parametrizations.weight.original1")
    assert gain.powers == direction.powers == (1,)
    assert gain.groups != direction.groups  # in front of the norm, g and v scale apart
    assert read.powers == (-1,)
    assert "functions are applied to the entries themselves" in space.describe_parameter("4.parametrizations.weight.original1")


def test_stacked_weights_have_neurons_in_every_entry_of_the_stack() -> None:
    space = traced_stack(next(iter(STACKED)))[2]
    told = [" ".join(line.split()) for line in space.describe_parameter("up").splitlines()]
    assert told[2] == "0 0-2 einsum factor 0 permutation"
    assert told[4] == "2 0-1 in each of 3 blocks einsum einsum 1 permutation of 3 blocks, and of 2 in each on its own x scale"


def test_entries_that_follow_several_neurons_have_a_line_for_each() -> None:
    norm = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).eval()
    space = wsgraph.trace(norm, torch.randn(5, 3))
    assert [(run.groups, run.powers) for run in space.followed("1.weight")] == [(("0",), (-1,)), (("1",), (1,))]


def test_orders_and_powers_of_products_are_told() -> None:
    groups = (
        NeuronGroup("x", 2, "input"),
        NeuronGroup("a", 4),
        NeuronGroup("b", 4, permutation="a", scale="b"),
        NeuronGroup("p", 4, permutation="a", scale="p", follows=(("a", 1), ("b", 2))),
    )
    weight = Parameter("w", (8,), "weight", (Axis(8, (Tie(("a", "p"), (1, -1)),), (4, 5, 6, 7, 1, 0, 3, 2)),))
    space = WeightSpace(groups, (), (weight,))
    first, second = space.followed("w")
    assert (first.start, first.stop, first.groups, first.powers, first.in_order) == (0, 4, ("p",), (-1,), True)
    assert (second.groups, second.powers, second.in_order) == (("a",), (1,), False)
    told = space.describe_parameter("w")
    assert "-1 (a^-1 b^-2)" in told
    assert "a in an order of its own" in told


def test_very_many_runs_are_cut_short() -> None:
    order = tuple(place for pair in zip(range(80), range(80, 160), strict=True) for place in pair)
    groups = (NeuronGroup("x", 2, "input"), NeuronGroup("a", 80), NeuronGroup("b", 80))
    space = WeightSpace(groups, (), (Parameter("w", (160,), "weight", (Axis(160, (Tie(("a", "b"), 1),), order),)),))
    assert len(space.followed("w")) == 160
    told = space.describe_parameter("w").splitlines()
    assert len(told) < 50
    assert "... and 120 more runs of entries" in told[-1]


def test_an_unknown_parameter_is_refused_with_near_names() -> None:
    space = WeightSpace.mlp([2, 8, 1])
    with pytest.raises(ValueError, match=r"No parameter of .* is called 'layer\.1\.weight'; there are layers\.1\.weight"):
        space.describe_parameter("layer.1.weight")
    with pytest.raises(ValueError, match=r"No parameter of .* is called 'heads\.\*'"):
        space.params_matching("heads.*")
    with pytest.raises(ValueError, match="is called"):
        space.followed("layers.*")


def test_a_narrow_terminal_leaves_columns_out() -> None:
    space = residual()
    whole = space.summary().splitlines()
    widest = max(map(len, whole[1:-1]))
    assert space.summary(width=widest).splitlines() == whole
    narrow = space.summary(width=widest - 1)
    assert " reads" not in narrow.splitlines()[1]
    assert f"Left out for {widest - 1} columns: reads." in narrow
    assert "Left out for 10 columns: reads, shapes, operators." in space.summary(width=10)
