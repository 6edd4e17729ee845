"""Where networks come from: whether two are the same, which are near, who was made from whom, and what becomes of several merged."""

from wsgraph.provenance.barriers import Barrier, Curve, barrier
from wsgraph.provenance.comparing import NEAR, Comparison, ParameterComparison, compared, same
from wsgraph.provenance.duplicates import duplicates
from wsgraph.provenance.lineage import Descent, Lineage, lineage
from wsgraph.provenance.merging import Merged, MergeWarning, merge
from wsgraph.provenance.yardstick import Yardstick

__all__ = [
    "NEAR",
    "Barrier",
    "Comparison",
    "Curve",
    "Descent",
    "Lineage",
    "MergeWarning",
    "Merged",
    "ParameterComparison",
    "Yardstick",
    "barrier",
    "compared",
    "duplicates",
    "lineage",
    "merge",
    "same",
]
