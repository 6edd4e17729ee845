"""One self-contained HTML page that compares training runs and results of the benchmark."""

from wsgraph.report.page import write_report

__all__ = ["write_report"]
