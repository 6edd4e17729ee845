"""Architectures of the networks of a zoo: one file each."""

from wsgraph.data.generators.architectures.cnn import plain_cnn
from wsgraph.data.generators.architectures.mixer import Mixer
from wsgraph.data.generators.architectures.registry import Architecture, architecture_of, list_architectures, register_architecture
from wsgraph.data.generators.architectures.resnet import ResNet
from wsgraph.data.generators.architectures.vit import VisionTransformer

__all__ = [
    "Architecture",
    "Mixer",
    "ResNet",
    "VisionTransformer",
    "architecture_of",
    "list_architectures",
    "plain_cnn",
    "register_architecture",
]
