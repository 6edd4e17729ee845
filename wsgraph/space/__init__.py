"""Weight spaces: an architecture as data, and the views of its checkpoints."""

from wsgraph.operators import OPERATORS, Operator, register_operator
from wsgraph.space.assumed import AssumedGeometryWarning
from wsgraph.space.blocks import Blocks
from wsgraph.space.errors import SpaceMismatchError
from wsgraph.space.followed import Followed
from wsgraph.space.graph import ParameterGraph
from wsgraph.space.modules import Module
from wsgraph.space.parts import Axis, Connection, Layer, NeuronGroup, Parameter, Signal, Symmetry, Tie
from wsgraph.space.topology import Topology
from wsgraph.space.weight_space import WeightSpace

__all__ = [
    "OPERATORS",
    "AssumedGeometryWarning",
    "Axis",
    "Blocks",
    "Connection",
    "Followed",
    "Layer",
    "Module",
    "NeuronGroup",
    "Operator",
    "Parameter",
    "ParameterGraph",
    "Signal",
    "SpaceMismatchError",
    "Symmetry",
    "Tie",
    "Topology",
    "WeightSpace",
    "register_operator",
]
