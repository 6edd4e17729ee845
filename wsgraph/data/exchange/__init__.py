"""Zoos from folders of checkpoints, and as folders that others can read."""

from wsgraph.data.exchange.exporting import export_zoo
from wsgraph.data.exchange.importing import import_zoo

__all__ = ["export_zoo", "import_zoo"]
