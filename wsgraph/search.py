"""Search: networks of a zoo that are like a given one, modulo symmetry."""

from wsgraph.provenance.features import FEATURES, Features, ModelFeatures, StatisticsFeatures, WeightFeatures
from wsgraph.provenance.index import Group, Index, Match

__all__ = ["FEATURES", "Features", "Group", "Index", "Match", "ModelFeatures", "StatisticsFeatures", "WeightFeatures"]
