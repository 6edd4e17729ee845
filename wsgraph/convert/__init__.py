"""Conversion: from checkpoints and state dicts to weight spaces."""

from wsgraph.convert.checkpoint import CheckpointError, load_checkpoint
from wsgraph.convert.state_dict import from_state_dict

__all__ = ["CheckpointError", "from_state_dict", "load_checkpoint"]
