"""What the keys of a state dict say of its tensors: roles, layers, and what is no layer of a chain."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

__all__ = [
    "common_prefix",
    "foreign_key",
    "names_before",
    "names_beside",
    "names_members",
    "names_sequence",
    "role",
    "several_by_name",
    "stem",
    "words",
]

_ROLE = re.compile(r"(?<![a-z])(?:(?P<weight>weights?|kernels?|coefs?|w)|(?P<bias>bias(?:es)?|intercepts?|b))(?![a-z])", re.IGNORECASE)
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


def _listed(text: str) -> frozenset[str]:
    return frozenset(text.split())


def role(key: str) -> str | None:
    """Whether a key calls its tensor a weight or a bias."""
    matches = list(_ROLE.finditer(key))
    return matches[-1].lastgroup if matches else None


def stem(key: str) -> tuple[str, ...]:
    """What is left of a key without its role word: equal for the weight and the bias of one layer."""
    matches = list(_ROLE.finditer(key))
    rest = f"{key[: matches[-1].start()]}.{key[matches[-1].end() :]}" if matches else key
    return tuple(re.findall(r"[^\W\d_]+|\d+", rest.lower()))


@functools.lru_cache(maxsize=65536)
def words(text: str) -> frozenset[str]:
    """The words of a name, whether divided by signs or by capitals: of ``"qNet_target"``, q, net and target."""
    return frozenset(word.lower() for word in _WORD.findall(text))


def common_prefix(keys: Iterable[str]) -> str:
    """The longest beginning, in whole segments such as ``"model.net."``, that all keys have."""
    keys = list(keys)
    first, last = min(keys), max(keys)
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[: max(first.rfind(sign, 0, length) for sign in "./") + 1]


# == Keys that are not of a layer ==


class _Foreign(NamedTuple):
    """Keys that no layer of a chain has."""

    pattern: re.Pattern[str]
    says: str
    applies: Callable[[str, Mapping[str, Tensor]], bool] = lambda key, state: True
    # Of other networks, a name that all keys have is that of the network.
    of_all_keys: bool = False


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![a-z])(?:{text})(?![a-z])", re.IGNORECASE)


def _has_partner(key: str, state: Mapping[str, Tensor]) -> bool:
    """Whether both the length and the direction of a normed weight are there, ``weight_g`` and ``weight_v``."""
    return {f"{key[:-1]}g", f"{key[:-1]}v"} <= state.keys()


def _is_table(key: str, state: Mapping[str, Tensor]) -> bool:
    """Whether a tensor may be a table of vectors: linear layers of these names are told by their bias."""
    own = stem(key)
    return state[key].ndim in (2, 3) and not any(role(other) == "bias" and stem(other) == own for other in state)


_REMOVE = "call torch.nn.utils.{} first, which gives the layer its weight back"
_FOREIGN = (
    _Foreign(
        _pattern(
            r"lora\w*|dora\w*|loha\w*|lokr\w*|hada_w\w*|ia3\w*|oft_\w*|vera_\w*|boft_\w*|adapters?[._](?:down|up|\d)\w*"
            r"|modules_to_save|original_module"
        ),
        "belongs to an adapter, such as LoRA's, which changes the weights of another network and is none itself: merge it into that "
        "network first (in PEFT: model.merge_and_unload())",
        of_all_keys=True,
    ),
    _Foreign(
        _pattern(r"parametrizations"),
        "is what a parametrized weight (weight norm, spectral norm, orthogonal) is computed from, not the weight: "
        + _REMOVE.format("parametrize.remove_parametrizations(layer, 'weight')"),
    ),
    _Foreign(
        re.compile(r"_[gv]$"),
        "is the length or the direction of a weight under weight norm, not the weight: " + _REMOVE.format("remove_weight_norm(layer)"),
        _has_partner,
    ),
    _Foreign(
        re.compile(r"_(?:orig|mask)$"),
        "belongs to a weight that is pruned, not the weight: " + _REMOVE.format("prune.remove(layer, 'weight')"),
        lambda key, state: f"{key.rpartition('_')[0]}_mask" in state,
    ),
    _Foreign(
        re.compile(r"(?<![a-z])masks?$"),
        "is a mask, by which a layer multiplies its weight: save the product as the weight, and leave the mask out",
    ),
    _Foreign(
        re.compile(r"_(?:orig|u|v)$"),
        "belongs to a weight under spectral norm, not the weight: " + _REMOVE.format("remove_spectral_norm(layer)"),
        lambda key, state: f"{key.rpartition('_')[0]}_orig" in state,
    ),
    _Foreign(
        _pattern(
            r"\w*weight_scales?|scales|input_scale|zero_?points?|qweight|qzeros|g_idx|\w*absmax|\w*quant_map|quant_state\w*|_?packed_params"
            r"|SCB|weight_format|fake_quant\w*|weight_fake_quant|act(?:ivation)?_post_process\w*|observer"
        ),
        "belongs to a quantised network: dequantize it first",
        of_all_keys=True,
    ),
    _Foreign(
        _pattern(r"optim(?:izer)?s?|exp_avg\w*|max_exp_avg\w*|momentum_buffer|square_avg|acc_delta|param_groups"),
        "is a state of an optimizer, not of a network: leave it out",
        of_all_keys=True,
    ),
    _Foreign(
        re.compile(r"(?<![a-z])grad(?:ient)?s?$"),
        "is called as a gradient is, not as a weight: leave it out",
    ),
    _Foreign(
        _pattern(r"rff\w*|fourier\w*|freqs?|frequency|frequencies|random_features?"),
        "is called as frequencies are, of which inputs become sines and cosines, and is no linear layer: trace the module instead",
        lambda key, state: _is_table(key, state),
    ),
    _Foreign(
        _pattern(r"t(?:ime)?_?emb\w*|cond(?:_?(?:emb\w*|proj|mlp|net))?|film|modulations?"),
        "is called as what conditions a network is, which reads another input than its layers do: trace the module instead",
    ),
    _Foreign(
        _pattern(r"bilinear\w*"),
        "belongs to a bilinear layer, which multiplies two inputs: trace the module instead",
        lambda key, state: state[key].ndim == 3,
    ),
    _Foreign(
        re.compile(r"_(?:mu|sigma|rho|epsilon|eps|log_?sigma)$", re.IGNORECASE),
        "belongs to a weight that is drawn at random, of a Bayesian or noisy layer: save the weight that is meant",
        lambda key, state: role(key) is not None,
    ),
    _Foreign(
        _pattern(r"experts?|router|moe"),
        "belongs to a mixture of experts, of which each input reads some: trace the module instead",
    ),
    _Foreign(
        _pattern(r"gate|gates|gated|gating|glu|swiglu|geglu|(?:gate|up|down)_proj|wi_[01]|highway"),
        "belongs to a gate, which multiplies neurons with other ones, and is no layer after another: trace the module instead",
    ),
    _Foreign(
        _pattern(r"hyper\w*|fast_weights?"),
        "belongs to a network that makes the weights of another one: read that one by prefix=, or trace the module",
    ),
    _Foreign(
        _pattern(
            r"(?:conv_?)?transposed?(?:_?conv\w*)?|convt\w*|conv\d?d?_?t(?:ranspose)?|deconv\w*|tconv\w*|upconv\w*|unconv\w*|ups?(?:ampl\w*|scal\w*)?"
        ),
        "is called as transposed convolutions are, whose weights are stored [in, out]: trace the module instead",
        lambda key, state: state[key].ndim > 2,
    ),
    _Foreign(
        _pattern(r"d(?:epth)?_?w(?:ise)?(?:_?conv\w*)?|conv_?dw|grouped\w*|spatial_conv"),
        "is called as depthwise or grouped convolutions are, which connect channels within groups alone: trace the module instead",
        lambda key, state: state[key].ndim > 2,
    ),
)
_TABLES = _listed(
    "emb embs embed embeds embedding embeddings embedder wte wpe vocab vocabulary codebook lookup token tokens tok pos position positional "
    "positions prototype prototypes centers centroids queue memory"
)
# Shapes of these layers can chain by accident, above all where all widths are equal.
_OTHER_WIRING = _pattern(
    r"attn|attention|in_proj|[qkv]_proj|to_[qkv]+|qkv|query|w[qkvo]|c_attn|weight_[ih]h\w*|lstm\w*|gru\w*|rnn\w*|[ihx]2[iho]|recurrent\w*"
    r"|downsample|shortcut|skip|skips|res|residuals?|res_?blocks?|identity"
)


def foreign_key(key: str, prefix: str, state: Mapping[str, Tensor]) -> tuple[str, bool] | None:
    """What a tensor is if not the weight or bias of a layer, as its key says, and whether that says also what to do.

    Args:
        key: The key, without what all keys begin with.
        prefix: That.
        state: The tensors by such keys.
    """
    for foreign in _FOREIGN:
        if foreign.pattern.search(prefix + key if foreign.of_all_keys else key) and foreign.applies(key, state):
            return foreign.says, True
    if words(key) & _TABLES and _is_table(key, state):
        says = "is called as a table of vectors is (an embedding), from which inputs choose rows, and is no linear layer"
        return f"{says}; give it another name if it is one", True
    if _OTHER_WIRING.search(key):
        return "a layer that reads the layer before it alone (keys of this name belong to attention, recurrent or residual layers)", False
    return None


# == Several networks in one dict, or sections of one ==


# One of these words beside a name without it makes a copy of a network.
_COPIES = _listed(
    "target targ tgt ema teacher student momentum shadow swa averaged avg old frozen ref reference backup polyak slow fast lagged copy "
    "clone duplicate previous best online branch"
)
# Two of these beside each other read the same layer, or are networks of their own.
_HEADS = _listed(
    "policy value values actor critic advantage adv pi v q vf qf action logits baseline reward done mu mean loc key logvar var sigma std "
    "logstd scale cls class reg regression regressor bbox box boxes objectness aux auxiliary generator discriminator gen disc left right "
    "image text vision visual audio language rgb density alpha color heatmap confidence keypoint keypoints mask depth segmentation "
    "dynamics transition shift gamma beta prior posterior"
)
_ACTORS, _ACTIONS = _listed("policy actor pi"), _listed("mu mean loc action logits")
# Several of these with a number or letter are heads of one trunk, branches, or members of an ensemble.
_NUMBERED = _listed(
    "head heads branch branches tower towers stream streams member members critic critics actor "
    "actors estimator estimators learner learners agent agents player players ensemble ensembles "
    "expert experts policies discriminators generators task tasks exit exits arm arms"
)
# What is numbered under one of these are such, even single layers.
_COLLECTIONS = _listed(
    "heads branches towers streams members critics actors estimators learners agents ensemble ensembles experts policies discriminators "
    "generators tasks exits arms"
)
_MEMBERS = _listed("models nets networks mlps cnns modules submodels")
_SECTIONS = _listed(
    "encoder decoder features feature extractor backbone body trunk stem base neck head tail classifier predictor projector projection fc "
    "mlp conv convs cnn output out embed down up"
)
# Layers before all others, and behind all others; encoders before decoders.
_FIRST, _LAST = _listed("input inputs in first initial stem pre"), _listed("output outputs out last final head classifier tail")
_ENCODERS, _DECODERS = _listed("encoder enc"), _listed("decoder dec")
_PLACES = _listed(
    "input inputs in hidden output outputs out first second third fourth last mid middle final start end begin pre post intermediate "
    "initial inner outer one two three four five"
)


def several_by_name(names: Sequence[str], parent: str = "") -> bool:
    """Whether names beside each other are those of networks or heads beside each other, not of layers one behind the other.

    Args:
        names: Names under one parent, such as ``["trunk", "policy", "value"]``.
        parent: Name of that.

    Example:
        >>> several_by_name(["trunk", "policy", "value"]), several_by_name(["q_net", "q_net_target"]), several_by_name(["0", "1"], "heads")
        (True, True, True)
        >>> several_by_name(["encoder", "decoder"]), several_by_name(["fc1", "fc2", "value"]), several_by_name(["0", "1"], "layers")
        (False, False, False)
        >>> several_by_name(["latent_pi", "mu"]), several_by_name(["latent_pi", "mu", "log_std"])
        (False, True)
    """
    if len(names) < 2:
        return False
    said = [words(name) for name in names]
    shared = frozenset[str].intersection(*said)
    heads = [own for name in said if (own := (name & _HEADS) - shared)]
    numbered = [own for name in said if (own := name & _NUMBERED) and "pre" not in name]
    return (
        any((name & _COPIES) - shared for name in said)
        or any(not first & second and not _is_actor(first | second) for first, second in itertools.combinations(heads, 2))
        or any(first & second for first, second in itertools.combinations(numbered, 2))
        or (bool(words(parent) & _COLLECTIONS) and all(name.isdigit() or not re.search(r"\d", name) for name in names))
    )


def names_beside(names: Sequence[str]) -> list[str]:
    """Names that one word or letter tells apart, none that says an order: such as ``lin_l`` and ``lin_r``, or ``obs_fc`` and ``act_fc``.

    Example:
        >>> names_beside(["lin_l", "lin_r", "out"]), names_beside(["input_layer", "output_layer"]), names_beside(["fc1", "fc2"])
        (['lin_l', 'lin_r'], [], [])
        >>> names_beside(["fc", "out1", "out2"])
        ['out1', 'out2']
    """
    names = [name for name in names if not name.isdigit()]
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            shared = words(first) & words(second)
            rest = [words(name) - shared for name in (first, second)]
            unlike = [(a, b) for a, b in zip(first, second, strict=False) if a != b]
            letter = len(first) == len(second) and len(unlike) == 1 and all(a.isalpha() and b.isalpha() for a, b in unlike)
            letter = letter and (len(first) > 1 or (first + second).isupper())
            if shared & {"out", "output", "outputs"} and re.sub(r"\d", "", first) == re.sub(r"\d", "", second):
                return [first, second]
            if ((shared and all(rest)) or letter) and not any((words(name) - shared) & (_PLACES | _SECTIONS) for name in (first, second)):
                return [first, second]
    return []


def _is_actor(heads: frozenset[str]) -> bool:
    """Whether these are an actor and the mean of its actions, which is no second head."""
    return bool(heads & _ACTORS and heads & _ACTIONS) and heads <= _ACTORS | _ACTIONS


def names_before(first: str, second: str) -> bool:
    """Whether two names beside each other say that the first is of layers before those of the second.

    Example:
        >>> names_before("encoder", "decoder"), names_before("fc_in", "hidden"), names_before("fc1", "head"), names_before("phi", "rho")
        (True, True, True, False)
    """
    said = words(first), words(second)
    rank, other = (bool(name & _LAST) - bool(name & _FIRST) for name in said)
    return rank < other or bool(said[0] & _ENCODERS and said[1] & _DECODERS)


def names_sequence(names: Sequence[str]) -> bool:
    """Whether names beside each other are those of consecutive sections of one network, such as encoder and decoder."""
    said = [words(name) for name in names]
    return all(name & _SECTIONS - frozenset[str].intersection(*said) for name in said)


def names_members(parent: str) -> bool:
    """Whether what is numbered under a name are networks, such as those under ``"models"``."""
    return bool(words(parent) & _MEMBERS)
