"""Benchmarks of weight-space models: the papers' tables and figures, cell by cell, resumable."""

from wsgraph.bench import accuracy, cost, invariance
from wsgraph.bench.bench import SIZES, Bench, Size, list_suites, read_model, register_suite, run_suite
from wsgraph.bench.cells import Cell, run_cells

__all__ = [
    "SIZES",
    "Bench",
    "Cell",
    "Size",
    "accuracy",
    "cost",
    "invariance",
    "list_suites",
    "read_model",
    "register_suite",
    "run_cells",
    "run_suite",
]
