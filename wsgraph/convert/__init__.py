"""Conversion: from checkpoints and state dicts to weight spaces."""

from wsgraph.convert.checkpoint import CheckpointError, load_checkpoint
from wsgraph.convert.folding import BatchNormFolding, FoldingWarning, fold_batchnorm
from wsgraph.convert.graph_file import save_graph
from wsgraph.convert.onnx import load_onnx
from wsgraph.convert.state_dict import from_state_dict
from wsgraph.convert.tracing import TraceError, TraceWarning, trace

__all__ = [
    "BatchNormFolding",
    "CheckpointError",
    "FoldingWarning",
    "TraceError",
    "TraceWarning",
    "fold_batchnorm",
    "from_state_dict",
    "load_checkpoint",
    "load_onnx",
    "save_graph",
    "trace",
]
