"""Benchmarks of weight-space models: the papers' tables and figures, cell by cell, resumable."""

from wsgraph.bench import accuracy, cost, invariance, provenance
from wsgraph.bench.bench import Bench, list_suites, read_model, register_suite, run_suite
from wsgraph.bench.cells import Cell, run_cells
from wsgraph.bench.sizes import SIZES, Size

__all__ = [
    "SIZES",
    "Bench",
    "Cell",
    "Size",
    "accuracy",
    "cost",
    "invariance",
    "list_suites",
    "provenance",
    "read_model",
    "register_suite",
    "run_cells",
    "run_suite",
]
