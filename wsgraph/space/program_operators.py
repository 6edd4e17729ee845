"""The operators that programs may name, and how they are called."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch

from wsgraph.operators import operators_called

__all__ = ["Dtype", "Reference", "StepError", "allow_operator", "check_arguments", "is_allowed", "operator_named"]

# The operators of torch.ops.aten that programs may name: functions of tensors, which write to nothing, draw no random numbers and read no
# files. What is not among them cannot be run, whatever a file says.
_NAMES = """
    _adaptive_avg_pool2d _adaptive_avg_pool3d _cdist_forward _convolution _convolution_mode _embedding_bag _euclidean_dist _log_softmax
    _native_batch_norm_legit _native_batch_norm_legit_no_training _prelu_kernel _safe_softmax _softmax _stack _to_copy _trilinear
    _unsafe_index _unsafe_index_put _unsafe_view _upsample_bicubic2d_aa _upsample_bilinear2d_aa _upsample_nearest_exact1d
    _upsample_nearest_exact2d _upsample_nearest_exact3d _weight_norm abs absolute acos acosh adaptive_avg_pool1d adaptive_avg_pool2d
    adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d add addbmm addcdiv addcmul addmm addmv addr
    affine_grid_generator alias amax amin aminmax angle arange arccos arccosh arcsin arcsinh arctan arctan2 arctanh argmax argmin argsort
    all any asin asinh atan atan2 atanh atleast_1d atleast_2d atleast_3d avg_pool1d avg_pool2d avg_pool3d baddbmm bartlett_window batch_norm
    bilinear bincount bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor blackman_window block_diag bmm
    broadcast_tensors broadcast_to bucketize cat cdist ceil celu chain_matmul channel_shuffle chunk clamp clamp_max clamp_min clip clone
    col2im column_stack complex concat concatenate conj conj_physical constant_pad_nd contiguous conv1d conv2d conv3d conv_tbc
    conv_transpose1d conv_transpose2d conv_transpose3d convolution copy copysign cos cosh cosine_similarity count_nonzero cross
    cross_entropy_loss cudnn_batch_norm cummax cummin cumprod cumsum deg2rad det detach diag diag_embed diagflat diagonal diagonal_scatter
    diff digamma dist div divide dot dsplit dstack einsum elu embedding embedding_bag eq erf erfc erfinv exp exp2 expand expand_as expm1
    eye fft_fft fft_fft2 fft_fftfreq fft_fftn fft_fftshift fft_hfft fft_ifft fft_ifft2 fft_ifftn fft_ifftshift fft_ihfft fft_irfft
    fft_irfft2 fft_irfftn fft_rfft fft_rfft2 fft_rfftfreq fft_rfftn fill flatten flip fliplr flipud float_power floor floor_divide fmax
    fmin fmod frac frobenius_norm full full_like gather ge gelu glu greater greater_equal grid_sampler grid_sampler_2d grid_sampler_3d
    group_norm gru gru_cell gt hamming_window hann_window hardshrink hardsigmoid hardswish hardtanh heaviside hsplit hstack huber_loss
    hypot i0 im2col imag index index_add index_copy index_fill index_put index_reduce index_select inner instance_norm inverse isclose
    isfinite isin isinf isnan isneginf isposinf isreal kaiser_window kron kthvalue l1_loss layer_norm ldexp le leaky_relu lerp less
    less_equal lgamma lift_fresh_copy linalg_cholesky linalg_cross linalg_det linalg_diagonal linalg_eigh linalg_eigvalsh
    linalg_householder_product linalg_inv linalg_inv_ex linalg_matmul linalg_matrix_exp linalg_matrix_norm linalg_matrix_power
    linalg_multi_dot linalg_norm linalg_pinv linalg_qr linalg_slogdet linalg_solve linalg_solve_ex linalg_solve_triangular linalg_svd
    linalg_svdvals linalg_vander linalg_vecdot linalg_vector_norm linear linspace log log10 log1p log2 log_sigmoid log_softmax logaddexp
    logaddexp2 logcumsumexp logdet logical_and logical_not logical_or logical_xor logit logspace logsumexp lstm lstm_cell lt mH mT
    masked_fill masked_scatter matmul matrix_exp matrix_power max max_pool1d max_pool1d_with_indices max_pool2d max_pool2d_with_indices
    max_pool3d max_pool3d_with_indices max_unpool2d max_unpool3d maximum mean median meshgrid min minimum mish mm mode moveaxis movedim
    mse_loss msort mul multiply mv nan_to_num nanmean nanmedian nanquantile nansum narrow native_batch_norm native_channel_shuffle
    native_group_norm native_layer_norm ne neg negative new_full new_ones new_zeros norm norm_except_dim not_equal numpy_T one_hot ones
    ones_like outer pad pad_sequence pairwise_distance pdist permute pinverse pixel_shuffle pixel_unshuffle polar polygamma positive pow
    prelu prod put quantile rad2deg ravel real reciprocal reflection_pad1d reflection_pad2d reflection_pad3d relu relu6 remainder renorm
    repeat repeat_interleave replication_pad1d replication_pad2d replication_pad3d reshape reshape_as resolve_conj resolve_neg rms_norm
    rnn_relu rnn_relu_cell rnn_tanh rnn_tanh_cell roll rot90 round rrelu rsqrt rsub scalar_tensor scaled_dot_product_attention scatter
    scatter_add scatter_reduce searchsorted select select_scatter selu sgn sigmoid sign signbit silu sin sinc sinh slice slice_scatter
    slogdet smooth_l1_loss softmax softplus softshrink softsign sort special_digamma special_entr special_erf special_erfc special_erfcx
    special_erfinv special_exp2 special_expit special_expm1 special_gammainc special_gammaincc special_gammaln special_i0 special_i0e
    special_i1 special_i1e special_log1p special_log_ndtr special_log_softmax special_logit special_logsumexp special_multigammaln
    special_ndtr special_ndtri special_polygamma special_psi special_round special_sinc special_softmax special_xlog1py special_xlogy
    special_zeta split split_with_sizes sqrt square squeeze stack std std_mean stft istft sub subtract sum sum_to_size svd swapaxes
    swapdims t take take_along_dim tan tanh tensor_split tensordot threshold tile to topk trace transpose trapezoid triangular_solve tril
    tril_indices triu triu_indices true_divide trunc type_as unbind unflatten unfold unsafe_chunk unsafe_split unsafe_split_with_sizes
    unsqueeze upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d upsample_nearest3d
    upsample_trilinear3d vander var var_mean vdot view view_as view_as_complex view_as_real vsplit vstack where xlogy zero zeros zeros_like
    adjoint matrix_H
    """
_ATEN = frozenset(_NAMES.split())
_custom: set[str] = set()
_IDENTIFIER = re.compile(r"^[A-Za-z_][A-Za-z_0-9]*::[A-Za-z_][A-Za-z_0-9]*$")


def allow_operator(name: str) -> None:
    """Let programs name an operator that a library registers with ``torch.library``.

    It must be a function of tensors: the same results for the same arguments, and nothing written to.

    Args:
        name: ``"library::operator"``.

    Raises:
        ValueError: If the name is written otherwise.

    Example:
        >>> allow_operator("mylib::rotate")
        >>> allow_operator("rotate")
        Traceback (most recent call last):
        ...
        ValueError: Expected an operator as 'library::operator' (got 'rotate').
    """
    if not isinstance(name, str) or not _IDENTIFIER.match(name):
        raise ValueError(f"Expected an operator as 'library::operator' (got {name!r}).")
    _custom.add(name)


def is_allowed(name: str) -> bool:
    """Whether programs may name an operator, ``"library::operator"``."""
    library, _, operator = name.partition("::")
    own = library == "aten"
    return (own and operator in _ATEN) or name in _custom or bool(operators_called(operator if own else name))


class StepError(ValueError):
    """An operator of a program does not run on what it is given."""


@dataclass(frozen=True)
class Reference:
    """What a step reads: an input, a parameter, a constant, or a result of an earlier step.

    Args:
        kind: ``"input"``, ``"parameter"``, ``"constant"`` or ``"step"``.
        key: Name of the parameter, or position among the inputs, constants or steps.
        item: Which result of a step that has several.
    """

    kind: str
    key: int | str
    item: int | None = None


@dataclass(frozen=True)
class Dtype:
    """A dtype among the arguments of a step.

    Args:
        name: That of the traced network, such as ``"float32"``.
        follows: ``"always"`` where it was the dtype of the network itself, so that it is that of the weights when the network is run;
            ``"up"`` where it was a wider one, which weights of a yet wider one replace; empty where it stays.
    """

    name: str
    follows: str = ""

    def resolve(self, weights: torch.dtype) -> torch.dtype:
        """The dtype when weights have the given one."""
        own: torch.dtype = getattr(torch, self.name)
        return weights if self.follows == "always" else torch.promote_types(own, weights) if self.follows == "up" else own


def operator_named(operator: str, overload: str) -> Any:
    """The operator that a step names, and its form.

    Raises:
        ValueError: If programs may not name it, or nobody has registered it.
    """
    if not is_allowed(operator):
        raise ValueError(
            f"The program names an operator {operator!r} that is not among those that programs may name. One of your own is let in "
            "with wsgraph.space.register_operator or wsgraph.convert.tracing.register_traced_operator."
        )
    library, _, name = operator.partition("::")
    packet = getattr(getattr(torch.ops, library), name, None)
    if packet is None:
        raise ValueError(f"The operator {operator!r} of the program is not registered here: import the library that has it first.")
    if overload not in packet.overloads():
        raise ValueError(f"The operator {operator!r} has no overload {overload!r} in torch {torch.__version__}.")
    return getattr(packet, overload)


def check_arguments(operator: str, overload: str, arguments: tuple[tuple[str, Any], ...]) -> None:
    """Check the arguments of a step against the schema of its operator.

    Raises:
        ValueError: If one lacks, is unknown, or is of another kind.
    """
    try:
        schema = operator_named(operator, overload)._schema
    except ValueError as error:
        if operator.startswith("aten::") or not is_allowed(operator):
            raise
        if "not registered" not in str(error):
            raise
        return  # a space can be read without the library that runs its networks
    names = [name for name, _ in arguments]
    known = {argument.name: argument for argument in schema.arguments}
    if schema.is_mutable:
        raise ValueError(f"The operator {operator}.{overload} writes to its arguments, which programs do not.")
    if len(set(names)) < len(names) or (unknown := [name for name in names if name not in known]):
        raise ValueError(f"The operator {operator}.{overload} has no argument {unknown[0] if unknown else names!r}.")
    for name, argument in known.items():
        if name not in names and not argument.has_default_value():
            raise ValueError(f"The operator {operator}.{overload} lacks its argument {name!r} in the program.")
    for name, value in arguments:
        if not _fits(str(known[name].type), value):
            raise ValueError(f"Expected {known[name].type} as argument {name!r} of {operator}.{overload} (got {value!r:.80}).")


def _fits(kind: str, value: Any) -> bool:
    """Whether a value is of the kind that a schema says."""
    if match := re.fullmatch(r"Optional\[(.*)\]", kind):
        return value is None or _fits(match[1], value)
    if match := re.fullmatch(r"List\[(.*)\]", kind):
        single = match[1] in ("int", "float") and not isinstance(value, tuple)  # one number for all dimensions
        return _fits(match[1], value) if single else isinstance(value, tuple) and all(_fits(match[1], item) for item in value)
    if kind == "Tensor":
        return isinstance(value, Reference) or (isinstance(value, (int, float, complex)) and _fits("number", value))
    if kind == "int" and isinstance(value, Dtype):
        return True
    kinds: dict[str, tuple[type, ...]] = {
        "int": (int,),
        "float": (int, float),
        "number": (int, float, complex, bool),
        "bool": (bool,),
        "str": (str,),
        "complex": (int, float, complex),
    }
    if isinstance(value, bool) and kind in ("int", "float"):
        return False
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**63:
        return False
    return isinstance(value, kinds.get(kind, ()))
