"""Parameter-sharing layers and models: dense blocks in, nothing scattered."""

from wsgraph.nn.sharing.monomial import MonomialLinear, MonomialNFN, MonomialPointwise, MonomialPool
from wsgraph.nn.sharing.statistics import STATNN, StatFeaturizer

__all__ = ["STATNN", "MonomialLinear", "MonomialNFN", "MonomialPointwise", "MonomialPool", "StatFeaturizer"]
