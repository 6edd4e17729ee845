"""Monomial message passing: one batch form equals the other, any mix of networks, weights out."""

import pytest
import torch
from torch import Tensor

from tests.space.handmade import branching, residual
from tests.spaces import SPACES, residual_space
from wsgraph import ParameterGraph, SpaceMismatchError, WeightSpace
from wsgraph.nn import MonomialConv, MonomialGNN, Wiring
from wsgraph.testing import assert_equivariant, assert_invariant

MIXED = [
    WeightSpace.cnn([1, 4, 4], [5], kernel_size=[3, 2]),
    WeightSpace.cnn([1, 3], [2], "tanh"),
    WeightSpace.mlp([3, 6, 5, 4, 3], ["relu", "gelu", "sin(30)"]),
    WeightSpace.mlp([2, 4], bias=False),
    residual_space("tanh"),
    residual(),
    branching(),
]


def model_for(space: WeightSpace | list[WeightSpace], task: str, **options: float) -> MonomialGNN:
    torch.manual_seed(0)
    model = MonomialGNN(space, 2, task=task, **{"channels": 8, "rounds": 2, "hidden": 8, **options})  # type: ignore[arg-type]
    return model.double().eval()


@pytest.mark.parametrize("task", ["invariant", "equivariant"])
@pytest.mark.parametrize("space", [*SPACES.values(), residual(), branching()], ids=str)
def test_dense_and_indexed_links_agree_in_values_and_gradients(space: WeightSpace, task: str) -> None:
    model = model_for(space, task)
    thetas = space.sample(3, dtype=torch.float64).requires_grad_()
    results = []
    for dense in (True, False):
        output = model.read(Wiring.of(space.batch(thetas), dense=dense))
        weighted = (output * torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view_as(output)).sum()
        results.append([output, *torch.autograd.grad(weighted, [thetas, *model.parameters()])])
    for dense_result, indexed in zip(*results, strict=True):
        torch.testing.assert_close(indexed, dense_result, rtol=1e-9, atol=1e-12)


def mixed_graphs() -> list[ParameterGraph]:
    generator = torch.Generator().manual_seed(0)
    batches = [space.batch(space.sample(2, generator=generator, dtype=torch.float64)) for space in MIXED]
    return [batch[i] for i in (1, 0) for batch in batches]


@pytest.mark.parametrize("task", ["invariant", "equivariant"])
def test_mixed_batches_equal_networks_alone(task: str) -> None:
    model = model_for(MIXED, task)
    graphs = mixed_graphs()
    mixed = ParameterGraph.join(graphs)
    assert not Wiring.of(mixed).is_dense
    output = model(mixed)
    for row, graph in zip(output, graphs, strict=True):
        alone = model(graph)[0]
        torch.testing.assert_close(row[: len(alone)], alone, rtol=1e-9, atol=1e-12)
        assert row[len(alone) :].abs().sum() == 0


def test_gradients_of_mixed_batches_are_those_of_networks_alone() -> None:
    model = model_for(MIXED, "invariant")
    graphs = mixed_graphs()
    together = torch.autograd.grad(model(ParameterGraph.join(graphs)).square().sum(), list(model.parameters()))
    alone = torch.autograd.grad(sum((model(graph).square().sum() for graph in graphs), torch.zeros(())), list(model.parameters()))
    for gradient, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("space", [space for space in MIXED if len(space.groups) > 2], ids=str)  # others have no symmetries
def test_models_of_many_spaces_keep_the_symmetries_of_each(space: WeightSpace) -> None:
    assert_invariant(model_for(MIXED, "invariant"), space)
    assert_equivariant(model_for(MIXED, "equivariant"), space)


def test_activations_are_told_apart() -> None:
    relu, gelu = WeightSpace.mlp([2, 5, 1], "gelu"), WeightSpace.mlp([2, 5, 1], "silu")
    model = model_for([relu, gelu], "invariant", probes=0)
    for name, parameter in model.named_parameters():
        if name.endswith(("activations.gelu", "activations.silu")):
            torch.nn.init.normal_(parameter)
    thetas = relu.sample(3, dtype=torch.float64)
    assert (model(relu.batch(thetas)) - model(gelu.batch(thetas))).abs().max() > 1e-6


