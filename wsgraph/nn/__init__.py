"""Layers and models that read parameter graphs."""

from wsgraph.nn.message import MonomialGNN, NeuralGraphConv, NeuralGraphNet
from wsgraph.nn.registry import ModelEntry, build_model, list_models, model_entry, register_model
from wsgraph.nn.sharing import STATNN, MonomialLinear, MonomialNFN, MonomialPointwise, MonomialPool, StatFeaturizer

__all__ = [
    "STATNN",
    "ModelEntry",
    "MonomialGNN",
    "MonomialLinear",
    "MonomialNFN",
    "MonomialPointwise",
    "MonomialPool",
    "NeuralGraphConv",
    "NeuralGraphNet",
    "StatFeaturizer",
    "build_model",
    "list_models",
    "model_entry",
    "register_model",
]
