"""Forms of operators: the operator itself, with its gradients, for one network and for several at once."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from wsgraph.space.batched_forms import WITHOUT_BATCHING_RULE
from wsgraph.space.evaluate import tensors_of
from wsgraph.space.forms import ALWAYS, BATCHED, DIFFERENTIABLE
from wsgraph.space.program_operators import is_allowed, operator_named


def values(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64)


SELF, ROWS, MASK = values(4, 6), torch.tensor([2, 0]), torch.arange(24).view(4, 6) % 3 == 0
BAGS = {"indices": torch.tensor([1, 3, 1, 0, 2]), "offsets": torch.tensor([0, 2, 2]), "weight": values(5, 3)}
BAG_OPTIONS = {"scale_grad_by_freq": False, "sparse": False, "per_sample_weights": None, "include_last_offset": False}
SCALED = values(1, 2, 5)

EXAMPLES: dict[str, list[dict[str, Any]]] = {
    "aten::_embedding_bag.default": [BAGS, BAGS | {"mode": 1, "padding_idx": 3}],
    "aten::_stack.default": [{"tensors": [values(3), values(3) + 1], "dim": 1}],
    "aten::_trilinear.default": [
        {"i1": values(3, 2), "i2": values(4, 2, 5), "i3": values(3, 5)}
        | {"expand1": [1, 3], "expand2": [0], "expand3": [1, 2], "sumdim": [2, 3], "unroll_dim": 1}
    ],
    "aten::_weight_norm.default": [{"v": values(3, 4, 2), "g": values(3, 1, 1)}, {"v": values(3, 4), "g": values(1, 4), "dim": 1}],
    "aten::_upsample_nearest_exact1d.default": [
        {"self": SCALED, "output_size": [7]},
        {"self": SCALED, "output_size": [3], "scales": 0.7},
    ],
    "aten::_upsample_nearest_exact1d.vec": [{"input": SCALED, "output_size": [8], "scale_factors": None}],
    "aten::_upsample_nearest_exact2d.default": [{"self": values(1, 2, 3, 4), "output_size": [5, 9]}],
    "aten::_upsample_nearest_exact2d.vec": [{"input": values(1, 2, 3, 4), "output_size": None, "scale_factors": [1.7, 0.6]}],
    "aten::_upsample_nearest_exact3d.default": [{"self": values(1, 1, 2, 3, 4), "output_size": [3, 2, 7]}],
    "aten::_upsample_nearest_exact3d.vec": [{"input": values(1, 1, 2, 3, 4), "output_size": None, "scale_factors": [2.0, 1.0, 1.5]}],
    "aten::addr.default": [
        {"self": values(3, 4), "vec1": values(3), "vec2": values(4), "alpha": 2},
        {"self": torch.full((3, 4), math.nan).double(), "vec1": values(3), "vec2": values(4), "beta": 0},
    ],
    "aten::affine_grid_generator.default": [
        {"theta": values(2, 2, 3), "size": [2, 1, 4, 5], "align_corners": False},
        {"theta": values(1, 3, 4), "size": [1, 2, 3, 1, 2], "align_corners": True},
    ],
    "aten::bilinear.default": [
        {"input1": values(2, 5, 3), "input2": values(2, 5, 4), "weight": values(6, 3, 4), "bias": values(6)},
        {"input1": values(3), "input2": values(4), "weight": values(6, 3, 4)},
    ],
    "aten::chain_matmul.default": [{"matrices": [values(2, 3), values(3, 4), values(4, 1)]}],
    "aten::column_stack.default": [{"tensors": [values(3), values(3, 2)]}],
    "aten::conj.default": [{"self": SELF}, {"self": torch.complex(SELF, SELF + 1)}],
    "aten::conv_tbc.default": [{"self": values(6, 2, 3), "weight": values(3, 3, 4), "bias": values(4), "pad": 1}],
    "aten::copy.default": [
        {"self": values(3, 4), "src": values(4)},
        {"self": values(3, 4), "src": torch.tensor(2)},
        {"self": torch.zeros(3, 4, dtype=torch.long), "src": 3 * values(3, 4)},
    ],
    "aten::diagflat.default": [{"self": values(2, 2), "offset": -1}],
    "aten::embedding_bag.default": [
        BAGS | {"per_sample_weights": values(5)},
        BAGS | {"offsets": torch.tensor([0, 2, 2, 5]), "include_last_offset": True, "mode": 1},
        BAGS | {"mode": 2},
    ],
    "aten::embedding_bag.padding_idx": [
        BAGS | BAG_OPTIONS | {"mode": mode, "padding_idx": index} for mode, index in ((0, 1), (1, -4), (2, 1))
    ],
    "aten::fill.Scalar": [{"self": SELF, "value": 3}],
    "aten::fill.Tensor": [{"self": SELF, "value": torch.tensor(0.5, dtype=torch.float64)}],
    "aten::index_fill.int_Scalar": [{"self": SELF, "dim": 1, "index": torch.tensor([-1, 2]), "value": 2.0}],
    "aten::index_fill.int_Tensor": [{"self": SELF, "dim": -2, "index": ROWS, "value": torch.tensor(0.5, dtype=torch.float64)}],
    "aten::index_reduce.default": [
        {"self": SELF, "dim": -2, "index": ROWS, "source": values(2, 6), "reduce": reduce, "include_self": include}
        for reduce, include in (("amax", True), ("mean", False), ("prod", True), ("amin", False))
    ],
    "aten::isclose.default": [
        {"self": torch.tensor([1.0, 2.0, math.inf, math.nan]), "other": torch.tensor([1.0, 2.1, math.inf, math.nan])},
        {"self": torch.tensor([1.0, 2.0, math.nan]), "other": torch.tensor([1.05, math.inf, math.nan]), "rtol": 0.1, "equal_nan": True},
    ],
    "aten::isin.Scalar_Tensor": [{"element": 2, "test_elements": ROWS}, {"element": 1, "test_elements": ROWS, "invert": True}],
    "aten::isin.Tensor_Scalar": [{"elements": SELF.round(), "test_element": 1}],
    "aten::isin.Tensor_Tensor": [{"elements": SELF.round(), "test_elements": torch.tensor([[1.0, 0.0]]).double(), "invert": True}],
    "aten::istft.default": [
        {
            "self": torch.view_as_complex(values(5, 6, 2)),
            "n_fft": 8,
            "window": torch.hann_window(8).double(),
            "hop_length": 3,
            "length": 20,
        },
        {"self": torch.view_as_complex(values(2, 4, 6, 2)), "n_fft": 6, "win_length": 4, "normalized": True},
        {"self": torch.view_as_complex(values(2, 6, 5, 2)), "n_fft": 6, "onesided": False, "return_complex": True},
    ],
    "aten::linalg_pinv.rcond_tensor": [{"self": SELF, "rcond": torch.tensor(0.3, dtype=torch.float64)}],
    "aten::masked_fill.Tensor": [{"self": SELF, "mask": MASK[0], "value": torch.tensor(0.5, dtype=torch.float64)}],
    "aten::masked_scatter.default": [
        {"self": SELF, "mask": MASK, "source": values(24)},
        {"self": SELF[0], "mask": MASK, "source": values(9)},
    ],
    "aten::max_unpool2d.default": [
        {"self": values(1, 2, 2, 2), "indices": torch.tensor([0, 5, 7, 9]).view(1, 1, 2, 2).repeat(1, 2, 1, 1), "output_size": [4, 4]}
    ],
    "aten::max_unpool3d.default": [
        {"self": values(1, 1, 1, 2, 2), "indices": torch.tensor([0, 5, 7, 9]).view(1, 1, 1, 2, 2), "output_size": [2, 4, 4]}
        | {"stride": [2, 2, 2], "padding": [0, 0, 0]}
    ],
    "aten::moveaxis.int": [{"self": SELF, "source": 0, "destination": -1}],
    "aten::nanquantile.default": [
        {"self": torch.where(MASK, math.nan, SELF), "q": torch.tensor([0.2, 0.6]).double(), "dim": 1, "keepdim": True}
    ],
    "aten::native_channel_shuffle.default": [{"self": values(2, 6, 3), "groups": 3}],
    "aten::nanquantile.scalar": [{"self": torch.where(MASK, math.nan, SELF), "q": 0.3, "dim": 1}],
    "aten::narrow.Tensor": [{"self": SELF, "dim": 1, "start": torch.tensor(start), "length": 2} for start in (1, -3)],
    "aten::norm.ScalarOpt_dim_dtype": [{"self": SELF, "p": p, "dim": [1], "keepdim": True, "dtype": torch.float64} for p in (1, None)],
    "aten::norm.ScalarOpt_dtype": [{"self": SELF, "p": 3, "dtype": torch.float64}],
    "aten::norm_except_dim.default": [{"v": values(3, 4, 2), "dim": dim} for dim in (0, 1, -1)],
    "aten::pad_sequence.default": [
        {"sequences": [values(2, 3), values(4, 3)]},
        {"sequences": [values(2), values(4)], "batch_first": True, "padding_value": 1.0, "padding_side": "left"},
    ],
    "aten::pdist.default": [{"self": SELF, "p": p} for p in (1.0, 2.0)],
    "aten::put.default": [{"self": SELF, "index": torch.tensor([3, -1]), "source": values(2), "accumulate": add} for add in (False, True)],
    "aten::quantile.default": [
        {"self": SELF, "q": torch.tensor([0.2, 0.6, 0.45]).double(), "dim": 0, "interpolation": interpolation}
        for interpolation in ("linear", "lower", "higher", "midpoint", "nearest")
    ]
    + [{"self": torch.where(MASK & (SELF > 0), math.nan, SELF), "q": torch.tensor([0.5]).double(), "dim": 1}],
    "aten::quantile.scalar": [
        {"self": SELF, "q": 0.7, "keepdim": True},
        {"self": SELF, "q": 0.3},
        {"self": SELF, "q": 0.5, "dim": 0, "keepdim": True, "interpolation": "lower"},
    ],
    "aten::renorm.default": [{"self": SELF, "p": 2, "dim": -1, "maxnorm": 1.5}],
    "aten::rrelu.default": [{"self": SELF}, {"self": SELF, "lower": 0.2, "upper": 0.6}],
    "aten::searchsorted.Scalar": [
        {"sorted_sequence": torch.arange(5.0), "self": 2, "right": True},
        {"sorted_sequence": torch.arange(5.0).flip(0), "self": 2, "sorter": torch.arange(4, -1, -1), "out_int32": True},
    ],
    "aten::select_scatter.default": [{"self": SELF, "src": values(4), "dim": 1, "index": index} for index in (0, -2)],
    "aten::slice_scatter.default": [
        {"self": SELF, "src": values(4, 2), "dim": 1, "start": 3, "end": 5},
        {"self": SELF, "src": values(4, 2), "dim": -1, "start": -2, "end": 2**63 - 1},
        {"self": SELF, "src": values(4, 3), "dim": 1, "step": 2},
        {"self": SELF, "src": values(0, 6), "start": 3, "end": 1},
    ],
    "aten::special_log_ndtr.default": [{"self": torch.tensor([-40.0, -3.0, 0.5, 1.0, 5.0, 40.0]).double()}],
    "aten::stft.center": [
        {
            "self": values(2, 30),
            "n_fft": 8,
            "window": torch.hann_window(6).double(),
            "win_length": 6,
            "normalized": True,
            "return_complex": True,
        },
        {"self": values(30), "n_fft": 7, "hop_length": 3, "pad_mode": "constant", "onesided": False, "return_complex": True},
    ],
    "aten::stft.default": [{"self": values(30), "n_fft": 8, "return_complex": False}],
    "aten::subtract.Scalar": [{"self": SELF, "other": 2, "alpha": 3}],
    "aten::take.default": [{"self": SELF, "index": torch.tensor([[3, -1], [0, 3]])}],
    "aten::tensor_split.tensor_indices_or_sections": [
        {"self": SELF, "tensor_indices_or_sections": torch.tensor([1, 4]), "dim": 1},
        {"self": SELF, "tensor_indices_or_sections": torch.tensor(3)},
    ],
    "aten::unsafe_split_with_sizes.default": [{"self": SELF, "split_sizes": [1, 5], "dim": 1}],
    "aten::vander.default": [{"x": values(4)}, {"x": values(4), "N": 3, "increasing": True}],
    "aten::zero.default": [{"self": SELF}],
}
CASES = [(name, i) for name, examples in EXAMPLES.items() for i in range(len(examples))]
# torch's own says not what else it returns, differentiates in place alone, or not at all.
FIRST_RESULT = {name for name in EXAMPLES if "embedding_bag" in name}
REFERENCES: dict[str, Any] = {
    "aten::_stack.default": torch.stack,
    "aten::copy.default": lambda self, src: self.clone().copy_(src),
    "aten::linalg_pinv.rcond_tensor": lambda self, rcond: torch.linalg.pinv(self, rtol=rcond.detach()),
    "aten::native_channel_shuffle.default": lambda self, groups: torch.cat([self[:, i::2] for i in range(2)], dim=1),
    "aten::vander.default": lambda x, N=4, increasing=False: torch.stack([x**n for n in range(N)][:: 1 if increasing else -1], 1),
}


def leaves_of(arguments: dict[str, Any]) -> dict[str, Tensor]:
    """The floating point tensors among arguments, by name, and by position within lists."""
    found = {}
    for name, value in arguments.items():
        several = value if isinstance(value, list) else [value]
        found.update({f"{name} {i}": item for i, item in enumerate(several) if isinstance(item, Tensor) and item.is_floating_point()})
    return found


def with_leaves(arguments: dict[str, Any], leaves: dict[str, Tensor]) -> dict[str, Any]:
    def put(name: str, value: Any) -> Any:
        if isinstance(value, list):
            return [leaves.get(f"{name} {i}", item) for i, item in enumerate(value)]
        return leaves.get(f"{name} 0", value)

    return {name: put(name, value) for name, value in arguments.items()}


def results_of(name: str, function: Any, arguments: dict[str, Any]) -> tuple[Tensor, ...]:
    found = tensors_of(function(**arguments))
    return tuple(found[:1] if name in FIRST_RESULT else found)


def gradients(results: Any, leaves: Any) -> list[Tensor]:
    """Gradients of a weighted sum of results."""
    parts = [torch.view_as_real(part) if part.is_complex() else part for part in results if part.requires_grad]
    if not parts:
        return [torch.zeros_like(leaf) for leaf in leaves]
    total = sum((part * torch.linspace(0.5, 1.5, part.numel(), dtype=part.dtype).view(part.shape)).sum() for part in parts)
    assert isinstance(total, Tensor)
    found = torch.autograd.grad(total, list(leaves), allow_unused=True)
    return [torch.zeros_like(leaf) if part is None else part for part, leaf in zip(found, leaves, strict=True)]


def test_every_form_has_examples() -> None:
    assert EXAMPLES.keys() == {*WITHOUT_BATCHING_RULE, *ALWAYS}


@pytest.mark.usefixtures("no_loops")
@pytest.mark.parametrize(("name", "i"), CASES)
def test_forms_are_their_operators_for_one_network_and_for_several(name: str, i: int) -> None:
    arguments, form = EXAMPLES[name][i], ALWAYS.get(name) or BATCHED[name]
    operator = REFERENCES.get(name, operator_named(*name.split(".")))
    keys, leaves = list(leaves_of(arguments)), list(leaves_of(arguments).values())

    def run(function: Any, *given: Tensor) -> tuple[Tensor, ...]:
        return results_of(name, function, with_leaves(arguments, dict(zip(keys, given, strict=True))))

    def stacked(*many: Tensor) -> list[Tensor]:
        return [torch.stack(parts) for parts in zip(*(run(operator, *given) for given in zip(*many, strict=True)), strict=True)]

    expected = run(operator, *leaves)
    torch.testing.assert_close(run(operator_named(*name.split(".")), *leaves), expected, rtol=1e-12, atol=1e-12, equal_nan=True)
    torch.testing.assert_close(run(form, *leaves), expected, rtol=1e-12, atol=1e-12, equal_nan=True)
    assert [part.dtype for part in run(form, *leaves)] == [part.dtype for part in expected]
    if not leaves:
        return
    many = [torch.stack([leaf, leaf * 1.5]).requires_grad_() for leaf in leaves]
    found = torch.func.vmap(lambda *given: run(form, *given))(*many)
    wanted = stacked(*many)
    torch.testing.assert_close(list(found), wanted, rtol=1e-12, atol=1e-12, equal_nan=True)
    torch.testing.assert_close(gradients(found, many), gradients(wanted, many), rtol=1e-10, atol=1e-10, equal_nan=True)
    # Batches of each argument alone: the others are those of all networks.
    for k, leaf in enumerate(many):
        dims = [0 if j == k else None for j in range(len(many))]
        given = [leaf if j == k else other for j, other in enumerate(leaves)]
        found = torch.func.vmap(lambda *given: run(form, *given), in_dims=tuple(dims))(*given)
        wanted = stacked(*(part if j == k else torch.stack([part, part]) for j, part in enumerate(given)))
        torch.testing.assert_close(list(found), wanted, rtol=1e-12, atol=1e-12, equal_nan=True)
        torch.testing.assert_close(gradients(found, [leaf]), gradients(wanted, [leaf]), rtol=1e-10, atol=1e-10, equal_nan=True)


# Their results have sizes that depend on values, they are for GPUs alone, or programs never hold them.
LOOPED = {"aten::bincount", "aten::repeat_interleave.Tensor", "aten::lift_fresh_copy", "aten::_convolution.deprecated"}
LOOPED |= {f"aten::{name}.data" for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")}
LOOPED |= {f"aten::{name}.dtype" for name in ("addmm", "baddbmm", "bmm", "mm")}


def test_operators_that_programs_may_name_have_a_rule_for_batches_or_a_form() -> None:
    def has(name: str, key: str) -> bool:
        return bool(torch._C._dispatch_has_kernel_for_dispatch_key(name, key))

    missing, count = set(), 0
    for full in torch._C._dispatch_get_all_op_names():
        name, _, overload = full.partition(".")
        if not name.startswith("aten::") or not is_allowed(name):
            continue
        schema = operator_named(name, overload or "default")._schema
        reads_tensors = any("Tensor" in str(argument.type) for argument in schema.arguments)
        if schema.is_mutable or not reads_tensors or "Dimname" in str(schema):
            continue
        count += 1
        ruled = any(has(full, key) for key in ("FuncTorchBatched", "FuncTorchBatchedDecomposition"))
        if not ruled and f"{name}.{overload or 'default'}" not in {*BATCHED, *ALWAYS, *DIFFERENTIABLE}:
            missing.add(full)
    assert count > 500
    assert missing == LOOPED
