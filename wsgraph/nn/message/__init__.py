"""Message-passing layers and models on parameter graphs."""

from wsgraph.nn.message.monomial_gnn import MonomialGNN, canonical_features
from wsgraph.nn.message.neural_graph import NeuralGraphConv, NeuralGraphNet

__all__ = ["MonomialGNN", "NeuralGraphConv", "NeuralGraphNet", "canonical_features"]
