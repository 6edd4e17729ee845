"""Families of networks whose heritage is known: roots, what was made of them, and strangers."""

from wsgraph.data.generators.lineages.classifier_kinds import ClassifierKind
from wsgraph.data.generators.lineages.derivations import (
    Derivation,
    DerivationContext,
    derivation_named,
    list_derivations,
    register_derivation,
)
from wsgraph.data.generators.lineages.kinds import LineageKind, lineage_kind, list_lineage_kinds, register_lineage_kind
from wsgraph.data.generators.lineages.picture_kinds import PictureKind
from wsgraph.data.generators.lineages.zoo import make_lineage_zoo

__all__ = [
    "ClassifierKind",
    "Derivation",
    "DerivationContext",
    "LineageKind",
    "PictureKind",
    "derivation_named",
    "lineage_kind",
    "list_derivations",
    "list_lineage_kinds",
    "make_lineage_zoo",
    "register_derivation",
    "register_lineage_kind",
]
