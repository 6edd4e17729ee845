"""The monomial group of a weight space: group elements, their action, and canonical forms."""

from wsgraph.symmetry.alignment import align
from wsgraph.symmetry.canonical import canonicalize
from wsgraph.symmetry.group import SYMMETRIES, GroupElement, act, sample_symmetry

__all__ = ["SYMMETRIES", "GroupElement", "act", "align", "canonicalize", "sample_symmetry"]
