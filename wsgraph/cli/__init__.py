"""The `wsgraph` command."""

# Commands register themselves; help lists them in the order of these imports.
from wsgraph.cli import quickstart  # noqa: F401, I001
from wsgraph.cli import checkpoints, training, provenance, merging, figures, report, zoos  # noqa: F401
from wsgraph.cli.common import app

__all__ = ["app"]
