"""The monomial group of a weight space: group elements, their action, and canonical forms."""

from wsgraph.symmetry.alignment import align
from wsgraph.symmetry.canonical import FORMS, canonicalize
from wsgraph.symmetry.group import SYMMETRIES, GroupElement, act, sample_symmetry

__all__ = ["FORMS", "SYMMETRIES", "GroupElement", "act", "align", "canonicalize", "sample_symmetry"]
