"""Message-passing layers and models on parameter graphs."""

from wsgraph.nn.message.monomial import MonomialConv, MonomialGNN, canonical_features
from wsgraph.nn.message.neural_graph import NeuralGraphConv, NeuralGraphNet, NeuralGraphTransformer, RelationalAttention
from wsgraph.nn.message.scalegmn import ScaleGMN, ScaleGMNConv
from wsgraph.nn.message.wiring import Wiring

__all__ = [
    "MonomialConv",
    "MonomialGNN",
    "NeuralGraphConv",
    "NeuralGraphNet",
    "NeuralGraphTransformer",
    "RelationalAttention",
    "ScaleGMN",
    "ScaleGMNConv",
    "Wiring",
    "canonical_features",
]
