"""Zoos of trained networks: on disk, as datasets and batches, and made from scratch."""

from wsgraph.data import transforms
from wsgraph.data.augment import augment_zoo, subset_zoo
from wsgraph.data.dataset import ParameterStatistics, ZooDataset, group_split
from wsgraph.data.exchange import export_zoo, import_zoo
from wsgraph.data.generators import (
    Architecture,
    Classifiers,
    HyperparameterRanges,
    ImageFits,
    Problem,
    architecture_of,
    generate_zoo,
    list_architectures,
    make_cnn_zoo,
    make_inr_zoo,
    make_mlp_zoo,
    make_zoo,
    register_architecture,
)
from wsgraph.data.images import ClassificationData, digits, load_images
from wsgraph.data.loader import DataLoader
from wsgraph.data.manifest import ZooWarning
from wsgraph.data.mapped import ArrayRows
from wsgraph.data.public import CNNWildPark, ModelZoo, NavonINRs, PublicZoo, SmallCNNZoo, WildParkCNN, ZhouSIRENs
from wsgraph.data.random import CounterRandom
from wsgraph.data.store import ZooStore
from wsgraph.data.summary import check_up
from wsgraph.data.verify import verify_zoo

__all__ = [
    "Architecture",
    "ArrayRows",
    "CNNWildPark",
    "ClassificationData",
    "Classifiers",
    "CounterRandom",
    "DataLoader",
    "HyperparameterRanges",
    "ImageFits",
    "ModelZoo",
    "NavonINRs",
    "ParameterStatistics",
    "Problem",
    "PublicZoo",
    "SmallCNNZoo",
    "WildParkCNN",
    "ZhouSIRENs",
    "ZooDataset",
    "ZooStore",
    "ZooWarning",
    "architecture_of",
    "augment_zoo",
    "check_up",
    "digits",
    "export_zoo",
    "generate_zoo",
    "group_split",
    "import_zoo",
    "list_architectures",
    "load_images",
    "make_cnn_zoo",
    "make_inr_zoo",
    "make_mlp_zoo",
    "make_zoo",
    "register_architecture",
    "subset_zoo",
    "transforms",
    "verify_zoo",
]
