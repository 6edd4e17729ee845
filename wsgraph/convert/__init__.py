"""Conversion: from checkpoints and state dicts to weight spaces."""

from wsgraph.convert.chain import StateDictWarning
from wsgraph.convert.checkpoint import load_checkpoint
from wsgraph.convert.errors import CheckpointError
from wsgraph.convert.folding import fold_batchnorm
from wsgraph.convert.graph_file import save_graph
from wsgraph.convert.networks import StoredNetwork, list_networks
from wsgraph.convert.onnx_file import load_onnx
from wsgraph.convert.state_dict import from_state_dict
from wsgraph.convert.tracing import TraceError, TraceWarning, trace

__all__ = [
    "CheckpointError",
    "StateDictWarning",
    "StoredNetwork",
    "TraceError",
    "TraceWarning",
    "fold_batchnorm",
    "from_state_dict",
    "list_networks",
    "load_checkpoint",
    "load_onnx",
    "save_graph",
    "trace",
]
