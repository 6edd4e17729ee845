"""Conversion: from checkpoints and state dicts to weight spaces."""

from wsgraph.convert.chain import StateDictWarning
from wsgraph.convert.checkpoint import load_checkpoint
from wsgraph.convert.errors import CheckpointError
from wsgraph.convert.folding import BatchNormFolding, FoldingWarning, fold_batchnorm
from wsgraph.convert.formats import FileNetwork, load_networks, register_format
from wsgraph.convert.graph_file import save_graph
from wsgraph.convert.networks import StoredNetwork, list_networks
from wsgraph.convert.onnx import load_onnx
from wsgraph.convert.state_dict import from_state_dict
from wsgraph.convert.tracing import TraceError, TraceWarning, trace

__all__ = [
    "BatchNormFolding",
    "CheckpointError",
    "FileNetwork",
    "FoldingWarning",
    "StateDictWarning",
    "StoredNetwork",
    "TraceError",
    "TraceWarning",
    "fold_batchnorm",
    "from_state_dict",
    "list_networks",
    "load_checkpoint",
    "load_networks",
    "load_onnx",
    "register_format",
    "save_graph",
    "trace",
]
