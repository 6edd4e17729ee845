"""Zoos of trained networks: on disk, as datasets and batches, and made from scratch."""

from wsgraph.data.loader import DataLoader
from wsgraph.data.populations import ClassificationData, HyperparameterRanges, digits, make_cnn_zoo, make_mlp_zoo, make_zoo
from wsgraph.data.random import CounterRandom
from wsgraph.data.store import ZooDataset, ZooStore

__all__ = [
    "ClassificationData",
    "CounterRandom",
    "DataLoader",
    "HyperparameterRanges",
    "ZooDataset",
    "ZooStore",
    "digits",
    "make_cnn_zoo",
    "make_mlp_zoo",
    "make_zoo",
]
