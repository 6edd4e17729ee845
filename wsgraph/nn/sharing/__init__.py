"""Parameter-sharing layers and models: dense blocks in, nothing scattered."""

from wsgraph.nn.sharing.activation import Activation
from wsgraph.nn.sharing.attention import NPAttention
from wsgraph.nn.sharing.layout import Entries, Layout, SharingModule
from wsgraph.nn.sharing.linear import (
    HNPLinear,
    MonomialLinear,
    MonomialSineLinear,
    NPLinear,
    Pointwise,
    SharingLinear,
    Source,
    Target,
    Term,
)
from wsgraph.nn.sharing.magep import MAGEPInvariant, MAGEPLinear
from wsgraph.nn.sharing.models import MAGEPNFN, MLP, STATNN, HNPNet, MonomialNFN, NPNet
from wsgraph.nn.sharing.pool import HNPPool, MonomialNormalize, MonomialPool, NPPool
from wsgraph.nn.sharing.statistics import StatFeaturizer

__all__ = [
    "MAGEPNFN",
    "MLP",
    "STATNN",
    "Activation",
    "Entries",
    "HNPLinear",
    "HNPNet",
    "HNPPool",
    "Layout",
    "MAGEPInvariant",
    "MAGEPLinear",
    "MonomialLinear",
    "MonomialNFN",
    "MonomialNormalize",
    "MonomialPool",
    "MonomialSineLinear",
    "NPAttention",
    "NPLinear",
    "NPNet",
    "NPPool",
    "Pointwise",
    "SharingLinear",
    "SharingModule",
    "Source",
    "StatFeaturizer",
    "Target",
    "Term",
]
