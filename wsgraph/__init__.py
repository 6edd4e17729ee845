"""wsgraph: weight-space learning on parameter graphs.

Networks become points of a :class:`WeightSpace`; every other view of them (state dict, parameter graph, dense layer blocks, a copy moved by
the symmetry group, a canonical form) is a cheap function of the space and a flat vector.
"""

import importlib
from typing import TYPE_CHECKING, Any

from wsgraph._version import __version__

if TYPE_CHECKING:
    from wsgraph import bench, convert, data, measure, nn, plot, plugins, provenance, search, space, symmetry, tasks, testing  # noqa: F401
    from wsgraph.convert import (
        CheckpointError,
        FileNetwork,
        StateDictWarning,
        StoredNetwork,
        TraceError,
        TraceWarning,
        fold_batchnorm,
        from_state_dict,
        list_networks,
        load_checkpoint,
        load_networks,
        load_onnx,
        trace,
    )
    from wsgraph.provenance import Comparison, same
    from wsgraph.space import AssumedGeometryWarning, ParameterGraph, SpaceMismatchError, WeightSpace
    from wsgraph.symmetry import GroupElement

__all__ = [
    "AssumedGeometryWarning",
    "CheckpointError",
    "Comparison",
    "FileNetwork",
    "GroupElement",
    "ParameterGraph",
    "SpaceMismatchError",
    "StateDictWarning",
    "StoredNetwork",
    "TraceError",
    "TraceWarning",
    "WeightSpace",
    "__version__",
    "fold_batchnorm",
    "from_state_dict",
    "list_networks",
    "load_checkpoint",
    "load_networks",
    "load_onnx",
    "same",
    "trace",
]

# PyTorch takes seconds to import, and help and completion on the command line must not wait for it: names are imported when they are used.
_PLACES = dict.fromkeys(("AssumedGeometryWarning", "ParameterGraph", "SpaceMismatchError", "WeightSpace"), "space") | {
    "GroupElement": "symmetry",
    "Comparison": "provenance",
    "same": "provenance",
}
_MODULES = (
    "bench",
    "convert",
    "data",
    "measure",
    "nn",
    "plot",
    "plugins",
    "provenance",
    "report",
    "scores",
    "space",
    "symmetry",
    "tasks",
    "testing",
)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"wsgraph.{name}")
    if name not in __all__:
        raise AttributeError(f"module 'wsgraph' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"wsgraph.{_PLACES.get(name, 'convert')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
