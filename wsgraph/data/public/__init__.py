"""Readers of zoos that others published."""

from wsgraph.data.public.base import PublicZoo
from wsgraph.data.public.model_zoos import ModelZoo
from wsgraph.data.public.navon import NavonINRs
from wsgraph.data.public.small_cnn_zoo import SmallCNNZoo
from wsgraph.data.public.wild_park import CNNWildPark, WildParkCNN
from wsgraph.data.public.zhou import ZhouSIRENs

__all__ = ["CNNWildPark", "ModelZoo", "NavonINRs", "PublicZoo", "SmallCNNZoo", "WildParkCNN", "ZhouSIRENs"]
