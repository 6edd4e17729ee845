"""The monomial group of a weight space, public as :mod:`wsgraph.symmetry`."""
