"""Benchmarks of weight-space models: the papers' tables and figures, cell by cell, resumable."""

from wsgraph.bench.cells import Cell, run_cells
from wsgraph.bench.suites import Size, list_suites, register_suite, run_suite

__all__ = ["Cell", "Size", "list_suites", "register_suite", "run_cells", "run_suite"]
