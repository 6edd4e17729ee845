"""Zoos made here: what networks are trained on, how, and the calls that make zoos of common kinds."""

from wsgraph.data.generators.architectures import Architecture, architecture_of, list_architectures, register_architecture
from wsgraph.data.generators.classifiers import Classifiers
from wsgraph.data.generators.configuration import read_zoo_configuration
from wsgraph.data.generators.generate import generate_zoo
from wsgraph.data.generators.hyperparameters import HyperparameterRanges
from wsgraph.data.generators.image_fits import ImageFits
from wsgraph.data.generators.problem import Problem
from wsgraph.data.generators.zoos import make_cnn_zoo, make_inr_zoo, make_mlp_zoo, make_zoo

__all__ = [
    "Architecture",
    "Classifiers",
    "HyperparameterRanges",
    "ImageFits",
    "Problem",
    "architecture_of",
    "generate_zoo",
    "list_architectures",
    "make_cnn_zoo",
    "make_inr_zoo",
    "make_mlp_zoo",
    "make_zoo",
    "read_zoo_configuration",
    "register_architecture",
]
