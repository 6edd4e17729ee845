"""The operators of networks, all in one table: what each computes, which factors of neurons it lets through, and how it is called.

A neuron group's symmetry is decided by *every* operator between the layer that produces its neurons and the layers that consume them. An
entry of the table is all that the library knows of an operator: tracing, evaluating, reading state dicts and ONNX files and the
activations of equivariant layers look there. Files and saved models name operators; positions in the table mean nothing.
"""

from wsgraph.operators.entry import Activations, Flow, Named, OnnxForm, Operator, UnsupportedError, number, square_number
from wsgraph.operators.naming import (
    apply_operator,
    fitting_operators,
    operator_flow,
    operator_index,
    operator_symmetry,
    operator_text,
    operators_called,
    parse_operator,
    register_operator,
    written_operator,
)
from wsgraph.operators.table import OPERATORS

__all__ = [
    "OPERATORS",
    "Activations",
    "Flow",
    "Named",
    "OnnxForm",
    "Operator",
    "UnsupportedError",
    "apply_operator",
    "fitting_operators",
    "number",
    "operator_flow",
    "operator_index",
    "operator_symmetry",
    "operator_text",
    "operators_called",
    "parse_operator",
    "register_operator",
    "square_number",
    "written_operator",
]
