"""wsgraph: weight-space learning on parameter graphs.

Networks become points of a :class:`WeightSpace`; every other view of them (state dict, parameter graph, dense layer blocks, a copy moved by
the symmetry group, a canonical form) is a cheap function of the space and a flat vector.
"""

from wsgraph.convert import CheckpointError, TraceError, TraceWarning, fold_batchnorm, from_state_dict, load_checkpoint, load_onnx, trace
from wsgraph.space import ParameterGraph, SpaceMismatchError, WeightSpace
from wsgraph.symmetry import GroupElement

__version__ = "0.1.0"
__all__ = [
    "CheckpointError",
    "GroupElement",
    "ParameterGraph",
    "SpaceMismatchError",
    "TraceError",
    "TraceWarning",
    "WeightSpace",
    "__version__",
    "fold_batchnorm",
    "from_state_dict",
    "load_checkpoint",
    "load_onnx",
    "trace",
]