def test_deep_levels_share_parameters() -> None:
    deep, shallow = WeightSpace.mlp([2, 4, 4, 4, 4, 1]), WeightSpace.mlp([2, 4, 4, 1])
    counts = {
        depth: sum(p.numel() for p in model_for(space, "invariant", levels=2).parameters())
        for depth, space in {5: deep, 3: shallow}.items()
    }
    assert counts[5] == counts[3]
    assert_invariant(model_for(deep, "invariant", levels=2), deep)
    # What a model of two levels was built for does not limit the depth of what it reads.
    assert model_for(shallow, "invariant", levels=2)(deep.batch(deep.sample(2, dtype=torch.float64))).shape == (2, 2)


def test_what_the_model_has_no_parameters_for_is_refused() -> None:
    model = model_for(WeightSpace.cnn([1, 4, 4], [3]), "invariant")
    refused = {
        "weights with 25 kernel positions to hidden1": WeightSpace.cnn([1, 4, 4], [3], kernel_size=[5, 3]),
        "tanh neurons at hidden1": WeightSpace.cnn([1, 4, 4], [3], "tanh"),
        "3 input neurons": WeightSpace.cnn([3, 4, 4], [3]),
        "1 biases at each neuron of hidden3": WeightSpace.cnn([1, 4, 4, 4], [3]),
    }
    for message, space in refused.items():
        with pytest.raises(SpaceMismatchError, match=f"MonomialGNN was built for .* but the batch has {message}. Build it with all"):
            model(space.batch(space.sample(1, dtype=torch.float64)))


def test_arguments_are_checked() -> None:
    space = WeightSpace.mlp([2, 3, 1])
    with pytest.raises(ValueError, match=r"Expected 'rounds' to be at least 1 \(got 0\)"):
        MonomialGNN(space, 1, rounds=0)
    with pytest.raises(ValueError, match=r"Expected 'levels' to be at least 1 \(got 0\)"):
        MonomialGNN(space, 1, levels=0)
    with pytest.raises(ValueError, match="Only invariant tasks read probes"):
        MonomialGNN(space, 1, task="equivariant", probes=4)
    with pytest.raises(ValueError, match="Expected 'space' to be a weight space or a sequence of them"):
        MonomialGNN([], 1)


def test_weight_noise_acts_in_training_only() -> None:
    space = WeightSpace.mlp([2, 8, 1])
    batch = space.batch(space.sample(3, dtype=torch.float64))
    for noise in (0.0, 0.5):
        model = model_for(space, "invariant", probes=0, dropout=0.0, weight_noise=noise)
        assert torch.equal(model(batch), model(batch))
        model.train()
        assert torch.equal(model(batch), model(batch)) == (noise == 0)


def test_convolution_reads_streams_of_its_user() -> None:
    space = residual_space()
    torch.manual_seed(0)
    first, second = MonomialConv(8, space, first=True).double(), MonomialConv(8, space).double()

    def streams(batch: ParameterGraph) -> Tensor:
        wiring = Wiring.of(batch)
        nothing = torch.empty(0, dtype=torch.float64)
        ones = torch.ones(3, 8, dtype=torch.float64), torch.ones(2, 8, dtype=torch.float64)
        h: list[Tensor] = [ones[0], *[nothing] * (len(wiring.parts) - 1)]
        u: list[Tensor] = [*[nothing] * (len(wiring.parts) - 1), ones[1]]
        h, u = second(first((h, u), wiring), wiring)
        return torch.stack([(a * b).sum(1) for a, b in zip(h[1:], u[1:], strict=True)], dim=1)

    assert_invariant(streams, space)


def test_no_features_per_edge_are_kept() -> None:
    kept = []
    for width in (16, 64):
        space = WeightSpace.mlp([2, width, width, 1])
        model = MonomialGNN(space, 1, channels=32, probes=0)
        batch = space.batch(space.sample(4))
        own = {parameter.untyped_storage().data_ptr() for parameter in [*model.parameters(), batch.edge_attr]}
        storages: dict[int, int] = {}

        def keep(tensor: Tensor, own: set[int] = own, storages: dict[int, int] = storages) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(batch).sum()
        kept.append(sum(storages.values()))
    # Four times the neurons, sixteen times the edges.
    assert kept[1] < 5 * kept[0]
