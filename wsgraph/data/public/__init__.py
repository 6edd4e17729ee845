"""Readers of zoos that others published."""

from wsgraph.data.public.base import PublicZoo
from wsgraph.data.public.inrs import NavonINRs, ZhouSIRENs
from wsgraph.data.public.model_zoos import ModelZoo
from wsgraph.data.public.small_cnn_zoo import SmallCNNZoo
from wsgraph.data.public.wild_park import CNNWildPark, WildParkCNN

__all__ = ["CNNWildPark", "ModelZoo", "NavonINRs", "PublicZoo", "SmallCNNZoo", "WildParkCNN", "ZhouSIRENs"]
