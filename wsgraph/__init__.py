"""wsgraph: weight-space learning on parameter graphs."""

from wsgraph.space import ParameterGraph, WeightSpace

__version__ = "0.1.0"
__all__ = ["ParameterGraph", "WeightSpace", "__version__"]
