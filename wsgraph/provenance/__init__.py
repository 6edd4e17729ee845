"""Where networks come from: whether two are the same, which are near, who was made from whom, and what becomes of several merged."""

from wsgraph.provenance.comparing import NEAR, Comparison, ParameterComparison, compared, same
from wsgraph.provenance.duplicates import duplicates
from wsgraph.provenance.lineage import Descent, Lineage, lineage
from wsgraph.provenance.yardstick import Yardstick

__all__ = ["NEAR", "Comparison", "Descent", "Lineage", "ParameterComparison", "Yardstick", "compared", "duplicates", "lineage", "same"]
